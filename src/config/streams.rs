//! Reads the streams: where each is pinned, and how fast it may send.
//!
//! The built-in streams are always there, with or without a section. Left out: what comes of the
//! limits (`queue::pace`).

use std::collections::BTreeMap;
use std::time::Duration;

use super::nearest::nearest;
use super::problem::ProblemKind;
use super::section::{Item, Section, Wrong};
use super::value::SECOND_UP;
use super::{Block, SmartHost, Stream};
use crate::message::stream::{self, BUILT_IN, NAME_CHARS_MAX, STREAMS_MAX};

/// Most attempts at once that a stream may name.
const CONCURRENCY_MAX: i64 = 100_000;
const BLOCK_SIZE_MAX: i64 = 1_000_000;
const BLOCK_PAUSE: Duration = Duration::from_secs(120);
/// Most recipients a day that `daily_limit` may name, of a stream or an account.
pub(super) const DAILY_LIMIT_MAX: i64 = 1_000_000_000;

pub(super) fn streams(root: &Section<'_>, hosts: &[SmartHost]) -> BTreeMap<String, Stream> {
    let host_names: Vec<&str> = root.section("smart_hosts").named().into_iter().map(|(name, _)| name).collect();
    let mut streams: BTreeMap<String, Stream> =
        BUILT_IN.iter().map(|name| ((*name).to_owned(), Stream::named(name))).collect();
    for (name, section) in root.section("streams").named() {
        if !section.exists() {
            continue;
        }
        if !stream::is_name(name) {
            let remedy = format!("Use up to {NAME_CHARS_MAX} letters, digits, hyphens, underscores and dots.");
            problem(&section, "not a name for a stream", &remedy);
            continue;
        }
        if streams.len() >= STREAMS_MAX && !streams.contains_key(name) {
            let what = format!("there are more than {STREAMS_MAX} streams, the built-in ones included");
            problem(&section, &what, "Take this one out, or let two kinds of mail share one.");
            continue;
        }
        streams.insert(name.to_owned(), read(name, &section, hosts, &host_names));
    }
    streams
}

fn problem(section: &Section<'_>, what: &str, remedy: &str) {
    section.report.problem(ProblemKind::BadValue, &section.place, &section.path, what, remedy);
}

fn read(name: &str, section: &Section<'_>, hosts: &[SmartHost], host_names: &[&str]) -> Stream {
    let default = Stream::named(name);
    Stream {
        smart_host: section.item("smart_host").and_then(|item| pinned(&item, hosts, host_names)),
        concurrency: section.item("concurrency").and_then(|item| item.count(1..=CONCURRENCY_MAX)),
        block: block(section),
        daily_limit: section.item("daily_limit").and_then(|item| item.count(1..=DAILY_LIMIT_MAX)),
        verp: section.boolean("verp", default.verp),
        suppress: section.boolean("suppress", default.suppress),
        exempt_from_suspend: section.boolean("exempt_from_suspend", default.exempt_from_suspend),
    }
}

fn block(section: &Section<'_>) -> Option<Block> {
    let pause = section.duration("block_pause", SECOND_UP, BLOCK_PAUSE);
    // 0: as if it were not there.
    let size = section.item("block_size").map_or(Some(0), |item| item.count(0..=BLOCK_SIZE_MAX))?;
    if size == 0 {
        if section.item("block_pause").is_some() {
            section.report.warn(format!("{}.block_pause has no effect without block_size", section.path));
        }
        return None;
    }
    Some(Block { size, pause })
}

/// Empty: as if it were not there. A name counts as known even if its section has problems.
fn pinned(item: &Item<'_>, hosts: &[SmartHost], names: &[&str]) -> Option<String> {
    let name = item.string("the name of a smart host").filter(|name| !name.is_empty())?;
    if !names.contains(&name) {
        let remedy = match nearest(name, names.iter().copied()) {
            Some(near) => format!("Did you mean \"{near}\"?"),
            None => format!("Add [smart_hosts.{name}], or leave this out."),
        };
        item.problem(ProblemKind::Reference, format!("there is no smart host named {name:?}"), remedy);
    } else if hosts.iter().any(|host| host.name == name && !host.active) {
        let remedy = "Name an active one, or set active = true there.";
        item.problem(ProblemKind::BadValue, format!("the smart host {name:?} is not active"), remedy);
    }
    Some(name.to_owned())
}

/// One of the streams that there are.
pub(super) fn read_name(text: &str, names: &[String]) -> Result<String, Wrong> {
    if names.iter().any(|name| name == text) {
        return Ok(text.to_owned());
    }
    let remedy = match nearest(text, names.iter().map(String::as_str)) {
        Some(near) => format!("Did you mean \"{near}\"?"),
        None => format!("The streams are {}; another one needs a section [streams.{text}].", names.join(", ")),
    };
    Err(Wrong::reference(format!("there is no stream named {text:?}"), remedy))
}

/// The names of all streams, whatever is wrong with their sections.
pub(super) fn names(root: &Section<'_>) -> Vec<String> {
    let mut names: Vec<String> = BUILT_IN.iter().map(|name| (*name).to_owned()).collect();
    for (name, _) in root.section("streams").named() {
        if !BUILT_IN.contains(&name) {
            names.push(name.to_owned());
        }
    }
    names
}
