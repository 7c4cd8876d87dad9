//! How often each kind of event has happened since the start. Counted where the log line is written,
//! so that the metrics cannot disagree with the log.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Event;
use crate::message::Door;

/// The ways in, as labels.
pub const DOORS: [&str; 6] = ["mx", "submission", "pickup", "admin", "bounce", "http"];

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

#[derive(Debug, Default)]
pub struct Counters {
    accepted: [AtomicU64; DOORS.len()],
    outcomes: [AtomicU64; OUTCOMES.len()],
    imported: AtomicU64,
    notices: AtomicU64,
    unsure: AtomicU64,
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
    }
}
