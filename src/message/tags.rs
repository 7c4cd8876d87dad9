//! Tag lists, `name=value; name=value` (RFC 6376 3.2): what DKIM and ARC fields and DKIM key records are
//! made of.
//!
//! One tag that is wrong, or is there twice, spoils the whole list, as the RFC has it: two readers might
//! take different ones. Values keep their folding; what they mean is read elsewhere.

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

/// Tags in one list.
const TAGS_MAX: usize = 64;

/// A list that is right as a whole.
#[derive(Clone, Debug)]
pub struct Tags<'a> {
    tags: Vec<Tag<'a>>,
}

#[derive(Clone, Debug)]
struct Tag<'a> {
    name: &'a str,
    /// Without blanks at both ends.
    value: &'a str,
    /// From the `=` to the `;` in the text.
    place: Range<usize>,
}

impl<'a> Tags<'a> {
    pub fn parse(text: &'a [u8]) -> Option<Tags<'a>> {
        let text = std::str::from_utf8(text).ok()?;
        let mut tags: Vec<Tag<'a>> = Vec::new();
        let mut at = 0;
        for piece in text.split(';') {
            let start = at;
            at += piece.len() + 1;
            // One semicolon may stand at the end.
            if piece.chars().all(is_blank) && at > text.len() && !tags.is_empty() {
                break;
            }
            let (name, value) = piece.split_once('=')?;
            let place = start + name.len() + 1..start + piece.len();
            let (name, value) = (name.trim_matches(is_blank), value.trim_matches(is_blank));
            let known = tags.iter().any(|tag| tag.name == name);
            if known || tags.len() >= TAGS_MAX || !is_name(name) || !value.chars().all(is_value) {
                return None;
            }
            tags.push(Tag { name, value, place });
        }
        Some(Tags { tags })
    }

    /// The value of a tag; names are compared exactly.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.find(name).map(|tag| tag.value)
    }

    /// The bytes that a tag holds in base64, however folded.
    pub fn base64(&self, name: &str) -> Option<Vec<u8>> {
        let text: String = self.get(name)?.chars().filter(|c| !is_blank(*c)).collect();
        BASE64.decode(text).ok()
    }

    /// A number; none if it is not there or is no number. One that is too large is a large one.
    pub fn number(&self, name: &str) -> Option<u64> {
        let text = self.get(name)?;
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    }

    /// The parts of a value between colons, without blanks around them.
    pub fn parts(&self, name: &str) -> Option<impl Iterator<Item = &'a str> + use<'a>> {
        Some(self.get(name)?.split(':').map(|part| part.trim_matches(is_blank)))
    }

    /// Where the value of a tag stands in the text, all blanks around it included.
    pub fn place(&self, name: &str) -> Option<Range<usize>> {
        self.find(name).map(|tag| tag.place.clone())
    }

    /// Is this the tag that comes first?
    pub fn is_first(&self, name: &str) -> bool {
        self.tags.first().is_some_and(|tag| tag.name == name)
    }

    fn find(&self, name: &str) -> Option<&Tag<'a>> {
        self.tags.iter().find(|tag| tag.name == name)
    }
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Printable, or beyond ASCII (RFC 8616 3).
fn is_value(c: char) -> bool {
    is_blank(c) || matches!(c, '!'..='~') || (!c.is_ascii() && !c.is_control())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_list_is_right_as_a_whole_or_not_at_all() {
        let text = b" v=1; a = rsa-sha256 ;\r\n\tbh=YQ\r\n =\r\n = ; h=From : to;x_1=;";
        let tags = Tags::parse(text).unwrap();
        assert_eq!((tags.get("v"), tags.get("a"), tags.get("x_1")), (Some("1"), Some("rsa-sha256"), Some("")));
        assert_eq!((tags.get("V"), tags.number("v"), tags.number("a")), (None, Some(1), None));
        assert_eq!(tags.base64("bh"), Some(b"a".to_vec()));
        assert_eq!(tags.parts("h").unwrap().collect::<Vec<_>>(), ["From", "to"]);
        assert_eq!(&text[tags.place("a").unwrap()], b" rsa-sha256 ");
        assert!(tags.is_first("v") && !tags.is_first("a"));
        for text in ["", ";", "a", "a=1;;", "a=1;b=2;a=3", "=1", "1a=1", "a=\0", "a-b=1", ";a=1", "a=1;b", "a=\u{7f}"] {
            assert!(Tags::parse(text.as_bytes()).is_none(), "{text:?}");
        }
        assert!(Tags::parse(b"a=\xff").is_none());
        assert_eq!(Tags::parse(b"a=99999999999999999999999").unwrap().number("a"), Some(u64::MAX));
        let many: String = (0..=TAGS_MAX).map(|n| format!("a{n}=1;")).collect();
        assert!(Tags::parse(many.as_bytes()).is_none());
    }
}
