//! A signature as it is written, in a DKIM-Signature field or in one of ARC's (RFC 6376 3.5, RFC 8617 4.1),
//! and what no signature may do, whatever its key says.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::Dkim;
use crate::checks::legal_domain;
use crate::message::Domain;
use crate::message::canonical::{Form, SIGNED_NAMES_MAX};
use crate::message::tags::Tags;

/// Longest selector taken, in octets.
const SELECTOR_BYTES_MAX: usize = 253;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    RsaSha1,
    RsaSha256,
    Ed25519Sha256,
}

/// Who has signed, with which key and what came of it.
#[derive(Clone, Debug)]
pub(crate) struct Signed {
    pub domain: Domain,
    pub selector: String,
    pub algorithm: Algorithm,
    pub bytes: Vec<u8>,
    /// i= names just the domain of d=, which some keys want.
    pub of_domain_itself: bool,
}

/// What a signature over a message says; that over seals (ARC-Seal) is a [`Signed`] alone.
#[derive(Clone, Debug)]
pub(crate) struct Signature<'a> {
    pub signed: Signed,
    pub header: Form,
    pub body: Form,
    pub body_hash: Vec<u8>,
    pub names: Vec<&'a str>,
    is_limited: bool,
    expires: Option<u64>,
}

/// A result in the words of RFC 8601 2.7.1, and why.
pub(crate) type Why = (&'static str, &'static str);

const UNREADABLE: Why = ("neutral", "signature cannot be read");
const ILLEGAL: Why = ("neutral", "v=, d= or s= is not legal");

/// Which field it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Dkim,
    /// ARC-Message-Signature: i= is a number there, and it has no v=.
    Arc,
}

impl Signed {
    /// The tags that all have in common.
    pub fn read(tags: &Tags<'_>) -> Result<Signed, Why> {
        let domain = tags.get("d").and_then(domain).ok_or(ILLEGAL)?;
        let selector = tags.get("s").filter(|selector| is_selector(selector)).ok_or(ILLEGAL)?;
        let algorithm = match tags.get("a") {
            Some("rsa-sha256") => Algorithm::RsaSha256,
            Some("ed25519-sha256") => Algorithm::Ed25519Sha256,
            Some("rsa-sha1") => Algorithm::RsaSha1,
            _ => return Err(UNREADABLE),
        };
        let bytes = tags.base64("b").filter(|bytes| !bytes.is_empty()).ok_or(UNREADABLE)?;
        Ok(Signed { domain, selector: selector.to_owned(), algorithm, bytes, of_domain_itself: true })
    }
}

impl<'a> Signature<'a> {
    pub fn read(tags: &Tags<'a>, kind: Kind) -> Result<Signature<'a>, Why> {
        if kind == Kind::Dkim && tags.get("v") != Some("1") {
            return Err(UNREADABLE);
        }
        let mut signed = Signed::read(tags)?;
        let (header, body) = forms(tags.get("c").unwrap_or("simple/simple")).ok_or(UNREADABLE)?;
        let body_hash = tags.base64("bh").ok_or(UNREADABLE)?;
        let names: Vec<&str> = tags.parts("h").ok_or(UNREADABLE)?.take(SIGNED_NAMES_MAX + 1).collect();
        let number = |name| match (tags.get(name), tags.number(name)) {
            (Some(_), None) => Err(UNREADABLE),
            (_, number) => Ok(number),
        };
        let (made, expires) = (number("t")?, number("x")?);
        number("l")?;
        let is_name = |name: &&str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic());
        // RFC 6376 3.5: h= holds names of fields, and x= is later than t=.
        if !names.iter().all(is_name) || made.zip(expires).is_some_and(|(made, expires)| expires <= made) {
            return Err(UNREADABLE);
        }
        if !tags.parts("q").is_none_or(|mut methods| methods.any(|method| method == "dns/txt")) {
            return Err(("neutral", "key cannot be asked for in DNS"));
        }
        if kind == Kind::Dkim
            && let Some(identity) = tags.get("i")
        {
            let name = identity.rsplit_once('@').and_then(|(_, name)| domain(name));
            signed.of_domain_itself = match name.ok_or(UNREADABLE)? {
                name if name == signed.domain => true,
                name if is_below(&name, &signed.domain) => false,
                _ => return Err(("permerror", "i= is not within d=")),
            };
        }
        Ok(Signature { signed, header, body, body_hash, names, is_limited: tags.get("l").is_some(), expires })
    }

    /// What no signature may do. `now`: seconds since 1970.
    pub fn acceptable(&self, now: u64) -> Result<(), Why> {
        if self.signed.algorithm == Algorithm::RsaSha1 {
            return Err(("policy", "rsa-sha1 is not to be trusted")); // RFC 8301 3.1
        }
        if self.is_limited {
            return Err(("policy", "l= leaves a part of the body unsigned")); // RFC 6376 8.2
        }
        if self.names.len() > SIGNED_NAMES_MAX {
            return Err(("policy", "too many names in h="));
        }
        if !self.names.iter().any(|name| name.eq_ignore_ascii_case("From")) {
            return Err(("policy", "From is not signed")); // RFC 6376 5.4
        }
        if self.expires.is_some_and(|expires| expires < now) {
            return Err(("fail", "signature has expired"));
        }
        Ok(())
    }
}

/// What can be told of a signature, and be it broken: whatever of it is legal.
pub(super) fn about(tags: Option<&Tags<'_>>, (result, comment): Why) -> Dkim {
    let get = |name| tags.and_then(|tags| tags.get(name)).unwrap_or_default();
    let bytes = tags.and_then(|tags| tags.base64("b")).unwrap_or_default();
    Dkim {
        result,
        comment,
        domain: domain(get("d")).map(|domain| domain.to_string()).unwrap_or_default(),
        selector: Some(get("s")).filter(|selector| is_selector(selector)).unwrap_or_default().to_owned(),
        signature_start: BASE64.encode(bytes).chars().take(8).collect(),
        is_test: false,
    }
}

fn forms(text: &str) -> Option<(Form, Form)> {
    let form = |text| match text {
        "simple" => Some(Form::Simple),
        "relaxed" => Some(Form::Relaxed),
        _ => None,
    };
    let (header, body) = text.split_once('/').unwrap_or((text, "simple"));
    Some((form(header)?, form(body)?))
}

/// RFC 6376 3.5: a domain name with a dot in it and none at its end. So no top-level domain signs for
/// all below it.
fn domain(text: &str) -> Option<Domain> {
    legal_domain(text).filter(|domain| domain.as_str().contains('.') && !text.ends_with('.'))
}

pub(crate) fn is_below(name: &Domain, parent: &Domain) -> bool {
    name.as_str().strip_suffix(parent.as_str()).is_some_and(|rest| rest.ends_with('.'))
}

/// RFC 6376 3.1: labels, as in a domain name.
fn is_selector(text: &str) -> bool {
    let legal_label = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        !label.is_empty() && label.len() <= 63 && label.bytes().all(inner)
    };
    text.len() <= SELECTOR_BYTES_MAX && text.split('.').all(legal_label)
}
