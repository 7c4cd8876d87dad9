//! What is captured in place of being sent, for those who read it: lists, single messages, and what can be done
//! with them. `read` takes a message apart, `html` makes its HTML safe to look at, `routes` is the HTTP API; the
//! command line and the pages of the dashboard use the same types.
//!
//! | request                                          | answer                                              |
//! |--------------------------------------------------|-----------------------------------------------------|
//! | `GET /api/v1/captured?to=&from=&subject=&q=&since=&limit=&before=&wait=` | `{"messages": […], "next": id or null}`, newest first |
//! | `DELETE /api/v1/captured?to=&from=&subject=&q=&since=` | `{"messages": n}`: those are gone, without filters all |
//! | `GET /api/v1/captured/{id}`                      | the message, read: fields, text, HTML, attachments  |
//! | `GET /api/v1/captured/{id}/source`               | its bytes, `message/rfc822`                         |
//! | `GET /api/v1/captured/{id}/html`                 | its HTML, to be shown in a frame (`html`)           |
//! | `GET /api/v1/captured/{id}/attachments/{n}`      | the bytes of an attachment; the first is 1          |
//! | `POST /api/v1/captured/{id}/release` with nothing, or `{"to": "…"}` | `{"recipients": n}`: it is sent for real |
//! | `DELETE /api/v1/captured/{id}`                   | `{"messages": 1}`                                   |

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::filter::address_fits;
use super::view;
use crate::clock::Millis;
use crate::message::{Address, Findings, MessageId, ReversePath, mime};
use crate::queue::record::{Message, Recipient, Route, Status};

mod html;
mod read;
pub(super) mod routes;

pub use html::{CONTENT_SECURITY_POLICY, for_a_frame};
pub use read::{Attachment, File, Person, Read, attachment, read};
pub(crate) use routes::{DeleteAnswer, Many, ReleaseAnswer, ReleaseBody};

/// Messages on a page, if nothing is said, and at most.
pub const LIMIT_DEFAULT: usize = 100;
pub const LIMIT_MAX: usize = 1000;
/// Addresses that a message is released to at once.
pub const RELEASE_TO_MAX: usize = 100;

/// What captured messages must be like. All that is given must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CapturedFilter {
    /// A recipient of the envelope, or the alias that led to it: a whole address, its domain or local part.
    pub to: Option<String>,
    /// The envelope sender or the author, in the same way.
    pub from: Option<String>,
    /// A part of the subject.
    pub subject: Option<String>,
    /// A part of the subject, of the Message-ID, or of an address.
    pub q: Option<String>,
    /// Captured then or later.
    pub since: Option<Millis>,
}

/// Which of them: the newest before `before`, so many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturedWish {
    pub filter: CapturedFilter,
    pub before: Option<MessageId>,
    pub limit: usize,
}

impl Default for CapturedWish {
    fn default() -> CapturedWish {
        CapturedWish { filter: CapturedFilter::default(), before: None, limit: LIMIT_DEFAULT }
    }
}

/// A page of what is captured, newest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CapturedPage {
    pub messages: Vec<Captured>,
    /// Give it as `before` to get the next page; none: that was all.
    pub next: Option<MessageId>,
}

/// Who sends and who receives, as SMTP said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Empty for the null sender.
    pub from: ReversePath,
    /// Those whose mail is captured.
    pub to: Vec<Address>,
}

/// A captured message in a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Captured {
    pub id: MessageId,
    #[serde(with = "view::time")]
    pub received_at: Millis,
    #[serde(with = "view::time")]
    pub captured_at: Millis,
    pub envelope: Envelope,
    /// The one address of From; none if that is not one.
    pub author: Option<Address>,
    pub subject: String,
    /// Without brackets; empty if the message has none.
    pub message_id: String,
    /// Bytes.
    pub size: u64,
    pub stream: String,
    /// Who submitted it.
    pub account: Option<String>,
    pub recipients: Vec<CapturedRecipient>,
}

/// A recipient whose mail is captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedRecipient {
    /// Within the message.
    pub number: u32,
    pub address: Address,
    /// The address that was written in RCPT, if an alias led from there to here.
    pub alias: Option<Address>,
    /// The target that it would have gone to.
    pub target: Option<String>,
    #[serde(with = "view::time")]
    pub captured_at: Millis,
}

/// A captured message with its bytes.
#[derive(Clone, Debug)]
pub struct Kept {
    pub message: Captured,
    /// What the checks found; none for mail that was not checked.
    pub findings: Option<Findings>,
    pub raw: Bytes,
}

impl Captured {
    /// None: none of these recipients is captured.
    pub fn new(message: &Message, recipients: &[(u32, Recipient)]) -> Option<Captured> {
        let captured = recipients.iter().filter_map(|(number, recipient)| {
            let Status::Captured { at } = recipient.status else { return None };
            let Recipient { address, alias, .. } = recipient.clone();
            let target = match &recipient.route {
                Route::Remote => None,
                Route::Target(name) => Some(name.clone()),
            };
            Some(CapturedRecipient { number: *number, address, alias, target, captured_at: at })
        });
        let recipients: Vec<CapturedRecipient> = captured.collect();
        Some(Captured {
            id: message.id,
            received_at: message.received_at,
            captured_at: recipients.iter().map(|recipient| recipient.captured_at).max()?,
            envelope: Envelope {
                from: message.mail_from.clone(),
                to: recipients.iter().map(|recipient| recipient.address.clone()).collect(),
            },
            author: message.header_from.clone(),
            subject: mime::decode_words(message.subject.as_bytes()),
            message_id: message.message_id.clone(),
            size: message.size,
            stream: message.stream.clone(),
            account: message.origin.account.clone(),
            recipients,
        })
    }
}

impl CapturedFilter {
    pub fn fits(&self, message: &Captured) -> bool {
        let recipients = || message.recipients.iter().flat_map(|one| std::iter::once(&one.address).chain(&one.alias));
        let from = message.envelope.from.to_string();
        let author = message.author.as_ref().map(ToString::to_string).unwrap_or_default();
        let has = |text: &str, part: &str| text.to_lowercase().contains(&part.to_lowercase());
        let to_fits = |to: &str| recipients().any(|address| address_fits(to, &address.to_string()));
        let from_fits = |wanted: &str| address_fits(wanted, &from) || address_fits(wanted, &author);
        let q_fits = |q: &str| {
            let texts = [&message.subject, &message.message_id, &from, &author];
            texts.into_iter().any(|text| has(text, q)) || recipients().any(|address| has(&address.to_string(), q))
        };
        self.to.as_deref().is_none_or(to_fits)
            && self.from.as_deref().is_none_or(from_fits)
            && self.subject.as_deref().is_none_or(|part| has(&message.subject, part))
            && self.q.as_deref().is_none_or(q_fits)
            && self.since.is_none_or(|since| message.captured_at >= since)
    }
}
