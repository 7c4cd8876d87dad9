//! Reads where inbound mail goes: aliases, and the values that aliases and catchalls share. The targets
//! themselves are read in `targets`.

use std::collections::{BTreeMap, BTreeSet};

use regex::{Regex, RegexBuilder};

use super::nearest::nearest;
use super::problem::ProblemKind;
use super::section::{Item, Section, Wrong, read_address, read_domain};
use super::targets::BUILT_IN;
use super::tree::Value;
use super::{Aliases, Destination, PatternAlias};
use crate::message::{Address, Domain};

/// Memory that one compiled pattern, and the cache it works with, may take, in bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;
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
            let remedy = match proposed(text) {
                Some(address) => format!("Write \"{address}\", or a regular expression between slashes."),
                None => "Write local-part@domain, or a regular expression between slashes.".to_owned(),
            };
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

/// By what an alias is found: the text of a pattern, the lookup key of an address.
pub(super) fn alias_key(text: &str) -> String {
    match Address::parse(text) {
        Ok(address) if !text.starts_with('/') => address.lookup_key(),
        _ => text.to_owned(),
    }
}

/// A name that is legal in place of one that is not: `Süd & West@` → `sud-west@`.
fn proposed(text: &str) -> Option<Address> {
    let (local, domain) = text.rsplit_once('@')?;
    let plain = icu_normalizer::DecomposingNormalizerBorrowed::new_nfd().normalize(local);
    let is_mark = |c: &char| matches!(c, '\u{300}'..='\u{36f}');
    let legal = |c: char| if c.is_ascii_alphanumeric() || "+._-".contains(c) { c.to_ascii_lowercase() } else { ' ' };
    let words: String = plain.chars().filter(|c| !is_mark(c)).map(legal).collect();
    let joined = words.split_whitespace().collect::<Vec<_>>().join("-");
    let local = joined.split('.').filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".");
    Address::new(&local, Domain::parse(domain).ok()?).ok()
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
