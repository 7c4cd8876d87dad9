//! How often each kind of event has happened since the start. Counted where the log line is written,
//! so that the metrics cannot disagree with the log.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Event;
use crate::clock::Millis;
use crate::message::Door;

/// The ways in, as labels.
pub const DOORS: [&str; 7] = ["mx", "submission", "pickup", "admin", "bounce", "http", "fetch"];

/// What became of a try or a recipient, as labels.
pub const OUTCOMES: [&str; 14] = [
    "delivered",
    "captured",
    "deferred",
    "failed",
    "expired",
    "held",
    "released",
    "cancelled",
    "discarded",
    "archived",
    "not_archived",
    "bounced",
    "complained",
    "suppressed",
];

/// Upper bounds, in milliseconds, of how long deliveries took; a last bucket has what took longer.
pub const LATENCY_MILLIS: [Millis; 18] = [
    50,
    100,
    200,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    30_000,
    60_000,
    120_000,
    300_000,
    600_000,
    1_800_000,
    3_600_000,
    4 * 3_600_000,
    24 * 3_600_000,
    5 * 24 * 3_600_000,
];
pub const LATENCY_BUCKETS: usize = LATENCY_MILLIS.len() + 1;

#[derive(Debug, Default)]
pub struct Counters {
    accepted: [AtomicU64; DOORS.len()],
    outcomes: [AtomicU64; OUTCOMES.len()],
    imported: AtomicU64,
    notices: AtomicU64,
    unsure: AtomicU64,
    /// From when a message was taken to its delivery for a recipient.
    latency: [AtomicU64; LATENCY_BUCKETS],
}

impl Counters {
    pub(super) fn count(&self, event: &Event) {
        let counter = match event {
            Event::Accepted { origin, .. } => &self.accepted[door(&origin.door)],
            Event::Imported { .. } => &self.imported,
            Event::NoticeSent { .. } => &self.notices,
            Event::Routed { .. }
            | Event::DelayReported { .. }
            | Event::NotBelieved { .. }
            | Event::NoticeWithheld { .. } => return,
            Event::Unsure { .. } => {
                self.unsure.fetch_add(1, Ordering::Relaxed);
                &self.outcomes[2]
            }
            Event::Deferred { .. } => &self.outcomes[2],
            Event::Delivered { .. } => &self.outcomes[0],
            Event::Captured { .. } => &self.outcomes[1],
            Event::Failed { .. } => &self.outcomes[3],
            Event::Expired { .. } => &self.outcomes[4],
            Event::Held { .. } => &self.outcomes[5],
            Event::Released { .. } => &self.outcomes[6],
            Event::Cancelled { .. } => &self.outcomes[7],
            Event::Discarded { .. } => &self.outcomes[8],
            Event::Archived { .. } => &self.outcomes[9],
            Event::NotArchived { .. } => &self.outcomes[10],
            Event::Bounced { .. } => &self.outcomes[11],
            Event::Complained { .. } => &self.outcomes[12],
            Event::Suppressed { .. } => &self.outcomes[13],
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A delivery that took so long.
    pub(super) fn delivered_after(&self, millis: Millis) {
        let bucket = LATENCY_MILLIS.partition_point(|bound| *bound < millis);
        if let Some(counter) = self.latency.get(bucket) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many deliveries took how long: in each bucket alone, in the order of [`LATENCY_MILLIS`].
    pub fn latency(&self) -> [u64; LATENCY_BUCKETS] {
        std::array::from_fn(|bucket| self.latency.get(bucket).map_or(0, |counter| counter.load(Ordering::Relaxed)))
    }

    /// Messages taken, by the way they came in.
    pub fn accepted(&self) -> impl Iterator<Item = (&'static str, u64)> {
        labelled(&DOORS, &self.accepted)
    }

    /// Recipients, by what became of them.
    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        labelled(&OUTCOMES, &self.outcomes)
    }

    pub fn imported(&self) -> u64 {
        self.imported.load(Ordering::Relaxed)
    }

    pub fn notices(&self) -> u64 {
        self.notices.load(Ordering::Relaxed)
    }

    /// Tries that ended without an answer after the final dot.
    pub fn unsure(&self) -> u64 {
        self.unsure.load(Ordering::Relaxed)
    }
}

fn labelled<'a>(names: &'a [&'static str], counters: &'a [AtomicU64]) -> impl Iterator<Item = (&'static str, u64)> {
    names.iter().zip(counters).map(|(name, counter)| (*name, counter.load(Ordering::Relaxed)))
}

fn door(door: &Door) -> usize {
    match door {
        Door::Mx { .. } => 0,
        Door::Submission { .. } => 1,
        Door::Pickup { .. } => 2,
        Door::Admin => 3,
        Door::Bounce => 4,
        Door::Http => 5,
        Door::Fetch { .. } => 6,
    }
}
