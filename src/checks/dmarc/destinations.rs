//! Where the reports about a domain may go (RFC 9990 4): to the addresses that its record names, if
//! they are of the same organization or the other one agrees in DNS.

use super::record::{Destination, Record};
use super::walk::Walker;
use crate::dns::{DnsError, Resolver};
use crate::message::Domain;

/// DNS trouble: ask again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotNow;

/// The addresses that take reports about mail under the policy of `domain`. Asked anew, since they may
/// have changed.
pub async fn report_addresses(resolver: &Resolver, domain: &Domain) -> Result<Vec<Destination>, NotNow> {
    let mut walker = Walker::new(resolver);
    let Some(record) = walker.record(domain.as_str()).await.map_err(|_| NotNow)? else { return Ok(Vec::new()) };
    if record.policies().is_none() {
        return Ok(Vec::new());
    }
    let own = walker.organization(domain).await.map_err(|_| NotNow)?;
    let mut agreed: Vec<Destination> = Vec::new();
    for destination in record.destinations {
        let host = destination.address.domain();
        let taken = if walker.organization(host).await.map_err(|_| NotNow)? == own {
            vec![destination]
        } else {
            agreement(resolver, domain, destination).await?
        };
        for destination in taken {
            if agreed.iter().all(|known| known.address != destination.address) {
                agreed.push(destination);
            }
        }
    }
    Ok(agreed)
}

/// Asks the other organization; its record may name other addresses, of the same host.
async fn agreement(resolver: &Resolver, domain: &Domain, destination: Destination) -> Result<Vec<Destination>, NotNow> {
    let host = destination.address.domain();
    let texts = match resolver.txt(&format!("{domain}._report._dmarc.{host}")).await {
        Ok(texts) => texts,
        Err(DnsError::NoSuchDomain | DnsError::Unusable(_)) => return Ok(Vec::new()),
        Err(_) => return Err(NotNow),
    };
    let records: Vec<Record> = texts.iter().filter_map(|text| Record::parse(text)).collect();
    let instead: Vec<Destination> = records.iter().flat_map(|record| record.destinations.clone()).collect();
    let elsewhere = instead.iter().any(|other| other.address.domain() != host);
    Ok(match (records.is_empty() || elsewhere, instead.is_empty()) {
        (true, _) => Vec::new(),
        (false, true) => vec![destination],
        (false, false) => instead,
    })
}
