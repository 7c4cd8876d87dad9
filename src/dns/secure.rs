//! Answers that are signed (DNSSEC), for DANE.
//!
//! We validate ourselves, from the root's keys down (RFC 7672 2.1: an AD bit of somebody else is worth only
//! as much as the way to him). That wants name servers that hand signatures through, so it is tried out
//! first, with the root's own SOA record; where it does not work, nothing is called signed and DANE is off.
//! Only these look-ups validate: a name server that drops signatures must not keep other mail from going.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::{DnsError as Negative, NetError};
use hickory_resolver::proto::dnssec::Proof;
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::sync::Mutex;

use super::{DnsError, MxAnswer, RECORDS_MAX, Resolver, fqdn, mx_answer, trouble};
use crate::message::Domain;

/// How long the result of the try-out counts.
const WORKS_FOR: Duration = Duration::from_secs(3600);
const FAILS_FOR: Duration = Duration::from_secs(300);

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
    tried: Mutex<Option<(bool, Instant)>>,
}

impl Validating {
    pub fn new(resolver: TokioResolver) -> Arc<Validating> {
        Arc::new(Validating { resolver, tried: Mutex::new(None) })
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
        let mut tried = self.secure.tried.lock().await;
        let before = *tried;
        if let Some((works, at)) = before
            && at.elapsed() < if works { WORKS_FOR } else { FAILS_FOR }
        {
            return works;
        }
        let answer = self.secure.resolver.lookup(Name::root(), RecordType::SOA).await;
        let works = answer.as_ref().is_ok_and(|lookup| is_signed(lookup, RecordType::SOA));
        *tried = Some((works, Instant::now()));
        if before.map(|(works, _)| works) != Some(works) {
            match works {
                true => tracing::info!("DANE is on: the answers of the name servers can be validated (DNSSEC)"),
                false => tracing::info!(
                    why = answer.err().map(|error| error.to_string()).unwrap_or_else(|| "not signed".to_owned()),
                    "DANE is off: the name servers give no answers that can be validated (DNSSEC); name others in \
                     [dns] nameservers, or set delivery.tls.dane = false"
                ),
            }
        }
        works
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
