//! When a certificate is ordered. Rules without a clock.
//!
//! At two thirds of its life, a little earlier or later by chance of the certificate's own octets, so that
//! not all servers of the world come at the same time. After a failure an hour later, then two, four, up to
//! a day; a start tries at once, so that whoever has mended something need not wait. But whatever happens,
//! never more than [`ORDERS_MAX`] orders begin in an hour, and never before the authority's own Retry-After
//! is over: what is noted here outlives the process.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::clock::{DAY, Millis};
use crate::server::tls::facts::Validity;

const HOUR: Millis = 3600 * 1000;
/// Orders that begin in one hour. Authorities count failures by the hour too, and five is a usual limit.
pub const ORDERS_MAX: usize = 3;
/// The longest wait after a failure.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);
/// The longest that an authority may send us away for.
const SENT_AWAY_MAX: Millis = 7 * DAY;
/// The share of its life by which a certificate is renewed earlier or later, as a divisor.
const JITTER_SHARE: u64 = 36;
/// Characters of a reason that are kept.
const WHY_CHARS_MAX: usize = 1000;

/// What is remembered of orders.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Notes {
    /// When the orders of the last hour began.
    pub begun: Vec<Millis>,
    /// In a row.
    pub failures: u32,
    pub failed_at: Option<Millis>,
    pub why: Option<String>,
    /// The authority does not want to hear of us until then.
    pub not_before: Option<Millis>,
}

impl Notes {
    pub fn begin(&mut self, now: Millis) {
        self.begun.retain(|begun| is_recent(*begun, now));
        self.begun.push(now);
    }

    pub fn succeed(&mut self) {
        *self = Notes { begun: std::mem::take(&mut self.begun), ..Notes::default() };
    }

    pub fn fail(&mut self, now: Millis, why: &str, retry_after: Option<Duration>) {
        self.failures = self.failures.saturating_add(1);
        self.failed_at = Some(now);
        self.why = Some(why.chars().take(WHY_CHARS_MAX).collect());
        self.not_before = retry_after.map(|wait| now.saturating_add(millis(wait).min(SENT_AWAY_MAX)));
    }
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A time in the future is that of a clock that has been set back since.
fn is_recent(begun: Millis, now: Millis) -> bool {
    begun <= now && now - begun < HOUR
}

/// After so many failures in a row.
pub fn wait(failures: u32) -> Duration {
    let hours = 1u64 << failures.saturating_sub(1).min(5);
    Duration::from_secs(hours * 3600).min(WAIT_MAX)
}

/// When this certificate is to be replaced.
pub fn renewal(validity: Validity, certificate: &[u8]) -> Millis {
    let life = validity.to.saturating_sub(validity.from);
    let chance = digest(&SHA256, certificate).as_ref().first().copied().unwrap_or(0);
    let jitter = (life / JITTER_SHARE).saturating_mul(u64::from(chance)) / 255;
    let early = life / JITTER_SHARE / 2;
    validity.from.saturating_add(life / 3 * 2).saturating_add(jitter).saturating_sub(early)
}

/// When the next order begins. `good_until`: when the certificate that there is has to be replaced; None: there
/// is none. `is_start`: the server has just been started.
pub fn next(notes: &Notes, good_until: Option<Millis>, now: Millis, is_start: bool) -> Millis {
    let mut next = good_until.unwrap_or(0);
    if let Some(failed_at) = notes.failed_at.filter(|at| *at <= now && !is_start) {
        next = next.max(failed_at.saturating_add(millis(wait(notes.failures))));
    }
    if let Some(not_before) = notes.not_before.filter(|time| *time <= now.saturating_add(SENT_AWAY_MAX)) {
        next = next.max(not_before);
    }
    let mut recent: Vec<Millis> = notes.begun.iter().copied().filter(|begun| is_recent(*begun, now)).collect();
    recent.sort_unstable();
    // The order that makes room when its hour is over.
    if let Some(oldest) = recent.len().checked_sub(ORDERS_MAX).and_then(|at| recent.get(at)) {
        next = next.max(oldest.saturating_add(HOUR));
    }
    next
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use proptest::prelude::*;

    use super::*;

    const NOW: Millis = 1_800_000_000_000;

    #[test]
    fn a_certificate_is_renewed_at_about_two_thirds_of_its_life() {
        let life = 90 * DAY;
        let validity = Validity { from: NOW, to: NOW + life };
        let times: Vec<Millis> = (0..200u8).map(|octet| renewal(validity, &[octet])).collect();
        let (first, last) = (times.iter().min().unwrap(), times.iter().max().unwrap());
        assert!(*first >= NOW + 58 * DAY && *last <= NOW + 62 * DAY, "{first} {last}");
        assert!(last - first > DAY, "they do not all come on one day");
        assert_eq!(renewal(validity, b"one"), renewal(validity, b"one"), "a restart changes nothing");
        let odd = Validity { from: NOW, to: NOW - 1 };
        assert_eq!(renewal(odd, b"one"), NOW, "nonsense is replaced");
    }

    #[test]
    fn failures_are_tried_again_later_and_later_and_a_start_at_once() {
        let hours: Vec<u64> = (1..=8).map(|failures| wait(failures).as_secs() / 3600).collect();
        assert_eq!(hours, [1, 2, 4, 8, 16, 24, 24, 24]);
        let mut notes = Notes::default();
        assert_eq!(next(&notes, None, NOW, false), 0);
        notes.begin(NOW);
        notes.fail(NOW, "no answer", None);
        assert_eq!(next(&notes, None, NOW, false), NOW + HOUR);
        assert_eq!(next(&notes, None, NOW, true), 0);
        notes.fail(NOW + HOUR, "no answer", None);
        assert_eq!(next(&notes, None, NOW + HOUR, false), NOW + 3 * HOUR);
        notes.succeed();
        assert_eq!(next(&notes, Some(NOW + DAY), NOW + 2 * HOUR, false), NOW + DAY);
        assert_eq!((notes.failures, notes.why), (0, None));
    }

    #[test]
    fn what_the_authority_says_holds_for_a_start_too_but_not_for_ever() {
        let mut notes = Notes::default();
        notes.fail(NOW, "rateLimited", Some(Duration::from_secs(2 * 3600)));
        assert_eq!(next(&notes, None, NOW, true), NOW + 2 * HOUR);
        notes.fail(NOW, "rateLimited", Some(Duration::MAX));
        assert_eq!(next(&notes, None, NOW, true), NOW + SENT_AWAY_MAX);
        // The clock was far ahead when that was noted.
        assert_eq!(next(&notes, None, NOW - DAY, true), 0);
    }

    #[test]
    fn notes_of_other_versions_are_read() {
        let notes: Notes = serde_json::from_str("{\"failures\": 2, \"more\": 1}").unwrap();
        assert_eq!(notes, Notes { failures: 2, ..Notes::default() });
    }

    proptest! {
        /// Whatever fails and however often it is started, the hour has no more orders than that.
        #[test]
        fn an_hour_has_a_bounded_number_of_orders(steps in proptest::collection::vec((0..HOUR, any::<bool>(), any::<bool>()), 1..200)) {
            let (mut now, mut notes, mut orders) = (NOW, Notes::default(), Vec::new());
            for (pass, is_start, works) in steps {
                now += pass / 7;
                if next(&notes, None, now, is_start) <= now {
                    notes.begin(now);
                    orders.push(now);
                    if works { notes.succeed() } else { notes.fail(now, "no", None) }
                }
            }
            for first in &orders {
                let in_hour = orders.iter().filter(|order| (*first..*first + HOUR).contains(*order)).count();
                prop_assert!(in_hour <= ORDERS_MAX);
            }
        }
    }
}
