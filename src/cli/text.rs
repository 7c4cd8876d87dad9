//! How things look on a terminal: sizes, times, tables, colours. Whatever came from a message or a
//! peer goes through [`clean`], so that it cannot steer the terminal.

use std::io::{IsTerminal, Write};

use crate::clock::{Millis, rfc3339};
use crate::message::text::steers;

/// Control characters out, white space joined: one harmless line.
pub(super) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.extend(word.chars().map(|c| if steers(c) { '?' } else { c }));
    }
    out
}

/// At most so many characters, with an ellipsis where something was cut.
pub(super) fn shortened(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    text.chars().take(chars_max.saturating_sub(1)).chain(['…']).collect()
}

/// `512 B`, `2.1 KiB`, `35.0 MiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = bytes as u128 * 10 / 1024;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if tenths < 10_240 {
            break;
        }
        tenths /= 1024;
        unit = next;
    }
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// `1 recipient`, `3 recipients`.
pub(super) fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// `2026-11-21 22:30:01`, UTC.
pub(super) fn moment(at: Millis) -> String {
    let text = rfc3339(at);
    match (text.get(..10), text.get(11..19)) {
        (Some(day), Some(time)) => format!("{day} {time}"),
        _ => text,
    }
}

/// `2026-11-21`
pub(super) fn day(at: Millis) -> String {
    rfc3339(at).chars().take(10).collect()
}

/// `22:30:01`
pub(super) fn time_of_day(at: Millis) -> String {
    rfc3339(at).chars().skip(11).take(8).collect()
}

/// `3 min ago`, `in 2 h`, `now`.
pub(super) fn relative(at: Millis, now: Millis) -> String {
    let seconds = at.abs_diff(now) / 1000;
    let text = match seconds {
        0 => return "now".to_owned(),
        1..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    };
    if at > now { format!("in {text}") } else { format!("{text} ago") }
}

/// Columns as wide as their widest cell; the last one is left as it is.
pub(super) fn table(rows: &[Vec<String>]) -> Vec<String> {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(column) {
                Some(known) => *known = width.max(*known),
                None => widths.push(width),
            }
        }
    }
    let line = |row: &Vec<String>| {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            line.push_str(cell);
            if column + 1 < row.len() {
                let gap = width.saturating_sub(cell.chars().count()) + 2;
                line.extend(std::iter::repeat_n(' ', gap));
            }
        }
        line.trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// Bold and colours, or nothing of the kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paint(bool);

impl Paint {
    /// Only on a terminal, and not if NO_COLOR (<https://no-color.org>) says no.
    pub(super) fn for_stdout() -> Paint {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Paint(wanted && std::io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb"))
    }

    #[cfg(test)]
    pub(super) fn none() -> Paint {
        Paint(false)
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    pub(super) fn green(self, text: &str) -> String {
        self.wrap("32", text)
    }

    pub(super) fn yellow(self, text: &str) -> String {
        self.wrap("33", text)
    }

    pub(super) fn red(self, text: &str) -> String {
        self.wrap("31", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.0 { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// Prints a line. A reader that has gone (`| head`) is not an error worth a word; the next write is
/// refused too and the command ends by itself.
pub(super) fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(2150), "2.0 KiB");
        assert_eq!(size(36_700_160), "35.0 MiB");
        assert_eq!(size(u64::MAX), "16777215.9 TiB");
        assert_eq!(moment(1_795_300_017_000), "2026-11-21 22:26:57");
        assert_eq!(relative(10_000, 10_500), "now");
        assert_eq!(relative(10_000, 200_000), "3 min ago");
        assert_eq!(relative(7_300_000, 0), "in 2 h");
    }

    #[test]
    fn a_subject_cannot_steer_the_terminal() {
        assert_eq!(clean("hi\u{1b}[2J\r\n\tthere\u{202e}"), "hi?[2J there?");
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["long".to_owned(), "c".to_owned()]];
        assert_eq!(table(&rows), ["a     b", "long  c"]);
    }
}
