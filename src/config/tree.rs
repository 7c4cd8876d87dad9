//! TOML as a tree that knows where each key and value stands.
//!
//! Several files become one tree by merging; a key that two of them give is a problem that names
//! both places. Syntax errors do not end the reading: what the parser can recover is in the tree,
//! so that one load shows every problem.

use std::collections::BTreeMap;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::problem::ProblemKind;
use super::report::Report;

/// Where something stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub file: Arc<str>,
    /// From 1; 0: the file as a whole.
    pub line: u32,
    pub column: u32,
    /// Order of reading: number of the file, then offset in it.
    order: (u32, usize),
}

impl Place {
    /// A file as a whole.
    pub fn file(name: &str) -> Place {
        Place { file: name.into(), line: 0, column: 0, order: (0, 0) }
    }

    /// Where a key outside any section would be added.
    pub fn top(name: &str) -> Place {
        Place { line: 1, ..Place::file(name) }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub place: Place,
    pub value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    String(String),
    Integer(i64),
    Float,
    Boolean(bool),
    Datetime,
    Array(Vec<Node>),
    Table(Table),
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub key: Place,
    pub node: Node,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Table(BTreeMap<String, Entry>);

impl Value {
    /// With its article, for "must be …, not …".
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::String(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Float => "a float",
            Value::Boolean(_) => "a boolean",
            Value::Datetime => "a date",
            Value::Array(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

impl Table {
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.0.get(name)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn remove(&mut self, name: &str) -> Option<Entry> {
        self.0.remove(name)
    }

    /// Entries in the order of the file.
    pub fn in_order(&self) -> Vec<(&str, &Entry)> {
        let mut entries: Vec<_> = self.0.iter().map(|(name, entry)| (name.as_str(), entry)).collect();
        entries.sort_by_key(|(_, entry)| entry.key.order);
        entries
    }

    /// Takes over what `other` holds. Tables merge; anything else that both have is a problem.
    pub fn merge(&mut self, other: Table, path: &str, report: &Report) {
        for (name, new) in other.0 {
            let key = join(path, &name);
            let Some(old) = self.0.get_mut(&name) else {
                self.0.insert(name, new);
                continue;
            };
            match (&mut old.node.value, new.node.value) {
                (Value::Table(old), Value::Table(new)) => old.merge(new, &key, report),
                _ => {
                    let what = format!("given already in {}:{}", old.key.file, old.key.line);
                    report.problem(ProblemKind::Duplicate, &new.key, &key, what, "Remove one of the two.");
                }
            }
        }
    }
}

/// The path of `name` under `path`, as it would be written in TOML.
pub(super) fn join(path: &str, name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let name = if bare { name.to_owned() } else { format!("\"{}\"", name.escape_debug()) };
    if path.is_empty() { name } else { format!("{path}.{name}") }
}

/// Reads one file. `number` is its place among the files read.
pub(super) fn parse(file: &str, number: u32, text: &str, report: &Report) -> Table {
    let positions = Positions::new(file, number, text);
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let place = positions.place(error.span().map_or(0, |span| span.start));
        let message = error.message();
        let earlier = if message == "duplicate key" { earlier_line(text, place.line) } else { None };
        let (key, what) = match earlier {
            Some((key, line)) => (key, format!("given already in line {line}")),
            None => (String::new(), message.trim_end_matches(", expected literal string").replace('\n', " ")),
        };
        report.syntax(&place, key, what, syntax_remedy(message));
    }
    positions.table(table.into_inner())
}

/// What to do about the parser's commonest complaints.
fn syntax_remedy(message: &str) -> &'static str {
    if message.starts_with("duplicate key") {
        "A key or section may appear once only: remove one of them or join the two."
    } else if message.starts_with("string values must be quoted") {
        "Put the value in double quotes."
    } else if message.starts_with("key with no value") {
        "Write it as key = value."
    } else if message.contains("invalid basic string") {
        "Close the string with a double quote."
    } else if message.contains("escape") {
        "In double quotes a backslash is written twice; in single quotes once."
    } else {
        "This is not TOML: see https://toml.io for how it is written."
    }
}

/// The key that a line gives again, and where it stood before, as far as the text shows it.
fn earlier_line(text: &str, line: u32) -> Option<(String, usize)> {
    let name = |line: &str| line.split(['=', '#']).next().unwrap_or("").trim().to_owned();
    let header = |line: &str| name(line).strip_prefix('[').map(|rest| rest.trim_matches(['[', ']']).to_owned());
    let number = usize::try_from(line).ok()?.checked_sub(1)?;
    let lines: Vec<&str> = text.lines().take(number + 1).collect();
    let (again, before) = lines.split_last()?;
    if let Some(section) = header(again) {
        let at = before.iter().position(|line| header(line).as_ref() == Some(&section))?;
        return Some((section, at + 1));
    }
    let start = before.iter().rposition(|line| header(line).is_some());
    let section = start.and_then(|at| header(before.get(at)?));
    let key = name(again);
    let at = before.iter().skip(start.unwrap_or(0)).position(|line| name(line) == key)?;
    let path = section.map_or_else(|| key.clone(), |section| format!("{section}.{key}"));
    Some((path, at + start.unwrap_or(0) + 1))
}

/// Turns byte offsets into lines.
struct Positions<'t> {
    file: Arc<str>,
    number: u32,
    text: &'t str,
    line_starts: Vec<usize>,
}

impl<'t> Positions<'t> {
    fn new(file: &str, number: u32, text: &'t str) -> Positions<'t> {
        let starts = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1);
        Positions { file: file.into(), number, text, line_starts: std::iter::once(0).chain(starts).collect() }
    }

    fn place(&self, offset: usize) -> Place {
        let line = self.line_starts.partition_point(|start| *start <= offset);
        let start = self.line_starts.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let before = self.text.get(start..offset).unwrap_or("");
        Place {
            file: self.file.clone(),
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: u32::try_from(before.chars().count() + 1).unwrap_or(u32::MAX),
            order: (self.number, offset),
        }
    }

    fn table(&self, table: DeTable<'_>) -> Table {
        let entries = table.into_iter().map(|(key, value)| {
            let place = self.place(key.span().start);
            (key.into_inner().into_owned(), Entry { key: place, node: self.node(value) })
        });
        Table(entries.collect())
    }

    fn node(&self, value: Spanned<DeValue<'_>>) -> Node {
        let place = self.place(value.span().start);
        let value = match value.into_inner() {
            DeValue::String(text) => Value::String(text.into_owned()),
            DeValue::Integer(number) => integer(&number),
            DeValue::Float(_) => Value::Float,
            DeValue::Boolean(yes) => Value::Boolean(yes),
            DeValue::Datetime(_) => Value::Datetime,
            DeValue::Array(items) => Value::Array(items.into_iter().map(|item| self.node(item)).collect()),
            DeValue::Table(table) => Value::Table(self.table(table)),
        };
        Node { place, value }
    }
}

/// A number beyond 64 bits is out of every range here; the largest one says so as well.
fn integer(number: &DeInteger<'_>) -> Value {
    let negative = number.as_str().starts_with('-');
    let out_of_range = if negative { i64::MIN } else { i64::MAX };
    Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).unwrap_or(out_of_range))
}
