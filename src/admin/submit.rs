//! The route by which messages come in: whole ones, or their parts as JSON.
//!
//! The answer comes once the message is on disk. With an `Idempotency-Key` it is queued once, however often
//! it is sent within 24 hours, and across restarts; the same key with another message is refused.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{Router, post};
use axum::{Extension, Json};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::Backend;
use super::api::{Api, ApiError, reverse_path, to_its_end};
use super::caller::Caller;
use super::compose::{Composed, MessageBody, compose};
use crate::clock::Millis;
use crate::intake::idempotency::{KEY_BYTES_MAX, Key};
use crate::message::{Address, Door, Draft, Envelope, MessageId, Origin};

/// JSON may write one byte of a message as up to six (`\u00xx`); ordinary text and base64 need far less.
const JSON_OVERHEAD_FACTOR: usize = 2;
/// Recipients of one message, unless the account's limit is lower.
const RECIPIENTS_MAX: usize = 1000;
/// A message that is not there by then is not waited for: others need its place.
const READ_MAX: Duration = Duration::from_secs(120);
/// How far ahead `send_at` may be, in milliseconds.
const AHEAD_MAX: Millis = 30 * 24 * 3600 * 1000;
const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

pub(super) fn routes<B: Backend>() -> Router<Arc<Api<B>>> {
    Router::new().route("/api/v1/messages", post(submit::<B>))
}

/// Queued.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SubmitAnswer {
    pub id: MessageId,
}

/// What a request says.
struct Asked {
    composed: Composed,
    key: Option<String>,
    /// All that makes it what it is.
    bytes: Bytes,
}

async fn submit<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    caller: Option<Extension<Caller>>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let Query(query) = query?;
    let (parts, body) = request.into_parts();
    let _place = api.submissions.acquire().await;
    let asked = match kind(&parts).as_str() {
        "message/rfc822" => whole(&parts, query, read(body, api.max_size()).await?)?,
        "application/json" => {
            let bytes = read(body, api.max_size().saturating_mul(JSON_OVERHEAD_FACTOR)).await?;
            from_json(&parts, bytes, &api.backend.status().await.hostname, api.backend.now())?
        }
        other => {
            return Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                format!("a message cannot be sent as {other:?}"),
                "content-type message/rfc822 or application/json",
            ));
        }
    };
    // Over the socket nobody has to say who asks.
    let caller = caller.map(|Extension(caller)| caller);
    let key = asked.key.map(|key| idempotency(&key, caller.as_ref(), &parts, &asked.bytes)).transpose()?;
    let draft = draft(asked.composed, caller, api.max_size(), api.backend.now())?;
    let once = to_its_end({
        let backend = api.backend.clone();
        async move { backend.submit(draft, key).await }
    })
    .await??;
    let mut response = (StatusCode::ACCEPTED, Json(SubmitAnswer { id: once.id })).into_response();
    if once.is_repeated {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

fn kind(parts: &Parts) -> String {
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

fn whole(parts: &Parts, query: Vec<(String, String)>, bytes: Bytes) -> Result<Asked, ApiError> {
    let known = ["from", "to"];
    if let Some((other, _)) = query.iter().find(|(name, _)| !known.contains(&name.as_str())) {
        return Err(ApiError::bad(
            format!("there is no parameter {other:?} here"),
            "from, and to once for each recipient",
        ));
    }
    let mut from = query.iter().filter(|(name, _)| name == "from");
    let (Some((_, from)), None) = (from.next(), from.next()) else {
        return Err(ApiError::bad("there is not one sender", "?from=a@example.com&to=b@example.net"));
    };
    let mail_from = reverse_path(from)
        .map_err(|error| ApiError::bad(format!("from: {from:?}: {error}"), "write local@domain, or <> for none"))?;
    let recipients = query.iter().filter(|(name, _)| name == "to").map(|(_, text)| {
        Address::parse(text).map_err(|error| ApiError::bad(format!("to: {text:?}: {error}"), "write local@domain"))
    });
    let recipients = recipients.collect::<Result<Vec<_>, _>>()?;
    let composed = Composed { mail_from, recipients, content: bytes.to_vec(), not_before: None };
    Ok(Asked { composed, key: key_header(&parts.headers)?, bytes })
}

fn from_json(parts: &Parts, bytes: Bytes, hostname: &str, now: Millis) -> Result<Asked, ApiError> {
    let body: MessageBody = serde_json::from_slice(&bytes).map_err(|error| {
        let form = r#"{"from": "a@example.com", "to": ["b@example.net"], "subject": "...", "text": "..."}; /openapi.json has all keys"#;
        ApiError::bad(error.to_string(), form)
    })?;
    let mut seed = [0; 16];
    getrandom::fill(&mut seed)
        .map_err(|error| super::Trouble::new(format!("the system gives no random numbers: {error}")))?;
    let composed = compose(&body, hostname, u128::from_be_bytes(seed), now)
        .map_err(|wrong| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, wrong.what, wrong.remedy))?;
    let key = match (key_header(&parts.headers)?, body.idempotency_key) {
        (Some(header), Some(inside)) if header != inside => {
            return Err(ApiError::bad("there are two idempotency keys", "the header Idempotency-Key alone is enough"));
        }
        (header, inside) => header.or(inside),
    };
    Ok(Asked { composed, key, bytes })
}

fn key_header(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(KEY) else { return Ok(None) };
    let text = value.to_str().map_err(|_| ApiError::bad("the idempotency key is not ASCII", "a UUID is a good key"))?;
    Ok(Some(text.to_owned()))
}

fn idempotency(key: &str, caller: Option<&Caller>, parts: &Parts, bytes: &[u8]) -> Result<Key, ApiError> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        let error = format!("an idempotency key has 1 to {KEY_BYTES_MAX} bytes, this one {}", key.len());
        return Err(ApiError::bad(error, "a UUID is a good key"));
    }
    let owner = match caller {
        Some(Caller::Account { name, .. }) => name.as_str(),
        Some(Caller::Operator) | None => "",
    };
    let query = parts.uri.query().unwrap_or_default();
    Ok(Key::new(owner, key, &[kind(parts).as_bytes(), query.as_bytes(), bytes]))
}

pub(super) async fn read(body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    let read = timeout(READ_MAX, axum::body::to_bytes(body, bytes_max)).await.map_err(|_| {
        let error = format!("the message was not here within {} s", READ_MAX.as_secs());
        ApiError::new(StatusCode::REQUEST_TIMEOUT, error, "try again over a faster connection")
    })?;
    read.map_err(|error| {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the message could not be read, or is larger than limits.max_size allows: {error}"),
            "send a smaller message or raise limits.max_size",
        )
    })
}

pub(crate) fn draft(
    composed: Composed,
    caller: Option<Caller>,
    max_size: usize,
    now: Millis,
) -> Result<Draft, ApiError> {
    let Composed { mail_from, recipients, content, not_before } = composed;
    let recipients_max = match &caller {
        Some(Caller::Account { max_recipients, .. }) => RECIPIENTS_MAX.min(*max_recipients),
        _ => RECIPIENTS_MAX,
    };
    if recipients.is_empty() {
        return Err(ApiError::bad("the message has no recipients", "name them with to, cc and bcc"));
    }
    if recipients.len() > recipients_max {
        let error = format!("a message has 1 to {recipients_max} recipients, this one {}", recipients.len());
        return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, error, "send it in several messages"));
    }
    if not_before.is_some_and(|wanted| wanted > now.saturating_add(AHEAD_MAX)) {
        let error = "send_at is more than 30 days ahead";
        return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, error, "send it to us later"));
    }
    let content = crlf(content.into());
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
    envelope.not_before = not_before.filter(|wanted| *wanted > now);
    envelope.smtputf8 = envelope.recipients.iter().any(|recipient| recipient.address.needs_smtputf8())
        || envelope.mail_from.address().is_some_and(Address::needs_smtputf8);
    let (door, account) = match caller {
        None => (Door::Admin, None),
        Some(Caller::Operator) => (Door::Http, None),
        Some(Caller::Account { name, .. }) => (Door::Http, Some(name)),
    };
    Ok(Draft { envelope, content: content.into(), origin: Origin { door, account, peer: None } })
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
