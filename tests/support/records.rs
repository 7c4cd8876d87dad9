//! A queue of its own and the plainest records to put into it.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use postrider::clock::Clock;
use postrider::message::{Address, BodyType, Door, DsnRequest, MessageId, Notify, Origin, ReversePath};
use postrider::queue::record::{Message, Recipient, Route, Status};
use postrider::queue::{Claimed, Queue};
use postrider::store::Store;
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
        streamed: None,
        message_id: String::new(),
        subject: String::new(),
        findings: None,
        recipients,
    }
}
