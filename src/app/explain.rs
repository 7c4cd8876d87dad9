//! Why a message is where it is: one sentence for each recipient, out of what the running server knows: its
//! gates, its dispatcher, the record of the delivery, the journal. Only the way that the next try takes is
//! computed from the configuration (and DNS), as the try itself will do it.
//!
//! `held` and `tried` find the setting behind a reason, `way` tells where the mail goes, `done` what became
//! of it, and `route` what would become of a message that does not exist.

mod done;
mod held;
pub mod route;
mod tried;
mod way;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::operator::{Operator, blocking};
use crate::admin::explain::{Cause, Condition, Explained, Explanation, Remedy};
use crate::admin::{Backend, Damaged, Story, Trouble};
use crate::clock::{Millis, rfc3339};
use crate::config::Config;
use crate::delivery::smtp::Prospect;
use crate::delivery::standing::{Standing, complaint_in, is_rate};
use crate::events::Event;
use crate::message::{Domain, MessageId};
use crate::queue::gate::{self, Closed};
use crate::queue::pace::Wait;
use crate::queue::record::{Message, Recipient, Route, Status};
use crate::queue::suspend::Suspension;
use crate::routing::outbound::{self, Way};

/// Recipients of one message that are told of.
const RECIPIENTS_MAX: usize = 1000;
/// Domains of one message whose servers are looked up.
const DOMAINS_MAX: usize = 20;
/// All look-ups for one question together.
const LOOK_UP_TIME: Duration = Duration::from_secs(20);

/// What the name servers say of a domain.
struct Found {
    prospect: Prospect,
    servers: Vec<Domain>,
}

/// What is known when a recipient is explained.
struct Facts<'a> {
    config: &'a Config,
    message: &'a Message,
    now: Millis,
    /// It is in an attempt.
    is_running: bool,
    standing: Option<Standing>,
    /// The store has failed: nothing starts.
    store: Option<String>,
}

/// A verdict on a recipient that waits.
struct Reason {
    cause: Cause,
    why: String,
    key: Option<String>,
    next: Option<Millis>,
}

impl Reason {
    fn new(cause: Cause, why: impl Into<String>, key: Option<String>, next: Option<Millis>) -> Reason {
        Reason { cause, why: why.into(), key, next }
    }
}

impl Operator {
    pub(super) async fn explain_message(&self, id: MessageId) -> Result<Option<Explanation>, Trouble> {
        let Some(Story { damaged, entries, .. }) = self.story(id).await? else { return Ok(None) };
        let queue = self.queue.clone();
        let bad: Vec<Option<u32>> = damaged.iter().map(|damaged| damaged.recipient).collect();
        let queued = blocking(move || {
            if bad.contains(&None) {
                return Ok(None);
            }
            let Some(message) = queue.message(id)? else { return Ok(None) };
            Ok(Some((message, queue.recipients_but(id, |number| bad.contains(&Some(number)))?)))
        });
        let queued = queued.await?;
        let mut recipients: Vec<Explained> = damaged.iter().map(|damaged| damaged_one(id, damaged)).collect();
        let (mut from, mut stream) = (None, None);
        let mut left_out = 0;
        if let Some((message, queued)) = queued {
            (from, stream) = (Some(message.mail_from.clone()), Some(message.stream.clone()));
            left_out = queued.len().saturating_sub(RECIPIENTS_MAX);
            let told = queued.get(..RECIPIENTS_MAX).unwrap_or(&queued);
            recipients.extend(self.explain_queued(Arc::new(message), told).await);
        }
        let is_queued = !recipients.is_empty();
        recipients.extend(done::fates(&entries, &recipients));
        for entry in &entries {
            if let (None, Event::Accepted { from: sender, .. } | Event::Imported { from: sender, .. }) =
                (&from, &entry.event)
            {
                from = Some(sender.clone());
            }
        }
        let troubles = self.troubles();
        let now = self.clock.now();
        Ok(Some(Explanation { id, now, queued: is_queued, from, stream, recipients, left_out, troubles }))
    }

    /// What is wrong with the server as a whole.
    fn troubles(&self) -> Vec<String> {
        let readiness = self.watch.readiness();
        let mut troubles: Vec<String> = self.store_trouble().into_iter().collect();
        if readiness.disk.is_short_of_files() {
            let what = "the disk takes hardly any more files (inodes): new mail is turned away, what is queued leaves";
            troubles.push(what.to_owned());
        } else if !readiness.disk.accepting {
            troubles.push(format!(
                "the disk has {} MiB free, less than queue.min_free ({} MiB): new mail is turned away, what is queued leaves",
                readiness.disk.free >> 20,
                readiness.disk.min_free >> 20
            ));
        }
        if readiness.resolver == crate::admin::ResolverState::Failing {
            troubles.push("the name servers do not answer (dns.nameservers)".to_owned());
        }
        troubles
    }

    fn store_trouble(&self) -> Option<String> {
        let store = self.watch.readiness().store;
        let since = store.since?;
        Some(format!(
            "the store has failed since {} ({}): nothing is sent until it is well",
            rfc3339(since),
            store.why.unwrap_or_default()
        ))
    }

    async fn explain_queued(&self, message: Arc<Message>, recipients: &[(u32, Recipient)]) -> Vec<Explained> {
        let intake = self.intake.load();
        let config = intake.config();
        let store = self.store_trouble();
        let prospects = self.prospects(&message, recipients).await;
        let mut inquiry = self.inquiry.get();
        let mut explained = Vec::new();
        for (number, recipient) in recipients {
            let found = prospects.get(recipient.address.domain());
            let standing = match (inquiry, &recipient.status) {
                (Some(asked), Status::Waiting { .. }) => {
                    let servers = found.map(|found| found.servers.clone()).unwrap_or_default();
                    asked.ask(message.clone(), recipient.clone(), servers).await
                }
                _ => None,
            };
            // One that does not answer is not asked a thousand times.
            if standing.is_none() && matches!(recipient.status, Status::Waiting { .. }) {
                inquiry = None;
            }
            let is_running = self.queue.claims().is_running(message.id, *number);
            let (message, now, store) = (&*message, self.clock.now(), store.clone());
            let facts = Facts { config, message, now, is_running, standing, store };
            explained.push(self.explain_one(&facts, recipient, found.map(|found| &found.prospect)));
        }
        explained
    }

    /// Of the domains that mail goes to directly.
    async fn prospects(&self, message: &Message, recipients: &[(u32, Recipient)]) -> HashMap<Domain, Found> {
        let (intake, transports) = (self.intake.load(), self.transports.load());
        let config = intake.config();
        let mut prospects = HashMap::new();
        let is_direct = |released| matches!(outbound::choose_for(config, message, released).way, Way::Direct { .. });
        let (is_direct, is_direct_if_released) = (is_direct(false), is_direct(true));
        if !is_direct && !is_direct_if_released {
            return prospects;
        }
        let deadline = Instant::now() + LOOK_UP_TIME;
        for (_, recipient) in recipients {
            let domain = recipient.address.domain();
            let is_direct = if recipient.released.is_some() { is_direct_if_released } else { is_direct };
            let leaves = recipient.route == Route::Remote && !config.is_own(domain) && is_direct;
            if !leaves || prospects.contains_key(domain) || prospects.len() >= DOMAINS_MAX {
                continue;
            }
            let look_up = async {
                let prospect = transports.prospect(domain, message.tls).await;
                Found { prospect, servers: transports.exchangers(domain).await.unwrap_or_default() }
            };
            match timeout_at(deadline, look_up).await {
                Ok(found) => prospects.insert(domain.clone(), found),
                Err(_) => break,
            };
        }
        prospects
    }

    fn explain_one(&self, facts: &Facts<'_>, recipient: &Recipient, prospect: Option<&Prospect>) -> Explained {
        let Facts { config, message, .. } = facts;
        let id = message.id;
        let (state, reason) = match &recipient.status {
            Status::Waiting { due } => (Condition::Waiting, self.waits(facts, recipient, *due)),
            Status::Held(hold) => {
                let (cause, key) = held::setting(hold);
                (Condition::Held, Reason::new(cause, held::sentence(cause, hold), key, None))
            }
            Status::Captured { at } => {
                let why = format!(
                    "It was captured at {} in place of being sent, and stays until it is released or deleted (postrider captured)",
                    rfc3339(*at)
                );
                (Condition::Captured, Reason::new(Cause::Captured, why, Some("delivery.default".to_owned()), None))
            }
        };
        let then = match state {
            Condition::Captured => Vec::new(),
            _ => way::then(config, message, recipient, prospect, &self.host_states(message)),
        };
        let Reason { cause, why, key, next } = reason;
        let can = remedies(id, state, cause, self.closed(message, recipient).as_ref(), key.as_deref());
        Explained {
            address: Some(recipient.address.clone()),
            alias: recipient.alias.clone().filter(|alias| *alias != recipient.address),
            state,
            cause,
            why,
            key,
            place: None,
            next,
            attempts: recipient.attempts,
            last: recipient.last_failure.clone(),
            then,
            can,
        }
    }

    fn closed(&self, message: &Message, recipient: &Recipient) -> Option<Closed> {
        let Status::Waiting { due } = recipient.status else { return None };
        self.queue.gates().closed(message, recipient, due)
    }

    /// Smart hosts that are not to be used now, and why.
    fn host_states(&self, message: &Message) -> HashMap<String, String> {
        let now = self.clock.now();
        let mut states = HashMap::new();
        let (intake, transports) = (self.intake.load(), self.transports.load());
        for host in &intake.config().smart_hosts {
            if self.queue.gates().is_host_suspended(&host.name, &message.stream) {
                states.insert(host.name.clone(), "suspended".to_owned());
            } else if let Some((_, until)) = transports.resting(&host.name).filter(|(_, until)| *until > now) {
                states.insert(host.name.clone(), format!("left alone until {} because of its login", rfc3339(until)));
            }
        }
        states
    }

    /// Why a recipient waits. What lasts longest, or needs a person, comes first.
    fn waits(&self, facts: &Facts<'_>, recipient: &Recipient, due: Millis) -> Reason {
        if facts.is_running {
            let place =
                facts.standing.as_ref().map_or(String::new(), |standing| format!(" at {}", standing.destination));
            let why = format!("It is being tried now{place}: try {}", recipient.attempts + 1);
            return Reason::new(Cause::UnderWay, why, None, Some(facts.now));
        }
        if let Some(trouble) = &facts.store {
            return Reason::new(Cause::Store, format!("It waits because {trouble}"), Some("data_dir".into()), None);
        }
        if let Some(closed) = self.closed(facts.message, recipient) {
            return behind_a_gate(facts, &closed, due);
        }
        if recipient.attempts == 0
            && let Some(wanted) = facts.message.not_before.filter(|wanted| *wanted > facts.now && due >= *wanted)
        {
            let why = format!("It waits because its sender wanted it to go at {}, not before", rfc3339(wanted));
            return Reason::new(Cause::NotBefore, why, None, Some(due));
        }
        if let Some(reason) = at_the_servers(facts, recipient, due) {
            return reason;
        }
        if due <= facts.now {
            return its_turn(facts, recipient);
        }
        let resting = |name: &str| self.transports.load().resting(name);
        match &recipient.last_failure {
            Some(why) => tried::reason(facts.config, facts.message, recipient, why, due, &resting),
            None => {
                let why = "It waits for its first try, which is not due yet";
                Reason::new(Cause::NotBefore, why, None, Some(due))
            }
        }
    }
}

fn behind_a_gate(facts: &Facts<'_>, closed: &Closed, due: Millis) -> Reason {
    let (cause, key) = match closed {
        Closed::Suspended { what, .. } => {
            let key = match what {
                Suspension::SmartHost(_) => format!("streams.{}.smart_host", facts.message.stream),
                _ => format!("streams.{}.exempt_from_suspend", facts.message.stream),
            };
            (Cause::Suspended, key)
        }
        Closed::Paced { stream, wait } => match wait {
            Wait::Day { .. } => (Cause::DailyLimit, format!("streams.{stream}.daily_limit")),
            Wait::Pause { .. } => (Cause::BlockPause, format!("streams.{stream}.block_pause")),
            Wait::Block(_) => (Cause::BlockPause, format!("streams.{stream}.block_size")),
            Wait::Attempts(_) => (Cause::StreamConcurrency, format!("streams.{stream}.concurrency")),
        },
    };
    let next = closed.until().map(|until| until.max(due));
    Reason::new(cause, format!("It waits because {closed}"), Some(key), next)
}

/// What its servers, or the limits towards them, have to do with it.
fn at_the_servers(facts: &Facts<'_>, recipient: &Recipient, due: Millis) -> Option<Reason> {
    let now = facts.now;
    let standing = facts.standing.as_ref()?;
    let Standing { destination, connections, .. } = standing;
    let connections_key = limit_key(facts, standing, "connections");
    let last = recipient.last_failure.as_ref();
    let was_left_alone = last.and_then(complaint_in).filter(|_| due > now);
    let paused = standing.until > now && standing.until >= due;
    if let Some(said) = was_left_alone.or(standing.complaint.as_ref().map(|(said, _)| said.as_str()).filter(|_| paused))
    {
        let next = due.max(standing.until);
        let why = format!(
            "It waits because {destination} has turned us away, so nothing is tried there until {} (back-off: {} of \
             {connections} connections are left): {said}",
            rfc3339(next),
            standing.window
        );
        return Some(Reason::new(Cause::BackOff, why, Some(connections_key), Some(next)));
    }
    let waits_for_rate = last.is_some_and(is_rate) && due > now;
    if let Some((count, per)) = standing.rate.filter(|_| waits_for_rate || (due <= now && standing.opens_at > now)) {
        let next = due.max(standing.opens_at);
        let why = format!(
            "It waits because {destination} gets at most {count} messages in {} s, and others come first",
            per / 1000
        );
        return Some(Reason::new(Cause::Rate, why, Some(limit_key(facts, standing, "rate")), Some(next)));
    }
    if due <= now && standing.waiting > 0 && standing.running >= standing.window {
        let (cause, more) = match standing.window < *connections {
            true => (Cause::BackOff, format!(" ({connections} are configured; the servers have complained)")),
            false => (Cause::Connections, String::new()),
        };
        let why = format!(
            "It waits because {} attempts to {destination} are under way, which is all there may be at once{more}",
            standing.running
        );
        return Some(Reason::new(cause, why, Some(connections_key), Some(now)));
    }
    None
}

/// The key of a limit: in the section of the destination, if that has a value of its own.
fn limit_key(facts: &Facts<'_>, standing: &Standing, name: &str) -> String {
    let Standing { section, connections, rate, .. } = standing;
    let default = &facts.config.destinations.default;
    let is_default = match name {
        "rate" => default.rate.map(|rate| rate.count) == rate.map(|(count, _)| count),
        _ => default.connections == *connections,
    };
    match section.strip_prefix("targets.") {
        // It has no such key.
        Some(_) => section.clone(),
        None if is_default => format!("destinations.default.{name}"),
        None => format!("{section}.{name}"),
    }
}

fn its_turn(facts: &Facts<'_>, recipient: &Recipient) -> Reason {
    let rest = match &facts.standing {
        Some(Standing { destination, running, waiting, .. }) => {
            format!(" ({running} attempts to {destination} are under way, {waiting} messages wait)")
        }
        None => String::new(),
    };
    let by_hand = if recipient.by_hand.is_some() { ", because a person asked for it" } else { "" };
    let why = format!("It is due{by_hand} and nothing holds it: its turn comes next{rest}");
    Reason::new(Cause::Turn, why, None, Some(facts.now))
}

fn damaged_one(id: MessageId, damaged: &Damaged) -> Explained {
    let part = damaged.recipient.map_or("the message's record".to_owned(), |number| format!("the record {number}"));
    Explained {
        address: None,
        alias: None,
        state: Condition::Damaged,
        cause: Cause::Damaged,
        why: format!("It is set aside because {part} cannot be read: {}", damaged.why),
        key: None,
        place: None,
        next: None,
        attempts: 0,
        last: None,
        then: Vec::new(),
        can: vec![Remedy::new(format!("postrider queue export {id}"), "save what can be read of it")],
    }
}

fn remedies(id: MessageId, state: Condition, cause: Cause, closed: Option<&Closed>, key: Option<&str>) -> Vec<Remedy> {
    let mut can = Vec::new();
    let smart_host = key.and_then(|key| key.strip_prefix("smart_hosts.")?.split('.').next());
    match (closed, cause) {
        (Some(Closed::Suspended { what, .. }), _) => {
            can.push(Remedy::new(format!("postrider resume{}", gate::option(what)), "send again what is suspended"));
        }
        (_, Cause::Suspended) if state == Condition::Held => {
            let name = smart_host.unwrap_or("NAME");
            can.push(Remedy::new(format!("postrider resume --smart-host {name}"), "send again what is suspended"));
        }
        (_, Cause::SmartHostLogin) => {
            let name = smart_host.unwrap_or("NAME");
            can.push(Remedy::new(
                format!("postrider smart-host test {name}"),
                "try the login; if it is good, the host is used again at once",
            ));
        }
        _ => {}
    }
    match state {
        Condition::Waiting
            if !matches!(
                cause,
                Cause::Suspended | Cause::DailyLimit | Cause::BlockPause | Cause::Turn | Cause::UnderWay
            ) =>
        {
            can.push(Remedy::new(format!("postrider queue retry {id}"), "try it now; a failure then does not count"));
        }
        Condition::Held => {
            can.push(Remedy::new(format!("postrider queue release {id}"), "let it go"));
        }
        Condition::Captured => {
            can.push(Remedy::new(format!("postrider captured show {id}"), "read it"));
            can.push(Remedy::new(format!("postrider captured release {id}"), "send it for real"));
            can.push(Remedy::new(format!("postrider captured delete {id}"), "take it out for good"));
            return can;
        }
        _ => {}
    }
    can.push(Remedy::new(format!("postrider queue cancel {id}"), "take it out for good; the sender is not told"));
    can
}
