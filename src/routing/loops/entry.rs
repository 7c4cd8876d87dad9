//! What stands in the guard's table: keys that begin with a letter for their kind, and entries of a version,
//! the time after which nobody needs them, and the newest times: `1 ‖ u64 ‖ u64…`, big-endian.

use crate::clock::Millis;

/// How far ahead of the clock a stored time may be, in milliseconds. The clock was wrong when one
/// further ahead was written; it is forgotten, or it would count until that day comes.
const FUTURE_MAX: Millis = 5 * 60 * 1000;
const VERSION: u8 = 1;
/// Version and expiry, which every entry of the table begins with.
pub const HEAD_BYTES: usize = 9;

/// Parts with a zero byte between them, which no address holds.
pub fn key(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = vec![kind];
    for part in parts {
        key.push(0);
        key.extend_from_slice(part);
    }
    key
}

/// What an entry begins with that may go at `expiry`.
pub fn head(expiry: Millis) -> Vec<u8> {
    let mut value = vec![VERSION];
    value.extend_from_slice(&expiry.to_be_bytes());
    value
}

/// The times in an entry that still count, oldest first. A damaged entry counts for nothing.
pub(super) fn times(value: Option<&[u8]>, period: Millis, now: Millis) -> Vec<Millis> {
    let since = now.checked_sub(period);
    let mut times = value.and_then(decode).unwrap_or_default();
    times.retain(|time| since.is_none_or(|since| *time > since) && *time <= now.saturating_add(FUTURE_MAX));
    times.sort_unstable();
    times
}

/// `times` and now.
pub(super) fn entry(times: &[Millis], period: Millis, now: Millis) -> Vec<u8> {
    let newest = times.iter().copied().max().unwrap_or(now).max(now);
    let mut value = head(newest.saturating_add(period));
    times.iter().chain([&now]).for_each(|time| value.extend_from_slice(&time.to_be_bytes()));
    value
}

fn decode(value: &[u8]) -> Option<Vec<Millis>> {
    let (words, []) = value.strip_prefix(&[VERSION])?.as_chunks::<8>() else { return None };
    let mut words = words.iter().map(|word| Millis::from_be_bytes(*word));
    words.next()?;
    Some(words.collect())
}

/// May a sweep delete this entry? A damaged one, too: it counts for nothing.
pub fn is_expired(value: &[u8], now: Millis) -> bool {
    let expiry = value.strip_prefix(&[VERSION]).and_then(|rest| rest.first_chunk()).copied();
    expiry.is_none_or(|expiry| Millis::from_be_bytes(expiry) <= now)
}
