//! TLS reports (RFC 8460): what came of TLS at other domains' mail exchangers, told to those who want to
//! know.
//!
//! `delivery::smtp` notes sessions in a [`Tally`], by the recipients' domain and the day (UTC); `report`
//! makes JSON of a day, `send` sends it once the day is over. Counted is a session that came as far as
//! TLS could have been spoken; mail over a connection that is there already is none.
//!
//! Promises: what has been written down survives a restart, and a report that is queued is gone from the
//! counts in the same batch, so it is neither lost nor queued twice. Counts of the last seconds may be
//! lost to a crash. How much is counted is bounded; what is above is left out.

mod count;
mod report;
mod send;

pub use count::{Counts, Tally};
pub use send::{Reports, Wanted};

use serde::{Deserialize, Serialize};

use crate::message::Domain;

/// What is wrong with a session (RFC 8460 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flaw {
    StarttlsNotSupported,
    CertificateHostMismatch,
    CertificateExpired,
    CertificateNotTrusted,
    ValidationFailure,
    DnssecInvalid,
    StsPolicyFetchError,
    StsPolicyInvalid,
    StsWebpkiInvalid,
}

impl Flaw {
    pub fn name(self) -> &'static str {
        match self {
            Flaw::StarttlsNotSupported => "starttls-not-supported",
            Flaw::CertificateHostMismatch => "certificate-host-mismatch",
            Flaw::CertificateExpired => "certificate-expired",
            Flaw::CertificateNotTrusted => "certificate-not-trusted",
            Flaw::ValidationFailure => "validation-failure",
            Flaw::DnssecInvalid => "dnssec-invalid",
            Flaw::StsPolicyFetchError => "sts-policy-fetch-error",
            Flaw::StsPolicyInvalid => "sts-policy-invalid",
            Flaw::StsWebpkiInvalid => "sts-webpki-invalid",
        }
    }
}

/// Which policy a session was held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Tlsa,
    Sts,
    NoPolicyFound,
}

/// A policy as it was when a session was held to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// The recipients' domain, which is told.
    pub domain: Domain,
    pub kind: Kind,
    /// Lines of the policy, or TLSA records.
    pub lines: Vec<String>,
    /// The mail exchangers that it is about.
    pub mx: Vec<String>,
}

impl Ruling {
    pub fn none(domain: &Domain) -> Ruling {
        Ruling { domain: domain.clone(), kind: Kind::NoPolicyFound, lines: Vec::new(), mx: Vec::new() }
    }

    pub fn sts(domain: &Domain, lines: Vec<String>, mx: Vec<String>) -> Ruling {
        Ruling { domain: domain.clone(), kind: Kind::Sts, lines, mx }
    }

    pub fn tlsa(domain: &Domain, host: &Domain, records: Vec<String>) -> Ruling {
        Ruling { domain: domain.clone(), kind: Kind::Tlsa, lines: records, mx: vec![host.to_string()] }
    }
}
