//! Debian's Dovecot takes mail by LMTP from a whole server, and shows it over IMAP.
//!
//! `POSTRIDER_TEST_DOVECOT` names the folder into which `.ci/dovecot.sh` has unpacked it. Without it, or
//! without root (its processes change their user), the tests say so and prove nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../benches/support/mod.rs"]
mod bench;
mod support {
    pub mod client;
    pub mod dovecot;
    pub mod server;

    use super::bench;
}

use postrider::events::Event;
use postrider::queue::record::Failure;
use support::client::Client;
use support::dovecot;
use support::server::{TestServer, queued_id};

fn conf(address: &str) -> String {
    format!(
        r#"
[domains."home.test"]
[aliases]
"ann@home.test" = "box"
"bob@home.test" = "box"
"full@home.test" = "box"
"gone@home.test" = "box"
"all@home.test" = ["ann@home.test", "bob@home.test"]
[targets.box]
kind = "lmtp"
address = "{address}"
[loops]
limit = 1000
[checks]
spf = "off"
dkim = "off"
dmarc = "off"
"#
    )
}

fn letter(subject: &str) -> String {
    format!("From: <eve@far.test>\r\nTo: <all@home.test>\r\nSubject: {subject}\r\n\r\n..dots and ü\r\n.\r\nend\r\n")
}

async fn send(server: &TestServer, to: &[&str], subject: &str) -> postrider::message::MessageId {
    let mut client = Client::connect(server.mx).await.unwrap();
    let stuffed = letter(subject).replace("\r\n.", "\r\n..");
    queued_id(&client.send("eve@far.test", to, &stuffed).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn dovecot_takes_mail_over_its_socket_and_shows_it() {
    let Some(dovecot) = dovecot::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", dovecot.socket.display());
    let server = TestServer::start(folder.path(), &conf(&address)).await;
    for (to, subject) in [(["ann@home.test", "bob@home.test"].as_slice(), "one"), (&["all@home.test"], "two")] {
        let id = send(&server, to, subject).await;
        let story = server.wait_done(id).await;
        let delivered: Vec<&Event> =
            story.entries.iter().map(|entry| &entry.event).filter(|e| matches!(e, Event::Delivered { .. })).collect();
        assert_eq!(delivered.len(), 2, "{story:#?}\n{}", dovecot.log());
        let is_right = |event: &&Event| {
            matches!(event, Event::Delivered { to, reply, .. }
            if *to == address && reply.starts_with("250 2.0.0"))
        };
        assert!(delivered.iter().all(is_right), "{delivered:#?}");
    }
    server.stop().await;
    for user in ["ann", "bob"] {
        let inbox = dovecot.inbox(user).await;
        assert_eq!(inbox.len(), 2, "{}", dovecot.log());
        for (message, subject) in inbox.iter().zip(["one", "two"]) {
            let letter = letter(subject);
            assert!(message.starts_with("Return-Path: <eve@far.test>\r\n"), "{message}");
            assert!(message.ends_with(letter.split_once("\r\n\r\n").unwrap().1), "{message}");
        }
    }
}

/// Of one message, in one transaction: taken, refused at RCPT, put off behind the dot.
#[tokio::test(flavor = "multi_thread")]
async fn dovecot_answers_for_each_recipient() {
    let Some(dovecot) = dovecot::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path(), &conf(&dovecot.lmtp.to_string())).await;
    let id = send(&server, &["ann@home.test", "full@home.test", "gone@home.test"], "three").await;
    server.wait_for(id, |event| matches!(event, Event::Deferred { .. })).await;
    server.wait_for(id, |event| matches!(event, Event::Failed { .. })).await;
    let story = server.wait_for(id, |event| matches!(event, Event::Delivered { .. })).await;
    let why = |wanted: &str| -> Failure {
        let found = story.entries.iter().find_map(|entry| match &entry.event {
            Event::Failed { recipient, why, .. } | Event::Deferred { recipient, why, .. }
                if recipient.local() == wanted =>
            {
                Some(why.clone())
            }
            _ => None,
        });
        found.unwrap_or_else(|| panic!("{wanted}: {story:#?}"))
    };
    let (gone, full) = (why("gone"), why("full"));
    assert_eq!(gone.reply.as_ref().map(|reply| reply.code), Some(550), "{gone:?}");
    assert_eq!(full.reply.as_ref().map(|reply| reply.code), Some(451), "{full:?}");
    assert!(!full.unsure);
    let delivered = story
        .entries
        .iter()
        .any(|entry| matches!(&entry.event, Event::Delivered { recipient, .. } if recipient.local() == "ann"));
    assert!(delivered, "{story:#?}");
    server.stop().await;
    assert_eq!(dovecot.inbox("ann").await.len(), 1);
}
