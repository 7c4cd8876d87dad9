//! A DMARC policy record (RFC 9989 4.7, 4.8): `v=DMARC1; p=reject; rua=mailto:d@example.com`.
//!
//! Unknown tags, and those that RFC 9989 has dropped (pct, rf, ri), are passed over; a value that is
//! not one of those allowed is as good as its default, except for p, sp and np, where it matters that
//! the domain meant something (4.10.1). Of a tag given twice the first counts.

use super::Policy;
use crate::message::Address;

/// Report addresses taken from a record.
const ADDRESSES_MAX: usize = 4;
/// Tags looked at in a record.
const TAGS_MAX: usize = 64;

/// What a request tag (p, sp, np) says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Request {
    #[default]
    Absent,
    Is(Policy),
    Unreadable,
}

/// The psd tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Psd {
    Yes,
    No,
    #[default]
    Unknown,
}

/// Where reports may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    pub address: Address,
    /// Reports of more bytes are not for it.
    pub max_bytes: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    p: Request,
    sp: Request,
    np: Request,
    pub psd: Psd,
    /// t=y: the policy is only tried out.
    pub testing: bool,
    pub adkim_strict: bool,
    pub aspf_strict: bool,
    /// As written, if it is legal.
    pub fo: Option<String>,
    /// It asks for reports, at an address of whatever kind.
    pub wants_reports: bool,
    /// The mail addresses among them.
    pub destinations: Vec<Destination>,
}

impl Record {
    /// None: this TXT record is not of DMARC's version 1.
    pub fn parse(text: &str) -> Option<Record> {
        let mut tags = text.split(';').take(TAGS_MAX).filter_map(|tag| {
            let (name, value) = tag.split_once('=')?;
            Some((name.trim_matches([' ', '\t']), value.trim_matches([' ', '\t'])))
        });
        // The version comes first, and only it is compared with its case (4.8).
        let (name, version) = tags.next().filter(|_| text.trim_start().starts_with(['v', 'V']))?;
        if !name.eq_ignore_ascii_case("v") || version != "DMARC1" {
            return None;
        }
        let mut record = Record::default();
        let mut seen: Vec<String> = Vec::new();
        for (name, value) in tags {
            let name = name.to_ascii_lowercase();
            if !seen.contains(&name) {
                record.set(&name, value);
                seen.push(name);
            }
        }
        Some(record)
    }

    fn set(&mut self, name: &str, value: &str) {
        let word = value.to_ascii_lowercase();
        match name {
            "p" => self.p = Request::parse(&word),
            "sp" => self.sp = Request::parse(&word),
            "np" => self.np = Request::parse(&word),
            "psd" if word == "y" => self.psd = Psd::Yes,
            "psd" if word == "n" => self.psd = Psd::No,
            "t" => self.testing = word == "y",
            "adkim" => self.adkim_strict = word == "s",
            "aspf" => self.aspf_strict = word == "s",
            "fo" if is_fo(&word) => self.fo = Some(word),
            "rua" => self.read_uris(value),
            _ => {}
        }
    }

    fn read_uris(&mut self, value: &str) {
        for uri in value.split(',').map(|uri| uri.trim_matches([' ', '\t'])) {
            let Some((scheme, rest)) = uri.split_once(':') else { continue };
            let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
            if !is_scheme || rest.is_empty() || !rest.bytes().all(|b| b.is_ascii_graphic()) {
                continue;
            }
            if !scheme.eq_ignore_ascii_case("mailto") {
                self.wants_reports = true;
                continue;
            }
            let Some(destination) = Destination::parse(rest) else { continue };
            self.wants_reports = true;
            if self.destinations.len() >= ADDRESSES_MAX {
                return;
            }
            self.destinations.push(destination);
        }
    }

    /// The policies for the domain itself, for what is below it, and for what is below it and is not
    /// there (4.10.1). None: the record is no use, and DMARC does not apply.
    pub fn policies(&self) -> Option<Policies> {
        let legal =
            matches!(self.p, Request::Is(_)) && self.sp != Request::Unreadable && self.np != Request::Unreadable;
        if !legal {
            let none = Policies { p: Policy::None, sp: Policy::None, np: Policy::None };
            return self.wants_reports.then_some(none);
        }
        let p = self.p.or(Policy::None);
        let sp = self.sp.or(p);
        Some(Policies { p, sp, np: self.np.or(sp) })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policies {
    pub p: Policy,
    pub sp: Policy,
    pub np: Policy,
}

impl Request {
    fn parse(word: &str) -> Request {
        match word {
            "none" => Request::Is(Policy::None),
            "quarantine" => Request::Is(Policy::Quarantine),
            "reject" => Request::Is(Policy::Reject),
            _ => Request::Unreadable,
        }
    }

    fn or(self, default: Policy) -> Policy {
        match self {
            Request::Is(policy) => policy,
            Request::Absent | Request::Unreadable => default,
        }
    }
}

impl Destination {
    /// What follows `mailto:`, perhaps with a size limit behind an exclamation mark as in RFC 7489 6.2.
    fn parse(rest: &str) -> Option<Destination> {
        let (rest, max_bytes) = match rest.rsplit_once('!') {
            Some((rest, size)) => (rest, Some(size_of(size)?)),
            None => (rest, None),
        };
        let address = Address::parse(&unescape(rest.split('?').next().unwrap_or_default())?).ok()?;
        // A report to an address literal could never be agreed to in DNS.
        let named = address.domain().literal().is_none();
        named.then_some(Destination { address, max_bytes })
    }
}

fn size_of(text: &str) -> Option<u64> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
    Some(number.saturating_mul(1 << shift))
}

/// Percent-encoding of RFC 3986 2.1; none where it does not give plain text.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).ok()
}

/// RFC 9989 4.8.
fn is_fo(word: &str) -> bool {
    word.split(':').all(|option| matches!(option, "0" | "1" | "d" | "s")) && word.len() <= 7
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn policies(text: &str) -> Option<(Policy, Policy, Policy)> {
        Record::parse(text)?.policies().map(|found| (found.p, found.sp, found.np))
    }

    #[test]
    fn policies_fall_back_on_each_other() {
        use Policy::{None as Nothing, Quarantine, Reject};
        for (text, expected) in [
            ("v=DMARC1; p=reject", Some((Reject, Reject, Reject))),
            ("v=DMARC1;p=reject;", Some((Reject, Reject, Reject))),
            ("V = DMARC1 ; P = Reject ; sp=none", Some((Reject, Nothing, Nothing))),
            ("v=DMARC1; p=none; np=reject", Some((Nothing, Nothing, Reject))),
            ("v=DMARC1; p=quarantine; sp=none; np=reject", Some((Quarantine, Nothing, Reject))),
            ("v=DMARC1; p=reject; p=none", Some((Reject, Reject, Reject))),
            ("v=DMARC1; p=reject; pct=0; ri=1; rf=x; unknown=y; junk", Some((Reject, Reject, Reject))),
            // Something is wrong with what was asked for: nothing is enforced, and reports tell of it.
            ("v=DMARC1; rua=mailto:d@a.test", Some((Nothing, Nothing, Nothing))),
            ("v=DMARC1; p=rejet; rua=mailto:d@a.test", Some((Nothing, Nothing, Nothing))),
            ("v=DMARC1; p=reject; sp=x; rua=https://a.test/", Some((Nothing, Nothing, Nothing))),
            ("v=DMARC1; p=reject; np=; rua=mailto:d@a.test", Some((Nothing, Nothing, Nothing))),
            ("v=DMARC1; p=reject; sp=x; rua=mailto:nobody", None),
            ("v=DMARC1; p=reject; sp=x", None),
            ("v=DMARC1", None),
            ("v=DMARC2; p=reject", None),
            ("v=dmarc1; p=reject", None),
            ("p=reject; v=DMARC1", None),
            (" p=reject", None),
            ("v=DMARC1 p=reject", None),
            ("", None),
        ] {
            assert_eq!(policies(text), expected, "{text:?}");
        }
    }

    #[test]
    fn modes_have_defaults() {
        let plain = Record::parse("v=DMARC1; p=none; adkim=x; aspf=; psd=z; t=maybe; fo=2").unwrap();
        assert!(!plain.adkim_strict && !plain.aspf_strict && !plain.testing);
        assert_eq!((plain.psd, plain.fo), (Psd::Unknown, None));
        let other = Record::parse("v=DMARC1; p=none; adkim=S; aspf=s; psd=Y; t=y; fo=1:d:s").unwrap();
        assert!(other.adkim_strict && other.aspf_strict && other.testing);
        assert_eq!((other.psd, other.fo.as_deref()), (Psd::Yes, Some("1:d:s")));
    }

    proptest::proptest! {
        #[test]
        fn whatever_it_holds_it_is_read(tags in "[a-z=;:!,%@. \\PC]{0,200}") {
            for text in [tags.clone(), format!("v=DMARC1;{tags}"), format!("v=DMARC1; p=none; rua=mailto:{tags}")] {
                if let Some(record) = Record::parse(&text) {
                    proptest::prop_assert!(record.destinations.len() <= ADDRESSES_MAX);
                    proptest::prop_assert!(record.wants_reports || record.destinations.is_empty());
                }
            }
        }
    }

    #[test]
    fn only_a_few_report_addresses_are_taken() {
        let record = |rua: &str| Record::parse(&format!("v=DMARC1; p=none; rua={rua}")).unwrap();
        let read = |rua: &str| {
            let shown = |found: &Destination| (found.address.to_string(), found.max_bytes);
            record(rua).destinations.iter().map(shown).collect::<Vec<_>>()
        };
        assert_eq!(
            read("mailto:a@b.test!10m, MAILTO:c%2Bd@b.test?subject=x"),
            [("a@b.test".to_owned(), Some(10 << 20)), ("c+d@b.test".to_owned(), None),]
        );
        assert_eq!(read("mailto:a@b.test!10q,mailto:a@[192.0.2.1],mailto:%zz@b.test,b@b.test,ftp:x y"), []);
        let many = (0..1000).map(|n| format!("mailto:a{n}@b.test")).collect::<Vec<_>>().join(",");
        assert_eq!(read(&many).len(), ADDRESSES_MAX);
        assert!(record("https://b.test/r").wants_reports && read("https://b.test/r").is_empty());
        assert!(!record("nothing").wants_reports);
    }
}
