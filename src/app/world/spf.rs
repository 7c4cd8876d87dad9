//! SPF: may the addresses that we send from, and our smart hosts, send for our domains? Evaluated as receivers do it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::domain::{or_none, shown};
use super::records::{self, Record, Ways};
use super::{Finding, Level, Looked, Topic, World};
use crate::checks::spf::{Answer, Lookup, Outcome, Query, SpfResult, check_host};
use crate::clock::Clock;
use crate::dns::Resolver;
use crate::message::Domain;

/// For one evaluation.
const TIME_MAX: Duration = Duration::from_secs(20);
/// An address that no record names: with it every term is looked at.
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1));

/// Remembers whose records were asked for.
struct Watched<'a> {
    resolver: &'a Resolver,
    asked: Mutex<Vec<String>>,
}

impl Lookup for Watched<'_> {
    async fn txt(&self, name: &str) -> Answer<Vec<u8>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(name.trim_end_matches('.').to_ascii_lowercase());
        self.resolver.txt_octets(name).await
    }

    async fn ip4(&self, name: &str) -> Answer<Ipv4Addr> {
        self.resolver.ip4_addresses(name).await
    }

    async fn ip6(&self, name: &str) -> Answer<Ipv6Addr> {
        self.resolver.ip6_addresses(name).await
    }

    async fn mx(&self, name: &str) -> Answer<String> {
        self.resolver.mx_names(name).await
    }

    async fn ptr(&self, ip: IpAddr) -> Answer<String> {
        self.resolver.ptr_names(ip).await
    }
}

impl World {
    /// Of the domain, and of the name in EHLO where that lies in it.
    pub(super) async fn spf(&self, domain: &Domain) -> Vec<Looked> {
        let mut all = vec![self.spf_of(domain).await];
        if let Some(record) = records::helo_spf(&self.config, domain) {
            all.push(self.helo_spf(record).await);
        }
        all
    }

    async fn evaluate(&self, lookup: &impl Lookup, domain: &Domain, client: IpAddr) -> Outcome {
        let (helo, receiver) = (self.config.delivery.helo_name.as_str(), self.config.hostname.as_str());
        let now = Clock::System.now() / 1000;
        let query = Query { client, local: "postmaster", domain: domain.as_str(), helo, receiver, now };
        check_host(lookup, &query, Instant::now() + TIME_MAX).await
    }

    async fn spf_of(&self, domain: &Domain) -> Looked {
        let wanted = records::spf(&self.config, domain);
        let of = domain.as_str();
        let texts = match or_none(self.resolver.txt(of).await) {
            Ok(texts) => texts,
            Err(error) => return Looked::unknown(wanted, Finding::unknown(Topic::Spf, of, &error)),
        };
        let is_spf = |text: &&String| {
            let head = text.to_ascii_lowercase();
            head == "v=spf1" || head.starts_with("v=spf1 ")
        };
        let ours: Vec<&String> = texts.iter().filter(is_spf).collect();
        let why = "Receivers refuse mail, or put it into the spam folder, from addresses that SPF does not name.";
        let text = match ours.as_slice() {
            [] => {
                let finding = Finding::new(Topic::Spf, of, Level::Problem, "there is no record").why(why);
                return Looked::missing(wanted, finding);
            }
            [only] => *only,
            several => {
                let list: Vec<String> = several.iter().map(|text| shown(text)).collect();
                let found = format!("there are {} records: {}", several.len(), list.join(", "));
                let finding = Finding::new(Topic::Spf, of, Level::Problem, found)
                    .remedy("make one of them")
                    .why("With several records SPF is an error, and nobody passes.");
                return Looked::differs(wanted, finding);
            }
        };
        self.spf_record(domain, wanted, text).await
    }

    /// There is one record.
    async fn spf_record(&self, domain: &Domain, wanted: Record, text: &str) -> Looked {
        let of = domain.as_str();
        let watched = Watched { resolver: &self.resolver, asked: Mutex::default() };
        let nobody = self.evaluate(&watched, domain, NOBODY).await;
        let asked = watched.asked.into_inner().unwrap_or_else(PoisonError::into_inner);
        match nobody.result {
            SpfResult::PermError => {
                let found = format!("{} is an error: {}", shown(text), nobody.why);
                let finding = Finding::new(Topic::Spf, of, Level::Problem, found)
                    .why("With a record that is an error nobody passes; ten terms that ask DNS are the most.");
                return Looked::differs(wanted, finding);
            }
            SpfResult::TempError => {
                let found = format!("{} could not be evaluated: {}", shown(text), nobody.why);
                let finding = Finding::new(Topic::Spf, of, Level::Warning, found)
                    .remedy("try again; if it stays so, a name that the record includes has broken name servers");
                return Looked::unknown(wanted, finding);
            }
            _ => {}
        }
        let ways = Ways::of(&self.config, domain);
        let (lacking, said) = self.lacking(domain, &ways, &asked).await;
        if !lacking.is_empty() {
            let terms: Vec<&str> = lacking.iter().map(|(term, _)| term.as_str()).collect();
            let better = wanted.with(with_terms(text, &terms));
            let sure = lacking.iter().any(|(_, is_sure)| *is_sure) && !ways.stays_here;
            let level = if sure { Level::Problem } else { Level::Warning };
            let finding = Finding::new(Topic::Spf, of, level, format!("{}: {}", shown(text), said.join("; ")))
                .why("Receivers refuse mail, or put it into the spam folder, from addresses that SPF does not name.");
            return Looked::differs(better, finding);
        }
        let finding = match nobody.result {
            SpfResult::Pass => Finding::new(
                Topic::Spf,
                of,
                Level::Warning,
                format!("{} lets everybody send", shown(text)),
            )
            .remedy("end it with -all, or ~all")
            .why("A record that names everybody is no proof of anything, and some receivers hold it against you."),
            SpfResult::Neutral | SpfResult::None => {
                Finding::new(Topic::Spf, of, Level::Note, format!("{} says nothing of all others", shown(text)))
                    .remedy("end it with -all, or ~all")
                    .why("Others may send in the name of the domain without failing SPF.")
            }
            _ => Finding::ok(Topic::Spf, of, if said.is_empty() { shown(text) } else { said.join("; ") }),
        };
        Looked::there(wanted.with(text), finding)
    }

    /// Terms that the record needs, each with whether that is sure; and what was found. `asked`: whose records it includes.
    async fn lacking(&self, domain: &Domain, ways: &Ways<'_>, asked: &[String]) -> (Vec<(String, bool)>, Vec<String>) {
        let (mut lacking, mut said) = (Vec::new(), Vec::new());
        if ways.direct {
            for ip in &self.sources().await.addresses {
                let outcome = self.evaluate(&self.resolver, domain, *ip).await;
                said.push(format!("{ip} gets \"{}\"", outcome.result.as_str()));
                if outcome.result != SpfResult::Pass {
                    lacking.push((records::term(*ip), true));
                }
            }
        }
        for host in &ways.hosts {
            if let Some(include) = records::provider(host) {
                let is_there = asked.iter().any(|name| name == include);
                said.push(format!(
                    "smart host {} {} included ({include})",
                    host.name,
                    if is_there { "is" } else { "is not" }
                ));
                if !is_there {
                    lacking.push((format!("include:{include}"), true));
                }
                continue;
            }
            // Another server may send from other addresses than it listens on.
            let (addresses, term) = self.host_addresses(&host.host).await;
            let mut passes = !addresses.is_empty();
            for ip in addresses {
                passes &= self.evaluate(&self.resolver, domain, ip).await.result == SpfResult::Pass;
            }
            if passes {
                said.push(format!("smart host {} passes", host.name));
            } else {
                said.push(format!(
                    "smart host {} ({}) does not pass, if it sends from where it listens",
                    host.name, host.host
                ));
                lacking.push((term, false));
            }
        }
        (lacking, said)
    }

    async fn host_addresses(&self, host: &str) -> (Vec<IpAddr>, String) {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return (vec![ip], records::term(ip));
        }
        let found = match Domain::parse(host) {
            Ok(domain) => self.resolver.addresses(&domain).await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        (found, format!("a:{host}"))
    }

    /// For bounces, which have no sender.
    async fn helo_spf(&self, wanted: Record) -> Looked {
        let of = wanted.name.clone();
        let Ok(helo) = Domain::parse(&of) else {
            return Looked::unknown(wanted, Finding::new(Topic::Spf, of, Level::Note, "is no name"));
        };
        let why = "Bounces have no sender, so receivers ask about the name that this server greets with.";
        let mut worst: Option<(IpAddr, Outcome)> = None;
        // Where nobody knows from where we send, whether there is a record at all can be told still.
        let known = &self.sources().await.addresses;
        if known.is_empty() {
            let outcome = self.evaluate(&self.resolver, &helo, NOBODY).await;
            if outcome.result != SpfResult::None {
                let found = "there is a record; from where we send is not known";
                return Looked::unknown(wanted, Finding::new(Topic::Spf, of, Level::Note, found));
            }
            worst = Some((NOBODY, outcome));
        }
        for ip in known {
            let outcome = self.evaluate(&self.resolver, &helo, *ip).await;
            if outcome.result != SpfResult::Pass {
                worst = Some((*ip, outcome));
            }
        }
        match worst {
            None => Looked::there(
                wanted,
                Finding::ok(Topic::Spf, of, "bounces pass: the name that this server greets with"),
            ),
            Some((_, Outcome { result: SpfResult::None, .. })) => {
                Looked::missing(wanted, Finding::new(Topic::Spf, of, Level::Note, "there is no record").why(why))
            }
            Some((_, outcome)) if outcome.result == SpfResult::TempError => {
                let found = format!("could not be evaluated: {}", outcome.why);
                Looked::unknown(wanted, Finding::new(Topic::Spf, of, Level::Warning, found).remedy("try again"))
            }
            Some((ip, outcome)) => {
                let found = format!("{ip} gets \"{}\"", outcome.result.as_str());
                Looked::differs(wanted, Finding::new(Topic::Spf, of, Level::Warning, found).why(why))
            }
        }
    }
}

/// The record with these terms in front of all others, so that none of those decides before them.
fn with_terms(text: &str, terms: &[&str]) -> String {
    let mut words = text.split_whitespace();
    let version = words.next().unwrap_or("v=spf1");
    let rest: Vec<&str> = words.collect();
    let all: Vec<&str> = std::iter::once(version).chain(terms.iter().copied()).chain(rest).collect();
    all.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_comes_first() {
        let text = with_terms("v=spf1 include:a.test ~all", &["ip4:192.0.2.1", "include:b.test"]);
        assert_eq!(text, "v=spf1 ip4:192.0.2.1 include:b.test include:a.test ~all");
        assert_eq!(with_terms("v=spf1 -all", &["a:x.test"]), "v=spf1 a:x.test -all");
    }
}
