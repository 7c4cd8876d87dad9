//! Reads the domains that are ours.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::destinations::{Names, destinations};
use super::problem::ProblemKind;
use super::section::{Section, Wrong, read_domain};
use super::{Dkim, OwnDomain};
use crate::message::{Address, Domain};

/// Smallest limit for a message, in bytes. RFC 5321 4.5.3.1.7 wants 64 KiB of a public server; a gateway for
/// sensors may do with less, but below this a limit is a slip of the pen.
pub(super) const MESSAGE_BYTES_MIN: u64 = 4 * 1024;

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
    let form = "a list of local parts such as [\"bounces\"]";
    let previous_names = section.list("previous_names", form, |text| read_local(text, domain)).unwrap_or_default();
    let subaddress = match section.item("subaddress") {
        None => Some('+'),
        Some(item) => item.read("a character", read_separator).flatten(),
    };
    let max_size = section.item("max_size").and_then(|item| item.size(MESSAGE_BYTES_MIN));
    let dkim = dkim(&section.section("dkim"));
    let bounce = bounce.unwrap_or_else(|| "bounce".to_owned());
    OwnDomain { catchall, bounce, previous_names, subaddress, max_size, dkim }
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
    let default = || vec!["pr-rsa".to_owned(), "pr-ed".to_owned()];
    let selectors = section.list("selectors", SELECTORS_FORM, read_selector).unwrap_or_else(default);
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
    check_selectors(section, &selectors, &key_files);
    Dkim { selectors, key_files }
}

fn check_selectors(section: &Section<'_>, selectors: &[String], key_files: &BTreeMap<String, PathBuf>) {
    let Some(item) = section.item("selectors") else { return };
    if selectors.len() > GENERATED_SELECTORS_MAX {
        let what = format!("{} selectors, but keys are made for {GENERATED_SELECTORS_MAX} only", selectors.len());
        item.problem(
            ProblemKind::BadValue,
            what,
            "Name the RSA selector, then the Ed25519 one; put others into key_files.",
        );
    }
    let mut seen = BTreeSet::new();
    for selector in selectors {
        if !seen.insert(selector) || key_files.contains_key(selector) {
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
