//! Whose turn it is: jobs that wait, by lane and destination, and how many attempts each has under
//! way. Pure.
//!
//! Lanes have turns by weight, and each has some of the attempts at once for itself. Within a lane the
//! destination with the fewest attempts under way comes next, and among those the one that has waited
//! longest. A destination gets no further attempt if it has as many as it may, or half of what is left
//! for the others; nor one for a retry if only a fifth of its own is left; nor one before its time, which
//! a rate or a pause sets.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use crate::clock::Millis;
use crate::queue::gate::Lanes;
use crate::queue::shares::{self, Shares, Wish};

use super::Destination;

/// One of so many attempts at once for a destination is kept from retries, for new mail.
const KEPT_FOR_NEW_SHARE: usize = 5;
/// One of so many attempts at once is reserved, each lane its own.
const RESERVED: usize = 4;
/// The attempts that are left for a lane, divided by this, is what a destination may have.
const ROOM_SHARE: usize = 2;
/// A destination with a rate that is behind makes up for so much, in microseconds: the dispatcher may
/// look a little late.
const BEHIND_MAX: u64 = 100_000;
const MICROS: u64 = 1_000;

/// Attempts under way, and the number of the turn: the least is next.
type Order = (usize, u64);

/// What a destination may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allowance {
    /// Attempts at once.
    pub connections: usize,
    /// From one message to the next, in microseconds; 0: no matter.
    pub every: u64,
    /// Nothing starts before.
    pub not_before: Millis,
}

struct Lane<J> {
    jobs: VecDeque<J>,
    order: Order,
    /// It is in `ready`, in this order.
    is_ready: bool,
}

struct Waits<J> {
    running: usize,
    allowance: Allowance,
    /// When its rate allows the next message, in microseconds.
    next: u64,
    /// It is in `asleep`, with this time.
    asleep: Option<Millis>,
    /// Those with jobs.
    lanes: BTreeMap<usize, Lane<J>>,
    /// In all lanes.
    jobs: u64,
    /// With a rate: up to when its messages have been given a time, in microseconds.
    booked: u64,
}

impl<J> Waits<J> {
    fn new(allowance: Allowance) -> Waits<J> {
        Waits { running: 0, allowance, next: 0, asleep: None, lanes: BTreeMap::new(), jobs: 0, booked: 0 }
    }

    fn opens_at(&self) -> Millis {
        self.next.div_ceil(MICROS).max(self.allowance.not_before)
    }

    /// So many messages have their time.
    fn spend(&mut self, messages: u64, now: Millis) {
        if self.allowance.every > 0 {
            let first = self.next.max((now * MICROS).saturating_sub(BEHIND_MAX));
            self.next = first.saturating_add(self.allowance.every.saturating_mul(messages));
        }
    }
}

pub(super) struct Turns<J> {
    shares: Shares,
    weighted: shares::Turns,
    /// By lane.
    is_retry: Vec<bool>,
    destinations: HashMap<Destination, Waits<J>>,
    /// By lane: destinations with jobs in it that may have one more attempt.
    ready: Vec<BTreeMap<Order, Destination>>,
    /// Destinations whose time has not come.
    asleep: BTreeSet<(Millis, Destination)>,
    last_turn: u64,
    now: Millis,
}

impl<J> Turns<J> {
    /// `concurrency` attempts at once; `weights` by lane, and which of them are retries.
    pub fn new(concurrency: usize, weights: Vec<u32>, is_retry: impl Fn(usize) -> bool) -> Turns<J> {
        Turns {
            is_retry: (0..weights.len()).map(is_retry).collect(),
            shares: Shares::new(concurrency, concurrency / RESERVED, &weights),
            ready: weights.iter().map(|_| BTreeMap::new()).collect(),
            weighted: shares::Turns::new(weights),
            destinations: HashMap::new(),
            asleep: BTreeSet::new(),
            last_turn: 0,
            now: 0,
        }
    }

    /// `allowance` is asked for if nothing is known of the destination.
    pub fn push(
        &mut self,
        lane: usize,
        destination: Destination,
        job: J,
        allowance: impl FnOnce(&Destination) -> Allowance,
    ) {
        let waits = self.destinations.entry(destination.clone());
        let waits = waits.or_insert_with_key(|destination| Waits::new(allowance(destination)));
        waits.jobs += 1;
        if let Some(queue) = waits.lanes.get_mut(&lane) {
            queue.jobs.push_back(job);
            return;
        }
        self.last_turn += 1;
        let order = (waits.running, self.last_turn);
        waits.lanes.insert(lane, Lane { jobs: VecDeque::from([job]), order, is_ready: false });
        self.sort(&destination);
    }

    /// Puts what is left of a job that [`Turns::next`] gave back in front.
    pub fn push_front(
        &mut self,
        lane: usize,
        destination: &Destination,
        job: J,
        allowance: impl FnOnce(&Destination) -> Allowance,
    ) {
        if let Some(waits) = self.destinations.get_mut(destination)
            && let Some(queue) = waits.lanes.get_mut(&lane)
        {
            waits.jobs += 1;
            queue.jobs.push_front(job);
            return;
        }
        self.push(lane, destination.clone(), job, allowance);
    }

    /// The one of a lane that comes last for this destination.
    pub fn last(&mut self, lane: usize, destination: &Destination) -> Option<&mut J> {
        self.destinations.get_mut(destination)?.lanes.get_mut(&lane)?.jobs.back_mut()
    }

    /// The jobs that wait in these lanes.
    pub fn in_lanes(&mut self, lanes: Lanes) -> impl Iterator<Item = &mut J> {
        let queues = self.destinations.values_mut().flat_map(|waits| &mut waits.lanes);
        queues.filter(move |(lane, _)| lanes.has(**lane)).flat_map(|(_, queue)| &mut queue.jobs)
    }

    /// The next job that may start now, of the lanes that are open. It counts until [`Turns::finish`].
    pub fn next(&mut self, open: Lanes) -> Option<(Destination, J)> {
        let (ready, shares) = (&self.ready, &self.shares);
        let wish = |lane: usize| {
            let room = shares.room(lane);
            let limit = (room / ROOM_SHARE).max(1);
            match ready.get(lane).and_then(|ready| ready.keys().next()) {
                Some((running, _)) if room > 0 && *running < limit && open.has(lane) => Wish::Ready,
                Some(_) => Wish::Blocked,
                None => Wish::None,
            }
        };
        let lane = self.weighted.next(wish)?;
        let (_, destination) = self.ready.get_mut(lane)?.pop_first()?;
        self.shares.take(lane);
        let now = self.now;
        let waits = self.destinations.get_mut(&destination)?;
        let queue = waits.lanes.get_mut(&lane)?;
        let job = queue.jobs.pop_front()?;
        if queue.jobs.is_empty() {
            waits.lanes.remove(&lane);
        } else {
            // To the end of its kind.
            self.last_turn += 1;
            queue.order.1 = self.last_turn;
            queue.is_ready = false;
        }
        waits.running += 1;
        waits.jobs = waits.jobs.saturating_sub(1);
        waits.spend(1, now);
        self.sort(&destination);
        Some((destination, job))
    }

    /// An attempt that [`Turns::next`] gave has ended.
    pub fn finish(&mut self, lane: usize, destination: &Destination) {
        self.shares.give(lane);
        if let Some(waits) = self.destinations.get_mut(destination) {
            waits.running = waits.running.saturating_sub(1);
            self.sort(destination);
        }
    }

    /// The last job of this destination is so many messages more than one.
    pub fn spend(&mut self, destination: &Destination, messages: u64) {
        if let Some(waits) = self.destinations.get_mut(destination).filter(|_| messages > 0) {
            waits.spend(messages, self.now);
            self.sort(destination);
        }
    }

    /// Something else holds for this destination from now on.
    pub fn allow(&mut self, destination: &Destination, allowance: Allowance) {
        if let Some(waits) = self.destinations.get_mut(destination) {
            waits.allowance = allowance;
            self.sort(destination);
        }
    }

    /// For a destination whose rate cannot take one more within `ahead`: when it can. Each time that is
    /// given is given once.
    pub fn book(&mut self, destination: &Destination, ahead: Millis) -> Option<Millis> {
        let now = self.now * MICROS;
        let waits = self.destinations.get_mut(destination).filter(|waits| waits.allowance.every > 0)?;
        let every = waits.allowance.every;
        let turn = waits.next.max(now).saturating_add(waits.jobs.saturating_mul(every));
        if turn <= now + ahead * MICROS {
            return None;
        }
        let time = waits.booked.max(turn);
        waits.booked = time.saturating_add(every);
        Some(time / MICROS)
    }

    /// Other numbers, and other allowances for all destinations, hold from now on. There are at least as many lanes
    /// as before.
    pub fn renew(
        &mut self,
        concurrency: usize,
        weights: Vec<u32>,
        is_retry: impl Fn(usize) -> bool,
        allowance: impl Fn(&Destination) -> Allowance,
    ) {
        self.is_retry = (0..weights.len()).map(is_retry).collect();
        self.shares.renew(concurrency, concurrency / RESERVED, &weights);
        self.ready.resize_with(weights.len().max(self.ready.len()), BTreeMap::new);
        self.weighted = shares::Turns::new(weights);
        let known: Vec<Destination> = self.destinations.keys().cloned().collect();
        for destination in known {
            let allowance = allowance(&destination);
            self.allow(&destination, allowance);
        }
    }

    /// All jobs of a destination that wait, each with its lane. They have had no turn.
    pub fn withdraw(&mut self, destination: &Destination) -> Vec<(usize, J)> {
        let Some(waits) = self.destinations.get_mut(destination) else { return Vec::new() };
        waits.jobs = 0;
        let mut jobs = Vec::new();
        for (lane, queue) in std::mem::take(&mut waits.lanes) {
            if let Some(ready) = self.ready.get_mut(lane).filter(|_| queue.is_ready) {
                ready.remove(&queue.order);
            }
            jobs.extend(queue.jobs.into_iter().map(|job| (lane, job)));
        }
        self.sort(destination);
        jobs
    }

    /// It is so late: those whose time has come may start.
    pub fn wake(&mut self, now: Millis) {
        let back = self.now.saturating_sub(now);
        self.now = now;
        if back > BEHIND_MAX / MICROS {
            self.set_back(back);
        }
        while self.asleep.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, destination)) = self.asleep.pop_first() else { return };
            if let Some(waits) = self.destinations.get_mut(&destination) {
                waits.asleep = None;
            }
            self.sort(&destination);
        }
    }

    /// The clock was: what was to come in a minute shall come in a minute.
    fn set_back(&mut self, back: Millis) {
        for waits in self.destinations.values_mut() {
            waits.next = waits.next.saturating_sub(back * MICROS);
            waits.booked = waits.booked.saturating_sub(back * MICROS);
            waits.allowance.not_before = waits.allowance.not_before.saturating_sub(back);
            waits.asleep = waits.asleep.map(|at| at.saturating_sub(back));
        }
        let asleep = std::mem::take(&mut self.asleep);
        self.asleep = asleep.into_iter().map(|(at, destination)| (at.saturating_sub(back), destination)).collect();
    }

    /// Attempts under way at a destination, jobs that wait for it, and when the next may start.
    pub fn look(&self, destination: &Destination) -> Option<(usize, u64, Millis)> {
        self.destinations.get(destination).map(|waits| (waits.running, waits.jobs, waits.opens_at()))
    }

    /// Those with attempts under way or jobs that wait, each with how many of both.
    pub fn busy(&self) -> impl Iterator<Item = (&Destination, usize, u64)> {
        self.destinations.iter().map(|(destination, waits)| (destination, waits.running, waits.jobs))
    }

    /// When [`Turns::wake`] is due.
    pub fn next_wake(&self) -> Option<Millis> {
        self.asleep.first().map(|(at, _)| *at)
    }

    /// Puts a destination where it belongs after something about it has changed.
    fn sort(&mut self, destination: &Destination) {
        let Some(waits) = self.destinations.get_mut(destination) else { return };
        let opens_at = waits.opens_at();
        let is_open = opens_at <= self.now;
        for (lane, queue) in &mut waits.lanes {
            let Some(ready) = self.ready.get_mut(*lane) else { continue };
            if queue.is_ready {
                ready.remove(&queue.order);
            }
            queue.order.0 = waits.running;
            let kept = match self.is_retry.get(*lane) {
                Some(true) => waits.allowance.connections / KEPT_FOR_NEW_SHARE,
                _ => 0,
            };
            queue.is_ready = is_open && waits.running < waits.allowance.connections - kept;
            if queue.is_ready {
                ready.insert(queue.order, destination.clone());
            }
        }
        // What a rate does not allow yet is remembered until it does, also when nothing waits for it.
        let is_paced = waits.next > self.now * MICROS;
        let sleeps = (!is_open && (is_paced || !waits.lanes.is_empty())).then_some(opens_at);
        if waits.asleep != sleeps {
            if let Some(at) = std::mem::replace(&mut waits.asleep, sleeps) {
                self.asleep.remove(&(at, destination.clone()));
            }
            self.asleep.extend(sleeps.map(|at| (at, destination.clone())));
        }
        if waits.running == 0 && waits.lanes.is_empty() && sleeps.is_none() {
            self.destinations.remove(destination);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const TEN: Allowance = Allowance { connections: 10, every: 0, not_before: 0 };

    fn target(name: impl ToString) -> Destination {
        Destination::Target(name.to_string())
    }

    fn turns(concurrency: usize, weights: &[u32]) -> Turns<u32> {
        Turns::new(concurrency, weights.to_vec(), |lane| lane % 2 == 1)
    }

    fn drain(turns: &mut Turns<u32>) -> Vec<(Destination, u32)> {
        std::iter::from_fn(|| turns.next(Lanes::ALL)).collect()
    }

    fn count(turns: &mut Turns<u32>) -> usize {
        drain(turns).len()
    }

    #[test]
    fn one_destination_has_what_it_may_and_gets_more_as_they_end() {
        for connections in [1, 10, 40] {
            let mut turns = turns(500, &[3, 1]);
            let allowance = Allowance { connections, ..TEN };
            (0..50).for_each(|job| turns.push(0, target("a"), job, |_| allowance));
            assert_eq!(count(&mut turns), connections);
            turns.finish(0, &target("a"));
            assert_eq!(drain(&mut turns), [(target("a"), connections as u32)]);
        }
    }

    #[test]
    fn destinations_take_turns() {
        let mut turns = turns(500, &[1]);
        (0..3).for_each(|job| turns.push(0, target("a"), job, |_| TEN));
        (0..3).for_each(|job| turns.push(0, target("b"), 10 + job, |_| TEN));
        let jobs: Vec<u32> = drain(&mut turns).into_iter().map(|(_, job)| job).collect();
        assert_eq!(jobs, [0, 10, 1, 11, 2, 12]);
    }

    /// One that has all it may is not in the way of those that have more than it.
    #[test]
    fn a_small_limit_holds_up_nobody_else() {
        let mut turns = turns(500, &[1]);
        (0..5).for_each(|job| turns.push(0, target("small"), job, |_| Allowance { connections: 1, ..TEN }));
        (0..5).for_each(|job| turns.push(0, target("large"), 10 + job, |_| TEN));
        let started = drain(&mut turns);
        assert_eq!(started.iter().filter(|(name, _)| *name == target("large")).count(), 5);
        assert_eq!(started.len(), 6);
    }

    /// A hundred that never answer leave attempts for the next one.
    #[test]
    fn slow_destinations_leave_room_however_many_they_are() {
        let mut turns = turns(500, &[6, 2]);
        for name in 0..100 {
            (0..50).for_each(|job| turns.push(0, target(name), job, |_| TEN));
        }
        let started = count(&mut turns);
        assert!(started > 300, "{started}");
        turns.push(0, target("good"), 7, |_| TEN);
        assert_eq!(drain(&mut turns), [(target("good"), 7)]);
    }

    /// Retries that never end leave attempts for new mail, also where they go.
    #[test]
    fn retries_leave_room_for_new_mail() {
        let mut turns = turns(40, &[3, 1]);
        for name in 0..100 {
            turns.push(1, target(name), name, |_| TEN);
        }
        let retries = count(&mut turns);
        assert!((20..40).contains(&retries), "{retries}");
        (0..5).for_each(|job| turns.push(0, target("new"), job, |_| TEN));
        assert!(!drain(&mut turns).is_empty());

        let mut turns = self::turns(500, &[3, 1]);
        (0..50).for_each(|job| turns.push(1, target("a"), job, |_| TEN));
        assert_eq!(count(&mut turns), 8);
        (50..60).for_each(|job| turns.push(0, target("a"), job, |_| TEN));
        assert_eq!(drain(&mut turns), [(target("a"), 50), (target("a"), 51)]);
    }

    #[test]
    fn a_single_attempt_at_once_is_shared_by_weight() {
        let mut turns = turns(1, &[3, 1]);
        (0..40).for_each(|job| turns.push(0, target("a"), job, |_| TEN));
        (0..40).for_each(|job| turns.push(1, target("a"), 100 + job, |_| TEN));
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
        (0..3).for_each(|job| turns.push(0, target("a"), job, |_| TEN));
        turns.push(2, target("a"), 9, |_| TEN);
        let only = Lanes::ALL.without(Lanes::of(&[0]));
        assert_eq!(std::iter::from_fn(|| turns.next(only)).collect::<Vec<_>>(), [(target("a"), 9)]);
        assert_eq!(turns.next(Lanes::NONE), None);
        turns.in_lanes(Lanes::of(&[0, 1])).for_each(|job| *job += 10);
        assert_eq!(turns.next(Lanes::of(&[0])), Some((target("a"), 10)));
        turns.finish(0, &target("a"));
        turns.push_front(0, &target("a"), 5, |_| TEN);
        assert_eq!(drain(&mut turns), [(target("a"), 5), (target("a"), 11), (target("a"), 12)]);
        turns.push_front(0, &target("b"), 6, |_| TEN);
        assert_eq!(drain(&mut turns), [(target("b"), 6)]);
    }

    #[test]
    fn a_rate_spreads_messages_evenly_and_outlives_an_empty_queue() {
        let mut turns = turns(500, &[1]);
        // A hundred a minute.
        let paced = Allowance { every: 600_000, ..TEN };
        let mut started = Vec::new();
        let mut now = 1_000_000;
        for job in 0..20 {
            turns.wake(now);
            turns.push(0, target("a"), job, |_| paced);
            for (destination, _) in drain(&mut turns) {
                started.push(now - 1_000_000);
                turns.finish(0, &destination);
            }
            now += 300;
        }
        while let Some(wake) = turns.next_wake() {
            turns.wake(wake);
            for (destination, _) in drain(&mut turns) {
                started.push(wake - 1_000_000);
                turns.finish(0, &destination);
            }
        }
        // What is behind by a tenth of a second at the start is made up for.
        assert_eq!(started[..4], [0, 600, 1_200, 1_800]);
        assert_eq!(started.len(), 20);
        assert_eq!(started[19], 19 * 600 - 100);
        assert!(turns.destinations.is_empty());
    }

    #[test]
    fn a_job_of_several_messages_spends_several() {
        let mut turns = turns(500, &[1]);
        (0..2).for_each(|job| turns.push(0, target("a"), job, |_| Allowance { every: 1_000_000, ..TEN }));
        turns.wake(50_000);
        assert_eq!(count(&mut turns), 1);
        turns.spend(&target("a"), 2);
        assert_eq!(turns.next_wake(), Some(50_000 - 100 + 3_000));
    }

    #[test]
    fn a_pause_ends_by_itself_and_can_be_cut_short() {
        let mut turns = turns(500, &[1]);
        turns.wake(1_000);
        let pause = Allowance { connections: 1, not_before: 6_000, ..TEN };
        (0..3).for_each(|job| turns.push(0, target("a"), job, |_| pause));
        turns.push(0, target("b"), 9, |_| TEN);
        assert_eq!(drain(&mut turns), [(target("b"), 9)]);
        assert_eq!(turns.next_wake(), Some(6_000));
        turns.wake(5_999);
        assert_eq!(count(&mut turns), 0);
        turns.wake(6_000);
        assert_eq!((count(&mut turns), turns.next_wake()), (1, None));
        turns.allow(&target("a"), TEN);
        assert_eq!(count(&mut turns), 2);
    }

    #[test]
    fn a_clock_set_back_makes_no_wait_longer() {
        let mut turns = turns(500, &[1]);
        turns.wake(1_000_000);
        turns.push(0, target("a"), 1, |_| Allowance { not_before: 1_005_000, ..TEN });
        turns.wake(500_000);
        assert_eq!(turns.next_wake(), Some(505_000));
        turns.wake(505_000);
        assert_eq!(count(&mut turns), 1);
    }

    #[test]
    fn what_a_rate_cannot_take_soon_gets_a_time_of_its_own() {
        let mut turns = turns(500, &[1]);
        turns.wake(1_000_000);
        let paced = Allowance { every: 1_000_000, ..TEN };
        let booked: Vec<Option<Millis>> = (0..14)
            .map(|job| {
                let time = turns.book(&target("a"), 10_000);
                if time.is_none() {
                    turns.push(0, target("a"), job, |_| paced);
                }
                time
            })
            .collect();
        assert!(booked[..11].iter().all(Option::is_none));
        assert_eq!(booked[11..], [Some(1_011_000), Some(1_012_000), Some(1_013_000)]);
        assert_eq!(turns.book(&target("b"), 10_000), None);
    }

    #[test]
    fn what_is_withdrawn_is_all_that_waits() {
        let mut turns = turns(500, &[3, 1]);
        (0..3).for_each(|job| turns.push(0, target("a"), job, |_| Allowance { connections: 1, ..TEN }));
        turns.push(1, target("a"), 3, |_| TEN);
        turns.push(0, target("b"), 4, |_| TEN);
        assert_eq!(count(&mut turns), 2);
        assert_eq!(turns.withdraw(&target("a")).len(), 3);
        assert_eq!(turns.withdraw(&target("a")).len(), 0);
        turns.finish(0, &target("a"));
        turns.finish(0, &target("b"));
        assert!(turns.destinations.is_empty() && turns.ready.iter().all(BTreeMap::is_empty));
    }

    proptest! {
        /// Whatever comes and ends: every job is given out once, in order within lane and
        /// destination, never more at once than there may be nor before its time, and nothing is left
        /// waiting for ever.
        #[test]
        fn all_is_started_once(
            concurrency in 1usize..30,
            limits in prop::collection::vec((1usize..12, 0u64..3, 0u64..5_000), 8),
            jobs in prop::collection::vec((0usize..4, 0usize..8), 1..200),
            ends in prop::collection::vec((any::<prop::sample::Index>(), 0u64..2_000), 1_000),
        ) {
            let mut turns = turns(concurrency, &[6, 2, 3, 1]);
            let mut waiting: HashMap<(usize, usize), VecDeque<u32>> = HashMap::new();
            let allowance = |name: usize| {
                let (connections, every, not_before) = limits[name];
                Allowance { connections, every: every * 100_000, not_before }
            };
            for (number, (lane, name)) in jobs.iter().enumerate() {
                turns.push(*lane, target(name), number as u32, |_| allowance(*name));
                waiting.entry((*lane, *name)).or_default().push_back(number as u32);
            }
            let mut running: Vec<(usize, usize)> = Vec::new();
            let mut now = 0;
            let mut begun = [0; 8];
            for (end, wait) in ends {
                turns.wake(now);
                for (destination, job) in drain(&mut turns) {
                    let (lane, name) = jobs[job as usize];
                    prop_assert_eq!(&destination, &target(name));
                    prop_assert_eq!(waiting.get_mut(&(lane, name)).unwrap().pop_front(), Some(job));
                    running.push((lane, name));
                    begun[name] += 1;
                    prop_assert!(now >= limits[name].2);
                    prop_assert!((begun[name] - 1) * limits[name].1 * 100 <= now + 100);
                }
                prop_assert!(running.len() <= concurrency);
                for (name, limit) in limits.iter().enumerate() {
                    prop_assert!(running.iter().filter(|(_, other)| *other == name).count() <= limit.0);
                }
                if running.is_empty() {
                    let Some(wake) = turns.next_wake() else { break };
                    now = now.max(wake);
                    continue;
                }
                let (lane, name) = running.swap_remove(end.index(running.len()));
                turns.finish(lane, &target(name));
                now += wait;
            }
            prop_assert!(running.is_empty() && waiting.values().all(VecDeque::is_empty));
            prop_assert!(turns.destinations.is_empty() && turns.ready.iter().all(BTreeMap::is_empty));
            prop_assert!(turns.asleep.is_empty());
        }
    }
}
