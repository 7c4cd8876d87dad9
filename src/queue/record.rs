//! What the queue keeps on disk, and the legal states of a message and of a recipient.
//!
//! A message is three kinds of record: `message` (envelope and origin, written once), `body` (the
//! bytes in chunks, written once) and one `recipient` per delivery, with one entry in the due index
//! while it waits. A recipient's record goes when its fate is sealed; the message and its body go
//! with the last of them. What remains is the story in `journal`. While a body comes in piece by
//! piece it has a mark in `incoming`, which goes with the commit.
//!
//! | message | body | incoming | recipient | due | claim (memory) | meaning                | after a crash                           |
//! |---------|------|----------|-----------|-----|----------------|------------------------|-----------------------------------------|
//! | -       | -    | -        | -         | -   | -              | being received, held   | nothing; the client had no 250          |
//! |         |      |          |           |     |                | in memory              |                                         |
//! | -       | part | +        | -         | -   | -              | being received, chunks | the next start deletes chunks and mark; |
//! |         |      |          |           |     |                | stream in, unsynced    | the client had no 250                   |
//! | -       | part | -        | -         | -   | reserved       | being committed        | all of it or nothing of it is there: a  |
//! |         | or - | or +     |           |     |                |                        | row above, or "waiting"                 |
//! | +       | +    | -        | waiting   | +   | -              | waiting for its time   | found by the due index                  |
//! | +       | +    | -        | waiting   | +   | queued         | waiting for its turn   | claim forgotten, found by the due index |
//! | +       | +    | -        | waiting   | +   | running        | in an attempt          | claim forgotten, tried again: a copy    |
//! |         |      |          |           |     |                |                        | is possible if the far end had said 250 |
//! |         |      |          |           |     |                |                        | and `delivery::receipts` not noted it   |
//! | +       | +    | -        | waiting   | +   | person         | a person changes it    | changed or not; never half              |
//! | +       | +    | -        | held      | -   | -              | held for a person      | still held                              |
//! | +       | +    | -        | captured  | -   | -              | captured, never left,  | still captured                          |
//! |         |      |          |           |     |                | in the index of those  |                                         |
//! | +       | +    | -        | captured  | -   | person         | released or deleted    | "waiting" with the mark of who is let   |
//! |         |      |          |           |     |                |                        | go, or gone; or captured as before      |
//! | -       | -    | -        | -         | -   | -              | done: in the journal   | still done; or, if the power failed     |
//! |         |      |          |           |     |                |                        | before the next sync, waiting again     |
//!
//! Every step between two rows is one write batch, so no other row can come of a step; only the
//! chunks of a body that is still coming in are written by themselves. Steps into "waiting" are synced
//! before anyone is told; steps out of it are written at once and synced with the next group (losing
//! one to a power cut repeats an attempt, never loses a message).
//!
//! A message that was sent is copied into each `[[archive]]` by a recipient of its own, which is added by the
//! step that seals the fate of the one it was sent to. So a crash between delivery and archive loses no copy:
//! before that step the delivery is made again ("in an attempt" above), after it the copy is "waiting". A
//! crash between the copy's file and the step that notes it makes a second file, named " (2)".
//!
//! Rows that only damage to the disk can make, and what is done about them:
//!
//! | what is there                             | what becomes of it                                         |
//! |-------------------------------------------|------------------------------------------------------------|
//! | a recipient or message that cannot be     | set aside: listed as damaged, tried again after the next   |
//! | read; a recipient without its message     | start; nothing of it is deleted                            |
//! | a due entry without a waiting recipient,  | removed by the scan that meets it, or put where it belongs |
//! | or at the wrong place in the index        |                                                            |
//! | a waiting recipient without a due entry   | found by [`super::rebuild_due_index`]; the mark in `meta`  |
//! |                                           | of a rebuild that was broken off starts it again           |

use serde::{Deserialize, Serialize};

use crate::clock::Millis;
use crate::message::text::harmless;
use crate::message::{
    Address, BodyType, DsnRequest, Findings, Hold, MessageId, Notify, Origin, OriginalRecipient, ReversePath, TlsWish,
};
use crate::smtp::Reply;

/// The `message` record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    pub id: MessageId,
    pub received_at: Millis,
    pub origin: Origin,
    pub mail_from: ReversePath,
    pub body_type: BodyType,
    pub smtputf8: bool,
    pub dsn: DsnRequest,
    /// The one mailbox of From, as the message is queued: what the way out is chosen by. None if From is
    /// not one mailbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_from: Option<Address>,
    /// Bytes of the whole message, trace fields included.
    pub size: u64,
    /// How many `body` records hold it, those of `streamed` not counted.
    pub chunks: u32,
    /// Its end, if that was written while it came in.
    #[serde(default)]
    pub streamed: Option<Streamed>,
    /// Message-ID field, without brackets; empty if there is none.
    pub message_id: String,
    /// Subject field, for people who look for a message; shortened to 200 characters.
    pub subject: String,
    /// What the checks found; none for mail that was not checked.
    #[serde(default)]
    pub findings: Option<Findings>,
    /// How many recipients it was queued for; more once others have come, whose numbers go on from there.
    pub recipients: u32,
    /// The stream it goes by (`accounts.*.stream`); it stays the same while the message is queued.
    #[serde(default = "crate::message::stream::default_name")]
    pub stream: String,
    /// What its sender asked of TLS.
    #[serde(default)]
    pub tls: TlsWish,
    /// Its sender wanted it to go then, not at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Millis>,
    /// The message of ours that it answers, if it names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<Answered>,
}

/// A message of ours that another answers. Who sent that one has seen ours, or guessed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    pub id: MessageId,
    /// Who submitted it; none for a trusted network.
    #[serde(default)]
    pub account: Option<String>,
}

/// The end of a large message, in `body` records of its own from [`STREAMED_FROM`] on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streamed {
    pub chunks: u32,
    pub ascii: bool,
}

/// Number of the first `body` record of what is written while a message comes in. Those below are for
/// its beginning, which is written with the commit.
pub const STREAMED_FROM: u32 = 1 << 16;

impl Message {
    /// When trying begins: what `[delivery.retry]` says counts from then.
    pub fn tried_from(&self) -> Millis {
        self.not_before.map_or(self.received_at, |wanted| wanted.max(self.received_at))
    }

    /// The numbers of its `body` records, in the order of the message.
    pub fn body_numbers(&self) -> impl Iterator<Item = u32> + use<> {
        (0..self.chunks).chain(streamed_numbers(self.streamed.map_or(0, |streamed| streamed.chunks)))
    }
}

/// The numbers of so many `body` records that were written while a message came in.
pub fn streamed_numbers(chunks: u32) -> std::ops::Range<u32> {
    STREAMED_FROM..STREAMED_FROM.saturating_add(chunks)
}

/// The `recipient` record: one delivery to one place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipient {
    /// Where it goes: for a remote route the address in RCPT, for a target the address it came in for, or the
    /// one of ours to which that leads, where the target has mailboxes of its own.
    pub address: Address,
    /// The address that was written in RCPT, if an alias or `delivery.redirect_all_to` led from there to
    /// here.
    pub alias: Option<Address>,
    pub route: Route,
    pub notify: Notify,
    pub original: Option<OriginalRecipient>,
    pub status: Status,
    /// Tries so far.
    pub attempts: u32,
    /// Why the last try did not do it.
    pub last_failure: Option<Failure>,
    /// A delay notice has been sent.
    pub delay_notified: bool,
    /// The next try is one that a person asked for, in place of the one at this time: it does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_hand: Option<Millis>,
    /// A person has let it go then, out of what is captured: it leaves although `delivery.default` is
    /// "capture".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<Millis>,
}

impl Recipient {
    /// When trying it begins: what `[delivery.retry]` says counts from then.
    pub fn tried_from(&self, message: &Message) -> Millis {
        message.tried_from().max(self.released.unwrap_or(0))
    }

    /// What the next server is asked to report. Where an alias leads to is nobody's business, so reports of
    /// success about such an address are ours (RFC 3461 5.2.7.3).
    pub fn passed_on(&self) -> Notify {
        if self.alias.is_some() { self.notify.without_success() } else { self.notify }
    }
}

/// Who gets it. Which way out is decided when it is due.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// By SMTP to the recipient's domain (or captured, or written as a file).
    Remote,
    /// By the target of this name.
    Target(String),
}

/// Begins the name of a target that is an `[[archive]]`. No name in `[targets]` has a blank.
const ARCHIVE_MARK: &str = "archive ";

impl Route {
    /// To the `[[archive]]` with this path. It is a delivery of its own, so that a copy waits for its disk and
    /// survives a crash as any other, and nothing waits for it.
    pub fn archive(path: &str) -> Route {
        Route::Target(format!("{ARCHIVE_MARK}{path}"))
    }

    pub fn is_archive(&self) -> bool {
        matches!(self, Route::Target(name) if name.starts_with(ARCHIVE_MARK))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// In the due index at this time.
    Waiting { due: Millis },
    /// Until somebody releases or cancels it.
    Held(Hold),
    /// Kept here in place of being sent; never leaves by itself. It is in the index of `super::captured`.
    Captured { at: Millis },
}

/// Why a try failed, for the story, the DSN and `last_failure`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What the far end said, if it said something.
    pub reply: Option<Reply>,
    /// Host or target that failed; empty if none was reached.
    pub host: String,
    /// One sentence for people: what was tried and what happened.
    pub reason: String,
    /// RFC 3463 status, such as `4.4.1`.
    pub status: String,
    /// The connection was lost after the final dot: the message may have arrived.
    pub unsure: bool,
    /// The far end has refused the sender (its answer to MAIL): it says nothing of the recipients.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_sender: bool,
}

impl Failure {
    /// A failure without a reply of the far end. In the reason there may be something of it all the same (a name in
    /// its certificate), so nothing in it steers a log or a terminal.
    pub fn local(status: &str, host: impl Into<String>, reason: impl Into<String>) -> Failure {
        Failure {
            reply: None,
            host: host.into(),
            reason: harmless(reason.into()),
            status: status.to_owned(),
            unsure: false,
            of_sender: false,
        }
    }

    /// A refusal by the far end.
    pub fn refused(host: impl Into<String>, reply: Reply) -> Failure {
        let host = host.into();
        Failure {
            reason: format!("{host} said: {reply}"),
            status: reply.status(),
            reply: Some(reply),
            host,
            unsure: false,
            of_sender: false,
        }
    }
}
