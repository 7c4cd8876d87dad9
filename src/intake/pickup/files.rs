//! The file-system side of the pickup folder: looking, opening, renaming. Blocking; no step here
//! follows a link, waits for a writer, or replaces a file that is there. Every name is taken relative to
//! an open folder, so that nobody can put another folder in the way half-way.

use std::collections::{BinaryHeap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::message::stream;

/// Bytes of a file name, on every file system we know of.
const NAME_BYTES_MAX: usize = 255;
/// Bytes that an ending of ours may need: a stamp, a number, `.bad.log`.
const ENDING_BYTES_MAX: usize = 40;
/// Names tried before a rename is given up for now.
const NAMES_TRIED_MAX: u32 = 9;
/// Files in one look that are told of as never taken.
const ODD_MAX: usize = 100;
/// Sub-folders that are looked into: there are never so many streams.
pub const SUB_FOLDERS_MAX: usize = 32;
/// Where files go whose message is queued, if they are kept.
pub const ARCHIVE: &str = "archive";
/// Sub-folders that are no stream: the archive, and where writers may compose.
const NO_STREAMS: [&str; 2] = [ARCHIVE, "tmp"];

/// An open folder.
#[derive(Debug)]
pub struct Dir(OwnedFd);

/// Who may do what in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    pub owner: u32,
    pub group: u32,
    /// The twelve bits of chmod.
    pub mode: u32,
}

impl Rights {
    /// Why nothing may be taken from a folder with these rights.
    pub fn trouble(&self) -> Option<&'static str> {
        let everybody_may_replace = self.mode & 0o002 != 0 && self.mode & 0o1000 == 0;
        everybody_may_replace.then_some(
            "everybody may write to it and so replace files of others; chmod o-w it, or chmod +t so that only owners \
             may rename",
        )
    }

    /// May a file of this owner lie here? Where only the owner of the folder can write, a file of somebody
    /// else was moved in from a place that its owner did not choose.
    pub fn allows(&self, file_owner: u32) -> bool {
        let others_write = self.mode & 0o022 != 0;
        others_write || [0, self.owner, rustix::process::geteuid().as_raw()].contains(&file_owner)
    }
}

impl Dir {
    /// By its path from the configuration; whoever wrote that may have meant a link.
    pub fn open(path: &Path) -> io::Result<Dir> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Dir(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// A real folder in this one, not a link to one.
    pub fn sub(&self, name: &OsStr) -> io::Result<Dir> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(Dir(rustix::fs::openat(&self.0, name, flags, Mode::empty())?))
    }

    /// The folder for files that are kept, made if it is missing. It must be ours: the mail of all lies there.
    pub fn archive(&self) -> io::Result<Dir> {
        match rustix::fs::mkdirat(&self.0, ARCHIVE, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let archive = self.sub(OsStr::new(ARCHIVE))?;
        let rights = archive.rights()?;
        if ![0, rustix::process::geteuid().as_raw()].contains(&rights.owner) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the sub-folder archive belongs to others"));
        }
        Ok(archive)
    }

    pub fn rights(&self) -> io::Result<Rights> {
        let stat = rustix::fs::fstat(&self.0)?;
        Ok(Rights { owner: stat.st_uid, group: stat.st_gid, mode: stat.st_mode & 0o7777 })
    }

    /// The number of the file system that it lies on.
    pub fn device(&self) -> io::Result<u64> {
        Ok(widen(rustix::fs::fstat(&self.0)?.st_dev))
    }

    /// Is it a share of another machine, which reports no changes?
    pub fn is_remote(&self) -> bool {
        // NFS, SMB, SMB2, CIFS, FUSE (sshfs), 9p, as statfs(2) numbers them.
        const REMOTE: [u64; 6] = [0x6969, 0x517b, 0xfe53_4d42, 0xff53_4d42, 0x6573_5546, 0x0102_1997];
        rustix::fs::fstatfs(&self.0).is_ok_and(|stat| REMOTE.contains(&((stat.f_type as u64) & 0xffff_ffff)))
    }

    /// What lies under `name`, links not followed.
    fn stat(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        match rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Of what lies under `name`, if it is a file.
    pub fn stamp(&self, name: &OsStr) -> io::Result<Option<Stamp>> {
        let stat = self.stat(name)?;
        Ok(stat.filter(|stat| FileType::from_raw_mode(stat.st_mode).is_file()).map(|stat| Stamp::of(&stat)))
    }

    fn names(&self) -> io::Result<impl Iterator<Item = io::Result<OsString>>> {
        let entries = rustix::fs::Dir::read_from(&self.0)?;
        Ok(entries.map(|entry| Ok(OsString::from_vec(entry?.file_name().to_bytes().to_vec()))))
    }

    /// Brings renames and removals to disk.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.0)?)
    }

    /// Can we write, rename and remove here?
    pub fn try_out(&self, unique: &str) -> io::Result<()> {
        let (from, to) = (OsString::from(format!(".{unique}.a")), OsString::from(format!(".{unique}.b")));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::openat(&self.0, &from, flags, Mode::RUSR | Mode::WUSR)?;
        let moved = rename(self, &from, self, &to);
        let left = if moved.is_ok() { &to } else { &from };
        rustix::fs::unlinkat(&self.0, left, AtFlags::empty())?;
        moved
    }
}

fn widen<T>(number: T) -> u64
where
    u64: TryFrom<T>,
{
    u64::try_from(number).unwrap_or_default()
}

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
    #[allow(clippy::useless_conversion, reason = "the types differ between machines")]
    pub fn of(stat: &Stat) -> Stamp {
        Stamp {
            mtime: stat.st_mtime.into(),
            mtime_nanos: i64::try_from(stat.st_mtime_nsec).unwrap_or_default(),
            size: widen(stat.st_size),
            device: widen(stat.st_dev),
            inode: stat.st_ino.into(),
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
}

/// A file that could be taken.
#[derive(Clone, Debug)]
pub struct Found {
    /// Where it lies: the folder, or the sub-folder of a stream.
    pub dir: Arc<Dir>,
    pub stream: Option<String>,
    pub name: OsString,
    /// From the folder: `x.eml` or `bulk/x.eml`.
    pub path: OsString,
    pub stamp: Stamp,
    pub owner: u32,
}

/// One look at the folder.
#[derive(Debug, Default)]
pub struct Listing {
    /// The oldest first, then by name.
    pub found: Vec<Found>,
    /// There were more than wanted.
    pub is_cut: bool,
    /// Named like a message, but nothing that is ever taken, and why.
    pub odd: Vec<(OsString, &'static str)>,
    /// Sub-folders that are looked into.
    pub subs: Vec<String>,
}

/// Names that we look at: they end in `.eml` and do not begin with a dot.
pub fn is_eml(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    let ending = bytes.len().checked_sub(4).and_then(|at| bytes.get(at..)).unwrap_or_default();
    bytes.len() > 4 && !bytes.starts_with(b".") && ending.eq_ignore_ascii_case(b".eml")
}

/// Names of sub-folders that stand for a stream.
fn as_stream(name: &OsStr) -> Option<&str> {
    let name = name.to_str()?;
    (stream::is_name(name) && !name.starts_with('.') && !NO_STREAMS.contains(&name)).then_some(name)
}

/// Oldest first, then by path.
type Aged = (i64, i64, OsString, usize, OsString, Stamp, u32);

/// Looks at the whole folder but keeps only the `keep` oldest files that are not in `skip`.
pub fn list(root: &Arc<Dir>, keep: usize, skip: &HashSet<OsString>) -> io::Result<Listing> {
    let mut listing = Listing::default();
    let mut oldest = BinaryHeap::new();
    let mut dirs = vec![(root.clone(), None)];
    look(root, None, &mut listing, &mut oldest, (keep, skip))?;
    for name in std::mem::take(&mut listing.subs) {
        // A link, or gone since; or one that we may not read, which `check` tells of.
        let Ok(dir) = root.sub(OsStr::new(&name)).map(Arc::new) else { continue };
        if let Some(why) = dir.rights()?.trouble() {
            listing.odd.push((name.into(), why));
            continue;
        }
        dirs.push((dir.clone(), Some(name.clone())));
        if look(&dir, Some((dirs.len() - 1, &name)), &mut listing, &mut oldest, (keep, skip)).is_ok() {
            listing.subs.push(name);
        }
    }
    let sorted = oldest.into_sorted_vec().into_iter();
    listing.found = sorted
        .filter_map(|(_, _, path, dir, name, stamp, owner): Aged| {
            let (dir, stream) = dirs.get(dir)?.clone();
            Some(Found { dir, stream, name, path, stamp, owner })
        })
        .collect();
    Ok(listing)
}

fn look(
    dir: &Dir,
    sub: Option<(usize, &str)>,
    listing: &mut Listing,
    oldest: &mut BinaryHeap<Aged>,
    (keep, skip): (usize, &HashSet<OsString>),
) -> io::Result<()> {
    let mut subs = Vec::new();
    for name in dir.names()? {
        let name = name?;
        let path = sub.map_or_else(|| name.clone(), |(_, sub)| join(sub, &name));
        let is_candidate = is_eml(&name) && !skip.contains(&path);
        let stream = if sub.is_none() { as_stream(&name).map(str::to_owned) } else { None };
        if !is_candidate && stream.is_none() {
            continue;
        }
        // A file that has vanished since is no trouble.
        let Ok(Some(stat)) = dir.stat(&name) else { continue };
        if let Some(stream) = stream.filter(|_| FileType::from_raw_mode(stat.st_mode).is_dir()) {
            subs.push(stream);
            continue;
        }
        if !is_candidate {
            continue;
        }
        match why_never(&stat) {
            Some(why) if listing.odd.len() < ODD_MAX => listing.odd.push((path, why)),
            Some(_) => {}
            None => {
                let stamp = Stamp::of(&stat);
                let dir = sub.map_or(0, |(number, _)| number);
                oldest.push((stamp.mtime, stamp.mtime_nanos, path, dir, name, stamp, stat.st_uid));
            }
        }
        if oldest.len() > keep {
            oldest.pop();
            listing.is_cut = true;
        }
    }
    if sub.is_none() {
        subs.sort();
        for more in subs.iter().skip(SUB_FOLDERS_MAX) {
            if listing.odd.len() < ODD_MAX {
                listing.odd.push((more.into(), "there are too many sub-folders"));
            }
        }
        subs.truncate(SUB_FOLDERS_MAX);
        listing.subs = subs;
    }
    Ok(())
}

/// `bulk/x.eml`
pub fn join(sub: &str, name: &OsStr) -> OsString {
    let mut path = OsString::from(sub);
    path.push("/");
    path.push(name);
    path
}

fn why_never(stat: &Stat) -> Option<&'static str> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    match () {
        () if kind.is_symlink() => Some("it is a symbolic link"),
        () if !kind.is_file() => Some("it is no regular file"),
        () if stat.st_nlink != 1 => Some("it has more than one hard link"),
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

/// Opens for reading, never through a link, never waiting for a writer.
pub fn open(dir: &Dir, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    Ok(File::from(rustix::fs::openat(&dir.0, name, flags, Mode::empty())?))
}

/// Opens the file that was seen and locks it. The lock lasts as long as the file is open.
pub fn open_locked(dir: &Dir, name: &OsStr, seen: &Stamp) -> Result<File, NotNow> {
    let file = match open(dir, name) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(NotNow::Changed),
        Err(error) => return Err(NotNow::Failed(error)),
    };
    let stat = rustix::fs::fstat(&file).map_err(|error| NotNow::Failed(error.into()))?;
    if why_never(&stat).is_some() || Stamp::of(&stat) != *seen {
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
    let unchanged = Stamp::of(&rustix::fs::fstat(file)?) == *seen && content.len() as u64 == seen.size;
    Ok(unchanged.then_some(content))
}

/// Renames without ever replacing a file.
pub fn rename(from_dir: &Dir, from: &OsStr, to_dir: &Dir, to: &OsStr) -> io::Result<()> {
    match rustix::fs::renameat_with(&from_dir.0, from, &to_dir.0, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // File systems that do not know the flag. The gap between look and rename is theirs.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match to_dir.stat(to)? {
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
            None => Ok(rustix::fs::renameat(&from_dir.0, from, &to_dir.0, to)?),
        },
        Err(error) => Err(error.into()),
    }
}

/// Renames `from` to `<stem><ending>`, or where that is taken to a name with the time in it.
pub fn rename_free(
    (from_dir, from): (&Dir, &OsStr),
    (to_dir, to): (&Dir, &OsStr),
    ending: &str,
    time: &str,
) -> io::Result<OsString> {
    for name in names(to, ending, time) {
        match rename(from_dir, from, to_dir, &name) {
            Ok(()) => return Ok(name),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// The first of the names for `<stem><ending>` that nothing has.
pub fn free_name(dir: &Dir, of: &OsStr, ending: &str, time: &str) -> Option<OsString> {
    names(of, ending, time).find(|name| matches!(dir.stat(name), Ok(None)))
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
pub fn remove_same(dir: &Dir, name: &OsStr, is_ours: impl Fn(&Stamp) -> bool) -> io::Result<()> {
    match dir.stamp(name)? {
        Some(there) if is_ours(&there) => Ok(rustix::fs::unlinkat(&dir.0, name, AtFlags::empty())?),
        _ => Ok(()),
    }
}

/// Puts a file aside for people: `x.bad`, and beside it `x.bad.log` with one line that says why. The
/// name is that of `name`, which is how the file's writer knows it; `from` is where it lies now.
pub fn put_bad(dir: &Dir, from: &OsStr, name: &OsStr, reason: &str, time: &str) -> io::Result<()> {
    let mut log = rename_free((dir, from), (dir, name), ".bad", time)?;
    log.push(".log");
    let line: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // The file is safe and out of the way; a log that cannot be written changes nothing about that.
    if let Ok(log) = rustix::fs::openat(&dir.0, &log, flags, Mode::from_raw_mode(0o644)) {
        let _ = writeln!(File::from(log), "{time} {line}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

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
        let dir = Dir::open(folder.path()).unwrap();
        let long = OsString::from("x".repeat(251) + ".eml");
        fs::write(folder.path().join(&long), b"1").unwrap();
        let first = rename_free((&dir, &long), (&dir, &long), ".bad.log", "t").unwrap();
        fs::write(folder.path().join(&long), b"2").unwrap();
        let second = rename_free((&dir, &long), (&dir, &long), ".bad.log", "20261121T222657Z").unwrap();
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
        let listing = list(&Arc::new(Dir::open(folder.path()).unwrap()), 3, &skip).unwrap();
        assert!(listing.is_cut);
        let found = listing.found;
        let names: Vec<_> = found.iter().map(|f| f.name.to_string_lossy().into_owned()).collect();
        assert_eq!(names, ["c.eml", "b.eml", "d.eml"]);
    }
}
