//! Files are dropped into a pickup folder while the server is killed again and again: each message is queued
//! once, none is lost, and the folder is empty but for what was put aside.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::far::Far;
use super::house::{House, Settings};
use super::report::{Random, Report, count, is_full, seed};

/// All that comes from the folder is held: what delivery does after a kill is shown elsewhere.
const MORE: &str = r#"
[accounts.shop]
password = "secret"
streams = ["bulk"]
hold = true
[pickup.main]
path = "FOLDER"
account = "shop"
settle = "0s"
"#;
/// Every so many files is none.
const BAD_EVERY: usize = 50;
const REST_MICROS_MAX: u64 = 60_000;

/// Writes the files, in place or by another name, some into the sub-folder of a stream.
fn drop_files(folder: &Path, files: usize, written: &AtomicUsize, go_on: &AtomicBool) {
    for number in 0..files {
        let sub = if number % 7 == 0 { "bulk/" } else { "" };
        let path = |ending: &str| folder.join(format!("{sub}{number}.{ending}"));
        let text = match number % BAD_EVERY {
            0 => "no message".to_owned(),
            _ => format!(
                "From: shop@home.test\r\nTo: you@far.test\r\nSubject: drop {number}\r\n\r\n{}\r\n",
                "text ".repeat(number % 400)
            ),
        };
        if number % 3 == 0 {
            fs::write(path("eml"), text).unwrap();
        } else {
            fs::write(path("part"), text).unwrap();
            fs::rename(path("part"), path("eml")).unwrap();
        }
        written.store(number + 1, Ordering::Release);
        // Not all at once, so that some fall into each life.
        if number % 10 == 0 && go_on.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let all = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    all.collect()
}

fn waiting(folder: &Path) -> usize {
    let is_message = |name: &&String| name.ends_with(".eml") || name.ends_with(".tmp") || name.ends_with(".part");
    [folder.to_owned(), folder.join("bulk")].iter().map(|dir| names(dir).iter().filter(is_message).count()).sum()
}

async fn wait_until(what: &str, enough: impl Fn() -> bool) {
    let since = std::time::Instant::now();
    while !enough() {
        // The bound only turns a hang into a failure.
        assert!(since.elapsed() < Duration::from_secs(300), "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn folder_in(base: &Path) -> PathBuf {
    let folder = base.join("drop");
    fs::create_dir(&folder).unwrap();
    fs::create_dir(folder.join("bulk")).unwrap();
    folder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn files_dropped_while_the_server_is_killed_are_each_queued_once() {
    let base = tempfile::tempdir().unwrap();
    let far = Far::start().await;
    let folder = folder_in(base.path());
    let more = MORE.replace("FOLDER", folder.to_str().unwrap());
    let house = House::new(base.path(), &far, Settings { more, ..Settings::default() }).await;
    let (files, kills) = (count(1_000, 10_000), if is_full() { 20 } else { 5 });
    let (written, go_on) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(true)));
    let writer = {
        let (folder, written, go_on) = (folder.clone(), written.clone(), go_on.clone());
        std::thread::spawn(move || drop_files(&folder, files, &written, &go_on))
    };
    let mut random = Random(seed());
    let done = |written: &AtomicUsize| written.load(Ordering::Acquire).saturating_sub(waiting(&folder));
    for kill in 0..kills {
        let running = house.start().await;
        let goal = files * (kill + 1) / (kills + 1);
        wait_until("files are taken", || done(&written) >= goal).await;
        tokio::time::sleep(Duration::from_micros(random.below(REST_MICROS_MAX))).await;
        running.kill().await.check_no_damage();
    }
    go_on.store(false, Ordering::Release);
    let running = house.start().await;
    writer.join().unwrap();
    wait_until("the folder is empty", || waiting(&folder) == 0).await;
    let queue = house.queue(&[]).await;
    let mut times: HashMap<String, usize> = HashMap::new();
    for message in &queue {
        *times.entry(message["subject"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    let wanted = |number: &usize| !number.is_multiple_of(BAD_EVERY);
    let lost: Vec<_> = (0..files).filter(wanted).filter(|n| !times.contains_key(&format!("drop {n}"))).collect();
    let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
    assert!(lost.is_empty() && twice.is_empty(), "lost: {lost:?}; more than once: {twice:?}");
    let bad = files.div_ceil(BAD_EVERY);
    assert_eq!(queue.len(), files - bad);
    let left: Vec<String> = names(&folder).into_iter().chain(names(&folder.join("bulk"))).collect();
    let aside = left.iter().filter(|name| name.ends_with(".bad")).count();
    assert_eq!((aside, left.len()), (bad, 2 * bad + 1), "what was put aside, its reasons, and bulk/: {left:?}");
    running.kill().await.check_no_damage();
    let mut report = Report::new("dropped-files");
    report.add("files", files);
    report.add("kills", kills);
    report.add("put aside", bad);
    report.finish();
}
