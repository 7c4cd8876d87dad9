//! A queue of its own and the plainest records to put into it.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use postrider::clock::Clock;
use postrider::message::{Address, BodyType, Door, DsnRequest, MessageId, Notify, Origin, ReversePath};
use postrider::queue::claim::Look;
use postrider::queue::record::{Message, Recipient, Route, Status};
use postrider::queue::{Claimed, Queue, Step};
use postrider::store::{Store, Table};
use tokio::sync::mpsc::UnboundedReceiver;

pub const START: u64 = 1_800_000_000_000;

pub fn open(path: &Path, clock: &Clock) -> (Arc<Queue>, UnboundedReceiver<Claimed>) {
    let store = Arc::new(Store::open(path).unwrap());
    Queue::new(store, clock.clone(), true, 1 << 20).unwrap()
}

pub fn recipient(address: &str, due: u64) -> Recipient {
    Recipient {
        address: Address::parse(address).unwrap(),
        alias: None,
        route: Route::Remote,
        notify: Notify::default(),
        original: None,
        status: Status::Waiting { due },
        attempts: 0,
        last_failure: None,
        delay_notified: false,
        by_hand: None,
        released: None,
    }
}

pub fn message(id: MessageId, body: &[Bytes], recipients: u32) -> Message {
    Message {
        id,
        received_at: START,
        origin: Origin { door: Door::Admin, account: None, peer: None },
        mail_from: ReversePath::Null,
        body_type: BodyType::EightBitMime,
        smtputf8: false,
        dsn: DsnRequest::default(),
        size: body.iter().map(|chunk| chunk.len() as u64).sum(),
        chunks: body.len() as u32,
        header_from: None,
        streamed: None,
        message_id: String::new(),
        subject: String::new(),
        findings: None,
        recipients,
        stream: postrider::message::stream::default_name(),
        tls: postrider::message::TlsWish::default(),
        not_before: None,
        answers: None,
    }
}

/// Ends the attempts of a claim; `after` says what becomes of each recipient.
pub async fn finish(queue: &Queue, claimed: Claimed, after: impl Fn(&Recipient) -> Option<Recipient>) {
    let _lock = queue.lock(claimed.message.id).await;
    let steps: Vec<Step> =
        claimed.recipients.into_iter().map(|(number, before)| Step { number, after: after(&before), before }).collect();
    let batch = queue.step_batch(&claimed.message, &steps, &[]).unwrap();
    queue.commit(batch, false).await.unwrap();
    queue.release(&claimed.message, &steps, &[]);
}

/// How many records a table holds.
pub fn entries(queue: &Queue, table: Table) -> usize {
    queue.store().prefix(table, b"").unwrap().filter(|entry| entry.is_ok()).count()
}

/// Claims all that may be claimed now.
pub fn claim_all(queue: &Queue, now: u64) -> Vec<Claimed> {
    let mut all = Vec::new();
    while queue.claims().look(now) == Look::Now {
        all.extend(queue.claim_due().unwrap().claimed);
    }
    all
}
