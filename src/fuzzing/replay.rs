//! The corpora, as tests: each input as it is, and changed at random (with a fixed seed) a few hundred times.

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use super::TARGETS;

/// Changed inputs for each target; `make fuzz` tries millions.
const CHANGED: usize = 1000;
const BYTES_MAX: usize = 64 * 1024;

/// Words that parsers look for.
const WORDS: [&[u8]; 32] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b".\r\n",
    b"\r\n.\r\n",
    b"\r\n\r\n",
    b"\"",
    b"\\",
    b"<",
    b">",
    b"@",
    b"(",
    b")",
    b"=?utf-8?q?",
    b"?=",
    b";",
    b",",
    b":",
    b"=",
    b"%{i}",
    b"\xff",
    b"\xc3\xa9",
    b"--",
    b"BDAT 5 LAST\r\n",
    b"250-",
    b"354 \r\n",
    b"+0D+0A",
    b"{3}\r\n",
    b"0",
    b"99999999999999999999",
    b"v=",
];

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// xorshift64*.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound.max(1)
    }

    fn change(&mut self, input: &mut Vec<u8>, others: &[(PathBuf, Vec<u8>)]) {
        for _ in 0..=self.below(4) {
            let at = self.below(input.len() + 1);
            match self.below(6) {
                0 if at < input.len() => input[at] ^= 1 << self.below(8),
                1 if at < input.len() => input[at] = self.below(256) as u8,
                2 => {
                    let end = (at + self.below(16)).min(input.len());
                    input.drain(at..end);
                }
                3 => {
                    let word = WORDS[self.below(WORDS.len())];
                    input.splice(at..at, word.iter().copied());
                }
                4 => {
                    let end = (at + self.below(64)).min(input.len());
                    let piece = input[at..end].to_vec();
                    input.splice(at..at, piece);
                }
                _ => {
                    let (_, other) = &others[self.below(others.len())];
                    let from = self.below(other.len() + 1);
                    input.truncate(at);
                    input.extend_from_slice(&other[from..]);
                }
            }
        }
        input.truncate(BYTES_MAX);
    }
}

#[test]
fn every_input_of_the_corpora_and_those_beside_it_hold() {
    let mut faults = Vec::new();
    for (name, target) in TARGETS {
        let corpus = corpus(name);
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        for (path, input) in &corpus {
            if catch_unwind(|| target(input)).is_err() {
                faults.push(format!("{}", path.display()));
            }
        }
        for _ in 0..CHANGED {
            let mut input = corpus[dice.below(corpus.len())].1.clone();
            dice.change(&mut input, &corpus);
            if catch_unwind(|| target(&input)).is_err() {
                faults.push(format!("{name}: b\"{}\"", input.escape_ascii()));
                break;
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_corpus_has_a_target() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(TARGETS.iter().any(|(target, _)| *target == name), "{name}");
    }
}
