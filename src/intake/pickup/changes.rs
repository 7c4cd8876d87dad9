//! Hears from the kernel (inotify) that something has come into a folder, so that a look need not wait.
//! Nothing depends on it: a watch that was lost, a queue that ran over or a share of another machine only
//! cost the wait for the next look.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

use super::files::is_eml;

/// Bytes of changes read at a time.
const BUFFER_BYTES: usize = 16 * 1024;

#[derive(Debug)]
pub struct Changes(Option<AsyncFd<OwnedFd>>);

impl Changes {
    /// Needs a tokio runtime around it.
    #[allow(deprecated, reason = "an OwnedFd stays open as long as it is registered; the successor is unsafe to call")]
    pub fn new() -> Changes {
        let made = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC);
        Changes(made.ok().and_then(|fd| AsyncFd::new(fd).ok()))
    }

    /// Watches the folder and these of its sub-folders; false if that cannot be. To be said again after
    /// each look: it costs little, and a folder that was made anew is another one.
    pub fn follow(&mut self, folder: &Path, subs: &[String]) -> bool {
        let Some(fd) = &self.0 else { return false };
        let what = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::CREATE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let watch = |path: &Path, more| inotify::add_watch(fd.get_ref(), path, what | more).is_ok();
        let subs = subs.iter().all(|sub| watch(&folder.join(sub), WatchFlags::DONT_FOLLOW));
        watch(folder, WatchFlags::empty()) && subs
    }

    /// Until something has come.
    pub async fn heard(&mut self) {
        loop {
            let Some(fd) = &self.0 else { return std::future::pending().await };
            let Ok(mut ready) = fd.readable().await else {
                self.0 = None;
                continue;
            };
            let came = something_came(fd.get_ref());
            ready.clear_ready();
            if came {
                return;
            }
        }
    }
}

/// Reads all that there is to read.
fn something_came(fd: &OwnedFd) -> bool {
    let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
    let mut reader = inotify::Reader::new(fd, &mut buffer);
    let mut came = false;
    // Ends at the first one that would have to be waited for.
    while let Ok(event) = reader.next() {
        let is_file = event.file_name().is_some_and(|name| is_eml(OsStr::from_bytes(name.to_bytes())));
        // A file in the making is heard of again when it is closed.
        let is_new = is_file && !event.events().contains(ReadFlags::CREATE);
        let others = ReadFlags::ISDIR | ReadFlags::QUEUE_OVERFLOW | ReadFlags::IGNORED | ReadFlags::MOVE_SELF;
        came |= is_new || event.events().intersects(others);
    }
    came
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;
    use std::time::Duration;

    /// The bound only turns a hang into a failure.
    async fn hears(changes: &mut Changes) {
        tokio::time::timeout(Duration::from_secs(30), changes.heard()).await.unwrap();
    }

    #[tokio::test]
    async fn new_files_are_heard_of_also_in_a_folder_that_was_made_anew() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("pickup");
        let mut changes = Changes::new();
        for _ in 0..2 {
            fs::create_dir_all(folder.join("bulk")).unwrap();
            assert!(changes.follow(&folder, &["bulk".to_owned()]));
            fs::write(folder.join("a.eml"), "x").unwrap();
            hears(&mut changes).await;
            fs::write(folder.join("b.part"), "x").unwrap();
            fs::rename(folder.join("b.part"), folder.join("b.eml")).unwrap();
            hears(&mut changes).await;
            fs::write(folder.join("bulk/c.eml"), "x").unwrap();
            hears(&mut changes).await;
            fs::create_dir(folder.join("new")).unwrap();
            hears(&mut changes).await;
            fs::remove_dir_all(&folder).unwrap();
            hears(&mut changes).await;
            assert!(!changes.follow(&folder, &[]));
        }
    }

    #[tokio::test]
    async fn what_concerns_no_message_is_not_heard() {
        let folder = tempfile::tempdir().unwrap();
        let mut changes = Changes::new();
        assert!(changes.follow(folder.path(), &[]));
        for name in ["x.tmp", "x.part", ".x.eml"] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        assert!(!something_came(changes.0.as_ref().unwrap().get_ref()));
        // A file in the making: heard of when it is closed.
        let file = fs::File::create(folder.path().join("x.eml")).unwrap();
        assert!(!something_came(changes.0.as_ref().unwrap().get_ref()));
        drop(file);
        assert!(something_came(changes.0.as_ref().unwrap().get_ref()));
    }
}
