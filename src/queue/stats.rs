//! What the committer did, for the metrics: counters and two histograms, nothing that grows.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets of a synced write's time, in seconds.
pub const SECONDS: [f64; 11] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, f64::INFINITY];
/// Upper bounds of the buckets of batches in a group.
pub const BATCHES: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0, f64::INFINITY];

#[derive(Debug, Default)]
pub struct CommitStats {
    seconds: [AtomicU64; SECONDS.len()],
    batches: [AtomicU64; BATCHES.len()],
    seconds_sum_micros: AtomicU64,
    batches_sum: AtomicU64,
    bytes: AtomicU64,
    unsynced: AtomicU64,
    failed: AtomicU64,
}

impl CommitStats {
    /// A group was written, or could not be. `took`: the write and its sync.
    pub fn record(&self, batches: usize, bytes: usize, synced: bool, written: bool, took: Duration) {
        let add = |counter: &AtomicU64, more: u64| counter.fetch_add(more, Ordering::Relaxed);
        if !written {
            add(&self.failed, 1);
            return;
        }
        add(&self.bytes, bytes as u64);
        add(&self.batches_sum, batches as u64);
        count_in(&self.batches, &BATCHES, batches as f64);
        if synced {
            count_in(&self.seconds, &SECONDS, took.as_secs_f64());
            add(&self.seconds_sum_micros, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        } else {
            add(&self.unsynced, 1);
        }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Groups written without a sync of their own.
    pub fn unsynced(&self) -> u64 {
        self.unsynced.load(Ordering::Relaxed)
    }

    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Buckets and sum of the seconds of synced writes.
    pub fn seconds(&self) -> (Vec<(f64, u64)>, f64) {
        (buckets(&SECONDS, &self.seconds), self.seconds_sum_micros.load(Ordering::Relaxed) as f64 / 1e6)
    }

    /// Buckets and sum of the batches in a group.
    pub fn batches(&self) -> (Vec<(f64, u64)>, f64) {
        (buckets(&BATCHES, &self.batches), self.batches_sum.load(Ordering::Relaxed) as f64)
    }
}

fn count_in(counters: &[AtomicU64], bounds: &[f64], value: f64) {
    let bucket = bounds.iter().zip(counters).find(|(bound, _)| value <= **bound);
    if let Some((_, counter)) = bucket {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn buckets(bounds: &[f64], counters: &[AtomicU64]) -> Vec<(f64, u64)> {
    bounds.iter().zip(counters).map(|(bound, counter)| (*bound, counter.load(Ordering::Relaxed))).collect()
}
