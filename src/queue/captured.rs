//! What is captured, newest first: an index of the recipients that are kept here in place of being sent.
//!
//! An entry is written and deleted with the step that makes a recipient captured, or something else, so the
//! two cannot disagree; nothing of it is in memory. A store that was written before there was an index, or
//! that is damaged, gets it made anew when it is opened. Left out: reading messages for people
//! (`app::captured`).

use std::ops::ControlFlow;

use crate::clock::Millis;
use crate::message::MessageId;
use crate::store::{Batch, Store, StoreError, Table};

use super::record::{Message, Recipient, Status};
use super::{Queue, keys};

/// In front of the keys in `Table::Meta`; then the message's id and the recipient's number.
const PREFIX: &[u8] = b"captured/";
/// Behind them all.
const END: &[u8] = b"captured0";
/// In the meta table once there is an index.
const MARK: &[u8] = b"captured_index";
/// Entries read, or written anew, at once.
const SLICE: usize = 1000;

fn key(id: MessageId, number: u32) -> Vec<u8> {
    [PREFIX, &keys::recipient(id, number)].concat()
}

/// The key in front of which all older messages are.
fn key_of(id: MessageId) -> Vec<u8> {
    [PREFIX, &id.to_key()].concat()
}

fn read_id(key: &[u8]) -> Result<MessageId, StoreError> {
    keys::message_id(key.get(PREFIX.len()..).unwrap_or_default())
}

/// Enters a recipient, if it is captured.
pub(super) fn put(batch: &mut Batch, message: &Message, number: u32, recipient: &Recipient) {
    if let Status::Captured { at } = recipient.status {
        let value = [at.to_be_bytes(), message.size.to_be_bytes()].concat();
        batch.put(Table::Meta, key(message.id, number), value);
    }
}

/// Takes a recipient out that was captured.
pub(super) fn delete(batch: &mut Batch, id: MessageId, number: u32, before: &Recipient) {
    if matches!(before.status, Status::Captured { .. }) {
        batch.delete(Table::Meta, key(id, number));
    }
}

/// Sees to it that there is an index.
pub(super) fn upgrade(store: &Store) -> Result<(), StoreError> {
    if store.get(Table::Meta, MARK)?.is_some() && store.damages().is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new();
    batch.delete_range(Table::Meta, PREFIX, END);
    let mut in_batch = 0;
    for entry in store.range(Table::Recipient, &[], &[0xff; 13])? {
        let (key, value) = match entry {
            Ok(entry) => entry,
            Err(StoreError::Damaged(_)) => continue,
            Err(error) => return Err(error),
        };
        let (id, number) = (keys::message_id(&key)?, keys::number(&key)?);
        let Ok(recipient) = keys::decode::<Recipient>(&value) else { continue };
        if !matches!(recipient.status, Status::Captured { .. }) {
            continue;
        }
        let message = store.get(Table::Message, &id.to_key())?.map(|bytes| keys::decode::<Message>(&bytes));
        let Some(Ok(message)) = message else { continue };
        put(&mut batch, &message, number, &recipient);
        in_batch += 1;
        if in_batch == SLICE {
            store.write(&[std::mem::take(&mut batch)], false)?;
            in_batch = 0;
        }
    }
    batch.put(Table::Meta, MARK, vec![1]);
    store.write(&[batch], true)
}

/// How much may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// What was captured earlier goes.
    pub since: Millis,
    pub messages: u64,
    /// Of all messages together.
    pub bytes: u64,
}

/// The messages that are beyond the bounds, the oldest first, at most so many.
pub fn beyond(store: &Store, bounds: Bounds, most: usize) -> Result<Vec<MessageId>, StoreError> {
    let (mut messages, mut bytes) = (0u64, 0u64);
    each(store, |_, _, size| {
        (messages, bytes) = (messages + 1, bytes.saturating_add(size));
        ControlFlow::Continue(())
    })?;
    let mut beyond = Vec::new();
    each(store, |id, at, size| {
        if beyond.len() >= most {
            return ControlFlow::Break(());
        }
        if at < bounds.since || messages > bounds.messages || bytes > bounds.bytes {
            beyond.push(id);
            (messages, bytes) = (messages.saturating_sub(1), bytes.saturating_sub(size));
        }
        ControlFlow::Continue(())
    })?;
    Ok(beyond)
}

/// Each captured message once, the oldest first, with when it was captured and its size.
fn each(store: &Store, mut show: impl FnMut(MessageId, Millis, u64) -> ControlFlow<()>) -> Result<(), StoreError> {
    let mut last = None;
    for entry in store.range(Table::Meta, PREFIX, END)? {
        let (key, value) = entry?;
        let id = read_id(&key)?;
        if last.replace(id) == Some(id) {
            continue;
        }
        let number = |from: usize| {
            let bytes = value.get(from..from + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u64::from_be_bytes).unwrap_or_default()
        };
        if show(id, number(0), number(8)).is_break() {
            break;
        }
    }
    Ok(())
}

impl Queue {
    /// Shows the captured messages before `before`, newest first, each with all its recipients, until `show`
    /// breaks. One whose records are damaged is passed over.
    pub fn walk_captured(
        &self,
        before: Option<MessageId>,
        mut show: impl FnMut(Message, Vec<(u32, Recipient)>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut end = before.map_or_else(|| END.to_vec(), key_of);
        loop {
            let mut ids = Vec::new();
            for (key, _) in self.store.newest(Table::Meta, PREFIX, &end, SLICE)? {
                ids.push(read_id(&key)?);
            }
            ids.dedup();
            let Some(last) = ids.last() else { return Ok(()) };
            end = key_of(*last);
            for id in ids {
                let read = || Ok(self.message(id)?.map(|message| (message, self.recipients(id))));
                match read() {
                    Ok(Some((message, Ok(recipients)))) => {
                        if show(message, recipients).is_break() {
                            return Ok(());
                        }
                    }
                    // It went while we looked, or is listed as damaged.
                    Ok(None) | Ok(Some((_, Err(StoreError::Damaged(_))))) | Err(StoreError::Damaged(_)) => {}
                    Ok(Some((_, Err(error)))) | Err(error) => return Err(error),
                }
            }
        }
    }

    /// Adds a recipient to a message of which something is captured, for a person; `extra` is written with it.
    /// False: nothing of it is captured any more. Only what is captured is sure to be read anew before it is
    /// delivered: an attempt that runs knows of those who were there, and deletes the message when they are done.
    pub async fn add(&self, id: MessageId, recipient: Recipient, extra: Batch) -> Result<bool, StoreError> {
        let _lock = self.lock(id).await;
        let Some(message) = self.message(id)? else { return Ok(false) };
        if !self.recipients(id)?.iter().any(|(_, before)| matches!(before.status, Status::Captured { .. })) {
            return Ok(false);
        }
        // It counts it among the message's recipients, too: whoever seals the fate of all others must not take the
        // message for done.
        let mut batch = self.step_batch(&message, &[], std::slice::from_ref(&recipient))?;
        batch.append(extra);
        // Also if nobody waits for the commit any more, the entry may be there.
        let pending = super::Pending {
            claims: &self.claims,
            id,
            held: Vec::new(),
            entries: self.entry(&message, &recipient).into_iter().collect(),
        };
        self.commit(batch, true).await?;
        drop(pending);
        Ok(true)
    }
}
