//! Framing: where a command ends, where a message ends, and how a message is written so that its
//! end is seen. Both sides of SMTP use it.
//!
//! Promises: only CRLF ends a line, only CRLF.CRLF ends DATA (or .CRLF as the very first line), a
//! BDAT chunk is counted and never searched. A CR or LF that is not part of a CRLF and a NUL are
//! found wherever they stand, because two servers that read them differently see two different
//! messages ("SMTP smuggling"). How the input was cut into reads never changes the result.
//!
//! Leaves out: what a line means (`command`), and reading or writing (the connections).

use memchr::{memchr_iter, memchr2, memchr3};

/// Longest command line, in octets without its CRLF. RFC 5321 4.5.3.1.4 asks for 512 and extensions
/// add to it; the longest that we have use for is an AUTH with a long password.
pub const COMMAND_BYTES_MAX: usize = 4096;

/// What is read and thrown away of a message that is too large before the connection is given up,
/// in octets. Short of it the client hears the reply that tells it why.
pub const DRAIN_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// First octet of a TLS handshake record (RFC 8446 5.1). No command starts with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// Why the input cannot be cut into lines. What follows cannot be trusted: say why and close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    #[error("a line ends with a bare LF")]
    BareLf,
    #[error("a line holds a bare CR")]
    BareCr,
    #[error("a line is longer than {COMMAND_BYTES_MAX} octets")]
    TooLong,
    #[error("a TLS handshake where a line should be")]
    TlsHandshake,
}

/// Cuts command lines off the front of a buffer. Keeps how far it has looked, so that a line which
/// trickles in is searched once.
#[derive(Debug, Default)]
pub struct LineCutter {
    searched: usize,
}

impl LineCutter {
    pub fn new() -> LineCutter {
        LineCutter::default()
    }

    /// The length of the first line in `buffer`, without its CRLF; none if the CRLF is not there
    /// yet. The caller then drops the line and its CRLF ([`LINE_END_BYTES`]) from the buffer; until
    /// then it only ever appends to it.
    pub fn cut(&mut self, buffer: &[u8]) -> Result<Option<usize>, LineError> {
        if buffer.first() == Some(&TLS_HANDSHAKE) {
            return Err(LineError::TlsHandshake);
        }
        let from = self.searched.min(buffer.len());
        let found = memchr2(b'\r', b'\n', buffer.get(from..).unwrap_or_default());
        let end = from + found.unwrap_or(buffer.len() - from);
        if end > COMMAND_BYTES_MAX {
            return Err(LineError::TooLong);
        }
        self.searched = end;
        match (buffer.get(end), buffer.get(end + 1)) {
            (Some(b'\n'), _) => Err(LineError::BareLf),
            (Some(_), Some(b'\n')) => {
                self.searched = 0;
                Ok(Some(end))
            }
            (Some(_), Some(_)) => Err(LineError::BareCr),
            (Some(_), None) | (None, _) => Ok(None),
        }
    }
}

/// Octets of CRLF.
pub const LINE_END_BYTES: usize = 2;

/// What is wrong with a message that was read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// RFC 5321 2.3.8: CR and LF only ever stand together.
    #[error("a line ends with a bare CR or LF; lines must end with CRLF")]
    BareLineEnd,
    /// RFC 5321 4.5.2 lets the transport refuse what is not text; C code after us would cut here.
    #[error("the message holds a NUL octet")]
    Nul,
    #[error("the message is larger than the limit")]
    TooLarge,
}

/// How far a message has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All input is used; more is to come.
    More,
    /// The end was found; what follows it in the input is not part of the message.
    Ended,
    /// Nothing but a message over the limit, for [`DRAIN_BYTES_MAX`]: close.
    Endless,
}

/// What one call used of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fed {
    pub consumed: usize,
    pub progress: Progress,
}

/// Content as it is kept: counted, and dropped (but still counted) from the first flaw on.
#[derive(Debug)]
struct Keeper {
    limit: u64,
    size: u64,
    flaw: Option<Flaw>,
    keep: bool,
}

impl Keeper {
    fn new(limit: u64) -> Keeper {
        Keeper { limit, size: 0, flaw: None, keep: true }
    }

    fn add(&mut self, run: &[u8], out: &mut Vec<u8>) {
        self.size = self.size.saturating_add(run.len() as u64);
        if self.size > self.limit {
            self.note(Flaw::TooLarge);
        }
        if self.keep {
            out.extend_from_slice(run);
        }
    }

    /// The gravest flaw counts, so that the verdict does not depend on which came first.
    fn note(&mut self, flaw: Flaw) {
        self.keep = false;
        self.flaw = match self.flaw {
            Some(Flaw::BareLineEnd) => self.flaw,
            Some(Flaw::Nul) if flaw == Flaw::TooLarge => self.flaw,
            _ => Some(flaw),
        };
    }

    fn is_endless(&self) -> bool {
        self.size > self.limit.saturating_add(DRAIN_BYTES_MAX)
    }
}

/// Where the decoder stands in the current line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    LineStart,
    /// A dot at the start of a line: the end, or stuffed.
    Dot,
    /// A dot and a CR: the end, if an LF follows.
    DotCr,
    Middle,
    Cr,
}

/// Reads the content of DATA (RFC 5321 4.5.2): finds its end, takes the stuffed dots out.
#[derive(Debug)]
pub struct DataDecoder {
    place: Place,
    kept: Keeper,
}

impl DataDecoder {
    /// `limit`: octets of content, after the stuffing is removed.
    pub fn new(limit: u64) -> DataDecoder {
        DataDecoder { place: Place::LineStart, kept: Keeper::new(limit) }
    }

    /// Nothing more is appended to the output; the end is still looked for.
    pub fn discard(&mut self) {
        self.kept.keep = false;
    }

    /// Of what has been read; final once the end is found.
    pub fn flaw(&self) -> Option<Flaw> {
        self.kept.flaw
    }

    /// Decodes onto the end of `out`. Call it with the rest of the input until it has ended.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Fed {
        let mut at = 0;
        while let Some(&byte) = input.get(at) {
            match (self.place, byte) {
                (Place::LineStart, b'.') => {
                    self.place = Place::Dot;
                    at += 1;
                }
                (Place::Dot, b'\r') => {
                    self.place = Place::DotCr;
                    at += 1;
                }
                (Place::DotCr, b'\n') => return Fed { consumed: at + 1, progress: Progress::Ended },
                // The dot was stuffed (or should have been) and is dropped; what came after it is content.
                (Place::DotCr, _) => self.place = Place::Cr,
                (Place::Cr, b'\n') => {
                    self.kept.add(b"\r\n", out);
                    self.place = Place::LineStart;
                    at += 1;
                }
                (Place::Cr, _) => {
                    self.kept.note(Flaw::BareLineEnd);
                    self.kept.add(b"\r", out);
                    self.place = Place::Middle;
                }
                (Place::LineStart | Place::Dot | Place::Middle, _) => at += self.take_run(&input[at..], out),
            }
        }
        let progress = if self.kept.is_endless() { Progress::Endless } else { Progress::More };
        Fed { consumed: input.len(), progress }
    }

    /// Copies what needs no thought at once: up to a line that starts with a dot, a lone CR, or the
    /// end of the input. `rest` is not empty and does not start where a dot would have a meaning.
    fn take_run(&mut self, rest: &[u8], out: &mut Vec<u8>) -> usize {
        let mut end = 0;
        self.place = Place::Middle;
        while let Some(found) = memchr3(b'\r', b'\n', 0, rest.get(end..).unwrap_or_default()) {
            let at = end + found;
            match (rest.get(at), rest.get(at + 1), rest.get(at + 2)) {
                (Some(b'\r'), Some(b'\n'), Some(b'.') | None) => {
                    self.kept.add(&rest[..at + 2], out);
                    self.place = Place::LineStart;
                    return at + 2;
                }
                (Some(b'\r'), Some(b'\n'), Some(_)) => end = at + 2,
                (Some(b'\r'), _, _) => {
                    self.kept.add(&rest[..at], out);
                    self.place = Place::Cr;
                    return at + 1;
                }
                (Some(b'\n'), _, _) => {
                    self.kept.note(Flaw::BareLineEnd);
                    end = at + 1;
                }
                _ => {
                    self.kept.note(Flaw::Nul);
                    end = at + 1;
                }
            }
        }
        self.kept.add(rest, out);
        rest.len()
    }
}

/// Reads the chunks of one BDAT message (RFC 3030): counted, never searched for an end. A CRLF may be
/// split over two chunks.
#[derive(Debug)]
pub struct ChunkDecoder {
    left: u64,
    after_cr: bool,
    kept: Keeper,
}

impl ChunkDecoder {
    /// `limit`: octets of all chunks of the message together.
    pub fn new(limit: u64) -> ChunkDecoder {
        ChunkDecoder { left: 0, after_cr: false, kept: Keeper::new(limit) }
    }

    /// A chunk of so many octets follows.
    pub fn begin(&mut self, size: u64) {
        self.left = size;
    }

    /// Nothing more is appended to the output; octets are still counted.
    pub fn discard(&mut self) {
        self.kept.keep = false;
    }

    /// Appends to `out` what belongs to the chunk. An empty chunk has ended before any input.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Fed {
        let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len());
        let run = input.get(..take).unwrap_or_default();
        self.left -= take as u64;
        self.check(run);
        self.kept.add(run, out);
        let progress = if self.left == 0 {
            Progress::Ended
        } else if self.kept.is_endless() {
            Progress::Endless
        } else {
            Progress::More
        };
        Fed { consumed: take, progress }
    }

    fn check(&mut self, run: &[u8]) {
        if let Some(flaw) = find_flaw(run, &mut self.after_cr) {
            self.kept.note(flaw);
        }
    }

    /// Of the chunks so far.
    pub fn flaw(&self) -> Option<Flaw> {
        self.kept.flaw
    }

    /// Of the whole message, once its last chunk has ended.
    pub fn finish(self) -> Option<Flaw> {
        if self.after_cr { Some(Flaw::BareLineEnd) } else { self.kept.flaw }
    }
}

/// Looks for bare line ends and NUL in content that arrives in pieces; `after_cr` carries a CR over
/// the border.
fn find_flaw(run: &[u8], after_cr: &mut bool) -> Option<Flaw> {
    let (mut at, mut nul) = (0, false);
    if *after_cr && !run.is_empty() {
        if run.first() != Some(&b'\n') {
            return Some(Flaw::BareLineEnd);
        }
        (at, *after_cr) = (1, false);
    }
    while let Some(found) = memchr3(b'\r', b'\n', 0, run.get(at..).unwrap_or_default()) {
        let here = at + found;
        at = match (run.get(here), run.get(here + 1)) {
            (Some(b'\r'), Some(b'\n')) => here + 2,
            (Some(b'\r'), None) => {
                *after_cr = true;
                here + 1
            }
            (Some(b'\0'), _) => {
                nul = true;
                here + 1
            }
            _ => return Some(Flaw::BareLineEnd),
        };
    }
    nul.then_some(Flaw::Nul)
}

/// Writes content for DATA (RFC 5321 4.5.2): doubles the dots at line starts, ends the last line, adds
/// the final dot. Content that another server could read as two messages is not written: the last
/// door before the wire checks again what every way in has checked.
#[derive(Debug)]
pub struct DotStuffer {
    line_start: bool,
    after_cr: bool,
}

impl Default for DotStuffer {
    fn default() -> DotStuffer {
        DotStuffer::new()
    }
}

impl DotStuffer {
    pub fn new() -> DotStuffer {
        DotStuffer { line_start: true, after_cr: false }
    }

    /// Appends a piece of content to `out`. On an error drop the connection: the message must not be
    /// ended.
    pub fn encode(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), Flaw> {
        let Some(&last) = chunk.last() else { return Ok(()) };
        let mut after_cr = self.after_cr;
        if let Some(flaw) = find_flaw(chunk, &mut after_cr) {
            return Err(flaw);
        }
        let mut copied = 0;
        // From here on every LF follows a CR.
        let mut at_start = self.line_start;
        for start in std::iter::once(0).chain(memchr_iter(b'\n', chunk).map(|lf| lf + 1)) {
            if at_start && chunk.get(start) == Some(&b'.') {
                out.extend_from_slice(&chunk[copied..start]);
                out.push(b'.');
                copied = start;
            }
            at_start = true;
        }
        out.extend_from_slice(&chunk[copied..]);
        self.after_cr = after_cr;
        self.line_start = last == b'\n';
        Ok(())
    }

    /// Ends the last line if need be, and the message.
    pub fn finish(self, out: &mut Vec<u8>) -> Result<(), Flaw> {
        if self.after_cr {
            return Err(Flaw::BareLineEnd);
        }
        out.extend_from_slice(if self.line_start { b".\r\n" } else { b"\r\n.\r\n" });
        Ok(())
    }
}

/// Writes content for one BDAT chunk (RFC 3030): as it is, with its last line ended as for DATA, so that
/// everybody gets the same octets. The next server may pass them on by DATA, so what could be read as two
/// messages is not written either.
#[derive(Debug, Default)]
pub struct ChunkEncoder {
    line_goes_on: bool,
    after_cr: bool,
}

impl ChunkEncoder {
    /// The octets that content will have: `stored` so many, the last of which is `last`.
    pub fn octets(stored: u64, last: Option<u8>) -> u64 {
        if last.is_none_or(|last| last == b'\n') { stored } else { stored.saturating_add(LINE_END.len() as u64) }
    }

    /// Appends a piece of content to `out`. On an error drop the connection: the chunk must not be
    /// filled up.
    pub fn encode(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), Flaw> {
        let Some(&last) = piece.last() else { return Ok(()) };
        if let Some(flaw) = find_flaw(piece, &mut self.after_cr) {
            return Err(flaw);
        }
        out.extend_from_slice(piece);
        self.line_goes_on = last != b'\n';
        Ok(())
    }

    /// Ends the last line if need be.
    pub fn finish(self, out: &mut Vec<u8>) -> Result<(), Flaw> {
        if self.after_cr {
            return Err(Flaw::BareLineEnd);
        }
        out.extend_from_slice(if self.line_goes_on { LINE_END } else { b"" });
        Ok(())
    }
}

const LINE_END: &[u8] = b"\r\n";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The content, the flaw, and what was left over.
    fn decode(input: &[u8], limit: u64) -> (Vec<u8>, Option<Flaw>, Option<usize>) {
        let (mut decoder, mut out) = (DataDecoder::new(limit), Vec::new());
        let fed = decoder.feed(input, &mut out);
        (out, decoder.flaw(), (fed.progress == Progress::Ended).then(|| input.len() - fed.consumed))
    }

    #[test]
    fn data_ends_at_the_dot_and_leaves_the_rest() {
        assert_eq!(decode(b"a\r\n..b\r\n.\r\nQUIT\r\n", 99), (b"a\r\n.b\r\n".to_vec(), None, Some(6)));
        assert_eq!(decode(b".\r\n", 99), (vec![], None, Some(0)));
        assert_eq!(decode(b"\r\n.\r\n", 99), (b"\r\n".to_vec(), None, Some(0)));
        assert_eq!(decode(b".a\r\n.\r\n", 99), (b"a\r\n".to_vec(), None, Some(0)));
    }

    #[test]
    fn data_goes_on_after_what_only_looks_like_its_end() {
        let lookalikes: [&[u8]; 9] = [
            b"\n.\n",
            b"\n.\r\n",
            b"\r.\r\n",
            b"\r\n.\n",
            b"\r\n.\r",
            b"\r\n.\r\r\n",
            b"\r\r\n.\r\r\n",
            b"\n\n.\n",
            b"\r.\r",
        ];
        for form in lookalikes {
            let (_, flaw, left) = decode(&[b"x", form, b"y\r\n.\r\n"].concat(), 99);
            assert_eq!((flaw, left), (Some(Flaw::BareLineEnd), Some(0)), "{form:?}");
        }
    }

    #[test]
    fn limits_are_exact_and_draining_keeps_the_framing() {
        assert_eq!(decode(b"abc\r\n.\r\n", 5).1, None);
        assert_eq!(decode(b"abc\r\n.\r\nX", 4), (vec![], Some(Flaw::TooLarge), Some(1)));
        assert_eq!(decode(b"abcdef\n.\r\n.\r\n", 4).1, Some(Flaw::BareLineEnd));
        assert_eq!(decode(b"a\0b\r\n.\r\n", 99).1, Some(Flaw::Nul));
    }

    #[test]
    fn a_chunk_has_the_octets_that_were_announced() {
        for content in [&b""[..], b"a", b"a\r\n", b".\r\n.", b"\r\n\r\n", b"\xff"] {
            for cut in 0..=content.len() {
                let (mut chunk, mut out) = (ChunkEncoder::default(), Vec::new());
                chunk.encode(&content[..cut], &mut out).unwrap();
                chunk.encode(&content[cut..], &mut out).unwrap();
                chunk.finish(&mut out).unwrap();
                assert_eq!(out.len() as u64, ChunkEncoder::octets(content.len() as u64, content.last().copied()));
                assert!(out.starts_with(content));
                assert!(out.is_empty() || out.ends_with(b"\r\n"));
            }
        }
        for bad in [&b"a\nb"[..], b"a\rb", b"a\r", b"a\0", b"\n.\r\n"] {
            let (mut chunk, mut out) = (ChunkEncoder::default(), Vec::new());
            assert!(chunk.encode(bad, &mut out).and_then(|()| chunk.finish(&mut out)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_stuffer_refuses_what_could_be_two_messages() {
        for bad in [&b"a\nb"[..], b"a\rb", b"a\r", b"a\0", b"\n.\r\n"] {
            let (mut stuffer, mut out) = (DotStuffer::new(), Vec::new());
            let written = stuffer.encode(bad, &mut out).and_then(|()| stuffer.finish(&mut out));
            assert!(written.is_err(), "{bad:?}");
        }
    }
}
