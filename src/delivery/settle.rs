//! What the outcomes of an attempt mean: the queue's next step, the story, and who is told.
//!
//! A job's outcomes become one batch. If somebody must be told, the notice is queued in the same
//! batch, so a crash can neither lose it nor send it twice.

use std::sync::Arc;
use std::time::Duration;

use crate::bounce::dsn::{self, Action, Notice};
use crate::clock::{Clock, Millis};
use crate::config::Config;
use crate::events::Event;
use crate::events::journal::{Journal, Telling};
use crate::intake::Intake;
use crate::message::{Address, Door, Draft, Envelope, Origin, ReversePath};
use crate::queue::record::{Failure, Message, Recipient, Route, Status};
use crate::queue::schedule::{self, Next};
use crate::queue::{Queue, Step};

use super::{Delivered, Job, Outcome};

/// Wait between tries to write a result down. Until it is written the claim stays, so nothing is
/// delivered twice because the disk was full.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

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

/// The steps of one job and whom to tell of them.
#[derive(Default)]
struct Settled {
    steps: Vec<Step>,
    added: Vec<Recipient>,
    events: Vec<Event>,
    failed: Vec<(Recipient, Failure)>,
    expired: Vec<(Recipient, Failure)>,
    delayed: Vec<(Recipient, Failure)>,
}

impl Settler {
    /// Records the outcomes and gives the claims back.
    pub async fn settle(&self, queue: &Queue, job: Job, outcomes: Vec<(u32, Outcome)>) {
        let settled = self.decide(&job, outcomes);
        let id = job.message.id;
        let _lock = queue.lock(id).await;
        while let Err(error) = self.write(queue, &job, &settled).await {
            tracing::error!(%id, %error, "the result of an attempt cannot be written; trying again");
            tokio::time::sleep(WRITE_AGAIN).await;
        }
        queue.release(id, &settled.steps, &settled.added);
    }

    fn decide(&self, job: &Job, outcomes: Vec<(u32, Outcome)>) -> Settled {
        let mut settled = Settled::default();
        let mut outcomes: std::collections::HashMap<u32, Outcome> = outcomes.into_iter().collect();
        for (number, recipient) in &job.recipients {
            let silent = || {
                let why = Failure::local("4.3.0", "", "the attempt ended without a result");
                Outcome::Defer { why, not_before_secs: None }
            };
            let outcome = outcomes.remove(number).unwrap_or_else(silent);
            let after = self.step(&job.message, *number, recipient, outcome, &mut settled);
            settled.steps.push(Step { number: *number, before: recipient.clone(), after });
        }
        settled
    }

    /// One recipient's next state; its event and notices go into `settled`.
    fn step(
        &self,
        message: &Message,
        number: u32,
        recipient: &Recipient,
        outcome: Outcome,
        settled: &mut Settled,
    ) -> Option<Recipient> {
        let attempt = recipient.attempts + 1;
        let address = recipient.address.clone();
        let now = self.clock.now();
        match outcome {
            Outcome::Delivered(Delivered { to, reply, tls }) => {
                let reply = reply.map(|reply| reply.to_string()).unwrap_or_default();
                settled.events.push(Event::Delivered { recipient: address, to, reply, tls, attempt });
                None
            }
            Outcome::Captured => {
                settled.events.push(Event::Captured { recipient: address });
                Some(Recipient { status: Status::Captured { at: now }, attempts: attempt, ..recipient.clone() })
            }
            Outcome::Fail(why) => {
                settled.events.push(Event::Failed { recipient: address, why: why.clone(), attempt });
                settled.failed.push((recipient.clone(), why));
                None
            }
            Outcome::Rerouted(places) => {
                let to = places.iter().map(|(address, route)| place(address, route)).collect();
                settled.events.push(Event::Routed { alias: address, to });
                let status = Status::Waiting { due: now };
                let copy = |(address, route)| Recipient { address, route, status: status.clone(), ..recipient.clone() };
                settled.added.extend(places.into_iter().map(copy));
                None
            }
            Outcome::Defer { why, not_before_secs } => {
                let retry = &self.config.delivery.retry;
                let not_before = not_before_secs.map(|secs| now + secs.saturating_mul(1000));
                match schedule::next(retry, message.received_at, attempt, now, not_before, (message.id, number)) {
                    Next::GiveUp => {
                        settled.events.push(Event::Expired { recipient: address, why: why.clone(), attempt });
                        settled.expired.push((recipient.clone(), why));
                        None
                    }
                    Next::TryAt(next) => Some(self.deferred(message, recipient, why, attempt, next, settled)),
                }
            }
        }
    }

    fn deferred(
        &self,
        message: &Message,
        recipient: &Recipient,
        why: Failure,
        attempt: u32,
        next: Millis,
        settled: &mut Settled,
    ) -> Recipient {
        let event = Event::Deferred { recipient: recipient.address.clone(), why: why.clone(), attempt, next };
        settled.events.push(event);
        let late = self.config.delivery.retry.delay_notice.is_some_and(|notice| {
            self.clock.now().saturating_sub(message.received_at)
                >= u64::try_from(notice.as_millis()).unwrap_or(u64::MAX)
        });
        let notify = late && !recipient.delay_notified;
        if notify {
            settled.delayed.push((recipient.clone(), why.clone()));
        }
        Recipient {
            status: Status::Waiting { due: next },
            attempts: attempt,
            last_failure: Some(why),
            delay_notified: recipient.delay_notified || notify,
            ..recipient.clone()
        }
    }

    /// Everything in one batch, notices included.
    async fn write(&self, queue: &Queue, job: &Job, settled: &Settled) -> Result<(), String> {
        let id = job.message.id;
        let mut telling = self.journal.begin();
        for event in &settled.events {
            telling.tell(id, event.clone());
        }
        let mut batch =
            queue.step_batch(&job.message, &settled.steps, &settled.added).map_err(|error| error.to_string())?;
        let retry_for = u64::try_from(self.config.delivery.retry.expire.as_millis()).unwrap_or(u64::MAX);
        let until = job.message.received_at.saturating_add(retry_for);
        let mut notices = Vec::new();
        for (about, action) in [
            (&settled.failed, Action::Failed),
            (&settled.expired, Action::Expired),
            (&settled.delayed, Action::Delayed { until }),
        ] {
            notices.extend(self.notice(job, about, action, &mut telling));
        }
        batch.append(telling.take_batch());
        let mut step = Some(batch);
        for draft in notices {
            // The first notice carries the step; a second (rare) one follows by itself.
            let carried = step.take();
            let Err(refusal) = self.intake.accept_with(draft, carried.clone().unwrap_or_default()).await else {
                continue;
            };
            if carried.is_some() && refusal.reply.severity() == crate::smtp::reply::Severity::Transient {
                return Err(refusal.reason);
            }
            // A notice that cannot be queued must not keep the step from being written.
            tracing::warn!(%id, reason = refusal.reason, "the notice to the sender was refused");
            step = carried;
        }
        if let Some(batch) = step {
            queue.commit(batch, false).await.map_err(|error| error.to_string())?;
        }
        telling.log();
        Ok(())
    }

    /// The notice to the sender, if one is wanted by anybody in `about`.
    fn notice(
        &self,
        job: &Job,
        about: &[(Recipient, Failure)],
        action: Action,
        telling: &mut Telling<'_>,
    ) -> Option<Draft> {
        let message = &job.message;
        let wanted: Vec<(&Recipient, &Failure)> = about
            .iter()
            .filter(|(recipient, _)| dsn::wanted(message, recipient, action))
            .map(|(recipient, failure)| (recipient, failure))
            .collect();
        let ReversePath::Address(sender) = &message.mail_from else { return None };
        if wanted.is_empty() {
            return None;
        }
        let names: Vec<String> = wanted.iter().map(|(recipient, _)| recipient.address.to_string()).collect();
        let notice = Notice {
            hostname: &self.config.hostname,
            from: &self.mailer_daemon(sender),
            to: sender,
            message,
            recipients: &wanted,
            action,
            original: &job.body.contiguous(),
            now: self.clock.now(),
            seed: getrandom::u64().unwrap_or_else(|_| message.id.as_u64()),
        };
        let content = dsn::write(&notice);
        let mut envelope = Envelope::new(ReversePath::Null, [sender.clone()]);
        envelope.smtputf8 = dsn::needs_smtputf8(&notice);
        telling.tell(message.id, Event::NoticeSent { sender: sender.clone(), about: names.join(", ") });
        Some(Draft {
            envelope,
            content: content.into(),
            origin: Origin { door: Door::Bounce, account: None, peer: None },
        })
    }

    /// From a domain of ours, so that the notice is signed: the sender's own where that is ours.
    fn mailer_daemon(&self, sender: &Address) -> Address {
        let own = Some(sender.domain()).filter(|domain| self.config.is_own(domain));
        let domain = own.or_else(|| self.config.domains.keys().next()).unwrap_or(&self.config.hostname);
        Address::new("MAILER-DAEMON", domain.clone()).unwrap_or_else(|_| self.config.postmaster.clone())
    }
}
