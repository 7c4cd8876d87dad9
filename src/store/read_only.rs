//! A store that is looked at while no server has it open: nothing in its folder is changed.
//!
//! While this lives it holds RocksDB's own lock, so that no server starts on a store that is being
//! looked at. Log files are replayed in memory only.

use std::fs::{File, OpenOptions};
use std::path::Path;

use rocksdb::{ColumnFamilyDescriptor, DB, DBRecoveryMode, Direction, IteratorMode, Options, ReadOptions};
use rustix::fs::{FlockOperation, fcntl_lock};

use super::{Entry, FORMAT_VERSION, StoreError, Table};

/// The file that RocksDB locks.
const LOCK_FILE: &str = "LOCK";

/// A store opened for reading.
pub struct ReadOnly {
    db: DB,
    _lock: Option<File>,
}

impl std::fmt::Debug for ReadOnly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReadOnly({})", self.db.path().display())
    }
}

impl ReadOnly {
    /// Opens the store in `path`, which must be there.
    pub fn open(path: &Path) -> Result<ReadOnly, StoreError> {
        let lock = lock(path)?;
        let mut options = Options::default();
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        options.set_paranoid_checks(true);
        // Tables that this version knows and the store does not have yet are not made here.
        let there = DB::list_cf(&options, path).map_err(|error| StoreError::Damaged(error.to_string()))?;
        let families = there.iter().map(|name| ColumnFamilyDescriptor::new(name, Options::default()));
        let db = DB::open_cf_descriptors_read_only(&options, path, families, false)
            .map_err(|error| StoreError::Damaged(error.to_string()))?;
        let store = ReadOnly { db, _lock: lock };
        match store.format()? {
            Some(found) if found > FORMAT_VERSION => Err(StoreError::Newer { found }),
            _ => Ok(store),
        }
    }

    /// The format in which it was written; none if it was never opened by a server.
    pub fn format(&self) -> Result<Option<u32>, StoreError> {
        let Some(bytes) = self.get(Table::Meta, b"format")? else { return Ok(None) };
        let bytes: [u8; 4] = bytes.as_slice().try_into().map_err(|_| StoreError::Damaged("meta/format".into()))?;
        Ok(Some(u32::from_be_bytes(bytes)))
    }

    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(family) = self.db.cf_handle(table.name()) else { return Ok(None) };
        self.db.get_cf(family, key).map_err(damaged)
    }

    /// Entries with `from <= key`, in order. What is read is not kept in memory.
    pub fn entries(&self, table: Table, from: &[u8]) -> impl Iterator<Item = Result<Entry, StoreError>> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        options.set_verify_checksums(true);
        let family = self.db.cf_handle(table.name());
        let inner =
            family.map(|family| self.db.iterator_cf_opt(family, options, IteratorMode::From(from, Direction::Forward)));
        inner.into_iter().flatten().map(|entry| entry.map_err(damaged))
    }

    /// About how many entries a table has.
    pub fn estimate(&self, table: Table) -> u64 {
        let Some(family) = self.db.cf_handle(table.name()) else { return 0 };
        self.db.property_int_value_cf(family, "rocksdb.estimate-num-keys").ok().flatten().unwrap_or(0)
    }
}

fn damaged(error: rocksdb::Error) -> StoreError {
    StoreError::Damaged(error.to_string())
}

/// RocksDB takes a POSIX lock on this file; opening for reading it takes none, so we do.
fn lock(path: &Path) -> Result<Option<File>, StoreError> {
    let file = match OpenOptions::new().read(true).write(true).open(path.join(LOCK_FILE)) {
        Ok(file) => file,
        // A store that was copied, such as a backup: nobody can have opened it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::Failed(format!("{}: {error}", path.join(LOCK_FILE).display()))),
    };
    match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::AGAIN) => Err(StoreError::InUse),
        Err(error) => Err(StoreError::Failed(format!("{}: {error}", path.join(LOCK_FILE).display()))),
    }
}
