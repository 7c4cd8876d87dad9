//! A full disk: new mail is turned away while there is still room, what is queued is delivered, and
//! mail is taken again when the space is back, without a restart.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::far::{Far, Gate};
use super::house::{House, Running, Settings};
use super::ledger::Ledger;
use super::load::{Load, Plan};
use super::outside::{Disk, Kind};
use super::report::{Report, skipped};
use super::states;

const DISK_MIB: u64 = 64;
/// Demanded: mail is taken again so soon after the space is back.
const BACK_IN: Duration = Duration::from_secs(10);
/// Only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);
const PLAN: Plan =
    Plan { clients: 4, domains: &["late.test", "far.test"], bytes_min: 500, bytes_max: 60_000, pause: Duration::ZERO };
const ALL_LATE: Plan = Plan { domains: &["late.test"], ..PLAN };

struct Scene {
    disk: Disk,
    far: Far,
    house: House,
    ledger: Arc<Ledger>,
    running: Running,
    load: Load,
}

impl Scene {
    async fn new(min_free: &'static str, plan: Plan) -> Result<Scene, String> {
        let disk = Disk::new(Kind::Tmpfs, DISK_MIB)?;
        let far = Far::start().await;
        far.gate("late.test", Gate::Later);
        let settings = Settings { min_free, retry: "schedule = [\"1s\"]", ..Settings::default() };
        let house = House::new(&disk.folder, &far, settings).await;
        let ledger = Arc::new(Ledger::default());
        let load = Load::start(&ledger, plan);
        let running = house.start().await;
        load.open(running.door);
        Ok(Scene { disk, far, house, ledger, running, load })
    }

    async fn until(&mut self, what: &str, enough: impl Fn(&Scene) -> bool) -> Duration {
        let since = Instant::now();
        while !enough(self) {
            let trouble = || self.running.log.trouble().into_iter().rev().take(5).collect::<Vec<_>>().join("\n");
            assert!(since.elapsed() < PATIENCE, "waited in vain: {what}; {:?}\n{}", self.ledger.refusals(), trouble());
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert!(!self.running.is_gone(), "the server has ended: {}", self.running.log.text());
        }
        since.elapsed()
    }

    /// Lets one more message be taken. Tells how long it took.
    async fn takes_mail(&mut self, more: usize) -> Duration {
        let enough = self.ledger.taken_count() + more;
        self.until("mail is taken", |scene| scene.ledger.taken_count() >= enough).await
    }

    /// Everything is let through; then a kill and a start, which would bring back what was refused.
    async fn finish(self, mut report: Report) {
        let Scene { disk, far, house, ledger, running, load } = self;
        far.gate("late.test", Gate::Take);
        load.finish().await;
        ledger.arrived(&far).await;
        running.kill().await.check_no_damage();
        let running = house.start().await;
        house.wait_empty().await;
        running.kill().await.check_no_damage();
        let verdict = ledger.judge(&far);
        verdict.tell(&mut report);
        for (reply, times) in ledger.refusals() {
            report.add(&reply, times);
        }
        report.finish();
        verdict.check();
        states::look(&house.store()).check_empty();
        drop(disk);
    }
}

fn refused(scene: &Scene, code: &str) -> usize {
    scene.ledger.refusals().iter().filter(|(reply, _)| reply.starts_with(code)).map(|(_, times)| times).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn filled_by_others() {
    const TEST: &str = "disk-filled-by-others";
    let mut scene = match Scene::new("16MiB", PLAN).await {
        Ok(scene) => scene,
        Err(why) => return skipped(TEST, &why),
    };
    scene.takes_mail(50).await;
    let left = scene.disk.fill_up_to(8 << 20);
    scene.until("452", |scene| refused(scene, "452") > 0).await;
    // What was taken until then is delivered on the full disk.
    scene.far.gate("late.test", Gate::Take);
    let missing = scene.ledger.arrived(&scene.far).await;
    assert!(missing.is_empty(), "deliveries stopped: {} are missing", missing.len());
    assert!(scene.disk.free() > 0);
    assert!(left < 16 << 20);
    let refusals = scene.ledger.refusals();
    assert!(refusals.keys().all(|reply| reply == "452 4.3.1"), "{refusals:?}");
    scene.disk.free_up();
    let back = scene.takes_mail(1).await;
    scene.takes_mail(20).await;
    let mut report = Report::new(TEST);
    report.add("MiB left", left >> 20);
    report.add("taken again after ms", back.as_millis() as u64);
    scene.finish(report).await;
    assert!(back <= BACK_IN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn filled_by_the_queue_itself() {
    const TEST: &str = "disk-filled-by-the-queue";
    let mut scene = match Scene::new("16MiB", ALL_LATE).await {
        Ok(scene) => scene,
        Err(why) => return skipped(TEST, &why),
    };
    scene.until("452", |scene| refused(scene, "452") > 0).await;
    let refusals = scene.ledger.refusals();
    assert!(refusals.keys().all(|reply| reply == "452 4.3.1"), "{refusals:?}");
    let left = scene.disk.free();
    assert!(left > 0);
    let queued = scene.ledger.taken_count();
    scene.far.gate("late.test", Gate::Take);
    let missing = scene.ledger.arrived(&scene.far).await;
    assert!(missing.is_empty(), "deliveries stopped: {} are missing", missing.len());
    let back = scene.takes_mail(1).await;
    scene.takes_mail(20).await;
    let mut report = Report::new(TEST);
    report.add("queued when full", queued);
    report.add("MiB left", left >> 20);
    report.add("taken again after ms", back.as_millis() as u64);
    scene.finish(report).await;
    assert!(back <= BACK_IN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn filled_to_the_last_byte() {
    const TEST: &str = "disk-filled-to-the-last-byte";
    let mut scene = match Scene::new("1KiB", PLAN).await {
        Ok(scene) => scene,
        Err(why) => return skipped(TEST, &why),
    };
    scene.takes_mail(50).await;
    scene.disk.fill_up_to(0);
    scene.until("refusals", |scene| refused(scene, "45") > 20).await;
    let refusals = scene.ledger.refusals();
    assert!(refusals.keys().all(|reply| reply.starts_with("451") || reply == "452 4.3.1"), "{refusals:?}");
    scene.disk.free_up();
    let back = scene.takes_mail(1).await;
    scene.takes_mail(20).await;
    let mut report = Report::new(TEST);
    report.add("taken again after ms", back.as_millis() as u64);
    scene.finish(report).await;
    assert!(back <= BACK_IN);
}
