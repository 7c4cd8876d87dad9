//! Errors of the disk under load: the group that meets one is refused, nothing of it is ever
//! delivered, and mail is taken again by itself when the errors have passed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::far::{Far, Gate};
use super::house::{House, Running, Settings};
use super::ledger::Ledger;
use super::load::{Load, Plan};
use super::outside::{Injection, strace_missing};
use super::report::{Budget, Random, Report, count_or, seed, skipped};
use super::states;

const PLAN: Plan =
    Plan { clients: 6, domains: &["late.test", "far.test"], bytes_min: 500, bytes_max: 20_000, pause: Duration::ZERO };
/// As for a full disk.
const BACK_IN: Duration = Duration::from_secs(10);
/// Only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// What fails: the calls, and whether only on the log files of the store.
const FAULTS: [(&str, &str, bool); 6] = [
    ("fdatasync,fsync", "error=EIO", false),
    ("fdatasync,fsync", "error=ENOSPC", false),
    // A single one, somewhere.
    ("fdatasync,fsync", "error=EIO:when=ANY", false),
    ("write,pwrite64", "error=ENOSPC", true),
    ("write,pwrite64", "error=EIO:when=ANY", true),
    ("openat,ftruncate,fallocate,rename", "error=ENOSPC", true),
];

async fn until(what: &str, running: &mut Running, ledger: &Ledger, enough: impl Fn() -> bool) -> Duration {
    let since = Instant::now();
    while !enough() {
        let trouble = running.log.trouble().into_iter().rev().take(5).collect::<Vec<_>>().join("\n");
        assert!(since.elapsed() < PATIENCE, "waited in vain: {what}; {:?}\n{trouble}", ledger.refusals());
        assert!(!running.is_gone(), "the server has ended: {}", running.log.text());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    since.elapsed()
}

fn refused(ledger: &Ledger) -> usize {
    ledger.refusals().values().sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_met_an_error_is_refused_and_stays_away() {
    const TEST: &str = "disk-errors";
    if let Some(why) = strace_missing() {
        return skipped(TEST, &why);
    }
    let folder = tempfile::tempdir().unwrap();
    let far = Far::start().await;
    far.gate("late.test", Gate::Later);
    let house = House::new(folder.path(), &far, Settings::default()).await;
    let ledger = Arc::new(Ledger::default());
    let load = Load::start(&ledger, PLAN);
    let rounds = count_or(10, 60, 300);
    let (mut random, mut slowest) = (Random(seed()), Duration::ZERO);
    let mut running = house.start().await;
    let (budget, mut done) = (Budget::start(), 0);
    while done < rounds && !budget.is_over() {
        let round = done;
        done += 1;
        load.open(running.door);
        let enough = ledger.taken_count() + 20;
        until("mail is taken", &mut running, &ledger, || ledger.taken_count() >= enough).await;
        let (calls, what, only_log) = FAULTS[round % FAULTS.len()];
        let what = what.replace("ANY", &(1 + random.below(10)).to_string());
        let files = if only_log { house.log_files() } else { Vec::new() };
        let (refused_before, taken_before) = (refused(&ledger), ledger.taken_count());
        let injection = Injection::start_for(running.pid(), calls, &what, &files).await;
        // A store that has gone over to another log file, or that needed none of these calls, is well.
        let met = || refused(&ledger) > refused_before || ledger.taken_count() > taken_before + 100;
        until(&format!("{calls} {what} is met"), &mut running, &ledger, met).await;
        drop(injection);
        let enough = ledger.taken_count() + 1;
        let back = until("mail is taken again", &mut running, &ledger, || ledger.taken_count() >= enough).await;
        slowest = slowest.max(back);
        // What was refused must not come back with the next start either.
        if random.below(2) == 0 {
            load.shut();
            running.kill().await.check_no_damage();
            running = house.start().await;
        }
    }
    load.open(running.door);
    load.finish().await;
    running.kill().await.check_no_damage();
    far.gate("late.test", Gate::Take);
    let running = house.start().await;
    ledger.arrived(&far).await;
    house.wait_empty().await;
    running.kill().await.check_no_damage();
    let verdict = ledger.judge(&far);
    let mut report = Report::new(TEST);
    budget.tell(&mut report, "rounds", done, rounds);
    report.add("taken again after ms at most", slowest.as_millis() as u64);
    verdict.tell(&mut report);
    for (reply, times) in ledger.refusals() {
        report.add(&reply, times);
    }
    report.finish();
    verdict.check();
    assert!(ledger.refusals().keys().all(|reply| reply.starts_with("451") || reply.starts_with("452")));
    assert!(slowest <= BACK_IN);
    states::look(&house.store()).check_empty();
}
