//! SPF (RFC 7208): may this client send for the domain of MAIL FROM, or of EHLO for the null sender?
//!
//! mail-auth walks the record. Two rules it does not keep are kept here: two SPF records are an error
//! (RFC 7208 4.5), and so is one that cannot be read (4.6). Its other departures from the RFC are
//! known and not handled here yet.

use std::net::IpAddr;

use mail_auth::spf::verify::SpfParameters;
use mail_auth::{SpfOutput, SpfResult};
use tokio::time::{Instant, timeout_at};

use super::legal_domain;
use crate::dns::Resolver;
use crate::message::findings::SpfFinding;
use crate::message::{Address, Domain, Draft, ReversePath};

/// The result, and whom it is about.
pub(super) struct Spf {
    pub output: SpfOutput,
    pub identity: Identity,
    client: Option<IpAddr>,
}

/// RFC 7208 2.3, 2.4.
pub(super) enum Identity {
    MailFrom(Address),
    /// The null sender: the domain of EHLO, if that is one.
    Helo(Option<Domain>),
}

impl Spf {
    /// In the words of RFC 8601 2.7.2.
    pub fn result(&self) -> &'static str {
        match self.output.result() {
            SpfResult::Pass => "pass",
            SpfResult::Fail => "fail",
            SpfResult::SoftFail => "softfail",
            SpfResult::Neutral => "neutral",
            SpfResult::TempError => "temperror",
            SpfResult::PermError => "permerror",
            SpfResult::None => "none",
        }
    }

    /// The domain that was asked; empty if there is none.
    pub fn domain(&self) -> &str {
        match &self.identity {
            Identity::MailFrom(address) => address.domain().as_str(),
            Identity::Helo(domain) => domain.as_ref().map_or("", Domain::as_str),
        }
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
    let helo = peer.and_then(|peer| legal_domain(&peer.helo));
    let identity = match &draft.envelope.mail_from {
        ReversePath::Address(address) => Identity::MailFrom(address.clone()),
        ReversePath::Null => Identity::Helo(helo.clone()),
    };
    // A dual-stack listener shows IPv4 clients as ::ffff:192.0.2.1; records speak of IPv4.
    let client = peer.map(|peer| peer.ip.to_canonical());
    let mut spf = Spf { output: SpfOutput::default(), identity, client };
    let Some(client) = client else { return spf };
    if legal_domain(spf.domain()).is_none() {
        return spf;
    }
    let helo_name = helo.as_ref().map_or("unknown", Domain::as_str);
    let output = match timeout_at(deadline, ask(resolver, hostname, &spf.identity, client, helo_name)).await {
        Ok(output) => output,
        Err(_) => SpfOutput::new(spf.domain().to_owned()).with_result(SpfResult::TempError),
    };
    spf.output = output;
    spf
}

async fn ask(resolver: &Resolver, hostname: &Domain, identity: &Identity, client: IpAddr, helo: &str) -> SpfOutput {
    let host = hostname.as_str();
    let (domain, output) = match identity {
        Identity::MailFrom(address) => {
            let sender = address.to_string();
            let asked = SpfParameters::verify_mail_from(client, helo, host, &sender);
            (address.domain().as_str(), resolver.authenticator().verify_spf(asked).await)
        }
        Identity::Helo(_) => {
            let asked = SpfParameters::verify_ehlo(client, helo, host);
            (helo, resolver.authenticator().verify_spf(asked).await)
        }
    };
    let result = output.result();
    if matches!(result, SpfResult::TempError | SpfResult::PermError) {
        return output;
    }
    // From the cache by now.
    let records = match resolver.txt(domain).await {
        Ok(texts) => texts.iter().filter(|text| is_record(text)).count(),
        Err(_) => 0,
    };
    match (records, result) {
        (0, _) => output,
        (1, SpfResult::None) | (2.., _) => output.with_result(SpfResult::PermError),
        (1, _) => output,
    }
}

/// RFC 7208 4.5: the version, then a space or nothing.
fn is_record(text: &str) -> bool {
    let version = text.get(..6).is_some_and(|head| head.eq_ignore_ascii_case("v=spf1"));
    version && matches!(text.as_bytes().get(6), None | Some(b' '))
}
