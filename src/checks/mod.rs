//! What an inbound message can prove about its sender: SPF, DKIM and DMARC, as findings, an
//! Authentication-Results value and a verdict.
//!
//! Promises: bounded work for one message, whatever it holds (signatures, key look-ups, time); trouble
//! with DNS is never a pass and never a final refusal; nothing that came over the wire gets into the
//! Authentication-Results field except checked domain names, addresses and base64.
//!
//! mail-auth does the cryptography and the policy rules. `spf`, `dkim` and `dmarc` hold what we do
//! better than leave to it; `results` writes and recognises Authentication-Results. Left out: ARC,
//! reverse DNS, DNS lists; reports. `milter` is asked afterwards, for what these let in.

mod dkim;
mod dmarc;
pub mod milter;
mod results;
mod spf;

use std::time::Duration;

use tokio::time::Instant;

use crate::config::{CheckMode, Config, DmarcMode};
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
    let modes = &config.checks;
    if (modes.spf, modes.dkim, modes.dmarc) == (CheckMode::Off, CheckMode::Off, DmarcMode::Off) {
        return Checked {
            findings: Findings::default(),
            authentication_results: String::new(),
            verdict: Verdict::Accept,
        };
    }
    evaluate(resolver, config, draft, Instant::now() + DEADLINE).await
}

async fn evaluate(resolver: &Resolver, config: &Config, draft: &Draft, deadline: Instant) -> Checked {
    let modes = &config.checks;
    let with_dmarc = modes.dmarc != DmarcMode::Off;
    let headers = Headers::parse(draft.content.head());
    // DMARC builds on both, so with it they are evaluated even when they are not to be shown.
    let (spf, dkim) = tokio::join!(
        async {
            match modes.spf != CheckMode::Off || with_dmarc {
                true => Some(spf::evaluate(resolver, &config.hostname, draft, deadline).await),
                false => None,
            }
        },
        async {
            match modes.dkim != CheckMode::Off || with_dmarc {
                true => dkim::evaluate(resolver, &headers, &draft.content, deadline).await,
                false => Vec::new(),
            }
        },
    );
    let dmarc = match (&spf, with_dmarc) {
        (Some(spf), true) => Some(dmarc::evaluate(resolver, &headers, spf, &dkim, deadline).await),
        _ => None,
    };
    let verdict = verdict(config, spf.as_ref(), &dkim, dmarc.as_ref());
    let spf = spf.filter(|_| modes.spf != CheckMode::Off);
    let dkim = Some(dkim).filter(|_| modes.dkim != CheckMode::Off);
    let findings = Findings {
        spf: spf.as_ref().map(spf::Spf::finding),
        dkim: dkim.as_deref().map(dkim::findings).unwrap_or_default(),
        dmarc: dmarc.as_ref().map(dmarc::Dmarc::finding),
    };
    let authentication_results = results::write(&config.hostname, spf.as_ref(), dkim.as_deref(), dmarc.as_ref());
    Checked { findings, authentication_results, verdict }
}

/// The strictest answer that the configuration asks for. Final refusals come first; "not now" counts
/// only where a refusal or a hold was possible.
fn verdict(config: &Config, spf: Option<&spf::Spf>, dkim: &[dkim::Dkim], dmarc: Option<&dmarc::Dmarc>) -> Verdict {
    let answers = [
        spf.filter(|_| config.checks.spf == CheckMode::Reject).map(spf_verdict),
        Some(dkim).filter(|_| config.checks.dkim == CheckMode::Reject).map(dkim_verdict),
        dmarc.filter(|_| config.checks.dmarc == DmarcMode::Enforce).map(dmarc_verdict),
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
    if dkim.is_empty() || has("pass") {
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
        let dkim = dkim::evaluate(&resolver, &headers, &content.clone().into(), over).await;
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
