//! The journal: every message's story, kept in the store for a time after the message is done.
//!
//! Entries are written in the batch of the step they tell of, so a story never says what did not
//! happen and never misses what did.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;

use crate::clock::{Clock, Millis};
use crate::config::EventLog;
use crate::current::Current;
use crate::message::MessageId;
use crate::store::{Batch, Store, StoreError, Table};

use super::counters::Counters;
use super::kind::{Kind, is_trouble};
use super::live::Live;
use super::outbox::{JOURNAL_KEY_BYTES, Outbox, Put};
use super::troubles::Troubles;
use super::{Entry, Event};

/// Most entries of one story that are read at once; 5 days of retries make a few hundred.
const STORY_ENTRIES_MAX: usize = 10_000;

/// Writes entries; knows the time.
#[derive(Debug)]
pub struct Journal {
    clock: Clock,
    counters: Arc<Counters>,
    /// Tells entries of one millisecond apart.
    count: AtomicU32,
    course: Current<Course>,
    live: Live,
    troubles: Troubles,
}

/// What is done with events besides writing them down.
#[derive(Debug)]
struct Course {
    log: EventLog,
    outbox: Arc<Outbox>,
}

impl Journal {
    /// Logs everything and tells no webhook.
    pub fn new(clock: Clock) -> Journal {
        Journal::with(clock, EventLog::All, Arc::default())
    }

    pub fn with(clock: Clock, log: EventLog, outbox: Arc<Outbox>) -> Journal {
        let course = Current::new(Course { log, outbox });
        Journal {
            clock,
            counters: Arc::default(),
            count: AtomicU32::new(0),
            course,
            live: Live::default(),
            troubles: Troubles::default(),
        }
    }

    /// From now on that much is logged, and these webhooks are told.
    pub fn renew(&self, log: EventLog, outbox: Arc<Outbox>) {
        self.course.set(Arc::new(Course { log, outbox }));
    }

    /// What happens from now on, for those who watch.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// What went wrong last.
    pub fn troubles(&self) -> &Troubles {
        &self.troubles
    }

    /// What webhooks are to be told.
    pub fn outbox(&self) -> Arc<Outbox> {
        self.course.load().outbox.clone()
    }

    /// How often what has happened, since the start.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Starts telling what a step does.
    pub fn begin(&self) -> Telling<'_> {
        Telling { journal: self, course: self.course.load(), batch: Batch::new(), events: Vec::new(), put: Vec::new() }
    }

    fn key(&self, id: MessageId, at: Millis) -> [u8; JOURNAL_KEY_BYTES] {
        let mut key = [0; JOURNAL_KEY_BYTES];
        key[..8].copy_from_slice(&id.to_key());
        key[8..16].copy_from_slice(&at.to_be_bytes());
        key[16..].copy_from_slice(&self.count.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        key
    }
}

/// The events of one step: first into its batch, and into the log once that is written.
#[derive(Debug)]
pub struct Telling<'a> {
    journal: &'a Journal,
    course: Arc<Course>,
    batch: Batch,
    events: Vec<(MessageId, Entry)>,
    /// What of them webhooks are told.
    put: Vec<Put>,
}

impl Telling<'_> {
    pub fn tell(&mut self, id: MessageId, event: Event) {
        let entry = Entry { at: self.journal.clock.now(), event };
        self.write(id, &entry, Kind::of(&entry.event));
        self.events.push((id, entry));
    }

    /// What is told already, in one more story. It is neither logged nor counted again, and no webhook is told.
    pub fn tell_also(&mut self, id: MessageId, event: Event) {
        let entry = Entry { at: self.journal.clock.now(), event };
        self.write(id, &entry, None);
    }

    /// Into the journal, and to the webhooks that want this kind.
    fn write(&mut self, id: MessageId, entry: &Entry, kind: Option<Kind>) {
        match serde_json::to_vec(entry) {
            Ok(value) => {
                let (key, value) = (self.journal.key(id, entry.at), Bytes::from(value));
                if let Some(kind) = kind {
                    self.course.outbox.put(&mut self.batch, kind, &key, &value, &mut self.put);
                }
                self.batch.put(Table::Journal, key, value);
            }
            Err(error) => tracing::error!(%id, %error, "an event could not be written to the journal"),
        }
    }

    /// What to write together with the step.
    pub fn take_batch(&mut self) -> Batch {
        std::mem::take(&mut self.batch)
    }

    /// The step is written: say so.
    pub fn log(self) {
        let journal = self.journal;
        self.put.into_iter().for_each(Put::written);
        for (id, entry) in self.events {
            journal.counters.count(&entry.event);
            if matches!(entry.event, Event::Delivered { .. }) {
                journal.counters.delivered_after(entry.at.saturating_sub(id.made_at_ms()));
            }
            let is_trouble = is_trouble(&entry.event);
            if is_trouble {
                journal.troubles.add(id, &entry);
            }
            let is_logged = match self.course.log {
                EventLog::All => true,
                EventLog::Failed => is_trouble,
                EventLog::Off => false,
            };
            if is_logged {
                log(id, &entry.event);
            }
            if journal.live.is_watched() {
                journal.live.show(id, entry);
            }
        }
    }
}

/// All that happened to a message, oldest first; empty if it is unknown or long gone.
pub fn story(store: &Store, id: MessageId) -> Result<Vec<Entry>, StoreError> {
    let entries = store.prefix(Table::Journal, &id.to_key())?.take(STORY_ENTRIES_MAX);
    entries
        .map(|entry| {
            let (key, value) = entry?;
            serde_json::from_slice(&value).map_err(|error| StoreError::Damaged(format!("journal {key:?}: {error}")))
        })
        .collect()
}

/// To forget stories of messages that came in before `before`, unless they are still queued: those
/// keep theirs. One range delete, whatever its length.
pub fn forget(store: &Store, before: Millis) -> Result<Batch, StoreError> {
    let mut end = MessageId::first_at(before);
    if let Some(oldest) = store.range(Table::Message, &[0; 8], &[0xff; 9])?.next().transpose()? {
        end = end.min(MessageId::from_prefix(&oldest.0).unwrap_or(end));
    }
    let mut batch = Batch::new();
    batch.delete_range(Table::Journal, [0; 8], end.to_key());
    Ok(batch)
}

fn log(id: MessageId, event: &Event) {
    match event {
        Event::Accepted { origin, from, recipients, size, message_id, .. } => {
            let door = origin.door.name();
            // The null sender is written as in SMTP, so that it does not look like a gap.
            let from = if from.is_null() { "<>".to_owned() } else { from.to_string() };
            tracing::info!(%id, message_id, from, recipients, size, door, account = origin.account, "accepted");
        }
        Event::Imported { was, from, recipients, size, message_id, .. } => {
            let from = if from.is_null() { "<>".to_owned() } else { from.to_string() };
            tracing::info!(%id, %was, message_id, from, recipients, size, "imported");
        }
        Event::Routed { alias, to } => tracing::info!(%id, %alias, to = to.join(", "), "routed"),
        Event::Delivered { recipient, to, reply, tls, attempt } => {
            // A Maildir says nothing.
            let reply = Some(reply.as_str()).filter(|reply| !reply.is_empty());
            tracing::info!(%id, %recipient, to, reply, tls, attempt, "delivered");
        }
        Event::Captured { recipient } => tracing::info!(%id, %recipient, "captured"),
        Event::Deferred { recipient, why, attempt, next } => {
            let next = crate::clock::rfc3339(*next);
            tracing::info!(%id, %recipient, reason = why.reason, attempt, next, "deferred");
        }
        Event::Unsure { recipient, why, attempt, next } => {
            let next = crate::clock::rfc3339(*next);
            tracing::info!(%id, %recipient, reason = why.reason, attempt, next, "unsure");
        }
        Event::Failed { recipient, why, attempt } => {
            tracing::info!(%id, %recipient, reason = why.reason, attempt, "failed")
        }
        Event::Expired { recipient, why, attempt } => {
            tracing::info!(%id, %recipient, reason = why.reason, attempt, "expired")
        }
        Event::Archived { recipient, to } => tracing::info!(%id, %recipient, to, "archived"),
        Event::NotArchived { recipient, why, next } => {
            let next = next.map(crate::clock::rfc3339);
            tracing::warn!(%id, %recipient, reason = why.reason, next, "not archived");
        }
        Event::Held { recipient, reason } => tracing::info!(%id, %recipient, reason, "held"),
        Event::Released { recipient } => tracing::info!(%id, %recipient, "released"),
        Event::Cancelled { recipient } => tracing::info!(%id, %recipient, "cancelled"),
        Event::Discarded { recipient, reason } => tracing::info!(%id, %recipient, reason, "discarded"),
        Event::Bounced { recipient, class, status, diagnostic, report, counted, .. } => {
            tracing::info!(%id, %recipient, class, status, diagnostic, %report, counted, "bounced");
        }
        Event::DelayReported { recipient, status, diagnostic, report, .. } => {
            tracing::info!(%id, %recipient, status, diagnostic, %report, "reported late");
        }
        Event::Complained { recipient, kind, agent, report, .. } => {
            tracing::info!(%id, %recipient, kind, agent, %report, "complained");
        }
        Event::Suppressed { recipient, reason } => tracing::info!(%id, %recipient, reason, "suppressed"),
        Event::NotBelieved { about, why } => tracing::info!(%id, about = about.join(", "), why, "not believed"),
        Event::NoticeSent { sender, about } => tracing::info!(%id, %sender, about, "notice sent"),
        Event::NoticeWithheld { sender, about, why } => tracing::info!(%id, %sender, about, why, "no notice sent"),
    }
}
