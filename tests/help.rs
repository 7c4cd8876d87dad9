//! What `--help` says, of every command, as one text to be read in one go: `tests/data/help.txt`. And what is
//! written from the same definition: completions and manual pages.
//!
//! `UPDATE=1 cargo test --test help` writes the text anew; read the diff.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn postrider(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
    command.args(arguments).stdin(Stdio::null()).env_remove("COLUMNS").env("NO_COLOR", "1").output().unwrap()
}

fn said(arguments: &[&str]) -> String {
    let output = postrider(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The commands that a help text names under "Commands:", in its order.
fn below(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands = lines.take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("   "));
    let names = commands.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// Every command with its help, groups before what is in them.
fn helps(command: &[String], into: &mut Vec<(String, String)>) {
    let mut arguments: Vec<&str> = command.iter().map(String::as_str).collect();
    arguments.push("--help");
    let help = said(&arguments);
    let names = below(&help);
    into.push((command.join(" "), help));
    for name in names {
        helps(&[command, &[name]].concat(), into);
    }
}

fn all() -> Vec<(String, String)> {
    let mut all = Vec::new();
    helps(&[], &mut all);
    all
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/help.txt")
}

#[test]
fn the_help_of_every_command_is_as_reviewed() {
    let mut text = String::new();
    for (command, help) in all() {
        let title = format!("postrider {command}");
        text.push_str(&format!("===== {} =====\n{}\n", title.trim_end(), help.trim_end()));
        text.push('\n');
    }
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(golden(), &text).unwrap();
    }
    let reviewed = std::fs::read_to_string(golden()).unwrap();
    let first = text.lines().zip(reviewed.lines()).find(|(is, was)| is != was);
    assert!(
        text == reviewed,
        "the help has changed, first here: {first:?}\nrenew it with UPDATE=1 cargo test --test help, and read the diff"
    );
}

#[test]
fn every_command_has_an_example_that_begins_with_its_name() {
    for (command, help) in all() {
        let (_, examples) = help.split_once("\nExamples:\n").unwrap_or_else(|| panic!("postrider {command}: {help}"));
        let name = format!("postrider {command}");
        assert!(examples.lines().any(|line| line.contains(name.trim_end())), "{name}: {examples}");
    }
}

/// An example that the command line refuses would be worse than none.
#[test]
fn examples_name_options_that_exist() {
    let all = all();
    for (command, help) in &all {
        let Some((_, examples)) = help.split_once("\nExamples:\n") else { continue };
        let examples = examples.lines().filter_map(|line| line.trim().strip_prefix("postrider "));
        for example in examples {
            let words: Vec<&str> = example.split_whitespace().collect();
            // The longest command that these words begin with.
            let meant = (0..=words.len()).rev().find_map(|length| {
                let name = words.get(..length)?.join(" ");
                all.iter().find(|(command, _)| *command == name)
            });
            let (name, help) = meant.unwrap();
            assert!(
                !name.is_empty() || words.first().is_some_and(|w| w.starts_with('-')) || *words == ["help"],
                "{command}: {example}"
            );
            let is_option = |word: &&&str| word.starts_with("--") && word.len() > 2;
            for option in words.iter().take_while(|word| !["|", "#", ">"].contains(*word)).filter(is_option) {
                let option = option.split('=').next().unwrap();
                assert!(help.contains(option), "{command}: `postrider {example}`, but {name} has no {option}");
            }
        }
    }
}

#[test]
fn each_shell_gets_completions_for_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = said(&["completions", shell]);
        for name in below(&said(&["--help"])) {
            assert!(script.contains(&name), "{shell}: {name}");
        }
        // Where the shell is there, it reads the script.
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &script).unwrap();
        match Command::new(shell).arg("-n").arg(file.path()).output() {
            Ok(read) => assert!(read.status.success(), "{shell}: {}", String::from_utf8_lossy(&read.stderr)),
            Err(_) => eprintln!("SKIPPED: there is no {shell} to read its completions"),
        }
    }
    assert_eq!(postrider(&["completions", "tcsh"]).status.code(), Some(2));
}

#[test]
fn every_command_has_a_page_that_says_what_its_help_says() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("man1");
    assert_eq!(said(&["man", "--out", out.to_str().unwrap()]), "");
    let mut expected = BTreeSet::new();
    for (command, help) in all() {
        let name = format!("postrider {command}").trim_end().replace(' ', "-");
        let page = std::fs::read_to_string(out.join(format!("{name}.1"))).unwrap();
        expected.insert(format!("{name}.1"));
        assert!(page.contains(".SH NAME") && page.contains(".SH OPTIONS") && page.contains(".SH EXAMPLES"), "{page}");
        // The same examples, as far as troff writes them alike.
        let (_, examples) = help.split_once("\nExamples:\n").unwrap();
        let plain = page.replace("\\-", "-").replace("\\*(Aq", "'").replace("\\&", "").replace("\\\\", "\\");
        for line in examples.lines().filter(|line| !line.is_empty() && !line.contains(['\\', '\''])) {
            assert!(plain.contains(line.trim()), "{name}: {line}\n{page}");
        }
        let words: Vec<&str> = ["man"].into_iter().chain(command.split_whitespace()).collect();
        assert_eq!(said(&words).trim_end(), page.trim_end());
    }
    let written: BTreeSet<String> =
        std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(written, expected);
    assert_eq!(postrider(&["man", "queue", "lost"]).status.code(), Some(2));
}
