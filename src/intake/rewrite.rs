//! Who a message says it is from, and whether it may: another address in From where it may not, the name
//! kept, the author kept in Reply-To.
//!
//! Works on the bytes of the header fields. A name is kept as it was written, encoded words included.
//! Left out: which From may pass where (`routing::outbound`).

use crate::config::{Config, ReplyTo};
use crate::message::header::{Field, Headers, mailboxes};
use crate::message::{Address, Draft};
use crate::routing::outbound;

/// Bytes of a line after which the address goes on the next (RFC 5322 2.1.1: should).
const LINE_BYTES_GOOD: usize = 78;

/// The author of a draft.
#[derive(Debug)]
pub struct Author<'c> {
    written: Option<Address>,
    /// The address that takes its place.
    instead: Option<&'c Address>,
}

/// The fields that take the place of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewritten {
    pub fields: Vec<u8>,
    /// Which fields go: From, and the signatures over it, which hold no more.
    pub replaced: Vec<usize>,
}

impl<'c> Author<'c> {
    /// `stream`: by which the message leaves, if a copy of it does. All copies say the same.
    pub fn of(config: &'c Config, draft: &Draft, headers: &Headers<'_>, stream: Option<&String>) -> Author<'c> {
        let envelope = &draft.envelope.mail_from;
        let written = match headers.author() {
            Ok(author) => Some(author.address),
            // Our senders' messages get a From then (RFC 6409 8.1).
            Err(_) if headers.get("from").is_none() => envelope.address().cloned(),
            Err(_) => None,
        };
        let choice = stream.map(|stream| outbound::choose(config, written.as_ref(), envelope, config.pinned(stream)));
        Author { written, instead: choice.and_then(|choice| choice.rewrite) }
    }

    /// What From says in the end; none if that is not one mailbox.
    pub fn shown(&self) -> Option<&Address> {
        self.instead.or(self.written.as_ref())
    }

    pub fn is_rewritten(&self) -> bool {
        self.instead.is_some()
    }

    /// None if From stays.
    pub fn rewritten(&self, headers: &Headers<'_>, reply_to: ReplyTo) -> Option<Rewritten> {
        self.instead.map(|instead| rewrite_from(headers, instead, reply_to))
    }
}

fn rewrite_from(headers: &Headers<'_>, from: &Address, reply_to: ReplyTo) -> Rewritten {
    let authors: Vec<&Field<'_>> = headers.all("From").collect();
    let parsed = authors.first().and_then(|field| mailboxes(field.value).ok()).unwrap_or_default();
    let mut name = Vec::new();
    if let (Some(field), Some(first)) = (authors.first(), parsed.first()) {
        name = match raw_name(field.value) {
            Some(raw) => raw.to_vec(),
            None if first.name.is_empty() => quoted(first.address.local()),
            None => quoted(&first.name),
        };
    }
    let mut fields = line(&name, from);
    if reply_to == ReplyTo::KeepOrAuthor
        && headers.get("Reply-To").is_none()
        && let (Some(field), false) = (authors.first(), parsed.is_empty())
    {
        fields.extend_from_slice(b"Reply-To:");
        fields.extend_from_slice(field.value);
        fields.extend_from_slice(b"\r\n");
    }
    let goes = |field: &Field<'_>| field.is("From") || field.is("DKIM-Signature");
    let numbered = headers.fields().iter().enumerate();
    let replaced = numbered.filter(|(_, field)| goes(field)).map(|(number, _)| number).collect();
    Rewritten { fields, replaced }
}

fn line(name: &[u8], from: &Address) -> Vec<u8> {
    let mut out = b"From:".to_vec();
    if !name.is_empty() {
        out.push(b' ');
        out.extend_from_slice(name);
    }
    let address = format!("<{from}>");
    let column = out.iter().rev().take_while(|byte| **byte != b'\n').count();
    let fold = !name.is_empty() && column + 1 + address.len() > LINE_BYTES_GOOD;
    out.extend_from_slice(if fold { b"\r\n " } else { b" " });
    out.extend_from_slice(address.as_bytes());
    out.extend_from_slice(b"\r\n");
    out
}

/// The name before the first `<`, as written; none where it is empty or belongs to a group or to
/// another mailbox.
fn raw_name(value: &[u8]) -> Option<&[u8]> {
    let (mut quoted, mut escaped, mut depth) = (false, false, 0usize);
    for (at, byte) in value.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' if depth == 0 => quoted = !quoted,
            _ if quoted => {}
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            _ if depth > 0 => {}
            b',' | b':' | b';' | b'@' => return None,
            b'<' => return value.get(..at).map(<[u8]>::trim_ascii).filter(|name| !name.is_empty()),
            _ => {}
        }
    }
    None
}

/// A name as one quoted string, unless it is all encoded words and plain ones.
fn quoted(name: &str) -> Vec<u8> {
    let plain = |c: char| c.is_alphanumeric() || c == ' ' || "!#$%&'*+-/=?^_`{|}~".contains(c);
    if name.chars().all(plain) || name.starts_with('"') && name.ends_with('"') && name.len() > 1 {
        return name.as_bytes().to_vec();
    }
    format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\"")).into_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rewritten(text: &str) -> String {
        let from = Address::parse("n@my.com").unwrap();
        let headers = Headers::parse(text.as_bytes());
        let new = rewrite_from(&headers, &from, ReplyTo::KeepOrAuthor);
        for (number, field) in headers.fields().iter().enumerate() {
            assert_eq!(new.replaced.contains(&number), field.is("from") || field.is("dkim-signature"));
        }
        String::from_utf8(new.fields).unwrap()
    }

    #[test]
    fn names_are_kept_and_authors_go_to_reply_to() {
        for (from, name) in [
            ("\"Admin\" <a@b.example>", "\"Admin\" "),
            ("x@other.example", "x "),
            ("<j.d@other.example>", "\"j.d\" "),
            ("=?utf-8?Q?B=C3=B6b=2C?= <a@b.example>", "=?utf-8?Q?B=C3=B6b=2C?= "),
            ("=?utf-8?Q?B=C3=B6b?=\r\n =?utf-8?Q?_X?=\r\n <a@b.example>", "=?utf-8?Q?B=C3=B6b?=\r\n =?utf-8?Q?_X?= "),
            ("\"Doe, \\\"J\\\"\" <a@b.example>", "\"Doe, \\\"J\\\"\" "),
            ("Team: \"Doe, J\" <a@b.example>, c@d.example;", "\"Doe, J\" "),
            ("Ann <a@b.example>, Bob <c@d.example>", "Ann "),
            ("a@b.example <a@b.example>", "\"a@b.example\" "),
        ] {
            let found = rewritten(&format!("A: 1\r\nFROM: {from}\r\nDKIM-Signature: x\r\nB:\t2\r\n\r\nbody"));
            assert_eq!(found, format!("From: {name}<n@my.com>\r\nReply-To: {from}\r\n"), "{from}");
        }
    }

    #[test]
    fn what_is_missing_is_left_out() {
        assert_eq!(rewritten("To: a@b.example\r\n\r\n"), "From: <n@my.com>\r\n");
        let kept = rewritten("Reply-To: r@b.example\r\nFrom: a@b.example\r\n\r\n");
        assert_eq!(kept, "From: a <n@my.com>\r\n");
        let twice = rewritten("From: n@my.com\r\nFrom: a@b.example\r\n\r\n");
        assert_eq!(twice, "From: n <n@my.com>\r\nReply-To: n@my.com\r\n");
    }
}
