//! DNS, and nobody else resolves: MX, addresses, TXT, PTR, with a cache.
//!
//! Promises: an answer that says "there is nothing" is told apart from no answer, so that trouble
//! with name servers never bounces mail; every query has a time limit and a number of tries; what is
//! taken from one answer is bounded. Names are asked as they are, without search domains and without
//! /etc/hosts: mail goes by DNS (RFC 5321 5.1).
//!
//! Leaves out: the order among MX hosts of equal preference (delivery shuffles), which addresses may
//! be connected to (delivery). What is signed is told apart in `secure`; `records` has them as they are,
//! for checks that may not miss any.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError as Negative, NetError};
pub use hickory_resolver::proto::dnssec::TrustAnchors;
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use mail_auth::MessageAuthenticator;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};

use crate::config;
use crate::message::Domain;

mod loopback;
mod records;
mod secure;

pub use secure::Tlsa;

/// Tries of a query after the first one.
const RETRIES: usize = 1;
/// Responses kept in the cache.
const CACHE_RESPONSES_MAX: u64 = 8_192;
/// No positive answer is kept longer.
const POSITIVE_TTL_MAX: Duration = Duration::from_secs(24 * 3600);
/// No negative answer is kept longer: a domain that has just been set up shall work soon.
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(15 * 60);
/// Queries in flight on one connection to a name server.
const QUERIES_PER_CONNECTION_MAX: usize = 256;
/// Not for the log: that answers are not signed is no trouble; what it means is told in `secure`.
pub const NO_TROUBLE: &str = "hickory_net::dnssec=off";
/// Questions in a row without an answer after which the name servers are said to fail: a domain's own
/// servers may fail, too.
const UNANSWERED_MAX: u64 = 10;
/// MX hosts taken from an answer, the most preferred ones.
pub const MX_HOSTS_MAX: usize = 32;
/// Addresses of one host taken from an answer, of each family.
pub const ADDRESSES_MAX: usize = 16;
/// TXT records, and PTR names, taken from an answer.
pub const RECORDS_MAX: usize = 64;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsError {
    /// Nobody knows right now (time-out, SERVFAIL, REFUSED, no network): try later, conclude nothing.
    #[error("{0}")]
    Temporary(String),
    /// NXDOMAIN: the name servers say that there is no such name.
    #[error("the domain does not exist")]
    NoSuchDomain,
    /// What was asked for is no domain name, or the answer holds nothing that can be used.
    #[error("{0}")]
    Unusable(String),
    /// The resolver cannot be set up; only from [`Resolver::new`].
    #[error("{0}")]
    Setup(String),
}

/// Where mail for a domain goes (RFC 5321 5.1, RFC 7505).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MxAnswer {
    /// Most preferred first; never empty.
    Hosts(Vec<MxHost>),
    /// A null MX: the domain takes no mail.
    Null,
    /// No MX record: the domain itself is the host, if it has addresses.
    Implicit,
    NoSuchDomain,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MxHost {
    pub preference: u16,
    pub host: Domain,
}

/// Asks the name servers. A clone shares cache and connections.
#[derive(Clone)]
pub struct Resolver {
    inner: Arc<MessageAuthenticator>,
    secure: Arc<secure::Validating>,
    loopback: loopback::Loopback,
    asked: Arc<Asked>,
    /// None: the name servers.
    zone: Option<Arc<dyn Zone>>,
}

/// In place of name servers: what a simulation says that they answer.
pub trait Zone: Send + Sync {
    /// `Ok(None)`: the name is there, but has no such record.
    fn records(&self, name: &Name, kind: RecordType) -> Result<Option<Vec<RData>>, DnsError>;
}

/// What came of the questions so far.
#[derive(Debug, Default)]
struct Asked {
    answered: AtomicU64,
    /// Since the last answer.
    unanswered: AtomicU64,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolver")
    }
}

impl Resolver {
    /// From `[dns]`: the name servers given, over UDP and then TCP, or those of /etc/resolv.conf.
    pub fn new(config: &config::Dns) -> Result<Resolver, DnsError> {
        Resolver::with_trust_anchors(config, TrustAnchors::default())
    }

    /// With other keys of the root zone than the world's.
    pub fn with_trust_anchors(config: &config::Dns, anchors: TrustAnchors) -> Result<Resolver, DnsError> {
        let servers = match config.nameservers.as_slice() {
            [] => system_name_servers()?,
            given => given.iter().copied().map(name_server).collect(),
        };
        let resolver = build(servers.clone(), config.timeout, None)?;
        let loopback = loopback::Loopback::new(servers.clone(), resolver.options().clone())?;
        let secure = secure::Validating::new(build(servers, config.timeout, Some(anchors))?);
        let inner = Arc::new(MessageAuthenticator(resolver));
        Ok(Resolver { inner, secure, loopback, asked: Arc::default(), zone: None })
    }

    /// Asks this zone for all that mail is sent by. What is signed, and what checks ask, is not asked of it.
    pub fn with_zone(self, zone: Arc<dyn Zone>) -> Resolver {
        Resolver { zone: Some(zone), ..self }
    }

    /// The mail servers of a domain. An address literal is its own host.
    pub async fn mx(&self, domain: &Domain) -> Result<MxAnswer, DnsError> {
        if domain.literal().is_some() {
            return Ok(MxAnswer::Implicit);
        }
        let lookup = match self.lookup(domain.as_str(), RecordType::MX).await {
            Ok(Some(lookup)) => lookup,
            Ok(None) => return Ok(MxAnswer::Implicit),
            Err(DnsError::NoSuchDomain) => return Ok(MxAnswer::NoSuchDomain),
            Err(error) => return Err(error),
        };
        mx_answer(domain, &lookup)
    }

    /// A and AAAA of a host, IPv6 first; empty if it has none. An address literal is its own answer.
    /// If one family cannot be found out, what the other has is still the answer.
    pub async fn addresses(&self, host: &Domain) -> Result<Vec<IpAddr>, DnsError> {
        if let Some(ip) = host.literal() {
            return Ok(vec![ip]);
        }
        let (v6, v4) =
            tokio::join!(self.lookup(host.as_str(), RecordType::AAAA), self.lookup(host.as_str(), RecordType::A));
        let mut addresses = Vec::new();
        let mut failed = None;
        for answer in [v6, v4] {
            match answer {
                Ok(Some(lookup)) => addresses.extend(addresses_in(&lookup).take(ADDRESSES_MAX)),
                Ok(None) => {}
                Err(error) => failed = worse(failed, error),
            }
        }
        match failed {
            Some(error) if addresses.is_empty() => Err(error),
            _ => Ok(addresses),
        }
    }

    /// A records of a name that may be no host's; empty if there are none.
    pub async fn a(&self, name: &str) -> Result<Vec<Ipv4Addr>, DnsError> {
        let Some(lookup) = self.lookup(name, RecordType::A).await? else { return Ok(Vec::new()) };
        let addresses = lookup.answers().iter().filter_map(|record| match &record.data {
            RData::A(a) => Some(a.0),
            _ => None,
        });
        Ok(addresses.take(ADDRESSES_MAX).collect())
    }

    /// TXT records, each with its strings joined (RFC 7208 3.3); empty if there are none.
    pub async fn txt(&self, name: &str) -> Result<Vec<String>, DnsError> {
        let Some(lookup) = self.lookup(name, RecordType::TXT).await? else { return Ok(Vec::new()) };
        let texts = lookup.answers().iter().filter_map(|record| match &record.data {
            RData::TXT(txt) => Some(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned()),
            _ => None,
        });
        Ok(texts.take(RECORDS_MAX).collect())
    }

    /// The names that an address says it has; empty if none. Not checked against their addresses.
    pub async fn ptr(&self, ip: IpAddr) -> Result<Vec<Domain>, DnsError> {
        let name = Name::from(ip);
        let asked = match ip.is_loopback() && self.zone.is_none() {
            true => {
                let answer = self.loopback.ptr(name.clone()).await;
                self.heard(&name, RecordType::PTR, answer)
            }
            false => self.ask(name, RecordType::PTR).await.map(|found| found.map(|found| found.answers().to_vec())),
        };
        let records = match asked {
            Ok(records) => records.unwrap_or_default(),
            // For a PTR "no such name" and "no record" are the same thing to say.
            Err(DnsError::NoSuchDomain) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let names = records.iter().filter_map(|record| match &record.data {
            RData::PTR(name) => Domain::parse(&name.to_ascii()).ok(),
            _ => None,
        });
        Ok(names.take(RECORDS_MAX).collect())
    }

    /// Do the name servers answer? None: it is not known yet.
    pub fn is_answering(&self) -> Option<bool> {
        let unanswered = self.asked.unanswered.load(Ordering::Relaxed);
        let answered = self.asked.answered.load(Ordering::Relaxed);
        if unanswered >= UNANSWERED_MAX {
            return Some(false);
        }
        (answered > 0).then_some(true)
    }

    /// The same resolver in the form that mail-auth takes.
    pub fn authenticator(&self) -> &MessageAuthenticator {
        &self.inner
    }

    /// `Ok(None)`: the name is there, but has no such record.
    async fn lookup(&self, name: &str, kind: RecordType) -> Result<Option<Lookup>, DnsError> {
        self.ask(fqdn(name)?, kind).await
    }

    async fn ask(&self, name: Name, kind: RecordType) -> Result<Option<Lookup>, DnsError> {
        if let Some(zone) = &self.zone {
            let query = Query::query(name.clone(), kind);
            let record = |data| Record::from_rdata(name.clone(), 60, data);
            let found = zone.records(&name, kind)?;
            return Ok(found.map(|all| Lookup::new_with_max_ttl(query, all.into_iter().map(record))));
        }
        let answer = self.inner.0.lookup(name.clone(), kind).await;
        self.heard(&name, kind, answer)
    }

    fn heard<T>(&self, name: &Name, kind: RecordType, answer: Result<T, NetError>) -> Result<Option<T>, DnsError> {
        if let Ok(_) | Err(NetError::Dns(Negative::NoRecordsFound(_))) = &answer {
            self.asked.answered.fetch_add(1, Ordering::Relaxed);
            self.asked.unanswered.store(0, Ordering::Relaxed);
        } else {
            self.asked.unanswered.fetch_add(1, Ordering::Relaxed);
        }
        match answer {
            Ok(found) => Ok(Some(found)),
            Err(NetError::Dns(Negative::NoRecordsFound(negative))) => match negative.response_code {
                ResponseCode::NXDomain => Err(DnsError::NoSuchDomain),
                _ => Ok(None),
            },
            Err(error) => Err(DnsError::Temporary(trouble(name.to_ascii().trim_end_matches('.'), kind, &error))),
        }
    }
}

/// What the system says about a name, `/etc/hosts` and search domains included: for the administrator's own URLs.
pub async fn by_system(host: &str) -> std::io::Result<Vec<IpAddr>> {
    Ok(tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip().to_canonical()).collect())
}

fn mx_answer(domain: &Domain, lookup: &Lookup) -> Result<MxAnswer, DnsError> {
    let mut hosts = Vec::new();
    let (mut seen, mut null) = (0, false);
    for record in lookup.answers() {
        let RData::MX(mx) = &record.data else { continue };
        seen += 1;
        if mx.exchange.is_root() {
            null = true;
        } else if let Ok(host) = Domain::parse(&mx.exchange.to_ascii()) {
            hosts.push(MxHost { preference: mx.preference, host });
        }
    }
    hosts.sort_by(|a, b| (a.preference, &a.host).cmp(&(b.preference, &b.host)));
    hosts.dedup_by(|a, b| a.host == b.host);
    hosts.truncate(MX_HOSTS_MAX);
    match (hosts.is_empty(), seen) {
        (false, _) => Ok(MxAnswer::Hosts(hosts)),
        (true, 0) => Ok(MxAnswer::Implicit),
        // RFC 7505 3: a null MX stands alone.
        (true, _) if null => Ok(MxAnswer::Null),
        (true, _) => Err(DnsError::Unusable(format!("no MX record of {domain} names a legal host"))),
    }
}

fn fqdn(name: &str) -> Result<Name, DnsError> {
    let mut name = Name::from_ascii(name).map_err(|_| DnsError::Unusable(format!("{name:?} is not a domain name")))?;
    name.set_fqdn(true);
    Ok(name)
}

/// With `anchors` it validates.
fn build(
    servers: Vec<NameServerConfig>,
    timeout: Duration,
    anchors: Option<TrustAnchors>,
) -> Result<TokioResolver, DnsError> {
    let config_of_names = ResolverConfig::from_name_servers(servers);
    let mut builder =
        TokioResolver::builder_with_config(config_of_names, TokioRuntimeProvider::default()).with_tls_config(no_tls()?);
    if let Some(anchors) = anchors {
        builder = builder.with_trust_anchor(Arc::new(anchors));
    }
    let options = builder.options_mut();
    options.timeout = timeout;
    options.attempts = RETRIES;
    options.cache_size = CACHE_RESPONSES_MAX;
    options.positive_max_ttl = Some(POSITIVE_TTL_MAX);
    options.negative_max_ttl = Some(NEGATIVE_TTL_MAX);
    options.use_hosts_file = ResolveHosts::Never;
    options.max_active_requests = QUERIES_PER_CONNECTION_MAX;
    builder.build().map_err(|e| DnsError::Setup(format!("the resolver cannot be set up: {e}")))
}

fn trouble(name: &str, kind: RecordType, error: &NetError) -> String {
    match error {
        NetError::Timeout => format!("the name servers did not answer in time for {kind} of {name}"),
        NetError::Dns(Negative::ResponseCode(code)) => {
            format!("the name servers answered {kind} of {name} with \"{code}\"")
        }
        other => format!("{kind} of {name} could not be looked up: {other}"),
    }
}

/// Of two failures the one that may pass: nothing is concluded while a part is unknown.
fn worse(known: Option<DnsError>, new: DnsError) -> Option<DnsError> {
    match known {
        Some(DnsError::Temporary(text)) => Some(DnsError::Temporary(text)),
        _ => Some(new),
    }
}

fn addresses_in(lookup: &Lookup) -> impl Iterator<Item = IpAddr> + '_ {
    lookup.answers().iter().filter_map(|record| match &record.data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    })
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    for connection in &mut server.connections {
        connection.port = address.port();
    }
    server
}

fn system_name_servers() -> Result<Vec<NameServerConfig>, DnsError> {
    let (system, _) = read_system_conf()
        .map_err(|e| DnsError::Setup(format!("/etc/resolv.conf: {e}; give name servers in [dns] nameservers")))?;
    Ok(system.name_servers)
}

/// The resolver is built with TLS support and wants a configuration, though we only ask over UDP and
/// TCP. An empty one keeps it from reading the system's certificates.
fn no_tls() -> Result<ClientConfig, DnsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| DnsError::Setup(format!("TLS cannot be set up: {e}")))?;
    Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}
