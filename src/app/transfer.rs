//! Messages out of the queue and into it again, envelope and all: through the running server, or on
//! its store while it is stopped.
//!
//! An import is not a new arrival: nothing is checked, signed or added, the states stay what they were,
//! only the id is new. The batch that queues a message also writes a record under the name and content
//! of its file; an import that is repeated because it was interrupted finds it and queues nothing
//! again. When the file is marked as done the record is forgotten.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest;
use bytes::Bytes;

use crate::admin::Trouble;
use crate::admin::transfer::{Exported, Imported};
use crate::clock::Clock;
use crate::config::{Config, Durability};
use crate::events::Event;
use crate::events::journal::Journal;
use crate::message::MessageId;
use crate::queue::record::{Message, Status};
use crate::queue::{CHUNK_BYTES_MAX, NewMessage, Queue};
use crate::store::{Batch, StoreError, Table};

/// What the keys of the records begin with, in `Table::Meta`.
const RECORD_PREFIX: &[u8] = b"import/";

/// The queue, as far as messages are carried out of it and into it.
#[derive(Debug)]
pub struct Transfer {
    pub clock: Clock,
    pub queue: Arc<Queue>,
    pub journal: Arc<Journal>,
    /// Keys that are being imported.
    running: Mutex<HashSet<String>>,
}

impl Transfer {
    pub fn new(clock: Clock, queue: Arc<Queue>, journal: Arc<Journal>) -> Transfer {
        Transfer { clock, queue, journal, running: Mutex::default() }
    }

    /// On the store of a server that is stopped. Nothing is delivered meanwhile.
    pub fn open(config: &Config, clock: Clock) -> Result<Transfer, super::Error> {
        let store = super::open_store(config)?;
        let sync = config.queue.durability == Durability::Sync;
        let opened = Queue::new(store, clock.clone(), sync, config.queue.memory);
        let failed = |source| super::Error::Store { path: super::store_path(config), source };
        let (queue, _nobody_delivers) = opened.map_err(failed)?;
        let journal = Arc::new(Journal::new(clock.clone()));
        Ok(Transfer::new(clock, queue, journal))
    }

    /// A message as it stands; none if it is not queued (any more).
    pub async fn export(&self, id: MessageId) -> Result<Option<(Exported, Vec<Bytes>)>, Trouble> {
        let queue = self.queue.clone();
        super::operator::blocking(move || {
            let Some(message) = queue.message(id)? else { return Ok(None) };
            let recipients: Vec<_> = queue.recipients(id)?.into_iter().map(|(_, recipient)| recipient).collect();
            let body = match queue.body(&message) {
                Ok(body) if !recipients.is_empty() => body,
                // Its last recipient went while we looked.
                _ if queue.message(id)?.is_none() => return Ok(None),
                Ok(_) => return Err(StoreError::Damaged(format!("message {id} has no recipients"))),
                Err(error) => return Err(error),
            };
            let exported = Exported::new(message, recipients, &body.concat());
            Ok(Some((exported, body)))
        })
        .await
    }

    /// Queues what was exported. `name`: of its file, so that the same file is not imported twice.
    pub async fn import(&self, name: &str, exported: Exported, body: Bytes) -> Result<Imported, StoreError> {
        let key = key(name, &exported, &body)?;
        let _running = Running::begin(&self.running, &key)
            .ok_or_else(|| StoreError::Failed("this file is being imported already".into()))?;
        let record = [RECORD_PREFIX, key.as_bytes()].concat();
        if let Some(found) = self.queue.store().get(Table::Meta, &record)?
            && let Some(id) = MessageId::from_prefix(&found)
        {
            return Ok(Imported { id, already: true, key });
        }
        let id = self.queue.new_id();
        let Exported { message: old, recipients, .. } = exported;
        let body = pieces(body);
        let message = Message {
            id,
            size: body.iter().map(|piece| piece.len() as u64).sum(),
            chunks: body.len() as u32,
            streamed: None,
            recipients: recipients.len() as u32,
            ..old.clone()
        };
        let mut telling = self.journal.begin();
        telling.tell(id, imported(&old, &message));
        for recipient in &recipients {
            if let Status::Held(hold) = &recipient.status {
                telling.tell(id, Event::Held { recipient: recipient.address.clone(), reason: hold.reason.clone() });
            }
        }
        let mut extra = telling.take_batch();
        extra.put(Table::Meta, record, id.to_key().to_vec());
        self.queue.enqueue(NewMessage { message, body, recipients, extra }).await?;
        telling.log();
        Ok(Imported { id, already: false, key })
    }

    /// The files of these imports are marked as done: their records are not needed any more.
    pub async fn forget_imports(&self, keys: Vec<String>) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        for key in keys {
            batch.delete(Table::Meta, [RECORD_PREFIX, key.as_bytes()].concat());
        }
        self.queue.commit(batch, false).await
    }
}

/// Of the file's name and content.
fn key(name: &str, exported: &Exported, body: &[u8]) -> Result<String, StoreError> {
    let line = exported.to_line().map_err(|error| StoreError::Failed(error.to_string()))?;
    let mut digest = digest::Context::new(&digest::SHA256);
    for part in [name.as_bytes(), b"\0", line.as_bytes(), b"\0", body] {
        digest.update(part);
    }
    Ok(digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn pieces(mut body: Bytes) -> Vec<Bytes> {
    let mut pieces = Vec::with_capacity(body.len() / CHUNK_BYTES_MAX + 1);
    while !body.is_empty() {
        pieces.push(body.split_to(body.len().min(CHUNK_BYTES_MAX)));
    }
    pieces
}

fn imported(old: &Message, new: &Message) -> Event {
    Event::Imported {
        was: old.id,
        origin: new.origin.clone(),
        from: new.mail_from.clone(),
        recipients: new.recipients,
        size: new.size,
        message_id: new.message_id.clone(),
        subject: new.subject.clone(),
    }
}

/// A key in the set of those that are being imported.
struct Running<'a> {
    all: &'a Mutex<HashSet<String>>,
    key: String,
}

impl<'a> Running<'a> {
    fn begin(all: &'a Mutex<HashSet<String>>, key: &str) -> Option<Running<'a>> {
        let new = all.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned());
        new.then(|| Running { all, key: key.to_owned() })
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
