//! Files and folders that are on disk before anybody is told, for the transports that write some.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::body::PaidBody;
use super::{Delivered, Job, Outcome};
use crate::queue::record::{Failure, Recipient};

/// Bytes collected for one write.
const WRITE_BYTES: usize = 64 * 1024;
/// Only the owner reads mail.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// What could not be done, and where.
pub(super) struct Trouble {
    pub doing: &'static str,
    pub path: PathBuf,
    pub error: io::Error,
}

impl Trouble {
    pub fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Trouble {
        move |error| Trouble { doing, path: path.to_owned(), error }
    }

    /// `host`: what failed; `key`: where its path is configured.
    pub fn failure(&self, host: &str, key: &str) -> Failure {
        let full = matches!(self.error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let status = if full { "4.3.1" } else { "4.3.0" };
        Failure::local(status, host, self.text(key))
    }

    fn text(&self, key: &str) -> String {
        let remedy = match self.error.kind() {
            io::ErrorKind::StorageFull => "free some space on that disk".to_owned(),
            io::ErrorKind::QuotaExceeded => "raise the quota of the user postrider runs as".to_owned(),
            io::ErrorKind::PermissionDenied => "let the user postrider runs as write there".to_owned(),
            io::ErrorKind::ReadOnlyFilesystem => "mount that disk for writing".to_owned(),
            io::ErrorKind::NotFound => format!("make the folder it lies in, or correct {key}"),
            io::ErrorKind::NotADirectory => format!("correct {key}, or move the file out of the way"),
            _ => format!("look at that disk, or correct {key}"),
        };
        format!("cannot {} {}: {}; {remedy}", self.doing, self.path.display(), self.error)
    }
}

/// Writes a file for each recipient of the job; one outcome for each.
pub(super) fn deliver_each(
    job: &Job,
    write: impl Fn(u32, &Recipient) -> Result<PathBuf, Trouble>,
    failure: impl Fn(&Trouble) -> Failure,
) -> Vec<(u32, Outcome)> {
    let deliver = |(number, recipient): &(u32, Recipient)| {
        let outcome = match write(*number, recipient) {
            Ok(file) => Outcome::Delivered(Delivered { to: file.display().to_string(), ..Delivered::default() }),
            Err(trouble) => Outcome::Defer { why: failure(&trouble), not_before_secs: None },
        };
        (*number, outcome)
    };
    job.recipients.iter().map(deliver).collect()
}

/// Makes a folder that is missing, on disk too.
pub(super) fn make_folder(path: &Path) -> Result<(), Trouble> {
    match DirBuilder::new().mode(FOLDER_MODE).create(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync_folder),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(Trouble::at("make", path)(io::ErrorKind::NotADirectory.into()))
        }
        Err(error) => Err(Trouble::at("make", path)(error)),
    }
}

/// `root`, which may be a link of the operator's, and below it one folder after the other, none of which may be.
pub(super) fn make_folders(root: &Path, folder: &Path) -> Result<(), Trouble> {
    let mut path = root.to_owned();
    make_folder(&path)?;
    let below = folder.strip_prefix(&path).unwrap_or(Path::new("")).to_owned();
    for name in below.components() {
        path.push(name);
        make_folder(&path)?;
        let found = fs::symlink_metadata(&path).map_err(Trouble::at("look at", &path))?;
        if !found.is_dir() {
            return Err(Trouble::at("use", &path)(io::ErrorKind::NotADirectory.into()));
        }
    }
    Ok(())
}

/// A new file of `head` and the message, on disk.
pub(super) fn write_file(path: &Path, head: &str, body: &PaidBody) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(WRITE_BYTES, create(path)?);
    out.write_all(head.as_bytes())?;
    for piece in body.pieces() {
        out.write_all(&piece.map_err(io::Error::other)?)?;
    }
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

pub(super) fn sync_folder(path: &Path) -> Result<(), Trouble> {
    // The parent of a relative path without a slash.
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path).and_then(|folder| folder.sync_all()).map_err(Trouble::at("sync", path))
}

/// A new file, never one that is there: the folder may be writable by others, who could have left a
/// link. What is there is the rest of an attempt that a crash ended.
pub(super) fn create(path: &Path) -> io::Result<File> {
    let open = || OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path);
    match open() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            open()
        }
        opened => opened,
    }
}
