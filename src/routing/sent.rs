//! What we have sent, by its Message-ID: so that an answer finds the account it belongs to, and a bounce
//! the message it tells of.
//!
//! An entry stands in the table of the loop guard and goes the same way as its counters: a version, the
//! time after which nobody needs it, then the message's id and the name of the account.

use crate::clock::Millis;
use crate::message::MessageId;

use super::loops;
use super::sender::message_id_hash;

const KIND: u8 = b's';
/// How long a message is known after it was sent: as long as its story is kept, in milliseconds.
const KEPT: Millis = 30 * 24 * 3600 * 1000;

/// A message of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub id: MessageId,
    /// Who submitted it; none for a trusted network.
    pub account: Option<String>,
}

impl Sent {
    /// What to write when it is queued.
    pub fn entry(&self, message_id: &str, now: Millis) -> (Vec<u8>, Vec<u8>) {
        let mut value = loops::head(now.saturating_add(KEPT));
        value.extend_from_slice(&self.id.to_key());
        value.extend_from_slice(self.account.as_deref().unwrap_or_default().as_bytes());
        (key(message_id), value)
    }

    /// From what was found under [`key`]. A damaged entry counts for nothing.
    pub fn read(value: &[u8], now: Millis) -> Option<Sent> {
        let rest = value.get(loops::HEAD_BYTES..).filter(|_| !loops::is_expired(value, now))?;
        let (id, account) = rest.split_first_chunk()?;
        let account = std::str::from_utf8(account).ok()?;
        Some(Sent { id: MessageId::from_key(*id), account: (!account.is_empty()).then(|| account.to_owned()) })
    }
}

/// Where it is looked for in the loop guard's table. `message_id`: without brackets.
pub fn key(message_id: &str) -> Vec<u8> {
    loops::key(KIND, &[&message_id_hash(message_id)])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_sent_is_known_until_it_expires() {
        for account in [None, Some("shop".to_owned())] {
            let sent = Sent { id: MessageId::first_at(1_900_000_000_000), account };
            let (_, value) = sent.entry("a@b", 5);
            assert_eq!(Sent::read(&value, 5 + KEPT - 1), Some(sent));
            assert_eq!(Sent::read(&value, 5 + KEPT), None);
            assert!(loops::is_expired(&value, 5 + KEPT));
            assert!(!loops::is_expired(&value, 5 + KEPT - 1));
        }
    }

    #[test]
    fn damage_counts_for_nothing() {
        let sent = Sent { id: MessageId::first_at(1_900_000_000_000), account: Some("shop".to_owned()) };
        let (_, value) = sent.entry("a@b", 5);
        for length in 0..loops::HEAD_BYTES + 8 {
            assert_eq!(Sent::read(&value[..length], 6), None);
        }
        let mut broken = value.clone();
        *broken.last_mut().unwrap() = 0xff;
        assert_eq!(Sent::read(&broken, 6), None);
        broken[0] += 1;
        assert!(loops::is_expired(&broken, 6), "the sweep takes it away");
    }
}
