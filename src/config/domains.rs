//! Reads the domains that are ours.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::destinations::{Names, destinations};
use super::problem::ProblemKind;
use super::section::{Item, Section, Wrong, read_domain};
use super::sender::CATCHALL_LOCAL;
use super::tree::join;
use super::value::render_size;
use super::{Aliases, Dkim, OwnDomain, Sender};
use crate::message::{Address, Domain};

/// RFC 5321 4.5.3.1.7 wants 64 KiB of a public server. A gateway for sensors may do with less, but below this, in
/// bytes, a limit probably is a slip of the pen.
const MESSAGE_BYTES_USUAL: u64 = 4 * 1024;

/// Where neither selectors nor key files are named.
const DEFAULT_SELECTORS: [&str; 2] = ["pr-rsa", "pr-ed"];
/// One RSA-2048 and one Ed25519 key for each domain.
const GENERATED_SELECTORS_MAX: usize = 2;

const SELECTORS_FORM: &str = "a list of selectors such as [\"pr-rsa\", \"pr-ed\"]";

pub(super) fn domains(root: &Section<'_>, names: &Names) -> BTreeMap<Domain, OwnDomain> {
    let mut domains: BTreeMap<Domain, OwnDomain> = BTreeMap::new();
    for (name, section) in root.section("domains").named() {
        let domain = match read_domain(name) {
            Ok(domain) => Some(domain),
            Err(wrong) => {
                section.report.problem(wrong.kind, &section.place, &section.path, wrong.what, wrong.remedy);
                None
            }
        };
        let own = own_domain(&section, domain.as_ref(), names);
        let Some(domain) = domain else { continue };
        if domains.contains_key(&domain) {
            let what = format!("{domain} has a section already");
            section.report.problem(ProblemKind::Duplicate, &section.place, &section.path, what, "Join the two.");
        }
        domains.insert(domain, own);
    }
    domains
}

fn own_domain(section: &Section<'_>, domain: Option<&Domain>, names: &Names) -> OwnDomain {
    let catchall = section.item("catchall").map(|item| destinations(&item, names)).unwrap_or_default();
    let bounce = section.item("bounce").and_then(|item| item.read("a local part", |text| read_local(text, domain)));
    let form = "a list of local parts such as [\"old-bounce\"]";
    let previous = section.list("previous_names", form, |text| read_local(text, domain)).unwrap_or_default();
    let previous_names = previous.iter().map(|name| name.to_ascii_lowercase()).collect();
    let subaddress = match section.item("subaddress") {
        None => Some('+'),
        Some(item) => item.read("a character", read_separator).flatten(),
    };
    let max_size = section.item("max_size").and_then(|item| message_size(&item));
    let dkim = dkim(&section.section("dkim"));
    let bounce = bounce.unwrap_or_else(|| "bounce".to_owned());
    OwnDomain { catchall, bounce, previous_names, subaddress, max_size, dkim }
}

/// A limit for messages.
pub(super) fn message_size(item: &Item<'_>) -> Option<u64> {
    let size = item.size(1)?;
    if (1..MESSAGE_BYTES_USUAL).contains(&size) {
        item.report.warn(format!(
            "{} is {}: the header of a message alone often is larger",
            item.path,
            render_size(size)
        ));
    }
    Some(size)
}

/// An address has one meaning: what comes back to it as a bounce is nothing else's.
pub(super) fn check_names(
    root: &Section<'_>,
    domains: &BTreeMap<Domain, OwnDomain>,
    aliases: &Aliases,
    sender: &Sender,
    takes_bounces: bool,
) {
    for (name, section) in root.section("domains").named() {
        let own = read_domain(name).ok().and_then(|domain| domains.get_key_value(&domain));
        let Some((domain, own)) = own else { continue };
        let item = section.item("bounce");
        let in_use = item.is_some() || takes_bounces;
        if let Some(bounce) = own.bounce_address(domain).filter(|_| in_use)
            && let Some(other) = other_meaning(&bounce, aliases, sender)
        {
            let place = item.as_ref().map_or(&section.place, |item| &item.node.place);
            let what = format!("{bounce} is where bounces come back to, and {other}");
            let remedy = "Give one of the two another name.";
            section.report.problem(ProblemKind::Reference, place, &join(&section.path, "bounce"), what, remedy);
        }
        for previous in &own.previous_names {
            let Ok(address) = Address::new(previous, domain.clone()) else { continue };
            if let Some(item) =
                section.item("previous_names").filter(|_| aliases.exact.contains_key(&address.lookup_key()))
            {
                let what = format!("{address} is an alias, so bounces and answers that still come go there");
                item.problem(ProblemKind::Reference, what, "Take it out, here or there.");
            }
        }
    }
}

fn other_meaning(bounce: &Address, aliases: &Aliases, sender: &Sender) -> Option<&'static str> {
    let key = bounce.lookup_key();
    match bounce.lookup_local().as_str() {
        CATCHALL_LOCAL => Some("that is the address of the catchall"),
        "postmaster" | "abuse" => Some("that is an address that people write to"),
        _ if aliases.exact.contains_key(&key) => Some("there is an alias of that name"),
        _ if sender.default_from.as_ref().is_some_and(|from| from.lookup_key() == key) => {
            Some("sender.default_from is the same")
        }
        _ => None,
    }
}

fn read_local(text: &str, domain: Option<&Domain>) -> Result<String, Wrong> {
    let host = domain.cloned().or_else(|| Domain::parse("domain.invalid").ok());
    let legal = text.is_ascii() && host.is_some_and(|host| Address::new(text, host).is_ok());
    let remedy = "Write what stands before the @, such as \"bounce\".";
    if legal { Ok(text.to_owned()) } else { Err(Wrong::value(format!("{text:?} is not a local part"), remedy)) }
}

fn read_separator(text: &str) -> Result<Option<char>, Wrong> {
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        (None, _) => Ok(None),
        (Some(c), None) if "+-_=#~!$%&*/?^|".contains(c) => Ok(Some(c)),
        _ => {
            let remedy = "Write one character such as \"+\" or \"-\", or \"\" for no subaddresses.";
            Err(Wrong::value(format!("{text:?} cannot separate a subaddress"), remedy))
        }
    }
}

fn dkim(section: &Section<'_>) -> Dkim {
    let written = section.list("selectors", SELECTORS_FORM, read_selector);
    let mut key_files = BTreeMap::new();
    if section.item("key_files").is_some() {
        let files = section.section("key_files");
        if let (false, Some(item)) = (files.exists(), section.item("key_files")) {
            item.wrong_type("a table", "Write { selector = \"/path/to/key.pem\" }.");
        }
        for (selector, item) in files.items() {
            if let Err(wrong) = read_selector(selector) {
                item.wrong(wrong);
            }
            key_files.insert(selector.to_owned(), item.readable_file().unwrap_or_else(PathBuf::new));
        }
    }
    // Who brings keys along and names no others wants no others.
    let default = || match key_files.is_empty() {
        true => DEFAULT_SELECTORS.map(str::to_owned).to_vec(),
        false => Vec::new(),
    };
    let selectors = written.unwrap_or_else(default);
    check_selectors(section, &selectors, &key_files);
    Dkim { selectors, key_files }
}

fn check_selectors(section: &Section<'_>, selectors: &[String], key_files: &BTreeMap<String, PathBuf>) {
    let Some(item) = section.item("selectors") else { return };
    let made = selectors.iter().filter(|selector| !key_files.contains_key(*selector)).count();
    if made > GENERATED_SELECTORS_MAX {
        let what = format!("{made} selectors without a key file, but keys are made for {GENERATED_SELECTORS_MAX} only");
        item.problem(
            ProblemKind::BadValue,
            what,
            "Name the RSA selector, then the Ed25519 one; put others into key_files.",
        );
    }
    let mut seen = BTreeSet::new();
    for selector in selectors {
        if !seen.insert(selector) {
            item.problem(ProblemKind::Duplicate, format!("selector {selector:?} is named twice"), "Name it once.");
        }
    }
    if selectors.is_empty() && key_files.is_empty() {
        section
            .report
            .warn(format!("{}: no selectors, so this domain's mail leaves without a signature", section.path));
    }
}

/// RFC 6376 3.1: sub-domains, joined by dots. They name a file too.
pub fn is_selector(text: &str) -> bool {
    let label = |label: &str| {
        let inner = label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        !label.is_empty() && label.len() <= 63 && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    text.len() <= 127 && text.split('.').all(label)
}

fn read_selector(text: &str) -> Result<String, Wrong> {
    let remedy = "Use lower-case letters, digits and hyphens, such as \"pr-rsa\".";
    if is_selector(text) {
        Ok(text.to_owned())
    } else {
        Err(Wrong::value(format!("{text:?} is not a selector"), remedy))
    }
}
