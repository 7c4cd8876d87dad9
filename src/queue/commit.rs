//! Group commit: one thread takes the batches of all sessions, writes what has arrived as one
//! synced group, and answers them all. No timer: while one sync runs the next group collects.
//!
//! If the store fails, the whole group is refused and the thread opens the store again once that works.
//!
//! A batch that asks for no sync (the end of a delivery) is written at once and reaches the disk with
//! the next synced group, or after [`LAZY_SYNC`] if none comes, whatever else is written meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::store::{Batch, Health, Store, StoreError};

/// Most bytes written as one group; what is above waits for the next.
const GROUP_BYTES_MAX: usize = 16 << 20;
/// Most batches in one group.
const GROUP_BATCHES_MAX: usize = 1024;
/// How long an unsynced write may lie in the page cache.
const LAZY_SYNC: Duration = Duration::from_millis(200);
/// How often a store that failed is tried again.
const REOPEN_EVERY: Duration = Duration::from_secs(1);
/// Upper bounds of the classes in which writes are counted by their time, in microseconds.
pub const WRITE_MICROS: [u64; 12] =
    [100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000, 1_000_000];

/// What the committer has done since the start.
#[derive(Debug, Default)]
pub struct CommitCounts {
    /// Groups that were synced.
    pub synced_groups: AtomicU64,
    pub unsynced_groups: AtomicU64,
    /// Groups that were refused because the store failed.
    pub failed_groups: AtomicU64,
    /// Batches in all groups.
    pub batches: AtomicU64,
    /// Bytes of keys and values.
    pub bytes: AtomicU64,
    /// Synced groups by the time of their write: one class for each of [`WRITE_MICROS`], one above.
    pub synced_by_time: [AtomicU64; WRITE_MICROS.len() + 1],
    /// Sum of those times, in microseconds.
    pub synced_micros: AtomicU64,
}

impl CommitCounts {
    fn count(&self, batches: &[Batch], sync: bool, is_written: bool, took: Duration) {
        let add = |counter: &AtomicU64, by: u64| counter.fetch_add(by, Ordering::Relaxed);
        add(&self.batches, batches.len() as u64);
        add(&self.bytes, batches.iter().map(|batch| batch.bytes() as u64).sum());
        match (is_written, sync) {
            (false, _) => add(&self.failed_groups, 1),
            (true, false) => add(&self.unsynced_groups, 1),
            (true, true) => {
                let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                let class = WRITE_MICROS.iter().take_while(|bound| micros > **bound).count();
                self.synced_by_time.get(class).map(|counter| add(counter, 1));
                add(&self.synced_micros, micros);
                add(&self.synced_groups, 1)
            }
        };
    }
}

#[derive(Debug)]
struct Request {
    batch: Batch,
    sync: bool,
    /// Only if the store has not been opened again since: this is what [`Store::reopened`] has to be.
    reopened: Option<u64>,
    done: oneshot::Sender<Result<(), StoreError>>,
}

impl Request {
    /// None, and whoever waits for it is told, if what it builds upon may be lost.
    fn if_still_good(self, store: &Store) -> Option<Request> {
        if self.reopened.is_none_or(|reopened| reopened == store.reopened()) {
            return Some(self);
        }
        // A session that has gone does not ask any more.
        let _ = self.done.send(Err(StoreError::Failed("it was opened again while the message came in".to_owned())));
        None
    }
}

/// The sending side. When it is dropped the thread writes what it has and ends; the drop waits for
/// that, so that the store can be opened again afterwards.
#[derive(Debug)]
pub struct Committer {
    requests: Option<Sender<Request>>,
    /// None: somebody else does its work ([`Committer::by_hand`]).
    thread: Option<JoinHandle<()>>,
    counts: Arc<CommitCounts>,
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was answered to every waiting session as a failure.
            let _ = thread.join();
        }
    }
}

impl Committer {
    /// `sync` false: `durability = "relaxed"`, nothing is ever synced.
    pub fn start(store: Arc<Store>, sync: bool) -> Committer {
        let (requests, receiver) = channel();
        let counts = Arc::new(CommitCounts::default());
        let counted = counts.clone();
        let thread = std::thread::Builder::new().name("committer".into());
        // Without a thread every commit fails with "the committer has stopped", which is a 451.
        let thread = thread.spawn(move || run(&store, &receiver, sync, &counted)).ok();
        Committer { requests: Some(requests), thread, counts }
    }

    /// Without the thread: groups are written when the [`Hand`] does it.
    pub fn by_hand(store: Arc<Store>) -> (Committer, Hand) {
        let (requests, receiver) = channel();
        let counts = Arc::new(CommitCounts::default());
        let hand = Hand { store, requests: receiver, ready: VecDeque::new() };
        (Committer { requests: Some(requests), thread: None, counts }, hand)
    }

    pub fn counts(&self) -> &CommitCounts {
        &self.counts
    }

    /// Returns when the batch is written; with `sync`, when it is on disk.
    pub async fn commit(&self, batch: Batch, sync: bool) -> Result<(), StoreError> {
        self.send(batch, sync, None).await
    }

    /// As [`Committer::commit`], synced, for what builds upon writes without a sync that were made when
    /// [`Store::reopened`] was this: fails if the store is opened again before it is this batch's turn.
    pub async fn commit_upon(&self, batch: Batch, reopened: u64) -> Result<(), StoreError> {
        self.send(batch, true, Some(reopened)).await
    }

    async fn send(&self, batch: Batch, sync: bool, reopened: Option<u64>) -> Result<(), StoreError> {
        let stopped = || StoreError::Failed("the committer has stopped".into());
        let (done, answer) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or_else(stopped)?;
        requests.send(Request { batch, sync, reopened, done }).map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

/// Writes in place of the committer's thread, one group at a time and when it is told to: so a simulation
/// decides what has reached the store when everything ends, and who was told of it. What it has not written
/// when it is dropped is gone.
#[derive(Debug)]
pub struct Hand {
    store: Arc<Store>,
    requests: Receiver<Request>,
    ready: VecDeque<Request>,
}

/// Those who wait to hear of a group that was written.
#[derive(Debug)]
#[must_use]
pub struct Answers(Waiting);

impl Answers {
    pub fn give(self) {
        answer_all(self.0, &Ok(()));
    }
}

impl Hand {
    /// How many batches wait.
    pub fn waiting(&mut self) -> usize {
        self.ready.extend(self.requests.try_iter());
        self.ready.len()
    }

    /// Writes the first `most` of those that wait as one group.
    pub fn write(&mut self, most: usize) -> Result<Answers, StoreError> {
        let store = self.store.clone();
        let good = self.take(most).filter_map(|request| request.if_still_good(&store));
        let (batches, waiting): (Vec<_>, Vec<_>) = good.map(|request| (request.batch, request.done)).unzip();
        self.store.write(&batches, false)?;
        Ok(Answers(waiting))
    }

    /// Tells the first `most` that the disk has failed; nothing is written.
    pub fn refuse(&mut self, most: usize) {
        let waiting = self.take(most).map(|request| request.done).collect();
        answer_all(waiting, &Err(StoreError::Failed("a fault of the simulation".into())));
    }

    fn take(&mut self, most: usize) -> impl Iterator<Item = Request> + '_ {
        let most = self.waiting().min(most);
        self.ready.drain(..most)
    }
}

fn answer_all(waiting: Waiting, written: &Result<(), StoreError>) {
    for done in waiting {
        // A session that has gone does not ask any more; its message is queued all the same.
        let _ = done.send(written.clone());
    }
}

fn run(store: &Store, requests: &Receiver<Request>, may_sync: bool, counts: &CommitCounts) {
    // Since when something lies in the page cache.
    let mut unsynced: Option<Instant> = None;
    let is_late = |unsynced: Option<Instant>| unsynced.is_some_and(|since| since.elapsed() >= LAZY_SYNC);
    loop {
        if store.health() != Health::Good && !recover(store, requests) {
            return;
        }
        let first = match unsynced.filter(|_| may_sync) {
            Some(since) => match requests.recv_timeout(LAZY_SYNC.saturating_sub(since.elapsed())) {
                Ok(request) => request,
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(error) = store.sync() {
                        tracing::error!(%error, "the store could not be synced");
                    }
                    unsynced = None;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            },
            None => match requests.recv() {
                Ok(request) => request,
                Err(_) => break,
            },
        };
        let (batches, waiting, sync) = gather(first, requests, store);
        if batches.is_empty() {
            continue;
        }
        // Where there is always another one before the time is over, this one brings them all to disk.
        let sync = sync || (may_sync && is_late(unsynced));
        let begun = Instant::now();
        let written = store.write(&batches, sync && may_sync);
        counts.count(&batches, sync, written.is_ok(), begun.elapsed());
        unsynced = if sync && written.is_ok() { None } else { unsynced.or(Some(begun)) };
        answer_all(waiting, &written);
    }
    if may_sync {
        let _ = store.sync();
    }
}

/// Opens the store again as soon as that works; until then everybody is told that it does not. False:
/// nobody is left who could ask.
fn recover(store: &Store, requests: &Receiver<Request>) -> bool {
    if let Health::Failed { why, .. } = store.health() {
        tracing::error!(why, "the store has failed: no mail is taken and no result is noted until it is opened again");
    }
    loop {
        let error = match store.reopen() {
            Ok(damages) => {
                for damage in damages {
                    tracing::error!(place = damage.place, what = damage.what, "the store is damaged");
                }
                tracing::info!("the store is open again");
                return true;
            }
            Err(error) => error,
        };
        let next = Instant::now() + REOPEN_EVERY;
        while let Some(left) = next.checked_duration_since(Instant::now()) {
            match requests.recv_timeout(left) {
                Ok(request) => drop(request.done.send(Err(error.clone()))),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }
}

type Waiting = Vec<oneshot::Sender<Result<(), StoreError>>>;

fn gather(first: Request, requests: &Receiver<Request>, store: &Store) -> (Vec<Batch>, Waiting, bool) {
    let (mut batches, mut waiting, mut bytes, mut sync) = (Vec::new(), Vec::new(), 0, false);
    let mut next = Some(first);
    while let Some(request) = next {
        if let Some(Request { batch, sync: wants_sync, done, .. }) = request.if_still_good(store) {
            bytes += batch.bytes();
            sync |= wants_sync;
            batches.push(batch);
            waiting.push(done);
        }
        let has_room = bytes < GROUP_BYTES_MAX && batches.len() < GROUP_BATCHES_MAX;
        next = if has_room { requests.try_recv().ok() } else { None };
    }
    (batches, waiting, sync)
}
