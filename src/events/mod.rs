//! What happened to each message. One enum; the log line, the counters, the journal record, what
//! webhooks are told and what `postrider log` shows derive from it, so they cannot disagree. Passwords and bodies are never in an event.

pub mod counters;
pub mod journal;
pub mod kind;
pub mod live;
pub mod outbox;
pub mod search;
pub mod server;
pub mod troubles;

use serde::{Deserialize, Serialize};

use crate::clock::Millis;
use crate::message::{Address, MessageId, Origin, ReversePath};
use crate::queue::record::Failure;

/// A line of a message's story.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub at: Millis,
    #[serde(flatten)]
    pub event: Event,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Safely on disk.
    Accepted {
        origin: Origin,
        from: ReversePath,
        recipients: u32,
        size: u64,
        message_id: String,
        subject: String,
        /// `selector._domainkey.domain` of each signature we added.
        signed: Vec<String>,
        /// The Authentication-Results we gave, without the server's name.
        checked: String,
        /// The stream it goes by; empty in stories that are older than this field.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        stream: String,
    },
    /// Put into the queue from an export of this or another server, as it had been there.
    Imported {
        /// The id under which it was queued before.
        was: MessageId,
        origin: Origin,
        from: ReversePath,
        recipients: u32,
        size: u64,
        message_id: String,
        subject: String,
    },
    /// Which way an address leads: one per recipient that was written in RCPT and is ours.
    Routed {
        alias: Address,
        to: Vec<String>,
    },
    Delivered {
        recipient: Address,
        to: String,
        reply: String,
        tls: Option<String>,
        attempt: u32,
    },
    /// Kept on this server because of `delivery.default = "capture"`.
    Captured {
        recipient: Address,
    },
    Deferred {
        recipient: Address,
        why: Failure,
        attempt: u32,
        next: Millis,
    },
    /// The connection was lost between the final dot and its answer: the message may have arrived, and it
    /// will be sent once more.
    Unsure {
        recipient: Address,
        why: Failure,
        attempt: u32,
        next: Millis,
    },
    Failed {
        recipient: Address,
        why: Failure,
        attempt: u32,
    },
    /// A copy of what was sent to this recipient is in an `[[archive]]`.
    Archived {
        recipient: Address,
        to: String,
    },
    /// That copy could not be written: tried again at `next`, or given up. The delivery itself is done.
    NotArchived {
        recipient: Address,
        why: Failure,
        next: Option<Millis>,
    },
    /// Not tried any more: `expire` of `[delivery.retry]` has passed, or `max_attempts` are used up.
    Expired {
        recipient: Address,
        why: Failure,
        attempt: u32,
    },
    Held {
        recipient: Address,
        reason: String,
    },
    Released {
        recipient: Address,
    },
    Cancelled {
        recipient: Address,
    },
    /// Swallowed on purpose: the built-in target `discard`, a duplicate, a limit.
    Discarded {
        recipient: Address,
        reason: String,
    },
    /// It came back: a report that is proved says that this recipient has not got it. In the story of the
    /// message and in that of the report.
    Bounced {
        recipient: Address,
        /// `hard`, `full`, `soft`, `policy`, `size`, `loop`.
        class: String,
        status: String,
        diagnostic: String,
        message: MessageId,
        report: MessageId,
        /// It counts for the suppression list: the first one of this message and address.
        counted: bool,
    },
    /// A report that is proved says that it is late. It is still tried by another server.
    DelayReported {
        recipient: Address,
        status: String,
        diagnostic: String,
        message: MessageId,
        report: MessageId,
    },
    /// Its recipient has called it unwanted.
    Complained {
        recipient: Address,
        /// `abuse` and the like (RFC 5965 7.3).
        kind: String,
        agent: String,
        message: MessageId,
        report: MessageId,
    },
    /// Not sent: the address is on the suppression list.
    Suppressed {
        recipient: Address,
        reason: String,
    },
    /// This message says that others came back, and does not prove it: it counts for nothing.
    NotBelieved {
        about: Vec<String>,
        why: String,
    },
    /// A DSN went to the sender, queued as a message of its own.
    NoticeSent {
        sender: Address,
        about: String,
    },
    /// The sender is not told, because it may not be who wrote.
    NoticeWithheld {
        sender: Address,
        about: String,
        why: String,
    },
}
