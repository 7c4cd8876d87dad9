//! What TLS a mail exchanger has to show before it gets mail: DANE, MTA-STS, the configuration, the sender
//! and what is known from before, put together before anybody is connected to.
//!
//! | who demands                         | TLS      | certificate                                     |
//! |-------------------------------------|----------|-------------------------------------------------|
//! | DANE: signed TLSA records           | must be  | as one of them says (RFC 7672)                  |
//! | MTA-STS, mode enforce               | must be  | for the host, from an authority (RFC 8461 4.1)  |
//! | the sender: REQUIRETLS              | must be  | the same, unless DANE says otherwise (RFC 8689) |
//! | `delivery.tls.policy = "required"`  | must be  | any                                             |
//! | the host showed a valid one before  | must be  | any                                             |
//! | MTA-STS, mode testing               | if there | looked at and reported                          |
//! | nobody                              | if there | any; in clear where TLS is broken               |
//!
//! The first row that applies counts. A policy belongs to the domain of the recipient, never to a mail
//! exchanger that several domains share; it does not apply to named hosts. `TLS-Required: No` in a message
//! sets all aside but the administrator's own demand (RFC 8689 5).

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::dane::{self, Tlsa};
use super::mta_sts::{self, Kept, Mode};
use super::step::{Stage, Tls, Trouble};
use crate::clock::{Clock, Millis};
use crate::config::{self, OutboundTls};
use crate::delivery::https::Https;
use crate::delivery::shelf::Shelf;
use crate::delivery::tls_report::{Flaw, Ruling};
use crate::dns::{DnsError, Resolver};
use crate::message::{Domain, TlsWish};
use crate::queue::record::Failure;

/// Milliseconds for which a host that showed a valid certificate under a policy is held to TLS.
const KNOWN_FOR: Millis = 30 * 24 * 3600 * 1000;
/// Milliseconds after which that is written down anew.
const KNOWN_AGAIN: Millis = 24 * 3600 * 1000;
/// Hosts remembered in memory; what is forgotten there is still in the store.
const HOSTS_MAX: usize = 10_000;
/// In the store.
const SHELF: u8 = b'h';

/// Who demands something of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum By {
    #[default]
    Nobody,
    Setting,
    /// The host.
    Known(Domain),
    Sender,
    /// The recipients' domain.
    Sts(Domain),
    /// The host.
    Dane(Domain),
}

impl By {
    /// For a sentence: "… demands TLS". None: nobody does.
    pub fn name(&self) -> Option<String> {
        Some(match self {
            By::Nobody => return None,
            By::Setting => "delivery.tls.policy = \"required\"".to_owned(),
            By::Known(host) => format!("earlier knowledge ({host} had TLS with a valid certificate before)"),
            By::Sender => "the sender (REQUIRETLS)".to_owned(),
            By::Sts(domain) => format!("MTA-STS of {domain}"),
            By::Dane(host) => format!("DANE of {host} (its TLSA records)"),
        })
    }

    /// The key that makes it count. None: nobody demands, or the sender does.
    pub fn key(&self) -> Option<&'static str> {
        match self {
            By::Nobody | By::Sender => None,
            By::Setting | By::Known(_) => Some("delivery.tls.policy"),
            By::Sts(_) => Some("delivery.tls.mta_sts"),
            By::Dane(_) => Some("delivery.tls.dane"),
        }
    }

    /// The key of who demands, in a sentence that has [`By::name`] in it.
    pub fn key_in(sentence: &str) -> Option<&'static str> {
        let has = |text: &str| sentence.contains(text);
        match () {
            () if has("DANE of ") => Some("delivery.tls.dane"),
            () if has("MTA-STS of ") => Some("delivery.tls.mta_sts"),
            () if has("delivery.tls.policy") || has("earlier knowledge (") => Some("delivery.tls.policy"),
            () => None,
        }
    }

    /// "X demands", with what can be done about it.
    pub fn demanding(&self) -> String {
        format!("{} demands{}", self.name().unwrap_or_default(), self.remedy())
    }

    /// What can be done about it, as the end of a sentence.
    pub fn remedy(&self) -> &'static str {
        match self {
            By::Nobody => "",
            By::Setting => "; with \"opportunistic\" it would go in clear",
            By::Known(_) => "; if the host has given TLS up for good, its postmaster has to say so",
            By::Sender => "; without REQUIRETLS it could go",
            By::Sts(_) => {
                "; its postmaster has to correct the host or the policy, the mail waits (delivery.tls.mta_sts = false \
                 would ignore the policies of all domains)"
            }
            By::Dane(_) => {
                "; its postmaster has to correct the host or the records, the mail waits (delivery.tls.dane = false \
                 would ignore those of all hosts)"
            }
        }
    }
}

/// Which certificate is good.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub enum Certificate {
    #[default]
    Any,
    /// For the host, and from an authority that the system trusts.
    Authority,
    /// As one of the TLSA records says.
    Tlsa(Arc<dane::Demand>),
}

/// What holds for a connection to one host.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    pub by: By,
    pub certificate: Certificate,
    /// Else it is only looked at.
    pub enforced: bool,
}

/// Who asks for it makes no difference to a connection that is open.
impl PartialEq for Terms {
    fn eq(&self, other: &Terms) -> bool {
        (self.enforced, &self.certificate) == (other.enforced, &other.certificate)
    }
}

impl Eq for Terms {}

impl Hash for Terms {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.enforced, &self.certificate).hash(state);
    }
}

impl Terms {
    fn enforced(by: By, certificate: Certificate) -> Terms {
        Terms { by, certificate, enforced: true }
    }

    pub fn tls(&self) -> Tls {
        if self.enforced { Tls::Required } else { Tls::IfOffered }
    }
}

/// What is known about a recipients' domain when its mail is tried.
#[derive(Clone, Debug)]
pub struct DomainPolicy {
    pub domain: Domain,
    wish: TlsWish,
    sts: mta_sts::Found,
    /// Its mail exchangers come from signed DNS.
    is_signed: bool,
}

impl DomainPolicy {
    /// May mail for both share a transaction? Not where one of them has demands or reports of its own.
    pub fn goes_with(&self, other: &DomainPolicy) -> bool {
        let is_plain =
            |policy: &DomainPolicy| !policy.is_signed && policy.sts.kept.is_none() && policy.sts.flaw.is_none();
        is_plain(self) && is_plain(other) && (self.wish, self.sts.is_given_up) == (other.wish, other.sts.is_given_up)
    }
}

/// What holds for one host of a domain.
#[derive(Clone, Debug)]
pub struct HostPolicy {
    pub terms: Terms,
    /// For the report.
    pub ruling: Ruling,
    /// What is wrong before it is connected to, for the report.
    pub flaw: Option<(Flaw, String)>,
}

/// Why a host is not connected to.
#[derive(Clone, Debug)]
pub struct Unused {
    pub policy: HostPolicy,
    pub trouble: Trouble,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    valid_at: Millis,
}

/// Knows the policies.
#[derive(Debug)]
pub struct TlsPolicies {
    resolver: Resolver,
    settings: Settings,
    clock: Clock,
    shelf: Shelf,
    sts: mta_sts::Policies,
    known: Mutex<HashMap<Domain, Option<Known>>>,
}

#[derive(Clone, Copy, Debug)]
struct Settings {
    policy: OutboundTls,
    mta_sts: bool,
    dane: bool,
    port: u16,
}

impl TlsPolicies {
    pub fn new(
        settings: &config::Delivery,
        resolver: Resolver,
        https: Arc<Https>,
        shelf: Shelf,
        clock: Clock,
    ) -> TlsPolicies {
        let sts = mta_sts::Policies::new(resolver.clone(), https, shelf.clone(), clock.clone());
        let settings =
            Settings { policy: settings.tls, mta_sts: settings.mta_sts, dane: settings.dane, port: settings.mx_port };
        TlsPolicies { resolver, settings, clock, shelf, sts, known: Mutex::default() }
    }

    /// Is it of use to ask for signed answers?
    pub async fn uses_dane(&self) -> bool {
        self.settings.dane && self.resolver.validates().await
    }

    /// `is_signed`: the list of its mail exchangers comes from signed DNS.
    pub async fn of_domain(&self, domain: &Domain, wish: TlsWish, is_signed: bool) -> DomainPolicy {
        let asks = self.settings.mta_sts && wish != TlsWish::Optional;
        let sts = if asks { self.sts.of(domain).await } else { mta_sts::Found::default() };
        DomainPolicy { domain: domain.clone(), wish, sts, is_signed }
    }

    /// What the host has to show; or why it must not be connected to.
    pub async fn of_host(&self, policy: &DomainPolicy, host: &Domain) -> Result<HostPolicy, Box<Unused>> {
        let domain = &policy.domain;
        if policy.wish == TlsWish::Optional {
            return Ok(HostPolicy { terms: self.own_terms(), ruling: Ruling::none(domain), flaw: None });
        }
        if policy.is_signed && host.literal().is_none() {
            match self.tlsa(host).await {
                Ok(records) if records.is_empty() => {}
                Ok(records) => return Ok(self.by_dane(policy, host, records)),
                Err(reason) => return Err(refused_by_dns(policy, host, reason)),
            }
        }
        if let Some(kept) = &policy.sts.kept {
            return self.by_sts(policy, host, kept);
        }
        let mut terms = self.own_terms();
        if policy.wish == TlsWish::Required {
            terms = Terms::enforced(By::Sender, Certificate::Authority);
        } else if !terms.enforced && !policy.sts.is_given_up && self.is_known(host) {
            terms = Terms::enforced(By::Known(host.clone()), Certificate::Any);
        }
        let flaw = policy.sts.flaw.clone();
        let ruling = match flaw {
            Some(_) => Ruling::sts(domain, Vec::new(), Vec::new()),
            None => Ruling::none(domain),
        };
        Ok(HostPolicy { terms, ruling, flaw })
    }

    /// Of the configuration.
    fn own_terms(&self) -> Terms {
        match self.settings.policy {
            OutboundTls::Required => Terms::enforced(By::Setting, Certificate::Any),
            OutboundTls::Opportunistic => Terms::default(),
        }
    }

    /// The signed TLSA records of a host. Where its addresses are not signed there can be none, and some
    /// name servers break down when they are asked (RFC 7672 2.1.3, 2.2.2).
    async fn tlsa(&self, host: &Domain) -> Result<Vec<Tlsa>, String> {
        let signed = match self.resolver.has_signed_addresses(host).await {
            Ok(signed) => signed,
            Err(DnsError::Temporary(reason) | DnsError::Setup(reason)) => return Err(reason),
            Err(DnsError::NoSuchDomain | DnsError::Unusable(_)) => false,
        };
        if !signed {
            return Ok(Vec::new());
        }
        match self.resolver.tlsa(host, self.settings.port).await {
            Ok(records) => Ok(records),
            Err(DnsError::Temporary(reason) | DnsError::Setup(reason)) => Err(reason),
            Err(DnsError::NoSuchDomain | DnsError::Unusable(_)) => Ok(Vec::new()),
        }
    }

    fn by_dane(&self, policy: &DomainPolicy, host: &Domain, records: Vec<Tlsa>) -> HostPolicy {
        let ruling = Ruling::tlsa(&policy.domain, host, records.iter().map(ToString::to_string).collect());
        let names = vec![host.clone(), policy.domain.clone()];
        let demand = dane::Demand::new(records, names);
        // RFC 7672 2.2: records that are there, and none of which can be used, still say that there is TLS.
        let certificate = if demand.is_empty() {
            match policy.wish {
                TlsWish::Required => Certificate::Authority,
                _ => Certificate::Any,
            }
        } else {
            Certificate::Tlsa(Arc::new(demand))
        };
        HostPolicy { terms: Terms::enforced(By::Dane(host.clone()), certificate), ruling, flaw: None }
    }

    fn by_sts(&self, policy: &DomainPolicy, host: &Domain, kept: &Kept) -> Result<HostPolicy, Box<Unused>> {
        let domain = &policy.domain;
        let ruling = Ruling::sts(domain, kept.policy.lines(), kept.policy.mx.clone());
        let enforced = kept.policy.mode == Mode::Enforce;
        let by = By::Sts(domain.clone());
        let listed = kept.policy.lists(host);
        let unlisted = || (Flaw::ValidationFailure, format!("{host} is not among the mx of the policy"));
        if enforced && !listed {
            let reason =
                format!("{host} is not among the mail exchangers that MTA-STS of {domain} names{}", by.remedy());
            let trouble = Trouble::new(Stage::Tls, Failure::local("4.7.5", host.as_str(), reason));
            let policy = HostPolicy { terms: Terms::default(), ruling, flaw: Some(unlisted()) };
            return Err(Box::new(Unused { policy, trouble }));
        }
        let mut terms = Terms { by, certificate: Certificate::Authority, enforced };
        if !enforced {
            let own = self.own_terms();
            if policy.wish == TlsWish::Required {
                terms = Terms::enforced(By::Sender, Certificate::Authority);
            } else if own.enforced {
                terms = own;
            }
        }
        let flaw = (!listed).then(unlisted).or_else(|| policy.sts.flaw.clone());
        Ok(HostPolicy { terms, ruling, flaw })
    }

    fn is_known(&self, host: &Domain) -> bool {
        let known = self.known().get(host).copied();
        let known = known.unwrap_or_else(|| {
            let known = self.shelf.get::<Known>(SHELF, host.as_str());
            self.note(host, known);
            known
        });
        known.is_some_and(|known| self.clock.now() < known.valid_at.saturating_add(KNOWN_FOR))
    }

    /// The host has shown a certificate that a policy of its domain calls good.
    pub async fn has_shown(&self, host: &Domain) {
        let now = self.clock.now();
        let known = self.known().get(host).copied().flatten();
        if known.is_some_and(|known| now < known.valid_at.saturating_add(KNOWN_AGAIN)) {
            return;
        }
        let known = Known { valid_at: now };
        self.note(host, Some(known));
        self.shelf.put(SHELF, host.as_str(), &known).await;
    }

    fn note(&self, host: &Domain, known: Option<Known>) {
        let mut all = self.known();
        if all.len() >= HOSTS_MAX && !all.contains_key(host) {
            all.clear();
        }
        all.insert(host.clone(), known);
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<Domain, Option<Known>>> {
        // Nothing panics while it is held.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Once an hour or so: fetches policies before they end, forgets what is old.
    pub async fn refresh(&self) {
        if self.settings.mta_sts {
            self.sts.refresh().await;
        }
        let before = self.clock.now().saturating_sub(KNOWN_FOR);
        let hosts = self.shelf.all::<Known>(SHELF);
        let old: Vec<String> = hosts.into_iter().filter(|(_, k)| k.valid_at < before).map(|(host, _)| host).collect();
        self.shelf.forget(SHELF, &old).await;
    }
}

/// RFC 7672 2.1.1: without an answer nobody can say that there are no records, so the host is not used.
fn refused_by_dns(policy: &DomainPolicy, host: &Domain, reason: String) -> Box<Unused> {
    let ruling = Ruling::tlsa(&policy.domain, host, Vec::new());
    let text = format!("whether DANE of {host} demands anything cannot be found out: {reason}");
    let trouble = Trouble::new(Stage::Address, Failure::local("4.7.5", host.as_str(), text));
    let policy = HostPolicy { terms: Terms::default(), ruling, flaw: Some((Flaw::DnssecInvalid, reason)) };
    Box::new(Unused { policy, trouble })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn who_demands_is_found_again_in_a_sentence() {
        let far = Domain::parse("far.test").unwrap();
        for by in [By::Setting, By::Sender, By::Known(far.clone()), By::Sts(far.clone()), By::Dane(far)] {
            assert_eq!(By::key_in(&format!("mx does not offer TLS, which {}", by.demanding())), by.key(), "{by:?}");
        }
    }
}
