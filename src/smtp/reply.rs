//! Replies: code, enhanced status code (RFC 3463), text. The class of the enhanced code is the
//! reply's own first digit, so the two cannot disagree.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::message::text::steers;

/// Subject and detail of an enhanced status code; its class comes from the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Enhanced(pub u16, pub u16);

/// What happens next for the one who got the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// 2yz and 3yz.
    Positive,
    /// 4yz: try again later.
    Transient,
    /// 5yz: do not try again.
    Permanent,
}

/// A reply, ours or a far end's. `text` has no CR, LF or control characters; `\n` separates the
/// lines of a multi-line reply.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reply {
    pub code: u16,
    pub enhanced: Option<Enhanced>,
    pub text: Cow<'static, str>,
}

impl Reply {
    pub fn new(code: u16, enhanced: (u16, u16), text: impl Into<Cow<'static, str>>) -> Reply {
        Reply { code, enhanced: Some(Enhanced(enhanced.0, enhanced.1)), text: sanitised(text.into()) }
    }

    /// For greetings, EHLO and 3yz replies, which carry no enhanced code (RFC 2034 3, 4).
    pub fn bare(code: u16, text: impl Into<Cow<'static, str>>) -> Reply {
        Reply { code, enhanced: None, text: sanitised(text.into()) }
    }

    pub fn severity(&self) -> Severity {
        match self.code / 100 {
            2 | 3 => Severity::Positive,
            4 => Severity::Transient,
            _ => Severity::Permanent,
        }
    }

    pub fn is_positive(&self) -> bool {
        self.severity() == Severity::Positive
    }

    /// `5.1.1`, from the enhanced code or else the reply code (RFC 3463: x.0.0).
    pub fn status(&self) -> String {
        let Enhanced(subject, detail) = self.enhanced.unwrap_or(Enhanced(0, 0));
        format!("{}.{subject}.{detail}", self.code / 100)
    }

    /// Appends the reply as it goes over the wire.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let mut lines = self.text.split('\n').peekable();
        while let Some(line) = lines.next() {
            let separator = if lines.peek().is_some() { '-' } else { ' ' };
            let head = match self.enhanced {
                Some(Enhanced(subject, detail)) => {
                    format!("{}{separator}{}.{subject}.{detail} ", self.code, self.code / 100)
                }
                None => format!("{}{separator}", self.code),
            };
            out.extend_from_slice(head.as_bytes());
            out.extend_from_slice(line.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// Nothing that a peer or a file gave us may end a line of a reply.
fn sanitised(text: Cow<'static, str>) -> Cow<'static, str> {
    let odd = |c: char| steers(c) && c != '\n';
    if text.chars().any(odd) {
        return Cow::Owned(text.chars().map(|c| if odd(c) { '?' } else { c }).collect());
    }
    text
}

/// One line for people and logs: `550 5.1.1 no such address`.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if self.enhanced.is_some() {
            write!(f, " {}", self.status())?;
        }
        write!(f, " {}", self.text.replace('\n', " / "))
    }
}

/// Two texts for one refusal: `reply` is short and goes to the peer, `reason` is full and goes into
/// the log and the story only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reply: Reply,
    pub reason: String,
}

impl Refusal {
    /// Where the peer may know all there is to know.
    pub fn plain(reply: Reply) -> Refusal {
        Refusal { reason: reply.to_string(), reply }
    }

    /// Trouble of our own: always 4yz, the details stay here.
    pub fn inner(reason: impl Into<String>) -> Refusal {
        Refusal {
            reply: Reply::new(451, (3, 0), "temporary trouble on this server, please try again"),
            reason: reason.into(),
        }
    }
}
