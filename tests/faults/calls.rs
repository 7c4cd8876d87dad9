//! Kills at single system calls, from the first of a start on: of the committer, of RocksDB's own
//! threads, of the pickup folder, of the answers. Each kill leaves a legal state, and the ledger holds.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::far::{Far, Gate};
use super::house::{House, Running, Settings};
use super::ledger::{Answer, Ledger, Talk, content};
use super::outside::{Injection, injecting, strace_missing};
use super::report::{Budget, Random, Report, count_or, seed, skipped};
use super::states;

/// Each with the highest count at which a start with a few messages still comes to it in one thread.
const CALLS: [(&str, u64); 9] = [
    ("fdatasync", 12),
    ("fsync", 10),
    ("write", 40),
    ("pwrite64,pwritev,pwritev2", 8),
    ("sendto,sendmsg", 12),
    ("rename,renameat,renameat2", 6),
    ("unlink,unlinkat", 6),
    ("ftruncate,fallocate", 4),
    ("openat", 60),
];
/// Only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);

fn pickup(folder: &Path) -> (PathBuf, Settings) {
    let pickup = folder.join("pickup");
    std::fs::create_dir_all(&pickup).unwrap();
    let more = format!(
        "[accounts.app]\npassword = \"a long enough pass phrase\"\n[pickup.main]\npath = \"{}\"\naccount = \"app\"\nsettle = \"0s\"\n",
        pickup.display()
    );
    (pickup, Settings { more, ..Settings::default() })
}

/// Puts a file into the folder as a careful program would; it counts as acknowledged then.
fn drop_file(ledger: &Ledger, pickup: &Path) -> u64 {
    let number = ledger.next_number();
    let content = content(number, 2000);
    let (beside, inside) = (pickup.with_extension("new"), pickup.join(format!("{number}.eml")));
    std::fs::write(&beside, &content).unwrap();
    ledger.note_other(number, &content, Answer::Taken);
    std::fs::rename(beside, inside).unwrap();
    number
}

/// A little of everything; ends when that is delivered or the server is dead.
async fn errand(running: &mut Running, ledger: &Ledger, far: &Far, pickup: &Path) {
    let mut wanted = vec![drop_file(ledger, pickup)];
    if let Ok(mut talk) = Talk::connect(running.door).await {
        for (domain, bytes) in [("far.test", 3000), ("late.test", 100_000), ("far.test", 50_000)] {
            let (number, answer) = ledger.send(&mut talk, &[format!("you@{domain}")], bytes).await;
            if answer == Answer::Taken && domain == "far.test" {
                wanted.push(number);
            }
        }
    }
    let since = Instant::now();
    while !running.is_gone() && !wanted.iter().all(|number| far.times(*number) > 0) {
        assert!(since.elapsed() < PATIENCE, "neither delivered nor dead: {}", running.log.trouble().join("\n"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_at_any_system_call() {
    const TEST: &str = "kill-at-system-calls";
    if let Some(why) = strace_missing() {
        return skipped(TEST, &why);
    }
    let folder = tempfile::tempdir().unwrap();
    let far = Far::start().await;
    far.gate("late.test", Gate::Later);
    let (pickup, settings) = pickup(folder.path());
    let house = House::new(folder.path(), &far, settings).await;
    let ledger = Ledger::default();
    let points = count_or(80, 400, 1_600);
    let (mut random, mut at_start, mut later) = (Random(seed()), 0, 0);
    let (budget, mut done) = (Budget::start(), 0);
    while done < points && !budget.is_over() {
        let point = done;
        done += 1;
        let (calls, last) = CALLS[point % CALLS.len()];
        let what = format!("signal=SIGKILL:when={}", 1 + random.below(last));
        // Every other round the counting begins when the server is up, so that not all fall into the start.
        let from_the_start = (point / CALLS.len()).is_multiple_of(2);
        let wrapper = if from_the_start { injecting(calls, &what) } else { Vec::new() };
        match house.try_start(&wrapper).await {
            Err(ended) => {
                assert!(!ended.log.contains("panicked"), "{ended}");
                assert_eq!(ended.code, None, "killed by no signal at {calls} {what}: {ended}");
                at_start += 1;
            }
            Ok(mut running) => {
                let injection =
                    if from_the_start { None } else { Some(Injection::start(running.pid(), calls, &what).await) };
                errand(&mut running, &ledger, &far, &pickup).await;
                later += usize::from(running.is_gone());
                running.kill().await.check_no_damage();
                drop(injection);
            }
        }
    }
    far.gate("late.test", Gate::Take);
    let running = house.start().await;
    ledger.arrived(&far).await;
    house.wait_empty().await;
    running.kill().await.check_no_damage();
    let verdict = ledger.judge(&far);
    let mut report = Report::new(TEST);
    budget.tell(&mut report, "points", done, points);
    report.add("killed at start", at_start);
    report.add("killed later", later);
    verdict.tell(&mut report);
    report.finish();
    verdict.check();
    states::look(&house.store()).check_empty();
    assert_eq!(std::fs::read_dir(&pickup).unwrap().count(), 0, "files are left in the pickup folder");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claimed_pickup_file_is_queued_once() {
    const TEST: &str = "row-pickup-claim";
    if let Some(why) = strace_missing() {
        return skipped(TEST, &why);
    }
    let folder = tempfile::tempdir().unwrap();
    let far = Far::start().await;
    let (pickup, settings) = pickup(folder.path());
    let house = House::new(folder.path(), &far, settings).await;
    let ledger = Ledger::default();
    // The claim and its sync, the file's new name, the message with its claim, the removal, the last claim.
    let points = [
        ("fdatasync", 1),
        ("fdatasync", 2),
        ("fdatasync", 3),
        ("rename,renameat,renameat2", 1),
        ("unlink,unlinkat", 1),
        ("fsync", 1),
    ];
    let mut killed = 0;
    for (calls, when) in points {
        // Nothing is delivered while the kill is near, so no copy has an excuse.
        far.gate("far.test", Gate::Later);
        let mut running = house.start().await;
        let injection = Injection::start(running.pid(), calls, &format!("signal=SIGKILL:when={when}")).await;
        let number = drop_file(&ledger, &pickup);
        let since = Instant::now();
        while !running.is_gone() && (pickup.join(format!("{number}.eml")).exists() || since.elapsed().as_secs() < 2) {
            assert!(since.elapsed() < PATIENCE, "{calls} {when}: {}", running.log.trouble().join("\n"));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        killed += usize::from(running.is_gone());
        running.kill().await.check_no_damage();
        drop(injection);
        far.gate("far.test", Gate::Take);
        let running = house.start().await;
        far.wait(&format!("the file after a kill at {calls} {when}"), |far| far.times(number) == 1).await;
        house.wait_empty().await;
        running.kill().await.check_no_damage();
        let found = states::look(&house.store());
        found.check_empty();
        assert_eq!(std::fs::read_dir(&pickup).unwrap().count(), 0, "a file is left behind {calls} {when}");
        assert_eq!(far.times(number), 1, "{calls} {when}");
    }
    let verdict = ledger.judge(&far);
    let mut report = Report::new(TEST);
    report.add("points", points.len());
    report.add("killed", killed);
    verdict.tell(&mut report);
    report.finish();
    verdict.check();
    assert!(killed >= 4, "the points are not where they were");
}
