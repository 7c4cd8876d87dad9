//! The file-system side of the pickup folder: looking, opening, renaming. Blocking; no step here
//! follows a link, waits for a writer, or replaces a file that is there.

use std::collections::{BinaryHeap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use serde::{Deserialize, Serialize};

/// Bytes of a file name, on every file system we know of.
const NAME_BYTES_MAX: usize = 255;
/// Bytes that an ending of ours may need: a stamp, a number, `.bad.log`.
const ENDING_BYTES_MAX: usize = 40;
/// Names tried before a rename is given up for now.
const NAMES_TRIED_MAX: u32 = 9;
/// Files in one look that are told of as never taken.
const ODD_MAX: usize = 100;

/// What makes a file this file, in this state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    pub mtime: i64,
    pub mtime_nanos: i64,
    pub size: u64,
    pub device: u64,
    pub inode: u64,
}

impl Stamp {
    pub fn of(meta: &Metadata) -> Stamp {
        Stamp {
            mtime: meta.mtime(),
            mtime_nanos: meta.mtime_nsec(),
            size: meta.size(),
            device: meta.dev(),
            inode: meta.ino(),
        }
    }

    /// Milliseconds since 1970.
    pub fn modified(&self) -> i64 {
        self.mtime.saturating_mul(1000).saturating_add(self.mtime_nanos / 1_000_000)
    }

    pub fn is_same_file(&self, other: &Stamp) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// The same content after a restart, when device numbers may have changed.
    pub fn is_same_content(&self, other: &Stamp) -> bool {
        (self.mtime, self.mtime_nanos, self.size) == (other.mtime, other.mtime_nanos, other.size)
    }

    /// Of what lies at `path`, if it is a file.
    pub fn at(path: &Path) -> io::Result<Option<Stamp>> {
        match fs::symlink_metadata(path) {
            Ok(meta) => Ok(meta.is_file().then(|| Stamp::of(&meta))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A file that could be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub name: OsString,
    pub stamp: Stamp,
}

/// One look at the folder.
#[derive(Debug, Default)]
pub struct Listing {
    /// The oldest first, then by name.
    pub found: Vec<Found>,
    /// Named like a message, but nothing that is ever taken, and why.
    pub odd: Vec<(OsString, &'static str)>,
}

/// Names that we look at: they end in `.eml` and do not begin with a dot.
pub fn is_eml(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    let ending = bytes.len().checked_sub(4).and_then(|at| bytes.get(at..)).unwrap_or_default();
    bytes.len() > 4 && !bytes.starts_with(b".") && ending.eq_ignore_ascii_case(b".eml")
}

/// Looks at the whole folder but keeps only the `keep` oldest files that are not in `skip`.
pub fn list(folder: &Path, keep: usize, skip: &HashSet<OsString>) -> io::Result<Listing> {
    let mut oldest = BinaryHeap::new();
    let mut listing = Listing::default();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        if !is_eml(&name) || skip.contains(&name) {
            continue;
        }
        // A file that has vanished since is no trouble.
        let Ok(meta) = fs::symlink_metadata(folder.join(&name)) else { continue };
        match why_never(&meta) {
            Some(why) if listing.odd.len() < ODD_MAX => listing.odd.push((name, why)),
            Some(_) => {}
            None => oldest.push((meta.mtime(), meta.mtime_nsec(), name, Stamp::of(&meta))),
        }
        if oldest.len() > keep {
            oldest.pop();
        }
    }
    let sorted = oldest.into_sorted_vec().into_iter();
    listing.found = sorted.map(|(_, _, name, stamp)| Found { name, stamp }).collect();
    Ok(listing)
}

fn why_never(meta: &Metadata) -> Option<&'static str> {
    let kind = meta.file_type();
    match () {
        () if kind.is_symlink() => Some("it is a symbolic link"),
        () if !kind.is_file() => Some("it is no regular file"),
        () if meta.nlink() != 1 => Some("it has more than one hard link"),
        () => None,
    }
}

/// Why a file is not taken now.
#[derive(Debug)]
pub enum NotNow {
    /// It is not what we saw any more; the next look tells.
    Changed,
    /// Somebody holds a lock on it.
    Locked,
    Failed(io::Error),
}

/// Opens the file that was seen and locks it. The lock lasts as long as the file is open.
pub fn open_locked(path: &Path, seen: &Stamp) -> Result<File, NotNow> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = match rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from) {
        Ok(file) => File::from(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(NotNow::Changed),
        Err(error) => return Err(NotNow::Failed(error)),
    };
    let meta = file.metadata().map_err(NotNow::Failed)?;
    if why_never(&meta).is_some() || Stamp::of(&meta) != *seen {
        return Err(NotNow::Changed);
    }
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(NotNow::Locked),
        // A file system without locks, such as some network shares: time alone has to tell.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(file),
        Err(TryLockError::Error(error)) => Err(NotNow::Failed(error)),
    }
}

/// Reads all of an open file; none if somebody has written to it since `seen`.
pub fn read_all(file: &File, seen: &Stamp) -> io::Result<Option<Vec<u8>>> {
    let mut content = Vec::with_capacity(usize::try_from(seen.size).unwrap_or(0));
    file.take(seen.size.saturating_add(1)).read_to_end(&mut content)?;
    let unchanged = Stamp::of(&file.metadata()?) == *seen && content.len() as u64 == seen.size;
    Ok(unchanged.then_some(content))
}

/// Renames without ever replacing a file.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // File systems that do not know the flag. The gap between look and rename is theirs.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {
            match fs::symlink_metadata(to) {
                Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
                Err(_) => fs::rename(from, to),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Renames `from` to `<stem><ending>`, or where that is taken to a name with the time in it.
pub fn rename_free(folder: &Path, from: &OsStr, to: &OsStr, ending: &str, time: &str) -> io::Result<OsString> {
    for name in names(to, ending, time) {
        match rename(&folder.join(from), &folder.join(&name)) {
            Ok(()) => return Ok(name),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// The first of the names for `<stem><ending>` that nothing has.
pub fn free_name(folder: &Path, of: &OsStr, ending: &str, time: &str) -> Option<OsString> {
    names(of, ending, time).find(|name| fs::symlink_metadata(folder.join(name)).is_err())
}

/// `x.tmp`, `x.<time>.tmp`, `x.<time>-1.tmp` …
fn names(of: &OsStr, ending: &str, time: &str) -> impl Iterator<Item = OsString> {
    let stem = stem(of).to_vec();
    let middle = move |n: u32| match n {
        0 => String::new(),
        1 => format!(".{time}"),
        n => format!(".{time}-{}", n - 1),
    };
    let ending = ending.to_owned();
    (0..NAMES_TRIED_MAX)
        .map(move |n| OsString::from_vec([stem.as_slice(), middle(n).as_bytes(), ending.as_bytes()].concat()))
}

/// Without the ending, and short enough for any of ours.
fn stem(name: &OsStr) -> &[u8] {
    let bytes = name.as_bytes();
    let stem = bytes.iter().rposition(|b| *b == b'.').and_then(|at| bytes.get(..at)).unwrap_or(bytes);
    stem.get(..NAME_BYTES_MAX - ENDING_BYTES_MAX).unwrap_or(stem)
}

/// Removes the file if it is there and still the one that was taken.
pub fn remove_same(path: &Path, is_ours: impl Fn(&Stamp) -> bool) -> io::Result<()> {
    match Stamp::at(path)? {
        Some(there) if is_ours(&there) => fs::remove_file(path),
        _ => Ok(()),
    }
}

/// Puts a file aside for people: `x.bad`, and beside it `x.bad.log` with one line that says why. The
/// name is that of `name`, which is how the file's writer knows it; `from` is where it lies now.
pub fn put_bad(folder: &Path, from: &OsStr, name: &OsStr, reason: &str, time: &str) -> io::Result<()> {
    let mut log = rename_free(folder, from, name, ".bad", time)?;
    log.push(".log");
    let line: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    // The file is safe and out of the way; a log that cannot be written changes nothing about that.
    let written = OpenOptions::new().write(true).create_new(true).mode(0o644).open(folder.join(&log));
    let _ = written.and_then(|mut file| writeln!(file, "{time} {line}"));
    Ok(())
}

/// Brings renames and removals to disk.
pub fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

pub fn join(folder: &Path, name: &[u8]) -> PathBuf {
    folder.join(OsStr::from_bytes(name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_names_of_messages_are_looked_at() {
        for name in ["a.eml", "A.EML", "-rf.eml", "a b.tmp.eml", "\n.eml"] {
            assert!(is_eml(OsStr::new(name)), "{name:?}");
        }
        assert!(is_eml(OsStr::from_bytes(b"\xff.eml")));
        for name in [".eml", ".a.eml", "a.tmp", "a.eml.part", "a.eml~", "a.bad", "eml", "a.eml.swp", ""] {
            assert!(!is_eml(OsStr::new(name)), "{name:?}");
        }
    }

    #[test]
    fn names_fit_and_never_replace() {
        let folder = tempfile::tempdir().unwrap();
        let long = OsString::from("x".repeat(251) + ".eml");
        fs::write(folder.path().join(&long), b"1").unwrap();
        let first = rename_free(folder.path(), &long, &long, ".bad.log", "t").unwrap();
        fs::write(folder.path().join(&long), b"2").unwrap();
        let second = rename_free(folder.path(), &long, &long, ".bad.log", "20261121T222657Z").unwrap();
        assert_ne!(first, second);
        assert_eq!(fs::read(folder.path().join(first)).unwrap(), b"1");
        assert_eq!(fs::read(folder.path().join(second)).unwrap(), b"2");
    }

    #[test]
    fn a_look_keeps_the_oldest() {
        let folder = tempfile::tempdir().unwrap();
        for (name, age) in [("c.eml", 30), ("a.eml", 10), ("b.eml", 20), ("d.eml", 20), ("skip.eml", 90), ("x.txt", 99)]
        {
            let file = File::create(folder.path().join(name)).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000 - age)).unwrap();
        }
        let skip = HashSet::from([OsString::from("skip.eml")]);
        let found = list(folder.path(), 3, &skip).unwrap().found;
        let names: Vec<_> = found.iter().map(|f| f.name.to_string_lossy().into_owned()).collect();
        assert_eq!(names, ["c.eml", "b.eml", "d.eml"]);
    }
}
