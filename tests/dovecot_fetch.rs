//! Debian's Dovecot as the mailbox elsewhere: 500 messages come in once each by IMAP and by POP3, over runs
//! in which the server that fetches them is killed, and become what the configuration says.
//!
//! `POSTRIDER_TEST_DOVECOT` names the folder into which `.ci/dovecot.sh` has unpacked it. Without it, or
//! without root (its processes change their user), the tests say so and prove nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../benches/support/mod.rs"]
mod bench;
#[path = "fetch/mailbox.rs"]
mod mailbox;
mod support {
    pub mod dovecot;

    use super::bench;
}
#[path = "fetch/tap.rs"]
mod tap;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bench::process::Process;
use mailbox::Mailbox;
use serde_json::Value;
use tap::Tap;
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_postrider");
const MESSAGES: usize = 500;
/// A test that waits longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// The server that fetches.
struct House {
    folder: TempDir,
    config: PathBuf,
}

impl House {
    fn new(port: u16, protocol: &str, after: &str) -> House {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let text = format!(
            "hostname = \"mail.own.test\"\ndata_dir = \"{at}/data\"\n[listeners.mx]\nrole = \"mx\"\nbind = [\"127.0.0.1:0\"]\n\
             [queue]\nmin_free = \"1MiB\"\n[checks]\nspf = \"off\"\ndkim = \"off\"\ndmarc = \"off\"\n[loops]\nlimit = 1000000\n\
             [domains.\"own.test\"]\n[aliases]\n\"sales@own.test\" = \"post\"\n[targets.post]\nkind = \"maildir\"\npath = \"{at}/post\"\n\
             [fetch.box]\nprotocol = \"{protocol}\"\nhost = \"127.0.0.1\"\nport = {port}\ntls = \"off\"\nusername = \"box\"\npassword = \"secret\"\n\
             after = \"{after}\"\ndeliver_to = \"sales@own.test\"\n"
        );
        let config = folder.path().join("postrider.toml");
        fs::write(&config, text).unwrap();
        House { folder, config }
    }

    fn start(&self) -> Process {
        let mut command = Command::new(BINARY);
        command.arg("serve").arg("--config").arg(&self.config);
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        Process::start_with("postrider", command, |command| {
            command.stdout(Stdio::null()).stderr(log);
        })
    }

    fn ask(&self, arguments: &[&str]) -> Option<Value> {
        let output = Command::new(BINARY).args(arguments).arg("--json").arg("--config").arg(&self.config).output();
        serde_json::from_slice(&output.unwrap().stdout).ok()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Waits for a run that came to its end.
    fn wait_for_success(&self) -> Value {
        self.wait(|| self.ask(&["fetch", "list"]).filter(|account| account["last_success"].is_string()))
    }

    fn wait<T>(&self, what: impl Fn() -> Option<T>) -> T {
        let since = Instant::now();
        loop {
            if let Some(found) = what() {
                return found;
            }
            assert!(since.elapsed() < PATIENCE, "waited in vain: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The queue ids under which each subject was delivered, once all are.
    fn delivered(&self, messages: usize) -> BTreeMap<String, BTreeSet<String>> {
        let files = || -> Vec<PathBuf> {
            let entries = fs::read_dir(self.folder.path().join("post/new")).into_iter().flatten();
            entries.map(|entry| entry.unwrap().path()).collect()
        };
        self.wait(|| (files().len() >= messages).then_some(()));
        let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for file in files() {
            let text = String::from_utf8(fs::read(&file).unwrap()).unwrap();
            let line =
                |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{text}"));
            let id = text.split("with fetch id ").nth(1).unwrap().split_whitespace().next().unwrap();
            found.entry(line("Subject: ").to_owned()).or_default().insert(id.trim_end_matches(';').to_owned());
        }
        found
    }

    fn assert_each_once(&self, messages: usize) {
        let delivered = self.delivered(messages);
        assert_eq!(delivered.len(), messages);
        assert!(delivered.values().all(|ids| ids.len() == 1), "{delivered:?}");
    }
}

/// Kills the server in three runs, where `command` (what the client says in it) comes for the so-manieth
/// time; the fourth one may go on to its end.
fn interrupted(protocol: &str, after: &str, stops: [(&'static str, usize); 3]) -> Option<(Mailbox, House)> {
    let mailbox = mailbox::start(MESSAGES)?;
    let tap = Tap::open(mailbox.address(protocol));
    let house = House::new(tap.port, protocol, after);
    for (command, times) in stops {
        let stopped = tap.stop_at(command, times);
        let mut server = house.start();
        assert!(stopped.recv_timeout(PATIENCE).is_ok(), "{command} was not said {times} times: {}", house.log());
        server.kill();
    }
    tap.stop_nowhere();
    let mut server = house.start();
    let account = house.wait_for_success();
    assert_eq!(account["last_error"], Value::Null);
    house.assert_each_once(MESSAGES);
    // And not once more when all is quiet.
    let ran = house.ask(&["fetch", "run", "box"]).unwrap();
    assert_eq!((&ran["fetched"], &ran["error"]), (&Value::from(0), &Value::Null), "{ran}");
    server.stop();
    house.assert_each_once(MESSAGES);
    Some((mailbox, house))
}

#[test]
fn by_imap_what_was_fetched_is_marked_as_read() {
    let stops = [("BODY.PEEK[]", 150), ("STORE", 100), ("BODY.PEEK[]", 120)];
    let Some((mailbox, house)) = interrupted("imap", "seen", stops) else { return };
    assert_eq!((mailbox.seen(""), mailbox.messages("").len()), (MESSAGES, MESSAGES));
    renumbered(&mailbox, &house);
}

/// The server loses its numbers and its marks: what is there is known all the same, and what is new comes.
fn renumbered(mailbox: &Mailbox, house: &House) {
    let before = mailbox.validity();
    mailbox.lose_numbers();
    mailbox.put(MESSAGES, 1);
    let mut server = house.start();
    let ran = house.wait(|| house.ask(&["fetch", "run", "box"]));
    // The server's own next run is minutes away.
    assert_eq!((&ran["known"], &ran["fetched"], &ran["error"]), (&MESSAGES.into(), &1.into(), &Value::Null), "{ran}");
    house.assert_each_once(MESSAGES + 1);
    assert_eq!(mailbox.seen(""), MESSAGES + 1);
    assert_ne!(mailbox.validity(), before);
    server.stop();
}

#[test]
fn by_imap_what_was_fetched_is_deleted() {
    let stops = [("EXPUNGE", 1), ("BODY.PEEK[]", 200), ("STORE", 150)];
    let Some((mailbox, _)) = interrupted("imap", "delete", stops) else { return };
    assert_eq!(mailbox.messages(""), Vec::<PathBuf>::new());
}

#[test]
fn by_imap_what_was_fetched_is_moved() {
    let stops = [("MOVE", 2), ("MOVE", 201), ("BODY.PEEK[]", 99)];
    let Some((mailbox, _)) = interrupted("imap", "move:Done", stops) else { return };
    assert_eq!((mailbox.messages("").len(), mailbox.messages(".Done").len()), (0, MESSAGES));
}

#[test]
fn by_imap_what_was_fetched_is_left() {
    let stops = [("BODY.PEEK[]", 1), ("BODY.PEEK[]", 250), ("BODY.PEEK[]", 249)];
    let Some((mailbox, _)) = interrupted("imap", "leave", stops) else { return };
    assert_eq!((mailbox.seen(""), mailbox.messages("").len()), (0, MESSAGES));
}

#[test]
fn by_pop3_what_was_fetched_is_deleted() {
    let stops = [("RETR", 150), ("DELE", 300), ("QUIT", 1)];
    let Some((mailbox, _)) = interrupted("pop3", "delete", stops) else { return };
    assert_eq!(mailbox.messages(""), Vec::<PathBuf>::new());
}

#[test]
fn by_pop3_what_was_fetched_is_left() {
    let stops = [("RETR", 150), ("RETR", 3), ("RETR", 300)];
    let Some((mailbox, _)) = interrupted("pop3", "leave", stops) else { return };
    assert_eq!(mailbox.messages("").len(), MESSAGES);
}

fn count(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}
