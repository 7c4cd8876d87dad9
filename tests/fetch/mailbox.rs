//! A mailbox at Debian's Dovecot that the test fills, and looks at behind its back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::support::dovecot::{self, Dovecot, MAIL};

const USER: &str = "box";

pub struct Mailbox(Dovecot);

/// With so many messages in it. None, after saying so, where there is no Dovecot.
pub fn start(messages: usize) -> Option<Mailbox> {
    let mailbox = Mailbox(dovecot::start()?);
    mailbox.put(0, messages);
    Some(mailbox)
}

impl Mailbox {
    pub fn address(&self, protocol: &str) -> SocketAddr {
        if protocol == "imap" { self.0.imap } else { self.0.pop3 }
    }

    fn maildir(&self) -> PathBuf {
        self.0.maildir(USER)
    }

    /// Messages that have just come, with the numbers from `first` on in their subjects.
    pub fn put(&self, first: usize, count: usize) {
        let folder = self.maildir();
        folder.parent().into_iter().chain([folder.as_path()]).for_each(make);
        ["new", "cur", "tmp"].iter().for_each(|name| make(&folder.join(name)));
        for number in first..first + count {
            let text = format!(
                "Return-Path: <a@far.test>\nDelivered-To: box@hoster.test\nReceived: from far.test by hoster.test; Sun, 22 Nov 2026 10:00:00 +0000\n\
                 From: a@far.test\nTo: box@hoster.test\nSubject: number {number}.\nMessage-ID: <{number}@far.test>\n\n{}",
                "a line of text\n..dots\n".repeat(number % 50)
            );
            // Dovecot numbers what it finds by the names of the files.
            let path = folder.join("new").join(format!("1795300017.M{number:06}.test"));
            fs::write(&path, text).unwrap();
            chown(&path, Some(MAIL), Some(MAIL)).unwrap();
        }
    }

    /// The files of all messages in a folder (empty: INBOX).
    pub fn messages(&self, folder: &str) -> Vec<PathBuf> {
        let folder = self.maildir().join(folder);
        ["new", "cur"].iter().flat_map(|name| super::count(&folder.join(name))).collect()
    }

    /// How many of them are marked as read.
    pub fn seen(&self, folder: &str) -> usize {
        let flags =
            |path: &PathBuf| path.to_str().unwrap().split(":2,").nth(1).is_some_and(|flags| flags.contains('S'));
        self.messages(folder).iter().filter(|path| flags(path)).count()
    }

    pub fn validity(&self) -> String {
        let list = fs::read_to_string(self.maildir().join("dovecot-uidlist")).unwrap();
        list.split_whitespace().find(|word| word.starts_with('V')).unwrap().to_owned()
    }

    /// The server forgets what it knew of the messages: numbers, and marks.
    pub fn lose_numbers(&self) {
        let before = self.validity();
        for entry in super::count(&self.maildir()) {
            if entry.file_name().unwrap().to_str().unwrap().starts_with("dovecot") {
                fs::remove_file(&entry).unwrap();
            }
        }
        for path in self.messages("") {
            let name = path.file_name().unwrap().to_str().unwrap().split(":2,").next().unwrap().to_owned();
            fs::rename(&path, self.maildir().join("new").join(name)).unwrap();
        }
        // The new validity is the time in seconds.
        let is_same = || {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
            before == format!("V{now}")
        };
        while is_same() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn make(folder: &Path) {
    if fs::create_dir(folder).is_ok() {
        chown(folder, Some(MAIL), Some(MAIL)).unwrap();
    }
}
