//! What we may say, by ourselves, about mail that came in: one notice to a sender about an address in a
//! period, and not many to all the world. A sender may be forged, and a mistake of ours must not become a
//! flood.
//!
//! As with the guard's counters the caller writes what comes out in the batch that queues the notice, under
//! one lock for all notices.

use super::super::sender::counting_key;
use super::entry::{self, key};
use crate::clock::Millis;
use crate::config::Loops;
use crate::message::Address;
use crate::store::StoreError;

/// Notices within an hour, to everybody together.
pub const NOTICES_PER_HOUR_MAX: usize = 20;
const HOUR: Millis = 3600 * 1000;
const KIND_NOTICE: u8 = b'n';
const KIND_NOTICES: u8 = b'N';

/// What may be told to one sender.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// For each address it was asked about: may the sender be told?
    pub allowed: Vec<bool>,
    /// Keys and values for `Table::Loops`, if a notice is sent.
    pub writes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Budget {
    /// `about`: addresses of ours that the sender wrote to. `read` finds the value of a key.
    pub fn ask(
        config: &Loops,
        sender: &Address,
        about: &[Address],
        now: Millis,
        read: impl Fn(&[u8]) -> Result<Option<Vec<u8>>, StoreError>,
    ) -> Result<Budget, StoreError> {
        let all = key(KIND_NOTICES, &[]);
        let told = entry::times(read(&all)?.as_deref(), HOUR, now);
        if told.len() >= NOTICES_PER_HOUR_MAX {
            return Ok(Budget { allowed: vec![false; about.len()], writes: Vec::new() });
        }
        let period = u64::try_from(config.period.as_millis()).unwrap_or(u64::MAX);
        let mut budget = Budget { allowed: Vec::new(), writes: vec![(all, entry::entry(&told, HOUR, now))] };
        for address in about {
            let alias = counting_key(address);
            let key = key(KIND_NOTICE, &[alias.as_bytes(), counting_key(sender).as_bytes()]);
            let is_new = entry::times(read(&key)?.as_deref(), period, now).is_empty();
            budget.allowed.push(is_new);
            if is_new {
                budget.writes.push((key, entry::entry(&[], period, now)));
            }
        }
        Ok(budget)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use super::*;
    use crate::routing::fixture;

    #[derive(Default)]
    struct World(HashMap<Vec<u8>, Vec<u8>>);

    impl World {
        fn tell(&mut self, sender: &str, about: &[&str], now: Millis) -> Vec<bool> {
            let about: Vec<Address> = about.iter().map(|text| Address::parse(text).unwrap()).collect();
            let sender = Address::parse(sender).unwrap();
            let read = |key: &[u8]| Ok(self.0.get(key).cloned());
            let budget = Budget::ask(&fixture::loops(), &sender, &about, now, read).unwrap();
            if budget.allowed.contains(&true) {
                self.0.extend(budget.writes);
            }
            budget.allowed
        }
    }

    #[test]
    fn one_sender_hears_of_one_address_once_in_a_period() {
        let mut world = World::default();
        let (sales, info) = ("sales@our.example", "info@our.example");
        assert_eq!(world.tell("bob@far.example", &[sales], 5), [true]);
        assert_eq!(world.tell("Bob+x@far.example", &["sales+y@our.example", info], 6), [false, true]);
        assert_eq!(world.tell("eve@far.example", &[sales], 7), [true]);
        assert_eq!(world.tell("bob@far.example", &[sales], HOUR + 4), [false]);
        assert_eq!(world.tell("bob@far.example", &[sales], HOUR + 5), [true]);
    }

    #[test]
    fn all_together_are_twenty_an_hour() {
        let mut world = World::default();
        let told = (0..100).filter(|n| world.tell(&format!("b{n}@far.example"), &["a@our.example"], *n) == [true]);
        assert_eq!(told.count(), NOTICES_PER_HOUR_MAX);
        assert_eq!(world.tell("new@far.example", &["a@our.example"], HOUR + 4), [true], "five have left the hour");
    }
}
