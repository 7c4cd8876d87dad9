//! What a failure says about the address it befell: by its enhanced status code (RFC 3463) where that
//! says something, else by the words of the far end.
//!
//! Only what is about the address counts against it: a message that is too large or unwelcome says
//! nothing of who would have got it.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// The address does not exist, or takes nothing any more.
    Hard,
    /// The mailbox is full.
    Full,
    /// It passes, or nothing is known of why.
    Soft,
    /// The message or its sender is not welcome.
    Policy,
    /// The message is too large.
    Size,
    Loop,
}

impl Class {
    pub fn name(self) -> &'static str {
        match self {
            Class::Hard => "hard",
            Class::Full => "full",
            Class::Soft => "soft",
            Class::Policy => "policy",
            Class::Size => "size",
            Class::Loop => "loop",
        }
    }

    /// Is it about the address?
    pub fn counts(self) -> bool {
        matches!(self, Class::Hard | Class::Full | Class::Soft)
    }
}

/// Words that tell, in the order in which they decide; lower-case.
const WORDS: [(Class, &[&str]); 5] = [
    (
        Class::Full,
        &[
            "quota",
            "mailbox is full",
            "mailbox full",
            "full mailbox",
            "mailfolder is full",
            "inbox is full",
            "mail box space not enough",
            "too much mail stored",
            "disk space",
            "insufficient storage",
        ],
    ),
    (Class::Loop, &["too many hops", "hop count", "looping", "mail loop", "loop detected", "routing loop"]),
    (Class::Size, &["message size", "too large", "too big", "size limit"]),
    (
        Class::Hard,
        &[
            "user unknown",
            "unknown user",
            "unknown recipient",
            "recipient unknown",
            "addressee unknown",
            "unknown or illegal",
            "unknown address",
            "unknown host",
            "host unknown",
            "host not found",
            "name service error",
            "domain does not exist",
            "could not find a gateway",
            "unrouteable address",
            "no such user",
            "no such recipient",
            "no such address",
            "no such mailbox",
            "no mailbox here",
            "does not exist",
            "doesn't exist",
            "n'existe pas",
            "no existe",
            "existiert nicht",
            "doesn't have a",
            "does not have a final email delivery point",
            "user not known",
            "user not found",
            "mailbox not found",
            "recipient not found",
            "address not found",
            "not listed in",
            "not a registered",
            "not a valid user",
            "not recognized",
            "no longer valid",
            "no valid recipients",
            "no matches to nameserver query",
            "did not exactly match",
            "invalid recipient",
            "invalid mailbox",
            "invalid address",
            "invalid user",
            "invalid final delivery userid",
            "recipient address rejected",
            "does not like recipient",
            "disabled or discontinued",
            "account has been disabled",
            "account is disabled",
            "mailbox unavailable",
            "mailbox is unavailable",
        ],
    ),
    (
        Class::Policy,
        &[
            "spam",
            "blocked",
            "blacklist",
            "blocklist",
            "block list",
            "unsolicited",
            "not accepting mail from",
            "policy",
            "access denied",
            "permission denied",
            "relaying",
            "unable to relay",
            "a virus",
            "infected",
            "dmarc",
            "reputation",
        ],
    ),
];

/// `status`: as `5.1.1`, or empty. `text`: what the far end said.
pub fn classify(status: &str, text: &str) -> Class {
    by_status(status).unwrap_or_else(|| by_words(text))
}

fn by_status(status: &str) -> Option<Class> {
    let mut numbers = status.split('.').map(str::parse::<u16>);
    let (class, subject, detail) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
    match (class, subject, detail) {
        (_, 2, 2) => Some(Class::Full),
        (4, ..) => Some(Class::Soft),
        (5, 1, 0..=3 | 6 | 10) | (5, 2, 1) | (5, 4, 4) => Some(Class::Hard),
        // About the sender's address.
        (5, 1, 7 | 8) | (5, 7, _) => Some(Class::Policy),
        (5, 2, 3) | (5, 3, 4) => Some(Class::Size),
        (5, 4, 6) => Some(Class::Loop),
        (5, 4, 7) => Some(Class::Soft),
        _ => None,
    }
}

fn by_words(text: &str) -> Class {
    let text = text.to_lowercase();
    let fits = |words: &[&str]| words.iter().any(|word| text.contains(word));
    WORDS.iter().find(|(_, words)| fits(words)).map_or(Class::Soft, |(class, _)| *class)
}

/// The first enhanced status code of a failure in a text: `5.1.1`, not a part of an address or of a version.
pub fn status_in(text: &str) -> Option<&str> {
    let is_part = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'.');
    let bytes = text.as_bytes();
    (0..bytes.len()).find_map(|start| {
        let before = start.checked_sub(1).and_then(|at| bytes.get(at));
        let found = text.get(start..).filter(|_| !is_part(before)).and_then(status_at)?;
        let after = bytes.get(start + found.len()..).unwrap_or_default();
        // A full stop after it may end a sentence.
        let ends = match after {
            [b'.', next, ..] => !next.is_ascii_alphanumeric(),
            other => !is_part(other.first()) || other == b".",
        };
        ends.then_some(found)
    })
}

/// A status code at the beginning of a text.
fn status_at(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let [b'4' | b'5', b'.', b'0'..=b'7', b'.', rest @ ..] = bytes else { return None };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if (1..=3).contains(&digits) { text.get(..4 + digits) } else { None }
}

/// The first reply code of a refusal in a text, as a status without detail: 550 is `5.0.0`.
pub fn code_in(text: &str) -> Option<&'static str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '.');
    words.filter(|word| word.len() == 3 && word.bytes().all(|byte| byte.is_ascii_digit())).find_map(|word| {
        match (word.as_bytes().first(), word.as_bytes().get(1)) {
            (Some(b'4'), Some(b'0'..=b'5')) => Some("4.0.0"),
            (Some(b'5'), Some(b'0'..=b'5')) => Some("5.0.0"),
            _ => None,
        }
    })
}

/// Does a status say no more than that it failed?
pub fn is_vague(status: &str) -> bool {
    status.is_empty() || status.ends_with(".0.0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_come_before_words() {
        for (status, text, class) in [
            ("5.1.1", "your message was blocked as spam", Class::Hard),
            ("5.7.1", "user unknown", Class::Policy),
            ("4.2.2", "", Class::Full),
            ("4.7.1", "greylisted", Class::Soft),
            ("5.4.6", "", Class::Loop),
            ("5.3.4", "", Class::Size),
            ("5.0.0", "550 User unknown", Class::Hard),
            ("5.4.1", "550 5.4.1 Recipient address rejected: Access denied", Class::Hard),
            ("", "552 over quota", Class::Full),
            ("5.0.0", "something", Class::Soft),
        ] {
            assert_eq!(classify(status, text), class, "{status} {text}");
        }
    }

    #[test]
    fn codes_are_found_where_they_stand_alone() {
        for (text, status) in [
            ("550 5.1.1 <a@b.example>: unknown", Some("5.1.1")),
            ("no mailbox here by that name. vpopmail (#5.1.1)", Some("5.1.1")),
            ("550-5.7.1 [192.0.2.1] our system", Some("5.7.1")),
            ("it was 5.2.2.", Some("5.2.2")),
            ("host 5.1.1.7 said no", None),
            ("version 15.1.1", None),
            ("PMDF V5.2.1", None),
            ("5.9.1", None),
            ("", None),
        ] {
            assert_eq!(status_in(text), status, "{text}");
        }
        assert_eq!(code_in("Remote host said: 550 unknown"), Some("5.0.0"));
        assert_eq!(code_in("421 later"), Some("4.0.0"));
        assert_eq!(code_in("192.0.2.550 at 5509"), None);
    }
}
