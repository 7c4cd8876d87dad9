//! The record (RFC 7208 4.5, 4.6 and 12): every syntax error, wherever it stands, makes all of it an error.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::SpfResult;
use super::macros::{MacroString, Place};

const VERSION: &str = "v=spf1";
const IP4_BITS: u8 = 32;
const IP6_BITS: u8 = 128;

/// What is wrong with a record, in words of our own that may stand in a header comment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError(pub &'static str);

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub directives: Vec<Directive>,
    pub redirect: Option<MacroString>,
    pub explanation: Option<MacroString>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Directive {
    /// Of the check, if the mechanism matches.
    pub result: SpfResult,
    pub mechanism: Mechanism,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Mechanism {
    All,
    Include(MacroString),
    /// Without a domain: the one whose record this is.
    A(Option<MacroString>, Prefixes),
    Mx(Option<MacroString>, Prefixes),
    Ptr(Option<MacroString>),
    Ip4(Ipv4Addr, u8),
    Ip6(Ipv6Addr, u8),
    Exists(MacroString),
}

/// `dual-cidr-length`: how many bits of an address count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefixes {
    pub ip4: u8,
    pub ip6: u8,
}

impl Prefixes {
    /// Are both in the same network, by the length that goes with their family?
    pub fn contain(self, network: IpAddr, client: IpAddr) -> bool {
        match (network, client) {
            (IpAddr::V4(network), IpAddr::V4(client)) => same_ip4(network, client, self.ip4),
            (IpAddr::V6(network), IpAddr::V6(client)) => same_ip6(network, client, self.ip6),
            _ => false,
        }
    }
}

pub(super) fn same_ip4(a: Ipv4Addr, b: Ipv4Addr, bits: u8) -> bool {
    let differs = u32::from(a) ^ u32::from(b);
    differs.checked_shr(u32::from(IP4_BITS.saturating_sub(bits))).unwrap_or(0) == 0
}

pub(super) fn same_ip6(a: Ipv6Addr, b: Ipv6Addr, bits: u8) -> bool {
    let differs = u128::from(a) ^ u128::from(b);
    differs.checked_shr(u32::from(IP6_BITS.saturating_sub(bits))).unwrap_or(0) == 0
}

/// RFC 7208 4.5: the version, then a space or nothing.
pub(super) fn is_record(octets: &[u8]) -> bool {
    let version = octets.get(..VERSION.len()).is_some_and(|head| head.eq_ignore_ascii_case(VERSION.as_bytes()));
    version && matches!(octets.get(VERSION.len()), None | Some(b' '))
}

/// A text for which [`is_record`] holds.
pub(super) fn parse(octets: &[u8]) -> Result<Record, SyntaxError> {
    let text = std::str::from_utf8(octets).ok().filter(|text| text.bytes().all(|b| matches!(b, b' '..=b'~')));
    let text = text.ok_or(SyntaxError("a character outside printable ASCII"))?;
    let mut record = Record { directives: Vec::new(), redirect: None, explanation: None };
    for term in text.get(VERSION.len()..).unwrap_or_default().split(' ').filter(|term| !term.is_empty()) {
        parse_term(term, &mut record)?;
    }
    Ok(record)
}

fn parse_term(term: &str, record: &mut Record) -> Result<(), SyntaxError> {
    let (result, rest) = match term.as_bytes().first() {
        Some(b'+') => (Some(SpfResult::Pass), term.get(1..)),
        Some(b'-') => (Some(SpfResult::Fail), term.get(1..)),
        Some(b'~') => (Some(SpfResult::SoftFail), term.get(1..)),
        Some(b'?') => (Some(SpfResult::Neutral), term.get(1..)),
        _ => (None, Some(term)),
    };
    let rest = rest.unwrap_or_default();
    let of_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let (name, tail) = rest.split_at(rest.find(|c| !of_a_name(c)).unwrap_or(rest.len()));
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Err(SyntaxError("a term without a name"));
    }
    let name = name.to_ascii_lowercase();
    match (tail.strip_prefix('='), result) {
        (Some(value), None) => parse_modifier(&name, value, record),
        (Some(_), Some(_)) => Err(SyntaxError("a qualifier before a modifier")),
        (None, result) => {
            let mechanism = parse_mechanism(&name, tail)?;
            record.directives.push(Directive { result: result.unwrap_or(SpfResult::Pass), mechanism });
            Ok(())
        }
    }
}

fn parse_modifier(name: &str, value: &str, record: &mut Record) -> Result<(), SyntaxError> {
    let place = match name {
        "redirect" => &mut record.redirect,
        "exp" => &mut record.explanation,
        // RFC 7208 6: ignored, but its value has to be a macro string.
        _ => return MacroString::parse(value, Place::Record).map(|_| ()),
    };
    if place.is_some() {
        return Err(SyntaxError("a modifier that stands there twice"));
    }
    *place = Some(MacroString::parse_domain(value)?);
    Ok(())
}

/// `tail` is what follows the name.
fn parse_mechanism(name: &str, tail: &str) -> Result<Mechanism, SyntaxError> {
    match name {
        "all" if tail.is_empty() => Ok(Mechanism::All),
        "all" => Err(SyntaxError("\"all\" with an argument")),
        "include" => Ok(Mechanism::Include(needed_domain(tail)?)),
        "exists" => Ok(Mechanism::Exists(needed_domain(tail)?)),
        "ptr" => Ok(Mechanism::Ptr(optional_domain(tail)?)),
        "a" => with_prefixes(tail).map(|(domain, prefixes)| Mechanism::A(domain, prefixes)),
        "mx" => with_prefixes(tail).map(|(domain, prefixes)| Mechanism::Mx(domain, prefixes)),
        "ip4" => {
            let (network, bits) = network(tail, IP4_BITS)?;
            // The standard parser takes no leading zeros, as the grammar wants it.
            let network = network.parse().map_err(|_| SyntaxError("\"ip4\" with something else than an address"))?;
            Ok(Mechanism::Ip4(network, bits))
        }
        "ip6" => {
            let (network, bits) = network(tail, IP6_BITS)?;
            let network = network.parse().map_err(|_| SyntaxError("\"ip6\" with something else than an address"))?;
            Ok(Mechanism::Ip6(network, bits))
        }
        _ => Err(SyntaxError("a mechanism that is not known")),
    }
}

fn needed_domain(tail: &str) -> Result<MacroString, SyntaxError> {
    let domain = tail.strip_prefix(':').ok_or(SyntaxError("a mechanism without its domain"))?;
    MacroString::parse_domain(domain)
}

fn optional_domain(tail: &str) -> Result<Option<MacroString>, SyntaxError> {
    if tail.is_empty() { Ok(None) } else { needed_domain(tail).map(Some) }
}

/// `[ ":" domain-spec ] [ dual-cidr-length ]`. A domain may hold slashes and digits, but not end in
/// them, so the lengths are what stands at the very end.
fn with_prefixes(tail: &str) -> Result<(Option<MacroString>, Prefixes), SyntaxError> {
    let mut prefixes = Prefixes { ip4: IP4_BITS, ip6: IP6_BITS };
    let mut rest = tail;
    if let Some((before, digits)) = final_digits(rest)
        && let Some(before) = before.strip_suffix("//")
    {
        prefixes.ip6 = bits(digits, IP6_BITS)?;
        rest = before;
    }
    if let Some((before, digits)) = final_digits(rest)
        && let Some(before) = before.strip_suffix('/')
    {
        prefixes.ip4 = bits(digits, IP4_BITS)?;
        rest = before;
    }
    Ok((optional_domain(rest)?, prefixes))
}

fn final_digits(text: &str) -> Option<(&str, &str)> {
    let digits = text.bytes().rev().take_while(u8::is_ascii_digit).count();
    (digits > 0).then(|| text.split_at(text.len() - digits))
}

/// `":" network [ "/" length ]`.
fn network(tail: &str, bits_max: u8) -> Result<(&str, u8), SyntaxError> {
    let network = tail.strip_prefix(':').ok_or(SyntaxError("a mechanism without its address"))?;
    match network.split_once('/') {
        Some((network, digits)) => Ok((network, bits(digits, bits_max)?)),
        None => Ok((network, bits_max)),
    }
}

/// Without leading zeros, and no more than the address has.
fn bits(digits: &str, bits_max: u8) -> Result<u8, SyntaxError> {
    let plain = digits == "0" || (!digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit()));
    let value = digits.parse().ok().filter(|bits| plain && *bits <= bits_max);
    value.ok_or(SyntaxError("a network length that is none"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn mechanisms(text: &str) -> Vec<Mechanism> {
        parse(text.as_bytes()).unwrap().directives.into_iter().map(|directive| directive.mechanism).collect()
    }

    #[test]
    fn only_the_version_and_a_space_make_a_record() {
        for yes in ["v=spf1", "V=SPF1 ", "v=spf1 -all", "v=spf1  a"] {
            assert!(is_record(yes.as_bytes()), "{yes:?}");
        }
        for no in ["", "v=spf", "v=spf10", "v=spf1\t-all", " v=spf1", "v=spf1-all", "v=spf2 a", "\"v=spf1 -all\""] {
            assert!(!is_record(no.as_bytes()), "{no:?}");
        }
    }

    #[test]
    fn lengths_stand_at_the_end() {
        let domain = |text| Some(MacroString::parse_domain(text).unwrap());
        let prefixes = |ip4, ip6| Prefixes { ip4, ip6 };
        assert_eq!(
            mechanisms("v=spf1 a a/0 a//0 a/24//64 mx:x.y/8 a:x/24.y a:%{d/}//7 mx:%{d}"),
            [
                Mechanism::A(None, prefixes(32, 128)),
                Mechanism::A(None, prefixes(0, 128)),
                Mechanism::A(None, prefixes(32, 0)),
                Mechanism::A(None, prefixes(24, 64)),
                Mechanism::Mx(domain("x.y"), prefixes(8, 128)),
                Mechanism::A(domain("x/24.y"), prefixes(32, 128)),
                Mechanism::A(domain("%{d/}"), prefixes(32, 7)),
                Mechanism::Mx(domain("%{d}"), prefixes(32, 128)),
            ]
        );
    }

    #[test]
    fn every_syntax_error_counts() {
        for bad in [
            "a/33",
            "a/00",
            "a/032",
            "a/-1",
            "a/",
            "a//",
            "a//129",
            "a/24/64",
            "a/24//",
            "a:",
            "a:/24",
            "a:x.y/",
            "a:x.y/33",
            "mx/1/1",
            "mx:x/24",
            "ip4",
            "ip4:",
            "ip4:1.2.3",
            "ip4:1.2.3.4/33",
            "ip4:1.2.3.4/032",
            "ip4:1.2.3.4//32",
            "ip4:1.2.3.4/",
            "ip4:01.2.3.4",
            "ip4:1.2.3.256",
            "ip4:1.2.3.4:25",
            "ip4/8",
            "ip4:::1",
            "ip6:1.2.3.4",
            "ip6:::1/129",
            "ip6:::1/00",
            "ip6:::1//1",
            "ip6::CAFE::BABE",
            "ip6:fe80::1%1",
            "ip6:[::1]",
            "all:x.y",
            "all/8",
            "all.",
            "+",
            "-",
            "--all",
            "?-all",
            "include",
            "include:",
            "include:x.y/8",
            "exists",
            "exists:x.y/8",
            "ptr/8",
            "ptr:",
            "moo",
            "moo:x.y",
            "ip:1.2.3.4",
            "redirect:x.y",
            "redirect=",
            "exp=",
            "exp=-all",
            "exp=%{r}.x",
            "redirect=x.y redirect=x.y",
            "exp=x.y EXP=x.y",
            "-redirect=x.y",
            "1up=x",
            "=x",
            "x=%a",
            "x=%{c}",
            "_x=y",
            "a\tmx",
            "a:\u{e9}.x",
            "\0",
            "a\u{7f}",
            "x.y",
        ] {
            assert!(parse(format!("v=spf1 a {bad} -all").as_bytes()).is_err(), "{bad:?}");
        }
        assert!(parse(b"v=spf1 \xff").is_err());
    }

    #[test]
    fn what_is_unusual_but_right_is_taken() {
        for good in [
            "",
            "   ",
            "A MX Ptr ALL",
            "ip6:::ffff:1.2.3.4/96",
            "ip6:1::/0",
            "ip4:0.0.0.0/0",
            "moo.cow-far_out=man:dog/cat",
            "x=",
            "x= x=",
            "ip4=1.2.3.4",
            "Redirect=x.y EXP=x.y",
            "a:x.y a:x.y",
            "all all",
            "exists:%{I-}%_%%x.%{o} ",
        ] {
            assert!(parse(format!("v=spf1 {good}").as_bytes()).is_ok(), "{good:?}");
        }
        let record = parse(b"v=spf1 +a -a ~a ?a a").unwrap();
        let results: Vec<SpfResult> = record.directives.iter().map(|directive| directive.result).collect();
        use SpfResult::{Fail, Neutral, Pass, SoftFail};
        assert_eq!(results, [Pass, Fail, SoftFail, Neutral, Pass]);
    }

    #[test]
    fn networks() {
        let both = Prefixes { ip4: 24, ip6: 33 };
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(both.contain(ip("192.0.2.1"), ip("192.0.2.255")));
        assert!(!both.contain(ip("192.0.2.1"), ip("192.0.3.1")));
        assert!(both.contain(ip("2001:db8:8000::"), ip("2001:db8:ffff::1")));
        assert!(!both.contain(ip("2001:db8:8000::"), ip("2001:db8:7fff::1")));
        assert!(!both.contain(ip("::ffff:192.0.2.1"), ip("192.0.2.1")));
        let all = Prefixes { ip4: 0, ip6: 0 };
        assert!(all.contain(ip("1.1.1.1"), ip("255.0.0.1")) && all.contain(ip("::"), ip("ffff::")));
        let one = Prefixes { ip4: 32, ip6: 128 };
        assert!(!one.contain(ip("1.1.1.1"), ip("1.1.1.0")) && !one.contain(ip("::1"), ip("::")));
    }
}
