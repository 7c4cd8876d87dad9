//! Messages, and what is read out of them.

use crate::bounce::read::{self, RECIPIENTS_MAX, Report};
use crate::config::PickupFormat;
use crate::intake::pickup::envelope;
use crate::message::canonical::{self, Form};
use crate::message::header::{Headers, message_id, unfold};
use crate::message::mime::{self, PARTS_MAX};
use crate::message::{Address, authres, body, mailbox};

/// A message's fields: together with the body they are all its bytes, in their order.
pub fn headers(input: &[u8]) {
    let headers = Headers::parse(input);
    let mut last = 0;
    for (index, field) in headers.fields().iter().enumerate() {
        let range = headers.range(index).unwrap();
        assert!(range.start >= last && input.get(range.clone()) == Some(field.raw), "a field is not where it is");
        last = range.end;
        assert!(!field.text().contains(['\r', '\n']));
        for form in [Form::Simple, Form::Relaxed] {
            let mut out = Vec::new();
            canonical::write(form, field, &mut out);
            assert!(!out.is_empty());
        }
        let _ = message_id(field.value);
    }
    assert!(last <= headers.header_bytes().len());
    assert!(input.ends_with(headers.body()));
    let _ = headers.within_limits();
    if let Ok(author) = headers.author() {
        assert!(!author.address.to_string().chars().any(char::is_control));
        assert_eq!(headers.all("from").count(), 1, "an author where there are several From fields");
    }
    if super::is_stray(headers.body()) {
        // No door lets it in.
        return;
    }
    let (simple, relaxed) = (body::simple_hash(headers.body()), body::relaxed_hash(headers.body()));
    for (is_simple, whole) in [(true, simple), (false, relaxed)] {
        let mut hashing = body::Hashing::new(is_simple);
        headers.body().chunks(7).for_each(|piece| hashing.push(piece));
        let hashes = hashing.finish();
        let piecewise = if is_simple { hashes.simple } else { Some(hashes.relaxed) };
        assert!(piecewise.is_none_or(|hash| hash == whole), "the hash of a body depends on how it was cut");
    }
}

/// The value of a From or To.
pub fn mailboxes(input: &[u8]) {
    for mailbox in mailbox::mailboxes(input).into_iter().flatten() {
        let text = mailbox.address.to_string();
        assert_eq!(Address::parse(&text).as_ref(), Ok(&mailbox.address), "{text:?}");
    }
    for shown in mime::shown_mailboxes(input) {
        assert!(shown.address.len() <= input.len() * 4 + 16);
    }
    let _ = (mime::ids(input), mime::date(input), mime::decode_words(input), unfold(input));
}

pub fn mime(input: &[u8]) {
    let Ok(parts) = mime::parts(input) else { return };
    assert!(parts.len() <= PARTS_MAX);
    // A part is within its message, so all bodies together are no longer.
    let sum: usize = parts.iter().map(|part| part.body.len()).sum();
    assert!(sum <= input.len(), "parts overlap");
    for part in &parts {
        assert!(part.decoded().len() <= part.body.len(), "decoding has made it longer");
    }
    if let Ok(content) = mime::read(input) {
        assert!(content.text.is_none_or(|text| text.len() <= input.len() * 4 + 64));
    }
}

pub fn authres(input: &[u8]) {
    let findings = authres::findings(input);
    assert!(findings.len() <= input.len());
    let _ = authres::instance(input);
}

pub fn bounce(input: &[u8]) {
    for is_null in [true, false] {
        match read::read(input, is_null) {
            Some(Report::Bounce(bounce)) => {
                assert!(!bounce.recipients.is_empty() && bounce.recipients.len() <= RECIPIENTS_MAX);
                for recipient in &bounce.recipients {
                    assert!(!recipient.diagnostic.contains(['\r', '\n', '\0']), "{:?}", recipient.diagnostic);
                }
            }
            Some(Report::Complaint(_)) | None => {}
        }
    }
}

/// A file that was dropped into a folder.
pub fn pickup(input: &[u8]) {
    let Some((choice, file)) = input.split_first() else { return };
    let formats = [PickupFormat::Auto, PickupFormat::Exchange, PickupFormat::Iis, PickupFormat::Replay];
    let Ok(eml) = envelope::read_eml(file, formats[*choice as usize % 4], None) else { return };
    assert!(!eml.envelope.recipients.is_empty(), "a file for nobody");
    let headers = Headers::parse(&eml.content);
    assert!(headers.get("bcc").is_none(), "a Bcc that would leave");
    assert!(!super::is_stray(&eml.content), "a file that two servers read differently");
}
