//! Bodies in the store: written while they come in, and read back.
//!
//! The beginning of a message is written with its commit. The rest of a large one goes ahead, chunk by
//! chunk and without a sync of its own; a record in `Incoming`, written with the first chunk and
//! deleted by the commit, tells that these chunks belong to no message yet. They are deleted when the
//! session gives up, or at the next start.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::message::arc;
use crate::message::body::Hashing;
use crate::message::content::Rest;
use crate::message::header::Headers;
use crate::message::{Content, MessageId};
use crate::store::{Batch, Store, StoreError, Table};

use super::record::{self, Message};
use super::{Queue, keys};

/// Messages whose chunks are in the store and that are not committed, each with the count of
/// [`Store::reopened`] at its first chunk.
#[derive(Debug, Default)]
pub(super) struct Incoming(Mutex<HashMap<MessageId, u64>>);

impl Incoming {
    fn lock(&self) -> MutexGuard<'_, HashMap<MessageId, u64>> {
        // Nothing panics half-way in here.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begun(&self, id: MessageId, store: &Store) {
        self.put(id, store.reopened());
    }

    /// From now on it is the commit that decides what becomes of the chunks. Fails if the store has failed
    /// since the first of them: what is written without a sync, acknowledged or not, may be lost with that.
    pub(super) fn take(&self, id: MessageId, store: &Store) -> Result<u64, StoreError> {
        let mut incoming = self.lock();
        match incoming.get(&id).copied() {
            Some(reopened) if reopened == store.reopened() => {
                incoming.remove(&id);
                Ok(reopened)
            }
            _ => Err(StoreError::Failed("it was opened again while the message came in".to_owned())),
        }
    }

    /// It was not committed after all.
    pub(super) fn put(&self, id: MessageId, reopened: u64) {
        self.lock().insert(id, reopened);
    }
}

/// Writes the rest of a message whose beginning is in memory. If it is dropped, or what comes of it is
/// dropped without a commit, the chunks are deleted.
#[derive(Debug)]
pub struct BodyWriter {
    chunks: Chunks,
    bytes: u64,
    is_ascii: bool,
    hashing: Hashing,
}

/// The chunks of a message that is not committed, or was.
struct Chunks {
    queue: Arc<Queue>,
    id: MessageId,
    written: AtomicU32,
}

impl std::fmt::Debug for Chunks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Chunks({})", self.id)
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        if self.queue.incoming.lock().remove(&self.id).is_none() {
            return;
        }
        let mut batch = Batch::new();
        for number in record::streamed_numbers(self.written.load(Ordering::Acquire)) {
            batch.delete(Table::Body, keys::body(self.id, number));
        }
        batch.delete(Table::Incoming, self.id.to_key());
        // Without a runtime, or where the write fails, the next start does it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let queue = self.queue.clone();
            runtime.spawn(async move {
                if let Err(error) = queue.commit(batch, false).await {
                    tracing::warn!(%error, "the rest of a message that was given up stays until the next start");
                }
            });
        }
    }
}

impl BodyWriter {
    /// Writes a piece of at most [`super::CHUNK_BYTES_MAX`]; it can be read back on return, but is not
    /// on disk before the commit.
    pub async fn push(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        self.bytes += chunk.len() as u64;
        self.is_ascii = self.is_ascii && chunk.is_ascii();
        self.hashing.push(&chunk);
        let Chunks { queue, id, written } = &self.chunks;
        let mut batch = Batch::new();
        // Counted before it is written: a write that is not waited for is deleted all the same.
        let before = written.fetch_add(1, Ordering::AcqRel);
        if before == 0 {
            queue.incoming.begun(*id, &queue.store);
            batch.put(Table::Incoming, id.to_key(), Bytes::new());
        }
        batch.put(Table::Body, keys::body(*id, record::STREAMED_FROM.saturating_add(before)), chunk);
        queue.commit(batch, false).await
    }

    pub fn finish(self) -> Rest {
        Rest {
            id: self.chunks.id,
            chunks: self.chunks.written.load(Ordering::Acquire),
            bytes: self.bytes,
            is_ascii: self.is_ascii,
            hashes: self.hashing.finish(),
            keep: Arc::new(self.chunks),
        }
    }
}

impl Queue {
    /// For the rest of a message that begins with `head`: its header section, and some of its body.
    pub fn begin_body(self: &Arc<Queue>, head: &[u8]) -> BodyWriter {
        let headers = Headers::parse(head);
        // We sign in the relaxed form; others may have signed in either.
        let signed = ["DKIM-Signature", arc::SIGNATURE].iter().any(|name| headers.get(name).is_some());
        let mut hashing = Hashing::new(signed);
        hashing.push(headers.body());
        let chunks = Chunks { queue: self.clone(), id: self.new_id(), written: AtomicU32::new(0) };
        BodyWriter { chunks, bytes: 0, is_ascii: true, hashing }
    }

    /// The id for a message with this content.
    pub fn id_for(&self, content: &Content) -> MessageId {
        content.rest().map_or_else(|| self.new_id(), |rest| rest.id)
    }

    /// The whole body. Only for what is known to be small, or where nothing else runs.
    pub fn body(&self, message: &Message) -> Result<Vec<Bytes>, StoreError> {
        message.body_numbers().map(|number| self.body_chunk(message.id, number)).collect()
    }

    /// One record of [`Message::body_numbers`].
    pub fn body_chunk(&self, id: MessageId, number: u32) -> Result<Bytes, StoreError> {
        let missing = || StoreError::Damaged(format!("body {number} of message {id}"));
        Ok(Bytes::from(self.store.get(Table::Body, &keys::body(id, number))?.ok_or_else(missing)?))
    }
}

/// Deletes what an earlier run wrote of messages that it never took. What cannot be read is left.
pub(super) fn forget_incoming(store: &Store) -> Result<(), StoreError> {
    let mut batch = Batch::new();
    for entry in store.prefix(Table::Incoming, b"")? {
        let id = match entry.and_then(|(key, _)| keys::message_id(&key)) {
            Ok(id) => id,
            Err(StoreError::Damaged(_)) => continue,
            Err(error) => return Err(error),
        };
        batch.delete(Table::Incoming, id.to_key());
        // The commit deletes the mark. Should both be there all the same, that must not cost a message.
        if matches!(store.get(Table::Message, &id.to_key()), Ok(None)) {
            batch.delete_range(Table::Body, id.to_key(), id.as_u64().saturating_add(1).to_be_bytes());
        }
    }
    if batch.is_empty() { Ok(()) } else { store.write(std::slice::from_ref(&batch), false) }
}
