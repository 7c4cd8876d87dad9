//! The message as Graph gets it. Graph knows no envelope: who stands in To, Cc and Bcc is who receives.

use std::collections::BTreeSet;

use crate::message::Address;
use crate::message::header::{self, Headers};

/// Exchange may give the message another Message-ID.
const OWN_ID: &str = "X-Postrider-Message-ID";

/// Why a message cannot go by Graph: somebody would get it who is not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// Somebody is named who is not a recipient.
    Stranger(Address),
    /// Who is named in this field cannot be told.
    Unreadable(&'static str),
}

/// `content` with Bcc for the recipients that To and Cc do not name. All other bytes stay.
pub fn addressed(content: &[u8], recipients: &[&Address], id: &str) -> Result<Vec<u8>, Mismatch> {
    let headers = Headers::parse(content);
    let named = named(&headers)?;
    let wanted: BTreeSet<String> = recipients.iter().map(|address| address.lookup_key()).collect();
    if let Some(stranger) = named.iter().find(|address| !wanted.contains(&address.lookup_key())) {
        return Err(Mismatch::Stranger(stranger.clone()));
    }
    let mut seen: BTreeSet<String> = named.iter().map(Address::lookup_key).collect();
    let blind: Vec<String> =
        recipients.iter().filter(|address| seen.insert(address.lookup_key())).map(|a| format!("<{a}>")).collect();
    let mut out = Vec::with_capacity(content.len() + 1024);
    out.extend(header::field(OWN_ID, &format!("<{id}>")));
    if !blind.is_empty() {
        out.extend(header::field("Bcc", &blind.join(", ")));
    }
    let is_ours = |field: &header::Field<'_>| field.is("bcc") || field.is(OWN_ID);
    for field in headers.fields().iter().filter(|field| !is_ours(field)) {
        out.extend_from_slice(field.raw);
    }
    let rest = content.get(headers.fields().iter().map(|field| field.raw.len()).sum()..).unwrap_or_default();
    // What is no field must not become the end of ours.
    if headers.fields().is_empty() && !rest.starts_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(rest);
    Ok(out)
}

fn named(headers: &Headers<'_>) -> Result<Vec<Address>, Mismatch> {
    let mut named = Vec::new();
    // One that is not looked at could name somebody.
    if headers.within_limits().is_err() {
        return Err(Mismatch::Unreadable("To"));
    }
    for name in ["To", "Cc"] {
        for field in headers.all(name) {
            match header::mailboxes(field.value) {
                Ok(mailboxes) => named.extend(mailboxes.into_iter().map(|mailbox| mailbox.address)),
                Err(header::HeaderError::Empty) => {}
                Err(_) => return Err(Mismatch::Unreadable(name)),
            }
        }
    }
    // Their names would be read as the recipients' of the first sending, or of the last.
    let resent = ["Resent-To", "Resent-Cc", "Resent-Bcc"].into_iter().find(|name| headers.get(name).is_some());
    resent.map_or(Ok(named), |name| Err(Mismatch::Unreadable(name)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn addressed_to(content: &str, recipients: &[&str]) -> Result<String, Mismatch> {
        let recipients: Vec<Address> = recipients.iter().map(|text| Address::parse(text).unwrap()).collect();
        let recipients: Vec<&Address> = recipients.iter().collect();
        addressed(content.as_bytes(), &recipients, "1@own.test").map(|out| String::from_utf8(out).unwrap())
    }

    #[test]
    fn who_is_not_named_is_added_and_all_else_stays() {
        let own = "X-Postrider-Message-ID: <1@own.test>\r\n";
        let content = "To: A <One@far.test>\r\nSubject: =?x?\r\nCc: two@far.test\r\n\r\nBcc: body\r\n";
        assert_eq!(addressed_to(content, &["one@far.test", "two@far.test"]).unwrap(), format!("{own}{content}"));
        let blind = addressed_to(content, &["one@far.test", "three@far.test", "two@far.test", "Three@far.test"]);
        assert_eq!(blind.unwrap(), format!("{own}Bcc: <three@far.test>\r\n{content}"));
        let undisclosed = "To: undisclosed-recipients:;\r\n\r\nx";
        let blind = addressed_to(undisclosed, &["one@far.test"]).unwrap();
        assert_eq!(blind, format!("{own}Bcc: <one@far.test>\r\n{undisclosed}"));
    }

    #[test]
    fn nobody_else_gets_it() {
        let stranger = Err(Mismatch::Stranger(Address::parse("two@far.test").unwrap()));
        let both = "To: one@far.test, two@far.test\r\n\r\nx";
        assert_eq!(addressed_to(both, &["one@far.test"]), stranger);
        assert_eq!(addressed_to("Cc: two@far.test\r\n\r\nx", &["one@far.test"]), stranger);
        assert_eq!(addressed_to("To: <broken\r\n\r\nx", &["one@far.test"]), Err(Mismatch::Unreadable("To")));
        let resent = "To: one@far.test\r\nResent-To: two@far.test\r\n\r\nx";
        assert_eq!(addressed_to(resent, &["one@far.test"]), Err(Mismatch::Unreadable("Resent-To")));
        let blind = addressed_to("Subject: s\r\nBCC: two@far.test\r\n\r\nx", &["one@far.test"]).unwrap();
        assert!(!blind.contains("two@far.test"), "{blind}");
        assert!(blind.contains("\r\nBcc: <one@far.test>\r\nSubject: s\r\n\r\nx"), "{blind}");
    }

    #[test]
    fn a_message_without_a_header_gets_one() {
        for content in [" odd\r\nTo: two@far.test\r\n", "no field here\r\n", "\r\nbody\r\n", ""] {
            let out = addressed_to(content, &["one@far.test"]).unwrap();
            let headers = Headers::parse(out.as_bytes());
            assert_eq!(headers.fields().len(), 2, "{out}");
            assert!(headers.has_empty_line());
            assert_eq!(headers.body(), content.strip_prefix("\r\n").unwrap_or(content).as_bytes());
        }
    }
}
