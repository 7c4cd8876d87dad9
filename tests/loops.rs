//! The loop guard in a whole server: the messages of tests/vectors/autoreply-loop one by one, what survives a
//! restart, answers, and what a sender is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod hook;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use postrider::clock::Clock;
use postrider::events::Event;
use postrider::message::header::Headers;
use serde_json::Value;
use support::client::Client;
use support::hook::Hook;
use support::server::{TestServer, queued_id};
use support::sink::Sink;
use support::zone::Zone;

const HOUR: u64 = 3_600_000;
const START: u64 = 1_795_300_000_000;

fn conf(hook: &Hook, more: &str) -> String {
    format!(
        r#"
[networks]
trusted = ["127.0.0.0/8"]
[domains."our.example"]
[domains."all.example"]
catchall = "app"
[aliases]
"alice@our.example" = "app"
"bob@our.example" = "app"
'/^ticket-(?P<id>[0-9]+)@our\.example$/' = "app"
[targets.app]
kind = "webhook"
url = "{}"
[checks]
spf = "off"
dkim = "off"
dmarc = "off"
{more}
"#,
        hook.url
    )
}

/// Each gets a reply, or becomes an event that says whether a machine may answer it.
#[tokio::test(flavor = "multi_thread")]
async fn the_rules_for_automatic_mail_one_by_one() {
    let (folder, hook) = (tempfile::tempdir().unwrap(), Hook::start().await);
    let conf = conf(&hook, "[loops]\nlimit = 100");
    let name = ("hostname = \"mail.home.test\"", "hostname = \"mx.our.example\"");
    let server = TestServer::start_with(folder.path(), &conf, name.0, name.1).await;
    let vectors = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/autoreply-loop");
    let expected: Value = serde_json::from_slice(&std::fs::read(format!("{vectors}/expected.json")).unwrap()).unwrap();
    let (mut refused, mut answered) = (Vec::new(), 0);
    for (name, facts) in expected.as_object().unwrap() {
        let content = std::fs::read_to_string(format!("{vectors}/{name}.eml")).unwrap();
        let content = content.replace("\r\n", "\n").replace('\n', "\r\n");
        let may_answer = facts["may_auto_reply"].as_bool().unwrap();
        let mut client = Client::connect(server.mx).await.unwrap();
        let mail_from = facts["mail_from"].as_str().unwrap();
        let reply = client.send(mail_from, &["alice@our.example"], &content).await.unwrap();
        if reply.starts_with("554 5.4.6 mail loop: ") {
            assert!(!may_answer, "{name}: {reply}");
            refused.push(name.as_str());
            continue;
        }
        assert!(reply.starts_with("250 "), "{name}: {reply}");
        server.wait_done(queued_id(&reply)).await;
        let event = hook.received().pop().unwrap();
        assert_eq!(event["data"]["message_id"], format!("{name}@far.example"));
        assert_eq!(event["data"]["matched"]["may_answer"], may_answer, "{name}");
        answered += usize::from(may_answer);
    }
    assert_eq!(refused, ["delivered-to-self", "loop-received-60", "loop-received-own-5", "x-loop"]);
    assert_eq!((expected.as_object().unwrap().len(), answered), (30, 5));
    server.stop().await;
}

fn letter(from: &str, more: &str) -> String {
    format!("From: {from}\r\n{more}Subject: hello\r\n\r\ntext\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sixth_is_refused_also_after_a_restart_and_taken_an_hour_later() {
    let (folder, hook) = (tempfile::tempdir().unwrap(), Hook::start().await);
    let clock = Clock::manual(START);
    let send = async |server: &TestServer, from: &str| {
        let mut client = Client::connect(server.mx).await.unwrap();
        client.send("bob@far.example", &["alice@our.example"], &letter(from, "")).await.unwrap()
    };
    let server = TestServer::start_at(folder.path(), &conf(&hook, ""), clock.clone()).await;
    for name in ["Bob", "B.", "The Bob", "bob", ""] {
        assert!(send(&server, &format!("{name} <bob@far.example>")).await.starts_with("250 "));
    }
    server.stop().await;
    let server = TestServer::start_at(folder.path(), &conf(&hook, ""), clock.clone()).await;
    let reply = send(&server, "bob@far.example").await;
    assert_eq!(
        reply.trim_end(),
        "554 5.4.6 too many messages from bob@far.example to alice@our.example: 5 within 60 minutes are accepted, \
         try again after 2026-11-21T23:26:40Z"
    );
    assert!(send(&server, "eve@far.example").await.starts_with("250 "));
    clock.advance(HOUR + 1000);
    for _ in 0..5 {
        assert!(send(&server, "bob@far.example").await.starts_with("250 "));
    }
    assert!(send(&server, "bob@far.example").await.starts_with("554 5.4.6 "));
    // Of two recipients one is over the limit: that one is held, the other delivered.
    let mut client = Client::connect(server.mx).await.unwrap();
    let both = ["alice@our.example", "bob@our.example"];
    let reply = client.send("bob@far.example", &both, &letter("bob@far.example", "")).await.unwrap();
    let id = queued_id(&reply);
    let story = server.wait_for(id, |event| matches!(event, Event::Delivered { .. })).await;
    let held = story.entries.iter().filter(|entry| matches!(entry.event, Event::Held { .. })).count();
    assert_eq!(held, 1, "{story:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_finds_the_account_and_a_pattern_its_groups() {
    let (folder, hook) = (tempfile::tempdir().unwrap(), Hook::start().await);
    let sink = Sink::start().await;
    let zone = Zone::new().mx("far.example", 10, "mx.far.example").a("mx.far.example", "127.0.0.1").serve().await;
    let more = format!(
        "[accounts.shop]\npassword = \"correct horse\"\n[delivery]\nmx_port = {}\nallow_private_addresses = true\n\
         [dns]\nnameservers = [\"{}\"]\n",
        sink.address.port(),
        zone.addr()
    );
    let server = TestServer::start(folder.path(), &conf(&hook, &more)).await;
    let mut client = Client::connect(server.submission).await.unwrap();
    client.command("AUTH PLAIN AHNob3AAY29ycmVjdCBob3JzZQ==", "235").await.unwrap();
    let sent = letter("orders@all.example", "Message-ID: <order-1@all.example>\r\n");
    let reply = client.send("orders@all.example", &["bob@far.example"], &sent).await.unwrap();
    let sent = queued_id(&reply);
    server.wait_done(sent).await;

    let mut outside = Client::connect(server.mx).await.unwrap();
    for (field, is_answer) in [
        ("References: <x@far.example>\r\n <order-1@all.example>\r\n", true),
        ("In-Reply-To: <order-1@all.example>\r\n", true),
        ("X-Microsoft-Original-Message-ID: <order-1@all.example>\r\n", true),
        ("In-Reply-To: <order-2@all.example>\r\n", false),
    ] {
        let to = format!("re{}@all.example", hook.received().len());
        let reply = outside.send("bob@far.example", &[&to], &letter("bob@far.example", field)).await.unwrap();
        let story = server.wait_done(queued_id(&reply)).await;
        let answers = &hook.received().pop().unwrap()["data"]["matched"]["answers"];
        let told = format!("as an answer to {sent} of the account shop");
        let routed =
            story.entries.iter().any(|entry| matches!(&entry.event, Event::Routed { to, .. } if to.contains(&told)));
        assert_eq!(routed, is_answer, "{field}: {story:?}");
        match is_answer {
            true => assert_eq!(*answers, serde_json::json!({ "id": sent.to_string(), "account": "shop" })),
            false => assert_eq!(*answers, Value::Null),
        }
    }
    let reply =
        outside.send("bob@far.example", &["Ticket-42@our.example"], &letter("bob@far.example", "")).await.unwrap();
    server.wait_done(queued_id(&reply)).await;
    assert_eq!(hook.received().pop().unwrap()["data"]["matched"]["groups"], serde_json::json!({ "id": "42" }));
    server.stop().await;
}

/// Whatever fails, the senders outside hear of it within the budget; our own always. Outsiders prove who they
/// are by SPF.
#[tokio::test(flavor = "multi_thread")]
async fn outsiders_are_told_within_a_budget() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Sink::start().await;
    let mut zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1");
    for n in 0..30 {
        let domain = format!("d{n}.test");
        zone = zone.mx(&domain, 10, "mx.far.test").txt(&domain, "v=spf1 ip4:127.0.0.0/8 -all");
    }
    let zone = zone.serve().await;
    let conf = format!(
        r#"
[networks]
trusted = ["127.0.0.0/8"]
[domains."our.example"]
[aliases]
"gone@our.example" = "refused@far.test"
"lost@our.example" = "refused@far.test"
[loops]
limit = 100
[delivery]
mx_port = {}
allow_private_addresses = true
[dns]
nameservers = ["{}"]
"#,
        sink.address.port(),
        zone.addr()
    );
    let clock = Clock::manual(START);
    let server = TestServer::start_at(folder.path(), &conf, clock.clone()).await;
    let try_one = async |door, sender: &str, recipient: &str| {
        let mut client = Client::connect(door).await.unwrap();
        let reply = client.send(sender, &[recipient], &letter(sender, "")).await.unwrap();
        let story = server.wait_done(queued_id(&reply)).await;
        let sent = story.entries.iter().any(|entry| matches!(entry.event, Event::NoticeSent { .. }));
        let silent = story.entries.iter().any(|entry| matches!(entry.event, Event::Discarded { .. }));
        assert_ne!(sent, silent, "{story:?}");
        sent
    };
    let (mx, submission) = (server.mx, server.submission);
    assert!(try_one(mx, "a@d0.test", "gone@our.example").await);
    assert!(!try_one(mx, "a@d0.test", "gone@our.example").await, "one notice for one sender and one address");
    assert!(try_one(mx, "a@d0.test", "lost@our.example").await);
    let mut others = 0;
    for n in 1..30 {
        others += usize::from(try_one(mx, &format!("a@d{n}.test"), "gone@our.example").await);
    }
    assert_eq!(others, 18, "twenty within an hour");
    for _ in 0..3 {
        assert!(try_one(submission, "a@d1.test", "refused@far.test").await, "our own users are told all");
    }
    clock.advance(HOUR + 1);
    assert!(try_one(mx, "a@d0.test", "gone@our.example").await);
    // What answers a notice is swallowed.
    let notice = loop {
        let count = sink.count();
        match sink.taken().into_iter().find(|taken| taken.recipients == ["a@d0.test"]) {
            Some(notice) => break String::from_utf8(notice.content).unwrap(),
            None => sink.wait_for(count + 1).await,
        }
    };
    let id = Headers::parse(notice.as_bytes()).get("Message-ID").unwrap().text();
    assert!(id.starts_with("<loop."), "{notice}");
    assert!(
        notice.contains("Auto-Submitted: auto-replied\r\n") && notice.contains("X-Auto-Response-Suppress: All\r\n")
    );
    let mut client = Client::connect(server.mx).await.unwrap();
    let answer = letter("a@d0.test", &format!("References: {id}\r\n"));
    let reply = client.send("a@d0.test", &["gone@our.example"], &answer).await.unwrap();
    let story = server.wait_done(queued_id(&reply)).await;
    let swallowed =
        |event: &Event| matches!(event, Event::Discarded { reason, .. } if reason.contains("answer to a notice"));
    assert!(story.entries.iter().any(|entry| swallowed(&entry.event)), "{story:?}");
    server.stop().await;
}
