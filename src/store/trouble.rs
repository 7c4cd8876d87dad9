//! When the store fails, or is found damaged: it is closed, what nobody was told of is cut out, and it
//! is opened again once that works, made anew of what can be read if a table is damaged.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use rocksdb::ErrorKind;

use super::damage::{DAMAGES_MAX, Damage};
use super::witness::Found;
use super::{Database, FORMAT_KEY, Health, Store, StoreError, Table, WITNESS_KEY, lock, open, rebuild, wal};

/// How long closing waits for readers, which take microseconds.
const CLOSE_WAIT: Duration = Duration::from_secs(10);

impl Store {
    /// What was found damaged, since the start and at it, oldest first; bounded.
    pub fn damages(&self) -> Vec<Damage> {
        lock(&self.trouble).damages.clone()
    }

    /// How many of them; more than are kept if there are very many.
    pub fn damage_count(&self) -> usize {
        self.damage_count.load(Ordering::Acquire)
    }

    pub(super) fn note(&self, damage: Damage) {
        let mut trouble = lock(&self.trouble);
        self.damage_count.fetch_add(1, Ordering::AcqRel);
        if trouble.damages.len() < DAMAGES_MAX {
            trouble.damages.push(damage);
        }
    }

    pub fn health(&self) -> Health {
        lock(&self.trouble).health.clone()
    }

    /// How often it was opened again since the start.
    pub fn reopened(&self) -> u64 {
        lock(&self.trouble).reopened
    }

    /// What every start reads must be readable, or it would not start; then the database is made anew of
    /// what is.
    pub(super) fn make_readable(&self) -> Result<(), StoreError> {
        let read = || -> Result<(), StoreError> {
            self.get(Table::Meta, FORMAT_KEY)?;
            self.get(Table::Meta, WITNESS_KEY)?;
            Table::ALL.into_iter().try_for_each(|table| self.last(table).map(drop))
        };
        match read() {
            Err(StoreError::Damaged(_)) if self.close() => {}
            other => return other,
        }
        let opened = self.rebuild(open::open(&self.path, Found::Nothing)?)?;
        self.last.store(opened.db.latest_sequence_number(), Ordering::Release);
        self.database.store(Some(Arc::new(Database { db: opened.db })));
        opened.damages.into_iter().for_each(|damage| self.note(damage));
        Ok(())
    }

    /// Closes the database after a failed write.
    pub(super) fn fail(&self, error: rocksdb::Error) -> StoreError {
        let is_damage = error.kind() == ErrorKind::Corruption;
        let error = StoreError::from(error);
        {
            let mut trouble = lock(&self.trouble);
            trouble.health = Health::Failed { since: SystemTime::now(), why: error.to_string() };
            trouble.wants_rebuild |= is_damage;
        }
        if self.close() {
            // Done again before the next opening if it fails now.
            let _ = wal::cut(&self.path, self.last.load(Ordering::Acquire));
        }
        error
    }

    /// True when nobody has it open any more.
    pub(super) fn close(&self) -> bool {
        let Some(mut open) = self.database.swap(None) else { return true };
        let begun = Instant::now();
        loop {
            match Arc::try_unwrap(open) {
                Ok(database) => {
                    drop(database);
                    return true;
                }
                Err(shared) if begun.elapsed() < CLOSE_WAIT => open = shared,
                Err(shared) => {
                    // Kept, so that the next try can wait for it.
                    self.database.store(Some(shared));
                    return false;
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Tries to open the database again after trouble. Gives the damages that were found by it.
    pub fn reopen(&self) -> Result<Vec<Damage>, StoreError> {
        if !self.close() {
            return Err(StoreError::Failed("somebody is still reading from it".into()));
        }
        let failed = |error: std::io::Error| StoreError::Failed(error.to_string());
        let last = self.last.load(Ordering::Acquire);
        wal::cut(&self.path, last).map_err(failed)?;
        let found = Found::Says(lock(&self.witness).says, true);
        let mut opened = open::open(&self.path, found)?;
        if lock(&self.trouble).wants_rebuild {
            opened = self.rebuild(opened)?;
        }
        self.last.store(opened.db.latest_sequence_number(), Ordering::Release);
        self.database.store(Some(Arc::new(Database { db: opened.db })));
        // Damage may have taken messages with it.
        self.census.begin_anew();
        // A write and a sync show that the disk takes them; if not, this closes it again.
        self.set_format(self.found_format)?;
        self.begin_testimony()?;
        let mut trouble = lock(&self.trouble);
        trouble.health = Health::Good;
        trouble.wants_rebuild = false;
        trouble.reopened += 1;
        drop(trouble);
        opened.damages.iter().cloned().for_each(|damage| self.note(damage));
        Ok(opened.damages)
    }

    /// Makes the database anew of what can be read.
    pub(super) fn rebuild(&self, opened: open::Opened) -> Result<open::Opened, StoreError> {
        let open::Opened { db, mut damages } = opened;
        self.database.store(Some(Arc::new(Database { db })));
        damages.extend(rebuild::copy(self)?);
        if !self.close() {
            return Err(StoreError::Failed("somebody is still reading from it".into()));
        }
        rebuild::take_over(&self.path, &damages).map_err(|error| StoreError::Failed(error.to_string()))?;
        let anew = open::open(&self.path, Found::Nothing)?;
        damages.extend(anew.damages);
        Ok(open::Opened { db: anew.db, damages })
    }

    pub(super) fn closed(&self) -> StoreError {
        let why = match self.health() {
            Health::Failed { why, .. } => why,
            Health::Good => "it is closed".to_owned(),
        };
        StoreError::Failed(format!("{why}; it is opened again as soon as that works"))
    }
}
