//! Reading a mailbox by POP3 (RFC 1939, RFC 2449, RFC 5034).
//!
//! Promises: messages are known by their UIDL, or by a hash of header and size where the server has none;
//! nothing is deleted but what we name, and that only when QUIT was answered; every line and wait is
//! bounded.
//!
//! The parts that know no I/O are [`Lines`] and [`Dots`].

use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};

use super::collect::Collector;
use super::wire::{Trouble, Ways, Wire};
use super::{Credential, Listed, hashed, shown};
use crate::config::PopTls;
use crate::trail::Leg;

/// Bytes of an answer's line; RFC 2449 4 allows 512.
const LINE_BYTES_MAX: usize = 8 * 1024;
/// Bytes of a UIDL; RFC 1939 7 allows 70. Of a longer one there is the hash.
const ID_BYTES_MAX: usize = 255;
/// Messages in a mailbox.
const MESSAGES_MAX: usize = 200_000;
/// Bytes of a message's header section, where it takes the place of a UIDL.
const TOP_BYTES_MAX: usize = 512 * 1024;
/// Bytes beyond the largest message that are read to no purpose, so that the connection stays good.
const PASSED_OVER_MAX: usize = 16 * 1024 * 1024;
/// RFC 2449 8, RFC 3206 4: it may work later.
const LATER_CODES: [&str; 3] = ["[IN-USE]", "[LOGIN-DELAY]", "[SYS/TEMP]"];

/// A connection that is logged in.
pub struct Pop3 {
    wire: Wire,
    lines: Lines,
}

/// A message in the mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub listed: Listed,
    /// The UIDL, or what takes its place.
    pub id: Bytes,
}

/// Cuts the input into lines.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    searched: usize,
}

impl Lines {
    /// The next line without its end; none if more input is needed.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Vec<u8>>, Trouble> {
        let rest = input.get(self.searched..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == b'\n').map(|at| at + self.searched);
        if end.unwrap_or(input.len()) > LINE_BYTES_MAX {
            return Err(Trouble::protocol(format!("a line is longer than {LINE_BYTES_MAX} bytes")));
        }
        let Some(end) = end else {
            self.searched = input.len();
            return Ok(None);
        };
        self.searched = 0;
        let mut line = input.split_to(end + 1).to_vec();
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(Some(line))
    }
}

/// Takes the dots out of an answer of many lines (RFC 1939 3), up to its end.
#[derive(Clone, Debug, Default)]
pub struct Dots {
    state: At,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// Behind CRLF, or at the very beginning.
    #[default]
    Begin,
    /// Behind the dot that stands there.
    Dot,
    /// Behind that dot and a CR.
    DotCr,
    Within,
    Cr,
    End,
}

impl Dots {
    /// Appends what is meant to `out`. Gives how many bytes of the input were used, which is all of them
    /// before the end.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> usize {
        let mut used = 0;
        for byte in input {
            if self.state == At::End {
                break;
            }
            used += 1;
            self.state = match (self.state, *byte) {
                (At::Begin, b'.') => At::Dot,
                (At::Dot, b'\r') => At::DotCr,
                (At::DotCr, b'\n') => At::End,
                (At::DotCr, byte) => {
                    out.extend_from_slice(&[b'\r', byte]);
                    if byte == b'\r' { At::Cr } else { At::Within }
                }
                (At::Cr, b'\n') => {
                    out.push(b'\n');
                    At::Begin
                }
                (_, byte) => {
                    out.push(byte);
                    if byte == b'\r' { At::Cr } else { At::Within }
                }
            };
        }
        used
    }

    pub fn is_over(&self) -> bool {
        self.state == At::End
    }
}

impl Pop3 {
    /// `tls` implicit: the wire is under TLS already.
    pub async fn open(
        wire: Wire,
        ways: &Ways,
        host: &str,
        tls: PopTls,
        credential: &Credential,
    ) -> Result<Pop3, Trouble> {
        let mut pop = Pop3 { wire, lines: Lines::default() };
        let since = Instant::now();
        let greeting = pop.hear("the greeting").await.map_err(|trouble| match trouble {
            Trouble::Refused(what) => Trouble::connection(what),
            other => other,
        })?;
        ways.mark(Leg::Banner, since, greeting);
        if tls == PopTls::Required {
            let since = Instant::now();
            pop.say("STLS", "STLS").await?;
            ways.mark(Leg::Starttls, since, "the server is ready for TLS");
            pop.wire = pop.wire.start_tls(ways, host).await?;
        }
        let since = Instant::now();
        pop.log_in(credential).await.map_err(|trouble| match trouble {
            Trouble::Refused(what) if LATER_CODES.iter().any(|code| what.contains(code)) => Trouble::connection(what),
            Trouble::Refused(what) => Trouble::Login(credential.without_secrets(&what)),
            other => other,
        })?;
        ways.mark(Leg::Auth, since, "logged in");
        Ok(pop)
    }

    /// By AUTH where the password could not be said otherwise, or a token is shown; by USER and PASS else,
    /// which every server has.
    async fn log_in(&mut self, credential: &Credential) -> Result<(), Trouble> {
        match credential {
            Credential::Token { .. } => self.authenticate("XOAUTH2", &credential.xoauth2()).await,
            Credential::Password { username, password } => {
                if !username.is_ascii() || !password.0.is_ascii() {
                    return self.authenticate("PLAIN", &credential.plain()).await;
                }
                if password.0.chars().any(char::is_control) {
                    return Err(Trouble::protocol("POP3 has no passwords with control characters"));
                }
                self.say(&format!("USER {username}"), "USER").await?;
                self.say(&format!("PASS {}", password.0), "PASS").await.map(|_| ())
            }
        }
    }

    /// RFC 5034 4.
    async fn authenticate(&mut self, mechanism: &str, response: &[u8]) -> Result<(), Trouble> {
        self.wire.send(format!("AUTH {mechanism}\r\n").as_bytes()).await?;
        let mut response = Some(BASE64_STANDARD.encode(response));
        for _ in 0..3 {
            let line = self.line().await?;
            if !line.starts_with(b"+ ") && line != b"+" {
                return understood(&line, "AUTH").map(|_| ());
            }
            // A mechanism that is refused may say why first, and waits for an empty line.
            let line = response.take().unwrap_or_default();
            self.wire.send(format!("{line}\r\n").as_bytes()).await?;
        }
        Err(Trouble::protocol("AUTH has no end"))
    }

    /// All messages, and whether these are all.
    pub async fn list(&mut self) -> Result<(Vec<Known>, bool), Trouble> {
        let mut messages = Vec::new();
        let mut is_complete = true;
        self.say("LIST", "LIST").await?;
        while let Some(line) = self.item().await? {
            let (number, size) = pair(&line).ok_or_else(|| not_understood("LIST", &line))?;
            let number = parse(number).ok_or_else(|| not_understood("LIST", &line))?;
            match messages.len() < MESSAGES_MAX {
                true => messages.push(Listed { number, size: parse(size) }),
                false => is_complete = false,
            }
        }
        match self.say("UIDL", "UIDL").await {
            Ok(_) => {}
            Err(Trouble::Refused(_)) => return Ok((self.list_by_header(messages).await?, is_complete)),
            Err(trouble) => return Err(trouble),
        }
        let mut known = Vec::new();
        let mut sizes = messages.into_iter().peekable();
        while let Some(line) = self.item().await? {
            let (number, id) = pair(&line).ok_or_else(|| not_understood("UIDL", &line))?;
            let number = parse(number).ok_or_else(|| not_understood("UIDL", &line))?;
            // Both lists are in order; where not, a size is not known beforehand.
            while sizes.next_if(|listed| listed.number < number).is_some() {}
            let size = sizes.next_if(|listed| listed.number == number).and_then(|listed| listed.size);
            match known.len() < MESSAGES_MAX {
                true => known.push(Known { listed: Listed { number, size }, id: short(id) }),
                false => is_complete = false,
            }
        }
        Ok((known, is_complete))
    }

    /// What a server without UIDL has: the header section and the size.
    async fn list_by_header(&mut self, messages: Vec<Listed>) -> Result<Vec<Known>, Trouble> {
        let mut known = Vec::new();
        for listed in messages {
            self.say(&format!("TOP {} 0", listed.number), "TOP").await?;
            let header = self.lines_of(TOP_BYTES_MAX).await?;
            let size = listed.size.unwrap_or_default().to_be_bytes();
            known.push(Known { listed, id: Bytes::copy_from_slice(&hashed(&[&header, &size])) });
        }
        Ok(known)
    }

    pub async fn read(&mut self, number: u32, into: &mut Collector) -> Result<(), Trouble> {
        self.say(&format!("RETR {number}"), "RETR").await?;
        let mut dots = Dots::default();
        let mut out = Vec::new();
        let mut passed_over = 0;
        loop {
            let used = dots.feed(&self.wire.input, &mut out);
            let _ = self.wire.input.split_to(used);
            if into.is_unfit() {
                passed_over += out.len();
            }
            into.push(&out).await;
            out.clear();
            if dots.is_over() {
                return Ok(());
            }
            if passed_over > PASSED_OVER_MAX {
                return Err(Trouble::connection("a message is far larger than the server had said"));
            }
            self.wire.fill().await?;
        }
    }

    pub async fn delete(&mut self, number: u32) -> Result<(), Trouble> {
        self.say(&format!("DELE {number}"), "DELE").await.map(|_| ())
    }

    /// Deletes what was named. Ok: the server says that it has.
    pub async fn close(mut self) -> Result<(), Trouble> {
        self.say("QUIT", "QUIT").await.map(|_| ())
    }

    async fn say(&mut self, command: &str, name: &str) -> Result<String, Trouble> {
        if !self.wire.input.is_empty() {
            return Err(Trouble::protocol("the server sent more answers than it was asked for"));
        }
        self.wire.send(format!("{command}\r\n").as_bytes()).await?;
        self.hear(name).await
    }

    async fn hear(&mut self, name: &str) -> Result<String, Trouble> {
        let line = self.line().await?;
        understood(&line, name)
    }

    async fn line(&mut self) -> Result<Vec<u8>, Trouble> {
        loop {
            if let Some(line) = self.lines.next(&mut self.wire.input)? {
                return Ok(line);
            }
            self.wire.fill().await?;
        }
    }

    /// A line of a list; none at its end.
    async fn item(&mut self) -> Result<Option<Vec<u8>>, Trouble> {
        let line = self.line().await?;
        Ok((line != b".").then_some(line))
    }

    async fn lines_of(&mut self, bytes_max: usize) -> Result<Vec<u8>, Trouble> {
        let (mut dots, mut out) = (Dots::default(), Vec::new());
        loop {
            let used = dots.feed(&self.wire.input, &mut out);
            let _ = self.wire.input.split_to(used);
            if dots.is_over() {
                return Ok(out);
            }
            if out.len() > bytes_max {
                return Err(Trouble::protocol("a header section has no end"));
            }
            self.wire.fill().await?;
        }
    }
}

fn understood(line: &[u8], name: &str) -> Result<String, Trouble> {
    if line == b"+OK" || line.starts_with(b"+OK ") {
        return Ok(shown(line));
    }
    if line == b"-ERR" || line.starts_with(b"-ERR ") {
        return Err(Trouble::Refused(format!("{name} was answered with \"{}\"", shown(line))));
    }
    Err(not_understood(name, line))
}

fn not_understood(name: &str, line: &[u8]) -> Trouble {
    Trouble::protocol(format!("{name} was answered with \"{}\", which is no POP3", shown(line)))
}

fn pair(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    words.next().zip(words.next())
}

fn parse<T: std::str::FromStr>(word: &[u8]) -> Option<T> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

/// All are kept while the mailbox is read, and in the store for as long as their messages are there.
fn short(id: &[u8]) -> Bytes {
    match id.len() > ID_BYTES_MAX {
        true => Bytes::copy_from_slice(&hashed(&[id])),
        false => Bytes::copy_from_slice(id),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use proptest::prelude::*;

    /// What comes out, and the rest that was not used.
    fn fed(parts: &[&[u8]]) -> (Vec<u8>, Vec<u8>, bool) {
        let (mut dots, mut out, mut rest) = (Dots::default(), Vec::new(), Vec::new());
        for part in parts {
            let used = dots.feed(part, &mut out);
            rest.extend_from_slice(&part[used..]);
        }
        (out, rest, dots.is_over())
    }

    #[test]
    fn dots_are_taken_out_and_the_last_one_ends_it() {
        let (out, rest, over) = fed(&[b"a\r\n..b\r\n.c\r\n\r\n.\r\n+OK next"]);
        assert_eq!((out, rest, over), (b"a\r\n.b\r\nc\r\n\r\n".to_vec(), b"+OK next".to_vec(), true));
        assert_eq!(fed(&[b".\r\n"]), (Vec::new(), Vec::new(), true));
        // Only CRLF ends a line: this is one message, not two.
        assert_eq!(fed(&[b"a\n.\nb\r\n.\r\n"]).0, b"a\n.\nb\r\n");
        assert!(!fed(&[b"a\r\n.\n"]).2);
    }

    /// A mailbox may have 200,000 of them.
    #[test]
    fn a_long_id_is_kept_as_its_hash() {
        let [one, two] = [b'a', b'b'].map(|last| [&[b'x'; 8000][..], &[last]].concat());
        assert_eq!(short(&one).len(), 32);
        assert_ne!(short(&one), short(&two));
        assert_eq!(short(&one[..ID_BYTES_MAX]), one[..ID_BYTES_MAX]);
    }

    #[test]
    fn a_line_has_an_end() {
        let (mut lines, mut input) = (Lines::default(), BytesMut::from(&b"+OK a\r\n-ERR"[..]));
        assert_eq!(lines.next(&mut input).unwrap().unwrap(), b"+OK a");
        assert_eq!(lines.next(&mut input).unwrap(), None);
        input.extend_from_slice(b" b\n");
        assert_eq!(lines.next(&mut input).unwrap().unwrap(), b"-ERR b");
        input.extend_from_slice(&[b'x'; LINE_BYTES_MAX + 1]);
        assert!(lines.next(&mut input).is_err());
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_text(text in "[.a\r\n]{0,40}(\r\n\\.\r\n[a.]{0,3})?", at in 0_usize..50) {
            let at = at.min(text.len());
            let (one, two) = text.as_bytes().split_at(at);
            prop_assert_eq!(fed(&[one, two]), fed(&[text.as_bytes()]));
        }

        #[test]
        fn stuffed_text_comes_out_as_it_was(text in "([.a]{0,4}\r\n){0,10}") {
            let stuffed: String = text.split_inclusive("\r\n").map(|line| match line.starts_with('.') {
                true => format!(".{line}"),
                false => line.to_owned(),
            }).collect();
            let (out, rest, over) = fed(&[stuffed.as_bytes(), b".\r\n"]);
            prop_assert_eq!((out, rest, over), (text.into_bytes(), Vec::new(), true));
        }

        #[test]
        fn no_answer_panics(line in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = understood(&line, "X");
            let _ = pair(&line).map(|(one, _)| parse::<u32>(one));
        }
    }
}
