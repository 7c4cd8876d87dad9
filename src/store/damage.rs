//! What was found broken in the store, in words for the one who runs it.

use std::time::SystemTime;

/// Most of them that are kept; more are only counted.
pub const DAMAGES_MAX: usize = 1000;

/// One thing that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file, or the table.
    pub place: String,
    /// What was found, and what it means for mail.
    pub what: String,
    pub found_at: SystemTime,
}

impl Damage {
    pub fn new(place: impl Into<String>, what: impl Into<String>) -> Damage {
        Damage { place: place.into(), what: what.into(), found_at: SystemTime::now() }
    }
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}
