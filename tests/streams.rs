//! What keeps streams from sending: suspension, blocks with a pause, limits of a day; with restarts in
//! between. And streams that come and go with the configuration.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use postrider::admin::{Backend, Filter, Listed, Page};
use postrider::clock::Clock;
use postrider::message::{Hold, MessageId};
use postrider::queue::record::{Recipient, Status};
use postrider::queue::suspend::Suspension;
use postrider::store::Batch;
use support::client::Client;
use support::server::{TestServer, queued_id};
use support::sink::Sink;
use support::zone::{Zone, ZoneServer};

const MINUTE: u64 = 60_000;
/// Ten in the morning.
const START: u64 = 1_799_960_400_000;
const DAY: u64 = 24 * 60 * MINUTE;

/// An account for each stream, named as that.
fn accounts(streams: &[&str]) -> String {
    let account = |name: &&str| format!("[accounts.{name}]\npassword = \"secret\"\nstream = \"{name}\"\n");
    streams.iter().map(account).collect()
}

const BUILT_IN: [&str; 3] = ["transactional", "bulk", "security"];

async fn far() -> (Sink, ZoneServer) {
    let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1");
    (Sink::start().await, zone.serve().await)
}

fn conf(sink: &Sink, zone: &ZoneServer, streams: &[&str], more: &str) -> String {
    let (port, dns, accounts) = (sink.address.port(), zone.addr(), accounts(streams));
    format!(
        "[domains.\"home.test\"]\n{accounts}[delivery]\nmx_port = {port}\nallow_private_addresses = true\n\
         [dns]\nnameservers = [\"{dns}\"]\n{more}"
    )
}

async fn log_in(server: &TestServer, account: &str) -> Client {
    let mut client = Client::connect(server.submission).await.unwrap();
    let secret = STANDARD.encode(format!("\0{account}\0secret"));
    client.command(&format!("AUTH PLAIN {secret}"), "235").await.unwrap();
    client
}

async fn submit(client: &mut Client, subject: &str, to: &[&str]) -> MessageId {
    let content = format!("From: <me@home.test>\r\nTo: <you@far.test>\r\nSubject: {subject}\r\n\r\nhello\r\n");
    let reply = client.send("me@home.test", to, &content).await.unwrap();
    assert!(reply.starts_with("250 2.0.0"), "{reply}");
    queued_id(&reply)
}

/// By account, in the order in which they are sent.
async fn submit_many(server: &TestServer, account: &str, subject: &str, count: usize) {
    let mut client = log_in(server, account).await;
    for number in 0..count {
        submit(&mut client, &format!("{account} {subject} {number}"), &["you@far.test"]).await;
    }
}

/// Subjects as they arrived.
fn subjects(sink: &Sink) -> Vec<String> {
    let subject = |content: &[u8]| {
        let text = String::from_utf8_lossy(content).into_owned();
        text.lines().find_map(|line| line.strip_prefix("Subject: ")).unwrap().to_owned()
    };
    sink.taken().iter().map(|taken| subject(&taken.content)).collect()
}

fn count(sink: &Sink, word: &str) -> usize {
    subjects(sink).iter().filter(|subject| subject.contains(word)).count()
}

async fn wait_for(sink: &Sink, word: &str, wanted: usize) {
    loop {
        let all = sink.count();
        if count(sink, word) >= wanted {
            return;
        }
        sink.wait_for(all + 1).await;
    }
}

async fn queue(server: &TestServer) -> Vec<Listed> {
    server.app.operator().list(Filter::default(), Page { limit: 1000, after: None }).await.unwrap()
}

/// Looks at the queue until it is as wanted. The bound only turns a hang into a failure.
async fn until(server: &TestServer, wanted: impl Fn(&[Listed]) -> bool) -> Vec<Listed> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let queue = self::queue(server).await;
        if wanted(&queue) {
            return queue;
        }
        assert!(Instant::now() < deadline, "gave up waiting: {queue:#?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn kept_back(queue: &[Listed], word: &str) -> usize {
    let recipients = queue.iter().flat_map(|listed| &listed.recipients);
    recipients.filter(|recipient| recipient.kept_back.as_ref().is_some_and(|why| why.contains(word))).count()
}

/// Moves the clock; what is due then starts.
fn advance(server: &TestServer, clock: &Clock, by: u64) {
    clock.advance(by);
    server.app.operator().queue.claims().wake.notify_one();
}

/// When this has arrived, the dispatcher has looked at all that could start before it.
async fn barrier(server: &TestServer, sink: &Sink, name: &str) {
    let id = submit(&mut log_in(server, "security").await, name, &["you@far.test"]).await;
    server.wait_done(id).await;
    assert_eq!(count(sink, name), 1);
}

/// Under load everything stops but the security stream, goes on being taken, and stays stopped over a
/// restart; resuming sends all of it, once.
#[tokio::test(flavor = "multi_thread")]
async fn suspended_under_load_only_security_leaves_and_resuming_sends_all() {
    const EARLY: usize = 60;
    const LATE: usize = 30;
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let conf = conf(&sink, &zone, &BUILT_IN, "");
    let server = TestServer::start(folder.path(), &conf).await;
    let operator = server.app.operator();

    let load = |account| submit_many(&server, account, "early", EARLY);
    let suspend = async {
        sink.wait_for(20).await;
        let answer = operator.suspend(Suspension::All, true).await.unwrap();
        assert!(answer.changed);
        assert_eq!(answer.exempt, ["security"]);
        for account in BUILT_IN {
            submit_many(&server, account, "late", LATE).await;
        }
    };
    tokio::join!(load("transactional"), load("bulk"), load("security"), suspend);

    // All of security leaves, the early and the late; nothing else that came late does.
    wait_for(&sink, "security", EARLY + LATE).await;
    assert_eq!((count(&sink, "bulk late"), count(&sink, "transactional late")), (0, 0));
    let readiness = operator.readiness().await.unwrap();
    assert!(readiness.ready && readiness.suspended.len() == 1, "mail is taken: {readiness:?}");
    assert!(operator.metrics().await.contains("postrider_suspended{what=\"all\"} 1"));

    // A restart ends what was under way, and keeps the suspension.
    server.stop().await;
    let arrived = sink.count();
    let server = TestServer::start(folder.path(), &conf).await;
    let operator = server.app.operator();
    for account in BUILT_IN {
        submit_many(&server, account, "after", LATE).await;
    }
    wait_for(&sink, "security after", LATE).await;
    assert_eq!(sink.count(), arrived + LATE, "{:?}", subjects(&sink));
    let total = 3 * (EARLY + 2 * LATE);
    let queue = until(&server, |queue| queue.len() == total - sink.count()).await;
    assert_eq!(kept_back(&queue, "all sending is suspended since"), queue.len());

    assert!(operator.suspend(Suspension::All, false).await.unwrap().changed);
    sink.wait_for(total).await;
    until(&server, <[Listed]>::is_empty).await;
    let mut once = BTreeMap::new();
    subjects(&sink).into_iter().for_each(|subject| *once.entry(subject).or_insert(0) += 1);
    assert!(once.len() == total && once.values().all(|times| *times == 1));
    server.stop().await;
}

/// One stream stops, the others do not; what is exempt or unknown is refused with what to do.
#[tokio::test(flavor = "multi_thread")]
async fn one_stream_is_suspended_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, &BUILT_IN, "")).await;
    let operator = server.app.operator();
    let bulk = Suspension::Stream("bulk".into());
    assert!(operator.suspend(bulk.clone(), true).await.unwrap().changed);
    assert!(!operator.suspend(bulk.clone(), true).await.unwrap().changed);
    submit_many(&server, "bulk", "x", 3).await;
    submit_many(&server, "transactional", "x", 3).await;
    wait_for(&sink, "transactional", 3).await;
    assert_eq!(count(&sink, "bulk"), 0);
    // Resuming all does not resume what was suspended by name.
    let answer = operator.suspend(Suspension::All, false).await.unwrap();
    assert!(!answer.changed && answer.suspended.len() == 1);

    let refused = operator.suspend(Suspension::Stream("security".into()), true).await.unwrap_err();
    assert!(refused.remedy.contains("streams.security.exempt_from_suspend"), "{refused:?}");
    let refused = operator.suspend(Suspension::Stream("bluk".into()), true).await.unwrap_err();
    assert!(refused.remedy.contains("bulk"), "{refused:?}");
    operator.suspend(Suspension::SmartHost("ses".into()), true).await.unwrap_err();

    assert!(operator.suspend(bulk, false).await.unwrap().changed);
    wait_for(&sink, "bulk", 3).await;
    server.stop().await;
}

/// The command line against the running server.
#[tokio::test(flavor = "multi_thread")]
async fn suspend_and_resume_on_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, &BUILT_IN, "")).await;
    let file = folder.path().join("client.toml");
    let text = format!("hostname = \"mail.home.test\"\ndata_dir = \"{}\"\n", folder.path().display());
    std::fs::write(&file, text).unwrap();
    let run = async |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_postrider"));
        command.arg("--config").arg(&file).args(arguments);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        (output.status.code().unwrap(), text)
    };
    let (status, text) = run(&["suspend", "--stream", "bulk"]).await;
    assert!(status == 0 && text.starts_with("Suspended since 20") && text.contains("UTC: the stream bulk\n"), "{text}");
    assert!(text.ends_with("sent all the same: security\n"), "{text}");
    submit_many(&server, "bulk", "x", 1).await;
    let (status, text) = run(&["queue", "list"]).await;
    assert!(status == 0 && text.contains("waiting: the stream bulk is suspended since "), "{text}");
    let (status, text) = run(&["suspend", "--json"]).await;
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(status == 0 && answer["changed"] == true, "{text}");
    assert_eq!(answer["suspended"][0]["what"], "all");
    assert_eq!(answer["suspended"][1]["what"]["stream"], "bulk");
    let (status, text) = run(&["suspend", "--stream", "security"]).await;
    assert!(status == 1 && text.contains("exempt from suspension\n  → set streams.security"), "{text}");
    let (status, _) = run(&["suspend", "--stream", "bulk", "--fetch"]).await;
    assert_eq!(status, 2);
    let (status, text) = run(&["resume"]).await;
    assert!(status == 0 && text.starts_with("Suspended since ") && text.contains("the stream bulk"), "{text}");
    assert_eq!(run(&["resume", "--stream", "bulk"]).await, (0, "Nothing is suspended.\n".to_owned()));
    assert_eq!(run(&["resume"]).await, (0, "It was so already.\nNothing is suspended.\n".to_owned()));
    wait_for(&sink, "bulk", 1).await;
    server.stop().await;
}

/// What was put aside for a smart host goes when that is resumed, and nothing else that is held; also if
/// the server was broken off while it let go.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_for_a_smart_host_is_released_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let conf = conf(&sink, &zone, &BUILT_IN, "[smart_hosts.ses]\nhost = \"ses.test\"\n");
    let server = TestServer::start(folder.path(), &conf).await;
    let operator = server.app.operator();
    operator.suspend(Suspension::All, true).await.unwrap();
    let ses = Suspension::SmartHost("ses".into());
    operator.suspend(ses.clone(), true).await.unwrap();
    let mut client = log_in(&server, "transactional").await;
    let mut ids = Vec::new();
    for (subject, reason) in [
        ("aside", Suspension::SmartHost("ses".into()).held_because().unwrap()),
        ("other", Suspension::SmartHost("other".into()).held_because().unwrap()),
        ("later", Suspension::SmartHost("ses".into()).held_because().unwrap()),
    ] {
        let id = submit(&mut client, subject, &["you@far.test"]).await;
        hold(&server, id, reason).await;
        ids.push(id);
    }
    operator.suspend(Suspension::All, false).await.unwrap();
    operator.suspend(ses.clone(), false).await.unwrap();
    wait_for(&sink, "aside", 1).await;
    wait_for(&sink, "later", 1).await;
    until(&server, |queue| queue.len() == 1 && queue[0].id == ids[1]).await;

    // Broken off between the word and the deed.
    operator.suspend(ses.clone(), true).await.unwrap();
    hold(&server, ids[1], Suspension::SmartHost("ses".into()).held_because().unwrap()).await;
    assert!(operator.queue.lift(&ses).await.unwrap());
    server.stop().await;
    let server = TestServer::start(folder.path(), &conf).await;
    wait_for(&sink, "other", 1).await;
    until(&server, <[Listed]>::is_empty).await;
    server.stop().await;
}

async fn hold(server: &TestServer, id: MessageId, hold: Hold) {
    let queue = &server.app.operator().queue;
    let held = |before: &Recipient| Recipient { status: Status::Held(hold), ..before.clone() };
    assert!(queue.change(id, 0, |_, before| Some((Some(held(before)), Batch::new()))).await.unwrap());
}

/// Twelve messages in blocks of five with a pause of two minutes: five at 0:00, five at 2:00, two at 4:00.
async fn twelve(restarts: &[u64]) {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let conf = conf(&sink, &zone, &BUILT_IN, "[streams.bulk]\nblock_size = 5\nblock_pause = \"2m\"\n");
    let clock = Clock::manual(START);
    let mut server = TestServer::start_at(folder.path(), &conf, clock.clone()).await;
    submit_many(&server, "bulk", "x", 12).await;
    let mut barriers = 0;
    for (minutes, sent) in [(0, 5), (2, 10), (4, 12)] {
        // A millisecond before, nothing has started.
        let at = START + minutes * MINUTE;
        if minutes > 0 {
            if restarts.contains(&minutes) {
                advance(&server, &clock, MINUTE);
                server.stop().await;
                server = TestServer::start_at(folder.path(), &conf, clock.clone()).await;
            }
            advance(&server, &clock, at - 1 - clock.now());
            barriers += 1;
            barrier(&server, &sink, &format!("barrier-{barriers}")).await;
            assert_eq!(kept_back(&queue(&server).await, "pauses behind a block of 5"), 12 - count(&sink, "bulk"));
            advance(&server, &clock, 1);
        }
        wait_for(&sink, "bulk", sent).await;
        // The last of the block has ended when the pause can be seen.
        until(&server, |queue| queue.len() == 12 - sent && kept_back(queue, "pauses behind") == queue.len()).await;
        assert_eq!(count(&sink, "bulk"), sent);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twelve_messages_go_in_three_blocks() {
    twelve(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twelve_messages_go_in_three_blocks_with_restarts_between() {
    twelve(&[2, 4]).await;
}

/// A message has more recipients than are left of the day: the first part goes now, the rest after the
/// reset, and it can be seen why.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_a_day_puts_the_rest_off_until_midnight() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let conf = conf(&sink, &zone, &BUILT_IN, "[streams.bulk]\ndaily_limit = 4\n");
    let clock = Clock::manual(START);
    let server = TestServer::start_at(folder.path(), &conf, clock.clone()).await;
    let mut client = log_in(&server, "bulk").await;
    submit(&mut client, "first", &["a@far.test", "b@far.test"]).await;
    submit(&mut client, "second", &["a@far.test", "b@far.test", "c@far.test", "d@far.test", "e@far.test"]).await;
    let rest = |queue: &[Listed]| queue.len() == 1 && queue[0].recipients.len() == 3;
    until(&server, rest).await;
    let recipients = |sink: &Sink| sink.taken().iter().map(|taken| taken.recipients.len()).sum::<usize>();
    assert_eq!(recipients(&sink), 4);

    // A restart, and the last millisecond of the day, change nothing.
    server.stop().await;
    let server = TestServer::start_at(folder.path(), &conf, clock.clone()).await;
    let midnight = (START / DAY + 1) * DAY;
    advance(&server, &clock, midnight - 1 - clock.now());
    barrier(&server, &sink, "barrier").await;
    let queue = self::queue(&server).await;
    assert!(rest(&queue) && kept_back(&queue, "4 recipients of a day (streams.bulk.daily_limit)") == 3, "{queue:#?}");
    advance(&server, &clock, 1);
    until(&server, <[Listed]>::is_empty).await;
    assert_eq!(recipients(&sink), 4 + 1 + 3);
    server.stop().await;
}

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, |entries| entries.count())
}

/// Looks until a folder holds so many files. The bound only turns a hang into a failure.
async fn wait_for_files(folder: &Path, wanted: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while files(folder) < wanted {
        assert!(Instant::now() < deadline, "{} of {wanted} files in {}", files(folder), folder.display());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Each message makes a copy for the archive; a day of three recipients is three messages all the same, in
/// blocks and one at a time too, and no copy waits for the next day.
#[tokio::test(flavor = "multi_thread")]
async fn copies_for_an_archive_neither_count_nor_wait_in_a_stream() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let limits = "[streams.bulk]\ndaily_limit = 3\nconcurrency = 1\nblock_size = 3\nblock_pause = \"2m\"\n\
                  [[archive]]\npath = \"DATA_DIR/kept/{id}.eml\"\n";
    let conf = conf(&sink, &zone, &BUILT_IN, limits);
    let clock = Clock::manual(START);
    let server = TestServer::start_at(folder.path(), &conf, clock.clone()).await;
    submit_many(&server, "bulk", "x", 4).await;
    wait_for(&sink, "bulk", 3).await;
    wait_for_files(&folder.path().join("kept"), 3).await;
    until(&server, |queue| queue.len() == 1 && kept_back(queue, "streams.bulk.daily_limit") == 1).await;
    assert_eq!(count(&sink, "bulk"), 3);

    // A restart brings neither back.
    server.stop().await;
    let server = TestServer::start_at(folder.path(), &conf, clock.clone()).await;
    barrier(&server, &sink, "barrier").await;
    assert_eq!(count(&sink, "bulk"), 3);
    advance(&server, &clock, (START / DAY + 1) * DAY - clock.now());
    wait_for(&sink, "bulk", 4).await;
    wait_for_files(&folder.path().join("kept"), 5).await;
    until(&server, <[Listed]>::is_empty).await;
    server.stop().await;
}

/// What strangers send to a Maildir of ours, or through an alias to somewhere else, uses up nothing of what an
/// application may send on a day; and it is delivered when that is used up.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_cannot_use_up_the_day_of_a_stream() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let limits = "[streams.transactional]\ndaily_limit = 2\nblock_size = 2\nblock_pause = \"2m\"\n\
                  [loops]\nlimit = 100\n[aliases]\n\"box@home.test\" = \"box\"\n\"away@home.test\" = \"friend@far.test\"\n\
                  [targets.box]\nkind = \"maildir\"\npath = \"DATA_DIR/box\"\n";
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, &BUILT_IN, limits)).await;
    let arrived = folder.path().join("box/new");
    let stranger = async |number: usize| {
        let content = format!("From: <s{number}@else.test>\r\nSubject: stranger {number}\r\n\r\nhello\r\n");
        let mut client = Client::connect(server.mx).await.unwrap();
        let from = format!("s{number}@else.test");
        let reply = client.send(&from, &["box@home.test", "away@home.test"], &content).await.unwrap();
        assert!(reply.starts_with("250 2.0.0"), "{reply}");
    };
    for number in 0..3 {
        stranger(number).await;
    }
    wait_for_files(&arrived, 3).await;
    wait_for(&sink, "stranger", 3).await;

    // An account's own mail: also to a target of ours, which does not leave.
    submit(&mut log_in(&server, "transactional").await, "at home", &["box@home.test"]).await;
    wait_for_files(&arrived, 4).await;
    submit_many(&server, "transactional", "x", 3).await;
    wait_for(&sink, "transactional", 2).await;
    let held = |queue: &[Listed]| queue.len() == 1 && kept_back(queue, "streams.transactional.daily_limit") == 1;
    until(&server, held).await;
    assert_eq!(count(&sink, "transactional"), 2, "its own day is over");

    stranger(3).await;
    wait_for_files(&arrived, 5).await;
    wait_for(&sink, "stranger", 4).await;
    until(&server, held).await;
    server.stop().await;
}

/// A stream of one's own has its own lanes and limits. When the configuration does not name it any more,
/// what is queued leaves all the same.
#[tokio::test(flavor = "multi_thread")]
async fn own_streams_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let with = conf(&sink, &zone, &["transactional", "news", "security"], "[streams.news]\nconcurrency = 1\n");
    let server = TestServer::start(folder.path(), &with).await;
    let news = Suspension::Stream("news".into());
    server.app.operator().suspend(news, true).await.unwrap();
    submit_many(&server, "news", "old", 3).await;
    submit_many(&server, "transactional", "x", 1).await;
    wait_for(&sink, "transactional", 1).await;
    assert_eq!(kept_back(&queue(&server).await, "the stream news is suspended"), 3);
    server.stop().await;

    let without = conf(&sink, &zone, &["transactional", "security"], "");
    let server = TestServer::start(folder.path(), &without).await;
    wait_for(&sink, "news old", 3).await;
    until(&server, <[Listed]>::is_empty).await;
    server.stop().await;

    // Its place is free for others, and it may come back: what was said of it by name still holds.
    let server = TestServer::start(folder.path(), &with).await;
    submit_many(&server, "news", "new", 1).await;
    barrier(&server, &sink, "barrier").await;
    assert_eq!(count(&sink, "news new"), 0);
    server.app.operator().suspend(Suspension::Stream("news".into()), false).await.unwrap();
    wait_for(&sink, "news new", 1).await;
    server.stop().await;
}
