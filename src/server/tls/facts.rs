//! What is in a certificate: the names, and from when to when it is good.
//!
//! Only of our own certificates, which their issuers have made; still nothing here can panic.

use tokio_rustls::rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use crate::clock::{Millis, parse_rfc3339};

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// When a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub from: Millis,
    pub to: Millis,
}

/// The host names that it is for, in lower case; `*.example.com` is one.
pub fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    match EndEntityCert::try_from(certificate) {
        Ok(certificate) => certificate.valid_dns_names().map(str::to_ascii_lowercase).collect(),
        Err(_) => Vec::new(),
    }
}

/// RFC 5280 4.1. None: it is not well formed.
pub fn validity(certificate: &[u8]) -> Option<Validity> {
    let (SEQUENCE, whole, _) = element(certificate)? else { return None };
    let (SEQUENCE, signed, _) = element(whole)? else { return None };
    let (tag, _, behind_version) = element(signed)?;
    let mut rest = if tag == VERSION { behind_version } else { signed };
    // The serial number, the algorithm of the signature, the issuer.
    for _ in 0..3 {
        rest = element(rest)?.2;
    }
    let (SEQUENCE, validity, _) = element(rest)? else { return None };
    let (from_tag, from, rest) = element(validity)?;
    let (to_tag, to, _) = element(rest)?;
    Some(Validity { from: time(from_tag, from)?, to: time(to_tag, to)? })
}

/// Tag, content and what follows, of DER.
fn element(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, short], rest) = input.split_first_chunk::<2>()?;
    let (length, rest) = match short {
        0..=0x7f => (usize::from(short), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(short & 0x7f))?;
            (bytes.iter().fold(0usize, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ` (RFC 5280 4.1.2.5).
fn time(tag: u8, text: &[u8]) -> Option<Millis> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            let century = if year < "50" { "20" } else { "19" };
            (format!("{century}{year}"), rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.to_owned(), rest)
        }
        _ => return None,
    };
    let part = |at: usize| rest.get(at..at + 2);
    let (month, day, hour, minute, second) = (part(0)?, part(2)?, part(4)?, part(6)?, part(8)?);
    parse_rfc3339(&format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::time::Duration;

    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn made(names: &[&str], from: i32, to: i32) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = date_time_ymd(from, 2, 28) + Duration::from_secs(3661);
        params.not_after = date_time_ymd(to, 12, 31);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn names_and_times_are_those_that_were_put_in() {
        let certificate = made(&["Mail.example.com", "*.example.net", "192.0.2.1"], 2026, 2051);
        assert_eq!(names(&certificate), ["mail.example.com", "*.example.net"]);
        let at = |text: &str| parse_rfc3339(text).unwrap();
        let wanted = Validity { from: at("2026-02-28T01:01:01Z"), to: at("2051-12-31T00:00:00Z") };
        assert_eq!(validity(&certificate), Some(wanted));
    }

    #[test]
    fn what_is_no_certificate_says_nothing() {
        let certificate = made(&["a.example"], 2026, 2027);
        for length in 0..certificate.len() {
            let cut = &certificate[..length];
            assert_eq!(validity(cut), None);
            assert!(names(&CertificateDer::from(cut.to_vec())).is_empty());
        }
        for at in 0..certificate.len() {
            let mut other = certificate.to_vec();
            other[at] ^= 0xff;
            // Whatever it says then, it does not panic.
            let _ = (validity(&other), names(&CertificateDer::from(other)));
        }
    }
}
