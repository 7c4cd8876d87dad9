//! The arithmetic of SCRAM (RFC 5802 3, RFC 7677), which both sides of a login share: keys from a
//! password, proofs, signatures, and names as they are written.
//!
//! Promises: comparing takes the same time whatever differs; nothing in here shows itself. Leaves out:
//! the messages, and who sends which (`server::sasl`, `delivery::smtp::auth`).

use std::num::NonZeroU32;

use aws_lc_rs::{constant_time, digest, hmac, pbkdf2};

/// The hash that a mechanism is named after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    Sha1,
    Sha256,
}

impl Hash {
    fn hmac(self) -> hmac::Algorithm {
        match self {
            Hash::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Hash::Sha256 => hmac::HMAC_SHA256,
        }
    }

    fn digest(self, octets: &[u8]) -> digest::Digest {
        match self {
            Hash::Sha1 => digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, octets),
            Hash::Sha256 => digest::digest(&digest::SHA256, octets),
        }
    }

    /// HMAC: the signature of `signed` under one of the keys.
    pub fn sign(self, key: &[u8], signed: &[u8]) -> Vec<u8> {
        hmac::sign(&hmac::Key::new(self.hmac(), key), signed).as_ref().to_vec()
    }
}

/// What a password, a salt and a count of iterations give.
pub struct Keys {
    /// The client proves that it has it.
    pub client_key: Vec<u8>,
    /// Its hash: what a server keeps.
    pub stored_key: Vec<u8>,
    /// With it the server signs.
    pub server_key: Vec<u8>,
}

impl Keys {
    pub fn derive(hash: Hash, password: &[u8], salt: &[u8], iterations: NonZeroU32) -> Keys {
        let (algorithm, octets) = match hash {
            Hash::Sha1 => (pbkdf2::PBKDF2_HMAC_SHA1, 20),
            Hash::Sha256 => (pbkdf2::PBKDF2_HMAC_SHA256, 32),
        };
        let mut salted = vec![0; octets];
        pbkdf2::derive(algorithm, iterations, salt, password, &mut salted);
        let client_key = hash.sign(&salted, b"Client Key");
        let stored_key = hash.digest(&client_key).as_ref().to_vec();
        Keys { client_key, stored_key, server_key: hash.sign(&salted, b"Server Key") }
    }

    /// The client key under a mask that fits these messages only.
    pub fn proof(&self, hash: Hash, signed: &[u8]) -> Vec<u8> {
        masked(&self.client_key, &hash.sign(&self.stored_key, signed))
    }
}

/// Whether whoever made `proof` has the client key whose hash is `stored_key`.
pub fn proof_fits(hash: Hash, stored_key: &[u8], signed: &[u8], proof: &[u8]) -> bool {
    let client_key = masked(proof, &hash.sign(stored_key, signed));
    same(hash.digest(&client_key).as_ref(), stored_key)
}

/// In the same time, whatever differs but the length.
pub fn same(one: &[u8], other: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(one, other).is_ok()
}

/// Nothing, which fits nothing, where the lengths differ.
fn masked(octets: &[u8], mask: &[u8]) -> Vec<u8> {
    if octets.len() != mask.len() {
        return Vec::new();
    }
    octets.iter().zip(mask).map(|(octet, mask)| octet ^ mask).collect()
}

/// RFC 5802 5.1: a comma is written `=2C` and an equals sign `=3D`.
pub fn escape_name(name: &str) -> String {
    name.replace('=', "=3D").replace(',', "=2C")
}

/// The other way; no other `=` is legal.
pub fn unescape_name(text: &str) -> Option<String> {
    let mut name = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('=') {
        name.push_str(before);
        let (code, tail) = after.split_at_checked(2)?;
        name.push(match code {
            "2C" => ',',
            "3D" => '=',
            _ => return None,
        });
        rest = tail;
    }
    name.push_str(rest);
    Some(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_proof_fits_its_own_key_and_messages_only() {
        for hash in [Hash::Sha1, Hash::Sha256] {
            let derive = |password: &[u8]| Keys::derive(hash, password, b"salt", NonZeroU32::MIN);
            let (keys, other) = (derive(b"pencil"), derive(b"pencils"));
            let proof = keys.proof(hash, b"messages");
            assert!(proof_fits(hash, &keys.stored_key, b"messages", &proof));
            assert!(!proof_fits(hash, &keys.stored_key, b"others", &proof));
            assert!(!proof_fits(hash, &other.stored_key, b"messages", &proof));
            for wrong in [&proof[1..], &[&proof[..], b"x"].concat(), b""] {
                assert!(!proof_fits(hash, &keys.stored_key, b"messages", wrong));
            }
        }
    }

    #[test]
    fn names_survive_being_written() {
        for name in ["user", "a,b=c", "=2C", ",,==", "ü"] {
            assert_eq!(unescape_name(&escape_name(name)).as_deref(), Some(name));
        }
        assert_eq!(escape_name("a,b=c"), "a=2Cb=3Dc");
        for bad in ["a=2", "a=", "a=2D", "="] {
            assert_eq!(unescape_name(bad), None);
        }
    }
}
