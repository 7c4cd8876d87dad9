//! Lists of mailboxes in header fields (RFC 5322 3.4): comments, quoted strings, groups, obsolete
//! routes. Strict, because the From field decides who a message is from: whatever does not fit the
//! grammar is an error, never a guess. Encoded words stay as they are, in names and in addresses.
//!
//! Obsolete spellings are read where the result is an address as RFC 5321 writes it. Left out: names
//! in comments behind an address.

use super::address::{Address, AddressError, Domain};
use super::header::HeaderError;

/// How deep comments may be nested.
const COMMENT_DEPTH_MAX: usize = 16;
/// Mailboxes in one field.
const MAILBOXES_MAX: usize = 10_000;
/// Words and signs in one field: more than so many mailboxes have with their names. Each is kept until the field is read.
const TOKENS_MAX: usize = 32 * MAILBOXES_MAX;

/// A name for eyes, and an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mailbox {
    /// The display name, quotes removed; empty if there is none.
    pub name: String,
    pub address: Address,
}

/// The mailboxes in the value of From, To, Cc and the like; groups are opened (RFC 6854), an empty
/// group gives none.
pub fn mailboxes(value: &[u8]) -> Result<Vec<Mailbox>, HeaderError> {
    let text = joined(value)?;
    let tokens = tokenise(&text)?;
    let mut found = Vec::new();
    let (mut rest, mut in_group, mut any_group) = (tokens.as_slice(), false, false);
    loop {
        let (item, separator, after) = cut_item(rest)?;
        rest = after;
        if separator == Some(':') {
            if in_group || item.angle.is_some() || phrase(item.words).is_none_or(|name| name.is_empty()) {
                return Err(HeaderError::BadList);
            }
            (in_group, any_group) = (true, true);
            continue;
        }
        // Empty places between commas are read over (RFC 5322 4.4).
        found.extend(item.mailbox()?);
        if found.len() > MAILBOXES_MAX {
            return Err(HeaderError::TooManyMailboxes);
        }
        match separator {
            Some(';') if in_group => {
                in_group = false;
                rest = match rest.split_first() {
                    None => rest,
                    Some((Token::Special(','), after)) => after,
                    Some(_) => return Err(HeaderError::BadList),
                };
            }
            Some(',') => {}
            None if in_group => return Err(HeaderError::NotClosed),
            None if found.is_empty() && !any_group => return Err(HeaderError::Empty),
            None => return Ok(found),
            Some(_) => return Err(HeaderError::BadList),
        }
    }
}

/// Without the folding; any other control character could be read in more than one way.
fn joined(value: &[u8]) -> Result<String, HeaderError> {
    let text = String::from_utf8_lossy(value);
    let text = text.strip_suffix("\r\n").unwrap_or(&text).replace("\r\n ", " ").replace("\r\n\t", " ");
    match text.chars().any(|c| c.is_control() && c != '\t') {
        true => Err(HeaderError::Control),
        false => Ok(text),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    /// Letters and all else that is neither blank nor special; without dots.
    Atom(&'a str),
    /// With its quotes.
    Quoted(&'a str),
    /// With its brackets.
    Literal(&'a str),
    /// One of `. @ < > , : ;`.
    Special(char),
}

/// Cuts text into tokens; blanks and comments between them vanish.
struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Tokens<'a> {
    fn next(&mut self) -> Result<Option<Token<'a>>, HeaderError> {
        self.skip_blanks_and_comments()?;
        let Some(first) = self.rest.chars().next() else { return Ok(None) };
        let token = match first {
            '"' => Token::Quoted(self.take_closed('"')?),
            '[' => Token::Literal(self.take_closed(']')?),
            '.' | '@' | '<' | '>' | ',' | ':' | ';' => {
                self.take(1);
                Token::Special(first)
            }
            ')' | ']' | '\\' => return Err(HeaderError::BadList),
            _ => Token::Atom(self.take_atom()),
        };
        Ok(Some(token))
    }

    fn take(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        taken
    }

    fn take_atom(&mut self) -> &'a str {
        let ends = |c: char| c.is_ascii_whitespace() || "\"()[]\\.@<>,:;".contains(c);
        self.take(self.rest.find(ends).unwrap_or(self.rest.len()))
    }

    /// From an opening quote or bracket through its end; a backslash guards one character.
    fn take_closed(&mut self, end: char) -> Result<&'a str, HeaderError> {
        let mut escaped = false;
        for (at, c) in self.rest.char_indices().skip(1) {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                c if c == end => return Ok(self.take(at + c.len_utf8())),
                _ => {}
            }
        }
        Err(HeaderError::NotClosed)
    }

    fn skip_blanks_and_comments(&mut self) -> Result<(), HeaderError> {
        let mut depth = 0usize;
        let mut escaped = false;
        for (at, c) in self.rest.char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' if depth > 0 => escaped = true,
                '(' if depth == COMMENT_DEPTH_MAX => return Err(HeaderError::TooDeep),
                '(' => depth += 1,
                ')' if depth > 0 => depth -= 1,
                _ if depth > 0 || c == ' ' || c == '\t' => {}
                _ => {
                    self.take(at);
                    return Ok(());
                }
            }
        }
        self.take(self.rest.len());
        if depth > 0 { Err(HeaderError::NotClosed) } else { Ok(()) }
    }
}

fn tokenise(text: &str) -> Result<Vec<Token<'_>>, HeaderError> {
    let mut tokens = Tokens { rest: text };
    let mut all = Vec::new();
    while let Some(token) = tokens.next()? {
        if all.len() == TOKENS_MAX {
            return Err(HeaderError::TooManyMailboxes);
        }
        all.push(token);
    }
    Ok(all)
}

/// What stands between two separators: words, perhaps an address in angle brackets behind them.
struct Item<'t, 'a> {
    words: &'t [Token<'a>],
    angle: Option<&'t [Token<'a>]>,
}

/// An item, the separator that ended it, and what follows.
type Cut<'t, 'a> = (Item<'t, 'a>, Option<char>, &'t [Token<'a>]);

/// Cuts off the first item, up to `,` `:` `;` or the end.
fn cut_item<'t, 'a>(tokens: &'t [Token<'a>]) -> Result<Cut<'t, 'a>, HeaderError> {
    let ends_words = |token: &Token<'_>| matches!(token, Token::Special('<' | '>' | ',' | ':' | ';'));
    let (words, rest) = tokens.split_at(tokens.iter().position(ends_words).unwrap_or(tokens.len()));
    let (angle, rest) = match rest.split_first() {
        Some((Token::Special('<'), inside)) => {
            let close = inside.iter().position(|t| *t == Token::Special('>')).ok_or(HeaderError::NotClosed)?;
            let (angle, rest) = inside.split_at(close);
            (Some(angle), rest.split_first().map_or(rest, |(_, rest)| rest))
        }
        _ => (None, rest),
    };
    match rest.split_first() {
        None => Ok((Item { words, angle }, None, rest)),
        Some((Token::Special(separator @ (',' | ':' | ';')), rest)) => {
            Ok((Item { words, angle }, Some(*separator), rest))
        }
        Some(_) => Err(HeaderError::BadList),
    }
}

impl Item<'_, '_> {
    /// None for an empty place.
    fn mailbox(&self) -> Result<Option<Mailbox>, HeaderError> {
        let Some(angle) = self.angle else {
            return match self.words {
                [] => Ok(None),
                words => Ok(Some(Mailbox { name: String::new(), address: address(words)? })),
            };
        };
        let address = address(strip_route(angle)?)?;
        let name = match phrase(self.words) {
            Some(name) => name,
            // `box@host <box@host>` breaks the grammar but is common, and names one mailbox only.
            None => match self::address(self.words) {
                Ok(same) if same.lookup_key() == address.lookup_key() => same.to_string(),
                _ => return Err(HeaderError::BadList),
            },
        };
        Ok(Some(Mailbox { name, address }))
    }
}

/// A display name; dots are taken (RFC 5322 4.1 obs-phrase), an @ is not.
fn phrase(words: &[Token<'_>]) -> Option<String> {
    let mut name = String::new();
    for word in words {
        let text = match word {
            Token::Atom(text) => (*text).to_owned(),
            Token::Quoted(text) => unquoted(text),
            Token::Special('.') => {
                name.push('.');
                continue;
            }
            Token::Literal(_) | Token::Special(_) => return None,
        };
        if !name.is_empty() {
            name.push(' ');
        }
        name.push_str(&text);
    }
    Some(name)
}

fn unquoted(quoted: &str) -> String {
    let inner = quoted.strip_prefix('"').and_then(|q| q.strip_suffix('"')).unwrap_or(quoted);
    let mut escaped = false;
    let keep = |c: &char| {
        let drop = *c == '\\' && !escaped;
        escaped = drop;
        !drop
    };
    inner.chars().filter(keep).collect()
}

/// addr-spec: words with dots between them, one @, a domain.
fn address(tokens: &[Token<'_>]) -> Result<Address, HeaderError> {
    let at = tokens.iter().position(|t| *t == Token::Special('@'));
    let (local, domain) = tokens.split_at(at.ok_or(HeaderError::BadAddress(AddressError::NoAt))?);
    let local = dotted(local).ok_or(HeaderError::BadAddress(AddressError::BadLocalPart))?;
    let domain = self::domain(domain.split_first().map_or(domain, |(_, rest)| rest))?;
    Address::new(&local, domain).map_err(HeaderError::BadAddress)
}

fn domain(tokens: &[Token<'_>]) -> Result<Domain, HeaderError> {
    let bad = HeaderError::BadAddress(AddressError::BadDomain);
    let text = match tokens {
        [Token::Literal(literal)] => (*literal).to_owned(),
        tokens if tokens.iter().any(|t| matches!(t, Token::Quoted(_))) => return Err(bad),
        tokens => dotted(tokens).ok_or(bad)?,
    };
    Domain::parse(&text).map_err(HeaderError::BadAddress)
}

/// Joins `word . word . word`; two words side by side are not one.
fn dotted(tokens: &[Token<'_>]) -> Option<String> {
    let mut joined = String::new();
    let mut wants_word = true;
    for token in tokens {
        match (token, wants_word) {
            (Token::Atom(text) | Token::Quoted(text), true) => joined.push_str(text),
            (Token::Special('.'), false) => joined.push('.'),
            _ => return None,
        }
        wants_word = !wants_word;
    }
    (!wants_word).then_some(joined)
}

/// `@one,@two:box@three` → `box@three` (RFC 5322 4.4 obs-route). The hops mean nothing today, but
/// they must be domains.
fn strip_route<'t, 'a>(angle: &'t [Token<'a>]) -> Result<&'t [Token<'a>], HeaderError> {
    if angle.first() != Some(&Token::Special('@')) {
        return Ok(angle);
    }
    let colon = angle.iter().position(|t| *t == Token::Special(':')).ok_or(HeaderError::BadList)?;
    let (route, mailbox) = angle.split_at(colon);
    for hop in route.split(|t| *t == Token::Special(',')) {
        match hop.split_first() {
            Some((Token::Special('@'), name)) => domain(name)?,
            _ => return Err(HeaderError::BadList),
        };
    }
    Ok(mailbox.split_first().map_or(mailbox, |(_, rest)| rest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parsed(text: &str) -> Vec<(String, String)> {
        let list = mailboxes(text.as_bytes()).unwrap_or_else(|e| unreachable!("{text:?}: {e}"));
        list.into_iter().map(|m| (m.name, m.address.to_string())).collect()
    }

    fn one(text: &str) -> (String, String) {
        let list = parsed(text);
        assert_eq!(list.len(), 1, "{text:?}");
        list.into_iter().next().unwrap()
    }

    #[test]
    fn reads_mailboxes_in_every_spelling() {
        for (text, name, address) in [
            ("a@b.example", "", "a@b.example"),
            (" <a@b.example>\r\n", "", "a@b.example"),
            ("Bob Loblaw <bob@b.example>", "Bob Loblaw", "bob@b.example"),
            ("\"Loblaw, \\\"Bob\\\"\" <bob@b.example>", "Loblaw, \"Bob\"", "bob@b.example"),
            ("J. R. Ewing <jr@b.example>", "J. R. Ewing", "jr@b.example"),
            ("=?utf-8?Q?B=C3=B6b?= <b@b.example>", "=?utf-8?Q?B=C3=B6b?=", "b@b.example"),
            ("Böb <b@bücher.example>", "Böb", "b@xn--bcher-kva.example"),
            ("\"a b\"@c.example", "", "\"a b\"@c.example"),
            ("\"a@b.example\" <c@d.example>", "a@b.example", "c@d.example"),
            ("a (one (two \\) three)) @ (x) b.example (end)", "", "a@b.example"),
            ("a@b.example(.c.example)", "", "a@b.example"),
            ("a . b@c . example", "", "a.b@c.example"),
            ("<@x.example,@y.example:a@b.example>", "", "a@b.example"),
            ("a@[192.0.2.1]", "", "a@[192.0.2.1]"),
            ("A@B.Example <a@b.example>", "A@b.example", "a@b.example"),
            ("\r\n Bob\r\n\t<bob@b.example>", "Bob", "bob@b.example"),
        ] {
            assert_eq!(one(text), (name.to_owned(), address.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn opens_lists_and_groups() {
        let addresses = |text| parsed(text).into_iter().map(|(_, address)| address).collect::<Vec<_>>();
        assert_eq!(addresses("a@b.example, , C <c@d.example>,"), ["a@b.example", "c@d.example"]);
        assert_eq!(
            addresses("Us: a@b.example, C <c@d.example>;, e@f.example"),
            ["a@b.example", "c@d.example", "e@f.example"]
        );
        assert_eq!(addresses("Undisclosed:;"), Vec::<String>::new());
        assert_eq!(addresses("One: ; (x)"), Vec::<String>::new());
    }

    #[test]
    fn refuses_what_two_readers_could_read_differently() {
        for text in [
            "",
            " , ",
            "ceo",
            "a b@c.example",
            "<a@b.example> ceo@victim.example",
            "<a@b.example> <c@d.example>",
            "ceo@victim.example <a@b.example>",
            "ceo@victim.example\u{202e} <a@b.example>",
            "a@b.example c@d.example",
            "a@b@c.example",
            "a@b.example;",
            "x: y: a@b.example;;",
            ": a@b.example;",
            "x: a@b.example",
            "x: a@b.example; c@d.example",
            "<a@b.example",
            "a@b.example>",
            "<>",
            "x <>",
            "<a@b.example,c@d.example>",
            "<@x.example a@b.example>",
            "<@:a@b.example>",
            "\"open <a@b.example>",
            "(open a@b.example",
            ") a@b.example",
            "a@b.example\0.c.example",
            "a@b.example\r\nBcc: c@d.example",
            "a@b.example\n c",
            "a@\"b\".example",
            "a@b..example",
            ".a@b.example",
            "a@[x]",
            "\\a@b.example",
        ] {
            assert!(mailboxes(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(mailboxes(b"\xff@b.example").is_err());
        assert_eq!(mailboxes(b"\xffx <a@b.example>").unwrap()[0].name, "\u{fffd}x");
    }

    #[test]
    fn depth_and_number_are_bounded() {
        let deep = format!("{}{} a@b.example", "(".repeat(17), ")".repeat(17));
        assert_eq!(mailboxes(deep.as_bytes()), Err(HeaderError::TooDeep));
        let many = "a@b.example,".repeat(MAILBOXES_MAX + 1);
        assert_eq!(mailboxes(many.as_bytes()), Err(HeaderError::TooManyMailboxes));
        // Nor is more kept of what is no mailbox at all.
        assert_eq!(mailboxes("a:".repeat(TOKENS_MAX).as_bytes()), Err(HeaderError::TooManyMailboxes));
    }
}
