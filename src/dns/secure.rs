//! Answers that are signed (DNSSEC), for DANE.
//!
//! We validate ourselves, from the root's keys down (RFC 7672 2.1: an AD bit of somebody else is worth only
//! as much as the way to him). That wants name servers that hand signatures through, so it is tried out
//! first, with the root's own SOA record; where it does not work, nothing is called signed and DANE is off. Where
//! it has worked it stays on for a day without: whoever cuts us off from signatures shall not have mail in clear
//! for it (RFC 7672 2.1.3), it waits.
//! Only these look-ups validate: a name server that drops signatures must not keep other mail from going.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::{DnsError as Negative, NetError};
use hickory_resolver::proto::dnssec::Proof;
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};

use super::{DnsError, MxAnswer, RECORDS_MAX, Resolver, fqdn, mx_answer, trouble};
use crate::message::Domain;

/// How long the result of the try-out counts: a good one, and a bad one the first time; each further one twice as long.
const WORKS_FOR: Duration = Duration::from_secs(3600);
const FAILS_FOR: Duration = Duration::from_secs(30);
const FAILS_FOR_MAX: Duration = Duration::from_secs(300);
/// After it has last worked.
const STAYS_ON_FOR: Duration = Duration::from_secs(24 * 3600);

/// One TLSA record (RFC 6698 2.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tlsa {
    pub usage: u8,
    pub selector: u8,
    pub matching: u8,
    pub data: Vec<u8>,
}

impl std::fmt::Display for Tlsa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {} ", self.usage, self.selector, self.matching)?;
        self.data.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The resolver that validates, and what came of trying it out.
pub(super) struct Validating {
    pub resolver: TokioResolver,
    tried: Mutex<Option<Tried>>,
    /// Held by whoever tries it out: the others go by what is known.
    trying: tokio::sync::Mutex<()>,
}

impl Validating {
    pub fn new(resolver: TokioResolver) -> Arc<Validating> {
        Arc::new(Validating { resolver, tried: Mutex::new(None), trying: tokio::sync::Mutex::new(()) })
    }

    fn known(&self) -> Option<Tried> {
        *self.tried.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of trying it out, the last time and before.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tried {
    is_on: bool,
    worked_at: Option<Instant>,
    counts_for: Duration,
    at: Instant,
}

impl Tried {
    fn after(before: Option<Tried>, works: bool, now: Instant) -> Tried {
        if works {
            return Tried { is_on: true, worked_at: Some(now), counts_for: WORKS_FOR, at: now };
        }
        let worked_at = before.and_then(|before| before.worked_at);
        let counts_for = match before {
            Some(before) if before.worked_at != Some(before.at) => (before.counts_for * 2).min(FAILS_FOR_MAX),
            _ => FAILS_FOR,
        };
        let is_on = worked_at.is_some_and(|at| now.duration_since(at) < STAYS_ON_FOR);
        Tried { is_on, worked_at, counts_for, at: now }
    }

    fn counts(&self, now: Instant) -> bool {
        now.duration_since(self.at) < self.counts_for
    }

    fn works(&self) -> bool {
        self.worked_at == Some(self.at)
    }
}

/// What is there, and whether it is signed.
struct Answer {
    lookup: Option<Lookup>,
    is_signed: bool,
}

impl Resolver {
    /// Do the name servers give answers that we can validate? Tried out now and then; what comes of it is
    /// told in the log when it changes.
    pub async fn validates(&self) -> bool {
        let known = self.secure.known();
        if let Some(tried) = known.filter(|tried| tried.counts(Instant::now())) {
            return tried.is_on;
        }
        let _trying = match (known, self.secure.trying.try_lock()) {
            (_, Ok(trying)) => trying,
            (Some(tried), Err(_)) => return tried.is_on,
            (None, Err(_)) => self.secure.trying.lock().await,
        };
        let before = self.secure.known();
        if let Some(tried) = before.filter(|tried| tried.counts(Instant::now())) {
            return tried.is_on;
        }
        let answer = self.secure.resolver.lookup(Name::root(), RecordType::SOA).await;
        let works = answer.as_ref().is_ok_and(|lookup| is_signed(lookup, RecordType::SOA));
        let tried = Tried::after(before, works, Instant::now());
        *self.secure.tried.lock().unwrap_or_else(PoisonError::into_inner) = Some(tried);
        let why = || answer.as_ref().err().map_or_else(|| "not signed".to_owned(), ToString::to_string);
        match (before.map(|before| (before.is_on, before.works())), (tried.is_on, works)) {
            (before, now) if before == Some(now) => {}
            (_, (true, true)) => {
                tracing::info!("DANE is on: the answers of the name servers can be validated (DNSSEC)");
            }
            (_, (true, false)) => tracing::warn!(
                why = why(),
                "the answers of the name servers could be validated (DNSSEC) and cannot be now: mail waits until they can, \
                 for a day at most; a restart, or delivery.tls.dane = false, would have it go without DANE"
            ),
            (_, (false, _)) => tracing::info!(
                why = why(),
                "DANE is off: the name servers give no answers that can be validated (DNSSEC); name others in \
                 [dns] nameservers, or set delivery.tls.dane = false"
            ),
        }
        tried.is_on
    }

    /// As [`Resolver::mx`], with whether the answer is signed. What ought to be signed and is not right is
    /// no answer.
    pub async fn signed_mx(&self, domain: &Domain) -> Result<(MxAnswer, bool), DnsError> {
        if domain.literal().is_some() {
            return Ok((MxAnswer::Implicit, false));
        }
        match self.secure_lookup(domain.as_str(), RecordType::MX).await {
            // That there is no MX record is proven, too: a forged denial is no answer.
            Ok(Answer { lookup: None, is_signed }) => Ok((MxAnswer::Implicit, is_signed)),
            Ok(Answer { lookup: Some(lookup), is_signed }) => Ok((mx_answer(domain, &lookup)?, is_signed)),
            Err(DnsError::NoSuchDomain) => Ok((MxAnswer::NoSuchDomain, false)),
            Err(error) => Err(error),
        }
    }

    /// Are the addresses of the host signed, as far as there are any?
    pub async fn has_signed_addresses(&self, host: &Domain) -> Result<bool, DnsError> {
        for kind in [RecordType::A, RecordType::AAAA] {
            if let Answer { lookup: Some(_), is_signed } = self.secure_lookup(host.as_str(), kind).await? {
                return Ok(is_signed);
            }
        }
        Ok(false)
    }

    /// The TLSA records of a host's port, if they are signed; empty if there are none.
    pub async fn tlsa(&self, host: &Domain, port: u16) -> Result<Vec<Tlsa>, DnsError> {
        let answer = self.secure_lookup(&format!("_{port}._tcp.{host}"), RecordType::TLSA).await?;
        let Answer { lookup: Some(lookup), is_signed: true } = answer else { return Ok(Vec::new()) };
        let records = lookup.answers().iter().filter_map(|record| match &record.data {
            RData::TLSA(tlsa) => Some(Tlsa {
                usage: tlsa.cert_usage.into(),
                selector: tlsa.selector.into(),
                matching: tlsa.matching.into(),
                data: tlsa.cert_data.clone(),
            }),
            _ => None,
        });
        Ok(records.take(RECORDS_MAX).collect())
    }

    async fn secure_lookup(&self, name: &str, kind: RecordType) -> Result<Answer, DnsError> {
        let none = |is_signed| Answer { lookup: None, is_signed };
        let denied = |code: ResponseCode, is_signed| match code {
            ResponseCode::NXDomain => Err(DnsError::NoSuchDomain),
            _ => Ok(none(is_signed)),
        };
        match self.secure.resolver.lookup(fqdn(name)?, kind).await {
            Ok(lookup) if lookup.answers().iter().any(|record| record.record_type() == kind) => {
                let is_signed = is_signed(&lookup, kind);
                Ok(Answer { lookup: Some(lookup), is_signed })
            }
            Ok(_) => Ok(none(false)),
            Err(NetError::Dns(Negative::NoRecordsFound(negative))) => {
                let authorities = negative.authorities.as_deref().unwrap_or_default();
                let is_signed = !authorities.is_empty() && authorities.iter().all(|record| record.proof.is_secure());
                denied(negative.response_code, is_signed)
            }
            Err(NetError::Dns(Negative::Nsec { response, proof: Proof::Insecure, .. })) => {
                denied(response.response_code, false)
            }
            Err(NetError::Dns(Negative::Nsec { .. } | Negative::DnssecBogus)) => Err(DnsError::Temporary(format!(
                "{kind} of {name} ought to be signed (DNSSEC), and the signatures are wrong or missing"
            ))),
            Err(error) => Err(DnsError::Temporary(trouble(name, kind, &error))),
        }
    }
}

/// All records on the way, aliases included.
fn is_signed(lookup: &Lookup, kind: RecordType) -> bool {
    let mut on_the_way =
        lookup.answers().iter().filter(|record| [kind, RecordType::CNAME].contains(&record.record_type())).peekable();
    on_the_way.peek().is_some() && on_the_way.all(|record| record.proof.is_secure())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_worked_stays_on_for_a_day_without() {
        let start = Instant::now();
        let at = |hours: u64| start + Duration::from_secs(hours * 3600);
        let worked = Tried::after(None, true, at(0));
        assert!(worked.counts(at(0)) && !worked.counts(at(1)));
        let failed = Tried::after(Some(worked), false, at(1));
        assert!(failed.is_on && !failed.works());
        let still = Tried::after(Some(failed), false, at(23));
        assert!(still.is_on);
        assert!(!Tried::after(Some(still), false, at(24)).is_on);
        let again = Tried::after(Some(still), true, at(23));
        assert!(Tried::after(Some(again), false, at(46)).is_on, "counted from the last time it worked");
    }

    #[test]
    fn what_has_never_worked_is_off_and_soon_tried_again() {
        let now = Instant::now();
        let mut tried = Tried::after(None, false, now);
        let mut waits = Vec::new();
        for _ in 0..6 {
            assert!(!tried.is_on);
            waits.push(tried.counts_for.as_secs());
            tried = Tried::after(Some(tried), false, now);
        }
        assert_eq!(waits, [30, 60, 120, 240, 300, 300]);
        let worked = Tried::after(Some(tried), true, now);
        assert_eq!(Tried::after(Some(worked), false, now + WORKS_FOR).counts_for, FAILS_FOR);
    }
}
