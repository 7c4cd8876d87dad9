//! `[[archive]]`: a copy of each message that was sent, as a file.
//!
//! A copy is a delivery of its own, queued by the step that notes that the message was sent (`settle`): it
//! waits for its disk on the schedule for retries, has its own turns, and no mail waits for it. When it is
//! given up that is an event and a line in the log; no sender is told.
//!
//! Promises: a reader never sees half a file, as long as it leaves names alone that begin with a dot; no file
//! is ever replaced: a name that is taken gets a number (`x.eml`, `x (2).eml`), which a copy that is written
//! again after a crash gets too. Every file lies under the fixed part of the path, in folders that are no links.
//!
//! A file holds the message as it was queued, byte for byte; a From that a smart host wants rewritten is
//! rewritten on its way out only.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::body::PaidBody;
use super::on_disk::{self, Trouble, sync_folder, write_file};
use super::{Job, Outcome, file};
use crate::config::{self, FilePath};
use crate::queue::record::{Failure, Message, Recipient};

/// Files of one name in one folder.
const SAME_NAME_MAX: u32 = 1000;
/// What failures name as their place, and where it is configured.
const NAME: &str = "archive";
const KEY: &str = "archive.path";

/// One archive, ready to be used from many tasks.
#[derive(Clone, Debug)]
pub struct Archive {
    path: FilePath,
    /// Held from finding a name to taking it.
    naming: Arc<Mutex<()>>,
}

impl Archive {
    pub fn new(settings: &config::Archive) -> Archive {
        Archive { path: settings.path.clone(), naming: Arc::default() }
    }

    /// Writes a copy for each recipient of the job.
    pub async fn deliver(&self, job: &Job) -> Vec<(u32, Outcome)> {
        let (archive, work, body) = (self.clone(), job.clone(), job.body.paid().await);
        let written = tokio::task::spawn_blocking(move || archive.deliver_all(&work, &body)).await;
        written.unwrap_or_else(|_| {
            let why = Failure::local("4.3.0", NAME, "the copy was broken off by an error in postrider");
            let defer = Outcome::Defer { why, not_before_secs: None };
            job.recipients.iter().map(|(number, _)| (*number, defer.clone())).collect()
        })
    }

    fn deliver_all(&self, job: &Job, body: &PaidBody) -> Vec<(u32, Outcome)> {
        let write = |number: u32, recipient: &Recipient| self.write(&job.message, number, recipient, body);
        on_disk::deliver_each(job, write, |trouble| trouble.failure(NAME, KEY))
    }

    fn write(
        &self,
        message: &Message,
        number: u32,
        recipient: &Recipient,
        body: &PaidBody,
    ) -> Result<PathBuf, Trouble> {
        // One copy is as good as another, so the number of the recipient is not shown.
        let wanted = self.path.fill(|placeholder| file::value(placeholder, message, 0, recipient));
        let Some(folder) = wanted.parent() else {
            return Err(Trouble::at("write", &wanted)(io::ErrorKind::InvalidFilename.into()));
        };
        on_disk::make_folders(self.path.root(), folder)?;
        let temporary = folder.join(format!(".{}~{number}.part", message.id));
        let written = write_file(&temporary, "", body)
            .map_err(Trouble::at("write", &temporary))
            .and_then(|()| self.take_name(&temporary, &wanted));
        if written.is_err() {
            // Half a file helps nobody; if it cannot be removed, the next try replaces it.
            let _ = fs::remove_file(&temporary);
        }
        let file = written?;
        sync_folder(folder)?;
        Ok(file)
    }

    /// Gives the file its name, or the next that is free.
    fn take_name(&self, temporary: &Path, wanted: &Path) -> Result<PathBuf, Trouble> {
        let _naming = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        for number in 1..=SAME_NAME_MAX {
            let name = numbered(wanted, number);
            match fs::symlink_metadata(&name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::rename(temporary, &name).map_err(Trouble::at("rename into", &name))?;
                    return Ok(name);
                }
                Ok(_) => {}
                Err(error) => return Err(Trouble::at("look at", &name)(error)),
            }
        }
        Err(Trouble::at("find a free name for", wanted)(io::ErrorKind::AlreadyExists.into()))
    }
}

/// `x.eml`, `x (2).eml`, `x (3).eml` …
fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 1 {
        return path.to_owned();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map_or(String::new(), |extension| format!(".{}", extension.to_string_lossy()));
    path.with_file_name(format!("{stem} ({number}){extension}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_goes_before_the_extension() {
        let made = |name: &str, number| numbered(Path::new(name), number).display().to_string();
        assert_eq!(made("/a/x.y.eml", 1), "/a/x.y.eml");
        assert_eq!(made("/a/x.y.eml", 2), "/a/x.y (2).eml");
        assert_eq!(made("/a/x", 13), "/a/x (13)");
    }
}
