//! How it went lately: samples of what is counted, in memory, for charts. The last hour finely, the last day
//! coarsely; what is older is forgotten, and a restart forgets all.

use std::collections::VecDeque;

use crate::clock::Millis;
use crate::events::counters::{LATENCY_BUCKETS, LATENCY_MILLIS};

/// How often is looked, in milliseconds.
pub const FINE_EVERY: Millis = 10_000;
pub const COARSE_EVERY: Millis = 60_000;
/// Samples kept: an hour and a day.
pub const FINE_MAX: usize = 360;
pub const COARSE_MAX: usize = 1440;

/// Everything that is counted, since the start.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    pub at: Millis,
    /// Messages.
    pub accepted: u64,
    /// Recipients whose mail is delivered or captured.
    pub delivered: u64,
    /// Tries that are to be repeated.
    pub deferred: u64,
    /// Recipients that were given up, and what came back.
    pub failed: u64,
    /// Messages; none: not known yet.
    pub queued: Option<u64>,
    pub latency: [u64; LATENCY_BUCKETS],
}

/// What happened between two looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The second look.
    pub at: Millis,
    /// Since the first, in milliseconds.
    pub span: Millis,
    pub accepted: u64,
    pub delivered: u64,
    pub deferred: u64,
    pub failed: u64,
    /// At the second look.
    pub queued: Option<u64>,
    /// How long half of the deliveries took at most, and 95 in 100; none: there were none.
    pub p50: Option<Millis>,
    pub p95: Option<Millis>,
}

impl Sample {
    fn between(before: &Reading, after: &Reading) -> Sample {
        let latency: [u64; LATENCY_BUCKETS] = std::array::from_fn(|bucket| {
            let of = |reading: &Reading| reading.latency.get(bucket).copied().unwrap_or(0);
            of(after).saturating_sub(of(before))
        });
        Sample {
            at: after.at,
            span: after.at.saturating_sub(before.at).max(1),
            accepted: after.accepted.saturating_sub(before.accepted),
            delivered: after.delivered.saturating_sub(before.delivered),
            deferred: after.deferred.saturating_sub(before.deferred),
            failed: after.failed.saturating_sub(before.failed),
            queued: after.queued,
            p50: quantile(&latency, 50),
            p95: quantile(&latency, 95),
        }
    }
}

/// The upper bound of the bucket in which so many per cent are reached.
fn quantile(buckets: &[u64; LATENCY_BUCKETS], percent: u64) -> Option<Millis> {
    let total: u64 = buckets.iter().sum();
    let wanted = (total * percent).div_ceil(100).max(1);
    let mut seen = 0;
    let bucket = buckets.iter().position(|count| {
        seen += count;
        seen >= wanted
    })?;
    // What is above the last bound is not told apart from it.
    LATENCY_MILLIS.get(bucket).or(LATENCY_MILLIS.last()).copied()
}

#[derive(Clone, Debug)]
struct Series {
    every: Millis,
    max: usize,
    last: Option<Reading>,
    samples: VecDeque<Sample>,
}

impl Series {
    fn new(every: Millis, max: usize) -> Series {
        Series { every, max, last: None, samples: VecDeque::new() }
    }

    fn take(&mut self, reading: &Reading) {
        match &self.last {
            Some(last) if reading.at >= last.at => {
                // A look that comes a little early is still the next one.
                if reading.at - last.at + self.every / 10 < self.every {
                    return;
                }
                if self.samples.len() >= self.max {
                    self.samples.pop_front();
                }
                self.samples.push_back(Sample::between(last, reading));
            }
            // The clock was set back: what was is not comparable.
            Some(_) => self.samples.clear(),
            None => {}
        }
        self.last = Some(reading.clone());
    }
}

#[derive(Clone, Debug)]
pub struct History {
    fine: Series,
    coarse: Series,
}

impl Default for History {
    fn default() -> History {
        History { fine: Series::new(FINE_EVERY, FINE_MAX), coarse: Series::new(COARSE_EVERY, COARSE_MAX) }
    }
}

impl History {
    /// To be called about every [`FINE_EVERY`].
    pub fn take(&mut self, reading: &Reading) {
        self.fine.take(reading);
        self.coarse.take(reading);
    }

    /// Oldest first.
    pub fn hour(&self) -> impl DoubleEndedIterator<Item = &Sample> {
        self.fine.samples.iter()
    }

    /// Oldest first.
    pub fn day(&self) -> impl DoubleEndedIterator<Item = &Sample> {
        self.coarse.samples.iter()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn reading(at: Millis, accepted: u64) -> Reading {
        Reading { at, accepted, queued: Some(accepted), ..Reading::default() }
    }

    #[test]
    fn samples_are_differences_and_bounded() {
        let mut history = History::default();
        for look in 0..=3 * COARSE_MAX as u64 * 6 {
            history.take(&reading(1_000_000 + look * FINE_EVERY, look * 5));
        }
        assert_eq!((history.hour().count(), history.day().count()), (FINE_MAX, COARSE_MAX));
        assert!(history.hour().all(|sample| (sample.accepted, sample.span) == (5, FINE_EVERY)));
        assert!(history.day().all(|sample| (sample.accepted, sample.span) == (30, COARSE_EVERY)));
        let last = history.hour().next_back().unwrap();
        assert_eq!((last.at, last.queued), (1_000_000 + 25_920 * FINE_EVERY, Some(129_600)));
    }

    #[test]
    fn looks_that_are_late_or_early_lose_nothing() {
        let mut history = History::default();
        for (at, accepted) in [(0, 0), (9_990, 3), (12_000, 4), (35_000, 10), (45_001, 11)] {
            history.take(&reading(at, accepted));
        }
        let seen: Vec<_> = history.hour().map(|sample| (sample.at, sample.accepted)).collect();
        assert_eq!(seen, [(9_990, 3), (35_000, 7), (45_001, 1)]);
    }

    #[test]
    fn a_clock_that_is_set_back_begins_anew() {
        let mut history = History::default();
        [100_000, 110_000, 5_000, 15_000].into_iter().for_each(|at| history.take(&reading(at, at)));
        let seen: Vec<_> = history.hour().map(|sample| (sample.at, sample.accepted)).collect();
        assert_eq!(seen, [(15_000, 10_000)]);
    }

    #[test]
    fn quantiles_are_bounds_of_buckets() {
        let mut buckets = [0; LATENCY_BUCKETS];
        assert_eq!(quantile(&buckets, 50), None);
        buckets[0] = 90;
        buckets[4] = 10;
        assert_eq!(
            (quantile(&buckets, 50), quantile(&buckets, 90), quantile(&buckets, 95)),
            (Some(50), Some(50), Some(1_000))
        );
        buckets[LATENCY_BUCKETS - 1] = 1_000;
        assert_eq!(quantile(&buckets, 50), LATENCY_MILLIS.last().copied());
    }
}
