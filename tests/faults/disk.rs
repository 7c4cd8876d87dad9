//! A full disk: new mail is turned away while there is still room, what is queued is delivered, and
//! mail is taken again when the space is back, without a restart. Space is that for bytes and that for files.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::far::{Far, Gate};
use super::house::{House, Running, Settings};
use super::ledger::Ledger;
use super::load::{Load, Plan};
use super::outside::{Disk, Kind};
use super::report::{Report, count, skipped};
use super::states;

const DISK_MIB: u64 = 64;
/// Demanded: mail is taken again so soon after the space is back.
const BACK_IN: Duration = Duration::from_secs(10);
/// Of the file system with few of them: the store needs some twenty.
const FILES: u32 = 256;
/// The guard has closed when so few are left.
const FILES_LEFT: u64 = 40;
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
    async fn new(kind: Kind, min_free: &'static str, plan: Plan) -> Result<Scene, String> {
        let disk = Disk::new(kind, DISK_MIB)?;
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

/// 452 4.3.1 and no other refusal: the space was not gone.
fn check_refusals(scene: &Scene) {
    let refusals = scene.ledger.refusals();
    assert!(refusals.keys().all(|reply| reply == "452 4.3.1"), "{refusals:?}");
}

fn refused(scene: &Scene, code: &str) -> usize {
    scene.ledger.refusals().iter().filter(|(reply, _)| reply.starts_with(code)).map(|(_, times)| times).sum()
}

/// So often on one disk: its space goes, mail is turned away, all that was taken is delivered, the space comes back.
async fn filled_by_others_on(test: &str, kind: Kind) {
    let mut scene = match Scene::new(kind, "16MiB", PLAN).await {
        Ok(scene) => scene,
        Err(why) => return skipped(test, &why),
    };
    let mut report = Report::new(test);
    let (cycles, mut back) = (count(1, 3), Duration::ZERO);
    for _ in 0..cycles {
        scene.far.gate("late.test", Gate::Later);
        scene.takes_mail(50).await;
        let left = match kind {
            Kind::FewFiles(_) => scene.disk.take_files_up_to(FILES_LEFT),
            _ => scene.disk.fill_up_to(8 << 20) >> 20,
        };
        let before = refused(&scene, "452");
        scene.until("452", |scene| refused(scene, "452") > before).await;
        // What was taken until then is delivered on the full disk.
        scene.far.gate("late.test", Gate::Take);
        let missing = scene.ledger.arrived(&scene.far).await;
        assert!(missing.is_empty(), "deliveries stopped: {} are missing", missing.len());
        assert!(scene.disk.free() > 0 && scene.disk.free_files() > 0);
        assert!(left < 16 || left <= FILES_LEFT);
        check_refusals(&scene);
        match kind {
            Kind::FewFiles(_) => scene.disk.give_files_back(),
            _ => scene.disk.free_up(),
        }
        back = back.max(scene.takes_mail(1).await);
        scene.takes_mail(20).await;
    }
    report.add("cycles", cycles);
    report.add("taken again after ms", back.as_millis() as u64);
    scene.finish(report).await;
    assert!(back <= BACK_IN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn filled_by_others() {
    filled_by_others_on("disk-filled-by-others", Kind::Tmpfs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn filled_by_others_on_ext4() {
    filled_by_others_on("ext4-filled-by-others", Kind::Ext4).await;
}

/// There are bytes in plenty, but hardly any file can be made.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn files_used_up_by_others() {
    filled_by_others_on("files-used-up-by-others", Kind::FewFiles(FILES)).await;
}

async fn filled_by_the_queue_on(test: &str, kind: Kind) {
    let mut scene = match Scene::new(kind, "16MiB", ALL_LATE).await {
        Ok(scene) => scene,
        Err(why) => return skipped(test, &why),
    };
    scene.until("452", |scene| refused(scene, "452") > 0).await;
    check_refusals(&scene);
    let left = scene.disk.free();
    assert!(left > 0);
    let queued = scene.ledger.taken_count();
    scene.far.gate("late.test", Gate::Take);
    let missing = scene.ledger.arrived(&scene.far).await;
    assert!(missing.is_empty(), "deliveries stopped: {} are missing", missing.len());
    let back = scene.takes_mail(1).await;
    scene.takes_mail(20).await;
    let mut report = Report::new(test);
    report.add("queued when full", queued);
    report.add("MiB left", left >> 20);
    report.add("taken again after ms", back.as_millis() as u64);
    scene.finish(report).await;
    assert!(back <= BACK_IN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn filled_by_the_queue_itself() {
    filled_by_the_queue_on("disk-filled-by-the-queue", Kind::Tmpfs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn filled_by_the_queue_itself_on_ext4() {
    filled_by_the_queue_on("ext4-filled-by-the-queue", Kind::Ext4).await;
}

async fn filled_to_the_last_on(test: &str, kind: Kind) {
    let mut scene = match Scene::new(kind, "1KiB", PLAN).await {
        Ok(scene) => scene,
        Err(why) => return skipped(test, &why),
    };
    scene.takes_mail(50).await;
    match kind {
        Kind::FewFiles(_) => scene.disk.take_files_up_to(0),
        _ => scene.disk.fill_up_to(0),
    };
    scene.until("refusals", |scene| refused(scene, "45") > 20).await;
    let refusals = scene.ledger.refusals();
    assert!(refusals.keys().all(|reply| reply.starts_with("451") || reply == "452 4.3.1"), "{refusals:?}");
    match kind {
        Kind::FewFiles(_) => scene.disk.give_files_back(),
        _ => scene.disk.free_up(),
    }
    let back = scene.takes_mail(1).await;
    scene.takes_mail(20).await;
    let mut report = Report::new(test);
    report.add("taken again after ms", back.as_millis() as u64);
    scene.finish(report).await;
    assert!(back <= BACK_IN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn filled_to_the_last_byte() {
    filled_to_the_last_on("disk-filled-to-the-last-byte", Kind::Tmpfs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn filled_to_the_last_byte_on_ext4() {
    filled_to_the_last_on("ext4-filled-to-the-last-byte", Kind::Ext4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn files_used_up_to_the_last() {
    filled_to_the_last_on("files-used-up-to-the-last", Kind::FewFiles(FILES)).await;
}
