//! Forwarding through a whole server: the envelope sender that it leaves with, and bounces that find back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use postrider::events::Event;
use postrider::message::header::Headers;
use support::client::Client;
use support::server::{TestServer, queued_id};
use support::sink::{Sink, Taken};
use support::zone::{Zone, ZoneServer};

async fn far() -> (Sink, ZoneServer) {
    let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1");
    (Sink::start().await, zone.mx("away.test", 10, "mx.far.test").serve().await)
}

fn conf(sink: &Sink, zone: &ZoneServer, more: &str) -> String {
    format!(
        r#"
[networks]
trusted = ["127.0.0.0/8"]
[domains."home.test"]
[domains."other.test"]
[aliases]
"you@home.test" = "you@away.test"
"also@home.test" = "you@away.test"
"me@other.test" = "me@away.test"
"pair@home.test" = ["bob@far.test", "you@away.test"]
"bob@home.test" = "bob@far.test"
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

fn letter(from: &str, id: &str) -> String {
    format!("From: {from}\r\nTo: <you@home.test>\r\nMessage-ID: <{id}@far.test>\r\nSubject: x\r\n\r\nhello {id}\r\n")
}

/// The one message that came after these.
async fn next(sink: &Sink, before: usize) -> Taken {
    sink.wait_for(before + 1).await;
    let taken = sink.taken();
    assert_eq!(taken.len(), before + 1, "{taken:?}");
    taken[before].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forwarded_leaves_as_ours_and_its_bounce_goes_to_the_writer_once() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, "[loops]\nmax_hops = 50")).await;
    let mut outside = Client::connect(server.mx).await.unwrap();
    let content = letter("Bob <bob@far.test>", "one");
    outside.send("bob@far.test", &["you@home.test"], &content).await.unwrap();
    let forwarded = next(&sink, 0).await;
    assert!(forwarded.mail_from.starts_with("SRS0=") && forwarded.mail_from.ends_with("=far.test=bob@home.test"));
    assert_eq!(forwarded.recipients, ["you@away.test"]);
    let text = String::from_utf8(forwarded.content).unwrap();
    assert!(text.ends_with(&content), "not a byte of it is changed: {text}");
    assert_eq!(Headers::parse(text.as_bytes()).get("Delivered-To").unwrap().text(), "you@home.test");

    let bounce = letter("MAILER-DAEMON@away.test", "bounce");
    let sealed = &forwarded.mail_from;
    outside.send("", &[sealed], &bounce).await.unwrap();
    let back = next(&sink, 1).await;
    assert_eq!((back.mail_from.as_str(), back.recipients.as_slice()), ("", ["bob@far.test".to_owned()].as_slice()));
    assert!(String::from_utf8(back.content).unwrap().ends_with(&bounce));
    // Once.
    let reply = outside.send("", &[&sealed.to_uppercase().replace("HOME.TEST", "home.test")], &bounce).await.unwrap();
    let story = server.wait_done(queued_id(&reply)).await;
    assert!(story.entries.iter().any(|entry| matches!(entry.event, Event::Discarded { .. })), "{story:?}");
    // By nobody else, and not with another address in it.
    outside.command("MAIL FROM:<bob@far.test>", "250").await.unwrap();
    outside.command(&format!("RCPT TO:<{sealed}>"), "550 5.7.1").await.unwrap();
    outside.command("RSET", "250").await.unwrap();
    outside.command("MAIL FROM:<>", "250").await.unwrap();
    for forged in [sealed.replace("bob", "eve"), sealed.replace("home", "other"), sealed.replace("=far", "=farr")] {
        let reply = outside.command(&format!("RCPT TO:<{forged}>"), "550 5.1.1").await.unwrap();
        assert!(reply.contains("no return path of ours"), "{reply}");
    }
    server.stop().await;
    assert_eq!(sink.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_server_has_forwarded_goes_back_there() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, "")).await;
    let mut outside = Client::connect(server.mx).await.unwrap();
    let sender = "SRS0=ab12=X2=orig.test=joe@far.test";
    outside.send(sender, &["me@other.test"], &letter("joe@orig.test", "one")).await.unwrap();
    let forwarded = next(&sink, 0).await;
    assert!(forwarded.mail_from.starts_with("SRS1=") && forwarded.mail_from.ends_with("@other.test"));
    outside.send("", &[&forwarded.mail_from], &letter("d@away.test", "two")).await.unwrap();
    assert_eq!(next(&sink, 1).await.recipients, [sender]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn notices_and_our_own_senders_keep_theirs() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, "[sender]\nreturn_path = \"bounce\"")).await;
    let long = format!("{}@far.test", "x".repeat(60));
    for (number, (door, mail_from, leaves_with)) in [
        (server.mx, "", ""),
        (server.mx, "ann@other.test", "bounce@home.test"),
        (server.submission, "bob@far.test", "bounce@home.test"),
        // Too long for a return path of its own: the bounce is ours to read.
        (server.mx, long.as_str(), "bounce@home.test"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = Client::connect(door).await.unwrap();
        client.send(mail_from, &["you@home.test"], &letter("bob@far.test", &format!("n{number}"))).await.unwrap();
        assert_eq!(next(&sink, number).await.mail_from, leaves_with, "{mail_from}");
    }
    server.stop().await;
    // Where it is switched off, and there is no address for bounces.
    for (number, (more, leaves_with)) in
        [("[checks]\nseal_forwards = false", "bob@far.test"), ("[loops]\nlimit = 6", "=far.test=bob@home.test")]
            .into_iter()
            .enumerate()
    {
        let folder = tempfile::tempdir().unwrap();
        let server = TestServer::start(folder.path(), &conf(&sink, &zone, more)).await;
        let mut outside = Client::connect(server.mx).await.unwrap();
        outside.send("bob@far.test", &["you@home.test"], &letter("bob@far.test", "x")).await.unwrap();
        assert!(next(&sink, 4 + number).await.mail_from.ends_with(leaves_with));
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_back_to_whom_it_came_from() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, "")).await;
    let mut outside = Client::connect(server.mx).await.unwrap();
    for (mail_from, from, id) in [
        ("bob@far.test", "Bob <BOB@far.test>", "one"),
        ("list-bounces@far.test", "Bob <bob@far.test>", "two"),
        ("prvs=1234abcdef=bob@far.test", "b@elsewhere.test", "three"),
    ] {
        // The only place that the alias leads to.
        let reply = outside.send(mail_from, &["bob@home.test"], &letter(from, id)).await.unwrap();
        let story = server.wait_done(queued_id(&reply)).await;
        let why = story.entries.iter().find_map(|entry| match &entry.event {
            Event::Discarded { reason, .. } => Some(reason.clone()),
            _ => None,
        });
        assert_eq!(why.as_deref(), Some("it would go back to bob@far.test, who sent it"), "{id}");
    }
    assert_eq!(sink.count(), 0);
    // One of two.
    outside.send("bob@far.test", &["pair@home.test"], &letter("bob@far.test", "four")).await.unwrap();
    assert_eq!(next(&sink, 0).await.recipients, ["you@away.test"]);
    server.stop().await;
    assert_eq!(sink.count(), 1);
}

/// The copy of one of two addresses that lead to one place is not lost with that of the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_place_gets_what_one_of_its_addresses_takes() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let more = "[aliases.limits]\n\"you@home.test\" = { automatic = \"discard\" }";
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, more)).await;
    let mut outside = Client::connect(server.mx).await.unwrap();
    let content = format!("Precedence: bulk\r\n{}", letter("bob@far.test", "one"));
    outside.send("bob@far.test", &["you@home.test", "also@home.test"], &content).await.unwrap();
    let taken = next(&sink, 0).await;
    assert_eq!(taken.recipients, ["you@away.test"]);
    let headers = String::from_utf8(taken.content).unwrap();
    assert!(!headers.contains("also@home.test") && headers.contains("X-Postrider-Passed: "), "{headers}");
    server.stop().await;
}
