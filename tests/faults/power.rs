//! The power goes under load: what was acknowledged is there after it. The data lies on an ext4 or an xfs in a
//! file, and the cut is the file system's own: it stops writing, and its cache and journal are lost.

use std::sync::Arc;
use std::time::Duration;

use super::far::{Far, Gate};
use super::house::{House, Settings};
use super::ledger::{Ledger, Verdict};
use super::load::{Load, Plan};
use super::outside::{Disk, Kind};
use super::report::{Budget, Random, Report, count_or, seed, skipped};
use super::states;

/// Most of it stays queued over the cut: what is delivered before cannot be lost any more.
const PLAN: Plan = Plan {
    clients: 8,
    domains: &["late.test", "late.test", "far.test"],
    bytes_min: 500,
    bytes_max: 20_000,
    pause: Duration::ZERO,
};
const DISK_MIB: u64 = 512;
const BETWEEN_CUTS: usize = 60;
const REST_MICROS_MAX: u64 = 50_000;

/// Load and a cut, so many times; then everything is let through. `Err`: this machine cannot.
async fn cut_power(kind: Kind, durability: &'static str, cuts: usize) -> Result<(usize, Verdict), String> {
    let budget = Budget::start();
    let disk = Disk::new(kind, DISK_MIB)?;
    let far = Far::start().await;
    let settings = Settings { durability, retry: "schedule = [\"2s\"]", ..Settings::default() };
    let house = House::new(&disk.folder, &far, settings).await;
    let ledger = Arc::new(Ledger::default());
    far.gate("late.test", Gate::Later);
    let load = Load::start(&ledger, PLAN);
    let (mut random, mut done) = (Random(seed()), 0);
    while done < cuts && !budget.is_over() {
        // Now and then all is let through, so that what waits over the cuts does not fill the disk.
        far.gate("late.test", if done % 20 == 19 { Gate::Take } else { Gate::Later });
        let running = house.start().await;
        let switch = disk.prepare_cut()?;
        let enough = ledger.taken_count() + BETWEEN_CUTS;
        load.open(running.door);
        while ledger.taken_count() < enough {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_micros(random.below(REST_MICROS_MAX))).await;
        running.log.check_no_damage();
        ledger.lights_out(true);
        let cut = switch.now();
        load.shut();
        running.kill().await.check_no_panic();
        disk.unmount()?;
        disk.mount()?;
        cut?;
        done += 1;
        load.noted().await;
        ledger.lights_out(false);
    }
    load.finish().await;
    let running = house.start().await;
    far.gate("late.test", Gate::Take);
    let missing = ledger.arrived(&far).await;
    house.wait_empty().await;
    running.kill().await.check_no_damage();
    if missing.is_empty() {
        states::look(&house.store()).check_empty();
    }
    Ok((done, ledger.judge(&far)))
}

async fn acknowledged_survives(test: &str, kind: Kind) {
    let cuts = count_or(5, 20, 250);
    let budget = Budget::start();
    let (done, verdict) = match cut_power(kind, "sync", cuts).await {
        Ok(both) => both,
        Err(why) => return skipped(test, &why),
    };
    let mut report = Report::new(test);
    budget.tell(&mut report, "cuts", done, cuts);
    verdict.tell(&mut report);
    report.finish();
    verdict.check();
    assert!(verdict.taken >= done * BETWEEN_CUTS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_acknowledged_survives_a_power_cut() {
    acknowledged_survives("power-cuts", Kind::Ext4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_acknowledged_survives_a_power_cut_on_xfs() {
    acknowledged_survives("power-cuts-xfs", Kind::Xfs).await;
}

/// Shows that the cut is one: what is not synced does not survive it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_sync_a_power_cut_loses_mail() {
    const TEST: &str = "power-cut-relaxed";
    let verdict = match cut_power(Kind::Ext4, "relaxed", 1).await {
        Ok((_, verdict)) => verdict,
        Err(why) => return skipped(TEST, &why),
    };
    let mut report = Report::new(TEST);
    verdict.tell(&mut report);
    report.finish();
    assert!(!verdict.lost.is_empty(), "nothing was lost, so the test with sync shows nothing");
    assert!(verdict.ghosts.is_empty() && verdict.altered.is_empty());
}
