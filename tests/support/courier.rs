//! The inside of a server without its doors: queue, intake, dispatcher and the way out, on a clock that the
//! test moves, with far ends found through a zone in the same process. Notices to a@own.test come into a
//! Maildir.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use postrider::clock::{Clock, Millis};
use postrider::config;
use postrider::delivery::dispatch::{Dispatcher, NOTING_MAX, Parts};
use postrider::delivery::receipts::Receipts;
use postrider::delivery::settle::Settler;
use postrider::delivery::smtp::Timeouts;
use postrider::delivery::transport::Transports;
use postrider::dns::Resolver;
use postrider::events::Entry;
use postrider::events::journal::{self, Journal};
use postrider::intake::Intake;
use postrider::intake::sign::Signer;
use postrider::message::{Content, Door, Draft, Envelope, MessageId, Origin};
use postrider::queue::Queue;
use postrider::queue::record::{Recipient, Status};
use postrider::store::Store;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::zone::{Zone, ZoneServer};

pub const START: Millis = 1_800_000_000_000;
/// What takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

const BASE: &str = r#"
hostname = "mail.own.test"
data_dir = "DATA_DIR"
[domains."own.test".dkim]
selectors = []
[aliases]
"a@own.test" = "box"
"b@own.test" = "other"
"away@own.test" = ["one@far.test", "two@far.test"]
[targets.box]
kind = "maildir"
path = "DATA_DIR/box"
[targets.other]
kind = "maildir"
path = "DATA_DIR/other"
[queue]
min_free = "1MiB"
"#;

pub struct Courier {
    pub clock: Clock,
    pub queue: Arc<Queue>,
    pub intake: Arc<Intake>,
    pub folder: tempfile::TempDir,
    transports: Arc<Transports>,
    attempts: TaskTracker,
    stop: CancellationToken,
    dispatcher: JoinHandle<()>,
    _zone: ZoneServer,
}

impl Courier {
    /// `delivery`: lines for `[delivery]` and whole sections. Mail goes to `port` of what `zone` says.
    pub async fn start(delivery: &str, port: u16, zone: Zone, timeouts: Timeouts) -> Courier {
        Courier::start_in(tempfile::tempdir().unwrap(), delivery, port, zone, timeouts).await
    }

    /// In the folder of one that was stopped; the clock goes back to [`START`].
    pub async fn start_in(
        folder: tempfile::TempDir,
        delivery: &str,
        port: u16,
        zone: Zone,
        timeouts: Timeouts,
    ) -> Courier {
        let zone = zone.serve().await;
        let text = format!("{BASE}[delivery]\nmx_port = {port}\nallow_private_addresses = true\n{delivery}");
        let text = text.replace("DATA_DIR", folder.path().to_str().unwrap());
        let mut config = config::parse("test.toml", &text).unwrap_or_else(|problems| panic!("{problems}\n{text}"));
        config.dns = zone.config();
        let config = Arc::new(config);
        let clock = Clock::manual(START);
        let store = Arc::new(Store::open(&folder.path().join("store")).unwrap());
        let (queue, fresh) = Queue::new(store, clock.clone(), true, config.queue.memory).unwrap();
        let journal = Arc::new(Journal::new(clock.clone()));
        let resolver = Resolver::new(&config.dns).unwrap();
        let signer = Signer::load(&config).unwrap();
        let transports = Transports::new(&config, resolver.clone(), &clock, &queue).unwrap().with_timeouts(timeouts);
        let transports = Arc::new(transports);
        let intake =
            Intake::new(config.clone(), clock.clone(), queue.clone(), journal.clone(), resolver.clone(), signer);
        let intake = Arc::new(intake.unwrap());
        let settler = Settler { config: config.clone(), clock: clock.clone(), journal, intake: intake.clone() };
        let parts = Parts {
            config,
            clock: clock.clone(),
            queue: queue.clone(),
            transports: transports.clone(),
            settler,
            noting: Arc::new(Semaphore::new(NOTING_MAX)),
            receipts: Arc::new(Receipts::none()),
        };
        let (attempts, stop) = (TaskTracker::new(), CancellationToken::new());
        let dispatcher = tokio::spawn(Dispatcher::new(Arc::new(parts), fresh).run(attempts.clone(), stop.clone()));
        Courier { clock, queue, intake, folder, transports, attempts, stop, dispatcher, _zone: zone }
    }

    pub async fn submit(&self, envelope: Envelope, content: &str) -> MessageId {
        let origin = Origin { door: Door::Admin, account: None, peer: None };
        let content = Content::from(Bytes::copy_from_slice(content.as_bytes()));
        self.intake.accept(Draft { envelope, content, origin }).await.unwrap().id
    }

    pub fn story(&self, id: MessageId) -> Vec<Entry> {
        journal::story(self.queue.store(), id).unwrap()
    }

    /// Waits until the story of a message is as wanted. There is nothing to wait for from outside, so it is
    /// looked at again and again; the bound only turns a hang into a failure that shows the story.
    pub async fn wait(&self, id: MessageId, enough: impl Fn(&[Entry]) -> bool) -> Vec<Entry> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let story = self.story(id);
            if enough(&story) {
                return story;
            }
            assert!(Instant::now() < deadline, "gave up waiting: {story:#?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// What of a message waits, and for when.
    pub fn waiting(&self, id: MessageId) -> Vec<(Recipient, Millis)> {
        let all = self.queue.recipients(id).unwrap();
        let due = |recipient: Recipient| match recipient.status {
            Status::Waiting { due } => Some((recipient, due)),
            _ => None,
        };
        all.into_iter().filter_map(|(_, recipient)| due(recipient)).collect()
    }

    /// Sets the clock, and makes the dispatcher look at it.
    pub fn set_clock(&self, to: Millis) {
        self.clock.advance(to - self.clock.now());
        self.queue.claims().wake.notify_one();
    }

    /// Waits for so many notices to a@own.test.
    pub async fn notices(&self, count: usize) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let files: Vec<PathBuf> = match std::fs::read_dir(self.folder.path().join("box/new")) {
                Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
                Err(_) => Vec::new(),
            };
            if files.len() >= count {
                return files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
            }
            assert!(Instant::now() < deadline, "{} notices of {count} have come", files.len());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub async fn stop(self) -> tempfile::TempDir {
        self.stop.cancel();
        self.dispatcher.await.unwrap();
        self.attempts.close();
        self.attempts.wait().await;
        self.transports.close().await;
        self.folder
    }
}
