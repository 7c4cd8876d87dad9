//! `store check`: a good store is called good, and each kind of wrong is found, named and survived.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod kept;
    pub mod records;
    pub mod stored;
}

use std::ops::ControlFlow;
use std::path::Path;

use postrider::clock::Clock;
use postrider::message::{HeldBy, Hold, MessageId};
use postrider::queue::check::{self, Finding, Kind};
use postrider::queue::keys;
use postrider::queue::record::{Recipient, Status};
use postrider::store::{Batch, Store, Table};
use support::kept::{contents, copy, first_format, lines, run, say, stderr, stdout, write_config};
use support::records::open;
use support::stored::{self, WRITTEN};

/// A store with everything in it, opened once by this version.
fn store(path: &Path) {
    copy(&first_format(), path);
    drop(open(path, &Clock::manual(WRITTEN)));
}

/// Writes behind the queue's back.
fn spoil(path: &Path, spoil: impl FnOnce(&mut Batch)) {
    let store = Store::open(path).unwrap();
    let mut batch = Batch::new();
    spoil(&mut batch);
    store.write(std::slice::from_ref(&batch), true).unwrap();
}

fn check(path: &Path) -> Vec<Finding> {
    let store = Store::open_read_only(path).unwrap();
    let mut findings = Vec::new();
    let mut tell = |finding: Finding| {
        findings.push(finding);
        ControlFlow::Continue(())
    };
    let summary = check::check(&store, &mut tell, &mut |_| ());
    assert_eq!(summary.findings, findings.len() as u64);
    findings
}

fn id(what: &str) -> MessageId {
    stored::all().into_iter().find(|kept| kept.what == what).unwrap().message.id
}

#[test]
fn a_good_store_has_no_findings_and_is_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    store(&path);
    let before = contents(&path);
    assert_eq!(check(&path), []);
    assert!(Store::check_files(&path).unwrap().is_empty());
    assert_eq!(contents(&path), before);
}

#[test]
fn each_kind_of_wrong_is_found_alone_and_hides_nothing() {
    let new = id("waiting, new");
    let inbound = id("for four");
    let ghost = MessageId::from_u64(id("captured").as_u64() + 1);
    let stray =
        || Recipient { status: Status::Held(Hold::new(HeldBy::Other, "x")), ..stored::all()[0].recipients[0].clone() };
    type Spoil = Box<dyn Fn(&mut Batch)>;
    type Case = (&'static str, Spoil, Vec<(Kind, Option<MessageId>)>);
    let cases: Vec<Case> = vec![
        (
            "a message's record is not one",
            Box::new(move |batch| batch.put(Table::Message, new.to_key(), &b"\xc1nonsense"[..])),
            vec![(Kind::BadRecord, Some(new))],
        ),
        (
            "a recipient's record is not one; what the index says of it cannot be told",
            Box::new(move |batch| batch.put(Table::Recipient, keys::recipient(inbound, 0), &b""[..])),
            vec![(Kind::BadRecord, Some(inbound))],
        ),
        (
            "a message is gone",
            Box::new(move |batch| batch.delete(Table::Message, new.to_key())),
            vec![(Kind::OrphanBody, Some(new)), (Kind::OrphanRecipient, Some(new))],
        ),
        (
            "all recipients are gone",
            Box::new(move |batch| batch.delete(Table::Recipient, keys::recipient(id("held"), 0))),
            vec![(Kind::NoRecipients, Some(id("held")))],
        ),
        (
            "a piece of a body is gone",
            Box::new(move |batch| batch.delete(Table::Body, keys::body(inbound, 1))),
            vec![(Kind::BadBody, Some(inbound))],
        ),
        (
            "a piece of a body is shorter",
            Box::new(move |batch| batch.put(Table::Body, keys::body(inbound, 3), &b"3"[..])),
            vec![(Kind::BadBody, Some(inbound))],
        ),
        (
            "a body nobody wrote a message for",
            Box::new(move |batch| batch.put(Table::Body, keys::body(ghost, 0), &b"x"[..])),
            vec![(Kind::OrphanBody, Some(ghost))],
        ),
        (
            "a crash left what had come in: not wrong, the next start removes it",
            Box::new(move |batch| {
                batch.put(Table::Body, keys::body(ghost, 1 << 16), &b"x"[..]);
                batch.put(Table::Incoming, ghost.to_key(), &b""[..]);
            }),
            vec![],
        ),
        (
            "a message that is queued cannot be coming in",
            Box::new(move |batch| batch.put(Table::Incoming, new.to_key(), &b""[..])),
            vec![(Kind::BadMark, Some(new))],
        ),
        (
            "a recipient nobody wrote a message for",
            Box::new(move |batch| {
                batch.put(Table::Recipient, keys::recipient(ghost, 0), keys::encode(&stray()).unwrap())
            }),
            vec![(Kind::OrphanRecipient, Some(ghost))],
        ),
        (
            "a key that nobody writes",
            Box::new(move |batch| batch.put(Table::Body, *b"odd", &b"x"[..])),
            vec![(Kind::BadKey, None)],
        ),
        (
            "a line of a story that is none",
            Box::new(move |batch| batch.put(Table::Journal, [&new.to_key()[..], &[9; 12]].concat(), &b"{"[..])),
            vec![(Kind::BadRecord, Some(new))],
        ),
    ];
    for (what, make, wanted) in cases {
        let folder = tempfile::tempdir().unwrap();
        store(folder.path());
        spoil(folder.path(), |batch| make(batch));
        let found = check(folder.path());
        let seen: Vec<_> = found.iter().map(|finding| (finding.kind, finding.id)).collect();
        // An index entry may be left behind by the spoiling; it is a finding of its own.
        let seen: Vec<_> = seen.into_iter().filter(|(kind, _)| *kind != Kind::OrphanDue).collect();
        assert_eq!(seen, wanted, "{what}: {found:#?}");
        assert!(found.iter().all(|finding| !finding.what.is_empty() && !finding.remedy.is_empty()));
    }
}

#[test]
fn the_due_index_has_exactly_one_entry_for_each_who_waits() {
    let new = id("waiting, new");
    let folder = tempfile::tempdir().unwrap();
    store(folder.path());
    let due_keys = || -> Vec<Box<[u8]>> {
        let store = Store::open_read_only(folder.path()).unwrap();
        store.prefix(Table::Due, b"").unwrap().map(|entry| entry.unwrap().0).collect()
    };
    let key_of =
        |id: MessageId| due_keys().into_iter().find(|key| keys::DueKey::read(key).unwrap().at.id == id).unwrap();
    let key = key_of(new);
    spoil(folder.path(), |batch| batch.delete(Table::Due, key.clone()));
    let found = check(folder.path());
    assert_eq!(found.iter().map(|f| (f.kind, f.id)).collect::<Vec<_>>(), [(Kind::NotDue, Some(new))], "{found:#?}");

    // The same at another time than the one it waits for.
    let mut late = key.clone();
    late[9] ^= 1;
    spoil(folder.path(), |batch| {
        batch.put(Table::Due, key.clone(), &b""[..]);
        batch.put(Table::Due, late, &b""[..]);
    });
    let found = check(folder.path());
    assert_eq!(found.iter().map(|f| (f.kind, f.id)).collect::<Vec<_>>(), [(Kind::OrphanDue, Some(new))], "{found:#?}");
}

#[test]
fn the_command_says_what_it_saw_and_ends_with_0_1_or_2() {
    let folder = tempfile::tempdir().unwrap();
    write_config(folder.path());
    let output = run(folder.path(), &["store", "check"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("there is no store"), "{}", stderr(&output));

    let path = folder.path().join("store");
    store(&path);
    let text = say(folder.path(), &["store", "check"], 0);
    assert!(text.contains("8 messages with 10 recipients") && text.ends_with("all is well.\n"), "{text}");

    let new = id("waiting, new");
    spoil(&path, |batch| batch.delete(Table::Message, new.to_key()));
    let output = run(folder.path(), &["store", "check", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let lines = lines(&stdout(&output));
    let kinds: Vec<&str> = lines.iter().filter_map(|line| line["kind"].as_str()).collect();
    assert_eq!(kinds, ["orphan_body", "orphan_recipient"]);
    assert_eq!(lines[0]["id"], new.to_string());
    assert_eq!(lines.last().unwrap()["findings"], 2);
    let text = say(folder.path(), &["store", "check"], 1);
    assert!(text.contains("  → ") && text.ends_with(": 2 findings.\n"), "{text}");

    let held = Store::open(&path).unwrap();
    let output = run(folder.path(), &["store", "check"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("another postrider has it open"), "{}", stderr(&output));
    drop(held);
}

#[test]
fn a_file_that_was_changed_is_found() {
    let folder = tempfile::tempdir().unwrap();
    write_config(folder.path());
    let path = folder.path().join("store");
    store(&path);
    let mut tables: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
    tables.retain(|path| path.extension().is_some_and(|ending| ending == "sst"));
    tables.sort_by_key(|path| std::fs::metadata(path).unwrap().len());
    let table = tables.last().unwrap();
    let mut bytes = std::fs::read(table).unwrap();
    bytes[20] ^= 0x40;
    std::fs::write(table, bytes).unwrap();
    let text = say(folder.path(), &["store", "check"], 1);
    assert!(text.contains("finding"), "{text}");
}
