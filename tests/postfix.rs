//! Debian's Postfix as the far end, as mail exchanger and as smart host with a login: ten thousand
//! messages arrive once each, over few connections.
//!
//! `POSTRIDER_TEST_POSTFIX` names the folder into which `.ci/postfix.sh` has unpacked it. Without it, or
//! without root (its processes change their user), the tests say so and prove nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod server;
    pub mod sink;
    pub mod zone;
}
#[path = "../benches/support/mod.rs"]
mod bench;

use std::collections::HashSet;
use std::net::SocketAddr;

use bench::postfix::{Package, Postfix, Then};
use support::client::Client;
use support::server::TestServer;
use support::sink::Sink;
use support::zone::Zone;

const MESSAGES: usize = 10_000;
const SESSIONS: usize = 8;
/// One of so many messages at most may open a connection.
const MESSAGES_PER_CONNECTION: usize = 50;

fn package() -> Option<Package> {
    let Some(folder) = std::env::var_os("POSTRIDER_TEST_POSTFIX") else {
        eprintln!("SKIPPED: POSTRIDER_TEST_POSTFIX names no Postfix; nothing was sent");
        return None;
    };
    let package = Package::at(folder.into()).unwrap();
    match package.may_serve() {
        Ok(()) => Some(package),
        Err(why) => {
            eprintln!("SKIPPED: {why}; nothing was sent");
            None
        }
    }
}

async fn submit_all(submission: SocketAddr) {
    let sessions = (0..SESSIONS).map(|session| {
        tokio::spawn(async move {
            let mut client = Client::connect(submission).await.unwrap();
            for number in (session..MESSAGES).step_by(SESSIONS) {
                let content =
                    format!("From: <me@home.test>\r\nSubject: number {number}.\r\n\r\n{}", "text\r\n".repeat(200));
                let reply = client.send("me@home.test", &["you@far.test"], &content).await.unwrap();
                assert!(reply.starts_with("250 2.0.0"), "{reply}");
            }
        })
    });
    for session in sessions.collect::<Vec<_>>() {
        session.await.unwrap();
    }
}

/// Sends all, waits until as many have come through Postfix as were sent, and until none is queued.
async fn all_arrive_once(server: TestServer, postfix: &Postfix, sink: &Sink) {
    submit_all(server.submission).await;
    sink.wait_for(MESSAGES).await;
    while !server.queue().await.is_empty() {
        tokio::task::yield_now().await;
    }
    server.stop().await;
    let taken = sink.taken();
    let subjects: HashSet<&[u8]> = taken.iter().filter_map(|message| subject(&message.content)).collect();
    assert_eq!((taken.len(), subjects.len()), (MESSAGES, MESSAGES), "each once");
    assert!(taken.iter().all(|message| message.content.ends_with(b"text\r\n")));
    let connections = postfix.log().lines().filter(|line| line.contains(": connect from")).count();
    assert!((1..=MESSAGES / MESSAGES_PER_CONNECTION).contains(&connections), "{connections} connections");
}

fn subject(content: &[u8]) -> Option<&[u8]> {
    content.split(|byte| *byte == b'\n').find(|line| line.starts_with(b"Subject: "))
}

const BASE: &str = "[networks]\ntrusted = [\"127.0.0.0/8\"]\n[domains.\"home.test\"]\n";

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_by_mx() {
    let Some(package) = package() else { return };
    let sink = Sink::start().await;
    let postfix = Postfix::start(&package, Then::Pass { to: sink.address.port(), login: None });
    let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1").serve().await;
    let folder = tempfile::tempdir().unwrap();
    let port = postfix.address.port();
    let more = format!(
        "{BASE}[delivery]\nmx_port = {port}\nallow_private_addresses = true\n[dns]\nnameservers = [\"{}\"]\n",
        zone.addr()
    );
    let server = TestServer::start(folder.path(), &more).await;
    all_arrive_once(server, &postfix, &sink).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_by_smart_host_with_a_login() {
    let Some(package) = package() else { return };
    let sink = Sink::start().await;
    let login = Some(("app", "pencil"));
    let postfix = Postfix::start(&package, Then::Pass { to: sink.address.port(), login });
    let folder = tempfile::tempdir().unwrap();
    let port = postfix.address.port();
    let more = format!(
        "{BASE}[delivery]\ndefault = \"smart_hosts\"\n[smart_hosts.postfix]\nhost = \"127.0.0.1\"\nport = {port}\n\
         tls = \"off\"\nusername = \"app\"\npassword = \"pencil\"\n"
    );
    let server = TestServer::start(folder.path(), &more).await;
    all_arrive_once(server, &postfix, &sink).await;
    let log = postfix.log();
    assert!(log.contains("sasl_method=SCRAM-SHA-256, sasl_username=app"), "the strongest that both know");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_content_by_bdat() {
    let Some(package) = package() else { return };
    let sink = Sink::start().await;
    let postfix = Postfix::start(&package, Then::Pass { to: sink.address.port(), login: None });
    let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1").serve().await;
    let folder = tempfile::tempdir().unwrap();
    let port = postfix.address.port();
    let more = format!(
        "{BASE}[delivery]\nmx_port = {port}\nallow_private_addresses = true\n[dns]\nnameservers = [\"{}\"]\n",
        zone.addr()
    );
    let server = TestServer::start(folder.path(), &more).await;
    let body = "a line\r\n.dots at the start of a line\r\n.\r\n".repeat(20_000);
    let mut client = Client::connect(server.submission).await.unwrap();
    let content = format!("From: <me@home.test>\r\nSubject: long\r\n\r\n{}", body.replace("\r\n.", "\r\n.."));
    let reply = client.send("me@home.test", &["you@far.test"], &content).await.unwrap();
    assert!(reply.starts_with("250 2.0.0"), "{reply}");
    sink.wait_for(1).await;
    server.stop().await;
    assert!(sink.taken()[0].content.ends_with(body.as_bytes()), "the content has changed on its way");
    while !postfix.log().contains("disconnect from") {
        tokio::task::yield_now().await;
    }
    assert!(postfix.log().contains("bdat=1"), "{}", postfix.log());
}
