//! Who sent a fetched message and who gets it, without I/O.
//!
//! A mailbox with `deliver_to` has one recipient, whatever the message says. Without it the message tells:
//! the fields that a server adds when it delivers, else To and Cc; only addresses of ours count, so nothing
//! is relayed. Blind copies are lost that way where the server adds no such field.

use std::collections::HashSet;

use crate::config::Config;
use crate::message::address::parse_reverse_path;
use crate::message::envelope::{Notify, Recipient};
use crate::message::header::{Headers, mailboxes};
use crate::message::{Address, Envelope, ReversePath};
use crate::routing::inbound::{Resolution, resolve};

/// In this order: the first that names an address of ours.
const RECIPIENT_FIELDS: [&str; 5] = ["delivered-to", "x-original-to", "envelope-to", "x-envelope-to", "x-rcpt-to"];
/// Recipients of one message, as for those that come by SMTP at most.
const RECIPIENTS_MAX: usize = 100;

/// None: it names nobody here.
pub fn envelope(config: &Config, deliver_to: Option<&Address>, headers: &Headers<'_>) -> Option<Envelope> {
    let recipients = match deliver_to {
        Some(address) => vec![address.clone()],
        None => named(config, headers),
    };
    if recipients.is_empty() {
        return None;
    }
    let from = sender(headers);
    let smtputf8 = recipients.iter().chain(from.address()).any(Address::needs_smtputf8);
    let mut envelope = Envelope::new(from, []);
    // Whether the sender is who the message says nobody has checked: no notice may go there.
    let recipient = |address| Recipient { notify: Notify::Never, ..Recipient::new(address) };
    envelope.recipients = recipients.into_iter().map(recipient).collect();
    envelope.smtputf8 = smtputf8;
    Some(envelope)
}

/// From the field that final delivery put on top (RFC 5321 4.4); one below was written by the sender.
fn sender(headers: &Headers<'_>) -> ReversePath {
    let top = headers.fields().iter().take_while(|field| !field.is("received"));
    let Some(field) = top.into_iter().find(|field| field.is("return-path")) else { return ReversePath::Null };
    let text = field.text();
    let text = text.trim();
    let bracketed = if text.starts_with('<') { text.to_owned() } else { format!("<{text}>") };
    parse_reverse_path(&bracketed).unwrap_or(ReversePath::Null)
}

fn named(config: &Config, headers: &Headers<'_>) -> Vec<Address> {
    for name in RECIPIENT_FIELDS {
        // The topmost: lower ones belong to an earlier part of the way, or to whoever wrote them.
        let own = headers.get(name).map(|field| ours(config, std::iter::once(field.value)));
        if let Some(own) = own.filter(|own| !own.is_empty()) {
            return own;
        }
    }
    let fields = headers.fields().iter().filter(|field| field.is("to") || field.is("cc"));
    ours(config, fields.map(|field| field.value))
}

/// Those that lead somewhere here, each once.
fn ours<'a>(config: &Config, values: impl Iterator<Item = &'a [u8]>) -> Vec<Address> {
    let mut seen = HashSet::new();
    let addresses = values.filter_map(|value| mailboxes(value).ok()).flatten().map(|mailbox| mailbox.address);
    let own = addresses.filter(|address| matches!(resolve(config, address), Resolution::Deliveries(_)));
    own.filter(|address| seen.insert(address.lookup_key())).take(RECIPIENTS_MAX).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn config() -> Config {
        let text = "hostname = \"mail.own.test\"\ndata_dir = \"/nowhere\"\n[domains.\"own.test\"]\n\
            [aliases]\n\"sales@own.test\" = \"discard\"\n\"ann@own.test\" = \"discard\"\n";
        crate::config::parse("test.toml", text).unwrap_or_else(|problems| panic!("{problems}"))
    }

    fn of(header: &str) -> Option<(String, Vec<String>)> {
        let envelope = envelope(&config(), None, &Headers::parse(header.as_bytes()))?;
        assert!(envelope.recipients.iter().all(|recipient| recipient.notify == Notify::Never));
        let to = envelope.recipients.iter().map(|recipient| recipient.address.to_string()).collect();
        Some((envelope.mail_from.to_string(), to))
    }

    #[test]
    fn the_message_says_who_gets_it() {
        let some = |from: &str, to: &[&str]| Some((from.to_owned(), to.iter().map(|to| (*to).to_owned()).collect()));
        let rest = "Received: x\r\nReturn-Path: <forged@x.test>\r\nTo: Ann <ann@own.test>, b@x.test\r\nCc: sales@own.test, ANN@own.test\r\n\r\n";
        assert_eq!(of(rest), some("", &["ann@own.test", "sales@own.test"]));
        let top = "Return-Path: <a@x.test>\r\nX-Original-To: sales@own.test\r\nDelivered-To: box@hoster.test\r\n";
        assert_eq!(of(&format!("{top}{rest}")), some("a@x.test", &["sales@own.test"]));
        assert_eq!(of("Return-Path: a b\r\nDelivered-To: ann@own.test\r\n\r\n"), some("", &["ann@own.test"]));
        assert_eq!(of("To: nobody@own.test, b@x.test\r\n\r\n"), None);
    }

    #[test]
    fn a_mailbox_with_one_recipient_asks_nobody() {
        let to = "sales@own.test".parse().unwrap();
        let envelope = envelope(&config(), Some(&to), &Headers::parse(b"To: ann@own.test\r\n\r\n")).unwrap();
        assert_eq!(envelope.recipients.first().unwrap().address, to);
        assert_eq!(envelope.recipients.len(), 1);
    }
}
