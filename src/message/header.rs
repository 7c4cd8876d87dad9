//! The header section of a message: where it ends, its fields, and a writer for our own fields.
//!
//! One view for every part of the server: only CRLF ends a line, a line that begins with a blank
//! continues the field before it, and the first line that is no field ends the section (RFC 5322
//! 2.2). Nothing is copied or changed; what is odd is passed on as it came. The values of fields
//! are read elsewhere, except for mailbox lists (`mailbox`) and message ids. Encoded words
//! (RFC 2047) are left alone: they are for eyes, never for decisions.

use std::ops::Range;

use super::address::AddressError;
pub use super::mailbox::{Mailbox, mailboxes};

/// Fields that are looked at. Those beyond are passed on unread; [`Headers::within_limits`] tells.
pub const FIELDS_MAX: usize = 1000;
/// Bytes of a header section that intake takes.
pub const HEADER_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a line we write, without its CRLF (RFC 5322 2.1.1: should).
const LINE_BYTES_GOOD: usize = 78;
/// Bytes after which even a word without blanks is broken (RFC 5322 2.1.1 says 998: must).
const LINE_BYTES_MAX: usize = 990;
/// Bytes of a field name that we write.
const NAME_BYTES_MAX: usize = 76;
/// Blanks between two words that we write; more are no content.
const BLANKS_MAX: usize = 32;
/// Bytes of a Message-ID that is taken for one; it fits into a line.
const MESSAGE_ID_BYTES_MAX: usize = 980;

/// Why a header section or a field in it cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("the header section is longer than {} KiB", HEADER_BYTES_MAX / 1024)]
    TooLong,
    #[error("the header section has more than {FIELDS_MAX} fields")]
    TooManyFields,
    #[error("there is no From field")]
    NoFrom,
    #[error("there is more than one From field")]
    SeveralFrom,
    #[error("the From field does not name exactly one mailbox")]
    NotOneAuthor,
    #[error("the field holds a control character")]
    Control,
    #[error("a comment, quoted string, bracket or group is not closed")]
    NotClosed,
    #[error("comments are nested too deep")]
    TooDeep,
    #[error("the field names too many mailboxes")]
    TooManyMailboxes,
    #[error("the list of mailboxes is not written as RFC 5322 3.4 wants it")]
    BadList,
    #[error("the field is empty")]
    Empty,
    #[error("a mailbox in the field is not an address: {0}")]
    BadAddress(AddressError),
}

/// One field, as slices of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Before the colon, without blanks there.
    pub name: &'a [u8],
    /// After the colon, still folded, without the final CRLF.
    pub value: &'a [u8],
    /// The whole field with its final CRLF (which only a message that ends here can lack).
    pub raw: &'a [u8],
    /// There was a blank before the colon, which only RFC 5322 4.5 (obsolete syntax) allows.
    pub spaced: bool,
}

impl Field<'_> {
    /// Names are compared without regard to case (RFC 5322 1.2.2).
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }

    /// The value as text: [`unfold`]ed.
    pub fn text(&self) -> String {
        unfold(self.value)
    }
}

/// The fields of a message, in order, and where its body begins.
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    /// To the end of the last field, final CRLF included.
    section: &'a [u8],
    fields: Vec<Field<'a>>,
    /// What stands behind the empty line, if there is one.
    body: &'a [u8],
    has_empty_line: bool,
    more: bool,
}

impl<'a> Headers<'a> {
    /// Scans to the end of the header section. Never fails: what is no header is body.
    pub fn parse(content: &'a [u8]) -> Headers<'a> {
        let mut fields = Vec::new();
        let mut more = false;
        let mut at = 0;
        while let Some(len) = field_len(&content[at..]) {
            match split_field(&content[at..at + len]) {
                None => break,
                Some(_) if fields.len() >= FIELDS_MAX => more = true,
                Some(field) => fields.push(field),
            }
            at += len;
        }
        let (section, rest) = content.split_at(at);
        let body = rest.strip_prefix(b"\r\n");
        Headers { section, fields, body: body.unwrap_or(rest), has_empty_line: body.is_some(), more }
    }

    /// Of a header section written anew, without its empty line, for this body.
    pub fn apart(section: &'a [u8], body: &'a [u8]) -> Headers<'a> {
        Headers { body, has_empty_line: true, ..Headers::parse(section) }
    }

    pub fn fields(&self) -> &[Field<'a>] {
        &self.fields
    }

    /// The first field of this name.
    pub fn get(&self, name: &str) -> Option<&Field<'a>> {
        self.fields.iter().find(|field| field.is(name))
    }

    /// Every field of this name, in order.
    pub fn all<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s Field<'a>> + 's {
        self.fields.iter().filter(move |field| field.is(name))
    }

    /// What follows the empty line; or all from the first line that is no field.
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// All fields as they came, without the empty line.
    pub fn header_bytes(&self) -> &'a [u8] {
        self.section
    }

    /// Where the field with this number lies in the message.
    pub fn range(&self, index: usize) -> Option<Range<usize>> {
        let raw = self.fields.get(index)?.raw;
        let start: usize = self.fields.iter().take(index).map(|field| field.raw.len()).sum();
        Some(start..start + raw.len())
    }

    /// False if no empty line stands between fields and body. Other readers may then see another
    /// header section than we do, so whoever passes the message on should put the line there.
    pub fn has_empty_line(&self) -> bool {
        self.has_empty_line
    }

    /// Is the header section one that we take?
    pub fn within_limits(&self) -> Result<(), HeaderError> {
        if self.section.len() > HEADER_BYTES_MAX {
            return Err(HeaderError::TooLong);
        }
        if self.more { Err(HeaderError::TooManyFields) } else { Ok(()) }
    }

    /// The one mailbox that the message says it is from. Anything that two readers could understand
    /// in two ways is an error (RFC 5322 3.6.2, RFC 7489 6.6.1).
    pub fn author(&self) -> Result<Mailbox, HeaderError> {
        let mut from = self.all("From");
        let field = from.next().ok_or(HeaderError::NoFrom)?;
        if from.next().is_some() {
            return Err(HeaderError::SeveralFrom);
        }
        let mut mailboxes = mailboxes(field.value)?;
        match (mailboxes.pop(), mailboxes.is_empty()) {
            (Some(only), true) => Ok(only),
            _ => Err(HeaderError::NotOneAuthor),
        }
    }
}

/// Length of the first line and those that continue it; none where the section ends.
fn field_len(rest: &[u8]) -> Option<usize> {
    if rest.is_empty() || rest.starts_with(b"\r\n") {
        return None;
    }
    let mut len = 0;
    loop {
        len += line_len(&rest[len..]);
        if !matches!(rest.get(len), Some(b' ' | b'\t')) {
            return Some(len);
        }
    }
}

/// Length of the first line, its CRLF included.
fn line_len(rest: &[u8]) -> usize {
    let ends_here = |at: &usize| at.checked_sub(1).and_then(|before| rest.get(before)) == Some(&b'\r');
    memchr::memchr_iter(b'\n', rest).find(ends_here).map_or(rest.len(), |at| at + 1)
}

/// None if this is no field: a name is printable ASCII without a colon (RFC 5322 2.2), and only
/// blanks may stand between it and the colon (4.5.3).
fn split_field(raw: &[u8]) -> Option<Field<'_>> {
    let name_len = raw.iter().position(|b| !matches!(b, 33..=57 | 59..=126))?;
    let (name, rest) = raw.split_at(name_len);
    let blanks = rest.iter().position(|b| !matches!(b, b' ' | b'\t'))?;
    if name.is_empty() || rest.get(blanks) != Some(&b':') {
        return None;
    }
    let value = &rest[blanks + 1..];
    let value = value.strip_suffix(b"\r\n").unwrap_or(value);
    Some(Field { name, value, raw, spaced: blanks > 0 })
}

/// A value as one line of text: folding and control characters removed, blanks at both ends too;
/// what is not UTF-8 becomes U+FFFD.
pub fn unfold(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    let kept: String = text
        .chars()
        .map(|c| if c == '\t' { ' ' } else { c })
        .filter(|c| !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}'))
        .collect();
    kept.trim().to_owned()
}

/// The id in a Message-ID field, without its brackets. Ids without brackets are taken as well,
/// because mail has them; ids with blanks or control characters are none.
pub fn message_id(value: &[u8]) -> Option<String> {
    let text = unfold(value);
    let id = match text.split_once('<') {
        Some((_, rest)) => rest.split_once('>')?.0.trim(),
        None => text.as_str(),
    };
    let legal = !id.is_empty()
        && id.len() <= MESSAGE_ID_BYTES_MAX
        && id.chars().all(|c| !c.is_whitespace() && !matches!(c, '<' | '>' | '\u{fffd}'));
    legal.then(|| id.to_owned())
}

/// Writes a field of our own: `name: value` CRLF, folded at blanks so that lines stay within 78
/// bytes where the words allow it. Whatever the arguments hold, exactly one field comes out:
/// control characters become blanks, blanks at both ends vanish, a word too long for any line is
/// broken.
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let is_name = |b: &u8| matches!(b, 33..=57 | 59..=126);
    let mut out: Vec<u8> = name.bytes().filter(is_name).take(NAME_BYTES_MAX).collect();
    out.push(b':');
    let mut column = out.len();
    let (mut blanks, mut first) = (0, true);
    for word in value.split(|c: char| c.is_control() || matches!(c, ' ' | '\u{2028}' | '\u{2029}')) {
        blanks += 1;
        for piece in pieces(word, LINE_BYTES_MAX - NAME_BYTES_MAX - BLANKS_MAX) {
            let gap = if first { 1 } else { blanks.clamp(1, BLANKS_MAX) };
            // A field that folds before its first word is legal, but some read it badly.
            if !first && column + gap + piece.len() > LINE_BYTES_GOOD {
                out.extend_from_slice(b"\r\n");
                column = 0;
            }
            out.resize(out.len() + gap, b' ');
            out.extend_from_slice(piece.as_bytes());
            column += gap + piece.len();
            (blanks, first) = (0, false);
        }
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// Cuts a word into pieces of at most `max` bytes, between characters.
fn pieces(word: &str, max: usize) -> impl Iterator<Item = &str> {
    let mut rest = word;
    std::iter::from_fn(move || {
        let mut cut = rest.len().min(max);
        while !rest.is_char_boundary(cut) {
            cut -= 1;
        }
        let (piece, after) = rest.split_at(cut);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(content: &str) -> Vec<String> {
        Headers::parse(content.as_bytes())
            .fields()
            .iter()
            .map(|f| String::from_utf8_lossy(f.name).into_owned())
            .collect()
    }

    #[test]
    fn cuts_fields_and_body() {
        let content = b"A: 1\r\nB : two\r\n\tmore\r\n \r\nc:\r\n\r\nA: body\r\n";
        let headers = Headers::parse(content);
        assert_eq!(names(std::str::from_utf8(content).unwrap()), ["A", "B", "c"]);
        assert_eq!(headers.body(), b"A: body\r\n");
        assert!(headers.has_empty_line());
        let b = headers.get("b").unwrap();
        assert!(b.spaced);
        assert_eq!(b.value, b" two\r\n\tmore\r\n ");
        assert_eq!(b.text(), "two more");
        assert_eq!(headers.range(1).map(|r| &content[r]), Some(b.raw));
        assert_eq!(headers.range(3), None);
        assert_eq!(headers.get("c").unwrap().value, b"");
        let joined: Vec<u8> = headers.fields().iter().flat_map(|f| f.raw.to_vec()).collect();
        assert_eq!(joined, headers.header_bytes());
    }

    #[test]
    fn a_line_that_is_no_field_begins_the_body() {
        for (content, count, body) in [
            ("A: 1\r\nno field\r\nB: 2\r\n\r\n", 1, "no field\r\nB: 2\r\n\r\n"),
            (" From: x\r\nA: 1\r\n", 0, " From: x\r\nA: 1\r\n"),
            ("From a@b Sat Nov 21 12:00:00\r\nA: 1\r\n", 0, "From a@b Sat Nov 21 12:00:00\r\nA: 1\r\n"),
            ("A: 1\r\n: 2\r\n", 1, ": 2\r\n"),
            ("A: 1\r\nB\u{e4}: 2\r\n", 1, "B\u{e4}: 2\r\n"),
            ("A: 1", 1, ""),
            ("", 0, ""),
            ("\r\nA: 1\r\n", 0, "A: 1\r\n"),
        ] {
            let headers = Headers::parse(content.as_bytes());
            assert_eq!(headers.fields().len(), count, "{content:?}");
            assert_eq!(headers.body(), body.as_bytes(), "{content:?}");
        }
        assert!(!Headers::parse(b"A: 1\r\nno field\r\n").has_empty_line());
    }

    #[test]
    fn only_crlf_ends_a_line() {
        let headers = Headers::parse(b"A: 1\nB: 2\r\nC: 3\rD: 4\r\n\n\r\n");
        assert_eq!(headers.fields().len(), 2);
        assert_eq!(headers.get("C").unwrap().value, b" 3\rD: 4");
        assert_eq!(headers.body(), b"\n\r\n");
    }

    /// Every attack on the From field in tests/vectors/header-attacks ends in one identity that no
    /// reader could take for another, or in an error.
    #[test]
    fn attacks_on_the_author_give_one_identity_or_none() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/header-attacks");
        for (name, wanted) in [
            ("two-from", Err(HeaderError::SeveralFrom)),
            ("three-from-case", Err(HeaderError::SeveralFrom)),
            ("from-space-colon", Err(HeaderError::SeveralFrom)),
            ("from-leading-space", Err(HeaderError::NoFrom)),
            ("from-fold-value", Ok("ceo@victim.example")),
            ("from-nul-value", Err(HeaderError::Control)),
            // A Cyrillic letter in the name of the field: no field, so the header ends there.
            ("from-8bit-name", Err(HeaderError::NoFrom)),
            ("from-two-addr", Err(HeaderError::NotOneAuthor)),
            ("from-group", Err(HeaderError::NotOneAuthor)),
            ("from-empty-group", Err(HeaderError::NotOneAuthor)),
            ("from-quoted-display", Ok("a@attacker.example")),
            ("from-encoded-all", Ok("a@attacker.example")),
            ("from-encoded-localpart", Ok("=?utf-8?Q?ceo=40victim.example=2C?=@attacker.example")),
            ("from-comment", Ok("a@attacker.example")),
            ("from-comment-in-domain", Ok("ceo@victim.example")),
            ("from-trailing", Err(HeaderError::BadList)),
            ("from-no-domain", Err(HeaderError::BadAddress(AddressError::NoAt))),
            ("from-idn-u", Ok("ceo@xn--vctim-zsa.example")),
            ("from-zwj", Err(HeaderError::BadAddress(AddressError::BadDomain))),
            ("from-rtl", Err(HeaderError::BadList)),
            ("from-tld-only", Ok("ceo@example")),
            ("from-psl", Ok("ceo@co.uk")),
            ("resent-from", Ok("a@attacker.example")),
            ("header-no-colon", Ok("a@attacker.example")),
            ("header-bare-lf", Ok("a@attacker.example")),
        ] {
            let content = std::fs::read(format!("{folder}/{name}.eml")).unwrap();
            let author = Headers::parse(&content).author().map(|mailbox| mailbox.address.to_string());
            assert_eq!(author, wanted.map(str::to_owned), "{name}");
        }
    }

    #[test]
    fn limits_are_told_not_enforced() {
        let many = "A: 1\r\n".repeat(FIELDS_MAX + 1) + "\r\nbody";
        let headers = Headers::parse(many.as_bytes());
        assert_eq!(headers.fields().len(), FIELDS_MAX);
        assert_eq!(headers.body(), b"body");
        assert_eq!(headers.within_limits(), Err(HeaderError::TooManyFields));
        let long = format!("A: {}\r\n\r\n", "x".repeat(HEADER_BYTES_MAX));
        assert_eq!(Headers::parse(long.as_bytes()).within_limits(), Err(HeaderError::TooLong));
        assert_eq!(Headers::parse(b"A: 1\r\n\r\n").within_limits(), Ok(()));
    }

    #[test]
    fn reads_message_ids() {
        for (value, id) in [
            (&b" <a@b>"[..], Some("a@b")),
            (b"\r\n <a@b>\r\n", Some("a@b")),
            (b" (x) <a@b> (y)", Some("a@b")),
            (b" bare@id ", Some("bare@id")),
            (b" <a b@c>", None),
            (b" <a@b", None),
            (b" <>", None),
            (b"", None),
        ] {
            assert_eq!(message_id(value).as_deref(), id, "{value:?}");
        }
    }

    #[test]
    fn writes_one_field_whatever_it_is_given() {
        assert_eq!(field("Subject", "hello"), b"Subject: hello\r\n");
        assert_eq!(field("To", ""), b"To:\r\n");
        let evil = field("X\r\nBcc", "a\r\nBcc: b\0c\n\r\n body \u{2028}\t");
        assert_eq!(evil, b"XBcc: a  Bcc: b c    body\r\n");
        assert_eq!(field("To", "\"a  b\"@c.example"), b"To: \"a  b\"@c.example\r\n");
        let wide = field("To", &format!("a{}b", " ".repeat(2000)));
        assert_eq!(Headers::parse(&wide).get("To").unwrap().raw, wide);
        let long = field("References", &"<0123456789@host.example> ".repeat(9));
        assert!(long.split(|b| *b == b'\n').all(|line| line.len() <= LINE_BYTES_GOOD + 1));
        let headers = Headers::parse(&long);
        assert_eq!(headers.fields().len(), 1);
        assert_eq!(headers.get("references").unwrap().text(), "<0123456789@host.example> ".repeat(9).trim());
        let endless = field("X", &"\u{e4}".repeat(3000));
        assert!(endless.split(|b| *b == b'\n').all(|line| line.len() <= 998));
        assert_eq!(Headers::parse(&endless).fields().len(), 1);
    }

    proptest::proptest! {
        /// Nothing is lost and nothing is invented: fields, empty line and body are the message.
        #[test]
        fn a_scan_keeps_every_byte(content in "([A-Za-z :\t<>@\\.\\\\\"(),;]|\r\n|\n|\r|\0|\u{e4}){0,80}") {
            let content = content.as_bytes();
            let headers = Headers::parse(content);
            let mut joined: Vec<u8> = headers.fields().iter().flat_map(|f| f.raw.to_vec()).collect();
            proptest::prop_assert_eq!(&joined, headers.header_bytes());
            if headers.has_empty_line() {
                joined.extend_from_slice(b"\r\n");
            }
            joined.extend_from_slice(headers.body());
            proptest::prop_assert_eq!(joined, content);
        }

        /// One field comes out, whatever went in, and its lines are legal.
        #[test]
        fn a_field_is_one_field(name in "[!-9;-~]{1,20}", value in "(\\PC|[ \r\n\t\0:]){0,200}") {
            let written = field(&name, &value);
            let headers = Headers::parse(&written);
            proptest::prop_assert_eq!(headers.fields().len(), 1);
            proptest::prop_assert_eq!(headers.header_bytes(), &written[..]);
            proptest::prop_assert_eq!(headers.fields()[0].name, name.as_bytes());
            proptest::prop_assert!(!written[..written.len() - 2].windows(2).any(|w| w[0] == b'\n' && w[1] != b' '));
        }

        /// What is written for a mailbox is read as that mailbox; what is not a list is an error.
        #[test]
        fn mailboxes_survive_being_written(
            name in "[A-Za-z0-9 ]{0,20}",
            local in "[a-z0-9!#$%&'*+/=?^_`{|}~-]{1,10}(\\.[a-z0-9]{1,5}){0,2}",
            noise in "([A-Za-z :\t<>@\\.\\\\\"(),;\\[\\]]|\r\n |\u{e4}){0,60}",
        ) {
            let written = field("From", &format!("\"{name}\" <{local}@host.example>"));
            let author = Headers::parse(&written).author();
            let address = author.map(|mailbox| mailbox.address.to_string());
            proptest::prop_assert_eq!(address, Ok(format!("{local}@host.example")));
            for mailbox in mailboxes(noise.as_bytes()).unwrap_or_default() {
                let again = mailboxes(format!("<{}>", mailbox.address).as_bytes());
                proptest::prop_assert_eq!(again.unwrap().remove(0).address, mailbox.address);
            }
        }
    }
}
