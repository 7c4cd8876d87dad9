//! From the queue to the far end: one job at a time, whatever the transport.
//!
//! `dispatch` claims what is due, makes jobs of it and runs them; a transport (`smtp`, which speaks LMTP too,
//! `webhook`, `maildir`, `file`, `pipe`, `archive`, `graph`) tries one job and answers with an [`Outcome`] per recipient; what an
//! outcome means for the queue is decided in `dispatch` alone. `oauth` has the tokens that some hosts take
//! instead of a password.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::Millis;
use crate::message::{Address, Domain, Hold};
use crate::queue::record::{Failure, Message, Recipient, Route};
use crate::smtp::Reply;

pub mod archive;
mod attempt;
pub mod body;
mod daily;
pub mod dispatch;
pub mod dmarc_report;
pub mod event_webhooks;
pub mod file;
pub mod graph;
pub mod groups;
pub mod host_test;
pub mod http;
pub mod https;
mod kept;
mod local_form;
pub mod maildir;
pub mod oauth;
mod on_disk;
mod paused;
pub mod pipe;
mod put_off;
pub mod receipts;
pub mod settle;
pub mod shelf;
pub mod smart_hosts;
pub mod smtp;
pub mod standing;
pub mod target_test;
pub mod throttle;
pub mod tls_report;
pub mod transport;
mod turns;
pub mod webhook;

pub use body::Body;
use groups::Group;

/// One message for one destination: all recipients in it may share a transaction.
#[derive(Clone, Debug)]
pub struct Job {
    pub message: Arc<Message>,
    /// The whole message.
    pub body: Body,
    /// With their number within the message.
    pub recipients: Vec<(u32, Recipient)>,
}

/// What one try did for one recipient.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Delivered(Delivered),
    /// Kept on this server instead of sent (`delivery.default = "capture"`).
    Captured,
    /// The same, for an address that stands for a reader who calls it spam.
    Complained,
    /// Not sent, until a person releases it (`delivery.allow_recipients`). No try was made.
    Held(Hold),
    /// Not sent: the address is on the suppression list. Nobody is told.
    Suppressed(String),
    /// Try again: on the schedule, or not before the given number of seconds from now
    /// (Retry-After of a webhook).
    Defer {
        why: Failure,
        not_before_secs: Option<u64>,
    },
    /// There was no try, because of what is known of the destination; it is due again then. That counts for nothing.
    NotTried {
        why: Failure,
        until: Millis,
    },
    /// Never try again; the sender is told.
    Fail(Failure),
    /// It was queued for an address of ours that led nowhere then, or for one elsewhere before
    /// `delivery.redirect_all_to` was set; now it leads here.
    Rerouted(Vec<(Address, Route)>),
}

/// Proof of delivery, for the story.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delivered {
    /// Host name and address, URL, or file.
    pub to: String,
    /// The far end's reply, if it has one.
    pub reply: Option<Reply>,
    /// TLS version and cipher, if the connection was encrypted.
    pub tls: Option<String>,
    pub hop: Hop,
}

/// How far a delivery went, and so who tells the sender of it (RFC 3461 5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hop {
    /// It is where mail for the recipient goes: the report is ours.
    #[default]
    Final,
    /// Another server has it that knows nothing of such reports: we say that it went there.
    Relayed,
    /// Another server has it, and what the sender asked for: the report is its own.
    PassedOn,
}

/// Why a host cannot be asked right now. It is never about the mail.
#[derive(Clone, Debug, PartialEq)]
pub struct HostFailure {
    /// It is about our account there: a person has to act, or it passes by itself (`Later`).
    pub login: Option<smtp::LoginFault>,
    pub failure: Failure,
    /// Seconds from now before which another try is of no use.
    pub not_before_secs: Option<u64>,
}

impl HostFailure {
    /// What it means for a recipient if there is no other host.
    pub fn outcome(&self) -> Outcome {
        Outcome::Defer { why: self.failure.clone(), not_before_secs: self.not_before_secs }
    }
}

/// Where a job goes; jobs with equal destinations share limits and turns.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// A domain whose servers are not known.
    Domain(Domain),
    /// Servers that are the mail exchangers of a domain, or of several.
    Group(Group),
    /// A smart host, by its name.
    Host(String),
    Target(String),
    /// Nowhere: what is captured does not leave.
    Capture,
}
