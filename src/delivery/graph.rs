//! Delivery by Microsoft Graph: one sendMail request for each message, as MIME in base64.
//!
//! Promises: nobody gets a message who is not a recipient of the job; what goes wrong with the mailbox,
//! the token or the service never fails the mail; a mailbox is not asked to send more than it may. What
//! Graph cannot do (too large, other people in To or Cc) is left to the host's SMTP server if it has one.
//!
//! Graph answers for the message as a whole and says no more than that it was accepted; its sender is the
//! mailbox, and bounces go there. Leaves out: upload sessions for large messages, which would not keep
//! their bytes.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;

use super::http::{self, ClientError};
use super::oauth::{Resource, Tokens};
use super::smtp::LoginFault;
use super::smtp::dialogue::TARGET;
use super::{Delivered, Hop, HostFailure, Job, Outcome};
use crate::clock::Clock;
use crate::config::{Config, Secret, SmartHost, SmartHostKind};
use crate::message::Address;
use crate::queue::record::Failure;
use crate::smtp::Reply;

mod mime;
mod pacer;

use mime::Mismatch;
use pacer::Pacer;

/// Bytes of a message. A request may have 4 MiB, and base64 makes a third more of it.
pub const MESSAGE_BYTES_MAX: u64 = 3_000_000;
/// Of a message's size: the changed copy and its base64 are in memory beside it.
const COPIES: u64 = 3;
/// The whole exchange takes no longer.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes of an answer that are read, and characters of it that are shown.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
const ANSWER_CHARS_SHOWN: usize = 200;
/// Seconds until a service that says "too much" is asked again, if it names no time itself.
const PAUSE_SECS: u64 = 60;

/// These errors are about the mailbox or our rights there, whatever the status of the answer.
const ABOUT_THE_MAILBOX: [&str; 8] = [
    "ErrorExceededMessageLimit",
    "ErrorInvalidUser",
    "ErrorMailboxMoveInProgress",
    "ErrorMailboxStoreUnavailable",
    "ErrorMessageSubmissionBlocked",
    "ErrorQuotaExceeded",
    "ErrorSendAsDenied",
    "MailboxNotEnabledForRESTAPI",
];

/// What became of a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Sent {
    /// One for each recipient.
    Decided(Vec<(u32, Outcome)>),
    /// Nothing was sent; another host may do.
    Host(HostFailure),
    /// Nothing was sent: it has to go to the host's SMTP server. Only for a host that has one.
    BySmtp,
}

impl Sent {
    /// Where there is no other host.
    pub fn outcomes(self, job: &Job) -> Vec<(u32, Outcome)> {
        match self {
            Sent::Decided(outcomes) => outcomes,
            Sent::Host(failure) => all(job, &failure.outcome()),
            Sent::BySmtp => {
                let why = Failure::local("4.3.5", "", "the message cannot go by Graph");
                all(job, &Outcome::Defer { why, not_before_secs: None })
            }
        }
    }
}

/// Sends for all hosts of kind `graph`. Share it.
pub struct Graph {
    clock: Clock,
    tokens: Arc<Tokens>,
    client: Client,
    pacer: Arc<Pacer>,
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Graph")
    }
}

/// A mailbox at a Graph service.
struct Place<'a> {
    host: &'a SmartHost,
    url: Url,
    /// For people.
    name: String,
}

impl Graph {
    pub fn new(config: &Config, tokens: Arc<Tokens>, clock: Clock) -> Result<Graph, ClientError> {
        let mut kinds = config.smart_hosts.iter().map(|host| &host.kind);
        let with_tls = kinds.any(|kind| matches!(kind, SmartHostKind::Graph { url } if url.starts_with("https:")));
        Ok(Graph { clock, tokens, client: http::client(with_tls)?, pacer: Arc::default() })
    }

    /// For the hosts of another configuration; how much the mailboxes have sent is not forgotten.
    pub fn next(&self, config: &Config, tokens: Arc<Tokens>) -> Result<Graph, ClientError> {
        let next = Graph::new(config, tokens, self.clock.clone())?;
        Ok(Graph { pacer: self.pacer.clone(), ..next })
    }

    /// Tries the job once at this host, which is of kind `graph`.
    pub async fn deliver(&self, job: &Job, host: &SmartHost) -> Sent {
        let Some(place) = place(host) else {
            let reason = format!("smart_hosts.{} is no mailbox that Graph could send from", host.name);
            let failure = Failure::local("4.3.5", host.name.as_str(), reason);
            return Sent::Host(HostFailure { login: Some(LoginFault::Unusable), failure, not_before_secs: None });
        };
        let message = match message(job, host).await {
            Ok(message) => message,
            Err(Unsendable::ByGraph(_)) if host.speaks_smtp() => return Sent::BySmtp,
            Err(Unsendable::ByGraph(failure)) => return Sent::Decided(all(job, &Outcome::Fail(failure))),
            Err(Unsendable::Now(why)) => {
                return Sent::Decided(all(job, &Outcome::Defer { why, not_before_secs: None }));
            }
        };
        let _turn = match self.pacer.turn(&place.name, self.clock.now()) {
            Ok(turn) => turn,
            Err(millis) => {
                let reason = format!("{} has sent as much as it may for now", place.name);
                let failure = Failure::local("4.3.2", host.name.as_str(), reason);
                let not_before_secs = Some(millis.div_ceil(1000));
                return Sent::Host(HostFailure { login: None, failure, not_before_secs });
            }
        };
        self.send(job, &place, message).await
    }

    /// With another token if the first is refused and is not new.
    async fn send(&self, job: &Job, place: &Place<'_>, message: Bytes) -> Sent {
        let mut tries = 0;
        loop {
            tries += 1;
            let token = match self.tokens.token(place.host, Resource::Graph).await {
                Ok(token) => token,
                Err(failure) => return Sent::Host(failure),
            };
            let response = match self.post(place, &token, message.clone()).await {
                Ok(response) => response,
                Err(error) => return unanswered(job, place, &error),
            };
            let refused = response.status() == StatusCode::UNAUTHORIZED;
            if refused && tries == 1 && self.tokens.refused_token(place.host, Resource::Graph, &token).await {
                continue;
            }
            return self.judge(job, place, response).await;
        }
    }

    async fn post(&self, place: &Place<'_>, token: &Secret, message: Bytes) -> Result<Response, reqwest::Error> {
        let request = self.client.post(place.url.clone()).timeout(TIMEOUT).bearer_auth(&token.0);
        let sent = request.header(CONTENT_TYPE, "text/plain").body(message).send().await;
        if place.host.debug {
            let answer = sent.as_ref().map_or_else(http::innermost, |response| response.status().to_string());
            tracing::info!(target: TARGET, host = place.host.name, "POST {} (token and message not shown): {answer}", place.url);
        }
        sent
    }

    async fn judge(&self, job: &Job, place: &Place<'_>, mut response: Response) -> Sent {
        let status = response.status();
        if status.is_success() {
            let reply = Some(Reply::bare(status.as_u16(), status.canonical_reason().unwrap_or("accepted")));
            let delivered = Delivered { to: place.name.clone(), reply, tls: None, hop: Hop::Relayed };
            return Sent::Decided(all(job, &Outcome::Delivered(delivered)));
        }
        let now = self.clock.now();
        let retry_after = http::retry_after(response.headers(), now);
        let body = http::beginning(&mut response, ANSWER_BYTES_MAX).await;
        let Complaint { error } = serde_json::from_slice(&body).unwrap_or_default();
        let said = format!("{} answered {status}{}", place.name, error.shown());
        let failure = |status: &str, reason: String| Failure::local(status, place.host.name.as_str(), reason);
        let fail = |status: &str, said: String| Sent::Decided(all(job, &Outcome::Fail(failure(status, said))));
        let host = |login, status: &str, said: String, not_before_secs| {
            Sent::Host(HostFailure { login, failure: failure(status, said), not_before_secs })
        };
        match status {
            _ if ABOUT_THE_MAILBOX.contains(&error.code.as_str()) => {
                host(Some(LoginFault::Refused), "4.7.0", said, retry_after)
            }
            StatusCode::BAD_REQUEST if error.code == "ErrorInvalidRecipients" => fail("5.1.3", said),
            StatusCode::BAD_REQUEST => fail("5.6.0", said),
            StatusCode::PAYLOAD_TOO_LARGE => fail("5.3.4", said),
            StatusCode::UNAUTHORIZED => host(Some(LoginFault::Refused), "4.7.8", said, None),
            StatusCode::FORBIDDEN => {
                let remedy = format!("{said}; may the application send as this mailbox, and from that From?");
                host(Some(LoginFault::Refused), "4.7.0", remedy, None)
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                let secs = retry_after.unwrap_or(PAUSE_SECS);
                self.pacer.pause(&place.name, now + secs * 1000);
                host(None, "4.3.2", said, Some(secs))
            }
            // A gateway gave up on what stands behind it, and that may have taken the message.
            StatusCode::GATEWAY_TIMEOUT | StatusCode::BAD_GATEWAY => {
                let why = Failure { unsure: true, ..failure("4.4.2", said) };
                Sent::Decided(all(job, &Outcome::Defer { why, not_before_secs: retry_after }))
            }
            _ => host(None, "4.3.0", said, retry_after),
        }
    }
}

/// No complete answer came. Once connected, the service may have taken the message.
fn unanswered(job: &Job, place: &Place<'_>, error: &reqwest::Error) -> Sent {
    let failure = |status: &str, what: String| {
        Failure::local(status, place.host.name.as_str(), format!("{}: {what}", place.name))
    };
    if error.is_connect() {
        let failure = failure("4.4.1", format!("no connection: {}", http::innermost(error)));
        return Sent::Host(HostFailure { login: None, failure, not_before_secs: None });
    }
    let what = match error.is_timeout() {
        true => format!("no answer within {} s", TIMEOUT.as_secs()),
        false => format!("the connection broke: {}", http::innermost(error)),
    };
    let why = Failure { unsure: true, ..failure("4.4.2", what) };
    Sent::Decided(all(job, &Outcome::Defer { why, not_before_secs: None }))
}

#[derive(Default, Deserialize)]
struct Complaint {
    #[serde(default)]
    error: Detail,
}

#[derive(Default, Deserialize)]
struct Detail {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Detail {
    fn shown(&self) -> String {
        let parts = [&self.code, &self.message].map(|part| http::one_line(part.as_bytes(), ANSWER_CHARS_SHOWN));
        parts.iter().filter(|part| !part.is_empty()).map(|part| format!(": {part}")).collect()
    }
}

fn place(host: &SmartHost) -> Option<Place<'_>> {
    let SmartHostKind::Graph { url } = &host.kind else { return None };
    let mailbox = &host.oauth.as_ref()?.username;
    let mut url = Url::parse(url).ok()?;
    url.path_segments_mut().ok()?.pop_if_empty().extend(["v1.0", "users", mailbox, "sendMail"]);
    let name = format!("{} at {}", mailbox, url.host_str().unwrap_or("Graph"));
    Some(Place { host, url, name })
}

/// Why a message does not go.
enum Unsendable {
    /// By SMTP it might.
    ByGraph(Failure),
    /// It cannot be read.
    Now(Failure),
}

/// In base64, as it goes into the request.
async fn message(job: &Job, host: &SmartHost) -> Result<Bytes, Unsendable> {
    let limit = host.max_size.unwrap_or(MESSAGE_BYTES_MAX).min(MESSAGE_BYTES_MAX);
    let too_large = |bytes: u64| {
        let reason =
            format!("Graph takes messages of up to {limit} bytes from smart_hosts.{}; this one has {bytes}", host.name);
        Unsendable::ByGraph(Failure::local("5.3.4", host.name.as_str(), reason))
    };
    if job.body.len() > limit {
        return Err(too_large(job.body.len()));
    }
    let content = job.body.whole(COPIES).await.map_err(|error| {
        let reason = format!("the stored message cannot be read: {error}");
        Unsendable::Now(Failure::local("4.3.0", host.name.as_str(), reason))
    })?;
    let recipients: Vec<&Address> = job.recipients.iter().map(|(_, recipient)| &recipient.address).collect();
    let id = match job.message.message_id.as_str() {
        "" => job.message.id.to_string(),
        id => id.to_owned(),
    };
    let addressed = mime::addressed(&content, &recipients, &id).map_err(|mismatch| {
        let what = match mismatch {
            Mismatch::Stranger(address) => format!("{address} stands in To or Cc, is not to get this copy, and would"),
            Mismatch::Unreadable(field) => {
                format!("whom the field {field} means cannot be told, so others might get it")
            }
        };
        let reason = format!(
            "Graph sends to whom the header names: {what}; give smart_hosts.{} a host to use SMTP for such mail",
            host.name
        );
        Unsendable::ByGraph(Failure::local("5.3.3", host.name.as_str(), reason))
    })?;
    if addressed.len() as u64 > limit {
        return Err(too_large(addressed.len() as u64));
    }
    Ok(STANDARD.encode(addressed).into())
}

fn all(job: &Job, outcome: &Outcome) -> Vec<(u32, Outcome)> {
    job.recipients.iter().map(|(number, _)| (*number, outcome.clone())).collect()
}
