//! `check_host()` (RFC 7208 4 and 5): walks a record and what it leads to, with its limits.
//!
//! Promises: at most [`QUERIES_MAX`] questions to DNS, whatever the records say; what DNS does not
//! answer is a temporary error, save where the RFC has it otherwise (names of the client, explanation);
//! nothing that is over its limit, or cannot be read, is ever a pass.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::Pin;

use tokio::time::{Instant, timeout_at};

use super::macros::{MacroString, Place, Values, is_name};
use super::record::{self, Mechanism, Prefixes, Record};
use super::{Explanation, Outcome, SpfResult};
use crate::dns::DnsError;

/// Terms that ask DNS (RFC 7208 4.6.4).
pub const TERMS_MAX: usize = 10;
/// Of them those for which DNS has nothing (RFC 7208 4.6.4).
pub const VOIDS_MAX: usize = 2;
/// Hosts of one "mx"; with more it is an error (RFC 7208 4.6.4).
pub const MX_HOSTS_MAX: usize = 10;
/// Names of the client that are looked at; the others are ignored (RFC 7208 4.6.4).
pub const CLIENT_NAMES_MAX: usize = 10;
/// The first record, each term with all its hosts, the names of the client with their addresses, the explanation.
pub const QUERIES_MAX: usize = 1 + TERMS_MAX * (1 + MX_HOSTS_MAX) + (1 + CLIENT_NAMES_MAX) + 1;
/// Octets of an explanation, so that it fits in a line of a reply (RFC 5321 4.5.3.1.5).
pub const EXPLANATION_BYTES_MAX: usize = 350;

/// All the records of a kind; none if the name has none. `NoSuchDomain` says that there is no such name.
pub type Answer<T> = Result<Vec<T>, DnsError>;

/// What is asked of DNS. Names are in text form, absolute, without a final dot.
pub trait Lookup: Sync {
    /// TXT records, each with its strings joined without spaces.
    fn txt(&self, name: &str) -> impl Future<Output = Answer<Vec<u8>>> + Send;
    fn ip4(&self, name: &str) -> impl Future<Output = Answer<Ipv4Addr>> + Send;
    fn ip6(&self, name: &str) -> impl Future<Output = Answer<Ipv6Addr>> + Send;
    /// The hosts of MX records; the root is an empty name.
    fn mx(&self, name: &str) -> impl Future<Output = Answer<String>> + Send;
    /// The names that an address says it has.
    fn ptr(&self, ip: IpAddr) -> impl Future<Output = Answer<String>> + Send;
}

/// The arguments of `check_host()`, and what macros may ask for besides.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    pub client: IpAddr,
    /// Local part of the sender; empty stands for "postmaster".
    pub local: &'a str,
    /// Domain of the sender: of MAIL FROM or, for the HELO identity, that of HELO.
    pub domain: &'a str,
    /// As the client gave it.
    pub helo: &'a str,
    /// This server.
    pub receiver: &'a str,
    /// Seconds since 1970.
    pub now: u64,
}

/// Evaluates SPF for a sender. What is not known by the deadline is a temporary error; an explanation that is
/// not there by then is left out.
pub async fn check_host<L: Lookup>(lookup: &L, query: &Query<'_>, deadline: Instant) -> Outcome {
    let mut walk = Walk { lookup, query, client: query.client.to_canonical(), terms: 0, voids: 0, names: None };
    let ended = match timeout_at(deadline, walk.check(query.domain.to_owned())).await {
        Ok(ended) => ended,
        Err(_) => Err(Stop::Temporary("not evaluated in time")),
    };
    let ended = match ended {
        Ok(ended) => ended,
        Err(Stop::Temporary(why)) => return Outcome { result: SpfResult::TempError, why, explanation: None },
        Err(Stop::Permanent(why)) => return Outcome { result: SpfResult::PermError, why, explanation: None },
    };
    let explanation = match ended.explanation {
        Some((target, domain)) => timeout_at(deadline, walk.explain(&target, domain)).await.ok().flatten(),
        None => None,
    };
    Outcome { result: ended.result, why: "", explanation }
}

/// Why the walk ends without a result of a record.
enum Stop {
    Temporary(&'static str),
    Permanent(&'static str),
}

const TOO_MANY_TERMS: Stop = Stop::Permanent("more than 10 terms that ask DNS");

struct Ended {
    result: SpfResult,
    /// Of a failure: what "exp" says, and the domain whose record this is.
    explanation: Option<(MacroString, String)>,
}

impl From<SpfResult> for Ended {
    fn from(result: SpfResult) -> Ended {
        Ended { result, explanation: None }
    }
}

struct Walk<'a, L> {
    lookup: &'a L,
    query: &'a Query<'a>,
    client: IpAddr,
    terms: usize,
    voids: usize,
    /// Once asked for: they are the same for every term.
    names: Option<ClientNames>,
}

#[derive(Default)]
struct ClientNames {
    /// With an address that is the client's.
    validated: Vec<String>,
    /// DNS has none.
    void: bool,
}

impl<L: Lookup> Walk<'_, L> {
    /// Boxed, because an "include" comes back here; as deep as there may be terms.
    fn check(&mut self, domain: String) -> Pin<Box<dyn Future<Output = Result<Ended, Stop>> + Send + '_>> {
        Box::pin(self.follow(domain))
    }

    /// The record of a domain and those it redirects to.
    async fn follow(&mut self, mut domain: String) -> Result<Ended, Stop> {
        let mut redirected = false;
        loop {
            let record = match self.record(&domain).await? {
                Some(record) => record,
                // RFC 7208 6.1.
                None if redirected => return Err(Stop::Permanent("redirect to a domain without a record")),
                None => return Ok(SpfResult::None.into()),
            };
            for directive in &record.directives {
                if self.matches(&directive.mechanism, &domain).await? {
                    let explanation = record.explanation.filter(|_| directive.result == SpfResult::Fail);
                    let explanation = explanation.map(|target| (target, domain));
                    return Ok(Ended { result: directive.result, explanation });
                }
            }
            let Some(target) = &record.redirect else { return Ok(SpfResult::Neutral.into()) };
            self.count_term()?;
            domain = self.name(Some(target), &domain).await?;
            redirected = true;
        }
    }

    /// RFC 7208 4.3 to 4.6.
    async fn record(&self, domain: &str) -> Result<Option<Record>, Stop> {
        let domain = domain.strip_suffix('.').unwrap_or(domain);
        if !is_name(domain) || !domain.contains('.') || domain.starts_with('[') {
            return Ok(None);
        }
        let texts = known(self.lookup.txt(domain).await)?;
        let mut records = texts.iter().filter(|text| record::is_record(text));
        match (records.next(), records.next()) {
            (None, _) => Ok(None),
            (Some(text), None) => record::parse(text).map(Some).map_err(|error| Stop::Permanent(error.0)),
            (Some(_), Some(_)) => Err(Stop::Permanent("more than one record")),
        }
    }

    /// RFC 7208 5.
    async fn matches(&mut self, mechanism: &Mechanism, domain: &str) -> Result<bool, Stop> {
        if !matches!(mechanism, Mechanism::All | Mechanism::Ip4(..) | Mechanism::Ip6(..)) {
            self.count_term()?;
        }
        match mechanism {
            Mechanism::All => Ok(true),
            Mechanism::Ip4(network, bits) => {
                Ok(matches!(self.client, IpAddr::V4(client) if record::same_ip4(*network, client, *bits)))
            }
            Mechanism::Ip6(network, bits) => {
                Ok(matches!(self.client, IpAddr::V6(client) if record::same_ip6(*network, client, *bits)))
            }
            Mechanism::Include(target) => {
                let target = self.name(Some(target), domain).await?;
                // RFC 7208 5.2.
                match self.check(target).await?.result {
                    SpfResult::Pass => Ok(true),
                    SpfResult::None => Err(Stop::Permanent("include of a domain without a record")),
                    _ => Ok(false),
                }
            }
            Mechanism::A(target, prefixes) => {
                let name = self.name(target.as_ref(), domain).await?;
                let Some(addresses) = self.addresses(&name).await? else { return Ok(false) };
                self.count_void(addresses.is_empty())?;
                Ok(self.is_among(&addresses, *prefixes))
            }
            Mechanism::Mx(target, prefixes) => {
                let name = self.name(target.as_ref(), domain).await?;
                self.matches_mx(&name, *prefixes).await
            }
            Mechanism::Ptr(target) => {
                let name = self.name(target.as_ref(), domain).await?;
                self.learn_names().await;
                let names = self.names.as_ref();
                self.count_void(names.is_some_and(|names| names.void))?;
                let mut validated = self.names.iter().flat_map(|names| &names.validated);
                Ok(validated.any(|validated| is_within(validated, &name)))
            }
            Mechanism::Exists(target) => {
                let name = self.name(Some(target), domain).await?;
                if !is_name(&name) {
                    return Ok(false);
                }
                // RFC 7208 5.7: always A.
                let addresses = known(self.lookup.ip4(&name).await)?;
                self.count_void(addresses.is_empty())?;
                Ok(!addresses.is_empty())
            }
        }
    }

    /// RFC 7208 5.4. The domain itself is not taken for its mail host, and without one there is no match.
    async fn matches_mx(&mut self, name: &str, prefixes: Prefixes) -> Result<bool, Stop> {
        if !is_name(name) {
            return Ok(false);
        }
        let hosts = known(self.lookup.mx(name).await)?;
        if hosts.len() > MX_HOSTS_MAX {
            return Err(Stop::Permanent("more than 10 MX hosts"));
        }
        // A term counts once, however many of its hosts have no address: RFC 7208 4.6.4 counts terms.
        let (mut asked, mut found) = (hosts.is_empty(), false);
        for host in &hosts {
            let Some(addresses) = self.addresses(host).await? else { continue };
            (asked, found) = (true, found || !addresses.is_empty());
            if self.is_among(&addresses, prefixes) {
                return Ok(true);
            }
        }
        self.count_void(asked && !found)?;
        Ok(false)
    }

    /// Of the client's family. None: the name cannot be asked for, and so matches nothing (RFC 7208 4.8).
    async fn addresses(&self, name: &str) -> Result<Option<Vec<IpAddr>>, Stop> {
        if !is_name(name) {
            return Ok(None);
        }
        self.ask_addresses(name).await.map(Some)
    }

    async fn ask_addresses(&self, name: &str) -> Result<Vec<IpAddr>, Stop> {
        Ok(match self.client {
            IpAddr::V4(_) => known(self.lookup.ip4(name).await)?.into_iter().map(IpAddr::V4).collect(),
            IpAddr::V6(_) => known(self.lookup.ip6(name).await)?.into_iter().map(IpAddr::V6).collect(),
        })
    }

    fn is_among(&self, networks: &[IpAddr], prefixes: Prefixes) -> bool {
        networks.iter().any(|network| prefixes.contain(*network, self.client))
    }

    /// RFC 7208 5.5: an error makes a name, or all of them, not count.
    async fn learn_names(&mut self) {
        if self.names.is_some() {
            return;
        }
        let mut names = ClientNames::default();
        match known(self.lookup.ptr(self.client).await) {
            Ok(found) => {
                names.void = found.is_empty();
                for name in found.into_iter().take(CLIENT_NAMES_MAX).filter(|name| is_name(name)) {
                    let addresses = self.ask_addresses(&name).await;
                    if addresses.is_ok_and(|addresses| addresses.contains(&self.client)) {
                        names.validated.push(name);
                    }
                }
            }
            Err(_) => names.void = false,
        }
        self.names = Some(names);
    }

    /// What a term names: its own domain-spec expanded, or the domain of the record.
    async fn name(&mut self, target: Option<&MacroString>, domain: &str) -> Result<String, Stop> {
        let Some(target) = target else { return Ok(domain.strip_suffix('.').unwrap_or(domain).to_owned()) };
        if target.asks_for_p() && self.names.is_none() {
            // RFC 7208 4.6.4: the query that it takes counts, too.
            self.count_term()?;
            self.learn_names().await;
        }
        Ok(target.expand_name(&self.values(domain)))
    }

    /// RFC 7208 6.2: whatever goes wrong here, there is no explanation, and the result stays.
    async fn explain(&mut self, target: &MacroString, domain: String) -> Option<Explanation> {
        if target.asks_for_p() {
            self.learn_names().await;
        }
        let name = target.expand_name(&self.values(&domain));
        if !is_name(&name) {
            return None;
        }
        let texts = self.lookup.txt(&name).await.ok()?;
        let [text] = texts.as_slice() else { return None };
        let text = std::str::from_utf8(text).ok().filter(|text| text.is_ascii())?;
        let text = MacroString::parse(text, Place::Explanation).ok()?;
        if text.asks_for_p() {
            self.learn_names().await;
        }
        let text = text.expand_text(&self.values(&domain), EXPLANATION_BYTES_MAX);
        (!text.is_empty()).then_some(Explanation { domain, text })
    }

    fn values<'v>(&'v self, domain: &'v str) -> Values<'v> {
        let local = if self.query.local.is_empty() { "postmaster" } else { self.query.local };
        Values {
            local,
            sender_domain: self.query.domain,
            domain,
            client: self.client,
            validated: self.names.as_ref().and_then(|names| best_name(&names.validated, domain)).unwrap_or("unknown"),
            helo: self.query.helo,
            receiver: self.query.receiver,
            now: self.query.now,
        }
    }

    fn count_term(&mut self) -> Result<(), Stop> {
        self.terms += 1;
        if self.terms > TERMS_MAX { Err(TOO_MANY_TERMS) } else { Ok(()) }
    }

    fn count_void(&mut self, void: bool) -> Result<(), Stop> {
        self.voids += usize::from(void);
        if self.voids > VOIDS_MAX { Err(Stop::Permanent("more than 2 void look-ups")) } else { Ok(()) }
    }
}

/// No such name is as good as nothing there; only what nobody answers is an error.
fn known<T>(answer: Answer<T>) -> Result<Vec<T>, Stop> {
    match answer {
        Ok(records) => Ok(records),
        Err(DnsError::NoSuchDomain) => Ok(Vec::new()),
        Err(_) => Err(Stop::Temporary("DNS did not answer")),
    }
}

/// `%{p}` (RFC 7208 7.3): the domain itself, else a name below it, else any.
fn best_name<'a>(validated: &'a [String], domain: &str) -> Option<&'a str> {
    let same = validated.iter().find(|name| name.eq_ignore_ascii_case(domain));
    same.or_else(|| validated.iter().find(|name| is_within(name, domain))).or(validated.first()).map(String::as_str)
}

/// Is it the domain or below it?
fn is_within(name: &str, domain: &str) -> bool {
    let Some(split) = name.len().checked_sub(domain.len()) else { return false };
    let (Some(before), Some(end)) = (name.get(..split), name.get(split..)) else { return false };
    end.eq_ignore_ascii_case(domain) && !domain.is_empty() && (before.is_empty() || before.ends_with('.'))
}
