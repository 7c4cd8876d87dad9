//! Packets of the milter protocol, version 6: ours written, a milter's read. No I/O.
//!
//! A packet is a length of four bytes, a byte that says what it is, and data; texts in it end with NUL.
//! There is no standard: this is what libmilter, Sendmail and Postfix do. Promises: no packet, however it
//! is cut and whatever it holds, panics or takes more memory than [`REPLY_BYTES_MAX`]; what is not understood
//! is an error, never a reply. Leaves out what we do not offer: replacing a body, and changing the envelope.

use crate::message::header::HEADER_BYTES_MAX;

/// The version that we speak.
pub const VERSION: u32 = 6;
/// The oldest that a milter may speak: the first with a negotiation of steps.
pub const VERSION_MIN: u32 = 2;
/// The first with a step for DATA.
pub const VERSION_WITH_DATA: u32 = 4;
/// Data bytes of a packet of ours: what every milter takes.
pub const DATA_BYTES_MAX: usize = 65_535;
/// Bytes of a packet of a milter, its length not counted. The longest that it may send is a field.
pub const REPLY_BYTES_MAX: usize = HEADER_BYTES_MAX;

/// What a milter may do, as bits of [`Options::actions`].
pub mod action {
    pub const ADD_HEADER: u32 = 0x01;
    pub const CHANGE_HEADER: u32 = 0x10;
    pub const QUARANTINE: u32 = 0x20;
    /// What we do when asked.
    pub const OFFERED: u32 = ADD_HEADER | CHANGE_HEADER | QUARANTINE;
}

/// How it wants to be spoken to, as bits of [`Options::protocol`].
pub mod protocol {
    pub const NO_CONNECT: u32 = 0x01;
    pub const NO_HELO: u32 = 0x02;
    pub const NO_MAIL: u32 = 0x04;
    pub const NO_RCPT: u32 = 0x08;
    pub const NO_BODY: u32 = 0x10;
    pub const NO_HEADERS: u32 = 0x20;
    pub const NO_END_OF_HEADER: u32 = 0x40;
    pub const NO_REPLY_HEADER: u32 = 0x80;
    pub const NO_UNKNOWN: u32 = 0x100;
    pub const NO_DATA: u32 = 0x200;
    /// It may answer "skip".
    pub const SKIP: u32 = 0x400;
    pub const NO_REPLY_CONNECT: u32 = 0x1000;
    pub const NO_REPLY_HELO: u32 = 0x2000;
    pub const NO_REPLY_MAIL: u32 = 0x4000;
    pub const NO_REPLY_RCPT: u32 = 0x8000;
    pub const NO_REPLY_DATA: u32 = 0x1_0000;
    pub const NO_REPLY_UNKNOWN: u32 = 0x2_0000;
    pub const NO_REPLY_END_OF_HEADER: u32 = 0x4_0000;
    pub const NO_REPLY_BODY: u32 = 0x8_0000;
    /// Blanks at the beginning of a field's value go both ways as they are.
    pub const LEADING_SPACE: u32 = 0x10_0000;
    /// All of them, as far as there are steps of ours for them.
    pub const OFFERED: u32 = 0x07FF | 0x0F_F000 | LEADING_SPACE;
}

/// What both sides agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    pub version: u32,
    pub actions: u32,
    pub protocol: u32,
}

impl Options {
    pub const OFFERED: Options = Options { version: VERSION, actions: action::OFFERED, protocol: protocol::OFFERED };

    /// Of [`protocol`].
    pub fn wants(&self, bit: u32) -> bool {
        self.protocol & bit != 0
    }
}

/// What we say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    Negotiate(Options),
    /// Values by name, for the command of this byte, which follows.
    Macros {
        of: u8,
        values: &'a [(&'static str, String)],
    },
    Connect {
        /// The client's, or `unknown`.
        name: &'a str,
        ip: std::net::IpAddr,
        port: u16,
    },
    Helo(&'a str),
    /// The address in its brackets, then parameters.
    Mail(&'a [String]),
    Rcpt(&'a [String]),
    Data,
    /// Lines of the value end with LF alone.
    Header {
        name: &'a [u8],
        value: &'a [u8],
    },
    EndOfHeader,
    Body(&'a [u8]),
    EndOfBody,
    Quit,
}

impl Command<'_> {
    pub fn byte(&self) -> u8 {
        match self {
            Command::Negotiate(_) => b'O',
            Command::Macros { .. } => b'D',
            Command::Connect { .. } => b'C',
            Command::Helo(_) => b'H',
            Command::Mail(_) => b'M',
            Command::Rcpt(_) => b'R',
            Command::Data => b'T',
            Command::Header { .. } => b'L',
            Command::EndOfHeader => b'N',
            Command::Body(_) => b'B',
            Command::EndOfBody => b'E',
            Command::Quit => b'Q',
        }
    }

    /// Appends its packet. False, and nothing is appended, if a milter would not take one so long.
    #[must_use]
    pub fn write(&self, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.push(self.byte());
        match self {
            Command::Negotiate(Options { version, actions, protocol }) => {
                [version, actions, protocol].iter().for_each(|number| out.extend_from_slice(&number.to_be_bytes()));
            }
            Command::Macros { of, values } => {
                out.push(*of);
                for (name, value) in *values {
                    text(out, name.as_bytes());
                    text(out, value.as_bytes());
                }
            }
            Command::Connect { name, ip, port } => {
                text(out, name.as_bytes());
                out.push(if ip.is_ipv4() { b'4' } else { b'6' });
                out.extend_from_slice(&port.to_be_bytes());
                text(out, ip.to_string().as_bytes());
            }
            Command::Helo(name) => text(out, name.as_bytes()),
            Command::Mail(words) | Command::Rcpt(words) => words.iter().for_each(|word| text(out, word.as_bytes())),
            Command::Header { name, value } => {
                text(out, name);
                text(out, value);
            }
            Command::Body(piece) => out.extend_from_slice(piece),
            Command::Data | Command::EndOfHeader | Command::EndOfBody | Command::Quit => {}
        }
        let len = out.len() - start - 4;
        let fits = len <= DATA_BYTES_MAX + 1;
        match (u32::try_from(len), out.get_mut(start..start + 4)) {
            (Ok(len), Some(place)) if fits => place.copy_from_slice(&len.to_be_bytes()),
            _ => out.truncate(start),
        }
        fits
    }
}

/// A NUL would end it early, so none goes in.
fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(bytes.iter().filter(|byte| **byte != 0));
    out.push(0);
}

/// What a milter says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Negotiate(Options),
    Accept,
    Continue,
    Discard,
    Reject,
    TempFail,
    ConnFail,
    Shutdown,
    Skip,
    /// It is still at it.
    Progress,
    /// A reply for the client, not looked at yet.
    ReplyCode(Vec<u8>),
    AddHeader {
        name: Vec<u8>,
        value: Vec<u8>,
    },
    InsertHeader {
        index: u32,
        name: Vec<u8>,
        value: Vec<u8>,
    },
    ChangeHeader {
        index: u32,
        name: Vec<u8>,
        value: Vec<u8>,
    },
    Quarantine(Vec<u8>),
    /// Something that we have not offered.
    NotOffered(&'static str),
}

impl Reply {
    /// What it says, for people.
    pub fn name(&self) -> &'static str {
        match self {
            Reply::Negotiate(_) => "a negotiation",
            Reply::Accept => "accept",
            Reply::Continue => "continue",
            Reply::Discard => "discard",
            Reply::Reject => "reject",
            Reply::TempFail => "tempfail",
            Reply::ConnFail => "connection failure",
            Reply::Shutdown => "shutdown",
            Reply::Skip => "skip",
            Reply::Progress => "progress",
            Reply::ReplyCode(_) => "a reply for the client",
            Reply::AddHeader { .. } => "add a field",
            Reply::InsertHeader { .. } => "insert a field",
            Reply::ChangeHeader { .. } => "change a field",
            Reply::Quarantine(_) => "quarantine",
            Reply::NotOffered(what) => what,
        }
    }

    fn read(byte: u8, data: &[u8]) -> Result<Reply, WireError> {
        let bad = || WireError::BadData(char::from(byte));
        let alone = |reply: Reply| if data.is_empty() { Ok(reply) } else { Err(bad()) };
        match byte {
            b'O' => options(data).map(Reply::Negotiate).ok_or_else(bad),
            b'a' => alone(Reply::Accept),
            b'c' => alone(Reply::Continue),
            b'd' => alone(Reply::Discard),
            b'r' => alone(Reply::Reject),
            b't' => alone(Reply::TempFail),
            b'f' => alone(Reply::ConnFail),
            b'4' => alone(Reply::Shutdown),
            b's' => alone(Reply::Skip),
            b'p' => alone(Reply::Progress),
            b'y' => one_text(data).map(Reply::ReplyCode).ok_or_else(bad),
            b'q' => one_text(data).map(Reply::Quarantine).ok_or_else(bad),
            b'h' => two_texts(data).map(|(name, value)| Reply::AddHeader { name, value }).ok_or_else(bad),
            b'i' => {
                numbered(data).map(|(index, name, value)| Reply::InsertHeader { index, name, value }).ok_or_else(bad)
            }
            b'm' => {
                numbered(data).map(|(index, name, value)| Reply::ChangeHeader { index, name, value }).ok_or_else(bad)
            }
            b'b' => Ok(Reply::NotOffered("replace the body")),
            b'+' | b'2' => Ok(Reply::NotOffered("add a recipient")),
            b'-' => Ok(Reply::NotOffered("take a recipient away")),
            b'e' => Ok(Reply::NotOffered("change the envelope sender")),
            b'l' => Ok(Reply::NotOffered("choose its macros")),
            _ => Err(WireError::Unknown(byte)),
        }
    }
}

/// What else stands there (names of macros that it would like) is of no use to us.
fn options(data: &[u8]) -> Option<Options> {
    let (version, rest) = number(data)?;
    let (actions, rest) = number(rest)?;
    let (protocol, _) = number(rest)?;
    Some(Options { version, actions, protocol })
}

fn number(data: &[u8]) -> Option<(u32, &[u8])> {
    data.split_first_chunk().map(|(bytes, rest)| (u32::from_be_bytes(*bytes), rest))
}

/// Some leave the last NUL out.
fn one_text(data: &[u8]) -> Option<Vec<u8>> {
    let text = data.strip_suffix(b"\0").unwrap_or(data);
    (!text.contains(&0)).then(|| text.to_vec())
}

fn two_texts(data: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let end = memchr::memchr(0, data)?;
    let (first, rest) = data.split_at(end);
    Some((first.to_vec(), one_text(rest.get(1..)?)?))
}

fn numbered(data: &[u8]) -> Option<(u32, Vec<u8>, Vec<u8>)> {
    let (index, rest) = number(data)?;
    let (name, value) = two_texts(rest)?;
    Some((index, name, value))
}

/// Why what a milter sent is none of its replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("it sent a packet of no length")]
    Empty,
    #[error("it sent a packet of {0} bytes, more than {REPLY_BYTES_MAX}")]
    TooLong(u32),
    #[error("it sent a packet that is no reply, of type 0x{0:02x}")]
    Unknown(u8),
    #[error("the data of its reply '{0}' cannot be read")]
    BadData(char),
}

/// Cuts what a milter sends into its replies.
#[derive(Debug, Default)]
pub struct Replies {
    buffer: Vec<u8>,
}

impl Replies {
    /// To be called only when [`Replies::take`] has nothing more: so one packet and one read are held at most.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole one. After an error there is none any more.
    pub fn take(&mut self) -> Result<Option<Reply>, WireError> {
        let Some((len, rest)) = number(&self.buffer) else { return Ok(None) };
        let size = len as usize;
        if size == 0 {
            return Err(WireError::Empty);
        }
        if size > REPLY_BYTES_MAX {
            return Err(WireError::TooLong(len));
        }
        let Some((byte, data)) = rest.get(..size).and_then(<[u8]>::split_first) else { return Ok(None) };
        let reply = Reply::read(*byte, data)?;
        self.buffer.drain(..4 + size);
        Ok(Some(reply))
    }
}
