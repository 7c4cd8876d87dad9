//! Who a message says it is from, and whether it may: another address in From where it may not, the name
//! kept, the author kept in Reply-To, or the catchall put there.
//!
//! Works on the bytes of the header fields. A name is kept as it was written, encoded words included.
//! Left out: which From may pass where (`routing::outbound`).

use crate::config::{Config, ForcedFrom, ReplyTo};
use crate::message::header::{self, Field, Headers, mailboxes};
use crate::message::{Address, Draft};
use crate::routing::outbound;

/// Bytes of a line after which the address goes on the next (RFC 5322 2.1.1: should).
const LINE_BYTES_GOOD: usize = 78;

/// The author of a draft.
#[derive(Debug)]
pub struct Author<'c> {
    written: Option<Address>,
    /// What the account has instead, in any case.
    forced: Option<&'c ForcedFrom>,
    /// The address that takes the place of either where it may not pass.
    instead: Option<&'c Address>,
}

/// The fields that take the place of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    pub by: Vec<u8>,
    /// Which fields go: From, the signatures over it, which hold no more, and a Reply-To where answers
    /// are to go elsewhere.
    pub fields: Vec<usize>,
}

impl<'c> Author<'c> {
    /// `stream`: by which the message leaves, if a copy of it does. All copies say the same.
    pub fn of(config: &'c Config, draft: &Draft, headers: &Headers<'_>, stream: Option<&String>) -> Author<'c> {
        let envelope = &draft.envelope.mail_from;
        let account = draft.origin.account.as_ref().and_then(|name| config.accounts.get(name));
        let forced = account.and_then(|account| account.force_from.as_ref());
        let written = match headers.author() {
            _ if forced.is_some() => None,
            Ok(author) => Some(author.address),
            // Our senders' messages get a From then (RFC 6409 8.1).
            Err(_) if headers.get("from").is_none() => envelope.address().cloned(),
            Err(_) => None,
        };
        let mut author = Author { written, forced, instead: None };
        if let Some(stream) = stream {
            author.instead = outbound::choose(config, author.shown(), envelope, config.pinned(stream)).rewrite;
        }
        author
    }

    /// What From says in the end; none if that is not one mailbox.
    pub fn shown(&self) -> Option<&Address> {
        self.instead.or(self.forced.map(|forced| &forced.address)).or(self.written.as_ref())
    }

    pub fn is_replaced(&self) -> bool {
        self.instead.is_some() || self.forced.is_some()
    }

    /// None if From stays.
    pub fn replaced(&self, headers: &Headers<'_>, reply_to: &ReplyTo) -> Option<Replaced> {
        let by = match (self.instead, self.forced) {
            (Some(from), Some(forced)) => rewritten(Some(forced.text.as_bytes()), headers, from, reply_to),
            (Some(from), None) => rewritten(headers.get("From").map(|field| field.value), headers, from, reply_to),
            (None, Some(forced)) => header::field("From", &forced.text),
            (None, None) => return None,
        };
        let answers_go_on = self.instead.is_some() && matches!(reply_to, ReplyTo::Catchall(_));
        let goes =
            |field: &Field<'_>| field.is("From") || field.is("DKIM-Signature") || answers_go_on && field.is("Reply-To");
        let numbered = headers.fields().iter().enumerate();
        let fields = numbered.filter(|(_, field)| goes(field)).map(|(number, _)| number).collect();
        Some(Replaced { by, fields })
    }
}

/// `author`: the value of From as it would be.
fn rewritten(author: Option<&[u8]>, headers: &Headers<'_>, from: &Address, reply_to: &ReplyTo) -> Vec<u8> {
    let parsed = author.and_then(|value| mailboxes(value).ok()).unwrap_or_default();
    let mut name = Vec::new();
    if let (Some(value), Some(first)) = (author, parsed.first()) {
        name = match raw_name(value) {
            Some(raw) => raw.to_vec(),
            None if first.name.is_empty() => quoted(first.address.local()),
            None => quoted(&first.name),
        };
    }
    let mut fields = line(&name, from);
    let answers = match (reply_to, author) {
        (ReplyTo::Catchall(address), _) => Some(address.to_string().into_bytes()),
        (ReplyTo::KeepOrAuthor, Some(value)) if headers.get("Reply-To").is_none() && !parsed.is_empty() => {
            Some(value.trim_ascii_start().to_vec())
        }
        (ReplyTo::KeepOrAuthor | ReplyTo::Keep, _) => None,
    };
    if let Some(answers) = answers {
        fields.extend_from_slice(b"Reply-To: ");
        fields.extend_from_slice(&answers);
        fields.extend_from_slice(b"\r\n");
    }
    fields
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

    fn shown(text: &str, forced: Option<&ForcedFrom>) -> String {
        let from = Address::parse("n@my.com").unwrap();
        let headers = Headers::parse(text.as_bytes());
        let author = Author { written: None, forced, instead: Some(&from) };
        let new = author.replaced(&headers, &ReplyTo::KeepOrAuthor).unwrap();
        for (number, field) in headers.fields().iter().enumerate() {
            assert_eq!(new.fields.contains(&number), field.is("from") || field.is("dkim-signature"));
        }
        String::from_utf8(new.by).unwrap()
    }

    fn rewritten(text: &str) -> String {
        shown(text, None)
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
    fn answers_to_the_catchall_take_the_place_of_others() {
        let from = Address::parse("n@my.com").unwrap();
        let catchall = ReplyTo::Catchall(Address::parse("catchall@my.com").unwrap());
        let text = "Reply-To: r@b.example\r\nFrom: Ann <a@b.example>\r\nreply-to: s@b.example\r\n\r\n";
        let headers = Headers::parse(text.as_bytes());
        let new = Author { written: None, forced: None, instead: Some(&from) }.replaced(&headers, &catchall).unwrap();
        assert_eq!(String::from_utf8(new.by).unwrap(), "From: Ann <n@my.com>\r\nReply-To: catchall@my.com\r\n");
        assert_eq!(new.fields, [0, 1, 2]);
        // What the account has in any case is no rewrite: answers go where they are asked for.
        let forced = ForcedFrom { text: "Shop <s@my.com>".into(), address: Address::parse("s@my.com").unwrap() };
        let author = Author { written: None, forced: Some(&forced), instead: None };
        let new = author.replaced(&headers, &catchall).unwrap();
        assert_eq!((new.by.as_slice(), new.fields.as_slice()), (&b"From: Shop <s@my.com>\r\n"[..], &[1][..]));
    }

    #[test]
    fn what_is_missing_is_left_out() {
        assert_eq!(rewritten("To: a@b.example\r\n\r\n"), "From: <n@my.com>\r\n");
        let kept = rewritten("Reply-To: r@b.example\r\nFrom: a@b.example\r\n\r\n");
        assert_eq!(kept, "From: a <n@my.com>\r\n");
        let twice = rewritten("From: n@my.com\r\nFrom: a@b.example\r\n\r\n");
        assert_eq!(twice, "From: n <n@my.com>\r\nReply-To: n@my.com\r\n");
    }

    #[test]
    fn what_the_account_says_counts_as_written() {
        let forced =
            ForcedFrom { text: "Shop <shop@b.example>".into(), address: Address::parse("shop@b.example").unwrap() };
        let found = shown("From: Ann <a@c.example>\r\n\r\n", Some(&forced));
        assert_eq!(found, "From: Shop <n@my.com>\r\nReply-To: Shop <shop@b.example>\r\n");
    }
}
