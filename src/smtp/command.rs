//! One command line, already cut out by `wire`, to a [`Command`] or to the reply that refuses it.
//!
//! Promises: strict where leniency could be used (paths, parameters, trailing arguments, anything
//! that is not printable), lenient where old clients need it (a space after `FROM:`, white space at
//! the end of the line, lower case). What comes out can be written into a header or a command again.
//!
//! Leaves out: whether a command fits the state of the session (`server::session`). Paths are cut
//! out here and parsed by `message::address`; parameters are in `params`.

mod params;

use std::fmt;

use crate::message::address::{AddressError, parse_forward_path, parse_reverse_path};
use crate::message::{Address, Domain, ReversePath};
use crate::smtp::Reply;

pub use params::{ENVID_BYTES_MAX, MailParams, ORCPT_BYTES_MAX, RcptParams, decode_xtext};

/// Longest EHLO argument, in octets.
pub const HELO_BYTES_MAX: usize = 255;
/// So much of an unknown parameter's name is repeated in the reply, in octets.
const ECHO_BYTES_MAX: usize = 32;

/// A command that is well formed.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    Ehlo(String),
    Helo(String),
    Mail {
        from: ReversePath,
        params: MailParams,
    },
    /// `utf8`: the path is not ASCII, so MAIL must have said SMTPUTF8 (RFC 6531 3.4).
    Rcpt {
        to: Address,
        params: RcptParams,
        utf8: bool,
    },
    Data,
    Bdat {
        size: u64,
        last: bool,
    },
    Rset,
    Noop,
    Quit,
    Vrfy,
    Expn,
    Help,
    StartTls,
    Auth {
        /// In upper case.
        mechanism: String,
        /// As sent: base64, or `=` for an empty one.
        initial: Option<Credentials>,
    },
}

/// What a client says in AUTH. Never shown.
#[derive(PartialEq, Eq)]
pub struct Credentials(pub String);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Why a line is not a command that can be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandError {
    Unknown,
    /// HTTP, or something else that a browser was talked into sending here: close.
    OtherProtocol,
    NotText,
    Syntax(&'static str),
    Arguments(&'static str),
    HeloName,
    Sender(AddressError),
    Recipient(AddressError),
    NeedsSmtpUtf8,
    BadValue(&'static str),
    Twice(&'static str),
    UnknownParameter(String),
}

impl CommandError {
    /// What the client is told.
    pub fn reply(&self) -> Reply {
        match self {
            CommandError::Unknown => Reply::new(500, (5, 1), "command not recognised"),
            CommandError::OtherProtocol => Reply::new(500, (5, 1), "this is an SMTP server"),
            CommandError::NotText => Reply::new(501, (5, 2), "a command holds control characters or invalid UTF-8"),
            CommandError::Syntax(form) => Reply::new(501, (5, 4), format!("syntax: {form}")),
            CommandError::Arguments(verb) => Reply::new(501, (5, 4), format!("{verb} takes no arguments")),
            CommandError::HeloName => {
                Reply::new(501, (5, 4), "give a host name or an address literal, such as EHLO mail.example.com")
            }
            CommandError::Sender(error) => Reply::new(501, (1, 7), format!("sender refused: {error}")),
            CommandError::Recipient(error) => Reply::new(501, (1, 3), format!("recipient refused: {error}")),
            CommandError::NeedsSmtpUtf8 => {
                Reply::new(553, (6, 7), "an address that is not ASCII needs the SMTPUTF8 parameter in MAIL")
            }
            CommandError::BadValue(keyword) => Reply::new(501, (5, 4), format!("{keyword} has no legal value")),
            CommandError::Twice(keyword) => Reply::new(501, (5, 4), format!("{keyword} is given more than once")),
            CommandError::UnknownParameter(keyword) => {
                Reply::new(555, (5, 4), format!("parameter not recognised: {keyword}"))
            }
        }
    }
}

impl Command {
    /// Parses a line without its CRLF. `own_domain` completes `<postmaster>`.
    pub fn parse(line: &[u8], own_domain: &Domain) -> Result<Command, CommandError> {
        let text = printable(line)?.trim_end_matches(' ');
        let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
        let arguments = rest.trim_start_matches(' ');
        let verb = verb.to_ascii_uppercase();
        match verb.as_str() {
            "EHLO" => helo_name(arguments).map(Command::Ehlo),
            "HELO" => helo_name(arguments).map(Command::Helo),
            "MAIL" => parse_mail(arguments),
            "RCPT" => parse_rcpt(arguments, own_domain),
            "DATA" => bare("DATA", arguments, Command::Data),
            "BDAT" => parse_bdat(arguments),
            "RSET" => bare("RSET", arguments, Command::Rset),
            "QUIT" => bare("QUIT", arguments, Command::Quit),
            "STARTTLS" => bare("STARTTLS", arguments, Command::StartTls),
            "AUTH" => parse_auth(arguments),
            "NOOP" => Ok(Command::Noop),
            "HELP" => Ok(Command::Help),
            "VRFY" if arguments.is_empty() => Err(CommandError::Syntax("VRFY <address>")),
            "VRFY" => Ok(Command::Vrfy),
            "EXPN" => Ok(Command::Expn),
            // RFC 9110 9.1 and the preface of RFC 9113 3.4.
            "GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "CONNECT" | "OPTIONS" | "TRACE" | "PATCH" | "PRI" => {
                Err(CommandError::OtherProtocol)
            }
            _ => Err(CommandError::Unknown),
        }
    }
}

/// UTF-8 without control characters, C1 included: nothing else may reach a header, a reply or a log.
fn printable(line: &[u8]) -> Result<&str, CommandError> {
    let text = std::str::from_utf8(line).map_err(|_| CommandError::NotText)?;
    let has_controls = if text.is_ascii() {
        line.iter().any(|b| !(b' '..=b'~').contains(b))
    } else {
        text.chars().any(char::is_control)
    };
    if has_controls { Err(CommandError::NotText) } else { Ok(text) }
}

fn bare(verb: &'static str, arguments: &str, command: Command) -> Result<Command, CommandError> {
    if arguments.is_empty() { Ok(command) } else { Err(CommandError::Arguments(verb)) }
}

/// RFC 5321 4.1.1.1 wants a domain or an address literal; many hosts do not know theirs, so any
/// word will do. What looks like a literal must be one.
fn helo_name(arguments: &str) -> Result<String, CommandError> {
    let printable_word = !arguments.is_empty()
        && arguments.len() <= HELO_BYTES_MAX
        && arguments.bytes().all(|byte| byte.is_ascii_graphic());
    let is_literal = arguments.starts_with('[');
    if !printable_word || (is_literal && Domain::parse(arguments).is_err()) {
        return Err(CommandError::HeloName);
    }
    Ok(arguments.to_owned())
}

const MAIL_FORM: &str = "MAIL FROM:<address> [parameters]";
const RCPT_FORM: &str = "RCPT TO:<address> [parameters]";

fn parse_mail(arguments: &str) -> Result<Command, CommandError> {
    let rest = strip_keyword(arguments, "FROM:").ok_or(CommandError::Syntax(MAIL_FORM))?;
    let (path, rest) = cut_path(rest).map_err(CommandError::Sender)?;
    let parameters = after_path(rest, MAIL_FORM)?;
    let from = parse_reverse_path(path).map_err(CommandError::Sender)?;
    let params = MailParams::parse(parameters)?;
    if !path.is_ascii() && !params.smtputf8 {
        return Err(CommandError::NeedsSmtpUtf8);
    }
    Ok(Command::Mail { from, params })
}

fn parse_rcpt(arguments: &str, own_domain: &Domain) -> Result<Command, CommandError> {
    let rest = strip_keyword(arguments, "TO:").ok_or(CommandError::Syntax(RCPT_FORM))?;
    let (path, rest) = cut_path(rest).map_err(CommandError::Recipient)?;
    let parameters = after_path(rest, RCPT_FORM)?;
    let to = parse_forward_path(path, own_domain).map_err(CommandError::Recipient)?;
    Ok(Command::Rcpt { to, params: RcptParams::parse(parameters)?, utf8: !path.is_ascii() })
}

/// What follows `FROM:` or `TO:`. RFC 5321 3.3 allows no space there; clients send one all the same,
/// and it can be read in one way only.
fn strip_keyword<'a>(arguments: &'a str, keyword: &str) -> Option<&'a str> {
    let head = arguments.get(..keyword.len())?;
    let rest = arguments.get(keyword.len()..)?;
    head.eq_ignore_ascii_case(keyword).then(|| rest.trim_start_matches(' '))
}

/// The path with its brackets, and what follows it. The bracket that closes is the first one outside
/// quotes (RFC 5321 4.1.2: in quotes a backslash takes the meaning from the next character).
fn cut_path(text: &str) -> Result<(&str, &str), AddressError> {
    if !text.starts_with('<') {
        return Err(AddressError::NoBrackets);
    }
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return Ok(text.split_at(at + 1)),
            _ => {}
        }
    }
    Err(if quoted { AddressError::BadLocalPart } else { AddressError::NoBrackets })
}

/// Parameters are set off from the path by a space.
fn after_path<'a>(rest: &'a str, form: &'static str) -> Result<&'a str, CommandError> {
    if rest.is_empty() || rest.starts_with(' ') { Ok(rest) } else { Err(CommandError::Syntax(form)) }
}

/// RFC 3030 2: a count of octets, at most what fits 64 bits.
fn parse_bdat(arguments: &str) -> Result<Command, CommandError> {
    const FORM: &str = "BDAT <octets> [LAST]";
    let (count, rest) = arguments.split_once(' ').unwrap_or((arguments, ""));
    let last = match rest.trim_start_matches(' ') {
        "" => false,
        word if word.eq_ignore_ascii_case("LAST") => true,
        _ => return Err(CommandError::Syntax(FORM)),
    };
    let size = params::number(count).ok_or(CommandError::Syntax(FORM))?;
    Ok(Command::Bdat { size, last })
}

fn parse_auth(arguments: &str) -> Result<Command, CommandError> {
    const FORM: &str = "AUTH <mechanism> [initial response]";
    let mut words = arguments.split(' ').filter(|word| !word.is_empty());
    let mechanism = words.next().ok_or(CommandError::Syntax(FORM))?.to_ascii_uppercase();
    let initial = words.next().map(|word| Credentials(word.to_owned()));
    match words.next() {
        None => Ok(Command::Auth { mechanism, initial }),
        Some(_) => Err(CommandError::Syntax(FORM)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(line: &str) -> Result<Command, CommandError> {
        Command::parse(line.as_bytes(), &Domain::parse("mail.example.test").unwrap())
    }

    #[test]
    fn verbs_are_case_blind_and_trailing_arguments_are_refused() {
        assert_eq!(parse("ehlo mixed.CASE  ").unwrap(), Command::Ehlo("mixed.CASE".into()));
        assert_eq!(parse("noop anything at all").unwrap(), Command::Noop);
        for verb in ["DATA", "RSET", "QUIT", "STARTTLS"] {
            assert_eq!(parse(&format!("{verb} x")).unwrap_err().reply().code, 501, "{verb}");
        }
        assert_eq!(parse("").unwrap_err(), CommandError::Unknown);
        assert_eq!(parse("MAILFROM:<a@b>").unwrap_err(), CommandError::Unknown);
    }

    #[test]
    fn helo_names() {
        assert!(parse("EHLO [IPv6:::1]").is_ok());
        assert!(parse("EHLO my_pc").is_ok());
        for bad in ["EHLO", "EHLO [999.1.1.1]", "EHLO a b", "EHLO a\tb", "EHLO \0", "EHLO bücher.example"] {
            assert_eq!(parse(bad).unwrap_err().reply().code, 501, "{bad:?}");
        }
        assert!(parse(&format!("EHLO {}", "a".repeat(256))).is_err());
    }

    #[test]
    fn paths_end_at_the_bracket_outside_quotes() {
        let Command::Rcpt { to, .. } = parse("RCPT TO:<\"a>\\\" b\"@c.example> NOTIFY=NEVER").unwrap() else {
            unreachable!()
        };
        assert_eq!(to.local(), "\"a>\\\" b\"");
        assert!(matches!(parse("MAIL FROM: <a@b>"), Ok(Command::Mail { .. })));
        for bad in ["MAIL FROM:a@b", "MAIL FROM:<a@b", "MAIL FROM:<a@b>x", "MAIL FROM:<\"a@b>", "MAIL TO:<a@b>", "MAIL"]
        {
            assert_eq!(parse(bad).unwrap_err().reply().code, 501, "{bad}");
        }
        assert_eq!(parse("MAIL FROM:<jörg@b.example>").unwrap_err(), CommandError::NeedsSmtpUtf8);
        assert!(parse("MAIL FROM:<jörg@b.example> SMTPUTF8").is_ok());
        assert!(parse("RCPT TO:<>").is_err());
    }

    #[test]
    fn bdat_counts_fit_or_are_refused() {
        assert_eq!(parse("BDAT 0 last").unwrap(), Command::Bdat { size: 0, last: true });
        assert_eq!(parse("BDAT 86400").unwrap(), Command::Bdat { size: 86400, last: false });
        for bad in ["BDAT", "BDAT -1 LAST", "BDAT +1", "BDAT 18446744073709551617", "BDAT 1 LAST x", "BDAT 1 FIRST"] {
            assert_eq!(parse(bad).unwrap_err().reply().code, 501, "{bad}");
        }
    }

    #[test]
    fn credentials_are_not_shown() {
        let command = parse("AUTH plain AHRpbQB0YW5zdGFhZnRhbnN0YWFm").unwrap();
        assert!(format!("{command:?}").contains("\"PLAIN\"") && !format!("{command:?}").contains("AHRpb"));
        assert!(parse("AUTH").is_err());
        assert!(parse("AUTH PLAIN a b").is_err());
    }
}
