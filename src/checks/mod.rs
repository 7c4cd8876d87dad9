//! What an inbound message can prove about its sender: SPF, DKIM, DMARC, the client's reverse DNS and
//! what DNS lists say of it, as findings, an Authentication-Results value and a verdict.
//!
//! Promises: bounded work for one message, whatever it holds (signatures, key look-ups, time); trouble
//! with DNS is never a pass and never a final refusal; nothing that came over the wire gets into the
//! Authentication-Results field except checked domain names, addresses and base64.
//!
//! `dkim` and `arc` verify signatures, `spf` and `dmarc` judge by them and by DNS; `results` writes and
//! recognises Authentication-Results; `identity` has the rules on header fields, `feedback` what reports
//! are made of. `milter` is asked afterwards, for what these let in.

mod arc;
pub(crate) mod dkim;
pub mod dmarc;
mod dnsbl;
pub mod feedback;
pub mod identity;
mod iprev;
pub mod milter;
mod results;
pub mod spf;

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::Clock;
use crate::config::{ArcMode, CheckMode, Config, DmarcMode};
use crate::dns::Resolver;
use crate::message::header::Headers;
use crate::message::{Domain, Draft, Findings, HeldBy, Hold};
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
    /// What a DMARC report tells of it.
    pub evaluated: Option<feedback::Evaluated>,
    /// What the administrator should look at, each about one thing: what, and the trouble.
    pub troubles: Vec<(Domain, String)>,
    /// The number that an ARC set of ours would have; none if the chain is not to be gone on with.
    pub next_seal: Option<usize>,
}

impl Checked {
    /// Of a message that is not checked.
    pub fn unchecked() -> Checked {
        Checked {
            findings: Findings::default(),
            authentication_results: String::new(),
            verdict: Verdict::Accept,
            evaluated: None,
            troubles: Vec::new(),
            next_seal: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Reject(Refusal),
    /// Taken and queued held, for this reason.
    Hold(Hold),
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

/// The client, unless it is of a network that is trusted, or has logged in: what DNS says of those is no
/// news. Whether it is on this machine does not count.
fn stranger(config: &Config, draft: &Draft) -> Option<IpAddr> {
    let ip = draft.origin.peer.as_ref()?.ip.to_canonical();
    let known = config.networks.trusted.iter().any(|network| network.contains(&ip));
    (!known && draft.origin.account.is_none()).then_some(ip)
}

/// Reverse DNS and DNS lists, side by side.
async fn of_the_client(
    resolver: &Resolver,
    config: &Config,
    draft: &Draft,
    deadline: Instant,
) -> (Option<iprev::Iprev>, Vec<dnsbl::Dnsbl>) {
    let Some(client) = stranger(config, draft) else { return (None, Vec::new()) };
    let iprev = async {
        match config.checks.rdns {
            CheckMode::Off => None,
            _ => Some(iprev::evaluate(resolver, client, deadline).await),
        }
    };
    tokio::join!(iprev, dnsbl::evaluate(resolver, &config.checks.dnsbl, client, deadline))
}

/// What was found out, also for the checks that are not to be shown.
struct Evidence {
    iprev: Option<iprev::Iprev>,
    lists: Vec<dnsbl::Dnsbl>,
    spf: Option<spf::Spf>,
    dkim: Vec<dkim::Dkim>,
    arc: Option<arc::Arc>,
    dmarc: Option<dmarc::Dmarc>,
}

async fn gather(
    resolver: &Resolver,
    config: &Config,
    draft: &Draft,
    headers: &Headers<'_>,
    (now, deadline): (u64, Instant),
) -> Evidence {
    let modes = &config.checks;
    let with_dmarc = modes.dmarc != DmarcMode::Off;
    let bodies = dkim::Bodies::new(&draft.content, headers);
    let verifier = dkim::Verifier { resolver, headers, now, deadline };
    // DMARC builds on SPF and DKIM, and our own seal on the chain before it: then they are evaluated even
    // when they are not to be shown.
    let ((iprev, lists), spf, dkim, arc) = tokio::join!(
        of_the_client(resolver, config, draft, deadline),
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
        (Some(spf), true) => Some(dmarc::evaluate(resolver, headers, spf, &dkim, deadline).await),
        _ => None,
    };
    Evidence { iprev, lists, spf, dkim, arc, dmarc }
}

async fn evaluate(resolver: &Resolver, config: &Config, draft: &Draft, now: u64, deadline: Instant) -> Checked {
    let modes = &config.checks;
    let headers = Headers::parse(draft.content.head());
    let Evidence { iprev, lists, spf, dkim, arc, dmarc } =
        gather(resolver, config, draft, &headers, (now, deadline)).await;
    let next_seal = arc.as_ref().filter(|_| modes.seal_forwards).and_then(arc::Arc::next_instance);
    let arc = arc.filter(|_| modes.arc != ArcMode::Off);
    let excuse = excuse(config, arc.as_ref(), dmarc.as_ref());
    let answers = [
        Some(lists_verdict(&lists, draft)),
        iprev.as_ref().filter(|_| modes.rdns == CheckMode::Reject).map(iprev_verdict),
        spf.as_ref().filter(|_| modes.spf == CheckMode::Reject).map(spf_verdict),
        Some(dkim.as_slice()).filter(|_| modes.dkim == CheckMode::Reject).map(dkim_verdict),
        dmarc
            .as_ref()
            .filter(|_| modes.dmarc == DmarcMode::Enforce)
            .map(|dmarc| excused(dmarc_verdict(dmarc), &excuse)),
    ];
    let verdict = strictest(answers.into_iter().flatten());
    let evaluated = spf
        .as_ref()
        .zip(dmarc.as_ref())
        .and_then(|(spf, dmarc)| feedback::evaluated(modes.dmarc, draft, &headers, (spf, &dkim, dmarc), &verdict));
    let spf = spf.filter(|_| modes.spf != CheckMode::Off);
    let dkim = Some(dkim).filter(|_| modes.dkim != CheckMode::Off);
    let findings = Findings {
        spf: spf.as_ref().map(spf::Spf::finding),
        dkim: dkim.as_deref().map(dkim::findings).unwrap_or_default(),
        dmarc: dmarc.as_ref().map(dmarc::Dmarc::finding),
        arc: arc.as_ref().map(|arc| arc.finding(&excuse)),
        iprev: iprev.as_ref().map(iprev::Iprev::finding),
        dnsbl: lists.iter().map(dnsbl::Dnsbl::finding).collect(),
    };
    let mut more: Vec<Vec<String>> = iprev.iter().map(results::iprev_words).collect();
    more.extend(lists.iter().map(results::dnsbl_words));
    more.extend(results::doubled_words(&identity::doubled(&headers)));
    let found =
        results::Found { spf: spf.as_ref(), dkim: dkim.as_deref(), dmarc: dmarc.as_ref(), arc: arc.as_ref(), more };
    let client = draft.origin.peer.as_ref().map(|peer| peer.ip);
    let authentication_results = results::write(&config.hostname, found, &excuse, client);
    let troubles = lists.iter().filter_map(refusing).collect();
    Checked { findings, authentication_results, verdict, evaluated, troubles, next_seal }
}

/// A list that will not serve us is the administrator's to look at; one that is down is not.
fn refusing(asked: &dnsbl::Dnsbl) -> Option<(Domain, String)> {
    let dnsbl::Answer::Refused(code) = asked.answer else { return None };
    let text = "the list refuses our questions, so it stops no mail; \
                most lists want to be asked by a resolver of one's own, see [dns] nameservers";
    Some((asked.list.clone(), format!("{code}: {text}")))
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
fn strictest(answers: impl DoubleEndedIterator<Item = Verdict>) -> Verdict {
    let weight = |verdict: &Verdict| match verdict {
        Verdict::Reject(refusal) if refusal.reply.code >= 500 => 3,
        Verdict::Reject(_) => 2,
        Verdict::Hold(_) => 1,
        Verdict::Accept => 0,
    };
    // The first of equals: `max_by_key` would take the last.
    answers.rev().max_by_key(weight).unwrap_or(Verdict::Accept)
}

fn lists_verdict(lists: &[dnsbl::Dnsbl], draft: &Draft) -> Verdict {
    let hit = lists.iter().find_map(|asked| match &asked.answer {
        dnsbl::Answer::Listed(code, text) => Some((&asked.list, code, text)),
        _ => None,
    });
    let Some((list, code, text)) = hit else { return Verdict::Accept };
    let client = draft.origin.peer.as_ref().map(|peer| peer.ip.to_canonical().to_string()).unwrap_or_default();
    let more = if text.is_empty() { String::new() } else { format!(": {text}") };
    reject(
        Reply::new(554, (7, 1), format!("[{client}] is listed by {list}{more}")),
        format!("{client} is listed by {list} ({code})"),
    )
}

/// RFC 7372 3.3: 7.25 where reverse DNS fails.
fn iprev_verdict(iprev: &iprev::Iprev) -> Verdict {
    let client = iprev.client;
    match iprev.result {
        "pass" => Verdict::Accept,
        "temperror" => reject(
            Reply::new(
                451,
                (7, 25),
                format!("reverse DNS of [{client}] could not be looked up right now, please try again"),
            ),
            format!("reverse DNS temperror of {client}"),
        ),
        _ => reject(
            Reply::new(550, (7, 25), format!("[{client}] has no name in DNS that leads back to it")),
            format!("reverse DNS {} of {client}", iprev.result),
        ),
    }
}

fn spf_verdict(spf: &spf::Spf) -> Verdict {
    match spf.result() {
        "fail" => {
            let mut text = format!("SPF: {} may not send mail for {}", spf.client(), spf.domain());
            // RFC 7208 6.2: told to be the domain's words, not ours.
            if let Some(explanation) = &spf.outcome.explanation {
                let _ = write!(text, "\nthe domain {} explains:\n{}", explanation.domain, explanation.text);
            }
            let reason = format!("SPF fail of {} for {}", spf.domain(), spf.client());
            reject(Reply::new(550, (7, 23), text), reason)
        }
        // RFC 7372 3.2: 7.24 for errors of SPF itself.
        "temperror" => reject(
            Reply::new(451, (7, 24), "SPF could not be evaluated right now, please try again"),
            format!("SPF temperror of {}: {}", spf.domain(), spf.outcome.why),
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
        ("fail", dmarc::Policy::Quarantine) => {
            Verdict::Hold(Hold::new(HeldBy::Dmarc, format!("DMARC quarantine of {domain}")))
        }
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
        dmarc::Dmarc { result, policy, domain: "a.test".to_owned(), comment: "", reported: None }
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
