//! Header fields in which a file has UTF-8 as it is, written in encoded-words (RFC 2047), so that they
//! need no SMTPUTF8. Addresses stay as they are, and so do fields whose form we do not know. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::envelope::Bad;
use crate::message::header::{Field, unfold};

/// Bytes of text in one encoded-word, so that it stays within 75 characters (RFC 2047 2).
const WORD_TEXT_BYTES_MAX: usize = 42;

const OF_ADDRESSES: [&str; 9] =
    ["From", "Sender", "Reply-To", "To", "Cc", "Resent-From", "Resent-Sender", "Resent-To", "Resent-Cc"];
const OF_TEXT: [&str; 4] = ["Subject", "Comments", "Keywords", "Organization"];

/// The field as it can be sent, with its CRLF.
pub fn encoded(field: &Field<'_>) -> Result<Vec<u8>, Bad> {
    let name = unfold(field.name);
    let Ok(value) = str::from_utf8(field.value) else {
        return Err(Bad::new(format!("the header field {name} is neither ASCII nor UTF-8; encode it (RFC 2047)")));
    };
    let is_any = |names: &[&str]| names.iter().any(|name| field.is(name));
    let value = match () {
        () if is_any(&OF_ADDRESSES) => phrases(value),
        () if is_any(&OF_TEXT) => words(value),
        () => return Ok(field.raw.to_vec()),
    };
    Ok(format!("{name}:{value}\r\n").into_bytes())
}

/// From the first word that is not ASCII to the last one: blanks between two encoded-words are no content,
/// so what lies between them is encoded too.
fn words(text: &str) -> String {
    let is_word = |c: char| !c.is_ascii_whitespace();
    let Some(first) = text.find(|c: char| !c.is_ascii()) else { return text.to_owned() };
    let last = text.rfind(|c: char| !c.is_ascii()).unwrap_or(first);
    let start = text.get(..first).and_then(|before| before.rfind(|c| !is_word(c))).map_or(0, |at| at + 1);
    let end = text.get(last..).and_then(|after| after.find(|c| !is_word(c))).map_or(text.len(), |at| last + at);
    let (before, inner, after) = (text.get(..start), text.get(start..end), text.get(end..));
    let inner: String = inner.unwrap_or_default().split("\r\n").collect();
    format!("{}{}{}", before.unwrap_or_default(), encoded_words(&inner), after.unwrap_or_default())
}

fn encoded_words(text: &str) -> String {
    let mut all: Vec<String> = Vec::new();
    let mut word = String::new();
    for c in text.chars() {
        if word.len() + c.len_utf8() > WORD_TEXT_BYTES_MAX {
            all.push(std::mem::take(&mut word));
        }
        word.push(c);
    }
    all.push(word);
    let all: Vec<String> = all.iter().map(|word| format!("=?utf-8?B?{}?=", STANDARD.encode(word))).collect();
    all.join("\r\n ")
}

/// A list of mailboxes: only the names in it are encoded.
fn phrases(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let len = match first {
            '"' => closing(rest, '"'),
            '<' => closing(rest, '>'),
            '(' => closing(rest, ')'),
            ',' | ':' | ';' => 1,
            // A name of several words is encoded as one.
            _ => rest.find(['"', '<', '(', ',', ':', ';']).unwrap_or(rest.len()),
        };
        let (part, after) = rest.split_at_checked(len).unwrap_or((rest, ""));
        let is_address = part.contains('@') || after.trim_start().starts_with('@') || out.trim_end().ends_with('@');
        match first {
            _ if part.is_ascii() || is_address || first == '<' => out.push_str(part),
            '"' => out.push_str(&encoded_words(&unquoted(part))),
            '(' => {
                let inner = part.trim_start_matches('(').trim_end_matches(')');
                // A comment in a comment stays as it is.
                out.push_str(&if inner.contains('(') { part.to_owned() } else { format!("({})", words(inner)) });
            }
            _ => out.push_str(&words(part)),
        }
        rest = after;
    }
    out
}

/// Bytes up to and with the closing character.
fn closing(text: &str, close: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == close => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

fn unquoted(quoted: &str) -> String {
    let inner = quoted.strip_prefix('"').unwrap_or(quoted);
    let inner = inner.strip_suffix('"').unwrap_or(inner);
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars().filter(|c| !matches!(c, '\r' | '\n'));
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use crate::message::header::{Headers, mailboxes};
    use crate::message::mime::decode_words;
    use proptest::prelude::*;

    fn field(raw: &str) -> String {
        let raw = format!("{raw}\r\n\r\n");
        String::from_utf8(encoded(&Headers::parse(raw.as_bytes()).fields()[0]).unwrap()).unwrap()
    }

    #[test]
    fn names_and_texts_are_encoded_and_addresses_are_not() {
        for (raw, wanted) in [
            ("Subject: Grüße", "Subject: =?utf-8?B?R3LDvMOfZQ==?=\r\n"),
            ("Subject: a ü b ö c", "Subject: a =?utf-8?B?w7wgYiDDtg==?= c\r\n"),
            (
                "To: Jürgen <j@x.example>, b@bücher.example",
                "To: =?utf-8?B?SsO8cmdlbg==?= <j@x.example>, b@bücher.example\r\n",
            ),
            ("To: \"Ü, A\" <a@x.example>", "To: =?utf-8?B?w5wsIEE=?= <a@x.example>\r\n"),
            ("To: a@x.example (Ärger)", "To: a@x.example (=?utf-8?B?w4RyZ2Vy?=)\r\n"),
            ("Content-Disposition: attachment; filename=\"ü\"", "Content-Disposition: attachment; filename=\"ü\"\r\n"),
        ] {
            assert_eq!(field(raw), wanted);
        }
        let raw = b"Subject: Gr\xfc\xdfe\r\n\r\n";
        assert!(encoded(&Headers::parse(raw).fields()[0]).unwrap_err().reason.contains("Subject"));
    }

    proptest! {
        #[test]
        fn a_subject_reads_back(words in proptest::collection::vec("[a-zä-ü😀]{1,30}", 1..12)) {
            let text = words.join(" ");
            let out = field(&format!("Subject: {text}"));
            prop_assert!(out.is_ascii());
            prop_assert!(out.split("\r\n").all(|line| line.len() <= 998));
            let headers = out.clone() + "\r\n";
            let headers = Headers::parse(headers.as_bytes());
            let read = decode_words(unfold(headers.fields()[0].value).as_bytes());
            prop_assert_eq!(read.trim(), text);
        }

        #[test]
        fn the_addresses_of_a_list_stay_what_they_were(
            names in proptest::collection::vec("(\"[a-zäöü ,]{1,20}\"|[a-zäöü]{1,9}( [a-zäöü]{1,9}){0,3})", 1..6)
        ) {
            let list: Vec<String> = names.iter().enumerate().map(|(n, name)| format!("{name} <a{n}@x.example>")).collect();
            let list = list.join(", ");
            let before: Vec<_> = mailboxes(list.as_bytes()).unwrap().into_iter().map(|m| m.address).collect();
            let out = phrases(&list);
            prop_assert!(out.is_ascii(), "{}", out);
            let after: Vec<_> = mailboxes(out.as_bytes()).unwrap().into_iter().map(|m| m.address).collect();
            prop_assert_eq!(before, after, "{}", out);
        }
    }
}
