//! Retries on a clock that the test moves: the real queue tries a message that always fails when the printed
//! table says, tells the sender once that it is late, and gives up.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

mod support {
    pub mod courier;
    pub mod zone;
}

use std::net::TcpListener;

use postrider::cli::check::retry::table;
use postrider::config;
use postrider::delivery::smtp::Timeouts;
use postrider::events::{Entry, Event};
use postrider::message::{Address, Envelope, MessageId, Notify, ReversePath};
use postrider::queue::record::{Recipient, Status};
use postrider::store::Batch;
use support::courier::{Courier, START};
use support::zone::Zone;

const DEFAULT: &str = "
A message that keeps failing, as [delivery.retry] has it:
   try  wait            since arrival                     if it fails
     1  -               0s
     2  1m ±6s          54s to 1m6s
     3  5m ±30s         5m24s to 6m36s
     4  15m ±1m30s      18m54s to 23m6s
     5  30m ±3m         45m54s to 56m6s
     6  1h ±6m          1h39m54s to 2h2m6s
     7  2h ±12m         3h27m54s to 4h14m6s               the sender is told of the delay, once, if it is 4h after arrival by then
     8  4h ±24m         7h3m54s to 8h38m6s                the sender is told of the delay, once, if it is 4h after arrival by then
     9  4h ±24m         10h39m54s to 13h2m6s
    10  4h ±24m         14h15m54s to 17h26m6s
";

fn retry(lines: &str) -> config::Retry {
    let text = format!("hostname = \"mail.own.test\"\ndata_dir = \"/nowhere\"\n[delivery.retry]\n{lines}");
    config::parse("test.toml", &text).unwrap_or_else(|problems| panic!("{problems}")).delivery.retry
}

#[test]
fn the_table_as_it_is_printed() {
    let text = table(&retry(""));
    assert!(text.starts_with(DEFAULT.trim_start()), "{text}");
    assert!(text.ends_with("5d                                given up (expire), the sender is told\n"), "{text}");
    assert!(text.contains("given up, if it is 5d after arrival by then (expire)"), "{text}");

    let text = table(&retry("schedule = [\"10m\"]\nmax_attempts = 3\ndelay_notice = \"never\""));
    let expected = "
A message that keeps failing, as [delivery.retry] has it:
   try  wait            since arrival                     if it fails
     1  -               0s
     2  10m ±1m         9m to 11m
     3  10m ±1m         18m to 22m                        given up (max_attempts), the sender is told
";
    assert_eq!(text, expected.trim_start());
    let text = table(&retry("schedule = [\"1s\"]"));
    assert_eq!(text.lines().count(), 203, "{text}");
    assert!(text.ends_with("… and so on, until 5d after arrival; then it is given up and the sender told\n"), "{text}");
}

/// A line of the printed table: number, earliest and latest since arrival, and what comes if it fails.
struct Row {
    number: usize,
    earliest: u64,
    latest: u64,
    then: String,
}

fn rows(printed: &str) -> Vec<Row> {
    let row = |line: &str| {
        let columns: Vec<&str> = line.split("  ").map(str::trim).filter(|column| !column.is_empty()).collect();
        let (earliest, latest) = columns[2].split_once(" to ").unwrap_or((columns[2], columns[2]));
        Row {
            number: columns[0].parse().unwrap(),
            earliest: millis(earliest),
            latest: millis(latest),
            then: columns.get(3).copied().unwrap_or_default().to_owned(),
        }
    };
    printed.lines().skip(2).map(row).collect()
}

/// `1d2h3m4.5s`.
fn millis(text: &str) -> u64 {
    let (mut sum, mut digits) = (0.0, String::new());
    for c in text.chars() {
        let unit = match c {
            'd' => 86_400.0,
            'h' => 3_600.0,
            'm' => 60.0,
            's' => 1.0,
            _ => {
                digits.push(c);
                continue;
            }
        };
        sum += unit * std::mem::take(&mut digits).parse::<f64>().unwrap();
    }
    (sum * 1000.0).round() as u64
}

/// Where nobody listens: every try fails at once.
async fn courier(retry: &str) -> Courier {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1");
    Courier::start(&format!("[delivery.retry]\n{retry}"), port, zone, Timeouts::RFC5321).await
}

async fn submit(courier: &Courier, notify: Notify) -> MessageId {
    let (from, to) = (Address::parse("a@own.test").unwrap(), Address::parse("one@far.test").unwrap());
    let mut envelope = Envelope::new(ReversePath::Address(from), [to]);
    envelope.recipients[0].notify = notify;
    courier.submit(envelope, "From: a@own.test\r\nSubject: hi\r\n\r\nHello.\r\n").await
}

/// When the tries were made, in milliseconds since arrival.
fn tries(story: &[Entry]) -> Vec<u64> {
    let is_try = |entry: &&Entry| matches!(entry.event, Event::Deferred { .. } | Event::Expired { .. });
    story.iter().filter(is_try).map(|entry| entry.at - START).collect()
}

/// Lets time pass from try to try until the message is given up.
async fn run(courier: &Courier, id: MessageId) -> Vec<Entry> {
    for count in 1.. {
        let story = courier.wait(id, |story| tries(story).len() == count).await;
        if story.iter().any(|entry| matches!(entry.event, Event::Expired { .. })) {
            return story;
        }
        let due = courier.waiting(id)[0].1;
        courier.set_clock(due);
    }
    unreachable!()
}

async fn as_printed(retry_lines: &str) {
    let printed = rows(&table(&retry(retry_lines)));
    let courier = courier(retry_lines).await;
    let id = submit(&courier, Notify::default()).await;
    let story = run(&courier, id).await;
    let tries = tries(&story);
    for (row, at) in printed.iter().zip(&tries) {
        assert!(row.earliest <= *at && *at <= row.latest, "try {} at {at}", row.number);
    }
    // It ended at a row that says so.
    let last = &printed[tries.len() - 1].then;
    assert!(last.contains("given up"), "{last:?}: {tries:?}");

    // Told of the delay once, at a try of which the table says so, and of the end.
    let told: Vec<u64> = story
        .iter()
        .filter(|entry| matches!(entry.event, Event::NoticeSent { .. }))
        .map(|entry| entry.at - START)
        .collect();
    let delays: Vec<&Row> = printed.iter().filter(|row| row.then.contains("told of the delay")).collect();
    assert_eq!(told.len(), if delays.is_empty() { 1 } else { 2 }, "{story:#?}");
    assert_eq!(told.last(), tries.last());
    if let [late, _] = told.as_slice() {
        assert!(delays.iter().any(|row| row.earliest <= *late && *late <= row.latest), "{told:?}");
    }
    let notices = courier.notices(told.len()).await;
    let count = |action: &str| notices.iter().filter(|notice| notice.contains(action)).count();
    assert_eq!((count("\nAction: delayed\n"), count("\nAction: failed\n")), (told.len() - 1, 1));
    courier.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tries_come_as_the_default_table_is_printed() {
    as_printed("").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tries_are_counted_out() {
    as_printed("schedule = [\"10m\", \"1h\"]\nmax_attempts = 4\ndelay_notice = \"30m\"").await;
    as_printed("schedule = [\"10m\"]\nmax_attempts = 1\ndelay_notice = \"never\"").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sender_is_told_only_what_was_asked_for() {
    let courier = courier("schedule = [\"1h\"]\nexpire = \"10h\"\ndelay_notice = \"2h\"").await;
    let only_delay = submit(&courier, Notify::On { success: true, failure: false, delay: true }).await;
    let story = run(&courier, only_delay).await;
    let told = story.iter().filter(|entry| matches!(entry.event, Event::NoticeSent { .. })).count();
    assert_eq!(told, 1, "{story:#?}");
    assert!(courier.notices(1).await[0].contains("\nAction: delayed\n"));
    courier.stop().await;
}

/// As `postrider queue retry` does it.
async fn by_hand(courier: &Courier, id: MessageId) {
    let now = courier.clock.now();
    let changed = courier.queue.change(id, 0, |_, before| {
        let Status::Waiting { due } = before.status else { return None };
        let after = Recipient { status: Status::Waiting { due: now }, by_hand: Some(due), ..before.clone() };
        Some((Some(after), Batch::new()))
    });
    assert!(changed.await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_try_by_hand_counts_for_nothing() {
    let courier = courier("schedule = [\"10m\"]\nmax_attempts = 2").await;
    let id = submit(&courier, Notify::default()).await;
    courier.wait(id, |story| tries(story).len() == 1).await;
    let (_, planned) = courier.waiting(id).remove(0);
    for count in 2..5 {
        courier.set_clock(courier.clock.now() + 60_000);
        by_hand(&courier, id).await;
        courier.wait(id, |story| tries(story).len() == count).await;
        let (recipient, due) = courier.waiting(id).remove(0);
        assert_eq!((recipient.attempts, due, recipient.by_hand), (1, planned, None));
    }
    courier.set_clock(planned);
    let story = courier.wait(id, |story| tries(story).len() == 5).await;
    assert!(matches!(
        story.iter().rev().find(|e| !matches!(e.event, Event::NoticeSent { .. })).unwrap().event,
        Event::Expired { .. }
    ));
    courier.stop().await;
}
