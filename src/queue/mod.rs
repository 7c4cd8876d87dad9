//! The queue: messages and deliveries on disk, what is due, and who works on it.
//!
//! Promises: [`Queue::enqueue`] returns after a synced write of body, envelope and schedule; a
//! recipient is claimed by at most one attempt at a time; every step is one atomic batch (the table
//! in `record`); nothing in memory grows with what waits on disk. Claims live in memory only, so
//! nothing can stay locked after a crash.
//!
//! Left out: which way out (decided in `delivery`), what is told to whom (`events`, `bounce`).

pub mod body;
pub mod claim;
pub mod commit;
pub mod keys;
pub mod memory;
pub mod record;
pub mod schedule;

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::clock::{Clock, Millis};
use crate::message::MessageId;
use crate::message::id::IdSource;
use crate::store::{Batch, Store, StoreError, Table};

use claim::Claims;
use commit::Committer;
use memory::Memory;
use record::{Message, Recipient, Status};

/// Longest piece of a body in one record, in bytes.
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// Locks that keep the last two recipients of one message from both, or neither, being the last.
const MESSAGE_LOCKS: usize = 256;

/// A message that is about to be queued.
#[derive(Debug)]
pub struct NewMessage {
    pub message: Message,
    /// In pieces of at most [`CHUNK_BYTES_MAX`]; without what `message.streamed` tells of, which is
    /// written already.
    pub body: Vec<Bytes>,
    pub recipients: Vec<Recipient>,
    /// Goes into the same batch: the story, counters, a pickup claim.
    pub extra: Batch,
}

/// A recipient that is to be tried, claimed for the caller.
#[derive(Debug)]
pub struct Claimed {
    pub message: Arc<Message>,
    pub recipients: Vec<(u32, Recipient)>,
    /// Only on the fast path: what was committed a moment ago and needs no reading back.
    pub body: Option<FreshBody>,
}

/// The `message.chunks` first pieces of a body, in memory. They pay for themselves (see `memory`).
#[derive(Debug)]
pub struct FreshBody {
    pub chunks: Vec<Bytes>,
}

/// One change of a recipient after an attempt or by a person.
#[derive(Debug)]
pub struct Step {
    pub number: u32,
    /// As it was before.
    pub before: Recipient,
    /// None: its fate is sealed, the record goes.
    pub after: Option<Recipient>,
}

pub struct Queue {
    store: Arc<Store>,
    committer: Committer,
    ids: IdSource,
    clock: Clock,
    claims: Arc<Claims>,
    memory: Memory,
    incoming: body::Incoming,
    fresh: mpsc::UnboundedSender<Claimed>,
    message_locks: Vec<tokio::sync::Mutex<()>>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Queue({:?})", self.store)
    }
}

impl Queue {
    /// The receiver gives what was just committed and claimed for a first attempt; its length is
    /// bounded by the claims. `memory`: bytes of bodies held at one time (`queue.memory`).
    pub fn new(
        store: Arc<Store>,
        clock: Clock,
        sync: bool,
        memory: u64,
    ) -> Result<(Arc<Queue>, mpsc::UnboundedReceiver<Claimed>), StoreError> {
        let (fresh, fresh_receiver) = mpsc::unbounded_channel();
        let last = highest_id(&store)?;
        body::forget_incoming(&store)?;
        let queue = Queue {
            committer: Committer::start(store.clone(), sync),
            ids: IdSource::new(0, last),
            clock,
            claims: Arc::new(Claims::new()),
            memory: Memory::new(memory),
            incoming: body::Incoming::default(),
            fresh,
            message_locks: (0..MESSAGE_LOCKS).map(|_| tokio::sync::Mutex::new(())).collect(),
            store,
        };
        Ok((Arc::new(queue), fresh_receiver))
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// The one budget for bodies.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    pub fn new_id(&self) -> MessageId {
        self.ids.next(self.clock.now())
    }

    /// Queues a message. On `Ok` it is on disk and will be tried; on `Err` it is not queued.
    pub async fn enqueue(&self, new: NewMessage) -> Result<(), StoreError> {
        let NewMessage { message, body, recipients, extra } = new;
        let id = message.id;
        let now = self.clock.now();
        let mut batch = Batch::new();
        batch.put(Table::Message, id.to_key(), keys::encode(&message)?);
        for (number, chunk) in body.iter().enumerate() {
            batch.put(Table::Body, keys::body(id, number as u32), chunk.clone());
        }
        let is_streamed = message.streamed.is_some();
        if is_streamed {
            self.incoming.check(id, &self.store)?;
            batch.delete(Table::Incoming, id.to_key());
        }
        for (number, recipient) in recipients.iter().enumerate() {
            put_recipient(&mut batch, id, number as u32, recipient)?;
        }
        batch.append(extra);

        let due_now: Vec<u32> = due_recipients(&recipients, now).map(|(number, _)| number).collect();
        let reserved = self.claims.reserve(id, due_recipients(&recipients, now));
        let written = self.committer.commit(batch, true).await;
        if is_streamed && written.is_ok() {
            self.incoming.committed(id);
        }
        match (reserved, &written) {
            (true, Ok(())) => self.hand_over(message, body, recipients, &due_now),
            (true, Err(_)) => due_now.iter().for_each(|number| self.claims.release(id, *number)),
            (false, _) => {
                let earliest = recipients.iter().filter_map(due_time).min();
                self.claims.announce(earliest.unwrap_or(now));
            }
        }
        written
    }

    /// The fast path: from the commit to the dispatcher without reading back.
    fn hand_over(&self, message: Message, body: Vec<Bytes>, recipients: Vec<Recipient>, due_now: &[u32]) {
        let recipients = recipients
            .into_iter()
            .enumerate()
            .map(|(number, recipient)| (number as u32, recipient))
            .filter(|(number, _)| due_now.contains(number))
            .collect();
        // Where memory is short it is read back when its turn comes.
        let body = self.memory.is_ample().then_some(FreshBody { chunks: body });
        // A closed channel means that the dispatcher has stopped: the next start finds the message.
        let _ = self.fresh.send(Claimed { message: Arc::new(message), recipients, body });
    }

    /// Takes recipients whose time has come, oldest first, and tells when the next one is due.
    pub fn claim_due(&self) -> Result<claim::Scan, StoreError> {
        claim::claim_due(&self.store, &self.claims, self.clock.now())
    }

    pub fn message(&self, id: MessageId) -> Result<Option<Message>, StoreError> {
        self.store.get(Table::Message, &id.to_key())?.map(|bytes| keys::decode(&bytes)).transpose()
    }

    pub fn recipients(&self, id: MessageId) -> Result<Vec<(u32, Recipient)>, StoreError> {
        let entries = self.store.prefix(Table::Recipient, &id.to_key())?;
        entries.map(|entry| entry.and_then(|(key, value)| Ok((keys::number(&key)?, keys::decode(&value)?)))).collect()
    }

    /// Shows the messages after `after`, oldest first, until `show` breaks. Holds one at a time. One
    /// whose records are damaged is told of in the log and passed over, so that it hides no other.
    pub fn walk(
        &self,
        after: Option<MessageId>,
        mut show: impl FnMut(Message, Vec<(u32, Recipient)>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let from = after.map_or(0, |after| after.as_u64().saturating_add(1)).to_be_bytes();
        for entry in self.store.range(Table::Message, &from, &[0xff; 9])? {
            let (key, value) = entry?;
            let read = || -> Result<(Message, Vec<(u32, Recipient)>), StoreError> {
                let message: Message = keys::decode(&value)?;
                let recipients = self.recipients(message.id)?;
                Ok((message, recipients))
            };
            let (message, recipients) = match read() {
                Ok(read) => read,
                Err(error @ StoreError::Damaged(_)) => {
                    let id = MessageId::from_prefix(&key).map(|id| id.to_string());
                    tracing::error!(id, %error, "a queued message cannot be read and is left out of the list");
                    continue;
                }
                Err(error) => return Err(error),
            };
            if show(message, recipients).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Changes one recipient for a person, unless an attempt on it is under way (then false). `extra`
    /// is written with it. `change` gives None to leave it as it is, Some(None) to seal its fate.
    pub async fn change(
        &self,
        id: MessageId,
        number: u32,
        change: impl FnOnce(&Message, &Recipient) -> Option<(Option<Recipient>, Batch)>,
    ) -> Result<bool, StoreError> {
        let _lock = self.lock(id).await;
        if !self.claims.try_hold(id, number) {
            return Ok(false);
        }
        let result = self.change_held(id, number, change).await;
        self.claims.release(id, number);
        if let Ok(Some(Recipient { status: Status::Waiting { due }, .. })) = &result {
            self.claims.announce(*due);
        }
        result.map(|after| after.is_some())
    }

    async fn change_held(
        &self,
        id: MessageId,
        number: u32,
        change: impl FnOnce(&Message, &Recipient) -> Option<(Option<Recipient>, Batch)>,
    ) -> Result<Option<Recipient>, StoreError> {
        let Some(message) = self.message(id)? else { return Ok(None) };
        let Some(bytes) = self.store.get(Table::Recipient, &keys::recipient(id, number))? else { return Ok(None) };
        let before: Recipient = keys::decode(&bytes)?;
        let Some((after, extra)) = change(&message, &before) else { return Ok(None) };
        let changed = after.clone().unwrap_or_else(|| before.clone());
        let mut batch = self.step_batch(&message, &[Step { number, before, after }], &[])?;
        batch.append(extra);
        self.commit(batch, true).await?;
        Ok(Some(changed))
    }

    /// The lock under which steps of this message are made.
    pub async fn lock(&self, id: MessageId) -> tokio::sync::MutexGuard<'_, ()> {
        // Ids made in one millisecond differ in their low bits only.
        self.message_locks[id.as_u64() as usize % MESSAGE_LOCKS].lock().await
    }

    /// The writes for `steps`, and for recipients that take the place of one of them; the message and its body go with the last recipient. To be called,
    /// and its batch committed, under [`Queue::lock`].
    pub fn step_batch(&self, message: &Message, steps: &[Step], added: &[Recipient]) -> Result<Batch, StoreError> {
        let id = message.id;
        let mut batch = Batch::new();
        for step in steps {
            if let Status::Waiting { due } = step.before.status {
                batch.delete(Table::Due, keys::due(due, lane(&step.before), id, step.number));
            }
            match &step.after {
                Some(after) => put_recipient(&mut batch, id, step.number, after)?,
                None => batch.delete(Table::Recipient, keys::recipient(id, step.number)),
            }
        }
        let sealed = |number: u32| steps.iter().any(|step| step.number == number && step.after.is_none());
        if !added.is_empty() {
            let mut next = message.recipients;
            // Their keys only: a record beside this one that is damaged must not hold this step up.
            for entry in self.store.prefix(Table::Recipient, &id.to_key())? {
                next = next.max(keys::number(&entry?.0)?.saturating_add(1));
            }
            for (number, recipient) in (next..).zip(added) {
                put_recipient(&mut batch, id, number, recipient)?;
            }
            return Ok(batch);
        }
        if steps.iter().all(|step| step.after.is_none()) && (is_whole(message, steps) || !self.has_other(id, sealed)?) {
            batch.delete(Table::Message, id.to_key());
            for number in message.body_numbers() {
                batch.delete(Table::Body, keys::body(id, number));
            }
        }
        Ok(batch)
    }

    fn has_other(&self, id: MessageId, sealed: impl Fn(u32) -> bool) -> Result<bool, StoreError> {
        for entry in self.store.prefix(Table::Recipient, &id.to_key())? {
            if !sealed(keys::number(&entry?.0)?) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes a batch; with `sync` it is on disk on return, else with the next group.
    pub async fn commit(&self, batch: Batch, sync: bool) -> Result<(), StoreError> {
        self.committer.commit(batch, sync).await
    }

    /// Gives recipients back after their steps are written.
    pub fn release(&self, id: MessageId, steps: &[Step], added: &[Recipient]) {
        for step in steps {
            self.claims.release(id, step.number);
        }
        let waiting = steps.iter().filter_map(|step| step.after.as_ref()).chain(added).filter_map(due_time);
        if let Some(earliest) = waiting.min() {
            self.claims.announce(earliest);
        }
    }
}

fn put_recipient(batch: &mut Batch, id: MessageId, number: u32, recipient: &Recipient) -> Result<(), StoreError> {
    batch.put(Table::Recipient, keys::recipient(id, number), keys::encode(recipient)?);
    if let Status::Waiting { due } = recipient.status {
        batch.put(Table::Due, keys::due(due, lane(recipient), id, number), Bytes::new());
    }
    Ok(())
}

/// These are all recipients that the message was queued for, so there are no others: those that take
/// the place of one come only when it goes. Saves a look at the disk for most messages.
fn is_whole(message: &Message, steps: &[Step]) -> bool {
    let first = |step: &&Step| step.number < message.recipients;
    let numbers: HashSet<u32> = steps.iter().filter(first).map(|step| step.number).collect();
    numbers.len() == message.recipients as usize
}

/// New mail and retries have lanes of their own in the due index.
fn lane(recipient: &Recipient) -> u8 {
    u8::from(recipient.attempts > 0)
}

fn due_time(recipient: &Recipient) -> Option<Millis> {
    match recipient.status {
        Status::Waiting { due } => Some(due),
        _ => None,
    }
}

fn due_recipients(recipients: &[Recipient], now: Millis) -> impl Iterator<Item = (u32, &Recipient)> {
    let is_due = move |recipient: &Recipient| due_time(recipient).is_some_and(|due| due <= now);
    recipients.iter().enumerate().filter(move |(_, r)| is_due(r)).map(|(number, r)| (number as u32, r))
}

/// The newest id of an earlier run, so that ids grow even if the clock went back.
fn highest_id(store: &Store) -> Result<u64, StoreError> {
    let mut highest = 0;
    for table in [Table::Message, Table::Journal, Table::Incoming] {
        if let Some((key, _)) = store.last(table)? {
            highest = highest.max(keys::message_id(&key)?.as_u64());
        }
    }
    Ok(highest)
}
