//! What an inbound message can prove about its sender: SPF, DKIM and DMARC, as findings, an
//! Authentication-Results value and a verdict.
//!
//! Promises: bounded work for one message, whatever it holds (signatures, key look-ups, time); trouble
//! with DNS is never a pass and never a final refusal; nothing that came over the wire gets into the
//! Authentication-Results field except checked domain names, addresses and base64.
//!
//! `dkim` and `arc` verify signatures, `spf` and `dmarc` judge by them and by DNS; `results` writes and
//! recognises Authentication-Results. Left out: reverse DNS, DNS lists, milters; reports.

mod arc;
mod dkim;
mod dmarc;
mod results;
mod spf;

use std::time::Duration;

use tokio::time::Instant;

use crate::clock::Clock;
use crate::config::{ArcMode, CheckMode, Config, DmarcMode};
use crate::dns::Resolver;
use crate::message::header::Headers;
use crate::message::{Domain, Draft, Findings};
use crate::smtp::reply::{Refusal, Reply};

pub use results::forged_results;

/// All checks of one message together; what is not known by then is a temporary error
/// (RFC 7208 4.6.4 asks for at least 20 seconds).
const DEADLINE: Duration = Duration::from_secs(20);

/// What the checks found, for the message itself and for the one who decides.
#[derive(Clone, Debug)]
pub struct Checked {
    pub findings: Findings,
    /// The value of our Authentication-Results field, folded, without name and final CRLF. Empty if
    /// all checks are off.
    pub authentication_results: String,
    pub verdict: Verdict,
    /// The number that an ARC set of ours would have; none if the chain is not to be gone on with.
    pub next_seal: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Reject(Refusal),
    /// Taken and queued held, for this reason.
    Hold(String),
}

/// Checks a message that came in from outside. `draft.origin.peer` has to be there for SPF; without
/// it SPF has no result.
pub async fn check(resolver: &Resolver, config: &Config, draft: &Draft) -> Checked {
    check_at(resolver, config, draft, Clock::System.now() / 1000).await
}

/// As [`check`], for signatures that expire: at this time, in seconds since 1970.
pub async fn check_at(resolver: &Resolver, config: &Config, draft: &Draft, now: u64) -> Checked {
    evaluate(resolver, config, draft, now, Instant::now() + DEADLINE).await
}

async fn evaluate(resolver: &Resolver, config: &Config, draft: &Draft, now: u64, deadline: Instant) -> Checked {
    let modes = &config.checks;
    let with_dmarc = modes.dmarc != DmarcMode::Off;
    let headers = Headers::parse(draft.content.head());
    let bodies = dkim::Bodies::new(&draft.content, &headers);
    let verifier = dkim::Verifier { resolver, headers: &headers, now, deadline };
    // DMARC builds on SPF and DKIM, and our own seal on the chain before it: then they are evaluated even
    // when they are not to be shown.
    let (spf, dkim, arc) = tokio::join!(
        async {
            match modes.spf != CheckMode::Off || with_dmarc {
                true => Some(spf::evaluate(resolver, &config.hostname, draft, deadline).await),
                false => None,
            }
        },
        async {
            match modes.dkim != CheckMode::Off || with_dmarc {
                true => dkim::evaluate(&verifier, &bodies).await,
                false => Vec::new(),
            }
        },
        async {
            match modes.arc != ArcMode::Off || modes.seal_forwards {
                true => Some(arc::evaluate(&verifier, &bodies).await),
                false => None,
            }
        },
    );
    let dmarc = match (&spf, with_dmarc) {
        (Some(spf), true) => Some(dmarc::evaluate(resolver, &headers, spf, &dkim, deadline).await),
        _ => None,
    };
    let next_seal = arc.as_ref().filter(|_| modes.seal_forwards).and_then(arc::Arc::next_instance);
    let arc = arc.filter(|_| modes.arc != ArcMode::Off);
    let excuse = excuse(config, arc.as_ref(), dmarc.as_ref());
    let verdict = verdict(config, spf.as_ref(), &dkim, dmarc.as_ref(), &excuse);
    let spf = spf.filter(|_| modes.spf != CheckMode::Off);
    let dkim = Some(dkim).filter(|_| modes.dkim != CheckMode::Off);
    let findings = Findings {
        spf: spf.as_ref().map(spf::Spf::finding),
        dkim: dkim.as_deref().map(dkim::findings).unwrap_or_default(),
        dmarc: dmarc.as_ref().map(dmarc::Dmarc::finding),
        arc: arc.as_ref().map(|arc| arc.finding(&excuse)),
    };
    let found = results::Found { spf: spf.as_ref(), dkim: dkim.as_deref(), dmarc: dmarc.as_ref(), arc: arc.as_ref() };
    let client = draft.origin.peer.as_ref().map(|peer| peer.ip);
    let authentication_results = results::write(&config.hostname, &found, &excuse, client);
    Checked { findings, authentication_results, verdict, next_seal }
}

/// What trusted sealers say of a message that fails DMARC.
fn excuse(config: &Config, arc: Option<&arc::Arc>, dmarc: Option<&dmarc::Dmarc>) -> arc::Excuse {
    match (arc, dmarc) {
        (Some(arc), Some(dmarc)) if dmarc.result == "fail" => arc.excuse(&config.checks.trusted_sealers, &dmarc.domain),
        _ => arc::Excuse::None,
    }
}

/// The strictest answer that the configuration asks for. Final refusals come first; "not now" counts
/// only where a refusal or a hold was possible.
fn verdict(
    config: &Config,
    spf: Option<&spf::Spf>,
    dkim: &[dkim::Dkim],
    dmarc: Option<&dmarc::Dmarc>,
    excuse: &arc::Excuse,
) -> Verdict {
    let answers = [
        spf.filter(|_| config.checks.spf == CheckMode::Reject).map(spf_verdict),
        Some(dkim).filter(|_| config.checks.dkim == CheckMode::Reject).map(dkim_verdict),
        dmarc.filter(|_| config.checks.dmarc == DmarcMode::Enforce).map(|dmarc| excused(dmarc_verdict(dmarc), excuse)),
    ];
    let weight = |verdict: &Verdict| match verdict {
        Verdict::Reject(refusal) if refusal.reply.code >= 500 => 3,
        Verdict::Reject(_) => 2,
        Verdict::Hold(_) => 1,
        Verdict::Accept => 0,
    };
    // The first of equals: `max_by_key` would take the last.
    answers.into_iter().flatten().rev().max_by_key(weight).unwrap_or(Verdict::Accept)
}

fn spf_verdict(spf: &spf::Spf) -> Verdict {
    match spf.result() {
        "fail" => reject(
            Reply::new(550, (7, 23), format!("SPF: this address may not send mail for {}", spf.domain())),
            format!("SPF fail of {} for {}", spf.domain(), spf.client()),
        ),
        // RFC 7372 3.2: 7.24 for errors of SPF itself.
        "temperror" => reject(
            Reply::new(451, (7, 24), "SPF could not be evaluated right now, please try again"),
            format!("SPF temperror of {}", spf.domain()),
        ),
        _ => Verdict::Accept,
    }
}

fn dkim_verdict(dkim: &[dkim::Dkim]) -> Verdict {
    let has = |result: &str| dkim.iter().any(|d| d.result == result);
    // RFC 6376 3.6.1: from a domain that is trying it out, a signature that fails is none.
    if dkim.iter().all(|d| d.is_test) || has("pass") {
        return Verdict::Accept;
    }
    if has("temperror") {
        return reject(
            Reply::new(451, (4, 3), "DKIM keys could not be looked up right now, please try again"),
            "DKIM temperror and no signature that passes".to_owned(),
        );
    }
    reject(
        Reply::new(550, (7, 20), "no DKIM signature of this message is valid"),
        format!("DKIM: none of {} signatures passes", dkim.len()),
    )
}

fn dmarc_verdict(dmarc: &dmarc::Dmarc) -> Verdict {
    let domain = &dmarc.domain;
    match (dmarc.result, dmarc.policy) {
        ("permerror", _) => reject(
            Reply::new(550, (7, 1), format!("DMARC cannot be evaluated: {}", dmarc.comment)),
            format!("DMARC permerror: {}", dmarc.comment),
        ),
        ("temperror", dmarc::Policy::Reject | dmarc::Policy::Quarantine | dmarc::Policy::Unknown) => reject(
            Reply::new(451, (4, 3), "DMARC could not be evaluated right now, please try again"),
            format!("DMARC temperror of {domain}"),
        ),
        ("fail", dmarc::Policy::Reject) => reject(
            Reply::new(550, (7, 1), format!("rejected by the DMARC policy of {domain} (p=reject)")),
            format!("DMARC fail, p=reject of {domain}"),
        ),
        ("fail", dmarc::Policy::Quarantine) => Verdict::Hold(format!("DMARC quarantine of {domain}")),
        _ => Verdict::Accept,
    }
}

/// A trusted sealer's word in place of DMARC's. While it is not known, nothing is final.
fn excused(verdict: Verdict, excuse: &arc::Excuse) -> Verdict {
    match (verdict, excuse) {
        (Verdict::Reject(_) | Verdict::Hold(_), arc::Excuse::By(_)) => Verdict::Accept,
        (Verdict::Reject(refusal), arc::Excuse::Unknown) if refusal.reply.code >= 500 => reject(
            Reply::new(451, (4, 3), "ARC could not be validated right now, please try again"),
            format!("{}, and ARC temperror of a trusted sealer", refusal.reason),
        ),
        (verdict, _) => verdict,
    }
}

fn reject(reply: Reply, reason: String) -> Verdict {
    Verdict::Reject(Refusal { reply, reason })
}

/// A domain as it may stand in a header field: legal, or not at all.
fn legal_domain(text: &str) -> Option<Domain> {
    Domain::parse(text).ok().filter(|domain| domain.literal().is_none())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn policy(result: &'static str, policy: dmarc::Policy) -> dmarc::Dmarc {
        dmarc::Dmarc { result, policy, domain: "a.test".to_owned(), comment: "" }
    }

    #[test]
    fn trouble_is_never_a_pass_where_a_refusal_was_possible() {
        use dmarc::Policy;
        let code = |dmarc| match dmarc_verdict(&dmarc) {
            Verdict::Accept => 0,
            Verdict::Hold(_) => 1,
            Verdict::Reject(refusal) => refusal.reply.code,
        };
        assert_eq!(code(policy("temperror", Policy::Unknown)), 451);
        assert_eq!(code(policy("temperror", Policy::Reject)), 451);
        assert_eq!(code(policy("temperror", Policy::Quarantine)), 451);
        assert_eq!(code(policy("temperror", Policy::None)), 0);
        assert_eq!(code(policy("fail", Policy::Reject)), 550);
        assert_eq!(code(policy("fail", Policy::Quarantine)), 1);
        assert_eq!(code(policy("fail", Policy::None)), 0);
        assert_eq!(code(policy("none", Policy::NoRecord)), 0);
        assert_eq!(code(policy("pass", Policy::Reject)), 0);
    }

    /// Everything that is not known when time is up is a temporary error.
    #[tokio::test]
    async fn the_deadline_holds() {
        use crate::config::Dns;
        // Nobody is asked for long enough to answer.
        let dns = Dns { nameservers: vec!["127.0.0.1:9".parse().unwrap()], timeout: Duration::from_secs(5) };
        let resolver = Resolver::new(&dns).unwrap();
        let content = bytes::Bytes::from_static(
            b"DKIM-Signature: v=1; a=rsa-sha256; s=s; d=a.test; h=From; bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=; b=AAAA\r\nFrom: a@a.test\r\n\r\n",
        );
        let over = Instant::now();
        let headers = Headers::parse(&content);
        let bodies = dkim::Bodies::new(&content.clone().into(), &headers);
        let verifier = dkim::Verifier { resolver: &resolver, headers: &headers, now: 0, deadline: over };
        let dkim = dkim::evaluate(&verifier, &bodies).await;
        assert_eq!(dkim.first().map(|d| (d.result, d.domain.as_str())), Some(("temperror", "a.test")));
        let peer =
            crate::message::Peer { ip: [192, 0, 2, 1].into(), helo: "h.test".to_owned(), esmtp: true, tls: None };
        let door = crate::message::Door::Mx { listener: "mx".to_owned() };
        let draft = Draft {
            envelope: crate::message::Envelope::new(
                "a@a.test".parse().map(crate::message::ReversePath::Address).unwrap(),
                [],
            ),
            content: content.clone().into(),
            origin: crate::message::Origin { door, account: None, peer: Some(peer) },
        };
        let spf = spf::evaluate(&resolver, &Domain::parse("mail.own.test").unwrap(), &draft, over).await;
        assert_eq!(spf.result(), "temperror");
        let dmarc = dmarc::evaluate(&resolver, &headers, &spf, &dkim, over).await;
        assert_eq!((dmarc.result, dmarc.policy), ("temperror", dmarc::Policy::Unknown));
    }
}
