//! RocksDB, and nobody else names it: tables, atomic batches, ordered scans.
//!
//! One database, a column family per table. Keys and values are bytes; who owns a table encodes
//! them. All writes go through the committer of `queue::commit`, so that one sync carries many.

use std::fs::Permissions;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use bytes::Bytes;
use rocksdb::{
    ColumnFamilyDescriptor, DB, DBRecoveryMode, Direction, IteratorMode, Options, ReadOptions, WriteBatch, WriteOptions,
};

/// Raised when the meaning of a stored byte changes; see [`Store::open`].
pub const FORMAT_VERSION: u32 = 1;

/// Above every key of every table: they begin with an id or a time, which stay below all ones, or
/// with text.
const KEY_END: [u8; 16] = [0xff; 16];

/// The tables, each with its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    /// `store`: format version. `queue`: highest id.
    Meta,
    /// `queue`: message id → envelope and origin.
    Message,
    /// `queue`: message id ‖ chunk number → bytes.
    Body,
    /// `queue`: message id ‖ recipient number → delivery state.
    Recipient,
    /// `queue`: due time ‖ lane ‖ message id ‖ recipient number → nothing.
    Due,
    /// `events`: message id ‖ time ‖ count → event.
    Journal,
    /// `routing::loops`: counters and seen messages.
    Loops,
    /// `intake::pickup`: claims of files.
    Pickup,
    /// `queue`: message id → nothing; chunks in `Body` that belong to no message yet.
    Incoming,
}

impl Table {
    const ALL: [Table; 9] = [
        Table::Meta,
        Table::Message,
        Table::Body,
        Table::Recipient,
        Table::Due,
        Table::Journal,
        Table::Loops,
        Table::Pickup,
        Table::Incoming,
    ];

    fn name(self) -> &'static str {
        match self {
            Table::Meta => "meta",
            Table::Message => "message",
            Table::Body => "body",
            Table::Recipient => "recipient",
            Table::Due => "due",
            Table::Journal => "journal",
            Table::Loops => "loops",
            Table::Pickup => "pickup",
            Table::Incoming => "incoming",
        }
    }
}

/// What the caller can do: `Broken` wants a person, everything else may pass.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    #[error(
        "the store was written by a newer postrider (format {found}, this one knows {FORMAT_VERSION}); install that version again or point data_dir elsewhere"
    )]
    Newer { found: u32 },
    #[error("another postrider has it open; stop that one first, or give this one a data_dir of its own")]
    InUse,
    #[error("the store holds a record that cannot be read: {0}")]
    Damaged(String),
    #[error("the store failed: {0}")]
    Failed(String),
}

impl From<rocksdb::Error> for StoreError {
    fn from(error: rocksdb::Error) -> StoreError {
        StoreError::Failed(error.to_string())
    }
}

/// Writes that happen together or not at all.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    ops: Vec<Op>,
}

#[derive(Clone, Debug)]
enum Op {
    Put(Table, Box<[u8]>, Bytes),
    Delete(Table, Box<[u8]>),
}

impl Batch {
    pub fn new() -> Batch {
        Batch::default()
    }

    pub fn put(&mut self, table: Table, key: impl Into<Box<[u8]>>, value: impl Into<Bytes>) {
        self.ops.push(Op::Put(table, key.into(), value.into()));
    }

    pub fn delete(&mut self, table: Table, key: impl Into<Box<[u8]>>) {
        self.ops.push(Op::Delete(table, key.into()));
    }

    pub fn append(&mut self, mut other: Batch) {
        self.ops.append(&mut other.ops);
    }

    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Bytes of keys and values, to bound a group.
    pub fn bytes(&self) -> usize {
        let size = |op: &Op| match op {
            Op::Put(_, key, value) => key.len() + value.len(),
            Op::Delete(_, key) => key.len(),
        };
        self.ops.iter().map(size).sum()
    }
}

/// The database. Cheap to share by reference; every method may be called from any thread.
pub struct Store {
    db: DB,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.db.path().display())
    }
}

impl Store {
    /// Opens or creates the store in `path`. A store of an older format is read as it is; a newer
    /// one is refused. The folder is for this user only: everybody's mail is in it.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        make_private(path).map_err(|error| {
            StoreError::Failed(format!(
                "the folder cannot be made or closed to others: {error}; it must belong to the user that runs postrider"
            ))
        })?;
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        // Stop at damage instead of skipping it; a torn last record is what a crash leaves.
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        options.set_track_and_verify_wals_in_manifest(true);
        options.set_paranoid_checks(true);
        options.set_max_total_wal_size(256 << 20);
        options.set_keep_log_file_num(4);
        options.set_max_background_jobs(2);
        let families = Table::ALL.map(|table| ColumnFamilyDescriptor::new(table.name(), Self::table_options(table)));
        let db = DB::open_cf_descriptors(&options, path, families).map_err(open_error)?;
        let store = Store { db };
        store.check_format()?;
        Ok(store)
    }

    fn table_options(table: Table) -> Options {
        let mut options = Options::default();
        options.set_compression_type(match table {
            Table::Body | Table::Journal => rocksdb::DBCompressionType::Lz4,
            _ => rocksdb::DBCompressionType::None,
        });
        match table {
            // Bodies come and go; most are deleted before they are flushed.
            Table::Body => options.set_write_buffer_size(64 << 20),
            _ => options.set_write_buffer_size(16 << 20),
        }
        if matches!(table, Table::Due | Table::Recipient | Table::Message | Table::Body) {
            // Deleted keys pile up at the front of the due index; compact where they are many.
            options.add_compact_on_deletion_collector_factory(4096, 2048, 0.5);
        }
        options
    }

    fn check_format(&self) -> Result<(), StoreError> {
        match self.get(Table::Meta, b"format")? {
            None => {
                let mut batch = Batch::new();
                batch.put(Table::Meta, *b"format", FORMAT_VERSION.to_be_bytes().to_vec());
                self.write(std::slice::from_ref(&batch), true)
            }
            Some(bytes) => {
                let bytes: [u8; 4] =
                    bytes.as_slice().try_into().map_err(|_| StoreError::Damaged("meta/format".into()))?;
                let found = u32::from_be_bytes(bytes);
                if found > FORMAT_VERSION { Err(StoreError::Newer { found }) } else { Ok(()) }
            }
        }
    }

    fn family(&self, table: Table) -> Result<&rocksdb::ColumnFamily, StoreError> {
        self.db.cf_handle(table.name()).ok_or_else(|| StoreError::Damaged(format!("table {} is missing", table.name())))
    }

    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.db.get_cf(self.family(table)?, key)?)
    }

    /// Writes all batches as one. With `sync` they, and everything written before, are on disk on return.
    pub fn write(&self, batches: &[Batch], sync: bool) -> Result<(), StoreError> {
        let mut families = Vec::with_capacity(Table::ALL.len());
        for table in Table::ALL {
            families.push(self.family(table)?);
        }
        let family = |table: Table| families[table as usize];
        let mut merged = WriteBatch::with_capacity_bytes(batches.iter().map(|b| b.bytes() + 64).sum());
        for op in batches.iter().flat_map(|batch| &batch.ops) {
            match op {
                Op::Put(table, key, value) => merged.put_cf(family(*table), key, value),
                Op::Delete(table, key) => merged.delete_cf(family(*table), key),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        Ok(self.db.write_opt(merged, &options)?)
    }

    /// Brings what was written without sync to disk.
    pub fn sync(&self) -> Result<(), StoreError> {
        Ok(self.db.flush_wal(true)?)
    }

    /// Entries with `from <= key < to`, in order.
    pub fn range(&self, table: Table, from: &[u8], to: &[u8]) -> Result<Range<'_>, StoreError> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(from);
        options.set_iterate_upper_bound(to);
        let inner = self.db.iterator_cf_opt(self.family(table)?, options, IteratorMode::From(from, Direction::Forward));
        Ok(Range { inner })
    }

    /// Entries whose key begins with `prefix`, in order.
    pub fn prefix(&self, table: Table, prefix: &[u8]) -> Result<Range<'_>, StoreError> {
        let mut to = prefix.to_vec();
        while let Some(last) = to.pop() {
            if last < u8::MAX {
                to.push(last + 1);
                break;
            }
        }
        if to.is_empty() {
            to.extend_from_slice(&KEY_END);
        }
        self.range(table, prefix, &to)
    }

    /// The entry with the highest key.
    pub fn last(&self, table: Table) -> Result<Option<Entry>, StoreError> {
        let mut iterator = self.db.iterator_cf(self.family(table)?, IteratorMode::End);
        iterator.next().transpose().map_err(StoreError::from)
    }

    /// Forgets everything with `from <= key < to` in one write, without reading it.
    pub fn delete_range(&self, table: Table, from: &[u8], to: &[u8]) -> Result<(), StoreError> {
        Ok(self.db.delete_range_cf(self.family(table)?, from, to)?)
    }
}

/// RocksDB makes its files readable for all; the folder around them is not.
fn make_private(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let mode = std::fs::metadata(path)?.permissions().mode();
    if mode & 0o077 == 0 { Ok(()) } else { std::fs::set_permissions(path, Permissions::from_mode(0o700)) }
}

/// The lock has no error kind of its own: RocksDB says "IO error: … lock …/LOCK: …", or that this
/// process holds it.
fn open_error(error: rocksdb::Error) -> StoreError {
    let text = error.to_string();
    if error.kind() == rocksdb::ErrorKind::IOError && text.contains("lock") && text.contains("/LOCK: ") {
        return StoreError::InUse;
    }
    if text.contains("Permission denied") {
        return StoreError::Failed(format!("{text}; the folder must belong to the user that runs postrider"));
    }
    StoreError::Failed(text)
}

pub type Entry = (Box<[u8]>, Box<[u8]>);

/// Entries of a scan.
pub struct Range<'a> {
    inner: rocksdb::DBIterator<'a>,
}

impl Iterator for Range<'_> {
    type Item = Result<Entry, StoreError>;
    fn next(&mut self) -> Option<Self::Item> {
        self.inner.next().map(|entry| entry.map_err(StoreError::from))
    }
}
