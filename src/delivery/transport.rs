//! Which way out a job takes, decided when it is due, so that a changed configuration applies to what
//! is queued already.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::clock::Clock;
use crate::config::{Config, Target, WayOut};
use crate::dns::Resolver;
use crate::message::Address;
use crate::queue::record::{Failure, Route};
use crate::routing::inbound::{Resolution, resolve};

use super::maildir::Maildir;
use super::smtp::{SetupError, SmtpTransport};
use super::webhook::{Webhook, WebhookError};
use super::{Job, Outcome};

/// A target that is set up.
#[derive(Debug)]
enum TargetTransport {
    Webhook(Box<Webhook>),
    Maildir(Maildir),
}

#[derive(Debug)]
pub struct Transports {
    config: Arc<Config>,
    smtp: SmtpTransport,
    targets: BTreeMap<String, TargetTransport>,
}

/// Why a way out cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    #[error(transparent)]
    Webhook(#[from] WebhookError),
    #[error(transparent)]
    Smtp(#[from] SetupError),
}

impl Transports {
    pub fn new(config: &Arc<Config>, resolver: Resolver, clock: &Clock) -> Result<Transports, SetUpError> {
        let mut targets = BTreeMap::new();
        for (name, target) in &config.targets {
            targets.insert(name.clone(), set_up(config, name, target, clock)?);
        }
        Ok(Transports { config: config.clone(), smtp: SmtpTransport::new(config, resolver)?, targets })
    }

    /// Tries a job; one outcome per recipient.
    pub async fn deliver(&self, job: &Job) -> Vec<(u32, Outcome)> {
        // The recipients of a job share their destination, hence their route.
        match job.recipients.first().map(|(_, recipient)| &recipient.route) {
            None => Vec::new(),
            Some(Route::Remote) if self.is_own(job) => self.route_again(job),
            Some(Route::Remote) => match self.config.delivery.default {
                WayOut::Direct => self.smtp.deliver(job).await,
                WayOut::Capture => all(job, &Outcome::Captured),
                // Not by MX: who names smart hosts does not want mail to leave from here.
                WayOut::SmartHosts => {
                    let reason = "delivery by smart hosts is not in place yet";
                    let why = Failure::local("4.3.5", "smart_hosts", reason.to_owned());
                    all(job, &Outcome::Defer { why, not_before_secs: None })
                }
            },
            Some(Route::Target(name)) => match self.targets.get(name) {
                Some(TargetTransport::Webhook(webhook)) => webhook.deliver(job).await,
                Some(TargetTransport::Maildir(maildir)) => maildir.deliver(job).await,
                None => {
                    let reason = format!(
                        "there is no target {name} in the configuration any more; add [targets.{name}] or cancel"
                    );
                    all(job, &Outcome::Defer { why: Failure::local("4.3.5", name, reason), not_before_secs: None })
                }
            },
        }
    }
}

impl Transports {
    /// Gives up what is kept for the next job.
    pub async fn close(&self) {
        self.smtp.close().await;
    }

    /// Mail for us is never sent out: it was held because nobody was named for the address.
    fn is_own(&self, job: &Job) -> bool {
        job.recipients.iter().any(|(_, recipient)| self.config.is_own(recipient.address.domain()))
    }

    fn route_again(&self, job: &Job) -> Vec<(u32, Outcome)> {
        let outcome = |address: &Address| match resolve(&self.config, address) {
            Resolution::Deliveries(found)
                if found.iter().all(|delivery| delivery.hold.is_none() && !delivery.discard) =>
            {
                Outcome::Rerouted(found.into_iter().map(|delivery| (delivery.address, delivery.route)).collect())
            }
            _ => {
                let reason =
                    format!("<{address}> still leads nowhere: give it an alias in [aliases], or cancel the message");
                Outcome::Defer { why: Failure::local("4.3.5", "", reason), not_before_secs: None }
            }
        };
        job.recipients.iter().map(|(number, recipient)| (*number, outcome(&recipient.address))).collect()
    }
}

fn set_up(config: &Config, name: &str, target: &Target, clock: &Clock) -> Result<TargetTransport, SetUpError> {
    Ok(match target {
        Target::Webhook { .. } => {
            TargetTransport::Webhook(Box::new(Webhook::new(name, target, &config.domains, clock.clone())?))
        }
        Target::Maildir { path } => TargetTransport::Maildir(Maildir::new(name, path, &config.hostname)),
    })
}

fn all(job: &Job, outcome: &Outcome) -> Vec<(u32, Outcome)> {
    job.recipients.iter().map(|(number, _)| (*number, outcome.clone())).collect()
}
