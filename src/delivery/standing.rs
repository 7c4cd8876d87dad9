//! How it stands with the place that a delivery goes to, as the dispatcher sees it: for `explain` and for an
//! overview. Nothing is changed by asking.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::attempt::Note;
use crate::clock::Millis;
use crate::message::Domain;
use crate::queue::record::{Failure, Message, Recipient};

/// A dispatcher that does not answer in this time has other things to do.
const PATIENCE: Duration = Duration::from_secs(2);
/// Places of an overview.
pub const PLACES_MAX: usize = 200;
/// How the reason begins where servers are left alone because of what they said.
const LEFT_ALONE: &str = "not tried, because of what happened before: ";
/// The reason where a rate is used up for a while.
const USED_UP: &str = "not tried yet: there is more mail for these servers than their rate in [destinations] allows";

/// What is known of a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The servers, the smart host or the target.
    pub destination: String,
    /// Where the limits are configured, such as `destinations.default`.
    pub section: String,
    /// Attempts at once, as configured.
    pub connections: usize,
    /// What the servers have left of it by complaining.
    pub window: usize,
    /// Nothing starts before, because of a complaint; 0: no matter.
    pub until: Millis,
    /// The last complaint, and when it was heard.
    pub complaint: Option<(String, Millis)>,
    /// Messages in so many milliseconds.
    pub rate: Option<(u32, Millis)>,
    /// When the rate, or the end of a pause, lets the next one start; 0: no matter.
    pub opens_at: Millis,
    /// Attempts under way.
    pub running: usize,
    /// Jobs that wait for their turn.
    pub waiting: u64,
}

/// What kind of place it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The mail exchangers of a domain or of several, or a domain whose exchangers are not known.
    Servers,
    SmartHost,
    Target,
    /// Nowhere: it is kept here.
    Capture,
}

/// A place with mail that waits or is under way, or one that has complained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub kind: Kind,
    pub standing: Standing,
}

/// All such places, those in trouble first, then those with the most to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    /// At most [`PLACES_MAX`].
    pub places: Vec<Place>,
    /// How many more there are.
    pub left_out: usize,
}

pub(super) type Overview = oneshot::Sender<Places>;

/// One recipient that it is asked about, with the servers of its domain, if they are known.
pub(super) struct Question {
    pub message: Arc<Message>,
    pub recipient: Recipient,
    pub servers: Vec<Domain>,
    pub answer: oneshot::Sender<Standing>,
}

/// Asks a dispatcher.
#[derive(Clone, Debug)]
pub struct Inquiry(mpsc::UnboundedSender<Note>);

impl Inquiry {
    pub(super) fn new(tell: mpsc::UnboundedSender<Note>) -> Inquiry {
        Inquiry(tell)
    }

    /// None: it has stopped, or is too busy.
    pub async fn ask(&self, message: Arc<Message>, recipient: Recipient, servers: Vec<Domain>) -> Option<Standing> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Note::Asked(Box::new(Question { message, recipient, servers, answer }))).ok()?;
        tokio::time::timeout(PATIENCE, answered).await.ok()?.ok()
    }

    /// Where there is something to do, or trouble. None: it has stopped, or is too busy.
    pub async fn overview(&self) -> Option<Places> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Note::AskedForAll(answer)).ok()?;
        tokio::time::timeout(PATIENCE, answered).await.ok()?.ok()
    }
}

/// Why a job is not tried: its servers have complained.
pub(super) fn left_alone(why: &str) -> Failure {
    Failure::local("4.4.1", "", format!("{LEFT_ALONE}{why}"))
}

/// Why a job is not tried: the rate of its servers.
pub(super) fn used_up() -> Failure {
    Failure::local("4.4.5", "", USED_UP)
}

/// What the servers had complained of, if that is why it was not tried.
pub fn complaint_in(why: &Failure) -> Option<&str> {
    why.reason.strip_prefix(LEFT_ALONE)
}

/// Was it not tried because of a rate?
pub fn is_rate(why: &Failure) -> bool {
    why.reason == USED_UP
}

/// Was there no try, for either reason?
pub fn was_put_off(why: &Failure) -> bool {
    is_rate(why) || complaint_in(why).is_some()
}

/// How often it was tried until it was given up, for the reason: what comes before it, and between the two.
pub fn tries_until(attempt: u32, why: &Failure) -> (String, &'static str) {
    match (attempt, was_put_off(why)) {
        (0, _) => ("without a try".to_owned(), ""),
        (1, false) => ("after 1 try".to_owned(), "the last one: "),
        (tries, false) => (format!("after {tries} tries"), "the last one: "),
        (1, true) => ("after 1 try".to_owned(), "since then: "),
        (tries, true) => (format!("after {tries} tries"), "since then: "),
    }
}
