//! Giving back at once the space of what has been deleted. RocksDB does it by itself in time; this is
//! for those who need the space now.

use rocksdb::{BottommostLevelCompaction, CompactOptions};

use super::{Store, StoreError, Table};

impl Store {
    /// Rewrites every table without what is gone. Reading and writing go on meanwhile.
    pub fn compact(&self) -> Result<(), StoreError> {
        // What was deleted before it reached a file leaves nothing to rewrite.
        self.flush()?;
        for table in Table::ALL {
            // Opened anew for each table: who waits for the database to close waits for one at most.
            let open = self.open_database()?;
            let Some(family) = open.family(table) else { continue };
            let mut options = CompactOptions::default();
            options.set_exclusive_manual_compaction(false);
            options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
            open.db.compact_range_cf_opt(family, None::<&[u8]>, None::<&[u8]>, &options);
        }
        Ok(())
    }
}
