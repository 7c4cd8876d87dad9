//! How many messages are queued, without looking at all of them each time: counted once after the start, a slice
//! at a time beside the work, and kept up with each write from then on.
//!
//! While it is being counted, a write and a slice exclude each other, so that a message that goes meanwhile
//! is either behind the slice and taken away again, or before it and never seen. What came in since has a
//! higher id than all that was there, and counts with its write.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard};

use rocksdb::ReadOptions;

use super::{Batch, KEY_END, Op, Store, StoreError, Table, lock};

/// Records counted in one go; so long a write may have to wait.
const SLICE_RECORDS: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Census {
    messages: AtomicI64,
    is_done: AtomicBool,
    course: Mutex<Course>,
}

/// How far the counting is.
#[derive(Debug, Default)]
pub(super) struct Course {
    /// The highest id when it began. None: it has not begun.
    last: Option<Box<[u8]>>,
    /// All up to here is counted.
    counted: Box<[u8]>,
}

impl Census {
    /// To be held while something is written.
    pub(super) fn writing(&self) -> Option<MutexGuard<'_, Course>> {
        if self.is_done.load(Ordering::Acquire) { None } else { Some(lock(&self.course)) }
    }

    /// These are written; `course` is what [`Census::writing`] gave.
    pub(super) fn wrote(&self, batches: &[Batch], course: Option<&Course>) {
        let counts = |key: &[u8]| match course {
            None => true,
            // Before it begins nothing counts: it will all be seen.
            Some(Course { last: None, .. }) => false,
            Some(Course { last: Some(last), counted }) => *key > **last || *key <= **counted,
        };
        let change: i64 = batches
            .iter()
            .flat_map(|batch| &batch.ops)
            .map(|op| match op {
                Op::Put(Table::Message, key, _) if counts(key) => 1,
                Op::Delete(Table::Message, key) if counts(key) => -1,
                _ => 0,
            })
            .sum();
        if change != 0 {
            self.messages.fetch_add(change, Ordering::Relaxed);
        }
    }

    /// What was known holds no more.
    pub(super) fn begin_anew(&self) {
        let mut course = lock(&self.course);
        *course = Course::default();
        self.is_done.store(false, Ordering::Release);
        self.messages.store(0, Ordering::Relaxed);
    }
}

impl Store {
    /// Messages that are queued. None: they are not all counted yet ([`Store::count_on`]).
    pub fn messages(&self) -> Option<u64> {
        let is_done = self.census.is_done.load(Ordering::Acquire);
        is_done.then(|| u64::try_from(self.census.messages.load(Ordering::Relaxed)).unwrap_or(0))
    }

    /// Counts the next slice of what was queued before the start. True: that was the last.
    pub fn count_on(&self) -> Result<bool, StoreError> {
        if self.census.is_done.load(Ordering::Acquire) {
            return Ok(true);
        }
        let mut course = lock(&self.census.course);
        if course.last.is_none() {
            let last = self.last(Table::Message)?.map(|(key, _)| key).unwrap_or_default();
            *course = Course { last: Some(last), counted: Box::default() };
        }
        let open = self.open_database()?;
        let last = course.last.clone().unwrap_or_default();
        let mut slice = 0;
        if let Some(family) = open.family(Table::Message) {
            let mut options = ReadOptions::default();
            options.set_iterate_upper_bound(KEY_END.as_slice());
            options.fill_cache(false);
            let mut iterator = open.db.raw_iterator_cf_opt(family, options);
            iterator.seek([&*course.counted, &[0]].concat());
            while let Some(key) = iterator.key().filter(|key| **key <= *last) {
                course.counted = key.into();
                slice += 1;
                if slice == SLICE_RECORDS {
                    break;
                }
                iterator.next();
            }
            iterator.status()?;
        }
        self.census.messages.fetch_add(slice as i64, Ordering::Relaxed);
        let is_done = slice < SLICE_RECORDS;
        self.census.is_done.store(is_done, Ordering::Release);
        Ok(is_done)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn change(store: &Store, put: &[u64], delete: &[u64]) {
        let mut batch = Batch::new();
        put.iter().for_each(|id| batch.put(Table::Message, id.to_be_bytes(), vec![1]));
        delete.iter().for_each(|id| batch.delete(Table::Message, id.to_be_bytes()));
        store.write(&[batch], false).unwrap();
    }

    #[test]
    fn what_comes_and_goes_while_it_is_counted_is_counted_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert!(store.count_on().unwrap());
        assert_eq!(store.messages(), Some(0));
        let many: Vec<u64> = (1..=10_000).collect();
        change(&store, &many, &[]);
        assert_eq!(store.messages(), Some(10_000));

        store.census.begin_anew();
        assert_eq!(store.messages(), None);
        change(&store, &[], &[5_000]);
        assert!(!store.count_on().unwrap());
        // Behind the slice, before it, and one that has come since and goes again.
        change(&store, &[20_000, 20_001], &[1, 2, 9_999]);
        change(&store, &[], &[20_000]);
        assert_eq!(store.messages(), None);
        while !store.count_on().unwrap() {}
        assert_eq!(store.messages(), Some(10_000 - 4 + 1));
        change(&store, &[], &[20_001, 10_000]);
        assert_eq!(store.messages(), Some(10_000 - 5));
    }

    #[test]
    fn a_store_that_is_opened_again_counts_what_it_finds() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        change(&store, &[7, 8, 9], &[]);
        drop(store);
        let store = Store::open(folder.path()).unwrap();
        change(&store, &[10], &[7]);
        assert!(store.count_on().unwrap());
        assert_eq!(store.messages(), Some(3));
    }
}
