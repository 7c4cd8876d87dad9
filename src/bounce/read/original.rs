//! The message that came back, as far as the report has it: its ids, its return path, whom it was for.

use super::decoded;
use crate::message::header::{self, Headers};
use crate::message::mime::{self, Part};
use crate::message::{Address, address::parse_reverse_path};

use super::Original;

/// Ids that are kept.
const IDS_MAX: usize = 8;
/// Mailboxes of To that are kept.
const TO_MAX: usize = 8;
/// Bytes of a text in which a copy of the message is looked for.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// Fields that hold the id under which it left; several services write one of their own over the first.
const ID_FIELDS: [&str; 3] = ["message-id", "x-microsoft-original-message-id", "x-original-message-id"];

pub fn find(headers: &Headers<'_>, parts: &[Part<'_>]) -> Original {
    let mut original = Original::default();
    for part in parts.iter().filter(|part| is_copy(part)) {
        let copy = decoded(part);
        // Where it is headers only there need be no empty line.
        take(&mut original, copy.trim_start().as_bytes());
    }
    if original.message_ids.is_empty() {
        for part in parts.iter().filter(|part| part.content_type.starts_with("text/")) {
            in_text(&mut original, &decoded(part));
        }
    }
    if let Some(field) = headers.get("in-reply-to") {
        mime::ids(field.value).into_iter().for_each(|id| add(&mut original, id));
    }
    original
}

fn is_copy(part: &Part<'_>) -> bool {
    matches!(
        part.content_type.as_str(),
        "message/rfc822"
            | "message/global"
            | "text/rfc822-headers"
            | "message/rfc822-headers"
            | "message/global-headers"
            | "text/rfc822"
    )
}

fn take(original: &mut Original, copy: &[u8]) {
    let headers = Headers::parse(copy);
    for field in ID_FIELDS.iter().filter_map(|name| headers.get(name)) {
        header::message_id(field.value).into_iter().for_each(|id| add(original, id));
    }
    if original.return_path.is_none() {
        let path = headers.get("return-path").map(|field| header::unfold(field.value));
        original.return_path = path.and_then(|path| sender(path.trim()));
    }
    if original.to.is_empty() {
        let to = headers.get("to").and_then(|field| header::mailboxes(field.value).ok()).unwrap_or_default();
        original.to = to.into_iter().map(|mailbox| mailbox.address).take(TO_MAX).collect();
    }
}

/// An envelope sender, unless it is the null sender.
pub(super) fn sender(text: &str) -> Option<Address> {
    match parse_reverse_path(text) {
        Ok(path) => path.address().cloned(),
        Err(_) => super::address(text),
    }
}

/// A copy that stands in the text itself.
fn in_text(original: &mut Original, text: &str) {
    let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let (text, _) = text.split_at(end);
    for line in text.lines() {
        // Some indent or quote it.
        let line = line.trim_start_matches([' ', '\t', '>', '|']);
        let Some((name, value)) = line.split_once(':') else { continue };
        if ID_FIELDS.iter().any(|field| name.eq_ignore_ascii_case(field)) {
            header::message_id(value.as_bytes()).into_iter().for_each(|id| add(original, id));
        }
    }
}

fn add(original: &mut Original, id: String) {
    if original.message_ids.len() < IDS_MAX && !original.message_ids.contains(&id) {
        original.message_ids.push(id);
    }
}
