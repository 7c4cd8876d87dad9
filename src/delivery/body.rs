//! The bytes of a message on their way out: in memory, or read as they are needed.
//!
//! Promises: whoever goes through the pieces of a large message holds one at a time; what is read from
//! the store is within the budget of `queue::memory`, and waits for other deliveries only.

use std::sync::Arc;

use bytes::Bytes;

use crate::queue::memory::Held;
use crate::queue::record::{Message, STREAMED_FROM};
use crate::queue::{CHUNK_BYTES_MAX, Queue};
use crate::store::StoreError;

/// A message of no more bytes is read at once, before its attempt starts.
const READ_AHEAD_BYTES: u64 = 2 * CHUNK_BYTES_MAX as u64;

/// A whole message: shared, immutable, in the chunks in which it is stored.
#[derive(Clone, Debug, Default)]
pub struct Body {
    pieces: Vec<Piece>,
    len: u64,
    source: Option<Source>,
}

#[derive(Clone, Debug)]
enum Piece {
    Here(Bytes),
    /// The `body` record with this number.
    Stored(u32),
}

/// Where pieces are read.
#[derive(Clone, Debug)]
struct Source {
    queue: Arc<Queue>,
    message: Arc<Message>,
}

impl Source {
    async fn read(&self, number: u32) -> Result<Bytes, StoreError> {
        let held = self.queue.memory().take_for_delivery(CHUNK_BYTES_MAX as u64).await;
        let bytes = self.queue.body_chunk(self.message.id, number)?;
        Ok(match held {
            Some(held) => held.bytes(bytes),
            None => bytes,
        })
    }
}

impl Body {
    /// All of it is in memory.
    pub fn new(chunks: Vec<Bytes>) -> Body {
        let len = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        Body { pieces: chunks.into_iter().map(Piece::Here).collect(), len, source: None }
    }

    /// The beginning is in memory, what was streamed is read when it is needed.
    pub fn fresh(queue: &Arc<Queue>, message: &Arc<Message>, chunks: Vec<Bytes>) -> Body {
        let later = message.body_numbers().skip(chunks.len()).map(Piece::Stored);
        Body {
            len: message.size,
            pieces: chunks.into_iter().map(Piece::Here).chain(later).collect(),
            source: Some(Source { queue: queue.clone(), message: message.clone() }),
        }
    }

    /// A small message is read here, a large one when it is needed.
    pub async fn stored(queue: &Arc<Queue>, message: &Arc<Message>) -> Result<Body, StoreError> {
        if message.size > READ_AHEAD_BYTES {
            let source = Some(Source { queue: queue.clone(), message: message.clone() });
            return Ok(Body { len: message.size, pieces: message.body_numbers().map(Piece::Stored).collect(), source });
        }
        let held = queue.memory().take_for_delivery(message.size).await;
        let mut chunks = queue.body(message)?;
        if let (Some(held), Some(largest)) = (held, chunks.iter_mut().max_by_key(|chunk| chunk.len())) {
            // All are dropped together, so one can pay for all.
            *largest = held.bytes(std::mem::take(largest));
        }
        Ok(Body::new(chunks))
    }

    /// In bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// From the beginning.
    pub fn pieces(&self) -> Pieces<'_> {
        Pieces { body: self, at: 0 }
    }

    /// No byte of it needs 8BITMIME.
    pub async fn is_ascii(&self) -> Result<bool, StoreError> {
        let streamed = self.source.as_ref().and_then(|source| source.message.streamed);
        for piece in &self.pieces {
            let is_ascii = match (piece, streamed) {
                (Piece::Stored(STREAMED_FROM..), Some(streamed)) => streamed.ascii,
                _ => self.piece(piece).await?.is_ascii(),
            };
            if !is_ascii {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The first `most` bytes, or all that there are.
    pub async fn beginning(&self, most: usize) -> Result<Bytes, StoreError> {
        let mut beginning = Vec::new();
        let mut pieces = self.pieces();
        while beginning.len() < most
            && let Some(mut piece) = pieces.next().await?
        {
            piece.truncate(most - beginning.len());
            if beginning.is_empty() && (piece.len() == most || piece.len() as u64 == self.len) {
                return Ok(piece);
            }
            beginning.extend_from_slice(&piece);
        }
        Ok(beginning.into())
    }

    /// None if there is nothing.
    pub async fn last_byte(&self) -> Result<Option<u8>, StoreError> {
        for piece in self.pieces.iter().rev() {
            if let Some(last) = self.piece(piece).await?.last() {
                return Ok(Some(*last));
            }
        }
        Ok(None)
    }

    /// In one piece, for those who cannot do with less. `more`: so many times its size goes with it.
    pub async fn whole(&self, more: u64) -> Result<Bytes, StoreError> {
        let Some(source) = &self.source else {
            // It pays for itself, and must not wait for more while it does.
            return Ok(match self.pieces.as_slice() {
                [Piece::Here(only)] => only.clone(),
                _ => self.joined().into(),
            });
        };
        let held = source.queue.memory().take_for_delivery(self.len.saturating_mul(more + 1)).await;
        let mut whole = Vec::with_capacity(usize::try_from(self.len).unwrap_or_default());
        for piece in &self.pieces {
            match piece {
                Piece::Here(bytes) => whole.extend_from_slice(bytes),
                Piece::Stored(number) => whole.extend_from_slice(&source.queue.body_chunk(source.message.id, *number)?),
            }
        }
        Ok(match held {
            Some(held) => held.bytes(whole),
            None => whole.into(),
        })
    }

    /// For a thread that may block, but not wait for memory: that is had before.
    pub async fn paid(&self) -> PaidBody {
        let held = match &self.source {
            Some(source) => source.queue.memory().take_for_delivery(CHUNK_BYTES_MAX as u64).await,
            None => None,
        };
        PaidBody { body: self.clone(), _held: held }
    }

    fn joined(&self) -> Vec<u8> {
        let here = self.pieces.iter().map(|piece| match piece {
            Piece::Here(bytes) => bytes.as_ref(),
            Piece::Stored(_) => &[],
        });
        here.collect::<Vec<_>>().concat()
    }

    async fn piece(&self, piece: &Piece) -> Result<Bytes, StoreError> {
        match (piece, &self.source) {
            (Piece::Here(bytes), _) => Ok(bytes.clone()),
            (Piece::Stored(number), Some(source)) => source.read(*number).await,
            (Piece::Stored(number), None) => Err(nowhere(*number)),
        }
    }
}

/// A body with room for one piece at a time.
#[derive(Debug)]
pub struct PaidBody {
    body: Body,
    _held: Option<Held>,
}

impl PaidBody {
    /// Its pieces from the beginning. Drop each before the next.
    pub fn pieces(&self) -> impl Iterator<Item = Result<Bytes, StoreError>> {
        self.body.pieces.iter().map(|piece| match (piece, &self.body.source) {
            (Piece::Here(bytes), _) => Ok(bytes.clone()),
            (Piece::Stored(number), Some(source)) => source.queue.body_chunk(source.message.id, *number),
            (Piece::Stored(number), None) => Err(nowhere(*number)),
        })
    }
}

fn nowhere(number: u32) -> StoreError {
    StoreError::Damaged(format!("body {number} of an unknown message"))
}

/// A walk through a message.
#[derive(Debug)]
pub struct Pieces<'b> {
    body: &'b Body,
    at: usize,
}

impl Pieces<'_> {
    /// The next piece. Drop the one before first: what it holds may be what this one waits for.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        let Some(piece) = self.body.pieces.get(self.at) else { return Ok(None) };
        self.at += 1;
        self.body.piece(piece).await.map(Some)
    }
}
