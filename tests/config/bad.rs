//! `conf-bad/`: each bad file beside its exact complaint.

use std::path::PathBuf;
use std::process::ExitCode;

use postrider::config;

use super::folder;

fn bad_files() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder("tests/conf-bad")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "toml")).collect();
    files.sort();
    files
}

#[test]
fn each_bad_file_gets_its_complaint() {
    let update = std::env::var_os("UPDATE").is_some();
    let files = bad_files();
    assert!(files.len() > 10);
    let mut wrong = Vec::new();
    for path in files {
        let problems = config::load(&path).expect_err(&format!("{} loads", path.display()));
        // The folder differs from machine to machine.
        let found = format!("{problems}\n").replace(&format!("{}/", folder("tests/conf-bad").display()), "");
        let expected_path = path.with_extension("txt");
        if update {
            std::fs::write(&expected_path, &found).unwrap();
            continue;
        }
        let expected = std::fs::read_to_string(&expected_path).unwrap_or_default();
        if found != expected {
            wrong.push(format!("{}\n--- expected\n{expected}--- found\n{found}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn five_mistakes_are_five_problems_with_line_and_remedy() {
    let problems = config::load(&folder("tests/conf-bad/five.toml")).unwrap_err();
    assert_eq!(problems.len(), 5, "{problems}");
    for problem in &problems {
        assert!(problem.line > 0, "{problem}");
        assert!(!problem.remedy.is_empty(), "{problem}");
    }
    assert!(problems.to_string().ends_with("\n5 problems"));
}

/// `ExitCode` compares by its debug form only.
#[test]
fn the_exit_status_tells_good_from_bad() {
    let status = |path: &str| format!("{:?}", postrider::cli::check::run(&folder(path), true, false));
    let code = |code: ExitCode| format!("{code:?}");
    assert_eq!(status("tests/conf-bad/five.toml"), code(ExitCode::from(2)));
    assert_eq!(status("conf/relay.toml"), code(ExitCode::SUCCESS));
}

#[test]
fn every_problem_has_a_remedy() {
    for path in bad_files() {
        for problem in &config::load(&path).unwrap_err() {
            assert!(!problem.remedy.is_empty() && !problem.what.is_empty(), "{problem}");
            assert!(!problem.what.ends_with('.'), "{problem}");
            assert!(problem.line > 0, "{problem}");
        }
    }
}

#[test]
fn problems_are_json_for_programs() {
    let problems = config::load(&folder("tests/conf-bad/five.toml")).unwrap_err();
    let text = postrider::cli::check::complaint(&problems, true);
    let rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 5);
    assert_eq!(rows[0]["kind"], "unknown_key");
    assert_eq!(rows[0]["line"], problems.iter().next().unwrap().line);
}
