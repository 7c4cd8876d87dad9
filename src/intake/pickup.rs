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
//! never touched. A file that cannot be sent becomes `x.bad`, with the reason in `x.bad.log`. Trouble that
//! may pass puts the name back and waits, longer each time.
//!
//! Left out: notification by the kernel (the folder is looked at every second or oftener), folders
//! within the folder, the formats of other servers beyond what `envelope` reads.

pub mod envelope;
mod files;

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Intake;
use crate::clock::{Clock, Millis, rfc3339};
use crate::config;
use crate::message::draft::Door as CameBy;
use crate::message::{Draft, MessageId, Origin};
use crate::smtp::reply::{Refusal, Severity};
use crate::store::{Batch, Entry, StoreError, Table};

use envelope::{Bad, Eml};
use files::{Found, Listing, NotNow, Stamp};

/// The folder is looked at this often at least, and twice in `settle`.
const POLL_MAX: Duration = Duration::from_secs(1);
const POLL_MIN: Duration = Duration::from_millis(50);
/// After a look that failed.
const POLL_BROKEN: Duration = Duration::from_secs(5);
/// Files of one look.
const ROUND_FILES_MAX: usize = 1000;
/// Files being taken at once: their commits share syncs.
const FILES_AT_ONCE: usize = 16;
/// KiB of files being taken at once; a larger file is taken alone.
const ROUND_KIB: u32 = 64 * 1024;
/// An empty file may be one that is about to be written; after this long it is a mistake.
const EMPTY_MILLIS: Millis = 60_000;
/// First and longest wait after trouble with a file; it doubles in between.
const ASIDE_MILLIS: Millis = 2_000;
const ASIDE_MILLIS_MAX: Millis = 300_000;
/// Files in trouble that are remembered.
const ASIDE_MAX: usize = 10_000;
/// So many files put off in a row: the trouble is not theirs, the rest of the round waits.
const PUT_OFF_MAX: u32 = 16;

/// What the pickup folder needs of the server: the one door, and its own table.
pub trait Door: Send + Sync + 'static {
    /// Queues the draft and writes `extra` in the same synced batch, or does neither.
    fn accept(&self, draft: Draft, extra: Batch) -> impl Future<Output = Result<MessageId, Refusal>> + Send;
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

    async fn write(&self, batch: Batch) -> Result<(), StoreError> {
        self.queue().commit(batch, true).await
    }

    fn claims(&self, prefix: &[u8]) -> Result<Vec<Entry>, StoreError> {
        self.queue().store().prefix(Table::Pickup, prefix)?.collect()
    }
}

/// Watches one folder until `shutdown`; files that are being taken are finished.
/// `max_size`: bytes of a file (`limits.max_size`).
pub async fn run<D: Door>(
    name: String,
    pickup: config::Pickup,
    max_size: u64,
    door: Arc<D>,
    clock: Clock,
    shutdown: CancellationToken,
) {
    let settle = pickup.settle;
    let mut watcher = Watcher::new(name, pickup, max_size, door, clock);
    let mut recovered = false;
    while !shutdown.is_cancelled() {
        // Nothing is taken before it is known what an earlier run had taken.
        recovered = recovered || watcher.recover().await;
        let looked = recovered && watcher.round(&shutdown).await;
        let wait = if looked { (settle / 2).clamp(POLL_MIN, POLL_MAX) } else { POLL_BROKEN };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// The record of a claim. Its key is folder, NUL, name of the `.tmp` file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    /// Bytes of the name that the file had.
    name: Vec<u8>,
    stamp: Stamp,
    /// It is queued.
    done: bool,
}

/// A claim with its key.
type Keyed = (Vec<u8>, Claim);

impl Claim {
    fn put(&self, key: &[u8]) -> Batch {
        let mut batch = Batch::new();
        // Serializing this struct into memory cannot fail.
        batch.put(Table::Pickup, key, rmp_serde::to_vec_named(self).unwrap_or_default());
        batch
    }
}

/// One folder, and what is remembered of it between looks.
#[derive(Debug)]
pub struct Watcher<D> {
    shared: Arc<Shared<D>>,
    /// Each file of the last look, and since when it has been as it is.
    looks: HashMap<OsString, (Stamp, Millis)>,
    aside: HashMap<OsString, Aside>,
    /// Names that were told of as never taken.
    told: HashSet<OsString>,
    /// Files that are queued but could not be removed.
    leftovers: Vec<Keyed>,
    broken: bool,
}

/// What the tasks of a round share.
#[derive(Debug)]
struct Shared<D> {
    name: String,
    pickup: config::Pickup,
    max_size: u64,
    door: Arc<D>,
    clock: Clock,
}

/// A file in trouble.
#[derive(Clone, Copy, Debug)]
struct Aside {
    until: Millis,
    wait: Millis,
}

/// What became of a file.
#[derive(Debug)]
enum Fate {
    Queued {
        key: Vec<u8>,
        claim: Claim,
    },
    Bad,
    /// The next look will tell.
    Unsettled,
    /// Trouble that may pass, with its reason.
    PutOff(String),
}

impl<D: Door> Watcher<D> {
    pub fn new(name: String, pickup: config::Pickup, max_size: u64, door: Arc<D>, clock: Clock) -> Watcher<D> {
        Watcher {
            shared: Arc::new(Shared { name, pickup, max_size, door, clock }),
            looks: HashMap::new(),
            aside: HashMap::new(),
            told: HashSet::new(),
            leftovers: Vec::new(),
            broken: false,
        }
    }

    /// Ends what a crash interrupted. False: try again later, take nothing before.
    pub async fn recover(&mut self) -> bool {
        let folder = &self.shared.name;
        let claims = match self.shared.door.claims(&key(folder, b"")) {
            Ok(claims) => claims,
            Err(error) => {
                self.say_broken(&error.to_string());
                return false;
            }
        };
        let mut settled = Batch::new();
        for (key, value) in claims {
            let Ok(claim) = rmp_serde::from_slice::<Claim>(&value) else {
                error!(folder, "a record of a file taken earlier cannot be read; a .tmp file may be left over");
                continue;
            };
            let shared = Arc::clone(&self.shared);
            let tmp = key.get(folder.len() + 1..).unwrap_or_default().to_vec();
            let (again, done) = (claim.clone(), claim.done);
            let ended = spawn_blocking(move || shared.end(&tmp, &again)).await;
            match ended.unwrap_or_else(|_| Err(io::ErrorKind::Other.into())) {
                Ok(()) => settled.delete(Table::Pickup, key),
                Err(_) if done => self.leftovers.push((key.into(), claim)),
                Err(error) => {
                    self.say_broken(&error.to_string());
                    return false;
                }
            }
        }
        self.drop_claims(settled).await;
        true
    }

    /// One look at the folder, taking what is ready. False: the folder cannot be read.
    pub async fn round(&mut self, shutdown: &CancellationToken) -> bool {
        let now = self.shared.clock.now();
        self.retry_leftovers().await;
        self.forget_old(now);
        let Some(listing) = self.look(now).await else { return false };
        self.tell_odd(&listing);
        let ready = self.ready(listing.found, now);
        let mut queued = Vec::new();
        let mut put_off = 0;
        let mut tasks = JoinSet::new();
        let room = Arc::new(Semaphore::new(ROUND_KIB as usize));
        for found in ready {
            if shutdown.is_cancelled() || put_off >= PUT_OFF_MAX {
                break;
            }
            while tasks.len() >= FILES_AT_ONCE {
                let ended = tasks.join_next().await;
                self.note(ended, now, &mut queued, &mut put_off);
            }
            let kib = u32::try_from(found.stamp.size / 1024 + 1).map_or(ROUND_KIB, |kib| kib.min(ROUND_KIB));
            let Ok(permit) = Arc::clone(&room).acquire_many_owned(kib).await else { break };
            let shared = Arc::clone(&self.shared);
            tasks.spawn(async move {
                let fate = shared.take(&found).await;
                drop(permit);
                (found.name, fate)
            });
        }
        while let Some(ended) = tasks.join_next().await {
            self.note(Some(ended), now, &mut queued, &mut put_off);
        }
        self.settle(queued).await;
        true
    }

    async fn look(&mut self, now: Millis) -> Option<Listing> {
        let skip: HashSet<_> = self.aside.iter().filter(|(_, a)| a.until > now).map(|(n, _)| n.clone()).collect();
        let path = self.shared.pickup.path.clone();
        let listed = spawn_blocking(move || files::list(&path, ROUND_FILES_MAX, &skip)).await;
        match listed.unwrap_or_else(|_| Err(io::ErrorKind::Other.into())) {
            Ok(listing) => {
                self.broken = false;
                Some(listing)
            }
            Err(error) => {
                self.say_broken(&error.to_string());
                None
            }
        }
    }

    /// Of what was seen, what has not changed since the last look and is old enough.
    fn ready(&mut self, found: Vec<Found>, now: Millis) -> Vec<Found> {
        let settle = u64::try_from(self.shared.pickup.settle.as_millis()).unwrap_or(Millis::MAX);
        let before = std::mem::take(&mut self.looks);
        let mut ready = Vec::new();
        for file in found {
            let since = match before.get(&file.name) {
                Some((stamp, since)) if *stamp == file.stamp => {
                    let age = i64::try_from(now).unwrap_or(i64::MAX) - file.stamp.modified();
                    // A time in the future says nothing; then our own looks have to do.
                    let waited = u64::try_from(age).unwrap_or_else(|_| now.saturating_sub(*since));
                    let empty_wait = if file.stamp.size == 0 { EMPTY_MILLIS } else { 0 };
                    if waited >= settle.max(empty_wait) {
                        ready.push(file.clone());
                    }
                    *since
                }
                _ => now,
            };
            self.looks.insert(file.name, (file.stamp, since));
        }
        ready
    }

    fn note(
        &mut self,
        ended: Option<Result<(OsString, Fate), tokio::task::JoinError>>,
        now: Millis,
        queued: &mut Vec<Keyed>,
        put_off: &mut u32,
    ) {
        let folder = &self.shared.name;
        let Some(Ok((name, fate))) = ended else {
            // Cancelled or panicked: its claim is open, and the file waits for the next start.
            if ended.is_some() {
                error!(folder, "taking a file failed inside postrider; restart to have it taken again");
            }
            return;
        };
        self.looks.remove(&name);
        match fate {
            Fate::Queued { key, claim } => {
                *put_off = 0;
                self.aside.remove(&name);
                queued.push((key, claim));
            }
            Fate::Bad | Fate::Unsettled => {
                self.aside.remove(&name);
            }
            Fate::PutOff(reason) => {
                *put_off += 1;
                let wait = match self.aside.get(&name) {
                    None => {
                        warn!(folder, file = ?name, reason, "file put off");
                        ASIDE_MILLIS
                    }
                    Some(aside) => (aside.wait * 2).min(ASIDE_MILLIS_MAX),
                };
                if self.aside.len() < ASIDE_MAX {
                    self.aside.insert(name, Aside { until: now + wait, wait });
                }
            }
        }
    }

    /// Steps 4 and 5 for all files of a round at once.
    async fn settle(&mut self, queued: Vec<Keyed>) {
        if queued.is_empty() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let removed = spawn_blocking(move || shared.remove_all(queued)).await;
        let (gone, left) = removed.unwrap_or_default();
        if !left.is_empty() {
            let folder = &self.shared.name;
            let path = self.shared.pickup.path.display();
            error!(folder, files = left.len(), "queued files cannot be removed: let postrider write in {path}");
        }
        self.leftovers.extend(left);
        let mut settled = Batch::new();
        gone.into_iter().for_each(|key| settled.delete(Table::Pickup, key));
        self.drop_claims(settled).await;
    }

    async fn retry_leftovers(&mut self) {
        let leftovers = std::mem::take(&mut self.leftovers);
        if leftovers.is_empty() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let again = leftovers.clone();
        let (gone, left) = spawn_blocking(move || shared.remove_all(again)).await.unwrap_or((Vec::new(), leftovers));
        self.leftovers = left;
        let mut settled = Batch::new();
        gone.into_iter().for_each(|key| settled.delete(Table::Pickup, key));
        self.drop_claims(settled).await;
    }

    /// A claim that stays is dropped at the next start, so failing here harms nobody.
    async fn drop_claims(&self, settled: Batch) {
        if !settled.is_empty()
            && let Err(error) = self.shared.door.write(settled).await
        {
            warn!(folder = self.shared.name, %error, "claims of taken files could not be dropped");
        }
    }

    fn forget_old(&mut self, now: Millis) {
        self.aside.retain(|_, aside| aside.until + 2 * ASIDE_MILLIS_MAX > now);
    }

    fn tell_odd(&mut self, listing: &Listing) {
        let folder = &self.shared.name;
        self.told.retain(|name| listing.odd.iter().any(|(odd, _)| odd == name));
        for (name, why) in &listing.odd {
            if self.told.insert(name.clone()) {
                warn!(folder, file = ?name, "file is never taken: {why}");
            }
        }
    }

    fn say_broken(&mut self, reason: &str) {
        if !std::mem::replace(&mut self.broken, true) {
            let (folder, path) = (&self.shared.name, self.shared.pickup.path.display());
            error!(
                folder,
                reason,
                "the pickup folder {path} cannot be used: it must be there and belong to postrider's user, or be \
                 writable for it; looking again until it can"
            );
        }
    }
}

/// What reading a claimed file gave.
enum Taken {
    Message(Eml),
    Bad(Bad),
    /// Written to after it was claimed, or another file took its place.
    Changed,
    /// It could not be renamed.
    NotMoved(io::Error),
}

/// What is known after a look at an opened file.
enum Opened {
    /// Locked by us; the name it gets.
    Ready(std::fs::File, OsString),
    Fate(Fate),
}

impl<D: Door> Shared<D> {
    /// Steps 1 to 3 for one file.
    async fn take(self: &Arc<Self>, found: &Found) -> Fate {
        let (file, tmp) = match self.blocking(found, Shared::open).await {
            Ok(Opened::Ready(file, tmp)) => (file, tmp),
            Ok(Opened::Fate(fate)) => return fate,
            Err(error) => return Fate::PutOff(error.to_string()),
        };
        let key = key(&self.name, tmp.as_bytes());
        let claim = Claim { name: found.name.as_bytes().to_vec(), stamp: found.stamp, done: false };
        if let Err(error) = self.door.write(claim.put(&key)).await {
            return Fate::PutOff(error.to_string());
        }
        let name = tmp.clone();
        // The file stays open, and so locked, until it is queued.
        let claimed = self.blocking(found, move |shared, found| shared.claim(found, &file, &name).map(|t| (file, t)));
        let (_lock, taken) = match claimed.await {
            Ok((file, taken)) => (file, taken),
            Err(error) => return self.put_back(found, &tmp, &key, Fate::PutOff(error.to_string())).await,
        };
        let eml = match taken {
            Taken::Message(eml) => eml,
            Taken::Bad(Bad(reason)) => return self.put_bad(found, &tmp, &key, reason).await,
            Taken::Changed => return self.put_back(found, &tmp, &key, Fate::Unsettled).await,
            Taken::NotMoved(error) => {
                return self.unclaim(found, &key, Ok(()), Fate::PutOff(error.to_string())).await;
            }
        };
        let claim = Claim { done: true, ..claim };
        match self.door.accept(self.draft(found, eml), claim.put(&key)).await {
            Ok(id) => {
                info!(folder = self.name, file = ?found.name, %id, "file queued");
                Fate::Queued { key, claim }
            }
            Err(refusal) if refusal.reply.severity() == Severity::Permanent => {
                self.put_bad(found, &tmp, &key, refusal.reason).await
            }
            Err(refusal) => self.put_back(found, &tmp, &key, Fate::PutOff(refusal.reason)).await,
        }
    }

    fn draft(&self, found: &Found, eml: Eml) -> Draft {
        let file = found.name.to_string_lossy().chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        Draft {
            envelope: eml.envelope,
            content: eml.content.into(),
            origin: Origin {
                door: CameBy::Pickup { folder: self.name.clone(), file },
                account: Some(self.pickup.account.clone()),
                peer: None,
            },
        }
    }

    /// Opens and locks; a file that cannot be a message is put aside at once.
    fn open(&self, found: &Found) -> io::Result<Opened> {
        let folder = &self.pickup.path;
        let file = match files::open_locked(&folder.join(&found.name), &found.stamp) {
            Ok(file) => file,
            Err(NotNow::Changed) => return Ok(Opened::Fate(Fate::Unsettled)),
            Err(NotNow::Locked) => return Ok(Opened::Fate(Fate::PutOff("a program holds a lock on it".into()))),
            Err(NotNow::Failed(error)) => return Err(error),
        };
        let reason = match found.stamp.size {
            0 => Some("the file is empty".to_owned()),
            size if size > self.max_size => {
                Some(format!("the file has {size} bytes; limits.max_size allows {}", self.max_size))
            }
            _ => None,
        };
        if let Some(reason) = reason {
            files::put_bad(folder, &found.name, &found.name, &reason, &self.time())?;
            warn!(folder = self.name, file = ?found.name, reason, "file cannot be sent");
            return Ok(Opened::Fate(Fate::Bad));
        }
        let tmp = files::free_name(folder, &found.name, ".tmp", &self.time());
        let tmp = tmp.ok_or_else(|| io::Error::other("every name for its .tmp is taken"))?;
        Ok(Opened::Ready(file, tmp))
    }

    /// Renames and reads.
    fn claim(&self, found: &Found, file: &std::fs::File, tmp: &OsStr) -> io::Result<Taken> {
        let folder = &self.pickup.path;
        if let Err(error) = files::rename(&folder.join(&found.name), &folder.join(tmp)) {
            return Ok(Taken::NotMoved(error));
        }
        // Another file may have been renamed over the one we opened.
        if Stamp::at(&folder.join(tmp))? != Some(found.stamp) {
            return Ok(Taken::Changed);
        }
        let Some(bytes) = files::read_all(file, &found.stamp)? else { return Ok(Taken::Changed) };
        Ok(envelope::read_eml(&bytes).map_or_else(Taken::Bad, Taken::Message))
    }

    /// Undoes steps 2 and 1. Whatever file lies under the name by now, it is the one we moved there.
    async fn put_back(self: &Arc<Self>, found: &Found, tmp: &OsStr, key: &[u8], fate: Fate) -> Fate {
        let tmp = tmp.to_owned();
        let renamed = self.blocking(found, move |shared, found| {
            let folder = &shared.pickup.path;
            files::rename_free(folder, &tmp, &found.name, ".eml", &shared.time())?;
            files::sync(folder)
        });
        self.unclaim(found, key, renamed.await, fate).await
    }

    async fn put_bad(self: &Arc<Self>, found: &Found, tmp: &OsStr, key: &[u8], reason: String) -> Fate {
        warn!(folder = self.name, file = ?found.name, reason, "file cannot be sent");
        let tmp = tmp.to_owned();
        let renamed = self.blocking(found, move |shared, found| {
            let folder = &shared.pickup.path;
            files::put_bad(folder, &tmp, &found.name, &reason, &shared.time())?;
            files::sync(folder)
        });
        self.unclaim(found, key, renamed.await, Fate::Bad).await
    }

    async fn unclaim(&self, found: &Found, key: &[u8], renamed: io::Result<()>, fate: Fate) -> Fate {
        if let Err(error) = renamed {
            // The claim stays open: the next start puts the file back.
            error!(folder = self.name, file = ?found.name, %error, "a claimed file cannot be renamed");
            return Fate::PutOff(error.to_string());
        }
        let mut batch = Batch::new();
        batch.delete(Table::Pickup, key);
        if let Err(error) = self.door.write(batch).await {
            warn!(folder = self.name, %error, "the claim of a file could not be dropped");
        }
        fate
    }

    /// Removes queued files and syncs the folder; gives the keys of those that are gone, and the rest.
    fn remove_all(&self, queued: Vec<Keyed>) -> (Vec<Vec<u8>>, Vec<Keyed>) {
        let tmp = |key: &[u8]| key.get(self.name.len() + 1..).unwrap_or_default().to_vec();
        let (gone, mut left): (Vec<_>, Vec<_>) =
            queued.into_iter().partition(|(key, claim)| self.remove(&tmp(key), claim).is_ok());
        if files::sync(&self.pickup.path).is_err() {
            left.extend(gone);
            return (Vec::new(), left);
        }
        (gone.into_iter().map(|(key, _)| key).collect(), left)
    }

    fn remove(&self, tmp: &[u8], claim: &Claim) -> io::Result<()> {
        files::remove_same(&files::join(&self.pickup.path, tmp), |there| there.is_same_content(&claim.stamp))
    }

    /// Ends a claim of an earlier run: a queued file goes, any other gets its name back.
    fn end(&self, tmp: &[u8], claim: &Claim) -> io::Result<()> {
        let folder = &self.pickup.path;
        if claim.done {
            self.remove(tmp, claim)?;
            // After a power cut the rename may not have happened although the message is queued. The
            // same name, size and time can be a copy sent on purpose; the same inode cannot.
            let is_same = |there: &Stamp| there.inode == claim.stamp.inode && there.is_same_content(&claim.stamp);
            return files::remove_same(&files::join(folder, &claim.name), is_same);
        }
        match Stamp::at(&files::join(folder, tmp))? {
            Some(there) if there.is_same_content(&claim.stamp) || there.is_same_file(&claim.stamp) => {
                let name = OsStr::from_bytes(&claim.name);
                files::rename_free(folder, OsStr::from_bytes(tmp), name, ".eml", &self.time())?;
                files::sync(folder)
            }
            _ => Ok(()),
        }
    }

    /// Runs file work off the async threads.
    async fn blocking<T, F>(self: &Arc<Self>, found: &Found, work: F) -> io::Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Shared<D>, &Found) -> io::Result<T> + Send + 'static,
    {
        let (shared, found) = (Arc::clone(self), found.clone());
        let done = spawn_blocking(move || work(&shared, &found)).await;
        done.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    /// For names and logs: `20261121T222657Z`.
    fn time(&self) -> String {
        let text = rfc3339(self.clock.now());
        let seconds = text.split('.').next().unwrap_or_default();
        seconds.chars().filter(|c| *c != '-' && *c != ':').chain(['Z']).collect()
    }
}

fn key(folder: &str, tmp: &[u8]) -> Vec<u8> {
    [folder.as_bytes(), b"\0", tmp].concat()
}
