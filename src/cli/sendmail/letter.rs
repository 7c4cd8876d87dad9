//! From what a program wrote to a message with an envelope: recipients, and the fields that sendmail adds.

use super::options::Options;
use super::place::Place;
use super::{EX_DATAERR, EX_OSERR, EX_USAGE, Trouble};
use crate::cli::send::{header_text, random_name};
use crate::clock::{Clock, Millis, rfc5322};
use crate::intake::pickup::text::with_crlf;
use crate::message::header::{Field, HeaderError, Headers, mailboxes, unfold};
use crate::message::{Address, ReversePath};

/// Fields whose addresses may lack their domain.
const WITH_ADDRESSES: [&str; 11] = [
    "From",
    "Sender",
    "Reply-To",
    "To",
    "Cc",
    "Bcc",
    "Resent-From",
    "Resent-Sender",
    "Resent-To",
    "Resent-Cc",
    "Resent-Bcc",
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Letter {
    pub sender: ReversePath,
    pub recipients: Vec<Address>,
    /// CRLF lines.
    pub content: Vec<u8>,
}

impl Letter {
    pub(super) fn write(raw: Vec<u8>, options: &Options, place: &Place) -> Result<Letter, Trouble> {
        Letter::write_at(raw, options, place, Clock::System.now())
    }

    fn write_at(raw: Vec<u8>, options: &Options, place: &Place, now: Millis) -> Result<Letter, Trouble> {
        if raw.contains(&0) {
            return Err(Trouble::new(EX_DATAERR, "the message holds NUL bytes, which no mail may have"));
        }
        let content = with_crlf(without_mbox_line(&raw));
        let headers = Headers::parse(&content);
        headers.within_limits().map_err(|error| Trouble::new(EX_DATAERR, error.to_string()))?;
        let sender = sender(options, place)?;
        let recipients = recipients(&headers, options, place)?;
        let mut out = Vec::with_capacity(content.len() + 1024);
        for field in headers.fields() {
            let is_hidden = options.from_header && (field.is("Bcc") || field.is("Resent-Bcc"));
            if !is_hidden {
                out.extend_from_slice(&whole(field, place));
            }
        }
        add_missing(&mut out, &headers, (&sender, options, place), now)?;
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(headers.body());
        Ok(Letter { sender, recipients, content: out })
    }
}

/// The line before a message in a mailbox file.
fn without_mbox_line(raw: &[u8]) -> &[u8] {
    match raw.strip_prefix(b"From ") {
        Some(rest) => rest.iter().position(|b| *b == b'\n').and_then(|at| rest.get(at + 1..)).unwrap_or_default(),
        None => raw,
    }
}

/// The field with all its addresses complete.
fn whole(field: &Field<'_>, place: &Place) -> Vec<u8> {
    let has_addresses = WITH_ADDRESSES.iter().any(|name| field.is(name));
    match str::from_utf8(field.value) {
        Ok(value) if has_addresses => {
            let value = qualified(value, place.domain.as_str());
            [field.name, b":", value.as_bytes(), b"\r\n"].concat()
        }
        _ => field.raw.to_vec(),
    }
}

fn sender(options: &Options, place: &Place) -> Result<ReversePath, Trouble> {
    let given = options.sender.as_deref().unwrap_or(&place.user.login).trim();
    if given.is_empty() || given == "<>" {
        return Ok(ReversePath::Null);
    }
    match addresses(given, place).as_deref() {
        Ok([only]) => Ok(ReversePath::Address(only.clone())),
        Ok(_) => Err(Trouble::new(EX_USAGE, format!("the sender {given:?} is not one address"))),
        Err(error) => Err(Trouble::new(EX_USAGE, format!("the sender {given:?} is no address: {error}"))),
    }
}

fn recipients(headers: &Headers<'_>, options: &Options, place: &Place) -> Result<Vec<Address>, Trouble> {
    let mut all = Vec::new();
    for given in &options.recipients {
        let read = addresses(given, place);
        all.extend(read.map_err(|error| Trouble::new(EX_DATAERR, format!("{given:?} is no address: {error}")))?);
    }
    if options.from_header {
        // What is sent again goes to whom it is sent to now (RFC 5322 3.6.6).
        let again = ["Resent-To", "Resent-Cc", "Resent-Bcc"];
        let is_again = again.iter().any(|name| headers.get(name).is_some());
        let names = if is_again { again } else { ["To", "Cc", "Bcc"] };
        for field in headers.fields().iter().filter(|field| names.iter().any(|name| field.is(name))) {
            let read = match str::from_utf8(field.value).map(|value| addresses(value, place)) {
                Ok(Err(HeaderError::Empty)) => continue,
                Ok(Ok(read)) => read,
                Ok(Err(error)) => {
                    return Err(Trouble::new(EX_DATAERR, format!("{}: {error}", unfold(field.name))));
                }
                Err(_) => return Err(Trouble::new(EX_DATAERR, format!("{}: not UTF-8", unfold(field.name)))),
            };
            all.extend(read);
        }
    }
    let mut seen = std::collections::HashSet::new();
    all.retain(|address| seen.insert(address.clone()));
    match (all.is_empty(), options.from_header) {
        (false, _) => Ok(all),
        (true, true) => Err(Trouble::new(EX_USAGE, "To, Cc and Bcc name no recipient")),
        (true, false) => Err(Trouble::new(EX_USAGE, "name recipients, or give -t to take them from the header")),
    }
}

fn addresses(text: &str, place: &Place) -> Result<Vec<Address>, HeaderError> {
    let all = mailboxes(qualified(text, place.domain.as_str()).as_bytes())?;
    Ok(all.into_iter().map(|mailbox| mailbox.address).collect())
}

fn add_missing(
    out: &mut Vec<u8>,
    headers: &Headers<'_>,
    (sender, options, place): (&ReversePath, &Options, &Place),
    now: Millis,
) -> Result<(), Trouble> {
    let mut add = |name: &str, value: String| out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    if headers.get("from").is_none() {
        let address = match sender {
            ReversePath::Address(address) => address.to_string(),
            ReversePath::Null => format!("{}@{}", place.user.login, place.domain),
        };
        let name = options.full_name.as_ref().or(options.sender.is_none().then_some(&place.user.full_name));
        add("From", name.filter(|name| !name.trim().is_empty()).map_or(address.clone(), |name| named(name, &address)));
    }
    if headers.get("date").is_none() {
        add("Date", rfc5322(now));
    }
    if headers.get("message-id").is_none() {
        let random = random_name().map_err(|_| Trouble::new(EX_OSERR, "there are no random numbers"))?;
        add("Message-ID", format!("<{random}@{}>", place.domain));
    }
    Ok(())
}

fn named(name: &str, address: &str) -> String {
    let name = header_text(name);
    if name.starts_with("=?") || name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b' ') {
        return format!("{name} <{address}>");
    }
    format!("\"{}\" <{address}>", name.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A list of mailboxes in which each has a domain.
fn qualified(list: &str, domain: &str) -> String {
    let mut out = String::with_capacity(list.len() + 32);
    let mut mailbox = Partial::default();
    let mut chars = list.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                out.push(c);
                out.extend(chars.next());
                mailbox.ends(out.len());
                continue;
            }
            '"' if mailbox.depth == 0 => mailbox.quoted = !mailbox.quoted,
            _ if mailbox.quoted => {}
            '(' => mailbox.depth += 1,
            ')' => mailbox.depth = mailbox.depth.saturating_sub(1),
            _ if mailbox.depth > 0 => {}
            ',' | ';' if !mailbox.in_angle => std::mem::take(&mut mailbox).complete(&mut out, domain),
            // What stood there was the name of a group.
            ':' if !mailbox.in_angle => mailbox = Partial::default(),
            '<' => mailbox = Partial { in_angle: true, has_angle: true, ..Partial::default() },
            '>' => mailbox.in_angle = false,
            '@' => mailbox.has_domain = true,
            _ => {}
        }
        out.push(c);
        let is_part = !c.is_whitespace() && !matches!(c, '(' | ')' | '<' | '>' | ',' | ';' | ':') && mailbox.depth == 0;
        if is_part && (mailbox.in_angle || !mailbox.has_angle) {
            mailbox.ends(out.len());
        }
    }
    mailbox.complete(&mut out, domain);
    out
}

/// A mailbox as far as it is read.
#[derive(Default)]
struct Partial {
    quoted: bool,
    /// Of comments.
    depth: usize,
    in_angle: bool,
    has_angle: bool,
    has_domain: bool,
    /// Where its last character ended; 0: there was none.
    end: usize,
}

impl Partial {
    fn ends(&mut self, at: usize) {
        self.end = at;
    }

    fn complete(self, out: &mut String, domain: &str) {
        // A lone quote or comment that never ends is for the parser to refuse.
        if self.end > 0 && !self.has_domain && out.is_char_boundary(self.end) {
            out.insert_str(self.end, &format!("@{domain}"));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::place::User;
    use super::*;
    use crate::message::Domain;

    fn place() -> Place {
        Place {
            obstacle: None,
            server: String::new(),
            maildrop: "/nonexistent".into(),
            domain: Domain::parse("my.test").unwrap(),
            is_trusted: None,
            user: User { login: "ann".into(), full_name: "Ann Example".into() },
        }
    }

    fn written(raw: &str, options: Options) -> Result<Letter, Trouble> {
        Letter::write_at(raw.into(), &options, &place(), 1_795_300_017_000)
    }

    fn from_header() -> Options {
        Options { from_header: true, ..Options::default() }
    }

    fn to(letter: &Letter) -> Vec<String> {
        letter.recipients.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn short_addresses_get_a_domain() {
        for (list, wanted) in [
            ("root", "root@my.test"),
            (" root , b@x.test", " root@my.test , b@x.test"),
            ("Cron <root>", "Cron <root@my.test>"),
            ("\"A, @ B\" <a>, c", "\"A, @ B\" <a@my.test>, c@my.test"),
            ("a (at home @ night), b", "a@my.test (at home @ night), b@my.test"),
            ("friends: a, b@x.test;", "friends: a@my.test, b@x.test;"),
            ("undisclosed-recipients:;", "undisclosed-recipients:;"),
            ("\"a b\"", "\"a b\"@my.test"),
            ("<>", "<>"),
            ("", ""),
        ] {
            assert_eq!(qualified(list, "my.test"), wanted);
        }
    }

    #[test]
    fn recipients_come_from_the_header_and_bcc_goes() {
        let raw = "To: b@x.test\nCc: root\nBcc: c@x.test,\n d@x.test\nSubject: hi\n\nhello\n";
        let letter = written(raw, from_header()).unwrap();
        assert_eq!(to(&letter), ["b@x.test", "root@my.test", "c@x.test", "d@x.test"]);
        assert_eq!(letter.sender.to_string(), "ann@my.test");
        let text = String::from_utf8(letter.content).unwrap();
        assert!(
            text.starts_with("To: b@x.test\r\nCc: root@my.test\r\nSubject: hi\r\nFrom: Ann Example <ann@my.test>\r\n")
        );
        assert!(text.contains("\r\nDate: ") && text.contains("@my.test>\r\n\r\nhello\r\n"), "{text}");
        assert!(!text.contains("Bcc") && !text.contains("c@x.test"));
    }

    #[test]
    fn what_has_no_header_gets_one() {
        let options = Options { recipients: vec!["root".into()], sender: Some("<>".into()), ..Options::default() };
        let letter = written("just text\nmore: text\n", options).unwrap();
        assert!(letter.sender.is_null());
        let text = String::from_utf8(letter.content).unwrap();
        assert!(
            text.starts_with("From: ann@my.test\r\nDate: ") && text.ends_with("\r\n\r\njust text\r\nmore: text\r\n")
        );
        let options = Options { recipients: vec!["a, b@x.test".into()], ..Options::default() };
        let letter = written("From x Mon Jan 1\nFrom: a@x.test\nSubject: s\nno field\n", options).unwrap();
        assert_eq!(to(&letter), ["a@my.test", "b@x.test"]);
        assert!(letter.content.starts_with(b"From: a@x.test\r\nSubject: s\r\nDate: "));
        assert!(letter.content.ends_with(b"\r\n\r\nno field\r\n"));
    }

    #[test]
    fn names_are_quoted_or_encoded() {
        for (name, from) in [
            ("Ann", "From: Ann <a@x.test>\r\n"),
            ("Example, Ann", "From: \"Example, Ann\" <a@x.test>\r\n"),
            ("Änn\r\nBcc: x@y.test", "From: =?utf-8?B?"),
        ] {
            let options = Options {
                recipients: vec!["b@x.test".into()],
                sender: Some("a@x.test".into()),
                full_name: Some(name.into()),
                ..Options::default()
            };
            let text = String::from_utf8(written("\nhi\n", options).unwrap().content).unwrap();
            assert!(text.starts_with(from), "{text}");
            assert!(!text.contains("\r\nBcc"));
        }
    }

    #[test]
    fn without_a_recipient_it_is_not_sent() {
        assert_eq!(written("Subject: x\n\n", from_header()).unwrap_err().status, EX_USAGE);
        assert_eq!(written("Subject: x\n\n", Options::default()).unwrap_err().status, EX_USAGE);
        assert_eq!(written("To: a b c\n\n", from_header()).unwrap_err().status, EX_DATAERR);
        assert_eq!(written("To: a@x.test\n\n\0", from_header()).unwrap_err().status, EX_DATAERR);
    }
}
