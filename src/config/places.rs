//! Where the keys of a configuration stand, for texts that point at them.

use std::path::Path;

use super::files;
use super::report::Report;
use super::tree::{Place, Table, Value};

/// The places of all keys of a configuration and its includes.
#[derive(Debug, Default)]
pub struct Places {
    tree: Table,
}

impl Places {
    /// Of a file that was loaded before; what cannot be read has no places.
    pub fn read(path: &Path) -> Places {
        let Ok(text) = files::read_text(path) else { return Places::default() };
        Places::parse(&path.display().to_string(), &text)
    }

    pub fn parse(file_name: &str, text: &str) -> Places {
        Places { tree: files::read_tree(file_name, text, &Report::default()) }
    }

    /// `file:line` of a key such as `accounts.shop.senders` or `aliases."a@b.example"`. None: it is not
    /// written, so its default counts.
    pub fn of(&self, key: &str) -> Option<String> {
        let mut table = &self.tree;
        let mut found: Option<&Place> = None;
        for part in parts(key) {
            // Names of domains and addresses are compared without regard to case.
            let entry = table.get(part).or_else(|| {
                let mut entries = table.in_order().into_iter();
                entries.find(|(name, _)| name.eq_ignore_ascii_case(part)).map(|(_, entry)| entry)
            })?;
            found = Some(&entry.key);
            match &entry.node.value {
                Value::Table(inner) => table = inner,
                _ => return Some(shown(&entry.key)),
            }
        }
        found.map(shown)
    }
}

fn shown(place: &Place) -> String {
    format!("{}:{}", place.file, place.line)
}

/// `a."b.c".d` → a, b.c, d.
fn parts(key: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = key;
    while !rest.is_empty() {
        let (part, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_at(rest.find('.').unwrap_or(rest.len())),
        };
        parts.push(part);
        rest = after.strip_prefix('.').unwrap_or(after);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_with_their_lines() {
        let text = "hostname = \"a.test\"\n[accounts.shop]\nsenders = [\"b.test\"]\n[aliases]\n\"Sales@b.test\" = \"crm\"\n\
                    [destinations.\"far.test\"]\nrate = \"1/m\"\n";
        let places = Places::parse("p.toml", text);
        let of = |key: &str| places.of(key).unwrap_or_default();
        assert_eq!(of("hostname"), "p.toml:1");
        assert_eq!(of("accounts.shop"), "p.toml:2");
        assert_eq!(of("accounts.shop.senders"), "p.toml:3");
        assert_eq!(of("aliases.\"sales@b.test\""), "p.toml:5");
        assert_eq!(of("destinations.\"far.test\".rate"), "p.toml:7");
        assert_eq!(of("accounts.shop.hold"), "");
        assert_eq!(of("a..b\"c"), "");
    }
}
