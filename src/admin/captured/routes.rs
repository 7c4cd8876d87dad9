//! The routes for what is captured; the table is in [`super`].

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{Router, get, post};
use serde::{Deserialize, Serialize};

use super::{
    CONTENT_SECURITY_POLICY, CapturedFilter, CapturedPage, CapturedWish, File, Kept, LIMIT_DEFAULT, LIMIT_MAX,
    RELEASE_TO_MAX, Read,
};
use crate::admin::api::{Answer, Api, ApiError, parse_id, to_its_end};
use crate::admin::events::since;
use crate::admin::filter::parse_duration;
use crate::admin::{Backend, Trouble};
use crate::clock::Millis;
use crate::message::{Address, MessageId};

/// The longest wait for a message that is not there yet.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// For what a browser shows of a message that is not its HTML.
const SHOW_NOTHING: &str = "sandbox; default-src 'none'";

pub(in crate::admin) fn routes<B: Backend>() -> Router<Arc<Api<B>>> {
    Router::new()
        .route("/api/v1/captured", get(list::<B>).delete(delete_all::<B>))
        .route("/api/v1/captured/{id}", get(show::<B>).delete(delete_one::<B>))
        .route("/api/v1/captured/{id}/source", get(source::<B>))
        .route("/api/v1/captured/{id}/html", get(html::<B>))
        .route("/api/v1/captured/{id}/attachments/{number}", get(attachment::<B>))
        .route("/api/v1/captured/{id}/release", post(release::<B>))
}

/// As it stands in the URL.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ListQuery {
    to: Option<String>,
    from: Option<String>,
    subject: Option<String>,
    q: Option<String>,
    since: Option<String>,
    limit: Option<usize>,
    before: Option<MessageId>,
    wait: Option<String>,
}

/// The same where nothing but the filters makes sense.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DeleteQuery {
    to: Option<String>,
    from: Option<String>,
    subject: Option<String>,
    q: Option<String>,
    since: Option<String>,
}

impl DeleteQuery {
    fn filter(self, now: Millis) -> Result<CapturedFilter, ApiError> {
        let DeleteQuery { to, from, subject, q, since: then } = self;
        let then = then.map(|text| since(&text, now)).transpose()?;
        Ok(CapturedFilter { to, from, subject, q, since: then })
    }
}

fn not_a_query(rejection: &QueryRejection, parameters: &str) -> ApiError {
    ApiError::bad(rejection.body_text(), format!("parameters are {parameters}"))
}

async fn list<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Answer<CapturedPage> {
    let parameters = "to, from, subject, q, since (2h), limit, before (an id), wait (10s)";
    let Query(query) = query.map_err(|rejection| not_a_query(&rejection, parameters))?;
    let ListQuery { to, from, subject, q, since, limit, before, wait } = query;
    let filter = DeleteQuery { to, from, subject, q, since }.filter(api.backend.now())?;
    let limit = limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(ApiError::bad(format!("limit is {limit}"), "a page has 1 to 1000 messages"));
    }
    let wish = CapturedWish { filter, before, limit };
    let wait = wait.as_deref().map(parse_duration).transpose().map_err(|error| ApiError::bad(error, "wait=10s"))?;
    Ok(Json(match wait {
        Some(wait) if wait > WAIT_MAX => {
            return Err(ApiError::bad(
                format!("wait is {} s", wait.as_secs()),
                format!("wait for {} s at most, and ask again", WAIT_MAX.as_secs()),
            ));
        }
        Some(wait) => api.backend.wait_captured(wish, wait).await?,
        None => api.backend.list_captured(wish).await?,
    }))
}

async fn kept<B: Backend>(api: &Api<B>, id: &str) -> Result<Kept, ApiError> {
    let id = parse_id(id)?;
    api.backend.captured(id).await?.ok_or_else(|| unknown(id))
}

fn unknown(id: MessageId) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        format!("no captured message has the id {id}"),
        "`postrider captured list` (/api/v1/captured) shows those that are kept; what became of others, `postrider log ID`",
    )
}

/// Off the threads that others wait for: a message may be large.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    let broken = |_| Trouble::new("reading the message was broken off by a fault of this server");
    Ok(tokio::task::spawn_blocking(work).await.map_err(broken)?)
}

async fn show<B: Backend>(State(api): State<Arc<Api<B>>>, Path(id): Path<String>) -> Answer<Read> {
    let _place = api.readers.acquire().await;
    let kept = kept(&api, &id).await?;
    Ok(Json(aside(move || super::read(&kept)).await?))
}

async fn source<B: Backend>(State(api): State<Arc<Api<B>>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let _place = api.readers.acquire().await;
    let Kept { message, raw, .. } = kept(&api, &id).await?;
    let name = format!("{}.eml", message.id);
    Ok((file_headers("message/rfc822", &name), raw).into_response())
}

async fn html<B: Backend>(State(api): State<Arc<Api<B>>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let _place = api.readers.acquire().await;
    let Kept { message, raw, .. } = kept(&api, &id).await?;
    let html = aside(move || super::for_a_frame(message.id, &raw)).await?;
    let html = html.ok_or_else(|| {
        let remedy = format!("/api/v1/captured/{id} has its text, /api/v1/captured/{id}/source its bytes");
        ApiError::new(StatusCode::NOT_FOUND, format!("the message {id} has no HTML that can be shown"), remedy)
    })?;
    Ok((frame_headers(), html).into_response())
}

/// With which the HTML of a message is answered, wherever that is done.
pub(in crate::admin) fn frame_headers() -> HeaderMap {
    let mut headers = safe_headers("text/html; charset=utf-8", CONTENT_SECURITY_POLICY);
    headers.insert("x-dns-prefetch-control", HeaderValue::from_static("off"));
    headers
}

/// With which a file out of a message is answered.
pub(in crate::admin) fn file_headers(content_type: &str, name: &str) -> HeaderMap {
    let mut headers = safe_headers(content_type, SHOW_NOTHING);
    // A name that cannot stand there is not worth an error: the file is saved all the same.
    if let Ok(value) = HeaderValue::from_str(&disposition(name)) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    headers
}

fn safe_headers(content_type: &str, policy: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let unknown = HeaderValue::from_static("application/octet-stream");
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap_or(unknown));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    headers
}

/// RFC 6266 4.1, RFC 8187 3.2: for all, and as it is for those who can.
fn disposition(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || " !#+,-.=@[]^_{}~()".contains(c);
    let plain: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    let mut text = format!("attachment; filename=\"{plain}\"");
    if plain != name {
        text.push_str("; filename*=UTF-8''");
        for byte in name.bytes() {
            match byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                true => text.push(byte.into()),
                false => text.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    text
}

async fn attachment<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Path((id, number)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let not_a_number = |_| ApiError::bad(format!("{number:?} is not a number"), "the first attachment is 1");
    let number: usize = number.parse().map_err(not_a_number)?;
    let _place = api.readers.acquire().await;
    let Kept { raw, .. } = kept(&api, &id).await?;
    let file = aside(move || super::attachment(&raw, number)).await?;
    let File { name, content_type, bytes } = file.ok_or_else(|| {
        let remedy = format!("/api/v1/captured/{id} lists them");
        ApiError::new(StatusCode::NOT_FOUND, format!("the message {id} has no attachment {number}"), remedy)
    })?;
    Ok((file_headers(&content_type, &name), bytes).into_response())
}

/// Whom it is sent to; nobody named: those whom it was for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ReleaseBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Many>,
}

/// One, or a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Many {
    One(String),
    All(Vec<String>),
}

/// How many recipients it is sent to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReleaseAnswer {
    pub recipients: usize,
}

async fn release<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<ReleaseAnswer> {
    let id = parse_id(&id)?;
    let shape = "send nothing, {}, or {\"to\": \"ann@example.net\"}";
    if !body.is_empty() && !is_json(&headers) {
        let error = "the content type is not application/json";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error, shape));
    }
    let body: ReleaseBody = match body.is_empty() {
        true => ReleaseBody::default(),
        false => serde_json::from_slice(&body).map_err(|error| ApiError::bad(error.to_string(), shape))?,
    };
    let to = match body.to {
        None => Vec::new(),
        Some(Many::One(one)) => vec![one],
        Some(Many::All(all)) if all.is_empty() => return Err(ApiError::bad("\"to\" names nobody", shape)),
        Some(Many::All(all)) => all,
    };
    if to.len() > RELEASE_TO_MAX {
        return Err(ApiError::bad(
            format!("{} addresses are named", to.len()),
            format!("name {RELEASE_TO_MAX} at most"),
        ));
    }
    let parse = |text: &String| {
        Address::parse(text).map_err(|error| ApiError::bad(format!("{text:?} is not an address: {error}"), shape))
    };
    let to = to.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let backend = api.backend.clone();
    let released = to_its_end(async move { backend.release_captured(id, to).await }).await??;
    released.map(|recipients| Json(ReleaseAnswer { recipients })).ok_or_else(|| unknown(id))
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

/// How many messages are gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeleteAnswer {
    pub messages: usize,
}

async fn delete_all<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    query: Result<Query<DeleteQuery>, QueryRejection>,
) -> Answer<DeleteAnswer> {
    let Query(query) = query.map_err(|rejection| not_a_query(&rejection, "to, from, subject, q, since (2h)"))?;
    // An empty part is in every text: whoever has forgotten to fill it in does not mean all.
    if [&query.subject, &query.q].into_iter().flatten().any(String::is_empty) {
        return Err(ApiError::bad(
            "a filter is empty",
            "fill it in, or leave it out to delete all that fits the others",
        ));
    }
    let (filter, backend) = (query.filter(api.backend.now())?, api.backend.clone());
    let messages = to_its_end(async move { backend.delete_captured(filter).await }).await??;
    Ok(Json(DeleteAnswer { messages }))
}

async fn delete_one<B: Backend>(State(api): State<Arc<Api<B>>>, Path(id): Path<String>) -> Answer<DeleteAnswer> {
    let (id, backend) = (parse_id(&id)?, api.backend.clone());
    match to_its_end(async move { backend.delete_one_captured(id).await }).await?? {
        true => Ok(Json(DeleteAnswer { messages: 1 })),
        false => Err(unknown(id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_cannot_end_the_header() {
        assert_eq!(disposition("a b.pdf"), "attachment; filename=\"a b.pdf\"");
        assert_eq!(disposition("\"\r\nü"), "attachment; filename=\"____\"; filename*=UTF-8''%22%0D%0A%C3%BC");
        let headers = file_headers("text/\r\n", "x");
        assert_eq!(
            headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes),
            Some(&b"application/octet-stream"[..])
        );
    }
}
