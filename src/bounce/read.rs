//! Reading what comes back: delivery status notifications, complaints, and bounces that say what they
//! mean only to people.
//!
//! In this order: a `message/delivery-status` (or its international form, RFC 6533), every recipient
//! in it; a feedback report (ARF, RFC 5965); then, only of mail from the null sender, `X-Failed-Recipients`
//! and the words of the text. Read receipts (RFC 8098) and automatic answers are neither.
//!
//! Nothing in here is believed: that a report is about mail of ours is for the caller to prove. It never
//! recurses and never panics; all that is looked at, and all that is given, has a bound.

mod original;
mod status;
mod text;

use crate::message::Address;
use std::borrow::Cow;

use crate::message::header::{self, Headers};
use crate::message::mime::{self, Part};

use super::classify::Class;

/// Recipients of one report.
pub const RECIPIENTS_MAX: usize = 100;
/// Bytes of one part that are looked at.
const PART_BYTES_MAX: usize = 256 * 1024;
/// Characters that are kept of what the far end said.
const DIAGNOSTIC_CHARS_MAX: usize = 500;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    Bounce(Bounce),
    Complaint(Complaint),
}

/// What has become of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounce {
    /// Never empty.
    pub recipients: Vec<Reported>,
    pub original: Original,
}

/// What became of one recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// As the sender wrote it (Original-Recipient).
    pub original: Option<Address>,
    /// Where it was when it ended (Final-Recipient, or what a text names).
    pub last: Option<Address>,
    pub action: Action,
    /// `5.1.1`; empty if the report has none.
    pub status: String,
    pub class: Class,
    /// What the far end said, shortened.
    pub diagnostic: String,
    /// The server that refused it, if it is named.
    pub host: String,
}

impl Reported {
    /// The address that the sender is likely to know.
    pub fn address(&self) -> Option<&Address> {
        self.original.as_ref().or(self.last.as_ref())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Failed,
    /// Still tried.
    Delayed,
    /// Delivered, relayed or expanded.
    Done,
}

/// Somebody has called our mail unwanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// `abuse`, `fraud` …, lower-case.
    pub kind: String,
    /// Who got it, where the report tells.
    pub recipient: Option<Address>,
    /// The program that wrote the report.
    pub agent: String,
    pub original: Original,
}

/// By what the message is known that came back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Original {
    /// Without brackets, likeliest first.
    pub message_ids: Vec<String>,
    /// Original-Envelope-Id (RFC 3464 2.2.1).
    pub envelope_id: Option<String>,
    /// Its envelope sender, where the report shows it.
    pub return_path: Option<Address>,
    /// The mailboxes of its To field.
    pub to: Vec<Address>,
}

/// Reads a message that came back. `is_null`: from the null sender. None: it is something else.
pub fn read(content: &[u8], is_null: bool) -> Option<Report> {
    let headers = Headers::parse(content);
    let parts = mime::parts(content).ok()?;
    let original = original::find(&headers, &parts);
    if let Some(bounce) = status::read(&parts, &original) {
        return Some(Report::Bounce(bounce));
    }
    if let Some(part) = parts.iter().find(|part| part.content_type == "message/feedback-report") {
        return status::complaint(part, original).map(Report::Complaint);
    }
    if !is_null || parts.iter().any(|part| part.content_type.ends_with("disposition-notification")) {
        return None;
    }
    text::read(&headers, &parts, original).map(Report::Bounce)
}

/// Can this be a complaint, by its header alone?
pub fn may_be_complaint(headers: &Headers<'_>) -> bool {
    let kind = headers.get("content-type").map(|field| header::unfold(field.value).to_ascii_lowercase());
    kind.is_some_and(|kind| kind.contains("feedback-report"))
}

/// The beginning of a part, without its transfer encoding, with line ends as they are.
fn decoded(part: &Part<'_>) -> String {
    let body = part.body.get(..PART_BYTES_MAX).unwrap_or(part.body);
    String::from_utf8_lossy(&Part { body, ..part.clone() }.decoded()).into_owned()
}

/// On one line, without controls, not too long.
fn shorten(text: &str) -> String {
    let words: Vec<&str> =
        text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|w| !w.is_empty()).collect();
    words.join(" ").chars().take(DIAGNOSTIC_CHARS_MAX).collect()
}

/// An address as reports write it, with or without brackets.
fn address(text: &str) -> Option<Address> {
    let text = text.trim();
    let inner = text.strip_prefix('<').and_then(|rest| rest.split('>').next()).unwrap_or(text);
    Address::parse(&embedded(inner.trim())).ok()
}

/// Characters beyond ASCII as RFC 6533 3 writes them where only ASCII may stand: `\x{E9}`.
fn embedded(text: &str) -> Cow<'_, str> {
    let mut pieces = text.split("\\x{");
    let first = pieces.next().unwrap_or_default();
    let mut decoded = first.to_owned();
    for piece in pieces {
        let point =
            piece.split_once('}').and_then(|(digits, rest)| Some((u32::from_str_radix(digits, 16).ok()?, rest)));
        let Some((Some(c), rest)) = point.map(|(point, rest)| (char::from_u32(point), rest)) else {
            return Cow::Borrowed(text);
        };
        decoded.push(c);
        decoded.push_str(rest);
    }
    Cow::Owned(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_every_dress() {
        for (text, wanted) in [
            ("a@b.example", Some("a@b.example")),
            (" <a@b.example> (Ann)", Some("a@b.example")),
            ("r\\x{E9}mi@b.example", Some("r\u{e9}mi@b.example")),
            ("<r\u{e9}mi@b.example>", Some("r\u{e9}mi@b.example")),
            ("r\\x{110000}@b.example", None),
            ("r\\x{E9@b.example", None),
            ("/S=a/C=GB/", None),
            ("", None),
        ] {
            assert_eq!(address(text).map(|address| address.to_string()).as_deref(), wanted, "{text}");
        }
    }
}
