//! The pickup folder: what is taken and what never is, and what a crash between any two steps leaves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod yard;
}

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use postrider::intake::pickup::Task;
use postrider::message::Door as CameBy;
use postrider::smtp::Reply;
use support::yard::*;
use tokio_util::sync::CancellationToken;

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
