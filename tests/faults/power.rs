//! The power goes under load: what was acknowledged is there after it. The data lies on an ext4 in a
//! file, and the cut is the file system's own: it stops writing, and its cache and journal are lost.

use std::sync::Arc;
use std::time::Duration;

use super::far::{Far, Gate};
use super::house::{House, Settings};
use super::ledger::{Ledger, Verdict};
use super::load::{Load, Plan};
use super::outside::{Disk, Kind};
use super::report::{Random, Report, count, seed, skipped};
use super::states;

/// Most of it stays queued over the cut: what is delivered before cannot be lost any more.
const PLAN: Plan = Plan { clients: 8, domains: &["late.test", "late.test", "far.test"], bytes_max: 20_000 };
const DISK_MIB: u64 = 512;
const BETWEEN_CUTS: usize = 60;
const REST_MICROS_MAX: u64 = 50_000;

struct Cuts {
    verdict: Verdict,
    /// Starts that complained of something.
    complaints: usize,
}

/// Load and a cut, so many times; then everything is let through. `Err`: this machine cannot.
async fn cut_power(durability: &'static str, cuts: usize) -> Result<Cuts, String> {
    let disk = Disk::new(Kind::Ext4, DISK_MIB)?;
    let far = Far::start().await;
    let settings = Settings { durability, retry: "schedule = [\"2s\"]", ..Settings::default() };
    let house = House::new(&disk.folder, &far, settings).await;
    let ledger = Arc::new(Ledger::default());
    far.gate("late.test", Gate::Later);
    let load = Load::start(&ledger, PLAN);
    let (mut random, mut complaints) = (Random(seed()), 0);
    for cut in 0..cuts {
        let running = house.start().await;
        complaints += usize::from(cut > 0 && running.log.text().contains("ERROR"));
        let switch = disk.prepare_cut()?;
        let enough = ledger.taken_count() + BETWEEN_CUTS;
        load.open(running.door);
        while ledger.taken_count() < enough {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_micros(random.below(REST_MICROS_MAX))).await;
        ledger.lights_out(true);
        let done = switch.now();
        load.shut();
        running.kill().await.check_no_panic();
        disk.unmount()?;
        disk.mount()?;
        done?;
        load.noted().await;
        ledger.lights_out(false);
    }
    load.finish().await;
    let running = house.start().await;
    far.gate("late.test", Gate::Take);
    let missing = ledger.arrived(&far).await;
    house.wait_empty().await;
    running.kill().await.check_no_panic();
    if missing.is_empty() {
        states::look(&house.store()).check_empty();
    }
    Ok(Cuts { verdict: ledger.judge(&far), complaints })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_acknowledged_survives_a_power_cut() {
    const TEST: &str = "power-cuts";
    let cuts = count(2, 20);
    let done = match cut_power("sync", cuts).await {
        Ok(done) => done,
        Err(why) => return skipped(TEST, &why),
    };
    let mut report = Report::new(TEST);
    report.add("cuts", cuts);
    done.verdict.tell(&mut report);
    report.add("starts with errors", done.complaints);
    report.finish();
    done.verdict.check();
    assert!(done.verdict.taken >= cuts * BETWEEN_CUTS);
}

/// Shows that the cut is one: what is not synced does not survive it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_sync_a_power_cut_loses_mail() {
    const TEST: &str = "power-cut-relaxed";
    let done = match cut_power("relaxed", 1).await {
        Ok(done) => done,
        Err(why) => return skipped(TEST, &why),
    };
    let mut report = Report::new(TEST);
    done.verdict.tell(&mut report);
    report.finish();
    assert!(!done.verdict.lost.is_empty(), "nothing was lost, so the test with sync shows nothing");
    assert!(done.verdict.ghosts.is_empty() && done.verdict.altered.is_empty());
}
