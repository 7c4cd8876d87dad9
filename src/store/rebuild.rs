//! Making the database anew of what can be read, when a table of it is damaged: RocksDB does not write
//! any more once a compaction meets such a table.
//!
//! The new database is made in `rebuilt/`; then files change places in two steps, each noted on disk
//! before it begins, so that a crash in between is continued by [`finish`].

use std::fs;
use std::io;
use std::path::Path;

use rocksdb::{DB, WriteBatch, WriteOptions};

use super::damage::Damage;
use super::range::Range;
use super::{Store, StoreError, Table, examine, open, witness};

const REBUILT_FOLDER: &str = "rebuilt";
const NOTE: &str = "REBUILDING";
/// Bytes written in one go.
const BATCH_BYTES: usize = 4 << 20;

/// Copies every entry that can be read. Gives what could not be.
pub(super) fn copy(store: &Store) -> Result<Vec<Damage>, StoreError> {
    let folder = store.path().join(REBUILT_FOLDER);
    let io = |error: io::Error| StoreError::Failed(error.to_string());
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(io)?;
    }
    open::make_private(&folder)?;
    let rebuilt = open::open_database(&folder, true)?;
    let mut damages = Vec::new();
    for table in Table::ALL {
        copy_table(store, &rebuilt, table, &mut damages)?;
    }
    rebuilt.flush_wal(true)?;
    drop(rebuilt);
    Ok(damages)
}

fn copy_table(store: &Store, rebuilt: &DB, table: Table, damages: &mut Vec<Damage>) -> Result<(), StoreError> {
    let missing = || StoreError::Damaged(format!("table {} is missing", table.name()));
    let family = rebuilt.cf_handle(table.name()).ok_or_else(missing)?;
    let mut batch = WriteBatch::default();
    for entry in Range::new(store, table, &[], &super::KEY_END) {
        match entry {
            Ok((key, value)) => batch.put_cf(family, key, value),
            Err(StoreError::Damaged(what)) => {
                damages.push(Damage::new(table.name(), format!("{what}; these records are lost")));
            }
            Err(error) => return Err(error),
        }
        if batch.size_in_bytes() >= BATCH_BYTES {
            rebuilt.write_opt(std::mem::take(&mut batch), &WriteOptions::default())?;
        }
    }
    Ok(rebuilt.write_opt(batch, &WriteOptions::default())?)
}

/// The copy is whole: it takes the place of the database, which must be closed.
pub(super) fn take_over(folder: &Path, damages: &[Damage]) -> io::Result<()> {
    let evidence = examine::evidence_folder(folder)?;
    examine::report(&evidence, damages)?;
    let name = evidence.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    note(folder, &format!("away {name}"))?;
    finish(folder)
}

/// Goes on with a change of places that was begun.
pub(super) fn finish(folder: &Path) -> io::Result<()> {
    let text = match fs::read_to_string(folder.join(NOTE)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if let Some(name) = text.strip_prefix("away ") {
        let evidence = folder.join(examine::EVIDENCE_FOLDER).join(name.trim());
        fs::create_dir_all(&evidence)?;
        move_files(folder, &evidence)?;
        note(folder, "here")?;
    }
    let rebuilt = folder.join(REBUILT_FOLDER);
    if rebuilt.exists() {
        move_files(&rebuilt, folder)?;
        fs::remove_dir(&rebuilt)?;
    }
    // Its numbers were those of the old database.
    if let Some(mut witness) = witness::Witness::open(folder)? {
        witness.begin(witness::Statement::default())?;
    }
    fs::remove_file(folder.join(NOTE))?;
    fs::File::open(folder)?.sync_all()
}

fn note(folder: &Path, text: &str) -> io::Result<()> {
    let aside = folder.join("REBUILDING.new");
    fs::write(&aside, text)?;
    fs::File::open(&aside)?.sync_all()?;
    fs::rename(&aside, folder.join(NOTE))?;
    fs::File::open(folder)?.sync_all()
}

/// Moves RocksDB's files; ours stay.
fn move_files(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let is_ours = [witness::FILE_NAME, NOTE].iter().any(|name| entry.file_name() == *name);
        if entry.file_type()?.is_file() && !is_ours {
            fs::rename(entry.path(), to.join(entry.file_name()))?;
        }
    }
    fs::File::open(to)?.sync_all()
}
