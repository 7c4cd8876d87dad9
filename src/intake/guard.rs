//! The disk guard: new mail is turned away while there is still room to deliver what is queued.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::smtp::Reply;
use crate::smtp::reply::Refusal;

/// How long a look at the disk is believed: what a fast disk takes in this time must be small beside
/// any `min_free` that keeps the store working.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The room there is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskState {
    pub free: u64,
    pub min_free: u64,
    /// At least `min_free` is free.
    pub accepting: bool,
}

#[derive(Debug)]
pub struct DiskGuard {
    min_free: u64,
    disk: Arc<Watched>,
}

/// The disk, whatever has to be free of it.
#[derive(Debug)]
struct Watched {
    path: PathBuf,
    last: Mutex<Option<(Instant, u64)>>,
    turned_away: Notify,
}

impl DiskGuard {
    /// `min_free` in bytes, of the file system that holds `path`.
    pub fn new(path: PathBuf, min_free: u64) -> DiskGuard {
        let disk = Watched { path, last: Mutex::new(None), turned_away: Notify::new() };
        DiskGuard { min_free, disk: Arc::new(disk) }
    }

    /// The same disk with another limit.
    pub fn with_min_free(&self, min_free: u64) -> DiskGuard {
        DiskGuard { min_free, disk: self.disk.clone() }
    }

    /// 452 while less than `min_free` plus the announced message is free.
    pub fn room_for(&self, size: u64) -> Result<(), Refusal> {
        let free = self.disk.free();
        if free >= self.min_free.saturating_add(size) {
            return Ok(());
        }
        self.disk.turned_away.notify_one();
        Err(Refusal {
            reply: Reply::new(452, (3, 1), "not enough disk space on this server, please try again later"),
            reason: format!(
                "{} has {} MiB free, less than queue.min_free ({} MiB)",
                self.disk.path.display(),
                free >> 20,
                self.min_free >> 20
            ),
        })
    }

    /// How it stands now.
    pub fn state(&self) -> DiskState {
        let free = self.disk.free();
        DiskState { free, min_free: self.min_free, accepting: free >= self.min_free }
    }

    /// Until mail is turned away, or has been since the last call.
    pub async fn turned_away(&self) {
        self.disk.turned_away.notified().await;
    }
}

impl Watched {
    fn free(&self) -> u64 {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((at, free)) = *last
            && at.elapsed() < LOOK_AGAIN
        {
            return free;
        }
        // Where the file system cannot tell, the write itself will.
        let free = rustix::fs::statvfs(&self.path).map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        *last = Some((Instant::now(), free));
        free
    }
}
