//! What the lines of an IMAP server mean, as far as it is of use here, without I/O.
//!
//! What is not understood is passed over: a server may say more than it is asked for (RFC 9051 7).

/// An answer, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The end of a command: its tag, whether it was done, code and text.
    Done {
        tag: String,
        status: Status,
        code: Option<String>,
        text: String,
    },
    /// `* OK`, `* NO`, `* BAD` or `* PREAUTH`.
    Told {
        status: Status,
        code: Option<String>,
        text: String,
    },
    Bye(String),
    Capability(Vec<String>),
    Search(Vec<u32>),
    Exists(u32),
    Fetch(Fetched),
    /// `+`, with what follows.
    Continue(String),
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok,
    No,
    Bad,
    PreAuth,
}

/// Of one message, what was told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    pub uid: Option<u32>,
    pub size: Option<u64>,
    pub body: Option<Body>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    Nil,
    /// As a quoted string: only short ones can be.
    Quoted(Vec<u8>),
    /// It was the literal with this number in the answer.
    Literal(usize),
}

/// A literal in the texts that [`Answer::read`] gets.
const LITERAL_MARK: u8 = 0;

/// Puts a literal's place into the text of an answer.
pub fn mark_literal(text: &mut Vec<u8>) {
    text.push(LITERAL_MARK);
}

/// Does the text before a literal announce the content of a message?
pub fn announces_body(text: &[u8]) -> bool {
    let text = text.strip_suffix(b" ").unwrap_or(text);
    let Some(before) = text.len().checked_sub(6).and_then(|at| text.get(at..)) else { return false };
    before.eq_ignore_ascii_case(b"BODY[]") && text.starts_with(b"* ")
}

impl Answer {
    /// `text`: a line, or several joined where literals stood, with a mark for each of them.
    pub fn read(text: &[u8]) -> Answer {
        let (first, rest) = word(text);
        match first {
            b"+" => Answer::Continue(lossy(rest)),
            b"*" => untagged(rest),
            tag => {
                let (word, rest) = word(rest);
                match status(word) {
                    Some(status) => {
                        let (code, text) = code(rest);
                        Answer::Done { tag: lossy(tag), status, code, text }
                    }
                    None => Answer::Other,
                }
            }
        }
    }
}

fn untagged(text: &[u8]) -> Answer {
    let (first, rest) = word(text);
    if let Some(status) = status(first).or_else(|| first.eq_ignore_ascii_case(b"PREAUTH").then_some(Status::PreAuth)) {
        let (code, text) = code(rest);
        return Answer::Told { status, code, text };
    }
    if first.eq_ignore_ascii_case(b"BYE") {
        return Answer::Bye(code(rest).1);
    }
    if first.eq_ignore_ascii_case(b"CAPABILITY") {
        return Answer::Capability(capabilities(&lossy(rest)));
    }
    if first.eq_ignore_ascii_case(b"SEARCH") {
        // RFC 7162 3.1.5 adds a list in parentheses.
        let words = rest.split(|byte| *byte == b' ').take_while(|word| !word.starts_with(b"("));
        return Answer::Search(words.filter_map(number).collect());
    }
    let Some(count) = number(first) else { return Answer::Other };
    let (kind, rest) = word(rest);
    if kind.eq_ignore_ascii_case(b"EXISTS") {
        Answer::Exists(count)
    } else if kind.eq_ignore_ascii_case(b"FETCH") {
        fetched(rest).map_or(Answer::Other, Answer::Fetch)
    } else {
        Answer::Other
    }
}

pub fn capabilities(text: &str) -> Vec<String> {
    text.split_ascii_whitespace().map(str::to_ascii_uppercase).collect()
}

fn word(text: &[u8]) -> (&[u8], &[u8]) {
    match text.iter().position(|byte| *byte == b' ') {
        Some(at) => (text.get(..at).unwrap_or_default(), text.get(at + 1..).unwrap_or_default()),
        None => (text, b""),
    }
}

fn status(word: &[u8]) -> Option<Status> {
    let known = [("OK", Status::Ok), ("NO", Status::No), ("BAD", Status::Bad)];
    known.into_iter().find(|(name, _)| word.eq_ignore_ascii_case(name.as_bytes())).map(|(_, status)| status)
}

/// `[CODE …] text for people`
fn code(text: &[u8]) -> (Option<String>, String) {
    let cut = text.strip_prefix(b"[").and_then(|inner| {
        let end = inner.iter().position(|byte| *byte == b']')?;
        Some((inner.get(..end)?, inner.get(end + 1..)?))
    });
    match cut {
        Some((code, text)) => (Some(lossy(code)), shown(text)),
        None => (None, shown(text)),
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn shown(text: &[u8]) -> String {
    super::super::shown(text)
}

fn number<T: std::str::FromStr>(word: &[u8]) -> Option<T> {
    std::str::from_utf8(word).ok().filter(|word| word.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Open,
    Close,
    Word(Vec<u8>),
    Quoted(Vec<u8>),
    /// With its number.
    Literal(usize),
}

/// The list behind FETCH. None if it is none.
fn fetched(text: &[u8]) -> Option<Fetched> {
    let mut tokens = tokens(text)?.into_iter();
    if tokens.next() != Some(Token::Open) {
        return None;
    }
    let mut fetched = Fetched::default();
    loop {
        let name = match tokens.next()? {
            Token::Close => return Some(fetched),
            Token::Word(name) => name,
            _ => return None,
        };
        let value = tokens.next()?;
        match value {
            Token::Open => skip_list(&mut tokens)?,
            Token::Close => return None,
            Token::Word(word) if name.eq_ignore_ascii_case(b"UID") => fetched.uid = number(&word),
            Token::Word(word) if name.eq_ignore_ascii_case(b"RFC822.SIZE") => fetched.size = number(&word),
            value if name.eq_ignore_ascii_case(b"BODY[]") => {
                fetched.body = Some(match value {
                    Token::Quoted(bytes) => Body::Quoted(bytes),
                    Token::Literal(index) => Body::Literal(index),
                    _ => Body::Nil,
                });
            }
            _ => {}
        }
    }
}

fn skip_list(tokens: &mut impl Iterator<Item = Token>) -> Option<()> {
    let mut depth = 1_usize;
    while depth > 0 {
        match tokens.next()? {
            Token::Open => depth += 1,
            Token::Close => depth -= 1,
            _ => {}
        }
    }
    Some(())
}

fn tokens(text: &[u8]) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut literals = 0;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match *first {
            b' ' => {}
            b'(' => tokens.push(Token::Open),
            b')' => tokens.push(Token::Close),
            LITERAL_MARK => {
                tokens.push(Token::Literal(literals));
                literals += 1;
            }
            b'"' => {
                let (bytes, after) = quoted(rest)?;
                tokens.push(Token::Quoted(bytes));
                rest = after;
            }
            first => {
                // Blanks and parentheses in brackets belong to the word: BODY[HEADER.FIELDS (TO)].
                let mut depth = usize::from(first == b'[');
                let end = rest.iter().position(|byte| match byte {
                    b'[' => {
                        depth += 1;
                        false
                    }
                    b']' => {
                        depth = depth.saturating_sub(1);
                        false
                    }
                    b' ' | b'(' | b')' => depth == 0,
                    _ => false,
                });
                let end = end.unwrap_or(rest.len());
                let mut word = vec![first];
                word.extend_from_slice(rest.get(..end)?);
                tokens.push(Token::Word(word));
                rest = rest.get(end..)?;
            }
        }
    }
    Some(tokens)
}

/// Behind the opening quote: what is quoted, and what follows.
fn quoted(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut bytes = Vec::new();
    let mut at = 0;
    loop {
        match text.get(at)? {
            b'"' => return Some((bytes, text.get(at + 1..)?)),
            b'\\' => {
                bytes.push(*text.get(at + 1)?);
                at += 2;
            }
            other => {
                bytes.push(*other);
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fetch(uid: Option<u32>, size: Option<u64>, body: Option<Body>) -> Answer {
        Answer::Fetch(Fetched { uid, size, body })
    }

    #[test]
    fn answers_are_understood() {
        let told = |status, code: Option<&str>, text: &str| Answer::Told {
            status,
            code: code.map(str::to_owned),
            text: text.to_owned(),
        };
        let quoted = Some(Body::Quoted(b"a\"b".to_vec()));
        for (text, answer) in [
            ("* OK [UIDVALIDITY 17] UIDs", told(Status::Ok, Some("UIDVALIDITY 17"), "UIDs")),
            ("* preauth hi", told(Status::PreAuth, None, "hi")),
            ("* BYE [X] gone", Answer::Bye("gone".to_owned())),
            ("* CAPABILITY IMAP4rev1 auth=plain", Answer::Capability(vec!["IMAP4REV1".into(), "AUTH=PLAIN".into()])),
            ("* SEARCH", Answer::Search(Vec::new())),
            ("* SEARCH 2 84 882 (MODSEQ 917162500)", Answer::Search(vec![2, 84, 882])),
            ("* 23 EXISTS", Answer::Exists(23)),
            ("* 44 EXPUNGE", Answer::Other),
            ("* 1 FETCH (FLAGS (\\Seen (x)) UID 5)", fetch(Some(5), None, None)),
            ("* 1 FETCH (RFC822.SIZE 12 BODY[] \0 UID 5)", fetch(Some(5), Some(12), Some(Body::Literal(0)))),
            ("* 1 FETCH (BODY[HEADER.FIELDS (TO)] \0 BODY[] \"a\\\"b\")", fetch(None, None, quoted)),
            ("* 1 FETCH (UID 99999999999 BODY[] NIL)", fetch(None, None, Some(Body::Nil))),
            ("* 1 FETCH (UID 5", Answer::Other),
            ("* 1 FETCH UID 5", Answer::Other),
            ("+ go on", Answer::Continue("go on".to_owned())),
            ("", Answer::Other),
        ] {
            assert_eq!(Answer::read(text.as_bytes()), answer, "{text:?}");
        }
        let done = Answer::Done {
            tag: "p7".to_owned(),
            status: Status::No,
            code: Some("TRYCREATE".to_owned()),
            text: "no folder?".to_owned(),
        };
        assert_eq!(Answer::read(b"p7 NO [TRYCREATE] no folder\x07"), done);
        assert!(announces_body(b"* 1 FETCH (body[] ") && !announces_body(b"* 1 FETCH (BODY[TEXT] "));
    }

    proptest! {
        #[test]
        fn no_line_panics(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Answer::read(&line);
            let _ = announces_body(&line);
        }

        #[test]
        fn no_fetch_panics(list in "[()\\[\\]\" \\\\\0a-zA-Z0-9.]{0,80}") {
            let _ = Answer::read(format!("* 3 FETCH {list}").as_bytes());
        }

        #[test]
        fn what_a_server_tells_comes_out(uid in any::<u32>(), size in any::<u64>()) {
            let text = format!("* 9 FETCH (FLAGS () RFC822.SIZE {size} UID {uid})");
            prop_assert_eq!(Answer::read(text.as_bytes()), fetch(Some(uid), Some(size), None));
        }
    }
}
