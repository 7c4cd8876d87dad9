//! The words between the dialogue and what does its I/O: steps, time-outs, and how it can go wrong.

use std::fmt;
use std::time::Duration;

use super::auth::LoginFault;
use super::replies::{RawReply, ReplyError};
use crate::delivery::Outcome;
use crate::delivery::tls_report::Flaw;
use crate::queue::record::Failure;

/// How long to wait for the far end (RFC 5321 4.5.3.2).
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    pub greeting: Duration,
    /// EHLO, HELO, STARTTLS, RSET: "other commands".
    pub command: Duration,
    pub mail: Duration,
    pub rcpt: Duration,
    pub data: Duration,
    /// One write of content.
    pub block: Duration,
    /// The reply to the end of the content: the final dot, or the last octet of a chunk.
    pub dot: Duration,
    pub quit: Duration,
}

impl Timeouts {
    pub const RFC5321: Timeouts = Timeouts {
        greeting: Duration::from_secs(5 * 60),
        command: Duration::from_secs(5 * 60),
        mail: Duration::from_secs(5 * 60),
        rcpt: Duration::from_secs(5 * 60),
        data: Duration::from_secs(2 * 60),
        block: Duration::from_secs(3 * 60),
        dot: Duration::from_secs(10 * 60),
        quit: Duration::from_secs(3),
    };
}

/// What to do about STARTTLS on this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tls {
    /// In clear: the second try of a host whose TLS is broken.
    Never,
    IfOffered,
    Required,
    /// Before anything is said.
    Implicit,
}

/// How far the conversation with a host got; the further, the more it tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Address,
    Connect,
    Greeting,
    Hello,
    Tls,
    Login,
    Transaction,
}

/// Why this host did not do. The next one may.
#[derive(Clone, Debug, PartialEq)]
pub struct Trouble {
    pub stage: Stage,
    pub failure: Failure,
    /// TLS was at fault and is not required: the same host may do in clear.
    pub clear_may_help: bool,
    /// The host offers BDAT and does not know it: it may do with DATA, on a new connection.
    pub data_may_help: bool,
    /// It is about our account there.
    pub login: Option<LoginFault>,
    /// What is wrong with its TLS.
    pub flaw: Option<Flaw>,
    /// It did not answer in time.
    pub is_silence: bool,
}

impl Trouble {
    pub fn login(fault: LoginFault, failure: Failure) -> Trouble {
        Trouble { login: Some(fault), ..Trouble::new(Stage::Login, failure) }
    }

    pub fn new(stage: Stage, failure: Failure) -> Trouble {
        let (clear_may_help, data_may_help, is_silence) = (false, false, false);
        Trouble { stage, failure, clear_may_help, data_may_help, login: None, flaw: None, is_silence }
    }
}

/// How a connection can fail us other than by a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    Closed,
    Broken(String),
    TimedOut,
    /// This server is about to end, and waits no longer.
    Hurried,
    Garbage(ReplyError),
    /// More replies than commands: what they answer cannot be known.
    Desync,
    /// It spoke while the content was on its way, and said this, if it made sense.
    Interrupted(Option<RawReply>),
}

/// How the end of a message is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// By a dot (DATA): the content is dot-stuffed.
    Dot,
    /// By its octets (BDAT): the command with their number goes before them, in one chunk.
    Counted,
}

/// What to do next.
#[derive(PartialEq)]
pub enum Step {
    /// Write this (it may be empty), then wait for one reply and give it to [`super::client::Client::reply`].
    Talk {
        send: Vec<u8>,
        timeout: Duration,
        /// It is part of a login, and never to be shown.
        secret: bool,
    },
    /// Make a TLS handshake and call [`super::client::Client::secured`] or [`super::client::Client::handshake_failed`].
    StartTls,
    /// Write the content; give the last block to [`super::client::Client::end_content`] instead.
    Content(Framing),
    /// Connected; call [`super::client::Client::begin`] or [`super::client::Client::quit`].
    Ready,
    /// The fate of each recipient of this message; ready for the next one.
    Done(Vec<(u32, Outcome)>),
    Over(Over),
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Talk { secret: true, .. } => f.write_str("Talk(secret)"),
            Step::Talk { send, timeout, secret: false } => {
                write!(f, "Talk({:?}, {timeout:?})", send.escape_ascii().to_string())
            }
            Step::StartTls => f.write_str("StartTls"),
            Step::Content(framing) => f.debug_tuple("Content").field(framing).finish(),
            Step::Ready => f.write_str("Ready"),
            Step::Done(outcomes) => f.debug_tuple("Done").field(outcomes).finish(),
            Step::Over(over) => f.debug_tuple("Over").field(over).finish(),
        }
    }
}

/// The connection is of no further use. Recipients that are not `decided` may try the next host.
#[derive(Debug, PartialEq)]
pub struct Over {
    pub decided: Vec<(u32, Outcome)>,
    pub trouble: Trouble,
}
