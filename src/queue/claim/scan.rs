//! The scan: takes what is due out of the index, lane by lane in turns.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use crate::clock::Millis;
use crate::message::MessageId;
use crate::store::{Store, StoreError, Table};

use super::super::Claimed;
use super::super::keys::{self, DUE_BYTES, DueKey, Position};
use super::super::lane::{Lane, Place, Streams};
use super::super::record::{Message, Recipient, Status};
use super::segment::Walk;
use super::{Claims, Holder, Inner, Phase};

/// Most recipients taken in one scan.
const SCAN_MAX: usize = 1024;
/// Most entries looked at in one scan; the next one goes on behind them.
const LOOK_MAX: usize = 4096;
/// Most recipients taken from one part of a lane before another has its turn.
const TURN_MAX: usize = 64;
/// Most entries looked at in one turn.
const TURN_LOOK_MAX: usize = 1024;
/// Most entries without a delivery that one scan gathers.
const STALE_MAX: usize = 1024;

/// What a scan of the due index brought.
#[derive(Debug, Default)]
pub struct Scan {
    pub claimed: Vec<Claimed>,
    /// When the next entry is due that is not due yet, as far as is known.
    pub next: Option<Millis>,
    /// More is due than could be claimed now.
    pub more: bool,
    /// Entries that were looked at.
    pub looked: usize,
    /// Entries without a delivery, for [`super::super::Queue::mend`].
    pub stale: Vec<Stale>,
    /// A piece of the index is damaged: [`super::super::Queue::rebuild_due_index`] brings back what
    /// was in it.
    pub damaged: Option<StoreError>,
    /// Why a part of the index could not be read. It is tried again after [`Claims::forgive`].
    pub trouble: Option<StoreError>,
}

/// An entry of the due index to which no waiting recipient belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    pub(in super::super) key: DueKey,
}

/// Scans what is due at `now`. The lanes have turns by weight, the parts of a lane as
/// [`super::LaneState::choose_part`] says; within a part the oldest come first, and entries whose place
/// has enough are passed over.
///
/// A recipient that cannot be read is set aside ([`Claims::damaged`]). Trouble in one part of the
/// index keeps none of the others; an error is returned only if it left nothing at all to claim.
pub fn claim_due(store: &Store, claims: &Claims, streams: &Streams, now: Millis) -> Result<Scan, StoreError> {
    let _one = claims.scanning.lock().unwrap_or_else(PoisonError::into_inner);
    let mut scanner = Scanner { store, claims, streams, now, scan: Scan::default(), taken: Vec::new(), ticket: 0 };
    scanner.ticket = claims.lock().ticket();
    if !scanner.anything_to_do() {
        claims.forgive();
    }
    while scanner.taken.len() < SCAN_MAX && scanner.scan.looked < LOOK_MAX && scanner.scan.stale.len() < STALE_MAX {
        let next = {
            let mut inner = claims.lock();
            let Inner { turns, lanes, shares, .. } = &mut *inner;
            turns.next(|lane| super::wish(lanes, shares, lane, now))
        };
        let Some(lane) = next else { break };
        scanner.turn(lane);
    }
    scanner.load();
    claims.scanned.notify_waiters();
    let Scanner { mut scan, .. } = scanner;
    {
        let inner = claims.lock();
        let earliest = |state: &super::LaneState| state.earliest;
        scan.next = inner.lanes.iter().map(earliest).filter(|due| *due > now && *due < Millis::MAX).min();
        let waits = |state: &super::LaneState| {
            state.earliest <= now || state.parts.iter().any(super::segment::Segment::has_passed_any)
        };
        scan.more = inner.lanes.iter().any(waits);
    }
    match &scan.trouble {
        Some(error) if scan.claimed.is_empty() => Err(error.clone()),
        _ => Ok(scan),
    }
}

/// An entry whose recipient is claimed, and not read yet.
#[derive(Clone, Copy)]
struct Taken {
    key: DueKey,
    place: Place,
}

struct Scanner<'s> {
    store: &'s Store,
    claims: &'s Claims,
    streams: &'s Streams,
    now: Millis,
    scan: Scan,
    taken: Vec<Taken>,
    ticket: u64,
}

/// Recipients of one message that were claimed out of one lane.
type ByMessage = ((Lane, MessageId), Vec<(u32, Recipient)>);

/// What became of an entry.
enum Seen {
    /// Claimed, or of no interest now; the walk goes on.
    On,
    /// The lane has no more room.
    Full,
}

impl Scanner<'_> {
    fn anything_to_do(&self) -> bool {
        let inner = self.claims.lock();
        (0..inner.lanes.len()).any(|lane| inner.is_wanted(lane, self.now))
    }

    /// One part of this lane.
    fn turn(&mut self, index: usize) {
        let Some((lane, part, mut walk)) = self.begin(index) else { return };
        let walked = self.walk(lane, part, &mut walk);
        let mut inner = self.claims.lock();
        let Some(state) = inner.lanes.get_mut(index) else { return };
        let Some(segment) = state.part(part) else { return };
        match walked {
            Ok(stopped) => {
                segment.end(walk, stopped);
                segment.told = false;
            }
            Err((at, error)) => {
                segment.end(walk, Some(at));
                segment.troubled = true;
                if !std::mem::replace(&mut segment.told, true) {
                    tracing::error!(lane = lane.byte(), part, %error, "a part of the due index cannot be read; it is tried again");
                }
                self.scan.trouble.get_or_insert(error);
            }
        }
        state.update();
    }

    fn begin(&self, index: usize) -> Option<(Lane, u8, Walk)> {
        let mut inner = self.claims.lock();
        let state = inner.lanes.get_mut(index)?;
        let Some(lane) = state.lane else {
            state.earliest = Millis::MAX;
            return None;
        };
        let Some(part) = state.choose_part(self.now) else {
            state.update();
            return None;
        };
        let mut segment = std::mem::take(state.parts.get_mut(part)?);
        let walk = segment.begin(self.now, |place| inner.runs_low(lane, place));
        *inner.lanes.get_mut(index)?.parts.get_mut(part)? = segment;
        Some((lane, part as u8, walk))
    }

    /// Gives where it stopped, or where it could not go on.
    fn walk(&mut self, lane: Lane, part: u8, walk: &mut Walk) -> Result<Option<Position>, (Position, StoreError)> {
        let from = DueKey { lane, part, at: walk.from }.to_bytes();
        let mut at = walk.from;
        let to =
            walk.until.map_or_else(|| end_of(lane, part), |until| DueKey { lane, part, at: until }.to_bytes().to_vec());
        // One more shows where the next turn begins.
        let range = self
            .store
            .range(Table::Due, &from, &to)
            .map_err(|error| (at, error))?
            .expecting(if walk.is_first_look { 1 } else { TURN_MAX + 1 });
        let (taken_before, looked_before) = (self.taken.len(), self.scan.looked);
        for entry in range {
            let (key, value) = match entry {
                Ok(entry) => entry,
                // The entries in there are lost to this scan; what lies behind them is not.
                Err(error @ StoreError::Damaged(_)) => {
                    self.scan.damaged.get_or_insert(error);
                    continue;
                }
                Err(error) => return Err((at, error)),
            };
            self.scan.looked += 1;
            let key = match DueKey::read(&key) {
                Ok(key) => key,
                Err(error) => {
                    // Nothing that we ever wrote. `rebuild` clears it away.
                    tracing::error!(%error, "an entry of the due index is passed over");
                    continue;
                }
            };
            at = key.at;
            let enough = self.taken.len() - taken_before >= TURN_MAX
                || self.taken.len() >= SCAN_MAX
                || self.scan.looked - looked_before >= TURN_LOOK_MAX
                || self.scan.stale.len() >= STALE_MAX;
            if at.due > self.now || enough || walk.is_first_look || walk.is_done() {
                return Ok(Some(at));
            }
            match self.see(key, Place::from_value(&value), walk) {
                Seen::On => {}
                Seen::Full => return Ok(Some(at)),
            }
        }
        Ok(None)
    }

    fn see(&mut self, key: DueKey, place: Option<Place>, walk: &mut Walk) -> Seen {
        let DueKey { lane, part, at: Position { id, number, .. } } = key;
        let Some(place) = place.filter(|place| place.part() == part) else {
            self.scan.stale.push(Stale { key });
            return Seen::On;
        };
        {
            let mut inner = self.claims.lock();
            if let Some(holder) = inner.held.get(&(id, number)) {
                if holder.ticket == self.ticket {
                    // A second entry for what this scan has taken: only one of them can be right.
                    self.scan.stale.push(Stale { key });
                }
                return Seen::On;
            }
            if inner.damaged.contains_key(&(id, number)) {
                return Seen::On;
            }
            if inner.shares.room(lane.index()) == 0 {
                return Seen::Full;
            }
            if inner.held_by(lane, place) >= inner.place_limit(lane) {
                let segment = inner.lanes.get_mut(lane.index()).and_then(|state| state.part(part));
                segment.into_iter().for_each(|segment| segment.pass(walk, place, key.at));
                return Seen::On;
            }
            let share = Some((lane, place));
            inner.hold((id, number), Holder { ticket: self.ticket, phase: Phase::Scanned, share });
        }
        self.taken.push(Taken { key, place });
        Seen::On
    }

    /// One record that cannot be read is set aside; if the store reads nothing, it passes.
    fn trouble(&self, id: MessageId, number: u32, error: StoreError) -> Result<(), StoreError> {
        if !matches!(error, StoreError::Damaged(_)) {
            self.store.get(Table::Meta, b"format").map_err(|_| error.clone())?;
        }
        self.claims.set_aside(id, number, &error, self.now);
        Ok(())
    }

    /// Reads what was taken and puts it together by lane and message. All at once, because records that
    /// lie side by side are then read together.
    fn load(&mut self) {
        let mut order: Vec<ByMessage> = Vec::new();
        let mut at: HashMap<(Lane, MessageId), usize> = HashMap::new();
        let taken = std::mem::take(&mut self.taken);
        let keys: Vec<_> = taken.iter().map(|taken| keys::recipient(taken.key.at.id, taken.key.at.number)).collect();
        for (taken, read) in taken.into_iter().zip(self.read_all::<Recipient, _>(Table::Recipient, &keys)) {
            let DueKey { lane, at: Position { id, number, due }, .. } = taken.key;
            match read {
                Ok(Some(recipient)) if belongs(&recipient, taken.key, taken.place) => {
                    let index = *at.entry((lane, id)).or_insert_with(|| {
                        order.push(((lane, id), Vec::new()));
                        order.len() - 1
                    });
                    if let Some((_, recipients)) = order.get_mut(index) {
                        recipients.push((number, recipient));
                    }
                }
                Ok(_) => {
                    // Or the entry was still shown of an attempt that has just ended.
                    self.claims.release(id, number);
                    self.scan.stale.push(Stale { key: taken.key });
                }
                Err(error) => self.set_one_aside(lane, id, number, taken.place, due, error),
            }
        }
        let keys: Vec<_> = order.iter().map(|((_, id), _)| id.to_key()).collect();
        let messages = self.read_all::<Message, _>(Table::Message, &keys);
        for (((lane, id), recipients), read) in order.into_iter().zip(messages) {
            match read {
                Ok(Some(message)) => {
                    let is_right = |(_, recipient): &_| self.streams.lane_of(&message, recipient) == lane;
                    let (recipients, wrong): (Vec<_>, Vec<_>) = recipients.into_iter().partition(is_right);
                    self.drop_all(lane, id, &wrong);
                    if recipients.is_empty() {
                        continue;
                    }
                    self.claims.committed(id, recipients.iter().map(|(number, _)| *number));
                    let (message, ticket) = (Arc::new(message), self.ticket);
                    self.scan.claimed.push(Claimed { message, recipients, body: None, lane, ticket });
                }
                Ok(None) => {
                    let error = StoreError::Damaged(format!("message {id} is missing"));
                    self.set_all_aside(lane, id, &recipients, error);
                }
                Err(error) => self.set_all_aside(lane, id, &recipients, error),
            }
        }
    }

    fn read_all<T, K>(&self, table: Table, keys: &[K]) -> Vec<Result<Option<T>, StoreError>>
    where
        T: serde::de::DeserializeOwned,
        K: AsRef<[u8]>,
    {
        let decode = |read: Result<Option<Vec<u8>>, StoreError>| read?.map(|bytes| keys::decode(&bytes)).transpose();
        self.store.get_many(table, keys).into_iter().map(decode).collect()
    }

    /// The entries are in a lane in which they do not belong.
    fn drop_all(&mut self, lane: Lane, id: MessageId, recipients: &[(u32, Recipient)]) {
        for (number, recipient) in recipients {
            self.claims.release(id, *number);
            if let Status::Waiting { due } = recipient.status {
                let part = Place::of(recipient).part();
                self.scan.stale.push(Stale { key: DueKey { lane, part, at: Position { due, id, number: *number } } });
            }
        }
    }

    fn set_all_aside(&mut self, lane: Lane, id: MessageId, recipients: &[(u32, Recipient)], error: StoreError) {
        for (number, recipient) in recipients {
            if let Status::Waiting { due } = recipient.status {
                self.set_one_aside(lane, id, *number, Place::of(recipient), due, error.clone());
            }
        }
    }

    fn set_one_aside(&mut self, lane: Lane, id: MessageId, number: u32, place: Place, due: Millis, error: StoreError) {
        self.claims.release(id, number);
        if let Err(error) = self.trouble(id, number, error) {
            self.scan.trouble.get_or_insert(error);
            self.claims.lock().trouble(lane, place, due);
        }
    }
}

fn belongs(recipient: &Recipient, key: DueKey, place: Place) -> bool {
    recipient.status == (Status::Waiting { due: key.at.due })
        && (recipient.attempts > 0) == key.lane.is_retry()
        && Place::of(recipient) == place
}

/// Above every key of this part.
fn end_of(lane: Lane, part: u8) -> Vec<u8> {
    let mut end = vec![lane.byte(), part];
    end.resize(DUE_BYTES + 1, 0xff);
    end
}
