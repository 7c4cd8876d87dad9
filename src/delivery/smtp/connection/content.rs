//! The content of a message on its way out, block by block.
//!
//! Promises: the block that ends the message is never written here, so that whoever asked knows when the
//! message may have arrived; a server that speaks before is heard; one that announced its size gets
//! exactly that much, or never the end.

use tokio::time::{Instant, timeout_at};

use super::{Connection, READ_BYTES, limit, write_unless_heard};
use crate::delivery::body::Body;
use crate::delivery::smtp::commands::write_bdat;
use crate::delivery::smtp::step::{Framing, Loss};
use crate::smtp::wire::{ChunkEncoder, DotStuffer, Flaw};
use crate::store::StoreError;

/// Octets of content written at once; the block time-out is for this much.
const BLOCK_BYTES: usize = 64 * 1024;

/// Why content did not go out whole.
pub(super) enum Unsent {
    Lost(Loss),
    Flawed(Flaw),
    /// We could not read it ourselves.
    Unread(String),
}

enum Encoder {
    Stuffed(DotStuffer),
    Counted {
        encoder: ChunkEncoder,
        /// Octets of what is stored that are still to come.
        left: u64,
    },
}

impl Encoder {
    fn encode(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), Unsent> {
        let encoded = match self {
            Encoder::Stuffed(stuffer) => stuffer.encode(piece, out),
            Encoder::Counted { encoder, left } => {
                *left = left.checked_sub(piece.len() as u64).ok_or_else(wrong_size)?;
                encoder.encode(piece, out)
            }
        };
        encoded.map_err(Unsent::Flawed)
    }

    fn finish(self, out: &mut Vec<u8>) -> Result<(), Unsent> {
        let finished = match self {
            Encoder::Stuffed(stuffer) => stuffer.finish(out),
            Encoder::Counted { left: 1.., .. } => return Err(wrong_size()),
            Encoder::Counted { encoder, left: 0 } => encoder.finish(out),
        };
        finished.map_err(Unsent::Flawed)
    }
}

impl Connection {
    /// Writes all of the content but the last block, which is returned: with it goes the final dot, or the
    /// last octets of the chunk.
    pub(super) async fn send_content(
        &mut self,
        framing: Framing,
        body: &Body,
        deadline: Instant,
    ) -> Result<Vec<u8>, Unsent> {
        let first = usize::try_from(body.len()).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES);
        let mut block = Vec::with_capacity(first + READ_BYTES);
        let mut encoder = match framing {
            Framing::Dot => Encoder::Stuffed(DotStuffer::new()),
            Framing::Counted => {
                let last = in_time(body.last_byte(), deadline).await?;
                write_bdat(ChunkEncoder::octets(body.len(), last), &mut block);
                Encoder::Counted { encoder: ChunkEncoder::default(), left: body.len() }
            }
        };
        let mut pieces = body.pieces();
        while let Some(chunk) = in_time(pieces.next(), deadline).await? {
            for piece in chunk.chunks(BLOCK_BYTES) {
                // Never the last piece: the end of the message must not be in it.
                if block.len() >= BLOCK_BYTES {
                    self.write_block(&block, deadline).await.map_err(Unsent::Lost)?;
                    block.clear();
                }
                encoder.encode(piece, &mut block)?;
            }
        }
        encoder.finish(&mut block)?;
        // A server that has spoken by now does not wait for the end: its reply to it could not be told
        // from what it said before.
        self.write_block(&[], deadline).await.map_err(Unsent::Lost)?;
        Ok(block)
    }

    /// Writes and listens at once, so that a server that gives up half-way is heard.
    async fn write_block(&mut self, block: &[u8], deadline: Instant) -> Result<(), Loss> {
        if !self.replies.is_empty() {
            return Err(Loss::Desync);
        }
        let limit = limit(self.client.timeouts().block, deadline);
        let heard = timeout_at(limit, write_unless_heard(&mut self.stream, block)).await;
        let heard = heard.map_err(|_| Loss::TimedOut)?.map_err(|error| Loss::Broken(error.to_string()))?;
        match heard {
            None => Ok(()),
            Some(bytes) if bytes.is_empty() => Err(Loss::Closed),
            Some(bytes) => {
                self.replies.push(&bytes);
                Err(Loss::Interrupted(self.replies.next().ok().flatten()))
            }
        }
    }
}

fn wrong_size() -> Unsent {
    Unsent::Unread("it is not as long as was noted".to_owned())
}

async fn in_time<T>(read: impl Future<Output = Result<T, StoreError>>, deadline: Instant) -> Result<T, Unsent> {
    match timeout_at(deadline, read).await {
        Ok(read) => read.map_err(|error| Unsent::Unread(error.to_string())),
        Err(_) => Err(Unsent::Unread("no room in queue.memory".to_owned())),
    }
}
