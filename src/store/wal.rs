//! RocksDB's log files (`000123.log`), read by ourselves before RocksDB does.
//!
//! RocksDB's recovery takes the first thing that it cannot read for the end and says nothing of what
//! came behind it. So we look first: [`scan`] walks along a file, gives every batch that is whole and
//! names what is not; [`rewrite`] makes a file of the whole ones only; [`cut`] takes off batches that
//! nobody was told of. The sequence numbers of the batches in a file are gapless, so a batch that is
//! gone altogether is noticed too.
//!
//! The format (RocksDB's `db/log_format.h`): blocks of 32 KiB; in them records of checksum (4, CRC-32C
//! masked, over what follows the length), length (2), type (1), and for files that may be used again
//! the number of the log (4), then the payload. A batch is one whole record or first, middle…, last;
//! it begins with its sequence number (8) and the number of its entries (4), all little-endian.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const BLOCK_BYTES: usize = 32 * 1024;
const HEADER_BYTES: usize = 7;
/// With the log's number.
const RECYCLABLE_HEADER_BYTES: usize = 11;
/// What RocksDB adds to a rotated checksum, so that a checksum of checksums is sound.
const MASK_DELTA: u32 = 0xa282_ead8;
/// Sequence number and count.
const BATCH_HEADER_BYTES: usize = 12;
/// A batch that is found behind damage may be so many sequence numbers ahead.
const PLAUSIBLE_LEAP: u64 = 1 << 20;
/// Records of kinds that hold no batch and may be passed over have this bit.
const SAFE_TO_IGNORE: u8 = 0x80;

/// A batch as it stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// Sequence number of its first entry.
    pub sequence: u64,
    /// Entries; each has a sequence number.
    pub count: u64,
    /// Where its first record begins.
    pub offset: u64,
    pub payload: &'a [u8],
}

impl Found<'_> {
    /// The sequence number of its last entry.
    pub fn last(&self) -> u64 {
        self.sequence.saturating_add(self.count).saturating_sub(1)
    }
}

/// What a walk along a file has seen besides the batches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Where the last whole batch ends; 0 if there is none.
    pub end: u64,
    /// Bytes of the file.
    pub len: u64,
    /// Offsets of what cannot be read although whole batches follow it.
    pub holes: Vec<u64>,
    /// Whether records carry the log's number.
    pub recyclable: bool,
}

/// Log files in a folder, oldest first, with their numbers.
pub fn files(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let is_log = path.extension().is_some_and(|extension| extension == "log");
        let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        if let (true, Some(number)) = (is_log, number) {
            files.push((number, path));
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Walks along a log file. Memory: one batch and one block.
pub fn scan(path: &Path, number: u64, mut visit: impl FnMut(Found<'_>)) -> io::Result<Walked> {
    let mut file = File::open(path)?;
    let mut walk = Walk { number: number as u32, len: file.metadata()?.len(), ..Walk::default() };
    let mut block = vec![0; BLOCK_BYTES];
    let mut at = 0;
    loop {
        let filled = fill(&mut file, &mut block)?;
        walk.block(at, block.get(..filled).unwrap_or_default(), &mut visit);
        at += filled as u64;
        if filled < BLOCK_BYTES {
            break;
        }
    }
    Ok(Walked { end: walk.end, len: walk.len, holes: walk.holes, recyclable: walk.recyclable })
}

/// Where a file of the same format that is not used again (RocksDB's MANIFEST) has its first record
/// that is not sound.
pub fn first_flaw(path: &Path) -> io::Result<Option<u64>> {
    let mut file = File::open(path)?;
    let mut walk = Walk::default();
    let mut block = vec![0; BLOCK_BYTES];
    let mut block_at = 0;
    loop {
        let filled = fill(&mut file, &mut block)?;
        let filled_block = block.get(..filled).unwrap_or_default();
        let mut at = 0;
        while let Some(rest) = filled_block.get(at..).filter(|rest| !rest.is_empty()) {
            match walk.record(rest) {
                Record::Part(_, _, length) | Record::Other(length) => at += length,
                Record::Stale if rest.len() < HEADER_BYTES && filled == BLOCK_BYTES => break,
                Record::Stale | Record::Bad => return Ok(Some(block_at + at as u64)),
            }
        }
        if filled < BLOCK_BYTES {
            return Ok(None);
        }
        block_at += filled as u64;
    }
}

fn fill(file: &mut File, block: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[derive(Default)]
struct Walk {
    number: u32,
    len: u64,
    end: u64,
    holes: Vec<u64>,
    recyclable: bool,
    /// The last sequence number that was seen.
    last: u64,
    /// A batch whose last part has not been seen, and where it began.
    parts: Vec<u8>,
    begun: Option<u64>,
    /// Something that could not be read; a hole if a batch follows it.
    doubt: Option<u64>,
}

/// What stands at one place of a block.
enum Record<'a> {
    /// Type as in files that are not used again (1 to 4), the payload, and its length with header.
    Part(u8, &'a [u8], usize),
    /// Holds no batch.
    Other(usize),
    /// Of an earlier log in a file that was used again, or nothing at all: no record of this log
    /// follows in this block.
    Stale,
    /// Should be one but is not.
    Bad,
}

impl Walk {
    fn block(&mut self, block_at: u64, block: &[u8], visit: &mut impl FnMut(Found<'_>)) {
        let mut at = 0;
        while let Some(rest) = block.get(at..).filter(|rest| rest.len() >= HEADER_BYTES) {
            let offset = block_at + at as u64;
            if rest.len() < RECYCLABLE_HEADER_BYTES && rest.iter().all(|byte| *byte == 0) {
                // Too little for a header: the writer went on in the next block.
                return;
            }
            match self.record(rest) {
                Record::Part(kind, payload, length) => {
                    self.part(kind, payload, offset, offset + length as u64, visit);
                    at += length;
                }
                Record::Other(length) => at += length,
                Record::Stale => {
                    self.drop_begun();
                    self.doubt.get_or_insert(offset);
                    return;
                }
                Record::Bad => {
                    self.drop_begun();
                    self.doubt.get_or_insert(offset);
                    // The length may be what is wrong, so what follows has to prove itself.
                    match (at + 1..block.len()).find(|next| self.is_plausible(block.get(*next..).unwrap_or_default())) {
                        Some(next) => at = next,
                        None => return,
                    }
                }
            }
        }
    }

    fn record<'a>(&mut self, rest: &'a [u8]) -> Record<'a> {
        let Some((header, _)) = rest.split_first_chunk::<HEADER_BYTES>() else { return Record::Stale };
        let [c0, c1, c2, c3, l0, l1, kind] = *header;
        let length = usize::from(u16::from_le_bytes([l0, l1]));
        if kind == 0 && length == 0 {
            return Record::Stale;
        }
        let recyclable = matches!(kind, 5..=8 | 11 | 131);
        let header_bytes = if recyclable { RECYCLABLE_HEADER_BYTES } else { HEADER_BYTES };
        let whole = header_bytes + length;
        let Some(covered) = rest.get(6..whole) else { return Record::Bad };
        if recyclable {
            let number = covered.get(1..5).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
            // Only a sound record can tell of an earlier log: a flipped bit in the number is damage.
            if number != Some(self.number) {
                return if is_sound([c0, c1, c2, c3], covered) { Record::Stale } else { Record::Bad };
            }
        }
        if !is_sound([c0, c1, c2, c3], covered) {
            return Record::Bad;
        }
        let payload = rest.get(header_bytes..whole).unwrap_or_default();
        match kind {
            1..=4 => Record::Part(kind, payload, whole),
            5..=8 => {
                self.recyclable = true;
                Record::Part(kind - 4, payload, whole)
            }
            10 | 11 => Record::Other(whole),
            kind if kind & SAFE_TO_IGNORE != 0 => Record::Other(whole),
            _ => Record::Bad,
        }
    }

    /// Does a batch begin here that comes soon after the last one? Checksum, the log's number and a
    /// fitting sequence number together: bytes of a message that look like a record do not get far.
    fn is_plausible(&mut self, rest: &[u8]) -> bool {
        match self.record(rest) {
            Record::Part(1 | 2, payload, _) => batch_header(payload)
                .is_some_and(|(sequence, _)| sequence > self.last && sequence - self.last <= PLAUSIBLE_LEAP),
            _ => false,
        }
    }

    fn part(&mut self, kind: u8, payload: &[u8], offset: u64, end: u64, visit: &mut impl FnMut(Found<'_>)) {
        match kind {
            1 | 2 => {
                if self.begun.is_some() {
                    self.doubt = self.doubt.or(self.begun);
                    self.drop_begun();
                }
                if kind == 1 {
                    self.whole(payload, offset, end, visit);
                } else {
                    self.begun = Some(offset);
                    self.parts.extend_from_slice(payload);
                }
            }
            _ if self.begun.is_none() => {
                // The rest of a batch whose beginning is lost.
                self.doubt.get_or_insert(offset);
            }
            3 => self.parts.extend_from_slice(payload),
            _ => {
                self.parts.extend_from_slice(payload);
                let whole = std::mem::take(&mut self.parts);
                let begun = self.begun.take().unwrap_or(offset);
                self.whole(&whole, begun, end, visit);
                self.parts = whole;
                self.parts.clear();
            }
        }
    }

    fn whole(&mut self, payload: &[u8], offset: u64, end: u64, visit: &mut impl FnMut(Found<'_>)) {
        let Some((sequence, count)) = batch_header(payload) else {
            self.doubt.get_or_insert(offset);
            return;
        };
        self.holes.extend(self.doubt.take());
        let found = Found { sequence, count, offset, payload };
        self.last = found.last();
        self.end = end;
        visit(found);
    }

    fn drop_begun(&mut self) {
        if let Some(begun) = self.begun.take() {
            self.doubt.get_or_insert(begun);
        }
        self.parts.clear();
    }
}

fn batch_header(payload: &[u8]) -> Option<(u64, u64)> {
    let header: [u8; BATCH_HEADER_BYTES] = payload.get(..BATCH_HEADER_BYTES)?.try_into().ok()?;
    let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3] = header;
    let sequence = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    Some((sequence, u64::from(u32::from_le_bytes([c0, c1, c2, c3]))))
}

fn is_sound(stored: [u8; 4], covered: &[u8]) -> bool {
    mask(crc32c::crc32c(covered)) == u32::from_le_bytes(stored)
}

fn mask(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(MASK_DELTA)
}

/// Takes off every batch behind sequence number `last`, in all log files of the folder, and brings
/// that to disk. Gives the number of batches.
pub fn cut(folder: &Path, last: u64) -> io::Result<usize> {
    let mut batches = 0;
    for (number, path) in files(folder)? {
        let mut from = None;
        let walked = scan(&path, number, |found| {
            if found.sequence > last {
                from.get_or_insert(found.offset);
                batches += 1;
            }
        })?;
        let end = from.unwrap_or(walked.end);
        if end < walked.len {
            shorten(&path, end)?;
        }
    }
    Ok(batches)
}

/// Ends a file here.
pub fn shorten(path: &Path, end: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(end)?;
    file.sync_all()
}

/// Replaces a file by one that has its whole batches only. As long as it was: RocksDB remembers how
/// long a file has to be at least.
pub fn rewrite(path: &Path, number: u64) -> io::Result<()> {
    let aside = path.with_extension("rewritten");
    let mut writer = Writer { file: io::BufWriter::new(File::create(&aside)?), number: number as u32, at: 0 };
    let mut failed = None;
    let walked = scan(path, number, |found| {
        if failed.is_none() {
            failed = writer.write(found.payload).err();
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let file = writer.file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.set_len(walked.len)?;
    file.sync_all()?;
    std::fs::rename(&aside, path)
}

struct Writer {
    file: io::BufWriter<File>,
    number: u32,
    /// Within the block.
    at: usize,
}

impl Writer {
    fn write(&mut self, mut payload: &[u8]) -> io::Result<()> {
        let mut is_first = true;
        loop {
            if BLOCK_BYTES - self.at < RECYCLABLE_HEADER_BYTES {
                self.file.write_all(&[0; RECYCLABLE_HEADER_BYTES][..BLOCK_BYTES - self.at])?;
                self.at = 0;
            }
            let (part, rest) = payload.split_at(payload.len().min(BLOCK_BYTES - self.at - RECYCLABLE_HEADER_BYTES));
            let kind = match (is_first, rest.is_empty()) {
                (true, true) => 5,
                (true, false) => 6,
                (false, false) => 7,
                (false, true) => 8,
            };
            self.record(kind, part)?;
            if rest.is_empty() {
                return Ok(());
            }
            (payload, is_first) = (rest, false);
        }
    }

    fn record(&mut self, kind: u8, part: &[u8]) -> io::Result<()> {
        let mut crc = crc32c::crc32c(&[kind]);
        crc = crc32c::crc32c_append(crc, &self.number.to_le_bytes());
        crc = crc32c::crc32c_append(crc, part);
        self.file.write_all(&mask(crc).to_le_bytes())?;
        self.file.write_all(&u16::try_from(part.len()).unwrap_or(u16::MAX).to_le_bytes())?;
        self.file.write_all(&[kind])?;
        self.file.write_all(&self.number.to_le_bytes())?;
        self.file.write_all(part)?;
        self.at = (self.at + RECYCLABLE_HEADER_BYTES + part.len()) % BLOCK_BYTES;
        Ok(())
    }
}
