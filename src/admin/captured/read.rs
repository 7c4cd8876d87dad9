//! A captured message taken apart for people: who wrote to whom, its texts, what is attached.
//!
//! Within the bounds of `message::mime`; a message beyond them is shown with its fields only, and says so. An
//! attachment is decoded when it is asked for, and not kept.

use serde::{Deserialize, Serialize};

use super::{Captured, Kept};
use crate::message::header::Headers;
use crate::message::mime::{self, Part, Shown};
use crate::message::{Findings, MessageId};

/// Bytes of the name that a file is offered under.
const NAME_BYTES_MAX: usize = 150;
/// What a file is if nobody says it in a way that can be passed on.
const UNKNOWN_TYPE: &str = "application/octet-stream";

/// A mailbox of a header field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Person {
    pub name: String,
    pub address: String,
}

/// A captured message as people read it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Read {
    #[serde(flatten)]
    pub message: Captured,
    pub from: Vec<Person>,
    pub to: Vec<Person>,
    pub cc: Vec<Person>,
    /// Who stands in the field Bcc of the message itself; of others the envelope knows.
    pub bcc: Vec<Person>,
    pub reply_to: Vec<Person>,
    /// RFC 3339.
    pub date: Option<String>,
    pub text: Option<String>,
    pub html: Option<String>,
    /// Name and value of each field, in order, unfolded, as they were written.
    pub headers: Vec<(String, String)>,
    pub attachments: Vec<Attachment>,
    /// What the checks found; none for mail that was not checked.
    pub auth: Option<Findings>,
    /// Why it could not be taken apart; none if it was.
    pub unread: Option<String>,
}

/// Something that comes with a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The first is 1.
    pub number: usize,
    /// As the message says it; anything may be in it.
    pub filename: Option<String>,
    pub content_type: String,
    /// Bytes, decoded.
    pub size: usize,
    pub content_id: Option<String>,
    /// It is shown with the text, not beside it.
    pub inline: bool,
    /// Where its bytes are.
    pub url: String,
}

/// An attachment to be saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Without anything that would lead elsewhere than into the folder where it is saved.
    pub name: String,
    /// Of printable ASCII.
    pub content_type: String,
    pub bytes: Vec<u8>,
}

/// Takes it apart. For a thread that may work for a while: a large message is decoded here.
pub fn read(kept: &Kept) -> Read {
    let (content, unread) = match mime::read(&kept.raw) {
        Ok(content) => (content, None),
        Err(too_complex) => (mime::Content::default(), Some(too_complex.to_string())),
    };
    let headers = Headers::parse(&kept.raw);
    let nothing = Headers::parse(b"");
    let shown = if headers.within_limits().is_ok() { &headers } else { &nothing };
    let people = |name: &str| -> Vec<Person> {
        let mailboxes = shown.all(name).flat_map(|field| mime::shown_mailboxes(field.value));
        mailboxes.map(|Shown { name, address }| Person { name, address }).collect()
    };
    let mut message = kept.message.clone();
    if let Some(subject) = shown.get("Subject") {
        message.subject = mime::decode_words(subject.value);
    }
    let numbered = content.attachments.iter().enumerate();
    Read {
        from: people("From"),
        to: people("To"),
        cc: people("Cc"),
        bcc: people("Bcc"),
        reply_to: people("Reply-To"),
        date: shown.get("Date").and_then(|field| mime::date(field.value)),
        text: content.text,
        html: content.html,
        headers: shown.fields().iter().map(|f| (String::from_utf8_lossy(f.name).into_owned(), f.text())).collect(),
        attachments: numbered.map(|(at, part)| listed(message.id, at + 1, part)).collect(),
        auth: kept.findings.clone(),
        unread,
        message,
    }
}

fn listed(id: MessageId, number: usize, part: &Part<'_>) -> Attachment {
    Attachment {
        number,
        filename: part.filename.clone().filter(|name| !name.is_empty()),
        content_type: part.content_type.clone(),
        size: part.decoded().len(),
        content_id: part.content_id.clone(),
        inline: part.disposition.as_deref() == Some("inline") || part.content_id.is_some(),
        url: format!("/api/v1/captured/{id}/attachments/{number}"),
    }
}

/// The attachment with this number, if there is one.
pub fn attachment(raw: &[u8], number: usize) -> Option<File> {
    let content = mime::read(raw).ok()?;
    let part = content.attachments.get(number.checked_sub(1)?)?;
    Some(File {
        name: safe_name(part.filename.as_deref().unwrap_or_default(), number, &part.content_type),
        content_type: safe_type(&part.content_type),
        bytes: part.decoded().into_owned(),
    })
}

/// A media type that can stand in a header.
pub(super) fn safe_type(content_type: &str) -> String {
    // RFC 6838 4.2
    let is_name = |name: &str| {
        let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte);
        (1..=127).contains(&name.len()) && name.bytes().all(is_good)
    };
    match content_type.split_once('/') {
        Some((kind, subtype)) if is_name(kind) && is_name(subtype) => content_type.to_owned(),
        _ => UNKNOWN_TYPE.to_owned(),
    }
}

/// The last part of a path, without characters that mean something to a file system, a shell or a reader's eye.
fn safe_name(name: &str, number: usize, content_type: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let is_bad = |c: char| {
        c.is_control()
            || "\"*:<>?|'`$;&".contains(c)
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    let cleaned: String = last.chars().map(|c| if is_bad(c) { '_' } else { c }).collect();
    // Neither hidden, nor the folder itself, nor with an end that Windows drops.
    let trimmed = cleaned.trim_start_matches(['.', ' ', '-', '~']).trim_end_matches(['.', ' ']);
    if trimmed.is_empty() {
        let end = if content_type == "message/rfc822" { ".eml" } else { "" };
        return format!("attachment-{number}{end}");
    }
    shortened(trimmed)
}

/// With its ending, which says what it is.
fn shortened(name: &str) -> String {
    if name.len() <= NAME_BYTES_MAX {
        return name.to_owned();
    }
    let (stem, ending) = match name.rsplit_once('.') {
        Some((stem, ending)) if ending.len() <= 16 => (stem, format!(".{ending}")),
        _ => (name, String::new()),
    };
    let mut end = (NAME_BYTES_MAX - ending.len()).min(stem.len());
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{ending}", stem.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_lead_nowhere() {
        for (name, safe) in [
            ("invoice.pdf", "invoice.pdf"),
            ("../../etc/passwd", "passwd"),
            ("C:\\Windows\\evil.exe", "evil.exe"),
            ("a\"; filename=\"b.exe", "a__ filename=_b.exe"),
            ("x\r\nSet-Cookie: a=b", "x__Set-Cookie_ a=b"),
            (".bashrc", "bashrc"),
            ("..", "attachment-3"),
            ("", "attachment-3"),
            ("/", "attachment-3"),
            ("-rf", "rf"),
            ("photo\u{202e}gpj.exe", "photo_gpj.exe"),
            ("größe 1.txt", "größe 1.txt"),
            ("con. ", "con"),
        ] {
            assert_eq!(safe_name(name, 3, "text/plain"), safe, "{name:?}");
        }
        assert_eq!(safe_name("", 1, "message/rfc822"), "attachment-1.eml");
        let long = safe_name(&format!("{}.pdf", "ü".repeat(400)), 1, "application/pdf");
        assert!(long.len() <= NAME_BYTES_MAX && long.ends_with("ü.pdf"), "{long}");
        let no_ending = safe_name(&"x".repeat(400), 1, "application/pdf");
        assert_eq!(no_ending.len(), NAME_BYTES_MAX);
    }

    #[test]
    fn types_that_cannot_stand_in_a_header_do_not() {
        assert_eq!(safe_type("image/svg+xml"), "image/svg+xml");
        for bad in ["", "text", "text/", "/x", "text/a b", "text/a\r\nx", "text/ü", &format!("a/{}", "b".repeat(128))]
        {
            assert_eq!(safe_type(bad), UNKNOWN_TYPE, "{bad:?}");
        }
    }
}
