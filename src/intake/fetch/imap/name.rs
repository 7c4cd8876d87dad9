//! Strings as IMAP wants them: quoted, and folder names in modified UTF-7 (RFC 3501 5.1.3), without I/O.

use base64::Engine;
use base64::engine::GeneralPurpose;
use base64::engine::general_purpose::NO_PAD;

use super::super::wire::Trouble;

/// Modified BASE64: a comma in place of the slash.
fn engine() -> GeneralPurpose {
    // The alphabet is one: a test encodes with it.
    let alphabet = base64::alphabet::IMAP_MUTF7;
    GeneralPurpose::new(&alphabet, NO_PAD)
}

/// A quoted string (RFC 9051 4.3), which holds neither line ends nor anything but ASCII.
pub fn quoted(text: &str) -> Result<String, Trouble> {
    if !text.is_ascii() || text.bytes().any(|byte| byte.is_ascii_control()) {
        return Err(Trouble::protocol(
            "the server takes logins by LOGIN only, and that has ASCII without control characters",
        ));
    }
    Ok(in_quotes(text))
}

/// A folder's name.
pub fn mailbox(folder: &str) -> String {
    let mut encoded = String::with_capacity(folder.len());
    let mut pending = Vec::new();
    for c in folder.chars() {
        if matches!(c, ' '..='~') {
            shift(&mut pending, &mut encoded);
            encoded.push(c);
            if c == '&' {
                encoded.push('-');
            }
        } else {
            let mut units = [0; 2];
            pending.extend(c.encode_utf16(&mut units).iter().flat_map(|unit| unit.to_be_bytes()));
        }
    }
    shift(&mut pending, &mut encoded);
    in_quotes(&encoded)
}

fn shift(pending: &mut Vec<u8>, encoded: &mut String) {
    if !pending.is_empty() {
        encoded.push('&');
        encoded.push_str(&engine().encode(&*pending));
        encoded.push('-');
        pending.clear();
    }
}

fn in_quotes(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The second line has the example of RFC 3501 5.1.3.
    #[test]
    fn names_are_written_as_the_protocol_wants() {
        assert_eq!(mailbox("INBOX"), "\"INBOX\"");
        assert_eq!(mailbox("~peter/mail/台北/日本語"), "\"~peter/mail/&U,BTFw-/&ZeVnLIqe-\"");
        assert_eq!(mailbox("Entwürfe & \"mehr\""), "\"Entw&APw-rfe &- \\\"mehr\\\"\"");
        assert_eq!(quoted("a\\b").unwrap(), "\"a\\\\b\"");
        assert!(quoted("a\r\nb").is_err() && quoted("ü").is_err());
    }
}
