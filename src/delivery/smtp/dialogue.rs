//! The dialogue with a host whose settings say `debug = true`, line by line into the log, whatever `log.level`
//! is: who sets it wants to see it.
//!
//! Of a login only the mechanism and the outcome are shown, of a message only that it was sent.

use super::replies::RawReply;
use super::step::Framing;

/// Lines with this target are written at every `log.level`.
pub const TARGET: &str = "postrider::dialogue";

/// What we say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    Commands,
    /// Part of a login.
    Secret,
    /// The end of a message.
    Content(Framing),
}

pub fn said(peer: &str, kind: Said, bytes: &[u8]) {
    for line in shown(kind, bytes) {
        tracing::info!(target: TARGET, peer, "C: {line}");
    }
}

fn shown(kind: Said, bytes: &[u8]) -> Vec<String> {
    match kind {
        Said::Commands => lines(bytes).map(|line| line.escape_ascii().to_string()).collect(),
        Said::Secret => lines(bytes).map(masked).collect(),
        Said::Content(Framing::Dot) => vec!["(the message)".to_owned(), ".".to_owned()],
        Said::Content(Framing::Counted) => vec!["BDAT (the message)".to_owned()],
    }
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = bytes.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.filter(|line| !line.is_empty())
}

/// `AUTH PLAIN AGE…` → `AUTH PLAIN (masked)`.
fn masked(line: &[u8]) -> String {
    let mut words = line.split(|byte| *byte == b' ');
    match (words.next(), words.next(), words.next()) {
        (Some(b"AUTH"), Some(mechanism), None) => format!("AUTH {}", mechanism.escape_ascii()),
        (Some(b"AUTH"), Some(mechanism), Some(_)) => format!("AUTH {} (masked)", mechanism.escape_ascii()),
        _ => "(masked)".to_owned(),
    }
}

/// `is_secret`: it repeats a secret, or is a challenge of a login.
pub fn heard(peer: &str, reply: &RawReply, is_secret: bool) {
    match is_secret {
        true => tracing::info!(target: TARGET, peer, "S: {} (masked)", reply.code),
        false => tracing::info!(target: TARGET, peer, "S: {}", reply.plain()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_contents_are_not_shown() {
        let table: [(Said, &[u8], &[&str]); 7] = [
            (
                Said::Commands,
                b"MAIL FROM:<a@b>\r\nRCPT TO:<\xc3\xa9@b>\r\n",
                &["MAIL FROM:<a@b>", "RCPT TO:<\\xc3\\xa9@b>"],
            ),
            (Said::Secret, b"AUTH PLAIN AGEAYg==\r\n", &["AUTH PLAIN (masked)"]),
            (Said::Secret, b"AUTH LOGIN\r\n", &["AUTH LOGIN"]),
            (Said::Secret, b"aHVudGVyMg==\r\n", &["(masked)"]),
            (Said::Secret, b"AUTH\r\n", &["(masked)"]),
            (Said::Content(Framing::Dot), b"hunter2\r\n.\r\n", &["(the message)", "."]),
            (Said::Content(Framing::Counted), b"BDAT 9 LAST\r\nhunter2\r\n", &["BDAT (the message)"]),
        ];
        for (kind, bytes, lines) in table {
            assert_eq!(shown(kind, bytes), lines);
        }
    }
}
