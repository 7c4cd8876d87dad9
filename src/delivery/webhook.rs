//! Delivery to a webhook: one signed POST for each recipient (Standard Webhooks headers), with the message
//! taken apart as JSON (`payload`) or as it is (`raw`).
//!
//! Promises: `webhook-id` is the same in every attempt for a recipient. With a secret, every request
//! carries `webhook-signature: v1,<base64>`, an HMAC-SHA256 over `id.timestamp.body`; a secret that
//! begins with `whsec_` is the base64 of the key, any other is the key itself. No answer can make us
//! drop mail but 406 and 422: a bad deployment that answers 404 costs time, not messages. 410 asks for a
//! pause, which is made in `paused`. Redirects
//! are not followed, answers are read up to a bound, the whole exchange has a deadline. What keeps
//! the endpoint from answering for one recipient of a message is not tried again for the others.
//!
//! The URL is the administrator's; nothing from a message ever becomes part of it. It may name an address of the own
//! network, but a public name leads to no private address ([`http::client_for`]).
//! Left out: proxies.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::sync::Semaphore;

use super::http::{self, ClientError, innermost};
use super::{Delivered, Hop, Job, Outcome, paused};
use crate::clock::Clock;
use crate::config::targets::WebhookFormat;
use crate::config::{Config, OwnDomain, Secret, Target};
use crate::message::Domain;
use crate::message::header::Headers;
use crate::queue::record::{Failure, Recipient};
use crate::routing::{answerable, inbound};
use crate::smtp::Reply;

mod payload;
mod raw;

/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 4096;
/// Characters of an answer that are shown.
const ANSWER_CHARS_SHOWN: usize = 200;
/// The deadline grows by a second for so many bytes of payload, or large mail could never pass a
/// slow line.
const BYTES_PER_SECOND_MIN: u64 = 1 << 20;
/// Messages of more bytes than this count as large …
const LARGE_BYTES: u64 = 1 << 20;
/// The JSON of a message is up to so many times as large as the message: all of it and its parts again, as
/// base64.
const JSON_GROWTH: u64 = 3;
/// … and only so many of them are in memory for one target at once.
const LARGE_AT_ONCE: usize = 2;

/// The configuration cannot be used; the text says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    #[error("targets.{0} is not a webhook")]
    NotAWebhook(String),
    #[error("targets.{0}.url is not an http:// or https:// URL with a host")]
    BadUrl(String),
    #[error("targets.{0}.secret begins with whsec_ but what follows is not base64")]
    BadSecret(String),
    #[error("targets.{0}: no certificate authorities are known to this system ({1}); install ca-certificates")]
    NoRoots(String, String),
    #[error("targets.{0}: the HTTP client could not be made: {1}")]
    Client(String, String),
}

impl WebhookError {
    /// The name of the target.
    pub fn target(&self) -> &str {
        match self {
            WebhookError::NotAWebhook(name)
            | WebhookError::BadUrl(name)
            | WebhookError::BadSecret(name)
            | WebhookError::NoRoots(name, _)
            | WebhookError::Client(name, _) => name,
        }
    }
}

/// One `[targets.*]` of kind `webhook`, ready to be used from many tasks.
pub struct Webhook {
    name: String,
    url: Url,
    /// Without user, password and query, which may be secrets.
    shown_url: String,
    key: Option<hmac::Key>,
    format: WebhookFormat,
    timeout: Duration,
    /// What sets off a subaddress, for each domain that has them.
    separators: BTreeMap<Domain, char>,
    client: Client,
    clock: Clock,
    large: Arc<Semaphore>,
    /// For its aliases.
    config: Option<Arc<Config>>,
}

/// Without the URL's and the signature's secrets.
impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Webhook({}, {})", self.name, self.shown_url)
    }
}

impl Webhook {
    /// `domains` tells how subaddresses are written.
    pub fn new(
        name: &str,
        target: &Target,
        domains: &BTreeMap<Domain, OwnDomain>,
        clock: Clock,
    ) -> Result<Webhook, WebhookError> {
        let Target::Webhook { url, secret, format, timeout } = target else {
            return Err(WebhookError::NotAWebhook(name.to_owned()));
        };
        let url = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let url = url.ok_or_else(|| WebhookError::BadUrl(name.to_owned()))?;
        let key = secret.as_ref().map(|secret| signing_key(name, secret)).transpose()?;
        Ok(Webhook {
            name: name.to_owned(),
            shown_url: shown(&url),
            client: client(name, &url, false)?,
            url,
            key,
            format: *format,
            timeout: *timeout,
            separators: separators(domains),
            clock,
            large: Arc::new(Semaphore::new(LARGE_AT_ONCE)),
            config: None,
        })
    }

    /// The same endpoint, with the same connections, under a configuration that has other domains or aliases.
    pub fn with_config(&self, config: Arc<Config>) -> Webhook {
        Webhook {
            name: self.name.clone(),
            url: self.url.clone(),
            shown_url: self.shown_url.clone(),
            key: self.key.clone(),
            format: self.format,
            timeout: self.timeout,
            separators: separators(&config.domains),
            client: self.client.clone(),
            clock: self.clock.clone(),
            large: self.large.clone(),
            config: Some(config),
        }
    }

    /// As `delivery.allow_private_addresses`: for names that lead into the own network.
    pub fn allowing_private(self, allowed: bool) -> Result<Webhook, WebhookError> {
        Ok(Webhook { client: client(&self.name, &self.url, allowed)?, ..self })
    }

    /// Tells the endpoint what the groups of pattern aliases have found.
    pub fn with_aliases(self, config: Arc<Config>) -> Webhook {
        Webhook { config: Some(config), ..self }
    }

    /// Tries each recipient of the job once.
    pub async fn deliver(&self, job: &Job) -> Vec<(u32, Outcome)> {
        // Held until the last request is done; never closed, so the permit is always had.
        let _permit = if job.body.len() > LARGE_BYTES { self.large.acquire().await.ok() } else { None };
        // It pays for the JSON, too, until the last request is done.
        let growth = if self.format == WebhookFormat::Json { JSON_GROWTH } else { 0 };
        let whole = match job.body.whole(growth).await {
            Ok(whole) => whole,
            Err(error) => {
                let reason = format!("the stored message cannot be read: {error}");
                return defer_all(job, &Failure::local("4.3.0", self.name.as_str(), reason));
            }
        };
        let shared = if self.format == WebhookFormat::Json { render(job, &whole).await } else { Some(whole.clone()) };
        // Half a request might be answered with a yes.
        let Some(shared) = shared else {
            let reason = format!(
                "the message could not be put into JSON by a fault of this server, please report it; with \
                 targets.{}.format = \"raw\" it goes as it is",
                self.name
            );
            return defer_all(job, &Failure::local("4.3.0", self.name.as_str(), reason));
        };
        let mut outcomes = Vec::with_capacity(job.recipients.len());
        let mut endpoint_down: Option<Outcome> = None;
        for (number, recipient) in &job.recipients {
            if let Some(outcome) = &endpoint_down {
                outcomes.push((*number, outcome.clone()));
                continue;
            }
            let (outcome, reach) = self.post(job, *number, recipient, (&whole, &shared)).await;
            if reach == Reach::EndpointDown {
                endpoint_down = Some(without_doubt(&outcome));
            }
            outcomes.push((*number, outcome));
        }
        outcomes
    }

    fn known(&self, job: &Job, recipient: &Recipient, whole: &[u8]) -> payload::Known<'_> {
        let own = recipient.alias.as_ref().unwrap_or(&recipient.address);
        let groups = self.config.as_ref().map(|config| inbound::groups(config, own)).unwrap_or_default();
        payload::Known {
            separator: self.separators.get(recipient.address.domain()).copied(),
            target: &self.name,
            groups,
            may_answer: answerable::why_not(&Headers::parse(whole), &job.message.mail_from, own).is_none(),
        }
    }

    /// `parts`: the message, and the JSON that its recipients share.
    async fn post(&self, job: &Job, number: u32, recipient: &Recipient, parts: (&Bytes, &Bytes)) -> (Outcome, Reach) {
        let id = payload::event_id(&job.message, number);
        let (whole, shared) = parts;
        let known = self.known(job, recipient, whole);
        let (content_type, pieces, fields) = match self.format {
            WebhookFormat::Json => {
                let head = payload::head(&job.message, &id, recipient, &known);
                let pieces = vec![Bytes::from(head), shared.clone(), Bytes::from_static(payload::TAIL)];
                ("application/json", pieces, Vec::new())
            }
            WebhookFormat::Raw => {
                let fields = raw::fields(&job.message, recipient, &known);
                (raw::CONTENT_TYPE, vec![shared.clone()], fields)
            }
        };
        let timestamp = (self.clock.now() / 1000).to_string();
        let length: usize = pieces.iter().map(Bytes::len).sum();
        let deadline = self.timeout + Duration::from_secs(length as u64 / BYTES_PER_SECOND_MIN);
        let mut request = self
            .client
            .post(self.url.clone())
            .timeout(deadline)
            .headers(HeaderMap::from_iter(fields))
            .header(CONTENT_TYPE, content_type)
            .header("webhook-id", &id)
            .header("webhook-timestamp", &timestamp);
        if let Some(key) = &self.key {
            request = request.header("webhook-signature", signature(key, &id, &timestamp, &pieces));
        }
        match request.body(reqwest::Body::wrap(Pieces(pieces.into()))).send().await {
            Ok(response) => self.judge(response).await,
            Err(error) => (self.unanswered(&error, deadline), Reach::EndpointDown),
        }
    }

    async fn judge(&self, response: Response) -> (Outcome, Reach) {
        let status = response.status();
        if status.is_success() {
            let text = status.canonical_reason().unwrap_or("accepted");
            let reply = Some(Reply::bare(status.as_u16(), text));
            let tls = None;
            return (
                Outcome::Delivered(Delivered { to: self.shown_url.clone(), reply, tls, hop: Hop::Final }),
                Reach::Answered,
            );
        }
        let not_before_secs = http::retry_after(response.headers(), self.clock.now());
        let answer = excerpt(response).await;
        let said = format!("{} answered {status}{answer}", self.shown_url);
        let failure = |status: &str, reason: String| Failure::local(status, self.name.as_str(), reason);
        match status {
            StatusCode::NOT_ACCEPTABLE => (Outcome::Fail(failure("5.7.1", said)), Reach::Answered),
            StatusCode::UNPROCESSABLE_ENTITY => (Outcome::Fail(failure("5.6.0", said)), Reach::Answered),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                (Outcome::Defer { why: failure("4.4.5", said), not_before_secs }, Reach::EndpointDown)
            }
            StatusCode::GONE => {
                tracing::warn!(answer = said, "a webhook wants nothing more");
                (paused::held(&self.name), Reach::EndpointDown)
            }
            _ if status.is_redirection() => {
                let why = failure(
                    "4.3.5",
                    format!("{said}; redirects are not followed, put the final URL into targets.{}.url", self.name),
                );
                (Outcome::Defer { why, not_before_secs: None }, Reach::EndpointDown)
            }
            _ => (Outcome::Defer { why: failure("4.3.0", said), not_before_secs: None }, Reach::Answered),
        }
    }

    /// No complete answer came.
    fn unanswered(&self, error: &reqwest::Error, deadline: Duration) -> Outcome {
        let what = match () {
            () if error.is_timeout() => format!("no answer within {} s", deadline.as_secs_f32()),
            () if error.is_connect() => format!("no connection: {}", innermost(error)),
            () => format!("the connection broke: {}", innermost(error)),
        };
        let status = if error.is_connect() { "4.4.1" } else { "4.4.2" };
        let mut why = Failure::local(status, self.name.as_str(), format!("{}: {what}", self.shown_url));
        // Once connected, the endpoint may have taken the event before it went silent.
        why.unsure = !error.is_connect();
        Outcome::Defer { why, not_before_secs: None }
    }
}

fn defer_all(job: &Job, why: &Failure) -> Vec<(u32, Outcome)> {
    let defer = Outcome::Defer { why: why.clone(), not_before_secs: None };
    job.recipients.iter().map(|(number, _)| (*number, defer.clone())).collect()
}

/// Is it worth trying the next recipient of the same message?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Answered,
    EndpointDown,
}

/// The same for a recipient for whom nothing was sent.
fn without_doubt(outcome: &Outcome) -> Outcome {
    let mut outcome = outcome.clone();
    if let Outcome::Defer { why, .. } = &mut outcome {
        why.unsure = false;
    }
    outcome
}

/// The part of the JSON that all recipients share, made off the async threads. None: it cannot be made.
async fn render(job: &Job, whole: &Bytes) -> Option<Bytes> {
    let (message, whole) = (Arc::clone(&job.message), whole.clone());
    unless_it_panics_twice(move |unparsed| payload::shared(&message, &whole, unparsed)).await
}

/// A parser that panics must not lose the message for that: it goes unparsed, and not at all if that panics, too.
async fn unless_it_panics_twice(render: impl Fn(Option<String>) -> Bytes + Clone + Send + 'static) -> Option<Bytes> {
    let again = render.clone();
    if let Ok(shared) = tokio::task::spawn_blocking(move || render(None)).await {
        return Some(shared);
    }
    let why = "the message could not be taken apart".to_owned();
    tokio::task::spawn_blocking(move || again(Some(why))).await.ok()
}

/// Without certificate authorities for plain HTTP, so that it works where there are none.
fn separators(domains: &BTreeMap<Domain, OwnDomain>) -> BTreeMap<Domain, char> {
    domains.iter().filter_map(|(domain, own)| Some((domain.clone(), own.subaddress?))).collect()
}

fn client(name: &str, url: &Url, allow_private: bool) -> Result<Client, WebhookError> {
    http::client_for(url, allow_private).map_err(|error| match error {
        ClientError::NoRoots(why) => WebhookError::NoRoots(name.to_owned(), why),
        ClientError::Client(why) => WebhookError::Client(name.to_owned(), why),
    })
}

pub(super) fn signing_key(name: &str, Secret(secret): &Secret) -> Result<hmac::Key, WebhookError> {
    let bytes = match secret.strip_prefix("whsec_") {
        None => secret.clone().into_bytes(),
        Some(encoded) => STANDARD_NO_PAD
            .decode(encoded.trim_end_matches('='))
            .map_err(|_| WebhookError::BadSecret(name.to_owned()))?,
    };
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

pub(super) fn signature(key: &hmac::Key, id: &str, timestamp: &str, body: &[Bytes]) -> String {
    let mut context = hmac::Context::with_key(key);
    context.update(format!("{id}.{timestamp}.").as_bytes());
    body.iter().for_each(|piece| context.update(piece));
    format!("v1,{}", STANDARD.encode(context.sign()))
}

pub(super) fn shown(url: &Url) -> String {
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

/// The beginning of an answer as a piece of a sentence.
pub(super) async fn excerpt(mut response: Response) -> String {
    let line = http::one_line(&http::beginning(&mut response, ANSWER_BYTES_MAX).await, ANSWER_CHARS_SHOWN);
    if line.is_empty() { line } else { format!(": {line}") }
}

/// A request body in pieces whose length is known: neither copied together nor sent in chunks.
struct Pieces(VecDeque<Bytes>);

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|piece| piece.len() as u64).sum())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]
    use super::*;

    #[tokio::test]
    async fn a_message_that_cannot_be_put_into_json_is_not_sent_by_halves() {
        let good = unless_it_panics_twice(|unparsed| Bytes::from(unparsed.unwrap_or_default())).await;
        assert_eq!(good, Some(Bytes::new()));
        let unparsed = unless_it_panics_twice(|unparsed| match unparsed {
            Some(why) => why.into(),
            None => panic!("as planned"),
        });
        assert_eq!(unparsed.await, Some("the message could not be taken apart".into()));
        assert_eq!(unless_it_panics_twice(|_| panic!("as planned")).await, None);
    }
}
