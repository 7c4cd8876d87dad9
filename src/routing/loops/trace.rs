//! Signs in a header that a message has been here before, and the sign that we leave.
//!
//! `Delivered-To` names the recipient, as other servers have it. A message for several recipients must not
//! tell each who the others are, so it gets marks in which only this server finds an address again.

use crate::message::header::{self, Headers};
use crate::message::{Address, Domain};
use crate::secret::Marks;

use super::super::base32;

/// The field with a mark for each recipient.
const FIELD: &str = "X-Postrider-Passed";
const PURPOSE: &str = "passed";
/// Bytes of a mark: 16 characters.
const MARK_BYTES: usize = 10;
/// Received fields of ours for one recipient by which a message is a loop …
const OWN_TRACES_MAX: usize = 3;
/// … and of this host for nobody in particular.
const OWN_HOPS_MAX: usize = 5;

/// What a message that leaves gets on top, so that it is known if it comes back. `recipients`: the
/// addresses of ours that it came in for.
pub fn mark<'a>(marks: &Marks, recipients: impl IntoIterator<Item = &'a Address>) -> Vec<u8> {
    let recipients: Vec<&Address> = recipients.into_iter().collect();
    match recipients.as_slice() {
        [] => Vec::new(),
        [only] => header::field("Delivered-To", &only.to_string()),
        several => {
            let words: Vec<String> = several.iter().map(|address| mark_of(marks, address)).collect();
            header::field(FIELD, &words.join(" "))
        }
    }
}

fn mark_of(marks: &Marks, address: &Address) -> String {
    base32::encode(&marks.mark(PURPOSE, &[address.lookup_key().as_bytes()])[..MARK_BYTES])
}

/// By what a message shows that it has been here for this recipient, in words.
pub(super) fn been_here(headers: &Headers<'_>, hostname: &Domain, marks: &Marks, address: &Address) -> Option<String> {
    let own = address.lookup_key();
    let is_own = |text: &str| Address::parse(text.trim().trim_matches(['<', '>'])).is_ok_and(|a| a.lookup_key() == own);
    // RFC 5321 4.4 calls it trace; Postfix and qmail brought the fields into use.
    let named = |name: &str| headers.all(name).any(|field| is_own(&field.text()));
    if named("Delivered-To") || named("X-Loop") {
        return Some(format!("it has been delivered to {address} before"));
    }
    let mark = headers.get(FIELD).map(|_| mark_of(marks, address));
    if mark.is_some_and(|mark| headers.all(FIELD).any(|field| field.text().split(' ').any(|word| word == mark))) {
        return Some(format!("it has been forwarded from {address} before"));
    }
    let (mut for_it, mut for_nobody) = (0, 0);
    for text in headers.all("Received").map(|field| field.text()) {
        match Trace::read(&text, hostname) {
            Some(Trace { whom: Some(whom), is_ours: true }) => for_it += usize::from(is_own(whom)),
            Some(Trace { whom: None, .. }) => for_nobody += 1,
            _ => {}
        }
    }
    if for_it >= OWN_TRACES_MAX {
        return Some(format!("this server has received it {for_it} times for {address}"));
    }
    (for_nobody >= OWN_HOPS_MAX).then(|| format!("this server has received it {for_nobody} times"))
}

/// What a Received field of this host says (RFC 5321 4.4), as far as it is of use here.
struct Trace<'t> {
    /// In the words of this program.
    is_ours: bool,
    whom: Option<&'t str>,
}

impl Trace<'_> {
    /// None if another host has written it.
    fn read<'t>(text: &'t str, hostname: &Domain) -> Option<Trace<'t>> {
        let clauses = text.split(';').next()?;
        let words: Vec<&str> = clauses.split_whitespace().collect();
        // A client may call itself "by".
        let is_host = |pair: &[&str]| matches!(pair, ["by", host] if host.eq_ignore_ascii_case(hostname.as_str()));
        let by = words.windows(2).position(is_host)?;
        let mut rest = words.into_iter().skip(by + 2);
        let is_ours = rest.next() == Some("(postrider)");
        let whom = rest.find(|word| *word == "for").and_then(|_| rest.next());
        Some(Trace { is_ours, whom })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    fn marks() -> (tempfile::TempDir, Marks) {
        let folder = tempfile::tempdir().unwrap();
        let marks = Marks::open(folder.path()).unwrap();
        (folder, marks)
    }

    fn found(header: &str, marks: &Marks, recipient: &str) -> Option<String> {
        let content = format!("{header}\r\n");
        let headers = Headers::parse(content.as_bytes());
        been_here(&headers, &Domain::parse("mail.our.example").unwrap(), marks, &address(recipient))
    }

    #[test]
    fn a_mark_is_found_by_whom_it_is_for_and_tells_others_nothing() {
        let (_folder, marks) = marks();
        let (a, b) = (address("a@our.example"), address("B@our.example"));
        let one = String::from_utf8(mark(&marks, [&a])).unwrap();
        assert_eq!(one, "Delivered-To: a@our.example\r\n");
        let two = String::from_utf8(mark(&marks, [&a, &b])).unwrap();
        assert!(two.starts_with("X-Postrider-Passed: ") && !two.contains('@'), "{two}");
        for (header, recipient, known) in [
            (&one, "A@our.example", true),
            (&one, "b@our.example", false),
            (&two, "a@our.example", true),
            (&two, "b@our.example", true),
            (&two, "c@our.example", false),
            (&"X-Loop: <a@our.example>\r\n".to_owned(), "a@our.example", true),
            (&"X-Loop: rt.example\r\n".to_owned(), "a@our.example", false),
        ] {
            assert_eq!(found(header, &marks, recipient).is_some(), known, "{header}{recipient}");
        }
        let other = self::marks();
        assert_eq!(found(&two, &other.1, "a@our.example"), None, "the mark of another server");
        assert!(mark(&marks, []).is_empty());
    }

    #[test]
    fn own_traces_count_where_they_are_for_the_same_one() {
        let (_folder, marks) = marks();
        let ours = "Received: from x ([192.0.2.1]) by mail.our.example (postrider) with ESMTP id 1";
        let with = |clause: &str, times| format!("{ours}{clause}; Sat, 21 Nov 2026 12:00:00 +0000\r\n").repeat(times);
        for (header, known) in [
            (with(" for <a@our.example>", 2), false),
            (with(" for <A@our.example>", 3), true),
            (with(" for <b@our.example>", 9), false),
            (with("", 4), false),
            (with("", 5), true),
            (with("", 5).replace("mail.our", "mail.other"), false),
            (with("", 5).replace("from x", "from by"), true),
            ("Received: by\r\n".repeat(9), false),
        ] {
            assert_eq!(found(&header, &marks, "a@our.example").is_some(), known, "{header}");
        }
    }
}
