//! Files of addresses for the suppression list: one a line, CSV (RFC 4180) or lines of JSON.
//!
//! A file is read whole or not at all: of one with wrong lines nothing is imported.

use std::io::Read;
use std::path::Path;

use super::{Failure, reason};
use crate::admin::suppress::Suppressed;
use crate::admin::view::time;
use crate::bounce::suppression::{Reason, Who};
use crate::clock::Millis;

/// Bytes of a file that is imported.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// Wrong lines that are named.
const WRONG_MAX: usize = 10;

/// RFC 4180 2.
pub(super) fn csv(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

/// The columns of a line; None: a quote is not closed.
fn columns(line: &str) -> Option<Vec<String>> {
    let (mut columns, mut column, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                column.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => columns.push(std::mem::take(&mut column)),
            c => column.push(c),
        }
    }
    columns.push(column);
    (!quoted).then_some(columns)
}

pub(super) fn content(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = match file.to_str() {
        Some("-") => std::io::stdin().lock().take(FILE_BYTES_MAX).read_to_string(&mut text),
        _ => std::fs::File::open(file).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text)),
    };
    read.map_err(|error| Failure::unreadable(file, &error).remedy("name a file of text"))?;
    Ok(text)
}

/// What holds for lines that do not say otherwise.
pub(super) struct Given {
    pub scope: Option<String>,
    pub reason: Option<Reason>,
    pub expires: Option<Millis>,
}

/// All lines, or the first that are wrong.
pub(super) fn read(text: &str, given: &Given) -> Result<Vec<Suppressed>, Failure> {
    let (mut entries, mut wrong, mut header) = (Vec::new(), Vec::new(), None);
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if header.is_none() && entries.is_empty() && !line.contains('@') && !line.starts_with('{') {
            header = Some(columns(&line.to_lowercase()).unwrap_or_default());
            continue;
        }
        match read_line(line, header.as_deref(), given) {
            Ok(entry) => entries.push(entry),
            Err(what) if wrong.len() < WRONG_MAX => wrong.push(format!("  line {}: {what}", number + 1)),
            Err(_) => {}
        }
    }
    if wrong.is_empty() {
        return Ok(entries);
    }
    Err(Failure::usage(format!("lines that cannot be read\n{}", wrong.join("\n")))
        .remedy("correct them or take them out; nothing was imported"))
}

fn read_line(line: &str, header: Option<&[String]>, given: &Given) -> Result<Suppressed, String> {
    let mut entry = match header {
        _ if line.starts_with('{') => serde_json::from_str(line).map_err(|error| error.to_string())?,
        Some(header) => of_columns(&columns(line).ok_or("a quote is not closed")?, header)?,
        None => Suppressed {
            address: line.to_owned(),
            scope: None,
            reason: Reason::Import,
            since: None,
            expires: None,
            evidence: Vec::new(),
        },
    };
    entry.address = Who::parse(&entry.address).map_err(|error| error.to_string())?.key();
    entry.scope = given.scope.clone().or(entry.scope).filter(|scope| !scope.is_empty());
    entry.reason = given.reason.unwrap_or(entry.reason);
    entry.expires = given.expires.or(entry.expires);
    entry.evidence.clear();
    Ok(entry)
}

fn of_columns(columns: &[String], header: &[String]) -> Result<Suppressed, String> {
    let named = |names: &[&str]| {
        let at = header.iter().position(|column| names.contains(&column.trim()))?;
        columns.get(at).map(|text| text.trim()).filter(|text| !text.is_empty())
    };
    let at = |names: &[&str]| {
        named(names).map(|text| time::parse(text).ok_or(format!("{text:?} is not a time in RFC 3339 form")))
    };
    let address = named(&["address", "email", "email address", "emailaddress"]).ok_or("there is no address")?;
    let why = named(&["reason"]).map_or(Ok(Reason::Import), |text| reason(&text.to_lowercase()))?;
    Ok(Suppressed {
        address: address.to_owned(),
        scope: named(&["scope"]).map(str::to_owned),
        reason: why,
        since: at(&["since"]).transpose()?,
        expires: at(&["expires"]).transpose()?,
        evidence: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn given() -> Given {
        Given { scope: None, reason: None, expires: None }
    }

    #[test]
    fn files_of_every_form_are_read() {
        let plain = "# ours\nBob@Example.net\n\n@gone.example\n";
        let read_ = read(plain, &given()).unwrap();
        let addresses: Vec<&str> = read_.iter().map(|entry| entry.address.as_str()).collect();
        assert_eq!(addresses, ["bob@example.net", "@gone.example"]);
        assert!(read_.iter().all(|entry| entry.reason == Reason::Import && entry.scope.is_none()));

        let table = "Email,created_at,Reason\nbob@example.net,x,unsubscribe\n\"\"\"a,b\"\"@example.net\",,\n";
        let read_ = read(table, &given()).unwrap();
        assert_eq!(read_[0].reason, Reason::Unsubscribe);
        assert_eq!(read_[1].address, "\"a,b\"@example.net");

        let json = "{\"address\":\"bob@example.net\",\"scope\":\"bulk\",\"reason\":\"complaint\",\"since\":\"2026-11-21T22:26:57.000Z\"}\n";
        let read_ = read(json, &given()).unwrap();
        assert_eq!((read_[0].scope.as_deref(), read_[0].since), (Some("bulk"), Some(1_795_300_017_000)));
    }

    #[test]
    fn wrong_lines_are_named() {
        let failure = read("bob@example.net\nnobody\n@\n{}\n", &given()).unwrap_err().to_string();
        for line in ["line 2", "line 3", "line 4"] {
            assert!(failure.contains(line), "{failure}");
        }
    }

    #[test]
    fn an_export_is_read_as_what_it_was() {
        for text in ["plain", "a,b", "say \"x\"", ""] {
            assert_eq!(columns(&format!("{},x", csv(text))).unwrap(), [text, "x"]);
        }
        assert_eq!(columns("\"open"), None);
    }
}
