//! A whole server that must not write to real people: mail as files, all of it to one address, or only
//! what is on a list.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use std::path::Path;

use postrider::admin::{Action, Backend, Filter, Pick, Selection, Story};
use postrider::events::Event;
use postrider::message::MessageId;
use postrider::queue::suspend::Suspension;
use support::client::Client;
use support::server::{TestServer, queued_id};
use support::sink::Sink;
use support::zone::{Zone, ZoneServer};

const BASE: &str = r#"
[networks]
trusted = ["127.0.0.0/8"]
[domains."home.test"]
[aliases]
"sales@home.test" = ["box", "friend@else.test"]
"qa@home.test" = "box"
"round@home.test" = "friend@else.test"
[targets.box]
kind = "maildir"
path = "DATA_DIR/box"
"#;

fn conf(sink: &Sink, zone: &ZoneServer, delivery: &str) -> String {
    let port = sink.address.port();
    let dns = format!("[dns]\nnameservers = [\"{}\"]\n", zone.addr());
    format!("{BASE}[delivery]\nmx_port = {port}\nallow_private_addresses = true\n{delivery}\n{dns}")
}

async fn far() -> (Sink, ZoneServer) {
    let zone = ["far.test", "else.test"].into_iter().fold(Zone::new(), |zone, name| zone.mx(name, 10, "mx.far.test"));
    (Sink::start().await, zone.a("mx.far.test", "127.0.0.1").serve().await)
}

async fn send(server: &TestServer, to: &[&str]) -> MessageId {
    let mut client = Client::connect(server.submission).await.unwrap();
    let content = "From: <me@home.test>\r\nTo: <you@far.test>\r\nSubject: x\r\n\r\nhello\r\n";
    let reply = client.send("me@home.test", to, content).await.unwrap();
    assert!(reply.starts_with("250 2.0.0"), "{reply}");
    queued_id(&reply)
}

fn routed(story: &Story) -> Vec<String> {
    let lines = story.entries.iter().filter_map(|entry| match &entry.event {
        Event::Routed { alias, to } => Some(format!("{alias} > {}", to.join(" & "))),
        _ => None,
    });
    lines.collect()
}

fn envelopes(sink: &Sink) -> Vec<Vec<String>> {
    sink.taken().iter().map(|taken| taken.recipients.clone()).collect()
}

fn files(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    let texts =
        paths.map(|path| if path.is_dir() { files(&path) } else { vec![std::fs::read_to_string(path).unwrap()] });
    texts.flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_leave_becomes_files() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let delivery = "default = \"file\"\nfile_path = \"DATA_DIR/out/{date}/{account}/{id}.eml\"";
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, delivery)).await;
    let id = send(&server, &["you@far.test", "blind@else.test", "qa@home.test"]).await;
    let story = server.wait_done(id).await;
    let written = story.entries.iter().filter_map(|entry| match &entry.event {
        Event::Delivered { to, .. } if to.contains("/out/") => Some(std::fs::read_to_string(to).unwrap()),
        _ => None,
    });
    let mut written: Vec<String> = written.collect();
    written.sort();
    assert_eq!(written.len(), 2);
    for (text, receiver) in written.iter().zip(["blind@else.test", "you@far.test"]) {
        assert!(text.starts_with(&format!("X-Sender: <me@home.test>\r\nX-Receiver: <{receiver}>\r\n")), "{text}");
        assert!(text.ends_with("\r\n\r\nhello\r\n") && text.contains("DKIM-Signature:"), "{text}");
    }
    assert_eq!(files(&folder.path().join("out")).len(), 2, "nothing half is left");
    assert_eq!(files(&folder.path().join("box/new")).len(), 1, "a target of ours is no way out");
    assert_eq!(sink.count(), 0);
    server.stop().await;
}

/// A file says what would have left: the return path and the From that it would have had on the way to an MX.
#[tokio::test(flavor = "multi_thread")]
async fn files_have_the_return_path_and_the_from_that_would_have_left() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let delivery = "default = \"file\"\nfile_path = \"DATA_DIR/out/{id}.eml\"\n[sender]\nreturn_path = \"verp\"\n\
                    default_from = \"shop@home.test\"\nfrom_filter = [\"shop@home.test\"]\n\
                    [smart_hosts.relay]\nhost = \"127.0.0.1\"\n[streams.transactional]\nsmart_host = \"relay\"";
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, delivery)).await;
    let id = send(&server, &["you@far.test", "other@else.test"]).await;
    server.wait_done(id).await;
    let written = files(&folder.path().join("out"));
    assert_eq!(written.len(), 2);
    let mut paths: Vec<&str> = written.iter().map(|text| text.lines().next().unwrap()).collect();
    paths.dedup();
    assert_eq!(paths.len(), 2, "each recipient's own: {paths:?}");
    assert!(
        paths.iter().all(|path| path.starts_with("X-Sender: <bounce+") && path.ends_with("@home.test>")),
        "{paths:?}"
    );
    assert!(
        written
            .iter()
            .all(|text| text.lines().any(|line| line.starts_with("From: ") && line.contains("<shop@home.test>"))),
        "{written:?}"
    );
    assert_eq!(sink.count(), 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_recipient_elsewhere_becomes_one() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let delivery = "redirect_all_to = \"qa@far.test\"";
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, delivery)).await;
    let id = send(&server, &["you@far.test", "other@else.test", "sales@home.test"]).await;
    let story = server.wait_done(id).await;
    assert_eq!(envelopes(&sink), [["qa@far.test"]], "one copy");
    let because = "qa@far.test, because of delivery.redirect_all_to";
    assert_eq!(
        routed(&story),
        [
            format!("you@far.test > {because}"),
            format!("other@else.test > {because}"),
            "sales@home.test > maildir box & forward to friend@else.test".to_owned(),
            format!("sales@home.test > {because}"),
            format!("friend@else.test > {because}"),
        ]
    );
    assert_eq!(files(&folder.path().join("box")).len(), 0, "a target of ours gets nothing");
    server.stop().await;
}

/// From outside and from a client: whoever is behind an address of ours gets no test mail, but for the one.
#[tokio::test(flavor = "multi_thread")]
async fn every_recipient_of_ours_becomes_the_one_too() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let delivery =
        "redirect_all_to = \"qa@home.test\"\n[targets.customer]\nkind = \"maildir\"\npath = \"DATA_DIR/customer\"";
    let aliases = "\"customer@home.test\" = \"customer\"\n\"both@home.test\" = [\"customer\", \"box\"]\n[targets.box]";
    let conf = conf(&sink, &zone, delivery).replace("[targets.box]", aliases);
    let server = TestServer::start(folder.path(), &conf).await;
    let (ours, theirs) = (folder.path().join("box/new"), folder.path().join("customer"));
    let id = send(&server, &["customer@home.test", "both@home.test", "qa@home.test", "you@far.test"]).await;
    let story = server.wait_done(id).await;
    assert_eq!(files(&ours).len(), 1, "one copy: {story:?}");
    assert_eq!((files(&theirs).len(), sink.count()), (0, 0));

    let mut outside = Client::connect(server.mx).await.unwrap();
    let content = "From: <you@far.test>\r\nTo: <customer@home.test>\r\nSubject: x\r\n\r\nhello\r\n";
    let to = ["customer@home.test", "postmaster@home.test"];
    let reply = outside.send("you@far.test", &to, content).await.unwrap();
    server.wait_done(queued_id(&reply)).await;
    assert_eq!((files(&ours).len(), files(&theirs).len(), sink.count()), (2, 0, 0));
    // Nobody is invented.
    let mut outside = Client::connect(server.mx).await.unwrap();
    outside.command("MAIL FROM:<you@far.test>", "250").await.unwrap();
    outside.command("RCPT TO:<nobody@home.test>", "550 5.1.1").await.unwrap();
    server.stop().await;
}

/// A bounce of our own mail is read, and goes into the story of that; it is nobody's mail.
#[tokio::test(flavor = "multi_thread")]
async fn a_bounce_is_read_although_all_mail_becomes_one() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let delivery = "redirect_all_to = \"qa@far.test\"\n[sender]\nreturn_path = \"verp\"";
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, delivery)).await;
    let id = send(&server, &["you@far.test"]).await;
    server.wait_done(id).await;
    let path = sink.taken()[0].mail_from.clone();
    assert!(path.starts_with("bounce+") && path.ends_with("@home.test"), "{path}");
    let report = format!(
        "From: <mailer-daemon@far.test>\r\nTo: <{path}>\r\nSubject: returned\r\nMIME-Version: 1.0\r\n\
         Content-Type: multipart/report; report-type=delivery-status; boundary=\"b\"\r\n\r\n\
         --b\r\nContent-Type: text/plain\r\n\r\nIt came back.\r\n\
         --b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.far.test\r\n\r\n\
         Final-Recipient: rfc822; qa@far.test\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n--b--\r\n"
    );
    let mut outside = Client::connect(server.mx).await.unwrap();
    let reply = outside.send("", &[&path], &report).await.unwrap();
    assert!(reply.starts_with("250"), "{reply}");
    server.wait_for(id, |event| matches!(event, Event::Bounced { .. })).await;
    server.wait_done(queued_id(&reply)).await;
    assert_eq!(sink.count(), 1, "it is not passed on");
    server.stop().await;
}

/// A copy of the queue of a real system: what waits there for a webhook of a customer does not go there.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_queued_for_a_target_before_is_redirected_too() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, "")).await;
    let all = || Suspension::All;
    server.app.operator().suspend(all(), true).await.unwrap();
    let id = send(&server, &["qa@home.test"]).await;
    server.stop().await;

    let server = TestServer::start(folder.path(), &conf(&sink, &zone, "redirect_all_to = \"qa@far.test\"")).await;
    server.app.operator().suspend(all(), false).await.unwrap();
    server.wait_done(id).await;
    assert_eq!(envelopes(&sink), [["qa@far.test"]]);
    assert_eq!(files(&folder.path().join("box")).len(), 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_one_may_be_a_target_of_ours_but_not_lead_out_again() {
    let (sink, zone) = far().await;
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, "redirect_all_to = \"qa@home.test\"")).await;
    let id = send(&server, &["you@far.test"]).await;
    server.wait_done(id).await;
    assert_eq!(files(&folder.path().join("box/new")).len(), 1);
    server.stop().await;

    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, "redirect_all_to = \"round@home.test\"")).await;
    let id = send(&server, &["you@far.test"]).await;
    let told = |event: &Event| matches!(event, Event::Deferred { why, .. } if why.reason.contains("redirect_all_to"));
    server.wait_for(id, told).await;
    assert_eq!(sink.count(), 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_on_the_list_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let delivery = "allow_recipients = [\"Friend@else.test\", \"far.test\"]";
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, delivery)).await;
    let id = send(&server, &["you@far.test", "other@else.test", "sales@home.test"]).await;
    // One transaction or two: both domains have the same servers.
    let left = |event: &Event| matches!(event, Event::Delivered { .. });
    let story =
        server.wait_until(id, |story| story.entries.iter().filter(|entry| left(&entry.event)).count() == 3).await;
    let mut recipients = envelopes(&sink).concat();
    recipients.sort();
    assert_eq!(recipients, ["friend@else.test", "you@far.test"]);
    let reason = "other@else.test is not among delivery.allow_recipients; put it there before you release it";
    let held = |event: &Event| matches!(event, Event::Held { reason: found, .. } if found == reason);
    assert_eq!(story.entries.iter().filter(|entry| held(&entry.event)).count(), 1);
    let queue = server.queue().await;
    let listed = queue[0].recipients.iter().find(|recipient| recipient.address.to_string() == "other@else.test");
    assert_eq!(listed.unwrap().held_because.as_deref(), Some(reason));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_queued_before_is_redirected_too() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, "allow_recipients = [\"no.test\"]")).await;
    let id = send(&server, &["you@far.test", "other@else.test"]).await;
    server.stop().await;

    let server = TestServer::start(folder.path(), &conf(&sink, &zone, "redirect_all_to = \"qa@far.test\"")).await;
    server
        .app
        .operator()
        .change(Action::Release, Selection { pick: Pick::Matching(Filter::default()), dry_run: false })
        .await
        .unwrap();
    let story = server.wait_done(id).await;
    assert!(envelopes(&sink).iter().flatten().all(|recipient| recipient == "qa@far.test"), "{:?}", envelopes(&sink));
    assert!(sink.count() > 0);
    assert_eq!(routed(&story).len(), 2, "{story:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_queued_before_is_held_too() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, "allow_recipients = [\"no.test\"]")).await;
    let id = send(&server, &["you@far.test", "other@else.test"]).await;
    server.stop().await;

    let server = TestServer::start(folder.path(), &conf(&sink, &zone, "allow_recipients = [\"far.test\"]")).await;
    let everything = Selection { pick: Pick::Matching(Filter::default()), dry_run: false };
    server.app.operator().change(Action::Release, everything).await.unwrap();
    server.wait_for(id, |event| matches!(event, Event::Delivered { .. })).await;
    let is_held = |story: &Story| {
        let events = story.entries.iter().map(|entry| &entry.event);
        events
            .filter(
                |event| matches!(event, Event::Held { recipient, .. } if recipient.to_string() == "other@else.test"),
            )
            .count()
    };
    // Once at the door and once more after the release, with nothing tried in between.
    let again = async {
        while is_held(&server.story(id).await.unwrap()) < 2 {
            tokio::task::yield_now().await;
        }
    };
    // Only turns a hang into a failure.
    tokio::time::timeout(std::time::Duration::from_secs(60), again).await.unwrap();
    assert_eq!(envelopes(&sink), [["you@far.test"]]);
    assert_eq!(server.queue().await[0].recipients[0].attempts, 0);
    server.stop().await;
}
