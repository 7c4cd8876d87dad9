//! What the store promises about damage and failed writes, on the files of real databases.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;

use super::*;

/// A value of its own for each number.
fn value(number: u64, bytes: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..bytes).map(next).collect()
}

fn put(store: &Store, number: u64, bytes: usize) {
    let mut batch = Batch::new();
    batch.put(Table::Message, number.to_be_bytes(), value(number, bytes));
    store.write(&[batch], true).unwrap();
}

/// The folder as a kill at this moment would leave it.
fn killed(store: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(store).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
    }
    copy
}

fn present(store: &Store, bytes: usize) -> BTreeSet<u64> {
    let mut present = BTreeSet::new();
    for entry in store.range(Table::Message, &[], &KEY_END).unwrap() {
        let Ok((key, found)) = entry else { continue };
        let number = u64::from_be_bytes(key[..].try_into().unwrap());
        assert_eq!(found[..], value(number, bytes)[..]);
        present.insert(number);
    }
    present
}

/// The log file with the most in it.
fn log_file(folder: &Path) -> (u64, PathBuf, wal::Walked) {
    let walked = |(number, path): (u64, PathBuf)| {
        let walked = wal::scan(&path, number, |_| {}).unwrap();
        (number, path, walked)
    };
    wal::files(folder).unwrap().into_iter().map(walked).max_by_key(|(.., walked)| walked.end).unwrap()
}

#[test]
fn what_a_kill_leaves_opens_whole_and_without_complaint() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    for number in 0..50 {
        put(&store, number, 5000);
        let copy = killed(folder.path());
        assert_eq!(Store::check_files(copy.path()).unwrap(), []);
        let again = Store::open(copy.path()).unwrap();
        assert_eq!(again.damages(), []);
        assert_eq!(present(&again, 5000).len() as u64, number + 1);
    }
}

#[test]
fn log_files_that_are_used_again_hide_nothing_and_invent_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let mut next = 0;
    for round in 0..8 {
        for _ in 0..60 + 17 * round {
            put(&store, next, 3000 + 100 * round);
            next += 1;
        }
        let copy = killed(folder.path());
        let again = Store::open(copy.path()).unwrap();
        assert_eq!(again.damages(), [], "round {round}");
        let count = again.range(Table::Message, &[], &KEY_END).unwrap().map(Result::unwrap).count();
        assert_eq!(count as u64, next);
        // Tables are written, the log file becomes free for another use.
        store.flush().unwrap();
    }
}

#[test]
fn every_flipped_bit_of_a_log_is_noticed_and_the_rest_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    (0..60).for_each(|number| put(&store, number, 2000));
    let (number, path, walked) = log_file(folder.path());
    let name = path.file_name().unwrap().to_owned();
    let mut batches = Vec::new();
    wal::scan(&path, number, |found| batches.push(found.offset)).unwrap();
    assert!(walked.end > 2 * 32 * 1024, "more than two blocks");
    for flip in (0..walked.end).step_by(1997) {
        let copy = killed(folder.path());
        let damaged = copy.path().join(&name);
        let mut bytes = std::fs::read(&damaged).unwrap();
        bytes[flip as usize] ^= 1 << (flip % 8);
        std::fs::write(&damaged, bytes).unwrap();
        assert_ne!(Store::check_files(copy.path()).unwrap(), [], "byte {flip}");
        let again = Store::open(copy.path()).unwrap();
        let found = present(&again, 2000).len();
        // A flip in the padding between blocks harms nothing; all others one batch.
        assert!(found >= 59, "byte {flip}: {found} of 60");
        assert!(found == 60 || !again.damages().is_empty(), "byte {flip}");
        // It was told once; now the store is sound.
        drop(again);
        let sound = Store::open(copy.path()).unwrap();
        assert_eq!(sound.damages(), [], "byte {flip}");
        assert_eq!(present(&sound, 2000).len(), found);
    }
}

#[test]
fn a_log_that_lost_its_end_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    (0..60).for_each(|number| put(&store, number, 2000));
    let (_, path, walked) = log_file(folder.path());
    for end in (0..walked.end).step_by(4999) {
        let copy = killed(folder.path());
        wal::shorten(&copy.path().join(path.file_name().unwrap()), end).unwrap();
        assert_ne!(Store::check_files(copy.path()).unwrap(), []);
        let again = Store::open(copy.path()).unwrap();
        assert_ne!(again.damages(), [], "cut at {end}");
        assert!(present(&again, 2000).len() as u64 >= (end / 2100).saturating_sub(2));
    }
}

#[test]
fn every_file_that_is_gone_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    (0..30).for_each(|number| put(&store, number, 2000));
    store.flush().unwrap();
    (30..60).for_each(|number| put(&store, number, 2000));
    let names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for name in names {
        let copy = killed(folder.path());
        let gone = copy.path().join(&name);
        if !gone.is_file() {
            continue;
        }
        std::fs::remove_file(gone).unwrap();
        let holds_mail = !["LOG", "LOCK", "IDENTITY", "OPTIONS"].iter().any(|prefix| name.starts_with(prefix));
        let checked = Store::check_files(copy.path()).unwrap();
        let again = Store::open(copy.path()).unwrap();
        let kept = present(&again, 2000).len();
        // A log whose writes are all in tables waits for another use; it may go.
        let is_spent_log = name.ends_with(".log") && kept == 60;
        if holds_mail && !is_spent_log {
            assert_ne!(checked, [], "{name}");
            assert_ne!(again.damages(), [], "{name}");
        }
        assert!(kept >= 30 || name.ends_with(".sst"), "{name}: {kept}");
        if name.starts_with("MANIFEST") || name == "CURRENT" || name == "WITNESS" || !holds_mail {
            assert_eq!(kept, 60, "{name}");
        }
        put(&again, 1000, 2000);
    }
}

#[test]
fn a_store_whose_files_are_all_gone_does_not_begin_anew_in_silence() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    put(&store, 1, 10);
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(folder.path().join(witness::FILE_NAME), copy.path().join(witness::FILE_NAME)).unwrap();
    assert!(matches!(Store::open(copy.path()), Err(StoreError::Damaged(_))));
}

#[test]
fn what_nobody_was_told_of_is_cut_out() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    (0..20).for_each(|number| put(&store, number, 2000));
    let told = store.last.load(Ordering::Acquire);
    (20..25).for_each(|number| put(&store, number, 2000));
    let copy = killed(folder.path());
    assert_eq!(wal::cut(copy.path(), told).unwrap(), 5);
    std::fs::remove_file(copy.path().join(witness::FILE_NAME)).unwrap();
    let again = Store::open(copy.path()).unwrap();
    assert_eq!(present(&again, 2000), (0..20).collect());
}

#[test]
fn it_can_be_opened_again_while_it_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    assert!(matches!(Store::open(folder.path()), Err(StoreError::InUse)));
    put(&store, 1, 10);
    assert!(store.close());
    assert!(!store.is_open());
    assert!(matches!(store.get(Table::Message, &[0; 8]), Err(StoreError::Failed(_))));
    assert!(matches!(store.write(&[Batch::new()], true), Err(StoreError::Failed(_))));
    assert_eq!(store.reopen().unwrap(), []);
    put(&store, 2, 10);
    assert_eq!(present(&store, 10), [1, 2].into());
    drop(store);
    assert_eq!(Store::open(folder.path()).unwrap().damages(), []);
}

#[test]
fn a_damaged_table_loses_its_block_only_and_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    (0..200).for_each(|number| put(&store, number, 2000));
    store.flush().unwrap();
    let copy = killed(folder.path());
    let biggest = std::fs::read_dir(copy.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sst"))
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap();
    let mut bytes = std::fs::read(&biggest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&biggest, bytes).unwrap();
    assert_eq!(Store::check_files(copy.path()).unwrap().len(), 1);
    let again = Store::open(copy.path()).unwrap();
    let kept = present(&again, 2000);
    assert!((190..200).contains(&kept.len()), "{}", kept.len());
    lock(&again.trouble).wants_rebuild = true;
    assert_eq!(again.reopen().unwrap().len(), 1);
    assert_eq!(present(&again, 2000), kept);
    put(&again, 1000, 2000);
    drop(again);
    assert_eq!(Store::check_files(copy.path()).unwrap(), []);
    let sound = Store::open(copy.path()).unwrap();
    assert_eq!(sound.damages(), []);
    assert_eq!(present(&sound, 2000).len(), kept.len() + 1);
}

#[test]
fn what_only_the_logs_hold_outlives_the_loss_of_a_tables_only_file() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    (0..20).for_each(|number| put(&store, number, 500));
    store.flush().unwrap();
    let tables = |folder: &Path| -> BTreeSet<PathBuf> {
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|extension| extension == "sst")).collect()
    };
    (20..50).for_each(|number| put(&store, number, 500));
    let mut batch = Batch::new();
    batch.delete(Table::Message, 30_u64.to_be_bytes());
    batch.delete_range(Table::Message, 40_u64.to_be_bytes(), 45_u64.to_be_bytes());
    store.write(&[batch], true).unwrap();
    let copy = killed(folder.path());
    drop(store);
    for gone in tables(copy.path()) {
        std::fs::remove_file(gone).unwrap();
    }
    let store = Store::open(copy.path()).unwrap();
    assert!(!store.damages().is_empty());
    // The log of the first twenty may still be there, waiting for another use.
    let wanted: BTreeSet<u64> = (20..50).filter(|number| *number != 30 && !(40..45).contains(number)).collect();
    let found = present(&store, 500);
    assert_eq!(found.iter().copied().filter(|number| *number >= 20).collect::<BTreeSet<u64>>(), wanted);
    drop(store);
    let store = Store::open(copy.path()).unwrap();
    assert!(store.damages().is_empty(), "{:?}", store.damages());
    assert_eq!(present(&store, 500), found);
}

#[test]
fn flipped_bits_of_the_manifest_are_noticed_and_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    (0..30).for_each(|number| put(&store, number, 2000));
    store.flush().unwrap();
    (30..60).for_each(|number| put(&store, number, 2000));
    let (_, path) = examine::newest_manifest(folder.path()).unwrap().unwrap();
    let len = path.metadata().unwrap().len();
    for flip in (0..len).step_by(usize::try_from(len / 60).unwrap().max(1)) {
        let copy = killed(folder.path());
        let damaged = copy.path().join(path.file_name().unwrap());
        let mut bytes = std::fs::read(&damaged).unwrap();
        bytes[flip as usize] ^= 1 << (flip % 8);
        std::fs::write(&damaged, bytes).unwrap();
        assert_ne!(Store::check_files(copy.path()).unwrap(), [], "byte {flip}");
        let again = Store::open(copy.path()).unwrap();
        assert_ne!(again.damages(), [], "byte {flip}");
        assert_eq!(present(&again, 2000).len(), 60, "byte {flip}");
    }
}
