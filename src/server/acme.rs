//! A certificate from an authority (ACME, RFC 8555): got, shown and renewed without anybody's help.
//!
//! [`Keeper`] waits until one is due (`plan`), orders it (`order`, through `wire`), answers the authority's
//! question meanwhile (`respond`), writes it down (`keep`) and shows it to new clients; sessions that live
//! are not disturbed. A failure keeps the certificate that there is, is told, and is tried again later
//! and later. Before there is one, the self-signed one is shown.
//!
//! The one name is `hostname`. Left out: other names, DNS challenges, revocation.

mod keep;
mod order;
pub mod plan;
mod respond;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::keep::Shelf;
use self::order::Trouble;
use self::plan::Notes;
use self::respond::Answers;
pub use self::respond::Responder;
use super::tls::{ServerTls, facts};
use crate::clock::{Clock, Millis, rfc3339};
use crate::config::{Acme, Config};
use crate::events::server::{ServerCounters, ServerEvent};
use crate::message::Domain;

/// How often it is looked whether an order is due: the clock may be set.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// From the first request of an order to the certificate.
const ORDER_TIME: Duration = Duration::from_secs(10 * 60);

/// Sees to it that there is a good certificate.
#[derive(Debug)]
pub struct Keeper {
    acme: Acme,
    hostname: Domain,
    shelf: Shelf,
    tls: ServerTls,
    clock: Clock,
    counters: Arc<ServerCounters>,
    answers: Answers,
}

impl Keeper {
    /// None: `[tls.acme]` is not enabled.
    pub fn new(config: &Config, tls: ServerTls, clock: Clock, counters: Arc<ServerCounters>) -> Option<Keeper> {
        let acme = config.acme.clone()?;
        let shelf = Shelf::of(config, &acme);
        let (hostname, answers) = (config.hostname.clone(), Answers::default());
        Some(Keeper { acme, hostname, shelf, tls, clock, counters, answers })
    }

    /// Until `stop`. An order under way is given up then, and begun anew at the next start.
    pub async fn run(self, responder: Responder, stop: CancellationToken) {
        let answering = responder.serve(self.answers.clone());
        tokio::select! {
            () = stop.cancelled() => {}
            () = answering => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&self) {
        let mut has_started = false;
        loop {
            let due = self.due(!has_started);
            if self.clock.now() < due {
                if !has_started {
                    info!(until = rfc3339(due), "tls.acme: the certificate for {} is good", self.hostname);
                }
                has_started = true;
                sleep(LOOK_EVERY).await;
                continue;
            }
            if !has_started && self.tls.self_signed() {
                warn!(
                    "tls.acme: there is no certificate for {} yet; until the authority has given one, clients see a \
                     self-signed one",
                    self.hostname
                );
            }
            has_started = true;
            self.renew().await;
        }
    }

    /// When the next order is to begin.
    fn due(&self, is_start: bool) -> Millis {
        let now = self.clock.now();
        let shown = self.tls.default_certificate();
        let good = shown.as_ref().filter(|_| !self.tls.self_signed()).and_then(|certificate| {
            let validity = facts::validity(certificate)?;
            Some(plan::renewal(validity, certificate))
        });
        plan::next(&self.shelf.notes(), good, now, is_start)
    }

    async fn renew(&self) {
        let now = self.clock.now();
        let mut notes = self.shelf.notes();
        notes.begin(now);
        // Without this note a server that starts again and again would order again and again.
        if let Err(error) = self.shelf.write_notes(&notes) {
            let why = format!("{}: cannot be written: {error}", self.shelf.folder().display());
            return self.failed(notes, Trouble::of(why)).await;
        }
        info!("tls.acme: asking {} for a certificate for {}", self.acme.directory, self.hostname);
        let order = order::Order {
            acme: &self.acme,
            hostname: &self.hostname,
            shelf: &self.shelf,
            answers: &self.answers,
            clock: &self.clock,
        };
        let obtained = match timeout(ORDER_TIME, order.run()).await {
            Ok(obtained) => obtained,
            Err(_) => Err(Trouble::of(format!("no certificate within {} minutes", ORDER_TIME.as_secs() / 60))),
        };
        self.answers.clear();
        let taken = obtained.and_then(|pem| self.take(&pem));
        match taken {
            Ok(until) => self.succeeded(notes, until),
            Err(trouble) => self.failed(notes, trouble).await,
        }
    }

    /// Shows what the authority has given, if it is what was asked for. Gives its end.
    fn take(&self, pem: &str) -> Result<Millis, Trouble> {
        let provider = aws_lc_rs::default_provider();
        let unusable = |why: String| Trouble::of(format!("the authority has given a certificate that {why}"));
        self.shelf
            .write_candidate(pem)
            .map_err(|error| Trouble::of(format!("{}: cannot be written: {error}", self.shelf.folder().display())))?;
        let pair = self.shelf.candidate(&provider).map_err(|error| unusable(format!("cannot be used: {error}")))?;
        let certificate = pair.cert.first().cloned().ok_or_else(|| unusable("is none".to_owned()))?;
        if !facts::names(&certificate).iter().any(|name| name == self.hostname.as_str()) {
            return Err(unusable(format!("is not for {}", self.hostname)));
        }
        let validity =
            facts::validity(&certificate).ok_or_else(|| unusable("does not say until when it is good".to_owned()))?;
        if validity.to <= self.clock.now() {
            return Err(unusable(format!(
                "has ended already ({}): is this machine's clock right?",
                rfc3339(validity.to)
            )));
        }
        self.shelf
            .accept_candidate()
            .map_err(|error| Trouble::of(format!("{}: cannot be written: {error}", self.shelf.folder().display())))?;
        self.tls.renew(pair);
        Ok(validity.to)
    }

    fn succeeded(&self, mut notes: Notes, until: Millis) {
        notes.succeed();
        if let Err(error) = self.shelf.write_notes(&notes) {
            warn!(%error, "tls.acme: cannot note that a certificate was got");
        }
        let event = ServerEvent::CertificateRenewed { name: self.hostname.to_string(), until };
        event.tell(&self.counters);
    }

    async fn failed(&self, mut notes: Notes, trouble: Trouble) {
        let now = self.clock.now();
        notes.fail(now, &trouble.why, trouble.retry_after);
        if let Err(error) = self.shelf.write_notes(&notes) {
            warn!(%error, "tls.acme: cannot note that no certificate was got");
            // Nothing remembers the failure, so this does.
            sleep(plan::wait(1)).await;
        }
        let next = self.due(false);
        let event = ServerEvent::CertificateFailed { name: self.hostname.to_string(), why: trouble.why, next };
        event.tell(&self.counters);
    }
}

/// The certificate that an earlier run has got. None: there is none for this name from this authority yet.
pub(super) fn kept(config: &Config, provider: &CryptoProvider) -> Option<CertifiedKey> {
    let acme = config.acme.as_ref()?;
    let pair = Shelf::of(config, acme).pair(provider)?;
    let names = facts::names(pair.cert.first()?);
    names.iter().any(|name| name == config.hostname.as_str()).then_some(pair)
}

/// What `postrider check` has to say of it.
pub(super) fn doubt(config: &Config, now: Millis) -> Option<String> {
    let acme = config.acme.as_ref()?;
    let notes = Shelf::of(config, acme).notes();
    let (at, why) = (notes.failed_at?, notes.why.as_deref().unwrap_or_default());
    let next = plan::next(&notes, None, now, false);
    let (at, next) = (rfc3339(at), rfc3339(next));
    Some(format!(
        "tls.acme: the last order has failed ({at}, {} in a row): {why}; the next one is at {next}",
        notes.failures
    ))
}
