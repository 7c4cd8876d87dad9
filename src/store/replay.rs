//! Log files across a repair. RocksDB's repair knows only the tables of which it finds a file: what the
//! logs hold for another table it drops without a word. So they are set aside before a repair, and
//! what is in them is written again by ourselves after it.
//!
//! A crash anywhere in between is continued by the next opening: the folder [`FOLDER`] is there whole or
//! not at all, and writing it all again, in its order, gives what writing it once gives.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rocksdb::{DB, WriteBatch};

use super::{StoreError, Table, wal};

/// Logs that wait to be written again.
const FOLDER: &str = "replay";
/// Sequence number and count, before the entries of a batch.
const BATCH_HEADER_BYTES: usize = 12;
/// The table that RocksDB always makes; nothing of ours is in it.
const DEFAULT_TABLES: u32 = 1;

/// True if logs wait to be written again. Takes away what a crash left of them in their old place.
pub(super) fn is_pending(folder: &Path) -> io::Result<bool> {
    let aside = folder.join(FOLDER);
    if !aside.exists() {
        return Ok(false);
    }
    for (_, kept) in wal::files(&aside)? {
        let Some(name) = kept.file_name() else { continue };
        let old = folder.join(name);
        // Another log may have got the number since.
        if fs::metadata(&old).is_ok_and(|old| fs::metadata(&kept).is_ok_and(|kept| kept.ino() == old.ino())) {
            fs::remove_file(&old)?;
        }
    }
    fs::File::open(folder)?.sync_all()?;
    Ok(true)
}

/// Before a repair.
pub(super) fn set_aside(folder: &Path) -> io::Result<()> {
    if is_pending(folder)? {
        return Ok(());
    }
    let begun = folder.join("replay.new");
    if begun.exists() {
        fs::remove_dir_all(&begun)?;
    }
    fs::create_dir(&begun)?;
    for (_, path) in wal::files(folder)? {
        if let Some(name) = path.file_name() {
            fs::hard_link(&path, begun.join(name))?;
        }
    }
    fs::File::open(&begun)?.sync_all()?;
    fs::rename(&begun, folder.join(FOLDER))?;
    fs::File::open(folder)?.sync_all()?;
    is_pending(folder).map(drop)
}

/// Writes what is set aside, if anything is. Gives the last sequence number that it had.
pub(super) fn write_back(folder: &Path, db: &DB) -> Result<u64, StoreError> {
    let io = |error: io::Error| StoreError::Failed(error.to_string());
    if !is_pending(folder).map_err(io)? {
        return Ok(0);
    }
    let aside = folder.join(FOLDER);
    let (mut last, mut failed) = (0, None);
    for (number, path) in without_spent(wal::files(&aside).map_err(io)?).map_err(io)? {
        let visit = |found: wal::Found<'_>| {
            last = last.max(found.last());
            if failed.is_none() {
                failed = write(db, found.payload).err();
            }
        };
        wal::scan(&path, number, visit).map_err(io)?;
    }
    if let Some(error) = failed {
        return Err(error);
    }
    db.flush_wal(true)?;
    fs::remove_dir_all(&aside).and_then(|()| fs::File::open(folder)?.sync_all()).map_err(io)?;
    Ok(last)
}

/// Leaves out logs before a gap: those were kept for another use, and what they began may have ended in
/// a log that is gone. Writing them would bring back what is done.
fn without_spent(mut logs: Vec<(u64, PathBuf)>) -> io::Result<Vec<(u64, PathBuf)>> {
    let (mut before, mut keep_from) = (None, 0);
    for (place, (number, path)) in logs.iter().enumerate() {
        let (mut first, mut last) = (None, None);
        wal::scan(path, *number, |found| {
            first.get_or_insert(found.sequence);
            last = Some(found.last());
        })?;
        if let (Some(before), Some(first)) = (before, first)
            && first > before + 1
        {
            keep_from = place;
        }
        before = last.or(before);
    }
    Ok(logs.split_off(keep_from))
}

fn write(db: &DB, payload: &[u8]) -> Result<(), StoreError> {
    let mut batch = WriteBatch::default();
    let mut rest = payload.get(BATCH_HEADER_BYTES..).unwrap_or_default();
    while !rest.is_empty() {
        // A whole batch under a sound checksum: what is not understood is of a newer RocksDB.
        let place = payload.len() - rest.len();
        let strange = || StoreError::Damaged(format!("byte {place} of a batch in a log file"));
        rest = entry(db, rest, &mut batch).ok_or_else(strange)?;
    }
    Ok(db.write(batch)?)
}

/// Adds the entry at the front; gives what is behind it.
fn entry<'a>(db: &DB, bytes: &'a [u8], batch: &mut WriteBatch) -> Option<&'a [u8]> {
    let (kind, rest) = bytes.split_first()?;
    match kind {
        // Marks without a key.
        0x0d => Some(rest),
        // Data for the log only.
        0x03 => string(rest).map(|(_, rest)| rest),
        0x04 | 0x05 | 0x08 | 0x0e => {
            let (table, rest) = varint(rest)?;
            let (key, mut rest) = string(rest)?;
            // By the number that it got when it was made: they are made in this order, and new ones come
            // last.
            let table = Table::ALL.get(table.checked_sub(DEFAULT_TABLES)? as usize)?;
            let family = db.cf_handle(table.name())?;
            match kind {
                0x05 => {
                    let (value, behind) = string(rest)?;
                    batch.put_cf(family, key, value);
                    rest = behind;
                }
                0x0e => {
                    let (end, behind) = string(rest)?;
                    batch.delete_range_cf(family, key, end);
                    rest = behind;
                }
                _ => batch.delete_cf(family, key),
            }
            Some(rest)
        }
        _ => None,
    }
}

fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = varint(bytes)?;
    rest.split_at_checked(length as usize)
}

/// Seven bits a byte, the lowest first.
fn varint(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let mut value: u32 = 0;
    for (place, byte) in bytes.iter().take(5).enumerate() {
        value |= u32::from(byte & 0x7f).checked_shl(7 * place as u32)?;
        if byte & 0x80 == 0 {
            return Some((value, bytes.get(place + 1..)?));
        }
    }
    None
}
