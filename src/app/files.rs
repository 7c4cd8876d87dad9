//! Follows the files that the configuration was read from, certificates and secrets included: who changes one need
//! not tell the server.
//!
//! They are looked at once a second, which costs nothing beside a mail and sees what notices of the kernel do not
//! (network file systems, a folder that is exchanged as a whole). A change counts when two looks have found the same,
//! so nothing half-written is read; and if it was, it is refused, and read again when it is whole.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::reload::Reloader;
use crate::config::Source;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What tells whether a file is another than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Stamp> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Stamp {
            file: (meta.dev(), meta.ino()),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

type Stamps = BTreeMap<PathBuf, Option<Stamp>>;

fn stamps(source: &Source) -> Stamps {
    source.files.iter().chain(&source.folders).map(|path| (path.clone(), Stamp::of(path))).collect()
}

/// What the looks have found.
#[derive(Debug, Default)]
struct Looks {
    /// What was read last.
    taken: Stamps,
    last: Stamps,
}

impl Looks {
    /// Is it time to read them again?
    fn found(&mut self, now: Stamps) -> bool {
        let is_new = now != self.taken && now == self.last;
        if is_new {
            self.taken = now.clone();
        }
        self.last = now;
        is_new
    }
}

pub(super) async fn follow(reloader: Arc<Reloader>, stop: CancellationToken) {
    let mut looks = Looks::default();
    // Nothing is taken yet: what was changed between the start's reading and the first look here is read, too. In most
    // cases it finds nothing new.
    loop {
        let source = reloader.config();
        let now = tokio::task::spawn_blocking(move || stamps(&source.source)).await;
        if let Ok(now) = now
            && looks.found(now)
            // What is wrong with it is in the log.
            && reloader.reload().await.is_ok()
        {
            // Perhaps there are other files now. Those that changed meanwhile are read once more.
            let source = reloader.config();
            let known = looks.taken.clone();
            let now = tokio::task::spawn_blocking(move || stamps(&source.source)).await.unwrap_or_default();
            looks.taken = now
                .into_iter()
                .map(|(path, stamp)| (path.clone(), known.get(&path).copied().unwrap_or(stamp)))
                .collect();
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::parse;

    #[test]
    fn a_change_counts_once_it_is_the_same_in_two_looks() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("postrider.toml");
        let text = "hostname = \"mail.own.test\"\ndata_dir = \"/nowhere\"\n";
        std::fs::write(&file, text).unwrap();
        let source = parse(file.to_str().unwrap(), text).unwrap().source;
        let look = || stamps(&source);
        let mut looks = Looks { taken: look(), last: look() };
        assert!(!looks.found(look()));
        std::fs::write(&file, "half").unwrap();
        assert!(!looks.found(look()), "it may not be whole yet");
        std::fs::write(&file, "half and the rest").unwrap();
        assert!(!looks.found(look()), "and it was not");
        assert!(looks.found(look()));
        assert!(!looks.found(look()), "once");
        std::fs::remove_file(&file).unwrap();
        assert!(!looks.found(look()));
        assert!(looks.found(look()), "gone is a change, too");
    }

    #[test]
    fn a_file_that_takes_the_place_of_another_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let [file, other] = ["secret", "other"].map(|name| folder.path().join(name));
        std::fs::write(&file, "first").unwrap();
        std::fs::write(&other, "other").unwrap();
        let text = format!(
            "hostname = \"mail.own.test\"\ndata_dir = \"/nowhere\"\n[domains.\"own.test\"]\n[accounts.app]\npassword = {{ file = \"{}\" }}\n",
            file.display()
        );
        let source = parse("test.toml", &text).unwrap().source;
        let before = stamps(&source);
        std::fs::rename(&other, &file).unwrap();
        assert_ne!(stamps(&source), before);
    }
}
