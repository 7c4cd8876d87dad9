//! What the outcomes of an attempt mean: the queue's next step, the story, and who is told.
//!
//! Outcomes of which the sender is told the same become one batch, and the notice is queued in that
//! batch, so a crash can neither lose it nor send it twice.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::bounce::backscatter;
use crate::bounce::dsn::{self, Action, Notice};
use crate::clock::{Clock, Millis};
use crate::config::{Archive, ArchivePer, Config};
use crate::events::Event;
use crate::events::journal::{self, Journal};
use crate::intake::Intake;
use crate::intake::notices::Leave;
use crate::intake::suppress::Guards;
use crate::message::{Address, Door, Draft, Envelope, HeldBy, Hold, MessageId, Notify, Origin, ReversePath};
use crate::queue::record::{Failure, Message, Recipient, Route, Status};
use crate::queue::schedule::{self, Next};
use crate::queue::suspend::Suspension;
use crate::queue::{Queue, Step};
use crate::routing::{capture, notice_id, outbound};
use crate::smtp::Reply;
use crate::smtp::reply::Severity;
use crate::store::{Batch, StoreError};

use super::standing::tries_until;
use super::{Delivered, Hop, Job, Outcome, put_off};

/// Wait between tries to write a result down. Until it is written the claim stays, so nothing is
/// delivered twice because the disk was full.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// How the reason begins for which mail is held that a target has not taken in time.
pub const DEAD_LETTER: &str = "dead letter";

fn place(address: &Address, route: &Route) -> String {
    match route {
        Route::Remote => format!("forward to {address}"),
        Route::Target(name) => format!("target {name}"),
    }
}

/// Writes down what attempts did.
#[derive(Debug)]
pub struct Settler {
    pub config: Arc<Config>,
    pub clock: Clock,
    pub journal: Arc<Journal>,
    pub intake: Arc<Intake>,
}

/// What the sender is told of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tell {
    Nothing,
    Failed,
    Expired,
    Delayed,
    Delivered,
    Relayed,
}

/// What an outcome means for one recipient.
struct Decided {
    tell: Tell,
    event: Event,
    /// Why, where the sender is told; of a success, who has it and what that said.
    why: Option<Failure>,
    after: Option<Recipient>,
    /// Recipients that take its place.
    added: Vec<Recipient>,
    /// Its reader calls it spam.
    complains: bool,
}

/// Steps that are written together, with the one notice that tells of them.
#[derive(Default)]
struct Group {
    steps: Vec<Step>,
    added: Vec<Recipient>,
    events: Vec<Event>,
    about: Vec<(Recipient, Failure)>,
    /// Recipients it was sent to, where copies are kept.
    sent: Vec<Recipient>,
    /// Who calls it spam.
    complaints: Vec<Address>,
}

impl Settler {
    /// Records the outcomes and gives the claims back.
    pub async fn settle(&self, queue: &Queue, job: Job, outcomes: Vec<(u32, Outcome)>) {
        let id = job.message.id;
        let mut groups = self.decide(&job, outcomes);
        // Before the lock: it may have to wait for memory, which others hold until they had the lock.
        let original = self.original(&job, &groups).await;
        let lock = queue.lock(id).await;
        self.add_copies(queue, &job.message, &mut groups);
        let mut suspended = Vec::new();
        for (tell, group) in groups {
            while let Err(error) = self.write(queue, &job, tell, &group, &original).await {
                tracing::error!(%id, %error, "the result of an attempt cannot be written; trying again");
                tokio::time::sleep(WRITE_AGAIN).await;
            }
            queue.release(&job.message, &group.steps, &group.added);
            suspended.extend(group.steps.iter().filter(|step| waits_for_a_way(step)).map(|step| step.number));
        }
        drop(lock);
        for number in suspended {
            self.unless_resumed(queue, &job.message, number).await;
        }
    }

    /// Who resumes a smart host or a target releases what is held for it: what was written after that has
    /// to be released here.
    async fn unless_resumed(&self, queue: &Queue, message: &Message, number: u32) {
        let mut telling = self.journal.begin();
        let now = self.clock.now();
        let changed = queue.change(message.id, number, |message, before| {
            let Status::Held(hold) = &before.status else { return None };
            let is_still = match Suspension::behind(&hold.by)? {
                Suspension::SmartHost(host) => queue.gates().is_host_suspended(&host, &message.stream),
                Suspension::Target(name) => queue.gates().is_target_paused(&name),
                Suspension::All | Suspension::Stream(_) | Suspension::Fetch => true,
            };
            if is_still {
                return None;
            }
            telling.tell(message.id, Event::Released { recipient: before.address.clone() });
            let after = Recipient { status: Status::Waiting { due: now }, ..before.clone() };
            Some((Some(after), telling.take_batch()))
        });
        match changed.await {
            Ok(true) => telling.log(),
            Ok(false) => {}
            Err(error) => {
                let id = message.id;
                tracing::error!(%id, %error, "what was held for a way out that is resumed could not be released; release it");
            }
        }
    }

    /// The beginning of the message, if the sender may have to be told of it.
    async fn original(&self, job: &Job, groups: &BTreeMap<Tell, Group>) -> Bytes {
        if groups.keys().all(|tell| *tell == Tell::Nothing) {
            return Bytes::new();
        }
        loop {
            match job.body.beginning(dsn::ORIGINAL_BYTES_MAX).await {
                Ok(original) => return original,
                // The record will not get better, and the sender has to be told all the same.
                Err(StoreError::Damaged(_)) => return Bytes::new(),
                Err(error) => {
                    tracing::error!(id = %job.message.id, %error, "a message cannot be read to tell of it; trying again");
                    tokio::time::sleep(WRITE_AGAIN).await;
                }
            }
        }
    }

    /// By what the sender is told, so that each notice is written with the steps it tells of.
    fn decide(&self, job: &Job, outcomes: Vec<(u32, Outcome)>) -> BTreeMap<Tell, Group> {
        let mut groups: BTreeMap<Tell, Group> = BTreeMap::new();
        let mut outcomes: HashMap<u32, Outcome> = outcomes.into_iter().collect();
        for (number, recipient) in &job.recipients {
            let silent = || {
                let why = Failure::local("4.3.0", "", "the attempt ended without a result");
                Outcome::Defer { why, not_before_secs: None }
            };
            let outcome = outcomes.remove(number).unwrap_or_else(silent);
            let is_sent = recipient.route == Route::Remote && matches!(outcome, Outcome::Delivered(_));
            let decided = match self.step(&job.message, *number, recipient, outcome) {
                decided if recipient.route.is_archive() => of_copy(decided),
                decided => decided,
            };
            let group = groups.entry(decided.tell).or_default();
            if is_sent && !self.config.archive.is_empty() {
                group.sent.push(recipient.clone());
            }
            group.steps.push(Step { number: *number, before: recipient.clone(), after: decided.after });
            group.added.extend(decided.added);
            group.complaints.extend(decided.complains.then(|| recipient.address.clone()));
            group.events.push(decided.event);
            group.about.extend(decided.why.map(|why| (recipient.clone(), why)));
        }
        groups
    }

    /// Queues the copies for what was sent, with the step that notes it. Under the lock of the message.
    fn add_copies(&self, queue: &Queue, message: &Message, groups: &mut BTreeMap<Tell, Group>) {
        if groups.values().all(|group| group.sent.is_empty()) {
            return;
        }
        let mut is_kept = message.recipients > 1 && is_archived(queue, message.id);
        for group in groups.values_mut() {
            for recipient in std::mem::take(&mut group.sent) {
                let wanted = |archive: &&Archive| archive.per == ArchivePer::Recipient || !is_kept;
                let copies = self.config.archive.iter().filter(wanted);
                group.added.extend(copies.map(|archive| copy(&recipient, archive, self.clock.now())));
                is_kept = true;
            }
        }
    }

    fn step(&self, message: &Message, number: u32, recipient: &Recipient, outcome: Outcome) -> Decided {
        let attempt = recipient.attempts + 1;
        let address = recipient.address.clone();
        let now = self.clock.now();
        match outcome {
            Outcome::Delivered(done) => delivered(recipient, done, attempt),
            Outcome::Held(hold) => {
                let event = Event::Held { recipient: address, reason: hold.reason.clone() };
                untold(event, Some(Recipient { status: Status::Held(hold), ..recipient.clone() }))
            }
            Outcome::Suppressed(reason) => untold(Event::Suppressed { recipient: address, reason }, None),
            Outcome::Captured => {
                untold(Event::Captured { recipient: address }, Some(captured(recipient, attempt, now)))
            }
            Outcome::Complained => {
                let (to, reply) =
                    (capture::DOMAIN.to_owned(), "250 2.0.0 taken, and called spam by its reader".to_owned());
                let event = Event::Delivered { recipient: address, to, reply, tls: None, attempt };
                let after = captured(recipient, attempt, now);
                Decided { complains: true, ..untold(event, Some(after)) }
            }
            Outcome::Fail(why) => {
                let event = Event::Failed { recipient: address, why: why.clone(), attempt };
                Decided { tell: Tell::Failed, why: Some(why), ..untold(event, None) }
            }
            Outcome::Rerouted(places) => {
                let to = places.iter().map(|(address, route)| place(address, route)).collect();
                let status = Status::Waiting { due: now };
                let alias = recipient.alias.clone().or_else(|| Some(recipient.address.clone()));
                let copy = |(address, route)| Recipient {
                    address,
                    route,
                    alias: alias.clone(),
                    status: status.clone(),
                    by_hand: None,
                    ..recipient.clone()
                };
                let added = places.into_iter().map(copy).collect();
                Decided { added, ..untold(Event::Routed { alias: address, to }, None) }
            }
            Outcome::NotTried { why, until } => self.not_tried(message, recipient, why, until),
            Outcome::Defer { why, not_before_secs } => {
                let retry = &self.config.delivery.retry;
                let not_before = not_before_secs.map(|secs| now + secs.saturating_mul(1000));
                let counted = if recipient.by_hand.is_some() { recipient.attempts.max(1) } else { attempt };
                let began = recipient.tried_from(message);
                match schedule::next(retry, began, counted, now, not_before, (message.id, number)) {
                    Next::GiveUp => given_up(recipient, why, attempt),
                    Next::TryAt(next) => {
                        // A try by hand leaves the next one where it was.
                        let planned = recipient.by_hand.filter(|planned| *planned > now);
                        let next = planned.map_or(next, |planned| planned.max(not_before.unwrap_or(0)));
                        self.deferred(message, recipient, why, (attempt, counted), next)
                    }
                }
            }
        }
    }

    /// The sender is told that it is late, or that its time is up; a try it is not.
    fn not_tried(&self, message: &Message, recipient: &Recipient, why: Failure, until: Millis) -> Decided {
        let expires = put_off::expires(&self.config.delivery.retry, message, recipient, &why);
        let tries = recipient.attempts;
        if self.clock.now() >= expires {
            return given_up(recipient, why, tries);
        }
        let decided = self.deferred(message, recipient, why, (tries, tries), until.min(expires));
        let after = decided.after.map(|after| Recipient { by_hand: recipient.by_hand, ..after });
        Decided { after, ..decided }
    }

    /// `counted`: tries that have failed, without those by hand.
    fn deferred(
        &self,
        message: &Message,
        recipient: &Recipient,
        why: Failure,
        (attempt, counted): (u32, u32),
        next: Millis,
    ) -> Decided {
        let late = self.config.delivery.retry.delay_notice.is_some_and(|notice| {
            self.clock.now().saturating_sub(recipient.tried_from(message))
                >= u64::try_from(notice.as_millis()).unwrap_or(u64::MAX)
        });
        let notify = late && !recipient.delay_notified;
        let after = Recipient {
            status: Status::Waiting { due: next },
            attempts: counted,
            last_failure: Some(why.clone()),
            delay_notified: recipient.delay_notified || notify,
            by_hand: None,
            ..recipient.clone()
        };
        let address = recipient.address.clone();
        let event = match why.unsure {
            true => Event::Unsure { recipient: address, why: why.clone(), attempt, next },
            false => Event::Deferred { recipient: address, why: why.clone(), attempt, next },
        };
        let deferred = untold(event, Some(after));
        if notify { Decided { tell: Tell::Delayed, why: Some(why), ..deferred } } else { deferred }
    }

    /// A group in one batch, its notice included.
    async fn write(&self, queue: &Queue, job: &Job, tell: Tell, group: &Group, original: &[u8]) -> Result<(), String> {
        let id = job.message.id;
        let leave = self.leave(job, tell, group).await.map_err(|error| error.to_string())?;
        let mut telling = self.journal.begin();
        for event in &group.events {
            telling.tell(id, event.clone());
        }
        for recipient in group.complaints.iter().cloned() {
            // As in a report of a provider; there is none, so the message itself has to stand for it.
            let (kind, agent) = ("abuse".to_owned(), capture::DOMAIN.to_owned());
            telling.tell(id, Event::Complained { recipient, kind, agent, message: id, report: id });
        }
        let withheld = self.withheld(job, tell, group);
        if let Some(event) = &withheld {
            telling.tell(id, event.clone());
        }
        if let (ReversePath::Address(sender), Some(reason)) = (&job.message.mail_from, leave.withheld()) {
            telling.tell(id, Event::Discarded { recipient: sender.clone(), reason });
        }
        let steps = queue.step_batch(&job.message, &group.steps, &group.added);
        let mut batch = steps.map_err(|error| error.to_string())?;
        batch.append(telling.take_batch());
        let counted = self.count(&job.message, group, &mut batch).await;
        let _guards = counted.map_err(|error| error.to_string())?;
        let notice = withheld.is_none().then(|| self.notice(job, tell, group, &leave, original)).flatten();
        if let Some((draft, event)) = notice {
            let mut told = self.journal.begin();
            told.tell(id, event);
            let mut carried = batch.clone();
            carried.append(told.take_batch());
            carried.append(leave.batch());
            match self.intake.accept_with(draft, carried).await {
                Ok(_) => {
                    telling.log();
                    told.log();
                    return Ok(());
                }
                Err(refusal) if refusal.reply.severity() == Severity::Transient => return Err(refusal.reason),
                // A notice that can never be queued must not keep the step from being written.
                Err(refusal) => tracing::warn!(%id, reason = refusal.reason, "the notice to the sender was refused"),
            }
        }
        queue.commit(batch, false).await.map_err(|error| error.to_string())?;
        telling.log();
        Ok(())
    }

    /// What the suppression list has to know of a group, and bounces that come back later.
    async fn count(&self, message: &Message, group: &Group, batch: &mut Batch) -> Result<Guards<'_>, StoreError> {
        let steps = || group.steps.iter().zip(&group.events).filter(|(step, _)| step.before.route == Route::Remote);
        if outbound::has_verp(&self.config, message) {
            let sent = steps().filter(|(_, event)| matches!(event, Event::Delivered { .. }));
            let sent = sent.map(|(step, _)| (step.number, &step.before.address));
            self.intake.remember_tokens(message.id, sent, batch);
        }
        let failed = steps().filter_map(|(_, event)| match event {
            Event::Failed { recipient, why, .. } | Event::Expired { recipient, why, .. } => Some((recipient, why)),
            _ => None,
        });
        if !group.complaints.is_empty() {
            // Never together with failures: of those the sender is told.
            let guards = self.intake.suppression().lock(&group.complaints).await;
            for address in &group.complaints {
                self.intake.suppression().complained(address, message.id, batch)?;
            }
            return Ok(guards);
        }
        let (counted, guards) = self.intake.suppression().refused(message, &failed.collect::<Vec<_>>()).await?;
        batch.append(counted);
        Ok(guards)
    }

    fn action(&self, job: &Job, tell: Tell, group: &Group) -> Option<Action> {
        let retry_for = u64::try_from(self.config.delivery.retry.expire.as_millis()).unwrap_or(u64::MAX);
        Some(match tell {
            Tell::Nothing => return None,
            Tell::Failed => Action::Failed,
            Tell::Expired => Action::Expired,
            Tell::Delayed => {
                // What waits for its turn may be due later than that.
                let due = group.steps.iter().filter_map(|step| due(step.after.as_ref()?)).max().unwrap_or(0);
                Action::Delayed { until: job.message.tried_from().saturating_add(retry_for).max(due) }
            }
            Tell::Delivered => Action::Delivered,
            Tell::Relayed => Action::Relayed,
        })
    }

    /// The line of the story where the sender would be told, and may not be who wrote.
    fn withheld(&self, job: &Job, tell: Tell, group: &Group) -> Option<Event> {
        let action = self.action(job, tell, group)?;
        let wanted = group.about.iter().filter(|(recipient, _)| dsn::wanted(&job.message, recipient, action));
        let names: Vec<String> = wanted.map(|(recipient, _)| recipient.address.to_string()).collect();
        let sender = job.message.mail_from.address().filter(|_| !names.is_empty())?.clone();
        let why = backscatter::refusal(&job.message)?;
        Some(Event::NoticeWithheld { sender, about: names.join(", "), why })
    }

    /// Of whom in the group the sender may be told: within the budget, where it is an outsider. One who is not told
    /// at all (`withheld`) uses nothing up.
    async fn leave(&self, job: &Job, tell: Tell, group: &Group) -> Result<Leave<'_>, StoreError> {
        let Some(action) = self.action(job, tell, group) else { return Ok(Leave::none()) };
        let wanted = group.about.iter().map(|(recipient, _)| recipient);
        let wanted: Vec<&Recipient> = wanted.filter(|one| dsn::wanted(&job.message, one, action)).collect();
        if wanted.is_empty() || backscatter::refusal(&job.message).is_some() {
            return Ok(Leave::none());
        }
        self.intake.may_tell(&job.message, &wanted).await
    }

    /// The notice to the sender and the line of the story, if one is wanted by anybody in the group.
    fn notice(
        &self,
        job: &Job,
        tell: Tell,
        group: &Group,
        leave: &Leave<'_>,
        original: &[u8],
    ) -> Option<(Draft, Event)> {
        let message = &job.message;
        let ReversePath::Address(sender) = &message.mail_from else { return None };
        let action = self.action(job, tell, group)?;
        let mut wanted: Vec<(&Recipient, &Failure)> = group
            .about
            .iter()
            .filter(|(recipient, _)| dsn::wanted(message, recipient, action) && leave.allows(recipient))
            .map(|(recipient, failure)| (recipient, failure))
            .collect();
        if matches!(tell, Tell::Delivered | Tell::Relayed) {
            // However many places an alias leads to.
            let mut named = HashSet::new();
            wanted.retain(|(recipient, _)| named.insert(recipient.alias.as_ref().unwrap_or(&recipient.address)));
        }
        if wanted.is_empty() {
            return None;
        }
        let seed = getrandom::u64().unwrap_or_else(|_| message.id.as_u64());
        let names: Vec<String> = wanted.iter().map(|(recipient, _)| recipient.address.to_string()).collect();
        let notice = Notice {
            hostname: &self.config.hostname,
            from: &self.mailer_daemon(sender),
            to: sender,
            message,
            recipients: &wanted,
            action,
            original,
            now: self.clock.now(),
            id: &notice_id::make(self.intake.marks(), message.id, seed, &self.config.hostname),
            seed,
        };
        let mut envelope = Envelope::new(ReversePath::Null, [sender.clone()]);
        envelope.smtputf8 = dsn::needs_smtputf8(&notice);
        let origin = Origin { door: Door::Bounce, account: None, peer: None };
        let draft = Draft { envelope, content: dsn::write(&notice).into(), origin };
        Some((draft, Event::NoticeSent { sender: sender.clone(), about: names.join(", ") }))
    }

    /// From a domain of ours, so that the notice is signed: the sender's own where that is ours.
    fn mailer_daemon(&self, sender: &Address) -> Address {
        let own = Some(sender.domain()).filter(|domain| self.config.is_own(domain));
        let domain = own.or_else(|| self.config.domains.keys().next()).unwrap_or(&self.config.hostname);
        Address::new("MAILER-DAEMON", domain.clone()).unwrap_or_else(|_| self.config.postmaster.clone())
    }
}

/// Has a copy been queued for another recipient before?
fn is_archived(queue: &Queue, id: MessageId) -> bool {
    let is_waiting = queue.recipients(id).map(|all| all.iter().any(|(_, recipient)| recipient.route.is_archive()));
    let is_told = |event: &Event| matches!(event, Event::Archived { .. } | Event::NotArchived { .. });
    let is_done = || journal::story(queue.store(), id).map(|story| story.iter().any(|entry| is_told(&entry.event)));
    let known = is_waiting.and_then(|is_waiting| if is_waiting { Ok(true) } else { is_done() });
    known.unwrap_or_else(|error| {
        tracing::warn!(%id, %error, "it cannot be seen whether this message is archived; it may be so twice");
        false
    })
}

/// The delivery that makes a copy of what was sent to `recipient`.
fn copy(recipient: &Recipient, archive: &Archive, now: Millis) -> Recipient {
    Recipient {
        route: Route::archive(&archive.name),
        notify: Notify::Never,
        status: Status::Waiting { due: now },
        attempts: 0,
        last_failure: None,
        by_hand: None,
        ..recipient.clone()
    }
}

/// What became of a copy is told to no sender.
fn of_copy(decided: Decided) -> Decided {
    let event = match decided.event {
        Event::Delivered { recipient, to, .. } => Event::Archived { recipient, to },
        Event::Deferred { recipient, why, next, .. } => Event::NotArchived { recipient, why, next: Some(next) },
        Event::Failed { recipient, why, .. } | Event::Expired { recipient, why, .. } => {
            Event::NotArchived { recipient, why, next: None }
        }
        other => other,
    };
    Decided { tell: Tell::Nothing, why: None, event, ..decided }
}

/// Who tells the sender of a success, if that was asked for (RFC 3461 5.2.2): we do, unless the next server
/// was asked to.
fn delivered(recipient: &Recipient, done: Delivered, attempt: u32) -> Decided {
    let Delivered { to, reply, tls, hop } = done;
    let asked_further = recipient.passed_on().on_success();
    let tell = match hop {
        _ if !recipient.notify.on_success() => Tell::Nothing,
        Hop::Final => Tell::Delivered,
        Hop::PassedOn if asked_further => Tell::Nothing,
        Hop::PassedOn | Hop::Relayed => Tell::Relayed,
    };
    let why = (tell != Tell::Nothing).then(|| {
        let status = reply.as_ref().map(Reply::status).unwrap_or_default();
        Failure { reply: reply.clone(), ..Failure::local(&status, &to, "") }
    });
    let reply = reply.map(|reply| reply.to_string()).unwrap_or_default();
    let event = Event::Delivered { recipient: recipient.address.clone(), to, reply, tls, attempt };
    Decided { tell, why, ..untold(event, None) }
}

fn is_target(recipient: &Recipient) -> bool {
    matches!(recipient.route, Route::Target(_)) && !recipient.route.is_archive()
}

/// There are no more tries.
fn given_up(recipient: &Recipient, why: Failure, attempt: u32) -> Decided {
    if is_target(recipient) {
        return dead_letter(recipient, why, attempt);
    }
    let event = Event::Expired { recipient: recipient.address.clone(), why: why.clone(), attempt };
    Decided { tell: Tell::Expired, why: Some(why), ..untold(event, None) }
}

/// What a target of ours has not taken in time is nobody's fault but ours: it is kept for a person, who lets it
/// be tried again (`postrider queue retry`) when the target is well, and the sender is not told that it is lost.
fn dead_letter(recipient: &Recipient, why: Failure, attempt: u32) -> Decided {
    let (tries, since) = tries_until(attempt, &why);
    let reason = format!("{DEAD_LETTER}: given up {tries} (delivery.retry); {since}{}", why.reason);
    let status = Status::Held(Hold::new(HeldBy::DeadLetter, reason.clone()));
    let event = Event::Held { recipient: recipient.address.clone(), reason };
    let after = Recipient { status, attempts: attempt, last_failure: Some(why), by_hand: None, ..recipient.clone() };
    untold(event, Some(after))
}

/// Kept here.
fn captured(recipient: &Recipient, attempt: u32, now: Millis) -> Recipient {
    let status = Status::Captured { at: now };
    Recipient { status, attempts: attempt, by_hand: None, ..recipient.clone() }
}

fn due(recipient: &Recipient) -> Option<Millis> {
    if let Status::Waiting { due } = recipient.status { Some(due) } else { None }
}

fn waits_for_a_way(step: &Step) -> bool {
    let status = step.after.as_ref().map(|after| &after.status);
    matches!(status, Some(Status::Held(hold)) if Suspension::behind(&hold.by).is_some())
}

/// A step of which the sender is not told.
fn untold(event: Event, after: Option<Recipient>) -> Decided {
    Decided { tell: Tell::Nothing, event, why: None, after, added: Vec::new(), complains: false }
}
