//! Which of several certificates a client sees: the one for the name that it asks for (SNI, RFC 6066 3).
//!
//! A name that stands in a certificate itself goes before a wildcard. Where several have the name, it is
//! the first in the order of the configuration whose key the client can use, so that an RSA and an ECDSA
//! certificate may stand side by side. For other names, and without one, it is the default.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_rustls::rustls::SignatureScheme;
use tokio_rustls::rustls::sign::CertifiedKey;

use super::facts;

/// The certificates of the server, by name.
#[derive(Debug)]
pub(super) struct Shown {
    pub default: Arc<CertifiedKey>,
    by_name: HashMap<String, Vec<Arc<CertifiedKey>>>,
}

impl Shown {
    pub fn new(default: CertifiedKey, extra: Vec<CertifiedKey>) -> Shown {
        let default = Arc::new(default);
        let mut by_name: HashMap<String, Vec<Arc<CertifiedKey>>> = HashMap::new();
        for pair in std::iter::once(default.clone()).chain(extra.into_iter().map(Arc::new)) {
            let names = pair.cert.first().map(facts::names).unwrap_or_default();
            for name in names {
                by_name.entry(name).or_default().push(pair.clone());
            }
        }
        Shown { default, by_name }
    }

    pub fn is_other(&self, than: &Shown) -> bool {
        let same = |one: &[Arc<CertifiedKey>], other: &[Arc<CertifiedKey>]| {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| one.cert == other.cert)
        };
        let has_same = |(name, pairs): (&String, &Vec<Arc<CertifiedKey>>)| {
            than.by_name.get(name).is_some_and(|other| same(pairs, other))
        };
        self.default.cert != than.default.cert
            || self.by_name.len() != than.by_name.len()
            || !self.by_name.iter().all(has_same)
    }

    pub fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Arc<CertifiedKey> {
        let name = name.map(str::to_ascii_lowercase).unwrap_or_default();
        let wildcard = name.split_once('.').map(|(_, parent)| format!("*.{parent}")).unwrap_or_default();
        let fitting = [name, wildcard].into_iter().find_map(|name| self.by_name.get(&name));
        let pairs = fitting.map_or(std::slice::from_ref(&self.default), Vec::as_slice);
        let usable = pairs.iter().find(|pair| pair.key.choose_scheme(schemes).is_some());
        usable.or(pairs.first()).unwrap_or(&self.default).clone()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use rcgen::{CertificateParams, KeyPair};
    use tokio_rustls::rustls::crypto::aws_lc_rs;
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;

    use super::*;

    fn pair_with(names: &[&str], key: &KeyPair) -> CertifiedKey {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let made = CertificateParams::new(names).unwrap().self_signed(key).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        CertifiedKey::from_der(vec![made.der().clone()], key, &aws_lc_rs::default_provider()).unwrap()
    }

    fn pair(names: &[&str]) -> CertifiedKey {
        pair_with(names, &KeyPair::generate().unwrap())
    }

    fn all() -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }

    #[test]
    fn a_client_sees_the_certificate_for_the_name_that_it_asks_for() {
        let extra = [&["mx.other.example"][..], &["*.example.net"], &["www.example.net", "Mail.Example.com"]];
        let pairs = extra.map(pair);
        let wanted: Vec<_> = pairs.iter().map(|pair| pair.cert.clone()).collect();
        let default = pair(&["mail.example.com"]);
        let first = default.cert.clone();
        let shown = Shown::new(default, pairs.into_iter().collect());
        for (name, cert) in [
            (Some("mx.other.example"), &wanted[0]),
            (Some("MX.Other.Example"), &wanted[0]),
            (Some("a.example.net"), &wanted[1]),
            (Some("www.example.net"), &wanted[2]),
            // A wildcard stands for one label (RFC 9525 6.3).
            (Some("a.b.example.net"), &first),
            (Some("example.net"), &first),
            (Some("mail.example.com"), &first),
            (Some("unknown.example"), &first),
            (Some("com"), &first),
            (Some(""), &first),
            (None, &first),
        ] {
            assert_eq!(&shown.choose(name, &all()).cert, cert, "{name:?}");
        }
    }

    #[test]
    fn of_two_for_one_name_it_is_the_one_whose_key_the_client_knows() {
        let ecdsa = pair(&["mail.example.com"]);
        let ed25519 = pair_with(&["mail.example.com"], &KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap());
        let (first, second) = (ecdsa.cert.clone(), ed25519.cert.clone());
        let shown = Shown::new(ecdsa, vec![ed25519]);
        let name = Some("mail.example.com");
        assert_eq!(shown.choose(name, &all()).cert, first);
        assert_eq!(shown.choose(name, &[SignatureScheme::ED25519]).cert, second);
        assert_eq!(shown.choose(name, &[SignatureScheme::RSA_PSS_SHA512]).cert, first, "none fits: the first");
    }
}
