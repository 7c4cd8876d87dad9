//! Delivery into files, in place of sending (`delivery.default = "file"`) or as a target of kind `file`: one
//! for each recipient, under the path that `delivery.file_path`, or the target's, makes of the message.
//!
//! Promises: a reader never sees half a file, as long as it leaves names alone that begin with a dot;
//! Delivered means that file and folder entry are on disk. The path depends on the message and the
//! recipient's number only, so an attempt that is repeated after a crash replaces its own file. Every
//! file lies under the fixed part of the path, in folders that are no links.
//!
//! A file begins with `X-Sender` and `X-Receiver`, the envelope as Exchange and our own pickup folder
//! read it, for a blind copy is named nowhere else; then the message, byte for byte. Left out: one
//! file for many recipients, a name of its own for a file that somebody else put there.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::body::PaidBody;
use super::on_disk::{self, Trouble, sync_folder, write_file};
use super::{Job, Outcome};
use crate::clock;
use crate::config::FilePath;
use crate::config::file_path::{NUMBER_MARK, Placeholder};
use crate::message::{ReversePath, mime};
use crate::queue::record::{Failure, Message, Recipient};

/// The way out into files, or a target, ready to be used from many tasks.
#[derive(Clone, Debug)]
pub struct Files {
    path: FilePath,
    /// What failures name as their place, and where it is configured.
    name: String,
    key: String,
}

impl Files {
    /// Folders are made as they are needed; what the fixed part of the path lies in must be there, so
    /// that a disk that is not mounted is noticed.
    pub fn new(path: &FilePath) -> Files {
        Files { path: path.clone(), name: "file".to_owned(), key: "delivery.file_path".to_owned() }
    }

    /// The target of this name.
    pub fn target(name: &str, path: &FilePath) -> Files {
        Files { path: path.clone(), name: name.to_owned(), key: format!("targets.{name}.path") }
    }

    /// Tries each recipient of the job once.
    pub async fn deliver(&self, job: &Job) -> Vec<(u32, Outcome)> {
        self.deliver_as(job, None).await
    }

    /// As [`Files::deliver`], with another envelope sender. The path is made of the client's all the same.
    pub async fn deliver_as(&self, job: &Job, mail_from: Option<&ReversePath>) -> Vec<(u32, Outcome)> {
        let (files, work, body) = (self.clone(), job.clone(), job.body.paid().await);
        let mail_from = mail_from.unwrap_or(&job.message.mail_from).clone();
        let written = tokio::task::spawn_blocking(move || files.deliver_all(&work, &mail_from, &body)).await;
        written.unwrap_or_else(|_| {
            let why =
                Failure::local("4.3.0", self.name.as_str(), "the delivery was broken off by an error in postrider");
            let defer = Outcome::Defer { why, not_before_secs: None };
            job.recipients.iter().map(|(number, _)| (*number, defer.clone())).collect()
        })
    }

    fn deliver_all(&self, job: &Job, mail_from: &ReversePath, body: &PaidBody) -> Vec<(u32, Outcome)> {
        let write = |number: u32, recipient: &Recipient| {
            self.write(&job.message, number, recipient, &head(mail_from, recipient), body)
        };
        on_disk::deliver_each(job, write, |trouble| trouble.failure(&self.name, &self.key))
    }

    fn write(
        &self,
        message: &Message,
        number: u32,
        recipient: &Recipient,
        head: &str,
        body: &PaidBody,
    ) -> Result<PathBuf, Trouble> {
        let file = self.path.fill(|placeholder| value(placeholder, message, number, recipient));
        let (Some(folder), Some(name)) = (file.parent(), file.file_name()) else {
            return Err(Trouble::at("write", &file)(io::ErrorKind::InvalidFilename.into()));
        };
        on_disk::make_folders(self.path.root(), folder)?;
        let temporary = folder.join(format!(".{}.part", name.to_string_lossy()));
        let written = write_file(&temporary, head, body)
            .map_err(Trouble::at("write", &temporary))
            .and_then(|()| fs::rename(&temporary, &file).map_err(Trouble::at("rename into", &file)));
        if let Err(trouble) = written {
            // Half a file helps nobody; if it cannot be removed, the next attempt replaces it.
            let _ = fs::remove_file(&temporary);
            return Err(trouble);
        }
        sync_folder(folder)?;
        Ok(file)
    }
}

/// What is filled in for a recipient of a message.
pub(super) fn value(placeholder: Placeholder, message: &Message, number: u32, recipient: &Recipient) -> String {
    let moment = clock::rfc3339(message.received_at);
    let (date, time) = moment.split_once('T').unwrap_or_default();
    match placeholder {
        Placeholder::Date => date.to_owned(),
        Placeholder::Time => time.split('.').next().unwrap_or_default().replace(':', "-"),
        Placeholder::Id if number == 0 => message.id.to_string(),
        Placeholder::Id => format!("{}{NUMBER_MARK}{number}", message.id),
        Placeholder::MessageId => message.message_id.clone(),
        Placeholder::Account => message.origin.account.clone().unwrap_or_default(),
        Placeholder::Stream => message.stream.clone(),
        Placeholder::Sender => message.mail_from.to_string(),
        Placeholder::Recipient => recipient.address.to_string(),
        Placeholder::RecipientDomain => recipient.address.domain().to_string(),
        Placeholder::Subject => mime::decode_words(message.subject.as_bytes()),
    }
}

/// The envelope, as the pickup folders of others and our own read it.
fn head(mail_from: &ReversePath, recipient: &Recipient) -> String {
    format!("X-Sender: <{mail_from}>\r\nX-Receiver: <{}>\r\n", recipient.address)
}
