//! DKIM (RFC 6376): which signatures of a message hold?
//!
//! mail-auth parses a signature, looks its key up and verifies it. Around that: only so many
//! signatures are looked at; bodies are hashed here, once for each kind of hash and off the async
//! threads when large, and without the trailing blank lines that mail-auth does not strip from
//! relaxed bodies; and signatures that RFC 6376 and RFC 8301 tell not to trust do not pass.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use mail_auth::common::crypto::{Algorithm, CryptoError, HashAlgorithm};
use mail_auth::common::headers::Header;
use mail_auth::common::verify::{DomainKey, VerifySignature};
use mail_auth::dkim::{Canonicalization, DkimError, Signature};
use mail_auth::{AuthenticatedMessage, DkimResult, DnsError, Error};
use tokio::time::{Instant, timeout_at};

use super::legal_domain;
use crate::dns::Resolver;
use crate::message::Content;
use crate::message::body::{BodyHashes, Hash, relaxed_hash, simple_hash};
use crate::message::findings::DkimFinding;
use crate::message::header::{Field, Headers};

/// Signatures looked at; further ones are passed over (RFC 6376 6.1 lets verifiers limit them).
const SIGNATURES_MAX: usize = 10;
/// Names in a signature's h= tag.
const SIGNED_NAMES_MAX: usize = 256;
/// RFC 8301 3.2: shorter RSA keys count for nothing.
const RSA_BITS_MIN: usize = 1024;
/// Longest selector taken, in octets.
const SELECTOR_BYTES_MAX: usize = 253;
/// Bodies from this size on are hashed on a blocking thread, bytes.
const HASH_ASIDE_BYTES: usize = 256 * 1024;

/// One signature, and what came of it.
#[derive(Clone, Debug)]
pub(super) struct Dkim {
    /// In the words of RFC 8601 2.7.1.
    pub result: &'static str,
    /// Why, in words of our own; empty for a pass.
    pub comment: &'static str,
    /// d=, empty if it is no legal domain.
    pub domain: String,
    /// s=, empty if it is no legal selector.
    pub selector: String,
    /// The first eight characters of b= (RFC 6008).
    pub signature_start: String,
}

/// For [`crate::message::Findings`]: `none` stands alone.
pub(super) fn findings(outcomes: &[Dkim]) -> Vec<DkimFinding> {
    if outcomes.is_empty() {
        return vec![DkimFinding { result: "none".to_owned(), domain: String::new(), selector: String::new() }];
    }
    let finding = |outcome: &Dkim| DkimFinding {
        result: outcome.result.to_owned(),
        domain: outcome.domain.clone(),
        selector: outcome.selector.clone(),
    };
    outcomes.iter().map(finding).collect()
}

/// An outcome for each of the first signatures; empty if the message has none.
pub(super) async fn evaluate(
    resolver: &Resolver,
    headers: &Headers<'_>,
    content: &Content,
    deadline: Instant,
) -> Vec<Dkim> {
    let fields: Vec<&Field<'_>> = headers.all("DKIM-Signature").take(SIGNATURES_MAX).collect();
    if fields.is_empty() {
        return Vec::new();
    }
    if headers.within_limits().is_err() {
        return vec![outcome("permerror", "header section too large")];
    }
    let mut outcomes = Vec::with_capacity(fields.len());
    let mut hashes = Bodies::new(content, headers);
    for field in fields {
        outcomes.push(match timeout_at(deadline, one(resolver, headers, field, &mut hashes)).await {
            Ok(outcome) => outcome,
            Err(_) => match parse(field.value) {
                Ok(signature) => about(&signature, "temperror", "not verified in time"),
                Err(outcome) => outcome,
            },
        });
    }
    outcomes
}

async fn one(resolver: &Resolver, headers: &Headers<'_>, field: &Field<'_>, hashes: &mut Bodies) -> Dkim {
    let signature = match parse(field.value) {
        Ok(signature) => signature,
        Err(outcome) => return outcome,
    };
    if let Err(comment) = acceptable(&signature) {
        return about(&signature, "policy", comment);
    }
    let Some(body_hash) = hashes.get(signature.cb).await else {
        return about(&signature, "temperror", "the body could not be hashed");
    };
    let summary = signature.clone();
    let message = AuthenticatedMessage {
        headers: headers.fields().iter().map(|field| (field.name, after_colon(field.raw))).collect(),
        body_hashes: vec![(signature.cb, HashAlgorithm::from(signature.a), signature.l, body_hash.to_vec())],
        dkim_headers: vec![Header::new(field.name, after_colon(field.raw), signature)],
        ..AuthenticatedMessage::default()
    };
    let outputs = resolver.authenticator().verify_dkim(&message).await;
    let (result, comment) = outputs.first().map_or(("neutral", "not verified"), |output| words(output.result()));
    // Short keys come out as "fail", since the library does not take them; the reason is ours to tell.
    if matches!(result, "pass" | "fail")
        && let Err(comment) = key_fits(resolver, &summary).await
    {
        return about(&summary, "policy", comment);
    }
    about(&summary, result, comment)
}

fn parse(value: &[u8]) -> Result<Signature, Dkim> {
    let Ok(mut signature) = Signature::parse(value) else {
        return Err(outcome("neutral", "signature cannot be read"));
    };
    if signature.v != 1 || legal_domain(&signature.d).is_none() || !is_selector(&signature.s) {
        return Err(about(&signature, "neutral", "v=, d= or s= is not legal"));
    }
    // Reports (RFC 6651) and third-party signatures (RFC 6541) would cost look-ups of their own.
    signature.r = false;
    signature.atps = None;
    Ok(signature)
}

/// What no signature may do, whatever its key says.
fn acceptable(signature: &Signature) -> Result<(), &'static str> {
    if signature.a == Algorithm::RsaSha1 {
        return Err("rsa-sha1 is not to be trusted"); // RFC 8301 3.1
    }
    if signature.l > 0 {
        return Err("l= leaves a part of the body unsigned"); // RFC 6376 8.2
    }
    if signature.h.len() > SIGNED_NAMES_MAX {
        return Err("too many names in h=");
    }
    if !signature.h.iter().any(|name| name.eq_ignore_ascii_case("From")) {
        return Err("From is not signed"); // RFC 6376 5.4
    }
    Ok(())
}

/// Rules on the key that mail-auth does not keep. The record comes from the cache.
async fn key_fits(resolver: &Resolver, signature: &Signature) -> Result<(), &'static str> {
    let name = signature.domain_key();
    if let Ok(key) = resolver.authenticator().txt_lookup::<DomainKey>(name.as_str(), no_cache()).await
        && key.p.public_key_bits() < RSA_BITS_MIN
    {
        return Err("key shorter than 1024 bits");
    }
    for record in resolver.txt(&name).await.unwrap_or_default() {
        for tag in record.split(';') {
            let Some((tag, value)) = tag.split_once('=') else { continue };
            let values: Vec<&str> = value.split(':').map(str::trim).collect();
            // RFC 6376 3.6.1: acceptable hash algorithms, service types.
            if tag.trim() == "h" && !values.contains(&"sha256") {
                return Err("key is not for sha256");
            }
            if tag.trim() == "s" && !values.iter().any(|value| matches!(*value, "*" | "email")) {
                return Err("key is not for mail");
            }
        }
    }
    Ok(())
}

/// mail-auth's optional cache of its own: the resolver has one already.
fn no_cache() -> Option<&'static mail_auth::common::cache::NoCache<Box<str>, mail_auth::Txt>> {
    None
}

/// mail-auth's result in the words of RFC 8601 2.7.1.
fn words(result: &DkimResult) -> (&'static str, &'static str) {
    let error = match result {
        DkimResult::Pass => return ("pass", ""),
        DkimResult::None => return ("neutral", "not verified"),
        DkimResult::Neutral(error)
        | DkimResult::Fail(error)
        | DkimResult::PermError(error)
        | DkimResult::TempError(error) => error,
    };
    match error {
        Error::Dkim(DkimError::FailedBodyHashMatch) => ("fail", "body hash did not verify"),
        Error::Dkim(DkimError::SignatureExpired) => ("fail", "signature has expired"),
        Error::Dkim(DkimError::FailedAuidMatch) => ("permerror", "i= is not within d="),
        Error::Dkim(DkimError::RevokedPublicKey) => ("permerror", "key revoked"),
        Error::Dkim(DkimError::SignatureLength) => ("policy", "l= leaves a part of the body unsigned"),
        Error::Crypto(CryptoError::IncompatibleAlgorithms) => ("permerror", "key does not fit the algorithm"),
        Error::Crypto(_) => ("fail", "signature did not verify"),
        Error::Dns(DnsError::Resolver(_)) => ("temperror", "key could not be looked up"),
        Error::Dns(DnsError::RecordNotFound(_)) => ("permerror", "no key for signature"),
        _ => ("permerror", "key cannot be used"),
    }
}

fn outcome(result: &'static str, comment: &'static str) -> Dkim {
    Dkim { result, comment, domain: String::new(), selector: String::new(), signature_start: String::new() }
}

fn about(signature: &Signature, result: &'static str, comment: &'static str) -> Dkim {
    let selector = Some(&signature.s).filter(|selector| is_selector(selector));
    Dkim {
        result,
        comment,
        domain: legal_domain(&signature.d).map(|domain| domain.to_string()).unwrap_or_default(),
        selector: selector.cloned().unwrap_or_default(),
        signature_start: BASE64.encode(&signature.b).chars().take(8).collect(),
    }
}

/// RFC 6376 3.1: labels, as in a domain name.
fn is_selector(text: &str) -> bool {
    let legal_label = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        !label.is_empty() && label.len() <= 63 && label.bytes().all(inner)
    };
    text.len() <= SELECTOR_BYTES_MAX && text.split('.').all(legal_label)
}

/// As mail-auth keeps field values: with their line ends.
fn after_colon(raw: &[u8]) -> &[u8] {
    let colon = raw.iter().position(|b| *b == b':').map_or(raw.len(), |at| at + 1);
    raw.get(colon..).unwrap_or_default()
}

/// The hashes of one body: made when first asked for, or known since it passed.
struct Bodies {
    /// What is in memory of it; not used where the hashes are known.
    body: Bytes,
    passed: Option<BodyHashes>,
    known: Vec<(Canonicalization, Hash)>,
}

impl Bodies {
    fn new(content: &Content, headers: &Headers<'_>) -> Bodies {
        let passed = content.rest().map(|rest| rest.hashes);
        Bodies { body: content.head().slice_ref(headers.body()), passed, known: Vec::new() }
    }

    /// By SHA-256: the other algorithm of RFC 6376 is not acceptable.
    async fn get(&mut self, canonicalization: Canonicalization) -> Option<Hash> {
        if let Some(passed) = &self.passed {
            return match canonicalization {
                Canonicalization::Relaxed => Some(passed.relaxed),
                Canonicalization::Simple => passed.simple,
            };
        }
        if let Some((_, hash)) = self.known.iter().find(|entry| entry.0 == canonicalization) {
            return Some(*hash);
        }
        let hash = match canonicalization {
            Canonicalization::Relaxed => relaxed_hash,
            Canonicalization::Simple => simple_hash,
        };
        let hash = if self.body.len() < HASH_ASIDE_BYTES {
            hash(&self.body)
        } else {
            let body = self.body.clone();
            tokio::task::spawn_blocking(move || hash(&body)).await.ok()?
        };
        self.known.push((canonicalization, hash));
        Some(hash)
    }
}
