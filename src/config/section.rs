//! Reads typed values out of the tree, one section at a time.
//!
//! A reader never stops at a problem: it reports it and goes on with the default, so that one load
//! shows everything. A value that is there but wrong and one that is missing both come back as the
//! default (or None); what is built from them is thrown away, because there were problems.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::nearest::nearest;
use super::problem::ProblemKind;
use super::report::Report;
use super::tree::{Node, Place, Table, Value, join};
use super::value::{
    DURATION_FORM, RATE_FORM, SIZE_FORM, parse_duration, parse_rate, parse_size, render_duration, render_size,
};
use super::{AddressOrDomain, Rate};
use crate::message::{Address, Domain};

/// Why a text is refused, and what would be right.
pub(super) struct Wrong {
    pub kind: ProblemKind,
    pub what: String,
    pub remedy: String,
}

impl Wrong {
    pub fn value(what: impl Into<String>, remedy: impl Into<String>) -> Wrong {
        Wrong { kind: ProblemKind::BadValue, what: what.into(), remedy: remedy.into() }
    }

    pub fn reference(what: impl Into<String>, remedy: impl Into<String>) -> Wrong {
        Wrong { kind: ProblemKind::Reference, what: what.into(), remedy: remedy.into() }
    }
}

/// A table of the configuration, there or not.
#[derive(Clone)]
pub(super) struct Section<'a> {
    pub report: &'a Report,
    pub path: String,
    pub place: Place,
    table: Option<&'a Table>,
}

/// A value with its path.
#[derive(Clone)]
pub(super) struct Item<'a> {
    pub report: &'a Report,
    pub path: String,
    pub node: &'a Node,
}

impl<'a> Section<'a> {
    pub fn root(table: &'a Table, file: &str, report: &'a Report) -> Section<'a> {
        Section { report, path: String::new(), place: Place::top(file), table: Some(table) }
    }

    pub fn exists(&self) -> bool {
        self.table.is_some()
    }

    pub fn is_empty(&self) -> bool {
        self.table.is_none_or(Table::is_empty)
    }

    /// The section `name` in this one. One that is not there reads as empty.
    pub fn section(&self, name: &str) -> Section<'a> {
        let entry = self.table.and_then(|table| table.get(name));
        let table = entry.and_then(|entry| match &entry.node.value {
            Value::Table(table) => Some(table),
            _ => None,
        });
        let place = entry.map_or_else(|| self.place.clone(), |entry| entry.node.place.clone());
        Section { report: self.report, path: join(&self.path, name), place, table }
    }

    /// The sections in this one, under the names that the user chose, in the order of the file.
    pub fn named(&self) -> Vec<(&'a str, Section<'a>)> {
        let entries = self.table.map(Table::in_order).unwrap_or_default();
        entries.into_iter().map(|(name, _)| (name, self.section(name))).collect()
    }

    /// The values in this one, in the order of the file.
    pub fn items(&self) -> Vec<(&'a str, Item<'a>)> {
        let entries = self.table.map(Table::in_order).unwrap_or_default();
        let item = |name: &str, node| Item { report: self.report, path: join(&self.path, name), node };
        entries.into_iter().map(|(name, entry)| (name, item(name, &entry.node))).collect()
    }

    pub fn item(&self, name: &str) -> Option<Item<'a>> {
        let entry = self.table?.get(name)?;
        Some(Item { report: self.report, path: join(&self.path, name), node: &entry.node })
    }

    /// As [`Section::item`], and a problem if it is not there.
    pub fn required(&self, name: &str, remedy: &str) -> Option<Item<'a>> {
        let item = self.item(name);
        if item.is_none() {
            self.missing(name, remedy);
        }
        item
    }

    pub fn missing(&self, name: &str, remedy: &str) {
        self.report.problem(ProblemKind::Missing, &self.place, &join(&self.path, name), "missing", remedy);
    }

    pub fn text(&self, name: &str, default: &str) -> String {
        let text = self.item(name).and_then(|item| item.string("a string"));
        text.unwrap_or(default).to_owned()
    }

    pub fn boolean(&self, name: &str, default: bool) -> bool {
        self.item(name).and_then(|item| item.boolean()).unwrap_or(default)
    }

    pub fn count<T: TryFrom<i64>>(&self, name: &str, range: RangeInclusive<i64>, default: T) -> T {
        self.item(name).and_then(|item| item.count(range)).unwrap_or(default)
    }

    pub fn duration(&self, name: &str, range: RangeInclusive<Duration>, default: Duration) -> Duration {
        self.item(name).and_then(|item| item.duration(range)).unwrap_or(default)
    }

    pub fn size(&self, name: &str, min: u64, default: u64) -> u64 {
        self.item(name).and_then(|item| item.size(min)).unwrap_or(default)
    }

    pub fn rate(&self, name: &str, default: Rate) -> Rate {
        self.item(name).and_then(|item| item.rate()).unwrap_or(default)
    }

    pub fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)], default: T) -> T {
        self.item(name).and_then(|item| item.choice(choices, &[])).unwrap_or(default)
    }

    /// A list of strings, each read by `read`; None if there is none.
    pub fn list<T>(&self, name: &str, form: &str, read: impl Fn(&str) -> Result<T, Wrong>) -> Option<Vec<T>> {
        self.item(name)?.list(form, read)
    }
}

impl<'a> Item<'a> {
    pub fn problem(&self, kind: ProblemKind, what: impl Into<String>, remedy: impl Into<String>) {
        self.report.problem(kind, &self.node.place, &self.path, what, remedy);
    }

    pub fn wrong(&self, wrong: Wrong) {
        self.problem(wrong.kind, wrong.what, wrong.remedy);
    }

    pub fn wrong_type(&self, expected: &str, remedy: &str) {
        let what = format!("must be {expected}, not {}", self.node.value.type_name());
        self.problem(ProblemKind::WrongType, what, remedy);
    }

    /// `form`: what the string stands for, with its article.
    pub fn string(&self, form: &str) -> Option<&'a str> {
        self.string_or(form, "Write it as a string in double quotes.")
    }

    fn string_or(&self, form: &str, remedy: &str) -> Option<&'a str> {
        match &self.node.value {
            Value::String(text) => Some(text),
            _ => {
                self.wrong_type(form, remedy);
                None
            }
        }
    }

    /// A string that `read` understands.
    pub fn read<T>(&self, form: &str, read: impl FnOnce(&str) -> Result<T, Wrong>) -> Option<T> {
        match read(self.string(form)?) {
            Ok(value) => Some(value),
            Err(wrong) => {
                self.wrong(wrong);
                None
            }
        }
    }

    pub fn boolean(&self) -> Option<bool> {
        match self.node.value {
            Value::Boolean(yes) => Some(yes),
            _ => {
                self.wrong_type("a boolean", "Write true or false, without quotes.");
                None
            }
        }
    }

    pub fn count<T: TryFrom<i64>>(&self, range: RangeInclusive<i64>) -> Option<T> {
        let form = format!("Write a whole number from {} to {}, without quotes.", range.start(), range.end());
        let Value::Integer(number) = self.node.value else {
            self.wrong_type("an integer", &form);
            return None;
        };
        let value = if range.contains(&number) { T::try_from(number).ok() } else { None };
        if value.is_none() {
            self.problem(ProblemKind::BadValue, format!("{number} is out of range"), form);
        }
        value
    }

    pub fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let text = self.string_or("a duration", DURATION_FORM)?;
        let Some(duration) = parse_duration(text) else {
            self.problem(ProblemKind::BadValue, format!("{text:?} is not a duration"), DURATION_FORM);
            return None;
        };
        if range.contains(&duration) {
            return Some(duration);
        }
        let (min, max) = (render_duration(*range.start()), render_duration(*range.end()));
        let remedy = format!("Write a duration from \"{min}\" to \"{max}\".");
        self.problem(ProblemKind::BadValue, format!("{text:?} is out of range"), remedy);
        None
    }

    pub fn size(&self, min: u64) -> Option<u64> {
        let text = self.string_or("a size", SIZE_FORM)?;
        let size = parse_size(text);
        match size {
            None => self.problem(ProblemKind::BadValue, format!("{text:?} is not a size"), SIZE_FORM),
            Some(bytes) if bytes < min => {
                let remedy = format!("Write \"{}\" or more.", render_size(min));
                self.problem(ProblemKind::BadValue, format!("{text:?} is too small"), remedy);
            }
            Some(_) => {}
        }
        size
    }

    pub fn rate(&self) -> Option<Rate> {
        let text = self.string_or("a rate", RATE_FORM)?;
        let rate = parse_rate(text);
        if rate.is_none() {
            self.problem(ProblemKind::BadValue, format!("{text:?} is not a rate"), RATE_FORM);
        }
        rate
    }

    /// Empty: no limit.
    pub fn optional_rate(&self) -> Option<Rate> {
        let text = self.string("a rate")?;
        let rate = parse_rate(text);
        if rate.is_none() && !text.is_empty() {
            let remedy = format!("{RATE_FORM} \"\" is no limit.");
            self.problem(ProblemKind::BadValue, format!("{text:?} is not a rate"), remedy);
        }
        rate
    }

    /// One of the given words. `later`: words that are documented but not supported yet.
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)], later: &[&str]) -> Option<T> {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let form = format!("Use {}.", one_of(&words));
        let text = self.string_or("a string", &form)?;
        let found = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_some() {
            return found;
        }
        if later.contains(&text) {
            self.problem(ProblemKind::NotSupportedYet, format!("{text:?} is not supported yet"), form);
            return None;
        }
        let guess = nearest(text, words.iter().chain(later).copied());
        let remedy = guess.map_or(form.clone(), |guess| format!("{form} Did you mean \"{guess}\"?"));
        self.problem(ProblemKind::BadValue, format!("{text:?} is not one of the choices"), remedy);
        None
    }

    /// The elements of a list; `form` is how it is written.
    pub fn elements(&self, form: &str) -> Option<Vec<Item<'a>>> {
        let Value::Array(nodes) = &self.node.value else {
            self.wrong_type("a list", &format!("Write it as {form}."));
            return None;
        };
        Some(nodes.iter().map(|node| Item { report: self.report, path: self.path.clone(), node }).collect())
    }

    pub fn list<T>(&self, form: &str, read: impl Fn(&str) -> Result<T, Wrong>) -> Option<Vec<T>> {
        let elements = self.elements(form)?;
        Some(elements.iter().filter_map(|element| element.read("a list of strings", &read)).collect())
    }

    /// As a section, where it is one of a `[[list]]`.
    pub fn section(&self) -> Option<Section<'a>> {
        let Value::Table(table) = &self.node.value else {
            self.wrong_type("a section", "Write its header in double square brackets, and its keys below.");
            return None;
        };
        let place = self.node.place.clone();
        Some(Section { report: self.report, path: self.path.clone(), place, table: Some(table) })
    }

    pub fn absolute_path(&self) -> Option<PathBuf> {
        self.read("a path", |text| {
            let path = Path::new(text);
            let plain = path.is_absolute() && !text.contains('\0');
            let remedy = "Write the whole path, from / on.";
            if plain {
                Ok(path.to_owned())
            } else {
                Err(Wrong::value(format!("{text:?} is not an absolute path"), remedy))
            }
        })
    }

    /// A file that is there and may be read now.
    pub fn readable_file(&self) -> Option<PathBuf> {
        let path = self.absolute_path()?;
        self.report.reads(&path);
        let readable = std::fs::File::open(&path).and_then(|file| file.metadata());
        let trouble = match readable {
            Ok(metadata) if metadata.is_file() => return Some(path),
            Ok(_) => "it is not a file".to_owned(),
            Err(error) => io_reason(&error),
        };
        let what = format!("cannot read {}: {trouble}", path.display());
        self.problem(ProblemKind::Unreadable, what, "Correct the path, or let postrider's user read the file.");
        None
    }
}

/// The operating system's words, without the number that Rust adds.
pub(super) fn io_reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    let plain = text.split(" (os error").next().unwrap_or(&text);
    plain.to_lowercase()
}

/// `"a"`, `"a" or "b"`, `"a", "b" or "c"`.
pub(super) fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    match quoted.split_last() {
        None => String::new(),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}

pub(super) fn read_address(text: &str) -> Result<Address, Wrong> {
    let remedy = "Write local-part@domain, without a name or angle brackets.";
    Address::parse(text).map_err(|error| Wrong::value(format!("{text:?} is not an address: {error}"), remedy))
}

pub(super) fn read_address_or_domain(text: &str) -> Result<AddressOrDomain, Wrong> {
    if let Some(domain) = text.strip_prefix('@').filter(|domain| read_domain(domain).is_ok()) {
        let what = format!("{text:?} is neither an address nor a domain");
        return Err(Wrong::value(what, format!("For a whole domain write it without the @: {domain:?}.")));
    }
    if text.contains('@') {
        return read_address(text).map(AddressOrDomain::Address);
    }
    read_domain(text).map(AddressOrDomain::Domain)
}

/// A full domain name: no address literal, at least one dot.
pub(super) fn read_domain(text: &str) -> Result<Domain, Wrong> {
    let remedy = "Write a full domain name such as \"example.com\".";
    let domain =
        Domain::parse(text).map_err(|error| Wrong::value(format!("{text:?} is not a domain: {error}"), remedy))?;
    if domain.literal().is_some() || !domain.as_str().contains('.') {
        return Err(Wrong::value(format!("{text:?} is not a full domain name"), remedy));
    }
    Ok(domain)
}
