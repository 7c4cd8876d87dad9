//! Opening the database: options, the look at its files beforehand, and what is done about damage.

use std::fs::Permissions;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode,
    ErrorKind, Options,
};

use super::damage::Damage;
use super::examine::{self, Examined};
use super::witness::{Found, Statement, Witness};
use super::{StoreError, Table, rebuild, replay};

/// Most bytes of log files before the oldest tables in memory are written out, on a large disk. Not much
/// more than [`MEMTABLE_BYTES`]: a table with few changes would keep old files for nothing.
const WAL_BYTES_MAX: u64 = 64 << 20;
/// A file system of so many times that; smaller ones get less.
const WAL_SHARE: u64 = 8;
/// Least bytes of log files.
const WAL_BYTES_MIN: u64 = 4 << 20;
/// Bytes of all tables in memory together.
const MEMTABLE_BYTES: usize = 48 << 20;
/// Where RocksDB's repair puts what it cannot read.
const LOST_FOLDER: &str = "lost";
/// Bytes compressed together in the journal.
const JOURNAL_BLOCK_BYTES: usize = 64 << 10;
/// Bytes of blocks kept in memory.
const CACHE_BYTES: usize = 32 << 20;
/// Log files that are used again instead of being deleted: writing over a file needs no change of its
/// length, which halves the time of a sync.
const WALS_RECYCLED: usize = 1;

/// How long a lock that another one holds is tried for.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// An open database with its witness.
pub(super) struct Opened {
    pub db: DB,
    pub damages: Vec<Damage>,
}

/// Makes the folder if it is missing. It is for this user only: everybody's mail is in it, and RocksDB
/// makes its files readable for all.
pub(super) fn make_private(path: &Path) -> Result<(), StoreError> {
    let make = || -> std::io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let mode = std::fs::metadata(path)?.permissions().mode();
        if mode & 0o077 == 0 { Ok(()) } else { std::fs::set_permissions(path, Permissions::from_mode(0o700)) }
    };
    make().map_err(|error| {
        StoreError::Failed(format!(
            "the folder cannot be made or closed to others: {error}; it must belong to the user that runs postrider"
        ))
    })
}

/// Locks the folder. A process that is just being started by the one that had it open holds a copy of
/// the lock for a moment, so it is tried for [`LOCK_PATIENCE`].
pub(super) fn lock(path: &Path) -> Result<Witness, StoreError> {
    let begun = Instant::now();
    loop {
        match Witness::open(path).map_err(|error| access_error(&error.to_string()))? {
            Some(witness) => return Ok(witness),
            None if begun.elapsed() < LOCK_PATIENCE => std::thread::sleep(Duration::from_millis(5)),
            None => return Err(StoreError::InUse),
        }
    }
}

/// Opens the database in a folder that is locked.
pub(super) fn open(path: &Path, found: Found) -> Result<Opened, StoreError> {
    let io = |error: std::io::Error| access_error(&error.to_string());
    rebuild::finish(path).map_err(io)?;
    let is_half_repaired = replay::is_pending(path).map_err(io)?;
    let examined = examine::examine(path, found).map_err(io)?;
    examine::mend(path, &examined).map_err(io)?;
    let Examined { mut damages, is_new, wants_repair, .. } = examined;
    if is_new && !is_half_repaired && found.statement().synced > 0 {
        // Beginning anew would hide the loss.
        return Err(StoreError::Damaged(
            "all files of the database are gone although mail was in it; put them back, or remove the folder to begin without that mail".into(),
        ));
    }
    if wants_repair || is_half_repaired {
        repair(path, &mut damages)?;
    }
    let db = match open_database(path, true) {
        Ok(db) => db,
        Err(error) if is_damage(&error) => reopen_damaged(path, &error, &mut damages)?,
        Err(error) => return Err(open_error(&error)),
    };
    let last = db.latest_sequence_number().max(replay::write_back(path, &db)?);
    damages.extend(found.missing_after(last));
    Ok(Opened { db, damages })
}

/// What could not be opened as it is: first without comparing log files with RocksDB's own list, then
/// from the tables that are there.
fn reopen_damaged(path: &Path, error: &rocksdb::Error, damages: &mut Vec<Damage>) -> Result<DB, StoreError> {
    damages.push(Damage::new("store", format!("cannot be opened as it is: {error}; what can be read is kept")));
    examine::keep_all(path, damages);
    if let Ok(db) = open_database(path, false) {
        return Ok(db);
    }
    repair(path, damages)?;
    open_database(path, false).map_err(|error| open_error(&error))
}

/// The logs are written again by `open`.
fn repair(path: &Path, damages: &mut Vec<Damage>) -> Result<(), StoreError> {
    replay::set_aside(path).map_err(|error| access_error(&error.to_string()))?;
    let before = lost_tables(path);
    let (options, _) = options(path, false);
    DB::repair(&options, path).map_err(|error| open_error(&error))?;
    for name in lost_tables(path).into_iter().filter(|name| !before.contains(name)) {
        damages.push(Damage::new(name, format!("cannot be read and was moved to {LOST_FOLDER}/")));
    }
    Ok(())
}

/// Tables that RocksDB's repair could not read, by their names.
fn lost_tables(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path.join(LOST_FOLDER)).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name.ends_with(".sst"));
    names.sort_unstable();
    names
}

/// For a look only: nothing is changed, not even what a crash left.
pub(super) fn open_read_only(path: &Path) -> Result<DB, StoreError> {
    // With the comparison of log files: where its own list names some, RocksDB (11.8) wants to strike
    // them out otherwise, which it cannot do here, and the process dies by a null pointer.
    let (options, cache) = options(path, true);
    // An older store may have fewer tables.
    let there = DB::list_cf(&options, path).map_err(|error| open_error(&error))?;
    let mut families = families(path, &cache);
    families.retain(|family| there.iter().any(|name| name == family.name()));
    DB::open_cf_descriptors_read_only(&options, path, families, false).map_err(|error| open_error(&error))
}

pub(super) fn open_database(path: &Path, verify_logs: bool) -> Result<DB, rocksdb::Error> {
    let (mut options, cache) = options(path, verify_logs);
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    DB::open_cf_descriptors(&options, path, families(path, &cache))
}

fn families(path: &Path, cache: &Cache) -> Vec<ColumnFamilyDescriptor> {
    Table::ALL
        .iter()
        .map(|table| ColumnFamilyDescriptor::new(table.name(), table_options(*table, wal_bytes(path), cache)))
        .collect()
}

fn options(path: &Path, verify_logs: bool) -> (Options, Cache) {
    let mut options = Options::default();
    // Every log was read and made whole before (`examine`); what RocksDB then cannot read is the end.
    // The stricter modes do not use log files again.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_recycle_log_file_num(WALS_RECYCLED);
    options.set_track_and_verify_wals_in_manifest(verify_logs);
    options.set_paranoid_checks(true);
    options.set_max_total_wal_size(wal_bytes(path));
    options.set_db_write_buffer_size(MEMTABLE_BYTES.min(wal_bytes(path) as usize));
    options.set_keep_log_file_num(4);
    options.set_max_background_jobs(2);
    // What is read together was mostly written together: let the system read ahead.
    options.set_advise_random_on_open(false);
    (options, Cache::new_lru_cache(CACHE_BYTES))
}

/// What log files may take of this file system.
fn wal_bytes(path: &Path) -> u64 {
    let size = rustix::fs::statvfs(path).map_or(u64::MAX, |stat| stat.f_blocks.saturating_mul(stat.f_frsize));
    (size / WAL_SHARE).clamp(WAL_BYTES_MIN, WAL_BYTES_MAX)
}

fn table_options(table: Table, wal_bytes: u64, cache: &Cache) -> Options {
    let mut options = Options::default();
    options.set_compression_type(match table {
        // As plain values: in blob files they were taken no faster (1 to 100 KiB, within 3 % of the load's
        // own speed, same bytes written), and after 200,000 had come and gone 367 MiB were left, not 239.
        Table::Body => DBCompressionType::Lz4,
        // Tables of the journal are written once and kept for weeks.
        Table::Journal => DBCompressionType::Lz4hc,
        _ => DBCompressionType::None,
    });
    // Bodies come and go; most are deleted before they are flushed.
    let buffer = if table == Table::Body { 64 << 20 } else { 16 << 20 };
    options.set_write_buffer_size(buffer.min(wal_bytes as usize / 2));
    if matches!(table, Table::Due | Table::Recipient | Table::Message | Table::Body) {
        // Deleted keys pile up at the front of the due index; compact where they are many.
        options.add_compact_on_deletion_collector_factory(4096, 2048, 0.5);
    }
    let mut blocks = BlockBasedOptions::default();
    if table == Table::Journal {
        // Stories are many and seldom read; in large blocks what repeats in them is stored once.
        blocks.set_block_size(JOURNAL_BLOCK_BYTES);
    }
    blocks.set_block_cache(cache);
    // Indexes in pieces: in one they would be as long as the queue, and push each other out of the cache.
    blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_top_level_index_and_filter(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks.set_format_version(6);
    options.set_block_based_table_factory(&blocks);
    options
}

/// Files that are gone or not what they were, as against a disk that does not work now.
fn is_damage(error: &rocksdb::Error) -> bool {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::Corruption | ErrorKind::NotFound | ErrorKind::InvalidArgument => true,
        ErrorKind::IOError => text.contains("No such file"),
        _ => false,
    }
}

/// The lock has no error kind of its own: RocksDB says "IO error: … lock …/LOCK: …", or that this
/// process holds it.
fn open_error(error: &rocksdb::Error) -> StoreError {
    let text = error.to_string();
    if error.kind() == ErrorKind::IOError && text.contains("lock") && text.contains("/LOCK: ") {
        return StoreError::InUse;
    }
    access_error(&text)
}

fn access_error(text: &str) -> StoreError {
    if text.contains("Permission denied") {
        return StoreError::Failed(format!("{text}; the folder must belong to the user that runs postrider"));
    }
    StoreError::Failed(text.to_owned())
}

/// What the witness can say of a database that is open.
pub(super) fn statement(path: &Path, synced: u64) -> Statement {
    let manifest = examine::newest_manifest(path).ok().flatten();
    let len = |path: &PathBuf| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    Statement { synced, manifest: manifest.map_or((0, 0), |(number, path)| (number, len(&path))) }
}
