//! Giving back at once the space of what has been deleted. RocksDB does it by itself in time; this is
//! for those who need the space now.

use rocksdb::{BottommostLevelCompaction, CompactOptions};

use super::{Store, StoreError, Table};

impl Store {
    /// Rewrites every table without what is gone. Reading and writing go on meanwhile.
    pub fn compact(&self) -> Result<(), StoreError> {
        for table in Table::ALL {
            let family = self.family(table)?;
            // What was deleted before it reached a file leaves nothing to rewrite.
            self.db.flush_cf(family)?;
            let mut options = CompactOptions::default();
            options.set_exclusive_manual_compaction(false);
            options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
            self.db.compact_range_cf_opt(family, None::<&[u8]>, None::<&[u8]>, &options);
        }
        Ok(())
    }
}
