//! When a failed delivery is tried again, and when it is given up. Pure.

use std::time::Duration;

use crate::clock::Millis;
use crate::config::Retry;
use crate::message::MessageId;

/// Rows of [`table`].
pub const TABLE_TRIES_MAX: u32 = 200;
/// Jitter in either direction, in percent of the wait.
const JITTER_PERCENT: u64 = 10;

/// What follows a try that did not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    TryAt(Millis),
    /// `expire` has passed, or `max_attempts` are used up.
    GiveUp,
}

/// `attempts`: tries so far, the failed one included. `not_before`: asked for by the far end.
pub fn next(
    retry: &Retry,
    received_at: Millis,
    attempts: u32,
    now: Millis,
    not_before: Option<Millis>,
    (id, number): (MessageId, u32),
) -> Next {
    let expires = received_at.saturating_add(millis(retry.expire));
    if now >= expires || (retry.max_attempts > 0 && attempts >= retry.max_attempts) {
        return Next::GiveUp;
    }
    let wait = Wait::after(retry, attempts);
    let planned = now + wait.least + seed(id, number, attempts) % (wait.most - wait.least + 1);
    // The last try comes when the time is up, not after it.
    Next::TryAt(planned.max(not_before.unwrap_or(0)).min(expires))
}

/// How long a recipient waits after a failed try: spread, so that a burst of failures does not come back as
/// a burst. The same try always gets the same wait, so that a repeated run gives the same times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    pub least: Millis,
    pub most: Millis,
}

impl Wait {
    /// After so many failed tries.
    fn after(retry: &Retry, attempts: u32) -> Wait {
        let step = (attempts.max(1) as usize - 1).min(retry.schedule.len().saturating_sub(1));
        let wait = retry.schedule.get(step).copied().map_or(60_000, millis);
        let span = wait * JITTER_PERCENT / 100;
        Wait { least: wait - span, most: wait + span }
    }
}

/// Does something come at this try?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chance {
    No,
    /// That depends on how the waits before it turn out.
    Maybe,
    Sure,
}

impl Chance {
    fn of(sure: bool, maybe: bool) -> Chance {
        match (sure, maybe) {
            (true, _) => Chance::Sure,
            (false, true) => Chance::Maybe,
            (false, false) => Chance::No,
        }
    }
}

/// A try of a message that fails each time, as [`next`] plans it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Try {
    pub number: u32,
    /// Since the one before; none for the first.
    pub wait: Option<Wait>,
    /// Since arrival, if the tries themselves take no time.
    pub earliest: Millis,
    pub latest: Millis,
    /// The sender is told that the message is late.
    pub notice: Chance,
    /// It is given up.
    pub last: Chance,
}

/// The tries of a message that fails each time, at most [`TABLE_TRIES_MAX`]; whether there are more.
pub fn table(retry: &Retry) -> (Vec<Try>, bool) {
    let expire = millis(retry.expire);
    let notice_at = retry.delay_notice.map_or(Millis::MAX, millis);
    let (mut wait, mut earliest, mut latest) = (None, 0, 0);
    let mut before = (0, 0);
    let mut tries = Vec::new();
    for number in 1..=TABLE_TRIES_MAX {
        let counted_out = retry.max_attempts > 0 && number >= retry.max_attempts;
        let last = Chance::of(counted_out || earliest >= expire, latest >= expire);
        let sure = earliest >= notice_at && before.1 < notice_at && last == Chance::No;
        let maybe = latest >= notice_at && before.0 < notice_at && last != Chance::Sure;
        tries.push(Try { number, wait, earliest, latest, notice: Chance::of(sure, maybe), last });
        if last == Chance::Sure {
            return (tries, false);
        }
        let pause = Wait::after(retry, number);
        before = (earliest, latest);
        (earliest, latest) = ((earliest + pause.least).min(expire), (latest + pause.most).min(expire));
        wait = Some(pause);
    }
    (tries, true)
}

/// SplitMix64 over what tells one try from another.
fn seed(id: MessageId, number: u32, attempts: u32) -> u64 {
    let mut z = id.as_u64() ^ (u64::from(number) << 32) ^ u64::from(attempts).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn retry(max_attempts: u32) -> Retry {
        let minutes = |m: u64| Duration::from_secs(60 * m);
        Retry {
            schedule: vec![minutes(1), minutes(5), minutes(15)],
            expire: minutes(24 * 60),
            delay_notice: None,
            max_attempts,
        }
    }

    #[test]
    fn waits_follow_the_schedule_and_the_last_repeats() {
        for (attempts, minutes) in [(1, 1), (2, 5), (3, 15), (4, 15), (50, 15)] {
            let Next::TryAt(at) = next(&retry(0), 0, attempts, 1000, None, (MessageId::from_u64(7), 0)) else {
                panic!("given up after {attempts}");
            };
            let wait = at - 1000;
            let planned = minutes * 60_000;
            assert!(wait.abs_diff(planned) <= planned / 10, "{attempts}: {wait}");
        }
    }

    #[test]
    fn gives_up_by_time_or_count() {
        let day = 24 * 60 * 60_000;
        assert_eq!(next(&retry(0), 0, 9, day, None, (MessageId::from_u64(7), 0)), Next::GiveUp);
        assert_eq!(next(&retry(0), 0, 9, day - 5, None, (MessageId::from_u64(7), 0)), Next::TryAt(day));
        assert_eq!(next(&retry(3), 0, 3, 5, None, (MessageId::from_u64(7), 0)), Next::GiveUp);
    }

    #[test]
    fn the_table_ends_where_it_is_given_up() {
        let (tries, more) = table(&retry(3));
        assert_eq!((tries.len(), more), (3, false));
        assert_eq!(
            tries.iter().map(|one| (one.earliest, one.latest)).collect::<Vec<_>>(),
            [(0, 0), (54_000, 66_000), (324_000, 396_000)]
        );
        assert_eq!(tries.iter().map(|one| one.last).collect::<Vec<_>>(), [Chance::No, Chance::No, Chance::Sure]);
        let (tries, _) = table(&retry(0));
        assert_eq!(tries.last().map(|one| (one.earliest, one.last)), Some((86_400_000, Chance::Sure)));
        assert!(tries.iter().any(|one| one.last == Chance::Maybe));
    }

    proptest! {
        /// Whatever the jitter, each try comes when the table says.
        #[test]
        fn tries_come_as_the_table_has_them(id: u64, max_attempts in 0u32..6, notice in 1u64..30 * 60) {
            let retry = Retry { delay_notice: Some(Duration::from_secs(notice)), ..retry(max_attempts) };
            let (tries, _) = table(&retry);
            let (mut now, mut told) = (0, false);
            for row in &tries {
                prop_assert!(row.earliest <= now && now <= row.latest, "{row:?}: {now}");
                let late = now >= notice * 1000 && !told;
                match next(&retry, 0, row.number, now, None, (MessageId::from_u64(id), 1)) {
                    Next::TryAt(at) => {
                        prop_assert!(row.last != Chance::Sure);
                        let other = if late { Chance::No } else { Chance::Sure };
                        prop_assert_ne!(row.notice, other);
                        told |= late;
                        now = at;
                    }
                    Next::GiveUp => {
                        prop_assert!(row.last != Chance::No);
                        break;
                    }
                }
            }
        }

        #[test]
        fn always_later_and_never_past_the_end(id: u64, attempts in 1u32..1000, now in 0u64..86_400_000, wish in 0u64..200_000_000) {
            match next(&retry(0), 0, attempts, now, Some(wish), (MessageId::from_u64(id), 1)) {
                Next::TryAt(at) => prop_assert!(at > now && at <= 86_400_000),
                Next::GiveUp => prop_assert!(now >= 86_400_000),
            }
        }
    }
}
