//! Where a configuration was read from, key by key, so that two of them can be told apart: what a reload
//! has changed is named with its path and line, and what is secret is never shown.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Secret;
use super::tree::{Node, Table, Value, join};

/// Longest value that is shown, in characters.
const SHOWN_CHARS_MAX: usize = 80;
/// Keys whose values are not shown: secrets, and what may hold one (the user, path or query of a URL, the
/// words of a command).
const HIDDEN: [&str; 9] =
    ["password", "password_hash", "secret", "token", "client_secret", "refresh_token", "url", "token_url", "command"];

/// Where a configuration was read from.
#[derive(Clone, Default, PartialEq)]
pub struct Source {
    /// The main file.
    pub file: PathBuf,
    /// It, what it includes, and what its keys name: whoever writes to one of these changes it.
    pub files: Vec<PathBuf>,
    /// Folders in which a new file would be included.
    pub folders: Vec<PathBuf>,
    values: BTreeMap<String, Written>,
    /// As they were read, by their keys.
    secrets: BTreeMap<String, Secret>,
}

/// Without what is in the files.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({})", self.file.display())
    }
}

/// A value as it stands in a file.
#[derive(Clone, Debug, PartialEq)]
struct Written {
    /// For comparison. Never shown as it is.
    text: Secret,
    shown: Option<String>,
    file: String,
    line: u32,
}

/// What a reading has come across.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub files: Vec<PathBuf>,
    pub folders: Vec<PathBuf>,
    pub secrets: BTreeMap<String, Secret>,
}

/// A key that has another value than before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Such as `limits.connections`.
    pub key: String,
    pub what: ChangeKind,
    /// Not for secrets, nor for what is long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Where it stands now, or stood. Empty: nowhere, it is about a file.
    pub file: String,
    /// From 1; 0: the file as a whole.
    pub line: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    Added,
    Changed,
    Removed,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        match (self.what, &self.before, &self.after) {
            (ChangeKind::Added, _, Some(after)) => write!(f, ": added, {after}"),
            (ChangeKind::Added, ..) => f.write_str(": added"),
            (ChangeKind::Changed, Some(before), Some(after)) => write!(f, ": {before} → {after}"),
            (ChangeKind::Changed, ..) => f.write_str(": changed"),
            (ChangeKind::Removed, Some(before), _) => write!(f, ": removed, was {before}"),
            (ChangeKind::Removed, ..) => f.write_str(": removed"),
        }
    }
}

impl Source {
    pub(super) fn new(file: &str, tree: &Table, found: Found) -> Source {
        let mut values = BTreeMap::new();
        write_down(tree, "", &mut values);
        let file = PathBuf::from(file);
        let mut files = vec![file.clone()];
        files.extend(found.files);
        files.sort();
        files.dedup();
        Source { file, files, folders: found.folders, values, secrets: found.secrets }
    }

    /// A key as it is written here, of the names on the way to it.
    pub fn key<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
        names.into_iter().fold(String::new(), |path, name| join(&path, name))
    }

    /// File and line of a key, or of the first one below it.
    pub fn place(&self, key: &str) -> (String, u32) {
        let below = format!("{key}.");
        // The name of a domain may stand there in capitals.
        let other_case = || self.values.iter().find(|(path, _)| path.eq_ignore_ascii_case(key)).map(|(_, value)| value);
        let own = self.values.get(key).or_else(other_case);
        let own = own.or_else(|| self.values.iter().find(|(path, _)| path.starts_with(&below)).map(|(_, value)| value));
        own.map_or_else(|| (self.file.display().to_string(), 0), |written| (written.file.clone(), written.line))
    }

    /// What is different from `before`, by key. Where a value stands makes no difference.
    pub fn changes(&self, before: &Source) -> Vec<Change> {
        let mut changes = Vec::new();
        let keys = self.values.keys().chain(before.values.keys().filter(|key| !self.values.contains_key(*key)));
        for key in keys {
            let change = |what, before: Option<&Written>, after: Option<&Written>| {
                let place = after.or(before);
                Change {
                    key: key.clone(),
                    what,
                    before: before.and_then(|written| written.shown.clone()),
                    after: after.and_then(|written| written.shown.clone()),
                    file: place.map(|written| written.file.clone()).unwrap_or_default(),
                    line: place.map_or(0, |written| written.line),
                }
            };
            let is_other_secret = || self.secrets.get(key) != before.secrets.get(key);
            changes.extend(match (before.values.get(key), self.values.get(key)) {
                (Some(old), Some(new)) if old.text != new.text => {
                    Some(change(ChangeKind::Changed, Some(old), Some(new)))
                }
                // The file or the variable that it is in.
                (Some(_), Some(new)) if is_other_secret() => {
                    Some(Change { after: None, ..change(ChangeKind::Changed, None, Some(new)) })
                }
                (None, Some(new)) => Some(change(ChangeKind::Added, None, Some(new))),
                (Some(old), None) => Some(change(ChangeKind::Removed, Some(old), None)),
                _ => None,
            });
        }
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        changes
    }

    /// It does depend on this file.
    pub fn reads(&self, file: &Path) -> bool {
        self.files.iter().any(|own| own == file)
    }
}

fn write_down(table: &Table, path: &str, values: &mut BTreeMap<String, Written>) {
    for (name, entry) in table.in_order() {
        let key = join(path, name);
        // What a secret consists of is said by its own key.
        match &entry.node.value {
            Value::Table(inner) if !is_hidden(name) && !inner.is_empty() => write_down(inner, &key, values),
            Value::Array(nodes) if nodes.iter().any(|node| matches!(node.value, Value::Table(_))) => {
                for (number, node) in nodes.iter().enumerate() {
                    write_down_one(&key, number, node, values);
                }
            }
            value => {
                let shown = (!is_hidden(name)).then(|| text(value)).filter(|text| {
                    // A credential in a text looks like any other.
                    text.chars().count() <= SHOWN_CHARS_MAX && !text.contains('@') && !text.contains("://")
                        || matches!(value, Value::Array(_)) && text.chars().count() <= SHOWN_CHARS_MAX
                });
                let written = Written {
                    text: Secret(text(value)),
                    shown,
                    file: entry.key.file.to_string(),
                    line: entry.key.line,
                };
                values.insert(key, written);
            }
        }
    }
}

/// One of `[[several]]`: by its name if it has one, else by its number.
fn write_down_one(key: &str, number: usize, node: &Node, values: &mut BTreeMap<String, Written>) {
    let Value::Table(inner) = &node.value else { return };
    let name = inner.get("name").and_then(|entry| match &entry.node.value {
        Value::String(name) => Some(name.clone()),
        _ => None,
    });
    write_down(inner, &join(key, &name.unwrap_or_else(|| (number + 1).to_string())), values);
}

fn is_hidden(name: &str) -> bool {
    HIDDEN.contains(&name)
}

/// As it would be written in TOML, more or less: good for comparison and for people.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => format!("\"{}\"", text.escape_debug()),
        Value::Integer(number) => number.to_string(),
        Value::Boolean(yes) => yes.to_string(),
        Value::Float => "a float".to_owned(),
        Value::Datetime => "a date".to_owned(),
        Value::Array(nodes) => {
            let items: Vec<String> = nodes.iter().map(|node| text(&node.value)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Table(table) => {
            let items: Vec<String> = table
                .in_order()
                .into_iter()
                .map(|(name, entry)| format!("{name} = {}", text(&entry.node.value)))
                .collect();
            format!("{{ {} }}", items.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::config::parse;

    const HEAD: &str = "hostname = \"mail.own.test\"\ndata_dir = \"/nowhere\"\n[domains.\"own.test\"]\n";

    fn changes(before: &str, after: &str) -> Vec<String> {
        let [before, after] = [before, after].map(|text| parse("test.toml", &format!("{HEAD}{text}")).unwrap().source);
        after.changes(&before).iter().map(|change| format!("{}:{} {change}", change.file, change.line)).collect()
    }

    #[test]
    fn what_has_changed_is_named_with_its_place_and_values() {
        let before = "[limits]\nmax_recipients = 7\nconnections = 100\n[targets.t]\nkind = \"webhook\"\nurl = \"https://a.test/?key=x\"\n";
        let after = "[targets.t]\nkind = \"webhook\"\nurl = \"https://a.test/?key=y\"\n[limits]\nconnections = 200\nmax_size = \"1MiB\"\n";
        assert_eq!(
            changes(before, after),
            [
                "test.toml:8 limits.connections: 100 → 200",
                "test.toml:5 limits.max_recipients: removed, was 7",
                "test.toml:9 limits.max_size: added, \"1MiB\"",
                "test.toml:6 targets.t.url: changed",
            ]
        );
        assert_eq!(changes(before, &format!("# moved\n\n{before}")), [""; 0]);
    }

    #[test]
    fn secrets_are_never_shown_also_where_they_are_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        let account = format!("[accounts.app]\npassword = {{ file = \"{}\" }}\n", file.display());
        let read = |secret: &str| {
            std::fs::write(&file, secret).unwrap();
            parse("test.toml", &format!("{HEAD}{account}")).unwrap().source
        };
        let (first, second) = (read("first words"), read("second words"));
        let changes = second.changes(&first);
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].to_string(), "accounts.app.password: changed");
        assert!(second.reads(&file));
        for text in [format!("{first:?}"), serde_json::to_string(&changes).unwrap()] {
            assert!(!text.contains("words"), "{text}");
        }
        let inline = changes_of_password("one", "two");
        assert_eq!(inline, ["test.toml:5 accounts.app.password: changed"]);
    }

    fn changes_of_password(before: &str, after: &str) -> Vec<String> {
        let text = |password: &str| format!("[accounts.app]\npassword = \"{password}\"\n");
        changes(&text(before), &text(after))
    }

    #[test]
    fn lists_of_sections_are_told_apart_by_their_numbers() {
        let archive = |folder: &str| format!("[[archive]]\npath = \"/{folder}/{{id}}\"\n");
        let (one, two, three) = (archive("one"), archive("two"), archive("three"));
        let wanted = ["test.toml:7 archive.2.path: \"/two/{id}\" → \"/three/{id}\""];
        assert_eq!(changes(&[one.clone(), two].concat(), &[one, three].concat()), wanted);
    }
}
