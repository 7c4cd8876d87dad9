//! The routes for what has happened: a page at a time, or line by line as it happens.
//!
//! `q` is a queue id, a Message-ID or an address (`@example.com`: everybody there); `since` a time (RFC 3339) or how long
//! ago (`2h`). Pages hold whole messages, the newest first; `next` is to be given as `before`, and an empty page with
//! a `next` means that so much was looked at, not that there is no more. With `follow=true` the answer is a line of JSON an
//! event, and does not end; `{"lost": n}` where the reader was too slow, an empty line now and then.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{Router, get};
use hyper::body::{Body as HttpBody, Frame};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::Receiver;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::api::{Api, ApiError};
use super::filter::parse_duration;
use super::{Backend, view};
use crate::clock::Millis;
use crate::events::search::{Context, Line};
use crate::events::{Entry, Event};
use crate::message::{Domain, MessageId};

/// Events of a page, if nothing is said, and at most; the last message of it may bring some more.
pub const LIMIT_DEFAULT: usize = 100;
pub const LIMIT_MAX: usize = 1000;
/// How often a line without content shows that a reader is still there.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);
/// Of the lines that follow.
const LINES: &str = "application/x-ndjson";

pub(super) fn routes<B: Backend>() -> Router<Arc<Api<B>>> {
    Router::new().route("/api/v1/events", get(events::<B>))
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventsWish {
    pub id: Option<MessageId>,
    /// A Message-ID or an address.
    pub about: Option<String>,
    pub account: Option<String>,
    /// By name.
    pub smart_host: Option<String>,
    pub failed: bool,
    pub since: Option<Millis>,
    pub before: Option<MessageId>,
    pub limit: usize,
}

/// An event with what it is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventLine {
    #[serde(with = "view::time")]
    pub at: Millis,
    pub queue_id: MessageId,
    pub context: Context,
    #[serde(flatten)]
    pub event: Event,
}

impl From<Line> for EventLine {
    fn from(Line { id, context, entry: Entry { at, event } }: Line) -> EventLine {
        EventLine { at, queue_id: id, context, event }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventsPage {
    pub events: Vec<EventLine>,
    /// Give it as `before` to get the next page; none: that was all.
    pub next: Option<MessageId>,
}

/// As it stands in the URL.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EventsQuery {
    pub(super) q: Option<String>,
    pub(super) account: Option<String>,
    pub(super) smart_host: Option<String>,
    pub(super) failed: bool,
    pub(super) since: Option<String>,
    pub(super) limit: Option<usize>,
    pub(super) before: Option<MessageId>,
    pub(super) follow: bool,
}

impl EventsQuery {
    pub(super) fn wish(self, now: Millis) -> Result<EventsWish, ApiError> {
        let limit = self.limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(ApiError::bad(format!("limit is {limit}"), "a page has 1 to 1000 events"));
        }
        let since = self.since.map(|text| since(&text, now)).transpose()?;
        let (id, about) = match self.q.as_deref().map(str::trim).filter(|q| !q.is_empty()) {
            None => (None, None),
            Some(q) => match q.parse::<MessageId>() {
                Ok(id) => (Some(id), None),
                Err(_) if q.contains('@') => (None, Some(as_written(q.trim_matches(['<', '>'])))),
                Err(_) => {
                    let what = format!("{q:?} is neither a queue id nor a Message-ID nor an address");
                    return Err(ApiError::bad(what, "q=bob@example.net, q=@example.net or the id of a 250 reply"));
                }
            },
        };
        let EventsQuery { account, smart_host, failed, before, .. } = self;
        Ok(EventsWish { id, about, account, smart_host, failed, since, before, limit })
    }
}

/// Stories have domains in A-labels.
fn as_written(q: &str) -> String {
    let Some((local, domain)) = q.rsplit_once('@').filter(|(_, domain)| !domain.is_ascii()) else {
        return q.to_owned();
    };
    Domain::parse(domain).map_or_else(|_| q.to_owned(), |domain| format!("{local}@{domain}"))
}

pub(super) fn since(text: &str, now: Millis) -> Result<Millis, ApiError> {
    let ago = |ago: Duration| now.saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX));
    let given = view::time::parse(text).map_or_else(|| parse_duration(text).map(ago), Ok);
    given.map_err(|_| {
        let what = format!("since is {text:?}, which is neither a time nor a duration");
        ApiError::bad(what, "such as 2h, 3d or 2026-11-22T08:00:00Z")
    })
}

async fn events<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let parameters = "parameters are q, account, smart_host, failed, since (2h), limit, before (an id), follow";
    let Query(query) = query.map_err(|rejection| ApiError::bad(rejection.body_text(), parameters))?;
    let follow = query.follow;
    let wish = query.wish(api.backend.now())?;
    if !follow {
        return Ok(Json(api.backend.events(wish).await?).into_response());
    }
    let lines = api.backend.follow(wish).await?;
    let mut ticks = interval(SIGN_OF_LIFE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let content_type = (header::CONTENT_TYPE, LINES);
    Ok(([content_type], Body::new(Lines { lines, ticks })).into_response())
}

/// An answer that goes on for as long as both sides like.
struct Lines {
    lines: Receiver<Bytes>,
    ticks: Interval,
}

impl HttpBody for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Poll::Ready(line) = self.lines.poll_recv(task) {
            return Poll::Ready(line.map(|line| Ok(Frame::data(line))));
        }
        // The first tick comes at once: with it a reader knows that it will miss nothing from here on.
        self.ticks.poll_tick(task).map(|_| Some(Ok(Frame::data(Bytes::from_static(b"\n")))))
    }
}
