//! DMARC (RFC 9989): does the domain in From stand behind the message, and what does it ask for if not?
//!
//! A message has exactly one author, or DMARC cannot be evaluated (a permanent error). The policy is
//! that of the author's domain, or else what the tree walk finds (`walk`, `record`); SPF and DKIM are
//! proof where they pass for a domain of the same organization. Promises: DNS trouble ends in a
//! temporary error wherever another answer could have made a difference; look-ups are bounded.
//! `destinations` tells where a domain's reports may go. Left out: failure reports.

mod destinations;
pub(crate) mod record;
mod walk;

use tokio::time::{Instant, timeout_at};

use super::dkim::Dkim;
use super::feedback::Published;
use super::spf::Spf;
use crate::dns::Resolver;
use crate::message::Domain;
use crate::message::findings::DmarcFinding;
use crate::message::header::{HeaderError, Headers};

pub use destinations::{NotNow, report_addresses};
pub use record::Destination;

use record::{Policies, Record};
use walk::{Lost, Walker};

/// What the domain asks receivers to do with mail that fails; the strictest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
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

    /// What t=y makes of it (RFC 9989 4.7): one step less.
    fn tried_out(self) -> Policy {
        match self {
            Policy::Reject => Policy::Quarantine,
            Policy::Quarantine => Policy::None,
            other => other,
        }
    }
}

/// The record that applies to a domain, for whoever looks after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applying {
    /// Where it is: the domain, or one above it.
    pub at: String,
    /// What it asks for mail of the domain itself. None: the record cannot be used.
    pub policy: Option<Policy>,
    /// t=y: the policy is only tried out.
    pub testing: bool,
    /// It asks for reports, at an address of whatever kind.
    pub wants_reports: bool,
    /// The mail addresses among them.
    pub destinations: Vec<Destination>,
}

/// None: there is no record, or several, which are none.
pub async fn applying(resolver: &Resolver, domain: &Domain) -> Result<Option<Applying>, NotNow> {
    let mut walker = Walker::new(resolver);
    let found = discover(&mut walker, domain).await.map_err(|_| NotNow)?;
    Ok(found.map(|(at, record)| {
        let is_own = at == domain.as_str();
        let policy = record.policies().map(|policies| if is_own { policies.p } else { policies.sp });
        let (testing, wants_reports) = (record.testing, record.wants_reports);
        Applying { at, policy, testing, wants_reports, destinations: record.destinations }
    }))
}

pub(super) struct Dmarc {
    /// In the words of RFC 8601 2.7 and the IANA registry.
    pub result: &'static str,
    /// What is asked for, t=y taken into account.
    pub policy: Policy,
    /// Domain of the author; empty if there is not one author.
    pub domain: String,
    /// Why, in words of our own; may be empty.
    pub comment: &'static str,
    /// What a report tells, if the domain wants any.
    pub reported: Option<Reported>,
}

/// What a report needs of an evaluation besides its result.
pub(super) struct Reported {
    /// Where the record was found.
    pub policy_domain: Domain,
    pub published: Published,
    /// The policy is weaker than published, because it is only tried out.
    pub is_lowered: bool,
    pub spf_aligned: bool,
    pub dkim_aligned: bool,
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
    let author = match headers.within_limits().and_then(|()| headers.author()) {
        Ok(author) => author.address.domain().clone(),
        Err(error) => {
            let judged = Judged::without_record("permerror", Policy::NoRecord, why_no_author(error));
            return judged.of(String::new());
        }
    };
    let domain = author.to_string();
    // A domain literal cannot publish a policy.
    if author.literal().is_some() {
        return Judged::without_record("none", Policy::NoRecord, "").of(domain);
    }
    let signatures = dkim.iter().filter_map(|one| Proof::of(one.result, &one.domain));
    let proofs = Proofs { spf: Proof::of(spf.result(), spf.domain()), dkim: signatures.collect() };
    let mut walker = Walker::new(resolver);
    match timeout_at(deadline, judge(&mut walker, &author, &proofs)).await {
        Ok(judged) => judged.of(domain),
        Err(_) => Judged::without_record("temperror", Policy::Unknown, "not evaluated in time").of(domain),
    }
}

/// An identifier that SPF or DKIM has shown to be real.
struct Proof {
    domain: Domain,
    /// A temporary error: it may be real.
    in_doubt: bool,
}

impl Proof {
    /// `result`: in the words of RFC 8601.
    fn of(result: &str, domain: &str) -> Option<Proof> {
        let in_doubt = match result {
            "pass" => false,
            "temperror" => true,
            _ => return None,
        };
        Some(Proof { domain: super::legal_domain(domain)?, in_doubt })
    }
}

struct Proofs {
    spf: Option<Proof>,
    dkim: Vec<Proof>,
}

/// All but the author.
struct Judged {
    result: &'static str,
    policy: Policy,
    comment: &'static str,
    reported: Option<Reported>,
}

impl Judged {
    fn without_record(result: &'static str, policy: Policy, comment: &'static str) -> Judged {
        Judged { result, policy, comment, reported: None }
    }

    fn of(self, domain: String) -> Dmarc {
        let Judged { result, policy, comment, reported } = self;
        Dmarc { result, policy, domain, comment, reported }
    }
}

/// RFC 9989 4.10.1, 5.3.
async fn judge(walker: &mut Walker<'_>, author: &Domain, proofs: &Proofs) -> Judged {
    let no_policy = |comment| Judged::without_record("none", Policy::NoRecord, comment);
    let (policy_domain, record) = match discover(walker, author).await {
        Ok(Some(found)) => found,
        Ok(None) => return no_policy(""),
        Err(_) => return Judged::without_record("temperror", Policy::Unknown, "policy could not be looked up"),
    };
    // Nothing that could be enforced, and nothing the author can be blamed for.
    let Some(policies) = record.policies() else { return no_policy("record cannot be used") };
    let (asked, is_sure) = asked(walker, author, policies, policy_domain == author.as_str()).await;
    let policy = if record.testing { asked.tried_out() } else { asked };

    let spf = match &proofs.spf {
        Some(proof) => supports(walker, author, proof, record.aspf_strict).await,
        None => Support::No,
    };
    let mut dkim = Support::No;
    for proof in &proofs.dkim {
        dkim = dkim.max(supports(walker, author, proof, record.adkim_strict).await);
        if dkim == Support::Yes {
            break;
        }
    }
    let (result, comment) = match spf.max(dkim) {
        Support::Yes => ("pass", ""),
        // Neither passed nor failed for good (RFC 9989 5.3.6).
        Support::InDoubt => ("temperror", "not all look-ups succeeded"),
        Support::No if !is_sure => ("temperror", "policy could not be looked up"),
        Support::No => ("fail", ""),
    };
    let reported = Domain::parse(&policy_domain).ok().filter(|_| record.wants_reports).map(|policy_domain| Reported {
        policy_domain,
        published: published(&record, policies),
        is_lowered: policy != asked,
        spf_aligned: spf == Support::Yes,
        dkim_aligned: dkim == Support::Yes,
    });
    Judged { result, policy, comment, reported }
}

/// The record that applies, and where it is.
async fn discover(walker: &mut Walker<'_>, author: &Domain) -> Result<Option<(String, Record)>, Lost> {
    if let Some(own) = walker.record(author.as_str()).await? {
        return Ok(Some((author.to_string(), own)));
    }
    Ok(walker.walk(author).await?.applying().cloned())
}

/// The policy for this author, and whether that is sure; if not, the stricter of those that it could be.
async fn asked(walker: &mut Walker<'_>, author: &Domain, policies: Policies, is_own: bool) -> (Policy, bool) {
    if is_own {
        return (policies.p, true);
    }
    if policies.sp == policies.np {
        return (policies.sp, true);
    }
    match walker.exists(author).await {
        Ok(true) => (policies.sp, true),
        Ok(false) => (policies.np, true),
        Err(_) => (policies.sp.max(policies.np), false),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Support {
    No,
    InDoubt,
    Yes,
}

/// Does this proof speak for the author?
async fn supports(walker: &mut Walker<'_>, author: &Domain, proof: &Proof, strict: bool) -> Support {
    match is_aligned(walker, author, &proof.domain, strict).await {
        Ok(true) if proof.in_doubt => Support::InDoubt,
        Ok(true) => Support::Yes,
        // More names than anybody needs prove nothing.
        Ok(false) | Err(Lost::TooFar) => Support::No,
        Err(Lost::Temporary) => Support::InDoubt,
    }
}

/// The same domain, or, where that is enough, one of the same organization (RFC 9989 4.4).
async fn is_aligned(walker: &mut Walker<'_>, author: &Domain, proven: &Domain, strict: bool) -> Result<bool, Lost> {
    let (author_name, proven_name) = (author.as_str(), proven.as_str());
    if strict || author_name == proven_name {
        return Ok(author_name == proven_name);
    }
    // What has not even the top in common costs no look-ups.
    if author_name.rsplit('.').next() != proven_name.rsplit('.').next() {
        return Ok(false);
    }
    let organization = walker.organization(author).await?;
    let is_within = match proven_name.strip_suffix(organization.as_str()) {
        Some(rest) => rest.is_empty() || rest.ends_with('.'),
        None => false,
    };
    Ok(is_within && walker.organization(proven).await? == organization)
}

fn published(record: &Record, policies: Policies) -> Published {
    Published {
        p: policies.p.text().to_owned(),
        sp: policies.sp.text().to_owned(),
        np: policies.np.text().to_owned(),
        adkim_strict: record.adkim_strict,
        aspf_strict: record.aspf_strict,
        fo: record.fo.clone().unwrap_or_else(|| "0".to_owned()),
        testing: record.testing,
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
