//! kill -9 at random under load, again and again: nothing acknowledged is lost, nothing refused is
//! there, and copies are at most what was under way.

use std::sync::Arc;
use std::time::Duration;

use super::far::Far;
use super::house::{House, Settings};
use super::ledger::Ledger;
use super::load::{Load, Plan};
use super::report::{Random, Report, count, seed};
use super::states;

const PLAN: Plan = Plan { clients: 8, domains: &["far.test", "late.test"], bytes_max: 40_000 };
/// Attempts that the server makes at once: 10 for each domain, and those that are only noted.
const IN_FLIGHT_MAX: usize = 10 * PLAN.domains.len() + postrider::delivery::dispatch::NOTING_MAX;
/// Messages taken between two kills, before the random rest decides what the kill falls into.
const BETWEEN_KILLS: usize = 40;
const REST_MICROS_MAX: u64 = 30_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn kill_at_random_under_load() {
    let folder = tempfile::tempdir().unwrap();
    let far = Far::start().await;
    let house = House::new(folder.path(), &far, Settings::default()).await;
    let ledger = Arc::new(Ledger::default());
    let load = Load::start(&ledger, PLAN);
    let kills = count(20, 200);
    let mut random = Random(seed());
    for _ in 0..kills {
        let running = house.start().await;
        let enough = ledger.taken_count() + BETWEEN_KILLS;
        load.open(running.door);
        while ledger.taken_count() < enough {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_micros(random.below(REST_MICROS_MAX))).await;
        load.shut();
        running.kill().await.check_no_damage();
    }
    let running = house.start().await;
    load.open(running.door);
    load.finish().await;
    ledger.arrived(&far).await;
    house.wait_empty().await;
    running.kill().await.check_no_damage();
    let verdict = ledger.judge(&far);
    let mut report = Report::new("kill-at-random");
    report.add("kills", kills);
    verdict.tell(&mut report);
    report.add("most copies of one kill", verdict.copies_at_most());
    report.finish();
    verdict.check();
    assert!(verdict.taken >= kills * BETWEEN_KILLS);
    assert!(verdict.copies_at_most() <= IN_FLIGHT_MAX, "{:?}", verdict.copies);
    states::look(&house.store()).check_empty();
}
