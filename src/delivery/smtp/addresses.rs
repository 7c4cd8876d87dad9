//! Which addresses mail may be delivered to, which of them are better tried last, and which of ours it
//! comes from.
//!
//! A domain's owner writes any address into DNS. One that leads back to this machine or into its
//! network would make a loop, or make us knock at doors that are not meant for strangers. Checked is
//! the address that is connected to, so a second look-up cannot change the answer.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

pub use crate::message::ip::{Refused, refused};

/// How long a family of addresses that could not be connected to is tried last.
const FAILING_FOR: Duration = Duration::from_secs(10 * 60);
/// Groups of servers of which that is remembered.
const REMEMBERED_MAX: usize = 4_096;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(ip: IpAddr) -> Family {
        if ip.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// Which family of addresses could not be connected to lately, by group of servers. Wherever the fault
/// is, the other one is tried first for a while.
#[derive(Debug, Default)]
pub struct Failing {
    /// Until when, IPv4 and IPv6.
    known: HashMap<String, [Option<Instant>; 2]>,
}

impl Failing {
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// The family to try last. None if both are well, or neither.
    pub fn family(&self, group: &str, now: Instant) -> Option<Family> {
        let known = self.known.get(group)?;
        match known.map(|until| until.is_some_and(|until| until > now)) {
            [true, false] => Some(Family::V4),
            [false, true] => Some(Family::V6),
            _ => None,
        }
    }

    pub fn failed(&mut self, group: &str, family: Family, now: Instant) {
        if self.known.len() >= REMEMBERED_MAX && !self.known.contains_key(group) {
            self.known.retain(|_, known| known.iter().flatten().any(|until| *until > now));
            if self.known.len() >= REMEMBERED_MAX {
                return;
            }
        }
        self.known.entry(group.to_owned()).or_default()[family as usize] = Some(now + FAILING_FOR);
    }

    pub fn connected(&mut self, group: &str, family: Family) {
        if let Some(known) = self.known.get_mut(group) {
            known[family as usize] = None;
            if known.iter().all(Option::is_none) {
                self.known.remove(group);
            }
        }
    }
}

/// Our own addresses that connections come from (`delivery.source_addresses`).
#[derive(Debug)]
pub struct Sources {
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
    turn: AtomicUsize,
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// As the system has it.
    Any,
    Bound(IpAddr),
    /// None is configured for this family.
    Missing,
}

impl Sources {
    pub fn new(configured: &[IpAddr]) -> Sources {
        let (v4, v6) = configured.iter().partition(|ip| ip.is_ipv4());
        Sources { v4, v6, turn: AtomicUsize::new(0) }
    }

    /// The next in turn for a connection to `ip`.
    pub fn next(&self, ip: IpAddr) -> Source {
        if self.v4.is_empty() && self.v6.is_empty() {
            return Source::Any;
        }
        let same = if ip.is_ipv4() { &self.v4 } else { &self.v6 };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        turn.checked_rem(same.len())
            .and_then(|at| same.get(at))
            .map_or(Source::Missing, |source| Source::Bound(*source))
    }

    /// The family that has none while the other has.
    pub fn missing(&self) -> Option<Family> {
        match (self.v4.is_empty(), self.v6.is_empty()) {
            (true, false) => Some(Family::V4),
            (false, true) => Some(Family::V6),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_family_is_tried_last_for_a_while_unless_both_fail() {
        let (mut failing, now) = (Failing::default(), Instant::now());
        failing.failed("far", Family::V6, now);
        assert_eq!(failing.family("far", now), Some(Family::V6));
        assert_eq!(failing.family("near", now), None);
        failing.failed("far", Family::V4, now);
        assert_eq!(failing.family("far", now), None);
        failing.connected("far", Family::V6);
        assert_eq!(failing.family("far", now), Some(Family::V4));
        assert_eq!(failing.family("far", now + FAILING_FOR), None);
        failing.connected("far", Family::V4);
        assert!(failing.is_empty());
        for number in 0..=REMEMBERED_MAX {
            failing.failed(&number.to_string(), Family::V6, now);
        }
        assert_eq!(failing.known.len(), REMEMBERED_MAX);
        failing.failed("later", Family::V6, now + FAILING_FOR);
        assert_eq!(failing.known.len(), 1);
    }

    #[test]
    fn sources_take_turns_within_their_family() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (far4, far6) = (ip("192.0.2.9"), ip("2001:db8::9"));
        assert_eq!(Sources::new(&[]).next(far6), Source::Any);
        let sources = Sources::new(&[ip("192.0.2.1"), ip("192.0.2.2")]);
        assert_eq!(sources.next(far4), Source::Bound(ip("192.0.2.1")));
        assert_eq!(sources.next(far4), Source::Bound(ip("192.0.2.2")));
        assert_eq!(sources.next(far4), Source::Bound(ip("192.0.2.1")));
        assert_eq!((sources.next(far6), sources.missing()), (Source::Missing, Some(Family::V6)));
        let both = Sources::new(&[ip("192.0.2.1"), ip("2001:db8::1")]);
        assert_eq!((both.next(far6), both.missing()), (Source::Bound(ip("2001:db8::1")), None));
    }
}
