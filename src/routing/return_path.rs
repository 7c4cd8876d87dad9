//! Return paths of ours: `bounce@` a domain of ours, and, where each recipient has one of its own (VERP),
//! `bounce+<id>-<mac>@`. The id is that of the queued message and the number of the recipient in it; the MAC
//! shows that it is from us. So a bounce tells by the address alone whom it is about, and nobody can forge it
//! who has not seen that address.
//!
//! The id has 26 letters (13 and 13, as queue ids are written), the MAC the 10 that hold 50 bits. Capitals are
//! read as small letters: some servers change them.

use crate::config::Config;
use crate::message::{Address, MessageId};
use crate::secret::{self, Marks};

/// What the MAC is for.
const PURPOSE: &str = "return path";
/// Letters of a queue id.
const ID_LETTERS: usize = 13;
/// Letters of the MAC, 5 bits each.
const MAC_LETTERS: usize = 10;
/// Id, hyphen, MAC.
pub const TOKEN_LETTERS: usize = 2 * ID_LETTERS + 1 + MAC_LETTERS;

/// A recipient of a message of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub id: MessageId,
    pub number: u32,
}

/// A return path of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Back {
    /// Without a token.
    Plain,
    Of(Token),
    /// With something that has the form of a token and is none of ours.
    Forged,
}

impl Token {
    /// As it stands in an address.
    pub fn render(self, marks: &Marks) -> String {
        format!("{}{}-{}", self.id, MessageId::from_u64(self.number.into()), self.mac(marks))
    }

    fn mac(self, marks: &Marks) -> String {
        let mark = marks.mark(PURPOSE, &[&self.id.to_key(), &self.number.to_be_bytes()]);
        let bits = mark.first_chunk().map_or(0, |first: &[u8; 8]| u64::from_be_bytes(*first) >> (64 - 5 * MAC_LETTERS));
        let letters = MessageId::from_u64(bits).to_string();
        letters.get(ID_LETTERS - MAC_LETTERS..).unwrap_or_default().to_owned()
    }

    /// None: not one of ours.
    pub fn read(text: &str, marks: &Marks) -> Option<Token> {
        let text = text.to_ascii_lowercase();
        let (ids, mac) = text.split_once('-')?;
        let (id, number) = ids.split_at_checked(ID_LETTERS)?;
        let number: MessageId = number.parse().ok()?;
        let token = Token { id: id.parse().ok()?, number: number.as_u64().try_into().ok()? };
        secret::same(token.mac(marks).as_bytes(), mac.as_bytes()).then_some(token)
    }
}

/// Has it the form of a token?
fn is_token_like(text: &str) -> bool {
    let Some((ids, mac)) = text.split_once('-') else { return false };
    let legal = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric());
    ids.len() == 2 * ID_LETTERS && mac.len() == MAC_LETTERS && legal(ids) && legal(mac)
}

/// The return path for one recipient; none if there is no room for it.
pub fn mark(config: &Config, marks: &Marks, bounce: &Address, token: Token) -> Option<Address> {
    let separator = config.domains.get(bounce.domain())?.token_separator();
    let local = format!("{}{separator}{}", bounce.local(), token.render(marks));
    Address::new(&local, bounce.domain().clone()).ok()
}

/// None: mail for it is no bounce of ours.
pub fn read(config: &Config, marks: &Marks, address: &Address) -> Option<Back> {
    let own = config.domains.get(address.domain()).filter(|_| config.takes_bounces())?;
    let local = address.lookup_local();
    let names = std::iter::once(&own.bounce).chain(&own.previous_names);
    let token = names.map(|name| name.to_lowercase()).find_map(|name| {
        // What separated them when it was sent may be another than now.
        let rest = local.strip_prefix(&name)?.strip_prefix(|c| c == '+' || Some(c) == own.subaddress)?;
        is_token_like(rest).then(|| Token::read(rest, marks))
    });
    match token {
        Some(token) => Some(token.map_or(Back::Forged, Back::Of)),
        None => own.was_bounce(address).then_some(Back::Plain),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config;

    fn marks() -> (tempfile::TempDir, Marks) {
        let folder = tempfile::tempdir().unwrap();
        let marks = Marks::open(folder.path()).unwrap();
        (folder, marks)
    }

    fn config(more: &str) -> Config {
        let text = format!(
            "hostname = \"mail.my.example\"\ndata_dir = \"/nonexistent\"\n[sender]\nreturn_path = \"verp\"\n\
             [domains.\"my.example\"]\n{more}\n[domains.\"other.example\"]\n"
        );
        config::parse("test.toml", &text).unwrap()
    }

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    #[test]
    fn every_spelling_of_a_return_path_is_known() {
        let (_folder, marks) = marks();
        let token = Token { id: MessageId::first_at(1_900_000_000_000), number: 7 };
        for (more, bounce) in [
            ("", "bounce@my.example"),
            ("bounce = \"Back\"", "Back@my.example"),
            ("subaddress = \"\"", "bounce@my.example"),
            ("subaddress = \"-\"", "bounce@my.example"),
            ("bounce = \"abcdefghijklmnopqrstuvwxyz\"", "abcdefghijklmnopqrstuvwxyz@my.example"),
        ] {
            let (bounce, config) = (address(bounce), config(more));
            let path = mark(&config, &marks, &bounce, token).unwrap();
            assert!(path.local().len() <= 64, "{path}");
            assert_eq!(read(&config, &marks, &path), Some(Back::Of(token)), "{path}");
            assert_eq!(read(&config, &marks, &address(&path.to_string().to_uppercase())), Some(Back::Of(token)));
            assert_eq!(read(&config, &marks, &bounce), Some(Back::Plain));
        }
        let config = config("previous_names = [\"old\"]");
        let path = mark(&config, &marks, &address("old@my.example"), token).unwrap();
        assert_eq!(read(&config, &marks, &path), Some(Back::Of(token)));
        for (other, back) in [
            ("old@my.example", Some(Back::Plain)),
            ("bounce+word@my.example", Some(Back::Plain)),
            ("bounced@my.example", None),
            ("old@other.example", None),
            ("bounce@far.example", None),
        ] {
            assert_eq!(read(&config, &marks, &address(other)), back, "{other}");
        }
    }

    #[test]
    fn what_others_make_up_is_no_token() {
        let (_folder, marks) = marks();
        let config = config("");
        let bounce = address("bounce@my.example");
        let token = Token { id: MessageId::first_at(1_900_000_000_000), number: 7 };
        let path = mark(&config, &marks, &bounce, token).unwrap().to_string();
        let (_other, others) = self::marks();
        let foreign = mark(&config, &others, &bounce, token).unwrap();
        assert_eq!(read(&config, &marks, &foreign), Some(Back::Forged));
        let at = path.find('@').unwrap();
        for position in "bounce+".len()..at {
            let mut changed = path.clone().into_bytes();
            if changed[position] == b'-' {
                continue;
            }
            changed[position] = if changed[position] == b'7' { b'8' } else { b'7' };
            let changed = address(&String::from_utf8(changed).unwrap());
            assert_eq!(read(&config, &marks, &changed), Some(Back::Forged), "{changed}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_rendered_is_read(id in 0..u64::MAX, number in 0..u32::MAX) {
            let (_folder, marks) = marks();
            let token = Token { id: MessageId::from_u64(id), number };
            let text = token.render(&marks);
            proptest::prop_assert_eq!(text.len(), TOKEN_LETTERS);
            proptest::prop_assert_eq!(Token::read(&text, &marks), Some(token));
        }

        #[test]
        fn any_text_is_harmless(text in ".{0,60}") {
            let (_folder, marks) = marks();
            proptest::prop_assert_eq!(Token::read(&text, &marks), None);
        }
    }
}
