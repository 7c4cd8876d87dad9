//! The pickup folder of a running server: its command line, its way beside SMTP, and when the server
//! refuses to start with it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod server;
}

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use postrider::app::App;
use postrider::clock::Clock;
use serde_json::Value;
use support::client::Client;
use support::server::TestServer;
use tokio::process::Command;

/// What comes in is held: where it would go is not the question here.
const CONF: &str = r#"
[networks]
trusted = ["127.0.0.0/8"]
[accounts.shop]
password = "secret"
streams = ["bulk"]
hold = true
[domains."home.test"]
[pickup.main]
path = "FOLDER"
account = "shop"
settle = "SETTLE"
"#;

fn conf(folder: &Path, settle: &str) -> String {
    CONF.replace("FOLDER", folder.to_str().unwrap()).replace("SETTLE", settle)
}

fn made(base: &Path) -> PathBuf {
    let folder = base.join("pickup");
    fs::create_dir(&folder).unwrap();
    folder
}

/// The same configuration as a file, for the command line.
fn written(base: &Path, more: &str) -> PathBuf {
    let path = base.join("postrider.toml");
    let text = format!("hostname = \"mail.home.test\"\ndata_dir = \"{}\"\n{more}", base.join("data").display());
    fs::write(&path, text).unwrap();
    path
}

fn mail(subject: &str) -> String {
    format!("From: a@home.test\nTo: b@far.test\nSubject: {subject}\n\nhello\n")
}

async fn postrider(conf: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
    command.args(words).arg("--config").arg(conf).kill_on_drop(true).output().await.unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_each_file_would_become_and_takes_nothing() {
    let base = tempfile::tempdir().unwrap();
    let folder = made(base.path());
    fs::create_dir(folder.join("bulk")).unwrap();
    fs::create_dir(folder.join("wrong")).unwrap();
    fs::write(folder.join("good.eml"), mail("x")).unwrap();
    fs::write(folder.join("bulk/block.eml"), "X-Sender: <>\nX-Receiver: <r@far.test>\nFrom: a@home.test\n\n..\n")
        .unwrap();
    fs::write(folder.join("wrong/x.eml"), mail("x")).unwrap();
    fs::write(folder.join("bad.eml"), "no message").unwrap();
    fs::write(folder.join("half.tmp"), "not ours").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", folder.join("link.eml")).unwrap();
    let conf = written(base.path(), &conf(&folder, "0s"));
    for words in
        [&["pickup", "check", "main"][..], &["pickup", "check"], &["pickup", "check", folder.to_str().unwrap()]]
    {
        let output = postrider(&conf, words).await;
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for wanted in [
            "good.eml",
            "<a@home.test> → b@far.test",
            "envelope block, dots doubled, stream bulk",
            "<> → r@far.test",
            "bad.eml",
            "would become .bad",
            "wrong/ is no stream",
            "link.eml: never taken, it is a symbolic link",
            "4 files",
        ] {
            assert!(said.contains(wanted), "{wanted} is not in\n{said}");
        }
    }
    let output = postrider(&conf, &["pickup", "check", "--json"]).await;
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["files"].as_array().unwrap().len(), 4);
    assert_eq!(told["files"].as_array().unwrap().iter().filter(|file| file["bad"].is_string()).count(), 2);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 6, "nothing was taken and nothing left behind");

    for gone in ["wrong/x.eml", "bad.eml"] {
        fs::remove_file(folder.join(gone)).unwrap();
    }
    fs::remove_dir(folder.join("wrong")).unwrap();
    assert_eq!(postrider(&conf, &["pickup", "check"]).await.status.code(), Some(0));
    fs::set_permissions(&folder, PermissionsExt::from_mode(0o777)).unwrap();
    let output = postrider(&conf, &["pickup", "check"]).await;
    assert!(output.status.code() == Some(1) && text(&output).contains("chmod"), "{}", text(&output));
    assert_eq!(postrider(&conf, &["pickup", "check", "/nonexistent"]).await.status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn once_takes_what_is_ready_and_says_so() {
    let base = tempfile::tempdir().unwrap();
    let folder = made(base.path());
    let more = conf(&folder, "1h");
    let server = TestServer::start(&base.path().join("data"), &more).await;
    let file = written(base.path(), &more);
    fs::write(folder.join("new.eml"), mail("new")).unwrap();
    let output = postrider(&file, &["pickup", "once", "main"]).await;
    assert!(output.status.success() && text(&output).contains("new.eml: waits"), "{}", text(&output));
    let old = fs::File::options().write(true).open(folder.join("new.eml")).unwrap();
    old.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(7200)).unwrap();
    drop(old);
    let output = postrider(&file, &["pickup", "once", "main", "--json"]).await;
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    // The server may have been quicker: it looks by itself.
    let queue = server.queue().await;
    assert_eq!(queue.len(), 1, "{told}");
    assert!(fs::read_dir(&folder).unwrap().next().is_none());
    let output = postrider(&file, &["pickup", "once", "other"]).await;
    assert!(output.status.code() == Some(2) && text(&output).contains("no pickup folder"), "{}", text(&output));
    server.stop().await;
    let output = postrider(&file, &["pickup", "once"]).await;
    assert!(output.status.code() == Some(1) && text(&output).contains("no server is running"), "{}", text(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_files_keep_no_smtp_client_waiting_for_their_end() {
    const FILES: usize = 3_000;
    let base = tempfile::tempdir().unwrap();
    let folder = made(base.path());
    for number in 0..FILES {
        fs::write(folder.join(format!("{number}.eml")), mail("file")).unwrap();
    }
    let server = TestServer::start(&base.path().join("data"), &conf(&folder, "0s")).await;
    let left = || fs::read_dir(&folder).unwrap().count();
    while left() == FILES {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    let mut client = Client::connect(server.submission).await.unwrap();
    let letter = "From: a@home.test\r\nTo: b@far.test\r\nSubject: by smtp\r\n\r\nhello\r\n";
    let reply = client.send("a@home.test", &["b@far.test"], letter).await.unwrap();
    assert!(reply.starts_with("250"), "{reply}");
    assert!(left() > 0, "the client came last");
    while left() > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_where_everybody_may_replace_files_keeps_the_server_from_starting() {
    let base = tempfile::tempdir().unwrap();
    let folder = made(base.path());
    fs::set_permissions(&folder, PermissionsExt::from_mode(0o777)).unwrap();
    let file = written(base.path(), &(conf(&folder, "0s") + "[listeners]\n"));
    let config = postrider::config::load(&file).unwrap();
    let error = App::start(config, Clock::System).await.err().unwrap().to_string();
    assert!(error.contains("pickup.main") && error.contains("chmod"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_maildrop_is_open_only_where_local_programs_are_trusted() {
    let base = tempfile::tempdir().unwrap();
    let data = base.path().join("data");
    for (trusted, mode) in [("127.0.0.0/8", 0o1733), ("192.0.2.0/24", 0o700), ("::1/128", 0o1733)] {
        let server = TestServer::start(&data, &format!("[networks]\ntrusted = [\"{trusted}\"]\n")).await;
        let found = fs::metadata(data.join("maildrop")).unwrap().permissions().mode() & 0o7777;
        assert_eq!(found, mode, "{trusted}: {found:o}");
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_of_ours_gets_back_what_may_not_be_sent() {
    let base = tempfile::tempdir().unwrap();
    let folder = made(base.path());
    let more = format!(
        "{}\n[aliases]\n\"a@home.test\" = \"box\"\n[targets.box]\nkind = \"maildir\"\npath = \"DATA_DIR/box\"\n",
        conf(&folder, "0s").replace("hold = true", "senders = [\"other@home.test\"]")
    );
    let server = TestServer::start(&base.path().join("data"), &more).await;
    // Not among the account's senders, but at a domain of ours; and one that is not.
    fs::write(folder.join("ours.eml"), mail("ours")).unwrap();
    fs::write(folder.join("theirs.eml"), mail("theirs").replace("a@home.test", "victim@far.test")).unwrap();
    let new = base.path().join("data/box/new");
    let arrived = || fs::read_dir(&new).map_or(0, Iterator::count);
    while arrived() == 0 || !folder.join("theirs.bad.log").exists() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let notice = fs::read_dir(&new).unwrap().next().unwrap().unwrap().path();
    let notice = fs::read_to_string(notice).unwrap();
    assert!(notice.contains("Return-Path: <>") && notice.contains("Subject: ours"), "{notice}");
    assert!(notice.contains("may not send as") && notice.contains("multipart/report"), "{notice}");
    assert!(fs::read_to_string(folder.join("theirs.bad.log")).unwrap().contains("victim@far.test"));
    while folder.join("ours.tmp").exists() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(!folder.join("ours.bad").exists());
    assert_eq!(arrived(), 1);
    server.stop().await;
}
