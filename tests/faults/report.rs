//! What a fault test found: one line for people, one JSON file for programs, and the reason where a
//! machine cannot do what a test needs.
//!
//! Quick counts run with the suite; `POSTRIDER_FAULTS=full` (`make faults`) asks for more, and
//! `POSTRIDER_FAULTS=night` (`make nightly`) for those of a night, as far as `POSTRIDER_FAULTS_SECONDS` reach.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

/// `full` with `POSTRIDER_FAULTS=full`, or what `POSTRIDER_FAULTS_COUNT` says; else `quick`.
pub fn count(quick: usize, full: usize) -> usize {
    let given = std::env::var("POSTRIDER_FAULTS_COUNT").ok().and_then(|count| count.parse().ok());
    given.unwrap_or(if is_full() { full } else { quick })
}

/// As [`count`], with a number of its own for a night.
pub fn count_or(quick: usize, full: usize, night: usize) -> usize {
    count(quick, if is_night() { night } else { full })
}

/// Of `make faults`, or of a night.
pub fn is_full() -> bool {
    is_night() || std::env::var("POSTRIDER_FAULTS").is_ok_and(|what| what == "full")
}

pub fn is_night() -> bool {
    std::env::var("POSTRIDER_FAULTS").is_ok_and(|what| what == "night")
}

/// The time that a test has for its rounds, if there is a bound (`POSTRIDER_FAULTS_SECONDS`). What comes after the
/// rounds is not counted.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    since: Instant,
    all: Option<Duration>,
}

impl Budget {
    pub fn start() -> Budget {
        let seconds = std::env::var("POSTRIDER_FAULTS_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
        Budget { since: Instant::now(), all: seconds.map(Duration::from_secs) }
    }

    pub fn is_over(&self) -> bool {
        self.all.is_some_and(|all| self.since.elapsed() >= all)
    }

    /// What each of so many rounds may take.
    pub fn each(&self, rounds: usize) -> Option<Duration> {
        Some(self.all? / u32::try_from(rounds).ok()?.max(1))
    }

    /// How many rounds were done, and which were not reached.
    pub fn tell(&self, report: &mut Report, what: &str, done: usize, wanted: usize) {
        report.add(what, done);
        if done < wanted {
            report.add(&format!("{what} not reached"), wanted - done);
        }
        report.add("seconds", self.since.elapsed().as_secs());
    }
}

/// For everything that is random in a run. `POSTRIDER_SEED` repeats one.
pub fn seed() -> u64 {
    let given = std::env::var("POSTRIDER_SEED").ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| u64::from(std::process::id())) | 1
}

/// xorshift64.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

/// Past the test harness, which keeps the output of good tests to itself.
pub fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

pub fn skipped(test: &str, why: &str) {
    say(&format!("WARNING: {test} is SKIPPED: {why}"));
    write(test, &format!("{test}: SKIPPED: {why}"), Value::String(format!("skipped: {why}")));
}

/// A line of the summary.
#[derive(Debug)]
pub struct Report {
    test: String,
    figures: Vec<(String, Value)>,
}

impl Report {
    pub fn new(test: &str) -> Report {
        Report { test: test.to_owned(), figures: vec![("seed".to_owned(), Value::from(seed()))] }
    }

    pub fn add(&mut self, name: &str, value: impl Into<Value>) {
        self.figures.push((name.to_owned(), value.into()));
    }

    /// Prints and writes it; to be called before anything is asserted.
    pub fn finish(self) {
        let figures: Vec<String> = self.figures.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let line = format!("{}: {}", self.test, figures.join(", "));
        say(&line);
        let object: Map<String, Value> = self.figures.into_iter().collect();
        write(&self.test, &line, Value::Object(object));
    }
}

fn write(test: &str, line: &str, value: Value) {
    let folder = folder();
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(format!("{test}.json")), format!("{value:#}\n")).unwrap();
    std::fs::write(folder.join(format!("{test}.txt")), format!("{line}\n")).unwrap();
}

/// `faults/` in cargo's target folder.
fn folder() -> PathBuf {
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tmp.parent().unwrap_or(tmp).join("faults")
}
