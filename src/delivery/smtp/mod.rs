//! Mail to other servers by SMTP: one job, tried at the hosts of its domain in order.
//!
//! `mx` and `addresses` say where to go, `client` (with `replies`, `extensions`, `commands`,
//! `transaction`, `step`) speaks, `auth` (with `md5`) knows what to say at a login, `connection` and `tls`
//! do the I/O (and `dialogue` logs it where a host's settings say so), `attempt` goes from host to host, `pool` keeps connections for the next message. `host` is
//! about hosts that somebody has named, `pop_before` about those that want a login by POP3 first.
//!
//! Promises: one outcome per recipient, whatever the far end does; every wait is bounded, and so is
//! the whole; trouble with a host never fails the mail; a message whose fate is unsure is not offered
//! to another host in the same attempt.
//!
//! `tls_policy` (with `mta_sts` and `dane`) says what TLS a mail exchanger has to show.
//!
//! LMTP is the same conversation but for its beginning and its end (`client::lmtp`, `attempt::lmtp`).
//!
//! Leaves out: which smart host a message goes by.

mod addresses;
mod attempt;
mod auth;
pub(crate) mod client;
pub(crate) mod commands;
mod connection;
mod dane;
pub mod dialogue;
mod extensions;
mod host;
mod md5;
pub(crate) mod mta_sts;
mod mx;
mod pool;
mod pop_before;
mod prospect;
pub(crate) mod replies;
pub(crate) mod step;
pub(crate) mod tls;
mod tls_policy;
mod transaction;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_util::sync::CancellationToken;

use super::https::Https;
use super::shelf::Shelf;
use super::tls_report::{Flaw, Tally};
use super::{Job, Outcome, groups};
use crate::clock::Clock;
use crate::config::targets::LmtpAddress;
use crate::config::{self, Config};
use crate::dns::{DnsError, MxAnswer, Resolver};
use crate::message::{Domain, ReversePath, TlsWish};
pub use crate::trail::{Leg, Mark, Trail};

use addresses::{Failing, Family};
pub use addresses::{Refused, refused};
pub use auth::{Login, LoginFault, Secret};
pub use host::{Attempted, HostTarget, HostTrouble, TlsMode};
pub use mta_sts::{Mode, Policy, record_id};
pub use mx::Dice;
pub use pop_before::PopBeforeSmtp;
pub use prospect::{HostProspect, Prospect};
pub use step::{Stage, Timeouts, Trouble};
pub use tls::system_roots;
pub use tls_policy::{By, TlsPolicies};

use connection::Connection;
pub use connection::{Connecting, Io, Network};
use tls::Judge;
use tls_policy::{Certificate, DomainPolicy, HostPolicy, Terms};

/// How far a test of a named host goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeMode {
    /// Up to the recipient, then RSET.
    Rehearse,
    Send,
}

/// Why there can be no SMTP transport: the program was built wrongly.
#[derive(Debug, thiserror::Error)]
#[error("TLS for outgoing mail cannot be set up: {0}")]
pub struct SetupError(#[from] tokio_rustls::rustls::Error);

/// Delivers jobs with `Route::Remote`. Share it; make a new one when the configuration changes.
#[derive(Debug)]
pub struct SmtpTransport {
    resolver: Resolver,
    /// Names under which this server may stand in an MX record.
    own_names: [Domain; 2],
    settings: config::Delivery,
    destinations: config::Destinations,
    sources: addresses::Sources,
    /// By [`groups::name`](super::groups::name).
    failing: Mutex<addresses::Failing>,
    timeouts: Timeouts,
    policies: Arc<TlsPolicies>,
    /// Where the sessions are counted for TLS reports.
    tally: Option<Arc<Tally>>,
    connector: Connector,
    /// For hosts whose certificate is looked at after the handshake.
    unjudged: Connector,
    /// Checks certificates; made when the first host wants that.
    verifying: OnceCell<Connector>,
    authorities: OnceCell<Arc<WebPkiServerVerifier>>,
    dice: Mutex<Dice>,
    /// None: TCP.
    network: Option<Arc<dyn Network>>,
    pool: pool::Pool,
    /// Nobody waits any longer for the verdict on a message.
    hurry: CancellationToken,
}

impl SmtpTransport {
    pub fn new(config: &Config, resolver: Resolver) -> Result<SmtpTransport, SetupError> {
        let mut seed = [0; 8];
        // Without randomness the hosts of equal preference come in the same order after each start.
        let _ = getrandom::fill(&mut seed);
        let https = Arc::new(Https::new(resolver.clone(), config.delivery.allow_private_addresses));
        let (shelf, clock) = (Shelf::default(), Clock::System);
        let policies = Arc::new(TlsPolicies::new(&config.delivery, resolver.clone(), https, shelf, clock));
        Ok(SmtpTransport {
            policies,
            tally: None,
            unjudged: Connector(tls::unjudged()?),
            authorities: OnceCell::new(),
            resolver,
            own_names: [config.hostname.clone(), config.delivery.helo_name.clone()],
            settings: config.delivery.clone(),
            destinations: config.destinations.clone(),
            sources: addresses::Sources::new(&config.delivery.source_addresses),
            failing: Mutex::default(),
            timeouts: Timeouts::RFC5321,
            connector: Connector(tls::opportunistic()?),
            verifying: OnceCell::new(),
            dice: Mutex::new(Dice::new(u64::from_le_bytes(seed))),
            network: None,
            pool: pool::Pool::new(config.delivery.concurrency),
            hurry: CancellationToken::new(),
        })
    }

    /// Fixes the order of hosts of equal preference.
    pub fn with_seed(self, seed: u64) -> SmtpTransport {
        SmtpTransport { dice: Mutex::new(Dice::new(seed)), ..self }
    }

    /// Connects by this in place of TCP.
    pub fn with_network(self, network: Arc<dyn Network>) -> SmtpTransport {
        SmtpTransport { network: Some(network), ..self }
    }

    /// Other time-outs than those of RFC 5321.
    pub fn with_timeouts(self, timeouts: Timeouts) -> SmtpTransport {
        SmtpTransport { timeouts, ..self }
    }

    /// From when on nobody waits for the verdict on a message: its fate is unsure then.
    pub fn hurried_by(self, hurry: CancellationToken) -> SmtpTransport {
        SmtpTransport { hurry, ..self }
    }

    /// Policies that are kept between starts.
    pub fn with_policies(self, policies: Arc<TlsPolicies>) -> SmtpTransport {
        SmtpTransport { policies, ..self }
    }

    /// Counts sessions for TLS reports.
    pub fn with_tally(self, tally: Arc<Tally>) -> SmtpTransport {
        SmtpTransport { tally: Some(tally), ..self }
    }

    /// Other certificate authorities than the system's.
    pub fn with_roots(self, roots: RootCertStore) -> Result<SmtpTransport, SetupError> {
        let verifying = OnceCell::new_with(Some(Connector(tls::verified(roots.clone())?)));
        let authorities = OnceCell::new_with(tls::authorities(roots).ok());
        Ok(SmtpTransport { verifying, authorities, ..self })
    }

    /// Tries the job once: recipients at domains that have the same servers share transactions. One outcome
    /// per recipient.
    pub async fn deliver(&self, job: &Job) -> Vec<(u32, Outcome)> {
        attempt::run(self, job, &job.message.mail_from).await
    }

    /// As [`SmtpTransport::deliver`], with another envelope sender than the client's.
    pub async fn deliver_as(&self, job: &Job, mail_from: &ReversePath) -> Vec<(u32, Outcome)> {
        attempt::run(self, job, mail_from).await
    }

    /// Tries the job once at named hosts, one after the other until every recipient's fate is known. What
    /// goes wrong with a host, our login there included, never fails the mail.
    pub async fn deliver_through(&self, job: &Job, targets: &[HostTarget]) -> Attempted {
        attempt::run_through(self, job, targets).await
    }

    /// Tries the job once at a server that speaks LMTP. One outcome per recipient.
    pub async fn deliver_lmtp(&self, job: &Job, address: &LmtpAddress) -> Vec<(u32, Outcome)> {
        attempt::run_lmtp(self, job, address).await
    }

    /// Tests a named host with a job of one recipient, over a connection of its own, and notes the way there.
    /// Gives the recipient's outcome; none where it was accepted and nothing was to be sent.
    pub async fn probe(
        &self,
        job: &Job,
        target: &HostTarget,
        mode: ProbeMode,
        trail: &Trail,
    ) -> Result<Option<Outcome>, Trouble> {
        attempt::probe(self, job, target, mode, trail).await
    }

    /// As [`SmtpTransport::probe`], at a server that speaks LMTP.
    pub async fn probe_lmtp(
        &self,
        job: &Job,
        address: &LmtpAddress,
        mode: ProbeMode,
        trail: &Trail,
    ) -> Result<Option<Outcome>, Trouble> {
        attempt::probe_lmtp(self, job, address, mode, trail).await
    }

    /// Says goodbye to connections that wait for another message, and keeps none from now on.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// The servers that take mail for a domain, in no order; none if that cannot be found out now, or
    /// there are none.
    pub async fn exchangers(&self, domain: &Domain) -> Option<Vec<Domain>> {
        match self.resolver.mx(domain).await {
            Ok(MxAnswer::Hosts(listed)) => Some(listed.into_iter().map(|mx| mx.host).collect()),
            Ok(MxAnswer::Implicit) => Some(vec![domain.clone()]),
            Ok(MxAnswer::Null | MxAnswer::NoSuchDomain) | Err(_) => None,
        }
    }

    /// The hosts to try, and what is demanded of them.
    async fn hosts(&self, domain: &Domain, wish: TlsWish) -> Result<(Vec<Domain>, DomainPolicy), Box<Outcome>> {
        let (answer, is_signed) = match self.policies.uses_dane().await && wish != TlsWish::Optional {
            true => match self.resolver.signed_mx(domain).await {
                Ok((answer, is_signed)) => (Ok(answer), is_signed),
                Err(error) => (Err(error), false),
            },
            false => (self.resolver.mx(domain).await, false),
        };
        let own: Vec<&Domain> = self.own_names.iter().collect();
        let hosts = self.with_dice(|dice| mx::hosts(domain, answer, &own, dice))?;
        Ok((hosts, self.policies.of_domain(domain, wish, is_signed).await))
    }

    async fn judge(&self, terms: &Terms) -> Result<Judge, String> {
        let certificate = terms.certificate.clone();
        if certificate != Certificate::Authority {
            return Ok(Judge { certificate, authorities: None });
        }
        let made = self.authorities.get_or_try_init(|| async {
            let roots = tokio::task::spawn_blocking(tls::system_roots).await.map_err(|error| error.to_string())??;
            tls::authorities(roots)
        });
        match made.await {
            Ok(authorities) => Ok(Judge { certificate, authorities: Some(authorities.clone()) }),
            // Where nothing hangs on it, the mail goes.
            Err(_) if !terms.enforced => Ok(Judge { certificate, authorities: None }),
            Err(why) => Err(why),
        }
    }

    /// Counts a session, and remembers a host that kept to a policy.
    async fn tell(&self, policy: &HostPolicy, host: &Domain, ip: IpAddr, flaw: Option<(Flaw, String)>) {
        let flaw = flaw.or_else(|| policy.flaw.clone());
        if flaw.is_none() && policy.terms.certificate != Certificate::Any {
            self.policies.has_shown(host).await;
        }
        let Some(tally) = &self.tally else { return };
        match flaw {
            None => tally.good(&policy.ruling),
            Some((flaw, what)) => tally.bad(&policy.ruling, flaw, Some(host), Some(ip), &what),
        }
    }

    /// Counts a host that was not connected to.
    fn tell_unused(&self, policy: &HostPolicy, host: &Domain) {
        if let (Some(tally), Some((flaw, what))) = (&self.tally, &policy.flaw) {
            tally.bad(&policy.ruling, *flaw, Some(host), None, what);
        }
    }

    /// Of `host`, which is one of `servers`.
    async fn addresses(&self, host: &Domain, servers: &[Domain], allow_private: bool) -> Result<mx::Addresses, String> {
        let found: Vec<IpAddr> = match self.resolver.addresses(host).await {
            Ok(found) => found,
            Err(DnsError::NoSuchDomain | DnsError::Unusable(_)) => Vec::new(),
            Err(DnsError::Temporary(reason) | DnsError::Setup(reason)) => return Err(reason),
        };
        let failing = self.failing_family(servers);
        Ok(self.with_dice(|dice| mx::addresses(found, allow_private, failing, dice)))
    }

    /// The family of addresses that had better be tried last.
    fn failing_family(&self, servers: &[Domain]) -> Option<Family> {
        self.sources.missing().or_else(|| {
            let failing = self.lock_failing();
            if failing.is_empty() { None } else { failing.family(&groups::name(servers), Instant::now()) }
        })
    }

    /// One of `servers` could be connected to at this address, or not.
    fn note_family(&self, servers: &[Domain], ip: IpAddr, is_connected: bool) {
        let mut failing = self.lock_failing();
        match is_connected {
            true if failing.is_empty() => {}
            true => failing.connected(&groups::name(servers), Family::of(ip)),
            false => failing.failed(&groups::name(servers), Family::of(ip), Instant::now()),
        }
    }

    fn lock_failing(&self) -> MutexGuard<'_, Failing> {
        // Nothing in here panics half-way, so a poisoned lock still guards sound data.
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connector for hosts whose certificate is checked.
    async fn verifying(&self) -> Result<&TlsConnector, String> {
        let made = self.verifying.get_or_try_init(|| async {
            let roots = tokio::task::spawn_blocking(tls::system_roots).await.map_err(|error| error.to_string())??;
            tls::verified(roots).map(Connector).map_err(|error| error.to_string())
        });
        made.await.map(|Connector(connector)| connector)
    }

    fn with_dice<T>(&self, roll: impl FnOnce(&mut Dice) -> T) -> T {
        roll(&mut self.dice.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is wrong with the TLS of a connection. None: it did not come as far as TLS.
fn flaw(opened: &Result<Connection, Trouble>) -> Option<Option<(Flaw, String)>> {
    match opened {
        Ok(connection) if !connection.is_under_tls() => {
            Some(Some((Flaw::StarttlsNotSupported, "it does not offer STARTTLS".to_owned())))
        }
        Ok(connection) => Some(connection.fault().map(|fault| (fault.flaw, fault.what.clone()))),
        Err(trouble) => trouble.flaw.map(|flaw| Some((flaw, trouble.failure.reason.clone()))),
    }
}

/// A `TlsConnector` that can be shown.
struct Connector(TlsConnector);

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsConnector")
    }
}
