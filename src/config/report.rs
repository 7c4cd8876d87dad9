//! Collects what is found wrong while a configuration is read.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::problem::{Problem, ProblemKind, Problems};
use super::tree::Place;

#[derive(Default)]
pub(super) struct Report {
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<String>>,
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
    pub fn syntax(&self, place: &Place, message: &str, remedy: &str) {
        let line = (place.file.as_ref(), place.line);
        let mut problems = self.problems.borrow_mut();
        let earlier = problems.iter_mut().find(|p| p.kind == ProblemKind::Syntax && (p.file.as_str(), p.line) == line);
        let problem = Problem {
            file: place.file.to_string(),
            line: place.line,
            column: place.column,
            key: String::new(),
            what: message.replace('\n', " "),
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

    pub fn is_empty(&self) -> bool {
        self.problems.borrow().is_empty()
    }

    /// The warnings, or the problems if there are any.
    ///
    /// After a syntax error part of the text is missing from the tree, so what only seems to be
    /// missing is left out, and so is everything else on a line that could not be read.
    pub fn finish(self) -> Result<Vec<String>, Problems> {
        let mut problems = self.problems.into_inner();
        if problems.is_empty() {
            return Ok(self.warnings.into_inner());
        }
        let broken: BTreeSet<(String, u32)> = problems
            .iter()
            .filter(|p| matches!(p.kind, ProblemKind::Syntax | ProblemKind::Unreadable))
            .filter(|p| p.kind == ProblemKind::Syntax || p.line == 0)
            .map(|p| (p.file.clone(), p.line))
            .collect();
        if !broken.is_empty() {
            problems.retain(|p| match p.kind {
                ProblemKind::Syntax | ProblemKind::Unreadable => true,
                ProblemKind::Missing | ProblemKind::Reference => false,
                _ => !broken.contains(&(p.file.clone(), p.line)),
            });
        }
        Err(Problems::new(problems))
    }
}
