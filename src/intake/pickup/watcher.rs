//! Looks at a folder again and again: what is ready, what is in trouble, what an earlier run left.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::claim::{self, Claim, Keyed, key};
use super::files::{self, Dir, Found, Listing, Stamp};
use super::taking::{Fate, Shared};
use super::{Door, Folder, POLL_MAX, POLL_MIN, POLL_WATCHED, Queued, REPORT_FILES_MAX, Report, Said};
use crate::clock::{Clock, Millis};
use crate::current::Current;
use crate::store::{Batch, Table};

/// Files of one look; the oldest are taken first.
const LOOK_FILES_MAX: usize = 10_000;
/// Files being taken at once: their commits share syncs.
const FILES_AT_ONCE: usize = 16;
/// KiB of files being taken at once; a larger file is taken alone.
const ROUND_KIB: u32 = 64 * 1024;
/// Queued files that are removed together: one sync of the folder, one of the store.
const SETTLED_TOGETHER: usize = 256;
/// An empty file may be one that is about to be written; after this long it is a mistake.
const EMPTY_MILLIS: Millis = 60_000;
/// First and longest wait after trouble with a file; it doubles in between.
const ASIDE_MILLIS: Millis = 2_000;
const ASIDE_MILLIS_MAX: Millis = 300_000;
/// Files in trouble that are remembered.
const ASIDE_MAX: usize = 10_000;
/// So many files put off in a row: the trouble is not theirs, the rest of the round waits.
const PUT_OFF_MAX: u32 = 16;
const MINUTE_MILLIS: Millis = 60_000;

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
    /// Files that are claimed, not queued, and could not be given their names back.
    stuck: Vec<Keyed>,
    /// Sub-folders of the last look.
    subs: Vec<String>,
    /// The minute that began then, and the files taken in it.
    minute: (Millis, u32),
    /// The last look left files that were ready, or did not see all.
    has_more: bool,
    broken: bool,
    report: Option<Report>,
}

/// A file in trouble.
#[derive(Clone, Debug)]
struct Aside {
    until: Millis,
    wait: Millis,
    why: String,
}

/// What a round has gathered.
#[derive(Default)]
struct Round {
    queued: Vec<Keyed>,
    put_off: u32,
}

impl<D: Door> Watcher<D> {
    pub fn new(folder: Folder, door: Arc<D>, clock: Clock) -> Watcher<D> {
        Watcher {
            shared: Arc::new(Shared { folder, door, clock }),
            looks: HashMap::new(),
            aside: HashMap::new(),
            told: HashSet::new(),
            leftovers: Vec::new(),
            stuck: Vec::new(),
            subs: Vec::new(),
            minute: (0, 0),
            has_more: false,
            broken: false,
            report: None,
        }
    }

    /// What is taken from now on goes through the door that is in use now.
    pub fn renew(&mut self, door: &Current<D>) {
        if !door.is(&self.shared.door) {
            let (folder, clock) = (self.shared.folder.clone(), self.shared.clock.clone());
            self.shared = Arc::new(Shared { folder, door: door.load(), clock });
        }
    }

    pub fn folder(&self) -> &Folder {
        &self.shared.folder
    }

    pub fn subs(&self) -> &[String] {
        &self.subs
    }

    /// How long until the next look. `is_heard`: the kernel tells of changes.
    pub fn patience(&self, is_heard: bool) -> Duration {
        let usual = (self.shared.folder.settle / 2).clamp(POLL_MIN, POLL_MAX);
        match () {
            () if self.has_more => POLL_MIN,
            () if self.looks.is_empty() && is_heard => POLL_WATCHED,
            () => usual,
        }
    }

    /// Everything that happens until [`Watcher::end_report`] is noted.
    pub fn begin_report(&mut self) {
        self.report = Some(Report { folder: self.shared.folder.name.clone(), ..Report::default() });
    }

    pub fn end_report(&mut self) -> Report {
        let mut report = self.report.take().unwrap_or_default();
        let settle = self.shared.folder.settle;
        let unsettled = self.looks.keys().map(|path| Said {
            file: shown(path),
            reason: format!("it has to lie unchanged for {} s, or waits for its turn", settle.as_secs_f32()),
        });
        let aside = self.aside.iter().map(|(path, aside)| Said { file: shown(path), reason: aside.why.clone() });
        let stuck = self.stuck.iter().map(|(_, claim)| Said {
            file: shown(&OsString::from_vec(claim.name.clone())),
            reason: "it was claimed, and cannot be given its name back now (a full disk?)".to_owned(),
        });
        report.waiting = unsettled.chain(aside).chain(stuck).take(REPORT_FILES_MAX).collect();
        report.waiting.sort_by(|a, b| a.file.cmp(&b.file));
        report
    }

    /// Ends what a crash interrupted. False: try again later, take nothing before.
    pub async fn recover(&mut self) -> bool {
        let folder = self.shared.folder.name.clone();
        let claims = match self.shared.door.claims(&key(&folder, b"")) {
            Ok(claims) => claims,
            Err(error) => {
                self.say_broken(&error.to_string());
                return false;
            }
        };
        let mut settled = Batch::new();
        for (key, value) in claims {
            let Some(claim) = Claim::read(&value) else {
                error!(folder, "a record of a file taken earlier cannot be read; a .tmp file may be left over");
                continue;
            };
            let shared = Arc::clone(&self.shared);
            let tmp = claim::path(&folder, &key).to_vec();
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
        self.retry_stuck().await;
        self.forget_old(now);
        let Some(mut listing) = self.look(now).await else { return false };
        self.tell_odd(&listing);
        self.subs = std::mem::take(&mut listing.subs);
        self.has_more = listing.is_cut;
        let mut ready = self.ready(listing.found, now);
        let allowed = self.allowed(now);
        self.has_more &= ready.len() < allowed;
        ready.truncate(allowed);
        let mut round = Round::default();
        let mut tasks = JoinSet::new();
        let room = Arc::new(Semaphore::new(ROUND_KIB as usize));
        for found in ready {
            if shutdown.is_cancelled() || round.put_off >= PUT_OFF_MAX {
                break;
            }
            while tasks.len() >= FILES_AT_ONCE {
                let ended = tasks.join_next().await;
                self.note(ended, now, &mut round);
            }
            if round.queued.len() >= SETTLED_TOGETHER {
                self.settle(std::mem::take(&mut round.queued)).await;
            }
            let kib = u32::try_from(found.stamp.size / 1024 + 1).map_or(ROUND_KIB, |kib| kib.min(ROUND_KIB));
            let Ok(permit) = Arc::clone(&room).acquire_many_owned(kib).await else { break };
            let shared = Arc::clone(&self.shared);
            tasks.spawn(async move {
                let fate = shared.take(&found).await;
                drop(permit);
                (found.path, fate)
            });
        }
        while let Some(ended) = tasks.join_next().await {
            self.note(Some(ended), now, &mut round);
        }
        // Whatever keeps files from being taken is not over at once.
        self.has_more &= round.put_off == 0;
        self.settle(round.queued).await;
        true
    }

    async fn look(&mut self, now: Millis) -> Option<Listing> {
        let skip: HashSet<_> = self.aside.iter().filter(|(_, a)| a.until > now).map(|(n, _)| n.clone()).collect();
        let path = self.shared.folder.path.clone();
        let listed = spawn_blocking(move || {
            let dir = Dir::open(&path)?;
            match dir.rights()?.trouble() {
                Some(trouble) => Err(io::Error::new(io::ErrorKind::PermissionDenied, trouble)),
                None => files::list(&Arc::new(dir), LOOK_FILES_MAX, &skip),
            }
        });
        match listed.await.unwrap_or_else(|_| Err(io::ErrorKind::Other.into())) {
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
        let settle = u64::try_from(self.shared.folder.settle.as_millis()).unwrap_or(Millis::MAX);
        let before = std::mem::take(&mut self.looks);
        let mut ready = Vec::new();
        for file in found {
            let since = match before.get(&file.path) {
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
            self.looks.insert(file.path, (file.stamp, since));
        }
        ready
    }

    /// How many files may be taken now (`max_per_minute`).
    fn allowed(&mut self, now: Millis) -> usize {
        let max = self.shared.folder.max_per_minute;
        let (began, taken) = &mut self.minute;
        // Also where the clock was set back.
        if now.abs_diff(*began) >= MINUTE_MILLIS {
            (*began, *taken) = (now, 0);
        }
        if max == 0 { usize::MAX } else { max.saturating_sub(*taken) as usize }
    }

    fn note(
        &mut self,
        ended: Option<Result<(OsString, Fate), tokio::task::JoinError>>,
        now: Millis,
        round: &mut Round,
    ) {
        let folder = &self.shared.folder.name;
        let Some(Ok((path, fate))) = ended else {
            // Cancelled or panicked: its claim is open, and the file waits for the next start.
            if ended.is_some() {
                error!(folder, "taking a file failed inside postrider; restart to have it taken again");
            }
            return;
        };
        self.looks.remove(&path);
        if let Some(report) = &mut self.report {
            add_to(report, &path, &fate);
        }
        if matches!(fate, Fate::Queued { .. } | Fate::Returned { .. }) {
            self.minute.1 = self.minute.1.saturating_add(1);
        }
        match fate {
            Fate::Queued { key, claim, .. } | Fate::Returned { key, claim, .. } => {
                round.put_off = 0;
                self.aside.remove(&path);
                round.queued.push((key, claim));
            }
            Fate::Bad(_) | Fate::Unsettled => {
                self.aside.remove(&path);
            }
            Fate::Stuck { key, claim } => {
                round.put_off += 1;
                self.stuck.push((key, claim));
            }
            Fate::PutOff(reason) => {
                round.put_off += 1;
                let wait = match self.aside.get(&path) {
                    None => {
                        warn!(folder, file = ?path, reason, "file put off");
                        ASIDE_MILLIS
                    }
                    Some(aside) => (aside.wait * 2).min(ASIDE_MILLIS_MAX),
                };
                if self.aside.len() < ASIDE_MAX {
                    self.aside.insert(path, Aside { until: now + wait, wait, why: reason });
                }
            }
        }
    }

    /// Steps 4 and 5 for many files at once.
    async fn settle(&mut self, queued: Vec<Keyed>) {
        if queued.is_empty() {
            return;
        }
        let left = self.remove(queued).await;
        if !left.is_empty() {
            let Folder { name, path, .. } = &self.shared.folder;
            error!(
                folder = name,
                files = left.len(),
                "queued files cannot be removed or kept: let postrider write in {}",
                path.display()
            );
        }
        self.leftovers.extend(left);
    }

    async fn retry_leftovers(&mut self) {
        let leftovers = std::mem::take(&mut self.leftovers);
        if !leftovers.is_empty() {
            self.leftovers = self.remove(leftovers).await;
        }
    }

    async fn retry_stuck(&mut self) {
        if self.stuck.is_empty() {
            return;
        }
        let (shared, folder) = (Arc::clone(&self.shared), self.shared.folder.name.clone());
        let stuck = std::mem::take(&mut self.stuck);
        let again = stuck.clone();
        let ended = spawn_blocking(move || {
            let mut free = Batch::new();
            let still = again.into_iter().filter(|(key, claim)| {
                let ended = shared.end(claim::path(&folder, key), claim);
                if ended.is_ok() {
                    free.delete(Table::Pickup, key.as_slice());
                }
                ended.is_err()
            });
            (still.collect(), free)
        });
        let (still, free) = ended.await.unwrap_or((stuck, Batch::new()));
        self.stuck = still;
        self.drop_claims(free).await;
    }

    /// Gives those that are still there.
    async fn remove(&mut self, queued: Vec<Keyed>) -> Vec<Keyed> {
        let shared = Arc::clone(&self.shared);
        let again = queued.clone();
        let (gone, left) = spawn_blocking(move || shared.remove_all(again)).await.unwrap_or((Vec::new(), queued));
        let mut settled = Batch::new();
        gone.into_iter().for_each(|key| settled.delete(Table::Pickup, key));
        self.drop_claims(settled).await;
        left
    }

    /// A claim that stays is dropped at the next start, so failing here harms nobody.
    async fn drop_claims(&self, settled: Batch) {
        if !settled.is_empty()
            && let Err(error) = self.shared.door.write(settled).await
        {
            warn!(folder = self.shared.folder.name, %error, "claims of taken files could not be dropped");
        }
    }

    fn forget_old(&mut self, now: Millis) {
        self.aside.retain(|_, aside| aside.until + 2 * ASIDE_MILLIS_MAX > now);
    }

    fn tell_odd(&mut self, listing: &Listing) {
        let folder = &self.shared.folder.name;
        self.told.retain(|name| listing.odd.iter().any(|(odd, _)| odd == name));
        for (name, why) in &listing.odd {
            if self.told.insert(name.clone()) {
                warn!(folder, file = ?name, "file is never taken: {why}");
            }
        }
    }

    fn say_broken(&mut self, reason: &str) {
        if let Some(report) = &mut self.report {
            report.trouble = Some(reason.to_owned());
        }
        if !std::mem::replace(&mut self.broken, true) {
            let Folder { name, path, .. } = &self.shared.folder;
            error!(
                folder = name,
                reason,
                "the pickup folder {} cannot be used: it must be there and belong to postrider's user, or be \
                 writable for it; looking again until it can",
                path.display()
            );
        }
    }
}

/// A name as people may see it.
fn shown(path: &OsString) -> String {
    path.to_string_lossy().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn add_to(report: &mut Report, path: &OsString, fate: &Fate) {
    let said = |reason: &str| Said { file: shown(path), reason: reason.to_owned() };
    match fate {
        Fate::Queued { id, .. } if report.queued.len() < REPORT_FILES_MAX => {
            report.queued.push(Queued { file: shown(path), id: *id });
        }
        Fate::Bad(reason) if report.bad.len() < REPORT_FILES_MAX => report.bad.push(said(reason)),
        Fate::Returned { reason, .. } if report.returned.len() < REPORT_FILES_MAX => {
            report.returned.push(said(reason));
        }
        _ => {}
    }
}
