//! The records to publish for a domain of ours, as lines of a zone file or as JSON. Pure: made of the configuration and
//! the keys alone.

use std::fmt::Write as _;
use std::net::IpAddr;

use aws_lc_rs::digest::{SHA256, digest};
use serde::Serialize;

use crate::clock::rfc5322;
use crate::config::{Config, FromEntry, SmartHost, SmartHostKind};
use crate::intake::sign::life::State;
use crate::intake::sign::{Signer, Standing};
use crate::message::{Address, Domain, ReversePath};
use crate::routing::outbound::{self, Way};

/// Longest string inside a TXT record, in octets (RFC 1035 3.3).
const TXT_STRING_BYTES_MAX: usize = 255;
/// Octets of a hash that make the id of a policy.
const POLICY_ID_BYTES: usize = 8;
/// Seconds that a policy in testing lasts: a week, as RFC 8461 has it in its example.
const POLICY_SECS: u64 = 604_800;

/// What providers want to be included, by the end of the name of their server.
const PROVIDERS: [(&str, &str); 10] = [
    ("amazonaws.com", "amazonses.com"),
    ("office365.com", "spf.protection.outlook.com"),
    ("outlook.com", "spf.protection.outlook.com"),
    ("gmail.com", "_spf.google.com"),
    ("sendgrid.net", "sendgrid.net"),
    ("mailgun.org", "mailgun.org"),
    ("postmarkapp.com", "spf.mtasv.net"),
    ("mailjet.com", "spf.mailjet.com"),
    ("mandrillapp.com", "spf.mandrillapp.com"),
    ("messagingengine.com", "spf.messagingengine.com"),
];

/// One record to publish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Record {
    /// Without the final dot.
    pub name: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// As in a zone file, but a text is one string without quotes.
    pub value: String,
    /// Of a DKIM key that does not sign: `waiting`, `retired`, or `done`, whose record may be taken away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<&'static str>,
    /// One line or several.
    #[serde(skip)]
    pub comment: String,
}

impl Record {
    pub fn new(name: impl Into<String>, kind: &'static str, value: impl Into<String>, comment: &str) -> Record {
        Record { name: name.into(), kind, value: value.into(), state: None, comment: comment.to_owned() }
    }

    fn txt(name: impl Into<String>, value: impl Into<String>, comment: &str) -> Record {
        Record::new(name, "TXT", value, comment)
    }

    /// The same with what is in DNS.
    pub fn with(self, value: impl Into<String>) -> Record {
        Record { value: value.into(), ..self }
    }

    /// As a line of a zone file.
    pub fn line(&self) -> String {
        let value = if self.kind == "TXT" { quoted(&self.value) } else { self.value.clone() };
        format!("{}. IN {} {value}", self.name, self.kind)
    }
}

/// All records of a domain of ours.
pub fn records(config: &Config, signer: &Signer, domain: &Domain) -> Vec<Record> {
    let mut records = vec![mx(config, domain), spf(config, domain)];
    records.extend(helo_spf(config, domain));
    records.extend(dkim(signer, domain));
    records.extend([dmarc(domain), mta_sts(config, domain), tls_rpt(domain)]);
    records
}

pub fn mx(config: &Config, domain: &Domain) -> Record {
    Record::new(domain.to_string(), "MX", format!("10 {}.", config.hostname), "mail comes in here")
}

pub fn spf(config: &Config, domain: &Domain) -> Record {
    let ways = Ways::of(config, domain);
    let mut terms = vec!["v=spf1".to_owned()];
    if ways.direct {
        terms.extend(["mx".to_owned(), format!("a:{}", config.delivery.helo_name)]);
        terms.extend(config.delivery.source_addresses.iter().filter_map(|ip| public_term(*ip)));
    }
    terms.extend(ways.hosts.iter().filter_map(|host| match provider(host) {
        Some(include) => Some(format!("include:{include}")),
        None if host.host.parse::<IpAddr>().is_ok() => host.host.parse().ok().and_then(public_term),
        None => Some(format!("a:{}", host.host)),
    }));
    let mut once: Vec<String> = Vec::new();
    for term in terms {
        if !once.contains(&term) {
            once.push(term);
        }
    }
    once.push("-all".to_owned());
    let comment = match (ways.direct, ways.hosts.is_empty()) {
        (true, true) => "SPF: only this server sends for the domain",
        (true, false) => "SPF: this server and its smart hosts send for the domain",
        (false, false) => "SPF: only the smart hosts send for the domain",
        (false, true) => "SPF: nobody sends for the domain",
    };
    Record::txt(domain.to_string(), once.join(" "), comment)
}

/// Bounces have no sender; then SPF asks about the name in EHLO (RFC 7208 2.4).
pub fn helo_spf(config: &Config, domain: &Domain) -> Option<Record> {
    let helo = &config.delivery.helo_name;
    let own = is_within(helo, domain) && helo != domain;
    own.then(|| Record::txt(helo.to_string(), "v=spf1 a -all", "SPF of the server's own name, for bounces"))
}

pub fn dmarc(domain: &Domain) -> Record {
    Record::txt(
        format!("_dmarc.{domain}"),
        format!("v=DMARC1; p=none; rua=mailto:postmaster@{domain}"),
        "DMARC: reports only; when they show no mail of yours failing, p=quarantine, then p=reject",
    )
}

pub fn mta_sts(config: &Config, domain: &Domain) -> Record {
    let policy = policy(config);
    let id: String = digest(&SHA256, policy.as_bytes())
        .as_ref()
        .iter()
        .take(POLICY_ID_BYTES)
        .fold(String::new(), |id, byte| format!("{id}{byte:02x}"));
    let comment = format!(
        "MTA-STS: publish it once https://mta-sts.{domain}/.well-known/mta-sts.txt says this, as text/plain:\n{}\n\
         (a new id with each change; mode: enforce once TLS reports show no failures; \
                     it wants a certificate that others trust)",
        policy.trim_end().lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
    );
    Record::txt(format!("_mta-sts.{domain}"), format!("v=STSv1; id={id}"), &comment)
}

/// The file beside the record.
pub fn policy(config: &Config) -> String {
    format!("version: STSv1\nmode: testing\nmx: {}\nmax_age: {POLICY_SECS}\n", config.hostname)
}

pub fn tls_rpt(domain: &Domain) -> Record {
    Record::txt(
        format!("_smtp._tls.{domain}"),
        format!("v=TLSRPTv1; rua=mailto:postmaster@{domain}"),
        "TLSRPT: other servers tell where TLS to this one failed",
    )
}

/// The records of the keys of a domain, and those that nobody needs any more, without a value.
pub fn dkim(signer: &Signer, domain: &Domain) -> Vec<Record> {
    let record = |name, value, state, comment| Record { name, kind: "TXT", value, state, comment };
    let mut records = Vec::new();
    for Standing { name, record: value, state, .. } in signer.standings(domain) {
        let (state, comment) = match state {
            State::Signing => (None, "DKIM".to_owned()),
            State::Waiting { replaces: Some(old) } => {
                (Some("waiting"), format!("DKIM: publish it, then it signs in the place of {old}"))
            }
            State::Waiting { replaces: None } => (Some("waiting"), "DKIM: publish it, then it signs".to_owned()),
            State::Retired { since } => {
                let since = rfc5322(since);
                let why = "leave it until what it signed has left the queue";
                (Some("retired"), format!("DKIM: has not signed since {since}; {why}"))
            }
            // Not among them.
            State::Done => continue,
        };
        records.push(record(name, value, state, comment));
    }
    for name in signer.done(domain) {
        let comment = "DKIM: may be taken away; nothing that is queued needs it".to_owned();
        records.push(record(name, String::new(), Some("done"), comment));
    }
    records
}

/// By whom mail of a domain leaves.
pub struct Ways<'c> {
    /// Straight to the recipients' servers; also where nothing leaves yet.
    pub direct: bool,
    /// Everything is captured, or written to files.
    pub stays_here: bool,
    pub hosts: Vec<&'c SmartHost>,
}

impl<'c> Ways<'c> {
    pub fn of(config: &'c Config, domain: &Domain) -> Ways<'c> {
        let nothing = Ways { direct: false, stays_here: false, hosts: Vec::new() };
        let Ok(from) = Address::parse(&format!("postmaster@{domain}")) else { return nothing };
        let envelope = ReversePath::Address(from.clone());
        let mut ways = nothing;
        match outbound::choose(config, Some(&from), &envelope, None).way {
            Way::Direct { .. } => ways.direct = true,
            Way::Hosts { hosts, .. } => ways.hosts.extend(hosts.into_iter().map(|candidate| candidate.host)),
            Way::Capture | Way::File { .. } => return Ways { direct: true, stays_here: true, hosts: Vec::new() },
            Way::Nowhere => {}
        }
        let pinned = |host: &SmartHost| {
            let mut names = config.streams.values().filter_map(|stream| stream.smart_host.as_ref());
            names.any(|name| *name == host.name) && host.accepts(&from)
        };
        let named = |host: &SmartHost| {
            host.from_filter.iter().any(|entry| matches!(entry, FromEntry::Address(own) if own.domain() == domain))
        };
        for host in config.smart_hosts.iter().filter(|host| host.active && (pinned(host) || named(host))) {
            if ways.hosts.iter().all(|known| known.name != host.name) {
                ways.hosts.push(host);
            }
        }
        ways
    }
}

/// What its provider wants to be included.
pub fn provider(host: &SmartHost) -> Option<&'static str> {
    if matches!(host.kind, SmartHostKind::Graph { .. }) {
        return Some("spf.protection.outlook.com");
    }
    let ends = |suffix: &str| host.host.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    PROVIDERS.iter().find(|(suffix, _)| ends(suffix)).map(|(_, include)| *include)
}

/// The term of SPF for an address.
pub fn term(ip: IpAddr) -> String {
    match ip.to_canonical() {
        IpAddr::V4(ip) => format!("ip4:{ip}"),
        IpAddr::V6(ip) => format!("ip6:{ip}"),
    }
}

/// None for what no receiver ever sees.
fn public_term(ip: IpAddr) -> Option<String> {
    crate::delivery::smtp::refused(ip, false).is_none().then(|| term(ip))
}

/// `1.2.0.192.in-addr.arpa`.
pub fn reverse_name(ip: IpAddr) -> String {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(ip) => {
            let nibbles = ip.octets().into_iter().rev().flat_map(|octet| [octet & 15, octet >> 4]);
            nibbles.fold(String::new(), |name, nibble| format!("{name}{nibble:x}.")) + "ip6.arpa"
        }
    }
}

fn is_within(host: &Domain, domain: &Domain) -> bool {
    let rest = host.as_str().strip_suffix(domain.as_str());
    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Lines for a zone file, each record behind a comment.
pub fn zone_lines(records: &[Record]) -> String {
    records.iter().map(|record| zone_line(record, "")).collect()
}

/// `mark`: what goes behind the first line of the comment.
pub fn zone_line(record: &Record, mark: &str) -> String {
    let mut text = String::new();
    for (number, line) in record.comment.lines().enumerate() {
        let mark = if number == 0 { mark } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "; {line}{mark}");
    }
    // What is to go must not be put in with the rest.
    let out = if record.state == Some("done") { "; " } else { "" };
    let _ = writeln!(text, "{out}{}", record.line());
    text
}

/// A text as strings of at most 255 octets (RFC 1035 5.1). One that is in DNS may hold anything.
fn quoted(text: &str) -> String {
    let strings = text.as_bytes().chunks(TXT_STRING_BYTES_MAX);
    strings.map(|part| format!("\"{}\"", escaped(part))).collect::<Vec<_>>().join(" ")
}

fn escaped(octets: &[u8]) -> String {
    octets.iter().fold(String::new(), |mut text, octet| {
        match octet {
            b'"' | b'\\' => text.extend(['\\', char::from(*octet)]),
            b' '..=b'~' => text.push(char::from(*octet)),
            // Writing to a String cannot fail.
            other => drop(write!(text, "\\{other:03}")),
        }
        text
    })
}

/// One JSON object a line.
pub fn json_lines(records: &[Record]) -> String {
    let lines = records.iter().filter_map(|record| serde_json::to_string(record).ok());
    lines.map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config(more: &str) -> Config {
        let base = "hostname = \"mail.my.com\"\ndata_dir = \"/nonexistent\"\n[domains.\"my.com\"]\n";
        crate::config::parse("test.toml", &format!("{base}{more}")).unwrap()
    }

    fn spf_of(more: &str) -> String {
        spf(&config(more), &Domain::parse("my.com").unwrap()).value
    }

    #[test]
    fn spf_names_whoever_sends() {
        assert_eq!(spf_of(""), "v=spf1 mx a:mail.my.com -all");
        let host =
            |name: &str, more: &str| format!("[smart_hosts.{0}]\nhost = \"{name}\"\n{more}", name.replace('.', "-"));
        let office = host("smtp.office365.com", "");
        assert_eq!(
            spf_of(&format!("[delivery]\ndefault = \"smart_hosts\"\n{office}")),
            "v=spf1 include:spf.protection.outlook.com -all"
        );
        // Not in use for this domain.
        let other = host("smtp.sendgrid.net", "from_filter = [\"other.com\"]\n");
        assert_eq!(spf_of(&other), "v=spf1 mx a:mail.my.com -all");
        let one = host("relay.far.test", "from_filter = [\"boss@my.com\"]\n");
        assert_eq!(spf_of(&one), "v=spf1 mx a:mail.my.com a:relay.far.test -all");
        assert_eq!(spf_of("[delivery]\ndefault = \"capture\"\n"), "v=spf1 mx a:mail.my.com -all");
        let addresses = "[delivery]\nhelo_name = \"out.my.com\"\nsource_addresses = [\"8.8.4.4\", \"10.0.0.1\"]\n";
        assert_eq!(spf_of(addresses), "v=spf1 mx a:out.my.com ip4:8.8.4.4 -all");
    }

    #[test]
    fn what_is_in_dns_is_written_as_a_zone_file_has_it() {
        let line = Record::new("a.test", "TXT", "a \"b\" \\ é", "").line();
        assert_eq!(line, r#"a.test. IN TXT "a \"b\" \\ \195\169""#);
        let long = Record::new("a.test", "TXT", "x".repeat(300), "").line();
        assert_eq!(long, format!("a.test. IN TXT \"{}\" \"{}\"", "x".repeat(255), "x".repeat(45)));
    }

    #[test]
    fn reverse_names_have_the_address_backwards() {
        assert_eq!(reverse_name("192.0.2.1".parse().unwrap()), "1.2.0.192.in-addr.arpa");
        let six = reverse_name("2001:db8::1".parse().unwrap());
        assert_eq!(six, "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa");
    }

    #[test]
    fn the_id_of_a_policy_changes_with_it() {
        let id = |hostname: &str| {
            let mut config = config("");
            config.hostname = Domain::parse(hostname).unwrap();
            mta_sts(&config, &Domain::parse("my.com").unwrap()).value
        };
        assert_eq!(id("mail.my.com"), id("mail.my.com"));
        assert_ne!(id("mail.my.com"), id("mx.my.com"));
        assert!(id("mail.my.com").starts_with("v=STSv1; id="));
    }
}
