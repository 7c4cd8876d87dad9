//! Keys by which a client says "this is the same message again": within [`KEPT`] a key gives one message,
//! whatever crashes in between. The note of a key is written in the batch that queues its message.
//!
//! A note stands in the table of the loop guard and goes the same way as its counters: a version, the time
//! after which nobody needs it, then the message's id and a digest of what was asked.

use aws_lc_rs::digest;

use crate::clock::Millis;
use crate::message::MessageId;
use crate::routing::loops;
use crate::store::{Batch, Store, StoreError, Table};

const KIND: u8 = b'i';
/// Milliseconds for which a key is known.
pub const KEPT: Millis = 24 * 3600 * 1000;
/// Bytes of a key.
pub const KEY_BYTES_MAX: usize = 256;
const DIGEST_BYTES: usize = 32;
/// Why a key is refused.
pub const USED: &str = "the idempotency key was used for another message within the last 24 hours";

/// A client's key, and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Hash of whose key it is, and of the key.
    name: [u8; DIGEST_BYTES],
    /// Hash of the request.
    request: [u8; DIGEST_BYTES],
}

/// What is known of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    New,
    /// The same request made this message.
    Made(MessageId),
    /// Another request did.
    Other,
}

impl Key {
    /// `owner`: the account, empty for the operator. `request`: all that makes the message what it is.
    pub fn new(owner: &str, key: &str, request: &[&[u8]]) -> Key {
        Key { name: hash(&[owner.as_bytes(), key.as_bytes()]), request: hash(request) }
    }

    /// For locks: two requests with one key are one after the other.
    pub(super) fn lock_key(&self) -> u64 {
        self.name.first_chunk().copied().map_or(0, u64::from_be_bytes)
    }

    pub(super) fn find(&self, store: &Store, now: Millis) -> Result<Known, StoreError> {
        let value = store.get(Table::Loops, &self.row())?.unwrap_or_default();
        let rest = value.get(loops::HEAD_BYTES..).filter(|_| !loops::is_expired(&value, now));
        Ok(match rest.and_then(|rest| rest.split_first_chunk()) {
            None => Known::New,
            Some((id, request)) if request == self.request => Known::Made(MessageId::from_key(*id)),
            Some(_) => Known::Other,
        })
    }

    pub(super) fn note(&self, id: MessageId, now: Millis, batch: &mut Batch) {
        let mut value = loops::head(now.saturating_add(KEPT));
        value.extend_from_slice(&id.to_key());
        value.extend_from_slice(&self.request);
        batch.put(Table::Loops, self.row(), value);
    }

    fn row(&self) -> Vec<u8> {
        loops::key(KIND, &[&self.name])
    }
}

/// Each part counts with its length.
fn hash(parts: &[&[u8]]) -> [u8; DIGEST_BYTES] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut hash = [0; DIGEST_BYTES];
    hash.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    hash
}
