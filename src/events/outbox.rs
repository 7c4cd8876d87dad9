//! What webhooks are still to be told: a queue for each in the store, filled in the batch of the step that
//! an event tells of, so that none is lost and none is told that did not happen. Who sends is `delivery`.
//!
//! Filling one costs a put with bytes that the journal has made already, and no sync of its own. An event that no
//! webhook wants is not put there. How full a queue is is counted in memory, and anew at the start: before an entry is
//! written, because its sender, the one that takes entries away, may be done with it before the writer hears that
//! it is written. The sender also keeps the queue below [`BYTES_MAX`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::config::EventWebhook;
use crate::current::Current;
use crate::store::{Batch, Store, StoreError, Table};

use super::kind::Kind;

/// Most bytes of keys and values that wait for one webhook; beyond it the oldest go.
pub const BYTES_MAX: u64 = 64 << 20;
/// In front of the keys in `Table::Meta`; then the webhook's name, a zero, a number, the key in the journal.
const PREFIX: &[u8] = b"events/";
/// Length of a key in the journal.
pub const JOURNAL_KEY_BYTES: usize = 20;
/// In place of a journal's key: it stands for events that were dropped.
pub const GAP: [u8; JOURNAL_KEY_BYTES] = [0; JOURNAL_KEY_BYTES];

/// What a webhook's sender has done since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Taken by the endpoint.
    pub sent: AtomicU64,
    /// Posts that did not come through.
    pub failed: AtomicU64,
    /// Events that the endpoint does not want (406, 422).
    pub refused: AtomicU64,
    /// Events that were given up: too many or too old.
    pub dropped: AtomicU64,
    /// The endpoint is given a rest.
    pub is_paused: AtomicBool,
}

/// The queue of one webhook.
#[derive(Debug)]
pub struct Tray {
    name: String,
    only: Current<Option<Vec<Kind>>>,
    next: AtomicU64,
    bytes: AtomicU64,
    events: AtomicU64,
    pub counts: Counts,
    /// Something new is there.
    pub wake: Notify,
}

/// An entry of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub key: Box<[u8]>,
    pub number: u64,
    /// [`GAP`], or where the event is in the journal.
    pub journal_key: [u8; JOURNAL_KEY_BYTES],
    /// As in the journal.
    pub value: Box<[u8]>,
}

impl Waiting {
    fn read(prefix: usize, key: Box<[u8]>, value: Box<[u8]>) -> Option<Waiting> {
        let (number, journal_key) = key.get(prefix..)?.split_first_chunk::<8>()?;
        let (number, journal_key) = (u64::from_be_bytes(*number), journal_key.try_into().ok()?);
        Some(Waiting { key, number, journal_key, value })
    }

    pub fn bytes(&self) -> u64 {
        (self.key.len() + self.value.len()) as u64
    }
}

impl Tray {
    fn new(name: &str, only: Option<Vec<Kind>>) -> Tray {
        Tray {
            name: name.to_owned(),
            only: Current::new(only),
            next: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            events: AtomicU64::new(0),
            counts: Counts::default(),
            wake: Notify::new(),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Events that wait.
    pub fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    fn wants(&self, kind: Kind) -> bool {
        self.only.load().as_ref().as_ref().is_none_or(|only| only.contains(&kind))
    }

    fn prefix(&self) -> Vec<u8> {
        [PREFIX, self.name.as_bytes(), &[0]].concat()
    }

    fn key(&self, number: u64, journal_key: &[u8; JOURNAL_KEY_BYTES]) -> Vec<u8> {
        [PREFIX, self.name.as_bytes(), &[0], &number.to_be_bytes(), journal_key].concat()
    }

    fn put(self: &Arc<Self>, batch: &mut Batch, journal_key: &[u8; JOURNAL_KEY_BYTES], value: &Bytes) -> Put {
        let key = self.key(self.next.fetch_add(1, Ordering::Relaxed), journal_key);
        let bytes = (key.len() + value.len()) as u64;
        batch.put(Table::Meta, key, value.clone());
        self.added(bytes);
        Put { tray: self.clone(), bytes, is_written: false }
    }

    fn added(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.events.fetch_add(1, Ordering::Relaxed);
    }

    /// Entries have been taken away.
    pub fn removed(&self, events: u64, bytes: u64) {
        let less = |counter: &AtomicU64, by: u64| {
            // What was written after its session had gone is not counted any more.
            let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| Some(count.saturating_sub(by)));
        };
        less(&self.bytes, bytes);
        less(&self.events, events);
    }

    /// What stands for dropped events, in the place of the last of them. Counted at once.
    pub fn put_gap(&self, batch: &mut Batch, number: u64, value: Vec<u8>) {
        let key = self.key(number, &GAP);
        self.added((key.len() + value.len()) as u64);
        batch.put(Table::Meta, key, value);
    }

    /// The entries from a number on, oldest first.
    pub fn waiting<'a>(
        &self,
        store: &'a Store,
        from: u64,
    ) -> Result<impl Iterator<Item = Result<Waiting, StoreError>> + use<'a>, StoreError> {
        let prefix = self.prefix();
        let length = prefix.len();
        let first = [prefix.as_slice(), &from.to_be_bytes()].concat();
        let end = [&prefix[..length.saturating_sub(1)], &[1]].concat();
        let entries = store.range(Table::Meta, &first, &end)?;
        Ok(entries.filter_map(move |entry| entry.map(|(key, value)| Waiting::read(length, key, value)).transpose()))
    }

    /// Counts what waits since the last run.
    fn load(&self, store: &Store) -> Result<(), StoreError> {
        for waiting in self.waiting(store, 0)? {
            let waiting = waiting?;
            self.added(waiting.bytes());
            self.next.store(waiting.number.saturating_add(1), Ordering::Relaxed);
        }
        Ok(())
    }
}

/// The queues of all webhooks.
#[derive(Debug, Default)]
pub struct Outbox {
    trays: Vec<Arc<Tray>>,
}

/// What was put into a batch for a webhook. Counted from then on, unless it is dropped before it is written.
#[derive(Debug)]
pub struct Put {
    tray: Arc<Tray>,
    bytes: u64,
    is_written: bool,
}

impl Put {
    pub(super) fn written(mut self) {
        self.is_written = true;
        self.tray.wake.notify_one();
    }
}

impl Drop for Put {
    fn drop(&mut self) {
        if !self.is_written {
            self.tray.removed(1, self.bytes);
        }
    }
}

impl Outbox {
    /// Finds what waits since the last run. The batch takes away what waits for webhooks that there are no more.
    pub fn load(
        store: &Store,
        webhooks: &BTreeMap<String, EventWebhook>,
    ) -> Result<(Outbox, Batch, Vec<String>), StoreError> {
        let trays: Vec<_> =
            webhooks.iter().map(|(name, webhook)| Arc::new(Tray::new(name, webhook.only.clone()))).collect();
        for tray in &trays {
            tray.load(store)?;
        }
        let (mut batch, mut gone) = (Batch::new(), Vec::new());
        let mut from = PREFIX.to_vec();
        while let Some((key, _)) = store.range(Table::Meta, &from, &end_of(PREFIX))?.next().transpose()? {
            let name: Vec<u8> = key.iter().skip(PREFIX.len()).take_while(|byte| **byte != 0).copied().collect();
            let end = [PREFIX, &name, &[1]].concat();
            let name = String::from_utf8_lossy(&name).into_owned();
            if !webhooks.contains_key(&name) {
                forget(&name, &mut batch);
                gone.push(name);
            }
            from = end;
        }
        Ok((Outbox { trays }, batch, gone))
    }

    /// For the webhooks of another configuration: those that stay keep what waits for them.
    pub fn next(&self, store: &Store, webhooks: &BTreeMap<String, EventWebhook>) -> Result<Outbox, StoreError> {
        let mut trays = Vec::new();
        for (name, webhook) in webhooks {
            let known = self.trays.iter().find(|tray| tray.name == *name);
            trays.push(match known {
                Some(tray) => tray.clone(),
                None => {
                    let tray = Arc::new(Tray::new(name, webhook.only.clone()));
                    tray.load(store)?;
                    tray
                }
            });
        }
        Ok(Outbox { trays })
    }

    /// These are filled from now on, as configured.
    pub fn begin(&self, webhooks: &BTreeMap<String, EventWebhook>) {
        for tray in &self.trays {
            if let Some(webhook) = webhooks.get(tray.name()) {
                tray.only.set(Arc::new(webhook.only.clone()));
            }
        }
    }

    pub fn trays(&self) -> &[Arc<Tray>] {
        &self.trays
    }

    /// Puts an event, as it is in the journal, where it is wanted.
    pub(super) fn put(
        &self,
        batch: &mut Batch,
        kind: Kind,
        journal_key: &[u8; JOURNAL_KEY_BYTES],
        value: &Bytes,
        put: &mut Vec<Put>,
    ) {
        for tray in self.trays.iter().filter(|tray| tray.wants(kind)) {
            put.push(tray.put(batch, journal_key, value));
        }
    }
}

/// All that waits for a webhook.
pub fn forget(webhook: &str, batch: &mut Batch) {
    let name = webhook.as_bytes();
    batch.delete_range(Table::Meta, [PREFIX, name, &[0]].concat(), [PREFIX, name, &[1]].concat());
}

/// Above every key that begins so; the last byte is not the highest.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn hook(only: Option<Vec<Kind>>) -> EventWebhook {
        EventWebhook { url: "http://127.0.0.1:1/".into(), secret: None, only }
    }

    #[test]
    fn what_waits_is_found_again_and_what_nobody_wants_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let hooks = BTreeMap::from([
            ("a".to_owned(), hook(None)),
            ("a/b".to_owned(), hook(Some(vec![Kind::Delivered]))),
            ("c".to_owned(), hook(Some(Vec::new()))),
        ]);
        let (outbox, _, gone) = Outbox::load(&store, &hooks).unwrap();
        assert!(gone.is_empty());
        let (mut batch, mut put) = (Batch::new(), Vec::new());
        let value = Bytes::from_static(b"{}");
        for kind in [Kind::Accepted, Kind::Delivered] {
            outbox.put(&mut batch, kind, &[7; 20], &value, &mut put);
        }
        store.write(&[batch], false).unwrap();
        put.into_iter().for_each(Put::written);
        let held = |outbox: &Outbox| -> Vec<u64> { outbox.trays.iter().map(|tray| tray.events()).collect() };
        assert_eq!(held(&outbox), [2, 1, 0]);

        let (again, batch, gone) = Outbox::load(&store, &hooks).unwrap();
        assert!(gone.is_empty() && batch.is_empty());
        assert_eq!(held(&again), [2, 1, 0]);
        assert_eq!(again.trays[0].bytes(), outbox.trays[0].bytes());
        let waiting: Vec<_> = again.trays[0].waiting(&store, 0).unwrap().map(Result::unwrap).collect();
        assert_eq!(waiting.iter().map(|waiting| waiting.number).collect::<Vec<_>>(), [0, 1]);
        assert_eq!((waiting[0].journal_key, &*waiting[0].value), ([7; 20], b"{}".as_slice()));

        let only_one = BTreeMap::from([("a".to_owned(), hook(None))]);
        let (_, batch, gone) = Outbox::load(&store, &only_one).unwrap();
        assert_eq!(gone, ["a/b"]);
        store.write(&[batch], false).unwrap();
        let (left, ..) = Outbox::load(&store, &hooks).unwrap();
        assert_eq!(held(&left), [2, 0, 0]);
    }

    #[test]
    fn what_is_told_before_its_writer_hears_of_it_does_not_count_for_ever() {
        let hooks = BTreeMap::from([("a".to_owned(), hook(None))]);
        let folder = tempfile::tempdir().unwrap();
        let (outbox, ..) = Outbox::load(&Store::open(folder.path()).unwrap(), &hooks).unwrap();
        let tray = &outbox.trays[0];
        let (mut batch, mut put) = (Batch::new(), Vec::new());
        outbox.put(&mut batch, Kind::Accepted, &[7; 20], &Bytes::from_static(b"{}"), &mut put);
        assert_eq!(tray.events(), 1);
        tray.removed(1, tray.bytes());
        put.into_iter().for_each(Put::written);
        assert_eq!((tray.events(), tray.bytes()), (0, 0));
    }

    #[test]
    fn what_is_not_written_is_not_counted() {
        let hooks = BTreeMap::from([("a".to_owned(), hook(None))]);
        let folder = tempfile::tempdir().unwrap();
        let (outbox, ..) = Outbox::load(&Store::open(folder.path()).unwrap(), &hooks).unwrap();
        let (mut batch, mut put) = (Batch::new(), Vec::new());
        outbox.put(&mut batch, Kind::Accepted, &[7; 20], &Bytes::from_static(b"{}"), &mut put);
        drop(put);
        assert_eq!((outbox.trays[0].events(), outbox.trays[0].bytes()), (0, 0));
    }
}
