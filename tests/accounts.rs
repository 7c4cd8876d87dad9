//! What accounts may do: the streams that they ask for, limits of a day and of a time, attachments, the
//! From that is put in, and all of it held.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use postrider::admin::view::Status;
use postrider::admin::{Action, Backend, Filter, Pick, Selection};
use postrider::clock::Clock;
use postrider::queue::suspend::Suspension;
use support::client::Client;
use support::server::{TestServer, queued_id};
use support::sink::Sink;
use support::zone::{Zone, ZoneServer};

/// Ten in the morning.
const START: u64 = 1_799_960_400_000;
const DAY: u64 = 24 * 60 * 60_000;

async fn far() -> (Sink, ZoneServer) {
    let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1");
    (Sink::start().await, zone.serve().await)
}

/// With one account, `shop`.
fn conf(sink: &Sink, zone: &ZoneServer, account: &str) -> String {
    let (port, dns) = (sink.address.port(), zone.addr());
    format!(
        "[networks]\ntrusted = [\"127.0.0.0/8\"]\n[domains.\"home.test\"]\n[accounts.shop]\npassword = \"secret\"\n{account}\
         [delivery]\nmx_port = {port}\nallow_private_addresses = true\n[dns]\nnameservers = [\"{dns}\"]\n"
    )
}

async fn log_in(server: &TestServer) -> Client {
    let mut client = Client::connect(server.submission).await.unwrap();
    let secret = STANDARD.encode("\0shop\0secret");
    client.command(&format!("AUTH PLAIN {secret}"), "235").await.unwrap();
    client
}

/// With these lines in front of the header.
async fn send(client: &mut Client, more: &str, to: &[&str]) -> String {
    let content = format!("{more}From: <me@home.test>\r\nTo: <you@far.test>\r\nSubject: x\r\n\r\nhello\r\n");
    client.send("me@home.test", to, &content).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_asks_for_a_stream_that_its_account_may_use() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, "streams = [\"security\"]\n")).await;
    server.app.operator().suspend(Suspension::All, true).await.unwrap();
    let mut client = log_in(&server).await;
    let mut streams = Vec::new();
    for more in ["", "X-Postrider-Stream: transactional\r\n", "x-postrider-stream:\r\n\tsecurity \r\n"] {
        let reply = send(&mut client, more, &["you@far.test"]).await;
        assert!(reply.starts_with("250 2.0.0"), "{more:?}: {reply}");
        streams.push(queued_id(&reply));
    }
    // Asked for in the header, it leaves although sending is suspended, and the field does not.
    server.wait_done(streams[2]).await;
    let taken = sink.taken();
    let content = String::from_utf8(taken[0].content.clone()).unwrap();
    assert!(taken.len() == 1 && !content.to_lowercase().contains("x-postrider"), "{content}");
    assert!(content.contains("From: <me@home.test>\r\n") && content.ends_with("\r\n\r\nhello\r\n"), "{content}");
    let queued: Vec<String> = server.queue().await.into_iter().map(|listed| listed.stream).collect();
    assert_eq!(queued, ["transactional", "transactional"]);

    for (more, wanted) in [
        ("X-Postrider-Stream: bulk\r\n", "550 5.7.1 the account shop may not send by the stream \"bulk\""),
        ("X-Postrider-Stream: \r\n", "550 5.7.1 "),
        ("X-Postrider-Stream: security\r\nX-Postrider-Stream: security\r\n", "550 5.6.0 "),
    ] {
        let reply = send(&mut client, more, &["you@far.test"]).await;
        assert!(reply.starts_with(wanted), "{more:?}: {reply}");
    }
    // Who may relay without an account may not choose.
    let mut trusted = Client::connect(server.submission).await.unwrap();
    let reply = send(&mut trusted, "X-Postrider-Stream: security\r\n", &["you@far.test"]).await;
    assert!(reply.starts_with("550 5.7.1 a client without an account"), "{reply}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_a_day_is_told_at_rcpt_and_outlives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let conf = conf(&sink, &zone, "daily_limit = 3\n");
    let clock = Clock::manual(START);
    let server = TestServer::start_at(folder.path(), &conf, clock.clone()).await;
    let mut client = log_in(&server).await;
    assert!(send(&mut client, "", &["a@far.test", "b@far.test"]).await.starts_with("250"));
    // One is left, and two are wanted: the first goes today.
    client.command("MAIL FROM:<me@home.test>", "250").await.unwrap();
    client.command("RCPT TO:<c@far.test>", "250").await.unwrap();
    for _ in 0..2 {
        let reply = client.say("RCPT TO:<d@far.test>").await.unwrap();
        let wanted = "450 4.7.1 daily limit of 3 recipients reached (2 sent, 1 in this message), resets at 20";
        assert!(reply.starts_with(wanted) && reply.trim_end().ends_with("T00:00:00.000Z"), "{reply}");
    }
    client.command("DATA", "354").await.unwrap();
    client.command("From: <me@home.test>\r\n\r\nhello\r\n.", "250").await.unwrap();
    server.stop().await;

    let server = TestServer::start_at(folder.path(), &conf, clock.clone()).await;
    for time in ["T00:00:00.000Z", ""] {
        let mut client = log_in(&server).await;
        client.command("MAIL FROM:<me@home.test>", "250").await.unwrap();
        let reply = client.say("RCPT TO:<d@far.test>").await.unwrap();
        if time.is_empty() {
            assert!(reply.starts_with("250"), "{reply}");
        } else {
            assert!(reply.starts_with("450 4.7.1 daily limit") && reply.trim_end().ends_with(time), "{reply}");
            clock.advance((START / DAY + 1) * DAY - START);
        }
    }
    server.stop().await;
}

/// However few the day has: what one message has too many is told at its RCPT, and harms those before it not. Of two
/// sessions that were both told that they may, the second keeps its message.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_goes_over_the_limit_of_a_day_goes_to_those_that_it_has_room_for() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, "daily_limit = 2\n")).await;
    let mut sessions = [log_in(&server).await, log_in(&server).await];
    for client in &mut sessions {
        client.command("MAIL FROM:<me@home.test>", "250").await.unwrap();
        for (recipient, wanted) in [("a", "250"), ("b", "250"), ("c", "450 4.7.1 daily limit of 2 recipients reached")]
        {
            let reply = client.say(&format!("RCPT TO:<{recipient}@far.test>")).await.unwrap();
            assert!(reply.starts_with(wanted), "{recipient}: {reply}");
        }
    }
    let [first, second] = &mut sessions;
    for (client, wanted) in [
        (first, "250 2.0.0 queued as"),
        (second, "450 4.7.1 daily limit of 2 recipients reached (2 sent), resets at 20"),
    ] {
        client.command("DATA", "354").await.unwrap();
        let reply = client.say("From: <me@home.test>\r\n\r\nhello\r\n.").await.unwrap();
        assert!(reply.starts_with(wanted), "{reply}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_told_at_rcpt() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let clock = Clock::manual(START);
    let conf = conf(&sink, &zone, "rate_limit = \"2/m\"\n");
    let server = TestServer::start_at(folder.path(), &conf, clock.clone()).await;
    let mut client = log_in(&server).await;
    client.command("MAIL FROM:<me@home.test>", "250").await.unwrap();
    for (recipient, wanted) in
        [("a", "250"), ("b", "250"), ("c", "450 4.7.1 more than 2 recipients in 60 s, try again in 30 s")]
    {
        let reply = client.say(&format!("RCPT TO:<{recipient}@far.test>")).await.unwrap();
        assert!(reply.starts_with(wanted), "{reply}");
    }
    clock.advance(30_000);
    client.command("RCPT TO:<c@far.test>", "250").await.unwrap();
    server.stop().await;
}

fn attachment(bytes: usize) -> String {
    let encoded = STANDARD.encode(vec![7u8; bytes]);
    let lines: Vec<&str> = (0..encoded.len()).step_by(76).map(|at| &encoded[at..encoded.len().min(at + 76)]).collect();
    format!(
        "--x\r\nContent-Disposition: attachment; filename=a\r\nContent-Transfer-Encoding: base64\r\n\r\n{}\r\n",
        lines.join("\r\n")
    )
}

/// In memory and streamed to disk: what is over the limit is refused, and one notice goes, even while
/// sending is suspended.
#[tokio::test(flavor = "multi_thread")]
async fn attachments_over_the_limit_are_refused_and_told_of() {
    for (limit, more) in [(3000, 1), (3_000_000, 1)] {
        let folder = tempfile::tempdir().unwrap();
        let (sink, zone) = far().await;
        let account = format!("max_attachments = \"{limit}B\"\nnotify = \"ops@far.test\"\nlabel = \"web shop\"\n");
        let server = TestServer::start(folder.path(), &conf(&sink, &zone, &account)).await;
        server.app.operator().suspend(Suspension::All, true).await.unwrap();
        let mut client = log_in(&server).await;
        let message = |second: usize| {
            format!(
                "From: <me@home.test>\r\nTo: <you@far.test>\r\nSubject: much\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n\
                 --x\r\n\r\n{}\r\n{}{}--x--\r\n",
                "text that does not count\r\n".repeat(200),
                attachment(1000),
                attachment(second)
            )
        };
        let reply = client.send("me@home.test", &["you@far.test"], &message(limit - 1000)).await.unwrap();
        assert!(reply.starts_with("250"), "just fits: {reply}");
        let reply = client.send("me@home.test", &["you@far.test"], &message(limit - 1000 + more)).await.unwrap();
        let wanted = format!("552 5.3.4 the attachments have {} bytes, more than the {limit} allowed", limit + more);
        assert!(reply.starts_with(&wanted), "{reply}");

        sink.wait_for(1).await;
        let taken = sink.taken();
        let text = String::from_utf8(taken[0].content.clone()).unwrap();
        assert_eq!((taken[0].mail_from.as_str(), &taken[0].recipients), ("", &vec!["ops@far.test".to_owned()]));
        for part in [
            "shop (web shop)",
            "Sender:     <me@home.test>",
            "Recipients: you@far.test",
            "Subject:    much",
            "> Subject: much",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("X-Postrider") && text.contains("Auto-Submitted: auto-generated"), "{text}");
        let queue = server.queue().await;
        assert_eq!(queue.iter().filter(|listed| listed.subject == "much").count(), 1, "the one that fits: {queue:#?}");
        assert_eq!(sink.count(), 1);
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_from_is_put_in_and_signed_for() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let account = "force_from = \"Shop <shop@home.test>\"\n";
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, account)).await;
    let mut client = log_in(&server).await;
    let froms = ["From: \"Any\" <any@else.test>\r\n", "", "From: a@b.test\r\nFrom: nobody at all\r\n"];
    for from in froms {
        let content = format!("{from}Subject: x\r\n\r\nhello\r\n");
        let reply = client.send("me@home.test", &["you@far.test"], &content).await.unwrap();
        assert!(reply.starts_with("250"), "{reply}");
    }
    sink.wait_for(froms.len()).await;
    for taken in sink.taken() {
        let text = String::from_utf8(taken.content).unwrap();
        assert!(text.contains("\r\nFrom: Shop <shop@home.test>\r\n") && text.matches("From: ").count() == 1, "{text}");
        assert!(text.contains("DKIM-Signature:") && text.contains("d=home.test"), "{text}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_on_hold_queues_until_it_is_released() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, "hold = true\n")).await;
    let mut client = log_in(&server).await;
    let reply = send(&mut client, "", &["a@far.test", "b@far.test"]).await;
    let id = queued_id(&reply);
    let queue = server.queue().await;
    for recipient in &queue[0].recipients {
        assert_eq!(recipient.status, Status::Held);
        assert!(recipient.held_because.as_ref().unwrap().contains("accounts.shop.hold"), "{recipient:?}");
    }
    let selection = Selection { pick: Pick::Ids(vec![id], Filter::default()), dry_run: false };
    assert_eq!(server.app.operator().change(Action::Release, selection).await.unwrap().recipients, 2);
    server.wait_done(id).await;
    let recipients: Vec<String> = sink.taken().into_iter().flat_map(|taken| taken.recipients).collect();
    assert_eq!(recipients.len(), 2, "{recipients:?}");
    server.stop().await;
}
