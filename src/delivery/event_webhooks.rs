//! Telling `[events.webhooks.*]` what happened: a task for each takes from its queue in the store and posts, with the
//! headers of Standard Webhooks.
//!
//! Promises: `webhook-id` is the same in every try, also after a restart. An event leaves the queue when the endpoint
//! has answered 2xx (or 406, 422: it does not want it), so after a crash some are told twice, none never. Events about one
//! recipient come in their order, others may overtake. What fails is tried again for [`KEEP`]; an endpoint that cannot be
//! reached, says 429 or 503, or fails time after time gets a rest, one that says 410 a long one. If more waits than
//! fits, or for longer, the oldest is dropped, said in the log, counted, and told to the endpoint as `events.gap`.
//!
//! Nothing here is waited for by the way of a message; mail does not know how the endpoint is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aws_lc_rs::hmac;
use bytes::Bytes;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, StatusCode, Url};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::http::{self, ClientError, innermost};
use super::webhook::{excerpt, shown, signature, signing_key};
use crate::clock::{Clock, Millis, rfc3339};
use crate::config::EventWebhook;
use crate::events::outbox::{self, Tray, Waiting};
use crate::events::search;
use crate::message::MessageId;
use crate::queue::Queue;
use crate::store::{Batch, StoreError, Table};

mod course;
mod payload;

use course::{Item, Progress};

/// The whole of a post.
const POST_TIMEOUT: Duration = Duration::from_secs(15);
/// How long an event is tried, in milliseconds; then it is dropped.
pub const KEEP: Millis = 3 * 24 * 3600 * 1000;
/// How often the clock is looked at while something waits for its time.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// … and while nothing does.
const LOOK_SELDOM: Duration = Duration::from_secs(5);
/// How often it is looked whether the oldest is too old, in milliseconds.
const AGE_EVERY: Millis = 60_000;
/// Where there is too much so many bytes more are dropped than needed, so that it is not done for each event.
const DROP_BYTES: u64 = 1 << 20;
/// Entries dropped in one batch.
const DROP_EVENTS: usize = 1000;
/// Longest wait for posts under way when the server stops.
const STOP_WAIT: Duration = Duration::from_secs(5);
/// Wait after trouble with the store.
const STORE_WAIT: Duration = Duration::from_secs(1);

/// Why there is no sender; the text says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventWebhookError {
    #[error("events.webhooks.{0}.url is not an http:// or https:// URL with a host")]
    BadUrl(String),
    #[error("events.webhooks.{0}.secret begins with whsec_ but what follows is not base64")]
    BadSecret(String),
    #[error("events.webhooks.{0}: {1}")]
    Client(String, ClientError),
}

impl EventWebhookError {
    /// The section that it is about.
    pub fn key(&self) -> String {
        let (EventWebhookError::BadUrl(name) | EventWebhookError::BadSecret(name) | EventWebhookError::Client(name, _)) =
            self;
        format!("events.webhooks.{name}")
    }
}

/// Where events are posted to.
struct Endpoint {
    url: Url,
    shown_url: String,
    key: Option<hmac::Key>,
    client: Client,
    clock: Clock,
    queue: Arc<Queue>,
}

/// The sender of one webhook.
pub struct Sender {
    tray: Arc<Tray>,
    endpoint: Arc<Endpoint>,
    progress: Progress,
    posts: JoinSet<(Item, Answer)>,
    /// Done with, still in the store.
    done: Vec<Waiting>,
    age_looked_at: Millis,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sender({}, {})", self.tray.name(), self.endpoint.shown_url)
    }
}

/// What came of a post.
#[derive(Debug)]
enum Answer {
    Taken,
    /// It does not want this one.
    Refused(String),
    /// Not this one, not now.
    Failed(String),
    /// Nothing now; perhaps it said for how long.
    Down(String, Option<Millis>),
    /// It wants no more.
    Gone(String),
}

impl Sender {
    pub fn new(
        tray: Arc<Tray>,
        webhook: &EventWebhook,
        queue: Arc<Queue>,
        clock: Clock,
        allow_private: bool,
    ) -> Result<Sender, EventWebhookError> {
        let name = || tray.name().to_owned();
        let url = Url::parse(&webhook.url).ok();
        let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let url = url.ok_or_else(|| EventWebhookError::BadUrl(name()))?;
        let key = webhook.secret.as_ref().map(|secret| signing_key(tray.name(), secret)).transpose();
        let key = key.map_err(|_| EventWebhookError::BadSecret(name()))?;
        let client = http::client_for(&url, allow_private).map_err(|error| EventWebhookError::Client(name(), error))?;
        let endpoint = Endpoint { shown_url: shown(&url), url, key, client, clock, queue };
        Ok(Sender {
            tray,
            endpoint: Arc::new(endpoint),
            progress: Progress::new(),
            posts: JoinSet::new(),
            done: Vec::new(),
            age_looked_at: 0,
        })
    }

    /// Sends until `stop`; what is not done then waits for the next start.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let trouble = self.turn().await.err();
            if let Some(error) = &trouble {
                tracing::warn!(webhook = self.tray.name(), %error, "the queue of an event webhook cannot be worked on");
            }
            let wait = match &trouble {
                Some(_) => STORE_WAIT,
                None if self.progress.waits() => LOOK_EVERY,
                None => LOOK_SELDOM,
            };
            tokio::select! {
                () = stop.cancelled() => {}
                Some(post) = self.posts.join_next(), if !self.posts.is_empty() => self.settle(post),
                // After trouble something new is no reason to hurry.
                () = self.tray.wake.notified(), if trouble.is_none() => self.progress.wake(),
                () = sleep(wait) => {}
            }
        }
        let last = async {
            while let Some(post) = self.posts.join_next().await {
                self.settle(post);
            }
        };
        // What is cut off here is told once more, with the same id.
        let _ = timeout(STOP_WAIT, last).await;
        if let Err(error) = self.take_away().await {
            tracing::warn!(webhook = self.tray.name(), %error, "events that were told already will be told once more");
        }
    }

    async fn turn(&mut self) -> Result<(), StoreError> {
        self.take_away().await?;
        self.make_room().await?;
        let now = self.endpoint.clock.now();
        while let Some(item) = self.progress.next(self.endpoint.queue.store(), &self.tray, now)? {
            let endpoint = self.endpoint.clone();
            self.posts.spawn(async move {
                let answer = endpoint.post(&item).await;
                (item, answer)
            });
        }
        Ok(())
    }

    fn settle(&mut self, post: Result<(Item, Answer), tokio::task::JoinError>) {
        // A post that panicked is lost to this run: its event stays in the queue for the next one.
        let Ok((item, answer)) = post else { return };
        let (now, name, counts) = (self.endpoint.clock.now(), self.tray.name(), &self.tray.counts);
        match answer {
            Answer::Taken => {
                counts.sent.fetch_add(1, Ordering::Relaxed);
                if self.progress.goes_well() {
                    tracing::info!(
                        webhook = name,
                        waiting = self.tray.events(),
                        "the event webhook takes events again"
                    );
                }
                self.progress.done(&item);
                self.done.push(item.waiting);
            }
            Answer::Refused(why) => {
                let number = counts.refused.fetch_add(1, Ordering::Relaxed) + 1;
                // One that wants none at all shall not fill the log.
                if number.is_power_of_two() {
                    tracing::warn!(webhook = name, why, number, "the event webhook does not want an event");
                }
                self.progress.goes_well();
                self.progress.done(&item);
                self.done.push(item.waiting);
            }
            Answer::Failed(why) => {
                counts.failed.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(webhook = name, why, "an event was not taken");
                if self.progress.failed(item, now) {
                    tracing::warn!(webhook = name, why, "the event webhook fails again and again: events wait");
                }
            }
            Answer::Down(why, wait) => {
                counts.failed.fetch_add(1, Ordering::Relaxed);
                if self.progress.down(item, now, wait) {
                    tracing::warn!(webhook = name, why, "the event webhook takes nothing: events wait, mail does not");
                }
            }
            Answer::Gone(why) => {
                counts.failed.fetch_add(1, Ordering::Relaxed);
                self.progress.wants_no_more(item, now);
                tracing::warn!(
                    webhook = name,
                    why,
                    "the event webhook wants no more events: it is asked once an hour; take events.webhooks.{name} out"
                );
            }
        }
        counts.is_paused.store(self.progress.resting(now).is_some(), Ordering::Relaxed);
    }

    /// Takes what is done with out of the store.
    async fn take_away(&mut self) -> Result<(), StoreError> {
        if self.done.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        for waiting in &self.done {
            batch.delete(Table::Meta, waiting.key.clone());
        }
        // Not synced: what comes back after a crash is told twice.
        self.endpoint.queue.commit(batch, false).await?;
        let done = std::mem::take(&mut self.done);
        self.tray.removed(done.len() as u64, done.iter().map(Waiting::bytes).sum());
        self.progress.gone(done.iter().map(|waiting| waiting.number));
        Ok(())
    }

    /// Drops the oldest where too much waits, or for too long.
    async fn make_room(&mut self) -> Result<(), StoreError> {
        let now = self.endpoint.clock.now();
        let is_too_much = self.tray.bytes() > outbox::BYTES_MAX;
        if !is_too_much && now < self.age_looked_at.saturating_add(AGE_EVERY) {
            return Ok(());
        }
        self.age_looked_at = now;
        let mut too_much = match is_too_much {
            true => self.tray.bytes().saturating_sub(outbox::BYTES_MAX - DROP_BYTES),
            false => 0,
        };
        loop {
            let mut dropped = Vec::new();
            for waiting in self.tray.waiting(self.endpoint.queue.store(), 0)? {
                let waiting = waiting?;
                // A gap is older than everything, and joined with what is dropped behind it.
                let is_old = happened_at(&waiting).saturating_add(KEEP) < now;
                if (too_much == 0 && !is_old) || dropped.len() >= DROP_EVENTS {
                    break;
                }
                if !self.progress.is_under_way(waiting.number) {
                    too_much = too_much.saturating_sub(waiting.bytes());
                    dropped.push(waiting);
                }
            }
            let is_last = dropped.len() < DROP_EVENTS;
            self.drop_all(dropped).await?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// In their place stands what tells of them.
    async fn drop_all(&mut self, dropped: Vec<Waiting>) -> Result<(), StoreError> {
        let Some(last) = dropped.last() else { return Ok(()) };
        let mut gap = Gap::default();
        let mut batch = Batch::new();
        for waiting in &dropped {
            gap.add(waiting);
            batch.delete(Table::Meta, waiting.key.clone());
        }
        let events = dropped.iter().filter(|waiting| waiting.journal_key != outbox::GAP).count() as u64;
        if events == 0 {
            return Ok(());
        }
        self.tray.put_gap(&mut batch, last.number, gap.to_json());
        self.endpoint.queue.commit(batch, false).await?;
        self.tray.counts.dropped.fetch_add(events, Ordering::Relaxed);
        self.tray.removed(dropped.len() as u64, dropped.iter().map(Waiting::bytes).sum());
        self.progress.gone(dropped.iter().map(|waiting| waiting.number));
        self.progress.read_from(last.number);
        tracing::warn!(
            webhook = self.tray.name(),
            events,
            "events were dropped: too many wait for this webhook, or for too long; it will be told that they are missing"
        );
        Ok(())
    }
}

/// When the event happened.
fn happened_at(waiting: &Waiting) -> Millis {
    waiting.journal_key.get(8..16).and_then(|at| at.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// Dropped events, those of earlier gaps included.
#[derive(Debug, Default)]
struct Gap {
    dropped: u64,
    since: Option<String>,
    until: String,
}

impl Gap {
    fn add(&mut self, waiting: &Waiting) {
        let (dropped, since, until) = if waiting.journal_key == outbox::GAP {
            let earlier: serde_json::Value = serde_json::from_slice(&waiting.value).unwrap_or_default();
            let text = |key: &str| earlier.get(key).and_then(|at| at.as_str()).unwrap_or_default().to_owned();
            (earlier.get("dropped").and_then(serde_json::Value::as_u64).unwrap_or(1), text("since"), text("until"))
        } else {
            let at = rfc3339(happened_at(waiting));
            (1, at.clone(), at)
        };
        self.dropped = self.dropped.saturating_add(dropped);
        // Times in this form sort as texts.
        self.since = Some(self.since.take().map_or(since.clone(), |earlier| earlier.min(since)));
        self.until = std::mem::take(&mut self.until).max(until);
    }

    fn to_json(&self) -> Vec<u8> {
        json!({ "dropped": self.dropped, "since": self.since, "until": self.until }).to_string().into_bytes()
    }
}

impl Endpoint {
    async fn post(&self, item: &Item) -> Answer {
        let id = payload::event_id(&item.waiting);
        let body = match self.body(&id, item) {
            Ok(Some(body)) => Bytes::from(body),
            Ok(None) => return Answer::Refused(format!("{id} cannot be read")),
            Err(error) => return Answer::Down(format!("the story cannot be read: {error}"), None),
        };
        let timestamp = (self.clock.now() / 1000).to_string();
        let mut request = self
            .client
            .post(self.url.clone())
            .timeout(POST_TIMEOUT)
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", &timestamp);
        if let Some(key) = &self.key {
            let signed = signature(key, &id, &timestamp, std::slice::from_ref(&body));
            request = request.header("webhook-signature", signed);
        }
        let response = match request.body(body).send().await {
            Ok(response) => response,
            Err(error) if error.is_timeout() => {
                return Answer::Down(format!("no answer within {} s", POST_TIMEOUT.as_secs()), None);
            }
            Err(error) => return Answer::Down(innermost(&error), None),
        };
        let status = response.status();
        if status.is_success() {
            return Answer::Taken;
        }
        let wait = http::retry_after(response.headers(), self.clock.now()).map(|seconds| seconds * 1000);
        let said = format!("{} answered {status}{}", self.shown_url, excerpt(response).await);
        match status {
            StatusCode::NOT_ACCEPTABLE | StatusCode::UNPROCESSABLE_ENTITY => Answer::Refused(said),
            StatusCode::GONE => Answer::Gone(said),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Answer::Down(said, wait),
            _ if status.is_redirection() => {
                Answer::Down(format!("{said}; redirects are not followed, put the final URL into its url"), None)
            }
            _ => Answer::Failed(said),
        }
    }

    fn body(&self, id: &str, item: &Item) -> Result<Option<Vec<u8>>, StoreError> {
        let Waiting { journal_key, value, .. } = &item.waiting;
        if item.is_gap() {
            return Ok(Some(payload::gap(id, &serde_json::from_slice(value).unwrap_or_default())));
        }
        let Some(message) = MessageId::from_prefix(journal_key) else { return Ok(None) };
        let context = search::context(self.queue.store(), message)?;
        Ok(payload::event(id, message, &context, value))
    }
}
