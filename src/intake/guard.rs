//! The disk guard: new mail is turned away while there is still room to deliver what is queued.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::smtp::Reply;
use crate::smtp::reply::Refusal;

/// How long a look at the disk is believed: what a fast disk takes in this time must be small beside
/// any `min_free` that keeps the store working.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Files that the file system must be able to take beside: of those the store makes new ones all the time, for mail
/// that leaves too. Only few file systems have an end of them (ext4: its inodes) before they have one of bytes.
const MIN_FILES: u64 = 64;

/// The room there is, in bytes. Not accepting with `min_free` free: there is an end of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskState {
    pub free: u64,
    pub min_free: u64,
    /// At least `min_free` is free, and some files can be made.
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
    last: Mutex<Option<(Instant, Room)>>,
    turned_away: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    bytes: u64,
    files: u64,
}

impl Room {
    /// Where the file system cannot tell, the write itself will.
    const UNKNOWN: Room = Room { bytes: u64::MAX, files: u64::MAX };

    fn of(path: &Path) -> Room {
        let Ok(stat) = rustix::fs::statvfs(path) else { return Room::UNKNOWN };
        // Without a number of all there is no end of them (btrfs).
        let files = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
        Room { bytes: stat.f_bavail.saturating_mul(stat.f_frsize), files }
    }

    fn is_enough(self, bytes: u64) -> bool {
        self.bytes >= bytes && self.files >= MIN_FILES
    }
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
        let room = self.disk.room();
        if room.is_enough(self.min_free.saturating_add(size)) {
            return Ok(());
        }
        self.disk.turned_away.notify_one();
        let path = self.disk.path.display();
        let reason = if room.files < MIN_FILES {
            format!("{path} takes {} files more, less than {MIN_FILES}: its inodes are used up", room.files)
        } else {
            let (free, min_free) = (room.bytes >> 20, self.min_free >> 20);
            format!("{path} has {free} MiB free, less than queue.min_free ({min_free} MiB)")
        };
        Err(Refusal {
            reply: Reply::new(452, (3, 1), "not enough disk space on this server, please try again later"),
            reason,
        })
    }

    /// How it stands now.
    pub fn state(&self) -> DiskState {
        let room = self.disk.room();
        DiskState { free: room.bytes, min_free: self.min_free, accepting: room.is_enough(self.min_free) }
    }

    /// Until mail is turned away, or has been since the last call.
    pub async fn turned_away(&self) {
        self.disk.turned_away.notified().await;
    }
}

impl Watched {
    fn room(&self) -> Room {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((at, room)) = *last
            && at.elapsed() < LOOK_AGAIN
        {
            return room;
        }
        let room = Room::of(&self.path);
        *last = Some((Instant::now(), room));
        room
    }
}
