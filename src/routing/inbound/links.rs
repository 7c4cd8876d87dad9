//! The way from an address of ours to its ends, link by link: for people who ask why.

use std::collections::HashSet;

use super::{CHAIN_DEPTH_MAX, alias, entry, is_postmaster};
use crate::config::{Config, Destination};
use crate::message::Address;

/// Links that are told.
const LINKS_MAX: usize = 100;

/// An address, what takes it, and where that leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub address: Address,
    /// What takes it, in words; empty: nothing does.
    pub by: String,
    /// The key that says so.
    pub key: Option<String>,
    pub to: Vec<String>,
}

/// From this address to its ends, each address once. Empty: it is not ours.
pub fn links(config: &Config, recipient: &Address) -> Vec<Link> {
    let (mut links, mut seen) = (Vec::new(), HashSet::new());
    let mut open = vec![(recipient.clone(), 0)];
    while let Some((address, depth)) = open.pop() {
        let is_ours = config.is_own(address.domain()) || *address.domain() == config.hostname;
        if !is_ours || depth > CHAIN_DEPTH_MAX || links.len() >= LINKS_MAX || !seen.insert(address.lookup_key()) {
            continue;
        }
        let destinations = entry(config, &address).map(|entry| entry.destinations.into_owned()).unwrap_or_default();
        let (by, key) = taken_by(config, &address);
        let to = destinations.iter().map(shown).collect();
        // The first comes first.
        open.extend(destinations.iter().rev().filter_map(|destination| match destination {
            Destination::Address(next) => Some((next.clone(), depth + 1)),
            Destination::Target(_) | Destination::Discard | Destination::Reject => None,
        }));
        links.push(Link { address, by, key, to });
    }
    links
}

/// In the order in which `entry` looks.
fn taken_by(config: &Config, address: &Address) -> (String, Option<String>) {
    let own = address.lookup_key();
    if let Some((key, _)) = alias(config, address) {
        let base = if key == own { "" } else { " without the subaddress" };
        if config.aliases.exact.contains_key(&key) {
            return (format!("the alias{base}"), Some(format!("aliases.\"{key}\"")));
        }
        let whole = |regex: &regex::Regex| regex.find(&key).is_some_and(|found| found.len() == key.len());
        let pattern = config.aliases.patterns.iter().find(|pattern| whole(&pattern.regex));
        let text = pattern.map_or("", |pattern| pattern.text.as_str());
        return (format!("the pattern {text}{base}"), Some(format!("aliases.\"{text}\"")));
    }
    if config.is_bounce(address) {
        let key = format!("domains.\"{}\".bounce", address.domain());
        return ("the return path of our own mail, which the postmaster gets".to_owned(), Some(key));
    }
    if is_postmaster(config, address) {
        return ("the postmaster of every domain (RFC 5321 4.5.1)".to_owned(), Some("postmaster".to_owned()));
    }
    let catchall = format!("domains.\"{}\".catchall", address.domain());
    match config.domains.get(address.domain()) {
        Some(domain) if !domain.catchall.is_empty() => ("the catchall of its domain".to_owned(), Some(catchall)),
        _ => (String::new(), Some(catchall)),
    }
}

fn shown(destination: &Destination) -> String {
    match destination {
        Destination::Target(name) => format!("the target {name}"),
        Destination::Address(address) => format!("<{address}>"),
        Destination::Discard => "discard (swallowed)".to_owned(),
        Destination::Reject => "reject (refused)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config;

    #[test]
    fn a_chain_is_told_link_by_link_and_a_circle_ends() {
        let text = "hostname = \"mail.own.test\"\ndata_dir = \"/nowhere\"\npostmaster = \"a@own.test\"\n\
                    [domains.\"own.test\"]\n[aliases]\n\"a@own.test\" = [\"b@own.test\", \"you@far.test\"]\n\
                    \"b@own.test\" = \"you@far.test\"\n";
        let mut config = config::parse("test.toml", text).unwrap();
        // No configuration loads with a circle.
        let back = Destination::Address(Address::parse("a@own.test").unwrap());
        config.aliases.exact.get_mut("b@own.test").unwrap().insert(0, back);
        let of = |address: &str| {
            let links = links(&config, &Address::parse(address).unwrap());
            links
                .iter()
                .map(|link| format!("{} by {}: {}", link.address, link.by, link.to.join(" ")))
                .collect::<Vec<_>>()
        };
        let (a, b) = (
            "a@own.test by the alias: <b@own.test> <you@far.test>",
            "b@own.test by the alias: <a@own.test> <you@far.test>",
        );
        assert_eq!(of("a@own.test"), [a, b]);
        assert_eq!(
            of("b+x@own.test"),
            ["b+x@own.test by the alias without the subaddress: <a@own.test> <you@far.test>", a, b]
        );
        assert_eq!(of("postmaster@own.test")[1..], [a, b]);
        assert_eq!(of("nobody@own.test"), ["nobody@own.test by : "]);
        assert!(of("you@far.test").is_empty());
    }
}
