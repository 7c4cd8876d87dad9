//! `tests/data/dns-traps`: what a name server may say to lead mail astray, or to make it cost too much. No trouble of DNS ever
//! bounces mail; nothing leads into the own network; everything that DNS can ask for has a bound.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/authority.rs"]
mod authority;
#[path = "dns_traps/identity.rs"]
mod identity;
#[path = "support/records.rs"]
mod records;
#[path = "dns_traps/routes.rs"]
mod routes;
#[path = "support/web.rs"]
mod web;
#[path = "support/zone.rs"]
mod zone;

/// What all tests share.
mod support {
    pub(crate) use super::authority;
    pub(crate) use super::records;
    pub(crate) use super::web;
    pub(crate) use super::zone;
}

const SET: &str = include_str!("data/dns-traps/zones.yml");

/// The ids of one part of the set.
fn ids(part: &str, count: usize) -> Vec<String> {
    let start = format!("{part}:");
    let lines = SET.lines().skip_while(|line| *line != start).skip(1).take_while(|line| line.starts_with(' '));
    let id = |line: &str| line.trim().strip_prefix("- {id: ").unwrap().split(',').next().unwrap().to_owned();
    let ids: Vec<String> = lines.map(id).collect();
    assert_eq!(ids.len(), count, "{part}");
    ids
}
