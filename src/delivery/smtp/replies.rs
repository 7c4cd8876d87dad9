//! The far end's bytes, cut into replies (RFC 5321 4.2).
//!
//! Promises: only CRLF ends a line; a line, a reply and what is kept of its text are bounded; a reply
//! that two readers could read in two ways (mixed codes, bare CR or LF, NUL) is an error, after which
//! the connection is of no use. Leaves out what a reply means.

use crate::smtp::{Enhanced, Reply};

/// Octets of one line with its CRLF. RFC 5321 4.5.3.1.5 asks for 512; hosts write more.
pub const LINE_BYTES_MAX: usize = 2048;
/// Lines of one reply.
pub const LINES_MAX: usize = 100;
/// Octets of one reply, all lines together.
pub const REPLY_BYTES_MAX: usize = 64 * 1024;
/// Octets of a reply's text that go on into records, the story and a DSN.
pub const TEXT_BYTES_MAX: usize = 2048;

/// Why bytes are not a reply. The text completes "it sent …".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    #[error("a reply line of more than {LINE_BYTES_MAX} octets")]
    LongLine,
    #[error("a reply of more than {LINES_MAX} lines or {REPLY_BYTES_MAX} octets")]
    LongReply,
    #[error("a reply line without a legal reply code")]
    BadCode,
    #[error("a reply whose lines have different codes")]
    MixedCodes,
    #[error("a reply with a bare CR, a bare LF or a NUL in it")]
    StrayOctet,
}

/// One reply as framed: its code, and the text of each line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawReply {
    pub code: u16,
    /// Never empty.
    pub lines: Vec<String>,
}

impl RawReply {
    /// With the enhanced code that every line begins with (RFC 2034 4), if its class is the reply's.
    pub fn parsed(&self) -> Reply {
        let enhanced = self.lines.first().and_then(|line| enhanced_code(self.code, line)).map(|(code, _)| code);
        let text = |line: &String| match enhanced_code(self.code, line) {
            Some((code, rest)) if Some(code) == enhanced => rest.to_owned(),
            _ => line.clone(),
        };
        let text = self.lines.iter().map(text).collect::<Vec<_>>().join("\n");
        Reply { enhanced, ..Reply::bare(self.code, shortened(text)) }
    }

    /// Without looking for an enhanced code: greetings and EHLO replies have none (RFC 2034 3).
    pub fn plain(&self) -> Reply {
        Reply::bare(self.code, shortened(self.lines.join("\n")))
    }
}

/// `5.7.1 no` → (5.7.1, `no`). The text may be missing.
fn enhanced_code(code: u16, line: &str) -> Option<(Enhanced, &str)> {
    let (head, rest) = line.split_once(' ').unwrap_or((line, ""));
    let mut parts = head.split('.');
    let class = number(parts.next()?)?;
    let enhanced = Enhanced(number(parts.next()?)?, number(parts.next()?)?);
    (class == code / 100 && parts.next().is_none()).then_some((enhanced, rest))
}

/// RFC 3463 2: up to three digits.
fn number(digits: &str) -> Option<u16> {
    let legal = (1..=3).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    if legal { digits.parse().ok() } else { None }
}

fn shortened(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let end = (0..=TEXT_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Takes bytes as they come, gives replies. The caller pushes only when `next` has nothing to give,
/// so what is held is less than one line and one push.
#[derive(Debug, Default)]
pub struct ReplyReader {
    buffer: Vec<u8>,
    /// The reply that is still missing its last line.
    code: Option<u16>,
    lines: Vec<String>,
    octets: usize,
}

impl ReplyReader {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// True if the far end has said nothing beyond what `next` gave.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty() && self.code.is_none()
    }

    /// The next whole reply, or none yet.
    pub fn next(&mut self) -> Result<Option<RawReply>, ReplyError> {
        while let Some(line) = self.take_line()? {
            if let Some(reply) = self.add_line(&line)? {
                return Ok(Some(reply));
            }
        }
        Ok(None)
    }

    /// A line without its CRLF.
    fn take_line(&mut self) -> Result<Option<Vec<u8>>, ReplyError> {
        let Some(at) = self.buffer.iter().position(|b| *b == b'\n') else {
            return if self.buffer.len() >= LINE_BYTES_MAX { Err(ReplyError::LongLine) } else { Ok(None) };
        };
        let mut line: Vec<u8> = self.buffer.drain(..=at).collect();
        if line.len() > LINE_BYTES_MAX {
            return Err(ReplyError::LongLine);
        }
        line.pop();
        if line.pop() != Some(b'\r') || line.iter().any(|b| matches!(b, b'\r' | 0)) {
            return Err(ReplyError::StrayOctet);
        }
        Ok(Some(line))
    }

    fn add_line(&mut self, line: &[u8]) -> Result<Option<RawReply>, ReplyError> {
        let (code, is_last, text) = split_line(line)?;
        if self.code.is_some_and(|earlier| earlier != code) {
            return Err(ReplyError::MixedCodes);
        }
        self.octets += line.len() + 2;
        if self.lines.len() >= LINES_MAX || self.octets > REPLY_BYTES_MAX {
            return Err(ReplyError::LongReply);
        }
        self.lines.push(String::from_utf8_lossy(text).into_owned());
        if !is_last {
            self.code = Some(code);
            return Ok(None);
        }
        self.code = None;
        self.octets = 0;
        Ok(Some(RawReply { code, lines: std::mem::take(&mut self.lines) }))
    }
}

/// Code, "is this the last line", text. The text may be missing, and with it the space (RFC 5321
/// 4.2: "Reply codes alone … MUST be accepted").
fn split_line(line: &[u8]) -> Result<(u16, bool, &[u8]), ReplyError> {
    let (digits, rest) = line.split_at_checked(3).ok_or(ReplyError::BadCode)?;
    let code = std::str::from_utf8(digits).ok().and_then(number).filter(|code| (200..=599).contains(code));
    let code = code.ok_or(ReplyError::BadCode)?;
    match rest.split_first() {
        None => Ok((code, true, b"")),
        Some((b' ', text)) => Ok((code, true, text)),
        Some((b'-', text)) => Ok((code, false, text)),
        Some(_) => Err(ReplyError::BadCode),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<RawReply>, ReplyError> {
        let mut reader = ReplyReader::default();
        reader.push(bytes);
        let mut replies = Vec::new();
        while let Some(reply) = reader.next()? {
            replies.push(reply);
        }
        Ok(replies)
    }

    #[test]
    fn every_split_gives_the_same_replies() {
        let bytes = b"250-mx.example\r\n250-SIZE 1000\r\n250 \r\n250\r\n550 5.1.1 no such user\r\n";
        let whole = read(bytes).unwrap();
        assert_eq!(whole.len(), 3);
        assert_eq!(whole[0].lines, ["mx.example", "SIZE 1000", ""]);
        for cut in 0..bytes.len() {
            let mut reader = ReplyReader::default();
            let mut replies = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                reader.push(part);
                while let Some(reply) = reader.next().unwrap() {
                    replies.push(reply);
                }
            }
            assert_eq!(replies, whole, "cut at {cut}");
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        use ReplyError::*;
        let table: [(&[u8], ReplyError); 14] = [
            (b"000 x\r\n", BadCode),
            (b"999 x\r\n", BadCode),
            (b"199 x\r\n", BadCode),
            (b"25\r\n", BadCode),
            (b"250x\r\n", BadCode),
            (b"\r\n", BadCode),
            (b"+50 x\r\n", BadCode),
            (b"HTTP/1.1 400 Bad Request\r\n", BadCode),
            (b"250-a\r\n251 b\r\n", MixedCodes),
            (b"250-a\r\n550 b\r\n", MixedCodes),
            (b"250 a\n", StrayOctet),
            (b"250 a\r550 b\r\n", StrayOctet),
            (b"250 a\0\r\n", StrayOctet),
            (b"250 a\r\r\n", StrayOctet),
        ];
        for (bytes, error) in table {
            assert_eq!(read(bytes), Err(error), "{:?}", bytes.escape_ascii().to_string());
        }
    }

    #[test]
    fn lines_and_replies_are_bounded() {
        let line = |octets: usize| [b"250-".as_slice(), &vec![b'x'; octets - 6], b"\r\n"].concat();
        assert_eq!(read(&line(LINE_BYTES_MAX)), Ok(vec![]));
        assert_eq!(read(&line(LINE_BYTES_MAX + 1)), Err(ReplyError::LongLine));
        // No line end at all.
        assert_eq!(read(&vec![b'2'; LINE_BYTES_MAX]), Err(ReplyError::LongLine));
        assert_eq!(read(&line(8).repeat(LINES_MAX + 1)), Err(ReplyError::LongReply));
        assert_eq!(
            read(&line(LINE_BYTES_MAX).repeat(REPLY_BYTES_MAX / LINE_BYTES_MAX + 1)),
            Err(ReplyError::LongReply)
        );
    }

    #[test]
    fn enhanced_codes_count_only_if_their_class_fits() {
        let parsed = |line: &str| read(line.as_bytes()).unwrap().remove(0).parsed();
        assert_eq!(parsed("550 5.7.2 no\r\n").to_string(), "550 5.7.2 no");
        assert_eq!(parsed("550 5.7.2\r\n").enhanced, Some(Enhanced(7, 2)));
        assert_eq!(parsed("550 5.999.999\r\n").enhanced, Some(Enhanced(999, 999)));
        assert_eq!(parsed("550 5.1000.1 x\r\n").enhanced, None);
        let disagreeing = parsed("550 2.1.0 fine\r\n");
        assert_eq!((disagreeing.enhanced, disagreeing.text.as_ref()), (None, "2.1.0 fine"));
        assert_eq!(parsed("550 192.0.2.1 is listed\r\n").enhanced, None);
        assert_eq!(parsed("550-5.7.1 one\r\n550 5.7.1 two\r\n").text, "one\ntwo");
        assert_eq!(parsed("550 \x1b[2Jgone\r\n").text, "?[2Jgone");
    }

    #[test]
    fn what_is_kept_of_a_text_is_bounded() {
        let bytes = "550-ü".to_owned() + &"ü".repeat(900) + "\r\n";
        let reply = read((bytes.repeat(20) + "550 end\r\n").as_bytes()).unwrap().remove(0);
        assert_eq!(reply.lines.len(), 21);
        assert!(reply.parsed().text.len() <= TEXT_BYTES_MAX + "…".len());
    }
}
