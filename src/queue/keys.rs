//! Keys of the queue's tables, and how records become bytes.
//!
//! All numbers are big-endian, so that keys sort by time and by arrival. Records are MessagePack
//! maps with field names: an older record lacks a field and gets its default.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clock::Millis;
use crate::message::MessageId;
use crate::store::StoreError;

use super::lane::Lane;

/// `message id ‖ chunk`.
pub fn body(id: MessageId, chunk: u32) -> [u8; 12] {
    with_number(id, chunk)
}

/// `message id ‖ recipient number`.
pub fn recipient(id: MessageId, number: u32) -> [u8; 12] {
    with_number(id, number)
}

/// Where an entry stands within its part of a lane of the due index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub due: Millis,
    pub id: MessageId,
    pub number: u32,
}

/// An entry of the due index: `lane ‖ part ‖ due time ‖ message id ‖ recipient number`. Its value is
/// the place. (Keys of the first format were `due time ‖ lane ‖ id ‖ number`, with a first byte of 0.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueKey {
    pub lane: Lane,
    pub part: u8,
    pub at: Position,
}

/// Bytes of a key of the due index.
pub const DUE_BYTES: usize = 22;

impl DueKey {
    pub fn to_bytes(self) -> [u8; DUE_BYTES] {
        let mut key = [0; DUE_BYTES];
        key[0] = self.lane.byte();
        key[1] = self.part;
        key[2..10].copy_from_slice(&self.at.due.to_be_bytes());
        key[10..18].copy_from_slice(&self.at.id.to_key());
        key[18..].copy_from_slice(&self.at.number.to_be_bytes());
        key
    }

    pub fn read(key: &[u8]) -> Result<DueKey, StoreError> {
        let read = || {
            let key: &[u8; DUE_BYTES] = key.try_into().ok()?;
            let at = Position {
                due: u64::from_be_bytes(key[2..10].try_into().ok()?),
                id: MessageId::from_prefix(&key[10..])?,
                number: u32::from_be_bytes(key[18..].try_into().ok()?),
            };
            Some(DueKey { lane: Lane::from_byte(key[0])?, part: key[1], at })
        };
        read().ok_or_else(|| StoreError::Damaged(format!("key {key:?} of the due index")))
    }
}

fn with_number(id: MessageId, number: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&id.to_key());
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

/// The id at the front of a key of the tables message, body, recipient and journal.
pub fn message_id(key: &[u8]) -> Result<MessageId, StoreError> {
    MessageId::from_prefix(key).ok_or_else(|| StoreError::Damaged(format!("key {key:?} without a message id")))
}

/// The number at the end of a body's or recipient's key.
pub fn number(key: &[u8]) -> Result<u32, StoreError> {
    let number = key.get(8..12).and_then(|part| part.try_into().ok()).map(u32::from_be_bytes);
    number.ok_or_else(|| StoreError::Damaged(format!("key {key:?} without a number")))
}

pub fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>, StoreError> {
    rmp_serde::to_vec_named(record).map_err(|error| StoreError::Damaged(format!("a record cannot be written: {error}")))
}

pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    rmp_serde::from_slice(bytes).map_err(|error| StoreError::Damaged(error.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Keys come back as they were, and sort as what they hold: lane, part, time, message, recipient.
        #[test]
        fn due_keys_sort_as_they_read(a: (u8, u8, u64, u64, u32), b: (u8, u8, u64, u64, u32)) {
            let key = |(lane, part, due, id, number): (u8, u8, u64, u64, u32)| DueKey {
                lane: Lane::from_byte(lane % 64 + 1).unwrap(),
                part,
                at: Position { due, id: MessageId::from_u64(id), number },
            };
            let (a, b) = (key(a), key(b));
            prop_assert_eq!(DueKey::read(&a.to_bytes()).unwrap(), a);
            let order = (a.lane, a.part, a.at).cmp(&(b.lane, b.part, b.at));
            prop_assert_eq!(a.to_bytes().cmp(&b.to_bytes()), order);
        }

        #[test]
        fn what_is_no_key_is_damage(bytes in prop::collection::vec(any::<u8>(), 0..30)) {
            let whole = bytes.len() == DUE_BYTES && (1..=64).contains(&bytes[0]);
            prop_assert_eq!(DueKey::read(&bytes).is_ok(), whole);
        }
    }
}
