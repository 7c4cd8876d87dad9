//! Reads the configuration's files into one tree: the main one and what it includes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::problem::ProblemKind;
use super::report::Report;
use super::section::{Item, Section, io_reason};
use super::tree::{self, Table};

/// Longest configuration file read, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Most files that one configuration may include.
const INCLUDED_FILES_MAX: usize = 1000;

const INCLUDE_FORM: &str = "a list of file names such as [\"conf.d/*.toml\"]";

/// The main file and its includes, merged.
pub(super) fn read_tree(name: &str, text: &str, report: &Report) -> Table {
    let mut root = tree::parse(name, 0, text, report);
    let main = Section::root(&root, name, report);
    let patterns = main.item("include").and_then(|item| item.elements(INCLUDE_FORM)).unwrap_or_default();
    let folder = Path::new(name).parent().unwrap_or(Path::new(""));
    let mut files: BTreeMap<PathBuf, &Item<'_>> = BTreeMap::new();
    for pattern in &patterns {
        let found = matching_files(pattern, folder).into_iter().filter(|path| path != Path::new(name));
        files.extend(found.map(|path| (path, pattern)));
        if files.len() > INCLUDED_FILES_MAX {
            let what = format!("more than {INCLUDED_FILES_MAX} files");
            pattern.problem(ProblemKind::BadValue, what, "Include fewer files.");
            break;
        }
    }
    let numbered = files.iter().take(INCLUDED_FILES_MAX).zip(1..);
    let included: Vec<Table> =
        numbered.filter_map(|((path, pattern), number)| read_included(path, pattern, number, report)).collect();
    for table in included {
        root.merge(table, "", report);
    }
    root
}

/// The text of a file, or why it cannot be had.
pub(super) fn read_text(path: &Path) -> Result<String, String> {
    let reason = |error: std::io::Error| io_reason(&error);
    if fs::metadata(path).map_err(reason)?.len() > FILE_BYTES_MAX {
        return Err("the file is too long".to_owned());
    }
    let bytes = fs::read(path).map_err(reason)?;
    String::from_utf8(bytes).map_err(|error| not_utf8(&error))
}

fn not_utf8(error: &std::string::FromUtf8Error) -> String {
    let valid = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or(&[]);
    let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
    format!("line {line} is not UTF-8")
}

fn read_included(path: &Path, pattern: &Item<'_>, number: u32, report: &Report) -> Option<Table> {
    report.reads(path);
    let name = path.display().to_string();
    let text = match read_text(path) {
        Ok(text) => text,
        Err(reason) => {
            let remedy = "Correct the name, or let postrider's user read the file.";
            pattern.problem(ProblemKind::Unreadable, format!("cannot read {name}: {reason}"), remedy);
            return None;
        }
    };
    let mut table = tree::parse(&name, number, &text, report);
    if let Some(entry) = table.remove("include") {
        let remedy = "Include all files from the main one.";
        report.problem(ProblemKind::BadValue, &entry.key, "include", "an included file may not include", remedy);
    }
    Some(table)
}

/// The files that one pattern stands for. A pattern with a `*` may match none.
fn matching_files(pattern: &Item<'_>, folder: &Path) -> Vec<PathBuf> {
    let Some(text) = pattern.string(INCLUDE_FORM) else { return Vec::new() };
    let path = folder.join(text);
    let (Some(parent), Some(last)) = (path.parent(), Path::new(text).file_name().and_then(|last| last.to_str())) else {
        pattern.problem(
            ProblemKind::BadValue,
            format!("{text:?} is not a file name"),
            format!("Write {INCLUDE_FORM}."),
        );
        return Vec::new();
    };
    if !last.contains('*') && !text.contains('*') {
        return vec![path];
    }
    if parent.to_string_lossy().contains('*') {
        let what = format!("{text:?} has a * in a folder's name");
        pattern.problem(ProblemKind::BadValue, what, "Use * in the file's name only.");
        return Vec::new();
    }
    let parent_path = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    pattern.report.looks_into(parent_path.to_owned());
    let entries = match fs::read_dir(parent_path) {
        Ok(entries) => entries,
        Err(error) => {
            let what = format!("cannot read the folder {}: {}", parent.display(), io_reason(&error));
            pattern.problem(ProblemKind::Unreadable, what, "Make the folder, or take the pattern out.");
            return Vec::new();
        }
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_str().is_some_and(|name| glob(last, name))).map(|name| parent.join(name)).collect()
}

/// Does `name` match `pattern`, in which `*` stands for any text? As in a shell, a leading `*` does
/// not match a hidden file.
fn glob(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or("")) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or(""),
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        assert!(glob("*.toml", "a.toml"));
        assert!(glob("*.toml", "a.b.toml"));
        assert!(glob("10-*-x*.toml", "10-a-xy.toml"));
        assert!(glob("*", "a"));
        assert!(glob("a", "a"));
        assert!(!glob("a", "ab"));
        assert!(!glob("*.toml", ".toml"));
        assert!(!glob("*.toml", ".hidden.toml"));
        assert!(!glob("*.toml", "a.toml~"));
        assert!(!glob("a*a", "a"));
        assert!(!glob("a*b*c", "acb"));
    }
}
