//! Claims: who is being worked on. In memory only and bounded, so the queue on disk may be as long as
//! it likes and nothing stays locked after a crash.
//!
//! Claims are handed out by lane (`shares`) and, within a lane, by place: a place may hold as many as
//! are left to the others, divided by [`PLACE_ROOM_SHARE`]. So one alone gets hundreds, and a hundred
//! slow ones a few dozen each, with room left for the next to come.
//!
//! A claim is one of four: being committed or looked at (for a moment), waiting for its turn (a person
//! may take it away), in an attempt (nobody may), in a person's hands (for a moment).

mod scan;
mod segment;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::clock::Millis;
use crate::message::MessageId;
use crate::store::StoreError;

use super::keys::DueKey;
use super::lane::{Lane, PARTS, Place, Streams};
use super::record::Recipient;
use super::shares::{Shares, Turns, Wish};

pub use scan::{Scan, Stale, claim_due};
use segment::Segment;

/// Most recipients claimed at once. A message with more recipients than fit goes by the index.
pub const CLAIMS_MAX: usize = 8192;
/// How many of them are reserved, each lane its own; who comes first gets the others.
const RESERVED: usize = CLAIMS_MAX / 8 * 5;
/// The room that is left in its lane, divided by this, is what a place may hold; always one.
const PLACE_ROOM_SHARE: usize = 8;
/// While older mail waits in the index, new mail leaves this share of its lane's claims to it.
const BACKLOG_SHARE: usize = 4;
/// Of so many turns of a lane one goes to the next part in a circle, the others to the one with the oldest entry.
const CIRCLE_EVERY: u32 = 4;
/// A lane is scanned once so many claims are free for it: each look at the disk shall bring many.
/// Every lane has more than that reserved.
pub const SCAN_ROOM: usize = 16;
/// Most damaged recipients that are listed; those above are counted.
pub const DAMAGED_MAX: usize = 1000;

/// The claims, and what the dispatcher waits for.
#[derive(Debug)]
pub struct Claims {
    inner: Mutex<Inner>,
    /// One scan at a time.
    scanning: Mutex<()>,
    /// What a scan held for a moment is claimed or free.
    scanned: Notify,
    /// Something became due that the dispatcher does not know of.
    pub wake: Notify,
}

type Key = (MessageId, u32);

#[derive(Debug)]
struct Inner {
    held: HashMap<Key, Holder>,
    shares: Shares,
    turns: Turns,
    /// By [`Lane::index`].
    lanes: Vec<LaneState>,
    /// How many claims each place has in a lane; none is zero.
    places: HashMap<(Lane, Place), usize>,
    damaged: BTreeMap<Key, Damaged>,
    damaged_count: u64,
    next_ticket: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Reserved for a message that is not on disk yet.
    Committing,
    /// A scan looks at it; over before long.
    Scanned,
    /// Waits for its turn.
    Queued,
    /// An attempt is under way.
    Running,
    /// A person changes it.
    Person,
}

#[derive(Clone, Copy, Debug)]
struct Holder {
    ticket: u64,
    phase: Phase,
    /// Whose share it is taken from; none for a person's.
    share: Option<(Lane, Place)>,
}

#[derive(Debug)]
struct LaneState {
    /// None for a number that no stream has.
    lane: Option<Lane>,
    parts: Vec<Segment>,
    /// The least of the parts'.
    earliest: Millis,
    /// Nothing is claimed before; all ones: before somebody says so.
    closed_until: Millis,
    next_part: usize,
    next_in_circle: usize,
    turns_taken: u32,
}

impl LaneState {
    /// Nobody has looked into any part yet.
    fn new(lanes: &[Lane], index: usize) -> LaneState {
        let lane = lanes.iter().find(|lane| lane.index() == index).copied();
        let parts: Vec<Segment> = lane.iter().flat_map(|_| (0..PARTS).map(|_| Segment::default())).collect();
        let mut state =
            LaneState { lane, parts, earliest: 0, closed_until: 0, next_part: 0, next_in_circle: 0, turns_taken: 0 };
        state.update();
        state
    }

    /// The part whose turn it is, of those in which something is due: one at which nobody has looked yet,
    /// or the one with the oldest entry. That keeps the parts abreast of each other, so that messages
    /// that came one after the other are read together, however long the queue is. Every
    /// [`CIRCLE_EVERY`]th turn is for the next part in a circle: none starves behind another one's old
    /// entries that cannot be claimed.
    fn choose_part(&mut self, now: Millis) -> Option<usize> {
        self.turns_taken = self.turns_taken.wrapping_add(1);
        let is_circles = self.turns_taken.is_multiple_of(CIRCLE_EVERY);
        // Of parts that are as old as each other the next one, too.
        let first = if is_circles { self.next_in_circle } else { self.next_part };
        let (before, after) = self.parts.split_at_checked(first)?;
        let parts = after.iter().zip(first..).chain(before.iter().zip(0..));
        let mut due = parts.filter(|(segment, _)| segment.earliest() <= now);
        let (_, part) = if is_circles {
            due.next()?
        } else {
            due.min_by_key(|(segment, _)| (!segment.is_unknown(), segment.earliest()))?
        };
        self.next_part = (part + 1) % PARTS;
        if is_circles {
            self.next_in_circle = self.next_part;
        }
        Some(part)
    }

    fn update(&mut self) {
        self.earliest = self.parts.iter().map(Segment::earliest).min().unwrap_or(Millis::MAX);
    }

    fn part(&mut self, part: u8) -> Option<&mut Segment> {
        self.parts.get_mut(usize::from(part))
    }
}

/// A recipient that cannot be delivered, because a record of it is damaged or missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    pub id: MessageId,
    /// Which recipient.
    pub number: u32,
    pub what: String,
    pub since: Millis,
}

/// When the due index wants to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    Now,
    At(Millis),
    /// Not before something is announced or given back.
    Later,
}

impl Inner {
    fn place_limit(&self, lane: Lane) -> usize {
        (self.shares.room(lane.index()) / PLACE_ROOM_SHARE).max(1)
    }

    fn held_by(&self, lane: Lane, place: Place) -> usize {
        self.places.get(&(lane, place)).copied().unwrap_or(0)
    }

    /// It is worth while to look for more for this place: it has less than half of what it may have.
    fn runs_low(&self, lane: Lane, place: Place) -> bool {
        2 * self.held_by(lane, place) <= self.place_limit(lane)
    }

    fn hold(&mut self, key: Key, holder: Holder) {
        if let Some((lane, place)) = holder.share {
            self.shares.take(lane.index());
            *self.places.entry((lane, place)).or_insert(0) += 1;
        }
        self.held.insert(key, holder);
    }

    fn give_back(&mut self, lane: Lane, place: Place) {
        self.shares.give(lane.index());
        if let Some(count) = self.places.get_mut(&(lane, place)) {
            *count -= 1;
            if *count == 0 {
                self.places.remove(&(lane, place));
            }
        }
        if self.runs_low(lane, place)
            && let Some(state) = self.lanes.get_mut(lane.index())
            && let Some(segment) = state.part(place.part())
        {
            segment.has_room(place);
            let earliest = segment.earliest();
            state.earliest = state.earliest.min(earliest);
        }
    }

    fn release(&mut self, key: Key) {
        if let Some(Holder { share: Some((lane, place)), .. }) = self.held.remove(&key) {
            self.give_back(lane, place);
        }
    }

    fn announce(&mut self, lane: Lane, part: u8, due: Millis) {
        if let Some(state) = self.lanes.get_mut(lane.index())
            && let Some(segment) = state.part(part)
        {
            segment.announce(due);
            let earliest = segment.earliest();
            state.earliest = state.earliest.min(earliest);
        }
    }

    /// What was claimed is there again, but cannot be read for the time being.
    fn trouble(&mut self, lane: Lane, place: Place, due: Millis) {
        self.announce(lane, place.part(), due);
        if let Some(state) = self.lanes.get_mut(lane.index()) {
            state.part(place.part()).into_iter().for_each(|segment| segment.troubled = true);
            state.update();
        }
    }

    fn is_wanted(&self, lane: usize, now: Millis) -> bool {
        wish(&self.lanes, &self.shares, lane, now) == Wish::Ready
    }

    /// May new mail for these places pass by the index? Not if its lane has no room, and not before
    /// older mail for the same place.
    fn has_fresh_room(&self, lane: Lane, places: &HashMap<Place, usize>, now: Millis) -> bool {
        let Some(state) = self.lanes.get(lane.index()) else { return false };
        let (room, held) = (self.shares.room(lane.index()), self.shares.held(lane.index()));
        if state.closed_until > now {
            return false;
        }
        let backlog = state.earliest <= now;
        let kept = if backlog { (room + held) / BACKLOG_SHARE } else { 0 };
        let limit = self.place_limit(lane);
        let fits = |(place, more): (&Place, &usize)| {
            let waits = state.parts.get(usize::from(place.part())).is_some_and(|part| part.has_passed(*place));
            !waits && self.held_by(lane, *place) + more <= limit
        };
        places.values().sum::<usize>() + kept <= room && places.iter().all(fits)
    }

    fn set_aside(&mut self, damaged: Damaged) {
        let key = (damaged.id, damaged.number);
        if self.damaged.contains_key(&key) {
            return;
        }
        self.damaged_count += 1;
        let Damaged { id, number, what, .. } = &damaged;
        tracing::error!(%id, recipient = number, what, "a queued delivery cannot be read and is set aside");
        if self.damaged.len() < DAMAGED_MAX {
            self.damaged.insert(key, damaged);
        }
    }
}

fn wish(lanes: &[LaneState], shares: &Shares, lane: usize, now: Millis) -> Wish {
    match lanes.get(lane) {
        Some(state) if state.closed_until > now => Wish::Blocked,
        Some(state) if state.earliest <= now && shares.room(lane) >= SCAN_ROOM => Wish::Ready,
        Some(state) if state.earliest <= now => Wish::Blocked,
        _ => Wish::None,
    }
}

impl Claims {
    pub fn new(streams: &Streams) -> Claims {
        let weights = streams.weights();
        let lanes = streams.lanes();
        let state = |index: usize| LaneState::new(&lanes, index);
        let inner = Inner {
            held: HashMap::new(),
            shares: Shares::new(CLAIMS_MAX, RESERVED, &weights),
            lanes: (0..weights.len()).map(state).collect(),
            turns: Turns::new(weights),
            places: HashMap::new(),
            damaged: BTreeMap::new(),
            damaged_count: 0,
            next_ticket: 0,
        };
        Claims { inner: Mutex::new(inner), scanning: Mutex::new(()), scanned: Notify::new(), wake: Notify::new() }
    }

    /// There are more streams now.
    pub(super) fn grow(&self, streams: &Streams) {
        let (weights, lanes) = (streams.weights(), streams.lanes());
        let mut inner = self.lock();
        inner.shares.renew(CLAIMS_MAX, RESERVED, &weights);
        for index in 0..weights.len() {
            match inner.lanes.get_mut(index) {
                Some(state) if state.lane.is_some() => {}
                Some(state) => *state = LaneState::new(&lanes, index),
                None => inner.lanes.push(LaneState::new(&lanes, index)),
            }
        }
        inner.turns = Turns::new(weights);
        drop(inner);
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics half-way, so a poisoned lock still guards sound data.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many recipients are claimed.
    pub fn held(&self) -> usize {
        self.lock().held.len()
    }

    /// How many of a lane's are claimed, and how many more it may have.
    pub fn share(&self, lane: Lane) -> (usize, usize) {
        let inner = self.lock();
        (inner.shares.held(lane.index()), inner.shares.room(lane.index()))
    }

    /// When the due index is to be looked at.
    pub fn look(&self, now: Millis) -> Look {
        let inner = self.lock();
        if (0..inner.lanes.len()).any(|lane| inner.is_wanted(lane, now)) {
            return Look::Now;
        }
        let next = |state: &LaneState| if state.closed_until > now { state.closed_until } else { state.earliest };
        let next = inner.lanes.iter().map(next).filter(|next| *next > now).min();
        next.filter(|next| *next < Millis::MAX).map_or(Look::Later, Look::At)
    }

    /// Nothing of this lane is claimed before `until`; 0: it is open. Who opens one wakes the dispatcher.
    pub(super) fn close(&self, lane: Lane, until: Millis) {
        if let Some(state) = self.lock().lanes.get_mut(lane.index()) {
            state.closed_until = until;
        }
    }

    /// Claims all of a new message's recipients before it is committed, or none of them. They are the
    /// caller's until [`Claims::committed`] or a release.
    pub(super) fn reserve<'r>(
        &self,
        id: MessageId,
        lane: Lane,
        due: impl Iterator<Item = (u32, &'r Recipient)>,
        now: Millis,
    ) -> Option<u64> {
        let wanted: Vec<(u32, Place)> = due.map(|(number, recipient)| (number, Place::of(recipient))).collect();
        let mut places: HashMap<Place, usize> = HashMap::new();
        wanted.iter().for_each(|(_, place)| *places.entry(*place).or_insert(0) += 1);
        let mut inner = self.lock();
        if wanted.is_empty() || !inner.has_fresh_room(lane, &places, now) {
            return None;
        }
        let ticket = inner.ticket();
        for (number, place) in wanted {
            inner.hold((id, number), Holder { ticket, phase: Phase::Committing, share: Some((lane, place)) });
        }
        Some(ticket)
    }

    /// The message is on disk: what was reserved for it waits for its turn.
    pub(super) fn committed(&self, id: MessageId, numbers: impl Iterator<Item = u32>) {
        let mut inner = self.lock();
        for number in numbers {
            if let Some(holder) = inner.held.get_mut(&(id, number)) {
                holder.phase = Phase::Queued;
            }
        }
    }

    pub fn is_held(&self, id: MessageId, number: u32) -> bool {
        self.lock().held.contains_key(&(id, number))
    }

    /// Is it in an attempt?
    pub fn is_running(&self, id: MessageId, number: u32) -> bool {
        self.lock().held.get(&(id, number)).is_some_and(|holder| holder.phase == Phase::Running)
    }

    pub(super) fn release(&self, id: MessageId, number: u32) {
        self.lock().release((id, number));
    }

    /// An attempt is about to start: those of the recipients that a person has taken away meanwhile
    /// are left out.
    pub(super) fn begin(&self, id: MessageId, ticket: u64, lane: Lane, recipients: &mut Vec<(u32, Recipient)>) {
        let mut inner = self.lock();
        recipients.retain(|(number, recipient)| match inner.held.get_mut(&(id, *number)) {
            Some(holder) if holder.ticket == ticket && holder.phase == Phase::Queued => {
                holder.phase = Phase::Running;
                true
            }
            _ => {
                inner.give_back(lane, Place::of(recipient));
                false
            }
        });
    }

    /// Claims one recipient for a person's command; false if an attempt is under way. What only waits
    /// for its turn is taken away from there; what a scan looks at is waited for.
    pub(super) async fn hold_for_person(&self, id: MessageId, number: u32) -> bool {
        loop {
            let scanned = self.scanned.notified();
            let mut scanned = std::pin::pin!(scanned);
            scanned.as_mut().enable();
            {
                let mut inner = self.lock();
                match inner.held.get(&(id, number)).map(|holder| holder.phase) {
                    None | Some(Phase::Queued) => {
                        // The share of what waited for its turn is given back when that turn comes.
                        let ticket = inner.ticket();
                        inner.hold((id, number), Holder { ticket, phase: Phase::Person, share: None });
                        return true;
                    }
                    Some(Phase::Committing | Phase::Running | Phase::Person) => return false,
                    Some(Phase::Scanned) => {}
                }
            }
            scanned.await;
        }
    }

    /// Entries were put into the due index, or are there for others again.
    pub(super) fn announce(&self, entries: impl Iterator<Item = (Lane, Place, Millis)>) {
        let mut inner = self.lock();
        let mut any = false;
        for (lane, place, due) in entries {
            inner.announce(lane, place.part(), due);
            any = true;
        }
        drop(inner);
        if any {
            self.wake.notify_one();
        }
    }

    pub(super) fn look_again(&self, entries: impl Iterator<Item = DueKey>) {
        let mut inner = self.lock();
        entries.for_each(|key| inner.announce(key.lane, key.part, key.at.due));
        drop(inner);
        self.wake.notify_one();
    }

    /// All of the due index is to be looked at anew.
    pub(super) fn announce_all(&self) {
        let mut inner = self.lock();
        for state in &mut inner.lanes {
            state.parts.iter_mut().for_each(|segment| segment.announce(0));
            state.update();
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// What could not be read may be tried again.
    pub fn forgive(&self) {
        let mut inner = self.lock();
        for state in &mut inner.lanes {
            state.parts.iter_mut().for_each(|segment| segment.troubled = false);
            state.update();
        }
    }

    /// What is set aside as damaged, at most [`DAMAGED_MAX`], and how many there are in all.
    pub fn damaged(&self) -> (Vec<Damaged>, u64) {
        let inner = self.lock();
        (inner.damaged.values().cloned().collect(), inner.damaged_count)
    }

    pub(super) fn set_aside(&self, id: MessageId, number: u32, error: &StoreError, now: Millis) {
        self.lock().set_aside(Damaged { id, number, what: error.to_string(), since: now });
    }

    /// A step of this recipient was written: whatever was wrong with it is so no more.
    pub(super) fn mended(&self, id: MessageId, number: u32) {
        let mut inner = self.lock();
        if inner.damaged.remove(&(id, number)).is_some() {
            inner.damaged_count -= 1;
        }
    }
}

impl Inner {
    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::message::stream::STREAMS_MAX;
    use crate::queue::lane::LANES_MAX;
    use crate::store::{Batch, Store, Table};

    /// Or a lane could wait for room that it never gets.
    #[test]
    fn each_lane_has_more_reserved_than_a_scan_wants() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let mut batch = Batch::new();
        for slot in 3..STREAMS_MAX as u8 {
            batch.put(Table::Meta, format!("stream/own{slot}").into_bytes(), vec![slot]);
        }
        store.write(&[batch], true).unwrap();
        let streams = Streams::load(&store).unwrap();
        assert_eq!(streams.lanes().len(), LANES_MAX);
        let mut shares = Shares::new(CLAIMS_MAX, RESERVED, &streams.weights());
        let greedy = streams.lane("bulk", 0).index();
        while shares.take(greedy) {}
        for lane in streams.lanes().into_iter().filter(|lane| lane.index() != greedy) {
            assert!(shares.room(lane.index()) >= SCAN_ROOM, "{lane:?}");
        }
    }
}
