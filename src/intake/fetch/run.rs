//! One run over one mailbox.
//!
//! | step                                        | a crash after it leaves         | the next run               |
//! |---------------------------------------------|---------------------------------|----------------------------|
//! | 1 the message is read                       | nothing                         | reads it again             |
//! | 2 message, note and mark in one synced batch| queued, noted, not marked there | marks it, reads it no more |
//! | 3 marked, moved or deleted at the server    | the note says less than is true | marks it again, no harm    |
//! | 4 the note says so                          | nothing                         |                            |
//!
//! So a message comes in once, and is never lost: what is not noted is untouched in its mailbox. A message
//! that cannot be taken does not stop the others: it is put behind them the next time, and left after
//! [`TRIES_MAX`] tries.

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::Intake;
use super::collect::{Collected, Collector, Unfit};
use super::imap::AT_ONCE;
use super::mailbox::{Found, Mailbox, PRUNE_EVERY};
use super::notes::{self, Note, Notes, Print, State};
use super::wire::{Trouble, Ways};
use super::{envelope, hex};
use crate::clock::{Clock, Millis};
use crate::config::{self, After, FetchProtocol};
use crate::message::header::{Headers, message_id};
use crate::message::{Door, Draft, Origin};
use crate::queue::suspend::Suspension;
use crate::smtp::reply::{Refusal, Severity};
use crate::store::{Batch, StoreError};

/// Tries of one message before it is left where it is.
pub const TRIES_MAX: u32 = 3;
/// Messages taken in one run; the next one follows at once.
const MESSAGES_MAX: u32 = 1000;
/// Notes looked at in one go.
const NOTES_AT_ONCE: usize = 500;
/// First and longest wait before a message is tried again that may be taken later; it doubles in between.
const AGAIN: Millis = 5 * 60 * 1000;
const AGAIN_MAX: Millis = 3600 * 1000;
/// Messages that are named to people.
const NAMED_MAX: usize = 50;
/// Characters of a Message-ID that are shown.
const SHOWN_CHARS_MAX: usize = 200;

/// What a run has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// Messages that are new, and of those that could not be taken before the ones to be tried again.
    pub found: u64,
    pub fetched: u64,
    /// Known by their content although the server has numbered them anew.
    pub known: u64,
    /// Tried in vain; tried again later.
    pub failed: u64,
    /// Given up, and why: they stay in the mailbox.
    pub left: Vec<String>,
    /// There are more; another run follows.
    pub more: bool,
    /// Why it did not come to its end.
    pub error: Option<String>,
}

/// Whom a run is for.
pub struct Account<'a> {
    pub name: &'a str,
    pub settings: &'a config::Fetch,
    pub intake: &'a Intake,
    pub clock: &'a Clock,
    pub ways: &'a Ways,
    /// No further message is begun.
    pub stop: &'a CancellationToken,
    /// What was given up is tried again.
    pub by_hand: bool,
}

/// What became of a message.
enum Fate {
    Taken,
    Known,
    Gone,
    Failed,
    Left(String),
}

/// Messages of a mailbox, by their notes.
#[derive(Default)]
struct Sorted {
    /// Queued, and not marked there yet.
    unmarked: Vec<Found>,
    fresh: Vec<Found>,
    /// To be tried again.
    again: Vec<Found>,
}

fn ours(error: &StoreError) -> Trouble {
    Trouble::Ours(format!("the store: {error}"))
}

impl Account<'_> {
    fn notes(&self) -> Notes<'_> {
        Notes::new(self.intake.queue().store(), self.name, &self.settings.folder)
    }

    /// `state` is kept up to date, but not written at the end.
    pub async fn run(&self, state: &mut State, ran: &mut Ran) -> Result<(), Trouble> {
        self.room()?;
        let mut mailbox = Mailbox::open(self.ways, self.name, self.settings).await?;
        let notes = self.notes();
        let mut batch = Batch::new();
        if mailbox.renumbered(&notes, state, &self.settings.folder, &mut batch) {
            notes::save(&mut batch, self.name, state);
            self.commit(batch, true).await?;
        }
        let Sorted { mut unmarked, fresh, again } = self.sort(mailbox.list(&self.settings.after).await?).await?;
        if self.goes() && self.settings.protocol == FetchProtocol::Imap {
            unmarked = mailbox.unfinished(&notes).await?;
        }
        ran.found = (fresh.len() + again.len()) as u64;
        for found in unmarked {
            if self.is_stopped() {
                break;
            }
            self.apply(&mut mailbox, &found).await?;
        }
        for some in fresh.chunks(AT_ONCE).chain(again.chunks(AT_ONCE)) {
            if self.is_stopped() || ran.more {
                break;
            }
            for found in mailbox.sized(some).await? {
                ran.more = ran.fetched + ran.known >= u64::from(MESSAGES_MAX);
                if self.is_stopped() || ran.more {
                    break;
                }
                self.count(state, ran, self.one(&mut mailbox, state, &found).await?);
            }
        }
        self.prune(&mut mailbox, state).await?;
        mailbox.close().await
    }

    /// What a run would fetch; nothing is changed.
    pub async fn look(&self, state: &State, ran: &mut Ran) -> Result<(), Trouble> {
        let mut mailbox = Mailbox::open(self.ways, self.name, self.settings).await?;
        let mut unwritten = Batch::new();
        let is_new = mailbox.renumbered(&self.notes(), &mut state.clone(), &self.settings.folder, &mut unwritten);
        let listed = mailbox.list(&self.settings.after).await?;
        ran.found = match is_new {
            true => listed.len() as u64,
            false => {
                let Sorted { fresh, again, .. } = self.sort(listed).await?;
                (fresh.len() + again.len()) as u64
            }
        };
        mailbox.close().await
    }

    /// Does what was fetched leave the folder?
    fn goes(&self) -> bool {
        matches!(self.settings.after, After::Delete | After::Move(_))
    }

    fn is_stopped(&self) -> bool {
        let is_suspended =
            || self.intake.queue().gates().suspended().iter().any(|(what, _)| *what == Suspension::Fetch);
        self.stop.is_cancelled() || is_suspended()
    }

    /// Without room for a message none is asked for.
    fn room(&self) -> Result<(), Trouble> {
        self.intake.room_for(0).map_err(|refusal| Trouble::Ours(refusal.reason))
    }

    async fn commit(&self, batch: Batch, sync: bool) -> Result<(), Trouble> {
        if batch.is_empty() {
            return Ok(());
        }
        self.intake.queue().commit(batch, sync).await.map_err(|error| ours(&error))
    }

    async fn note(&self, found: &Found, note: &Note) -> Result<(), Trouble> {
        let mut batch = Batch::new();
        self.notes().put(&mut batch, &found.id, note);
        self.commit(batch, false).await
    }

    async fn sort(&self, listed: Vec<Found>) -> Result<Sorted, Trouble> {
        let now = self.clock.now();
        let notes = self.notes();
        let mut sorted = Sorted::default();
        let mut listed = listed.into_iter().peekable();
        while listed.peek().is_some() {
            let some: Vec<Found> = listed.by_ref().take(NOTES_AT_ONCE).collect();
            let known = notes.get_many(some.iter().map(|found| &*found.id)).map_err(|error| ours(&error))?;
            for (found, note) in some.into_iter().zip(known) {
                match note {
                    None => sorted.fresh.push(found),
                    Some(Note::Taken { applied: false }) => sorted.unmarked.push(found),
                    Some(Note::Failed { not_before, .. }) if self.by_hand || not_before <= now => {
                        sorted.again.push(found);
                    }
                    Some(Note::Left { .. }) if self.by_hand => sorted.again.push(found),
                    Some(_) => {}
                }
            }
            tokio::task::yield_now().await;
        }
        Ok(sorted)
    }

    fn count(&self, state: &mut State, ran: &mut Ran, fate: Fate) {
        match fate {
            Fate::Taken => {
                ran.fetched += 1;
                state.fetched += 1;
            }
            Fate::Known => ran.known += 1,
            Fate::Gone => {}
            Fate::Failed => ran.failed += 1,
            Fate::Left(what) => {
                warn!(account = self.name, "left in the mailbox: {what}");
                state.left += 1;
                if ran.left.len() < NAMED_MAX {
                    ran.left.push(what);
                }
            }
        }
    }

    async fn one(&self, mailbox: &mut Mailbox, state: &State, found: &Found) -> Result<Fate, Trouble> {
        self.room()?;
        let max_size = self.intake.config().limits.max_size;
        if let Some(size) = found.listed.size.filter(|size| *size > max_size) {
            let why = format!("it has {size} bytes, more than limits.max_size ({max_size})");
            return self.leave(found, None, why).await;
        }
        let mut collector = Collector::new(self.intake.queue().clone(), max_size);
        match mailbox.read(found, &mut collector).await {
            Ok(true) => {}
            Ok(false) => return Ok(Fate::Gone),
            Err(Trouble::Refused(why)) => return self.failed(found, None, why).await,
            Err(trouble) => {
                // It may be this message that the connection breaks at: the others go first the next time.
                self.failed(found, None, trouble.to_string()).await?;
                return Err(trouble);
            }
        }
        match collector.finish().await {
            Ok(collected) => self.take(mailbox, state, found, collected).await,
            Err(Unfit::Unstored(error)) => Err(ours(&error)),
            Err(unfit) => self.leave(found, None, unfit.to_string()).await,
        }
    }

    /// Queues it, and then has it marked.
    async fn take(
        &self,
        mailbox: &mut Mailbox,
        state: &State,
        found: &Found,
        collected: Collected,
    ) -> Result<Fate, Trouble> {
        let now = self.clock.now();
        let notes = self.notes();
        let headers = Headers::parse(&collected.original_header);
        let id = headers.get("message-id").and_then(|field| message_id(field.value)).unwrap_or_default();
        let print = Print { message_id: &id, size: collected.size, hash: &collected.hash };
        let taken = Note::Taken { applied: self.settings.after == After::Leave };
        if mailbox.may_be_known(found, state) && notes.has_content(&print, now).map_err(|error| ours(&error))? {
            self.note(found, &taken).await?;
            self.apply(mailbox, found).await?;
            return Ok(Fate::Known);
        }
        let config = self.intake.config();
        let Some(envelope) = envelope::envelope(config, self.settings.deliver_to.as_ref(), &headers) else {
            return self.leave(found, Some(&id), "it names no address of ours".to_owned()).await;
        };
        let door = Door::Fetch { account: self.name.to_owned() };
        let draft = Draft { envelope, content: collected.content, origin: Origin { door, account: None, peer: None } };
        let mut extra = Batch::new();
        notes.put(&mut extra, &found.id, &taken);
        // So that the count is right after a crash, too.
        notes::save(&mut extra, self.name, &State { fetched: state.fetched + 1, ..state.clone() });
        if self.settings.protocol == FetchProtocol::Imap {
            notes.put_content(&mut extra, &print, now);
        }
        match self.intake.accept_with(draft, extra).await {
            Ok(accepted) => {
                debug!(account = self.name, id = %accepted.id, "fetched");
                self.apply(mailbox, found).await?;
                Ok(Fate::Taken)
            }
            Err(refusal) => self.refused(found, &id, refusal).await,
        }
    }

    async fn refused(&self, found: &Found, id: &str, refusal: Refusal) -> Result<Fate, Trouble> {
        // 4.3.x is about this server, not about the message.
        let is_ours = refusal.reply.status().starts_with("4.3.");
        match refusal.reply.severity() {
            _ if is_ours => Err(Trouble::Ours(refusal.reason)),
            Severity::Permanent => self.failed(found, Some(id), refusal.reason).await,
            _ => self.put_off(found, id, &refusal.reason).await,
        }
    }

    /// Marks it at the server. Where that is refused it is tried again with the next run.
    async fn apply(&self, mailbox: &mut Mailbox, found: &Found) -> Result<(), Trouble> {
        if self.settings.after == After::Leave {
            return Ok(());
        }
        match mailbox.apply(found, &self.settings.after).await {
            Ok(Some(note)) => self.note(found, &note).await,
            Ok(None) => Ok(()),
            Err(Trouble::Refused(why)) => {
                warn!(account = self.name, reason = why, "a message that was fetched could not be marked there");
                Ok(())
            }
            Err(trouble) => Err(trouble),
        }
    }

    fn tries(&self, found: &Found) -> Result<u32, Trouble> {
        Ok(match self.notes().get(&found.id).map_err(|error| ours(&error))? {
            Some(Note::Failed { tries, .. }) => tries,
            _ => 0,
        })
    }

    async fn failed(&self, found: &Found, id: Option<&str>, why: String) -> Result<Fate, Trouble> {
        let tries = self.tries(found)? + 1;
        if tries >= TRIES_MAX {
            return self.leave(found, id, why).await;
        }
        warn!(account = self.name, message = self.called(found, id), reason = why, tries, "could not be fetched");
        self.note(found, &Note::Failed { tries, not_before: 0 }).await?;
        Ok(Fate::Failed)
    }

    /// What may be taken later is waited for as long as it lies there: such trouble passes.
    async fn put_off(&self, found: &Found, id: &str, why: &str) -> Result<Fate, Trouble> {
        let tries = self.tries(found)?;
        let wait = AGAIN.saturating_mul(1 << tries.min(8)).min(AGAIN_MAX);
        warn!(account = self.name, message = self.called(found, Some(id)), reason = why, "not taken yet");
        // Only failures count towards giving up.
        let note = Note::Failed { tries, not_before: self.clock.now().saturating_add(wait) };
        self.note(found, &note).await?;
        Ok(Fate::Failed)
    }

    async fn leave(&self, found: &Found, id: Option<&str>, why: String) -> Result<Fate, Trouble> {
        self.note(found, &Note::Left { why: why.clone() }).await?;
        Ok(Fate::Left(format!("{}: {why}", self.called(found, id))))
    }

    /// How people find it.
    fn called(&self, found: &Found, id: Option<&str>) -> String {
        let number = match self.settings.protocol {
            FetchProtocol::Imap => format!("UID {} in {}", found.listed.number, self.settings.folder),
            FetchProtocol::Pop3 => format!("UIDL {}", hex(&found.id)),
        };
        match id.filter(|id| !id.is_empty()) {
            Some(id) => {
                let id: String = id.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS_MAX).collect();
                format!("{number} (Message-ID {id})")
            }
            None => number,
        }
    }

    async fn prune(&self, mailbox: &mut Mailbox, state: &mut State) -> Result<(), Trouble> {
        let now = self.clock.now();
        if self.is_stopped() || (!self.goes() && now < state.pruned_at.saturating_add(PRUNE_EVERY)) {
            return Ok(());
        }
        let mut batch = Batch::new();
        mailbox.prune(&self.notes(), &mut batch).await?;
        state.pruned_at = now;
        self.commit(batch, false).await
    }
}
