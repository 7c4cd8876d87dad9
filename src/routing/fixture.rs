//! A small configuration for the tests of this folder: `example.com` with a catchall,
//! `plain.example` without, two webhooks and a Maildir.
#![allow(clippy::unwrap_used)]

use crate::config::{self, Config, Destination, Loops, PatternAlias};

const TEXT: &str = r#"
hostname = "mail.example.com"
data_dir = "/nonexistent"
postmaster = "ops@elsewhere.example"
[domains."example.com"]
catchall = "catch"
[domains."plain.example"]
[targets.crm]
kind = "webhook"
url = "https://hooks.example/"
[targets.catch]
kind = "webhook"
url = "https://hooks.example/"
[targets.sales-box]
kind = "maildir"
path = "/nonexistent/sales"
"#;

pub fn config() -> Config {
    config::parse("fixture.toml", TEXT).unwrap()
}

pub fn loops() -> Loops {
    config().loops
}

pub fn pattern(text: &str, destinations: Vec<Destination>) -> PatternAlias {
    PatternAlias { text: format!("/{text}/"), regex: regex::Regex::new(text).unwrap(), destinations }
}
