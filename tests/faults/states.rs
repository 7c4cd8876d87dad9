//! The table of legal states (`queue::record`), held against a store that nobody has open: every
//! record has what belongs to it, and nothing lies about that belongs to nobody.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use postrider::message::MessageId;
use postrider::queue::keys::{self, DueKey, Position};
use postrider::queue::record::{Message, Recipient, Status};
use postrider::store::{Entry, Store, Table};

#[derive(Debug, Default)]
pub struct Found {
    pub messages: usize,
    pub waiting: usize,
    pub held: usize,
    pub captured: usize,
    /// Body chunks of no message: a crash while a message was received leaves them, the next start
    /// takes them away.
    pub orphans: usize,
    pub pickup: usize,
    /// What no row of the table allows.
    pub illegal: Vec<String>,
}

fn entries(store: &Store, table: Table) -> Vec<Entry> {
    store.prefix(table, b"").unwrap().map(Result::unwrap).collect()
}

/// Opens the store in `path`, which writes to it like any start.
pub fn look(path: &Path) -> Found {
    let store = Store::open(path).unwrap();
    let mut found = Found { pickup: entries(&store, Table::Pickup).len(), ..Found::default() };
    let mut messages: BTreeMap<MessageId, Message> = BTreeMap::new();
    for (key, value) in entries(&store, Table::Message) {
        messages.insert(keys::message_id(&key).unwrap(), keys::decode(&value).unwrap());
    }
    found.messages = messages.len();
    let mut chunks: BTreeMap<MessageId, (u32, u64)> = BTreeMap::new();
    for (key, value) in entries(&store, Table::Body) {
        let id = keys::message_id(&key).unwrap();
        if messages.contains_key(&id) {
            let (count, bytes) = chunks.entry(id).or_default();
            *count += 1;
            *bytes += value.len() as u64;
        } else {
            found.orphans += 1;
        }
    }
    // A mark of a body that comes in, without the chunks.
    found.orphans += entries(&store, Table::Incoming).len();
    let due = entries(&store, Table::Due);
    let mut due: BTreeSet<Position> = due.iter().map(|(key, _)| DueKey::read(key).unwrap().at).collect();
    let mut of_message: BTreeMap<MessageId, usize> = BTreeMap::new();
    for (key, value) in entries(&store, Table::Recipient) {
        let (id, number) = (keys::message_id(&key).unwrap(), keys::number(&key).unwrap());
        let recipient: Recipient = keys::decode(&value).unwrap();
        *of_message.entry(id).or_default() += 1;
        if !messages.contains_key(&id) {
            found.illegal.push(format!("recipient {number} of message {id}, which is not there"));
        }
        match recipient.status {
            Status::Waiting { due: time } => {
                found.waiting += 1;
                if !due.remove(&Position { due: time, id, number }) {
                    found.illegal.push(format!("recipient {number} of message {id} waits without a due entry"));
                }
            }
            Status::Held { .. } => found.held += 1,
            Status::Captured { .. } => found.captured += 1,
        }
    }
    found.illegal.extend(due.iter().map(|entry| format!("due entry {entry:?} of nobody who waits")));
    for (id, message) in &messages {
        let (count, bytes) = chunks.get(id).copied().unwrap_or_default();
        if (count, bytes) != (message.chunks, message.size) {
            let wanted = (message.chunks, message.size);
            found.illegal.push(format!("message {id} has {count} chunks, {bytes} bytes instead of {wanted:?}"));
        }
        if !of_message.contains_key(id) {
            found.illegal.push(format!("message {id} has no recipient left and is still there"));
        }
    }
    found
}

impl Found {
    pub fn check_legal(&self) {
        assert!(self.illegal.is_empty(), "{}", self.illegal.join("\n"));
    }

    pub fn check_empty(&self) {
        self.check_legal();
        let left = (self.messages, self.waiting, self.held, self.captured, self.orphans);
        assert_eq!(left, (0, 0, 0, 0, 0), "messages, waiting, held, captured, chunks of nobody");
    }
}
