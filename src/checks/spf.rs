//! SPF (RFC 7208): may this client send for the domain of MAIL FROM, or of EHLO for the null sender?
//!
//! The evaluation is our own, because it has to be exact: a record that is wrong anywhere, or asks for
//! more than is allowed, must not pass anybody. `record` reads it, `macros` expands what it holds,
//! `evaluate` walks it; DNS is behind a trait, so that the published tests run in memory, too.
//!
//! Left out: the HELO identity of a message with a sender (RFC 7208 2.3 recommends it beside MAIL FROM;
//! DMARC does not look at it).

mod evaluate;
mod macros;
mod record;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::time::Instant;

pub use evaluate::{
    Answer, CLIENT_NAMES_MAX, EXPLANATION_BYTES_MAX, Lookup, MX_HOSTS_MAX, QUERIES_MAX, Query, TERMS_MAX, VOIDS_MAX,
    check_host,
};

use super::legal_domain;
use crate::clock::Clock;
use crate::dns::Resolver;
use crate::message::findings::SpfFinding;
use crate::message::{Address, Domain, Draft, ReversePath};

/// RFC 7208 2.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpfResult {
    None,
    Neutral,
    Pass,
    Fail,
    SoftFail,
    TempError,
    PermError,
}

impl SpfResult {
    /// In the words of RFC 8601 2.7.2.
    pub fn as_str(self) -> &'static str {
        match self {
            SpfResult::None => "none",
            SpfResult::Neutral => "neutral",
            SpfResult::Pass => "pass",
            SpfResult::Fail => "fail",
            SpfResult::SoftFail => "softfail",
            SpfResult::TempError => "temperror",
            SpfResult::PermError => "permerror",
        }
    }
}

/// What came of `check_host()`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub result: SpfResult,
    /// Of an error: what is wrong, in words of our own. Else empty.
    pub why: &'static str,
    /// Only of a failure, if the domain has one.
    pub explanation: Option<Explanation>,
}

/// What a domain says to those who may not send for it: printable ASCII, at most [`EXPLANATION_BYTES_MAX`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Whose words these are.
    pub domain: String,
    pub text: String,
}

/// The result, and whom it is about.
pub(super) struct Spf {
    pub outcome: Outcome,
    pub identity: Identity,
    client: Option<IpAddr>,
}

/// RFC 7208 2.3, 2.4.
pub(super) enum Identity {
    MailFrom(Address),
    /// The null sender: the domain of EHLO, if that is one.
    Helo(Option<Domain>),
}

impl Identity {
    fn domain(&self) -> &str {
        match self {
            Identity::MailFrom(address) => address.domain().as_str(),
            Identity::Helo(domain) => domain.as_ref().map_or("", Domain::as_str),
        }
    }

    fn local(&self) -> &str {
        match self {
            Identity::MailFrom(address) => address.local(),
            Identity::Helo(_) => "",
        }
    }
}

impl Spf {
    /// In the words of RFC 8601 2.7.2.
    pub fn result(&self) -> &'static str {
        self.outcome.result.as_str()
    }

    /// The domain that was asked; empty if there is none.
    pub fn domain(&self) -> &str {
        self.identity.domain()
    }

    pub fn client(&self) -> String {
        self.client.map_or_else(|| "an unknown client".to_owned(), |ip| ip.to_string())
    }

    pub fn finding(&self) -> SpfFinding {
        SpfFinding { result: self.result().to_owned(), domain: self.domain().to_owned() }
    }
}

pub(super) async fn evaluate(resolver: &Resolver, hostname: &Domain, draft: &Draft, deadline: Instant) -> Spf {
    let peer = draft.origin.peer.as_ref();
    let helo = peer.map_or("", |peer| peer.helo.as_str());
    let identity = match &draft.envelope.mail_from {
        ReversePath::Address(address) => Identity::MailFrom(address.clone()),
        ReversePath::Null => Identity::Helo(legal_domain(helo)),
    };
    // A dual-stack listener shows IPv4 clients as ::ffff:192.0.2.1; records speak of IPv4.
    let client = peer.map(|peer| peer.ip.to_canonical());
    let nothing = Outcome { result: SpfResult::None, why: "", explanation: None };
    let Some(ip) = client else { return Spf { outcome: nothing, identity, client } };
    if legal_domain(identity.domain()).is_none() {
        return Spf { outcome: nothing, identity, client };
    }
    let query = Query {
        client: ip,
        local: identity.local(),
        domain: identity.domain(),
        helo,
        receiver: hostname.as_str(),
        // Only for %{t} of an explanation.
        now: Clock::System.now() / 1000,
    };
    let outcome = check_host(resolver, &query, deadline).await;
    Spf { outcome, identity, client }
}

impl Lookup for Resolver {
    async fn txt(&self, name: &str) -> Answer<Vec<u8>> {
        self.txt_octets(name).await
    }

    async fn ip4(&self, name: &str) -> Answer<Ipv4Addr> {
        self.ip4_addresses(name).await
    }

    async fn ip6(&self, name: &str) -> Answer<Ipv6Addr> {
        self.ip6_addresses(name).await
    }

    async fn mx(&self, name: &str) -> Answer<String> {
        self.mx_names(name).await
    }

    async fn ptr(&self, ip: IpAddr) -> Answer<String> {
        self.ptr_names(ip).await
    }
}
