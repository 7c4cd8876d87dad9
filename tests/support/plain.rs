//! A small configuration for tests: one domain of ours, everything else at its default.
//!
//! Include it with `#[path = "support/plain.rs"] mod plain;`.

#![allow(dead_code, reason = "each test crate uses a part of it")]
#![allow(clippy::unwrap_used, reason = "test code")]

use std::path::Path;

use postrider::config::Config;
use postrider::message::Domain;

pub const HOSTNAME: &str = "mail.own.test";
pub const DOMAIN: &str = "own.test";

pub fn domain(name: &str) -> Domain {
    Domain::parse(name).unwrap()
}

pub fn config(data_dir: &Path) -> Config {
    let text = format!("hostname = {HOSTNAME:?}\ndata_dir = {:?}\n[domains.{DOMAIN:?}]\n", data_dir.to_str().unwrap(),);
    postrider::config::parse("test.toml", &text).unwrap()
}
