//! The routes for the suppression list: who is on it, on it with these, off it with those, and why.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::routing::{Router, get, post};
use serde::{Deserialize, Serialize};

use super::api::{Answer, Api, ApiError, Sent, to_its_end};
use super::{Backend, view};
use crate::bounce::suppression::{Event, Listed, Reason, Who};
use crate::clock::Millis;
use crate::intake::suppress::NewEntry;
use crate::message::MessageId;

/// Entries of one page, if nothing is said, and at most.
pub(crate) const PAGE_DEFAULT: usize = 100;
pub(crate) const PAGE_MAX: usize = 1000;
/// Entries that one request may add or take away.
pub(crate) const ENTRIES_MAX: usize = 1000;
/// Bytes of such a request.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

pub(super) fn routes<B: Backend>() -> Router<Arc<Api<B>>> {
    Router::new()
        .route("/api/v1/suppressions", get(list::<B>).post(add::<B>))
        .route("/api/v1/suppressions/remove", post(remove::<B>))
        .route("/api/v1/suppressions/explain", get(explain::<B>))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

/// An entry, as it is shown and as it is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suppressed {
    /// `bob@example.net`, or `@example.net` for all addresses there.
    pub address: String,
    /// A stream, or `global`. Given without: every stream that skips such addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    #[serde(default = "manual")]
    pub reason: Reason,
    #[serde(default, with = "view::time::option", skip_serializing_if = "Option::is_none")]
    pub since: Option<Millis>,
    #[serde(default, with = "view::time::option", skip_serializing_if = "Option::is_none")]
    pub expires: Option<Millis>,
    /// Messages that put it there. Given: ignored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<MessageId>,
}

fn manual() -> Reason {
    Reason::Manual
}

impl From<Listed> for Suppressed {
    fn from(Listed { address, scope, entry }: Listed) -> Suppressed {
        Suppressed {
            address,
            scope: Some(scope),
            reason: entry.reason,
            since: Some(entry.since),
            expires: entry.expires,
            evidence: entry.evidence,
        }
    }
}

fn new_entry(given: Suppressed) -> Result<NewEntry, ApiError> {
    let Suppressed { address, scope, reason, since, expires, evidence: _ } = given;
    Ok(NewEntry { who: who(&address)?, scope, reason, since, expires })
}

fn who(text: &str) -> Result<Who, ApiError> {
    Who::parse(text).map_err(|error| ApiError::bad(error.to_string(), "write bob@example.net or @example.net"))
}

/// A bounce that came back from an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounced {
    #[serde(with = "view::time")]
    pub at: Millis,
    pub class: String,
    pub status: String,
    pub message: MessageId,
    /// Refused to ourselves.
    pub direct: bool,
    /// By the rule.
    pub counts: bool,
}

impl Bounced {
    pub fn new(event: &Event, counts: bool) -> Bounced {
        let Event { at, class, message, direct, status } = event;
        Bounced {
            at: *at,
            class: class.name().to_owned(),
            status: status.clone(),
            message: *message,
            direct: *direct,
            counts,
        }
    }
}

/// All that is known of an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    pub address: String,
    pub listed: Vec<Suppressed>,
    pub bounces: Vec<Bounced>,
    /// The last authentic mail from it, or when it was taken off the list: what is older counts no more.
    #[serde(default, with = "view::time::option", skip_serializing_if = "Option::is_none")]
    pub alive: Option<Millis>,
    /// What the rule says; none of a domain.
    pub rule: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// Address and scope of the last entry of the page before.
    address: Option<String>,
    scope: Option<String>,
    limit: Option<usize>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ListAnswer {
    pub suppressions: Vec<Suppressed>,
    /// There may be more after the last one.
    pub more: bool,
}

fn unreadable(rejection: QueryRejection) -> ApiError {
    ApiError::bad(rejection.body_text(), "?address=bob@example.net")
}

async fn list<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Answer<ListAnswer> {
    let Query(ListQuery { address, scope, limit }) = query.map_err(unreadable)?;
    let limit = limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX);
    let after = address.map(|address| (address, scope.unwrap_or_default()));
    let listed = api.backend.suppressions(after, limit).await?;
    let more = listed.len() >= limit;
    Ok(Json(ListAnswer { suppressions: listed.into_iter().map(Suppressed::from).collect(), more }))
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AddBody {
    pub suppressions: Vec<Suppressed>,
}

/// How many entries are new, changed or gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChangeAnswer {
    pub changed: usize,
}

async fn add<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    body: Result<Sent<AddBody>, ApiError>,
) -> Answer<ChangeAnswer> {
    let Sent(body) = body?;
    few(body.suppressions.len())?;
    let entries = body.suppressions.into_iter().map(new_entry).collect::<Result<Vec<_>, _>>()?;
    let backend = api.backend.clone();
    let changed = to_its_end(async move { backend.suppress(entries).await }).await??;
    Ok(Json(ChangeAnswer { changed }))
}

fn few(entries: usize) -> Result<(), ApiError> {
    let what = || format!("{entries} entries; at most {ENTRIES_MAX} fit in one request");
    if entries > ENTRIES_MAX { Err(ApiError::bad(what(), "send several requests")) } else { Ok(()) }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RemoveBody {
    pub addresses: Vec<String>,
    /// None: from all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Also those who have complained.
    #[serde(default)]
    pub force: bool,
}

async fn remove<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    body: Result<Sent<RemoveBody>, ApiError>,
) -> Answer<ChangeAnswer> {
    let Sent(RemoveBody { addresses, scope, force }) = body?;
    few(addresses.len())?;
    let whom = addresses.iter().map(|address| who(address)).collect::<Result<Vec<_>, _>>()?;
    let backend = api.backend.clone();
    let changed = to_its_end(async move { backend.unsuppress(whom, scope, force).await }).await??;
    Ok(Json(ChangeAnswer { changed }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExplainQuery {
    address: String,
}

async fn explain<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    query: Result<Query<ExplainQuery>, QueryRejection>,
) -> Answer<Explained> {
    let Query(ExplainQuery { address }) = query.map_err(unreadable)?;
    Ok(Json(api.backend.explain_suppression(who(&address)?).await?))
}
