//! The recipients of a job that can share transactions: those whose domains have the same servers and the
//! same limits, and demand nothing of TLS on their own. A policy belongs to a domain, and what is demanded
//! for one is nothing that another has asked for.

use std::borrow::Cow;
use std::collections::BTreeSet;

use tokio::time::{Instant, timeout_at};

use crate::config::GroupLimits;
use crate::delivery::smtp::SmtpTransport;
use crate::delivery::smtp::tls_policy::DomainPolicy;
use crate::delivery::{Job, Outcome};
use crate::message::Domain;

use super::too_long;

/// One part of a job.
pub(super) struct Part {
    /// In the order in which they are tried.
    pub hosts: Vec<Domain>,
    pub limits: GroupLimits,
    /// Of its domains, never empty.
    pub policies: Vec<DomainPolicy>,
    /// Their places in the job.
    recipients: Vec<usize>,
}

impl Part {
    /// The job as far as it is this part.
    pub fn of_job<'j>(&self, job: &'j Job) -> Cow<'j, Job> {
        if self.recipients.len() == job.recipients.len() {
            return Cow::Borrowed(job);
        }
        let recipients = self.recipients.iter().filter_map(|at| job.recipients.get(*at)).cloned().collect();
        Cow::Owned(Job { message: job.message.clone(), body: job.body.clone(), recipients })
    }

    fn takes(&self, hosts: &[Domain], limits: GroupLimits, policy: &DomainPolicy) -> bool {
        let of = |hosts: &[Domain]| hosts.iter().cloned().collect::<BTreeSet<_>>();
        self.limits == limits
            && self.policies.first().is_some_and(|first| first.goes_with(policy))
            && of(&self.hosts) == of(hosts)
    }
}

/// The parts of a job, and what is decided without asking a server.
#[derive(Default)]
pub(super) struct Parts {
    pub parts: Vec<Part>,
    pub decided: Vec<(u32, Outcome)>,
}

impl Parts {
    pub async fn of(transport: &SmtpTransport, job: &Job, deadline: Instant) -> Parts {
        let mut all = Parts::default();
        for (domain, recipients) in by_domain(job) {
            match timeout_at(deadline, transport.hosts(domain, job.message.tls)).await {
                Ok(Ok((hosts, policy))) => {
                    let limits = transport.destinations.of(domain, &hosts);
                    all.add(Part { hosts, limits, policies: vec![policy], recipients });
                }
                Ok(Err(outcome)) => all.decide(job, &recipients, &outcome),
                // The attempt's time was used up by the name servers.
                Err(_) => all.decide(job, &recipients, &Outcome::Defer { why: too_long(), not_before_secs: None }),
            }
        }
        all
    }

    fn add(&mut self, part: Part) {
        let same = |old: &&mut Part| part.policies.iter().all(|policy| old.takes(&part.hosts, part.limits, policy));
        match self.parts.iter_mut().find(same) {
            Some(old) => {
                old.policies.extend(part.policies);
                old.recipients.extend(part.recipients);
            }
            None => self.parts.push(part),
        }
    }

    fn decide(&mut self, job: &Job, recipients: &[usize], outcome: &Outcome) {
        let numbers = recipients.iter().filter_map(|at| job.recipients.get(*at)).map(|(number, _)| *number);
        self.decided.extend(numbers.map(|number| (number, outcome.clone())));
    }
}

/// The places of the recipients in the job, by domain, in the order in which they come.
fn by_domain(job: &Job) -> Vec<(&Domain, Vec<usize>)> {
    let mut domains: Vec<(&Domain, Vec<usize>)> = Vec::new();
    for (at, (_, recipient)) in job.recipients.iter().enumerate() {
        let domain = recipient.address.domain();
        match domains.iter_mut().find(|(known, _)| *known == domain) {
            Some((_, places)) => places.push(at),
            None => domains.push((domain, vec![at])),
        }
    }
    domains
}
