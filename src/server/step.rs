//! What the session (a state machine without I/O) and the connection (the I/O pump) say to each other.
//!
//! The pump feeds lines that the framing has cut out into `Session::line`, does what the [`Step`]
//! says, and gives the result back through the method named at each variant. DNS, the store, the
//! clock and password hashes are on the pump's side.

use std::fmt;
use std::net::IpAddr;

use crate::config::{ListenerTls, Role, Secret};
use crate::message::{Address, Content, Domain, Draft, ReversePath};
use crate::smtp::Reply;
use crate::smtp::reply::Refusal;
use crate::smtp::wire::Flaw;

/// What a session has to know of its listener and its client. Fixed for its life.
#[derive(Clone, Debug)]
pub struct Policy {
    pub hostname: Domain,
    pub listener: String,
    pub role: Role,
    pub tls: ListenerTls,
    pub peer_ip: IpAddr,
    /// The client is in `networks.trusted`: it may submit without AUTH.
    pub trusted: bool,
    /// AUTH without TLS is offered: the client is on a loopback address.
    pub loopback: bool,
    /// Offer SCRAM-SHA-256: every active account can use it.
    pub scram: bool,
    /// Bytes; offered with SIZE.
    pub max_size: u64,
    /// Recipients of a message on this listener; accounts have their own.
    pub max_recipients: usize,
    pub errors_max: u32,
}

/// What the pump does next.
#[derive(Debug)]
pub enum Step {
    /// Say this, then the next line. Replies may be gathered while more input is buffered
    /// (RFC 2920), and are flushed before waiting.
    Reply(Reply),
    /// Say this, which refuses DATA. The client had to wait for it (RFC 2920 3.1): input that is
    /// buffered already is message content and must never be read as commands. If there is any,
    /// say this and close.
    ReplyAlone(Reply),
    /// Find this out, then `Session::answer`.
    Ask(Question),
    /// Say this, forget all buffered input (RFC 3207 4.2: what came before the handshake is dropped
    /// and the connection closed if there was any), do the handshake, then `Session::tls_started`.
    StartTls(Reply),
    /// Say this (354), read to CRLF.CRLF, then `Session::data_read`.
    ReadData(Reply),
    /// Read exactly so many octets (RFC 3030), then `Session::chunk_read`. `first` begins a message,
    /// and what is left of an earlier one is dropped. After the `last` one the whole content is given
    /// back, before that [`DataEnd::Partial`]. `discard`: the chunk is refused already and must
    /// only be drained; say [`DataEnd::Partial`] then.
    ReadChunk { size: u64, first: bool, last: bool, discard: bool },
    /// Say this and close.
    Close(Reply),
}

/// What only the outside knows.
#[derive(Debug)]
pub enum Question {
    /// Are these credentials good? → [`Answer::Account`] or [`Answer::Refused`].
    Authenticate(Login),
    /// What does SCRAM need to know of this account? → [`Answer::Scram`] or [`Answer::Refused`].
    Scram { account: String },
    /// SCRAM is through: the proof was good, or it was not, which counts as a failed log-in.
    /// → [`Answer::Account`] (only if it was good) or [`Answer::Refused`].
    ScramResult { account: String, good: bool },
    /// May the session's account (or trusted network) use this sender, and is there room for a
    /// message of this declared size? → [`Answer::Ok`] or [`Answer::Refused`].
    Sender { account: Option<String>, sender: ReversePath, size: Option<u64> },
    /// Is this recipient taken, after so many of the same message? → [`Answer::Ok`] or [`Answer::Refused`].
    Recipient { account: Option<String>, sender: ReversePath, before: usize, recipient: Address },
    /// Queue it. → [`Answer::Ok`] with the 250, or [`Answer::Refused`].
    Accept(Box<Draft>),
}

/// A user name and a password from PLAIN or LOGIN.
#[derive(Debug)]
pub struct Login {
    pub account: String,
    pub password: Secret,
}

/// What the outside found.
#[derive(Debug)]
pub enum Answer {
    Ok(Reply),
    Refused(Refusal),
    /// Logged in as this account, which may name so many recipients in a message.
    Account {
        name: String,
        max_recipients: usize,
    },
    Scram(ScramKeys),
}

/// RFC 5802 3: what a server keeps. For an unknown account they are derived from a server secret
/// and the name, so that the answer looks the same and never fits (`known` is false).
pub struct ScramKeys {
    pub account: String,
    pub known: bool,
    pub salt: Vec<u8>,
    pub iterations: u32,
    pub stored_key: [u8; 32],
    pub server_key: [u8; 32],
    pub max_recipients: usize,
    /// Random; printable, without a comma.
    pub server_nonce: String,
}

impl fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramKeys").field("account", &self.account).finish_non_exhaustive()
    }
}

/// How reading a message ended.
#[derive(Debug)]
pub enum DataEnd {
    /// Complete, within the limit, dot-unstuffed, CRLF lines only.
    Complete(Content),
    /// A chunk that is not the last one, and nothing wrong with it.
    Partial,
    /// Drained, but more than `max_size`.
    TooLarge,
    /// Drained, but it holds a CR or LF that is not part of a CRLF. RFC 5321 2.3.8 forbids it; taken
    /// as a line end it would let one message pass for two. After DATA the session closes.
    BareLineEnd,
    /// Drained, but it holds a NUL octet.
    Nul,
    /// More than `max_size`, and no end of it in sight (`smtp::wire::DRAIN_BYTES_MAX`).
    Endless,
    /// No room for it in memory or on disk right now; drained. A bare line end goes before it.
    NoRoom,
    /// The store failed while the message came in; drained.
    Unstored,
}

impl From<Flaw> for DataEnd {
    fn from(flaw: Flaw) -> DataEnd {
        match flaw {
            Flaw::BareLineEnd => DataEnd::BareLineEnd,
            Flaw::Nul => DataEnd::Nul,
            Flaw::TooLarge => DataEnd::TooLarge,
        }
    }
}
