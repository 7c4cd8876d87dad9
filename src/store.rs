//! RocksDB, and nobody else names it: tables, atomic batches, ordered scans.
//!
//! One database, a column family per table. Keys and values are bytes; who owns a table encodes
//! them. All writes go through the committer of `queue::commit`, so that one sync carries many.
//!
//! What it promises beyond RocksDB: a write that failed does not come back ([`Store::write`]), what is
//! damaged is noticed, named and does not keep the rest from being read ([`Store::open`],
//! [`Store::damages`]), and after trouble with the disk the database can be opened again under a
//! running server ([`Store::reopen`]).

pub mod backup;
mod census;
mod check;
mod compact;
pub mod damage;
mod examine;
mod open;
mod range;
mod rebuild;
mod replay;
mod trouble;
mod wal;
mod witness;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use rocksdb::{DB, ErrorKind, IteratorMode, ReadOptions, WriteBatch, WriteOptions};

use damage::Damage;
pub use range::{Entry, Range};
use witness::{Found, Statement, Witness};

/// Raised when the meaning of a stored byte changes; see [`Store::open`].
pub const FORMAT_VERSION: u32 = 3;

/// Above every key of every table: they begin with an id or a time, which stay below all ones, or
/// with text.
const KEY_END: [u8; 16] = [0xff; 16];
const FORMAT_KEY: &[u8] = b"format";
/// There is a witness beside the database.
const WITNESS_KEY: &[u8] = b"witness";

/// The tables, each with its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    /// `store`: format version. `queue`: highest id. `delivery::shelf`: what is known of TLS elsewhere (`tls/` ‖ a
    /// letter ‖ what it is about). `bounce::suppression`: its list (`suppress/` ‖ address ‖ 0 ‖ scope). `events::outbox`:
    /// what webhooks are to be told (`events/` ‖ name ‖ 0 ‖ number ‖ key in `Journal`).
    Meta,
    /// `queue`: message id → envelope and origin.
    Message,
    /// `queue`: message id ‖ chunk number → bytes.
    Body,
    /// `queue`: message id ‖ recipient number → delivery state.
    Recipient,
    /// `queue`: lane ‖ part ‖ due time ‖ message id ‖ recipient number → place.
    Due,
    /// `events`: message id ‖ time ‖ count → event.
    Journal,
    /// `routing::loops`: counters and seen messages; `routing::sent`: Message-IDs of ours. `bounce::suppression`:
    /// bounces (`B`) and signs of life (`G`) of addresses; `intake::bounces`: whose a return path is (`V`).
    Loops,
    /// `intake::pickup`: claims of files.
    Pickup,
    /// `queue`: message id → nothing; chunks in `Body` that belong to no message yet.
    Incoming,
}

impl Table {
    /// In the order in which they were thought of: RocksDB numbers them by it, and log files name them by
    /// their number (`replay`). New ones come last.
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

    pub fn name(self) -> &'static str {
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
        match error.kind() {
            ErrorKind::Corruption => StoreError::Damaged(error.to_string()),
            _ => StoreError::Failed(error.to_string()),
        }
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
    DeleteRange(Table, Box<[u8]>, Box<[u8]>),
}

impl Batch {
    pub fn new() -> Batch {
        Batch::default()
    }

    pub fn put(&mut self, table: Table, key: impl Into<Box<[u8]>>, value: impl Into<Bytes>) {
        self.ops.push(Op::Put(table, key.into(), value.into()));
    }

    /// For a record that is there: it goes and comes, so that who counts records ([`Store::messages`]) does not count
    /// it twice.
    pub fn replace(&mut self, table: Table, key: impl Into<Box<[u8]>>, value: impl Into<Bytes>) {
        let key = key.into();
        self.delete(table, key.clone());
        self.put(table, key, value);
    }

    pub fn delete(&mut self, table: Table, key: impl Into<Box<[u8]>>) {
        self.ops.push(Op::Delete(table, key.into()));
    }

    /// Everything with `from <= key < to`.
    pub fn delete_range(&mut self, table: Table, from: impl Into<Box<[u8]>>, to: impl Into<Box<[u8]>>) {
        self.ops.push(Op::DeleteRange(table, from.into(), to.into()));
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
            Op::DeleteRange(_, from, to) => from.len() + to.len(),
        };
        self.ops.iter().map(size).sum()
    }
}

/// Whether it can be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Good,
    /// Nothing is read or written until [`Store::reopen`] succeeds.
    Failed {
        since: SystemTime,
        why: String,
    },
}

/// The database. Cheap to share by reference; every method may be called from any thread.
pub struct Store {
    path: PathBuf,
    /// None while it is closed because of trouble.
    database: ArcSwapOption<Database>,
    /// Sequence number of the last write that succeeded.
    last: AtomicU64,
    damage_count: AtomicUsize,
    trouble: Mutex<Trouble>,
    witness: Mutex<Testimony>,
    census: census::Census,
    found_format: u32,
}

struct Database {
    db: DB,
}

#[derive(Debug)]
struct Trouble {
    health: Health,
    /// A table was damaged, so opening it again is not enough.
    wants_rebuild: bool,
    damages: Vec<Damage>,
    reopened: u64,
}

#[derive(Debug)]
struct Testimony {
    witness: Witness,
    says: Statement,
    manifest_looked_at: Instant,
}

/// How often the witness looks at the length of the manifest.
const MANIFEST_LOOK: Duration = Duration::from_secs(1);

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.path.display())
    }
}

impl Database {
    /// None only if it was opened for a look, and is older than the table.
    fn family(&self, table: Table) -> Option<&rocksdb::ColumnFamily> {
        self.db.cf_handle(table.name())
    }

    fn families(&self) -> Result<Vec<&rocksdb::ColumnFamily>, StoreError> {
        let missing = |table: Table| StoreError::Damaged(format!("table {} is missing", table.name()));
        Table::ALL.into_iter().map(|table| self.family(table).ok_or_else(|| missing(table))).collect()
    }
}

impl Store {
    /// Opens or creates the store in `path`. A store of an older format is read as it is; a newer
    /// one is refused. What is damaged is set aside and told of by [`Store::damages`].
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        open::make_private(path)?;
        let witness = open::lock(path)?;
        let found = witness.read().map_err(|error| StoreError::Failed(error.to_string()))?;
        let opened = open::open(path, found)?;
        let store = Store::of(path, witness, Some(opened.db), opened.damages);
        store.make_readable()?;
        let store = store.check_format()?;
        store.check_witness(found)?;
        store.begin_testimony()?;
        Ok(store)
    }

    /// Opens the store for a look only; nothing on disk is changed. Writes fail.
    pub fn open_read_only(path: &Path) -> Result<Store, StoreError> {
        let witness = open::lock(path)?;
        let db = open::open_read_only(path)?;
        Store::of(path, witness, Some(db), Vec::new()).read_format()
    }

    fn of(path: &Path, witness: Witness, db: Option<DB>, damages: Vec<Damage>) -> Store {
        let last = db.as_ref().map_or(0, DB::latest_sequence_number);
        let says = Statement { synced: last, manifest: (0, 0) };
        Store {
            path: path.to_owned(),
            database: ArcSwapOption::from(db.map(|db| Arc::new(Database { db }))),
            last: AtomicU64::new(last),
            damage_count: AtomicUsize::new(damages.len()),
            trouble: Mutex::new(Trouble { health: Health::Good, wants_rebuild: false, damages, reopened: 0 }),
            witness: Mutex::new(Testimony { witness, says, manifest_looked_at: Instant::now() }),
            census: census::Census::default(),
            found_format: FORMAT_VERSION,
        }
    }

    fn read_format(mut self) -> Result<Store, StoreError> {
        if let Some(bytes) = self.get(Table::Meta, FORMAT_KEY)? {
            let bytes = bytes.as_slice().try_into().map_err(|_| StoreError::Damaged("meta/format".into()))?;
            self.found_format = u32::from_be_bytes(bytes);
            if self.found_format > FORMAT_VERSION {
                return Err(StoreError::Newer { found: self.found_format });
            }
        }
        Ok(self)
    }

    fn check_format(self) -> Result<Store, StoreError> {
        if self.get(Table::Meta, FORMAT_KEY)?.is_none() {
            self.set_format(FORMAT_VERSION)?;
        }
        self.read_format()
    }

    /// The format that the store was in when it was opened.
    pub fn format(&self) -> u32 {
        self.found_format
    }

    /// Notes that the store is in this format now.
    pub fn set_format(&self, version: u32) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        batch.put(Table::Meta, FORMAT_KEY, version.to_be_bytes().to_vec());
        self.write(std::slice::from_ref(&batch), true)
    }

    /// The witness may be missing only where there never was one.
    fn miss_witness(&self, found: Found) -> Result<bool, StoreError> {
        let had_one = self.get(Table::Meta, WITNESS_KEY)?.is_some();
        if had_one && found == Found::Nothing {
            let what = "is gone, so whether the newest mail is there is not known; a new one is begun";
            self.note(Damage::new(witness::FILE_NAME, what));
        }
        Ok(had_one)
    }

    fn check_witness(&self, found: Found) -> Result<(), StoreError> {
        if !self.miss_witness(found)? {
            let mut batch = Batch::new();
            batch.put(Table::Meta, WITNESS_KEY, Bytes::from_static(&[1]));
            self.write(std::slice::from_ref(&batch), true)?;
        }
        Ok(())
    }

    fn begin_testimony(&self) -> Result<(), StoreError> {
        let says = open::statement(&self.path, self.last.load(Ordering::Acquire));
        let mut testimony = lock(&self.witness);
        testimony.says = says;
        testimony.witness.begin(says).map_err(|error| StoreError::Failed(error.to_string()))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Can it be read and written?
    pub fn is_open(&self) -> bool {
        self.database.load().is_some()
    }

    fn open_database(&self) -> Result<Arc<Database>, StoreError> {
        self.database.load_full().ok_or_else(|| self.closed())
    }

    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let open = self.database.load();
        let open = open.as_ref().ok_or_else(|| self.closed())?;
        let Some(family) = open.family(table) else { return Ok(None) };
        Ok(open.db.get_cf(family, key)?)
    }

    /// As [`Store::get`] for each key, in their order; entries that lie side by side are read together.
    pub fn get_many<K: AsRef<[u8]>>(&self, table: Table, keys: &[K]) -> Vec<Result<Option<Vec<u8>>, StoreError>> {
        let open = match self.open_database() {
            Ok(open) => open,
            Err(error) => return keys.iter().map(|_| Err(error.clone())).collect(),
        };
        let Some(family) = open.family(table) else { return keys.iter().map(|_| Ok(None)).collect() };
        let mut sorted: Vec<(&[u8], usize)> = keys.iter().enumerate().map(|(at, key)| (key.as_ref(), at)).collect();
        sorted.sort_unstable();
        let read = open.db.batched_multi_get_cf(family, sorted.iter().map(|(key, _)| *key), true);
        let mut values: Vec<_> = keys.iter().map(|_| Ok(None)).collect();
        for ((_, at), value) in sorted.into_iter().zip(read) {
            if let Some(place) = values.get_mut(at) {
                *place = value.map(|value| value.map(|value| value.to_vec())).map_err(StoreError::from);
            }
        }
        values
    }

    /// Writes all batches as one, from one thread at a time. With `sync` they, and everything written before, are on disk on
    /// return. On an error nothing of them is there, and nothing will be after the next opening: the
    /// database is closed, and what reached a log file is cut out. [`Store::reopen`] opens it again.
    pub fn write(&self, batches: &[Batch], sync: bool) -> Result<(), StoreError> {
        let open = self.open_database()?;
        let families = open.families()?;
        let family = |table: Table| families[table as usize];
        let mut merged = WriteBatch::with_capacity_bytes(batches.iter().map(|b| b.bytes() + 64).sum());
        for op in batches.iter().flat_map(|batch| &batch.ops) {
            match op {
                Op::Put(table, key, value) => merged.put_cf(family(*table), key, value),
                Op::Delete(table, key) => merged.delete_cf(family(*table), key),
                Op::DeleteRange(table, from, to) => merged.delete_range_cf(family(*table), from, to),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        let course = self.census.writing();
        let written = open.db.write_opt(merged, &options);
        self.settle(open, written, sync)?;
        self.census.wrote(batches, course.as_deref());
        Ok(())
    }

    /// Brings what was written without sync to disk.
    pub fn sync(&self) -> Result<(), StoreError> {
        let open = self.open_database()?;
        let synced = open.db.flush_wal(true);
        self.settle(open, synced, true)
    }

    fn settle(&self, open: Arc<Database>, result: Result<(), rocksdb::Error>, synced: bool) -> Result<(), StoreError> {
        if let Err(error) = result {
            drop(open);
            return Err(self.fail(error));
        }
        let last = open.db.latest_sequence_number();
        self.last.store(last, Ordering::Release);
        if synced {
            self.testify(last);
        }
        Ok(())
    }

    /// Tells the witness what is on disk.
    fn testify(&self, synced: u64) {
        let mut testimony = lock(&self.witness);
        if testimony.manifest_looked_at.elapsed() >= MANIFEST_LOOK {
            testimony.manifest_looked_at = Instant::now();
            testimony.says.manifest = open::statement(&self.path, synced).manifest;
        }
        testimony.says.synced = synced;
        let says = testimony.says;
        // A witness that cannot write says less than is true, which is no harm by itself.
        let _ = testimony.witness.write(says);
    }

    /// Entries with `from <= key < to`, in order. Not a snapshot; see [`range`](self::range).
    pub fn range(&self, table: Table, from: &[u8], to: &[u8]) -> Result<Range<'_>, StoreError> {
        Ok(Range::new(self, table, from, to))
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

    /// Entries with `from <= key < to`, the highest key first, at most so many: a slice, for who reads on from the
    /// last of them.
    pub fn newest(&self, table: Table, from: &[u8], to: &[u8], most: usize) -> Result<Vec<Entry>, StoreError> {
        let open = self.open_database()?;
        let Some(family) = open.family(table) else { return Ok(Vec::new()) };
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(from);
        options.set_iterate_upper_bound(to);
        let mut iterator = open.db.raw_iterator_cf_opt(family, options);
        iterator.seek_to_last();
        let mut entries: Vec<Entry> = Vec::new();
        while entries.len() < most {
            let Some((key, value)) = iterator.item() else { break };
            entries.push((key.into(), value.into()));
            iterator.prev();
        }
        iterator.status()?;
        Ok(entries)
    }

    /// The entry with the highest key.
    pub fn last(&self, table: Table) -> Result<Option<Entry>, StoreError> {
        let open = self.open_database()?;
        let Some(family) = open.family(table) else { return Ok(None) };
        let mut iterator = open.db.iterator_cf(family, IteratorMode::End);
        iterator.next().transpose().map_err(StoreError::from)
    }

    /// Writes what is in memory into tables, so that log files can go: after many deletions this gives
    /// space back.
    pub fn flush(&self) -> Result<(), StoreError> {
        let open = self.open_database()?;
        Ok(open.db.flush_cfs_opt(&open.families()?, &rocksdb::FlushOptions::default())?)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while one of these is held, so what is in them is sound.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
