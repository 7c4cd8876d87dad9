//! MIME: cuts a message into its parts and decodes them (RFC 2045-2047, 2183, 2231).
//!
//! It never recurses, so no nesting can exhaust the stack: open multiparts are a list with a bound,
//! and a message inside a message is one part like any other, never opened. Parts, depth, header
//! bytes and decoded text are bounded; a message beyond a bound is [`TooComplex`] as a whole, and
//! the caller passes it on unparsed. Everything short of that is read as leniently as mail needs:
//! a wrong encoding is taken literally, a missing end of a part ends with the message.
//!
//! mail-parser reads the values of single fields and knows the character sets; its parser of whole
//! messages recurses and is not used. Left out: uuencode, S/MIME and PGP, format=flowed.

use std::borrow::Cow;

use mail_parser::decoders::charsets::map::charset_decoder;
use mail_parser::parsers::MessageStream;
use mail_parser::{ContentType, HeaderValue};

use super::header::{Headers, unfold};

/// Multiparts inside one another.
pub const DEPTH_MAX: usize = 50;
/// Parts of a message that are not multiparts themselves.
pub const PARTS_MAX: usize = 1000;
/// Bytes of the header sections of all parts together, the message's own not counted.
pub const PART_HEADER_BYTES_MAX: usize = 1 << 20;
/// Bytes of one Content-* field; a longer one is read as if it were not there.
pub const FIELD_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a boundary that is honoured; RFC 2046 5.1.1 allows 70.
pub const BOUNDARY_BYTES_MAX: usize = 250;
/// Bytes of decoded text of one kind (plain or HTML) in a message.
pub const TEXT_BYTES_MAX: usize = 8 << 20;

/// Why a message is not taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooComplex {
    #[error("the header section is longer or has more fields than is read")]
    Header,
    #[error("multiparts are nested more than {DEPTH_MAX} deep")]
    Depth,
    #[error("there are more than {PARTS_MAX} parts")]
    Parts,
    #[error("the headers of the parts are longer than {} KiB together", PART_HEADER_BYTES_MAX / 1024)]
    PartHeaders,
    #[error("the text is longer than {} MiB", TEXT_BYTES_MAX >> 20)]
    Text,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// 7bit, 8bit, binary, and whatever we do not know.
    Identity,
    QuotedPrintable,
    Base64,
}

/// A part that is not a multipart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// `text/plain`, lower-case.
    pub content_type: String,
    pub charset: Option<String>,
    /// From Content-Disposition, or else the `name` of Content-Type; decoded.
    pub filename: Option<String>,
    /// Without brackets.
    pub content_id: Option<String>,
    /// `inline`, `attachment`, lower-case.
    pub disposition: Option<String>,
    pub encoding: Encoding,
    /// Still encoded.
    pub body: &'a [u8],
}

impl<'a> Part<'a> {
    /// The bytes without their transfer encoding.
    pub fn decoded(&self) -> Cow<'a, [u8]> {
        match self.encoding {
            Encoding::Identity => Cow::Borrowed(self.body),
            Encoding::QuotedPrintable => Cow::Owned(decode_quoted_printable(self.body)),
            Encoding::Base64 => Cow::Owned(decode_base64(self.body)),
        }
    }

    /// True if the part is text to be read with the message and not a file that comes with it.
    fn is_body_text(&self, kind: &str) -> bool {
        self.content_type == kind && self.filename.is_none() && self.disposition.as_deref() != Some("attachment")
    }

    /// As UTF-8 with LF line ends; what the character set does not know becomes U+FFFD. Control characters are no text
    /// (RFC 5322 4.1 has them as obsolete), and in JSON each of them would be six bytes: they are left out.
    fn text(&self) -> String {
        let bytes = self.decoded();
        let decoder = self.charset.as_deref().and_then(|name| charset_decoder(name.as_bytes()));
        let mut text = match decoder {
            Some(decode) => decode(&bytes),
            None => String::from_utf8_lossy(&bytes).into_owned(),
        };
        if text.contains(is_no_text) {
            text.retain(|c| !is_no_text(c));
        }
        if text.contains('\r') { text.replace("\r\n", "\n") } else { text }
    }
}

fn is_no_text(c: char) -> bool {
    c.is_ascii_control() && !matches!(c, '\t' | '\n' | '\r')
}

/// A message taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content<'a> {
    /// All text/plain that is to be read with the message, in order; none if there is no such part.
    pub text: Option<String>,
    /// The same of text/html.
    pub html: Option<String>,
    /// Everything else, in order.
    pub attachments: Vec<Part<'a>>,
}

/// Takes a message apart: its texts, and what comes with them.
pub fn read(message: &[u8]) -> Result<Content<'_>, TooComplex> {
    let mut content = Content::default();
    for part in parts(message)? {
        let text = match () {
            () if part.is_body_text("text/plain") => &mut content.text,
            () if part.is_body_text("text/html") => &mut content.html,
            () => {
                content.attachments.push(part);
                continue;
            }
        };
        // Checked before decoding too: no text that is worth it shrinks to less than a quarter.
        let so_far = text.as_ref().map_or(0, String::len);
        if part.body.len() / 4 + so_far > TEXT_BYTES_MAX {
            return Err(TooComplex::Text);
        }
        append(text, part.text());
        if text.as_ref().map_or(0, String::len) > TEXT_BYTES_MAX {
            return Err(TooComplex::Text);
        }
    }
    Ok(content)
}

fn append(whole: &mut Option<String>, text: String) {
    match whole {
        None => *whole = Some(text),
        Some(whole) => {
            if !whole.ends_with('\n') {
                whole.push('\n');
            }
            whole.push_str(&text);
        }
    }
}

/// The parts of a message that are not multiparts, in order.
pub fn parts(message: &[u8]) -> Result<Vec<Part<'_>>, TooComplex> {
    let headers = Headers::parse(message);
    headers.within_limits().map_err(|_| TooComplex::Header)?;
    let body = headers.body();
    let mut splitter = Splitter { body, open: Vec::new(), leaf: None, parts: Vec::new(), header_bytes: 0 };
    splitter.begin(&headers, 0)?;
    splitter.run()?;
    Ok(splitter.parts)
}

/// A multipart that has not ended.
struct Open {
    boundary: Vec<u8>,
    /// RFC 2046 5.1.5: parts without a type are messages.
    digest: bool,
    /// Where its body begins.
    start: usize,
    /// A boundary of it was found.
    used: bool,
}

/// A part that has not ended: its body begins at `start`.
struct Leaf<'a> {
    part: Part<'a>,
    start: usize,
}

struct Splitter<'a> {
    body: &'a [u8],
    open: Vec<Open>,
    /// None in what stands before the first boundary of a multipart and after its last.
    leaf: Option<Leaf<'a>>,
    parts: Vec<Part<'a>>,
    header_bytes: usize,
}

impl<'a> Splitter<'a> {
    fn run(&mut self) -> Result<(), TooComplex> {
        let mut at = 0;
        while at < self.body.len() {
            let line = self.body.get(at..).map_or(&[][..], first_line);
            let next = at + line.len();
            match self.boundary(line) {
                None => at = next,
                Some((level, is_last)) => at = self.cross(level, is_last, at, next)?,
            }
        }
        self.close(0, self.body.len())
    }

    /// The innermost open multipart whose boundary this line is, and whether it is its last.
    fn boundary(&self, line: &[u8]) -> Option<(usize, bool)> {
        let rest = line.strip_prefix(b"--")?.trim_ascii_end();
        self.open.iter().enumerate().rev().find_map(|(level, open)| {
            match rest.strip_prefix(open.boundary.as_slice())? {
                b"" => Some((level, false)),
                b"--" => Some((level, true)),
                _ => None,
            }
        })
    }

    /// Passes a boundary line between `from` and `to`; gives where to go on.
    fn cross(&mut self, level: usize, is_last: bool, from: usize, to: usize) -> Result<usize, TooComplex> {
        // The line end before a boundary belongs to the boundary (RFC 2046 5.1.1).
        let end = if self.body.get(..from).is_some_and(|b| b.ends_with(b"\r\n")) { from - 2 } else { from };
        if let Some(open) = self.open.get_mut(level) {
            open.used = true;
        }
        self.close(level + 1, end)?;
        if is_last {
            self.open.truncate(level);
            return Ok(to);
        }
        let rest = self.body.get(to..).unwrap_or_default();
        let headers = Headers::parse(rest);
        let start = to + (rest.len() - headers.body().len());
        self.header_bytes += start - to;
        if self.header_bytes > PART_HEADER_BYTES_MAX {
            return Err(TooComplex::PartHeaders);
        }
        headers.within_limits().map_err(|_| TooComplex::PartHeaders)?;
        self.begin(&headers, start)?;
        Ok(start)
    }

    /// Begins a part whose header has been read: a multipart is opened, all else is a leaf.
    fn begin(&mut self, headers: &Headers<'a>, start: usize) -> Result<(), TooComplex> {
        let in_digest = self.open.last().is_some_and(|open| open.digest);
        let (part, boundary) = describe(headers, in_digest);
        match boundary {
            Some(_) if self.open.len() >= DEPTH_MAX => Err(TooComplex::Depth),
            Some(boundary) => {
                let digest = part.content_type == "multipart/digest";
                self.open.push(Open { boundary, digest, start, used: false });
                Ok(())
            }
            None if self.parts.len() >= PARTS_MAX => Err(TooComplex::Parts),
            None => {
                self.leaf = Some(Leaf { part, start });
                Ok(())
            }
        }
    }

    /// Ends the part in progress and every multipart from `level` on.
    fn close(&mut self, level: usize, end: usize) -> Result<(), TooComplex> {
        if let Some(Leaf { mut part, start }) = self.leaf.take() {
            part.body = self.body.get(start..end).unwrap_or_default();
            self.parts.push(part);
        }
        // A multipart without any part in it is shown as the text it is; the outermost says it all.
        if let Some(open) = self.open.get(level..).and_then(|rest| rest.iter().find(|open| !open.used)) {
            if self.parts.len() >= PARTS_MAX {
                return Err(TooComplex::Parts);
            }
            let body = self.body.get(open.start..end).unwrap_or_default();
            self.parts.push(Part { body, ..plain_text() });
        }
        self.open.truncate(level);
        Ok(())
    }
}

/// Up to and with the first CRLF.
fn first_line(bytes: &[u8]) -> &[u8] {
    let mut at = 0;
    while let Some(found) = bytes.get(at..).and_then(|rest| rest.iter().position(|b| *b == b'\n')) {
        at += found + 1;
        if at >= 2 && bytes.get(at - 2) == Some(&b'\r') {
            return bytes.get(..at).unwrap_or(bytes);
        }
    }
    bytes
}

fn plain_text() -> Part<'static> {
    Part {
        content_type: "text/plain".to_owned(),
        charset: None,
        filename: None,
        content_id: None,
        disposition: None,
        encoding: Encoding::Identity,
        body: b"",
    }
}

/// What the header of a part says of it, and the boundary if it is a multipart that can be opened.
fn describe<'a>(headers: &Headers<'a>, in_digest: bool) -> (Part<'a>, Option<Vec<u8>>) {
    let mut part = plain_text();
    if in_digest {
        part.content_type = "message/rfc822".to_owned();
    }
    let mut boundary = None;
    if let Some(kind) = content_field(headers, "Content-Type") {
        if let Some(subtype) = kind.subtype() {
            part.content_type = format!("{}/{subtype}", kind.ctype()).to_ascii_lowercase();
        }
        part.charset = kind.attribute("charset").map(|charset| unfold(charset.as_bytes()));
        part.filename = kind.attribute("name").map(clean);
        if kind.ctype().eq_ignore_ascii_case("multipart") {
            boundary = kind.attribute("boundary").map(|text| text.trim_end().as_bytes().to_vec());
            boundary = boundary.filter(|text| !text.is_empty() && text.len() <= BOUNDARY_BYTES_MAX);
            if boundary.is_none() {
                part.content_type = "text/plain".to_owned();
            }
        }
    }
    if let Some(disposition) = content_field(headers, "Content-Disposition") {
        part.disposition = Some(disposition.ctype().to_ascii_lowercase());
        part.filename = disposition.attribute("filename").map(clean).or(part.filename);
    }
    part.content_id = field(headers, "Content-ID").map(|id| unfold(id).trim_matches(['<', '>', ' ']).to_owned());
    part.encoding = match field(headers, "Content-Transfer-Encoding").map(unfold) {
        Some(name) if name.eq_ignore_ascii_case("base64") => Encoding::Base64,
        Some(name) if name.eq_ignore_ascii_case("quoted-printable") => Encoding::QuotedPrintable,
        _ => Encoding::Identity,
    };
    (part, boundary)
}

fn field<'a>(headers: &Headers<'a>, name: &str) -> Option<&'a [u8]> {
    headers.get(name).map(|field| field.value).filter(|value| value.len() <= FIELD_BYTES_MAX)
}

fn content_field(headers: &Headers<'_>, name: &str) -> Option<ContentType<'static>> {
    let value = ended(field(headers, name)?);
    match MessageStream::new(&value).parse_content_type().into_owned() {
        HeaderValue::ContentType(kind) => Some(kind),
        _ => None,
    }
}

/// mail-parser reads a value up to its line end.
fn ended(value: &[u8]) -> Vec<u8> {
    [value, b"\r\n"].concat()
}

/// A name as people see it: encoded words decoded, although RFC 2231 wants them otherwise.
fn clean(name: &str) -> String {
    unfold(decode_words(name.as_bytes()).as_bytes())
}

/// A value as people see it: unfolded, encoded words decoded (RFC 2047).
pub fn decode_words(value: &[u8]) -> String {
    match MessageStream::new(&ended(value)).parse_unstructured() {
        HeaderValue::Text(text) => unfold(text.as_bytes()),
        _ => String::new(),
    }
}

/// A name and an address as they are written, for people to see: the address may be anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    pub name: String,
    pub address: String,
}

/// The mailboxes of a field for people to see: encoded words decoded, mistakes forgiven. Never to
/// decide by; that is what `header::mailboxes` is for.
pub fn shown_mailboxes(value: &[u8]) -> Vec<Shown> {
    let text = |text: &Option<Cow<'_, str>>| text.as_deref().map_or_else(String::new, |t| unfold(t.as_bytes()));
    match MessageStream::new(&ended(value)).parse_address() {
        HeaderValue::Address(list) => {
            list.iter().map(|one| Shown { name: text(&one.name), address: text(&one.address) }).collect()
        }
        _ => Vec::new(),
    }
}

/// The ids in a Message-ID, In-Reply-To or References field, without brackets.
pub fn ids(value: &[u8]) -> Vec<String> {
    match MessageStream::new(&ended(value)).parse_id() {
        HeaderValue::Text(id) => vec![unfold(id.as_bytes())],
        HeaderValue::TextList(ids) => ids.iter().map(|id| unfold(id.as_bytes())).collect(),
        _ => Vec::new(),
    }
}

/// A Date field as RFC 3339, if it is a date.
pub fn date(value: &[u8]) -> Option<String> {
    match MessageStream::new(&ended(value)).parse_date() {
        HeaderValue::DateTime(date) if date.is_valid() => Some(date.to_rfc3339()),
        _ => None,
    }
}

/// RFC 2045 6.8: whatever is not in the alphabet is skipped, padding ends a group.
fn decode_base64(encoded: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(encoded.len() / 4 * 3 + 3);
    let (mut group, mut count) = (0u32, 0u32);
    for byte in encoded {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => {
                flush_base64(group, count, &mut out);
                (group, count) = (0, 0);
                continue;
            }
            _ => continue,
        };
        group = group << 6 | u32::from(value);
        count += 1;
        if count == 4 {
            out.extend([(group >> 16) as u8, (group >> 8) as u8, group as u8]);
            (group, count) = (0, 0);
        }
    }
    flush_base64(group, count, &mut out);
    out
}

/// The bytes of a group of fewer than four letters.
fn flush_base64(group: u32, count: u32, out: &mut Vec<u8>) {
    match count {
        2 => out.push((group >> 4) as u8),
        3 => out.extend([(group >> 10) as u8, (group >> 2) as u8]),
        _ => {}
    }
}

/// RFC 2045 6.7: blanks at a line's end go, `=` at a line's end joins it with the next, and what is
/// no code stays as it is.
fn decode_quoted_printable(encoded: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(encoded.len());
    for line in encoded.split_inclusive(|b| *b == b'\n') {
        let ended = line.ends_with(b"\n");
        let end: &[u8] = if line.ends_with(b"\r\n") { b"\r\n" } else { b"\n" };
        let text = line.trim_ascii_end();
        let (text, joined) = match text.strip_suffix(b"=") {
            Some(text) => (text, true),
            None => (text, !ended),
        };
        decode_codes(text, &mut out);
        if !joined {
            out.extend_from_slice(end);
        }
    }
    out
}

fn decode_codes(mut text: &[u8], out: &mut Vec<u8>) {
    let hex = |digit: u8| char::from(digit).to_digit(16);
    while let Some((first, rest)) = text.split_first() {
        text = rest;
        if let (b'=', [high, low, after @ ..]) = (first, rest)
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            out.push((high << 4 | low) as u8);
            text = after;
            continue;
        }
        out.push(*first);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn message(text: &str) -> Vec<u8> {
        text.replace('\n', "\r\n").into_bytes()
    }

    #[test]
    fn a_plain_message_is_its_text() {
        let raw = message("Subject: x\n\nhello\nworld\n");
        let content = read(&raw).unwrap();
        assert_eq!(content, Content { text: Some("hello\nworld\n".into()), ..Content::default() });
    }

    #[test]
    fn texts_and_attachments_are_told_apart() {
        let raw = message(
            "Content-Type: multipart/mixed; boundary=\"a b\"\n\nbefore\n--a b\n\
             Content-Type: multipart/alternative; boundary=a\n\n--a\n\nplain\n--a\n\
             Content-Type: text/html; charset=iso-8859-1\nContent-Transfer-Encoding: quoted-printable\n\n\
             <p>gr=FC=\n=DFe</p>\n--a--\nbetween\n--a b\n\
             Content-Type: image/png; name=\"=?utf-8?Q?b=C3=BC.png?=\"\nContent-ID: <x@y>\n\
             Content-Disposition: INLINE\nContent-Transfer-Encoding: BASE64\n\nAQI\n D\n--a b\n\
             Content-Type: text/plain; name=n.txt\n\nfile\n--a b\n\
             Content-Type: text/plain\nContent-Disposition: attachment; filename*=utf-8''%e2%82%ac.txt\n\nfile\n\
             --a b\n\nfooter\n--a b--\nafter\n",
        );
        let content = read(&raw).unwrap();
        assert_eq!(content.text.as_deref(), Some("plain\nfooter"));
        assert_eq!(content.html.as_deref(), Some("<p>grüße</p>"));
        let [image, named, attached] = content.attachments.as_slice() else { unreachable!("{content:?}") };
        assert_eq!(image.content_type, "image/png");
        assert_eq!(image.filename.as_deref(), Some("bü.png"));
        assert_eq!(image.content_id.as_deref(), Some("x@y"));
        assert_eq!(image.disposition.as_deref(), Some("inline"));
        assert_eq!(image.decoded().as_ref(), [1, 2, 3]);
        assert_eq!((named.filename.as_deref(), named.body), (Some("n.txt"), &b"file"[..]));
        assert_eq!(attached.filename.as_deref(), Some("€.txt"));
    }

    #[test]
    fn a_message_inside_is_one_part() {
        let raw = message(
            "Content-Type: multipart/digest; boundary=d\n\n--d\n\nSubject: inner\n\nx\n--d\n\
             Content-Type: message/rfc822\n\nContent-Type: multipart/mixed; boundary=e\n\n--e\n\ny\n--e--\n--d--\n",
        );
        let content = read(&raw).unwrap();
        assert_eq!(content.text, None);
        assert_eq!(content.attachments.len(), 2);
        assert!(content.attachments.iter().all(|part| part.content_type == "message/rfc822"));
        assert_eq!(content.attachments[0].body, b"Subject: inner\r\n\r\nx");
    }

    #[test]
    fn a_multipart_that_is_none_is_shown_as_text() {
        for head in ["multipart/mixed", "multipart/mixed; boundary=\"\"", "multipart/mixed; boundary=never"] {
            let raw = message(&format!("Content-Type: {head}\n\nhello\n--other\n"));
            assert_eq!(read(&raw).unwrap().text.as_deref(), Some("hello\n--other\n"), "{head}");
        }
        let long = message(&format!("Content-Type: multipart/mixed; boundary={}\n\nhello\n", "b".repeat(300)));
        assert_eq!(read(&long).unwrap().text.as_deref(), Some("hello\n"));
    }

    #[test]
    fn boundaries_are_compared_whole() {
        let raw = message(
            "Content-Type: multipart/mixed; boundary=a\n\n--a \t\n\none\n--ab\n -- a\n--a\n\ntwo\n--a--x\n--a--\n--a\n",
        );
        let texts: Vec<_> = parts(&raw).unwrap().iter().map(Part::text).collect();
        assert_eq!(texts, ["one\n--ab\n -- a", "two\n--a--x"]);
    }

    #[test]
    fn the_same_boundary_at_all_depths_belongs_to_the_innermost() {
        let raw = message(
            "Content-Type: multipart/mixed; boundary=a\n\n--a\nContent-Type: multipart/mixed; boundary=a\n\n\
             --a\n\none\n--a--\n--a\n\ntwo\n--a--\n",
        );
        let texts: Vec<_> = parts(&raw).unwrap().iter().map(Part::text).collect();
        assert_eq!(texts, ["one", "two"]);
    }

    #[test]
    fn a_message_cut_short_gives_what_there_is() {
        let raw = message("Content-Type: multipart/mixed; boundary=a\n\n--a\nContent-Type: text/html\n\n<p>cu");
        assert_eq!(read(&raw).unwrap().html.as_deref(), Some("<p>cu"));
    }

    /// `levels` multiparts inside one another.
    fn nested_multiparts(levels: usize) -> Vec<u8> {
        let mut text = String::new();
        for level in 0..levels {
            text += &format!("Content-Type: multipart/mixed; boundary=b{level}\r\n\r\n--b{level}\r\n");
        }
        (text + "\r\nhello\r\n").into_bytes()
    }

    #[test]
    fn bombs_end_at_a_bound() {
        assert_eq!(read(&nested_multiparts(DEPTH_MAX)).unwrap().text.as_deref(), Some("hello\n"));
        for levels in [DEPTH_MAX + 1, 1000, 100_000] {
            assert_eq!(read(&nested_multiparts(levels)), Err(TooComplex::Depth), "{levels}");
        }
        let rfc822 = "Content-Type: message/rfc822\r\n\r\n".repeat(40_000);
        assert_eq!(read(rfc822.as_bytes()).unwrap().attachments.len(), 1);
        let empty = |parts: usize| {
            let head = "Content-Type: multipart/mixed; boundary=b\r\n\r\n".to_owned();
            (head + &"--b\r\n\r\n\r\n".repeat(parts)).into_bytes()
        };
        assert_eq!(parts(&empty(PARTS_MAX)).unwrap().len(), PARTS_MAX);
        assert_eq!(read(&empty(PARTS_MAX + 1)), Err(TooComplex::Parts));
        assert_eq!(read(&empty(1_000_000)), Err(TooComplex::Parts));
        assert_eq!(read("A: 1\r\n".repeat(100_000).as_bytes()), Err(TooComplex::Header));
    }

    #[test]
    fn long_headers_and_texts_end_at_a_bound() {
        let field = format!("X: {}\r\n", "x".repeat(200_000));
        let part = format!("--b\r\n{field}\r\nhello\r\n");
        let raw = "Content-Type: multipart/mixed; boundary=b\r\n\r\n".to_owned() + &part.repeat(6);
        assert_eq!(read(raw.as_bytes()), Err(TooComplex::PartHeaders));
        let text = [b"A: 1\r\n\r\n".to_vec(), vec![b'x'; TEXT_BYTES_MAX + 1]].concat();
        assert_eq!(read(&text), Err(TooComplex::Text));
        let flood = format!("Content-Type: text/html{}\r\n\r\nhello", "; a=b".repeat(10_000));
        assert_eq!(read(flood.as_bytes()).unwrap().text.as_deref(), Some("hello"), "a field too long is not read");
    }

    #[test]
    fn encodings_forgive() {
        assert_eq!(decode_base64(b"aGVs\r\nbG8=\r\n"), b"hello");
        assert_eq!(decode_base64(b"aGV*s bG8"), b"hello");
        assert_eq!(decode_base64(b"aGk=aGk="), b"hihi");
        assert_eq!(decode_base64(b"===="), b"");
        assert_eq!(decode_quoted_printable(b"a=3Db  \r\nc=\r\nd=zz=4\r\n="), b"a=b\r\ncd=zz=4\r\n");
        assert_eq!(decode_quoted_printable(b"=E2=82=AC"), "€".as_bytes());
    }

    #[test]
    fn fields_are_shown_decoded() {
        assert_eq!(decode_words(b" =?utf-8?B?R3LDvMOfZQ==?= =?iso-8859-1?Q?_=FC?=\r\n x"), "Grüße ü x");
        let shown = shown_mailboxes(b" =?utf-8?Q?B=C3=B6b?= <b@c.example>, x: d@e.example;, undisclosed");
        let pairs: Vec<_> = shown.iter().map(|s| (s.name.as_str(), s.address.as_str())).collect();
        assert_eq!(pairs, [("Böb", "b@c.example"), ("", "d@e.example"), ("undisclosed", "")]);
        assert_eq!(ids(b" <a@b>\r\n <c@d>"), ["a@b", "c@d"]);
        assert_eq!(date(b" Sat, 21 Nov 2026 22:26:57 +0100").as_deref(), Some("2026-11-21T22:26:57+01:00"));
        assert_eq!(date(b" tomorrow"), None);
    }
}
