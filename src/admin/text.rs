//! How sizes, numbers and times read, on the command line and in the dashboard.

use std::borrow::Cow;

use crate::clock::{Millis, rfc3339};
use crate::message::mime;
use crate::message::text::steers;

/// Control characters out, white space joined: one harmless line.
pub(crate) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.extend(word.chars().map(|c| if steers(c) { '?' } else { c }));
    }
    out
}

/// A subject as it was written, for people: encoded words decoded (RFC 2047). It is not harmless yet.
pub(crate) fn subject(raw: &str) -> Cow<'_, str> {
    if raw.contains("=?") { Cow::Owned(mime::decode_words(raw.as_bytes())) } else { Cow::Borrowed(raw) }
}

/// `512 B`, `2.1 KiB`, `35.0 MiB`.
pub(crate) fn size(bytes: u64) -> String {
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
pub(crate) fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// `2026-11-21 22:30:01`, UTC.
pub(crate) fn moment(at: Millis) -> String {
    let text = rfc3339(at);
    match (text.get(..10), text.get(11..19)) {
        (Some(day), Some(time)) => format!("{day} {time}"),
        _ => text,
    }
}

/// `2026-11-21`
pub(crate) fn day(at: Millis) -> String {
    rfc3339(at).chars().take(10).collect()
}

/// `22:30:01`
pub(crate) fn time_of_day(at: Millis) -> String {
    rfc3339(at).chars().skip(11).take(8).collect()
}

/// `3 min ago`, `in 2 h`, `now`.
pub(crate) fn relative(at: Millis, now: Millis) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_cannot_steer_the_terminal() {
        assert_eq!(clean("hi\u{1b}[2J\r\n\tthere\u{202e}"), "hi?[2J there?");
    }

    #[test]
    fn a_subject_is_shown_decoded() {
        assert_eq!(subject("=?utf-8?B?anPDtm4=?= =?iso-8859-1?Q?_gr=FC=DFt?="), "jsön grüßt");
        assert_eq!(subject("1 =? 2\u{1b}"), "1 =? 2");
        assert_eq!(subject("plain\u{1b}"), "plain\u{1b}", "that is for others");
        let hidden = clean(&subject("=?utf-8?Q?=1B[2Jhi=0D=0A=E2=80=AEthere?="));
        assert!(!hidden.contains(['\u{1b}', '\r', '\n', '\u{202e}']) && hidden.contains("hi"), "{hidden:?}");
    }

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
}
