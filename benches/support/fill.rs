//! Fills and empties a queue through the library, for what would take too long over SMTP: the records
//! and the story are those that the server writes for a message that was tried once and has to wait.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use postrider::clock::{Clock, Millis};
use postrider::events::Event;
use postrider::events::journal::Journal;
use postrider::message::{Address, ReversePath};
use postrider::queue::record::{Failure, Recipient, Status};
use postrider::queue::{Claimed, NewMessage, Queue, Step};
use postrider::store::{Batch, Store, Table};
use tokio::sync::mpsc::UnboundedReceiver;

use super::records;

/// Messages being written at once, so that they share their groups.
const WRITERS: u64 = 256;
/// Bodies of fresh mail in memory.
const MEMORY_BYTES: u64 = 64 << 20;

/// So many different messages of this size.
pub fn bodies(size: usize) -> Vec<Bytes> {
    (1..=64).map(|seed| Bytes::from(super::support::load::message(size, seed))).collect()
}

/// What the tables hold: name, entries, bytes of keys and values before any compression.
pub fn tables(store: &Store) -> Vec<(&'static str, u64, u64)> {
    let tables = [
        ("message", Table::Message),
        ("body", Table::Body),
        ("recipient", Table::Recipient),
        ("due", Table::Due),
        ("journal", Table::Journal),
    ];
    let measure = |(name, table)| {
        let (mut entries, mut bytes) = (0, 0);
        for entry in store.prefix(table, b"").unwrap() {
            let (key, value) = entry.unwrap();
            entries += 1;
            bytes += (key.len() + value.len()) as u64;
        }
        (name, entries, bytes)
    };
    tables.into_iter().map(measure).collect()
}

/// Without syncs where nothing is measured that needs them.
pub fn open(store: &Path, clock: &Clock, sync: bool) -> (Arc<Queue>, UnboundedReceiver<Claimed>) {
    let store = Arc::new(Store::open(store).unwrap());
    Queue::new(store, clock.clone(), sync, MEMORY_BYTES).unwrap()
}

/// What is put in.
#[derive(Clone)]
pub struct Filling {
    pub count: u64,
    /// They take turns, so that neighbours on the disk do not compress each other.
    pub bodies: Vec<Bytes>,
    pub domains: u64,
    /// The first is due then, and the last so much later.
    pub due: Millis,
    pub spread: Millis,
}

/// Queues them all, telling of the progress.
pub async fn fill(queue: &Arc<Queue>, clock: &Clock, filling: &Filling) {
    let next = Arc::new(AtomicU64::new(0));
    let journal = Arc::new(Journal::new(clock.clone()));
    let mut tasks = Vec::new();
    for _ in 0..WRITERS.min(filling.count) {
        let (queue, clock, journal, filling, next) =
            (queue.clone(), clock.clone(), journal.clone(), filling.clone(), next.clone());
        tasks.push(tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= filling.count {
                    return;
                }
                queue.enqueue(deferred(&queue, &clock, &journal, &filling, number)).await.unwrap();
                if number > 0 && number % 100_000 == 0 {
                    super::support::say(format!("        {number} messages queued"));
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

/// A message that was tried once; in one batch, where the server writes two.
fn deferred(queue: &Queue, clock: &Clock, journal: &Journal, filling: &Filling, number: u64) -> NewMessage {
    let id = queue.new_id();
    let now = clock.now();
    let due = filling.due + filling.spread * number / filling.count;
    let body = vec![filling.bodies[number as usize % filling.bodies.len()].clone()];
    let address = format!("you{number}@d{}.far.test", number % filling.domains);
    let why = Failure::local("4.4.1", "mx.test", "connecting to mx.test at 127.0.0.1 failed: connection refused");
    let recipient = Recipient { attempts: 1, last_failure: Some(why.clone()), ..records::recipient(&address, due) };
    let mut message = records::message(id, &body, 1);
    message.received_at = now;
    message.mail_from = ReversePath::Address(Address::parse("me@away.test").unwrap());
    message.message_id = format!("{number}@away.test");
    message.subject = "load".into();
    let mut telling = journal.begin();
    telling.tell(
        id,
        Event::Accepted {
            origin: message.origin.clone(),
            from: message.mail_from.clone(),
            recipients: 1,
            size: message.size,
            message_id: message.message_id.clone(),
            subject: message.subject.clone(),
            signed: Vec::new(),
            checked: String::new(),
            stream: message.stream.clone(),
        },
    );
    telling.tell(id, Event::Deferred { recipient: recipient.address.clone(), why, attempt: 1, next: due });
    NewMessage { message, body, recipients: vec![recipient], extra: telling.take_batch() }
}

/// What claiming cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Claiming {
    pub claimed: u64,
    pub time: Duration,
}

impl Claiming {
    pub fn micros_each(&self) -> f64 {
        self.time.as_secs_f64() * 1e6 / self.claimed as f64
    }
}

/// Claims so many (or all that are due), and puts each back into the queue for `next`. Only the scans
/// are timed.
pub async fn claim(queue: &Queue, most: u64, next: Millis) -> Claiming {
    let mut all = Claiming::default();
    let mut in_vain = 0;
    while all.claimed < most && in_vain < 3 {
        let started = Instant::now();
        let scan = queue.claim_due().unwrap();
        all.time += started.elapsed();
        in_vain = if scan.claimed.is_empty() { in_vain + 1 } else { 0 };
        let mut batch = Batch::new();
        let mut done = Vec::with_capacity(scan.claimed.len());
        for claimed in scan.claimed {
            all.claimed += claimed.recipients.len() as u64;
            let put_back = |(number, before): (u32, Recipient)| {
                let after = Recipient { status: Status::Waiting { due: next }, ..before.clone() };
                Step { number, before, after: Some(after) }
            };
            let steps: Vec<Step> = claimed.recipients.into_iter().map(put_back).collect();
            batch.append(queue.step_batch(&claimed.message, &steps, &[]).unwrap());
            done.push((claimed.message, steps));
        }
        queue.commit(batch, false).await.unwrap();
        for (message, steps) in done {
            queue.release(&message, &steps, &[]);
        }
    }
    all
}

/// Makes everything due at this time, as a person does who has all of it tried again. How many.
pub async fn retry_all(queue: &Queue, due: Millis) -> u64 {
    const SLICE: usize = 5_000;
    let (mut after, mut count) = (None, 0);
    loop {
        let mut batch = Batch::new();
        let mut seen = 0;
        let walked = queue.walk(after, |message, recipients| {
            let again = |(number, before): (u32, Recipient)| {
                let after = Recipient { status: Status::Waiting { due }, ..before.clone() };
                Step { number, before, after: Some(after) }
            };
            let steps: Vec<Step> = recipients.into_iter().map(again).collect();
            count += steps.len() as u64;
            batch.append(queue.step_batch(&message, &steps, &[]).unwrap());
            after = Some(message.id);
            seen += 1;
            if seen < SLICE { std::ops::ControlFlow::Continue(()) } else { std::ops::ControlFlow::Break(()) }
        });
        walked.unwrap();
        if seen == 0 {
            return count;
        }
        queue.commit(batch, false).await.unwrap();
    }
}
