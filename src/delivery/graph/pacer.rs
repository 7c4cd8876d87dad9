//! How much one mailbox may send by Graph. Nobody waits here: who comes too early is told when to come back.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock::Millis;

/// Requests of one mailbox at once; Exchange Online takes four.
const AT_ONCE: usize = 2;
/// Exchange Online takes thirty messages of a mailbox …
const MESSAGES: usize = 25;
/// … in this time.
const PERIOD: Millis = 60 * 1000;
/// When to come back if only the requests under way are in the way.
const BUSY: Millis = 2 * 1000;

#[derive(Debug, Default)]
pub struct Pacer {
    /// By mailbox; at most one for each host of the configuration.
    mailboxes: Mutex<HashMap<String, Pace>>,
}

#[derive(Debug, Default)]
struct Pace {
    under_way: usize,
    /// When the last messages began, oldest first.
    begun: VecDeque<Millis>,
    /// The server has asked for this.
    pause_until: Millis,
}

/// Leave to send one message, until it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    pacer: &'a Pacer,
    mailbox: String,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(pace) = self.pacer.lock().get_mut(&self.mailbox) {
            pace.under_way = pace.under_way.saturating_sub(1);
        }
    }
}

impl Pacer {
    /// Gives the time to wait if it is not the mailbox's turn.
    pub fn turn(&self, mailbox: &str, now: Millis) -> Result<Turn<'_>, Millis> {
        let mut mailboxes = self.lock();
        let pace = mailboxes.entry(mailbox.to_owned()).or_default();
        if pace.pause_until > now {
            return Err(pace.pause_until - now);
        }
        while pace.begun.front().is_some_and(|begun| begun + PERIOD <= now) {
            pace.begun.pop_front();
        }
        if let (Some(oldest), true) = (pace.begun.front(), pace.begun.len() >= MESSAGES) {
            return Err((oldest + PERIOD).saturating_sub(now));
        }
        if pace.under_way >= AT_ONCE {
            return Err(BUSY);
        }
        pace.under_way += 1;
        pace.begun.push_back(now);
        Ok(Turn { pacer: self, mailbox: mailbox.to_owned() })
    }

    pub fn pause(&self, mailbox: &str, until: Millis) {
        let mut mailboxes = self.lock();
        let pace = mailboxes.entry(mailbox.to_owned()).or_default();
        pace.pause_until = pace.pause_until.max(until);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Pace>> {
        // Nothing in here panics half-way, so a poisoned lock still guards sound data.
        self.mailboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn two_at_once_and_no_more_than_the_mailbox_may_in_a_minute() {
        let pacer = Pacer::default();
        let first = pacer.turn("a", 0).unwrap();
        let second = pacer.turn("a", 0).unwrap();
        assert_eq!(pacer.turn("a", 0).unwrap_err(), BUSY);
        assert!(pacer.turn("b", 0).is_ok());
        drop((first, second));
        for number in 2..MESSAGES {
            assert!(pacer.turn("a", number as Millis).is_ok());
        }
        assert_eq!(pacer.turn("a", 1000).unwrap_err(), PERIOD - 1000);
        assert!(pacer.turn("a", PERIOD).is_ok());
        assert!(pacer.turn("a", PERIOD).is_ok());
        assert_eq!(pacer.turn("a", PERIOD).unwrap_err(), 2);
    }

    #[test]
    fn a_pause_is_kept_by_the_one_mailbox() {
        let pacer = Pacer::default();
        pacer.pause("a", 5000);
        pacer.pause("a", 3000);
        assert_eq!(pacer.turn("a", 1000).unwrap_err(), 4000);
        assert!(pacer.turn("a", 5000).is_ok());
        assert!(pacer.turn("b", 1000).is_ok());
    }
}
