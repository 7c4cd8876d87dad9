//! Delivery to a Maildir: one file for each recipient, written in `tmp`, synced, renamed into `new`.
//!
//! Promises: a reader never sees half a file; Delivered means that file and folder entry are on
//! disk. A name is made of the time of arrival, the queue id and the recipient's number, so that an
//! attempt repeated after a crash replaces its own file instead of adding a copy (unless a reader
//! has moved it to `cur` in between; looking through a large `cur` would cost more than a rare copy).
//!
//! A file begins with Return-Path, X-Original-To (where an alias led here) and Delivered-To, and its
//! lines end in LF, as mail readers and other servers have it; nothing else is changed. Left out:
//! quotas, the rights of other users, folders inside a Maildir.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::body::PaidBody;
use super::local_form::{LineEnds, head};
use super::on_disk::{self, Trouble, create, make_folder, sync_folder};
use super::{Job, Outcome};
use crate::message::Domain;
use crate::queue::record::{Failure, Message, Recipient};

/// Bytes collected for one write.
const WRITE_BYTES: usize = 64 * 1024;

/// One `[targets.*]` of kind `maildir`, ready to be used from many tasks.
#[derive(Clone, Debug)]
pub struct Maildir {
    name: String,
    path: PathBuf,
    hostname: String,
}

impl Maildir {
    /// `path` and its `tmp`, `new` and `cur` are made at the first delivery; what `path` lies in must be
    /// there, so that a disk that is not mounted is noticed.
    pub fn new(name: &str, path: &Path, hostname: &Domain) -> Maildir {
        // The characters that a Maildir reserves, as its specification replaces them.
        let hostname = hostname.as_str().replace('/', "\\057").replace(':', "\\072");
        Maildir { name: name.to_owned(), path: path.to_owned(), hostname }
    }

    /// Tries each recipient of the job once.
    pub async fn deliver(&self, job: &Job) -> Vec<(u32, Outcome)> {
        let (maildir, work, body) = (self.clone(), job.clone(), job.body.paid().await);
        let written = tokio::task::spawn_blocking(move || maildir.deliver_all(&work, &body)).await;
        written.unwrap_or_else(|_| {
            let why =
                Failure::local("4.3.0", self.name.as_str(), "the delivery was broken off by an error in postrider");
            let defer = Outcome::Defer { why, not_before_secs: None };
            job.recipients.iter().map(|(number, _)| (*number, defer.clone())).collect()
        })
    }

    fn deliver_all(&self, job: &Job, body: &PaidBody) -> Vec<(u32, Outcome)> {
        let write = |number: u32, recipient: &Recipient| self.write(&job.message, number, recipient, body);
        on_disk::deliver_each(job, write, |trouble| self.failure(trouble))
    }

    /// Gives the file in `new`.
    fn write(
        &self,
        message: &Message,
        number: u32,
        recipient: &Recipient,
        body: &PaidBody,
    ) -> Result<PathBuf, Trouble> {
        for folder in [self.path.clone(), self.path.join("tmp"), self.path.join("cur"), self.path.join("new")] {
            make_folder(&folder)?;
        }
        let name = format!("{}.{}_{number}.{}", message.received_at / 1000, message.id, self.hostname);
        let temporary = self.path.join("tmp").join(&name);
        let new = self.path.join("new");
        let file = new.join(&name);
        let written = write_file(&temporary, &head(message, recipient), body)
            .map_err(Trouble::at("write", &temporary))
            .and_then(|()| fs::rename(&temporary, &file).map_err(Trouble::at("rename into", &file)));
        if let Err(trouble) = written {
            // Half a file helps nobody; if it cannot be removed, the next attempt replaces it.
            let _ = fs::remove_file(&temporary);
            return Err(trouble);
        }
        sync_folder(&new)?;
        Ok(file)
    }

    fn failure(&self, trouble: &Trouble) -> Failure {
        trouble.failure(&self.name, &format!("targets.{}.path", self.name))
    }
}

fn write_file(path: &Path, head: &str, body: &PaidBody) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(WRITE_BYTES, create(path)?);
    out.write_all(head.as_bytes())?;
    let mut lines = LineEnds::new(&mut out);
    for piece in body.pieces() {
        lines.write(&piece.map_err(io::Error::other)?)?;
    }
    lines.finish()?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_full_disk_and_missing_rights_are_told_apart() {
        let maildir = Maildir::new("box", Path::new("/var/mail/box"), &Domain::parse("[IPv6:2001:db8::1]").unwrap());
        assert_eq!(maildir.hostname, "[IPv6\\0722001\\072db8\\072\\0721]");
        let failure =
            |kind: io::ErrorKind| maildir.failure(&Trouble::at("write", Path::new("/var/mail/x"))(kind.into()));
        let full = failure(io::ErrorKind::StorageFull);
        assert_eq!((full.status.as_str(), full.host.as_str()), ("4.3.1", "box"));
        assert!(
            full.reason.starts_with("cannot write /var/mail/x: ")
                && full.reason.ends_with("free some space on that disk")
        );
        let denied = failure(io::ErrorKind::PermissionDenied);
        assert_eq!(denied.status, "4.3.0");
        assert!(denied.reason.ends_with("let the user postrider runs as write there"));
    }
}
