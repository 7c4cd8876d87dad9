//! What a milter's answer means for the client: its own words, if they are a reply that SMTP allows.

use super::session::{Trouble, misplaced};
use super::wire;
use crate::message::Address;
use crate::smtp::reply::{Enhanced, Reply};

/// Bytes of a line of a reply that a milter words (RFC 5321 4.5.3.1.5: 512 with code and CRLF).
const LINE_BYTES_MAX: usize = 480;
/// Lines of it.
const LINES_MAX: usize = 32;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Discard,
    /// With this reply, 4yz or 5yz.
    Refuse(Reply),
}

impl Verdict {
    /// The same, where it was about one recipient only.
    pub fn about(self, recipient: &Address) -> Verdict {
        match self {
            Verdict::Refuse(mut reply) => {
                reply.text = format!("<{recipient}>: {}", reply.text).into();
                Verdict::Refuse(reply)
            }
            other => other,
        }
    }
}

/// None: go on.
pub(super) fn of(reply: &wire::Reply, after: &'static str) -> Result<Option<Verdict>, Trouble> {
    // The words of Sendmail and Postfix.
    let later = |detail| Reply::new(451, detail, "service unavailable, try again later");
    Ok(Some(match reply {
        wire::Reply::Continue => return Ok(None),
        wire::Reply::Accept => Verdict::Accept,
        wire::Reply::Discard => Verdict::Discard,
        wire::Reply::Reject => Verdict::Refuse(Reply::new(550, (7, 1), "this message was refused")),
        wire::Reply::TempFail | wire::Reply::ConnFail => Verdict::Refuse(later((7, 1))),
        wire::Reply::Shutdown => Verdict::Refuse(later((3, 2))),
        wire::Reply::ReplyCode(text) => {
            let bad = || Trouble::BadReply(plain(text, LINE_BYTES_MAX));
            Verdict::Refuse(read_reply(text).ok_or_else(bad)?)
        }
        other => return Err(misplaced(after, other)),
    }))
}

/// A reply of one or several lines with the same code (RFC 5321 4.2.1), 4yz or 5yz. A percent sign is
/// doubled by milters (libmilter's smfi_setreply).
fn read_reply(text: &[u8]) -> Option<Reply> {
    let text = std::str::from_utf8(text).ok()?.trim_end_matches(['\r', '\n']).replace("%%", "%");
    let mut found: Option<(u16, Option<Enhanced>)> = None;
    let mut lines = Vec::new();
    for line in text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).take(LINES_MAX) {
        let (code, words) = line.split_at_checked(3)?;
        let code = read_code(code)?;
        let words = match words.strip_prefix([' ', '-']) {
            Some(words) => words,
            None if words.is_empty() => "",
            None => return None,
        };
        let (enhanced, words) = read_enhanced(code, words)?;
        let (first, given) = *found.get_or_insert((code, enhanced));
        if first != code || words.chars().any(|c| c.is_control() && c != '\t') {
            return None;
        }
        // A line may leave it out, but it may not have another.
        if enhanced.is_some() && enhanced != given {
            return None;
        }
        lines.push(plain(words.as_bytes(), LINE_BYTES_MAX));
    }
    let (code, enhanced) = found?;
    let Enhanced(subject, detail) = enhanced.unwrap_or(Enhanced(7, 1));
    if lines.iter().all(String::is_empty) {
        lines = vec!["this message was refused".to_owned()];
    }
    Some(Reply::new(code, (subject, detail), lines.join("\n")))
}

fn read_code(digits: &str) -> Option<u16> {
    match digits.as_bytes() {
        [b'4' | b'5', b'0'..=b'5', b'0'..=b'9'] => digits.parse().ok(),
        _ => None,
    }
}

/// The enhanced code at the beginning, if there is one, and what follows. None: its class is not the code's.
fn read_enhanced(code: u16, words: &str) -> Option<(Option<Enhanced>, &str)> {
    let (first, rest) = words.split_once(' ').unwrap_or((words, ""));
    let numbers: Vec<&str> = first.split('.').collect();
    let is_number = |text: &&str| (1..=3).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let [class, subject, detail] = numbers.as_slice() else { return Some((None, words)) };
    // Others are no status codes (RFC 3463 2), but words.
    if !matches!(*class, "2" | "4" | "5") || !numbers.iter().all(is_number) {
        return Some((None, words));
    }
    if class.parse() != Ok(code / 100) {
        return None;
    }
    Some((Some(Enhanced(subject.parse().ok()?, detail.parse().ok()?)), rest.trim_start()))
}

/// Printable ASCII in one line, no longer than this.
pub(super) fn plain(text: &[u8], bytes_max: usize) -> String {
    let plain = |byte: &u8| match byte {
        b' '..=b'~' => char::from(*byte),
        b'\t' | b'\r' | b'\n' => ' ',
        _ => '?',
    };
    text.iter().take(bytes_max).map(plain).collect::<String>().trim().to_owned()
}
