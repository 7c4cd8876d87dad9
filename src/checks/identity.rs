//! Whose mail is it, to look at? Header sections that two readers could understand in two ways are
//! refused, whatever the other checks are set to: they have no use but to show people another author
//! than the checks have seen.

use crate::message::header::{HeaderError, Headers};
use crate::smtp::Reply;
use crate::smtp::reply::Refusal;

/// Fields that a message has once at most (RFC 5322 3.6); From is ruled on by itself.
const ONCE: [&str; 9] =
    ["Date", "Sender", "Reply-To", "To", "Cc", "Message-ID", "In-Reply-To", "References", "Subject"];

/// No From field, more than one, or one with control characters in it.
pub fn refuse_ambiguous(headers: &Headers<'_>) -> Result<(), Refusal> {
    let text = match headers.author() {
        Err(HeaderError::NoFrom) => "the message has no From field (RFC 5322 3.6)",
        Err(HeaderError::SeveralFrom) => "the message has more than one From field (RFC 5322 3.6)",
        Err(HeaderError::Control) => "the From field holds a control character (RFC 5322 2.2)",
        _ => return Ok(()),
    };
    Err(Refusal::plain(Reply::new(550, (7, 1), text)))
}

/// The fields that are there more than once and must not be. Readers differ in which they show, but
/// lists and gateways do it, too: it is told, not refused.
pub(super) fn doubled(headers: &Headers<'_>) -> Vec<&'static str> {
    ONCE.into_iter().filter(|name| headers.all(name).nth(1).is_some()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_a_message_is_from_is_said_once() {
        let code = |text: &str| match refuse_ambiguous(&Headers::parse(text.as_bytes())) {
            Ok(()) => 0,
            Err(refusal) => refusal.reply.code,
        };
        for (text, expected) in [
            ("From: a@b.test\r\n\r\n", 0),
            ("From: a@b.test\r\n\r\nFrom: c@d.test\r\n", 0),
            ("From: a@b.test\r\nfrom : c@d.test\r\n\r\n", 550),
            ("To: a@b.test\r\n\r\n", 550),
            ("From: a@b.test\0.c.test\r\n\r\n", 550),
            // Unreadable, but for everybody in the same way.
            ("From: nobody\r\n\r\n", 0),
        ] {
            assert_eq!(code(text), expected, "{text:?}");
        }
    }

    #[test]
    fn doubled_fields_are_found() {
        let headers = Headers::parse(b"To: a\r\nSubject: b\r\nto : c\r\nReceived: d\r\nReceived: e\r\n\r\n");
        assert_eq!(doubled(&headers), ["To"]);
    }
}
