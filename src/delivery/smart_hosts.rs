//! Delivery by smart hosts: those of one tier one after the other, until one takes the message.
//!
//! A host that does not take our login is left alone for a while, longer each time: a wrong password
//! must neither fail the mail nor lock the account. A host that is suspended is passed over; mail for
//! which there is no other is held until it is resumed. Which hosts are asked is decided in
//! `routing::outbound`; the conversations are those of `smtp` and `graph`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::{Clock, Millis};
use crate::config::Config;
use crate::config::{SmartHost, SmartHostKind, SmartHostTls};
use crate::message::ReversePath;
use crate::queue::Queue;
use crate::queue::record::Failure;
use crate::queue::suspend::Suspension;
use crate::routing::outbound::Candidate;

use super::graph::{Graph, Sent};
use super::host_test::{NoTest, Report, Tester, Wish};
use super::oauth::Tokens;
use super::smtp::{Attempted, HostTarget, Login, LoginFault, PopBeforeSmtp, SmtpTransport, TlsMode};
use super::transport::SetUpError;
use super::{HostFailure, Job, Outcome};

/// Rest of a host after the first login that it does not take; twice as long after each further one.
const REST_FIRST: Millis = 60 * 1000;
const REST_MAX: Millis = 30 * 60 * 1000;

#[derive(Debug)]
pub struct SmartHosts {
    clock: Clock,
    queue: Arc<Queue>,
    tokens: Arc<Tokens>,
    graph: Graph,
    pop_before: Arc<PopBeforeSmtp>,
    /// By name; at most one for each host of the configuration.
    resting: Arc<Mutex<HashMap<String, Rest>>>,
}

/// Of a host that does not take our login.
#[derive(Clone, Debug)]
struct Rest {
    until: Millis,
    length: Millis,
    why: Failure,
}

/// What one host did.
#[derive(Default)]
struct Tried {
    /// For these recipients no other host is asked.
    decided: Vec<(u32, Outcome)>,
    /// Why it did not do for the others.
    failure: Option<Unusable>,
}

/// Why a host cannot be used now. It is never about the mail.
struct Unusable {
    failure: Failure,
    not_before_secs: Option<u64>,
    /// It is about our account there, and new.
    is_login: bool,
}

impl From<HostFailure> for Unusable {
    fn from(HostFailure { login, failure, not_before_secs }: HostFailure) -> Unusable {
        Unusable { failure, not_before_secs, is_login: login.is_some() }
    }
}

impl From<HostFailure> for Tried {
    fn from(failure: HostFailure) -> Tried {
        Tried { failure: Some(failure.into()), ..Tried::default() }
    }
}

impl SmartHosts {
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    pub fn new(clock: Clock, queue: Arc<Queue>, tokens: Arc<Tokens>, graph: Graph) -> SmartHosts {
        let pop_before = Arc::new(PopBeforeSmtp::new(clock.clone()));
        SmartHosts { clock, queue, tokens, graph, pop_before, resting: Arc::default() }
    }

    /// For the hosts of another configuration. Those that rest go on resting.
    pub fn next(&self, config: &Config) -> Result<SmartHosts, SetUpError> {
        let tokens = Arc::new(self.tokens.next(config)?);
        Ok(SmartHosts {
            clock: self.clock.clone(),
            queue: self.queue.clone(),
            graph: self.graph.next(config, tokens.clone())?,
            tokens,
            pop_before: self.pop_before.clone(),
            resting: self.resting.clone(),
        })
    }

    /// What these hosts did not like may be put right: they are tried again.
    pub fn wake(&self, changed: impl Fn(&str) -> bool) {
        self.lock().retain(|name, _| !changed(name));
    }

    /// Tests a host for a person. A host that rests because of its login goes on at once if the test is good.
    pub async fn test(&self, smtp: &SmtpTransport, config: &Config, wish: &Wish) -> Result<Report, NoTest> {
        let oauth = Some((&*self.tokens, &self.graph));
        let tester = Tester { config, clock: &self.clock, smtp, pop_before: &self.pop_before, oauth };
        let report = tester.test(wish).await?;
        if report.good {
            self.lock().remove(&report.host);
        }
        Ok(report)
    }

    /// Tries a job at these hosts, in their order; one outcome per recipient.
    pub async fn deliver(&self, smtp: &SmtpTransport, job: &Job, hosts: &[Candidate<'_>]) -> Vec<(u32, Outcome)> {
        let size = job.body.len();
        let fits = |host: &SmartHost| host.max_size.is_none_or(|limit| size <= limit);
        let fitting: Vec<&Candidate<'_>> = hosts.iter().filter(|candidate| fits(candidate.host)).collect();
        let Some(first) = fitting.first() else { return all(job, &Outcome::Fail(too_large(size, hosts))) };
        let suspended = |host: &SmartHost| self.queue.gates().is_host_suspended(&host.name, &job.message.stream);
        let in_use: Vec<&Candidate<'_>> = fitting.iter().copied().filter(|fit| !suspended(fit.host)).collect();
        if in_use.is_empty() {
            return all(job, &Outcome::Held(Suspension::smart_host(&first.host.name)));
        }
        let (mut outcomes, mut failures) = (Vec::new(), Vec::new());
        let mut rest = job.clone();
        for candidate in in_use {
            let Tried { decided, failure } = self.at_host(smtp, &rest, candidate).await;
            rest.recipients.retain(|(number, _)| !decided.iter().any(|(decided, _)| decided == number));
            outcomes.extend(decided);
            failures.extend(failure);
            if rest.recipients.is_empty() {
                return outcomes;
            }
        }
        outcomes.extend(all(&rest, &deferred(failures)));
        outcomes
    }

    async fn at_host(&self, smtp: &SmtpTransport, job: &Job, candidate: &Candidate<'_>) -> Tried {
        let host = candidate.host;
        if let Some(failure) = self.rest_of(host) {
            return Tried { failure: Some(failure), ..Tried::default() };
        }
        let tried = match &host.kind {
            SmartHostKind::Smtp => self.by_smtp(smtp, job, candidate).await,
            SmartHostKind::Graph { .. } => match self.graph.deliver(job, host).await {
                Sent::Decided(decided) => Tried { decided, failure: None },
                Sent::Host(failure) => Tried::from(failure),
                Sent::BySmtp => self.by_smtp(smtp, job, candidate).await,
            },
        };
        match &tried.failure {
            None => drop(self.lock().remove(&host.name)),
            Some(Unusable { failure, is_login: true, .. }) => self.let_rest(host, failure),
            Some(_) => {}
        }
        tried
    }

    async fn by_smtp(&self, smtp: &SmtpTransport, job: &Job, candidate: &Candidate<'_>) -> Tried {
        let host = candidate.host;
        if let Err(failure) = self.pop_before.log_in(smtp, host).await {
            return Tried::from(failure);
        }
        let mut attempted = match self.with_login(smtp, job, candidate).await {
            Ok(attempted) => attempted,
            Err(failure) => return Tried::from(failure),
        };
        // The host has forgotten who we are: once more, for those it has refused because of that.
        let refused = self.pop_before.refused(host, &attempted).await;
        if !refused.is_empty() && self.pop_before.log_in(smtp, host).await.is_ok() {
            let mut again = job.clone();
            again.recipients.retain(|(number, _)| refused.contains(number));
            if let Ok(second) = self.with_login(smtp, &again, candidate).await {
                attempted.outcomes.retain(|(number, _)| !refused.contains(number));
                attempted.undecided.retain(|number| !refused.contains(number));
                attempted.outcomes.extend(second.outcomes);
                attempted.undecided.extend(second.undecided);
                attempted.troubles.extend(second.troubles);
            }
        }
        let Attempted { outcomes, undecided, mut troubles } = attempted;
        let decided = outcomes.into_iter().filter(|(number, _)| !undecided.contains(number)).collect();
        let failure = troubles.pop().filter(|_| !undecided.is_empty()).map(|trouble| Unusable {
            failure: trouble.failure,
            not_before_secs: None,
            is_login: trouble.login.is_some(),
        });
        Tried { decided, failure }
    }

    /// With a token that the host does not take (any more) once more with a new one.
    async fn with_login(
        &self,
        smtp: &SmtpTransport,
        job: &Job,
        candidate: &Candidate<'_>,
    ) -> Result<Attempted, HostFailure> {
        let login = self.tokens.login(candidate.host).await?;
        let attempted = smtp.deliver_through(job, &[target(candidate, login.clone())]).await;
        let is_refused = attempted.troubles.iter().any(|trouble| trouble.login == Some(LoginFault::Refused));
        match login {
            Some(login) if is_refused && self.tokens.refused(candidate.host, &login).await => {
                let mut again = job.clone();
                again.recipients.retain(|(number, _)| attempted.undecided.contains(number));
                let login = self.tokens.login(candidate.host).await?;
                let second = smtp.deliver_through(&again, &[target(candidate, login)]).await;
                let mut outcomes = attempted.outcomes;
                outcomes.retain(|(number, _)| !attempted.undecided.contains(number));
                outcomes.extend(second.outcomes);
                Ok(Attempted { outcomes, ..second })
            }
            _ => Ok(attempted),
        }
    }

    fn let_rest(&self, host: &SmartHost, why: &Failure) {
        let mut resting = self.lock();
        let now = self.clock.now();
        let before = resting.get(&host.name);
        // Attempts that ran beside each other have seen the same.
        if before.is_some_and(|rest| rest.until > now) {
            return;
        }
        let length = before.map_or(REST_FIRST, |rest| (rest.length * 2).min(REST_MAX));
        tracing::warn!(host = host.name, reason = why.reason, pause_secs = length / 1000, "no login at a smart host");
        resting.insert(host.name.clone(), Rest { until: now + length, length, why: why.clone() });
    }

    /// Why and until when a host is left alone because of its login; also a time that is over, as long as no
    /// login was good since.
    pub fn resting(&self, name: &str) -> Option<(Failure, Millis)> {
        self.lock().get(name).map(|rest| (rest.why.clone(), rest.until))
    }

    fn rest_of(&self, host: &SmartHost) -> Option<Unusable> {
        let now = self.clock.now();
        let resting = self.lock();
        let rest = resting.get(&host.name).filter(|rest| rest.until > now)?;
        let not_before_secs = Some((rest.until - now).div_ceil(1000));
        Some(Unusable { failure: rest.why.clone(), not_before_secs, is_login: false })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Rest>> {
        // Nothing in here panics half-way, so a poisoned lock still guards sound data.
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn target(candidate: &Candidate<'_>, login: Option<Login>) -> HostTarget {
    target_of(candidate.host, login, Some(candidate.envelope.clone()))
}

pub(super) fn target_of(host: &SmartHost, login: Option<Login>, mail_from: Option<ReversePath>) -> HostTarget {
    let SmartHost { host, port, tls, verify_certificate, debug, .. } = host;
    HostTarget {
        host: host.clone(),
        port: *port,
        tls: tls_mode(*tls),
        verify_certificate: *verify_certificate,
        login,
        mail_from,
        debug: *debug,
    }
}

pub(super) fn tls_mode(tls: SmartHostTls) -> TlsMode {
    match tls {
        SmartHostTls::Off => TlsMode::Off,
        SmartHostTls::Opportunistic => TlsMode::Opportunistic,
        SmartHostTls::Required => TlsMode::Required,
        SmartHostTls::Implicit => TlsMode::Implicit,
    }
}

/// No host did. The first one's reason counts: it is the one that should have.
fn deferred(failures: Vec<Unusable>) -> Outcome {
    let not_before_secs = match failures.iter().all(|failure| failure.not_before_secs.is_some()) {
        true => failures.iter().filter_map(|failure| failure.not_before_secs).min(),
        false => None,
    };
    let others = failures.len().saturating_sub(1);
    let first = failures.into_iter().next().map(|failure| failure.failure);
    let mut why = first.unwrap_or_else(|| Failure::local("4.3.0", "", "the attempt ended without a result"));
    match others {
        0 => {}
        1 => why.reason += "; one other smart host did no better",
        others => why.reason += &format!("; {others} other smart hosts did no better"),
    }
    Outcome::Defer { why, not_before_secs }
}

fn too_large(size: u64, hosts: &[Candidate<'_>]) -> Failure {
    let names: Vec<String> = hosts.iter().map(|candidate| format!("smart_hosts.{}", candidate.host.name)).collect();
    let reason = format!("the message has {size} bytes, more than max_size of {} allows", names.join(" and "));
    Failure::local("5.3.4", "", reason)
}

fn all(job: &Job, outcome: &Outcome) -> Vec<(u32, Outcome)> {
    job.recipients.iter().map(|(number, _)| (*number, outcome.clone())).collect()
}
