//! What webhooks are told of events: by a whole server, to an endpoint that does as it likes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod client;
    pub mod ear;
    pub mod server;
}

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use postrider::admin::Backend;
use postrider::clock::Clock;
use postrider::events::{Entry, Event};
use postrider::message::{Address, MessageId};
use postrider::store::{Batch, Store, Table};
use support::client::Client;
use support::ear::Ear;
use support::server::{TestServer, queued_id};

const CAPTURE: &str = "[domains.\"home.test\"]\n[networks]\ntrusted = [\"127.0.0.0/8\"]\n\
                       [delivery]\ndefault = \"capture\"\n";
const KEY: &[u8] = b"a key of 24 bytes, or so";
const NOW: u64 = 1_795_300_000_000;

fn hook(ear: &Ear, more: &str) -> String {
    let secret = STANDARD.encode(KEY);
    format!("{CAPTURE}[events.webhooks.crm]\nurl = \"{}\"\nsecret = \"whsec_{secret}\"\n{more}\n", ear.url)
}

async fn send(server: &TestServer, messages: usize) -> Vec<MessageId> {
    let mut client = Client::connect(server.submission).await.unwrap();
    let mut ids = Vec::new();
    for number in 0..messages {
        let letter = format!("From: <me@home.test>\r\nMessage-ID: <{number}@home.test>\r\n\r\nhello\r\n");
        ids.push(queued_id(&client.send("me@home.test", &["you@far.test"], &letter).await.unwrap()));
    }
    ids
}

/// A value of `/metrics`.
async fn metric(server: &TestServer, name: &str) -> u64 {
    let page = server.app.operator().metrics().await;
    let line = page.lines().find(|line| line.starts_with(name) && line[name.len()..].starts_with([' ', '{']));
    let line = line.unwrap_or_else(|| panic!("no {name} in\n{page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

async fn synced(server: &TestServer) -> u64 {
    let page = server.app.operator().metrics().await;
    let line = page.lines().find(|line| line.starts_with("postrider_commit_groups_total{result=\"synced\"}"));
    line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
}

/// Waits for a value of `/metrics`; the bound turns a hang into a failure.
async fn wait_metric(server: &TestServer, name: &str, wanted: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while metric(server, name).await != wanted {
        assert!(Instant::now() < deadline, "{name} is {}, not {wanted}", metric(server, name).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

const WAITING: &str = "postrider_event_webhook_waiting";

/// The keys of what waits for webhooks.
fn stored(data_dir: &Path) -> usize {
    let store = Store::open(&data_dir.join("store")).unwrap();
    store.prefix(Table::Meta, b"events/").unwrap().count()
}

/// Puts events into the queue of the webhook as an earlier run would have left them.
fn leave(data_dir: &Path, events: u64, at: u64, reason: &str) {
    std::fs::create_dir_all(data_dir).unwrap();
    let store = Store::open(&data_dir.join("store")).unwrap();
    for number in 0..events {
        let recipient = Address::parse(&format!("bob{number}@far.test")).unwrap();
        let entry = Entry { at, event: Event::Held { recipient, reason: reason.to_owned() } };
        let journal_key = [MessageId::first_at(at).to_key(), at.to_be_bytes()].concat();
        let key = [b"events/crm\0", &number.to_be_bytes()[..], &journal_key, &[0, 0, 0, 1]].concat();
        let mut batch = Batch::new();
        batch.put(Table::Meta, key, serde_json::to_vec(&entry).unwrap());
        store.write(&[batch], false).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_is_told_once_and_signed_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let ear = Ear::start().await;
    let server = TestServer::start(folder.path(), &hook(&ear, "")).await;
    let ids = send(&server, 20).await;
    let heard = ear.wait(|heard| heard.len() >= 40).await;
    wait_metric(&server, WAITING, 0).await;
    assert_eq!(metric(&server, "postrider_event_webhook_sent_total").await, 40);
    assert_eq!(metric(&server, "postrider_event_webhook_waiting_bytes").await, 0);
    server.stop().await;
    assert_eq!(ear.heard().len(), 40);
    assert_eq!(heard.iter().map(|heard| &heard.id).collect::<BTreeSet<_>>().len(), 40);

    let key = hmac::Key::new(hmac::HMAC_SHA256, KEY);
    let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for heard in &heard {
        let signed = [heard.id.as_bytes(), b".", heard.timestamp.as_bytes(), b".", &heard.raw].concat();
        let wanted = format!("v1,{}", STANDARD.encode(hmac::sign(&key, &signed)));
        assert_eq!(heard.signature.as_ref(), Some(&wanted));
        assert_eq!(heard.json["id"], heard.id.as_str());
        let data = &heard.json["data"];
        assert_eq!((&data["from"], &data["stream"]), (&"me@home.test".into(), &"transactional".into()), "{data}");
        assert!(data["message_id"].as_str().unwrap().ends_with("@home.test"), "{data}");
        let story = told.entry(data["queue_id"].as_str().unwrap().to_owned()).or_default();
        story.push(heard.json["type"].as_str().unwrap().to_owned());
    }
    assert_eq!(told.keys().cloned().collect::<BTreeSet<_>>(), ids.iter().map(ToString::to_string).collect());
    assert!(told.values().all(|story| story == &["message.accepted", "message.captured"]), "{told:?}");
    assert_eq!(stored(folder.path()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_wanted_is_told_and_nothing_else_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let (ear, deaf) = (Ear::start().await, Ear::start().await);
    deaf.always(500);
    let more = format!(
        "only = [\"captured\"]\n[events.webhooks.b]\nurl = \"{}\"\nonly = [\"bounced\", \"complained\"]",
        deaf.url
    );
    let server = TestServer::start(folder.path(), &hook(&ear, &more)).await;
    send(&server, 5).await;
    let heard = ear.wait(|heard| heard.len() >= 5).await;
    assert!(heard.iter().all(|heard| heard.json["type"] == "message.captured" && heard.json["data"]["test"] == true));
    ear.always(500);
    send(&server, 1).await;
    ear.wait(|heard| heard.len() >= 6).await;
    server.stop().await;
    assert!(deaf.heard().is_empty());
    assert_eq!((ear.heard().len(), stored(folder.path())), (6, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_told_again_with_the_same_id() {
    let folder = tempfile::tempdir().unwrap();
    let ear = Ear::start().await;
    for status in [500, 404] {
        ear.will(status, None);
    }
    let clock = Clock::manual(NOW);
    let server = TestServer::start_at(folder.path(), &hook(&ear, "only = [\"accepted\"]"), clock.clone()).await;
    send(&server, 1).await;
    for tries in 1..=2 {
        wait_metric(&server, "postrider_event_webhook_failed_total", tries).await;
        clock.advance(60_000);
    }
    wait_metric(&server, "postrider_event_webhook_sent_total", 1).await;
    let heard = ear.heard();
    assert_eq!(heard.iter().map(|heard| heard.status).collect::<Vec<_>>(), [500, 404, 200]);
    assert!(heard.iter().all(|other| other.id == heard[0].id && other.raw == heard[0].raw));
    // Signed at the time of the try.
    assert_ne!(heard[0].timestamp, heard[2].timestamp);
    wait_metric(&server, WAITING, 0).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_may_ask_for_a_rest_or_for_no_more_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let ear = Ear::start().await;
    ear.will(503, Some(3000));
    ear.will(410, None);
    ear.will(422, None);
    let clock = Clock::manual(NOW);
    let server = TestServer::start_at(folder.path(), &hook(&ear, "only = [\"accepted\"]"), clock.clone()).await;
    send(&server, 1).await;
    wait_metric(&server, "postrider_event_webhook_failed_total", 1).await;
    assert_eq!(metric(&server, "postrider_event_webhook_paused").await, 1);
    let second = send(&server, 1).await;
    clock.advance(3_000_000);
    wait_metric(&server, "postrider_event_webhook_failed_total", 2).await;
    assert_eq!(metric(&server, "postrider_event_webhook_paused").await, 1);
    assert_eq!((ear.heard().len(), metric(&server, WAITING).await), (2, 2));
    clock.advance(3_600_000);
    // The first is not wanted, the second is.
    wait_metric(&server, "postrider_event_webhook_sent_total", 1).await;
    assert_eq!(metric(&server, "postrider_event_webhook_refused_total").await, 1);
    assert_eq!(metric(&server, "postrider_event_webhook_paused").await, 0);
    let taken = ear.taken();
    assert_eq!(taken.last().unwrap().json["data"]["queue_id"], second[0].to_string());
    wait_metric(&server, WAITING, 0).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_told_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let ear = Ear::start().await;
    ear.always(503);
    let server = TestServer::start(folder.path(), &hook(&ear, "")).await;
    let ids = send(&server, 5).await;
    for id in &ids {
        server.wait_for(*id, |event| matches!(event, Event::Captured { .. })).await;
    }
    let tried = ear.wait(|heard| !heard.is_empty()).await[0].id.clone();
    assert_eq!(metric(&server, WAITING).await, 10);
    server.stop().await;

    ear.always(200);
    let server = TestServer::start(folder.path(), &hook(&ear, "")).await;
    wait_metric(&server, WAITING, 0).await;
    let taken = ear.taken();
    assert_eq!(taken.len(), 10);
    assert!(taken.iter().any(|taken| taken.id == tried));
    server.stop().await;

    // A webhook that is gone leaves nothing behind.
    ear.always(500);
    let server = TestServer::start(folder.path(), &hook(&ear, "")).await;
    send(&server, 1).await;
    server.stop().await;
    assert_ne!(stored(folder.path()), 0);
    TestServer::start(folder.path(), CAPTURE).await.stop().await;
    assert_eq!(stored(folder.path()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_cap_the_oldest_are_dropped_and_the_endpoint_is_told_that_they_are_missing() {
    let folder = tempfile::tempdir().unwrap();
    leave(folder.path(), 70, Clock::System.now(), &"x".repeat(1 << 20));
    let ear = Ear::start().await;
    let server = TestServer::start(folder.path(), &hook(&ear, "")).await;
    wait_metric(&server, WAITING, 0).await;
    let dropped = metric(&server, "postrider_event_webhook_dropped_total").await;
    assert!((6..=10).contains(&dropped), "{dropped}");
    let taken = ear.taken();
    let (gaps, events): (Vec<_>, Vec<_>) = taken.iter().partition(|taken| taken.json["type"] == "events.gap");
    assert_eq!(gaps.len(), 1);
    assert_eq!(gaps[0].json["data"]["dropped"], dropped);
    assert_eq!(events.len() as u64, 70 - dropped);
    let missing = |number: u64| format!("bob{number}@far.test");
    let told: BTreeSet<_> = events.iter().map(|event| event.json["data"]["recipient"].as_str().unwrap()).collect();
    assert!((0..dropped).all(|number| !told.contains(missing(number).as_str())));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_old_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    leave(folder.path(), 1500, NOW, "x");
    let ear = Ear::start().await;
    let clock = Clock::manual(NOW + 3 * 24 * 3600 * 1000 + 1);
    let server = TestServer::start_at(folder.path(), &hook(&ear, ""), clock).await;
    wait_metric(&server, WAITING, 0).await;
    assert_eq!(metric(&server, "postrider_event_webhook_dropped_total").await, 1500);
    let heard = ear.heard();
    assert_eq!(heard.iter().map(|heard| heard.json["data"]["dropped"].as_u64().unwrap()).sum::<u64>(), 1500);
    assert!(heard.iter().all(|heard| heard.json["type"] == "events.gap"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_neither_waits_for_a_silent_endpoint_nor_is_synced_more_often_for_it() {
    const MESSAGES: usize = 1000;
    let (with, without) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ear = Ear::start().await;
    ear.hold(true);
    let plain = TestServer::start(without.path(), CAPTURE).await;
    let before = synced(&plain).await;
    send(&plain, 100).await;
    assert_eq!(synced(&plain).await - before, 100);
    plain.stop().await;

    let server = TestServer::start(with.path(), &hook(&ear, "")).await;
    let before = synced(&server).await;
    let ids = send(&server, MESSAGES).await;
    // One for each message that was acknowledged, as without a webhook.
    assert_eq!(synced(&server).await - before, MESSAGES as u64);
    for id in &ids {
        server.wait_for(*id, |event| matches!(event, Event::Captured { .. })).await;
    }
    wait_metric(&server, WAITING, 2 * MESSAGES as u64).await;
    ear.hold(false);
    wait_metric(&server, WAITING, 0).await;
    let told: BTreeSet<String> = ear.taken().into_iter().map(|taken| taken.id).collect();
    assert_eq!(told.len(), 2 * MESSAGES);
    server.stop().await;
}
