//! What every command says, to people and to programs. Most of it is one text to be read in one go:
//! `tests/data/commands.txt`, which a small house of servers produces command by command, with what differs from run
//! to run (times, ids, keys, ports) replaced by words. What needs a world of its own is tested elsewhere, and named
//! below. A command that is in neither fails the first test here, and so does one without its JSON.
//!
//! `UPDATE=1 cargo test --test commands` writes the text anew; read the diff.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/client.rs"]
mod client;
#[path = "commands/house.rs"]
mod house;
#[path = "support/remote.rs"]
mod remote;
#[path = "commands/scenes.rs"]
mod scenes;
#[path = "support/server.rs"]
mod server;
#[path = "support/sink.rs"]
mod sink;
#[path = "support/zone.rs"]
mod zone;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A test in another file: the file, its name.
type Test = (&'static str, &'static str);

/// Commands whose output is tested elsewhere: for people, and as JSON or why there is none.
const ELSEWHERE: [(&str, Test, Result<Test, &str>); 16] = [
    (
        "serve",
        ("cli", "a_server_that_cannot_start_says_why"),
        Err("its output is the log, which [log] format makes JSON"),
    ),
    ("demo", ("demo", "three_stories_are_delivered_and_nothing_is_left"), Err("it is for people")),
    ("sendmail", ("sendmail", "mailq_lists_the_queue"), Err("its words and flags are those of Sendmail")),
    ("completions", ("help", "each_shell_gets_completions_for_every_command"), Err("a shell reads it")),
    ("man", ("help", "every_command_has_a_page_that_says_what_its_help_says"), Err("troff reads it")),
    (
        "fetch list",
        ("fetch", "the_command_line_shows_the_mailboxes_and_reads_one"),
        Ok(("fetch", "the_command_line_shows_the_mailboxes_and_reads_one")),
    ),
    (
        "fetch run",
        ("fetch", "the_command_line_shows_the_mailboxes_and_reads_one"),
        Ok(("fetch", "the_command_line_shows_the_mailboxes_and_reads_one")),
    ),
    (
        "captured list",
        ("capture", "a_message_is_read_and_deleted_on_the_command_line"),
        Ok(("capture", "a_message_is_read_and_deleted_on_the_command_line")),
    ),
    (
        "captured show",
        ("capture", "a_message_is_read_and_deleted_on_the_command_line"),
        Ok(("capture", "a_message_is_read_and_deleted_on_the_command_line")),
    ),
    (
        "captured delete",
        ("capture", "a_message_is_read_and_deleted_on_the_command_line"),
        Ok(("capture", "a_message_is_read_and_deleted_on_the_command_line")),
    ),
    (
        "captured release",
        ("capture", "what_is_released_arrives_as_it_was_shown_and_signed"),
        Ok(("capture", "what_is_released_arrives_as_it_was_shown_and_signed")),
    ),
    (
        "account test",
        (
            "connection_tests/accounts",
            "a_password_comes_from_a_file_or_the_environment_and_a_message_is_sent_on_demand",
        ),
        Ok(("connection_tests/accounts", "an_account_that_may_send_is_tested_leg_by_leg_and_nothing_is_queued")),
    ),
    (
        "fetch test",
        ("connection_tests/mailboxes", "a_mailbox_that_is_only_logged_in_to_is_tested_as_far"),
        Ok(("connection_tests/mailboxes", "where_nobody_listens_there_is_no_response")),
    ),
    (
        "target test",
        ("connection_tests/targets", "people_get_lines_and_a_name_that_is_none_ends_with_2"),
        Ok(("connection_tests/targets", "people_get_lines_and_a_name_that_is_none_ends_with_2")),
    ),
    (
        "reload",
        ("reload/command", "the_command_says_what_has_changed_or_what_is_wrong"),
        Ok(("reload/command", "the_command_says_what_has_changed_or_what_is_wrong")),
    ),
    (
        "config show",
        ("config_show", "what_is_set_and_what_is_not_is_shown_with_where_it_comes_from"),
        Ok(("config_show", "programs_get_one_object_a_key")),
    ),
];

fn manifest(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn golden() -> PathBuf {
    manifest("tests/data/commands.txt")
}

fn help(command: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_postrider"))
        .args(command.split_whitespace())
        .arg("--help")
        .stdin(Stdio::null())
        .env_remove("COLUMNS")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{command}");
    String::from_utf8(output.stdout).unwrap()
}

/// Every command that does something by itself, with its help.
fn commands() -> Vec<(String, String)> {
    let (mut open, mut found) = (vec![String::new()], Vec::new());
    while let Some(command) = open.pop() {
        let help = help(&command);
        let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
        let lines = lines.take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("   "));
        let names = lines.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
        let below: Vec<String> = names.map(|name| format!("{command} {name}").trim().to_owned()).collect();
        if below.is_empty() {
            found.push((command, help));
        }
        open.extend(below);
    }
    found.sort();
    found
}

/// Is this command among the lines of the text, with or without --json?
fn is_shown(text: &str, command: &str, json: bool) -> bool {
    let name = format!("$ postrider {command}");
    let lines = text.lines().filter_map(|line| line.strip_prefix(&name));
    lines.filter(|rest| rest.is_empty() || rest.starts_with(' ')).any(|rest| rest.contains("--json") == json)
}

/// The test is there, and is about that command.
fn is_test(command: &str, (file, name): Test, json: bool) {
    let text = std::fs::read_to_string(manifest(&format!("tests/{file}.rs"))).unwrap();
    let start = text.find(&format!("fn {name}(")).unwrap_or_else(|| panic!("tests/{file}.rs has no {name}"));
    let body = text[start..].split("\n}\n").next().unwrap();
    let word = command.split(' ').next_back().unwrap();
    let wanted = if json {
        vec!["json"]
    } else if word == "sendmail" {
        vec!["mailq"]
    } else {
        vec![]
    };
    assert!(wanted.iter().all(|word| body.contains(word)), "{file}::{name} says nothing of {command}");
}

#[test]
fn each_command_has_a_test_of_what_it_says_to_people_and_to_programs() {
    let text = std::fs::read_to_string(golden()).unwrap();
    let commands = commands();
    assert!(commands.len() > 35, "{commands:?}");
    for (command, help) in &commands {
        let elsewhere = ELSEWHERE.iter().find(|(name, ..)| name == command);
        match elsewhere {
            Some((_, human, _)) => is_test(command, *human, false),
            None => assert!(is_shown(&text, command, false), "no test of what `postrider {command}` says to people"),
        }
        match elsewhere {
            Some((_, _, Ok(test))) => is_test(command, *test, true),
            Some((_, _, Err(_))) => assert!(!help.contains("--json"), "{command} has --json"),
            None => assert!(is_shown(&text, command, true), "no test of `postrider {command} --json`"),
        }
    }
    for (name, ..) in ELSEWHERE {
        assert!(commands.iter().any(|(command, _)| command == name), "there is no command {name} any more");
    }
}

/// The line of an option in a help text, without its columns.
fn option<'h>(help: &'h str, name: &str) -> Option<&'h str> {
    help.lines().find_map(|line| {
        let line = line.trim_start();
        let rest = line.strip_prefix(name).or_else(|| line.split_once(", ")?.1.strip_prefix(name))?;
        rest.starts_with([' ', '\u{0}']).then(|| rest.trim())
    })
}

#[test]
fn the_same_flag_means_the_same_everywhere() {
    for (command, help) in commands() {
        if let Some(json) = option(&help, "--json") {
            // An object, or objects line by line; never one list.
            assert!(json.to_lowercase().contains("one json object"), "{command}: {json}");
        }
        if let Some(dry_run) = option(&help, "--dry-run") {
            let words = ["Change nothing", "Queue nothing", "Write nothing", "Only look", "Only count"];
            assert!(words.iter().any(|word| dry_run.starts_with(word)), "{command}: {dry_run}");
        }
    }
    let filters = ["--to", "--from", "--domain", "--stream", "--status", "--older"];
    let list = help("queue list");
    for command in ["retry", "hold", "release", "cancel", "export"].map(|name| format!("queue {name}")) {
        let help = help(&command);
        for name in filters {
            assert!(option(&list, name).is_some(), "{name}");
            assert_eq!(option(&help, name), option(&list, name), "{command} {name}");
        }
        assert!(option(&help, "--dry-run").is_some() && option(&help, "--all").is_some(), "{command}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_command_says_what_was_reviewed() {
    let text = scenes::all().await;
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(golden(), &text).unwrap();
    }
    let reviewed = std::fs::read_to_string(golden()).unwrap();
    let first = text.lines().zip(reviewed.lines()).enumerate().find(|(_, (is, was))| is != was);
    assert!(
        text == reviewed,
        "not as reviewed, first here: {first:#?}\nrenew it with UPDATE=1 cargo test --test commands, and read the diff"
    );
}
