//! `postrider smart-host test` against scripted servers, with and without a running server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod server;
}
#[path = "support/fake_http.rs"]
mod fake_http;
#[path = "support/remote.rs"]
mod remote;

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use fake_http::FakeHttp;
use remote::Remotes;
use serde_json::Value;
use support::server::TestServer;

const LOGIN: &str = "username = \"app\"\npassword = \"pencil\"\n";
const HELLO: &str = "S: 220 far ESMTP\nC: EHLO ...\nS: 250-far\nS: 250-SIZE 1000000\nS: 250 AUTH PLAIN\n\
    C: AUTH PLAIN AGFwcABwZW5jaWw=\n";
const TAKES: &str = "S: 235 2.7.0 welcome pencil\nC: MAIL FROM:<me@my.test> ...\nS: 250 ok\n\
    C: RCPT TO:<postmaster@my.test>\nS: 250 ok\nC: RSET\nS: 250 ok\nC: QUIT\nS: 221 bye\n";
const SENDS: &str = "S: 235 2.7.0 welcome\nC: MAIL FROM:<me@my.test> ...\nS: 250 ok\nC: RCPT TO:<you@far.test>\n\
    S: 250 ok\nC: DATA\nS: 354 go\ncontent\nS: 250 2.0.0 kept\nC: QUIT\nS: 221 bye\n";

fn host(port: u16, more: &str) -> String {
    format!(
        "[domains.\"my.test\"]\n[smart_hosts.relay]\nhost = \"127.0.0.1\"\nport = {port}\ntls = \"off\"\n\
         from_filter = [\"me@my.test\"]\n{more}"
    )
}

fn write(folder: &Path, more: &str) -> PathBuf {
    let file = folder.join("postrider.toml");
    let base = format!("hostname = \"mail.home.test\"\ndata_dir = \"{}\"\n", folder.display());
    std::fs::write(&file, format!("{base}{more}")).unwrap();
    file
}

async fn run(config: &Path, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_postrider"));
    command.args(["smart-host", "test"]).args(arguments).arg("--config").arg(config).stdin(Stdio::null());
    let output = command.output().await.unwrap();
    let all = [output.stdout.as_slice(), &output.stderr].concat();
    let all = String::from_utf8_lossy(&all).into_owned();
    assert!(!all.contains("pencil") && !all.contains("AGFwcABwZW5jaWw"), "{all}");
    output
}

fn legs(report: &Value) -> Vec<&str> {
    report["marks"].as_array().unwrap().iter().map(|mark| mark["leg"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_takes_mail_leg_by_leg_without_a_server() {
    let remotes = Remotes::play(&[&format!("{HELLO}{TAKES}")]).await;
    let folder = tempfile::tempdir().unwrap();
    let config = write(folder.path(), &host(remotes.port, LOGIN));
    let output = run(&config, &["relay", "--json"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let wanted = ["configuration", "dns", "connect", "banner", "ehlo", "auth", "mail", "rcpt", "reset"];
    assert_eq!(legs(&report), wanted);
    assert_eq!(report["marks"][4]["offers"], serde_json::json!(["SIZE 1000000", "AUTH PLAIN"]));
    assert_eq!(report["marks"][5]["what"], "235 by PLAIN");
    assert_eq!((&report["good"], &report["sent"]), (&Value::Bool(true), &Value::Bool(false)));
    let received = remotes.finish().await;
    assert!(received[0].contents.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_tests_and_sends() {
    let script = format!("{HELLO}{SENDS}");
    let remotes = Remotes::play(&[&script]).await;
    let folder = tempfile::tempdir().unwrap();
    let text = host(remotes.port, LOGIN);
    let server = TestServer::start(folder.path(), &text).await;
    let config = write(folder.path(), &text);
    let output = run(&config, &["relay", "--send", "--to", "you@far.test"]).await;
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("has taken the message") && said.contains("does not prove"), "{said}");
    assert!(server.queue().await.is_empty());
    server.stop().await;
    let received = remotes.finish().await;
    let content = String::from_utf8(received[0].contents[0].clone()).unwrap();
    assert!(content.contains("\r\nSubject: Test\r\n"), "{content}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_grouped_and_has_a_remedy() {
    let ok = "S: 220 far\nC: EHLO ...\nS: 250 far\n";
    let refused = format!(
        "{ok}C: MAIL ...\nS: 250 ok\nC: RCPT ...\nS: 550 5.1.1 nobody\nC: RSET\nS: 250 ok\nC: QUIT\nS: 221 x\n"
    );
    let repeats = format!("{HELLO}S: 535 5.7.8 no AGFwcABwZW5jaWw=\ngone\n");
    for (script, more, group) in [
        ("drop\n", "", "disconnected"),
        ("S: 554 5.7.1 not you\ngone\n", "", "refused"),
        (refused.as_str(), "", "refused"),
        (repeats.as_str(), LOGIN, "login"),
        ("S: 220 far\nC: EHLO ...\nS: 250 far\ngone\n", LOGIN, "unsupported"),
    ] {
        let remotes = Remotes::play(&[script]).await;
        let folder = tempfile::tempdir().unwrap();
        let config = write(folder.path(), &host(remotes.port, more));
        let output = run(&config, &["relay", "--json"]).await;
        assert_eq!(output.status.code(), Some(1), "{script}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["problem"]["group"], group, "{script}: {report}");
        assert!(!report["problem"]["remedy"].as_str().unwrap().is_empty());
        remotes.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_tls_the_names_of_the_certificate_are_told() {
    let script = "S: 220 far\nC: EHLO ...\nS: 250-far\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 go\nstarttls\nC: EHLO ...\n\
        S: 250 far\nC: MAIL ...\nS: 250 ok\nC: RCPT ...\nS: 250 ok\nC: RSET\nS: 250 ok\nC: QUIT\nS: 221 x\n";
    let remotes = Remotes::play(&[script]).await;
    let folder = tempfile::tempdir().unwrap();
    let text = host(remotes.port, "verify_certificate = false\n").replace("\"off\"", "\"required\"");
    let output = run(&write(folder.path(), &text), &["relay"]).await;
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("TLSv1.3") && said.contains("certificate for somebody.else.test"), "{said}");
    remotes.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_meant_ends_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let config = write(folder.path(), &host(9, "[delivery]\nallow_recipients = [\"my.test\"]\n"));
    for arguments in
        [&["other"][..], &["relay", "--send"], &["relay", "--to", "x"], &["relay", "--send", "--to", "a@far.test"]]
    {
        let output = run(&config, arguments).await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn graph_gets_a_token_and_with_send_a_message_by_the_server_alone() {
    let (web, folder) = (FakeHttp::start().await, tempfile::tempdir().unwrap());
    let text = format!(
        "[domains.\"my.test\"]\n[smart_hosts.office]\nkind = \"graph\"\ngraph_url = \"{0}\"\nusername = \"me@my.test\"\n\
         [smart_hosts.office.oauth]\nprovider = \"microsoft\"\nflow = \"client_credentials\"\nclient_id = \"app\"\n\
         client_secret = \"pencil\"\ntoken_url = \"{0}/token\"\n",
        web.url
    );
    let config = write(folder.path(), &text);
    let output = run(&config, &["office"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("postrider serve"));
    let server = TestServer::start(folder.path(), &text).await;
    web.will("200 OK", "", "{\"access_token\":\"pencil-2\",\"token_type\":\"Bearer\",\"expires_in\":3600}");
    let output = run(&config, &["office"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(web.take().len(), 1);
    web.will("202 Accepted", "", "");
    let output = run(&config, &["office", "--send", "--to", "you@far.test"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(web.take()[0].line().contains("/sendMail"));
    server.stop().await;
}
