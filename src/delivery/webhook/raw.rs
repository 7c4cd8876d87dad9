//! The other form of an event: the message as it is, the envelope in header fields of the request.
//!
//! The fields say what `envelope` and `matched` of the JSON say, under names that begin with
//! `Postrider-`; one that has no value is left out. What the checks found stands in the message, in the
//! Authentication-Results field on top, and as JSON in `Postrider-Auth`. The signature is over the body, so
//! only TLS protects the fields.

use reqwest::header::{HeaderName, HeaderValue};

use super::payload::{Known, matched};
use crate::clock::rfc3339;
use crate::message::ReversePath;
use crate::queue::record::{Message, Recipient};

pub const CONTENT_TYPE: &str = "message/rfc822";

/// The header fields for one recipient. Addresses outside ASCII are in UTF-8.
pub fn fields(message: &Message, recipient: &Recipient, known: &Known<'_>) -> Vec<(HeaderName, HeaderValue)> {
    let peer = message.origin.peer.as_ref();
    let (alias, subaddress) = matched(&recipient.address, known.separator);
    let sender = match &message.mail_from {
        ReversePath::Null => "<>".to_owned(),
        ReversePath::Address(address) => address.to_string(),
    };
    let auth = message.findings.as_ref().and_then(|findings| serde_json::to_string(findings).ok());
    let values = [
        ("postrider-queue-id", Some(message.id.to_string())),
        ("postrider-received-at", Some(rfc3339(message.received_at))),
        ("postrider-mail-from", Some(sender)),
        ("postrider-rcpt-to", Some(recipient.alias.as_ref().unwrap_or(&recipient.address).to_string())),
        ("postrider-remote-ip", peer.map(|peer| peer.ip.to_string())),
        ("postrider-helo", peer.map(|peer| peer.helo.clone())),
        ("postrider-tls", peer.and_then(|peer| peer.tls.clone())),
        ("postrider-domain", Some(recipient.address.domain().to_string())),
        ("postrider-alias", Some(alias)),
        ("postrider-subaddress", subaddress.map(str::to_owned)),
        ("postrider-target", Some(known.target.to_owned())),
        ("postrider-auth", auth),
    ];
    let field = |(name, value): (&'static str, Option<String>)| {
        // A value with control characters in it has no form here; none of ours has any.
        Some((HeaderName::from_static(name), HeaderValue::from_bytes(value?.as_bytes()).ok()?))
    };
    values.into_iter().filter_map(field).collect()
}
