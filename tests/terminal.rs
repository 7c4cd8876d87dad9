//! What the command line looks like on a terminal: colours there and nowhere else, bars on what takes long, and
//! neither where the person at it does not want them. A Python brings the terminal (`pty`); where there is none the
//! test says so and proves nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod kept;
}

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use support::kept::{copy, first_format, run, say, write_config};

/// Work that takes as long has its bar.
const MORE_THAN_QUIET: Duration = Duration::from_millis(1200);

/// Runs the words that follow in a terminal of their own, and gives what that showed.
const IN_A_TERMINAL: &str =
    "import os, pty, sys\nstatus = pty.spawn(sys.argv[1:])\nsys.exit(os.waitstatus_to_exitcode(status))";

fn python() -> Option<String> {
    let named = std::env::var("POSTRIDER_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has_pty = Command::new(&named).args(["-c", "import pty"]).output().is_ok_and(|output| output.status.success());
    if !has_pty {
        eprintln!("SKIPPED: there is no Python to bring a terminal");
    }
    has_pty.then_some(named)
}

fn in_a_terminal(python: &str, config: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(python);
    command.args(["-c", IN_A_TERMINAL, env!("CARGO_BIN_EXE_postrider")]).args(arguments).arg("--config").arg(config);
    command.env("TERM", "xterm").env_remove("NO_COLOR").envs(environment.iter().copied()).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    output
}

#[test]
fn colours_are_for_terminals_and_for_those_who_want_them() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path());
    let show = ["config", "show"];
    let is_coloured = |environment: &[(&str, &str)]| {
        let output = in_a_terminal(&python, &config, &show, environment);
        String::from_utf8(output.stdout).unwrap().contains("\u{1b}[1m")
    };
    assert!(is_coloured(&[]));
    // An empty one is none (no-color.org).
    assert!(is_coloured(&[("NO_COLOR", "")]));
    assert!(!is_coloured(&[("NO_COLOR", "1")]));
    assert!(!is_coloured(&[("TERM", "dumb")]));
    let piped = Command::new(env!("CARGO_BIN_EXE_postrider")).args(show).arg("--config").arg(&config).output().unwrap();
    assert!(!String::from_utf8(piped.stdout).unwrap().contains('\u{1b}'));
    // Programs get no colours on a terminal either.
    let json = in_a_terminal(&python, &config, &["config", "show", "--json"], &[]);
    assert!(!String::from_utf8(json.stdout).unwrap().contains('\u{1b}'));
}

/// A message that comes through a pipe, and late: the work takes more than the second in which nothing is shown.
#[test]
fn what_takes_long_has_a_bar_on_a_terminal_only() {
    let Some(python) = python() else { return };
    for is_terminal in [true, false] {
        let (old, new, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write_config(old.path());
        copy(&first_format(), &old.path().join("store"));
        let folder = to.path().to_str().unwrap();
        say(old.path(), &["queue", "export", "--all", "--to-dir", folder], 0);
        let files = std::fs::read_dir(to.path()).unwrap().map(|entry| entry.unwrap().path());
        let message = files.filter(|path| path.extension().is_some_and(|ending| ending == "eml")).min().unwrap();
        let content = std::fs::read(&message).unwrap();
        std::fs::remove_file(&message).unwrap();
        assert!(Command::new("mkfifo").arg(&message).status().unwrap().success());
        let late = std::thread::spawn(move || {
            // Opening waits for the reader: the command is at work from here on.
            let mut pipe = std::fs::File::options().write(true).open(&message).unwrap();
            std::thread::sleep(MORE_THAN_QUIET);
            pipe.write_all(&content).unwrap();
        });
        let config = write_config(new.path());
        let import = ["queue", "import", folder];
        let output = match is_terminal {
            true => in_a_terminal(&python, &config, &import, &[]),
            false => run(new.path(), &import),
        };
        late.join().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(text.contains("8 messages imported."), "{text}");
        assert_eq!(text.contains("importing ["), is_terminal, "{text:?}");
    }
}
