//! A kill in each row of the table of legal states, and what its crash column says holds after it. The
//! far end stops the attempt where it is wanted; where the point lies inside the server, strace kills
//! it at the system call.

use super::far::{Far, Gate};
use super::house::{House, Running, Settings};
use super::ledger::{Answer, Ledger, Talk, content};
use super::outside::{Injection, strace_missing};
use super::report::{Report, skipped};
use super::states::{self, Found};

/// Whatever sends on a socket.
const SENDS: &str = "sendto,sendmsg,writev";
/// Whatever writes to a file.
const WRITES: &str = "write,pwrite64,writev,pwritev,pwritev2";

struct Scene {
    _folder: tempfile::TempDir,
    far: Far,
    house: House,
    ledger: Ledger,
}

impl Scene {
    async fn new(settings: Settings) -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let far = Far::start().await;
        let house = House::new(folder.path(), &far, settings).await;
        Scene { _folder: folder, far, house, ledger: Ledger::default() }
    }

    /// What the dead server's store holds.
    fn look(&self) -> Found {
        let found = states::look(&self.house.store());
        found.check_legal();
        found
    }

    /// The server is killed once more: nothing is left in its store, and so many messages are out.
    async fn ends_empty(&self, running: Running, delivered: usize, row: &str) {
        running.kill().await.check_no_damage();
        self.look().check_empty();
        assert_eq!(self.far.count(), delivered);
        self.report(row);
    }

    fn report(&self, row: &str) {
        let verdict = self.ledger.judge(&self.far);
        let mut report = Report::new(&format!("row-{row}"));
        verdict.tell(&mut report);
        report.finish();
        verdict.check();
    }
}

/// Of all messages, each with one recipient.
fn attempts(queue: &[serde_json::Value]) -> u64 {
    queue.iter().map(|message| message["recipients"][0]["attempts"].as_u64().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn being_received_leaves_nothing() {
    let scene = Scene::new(Settings::default()).await;
    let running = scene.house.start().await;
    let mut talk = Talk::connect(running.door).await.unwrap();
    talk.open(&["you@far.test".to_owned()]).await.unwrap().unwrap();
    // More than the sockets hold, so that pieces of it have come in.
    talk.write(&content(scene.ledger.next_number(), 12 << 20)).await.unwrap();
    running.kill().await.check_no_damage();
    let running = scene.house.start().await;
    assert!(scene.house.queue(&[]).await.is_empty());
    scene.ends_empty(running, 0, "being-received").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_but_not_answered_is_delivered_once() {
    const ROW: &str = "committed-not-answered";
    if let Some(why) = strace_missing() {
        return skipped(ROW, &why);
    }
    let scene = Scene::new(Settings::default()).await;
    let mut running = scene.house.start().await;
    let mut talk = Talk::connect(running.door).await.unwrap();
    talk.open(&["you@far.test".to_owned()]).await.unwrap().unwrap();
    let number = scene.ledger.next_number();
    let message = content(number, 3000);
    scene.ledger.note_other(number, &message, Answer::Cut);
    // Nothing is sent before the commit: neither the answer, nor a look-up for the delivery.
    let injection = Injection::start(running.pid(), SENDS, "signal=SIGKILL").await;
    talk.write(&[&message[..], b".\r\n"].concat()).await.unwrap();
    assert!(talk.reply().await.is_err(), "answered");
    running.gone().await;
    drop(injection);
    let running = scene.house.start().await;
    scene.far.wait("the message", |far| far.times(number) == 1).await;
    scene.house.wait_empty().await;
    scene.ends_empty(running, 1, ROW).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn being_committed_is_all_there_or_not_at_all() {
    const ROW: &str = "being-committed";
    if let Some(why) = strace_missing() {
        return skipped(ROW, &why);
    }
    let scene = Scene::new(Settings::default()).await;
    // At the write into the log nothing is there yet, at its sync all of it is.
    for (calls, only_log, wanted) in [(WRITES, true, 0), ("fdatasync", false, 1)] {
        let mut running = scene.house.start().await;
        let mut talk = Talk::connect(running.door).await.unwrap();
        talk.open(&["you@far.test".to_owned()]).await.unwrap().unwrap();
        let number = scene.ledger.next_number();
        let message = content(number, 100_000);
        scene.ledger.note_other(number, &message, Answer::Cut);
        let files = if only_log { scene.house.log_files() } else { Vec::new() };
        let injection = Injection::start_for(running.pid(), calls, "signal=SIGKILL", &files).await;
        talk.write(&[&message[..], b".\r\n"].concat()).await.unwrap();
        assert!(talk.reply().await.is_err(), "answered");
        running.gone().await;
        drop(injection);
        assert_eq!(scene.look().messages, wanted, "after a kill at {calls}");
        let running = scene.house.start().await;
        scene.far.wait("the message", |far| far.times(number) == wanted).await;
        scene.house.wait_empty().await;
        running.kill().await.check_no_damage();
        scene.look().check_empty();
        assert_eq!(scene.far.times(number), wanted);
    }
    scene.report(ROW);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_persons_change_is_made_or_not() {
    const ROW: &str = "person-changes";
    if let Some(why) = strace_missing() {
        return skipped(ROW, &why);
    }
    let scene = Scene::new(Settings { retry: "schedule = [\"1h\"]", ..Settings::default() }).await;
    scene.far.gate("late.test", Gate::Later);
    let mut running = scene.house.start().await;
    let (number, _) = scene.ledger.send_to(running.door, &["you@late.test"], 3000).await;
    scene.house.wait_queue("one try", &[], |queue| attempts(queue) == 1).await;
    let files = scene.house.log_files();
    let injection = Injection::start_for(running.pid(), WRITES, "signal=SIGKILL", &files).await;
    assert!(!scene.house.cli(&["queue", "hold", "--to", "late.test"]).await.status.success(), "answered");
    running.gone().await;
    drop(injection);
    let found = scene.look();
    assert_eq!((found.waiting, found.held), (1, 0), "killed before it was written");

    let mut running = scene.house.start().await;
    let injection = Injection::start(running.pid(), "fdatasync", "signal=SIGKILL").await;
    assert!(!scene.house.cli(&["queue", "hold", "--to", "late.test"]).await.status.success(), "answered");
    running.gone().await;
    drop(injection);
    let found = scene.look();
    assert_eq!((found.waiting, found.held), (0, 1), "killed when it was written, before the sync");

    scene.far.gate("late.test", Gate::Take);
    let running = scene.house.start().await;
    assert!(scene.house.cli(&["queue", "release", "--to", "late.test"]).await.status.success());
    scene.far.wait("the released message", |far| far.times(number) == 1).await;
    scene.house.wait_empty().await;
    running.kill().await.check_no_damage();
    scene.look().check_empty();
    scene.report(ROW);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_is_found_by_the_due_index() {
    let scene = Scene::new(Settings { retry: "schedule = [\"1h\"]", ..Settings::default() }).await;
    scene.far.gate("late.test", Gate::Later);
    let running = scene.house.start().await;
    let (number, answer) = scene.ledger.send_to(running.door, &["you@late.test"], 3000).await;
    assert_eq!(answer, Answer::Taken);
    scene.house.wait_queue("one try", &[], |queue| attempts(queue) == 1).await;
    running.kill().await.check_no_damage();

    scene.house.settings.lock().unwrap().retry = "schedule = [\"1s\"]";
    let running = scene.house.start().await;
    let queue = scene.house.queue(&["--status", "waiting"]).await;
    assert_eq!(attempts(&queue), 1, "tried before its time");
    let (soon, answer) = scene.ledger.send_to(running.door, &["you@late.test"], 3000).await;
    assert_eq!(answer, Answer::Taken);
    scene.house.wait_queue("a second try", &[], |queue| attempts(queue) >= 3).await;
    running.kill().await.check_no_damage();

    scene.far.gate("late.test", Gate::Take);
    let running = scene.house.start().await;
    scene.far.wait("the message whose time has come", |far| far.times(soon) == 1).await;
    assert_eq!(scene.far.times(number), 0, "tried before its time");
    assert!(scene.house.cli(&["queue", "retry", "--all"]).await.status.success());
    scene.far.wait("the message that is wanted now", |far| far.times(number) == 1).await;
    scene.house.wait_empty().await;
    running.kill().await.check_no_damage();
    scene.look().check_empty();
    scene.report("waiting");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_an_attempt_before_the_far_ends_250_is_tried_again() {
    let scene = Scene::new(Settings::default()).await;
    scene.far.gate("far.test", Gate::Stop);
    let running = scene.house.start().await;
    let (number, _) = scene.ledger.send_to(running.door, &["you@far.test"], 300_000).await;
    scene.far.wait_stopped(1).await;
    running.kill().await.check_no_damage();
    scene.far.cut();
    scene.far.gate("far.test", Gate::Take);
    let running = scene.house.start().await;
    scene.far.wait("the message", |far| far.times(number) == 1).await;
    scene.house.wait_empty().await;
    scene.ends_empty(running, 1, "in-an-attempt").await;
}

/// Kills the server at one of the writes that follow the far end's 250. Gives how often the message came.
async fn killed_at_write(row: &str, write: usize) -> Option<usize> {
    if let Some(why) = strace_missing() {
        skipped(row, &why);
        return None;
    }
    let scene = Scene::new(Settings::default()).await;
    scene.far.gate("far.test", Gate::Stop);
    let mut running = scene.house.start().await;
    let (number, _) = scene.ledger.send_to(running.door, &["you@far.test"], 3000).await;
    scene.far.wait_stopped(1).await;
    let injection = Injection::start(running.pid(), WRITES, &format!("signal=SIGKILL:when={write}")).await;
    scene.far.answer();
    running.gone().await;
    drop(injection);
    scene.far.gate("far.test", Gate::Take);
    let running = scene.house.start().await;
    scene.house.wait_empty().await;
    let times = scene.far.times(number);
    scene.ends_empty(running, times, row).await;
    Some(times)
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_far_ends_250_and_before_its_receipt_a_copy_comes() {
    if let Some(times) = killed_at_write("after-250-before-receipt", 1).await {
        assert_eq!(times, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_receipt_and_before_our_mark_no_copy_comes() {
    if let Some(times) = killed_at_write("after-receipt-before-mark", 2).await {
        assert_eq!(times, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn held_stays_held() {
    let scene = Scene::new(Settings { retry: "schedule = [\"1h\"]", ..Settings::default() }).await;
    scene.far.gate("late.test", Gate::Later);
    let running = scene.house.start().await;
    let (number, _) = scene.ledger.send_to(running.door, &["you@late.test"], 3000).await;
    scene.house.wait_queue("one try", &[], |queue| attempts(queue) == 1).await;
    let id = scene.house.queue(&[]).await[0]["id"].as_str().unwrap().to_owned();
    assert!(scene.house.cli(&["queue", "hold", &id]).await.status.success());
    running.kill().await.check_no_damage();
    assert_eq!((scene.look().held, scene.look().waiting), (1, 0));

    scene.far.gate("late.test", Gate::Take);
    let running = scene.house.start().await;
    assert_eq!(scene.house.queue(&["--status", "held"]).await.len(), 1);
    assert_eq!(scene.far.count(), 0);
    assert!(scene.house.cli(&["queue", "release", &id]).await.status.success());
    scene.far.wait("the released message", |far| far.times(number) == 1).await;
    scene.house.wait_empty().await;
    running.kill().await.check_no_damage();
    scene.look().check_empty();
    scene.report("held");
}

#[tokio::test(flavor = "multi_thread")]
async fn released_out_of_what_is_captured_is_sent_after_a_kill() {
    let scene = Scene::new(Settings { delivery: "default = \"capture\"", ..Settings::default() }).await;
    let running = scene.house.start().await;
    let (number, _) = scene.ledger.send_to(running.door, &["you@far.test"], 3000).await;
    scene.house.wait_queue("captured", &["--status", "captured"], |queue| queue.len() == 1).await;
    let id = scene.house.queue(&[]).await[0]["id"].as_str().unwrap().to_owned();
    // Released, and it waits.
    assert!(scene.house.cli(&["suspend"]).await.status.success());
    assert!(scene.house.cli(&["captured", "release", &id]).await.status.success());
    running.kill().await.check_no_damage();
    let running = scene.house.start().await;
    assert_eq!(scene.house.queue(&["--status", "captured"]).await.len(), 0);
    assert_eq!(scene.house.queue(&["--status", "waiting"]).await.len(), 1);
    assert_eq!(scene.far.count(), 0);
    assert!(scene.house.cli(&["resume"]).await.status.success());
    scene.far.wait("the released message", |far| far.times(number) == 1).await;
    scene.house.wait_empty().await;
    running.kill().await.check_no_damage();
    scene.look().check_empty();
    scene.report("released");
}

#[tokio::test(flavor = "multi_thread")]
async fn captured_stays_captured() {
    let scene = Scene::new(Settings { delivery: "default = \"capture\"", ..Settings::default() }).await;
    let running = scene.house.start().await;
    scene.ledger.send_to(running.door, &["you@far.test"], 3000).await;
    scene.house.wait_queue("captured", &["--status", "captured"], |queue| queue.len() == 1).await;
    running.kill().await.check_no_damage();
    // Not even if mail may leave now.
    scene.house.settings.lock().unwrap().delivery = "";
    let running = scene.house.start().await;
    assert_eq!(scene.house.queue(&["--status", "captured"]).await.len(), 1);
    let (sent, _) = scene.ledger.send_to(running.door, &["you@far.test"], 3000).await;
    scene.far.wait("mail that is not captured", |far| far.times(sent) == 1).await;
    scene.house.wait_queue("the other one is done", &[], |queue| queue.len() == 1).await;
    running.kill().await.check_no_damage();
    let found = scene.look();
    assert_eq!((found.messages, found.captured), (1, 1));
    assert_eq!(scene.far.count(), 1);
    Report::new("row-captured").finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn deferred_with_a_notice_tells_the_sender_once() {
    let scene =
        Scene::new(Settings { retry: "schedule = [\"1s\"]\ndelay_notice = \"1s\"", ..Settings::default() }).await;
    scene.far.gate("late.test", Gate::Later);
    scene.far.gate("back.test", Gate::Stop);
    let running = scene.house.start().await;
    let mut talk = Talk::connect(running.door).await.unwrap();
    talk.sender = "me@back.test".to_owned();
    let (number, _) = scene.ledger.send(&mut talk, &["you@late.test".to_owned()], 3000).await;
    scene.far.wait_stopped(1).await;
    running.kill().await.check_no_damage();
    scene.far.cut();
    let found = scene.look();
    assert_eq!((found.messages, found.waiting), (2, 2), "the message and its notice");

    scene.far.gate("back.test", Gate::Take);
    let running = scene.house.start().await;
    scene.far.wait("the notice", |far| far.notices() == 1).await;
    scene.house.wait_queue("more tries", &["--to", "late.test"], |queue| attempts(queue) >= 5).await;
    running.kill().await.check_no_damage();
    let found = scene.look();
    assert_eq!((found.messages, found.waiting), (1, 1));
    assert_eq!(scene.far.notices(), 1);

    scene.far.gate("late.test", Gate::Take);
    let running = scene.house.start().await;
    scene.far.wait("the message", |far| far.times(number) == 1).await;
    scene.house.wait_empty().await;
    running.kill().await.check_no_damage();
    assert_eq!(scene.far.notices(), 1);
    scene.report("deferred-with-notice");
}

#[tokio::test(flavor = "multi_thread")]
async fn done_stays_done() {
    let scene = Scene::new(Settings::default()).await;
    let running = scene.house.start().await;
    let (number, _) = scene.ledger.send_to(running.door, &["you@far.test"], 3000).await;
    scene.far.wait("the message", |far| far.times(number) == 1).await;
    scene.house.wait_empty().await;
    running.kill().await.check_no_damage();
    scene.look().check_empty();
    let running = scene.house.start().await;
    // What would come again comes before what is sent now.
    let (next, _) = scene.ledger.send_to(running.door, &["you@far.test"], 3000).await;
    scene.far.wait("the next message", |far| far.times(next) == 1).await;
    scene.house.wait_empty().await;
    running.kill().await.check_no_damage();
    assert_eq!(scene.far.count(), 2);
    scene.report("done");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_recipient_done_leaves_the_others_waiting() {
    let scene = Scene::new(Settings::default()).await;
    scene.far.gate("late.test", Gate::Later);
    let running = scene.house.start().await;
    let (number, _) = scene.ledger.send_to(running.door, &["you@far.test", "you@late.test"], 3000).await;
    let one_left = |queue: &[serde_json::Value]| queue[0]["recipients"].as_array().unwrap().len() == 1;
    scene.house.wait_queue("one recipient is done", &[], one_left).await;
    running.kill().await.check_no_damage();
    let found = scene.look();
    assert_eq!((found.messages, found.waiting), (1, 1));

    scene.far.gate("late.test", Gate::Take);
    let running = scene.house.start().await;
    scene.far.wait("the other recipient's", |far| far.times(number) == 2).await;
    scene.house.wait_empty().await;
    running.kill().await.check_no_damage();
    scene.look().check_empty();
    let mut recipients: Vec<String> = scene.far.arrivals().into_iter().flat_map(|a| a.recipients).collect();
    recipients.sort();
    assert_eq!(recipients, ["you@far.test", "you@late.test"], "each once");
    Report::new("row-others-waiting").finish();
}
