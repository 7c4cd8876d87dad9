//! Reading a message: DATA to its dot, or BDAT chunk by chunk, within the memory and the time there is.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::memory::{Content, Lost, Share};
use super::{Connection, End};
use crate::server::limits::{self, Client};
use crate::server::outside::Outside;
use crate::server::step::DataEnd;
use crate::smtp::wire::{ChunkDecoder, DataDecoder, Fed, Flaw, Progress};

/// Bytes of read buffer for the beginning of a message. Most messages are no longer than that.
const FIRST_BUFFER_BYTES: usize = 16 * 1024;
/// Bytes of read buffer for the rest.
const MESSAGE_BUFFER_BYTES: usize = 64 * 1024;
/// A message that comes in slower than this (bytes a second, after the first `data_timeout`) is cut off.
const MESSAGE_RATE_MIN: u64 = 500;

/// Either way of sending a message.
enum Decoder<'a> {
    Data(&'a mut DataDecoder),
    Chunk(&'a mut ChunkDecoder),
}

impl Decoder<'_> {
    fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Fed {
        match self {
            Decoder::Data(decoder) => decoder.feed(input, out),
            Decoder::Chunk(decoder) => decoder.feed(input, out),
        }
    }

    fn flaw(&self) -> Option<Flaw> {
        match self {
            Decoder::Data(decoder) => decoder.flaw(),
            Decoder::Chunk(decoder) => decoder.flaw(),
        }
    }

    fn discard(&mut self) {
        match self {
            Decoder::Data(decoder) => decoder.discard(),
            Decoder::Chunk(decoder) => decoder.discard(),
        }
    }
}

impl From<Lost> for DataEnd {
    fn from(lost: Lost) -> DataEnd {
        match lost {
            Lost::NoRoom => DataEnd::NoRoom,
            Lost::Unstored => DataEnd::Unstored,
        }
    }
}

/// Octets that a decoder may have kept back of earlier input (a dot, a CR) and adds to the next.
const HELD_BACK_BYTES_MAX: usize = 2;

/// Messages.
impl<S, O> Connection<S, O>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    O: Outside,
{
    pub(super) async fn read_data(&mut self) -> Result<DataEnd, End> {
        let max_size = self.shared.config.limits.max_size;
        let mut decoder = DataDecoder::new(max_size);
        let mut content = Content::new(self.declared.take(), max_size, self.share());
        if self.read_body(Decoder::Data(&mut decoder), &mut content).await? == Progress::Endless {
            return Ok(DataEnd::Endless);
        }
        Ok(self.complete(decoder.flaw(), content).await)
    }

    pub(super) async fn read_chunk(
        &mut self,
        size: u64,
        first: bool,
        last: bool,
        discard: bool,
    ) -> Result<DataEnd, End> {
        let max_size = self.shared.config.limits.max_size;
        if discard {
            let mut decoder = ChunkDecoder::new(max_size);
            decoder.discard();
            decoder.begin(size);
            let mut nothing = Content::none();
            let progress = self.read_body(Decoder::Chunk(&mut decoder), &mut nothing).await?;
            return Ok(if progress == Progress::Endless { DataEnd::Endless } else { DataEnd::Partial });
        }
        let declared = self.declared.take();
        let mut message = match self.chunks.take() {
            Some(begun) if !first => begun,
            _ => Box::new((ChunkDecoder::new(max_size), Content::new(declared.or(Some(size)), max_size, self.share()))),
        };
        let (decoder, content) = &mut *message;
        decoder.begin(size);
        if self.read_body(Decoder::Chunk(decoder), content).await? == Progress::Endless {
            return Ok(DataEnd::Endless);
        }
        if last {
            let (decoder, content) = *message;
            return Ok(self.complete(decoder.finish(), content).await);
        }
        if let Some(flaw) = decoder.flaw() {
            return Ok(flaw.into());
        }
        if let Some(lost) = content.lost() {
            return Ok(lost.into());
        }
        self.chunks = Some(message);
        Ok(DataEnd::Partial)
    }

    /// Trusted networks stand for many users and are our own: all of the memory is theirs.
    fn share(&self) -> Share {
        let shared = &self.shared;
        match limits::is_exempt(&shared.config, self.arrival.peer) {
            true => Share::default(),
            false => shared.memory.share_of(Client::of(self.arrival.peer), shared.config.limits.max_size),
        }
    }

    async fn complete(&mut self, flaw: Option<Flaw>, content: Content) -> DataEnd {
        if let Some(flaw) = flaw {
            return flaw.into();
        }
        if let Some(lost) = content.lost() {
            return lost.into();
        }
        match content.finish().await {
            Ok((content, own)) => {
                self.held = own;
                DataEnd::Complete(content)
            }
            Err(error) => {
                warn!(%error, "a message could not be stored while it came in");
                DataEnd::Unstored
            }
        }
    }

    /// Room for so many bytes more: what is here goes on to the store where there is enough of it, or
    /// too little memory. False: the message is given up.
    async fn make_room(&mut self, content: &mut Content, more: usize) -> Result<bool, End> {
        let memory = &self.shared.memory;
        if !content.is_full(more) && content.make_room(more, memory) {
            return Ok(true);
        }
        if (content.is_full(more) || content.has_passed_on())
            && let Err(refusal) = content.pass_on(&self.shared.outside).await
        {
            warn!(reason = refusal.reason, "a message could not be stored while it came in");
            return Ok(false);
        }
        if content.make_room(more, memory) {
            return Ok(true);
        }
        // The client may be waiting for what we have said before it sends (and ends) anything.
        self.flush().await?;
        let has_room = content.wait_for_room(more, &self.shared.memory).await;
        if !has_room {
            info!("no room in queue.memory for a message");
        }
        Ok(has_room)
    }

    /// Feeds the decoder to the end of the message or chunk.
    async fn read_body(&mut self, mut decoder: Decoder<'_>, content: &mut Content) -> Result<Progress, End> {
        let mut patience = Patience::new(self.shared.config.limits.data_timeout);
        let mut buffer_bytes = FIRST_BUFFER_BYTES;
        loop {
            let buffered = self.input.len().saturating_sub(self.start);
            let is_kept = buffered > 0 && decoder.flaw().is_none() && content.lost().is_none();
            if is_kept && !self.make_room(content, buffered + HELD_BACK_BYTES_MAX).await? {
                decoder.discard();
            }
            let buffered = self.input.get(self.start..).unwrap_or_default();
            let fed = decoder.feed(buffered, &mut content.bytes);
            self.start += fed.consumed;
            if fed.progress != Progress::More {
                return Ok(fed.progress);
            }
            if decoder.flaw().is_some() {
                content.let_go();
            }
            self.flush().await?;
            self.tidy(buffer_bytes);
            let before = Instant::now();
            match timeout(patience.left, self.stream.read_buf(&mut self.input)).await {
                Ok(Ok(0)) => return Err(End::Gone(io::ErrorKind::UnexpectedEof.into())),
                Ok(Ok(bytes)) => {
                    patience.read(bytes, before.elapsed());
                    if bytes >= FIRST_BUFFER_BYTES / 2 {
                        buffer_bytes = MESSAGE_BUFFER_BYTES;
                    }
                }
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => return Err(End::TimedOut),
            }
        }
    }
}

/// How long a message may still make us wait. Waiting uses it up, bytes bring it back; our own waits
/// (for memory) do not count.
struct Patience {
    left: Duration,
    most: Duration,
}

impl Patience {
    fn new(most: Duration) -> Patience {
        Patience { left: most, most }
    }

    fn read(&mut self, bytes: usize, waited: Duration) {
        let earned = Duration::from_millis(bytes as u64 * 1000 / MESSAGE_RATE_MIN);
        self.left = self.left.saturating_sub(waited).saturating_add(earned).min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trickle_does_not_buy_time() {
        let minutes = |count: u64| Duration::from_secs(60 * count);
        let mut patience = Patience::new(minutes(10));
        for _ in 0..9 {
            patience.read(1, minutes(1));
        }
        assert!(patience.left <= minutes(1) + Duration::from_secs(1), "{:?}", patience.left);
        patience.read(1_000_000, minutes(1));
        assert_eq!(patience.left, minutes(10), "a client that sends gets the whole time again, and not more");
    }
}
