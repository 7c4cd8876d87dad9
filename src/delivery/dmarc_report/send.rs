//! Writes counts down, and sends the reports of days that are over.

use std::sync::Arc;

use super::keep::{Kept, Parts};
use super::xml::About;
use crate::checks::dmarc::{Destination, report_addresses};
use crate::checks::feedback::Counts;
use crate::clock::{Clock, DAY, Millis};
use crate::config::{Config, DmarcMode};
use crate::current::Current;
use crate::delivery::daily;
use crate::delivery::shelf::Shelf;
use crate::intake::Intake;
use crate::message::{Address, Domain, Door, Draft, Envelope, Origin, ReversePath};

/// Days for which a report is kept that could not be sent.
const DAYS_MAX: u64 = 3;

/// Sends reports.
#[derive(Debug)]
pub struct Reports {
    clock: Clock,
    /// With its configuration and its resolver.
    intake: Current<Intake>,
    kept: Kept,
}

impl Reports {
    pub fn new(clock: Clock, intake: impl Into<Current<Intake>>) -> Reports {
        let intake = intake.into();
        let kept = Kept::new(Shelf::of_dmarc(intake.load().queue().clone()));
        Reports { clock, intake, kept }
    }

    fn config(&self) -> Arc<Config> {
        self.intake.load().config().clone()
    }

    pub fn now(&self) -> Millis {
        self.clock.now()
    }

    /// When reports are to be sent next.
    pub fn next(&self) -> Millis {
        daily::next(&self.clock, &self.config().hostname)
    }

    /// Writes down what has been counted since the last time.
    pub async fn flush(&self) {
        let mut lost = 0;
        for (day, domain, counts) in self.intake.load().feedback().take() {
            lost += usize::from(!self.kept.put(self.clock.now(), day, &domain, &counts).await);
        }
        if lost > 0 {
            tracing::warn!(domains = lost, "no room for more counts of DMARC reports: they are left out");
        }
    }

    /// Sends what is due. Returns when all is queued or put off.
    pub async fn send_due(&self) {
        self.flush().await;
        if !daily::is_due(&self.clock, &self.config().hostname) {
            return;
        }
        let today = self.clock.now() / DAY;
        for parts in self.kept.before(today) {
            // Nobody is told of mail that is not looked at any more.
            let off = self.config().checks.dmarc == DmarcMode::Off;
            let counts = if off { Counts::default() } else { self.kept.read(&parts) };
            if counts.ordinary == 0 || counts.rows.is_empty() {
                self.kept.forget(&parts).await;
            } else if !self.send(&parts, &counts).await && today.saturating_sub(parts.day) > DAYS_MAX {
                tracing::info!(domain = %parts.domain, day = parts.day, "a DMARC report is given up");
                self.kept.forget(&parts).await;
            }
        }
    }

    /// False: later again.
    async fn send(&self, parts: &Parts, counts: &Counts) -> bool {
        let intake = self.intake.load();
        let Ok(wanted) = report_addresses(intake.resolver(), &parts.domain).await else { return false };
        let config = intake.config();
        let (organization, contact) = (&config.hostname, daily::contact(config));
        let about = About { organization, contact: &contact, domain: &parts.domain, day: parts.day };
        let Ok(packed) = daily::pack(&about.xml(counts)) else { return false };
        let now = self.clock.now();
        let size = about.message(&addresses(&wanted, 0), &packed, now).len() as u64;
        let to = addresses(&wanted, size);
        if to.is_empty() {
            tracing::info!(domain = %parts.domain, size, "no address takes the DMARC report");
            self.kept.forget(parts).await;
            return true;
        }
        self.queue(parts, &to, about.message(&to, &packed, now)).await
    }

    /// In one batch with the end of its counts.
    async fn queue(&self, parts: &Parts, to: &[Address], content: Vec<u8>) -> bool {
        let envelope = Envelope::new(ReversePath::Null, to.iter().cloned());
        let origin = Origin { door: Door::Bounce, account: None, peer: None };
        let draft = Draft { envelope, content: bytes::Bytes::from(content).into(), origin };
        let domain: &Domain = &parts.domain;
        match self.intake.load().accept_with(draft, self.kept.without(parts)).await {
            Ok(accepted) => {
                tracing::info!(%domain, id = %accepted.id, "a DMARC report is queued");
                self.kept.gone(parts);
                true
            }
            Err(refusal) => {
                tracing::warn!(%domain, reason = refusal.reason, "a DMARC report could not be queued");
                false
            }
        }
    }
}

/// Those that take so many bytes.
fn addresses(wanted: &[Destination], size: u64) -> Vec<Address> {
    let takes = |one: &&Destination| one.max_bytes.is_none_or(|max| size <= max);
    wanted.iter().filter(takes).map(|one| one.address.clone()).collect()
}
