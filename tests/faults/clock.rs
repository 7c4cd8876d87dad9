//! The clock jumps while the server runs: an hour, a day, ten years, beyond 2038, forth and back. Nothing is lost or
//! expires by a jump of a day, no try is made that the plan does not have, and mail goes on meanwhile.
//!
//! The server's clock is moved by Debian's libfaketime; its timers, like the kernel's, know nothing of it.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::far::{Far, Gate};
use super::house::{House, Settings};
use super::ledger::{Answer, Ledger, Talk};
use super::report::{Budget, Random, Report, count_or, seed, skipped};
use super::states;

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;
/// Beyond what 32 bits of seconds can say.
const IN_2038: i64 = 2_147_483_647 + DAY;
/// Messages that wait for their next try, an hour after the last.
const WAITING: usize = 20;
/// Messages that go through after each jump, one after the other.
const THROUGH: usize = 5;

struct Clock {
    library: String,
    file: PathBuf,
}

impl Clock {
    fn new(folder: &Path) -> Result<Clock, String> {
        let peer = std::env::var("POSTRIDER_TEST_FAKETIME").map_err(|_| "there is no libfaketime".to_owned())?;
        let clock = Clock { library: format!("{peer}/libfaketime.so"), file: folder.join("clock") };
        clock.set(0);
        Ok(clock)
    }

    /// Seconds off the true time, from now on.
    fn set(&self, seconds: i64) {
        let beside = self.file.with_extension("new");
        std::fs::write(&beside, format!("{seconds:+}")).unwrap();
        std::fs::rename(beside, &self.file).unwrap();
    }

    /// For a start of the server.
    fn wrapper(&self) -> Vec<String> {
        let file = self.file.display();
        vec![
            "env".to_owned(),
            format!("LD_PRELOAD={}", self.library),
            format!("FAKETIME_TIMESTAMP_FILE={file}"),
            "FAKETIME_NO_CACHE=1".to_owned(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        ]
    }
}

async fn goes_through(ledger: &Ledger, far: &Far, talk: &mut Talk, why: i64) {
    for _ in 0..THROUGH {
        let (number, answer) = ledger.send(talk, &["you@far.test".to_owned()], 3_000).await;
        assert_eq!(answer, Answer::Taken, "{why} s off");
        far.wait(&format!("mail with a clock {why} s off"), |far| far.times(number) == 1).await;
    }
}

/// Seconds off, one after the other. What waits must outlast these.
fn jumps(random: &mut Random, rounds: usize) -> Vec<i64> {
    let mut jumps = vec![HOUR, 0, -HOUR, DAY - 1, 0, 1 - DAY, -10 * YEAR, 0];
    for _ in 1..rounds {
        let far = [HOUR, DAY - 1][random.below(2) as usize];
        jumps.push(random.below(2 * far as u64) as i64 - far);
        jumps.push(0);
    }
    jumps
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_loses_nothing_and_starts_no_storm() {
    const TEST: &str = "clock-jumps";
    let folder = tempfile::tempdir().unwrap();
    let clock = match Clock::new(folder.path()) {
        Ok(clock) => clock,
        Err(why) => return skipped(TEST, &why),
    };
    let far = Far::start().await;
    let settings = Settings { retry: "schedule = [\"1h\"]", ..Settings::default() };
    let house = House::new(folder.path(), &far, settings).await;
    let ledger = Ledger::default();
    far.gate("late.test", Gate::Later);
    let running = house.try_start(&clock.wrapper()).await.unwrap();
    let mut talk = Talk::connect(running.door).await.unwrap();
    for _ in 0..WAITING {
        ledger.send(&mut talk, &["you@late.test".to_owned()], 3_000).await;
    }
    let all_tried = |queue: &[serde_json::Value]| queue.iter().all(|m| m["recipients"][0]["attempts"] != 0);
    house.wait_queue("each is tried once", &[], all_tried).await;
    let budget = Budget::start();
    let jumps = jumps(&mut Random(seed()), count_or(1, 10, 500));
    let (mut done, mut tries_of_a_jump) = (0, 0);
    for &jump in &jumps {
        if budget.is_over() {
            break;
        }
        let before = far.put_off();
        clock.set(jump);
        goes_through(&ledger, &far, &mut talk, jump).await;
        let queue = house.queue(&["--to", "late.test"]).await;
        assert_eq!(queue.len(), WAITING, "{jump} s off");
        // One try of each is due at most, whatever the jump.
        tries_of_a_jump = tries_of_a_jump.max(far.put_off() - before);
        done += 1;
    }
    clock.set(0);
    far.gate("late.test", Gate::Take);
    let retried = house.cli(&["queue", "retry", "--all"]).await;
    assert!(retried.status.success(), "{}", String::from_utf8_lossy(&retried.stderr));
    let missing = ledger.arrived(&far).await;
    // Nothing waits any more, so nothing can expire: ten years, and the year 2038.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    for jump in [10 * YEAR, IN_2038 - now, 0] {
        clock.set(jump);
        goes_through(&ledger, &far, &mut talk, jump).await;
    }
    house.wait_empty().await;
    running.kill().await.check_no_damage();
    let verdict = ledger.judge(&far);
    let mut report = Report::new(TEST);
    budget.tell(&mut report, "jumps", done, jumps.len());
    report.add("waiting over them", WAITING);
    report.add("tries of a jump at most", tries_of_a_jump);
    report.add("notices of a delay", far.notices());
    verdict.tell(&mut report);
    report.finish();
    verdict.check();
    assert!(missing.is_empty(), "{missing:?}");
    assert!((1..=2 * WAITING).contains(&tries_of_a_jump), "no jump was noticed, or a storm");
    // None was given up, or it would not have arrived; who sent it hears once at most that it is late.
    assert!(far.notices() <= WAITING, "{} notices about {WAITING} messages", far.notices());
    states::look(&house.store()).check_empty();
}
