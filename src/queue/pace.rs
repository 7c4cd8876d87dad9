//! How fast one stream may send: so many attempts at once, blocks with a pause between them, so many
//! recipients a day. Pure; the unit is a recipient in a transaction.
//!
//! # Blocks
//!
//! | state    | is                                    | the next step                                 | after a crash                |
//! |----------|---------------------------------------|-----------------------------------------------|------------------------------|
//! | filling  | given < size                          | a start makes given grow: filling or draining | what was given stays given   |
//! | draining | given = size, some are still under way | the last of them ends: pausing                | none is under way: pausing,  |
//! |          |                                       |                                               | the whole pause from now on  |
//! | pausing  | now < `pause_until`, given = 0        | time: filling                                 | pausing, until the same time |
//!
//! `given` is written before the first of its attempts begins and `pause_until` when the last has ended
//! (see `queue::gate`), so no restart shortens a pause or begins a block anew. What was under way in a
//! crash is tried again and counts again: it was a transaction.
//!
//! # Days
//!
//! A recipient counts when its first attempt starts, on the day (UTC) of that attempt; a retry does not
//! count again, and is not held up. After a crash in a first attempt it counts twice: rather one too few
//! than one too many.

use serde::{Deserialize, Serialize};

use crate::clock::Millis;
use crate::config::Stream;

pub const DAY_MILLIS: Millis = 24 * 3600 * 1000;

/// What a stream may do; see [`Stream`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Attempts at once.
    pub attempts: Option<usize>,
    /// Recipients, and the pause behind them.
    pub block: Option<(u32, Millis)>,
    /// Recipients a day.
    pub daily: Option<u64>,
}

impl Limits {
    pub fn of(stream: &Stream) -> Limits {
        let block = |block: crate::config::Block| (block.size, u64::try_from(block.pause.as_millis()).unwrap_or(0));
        Limits { attempts: stream.concurrency, block: stream.block.map(block), daily: stream.daily_limit }
    }

    pub fn is_any(&self) -> bool {
        *self != Limits::default()
    }
}

/// What of it is kept in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// Of the block that is not over yet.
    pub given: u32,
    /// The pause after the last block; 0: there was none yet.
    pub pause_until: Millis,
    /// Since 1970.
    pub day: u64,
    /// Recipients on that day.
    pub sent: u64,
}

/// Why nothing more may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// So many attempts are under way already.
    Attempts(usize),
    /// A block of this size is complete, and some of it are still under way.
    Block(u32),
    Pause {
        block: u32,
        until: Millis,
    },
    Day {
        limit: u64,
        until: Millis,
    },
}

#[derive(Clone, Debug)]
pub struct Pace {
    limits: Limits,
    kept: Kept,
    /// Attempts under way.
    attempts: usize,
    /// Recipients in them.
    under_way: usize,
}

pub fn day_of(now: Millis) -> u64 {
    now / DAY_MILLIS
}

/// The beginning of the day after `now`.
pub fn next_day(now: Millis) -> Millis {
    (day_of(now) + 1) * DAY_MILLIS
}

impl Pace {
    /// After a start, when nothing is under way.
    pub fn new(limits: Limits, kept: Kept, now: Millis) -> Pace {
        let mut pace = Pace { limits, kept, attempts: 0, under_way: 0 };
        let (size, pause) = limits.block.unwrap_or((u32::MAX, 0));
        if limits.block.is_none() {
            (pace.kept.given, pace.kept.pause_until) = (0, 0);
        }
        // A clock that was set back must not make it longer than it is.
        pace.kept.pause_until = pace.kept.pause_until.min(now.saturating_add(pause));
        if pace.kept.given >= size {
            pace.pause(now);
        }
        pace
    }

    /// Other limits hold from now on; what was sent and is under way counts on.
    pub fn renew(&mut self, limits: Limits, now: Millis) {
        let was_block = self.limits.block;
        self.limits = limits;
        match limits.block {
            None => (self.kept.given, self.kept.pause_until) = (0, 0),
            Some((size, pause)) => {
                if was_block.is_some_and(|(_, before)| before != pause) {
                    self.kept.pause_until = self.kept.pause_until.min(now.saturating_add(pause));
                }
                if self.under_way == 0 && self.kept.given >= size {
                    self.pause(now);
                }
            }
        }
    }

    pub fn is_limited(&self) -> bool {
        self.limits.is_any()
    }

    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    fn pause(&mut self, now: Millis) {
        if let Some((_, pause)) = self.limits.block {
            self.kept.given = 0;
            self.kept.pause_until = now.saturating_add(pause);
        }
    }

    fn sent_on(&self, day: u64) -> u64 {
        if self.kept.day == day { self.kept.sent } else { 0 }
    }

    /// How many recipients may start now, in one attempt.
    pub fn room(&self, is_retry: bool, now: Millis) -> usize {
        if self.wait(is_retry, now).is_some() {
            return 0;
        }
        let block = self.limits.block.map(|(size, _)| u64::from(size.saturating_sub(self.kept.given)));
        let day = self.limits.daily.filter(|_| !is_retry).map(|limit| limit.saturating_sub(self.sent_on(day_of(now))));
        let room = block.unwrap_or(u64::MAX).min(day.unwrap_or(u64::MAX));
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    /// What keeps the next one from starting. What takes longest comes first.
    pub fn wait(&self, is_retry: bool, now: Millis) -> Option<Wait> {
        let day = self.limits.daily.filter(|limit| !is_retry && self.sent_on(day_of(now)) >= *limit);
        if let Some(limit) = day {
            return Some(Wait::Day { limit, until: next_day(now) });
        }
        if let Some((block, _)) = self.limits.block {
            if now < self.kept.pause_until {
                return Some(Wait::Pause { block, until: self.kept.pause_until });
            }
            if self.kept.given >= block {
                return Some(Wait::Block(block));
            }
        }
        self.limits.attempts.filter(|most| self.attempts >= *most).map(Wait::Attempts)
    }

    /// Until when it is of no use to look for more.
    pub fn closed_until(&self, is_retry: bool, now: Millis) -> Option<Millis> {
        match self.wait(is_retry, now)? {
            Wait::Day { until, .. } | Wait::Pause { until, .. } => Some(until),
            Wait::Attempts(_) | Wait::Block(_) => None,
        }
    }

    /// An attempt for so many recipients, at most [`Pace::room`], starts.
    pub fn start(&mut self, recipients: usize, is_retry: bool, now: Millis) {
        self.attempts += 1;
        self.under_way += recipients;
        if self.limits.block.is_some() {
            self.kept.given = self.kept.given.saturating_add(u32::try_from(recipients).unwrap_or(u32::MAX));
        }
        if self.limits.daily.is_some() && !is_retry {
            let day = day_of(now);
            self.kept.sent = self.sent_on(day) + recipients as u64;
            self.kept.day = day;
        }
    }

    /// It has ended, one way or the other.
    pub fn end(&mut self, recipients: usize, now: Millis) {
        self.attempts = self.attempts.saturating_sub(1);
        self.under_way = self.under_way.saturating_sub(recipients);
        if self.under_way == 0 && self.limits.block.is_some_and(|(size, _)| self.kept.given >= size) {
            self.pause(now);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Millis = 60_000;
    const START: Millis = 1_800_000_000_000;

    fn blocks() -> Limits {
        Limits { block: Some((5, 2 * MINUTE)), ..Limits::default() }
    }

    /// Starts what may start, one recipient each.
    fn fill(pace: &mut Pace, waiting: &mut usize, now: Millis) -> usize {
        let before = *waiting;
        while *waiting > 0 && pace.room(false, now) > 0 {
            pace.start(1, false, now);
            *waiting -= 1;
        }
        before - *waiting
    }

    /// 0:00 five, 2:00 five, 4:00 two; a restart anywhere changes nothing.
    #[test]
    fn twelve_go_in_blocks_of_five() {
        for restarts in [vec![], vec![0], vec![1], vec![119_999], vec![1, 2 * MINUTE + 1, 3 * MINUTE]] {
            let (mut pace, mut waiting) = (Pace::new(blocks(), Kept::default(), START), 12);
            let mut went = Vec::new();
            for at in (0..=5 * MINUTE)
                .step_by(1000)
                .chain(restarts.iter().copied())
                .collect::<std::collections::BTreeSet<_>>()
            {
                let now = START + at;
                if restarts.contains(&at) {
                    pace = Pace::new(blocks(), pace.kept().clone(), now);
                }
                let count = fill(&mut pace, &mut waiting, now);
                if count > 0 {
                    went.push((at, count));
                }
                (0..count).for_each(|_| pace.end(1, now));
            }
            assert_eq!(went, [(0, 5), (2 * MINUTE, 5), (4 * MINUTE, 2)], "{restarts:?}");
        }
    }

    #[test]
    fn the_pause_begins_when_the_last_of_the_block_has_ended() {
        let (mut pace, mut waiting) = (Pace::new(blocks(), Kept::default(), START), 12);
        assert_eq!(fill(&mut pace, &mut waiting, START), 5);
        (0..4).for_each(|_| pace.end(1, START + MINUTE));
        assert_eq!(pace.wait(false, START + 10 * MINUTE), Some(Wait::Block(5)));
        pace.end(1, START + 10 * MINUTE);
        let until = START + 12 * MINUTE;
        assert_eq!(pace.wait(true, until - 1), Some(Wait::Pause { block: 5, until }));
        assert_eq!(pace.closed_until(false, until - 1), Some(until));
        assert_eq!(pace.room(false, until), 5);
    }

    #[test]
    fn a_crash_in_a_block_begins_it_neither_anew_nor_without_a_pause() {
        let (mut pace, mut waiting) = (Pace::new(blocks(), Kept::default(), START), 3);
        assert_eq!(fill(&mut pace, &mut waiting, START), 3);
        let pace = Pace::new(blocks(), pace.kept().clone(), START + MINUTE);
        assert_eq!(pace.room(false, START + MINUTE), 2);

        let (mut pace, mut waiting) = (Pace::new(blocks(), Kept::default(), START), 12);
        assert_eq!(fill(&mut pace, &mut waiting, START), 5);
        pace.end(1, START);
        let pace = Pace::new(blocks(), pace.kept().clone(), START + MINUTE);
        assert_eq!(pace.closed_until(false, START + MINUTE), Some(START + 3 * MINUTE));
    }

    #[test]
    fn a_day_counts_first_attempts_and_ends_at_midnight() {
        let limits = Limits { daily: Some(200), ..Limits::default() };
        let midnight = next_day(START);
        let (mut pace, mut waiting) = (Pace::new(limits, Kept::default(), START), 201);
        assert_eq!(fill(&mut pace, &mut waiting, midnight - 1), 200);
        let until = midnight;
        assert_eq!(pace.wait(false, midnight - 1), Some(Wait::Day { limit: 200, until }));
        assert!(pace.room(true, midnight - 1) > 1000, "retries go on");
        pace.start(7, true, midnight - 1);
        let mut pace = Pace::new(limits, pace.kept().clone(), midnight - 1);
        assert_eq!((pace.kept().sent, pace.room(false, midnight - 1), pace.room(false, midnight)), (200, 0, 200));
        assert_eq!(fill(&mut pace, &mut waiting, midnight), 1);
        assert_eq!(pace.room(false, midnight), 199);
    }

    #[test]
    fn one_at_once_is_one_after_the_other() {
        let limits = Limits { attempts: Some(1), ..Limits::default() };
        let mut pace = Pace::new(limits, Kept::default(), START);
        pace.start(3, false, START);
        assert_eq!((pace.wait(true, START), pace.closed_until(true, START)), (Some(Wait::Attempts(1)), None));
        pace.end(3, START);
        assert!(pace.room(false, START) > 0);
    }

    #[test]
    fn clocks_that_were_set_back_and_limits_that_have_changed() {
        let kept = Kept { given: 5, pause_until: START + 1_000_000 * MINUTE, day: day_of(START) + 9, sent: 10 };
        let pace = Pace::new(blocks(), Kept { given: 0, ..kept.clone() }, START);
        assert_eq!(pace.closed_until(false, START), Some(START + 2 * MINUTE));
        let pace = Pace::new(Limits { daily: Some(10), ..Limits::default() }, kept.clone(), START);
        assert_eq!((pace.room(false, START), pace.kept().given), (10, 0));
        let smaller = Limits { block: Some((3, MINUTE)), ..Limits::default() };
        assert_eq!(Pace::new(smaller, kept, START).closed_until(false, START), Some(START + MINUTE));
    }

    proptest! {
        /// Whatever starts, ends and crashes: between two pauses no more than a block starts, and no
        /// pause is shorter than it is to be.
        #[test]
        fn no_block_is_larger_and_no_pause_shorter(
            steps in prop::collection::vec((0u8..4, 1usize..4, 0u64..200_000), 1..300)
        ) {
            let (mut pace, mut now) = (Pace::new(blocks(), Kept::default(), START), START);
            let (mut in_block, mut running) = (0, Vec::new());
            let mut block_over: Option<Millis> = None;
            for (step, many, wait) in steps {
                match step {
                    0 | 1 => {
                        let count = pace.room(false, now).min(many);
                        if count > 0 {
                            if let Some(over) = block_over.take() {
                                prop_assert!(now >= over + 2 * MINUTE);
                                in_block = 0;
                            }
                            pace.start(count, false, now);
                            running.push(count);
                            in_block += count;
                            prop_assert!(in_block <= 5);
                        }
                    }
                    2 => {
                        if let Some(count) = running.pop() {
                            pace.end(count, now);
                        }
                    }
                    _ => {
                        running.clear();
                        pace = Pace::new(blocks(), pace.kept().clone(), now);
                    }
                }
                if in_block == 5 && running.is_empty() && block_over.is_none() {
                    block_over = Some(now);
                }
                now += wait;
            }
        }
    }
}
