//! Claims: who is being worked on. In memory only and bounded, so the queue on disk may be as long as
//! it likes and nothing stays locked after a crash.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::clock::Millis;
use crate::message::MessageId;
use crate::store::{Store, StoreError, Table};

use super::record::{Message, Recipient, Status};
use super::{Claimed, keys};

/// Most recipients claimed at once. A message with more recipients than fit goes by the index.
pub const CLAIMS_MAX: usize = 8192;
/// Fresh mail leaves this share of the claims to what comes from the index, so that retries move on
/// under any load.
const INDEX_SHARE: usize = 4;
/// Most recipients taken from the index in one scan.
const SCAN_MAX: usize = 1024;

/// The claims, and what the dispatcher waits for.
#[derive(Debug)]
pub struct Claims {
    inner: Mutex<Inner>,
    /// Something became due that the dispatcher does not know of.
    pub wake: Notify,
    memory: AtomicU64,
    memory_max: u64,
}

#[derive(Debug, Default)]
struct Inner {
    held: HashSet<(MessageId, u32)>,
    /// No entry of the due index lies below this time: scans skip what was deleted there.
    low_water: Millis,
    /// Entries below `low_water` announced while a scan runs.
    earliest_announced: Option<Millis>,
}

impl Claims {
    pub fn new(memory_max: u64) -> Claims {
        Claims { inner: Mutex::default(), wake: Notify::new(), memory: AtomicU64::new(0), memory_max }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics half-way, so a poisoned lock still guards sound data.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn held(&self) -> usize {
        self.lock().held.len()
    }

    /// Claims all of a new message's recipients before it is committed, or none of them.
    pub fn reserve(&self, id: MessageId, numbers: &[u32]) -> bool {
        let mut inner = self.lock();
        if inner.held.len() + numbers.len() > CLAIMS_MAX - CLAIMS_MAX / INDEX_SHARE {
            return false;
        }
        inner.held.extend(numbers.iter().map(|number| (id, *number)));
        true
    }

    pub fn is_held(&self, id: MessageId, number: u32) -> bool {
        self.lock().held.contains(&(id, number))
    }

    pub fn release(&self, id: MessageId, number: u32) {
        self.lock().held.remove(&(id, number));
    }

    /// Claims one recipient for a person's command; false if an attempt is under way.
    pub fn try_hold(&self, id: MessageId, number: u32) -> bool {
        self.lock().held.insert((id, number))
    }

    /// An entry was put into the due index at this time.
    pub fn announce(&self, due: Millis) {
        let mut inner = self.lock();
        inner.low_water = inner.low_water.min(due);
        inner.earliest_announced = Some(inner.earliest_announced.map_or(due, |earliest| earliest.min(due)));
        drop(inner);
        self.wake.notify_one();
    }

    pub(super) fn take_memory(&self, bytes: u64) -> bool {
        let take = |used: u64| (used + bytes <= self.memory_max).then_some(used + bytes);
        self.memory.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok()
    }

    pub(super) fn free_memory(&self, bytes: u64) {
        self.memory.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// What a scan of the due index brought.
#[derive(Debug)]
pub struct Scan {
    pub claimed: Vec<Claimed>,
    /// When the next entry is due, if the scan got that far.
    pub next: Option<Millis>,
    /// More is due than could be claimed now.
    pub more: bool,
}

/// Scans the due index up to `now`. A message or recipient that cannot be read is told of once and set
/// aside until the next start: it keeps its claim, so that the rest goes on and it is not looked at
/// again and again. If the index itself cannot be read, nothing stays claimed.
pub fn claim_due(store: &Store, claims: &Claims, now: Millis) -> Result<Scan, StoreError> {
    let (from, room) = {
        let mut inner = claims.lock();
        inner.earliest_announced = None;
        (inner.low_water, CLAIMS_MAX.saturating_sub(inner.held.len()).min(SCAN_MAX))
    };
    let mut scan = Scan { claimed: Vec::new(), next: None, more: false };
    let mut taken: Vec<Taken> = Vec::new();
    let lowest = match take(store, claims, from, now, room, &mut taken, &mut scan) {
        Ok(lowest) => lowest,
        Err(error) => {
            taken.iter().for_each(|taken| claims.release(taken.id, taken.number));
            return Err(error);
        }
    };
    {
        let mut inner = claims.lock();
        // Nothing at all in the index: whatever comes is announced. Announced meanwhile: not skipped.
        let scanned = lowest.unwrap_or(now);
        inner.low_water = scanned.min(inner.earliest_announced.unwrap_or(Millis::MAX));
    }
    scan.claimed = load(store, claims, taken);
    Ok(scan)
}

/// Claims entries from `from` on; gives the time of the first one, claimed or not.
fn take(
    store: &Store,
    claims: &Claims,
    from: Millis,
    now: Millis,
    room: usize,
    taken: &mut Vec<Taken>,
    scan: &mut Scan,
) -> Result<Option<Millis>, StoreError> {
    let mut lowest = None;
    for entry in store.range(Table::Due, &from.to_be_bytes(), &[0xff; 21])? {
        let (due, id, number) = keys::read_due(&entry?.0)?;
        lowest.get_or_insert(due);
        if due > now {
            scan.next = Some(due);
            break;
        }
        if taken.len() == room {
            scan.more = true;
            break;
        }
        if claims.try_hold(id, number) {
            taken.push(Taken { due, id, number });
        }
    }
    Ok(lowest)
}

struct Taken {
    due: Millis,
    id: MessageId,
    number: u32,
}

/// Reads what was taken, by message. What has changed meanwhile (the iterator's snapshot still showed
/// the entry of an attempt that has just ended) is given back.
fn load(store: &Store, claims: &Claims, taken: Vec<Taken>) -> Vec<Claimed> {
    let mut by_message: BTreeMap<MessageId, Vec<(u32, Millis)>> = BTreeMap::new();
    for Taken { due, id, number } in taken {
        by_message.entry(id).or_default().push((number, due));
    }
    let mut claimed = Vec::with_capacity(by_message.len());
    for (id, numbers) in by_message {
        let message = read::<Message>(store, Table::Message, &id.to_key());
        let mut recipients = Vec::with_capacity(numbers.len());
        for (number, due) in numbers {
            let recipient = read::<Recipient>(store, Table::Recipient, &keys::recipient(id, number));
            match (&message, recipient) {
                (_, Ok(None)) | (Ok(None), _) => claims.release(id, number),
                (Ok(Some(_)), Ok(Some(recipient))) if recipient.status == (Status::Waiting { due }) => {
                    recipients.push((number, recipient));
                }
                (Ok(Some(_)), Ok(Some(_))) => claims.release(id, number),
                (Err(error), _) => set_aside(claims, id, number, error),
                (_, Err(error)) => set_aside(claims, id, number, &error),
            }
        }
        if let (Ok(Some(message)), false) = (message, recipients.is_empty()) {
            claimed.push(Claimed { message: Arc::new(message), recipients, body: None });
        }
    }
    claimed
}

/// A record that is damaged stays so: its claim is kept. Trouble with reading may pass: it is given back.
fn set_aside(claims: &Claims, id: MessageId, number: u32, error: &StoreError) {
    tracing::error!(%id, recipient = number, %error, "a queued delivery cannot be read and is set aside until the next start");
    if !matches!(error, StoreError::Damaged(_)) {
        claims.release(id, number);
    }
}

fn read<T: serde::de::DeserializeOwned>(store: &Store, table: Table, key: &[u8]) -> Result<Option<T>, StoreError> {
    store.get(table, key)?.map(|bytes| keys::decode(&bytes)).transpose()
}
