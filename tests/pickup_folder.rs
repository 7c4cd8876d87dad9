//! The pickup folder: sub-folders, files that are kept, notices to senders, and whom it trusts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod yard;
}

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::sync::Arc;

use postrider::intake::pickup::Task;
use postrider::message::{Door as CameBy, Draft};
use support::yard::*;
use tokio_util::sync::CancellationToken;

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
