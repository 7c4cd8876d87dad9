//! One part of one lane of the due index: how far it has been looked at. No I/O.
//!
//! The frontier moves along the part once: below it everything is claimed, set aside, or was passed
//! over because its place had enough. Of each such place the first entry passed over is remembered,
//! and taken up from there when the place has room again. So an entry is looked at once by the
//! frontier and once for each of the places whose queues it lies between, however long the part is;
//! and nothing that was deleted below is ever gone through again. What is remembered is bounded by the
//! claims: a place is passed over only while it holds some.

use std::collections::HashMap;

use crate::clock::Millis;
use crate::message::MessageId;

use super::super::keys::Position;
use super::super::lane::Place;

const END: Position = Position { due: Millis::MAX, id: MessageId::from_u64(u64::MAX), number: u32::MAX };

pub(super) fn start_of(due: Millis) -> Position {
    Position { due, id: MessageId::from_u64(0), number: 0 }
}

#[derive(Debug)]
pub(super) struct Segment {
    frontier: Position,
    passed: HashMap<Place, Position>,
    /// The lowest of `passed` whose place has room again.
    refill: Option<Position>,
    /// What was put into this part while a walk is under way: it may have gone past.
    announced: Option<Position>,
    /// Whose walk was the last one: they take turns.
    was_frontier: bool,
    /// It could not be read; it waits until somebody says that it may be tried again.
    pub troubled: bool,
    /// The trouble has been told of.
    pub told: bool,
}

impl Default for Segment {
    /// Not looked at yet.
    fn default() -> Segment {
        Segment {
            frontier: start_of(0),
            passed: HashMap::new(),
            refill: None,
            announced: None,
            was_frontier: false,
            troubled: false,
            told: false,
        }
    }
}

/// A walk along a segment, from where to where, and for whom.
#[derive(Debug)]
pub(super) struct Walk {
    pub from: Position,
    /// Not further than this; none for the frontier's own walk.
    pub until: Option<Position>,
    /// Only the first entry is looked for.
    pub is_first_look: bool,
    /// Places that are taken up again, with where they were; not those that turned out full.
    followed: HashMap<Place, Position>,
}

impl Walk {
    /// Nobody is left for whom this walk is made.
    pub fn is_done(&self) -> bool {
        self.until.is_some() && self.followed.is_empty()
    }
}

impl Segment {
    /// When there is something to look at; it may turn out to be nothing.
    pub fn earliest(&self) -> Millis {
        if self.troubled {
            return Millis::MAX;
        }
        self.refill.map_or(self.frontier.due, |refill| refill.due.min(self.frontier.due))
    }

    /// Nobody has looked at it yet.
    pub fn is_unknown(&self) -> bool {
        self.frontier == start_of(0)
    }

    pub fn has_passed(&self, place: Place) -> bool {
        self.passed.contains_key(&place)
    }

    pub fn has_passed_any(&self) -> bool {
        !self.passed.is_empty()
    }

    /// An entry was put in, or what was claimed is there for others again.
    pub fn announce(&mut self, due: Millis) {
        let at = start_of(due);
        self.frontier = self.frontier.min(at);
        self.announced = Some(self.announced.map_or(at, |announced| announced.min(at)));
    }

    /// A place that was passed over has room again.
    pub fn has_room(&mut self, place: Place) {
        if let Some(at) = self.passed.get(&place) {
            self.refill = Some(self.refill.map_or(*at, |refill| refill.min(*at)));
        }
    }

    /// What to walk along now: new ground, or what was passed over.
    pub fn begin(&mut self, now: Millis, has_room: impl Fn(Place) -> bool) -> Walk {
        self.announced = None;
        let refill_is_due = self.refill.is_some_and(|refill| refill.due <= now);
        self.was_frontier = self.frontier.due <= now && !(self.was_frontier && refill_is_due);
        if self.was_frontier {
            let is_first_look = self.is_unknown();
            return Walk { from: self.frontier, until: None, is_first_look, followed: HashMap::new() };
        }
        self.refill = None;
        let followed: HashMap<Place, Position> = self.passed.extract_if(|place, _| has_room(*place)).collect();
        let from = followed.values().min().copied().unwrap_or(self.frontier);
        Walk { from, until: Some(self.frontier), is_first_look: false, followed }
    }

    /// The entry here was passed over: its place has enough.
    pub fn pass(&mut self, walk: &mut Walk, place: Place, at: Position) {
        walk.followed.remove(&place);
        let first = self.passed.entry(place).or_insert(at);
        *first = at.min(*first);
    }

    /// The walk has ended; `stopped` is the first entry that it did not look at, if it saw one.
    pub fn end(&mut self, walk: Walk, stopped: Option<Position>) {
        match walk.until {
            // New entries may have been put in front of where the walk began: they are announced.
            None => self.frontier = stopped.unwrap_or(END),
            Some(until) => {
                let stopped = stopped.unwrap_or(until).min(until);
                for (place, at) in walk.followed {
                    if stopped < until {
                        self.passed.insert(place, at.max(stopped));
                        self.has_room(place);
                    }
                }
            }
        }
        if let Some(announced) = self.announced.take() {
            self.frontier = self.frontier.min(announced);
        }
    }
}
