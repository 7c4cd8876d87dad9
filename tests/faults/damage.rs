//! One random damage to the files of a store that was killed: it must be noticed and named, by the next
//! start or by `postrider store check`, and what is undamaged must be delivered. Nothing may be missing
//! in silence, nothing arrive altered; no panic, no hang.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::damage_kinds::{Damage, damage};
use super::far::{Far, Gate};
use super::house::{House, Running, Settings, zone};
use super::ledger::{Ledger, mark};
use super::report::{Budget, Random, Report, count_or, say, seed};
use super::wal;
use super::zone::ZoneServer;

/// Messages of the store that is damaged, by what they are when it is killed.
const CAPTURED: usize = 8;
const OLD: usize = 110;
const HELD: usize = 10;
const DONE: usize = 12;
const NEW: usize = 150;
/// Without anything new at the far end for so long, nothing more will come.
const STANDSTILL: Duration = Duration::from_secs(6);
/// Wait between two tries of what the far end does not take while the store is made.
const DUE_AGAIN: Duration = Duration::from_secs(12);
/// A check of so small a store that takes longer hangs.
const CHECK_TIME: Duration = Duration::from_secs(30);
/// Servers at once.
const AT_ONCE: usize = 4;
/// Of the messages that wait, so many may go with one damaged place in a table: a block holds the
/// records of several.
pub const BLOCK_MESSAGES_MAX: usize = 40;

/// A killed store with mail in all states, some of it in tables, some in log files.
pub struct Base {
    folder: tempfile::TempDir,
    ledger: Ledger,
    captured: BTreeSet<u64>,
    waiting: BTreeSet<u64>,
    /// Of `waiting`: what only the log files hold.
    new: BTreeSet<u64>,
}

fn numbers(queue: &[serde_json::Value]) -> BTreeSet<u64> {
    let number = |listed: &serde_json::Value| listed["subject"].as_str()?.strip_prefix("number ")?.parse().ok();
    queue.iter().filter_map(number).collect()
}

impl Base {
    async fn make() -> Base {
        let folder = tempfile::tempdir().unwrap();
        let far = Far::start().await;
        far.gate("late.test", Gate::Later);
        let capture = Settings { delivery: "default = \"capture\"", ..Settings::default() };
        let house = House::new(folder.path(), &far, capture).await;
        let ledger = Ledger::default();
        let running = house.start().await;
        send(&ledger, &running, CAPTURED, "you@far.test").await;
        house.wait_queue("captured", &["--status", "captured"], |queue| queue.len() == CAPTURED).await;
        running.kill().await;
        let retry = format!("schedule = [\"{}s\"]", DUE_AGAIN.as_secs()).leak();
        *house.settings.lock().unwrap() = Settings { retry, ..Settings::default() };

        let running = house.start().await;
        send(&ledger, &running, OLD, "you@late.test").await;
        send(&ledger, &running, HELD, "held@late.test").await;
        send(&ledger, &running, DONE, "you@far.test").await;
        let tried = |queue: &[serde_json::Value], count: usize| {
            let tried = |listed: &&serde_json::Value| listed["recipients"][0]["attempts"] != 0;
            queue.iter().filter(tried).count() == count
        };
        house.wait_queue("all tried", &["--status", "waiting"], |queue| tried(queue, OLD + HELD)).await;
        assert!(house.cli(&["queue", "hold", "--to", "held"]).await.status.success());
        running.kill().await;
        // The next start puts into tables what the log files hold.
        let running = house.start().await;
        let old = numbers(&house.queue(&[]).await);
        send(&ledger, &running, NEW, "you@late.test").await;
        house.wait_queue("all tried", &["--status", "waiting"], |queue| tried(queue, OLD + NEW)).await;
        // The last write is one that is synced, and no attempt comes after it.
        send(&ledger, &running, 1, "held@late.test").await;
        house.wait_queue("all tried", &["--status", "waiting"], |queue| tried(queue, OLD + NEW + 1)).await;
        assert!(house.cli(&["queue", "hold", "--to", "held"]).await.status.success());
        let built = Instant::now();
        let captured = numbers(&house.queue(&["--status", "captured"]).await);
        let all = numbers(&house.queue(&[]).await);
        running.kill().await;
        let _ = std::fs::remove_file(house.data.join("admin.sock"));
        let waiting: BTreeSet<u64> = all.difference(&captured).copied().collect();
        let new = waiting.difference(&old).copied().collect();
        // Then all of it is due with each start; a tenth more for the jitter.
        tokio::time::sleep((DUE_AGAIN + DUE_AGAIN / 8).saturating_sub(built.elapsed())).await;
        Base { folder, ledger, captured, waiting, new }
    }

    /// Messages that begin in the records of this part of a log file.
    pub fn marked(&self, log: &Path, from: usize, to: usize) -> BTreeSet<u64> {
        let bytes = std::fs::read(log).unwrap();
        let records = wal::records(log).into_iter().filter(|record| record.from < to && from < record.to);
        let part: Vec<u8> = records.flat_map(|record| wal::payload(&bytes, record)).collect();
        self.new.iter().copied().filter(|number| memchr::memmem::find(&part, &mark(*number)).is_some()).collect()
    }

    pub fn old(&self) -> BTreeSet<u64> {
        self.waiting.difference(&self.new).chain(&self.captured).copied().collect()
    }

    fn copy(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        let words = ["-r", "--sparse=always"];
        let done = Command::new("cp").args(words).arg(self.folder.path().join("data")).arg(copy.path()).status();
        assert!(done.unwrap().success());
        copy
    }
}

async fn send(ledger: &Ledger, running: &Running, count: usize, to: &str) {
    let mut talk = super::ledger::Talk::connect(running.door).await.unwrap();
    for n in 0..count {
        ledger.send(&mut talk, &[to.to_owned()], 1000 + (n * 7919) % 30_000).await;
    }
}

/// What became of one damage.
struct Outcome {
    damage: Damage,
    noticed: Option<&'static str>,
    missing: BTreeSet<u64>,
    faults: Vec<String>,
}

async fn one(base: &Base, number: usize, seed: u64, zone: Arc<ZoneServer>) -> Outcome {
    let folder = base.copy();
    let damage = damage(base, &folder.path().join("data"), &mut Random(seed), number);
    let far = Far::start().await;
    let house = House::with_zone(folder.path(), &far, Settings::default(), zone.clone());
    let mut faults = Vec::new();
    let mut noticed = None;
    let mut told = String::new();
    let mut missing: BTreeSet<u64> = base.waiting.union(&base.captured).copied().collect();
    match house.try_start(&[]).await {
        Err(ended) => {
            faults.push(format!("the server does not start: {ended}"));
            if names(&ended.log, &damage.file) {
                noticed = Some("start");
            }
        }
        Ok(running) => {
            missing = deliver(base, &house, &far).await;
            let log = running.kill().await;
            told = log.trouble().join("\n");
            if names(&log.trouble().join("\n"), &damage.file) {
                noticed = Some("start");
            }
            if log.find("panicked").is_some() {
                faults.push(format!("a panic: {}", log.trouble().join("\n")));
            }
        }
    }
    if noticed.is_none() && damage.must_be_noticed {
        if check_names(base, number, seed, &damage, zone).await {
            noticed = Some("check");
        } else {
            let is_silent = !missing.is_empty() && faults.is_empty();
            let fault = if is_silent { "a silent loss" } else { "the file is not named" };
            faults.push(format!("{fault}; {} missing; the start said: {told}", missing.len()));
        }
    }
    let beyond: Vec<u64> = missing.difference(&damage.touched).copied().collect();
    if beyond.len() > damage.spare {
        faults.push(format!("{} undamaged messages are missing", beyond.len()));
    }
    if !faults.is_empty() && faults.iter().all(|fault| !fault.contains("the start said")) {
        faults.push(format!("the start said: {told}"));
    }
    let altered = base.ledger.judge(&far).altered;
    if !altered.is_empty() {
        faults.push(format!("altered: {altered:?}"));
    }
    Outcome { damage, noticed, missing, faults }
}

/// A line of trouble that holds the name of the file. Where one is gone, or its end, its number may be
/// known to nobody: then it is what sort of file it was.
fn names(text: &str, file: &str) -> bool {
    let sort = match file {
        log if log.ends_with(".log") => "log files",
        manifest if manifest.starts_with("MANIFEST") => "MANIFEST",
        other => other,
    };
    text.lines().any(|line| line.contains(file) || line.contains(sort))
}

/// Lets everything through and gives what is missing in the end.
async fn deliver(base: &Base, house: &House, far: &Far) -> BTreeSet<u64> {
    house.cli(&["queue", "release", "--status", "held"]).await;
    let listed = house.cli(&["queue", "list", "--json", "--limit", "0", "--status", "captured"]).await;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    let captured: Vec<serde_json::Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let captured = numbers(&captured);
    let (mut seen, mut since) = (far.count(), Instant::now());
    loop {
        let arrived: BTreeSet<u64> = far.arrivals().iter().filter_map(|arrival| arrival.number).collect();
        let missing: BTreeSet<u64> = base.waiting.difference(&arrived).copied().collect();
        if missing.is_empty() || since.elapsed() > STANDSTILL {
            return missing.into_iter().chain(base.captured.difference(&captured).copied()).collect();
        }
        if far.count() != seen {
            (seen, since) = (far.count(), Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// `store check` on another copy with the same damage.
async fn check_names(base: &Base, number: usize, seed: u64, wanted: &Damage, zone: Arc<ZoneServer>) -> bool {
    let folder = base.copy();
    let damage = damage(base, &folder.path().join("data"), &mut Random(seed), number);
    assert_eq!((&damage.what, &damage.file), (&wanted.what, &wanted.file), "the same damage");
    let far = Far::start().await;
    let house = House::with_zone(folder.path(), &far, Settings::default(), zone);
    house.write_conf();
    let Ok(output) = tokio::time::timeout(CHECK_TIME, house.cli(&["store", "check"])).await else {
        say(&format!(
            "case {number}: store check hangs after {} {} (seed of the case {seed})",
            damage.what, damage.file
        ));
        return false;
    };
    let text = [output.stdout, output.stderr].concat();
    !output.status.success() && names(&String::from_utf8_lossy(&text), &damage.file)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn damage_is_named_and_the_rest_is_delivered() {
    let base = Arc::new(Base::make().await);
    let zone = zone().await;
    let cases = count_or(50, 300, 4_000);
    let only: Option<usize> = std::env::var("POSTRIDER_FAULTS_CASE").ok().and_then(|number| number.parse().ok());
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let (budget, mut running) = (Budget::start(), tokio::task::JoinSet::new());
    for number in (0..cases).filter(|number| only.is_none_or(|only| only == *number)) {
        let (base, zone, room) = (base.clone(), zone.clone(), room.clone());
        let seed = Random(seed().wrapping_add((number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1).next();
        running.spawn(async move {
            let _place = room.acquire_owned().await.unwrap();
            if budget.is_over() { None } else { Some((number, one(&base, number, seed, zone).await)) }
        });
    }
    let mut outcomes: Vec<_> = running.join_all().await.into_iter().flatten().collect();
    outcomes.sort_by_key(|(number, _)| *number);
    let mut report = Report::new("damage");
    budget.tell(&mut report, "cases", outcomes.len(), if only.is_some() { 1 } else { cases });
    report.add("messages in each", base.waiting.len() + base.captured.len());
    let noticed = |by: &str| outcomes.iter().filter(|(_, outcome)| outcome.noticed == Some(by)).count();
    report.add("noticed by the start", noticed("start"));
    report.add("noticed by the check", noticed("check"));
    let harmless = outcomes.iter().filter(|(_, outcome)| !outcome.damage.must_be_noticed).count();
    report.add("of no harm", harmless);
    let touched = |outcome: &Outcome| outcome.damage.touched.intersection(&outcome.missing).count();
    report.add("damaged messages missing", outcomes.iter().map(|(_, outcome)| touched(outcome)).sum::<usize>());
    let missing: usize = outcomes.iter().map(|(_, outcome)| outcome.missing.len() - touched(outcome)).sum();
    report.add("other messages missing", missing);
    let faulty: Vec<String> = outcomes
        .iter()
        .filter(|(_, outcome)| !outcome.faults.is_empty())
        .map(|(number, outcome)| {
            let Damage { what, file, .. } = &outcome.damage;
            format!("case {number}: {what} {file}: {}", outcome.faults.join("; "))
        })
        .collect();
    report.add("cases with a fault", faulty.len());
    report.finish();
    faulty.iter().for_each(|line| say(line));
    assert!(faulty.is_empty(), "{} of {} cases", faulty.len(), outcomes.len());
}
