//! `postrider dns DOMAIN`: the records to publish for one of our domains, as lines for a zone file or
//! as JSON. Keys that are missing are made on the way, so that the records can be published before
//! the server first starts. Of DKIM keys it says which wait for their record, and whose record may be taken
//! away. Says nothing else about what is published already.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use serde::Serialize;

use crate::clock::rfc5322;
use crate::config::Config;
use crate::intake::sign::life::State;
use crate::intake::sign::{Signer, Standing};
use crate::message::Domain;

/// Longest string inside a TXT record, in octets (RFC 1035 3.3).
const TXT_STRING_BYTES_MAX: usize = 255;

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
    #[serde(skip)]
    comment: String,
}

/// Prints the records of `domain`, or why there are none.
pub fn run(config: &Config, domain: &str, json: bool) -> ExitCode {
    match answer(config, domain, json) {
        Ok(text) => {
            // A reader that has seen enough (`| head`) is no failure, and no panic.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(text) => {
            eprintln!("postrider: {text}");
            ExitCode::FAILURE
        }
    }
}

fn answer(config: &Config, domain: &str, json: bool) -> Result<String, String> {
    let known = Domain::parse(domain).ok().filter(|domain| config.is_own(domain));
    let Some(domain) = known else { return Err(not_ours(config, domain)) };
    let folder = config.data_dir.display();
    // As the server does at its first start, whichever of the two comes first.
    std::fs::create_dir_all(&config.data_dir).map_err(|error| {
        format!("data_dir {folder} cannot be made: {error}; run this as the user that runs the server, or make it for that user")
    })?;
    let signer = Signer::load(config).map_err(|error| error.to_string())?;
    let records = records(config, &signer, &domain);
    Ok(if json { json_lines(&records) } else { zone_lines(&records) })
}

pub(super) fn not_ours(config: &Config, domain: &str) -> String {
    let known: Vec<&str> = config.domains.keys().map(Domain::as_str).collect();
    let shown: String = domain.chars().filter(|c| !c.is_control()).collect();
    match known.is_empty() {
        true => format!(
            "{shown} is not in [domains]: there are none yet\n  → add [domains.\"{shown}\"] to the configuration"
        ),
        false => format!(
            "{shown} is not in [domains]; there are {}\n  → name one of them, or add [domains.\"{shown}\"]",
            known.join(", ")
        ),
    }
}

/// MX, SPF, DKIM and DMARC for a domain of ours.
pub fn records(config: &Config, signer: &Signer, domain: &Domain) -> Vec<Record> {
    let host = &config.hostname;
    let txt = |name: String, value: String, comment: &str| Record {
        name,
        kind: "TXT",
        value,
        state: None,
        comment: comment.to_owned(),
    };
    let mx = txt(domain.to_string(), format!("10 {host}."), "mail comes in here");
    let mut records = vec![
        Record { kind: "MX", ..mx },
        txt(domain.to_string(), format!("v=spf1 mx a:{host} -all"), "SPF: only this server sends for the domain"),
    ];
    // Bounces have no sender; then SPF asks about the name in EHLO (RFC 7208 2.4).
    if is_within(host, domain) && host != domain {
        records.push(txt(host.to_string(), "v=spf1 a -all".to_owned(), "SPF of the server's own name, for bounces"));
    }
    records.extend(dkim(signer, domain));
    records.push(txt(
        format!("_dmarc.{domain}"),
        format!("v=DMARC1; p=none; rua=mailto:postmaster@{domain}"),
        "DMARC: reports only; when they show no mail of yours failing, p=quarantine, then p=reject",
    ));
    records
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

fn is_within(host: &Domain, domain: &Domain) -> bool {
    let rest = host.as_str().strip_suffix(domain.as_str());
    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Lines for a zone file, each record behind a comment.
pub fn zone_lines(records: &[Record]) -> String {
    let mut text = String::new();
    for record in records {
        let value = match record.kind {
            "TXT" => quoted(&record.value),
            _ => record.value.clone(),
        };
        // What is to go must not be put in with the rest.
        let mark = if record.state == Some("done") { "; " } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "; {}\n{mark}{}. IN {} {value}", record.comment, record.name, record.kind);
    }
    text
}

/// A text as strings of at most 255 octets. Ours are ASCII without quotes and backslashes.
fn quoted(text: &str) -> String {
    let strings = text.as_bytes().chunks(TXT_STRING_BYTES_MAX);
    strings.map(|part| format!("\"{}\"", String::from_utf8_lossy(part))).collect::<Vec<_>>().join(" ")
}

/// One JSON object a line.
pub fn json_lines(records: &[Record]) -> String {
    let lines = records.iter().filter_map(|record| serde_json::to_string(record).ok());
    lines.map(|line| line + "\n").collect()
}
