//! The JSON of an `inbound.received` event.
//!
//! What depends on the recipient (`envelope`, `matched`) is small and stands first; all the rest is
//! rendered once for a message and shared by its recipients, so a message for ten people is held
//! once. A message too complex to take apart keeps its header fields and comes whole, as base64,
//! with the reason in `unparsed`.
//!
//! Everything but `envelope.remote_ip`, `matched` and `auth` is what the sender wrote: a consumer must
//! not trust `from` unless `auth.dmarc.result` is `pass`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Serialize, Serializer};

use crate::clock::rfc3339;
use crate::message::header::{Headers, message_id, unfold};
use crate::message::mime::{self, Content, Part};
use crate::message::{Address, Findings, ReversePath};
use crate::queue::record::{Answered, Message, Recipient};

/// How a recipient is known in webhooks: the same in every attempt, for receivers that drop copies.
pub fn event_id(message: &Message, number: u32) -> String {
    format!("msg_{}_{number}", message.id)
}

#[derive(Serialize)]
struct Event<'a> {
    r#type: &'static str,
    id: &'a str,
    created_at: String,
    data: Head<'a>,
}

#[derive(Serialize)]
struct Head<'a> {
    envelope: Envelope<'a>,
    matched: Matched<'a>,
}

#[derive(Serialize)]
struct Envelope<'a> {
    /// Null for the null sender.
    mail_from: Option<String>,
    /// As in RCPT. A list because other services have one; always one address.
    rcpt_to: [String; 1],
    remote_ip: Option<String>,
    helo: Option<&'a str>,
    tls: Option<&'a str>,
}

#[derive(Serialize)]
struct Matched<'a> {
    domain: &'a str,
    /// The address it came in for, without the subaddress.
    alias: String,
    subaddress: Option<&'a str>,
    target: &'a str,
    /// What the named groups of a pattern alias have found.
    groups: &'a BTreeMap<String, String>,
    /// The message of ours that it answers, and whose that was. As far as the sender is to be believed.
    answers: Option<&'a Answered>,
    /// False: a machine wrote it, or a list; nothing automatic may answer it (RFC 3834 2).
    may_answer: bool,
}

/// What is known of a recipient beside its record.
pub struct Known<'a> {
    /// What sets off a subaddress in its domain.
    pub separator: Option<char>,
    pub target: &'a str,
    pub groups: BTreeMap<String, String>,
    pub may_answer: bool,
}

/// The event up to and with `matched`; the rest of `data` is [`shared`], and [`TAIL`] ends it.
pub fn head(message: &Message, id: &str, recipient: &Recipient, known: &Known<'_>) -> Vec<u8> {
    let Known { separator, target, groups, may_answer } = known;
    let address = &recipient.address;
    let peer = message.origin.peer.as_ref();
    let (alias, subaddress) = matched(address, *separator);
    let event = Event {
        r#type: "inbound.received",
        id,
        created_at: rfc3339(message.received_at),
        data: Head {
            envelope: Envelope {
                mail_from: match &message.mail_from {
                    ReversePath::Null => None,
                    ReversePath::Address(address) => Some(address.to_string()),
                },
                rcpt_to: [recipient.alias.as_ref().unwrap_or(address).to_string()],
                remote_ip: peer.map(|peer| peer.ip.to_string()),
                helo: peer.map(|peer| peer.helo.as_str()),
                tls: peer.and_then(|peer| peer.tls.as_deref()),
            },
            matched: Matched {
                domain: address.domain().as_str(),
                alias,
                subaddress,
                target,
                groups,
                answers: message.answers.as_ref(),
                may_answer: *may_answer,
            },
        },
    };
    let mut json = serde_json::to_vec(&event).unwrap_or_default();
    // Two braces are opened again by what follows.
    json.truncate(json.len().saturating_sub(2));
    json.push(b',');
    json
}

/// The address without its subaddress, and that.
pub fn matched(address: &Address, separator: Option<char>) -> (String, Option<&str>) {
    let (local, subaddress) = match separator.and_then(|separator| address.local().split_once(separator)) {
        Some((local, detail)) if !local.is_empty() && !address.local().starts_with('"') => (local, Some(detail)),
        _ => (address.local(), None),
    };
    (format!("{local}@{}", address.domain()), subaddress)
}

/// Closes the event; `data` has been closed by [`shared`].
pub const TAIL: &[u8] = b"}";

#[derive(Serialize)]
struct Shared<'a> {
    from: Option<Mailbox>,
    to: Vec<Mailbox>,
    cc: Vec<Mailbox>,
    reply_to: Vec<Mailbox>,
    subject: Option<String>,
    date: Option<String>,
    message_id: Option<String>,
    in_reply_to: Option<String>,
    references: Vec<String>,
    headers: Vec<(Cow<'a, str>, String)>,
    text: Option<String>,
    html: Option<String>,
    attachments: Vec<Attachment<'a>>,
    auth: Option<&'a Findings>,
    r#loop: Loop,
    raw: Raw<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unparsed: Option<String>,
}

#[derive(Serialize)]
struct Mailbox {
    address: String,
    name: String,
}

#[derive(Serialize)]
struct Attachment<'a> {
    filename: Option<String>,
    content_type: String,
    /// Bytes, decoded.
    size: usize,
    content_id: Option<String>,
    disposition: Option<String>,
    sha256: String,
    #[serde(serialize_with = "base64")]
    content: Cow<'a, [u8]>,
}

#[derive(Serialize)]
struct Loop {
    /// Received fields, ours included.
    hops: usize,
    /// The word in Auto-Submitted (RFC 3834 5).
    auto_submitted: Option<String>,
}

#[derive(Serialize)]
struct Raw<'a> {
    /// Bytes.
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "base64_option")]
    base64: Option<&'a [u8]>,
}

/// The members of `data` behind `matched`, with the brace that ends `data`. `unparsed`: do not even
/// try to take the message apart, for this reason.
pub fn shared(message: &Message, raw: &[u8], unparsed: Option<String>) -> Bytes {
    let headers = Headers::parse(raw);
    let parsed = match unparsed {
        Some(reason) => Err(reason),
        None => mime::read(raw).map_err(|reason| format!("the message comes as it is, because {reason}")),
    };
    let (content, unparsed) = match parsed {
        Ok(content) => (content, None),
        Err(reason) => (Content::default(), Some(reason)),
    };
    // Too many or too long fields: none is shown rather than some.
    let nothing = Headers::parse(b"");
    let shown = if headers.within_limits().is_ok() { &headers } else { &nothing };
    let first = |name: &str| shown.get(name).map(|field| field.value);
    let auto_submitted = first("Auto-Submitted").map(unfold);
    let shared = Shared {
        from: mailboxes(shown.get("From").into_iter().map(|field| field.value)).into_iter().next(),
        to: mailboxes(shown.all("To").map(|field| field.value)),
        cc: mailboxes(shown.all("Cc").map(|field| field.value)),
        reply_to: mailboxes(shown.all("Reply-To").map(|field| field.value)),
        subject: first("Subject").map(mime::decode_words),
        date: first("Date").and_then(mime::date),
        message_id: first("Message-ID").and_then(message_id),
        in_reply_to: first("In-Reply-To").and_then(|value| mime::ids(value).into_iter().next()),
        references: first("References").map(mime::ids).unwrap_or_default(),
        headers: shown.fields().iter().map(|f| (String::from_utf8_lossy(f.name), f.text())).collect(),
        text: content.text,
        html: content.html,
        attachments: content.attachments.into_iter().map(attachment).collect(),
        auth: message.findings.as_ref(),
        r#loop: Loop {
            hops: shown.all("Received").count(),
            auto_submitted: auto_submitted.map(|v| v.split(';').next().unwrap_or_default().trim().to_lowercase()),
        },
        raw: Raw { size: raw.len(), base64: unparsed.is_some().then_some(raw) },
        unparsed,
    };
    // Serializing these types into memory cannot fail: no map has keys that are not strings.
    let json = Bytes::from(serde_json::to_vec(&shared).unwrap_or_else(|_| b"{}".to_vec()));
    json.slice(1..)
}

fn mailboxes<'a>(values: impl Iterator<Item = &'a [u8]>) -> Vec<Mailbox> {
    let shown = values.flat_map(mime::shown_mailboxes);
    shown.map(|one| Mailbox { address: one.address, name: one.name }).collect()
}

fn attachment(part: Part<'_>) -> Attachment<'_> {
    let content = part.decoded();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &content);
    Attachment {
        filename: part.filename,
        content_type: part.content_type,
        size: content.len(),
        content_id: part.content_id,
        disposition: part.disposition,
        sha256: digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect(),
        content,
    }
}

/// Straight into the JSON, without a copy of its own.
fn base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&Base64Display::new(bytes, &STANDARD))
}

fn base64_option<S: Serializer>(bytes: &Option<&[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    base64(bytes.unwrap_or_default(), serializer)
}
