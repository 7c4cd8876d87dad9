//! Records as they are, all of them: for checks that may not leave any out and have bounds of their own.
//!
//! Names are texts with dots between labels. They may hold what no host name does ("foo:bar/baz.test"), but not
//! what such a text cannot tell: a label with a dot in it or with other than ASCII.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_resolver::proto::rr::{Name, RData, RecordType};

use super::{DnsError, Resolver};

impl Resolver {
    /// TXT records, each with its strings joined without spaces (RFC 7208 3.3); empty if there are none.
    pub async fn txt_octets(&self, name: &str) -> Result<Vec<Vec<u8>>, DnsError> {
        self.records(name_of(name)?, RecordType::TXT, |data| match data {
            RData::TXT(txt) => Some(txt.txt_data.concat()),
            _ => None,
        })
        .await
    }

    /// A records, without limit; empty if there are none.
    pub async fn ip4_addresses(&self, name: &str) -> Result<Vec<Ipv4Addr>, DnsError> {
        self.records(name_of(name)?, RecordType::A, |data| match data {
            RData::A(a) => Some(a.0),
            _ => None,
        })
        .await
    }

    /// AAAA records, without limit; empty if there are none.
    pub async fn ip6_addresses(&self, name: &str) -> Result<Vec<Ipv6Addr>, DnsError> {
        self.records(name_of(name)?, RecordType::AAAA, |data| match data {
            RData::AAAA(aaaa) => Some(aaaa.0),
            _ => None,
        })
        .await
    }

    /// The host of each MX record, in no order. The root (RFC 7505), and a host that is no text, is an empty name.
    pub async fn mx_names(&self, name: &str) -> Result<Vec<String>, DnsError> {
        self.records(name_of(name)?, RecordType::MX, |data| match data {
            RData::MX(mx) => Some(text_of(&mx.exchange).unwrap_or_default()),
            _ => None,
        })
        .await
    }

    /// The names that an address says it has, in the order of the answer. Not checked against their addresses.
    pub async fn ptr_names(&self, ip: IpAddr) -> Result<Vec<String>, DnsError> {
        self.records(Name::from(ip), RecordType::PTR, |data| match data {
            RData::PTR(name) => Some(text_of(name).unwrap_or_default()),
            _ => None,
        })
        .await
    }

    async fn records<T>(&self, name: Name, kind: RecordType, one: fn(&RData) -> Option<T>) -> Result<Vec<T>, DnsError> {
        let Some(lookup) = self.ask(name, kind).await? else { return Ok(Vec::new()) };
        Ok(lookup.answers().iter().filter_map(|record| one(&record.data)).collect())
    }
}

fn name_of(text: &str) -> Result<Name, DnsError> {
    let labels = text.split('.').map(str::as_bytes);
    Name::from_labels(labels).map_err(|_| DnsError::Unusable(format!("{text:?} is not a domain name")))
}

fn text_of(name: &Name) -> Option<String> {
    let mut labels = Vec::new();
    for label in name.iter() {
        let text = std::str::from_utf8(label).ok().filter(|text| text.is_ascii() && !text.contains('.'))?;
        labels.push(text);
    }
    Some(labels.join("."))
}
