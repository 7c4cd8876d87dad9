//! Queue ids: 42 bits of milliseconds since 2020, 10 bits of node number, 11 bits of sequence; in that
//! order, so that ids sort by arrival and two nodes never make the same one. Shown as 13 letters.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The id under which a message is queued and its story is kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(u64);

const EPOCH_MS: u64 = 1_577_836_800_000;
const NODE_BITS: u32 = 10;
const SEQUENCE_BITS: u32 = 11;
/// Crockford's base 32 in lower case: no i, l, o, u.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

impl MessageId {
    pub const fn from_u64(value: u64) -> MessageId {
        MessageId(value)
    }

    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// Big-endian, so that keys sort as ids do.
    pub fn to_key(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    pub fn from_key(key: [u8; 8]) -> MessageId {
        MessageId(u64::from_be_bytes(key))
    }

    /// The id at the front of a key.
    pub fn from_prefix(key: &[u8]) -> Option<MessageId> {
        key.first_chunk().copied().map(MessageId::from_key)
    }

    /// The first id that could be made at `now_ms` (milliseconds since 1970) by node 0.
    pub fn first_at(now_ms: u64) -> MessageId {
        MessageId(now_ms.saturating_sub(EPOCH_MS) << (NODE_BITS + SEQUENCE_BITS))
    }

    /// When the id was made, in milliseconds since 1970.
    pub fn made_at_ms(self) -> u64 {
        (self.0 >> (NODE_BITS + SEQUENCE_BITS)) + EPOCH_MS
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; 13];
        for (position, letter) in text.iter_mut().enumerate() {
            let shift = 5 * (12 - position);
            *letter = ALPHABET[((self.0 >> shift) & 31) as usize];
        }
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a queue id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a queue id has 13 letters and digits, as `postrider queue list` shows them")]
pub struct NotAnId;

impl FromStr for MessageId {
    type Err = NotAnId;
    fn from_str(text: &str) -> Result<MessageId, NotAnId> {
        if text.len() != 13 {
            return Err(NotAnId);
        }
        let mut value: u64 = 0;
        for byte in text.bytes() {
            let digit = ALPHABET.iter().position(|a| *a == byte.to_ascii_lowercase()).ok_or(NotAnId)?;
            value = value.checked_mul(32).ok_or(NotAnId)? | digit as u64;
        }
        Ok(MessageId(value))
    }
}

impl Serialize for MessageId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MessageId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<MessageId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Makes ids: never the same twice, never backwards, also when the clock goes back.
#[derive(Debug)]
pub struct IdSource {
    node: u64,
    last: std::sync::atomic::AtomicU64,
}

impl IdSource {
    /// `after`: the highest id known from an earlier run, 0 if none. `node` is at most 1023.
    pub fn new(node: u16, after: u64) -> IdSource {
        let node = u64::from(node) & ((1 << NODE_BITS) - 1);
        IdSource {
            node,
            last: std::sync::atomic::AtomicU64::new(
                after >> SEQUENCE_BITS >> NODE_BITS << SEQUENCE_BITS | (after & ((1 << SEQUENCE_BITS) - 1)),
            ),
        }
    }

    pub fn next(&self, now_ms: u64) -> MessageId {
        use std::sync::atomic::Ordering;
        // Time and sequence side by side: one counter that only grows, carried into the next
        // millisecond when more than 2,048 ids fall into one.
        let now = now_ms.saturating_sub(EPOCH_MS) << SEQUENCE_BITS;
        let step = |last: u64| Some(now.max(last + 1));
        let last = self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).unwrap_or(now);
        let count = now.max(last + 1);
        let sequence = count & ((1 << SEQUENCE_BITS) - 1);
        MessageId(((count >> SEQUENCE_BITS) << (NODE_BITS + SEQUENCE_BITS)) | (self.node << SEQUENCE_BITS) | sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_grow_and_survive_text() {
        let source = IdSource::new(3, 0);
        let mut previous = MessageId(0);
        for step in 0..10_000u64 {
            // The clock runs backwards in between.
            let id = source.next(EPOCH_MS + 1000 - (step % 7));
            assert!(id > previous);
            assert_eq!(id.to_string().parse::<MessageId>(), Ok(id));
            previous = id;
        }
        let later = IdSource::new(3, previous.as_u64());
        assert!(later.next(EPOCH_MS) > previous);
    }
}
