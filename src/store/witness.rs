//! The witness: a small file beside the database that says up to which write everything was on disk.
//!
//! A log file that lost its end looks like one that was never longer, and RocksDB opens it without a
//! word. The witness is written after each sync and before anybody is told, so what it says was on
//! disk; if the database ends before that, mail is missing and [`super::open`] says so.
//!
//! It is not synced itself: after a power cut it may say less than is true, never more. Two copies in
//! turn, so that a torn write leaves one. Who has it open has it locked, and with it the folder.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::damage::Damage;

/// Its name in the folder of the store.
pub const FILE_NAME: &str = "WITNESS";
const MAGIC: &[u8; 8] = b"postrW01";
/// Bytes of one copy: magic, count, sequence, number and length of the manifest, checksum.
const COPY_BYTES: usize = 8 + 8 + 8 + 8 + 8 + 4;
/// Where the second copy begins, in bytes; on a sector of its own.
const SECOND_AT: u64 = 4096;

/// What it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statement {
    /// Everything up to this sequence number was on disk.
    pub synced: u64,
    /// Number and least length, in bytes, of RocksDB's MANIFEST file.
    pub manifest: (u64, u64),
}

/// The open file.
#[derive(Debug)]
pub struct Witness {
    file: File,
    count: u64,
}

/// What was found at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No file, or an empty one.
    Nothing,
    /// Neither copy is sound.
    Damaged,
    /// What the newest sound copy says; whether the other one is sound too.
    Says(Statement, bool),
}

impl Found {
    /// What is missing from a database whose last write has this sequence number.
    pub fn missing_after(self, last: u64) -> Option<Damage> {
        let missing = self.statement().synced.checked_sub(last).filter(|missing| *missing > 0)?;
        Some(Damage::new("log files", format!("the newest {missing} writes are gone, and mail that was in them")))
    }

    pub fn statement(self) -> Statement {
        match self {
            Found::Says(says, _) => says,
            Found::Nothing | Found::Damaged => Statement::default(),
        }
    }
}

impl Witness {
    /// Locks the folder: None if another one has it.
    pub fn open(folder: &Path) -> io::Result<Option<Witness>> {
        let path = folder.join(FILE_NAME);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Witness { file, count: 0 })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub fn read(&self) -> io::Result<Found> {
        let len = self.file.metadata()?.len();
        if len == 0 {
            return Ok(Found::Nothing);
        }
        let copies = [0, SECOND_AT].map(|at| {
            let mut copy = [0; COPY_BYTES];
            self.file.read_exact_at(&mut copy, at).ok().and_then(|()| decode(&copy))
        });
        let newest = copies.iter().flatten().max_by_key(|(count, _)| *count);
        // A new file whose second copy was not begun when the process was killed.
        let is_half_begun = len <= SECOND_AT && matches!(copies, [Some((1, _)), None]);
        let is_whole = is_half_begun || copies.iter().all(Option::is_some);
        Ok(newest.map_or(Found::Damaged, |(_, says)| Found::Says(*says, is_whole)))
    }

    /// Replaces both copies by this statement, and brings them to disk.
    pub fn begin(&mut self, says: Statement) -> io::Result<()> {
        self.write(says)?;
        self.write(says)?;
        self.file.sync_all()
    }

    /// One write into the page cache.
    pub fn write(&mut self, says: Statement) -> io::Result<()> {
        self.count += 1;
        let at = if self.count.is_multiple_of(2) { SECOND_AT } else { 0 };
        self.file.write_all_at(&encode(self.count, says), at)
    }
}

fn encode(count: u64, says: Statement) -> [u8; COPY_BYTES] {
    let mut copy = [0; COPY_BYTES];
    let (head, checksum) = copy.split_at_mut(COPY_BYTES - 4);
    let words = [count, says.synced, says.manifest.0, says.manifest.1].map(u64::to_be_bytes);
    let bytes = MAGIC.iter().chain(words.as_flattened());
    head.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
    checksum.copy_from_slice(&crc32c::crc32c(head).to_be_bytes());
    copy
}

fn decode(copy: &[u8]) -> Option<(u64, Statement)> {
    let (head, checksum) = copy.split_at_checked(COPY_BYTES - 4)?;
    let is_sound = head.starts_with(MAGIC) && crc32c::crc32c(head).to_be_bytes() == checksum;
    let word = |at: usize| Some(u64::from_be_bytes(head.get(8 + 8 * at..16 + 8 * at)?.try_into().ok()?));
    let says = Statement { synced: word(1)?, manifest: (word(2)?, word(3)?) };
    is_sound.then_some((word(0)?, says))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_newest_sound_copy_counts() {
        let folder = tempfile::tempdir().unwrap();
        let mut witness = Witness::open(folder.path()).unwrap().unwrap();
        assert!(Witness::open(folder.path()).unwrap().is_none(), "locked");
        assert_eq!(witness.read().unwrap(), Found::Nothing);
        let says = |synced| Statement { synced, manifest: (5, 100 + synced) };
        witness.begin(says(1)).unwrap();
        for synced in 2..=7 {
            witness.write(says(synced)).unwrap();
            assert_eq!(witness.read().unwrap(), Found::Says(says(synced), true));
        }
        let path = folder.path().join(FILE_NAME);
        let bytes = std::fs::read(&path).unwrap();
        let flipped = |at: usize| {
            let mut bytes = bytes.clone();
            bytes[at] ^= 4;
            std::fs::write(&path, bytes).unwrap();
            witness.read().unwrap()
        };
        // The seventh statement was the eighth write: in the second copy.
        for at in 0..COPY_BYTES {
            assert_eq!(flipped(at), Found::Says(says(7), false), "{at}");
            assert_eq!(flipped(SECOND_AT as usize + at), Found::Says(says(6), false), "{at}");
        }
        std::fs::write(&path, b"short").unwrap();
        assert_eq!(witness.read().unwrap(), Found::Damaged);
    }

    /// Between the two writes of the very first start.
    #[test]
    fn a_kill_in_the_first_beginning_is_no_damage() {
        let folder = tempfile::tempdir().unwrap();
        let mut witness = Witness::open(folder.path()).unwrap().unwrap();
        let says = Statement { synced: 3, manifest: (5, 100) };
        witness.write(says).unwrap();
        assert_eq!(witness.read().unwrap(), Found::Says(says, true));
        // One that was used has two.
        witness.write(says).unwrap();
        witness.write(says).unwrap();
        std::fs::File::options().write(true).open(folder.path().join(FILE_NAME)).unwrap().set_len(100).unwrap();
        assert_eq!(witness.read().unwrap(), Found::Says(says, false));
    }
}
