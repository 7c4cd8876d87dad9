//! Puts another address into From, keeps the name, and keeps the author in Reply-To.
//!
//! Works on the bytes of a header section; all other fields stay byte for byte. A name is kept as it
//! was written, encoded words included. Left out: when to do this (`routing::outbound`).

use crate::config::ReplyTo;
use crate::message::Address;
use crate::message::header::{Field, Headers, mailboxes};

/// Bytes of a line after which the address goes on the next (RFC 5322 2.1.1: should).
const LINE_BYTES_GOOD: usize = 78;

/// A header section (without the empty line) that takes the place of `content[..end]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewritten {
    pub header: Vec<u8>,
    pub end: usize,
}

/// None if the message is from this address alone already.
pub fn rewrite_from(content: &[u8], from: &Address, reply_to: ReplyTo) -> Option<Rewritten> {
    let headers = Headers::parse(content);
    let authors: Vec<&Field<'_>> = headers.all("From").collect();
    let parsed = authors.first().and_then(|field| mailboxes(field.value).ok()).unwrap_or_default();
    if let ([_], [only]) = (authors.as_slice(), parsed.as_slice())
        && only.address.lookup_key() == from.lookup_key()
    {
        return None;
    }
    let mut name = Vec::new();
    if let (Some(field), Some(first)) = (authors.first(), parsed.first()) {
        name = match raw_name(field.value) {
            Some(raw) => raw.to_vec(),
            None if first.name.is_empty() => quoted(first.address.local()),
            None => quoted(&first.name),
        };
    }
    let mut new = line(&name, from);
    if reply_to == ReplyTo::KeepOrAuthor
        && headers.get("Reply-To").is_none()
        && let (Some(field), false) = (authors.first(), parsed.is_empty())
    {
        new.extend_from_slice(b"Reply-To:");
        new.extend_from_slice(field.value);
        new.extend_from_slice(b"\r\n");
    }
    let mut header = Vec::with_capacity(headers.header_bytes().len() + new.len());
    if authors.is_empty() {
        header.append(&mut new);
    }
    for field in headers.fields() {
        if field.is("From") {
            header.append(&mut new);
        } else {
            header.extend_from_slice(field.raw);
        }
    }
    Some(Rewritten { header, end: headers.header_bytes().len() })
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

    fn rewritten(text: &str) -> Option<String> {
        let from = Address::parse("n@my.com").unwrap();
        let new = rewrite_from(text.as_bytes(), &from, ReplyTo::KeepOrAuthor)?;
        assert_eq!(new.end, Headers::parse(text.as_bytes()).header_bytes().len());
        Some(String::from_utf8(new.header).unwrap())
    }

    #[test]
    fn names_are_kept_and_authors_go_to_reply_to() {
        for (from, name) in [
            ("\"Admin\" <a@b.example>", "\"Admin\" "),
            ("x@other.example", "x "),
            ("<j.d@other.example>", "\"j.d\" "),
            ("=?utf-8?Q?B=C3=B6b,?= <a@b.example>", ""),
            ("=?utf-8?Q?B=C3=B6b?=\r\n =?utf-8?Q?_X?=\r\n <a@b.example>", "=?utf-8?Q?B=C3=B6b?=\r\n =?utf-8?Q?_X?= "),
            ("\"Doe, \\\"J\\\"\" <a@b.example>", "\"Doe, \\\"J\\\"\" "),
            ("Team: \"Doe, J\" <a@b.example>, c@d.example;", "\"Doe, J\" "),
            ("Ann <a@b.example>, Bob <c@d.example>", "Ann "),
            ("a@b.example <a@b.example>", "\"a@b.example\" "),
        ] {
            let found = rewritten(&format!("A: 1\r\nFROM: {from}\r\nB:\t2\r\n\r\nbody")).unwrap();
            let reply = if name.is_empty() { String::new() } else { format!("Reply-To: {from}\r\n") };
            assert_eq!(found, format!("A: 1\r\nFrom: {name}<n@my.com>\r\n{reply}B:\t2\r\n"), "{from}");
        }
    }

    #[test]
    fn what_needs_no_change_and_what_is_missing() {
        assert_eq!(rewritten("From: Me <N@My.com>\r\n\r\n"), None);
        assert_eq!(rewritten("To: a@b.example\r\n\r\n").unwrap(), "From: <n@my.com>\r\nTo: a@b.example\r\n");
        let kept = rewritten("Reply-To: r@b.example\r\nFrom: a@b.example\r\n\r\n").unwrap();
        assert_eq!(kept, "Reply-To: r@b.example\r\nFrom: a <n@my.com>\r\n");
        let twice = rewritten("From: n@my.com\r\nFrom: a@b.example\r\n\r\n").unwrap();
        assert_eq!(twice.matches("From:").count(), 1);
    }
}
