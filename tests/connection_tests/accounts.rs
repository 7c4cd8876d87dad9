//! Logins of our own, at a server in this process.

use std::path::{Path, PathBuf};

use super::server::TestServer;
use super::zone::{Zone, ZoneServer};
use super::{SECRET, legs, problem, report, run, run_with, said, write};

fn account(more: &str) -> String {
    format!(
        "[domains.\"home.test\"]\n[accounts.shop]\npassword = \"{SECRET}\"\n{more}[delivery]\ndefault = \"capture\"\n"
    )
}

/// The server, and the configuration that knows its port.
async fn served(folder: &Path, text: &str) -> (TestServer, PathBuf) {
    let server = TestServer::start(folder, text).await;
    let file = write(folder, &format!("{}{text}", listener(server.submission.port(), "")));
    (server, file)
}

fn listener(port: u16, more: &str) -> String {
    format!("[listeners.submission]\nrole = \"submission\"\nbind = [\"127.0.0.1:{port}\"]\n{more}")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_may_send_is_tested_leg_by_leg_and_nothing_is_queued() {
    let folder = tempfile::tempdir().unwrap();
    let (server, file) = served(folder.path(), &account("")).await;
    let output = run_with(&file, &["account", "test", "shop", "--json"], &format!("{SECRET}\n"), "").await;
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let report = report(&output);
    let wanted = [
        "configuration",
        "dns",
        "connect",
        "banner",
        "ehlo",
        "starttls",
        "tls",
        "ehlo",
        "auth",
        "mail",
        "rcpt",
        "reset",
    ];
    assert_eq!(legs(&report), wanted);
    assert_eq!((&report["test"], &report["name"], &report["sent"]), (&"account".into(), &"shop".into(), &false.into()));
    assert!(report["marks"][6]["what"].as_str().unwrap().contains("TLSv1.3"), "{report}");
    assert!(server.queue().await.is_empty());
    let output = run_with(&file, &["account", "test", "shop"], SECRET, "").await;
    let text = said(&output);
    assert!(text.starts_with("account shop: from <postmaster@home.test> to <postmaster@home.test>\n"), "{text}");
    assert!(text.contains("\n  AUTH ") && text.ends_with("The account may send.\n"), "{text}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_comes_from_a_file_or_the_environment_and_a_message_is_sent_on_demand() {
    let folder = tempfile::tempdir().unwrap();
    let (server, file) = served(folder.path(), &account("senders = [\"shop@home.test\"]\n")).await;
    let secret = folder.path().join("secret");
    std::fs::write(&secret, format!("{SECRET}\n")).unwrap();
    let from_file = ["account", "test", "shop", "--json", "--password-file", secret.to_str().unwrap()];
    let tested = report(&run(&file, &from_file).await);
    assert_eq!((&tested["good"], &tested["from"]), (&true.into(), &"shop@home.test".into()));
    let send = ["account", "test", "shop", "--password-env", "SHOP_PASSWORD", "--send", "--to", "you@far.test"];
    let output = run_with(&file, &send, "", SECRET).await;
    assert!(output.status.success() && said(&output).contains("The server has taken the message."), "{output:?}");
    let queued = server.queue().await;
    assert_eq!(queued.len(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_names_the_key_to_change() {
    let folder = tempfile::tempdir().unwrap();
    let more = "senders = [\"shop@home.test\"]\ndaily_limit = 1\n[accounts.old]\npassword = \"x\"\nactive = false\n";
    let (server, file) = served(folder.path(), &account(more)).await;
    let test = async |arguments: &[&str], password: &str| {
        let all = [&["account", "test"], arguments, &["--json"]].concat();
        let output = run_with(&file, &all, password, "").await;
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        report(&output)
    };
    let wrong = test(&["shop"], "guess").await;
    let (group, remedy) = problem(&wrong);
    assert!(group == "login" && remedy.contains("accounts.shop.password_hash"), "{wrong}");
    let inactive = test(&["old"], "x").await;
    assert_eq!(problem(&inactive), ("login", "set accounts.old.active = true"));
    let foreign = test(&["shop", "--from", "boss@home.test"], SECRET).await;
    let (group, remedy) = problem(&foreign);
    assert!(group == "refused" && remedy.contains("<boss@home.test> is not among accounts.shop.senders"), "{foreign}");
    let sent = ["account", "test", "shop", "--send", "--to", "you@far.test"];
    assert!(run_with(&file, &sent, SECRET, "").await.status.success());
    let over = test(&["shop", "--to", "you@far.test"], SECRET).await;
    let (group, remedy) = problem(&over);
    assert!(group == "refused" && remedy.contains("accounts.shop.daily_limit"), "{over}");
    server.stop().await;
    let alone = test(&["shop"], SECRET).await;
    let (group, remedy) = problem(&alone);
    assert!(
        group == "no_response" && remedy.contains("postrider serve") && remedy.contains("listeners.submission.bind")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn by_name_the_certificate_is_checked_as_from_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let zone: ZoneServer = Zone::new().a("mail.home.test", "127.0.0.1").serve().await;
    let text = format!("{}[dns]\nnameservers = [\"{}\"]\n", account(""), zone.addr());
    let (server, file) = served(folder.path(), &text).await;
    let by_name = ["account", "test", "shop", "--host", "mail.home.test", "--json"];
    let output = run_with(&file, &by_name, SECRET, "").await;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let report = report(&output);
    let (group, remedy) = problem(&report);
    assert!(group == "tls" && remedy.contains("tls.certificate"), "{report}");
    assert!(report["marks"][1]["what"].as_str().unwrap().contains("mail.home.test is at 127.0.0.1"), "{report}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_meant_ends_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), &format!("{}{}", listener(9, ""), account("")));
    for (arguments, word) in [
        (&["nobody"][..], "there are: shop"),
        (&["shop", "--listener", "mx"], "role = \"submission\""),
        (&["shop", "--send"], "--to"),
        (&["shop", "--to", "nonsense"], "nonsense"),
        (&["shop", "--password-env", "NOT_THERE"], "NOT_THERE"),
    ] {
        let output = run_with(&file, &[&["account", "test"], arguments].concat(), SECRET, "").await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains(word), "{arguments:?}: {}", said(&output));
    }
    let output = run_with(&file, &["account", "test", "shop"], "", "").await;
    assert_eq!(output.status.code(), Some(2), "an empty password: {}", said(&output));
}
