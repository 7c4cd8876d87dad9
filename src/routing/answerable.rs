//! May something automatic answer a message? (RFC 3834 2.) This server never does; what it hands mail to may
//! want to, and should not have to know how machines give themselves away.

use super::sender::{self, is_answer_subject};
use crate::message::header::{self, Headers};
use crate::message::{Address, ReversePath};

/// Senders that are machines, or lists, or nobody: whole names, and how names begin or end.
const NAMES: [&str; 6] = ["mailer-daemon", "postmaster", "listserv", "majordomo", "nobody", "bounces"];
const BEGINNINGS: [&str; 9] =
    ["owner-", "bounce+", "bounces+", "bounce-", "bounces-", "noreply", "no-reply", "donotreply", "do-not-reply"];
const ENDINGS: [&str; 4] = ["-request", "-owner", "-bounces", "-bounce"];

/// Why not, in a few words; none if it may. `recipient`: the one that would answer.
pub fn why_not(headers: &Headers<'_>, mail_from: &ReversePath, recipient: &Address) -> Option<&'static str> {
    if let Some(sign) = sender::automatic(headers, mail_from) {
        return Some(sign);
    }
    let suppressed = |text: String| !text.trim().eq_ignore_ascii_case("none") && !text.trim().is_empty();
    if headers.all("X-Auto-Response-Suppress").any(|field| suppressed(field.text())) {
        return Some("X-Auto-Response-Suppress");
    }
    if headers.get("X-Loop").is_some() {
        return Some("X-Loop");
    }
    if mail_from.address().is_some_and(is_machine) {
        return Some("the sender's name");
    }
    if !is_addressed(headers, recipient) {
        return Some("it is not addressed to this recipient");
    }
    let subject = headers.get("Subject").map(|field| field.text()).unwrap_or_default();
    is_answer_subject(&subject).then_some("the subject")
}

fn is_machine(sender: &Address) -> bool {
    let local = sender.lookup_local();
    NAMES.contains(&local.as_str())
        || BEGINNINGS.iter().any(|beginning| local.starts_with(beginning))
        || ENDINGS.iter().any(|ending| local.ends_with(ending))
}

/// RFC 3834 2: a recipient in To or Cc, or in what a person has sent on. Two fields of one name, of which
/// readers show one or the other, say nothing.
fn is_addressed(headers: &Headers<'_>, recipient: &Address) -> bool {
    let key = recipient.lookup_key();
    ["To", "Cc", "Resent-To", "Resent-Cc"].into_iter().any(|name| {
        let mut fields = headers.all(name);
        let (Some(field), None) = (fields.next(), fields.next()) else { return false };
        let named = header::mailboxes(field.value).unwrap_or_default();
        named.iter().any(|mailbox| mailbox.address.lookup_key() == key)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// All that tests/vectors/autoreply-loop says, but what is refused at the door (see tests/loops.rs).
    #[test]
    fn the_rules_of_rfc_3834_one_by_one() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/autoreply-loop");
        let expected: serde_json::Value =
            serde_json::from_slice(&std::fs::read(format!("{folder}/expected.json")).unwrap()).unwrap();
        let refused = ["loop-received-60", "loop-received-own-5", "delivered-to-self"];
        let recipient = Address::parse("alice@our.example").unwrap();
        let mut seen = 0;
        for (name, facts) in expected.as_object().unwrap().iter().filter(|(name, _)| !refused.contains(&name.as_str()))
        {
            let content = std::fs::read(format!("{folder}/{name}.eml")).unwrap();
            let mail_from = match facts["mail_from"].as_str().unwrap() {
                "" => ReversePath::Null,
                text => ReversePath::Address(Address::parse(text).unwrap()),
            };
            let found = why_not(&Headers::parse(&content), &mail_from, &recipient);
            assert_eq!(found.is_none(), facts["may_auto_reply"].as_bool().unwrap(), "{name}: {found:?}");
            seen += 1;
        }
        assert_eq!(seen, 27);
    }
}
