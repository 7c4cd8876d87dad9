//! Records and signatures by which senders prove who they are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::checks::dkim::signature::{Kind, Signature};
use crate::checks::dmarc::record::Record;
use crate::checks::spf::{Answer, Lookup, Query, check_host};
use crate::delivery::smtp::mta_sts::Policy;
use crate::dns::DnsError;
use crate::message::header::Headers;
use crate::message::tags::Tags;

/// RFC 7208 4.6.4: ten terms, each with at most ten names below it.
const LOOKUPS_MAX: usize = 10 * (1 + 10) + 20;

/// A world in which every name has one of the texts.
struct World<'a> {
    texts: Vec<&'a [u8]>,
    asked: AtomicUsize,
}

impl World<'_> {
    fn pick(&self, name: &str) -> Result<&[u8], DnsError> {
        assert!(self.asked.fetch_add(1, Ordering::Relaxed) < LOOKUPS_MAX, "more is asked than RFC 7208 4.6.4 allows");
        assert!(name.len() <= 255, "{name:?}");
        let number = name.bytes().fold(7usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte as usize));
        match self.texts.get(number % (self.texts.len() + 1)) {
            Some(text) => Ok(text),
            None if number.is_multiple_of(3) => Err(DnsError::NoSuchDomain),
            None => Ok(b""),
        }
    }
}

impl Lookup for World<'_> {
    async fn txt(&self, name: &str) -> Answer<Vec<u8>> {
        Ok(vec![self.pick(name)?.to_vec()])
    }
    async fn ip4(&self, name: &str) -> Answer<Ipv4Addr> {
        Ok(self.pick(name)?.iter().take(3).map(|byte| Ipv4Addr::new(192, 0, 2, *byte)).collect())
    }
    async fn ip6(&self, name: &str) -> Answer<Ipv6Addr> {
        let address = |byte: &u8| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, *byte as u16);
        Ok(self.pick(name)?.iter().take(3).map(address).collect())
    }
    async fn mx(&self, name: &str) -> Answer<String> {
        Ok(self.pick(name)?.iter().take(12).map(|byte| format!("mx{byte}.test")).collect())
    }
    async fn ptr(&self, ip: IpAddr) -> Answer<String> {
        Ok(self.pick(&ip.to_string())?.iter().take(12).map(|byte| format!("host{byte}.far.test")).collect())
    }
}

/// Records, one a line, for whatever names are asked.
pub fn spf(input: &[u8]) {
    let world = World { texts: input.split(|byte| *byte == b'\n').collect(), asked: AtomicUsize::new(0) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let query = Query {
        client: IpAddr::from([192, 0, 2, 7]),
        local: "ann+x%y",
        domain: "far.test",
        helo: "helo.far.test",
        receiver: "own.test",
        now: 1_795_000_000,
    };
    let outcome = runtime.block_on(async {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(3600);
        check_host(&world, &query, deadline).await
    });
    assert!(outcome.explanation.is_none_or(|said| !said.text.chars().any(char::is_control)));
}

pub fn dkim(input: &[u8]) {
    let Some(tags) = Tags::parse(input) else { return };
    for kind in [Kind::Dkim, Kind::Arc] {
        if let Ok(signature) = Signature::read(&tags, kind) {
            assert!(!signature.signed.selector.chars().any(|c| c.is_control() || c.is_whitespace()));
            assert!(!signature.signed.domain.as_str().chars().any(|c| c.is_control() || c.is_whitespace()));
            let _ = signature.acceptable(1_795_000_000);
        }
    }
}

pub fn dmarc(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Some(record) = Record::parse(text) {
        let _ = record.policies();
    }
}

pub fn arc(input: &[u8]) {
    let headers = Headers::parse(input);
    if let Ok(sets) = crate::message::arc::sets(&headers) {
        assert!(sets.len() <= 50, "RFC 8617 5.1.1.1.1");
        let mut out = Vec::new();
        crate::message::arc::write_before_seal(&sets, &mut out);
    }
}

pub fn mta_sts(input: &[u8]) {
    let _ = Policy::parse(input);
}
