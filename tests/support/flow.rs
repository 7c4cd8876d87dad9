//! Reads the one form of YAML that `tests/data` uses: a list of maps, each on one line,
//! `- {key: word, key: "text with escapes"}`.

#![allow(clippy::unwrap_used, clippy::panic)]
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;

use super::conversation::quoted;

/// The maps of a file, in order; other lines are skipped. Values are bytes, as a text may hold any.
pub fn maps(text: &str) -> Vec<BTreeMap<String, Vec<u8>>> {
    text.lines().filter_map(|line| line.trim().strip_prefix("- {")).map(parse_map).collect()
}

fn parse_map(line: &str) -> BTreeMap<String, Vec<u8>> {
    let mut map = BTreeMap::new();
    let mut rest = line.strip_suffix('}').unwrap_or_else(|| panic!("{line}"));
    while !rest.is_empty() {
        let (key, after) = rest.split_once(": ").unwrap_or_else(|| panic!("{line}"));
        let (value, tail) = if after.starts_with('"') {
            quoted(after).unwrap_or_else(|| panic!("{line}"))
        } else {
            let end = after.find([',', '}']).unwrap_or(after.len());
            (after.as_bytes()[..end].to_vec(), &after[end..])
        };
        map.insert(key.to_string(), value);
        rest = tail.strip_prefix(", ").unwrap_or(tail);
        assert!(tail.is_empty() || tail.starts_with(", "), "{line}");
    }
    map
}

/// The bytes of a hex text.
pub fn hex(text: &[u8]) -> Vec<u8> {
    let digits = std::str::from_utf8(text).unwrap();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}
