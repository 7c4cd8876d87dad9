//! Keys of the queue's tables, and how records become bytes.
//!
//! All numbers are big-endian, so that keys sort by time and by arrival. Records are MessagePack
//! maps with field names: an older record lacks a field and gets its default.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clock::Millis;
use crate::message::MessageId;
use crate::store::StoreError;

/// `message id ‖ chunk`.
pub fn body(id: MessageId, chunk: u32) -> [u8; 12] {
    with_number(id, chunk)
}

/// `message id ‖ recipient number`.
pub fn recipient(id: MessageId, number: u32) -> [u8; 12] {
    with_number(id, number)
}

/// `due time ‖ lane ‖ message id ‖ recipient number`.
pub fn due(due: Millis, lane: u8, id: MessageId, number: u32) -> [u8; 21] {
    let mut key = [0; 21];
    key[..8].copy_from_slice(&due.to_be_bytes());
    key[8] = lane;
    key[9..17].copy_from_slice(&id.to_key());
    key[17..].copy_from_slice(&number.to_be_bytes());
    key
}

fn with_number(id: MessageId, number: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&id.to_key());
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

/// Takes a key of the due index apart.
pub fn read_due(key: &[u8]) -> Result<(Millis, MessageId, u32), StoreError> {
    let damaged = || StoreError::Damaged(format!("key {key:?} of the due index"));
    let time = key.get(..8).and_then(|part| part.try_into().ok()).map(u64::from_be_bytes).ok_or_else(damaged)?;
    let id = key.get(9..17).and_then(|part| part.try_into().ok()).map(MessageId::from_key).ok_or_else(damaged)?;
    let number = key.get(17..21).and_then(|part| part.try_into().ok()).map(u32::from_be_bytes).ok_or_else(damaged)?;
    Ok((time, id, number))
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
