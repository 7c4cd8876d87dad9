//! Mail addresses as RFC 5321 and RFC 6531 write them.
//!
//! A local part stays as it was written, quotes included, because only the host that owns it may
//! interpret it (RFC 5321 2.3.11). A domain is kept as lower-case A-labels (UTS 46), so two
//! spellings of one domain are equal. What this file accepts can be rendered into a command or a
//! header field without escaping: no control characters, no line ends.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest local part taken, in octets (RFC 5321 4.5.3.1.1).
pub const LOCAL_PART_BYTES_MAX: usize = 64;
/// Longest domain taken, in octets of its A-label form (RFC 1035 2.3.4 less the root).
pub const DOMAIN_BYTES_MAX: usize = 253;

/// Why a text is not an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("there is no @ between a local part and a domain")]
    NoAt,
    #[error("the part before the @ is not a legal local part")]
    BadLocalPart,
    #[error("the part before the @ is longer than {LOCAL_PART_BYTES_MAX} octets")]
    LongLocalPart,
    #[error("the domain is not a legal host name")]
    BadDomain,
    #[error("the domain is longer than {DOMAIN_BYTES_MAX} octets")]
    LongDomain,
    #[error("the address literal is not an IPv4 or IPv6 address")]
    BadLiteral,
    #[error("the address is not enclosed in < and >")]
    NoBrackets,
}

/// A domain name in lower-case A-labels, or an address literal such as `[192.0.2.1]`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(Arc<str>);

impl Domain {
    /// Parses a domain name (U-labels or A-labels) or an address literal in brackets.
    /// A final dot is dropped; an underscore is taken in all but the last label because hosts use it.
    pub fn parse(text: &str) -> Result<Domain, AddressError> {
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(AddressError::BadLiteral)?;
            return parse_literal(inner).map(|ip| Domain(literal_text(ip).into()));
        }
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() || text.len() > 4 * DOMAIN_BYTES_MAX {
            return Err(if text.is_empty() { AddressError::BadDomain } else { AddressError::LongDomain });
        }
        if is_plain_lower(text) && !has_a_label(text) {
            return check_labels(text).map(|()| Domain(text.into()));
        }
        let lower = text.to_ascii_lowercase();
        // An A-label that is not the form of any U-label would pass for a name it is not.
        let ascii = if lower.is_ascii() && !has_a_label(&lower) {
            lower
        } else {
            idna::domain_to_ascii(&lower).map_err(|_| AddressError::BadDomain)?
        };
        check_labels(&ascii).map(|()| Domain(ascii.into()))
    }

    /// The A-label form, lower-case; an address literal with its brackets.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address inside an address literal.
    pub fn literal(&self) -> Option<IpAddr> {
        parse_literal(self.0.strip_prefix('[')?.strip_suffix(']')?).ok()
    }
}

fn has_a_label(lower: &str) -> bool {
    lower.split('.').any(|label| label.starts_with("xn--"))
}

fn is_plain_lower(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
}

fn check_labels(ascii: &str) -> Result<(), AddressError> {
    if ascii.len() > DOMAIN_BYTES_MAX {
        return Err(AddressError::LongDomain);
    }
    let mut last = "";
    for label in ascii.split('.') {
        let legal = !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !legal {
            return Err(AddressError::BadDomain);
        }
        last = label;
    }
    // A numeric last label would be an IP address without brackets (RFC 3696 2).
    if last.bytes().all(|b| b.is_ascii_digit()) || last.contains('_') {
        return Err(AddressError::BadDomain);
    }
    Ok(())
}

/// RFC 5321 4.1.3: IPv4 bare, IPv6 behind a tag.
fn parse_literal(inner: &str) -> Result<IpAddr, AddressError> {
    let is_ipv6 = inner.len() > 5 && inner.is_char_boundary(5) && inner[..5].eq_ignore_ascii_case("IPv6:");
    if is_ipv6 {
        return inner[5..].parse().map(IpAddr::V6).map_err(|_| AddressError::BadLiteral);
    }
    inner.parse().map(IpAddr::V4).map_err(|_| AddressError::BadLiteral)
}

fn literal_text(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => format!("[{v4}]"),
        IpAddr::V6(v6) => format!("[IPv6:{v6}]"),
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A mailbox: local part as written, domain normalised.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    local: Box<str>,
    domain: Domain,
}

impl Address {
    /// Parses `local@domain` without brackets.
    pub fn parse(text: &str) -> Result<Address, AddressError> {
        let at = split_at_sign(text)?;
        let (local, domain) = (&text[..at], &text[at + 1..]);
        check_local_part(local)?;
        Ok(Address { local: local.into(), domain: Domain::parse(domain)? })
    }

    /// An address from parts that are legal already, such as `postmaster` and one of our domains.
    pub fn new(local: &str, domain: Domain) -> Result<Address, AddressError> {
        check_local_part(local)?;
        Ok(Address { local: local.into(), domain })
    }

    /// The local part as written, quotes included.
    pub fn local(&self) -> &str {
        &self.local
    }

    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// For look-ups among our own addresses: local part lower-cased, in NFC (RFC 6532 3.1), and
    /// unquoted where the quotes were not needed (RFC 5321 4.1.2: both forms are the same mailbox).
    pub fn lookup_key(&self) -> String {
        format!("{}@{}", self.lookup_local(), self.domain)
    }

    /// The local part of [`Address::lookup_key`].
    pub fn lookup_local(&self) -> String {
        let inner = self.local.strip_prefix('"').and_then(|l| l.strip_suffix('"'));
        let plain = inner.filter(|inner| is_dot_string(inner)).unwrap_or(&self.local);
        if plain.is_ascii() {
            return plain.to_ascii_lowercase();
        }
        icu_normalizer::ComposingNormalizerBorrowed::new_nfc().normalize(&plain.to_lowercase()).into_owned()
    }

    /// True if the local part needs SMTPUTF8 (RFC 6531).
    pub fn needs_smtputf8(&self) -> bool {
        !self.local.is_ascii()
    }
}

/// The @ that ends the local part: the first one outside quotes.
fn split_at_sign(text: &str) -> Result<usize, AddressError> {
    if !text.starts_with('"') {
        return text.find('@').filter(|at| *at > 0).ok_or(AddressError::NoAt);
    }
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' if text.as_bytes().get(at + 1) == Some(&b'@') => return Ok(at + 1),
            b'"' => return Err(AddressError::BadLocalPart),
            _ => {}
        }
    }
    Err(AddressError::NoAt)
}

fn check_local_part(local: &str) -> Result<(), AddressError> {
    if local.len() > LOCAL_PART_BYTES_MAX {
        return Err(AddressError::LongLocalPart);
    }
    let legal = match local.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').is_some_and(is_quoted_content),
        None => is_dot_string(local),
    };
    if legal { Ok(()) } else { Err(AddressError::BadLocalPart) }
}

/// RFC 5321 4.1.2 Dot-string, with RFC 6531's non-ASCII atext.
fn is_dot_string(text: &str) -> bool {
    text.split('.').all(|atom| !atom.is_empty() && atom.chars().all(is_atext))
}

fn is_atext(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || (!c.is_ascii() && !is_odd_unicode(c))
}

/// Characters outside ASCII that no mailbox name holds: C1 controls, separators, direction marks.
fn is_odd_unicode(c: char) -> bool {
    c.is_control()
        || c.is_whitespace()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff0}'..='\u{ffff}')
}

/// RFC 5321 4.1.2 QcontentSMTP: printable ASCII, a backslash before any of it, or UTF-8.
fn is_quoted_content(text: &str) -> bool {
    let mut escaped = false;
    for c in text.chars() {
        let printable = matches!(c, ' '..='~');
        match c {
            _ if escaped && printable => escaped = false,
            '\\' if !escaped => escaped = true,
            '"' => return false,
            _ if escaped => return false,
            _ if printable || (!c.is_ascii() && !is_odd_unicode(c)) => {}
            _ => return false,
        }
    }
    !escaped
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.local, self.domain)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{self}>")
    }
}

impl std::str::FromStr for Address {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Address, AddressError> {
        Address::parse(text)
    }
}

impl Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
        let text = String::deserialize(deserializer)?;
        Address::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Where failures are reported: RFC 5321's reverse-path. Nothing automatic may answer the null one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ReversePath {
    Null,
    Address(Address),
}

impl ReversePath {
    pub fn address(&self) -> Option<&Address> {
        match self {
            ReversePath::Null => None,
            ReversePath::Address(address) => Some(address),
        }
    }

    pub fn is_null(&self) -> bool {
        matches!(self, ReversePath::Null)
    }
}

/// As in the MAIL command, without the brackets: empty for the null path.
impl fmt::Display for ReversePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReversePath::Null => Ok(()),
            ReversePath::Address(address) => address.fmt(f),
        }
    }
}

impl Serialize for ReversePath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ReversePath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<ReversePath, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(ReversePath::Null);
        }
        Address::parse(&text).map(ReversePath::Address).map_err(serde::de::Error::custom)
    }
}

/// Parses the path of a MAIL command: `<local@domain>` or `<>`. A source route is dropped
/// (RFC 5321 4.1.1.3 and appendix C).
pub fn parse_reverse_path(text: &str) -> Result<ReversePath, AddressError> {
    if text == "<>" {
        return Ok(ReversePath::Null);
    }
    parse_bracketed(text).map(ReversePath::Address)
}

/// Parses the path of a RCPT command. `<postmaster>` without a domain is legal (RFC 5321 4.1.1.3)
/// and becomes an address at `own_domain`.
pub fn parse_forward_path(text: &str, own_domain: &Domain) -> Result<Address, AddressError> {
    if text.eq_ignore_ascii_case("<postmaster>") {
        return Address::new("postmaster", own_domain.clone());
    }
    parse_bracketed(text)
}

fn parse_bracketed(text: &str) -> Result<Address, AddressError> {
    let inner = text.strip_prefix('<').and_then(|t| t.strip_suffix('>')).ok_or(AddressError::NoBrackets)?;
    let mailbox = match inner.strip_prefix('@') {
        None => inner,
        Some(_) => strip_source_route(inner)?,
    };
    Address::parse(mailbox)
}

/// `@one,@two:box@three` → `box@three`.
fn strip_source_route(inner: &str) -> Result<&str, AddressError> {
    let (route, mailbox) = inner.split_once(':').ok_or(AddressError::BadDomain)?;
    for hop in route.split(',') {
        Domain::parse(hop.strip_prefix('@').ok_or(AddressError::BadDomain)?)?;
    }
    Ok(mailbox)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn keeps_local_parts_and_normalises_domains() {
        let address = Address::parse("Some.One@EXAMPLE.com.").unwrap();
        assert_eq!(address.to_string(), "Some.One@example.com");
        assert_eq!(Address::parse("a@bücher.example").unwrap().domain().as_str(), "xn--bcher-kva.example");
        assert_eq!(Address::parse("\"a@c\"@b.example").unwrap().local(), "\"a@c\"");
        assert_eq!(Address::parse("\"a\"@b.example").unwrap().lookup_key(), "a@b.example");
    }

    #[test]
    fn refuses_what_could_break_a_line_or_name_two_hosts() {
        for bad in [
            "a@b@c.example",
            "\"a\rb\"@b.example",
            "a b@c.example",
            "a@127.0.0.1",
            "a@[]",
            "@b.example",
            "a@",
            ".a@b.example",
            "a@xn--a.example",
            "a@XN--A.example",
        ] {
            assert!(Address::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn source_routes_are_dropped() {
        assert_eq!(parse_bracketed("<@r1.example,@r2.example:a@b.example>").unwrap().to_string(), "a@b.example");
        assert!(parse_bracketed("<@r.example:>").is_err());
    }
}
