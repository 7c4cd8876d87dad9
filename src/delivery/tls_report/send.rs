//! Sends the reports of days that are over.

use std::sync::Arc;

use super::count::{Counts, SHELF, Tally, name};
use super::report::About;
use crate::clock::{Clock, DAY, Millis};
use crate::config::{Config, WayOut};
use crate::delivery::daily;
use crate::delivery::https::Https;
use crate::dns::{DnsError, Resolver};
use crate::intake::Intake;
use crate::message::{Address, Domain, Door, Draft, Envelope, Origin, ReversePath};

/// Tries at https addresses; days for which a report whose addresses cannot be looked up is kept.
const TRIES_MAX: u32 = 5;
const DAYS_MAX: u64 = 3;
/// Addresses of one record.
const ADDRESSES_MAX: usize = 4;

/// Sends reports.
#[derive(Debug)]
pub struct Reports {
    pub config: Arc<Config>,
    pub clock: Clock,
    pub resolver: Resolver,
    pub https: Arc<Https>,
    pub tally: Arc<Tally>,
    pub intake: Arc<Intake>,
}

/// Where a domain wants its reports (RFC 8460 3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub mail: Vec<Address>,
    pub https: Vec<String>,
}

impl Wanted {
    pub fn parse(texts: &[String]) -> Wanted {
        let mut ours = texts.iter().filter(|text| text.split(';').next().is_some_and(|v| v.trim_end() == "v=TLSRPTv1"));
        let (Some(only), None) = (ours.next(), ours.next()) else { return Wanted::default() };
        let mut wanted = Wanted::default();
        let fields = only.split(';').skip(1).filter_map(|field| field.split_once('='));
        let uris = fields.filter(|(key, _)| key.trim() == "rua").flat_map(|(_, value)| value.split(','));
        for uri in uris.map(str::trim).take(ADDRESSES_MAX) {
            let (scheme, rest) = uri.split_once(':').unwrap_or_default();
            match scheme.to_ascii_lowercase().as_str() {
                "mailto" => wanted.mail.extend(Address::parse(rest.split('?').next().unwrap_or_default())),
                "https" => wanted.https.push(uri.to_owned()),
                _ => {}
            }
        }
        wanted
    }

    pub fn is_empty(&self) -> bool {
        self.mail.is_empty() && self.https.is_empty()
    }
}

impl Reports {
    /// When reports are to be sent next: at our own time of the day, and each hour after it.
    pub fn next(&self) -> Millis {
        daily::next(&self.clock, &self.config.hostname)
    }

    /// Sends what is due. Returns when all is queued or has been tried.
    pub async fn send_due(&self) {
        if self.config.delivery.default == WayOut::Capture {
            // Nothing leaves, by HTTPS as little as by mail.
            return;
        }
        let _writing = self.tally.writing.lock().await;
        self.tally.flush_locked().await;
        if !daily::is_due(&self.clock, &self.config.hostname) {
            return;
        }
        for (day, domain, counts) in self.tally.over() {
            self.send(day, &domain, counts).await;
        }
    }

    async fn send(&self, day: u64, domain: &Domain, counts: Counts) {
        let today = self.clock.now() / DAY;
        let wanted = match self.resolver.txt(&format!("_smtp._tls.{domain}")).await {
            Ok(texts) => Wanted::parse(&texts),
            Err(DnsError::NoSuchDomain | DnsError::Unusable(_)) => Wanted::default(),
            Err(_) if today.saturating_sub(day) <= DAYS_MAX => return,
            Err(_) => Wanted::default(),
        };
        let key = name(day, domain);
        if wanted.is_empty() || counts.policies.is_empty() {
            return self.tally.shelf().forget(SHELF, &[key]).await;
        }
        let contact = daily::contact(&self.config);
        let about = About { organization: &self.config.hostname, contact: &contact, domain, day };
        let Ok(packed) = daily::pack(&about.json(&counts).to_string()) else { return };
        let mut counts = counts;
        if !counts.is_mailed && !wanted.mail.is_empty() && !self.mail(&about, &wanted, &counts, &packed).await {
            return;
        }
        counts.is_mailed = true;
        if wanted.https.is_empty() {
            return;
        }
        let mut failed = 0;
        for url in &wanted.https {
            if let Err(error) = self.https.post(url, "application/tlsrpt+gzip", packed.clone()).await {
                tracing::info!(%domain, %error, "the TLS report could not be posted");
                failed += 1;
            }
        }
        counts.tries += 1;
        match failed > 0 && counts.tries < TRIES_MAX {
            true => self.tally.shelf().put(SHELF, &key, &counts).await,
            false => self.tally.shelf().forget(SHELF, &[key]).await,
        }
    }

    /// Queues the report, and notes in the same batch that it is. False: later again.
    async fn mail(&self, about: &About<'_>, wanted: &Wanted, counts: &Counts, packed: &[u8]) -> bool {
        let key = name(about.day, about.domain);
        let rest = Counts { is_mailed: true, ..counts.clone() };
        let done = self.tally.shelf().batch(SHELF, &key, Some(&rest).filter(|_| !wanted.https.is_empty()));
        let content = about.message(&wanted.mail, packed, self.clock.now());
        let envelope = Envelope::new(ReversePath::Null, wanted.mail.iter().cloned());
        let origin = Origin { door: Door::Bounce, account: None, peer: None };
        let draft = Draft { envelope, content: bytes::Bytes::from(content).into(), origin };
        match self.intake.accept_with(draft, done).await {
            Ok(accepted) => {
                tracing::info!(domain = %about.domain, id = %accepted.id, "a TLS report is queued");
                true
            }
            Err(refusal) => {
                tracing::warn!(domain = %about.domain, reason = refusal.reason, "a TLS report could not be queued");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_reports_are_wanted() {
        let parse = |texts: &[&str]| Wanted::parse(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        let both = parse(&["x", "v=TLSRPTv1; rua=mailto:tls@far.test, https://far.test/tls ,ftp:x; ext=1"]);
        assert_eq!(both.mail.iter().map(ToString::to_string).collect::<Vec<_>>(), ["tls@far.test"]);
        assert_eq!(both.https, ["https://far.test/tls"]);
        for none in [
            &["v=TLSRPTv1; rua=mailto:a@b.test", "v=TLSRPTv1; rua=mailto:c@b.test"][..],
            &["v=TLSRPTv2; rua=mailto:a@b.test"],
            &["v=TLSRPTv1"],
            &["v=TLSRPTv1; rua=mailto:nobody"],
        ] {
            assert!(parse(none).is_empty(), "{none:?}");
        }
    }
}
