//! What a configuration amounts to, key by key: what is written, with its place, and the defaults of what is not.
//! Secrets are never shown; where they come from is.

use std::collections::HashMap;
use std::path::Path;

use serde::Serialize;

use super::files;
use super::keys::lists;
use super::reference::{self, Key, Said, Standard};
use super::report::Report;
use super::tree::{Node, Table, Value, join};
use super::value::render_duration;
use super::{Config, ListenerTls, Problems, load};
use crate::message::Domain;

/// In place of a secret.
const MASK: &str = "***";
/// Streams that are always there.
const STREAMS: [&str; 3] = ["transactional", "bulk", "security"];
/// The listeners there are if none is named, as the reference has them.
const LISTENERS: [&str; 3] = ["mx", "submission", "submissions"];
/// Sections that are there only if they are written.
const OPTIONAL: [&str; 2] = ["smart_hosts.*.oauth", "fetch.*.oauth"];

/// A key and what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// As it would be written, such as `streams.bulk.suppress`.
    pub key: String,
    /// In TOML; a default that is no fixed value in words.
    pub value: String,
    /// `value` is TOML.
    pub literal: bool,
    pub default: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
}

/// All settings of a configuration that loads, or what is wrong with it.
pub fn settings(path: &Path) -> Result<Vec<Setting>, Problems> {
    let config = load(path)?;
    let text = files::read_text(path).unwrap_or_default();
    let tree = files::read_tree(&path.display().to_string(), &text, &Report::default());
    Ok(of_tree(&tree, &config))
}

fn of_tree(tree: &Table, config: &Config) -> Vec<Setting> {
    let keys = reference::keys();
    let mut settings = Vec::new();
    let is_listed = |key: &&Key| lists().any(|list| key.path == list || is_in(key.path, list));
    for key in keys.iter().filter(|key| key.is_supported && !is_listed(key)) {
        for path in paths(tree, key.path) {
            settings.extend(setting(tree, config, key, &path));
        }
    }
    for list in lists() {
        let path: Vec<String> = list.split('.').map(str::to_owned).collect();
        let Some((Node { value: Value::Array(items), .. }, _)) = find(tree, &path) else { continue };
        for (at, item) in items.iter().enumerate() {
            let Value::Table(table) = &item.value else { continue };
            for key in keys.iter().filter(|key| is_in(key.path, list)) {
                let last = key.path.rsplit('.').next().unwrap_or_default().to_owned();
                let found = setting(table, config, key, &[last]);
                settings.extend(found.map(|found| Setting { key: format!("{list}[{at}].{}", found.key), ..found }));
            }
        }
    }
    by_section(settings)
}

/// Each section in one piece, in the order in which they come up.
fn by_section(settings: Vec<Setting>) -> Vec<Setting> {
    let mut sections: Vec<(String, Vec<Setting>)> = Vec::new();
    let mut known: HashMap<String, usize> = HashMap::new();
    for setting in settings {
        let section = apart(&setting.key).0.to_owned();
        let at = *known.entry(section.clone()).or_insert(sections.len());
        match sections.get_mut(at) {
            Some((_, inside)) => inside.push(setting),
            None => sections.push((section, vec![setting])),
        }
    }
    sections.into_iter().flat_map(|(_, inside)| inside).collect()
}

/// The section of a key, and its name in there.
pub fn apart(key: &str) -> (&str, &str) {
    let (mut quoted, mut last) = (false, None);
    for (at, c) in key.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '.' if !quoted => last = Some(at),
            _ => {}
        }
    }
    last.map_or(("", key), |at| (&key[..at], &key[at + 1..]))
}

/// The pattern with the names that there are in place of each `*`.
fn paths(tree: &Table, pattern: &str) -> Vec<Vec<String>> {
    let mut paths: Vec<Vec<String>> = vec![Vec::new()];
    for part in pattern.split('.') {
        let mut longer = Vec::new();
        for path in paths {
            let names = if part == "*" { names(tree, &path) } else { vec![part.to_owned()] };
            longer.extend(names.into_iter().map(|name| [path.clone(), vec![name]].concat()));
        }
        paths = longer;
    }
    paths
}

fn names(tree: &Table, path: &[String]) -> Vec<String> {
    let written = match find(tree, path) {
        Some((Node { value: Value::Table(table), .. }, _)) => {
            table.in_order().into_iter().map(|(name, _)| name).collect()
        }
        _ => Vec::new(),
    };
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let always: &[&str] = match path.as_slice() {
        ["streams"] => &STREAMS,
        ["destinations"] => &["default"],
        ["listeners"] if written.is_empty() => &LISTENERS,
        _ => &[],
    };
    // [aliases.limits] is a section of its own.
    let written = written.into_iter().filter(|name| !(path.as_slice() == ["aliases"] && *name == "limits"));
    let mut names: Vec<String> = always.iter().copied().chain(written).map(str::to_owned).collect();
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// The value at a path, and its line.
fn find<'t>(tree: &'t Table, path: &[String]) -> Option<(&'t Node, u32)> {
    let (first, rest) = path.split_first()?;
    let entry = tree.get(first)?;
    match (rest.is_empty(), &entry.node.value) {
        (true, _) => Some((&entry.node, entry.key.line)),
        (false, Value::Table(table)) => find(table, rest),
        (false, _) => None,
    }
}

fn setting(tree: &Table, config: &Config, key: &Key, path: &[String]) -> Option<Setting> {
    let written_key = path.iter().fold(String::new(), |written, name| join(&written, name));
    if let Some((node, line)) = find(tree, path) {
        let value = match &node.value {
            _ if key.is_secret => source(node),
            Value::String(text) => toml::Value::String(without_query(text)).to_string(),
            value => render(value),
        };
        let (file, line) = (Some(node.place.file.to_string()), Some(line));
        return Some(Setting { key: written_key, value, literal: true, default: false, file, line });
    }
    let name = path.len().checked_sub(2).and_then(|at| path.get(at)).map_or("", String::as_str);
    if OPTIONAL
        .iter()
        .any(|section| is_in(key.path, section) && find(tree, path.split_last().map_or(&[], |(_, up)| up)).is_none())
    {
        return None;
    }
    let (value, literal) = default(config, key, path, name)?;
    Some(Setting { key: written_key, value, literal, default: true, file: None, line: None })
}

fn is_in(path: &str, section: &str) -> bool {
    path.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'))
}

/// What it is when it is not written; none if it does not belong there.
fn default(config: &Config, key: &Key, path: &[String], name: &str) -> Option<(String, bool)> {
    if key.path.starts_with("aliases.") {
        return None;
    }
    if is_in(key.path, "destinations") && name != "default" {
        return Some(("as in [destinations.default]".to_owned(), false));
    }
    if key.path == "listeners.*.tls" {
        return config.listeners.get(name).map(|listener| (format!("\"{}\"", tls_name(listener.tls)), true));
    }
    if let Some(value) = following(config, key.path, path) {
        return Some((value, true));
    }
    let said = said_of(config, key, path, name)?;
    let is_of_this_section = said.name.as_deref() == Some(name);
    // The three listeners that are there without being written.
    if is_in(key.path, "listeners") && is_of_this_section {
        return Some((said.value.clone(), true));
    }
    match &said.standard {
        Standard::Required => None,
        Standard::Value(value) => Some((value.clone(), true)),
        Standard::Words(words) => match words.split_once(", but for this stream") {
            Some(_) if is_of_this_section => Some((said.value.clone(), true)),
            Some((others, _)) => Some((others.to_owned(), true)),
            None if matches!(words.as_str(), "true" | "false") => Some((words.clone(), true)),
            None => Some((words.clone(), false)),
        },
    }
}

/// A default that follows from what another key says.
fn following(config: &Config, pattern: &str, path: &[String]) -> Option<String> {
    match pattern {
        "domains.*.dkim.selectors" => {
            let own = config.domains.get(&Domain::parse(path.get(1)?).ok()?)?;
            let quoted: Vec<String> = own.dkim.selectors.iter().map(|selector| format!("{selector:?}")).collect();
            Some(format!("[{}]", quoted.join(", ")))
        }
        "bounces.spread" => Some(format!("\"{}\"", render_duration(config.bounces.spread))),
        _ => None,
    }
}

/// What the reference says of the key in a section like this one.
fn said_of<'k>(config: &Config, key: &'k Key, path: &[String], name: &str) -> Option<&'k Said> {
    if path.first().is_some_and(|section| section == "targets") {
        let kind = config.targets.get(name)?.kind();
        return key.said.iter().find(|said| said.section_kind.as_deref() == Some(kind));
    }
    let same_name = key.said.iter().find(|said| said.name.as_deref() == Some(name));
    same_name.or_else(|| key.said.iter().find(|said| said.standard != Standard::Required)).or(key.said.first())
}

fn tls_name(tls: ListenerTls) -> &'static str {
    match tls {
        ListenerTls::Off => "off",
        ListenerTls::Opportunistic => "opportunistic",
        ListenerTls::Required => "required",
        ListenerTls::Implicit => "implicit",
    }
}

/// Where a secret comes from; never what it is.
fn source(node: &Node) -> String {
    match &node.value {
        Value::Table(_) => render(&node.value),
        _ => format!("\"{MASK}\""),
    }
}

/// A URL without its query, where services have their keys. (A user and a password in it are refused.)
fn without_query(text: &str) -> String {
    match text.split_once('?') {
        Some((url, query)) if url.contains("://") && !query.is_empty() => format!("{url}?{MASK}"),
        _ => text.to_owned(),
    }
}

/// As it would be written on one line. Secrets inside of tables that are lists are masked as well.
fn render(value: &Value) -> String {
    match value {
        Value::String(text) => toml::Value::String(text.clone()).to_string(),
        Value::Integer(number) => number.to_string(),
        Value::Boolean(yes) => yes.to_string(),
        // No key takes one of these.
        Value::Float | Value::Datetime => String::new(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| render(&item.value)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Table(table) => {
            let entries: Vec<String> = table
                .in_order()
                .into_iter()
                .map(|(name, entry)| format!("{} = {}", join("", name), render(&entry.node.value)))
                .collect();
            format!("{{ {} }}", entries.join(", "))
        }
    }
}

/// Is `key`, as it would be written, what a person means by `wanted`: the key itself, its section, or a pattern?
pub fn is_meant(key: &str, wanted: &str) -> bool {
    let parts = |path: &str| -> Vec<String> {
        path.split('"')
            .enumerate()
            .flat_map(|(at, part)| match at % 2 {
                1 => vec![part.to_owned()],
                _ => part.split('.').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
            })
            .collect()
    };
    let (key, wanted) = (parts(key), parts(wanted));
    wanted.len() <= key.len() && key.iter().zip(&wanted).all(|(is, wanted)| is == wanted || wanted == "*" || is == "*")
}
