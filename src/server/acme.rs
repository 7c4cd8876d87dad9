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

use std::path::PathBuf;
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
        let mut notes = self.shelf.notes();
        let due = self.due(&notes, true);
        if self.tls.self_signed() {
            warn!(
                "tls.acme: there is no certificate for {} yet; until the authority has given one, clients see a \
                 self-signed one",
                self.hostname
            );
        } else {
            info!(renewal = rfc3339(due), "tls.acme: there is a certificate for {}", self.hostname);
        }
        self.wait(|| self.due(&notes, true)).await;
        loop {
            notes = self.renew(notes).await;
            self.wait(|| self.due(&notes, false)).await;
        }
    }

    async fn wait(&self, due: impl Fn() -> Millis) {
        while self.clock.now() < due() {
            sleep(LOOK_EVERY).await;
        }
    }

    /// When the next order is to begin.
    fn due(&self, notes: &Notes, is_start: bool) -> Millis {
        let shown = self.tls.default_certificate().filter(|_| !self.tls.self_signed());
        let good = shown.and_then(|certificate| Some(plan::renewal(facts::validity(&certificate)?, &certificate)));
        plan::next(notes, good, self.clock.now(), is_start)
    }

    /// One order, and what is to be remembered of it.
    async fn renew(&self, mut notes: Notes) -> Notes {
        notes.begin(self.clock.now());
        // Without this note a server that starts again and again would order again and again.
        let noted = self.shelf.write_notes(&notes).map_err(|error| self.unwritable(&error));
        let taken = match noted {
            Ok(()) => self.order().await.and_then(|pem| self.take(&pem)),
            Err(trouble) => Err(trouble),
        };
        self.answers.clear();
        let event = match taken {
            Ok(until) => {
                notes.succeed();
                ServerEvent::CertificateRenewed { name: self.hostname.to_string(), until }
            }
            Err(Trouble { why, retry_after }) => {
                notes.fail(self.clock.now(), &why, retry_after);
                let next = self.due(&notes, false);
                ServerEvent::CertificateFailed { name: self.hostname.to_string(), why, next }
            }
        };
        if let Err(error) = self.shelf.write_notes(&notes) {
            warn!(%error, "tls.acme: what became of the order cannot be noted");
        }
        event.tell(&self.counters);
        notes
    }

    async fn order(&self) -> Result<String, Trouble> {
        info!("tls.acme: asking {} for a certificate for {}", self.acme.directory, self.hostname);
        let order = order::Order {
            acme: &self.acme,
            hostname: &self.hostname,
            shelf: &self.shelf,
            answers: &self.answers,
            clock: &self.clock,
        };
        let minutes = ORDER_TIME.as_secs() / 60;
        let late = |_| Err(Trouble::of(format!("no certificate within {minutes} minutes")));
        timeout(ORDER_TIME, order.run()).await.unwrap_or_else(late)
    }

    fn unwritable(&self, error: &std::io::Error) -> Trouble {
        Trouble::of(format!("{}: cannot be written: {error}", self.shelf.folder().display()))
    }

    /// Shows what the authority has given, if it is what was asked for. Gives its end.
    fn take(&self, pem: &str) -> Result<Millis, Trouble> {
        self.shelf.write_candidate(pem).map_err(|error| self.unwritable(&error))?;
        let (pair, until) = self.judge().map_err(|why| {
            self.shelf.discard_candidate();
            Trouble::of(format!("the authority has given a certificate that {why}"))
        })?;
        self.shelf.accept_candidate().map_err(|error| self.unwritable(&error))?;
        self.tls.renew(pair);
        Ok(until)
    }

    fn judge(&self) -> Result<(CertifiedKey, Millis), String> {
        let provider = aws_lc_rs::default_provider();
        let pair = self.shelf.candidate(&provider).map_err(|error| format!("cannot be used: {error}"))?;
        let certificate = pair.cert.first().ok_or("is none")?;
        if !facts::names(certificate).iter().any(|name| name == self.hostname.as_str()) {
            return Err(format!("is not for {}", self.hostname));
        }
        let until = facts::validity(certificate).ok_or("does not say until when it is good")?.to;
        if until <= self.clock.now() {
            return Err(format!("has ended already ({}): is this machine's clock right?", rfc3339(until)));
        }
        Ok((pair, until))
    }
}

/// Does a keeper for the one do for the other?
pub fn is_same(one: &Config, other: &Config) -> bool {
    one.acme == other.acme
        && (one.acme.is_none() || (&one.hostname, &one.data_dir) == (&other.hostname, &other.data_dir))
}

/// The certificate that an earlier run has got. None: there is none for this name from this authority yet.
pub(super) fn kept(config: &Config, provider: &CryptoProvider) -> Option<CertifiedKey> {
    let acme = config.acme.as_ref()?;
    let pair = Shelf::of(config, acme).pair(provider)?;
    let names = facts::names(pair.cert.first()?);
    names.iter().any(|name| name == config.hostname.as_str()).then_some(pair)
}

/// Where it is.
pub fn kept_file(config: &Config) -> Option<PathBuf> {
    let file = Shelf::of(config, config.acme.as_ref()?).pair_file();
    file.exists().then_some(file)
}

/// What `postrider check` has to say of it.
pub(super) fn doubt(config: &Config, now: Millis) -> Option<String> {
    let acme = config.acme.as_ref()?;
    let notes = Shelf::of(config, acme).notes();
    let (at, why) = (notes.failed_at?, notes.why.as_deref().unwrap_or_default());
    let next = match plan::next(&notes, None, now, false) {
        next if next > now => format!("at {}", rfc3339(next)),
        _ => "due".to_owned(),
    };
    let (at, failures) = (rfc3339(at), notes.failures);
    Some(format!("tls.acme: the last order has failed ({at}, {failures} in a row): {why}; the next one is {next}"))
}
