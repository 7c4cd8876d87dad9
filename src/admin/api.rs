//! The routes under `/api/v1` and `/healthz`. Every answer is JSON; an error is
//! `{"error": "what happened", "remedy": "what to do"}`.
//!
//! | request                                   | answer                                             |
//! |-------------------------------------------|----------------------------------------------------|
//! | `GET /api/v1/queue?to=&from=&domain=&stream=&status=&older_than=&limit=&after=` | `{"messages": […], "next": id or null}` |
//! | `GET /api/v1/queue/{id}`                  | the story, also of a message that is done          |
//! | `POST /api/v1/queue/{retry,hold,release,cancel}` with `{"ids": […], "filter": {…}, "all": true, "dry_run": true}` | `{"recipients": n, "dry_run": false}` |
//! | `POST /api/v1/messages?from=&to=&to=` with `message/rfc822`, or JSON (`compose`) | 202 `{"id"}` once it is on disk (`submit`) |
//! | `GET /api/v1/events?q=&account=&smart_host=&failed=&since=&limit=&before=` | `{"events": […], "next": id or null}` (`events`) |
//! | `GET /api/v1/events?follow=true&…`        | a line of JSON for each event from now on          |
//! | `/api/v1/captured…`                       | what is captured: the table is in `captured`       |
//! | `GET /openapi.json`                       | all of this, and `/api/v1/reload`, as OpenAPI 3.1  |
//! | `GET /api/v1/status`                      | version, host name, open listeners                 |
//! | `GET /api/v1/queue?status=damaged`        | `{"messages": [], "next": null, "damaged": […]}`   |
//! | `GET /api/v1/queue/{id}/export`           | the envelope as one line of JSON, then the message |
//! | `POST /api/v1/queue/import?name=` with the same | 201 `{"id", "already", "key"}` once it is on disk |
//! | `POST /api/v1/queue/imported` with `{"keys": […]}` | these files will not come again          |
//! | `POST /api/v1/store/backup` with `{"to": "/…"}` | `{"to", "bytes", "files"}` once it is on disk |
//! | `POST /api/v1/store/compact`              | `{"before", "after"}`, bytes                       |
//! | `POST /api/v1/suspend`, `…/resume` with `{}`, `{"stream": "…"}`, `{"smart_host": "…"}` or `{"fetch": true}` | `{"changed", "suspended": […], "exempt": […]}` |
//! | `GET /api/v1/suppressions?address=&scope=&limit=` | `{"suppressions": […], "more": false}`, after that entry |
//! | `POST /api/v1/suppressions` with `{"suppressions": [{"address", "scope", "reason", "expires"}]}` | `{"changed"}` |
//! | `POST /api/v1/suppressions/remove` with `{"addresses": […], "scope", "force"}` | `{"changed"}` |
//! | `GET /api/v1/suppressions/explain?address=` | what came back from it, and what the rule says |
//! | `POST /api/v1/pickup/once` with `{}` or `{"name": "…"}` | `{"folders": [{"queued": […], "bad": […], …}]}` |
//! | `GET /api/v1/fetch`                       | `{"accounts": […]}`, how each mailbox elsewhere is doing |
//! | `POST /api/v1/fetch/run` with `{"account", "dry_run"}` | what a run at once has done, or would do |
//! | `GET /api/v1/explain/{id}`                | why each recipient still waits, or what became of it |
//! | `POST /api/v1/smart-hosts/test` with `{"name", "from", "to", "send"}` | the report of a test, good or not |
//! | `GET /healthz`                            | 200 `{"status": "ok"}` while the process answers   |
//! | `GET /readyz`                             | 200 while mail can be taken, else 503; both say how it stands |
//! | `GET /metrics`                            | counters for Prometheus                            |

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{Router, get, post};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::filter::{PAGE_MESSAGES_DEFAULT, PAGE_MESSAGES_MAX, SelectionBody, parse_duration};
use super::{Action, Backend, Changed, Filter, Listed, Page, Selection, Trouble, Waiting};
use crate::current::Current;
use crate::intake::idempotency;
use crate::message::address::{AddressError, parse_reverse_path};
use crate::message::{Address, MessageId, ReversePath};
use crate::smtp::reply::{Refusal, Severity};

/// Bytes of a request that is not a message.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// Messages read into memory at once; more wait.
const SUBMISSIONS_MAX: usize = 4;
/// Captured messages read for people at once; more wait.
const READERS_MAX: usize = 4;

/// What the handlers share.
pub(super) struct Api<B> {
    pub(super) backend: Arc<B>,
    /// Bytes of a submitted message.
    max_size: Current<u64>,
    pub(super) submissions: Semaphore,
    pub(super) readers: Semaphore,
}

impl<B> Api<B> {
    /// Bytes of a submitted message.
    pub(super) fn max_size(&self) -> usize {
        usize::try_from(*self.max_size.load()).unwrap_or(usize::MAX)
    }
}

pub(super) fn router<B: Backend>(backend: Arc<B>, max_size: Current<u64>) -> Router {
    let api = Arc::new(Api {
        backend,
        max_size,
        submissions: Semaphore::new(SUBMISSIONS_MAX),
        readers: Semaphore::new(READERS_MAX),
    });
    let mut routes = Router::new()
        .route("/api/v1/queue", get(list::<B>))
        .route("/api/v1/queue/{id}", get(story::<B>))
        .route("/openapi.json", get(openapi))
        .route("/api/v1/status", get(status::<B>))
        .route("/healthz", get(healthz))
        .merge(super::captured::routes::routes::<B>())
        .merge(super::events::routes::<B>())
        .merge(super::explain::routes::<B>())
        .merge(super::submit::routes::<B>())
        .merge(super::pickup::routes::<B>())
        .merge(super::suspend::routes::<B>())
        .merge(super::suppress::routes::<B>())
        .merge(super::fetch::routes::<B>())
        .merge(super::reload::routes::<B>())
        .merge(super::upkeep::routes::<B>());
    for action in Action::ALL {
        let handler = move |state, body| change::<B>(action, state, body);
        routes = routes.route(&format!("/api/v1/queue/{}", action.name()), post(handler));
    }
    routes
        .fallback(|| async {
            ApiError::new(StatusCode::NOT_FOUND, "there is nothing at this path", "see /api/v1/queue")
        })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path takes another method", "GET reads, POST acts")
        })
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .with_state(api)
}

/// An error as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct ApiError {
    #[serde(skip)]
    status: StatusCode,
    pub(super) error: String,
    pub(super) remedy: String,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, error: impl Into<String>, remedy: impl Into<String>) -> ApiError {
        ApiError { status, error: error.into(), remedy: remedy.into() }
    }

    pub(super) fn bad(error: impl Into<String>, remedy: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, error, remedy)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self)).into_response()
    }
}

impl From<Trouble> for ApiError {
    fn from(trouble: Trouble) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, trouble.0, "try again; the server's log says more")
    }
}

/// Whoever may connect runs this server, so the full reason is shown.
impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> ApiError {
        let (status, remedy) = match refusal.reply.severity() {
            Severity::Permanent if refusal.reason.ends_with(idempotency::USED) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "give each message a key of its own; the same key only with the same message",
            ),
            Severity::Permanent => (StatusCode::UNPROCESSABLE_ENTITY, "change the message or its addresses"),
            Severity::Transient | Severity::Positive => (StatusCode::SERVICE_UNAVAILABLE, "try again later"),
        };
        ApiError::new(status, refusal.reason, remedy)
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> ApiError {
        ApiError::bad(
            rejection.body_text(),
            "parameters are to, from, domain, stream, status, older_than (4h), limit, after (an id)",
        )
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> ApiError {
        ApiError::new(rejection.status(), rejection.body_text(), SHAPE)
    }
}

/// A body that is one JSON object. A list would be taken for its fields in their order, and an empty one for an object
/// without any: of what to suspend or to cancel that must not be read.
pub(super) struct Sent<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Sent<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Sent<T>, ApiError> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            let error = "the content type is not application/json";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error, SHAPE));
        }
        let bytes = Bytes::from_request(request, state).await;
        let bytes = bytes.map_err(|rejection| ApiError::new(rejection.status(), rejection.body_text(), SHAPE))?;
        if !bytes.trim_ascii_start().starts_with(b"{") {
            return Err(ApiError::bad("the body is not a JSON object", SHAPE));
        }
        let Json(body) = Json::from_bytes(&bytes)?;
        Ok(Sent(body))
    }
}

/// What is wanted.
const SHAPE: &str = "send a JSON object, content-type application/json";

pub(super) type Answer<T> = Result<Json<T>, ApiError>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    to: Option<String>,
    from: Option<String>,
    domain: Option<String>,
    stream: Option<String>,
    status: Option<super::view::Status>,
    older_than: Option<String>,
    limit: Option<usize>,
    after: Option<MessageId>,
}

/// A page of the queue.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ListAnswer {
    pub messages: Vec<Listed>,
    /// Give it as `after` to get the next page; none: that was the last.
    pub next: Option<MessageId>,
    /// Only with `status=damaged`: records that cannot be read and are set aside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<super::Damaged>,
}

async fn list<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Answer<ListAnswer> {
    let Query(query) = query?;
    let older_than = query.older_than.as_deref().map(parse_duration).transpose();
    let older_than = older_than.map_err(|error| ApiError::bad(error, "older_than=4h"))?;
    if query.status == Some(super::view::Status::Damaged) {
        return Ok(Json(ListAnswer { messages: Vec::new(), next: None, damaged: api.backend.damaged().await? }));
    }
    let limit = query.limit.unwrap_or(PAGE_MESSAGES_DEFAULT);
    if !(1..=PAGE_MESSAGES_MAX).contains(&limit) {
        return Err(ApiError::bad(format!("limit is {limit}"), "a page has 1 to 1000 messages"));
    }
    let ListQuery { to, from, domain, stream, status, after, .. } = query;
    let filter = Filter { to, from, domain, stream, status, older_than };
    let messages = api.backend.list(filter, Page { limit, after }).await?;
    let next = messages.last().map(|last| last.id).filter(|_| messages.len() >= limit);
    Ok(Json(ListAnswer { messages, next, damaged: Vec::new() }))
}

async fn story<B: Backend>(State(api): State<Arc<Api<B>>>, Path(id): Path<String>) -> Answer<super::Story> {
    let id = parse_id(&id)?;
    api.backend.story(id).await?.map(Json).ok_or_else(|| unknown(id))
}

pub(super) fn parse_id(id: &str) -> Result<MessageId, ApiError> {
    id.parse().map_err(|error: crate::message::id::NotAnId| {
        ApiError::bad(error.to_string(), "take the id from the server's 250 reply or from the list")
    })
}

pub(super) fn unknown(id: MessageId) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        format!("no message {id} is known here"),
        "stories are kept for events.keep (30 days) after a message is done; is the id from another server?",
    )
}

/// What an action did.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChangeAnswer {
    pub recipients: usize,
    pub dry_run: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<Waiting>,
}

async fn change<B: Backend>(
    action: Action,
    State(api): State<Arc<Api<B>>>,
    body: Result<Sent<SelectionBody>, ApiError>,
) -> Answer<ChangeAnswer> {
    let Sent(body) = body?;
    let selection = Selection::try_from(body)
        .map_err(|error| ApiError::bad(error.to_string(), r#"{"ids": [...]}, {"filter": {...}} or {"all": true}"#))?;
    let dry_run = selection.dry_run;
    let Changed { recipients, waiting } = to_its_end({
        let backend = api.backend.clone();
        async move { backend.change(action, selection).await }
    })
    .await??;
    Ok(Json(ChangeAnswer { recipients, dry_run, waiting }))
}

async fn status<B: Backend>(State(api): State<Arc<Api<B>>>) -> Json<super::ServerStatus> {
    Json(api.backend.status().await)
}

/// What can be asked here, for programs.
const OPENAPI: &str = include_str!("openapi.json");

async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}

async fn healthz() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "status": "ok" }))
}

/// Runs what changes the queue to its end, whether or not the client waits for the answer: a handler is
/// dropped when its client leaves, and half-way between the store and the dispatcher a message would
/// stay claimed by nobody.
pub(super) async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, ApiError> {
    let broken = |_| Trouble::new("the request was broken off by a fault of this server");
    Ok(tokio::spawn(work).await.map_err(broken)?)
}

/// As in MAIL FROM, with or without brackets.
pub(super) fn reverse_path(text: &str) -> Result<ReversePath, AddressError> {
    parse_reverse_path(text).or_else(|_| Address::parse(text).map(ReversePath::Address))
}
