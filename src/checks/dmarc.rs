//! DMARC (RFC 9989): does the domain in From stand behind the message, and what does it ask for if not?
//!
//! mail-auth walks the tree, picks the policy and compares the domains. Ours are the rules on From:
//! a message has exactly one author, or DMARC cannot be evaluated (a permanent error). Left out:
//! reports, and `pct`, which RFC 9989 has dropped.

use mail_auth::dkim::Signature;
use mail_auth::dmarc::verify::DmarcParameters;
use mail_auth::{AuthenticatedMessage, DkimOutput, DmarcResult, DnsError, Error, dmarc};
use tokio::time::{Instant, timeout_at};

use super::dkim::Dkim;
use super::spf::Spf;
use crate::dns::Resolver;
use crate::message::findings::DmarcFinding;
use crate::message::header::{HeaderError, Headers};

/// What the domain asks receivers to do with mail that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// It has no DMARC record.
    NoRecord,
    /// It could not be found out.
    Unknown,
    None,
    Quarantine,
    Reject,
}

impl Policy {
    pub fn text(self) -> &'static str {
        match self {
            Policy::NoRecord | Policy::Unknown => "",
            Policy::None => "none",
            Policy::Quarantine => "quarantine",
            Policy::Reject => "reject",
        }
    }
}

pub(super) struct Dmarc {
    /// In the words of RFC 8601 2.7 and the IANA registry.
    pub result: &'static str,
    pub policy: Policy,
    /// Domain of the author; empty if there is not one author.
    pub domain: String,
    /// Why, in words of our own; may be empty.
    pub comment: &'static str,
}

impl Dmarc {
    pub fn finding(&self) -> DmarcFinding {
        DmarcFinding {
            result: self.result.to_owned(),
            policy: self.policy.text().to_owned(),
            domain: self.domain.clone(),
        }
    }
}

pub(super) async fn evaluate(
    resolver: &Resolver,
    headers: &Headers<'_>,
    spf: &Spf,
    dkim: &[Dkim],
    deadline: Instant,
) -> Dmarc {
    let author = headers.within_limits().and_then(|()| headers.author());
    let domain = match author {
        Ok(author) => author.address.domain().clone(),
        Err(error) => {
            let comment = why_no_author(error);
            return Dmarc { result: "permerror", policy: Policy::NoRecord, domain: String::new(), comment };
        }
    };
    let answer = |result, policy, comment| Dmarc { result, policy, domain: domain.to_string(), comment };
    // A domain literal cannot publish a policy.
    if domain.literal().is_some() {
        return answer("none", Policy::NoRecord, "");
    }
    let message = AuthenticatedMessage { from: vec![format!("author@{domain}")], ..AuthenticatedMessage::default() };
    let signatures: Vec<(&Dkim, Signature)> = dkim
        .iter()
        .filter(|outcome| matches!(outcome.result, "pass" | "temperror"))
        .map(|outcome| (outcome, Signature { d: outcome.domain.clone(), ..Signature::default() }))
        .collect();
    let outputs: Vec<DkimOutput<'_>> = signatures
        .iter()
        .map(|(outcome, signature)| match outcome.result {
            "pass" => DkimOutput::pass().with_signature(signature),
            _ => DkimOutput::temp_err(Error::Dns(DnsError::Resolver(String::new()))).with_signature(signature),
        })
        .collect();
    let asked = DmarcParameters::new(&message, &outputs, spf.domain(), &spf.output);
    let Ok(output) = timeout_at(deadline, resolver.authenticator().verify_dmarc(asked)).await else {
        return answer("temperror", Policy::Unknown, "not evaluated in time");
    };
    let policy = match (output.dmarc_record(), output.policy()) {
        (None, _) => Policy::NoRecord,
        (_, dmarc::Policy::Reject) => Policy::Reject,
        (_, dmarc::Policy::Quarantine) => Policy::Quarantine,
        (_, dmarc::Policy::None | dmarc::Policy::Unspecified) => Policy::None,
    };
    match output.result() {
        DmarcResult::Pass => answer("pass", policy, ""),
        DmarcResult::Fail(_) => answer("fail", policy, ""),
        DmarcResult::None => answer("none", policy, ""),
        DmarcResult::TempError(_) if policy == Policy::NoRecord => {
            answer("temperror", Policy::Unknown, "policy could not be looked up")
        }
        DmarcResult::TempError(_) => answer("temperror", policy, "not all look-ups succeeded"),
        // A record that cannot be read: no policy to enforce, and nothing the author can be blamed for.
        DmarcResult::PermError(_) => answer("none", Policy::NoRecord, "record cannot be used"),
    }
}

fn why_no_author(error: HeaderError) -> &'static str {
    match error {
        HeaderError::NoFrom | HeaderError::Empty => "no From address",
        HeaderError::SeveralFrom => "more than one From field",
        HeaderError::NotOneAuthor => "From does not name exactly one author",
        HeaderError::TooLong | HeaderError::TooManyFields => "header section too large",
        _ => "From cannot be read",
    }
}
