//! The queue: messages and deliveries on disk, what is due, and who works on it.
//!
//! Promises: [`Queue::enqueue`] returns after a synced write of body, envelope and schedule; a
//! recipient is claimed by at most one attempt at a time; every step is one atomic batch (the table
//! in `record`); nothing in memory grows with what waits on disk. Claims live in memory only, so
//! nothing can stay locked after a crash.
//!
//! Left out: which way out (decided in `delivery`), what is told to whom (`events`, `bounce`).

pub mod body;
pub mod captured;
pub mod check;
pub mod claim;
pub mod commit;
pub mod gate;
pub mod keys;
pub mod lane;
pub mod memory;
pub mod pace;
mod rebuild;
pub mod record;
pub mod schedule;
pub mod shares;
pub mod suspend;

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::clock::{Clock, Millis};
use crate::config;
use crate::current::Current;
use crate::message::MessageId;
use crate::message::id::IdSource;
use crate::store::{Batch, Store, StoreError, Table};

use claim::{Claims, Damaged, Scan};
use commit::{Committer, Hand};
use gate::Gates;
use keys::{DueKey, Position};
use lane::{Lane, Place, Streams};
use memory::Memory;
use record::{Message, Recipient, Status};
use suspend::{LIFTING, Suspension};

pub use rebuild::{Rebuilt, rebuild_due_index};

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
    /// Out of whose share it is.
    pub lane: Lane,
    /// Tells this claim from a later one of the same recipient.
    ticket: u64,
}

impl Claimed {
    /// What [`Queue::begin`] wants to know.
    pub fn ticket(&self) -> u64 {
        self.ticket
    }
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

/// A message that a walk along the queue meets.
#[derive(Debug)]
pub enum Walked {
    Message(Box<Message>, Vec<(u32, Recipient)>),
    /// Its record or one of its recipients' cannot be read.
    Damaged {
        id: MessageId,
        why: String,
    },
}

pub struct Queue {
    store: Arc<Store>,
    committer: Committer,
    ids: IdSource,
    clock: Clock,
    claims: Arc<Claims>,
    memory: Memory,
    incoming: body::Incoming,
    streams: Current<Streams>,
    gates: Arc<Gates>,
    /// One write of what the gates keep at a time, so that an older one never follows a newer.
    keeping: tokio::sync::Mutex<()>,
    fresh: mpsc::UnboundedSender<Claimed>,
    message_locks: Vec<tokio::sync::Mutex<()>>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Queue({:?})", self.store)
    }
}

impl Queue {
    /// With the streams that the store knows, and no limits on them.
    pub fn new(
        store: Arc<Store>,
        clock: Clock,
        sync: bool,
        memory: u64,
    ) -> Result<(Arc<Queue>, mpsc::UnboundedReceiver<Claimed>), StoreError> {
        let streams = Streams::load(&store)?;
        let committer = Committer::start(store.clone(), sync);
        Queue::open(store, clock, committer, memory, streams, &BTreeMap::new())
    }

    /// As [`Queue::with_streams`]; what it commits is written when the [`Hand`] does it.
    pub fn by_hand(
        store: Arc<Store>,
        clock: Clock,
        memory: u64,
        settings: &BTreeMap<String, config::Stream>,
    ) -> Result<(Arc<Queue>, mpsc::UnboundedReceiver<Claimed>, Hand), StoreError> {
        let streams = Streams::configure(&store, settings.keys().map(String::as_str))?;
        let (committer, hand) = Committer::by_hand(store.clone());
        let (queue, fresh) = Queue::open(store, clock, committer, memory, streams, settings)?;
        Ok((queue, fresh, hand))
    }

    /// With the streams of the configuration. The receiver gives what was just committed and claimed for a
    /// first attempt; its length is bounded by the claims. `memory`: bytes of bodies held at one time
    /// (`queue.memory`).
    pub fn with_streams(
        store: Arc<Store>,
        clock: Clock,
        sync: bool,
        memory: u64,
        settings: &BTreeMap<String, config::Stream>,
    ) -> Result<(Arc<Queue>, mpsc::UnboundedReceiver<Claimed>), StoreError> {
        let streams = Streams::configure(&store, settings.keys().map(String::as_str))?;
        let committer = Committer::start(store.clone(), sync);
        Queue::open(store, clock, committer, memory, streams, settings)
    }

    fn open(
        store: Arc<Store>,
        clock: Clock,
        committer: Committer,
        memory: u64,
        streams: Streams,
        settings: &BTreeMap<String, config::Stream>,
    ) -> Result<(Arc<Queue>, mpsc::UnboundedReceiver<Claimed>), StoreError> {
        let (fresh, fresh_receiver) = mpsc::unbounded_channel();
        let last = highest_id(&store)?;
        body::forget_incoming(&store)?;
        let claims = Arc::new(Claims::new(&streams));
        for (id, number, why) in rebuild::upgrade(&store)?.damaged {
            claims.set_aside(id, number, &why, clock.now());
        }
        captured::upgrade(&store)?;
        let gates = Arc::new(Gates::load(&store, &streams, settings, claims.clone(), clock.clone())?);
        let queue = Queue {
            gates,
            keeping: tokio::sync::Mutex::new(()),
            committer,
            ids: IdSource::new(0, last),
            clock,
            claims,
            memory: Memory::new(memory),
            incoming: body::Incoming::default(),
            streams: Current::new(streams),
            fresh,
            message_locks: (0..MESSAGE_LOCKS).map(|_| tokio::sync::Mutex::new(())).collect(),
            store,
        };
        Ok((Arc::new(queue), fresh_receiver))
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// What the committer did so far.
    pub fn commit_counts(&self) -> &commit::CommitCounts {
        self.committer.counts()
    }

    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// What keeps streams from sending.
    pub fn gates(&self) -> &Arc<Gates> {
        &self.gates
    }

    /// Writes down how much the streams have sent, where that has changed. To be done before an attempt
    /// of this lane begins, and when it has ended.
    pub async fn keep_pace(&self, lane: Lane) -> Result<(), StoreError> {
        if !self.gates.is_paced(lane) {
            return Ok(());
        }
        let _one = self.keeping.lock().await;
        let (batch, written) = self.gates.unkept()?;
        if !batch.is_empty() {
            self.commit(batch, true).await?;
            self.gates.kept(&written);
        }
        Ok(())
    }

    /// From now on nothing of this starts, also after a restart. False: it was so already.
    pub async fn suspend(&self, what: &Suspension) -> Result<bool, StoreError> {
        let _one = self.keeping.lock().await;
        if self.gates.since(what).is_some_and(|since| since != LIFTING) {
            return Ok(false);
        }
        self.write_suspension(what, Some(self.clock.now().max(LIFTING + 1))).await?;
        Ok(true)
    }

    /// Lets it go again: all that is due starts as it can. False: it was not suspended. What was put
    /// aside one by one (for a smart host, a target) is still to be released; then comes [`Queue::lifted`].
    pub async fn lift(&self, what: &Suspension) -> Result<bool, StoreError> {
        let _one = self.keeping.lock().await;
        if self.gates.since(what).is_none_or(|since| since == LIFTING) {
            return Ok(false);
        }
        let rest = what.held_because().is_some().then_some(LIFTING);
        self.write_suspension(what, rest).await?;
        Ok(true)
    }

    /// All that a suspension had put aside is due again.
    pub async fn lifted(&self, what: &Suspension) -> Result<(), StoreError> {
        let _one = self.keeping.lock().await;
        if self.gates.since(what) == Some(LIFTING) {
            self.write_suspension(what, None).await?;
        }
        Ok(())
    }

    async fn write_suspension(&self, what: &Suspension, since: Option<Millis>) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        match since {
            Some(since) => batch.put(Table::Meta, what.key(), since.to_be_bytes().to_vec()),
            None => batch.delete(Table::Meta, what.key()),
        }
        self.commit(batch, true).await?;
        self.gates.set(what, since);
        Ok(())
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
        if message.streamed.is_some() {
            batch.delete(Table::Incoming, id.to_key());
        }
        for (number, recipient) in recipients.iter().enumerate() {
            self.put_recipient(&mut batch, &message, number as u32, recipient)?;
        }
        batch.append(extra);

        let reserved = self.reserve(&message, &recipients, now);
        let is_claimed = |number: u32| reserved.iter().any(|reserved| reserved.has(number));
        // Those that are not handed over are told of when this goes, also when nobody waits for the
        // commit any more.
        let entries = recipients.iter().filter_map(|recipient| self.entry(&message, recipient)).collect();
        let held = reserved.iter().flat_map(|reserved| &reserved.numbers).copied().collect();
        let mut pending = Pending { claims: &self.claims, id, held, entries };
        self.commit_message(&message, batch).await?;
        if !reserved.is_empty() {
            self.claims.committed(id, pending.held.drain(..));
            let numbered = (0..).zip(&recipients);
            let others = numbered.filter(|(number, _)| !is_claimed(*number));
            pending.entries = others.filter_map(|(_, recipient)| self.entry(&message, recipient)).collect();
            self.hand_over(message, body, recipients, reserved);
        }
        Ok(())
    }

    /// Claims the recipients that can be tried at once, all of a lane or none.
    fn reserve(&self, message: &Message, recipients: &[Recipient], now: Millis) -> Vec<Reserved> {
        let streams = self.streams.load();
        let mut by_lane: BTreeMap<Lane, Vec<(u32, &Recipient)>> = BTreeMap::new();
        for (number, recipient) in (0..).zip(recipients).filter(|(_, recipient)| is_fresh(recipient, now)) {
            by_lane.entry(streams.lane_of(message, recipient)).or_default().push((number, recipient));
        }
        let reserve = |(lane, fresh): (Lane, Vec<(u32, &Recipient)>)| {
            let numbers = fresh.iter().map(|(number, _)| *number).collect();
            let ticket = self.claims.reserve(message.id, lane, fresh.into_iter(), now)?;
            Some(Reserved { lane, ticket, numbers })
        };
        by_lane.into_iter().filter_map(reserve).collect()
    }

    async fn commit_message(&self, message: &Message, batch: Batch) -> Result<(), StoreError> {
        if message.streamed.is_none() {
            return self.committer.commit(batch, true).await;
        }
        // From here on nobody else deletes its chunks, also when nobody waits for the commit any more.
        let reopened = self.incoming.take(message.id, &self.store)?;
        // Between this look and the batch's turn the store may fail, and take the chunks with it.
        let written = self.committer.commit_upon(batch, reopened).await;
        if written.is_err() {
            self.incoming.put(message.id, reopened);
        }
        written
    }

    /// The entry of a recipient in the due index, while it waits.
    fn entry(&self, message: &Message, recipient: &Recipient) -> Option<(Lane, Place, Millis)> {
        let due = due_time(recipient)?;
        Some((self.streams.load().lane_of(message, recipient), Place::of(recipient), due))
    }

    /// The fast path: from the commit to the dispatcher without reading back.
    fn hand_over(&self, message: Message, body: Vec<Bytes>, recipients: Vec<Recipient>, reserved: Vec<Reserved>) {
        let (message, mut numbered) = (Arc::new(message), (0..).zip(recipients).collect::<Vec<_>>());
        for reserved in reserved {
            let (recipients, rest) = numbered.into_iter().partition(|(number, _)| reserved.has(*number));
            numbered = rest;
            // Where memory is short it is read back when its turn comes.
            let body = self.memory.is_ample().then(|| FreshBody { chunks: body.clone() });
            // A closed channel means that the dispatcher has stopped: the next start finds the message.
            let Reserved { lane, ticket, .. } = reserved;
            let _ = self.fresh.send(Claimed { message: message.clone(), recipients, body, lane, ticket });
        }
    }

    /// Takes recipients whose time has come, and tells when the next one is due. The oldest of a place
    /// come first; lanes and places have their turns.
    pub fn claim_due(&self) -> Result<Scan, StoreError> {
        claim::claim_due(&self.store, &self.claims, &self.streams.load(), self.clock.now())
    }

    /// An attempt is about to start: leaves out those of the recipients that a person has changed
    /// since they were claimed. To be called once for each of them.
    pub fn begin(&self, id: MessageId, (lane, ticket): (Lane, u64), recipients: &mut Vec<(u32, Recipient)>) {
        self.claims.begin(id, ticket, lane, recipients);
    }

    /// Recipients that were begun and not tried: they wait in the index as before.
    pub fn give_back(&self, message: &Message, recipients: &[(u32, Recipient)]) {
        recipients.iter().for_each(|(number, _)| self.claims.release(message.id, *number));
        self.claims.announce(recipients.iter().filter_map(|(_, recipient)| self.entry(message, recipient)));
    }

    /// The lanes of this queue, and how often each has its turn.
    pub fn streams(&self) -> Arc<Streams> {
        self.streams.load()
    }

    /// Makes lanes for streams that there were not. Those that are there stay.
    pub fn add_streams(&self, settings: &BTreeMap<String, config::Stream>) -> Result<(), StoreError> {
        let before = self.streams.load();
        let streams = before.with(&self.store, settings.keys().map(String::as_str))?;
        if streams.lanes() != before.lanes() {
            self.claims.grow(&streams);
            self.gates.renew(&self.store, &streams, settings, true)?;
            self.streams.set(Arc::new(streams));
        }
        Ok(())
    }

    /// What streams may do from now on. See [`Queue::add_streams`], which comes first.
    pub fn configure_streams(&self, settings: &BTreeMap<String, config::Stream>) -> Result<(), StoreError> {
        self.gates.renew(&self.store, &self.streams.load(), settings, false)
    }

    /// Recipients that are set aside because a record cannot be read, at most
    /// [`claim::DAMAGED_MAX`], and how many there are. They are tried again after the next start.
    pub fn damaged(&self) -> (Vec<Damaged>, u64) {
        self.claims.damaged()
    }

    /// Gives claimed recipients back that cannot be delivered because the body is damaged. They are not
    /// tried again before the next start.
    pub fn set_aside(&self, id: MessageId, numbers: impl Iterator<Item = u32>, error: &StoreError) {
        for number in numbers {
            self.claims.release(id, number);
            self.claims.set_aside(id, number, error, self.clock.now());
        }
    }

    pub fn message(&self, id: MessageId) -> Result<Option<Message>, StoreError> {
        self.store.get(Table::Message, &id.to_key())?.map(|bytes| keys::decode(&bytes)).transpose()
    }

    pub fn recipients(&self, id: MessageId) -> Result<Vec<(u32, Recipient)>, StoreError> {
        let entries = self.store.prefix(Table::Recipient, &id.to_key())?;
        entries.map(|entry| entry.and_then(|(key, value)| Ok((keys::number(&key)?, keys::decode(&value)?)))).collect()
    }

    /// Is this recipient still there? Also if that cannot be seen.
    pub fn holds(&self, id: MessageId, number: u32) -> bool {
        !matches!(self.store.get(Table::Recipient, &keys::recipient(id, number)), Ok(None))
    }

    /// As [`Queue::recipients`], without those that are known to be damaged.
    pub fn recipients_but(
        &self,
        id: MessageId,
        is_bad: impl Fn(u32) -> bool,
    ) -> Result<Vec<(u32, Recipient)>, StoreError> {
        let mut recipients = Vec::new();
        for entry in self.store.prefix(Table::Recipient, &id.to_key())? {
            let (key, value) = entry?;
            let number = keys::number(&key)?;
            if !is_bad(number) {
                recipients.push((number, keys::decode(&value)?));
            }
        }
        Ok(recipients)
    }

    /// Shows the messages after `after`, oldest first, until `show` breaks. Holds one at a time. One
    /// whose records are damaged is told of in the log and passed over, so that it hides no other.
    pub fn walk(
        &self,
        after: Option<MessageId>,
        mut show: impl FnMut(Message, Vec<(u32, Recipient)>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.walk_all(after, |walked| match walked {
            Walked::Message(message, recipients) => show(*message, recipients),
            Walked::Damaged { id, why } => {
                tracing::error!(%id, why, "a queued message cannot be read and is left out of the list");
                ControlFlow::Continue(())
            }
        })
    }

    /// As [`Queue::walk`], and shows what is damaged too.
    pub fn walk_all(
        &self,
        after: Option<MessageId>,
        mut show: impl FnMut(Walked) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let from = after.map_or(0, |after| after.as_u64().saturating_add(1)).to_be_bytes();
        for entry in self.store.range(Table::Message, &from, &[0xff; 9])? {
            let (key, value) = match entry {
                Ok(entry) => entry,
                Err(error @ StoreError::Damaged(_)) => {
                    tracing::error!(%error, "queued messages that cannot be read are left out of the list");
                    continue;
                }
                Err(error) => return Err(error),
            };
            let id = keys::message_id(&key)?;
            let read = || -> Result<Walked, StoreError> {
                let message: Box<Message> = keys::decode(&value)?;
                Ok(Walked::Message(message, self.recipients(id)?))
            };
            let walked = match read() {
                Err(StoreError::Damaged(why)) => Walked::Damaged { id, why },
                read => read?,
            };
            if show(walked).is_break() {
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
        if !self.claims.hold_for_person(id, number).await {
            return Ok(false);
        }
        let mut pending = Pending { claims: &self.claims, id, held: vec![number], entries: Vec::new() };
        self.change_held(&mut pending, number, change).await
    }

    async fn change_held(
        &self,
        pending: &mut Pending<'_>,
        number: u32,
        change: impl FnOnce(&Message, &Recipient) -> Option<(Option<Recipient>, Batch)>,
    ) -> Result<bool, StoreError> {
        let id = pending.id;
        let Some(message) = self.message(id)? else { return Ok(false) };
        let Some(bytes) = self.store.get(Table::Recipient, &keys::recipient(id, number))? else { return Ok(false) };
        let before: Recipient = keys::decode(&bytes)?;
        // A scan may have gone past it meanwhile.
        pending.entries.extend(self.entry(&message, &before));
        let Some((after, extra)) = change(&message, &before) else { return Ok(false) };
        pending.entries.extend(after.iter().filter_map(|after| self.entry(&message, after)));
        let mut batch = self.step_batch(&message, &[Step { number, before, after }], &[])?;
        batch.append(extra);
        self.commit(batch, true).await?;
        self.claims.mended(id, number);
        Ok(true)
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
            if let Some((lane, place, due)) = self.entry(message, &step.before) {
                let at = Position { due, id, number: step.number };
                batch.delete(Table::Due, DueKey { lane, part: place.part(), at }.to_bytes());
            }
            captured::delete(&mut batch, id, step.number, &step.before);
            match &step.after {
                Some(after) => self.put_recipient(&mut batch, message, step.number, after)?,
                None => batch.delete(Table::Recipient, keys::recipient(id, step.number)),
            }
        }
        let sealed = |number: u32| steps.iter().any(|step| step.number == number && step.after.is_none());
        if !added.is_empty() {
            self.put_added(&mut batch, message, sealed, added)?;
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

    /// Recipients that come later. No number is given twice, also not that of one that is gone: by it receipts,
    /// webhooks and names of files know a recipient.
    fn put_added(
        &self,
        batch: &mut Batch,
        message: &Message,
        sealed: impl Fn(u32) -> bool,
        added: &[Recipient],
    ) -> Result<(), StoreError> {
        let id = message.id;
        // Who makes the step knows the message as it was when it was claimed. A record that is damaged must not hold
        // the step up.
        let newest = match self.message(id) {
            Err(StoreError::Damaged(_)) => None,
            found => found?,
        };
        let mut next = newest.as_ref().map_or(message.recipients, |newest| newest.recipients.max(message.recipients));
        let mut has_other = false;
        // Their keys only: a record beside this one that is damaged must not hold this step up.
        for entry in self.store.prefix(Table::Recipient, &id.to_key())? {
            let number = keys::number(&entry?.0)?;
            next = next.max(number.saturating_add(1));
            has_other |= !sealed(number);
        }
        for (number, recipient) in (next..).zip(added) {
            self.put_recipient(batch, message, number, recipient)?;
        }
        // One that takes the place of the last one has the highest number of all: there is nothing to remember.
        if let Some(newest) = newest.filter(|_| has_other || added.len() > 1) {
            let recipients = next.saturating_add(u32::try_from(added.len()).unwrap_or(u32::MAX));
            batch.replace(Table::Message, id.to_key(), keys::encode(&Message { recipients, ..newest })?);
        }
        Ok(())
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
    pub fn release(&self, message: &Message, steps: &[Step], added: &[Recipient]) {
        for step in steps {
            self.claims.release(message.id, step.number);
            self.claims.mended(message.id, step.number);
        }
        let waiting = steps.iter().filter_map(|step| step.after.as_ref()).chain(added);
        self.claims.announce(waiting.filter_map(|recipient| self.entry(message, recipient)));
    }

    fn put_recipient(
        &self,
        batch: &mut Batch,
        message: &Message,
        number: u32,
        recipient: &Recipient,
    ) -> Result<(), StoreError> {
        batch.put(Table::Recipient, keys::recipient(message.id, number), keys::encode(recipient)?);
        captured::put(batch, message, number, recipient);
        if let Some((lane, place, due)) = self.entry(message, recipient) {
            let key = DueKey { lane, part: place.part(), at: Position { due, id: message.id, number } };
            batch.put(Table::Due, key.to_bytes(), place.to_value());
        }
        Ok(())
    }
}

/// Recipients of a new message in one lane, claimed for their first attempt.
struct Reserved {
    lane: Lane,
    ticket: u64,
    /// In their order.
    numbers: Vec<u32>,
}

impl Reserved {
    fn has(&self, number: u32) -> bool {
        self.numbers.binary_search(&number).is_ok()
    }
}

/// Claims that are held while something is written. When it goes they are given back, and the entries
/// are announced: what is written may be on disk even if nobody waited for the answer.
struct Pending<'q> {
    claims: &'q Claims,
    id: MessageId,
    held: Vec<u32>,
    entries: Vec<(Lane, Place, Millis)>,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        for number in &self.held {
            self.claims.release(self.id, *number);
        }
        self.claims.announce(self.entries.drain(..));
    }
}

/// These are all recipients that the message was queued for, so there are no others: those that take
/// the place of one come only when it goes. Saves a look at the disk for most messages.
fn is_whole(message: &Message, steps: &[Step]) -> bool {
    let first = |step: &&Step| step.number < message.recipients;
    let numbers: HashSet<u32> = steps.iter().filter(first).map(|step| step.number).collect();
    numbers.len() == message.recipients as usize
}

fn due_time(recipient: &Recipient) -> Option<Millis> {
    match recipient.status {
        Status::Waiting { due } => Some(due),
        _ => None,
    }
}

/// May pass by the index: due, and not tried yet.
fn is_fresh(recipient: &Recipient, now: Millis) -> bool {
    recipient.attempts == 0 && due_time(recipient).is_some_and(|due| due <= now)
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
