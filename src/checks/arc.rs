//! ARC (RFC 8617): has everybody who passed the message on sealed it, and what did they find when it came
//! to them?
//!
//! Promises: a chain that is not whole, or has too many sets, costs no look-up; a chain passes only if its
//! newest signature over the message and every seal hold; trouble with DNS is neither pass nor fail. What a
//! sealer says counts only if it, and all after it, are on the list of those that are trusted.
//!
//! Who seals what we pass on is `intake::seal`.

use std::net::IpAddr;

use tokio::time::timeout_at;

use super::dkim::{Algorithm, Bodies, Kind, Signature, Signed, Verifier, Why, is_below};
use crate::message::Domain;
use crate::message::arc::{self, Broken, SETS_MAX, Set};
use crate::message::authres;
use crate::message::canonical::{self, Form};
use crate::message::findings::ArcFinding;
use crate::message::tags::Tags;

/// What came of the chain.
#[derive(Clone, Debug, Default)]
pub(super) struct Arc {
    /// RFC 8617 4.4, and `temperror`.
    pub result: &'static str,
    /// Why, in words of our own; may be empty.
    pub comment: &'static str,
    /// The lowest number whose signature over the message still holds, 0 if all do (RFC 8617 5.2).
    pub oldest_pass: Option<usize>,
    /// Who has sealed, the oldest first, and what each had found. Empty unless the chain passes or may pass.
    sealed: Vec<Sealed>,
}

#[derive(Clone, Debug)]
struct Sealed {
    by: Domain,
    found: Vec<authres::Finding>,
}

/// What trusted sealers change for a message that fails DMARC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Excuse {
    None,
    /// The author was real when the message came to this one.
    By(Domain),
    /// It would be so if the chain could be validated now.
    Unknown,
}

impl Arc {
    fn new(result: &'static str, comment: &'static str) -> Arc {
        Arc { result, comment, ..Arc::default() }
    }

    /// The number of a set that may be added; none if the chain has ended or is in doubt.
    pub fn next_instance(&self) -> Option<usize> {
        match self.result {
            "none" => Some(1),
            "pass" => Some(self.sealed.len() + 1).filter(|next| *next <= SETS_MAX),
            _ => None,
        }
    }

    pub fn finding(&self, excuse: &Excuse) -> ArcFinding {
        let sealers = self.sealed.iter().filter(|_| self.result == "pass").map(|sealed| sealed.by.to_string());
        ArcFinding {
            result: self.result.to_owned(),
            sealers: sealers.collect(),
            overrides_dmarc: matches!(excuse, Excuse::By(_)),
        }
    }

    /// Has somebody trusted seen that the author was real, and is everybody since then trusted too?
    /// `author`: the domain in From.
    pub fn excuse(&self, trusted: &[Domain], author: &str) -> Excuse {
        let is_trusted =
            |sealed: &&Sealed| trusted.iter().any(|trusted| sealed.by == *trusted || is_below(&sealed.by, trusted));
        let believed = self.sealed.iter().rev().take_while(is_trusted);
        let vouches = |sealed: &&Sealed| vouches_for(&sealed.found, author);
        match believed.into_iter().find(vouches) {
            None => Excuse::None,
            Some(_) if self.result == "temperror" => Excuse::Unknown,
            Some(sealed) => Excuse::By(sealed.by.clone()),
        }
    }

    /// The words of our Authentication-Results field (RFC 8617 10.2); none where there is nothing to tell.
    pub fn words(&self, client: Option<IpAddr>) -> Option<Vec<String>> {
        if self.result == "none" {
            return None;
        }
        let mut words = vec![format!("arc={}", self.result)];
        if !self.comment.is_empty() {
            words.push(format!("({})", self.comment));
        }
        words.extend(self.oldest_pass.map(|oldest| format!("header.oldest-pass={oldest}")));
        // A colon may not stand in a token.
        words.extend(client.map(|ip| match ip.to_canonical() {
            IpAddr::V4(ip) => format!("smtp.remote-ip={ip}"),
            IpAddr::V6(ip) => format!("smtp.remote-ip=\"{ip}\""),
        }));
        Some(words)
    }
}

/// DMARC's own result first. Where there is none, SPF or DKIM for just this domain: who is aligned with
/// whom otherwise was for the sealer to judge.
fn vouches_for(found: &[authres::Finding], author: &str) -> bool {
    let is_author = |domain: &str| !author.is_empty() && Domain::parse(domain).is_ok_and(|d| d.as_str() == author);
    let of = |method: &'static str| found.iter().filter(move |finding| finding.method == method);
    let mut dmarc = of("dmarc");
    if let Some(first) = dmarc.next() {
        return dmarc.next().is_none()
            && match first.result.as_str() {
                "pass" => first.property("header.from").is_some_and(is_author),
                "none" => vouches_without_dmarc(of("dkim"), of("spf"), is_author),
                _ => false,
            };
    }
    vouches_without_dmarc(of("dkim"), of("spf"), is_author)
}

fn vouches_without_dmarc<'a>(
    mut dkim: impl Iterator<Item = &'a authres::Finding>,
    mut spf: impl Iterator<Item = &'a authres::Finding>,
    is_author: impl Fn(&str) -> bool,
) -> bool {
    let behind_at = |address: &str| address.rsplit('@').next().is_some_and(&is_author);
    dkim.any(|finding| {
        let signer = finding.property("header.d").or_else(|| finding.property("header.i"));
        finding.result == "pass" && signer.is_some_and(behind_at)
    }) || spf.any(|finding| finding.result == "pass" && finding.property("smtp.mailfrom").is_some_and(behind_at))
}

pub(super) async fn evaluate(verifier: &Verifier<'_>, bodies: &Bodies) -> Arc {
    if verifier.headers.within_limits().is_err() {
        return Arc::new("fail", "header section too large");
    }
    let sets = match arc::sets(verifier.headers) {
        Ok(sets) if sets.is_empty() => return Arc::new("none", ""),
        Ok(sets) => sets,
        Err(broken) => return Arc::new("fail", broken.text()),
    };
    let sealed = match read_seals(&sets) {
        Ok(sealed) => sealed,
        Err(why) => return Arc::new("fail", why),
    };
    let validated = timeout_at(verifier.deadline, validate(verifier, bodies, &sets)).await;
    match validated.unwrap_or(Err(("temperror", "not validated in time"))) {
        Ok(oldest) => Arc { oldest_pass: Some(oldest), sealed, ..Arc::new("pass", "") },
        Err(("temperror", why)) => Arc { sealed, ..Arc::new("temperror", why) },
        Err((_, why)) => Arc::new("fail", why),
    }
}

/// All that can be known without DNS: who has sealed, and that each field says what it has to.
fn read_seals(sets: &[Set<'_>]) -> Result<Vec<Sealed>, &'static str> {
    let mut sealed = Vec::with_capacity(sets.len());
    for set in sets {
        let seal = Signed::read(&set.seal_tags).map_err(|(_, why)| why)?;
        // RFC 8617 4.1.3: what is sealed is not for the sealer to choose.
        if set.seal_tags.get("h").is_some() {
            return Err("a seal has h=");
        }
        if set.seal_tags.get("t").is_some() && set.seal_tags.number("t").is_none() {
            return Err(Broken::Unreadable.text());
        }
        if seal.algorithm == Algorithm::RsaSha1 {
            return Err("rsa-sha1 is not to be trusted");
        }
        sealed.push(Sealed { by: seal.domain, found: authres::findings(set.results.value) });
    }
    Ok(sealed)
}

/// RFC 8617 5.2, steps 4 to 6, and the oldest set whose signature still holds.
async fn validate(verifier: &Verifier<'_>, bodies: &Bodies, sets: &[Set<'_>]) -> Result<usize, Why> {
    let mut newest_first = sets.iter().rev();
    if let Some(newest) = newest_first.next() {
        signature_holds(verifier, bodies, newest).await?;
    }
    for count in (1..=sets.len()).rev() {
        seal_holds(verifier, sets.get(..count).unwrap_or_default()).await?;
    }
    let mut oldest = sets.len();
    for set in newest_first {
        if signature_holds(verifier, bodies, set).await.is_err() {
            return Ok(oldest);
        }
        oldest -= 1;
    }
    Ok(0)
}

async fn signature_holds(verifier: &Verifier<'_>, bodies: &Bodies, set: &Set<'_>) -> Result<(), Why> {
    let tags = Tags::parse(set.signature.value).ok_or(("fail", "a field cannot be read"))?;
    let signature = Signature::read(&tags, Kind::Arc)?;
    // RFC 8617 4.1.2: the seal comes after this signature.
    if signature.names.iter().any(|name| name.eq_ignore_ascii_case(arc::SEAL)) {
        return Err(("fail", "a seal is signed by what it seals"));
    }
    verifier.verify(&signature, &set.signature, &tags, bodies).await.0
}

/// Does the newest seal of these sets hold?
async fn seal_holds(verifier: &Verifier<'_>, sets: &[Set<'_>]) -> Result<(), Why> {
    let Some(newest) = sets.last() else { return Ok(()) };
    let signed = Signed::read(&newest.seal_tags)?;
    let mut data = Vec::with_capacity(4096);
    arc::write_before_seal(sets, &mut data);
    canonical::write_unsigned(Form::Relaxed, &newest.seal, &newest.seal_tags, &mut data);
    match verifier.verify_data(&signed, &data, true).await.0 {
        Err(("fail", _)) => Err(("fail", "a seal did not verify")),
        other => other,
    }
}
