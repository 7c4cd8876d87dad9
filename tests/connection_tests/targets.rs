//! Targets of inbound mail: each kind, with and without a message.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::endpoint::{Endpoint, answer};
use super::remote::Remotes;
use super::{SECRET, legs, problem, report, run, said, write};

fn target(lines: &str) -> String {
    format!("[domains.\"home.test\"]\n[aliases]\n\"sales@home.test\" = \"crm\"\n[targets.crm]\n{lines}")
}

async fn tested(folder: &Path, lines: &str, more: &[&str]) -> (Option<i32>, serde_json::Value) {
    let file = write(folder, &target(lines));
    let output = run(&file, &[&["target", "test", "crm", "--json"], more].concat()).await;
    (output.status.code(), report(&output))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_connected_to_and_posted_to_only_on_demand() {
    let folder = tempfile::tempdir().unwrap();
    let good = answer("200 OK", "", "");
    let endpoint = Endpoint::answering(&[&good]).await;
    let lines =
        format!("kind = \"webhook\"\nurl = \"{}?key=pencil%2Bsharpener\"\nsecret = \"{SECRET}\"\n", endpoint.url);
    let (status, tested_so_far) = tested(folder.path(), &lines, &[]).await;
    assert_eq!(status, Some(0), "{tested_so_far}");
    assert_eq!(legs(&tested_so_far), ["configuration", "dns", "connect"]);
    assert_eq!(tested_so_far["to"], "sales@home.test");
    assert!(!tested_so_far.to_string().contains("pencil"), "{tested_so_far}");
    assert!(endpoint.take().is_empty());
    let (status, sent) = tested(folder.path(), &lines, &["--send"]).await;
    assert_eq!((status, &sent["sent"]), (Some(0), &true.into()), "{sent}");
    let asked = endpoint.take();
    assert_eq!(asked.len(), 1);
    assert!(asked[0].header("webhook-signature").unwrap().starts_with("v1,"));
    assert!(String::from_utf8_lossy(&asked[0].body).contains("sales@home.test"));
    endpoint.will(&answer("403 Forbidden", "", "who are you?"));
    let (status, refused) = tested(folder.path(), &lines, &["--send"]).await;
    assert_eq!(status, Some(1));
    let (group, remedy) = problem(&refused);
    assert!(group == "refused" && remedy.contains("targets.crm.secret"), "{refused}");
    assert!(refused["problem"]["what"].as_str().unwrap().contains("who are you?"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_are_asked_up_to_the_recipient() {
    let folder = tempfile::tempdir().unwrap();
    let lmtp = "S: 220 box LMTP\nC: LHLO mail.home.test\nS: 250 box\nC: MAIL FROM:<postmaster@home.test>\nS: 250 ok\n\
        C: RCPT TO:<sales@home.test>\n";
    let rehearsed = format!("{lmtp}S: 250 ok\nC: RSET\nS: 250 ok\nC: QUIT\nS: 221 x\n");
    let remotes = Remotes::play(&[&rehearsed]).await;
    let lines = format!("kind = \"lmtp\"\naddress = \"127.0.0.1:{}\"\n", remotes.port);
    let (status, tested_so_far) = tested(folder.path(), &lines, &[]).await;
    assert_eq!(status, Some(0), "{tested_so_far}");
    let wanted = ["configuration", "dns", "connect", "banner", "ehlo", "mail", "rcpt", "reset"];
    assert_eq!(legs(&tested_so_far), wanted);
    remotes.finish().await;

    let sends = format!("{lmtp}S: 250 ok\nC: DATA\nS: 354 go\ncontent\nS: 250 2.0.0 kept\nC: QUIT\nS: 221 x\n");
    let remotes = Remotes::play(&[&sends]).await;
    let lines = format!("kind = \"lmtp\"\naddress = \"127.0.0.1:{}\"\n", remotes.port);
    let (status, sent) = tested(folder.path(), &lines, &["--send"]).await;
    assert_eq!((status, &sent["sent"]), (Some(0), &true.into()), "{sent}");
    assert!(String::from_utf8_lossy(&remotes.finish().await[0].contents[0]).contains("Subject: Test"));

    let smtp = "S: 220 box\nC: EHLO ...\nS: 250 box\nC: MAIL ...\nS: 250 ok\nC: RCPT ...\nS: 550 5.1.1 nobody here\n\
        C: RSET\nS: 250 ok\nC: QUIT\nS: 221 x\n";
    let remotes = Remotes::play(&[smtp]).await;
    let lines = format!("kind = \"smtp\"\nhost = \"127.0.0.1\"\nport = {}\ntls = \"off\"\n", remotes.port);
    let (status, refused) = tested(folder.path(), &lines, &[]).await;
    assert_eq!((status, problem(&refused).0), (Some(1), "refused"), "{refused}");
    remotes.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_lmtp_socket_that_is_not_there_is_no_response() {
    let folder = tempfile::tempdir().unwrap();
    let lines = format!("kind = \"lmtp\"\naddress = \"unix:{}/none\"\n", folder.path().display());
    let (status, report) = tested(folder.path(), &lines, &[]).await;
    let (group, remedy) = problem(&report);
    assert_eq!((status, group), (Some(1), "no_response"), "{report}");
    assert!(remedy.contains("targets.crm.address"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_are_tried_and_left_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("box");
    let lines = format!("kind = \"maildir\"\npath = \"{}\"\n", path.display());
    let (status, report) = tested(folder.path(), &lines, &[]).await;
    assert_eq!((status, legs(&report)), (Some(0), vec!["configuration", "writing"]), "{report}");
    assert!(!path.exists());
    let (status, sent) = tested(folder.path(), &lines, &["--send", "--to", "other@home.test"]).await;
    assert_eq!((status, legs(&sent)), (Some(0), vec!["configuration", "writing", "message"]), "{sent}");
    let kept: Vec<_> = std::fs::read_dir(path.join("new")).unwrap().collect();
    assert_eq!(kept.len(), 1);
    let text = std::fs::read_to_string(kept[0].as_ref().unwrap().path()).unwrap();
    assert!(text.contains("Delivered-To: other@home.test"), "{text}");
    tested(folder.path(), &lines, &[]).await;
    assert_eq!(std::fs::read_dir(path.join("tmp")).unwrap().count(), 0, "the test leaves nothing behind");

    std::fs::write(folder.path().join("file"), "").unwrap();
    for (kind, path) in [
        ("maildir", folder.path().join("file")),
        ("maildir", folder.path().join("none/box")),
        ("file", folder.path().join("file/{id}.eml")),
    ] {
        let lines = format!("kind = \"{kind}\"\npath = \"{}\"\n", path.display());
        let (status, report) = tested(folder.path(), &lines, &[]).await;
        let (group, remedy) = problem(&report);
        assert_eq!((status, group), (Some(1), "system"), "{report}");
        assert!(remedy.contains("targets.crm.path"), "{report}");
    }
    let lines = format!("kind = \"file\"\npath = \"{}/in/{{id}}.eml\"\n", folder.path().display());
    let (status, sent) = tested(folder.path(), &lines, &["--send"]).await;
    assert_eq!(status, Some(0), "{sent}");
    assert_eq!(std::fs::read_dir(folder.path().join("in")).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_has_to_be_there_and_runs_only_on_demand() {
    let folder = tempfile::tempdir().unwrap();
    let (program, ran) = (folder.path().join("on-mail"), folder.path().join("ran"));
    let lines = format!("kind = \"pipe\"\ncommand = [\"{}\", \"{{recipient}}\"]\n", program.display());
    let (status, missing) = tested(folder.path(), &lines, &[]).await;
    let (group, remedy) = problem(&missing);
    assert_eq!((status, group), (Some(1), "system"), "{missing}");
    assert!(remedy.contains("targets.crm.command"), "{missing}");
    std::fs::write(&program, format!("#!/bin/sh\necho \"$1\" > {}\ncat > /dev/null\n", ran.display())).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (status, _) = tested(folder.path(), &lines, &[]).await;
    assert_eq!(status, Some(1), "a file that nobody may run");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (status, report) = tested(folder.path(), &lines, &[]).await;
    assert_eq!((status, legs(&report)), (Some(0), vec!["configuration", "program"]), "{report}");
    assert!(!ran.exists());
    let (status, sent) = tested(folder.path(), &lines, &["--send"]).await;
    assert_eq!(status, Some(0), "{sent}");
    assert_eq!(std::fs::read_to_string(&ran).unwrap(), "sales@home.test\n");
    std::fs::write(&program, "#!/bin/sh\ncat > /dev/null\necho broken >&2\nexit 65\n").unwrap();
    let (status, failed) = tested(folder.path(), &lines, &["--send"]).await;
    assert_eq!((status, problem(&failed).0), (Some(1), "refused"), "{failed}");
    assert!(failed["problem"]["what"].as_str().unwrap().contains("broken"), "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn people_get_lines_and_a_name_that_is_none_ends_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let lines = format!("kind = \"maildir\"\npath = \"{}/box\"\n", folder.path().display());
    let file = write(folder.path(), &target(&lines));
    let output = run(&file, &["target", "test", "crm"]).await;
    let text = said(&output);
    assert!(
        output.status.success() && text.starts_with("target crm: from <postmaster@home.test> to <sales@home.test>\n")
    );
    assert!(text.contains("\n  writing ") && text.ends_with("As far as it went, it does.\n"), "{text}");
    let json = report(&run(&file, &["target", "test", "crm", "--json"]).await);
    assert_eq!(legs(&json), ["configuration", "writing"]);
    let output = run(&file, &["target", "test", "other"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("there are: crm"), "{}", said(&output));
}
