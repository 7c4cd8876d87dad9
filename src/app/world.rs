//! The world around a server, as far as mail depends on it: does DNS say of us what it has to, can port 25 be
//! reached from here, will others trust the certificate, is the clock right, does the disk keep what it says?
//!
//! Promises: nothing is sent, changed or made (but for a file in `data_dir` to measure the disk, which is removed);
//! no server is needed; all that can be asked at once is, within [`TIME_MAX`]; name servers that do not
//! answer are one finding and not twenty. Every finding says what is there, what should be, and why.
//!
//! `records` has the lines to publish, `domain`, `spf` and `dmarc` compare them with DNS, `ways` looks at the way out,
//! `certificate` and `machine` at home. Left out: whether others list our addresses, which only they can tell for sure.

mod certificate;
mod dmarc;
mod domain;
mod machine;
pub mod records;
mod spf;
mod ways;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::rustls::RootCertStore;

use crate::config::Config;
use crate::delivery::https::Https;
use crate::dns::{DnsError, Resolver};
use crate::intake::sign::Signer;
use crate::message::Domain;

pub use machine::{Clockwork, judge_syncs};
pub use records::Record;
use ways::Sources;

/// All checks together take no longer.
pub const TIME_MAX: Duration = Duration::from_secs(60);
/// The name servers have so long to show that they answer.
const RESOLVER_TIME_MAX: Duration = Duration::from_secs(25);

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Worth knowing; nothing has to be done.
    Note,
    /// Some mail may suffer.
    Warning,
    /// Mail is refused, or lost sight of.
    Problem,
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Problem => "problem",
        }
    }
}

/// What was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    Configuration,
    Resolver,
    Dnssec,
    Clock,
    Disk,
    Certificate,
    Host,
    Source,
    Ptr,
    Port25,
    Mx,
    Spf,
    Dkim,
    Dmarc,
    MtaSts,
    TlsRpt,
}

impl Topic {
    pub fn name(self) -> &'static str {
        match self {
            Topic::Configuration => "configuration",
            Topic::Resolver => "resolver",
            Topic::Dnssec => "DNSSEC",
            Topic::Clock => "clock",
            Topic::Disk => "disk",
            Topic::Certificate => "certificate",
            Topic::Host => "A, AAAA",
            Topic::Source => "sent from",
            Topic::Ptr => "PTR",
            Topic::Port25 => "port 25 out",
            Topic::Mx => "MX",
            Topic::Spf => "SPF",
            Topic::Dkim => "DKIM",
            Topic::Dmarc => "DMARC",
            Topic::MtaSts => "MTA-STS",
            Topic::TlsRpt => "TLSRPT",
        }
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: Topic,
    /// A domain, host, address, file or program.
    pub of: String,
    pub level: Level,
    pub found: String,
    /// Records that should be there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<Record>,
    /// What else to do; may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
    /// Why it matters, in a sentence; empty where all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
}

impl Finding {
    pub fn new(check: Topic, of: impl Into<String>, level: Level, found: impl Into<String>) -> Finding {
        let (publish, remedy, why) = (Vec::new(), String::new(), String::new());
        Finding { check, of: of.into(), level, found: found.into(), publish, remedy, why }
    }

    fn ok(check: Topic, of: impl Into<String>, found: impl Into<String>) -> Finding {
        Finding::new(check, of, Level::Ok, found)
    }

    fn publish(self, record: Record) -> Finding {
        let publish = self.publish.into_iter().chain([record]).collect();
        Finding { publish, ..self }
    }

    pub fn remedy(self, remedy: impl Into<String>) -> Finding {
        Finding { remedy: remedy.into(), ..self }
    }

    fn why(self, why: impl Into<String>) -> Finding {
        Finding { why: why.into(), ..self }
    }

    /// DNS could not tell.
    fn unknown(check: Topic, of: impl Into<String>, error: &DnsError) -> Finding {
        Finding::new(check, of, Level::Warning, format!("not known: {error}"))
            .remedy("try again; if it stays so, ask who runs the name servers of that name")
    }
}

/// Where a record of ours stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Published {
    There,
    /// Something else is there.
    Differs,
    Missing,
    /// The name servers could not tell, or were not asked.
    Unknown,
}

/// A record to publish, and what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked {
    pub record: Record,
    pub published: Published,
    pub finding: Finding,
}

/// What the checks need.
pub struct World {
    config: Arc<Config>,
    resolver: Resolver,
    https: Https,
    /// None: those that the system trusts.
    roots: Option<RootCertStore>,
    /// None: there are keys still to be made, which the server does at its first start.
    signer: Option<Signer>,
    clockwork: Clockwork,
    sources: OnceCell<Sources>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("World")
    }
}

type Look = Pin<Box<dyn Future<Output = Vec<Finding>> + Send>>;

impl World {
    pub fn new(config: Arc<Config>, resolver: Resolver, signer: Option<Signer>) -> World {
        let https = Https::new(resolver.clone(), config.delivery.allow_private_addresses);
        let (roots, clockwork, sources) = (None, Clockwork::default(), OnceCell::new());
        World { config, resolver, https, roots, signer, clockwork, sources }
    }

    /// Another way to the policies of MTA-STS.
    pub fn with_https(self, https: Https) -> World {
        World { https, ..self }
    }

    /// Other certificate authorities than the system's.
    pub fn with_roots(self, roots: RootCertStore) -> World {
        World { roots: Some(roots), ..self }
    }

    /// Others who know whether the clock is right.
    pub fn with_clockwork(self, clockwork: Clockwork) -> World {
        World { clockwork, ..self }
    }

    /// Everything. `progress` is told how many checks are done, of how many.
    pub async fn check(self: Arc<Self>, mut progress: impl FnMut(u64, u64)) -> Vec<Finding> {
        let deadline = Instant::now() + TIME_MAX;
        progress(0, 1);
        let resolver = self.look_at_resolver().await;
        let answers = resolver.level != Level::Problem;
        let mut looks: Vec<(Topic, String, Look)> = Vec::new();
        let mut add = |topic, of: &str, look: Look| looks.push((topic, of.to_owned(), look));
        let world = self.clone();
        add(Topic::Clock, "this machine", Box::pin(async move { vec![world.clock().await] }));
        let world = self.clone();
        add(Topic::Disk, "data_dir", Box::pin(async move { vec![world.disk().await] }));
        let world = self.clone();
        add(Topic::Certificate, "this server", Box::pin(async move { world.certificate().await }));
        let mut skipped = Vec::new();
        if answers {
            self.add_dns_looks(&mut looks);
        } else {
            skipped.push(self.not_looked_at());
        }
        let total = looks.len() as u64;
        let mut tasks = JoinSet::new();
        for (number, (topic, of, look)) in looks.into_iter().enumerate() {
            tasks.spawn(async move {
                let late = || {
                    let found = format!("not known: no end within {} s", TIME_MAX.as_secs());
                    vec![Finding::new(topic, of.clone(), Level::Warning, found).remedy("try again")]
                };
                (number, timeout_at(deadline, look).await.unwrap_or_else(|_| late()))
            });
        }
        let (mut found, mut done) = (Vec::new(), 0);
        while let Some(ended) = tasks.join_next().await {
            done += 1;
            progress(done, total);
            // One that panicked has nothing to say.
            found.extend(ended);
        }
        found.sort_by_key(|(number, _)| *number);
        let mut all = vec![resolver];
        all.extend(skipped);
        all.extend(found.into_iter().flat_map(|(_, findings)| findings));
        all
    }

    fn add_dns_looks(self: &Arc<Self>, looks: &mut Vec<(Topic, String, Look)>) {
        let world = self.clone();
        looks.push((Topic::Dnssec, "name servers".to_owned(), Box::pin(async move { vec![world.dnssec().await] })));
        let world = self.clone();
        let host = self.config.hostname.to_string();
        looks.push((Topic::Host, host, Box::pin(async move { vec![world.host().await] })));
        let world = self.clone();
        looks.push((Topic::Ptr, "this server".to_owned(), Box::pin(async move { world.names().await })));
        let world = self.clone();
        looks.push((Topic::Port25, "outside".to_owned(), Box::pin(async move { vec![world.port_25().await] })));
        for domain in self.config.domains.keys() {
            let (world, own) = (self.clone(), domain.clone());
            let look = async move { world.records(&own).await.into_iter().map(|looked| looked.finding).collect() };
            looks.push((Topic::Mx, domain.to_string(), Box::pin(look)));
        }
    }

    /// The records of one domain of ours, each with what is there.
    pub async fn records(&self, domain: &Domain) -> Vec<Looked> {
        let (mx, spf, dkim, dmarc, mta_sts, tls_rpt) = tokio::join!(
            self.mx(domain),
            self.spf(domain),
            self.dkim(domain),
            self.dmarc(domain),
            self.mta_sts(domain),
            self.tls_rpt(domain),
        );
        let mut all = vec![mx];
        all.extend(spf);
        all.extend(dkim);
        all.extend([dmarc, mta_sts, tls_rpt]);
        all
    }

    /// Do the name servers answer at all? A question that any of them can answer; failing that, one of ours, as some
    /// networks hide the root.
    pub async fn look_at_resolver(&self) -> Finding {
        let servers = match self.config.dns.nameservers.as_slice() {
            [] => "/etc/resolv.conf".to_owned(),
            given => given.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        };
        let asked = async { tokio::join!(self.resolver.txt("."), self.resolver.txt(self.config.hostname.as_str())) };
        let begun = Instant::now();
        let trouble = match timeout_at(begun + RESOLVER_TIME_MAX, asked).await {
            Ok((
                Err(DnsError::Temporary(why) | DnsError::Setup(why)),
                Err(DnsError::Temporary(_) | DnsError::Setup(_)),
            )) => why,
            Ok(_) => {
                let millis = begun.elapsed().as_millis();
                return Finding::ok(Topic::Resolver, servers, format!("the name servers answer ({millis} ms)"));
            }
            Err(_) => format!("no answer within {} s", RESOLVER_TIME_MAX.as_secs()),
        };
        Finding::new(Topic::Resolver, servers, Level::Problem, format!("the name servers do not answer: {trouble}"))
            .remedy(
                "name others in [dns] nameservers, best a resolver on this machine: nameservers = [\"127.0.0.1:53\"]",
            )
            .why("Without name servers no mail leaves, and nothing can be said of what comes in.")
    }

    /// One for all that DNS would have told.
    fn not_looked_at(&self) -> Finding {
        let found = "PTR, port 25, MX, SPF, DKIM, DMARC, MTA-STS and TLSRPT were not looked at: they are in DNS";
        Finding::new(Topic::Resolver, "records", Level::Note, found)
    }

    async fn dnssec(&self) -> Finding {
        let of = "name servers";
        if self.resolver.validates().await {
            return Finding::ok(Topic::Dnssec, of, "their answers can be validated, so DANE is possible");
        }
        let wants = self.config.delivery.dane;
        let found = "their answers cannot be validated";
        let finding = Finding::new(Topic::Dnssec, of, Level::Note, found);
        match wants {
            true => finding
                .remedy(
                    "use a resolver that passes signatures on, such as unbound on this machine, in [dns] \
                     nameservers; or set delivery.tls.dane = false",
                )
                .why("DANE, by which a domain demands TLS of whoever sends to it, is off until then."),
            false => finding,
        }
    }
}
