//! Reads where inbound mail goes: targets, aliases, and the values that aliases and catchalls share.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use regex::{Regex, RegexBuilder};
use reqwest::Url;

use super::nearest::nearest;
use super::problem::ProblemKind;
use super::section::{Item, Section, Wrong, read_address, read_domain};
use super::tree::Value;
use super::{Aliases, Destination, PatternAlias, Secret, Target};
use crate::message::{Address, Domain};

/// Memory that one compiled pattern, and the cache it works with, may take, in bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;
/// Longest name of a target, in characters.
const NAME_CHARS_MAX: usize = 64;
const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(15);
const WEBHOOK_TIMEOUT_MAX: Duration = Duration::from_secs(300);

const BUILT_IN: [&str; 2] = ["discard", "reject"];
const DESTINATIONS_FORM: &str =
    "Write a target, an address, or a list of both such as [\"crm\", \"bob@partner.example\"].";

/// What other sections may refer to, gathered beforehand: a name counts as known even if what it
/// stands for has problems, which are reported where they are.
pub(super) struct Names {
    pub domains: Vec<Domain>,
    pub targets: BTreeSet<String>,
    pub accounts: BTreeSet<String>,
}

impl Names {
    pub fn gather(root: &Section<'_>) -> Names {
        let names = |section: &str| root.section(section).named().into_iter().map(|(name, _)| name.to_owned());
        Names {
            domains: names("domains").filter_map(|name| read_domain(&name).ok()).collect(),
            targets: names("targets").collect(),
            accounts: names("accounts").collect(),
        }
    }
}

/// An alias or catchall with the place to complain at.
pub(super) struct Origin<'a> {
    pub item: Item<'a>,
    /// [`Address::lookup_key`], if it is an exact alias.
    pub address: Option<String>,
    pub destinations: Vec<Destination>,
}

/// The value of an alias or catchall.
pub(super) fn destinations(item: &Item<'_>, names: &Names) -> Vec<Destination> {
    let elements = match &item.node.value {
        Value::String(_) => vec![item.clone()],
        Value::Array(_) => item.elements("").unwrap_or_default(),
        _ => {
            item.wrong_type("a string or a list of strings", DESTINATIONS_FORM);
            return Vec::new();
        }
    };
    if elements.is_empty() {
        let remedy = "Name at least one; \"discard\" takes mail and drops it, \"reject\" refuses it.";
        item.problem(ProblemKind::BadValue, "the list is empty", remedy);
    }
    let mut found = Vec::new();
    for element in &elements {
        let Some(destination) = element.read("a string", |text| read_destination(text, names)) else { continue };
        if found.contains(&destination) {
            element.problem(ProblemKind::Duplicate, "named twice in this list", "Name it once.");
        } else {
            found.push(destination);
        }
    }
    if found.len() > 1 && found.contains(&Destination::Reject) {
        let remedy = "Use \"reject\" alone, or take it out of the list.";
        item.problem(ProblemKind::BadValue, "\"reject\" cannot stand beside other values", remedy);
    }
    found
}

fn read_destination(text: &str, names: &Names) -> Result<Destination, Wrong> {
    match text {
        "discard" => return Ok(Destination::Discard),
        "reject" => return Ok(Destination::Reject),
        _ if text.contains('@') => return read_address(text).map(Destination::Address),
        _ if names.targets.contains(text) => return Ok(Destination::Target(text.to_owned())),
        _ => {}
    }
    let candidates = names.targets.iter().map(String::as_str).chain(BUILT_IN);
    let remedy = match nearest(text, candidates) {
        Some(near) => format!("Did you mean \"{near}\"?"),
        None => format!("Add [targets.{text}], or write a whole address."),
    };
    Err(Wrong::reference(format!("there is no target named {text:?}"), remedy))
}

pub(super) fn aliases<'a>(root: &Section<'a>, names: &Names) -> (Aliases, Vec<Origin<'a>>) {
    let mut aliases = Aliases::default();
    let mut origins: Vec<Origin<'a>> = Vec::new();
    for (text, item) in root.section("aliases").items() {
        if text == "limits" && matches!(item.node.value, Value::Table(_)) {
            continue;
        }
        let destinations = destinations(&item, names);
        let mut address = None;
        if text.starts_with('/') {
            match read_pattern(text) {
                Ok(regex) => {
                    let destinations = destinations.clone();
                    aliases.patterns.push(PatternAlias { text: text.to_owned(), regex, destinations });
                }
                Err(wrong) => item.wrong(wrong),
            }
        } else {
            address = exact_alias(text, &item, names, &aliases.exact, &origins);
        }
        if let Some(key) = &address {
            aliases.exact.insert(key.clone(), destinations.clone());
        }
        origins.push(Origin { item, address, destinations });
    }
    (aliases, origins)
}

/// The look-up key of an alias, unless it is wrong or there already.
fn exact_alias(
    text: &str,
    item: &Item<'_>,
    names: &Names,
    exact: &BTreeMap<String, Vec<Destination>>,
    earlier: &[Origin<'_>],
) -> Option<String> {
    let address = match Address::parse(text) {
        Ok(address) => address,
        Err(error) => {
            let remedy = "Write local-part@domain, or a regular expression between slashes.";
            item.problem(ProblemKind::BadValue, format!("not an address: {error}"), remedy);
            return None;
        }
    };
    let domain = address.domain();
    if !names.domains.contains(domain) {
        let near = nearest(domain.as_str(), names.domains.iter().map(Domain::as_str));
        let remedy = match near {
            Some(near) => format!("Did you mean \"{near}\"?"),
            None => format!("Add [domains.\"{domain}\"], or take the alias out."),
        };
        item.problem(ProblemKind::Reference, format!("{domain} is not one of our domains"), remedy);
    }
    let key = address.lookup_key();
    if exact.contains_key(&key) {
        let first = earlier.iter().find(|origin| origin.address.as_ref() == Some(&key));
        let place = first.map_or(&item.node.place, |first| &first.item.node.place);
        let what = format!("the same address as in {}:{}", place.file, place.line);
        item.problem(ProblemKind::Duplicate, what, "Join the two into one list; case makes no difference.");
        return None;
    }
    Some(key)
}

/// A regular expression between slashes, for the whole address.
fn read_pattern(text: &str) -> Result<Regex, Wrong> {
    let form = "Write a regular expression between slashes, such as '/^ticket-[0-9]+@example\\.com$/'.";
    let inner = text.strip_prefix('/').and_then(|rest| rest.strip_suffix('/')).filter(|inner| !inner.is_empty());
    let inner = inner.ok_or_else(|| Wrong::value("the pattern does not end with a slash", form))?;
    // Compiled alone first, so that a stray parenthesis cannot close the group that anchors it.
    let compile = |pattern: &str| {
        RegexBuilder::new(pattern)
            .case_insensitive(true)
            .size_limit(PATTERN_BYTES_MAX)
            .dfa_size_limit(PATTERN_BYTES_MAX)
            .build()
            .map_err(|error| Wrong::value(format!("not a regular expression: {}", regex_reason(&error)), form))
    };
    compile(inner)?;
    compile(&format!("^(?:{inner})$"))
}

/// One line of it; the rest draws a picture of the pattern.
fn regex_reason(error: &regex::Error) -> String {
    if let regex::Error::CompiledTooBig(_) = error {
        return "it is too big".to_owned();
    }
    let text = error.to_string();
    let line = text.lines().last().unwrap_or("").trim();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Webhook,
    Maildir,
}

const KINDS: [(&str, Kind); 2] = [("webhook", Kind::Webhook), ("maildir", Kind::Maildir)];
const LATER_KINDS: [&str; 4] = ["lmtp", "pipe", "file", "smtp"];

/// Keys that belong to some kinds of target only, and to which of those that are supported.
const KIND_KEYS: [(&str, Option<Kind>); 10] = [
    ("url", Some(Kind::Webhook)),
    ("secret", Some(Kind::Webhook)),
    ("format", Some(Kind::Webhook)),
    ("timeout", Some(Kind::Webhook)),
    ("path", Some(Kind::Maildir)),
    ("address", None),
    ("command", None),
    ("host", None),
    ("port", None),
    ("tls", None),
];

pub(super) fn targets(root: &Section<'_>) -> BTreeMap<String, Target> {
    let mut targets = BTreeMap::new();
    for (name, section) in root.section("targets").named() {
        if !section.exists() {
            continue;
        }
        check_name(name, &section);
        let remedy = "Add kind = \"webhook\" or kind = \"maildir\".";
        let kind = section.required("kind", remedy).and_then(|item| item.choice(&KINDS, &LATER_KINDS));
        let Some(kind) = kind else { continue };
        check_kind_keys(&section, kind);
        let target = match kind {
            Kind::Webhook => webhook(name, &section),
            Kind::Maildir => maildir(&section),
        };
        targets.extend(target.map(|target| (name.to_owned(), target)));
    }
    targets
}

fn check_name(name: &str, section: &Section<'_>) {
    let (what, remedy) = if BUILT_IN.contains(&name) {
        (format!("{name:?} is built in"), "Give the target another name.")
    } else if name.is_empty()
        || name.chars().count() > NAME_CHARS_MAX
        || name.chars().any(|c| c.is_control() || c.is_whitespace() || c == '@')
    {
        ("not a name for a target".to_owned(), "Use up to 64 characters without spaces, control characters or @.")
    } else {
        return;
    };
    section.report.problem(ProblemKind::BadValue, &section.place, &section.path, what, remedy);
}

fn check_kind_keys(section: &Section<'_>, kind: Kind) {
    let kind_name = KINDS.iter().find(|(_, k)| *k == kind).map_or("", |(name, _)| name);
    for (key, of_kind) in KIND_KEYS {
        if of_kind == Some(kind) {
            continue;
        }
        if let Some(item) = section.item(key) {
            let what = format!("a target of kind \"{kind_name}\" has no {key}");
            item.problem(ProblemKind::BadValue, what, "Take it out, or correct the kind.");
        }
    }
}

fn webhook(name: &str, section: &Section<'_>) -> Option<Target> {
    let secret = section.item("secret").map(|item| webhook_secret(&item));
    let timeout = section.duration("timeout", Duration::from_secs(1)..=WEBHOOK_TIMEOUT_MAX, WEBHOOK_TIMEOUT);
    let item =
        section.required("url", "Add the address to post to, such as url = \"https://crm.example.com/hooks/mail\".")?;
    let url = item.read("a URL", read_url)?;
    if url.scheme() == "http" && !is_loopback(&url) {
        section.report.warn(format!("targets.{name}: the URL is plain http, so mail crosses the network unencrypted"));
    }
    Some(Target::Webhook { url: url.into(), secret: secret.flatten(), timeout })
}

/// Standard Webhooks writes keys as `whsec_` and base64; any other text is a key as it stands.
pub(super) fn webhook_secret(item: &Item<'_>) -> Option<Secret> {
    let secret = item.secret()?;
    let encoded = secret.0.strip_prefix("whsec_").unwrap_or_default();
    if STANDARD_NO_PAD.decode(encoded.trim_end_matches('=')).is_ok() {
        return Some(secret);
    }
    item.wrong(Wrong::value(
        "begins with whsec_, but what follows is not base64",
        "Copy the whole secret from the receiver, or make one: echo \"whsec_$(openssl rand -base64 24)\".",
    ));
    None
}

pub(super) fn read_url(text: &str) -> Result<Url, Wrong> {
    let form = "Write an https address such as \"https://crm.example.com/hooks/mail\".";
    let url = Url::parse(text).map_err(|error| Wrong::value(format!("not a URL: {error}"), form))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(Wrong::value("not an http or https URL", form));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Wrong::value("a URL may not hold a user or password, since URLs are shown", "Use the key secret."));
    }
    Ok(url)
}

pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or("");
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

fn maildir(section: &Section<'_>) -> Option<Target> {
    let item = section.required("path", "Add the folder, such as path = \"/var/mail/sales\".")?;
    item.absolute_path().map(|path| Target::Maildir { path })
}
