//! The fault programme (`tests/faults/programme.toml`) is whole: a row for each fault of the catalogue, and all that
//! it names is there: tests, figures, commands. What the rows measure is printed by `make faults`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

const ROWS: usize = 23;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rows() -> Vec<Table> {
    let text = std::fs::read_to_string(root().join("tests/faults/programme.toml")).unwrap();
    let file: Table = text.parse().unwrap();
    file["row"].as_array().unwrap().iter().map(|row| row.as_table().unwrap().clone()).collect()
}

fn words(row: &Table, key: &str) -> Vec<String> {
    let found = row.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    found.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

fn night(row: &Table) -> &Table {
    row["night"].as_table().unwrap()
}

/// The file that holds a test: its binary's own, or that of a module, by the paths that the binary names.
fn source(test: &str) -> PathBuf {
    let (binary, path) = test.split_once(' ').unwrap();
    let mut modules: Vec<&str> = path.split("::").collect();
    modules.pop();
    if binary == "lib" {
        return root().join("src").join(modules.join("/")).with_extension("rs");
    }
    let main = root().join("tests").join(binary).with_extension("rs");
    let Some(module) = modules.first() else { return main };
    let text = std::fs::read_to_string(&main).unwrap_or_else(|error| panic!("{}: {error}", main.display()));
    let before = text.split(&format!("mod {module};")).next().unwrap();
    let named = before.lines().last().filter(|line| line.starts_with("#[path"));
    let given = named.and_then(|line| line.split('"').nth(1));
    given.map_or_else(|| main.with_extension("").join(format!("{module}.rs")), |given| root().join("tests").join(given))
}

fn has_test(file: &Path, name: &str) -> bool {
    let Ok(text) = std::fs::read_to_string(file) else { return false };
    let lines: Vec<&str> = text.lines().collect();
    let at = lines
        .iter()
        .position(|line| line.trim_start().trim_start_matches("async ").starts_with(&format!("fn {name}(")));
    at.is_some_and(|at| lines[at.saturating_sub(4)..at].iter().any(|line| line.contains("test")))
}

#[test]
fn every_fault_has_a_row_and_every_row_a_night() {
    let rows = rows();
    let ids: Vec<String> = rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect();
    let wanted: Vec<String> = (1..=ROWS).map(|number| format!("F{number}")).collect();
    assert_eq!(ids, wanted);
    for row in &rows {
        let id = &row["id"];
        assert!(!words(row, "tests").is_empty() || !words(row, "command").is_empty(), "{id} is run by nothing");
        assert!(!row["fault"].as_str().unwrap().is_empty() && !row["method"].as_str().unwrap().is_empty(), "{id}");
        assert!(night(row)["weight"].as_integer().unwrap() > 0, "{id}");
    }
}

#[test]
fn every_test_of_the_programme_exists() {
    let rows = rows();
    let named: BTreeSet<String> =
        rows.iter().flat_map(|row| words(row, "tests").into_iter().chain(words(night(row), "tests"))).collect();
    assert!(named.len() > ROWS);
    let missing: Vec<&String> =
        named.iter().filter(|test| !has_test(&source(test), test.rsplit([':', ' ']).next().unwrap())).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_figure_and_command_of_the_programme_exists() {
    let mut written = String::new();
    for entry in std::fs::read_dir(root().join("tests/faults")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            written.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    for row in rows() {
        for figure in words(&row, "figures") {
            let short = figure.trim_start_matches("row-");
            assert!(
                written.contains(&format!("\"{figure}\"")) || written.contains(&format!("\"{short}\"")),
                "{figure}"
            );
        }
        for command in [words(&row, "command"), words(night(&row), "command")] {
            let [make, target] = &command[..] else { continue };
            assert!(make == "make" && makefile.contains(&format!("\n{target}: ")), "{command:?}");
        }
    }
}
