//! The queue against a real store: what is acknowledged is found again, claims are exclusive, and a
//! message goes with its last recipient.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod records;
}

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use postrider::clock::Clock;
use postrider::message::{HeldBy, Hold, MessageId};
use postrider::queue::claim::CLAIMS_MAX;
use postrider::queue::record::{Message, Recipient, Status};
use postrider::queue::{NewMessage, Queue, Step};
use postrider::store::{Batch, Table};
use support::records::{START, entries, finish, message, open, recipient};

async fn enqueue(queue: &Queue, text: &str, recipients: Vec<Recipient>) -> MessageId {
    let id = queue.new_id();
    let body = vec![Bytes::from("Subject: x\r\n\r\n"), Bytes::copy_from_slice(text.as_bytes())];
    let message = message(id, &body, recipients.len() as u32);
    queue.enqueue(NewMessage { message, body, recipients, extra: Batch::new() }).await.unwrap();
    id
}

#[tokio::test]
async fn a_restart_finds_everything_that_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START);
    let mut ids = Vec::new();
    {
        let (queue, _fresh) = open(folder.path(), &clock);
        for n in 0..50 {
            ids.push(enqueue(&queue, &format!("body {n}"), vec![recipient("a@b.example", START)]).await);
        }
    }
    let (queue, mut fresh) = open(folder.path(), &clock);
    let scan = queue.claim_due().unwrap();
    assert!(fresh.try_recv().is_err());
    assert_eq!(scan.claimed.iter().map(|claimed| claimed.message.id).collect::<Vec<_>>(), ids);
    for (n, claimed) in scan.claimed.iter().enumerate() {
        let body = queue.body(&claimed.message).unwrap().concat();
        assert_eq!(body, format!("Subject: x\r\n\r\nbody {n}").into_bytes());
    }
    assert!(queue.new_id() > *ids.last().unwrap(), "ids grow across a restart");
}

#[tokio::test]
async fn fresh_mail_comes_without_a_scan_and_is_claimed_once() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START);
    let (queue, mut fresh) = open(folder.path(), &clock);
    let id = enqueue(&queue, "hello", vec![recipient("a@b.example", START), recipient("c@d.example", START)]).await;
    let claimed = fresh.try_recv().unwrap();
    assert_eq!((claimed.message.id, claimed.recipients.len()), (id, 2));
    assert_eq!(claimed.body.as_ref().unwrap().chunks.concat(), b"Subject: x\r\n\r\nhello");
    assert!(queue.claim_due().unwrap().claimed.is_empty(), "claimed already");
    finish(&queue, claimed, |_| None).await;
    assert!(queue.claim_due().unwrap().claimed.is_empty(), "done");
    assert_eq!(queue.claims().held(), 0);
}

#[tokio::test]
async fn the_message_goes_with_its_last_recipient() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START);
    let (queue, mut fresh) = open(folder.path(), &clock);
    enqueue(&queue, "hello", vec![recipient("a@b.example", START), recipient("c@d.example", START)]).await;
    let claimed = fresh.try_recv().unwrap();
    let later = |recipient: &Recipient| {
        let waits = recipient.address.local() == "c";
        waits.then(|| Recipient { status: Status::Waiting { due: START + 60_000 }, attempts: 1, ..recipient.clone() })
    };
    finish(&queue, claimed, later).await;
    assert_eq!([Table::Message, Table::Body, Table::Recipient, Table::Due].map(|t| entries(&queue, t)), [1, 2, 1, 1]);

    let scan = queue.claim_due().unwrap();
    assert!(scan.claimed.is_empty());
    assert_eq!(scan.next, Some(START + 60_000));
    clock.advance(60_000);
    let mut scan = queue.claim_due().unwrap();
    let claimed = scan.claimed.remove(0);
    assert_eq!(claimed.recipients[0].1.attempts, 1);
    finish(&queue, claimed, |_| None).await;
    assert_eq!([Table::Message, Table::Body, Table::Recipient, Table::Due].map(|t| entries(&queue, t)), [0; 4]);
}

/// By its number a recipient is known to receipts, webhooks and names of files: another one with the same would be
/// taken for delivered.
#[tokio::test]
async fn the_number_of_a_recipient_is_never_given_again() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START);
    let (queue, mut fresh) = open(folder.path(), &clock);
    while !queue.store().count_on().unwrap() {}
    let id = enqueue(&queue, "hello", vec![recipient("a@b.example", START), recipient("c@d.example", START)]).await;
    let message = fresh.try_recv().unwrap().message;
    let numbers = || queue.recipients(id).unwrap().iter().map(|(number, _)| *number).collect::<Vec<_>>();
    let goes = async |number: u32, added: &[Recipient]| {
        let _lock = queue.lock(id).await;
        let before = queue.recipients(id).unwrap().into_iter().find(|(own, _)| *own == number).unwrap().1;
        let steps = [Step { number, before, after: None }];
        // The message as it was when the attempts began.
        let batch = queue.step_batch(&message, &steps, added).unwrap();
        queue.commit(batch, false).await.unwrap();
        queue.release(&message, &steps, added);
    };
    goes(0, &[recipient("copy@b.example", START)]).await;
    assert_eq!(numbers(), [1, 2]);
    goes(2, &[]).await;
    assert_eq!(numbers(), [1]);
    goes(1, &[recipient("one@d.example", START), recipient("two@d.example", START)]).await;
    assert_eq!(numbers(), [3, 4]);
    goes(4, &[]).await;
    let captured = Recipient { status: Status::Captured { at: START }, ..recipient("three@d.example", START) };
    goes(3, &[captured]).await;
    assert_eq!(numbers(), [5]);
    assert_eq!(queue.store().messages(), Some(1), "it is one message all the time");
    queue.add(id, recipient("four@d.example", START), Batch::new()).await.unwrap();
    assert_eq!((numbers(), queue.store().messages()), (vec![5, 6], Some(1)));
    goes(6, &[]).await;
    goes(5, &[]).await;
    assert_eq!([Table::Message, Table::Body, Table::Recipient, Table::Due].map(|t| entries(&queue, t)), [0; 4]);
    assert_eq!(queue.store().messages(), Some(0));
}

#[tokio::test]
async fn nothing_due_is_skipped_when_the_clock_goes_back() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START);
    let (queue, mut fresh) = open(folder.path(), &clock);
    clock.advance(600_000);
    assert!(queue.claim_due().unwrap().claimed.is_empty());
    // Due before everything that the last scan saw.
    enqueue(&queue, "early", vec![recipient("a@b.example", START + 5)]).await;
    let claimed = fresh.try_recv().unwrap();
    let same_time = |recipient: &Recipient| Some(Recipient { attempts: 1, ..recipient.clone() });
    finish(&queue, claimed, same_time).await;
    assert_eq!(queue.claim_due().unwrap().claimed.len(), 1);
}

#[tokio::test]
async fn held_mail_waits_for_a_person() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START);
    let (queue, mut fresh) = open(folder.path(), &clock);
    let held = Recipient { status: Status::Held(Hold::new(HeldBy::Other, "test")), ..recipient("a@b.example", START) };
    let id = enqueue(&queue, "hello", vec![held]).await;
    assert!(fresh.try_recv().map(|claimed| claimed.recipients.len()).unwrap_or(0) == 0);
    assert!(queue.claim_due().unwrap().claimed.is_empty());

    let release = |_: &Message, before: &Recipient| {
        Some((Some(Recipient { status: Status::Waiting { due: START }, ..before.clone() }), Batch::new()))
    };
    assert!(queue.change(id, 0, release).await.unwrap());
    let mut claimed = queue.claim_due().unwrap().claimed.remove(0);
    let claim = (claimed.lane, claimed.ticket());
    queue.begin(id, claim, &mut claimed.recipients);
    assert!(!queue.change(id, 0, |_, _| Some((None, Batch::new()))).await.unwrap(), "an attempt is under way");
    finish(&queue, claimed, |_| None).await;
    let mut seen = 0;
    queue
        .walk(None, |_, _| {
            seen += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen, 0);
}

#[tokio::test]
async fn many_writers_share_groups_and_all_are_stored() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START);
    let (queue, mut fresh) = open(folder.path(), &clock);
    let mut tasks = Vec::new();
    for n in 0..200 {
        let queue = queue.clone();
        tasks.push(tokio::spawn(async move {
            enqueue(&queue, &format!("{n}"), vec![recipient("a@b.example", START)]).await
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let mut handed_over = 0;
    while fresh.try_recv().is_ok() {
        handed_over += 1;
    }
    assert_eq!(handed_over, 200);
    assert_eq!(entries(&queue, Table::Message), 200);
}

/// Ends of deliveries ask for no sync. While each comes shortly after the one before, there is no pause in which they
/// could be brought to disk, and a power cut would undo minutes of them: as many copies.
#[tokio::test]
async fn what_asks_for_no_sync_reaches_the_disk_also_where_it_never_pauses() {
    let folder = tempfile::tempdir().unwrap();
    let (queue, _fresh) = open(folder.path(), &Clock::manual(START));
    let synced = || queue.commit_counts().synced_groups.load(Ordering::Relaxed);
    let (before, begun) = (synced(), Instant::now());
    while synced() == before {
        // Only turns what never comes into a failure.
        assert!(begun.elapsed() < Duration::from_secs(20), "nothing was synced while writes went on");
        let mut batch = Batch::new();
        batch.put(Table::Meta, b"test".as_slice(), b"x".as_slice());
        queue.commit(batch, false).await.unwrap();
    }
}

/// Who delivers to all that there were takes the message for done: somebody who is added meanwhile would get nothing.
#[tokio::test]
async fn nobody_is_added_to_a_message_of_which_nothing_is_captured_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START);
    let (queue, _fresh) = open(folder.path(), &clock);
    let captured = Recipient { status: Status::Captured { at: START }, ..recipient("a@b.example", START) };
    let id = enqueue(&queue, "x", vec![captured.clone()]).await;
    let more = || Recipient { released: Some(START), ..recipient("c@d.example", START + 1000) };
    assert!(queue.add(id, more(), Batch::new()).await.unwrap(), "while it is captured");

    let id = enqueue(&queue, "x", vec![captured]).await;
    let released = queue.change(id, 0, |_, before| {
        let after = Recipient { status: Status::Waiting { due: START }, released: Some(START), ..before.clone() };
        Some((Some(after), Batch::new()))
    });
    assert!(released.await.unwrap());
    let mut claimed = queue.claim_due().unwrap().claimed;
    assert!(!queue.add(id, more(), Batch::new()).await.unwrap(), "it is being delivered as it was");
    finish(&queue, claimed.remove(0), |_| None).await;
    assert!(queue.message(id).unwrap().is_none());
    assert_eq!(queue.recipients(id).unwrap(), [], "nobody waits for a message that is gone");
}

#[tokio::test]
async fn more_than_the_claims_hold_goes_by_the_index() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START);
    let (queue, mut fresh) = open(folder.path(), &clock);
    let many: Vec<Recipient> = (0..7000).map(|n| recipient(&format!("u{n}@b.example"), START)).collect();
    enqueue(&queue, "many", many).await;
    assert!(fresh.try_recv().is_err(), "does not fit the share of fresh mail");
    let scan = queue.claim_due().unwrap();
    assert!(scan.more);
    let claimed = scan.claimed.iter().map(|claimed| claimed.recipients.len()).sum::<usize>();
    assert_eq!(claimed, queue.claims().held());
    assert!((100..CLAIMS_MAX / 8).contains(&claimed), "one place's share: {claimed}");
}
