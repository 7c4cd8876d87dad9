//! Mail for a webhook through a whole server: tried until it is taken, refused, or kept for a person, across
//! restarts and kills.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod endpoint;
    pub mod served;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use std::time::Duration;

use postrider::admin::{Action, Backend, Filter, Listed, Pick, Selection};
use postrider::clock::Clock;
use postrider::events::Event;
use postrider::message::MessageId;
use support::client::Client;
use support::endpoint::{Endpoint, MUTE, answer};
use support::served::Served;
use support::server::{TestServer, queued_id};
use support::sink::Sink;
use support::zone::{Zone, ZoneServer};

const START: u64 = 1_800_000_000_000;
const DAY: u64 = 24 * 3_600_000;

fn ok() -> String {
    answer("200 OK", "", "")
}

/// Two domains to write from: one whose SPF record names this machine, and one that has none.
async fn world() -> (Sink, ZoneServer) {
    let zone = Zone::new().txt("known.test", "v=spf1 ip4:127.0.0.1 -all").a("mx.far.test", "127.0.0.1");
    let domains = ["known.test", "stranger.test", "forged.test"];
    let zone = domains.into_iter().fold(zone, |zone, domain| zone.mx(domain, 10, "mx.far.test"));
    let zone = zone.txt("forged.test", "v=spf1 -all");
    (Sink::start().await, zone.serve().await)
}

/// `home.test` is ours, all its mail goes to the endpoint.
fn conf(url: &str, zone: &ZoneServer, sink: &Sink, more: &str) -> String {
    format!(
        r#"
[domains."home.test"]
[aliases]
"info@home.test" = "crm"
[targets.crm]
kind = "webhook"
url = "{url}"
timeout = "1s"
[networks]
trusted = ["127.0.0.0/8"]
[loops]
limit = 1000
[delivery]
mx_port = {}
allow_private_addresses = true
[dns]
nameservers = ["{}"]
{more}
"#,
        sink.address.port(),
        zone.addr()
    )
}

async fn send(server: &TestServer, from: &str, subject: &str) -> MessageId {
    let mut client = Client::connect(server.mx).await.unwrap();
    let content = format!("From: <someone@plain.test>\r\nTo: <info@home.test>\r\nSubject: {subject}\r\n\r\ntext\r\n");
    queued_id(&client.send(from, &["info@home.test"], &content).await.unwrap())
}

fn pick(id: MessageId) -> Selection {
    Selection { pick: Pick::Ids(vec![id], Filter::default()), dry_run: false }
}

async fn listed(server: &TestServer, id: MessageId) -> Listed {
    server.queue().await.into_iter().find(|listed| listed.id == id).expect("it is queued")
}

async fn wait_held(server: &TestServer, id: MessageId) -> String {
    server.wait_for(id, |event| matches!(event, Event::Held { .. })).await;
    listed(server, id).await.recipients[0].held_because.clone().expect("it is held")
}

/// The server is killed between any two of the tries, and once in the middle of one.
#[tokio::test(flavor = "multi_thread")]
async fn each_try_is_one_request_with_the_same_id_until_it_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let later = answer("429 Too Many Requests", "retry-after: 1\r\n", "");
    let endpoint = Endpoint::answering(&[&answer("500 Oops", "", "broken"), MUTE, MUTE, &later, &ok()]).await;
    let (sink, zone) = world().await;
    let doors = "hostname = \"mail.home.test\"\ndata_dir = \"DATA_DIR\"\n[listeners.mx]\nrole = \"mx\"\n\
        bind = [\"127.0.0.1:0\"]\n[queue]\nmin_free = \"1MiB\"\n";
    let more = "[delivery.retry]\nschedule = [\"1s\"]\n";
    let conf = format!("{doors}{}", conf(&endpoint.url, &zone, &sink, more));

    let server = Served::start(folder.path(), &conf, 1).await;
    let mut client = Client::connect(server.door("mx")).await.unwrap();
    let content = "From: <ann@known.test>\r\nSubject: order\r\n\r\ntwo boxes\r\n";
    let reply = client.send("ann@known.test", &["info@home.test"], content).await.unwrap();
    let id = format!("msg_{}_0", queued_id(&reply));
    endpoint.wait_for(1).await;
    server.kill().await;

    let server = Served::start(folder.path(), &conf, 1).await;
    endpoint.wait_for(2).await;
    // Nobody has an answer yet.
    server.kill().await;
    let server = Served::start(folder.path(), &conf, 1).await;
    endpoint.wait_for(4).await;
    assert_eq!(server.lines("no answer within 1 s").len(), 1, "{}", server.text());
    server.kill().await;
    let server = Served::start(folder.path(), &conf, 1).await;
    endpoint.wait_for(5).await;
    while server.lines("delivered").is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    server.kill().await;
    // Delivered is delivered, also for the next one.
    let server = Served::start(folder.path(), &conf, 1).await;
    let mut client = Client::connect(server.door("mx")).await.unwrap();
    endpoint.will(&ok());
    let reply = client.send("ann@known.test", &["info@home.test"], content).await.unwrap();
    endpoint.wait_for(6).await;
    server.kill().await;

    let requests = endpoint.take();
    assert_eq!(requests.len(), 6);
    for request in &requests[..5] {
        assert_eq!(request.header("webhook-id"), Some(id.as_str()));
        assert_eq!(request.body, requests[0].body);
    }
    assert_eq!(requests[5].header("webhook-id"), Some(format!("msg_{}_0", queued_id(&reply)).as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_told_to_an_authenticated_sender_and_to_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let no = answer("406 Not Acceptable", "", "no such ticket");
    let endpoint = Endpoint::answering(&[&no, &no, &no, &no]).await;
    let (sink, zone) = world().await;
    let server = TestServer::start(folder.path(), &conf(&endpoint.url, &zone, &sink, "")).await;

    for from in ["eve@stranger.test", "eve@forged.test"] {
        let story = server.wait_done(send(&server, from, "hello").await).await;
        let withheld = story.entries.iter().find_map(|entry| match &entry.event {
            Event::NoticeWithheld { sender, about, why } => Some((sender.to_string(), about.clone(), why.clone())),
            _ => None,
        });
        let (sender, about, why) = withheld.unwrap_or_else(|| panic!("{story:#?}"));
        assert_eq!((sender.as_str(), about.as_str()), (from, "info@home.test"));
        assert!(why.contains("nothing shows that it is from"), "{why}");
        let told = |event: &Event| matches!(event, Event::NoticeSent { .. });
        assert!(!story.entries.iter().any(|entry| told(&entry.event)), "{story:#?}");
        assert!(story.entries.iter().any(|entry| matches!(entry.event, Event::Failed { .. })));
    }

    let story = server.wait_done(send(&server, "ann@known.test", "hello").await).await;
    assert!(story.entries.iter().any(|entry| matches!(entry.event, Event::NoticeSent { .. })), "{story:#?}");
    sink.wait_for(1).await;

    // Who submits here has shown who it is, wherever its address is.
    let mut client = Client::connect(server.submission).await.unwrap();
    let content = "From: <me@stranger.test>\r\nSubject: mine\r\n\r\ntext\r\n";
    let reply = client.send("me@stranger.test", &["info@home.test"], content).await.unwrap();
    server.wait_done(queued_id(&reply)).await;
    sink.wait_for(2).await;
    server.stop().await;

    let mut told: Vec<String> = sink.taken().into_iter().flat_map(|taken| taken.recipients).collect();
    told.sort();
    assert_eq!(told, ["ann@known.test", "me@stranger.test"]);
    let notice = String::from_utf8(sink.taken().remove(0).content).unwrap();
    assert!(notice.contains("Action: failed") && !notice.contains("no such ticket"), "{notice}");
}

#[tokio::test(flavor = "multi_thread")]
async fn gone_pauses_the_target_until_one_of_its_messages_is_released() {
    let folder = tempfile::tempdir().unwrap();
    let endpoint = Endpoint::answering(&[&answer("410 Gone", "", "closed")]).await;
    let (sink, zone) = world().await;
    let conf = conf(&endpoint.url, &zone, &sink, "");
    let server = TestServer::start(folder.path(), &conf).await;
    let first = send(&server, "ann@known.test", "one").await;
    let because = wait_held(&server, first).await;
    assert!(because.starts_with("the target crm is paused, because it has answered 410 Gone"), "{because}");
    // It is not asked any more, also by the next server.
    let second = send(&server, "ann@known.test", "two").await;
    assert_eq!(wait_held(&server, second).await, because);
    server.stop().await;
    let server = TestServer::start(folder.path(), &conf).await;
    let third = send(&server, "ann@known.test", "three").await;
    assert_eq!(wait_held(&server, third).await, because);
    assert_eq!(endpoint.take().len(), 1);
    let shown = server.app.operator().metrics().await;
    assert!(shown.contains("postrider_suspended{what=\"target\"} 1"), "{shown}");

    // It has come back: one is released, and all go.
    (0..3).for_each(|_| endpoint.will(&ok()));
    server.app.operator().change(Action::Retry, pick(second)).await.unwrap();
    for id in [first, second, third] {
        server.wait_done(id).await;
    }
    assert_eq!(endpoint.take().len(), 3);
    let shown = server.app.operator().metrics().await;
    assert!(shown.contains("postrider_suspended{what=\"target\"} 0"), "{shown}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_still_gone_is_paused_again() {
    let folder = tempfile::tempdir().unwrap();
    let gone = answer("410 Gone", "", "closed");
    let endpoint = Endpoint::answering(&[&gone, &gone]).await;
    let (sink, zone) = world().await;
    let server = TestServer::start(folder.path(), &conf(&endpoint.url, &zone, &sink, "")).await;
    let id = send(&server, "ann@known.test", "one").await;
    wait_held(&server, id).await;
    server.app.operator().change(Action::Release, pick(id)).await.unwrap();
    endpoint.wait_for(2).await;
    let is_held = |event: &Event| matches!(event, Event::Held { .. });
    while server.story(id).await.unwrap().entries.iter().filter(|entry| is_held(&entry.event)).count() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let next = send(&server, "ann@known.test", "two").await;
    wait_held(&server, next).await;
    server.stop().await;
    assert_eq!(endpoint.take().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_target_that_is_configured_anew_gets_what_was_held_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (Endpoint::answering(&[&answer("410 Gone", "", "")]).await, Endpoint::answering(&[&ok()]).await);
    let (sink, zone) = world().await;
    let server = TestServer::start(folder.path(), &conf(&old.url, &zone, &sink, "")).await;
    let id = send(&server, "ann@known.test", "one").await;
    wait_held(&server, id).await;
    server.stop().await;
    let server = TestServer::start(folder.path(), &conf(&new.url, &zone, &sink, "")).await;
    server.wait_done(id).await;
    server.stop().await;
    assert_eq!((old.take().len(), new.take().len()), (1, 1));
}

/// Neither the number of tries nor the time loses mail, and nobody is told that it is lost.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_taken_in_time_is_a_dead_letter_that_can_be_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let oops = answer("500 Oops", "", "broken");
    let endpoint = Endpoint::answering(&[&oops, &oops, &oops, &ok()]).await;
    let (sink, zone) = world().await;
    let clock = Clock::manual(START);
    let conf = conf(&endpoint.url, &zone, &sink, "[delivery.retry]\ndelay_notice = \"never\"\n");
    let server = TestServer::start_at(folder.path(), &conf, clock.clone()).await;
    let id = send(&server, "ann@known.test", "one").await;
    server.wait_for(id, |event| matches!(event, Event::Deferred { .. })).await;
    clock.advance(5 * DAY + 1);
    server.app.operator().change(Action::Retry, pick(id)).await.unwrap();
    let because = wait_held(&server, id).await;
    assert!(because.starts_with("dead letter: given up after 2 tries") && because.contains("500"), "{because}");
    server.stop().await;

    // One try for each time that it is asked for.
    let server = TestServer::start_at(folder.path(), &conf, clock.clone()).await;
    let held = |story: &postrider::admin::Story| {
        story.entries.iter().filter(|entry| matches!(entry.event, Event::Held { .. })).count()
    };
    server.app.operator().change(Action::Retry, pick(id)).await.unwrap();
    endpoint.wait_for(3).await;
    while held(&server.story(id).await.unwrap()) < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.app.operator().change(Action::Retry, pick(id)).await.unwrap();
    let story = server.wait_done(id).await;
    assert!(story.entries.iter().any(|entry| matches!(entry.event, Event::Delivered { .. })), "{story:#?}");
    let told = |event: &Event| matches!(event, Event::NoticeSent { .. } | Event::Expired { .. });
    assert!(!story.entries.iter().any(|entry| told(&entry.event)), "{story:#?}");
    server.stop().await;
    let requests = endpoint.take();
    assert!(requests.iter().all(|request| request.header("webhook-id") == requests[0].header("webhook-id")));
    assert_eq!((requests.len(), sink.count()), (4, 0));
}
