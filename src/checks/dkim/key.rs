//! The public keys behind signatures: from DNS (RFC 6376 3.6), and whether what is signed was signed with
//! one of them.
//!
//! A key that may not be used for this (too short, revoked, for another purpose) is told apart from a
//! signature that does not hold.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rsa::PublicKey;
use aws_lc_rs::signature::{ED25519, RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY as RSA, UnparsedPublicKey};
use aws_lc_rs::signature::{RsaParameters, VerificationAlgorithm};

use super::signature::{Algorithm, Signed, Why};
use crate::dns::{DnsError, Resolver};
use crate::message::tags::Tags;

/// RFC 8301 3.2: shorter RSA keys count for nothing.
const RSA_BITS_MIN: u32 = 1024;
/// Records under one name that are tried; there ought to be one (RFC 6376 3.6.2.2).
const RECORDS_MAX: usize = 4;

/// What DNS has under the name of a key.
#[derive(Debug)]
pub(in crate::checks) struct Records(Vec<String>);

/// A key for this signature; nothing is known of the signature yet.
pub(in crate::checks) struct Key {
    bytes: Vec<u8>,
    algorithm: Algorithm,
    /// RFC 6376 3.6.1: t=y, the domain is trying DKIM out.
    pub is_test: bool,
}

impl Records {
    pub async fn fetch(resolver: &Resolver, signed: &Signed) -> Result<Records, Why> {
        match resolver.txt(&format!("{}._domainkey.{}", signed.selector, signed.domain)).await {
            Ok(texts) if !texts.is_empty() => Ok(Records(texts)),
            Err(DnsError::Temporary(_) | DnsError::Setup(_)) => Err(("temperror", "key could not be looked up")),
            Ok(_) | Err(DnsError::NoSuchDomain | DnsError::Unusable(_)) => Err(("permerror", "no key for signature")),
        }
    }

    /// Those keys that may be used; if none may, why the first may not.
    pub fn keys(&self, signed: &Signed) -> Result<Vec<Key>, Why> {
        let mut keys = Vec::new();
        let mut trouble = ("permerror", "no key for signature");
        for text in self.0.iter().take(RECORDS_MAX).rev() {
            match key(text, signed) {
                Ok(key) => keys.push(key),
                Err(why) => trouble = why,
            }
        }
        if keys.is_empty() { Err(trouble) } else { Ok(keys) }
    }
}

fn key(text: &str, signed: &Signed) -> Result<Key, Why> {
    const UNUSABLE: Why = ("permerror", "key cannot be used");
    let tags = Tags::parse(text.as_bytes()).ok_or(UNUSABLE)?;
    if tags.get("v").is_some_and(|version| version != "DKIM1" || !tags.is_first("v")) {
        return Err(UNUSABLE);
    }
    let has = |name, wanted: &[&str]| tags.parts(name).is_none_or(|mut parts| parts.any(|part| wanted.contains(&part)));
    let algorithm = match tags.get("k").unwrap_or("rsa") {
        "rsa" => Algorithm::RsaSha256,
        "ed25519" => Algorithm::Ed25519Sha256,
        _ => return Err(UNUSABLE),
    };
    if tags.get("p") == Some("") {
        return Err(("permerror", "key revoked"));
    }
    if !has("h", &["sha256"]) {
        return Err(("policy", "key is not for sha256"));
    }
    if !has("s", &["*", "email"]) {
        return Err(("policy", "key is not for mail"));
    }
    if algorithm != signed.algorithm {
        return Err(("permerror", "key does not fit the algorithm"));
    }
    let flag = |wanted| tags.parts("t").is_some_and(|mut flags| flags.any(|flag| flag == wanted));
    if flag("s") && !signed.of_domain_itself {
        return Err(("permerror", "i= is not d= itself, as its key demands"));
    }
    let bytes = tags.base64("p").ok_or(UNUSABLE)?;
    let bits = match algorithm {
        Algorithm::Ed25519Sha256 if bytes.len() == 32 => RSA_BITS_MIN,
        Algorithm::Ed25519Sha256 => return Err(UNUSABLE),
        // As SubjectPublicKeyInfo, or bare: RFC 6376 says one and shows the other (erratum 3017).
        _ => PublicKey::from_der(&bytes)
            .ok()
            .and_then(|key| RsaParameters::public_modulus_len(key.as_ref()).ok())
            .ok_or(UNUSABLE)?,
    };
    if bits < RSA_BITS_MIN {
        return Err(("policy", "key shorter than 1024 bits"));
    }
    Ok(Key { bytes, algorithm, is_test: flag("y") })
}

impl Key {
    pub fn has_signed(&self, data: &[u8], signature: &[u8]) -> bool {
        let verify = |algorithm: &'static dyn VerificationAlgorithm, data: &[u8]| {
            UnparsedPublicKey::new(algorithm, &self.bytes).verify(data, signature).is_ok()
        };
        match self.algorithm {
            // RFC 8463 3: Ed25519 over the SHA-256 of the data.
            Algorithm::Ed25519Sha256 => verify(&ED25519, digest(&SHA256, data).as_ref()),
            Algorithm::RsaSha256 => verify(&RSA, data),
            Algorithm::RsaSha1 => false,
        }
    }
}
