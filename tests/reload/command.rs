//! `postrider reload`, SIGHUP and the log of a server in a process of its own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::house::{BASE, House};

const ALIAS: &str = "[aliases]\n\"a@home.test\" = \"box\"\n";

/// Exit status and all that was said.
async fn reload(file: &Path, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
    command.arg("reload").arg("--config").arg(file).args(arguments).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code().unwrap(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_says_what_has_changed_or_what_is_wrong() {
    let house = House::start("").await;
    let (status, text) = reload(&house.file, &[]).await;
    assert!(status == 0 && text.ends_with("\nNothing has changed.\n"), "{text}");
    house.write(&format!("{}{ALIAS}[accounts.app]\npassword = \"one\"\n", BASE.replace("10000\n", "20000\n")));
    let (status, text) = reload(&house.file, &[]).await;
    assert_eq!(status, 0, "{text}");
    let wanted = [
        "accounts.app.password: added",
        "aliases.\"a@home.test\": added, \"box\"",
        "limits.connections: 10000 → 20000",
        "limits.connections_per_ip: 10000 → 20000",
        "Reloaded: 4 changes.",
    ];
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("warning: ")).collect();
    assert_eq!(lines, wanted, "{text}");

    house.write(&format!("{BASE}{ALIAS}[limit]\nx = 1\n"));
    let (status, text) = reload(&house.file, &[]).await;
    assert_eq!(status, 2, "{text}");
    let place = format!("{}:{}: limit", house.file.display(), BASE.lines().count() + 3);
    assert!(text.contains(&place) && text.contains("the old one goes on") && text.contains('→'), "{text}");
    let (status, text) = reload(&house.file, &["--json"]).await;
    let answer: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((status, &answer["result"]), (2, &Value::from("refused")), "{text}");
    assert_eq!(answer["problems"][0]["key"], "limit");

    let file = house.file.clone();
    let _folder = house.stop().await;
    let (status, text) = reload(&file, &[]).await;
    assert!(status == 1 && text.contains("no server is running"), "{text}");
}

/// Reads lines of the log until one has these words.
fn read_until(log: &mut impl BufRead, words: &str) -> String {
    let mut all = String::new();
    loop {
        let before = all.len();
        assert_ne!(log.read_line(&mut all).unwrap(), 0, "the log ends: {all}");
        if all[before..].contains(words) {
            return all;
        }
    }
}

#[test]
fn a_hangup_takes_the_new_configuration_and_the_log_tells() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("postrider.toml");
    let write = |more: &str| {
        std::fs::write(&file, format!("{BASE}{more}").replace("DATA_DIR", folder.path().to_str().unwrap())).unwrap();
    };
    write("");
    let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
    command.args(["serve", "--config"]).arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let hang_up = || kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    read_until(&mut log, "listening");
    write("[log]\nlevel = \"debug\"\n");
    hang_up();
    let said = read_until(&mut log, "the configuration was read again and holds");
    assert!(said.contains("log.level: added, \"debug\""), "{said}");
    // What is only said at that level.
    hang_up();
    read_until(&mut log, "nothing has changed");
    write("[limit]\n");
    hang_up();
    let said = read_until(&mut log, "the new configuration is refused; the old one goes on");
    assert!(said.contains(&format!("{}:{}: limit: ", file.display(), BASE.lines().count() + 1)), "{said}");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    drop(log);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
