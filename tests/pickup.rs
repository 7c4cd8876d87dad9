//! The pickup folder: what is taken and what never is, and what a crash between any two steps leaves.
//! The clock is the test's own, a look is a call; the store is real, the rest of the server is not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use postrider::clock::Clock;
use postrider::config;
use postrider::intake::pickup::notice::{self, About};
use postrider::intake::pickup::{Door, Folder, Task, Watcher};
use postrider::message::{Address, Door as CameBy, Draft, MessageId};
use postrider::smtp::Reply;
use postrider::smtp::reply::Refusal;
use postrider::store::{Batch, Entry, Store, StoreError, Table};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const NOW: u64 = 1_795_300_017_000;
const SETTLE: u64 = 2_000;
const MAX_SIZE: u64 = 10_000;
const CONF: &str = r#"
hostname = "mail.example.com"
data_dir = "/nonexistent"
[domains."example.com"]
[accounts.shop]
password = "secret"
streams = ["bulk"]
max_recipients = 10
[pickup.main]
path = "FOLDER"
account = "shop"
"#;

/// The server as the folder sees it. `crash_at`: the call of this number never returns.
struct Desk {
    config: config::Config,
    store: Store,
    accepted: Mutex<Vec<Draft>>,
    refuse: Mutex<Option<Refusal>>,
    calls: AtomicUsize,
    crash_at: Mutex<Option<Crash>>,
    crashed: Notify,
    /// Done once, at the next write: between the look at a file and its new name.
    meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

#[derive(Clone, Copy, Debug)]
struct Crash {
    call: usize,
    /// The call has done its work; only the answer is lost.
    after: bool,
}

impl Desk {
    async fn call<T>(&self, work: impl FnOnce() -> T) -> T {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        let crash = self.crash_at.lock().unwrap().filter(|crash| crash.call == number);
        match crash {
            None => work(),
            Some(Crash { after, .. }) => {
                if after {
                    work();
                }
                self.crashed.notify_one();
                std::future::pending().await
            }
        }
    }
}

impl Door for Desk {
    async fn accept(&self, draft: Draft, extra: Batch) -> Result<MessageId, Refusal> {
        self.call(|| {
            if let Some(refusal) = self.refuse.lock().unwrap().clone() {
                return Err(refusal);
            }
            self.store.write(&[extra], false).unwrap();
            let mut accepted = self.accepted.lock().unwrap();
            accepted.push(draft);
            Ok(MessageId::from_u64(accepted.len() as u64))
        })
        .await
    }

    fn recipient(&self, recipient: &Address) -> Result<(), Refusal> {
        match recipient.local() {
            "nobody" => Err(Refusal::plain(Reply::new(550, (1, 1), "there is no such address here"))),
            _ => Ok(()),
        }
    }

    fn notice(&self, about: &About<'_>) -> Option<Draft> {
        notice::write(&self.config, about, MessageId::from_u64(7), NOW)
    }

    async fn write(&self, batch: Batch) -> Result<(), StoreError> {
        if let Some(meanwhile) = self.meanwhile.lock().unwrap().take() {
            meanwhile();
        }
        self.call(|| self.store.write(&[batch], false)).await
    }

    fn claims(&self, prefix: &[u8]) -> Result<Vec<Entry>, StoreError> {
        self.store.prefix(Table::Pickup, prefix)?.collect()
    }
}

struct Yard {
    base: TempDir,
    folder: PathBuf,
    desk: Arc<Desk>,
    clock: Clock,
}

impl Yard {
    fn new() -> Yard {
        Yard::with("")
    }

    /// `more`: keys of the folder.
    fn with(more: &str) -> Yard {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("pickup");
        fs::create_dir(&folder).unwrap();
        let text = CONF.replace("FOLDER", folder.to_str().unwrap()) + more;
        let config = config::parse("test.toml", &text).unwrap_or_else(|problems| panic!("{problems}"));
        let desk = Desk {
            config,
            store: Store::open(&base.path().join("store")).unwrap(),
            accepted: Mutex::default(),
            refuse: Mutex::default(),
            calls: AtomicUsize::new(0),
            crash_at: Mutex::default(),
            crashed: Notify::new(),
            meanwhile: Mutex::default(),
        };
        Yard { base, folder, desk: Arc::new(desk), clock: Clock::manual(NOW) }
    }

    fn folder(&self) -> Folder {
        Folder { max_size: MAX_SIZE, ..Folder::of(&self.desk.config, "main").unwrap() }
    }

    fn watcher(&self) -> Watcher<Desk> {
        Watcher::new(self.folder(), Arc::clone(&self.desk), self.clock.clone())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A file last written `age` milliseconds ago.
    fn put(&self, name: &str, text: &str, age: u64) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        set_modified(&self.path(name), self.clock.now() - age);
        self.path(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.folder).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn accepted(&self) -> Vec<String> {
        let accepted = self.desk.accepted.lock().unwrap();
        accepted.iter().map(|draft| String::from_utf8_lossy(draft.content.head()).into_owned()).collect()
    }

    fn claims(&self) -> usize {
        self.desk.claims(b"main\0").unwrap().len()
    }

    fn refuse(&self, refusal: Option<Reply>) {
        *self.desk.refuse.lock().unwrap() = refusal.map(Refusal::plain);
    }
}

fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn set_modified(path: &Path, millis: u64) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(UNIX_EPOCH + Duration::from_millis(millis)).unwrap();
}

async fn look(watcher: &mut Watcher<Desk>) {
    assert!(watcher.round(&CancellationToken::new()).await);
}

/// Two looks: the least that a file needs.
async fn look_twice(watcher: &mut Watcher<Desk>) {
    look(watcher).await;
    look(watcher).await;
}

fn mail(subject: &str) -> String {
    format!("From: a@example.com\nTo: b@example.org\nBcc: c@example.org\nSubject: {subject}\n\nhello\n")
}

#[tokio::test]
async fn a_settled_file_is_queued_and_removed() {
    let yard = Yard::new();
    yard.put("Some Mail.EML", &mail("x"), 5_000);
    let mut watcher = yard.watcher();
    look(&mut watcher).await;
    assert_eq!(yard.names(), ["Some Mail.EML"], "one look is not enough");
    look(&mut watcher).await;
    assert!(yard.names().is_empty());
    assert_eq!(yard.claims(), 0);
    let drafts = yard.desk.accepted.lock().unwrap();
    let [draft] = drafts.as_slice() else { panic!("{drafts:?}") };
    assert_eq!(
        draft.content.head().as_ref(),
        b"From: a@example.com\r\nTo: b@example.org\r\nSubject: x\r\n\r\nhello\r\n"
    );
    assert_eq!(draft.envelope.mail_from.to_string(), "a@example.com");
    assert_eq!(draft.envelope.recipients.len(), 2);
    assert_eq!(draft.origin.account.as_deref(), Some("shop"));
    assert_eq!(
        draft.origin.door,
        CameBy::Pickup { folder: "main".into(), file: "Some Mail.EML".into(), owner: Some(me()) }
    );
}

#[tokio::test]
async fn many_files_go_in_by_age() {
    let yard = Yard::new();
    for n in 0..100u64 {
        yard.put(&format!("{}.eml", (n * 37) % 100), &mail(&format!("{n}")), 10_000 + n);
    }
    let mut watcher = yard.watcher();
    look_twice(&mut watcher).await;
    assert_eq!(yard.accepted().len(), 100);
    assert!(yard.names().is_empty());
    assert_eq!(yard.claims(), 0);
}

#[tokio::test]
async fn nothing_half_written_is_taken() {
    let yard = Yard::new();
    let mut watcher = yard.watcher();
    let mut text = mail("growing");
    // A writer without any manners: in place, slowly, and with an old time on the file.
    for age in [0, 1_000, 5_000, 60_000] {
        text += "more\n";
        yard.put("x.eml", &text, age);
        look(&mut watcher).await;
        yard.clock.advance(500);
    }
    assert_eq!(yard.names(), ["x.eml"]);
    // Quiet, but not long enough.
    yard.put("x.eml", &text, 0);
    look_twice(&mut watcher).await;
    yard.clock.advance(SETTLE - 1);
    look_twice(&mut watcher).await;
    assert_eq!(yard.names(), ["x.eml"]);
    yard.clock.advance(1);
    look(&mut watcher).await;
    assert!(yard.names().is_empty());
    assert!(yard.accepted()[0].ends_with("more\r\nmore\r\nmore\r\nmore\r\n"));
}

#[tokio::test]
async fn a_time_in_the_future_only_costs_a_wait() {
    let yard = Yard::new();
    yard.put("x.eml", &mail("x"), 0);
    set_modified(&yard.path("x.eml"), NOW + 86_400_000);
    let mut watcher = yard.watcher();
    look_twice(&mut watcher).await;
    assert_eq!(yard.names(), ["x.eml"]);
    yard.clock.advance(SETTLE);
    look(&mut watcher).await;
    assert!(yard.names().is_empty());
}

#[tokio::test]
async fn links_pipes_and_folders_are_never_taken() {
    let yard = Yard::new();
    let victim = yard.base.path().join("secret");
    fs::write(&victim, mail("secret")).unwrap();
    set_modified(&victim, NOW - 60_000);
    symlink(&victim, yard.path("sym.eml")).unwrap();
    symlink(yard.base.path().join("nowhere"), yard.path("dangling.eml")).unwrap();
    fs::hard_link(&victim, yard.path("hard.eml")).unwrap();
    fs::create_dir(yard.path("folder.eml")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, yard.path("pipe.eml"), rustix::fs::Mode::RWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(yard.path("socket.eml")).unwrap();
    for name in [".hidden.eml", "x.eml.part", "x.tmp", "x.eml~", "x.bad", "x.txt"] {
        yard.put(name, &mail("x"), 60_000);
    }
    let before = yard.names();
    let mut watcher = yard.watcher();
    assert!(watcher.recover().await);
    look_twice(&mut watcher).await;
    look(&mut watcher).await;
    assert_eq!(yard.names(), before);
    assert!(yard.accepted().is_empty());
    assert_eq!(fs::read_to_string(&victim).unwrap(), mail("secret"));
}

#[tokio::test]
async fn a_locked_file_waits_for_its_writer() {
    let yard = Yard::new();
    let path = yard.put("x.eml", &mail("x"), 60_000);
    // As .NET on Unix holds a file that it writes: a shared lock.
    let writer = File::open(&path).unwrap();
    writer.try_lock_shared().unwrap();
    let mut watcher = yard.watcher();
    for _ in 0..10 {
        look_twice(&mut watcher).await;
        yard.clock.advance(10_000);
    }
    assert_eq!(yard.names(), ["x.eml"]);
    drop(writer);
    yard.clock.advance(300_000);
    look_twice(&mut watcher).await;
    assert!(yard.names().is_empty());
    assert_eq!(yard.accepted().len(), 1);
}

#[tokio::test]
async fn what_cannot_be_sent_is_put_aside_with_its_reason() {
    let yard = Yard::new();
    yard.put("nul.eml", "From: a@example.com\nTo: b@example.org\n\n\0", 5_000);
    yard.put("cut.eml", "From: a@example.com\nTo: b@exa", 5_000);
    yard.put("large.eml", &(mail("large") + &"x".repeat(MAX_SIZE as usize)), 5_000);
    yard.put("cut.bad", "an older one", 5_000);
    let mut watcher = yard.watcher();
    look_twice(&mut watcher).await;
    assert!(yard.accepted().is_empty());
    assert_eq!(yard.claims(), 0);
    assert_eq!(
        yard.names(),
        [
            "cut.20261121T222657Z.bad",
            "cut.20261121T222657Z.bad.log",
            "cut.bad",
            "large.bad",
            "large.bad.log",
            "nul.bad",
            "nul.bad.log"
        ]
    );
    assert_eq!(fs::read_to_string(yard.path("cut.bad")).unwrap(), "an older one");
    let log = |name: &str| fs::read_to_string(yard.path(name)).unwrap();
    assert!(log("nul.bad.log").contains("NUL") && log("nul.bad.log").lines().count() == 1);
    assert!(log("cut.20261121T222657Z.bad.log").contains("cut off"));
    assert!(log("large.bad.log").contains("limits.max_size"));
}

#[tokio::test]
async fn an_empty_file_has_a_minute_to_be_filled() {
    let yard = Yard::new();
    yard.put("x.eml", "", 0);
    let mut watcher = yard.watcher();
    look_twice(&mut watcher).await;
    yard.clock.advance(59_999);
    look(&mut watcher).await;
    assert_eq!(yard.names(), ["x.eml"]);
    yard.clock.advance(1);
    look(&mut watcher).await;
    assert_eq!(yard.names(), ["x.bad", "x.bad.log"]);
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let yard = Yard::new();
    yard.put("x.eml", &mail("x"), 5_000);
    yard.refuse(Some(Reply::new(452, (3, 1), "disk full")));
    let mut watcher = yard.watcher();
    for _ in 0..5 {
        look_twice(&mut watcher).await;
    }
    assert_eq!(yard.names(), ["x.eml"], "its name is given back");
    assert_eq!(yard.claims(), 0);
    // Claim, refusal, claim dropped; then it waits instead of being tried at each look.
    assert_eq!(yard.desk.calls.load(Ordering::SeqCst), 3);

    yard.clock.advance(2_000);
    yard.refuse(None);
    look_twice(&mut watcher).await;
    assert!(yard.names().is_empty());
    assert_eq!(yard.accepted().len(), 1);

    yard.put("y.eml", &mail("y"), 5_000);
    yard.refuse(Some(Reply::new(550, (7, 1), "not your address")));
    look_twice(&mut watcher).await;
    assert_eq!(yard.names(), ["y.bad", "y.bad.log"]);
    assert!(fs::read_to_string(yard.path("y.bad.log")).unwrap().contains("not your address"));
    assert_eq!(yard.claims(), 0);
}

#[tokio::test]
async fn general_trouble_stops_the_round_early() {
    let yard = Yard::new();
    for n in 0..200 {
        yard.put(&format!("{n}.eml"), &mail("x"), 5_000);
    }
    yard.refuse(Some(Reply::new(451, (3, 0), "trouble")));
    let mut watcher = yard.watcher();
    look_twice(&mut watcher).await;
    assert!(yard.desk.calls.load(Ordering::SeqCst) < 3 * 60);
    assert_eq!(yard.names().len(), 200);
}

#[tokio::test]
async fn a_tmp_of_somebody_else_is_never_touched() {
    let yard = Yard::new();
    yard.put("x.eml", &mail("ours"), 5_000);
    yard.put("x.tmp", "half of", 60_000);
    let mut watcher = yard.watcher();
    assert!(watcher.recover().await);
    look_twice(&mut watcher).await;
    assert_eq!(yard.names(), ["x.tmp"]);
    assert_eq!(fs::read_to_string(yard.path("x.tmp")).unwrap(), "half of");
    assert_eq!(yard.accepted().len(), 1);
}

/// Takes `x.eml` until the crash, as if the process had died there.
async fn crash(yard: &Yard, crash: Crash) {
    *yard.desk.crash_at.lock().unwrap() = Some(crash);
    yard.desk.calls.store(0, Ordering::SeqCst);
    let mut watcher = yard.watcher();
    tokio::select! {
        () = yard.desk.crashed.notified() => {}
        () = look_twice(&mut watcher) => panic!("{crash:?} was not reached"),
    }
    drop(watcher);
    *yard.desk.crash_at.lock().unwrap() = None;
}

#[tokio::test]
async fn a_crash_between_any_two_steps_loses_and_repeats_nothing() {
    // The calls: 0 claim, 1 queue, 2 drop the claim.
    for call in 0..3 {
        for after in [false, true] {
            let yard = Yard::new();
            yard.put("x.eml", &mail("x"), 5_000);
            let at = Crash { call, after };
            crash(&yard, at).await;
            match (call, after) {
                (0, _) => assert_eq!(yard.names(), ["x.eml"], "{at:?}"),
                (1, _) => assert_eq!(yard.names(), ["x.tmp"], "{at:?}"),
                _ => assert!(yard.names().is_empty(), "{at:?}"),
            }
            let mut watcher = yard.watcher();
            assert!(watcher.recover().await);
            assert_eq!(yard.claims(), 0, "{at:?}");
            look_twice(&mut watcher).await;
            assert!(yard.names().is_empty(), "{at:?}: {:?}", yard.names());
            assert_eq!(yard.accepted().len(), 1, "{at:?}");
            assert_eq!(yard.claims(), 0, "{at:?}");
        }
    }
}

#[tokio::test]
async fn a_crash_while_putting_aside_ends_in_the_same_place() {
    let permanent = Reply::new(550, (7, 1), "no");
    for (call, after) in [(1, false), (1, true), (2, false), (2, true)] {
        let yard = Yard::new();
        yard.put("x.eml", &mail("x"), 5_000);
        yard.refuse(Some(permanent.clone()));
        crash(&yard, Crash { call, after }).await;
        let mut watcher = yard.watcher();
        assert!(watcher.recover().await);
        look_twice(&mut watcher).await;
        assert_eq!(yard.names(), ["x.bad", "x.bad.log"], "{call} {after}");
        assert_eq!(yard.claims(), 0);
    }
}

#[tokio::test]
async fn a_crash_during_recovery_changes_nothing() {
    let yard = Yard::new();
    yard.put("x.eml", &mail("x"), 5_000);
    crash(&yard, Crash { call: 1, after: true }).await;
    for after in [false, true] {
        *yard.desk.crash_at.lock().unwrap() = Some(Crash { call: 0, after });
        yard.desk.calls.store(0, Ordering::SeqCst);
        let mut watcher = yard.watcher();
        tokio::select! {
            () = yard.desk.crashed.notified() => {}
            _ = watcher.recover() => panic!("no crash"),
        }
    }
    *yard.desk.crash_at.lock().unwrap() = None;
    let mut watcher = yard.watcher();
    assert!(watcher.recover().await);
    look_twice(&mut watcher).await;
    assert_eq!(yard.accepted().len(), 1);
    assert!(yard.names().is_empty());
}

#[tokio::test]
async fn a_power_cut_that_undoes_the_rename_repeats_nothing() {
    let yard = Yard::new();
    yard.put("x.eml", &mail("x"), 5_000);
    crash(&yard, Crash { call: 1, after: true }).await;
    // The message was synced, the rename was not.
    fs::rename(yard.path("x.tmp"), yard.path("x.eml")).unwrap();
    let mut watcher = yard.watcher();
    assert!(watcher.recover().await);
    look_twice(&mut watcher).await;
    assert!(yard.names().is_empty());
    assert_eq!(yard.accepted().len(), 1);
}

#[tokio::test]
async fn a_new_file_of_the_same_name_is_a_new_message() {
    let yard = Yard::new();
    yard.put("x.eml", &mail("first"), 5_000);
    crash(&yard, Crash { call: 1, after: true }).await;
    // Same name, size and time, as `cp -p` makes it; and a claim that says "queued".
    yard.put("x.eml", &mail("first"), 5_000);
    let mut watcher = yard.watcher();
    assert!(watcher.recover().await);
    look_twice(&mut watcher).await;
    assert!(yard.names().is_empty());
    assert_eq!(yard.accepted().len(), 2);

    // An open claim, and meanwhile the writer has put a new file under the old name.
    yard.put("y.eml", &mail("y one"), 5_000);
    crash(&yard, Crash { call: 1, after: false }).await;
    yard.put("y.eml", &mail("y two"), 5_000);
    let mut watcher = yard.watcher();
    assert!(watcher.recover().await);
    look_twice(&mut watcher).await;
    assert!(yard.names().is_empty());
    assert_eq!(yard.accepted().len(), 4);
}

#[tokio::test]
async fn an_open_claim_gives_no_right_to_the_tmp_of_somebody_else() {
    let yard = Yard::new();
    yard.put("x.eml", &mail("x"), 5_000);
    crash(&yard, Crash { call: 0, after: true }).await;
    // The writer happens to choose the name that we had claimed but not used.
    yard.put("x.tmp", "half of", 5_000);
    let mut watcher = yard.watcher();
    assert!(watcher.recover().await);
    look_twice(&mut watcher).await;
    assert_eq!(yard.names(), ["x.tmp"]);
    assert_eq!(fs::read_to_string(yard.path("x.tmp")).unwrap(), "half of");
    assert_eq!(yard.accepted().len(), 1);
}

#[tokio::test]
async fn a_folder_that_vanishes_may_come_back() {
    let yard = Yard::new();
    let mut watcher = yard.watcher();
    look(&mut watcher).await;
    fs::remove_dir(&yard.folder).unwrap();
    assert!(!watcher.round(&CancellationToken::new()).await);
    fs::create_dir(&yard.folder).unwrap();
    yard.put("x.eml", &mail("x"), 5_000);
    look_twice(&mut watcher).await;
    assert_eq!(yard.accepted().len(), 1);
}

#[tokio::test]
async fn the_task_takes_files_until_it_is_told_to_stop() {
    let yard = Yard::new();
    yard.put("x.eml", &mail("x"), 5_000);
    crash(&yard, Crash { call: 1, after: false }).await;
    assert_eq!(yard.names(), ["x.tmp"]);
    let shutdown = CancellationToken::new();
    let (task, _handle) = Task::new(yard.folder(), Arc::clone(&yard.desk), yard.clock.clone());
    let task = tokio::spawn(task.run(shutdown.clone()));
    while yard.accepted().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    shutdown.cancel();
    task.await.unwrap();
    assert!(yard.names().is_empty());
    assert_eq!((yard.accepted().len(), yard.claims()), (1, 0));
}

#[tokio::test]
async fn a_sub_folder_is_the_stream_of_its_name() {
    let yard = Yard::new();
    let outside = yard.base.path().join("outside");
    for folder in ["bulk", "transactional", "security", "tmp", "archive", "two words", ".hidden", "bulk/deeper"] {
        fs::create_dir(yard.path(folder)).unwrap();
        yard.put(&format!("{folder}/x.eml"), &mail(folder), 5_000);
    }
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("x.eml"), mail("outside")).unwrap();
    set_modified(&outside.join("x.eml"), NOW - 5_000);
    symlink(&outside, yard.path("linked")).unwrap();
    let mut watcher = yard.watcher();
    look_twice(&mut watcher).await;
    let mut accepted = yard.accepted();
    accepted.sort();
    assert_eq!(accepted.len(), 2, "{accepted:?}");
    assert!(accepted[0].starts_with("X-Postrider-Stream: bulk\r\n") && accepted[0].contains("Subject: bulk"));
    assert!(accepted[1].starts_with("X-Postrider-Stream: transactional\r\n"));
    assert!(!yard.path("bulk/x.eml").exists() && yard.path("bulk/deeper/x.eml").exists());
    let log = fs::read_to_string(yard.path("security/x.bad.log")).unwrap();
    assert!(log.contains("may not send by the stream security"), "{log}");
    for untouched in ["tmp/x.eml", "archive/x.eml", "two words/x.eml", ".hidden/x.eml", "linked/x.eml"] {
        assert!(yard.path(untouched).exists(), "{untouched}");
    }
    assert_eq!(yard.claims(), 0);
    let drafts = yard.desk.accepted.lock().unwrap();
    let CameBy::Pickup { file, .. } = &drafts[0].origin.door else { panic!("{drafts:?}") };
    assert!(file.ends_with("/x.eml"));
}

#[tokio::test]
async fn a_sub_folder_has_the_last_word_about_the_stream() {
    let yard = Yard::new();
    fs::create_dir(yard.path("bulk")).unwrap();
    yard.put("bulk/x.eml", &("X-Postrider-Stream: security\n".to_owned() + &mail("x")), 5_000);
    look_twice(&mut yard.watcher()).await;
    assert_eq!(yard.accepted()[0].matches("X-Postrider-Stream").count(), 1);
}

#[tokio::test]
async fn a_crash_in_a_sub_folder_loses_and_repeats_nothing() {
    for done in ["delete", "archive"] {
        for (call, after) in [(0, true), (1, false), (1, true), (2, false)] {
            let yard = Yard::with(&format!("done = \"{done}\"\n"));
            fs::create_dir(yard.path("bulk")).unwrap();
            yard.put("bulk/x.eml", &mail("x"), 5_000);
            crash(&yard, Crash { call, after }).await;
            let mut watcher = yard.watcher();
            assert!(watcher.recover().await);
            look_twice(&mut watcher).await;
            assert_eq!((yard.accepted().len(), yard.claims()), (1, 0), "{done} {call} {after}");
            assert_eq!(fs::read_dir(yard.path("bulk")).unwrap().count(), 0);
            assert_eq!(yard.path("archive/x.eml").exists(), done == "archive");
        }
    }
}

#[tokio::test]
async fn files_whose_message_is_queued_may_be_kept() {
    let yard = Yard::with("done = \"archive\"\n");
    let mut watcher = yard.watcher();
    for _ in 0..2 {
        yard.put("x.eml", &mail("x"), 5_000);
        look_twice(&mut watcher).await;
    }
    assert_eq!(yard.names(), ["archive"]);
    let mut kept: Vec<_> = fs::read_dir(yard.path("archive")).unwrap().map(|e| e.unwrap().file_name()).collect();
    kept.sort();
    assert_eq!(kept, ["x.20261121T222657Z.eml", "x.eml"]);
    assert_eq!(fs::read_to_string(yard.path("archive/x.eml")).unwrap(), mail("x"));
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(yard.path("archive")).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!((yard.accepted().len(), yard.claims()), (2, 0));
}

#[tokio::test]
async fn an_archive_that_is_a_link_takes_nothing_and_the_file_is_not_sent_twice() {
    let yard = Yard::with("done = \"archive\"\n");
    let elsewhere = yard.base.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, yard.path("archive")).unwrap();
    yard.put("x.eml", &mail("x"), 5_000);
    let mut watcher = yard.watcher();
    for _ in 0..3 {
        look_twice(&mut watcher).await;
    }
    assert_eq!(yard.names(), ["archive", "x.tmp"]);
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    fs::remove_file(yard.path("archive")).unwrap();
    look(&mut watcher).await;
    assert_eq!((yard.names(), yard.claims(), yard.accepted().len()), (vec!["archive".to_owned()], 0, 1));
}

fn is_notice(draft: &Draft) -> bool {
    draft.origin.door == CameBy::Bounce && draft.envelope.mail_from.is_null()
}

#[tokio::test]
async fn a_recipient_that_is_not_taken_keeps_no_other_from_getting_it() {
    let yard = Yard::new();
    let text = "From: a@example.com\nTo: b@example.org, nobody@example.com\nSubject: x\n\nhello\n";
    yard.put("x.eml", text, 5_000);
    look_twice(&mut yard.watcher()).await;
    assert!(yard.names().is_empty());
    let drafts = yard.desk.accepted.lock().unwrap();
    let [notice, message] = drafts.as_slice() else { panic!("{drafts:?}") };
    assert!(is_notice(notice));
    assert_eq!(notice.envelope.recipients[0].address.to_string(), "a@example.com");
    let said = String::from_utf8_lossy(notice.content.head()).into_owned();
    assert!(said.contains("nobody@example.com") && said.contains("Status: 5.1.1"), "{said}");
    let to: Vec<_> = message.envelope.recipients.iter().map(|to| to.address.to_string()).collect();
    assert_eq!(to, ["b@example.org"]);
}

#[tokio::test]
async fn what_may_not_be_sent_goes_back_to_a_sender_of_ours_and_to_nobody_else() {
    let eleven: String = (0..11).map(|n| format!("r{n}@example.org,")).collect();
    let many_fields = "X:1\n".repeat(2_000);
    for (text, is_told) in [
        ("From: a@example.com\nTo: nobody@example.com\nSubject: none\n\nthe text\n".to_owned(), true),
        (format!("From: a@example.com\nTo: {eleven}\nSubject: many\n\nthe text\n"), true),
        (format!("From: a@example.com\nTo: b@example.org\n{many_fields}Subject: long\n\nthe text\n"), true),
        // Whoever can write here could have us write to anybody.
        ("From: victim@example.net\nTo: nobody@example.com\nSubject: scatter\n\nthe text\n".to_owned(), false),
        ("X-Sender: <>\nX-Receiver: <nobody@example.com>\nFrom: a@example.com\n\n".to_owned(), false),
        (
            "X-Sender: <a@example.com>\nX-Receiver: <nobody@example.com> NOTIFY=NEVER\nFrom: a@example.com\n\n"
                .to_owned(),
            false,
        ),
        ("From: mailer-daemon@example.com\nTo: nobody@example.com\n\n".to_owned(), false),
    ] {
        let yard = Yard::new();
        yard.put("x.eml", &text, 5_000);
        look_twice(&mut yard.watcher()).await;
        let drafts = yard.desk.accepted.lock().unwrap();
        assert_eq!(drafts.iter().filter(|draft| is_notice(draft)).count(), usize::from(is_told), "{text}");
        assert_eq!(drafts.len(), usize::from(is_told), "{text}");
        assert_eq!(yard.claims(), 0);
        match is_told {
            true => {
                assert!(yard.names().is_empty(), "{text}: {:?}", yard.names());
                let said = String::from_utf8_lossy(drafts[0].content.head()).into_owned();
                assert!(said.contains("the text") && said.contains("Auto-Submitted: auto-"), "{said}");
            }
            false => assert_eq!(yard.names(), ["x.bad", "x.bad.log"], "{text}"),
        }
    }
}

#[tokio::test]
async fn a_crash_around_a_notice_tells_once() {
    for (call, after) in [(1, false), (1, true), (2, false)] {
        let yard = Yard::new();
        yard.put("x.eml", "From: a@example.com\nTo: nobody@example.com\n\nx\n", 5_000);
        crash(&yard, Crash { call, after }).await;
        let mut watcher = yard.watcher();
        assert!(watcher.recover().await);
        look_twice(&mut watcher).await;
        assert_eq!((yard.accepted().len(), yard.claims()), (1, 0), "{call} {after}");
        assert!(yard.names().is_empty(), "{:?}", yard.names());
    }
}

#[tokio::test]
async fn no_more_files_are_taken_in_a_minute_than_allowed() {
    let yard = Yard::with("max_per_minute = 5\n");
    for n in 0..12 {
        yard.put(&format!("{n:02}.eml"), &mail("x"), 10_000);
    }
    let mut watcher = yard.watcher();
    for _ in 0..3 {
        look_twice(&mut watcher).await;
    }
    assert_eq!(yard.accepted().len(), 5);
    yard.clock.advance(59_999);
    look_twice(&mut watcher).await;
    assert_eq!(yard.accepted().len(), 5);
    yard.clock.advance(1);
    look_twice(&mut watcher).await;
    assert_eq!(yard.accepted().len(), 10);
    yard.clock.advance(60_000);
    look_twice(&mut watcher).await;
    assert!(yard.names().is_empty());
}

#[tokio::test]
async fn a_folder_where_everybody_may_replace_files_is_not_used() {
    use std::os::unix::fs::PermissionsExt;
    let yard = Yard::new();
    yard.put("x.eml", &mail("x"), 5_000);
    let mode = |mode| fs::set_permissions(&yard.folder, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o777);
    assert!(yard.folder().refusal().is_some_and(|why| why.contains("chmod")));
    let mut watcher = yard.watcher();
    assert!(!watcher.round(&CancellationToken::new()).await);
    for good in [0o1777, 0o2730, 0o700] {
        mode(good);
        assert_eq!(yard.folder().refusal(), None, "{good:o}");
    }
    look_twice(&mut watcher).await;
    assert_eq!(yard.accepted().len(), 1);
}

#[tokio::test]
async fn a_file_of_somebody_who_cannot_write_there_is_not_sent() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can give files away; nothing was shown");
        return;
    }
    use std::os::unix::fs::{PermissionsExt, chown};
    for (mode, is_sent) in [(0o755, false), (0o2770, true)] {
        let yard = Yard::new();
        fs::set_permissions(&yard.folder, fs::Permissions::from_mode(mode)).unwrap();
        yard.put("x.eml", &mail("x"), 5_000);
        chown(yard.path("x.eml"), Some(12_345), None).unwrap();
        look_twice(&mut yard.watcher()).await;
        assert_eq!(yard.accepted().len(), usize::from(is_sent), "{mode:o}");
        if is_sent {
            let drafts = yard.desk.accepted.lock().unwrap();
            assert!(matches!(&drafts[0].origin.door, CameBy::Pickup { owner: Some(12_345), .. }));
        } else {
            assert!(fs::read_to_string(yard.path("x.bad.log")).unwrap().contains("12345"));
        }
    }
}

#[tokio::test]
async fn names_may_be_anything_that_a_file_system_takes() {
    use std::os::unix::ffi::OsStrExt;
    let yard = Yard::new();
    let names: [&[u8]; 6] = [
        b"-rf.eml",
        b"new\nline.eml",
        b"\x1b[2Jescape.eml",
        b"\xff\xfe.eml",
        b"${run{id}} `id` $(id).eml",
        &[&[b'x'; 251][..], b".eml"].concat(),
    ];
    for name in names {
        let path = yard.folder.join(std::ffi::OsStr::from_bytes(name));
        fs::write(&path, mail("x")).unwrap();
        set_modified(&path, NOW - 5_000);
    }
    look_twice(&mut yard.watcher()).await;
    assert!(yard.names().is_empty(), "{:?}", yard.names());
    let drafts = yard.desk.accepted.lock().unwrap();
    assert_eq!(drafts.len(), names.len());
    for draft in drafts.iter() {
        let CameBy::Pickup { file, .. } = &draft.origin.door else { panic!("{draft:?}") };
        assert!(!file.chars().any(char::is_control), "{file:?}");
    }
}

#[tokio::test]
async fn a_huge_file_is_put_aside_unread() {
    let yard = Yard::new();
    // It has holes: 10 GB that nobody has to write, and that nobody could read into memory here.
    File::create(yard.path("x.eml")).unwrap().set_len(10 << 30).unwrap();
    set_modified(&yard.path("x.eml"), NOW - 5_000);
    look_twice(&mut yard.watcher()).await;
    assert_eq!(yard.names(), ["x.bad", "x.bad.log"]);
}

#[tokio::test]
async fn a_file_that_is_replaced_while_it_is_taken_is_the_next_one() {
    let yard = Yard::new();
    yard.put("x.eml", &mail("first"), 5_000);
    let (from, to) = (yard.base.path().join("second"), yard.path("x.eml"));
    fs::write(&from, mail("second")).unwrap();
    set_modified(&from, NOW - 5_000);
    *yard.desk.meanwhile.lock().unwrap() = Some(Box::new(move || fs::rename(from, to).unwrap()));
    let mut watcher = yard.watcher();
    look_twice(&mut watcher).await;
    assert!(yard.accepted().is_empty());
    assert_eq!(yard.names(), ["x.eml"]);
    look_twice(&mut watcher).await;
    assert!(yard.accepted()[0].contains("Subject: second") && yard.names().is_empty());
}

#[tokio::test]
async fn a_writer_that_goes_on_after_all_gets_its_file_back() {
    let yard = Yard::new();
    let path = yard.put("x.eml", &mail("x"), 5_000);
    *yard.desk.meanwhile.lock().unwrap() = Some(Box::new(move || {
        use std::io::Write;
        File::options().append(true).open(path).unwrap().write_all(b"more\n").unwrap();
    }));
    let mut watcher = yard.watcher();
    look_twice(&mut watcher).await;
    assert_eq!((yard.names(), yard.accepted().len(), yard.claims()), (vec!["x.eml".to_owned()], 0, 0));
}

#[tokio::test]
async fn whoever_asks_for_a_look_is_told_what_it_did() {
    let yard = Yard::new();
    yard.put("good.eml", &mail("x"), 5_000);
    yard.put("bad.eml", "no message", 5_000);
    yard.put("back.eml", "From: a@example.com\nTo: nobody@example.com\n\nx\n", 5_000);
    yard.put("new.eml", &mail("new"), 0);
    let shutdown = CancellationToken::new();
    // Until it is asked it does nothing: its own looks would be as good.
    let mut watcher = yard.watcher();
    watcher.begin_report();
    look_twice(&mut watcher).await;
    let report = watcher.end_report();
    assert_eq!(report.queued.iter().map(|queued| queued.file.as_str()).collect::<Vec<_>>(), ["good.eml"]);
    assert_eq!(report.bad.iter().map(|bad| bad.file.as_str()).collect::<Vec<_>>(), ["bad.eml"]);
    assert_eq!(report.returned.iter().map(|back| back.file.as_str()).collect::<Vec<_>>(), ["back.eml"]);
    assert_eq!(report.waiting.iter().map(|waits| waits.file.as_str()).collect::<Vec<_>>(), ["new.eml"]);
    drop(watcher);
    let (task, handle) = Task::new(yard.folder(), Arc::clone(&yard.desk), yard.clock.clone());
    let task = tokio::spawn(task.run(shutdown.clone()));
    let report = handle.look_now().await.unwrap();
    assert_eq!((report.folder.as_str(), report.waiting.len()), ("main", 1));
    shutdown.cancel();
    task.await.unwrap();
    assert_eq!(handle.look_now().await, None);
}
