//! How far a try of a named host has come, step by step and with the time that each took: for a person who
//! tests a host. Deliveries keep no trail.
//!
//! Of a login only the mechanism is in it, of a message only the reply.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Marks of one trail. A conversation has some ten for each address of a host; more are not kept.
const MARKS_MAX: usize = 200;

/// A part of the way to a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Leg {
    Configuration,
    Token,
    Pop,
    Dns,
    Connect,
    Banner,
    Ehlo,
    Starttls,
    Tls,
    Auth,
    Mail,
    Rcpt,
    Data,
    /// The reply to the message.
    Message,
    Reset,
    /// A request to Graph.
    Graph,
}

/// What one leg came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub leg: Leg,
    pub millis: u64,
    /// One line for people, none of it secret.
    pub what: String,
    /// What EHLO offers, a line for each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub offers: Vec<String>,
}

/// Shared between who tests and what does the steps.
#[derive(Clone, Debug, Default)]
pub struct Trail(Arc<Mutex<Vec<Mark>>>);

impl Trail {
    pub fn mark(&self, leg: Leg, since: Instant, what: impl Into<String>) {
        self.mark_offers(leg, since, what, Vec::new());
    }

    pub fn mark_offers(&self, leg: Leg, since: Instant, what: impl Into<String>, offers: Vec<String>) {
        let mut marks = self.lock();
        if marks.len() < MARKS_MAX {
            marks.push(Mark { leg, millis: millis(since.elapsed()), what: what.into(), offers });
        }
    }

    pub fn marks(&self) -> Vec<Mark> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Mark>> {
        // Nothing in here panics half-way, so a poisoned lock still guards sound data.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}
