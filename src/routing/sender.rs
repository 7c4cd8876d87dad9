//! Who a message is from in the eyes of the loop guard, whether a machine wrote it, and what makes
//! two messages the same.
//!
//! These are guesses made to stop loops: nothing here proves an identity, nothing here answers.

use std::borrow::Cow;

use aws_lc_rs::digest;
use mail_parser::decoders::html::html_to_text;

use crate::message::header::{self, Headers};
use crate::message::mime;
use crate::message::{Address, Domain, ReversePath};

/// Bytes of a body that are looked at for its fingerprint, before decoding.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Letters of the decoded text that go into the fingerprint.
const TEXT_CHARS_MAX: usize = 4096;
/// Prefixes of a subject that are taken off, one after the other.
const PREFIXES_MAX: usize = 10;
/// What people and machines put before a subject when they answer or pass it on.
const PREFIXES: [&str; 14] = [
    "re:",
    "fwd:",
    "fw:",
    "aw:",
    "wg:",
    "sv:",
    "antw:",
    "auto:",
    "autoreply:",
    "auto-reply:",
    "automatic reply:",
    "automatische antwort:",
    "out of office:",
    "abwesend:",
];

/// Those of them that only machines put there.
const ANSWERS: [&str; 7] =
    ["auto:", "autoreply:", "auto-reply:", "automatic reply:", "automatische antwort:", "out of office:", "abwesend:"];

/// The one a message is counted for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// As it is written; none if the message names nobody, or several.
    pub address: Option<Address>,
    /// Lower case, without a `+tag`; `<>` for nobody.
    pub key: String,
}

/// Everybody whom a message says it is from, as written: From, MAIL FROM, and what is wrapped in that.
pub fn names(headers: &Headers<'_>, mail_from: &ReversePath) -> Vec<Address> {
    let authors = headers.all("From").filter_map(|field| header::mailboxes(field.value).ok()).flatten();
    let envelope = mail_from.address().into_iter().flat_map(|address| [address.clone(), unwrapped(address)]);
    authors.map(|mailbox| mailbox.address).chain(envelope).collect()
}

/// The header From if it names one mailbox, else MAIL FROM without what return paths wrap around it.
pub fn sender(headers: &Headers<'_>, mail_from: &ReversePath) -> Sender {
    let address = headers.author().ok().map(|mailbox| mailbox.address).or_else(|| mail_from.address().map(unwrapped));
    let key = address.as_ref().map_or_else(|| "<>".to_owned(), counting_key);
    Sender { address, key }
}

/// `Bob+tag@Example.com` → `bob@example.com`.
pub fn counting_key(address: &Address) -> String {
    let local = address.lookup_local();
    let base = local.split_once('+').map(|(base, _)| base).filter(|base| !base.is_empty());
    format!("{}@{}", base.unwrap_or(&local), address.domain())
}

/// The address inside a BATV (`prvs=…=`) or SRS (`SRS0=…`, `SRS1=…`) return path. What cannot be
/// unwrapped stays as it is. `bounce+token@` needs no unwrapping, its tag is not counted.
pub fn unwrapped(address: &Address) -> Address {
    let local = address.local();
    let inner = match prefix_of(local, &["prvs=", "srs0", "srs1"]) {
        Some(("prvs=", rest)) => rest.split_once('=').and_then(|(_, local)| with(local, address.domain())),
        Some(("srs0", rest)) => srs0(rest),
        // SRS1=hash=first-forwarder==hash=timestamp=domain=local
        Some((_, rest)) => rest.split_once("==").and_then(|(_, tail)| original(tail)),
        None => None,
    };
    inner.unwrap_or_else(|| address.clone())
}

fn prefix_of<'p, 't>(text: &'t str, prefixes: &[&'p str]) -> Option<(&'p str, &'t str)> {
    prefixes.iter().find_map(|prefix| {
        let (head, rest) = text.split_at_checked(prefix.len())?;
        head.eq_ignore_ascii_case(prefix).then_some((*prefix, rest))
    })
}

/// `=hash=timestamp=domain=local`; the first separator may be `+` or `-` too.
fn srs0(rest: &str) -> Option<Address> {
    original(rest.strip_prefix(['=', '+', '-'])?)
}

fn original(tail: &str) -> Option<Address> {
    let mut parts = tail.splitn(4, '=').skip(2);
    let domain = Domain::parse(parts.next()?).ok()?;
    with(parts.next()?, &domain)
}

fn with(local: &str, domain: &Domain) -> Option<Address> {
    Address::new(local, domain.clone()).ok()
}

/// What says that no person wrote this to us: the field's name, for the story. None for mail that
/// looks personal. X-Auto-Response-Suppress is a wish, and no sign: people's mail has it.
pub fn automatic(headers: &Headers<'_>, mail_from: &ReversePath) -> Option<&'static str> {
    if mail_from.is_null() {
        return Some("the null sender");
    }
    let word = |name: &str| headers.all(name).map(|field| keyword(&field.text())).collect::<Vec<_>>();
    // RFC 3834 5: any keyword but "no".
    if word("Auto-Submitted").iter().any(|keyword| keyword != "no") {
        return Some("Auto-Submitted");
    }
    let bulk = ["bulk", "junk", "list", "auto_reply"];
    if word("Precedence").iter().any(|keyword| bulk.contains(&keyword.as_str())) {
        return Some("Precedence");
    }
    let signs = ["X-Autoreply", "X-Autorespond", "X-AutoReply-From", "List-Id", "List-Unsubscribe", "Feedback-ID"];
    signs.into_iter().find(|name| headers.get(name).is_some())
}

/// `Auto-Generated (cron); x=y` → `auto-generated`.
fn keyword(text: &str) -> String {
    text.split([';', '(', ' ']).next().unwrap_or_default().to_ascii_lowercase()
}

/// What is the same in two copies of one automatic message to one address, even if a machine stamps
/// times and numbers into them: sender, recipient, subject without prefixes, and the beginning of
/// the text without blanks and digits.
pub fn fingerprint(headers: &Headers<'_>, content: &[u8], sender: &str, recipient: &Address) -> [u8; 16] {
    let mut context = digest::Context::new(&digest::SHA256);
    let subject = headers.get("Subject").map(|field| field.text()).unwrap_or_default();
    for part in [sender, &recipient.lookup_key(), bare_subject(&subject).as_str(), &letters(headers, content)] {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    shortened(context.finish())
}

/// What is the same in two copies of one message, whatever fields the way has added: its id, the author's
/// fields and all of the body that is at hand.
pub fn copy_hash(headers: &Headers<'_>, message_id: &str) -> [u8; 16] {
    let mut context = digest::Context::new(&digest::SHA256);
    let fields =
        ["Date", "From", "Subject", "List-Id"].map(|name| headers.get(name).map_or(&b""[..], |field| field.value));
    for part in fields.into_iter().chain([message_id.as_bytes(), headers.body()]) {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    shortened(context.finish())
}

/// A short name for a Message-ID of any length.
pub fn message_id_hash(id: &str) -> [u8; 16] {
    shortened(digest::digest(&digest::SHA256, id.as_bytes()))
}

fn shortened(digest: digest::Digest) -> [u8; 16] {
    let mut short = [0; 16];
    short.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    short
}

/// Does a subject begin as those of automatic answers do? A guess.
pub fn is_answer_subject(subject: &str) -> bool {
    let lower = subject.to_lowercase();
    ANSWERS.iter().any(|prefix| lower.trim_start().starts_with(prefix))
}

fn bare_subject(subject: &str) -> String {
    let lower = subject.to_lowercase();
    let mut rest = lower.trim();
    for _ in 0..PREFIXES_MAX {
        match PREFIXES.iter().find_map(|prefix| rest.strip_prefix(prefix)) {
            Some(after) => rest = after.trim_start(),
            None => break,
        }
    }
    rest.chars().filter(|c| !c.is_whitespace() && !c.is_numeric()).collect()
}

/// The first letters of the decoded text; of the raw body where there is no text to be found.
fn letters(headers: &Headers<'_>, content: &[u8]) -> String {
    let body = headers.body();
    let head_len = content.len() - body.len();
    let seen = &content[..head_len + body.len().min(BODY_BYTES_MAX)];
    // Not by a parser that goes down into whatever it is given.
    let read = mime::read(seen).ok();
    let text = read.and_then(|content| content.text.or_else(|| content.html.map(|html| html_to_text(&html))));
    let text = text.map_or_else(|| String::from_utf8_lossy(&body[..body.len().min(BODY_BYTES_MAX)]), Cow::Owned);
    text.chars().filter(|c| !c.is_whitespace() && !c.is_numeric()).take(TEXT_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn path(text: &str) -> ReversePath {
        if text.is_empty() { ReversePath::Null } else { ReversePath::Address(Address::parse(text).unwrap()) }
    }

    #[test]
    fn counts_for_the_author_else_for_the_return_path() {
        for (header, mail_from, key) in [
            ("From: \"Bob\" <Bob+x@Far.Example>\r\n", "other@far.example", "bob@far.example"),
            ("From: a@b.example, c@d.example\r\n", "Env@far.example", "env@far.example"),
            ("", "prvs=1234abcdef=bob@far.example", "bob@far.example"),
            ("", "SRS0=abcd=XX=orig.example=joe@far.example", "joe@orig.example"),
            ("", "srs0+abcd=XX=orig.example=joe=x@far.example", "joe=x@orig.example"),
            ("", "SRS1=hh=first.example==abcd=XX=orig.example=joe@far.example", "joe@orig.example"),
            ("", "SRS0=broken@far.example", "srs0=broken@far.example"),
            ("", "bounces+alice=our.example@far.example", "bounces@far.example"),
            ("", "+x@far.example", "+x@far.example"),
            ("", "", "<>"),
        ] {
            let content = format!("{header}\r\n");
            assert_eq!(sender(&Headers::parse(content.as_bytes()), &path(mail_from)).key, key, "{header}{mail_from}");
        }
    }

    /// The classification that tests/vectors/autoreply-loop expects, for the signals that this
    /// guard takes. The others there concern answers (which we do not send) or hops.
    #[test]
    fn knows_automatic_mail() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/autoreply-loop");
        let expected: serde_json::Value =
            serde_json::from_slice(&std::fs::read(format!("{folder}/expected.json")).unwrap()).unwrap();
        let only_for_answers = [
            "x-auto-suppress",
            "x-loop",
            "mailer-daemon-sender",
            "postmaster-sender",
            "owner-sender",
            "request-sender",
            "noreply-sender",
            "bounces-verp",
            "not-to-me",
            "subject-auto-de",
            "loop-received-60",
            "loop-received-own-5",
            "delivered-to-self",
        ];
        let mut automatic_seen = 0;
        for (name, facts) in expected.as_object().unwrap() {
            let content = std::fs::read(format!("{folder}/{name}.eml")).unwrap();
            let mail_from = path(facts["mail_from"].as_str().unwrap());
            let found = automatic(&Headers::parse(&content), &mail_from);
            let wanted = !facts["may_auto_reply"].as_bool().unwrap() && !only_for_answers.contains(&name.as_str());
            assert_eq!(found.is_some(), wanted, "{name}: {found:?}");
            automatic_seen += usize::from(wanted);
        }
        assert!(automatic_seen >= 11, "{automatic_seen}");
    }

    #[test]
    fn fingerprints_see_through_stamps_prefixes_and_encodings() {
        let print = |content: &str, recipient: &str| {
            let recipient = Address::parse(recipient).unwrap();
            fingerprint(&Headers::parse(content.as_bytes()), content.as_bytes(), "bob@far.example", &recipient)
        };
        let plain = print("Subject: Away until 12.\r\n\r\nI am away. It is 10:31 now.\r\n", "a@our.example");
        let again = print("Subject: AW: Re: away until 9.\r\n\r\nI am away.\r\nIt is 8:05 now.\r\n", "A@our.example");
        let encoded = print(
            "Subject: Away until 13.\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\nContent-Transfer-Encoding: base64\r\n\r\nSSBhbSBhd2F5LiBJdCBpcyAxMDozMSBub3cuDQo=\r\n",
            "a@our.example",
        );
        assert_eq!(plain, again);
        assert_eq!(plain, encoded);
        assert_ne!(plain, print("Subject: Away until 12.\r\n\r\nI am back.\r\n", "a@our.example"));
        assert_ne!(plain, print("Subject: Away until 12.\r\n\r\nI am away. It is 10:31 now.\r\n", "b@our.example"));
    }

    #[test]
    fn a_fingerprint_of_a_bomb_is_only_a_fingerprint() {
        let recipient = Address::parse("a@our.example").unwrap();
        let nested = "Content-Type: message/rfc822\r\n\r\n".repeat(20_000);
        let boxes: String =
            (0..20_000).map(|n| format!("Content-Type: multipart/mixed; boundary=b{n}\r\n\r\n--b{n}\r\n")).collect();
        let mut prints = Vec::new();
        for bomb in [nested, boxes] {
            let content = format!("MIME-Version: 1.0\r\nSubject: boom\r\n{bomb}");
            prints.push(fingerprint(&Headers::parse(content.as_bytes()), content.as_bytes(), "x", &recipient));
        }
        assert_ne!(prints[0], prints[1]);
    }
}
