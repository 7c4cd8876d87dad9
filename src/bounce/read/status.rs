//! The parts that are written for machines: delivery status (RFC 3464, RFC 6533) and feedback reports
//! (RFC 5965).
//!
//! Many that write them have not read how: groups without an empty line between, an action with a
//! comment or in other words, a status that is a reply code. What is meant is taken.

use super::original::sender;
use super::{Action, Bounce, Complaint, Original, RECIPIENTS_MAX, Reported, address, decoded, shorten};
use crate::bounce::classify::{classify, code_in, is_vague, status_in};
use crate::message::Address;
use crate::message::header;
use crate::message::mime::Part;

/// Complaints; the others tell of something else (`not-spam`, `auth-failure`).
const COMPLAINTS: [&str; 5] = ["abuse", "fraud", "opt-out", "virus", "other"];
/// Characters of a word that is kept of a complaint.
const WORD_CHARS_MAX: usize = 100;

/// None: there is no recipient in it.
pub fn read(parts: &[Part<'_>], original: &Original) -> Option<Bounce> {
    let is_status = |part: &&Part<'_>| {
        matches!(part.content_type.as_str(), "message/delivery-status" | "message/global-delivery-status")
    };
    let mut original = original.clone();
    let mut recipients: Vec<Reported> = Vec::new();
    let mut explained = None;
    for part in parts.iter().filter(is_status) {
        for group in groups(&decoded(part)) {
            let envelope_id = group.get("original-envelope-id").map(shorten);
            original.envelope_id = original.envelope_id.or(envelope_id);
            let Some(reported) = recipient(&group, || explained.get_or_insert_with(|| explanation(parts)).clone())
            else {
                continue;
            };
            let is_new = recipients.iter().all(|known| {
                (known.address(), known.action) != (reported.address(), reported.action) || reported.address().is_none()
            });
            if is_new && recipients.len() < RECIPIENTS_MAX {
                recipients.push(reported);
            }
        }
    }
    (!recipients.is_empty()).then_some(Bounce { recipients, original })
}

/// What the report says to people.
fn explanation(parts: &[Part<'_>]) -> String {
    parts.iter().find(|part| part.content_type == "text/plain").map(decoded).unwrap_or_default()
}

/// Fields of one recipient, or of the message.
struct Group(Vec<(String, String)>);

impl Group {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

fn groups(text: &str) -> Vec<Group> {
    let mut groups = vec![Group(Vec::new())];
    for line in text.lines() {
        let is_room = groups.len() <= RECIPIENTS_MAX;
        let Some(Group(fields)) = groups.last_mut() else { break };
        if line.trim().is_empty() {
            if !fields.is_empty() && is_room {
                groups.push(Group(Vec::new()));
            }
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push(' ');
                value.push_str(&header::unfold(line.trim().as_bytes()));
            }
        } else if let Some((name, value)) = line.split_once(':') {
            let name = name.trim().to_ascii_lowercase();
            // A second recipient without an empty line before it.
            if name == "final-recipient" && fields.iter().any(|(known, _)| *known == name) && is_room {
                groups.push(Group(vec![(name, header::unfold(value.trim().as_bytes()))]));
            } else {
                fields.push((name, header::unfold(value.trim().as_bytes())));
            }
        }
    }
    groups
}

/// What stands after the type: `rfc822; a@b` or `a@b`.
fn typed(value: &str) -> &str {
    value.split_once(';').map_or(value, |(_, rest)| rest).trim()
}

fn recipient(group: &Group, explanation: impl FnOnce() -> String) -> Option<Reported> {
    let named = |name| group.get(name).map(typed).and_then(address);
    let (original, last) = (named("original-recipient"), named("final-recipient"));
    let is_recipient = ["final-recipient", "original-recipient", "action"].iter().any(|name| group.get(name).is_some());
    if !is_recipient {
        return None;
    }
    let status = group.get("status").unwrap_or_default();
    // Gateways and Exchange say the more telling half in a field of their own.
    let said = ["diagnostic-code", "x-supplementary-info", "x400-supplementary-info"];
    let said: Vec<String> = said.iter().filter_map(|name| group.get(name)).map(diagnostic).collect();
    let said = said.join(" ");
    let code = precise(status.split_whitespace().next().filter(|word| is_status(word)), status, &said);
    let action = action(group.get("action"), &code)?;
    let words = format!("{said} {status}");
    let class = match code.is_empty() || is_vague(&code) {
        true if said.is_empty() && !status.contains(' ') => classify(&code, &explanation()),
        _ => classify(&code, &words),
    };
    let host = group.get("remote-mta").map(typed).unwrap_or_default();
    Some(Reported { original, last, action, status: code, class, diagnostic: shorten(&said), host: shorten(host) })
}

/// `2.1.5`, and no more than that.
fn is_status(word: &str) -> bool {
    word == "2.0.0"
        || word.strip_prefix('2').is_some_and(|rest| status_in(&format!("5{rest}")).is_some())
        || status_in(word) == Some(word)
}

/// The words of a diagnostic, without the type in front of them.
fn diagnostic(value: &str) -> String {
    match value.split_once(';') {
        Some((kind, rest)) if !kind.trim().contains(' ') => rest.trim().to_owned(),
        _ => value.to_owned(),
    }
}

/// The status field says often no more than 5.0.0 where the far end has said more.
fn precise(status: Option<&str>, field: &str, said: &str) -> String {
    match status {
        Some(status) if !is_vague(status) => status.to_owned(),
        vague => {
            let found = status_in(said).filter(|found| !is_vague(found)).or(vague);
            found.or_else(|| code_in(said)).or_else(|| code_in(field)).unwrap_or_default().to_owned()
        }
    }
}

/// RFC 3464 2.3.3, and how it is written otherwise. None: it says nothing.
fn action(value: Option<&str>, status: &str) -> Option<Action> {
    let word: String = value
        .unwrap_or_default()
        .chars()
        .take_while(char::is_ascii_alphabetic)
        .collect::<String>()
        .to_ascii_lowercase();
    match (word.as_str(), status.as_bytes().first()) {
        ("failed" | "failure" | "fail" | "error", _) => Some(Action::Failed),
        ("delayed", _) => Some(Action::Delayed),
        ("delivered" | "relayed" | "expanded", _) => Some(Action::Done),
        (_, Some(b'5')) => Some(Action::Failed),
        (_, Some(b'4')) => Some(Action::Delayed),
        (_, Some(b'2')) => Some(Action::Done),
        _ => None,
    }
}

/// None: it is no complaint.
pub fn complaint(part: &Part<'_>, original: Original) -> Option<Complaint> {
    let groups = groups(&decoded(part));
    let get = |name: &str| groups.iter().find_map(|group| group.get(name));
    let kind = get("feedback-type")?.to_ascii_lowercase();
    if !COMPLAINTS.contains(&kind.as_str()) {
        return None;
    }
    let named = |name: &str| -> Option<Address> { get(name).map(typed).and_then(address) };
    let recipient = named("original-rcpt-to").or_else(|| named("removal-recipient"));
    let return_path = original.return_path.or_else(|| get("original-mail-from").and_then(sender));
    let envelope_id = get("original-envelope-id").map(shorten);
    let agent = get("user-agent").unwrap_or_default().chars().take(WORD_CHARS_MAX).collect();
    Some(Complaint { kind, recipient, agent, original: Original { return_path, envelope_id, ..original } })
}
