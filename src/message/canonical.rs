//! Header fields in the forms that DKIM and ARC sign (RFC 6376 3.4), and which of them a signature means.
//!
//! Of bodies see `body`.

use super::header::{Field, Headers};
use super::tags::Tags;

/// Names of fields that one signature may sign.
pub const SIGNED_NAMES_MAX: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Simple,
    Relaxed,
}

/// The field with its CRLF, which also the last field of a message that ends there gets.
pub fn write(form: Form, field: &Field<'_>, out: &mut Vec<u8>) {
    match form {
        Form::Simple => {
            out.extend_from_slice(field.raw.strip_suffix(b"\r\n").unwrap_or(field.raw));
        }
        Form::Relaxed => write_relaxed(field.name, &[field.value], out),
    }
    out.extend_from_slice(b"\r\n");
}

/// The field that holds the signature itself: with an empty b=, and without its CRLF (RFC 6376 3.7).
/// `tags` have been read from its value.
pub fn write_unsigned(form: Form, field: &Field<'_>, tags: &Tags<'_>, out: &mut Vec<u8>) {
    let place = tags.place("b").unwrap_or_default();
    let before = field.value.get(..place.start).unwrap_or_default();
    let after = field.value.get(place.end..).unwrap_or_default();
    match form {
        Form::Simple => {
            let raw = field.raw.strip_suffix(b"\r\n").unwrap_or(field.raw);
            out.extend_from_slice(raw.strip_suffix(field.value).unwrap_or_default());
            out.extend_from_slice(before);
            out.extend_from_slice(after);
        }
        Form::Relaxed => write_relaxed(field.name, &[before, after], out),
    }
}

/// RFC 6376 3.4.2: name in lower case, folding removed, blanks run together, none at the ends. The value
/// comes in pieces between which nothing is lost.
fn write_relaxed(name: &[u8], value: &[&[u8]], out: &mut Vec<u8>) {
    out.extend(name.iter().map(u8::to_ascii_lowercase));
    out.push(b':');
    let (start, mut blanks) = (out.len(), false);
    for byte in value.iter().flat_map(|piece| piece.iter()) {
        if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
            blanks = true;
            continue;
        }
        if std::mem::take(&mut blanks) && out.len() > start {
            out.push(b' ');
        }
        out.push(*byte);
    }
}

/// The fields that a list of names means. Of several with one name the last comes first; a name that
/// is there more often than its field means nothing more (RFC 6376 5.4.2).
pub fn meant<'h, 'a>(headers: &'h Headers<'a>, names: &[&str]) -> Vec<&'h Field<'a>> {
    let fields = headers.fields();
    let mut taken = vec![false; fields.len()];
    let mut meant = Vec::with_capacity(names.len());
    for name in names {
        let free = |(at, field): &(usize, &Field<'_>)| field.is(name) && taken.get(*at) == Some(&false);
        if let Some((at, field)) = fields.iter().enumerate().rev().find(free) {
            meant.push(field);
            taken.iter_mut().skip(at).take(1).for_each(|taken| *taken = true);
        }
    }
    meant
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn written(form: Form, text: &str) -> String {
        let mut out = Vec::new();
        write(form, &Headers::parse(text.as_bytes()).fields()[0], &mut out);
        String::from_utf8(out).unwrap()
    }

    /// The example of RFC 6376 3.4.5.
    #[test]
    fn fields_in_both_forms() {
        assert_eq!(written(Form::Relaxed, "A: X\r\n"), "a:X\r\n");
        assert_eq!(written(Form::Relaxed, "B : Y\t\r\n\tZ  \r\n"), "b:Y Z\r\n");
        assert_eq!(written(Form::Simple, "B : Y\t\r\n\tZ  \r\n"), "B : Y\t\r\n\tZ  \r\n");
        assert_eq!(written(Form::Relaxed, "C:"), "c:\r\n");
        assert_eq!(written(Form::Simple, "C: x"), "C: x\r\n");
    }

    #[test]
    fn the_signature_itself_goes_out() {
        let text = b"S: a=1; b = ab\r\n c = ;\r\n bh=x \r\n";
        let headers = Headers::parse(text);
        let field = headers.fields()[0];
        let tags = Tags::parse(field.value).unwrap();
        for (form, expected) in [(Form::Simple, "S: a=1; b =;\r\n bh=x "), (Form::Relaxed, "s:a=1; b =; bh=x")] {
            let mut out = Vec::new();
            write_unsigned(form, &field, &tags, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
        let headers = Headers::parse(b"S: a=1; b= ab");
        let mut out = Vec::new();
        let field = headers.fields()[0];
        write_unsigned(Form::Relaxed, &field, &Tags::parse(field.value).unwrap(), &mut out);
        assert_eq!(out, b"s:a=1; b=");
    }

    #[test]
    fn fields_are_taken_from_the_bottom() {
        let headers = Headers::parse(b"A: 1\r\nB: 1\r\na: 2\r\nA: 3\r\n\r\n");
        let meant: Vec<&[u8]> =
            meant(&headers, &["a", "b", "c", "A", "A", "A"]).iter().map(|field| field.value).collect();
        assert_eq!(meant, [&b" 3"[..], b" 1", b" 2", b" 1"]);
    }
}
