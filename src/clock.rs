//! Time as a service: the real clock, or one that a test moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use mail_parser::DateTime;
use tokio::time::Instant;

/// Milliseconds since 1970, UTC. What the store keeps.
pub type Millis = u64;

pub const DAY: Millis = 24 * 3600 * 1000;

#[derive(Clone, Debug)]
pub enum Clock {
    System,
    /// Moves only when told.
    Manual(Arc<AtomicU64>),
    /// Goes as the runtime's time does, which a simulation has stopped; `ahead` is what it was set on beside that.
    Simulated {
        start: Millis,
        since: Instant,
        ahead: Arc<AtomicU64>,
    },
}

impl Clock {
    pub fn manual(start: Millis) -> Clock {
        Clock::Manual(Arc::new(AtomicU64::new(start)))
    }

    /// Begins at `start` now, and goes with the time of the runtime.
    pub fn simulated(start: Millis) -> Clock {
        Clock::Simulated { start, since: Instant::now(), ahead: Arc::default() }
    }

    pub fn now(&self) -> Millis {
        match self {
            Clock::System => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64),
            Clock::Manual(now) => now.load(Ordering::Acquire),
            Clock::Simulated { start, since, ahead } => {
                start + since.elapsed().as_millis() as u64 + ahead.load(Ordering::Acquire)
            }
        }
    }

    /// Moves the clock of a test on; the system's clock is left alone.
    pub fn advance(&self, millis: Millis) {
        match self {
            Clock::System => {}
            Clock::Manual(by) | Clock::Simulated { ahead: by, .. } => _ = by.fetch_add(millis, Ordering::AcqRel),
        }
    }
}

/// RFC 5322 3.3 date-time in UTC: `Sat, 21 Nov 2026 22:26:57 +0000`.
pub fn rfc5322(millis: Millis) -> String {
    DateTime::from_timestamp((millis / 1000) as i64).to_rfc822()
}

/// RFC 3339 in UTC with milliseconds: `2026-11-21T22:26:57.123Z`. What JSON shows.
pub fn rfc3339(millis: Millis) -> String {
    let text = DateTime::from_timestamp((millis / 1000) as i64).to_rfc3339();
    format!("{}.{:03}Z", text.trim_end_matches('Z'), millis % 1000)
}

/// None: it is not such a time, or one before 1970. Parts of a second count for nothing.
pub fn parse_rfc3339(text: &str) -> Option<Millis> {
    let seconds = DateTime::parse_rfc3339(text).filter(DateTime::is_valid)?.to_timestamp();
    u64::try_from(seconds).ok()?.checked_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_any_zone() {
        assert_eq!(parse_rfc3339("2026-11-21T22:26:57Z"), Some(1_795_300_017_000));
        assert_eq!(parse_rfc3339("2026-11-21T22:26:57.5Z"), Some(1_795_300_017_000));
        assert_eq!(parse_rfc3339("2026-11-22T00:26:57+02:00"), Some(1_795_300_017_000));
        for other in ["", "tomorrow", "2026-11-21", "1969-12-31T23:59:59Z", "2026-13-41T99:99:99Z"] {
            assert_eq!(parse_rfc3339(other), None, "{other}");
        }
    }

    #[test]
    fn dates_are_right() {
        assert_eq!(rfc5322(1_795_300_017_000), "Sat, 21 Nov 2026 22:26:57 +0000");
        assert_eq!(rfc3339(951_782_400_123), "2000-02-29T00:00:00.123Z");
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
    }
}
