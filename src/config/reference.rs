//! What each key means, read out of `conf/postrider.toml`, where it is written down once: type, default, choices,
//! text. That file is part of the program, so what it says and what is printed cannot differ.
//!
//! Its form: a key a line, with a comment behind it; what a comment has no room for stands in comments below it, or
//! in whole lines above it. A comment says "required", or names the default; where it does neither the value shown is
//! the default.

use super::keys::{known_keys, lists, pattern};
use super::report::Report;
use super::tree::{self, Value};
use super::value::{parse_duration, parse_rate, parse_size};

/// The reference itself.
pub const REFERENCE: &str = include_str!("../../conf/postrider.toml");

/// Keys whose values are secrets, and are never shown.
const SECRETS: [&str; 11] = [
    "accounts.*.password_hash",
    "accounts.*.password",
    "targets.*.secret",
    "smart_hosts.*.password",
    "smart_hosts.*.oauth.client_secret",
    "smart_hosts.*.oauth.refresh_token",
    "fetch.*.password",
    "fetch.*.oauth.client_secret",
    "fetch.*.oauth.refresh_token",
    "admin.token",
    "events.webhooks.*.secret",
];

/// What a key is when it is not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standard {
    /// It has to be, or is left out where it does not belong.
    Required,
    /// This, as it would be written.
    Value(String),
    /// In words.
    Words(String),
}

/// What the reference says of a key at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The name that the section there has, where it is one that the user chooses.
    pub name: Option<String>,
    /// `kind` of that section.
    pub section_kind: Option<String>,
    /// As it is written there.
    pub value: String,
    pub standard: Standard,
    pub doc: String,
}

/// A key, and all that is said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// With `*` for names that the user chooses.
    pub path: &'static str,
    /// This version knows it.
    pub is_supported: bool,
    pub is_secret: bool,
    /// Never empty.
    pub said: Vec<Said>,
}

impl Key {
    /// What is said of it, each text once.
    pub fn doc(&self) -> String {
        let mut texts: Vec<&str> = Vec::new();
        for said in &self.said {
            // What is said beside the type anyway.
            let is_told = said.doc == "required" || (said.doc.starts_with("default") && !said.doc.contains(['.', ';']));
            if !said.doc.is_empty() && !is_told && !texts.contains(&said.doc.as_str()) {
                texts.push(&said.doc);
            }
        }
        texts.join(" / ")
    }

    /// "duration", "size", "rate", "secret", a choice, or the type that TOML has for it.
    pub fn form(&self) -> String {
        if self.is_secret {
            return "secret: a string, { file = \"…\" } or { env = \"…\" }".to_owned();
        }
        let choices = choices(&self.said.iter().map(|said| said.doc.as_str()).collect::<Vec<_>>());
        if !choices.is_empty() {
            let quoted: Vec<String> = choices.iter().map(|choice| format!("\"{choice}\"")).collect();
            return format!("one of {}", quoted.join(", "));
        }
        let forms = self.said.iter().map(|said| form(&said.value));
        // An example that says more than "a string".
        forms.reduce(|one, other| if one == "string" { other } else { one }).unwrap_or("string").to_owned()
    }

    pub fn is_required(&self) -> bool {
        self.said.iter().all(|said| said.standard == Standard::Required)
    }

    /// The default, as far as it is the same wherever the key stands.
    pub fn standard(&self) -> &Standard {
        let told = self.said.iter().map(|said| &said.standard).find(|standard| **standard != Standard::Required);
        told.unwrap_or(&Standard::Required)
    }
}

/// Every key of the configuration, in the order of the table of keys.
pub fn keys() -> Vec<Key> {
    let lines = lines(REFERENCE);
    let key = |(path, is_supported): (&'static str, bool)| {
        // Of inline tables the whole is documented.
        let documented = if path.starts_with("aliases.limits.") { "aliases.limits.*" } else { path };
        let said = lines.iter().filter(|line| line.path == documented).map(|line| line.said.clone()).collect();
        let is_supported = is_supported || lists().any(|list| list == path);
        Key { path, is_supported, is_secret: SECRETS.contains(&path), said }
    };
    known_keys().into_iter().map(key).collect()
}

struct Line {
    path: String,
    /// Behind the key, and below; without what stands above it.
    comment: String,
    said: Said,
}

/// All that a text in the form of the reference says of keys and sections.
fn lines(text: &str) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    let (mut section, mut kind) = (Vec::<String>::new(), None);
    let mut above: Vec<&str> = Vec::new();
    for line in text.lines() {
        let indented = line.starts_with([' ', '\t']);
        let bare = line.trim();
        let plain = bare.strip_prefix("#:").or_else(|| bare.strip_prefix('#')).map_or(bare, str::trim_start);
        if bare.is_empty() || plain.starts_with("──") {
            above.clear();
            continue;
        }
        if bare.starts_with('#') && indented {
            if let Some(last) = lines.last_mut() {
                last.said.doc = format!("{} {plain}", last.said.doc).trim().to_owned();
                last.comment = format!("{} {plain}", last.comment).trim().to_owned();
                last.said.standard = standard(&last.said.value, &last.comment);
            }
            continue;
        }
        let (code, comment) = split(plain);
        if let Some(header) = code.strip_prefix('[') {
            section = parts(header.trim_matches(['[', ']']));
            kind = None;
            let said = said(&section, None, "", &mut above, comment);
            lines.push(Line { path: pattern(&section), comment: comment.to_owned(), said });
        } else if let Some((key, value)) = assignment(code) {
            let path = [&section[..], &parts(key)].concat();
            if key == "kind" {
                kind = value.split('"').nth(1).map(str::to_owned);
            }
            let mut said = said(&path, kind.clone(), value, &mut above, comment);
            // It stands in a comment because it is for a case that the rest is not.
            if bare.starts_with("# ") && !said.doc.contains("default") && said.standard != Standard::Required {
                said.standard = Standard::Words("none".to_owned());
            }
            lines.push(Line { path: pattern(&path), comment: comment.to_owned(), said });
        } else {
            above.push(plain);
        }
    }
    lines
}

fn said(path: &[String], section_kind: Option<String>, value: &str, above: &mut Vec<&str>, comment: &str) -> Said {
    let mut texts = std::mem::take(above);
    texts.push(comment);
    let doc = texts.join(" ").trim().to_owned();
    // "targets.crm.url" and "events.webhooks.crm.url": the name is before the last part.
    let name = path.len().checked_sub(2).and_then(|at| path.get(at)).cloned();
    Said { name, section_kind, value: value.to_owned(), standard: standard(value, comment), doc }
}

/// `key = value` where the key is one word, or quoted.
fn assignment(code: &str) -> Option<(&str, &str)> {
    let (key, value) = match code.strip_prefix('"') {
        Some(rest) => {
            let end = rest.find("\" ").or_else(|| rest.find("\"="))? + 2;
            (code.get(..end)?, code.get(end..)?.trim_start().strip_prefix('=')?)
        }
        None => code.split_once('=')?,
    };
    let (key, value) = (key.trim(), value.trim());
    let is_word = key.starts_with('"') || key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    (is_word && !key.is_empty() && !value.is_empty()).then_some((key, value))
}

/// The code of a line, and the comment behind it.
fn split(line: &str) -> (&str, &str) {
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in line.char_indices() {
        match c {
            '"' if !escaped => quoted = !quoted,
            '#' if !quoted => return (line[..at].trim(), line[at + 1..].trim()),
            _ => {}
        }
        escaped = c == '\\' && !escaped;
    }
    (line.trim(), "")
}

/// `a."b.c".d` → a, b.c, d.
fn parts(path: &str) -> Vec<String> {
    let mut parts = Vec::new();
    for (at, part) in path.split('"').enumerate() {
        match at % 2 {
            1 => parts.push(part.to_owned()),
            _ => parts.extend(part.split('.').filter(|name| !name.is_empty()).map(str::to_owned)),
        }
    }
    parts
}

fn standard(value: &str, doc: &str) -> Standard {
    if doc.starts_with("required") && !doc.contains("default") {
        return Standard::Required;
    }
    let told = doc.split_once("default: ").or_else(|| doc.split_once("default "));
    let Some((_, told)) = told else { return Standard::Value(value.to_owned()) };
    if told.starts_with("these") {
        return Standard::Value(value.to_owned());
    }
    match told.strip_prefix('"').and_then(|rest| rest.split_once('"')) {
        Some((literal, _)) => Standard::Value(format!("\"{literal}\"")),
        None => {
            let end = ["; ", ". ", " ("].iter().filter_map(|mark| told.find(mark)).min().unwrap_or(told.len());
            Standard::Words(told[..end].trim_end_matches('.').to_owned())
        }
    }
}

/// The words of a choice: `"a" (why) | "b"`.
fn choices(docs: &[&str]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for doc in docs.iter().filter(|doc| doc.contains(" | \"")) {
        let words = doc.split(" | ").filter_map(|piece| piece.split('"').nth(1));
        words.for_each(|word| {
            if !found.iter().any(|known| known == word) {
                found.push(word.to_owned());
            }
        });
    }
    found
}

fn form(value: &str) -> &'static str {
    let table = tree::parse("", 0, &format!("value = {value}"), &Report::default());
    match table.get("value").map(|entry| &entry.node.value) {
        Some(Value::Boolean(_)) => "true or false",
        Some(Value::Integer(_)) => "number",
        Some(Value::Array(_)) => "list",
        Some(Value::Table(_)) => "table",
        Some(Value::String(text)) if parse_duration(text).is_some() => "duration",
        Some(Value::String(text)) if parse_size(text).is_some() => "size",
        Some(Value::String(text)) if parse_rate(text).is_some() => "rate",
        None => "section",
        Some(_) => "string",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(path: &str) -> Key {
        keys().into_iter().find(|key| key.path == path).unwrap()
    }

    #[test]
    fn every_key_is_documented() {
        for key in keys() {
            assert!(!key.said.is_empty(), "{} is not in conf/postrider.toml", key.path);
            // What a value says by itself needs no words, but a choice does.
            let speaks = !key.doc().is_empty() || key.said.iter().any(|said| !said.value.is_empty());
            assert!(speaks, "{} has neither a value nor a text", key.path);
        }
    }

    #[test]
    fn types_defaults_and_choices_are_read() {
        assert_eq!(key("queue.min_free").form(), "size");
        assert_eq!(key("queue.min_free").standard(), &Standard::Value("\"1GiB\"".into()));
        assert_eq!(key("queue.durability").form(), "one of \"sync\", \"relaxed\"");
        assert_eq!(key("dns.timeout").form(), "duration");
        assert_eq!(key("limits.auth_failures").form(), "rate");
        assert_eq!(key("delivery.retry.schedule").form(), "list");
        assert_eq!(key("limits.connections").form(), "number");
        assert_eq!(key("delivery.tls.dane").form(), "true or false");
        assert!(key("admin.token").form().starts_with("secret"));
        assert!(key("hostname").is_required() && !key("postmaster").is_required());
        assert_eq!(key("postmaster").standard(), &Standard::Words("postmaster@<first domain>".into()));
        assert_eq!(key("domains.*.bounce").standard(), &Standard::Value("\"bounce\"".into()));
        assert_eq!(key("loops.on_limit").form(), "one of \"reject\", \"hold\", \"discard\", \"defer\"");
        // Lines above and below the key belong to it.
        assert!(key("delivery.file_path").doc().starts_with("For \"file\": one file for each recipient"));
        assert!(key("sender.return_path").doc().ends_with("for the address gets all of it"));
        assert!(key("aliases.limits.*.limit").doc().is_empty());
    }

    #[test]
    fn secrets_are_known_as_such() {
        for key in keys() {
            let last = key.path.rsplit('.').next().unwrap();
            let is_named_so = ["password", "password_hash", "secret", "token", "client_secret", "refresh_token"];
            let has_a_source =
                key.said.iter().any(|said| said.value.starts_with("{ env") || said.value.starts_with("{ file"));
            assert_eq!(key.is_secret, is_named_so.contains(&last) || has_a_source, "{}", key.path);
        }
    }
}
