//! `tests/data/fs-attacks`: files, names, arguments and texts that are not what they seem. What is put into a pickup folder
//! is run here, case by case, and so is what goes into the log, against a server in a process of its own; placeholders and
//! arguments by the tests of what they attack, named here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/client.rs"]
mod client;
#[path = "support/conversation.rs"]
mod conversation;
#[path = "support/flow.rs"]
mod flow;
#[path = "fs_attacks/pickup.rs"]
mod pickup;
#[path = "support/served.rs"]
mod served;
#[path = "support/server.rs"]
mod server;
#[path = "fs_attacks/state.rs"]
mod state;
#[path = "fs_attacks/whole.rs"]
mod whole;
#[path = "support/yard.rs"]
mod yard;
#[path = "support/zone.rs"]
mod zone;

/// What all tests share.
mod support {
    pub(crate) use super::client;
    pub(crate) use super::served;
    pub(crate) use super::server;
    pub(crate) use super::yard;
    pub(crate) use super::zone;
}

use std::time::Duration;

use serde_json::Value;
use support::client::Client;
use support::served::Served;
use support::zone::Zone;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SET: &str = include_str!("data/fs-attacks/cases.yml");

/// What a file has for recipients is held to the limits of SMTP, and what it says about its sender to the rights of the
/// account (`p11`), whatever is written into the block.
#[test]
fn what_a_block_says_cannot_become_a_field() {
    use postrider::config::PickupFormat;
    use postrider::intake::pickup::envelope::read_eml;
    let with = |block: &str| format!("{block}From: a@example.com\nSubject: x\n\nx\n").into_bytes();
    for block in [
        "X-Sender: a@example.com\rBcc: c@example.org\nX-Receiver: b@example.org\n",
        "X-Sender: <a@example.com>\nX-Receiver: b@example.org> SIZE=1\n",
        "X-Sender: a@example.com\nX-Receiver: b@example.org\\r\\nRCPT TO:<c@example.org>\n",
    ] {
        let read = read_eml(&with(block), PickupFormat::Auto, None);
        let Ok(eml) = read else { continue };
        let content = String::from_utf8(eml.content).unwrap();
        assert_eq!(eml.envelope.recipients.len(), 1, "{block:?}");
        assert!(!content.replace("\r\n", "").contains(['\r', '\n']), "{block:?}: {content:?}");
    }
    let many = "X-Receiver: b@example.org\n".repeat(1_000_000);
    assert!(read_eml(&with(&format!("X-Sender: a@example.com\n{many}")), PickupFormat::Auto, None).is_err());
}

#[test]
fn placeholders_and_arguments_are_run_whole() {
    // The counts are asserted there.
    assert!(include_str!("file.rs").contains("async fn no_value_of_the_attack_set_leads_out_of_the_folder()"));
    assert!(include_str!("pipe.rs").contains("async fn no_sender_of_the_attack_set_becomes_more_than_an_argument()"));
}

/// What would be written as several lines, or would steer a terminal, or is a secret.
fn values() -> Vec<String> {
    let lines = flow::below(SET, "log_injection");
    let line = lines.lines().find_map(|line| line.trim().strip_prefix("values: ")).unwrap();
    let line = line.replace("\\x00", "\\u0000");
    let values: Vec<String> =
        flow::items(line.as_bytes()).into_iter().map(|value| String::from_utf8(value).unwrap()).collect();
    assert_eq!(values.len(), 9);
    values.into_iter().map(|value| value.replace("A*1048576", &"A".repeat(1 << 20))).collect()
}

const CONF: &str = r#"
hostname = "mail.home.test"
data_dir = "DATA_DIR"
[log]
level = "debug"
format = "FORMAT"
[listeners.mx]
role = "mx"
bind = ["127.0.0.1:0"]
[listeners.submission]
role = "submission"
bind = ["127.0.0.1:0"]
[networks]
trusted = ["127.0.0.0/8"]
[limits]
connection_rate = "100000/m"
auth_failures = "100000/15m"
[queue]
min_free = "1MiB"
[accounts.shop]
password = "correct horse battery"
[domains."home.test"]
[pickup.in]
path = "DATA_DIR/../in"
account = "shop"
settle = "1s"
[loops]
trusted = ["home.test"]
[delivery]
mx_port = PORT
allow_private_addresses = true
[dns]
nameservers = ["ZONE"]
"#;

/// Lines of the log that one of these would make.
fn is_forged(line: &str) -> bool {
    line.chars()
        .any(|c| (c.is_control() && c != '\t') || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'))
        || line.starts_with("2026-11-21 FAKE")
        || line.starts_with("FAKE")
        || line.starts_with("{\"b\":2}")
        || line.len() > 16 * 1024
}

/// Octets that any client may send in a line: the value as it is, cut to what a line takes.
async fn say(door: std::net::SocketAddr, lines: &[String]) {
    let mut stream = TcpStream::connect(door).await.unwrap();
    for line in lines {
        let bytes: Vec<u8> = line.bytes().take(3000).collect();
        if stream.write_all(&[&bytes, b"\r\n".as_slice()].concat()).await.is_err() {
            break;
        }
    }
    let _ = stream.write_all(b"QUIT\r\n").await;
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

/// A far end that says this about the recipient, and hangs up.
async fn far_end(said: Vec<u8>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let said = said.clone();
            tokio::spawn(async move {
                let _ = stream.write_all(b"220 x\r\n").await;
                let mut heard = [0; 4096];
                while stream.read(&mut heard).await.is_ok_and(|bytes| bytes > 0) {
                    let answer: &[u8] = if heard.starts_with(b"EHLO") { b"250 x\r\n" } else { &said };
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                    heard = [0; 4096];
                }
            });
        }
    });
    address
}

async fn run(format: &str, value: &str) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("in")).unwrap();
    let short: String = value.chars().take(400).collect();
    let zone = Zone::new()
        .mx("far.test", 10, "mx.far.test")
        .a("mx.far.test", "127.0.0.1")
        .ptr("127.0.0.1", &short.replace(['.', '\0'], "-").chars().take(60).collect::<String>());
    let zone = zone.serve().await;
    let far = far_end(format!("450 4.1.1 {short}\r\n").into_bytes()).await;
    let conf = CONF
        .replace("FORMAT", format)
        .replace("PORT", &far.port().to_string())
        .replace("ZONE", &zone.addr().to_string());
    let server = Served::start(folder.path(), &conf, 2).await;
    let (mx, submission) = (server.door("mx"), server.door("submission"));
    let secret =
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("\0{short}\0hunter2secret"));
    let own = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, "\0shop\0correct horse battery");
    for door in [mx, submission] {
        say(door, &[format!("EHLO {value}")]).await;
        say(door, &["EHLO c.test".into(), format!("AUTH PLAIN {secret}")]).await;
        say(door, &["EHLO c.test".into(), format!("AUTH PLAIN {own}")]).await;
        say(
            door,
            &[
                "EHLO c.test".into(),
                format!("MAIL FROM:<{value}@far.test>"),
                format!("MAIL FROM:<\"{value}\"@far.test> SMTPUTF8"),
            ],
        )
        .await;
        say(
            door,
            &[
                "EHLO c.test".into(),
                "MAIL FROM:<a@far.test> SMTPUTF8".into(),
                format!("RCPT TO:<{value}@far.test>"),
                format!("RCPT TO:<\"{value}\"@home.test>"),
            ],
        )
        .await;
        say(door, &[value.to_owned()]).await;
        // As the name in a ClientHello, which is no command.
        let mut stream = TcpStream::connect(door).await.unwrap();
        let _ = stream.write_all(&[b"\x16\x03\x01\x02\0\x01", value.as_bytes()].concat()).await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    // Subject, Message-ID, the name of a field; what has bare line ends is refused, and told too.
    let flat = short.replace(['\r', '\n', '\0'], " ");
    for subject in [value, &flat] {
        let mut client = Client::connect(submission).await.unwrap();
        let content = format!(
            "From: a@home.test\r\nMessage-ID: <{subject}>\r\nSubject: {subject}\r\nX-{subject}: y\r\n\r\nx\r\n"
        );
        // One that is refused may end the connection before all of it is heard.
        let _ = client.send_bytes("a@home.test", "you@far.test", content.as_bytes()).await;
    }
    let name: String = short.replace('/', "-").replace('\0', "").chars().take(100).collect();
    std::fs::write(folder.path().join("in").join(format!("{name}.eml")), "no mail\n").unwrap();
    // Until the outcome, and the file, are in the log.
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while server.lines("deferred").is_empty() || server.lines("neither a header").is_empty() {
        assert!(std::time::Instant::now() < deadline, "{value:?}: {}", server.text());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let text = server.text();
    server.stop_at_once().await;
    for line in text.lines() {
        assert!(!is_forged(line), "{value:?}: {line:?}");
        if format == "json" {
            assert!(serde_json::from_str::<Value>(line).is_ok_and(|json| json.is_object()), "{line}");
        }
    }
    for secret in ["hunter2secret", &secret, "correct horse battery", &own] {
        assert!(!text.contains(secret), "a secret is in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_is_one_line_of_the_log_or_none() {
    let mut running = tokio::task::JoinSet::new();
    for value in values() {
        for format in ["text", "json"] {
            let value = value.clone();
            running.spawn(async move { run(format, &value).await });
        }
    }
    assert_eq!(running.join_all().await.len(), 18);
}
