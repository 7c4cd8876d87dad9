//! A server whose mail goes to a far end that sends it back: reports as other servers write them.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use postrider::admin::Backend;
use postrider::admin::suppress::Explained;
use postrider::bounce::suppression::Who;
use postrider::clock::Clock;
use postrider::message::MessageId;

use crate::support::client::Client;
use crate::support::server::{TestServer, queued_id};
use crate::support::sink::{Sink, Taken};
use crate::support::zone::{Zone, ZoneServer};

pub struct Setting {
    pub sink: Sink,
    pub zone: ZoneServer,
    pub folder: tempfile::TempDir,
    pub clock: Clock,
    /// More aliases.
    pub aliases: String,
    /// More configuration.
    pub more: String,
}

impl Setting {
    pub async fn new(start: u64, more: &str) -> Setting {
        let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1");
        let zone = zone.txt("far.test", "v=spf1 ip4:127.0.0.1 -all").serve().await;
        Setting {
            sink: Sink::start().await,
            zone,
            folder: tempfile::tempdir().unwrap(),
            clock: Clock::manual(start),
            aliases: String::new(),
            more: more.to_owned(),
        }
    }

    pub async fn server(&self) -> TestServer {
        let conf = format!(
            r#"
[accounts.shop]
password = "secret"
streams = ["transactional", "bulk", "security"]
[domains."home.test"]
[aliases]
{}
"postmaster@home.test" = "box"
[targets.box]
kind = "maildir"
path = "DATA_DIR/box"
[delivery]
mx_port = {}
allow_private_addresses = true
[dns]
nameservers = ["{}"]
{}
"#,
            self.aliases,
            self.sink.address.port(),
            self.zone.addr(),
            self.more
        );
        TestServer::start_at(self.folder.path(), &conf, self.clock.clone()).await
    }

    /// What the postmaster got.
    pub fn postmaster(&self) -> Vec<String> {
        maildir(&self.folder.path().join("box"))
    }
}

pub fn maildir(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path.join("new")).into_iter().flatten();
    entries.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect()
}

pub async fn log_in(server: &TestServer) -> Client {
    let mut client = Client::connect(server.submission).await.unwrap();
    let secret = STANDARD.encode("\0shop\0secret");
    client.command(&format!("AUTH PLAIN {secret}"), "235").await.unwrap();
    client
}

/// Submits a letter by a stream and waits until it is done.
pub async fn send(server: &TestServer, stream: &str, id: &str, to: &[&str]) -> MessageId {
    let mut client = log_in(server).await;
    let letter = format!(
        "From: <news@home.test>\r\nTo: <you@far.test>\r\nMessage-ID: <{id}>\r\nX-Postrider-Stream: {stream}\r\n\
         Subject: news\r\n\r\nhello\r\n"
    );
    let id = queued_id(&client.send("app@home.test", to, &letter).await.unwrap());
    server.wait_done(id).await;
    id
}

/// A report as a server writes it (RFC 3464), about a message with this id.
pub fn report(recipient: &str, action: &str, status: &str, message_id: &str) -> String {
    format!(
        "From: MAILER-DAEMON@far.test\r\nTo: <bounce@home.test>\r\nSubject: report\r\nMIME-Version: 1.0\r\n\
         Content-Type: multipart/report; report-type=delivery-status; boundary=x\r\n\r\n--x\r\n\r\nSee below.\r\n--x\r\n\
         Content-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.far.test\r\n\r\n\
         Final-Recipient: rfc822; {recipient}\r\nAction: {action}\r\nStatus: {status}\r\n\
         Diagnostic-Code: smtp; 550 {status} told by mx.far.test\r\n--x\r\nContent-Type: text/rfc822-headers\r\n\r\n\
         Message-ID: <{message_id}>\r\nSubject: news\r\n--x--\r\n"
    )
}

/// Sends a report to a return path, from the null sender; gives its id once it is done with.
pub async fn come_back(server: &TestServer, to: &str, content: &str) -> MessageId {
    let mut outside = Client::connect(server.mx).await.unwrap();
    let id = queued_id(&outside.send("", &[to], content).await.unwrap());
    server.wait_done(id).await;
    id
}

pub async fn explain(server: &TestServer, address: &str) -> Explained {
    let who = Who::parse(address).unwrap();
    server.app.operator().explain_suppression(who).await.unwrap()
}

/// What arrived for a recipient.
pub fn for_recipient(sink: &Sink, address: &str) -> Vec<Taken> {
    sink.taken().into_iter().filter(|taken| taken.recipients.iter().any(|to| to == address)).collect()
}
