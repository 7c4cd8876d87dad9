//! What a fuzzer does with each parser and each dialogue, and what must hold whatever the bytes are: no panic,
//! the same result however the input was cut, nothing but well-formed lines on the wire.
//!
//! Compiled for the tests, which replay the corpora of `tests/fuzz/corpus` and change them a little, and for
//! `make fuzz`, which searches for new inputs (`tests/fuzz`). Each input that ever broke something stays in the
//! corpus.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a fault ends the run"
)]

mod auth;
mod client;
mod elsewhere;
mod message;
mod own;
#[cfg(test)]
mod replay;
mod session;
mod wire;

/// Takes any bytes, and panics if something does not hold.
pub type Target = fn(&[u8]);

/// By the name of their corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("command", wire::command),
    ("data", wire::data),
    ("chunks", wire::chunks),
    ("path", wire::path),
    ("sasl", wire::sasl),
    ("replies", wire::replies),
    ("session", session::session),
    ("client", client::client),
    ("headers", message::headers),
    ("mailboxes", message::mailboxes),
    ("mime", message::mime),
    ("authres", message::authres),
    ("bounce", message::bounce),
    ("pickup", message::pickup),
    ("spf", auth::spf),
    ("dkim", auth::dkim),
    ("dmarc", auth::dmarc),
    ("arc", auth::arc),
    ("mta_sts", auth::mta_sts),
    ("imap", elsewhere::imap),
    ("pop3", elsewhere::pop3),
    ("milter", elsewhere::milter),
    ("config", own::config),
    ("records", own::records),
    ("compose", own::composed),
    ("marks", own::marks),
];

/// Two pieces of the input: the first byte says where it is cut.
fn cut(data: &[u8]) -> (&[u8], &[u8]) {
    let Some((at, rest)) = data.split_first() else { return (&[], &[]) };
    rest.split_at((*at as usize).min(rest.len()))
}

/// Reads of sizes that the first byte decides.
fn reads(data: &[u8]) -> (impl Iterator<Item = &[u8]>, &[u8]) {
    let (size, rest) = data.split_first().map_or((1, data), |(size, rest)| (1 + (*size as usize % 16), rest));
    (rest.chunks(size), rest)
}

/// A CR or LF that is not part of a CRLF, or a NUL.
fn is_stray(content: &[u8]) -> bool {
    let mut before = b'\n';
    let mut bytes = content.iter().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\r' if bytes.peek() != Some(&&b'\n') => return true,
            b'\n' if before != b'\r' => return true,
            0 => return true,
            _ => {}
        }
        before = *byte;
    }
    false
}
