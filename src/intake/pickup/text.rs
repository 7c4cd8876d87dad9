//! From the bytes of a file to the lines of a mail: byte order marks, UTF-16, line ends, doubled dots. Pure.

use super::envelope::Bad;
use crate::message::header::{Headers, field};

/// A text with CRLF lines, and what was done to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    pub lines: Vec<u8>,
    pub was_utf16: bool,
}

/// Without its byte order mark, in UTF-8 if it was UTF-16, with CRLF line ends; refused where no mail could
/// hold it.
pub fn read(file: &[u8]) -> Result<Text, Bad> {
    let (text, was_utf16) = match file {
        [0xff, 0xfe, rest @ ..] => (utf16(rest, u16::from_le_bytes)?, true),
        [0xfe, 0xff, rest @ ..] => (utf16(rest, u16::from_be_bytes)?, true),
        [0xef, 0xbb, 0xbf, rest @ ..] => (rest.to_vec(), false),
        _ => return refuse_nul(file).map(|file| Text { lines: with_crlf(file), was_utf16: false }),
    };
    refuse_nul(&text)?;
    let lines = with_crlf(&text);
    Ok(Text { lines: if was_utf16 { labelled(lines) } else { lines }, was_utf16 })
}

fn refuse_nul(text: &[u8]) -> Result<&[u8], Bad> {
    if text.contains(&0) { Err(Bad::new("the file holds NUL bytes, which no mail may have")) } else { Ok(text) }
}

fn utf16(text: &[u8], unit: impl Fn([u8; 2]) -> u16) -> Result<Vec<u8>, Bad> {
    let broken = || Bad::new("the file begins as UTF-16 but is not; it may have been cut off");
    let (pairs, rest) = text.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(broken());
    }
    let units = pairs.iter().map(|pair| unit(*pair));
    let text: String = char::decode_utf16(units).collect::<Result<_, _>>().map_err(|_| broken())?;
    Ok(text.into_bytes())
}

/// What was UTF-16 is UTF-8 now; where it is not said what the body is, say so (RFC 2045).
fn labelled(lines: Vec<u8>) -> Vec<u8> {
    let headers = Headers::parse(&lines);
    let is_labelled = headers.get("mime-version").is_some() || headers.get("content-type").is_some();
    if is_labelled || headers.body().is_ascii() || !headers.has_empty_line() {
        return lines;
    }
    let label = [
        field("MIME-Version", "1.0"),
        field("Content-Type", "text/plain; charset=utf-8"),
        field("Content-Transfer-Encoding", "8bit"),
    ];
    // Behind the other fields: an envelope block must stay in front.
    [headers.header_bytes(), &label.concat(), b"\r\n", headers.body()].concat()
}

/// Every CR, LF and CRLF ends a line; the last line is ended too.
pub fn with_crlf(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 32 + 2);
    let mut rest = text;
    while let Some(at) = memchr::memchr2(b'\r', b'\n', rest) {
        let (line, end) = rest.split_at(at);
        out.extend_from_slice(line);
        out.extend_from_slice(b"\r\n");
        rest = end.strip_prefix(b"\r\n").or_else(|| end.split_first().map(|(_, rest)| rest)).unwrap_or_default();
    }
    if !rest.is_empty() {
        out.extend_from_slice(rest);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// .NET Framework doubles the dot at the beginning of a line, as SMTP does; newer .NET does not. A
/// file has doubled dots if every line that begins with one begins with two. A body whose only such lines
/// are ellipses is taken for one; `format = "replay"` or `"exchange"` never does that.
pub fn is_stuffed(content: &[u8]) -> bool {
    let mut dotted = content.split(|b| *b == b'\n').filter(|line| line.starts_with(b".")).peekable();
    dotted.peek().is_some() && dotted.all(|line| line.starts_with(b".."))
}

/// Doubled dots are halved; others stay.
pub fn unstuffed(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len());
    for line in content.split_inclusive(|b| *b == b'\n') {
        out.extend_from_slice(if line.starts_with(b"..") { line.get(1..).unwrap_or(line) } else { line });
    }
    out
}

/// As IIS reads its pickup folder: each line loses its leading dot, and a lone dot ends the message.
pub fn as_iis(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len());
    for line in content.split_inclusive(|b| *b == b'\n') {
        if line == b".\r\n" {
            break;
        }
        out.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn utf16_of_either_order_becomes_utf8_with_a_label() {
        let text = "From: a@x.example\r\n\r\nGrüße 😀\r\n";
        let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        let wanted = "From: a@x.example\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\
                      Content-Transfer-Encoding: 8bit\r\n\r\nGrüße 😀\r\n";
        for file in [[&b"\xff\xfe"[..], &little].concat(), [&b"\xfe\xff"[..], &big].concat()] {
            let read = read(&file).unwrap();
            assert_eq!(String::from_utf8(read.lines).unwrap(), wanted);
            assert!(read.was_utf16);
        }
        assert!(read(b"\xff\xfeF").is_err());
        assert!(read(b"\xff\xfe\x00\xd8").is_err(), "half of a pair");
        assert!(read(b"\xff\xfe\x00\x00").is_err(), "NUL");
    }

    #[test]
    fn iis_ends_a_message_at_a_lone_dot() {
        assert_eq!(as_iis(b"a\r\n..b\r\n.c\r\n...\r\n.\r\nd\r\n"), b"a\r\n.b\r\nc\r\n..\r\n");
    }

    proptest! {
        #[test]
        fn lines_end_in_crlf_and_nothing_else_is_lost(text in proptest::collection::vec(0u8..=255, 0..300)) {
            let out = with_crlf(&text);
            prop_assert!(out.is_empty() || out.ends_with(b"\r\n"));
            let mut previous = 0;
            for (at, byte) in out.iter().enumerate() {
                prop_assert_eq!(*byte == b'\n', previous == b'\r', "at {}", at);
                previous = *byte;
            }
            let other = |bytes: &[u8]| bytes.iter().copied().filter(|b| !b"\r\n".contains(b)).collect::<Vec<_>>();
            prop_assert_eq!(other(&out), other(&text));
            prop_assert_eq!(with_crlf(&out), out);
        }

        #[test]
        fn what_a_writer_doubled_is_halved_to_what_it_was(lines in proptest::collection::vec("[.a]{0,4}", 0..20)) {
            let text: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
            let stuffed: String =
                lines.iter().map(|line| if line.starts_with('.') { format!(".{line}\r\n") } else { format!("{line}\r\n") }).collect();
            prop_assert_eq!(unstuffed(stuffed.as_bytes()), text.as_bytes());
            prop_assert_eq!(is_stuffed(stuffed.as_bytes()), text.split("\r\n").any(|line| line.starts_with('.')));
        }
    }
}
