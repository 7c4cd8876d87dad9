//! A message as it is kept on this machine: with the fields of its last server on top, and lines that end in
//! LF, as mail readers and programs have it.

use std::io::{self, Write};

use crate::queue::record::{Message, Recipient};

/// The fields that the last server on the way puts on top (RFC 5321 4.4).
pub(super) fn head(message: &Message, recipient: &Recipient) -> String {
    let original = recipient.alias.as_ref().map_or_else(String::new, |alias| format!("X-Original-To: {alias}\n"));
    format!("Return-Path: <{}>\n{original}Delivered-To: {}\n", message.mail_from, recipient.address)
}

/// Writes CRLF as LF, also where a chunk ends between the two.
pub(super) struct LineEnds<'w, W: Write> {
    out: &'w mut W,
    pending_cr: bool,
}

impl<'w> LineEnds<'w, Vec<u8>> {
    /// What has been written so far, to be taken away.
    pub fn taken(&mut self) -> &mut Vec<u8> {
        self.out
    }
}

impl<'w, W: Write> LineEnds<'w, W> {
    pub fn new(out: &'w mut W) -> LineEnds<'w, W> {
        LineEnds { out, pending_cr: false }
    }

    pub fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        for piece in chunk.split_inclusive(|b| *b == b'\n') {
            if std::mem::take(&mut self.pending_cr) && piece != b"\n" {
                self.out.write_all(b"\r")?;
            }
            match piece {
                [line @ .., b'\r', b'\n'] => {
                    self.out.write_all(line)?;
                    self.out.write_all(b"\n")?;
                }
                [line @ .., b'\r'] => {
                    self.out.write_all(line)?;
                    self.pending_cr = true;
                }
                line => self.out.write_all(line)?,
            }
        }
        Ok(())
    }

    pub fn finish(self) -> io::Result<()> {
        if self.pending_cr { self.out.write_all(b"\r") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn line_ends_do_not_depend_on_the_chunks() {
        let text = b"a\r\nb\nc\rd\r\r\n\r\n\n\r";
        for first in 0..=text.len() {
            for second in first..=text.len() {
                let mut out = Vec::new();
                let mut lines = LineEnds::new(&mut out);
                for chunk in [&text[..first], &text[first..second], &text[second..]] {
                    lines.write(chunk).unwrap();
                }
                lines.finish().unwrap();
                assert_eq!(out, b"a\nb\nc\rd\r\n\n\n\r", "cut at {first} and {second}");
            }
        }
    }
}
