//! Whose turn it is: jobs that wait, by lane and destination, and how many attempts each has under
//! way. Pure.
//!
//! Lanes have turns by weight, and each has some of the attempts at once for itself. Within a lane the
//! destination with the fewest attempts under way comes next, and among those the one that has waited
//! longest. A destination gets no further attempt if it has half of what is left for the others, nor
//! one for a retry if only [`KEPT_FOR_NEW`] are left.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::queue::gate::Lanes;
use crate::queue::shares::{self, Shares, Wish};

use super::Destination;

/// Attempts at once for one destination (`destinations.default.connections`).
pub const ATTEMPTS_PER_DESTINATION: usize = 10;
/// Of which retries leave so many to new mail.
const KEPT_FOR_NEW: usize = 2;
/// One of so many attempts at once is reserved, each lane its own.
const RESERVED: usize = 4;
/// The attempts that are left for a lane, divided by this, is what a destination may have.
const ROOM_SHARE: usize = 2;

/// Attempts under way, and the number of the turn: the least is next.
type Order = (usize, u64);

struct Lane<J> {
    jobs: VecDeque<J>,
    order: Order,
}

struct Waits<J> {
    running: usize,
    /// Those with jobs.
    lanes: BTreeMap<usize, Lane<J>>,
}

pub(super) struct Turns<J> {
    shares: Shares,
    weighted: shares::Turns,
    /// By lane: attempts at once for one destination.
    most: Vec<usize>,
    destinations: HashMap<Destination, Waits<J>>,
    /// By lane: destinations with jobs in it.
    ready: Vec<BTreeMap<Order, Destination>>,
    last_turn: u64,
}

impl<J> Turns<J> {
    /// `concurrency` attempts at once; `weights` by lane, and which of them are retries.
    pub fn new(concurrency: usize, weights: Vec<u32>, is_retry: impl Fn(usize) -> bool) -> Turns<J> {
        let most = |lane| ATTEMPTS_PER_DESTINATION - if is_retry(lane) { KEPT_FOR_NEW } else { 0 };
        Turns {
            most: (0..weights.len()).map(most).collect(),
            shares: Shares::new(concurrency, concurrency / RESERVED, &weights),
            ready: weights.iter().map(|_| BTreeMap::new()).collect(),
            weighted: shares::Turns::new(weights),
            destinations: HashMap::new(),
            last_turn: 0,
        }
    }

    pub fn push(&mut self, lane: usize, destination: Destination, job: J) {
        let waits = self.destinations.entry(destination.clone());
        let waits = waits.or_insert_with(|| Waits { running: 0, lanes: BTreeMap::new() });
        if let Some(queue) = waits.lanes.get_mut(&lane) {
            queue.jobs.push_back(job);
            return;
        }
        self.last_turn += 1;
        let order = (waits.running, self.last_turn);
        waits.lanes.insert(lane, Lane { jobs: VecDeque::from([job]), order });
        if let Some(ready) = self.ready.get_mut(lane) {
            ready.insert(order, destination);
        }
    }

    /// Puts what is left of a job that [`Turns::next`] gave back in front.
    pub fn push_front(&mut self, lane: usize, destination: &Destination, job: J) {
        let queue = self.destinations.get_mut(destination).and_then(|waits| waits.lanes.get_mut(&lane));
        match queue {
            Some(queue) => queue.jobs.push_front(job),
            None => self.push(lane, destination.clone(), job),
        }
    }

    /// The jobs that wait in these lanes.
    pub fn in_lanes(&mut self, lanes: Lanes) -> impl Iterator<Item = &mut J> {
        let queues = self.destinations.values_mut().flat_map(|waits| &mut waits.lanes);
        queues.filter(move |(lane, _)| lanes.has(**lane)).flat_map(|(_, queue)| &mut queue.jobs)
    }

    /// The next job that may start now, of the lanes that are open. It counts until [`Turns::finish`].
    pub fn next(&mut self, open: Lanes) -> Option<(Destination, J)> {
        let (ready, shares, most) = (&self.ready, &self.shares, &self.most);
        let wish = |lane: usize| {
            let room = shares.room(lane);
            let limit = (room / ROOM_SHARE).max(1).min(most.get(lane).copied().unwrap_or(1));
            match ready.get(lane).and_then(|ready| ready.keys().next()) {
                Some((running, _)) if room > 0 && *running < limit && open.has(lane) => Wish::Ready,
                Some(_) => Wish::Blocked,
                None => Wish::None,
            }
        };
        let lane = self.weighted.next(wish)?;
        let (_, destination) = self.ready.get_mut(lane)?.pop_first()?;
        self.shares.take(lane);
        let waits = self.destinations.get_mut(&destination)?;
        let queue = waits.lanes.get_mut(&lane)?;
        let job = queue.jobs.pop_front()?;
        if queue.jobs.is_empty() {
            waits.lanes.remove(&lane);
        } else {
            // To the end of its kind.
            self.last_turn += 1;
            let order = (waits.running, self.last_turn);
            queue.order = order;
            if let Some(ready) = self.ready.get_mut(lane) {
                ready.insert(order, destination.clone());
            }
        }
        self.count(&destination, |running| running + 1);
        Some((destination, job))
    }

    /// An attempt that [`Turns::next`] gave has ended.
    pub fn finish(&mut self, lane: usize, destination: &Destination) {
        self.shares.give(lane);
        self.count(destination, |running| running.saturating_sub(1));
    }

    fn count(&mut self, destination: &Destination, change: impl Fn(usize) -> usize) {
        let Some(waits) = self.destinations.get_mut(destination) else { return };
        waits.running = change(waits.running);
        for (lane, queue) in &mut waits.lanes {
            let Some(ready) = self.ready.get_mut(*lane) else { continue };
            ready.remove(&queue.order);
            queue.order.0 = waits.running;
            ready.insert(queue.order, destination.clone());
        }
        if waits.running == 0 && waits.lanes.is_empty() {
            self.destinations.remove(destination);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn target(name: impl ToString) -> Destination {
        Destination::Target(name.to_string())
    }

    fn turns(concurrency: usize, weights: &[u32]) -> Turns<u32> {
        Turns::new(concurrency, weights.to_vec(), |lane| lane % 2 == 1)
    }

    fn drain(turns: &mut Turns<u32>) -> Vec<(Destination, u32)> {
        std::iter::from_fn(|| turns.next(Lanes::ALL)).collect()
    }

    #[test]
    fn one_destination_has_ten_and_gets_more_as_they_end() {
        let mut turns = turns(500, &[3, 1]);
        (0..30).for_each(|job| turns.push(0, target("a"), job));
        assert_eq!(drain(&mut turns).len(), ATTEMPTS_PER_DESTINATION);
        turns.finish(0, &target("a"));
        assert_eq!(drain(&mut turns), [(target("a"), 10)]);
    }

    #[test]
    fn destinations_take_turns() {
        let mut turns = turns(500, &[1]);
        (0..3).for_each(|job| turns.push(0, target("a"), job));
        (0..3).for_each(|job| turns.push(0, target("b"), 10 + job));
        let jobs: Vec<u32> = drain(&mut turns).into_iter().map(|(_, job)| job).collect();
        assert_eq!(jobs, [0, 10, 1, 11, 2, 12]);
    }

    /// A hundred that never answer leave attempts for the next one.
    #[test]
    fn slow_destinations_leave_room_however_many_they_are() {
        let mut turns = turns(500, &[6, 2]);
        for name in 0..100 {
            (0..50).for_each(|job| turns.push(0, target(name), job));
        }
        let started = drain(&mut turns).len();
        assert!(started > 300, "{started}");
        turns.push(0, target("good"), 7);
        assert_eq!(drain(&mut turns), [(target("good"), 7)]);
    }

    /// Retries that never end leave attempts for new mail, also where they go.
    #[test]
    fn retries_leave_room_for_new_mail() {
        let mut turns = turns(40, &[3, 1]);
        for name in 0..100 {
            turns.push(1, target(name), name);
        }
        let retries = drain(&mut turns).len();
        assert!((20..40).contains(&retries), "{retries}");
        (0..5).for_each(|job| turns.push(0, target("new"), job));
        assert!(!drain(&mut turns).is_empty());

        let mut turns = self::turns(500, &[3, 1]);
        (0..50).for_each(|job| turns.push(1, target("a"), job));
        assert_eq!(drain(&mut turns).len(), ATTEMPTS_PER_DESTINATION - KEPT_FOR_NEW);
        (50..60).for_each(|job| turns.push(0, target("a"), job));
        assert_eq!(drain(&mut turns), [(target("a"), 50), (target("a"), 51)]);
    }

    #[test]
    fn a_single_attempt_at_once_is_shared_by_weight() {
        let mut turns = turns(1, &[3, 1]);
        (0..40).for_each(|job| turns.push(0, target("a"), job));
        (0..40).for_each(|job| turns.push(1, target("a"), 100 + job));
        let mut retries = 0;
        for _ in 0..40 {
            let started = drain(&mut turns);
            assert_eq!(started.len(), 1);
            let lane = usize::from(started[0].1 >= 100);
            retries += lane;
            turns.finish(lane, &started[0].0);
        }
        assert_eq!(retries, 10);
    }

    /// What is closed starts as soon as it is open, and what is put back comes first.
    #[test]
    fn a_closed_lane_waits_and_keeps_its_order() {
        let mut turns = turns(500, &[3, 3, 3]);
        (0..3).for_each(|job| turns.push(0, target("a"), job));
        turns.push(2, target("a"), 9);
        let only = Lanes::ALL.without(Lanes::of(&[0]));
        assert_eq!(std::iter::from_fn(|| turns.next(only)).collect::<Vec<_>>(), [(target("a"), 9)]);
        assert_eq!(turns.next(Lanes::NONE), None);
        turns.in_lanes(Lanes::of(&[0, 1])).for_each(|job| *job += 10);
        assert_eq!(turns.next(Lanes::of(&[0])), Some((target("a"), 10)));
        turns.finish(0, &target("a"));
        turns.push_front(0, &target("a"), 5);
        assert_eq!(drain(&mut turns), [(target("a"), 5), (target("a"), 11), (target("a"), 12)]);
        turns.push_front(0, &target("b"), 6);
        assert_eq!(drain(&mut turns), [(target("b"), 6)]);
    }

    proptest! {
        /// Whatever comes and ends: every job is given out once, in order within lane and
        /// destination, never more at once than there may be, and nothing is left waiting for ever.
        #[test]
        fn all_is_started_once(
            concurrency in 1usize..30,
            jobs in prop::collection::vec((0usize..4, 0u32..8), 1..200),
            ends in prop::collection::vec(any::<prop::sample::Index>(), 400),
        ) {
            let mut turns = turns(concurrency, &[6, 2, 3, 1]);
            let mut waiting: HashMap<(usize, u32), VecDeque<u32>> = HashMap::new();
            for (number, (lane, name)) in jobs.iter().enumerate() {
                turns.push(*lane, target(name), number as u32);
                waiting.entry((*lane, *name)).or_default().push_back(number as u32);
            }
            let mut running: Vec<(usize, u32)> = Vec::new();
            for end in ends {
                for (destination, job) in drain(&mut turns) {
                    let (lane, name) = jobs[job as usize];
                    prop_assert_eq!(&destination, &target(name));
                    prop_assert_eq!(waiting.get_mut(&(lane, name)).unwrap().pop_front(), Some(job));
                    running.push((lane, name));
                }
                prop_assert!(running.len() <= concurrency);
                for name in 0..8 {
                    prop_assert!(running.iter().filter(|(_, other)| *other == name).count() <= ATTEMPTS_PER_DESTINATION);
                }
                if running.is_empty() {
                    break;
                }
                let (lane, name) = running.swap_remove(end.index(running.len()));
                turns.finish(lane, &target(name));
            }
            prop_assert!(running.is_empty() && waiting.values().all(VecDeque::is_empty));
            prop_assert!(turns.destinations.is_empty() && turns.ready.iter().all(BTreeMap::is_empty));
        }
    }
}
