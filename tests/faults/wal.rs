//! What of a log file of RocksDB is in use. Log files are preallocated and recycled, so most bytes of
//! one may hold nothing, and damage there would be none.
//!
//! A file is blocks of 32 KiB; a fragment is checksum (4), length (2), type (1), in recycled files the
//! number of the log (4), then the payload. Fragments make up records: whole, or first, middle, last.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::Path;

const BLOCK: usize = 32 << 10;
const HEADER: usize = 7;
const RECYCLED_HEADER: usize = HEADER + 4;

/// Where a record lies: from its first header to behind its last payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub from: usize,
    pub to: usize,
}

/// All records in use, in order, those about the log itself (compression, its predecessor) included.
pub fn records(path: &Path) -> Vec<Record> {
    parse(&std::fs::read(path).unwrap())
}

fn parse(bytes: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    let (mut at, mut from, mut log) = (0, None, None);
    while at + HEADER <= bytes.len() {
        let left = BLOCK - at % BLOCK;
        if left < HEADER {
            at += left;
            continue;
        }
        let length = usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
        let kind = bytes[at + 6];
        let is_recycled = matches!(kind, 5..=8 | 11 | 131);
        let header = if is_recycled { RECYCLED_HEADER } else { HEADER };
        let end = at + header + length;
        if kind == 0 || header + length > left || end > bytes.len() {
            break;
        }
        if is_recycled {
            // What another life of the file left behind.
            let number = &bytes[at + HEADER..at + RECYCLED_HEADER];
            if *log.get_or_insert(number) != number {
                break;
            }
        }
        match kind {
            2 | 6 => from = Some(at),
            3 | 7 => {}
            4 | 8 => records.extend(from.take().map(|from| Record { from, to: end })),
            _ => records.push(Record { from: at, to: end }),
        }
        at = end;
    }
    records
}

/// What a record says, without the headers that lie in it where it goes on in another block.
pub fn payload(bytes: &[u8], record: Record) -> Vec<u8> {
    let (mut at, mut payload) = (record.from, Vec::new());
    while at < record.to {
        let left = BLOCK - at % BLOCK;
        if left < HEADER {
            at += left;
            continue;
        }
        let length = usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
        let header = if matches!(bytes[at + 6], 5..=8 | 11 | 131) { RECYCLED_HEADER } else { HEADER };
        payload.extend_from_slice(&bytes[at + header..at + header + length]);
        at += header + length;
    }
    payload
}

#[test]
fn what_goes_on_in_another_block_is_read_as_one() {
    let fragment = |kind: u8, payload: &[u8]| {
        let length = (payload.len() as u16).to_le_bytes();
        [&[1, 2, 3, 4], length.as_slice(), &[kind], payload].concat()
    };
    let mut file = fragment(2, &[&vec![b'x'; BLOCK - HEADER - 4], b"numb".as_slice()].concat());
    file.extend(fragment(4, b"er 7"));
    let found = parse(&file);
    assert_eq!(found, [Record { from: 0, to: file.len() }]);
    assert!(payload(&file, found[0]).ends_with(b"xnumber 7"));
}

#[test]
fn records_are_found_and_what_is_unused_is_not() {
    let fragment = |kind: u8, payload: &[u8]| {
        let mut bytes = vec![1, 2, 3, 4];
        bytes.extend_from_slice(&(payload.len() as u16).to_le_bytes());
        bytes.push(kind);
        if matches!(kind, 5..=8) {
            bytes.extend_from_slice(&[9, 0, 0, 0]);
        }
        bytes.extend_from_slice(payload);
        bytes
    };
    let mut file = fragment(1, b"whole");
    file.extend(fragment(2, &vec![7; BLOCK - 12 - HEADER]));
    assert_eq!(file.len(), BLOCK);
    file.extend(fragment(4, b"last"));
    let used = file.len();
    file.resize(3 * BLOCK, 0);
    assert_eq!(parse(&file), [Record { from: 0, to: 12 }, Record { from: 12, to: used }]);
    let mut recycled = fragment(5, b"mine");
    let mut stale = fragment(5, b"stale");
    stale[HEADER] = 3;
    recycled.extend(stale);
    assert_eq!(parse(&recycled), [Record { from: 0, to: RECYCLED_HEADER + 4 }]);
}
