//! The one door: turns a draft (envelope, bytes, where it came from) into queued deliveries, or
//! refuses it. SMTP, the pickup folder, the admin socket and our own notices all pass through here,
//! so a check, a limit or a signature exists once.
//!
//! The order: limits of the content, who it is from (`rights` for our accounts, `checks` for the
//! outside), who gets it (`routing`), the loop guard, trace fields and signatures (`content`,
//! `sign`, `seal`), one synced commit. Nothing is kept of a draft that is refused.

mod attachments;
mod bounces;
mod content;
pub mod fetch;
pub mod guard;
pub mod idempotency;
mod milters;
pub mod notices;
pub mod pickup;
mod plan;
mod quota;
pub mod rehearse;
pub mod rewrite;
mod rights;
mod seal;
pub mod sign;
pub mod suppress;
mod to_operator;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::MutexGuard;
use tokio::time::timeout;

use crate::checks::feedback::Tally;
use crate::checks::{self, Checked, Verdict, identity};
use crate::clock::{Clock, DAY, Millis};
use crate::config::{Config, Role};
use crate::dns::Resolver;
use crate::events::Event;
use crate::events::journal::{Journal, Telling};
use crate::message::header::Headers;
use crate::message::{
    Address, Content, Domain, Door, Draft, Findings, HeldBy, Hold, MessageId, TlsWish, header, stream,
};
use crate::queue::record::{Answered, Message, Status};
use crate::queue::{NewMessage, Queue, memory};
use crate::routing::loops::{self, Ruling};
use crate::routing::sent::{self, Sent};
use crate::secret::Marks;
use crate::smtp::Reply;
use crate::smtp::reply::{Refusal, Severity};
use crate::store::{Batch, StoreError, Table};

use guard::DiskGuard;
use idempotency::{Key, Known};
use plan::Plan;
use quota::Quotas;
use rewrite::Author;
use sign::Signer;
use suppress::Suppression;

/// Locks under which loop counters are read and written.
const LOOP_LOCKS: usize = 64;
/// Locks under which a client's key is looked up and noted.
const KEY_LOCKS: usize = 64;
/// How long a message from a file or from the admin socket waits for memory.
const ROOM_WAIT: Duration = Duration::from_secs(10);
/// Longest subject kept for people, in characters.
const SUBJECT_CHARS_MAX: usize = 200;

/// What was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub id: MessageId,
    /// The 250 for the client.
    pub reply: Reply,
}

/// What became of a message that comes with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Once {
    pub id: MessageId,
    /// It was queued before.
    pub is_repeated: bool,
}

pub struct Intake {
    config: Arc<Config>,
    clock: Clock,
    queue: Arc<Queue>,
    journal: Arc<Journal>,
    resolver: Resolver,
    signer: Signer,
    marks: Marks,
    disk: DiskGuard,
    quotas: Quotas,
    suppression: Suppression,
    common: Arc<Common>,
}

/// What stays when the configuration changes.
#[derive(Debug)]
struct Common {
    loop_locks: Vec<tokio::sync::Mutex<()>>,
    key_locks: Vec<tokio::sync::Mutex<()>>,
    /// What domains want to hear of mail in their name.
    feedback: Tally,
    /// DNS lists whose trouble is in the log already.
    told: Mutex<BTreeSet<Domain>>,
    /// Of the budget for notices.
    notices: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Intake")
    }
}

impl Intake {
    pub fn new(
        config: Arc<Config>,
        clock: Clock,
        queue: Arc<Queue>,
        journal: Arc<Journal>,
        resolver: Resolver,
        signer: Signer,
    ) -> Result<Intake, StoreError> {
        let quotas = Quotas::load(&config, queue.store(), clock.now())?;
        let disk = DiskGuard::new(config.data_dir.clone(), config.queue.min_free);
        let locks = |count| (0..count).map(|_| tokio::sync::Mutex::new(())).collect();
        let common = Common {
            loop_locks: locks(LOOP_LOCKS),
            key_locks: locks(KEY_LOCKS),
            feedback: Tally::default(),
            told: Mutex::default(),
            notices: tokio::sync::Mutex::new(()),
        };
        let suppression = Suppression::new(config.clone(), clock.clone(), queue.clone())?;
        let marks = Marks::open(&config.data_dir).map_err(|error| {
            StoreError::Failed(format!("the key for return paths, in {}: {error}", config.data_dir.display()))
        })?;
        let common = Arc::new(common);
        Ok(Intake { config, clock, queue, journal, resolver, signer, marks, disk, quotas, suppression, common })
    }

    /// The same door under another configuration: what is counted goes on, and who holds a lock of one keeps
    /// the other waiting.
    pub fn next(&self, config: Arc<Config>, resolver: Resolver, signer: Signer) -> Result<Intake, StoreError> {
        Ok(Intake {
            quotas: self.quotas.next(&config, self.queue.store(), self.clock.now())?,
            disk: self.disk.with_min_free(config.queue.min_free),
            suppression: self.suppression.with_config(config.clone()),
            config,
            clock: self.clock.clone(),
            queue: self.queue.clone(),
            journal: self.journal.clone(),
            resolver,
            signer,
            marks: self.marks.clone(),
            common: self.common.clone(),
        })
    }

    /// By which we know our own return paths and notices again.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    pub fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }

    /// What came in, for the reports to the domains that it says it is from.
    pub fn feedback(&self) -> &Tally {
        &self.common.feedback
    }

    pub fn disk(&self) -> guard::DiskState {
        self.disk.state()
    }

    pub fn suppression(&self) -> &Suppression {
        &self.suppression
    }

    /// Do the name servers answer?
    pub fn is_resolving(&self) -> Option<bool> {
        self.resolver.is_answering()
    }

    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    pub fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// Is there disk for so many bytes more of a message that comes in?
    pub fn room_for(&self, bytes: u64) -> Result<(), Refusal> {
        self.disk.room_for(bytes)
    }

    /// Until the disk guard turns mail away.
    pub async fn turned_away(&self) {
        self.disk.turned_away().await;
    }

    /// Queues a draft. The reply says 250 only after the synced write.
    pub async fn accept(&self, draft: Draft) -> Result<Accepted, Refusal> {
        self.accept_with(draft, Batch::new()).await
    }

    /// As [`Intake::accept`]; `extra` is written in the same batch (a pickup claim, the end of the
    /// attempt that a bounce tells of).
    pub async fn accept_with(&self, draft: Draft, extra: Batch) -> Result<Accepted, Refusal> {
        let draft = self.paid(draft).await?;
        self.take(&draft, extra, None).await
    }

    /// As [`Intake::accept`], for SMTP, which has paid for the bytes and tells of whom a refused draft was.
    pub async fn accept_kept(&self, draft: &Draft) -> Result<Accepted, Refusal> {
        self.take(draft, Batch::new(), None).await
    }

    /// As [`Intake::accept`], for a door that has asked nothing yet; with a key, once.
    pub async fn submit(&self, draft: Draft, key: Option<&Key>) -> Result<Once, Refusal> {
        match key {
            Some(key) => self.accept_once(draft, key).await,
            None => {
                self.may_submit(&draft)?;
                let accepted = self.accept(draft).await?;
                Ok(Once { id: accepted.id, is_repeated: false })
            }
        }
    }

    /// What SMTP asks at MAIL and RCPT, of all recipients together.
    fn may_submit(&self, draft: &Draft) -> Result<(), Refusal> {
        let account = draft.origin.account.as_deref();
        let sender = &draft.envelope.mail_from;
        self.sender(account, sender, Some(draft.content.len()))?;
        let recipients = &draft.envelope.recipients;
        recipients.iter().try_for_each(|recipient| self.takes(Role::Submission, sender, &recipient.address))?;
        let count = recipients.len() as u64;
        account.map_or(Ok(()), |account| self.quotas.recipients(account, count, self.clock.now()))
    }

    /// As [`Intake::submit`], once for each key: asked again, it says which message the key has made.
    async fn accept_once(&self, draft: Draft, key: &Key) -> Result<Once, Refusal> {
        let lock = self.common.key_locks.get(key.lock_key() as usize % KEY_LOCKS);
        let _lock = match lock {
            Some(lock) => Some(lock.lock().await),
            None => None,
        };
        match key.find(self.queue.store(), self.clock.now()).map_err(|error| store_trouble(&error))? {
            Known::New => {
                self.may_submit(&draft)?;
                let draft = self.paid(draft).await?;
                let accepted = self.take(&draft, Batch::new(), Some(key)).await?;
                Ok(Once { id: accepted.id, is_repeated: false })
            }
            Known::Made(id) => Ok(Once { id, is_repeated: true }),
            Known::Other => Err(Refusal::plain(Reply::new(550, (6, 0), idempotency::USED))),
        }
    }

    async fn take(&self, draft: &Draft, extra: Batch, key: Option<&Key>) -> Result<Accepted, Refusal> {
        let now = self.clock.now();
        let id = self.queue.id_for(&draft.content);
        let headers = Headers::parse(draft.content.head());
        headers.within_limits().map_err(|error| Refusal::plain(Reply::new(552, (3, 4), error.to_string())))?;
        let mut reservation = None;
        if let Some(refusal) = loops::refuse_hops(&headers, self.config.loops.max_hops) {
            reservation = Some(held_instead(draft, refusal)?);
        }
        let checked = self.check(draft, &headers).await?;
        let stream = rights::stream(&self.config, draft, &headers)?;
        self.check_attachments(draft, &headers, id).await?;
        let begin = draft.envelope.not_before.map_or(now, |wanted| wanted.max(now));
        let mut plan = Plan::make(&self.config, &self.marks, draft, &headers, begin)?;
        let passed = self.ask_milters(draft, &headers, &checked, id).await?;
        // From here on others with the same counters wait, so nothing slow may follow.
        let returned = self.returned(draft, &headers, &checked.findings, id).await?;
        plan.leave_out(&self.config, &returned.taken);
        let headers = match &passed.header {
            Some(section) => Headers::apart(section, headers.body()),
            None => headers,
        };
        plan.obey(&checked.verdict, &passed);
        if let Some(hold) = reservation {
            plan.hold_all(&hold);
        }
        self.hold_for_account(&mut plan, draft);
        let (ruling, locks) = self.guard_loops(&mut plan, draft, &headers, now).await?;

        let suppressed = self.skip_suppressed(&mut plan, draft, &stream)?;

        let author = Author::of(&self.config, draft, &headers, plan.leaves().then_some(&stream));
        let is_filtered = passed.header.is_some();
        let source =
            content::Source { draft, headers: &headers, is_filtered, checked: &checked, plan: &plan, author: &author };
        let stored = content::assemble(self, &source, id, now)?;
        let mut extra = extra;
        let Ruling { writes, answers, .. } = ruling;
        for (key, value) in writes {
            extra.put(Table::Loops, key, value);
        }
        let record = message_record(draft, &headers, &stored, &plan, checked.findings, id, now);
        let answers = answers.map(|sent| Answered { id: sent.id, account: sent.account });
        let message = Message { stream, header_from: author.shown().cloned(), answers, ..record };
        let mut telling = self.journal.begin();
        tell_accepted(&mut telling, &message, draft, &plan, stored.signed, checked.authentication_results);
        extra.append(returned.tell(&mut telling, id));
        for (recipient, reason) in suppressed {
            telling.tell(id, Event::Suppressed { recipient, reason });
        }
        extra.append(telling.take_batch());
        self.remember_sent(&message, draft, &headers, &plan, &mut extra)?;
        if let Some(key) = key {
            key.note(id, now, &mut extra);
        }
        let counted = self.count(draft, now, &mut extra).await?;

        let recipients: Vec<_> = plan.deliveries.into_iter().map(|delivery| delivery.recipient).collect();
        let written = if recipients.is_empty() {
            self.queue.commit(extra, true).await
        } else {
            self.queue.enqueue(NewMessage { message, body: stored.chunks, recipients, extra }).await
        };
        drop((locks, returned));
        if let (Some(counted), Err(_)) = (counted, &written) {
            counted.give_back();
        }
        written.map_err(|error| store_trouble(&error))?;
        telling.log();
        Ok(Accepted { id, reply: Reply::new(250, (0, 0), format!("queued as {id}")) })
    }

    /// A draft whose bytes count against `queue.memory`. Those that come in by SMTP do already; a notice
    /// of ours is small, and must not wait for others.
    async fn paid(&self, draft: Draft) -> Result<Draft, Refusal> {
        if !matches!(draft.origin.door, Door::Pickup { .. } | Door::Admin | Door::Http | Door::Fetch { .. }) {
            return Ok(draft);
        }
        let Draft { envelope, content, origin } = draft;
        let held = timeout(ROOM_WAIT, self.queue.memory().take(memory::steps_of(content.len()))).await;
        let held = held.ok().flatten().ok_or_else(|| Refusal {
            reply: Reply::new(452, (3, 1), "no room for the message right now, try again later"),
            reason: "no room in queue.memory".to_owned(),
        })?;
        let head = held.bytes(content.head().clone());
        Ok(Draft { envelope, content: Content::new(head, content.rest().cloned()), origin })
    }

    /// What `accounts.*.hold` asks for.
    fn hold_for_account(&self, plan: &mut Plan, draft: &Draft) {
        let Some(name) = draft.origin.account.as_deref() else { return };
        if self.config.accounts.get(name).is_some_and(|account| account.hold) {
            plan.hold_all(&account_holds(name));
        }
    }

    /// Takes recipients away that are on the suppression list. Nobody is told but the story.
    fn skip_suppressed(&self, plan: &mut Plan, draft: &Draft, stream: &str) -> Result<Vec<(Address, String)>, Refusal> {
        let mut suppressed = Vec::new();
        if !draft.origin.door.is_trusted() || draft.origin.door == Door::Bounce {
            return Ok(suppressed);
        }
        for address in plan.remote() {
            let listed = self.suppression.listed(stream, &address).map_err(|error| store_trouble(&error))?;
            if let Some(listed) = listed {
                suppressed.push((address, suppress::why(&listed)));
            }
        }
        plan.skip(&suppressed);
        Ok(suppressed)
    }

    /// Counts its recipients against the account's limits.
    async fn count(
        &self,
        draft: &Draft,
        now: Millis,
        batch: &mut Batch,
    ) -> Result<Option<quota::Counted<'_>>, Refusal> {
        let Some(name) = draft.origin.account.as_deref() else { return Ok(None) };
        let recipients = draft.envelope.recipients.len() as u64;
        // Where there is RCPT, or `may_submit` in its place, they have counted there.
        if matches!(draft.origin.door, Door::Pickup { .. }) {
            self.quotas.recipients(name, recipients, now)?;
        }
        self.quotas.count(name, recipients, now, batch).await
    }

    /// Who it is from: rights for those who have shown who they are, checks for all others.
    async fn check(&self, draft: &Draft, headers: &Headers<'_>) -> Result<Checked, Refusal> {
        match &draft.origin.door {
            Door::Mx { .. } | Door::Fetch { .. } => {
                let ambiguous = identity::refuse_ambiguous(headers).err();
                let ambiguous = ambiguous.map(|refusal| held_instead(draft, refusal)).transpose()?;
                let now = self.clock.now();
                let mut checked = checks::check_at(&self.resolver, &self.config, draft, now / 1000).await;
                // Reports name who connected, and nobody did where the message was fetched.
                let evaluated = checked.evaluated.take().filter(|_| draft.origin.peer.is_some());
                if let Some(evaluated) = evaluated {
                    self.common.feedback.note(now / DAY, evaluated);
                }
                self.tell_once(&checked.troubles);
                if let Verdict::Reject(refusal) = checked.verdict {
                    checked.verdict = Verdict::Hold(held_instead(draft, refusal)?);
                }
                if let Some(hold) = ambiguous {
                    checked.verdict = Verdict::Hold(hold);
                }
                Ok(checked)
            }
            Door::Submission { .. } | Door::Pickup { .. } | Door::Admin | Door::Http => {
                rights::author(&self.config, draft, headers)?;
                Ok(Checked::unchecked())
            }
            Door::Bounce => Ok(Checked::unchecked()),
        }
    }

    /// Each list once: it would be the same with each message.
    fn tell_once(&self, troubles: &[(Domain, String)]) {
        for (list, text) in troubles {
            if self.common.told.lock().unwrap_or_else(PoisonError::into_inner).insert(list.clone()) {
                tracing::warn!(%list, "{text}");
            }
        }
    }

    /// Applies the loop guard to the plan. Gives what it found, with the counters to write, and the locks to
    /// keep until they are written.
    async fn guard_loops(
        &self,
        plan: &mut Plan,
        draft: &Draft,
        headers: &Headers<'_>,
        now: Millis,
    ) -> Result<(Ruling, Vec<MutexGuard<'_, ()>>), Refusal> {
        if plan.guarded().is_empty() || draft.origin.door == Door::Bounce {
            return Ok((Ruling::default(), Vec::new()));
        }
        let input = loops::Input {
            config: &self.config.loops,
            hostname: &self.config.hostname,
            marks: &self.marks,
            headers,
            content: draft.content.head(),
            mail_from: &draft.envelope.mail_from,
            recipients: plan.guarded(),
            door: &draft.origin.door,
            account: draft.origin.account.as_deref(),
            now,
        };
        let locks = self.lock(loops::lock_keys(&input)).await;
        let read = |key: &[u8]| self.queue.store().get(Table::Loops, key);
        let ruling = loops::judge(&input, read).map_err(|error| store_trouble(&error))?;
        plan.apply_loops(&self.config.loops, &draft.origin.door, &ruling)?;
        Ok((ruling, locks))
    }

    /// So that answers to it and bounces of it find it again.
    fn remember_sent(
        &self,
        message: &Message,
        draft: &Draft,
        headers: &Headers<'_>,
        plan: &Plan,
        batch: &mut Batch,
    ) -> Result<(), Refusal> {
        if !draft.origin.door.is_trusted() || !plan.leaves() || message.message_id.is_empty() {
            return Ok(());
        }
        let now = message.received_at;
        let read = |key: &[u8]| self.queue.store().get(Table::Loops, key);
        let earlier = sent::find(&sent::references(headers), now, read).map_err(|error| store_trouble(&error))?;
        let thread = earlier.map_or(message.id, |sent| sent.thread);
        let sent = Sent { id: message.id, thread, account: draft.origin.account.clone() };
        let (key, value) = sent.entry(&message.message_id, now);
        batch.put(Table::Loops, key, value);
        Ok(())
    }

    async fn lock(&self, keys: Vec<u64>) -> Vec<MutexGuard<'_, ()>> {
        let mut stripes: Vec<usize> = keys.into_iter().map(|key| key as usize % LOOP_LOCKS).collect();
        // In order, so that two messages never wait for each other.
        stripes.sort_unstable();
        stripes.dedup();
        let mut locks = Vec::with_capacity(stripes.len());
        for lock in stripes.into_iter().filter_map(|stripe| self.common.loop_locks.get(stripe)) {
            locks.push(lock.lock().await);
        }
        locks
    }
}

/// Mail that was fetched has nobody left who could be told that it is refused: a person decides. What may
/// be taken later is refused, and fetched again then.
fn held_instead(draft: &Draft, refusal: Refusal) -> Result<Hold, Refusal> {
    match &draft.origin.door {
        Door::Fetch { .. } if refusal.reply.severity() == Severity::Permanent => {
            Ok(Hold::new(HeldBy::Checks, refusal.reason))
        }
        _ => Err(refusal),
    }
}

/// Why what this account sends is held.
fn account_holds(name: &str) -> Hold {
    let reason = format!("accounts.{name}.hold is set, until `postrider queue release`");
    Hold::new(HeldBy::Account(name.to_owned()), reason)
}

fn store_trouble(error: &StoreError) -> Refusal {
    Refusal::inner(format!("the message could not be stored: {error}"))
}

fn message_record(
    draft: &Draft,
    headers: &Headers<'_>,
    stored: &content::Stored,
    plan: &Plan,
    findings: Findings,
    id: MessageId,
    now: Millis,
) -> Message {
    let subject = headers.get("subject").map(|field| header::unfold(field.value)).unwrap_or_default();
    Message {
        id,
        received_at: now,
        origin: draft.origin.clone(),
        mail_from: draft.envelope.mail_from.clone(),
        body_type: draft.envelope.body,
        smtputf8: draft.envelope.smtputf8,
        dsn: draft.envelope.dsn.clone(),
        size: stored.size,
        chunks: stored.chunks.len() as u32,
        header_from: None,
        streamed: stored.streamed,
        message_id: stored.message_id.clone(),
        subject: subject.trim().chars().take(SUBJECT_CHARS_MAX).collect(),
        findings: draft.origin.door.is_outside().then_some(findings),
        recipients: plan.deliveries.len() as u32,
        stream: stream::default_name(),
        tls: wish(draft, headers),
        not_before: draft.envelope.not_before,
        answers: None,
    }
}

/// REQUIRETLS counts more than the field (RFC 8689 4.1).
fn wish(draft: &Draft, headers: &Headers<'_>) -> TlsWish {
    let says_no = |field: &header::Field<'_>| header::unfold(field.value).trim().eq_ignore_ascii_case("no");
    match headers.all("tls-required").any(says_no) {
        _ if draft.envelope.require_tls => TlsWish::Required,
        true => TlsWish::Optional,
        false => TlsWish::Usual,
    }
}

fn tell_accepted(
    telling: &mut Telling<'_>,
    message: &Message,
    draft: &Draft,
    plan: &Plan,
    signed: Vec<String>,
    checked: String,
) {
    telling.tell(
        message.id,
        Event::Accepted {
            origin: message.origin.clone(),
            from: message.mail_from.clone(),
            recipients: draft.envelope.recipients.len() as u32,
            size: message.size,
            message_id: message.message_id.clone(),
            subject: message.subject.clone(),
            signed,
            checked: header::unfold(checked.as_bytes()),
            stream: message.stream.clone(),
        },
    );
    for (alias, to) in &plan.routed {
        telling.tell(message.id, Event::Routed { alias: alias.clone(), to: to.clone() });
    }
    for delivery in &plan.deliveries {
        if let Status::Held(hold) = &delivery.recipient.status {
            let recipient = delivery.recipient.address.clone();
            telling.tell(message.id, Event::Held { recipient, reason: hold.reason.clone() });
        }
    }
    for (recipient, reason) in &plan.discarded {
        telling.tell(message.id, Event::Discarded { recipient: recipient.clone(), reason: reason.clone() });
    }
}
