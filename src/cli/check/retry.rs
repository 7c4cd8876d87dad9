//! `postrider check --explain-retry`: when a message that keeps failing is tried, told of and given up, as
//! `queue::schedule` plans it. Times are exact: what is printed is what the queue goes by.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::clock::Millis;
use crate::config::Retry;
use crate::config::value::render_duration;
use crate::queue::schedule::{self, Chance, Try, Wait};

/// For people.
pub fn table(retry: &Retry) -> String {
    let (tries, more) = schedule::table(retry);
    let mut text = "A message that keeps failing, as [delivery.retry] has it:\n".to_owned();
    let mut line = |number: &str, wait: &str, since: &str, then: &str| {
        let line = format!("  {number:>4}  {wait:<14}  {since:<32}  {then}");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    };
    line("try", "wait", "since arrival", "if it fails");
    for one in &tries {
        let wait = one.wait.map_or("-".to_owned(), wait);
        line(&one.number.to_string(), &wait, &since(one), &then(one, retry));
    }
    if more {
        let expire = render_duration(retry.expire);
        let _ = writeln!(text, "  … and so on, until {expire} after arrival; then it is given up and the sender told");
    }
    text
}

/// One object a line; times in milliseconds.
pub fn lines_json(retry: &Retry) -> String {
    let (tries, _) = schedule::table(retry);
    tries.iter().map(|one| format!("{}\n", line_json(one))).collect()
}

fn line_json(one: &Try) -> Value {
    json!({
        "try": one.number,
        "wait_min_ms": one.wait.map(|wait| wait.least),
        "wait_max_ms": one.wait.map(|wait| wait.most),
        "earliest_ms": one.earliest,
        "latest_ms": one.latest,
        "delay_notice": chance(one.notice),
        "last": chance(one.last),
    })
}

fn chance(chance: Chance) -> &'static str {
    match chance {
        Chance::No => "no",
        Chance::Maybe => "maybe",
        Chance::Sure => "yes",
    }
}

/// `5m ±30s`.
fn wait(wait: Wait) -> String {
    let half = (wait.most - wait.least) / 2;
    format!("{} ±{}", span(wait.least + half), span(half))
}

fn since(one: &Try) -> String {
    if one.earliest == one.latest {
        return span(one.earliest);
    }
    format!("{} to {}", span(one.earliest), span(one.latest))
}

fn then(one: &Try, retry: &Retry) -> String {
    let by_count = retry.max_attempts > 0 && one.number >= retry.max_attempts;
    let last = match one.last {
        Chance::No => None,
        Chance::Maybe => {
            Some(format!("given up, if it is {} after arrival by then (expire)", render_duration(retry.expire)))
        }
        Chance::Sure if by_count => Some("given up (max_attempts), the sender is told".to_owned()),
        Chance::Sure => Some("given up (expire), the sender is told".to_owned()),
    };
    let notice = match (one.notice, retry.delay_notice) {
        (Chance::No, _) | (_, None) => None,
        (Chance::Sure, Some(_)) => Some("the sender is told of the delay (delay_notice)".to_owned()),
        (Chance::Maybe, Some(after)) => {
            let after = render_duration(after);
            Some(format!("the sender is told of the delay, once, if it is {after} after arrival by then"))
        }
    };
    notice.into_iter().chain(last).collect::<Vec<_>>().join("; ")
}

/// `1d2h3m4.5s`, exactly.
fn span(millis: Millis) -> String {
    let seconds = millis / 1000;
    let mut text = String::new();
    for (size, unit) in [(86_400, "d"), (3_600, "h"), (60, "m")] {
        let count = match unit {
            "d" => seconds / size,
            "h" => seconds % 86_400 / size,
            _ => seconds % 3_600 / size,
        };
        if count > 0 {
            let _ = write!(text, "{count}{unit}");
        }
    }
    let rest = millis % 60_000;
    if rest > 0 || text.is_empty() {
        let fraction = format!("{:03}", rest % 1000);
        let fraction = fraction.trim_end_matches('0');
        let point = if fraction.is_empty() { "" } else { "." };
        let _ = write!(text, "{}{point}{fraction}s", rest / 1000);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_exact() {
        for (millis, text) in [
            (0, "0s"),
            (900, "0.9s"),
            (54_000, "54s"),
            (66_050, "1m6.05s"),
            (14_400_000, "4h"),
            (432_000_000, "5d"),
            (90_061_000, "1d1h1m1s"),
        ] {
            assert_eq!(span(millis), text);
        }
    }
}
