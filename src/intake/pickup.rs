//! The pickup folder: programs drop `.eml` files, we queue them.
//!
//! A file is taken when it is a regular file with one link, older than `settle`, unchanged between two
//! looks, and not locked by its writer; so nothing half-written is ever taken. Then:
//!
//! | step                                     | a crash after it leaves      | the next start            |
//! |------------------------------------------|------------------------------|---------------------------|
//! | 1 claim "open" written, synced           | `x.eml`, claim open          | drops the claim           |
//! | 2 `x.eml` renamed to `x.tmp`             | `x.tmp`, claim open          | renames it back           |
//! | 3 message and claim "done" in one batch  | `x.tmp`, claim done          | removes the file          |
//! | 4 `x.tmp` removed, folder synced         | claim done                   | drops the claim           |
//! | 5 claim dropped                          | nothing                      |                           |
//!
//! So a file is queued once, never lost, never twice; and a `.tmp` without a claim is somebody else's and
//! never touched. A file that is no message becomes `x.bad`, with the reason in `x.bad.log`. What is one but
//! may not be sent goes back to its sender in a notice, in place of the message in step 3, if that is an
//! address of ours and the notice holds all of it; else it becomes `x.bad` too. Recipients that are not
//! taken do not keep the others from getting it: the notice about them is queued before step 3, so a crash
//! in between may tell twice. Trouble that may pass puts the name back and waits, longer each time.
//!
//! A sub-folder stands for the stream of its name; `tmp` is for writers that compose there, `archive` for
//! what is kept (`done`). Changes are told by the kernel where it can, and looked for always.
//!
//! The parts: `watcher` looks and remembers, `taking` takes one file, `claim` is the record of it, `files` is
//! the file system, `envelope` (with `text` and `encode`) reads a file, `notice` writes to senders, `changes`
//! hears from the kernel, `inspect` tells what would happen.
//!
//! Left out: files with several messages (Django's and Rails' file back ends), headers of Exchange that
//! say more than the envelope.

mod changes;
mod claim;
mod encode;
pub mod envelope;
mod files;
pub mod inspect;
pub mod notice;
mod taking;
pub mod text;
mod watcher;

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::Intake;
use crate::clock::Clock;
use crate::config::{Config, PickupDone, PickupFormat, Role, SUBMITTED_RECIPIENTS};
use crate::current::Current;
use crate::message::{Address, Draft, MessageId};
use crate::smtp::reply::Refusal;
use crate::store::{Batch, Entry, StoreError, Table};

use changes::Changes;
use files::Dir;
pub use watcher::Watcher;

/// The folder is looked at this often at least, and twice in `settle`.
const POLL_MAX: Duration = Duration::from_secs(1);
const POLL_MIN: Duration = Duration::from_millis(50);
/// Where the kernel tells of changes and nothing waits.
const POLL_WATCHED: Duration = Duration::from_secs(5);
/// After a look that failed.
const POLL_BROKEN: Duration = Duration::from_secs(5);
/// Wishes to look now that wait for one folder.
const ORDERS_MAX: usize = 8;

/// Where `postrider sendmail` leaves what it cannot hand in, below `data_dir`.
pub const MAILDROP: &str = "maildrop";
/// In stories and reports. No folder of the configuration has a blank in its name.
const MAILDROP_NAME: &str = "sendmail maildrop";

/// What the pickup folder needs of the server: the one door, and its own table.
pub trait Door: Send + Sync + 'static {
    /// Queues the draft and writes `extra` in the same synced batch, or does neither.
    fn accept(&self, draft: Draft, extra: Batch) -> impl Future<Output = Result<MessageId, Refusal>> + Send;
    /// Is mail for this recipient taken?
    fn recipient(&self, recipient: &Address) -> Result<(), Refusal>;
    /// What tells the sender that its message was not taken. None: nobody is to be told.
    fn notice(&self, about: &notice::About<'_>) -> Option<Draft>;
    /// Writes a batch; it is on disk on return.
    fn write(&self, batch: Batch) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Entries of [`Table::Pickup`] whose key begins with `prefix`.
    fn claims(&self, prefix: &[u8]) -> Result<Vec<Entry>, StoreError>;
}

impl Door for Intake {
    async fn accept(&self, draft: Draft, extra: Batch) -> Result<MessageId, Refusal> {
        self.sender(draft.origin.account.as_deref(), &draft.envelope.mail_from, Some(draft.content.len()))?;
        self.accept_with(draft, extra).await.map(|accepted| accepted.id)
    }

    fn recipient(&self, recipient: &Address) -> Result<(), Refusal> {
        super::rights::takes(&self.config, &self.marks, Role::Submission, recipient)
    }

    fn notice(&self, about: &notice::About<'_>) -> Option<Draft> {
        let id = self.queue().new_id();
        let notice = notice::write(&self.config, &self.marks, about, id, self.clock.now())?;
        tracing::info!(%id, sender = %about.envelope.mail_from, "the sender of a file is told that it is not sent");
        Some(notice)
    }

    async fn write(&self, batch: Batch) -> Result<(), StoreError> {
        self.queue().commit(batch, true).await
    }

    fn claims(&self, prefix: &[u8]) -> Result<Vec<Entry>, StoreError> {
        self.queue().store().prefix(Table::Pickup, prefix)?.collect()
    }
}

/// A folder, and what the rest of the configuration says about what comes from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Folder {
    pub name: String,
    pub path: PathBuf,
    /// Whose rights apply; none: the local users', whom `networks.trusted` trusts.
    pub account: Option<String>,
    pub settle: Duration,
    pub format: PickupFormat,
    pub done: PickupDone,
    /// Files; 0: as many as there are.
    pub max_per_minute: u32,
    /// What its sub-folders may be called.
    pub streams: Vec<String>,
    /// Of one message.
    pub max_recipients: usize,
    /// Bytes of a file (`limits.max_size`).
    pub max_size: u64,
}

impl Folder {
    /// `[pickup.NAME]`
    pub fn of(config: &Config, name: &str) -> Option<Folder> {
        let pickup = config.pickup.get(name)?;
        let account = config.accounts.get(&pickup.account);
        let may_use = |stream: &&String| account.is_some_and(|account| account.may_use(stream));
        Some(Folder {
            name: name.to_owned(),
            path: pickup.path.clone(),
            account: Some(pickup.account.clone()),
            settle: pickup.settle,
            format: pickup.format,
            done: pickup.done,
            max_per_minute: pickup.max_per_minute,
            streams: config.streams.keys().filter(may_use).cloned().collect(),
            max_recipients: account.map_or(SUBMITTED_RECIPIENTS, |account| account.max_recipients),
            max_size: config.limits.max_size,
        })
    }

    /// What `postrider sendmail` left while no server took it. None where local users are not trusted.
    pub fn maildrop(config: &Config) -> Option<Folder> {
        config.trusts_loopback().then(|| Folder {
            name: MAILDROP_NAME.to_owned(),
            path: config.data_dir.join(MAILDROP),
            account: None,
            // Its files are whole when they get their name.
            settle: Duration::ZERO,
            format: PickupFormat::Replay,
            done: PickupDone::Delete,
            max_per_minute: 0,
            streams: Vec::new(),
            max_recipients: SUBMITTED_RECIPIENTS,
            max_size: config.limits.max_size,
        })
    }

    /// Why the server must not start with this folder. One that is missing may come.
    pub fn refusal(&self) -> Option<String> {
        let rights = Dir::open(&self.path).and_then(|dir| dir.rights()).ok()?;
        rights.trouble().map(str::to_owned)
    }
}

/// Makes the folder that `postrider sendmail` writes to. Others may put files in but neither see nor
/// rename what is there (mode 1733), and may not even do that where local users are not trusted.
pub fn make_maildrop(config: &Config) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let path = config.data_dir.join(MAILDROP);
    match std::fs::DirBuilder::new().mode(0o700).create(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    if !std::fs::symlink_metadata(&path)?.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is no folder; move it away"));
    }
    let mode = if config.trusts_loopback() { 0o1733 } else { 0o700 };
    std::fs::set_permissions(&path, PermissionsExt::from_mode(mode))
}

/// What a look at a folder did, for people. Lists are cut at [`REPORT_FILES_MAX`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub folder: String,
    pub queued: Vec<Queued>,
    /// Now `.bad`.
    pub bad: Vec<Said>,
    /// Went back to the sender in a notice.
    pub returned: Vec<Said>,
    /// Still there.
    pub waiting: Vec<Said>,
    /// The folder could not be looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Files of one kind that a report names.
pub const REPORT_FILES_MAX: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queued {
    pub file: String,
    pub id: MessageId,
}

/// A file and what there is to say about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    pub file: String,
    pub reason: String,
}

/// Asks for a look now; gets what it did.
type Order = oneshot::Sender<Report>;

/// Reaches the task of one folder.
#[derive(Clone, Debug)]
pub struct Handle {
    pub name: String,
    orders: mpsc::Sender<Order>,
}

impl Handle {
    /// Takes what is ready now, without waiting for the next look. None: the server is stopping.
    pub async fn look_now(&self) -> Option<Report> {
        let (order, report) = oneshot::channel();
        self.orders.send(order).await.ok()?;
        report.await.ok()
    }
}

/// One folder, to be run.
#[derive(Debug)]
pub struct Task<D> {
    watcher: Watcher<D>,
    door: Current<D>,
    orders: mpsc::Receiver<Order>,
}

impl<D: Door> Task<D> {
    pub fn new(folder: Folder, door: impl Into<Current<D>>, clock: Clock) -> (Task<D>, Handle) {
        let (send, orders) = mpsc::channel(ORDERS_MAX);
        let (handle, door) = (Handle { name: folder.name.clone(), orders: send }, door.into());
        (Task { watcher: Watcher::new(folder, door.load(), clock), door, orders }, handle)
    }

    /// Watches the folder until `shutdown`; files that are being taken are finished.
    pub async fn run(self, shutdown: CancellationToken) {
        let Task { mut watcher, door, mut orders } = self;
        let mut changes = Changes::new();
        let mut recovered = false;
        while !shutdown.is_cancelled() {
            // Nothing is taken before it is known what an earlier run had taken.
            watcher.renew(&door);
            recovered = recovered || watcher.recover().await;
            let looked = recovered && watcher.round(&shutdown).await;
            let heard = looked && changes.follow(&watcher.folder().path, watcher.subs());
            let wait = if looked { watcher.patience(heard) } else { POLL_BROKEN };
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
                () = changes.heard() => tokio::time::sleep(POLL_MIN.min(wait)).await,
                Some(order) = orders.recv() => {
                    // A file wants two looks.
                    watcher.begin_report();
                    watcher.renew(&door);
                    if recovered && watcher.round(&shutdown).await {
                        tokio::time::sleep(POLL_MIN).await;
                        watcher.round(&shutdown).await;
                    }
                    // Whoever asked may have left.
                    let _ = order.send(watcher.end_report());
                }
            }
        }
    }
}
