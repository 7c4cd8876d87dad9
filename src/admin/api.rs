//! The routes under `/api/v1` and `/healthz`. Every answer is JSON; an error is
//! `{"error": "what happened", "remedy": "what to do"}`.
//!
//! | request                                   | answer                                             |
//! |-------------------------------------------|----------------------------------------------------|
//! | `GET /api/v1/queue?to=&from=&domain=&status=&older_than=&limit=&after=` | `{"messages": […], "next": id or null}` |
//! | `GET /api/v1/queue/{id}`                  | the story, also of a message that is done          |
//! | `POST /api/v1/queue/{retry,hold,release,cancel}` with `{"ids": […], "filter": {…}, "all": true, "dry_run": true}` | `{"recipients": n, "dry_run": false}` |
//! | `POST /api/v1/messages?from=&to=&to=` with `message/rfc822`, or JSON `{"from", "to": […], "raw"}` | 202 `{"id"}` once it is on disk |
//! | `GET /api/v1/status`                      | version, host name, open listeners                 |
//! | `GET /api/v1/queue?status=damaged`        | `{"messages": [], "next": null, "damaged": […]}`   |
//! | `GET /api/v1/queue/{id}/export`           | the envelope as one line of JSON, then the message |
//! | `POST /api/v1/queue/import?name=` with the same | 201 `{"id", "already", "key"}` once it is on disk |
//! | `POST /api/v1/queue/imported` with `{"keys": […]}` | these files will not come again          |
//! | `POST /api/v1/store/backup` with `{"to": "/…"}` | `{"to", "bytes", "files"}` once it is on disk |
//! | `POST /api/v1/store/compact`              | `{"before", "after"}`, bytes                       |
//! | `POST /api/v1/suspend`, `…/resume` with `{}`, `{"stream": "…"}`, `{"smart_host": "…"}` or `{"fetch": true}` | `{"changed", "suspended": […], "exempt": […]}` |
//! | `POST /api/v1/pickup/once` with `{}` or `{"name": "…"}` | `{"folders": [{"queued": […], "bad": […], …}]}` |
//! | `POST /api/v1/smart-hosts/test` with `{"name", "from", "to", "send"}` | the report of a test, good or not |
//! | `GET /healthz`                            | 200 `{"status": "ok"}` while the process answers   |
//! | `GET /readyz`                             | 200 while mail can be taken, else 503; both say how it stands |
//! | `GET /metrics`                            | counters for Prometheus                            |

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{Router, get, post};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::filter::{PAGE_MESSAGES_DEFAULT, PAGE_MESSAGES_MAX, SelectionBody, parse_duration};
use super::{Action, Backend, Filter, Listed, Page, Selection, Trouble};
use crate::message::address::parse_reverse_path;
use crate::message::{Address, Door, Draft, Envelope, MessageId, Origin, ReversePath};
use crate::smtp::reply::{Refusal, Severity};

/// Bytes of a request that is not a message.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// Messages read into memory at once; more wait.
const SUBMISSIONS_MAX: usize = 4;
/// JSON may write one byte of a message as up to six (`\u00xx`); ordinary text needs far less.
const JSON_OVERHEAD_FACTOR: usize = 2;
/// Recipients of one submitted message.
const RECIPIENTS_MAX: usize = 1000;

/// What the handlers share.
pub(super) struct Api<B> {
    pub(super) backend: Arc<B>,
    /// Bytes of a submitted message.
    pub(super) max_size: usize,
    pub(super) submissions: Semaphore,
}

pub(super) fn router<B: Backend>(backend: Arc<B>, max_size: u64) -> Router {
    let max_size = usize::try_from(max_size).unwrap_or(usize::MAX);
    let api = Arc::new(Api { backend, max_size, submissions: Semaphore::new(SUBMISSIONS_MAX) });
    let mut routes = Router::new()
        .route("/api/v1/queue", get(list::<B>))
        .route("/api/v1/queue/{id}", get(story::<B>))
        .route("/api/v1/messages", post(submit::<B>))
        .route("/api/v1/status", get(status::<B>))
        .route("/healthz", get(healthz))
        .merge(super::pickup::routes::<B>())
        .merge(super::suspend::routes::<B>())
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
pub(super) struct ApiError {
    #[serde(skip)]
    status: StatusCode,
    error: String,
    remedy: String,
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
            "parameters are to, from, domain, status, older_than (4h), limit, after (an id)",
        )
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> ApiError {
        ApiError::new(rejection.status(), rejection.body_text(), "send a JSON object, content-type application/json")
    }
}

pub(super) type Answer<T> = Result<Json<T>, ApiError>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    to: Option<String>,
    from: Option<String>,
    domain: Option<String>,
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
    let limit = query.limit.unwrap_or(PAGE_MESSAGES_DEFAULT).clamp(1, PAGE_MESSAGES_MAX);
    let filter = Filter { to: query.to, from: query.from, domain: query.domain, status: query.status, older_than };
    let messages = api.backend.list(filter, Page { limit, after: query.after }).await?;
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
}

async fn change<B: Backend>(
    action: Action,
    State(api): State<Arc<Api<B>>>,
    body: Result<Json<SelectionBody>, JsonRejection>,
) -> Answer<ChangeAnswer> {
    let Json(body) = body?;
    let selection = Selection::try_from(body)
        .map_err(|error| ApiError::bad(error.to_string(), r#"{"ids": [...]}, {"filter": {...}} or {"all": true}"#))?;
    let dry_run = selection.dry_run;
    let recipients = to_its_end({
        let backend = api.backend.clone();
        async move { backend.change(action, selection).await }
    })
    .await??;
    Ok(Json(ChangeAnswer { recipients, dry_run }))
}

async fn status<B: Backend>(State(api): State<Arc<Api<B>>>) -> Json<super::ServerStatus> {
    Json(api.backend.status().await)
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

/// A message as JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubmitBody {
    from: String,
    to: Vec<String>,
    raw: String,
}

/// Queued.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SubmitAnswer {
    pub id: MessageId,
}

async fn submit<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
    request: Request,
) -> Result<(StatusCode, Json<SubmitAnswer>), ApiError> {
    let Query(query) = query?;
    let (parts, body) = request.into_parts();
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let kind = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    let _place = api.submissions.acquire().await;
    let (from, to, raw) = match kind.as_str() {
        "message/rfc822" => {
            let raw = read(body, api.max_size).await?;
            let to = query.iter().filter(|(name, _)| name == "to").map(|(_, value)| value.clone()).collect();
            let from = query.into_iter().find(|(name, _)| name == "from").map(|(_, value)| value);
            let from =
                from.ok_or_else(|| ApiError::bad("there is no sender", "?from=a@example.com&to=b@example.net"))?;
            (from, to, raw)
        }
        "application/json" => {
            let text = read(body, api.max_size.saturating_mul(JSON_OVERHEAD_FACTOR)).await?;
            let body: SubmitBody = serde_json::from_slice(&text).map_err(|error| {
                ApiError::bad(error.to_string(), r#"{"from": "a@example.com", "to": ["b@example.net"], "raw": "..."}"#)
            })?;
            (body.from, body.to, Bytes::from(body.raw))
        }
        _ => {
            return Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                format!("a message cannot be sent as {kind:?}"),
                "content-type message/rfc822 or application/json",
            ));
        }
    };
    let id = to_its_end({
        let (backend, draft) = (api.backend.clone(), draft(&from, &to, raw, api.max_size)?);
        async move { backend.submit(draft).await }
    })
    .await??;
    Ok((StatusCode::ACCEPTED, Json(SubmitAnswer { id })))
}

pub(super) async fn read(body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    axum::body::to_bytes(body, bytes_max).await.map_err(|error| {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the message could not be read, or is larger than limits.max_size allows: {error}"),
            "send a smaller message or raise limits.max_size",
        )
    })
}

fn draft(from: &str, to: &[String], raw: Bytes, max_size: usize) -> Result<Draft, ApiError> {
    let address = |text: &str| {
        Address::parse(text).map_err(|error| ApiError::bad(format!("{text:?}: {error}"), "write local@domain"))
    };
    let mail_from = match parse_reverse_path(from) {
        Ok(path) => path,
        Err(_) => ReversePath::Address(address(from)?),
    };
    if to.is_empty() || to.len() > RECIPIENTS_MAX {
        return Err(ApiError::bad(format!("a message has 1 to {RECIPIENTS_MAX} recipients"), "name them with to"));
    }
    let recipients = to.iter().map(|text| address(text)).collect::<Result<Vec<_>, _>>()?;
    let content = crlf(raw);
    if content.is_empty() || content.len() > max_size {
        let error = format!("the message has {} bytes; 1 to {max_size} are allowed", content.len());
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, error, "limits.max_size is the limit"));
    }
    // Every other way in refuses it (`smtp::wire::Flaw`), and it could never be sent on.
    if content.contains(&0) {
        let error = "the message holds a NUL octet, which no mail may have";
        return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, error, "encode it (base64)"));
    }
    let mut envelope = Envelope::new(mail_from, recipients);
    envelope.smtputf8 = envelope.recipients.iter().any(|recipient| recipient.address.needs_smtputf8())
        || envelope.mail_from.address().is_some_and(Address::needs_smtputf8);
    Ok(Draft { envelope, content: content.into(), origin: Origin { door: Door::Admin, account: None, peer: None } })
}

/// Lines as mail has them: a file from an editor ends them with LF.
fn crlf(raw: Bytes) -> Bytes {
    let mut previous = 0;
    let clean = raw.iter().enumerate().all(|(at, byte)| {
        let fits = match byte {
            b'\n' => previous == b'\r',
            _ => previous != b'\r',
        };
        previous = *byte;
        fits && (*byte != b'\r' || at + 1 < raw.len())
    });
    if clean && raw.ends_with(b"\r\n") {
        return raw;
    }
    let mut out = Vec::with_capacity(raw.len() + raw.len() / 32 + 2);
    let mut bytes = raw.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\r' => {
                bytes.next_if_eq(&b'\n');
                out.extend_from_slice(b"\r\n");
            }
            b'\n' => out.extend_from_slice(b"\r\n"),
            other => out.push(other),
        }
    }
    if !out.is_empty() && !out.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_line_ends_become_crlf() {
        for (raw, wanted) in [
            ("a\nb\n", "a\r\nb\r\n"),
            ("a\r\nb", "a\r\nb\r\n"),
            ("a\rb\r", "a\r\nb\r\n"),
            ("a\r\n\r\nb\r\n", "a\r\n\r\nb\r\n"),
            ("a\n\r\n\nb", "a\r\n\r\n\r\nb\r\n"),
            ("\r\r\n", "\r\n\r\n"),
            ("", ""),
        ] {
            assert_eq!(crlf(Bytes::from_static(raw.as_bytes())), wanted.as_bytes(), "{raw:?}");
        }
    }
}
