//! Kept stores, and the binary that looks at them.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The store of the first format.
pub fn first_format() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store-format-1")
}

/// Copies plain files; git keeps no modes and no empty folders, and neither does this.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Every file under a folder with its content, by its path in there.
pub fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            let inner = contents(&entry.path());
            files.extend(inner.into_iter().map(|(path, content)| (format!("{name}/{path}"), content)));
        } else {
            files.push((name, std::fs::read(entry.path()).unwrap()));
        }
    }
    files.sort();
    files
}

/// A configuration for `data_dir` in it; gives the file.
pub fn write_config(data_dir: &Path) -> PathBuf {
    std::fs::create_dir_all(data_dir).unwrap();
    let file = data_dir.join("postrider.toml");
    let text = format!(
        "hostname = \"mail.home.test\"\ndata_dir = \"{}\"\n[domains.\"home.test\"]\n[queue]\nmin_free = \"1MiB\"\n",
        data_dir.display()
    );
    std::fs::write(&file, text).unwrap();
    file
}

/// The binary with the configuration of this data_dir.
pub fn run(data_dir: &Path, arguments: &[&str]) -> Output {
    let config = data_dir.join("postrider.toml");
    Command::new(env!("CARGO_BIN_EXE_postrider")).args(arguments).arg("--config").arg(config).output().unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs with the wanted exit status and gives standard output.
pub fn say(data_dir: &Path, arguments: &[&str], status: i32) -> String {
    let output = run(data_dir, arguments);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}\n{}{}", stdout(&output), stderr(&output));
    stdout(&output)
}

/// Standard output as one JSON value a line.
pub fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
