//! The bytes of a message on its way in: all of them in memory, or the beginning there and the rest
//! in the store already.
//!
//! Promises: the header section is always in memory, with the beginning of the body; what could be
//! read of the rest only with a look at the disk (its length, its hashes, whether it is ASCII) was
//! noted while it passed. The rest counts only if the message is committed; when the last copy of a
//! content is dropped without that, the store forgets it.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;

use super::MessageId;
use super::body::BodyHashes;

/// CRLF lines, no dot-stuffing.
#[derive(Clone, Debug)]
pub struct Content {
    head: Bytes,
    rest: Option<Rest>,
}

/// What has gone ahead into the store.
#[derive(Clone)]
pub struct Rest {
    /// The message that it is written for. No other can have it.
    pub id: MessageId,
    pub chunks: u32,
    pub bytes: u64,
    pub is_ascii: bool,
    /// Of the whole body, the part in memory included.
    pub hashes: BodyHashes,
    /// As long as this is there, so are the chunks.
    pub keep: Arc<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rest({}, {} bytes)", self.id, self.bytes)
    }
}

impl Content {
    /// `head` holds at least the whole header section, if that is one that is taken at all.
    pub fn new(head: Bytes, rest: Option<Rest>) -> Content {
        Content { head, rest }
    }

    /// The beginning; the whole message where there is no [`Content::rest`].
    pub fn head(&self) -> &Bytes {
        &self.head
    }

    pub fn rest(&self) -> Option<&Rest> {
        self.rest.as_ref()
    }

    /// Bytes of the whole message.
    pub fn len(&self) -> u64 {
        self.head.len() as u64 + self.rest.as_ref().map_or(0, |rest| rest.bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn is_ascii(&self) -> bool {
        self.rest.as_ref().is_none_or(|rest| rest.is_ascii) && self.head.is_ascii()
    }
}

impl From<Bytes> for Content {
    fn from(whole: Bytes) -> Content {
        Content::new(whole, None)
    }
}

impl From<Vec<u8>> for Content {
    fn from(whole: Vec<u8>) -> Content {
        Bytes::from(whole).into()
    }
}
