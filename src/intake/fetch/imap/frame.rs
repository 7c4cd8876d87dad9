//! Cuts what an IMAP server sends into lines and literals (RFC 9051 4 and 9), without I/O.
//!
//! Promises: any way of cutting the input gives the same pieces, but for where the data of a literal is
//! cut; a line is bounded, so is the number that announces a literal; the data of a literal passes through
//! and is not kept.

use bytes::{Bytes, BytesMut};

/// Bytes of a line. The longest we ask for is the answer to a search in [`super::WINDOW`] messages.
pub const LINE_BYTES_MAX: usize = 256 * 1024;

/// What the server sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A line, or what of one stands before or after a literal; without its end and without the
    /// announcement.
    Text { text: Vec<u8>, literal: Option<u64> },
    /// Of the literal that was announced; never empty.
    Data(Bytes),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    #[error("a line is longer than {LINE_BYTES_MAX} bytes")]
    LongLine,
}

#[derive(Clone, Debug, Default)]
pub struct Framing {
    /// Bytes of the literal that are still to come.
    left: u64,
    /// Behind a literal: the line goes on.
    is_inside: bool,
    /// Bytes at the beginning of the input that hold no line end.
    searched: usize,
}

impl Framing {
    /// The next piece; none if more input is needed.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Piece>, Flaw> {
        if self.left > 0 {
            let bytes = usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len());
            if bytes == 0 {
                return Ok(None);
            }
            self.left -= bytes as u64;
            return Ok(Some(Piece::Data(input.split_to(bytes).freeze())));
        }
        let rest = input.get(self.searched..).unwrap_or_default();
        let Some(end) = rest.iter().position(|byte| *byte == b'\n').map(|at| at + self.searched) else {
            self.searched = input.len();
            return if input.len() > LINE_BYTES_MAX { Err(Flaw::LongLine) } else { Ok(None) };
        };
        self.searched = 0;
        if end > LINE_BYTES_MAX {
            return Err(Flaw::LongLine);
        }
        let mut text = input.split_to(end + 1).to_vec();
        text.pop();
        if text.last() == Some(&b'\r') {
            text.pop();
        }
        let literal = if self.is_inside || may_announce(&text) { announced(&text) } else { None };
        if let Some((at, bytes)) = literal {
            text.truncate(at);
            self.left = bytes;
        }
        self.is_inside = literal.is_some();
        Ok(Some(Piece::Text { text, literal: literal.map(|(_, bytes)| bytes) }))
    }
}

/// Only data has literals in it. Text for people may end in braces and means nothing by it.
fn may_announce(line: &[u8]) -> bool {
    let mut words = line.split(|byte| *byte == b' ');
    let is_data = words.next() == Some(b"*");
    let status: [&[u8]; 5] = [b"OK", b"NO", b"BAD", b"BYE", b"PREAUTH"];
    is_data && words.next().is_some_and(|word| !status.iter().any(|status| word.eq_ignore_ascii_case(status)))
}

/// `… {123}` at the end of a line: where it begins, and the number. RFC 3516's `~{123}` and RFC 7888's
/// `{123+}` mean the same from a server.
fn announced(line: &[u8]) -> Option<(usize, u64)> {
    let inner = line.strip_suffix(b"}")?;
    let open = inner.iter().rposition(|byte| *byte == b'{')?;
    let digits = inner.get(open + 1..)?;
    let digits = digits.strip_suffix(b"+").unwrap_or(digits);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let start = if open > 0 && inner.get(open - 1) == Some(&b'~') { open - 1 } else { open };
    Some((start, number))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use proptest::prelude::*;

    /// The pieces of an input that comes in these parts, with the data of each literal joined.
    fn pieces(parts: &[&[u8]]) -> Result<Vec<Piece>, Flaw> {
        let mut framing = Framing::default();
        let mut input = BytesMut::new();
        let mut found: Vec<Piece> = Vec::new();
        for part in parts {
            input.extend_from_slice(part);
            while let Some(piece) = framing.next(&mut input)? {
                match (found.last_mut(), piece) {
                    (Some(Piece::Data(before)), Piece::Data(more)) => *before = [&before[..], &more].concat().into(),
                    (_, piece) => found.push(piece),
                }
            }
        }
        Ok(found)
    }

    fn text(text: &str, literal: Option<u64>) -> Piece {
        Piece::Text { text: text.as_bytes().to_vec(), literal }
    }

    #[test]
    fn literals_are_told_from_text_that_looks_like_one() {
        let input = b"* OK hello {5}\r\n* 1 FETCH (BODY[] {3}\r\na\r\n UID 7)\r\na1 OK done {9}\r\n+ go {1}\n* LIST () ~{0}\r\n x\r\n";
        let found = pieces(&[input]).unwrap();
        let wanted = [
            text("* OK hello {5}", None),
            text("* 1 FETCH (BODY[] ", Some(3)),
            Piece::Data(Bytes::from_static(b"a\r\n")),
            text(" UID 7)", None),
            text("a1 OK done {9}", None),
            text("+ go {1}", None),
            text("* LIST () ", Some(0)),
            text(" x", None),
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_line_without_end_is_given_up() {
        let long = vec![b'x'; LINE_BYTES_MAX + 1];
        assert_eq!(pieces(&[&long]), Err(Flaw::LongLine));
        assert_eq!(pieces(&[&long, b"\r\n"]), Err(Flaw::LongLine));
        assert_eq!(pieces(&[b"* X {99999999999999999999999}\r\n"]).unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_pieces(
            lines in prop::collection::vec(prop_oneof![
                "[ -~]{0,40}\r\n", "\\* [0-9]{1,3} FETCH \\(BODY\\[\\] \\{[0-9]{1,2}\\}\r\n[ -~]{0,60}\r\n", "\\PC{0,10}\n"
            ], 0..12),
            cuts in prop::collection::vec(0_usize..600, 0..8),
        ) {
            let input = lines.concat().into_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(input.len())).collect();
            cuts.sort_unstable();
            let mut parts = Vec::new();
            let mut from = 0;
            for cut in cuts {
                parts.push(&input[from..cut]);
                from = cut;
            }
            parts.push(&input[from..]);
            prop_assert_eq!(pieces(&parts), pieces(&[&input]));
        }

        #[test]
        fn no_input_panics(input in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = pieces(&[&input]);
        }
    }
}
