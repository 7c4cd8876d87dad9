//! Counts on disk: each writing is a part of its own, so that what is written is as much as what was
//! counted; the parts of a day are put together when it is over.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::checks::feedback::Counts;
use crate::clock::Millis;
use crate::delivery::shelf::Shelf;
use crate::message::Domain;
use crate::store::Batch;

/// In the store.
const KIND: u8 = b'r';
/// Parts kept in all.
const PARTS_MAX: usize = 50_000;
/// Rows of one report.
const ROWS_MAX: usize = 10_000;

#[derive(Debug)]
pub struct Kept {
    shelf: Shelf,
    parts: AtomicUsize,
    /// So that two parts have two names, whatever the clock says.
    next: AtomicU64,
}

/// The parts of one day and domain.
#[derive(Debug, PartialEq, Eq)]
pub struct Parts {
    pub day: u64,
    pub domain: Domain,
    names: Vec<String>,
}

impl Kept {
    pub fn new(shelf: Shelf) -> Kept {
        let parts = shelf.names(KIND).len();
        Kept { shelf, parts: AtomicUsize::new(parts), next: AtomicU64::new(parts as u64) }
    }

    /// False if there is no room for more.
    pub async fn put(&self, now: Millis, day: u64, domain: &Domain, counts: &Counts) -> bool {
        if self.parts.load(Ordering::Relaxed) >= PARTS_MAX {
            return false;
        }
        self.parts.fetch_add(1, Ordering::Relaxed);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.shelf.put(KIND, &format!("{day:08} {domain} {now:015} {number:08}"), counts).await;
        true
    }

    /// What there is of the days before this one.
    pub fn before(&self, today: u64) -> Vec<Parts> {
        let mut all: Vec<Parts> = Vec::new();
        for name in self.shelf.names(KIND) {
            let mut words = name.split(' ');
            let (Some(day), Some(domain)) = (words.next(), words.next()) else { continue };
            let (Ok(day), Ok(domain)) = (day.parse(), Domain::parse(domain)) else { continue };
            if day >= today {
                continue;
            }
            match all.last_mut().filter(|last| last.day == day && last.domain == domain) {
                Some(last) => last.names.push(name),
                None => all.push(Parts { day, domain, names: vec![name] }),
            }
        }
        all
    }

    pub fn read(&self, parts: &Parts) -> Counts {
        let mut counts = Counts::default();
        for name in &parts.names {
            if let Some(part) = self.shelf.get::<Counts>(KIND, name) {
                counts.add(part, ROWS_MAX);
            }
        }
        counts
    }

    /// What takes the parts away, together with something else; then [`Kept::gone`].
    pub fn without(&self, parts: &Parts) -> Batch {
        let mut batch = Batch::new();
        for name in &parts.names {
            batch.append(self.shelf.batch::<Counts>(KIND, name, None));
        }
        batch
    }

    pub fn gone(&self, parts: &Parts) {
        self.parts.fetch_sub(parts.names.len(), Ordering::Relaxed);
    }

    pub async fn forget(&self, parts: &Parts) {
        self.shelf.forget(KIND, &parts.names).await;
        self.gone(parts);
    }
}
