//! What packages and images promise, as far as their files tell: who runs the server, with which rights and which commands.
//! `make deb-test` and `make container-test` try them in earnest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::ffi::OsString;
use std::process::{Command, Stdio};

fn read(name: &str) -> String {
    let path = format!("{}/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn understood(words: &[&str]) {
    let done = postrider::cli::understands(words.iter().map(OsString::from));
    assert!(done.is_ok(), "{words:?}: {}", done.unwrap_err());
}

/// The instructions of the Containerfile, without comments, continued lines joined; of the first and of the last stage.
fn stages() -> Vec<Vec<(String, String)>> {
    let text: String =
        read("Containerfile").lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    let text = text.replace("\\\n", " ");
    let mut stages = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let (word, rest) = line.split_once(' ').unwrap();
        if word == "FROM" {
            stages.push(Vec::new());
        }
        if let Some(stage) = stages.last_mut() {
            stage.push((word.to_owned(), rest.to_owned()));
        }
    }
    stages
}

fn the<'a>(stage: &'a [(String, String)], word: &str) -> &'a str {
    let all: Vec<&str> = stage.iter().filter(|(w, _)| w == word).map(|(_, rest)| rest.as_str()).collect();
    assert_eq!(all.len(), 1, "{word}: {all:?}");
    all[0]
}

/// `["a", "b"]`
fn list(json: &str) -> Vec<String> {
    serde_json::from_str(json).unwrap()
}

#[test]
fn the_image_runs_as_a_user_of_its_own_and_says_how_it_is() {
    let stages = stages();
    let last = stages.last().unwrap();
    // By number, so that nobody has to look a name up to see that it is not root.
    let (user, group) = the(last, "USER").split_once(':').unwrap();
    assert!(user.parse::<u32>().unwrap() > 0 && group.parse::<u32>().unwrap() > 0);
    assert_eq!(last.iter().filter(|(word, _)| matches!(word.as_str(), "USER" | "ENTRYPOINT" | "CMD")).count(), 3);
    let command = [list(the(last, "ENTRYPOINT")), list(the(last, "CMD"))].concat();
    understood(&command.iter().map(String::as_str).collect::<Vec<_>>());
    let health = the(last, "HEALTHCHECK").split_once("CMD ").unwrap().1;
    understood(&list(health).iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(the(last, "STOPSIGNAL"), "SIGTERM");
    assert_eq!(the(last, "EXPOSE"), "25 465 587");
    let package = read("conf/package.toml");
    assert!(package.contains(&format!("\"{}\"", the(last, "VOLUME"))), "the queue is in the volume");
}

/// Nothing but Debian's packages, Rust's image and this folder gets into it.
#[test]
fn the_image_takes_nothing_from_elsewhere() {
    let stages = stages();
    assert_eq!(stages.len(), 2);
    for (word, rest) in stages.iter().flatten() {
        assert_ne!(word, "ADD", "it fetches what it is given the address of");
        for fetcher in ["curl", "wget", "git clone", "http:", "https:", "pip ", "npm "] {
            assert!(!rest.contains(fetcher), "{word} {rest}");
        }
    }
    let version = read("Cargo.toml");
    let version = version.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
    assert_eq!(the(&stages[0], "FROM"), format!("docker.io/library/rust:{version}-${{DEBIAN}} AS build"));
    assert_eq!(the(&stages[1], "FROM"), "docker.io/library/debian:${DEBIAN}-slim");
}

/// Whatever cargo reads to build the binary is copied, and all that is copied is there.
#[test]
fn the_image_is_built_from_what_the_build_needs() {
    let copied: Vec<String> = stages()
        .iter()
        .flatten()
        .filter(|(word, rest)| word == "COPY" && !rest.starts_with("--from="))
        .flat_map(|(_, rest)| rest.split(' ').rev().skip(1).map(str::to_owned).collect::<Vec<_>>())
        .collect();
    for name in &copied {
        assert!(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name).exists(), "{name}");
    }
    // Cargo.toml names the benches, so without them it does not even read.
    for wanted in ["Cargo.toml", "Cargo.lock", ".cargo", "src", "benches"] {
        assert!(copied.iter().any(|name| name == wanted), "{wanted} is not copied");
    }
}

fn unit() -> Vec<(String, String)> {
    let text = read("conf/systemd/postrider.service");
    let lines = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
    lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[test]
fn the_service_runs_what_there_is_with_one_right_of_root() {
    let unit = unit();
    let all = |key: &str| unit.iter().filter(|(k, _)| k == key).map(|(_, value)| value.as_str()).collect::<Vec<_>>();
    for line in [all("ExecStart"), all("ExecReload")].concat().iter().filter(|line| line.starts_with("/usr/bin/")) {
        let words: Vec<&str> = line.strip_prefix("/usr/bin/").unwrap().split(' ').collect();
        understood(&words);
    }
    for (key, value) in [
        ("Type", "notify"),
        ("User", "postrider"),
        ("AmbientCapabilities", "CAP_NET_BIND_SERVICE"),
        ("CapabilityBoundingSet", "CAP_NET_BIND_SERVICE"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("WatchdogSec", "2min"),
        ("RestartPreventExitStatus", "2"),
    ] {
        assert_eq!(all(key), [value], "{key}");
    }
    let user = read("conf/systemd/sysusers.conf");
    assert!(user.lines().any(|line| line.starts_with("u postrider - ")), "{user}");
    // The same folders by the same rules, whether the service makes them or tmpfiles.
    let folders = read("conf/systemd/tmpfiles.conf");
    let mode = all("StateDirectoryMode")[0];
    assert!(folders.lines().any(|line| line.starts_with("d /var/lib/postrider ") && line.contains(mode)), "{folders}");
}

/// The requirement: below 2.0, of 10.
#[test]
fn systemd_finds_little_that_the_service_is_exposed_to() {
    let there = Command::new("systemd-analyze").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: there is no systemd-analyze here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("postrider.service");
    std::fs::write(&file, read("conf/systemd/postrider.service")).unwrap();
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--threshold=20", "--no-pager"])
        .arg(&file)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
}
