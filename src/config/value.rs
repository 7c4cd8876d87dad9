//! The small languages inside strings: durations, sizes, rates.
//!
//! Each has one form with its unit written out, so that no number is ever misread. `render_*` gives
//! the shortest text that reads back as the same value.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::Rate;

/// How each form is written, for remedies.
pub(super) const DURATION_FORM: &str =
    "Write a whole number and a unit in quotes, such as \"30s\", \"5m\", \"4h\" or \"5d\".";
pub(super) const SIZE_FORM: &str =
    "Write a whole number and a unit in quotes, such as \"512KiB\", \"25MiB\", \"1GiB\" or \"10MB\".";
pub(super) const RATE_FORM: &str =
    "Write a count, a slash and a time in quotes, such as \"5/s\", \"60/m\", \"100/h\" or \"10/15m\".";

/// Longest duration taken: a hundred years, so that no sum of two overflows.
pub const DURATION_SECONDS_MAX: u64 = 100 * 365 * 86_400;
/// What a time may be where none at all makes no sense.
pub(super) const SECOND_UP: RangeInclusive<Duration> = Duration::from_secs(1)..=DURATION_MAX;
/// … and where it does.
pub(super) const ZERO_UP: RangeInclusive<Duration> = Duration::ZERO..=DURATION_MAX;
const DURATION_MAX: Duration = Duration::from_secs(DURATION_SECONDS_MAX);
/// Largest size taken, in bytes: an exbibyte.
pub const SIZE_BYTES_MAX: u64 = 1 << 60;

const TIME_UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];

const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1000),
    ("B", 1),
];

/// `30s`, `5m`, `4h`, `5d`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    with_unit(text, &TIME_UNITS, DURATION_SECONDS_MAX).map(Duration::from_secs)
}

/// `512KiB`, `25MiB`, `10MB`; in bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    with_unit(text, &SIZE_UNITS, SIZE_BYTES_MAX)
}

/// `60/m`, `10/15m`.
pub fn parse_rate(text: &str) -> Option<Rate> {
    let (count, per) = text.split_once('/')?;
    let count = digits(count).and_then(|count| u32::try_from(count).ok()).filter(|count| *count > 0)?;
    let bare_unit = TIME_UNITS.iter().find(|(unit, _)| *unit == per);
    let per = match bare_unit {
        Some((_, seconds)) => Duration::from_secs(*seconds),
        None => parse_duration(per).filter(|per| !per.is_zero())?,
    };
    Some(Rate { count, per })
}

/// Whole seconds; a fraction is cut off.
pub fn render_duration(duration: Duration) -> String {
    render_unit(duration.as_secs(), &TIME_UNITS, "0s")
}

pub fn render_size(bytes: u64) -> String {
    render_unit(bytes, &SIZE_UNITS, "0B")
}

pub fn render_rate(rate: Rate) -> String {
    let seconds = rate.per.as_secs();
    match TIME_UNITS.iter().find(|(_, unit_seconds)| *unit_seconds == seconds) {
        Some((unit, _)) => format!("{}/{unit}", rate.count),
        None => format!("{}/{}", rate.count, render_duration(rate.per)),
    }
}

fn with_unit(text: &str, units: &[(&str, u64)], max: u64) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    digits(number)?.checked_mul(*factor).filter(|value| *value <= max)
}

/// Digits only: no sign, no space.
fn digits(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

fn render_unit(value: u64, units: &[(&str, u64)], zero: &str) -> String {
    if value == 0 {
        return zero.to_owned();
    }
    let exact =
        |(unit, factor): &(&str, u64)| value.is_multiple_of(*factor).then(|| format!("{}{unit}", value / factor));
    units.iter().filter_map(exact).min_by_key(String::len).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_documented_forms() {
        let seconds = |text| parse_duration(text).map(|d| d.as_secs());
        assert_eq!(seconds("30s"), Some(30));
        assert_eq!(seconds("5m"), Some(300));
        assert_eq!(seconds("4h"), Some(14_400));
        assert_eq!(seconds("5d"), Some(432_000));
        assert_eq!(parse_size("25MiB"), Some(26_214_400));
        assert_eq!(parse_size("10MB"), Some(10_000_000));
        assert_eq!(parse_size("512KiB"), Some(524_288));
        assert_eq!(parse_size("0B"), Some(0));
        let rate = |text| parse_rate(text).map(|r| (r.count, r.per.as_secs()));
        assert_eq!(rate("60/m"), Some((60, 60)));
        assert_eq!(rate("10/15m"), Some((10, 900)));
        assert_eq!(rate("100/h"), Some((100, 3600)));
        assert_eq!(rate("5/s"), Some((5, 1)));
    }

    #[test]
    fn nothing_else() {
        for bad in ["", "5", "s", "-5s", "+5s", "5 s", "1.5h", "1h30m", "5M", "5ms", "99999999999999999999s", "40000d"]
        {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
        for bad in ["", "5", "MiB", "25 MiB", "25mib", "-1MiB", "1.5GiB", "99999999TiB", "5é"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
        for bad in ["", "5", "/m", "0/m", "5/", "5/0s", "5/x", "5/m/m", "5000000000/m", "-1/m", "5 / m"] {
            assert_eq!(parse_rate(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn durations_read_back(seconds in 0..=DURATION_SECONDS_MAX) {
            let duration = Duration::from_secs(seconds);
            prop_assert_eq!(parse_duration(&render_duration(duration)), Some(duration));
        }

        #[test]
        fn sizes_read_back(bytes in 0..=SIZE_BYTES_MAX) {
            prop_assert_eq!(parse_size(&render_size(bytes)), Some(bytes));
        }

        #[test]
        fn whole_units_read_back(count in 0..1000u64, unit in 0..SIZE_UNITS.len()) {
            let bytes = count * SIZE_UNITS[unit].1;
            prop_assert_eq!(parse_size(&render_size(bytes)), Some(bytes));
            prop_assert_eq!(parse_size(&format!("{count}{}", SIZE_UNITS[unit].0)), Some(bytes));
        }

        #[test]
        fn rates_read_back(count in 1..=u32::MAX, seconds in 1..=DURATION_SECONDS_MAX) {
            let rate = Rate { count, per: Duration::from_secs(seconds) };
            prop_assert_eq!(parse_rate(&render_rate(rate)), Some(rate));
        }

        #[test]
        fn any_text_is_harmless(text in ".{0,40}") {
            let _ = (parse_duration(&text), parse_size(&text), parse_rate(&text));
        }
    }
}
