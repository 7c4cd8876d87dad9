//! How far a test of a connection has come, step by step and with the time that each took: for a person who
//! tests a smart host, a mailbox, a target or an account. Deliveries and fetching keep no trail.
//!
//! Of a login only the mechanism is in it, of a message only the reply. What a session of TLS looks like to people
//! is said here too, since every test says it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio_rustls::rustls::ClientConnection;
use webpki::EndEntityCert;

/// Marks of one trail. A conversation has some ten for each address of a host; more are not kept.
const MARKS_MAX: usize = 200;
/// Host names of a certificate that are shown.
const NAMES_SHOWN: usize = 5;

/// A part of the way to a delivery, or to a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Leg {
    Configuration,
    Token,
    Pop,
    Dns,
    Connect,
    Banner,
    Ehlo,
    Starttls,
    Tls,
    Auth,
    Mail,
    Rcpt,
    Data,
    /// The reply to the message.
    Message,
    Reset,
    /// A request to Graph.
    Graph,
    /// Of a mailbox.
    Folder,
    /// What lies in a mailbox.
    Messages,
    /// A folder of ours, and whether it can be written to.
    Writing,
    Program,
    /// A request to a webhook.
    Request,
}

/// What one leg came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub leg: Leg,
    pub millis: u64,
    /// One line for people, none of it secret.
    pub what: String,
    /// What EHLO offers, a line for each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub offers: Vec<String>,
}

/// Shared between who tests and what does the steps.
#[derive(Clone, Debug, Default)]
pub struct Trail(Arc<Mutex<Vec<Mark>>>);

impl Trail {
    pub fn mark(&self, leg: Leg, since: Instant, what: impl Into<String>) {
        self.mark_offers(leg, since, what, Vec::new());
    }

    pub fn mark_offers(&self, leg: Leg, since: Instant, what: impl Into<String>, offers: Vec<String>) {
        let mut marks = self.lock();
        if marks.len() < MARKS_MAX {
            marks.push(Mark { leg, millis: millis(since.elapsed()), what: what.into(), offers });
        }
    }

    pub fn marks(&self) -> Vec<Mark> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Mark>> {
        // Nothing in here panics half-way, so a poisoned lock still guards sound data.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `TLSv1.3 TLS13_AES_256_GCM_SHA384`, for the story.
pub fn description(session: &ClientConnection) -> String {
    let version = session.protocol_version().and_then(|version| version.as_str()).unwrap_or("TLS");
    let cipher = session.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("unknown cipher");
    format!("{} {cipher}", version.replace('_', "."))
}

/// Whose certificate it is, for people: the host names in it. Says nothing of whether it is good.
pub fn holder(session: &ClientConnection) -> String {
    let shown = session.peer_certificates().and_then(<[_]>::first);
    let Some(certificate) = shown.and_then(|first| EndEntityCert::try_from(first).ok()) else {
        return "no certificate that can be read".to_owned();
    };
    let names: Vec<&str> = certificate.valid_dns_names().take(NAMES_SHOWN).collect();
    match names.is_empty() {
        true => "a certificate without a host name".to_owned(),
        false => format!("certificate for {}", names.join(", ")),
    }
}

/// What came of a test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tested {
    /// `account`, `fetch` or `target`.
    pub test: String,
    /// Of the section in the configuration.
    pub name: String,
    pub good: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// A test message was accepted.
    pub sent: bool,
    pub marks: Vec<Mark>,
    pub problem: Option<Problem>,
}

/// Why a test did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub group: Group,
    pub what: String,
    pub remedy: String,
}

/// Kinds of what can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    BadHostName,
    NoResponse,
    Disconnected,
    Refused,
    Login,
    Tls,
    Unsupported,
    /// A file, folder or program of this machine.
    System,
    Other,
}

impl Group {
    pub fn name(self) -> &'static str {
        match self {
            Group::BadHostName => "bad host name",
            Group::NoResponse => "no response",
            Group::Disconnected => "disconnected",
            Group::Refused => "the server refused",
            Group::Login => "login",
            Group::Tls => "TLS",
            Group::Unsupported => "not supported by the server",
            Group::System => "this machine",
            Group::Other => "other",
        }
    }
}

fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}
