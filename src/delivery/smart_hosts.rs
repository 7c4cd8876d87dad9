//! Delivery by smart hosts: those of one tier one after the other, until one takes the message.
//!
//! A host that does not take our login is left alone for a while, longer each time: a wrong password
//! must neither fail the mail nor lock the account. Which hosts are asked is decided in
//! `routing::outbound`; the conversation is `smtp`'s.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock::{Clock, Millis};
use crate::config::{SmartHost, SmartHostTls};
use crate::queue::record::Failure;
use crate::routing::outbound::Candidate;

use super::smtp::{Attempted, HostTarget, HostTrouble, Login, Secret, SmtpTransport, TlsMode};
use super::{Job, Outcome};

/// Rest of a host after the first login that it does not take; twice as long after each further one.
const REST_FIRST: Millis = 60 * 1000;
const REST_MAX: Millis = 30 * 60 * 1000;

#[derive(Debug)]
pub struct SmartHosts {
    clock: Clock,
    /// By name; at most one for each host of the configuration.
    resting: Mutex<HashMap<String, Rest>>,
}

/// Of a host that does not take our login.
#[derive(Clone, Debug)]
struct Rest {
    until: Millis,
    length: Millis,
    why: Failure,
}

impl SmartHosts {
    pub fn new(clock: Clock) -> SmartHosts {
        SmartHosts { clock, resting: Mutex::default() }
    }

    /// Tries a job at these hosts, in their order; one outcome per recipient.
    pub async fn deliver(&self, smtp: &SmtpTransport, job: &Job, hosts: &[Candidate<'_>]) -> Vec<(u32, Outcome)> {
        let size = job.body.len();
        let takes = |host: &SmartHost| host.max_size.is_none_or(|limit| size <= limit);
        let fitting: Vec<&Candidate<'_>> = hosts.iter().filter(|candidate| takes(candidate.host)).collect();
        if fitting.is_empty() {
            return all(job, &Outcome::Fail(too_large(size, hosts)));
        }
        let now = self.clock.now();
        let rest = self.shortest_rest(&fitting, now);
        let awake: Vec<&Candidate<'_>> =
            fitting.into_iter().filter(|candidate| self.rest_of(candidate.host, now).is_none()).collect();
        if let (true, Some(rest)) = (awake.is_empty(), rest) {
            let not_before_secs = Some(rest.until.saturating_sub(now).div_ceil(1000));
            return all(job, &Outcome::Defer { why: rest.why, not_before_secs });
        }
        let targets: Vec<HostTarget> = awake.iter().map(|candidate| target(candidate)).collect();
        let Attempted { outcomes, troubles } = smtp.deliver_through(job, &targets).await;
        let troubled = |number: usize| troubles.iter().any(|trouble| trouble.target == number);
        if let Some((_, candidate)) = awake.iter().enumerate().find(|(number, _)| !troubled(*number)) {
            self.lock().remove(&candidate.host.name);
        }
        for trouble in &troubles {
            if let Some(candidate) = awake.get(trouble.target) {
                self.note(candidate.host, trouble);
            }
        }
        outcomes
    }

    fn note(&self, host: &SmartHost, trouble: &HostTrouble) {
        if trouble.login.is_none() {
            return;
        }
        let mut resting = self.lock();
        let now = self.clock.now();
        let before = resting.get(&host.name);
        // Attempts that ran beside each other have seen the same.
        if before.is_some_and(|rest| rest.until > now) {
            return;
        }
        let length = before.map_or(REST_FIRST, |rest| (rest.length * 2).min(REST_MAX));
        let why = trouble.failure.clone();
        tracing::warn!(host = host.name, reason = why.reason, pause_secs = length / 1000, "no login at a smart host");
        resting.insert(host.name.clone(), Rest { until: now + length, length, why });
    }

    fn rest_of(&self, host: &SmartHost, now: Millis) -> Option<Rest> {
        self.lock().get(&host.name).filter(|rest| rest.until > now).cloned()
    }

    fn shortest_rest(&self, hosts: &[&Candidate<'_>], now: Millis) -> Option<Rest> {
        let rests = hosts.iter().filter_map(|candidate| self.rest_of(candidate.host, now));
        rests.min_by_key(|rest| rest.until)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Rest>> {
        // Nothing in here panics half-way, so a poisoned lock still guards sound data.
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn target(candidate: &Candidate<'_>) -> HostTarget {
    let SmartHost { host, port, tls, verify_certificate, login, .. } = candidate.host;
    let tls = match tls {
        SmartHostTls::Off => TlsMode::Off,
        SmartHostTls::Opportunistic => TlsMode::Opportunistic,
        SmartHostTls::Required => TlsMode::Required,
        SmartHostTls::Implicit => TlsMode::Implicit,
    };
    let login = login
        .as_ref()
        .map(|login| Login { username: login.username.clone(), secret: Secret::Password(login.password.clone()) });
    let mail_from = Some(candidate.envelope.clone());
    HostTarget { host: host.clone(), port: *port, tls, verify_certificate: *verify_certificate, login, mail_from }
}

fn too_large(size: u64, hosts: &[Candidate<'_>]) -> Failure {
    let names: Vec<String> = hosts.iter().map(|candidate| format!("smart_hosts.{}", candidate.host.name)).collect();
    let reason = format!("the message has {size} bytes, more than max_size of {} allows", names.join(" and "));
    Failure::local("5.3.4", "", reason)
}

fn all(job: &Job, outcome: &Outcome) -> Vec<(u32, Outcome)> {
    job.recipients.iter().map(|(number, _)| (*number, outcome.clone())).collect()
}
