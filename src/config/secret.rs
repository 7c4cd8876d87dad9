//! Secrets: a string, `{ file = "…" }` or `{ env = "…" }`, read when the configuration is.
//!
//! No text made here holds a secret's value.

use std::io::Read;
use std::path::Path;

use super::Secret;
use super::problem::ProblemKind;
use super::report::Report;
use super::section::{Item, Wrong, io_reason};
use super::tree::{Table, Value};

/// Longest secret file read, in bytes.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

const FORM: &str = "Write a string, { file = \"/path\" } or { env = \"NAME\" }.";

impl Item<'_> {
    /// Has it the form of a secret? One that nobody needs is not read.
    pub fn check_secret_form(&self) {
        if !matches!(self.node.value, Value::String(_) | Value::Table(_)) {
            self.wrong_type("a secret", FORM);
        }
    }

    pub fn secret(&self) -> Option<Secret> {
        let secret = match &self.node.value {
            Value::String(text) => Ok(text.clone()),
            Value::Table(table) => from_table(table, self.report),
            _ => {
                self.wrong_type("a secret", FORM);
                return None;
            }
        };
        let filled = secret.and_then(|text| {
            if text.is_empty() { Err(Wrong::value("the secret is empty", FORM)) } else { Ok(Secret(text)) }
        });
        let secret = filled.map_err(|wrong| self.wrong(wrong)).ok()?;
        self.report.secret(&self.path, &secret);
        Some(secret)
    }
}

fn from_table(table: &Table, report: &Report) -> Result<String, Wrong> {
    let entries = table.in_order();
    let [(name, entry)] = entries.as_slice() else {
        return Err(Wrong::value("a secret comes from one place", FORM));
    };
    let Value::String(source) = &entry.node.value else {
        return Err(Wrong::value("the place of a secret must be a string", FORM));
    };
    match *name {
        "file" => {
            report.reads(Path::new(source));
            from_file(source)
        }
        "env" => from_environment(source),
        other => Err(Wrong {
            kind: ProblemKind::UnknownKey,
            what: format!("unknown key {other:?}"),
            remedy: FORM.to_owned(),
        }),
    }
}

fn from_file(path: &str) -> Result<String, Wrong> {
    let unreadable = |reason: String| Wrong {
        kind: ProblemKind::Unreadable,
        what: format!("cannot read the secret in {path}: {reason}"),
        remedy: "Write the secret into that file, readable for postrider's user only.".to_owned(),
    };
    if !Path::new(path).is_absolute() {
        return Err(Wrong::value(format!("{path:?} is not an absolute path"), "Write the whole path, from / on."));
    }
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| unreadable(io_reason(&error)))?;
    let read = file.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text);
    let bytes = read.map_err(|error| unreadable(io_reason(&error)))?;
    if bytes as u64 > SECRET_BYTES_MAX {
        return Err(unreadable("it is too long for a secret".to_owned()));
    }
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

fn from_environment(name: &str) -> Result<String, Wrong> {
    let reason = match std::env::var(name) {
        Ok(value) => return Ok(value),
        Err(std::env::VarError::NotPresent) => "is not set",
        Err(std::env::VarError::NotUnicode(_)) => "is not text",
    };
    Err(Wrong {
        kind: ProblemKind::Unreadable,
        what: format!("the environment variable {name:?} {reason}"),
        remedy: "Set it where postrider is started, or use { file = \"/path\" }.".to_owned(),
    })
}
