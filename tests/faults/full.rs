//! Disks beside that of the data are full: that of the log, and that of a pickup folder; and the disk of the data is
//! full for what lies in a pickup folder. Mail goes on where it can, waits where it cannot, and is queued once.
//!
//! The server has no log file of its own: what it says goes to standard error, which is a file here. Its processing log
//! lies in the store, so a full disk of that is one of the data (`disk`).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::far::Far;
use super::house::{House, Settings};
use super::ledger::Ledger;
use super::load::{Load, Plan};
use super::outside::{Disk, Kind};
use super::report::{Report, count, is_full, skipped};
use super::states;

const PLAN: Plan = Plan { clients: 4, domains: &["far.test"], bytes_min: 500, bytes_max: 8_000, pause: Duration::ZERO };
const LOG_MIB: u64 = 2;
const PICKUP_MIB: u64 = 8;
const DATA_MIB: u64 = 64;
/// Only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);
/// Demanded: mail is taken again so soon after the space is back.
const BACK_IN: Duration = Duration::from_secs(10);
/// All that comes from the folder is held, so that it can be counted.
const PICKUP: &str = r#"
[accounts.shop]
password = "secret"
hold = true
[pickup.main]
path = "FOLDER"
account = "shop"
settle = "0s"
"#;

async fn until(what: &str, mut enough: impl FnMut() -> bool) -> Duration {
    let since = Instant::now();
    while !enough() {
        assert!(since.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    since.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_log_on_a_full_disk_holds_up_no_mail() {
    const TEST: &str = "log-disk-full";
    let disk = match Disk::new(Kind::Tmpfs, LOG_MIB) {
        Ok(disk) => disk,
        Err(why) => return skipped(TEST, &why),
    };
    let folder = tempfile::tempdir().unwrap();
    let far = Far::start().await;
    let settings = Settings { more: "[log]\nlevel = \"debug\"\n".to_owned(), ..Settings::default() };
    let house = House::new(folder.path(), &far, settings).await;
    let ledger = Arc::new(Ledger::default());
    let mut running = house.start_with_log(&disk.at.join("postrider.log")).await;
    let load = Load::start(&ledger, PLAN);
    load.open(running.door);
    let taken = |more: usize| {
        let (enough, ledger) = (ledger.taken_count() + more, ledger.clone());
        until("mail is taken", move || ledger.taken_count() >= enough)
    };
    let (cycles, messages) = (count(1, 10), count(200, 1_000));
    for cycle in 1..=cycles {
        taken(20).await;
        disk.fill_up_to(0);
        taken(messages).await;
        assert_eq!(disk.free(), 0, "the disk was not full");
        assert!(!running.is_gone(), "the server has ended");
        disk.free_up();
        // What could not be written is said.
        let told = || running.log.text().matches("lines of the log are lost").count() >= cycle;
        until("the log says what it lacks", told).await;
    }
    load.shut();
    load.finish().await;
    let missing = ledger.arrived(&far).await;
    assert!(missing.is_empty(), "{} are missing", missing.len());
    house.wait_empty().await;
    running.stop().await.check_no_damage();
    let verdict = ledger.judge(&far);
    let mut report = Report::new(TEST);
    report.add("cycles", cycles);
    verdict.tell(&mut report);
    report.finish();
    verdict.check();
    assert_eq!(verdict.refused, 0, "{:?}", ledger.refusals());
    states::look(&house.store()).check_empty();
}

/// Drops so many files from this number on, each under its name at once; every tenth is no message if there are bad ones.
fn drop_files(folder: &Path, numbers: std::ops::Range<usize>, with_bad: bool) -> usize {
    let is_bad = |number: usize| with_bad && number % 10 == 9;
    for number in numbers.clone() {
        let text = match is_bad(number) {
            true => "no message".to_owned(),
            false => format!(
                "From: shop@home.test\r\nTo: you@far.test\r\nSubject: drop {number}\r\n\r\n{}\r\n",
                "text ".repeat(number)
            ),
        };
        std::fs::write(folder.join(format!("{number}.part")), text).unwrap();
        std::fs::rename(folder.join(format!("{number}.part")), folder.join(format!("{number}.eml"))).unwrap();
    }
    numbers.filter(|number| !is_bad(*number)).count()
}

/// How many files end so.
fn ending(folder: &Path, end: &str) -> usize {
    let names = std::fs::read_dir(folder).unwrap().flatten();
    names.filter(|entry| entry.file_name().to_string_lossy().ends_with(end)).count()
}

/// Each is queued once.
async fn check_queued(house: &House, wanted: usize) {
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for message in house.queue(&[]).await {
        *times.entry(message["subject"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!(times.len(), wanted);
    assert!(times.values().all(|times| *times == 1), "{times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pickup_folder_on_a_full_disk_is_emptied() {
    const TEST: &str = "pickup-disk-full";
    let disk = match Disk::new(Kind::Ext4, PICKUP_MIB) {
        Ok(disk) => disk,
        Err(why) => return skipped(TEST, &why),
    };
    let (base, far) = (tempfile::tempdir().unwrap(), Far::start().await);
    let more = PICKUP.replace("FOLDER", disk.at.to_str().unwrap());
    let house = House::new(base.path(), &far, Settings { more, ..Settings::default() }).await;
    let files = count(100, 500);
    let good = drop_files(&disk.at, 0..files, true);
    let bad = files - good;
    disk.fill_up_to(0);
    let running = house.start().await;
    // It stays full, whatever is taken from it. A new name may need a block that the disk does not have: that is said,
    // and such a file waits.
    let is_empty = || ending(&disk.at, ".eml") + ending(&disk.at, ".tmp") == 0;
    until("the folder is empty, or it is said what waits", || {
        disk.fill_up_to(0);
        is_empty() || ["file put off", "cannot be renamed"].iter().any(|said| running.log.find(said).is_some())
    })
    .await;
    disk.free_up();
    let waited = until("the folder is empty", is_empty).await;
    assert_eq!(ending(&disk.at, ".bad"), bad);
    check_queued(&house, good).await;
    let more = drop_files(&disk.at, files..files + 10, true);
    let back = waited.max(until("the folder is empty again", is_empty).await);
    check_queued(&house, good + more).await;
    running.kill().await.check_no_damage();
    // What is gone from the folder does not come back.
    let running = house.start().await;
    check_queued(&house, good + more).await;
    running.kill().await.check_no_damage();
    let mut report = Report::new(TEST);
    report.add("files", files + 10);
    report.add("put aside", ending(&disk.at, ".bad"));
    report.add("queued", good + more);
    report.add("taken again after ms", back.as_millis() as u64);
    report.finish();
    // Beside the rest of the suite times say nothing.
    assert!(!is_full() || back <= BACK_IN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pickup_folder_waits_while_the_disk_of_the_data_is_full() {
    const TEST: &str = "pickup-waits-for-disk";
    let disk = match Disk::new(Kind::Ext4, DATA_MIB) {
        Ok(disk) => disk,
        Err(why) => return skipped(TEST, &why),
    };
    let (folder, far) = (tempfile::tempdir().unwrap(), Far::start().await);
    let more = PICKUP.replace("FOLDER", folder.path().to_str().unwrap());
    let settings = Settings { more, min_free: "16MiB", ..Settings::default() };
    let house = House::new(&disk.folder, &far, settings).await;
    let running = house.start().await;
    let first = drop_files(folder.path(), 0..10, false);
    until("the first are taken", || ending(folder.path(), "") == 0).await;
    disk.fill_up_to(8 << 20);
    let files = count(50, 500);
    let waiting = drop_files(folder.path(), first..files, false);
    until("it is turned away", || running.log.find("less than queue.min_free").is_some()).await;
    check_queued(&house, first).await;
    disk.free_up();
    let back = until("all are taken", || ending(folder.path(), "") == 0).await;
    check_queued(&house, first + waiting).await;
    running.kill().await.check_no_damage();
    let mut report = Report::new(TEST);
    report.add("waited", waiting);
    report.add("queued", first + waiting);
    report.add("all taken after ms", back.as_millis() as u64);
    report.finish();
    // Beside the rest of the suite times say nothing.
    assert!(!is_full() || back <= BACK_IN);
}
