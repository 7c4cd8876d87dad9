//! Targets beside each other in one server: another SMTP server, a slow one that slows nobody else, one that
//! complains.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod endpoint;
    pub mod server;
    pub mod sink;
}

use std::path::Path;
use std::time::Duration;

use postrider::admin::Listed;
use postrider::clock::Clock;
use postrider::events::Event;
use postrider::message::MessageId;
use support::client::Client;
use support::endpoint::{Endpoint, answer};
use support::server::{TestServer, queued_id};
use support::sink::Sink;

const START: u64 = 1_800_000_000_000;

fn conf(targets: &str) -> String {
    format!(
        r#"
[domains."home.test"]
[aliases]
"info@home.test" = "one"
"other@home.test" = "two"
"all@home.test" = ["info@home.test", "ann@home.test"]
"ann@home.test" = "one"
[loops]
limit = 1000
[checks]
spf = "off"
dkim = "off"
dmarc = "off"
{targets}
[targets.two]
kind = "maildir"
path = "DATA_DIR/two"
"#
    )
}

async fn send(server: &TestServer, to: &str, subject: &str) -> MessageId {
    let mut client = Client::connect(server.mx).await.unwrap();
    let content = format!("From: <eve@far.test>\r\nSubject: {subject}\r\n\r\ntext\r\n");
    queued_id(&client.send("eve@far.test", &[to], &content).await.unwrap())
}

fn smtp(sink: &Sink, tls: &str) -> String {
    let port = sink.address.port();
    conf(&format!("[targets.one]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\nport = {port}\ntls = \"{tls}\"\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_gets_mail_for_the_addresses_that_lead_to_it() {
    for (tls, is_encrypted) in [("opportunistic", true), ("off", false)] {
        let folder = tempfile::tempdir().unwrap();
        let sink = Sink::start_tls().await;
        let server = TestServer::start(folder.path(), &smtp(&sink, tls)).await;
        let id = send(&server, "all@home.test", "hello").await;
        let story = server.wait_done(id).await;
        let delivered = story.entries.iter().filter(|entry| matches!(entry.event, Event::Delivered { .. })).count();
        assert_eq!(delivered, 2, "{story:#?}");
        server.stop().await;
        let taken = sink.taken();
        assert_eq!(taken.len(), 1, "one transaction for both");
        assert_eq!(taken[0].recipients, ["info@home.test", "ann@home.test"]);
        assert_eq!((taken[0].mail_from.as_str(), taken[0].tls), ("eve@far.test", is_encrypted));
        assert!(taken[0].content.ends_with(b"\r\n\r\ntext\r\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_tls_gets_a_certificate_that_is_trusted_or_none_of_the_mail_goes() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Sink::start_tls().await;
    let server = TestServer::start(folder.path(), &smtp(&sink, "required")).await;
    let id = send(&server, "info@home.test", "hello").await;
    let story = server.wait_for(id, |event| matches!(event, Event::Deferred { .. })).await;
    let is_tls = |event: &Event| matches!(event, Event::Deferred { why, .. } if why.status == "4.7.5");
    assert!(story.entries.iter().any(|entry| is_tls(&entry.event)), "{story:#?}");
    server.stop().await;
    assert_eq!(sink.count(), 0);
}

fn entries(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_target_holds_up_its_own_mail_only_and_runs_so_many_times_at_once() {
    const AT_ONCE: usize = 10;
    let (folder, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let running = out.path().join("running");
    std::fs::create_dir(&running).unwrap();
    let script =
        format!("> {0}/running/$$; until [ -e {0}/go ]; do sleep 0.02; done; rm {0}/running/$$", out.path().display());
    let target =
        format!("[targets.one]\nkind = \"pipe\"\ncommand = [\"/bin/sh\", \"-c\", \"{script}\"]\ntimeout = \"5m\"\n");
    let server = TestServer::start(folder.path(), &conf(&target)).await;
    let mut ids = Vec::new();
    for number in 0..3 * AT_ONCE {
        ids.push(send(&server, "info@home.test", &format!("number {number}")).await);
    }
    while entries(&running) < AT_ONCE {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for number in 0..20 {
        server.wait_done(send(&server, "other@home.test", &format!("fast {number}")).await).await;
        assert_eq!(entries(&running), AT_ONCE);
    }
    std::fs::write(out.path().join("go"), "").unwrap();
    for id in ids {
        server.wait_done(id).await;
    }
    server.stop().await;
}

/// It is asked less and less, at last once in a while; that is remembered, and told where the mail is listed.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_complains_is_left_alone_for_a_while_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let busy = answer("503 Service Unavailable", "retry-after: 3600\r\n", "busy");
    let endpoint = Endpoint::answering(&[]).await;
    let conf = conf(&format!("[targets.one]\nkind = \"webhook\"\nurl = \"{}\"\n", endpoint.url));
    let clock = Clock::manual(START);
    let server = TestServer::start_at(folder.path(), &conf, clock.clone()).await;
    let mut asked = 0;
    let untried = loop {
        endpoint.will(&busy);
        let id = send(&server, "info@home.test", &format!("number {asked}")).await;
        let listed = untried_or_deferred(&server, &clock, id).await;
        if listed.recipients[0].attempts == 0 {
            break listed;
        }
        asked += 1;
        assert!(asked < 20, "it is pressed on and on");
    };
    let why = untried.recipients[0].last_failure.clone().unwrap().reason;
    assert!(why.starts_with("not tried, because of what happened before: ") && why.contains("503"), "{why}");
    assert_eq!(endpoint.take().len(), asked);
    server.stop().await;
    let server = TestServer::start_at(folder.path(), &conf, clock.clone()).await;
    let next = send(&server, "info@home.test", "after the restart").await;
    assert_eq!(untried_or_deferred(&server, &clock, next).await.recipients[0].attempts, 0);
    // The other one is none the worse for it.
    server.wait_done(send(&server, "other@home.test", "hello").await).await;
    assert!(endpoint.take().is_empty());
    server.stop().await;
}

/// The first pauses are so short that a job waits for their end, so time goes on a little.
async fn untried_or_deferred(server: &TestServer, clock: &Clock, id: MessageId) -> Listed {
    loop {
        let listed = server.story(id).await.and_then(|story| story.message).expect("it is queued");
        if listed.recipients[0].last_failure.is_some() {
            return listed;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
        clock.advance(20);
        // It sleeps by another clock.
        server.app.operator().queue.claims().wake.notify_one();
    }
}
