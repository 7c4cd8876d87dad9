//! Group commit: one thread takes the batches of all sessions, writes what has arrived as one
//! synced group, and answers them all. No timer: while one sync runs the next group collects.
//!
//! A batch that asks for no sync (the end of a delivery) is written at once and reaches the disk with
//! the next synced group, or after [`LAZY_SYNC`] if none comes.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::store::{Batch, Store, StoreError};

use super::stats::CommitStats;

/// Most bytes written as one group; what is above waits for the next.
const GROUP_BYTES_MAX: usize = 16 << 20;
/// Most batches in one group.
const GROUP_BATCHES_MAX: usize = 1024;
/// How long an unsynced write may lie in the page cache.
const LAZY_SYNC: Duration = Duration::from_millis(200);

struct Request {
    batch: Batch,
    sync: bool,
    done: oneshot::Sender<Result<(), StoreError>>,
}

/// The sending side. When it is dropped the thread writes what it has and ends; the drop waits for
/// that, so that the store can be opened again afterwards.
#[derive(Debug)]
pub struct Committer {
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
    stats: Arc<CommitStats>,
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
        let stats = Arc::<CommitStats>::default();
        let counted = stats.clone();
        let thread = std::thread::Builder::new().name("committer".into());
        // Without a thread every commit fails with "the committer has stopped", which is a 451.
        let thread = thread.spawn(move || run(&store, &receiver, sync, &counted)).ok();
        Committer { requests: Some(requests), thread, stats }
    }

    pub fn stats(&self) -> &CommitStats {
        &self.stats
    }

    /// Returns when the batch is written; with `sync`, when it is on disk.
    pub async fn commit(&self, batch: Batch, sync: bool) -> Result<(), StoreError> {
        let stopped = || StoreError::Failed("the committer has stopped".into());
        let (done, answer) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or_else(stopped)?;
        requests.send(Request { batch, sync, done }).map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

fn run(store: &Store, requests: &Receiver<Request>, may_sync: bool, stats: &CommitStats) {
    let mut unsynced = false;
    loop {
        let first = match (unsynced, may_sync) {
            (true, true) => match requests.recv_timeout(LAZY_SYNC) {
                Ok(request) => request,
                Err(RecvTimeoutError::Timeout) => {
                    // A failure here shows at the next group, which cannot be synced either.
                    unsynced = store.sync().is_err();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            },
            _ => match requests.recv() {
                Ok(request) => request,
                Err(_) => break,
            },
        };
        let (batches, waiting, sync) = gather(first, requests);
        let begun = Instant::now();
        let written = store.write(&batches, sync && may_sync);
        let bytes = batches.iter().map(Batch::bytes).sum();
        stats.record(batches.len(), bytes, sync && may_sync, written.is_ok(), begun.elapsed());
        unsynced = !(sync && written.is_ok());
        for done in waiting {
            // A session that has gone does not ask any more; its message is queued all the same.
            let _ = done.send(written.clone());
        }
    }
    if may_sync {
        let _ = store.sync();
    }
}

type Waiting = Vec<oneshot::Sender<Result<(), StoreError>>>;

fn gather(first: Request, requests: &Receiver<Request>) -> (Vec<Batch>, Waiting, bool) {
    let mut bytes = first.batch.bytes();
    let mut sync = first.sync;
    let mut batches = vec![first.batch];
    let mut waiting = vec![first.done];
    while bytes < GROUP_BYTES_MAX && batches.len() < GROUP_BATCHES_MAX {
        let Ok(request) = requests.try_recv() else { break };
        bytes += request.batch.bytes();
        sync |= request.sync;
        batches.push(request.batch);
        waiting.push(request.done);
    }
    (batches, waiting, sync)
}
