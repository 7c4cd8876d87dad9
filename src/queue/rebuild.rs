//! The due index made anew from the recipients: for a store of the first format, whose keys began with
//! the time, for one of the second, which knew no lanes beside a stream's pace, and for an index that is
//! damaged. Also what becomes of single entries that are wrong.
//!
//! Nothing is lost when this is broken off: the recipients say what waits, and a mark in the meta
//! table says that the index is not whole, so that the next start begins again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::clock::Millis;
use crate::message::{MessageId, stream};
use crate::store::{Batch, FORMAT_VERSION, Store, StoreError, Table};

use super::claim::{DAMAGED_MAX, Stale};
use super::keys::{self, DUE_BYTES, DueKey, Position};
use super::lane::{Place, Streams};
use super::record::{Message, Recipient};
use super::{Queue, due_time};

/// Entries written at once.
const BATCH_ENTRIES: usize = 4096;
/// How often a long rebuild says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// In the meta table while the index is not whole.
pub(super) const MARK: &[u8] = b"due_index_unfinished";

/// What a rebuild found.
#[derive(Debug, Default)]
pub struct Rebuilt {
    /// Recipients that wait for their time.
    pub entries: u64,
    /// Recipients whose record cannot be read, at most [`DAMAGED_MAX`]. They are in no index.
    pub damaged: Vec<(MessageId, u32, StoreError)>,
}

/// Makes the due index anew, whatever is in it. For a store that no queue works on.
pub fn rebuild_due_index(store: &Store) -> Result<Rebuilt, StoreError> {
    let mut begin = Batch::new();
    begin.put(Table::Meta, MARK, vec![1]);
    begin.delete_range(Table::Due, [], [0xff; DUE_BYTES + 1]);
    store.write(&[begin], true)?;
    fill(store)
}

/// Brings the index of an older or interrupted store up to date.
pub(super) fn upgrade(store: &Store) -> Result<Rebuilt, StoreError> {
    if store.get(Table::Meta, MARK)?.is_some() {
        tracing::warn!("the due index was not finished; it is made anew");
        return rebuild_due_index(store);
    }
    if !store.damages().is_empty() {
        // What was lost of it cannot be seen; the recipients know.
        tracing::warn!("the store is damaged, so the due index is made anew");
        return rebuild_due_index(store);
    }
    if store.format() >= FORMAT_VERSION {
        return Ok(Rebuilt::default());
    }
    if store.format() > 1 {
        // Only the lanes are others. An older version that comes back half-way makes the index anew too.
        let rebuilt = rebuild_due_index(store)?;
        tracing::info!(entries = rebuilt.entries, "the due index has been brought to format {FORMAT_VERSION}");
        return Ok(rebuilt);
    }
    // The old entries stay until the new ones are complete, so that the older version could still
    // work on what is there: all that it does not know lies far in its future.
    let rebuilt = fill(store)?;
    tracing::info!(entries = rebuilt.entries, "the due index has been brought to format {FORMAT_VERSION}");
    Ok(rebuilt)
}

fn fill(store: &Store) -> Result<Rebuilt, StoreError> {
    let streams = Streams::load(store)?;
    let mut rebuilt = Rebuilt::default();
    let mut batch = Batch::new();
    let (mut in_batch, mut told) = (0, Instant::now());
    let mut kind_of: Option<(MessageId, Kind)> = None;
    for entry in store.range(Table::Recipient, &[], &[0xff; 13])? {
        let (key, value) = match entry {
            Ok(entry) => entry,
            Err(error @ StoreError::Damaged(_)) => {
                tracing::error!(%error, "recipients that cannot be read are left out of the due index");
                continue;
            }
            Err(error) => return Err(error),
        };
        let (id, number) = (keys::message_id(&key)?, keys::number(&key)?);
        let recipient: Recipient = match keys::decode(&value) {
            Ok(recipient) => recipient,
            Err(error) => {
                if rebuilt.damaged.len() < DAMAGED_MAX {
                    rebuilt.damaged.push((id, number, error));
                }
                continue;
            }
        };
        let Some(due) = due_time(&recipient) else { continue };
        let kind = match &kind_of {
            Some((of, kind)) if *of == id => kind,
            _ => &kind_of.insert((id, kind(store, id)?)).1,
        };
        let (key, place) = entry_of(&streams, kind, id, number, &recipient, due);
        batch.put(Table::Due, key.to_bytes(), place.to_value());
        rebuilt.entries += 1;
        in_batch += 1;
        if in_batch == BATCH_ENTRIES {
            store.write(&[std::mem::take(&mut batch)], false)?;
            in_batch = 0;
            if told.elapsed() >= PROGRESS_EVERY {
                tracing::info!(entries = rebuilt.entries, "making the due index");
                told = Instant::now();
            }
        }
    }
    // Keys of the first format begin with 0, those of this one do not.
    batch.delete_range(Table::Due, [], [1]);
    batch.delete(Table::Meta, MARK);
    store.write(&[batch], true)?;
    store.set_format(FORMAT_VERSION)?;
    Ok(rebuilt)
}

/// Where a recipient that waits belongs in the index.
pub(super) fn entry_of(
    streams: &Streams,
    kind: &Kind,
    id: MessageId,
    number: u32,
    recipient: &Recipient,
    due: Millis,
) -> (DueKey, Place) {
    let (lane, place) = (streams.lane_for(&kind.stream, kind.is_clients, recipient), Place::of(recipient));
    (DueKey { lane, part: place.part(), at: Position { due, id, number } }, place)
}

/// By what of a message the lanes of its recipients are chosen.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    stream: String,
    /// A client of ours sent it.
    is_clients: bool,
}

impl From<&Message> for Kind {
    fn from(message: &Message) -> Kind {
        Kind { stream: message.stream.clone(), is_clients: message.origin.door.is_for_clients() }
    }
}

/// If the message cannot be read, its entry shows that when its time comes.
pub(super) fn kind(store: &Store, id: MessageId) -> Result<Kind, StoreError> {
    let message = store.get(Table::Message, &id.to_key())?.map(|bytes| keys::decode::<Message>(&bytes));
    let unknown = || Kind { stream: stream::default_name(), is_clients: true };
    Ok(message.and_then(Result::ok).map_or_else(unknown, |message| Kind::from(&message)))
}

impl Queue {
    /// Removes entries that a scan found without a delivery, unless they have one after all: each is
    /// looked at again under the lock of its message. A recipient that waits elsewhere in the index
    /// than it should is put where it belongs. Gives how many entries were wrong.
    pub async fn mend(&self, stale: &[Stale]) -> Result<usize, StoreError> {
        let mut by_message: BTreeMap<MessageId, Vec<DueKey>> = BTreeMap::new();
        for Stale { key } in stale {
            by_message.entry(key.at.id).or_default().push(*key);
        }
        let mut wrong = 0;
        for (id, entries) in by_message {
            let _lock = self.lock(id).await;
            let mut batch = Batch::new();
            let mut announced = Vec::new();
            let kind = kind(&self.store, id)?;
            for key in entries {
                let record = self.store.get(Table::Recipient, &keys::recipient(id, key.at.number))?;
                let Ok(recipient) = record.map(|bytes| keys::decode::<Recipient>(&bytes)).transpose() else { continue };
                let right = recipient.as_ref().and_then(|recipient| {
                    let due = due_time(recipient)?;
                    Some(entry_of(&self.streams(), &kind, id, key.at.number, recipient, due))
                });
                let mut is_right = false;
                if let Some((right, place)) = right {
                    is_right = right == key;
                    batch.put(Table::Due, right.to_bytes(), place.to_value());
                    announced.push((right.lane, place, right.at.due));
                }
                if !is_right && self.store.get(Table::Due, &key.to_bytes())?.is_some() {
                    batch.delete(Table::Due, key.to_bytes());
                    wrong += 1;
                }
            }
            if !batch.is_empty() {
                self.commit(batch, false).await?;
            }
            self.claims.announce(announced.into_iter());
        }
        Ok(wrong)
    }

    /// Shows entries to the scans again, which had gone past them.
    pub fn look_again(&self, entries: &[Stale]) {
        self.claims.look_again(entries.iter().map(|Stale { key }| *key));
    }

    /// As [`rebuild_due_index`], while the queue is at work: every recipient that waits gets its entry,
    /// a message at a time. Entries too many are removed by the scans that meet them.
    pub async fn rebuild_due_index(&self) -> Result<Rebuilt, StoreError> {
        let mut rebuilt = Rebuilt::default();
        let mut after: Option<MessageId> = None;
        while let Some(id) = self.next_message_with_recipients(after)? {
            after = Some(id);
            let _lock = self.lock(id).await;
            let kind = kind(&self.store, id)?;
            let mut batch = Batch::new();
            for entry in self.store.prefix(Table::Recipient, &id.to_key())? {
                let (key, value) = entry?;
                let number = keys::number(&key)?;
                match keys::decode::<Recipient>(&value) {
                    Ok(recipient) => {
                        let Some(due) = due_time(&recipient) else { continue };
                        let (key, place) = entry_of(&self.streams(), &kind, id, number, &recipient, due);
                        batch.put(Table::Due, key.to_bytes(), place.to_value());
                        rebuilt.entries += 1;
                    }
                    Err(error) => {
                        self.claims.set_aside(id, number, &error, self.clock.now());
                        if rebuilt.damaged.len() < DAMAGED_MAX {
                            rebuilt.damaged.push((id, number, error));
                        }
                    }
                }
            }
            if !batch.is_empty() {
                self.commit(batch, false).await?;
            }
        }
        self.claims.announce_all();
        Ok(rebuilt)
    }

    fn next_message_with_recipients(&self, after: Option<MessageId>) -> Result<Option<MessageId>, StoreError> {
        let Some(from) = after.map_or(Some(0), |after| after.as_u64().checked_add(1)) else { return Ok(None) };
        let first = self.store.range(Table::Recipient, &from.to_be_bytes(), &[0xff; 13])?.next().transpose()?;
        first.map(|(key, _)| keys::message_id(&key)).transpose()
    }
}
