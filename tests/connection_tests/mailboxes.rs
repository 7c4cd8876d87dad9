//! Mailboxes elsewhere, played by scripts.

use super::remote::Remotes;
use super::{SECRET, legs, problem, report, run, said, write};

fn fetch(protocol: &str, port: u16, more: &str) -> String {
    format!(
        "[domains.\"home.test\"]\n[aliases]\n\"sales@home.test\" = \"discard\"\n[fetch.sales]\nprotocol = \"{protocol}\"\n\
         host = \"127.0.0.1\"\nport = {port}\ntls = \"off\"\nusername = \"box\"\npassword = \"{SECRET}\"\n{more}"
    )
}

/// What comes of `fetch test sales` against a script.
async fn tested(protocol: &str, script: &str, more: &str) -> (Option<i32>, serde_json::Value, String) {
    let folder = tempfile::tempdir().unwrap();
    let remotes = Remotes::play(&[&format!("{script}---\n{script}")]).await;
    let file = write(folder.path(), &fetch(protocol, remotes.port, more));
    let output = run(&file, &["fetch", "test", "sales", "--json"]).await;
    let human = run(&file, &["fetch", "test", "sales"]).await;
    assert_eq!(output.status.code(), human.status.code());
    remotes.finish().await;
    (output.status.code(), report(&output), said(&human))
}

#[tokio::test]
async fn an_imap_mailbox_is_opened_and_its_messages_are_counted() {
    let script = "S: * OK [CAPABILITY IMAP4rev1] hello\nC: p1 LOGIN \"box\" \"pencil+sharpener\"\n\
        S: p1 OK [CAPABILITY IMAP4rev1] in\nC: p2 SELECT \"INBOX\"\nS: * 7 EXISTS\nS: * OK [UIDVALIDITY 3] x\nS: * OK [UIDNEXT 9] x\n\
        S: p2 OK [READ-WRITE] open\nC: p3 UID SEARCH 1:7 UNDELETED UNSEEN\nS: * SEARCH 4 8\nS: p3 OK done\nC: p4 LOGOUT\n\
        S: * BYE\nS: p4 OK\ngone\n";
    let (status, report, human) = tested("imap", script, "").await;
    assert_eq!(status, Some(0), "{human}");
    assert_eq!(legs(&report), ["configuration", "dns", "connect", "banner", "auth", "folder", "messages"]);
    assert_eq!(report["marks"][5]["what"], "INBOX is open; it holds 7 messages");
    assert_eq!(report["marks"][6]["what"], "2 messages not read yet");
    assert!(human.starts_with("fetch sales\n") && human.ends_with("Mail can be fetched from there.\n"), "{human}");
}

#[tokio::test]
async fn a_pop3_mailbox_is_listed_and_left_as_it_is() {
    let script = "S: +OK hello\nC: USER box\nS: +OK\nC: PASS pencil+sharpener\nS: +OK in\nC: LIST\nS: +OK\nS: 1 100\nS: .\nC: UIDL\n\
        S: +OK\nS: 1 a\nS: .\nC: QUIT\nS: +OK\ngone\n";
    let (status, report, human) = tested("pop3", script, "after = \"delete\"\n").await;
    assert_eq!(status, Some(0), "{human}");
    assert_eq!(legs(&report), ["configuration", "dns", "connect", "banner", "auth", "messages"]);
    assert_eq!(report["marks"][5]["what"], "1 message in the mailbox");
}

#[tokio::test]
async fn what_goes_wrong_is_grouped_and_names_the_key() {
    let imap = "S: * OK [CAPABILITY IMAP4rev1] hello\nC: p1 LOGIN \"box\" \"pencil+sharpener\"\n";
    let repeats = format!("{imap}S: p1 NO wrong: pencil+sharpener cGVuY2lsK3NoYXJwZW5lcg==\ngone\n");
    let folder =
        format!("{imap}S: p1 OK [CAPABILITY IMAP4rev1] in\nC: p2 SELECT \"Sales\"\nS: p2 NO no such mailbox\ngone\n");
    for (protocol, script, more, group, key) in [
        ("imap", repeats.as_str(), "", "login", "fetch.sales.username and password"),
        ("imap", folder.as_str(), "folder = \"Sales\"\n", "refused", "fetch.sales.folder"),
        ("imap", "S: +OK this is POP3\ngone\n", "", "unsupported", "fetch.sales.protocol"),
        ("pop3", "S: -ERR [SYS/TEMP] closed\ngone\n", "", "disconnected", "fetch.sales.port and tls"),
        ("pop3", "drop\n", "", "disconnected", "fetch.sales.port and tls"),
    ] {
        let (status, report, human) = tested(protocol, script, more).await;
        assert_eq!(status, Some(1), "{human}");
        let (found, remedy) = problem(&report);
        assert_eq!(found, group, "{report}");
        assert!(remedy.contains(key), "{report}");
        assert!(human.contains("It does not do.") && human.contains(key), "{human}");
    }
}

#[tokio::test]
async fn a_mailbox_that_is_only_logged_in_to_is_tested_as_far() {
    let folder = tempfile::tempdir().unwrap();
    let script = "S: +OK hello\nC: USER box\nS: +OK\nC: PASS pencil+sharpener\nS: +OK in\nC: QUIT\nS: +OK\ngone\n";
    let remotes = Remotes::play(&[script]).await;
    let host = "[smart_hosts.relay]\nhost = \"127.0.0.1\"\ntls = \"off\"\npop_before_smtp = \"sales\"\n";
    let file = write(folder.path(), &format!("{}{host}", fetch("pop3", remotes.port, "")));
    let output = run(&file, &["fetch", "test", "sales"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("pop_before_smtp") && said(&output).ends_with("The login works.\n"));
    remotes.finish().await;
    let output = run(&file, &["fetch", "test", "other"]).await;
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
}

#[tokio::test]
async fn where_nobody_listens_there_is_no_response() {
    let folder = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let file = write(folder.path(), &fetch("imap", port, ""));
    let output = run(&file, &["fetch", "test", "sales", "--json"]).await;
    assert_eq!(output.status.code(), Some(1));
    let report = report(&output);
    assert_eq!(problem(&report).0, "no_response", "{report}");
    assert_eq!(legs(&report), ["configuration", "dns"]);
}
