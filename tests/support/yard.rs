//! A pickup folder with a server of two calls behind it. The clock is the test's own, a look is a call; the
//! store is real, the rest of the server is not.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use postrider::clock::Clock;
use postrider::config;
use postrider::intake::pickup::notice::{self, About};
use postrider::intake::pickup::{Door, Folder, Watcher};
use postrider::message::{Address, Draft, MessageId};
use postrider::smtp::Reply;
use postrider::smtp::reply::Refusal;
use postrider::store::{Batch, Entry, Store, StoreError, Table};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub const NOW: u64 = 1_795_300_017_000;
pub const SETTLE: u64 = 2_000;
pub const MAX_SIZE: u64 = 10_000;
pub const CONF: &str = r#"
hostname = "mail.example.com"
data_dir = "/nonexistent"
[domains."example.com"]
[accounts.shop]
password = "secret"
streams = ["bulk"]
max_recipients = 10
[pickup.main]
path = "FOLDER"
account = "shop"
"#;

/// The server as the folder sees it. `crash_at`: the call of this number never returns.
pub struct Desk {
    pub config: config::Config,
    pub store: Store,
    pub accepted: Mutex<Vec<Draft>>,
    pub refuse: Mutex<Option<Refusal>>,
    pub calls: AtomicUsize,
    pub crash_at: Mutex<Option<Crash>>,
    pub crashed: Notify,
    /// Done once, at the next write: between the look at a file and its new name.
    pub meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    /// Done once, when the next message is queued: before its file is gone.
    pub when_queued: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

#[derive(Clone, Copy, Debug)]
pub struct Crash {
    pub call: usize,
    /// The call has done its work; only the answer is lost.
    pub after: bool,
}

impl Desk {
    pub async fn call<T>(&self, work: impl FnOnce() -> T) -> T {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        let crash = self.crash_at.lock().unwrap().filter(|crash| crash.call == number);
        match crash {
            None => work(),
            Some(Crash { after, .. }) => {
                if after {
                    work();
                }
                self.crashed.notify_one();
                std::future::pending().await
            }
        }
    }
}

impl Door for Desk {
    async fn accept(&self, draft: Draft, extra: Batch) -> Result<MessageId, Refusal> {
        self.call(|| {
            if let Some(refusal) = self.refuse.lock().unwrap().clone() {
                return Err(refusal);
            }
            self.store.write(&[extra], false).unwrap();
            let mut accepted = self.accepted.lock().unwrap();
            accepted.push(draft);
            if let Some(when_queued) = self.when_queued.lock().unwrap().take() {
                when_queued();
            }
            Ok(MessageId::from_u64(accepted.len() as u64))
        })
        .await
    }

    fn recipient(&self, recipient: &Address) -> Result<(), Refusal> {
        match recipient.local() {
            "nobody" => Err(Refusal::plain(Reply::new(550, (1, 1), "there is no such address here"))),
            _ => Ok(()),
        }
    }

    fn notice(&self, about: &About<'_>) -> Option<Draft> {
        let keys = tempfile::tempdir().unwrap();
        let marks = postrider::secret::Marks::open(keys.path()).unwrap();
        notice::write(&self.config, &marks, about, MessageId::from_u64(7), NOW)
    }

    async fn write(&self, batch: Batch) -> Result<(), StoreError> {
        if let Some(meanwhile) = self.meanwhile.lock().unwrap().take() {
            meanwhile();
        }
        self.call(|| self.store.write(&[batch], false)).await
    }

    fn claims(&self, prefix: &[u8]) -> Result<Vec<Entry>, StoreError> {
        self.store.prefix(Table::Pickup, prefix)?.collect()
    }
}

pub struct Yard {
    pub base: TempDir,
    pub folder: PathBuf,
    pub desk: Arc<Desk>,
    pub clock: Clock,
}

impl Yard {
    pub fn new() -> Yard {
        Yard::with("")
    }

    /// `more`: keys of the folder.
    pub fn with(more: &str) -> Yard {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("pickup");
        fs::create_dir(&folder).unwrap();
        let text = CONF.replace("FOLDER", folder.to_str().unwrap()) + more;
        let config = config::parse("test.toml", &text).unwrap_or_else(|problems| panic!("{problems}"));
        let desk = Desk {
            config,
            store: Store::open(&base.path().join("store")).unwrap(),
            accepted: Mutex::default(),
            refuse: Mutex::default(),
            calls: AtomicUsize::new(0),
            crash_at: Mutex::default(),
            crashed: Notify::new(),
            meanwhile: Mutex::default(),
            when_queued: Mutex::default(),
        };
        Yard { base, folder, desk: Arc::new(desk), clock: Clock::manual(NOW) }
    }

    pub fn folder(&self) -> Folder {
        Folder { max_size: MAX_SIZE, ..Folder::of(&self.desk.config, "main").unwrap() }
    }

    pub fn watcher(&self) -> Watcher<Desk> {
        Watcher::new(self.folder(), Arc::clone(&self.desk), self.clock.clone())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A file last written `age` milliseconds ago.
    pub fn put(&self, name: &str, text: &str, age: u64) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        set_modified(&self.path(name), self.clock.now() - age);
        self.path(name)
    }

    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.folder).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    pub fn accepted(&self) -> Vec<String> {
        let accepted = self.desk.accepted.lock().unwrap();
        accepted.iter().map(|draft| String::from_utf8_lossy(draft.content.head()).into_owned()).collect()
    }

    pub fn claims(&self) -> usize {
        self.desk.claims(b"main\0").unwrap().len()
    }

    pub fn refuse(&self, refusal: Option<Reply>) {
        *self.desk.refuse.lock().unwrap() = refusal.map(Refusal::plain);
    }
}

pub fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

pub fn set_modified(path: &Path, millis: u64) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(UNIX_EPOCH + Duration::from_millis(millis)).unwrap();
}

pub async fn look(watcher: &mut Watcher<Desk>) {
    assert!(watcher.round(&CancellationToken::new()).await);
}

/// Two looks: the least that a file needs.
pub async fn look_twice(watcher: &mut Watcher<Desk>) {
    look(watcher).await;
    look(watcher).await;
}

pub fn mail(subject: &str) -> String {
    format!("From: a@example.com\nTo: b@example.org\nBcc: c@example.org\nSubject: {subject}\n\nhello\n")
}

/// Takes `x.eml` until the crash, as if the process had died there.
pub async fn crash(yard: &Yard, crash: Crash) {
    *yard.desk.crash_at.lock().unwrap() = Some(crash);
    yard.desk.calls.store(0, Ordering::SeqCst);
    let mut watcher = yard.watcher();
    tokio::select! {
        () = yard.desk.crashed.notified() => {}
        () = look_twice(&mut watcher) => panic!("{crash:?} was not reached"),
    }
    drop(watcher);
    *yard.desk.crash_at.lock().unwrap() = None;
}
