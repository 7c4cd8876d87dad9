//! What is told to domains about mail in their name (DMARC aggregate reports, RFC 9990): evaluations as
//! rows, and a tally of them by the day (UTC) and the domain whose policy it was.
//!
//! The tally is in memory and bounded; whoever sends the reports takes it away from time to time and
//! keeps it. What is above the bounds is counted as left out. Left out: how a report is written and sent.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::Verdict;
use super::dkim::Dkim;
use super::dmarc::{Dmarc, Policy};
use super::spf::Spf;
use crate::config::DmarcMode;
use crate::message::header::Headers;
use crate::message::{Domain, Draft};

/// Domains between two takings.
const DOMAINS_MAX: usize = 10_000;
/// Different rows of all domains between two takings.
const ROWS_MAX: usize = 20_000;
/// Different rows of a domain.
const ROWS_OF_DOMAIN_MAX: usize = 1_000;
/// Signatures in a row (RFC 9990 3.1.3 allows a hundred).
const SIGNATURES_MAX: usize = 10;

/// What a domain publishes, with defaults where it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub p: String,
    pub sp: String,
    pub np: String,
    pub adkim_strict: bool,
    pub aspf_strict: bool,
    pub fo: String,
    pub testing: bool,
}

/// What was done with a message by DMARC (RFC 9990 2.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Disposition {
    None,
    Pass,
    Quarantine,
    Reject,
}

/// Why that is not what the policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    LocalPolicy,
    PolicyTestMode,
}

/// Messages that are alike: from one address, with the same results.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Row {
    pub source: IpAddr,
    pub disposition: Disposition,
    pub reason: Option<Reason>,
    pub dkim_aligned: bool,
    pub spf_aligned: bool,
    pub header_from: String,
    /// Empty for the null sender.
    pub envelope_from: String,
    /// Domain and result.
    pub spf: Option<(String, String)>,
    pub dkim: Vec<Signature>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Signature {
    pub domain: String,
    pub selector: String,
    pub result: String,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluated {
    pub policy_domain: Domain,
    pub published: Published,
    pub row: Row,
    /// It is a report itself.
    pub is_report: bool,
}

/// A day of a domain, or a part of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// As it was last.
    pub published: Published,
    pub rows: HashMap<Row, u64>,
    /// Messages that are no reports themselves.
    pub ordinary: u64,
    /// Messages that are in no row.
    pub left_out: u64,
}

impl Counts {
    /// Adds a later part, up to so many rows.
    pub fn add(&mut self, later: Counts, rows_max: usize) {
        self.published = later.published;
        self.ordinary += later.ordinary;
        self.left_out += later.left_out;
        for (row, count) in later.rows {
            if self.rows.len() < rows_max || self.rows.contains_key(&row) {
                *self.rows.entry(row).or_default() += count;
            } else {
                self.left_out += count;
            }
        }
    }
}

/// A message as its report tells of it. None: its domain wants none, or the message may come again.
pub(super) fn evaluated(
    mode: DmarcMode,
    draft: &Draft,
    headers: &Headers<'_>,
    (spf, dkim, dmarc): (&Spf, &[Dkim], &Dmarc),
    verdict: &Verdict,
) -> Option<Evaluated> {
    let reported = dmarc.reported.as_ref()?;
    let source = draft.origin.peer.as_ref()?.ip.to_canonical();
    let comes_again = matches!(verdict, Verdict::Reject(refusal) if refusal.reply.code < 500);
    if comes_again || !matches!(dmarc.result, "pass" | "fail") {
        return None;
    }
    let (disposition, reason) = disposition(mode, dmarc, reported.is_lowered, verdict);
    let envelope_from = draft.envelope.mail_from.address().map(|address| address.domain().to_string());
    let row = Row {
        source,
        disposition,
        reason,
        dkim_aligned: reported.dkim_aligned,
        spf_aligned: reported.spf_aligned,
        header_from: dmarc.domain.clone(),
        envelope_from: envelope_from.unwrap_or_default(),
        spf: Some((spf.domain().to_owned(), spf.result().to_owned())).filter(|(domain, _)| !domain.is_empty()),
        dkim: signatures(dkim, &dmarc.domain),
    };
    // Whoever may send in the domain's name; a forged one is worth a report as any other mail.
    let is_report = dmarc.result == "pass" && is_report(headers);
    let (policy_domain, published) = (reported.policy_domain.clone(), reported.published.clone());
    Some(Evaluated { policy_domain, published, row, is_report })
}

fn disposition(mode: DmarcMode, dmarc: &Dmarc, is_lowered: bool, verdict: &Verdict) -> (Disposition, Option<Reason>) {
    let done = match dmarc.policy {
        _ if mode != DmarcMode::Enforce || *verdict == Verdict::Accept => None,
        Policy::Reject if matches!(verdict, Verdict::Reject(_)) => Some(Disposition::Reject),
        Policy::Quarantine => Some(Disposition::Quarantine),
        _ => None,
    };
    match (dmarc.result, dmarc.policy, done) {
        ("pass", Policy::Quarantine | Policy::Reject, _) => (Disposition::Pass, None),
        ("pass", ..) => (Disposition::None, None),
        (_, _, Some(done)) => (done, is_lowered.then_some(Reason::PolicyTestMode)),
        (_, Policy::Quarantine | Policy::Reject, None) => (Disposition::None, Some(Reason::LocalPolicy)),
        _ => (Disposition::None, is_lowered.then_some(Reason::PolicyTestMode)),
    }
}

/// Those that pass and name the author's domain first (RFC 9990 3.1.3).
fn signatures(dkim: &[Dkim], author: &str) -> Vec<Signature> {
    let mut all: Vec<&Dkim> = dkim.iter().filter(|one| !one.domain.is_empty() && !one.selector.is_empty()).collect();
    all.sort_by_key(|one| (one.result != "pass", one.domain != author));
    let row = |one: &&Dkim| Signature {
        domain: one.domain.clone(),
        selector: one.selector.clone(),
        result: one.result.to_owned(),
    };
    all.iter().take(SIGNATURES_MAX).map(row).collect()
}

/// By the subject that RFC 9990 3.5.2 prescribes.
fn is_report(headers: &Headers<'_>) -> bool {
    let Some(subject) = headers.get("Subject").map(|field| field.text()) else { return false };
    let mut words = subject.split_whitespace();
    let start = [words.next(), words.next()] == [Some("Report"), Some("Domain:")];
    start && words.nth(1) == Some("Submitter:")
}

/// The days and domains that are counted.
#[derive(Debug, Default)]
pub struct Tally {
    fresh: Mutex<Fresh>,
}

#[derive(Debug, Default)]
struct Fresh {
    days: HashMap<(u64, Domain), Counts>,
    rows: usize,
}

impl Tally {
    /// `day`: its number since 1970.
    pub fn note(&self, day: u64, message: Evaluated) {
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        let Fresh { days, rows } = &mut *fresh;
        let key = (day, message.policy_domain);
        if days.len() >= DOMAINS_MAX && !days.contains_key(&key) {
            return;
        }
        let counts = days.entry(key).or_default();
        counts.published = message.published;
        counts.ordinary += u64::from(!message.is_report);
        if let Some(count) = counts.rows.get_mut(&message.row) {
            *count += 1;
        } else if counts.rows.len() < ROWS_OF_DOMAIN_MAX && *rows < ROWS_MAX {
            counts.rows.insert(message.row, 1);
            *rows += 1;
        } else {
            counts.left_out += 1;
        }
    }

    /// What has been noted since the last time.
    pub fn take(&self) -> Vec<(u64, Domain, Counts)> {
        let fresh = std::mem::take(&mut *self.fresh.lock().unwrap_or_else(PoisonError::into_inner));
        fresh.days.into_iter().map(|((day, domain), counts)| (day, domain, counts)).collect()
    }
}
