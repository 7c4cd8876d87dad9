//! Claims: who is being worked on. In memory only and bounded, so the queue on disk may be as long as
//! it likes and nothing stays locked after a crash.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::clock::Millis;
use crate::message::{Domain, MessageId};
use crate::store::{Store, StoreError, Table};

use super::record::{Message, Recipient, Route, Status};
use super::{Claimed, keys};

/// Most recipients claimed at once. A message with more recipients than fit goes by the index.
pub const CLAIMS_MAX: usize = 8192;
/// Fresh mail leaves this share of the claims to what comes from the index, so that retries move on
/// under any load.
const INDEX_SHARE: usize = 4;
/// Most recipients taken from the index in one scan.
const SCAN_MAX: usize = 1024;
/// Most entries looked at in one scan; the next one goes on behind them.
const LOOK_MAX: usize = 2048;
/// Most recipients claimed for one place. Without it a slow place with a long queue holds all of the
/// claims, and nothing else moves.
pub const PLACE_CLAIMS_MAX: usize = CLAIMS_MAX / 16;

/// The claims, and what the dispatcher waits for.
#[derive(Debug, Default)]
pub struct Claims {
    inner: Mutex<Inner>,
    /// Something became due that the dispatcher does not know of.
    pub wake: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    held: HashMap<(MessageId, u32), Option<Place>>,
    /// How many of them are for each place; none is zero.
    places: HashMap<Place, usize>,
    /// Where the last scan stopped, if it saw not all that is due.
    cursor: Option<Box<[u8]>>,
    /// No entry of the due index lies below this time: scans skip what was deleted there.
    low_water: Millis,
    /// Entries below `low_water` announced while a scan runs.
    earliest_announced: Option<Millis>,
}

/// Where a delivery goes, as far as the claims are shared out by it.
type Place = (Route, Option<Domain>);

fn place(recipient: &Recipient) -> Place {
    let domain = (recipient.route == Route::Remote).then(|| recipient.address.domain().clone());
    (recipient.route.clone(), domain)
}

impl Inner {
    fn room_for(&self, place: &Place) -> usize {
        PLACE_CLAIMS_MAX.saturating_sub(self.places.get(place).copied().unwrap_or(0))
    }

    fn hold(&mut self, key: (MessageId, u32), place: Place) {
        *self.places.entry(place.clone()).or_insert(0) += 1;
        self.held.insert(key, Some(place));
    }

    fn release(&mut self, key: (MessageId, u32)) {
        let Some(Some(place)) = self.held.remove(&key) else { return };
        if let Some(count) = self.places.get_mut(&place) {
            *count -= 1;
            if *count == 0 {
                self.places.remove(&place);
            }
        }
    }
}

impl Claims {
    pub fn new() -> Claims {
        Claims { inner: Mutex::default(), wake: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics half-way, so a poisoned lock still guards sound data.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn held(&self) -> usize {
        self.lock().held.len()
    }

    /// Claims all of a new message's recipients before it is committed, or none of them.
    pub fn reserve<'r>(&self, id: MessageId, due: impl Iterator<Item = (u32, &'r Recipient)>) -> bool {
        let wanted: Vec<(u32, Place)> = due.map(|(number, recipient)| (number, place(recipient))).collect();
        let mut more: HashMap<&Place, usize> = HashMap::new();
        wanted.iter().for_each(|(_, place)| *more.entry(place).or_insert(0) += 1);
        let mut inner = self.lock();
        let fits = inner.held.len() + wanted.len() <= CLAIMS_MAX - CLAIMS_MAX / INDEX_SHARE
            && more.iter().all(|(place, count)| *count <= inner.room_for(place));
        if fits {
            wanted.into_iter().for_each(|(number, place)| inner.hold((id, number), place));
        }
        fits
    }

    pub fn is_held(&self, id: MessageId, number: u32) -> bool {
        self.lock().held.contains_key(&(id, number))
    }

    pub fn release(&self, id: MessageId, number: u32) {
        self.lock().release((id, number));
    }

    /// Claims one recipient for a person's command; false if an attempt is under way.
    pub fn try_hold(&self, id: MessageId, number: u32) -> bool {
        let mut inner = self.lock();
        let free = !inner.held.contains_key(&(id, number));
        if free {
            inner.held.insert((id, number), None);
        }
        free
    }

    /// Counts a claim for its place; or gives it back, if that has enough.
    fn count_in(&self, id: MessageId, number: u32, place: Place) -> bool {
        let mut inner = self.lock();
        let fits = inner.room_for(&place) > 0;
        if fits {
            inner.hold((id, number), place)
        } else {
            inner.release((id, number))
        }
        fits
    }

    /// An entry was put into the due index at this time.
    pub fn announce(&self, due: Millis) {
        let mut inner = self.lock();
        inner.low_water = inner.low_water.min(due);
        inner.earliest_announced = Some(inner.earliest_announced.map_or(due, |earliest| earliest.min(due)));
        drop(inner);
        self.wake.notify_one();
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

/// Scans the due index up to `now`, the oldest first. Entries whose place has its share of the claims
/// are passed over, and a scan that has looked at [`LOOK_MAX`] is continued by the next one, so that a
/// long queue for one place hides nothing behind it.
///
/// A message or recipient that cannot be read is told of once and set aside until the next start: it
/// keeps its claim, so that it is not looked at again and again. If the index itself cannot be read,
/// nothing stays claimed.
pub fn claim_due(store: &Store, claims: &Claims, now: Millis) -> Result<Scan, StoreError> {
    let (from, is_start, room) = {
        let mut inner = claims.lock();
        inner.earliest_announced = None;
        let low_water = inner.low_water.to_be_bytes();
        let cursor = inner.cursor.take();
        let is_start = cursor.is_none();
        (
            cursor.unwrap_or_else(|| low_water.into()),
            is_start,
            CLAIMS_MAX.saturating_sub(inner.held.len()).min(SCAN_MAX),
        )
    };
    let mut looked = Looked::default();
    if let Err(error) = look(store, claims, &from, now, room, &mut looked) {
        looked.taken.iter().for_each(|(id, number, _)| claims.release(*id, *number));
        return Err(error);
    }
    {
        let mut inner = claims.lock();
        if is_start {
            // Nothing at all in the index: whatever comes is announced. Announced meanwhile: not skipped.
            let scanned = looked.lowest.unwrap_or(now);
            inner.low_water = scanned.min(inner.earliest_announced.unwrap_or(Millis::MAX));
        }
        inner.cursor = looked.stopped_at;
    }
    let more = looked.more || !is_start;
    Ok(Scan { claimed: load(store, claims, looked.taken), next: looked.next, more })
}

/// What a walk along the index saw.
#[derive(Default)]
struct Looked {
    taken: Vec<(MessageId, u32, Recipient)>,
    /// The time of the first entry, claimed or not.
    lowest: Option<Millis>,
    next: Option<Millis>,
    more: bool,
    stopped_at: Option<Box<[u8]>>,
}

fn look(
    store: &Store,
    claims: &Claims,
    from: &[u8],
    now: Millis,
    room: usize,
    looked: &mut Looked,
) -> Result<(), StoreError> {
    for (count, entry) in store.range(Table::Due, from, &[0xff; 21])?.enumerate() {
        let key = entry?.0;
        let (due, id, number) = keys::read_due(&key)?;
        looked.lowest.get_or_insert(due);
        if due > now {
            looked.next = Some(due);
            break;
        }
        if looked.taken.len() == room || count == LOOK_MAX {
            looked.more = true;
            looked.stopped_at = Some(key);
            break;
        }
        if !claims.try_hold(id, number) {
            continue;
        }
        match read::<Recipient>(store, Table::Recipient, &keys::recipient(id, number)) {
            Ok(Some(recipient)) if recipient.status == (Status::Waiting { due }) => {
                if claims.count_in(id, number, place(&recipient)) {
                    looked.taken.push((id, number, recipient));
                } else {
                    looked.more = true;
                }
            }
            // The iterator's snapshot still showed the entry of an attempt that has just ended.
            Ok(_) => claims.release(id, number),
            Err(error) => set_aside(claims, id, number, &error),
        }
    }
    Ok(())
}

/// Puts what was taken together by message.
fn load(store: &Store, claims: &Claims, taken: Vec<(MessageId, u32, Recipient)>) -> Vec<Claimed> {
    let mut by_message: BTreeMap<MessageId, Vec<(u32, Recipient)>> = BTreeMap::new();
    for (id, number, recipient) in taken {
        by_message.entry(id).or_default().push((number, recipient));
    }
    let mut claimed = Vec::with_capacity(by_message.len());
    for (id, recipients) in by_message {
        match read::<Message>(store, Table::Message, &id.to_key()) {
            Ok(Some(message)) => claimed.push(Claimed { message: Arc::new(message), recipients, body: None }),
            Ok(None) => recipients.iter().for_each(|(number, _)| claims.release(id, *number)),
            Err(error) => recipients.iter().for_each(|(number, _)| set_aside(claims, id, *number, &error)),
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
