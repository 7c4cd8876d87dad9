//! A long run of one server: mail comes and goes, receivers put off, refuse and take, clients stay away without a
//! word. In the end it holds no more files than at the start, and after a night no more memory than in the middle.

use std::sync::Arc;
use std::time::Duration;

use super::far::{Far, Gate};
use super::house::{House, Running, Settings};
use super::ledger::{Ledger, Talk};
use super::load::{Load, Plan};
use super::report::{Budget, Random, Report, count_or, is_night, seed};
use super::states;

const PLAN: Plan = Plan {
    clients: 4,
    domains: &["far.test", "late.test"],
    bytes_min: 500,
    bytes_max: 60_000,
    pause: Duration::from_millis(5),
};
const OF_A_ROUND: usize = 200;
/// Rounds until caches and tables have their size.
const WARM: usize = 2;
/// Connections that are kept for the next message come and go.
const FILES_SPARE: usize = 40;
/// Demanded of a night, between its middle and its end.
const MEMORY_PERCENT_MAX: u64 = 110;
/// From so many rounds on there is a middle that says something.
const ROUNDS_OF_A_NIGHT: usize = 100;

fn files(running: &Running) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", running.pid())).unwrap().count()
}

fn memory_kib(running: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_and_files_stay_what_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let far = Far::start().await;
    let house = House::new(folder.path(), &far, Settings::default()).await;
    let ledger = Arc::new(Ledger::default());
    let running = house.start().await;
    let (rounds, budget) = (count_or(5, 30, 50_000), Budget::start());
    let mut random = Random(seed());
    let mut seen: Vec<(usize, u64)> = Vec::new();
    while seen.len() < rounds && !budget.is_over() {
        let gate = [Gate::Take, Gate::Later, Gate::Slow][random.below(3) as usize];
        far.gate("late.test", gate);
        let load = Load::start(&ledger, PLAN);
        load.open(running.door);
        let enough = ledger.taken_count() + OF_A_ROUND;
        let mut left = Vec::new();
        while ledger.taken_count() < enough {
            // A client that says where to, and then no more.
            if left.len() < 20
                && let Ok(mut talk) = Talk::connect(running.door).await
                && talk.open(&["you@far.test".to_owned()]).await.is_ok()
            {
                left.push(talk);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        load.finish().await;
        drop(left);
        far.gate("late.test", Gate::Take);
        house.wait_empty().await;
        seen.push((files(&running), memory_kib(&running)));
    }
    running.kill().await.check_no_damage();
    let verdict = ledger.judge(&far);
    let (first, middle, last) = (seen[WARM.min(seen.len() - 1)], seen[seen.len() / 2], seen[seen.len() - 1]);
    let mut report = Report::new("soak");
    budget.tell(&mut report, "rounds", seen.len(), rounds);
    report.add("files first", first.0);
    report.add("files last", last.0);
    report.add("KiB first", first.1);
    report.add("KiB middle", middle.1);
    report.add("KiB last", last.1);
    verdict.tell(&mut report);
    report.finish();
    verdict.check();
    assert!(last.0 <= first.0 + FILES_SPARE, "{seen:?}");
    if is_night() && seen.len() >= ROUNDS_OF_A_NIGHT {
        assert!(last.1 * 100 <= middle.1 * MEMORY_PERCENT_MAX, "{seen:?}");
    }
    states::look(&house.store()).check_empty();
}
