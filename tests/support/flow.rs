//! Reads the forms of YAML that `tests/data` uses: a list of maps, each on one line,
//! `- {key: word, key: "text with escapes", key: [word, word]}`, and a list on the line of its name.

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
        } else if after.starts_with('[') {
            let end = list_end(after).unwrap_or_else(|| panic!("{line}"));
            (after.as_bytes()[..end].to_vec(), &after[end..])
        } else {
            let end = after.match_indices(", ").find(|(at, _)| begins_with_key(&after[at + 2..]));
            let end = end.map_or(after.len(), |(at, _)| at);
            (after.as_bytes()[..end].to_vec(), &after[end..])
        };
        map.insert(key.to_string(), value);
        rest = tail.strip_prefix(", ").unwrap_or(tail);
        assert!(tail.is_empty() || tail.starts_with(", "), "{line}");
    }
    map
}

/// `word: `: a comma that no key follows belongs to the text before it.
fn begins_with_key(text: &str) -> bool {
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    text.split_once(": ").is_some_and(|(word, _)| is_word(word))
}

/// Where the list at the front ends; what is quoted in it may hold brackets.
fn list_end(text: &str) -> Option<usize> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let mut ends = text.char_indices().filter(|(_, c)| {
        let was_escaped = is_escaped;
        is_escaped = *c == '\\' && !was_escaped;
        is_quoted ^= *c == '"' && !was_escaped;
        *c == ']' && !is_quoted
    });
    ends.next().map(|(at, _)| at + 1)
}

/// The words or texts of a list, `[a, "b"]`.
pub fn items(list: &[u8]) -> Vec<Vec<u8>> {
    let text = std::str::from_utf8(list).unwrap().trim();
    let mut rest = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or_else(|| panic!("{text}"));
    let mut items = Vec::new();
    while !rest.is_empty() {
        let (item, tail) = if rest.starts_with('"') {
            quoted(rest).unwrap_or_else(|| panic!("{rest}"))
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            (rest.as_bytes()[..end].to_vec(), &rest[end..])
        };
        items.push(item);
        rest = tail.trim_start_matches([',', ' ']);
    }
    items
}

/// The words of the list that stands on the line of its name.
pub fn list(text: &str, name: &str) -> Vec<String> {
    let start = format!("{name}: ");
    let line = text.lines().find_map(|line| line.trim().strip_prefix(&start)).unwrap_or_else(|| panic!("no {name}"));
    items(line.as_bytes()).into_iter().map(|item| String::from_utf8(item).unwrap()).collect()
}

/// The lines below a name, up to the next name.
pub fn below(text: &str, name: &str) -> String {
    let start = format!("{name}:");
    let lines = text.lines().skip_while(|line| *line != start).skip(1);
    lines.take_while(|line| line.starts_with(' ')).map(|line| format!("{line}\n")).collect()
}

/// The value of a key as text; empty if there is none.
pub fn text(map: &BTreeMap<String, Vec<u8>>, key: &str) -> String {
    map.get(key).map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
}

/// The bytes of a hex text.
pub fn hex(text: &[u8]) -> Vec<u8> {
    let digits = std::str::from_utf8(text).unwrap();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}
