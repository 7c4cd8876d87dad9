//! kill -9 at random under load, again and again: nothing acknowledged is lost, nothing refused is
//! there, and copies are at most what was under way; over a night at most one in a thousand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::far::{Far, Gate};
use super::house::{House, Settings};
use super::ledger::Ledger;
use super::load::{Load, Plan};
use super::report::{Budget, Random, Report, count_or, is_night, seed};
use super::states;

const PLAN: Plan =
    Plan { clients: 8, domains: &["far.test", "late.test"], bytes_min: 500, bytes_max: 40_000, pause: Duration::ZERO };
/// Not more than the machine can do: with every processor busy, what waits for one between a far end's word and the
/// server's note of it is copied by a kill, and the copies would be those of the machine. About 200 a second.
const PLAN_OF_A_NIGHT: Plan = Plan { bytes_min: 2_000, bytes_max: 64_000, pause: Duration::from_millis(30), ..PLAN };
/// Attempts that the server makes at once: 10 for each domain, and those that are only noted.
const IN_FLIGHT_MAX: usize = 10 * PLAN.domains.len() + postrider::delivery::dispatch::NOTING_MAX;
/// Messages taken between two kills, before the random rest decides what the kill falls into.
const BETWEEN_KILLS: usize = 40;
const REST_MICROS_MAX: u64 = 30_000;
/// Between two kills of a night.
const LIFE_MIN: Duration = Duration::from_millis(200);
const LIFE_MAX: Duration = Duration::from_secs(3);
/// The longest life is not shorter, however short the time: then there are fewer kills. In lives that have hardly begun
/// a kill falls into more deliveries for each message than it ever would.
const LONGEST_MIN: Duration = Duration::from_millis(1_600);
/// What a start takes, about, and must be left of each round's share of the time.
const START: Duration = Duration::from_millis(400);
/// Of a night: with more than so many in the queue, the clients wait for the far ends before they go on.
const QUEUED_MAX: usize = 3_000;
/// Of a night: one copy for so many messages, at most.
const MESSAGES_PER_COPY: usize = 1_000;
/// Fewer say nothing of one in a thousand.
const TAKEN_ENOUGH: usize = 20_000;

/// How long a life of the server under load may be, at most, for all kills to find place in the time if they can.
fn longest_life(budget: &Budget, kills: usize) -> Duration {
    let share = budget.each(kills).map_or(LIFE_MAX, |each| each.saturating_sub(START) * 2);
    share.saturating_sub(LIFE_MIN).clamp(LONGEST_MIN, LIFE_MAX)
}

async fn until(what: &str, patience: Duration, enough: impl Fn() -> bool) {
    let since = Instant::now();
    while !enough() {
        assert!(since.elapsed() < patience, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn kill_at_random_under_load() {
    const PATIENCE: Duration = Duration::from_secs(300);
    let folder = tempfile::tempdir().unwrap();
    let far = Far::start().await;
    let house = House::new(folder.path(), &far, Settings::default()).await;
    let ledger = Arc::new(Ledger::default());
    let load = Load::start(&ledger, if is_night() { PLAN_OF_A_NIGHT } else { PLAN });
    if is_night() {
        far.gate("late.test", Gate::Slow);
    }
    let kills = count_or(20, 200, 1_000);
    let budget = Budget::start();
    let longest = longest_life(&budget, kills);
    let (mut random, mut done, mut slowest_start) = (Random(seed()), 0, Duration::ZERO);
    while done < kills && !budget.is_over() {
        let since = Instant::now();
        let running = house.start().await;
        slowest_start = slowest_start.max(since.elapsed());
        let at_once = ledger.taken_count();
        if is_night() {
            until("the queue gets shorter", PATIENCE, || at_once < far.count() + QUEUED_MAX).await;
        }
        load.open(running.door);
        if is_night() {
            let more = random.below((longest - LIFE_MIN).as_micros() as u64);
            tokio::time::sleep(LIFE_MIN + Duration::from_micros(more)).await;
        } else {
            let enough = ledger.taken_count() + BETWEEN_KILLS;
            until("mail is taken", PATIENCE, || ledger.taken_count() >= enough).await;
            tokio::time::sleep(Duration::from_micros(random.below(REST_MICROS_MAX))).await;
        }
        load.shut();
        running.kill().await.check_no_damage();
        done += 1;
    }
    let running = house.start().await;
    load.open(running.door);
    load.finish().await;
    ledger.arrived(&far).await;
    house.wait_empty().await;
    running.kill().await.check_no_damage();
    let verdict = ledger.judge(&far);
    let mut report = Report::new("kill-at-random");
    budget.tell(&mut report, "kills", done, kills);
    verdict.tell(&mut report);
    report.add("most copies of one kill", verdict.copies_at_most());
    report.add("in flight at most", IN_FLIGHT_MAX);
    report.add("slowest start ms", slowest_start.as_millis() as u64);
    report.finish();
    verdict.check();
    assert!(verdict.copies_at_most() <= IN_FLIGHT_MAX, "{:?}", verdict.copies);
    if is_night() {
        let is_enough = verdict.taken >= TAKEN_ENOUGH;
        assert!(!is_enough || verdict.copies_in_all() * MESSAGES_PER_COPY <= verdict.taken, "{:?}", verdict.copies);
    } else {
        assert!(verdict.taken >= done * BETWEEN_KILLS);
    }
    states::look(&house.store()).check_empty();
}
