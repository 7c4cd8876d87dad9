//! Why a message is where it is: the words of both sides, and the route.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::routing::{Router, get};
use serde::{Deserialize, Serialize};

use super::api::{Answer, Api, parse_id, unknown};
use super::{Backend, view};
use crate::clock::Millis;
use crate::message::{Address, MessageId, ReversePath};
use crate::queue::record::Failure;

pub(super) fn routes<B: Backend>() -> Router<Arc<Api<B>>> {
    Router::new().route("/api/v1/explain/{id}", get(explain::<B>))
}

async fn explain<B: Backend>(State(api): State<Arc<Api<B>>>, Path(id): Path<String>) -> Answer<Explanation> {
    let id = parse_id(&id)?;
    Ok(Json(api.backend.explain(id).await?.ok_or_else(|| unknown(id))?))
}

/// How it stands with a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    pub id: MessageId,
    /// When it was so.
    #[serde(with = "view::time")]
    pub now: Millis,
    /// Something of it is still queued.
    pub queued: bool,
    /// Envelope sender, empty for the null sender; none if nothing of it is queued any more and its story
    /// does not begin with it.
    pub from: Option<ReversePath>,
    /// None if nothing of it is queued any more.
    pub stream: Option<String>,
    /// Those that are queued first.
    pub recipients: Vec<Explained>,
    /// Queued recipients that are not told of, because there are too many.
    pub left_out: usize,
    /// What is wrong with this server as a whole.
    pub troubles: Vec<String>,
}

/// How it stands with one recipient.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explained {
    /// None: that is in a record that cannot be read.
    pub address: Option<Address>,
    /// The address that was written in RCPT, if another one.
    pub alias: Option<Address>,
    pub state: Condition,
    pub cause: Cause,
    /// One sentence.
    pub why: String,
    /// The setting that holds it, or that would change it.
    pub key: Option<String>,
    /// Where that is written, if it is.
    #[serde(default)]
    pub place: Option<String>,
    /// When it is tried next; none if that cannot be told, or a person has to act.
    #[serde(with = "view::time::option")]
    pub next: Option<Millis>,
    pub attempts: u32,
    /// What the last try ended with.
    pub last: Option<Failure>,
    /// What the next try does, in sentences.
    pub then: Vec<String>,
    /// What a person can do.
    pub can: Vec<Remedy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    Waiting,
    Held,
    Captured,
    Damaged,
    Done,
}

/// What it is about, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// It is in an attempt.
    UnderWay,
    /// It is due, and nothing holds it.
    Turn,
    /// Its sender wanted it to go later.
    NotBefore,
    Suspended,
    DailyLimit,
    BlockPause,
    StreamConcurrency,
    BackOff,
    Rate,
    Connections,
    TlsPolicy,
    Dns,
    SmartHostLogin,
    Greylisted,
    /// A temporary refusal.
    Reply,
    NoConnection,
    /// It may have arrived.
    Unsure,
    Configuration,
    Store,
    Disk,
    Target,
    OwnTrouble,
    AccountHold,
    AllowRecipients,
    NoDestination,
    Dmarc,
    Milter,
    /// It was fetched, and would have been refused otherwise.
    Refused,
    LoopLimit,
    /// Its target has not taken it in time.
    DeadLetter,
    Operator,
    /// For another reason, which is in the sentence.
    Held,
    Captured,
    Damaged,
    Delivered,
    Failed,
    Expired,
    Cancelled,
    Discarded,
    Rerouted,
}

/// A command, and what it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remedy {
    pub command: String,
    pub effect: String,
}

impl Remedy {
    pub fn new(command: impl Into<String>, effect: impl Into<String>) -> Remedy {
        Remedy { command: command.into(), effect: effect.into() }
    }
}
