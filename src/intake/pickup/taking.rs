//! Takes one file: the steps of the table in [`super`], and the ways back from each.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::claim::{self, Claim, Keyed, key, path_of, split};
use super::envelope::{self, Bad, Eml};
use super::files::{self, Dir, Found, NotNow, Stamp};
use super::notice::About;
use super::{Door, Folder, text};
use crate::clock::{Clock, rfc3339};
use crate::config::PickupDone;
use crate::message::draft::Door as CameBy;
use crate::message::{Draft, Envelope, MessageId, Origin, Recipient};
use crate::smtp::Reply;
use crate::smtp::reply::{Refusal, Severity};
use crate::store::{Batch, Table};

/// What the tasks of a folder share.
#[derive(Debug)]
pub struct Shared<D> {
    pub folder: Folder,
    pub door: Arc<D>,
    pub clock: Clock,
}

/// What became of a file.
#[derive(Debug)]
pub enum Fate {
    Queued {
        key: Vec<u8>,
        claim: Claim,
        id: MessageId,
    },
    /// Its sender gets it back.
    Returned {
        key: Vec<u8>,
        claim: Claim,
        reason: String,
    },
    Bad(String),
    /// The next look will tell.
    Unsettled,
    /// Trouble that may pass, with its reason.
    PutOff(String),
    /// It could be given neither its own name back nor that of a bad one: it has ours until that works.
    Stuck {
        key: Vec<u8>,
        claim: Claim,
    },
}

/// What reading a claimed file gave.
enum Taken {
    Message(Eml),
    /// With the file as it came.
    Bad(Bad, Vec<u8>),
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

/// A file that is claimed: where it was, its name now, and its record.
struct Claimed<'f> {
    found: &'f Found,
    tmp: OsString,
    key: Vec<u8>,
    claim: Claim,
}

impl Claimed<'_> {
    fn done(&self) -> Claim {
        Claim { done: true, ..self.claim.clone() }
    }
}

impl<D: Door> Shared<D> {
    /// Steps 1 to 3 for one file.
    pub async fn take(self: &Arc<Self>, found: &Found) -> Fate {
        let (file, tmp) = match self.blocking(found, Shared::open).await {
            Ok(Opened::Ready(file, tmp)) => (file, tmp),
            Ok(Opened::Fate(fate)) => return fate,
            Err(error) => return Fate::PutOff(error.to_string()),
        };
        let key = key(&self.folder.name, &path_of(found.stream.as_deref(), &tmp));
        let claim = Claim { name: found.path.as_bytes().to_vec(), stamp: found.stamp, done: false };
        if let Err(error) = self.door.write(claim.put(&key)).await {
            return Fate::PutOff(error.to_string());
        }
        let claimed = Claimed { found, tmp: tmp.clone(), key, claim };
        // The file stays open, and so locked, until it is queued.
        let read = self.blocking(found, move |shared, found| shared.claim(found, &file, &tmp).map(|t| (file, t)));
        let (_lock, taken) = match read.await {
            Ok((file, taken)) => (file, taken),
            Err(error) => return self.put_back(&claimed, Fate::PutOff(error.to_string())).await,
        };
        match taken {
            Taken::Message(eml) => self.hand_in(&claimed, eml).await,
            Taken::Bad(Bad { reason, envelope: None }, _) => self.put_bad(&claimed, reason).await,
            Taken::Bad(Bad { reason, envelope: Some(envelope) }, file) => {
                let refusal = Refusal::plain(Reply::new(552, (3, 4), reason));
                self.turn_back(&claimed, &envelope, &text::with_crlf(&file), &refusal).await
            }
            Taken::Changed => self.put_back(&claimed, Fate::Unsettled).await,
            Taken::NotMoved(error) => self.unclaim(&claimed, Ok(()), Fate::PutOff(error.to_string())).await,
        }
    }

    /// Step 3.
    async fn hand_in(self: &Arc<Self>, claimed: &Claimed<'_>, eml: Eml) -> Fate {
        let Eml { mut envelope, content, .. } = eml;
        let content = Bytes::from(content);
        if let Some(refusal) = self.refusal(&envelope) {
            return self.turn_back(claimed, &envelope, &content, &refusal).await;
        }
        let all = std::mem::take(&mut envelope.recipients);
        let mut refused: Vec<(Recipient, Refusal)> = Vec::new();
        for recipient in all {
            match self.door.recipient(&recipient.address) {
                Err(refusal) if refusal.reply.severity() == Severity::Permanent => refused.push((recipient, refusal)),
                // What passes is for `accept` to say.
                _ => envelope.recipients.push(recipient),
            }
        }
        if envelope.recipients.is_empty() {
            let reason = why(&refused);
            return self.give_back(claimed, (&envelope, &content), &refused, reason).await;
        }
        if !refused.is_empty()
            && let Some(put_off) = self.tell(claimed, (&envelope, &content), &refused).await
        {
            return self.put_back(claimed, put_off).await;
        }
        let draft =
            Draft { envelope: envelope.clone(), content: content.clone().into(), origin: self.origin(claimed.found) };
        match self.door.accept(draft, claimed.done().put(&claimed.key)).await {
            Ok(id) => {
                info!(folder = self.folder.name, file = ?claimed.found.path, %id, "file queued");
                Fate::Queued { key: claimed.key.clone(), claim: claimed.done(), id }
            }
            Err(refusal) if refusal.reply.severity() == Severity::Permanent => {
                self.turn_back(claimed, &envelope, &content, &refusal).await
            }
            Err(refusal) => self.put_back(claimed, Fate::PutOff(refusal.reason)).await,
        }
    }

    /// Limits that SMTP has at RCPT.
    fn refusal(&self, envelope: &Envelope) -> Option<Refusal> {
        let (count, max) = (envelope.recipients.len(), self.folder.max_recipients);
        let text = format!("the message has {count} recipients; {max} are allowed");
        (count > max).then(|| Refusal::plain(Reply::new(550, (5, 3), text)))
    }

    fn origin(&self, found: &Found) -> Origin {
        let file = found.path.to_string_lossy().chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        let door = CameBy::Pickup { folder: self.folder.name.clone(), file, owner: Some(found.owner) };
        Origin { door, account: self.folder.account.clone(), peer: None }
    }

    /// Tells the sender of those who do not get it, while the others do. Gives trouble that may pass.
    async fn tell(
        &self,
        claimed: &Claimed<'_>,
        (envelope, content): (&Envelope, &[u8]),
        refused: &[(Recipient, Refusal)],
    ) -> Option<Fate> {
        let (folder, file) = (&self.folder.name, &claimed.found.path);
        warn!(folder, ?file, reason = why(refused), "the message is not taken for some of its recipients");
        let refused: Vec<_> = refused.iter().map(|(recipient, refusal)| (recipient, refusal)).collect();
        let origin = self.origin(claimed.found);
        let about = About { envelope, content, origin: &origin, refused: &refused, in_its_place: false };
        let refusal = self.door.accept(self.door.notice(&about)?, Batch::new()).await.err()?;
        (refusal.reply.severity() == Severity::Transient).then_some(Fate::PutOff(refusal.reason))
    }

    /// The message may be sent to nobody, for this reason.
    async fn turn_back(
        self: &Arc<Self>,
        claimed: &Claimed<'_>,
        envelope: &Envelope,
        content: &[u8],
        refusal: &Refusal,
    ) -> Fate {
        let refused: Vec<_> = envelope.recipients.iter().map(|all| (all.clone(), refusal.clone())).collect();
        self.give_back(claimed, (envelope, content), &refused, refusal.reason.clone()).await
    }

    /// To the sender if that may be, in place of the message; else aside.
    async fn give_back(
        self: &Arc<Self>,
        claimed: &Claimed<'_>,
        (envelope, content): (&Envelope, &[u8]),
        refused: &[(Recipient, Refusal)],
        reason: String,
    ) -> Fate {
        let refused: Vec<_> = refused.iter().map(|(recipient, refusal)| (recipient, refusal)).collect();
        let origin = self.origin(claimed.found);
        let about = About { envelope, content, origin: &origin, refused: &refused, in_its_place: true };
        let Some(notice) = self.door.notice(&about) else { return self.put_bad(claimed, reason).await };
        match self.door.accept(notice, claimed.done().put(&claimed.key)).await {
            Ok(_) => {
                warn!(folder = self.folder.name, file = ?claimed.found.path, reason, "file went back to its sender");
                Fate::Returned { key: claimed.key.clone(), claim: claimed.done(), reason }
            }
            Err(refusal) if refusal.reply.severity() == Severity::Permanent => self.put_bad(claimed, reason).await,
            Err(refusal) => self.put_back(claimed, Fate::PutOff(refusal.reason)).await,
        }
    }

    /// Opens and locks; a file that cannot be a message is put aside at once.
    fn open(&self, found: &Found) -> io::Result<Opened> {
        let file = match files::open_locked(&found.dir, &found.name, &found.stamp) {
            Ok(file) => file,
            Err(NotNow::Changed) => return Ok(Opened::Fate(Fate::Unsettled)),
            Err(NotNow::Locked) => return Ok(Opened::Fate(Fate::PutOff("a program holds a lock on it".into()))),
            Err(NotNow::Failed(error)) => return Err(error),
        };
        if let Some(reason) = self.folder.why_bad(found)? {
            files::put_bad(&found.dir, &found.name, &found.name, &reason, &self.time())?;
            warn!(folder = self.folder.name, file = ?found.path, reason, "file cannot be sent");
            return Ok(Opened::Fate(Fate::Bad(reason)));
        }
        let tmp = files::free_name(&found.dir, &found.name, ".tmp", &self.time());
        let tmp = tmp.ok_or_else(|| io::Error::other("every name for its .tmp is taken"))?;
        Ok(Opened::Ready(file, tmp))
    }

    /// Renames and reads.
    fn claim(&self, found: &Found, file: &std::fs::File, tmp: &OsStr) -> io::Result<Taken> {
        if let Err(error) = files::rename(&found.dir, &found.name, &found.dir, tmp) {
            return Ok(Taken::NotMoved(error));
        }
        // Another file may have been renamed over the one we opened.
        if found.dir.stamp(tmp)? != Some(found.stamp) {
            return Ok(Taken::Changed);
        }
        let Some(bytes) = files::read_all(file, &found.stamp)? else { return Ok(Taken::Changed) };
        let read = envelope::read_eml(&bytes, self.folder.format, found.stream.as_deref());
        Ok(read.map_or_else(|bad| Taken::Bad(bad, bytes), Taken::Message))
    }

    /// Undoes steps 2 and 1. Whatever file lies under the name by now, it is the one we moved there.
    async fn put_back(self: &Arc<Self>, claimed: &Claimed<'_>, fate: Fate) -> Fate {
        let tmp = claimed.tmp.clone();
        let renamed = self.blocking(claimed.found, move |shared, found| {
            files::rename_free((&found.dir, &tmp), (&found.dir, &found.name), ".eml", &shared.time())?;
            found.dir.sync()
        });
        self.unclaim(claimed, renamed.await, fate).await
    }

    async fn put_bad(self: &Arc<Self>, claimed: &Claimed<'_>, reason: String) -> Fate {
        warn!(folder = self.folder.name, file = ?claimed.found.path, reason, "file cannot be sent");
        let (tmp, fate) = (claimed.tmp.clone(), Fate::Bad(reason.clone()));
        let renamed = self.blocking(claimed.found, move |shared, found| {
            files::put_bad(&found.dir, &tmp, &found.name, &reason, &shared.time())?;
            found.dir.sync()
        });
        self.unclaim(claimed, renamed.await, fate).await
    }

    async fn unclaim(&self, claimed: &Claimed<'_>, renamed: io::Result<()>, fate: Fate) -> Fate {
        let (folder, file) = (&self.folder.name, &claimed.found.path);
        if let Err(error) = renamed {
            // The claim stays open: the next look puts the file back, or the next start.
            tracing::error!(folder, ?file, %error, "a claimed file cannot be renamed");
            return Fate::Stuck { key: claimed.key.clone(), claim: claimed.claim.clone() };
        }
        let mut batch = Batch::new();
        batch.delete(Table::Pickup, claimed.key.as_slice());
        if let Err(error) = self.door.write(batch).await {
            warn!(folder, %error, "the claim of a file could not be dropped");
        }
        fate
    }

    /// Removes queued files and syncs the folders; gives the keys of those that are gone, and the rest.
    pub fn remove_all(&self, queued: Vec<Keyed>) -> (Vec<Vec<u8>>, Vec<Keyed>) {
        let Ok(mut dirs) = Dirs::open(&self.folder) else { return (Vec::new(), queued) };
        let (gone, mut left): (Vec<_>, Vec<_>) = queued.into_iter().partition(|(key, claim)| {
            let tmp = claim::path(&self.folder.name, key);
            self.finish(&mut dirs, tmp, claim, |there| there.is_same_content(&claim.stamp)).is_ok()
        });
        if dirs.sync().is_err() {
            left.extend(gone);
            return (Vec::new(), left);
        }
        (gone.into_iter().map(|(key, _)| key).collect(), left)
    }

    /// Removes or keeps a file whose message is queued.
    fn finish(&self, dirs: &mut Dirs, path: &[u8], claim: &Claim, is_ours: impl Fn(&Stamp) -> bool) -> io::Result<()> {
        let (sub, name) = split(path);
        // Without its folder it is gone too.
        let Some(dir) = dirs.sub(sub)? else { return Ok(()) };
        if self.folder.done == PickupDone::Delete {
            return files::remove_same(&dir, &name, is_ours);
        }
        if dir.stamp(&name)?.is_none_or(|there| !is_ours(&there)) {
            return Ok(());
        }
        let (_, to) = split(&claim.name);
        files::rename_free((&dir, &name), (&*dirs.archive()?, &to), ".eml", &self.time()).map(drop)
    }

    /// Ends a claim of an earlier run: a queued file goes, any other gets its name back.
    pub fn end(&self, tmp: &[u8], claim: &Claim) -> io::Result<()> {
        let mut dirs = Dirs::open(&self.folder)?;
        if claim.done {
            self.finish(&mut dirs, tmp, claim, |there| there.is_same_content(&claim.stamp))?;
            // After a power cut the rename may not have happened although the message is queued. The
            // same name, size and time can be a copy sent on purpose; the same inode cannot.
            let is_same = |there: &Stamp| there.inode == claim.stamp.inode && there.is_same_content(&claim.stamp);
            self.finish(&mut dirs, &claim.name, claim, is_same)?;
            return dirs.sync();
        }
        let ((sub, tmp), (_, name)) = (split(tmp), split(&claim.name));
        let Some(dir) = dirs.sub(sub)? else { return Ok(()) };
        match dir.stamp(&tmp)? {
            Some(there) if there.is_same_content(&claim.stamp) || there.is_same_file(&claim.stamp) => {
                files::rename_free((&dir, &tmp), (&dir, &name), ".eml", &self.time())?;
                dir.sync()
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

impl Folder {
    /// Why a file cannot be a message, as far as that shows before it is read.
    pub(super) fn why_bad(&self, found: &Found) -> io::Result<Option<String>> {
        let (size, owner) = (found.stamp.size, found.owner);
        if size == 0 {
            return Ok(Some("the file is empty".to_owned()));
        }
        if size > self.max_size {
            return Ok(Some(format!("the file has {size} bytes; limits.max_size allows {}", self.max_size)));
        }
        if let Some(stream) = found.stream.as_ref().filter(|stream| !self.streams.contains(stream)) {
            let account = self.account.as_deref().unwrap_or_default();
            return Ok(Some(format!(
                "the account {account} may not send by the stream {stream}, which this sub-folder stands for; it is \
                 not among accounts.{account}.streams"
            )));
        }
        let allowed = found.dir.rights()?.allows(owner);
        Ok((!allowed).then(|| format!("the file belongs to the user {owner}, who cannot write to this folder")))
    }
}

fn why(refused: &[(Recipient, Refusal)]) -> String {
    refused.first().map(|(_, refusal)| refusal.reason.clone()).unwrap_or_default()
}

/// A folder and those in it, each opened once.
struct Dirs {
    root: Arc<Dir>,
    subs: HashMap<OsString, Arc<Dir>>,
    archive: Option<Arc<Dir>>,
}

impl Dirs {
    fn open(folder: &Folder) -> io::Result<Dirs> {
        Ok(Dirs { root: Arc::new(Dir::open(&folder.path)?), subs: HashMap::new(), archive: None })
    }

    /// None: it is not there any more.
    fn sub(&mut self, name: Option<OsString>) -> io::Result<Option<Arc<Dir>>> {
        let Some(name) = name else { return Ok(Some(self.root.clone())) };
        if let Some(dir) = self.subs.get(&name) {
            return Ok(Some(dir.clone()));
        }
        match self.root.sub(&name) {
            Ok(dir) => {
                let dir = Arc::new(dir);
                self.subs.insert(name, dir.clone());
                Ok(Some(dir))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn archive(&mut self) -> io::Result<Arc<Dir>> {
        match &self.archive {
            Some(dir) => Ok(dir.clone()),
            None => Ok(self.archive.insert(Arc::new(self.root.archive()?)).clone()),
        }
    }

    /// What was moved is in its new place before it is gone from the old one.
    fn sync(&self) -> io::Result<()> {
        let mut all = self.archive.iter().chain([&self.root]).chain(self.subs.values());
        all.try_for_each(|dir| dir.sync())
    }
}
