//! Sessions counted by day, domain and policy.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::{Flaw, Kind, Ruling};
use crate::clock::{Clock, DAY};
use crate::delivery::shelf::Shelf;
use crate::message::Domain;

/// Domains counted between two writings.
const DOMAINS_MAX: usize = 10_000;
/// Policies of one domain on one day.
const POLICIES_MAX: usize = 16;
/// Different failures under one policy.
const FAILURES_MAX: usize = 100;
/// Characters of what is said of a failure.
const DETAIL_CHARS_MAX: usize = 300;
/// In the store.
pub const SHELF: u8 = b'r';

/// A day of a domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub policies: Vec<Counted>,
    /// The report has been queued as mail; what is left are the https addresses.
    #[serde(default)]
    pub is_mailed: bool,
    /// Tries at https addresses.
    #[serde(default)]
    pub tries: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    pub kind: Kind,
    pub lines: Vec<String>,
    pub mx: Vec<String>,
    pub good: u64,
    pub bad: Vec<Bad>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bad {
    pub flaw: Flaw,
    pub host: Option<String>,
    pub ip: Option<IpAddr>,
    pub detail: String,
    pub count: u64,
}

impl Counts {
    fn policy(&mut self, kind: Kind, lines: &[String], mx: &[String]) -> Option<&mut Counted> {
        let same = |counted: &Counted| counted.kind == kind && counted.lines == lines && counted.mx == mx;
        if let Some(at) = self.policies.iter().position(same) {
            return self.policies.get_mut(at);
        }
        if self.policies.len() >= POLICIES_MAX {
            return None;
        }
        let (lines, mx) = (lines.to_vec(), mx.to_vec());
        self.policies.push(Counted { kind, lines, mx, good: 0, bad: Vec::new() });
        self.policies.last_mut()
    }

    fn add(&mut self, other: Counts) {
        for policy in other.policies {
            let Some(own) = self.policy(policy.kind, &policy.lines, &policy.mx) else { continue };
            own.good += policy.good;
            policy.bad.into_iter().for_each(|bad| own.fail(bad));
        }
    }
}

impl Counted {
    fn fail(&mut self, bad: Bad) {
        let same = |known: &&mut Bad| (known.flaw, &known.host, &known.ip) == (bad.flaw, &bad.host, &bad.ip);
        if let Some(known) = self.bad.iter_mut().find(same) {
            known.count += bad.count;
        } else if self.bad.len() < FAILURES_MAX {
            self.bad.push(bad);
        }
    }
}

/// Where sessions are noted.
#[derive(Debug)]
pub struct Tally {
    clock: Clock,
    shelf: Shelf,
    /// Since the last writing, by the day's number and the domain.
    fresh: Mutex<HashMap<(u64, Domain), Counts>>,
    /// Held while records are read and written.
    pub(super) writing: tokio::sync::Mutex<()>,
}

impl Tally {
    pub fn new(clock: Clock, shelf: Shelf) -> Tally {
        Tally { clock, shelf, fresh: Mutex::default(), writing: tokio::sync::Mutex::default() }
    }

    pub fn good(&self, ruling: &Ruling) {
        self.note(ruling, |counted| counted.good += 1);
    }

    pub fn bad(&self, ruling: &Ruling, flaw: Flaw, host: Option<&Domain>, ip: Option<IpAddr>, detail: &str) {
        let detail = detail.chars().take(DETAIL_CHARS_MAX).collect();
        let host = host.map(ToString::to_string);
        self.note(ruling, |counted| counted.fail(Bad { flaw, host, ip, detail, count: 1 }));
    }

    fn note(&self, ruling: &Ruling, note: impl FnOnce(&mut Counted)) {
        let day = (self.clock.now() / DAY, ruling.domain.clone());
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        if fresh.len() >= DOMAINS_MAX && !fresh.contains_key(&day) {
            return;
        }
        if let Some(counted) = fresh.entry(day).or_default().policy(ruling.kind, &ruling.lines, &ruling.mx) {
            note(counted);
        }
    }

    /// Writes down what has been noted.
    pub async fn flush(&self) {
        let _writing = self.writing.lock().await;
        self.flush_locked().await;
    }

    pub(super) async fn flush_locked(&self) {
        let fresh = std::mem::take(&mut *self.fresh.lock().unwrap_or_else(PoisonError::into_inner));
        for ((day, domain), counts) in fresh {
            let name = name(day, &domain);
            let mut all = self.shelf.get::<Counts>(SHELF, &name).unwrap_or_default();
            all.add(counts);
            self.shelf.put(SHELF, &name, &all).await;
        }
    }

    /// What is written down of days that are over: day, domain, counts.
    pub(super) fn over(&self) -> Vec<(u64, Domain, Counts)> {
        let today = self.clock.now() / DAY;
        let all = self.shelf.all::<Counts>(SHELF).into_iter().filter_map(|(name, counts)| {
            let (day, domain) = name.split_once(' ')?;
            Some((day.parse().ok()?, Domain::parse(domain).ok()?, counts))
        });
        all.filter(|(day, _, _)| *day < today).collect()
    }

    pub(super) fn shelf(&self) -> &Shelf {
        &self.shelf
    }
}

pub(super) fn name(day: u64, domain: &Domain) -> String {
    format!("{day:08} {domain}")
}
