//! When a failed delivery is tried again, and when it is given up. Pure.

use std::time::Duration;

use crate::clock::Millis;
use crate::config::Retry;
use crate::message::MessageId;

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
    let step = (attempts.max(1) as usize - 1).min(retry.schedule.len().saturating_sub(1));
    let wait = retry.schedule.get(step).copied().map_or(60_000, millis);
    let planned = now + jittered(wait, seed(id, number, attempts));
    // The last try comes when the time is up, not after it.
    Next::TryAt(planned.max(not_before.unwrap_or(0)).min(expires))
}

/// Spread so that a burst of failures does not come back as a burst; the same for the same try, so
/// that a repeated run gives the same times.
fn jittered(wait: Millis, seed: u64) -> Millis {
    let span = wait * JITTER_PERCENT / 100;
    if span == 0 {
        return wait;
    }
    wait - span + seed % (2 * span + 1)
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

    proptest! {
        #[test]
        fn always_later_and_never_past_the_end(id: u64, attempts in 1u32..1000, now in 0u64..86_400_000, wish in 0u64..200_000_000) {
            match next(&retry(0), 0, attempts, now, Some(wish), (MessageId::from_u64(id), 1)) {
                Next::TryAt(at) => prop_assert!(at > now && at <= 86_400_000),
                Next::GiveUp => prop_assert!(now >= 86_400_000),
            }
        }
    }
}
