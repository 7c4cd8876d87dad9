//! Who is claimed when: lanes and places have their shares and their turns, whatever is queued in
//! front; and what a scan costs does not depend on how long the queue is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod client;
    pub mod records;
    pub mod server;
}

use std::collections::HashSet;
use std::path::Path;

use bytes::Bytes;
use postrider::clock::Clock;
use postrider::message::MessageId;
use postrider::queue::claim::Look;
use postrider::queue::keys;
use postrider::queue::lane::{Place, Streams};
use postrider::queue::record::{Message, Recipient, Status};
use postrider::queue::{Claimed, NewMessage, Queue, rebuild_due_index};
use postrider::store::{Batch, Store, Table};
use support::client::Client;
use support::records::{START, claim_all, entries, finish, message, open, recipient};
use support::server::TestServer;

/// A message in a queue that nobody has open.
struct Kept {
    stream: &'static str,
    recipients: Vec<Recipient>,
}

fn kept(stream: &'static str, attempts: u32, due: u64, domains: impl IntoIterator<Item = String>) -> Kept {
    let one = |domain: String| Recipient { attempts, ..recipient(&format!("you@{domain}"), due) };
    Kept { stream, recipients: domains.into_iter().map(one).collect() }
}

/// Writes a queue to disk, faster than it could be enqueued. Ids are 1, 2, 3…
fn fill(path: &Path, messages: impl IntoIterator<Item = Kept>) {
    let store = Store::open(path).unwrap();
    let mut batch = Batch::new();
    for (number, kept) in messages.into_iter().enumerate() {
        let id = MessageId::from_u64(number as u64 + 1);
        let mut record = message(id, &[], kept.recipients.len() as u32);
        record.stream = kept.stream.to_owned();
        batch.put(Table::Message, id.to_key(), keys::encode(&record).unwrap());
        for (number, recipient) in kept.recipients.iter().enumerate() {
            batch.put(Table::Recipient, keys::recipient(id, number as u32), keys::encode(recipient).unwrap());
        }
    }
    store.write(&[batch], false).unwrap();
    rebuild_due_index(&store).unwrap();
}

async fn enqueue(queue: &Queue, stream: &str, addresses: &[&str]) -> MessageId {
    let id = queue.new_id();
    let body = vec![Bytes::from_static(b"\r\nx\r\n")];
    let recipients: Vec<Recipient> = addresses.iter().map(|address| recipient(address, START)).collect();
    let message = Message { stream: stream.to_owned(), ..message(id, &body, recipients.len() as u32) };
    queue.enqueue(NewMessage { message, body, recipients, extra: Batch::new() }).await.unwrap();
    id
}

fn places(claimed: &[Claimed]) -> HashSet<String> {
    claimed.iter().flat_map(|c| &c.recipients).map(|(_, r)| r.address.domain().to_string()).collect()
}

/// Forty thousand retries are overdue, and have all the claims that they can get: whatever is new, of any
/// stream, has its own, from the index and past it.
#[tokio::test]
async fn new_mail_and_other_streams_never_wait_behind_retries() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START);
    let retries = (0..400).map(|n| {
        let domains = (0..100).map(move |m| format!("d{}.test", (100 * n + m) % 997));
        kept(if n % 2 == 0 { "transactional" } else { "bulk" }, 3, START - 1_000_000, domains)
    });
    let new = ["transactional", "bulk", "security"]
        .into_iter()
        .map(|stream| kept(stream, 0, START, (0..20).map(|n| format!("n{n}.test"))));
    fill(folder.path(), retries.chain(new));
    let (queue, mut fresh) = open(folder.path(), &clock);

    // Each lane has its turns in the very first scan.
    let first = queue.claim_due().unwrap();
    let new: Vec<&str> =
        first.claimed.iter().filter(|c| !c.lane.is_retry()).map(|c| c.message.stream.as_str()).collect();
    assert_eq!(new.iter().collect::<HashSet<_>>().len(), 3, "{new:?}");
    let rest = claim_all(&queue, START);
    let new = first.claimed.iter().chain(&rest).filter(|c| !c.lane.is_retry()).flat_map(|c| &c.recipients).count();
    assert_eq!(new, 60);
    assert!(queue.claim_due().unwrap().more);

    for lane in queue.streams().lanes() {
        let (held, room) = queue.claims().share(lane);
        assert!(room > 0 || held > 100, "{lane:?}: {held} held, {room} more");
        assert!(lane.is_retry() || room >= 100, "{lane:?}: {held} held, {room} more");
    }
    for stream in ["transactional", "bulk", "security"] {
        let id = enqueue(&queue, stream, &["you@fresh.test"]).await;
        assert_eq!(fresh.try_recv().unwrap().message.id, id, "{stream}");
    }
}

/// What was begun and is not tried after all is claimed again, once.
#[tokio::test]
async fn what_is_given_back_waits_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let (queue, mut fresh) = open(folder.path(), &Clock::manual(START));
    claim_all(&queue, START);
    let id = enqueue(&queue, "bulk", &["a@far.test", "b@far.test"]).await;
    let mut claimed = fresh.try_recv().unwrap();
    let claim = (claimed.lane, claimed.ticket());
    queue.begin(id, claim, &mut claimed.recipients);
    assert_eq!((claimed.recipients.len(), queue.claims().held()), (2, 2));
    assert!(claim_all(&queue, START).is_empty());
    queue.give_back(&claimed.message, &claimed.recipients);
    assert_eq!((queue.claims().held(), queue.claims().share(claimed.lane).0), (0, 0));
    let again = claim_all(&queue, START);
    assert_eq!(
        again.iter().map(|claimed| (claimed.message.id, claimed.recipients.len())).collect::<Vec<_>>(),
        [(id, 2)]
    );
}

/// A hundred places that never answer, each with a long queue in front, leave room for the next one.
#[tokio::test]
async fn any_number_of_slow_places_leaves_room_for_others() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START);
    let slow = (0..300).map(|n| {
        kept("transactional", 0, START - 1000 + n as u64, (0..100).map(move |m| format!("s{}.test", (n + m) % 100)))
    });
    let good = kept("transactional", 0, START, (0..50).map(|n| format!("g{n}.test")));
    fill(folder.path(), slow.chain([good]));
    let (queue, mut fresh) = open(folder.path(), &clock);
    let claimed = claim_all(&queue, START);
    let places = places(&claimed);
    assert_eq!(places.len(), 150, "all places, the slow ones and the good ones");
    let id = enqueue(&queue, "transactional", &["you@late.test"]).await;
    assert_eq!(fresh.try_recv().unwrap().message.id, id);
    // What is older for the same place comes first.
    enqueue(&queue, "transactional", &["you@s1.test"]).await;
    assert!(fresh.try_recv().is_err());
}

/// Delivers everything; gives how many entries were looked at, and how many deliveries there were.
async fn deliver_all(queue: &Queue) -> (usize, usize) {
    let (mut looked, mut delivered) = (0, 0);
    loop {
        let scan = queue.claim_due().unwrap();
        looked += scan.looked;
        assert_eq!(scan.stale.len(), 0);
        if scan.claimed.is_empty() {
            assert!(!scan.more);
            return (looked, delivered);
        }
        for claimed in scan.claimed {
            delivered += claimed.recipients.len();
            finish(queue, claimed, |_| None).await;
        }
    }
}

/// One place has a long queue in front of many others with short ones.
async fn cost(length: u64) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START);
    let front =
        (0..length / 100).map(|_| kept("transactional", 0, START - 9, (0..100).map(|_| "long.test".to_owned())));
    let behind = (0..length / 100).map(|n| {
        let domains = (0..100).map(move |m| format!("d{}.test", (100 * n + m) % (length / 10)));
        kept("transactional", 0, START - 5, domains)
    });
    fill(folder.path(), front.chain(behind));
    let (queue, _fresh) = open(folder.path(), &clock);
    let (looked, delivered) = deliver_all(&queue).await;
    assert_eq!(delivered as u64, 2 * length / 100 * 100);
    assert_eq!([Table::Message, Table::Recipient, Table::Due].map(|table| entries(&queue, table)), [0; 3]);
    // All of that is gone, and nothing of it is looked at again.
    enqueue(&queue, "transactional", &["you@after.test"]).await;
    assert!(queue.claim_due().unwrap().looked <= 1);
    looked as f64 / delivered as f64
}

#[tokio::test]
async fn a_scan_costs_the_same_for_each_claim_however_long_the_queue_is() {
    let (short, long) = (cost(1_000).await, cost(20_000).await);
    println!("entries looked at for each claim: {short:.2} of 2,000 queued, {long:.2} of 40,000");
    assert!(short <= 2.5 && long <= 2.5, "{short} {long}");
}

/// Entries whose recipient is gone filled every scan, so that nothing behind them was seen.
#[tokio::test]
async fn entries_without_a_delivery_are_removed_and_hide_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START);
    fill(folder.path(), [kept("bulk", 2, START, ["a.test".to_owned(), "b.test".to_owned()])]);
    {
        let store = Store::open(folder.path()).unwrap();
        let streams = Streams::load(&store).unwrap();
        let mut batch = Batch::new();
        for number in 0..10_000u32 {
            let place = Place::of(&recipient("you@a.test", START));
            let at = keys::Position { due: START - 50, id: MessageId::from_u64(1), number: 7 + number };
            let key = keys::DueKey { lane: streams.lane("bulk", 2), part: place.part(), at };
            batch.put(Table::Due, key.to_bytes(), place.to_value());
        }
        // In the lane of another stream, and with another time.
        let place = Place::of(&recipient("you@b.test", START));
        let at = keys::Position { due: START - 7, id: MessageId::from_u64(1), number: 1 };
        for lane in [streams.lane("security", 2), streams.lane("bulk", 2)] {
            batch.put(Table::Due, keys::DueKey { lane, part: place.part(), at }.to_bytes(), place.to_value());
        }
        store.write(&[batch], true).unwrap();
    }
    let (queue, _fresh) = open(folder.path(), &clock);
    let (mut claimed, mut scans, mut mended) = (Vec::new(), 0, 0);
    while queue.claims().look(START) == Look::Now {
        let scan = queue.claim_due().unwrap();
        claimed.extend(scan.claimed.into_iter().flat_map(|c| c.recipients).map(|(number, _)| number));
        mended += queue.mend(&scan.stale).await.unwrap();
        scans += 1;
    }
    claimed.sort_unstable();
    assert_eq!((claimed, mended), (vec![0, 1], 10_002));
    // One place may hold a part of the claims only.
    assert!(scans < 60, "{scans}");
    assert_eq!(entries(&queue, Table::Due), 2);
}

/// What only waits for its turn is not under way: a person's command takes it away from there.
#[tokio::test]
async fn a_person_reaches_what_waits_for_its_turn() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START);
    let (queue, mut fresh) = open(folder.path(), &clock);
    let id = enqueue(&queue, "transactional", &["a@a.test", "b@a.test", "c@a.test"]).await;
    let mut claimed = fresh.try_recv().unwrap();
    assert!(queue.change(id, 0, |_, _| Some((None, Batch::new()))).await.unwrap(), "cancelled");
    let later = |_: &Message, before: &Recipient| {
        Some((Some(Recipient { status: Status::Waiting { due: START + 5 }, ..before.clone() }), Batch::new()))
    };
    assert!(queue.change(id, 1, later).await.unwrap(), "put off");
    clock.advance(10);
    let mut again = queue.claim_due().unwrap().claimed.remove(0);
    assert_eq!(again.recipients.len(), 1, "claimed anew, while the old claim waits");
    let claim = (claimed.lane, claimed.ticket());
    queue.begin(id, claim, &mut claimed.recipients);
    assert_eq!(claimed.recipients.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [2]);
    let claim = (again.lane, again.ticket());
    queue.begin(id, claim, &mut again.recipients);
    assert_eq!(again.recipients.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1]);
    assert!(!queue.change(id, 2, |_, _| Some((None, Batch::new()))).await.unwrap(), "under way");
    // One that is left as it was is still found.
    finish(&queue, again, |before| Some(before.clone())).await;
    assert!(!queue.change(id, 1, |_, _| None).await.unwrap());
    let again = queue.claim_due().unwrap().claimed.remove(0);
    finish(&queue, again, |_| None).await;
    finish(&queue, claimed, |_| None).await;
    assert_eq!(queue.claims().held(), 0);
    let all = queue.streams().lanes().into_iter().map(|lane| queue.claims().share(lane).0).sum::<usize>();
    assert_eq!((all, entries(&queue, Table::Message)), (0, 0));
}

/// A session that goes while its message is being committed leaves nothing claimed.
#[tokio::test]
async fn a_commit_that_nobody_waits_for_leaves_no_claims() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START);
    let (queue, mut fresh) = open(folder.path(), &clock);
    {
        let mut going = std::pin::pin!(enqueue(&queue, "bulk", &["a@a.test"]));
        let polled = std::future::poll_fn(|context| std::task::Poll::Ready(going.as_mut().poll(context))).await;
        assert!(polled.is_pending());
        assert_eq!(queue.claims().held(), 1);
    }
    assert!(fresh.try_recv().is_err());
    assert_eq!(queue.claims().held(), 0);
    // Another commit comes after it, so it is written by then.
    enqueue(&queue, "security", &["b@b.test"]).await;
    assert_eq!(places(&queue.claim_due().unwrap().claimed), HashSet::from(["a.test".to_owned()]));
}

/// The clock is set back: what is due by then comes, and the next time is told right.
#[tokio::test]
async fn a_clock_that_goes_back_costs_no_more_than_it_went() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path(), (0..200).map(|n| kept("bulk", 1, START + n, (0..20).map(|_| "a.test".to_owned()))));
    let clock = Clock::manual(START + 1000);
    let (queue, _fresh) = open(folder.path(), &clock);
    let claimed = claim_all(&queue, START + 1000);
    assert!(claimed.iter().map(|c| c.recipients.len()).sum::<usize>() < 4000, "the place has enough");
    for claimed in claimed {
        finish(&queue, claimed, |_| None).await;
    }
    // An hour back. Nothing is due, and nothing is looked for before it is.
    let postrider::clock::Clock::Manual(now) = &clock else { panic!() };
    now.store(START - 3_600_000, std::sync::atomic::Ordering::Release);
    assert!(matches!(queue.claims().look(START - 3_600_000), Look::At(due) if due >= START));
    enqueue(&queue, "bulk", &["b@b.test"]).await;
    clock.advance(3_600_000 + 500);
    let (_, delivered) = deliver_all(&queue).await;
    assert!(delivered > 0);
    assert_eq!(entries(&queue, Table::Recipient), 0);
}

/// The stream of an account is that of its mail.
#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_by_the_stream_of_its_account() {
    let folder = tempfile::tempdir().unwrap();
    let conf = r#"
[domains."home.test"]
[accounts.shop]
password = "correct horse"
stream = "bulk"
[accounts.crm]
password = "correct horse"
[delivery]
default = "capture"
"#;
    let server = TestServer::start(folder.path(), conf).await;
    let content = "From: a@home.test\r\n\r\nx\r\n";
    for log_in in ["AUTH PLAIN AHNob3AAY29ycmVjdCBob3JzZQ==", "AUTH PLAIN AGNybQBjb3JyZWN0IGhvcnNl"] {
        let mut client = Client::connect(server.submission).await.unwrap();
        client.command(log_in, "235").await.unwrap();
        client.send("a@home.test", &["you@far.test"], content).await.unwrap();
    }
    server.stop().await;
    let (queue, _fresh) = open(&folder.path().join("store"), &Clock::manual(START));
    let mut streams = Vec::new();
    queue
        .walk(None, |message, _| {
            streams.push((message.origin.account, message.stream));
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    let expected = [("shop", "bulk"), ("crm", "transactional")]
        .map(|(account, stream)| (Some(account.to_owned()), stream.to_owned()));
    assert_eq!(streams, expected);
}
