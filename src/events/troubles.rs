//! What went wrong last, for people who look at the server: a few events in memory, so that a look costs no
//! search. What is older is in the journal.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use super::Entry;
use crate::message::MessageId;

/// Events that are remembered.
pub const TROUBLES_MAX: usize = 50;

#[derive(Debug, Default)]
pub struct Troubles(Mutex<VecDeque<(MessageId, Entry)>>);

impl Troubles {
    pub(super) fn add(&self, id: MessageId, entry: &Entry) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= TROUBLES_MAX {
            known.pop_front();
        }
        known.push_back((id, entry.clone()));
    }

    /// The newest first.
    pub fn newest(&self, max: usize) -> Vec<(MessageId, Entry)> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().rev().take(max).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::events::Event;
    use crate::message::Address;

    #[test]
    fn the_newest_are_kept() {
        let troubles = Troubles::default();
        for at in 0..TROUBLES_MAX as u64 + 5 {
            let recipient = Address::parse("a@b.example").unwrap();
            let event = Event::Suppressed { recipient, reason: "listed".into() };
            troubles.add(MessageId::from_u64(at), &Entry { at, event });
        }
        let found = troubles.newest(usize::MAX);
        assert_eq!(found.len(), TROUBLES_MAX);
        let first: Vec<u64> = found.iter().take(2).map(|(_, entry)| entry.at).collect();
        assert_eq!(first, [TROUBLES_MAX as u64 + 4, TROUBLES_MAX as u64 + 3]);
    }
}
