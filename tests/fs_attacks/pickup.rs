//! The cases of the pickup folder, one by one: what is done to it, and what becomes of it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postrider::intake::pickup::Task;
use postrider::message::Door as CameBy;
use rustix::fs::{CWD, FileType, Mode, mkfifoat, mknodat};
use tokio_util::sync::CancellationToken;

use crate::support::yard::*;
use crate::{SET, flow, whole};

/// Something that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);
/// Nobody.
const OTHER: u32 = 65_534;
/// The name by which the test runs itself once more, as somebody who may not do everything.
const AS_NOBODY: &str = "pickup::without_the_rights_that_a_case_takes_away";

#[tokio::test(flavor = "multi_thread")]
async fn every_case_of_the_pickup_folder_ends_as_its_rule_says() {
    let cases = flow::maps(&flow::below(SET, "pickup_folder"));
    assert_eq!(cases.len(), 12);
    let mut run = 0;
    for case in cases {
        let begun = Instant::now();
        let id = flow::text(&case, "id");
        match id.as_str() {
            "p01" => growing().await,
            "p02" => cut().await,
            "p03" => symlinks().await,
            "p04" => hard_links().await,
            "p05" => no_files().await,
            "p06" => names().await,
            "p07" => whole::many_and_large().await,
            "p08" => run_as_nobody(AS_NOBODY),
            "p09" => kills().await,
            "p10" => comes_and_goes().await,
            "p11" => whole::blocks().await,
            "p12" => replaced().await,
            other => panic!("what is {other}?"),
        }
        println!("{id}: {:?}", begun.elapsed());
        run += 1;
    }
    assert_eq!(run, 12);
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// `p01`: its writer holds it open and writes for a minute, and at the end it is taken as a whole.
async fn growing() {
    let yard = Yard::new();
    let mut watcher = yard.watcher();
    let mut writer = File::create(yard.path("x.eml")).unwrap();
    writer.write_all(mail("growing").as_bytes()).unwrap();
    for second in 0..60 {
        writer.write_all(format!("line {second}\n").as_bytes()).unwrap();
        set_modified(&yard.path("x.eml"), yard.clock.now());
        look_twice(&mut watcher).await;
        assert!(yard.accepted().is_empty(), "half of it is sent after {second} s");
        yard.clock.advance(1_000);
    }
    drop(writer);
    // The ways to write without being looked at, which the documentation names.
    for name in ["y.tmp", ".y.eml", "y.eml.part"] {
        yard.put(name, &mail("renamed"), 60_000);
    }
    yard.clock.advance(SETTLE);
    look_twice(&mut watcher).await;
    let [message] = yard.accepted().try_into().unwrap();
    assert!(message.ends_with("line 58\r\nline 59\r\n"), "{message}");
    fs::rename(yard.path("y.eml.part"), yard.path("y.eml")).unwrap();
    look_twice(&mut watcher).await;
    assert_eq!((yard.accepted().len(), yard.names()), (2, vec![".y.eml".to_owned(), "y.tmp".to_owned()]));
}

/// `p02`: of what is there of it, something is missing. Where the text simply stops in the middle nothing in it says so:
/// against that there are names to write under, locks, and the wait (`p01`); here its writer holds a lock when it dies.
async fn cut() {
    let yard = Yard::new();
    let whole = mail("cut").into_bytes();
    let header = whole.windows(2).position(|two| two == b"\n\n").unwrap();
    let utf16: Vec<u8> = [0xff, 0xfe].into_iter().chain(mail("x").encode_utf16().flat_map(u16::to_le_bytes)).collect();
    let mut files = vec![("empty".to_owned(), Vec::new()), ("utf16".to_owned(), utf16[..utf16.len() - 1].to_vec())];
    files.extend((1..=header).map(|at| (format!("header{at}"), whole[..at].to_vec())));
    // As a file system leaves a file whose last blocks it has not written: its size, and zeros.
    files.extend(
        (header + 2..whole.len()).map(|at| (format!("body{at}"), [&whole[..at], &vec![0; whole.len() - at]].concat())),
    );
    for (name, text) in &files {
        let path = yard.path(&format!("{name}.eml"));
        fs::write(&path, text).unwrap();
        set_modified(&path, NOW - 120_000);
    }
    let held = yard.put("held.eml", &String::from_utf8_lossy(&whole[..whole.len() - 3]), 120_000);
    let writer = File::open(held).unwrap();
    writer.try_lock_shared().unwrap();
    let mut watcher = yard.watcher();
    look_twice(&mut watcher).await;
    look_twice(&mut watcher).await;
    assert!(yard.accepted().is_empty(), "{:?}", yard.accepted());
    for (name, _) in &files {
        let log = fs::read_to_string(yard.path(&format!("{name}.bad.log"))).unwrap_or_else(|_| panic!("{name}"));
        assert_eq!(log.lines().count(), 1, "{name}: {log}");
        assert!(yard.path(&format!("{name}.bad")).exists() && !yard.path(&format!("{name}.eml")).exists(), "{name}");
    }
    assert_eq!((yard.names().len(), yard.claims()), (2 * files.len() + 1, 0));
}

/// Nothing of it is taken, and what is there stays as it was.
async fn untouched(yard: &Yard) {
    let before = yard.names();
    let mut watcher = yard.watcher();
    assert!(watcher.recover().await);
    for _ in 0..3 {
        look_twice(&mut watcher).await;
        yard.clock.advance(60_000);
    }
    assert_eq!((yard.names(), yard.accepted().len(), yard.claims()), (before, 0, 0));
}

/// `p03`
async fn symlinks() {
    let yard = Yard::new();
    let base = yard.base.path();
    fs::create_dir(base.join("elsewhere")).unwrap();
    for (name, text) in [("secret", mail("secret")), ("elsewhere/x.eml", mail("elsewhere"))] {
        fs::write(base.join(name), text).unwrap();
        set_modified(&base.join(name), NOW - 60_000);
    }
    if is_root() {
        std::os::unix::fs::chown(base.join("secret"), Some(OTHER), None).unwrap();
    }
    for (name, to) in [
        ("shadow.eml", "/etc/shadow".into()),
        ("secret.eml", base.join("secret")),
        ("dangling.eml", base.join("nowhere")),
        ("self.eml", yard.path("self.eml")),
        ("folder.eml", base.join("elsewhere")),
        // As the sub-folder of a stream.
        ("bulk", base.join("elsewhere")),
    ] {
        symlink(to, yard.path(name)).unwrap();
    }
    untouched(&yard).await;
    assert_eq!(fs::read_to_string(base.join("secret")).unwrap(), mail("secret"));
    assert!(base.join("elsewhere/x.eml").exists());
}

/// `p04`: of somebody else's, and of one's own.
async fn hard_links() {
    let yard = Yard::new();
    let base = yard.base.path();
    for name in ["own", "other"] {
        fs::write(base.join(name), mail(name)).unwrap();
        set_modified(&base.join(name), NOW - 60_000);
        fs::hard_link(base.join(name), yard.path(&format!("{name}.eml"))).unwrap();
    }
    if is_root() {
        std::os::unix::fs::chown(base.join("other"), Some(OTHER), None).unwrap();
    }
    untouched(&yard).await;
    assert_eq!(fs::read_to_string(base.join("other")).unwrap(), mail("other"));
}

/// `p05`: nobody waits at the other end of these.
async fn no_files() {
    let yard = Yard::new();
    mkfifoat(CWD, yard.path("pipe.eml"), Mode::RWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(yard.path("socket.eml")).unwrap();
    fs::create_dir(yard.path("folder.eml")).unwrap();
    fs::write(yard.path("folder.eml/x.eml"), mail("x")).unwrap();
    // /dev/zero, which never ends; only root can make another one.
    match mknodat(CWD, yard.path("device.eml"), FileType::CharacterDevice, Mode::RWXU, rustix::fs::makedev(1, 5)) {
        Ok(()) => {}
        Err(error) => assert!(!is_root(), "{error}"),
    }
    untouched(&yard).await;
}

/// `p06`
async fn names() {
    let yard = Yard::new();
    let long = [&[b'x'; 251][..], b".eml"].concat();
    let taken: [&[u8]; 8] = [
        b"new\nline.eml",
        &long,
        b"\xff\xfe.eml",
        b"-rf.eml",
        b"a..b.eml",
        b"\x1b[2J\x1b]0;pwn\x07.eml",
        b"\r.eml",
        b" .eml",
    ];
    // Hidden, and no mail.
    let left: [&[u8]; 3] = [b"...eml", b"..eml", b"-rf"];
    for name in taken.iter().chain(&left) {
        let path = yard.folder.join(std::ffi::OsStr::from_bytes(name));
        fs::write(&path, mail("x")).unwrap();
        set_modified(&path, NOW - 5_000);
    }
    look_twice(&mut yard.watcher()).await;
    assert_eq!((yard.names().len(), yard.claims()), (left.len(), 0), "{:?}", yard.names());
    let drafts = yard.desk.accepted.lock().unwrap();
    assert_eq!(drafts.len(), taken.len());
    for draft in drafts.iter() {
        let CameBy::Pickup { file, .. } = &draft.origin.door else { panic!("{draft:?}") };
        assert!(!file.chars().any(char::is_control), "{file:?}");
    }
}

/// Root may do everything, so this test of ours is run once more by nobody.
pub fn run_as_nobody(test: &str) {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let folder = tempfile::tempdir().unwrap();
    if is_root() {
        // Where it lies now others may not look.
        let copy = folder.path().join("copy");
        fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        for path in [folder.path(), &copy] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        command = std::process::Command::new(copy);
        command.uid(OTHER).gid(OTHER).current_dir("/");
    }
    let output = command.args(["--exact", test, "--ignored", "--nocapture"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// `p08`
#[tokio::test]
#[ignore = "run by the case p08, as somebody who is not root"]
async fn without_the_rights_that_a_case_takes_away() {
    assert!(!is_root());
    let mode = |path: &std::path::Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    // It cannot be read: never sent, however often it is looked at, and not in the way of others.
    let yard = Yard::new();
    yard.put("secret.eml", &mail("secret"), 60_000);
    mode(&yard.path("secret.eml"), 0);
    yard.put("other.eml", &mail("other"), 60_000);
    let mut watcher = yard.watcher();
    for _ in 0..5 {
        look_twice(&mut watcher).await;
        yard.clock.advance(300_000);
    }
    assert!(yard.accepted().len() == 1 && yard.accepted()[0].contains("other"), "{:?}", yard.accepted());
    assert_eq!(yard.claims(), 0);
    assert!(yard.path("secret.eml").exists() || yard.path("secret.bad").exists(), "{:?}", yard.names());

    // Its message is queued, and it cannot be removed: sent once, and gone when it can be.
    let yard = Yard::new();
    yard.put("x.eml", &mail("x"), 60_000);
    let folder = yard.folder.clone();
    *yard.desk.when_queued.lock().unwrap() =
        Some(Box::new(move || fs::set_permissions(folder, fs::Permissions::from_mode(0o500)).unwrap()));
    let mut watcher = yard.watcher();
    for _ in 0..5 {
        let _ = watcher.round(&CancellationToken::new()).await;
        yard.clock.advance(300_000);
    }
    assert_eq!((yard.accepted().len(), yard.names().len()), (1, 1), "{:?}", yard.names());
    // Nor after a start.
    drop(watcher);
    let mut watcher = yard.watcher();
    let _ = watcher.recover().await;
    let _ = watcher.round(&CancellationToken::new()).await;
    assert_eq!(yard.accepted().len(), 1);
    mode(&yard.folder, 0o700);
    for _ in 0..3 {
        look_twice(&mut watcher).await;
        yard.clock.advance(300_000);
    }
    assert_eq!((yard.accepted().len(), yard.names().len(), yard.claims()), (1, 0, 0), "{:?}", yard.names());
}

/// `p09`: at each step, before and after it. (Kills of a whole server while files come in are in the tests of faults.)
async fn kills() {
    for done in ["delete", "archive"] {
        for (call, after) in (0..3).flat_map(|call| [(call, false), (call, true)]) {
            let yard = Yard::with(&format!("done = \"{done}\"\n"));
            yard.put("x.eml", &mail("x"), 5_000);
            crash(&yard, Crash { call, after }).await;
            let mut watcher = yard.watcher();
            assert!(watcher.recover().await);
            look_twice(&mut watcher).await;
            assert_eq!((yard.accepted().len(), yard.claims()), (1, 0), "{done} {call} {after}");
            assert!(!yard.path("x.eml").exists() && !yard.path("x.tmp").exists(), "{done} {call} {after}");
        }
    }
}

/// `p10`: what the kernel has to tell is lost, the folder is another one, and its old self is elsewhere.
async fn comes_and_goes() {
    const FILES: usize = 9_000;
    let yard = Yard::new();
    let shutdown = CancellationToken::new();
    let (task, _handle) = Task::new(yard.folder(), Arc::clone(&yard.desk), yard.clock.clone());
    let task = tokio::spawn(task.run(shutdown.clone()));
    let all_taken = async |count: usize| {
        let since = Instant::now();
        while yard.desk.accepted.lock().unwrap().len() < count {
            assert!(since.elapsed() < PATIENCE, "{} of {count}", yard.desk.accepted.lock().unwrap().len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // Made, written, closed, named: more than the 16,384 changes that Linux keeps for one who does not listen.
    for number in 0..FILES {
        let hidden = yard.put(&format!("{number}.part"), &mail("x"), 60_000);
        fs::rename(hidden, yard.path(&format!("{number}.eml"))).unwrap();
    }
    all_taken(FILES).await;
    let old = yard.base.path().join("old");
    fs::rename(&yard.folder, &old).unwrap();
    fs::write(old.join("old.eml"), mail("old")).unwrap();
    set_modified(&old.join("old.eml"), NOW - 60_000);
    fs::create_dir(&yard.folder).unwrap();
    yard.put("new.eml", &mail("new"), 60_000);
    all_taken(FILES + 1).await;
    while !yard.names().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fs::remove_dir(&yard.folder).unwrap();
    fs::create_dir(&yard.folder).unwrap();
    yard.put("newer.eml", &mail("newer"), 60_000);
    all_taken(FILES + 2).await;
    shutdown.cancel();
    task.await.unwrap();
    assert_eq!(yard.accepted().len(), FILES + 2);
    assert!(old.join("old.eml").exists() && yard.names().is_empty());
}

/// `p12`: between the look and the new name, and between the message and the end of the file.
async fn replaced() {
    for is_queued in [false, true] {
        let yard = Yard::new();
        yard.put("x.eml", &mail("first"), 5_000);
        let (from, to) = (yard.base.path().join("second"), yard.path("x.eml"));
        fs::write(&from, mail("second")).unwrap();
        set_modified(&from, NOW - 5_000);
        let replace: Box<dyn FnOnce() + Send> = Box::new(move || fs::rename(from, to).unwrap());
        let when = if is_queued { &yard.desk.when_queued } else { &yard.desk.meanwhile };
        *when.lock().unwrap() = Some(replace);
        let mut watcher = yard.watcher();
        for _ in 0..3 {
            look_twice(&mut watcher).await;
            yard.clock.advance(60_000);
        }
        let accepted = yard.accepted();
        let count =
            |subject: &str| accepted.iter().filter(|text| text.contains(&format!("Subject: {subject}"))).count();
        // What was replaced before it was taken is no more; what was queued by then is queued.
        assert_eq!((count("first"), count("second")), (usize::from(is_queued), 1), "{accepted:?}");
        assert_eq!((yard.names().len(), yard.claims()), (0, 0));
    }
}
