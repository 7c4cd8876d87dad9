//! What DKIM needs to know of a body: its hashes, of a whole one or of one that passes in pieces.
//!
//! Hashing in pieces gives the same for every way of cutting, and the same as hashing the whole body
//! at once, for bodies in which CR and LF only ever stand together: others are not taken from the wire.

use aws_lc_rs::digest::{Context, SHA256};
use mail_auth::common::crypto::{HashAlgorithm, HashContext};
use mail_auth::dkim::Canonicalization;
use mail_auth::dkim::canonicalize::BodyHasher;

/// Pending line ends that are handed on at once.
const LINE_ENDS: &[u8] = b"\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n";

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// SHA-256 of a body in both canonical forms of RFC 6376 3.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyHashes {
    pub relaxed: Hash,
    /// Only where somebody has signed so.
    pub simple: Option<Hash>,
}

/// The hash of a whole body in the relaxed form.
pub fn relaxed_hash(body: &[u8]) -> Hash {
    // Blank lines at the end do not count in relaxed bodies (RFC 6376 3.4.4); mail-auth counts them if
    // it gets to see them.
    let body = without_blank_end(body);
    shortened(HashAlgorithm::Sha256.hash(Canonicalization::Relaxed.canonical_body(body, 0)).as_ref())
}

/// The hash of a whole body in the simple form.
pub fn simple_hash(body: &[u8]) -> Hash {
    shortened(HashAlgorithm::Sha256.hash(Canonicalization::Simple.canonical_body(body, 0)).as_ref())
}

fn shortened(digest: &[u8]) -> Hash {
    let mut hash = [0; 32];
    hash.iter_mut().zip(digest).for_each(|(to, from)| *to = *from);
    hash
}

/// Both hashes of a body that passes in pieces.
pub struct Hashing {
    relaxed: BodyHasher<Context>,
    blanks: Blanks,
    simple: Option<BodyHasher<Context>>,
}

impl std::fmt::Debug for Hashing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hashing")
    }
}

impl Hashing {
    /// `simple`: that form, too.
    pub fn new(simple: bool) -> Hashing {
        Hashing {
            relaxed: BodyHasher::new(Context::new(&SHA256), Canonicalization::Relaxed, 0),
            blanks: Blanks::default(),
            simple: simple.then(|| BodyHasher::new(Context::new(&SHA256), Canonicalization::Simple, 0)),
        }
    }

    pub fn push(&mut self, piece: &[u8]) {
        if let Some(simple) = &mut self.simple {
            simple.write(piece);
        }
        let relaxed = &mut self.relaxed;
        self.blanks.pass(piece, |text| relaxed.write(text));
    }

    pub fn finish(self) -> BodyHashes {
        BodyHashes { relaxed: finished(self.relaxed), simple: self.simple.map(finished) }
    }
}

fn finished(hasher: BodyHasher<Context>) -> Hash {
    shortened(hasher.finish().0.complete().as_ref())
}

/// Holds back lines of blanks until text follows, in constant space however many there are: that is
/// [`without_blank_end`] for pieces.
#[derive(Debug, Default)]
struct Blanks {
    /// Held back: so many line ends, then blanks, then a CR.
    line_ends: u64,
    blanks: bool,
    cr: bool,
}

impl Blanks {
    /// Hands on what is followed by text.
    fn pass(&mut self, piece: &[u8], mut on: impl FnMut(&[u8])) {
        let start = self.take_blanks(piece);
        let Some(rest) = piece.get(start..).filter(|rest| !rest.is_empty()) else { return };
        self.release(&mut on);
        let end = blank_end(rest);
        let (text, blanks) = rest.split_at(end);
        on(text);
        self.take_blanks(blanks);
    }

    /// Takes blanks and line ends at the beginning of the piece, and says where text begins.
    fn take_blanks(&mut self, piece: &[u8]) -> usize {
        let mut at = 0;
        loop {
            match (self.cr, piece.get(at)) {
                (true, Some(b'\n')) => {
                    self.line_ends += 1;
                    (self.blanks, self.cr) = (false, false);
                }
                (false, Some(b' ' | b'\t')) => self.blanks = true,
                (false, Some(b'\r')) => self.cr = true,
                _ => return at,
            }
            at += 1;
        }
    }

    fn release(&mut self, on: &mut impl FnMut(&[u8])) {
        while self.line_ends > 0 {
            let some = usize::try_from(self.line_ends).unwrap_or(usize::MAX).min(LINE_ENDS.len() / 2);
            on(LINE_ENDS.get(..2 * some).unwrap_or_default());
            self.line_ends -= some as u64;
        }
        // A run of blanks counts as one.
        if std::mem::take(&mut self.blanks) {
            on(b" ");
        }
        if std::mem::take(&mut self.cr) {
            on(b"\r");
        }
    }
}

/// Where the blanks and line ends begin that the piece ends with.
fn blank_end(piece: &[u8]) -> usize {
    let mut at = piece.len() - usize::from(piece.last() == Some(&b'\r'));
    while let Some(before) = at.checked_sub(1) {
        match (before.checked_sub(1).and_then(|at| piece.get(at)), piece.get(before)) {
            (_, Some(b' ' | b'\t')) => at = before,
            (Some(b'\r'), Some(b'\n')) => at = before - 1,
            _ => break,
        }
    }
    at
}

/// The body without the lines at its end that hold nothing but blanks. In the relaxed
/// canonicalisation of RFC 6376 3.4.4 they do not count.
pub fn without_blank_end(body: &[u8]) -> &[u8] {
    let mut end = body.len();
    // Whole lines only: blanks behind text stay, as does the line end of the last line with text.
    let mut at = end;
    while let Some(last) = at.checked_sub(1).and_then(|last| body.get(last)) {
        match last {
            b' ' | b'\t' => at -= 1,
            b'\n' if at >= 2 && body.get(at - 2) == Some(&b'\r') => {
                end = at;
                at -= 2;
            }
            _ => return body.get(..end).unwrap_or(body),
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hashed(pieces: &[&[u8]]) -> BodyHashes {
        let mut hashing = Hashing::new(true);
        pieces.iter().for_each(|piece| hashing.push(piece));
        hashing.finish()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]
        /// CRLF, blanks and text in any order, cut anywhere.
        #[test]
        fn pieces_hash_as_the_whole(
            words in proptest::collection::vec(0usize..6, 0..40),
            cuts in proptest::collection::vec(0usize..80, 0..6),
        ) {
            let body: Vec<u8> =
                words.iter().flat_map(|word| [&b"\r\n"[..], b" ", b"\t", b"a", b".x", b"  "][*word]).copied().collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(body.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([body.len()]) {
                pieces.push(&body[from..cut]);
                from = cut;
            }
            let whole = BodyHashes { relaxed: relaxed_hash(&body), simple: Some(simple_hash(&body)) };
            prop_assert_eq!(hashed(&pieces), whole, "{:?}", body);
        }
    }

    #[test]
    fn many_blank_lines_are_counted_and_not_kept() {
        let body = [b"a".as_slice(), &b" \t\r\n".repeat(100_000), b" b\r\n", &b"\r\n".repeat(1000)].concat();
        let pieces: Vec<&[u8]> = body.chunks(777).collect();
        let whole = BodyHashes { relaxed: relaxed_hash(&body), simple: Some(simple_hash(&body)) };
        assert_eq!(hashed(&pieces), whole);
        assert_eq!(hashed(&[b"  \r\n", b" \t\r\n"]).relaxed, relaxed_hash(b""));
    }

    #[test]
    fn only_blank_lines_go() {
        for (body, kept) in [
            ("", ""),
            ("\r\n", ""),
            ("  \t", ""),
            (" \r\n\t\r\n", ""),
            ("a\r\n", "a\r\n"),
            ("a", "a"),
            ("a  \r\n \t\r\n\r\n  ", "a  \r\n"),
            ("a \t ", "a \t "),
            (" \r\n a\r\n", " \r\n a\r\n"),
            ("a\n\r\n", "a\n\r\n"),
            ("a\r", "a\r"),
            ("\n", "\n"),
        ] {
            assert_eq!(without_blank_end(body.as_bytes()), kept.as_bytes(), "{body:?}");
        }
    }
}
