//! Scans: entries in the order of their keys, read in slices.
//!
//! No iterator of RocksDB's outlives a slice, so a long scan pins no memory and does not keep the
//! database from being opened again; nor is it a snapshot. Where a piece of a table cannot be read the
//! scan says so once, and goes on behind it if it is asked again.

use rocksdb::{DBRawIterator, ReadOptions};

use super::{Store, StoreError, Table};

/// Entries of the first slice; each next one has four times as many.
const SLICE_ENTRIES_MIN: usize = 16;
const SLICE_ENTRIES_MAX: usize = 1024;
/// Bytes of keys and values after which a slice ends.
const SLICE_BYTES_MAX: usize = 1 << 20;

pub type Entry = (Box<[u8]>, Box<[u8]>);

/// Entries of a scan.
#[derive(Debug)]
pub struct Range<'a> {
    store: &'a Store,
    table: Table,
    from: Vec<u8>,
    to: Vec<u8>,
    slice: std::vec::IntoIter<Entry>,
    slice_entries: usize,
    failed: Option<StoreError>,
    is_done: bool,
}

impl<'a> Range<'a> {
    pub(super) fn new(store: &'a Store, table: Table, from: &[u8], to: &[u8]) -> Range<'a> {
        Range {
            store,
            table,
            from: from.to_vec(),
            to: to.to_vec(),
            slice: Vec::new().into_iter(),
            slice_entries: SLICE_ENTRIES_MIN,
            failed: None,
            is_done: false,
        }
    }

    /// So many entries will be wanted: they are read in one go.
    pub fn expecting(mut self, entries: usize) -> Range<'a> {
        self.slice_entries = entries.clamp(1, SLICE_ENTRIES_MAX);
        self
    }

    fn fill(&mut self) -> Result<(), StoreError> {
        let open = self.store.open_database()?;
        let Some(family) = open.family(self.table) else {
            self.is_done = true;
            return Ok(());
        };
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(self.to.as_slice());
        let mut iterator = open.db.raw_iterator_cf_opt(family, options);
        iterator.seek(&self.from);
        let (mut slice, mut bytes): (Vec<Entry>, usize) = (Vec::new(), 0);
        while let Some((key, value)) = iterator.item() {
            slice.push((key.into(), value.into()));
            bytes += key.len() + value.len();
            if slice.len() == self.slice_entries || bytes >= SLICE_BYTES_MAX {
                break;
            }
            iterator.next();
        }
        if let Some((key, _)) = slice.last() {
            self.from.clear();
            self.from.extend_from_slice(key);
            self.from.push(0);
        }
        match iterator.status() {
            Ok(()) => self.is_done = !iterator.valid(),
            Err(error) => {
                let error = StoreError::from(error);
                match (&error, behind(&mut iterator, &self.from, &self.to)) {
                    (StoreError::Damaged(_), Some(next)) => self.from = next,
                    _ => self.is_done = true,
                }
                self.failed = Some(in_table(self.table, error));
            }
        }
        self.slice_entries = (self.slice_entries * 4).min(SLICE_ENTRIES_MAX);
        self.slice = slice.into_iter();
        Ok(())
    }
}

fn in_table(table: Table, error: StoreError) -> StoreError {
    match error {
        StoreError::Damaged(what) => StoreError::Damaged(format!("table {}: {what}", table.name())),
        other => other,
    }
}

/// The first key after `from` that can be read, by the first eight bytes of the keys: larger and
/// larger steps until something can be read, then halving back.
fn behind(iterator: &mut DBRawIterator<'_>, from: &[u8], to: &[u8]) -> Option<Vec<u8>> {
    let mut first = [0; 8];
    first.iter_mut().zip(from).for_each(|(place, byte)| *place = *byte);
    let start = u64::from_be_bytes(first);
    let mut reads = |at: u64| {
        iterator.seek(at.to_be_bytes());
        iterator.status().is_ok()
    };
    let (mut bad, mut step) = (start, 1u64);
    let mut good = loop {
        let at = start.saturating_add(step);
        if reads(at) {
            break at;
        }
        if at == u64::MAX {
            return None;
        }
        bad = at;
        step = step.saturating_mul(2);
    };
    while good - bad > 1 {
        let middle = bad + (good - bad) / 2;
        if reads(middle) { good = middle } else { bad = middle }
    }
    let next = good.to_be_bytes().to_vec();
    (next.as_slice() < to).then_some(next)
}

impl Iterator for Range<'_> {
    type Item = Result<Entry, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.slice.next() {
                return Some(Ok(entry));
            }
            if let Some(error) = self.failed.take() {
                return Some(Err(error));
            }
            if self.is_done {
                return None;
            }
            if let Err(error) = self.fill() {
                self.is_done = true;
                return Some(Err(error));
            }
        }
    }
}
