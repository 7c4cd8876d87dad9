//! The published SPF suites (tests/data/spf), a zone in memory for them, and the same zone to be served.
//!
//! Include it with `#[path = "support/spf_suites.rs"] mod spf_suites;`, beside `zone`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use postrider::checks::spf::{Answer, Lookup, Outcome, Query, SpfResult, check_host};
use postrider::dns::DnsError;
use serde::Deserialize;
use tokio::time::Instant;

use crate::zone::Zone;

pub const SUITES: [&str; 5] = ["rfc7208", "rfc4408", "blitiri", "pyspf", "mail-auth"];
/// CNAMEs that are followed.
const CNAMES_MAX: usize = 8;

#[derive(Deserialize)]
pub struct Group {
    pub group: String,
    zone: BTreeMap<String, Vec<Vec<String>>>,
    pub cases: Vec<Case>,
}

#[derive(Deserialize)]
pub struct Case {
    pub name: String,
    client: IpAddr,
    helo: String,
    sender: String,
    pub results: Vec<String>,
    /// None: it does not matter. Empty: there is none.
    pub explanation: Option<String>,
    #[serde(default)]
    helo_first: bool,
}

pub fn load(suite: &str) -> Vec<Group> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/spf/{suite}.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// `suite/case` and the reason why it does not pass.
pub fn not_passed() -> BTreeMap<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/not-passed.toml");
    let all: BTreeMap<String, BTreeMap<String, String>> =
        toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    all.get("spf").cloned().unwrap_or_default()
}

impl Case {
    pub async fn run(&self, lookup: &impl Lookup, deadline: Instant) -> Outcome {
        let helo = Query {
            client: self.client,
            local: "",
            domain: &self.helo,
            helo: &self.helo,
            receiver: "mail.own.test",
            now: 1_795_300_017,
        };
        if self.sender.is_empty() {
            return check_host(lookup, &helo, deadline).await;
        }
        if self.helo_first {
            let outcome = check_host(lookup, &helo, deadline).await;
            if outcome.result == SpfResult::Fail {
                return outcome;
            }
        }
        let (local, domain) = self.sender.rsplit_once('@').unwrap();
        check_host(lookup, &Query { local, domain, ..helo }, deadline).await
    }

    /// What is wrong with an outcome, if anything.
    pub fn complaint(&self, outcome: &Outcome) -> Option<String> {
        let result = outcome.result.as_str();
        let text = outcome.explanation.as_ref().map_or("", |explanation| &explanation.text);
        let told = self.explanation.as_deref().unwrap_or(text);
        let fits = self.results.iter().any(|expected| expected == result) && text == told;
        (!fits).then(|| format!("{result} ({}) {text:?}, expected {:?} {told:?}", outcome.why, self.results))
    }
}

impl Group {
    pub fn in_memory(&self) -> Memory {
        let lower = self.zone.iter().map(|(name, records)| (key(name), records.clone()));
        Memory { records: lower.collect(), queries: AtomicUsize::new(0) }
    }

    /// TXT records without any string cannot be sent and are left out.
    pub fn served(&self) -> Zone {
        let mut zone = Zone::new();
        for (name, records) in &self.zone {
            for record in records {
                let (kind, values) = record.split_first().unwrap();
                let value = values.first().map_or("", String::as_str);
                zone = match kind.as_str() {
                    "TXT" if values.is_empty() => zone,
                    "TXT" => zone.txt_strings(name, &values.iter().map(|text| octets(text)).collect::<Vec<_>>()),
                    "A" => zone.a(name, value),
                    "AAAA" => zone.aaaa(name, value),
                    "MX" => zone.mx(name, 10, value),
                    "PTR" => zone.pointer(name, value),
                    "CNAME" => zone.cname(name, value),
                    "FAIL" => zone.lame(name),
                    other => panic!("{other}"),
                };
            }
        }
        zone
    }
}

pub struct Memory {
    records: BTreeMap<String, Vec<Vec<String>>>,
    pub queries: AtomicUsize,
}

impl Memory {
    /// From `(name, type, value)`.
    pub fn new(records: &[(&str, &str, &str)]) -> Memory {
        let mut map: BTreeMap<String, Vec<Vec<String>>> = BTreeMap::new();
        for (name, kind, value) in records {
            map.entry(key(name)).or_default().push(vec![(*kind).to_owned(), (*value).to_owned()]);
        }
        Memory { records: map, queries: AtomicUsize::new(0) }
    }

    pub fn queries(&self) -> usize {
        self.queries.load(Ordering::Relaxed)
    }

    fn find<T>(&self, name: &str, kind: &str, one: impl Fn(&[String]) -> T) -> Answer<T> {
        self.queries.fetch_add(1, Ordering::Relaxed);
        let mut name = key(name);
        for _ in 0..CNAMES_MAX {
            let Some(records) = self.records.get(&name) else {
                let below = format!(".{name}");
                let is_above = self.records.keys().any(|other| other.ends_with(&below));
                return if is_above { Ok(Vec::new()) } else { Err(DnsError::NoSuchDomain) };
            };
            let of =
                |kind: &str| records.iter().filter(|record| record[0] == kind).map(|r| &r[1..]).collect::<Vec<_>>();
            let found: Vec<T> = of(kind).into_iter().map(&one).collect();
            if !found.is_empty() {
                return Ok(found);
            }
            if !of("FAIL").is_empty() {
                return Err(DnsError::Temporary("it fails".to_owned()));
            }
            match of("CNAME").first() {
                Some(target) => name = key(&target[0]),
                None => return Ok(found),
            }
        }
        Err(DnsError::Temporary("a loop of CNAMEs".to_owned()))
    }
}

impl Lookup for Memory {
    async fn txt(&self, name: &str) -> Answer<Vec<u8>> {
        self.find(name, "TXT", |strings| strings.iter().flat_map(|text| octets(text)).collect())
    }

    async fn ip4(&self, name: &str) -> Answer<Ipv4Addr> {
        self.find(name, "A", |value| value[0].parse().unwrap())
    }

    async fn ip6(&self, name: &str) -> Answer<Ipv6Addr> {
        self.find(name, "AAAA", |value| value[0].parse().unwrap())
    }

    async fn mx(&self, name: &str) -> Answer<String> {
        self.find(name, "MX", |value| key_as_written(&value[0]))
    }

    async fn ptr(&self, ip: IpAddr) -> Answer<String> {
        let name = match ip {
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                format!("{d}.{c}.{b}.{a}.in-addr.arpa")
            }
            IpAddr::V6(v6) => {
                let digits = format!("{:032x}", u128::from(v6)).chars().rev().map(String::from).collect::<Vec<_>>();
                format!("{}.ip6.arpa", digits.join("."))
            }
        };
        self.find(&name, "PTR", |value| key_as_written(&value[0]))
    }
}

fn key(name: &str) -> String {
    key_as_written(name).to_ascii_lowercase()
}

fn key_as_written(name: &str) -> String {
    name.trim_end_matches('.').to_owned()
}

/// A character stands for one octet.
fn octets(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}
