//! The configuration as its users meet it: the files in `conf/` load and tell the truth about their
//! defaults, and each file in `conf-bad/` gets exactly the complaint that stands beside it.
//!
//! `UPDATE=1 cargo test --test config` writes the complaints anew; read the diff.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "config/bad.rs"]
mod bad;
#[path = "config/bounds.rs"]
mod bounds;
#[path = "config/meaning.rs"]
mod meaning;
#[path = "config/reference.rs"]
mod reference;

use std::path::{Path, PathBuf};

use postrider::config::{self, Config, Problems};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn conf(name: &str) -> String {
    std::fs::read_to_string(folder("conf").join(name)).unwrap()
}

/// Each problem as it is printed.
fn lines(problems: &Problems) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

fn load(text: &str) -> Config {
    config::parse("postrider.toml", text).unwrap_or_else(|problems| panic!("{problems}"))
}

fn refused(text: &str) -> Vec<String> {
    match config::parse("postrider.toml", text) {
        Ok(_) => panic!("this loads:\n{text}"),
        Err(problems) => lines(&problems),
    }
}

/// The least that loads, and then some.
fn with(more: &str) -> String {
    format!("hostname = \"mail.example.com\"\ndata_dir = \"/var/lib/postrider\"\n{more}")
}
