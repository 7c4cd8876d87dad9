//! Gates: what keeps a stream's mail from starting although it is due. A suspension, or the stream's
//! own pace.
//!
//! A gate is asked at two places: claims leave the due index of a closed lane alone (`claim`), and the
//! dispatcher starts nothing of it that is claimed already ([`Gates::look`]). Nobody polls: what closes
//! a gate for a time says until when, what opens one wakes the dispatcher. Nothing is kept for each
//! message that waits.
//!
//! # What is on disk, and what a crash leaves
//!
//! Suspensions are written before they hold ([`Queue::suspend`]). What of a pace is kept is written and
//! synced after a start is counted and before its attempt begins, and again when an attempt has ended
//! ([`Queue::keep_pace`]): a crash before the first write has started nothing, one behind it leaves a start
//! that counts; one before the second leaves a block that is complete, which pauses from the next start
//! on. Many attempts at a time share a write.
//!
//! [`Queue::suspend`]: super::Queue::suspend
//! [`Queue::keep_pace`]: super::Queue::keep_pace

mod closed;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::{Clock, Millis};
use crate::config::Stream;
use crate::message::stream;
use crate::store::{Batch, Store, StoreError, Table};

use super::claim::Claims;
use super::keys;
use super::lane::{self, LANES_MAX, Lane, Streams};
use super::pace::{Limits, Pace, Wait};
use super::record::{Message, Recipient};
use super::suspend::{self, LIFTING, Suspension};

pub use closed::{Closed, option};

/// Where in the meta table the pace of a stream is.
const META_PREFIX: &str = "pace/";

/// A set of lanes, by [`Lane::index`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lanes(u64);

impl Lanes {
    pub const ALL: Lanes = Lanes(u64::MAX);
    pub const NONE: Lanes = Lanes(0);

    pub fn of(indexes: &[usize]) -> Lanes {
        let mut lanes = Lanes::NONE;
        indexes.iter().for_each(|index| lanes.add(*index));
        lanes
    }

    pub fn has(self, index: usize) -> bool {
        index < LANES_MAX && self.0 & (1 << index) != 0
    }

    fn add(&mut self, index: usize) {
        self.0 |= if index < LANES_MAX { 1 << index } else { 0 };
    }

    /// Those that are not in `other`.
    pub fn without(self, other: Lanes) -> Lanes {
        Lanes(self.0 & !other.0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

#[derive(Debug)]
struct Gate {
    name: String,
    is_exempt: bool,
    smart_host: Option<String>,
    /// None: it has no limits. For the lanes that keep it only.
    pace: Option<Pace>,
    /// Raised with each change of the pace, and up to where it is on disk.
    changes: u64,
    kept: u64,
}

impl Gate {
    fn load(store: &Store, name: &str, settings: &BTreeMap<String, Stream>, now: Millis) -> Result<Gate, StoreError> {
        let setting = setting(settings, name);
        let limits = Limits::of(&setting);
        let pace = if limits.is_any() {
            let kept = store.get(Table::Meta, &pace_key(name))?;
            let kept = kept.map(|bytes| keys::decode(&bytes)).transpose()?.unwrap_or_default();
            Some(Pace::new(limits, kept, now))
        } else {
            None
        };
        // One is ahead, so that what a restart made of it is written with the next change.
        Ok(Gate {
            name: name.to_owned(),
            is_exempt: setting.exempt_from_suspend,
            smart_host: setting.smart_host,
            changes: u64::from(pace.is_some()),
            pace,
            kept: 0,
        })
    }

    /// What holds this lane up, if anything does.
    fn pace(&self, lane: Lane) -> Option<&Pace> {
        self.pace.as_ref().filter(|_| lane.is_paced())
    }

    fn renew(&mut self, new: Gate, settings: &BTreeMap<String, Stream>, now: Millis) {
        (self.is_exempt, self.smart_host) = (new.is_exempt, new.smart_host);
        match &mut self.pace {
            // Also where no limits are left: what is under way ends here.
            Some(pace) => pace.renew(Limits::of(&setting(settings, &self.name)), now),
            None => self.pace = new.pace,
        }
        self.changes += 1;
    }
}

fn setting(settings: &BTreeMap<String, Stream>, name: &str) -> Stream {
    settings.get(name).cloned().unwrap_or_else(|| Stream::named(name))
}

#[derive(Debug)]
struct Inner {
    suspended: BTreeMap<Suspension, Millis>,
    /// By the slot of the stream.
    gates: BTreeMap<u8, Gate>,
}

impl Inner {
    /// What holds this stream up as a whole, and since when.
    fn suspension(&self, gate: &Gate) -> Option<(&Suspension, Millis)> {
        if gate.is_exempt {
            return None;
        }
        let holds = |what: &Suspension| match what {
            Suspension::All => true,
            Suspension::Stream(name) => *name == gate.name,
            Suspension::SmartHost(name) => gate.smart_host.as_ref() == Some(name),
            // What is for a target is put aside one by one.
            Suspension::Fetch | Suspension::Target(_) => false,
        };
        let mut found = self.suspended.iter().filter(|(what, since)| **since != LIFTING && holds(what));
        found.next().map(|(what, since)| (what, *since))
    }
}

/// A pace that is not on disk as it is.
#[derive(Debug)]
pub(super) struct Unkept {
    slot: u8,
    changes: u64,
}

#[derive(Debug)]
pub struct Gates {
    inner: Mutex<Inner>,
    claims: Arc<Claims>,
    clock: Clock,
}

impl Gates {
    /// `settings`: the configured streams.
    pub(super) fn load(
        store: &Store,
        streams: &Streams,
        settings: &BTreeMap<String, Stream>,
        claims: Arc<Claims>,
        clock: Clock,
    ) -> Result<Gates, StoreError> {
        let mut gates = BTreeMap::new();
        for (name, slot) in streams.slots() {
            gates.insert(slot, Gate::load(store, name, settings, clock.now())?);
        }
        let inner = Inner { suspended: suspend::load(store)?.into_iter().collect(), gates };
        let gates = Gates { inner: Mutex::new(inner), claims, clock };
        gates.tell_claims(&gates.lock());
        Ok(gates)
    }

    /// Gates for streams that there were not (`only_new`), or other settings for all of them; what is counted counts on.
    /// Where the store cannot be read nothing changes.
    pub(super) fn renew(
        &self,
        store: &Store,
        streams: &Streams,
        settings: &BTreeMap<String, Stream>,
        only_new: bool,
    ) -> Result<(), StoreError> {
        let now = self.clock.now();
        // Read before the lock, which deliveries wait for.
        let mut made = BTreeMap::new();
        for (name, slot) in streams.slots() {
            made.insert(slot, Gate::load(store, name, settings, now)?);
        }
        let mut inner = self.lock();
        for (slot, new) in made {
            match inner.gates.get_mut(&slot) {
                Some(_) if only_new => {}
                Some(gate) => gate.renew(new, settings, now),
                None => drop(inner.gates.insert(slot, new)),
            }
        }
        self.tell_claims(&inner);
        drop(inner);
        self.claims.wake.notify_one();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics half-way, so a poisoned lock still guards sound data.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which lanes are closed to claims, and until when.
    fn tell_claims(&self, inner: &Inner) {
        let now = self.clock.now();
        for (slot, gate) in &inner.gates {
            for lane in Lane::of(*slot) {
                let until = match inner.suspension(gate) {
                    Some(_) => Some(Millis::MAX),
                    None => gate.pace(lane).and_then(|pace| pace.closed_until(lane.is_retry(), now)),
                };
                self.claims.close(lane, until.unwrap_or(0));
            }
        }
    }

    /// The lanes of which something may start now, and those that are closed for a time or until a person
    /// opens them, not only until an attempt ends.
    pub fn look(&self) -> (Lanes, Lanes) {
        let (inner, now) = (self.lock(), self.clock.now());
        let (mut open, mut shut) = (Lanes::NONE, Lanes::NONE);
        for (slot, gate) in &inner.gates {
            let is_suspended = inner.suspension(gate).is_some();
            for lane in Lane::of(*slot) {
                let pace = gate.pace(lane);
                if is_suspended || pace.is_some_and(|pace| pace.closed_until(lane.is_retry(), now).is_some()) {
                    shut.add(lane.index());
                } else if pace.is_none_or(|pace| pace.wait(lane.is_retry(), now).is_none()) {
                    open.add(lane.index());
                }
            }
        }
        (open, shut)
    }

    /// How many recipients of this lane, which is open, may start in one attempt.
    pub fn room(&self, lane: Lane) -> usize {
        let (inner, now) = (self.lock(), self.clock.now());
        let pace = inner.gates.get(&lane.slot()).and_then(|gate| gate.pace(lane));
        pace.map_or(usize::MAX, |pace| pace.room(lane.is_retry(), now))
    }

    /// The last look before an attempt really begins.
    pub fn is_suspended(&self, lane: Lane) -> bool {
        let inner = self.lock();
        inner.gates.get(&lane.slot()).is_some_and(|gate| inner.suspension(gate).is_some())
    }

    /// An attempt for so many recipients starts. It counts as under way until the answer is dropped.
    /// None: nobody counts.
    pub fn start(self: &Arc<Gates>, lane: Lane, recipients: usize) -> Option<Started> {
        let (mut inner, now) = (self.lock(), self.clock.now());
        let gate = inner.gates.get_mut(&lane.slot()).filter(|_| lane.is_paced())?;
        gate.pace.as_mut()?.start(recipients, lane.is_retry(), now);
        gate.changes += 1;
        self.tell_claims(&inner);
        drop(inner);
        Some(Started { gates: self.clone(), slot: lane.slot(), recipients })
    }

    fn end(&self, slot: u8, recipients: usize) {
        let (mut inner, now) = (self.lock(), self.clock.now());
        if let Some(gate) = inner.gates.get_mut(&slot)
            && let Some(pace) = &mut gate.pace
        {
            let before = pace.kept().clone();
            pace.end(recipients, now);
            gate.changes += u64::from(before != *pace.kept());
        }
        self.tell_claims(&inner);
        drop(inner);
        self.claims.wake.notify_one();
    }

    /// Why this recipient, who waits until `due`, does not start; or None if nothing of the kind holds it up.
    pub fn closed(&self, message: &Message, recipient: &Recipient, due: Millis) -> Option<Closed> {
        self.closed_to(&message.stream, lane::keeps_pace(message, recipient), recipient.attempts, due)
    }

    /// As [`Gates::closed`], by what of the delivery it is told by.
    pub fn closed_to(&self, stream: &str, keeps_pace: bool, attempts: u32, due: Millis) -> Option<Closed> {
        let (inner, now) = (self.lock(), self.clock.now());
        let find = |name: &str| inner.gates.values().find(|gate| gate.name == name);
        let gate = find(stream).or_else(|| find(stream::DEFAULT))?;
        if let Some((what, since)) = inner.suspension(gate) {
            return Some(Closed::Suspended { what: what.clone(), since });
        }
        let wait = gate.pace.as_ref().filter(|_| keeps_pace)?.wait(attempts > 0, now)?;
        let holds = match wait {
            Wait::Day { until, .. } | Wait::Pause { until, .. } => due < until,
            Wait::Block(_) | Wait::Attempts(_) => due <= now,
        };
        holds.then(|| Closed::Paced { stream: gate.name.clone(), wait })
    }

    /// What is suspended, and since when.
    pub fn suspended(&self) -> Vec<(Suspension, Millis)> {
        let inner = self.lock();
        let held = inner.suspended.iter().filter(|(_, since)| **since != LIFTING);
        held.map(|(what, since)| (what.clone(), *since)).collect()
    }

    /// Smart hosts and targets whose suspension was being lifted when the server ended.
    pub fn lifting(&self) -> Vec<Suspension> {
        let inner = self.lock();
        let lifting = inner.suspended.iter().filter(|(_, since)| **since == LIFTING);
        lifting.map(|(what, _)| what.clone()).collect()
    }

    /// May mail of this stream not go by this smart host now? For mail that is not pinned there; what is
    /// does not start at all.
    pub fn is_host_suspended(&self, smart_host: &str, stream: &str) -> bool {
        let inner = self.lock();
        let what = Suspension::SmartHost(smart_host.to_owned());
        let is_exempt = inner.gates.values().any(|gate| gate.name == stream && gate.is_exempt);
        !is_exempt && inner.suspended.get(&what).is_some_and(|since| *since != LIFTING)
    }

    /// Is mail for this target to be put aside?
    pub fn is_target_paused(&self, name: &str) -> bool {
        self.since(&Suspension::Target(name.to_owned())).is_some_and(|since| since != LIFTING)
    }

    /// Does a suspension leave this stream alone?
    pub fn is_exempt(&self, stream: &str) -> bool {
        self.lock().gates.values().any(|gate| gate.name == stream && gate.is_exempt)
    }

    /// The streams that leave while all sending is suspended.
    pub fn exempt(&self) -> Vec<String> {
        let inner = self.lock();
        inner.gates.values().filter(|gate| gate.is_exempt).map(|gate| gate.name.clone()).collect()
    }

    /// The suspension is on disk, or is not any more (None).
    pub(super) fn set(&self, what: &Suspension, since: Option<Millis>) {
        let mut inner = self.lock();
        match since {
            Some(since) => inner.suspended.insert(what.clone(), since),
            None => inner.suspended.remove(what),
        };
        self.tell_claims(&inner);
        drop(inner);
        self.claims.wake.notify_one();
    }

    pub(super) fn since(&self, what: &Suspension) -> Option<Millis> {
        self.lock().suspended.get(what).copied()
    }

    /// Has it limits, so that there may be something to keep?
    pub(super) fn is_paced(&self, lane: Lane) -> bool {
        self.lock().gates.get(&lane.slot()).is_some_and(|gate| gate.pace(lane).is_some_and(Pace::is_limited))
    }

    /// What is to be written so that the store knows of every pace, and what to say of it to
    /// [`Gates::kept`] then.
    pub(super) fn unkept(&self) -> Result<(Batch, Vec<Unkept>), StoreError> {
        let (mut batch, mut unkept) = (Batch::new(), Vec::new());
        for (slot, gate) in &self.lock().gates {
            if let Some(pace) = gate.pace.as_ref().filter(|_| gate.changes > gate.kept) {
                batch.put(Table::Meta, pace_key(&gate.name), keys::encode(pace.kept())?);
                unkept.push(Unkept { slot: *slot, changes: gate.changes });
            }
        }
        Ok((batch, unkept))
    }

    pub(super) fn kept(&self, written: &[Unkept]) {
        let mut inner = self.lock();
        for Unkept { slot, changes } in written {
            if let Some(gate) = inner.gates.get_mut(slot) {
                gate.kept = gate.kept.max(*changes);
            }
        }
    }
}

/// An attempt that counts as under way as long as this is there.
#[derive(Debug)]
pub struct Started {
    gates: Arc<Gates>,
    slot: u8,
    recipients: usize,
}

impl Drop for Started {
    fn drop(&mut self) {
        self.gates.end(self.slot, self.recipients);
    }
}

fn pace_key(stream: &str) -> Vec<u8> {
    format!("{META_PREFIX}{stream}").into_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::config::Block;
    use crate::queue::Queue;
    use crate::queue::claim::Look;

    const START: Millis = 1_800_000_000_000;

    fn open(path: &Path, clock: &Clock, bulk: Stream) -> Arc<Queue> {
        let settings = BTreeMap::from([("bulk".to_owned(), bulk), ("security".to_owned(), Stream::named("security"))]);
        let store = Arc::new(Store::open(path).unwrap());
        Queue::with_streams(store, clock.clone(), true, 1 << 20, &settings).unwrap().0
    }

    fn is_open(queue: &Queue, stream: &str) -> [bool; 2] {
        let (open, _) = queue.gates().look();
        [0, 1].map(|attempts| open.has(queue.streams().lane(stream, attempts).index()))
    }

    fn why(queue: &Queue, attempts: u32) -> Option<String> {
        queue.gates().closed_to("bulk", true, attempts, START).map(|closed| closed.to_string())
    }

    /// A crash in the middle of a block: what was given is on disk before it is tried.
    #[tokio::test]
    async fn a_block_that_was_given_outlives_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::manual(START);
        let block = Block { size: 5, pause: Duration::from_secs(120) };
        let bulk = Stream { block: Some(block), ..Stream::default() };
        let queue = open(folder.path(), &clock, bulk.clone());
        let lane = queue.streams().lane("bulk", 0);
        assert_eq!(queue.gates().room(lane), 5);
        let first = queue.gates().start(lane, 3);
        queue.keep_pace(lane).await.unwrap();
        // Nothing of this one is on disk, so nothing of it was tried.
        let second = queue.gates().start(lane, 2);
        assert_eq!(is_open(&queue, "bulk"), [false, false]);
        assert!(why(&queue, 0).unwrap().contains("a block of 5"));
        // A crash: what is under way does not end.
        std::mem::forget((first, second));
        drop(queue);

        let queue = open(folder.path(), &clock, bulk.clone());
        assert_eq!((is_open(&queue, "bulk"), queue.gates().room(lane)), ([true, true], 2));
        let last = queue.gates().start(lane, 2);
        queue.keep_pace(lane).await.unwrap();
        std::mem::forget(last);
        drop(queue);

        clock.advance(1000);
        let queue = open(folder.path(), &clock, bulk.clone());
        assert_eq!(queue.claims().look(clock.now()), Look::Now, "the other lanes have not been looked at");
        clock.advance(119_999);
        assert_eq!(is_open(&queue, "bulk"), [false, false]);
        clock.advance(1);
        assert_eq!((is_open(&queue, "bulk"), queue.gates().room(lane)), ([true, true], 5));
    }

    #[tokio::test]
    async fn one_at_once_and_the_day() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::manual(START);
        let bulk = Stream { concurrency: Some(1), daily_limit: Some(3), ..Stream::default() };
        let queue = open(folder.path(), &clock, bulk.clone());
        let [new, retry] = [0, 1].map(|attempts| queue.streams().lane("bulk", attempts));
        let one = queue.gates().start(new, 3);
        assert_eq!(is_open(&queue, "bulk"), [false, false]);
        assert!(queue.gates().start(queue.streams().lane("transactional", 0), 9).is_none());
        drop(one);
        assert_eq!(is_open(&queue, "bulk"), [false, true], "the day is used up, for what is new");
        assert!(why(&queue, 0).unwrap().contains("streams.bulk.daily_limit"));
        let one = queue.gates().start(retry, 100);
        assert_eq!(is_open(&queue, "bulk"), [false, false]);
        drop(one);
        queue.keep_pace(new).await.unwrap();
        drop(queue);
        let queue = open(folder.path(), &clock, bulk);
        assert_eq!(is_open(&queue, "bulk"), [false, true]);
        assert_eq!(why(&queue, 1), None);
    }

    #[tokio::test]
    async fn what_keeps_no_pace_starts_whatever_the_pace_says_and_not_while_it_is_suspended() {
        let folder = tempfile::tempdir().unwrap();
        let block = Block { size: 2, pause: Duration::from_secs(120) };
        let bulk = Stream { concurrency: Some(1), daily_limit: Some(2), block: Some(block), ..Stream::named("bulk") };
        let queue = open(folder.path(), &Clock::manual(START), bulk);
        let paced = queue.streams().lane("bulk", 0);
        let unpaced = paced.unpaced();
        let is_open = |lane: Lane| queue.gates().look().0.has(lane.index());
        let _one = queue.gates().start(paced, 2);
        assert!(!is_open(paced) && is_open(unpaced) && queue.gates().room(unpaced) > 1000);
        assert!(queue.gates().start(unpaced, 7).is_none());
        queue.suspend(&Suspension::Stream("bulk".into())).await.unwrap();
        assert!(!is_open(unpaced) && queue.gates().is_suspended(unpaced));
    }

    /// Dispatcher and claims sleep until the gate says, and are woken when a person opens it.
    #[tokio::test]
    async fn suspensions_close_lanes_and_outlive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::manual(START);
        let bulk = Stream { smart_host: Some("ses".into()), ..Stream::default() };
        let queue = open(folder.path(), &clock, bulk.clone());
        while queue.claims().look(START) == Look::Now {
            queue.claim_due().unwrap();
        }
        assert_eq!(queue.claims().look(START), Look::Later);
        let host = Suspension::SmartHost("ses".into());
        assert!(queue.suspend(&host).await.unwrap() && !queue.suspend(&host).await.unwrap());
        assert!(is_open(&queue, "transactional") == [true; 2] && is_open(&queue, "bulk") == [false; 2]);
        assert!(queue.gates().is_host_suspended("ses", "transactional"), "for mail that is not pinned");
        assert!(!queue.gates().is_host_suspended("ses", "security"));
        queue.suspend(&Suspension::All).await.unwrap();
        queue.suspend(&Suspension::Fetch).await.unwrap();
        drop(queue);

        let queue = open(folder.path(), &clock, bulk.clone());
        assert_eq!(queue.gates().suspended().len(), 3);
        assert!(is_open(&queue, "transactional") == [false; 2] && is_open(&queue, "security") == [true; 2]);
        assert!(queue.lift(&Suspension::All).await.unwrap() && !queue.lift(&Suspension::All).await.unwrap());
        assert!(queue.lift(&host).await.unwrap());
        assert_eq!(is_open(&queue, "bulk"), [true; 2]);
        assert_eq!(queue.gates().lifting(), std::slice::from_ref(&host));
        drop(queue);

        // What was held for the host has still to be released.
        let queue = open(folder.path(), &clock, bulk);
        assert_eq!(queue.gates().lifting(), std::slice::from_ref(&host));
        assert!(!queue.gates().is_host_suspended("ses", "bulk"));
        queue.lifted(&host).await.unwrap();
        assert!(queue.gates().lifting().is_empty());
        assert_eq!(suspend::load(queue.store()).unwrap(), [(Suspension::Fetch, START)]);
    }
}
