//! Macro strings (RFC 7208 7): parsed once, expanded for a domain name or for an explanation.
//!
//! Promises: what the grammar does not allow is an error before anything is asked of DNS; a name
//! never grows beyond what DNS takes, nor a text beyond its bound, whatever the macros hold. Whether
//! an expanded name can be asked for is the caller's to find out with [`is_name`].

use std::borrow::Cow;
use std::fmt::Write;
use std::net::IpAddr;

use super::record::SyntaxError;

/// Right-hand parts that a macro may ask for: labels of the longest domain name (RFC 7208 7.3).
const PARTS_MAX: usize = 127;
/// Octets of a domain name in its text form (RFC 7208 7.3).
const NAME_BYTES_MAX: usize = 253;
/// Octets of a label (RFC 1035 2.3.4).
const LABEL_BYTES_MAX: usize = 63;

/// Where a macro string stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Record,
    /// The text that "exp" leads to: spaces and three more letters are allowed there.
    Explanation,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MacroString(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    /// `%%`, `%_` or `%-`.
    Fixed(&'static str),
    Macro(Macro),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Macro {
    /// Lower-case.
    letter: char,
    /// It was written in upper case: the value is URL-escaped.
    escape: bool,
    parts: usize,
    reverse: bool,
    delimiters: String,
}

/// What the letters stand for.
pub(super) struct Values<'a> {
    pub local: &'a str,
    pub sender_domain: &'a str,
    pub domain: &'a str,
    pub client: IpAddr,
    /// A validated name of the client, or "unknown". Only looked at if [`MacroString::asks_for_p`].
    pub validated: &'a str,
    pub helo: &'a str,
    pub receiver: &'a str,
    /// Seconds since 1970.
    pub now: u64,
}

impl MacroString {
    /// `macro-string`; in an explanation `explain-string` (RFC 7208 7.1).
    pub fn parse(text: &str, place: Place) -> Result<MacroString, SyntaxError> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let Some(after) = rest.strip_prefix('%') else {
                let (literal, behind) = rest.split_at(rest.find('%').unwrap_or(rest.len()));
                let allowed = |c: char| matches!(c, '!'..='~') || (c == ' ' && place == Place::Explanation);
                if !literal.chars().all(allowed) {
                    return Err(SyntaxError("a character that is not allowed"));
                }
                pieces.push(Piece::Literal(literal.to_owned()));
                rest = behind;
                continue;
            };
            let (piece, length) = match after.as_bytes().first() {
                Some(b'%') => (Piece::Fixed("%"), 1),
                Some(b'_') => (Piece::Fixed(" "), 1),
                Some(b'-') => (Piece::Fixed("%20"), 1),
                Some(b'{') => {
                    let inner = after.get(1..).and_then(|inner| inner.split_once('}')).map(|(inner, _)| inner);
                    let inner = inner.ok_or(SyntaxError("a macro that does not end"))?;
                    (Piece::Macro(Macro::parse(inner, place)?), inner.len() + 2)
                }
                _ => return Err(SyntaxError("a percent sign that begins no macro")),
            };
            pieces.push(piece);
            rest = after.get(length..).unwrap_or_default();
        }
        Ok(MacroString(pieces))
    }

    /// `domain-spec`: ends in a macro or in a dot and a label that may be the last one.
    pub fn parse_domain(text: &str) -> Result<MacroString, SyntaxError> {
        let parsed = MacroString::parse(text, Place::Record)?;
        let ends_well = match parsed.0.last() {
            None => return Err(SyntaxError("no domain where one is needed")),
            Some(Piece::Literal(literal)) => {
                let literal = literal.strip_suffix('.').unwrap_or(literal);
                literal.rsplit_once('.').is_some_and(|(_, last)| is_top_label(last))
            }
            Some(Piece::Fixed(_) | Piece::Macro(_)) => true,
        };
        if ends_well { Ok(parsed) } else { Err(SyntaxError("a domain with a last label that none can have")) }
    }

    pub fn asks_for_p(&self) -> bool {
        self.0.iter().any(|piece| matches!(piece, Piece::Macro(Macro { letter: 'p', .. })))
    }

    /// As a domain name: without a final dot, labels removed from the left until it fits. From the right, because
    /// only what fits is kept.
    pub fn expand_name(&self, values: &Values<'_>) -> String {
        let mut pieces = Vec::new();
        let mut length = 0;
        for piece in self.0.iter().rev() {
            let text = piece.expand(values);
            length += text.len();
            pieces.push(text);
            // One more for a final dot.
            if length > NAME_BYTES_MAX + 1 {
                break;
            }
        }
        pieces.reverse();
        let whole = pieces.concat();
        let mut name = whole.strip_suffix('.').unwrap_or(&whole);
        while name.len() > NAME_BYTES_MAX {
            let Some((_, shorter)) = name.split_once('.') else { break };
            name = shorter;
        }
        name.to_owned()
    }

    /// As a text that may be shown in a reply: printable ASCII, no longer than `bytes_max`.
    pub fn expand_text(&self, values: &Values<'_>, bytes_max: usize) -> String {
        let mut text = String::new();
        for piece in &self.0 {
            let printable = piece.expand(values);
            let room = bytes_max - text.len();
            text.extend(printable.chars().take(room).map(|c| if matches!(c, ' '..='~') { c } else { '?' }));
            if text.len() >= bytes_max {
                break;
            }
        }
        text
    }
}

impl Piece {
    fn expand<'a>(&'a self, values: &Values<'_>) -> Cow<'a, str> {
        match self {
            Piece::Literal(literal) => Cow::Borrowed(literal),
            Piece::Fixed(fixed) => Cow::Borrowed(fixed),
            Piece::Macro(inner) => Cow::Owned(inner.expand(values)),
        }
    }
}

impl Macro {
    /// What stands between the braces: a letter, digits, "r", delimiters.
    fn parse(inner: &str, place: Place) -> Result<Macro, SyntaxError> {
        let mut chars = inner.chars();
        let letter = chars.next().ok_or(SyntaxError("a macro without a letter"))?;
        let lower = letter.to_ascii_lowercase();
        let known = match lower {
            's' | 'l' | 'o' | 'd' | 'i' | 'p' | 'v' | 'h' => true,
            'c' | 'r' | 't' => place == Place::Explanation,
            _ => false,
        };
        if !known {
            return Err(SyntaxError("a macro letter that is not allowed"));
        }
        let rest = chars.as_str();
        let (digits, rest) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        let parts = match digits {
            "" => PARTS_MAX,
            digits => digits
                .parse()
                .ok()
                .filter(|parts| (1..=PARTS_MAX).contains(parts))
                .ok_or(SyntaxError("a macro that asks for no part or for more than a name has"))?,
        };
        let delimiters = rest.strip_prefix(['r', 'R']);
        let reverse = delimiters.is_some();
        let delimiters = delimiters.unwrap_or(rest);
        if !delimiters.chars().all(|c| ".-+,/_=".contains(c)) {
            return Err(SyntaxError("a macro with something else than delimiters at its end"));
        }
        let delimiters = if delimiters.is_empty() { "." } else { delimiters };
        Ok(Macro { letter: lower, escape: letter != lower, parts, reverse, delimiters: delimiters.to_owned() })
    }

    fn expand(&self, values: &Values<'_>) -> String {
        let value = self.value(values);
        let mut parts: Vec<&str> = value.split(|c| self.delimiters.contains(c)).collect();
        if self.reverse {
            parts.reverse();
        }
        let kept = parts.get(parts.len().saturating_sub(self.parts)..).unwrap_or_default().join(".");
        if self.escape { escaped(&kept) } else { kept }
    }

    fn value<'a>(&self, values: &'a Values<'_>) -> Cow<'a, str> {
        match self.letter {
            's' => Cow::Owned(format!("{}@{}", values.local, values.sender_domain)),
            'l' => Cow::Borrowed(values.local),
            'o' => Cow::Borrowed(values.sender_domain),
            'd' => Cow::Borrowed(values.domain),
            'i' => Cow::Owned(dotted(values.client)),
            'p' => Cow::Borrowed(values.validated),
            'v' if values.client.is_ipv4() => Cow::Borrowed("in-addr"),
            'v' => Cow::Borrowed("ip6"),
            'h' => Cow::Borrowed(values.helo),
            'c' => Cow::Owned(values.client.to_string()),
            'r' => Cow::Borrowed(values.receiver),
            't' => Cow::Owned(values.now.to_string()),
            _ => Cow::Borrowed(""),
        }
    }
}

/// `%{i}`: an IPv6 address as its 32 hexadecimal digits between dots.
fn dotted(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => {
            let digits: Vec<String> = format!("{:032X}", u128::from(v6)).chars().map(String::from).collect();
            digits.join(".")
        }
    }
}

/// All that is not "unreserved" (RFC 3986 2.3).
fn escaped(value: &str) -> String {
    let mut text = String::new();
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(byte)),
            // Writing to a string does not fail.
            _ => drop(write!(text, "%{byte:02X}")),
        }
    }
    text
}

/// `toplabel`: letters, digits and inner hyphens, not digits alone.
fn is_top_label(label: &str) -> bool {
    let end = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = label.as_bytes();
    end(bytes.first())
        && end(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        && bytes.iter().any(|b| !b.is_ascii_digit())
}

/// Can it be asked for in DNS? An expanded local part with other than ASCII cannot (RFC 8616 4).
pub(super) fn is_name(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX
        && name.is_ascii()
        && name.split('.').all(|label| (1..=LABEL_BYTES_MAX).contains(&label.len()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn values(client: &str) -> Values<'static> {
        Values {
            local: "strong-bad",
            sender_domain: "email.example.com",
            domain: "email.example.com",
            client: client.parse().unwrap(),
            validated: "mx.example.org",
            helo: "helo.example.org",
            receiver: "mail.own.test",
            now: 1_795_300_017,
        }
    }

    fn name(text: &str, client: &str) -> String {
        MacroString::parse(text, Place::Record).unwrap().expand_name(&values(client))
    }

    fn text(text: &str) -> String {
        MacroString::parse(text, Place::Explanation).unwrap().expand_text(&values("192.0.2.3"), 100)
    }

    /// RFC 7208 7.4, all of it.
    #[test]
    fn the_examples_of_the_rfc() {
        for (macros, expected) in [
            ("%{s}", "strong-bad@email.example.com"),
            ("%{o}", "email.example.com"),
            ("%{d}", "email.example.com"),
            ("%{d4}", "email.example.com"),
            ("%{d3}", "email.example.com"),
            ("%{d2}", "example.com"),
            ("%{d1}", "com"),
            ("%{dr}", "com.example.email"),
            ("%{d2r}", "example.email"),
            ("%{l}", "strong-bad"),
            ("%{l-}", "strong.bad"),
            ("%{lr}", "strong-bad"),
            ("%{lr-}", "bad.strong"),
            ("%{l1r-}", "strong"),
            ("%{ir}.%{v}._spf.%{d2}", "3.2.0.192.in-addr._spf.example.com"),
            ("%{lr-}.lp._spf.%{d2}", "bad.strong.lp._spf.example.com"),
            ("%{lr-}.lp.%{ir}.%{v}._spf.%{d2}", "bad.strong.lp.3.2.0.192.in-addr._spf.example.com"),
            ("%{ir}.%{v}.%{l1r-}.lp._spf.%{d2}", "3.2.0.192.in-addr.strong.lp._spf.example.com"),
            ("%{d2}.trusted-domains.example.net", "example.com.trusted-domains.example.net"),
        ] {
            assert_eq!(name(macros, "192.0.2.3"), expected, "{macros}");
        }
        // The RFC prints this one in lower case; DNS does not care, and the published tests want upper case.
        let v6 = name("%{ir}.%{v}._spf.%{d2}", "2001:db8::cb01").to_ascii_lowercase();
        assert_eq!(v6, "1.0.b.c.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6._spf.example.com");
    }

    #[test]
    fn the_other_letters() {
        assert_eq!(
            text("%{c} %{r} %{t} %{h} %{p} %%%_%-"),
            "192.0.2.3 mail.own.test 1795300017 helo.example.org mx.example.org % %20"
        );
        assert_eq!(text("%{S}"), "strong-bad%40email.example.com");
        assert_eq!(text("%{D1R}"), "email");
        assert_eq!(text("%{l127r+-}"), "bad.strong");
        assert_eq!(text("%{c}."), "192.0.2.3.", "a final dot of a text stays");
    }

    #[test]
    fn what_the_grammar_does_not_allow_is_an_error() {
        for bad in [
            "%",
            "a%",
            "%a",
            "%(d)",
            "%{",
            "%{d",
            "%{}",
            "%{x}",
            "%{d0}",
            "%{d00}",
            "%{d128}",
            "%{d99999999999999999999}",
            "%{d-1}",
            "%{dr2}",
            "%{drr}",
            "%{d:}",
            "%{ d}",
            "%{c}",
            "%{R}",
            "%{t}",
            "a b",
            "\u{7f}",
            "\t",
            "é",
        ] {
            assert!(MacroString::parse(bad, Place::Record).is_err(), "{bad:?}");
        }
        for bad in ["", ".", "a", "a.", "com", "a.1", "a.-a", "a.a-", "a..", "%{d}.", "%{d}com", "a.b/c", "a.b:1"] {
            assert!(MacroString::parse_domain(bad).is_err(), "{bad:?}");
        }
        for good in ["a.b", "a.b.", ".b", "a..b", "a.1-1", "a.xn--zckzah", "%{d}", "a%%", "%{d}.b", "a:b/c.d", "!$&.x1"]
        {
            assert!(MacroString::parse_domain(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn long_names_lose_labels_from_the_left_and_long_texts_their_end() {
        let long = "%{d}.".repeat(100_000) + "example.org.";
        let name = name(&long, "192.0.2.3");
        assert!(name.ends_with(".email.example.com.example.org"), "{name}");
        assert!(name.starts_with("com.") || name.starts_with("example.") || name.starts_with("email."), "{name}");
        assert!((253 - "example.com".len()..=253).contains(&name.len()), "{}", name.len());
        assert!(is_name(&name));
        let text = text(&"%{s} \u{20}".repeat(1000));
        assert_eq!(text.len(), 100);
    }

    #[test]
    fn names_that_cannot_be_asked_for() {
        let label = "a".repeat(64);
        for bad in ["", ".", "a.", ".a", "a..b", "ä.test", label.as_str(), &"a.".repeat(127)] {
            assert!(!is_name(bad), "{bad:?}");
        }
        for good in ["a", "a.b", "a b.%20:/.c", &label[..63], &"a.".repeat(127)[..253]] {
            assert!(is_name(good), "{good:?}");
        }
    }
}
