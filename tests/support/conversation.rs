//! Scripted SMTP conversations: reads `tests/sessions/*.smtp` and holds a server to them.
//!
//! The engine knows nothing of how bytes travel: the same file runs on the bare session and over TCP,
//! each behind [`Transport`].
//!
//! A file has settings, an empty line, and then the conversation, one act a line:
//!
//! ```text
//! # a comment
//! role: submission                     mx (default) | submission
//! tls: required                        off (default) | opportunistic | required | implicit
//! loopback: no                         yes (default); over TCP the server is told so
//! trusted: yes                         no (default)
//! max_size / max_recipients / errors:  limits
//! account: shop password 5             name, password, recipients a message (default 100)
//! domain: example.test                 a domain of ours
//! recipient: ok@example.test           one of its addresses; the others do not exist
//! split: no                            only where the outcome depends on what one read brings
//!
//! C: EHLO client.test                  say this and CRLF
//! C> "raw\r\n" * 3                     say exactly this, so many times
//! S: 250-... 250 ...                   a whole reply, lines joined by spaces, begins like this; `...` is any
//!                                      text, a dot among the first three characters any digit
//! S: 221 closes                        and then the connection is closed
//! S* 10 500                            so many replies like this
//! S~ STARTTLS                          the last reply also holds this
//! S! AUTH                              and does not hold this
//! starttls                             do the TLS handshake
//! scram shop password                  a whole AUTH SCRAM-SHA-256, up to the reply that ends it
//! draft: from=<a@b> to=<c@d>           the next message that was taken; more keys in `DRAFT_KEYS`
//! abandon                              go without QUIT
//! ```
//!
//! At the end QUIT must be answered with 221, and no taken message may be left without its `draft:`.

#![allow(clippy::unwrap_used, clippy::panic)]
#![allow(dead_code)] // each test that takes this file in uses another part of it

use std::collections::{BTreeMap, VecDeque};

use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// What a `draft:` line may speak of. `from` and `to` every transport tells, the rest where it can.
pub const DRAFT_KEYS: [&str; 13] =
    ["from", "to", "content", "account", "helo", "esmtp", "tls", "body", "smtputf8", "ret", "envid", "notify", "orcpt"];

/// What was taken, by key of a `draft:` line.
pub type Taken = BTreeMap<&'static str, String>;

/// The way to a server.
pub trait Transport {
    fn send(&mut self, bytes: &[u8]);
    fn hear(&mut self) -> Heard;
    /// The client's half of the handshake.
    fn start_tls(&mut self);
    /// Messages taken since the last call.
    fn taken(&mut self) -> Vec<Taken>;
}

/// What comes from a server.
pub enum Heard {
    /// A whole reply, its lines joined by single spaces.
    Reply(String),
    /// It has closed the connection.
    Closed,
    /// It is waiting for more.
    Silence,
}

#[derive(Clone, Debug)]
pub struct AccountSetting {
    pub name: String,
    pub password: String,
    pub max_recipients: usize,
}

/// What the server has to be like.
#[derive(Clone, Debug)]
pub struct Setting {
    pub role: String,
    pub tls: String,
    pub loopback: bool,
    pub trusted: bool,
    pub split: bool,
    pub max_size: u64,
    pub max_recipients: usize,
    pub errors: u32,
    pub accounts: Vec<AccountSetting>,
    pub domains: Vec<String>,
    pub recipients: Vec<String>,
}

impl Default for Setting {
    fn default() -> Setting {
        Setting {
            role: "mx".into(),
            tls: "off".into(),
            loopback: true,
            trusted: false,
            split: true,
            max_size: 10_000,
            max_recipients: 100,
            errors: 10,
            accounts: Vec::new(),
            domains: Vec::new(),
            recipients: Vec::new(),
        }
    }
}

impl Setting {
    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        let yes = || match value {
            "yes" => Some(true),
            "no" => Some(false),
            _ => None,
        };
        match key {
            "role" => self.role = value.into(),
            "tls" => self.tls = value.into(),
            "loopback" => self.loopback = yes()?,
            "trusted" => self.trusted = yes()?,
            "split" => self.split = yes()?,
            "max_size" => self.max_size = value.parse().ok()?,
            "max_recipients" => self.max_recipients = value.parse().ok()?,
            "errors" => self.errors = value.parse().ok()?,
            "domain" => self.domains.push(value.into()),
            "recipient" => self.recipients.push(value.into()),
            "account" => {
                let mut words = value.split_whitespace();
                self.accounts.push(AccountSetting {
                    name: words.next()?.into(),
                    password: words.next()?.into(),
                    max_recipients: words.next().map_or(Some(100), |n| n.parse().ok())?,
                });
            }
            _ => return None,
        }
        Some(())
    }
}

#[derive(Debug)]
enum Act {
    Send(Vec<u8>),
    Expect { pattern: String, times: usize, closes: bool },
    Holds(String),
    HoldsNot(String),
    StartTls,
    Scram { name: String, password: String },
    Draft(BTreeMap<String, String>),
    Abandon,
}

/// One file.
#[derive(Debug)]
pub struct Conversation {
    pub file: String,
    pub setting: Setting,
    acts: Vec<(usize, Act)>,
}

impl Conversation {
    /// Errors name file and line.
    pub fn parse(file: &str, text: &str) -> Result<Conversation, String> {
        let mut conversation = Conversation { file: file.into(), setting: Setting::default(), acts: Vec::new() };
        let mut in_settings = true;
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let fault = || format!("{file}:{number}: cannot read {line:?}");
            if line.starts_with('#') {
                continue;
            }
            if line.trim().is_empty() {
                in_settings = in_settings && number == 1;
            } else if in_settings {
                let (key, value) = line.split_once(':').ok_or_else(fault)?;
                conversation.setting.set(key, value.trim()).ok_or_else(fault)?;
            } else {
                conversation.acts.push((number, parse_act(line).ok_or_else(fault)?));
            }
        }
        Ok(conversation)
    }

    /// Talks to a server that is set up as `setting` says.
    pub fn run(&self, transport: &mut dyn Transport) -> Result<(), String> {
        let mut talk = Talk { transport, last: String::new(), held_back: None, taken: VecDeque::new(), closed: false };
        let mut abandoned = false;
        for (line, act) in &self.acts {
            talk.act(act).map_err(|fault| format!("{}:{line}: {fault}", self.file))?;
            abandoned = matches!(act, Act::Abandon);
        }
        let end = |fault: String| format!("{}: at the end: {fault}", self.file);
        if !talk.closed && !abandoned {
            talk.act(&Act::Send(b"QUIT\r\n".to_vec())).map_err(end)?;
            talk.act(&Act::Expect { pattern: "221".into(), times: 1, closes: true }).map_err(end)?;
        }
        talk.gather();
        match talk.taken.pop_front() {
            Some(taken) => Err(end(format!("a message was taken that no `draft:` speaks of: {taken:?}"))),
            None => Ok(()),
        }
    }
}

fn parse_act(line: &str) -> Option<Act> {
    let (head, rest) = line.split_once(' ').unwrap_or((line, ""));
    match head {
        "C:" => Some(Act::Send(format!("{rest}\r\n").into_bytes())),
        "C>" => raw(rest).map(Act::Send),
        "S:" => Some(expectation(rest, 1)),
        "S*" => {
            let (times, pattern) = rest.split_once(' ')?;
            Some(expectation(pattern, times.parse().ok()?))
        }
        "S~" => Some(Act::Holds(rest.into())),
        "S!" => Some(Act::HoldsNot(rest.into())),
        "starttls" => Some(Act::StartTls),
        "scram" => {
            let (name, password) = rest.split_once(' ')?;
            Some(Act::Scram { name: name.into(), password: password.into() })
        }
        "draft:" => draft(rest).map(Act::Draft),
        "abandon" => Some(Act::Abandon),
        _ => None,
    }
}

fn expectation(text: &str, times: usize) -> Act {
    let (pattern, closes) = match text.strip_suffix(" closes") {
        Some(pattern) => (pattern, true),
        None => (text, false),
    };
    Act::Expect { pattern: pattern.into(), times, closes }
}

/// `"text" * 3`
fn raw(text: &str) -> Option<Vec<u8>> {
    let (bytes, rest) = quoted(text)?;
    let times = match rest.trim() {
        "" => 1,
        times => times.strip_prefix("* ")?.parse().ok()?,
    };
    Some(bytes.repeat(times))
}

/// The bytes of a quoted text at the front, and what follows it.
pub fn quoted(text: &str) -> Option<(Vec<u8>, &str)> {
    let mut bytes = Vec::new();
    let mut chars = text.strip_prefix('"')?.chars();
    loop {
        match chars.next()? {
            '"' => return Some((bytes, chars.as_str())),
            '\\' => match chars.next()? {
                'r' => bytes.push(b'\r'),
                'n' => bytes.push(b'\n'),
                't' => bytes.push(b'\t'),
                '0' => bytes.push(0),
                'x' => {
                    let digits = chars.as_str().get(..2)?;
                    bytes.push(u8::from_str_radix(digits, 16).ok()?);
                    chars = chars.as_str().get(2..)?.chars();
                }
                'u' => {
                    let code = u32::from_str_radix(chars.as_str().get(..4)?, 16).ok()?;
                    bytes.extend_from_slice(char::from_u32(code)?.to_string().as_bytes());
                    chars = chars.as_str().get(4..)?.chars();
                }
                other => bytes.extend_from_slice(other.to_string().as_bytes()),
            },
            other => bytes.extend_from_slice(other.to_string().as_bytes()),
        }
    }
}

/// `key=value key="value with escapes"`
fn draft(text: &str) -> Option<BTreeMap<String, String>> {
    let mut keys = BTreeMap::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let value;
        if after.starts_with('"') {
            let (bytes, tail) = quoted(after)?;
            (value, rest) = (String::from_utf8(bytes).ok()?, tail.trim_start());
        } else {
            let (word, tail) = after.split_once(' ').unwrap_or((after, ""));
            (value, rest) = (word.to_string(), tail.trim_start());
        }
        if !DRAFT_KEYS.contains(&key) {
            return None;
        }
        keys.insert(key.to_string(), value);
    }
    Some(keys)
}

struct Talk<'a> {
    transport: &'a mut dyn Transport,
    last: String,
    /// Read too early.
    held_back: Option<String>,
    taken: VecDeque<Taken>,
    closed: bool,
}

impl Talk<'_> {
    fn act(&mut self, act: &Act) -> Result<(), String> {
        match act {
            Act::Send(bytes) => self.transport.send(bytes),
            Act::Expect { pattern, times, closes } => {
                for _ in 0..*times {
                    self.expect(pattern)?;
                }
                if *closes {
                    self.expect_closed()?;
                }
            }
            Act::Holds(text) if !self.last.contains(text.as_str()) => {
                return Err(format!("no {text:?} in {:?}", self.last));
            }
            Act::HoldsNot(text) if self.last.contains(text.as_str()) => {
                return Err(format!("{text:?} in {:?}", self.last));
            }
            Act::Holds(_) | Act::HoldsNot(_) | Act::Abandon => {}
            Act::StartTls => self.transport.start_tls(),
            Act::Scram { name, password } => self.scram(name, password)?,
            Act::Draft(expected) => self.draft(expected)?,
        }
        Ok(())
    }

    fn next(&mut self) -> Result<String, String> {
        if let Some(reply) = self.held_back.take() {
            return Ok(reply);
        }
        match self.transport.hear() {
            Heard::Reply(reply) => Ok(reply),
            Heard::Closed => Err("the connection is closed".into()),
            Heard::Silence => Err("no reply".into()),
        }
    }

    fn expect(&mut self, pattern: &str) -> Result<(), String> {
        let reply = self.next().map_err(|why| format!("expected {pattern:?}, but {why}"))?;
        if !fits(pattern, &reply) {
            return Err(format!("expected {pattern:?}, got {reply:?}"));
        }
        self.last = reply;
        Ok(())
    }

    fn expect_closed(&mut self) -> Result<(), String> {
        self.closed = true;
        match self.transport.hear() {
            Heard::Closed => Ok(()),
            Heard::Reply(reply) => Err(format!("the connection should be closed, but it says {reply:?}")),
            Heard::Silence => Err("the connection should be closed".into()),
        }
    }

    fn gather(&mut self) {
        self.taken.extend(self.transport.taken());
    }

    fn draft(&mut self, expected: &BTreeMap<String, String>) -> Result<(), String> {
        self.gather();
        let taken = self.taken.pop_front().ok_or("no message was taken")?;
        for (key, value) in expected {
            match taken.get(key.as_str()) {
                Some(found) if found != value => return Err(format!("{key} is {found:?}, expected {value:?}")),
                None if key == "from" || key == "to" => return Err(format!("the transport does not tell {key}")),
                _ => {}
            }
        }
        Ok(())
    }

    /// The client's side of RFC 5802, independent of the server's.
    fn scram(&mut self, name: &str, password: &str) -> Result<(), String> {
        let bare = format!("n={name},r=clientnonce");
        let first = STANDARD.encode(format!("n,,{bare}"));
        self.transport.send(format!("AUTH SCRAM-SHA-256 {first}\r\n").as_bytes());
        let Some(server_first) = self.challenge()? else { return Ok(()) };
        let attribute =
            |key: &str| server_first.split(',').find_map(|part| part.strip_prefix(key)).ok_or("a part is missing");
        let (nonce, salt, rounds) = (attribute("r=")?, attribute("s=")?, attribute("i=")?);
        if !nonce.starts_with("clientnonce") || nonce.len() < 20 {
            return Err(format!("the nonce is too short: {nonce}"));
        }
        let salt = STANDARD.decode(salt).map_err(|error| error.to_string())?;
        let rounds = rounds.parse().map_err(|_| "the iteration count is not a number")?;
        let mut salted = [0u8; 32];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password.as_bytes(), &mut salted);
        let client_key = sign(&salted, b"Client Key");
        let last = format!("c=biws,r={nonce}");
        let signed = format!("{bare},{server_first},{last}");
        let mask = sign(digest::digest(&digest::SHA256, &client_key).as_ref(), signed.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(&mask).map(|(key, mask)| key ^ mask).collect();
        let message = STANDARD.encode(format!("{last},p={}", STANDARD.encode(proof)));
        self.transport.send(format!("{message}\r\n").as_bytes());
        let Some(server_last) = self.challenge()? else { return Ok(()) };
        let expected = STANDARD.encode(sign(&sign(&salted, b"Server Key"), signed.as_bytes()));
        if server_last != format!("v={expected}") {
            return Err(format!("the server's signature is wrong: {server_last}"));
        }
        self.transport.send(b"\r\n");
        Ok(())
    }

    /// What a 334 holds; any other reply is left for the next `S:`.
    fn challenge(&mut self) -> Result<Option<String>, String> {
        let reply = self.next()?;
        let Some(encoded) = reply.strip_prefix("334 ") else {
            self.held_back = Some(reply);
            return Ok(None);
        };
        let message = STANDARD.decode(encoded).map_err(|error| error.to_string())?;
        String::from_utf8(message).map(Some).map_err(|error| error.to_string())
    }
}

fn sign(key: &[u8], text: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text).as_ref().to_vec()
}

/// True if the reply begins as the pattern says.
pub fn fits(pattern: &str, reply: &str) -> bool {
    let (Some((code, rest)), Some((reply_code, tail))) = (pattern.split_at_checked(3), reply.split_at_checked(3))
    else {
        return false;
    };
    let code_fits = code.bytes().zip(reply_code.bytes()).all(|(p, r)| p == b'.' || p == r);
    let mut pieces = rest.split("...");
    let Some(mut tail) = pieces.next().and_then(|first| tail.strip_prefix(first)) else { return false };
    for piece in pieces {
        match tail.split_once(piece) {
            Some((_, after)) => tail = after,
            None => return false,
        }
    }
    // A pattern ends at the end of a word.
    let ends_well = pattern.ends_with("...") || !tail.starts_with(|c: char| c.is_ascii_alphanumeric());
    code_fits && ends_well
}
