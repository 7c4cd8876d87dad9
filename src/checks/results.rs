//! Authentication-Results (RFC 8601): writing ours, and recognising fields that claim to be ours.
//!
//! Values from the wire stand only where their type cannot break the field: legal domain names,
//! selectors, base64, plain addresses. Comments are words of our own.

use std::net::IpAddr;

use super::arc::{Arc, Excuse};
use super::dkim::Dkim;
use super::dmarc::Dmarc;
use super::dnsbl::{Answer, Dnsbl};
use super::iprev::Iprev;
use super::spf::{Identity, Spf};
use crate::message::header::Headers;
use crate::message::{Address, Domain};

/// What a tab is taken for.
const TAB_BYTES: usize = 8;
/// Bytes of a line without its CRLF (RFC 5322 2.1.1).
const LINE_BYTES_MAX: usize = 78;

/// What there is to tell; what is off is none.
pub(super) struct Found<'a> {
    pub spf: Option<&'a Spf>,
    pub dkim: Option<&'a [Dkim]>,
    pub dmarc: Option<&'a Dmarc>,
    pub arc: Option<&'a Arc>,
    /// Results in words already; they stand behind.
    pub more: Vec<Vec<String>>,
}

/// The value: one result a line, long ones folded between their words. Empty if there is nothing to tell.
pub(super) fn write(hostname: &Domain, found: Found<'_>, excuse: &Excuse, client: Option<IpAddr>) -> String {
    let mut results = Vec::new();
    results.extend(found.spf.map(spf_words));
    match found.dkim {
        Some([]) => results.push(vec!["dkim=none".to_owned()]),
        Some(outcomes) => results.extend(outcomes.iter().map(dkim_words)),
        None => {}
    }
    results.extend(found.arc.and_then(|arc| arc.words(client)));
    results.extend(found.dmarc.map(|dmarc| dmarc_words(dmarc, excuse)));
    results.extend(found.more);
    if results.is_empty() {
        return String::new();
    }
    let mut value = id(hostname);
    for words in results {
        value.push_str(";\r\n\t");
        let mut column = TAB_BYTES;
        for (number, word) in words.iter().enumerate() {
            // One byte is kept for the semicolon.
            if number > 0 && column + 1 + word.len() >= LINE_BYTES_MAX {
                value.push_str("\r\n\t");
                column = TAB_BYTES;
            } else if number > 0 {
                value.push(' ');
                column += 1;
            }
            value.push_str(word);
            column += word.len();
        }
    }
    value
}

/// RFC 8601 2.3; an address literal is no token and needs quotes.
fn id(hostname: &Domain) -> String {
    match hostname.literal() {
        Some(_) => format!("\"{hostname}\""),
        None => hostname.to_string(),
    }
}

fn spf_words(spf: &Spf) -> Vec<String> {
    let mut words = vec![format!("spf={}", spf.result())];
    words.extend(comment(spf.outcome.why));
    match &spf.identity {
        Identity::MailFrom(address) => words.push(format!("smtp.mailfrom={}", plain(address))),
        Identity::Helo(Some(domain)) => words.push(format!("smtp.helo={domain}")),
        Identity::Helo(None) => {}
    }
    words
}

fn dkim_words(dkim: &Dkim) -> Vec<String> {
    let mut words = vec![format!("dkim={}", dkim.result)];
    words.extend(comment(dkim.comment));
    for (name, value) in [("header.d", &dkim.domain), ("header.s", &dkim.selector)] {
        if !value.is_empty() {
            words.push(format!("{name}={value}"));
        }
    }
    match dkim.signature_start.as_str() {
        "" => {}
        // Of base64 these two may not stand in a token (RFC 2045 5.1).
        start if start.contains(['/', '=']) => words.push(format!("header.b=\"{start}\"")),
        start => words.push(format!("header.b={start}")),
    }
    words
}

fn dmarc_words(dmarc: &Dmarc, excuse: &Excuse) -> Vec<String> {
    let mut words = vec![format!("dmarc={}", dmarc.result)];
    match dmarc.policy.text() {
        "" => words.extend(comment(dmarc.comment)),
        policy => words.push(format!("(p={policy})")),
    }
    if let Excuse::By(sealer) = excuse {
        words.push(format!("(accepted: arc=pass, sealed by {sealer})"));
    }
    if !dmarc.domain.is_empty() {
        words.push(format!("header.from={}", dmarc.domain));
    }
    words
}

/// RFC 8601 2.7.3.
pub(super) fn iprev_words(iprev: &Iprev) -> Vec<String> {
    let mut words = vec![format!("iprev={}", iprev.result)];
    words.extend(comment(&iprev.name));
    words.push(format!("policy.iprev={}", address(iprev.client)));
    words
}

/// There is a registered method for lists of the good only (RFC 8904); this is as it, the other way round.
pub(super) fn dnsbl_words(asked: &Dnsbl) -> Vec<String> {
    let mut words = vec![format!("x-dnsbl={}", asked.result())];
    words.extend(comment(match asked.answer {
        Answer::Refused(_) => "the list refuses our questions",
        Answer::Trouble => "the list did not answer",
        Answer::NotListed | Answer::Listed(..) => "",
    }));
    words.push(format!("dns.zone={}", asked.list));
    if let Answer::Listed(code, _) | Answer::Refused(code) = asked.answer {
        words.push(format!("policy.ip={code}"));
    }
    words
}

/// Fields that stand more than once in the header section.
pub(super) fn doubled_words(names: &[&'static str]) -> Option<Vec<String>> {
    let comment = format!("x-header=policy (more than one {})", names.join(", "));
    (!names.is_empty()).then(|| comment.split(' ').map(str::to_owned).collect())
}

/// A colon may not stand in a token (RFC 2045 5.1).
fn address(ip: std::net::IpAddr) -> String {
    if ip.is_ipv6() { format!("\"{ip}\"") } else { ip.to_string() }
}

fn comment(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| format!("({text})"))
}

/// The whole address if its local part is plain, else only the domain.
fn plain(address: &Address) -> String {
    let atext = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~.".contains(&b);
    match (address.domain().literal(), address.local().bytes().all(atext)) {
        (Some(_), _) => format!("\"{}\"", address.domain()),
        (None, true) => address.to_string(),
        (None, false) => address.domain().to_string(),
    }
}

/// Which fields (by number in `headers.fields()`) are Authentication-Results that claim to be by
/// `hostname`. Whoever puts ours in takes these out, because a reader could not tell them apart
/// (RFC 8601 5).
pub fn forged_results(headers: &Headers<'_>, hostname: &Domain) -> Vec<usize> {
    let fields = headers.fields().iter().enumerate();
    fields
        .filter(|(_, field)| field.is("Authentication-Results") && claims(field.value, hostname))
        .map(|(index, _)| index)
        .collect()
}

/// Generous: a reader may be sloppier than the grammar, so what only begins with our name is ours too.
fn claims(value: &[u8], hostname: &Domain) -> bool {
    let text = String::from_utf8_lossy(value);
    let id = first_word(after_comments(&text));
    let id = id.trim_end_matches('.');
    if Domain::parse(id).as_ref() == Ok(hostname) {
        return true;
    }
    let (id, ours) = (id.to_lowercase(), hostname.as_str());
    let next = id.strip_prefix(ours).map(|rest| rest.chars().next());
    match next {
        Some(Some(c)) => !c.is_alphanumeric() && !matches!(c, '-' | '_' | '.'),
        Some(None) => true,
        None => false,
    }
}

/// What follows blanks, line ends and comments (RFC 5322 3.2.2). A comment that does not end hides
/// nothing: then its content is looked at.
fn after_comments(text: &str) -> &str {
    let blank = |c: char| c.is_whitespace() || c.is_control();
    let mut rest = text.trim_start_matches(blank);
    while rest.starts_with('(') {
        let (mut depth, mut escaped, mut end) = (0usize, false, None);
        for (at, c) in rest.char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '(' => depth += 1,
                ')' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                end = Some(at + c.len_utf8());
                break;
            }
        }
        match end.and_then(|end| rest.get(end..)) {
            Some(after) => rest = after.trim_start_matches(blank),
            None => return rest.trim_start_matches(|c: char| c == '(' || blank(c)),
        }
    }
    rest
}

/// A token or quoted string, unquoted, control characters dropped.
fn first_word(text: &str) -> String {
    let kept = |c: &char| !c.is_control();
    match text.strip_prefix('"') {
        Some(quoted) => {
            let mut escaped = false;
            let inner = quoted.chars().take_while(|c| {
                let ends = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                !ends
            });
            let unescaped: String = inner.filter(|c| *c != '\\').filter(kept).collect();
            unescaped.trim().to_owned()
        }
        None => {
            let ends = |c: char| c.is_whitespace() || matches!(c, ';' | '(');
            text.split(ends).next().unwrap_or_default().chars().filter(kept).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn finds_what_claims_to_be_ours() {
        let ours = Domain::parse("mail.example.com").unwrap();
        for (value, expected) in [
            (" mail.example.com; spf=pass", true),
            (" MAIL.Example.COM 1; spf=pass", true),
            ("\r\n\t(a (nested \\) comment)) (two) mail.example.com(x); none", true),
            (" \"mail.example.com\"; spf=pass", true),
            (" \"mail\\.example.com\"; spf=pass", true),
            (" mail.example.com.; spf=pass", true),
            (" mail.example.com/1; spf=pass", true),
            (" (mail.example.com; spf=pass", true),
            (" mail.exam\0ple.com; spf=pass", true),
            (" mail.example.com", true),
            (" mail.example.com.evil.test; spf=pass", false),
            (" mail.example.community; spf=pass", false),
            (" mx.mail.example.com; spf=pass", false),
            (" other.test (mail.example.com); spf=pass", false),
            ("", false),
        ] {
            assert_eq!(claims(value.as_bytes(), &ours), expected, "{value:?}");
        }
        let idn = Domain::parse("m\u{fc}ller.example").unwrap();
        assert!(claims(" M\u{fc}ller.example; none".as_bytes(), &idn));
    }
}
