//! One attempt: a job that has its turn, from its body to the outcome that is noted.
//!
//! It gives its place among the running attempts back as soon as the outcome is known, whatever happens
//! on the way. What a crash leaves: the claim is forgotten, and the attempt is made again, but for those
//! recipients that a far end has taken and `receipts` has noted.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};

use crate::clock::{Clock, Millis};
use crate::config::Config;
use crate::message::Domain;
use crate::queue::gate::Started;
use crate::queue::lane::Lane;
use crate::queue::record::{Failure, Message, Recipient, Route};
use crate::queue::{FreshBody, Queue};
use crate::store::StoreError;

use super::receipts::{Noted, Receipts};
use super::settle::Settler;
use super::standing::{Overview, Question};
use super::throttle::{Moment, Sign};
use super::transport::Transports;
use super::{Body, Destination, Job, Outcome};

/// Most attempts that are noted beside those that run.
pub const NOTING_MAX: usize = 16;
/// Wait after the store failed.
pub(super) const STORE_TROUBLE_WAIT: Duration = Duration::from_secs(1);

/// What an attempt needs; shared by all that begin under one configuration.
#[derive(Debug)]
pub struct Parts {
    pub config: Arc<Config>,
    pub clock: Clock,
    pub queue: Arc<Queue>,
    pub transports: Arc<Transports>,
    pub settler: Settler,
    /// Attempts that have ended, and whose outcome is being noted while others have their place:
    /// [`NOTING_MAX`] at most, because after a power cut each of them is made again.
    pub noting: Arc<Semaphore>,
    pub receipts: Arc<Receipts>,
}

/// A job that waits for its turn; its body is read when it starts, unless it is fresh.
pub(super) struct Waiting {
    pub message: Arc<Message>,
    pub recipients: Vec<(u32, Recipient)>,
    pub fresh: Option<Arc<FreshBody>>,
    /// Out of whose share it is claimed, and by which claim.
    pub claim: (Lane, u64),
}

impl Waiting {
    /// Takes the recipients of another job in, if that is of the same message and claim; else gives it back.
    pub fn join(&mut self, other: Waiting) -> Option<Waiting> {
        if (other.message.id, other.claim) != (self.message.id, self.claim) {
            return Some(other);
        }
        self.recipients.extend(other.recipients);
        self.fresh = self.fresh.take().or(other.fresh);
        None
    }

    /// Leaves at most so many recipients, and gives the rest as a job of its own, if there is one.
    pub fn split(&mut self, most: usize) -> Option<Waiting> {
        if self.recipients.len() <= most {
            return None;
        }
        let recipients = self.recipients.split_off(most);
        Some(Waiting { message: self.message.clone(), recipients, fresh: self.fresh.clone(), claim: self.claim })
    }
}

/// What the dispatcher is told by what it has started.
pub(super) enum Note {
    /// An attempt that began then has given its place back, at this time.
    Ended { lane: Lane, destination: Destination, began: Moment, at: Millis, sign: Sign },
    /// The servers of a domain, if they could be found out.
    Found { domain: Domain, hosts: Option<Vec<Domain>> },
    /// What was to be remembered about groups is written, or cannot be.
    Kept,
    /// Another configuration holds.
    Changed(Arc<Parts>),
    /// Somebody wants to know how it stands.
    Asked(Box<Question>),
    /// Somebody wants to know how it stands everywhere.
    AskedForAll(Overview),
}

/// Gives the place among the running attempts back, at the latest when it is dropped.
pub(super) struct TurnTaken {
    pub clock: Clock,
    pub tell: mpsc::UnboundedSender<Note>,
    pub of: Option<(Lane, Destination, Moment)>,
    pub sign: Sign,
    /// Where the stream counts what is under way.
    pub started: Option<Started>,
}

impl TurnTaken {
    /// What the attempt says of the servers, or of the target.
    fn learn(&mut self, outcomes: &[(u32, Outcome)]) {
        self.sign = Sign::of(outcomes.iter().map(|(_, outcome)| outcome));
    }

    fn finish(&mut self) {
        self.started = None;
        if let Some((lane, destination, began)) = self.of.take() {
            let sign = std::mem::replace(&mut self.sign, Sign::None);
            // The dispatcher may have stopped; then nobody counts any more.
            let _ = self.tell.send(Note::Ended { lane, destination, began, at: self.clock.now(), sign });
        }
    }
}

impl Drop for TurnTaken {
    fn drop(&mut self) {
        self.finish();
    }
}

pub(super) async fn attempt(parts: Arc<Parts>, waiting: Waiting, mut turn: TurnTaken) {
    let lane = waiting.claim.0;
    // What cannot be noted must not be done: after a crash it would be done again.
    while !parts.queue.store().is_open() {
        tokio::time::sleep(STORE_TROUBLE_WAIT).await;
    }
    while let Err(error) = parts.queue.keep_pace(lane).await {
        tracing::error!(%error, "how much a stream has sent cannot be written; trying again");
        tokio::time::sleep(STORE_TROUBLE_WAIT).await;
    }
    if parts.queue.gates().is_suspended(lane) {
        // Between the dispatcher's look at the gate and this one.
        parts.queue.give_back(&waiting.message, &waiting.recipients);
        return;
    }
    try_once(&parts, waiting, &mut turn).await;
    turn.finish();
    if let Err(error) = parts.queue.keep_pace(lane).await {
        // The next attempt writes it; until then a crash makes a pause longer, not shorter.
        tracing::error!(%error, "how much a stream has sent cannot be written");
    }
}

async fn try_once(parts: &Parts, waiting: Waiting, turn: &mut TurnTaken) {
    let Waiting { message, recipients, fresh, claim: _ } = waiting;
    let body = match fresh.map(|fresh| fresh.chunks.clone()) {
        Some(chunks) => Body::fresh(&parts.queue, &message, chunks),
        None => match Body::stored(&parts.queue, &message).await {
            Ok(body) => body,
            Err(error @ StoreError::Damaged(_)) => {
                parts.queue.set_aside(message.id, recipients.iter().map(|(number, _)| *number), &error);
                return;
            }
            Err(error) => {
                tracing::error!(id = %message.id, %error, "a queued message cannot be read and is put off");
                let why = Failure::local("4.3.0", "", format!("the stored message cannot be read: {error}"));
                let outcomes = recipients.iter().map(|(number, _)| (*number, defer(&why))).collect();
                let job = Job { message, body: Body::default(), recipients };
                parts.settler.settle(&parts.queue, job, outcomes).await;
                return;
            }
        },
    };
    let job = Job { message, body, recipients };
    let (outcomes, noted) = deliver(parts, &job).await;
    turn.learn(&outcomes);
    // The next one need not wait until this one is noted, unless that takes long.
    let noting = parts.noting.try_acquire();
    if noting.is_ok() {
        turn.finish();
    }
    parts.settler.settle(&parts.queue, job, outcomes).await;
    parts.receipts.marked(&noted);
}

/// As the transport does it. If that panics (a fault of ours, which some message has found), the job
/// waits for its next turn like any other that failed: neither the claim nor the place among the
/// running attempts is lost.
async fn deliver(parts: &Parts, job: &Job) -> (Vec<(u32, Outcome)>, Noted) {
    let (rest, mut outcomes) = skip(parts, job);
    let job = rest.as_ref().unwrap_or(job);
    if job.recipients.is_empty() {
        return (outcomes, Noted::default());
    }
    let tried = unless_it_panics(parts.transports.deliver(job)).await.unwrap_or_else(|| {
        tracing::error!(id = %job.message.id, "an attempt ended in a panic; please report this");
        let why = Failure::local("4.3.0", "", "the attempt was broken off by a fault of this server");
        job.recipients.iter().map(|(number, _)| (*number, defer(&why))).collect()
    });
    let noted = parts.receipts.note(job.message.id, &tried);
    outcomes.extend(tried);
    (outcomes, noted)
}

/// The job without recipients that were taken before a crash, or are on the suppression list by now, if there
/// are such, and what becomes of those.
fn skip(parts: &Parts, job: &Job) -> (Option<Job>, Vec<(u32, Outcome)>) {
    let suppression = parts.settler.intake.suppression();
    let mut outcomes = parts.receipts.recall(job.message.id, job.recipients.iter().map(|(number, _)| *number));
    let taken: Vec<u32> = outcomes.iter().map(|(number, _)| *number).collect();
    let mut rest = Vec::new();
    for (number, recipient) in job.recipients.iter().filter(|(number, _)| !taken.contains(number)) {
        let skipped = match recipient.route {
            Route::Remote => suppression.skips(&job.message, &recipient.address),
            Route::Target(_) => Ok(None),
        };
        match skipped {
            Ok(None) => rest.push((*number, recipient.clone())),
            Ok(Some(reason)) => outcomes.push((*number, Outcome::Suppressed(reason))),
            Err(error) => {
                let why = Failure::local("4.3.0", "", format!("the suppression list cannot be read: {error}"));
                outcomes.push((*number, defer(&why)));
            }
        }
    }
    if outcomes.is_empty() { (None, outcomes) } else { (Some(Job { recipients: rest, ..job.clone() }), outcomes) }
}

/// None if the future panics. It is not polled again then.
pub(super) async fn unless_it_panics<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    poll_fn(|context| {
        let poll = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context)));
        poll.map_or_else(|_| Poll::Ready(None), |poll| poll.map(Some))
    })
    .await
}

fn defer(why: &Failure) -> Outcome {
    Outcome::Defer { why: why.clone(), not_before_secs: None }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_failed_attempt_and_no_more() {
        assert_eq!(unless_it_panics(async { 7 }).await, Some(7));
        let late = async {
            tokio::task::yield_now().await;
            panic!("as planned")
        };
        assert_eq!(unless_it_panics::<()>(late).await, None);
    }
}
