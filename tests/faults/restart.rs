//! Graceful restarts under load: SIGTERM while mail comes and goes, and a start again. Nothing that was acknowledged is
//! lost, and nothing arrives twice: what is on its way out is brought to its end before the server ends.

use std::sync::Arc;
use std::time::Duration;

use super::far::{Far, Gate};
use super::house::{House, Settings};
use super::ledger::Ledger;
use super::load::{Load, Plan};
use super::report::{Budget, Random, Report, count_or, seed};
use super::states;

const PLAN: Plan = Plan {
    clients: 8,
    domains: &["far.test", "slow.test", "late.test"],
    bytes_min: 500,
    bytes_max: 30_000,
    pause: Duration::ZERO,
};
const BETWEEN_STOPS: usize = 30;
const REST_MICROS_MAX: u64 = 50_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn graceful_restarts_under_load_lose_and_repeat_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let far = Far::start().await;
    far.gate("slow.test", Gate::Slow);
    let zone = super::house::domains().mx("slow.test", 10, "mx.far.test");
    let house = House::with_zone(folder.path(), &far, Settings::default(), Arc::new(zone.serve().await));
    let ledger = Arc::new(Ledger::default());
    let load = Load::start(&ledger, PLAN);
    let (restarts, budget) = (count_or(5, 20, 200), Budget::start());
    let (mut random, mut done, mut longest) = (Random(seed()), 0, Duration::ZERO);
    while done < restarts && !budget.is_over() {
        far.gate("late.test", if done % 2 == 0 { Gate::Later } else { Gate::Take });
        let running = house.start().await;
        let enough = ledger.taken_count() + BETWEEN_STOPS;
        load.open(running.door);
        while ledger.taken_count() < enough {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_micros(random.below(REST_MICROS_MAX))).await;
        let since = std::time::Instant::now();
        // Clients go on while it stops: what they are told then has to hold as well.
        let log = running.stop().await;
        longest = longest.max(since.elapsed());
        load.shut();
        load.noted().await;
        log.check_no_damage();
        done += 1;
    }
    load.finish().await;
    far.gate("late.test", Gate::Take);
    let running = house.start().await;
    let missing = ledger.arrived(&far).await;
    if missing.is_empty() {
        house.wait_empty().await;
    }
    running.stop().await.check_no_damage();
    let verdict = ledger.judge(&far);
    let mut report = Report::new("graceful-restarts");
    budget.tell(&mut report, "restarts", done, restarts);
    report.add("longest stop ms", longest.as_millis() as u64);
    report.add("notices", far.notices());
    verdict.tell(&mut report);
    report.add("unanswered and yet arrived", verdict.unanswered_arrived);
    report.finish();
    verdict.check();
    assert_eq!(verdict.copies_in_all(), 0, "delivered twice: {:?}", verdict.copies);
    // Its client would send it again.
    assert_eq!(verdict.unanswered_arrived, 0, "taken at the stop, and its client was not told");
    assert_eq!(far.notices(), 0, "something was given up");
    states::look(&house.store()).check_empty();
}
