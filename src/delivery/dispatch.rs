//! The dispatcher: takes what is due, gives each destination its turn, runs attempts.
//!
//! It sleeps until something is committed, finished or due; it never polls. What it holds in memory
//! is bounded by the claims. A destination has so many attempts at once and no more, so a slow one
//! holds up its own mail only. What an outcome means for the queue is decided in `settle`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, Millis};
use crate::config::Config;
use crate::queue::claim::{CLAIMS_MAX, PLACE_CLAIMS_MAX};
use crate::queue::record::{Failure, Message, Recipient, Route};
use crate::queue::{Claimed, FreshBody, Queue};

use super::settle::Settler;
use super::transport::Transports;
use super::{Body, Destination, Job, Outcome};

/// Attempts at once for one destination (`destinations.default.connections`).
const ATTEMPTS_PER_DESTINATION: usize = 10;
/// The due index is scanned again once so many claims are free.
const REFILL_AT: usize = CLAIMS_MAX / 2;
/// … and a destination has so few jobs left.
const PLACE_RUNS_LOW: usize = PLACE_CLAIMS_MAX / 2;
/// Longest sleep: the clock may be set while we wait.
const SLEEP_MAX: Duration = Duration::from_secs(60);
/// Wait before the index is scanned on for more, where no attempt that ends calls for it.
const MORE_IS_DUE_WAIT: Duration = Duration::from_millis(250);
/// Wait after the store failed to answer a scan.
const STORE_TROUBLE_WAIT: Duration = Duration::from_secs(1);

/// What an attempt needs; shared by all of them.
#[derive(Debug)]
pub struct Parts {
    pub config: Arc<Config>,
    pub clock: Clock,
    pub queue: Arc<Queue>,
    pub transports: Arc<Transports>,
    pub settler: Settler,
}

/// A job that waits for its turn; its body is read when it starts, unless it is fresh.
struct Waiting {
    message: Arc<Message>,
    recipients: Vec<(u32, Recipient)>,
    fresh: Option<Arc<FreshBody>>,
}

#[derive(Default)]
struct Turn {
    running: usize,
    waiting: VecDeque<Waiting>,
}

pub struct Dispatcher {
    parts: Arc<Parts>,
    fresh: mpsc::UnboundedReceiver<Claimed>,
    finished: mpsc::UnboundedReceiver<Destination>,
    finish: mpsc::UnboundedSender<Destination>,
    turns: HashMap<Destination, Turn>,
    /// Destinations that have work and a free slot, in the order of their turns.
    ready: VecDeque<Destination>,
    running: usize,
    /// More is due than the last scan could claim: when to look again.
    look_again: Option<Instant>,
    /// The last scan brought something.
    scan_brought: bool,
    next_due: Option<Millis>,
}

impl Dispatcher {
    pub fn new(parts: Arc<Parts>, fresh: mpsc::UnboundedReceiver<Claimed>) -> Dispatcher {
        let (finish, finished) = mpsc::unbounded_channel();
        Dispatcher {
            parts,
            fresh,
            finished,
            finish,
            turns: HashMap::new(),
            ready: VecDeque::new(),
            running: 0,
            look_again: None,
            scan_brought: false,
            next_due: None,
        }
    }

    /// Runs until `shutdown`; attempts that have started are in `attempts` and go on.
    pub async fn run(mut self, attempts: TaskTracker, shutdown: CancellationToken) {
        self.scan().await;
        loop {
            self.start(&attempts);
            let sleep = self.sleep();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                Some(destination) = self.finished.recv() => self.finish(destination).await,
                Some(claimed) = self.fresh.recv() => self.take(claimed),
                () = self.parts.queue.claims().wake.notified() => {
                    // Otherwise it is looked for soon, and not once for each message that waits.
                    if self.look_again.is_none() {
                        self.scan().await;
                    }
                }
                () = tokio::time::sleep(sleep) => self.scan().await,
            }
            // Whatever else has arrived is taken before anything is started, so turns are fair.
            while let Ok(claimed) = self.fresh.try_recv() {
                self.take(claimed);
            }
        }
    }

    fn sleep(&self) -> Duration {
        let now = self.parts.clock.now();
        let due = self.next_due.map_or(SLEEP_MAX, |due| Duration::from_millis(due.saturating_sub(now)));
        let again = self.look_again.map_or(SLEEP_MAX, |at| at.saturating_duration_since(Instant::now()));
        due.min(again).min(SLEEP_MAX)
    }

    async fn scan(&mut self) {
        match self.parts.queue.claim_due() {
            Ok(scan) => {
                self.look_again = scan.more.then(|| Instant::now() + MORE_IS_DUE_WAIT);
                self.scan_brought = !scan.claimed.is_empty();
                self.next_due = scan.next;
                scan.claimed.into_iter().for_each(|claimed| self.take(claimed));
            }
            Err(error) => {
                tracing::error!(%error, "the due index cannot be read");
                tokio::time::sleep(STORE_TROUBLE_WAIT).await;
                self.next_due = Some(self.parts.clock.now());
            }
        }
    }

    /// Sorts a claimed message into the turns of its destinations.
    fn take(&mut self, claimed: Claimed) {
        let fresh = claimed.body.map(Arc::new);
        let mut jobs: BTreeMap<Destination, Vec<(u32, Recipient)>> = BTreeMap::new();
        for (number, recipient) in claimed.recipients {
            jobs.entry(destination(&recipient)).or_default().push((number, recipient));
        }
        for (destination, recipients) in jobs {
            let turn = self.turns.entry(destination.clone()).or_default();
            turn.waiting.push_back(Waiting { message: claimed.message.clone(), recipients, fresh: fresh.clone() });
            let was_idle = turn.waiting.len() == 1 && turn.running < ATTEMPTS_PER_DESTINATION;
            if was_idle {
                self.ready.push_back(destination);
            }
        }
    }

    /// Starts what may start: one job of each destination in turn.
    fn start(&mut self, attempts: &TaskTracker) {
        while self.running < self.parts.config.delivery.concurrency {
            let Some(destination) = self.ready.pop_front() else { return };
            let Some(turn) = self.turns.get_mut(&destination) else { continue };
            let Some(waiting) = turn.waiting.pop_front() else { continue };
            turn.running += 1;
            self.running += 1;
            if !turn.waiting.is_empty() && turn.running < ATTEMPTS_PER_DESTINATION {
                self.ready.push_back(destination.clone());
            }
            let parts = self.parts.clone();
            let finish = self.finish.clone();
            attempts.spawn(async move {
                attempt(&parts, waiting).await;
                // The dispatcher may have stopped; then nobody counts any more.
                let _ = finish.send(destination);
            });
        }
    }

    async fn finish(&mut self, destination: Destination) {
        self.running = self.running.saturating_sub(1);
        let mut runs_low = true;
        if let Some(turn) = self.turns.get_mut(&destination) {
            let was_full = turn.running >= ATTEMPTS_PER_DESTINATION;
            turn.running = turn.running.saturating_sub(1);
            // Once on the way down, and once at the end: each scan brings many.
            runs_low = matches!(turn.waiting.len(), 0 | PLACE_RUNS_LOW);
            if turn.waiting.is_empty() {
                if turn.running == 0 {
                    self.turns.remove(&destination);
                }
            } else if was_full {
                self.ready.push_back(destination);
            }
        }
        if self.look_again.is_some() && self.scan_brought && runs_low && self.parts.queue.claims().held() < REFILL_AT {
            self.scan().await;
        }
    }
}

fn destination(recipient: &Recipient) -> Destination {
    match &recipient.route {
        Route::Remote => Destination::Domain(recipient.address.domain().clone()),
        Route::Target(name) => Destination::Target(name.clone()),
    }
}

async fn attempt(parts: &Parts, waiting: Waiting) {
    let Waiting { message, recipients, fresh } = waiting;
    let body = match fresh.map(|fresh| fresh.chunks.clone()) {
        Some(chunks) => Body::fresh(&parts.queue, &message, chunks),
        None => match Body::stored(&parts.queue, &message).await {
            Ok(body) => body,
            Err(error) => {
                let why = Failure::local("4.3.0", "", format!("the stored message cannot be read: {error}"));
                let outcomes = recipients.iter().map(|(number, _)| (*number, defer(&why))).collect();
                let job = Job { message, body: Body::default(), recipients };
                parts.settler.settle(&parts.queue, job, outcomes).await;
                return;
            }
        },
    };
    let job = Job { message, body, recipients };
    let outcomes = deliver(parts, &job).await;
    parts.settler.settle(&parts.queue, job, outcomes).await;
}

/// As the transport does it. If that panics (a fault of ours, which some message has found), the job
/// waits for its next turn like any other that failed: neither the claim nor the place among the
/// running attempts is lost.
async fn deliver(parts: &Parts, job: &Job) -> Vec<(u32, Outcome)> {
    unless_it_panics(parts.transports.deliver(job)).await.unwrap_or_else(|| {
        tracing::error!(id = %job.message.id, "an attempt ended in a panic; please report this");
        let why = Failure::local("4.3.0", "", "the attempt was broken off by a fault of this server");
        job.recipients.iter().map(|(number, _)| (*number, defer(&why))).collect()
    })
}

/// None if the future panics. It is not polled again then.
async fn unless_it_panics<T>(future: impl Future<Output = T>) -> Option<T> {
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
