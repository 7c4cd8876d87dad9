//! What we have sent, by its Message-ID: so that an answer finds the account it belongs to, and a bounce
//! the message it tells of.
//!
//! An entry stands in the table of the loop guard and goes the same way as its counters: a version, the
//! time after which nobody needs it, then the message's id, that of the thread, and the name of the account.

use crate::clock::Millis;
use crate::message::MessageId;
use crate::message::header::Headers;
use crate::message::mime;

use super::loops;
use super::sender::message_id_hash;

const KIND: u8 = b'S';
/// Ids that are looked at in a message which answers others; the newest stand last.
const REFERENCES_MAX: usize = 32;
/// How long a message is known after it was sent: as long as its story is kept, in milliseconds.
const KEPT: Millis = 30 * 24 * 3600 * 1000;

/// A message of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub id: MessageId,
    /// The first message of ours in the same conversation: itself, or one that it goes on from.
    pub thread: MessageId,
    /// Who submitted it; none for a trusted network.
    pub account: Option<String>,
}

impl Sent {
    /// What to write when it is queued.
    pub fn entry(&self, message_id: &str, now: Millis) -> (Vec<u8>, Vec<u8>) {
        let mut value = loops::head(now.saturating_add(KEPT));
        value.extend_from_slice(&self.id.to_key());
        value.extend_from_slice(&self.thread.to_key());
        value.extend_from_slice(self.account.as_deref().unwrap_or_default().as_bytes());
        (key(message_id), value)
    }

    /// From what was found under [`key`]. A damaged entry counts for nothing.
    pub fn read(value: &[u8], now: Millis) -> Option<Sent> {
        let rest = value.get(loops::HEAD_BYTES..).filter(|_| !loops::is_expired(value, now))?;
        let (id, rest) = rest.split_first_chunk()?;
        let (thread, account) = rest.split_first_chunk()?;
        let account = std::str::from_utf8(account).ok()?;
        Some(Sent {
            id: MessageId::from_key(*id),
            thread: MessageId::from_key(*thread),
            account: (!account.is_empty()).then(|| account.to_owned()),
        })
    }
}

/// Where it is looked for in the loop guard's table. `message_id`: without brackets.
pub fn key(message_id: &str) -> Vec<u8> {
    loops::key(KIND, &[&message_id_hash(message_id)])
}

/// The ids that a message refers to, without brackets, the newest last: what it answers, and what it was
/// itself called before a provider gave it another id.
pub fn references(headers: &Headers<'_>) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for name in ["X-Microsoft-Original-Message-ID", "References", "In-Reply-To"] {
        for id in headers.get(name).map(|field| mime::ids(field.value)).unwrap_or_default() {
            ids.retain(|known| *known != id);
            ids.push(id);
        }
        let old = ids.len().saturating_sub(REFERENCES_MAX);
        ids.drain(..old);
    }
    ids
}

/// The newest of them that we have sent. `read` finds the value of a key in the guard's table.
pub fn find<E>(
    references: &[String],
    now: Millis,
    read: impl Fn(&[u8]) -> Result<Option<Vec<u8>>, E>,
) -> Result<Option<Sent>, E> {
    for id in references.iter().rev() {
        if let Some(sent) = read(&key(id))?.as_deref().and_then(|value| Sent::read(value, now)) {
            return Ok(Some(sent));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_sent_is_known_until_it_expires() {
        for account in [None, Some("shop".to_owned())] {
            let (id, thread) = (MessageId::first_at(1_900_000_000_000), MessageId::first_at(1_800_000_000_000));
            let sent = Sent { id, thread, account };
            let (_, value) = sent.entry("a@b", 5);
            assert_eq!(Sent::read(&value, 5 + KEPT - 1), Some(sent));
            assert_eq!(Sent::read(&value, 5 + KEPT), None);
            assert!(loops::is_expired(&value, 5 + KEPT));
            assert!(!loops::is_expired(&value, 5 + KEPT - 1));
        }
    }

    #[test]
    fn damage_counts_for_nothing() {
        let id = MessageId::first_at(1_900_000_000_000);
        let sent = Sent { id, thread: id, account: Some("shop".to_owned()) };
        let (_, value) = sent.entry("a@b", 5);
        for length in 0..loops::HEAD_BYTES + 16 {
            assert_eq!(Sent::read(&value[..length], 6), None);
        }
        let mut broken = value.clone();
        *broken.last_mut().unwrap() = 0xff;
        assert_eq!(Sent::read(&broken, 6), None);
        broken[0] += 1;
        assert!(loops::is_expired(&broken, 6), "the sweep takes it away");
    }

    #[test]
    fn the_newest_of_the_last_ids_that_we_know_counts() {
        let many: String = (0..40).map(|n| format!(" <r{n}@x>\r\n")).collect();
        let content = format!("References:{many}In-Reply-To: <r5@x> <last@x>\r\n\r\n");
        let ids = references(&Headers::parse(content.as_bytes()));
        assert_eq!(ids.len(), REFERENCES_MAX);
        assert_eq!((ids[0].as_str(), ids[30].as_str(), ids[31].as_str()), ("r10@x", "r5@x", "last@x"));
        let sent = |n| Sent { id: MessageId::from_u64(n), thread: MessageId::from_u64(1), account: None };
        let table: std::collections::HashMap<_, _> =
            [("r3@x", 3), ("r20@x", 20), ("r30@x", 30)].map(|(id, n)| sent(n).entry(id, 5)).into();
        let read = |key: &[u8]| Ok::<_, ()>(table.get(key).cloned());
        assert_eq!(find(&ids, 6, read), Ok(Some(sent(30))));
        assert_eq!(find(&ids[..20], 6, read), Ok(Some(sent(20))));
        assert_eq!(find(&ids[..5], 6, read), Ok(None), "r3 is older than the last 32");
        assert!(references(&Headers::parse(b"Subject: x\r\n\r\n")).is_empty());
        let renamed = references(&Headers::parse(b"X-Microsoft-Original-Message-ID: <own@x>\r\n\r\n"));
        assert_eq!(renamed, ["own@x"]);
    }
}
