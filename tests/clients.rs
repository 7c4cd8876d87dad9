//! Real clients and judges: curl and Python's smtplib submit over STARTTLS with AUTH, the far end
//! takes the mail over STARTTLS, and dkimpy verifies both signatures with the records that
//! `postrider dns` prints.
//!
//! `POSTRIDER_TEST_PYTHON` names a Python with dkimpy and pynacl (`make test` makes one). Without the
//! variable, what needs a missing program says SKIPPED and proves nothing; with it, it must be there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod client;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use std::path::Path;
use std::process::{Output, Stdio};

use support::client::Client;
use support::server::{TestServer, queued_id};
use support::sink::Sink;
use support::zone::{Zone, ZoneServer};
use tokio::process::Command;

const CONF: &str = r#"
[accounts.shop]
ACCOUNT
[domains."home.test"]
[delivery]
mx_port = PORT
allow_private_addresses = true
[delivery.tls]
policy = "required"
[dns]
nameservers = ["ZONE"]
"#;

fn conf(account: &str, sink: &Sink, zone: &ZoneServer) -> String {
    CONF.replace("ACCOUNT", account)
        .replace("PORT", &sink.address.port().to_string())
        .replace("ZONE", &zone.addr().to_string())
}

async fn far_zone() -> ZoneServer {
    Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1").serve().await
}

/// True if the program is there. If the tests were set up for it, it has to be.
async fn available(program: &str, probe: &[&str]) -> bool {
    let status = Command::new(program).args(probe).stdout(Stdio::null()).stderr(Stdio::null()).status().await;
    let there = status.is_ok_and(|status| status.success());
    assert!(there || std::env::var_os("POSTRIDER_TEST_PYTHON").is_none(), "{program} {probe:?} does not work");
    if !there {
        eprintln!("SKIPPED: {program} is missing; nothing was shown");
    }
    there
}

fn python() -> String {
    std::env::var("POSTRIDER_TEST_PYTHON").unwrap_or_else(|_| "python3".into())
}

fn show(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The hash as `postrider account hash` prints it.
async fn hash(password: &str) -> String {
    use tokio::io::AsyncWriteExt;
    let mut child = Command::new(env!("CARGO_BIN_EXE_postrider"))
        .args(["account", "hash"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(format!("{password}\n").as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{}", show(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// What `postrider dns home.test --offline --json` prints for the server with this folder.
async fn records(folder: &Path) -> String {
    let conf = folder.join("dns.toml");
    let text = format!("hostname = \"mail.home.test\"\ndata_dir = \"{}\"\n[domains.\"home.test\"]\n", folder.display());
    std::fs::write(&conf, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_postrider"))
        .args(["dns", "home.test", "--offline", "--json", "--config"])
        .arg(&conf)
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", show(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_submits_and_dkimpy_verifies_what_the_far_end_got_over_starttls() {
    if !available("curl", &["--version"]).await {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = (Sink::start_tls().await, far_zone().await);
    let account = format!("password_hash = '{}'", hash("correct horse").await);
    let server = TestServer::start(folder.path(), &conf(&account, &sink, &zone)).await;

    let letter = folder.path().join("letter.eml");
    std::fs::write(&letter, "From: Shop <shop@home.test>\r\nTo: you@far.test\r\nSubject: Your order\r\n\r\nIt is on its way.\r\n \t\r\n\r\n").unwrap();
    let curl = |user: &'static str| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--insecure", "--ssl-reqd", "--url"]);
        command.arg(format!("smtp://{}/client.test", server.submission));
        command.args(["--user", user, "--mail-from", "shop@home.test", "--mail-rcpt", "you@far.test", "--upload-file"]);
        command.arg(&letter);
        command
    };
    let refused = curl("shop:wrong").output().await.unwrap();
    assert!(!refused.status.success() && sink.count() == 0);
    let sent = curl("shop:correct horse").output().await.unwrap();
    assert!(sent.status.success(), "{}", show(&sent));
    sink.wait_for(1).await;
    let taken = sink.taken().remove(0);
    assert!(taken.tls, "delivered over STARTTLS");
    assert_eq!(taken.recipients, ["you@far.test"]);

    let python = python();
    if available(&python, &["-c", "import dkim, nacl.signing"]).await {
        let (message, dns) = (folder.path().join("got.eml"), folder.path().join("records.json"));
        std::fs::write(&message, &taken.content).unwrap();
        std::fs::write(&dns, records(folder.path()).await).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/dkim_verify.py");
        let judged = Command::new(&python).arg(script).arg(&message).arg(&dns).output().await.unwrap();
        let text = show(&judged);
        assert!(judged.status.success(), "{text}");
        assert_eq!(text.matches("pass").count(), 2, "{text}");
        assert!(text.contains("rsa-sha256") && text.contains("ed25519-sha256"), "{text}");
    }
    server.stop().await;
}

const SMTPLIB: &str = r#"
import smtplib, ssl, sys
from email.message import EmailMessage
host, port, mechanism = sys.argv[1], int(sys.argv[2]), sys.argv[3]
context = ssl._create_unverified_context()
message = EmailMessage()
message["From"], message["To"], message["Subject"] = "Shop <shop@home.test>", "you@far.test", "Grüße"
message.set_content("Grüße\n.\n..\nfrom smtplib by " + mechanism)
with smtplib.SMTP(host, port, local_hostname="client.test") as client:
    client.starttls(context=context)
    client.ehlo()
    assert mechanism in client.esmtp_features["auth"], client.esmtp_features
    client.user, client.password = "shop", "correct horse"
    client.auth(mechanism, getattr(client, "auth_" + mechanism.lower()))
    refused = client.send_message(message)
    assert not refused, refused
"#;

#[tokio::test(flavor = "multi_thread")]
async fn smtplib_submits_by_plain_and_login() {
    let python = python();
    if !available(&python, &["-c", "import smtplib"]).await {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = (Sink::start_tls().await, far_zone().await);
    let server = TestServer::start(folder.path(), &conf("password = \"correct horse\"", &sink, &zone)).await;
    for (count, mechanism) in ["PLAIN", "LOGIN"].iter().enumerate() {
        let (host, port) = (server.submission.ip().to_string(), server.submission.port().to_string());
        let run = Command::new(&python).args(["-c", SMTPLIB, &host, &port, mechanism]).output().await.unwrap();
        assert!(run.status.success(), "{}", show(&run));
        sink.wait_for(count + 1).await;
        let text = String::from_utf8(sink.taken().remove(count).content).unwrap();
        assert!(text.contains(&format!("smtplib by {mechanism}")), "{text}");
    }
    server.stop().await;
}

const INBOX: &str = r#"
[domains."home.test"]
[aliases]
"sales@home.test" = "box"
[targets.box]
kind = "maildir"
path = "DATA_DIR/box"
[dns]
nameservers = ["ZONE"]
"#;

const MAILBOX: &str = r#"
import mailbox, sys
box = mailbox.Maildir(sys.argv[1], create=False)
for key, message in box.items():
    assert message.get_subdir() == "new"
    print(message["Return-Path"], message["Delivered-To"], message["Subject"], repr(message.get_payload()))
"#;

#[tokio::test(flavor = "multi_thread")]
async fn pythons_mailbox_reads_the_maildir() {
    let python = python();
    if !available(&python, &["-c", "import mailbox"]).await {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let zone = Zone::new().a("outside.test", "192.0.2.1").serve().await;
    let server = TestServer::start(folder.path(), &INBOX.replace("ZONE", &zone.addr().to_string())).await;
    let mut client = Client::connect(server.mx).await.unwrap();
    let letter = "From: ann@outside.test\r\nTo: sales@home.test\r\nSubject: order 7\r\n\r\nFrom here\r\ntwo boxes\r\n";
    let reply = client.send("ann@outside.test", &["sales@home.test"], letter).await.unwrap();
    server.wait_done(queued_id(&reply)).await;
    let run = Command::new(&python).args(["-c", MAILBOX]).arg(folder.path().join("box")).output().await.unwrap();
    assert_eq!(show(&run), "<ann@outside.test> sales@home.test order 7 'From here\\ntwo boxes\\n'\n");
    server.stop().await;
}
