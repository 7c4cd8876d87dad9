//! What is wrong with a configuration, said so that it can be put right.
//!
//! A problem names its file and line, the full path of the key, what is wrong and what to do about
//! it. All problems of a load come together. The text never holds a secret's value.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The sort of a problem, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// A file or environment variable that the configuration names cannot be read.
    Unreadable,
    /// Not TOML.
    Syntax,
    UnknownKey,
    /// The same thing said twice.
    Duplicate,
    WrongType,
    BadValue,
    /// A key that must be there is not.
    Missing,
    /// A name that stands for nothing: an unknown target, account or domain.
    Reference,
    /// Part of the documented configuration, but not of this version.
    NotSupportedYet,
    /// It cannot be changed while the server runs.
    NeedsRestart,
    /// Right as it is written, but not on this machine now: a port in use, a certificate that does not fit.
    Unusable,
}

/// One thing to put right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub file: String,
    /// From 1; 0 if the whole file is meant.
    pub line: u32,
    /// From 1, in characters; 0 if the whole line or file is meant.
    pub column: u32,
    /// Full path, such as `listeners.mx.role`; empty where no key is concerned.
    pub key: String,
    /// What is wrong, without a final full stop.
    pub what: String,
    /// What to do: one or more sentences.
    pub remedy: String,
    pub kind: ProblemKind,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}.", self.what)?;
        if !self.remedy.is_empty() {
            write!(f, " {}", self.remedy)?;
        }
        Ok(())
    }
}

/// Everything wrong with a configuration, sorted by file and line. Never empty.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct Problems(Vec<Problem>);

impl Problems {
    pub fn new(mut problems: Vec<Problem>) -> Problems {
        problems.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        problems.dedup();
        Problems(problems)
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// One problem a line, then their number.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            writeln!(f, "{problem}")?;
        }
        match self.0.len() {
            1 => f.write_str("1 problem"),
            count => write!(f, "{count} problems"),
        }
    }
}

impl std::error::Error for Problems {}
