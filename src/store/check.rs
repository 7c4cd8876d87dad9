//! A look at a store that nobody has open: every file, every record. Changes nothing.

use std::path::Path;

use super::damage::Damage;
use super::{KEY_END, Store, StoreError, Table, examine, open};

impl Store {
    /// Looks at every file and reads every record of a store that nobody has open. Changes nothing.
    pub fn check_files(path: &Path) -> Result<Vec<Damage>, StoreError> {
        let witness = open::lock(path)?;
        let failed = |error: std::io::Error| StoreError::Failed(error.to_string());
        let found = witness.read().map_err(failed)?;
        let mut damages = examine::examine(path, found).map_err(failed)?.damages;
        let db = match open::open_read_only(path) {
            Ok(db) => db,
            Err(StoreError::InUse) => return Err(StoreError::InUse),
            Err(error) => {
                damages.push(Damage::new("store", format!("cannot be opened: {error}")));
                return Ok(damages);
            }
        };
        damages.extend(found.missing_after(db.latest_sequence_number()));
        let store = Store::of(path, witness, Some(db), Vec::new());
        store.miss_witness(found)?;
        damages.extend(store.damages());
        for table in Table::ALL {
            for entry in store.range(table, &[], &KEY_END)? {
                match entry {
                    Ok(_) => {}
                    Err(StoreError::Damaged(what)) => damages.push(Damage::new(table.name(), what)),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(damages)
    }
}
