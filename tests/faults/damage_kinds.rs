//! The kinds of damage, each to bytes that are in use, and what of the mail it touches.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::damage::{BLOCK_MESSAGES_MAX, Base};
use super::report::Random;
use super::wal;

#[derive(Debug)]
pub struct Damage {
    pub what: &'static str,
    /// The name of the file, as it must be named.
    pub file: String,
    /// Messages that the damage itself may take.
    pub touched: BTreeSet<u64>,
    /// So many others may go: their records share a block with the damaged place.
    pub spare: usize,
    /// False: the file holds nothing that anybody misses.
    pub must_be_noticed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Log,
    Table,
    Manifest,
    Current,
    /// A file of our own beside the database.
    Own,
    /// Nothing is read from it that cannot be made again.
    Spare,
}

fn kind(path: &Path) -> Option<Kind> {
    let name = path.file_name()?.to_str()?;
    let is = |suffix: &str| name.ends_with(suffix);
    if name.starts_with("LOG") || name == "LOCK" || name == "IDENTITY" || name.starts_with("OPTIONS-") {
        return Some(Kind::Spare);
    }
    if is(".log") {
        // One that holds nothing cannot be damaged.
        return (!wal::records(path).is_empty()).then_some(Kind::Log);
    }
    let kind = if is(".sst") || is(".blob") {
        Kind::Table
    } else if name.starts_with("MANIFEST-") {
        Kind::Manifest
    } else if name == "CURRENT" {
        Kind::Current
    } else {
        Kind::Own
    };
    (std::fs::metadata(path).ok()?.len() > 0).then_some(kind)
}

fn files(data: &Path, wanted: Kind) -> Vec<PathBuf> {
    let beside = std::fs::read_dir(data).unwrap().flatten().map(|entry| entry.path());
    let beside = beside.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("store")));
    let inside = std::fs::read_dir(data.join("store")).unwrap().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> =
        beside.chain(inside).filter(|path| path.is_file() && kind(path) == Some(wanted)).collect();
    files.sort();
    files
}

/// What the witness writes at once; see `store::witness`.
const OWN_COPY_BYTES: u64 = 44;

/// Damages one file beneath `data`; which, and where, is decided by the case's number and `random`.
pub fn damage(base: &Base, data: &Path, random: &mut Random, number: usize) -> Damage {
    // Most of them where the mail is.
    const TURNS: [(&str, Kind); 15] = [
        ("cut", Kind::Log),
        ("flip", Kind::Log),
        ("flip", Kind::Table),
        ("flip", Kind::Manifest),
        ("remove", Kind::Log),
        ("cut", Kind::Log),
        ("flip", Kind::Current),
        ("flip", Kind::Table),
        ("remove", Kind::Table),
        ("flip", Kind::Own),
        ("remove", Kind::Manifest),
        ("flip", Kind::Log),
        ("remove", Kind::Current),
        ("remove", Kind::Own),
        ("remove", Kind::Spare),
    ];
    let (what, kind) = TURNS[number % TURNS.len()];
    let found = files(data, kind);
    let (what, kind, found) =
        if found.is_empty() { ("flip", Kind::Log, files(data, Kind::Log)) } else { (what, kind, found) };
    let file = &found[random.below(found.len() as u64) as usize];
    let touched = match what {
        "cut" => cut(base, file, random),
        "flip" => flip(base, file, kind, random),
        _ => remove(base, file, kind),
    };
    let spare = if kind == Kind::Table && what == "flip" { BLOCK_MESSAGES_MAX } else { 0 };
    let name = file.file_name().unwrap().to_str().unwrap().to_owned();
    Damage { what, file: name, touched, spare, must_be_noticed: kind != Kind::Spare }
}

/// Behind the cut nothing is left; the record in which it falls goes too.
fn cut(base: &Base, log: &Path, random: &mut Random) -> BTreeSet<u64> {
    let records = wal::records(log);
    let at = random.below(records.last().unwrap().to as u64) as usize;
    let from = records.iter().find(|record| at < record.to).map_or(at, |record| record.from.min(at));
    let touched = base.marked(log, from, usize::MAX);
    OpenOptions::new().write(true).open(log).unwrap().set_len(at as u64).unwrap();
    touched
}

fn flip(base: &Base, path: &Path, kind: Kind, random: &mut Random) -> BTreeSet<u64> {
    let (at, touched) = if kind == Kind::Log {
        let records = wal::records(path);
        let record = records[random.below(records.len() as u64) as usize];
        let at = record.from + random.below((record.to - record.from) as u64) as usize;
        (at, base.marked(path, record.from, record.to))
    } else {
        let bytes = std::fs::metadata(path).unwrap().len();
        let mut at = random.below(bytes);
        if kind == Kind::Own {
            // Two short copies of one statement, each on a sector of its own; nothing lies between them.
            at = bytes.saturating_sub(OWN_COPY_BYTES) * (at % 2) + random.below(OWN_COPY_BYTES.min(bytes));
        }
        // Without its index or its properties nothing of a table can be read.
        let is_whole_table = kind == Kind::Table && at >= data_bytes(path);
        (at as usize, if is_whole_table { base.old() } else { BTreeSet::new() })
    };
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << random.below(8))], at as u64).unwrap();
    touched
}

/// How much of a table are its records: they come first, and its properties say so.
fn data_bytes(table: &Path) -> u64 {
    const PROPERTY: &[u8] = b"rocksdb.data.size";
    let bytes = std::fs::read(table).unwrap();
    let Some(at) = memchr::memmem::rfind(&bytes, PROPERTY) else { return 0 };
    // A varint: seven bits each, the lowest first.
    let digits = bytes[at + PROPERTY.len()..].iter().scan(false, |is_over, byte| {
        let digit = (!*is_over).then_some(u64::from(byte & 0x7f));
        *is_over |= byte & 0x80 == 0;
        digit
    });
    digits.enumerate().take(9).map(|(place, digit)| digit << (7 * place)).sum()
}

fn remove(base: &Base, path: &Path, kind: Kind) -> BTreeSet<u64> {
    let touched = match kind {
        Kind::Log => base.marked(path, 0, usize::MAX),
        Kind::Table => base.old(),
        _ => BTreeSet::new(),
    };
    std::fs::remove_file(path).unwrap();
    touched
}
