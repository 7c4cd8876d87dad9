//! A message out of its parts, as JSON gives them: an envelope and a MIME message.
//!
//! What is written is well-formed whatever the parts hold: names and texts are encoded, field names and
//! values that could end a line or take the place of a field that is written here are refused. mail-builder
//! does the MIME; everything it cannot be trusted with is checked before.

mod lists;

use std::collections::{BTreeMap, HashSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mail_builder::MessageBuilder;
use mail_builder::headers::HeaderType;
use mail_builder::headers::address::Address as BuilderAddress;
use mail_builder::headers::raw::Raw;
use mail_builder::headers::text::Text;
use mail_builder::mime::MimePart;
use serde::{Deserialize, Serialize};

use crate::clock::{self, Millis};
use crate::message::header::{self, Mailbox};
use crate::message::{Address, ReversePath, stream};
use lists::{ADDRESSES_MAX, ATTACHMENTS_MAX, FIELDS_MAX, Many};

/// Octets of one field's value.
const VALUE_BYTES_MAX: usize = 8 * 1024;
/// Octets of a file name or a content id.
const NAME_BYTES_MAX: usize = 255;
/// Fields that are written here, or by intake, or that only a transport may write.
const NOT_FREE: [&str; 14] = [
    "from",
    "to",
    "cc",
    "bcc",
    "reply-to",
    "subject",
    "date",
    "mime-version",
    "received",
    "return-path",
    "delivered-to",
    "authentication-results",
    "dkim-signature",
    "bcc",
];
/// Beginnings of such.
const NOT_FREE_PREFIXES: [&str; 4] = ["content-", "resent-", "arc-", "x-postrider-"];

/// A message as JSON. With `raw` it is written already; then only the envelope counts beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MessageBody {
    pub from: String,
    #[serde(default)]
    pub to: Many,
    #[serde(default)]
    pub cc: Many,
    #[serde(default)]
    pub bcc: Many,
    #[serde(default)]
    pub reply_to: Many,
    pub subject: Option<String>,
    pub text: Option<String>,
    pub html: Option<String>,
    #[serde(default, deserialize_with = "lists::attachments")]
    pub attachments: Vec<Attachment>,
    #[serde(default, deserialize_with = "lists::fields")]
    pub headers: BTreeMap<String, String>,
    pub stream: Option<String>,
    /// RFC 3339.
    pub send_at: Option<String>,
    pub idempotency_key: Option<String>,
    pub raw: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Attachment {
    pub filename: Option<String>,
    /// Default: application/octet-stream.
    pub content_type: Option<String>,
    /// In base64.
    pub content: String,
    /// Shown in the HTML where `cid:` names it.
    pub content_id: Option<String>,
}

/// Ready to become a draft.
#[derive(Debug)]
pub(crate) struct Composed {
    pub mail_from: ReversePath,
    pub recipients: Vec<Address>,
    pub content: Vec<u8>,
    pub not_before: Option<Millis>,
}

/// What is wrong with a message, and how it is written right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub what: String,
    pub remedy: &'static str,
}

fn wrong(what: impl Into<String>, remedy: &'static str) -> Wrong {
    Wrong { what: what.into(), remedy }
}

/// `hostname`: behind the @ of its Message-ID; `seed`: before it.
pub(crate) fn compose(body: &MessageBody, hostname: &str, seed: u128, now: Millis) -> Result<Composed, Wrong> {
    let lists = [("to", &body.to), ("cc", &body.cc), ("bcc", &body.bcc), ("reply_to", &body.reply_to)];
    let [to, cc, bcc, reply_to] = lists.map(|(name, list)| mailboxes(name, list));
    let (to, cc, bcc, reply_to) = (to?, cc?, bcc?, reply_to?);
    let not_before = body.send_at.as_deref().map(moment).transpose()?;
    let mut seen = HashSet::new();
    let addressed = to.iter().chain(&cc).chain(&bcc).map(|mailbox| &mailbox.address);
    let recipients = addressed.filter(|address| seen.insert(address.lookup_key())).cloned().collect();
    let (mail_from, content) = match &body.raw {
        Some(raw) => as_written(body, raw)?,
        None => {
            let [from] = list("from", std::slice::from_ref(&body.from))?
                .try_into()
                .map_err(|_| wrong("from is not one mailbox", "\"Shop <shop@example.com>\", or the address alone"))?;
            let message = Parts { body, from: &from, to: &to, cc: &cc, reply_to: &reply_to };
            (ReversePath::Address(from.address.clone()), message.write(hostname, seed, now)?)
        }
    };
    let stream = body.stream.as_deref().map(stream_field).transpose()?.unwrap_or_default();
    Ok(Composed { mail_from, recipients, content: [stream, content].concat(), not_before })
}

fn as_written(body: &MessageBody, raw: &str) -> Result<(ReversePath, Vec<u8>), Wrong> {
    let others = [body.subject.is_some(), body.text.is_some(), body.html.is_some(), !body.attachments.is_empty()];
    if others.contains(&true) || !body.headers.is_empty() || !body.cc.is_empty() || !body.reply_to.is_empty() {
        return Err(wrong(
            "raw is the whole message, and there are parts of one beside it",
            "leave out either raw, or subject, text, html, attachments, headers, cc and reply_to",
        ));
    }
    let mail_from = super::api::reverse_path(&body.from).map_err(|error| {
        wrong(format!("from: {:?}: {error}", body.from), "beside raw it is the envelope's sender: local@domain")
    })?;
    Ok((mail_from, raw.as_bytes().to_vec()))
}

/// The parts of a message that are read.
struct Parts<'b> {
    body: &'b MessageBody,
    from: &'b Mailbox,
    to: &'b [Mailbox],
    cc: &'b [Mailbox],
    reply_to: &'b [Mailbox],
}

impl Parts<'_> {
    fn write(&self, hostname: &str, seed: u128, now: Millis) -> Result<Vec<u8>, Wrong> {
        let body = self.body;
        let mut message = MessageBuilder::new().from(shown(std::slice::from_ref(self.from)));
        if !self.to.is_empty() {
            message = message.to(shown(self.to));
        }
        if !self.cc.is_empty() {
            message = message.cc(shown(self.cc));
        }
        if !self.reply_to.is_empty() {
            message = message.reply_to(shown(self.reply_to));
        }
        if let Some(subject) = &body.subject {
            message = message.subject(one_line("subject", subject)?);
        }
        if body.headers.len() > FIELDS_MAX {
            return Err(wrong(format!("there are more than {FIELDS_MAX} headers"), "leave some out"));
        }
        let mut has_id = false;
        for (name, value) in &body.headers {
            let value = field(name, value)?;
            has_id |= name.eq_ignore_ascii_case("message-id");
            // mail-builder looks for it in this spelling.
            let name = if name.eq_ignore_ascii_case("message-id") { "Message-ID" } else { name };
            message = message.header(name, value);
        }
        if !has_id {
            message = message.message_id(format!("{seed:032x}@{hostname}"));
        }
        message
            .date(i64::try_from(now / 1000).unwrap_or(i64::MAX))
            .body(self.mime()?)
            .write_to_vec()
            .map_err(|error| wrong(format!("the message cannot be written: {error}"), "send it as message/rfc822"))
    }

    /// RFC 2046 5.1.3, 5.1.4; RFC 2387 for pictures in the HTML.
    fn mime(&self) -> Result<MimePart<'_>, Wrong> {
        let body = self.body;
        if body.attachments.len() > ATTACHMENTS_MAX {
            return Err(wrong(format!("there are more than {ATTACHMENTS_MAX} attachments"), "put them in an archive"));
        }
        let (mut inline, mut attached) = (Vec::new(), Vec::new());
        for attachment in &body.attachments {
            let is_inline = attachment.content_id.is_some() && body.html.is_some();
            if is_inline { &mut inline } else { &mut attached }.push(part(attachment)?);
        }
        let html = body.html.as_deref().map(|html| MimePart::new("text/html", html));
        let html = match html {
            Some(html) if !inline.is_empty() => {
                inline.insert(0, html);
                Some(MimePart::new("multipart/related", inline))
            }
            html => html,
        };
        let text = body.text.as_deref().map(|text| MimePart::new("text/plain", text));
        let content = match (text, html) {
            (Some(text), Some(html)) => Some(MimePart::new("multipart/alternative", vec![text, html])),
            (one, None) | (None, one) => one,
        };
        match (content, attached.is_empty()) {
            (Some(content), true) => Ok(content),
            (Some(content), false) => {
                attached.insert(0, content);
                Ok(MimePart::new("multipart/mixed", attached))
            }
            (None, false) => Ok(MimePart::new("multipart/mixed", attached)),
            (None, true) => Err(wrong("the message has no content", "give text, html, or both; or raw")),
        }
    }
}

fn part(attachment: &Attachment) -> Result<MimePart<'_>, Wrong> {
    let form = "{\"filename\": \"a.pdf\", \"content_type\": \"application/pdf\", \"content\": \"base64\"}";
    let kind = attachment.content_type.as_deref().unwrap_or("application/octet-stream");
    if !is_media_type(kind) {
        return Err(wrong(format!("{kind:?} is not the type of an attachment"), form));
    }
    let content = STANDARD
        .decode(attachment.content.as_bytes())
        .map_err(|error| wrong(format!("the content of an attachment is not base64: {error}"), form))?;
    let mut part = MimePart::new(kind, content);
    let name = attachment.filename.as_deref().map(|name| short_line("filename", name)).transpose()?;
    if let Some(id) = &attachment.content_id {
        let id = short_line("content_id", id)?;
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_graphic() && !b"<>()\"\\".contains(&byte)) {
            return Err(wrong(format!("content_id {id:?} is not an id"), "letters and digits, such as \"logo\""));
        }
        part = part.cid(id);
    }
    Ok(match (name, attachment.content_id.is_some()) {
        (Some(name), false) => part.attachment(name),
        (None, false) => part.attachment("attachment"),
        (Some(name), true) => {
            let shown = mail_builder::headers::content_type::ContentType::new("inline").attribute("filename", name);
            part.header("Content-Disposition", shown)
        }
        (None, true) => part.inline(),
    })
}

/// Parts of messages are not made here: their encoding would have to be another (RFC 2046 5.2.1).
fn is_media_type(text: &str) -> bool {
    let token = |text: &str| {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&^_.+-".contains(&byte);
        !text.is_empty() && text.len() <= 127 && text.bytes().all(legal)
    };
    let Some((kind, rest)) = text.split_once('/') else { return false };
    token(kind) && token(rest) && !["multipart", "message"].iter().any(|other| kind.eq_ignore_ascii_case(other))
}

fn shown(mailboxes: &[Mailbox]) -> BuilderAddress<'_> {
    let one = |mailbox: &Mailbox| {
        let name = Some(mailbox.name.clone()).filter(|name| !name.is_empty());
        BuilderAddress::new_address(name, mailbox.address.to_string())
    };
    BuilderAddress::new_list(mailboxes.iter().map(one).collect())
}

fn mailboxes(name: &str, many: &Many) -> Result<Vec<Mailbox>, Wrong> {
    list(name, many.texts())
}

fn list(name: &str, texts: &[String]) -> Result<Vec<Mailbox>, Wrong> {
    let mut found = Vec::new();
    for text in texts {
        let remedy = "\"Shop <shop@example.com>\", or the address alone; several in a list";
        one_line(name, text)?;
        let read = header::mailboxes(text.as_bytes());
        found.extend(read.map_err(|error| wrong(format!("{name}: {text:?}: {error}"), remedy))?);
        if found.len() > ADDRESSES_MAX {
            let what = format!("{name} names more than {ADDRESSES_MAX} addresses");
            return Err(wrong(what, "send it in several messages"));
        }
    }
    Ok(found)
}

/// One field of the client's own.
fn field<'v>(name: &str, value: &'v str) -> Result<HeaderType<'v>, Wrong> {
    let remedy = "headers are {\"X-Campaign\": \"spring\"}; addresses, subject and content have keys of their own";
    let lower = name.to_ascii_lowercase();
    let is_name = !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    let is_free = !NOT_FREE.contains(&lower.as_str()) && !NOT_FREE_PREFIXES.iter().any(|p| lower.starts_with(p));
    if !is_name || !is_free {
        return Err(wrong(format!("the header {name:?} cannot be set here"), remedy));
    }
    let value = one_line(name, value)?;
    if lower == "message-id" && header::message_id(value.as_bytes()).is_none() {
        return Err(wrong(format!("{value:?} is not a Message-ID"), "<something@your.domain>"));
    }
    Ok(if value.is_ascii() { Raw::new(value).into() } else { Text::new(value).into() })
}

fn short_line<'t>(name: &str, text: &'t str) -> Result<&'t str, Wrong> {
    if text.len() > NAME_BYTES_MAX {
        return Err(wrong(format!("{name} has more than {NAME_BYTES_MAX} bytes"), "shorten it"));
    }
    one_line(name, text)
}

/// Nothing that could end a line.
fn one_line<'t>(name: &str, text: &'t str) -> Result<&'t str, Wrong> {
    if text.len() > VALUE_BYTES_MAX {
        return Err(wrong(format!("{name} has more than {VALUE_BYTES_MAX} bytes"), "shorten it"));
    }
    if text.chars().any(|c| c.is_control() && c != '\t') {
        return Err(wrong(format!("{name} holds a line end or another control character"), "leave it out"));
    }
    Ok(text)
}

fn stream_field(name: &str) -> Result<Vec<u8>, Wrong> {
    Ok(header::field(stream::FIELD, short_line("stream", name)?))
}

fn moment(text: &str) -> Result<Millis, Wrong> {
    clock::parse_rfc3339(text)
        .ok_or_else(|| wrong(format!("send_at: {text:?} is not a time"), "RFC 3339, such as 2026-12-24T18:00:00Z"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const NOW: Millis = 1_795_300_017_000;

    fn body(json: &str) -> MessageBody {
        serde_json::from_str(json).unwrap()
    }

    fn composed(json: &str) -> Composed {
        compose(&body(json), "mail.home.test", 7, NOW).unwrap()
    }

    fn refused(json: &str) -> String {
        compose(&body(json), "mail.home.test", 7, NOW).unwrap_err().what
    }

    #[test]
    fn a_plain_text_is_a_plain_message() {
        let made = composed(
            r#"{"from": "Jörg <j@home.test>", "to": ["A <a@far.test>", "b@far.test"], "cc": "A@far.test", "bcc": ["c@far.test"],
                "subject": "Grüße", "text": "Hallo\n", "headers": {"X-Tag": "1"}}"#,
        );
        let text = String::from_utf8(made.content).unwrap();
        assert!(text.contains("Message-ID: <00000000000000000000000000000007@mail.home.test>\r\n"), "{text}");
        assert!(text.contains("Date: Sat, 21 Nov 2026 22:26:57 +0000\r\n"), "{text}");
        assert!(text.contains("X-Tag: 1\r\n") && text.contains("\r\n\r\nHallo"), "{text}");
        assert!(!text.contains("c@far.test") && text.is_ascii(), "{text}");
        let to: Vec<String> = made.recipients.iter().map(ToString::to_string).collect();
        assert_eq!(to.len(), 3, "an address that differs in case only is the same: {to:?}");
        assert_eq!(made.mail_from.to_string(), "j@home.test");
    }

    #[test]
    fn pictures_lie_beside_their_html_and_files_behind_all() {
        let made = composed(
            r#"{"from": "a@home.test", "to": "b@far.test", "text": "t", "html": "<img src=\"cid:logo\">",
                "attachments": [{"content": "AAEC", "content_id": "logo", "content_type": "image/png"},
                                {"content": "JVBERg==", "filename": "Rechnung ä.pdf", "content_type": "application/pdf"}]}"#,
        );
        let message = mail_parser::MessageParser::default().parse(&made.content).unwrap();
        let types: Vec<String> = message.parts.iter().map(kind).collect();
        let wanted = ["multipart/mixed", "multipart/alternative", "text/plain", "multipart/related", "text/html"];
        assert_eq!(types[..5], wanted);
        assert_eq!(types[5..], ["image/png", "application/pdf"]);
        let file = message.parts.last().unwrap();
        use mail_parser::MimeHeaders;
        assert_eq!(file.attachment_name(), Some("Rechnung ä.pdf"));
        assert_eq!(file.contents(), b"%PDF");
    }

    fn kind(part: &mail_parser::MessagePart<'_>) -> String {
        use mail_parser::MimeHeaders;
        let kind = part.content_type().unwrap();
        format!("{}/{}", kind.ctype(), kind.subtype().unwrap())
    }

    #[test]
    fn what_could_become_another_field_is_refused() {
        let with = |more: &str| format!(r#"{{"from": "a@home.test", "to": "b@far.test", "text": "t", {more}}}"#);
        for more in [
            r#""subject": "a\r\nBcc: x@far.test""#,
            r#""headers": {"X-A": "a\nB: c"}"#,
            r#""headers": {"X-A\r\nB": "c"}"#,
            r#""headers": {"X A": "c"}"#,
            r#""headers": {"X-A:": "c"}"#,
            r#""headers": {"from": "x@far.test"}"#,
            r#""headers": {"BCC": "x@far.test"}"#,
            r#""headers": {"Content-Type": "text/html"}"#,
            r#""headers": {"DKIM-Signature": "v=1"}"#,
            r#""headers": {"Message-ID": "no id"}"#,
            r#""reply_to": "a@b.test\r\nX: y""#,
            r#""stream": "bulk\r\nX: y""#,
            r#""attachments": [{"content": "!"}]"#,
            r#""attachments": [{"content": "", "content_type": "text/plain\r\nX: y"}]"#,
            r#""attachments": [{"content": "", "content_type": "message/rfc822"}]"#,
            r#""attachments": [{"content": "", "filename": "a\nb"}]"#,
            r#""attachments": [{"content": "", "content_id": "a>b"}]"#,
            r#""send_at": "tomorrow""#,
        ] {
            refused(&with(more));
        }
        assert_eq!(refused(r#"{"from": "a@home.test", "to": "b@far.test"}"#), "the message has no content");
        assert_eq!(refused(r#"{"from": "a@b.test, c@d.test", "text": "t"}"#), "from is not one mailbox");
        refused(r#"{"from": "a@home.test", "to": "b@far.test", "raw": "x", "text": "t"}"#);
    }

    /// Each was compared with each before the number was looked at: a hundred thousand kept a core busy for minutes.
    #[test]
    fn a_list_costs_no_more_than_a_message_may_have_of_it() {
        let listed = |key: &str, count: usize| {
            let all: Vec<String> = (0..count).map(|n| format!("\"a{n}@far.test\"")).collect();
            format!(r#"{{"from": "a@home.test", "{key}": [{}], "text": "x"}}"#, all.join(","))
        };
        for key in ["to", "cc", "bcc", "reply_to"] {
            assert_eq!(refused(&listed(key, 100_000)), format!("{key} names more than 1000 addresses"));
            composed(&listed(key, 1000));
        }
        let in_one = vec!["a@far.test"; 700].join(",");
        let lists = format!(r#"{{"from": "a@home.test", "to": ["{in_one}", "{in_one}"], "text": "x"}}"#);
        assert_eq!(refused(&lists), "to names more than 1000 addresses");
        let fields: Vec<String> = (0..100_000).map(|n| format!("\"X-{n}\": \"y\"")).collect();
        let fields = format!(r#"{{"from": "a@home.test", "text": "x", "headers": {{{}}}}}"#, fields.join(","));
        assert_eq!(body(&fields).headers.len(), FIELDS_MAX + 1);
        assert_eq!(refused(&fields), "there are more than 100 headers");
        let files = vec![r#"{"content": ""}"#; 100_000].join(",");
        let files = format!(r#"{{"from": "a@home.test", "text": "x", "attachments": [{files}]}}"#);
        assert_eq!(body(&files).attachments.len(), ATTACHMENTS_MAX + 1);
        assert_eq!(refused(&files), "there are more than 100 attachments");
    }

    #[test]
    fn raw_goes_as_it_is() {
        let made = composed(
            r#"{"from": "<>", "to": "b@far.test", "raw": "Subject: x\r\n\r\ny", "stream": "bulk",
                "send_at": "2026-12-24T18:00:00+01:00"}"#,
        );
        assert_eq!(made.content, b"X-Postrider-Stream: bulk\r\nSubject: x\r\n\r\ny");
        assert!(made.mail_from.is_null());
        assert_eq!(made.not_before, Some(1_798_131_600_000));
    }

    proptest! {
        /// Whatever is in them, texts come out as they went in, in lines that mail may have.
        #[test]
        fn texts_survive(subject in "\\PC{0,200}", text in "\\PC{0,300}(\n\\PC{0,300}){0,3}", name in "[^\\p{C}]{0,60}") {
            let body = MessageBody {
                from: "a@home.test".to_owned(),
                subject: Some(subject.clone()),
                text: Some(text.clone()),
                attachments: vec![Attachment {
                    filename: Some(name.clone()), content_type: None, content: "AAEC".to_owned(), content_id: None,
                }],
                ..MessageBody::default()
            };
            if let Ok(made) = compose(&body, "mail.home.test", 7, NOW) {
                prop_assert!(made.content.is_ascii());
                prop_assert!(made.content.split(|byte| *byte == b'\n').all(|line| line.len() <= 999));
                let message = mail_parser::MessageParser::default().parse(&made.content).unwrap();
                let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
                prop_assert_eq!(squeezed(message.subject().unwrap_or_default()), squeezed(&subject));
                prop_assert_eq!(squeezed(&message.body_text(0).unwrap()), squeezed(&text));
            }
        }
    }
}
