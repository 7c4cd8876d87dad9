//! A message while it comes in from a mailbox: its beginning in memory, the rest on its way into the store
//! already, so that it holds no more than that whatever its size.
//!
//! Every CR, LF and CRLF becomes one line end, as in files that are picked up: what lies in a mailbox may
//! have come there on any way. Fields that the mailbox's own server put on top at the last delivery are
//! taken out: they were for that mailbox only, and `Delivered-To` would look like a loop.

use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;

use crate::message::Content;
use crate::message::header::{Field, HEADER_BYTES_MAX, Headers};
use crate::queue::body::BodyWriter;
use crate::queue::{CHUNK_BYTES_MAX, Queue};
use crate::store::StoreError;

/// Bytes of a message that stay in memory, as for those that come by SMTP.
const HEAD_BYTES: usize = HEADER_BYTES_MAX + 128 * 1024;
/// What final delivery adds, above the first Received (RFC 5321 4.4).
const LAST_HOP_FIELDS: [&str; 6] =
    ["return-path", "delivered-to", "x-original-to", "envelope-to", "x-envelope-to", "x-rcpt-to"];

/// Why a message is none that can be queued.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error("it has more than limits.max_size ({0} bytes)")]
    TooLarge(u64),
    #[error("it holds NUL bytes, which no mail may have")]
    Nul,
    #[error("it is empty")]
    Empty,
    #[error("it could not be stored: {0}")]
    Unstored(#[from] StoreError),
}

/// A whole message.
#[derive(Debug)]
pub struct Collected {
    /// As it is to be queued.
    pub content: Content,
    /// The header section as it was in the mailbox.
    pub original_header: Bytes,
    /// Bytes and SHA-256 of all of it, as it was but for line ends.
    pub size: u64,
    pub hash: [u8; 32],
}

pub struct Collector {
    queue: Arc<Queue>,
    max_size: u64,
    head: Vec<u8>,
    writer: Option<BodyWriter>,
    /// Behind the head, and not a whole chunk yet.
    chunk: Vec<u8>,
    size: u64,
    hash: Context,
    is_after_cr: bool,
    last: u8,
    unfit: Option<Unfit>,
}

impl Collector {
    /// `max_size`: bytes, line ends as they will be.
    pub fn new(queue: Arc<Queue>, max_size: u64) -> Collector {
        Collector {
            queue,
            max_size,
            head: Vec::new(),
            writer: None,
            chunk: Vec::new(),
            size: 0,
            hash: Context::new(&SHA256),
            is_after_cr: false,
            last: 0,
            unfit: None,
        }
    }

    /// It is known not to be taken, so the rest may be passed over.
    pub fn is_unfit(&self) -> bool {
        self.unfit.is_some()
    }

    /// Takes what comes next. What is wrong with the message is told by [`Collector::finish`].
    pub async fn push(&mut self, bytes: &[u8]) {
        if self.is_unfit() || bytes.is_empty() {
            return;
        }
        if bytes.contains(&0) {
            return self.give_up(Unfit::Nul);
        }
        let mut text = Vec::with_capacity(bytes.len() + bytes.len() / 16 + 2);
        normalise(&mut self.is_after_cr, bytes, &mut text);
        self.add(&text).await;
    }

    async fn add(&mut self, text: &[u8]) {
        let Some(last) = text.last() else { return };
        self.last = *last;
        self.size += text.len() as u64;
        self.hash.update(text);
        if self.size > self.max_size {
            return self.give_up(Unfit::TooLarge(self.max_size));
        }
        let room = HEAD_BYTES.saturating_sub(self.head.len()).min(text.len());
        let (now, later) = text.split_at_checked(room).unwrap_or((text, &[]));
        self.head.extend_from_slice(now);
        self.chunk.extend_from_slice(later);
        while self.chunk.len() >= CHUNK_BYTES_MAX {
            let rest = self.chunk.split_off(CHUNK_BYTES_MAX);
            let full = std::mem::replace(&mut self.chunk, rest);
            self.pass_on(full).await;
        }
    }

    async fn pass_on(&mut self, chunk: Vec<u8>) {
        let writer = self.writer.get_or_insert_with(|| self.queue.begin_body(&self.head));
        if let Err(error) = writer.push(Bytes::from(chunk)).await {
            self.give_up(Unfit::Unstored(error));
        }
    }

    /// What was kept of it goes at once.
    fn give_up(&mut self, unfit: Unfit) {
        self.unfit.get_or_insert(unfit);
        (self.head, self.chunk, self.writer) = (Vec::new(), Vec::new(), None);
    }

    pub async fn finish(mut self) -> Result<Collected, Unfit> {
        if std::mem::take(&mut self.is_after_cr) {
            self.add(b"\r\n").await;
        }
        if self.size == 0 && !self.is_unfit() {
            return Err(Unfit::Empty);
        }
        if self.last != b'\n' {
            self.add(b"\r\n").await;
        }
        let chunk = std::mem::take(&mut self.chunk);
        if !chunk.is_empty() && !self.is_unfit() {
            self.pass_on(chunk).await;
        }
        if let Some(unfit) = self.unfit {
            return Err(unfit);
        }
        let mut hash = [0; 32];
        hash.iter_mut().zip(self.hash.finish().as_ref()).for_each(|(to, from)| *to = *from);
        let head = Bytes::from(self.head);
        let header = head.slice(..Headers::parse(&head).header_bytes().len().min(head.len()));
        let content = Content::new(without_last_hop(&head), self.writer.map(BodyWriter::finish));
        Ok(Collected { content, original_header: header, size: self.size, hash })
    }
}

/// `is_after_cr`: the CR at the end of what came before waits for what comes next.
fn normalise(is_after_cr: &mut bool, bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes {
        let was_cr = std::mem::replace(is_after_cr, *byte == b'\r');
        match byte {
            b'\n' => out.extend_from_slice(b"\r\n"),
            b'\r' if was_cr => out.extend_from_slice(b"\r\n"),
            b'\r' => {}
            other => {
                if was_cr {
                    out.extend_from_slice(b"\r\n");
                }
                out.push(*other);
            }
        }
    }
}

fn without_last_hop(head: &Bytes) -> Bytes {
    let headers = Headers::parse(head);
    let fields = headers.fields();
    let top = fields.iter().position(|field| field.is("received")).unwrap_or(fields.len());
    let top = fields.get(..top).unwrap_or_default();
    let is_last_hop = |field: &Field<'_>| LAST_HOP_FIELDS.iter().any(|name| field.is(name));
    // One with too many fields is refused with all of them.
    if headers.within_limits().is_err() || !top.iter().any(is_last_hop) {
        return head.clone();
    }
    let mut kept = Vec::with_capacity(head.len());
    for (index, field) in fields.iter().enumerate() {
        if index >= top.len() || !is_last_hop(field) {
            kept.extend_from_slice(field.raw);
        }
    }
    kept.extend_from_slice(head.get(headers.header_bytes().len()..).unwrap_or_default());
    Bytes::from(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn normal(parts: &[&[u8]]) -> Vec<u8> {
        let (mut is_after_cr, mut out) = (false, Vec::new());
        parts.iter().for_each(|part| normalise(&mut is_after_cr, part, &mut out));
        if is_after_cr {
            out.extend_from_slice(b"\r\n");
        }
        out
    }

    #[test]
    fn every_way_to_end_a_line_becomes_one() {
        assert_eq!(normal(&[b"a\nb\rc\r\nd\r\r\n\ne\r"]), b"a\r\nb\r\nc\r\nd\r\n\r\n\r\ne\r\n");
    }

    #[test]
    fn what_the_last_server_put_on_top_goes_and_nothing_else() {
        let message = b"Return-Path: <a@b.example>\r\nDelivered-To: me@b.example\r\nReceived: x\r\nDelivered-To: us@c.example\r\nTo: y\r\n\r\nDelivered-To: z\r\n";
        let kept = without_last_hop(&Bytes::from_static(message));
        let wanted = b"Received: x\r\nDelivered-To: us@c.example\r\nTo: y\r\n\r\nDelivered-To: z\r\n";
        assert_eq!(kept, wanted[..]);
        let plain = Bytes::from_static(b"From: a\r\n\r\nDelivered-To: z\r\n");
        assert_eq!(without_last_hop(&plain), plain);
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_lines(text in "[ab\r\n]{0,40}", at in 0_usize..41) {
            let at = at.min(text.len());
            let (one, two) = text.as_bytes().split_at(at);
            prop_assert_eq!(normal(&[one, two]), normal(&[text.as_bytes()]));
        }
    }
}
