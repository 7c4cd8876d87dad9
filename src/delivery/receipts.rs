//! What far ends have taken and the store does not say yet: so that a server that is killed in between does not
//! send it once more.
//!
//! An outcome is noted in the store with the next group of writes, and a group waits for the sync of the one
//! before it: milliseconds in which a kill would make a copy of everything that far ends have just taken. So
//! what they have taken is first appended to a file, by one write without sync, and a claim that finds its
//! receipt there after a crash ends as delivered without another try.
//!
//! | killed                                          | what follows                                      |
//! |-------------------------------------------------|---------------------------------------------------|
//! | before the receipt is written                   | tried again: a copy, if the far end had said 250  |
//! | while it is written                             | its checksum does not fit: as if it were not there|
//! | between receipt and mark                        | the receipt is found, the mark is made now        |
//! | after the mark                                  | the recipient is gone, the receipt means nothing  |
//! | by the power                                    | either may be lost: as before there were receipts |
//!
//! Two files take turns: the one not in use is emptied once all that stands in it is marked in the store, so
//! both stay small. A start gathers what is still of use in a third one. Without them (they cannot be written) there are more copies after a crash, and nothing else.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::message::MessageId;
use crate::smtp::Reply;

use super::{Delivered, Hop, Outcome};

/// Their folder, in the data folder.
const FOLDER: &str = "receipts";
const EARLIER: &str = "earlier";
const NAMES: [&str; 2] = ["0", "1"];
/// A file this long gives way to the other one, as soon as that may be emptied.
const TURN_BYTES: u64 = 256 * 1024;
/// What is read of a file, and what is written to one whose turn does not end.
const BYTES_MAX: u64 = 4 << 20;
/// Length and checksum, before each receipt.
const HEAD_BYTES: usize = 8;

/// One transaction that a far end has ended with a yes.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Receipt {
    id: MessageId,
    numbers: Vec<u32>,
    to: String,
    reply: Option<Reply>,
    tls: Option<String>,
    hop: Hop,
}

/// To be given back once the outcomes are marked in the store.
#[derive(Debug, Default)]
#[must_use]
pub struct Noted {
    /// Which file, and how many receipts in it.
    files: [usize; 2],
}

#[derive(Debug)]
pub struct Receipts {
    files: Mutex<Option<Files>>,
    /// From before the start.
    earlier: Mutex<HashMap<(MessageId, u32), Delivered>>,
}

#[derive(Debug)]
struct Files {
    files: [File; 2],
    bytes: [u64; 2],
    /// Receipts whose outcome is not marked yet.
    open: [usize; 2],
    in_use: usize,
}

impl Receipts {
    /// Reads what an earlier life has left. `is_queued`: is this recipient still there?
    pub fn open(data_dir: &Path, is_queued: impl Fn(MessageId, u32) -> bool) -> Receipts {
        let opened = Files::open(&data_dir.join(FOLDER), is_queued);
        let (files, earlier) = match opened {
            Ok((files, earlier)) => (Some(files), earlier),
            Err(error) => {
                tracing::warn!(%error, "{}/{FOLDER} cannot be used; a crash will make more copies", data_dir.display());
                (None, HashMap::new())
            }
        };
        Receipts { files: Mutex::new(files), earlier: Mutex::new(earlier) }
    }

    /// For a server that keeps none.
    pub fn none() -> Receipts {
        Receipts { files: Mutex::new(None), earlier: Mutex::default() }
    }

    /// Those recipients that have been taken before the start, if there are such.
    pub fn recall(&self, id: MessageId, numbers: impl Iterator<Item = u32>) -> Vec<(u32, Outcome)> {
        let mut earlier = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
        if earlier.is_empty() {
            return Vec::new();
        }
        let found = |number| Some((number, Outcome::Delivered(earlier.remove(&(id, number))?)));
        numbers.filter_map(found).collect()
    }

    /// Writes down what was taken. To be called before anything else is done about it.
    pub fn note(&self, id: MessageId, outcomes: &[(u32, Outcome)]) -> Noted {
        let mut noted = Noted::default();
        let mut bytes = Vec::new();
        let mut rest = outcomes;
        while let Some((first, after)) = rest.split_first() {
            rest = after;
            let (number, Outcome::Delivered(delivered)) = first else { continue };
            // Those of one transaction have the same answer, and follow each other.
            let same = after.iter().take_while(|(_, other)| *other == first.1).count();
            let numbers = std::iter::once(*number).chain(after.iter().take(same).map(|(number, _)| *number));
            write(&receipt(id, numbers.collect(), delivered), &mut bytes);
            rest = after.get(same..).unwrap_or_default();
        }
        if bytes.is_empty() {
            return noted;
        }
        let mut guard = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = guard.as_mut() {
            match files.append(&bytes) {
                Ok(Some(file)) => noted.files[file] += 1,
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "what was delivered cannot be written to {FOLDER}; a crash will make more copies");
                    *guard = None;
                }
            }
        }
        noted
    }

    /// They are marked in the store.
    pub fn marked(&self, noted: &Noted) {
        if noted.files == [0, 0] {
            return;
        }
        if let Some(files) = self.files.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            for (open, marked) in files.open.iter_mut().zip(noted.files) {
                *open = open.saturating_sub(marked);
            }
        }
    }
}

fn receipt(id: MessageId, numbers: Vec<u32>, delivered: &Delivered) -> Receipt {
    let Delivered { to, reply, tls, hop } = delivered.clone();
    Receipt { id, numbers, to, reply, tls, hop }
}

fn write(receipt: &Receipt, out: &mut Vec<u8>) {
    // Of plain data; if it could not be written, a copy after a crash would be all that follows.
    let Ok(value) = rmp_serde::to_vec(receipt) else { return };
    let Ok(length) = u32::try_from(value.len()) else { return };
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&crc32c::crc32c(&value).to_be_bytes());
    out.extend_from_slice(&value);
}

/// Those that are whole, up to the first that is not.
fn read(mut bytes: &[u8]) -> Vec<Receipt> {
    let mut found = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() {
        let [a, b, c, d, e, f, g, h] = *head;
        let (length, sum) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
        let Some(value) = rest.get(..length as usize).filter(|value| crc32c::crc32c(value) == sum) else { break };
        let Ok(receipt) = rmp_serde::from_slice(value) else { break };
        found.push(receipt);
        bytes = rest.get(value.len()..).unwrap_or_default();
    }
    found
}

type Earlier = HashMap<(MessageId, u32), Delivered>;

impl Files {
    fn open(folder: &Path, is_queued: impl Fn(MessageId, u32) -> bool) -> io::Result<(Files, Earlier)> {
        std::fs::create_dir_all(folder)?;
        let mut earlier = HashMap::new();
        let mut bytes = Vec::new();
        for name in [EARLIER, NAMES[0], NAMES[1]] {
            let mut found = Vec::new();
            match File::open(folder.join(name)) {
                Ok(file) => file.take(BYTES_MAX).read_to_end(&mut found)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for Receipt { id, numbers, to, reply, tls, hop } in read(&found) {
                let numbers: Vec<u32> = numbers.into_iter().filter(|number| is_queued(id, *number)).collect();
                if numbers.is_empty() {
                    continue;
                }
                let delivered = Delivered { to, reply, tls, hop };
                write(&receipt(id, numbers.clone(), &delivered), &mut bytes);
                earlier.extend(numbers.into_iter().map(|number| ((id, number), delivered.clone())));
            }
        }
        // In one step: a kill right here loses none of it.
        let new = folder.join("new");
        std::fs::write(&new, &bytes)?;
        std::fs::rename(&new, folder.join(EARLIER))?;
        let empty = |name: &str| {
            let file = OpenOptions::new().append(true).create(true).open(folder.join(name))?;
            file.set_len(0).map(|()| file)
        };
        let files = [empty(NAMES[0])?, empty(NAMES[1])?];
        Ok((Files { files, bytes: [0, 0], open: [0, 0], in_use: 0 }, earlier))
    }

    /// Which file they went into; none if both are full.
    fn append(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        let other = 1 - self.in_use;
        if self.bytes[self.in_use] >= TURN_BYTES && self.open[other] == 0 {
            self.files[other].set_len(0)?;
            self.bytes[other] = 0;
            self.in_use = other;
        }
        let (at, length) = (self.in_use, bytes.len() as u64);
        if self.bytes[at] + length > BYTES_MAX {
            return Ok(None);
        }
        self.files[at].write_all(bytes)?;
        self.bytes[at] += length;
        self.open[at] += 1;
        Ok(Some(at))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;
    use crate::message::id::IdSource;
    use crate::message::{HeldBy, Hold};

    fn delivered(to: &str) -> Outcome {
        let reply = Some(Reply::new(250, (2, 0), "2.0.0 queued"));
        Outcome::Delivered(Delivered { to: to.into(), reply, tls: Some("TLSv1.3".into()), hop: Hop::Relayed })
    }

    fn ids() -> (MessageId, MessageId) {
        let source = IdSource::new(0, 0);
        (source.next(1_000), source.next(1_000))
    }

    fn defer() -> Outcome {
        Outcome::Held(Hold::new(HeldBy::Other, "later"))
    }

    #[test]
    fn what_was_taken_and_not_marked_is_found_by_the_next_life() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = ids();
        let receipts = Receipts::open(folder.path(), |_, _| true);
        let _ = receipts.note(one, &[(0, delivered("a")), (1, delivered("a")), (2, defer()), (3, delivered("b"))]);
        let noted = receipts.note(other, &[(0, delivered("c"))]);
        receipts.marked(&noted);
        assert_eq!(receipts.recall(one, 0..4), []);
        drop(receipts);

        // The store says that this one is gone; and this life is killed before it has done anything.
        drop(Receipts::open(folder.path(), |id, _| id != other));
        let receipts = Receipts::open(folder.path(), |id, _| id != other);
        assert_eq!(receipts.recall(other, 0..1), []);
        assert_eq!(receipts.recall(one, 0..4), [(0, delivered("a")), (1, delivered("a")), (3, delivered("b"))]);
        assert_eq!(receipts.recall(one, 0..4), []);
        drop(receipts);

        let receipts = Receipts::open(folder.path(), |_, _| false);
        assert_eq!(receipts.recall(one, 0..4), []);
    }

    #[test]
    fn a_receipt_that_is_not_whole_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = ids();
        let receipts = Receipts::open(folder.path(), |_, _| true);
        let _ = receipts.note(one, &[(0, delivered("a"))]);
        let path = folder.path().join(FOLDER).join(NAMES[0]);
        let first = std::fs::metadata(&path).unwrap().len();
        let _ = receipts.note(other, &[(0, delivered("b"))]);
        let whole = std::fs::read(&path).unwrap();
        for length in first..whole.len() as u64 {
            std::fs::write(&path, &whole[..length as usize]).unwrap();
            std::fs::remove_file(folder.path().join(FOLDER).join(EARLIER)).unwrap();
            let receipts = Receipts::open(folder.path(), |_, _| true);
            assert_eq!(receipts.recall(one, 0..1).len(), 1);
            assert_eq!(receipts.recall(other, 0..1), []);
        }
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] ^= 1;
            std::fs::write(&path, &broken).unwrap();
            std::fs::remove_file(folder.path().join(FOLDER).join(EARLIER)).unwrap();
            let receipts = Receipts::open(folder.path(), |_, _| true);
            let found = receipts.recall(one, 0..1).len() + receipts.recall(other, 0..1).len();
            assert!(found < 2, "octet {at}");
        }
    }

    #[test]
    fn the_files_take_turns_and_stay_small() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = ids();
        let receipts = Receipts::open(folder.path(), |_, _| true);
        let size = |name: &str| std::fs::metadata(folder.path().join(FOLDER).join(name)).unwrap().len();
        let held = receipts.note(one, &[(7, delivered("held up"))]);
        for number in 0..20_000 {
            let noted = receipts.note(other, &[(number, delivered("a"))]);
            receipts.marked(&noted);
        }
        // The first one could not be emptied, so the second has grown.
        assert!(size(NAMES[0]) < TURN_BYTES + 1000 && size(NAMES[1]) > TURN_BYTES, "{}", size(NAMES[1]));
        receipts.marked(&held);
        for number in 0..20_000 {
            let noted = receipts.note(other, &[(number, delivered("a"))]);
            receipts.marked(&noted);
        }
        assert!(NAMES.iter().all(|name| size(name) < TURN_BYTES + 1000 || *name == NAMES[1]));
        assert!(size(NAMES[0]) + size(NAMES[1]) < 3 * TURN_BYTES);
    }

    #[test]
    fn a_folder_that_cannot_be_written_stops_nothing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FOLDER), "in the way").unwrap();
        let receipts = Receipts::open(folder.path(), |_, _| true);
        let noted = receipts.note(ids().0, &[(0, delivered("a"))]);
        receipts.marked(&noted);
        assert_eq!(noted.files, [0, 0]);
    }
}
