//! A store of the first format, and indexes that are broken.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod records;
}

use postrider::clock::Clock;
use postrider::message::{HeldBy, Hold, MessageId};
use postrider::queue::record::{Message, Recipient, Status};
use postrider::queue::{keys, rebuild_due_index};
use postrider::store::{Batch, FORMAT_VERSION, Store, Table};

use support::records::{START, claim_all, entries, finish, message, open, recipient};

/// As the first format kept it: no stream in the message, time and lane first in the key.
fn first_format(store: &Store, messages: u64) {
    let mut batch = Batch::new();
    batch.put(Table::Meta, *b"format", 1u32.to_be_bytes().to_vec());
    for number in 1..=messages {
        let id = MessageId::from_u64(number);
        let mut record = serde_json::to_value(message(id, &[], 2)).unwrap();
        assert!(record.as_object_mut().unwrap().remove("stream").is_some());
        batch.put(Table::Message, id.to_key(), rmp_serde::to_vec_named(&record).unwrap());
        for (number, attempts) in [(0u32, 0u32), (1, 4)] {
            let due = START - 10 + u64::from(number);
            let recipient = Recipient { attempts, ..recipient(&format!("you@d{number}.test"), due) };
            batch.put(Table::Recipient, keys::recipient(id, number), keys::encode(&recipient).unwrap());
            let lane = u8::from(attempts > 0);
            let key = [&due.to_be_bytes()[..], &[lane], &id.to_key(), &number.to_be_bytes()].concat();
            batch.put(Table::Due, key, Vec::new());
        }
    }
    store.write(&[batch], true).unwrap();
}

/// Nothing is left in the due index.
fn forget(store: &Store) {
    let mut batch = Batch::new();
    batch.delete_range(Table::Due, [], [0xff; 30]);
    store.write(&[batch], true).unwrap();
}

async fn is_whole(path: &std::path::Path, messages: usize) {
    let clock = Clock::manual(START);
    let (queue, _fresh) = open(path, &clock);
    assert_eq!(
        u32::from_be_bytes(queue.store().get(Table::Meta, b"format").unwrap().unwrap().try_into().unwrap()),
        FORMAT_VERSION
    );
    assert_eq!(entries(&queue, Table::Due), 2 * messages);
    assert_eq!(queue.store().prefix(Table::Due, &[0]).unwrap().count(), 0);
    let mut delivered = 0;
    loop {
        let claimed = claim_all(&queue, START);
        if claimed.is_empty() {
            break;
        }
        for claimed in claimed {
            assert_eq!(claimed.message.stream, "transactional");
            assert!(claimed.recipients.iter().all(|(_, r)| (r.attempts > 0) == claimed.lane.is_retry()));
            delivered += claimed.recipients.len();
            finish(&queue, claimed, |_| None).await;
        }
    }
    assert_eq!(delivered, 2 * messages);
    assert_eq!([Table::Message, Table::Recipient, Table::Due].map(|table| entries(&queue, table)), [0; 3]);
}

#[tokio::test]
async fn a_store_of_the_first_format_is_brought_up_to_date() {
    let folder = tempfile::tempdir().unwrap();
    first_format(&Store::open(folder.path()).unwrap(), 3000);
    is_whole(folder.path(), 3000).await;
}

/// Wherever the upgrade was broken off, the next start does it.
#[tokio::test]
async fn an_upgrade_that_was_broken_off_is_repeated() {
    for broken_off in 0..3 {
        let folder = tempfile::tempdir().unwrap();
        {
            let store = Store::open(folder.path()).unwrap();
            first_format(&store, 100);
            let mut batch = Batch::new();
            if broken_off > 0 {
                // New entries are there, some or all; the old ones too.
                let old: Vec<_> = store.prefix(Table::Due, b"").unwrap().map(|entry| entry.unwrap().0).collect();
                rebuild_due_index(&store).unwrap();
                if broken_off == 1 {
                    for entry in store.prefix(Table::Due, b"").unwrap().take(50) {
                        batch.delete(Table::Due, entry.unwrap().0);
                    }
                }
                old.into_iter().for_each(|key| batch.put(Table::Due, key, Vec::new()));
                batch.put(Table::Meta, *b"format", 1u32.to_be_bytes().to_vec());
            }
            store.write(&[batch], true).unwrap();
        }
        is_whole(folder.path(), 100).await;
    }
}

/// A rebuild from scratch that was broken off when nothing was in the index is done at the next start.
#[tokio::test]
async fn a_rebuild_that_was_broken_off_is_repeated() {
    let folder = tempfile::tempdir().unwrap();
    {
        let store = Store::open(folder.path()).unwrap();
        first_format(&store, 100);
        assert_eq!(rebuild_due_index(&store).unwrap().entries, 200);
        forget(&store);
        let mut batch = Batch::new();
        batch.put(Table::Meta, *b"due_index_unfinished", vec![1]);
        store.write(&[batch], true).unwrap();
    }
    is_whole(folder.path(), 100).await;
}

/// Entries that are lost come back, while the queue is at work and when it is not.
#[tokio::test]
async fn lost_entries_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START);
    first_format(&Store::open(folder.path()).unwrap(), 50);
    {
        let (queue, _fresh) = open(folder.path(), &clock);
        let held = claim_all(&queue, START);
        assert_eq!(held.len(), 100);
        for claimed in held {
            finish(&queue, claimed, |before| {
                Some(Recipient { status: Status::Waiting { due: START + 5 }, ..before.clone() })
            })
            .await;
        }
        forget(queue.store());
        clock.advance(10);
        assert!(claim_all(&queue, START + 10).is_empty());
        assert_eq!(queue.rebuild_due_index().await.unwrap().entries, 100);
        assert_eq!(claim_all(&queue, START + 10).len(), 100);
    }
    let store = Store::open(folder.path()).unwrap();
    forget(&store);
    let mut damage = Batch::new();
    damage.put(Table::Recipient, keys::recipient(MessageId::from_u64(7), 0), &b"\xc1"[..]);
    store.write(&[damage], true).unwrap();
    let rebuilt = rebuild_due_index(&store).unwrap();
    assert_eq!((rebuilt.entries, rebuilt.damaged.len()), (99, 1));
    assert_eq!((rebuilt.damaged[0].0, rebuilt.damaged[0].1), (MessageId::from_u64(7), 0));
}

/// An older record reads as one of the default stream.
#[test]
fn a_message_without_a_stream_is_transactional() {
    let mut record = serde_json::to_value(message(MessageId::from_u64(1), &[], 1)).unwrap();
    record.as_object_mut().unwrap().remove("stream");
    assert_eq!(serde_json::from_value::<Message>(record).unwrap().stream, "transactional");
}

/// Why a recipient is held was a sentence alone. What it says is found in it when the record is read, and kept
/// from then on.
#[test]
fn a_recipient_that_was_held_before_says_by_what() {
    let held = Status::Held(Hold::new(HeldBy::Other, "accounts.shop.hold is set, until `postrider queue release`"));
    let mut record = serde_json::to_value(Recipient { status: held, ..recipient("you@far.test", START) }).unwrap();
    assert!(record["status"]["held"].as_object_mut().unwrap().remove("by").is_some());
    let old = rmp_serde::to_vec_named(&record).unwrap();
    let read: Recipient = keys::decode(&old).unwrap();
    let Status::Held(hold) = &read.status else { panic!("{read:?}") };
    assert_eq!(hold.by, HeldBy::Account("shop".to_owned()));
    let again: Recipient = keys::decode(&keys::encode(&read).unwrap()).unwrap();
    assert_eq!(again, read);
}
