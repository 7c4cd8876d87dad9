//! The dispatcher: takes what is due, gives each lane and each destination its turn, runs attempts.
//!
//! It sleeps until something is committed, finished or due; it never polls. What it holds in memory
//! is bounded by the claims. Attempts at once are shared out as claims are: each lane has some of its
//! own, and one destination has at most [`ATTEMPTS_PER_DESTINATION`], fewer when few are left for the
//! others. So a slow one holds up its own mail only, however many of them there are, and new mail does
//! not wait for retries to end. What is behind a closed gate (`queue::gate`) does not start; a job that is
//! larger than what its stream may send now is cut in two. What an outcome means for the queue is decided in `settle`.

use std::collections::{BTreeMap, HashSet};
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::config::Config;
use crate::queue::claim::Look;
use crate::queue::gate::{Lanes, Started};
use crate::queue::lane::Lane;
use crate::queue::record::{Failure, Message, Recipient, Route};
use crate::queue::{Claimed, FreshBody, Queue};
use crate::store::StoreError;

use super::settle::Settler;
use super::transport::Transports;
use super::turns::Turns;
use super::{Body, Destination, Job, Outcome};

/// Longest sleep: a clock that is set forward while we wait makes things due without a sound.
const SLEEP_MAX: Duration = Duration::from_secs(60);
/// Most attempts that are noted beside those that run.
pub const NOTING_MAX: usize = 16;
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
    /// Attempts that have ended, and whose outcome is being noted while others have their place:
    /// [`NOTING_MAX`] at most, because after a crash each of them is made again.
    pub noting: Semaphore,
}

/// A job that waits for its turn; its body is read when it starts, unless it is fresh.
struct Waiting {
    message: Arc<Message>,
    recipients: Vec<(u32, Recipient)>,
    fresh: Option<Arc<FreshBody>>,
    /// Out of whose share it is claimed, and by which claim.
    claim: (Lane, u64),
}

impl Waiting {
    /// Leaves at most so many recipients, and gives the rest as a job of its own, if there is one.
    fn split(&mut self, most: usize) -> Option<Waiting> {
        if self.recipients.len() <= most {
            return None;
        }
        let recipients = self.recipients.split_off(most);
        Some(Waiting { message: self.message.clone(), recipients, fresh: self.fresh.clone(), claim: self.claim })
    }
}

pub struct Dispatcher {
    parts: Arc<Parts>,
    fresh: mpsc::UnboundedReceiver<Claimed>,
    finished: mpsc::UnboundedReceiver<(Lane, Destination)>,
    finish: mpsc::UnboundedSender<(Lane, Destination)>,
    turns: Turns<Waiting>,
    /// At the last look at the gates: the lanes of which something could start, and those that were shut
    /// for longer than an attempt takes.
    open: Lanes,
    shut: Lanes,
    /// A part of the due index could not be read: when it is tried again.
    trouble_until: Option<Instant>,
    /// Once is enough: a piece that stays damaged has nothing in it any more that is missed.
    index_made_anew: bool,
    /// How many damages of the store are known; a new one may have taken entries of the index with it.
    damages: usize,
}

impl Dispatcher {
    pub fn new(parts: Arc<Parts>, fresh: mpsc::UnboundedReceiver<Claimed>) -> Dispatcher {
        let (finish, finished) = mpsc::unbounded_channel();
        let streams = parts.queue.streams();
        let retries: HashSet<usize> =
            streams.lanes().into_iter().filter(|lane| lane.is_retry()).map(Lane::index).collect();
        let is_retry = |lane: usize| retries.contains(&lane);
        let turns = Turns::new(parts.config.delivery.concurrency, streams.weights(), is_retry);
        // The queue has looked after those when it was opened.
        let damages = parts.queue.store().damage_count();
        let (open, shut) = parts.queue.gates().look();
        Dispatcher {
            parts,
            fresh,
            finished,
            finish,
            turns,
            open,
            shut,
            trouble_until: None,
            index_made_anew: false,
            damages,
        }
    }

    /// Runs until `shutdown`; attempts that have started are in `attempts` and go on.
    pub async fn run(mut self, attempts: TaskTracker, shutdown: CancellationToken) {
        loop {
            self.mind_damages(&attempts);
            self.start(&attempts);
            let sleep = match self.parts.queue.claims().look(self.parts.clock.now()) {
                Look::Now => {
                    self.scan(&attempts);
                    self.start(&attempts);
                    Duration::ZERO
                }
                Look::At(due) => Duration::from_millis(due.saturating_sub(self.parts.clock.now())).min(SLEEP_MAX),
                Look::Later => SLEEP_MAX,
            };
            let trouble = self.trouble_until;
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                Some((lane, destination)) = self.finished.recv() => self.turns.finish(lane.index(), &destination),
                Some(claimed) = self.fresh.recv() => self.take(claimed),
                () = self.parts.queue.claims().wake.notified() => {}
                () = at(trouble), if trouble.is_some() => {
                    self.trouble_until = None;
                    self.parts.queue.claims().forgive();
                }
                () = tokio::time::sleep(sleep) => {}
            }
            // Whatever else has arrived is taken before anything is started, so turns are fair.
            while let Ok((lane, destination)) = self.finished.try_recv() {
                self.turns.finish(lane.index(), &destination);
            }
            while let Ok(claimed) = self.fresh.try_recv() {
                self.take(claimed);
            }
        }
    }

    /// A store that was opened again may have lost entries of the index without a trace.
    fn mind_damages(&mut self, attempts: &TaskTracker) {
        let damages = self.parts.queue.store().damage_count();
        if damages > self.damages {
            self.damages = damages;
            self.make_index_anew(attempts);
        }
    }

    fn make_index_anew(&self, attempts: &TaskTracker) {
        let parts = self.parts.clone();
        attempts.spawn(async move {
            match parts.queue.rebuild_due_index().await {
                Ok(rebuilt) => tracing::info!(entries = rebuilt.entries, "the due index is whole again"),
                Err(error) => tracing::error!(%error, "the due index could not be made anew"),
            }
        });
    }

    fn scan(&mut self, attempts: &TaskTracker) {
        match self.parts.queue.claim_due() {
            Ok(scan) => {
                if scan.trouble.is_some() {
                    self.trouble_until.get_or_insert_with(|| Instant::now() + STORE_TROUBLE_WAIT);
                }
                if let Some(error) = scan.damaged
                    && !std::mem::replace(&mut self.index_made_anew, true)
                {
                    tracing::error!(%error, "the due index is damaged; its entries are made anew");
                    self.make_index_anew(attempts);
                }
                if !scan.stale.is_empty() {
                    let (parts, stale) = (self.parts.clone(), scan.stale);
                    attempts.spawn(async move {
                        if let Err(error) = parts.queue.mend(&stale).await {
                            tracing::warn!(%error, "wrong entries of the due index could not be put right; trying again");
                            tokio::time::sleep(STORE_TROUBLE_WAIT).await;
                            parts.queue.look_again(&stale);
                        }
                    });
                }
                scan.claimed.into_iter().for_each(|claimed| self.take(claimed));
            }
            // It was told of where it was found.
            Err(_) => {
                self.trouble_until.get_or_insert_with(|| Instant::now() + STORE_TROUBLE_WAIT);
            }
        }
    }

    /// Sorts a claimed message into the turns of its destinations.
    fn take(&mut self, claimed: Claimed) {
        let claim = (claimed.lane, claimed.ticket());
        let is_shut = self.shut.has(claimed.lane.index());
        let fresh = claimed.body.filter(|_| !is_shut).map(Arc::new);
        let mut jobs: BTreeMap<Destination, Vec<(u32, Recipient)>> = BTreeMap::new();
        for (number, recipient) in claimed.recipients {
            jobs.entry(destination(&recipient)).or_default().push((number, recipient));
        }
        for (destination, recipients) in jobs {
            let waiting = Waiting { message: claimed.message.clone(), recipients, fresh: fresh.clone(), claim };
            self.turns.push(claimed.lane.index(), destination, waiting);
        }
    }

    /// What waits behind a gate that is shut holds no body: it may be there for days.
    fn look_at_gates(&mut self) {
        let (open, shut) = self.parts.queue.gates().look();
        let newly = shut.without(self.shut);
        if !newly.is_empty() {
            self.turns.in_lanes(newly).for_each(|waiting| waiting.fresh = None);
        }
        (self.open, self.shut) = (open, shut);
    }

    /// Starts what may start.
    fn start(&mut self, attempts: &TaskTracker) {
        loop {
            self.look_at_gates();
            let Some((destination, mut waiting)) = self.turns.next(self.open) else { return };
            let (lane, _) = waiting.claim;
            if let Some(rest) = waiting.split(self.parts.queue.gates().room(lane)) {
                self.turns.push_front(lane.index(), &destination, rest);
            }
            self.parts.queue.begin(waiting.message.id, waiting.claim, &mut waiting.recipients);
            if waiting.recipients.is_empty() {
                self.turns.finish(lane.index(), &destination);
                continue;
            }
            let parts = self.parts.clone();
            let started = parts.queue.gates().start(lane, waiting.recipients.len());
            let turn = TurnTaken { finish: self.finish.clone(), of: Some((lane, destination)), started };
            attempts.spawn(attempt(parts, waiting, turn));
        }
    }
}

/// Gives the place among the running attempts back, at the latest when it is dropped.
struct TurnTaken {
    finish: mpsc::UnboundedSender<(Lane, Destination)>,
    of: Option<(Lane, Destination)>,
    /// Where the stream counts what is under way.
    started: Option<Started>,
}

impl TurnTaken {
    fn finish(&mut self) {
        self.started = None;
        if let Some(of) = self.of.take() {
            // The dispatcher may have stopped; then nobody counts any more.
            let _ = self.finish.send(of);
        }
    }
}

impl Drop for TurnTaken {
    fn drop(&mut self) {
        self.finish();
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

fn destination(recipient: &Recipient) -> Destination {
    match &recipient.route {
        Route::Remote => Destination::Domain(recipient.address.domain().clone()),
        Route::Target(name) => Destination::Target(name.clone()),
    }
}

async fn attempt(parts: Arc<Parts>, waiting: Waiting, mut turn: TurnTaken) {
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
    let outcomes = deliver(parts, &job).await;
    // The next one need not wait until this one is noted, unless that takes long.
    let noting = parts.noting.try_acquire();
    if noting.is_ok() {
        turn.finish();
    }
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
