//! Collects what is found wrong while a configuration is read.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::Secret;
use super::problem::{Problem, ProblemKind, Problems};
use super::source::Found;
use super::tree::Place;

#[derive(Default)]
pub(super) struct Report {
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<String>>,
    found: RefCell<Found>,
}

impl Report {
    pub fn problem(
        &self,
        kind: ProblemKind,
        place: &Place,
        key: &str,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.problems.borrow_mut().push(Problem {
            file: place.file.to_string(),
            line: place.line,
            column: place.column,
            key: key.to_owned(),
            what: what.into(),
            remedy: remedy.into(),
            kind,
        });
    }

    /// A complaint of the TOML parser: the first of each line, since the rest follows from it.
    pub fn syntax(&self, place: &Place, key: String, what: String, remedy: &str) {
        let line = (place.file.as_ref(), place.line);
        let mut problems = self.problems.borrow_mut();
        let earlier = problems.iter_mut().find(|p| p.kind == ProblemKind::Syntax && (p.file.as_str(), p.line) == line);
        let problem = Problem {
            file: place.file.to_string(),
            line: place.line,
            column: place.column,
            key,
            what,
            remedy: remedy.to_owned(),
            kind: ProblemKind::Syntax,
        };
        match earlier {
            Some(earlier) if problem.column < earlier.column => *earlier = problem,
            Some(_) => {}
            None => problems.push(problem),
        }
    }

    pub fn warn(&self, text: impl Into<String>) {
        self.warnings.borrow_mut().push(text.into());
    }

    /// The configuration depends on this file.
    pub fn reads(&self, file: &Path) {
        self.found.borrow_mut().files.push(file.to_owned());
    }

    /// … and on what is in this folder.
    pub fn looks_into(&self, folder: PathBuf) {
        self.found.borrow_mut().folders.push(folder);
    }

    /// What a key's secret is.
    pub fn secret(&self, key: &str, secret: &Secret) {
        self.found.borrow_mut().secrets.insert(key.to_owned(), secret.clone());
    }

    pub fn take_found(&self) -> Found {
        self.found.take()
    }

    pub fn is_empty(&self) -> bool {
        self.problems.borrow().is_empty()
    }

    /// The warnings, or the problems if there are any.
    ///
    /// After a syntax error, or without an included file, part of the text is not in the tree. What
    /// only seems to be missing is left out then, and so is everything else on an unreadable line.
    pub fn finish(self) -> Result<Vec<String>, Problems> {
        let mut problems = self.problems.into_inner();
        if problems.is_empty() {
            return Ok(self.warnings.into_inner());
        }
        let unread = |p: &Problem| p.kind == ProblemKind::Unreadable && p.key == "include";
        let broken: BTreeSet<(String, u32)> =
            problems.iter().filter(|p| p.kind == ProblemKind::Syntax).map(|p| (p.file.clone(), p.line)).collect();
        let gaps = !broken.is_empty() || problems.iter().any(unread);
        problems.retain(|p| match p.kind {
            ProblemKind::Syntax => true,
            ProblemKind::Missing | ProblemKind::Reference => !gaps,
            _ => !broken.contains(&(p.file.clone(), p.line)),
        });
        Err(Problems::new(problems))
    }
}
