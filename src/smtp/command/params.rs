//! The parameters of MAIL and RCPT: SIZE (RFC 1870), BODY (RFC 6152), SMTPUTF8 (RFC 6531), AUTH
//! (RFC 4954 5), REQUIRETLS (RFC 8689), RET, ENVID, NOTIFY and ORCPT (RFC 3461).
//!
//! The list is first held against the grammar of RFC 5321 4.1.2, each keyword known and given once;
//! then smtp-proto reads the values that are words and numbers. xtext is decoded here, because a
//! decoded value goes into header fields and must not hold what could end one.

use std::borrow::Cow;

use smtp_proto::request::parser::Rfc5321Parser;
use smtp_proto::{
    Error, MAIL_BODY_7BIT, MAIL_BODY_8BITMIME, MAIL_BODY_BINARYMIME, MAIL_RET_FULL, MAIL_RET_HDRS, MAIL_SMTPUTF8,
    RCPT_NOTIFY_DELAY, RCPT_NOTIFY_FAILURE, RCPT_NOTIFY_NEVER, RCPT_NOTIFY_SUCCESS,
};

use super::{CommandError, ECHO_BYTES_MAX};
use crate::message::envelope::{BodyType, DsnRequest, Notify, OriginalRecipient, Ret};

/// Longest ENVID, in octets as sent (RFC 3461 4.4).
pub const ENVID_BYTES_MAX: usize = 100;
/// Longest ORCPT, in octets as sent (RFC 3461 4.2).
pub const ORCPT_BYTES_MAX: usize = 500;

/// What MAIL may say besides the path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MailParams {
    pub size: Option<u64>,
    pub body: Option<BodyType>,
    pub smtputf8: bool,
    pub dsn: DsnRequest,
    /// RFC 8689 2.
    pub require_tls: bool,
}

/// What RCPT may say besides the path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RcptParams {
    pub notify: Notify,
    pub original: Option<OriginalRecipient>,
}

impl MailParams {
    /// `text` is what follows the path.
    pub(super) fn parse(text: &str) -> Result<MailParams, CommandError> {
        let list = Parameters::split(text, &["SIZE", "BODY", "SMTPUTF8", "RET", "ENVID", "AUTH", "REQUIRETLS"])?;
        let size = match list.value("SIZE") {
            Some(digits) => Some(number(digits).ok_or(CommandError::BadValue("SIZE"))?),
            None => None,
        };
        let envid = match list.value("ENVID") {
            Some(xtext) if xtext.len() > ENVID_BYTES_MAX => return Err(CommandError::BadValue("ENVID")),
            Some(xtext) => Some(decode_xtext(xtext).ok_or(CommandError::BadValue("ENVID"))?),
            None => None,
        };
        // RFC 4954 5: who submitted it first, by hearsay. Checked for form, then forgotten.
        if list.value("AUTH").is_some_and(|xtext| decode_xtext(xtext).is_none()) {
            return Err(CommandError::BadValue("AUTH"));
        }
        let line = list.words(&["BODY", "SMTPUTF8", "RET"]);
        let flags =
            Rfc5321Parser::new(&mut line.iter()).mail_from_parameters(Cow::Borrowed("")).map_err(refusal)?.flags;
        Ok(MailParams {
            size,
            body: body_type(flags)?,
            smtputf8: flags & MAIL_SMTPUTF8 != 0,
            dsn: DsnRequest { ret: ret(flags), envid },
            require_tls: list.list.iter().any(|(name, _)| *name == "REQUIRETLS"),
        })
    }
}

impl RcptParams {
    pub(super) fn parse(text: &str) -> Result<RcptParams, CommandError> {
        let list = Parameters::split(text, &["NOTIFY", "ORCPT"])?;
        let original = match list.value("ORCPT") {
            Some(value) => Some(original_recipient(value).ok_or(CommandError::BadValue("ORCPT"))?),
            None => None,
        };
        let line = list.words(&["NOTIFY"]);
        let flags = Rfc5321Parser::new(&mut line.iter()).rcpt_to_parameters(Cow::Borrowed("")).map_err(refusal)?.flags;
        Ok(RcptParams { notify: notify(flags)?, original })
    }
}

fn body_type(flags: u64) -> Result<Option<BodyType>, CommandError> {
    match flags & (MAIL_BODY_7BIT | MAIL_BODY_8BITMIME | MAIL_BODY_BINARYMIME) {
        0 => Ok(None),
        MAIL_BODY_7BIT => Ok(Some(BodyType::SevenBit)),
        MAIL_BODY_8BITMIME => Ok(Some(BodyType::EightBitMime)),
        _ => Err(CommandError::BadValue("BODY")),
    }
}

fn ret(flags: u64) -> Option<Ret> {
    match flags & (MAIL_RET_FULL | MAIL_RET_HDRS) {
        0 => None,
        MAIL_RET_FULL => Some(Ret::Full),
        _ => Some(Ret::Headers),
    }
}

fn notify(flags: u64) -> Result<Notify, CommandError> {
    match flags & (RCPT_NOTIFY_NEVER | RCPT_NOTIFY_SUCCESS | RCPT_NOTIFY_FAILURE | RCPT_NOTIFY_DELAY) {
        0 => Ok(Notify::default()),
        RCPT_NOTIFY_NEVER => Ok(Notify::Never),
        // RFC 3461 4.1: NEVER stands alone.
        both if both & RCPT_NOTIFY_NEVER != 0 => Err(CommandError::BadValue("NOTIFY")),
        some => Ok(Notify::On {
            success: some & RCPT_NOTIFY_SUCCESS != 0,
            failure: some & RCPT_NOTIFY_FAILURE != 0,
            delay: some & RCPT_NOTIFY_DELAY != 0,
        }),
    }
}

/// RFC 3461 4.2: an address type, a semicolon, xtext. The type goes into a DSN as it is.
fn original_recipient(value: &str) -> Option<OriginalRecipient> {
    let (kind, xtext) = value.split_once(';')?;
    let is_atom = !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !is_atom || value.len() > ORCPT_BYTES_MAX {
        return None;
    }
    Some(OriginalRecipient { kind: kind.to_ascii_lowercase(), address: decode_xtext(xtext)? })
}

/// RFC 3461 4: printable ASCII without `+` and `=`, or `+` and two upper-case hex digits (lower case
/// is taken too). None if it is not that, is empty, or decodes to anything but printable ASCII.
pub fn decode_xtext(text: &str) -> Option<String> {
    let mut decoded = String::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'+' => hex_digit(bytes.next()?)? << 4 | hex_digit(bytes.next()?)?,
            b'=' => return None,
            _ => byte,
        };
        if !(b' '..=b'~').contains(&byte) {
            return None;
        }
        decoded.push(char::from(byte));
    }
    (!decoded.is_empty()).then_some(decoded)
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Digits only, and not more than fits.
pub(super) fn number(digits: &str) -> Option<u64> {
    if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// smtp-proto names the parameter in its errors.
fn refusal(error: Error) -> CommandError {
    match error {
        Error::InvalidParameter { param } => CommandError::BadValue(param),
        Error::UnsupportedParameter { param } => CommandError::UnknownParameter(shortened(&param)),
        _ => CommandError::BadValue("a parameter"),
    }
}

fn shortened(text: &str) -> String {
    text.chars().filter(char::is_ascii_graphic).take(ECHO_BYTES_MAX).collect()
}

/// A parameter list that follows the grammar.
struct Parameters<'a> {
    list: Vec<(&'static str, Option<&'a str>)>,
}

impl<'a> Parameters<'a> {
    fn split(text: &'a str, known: &[&'static str]) -> Result<Parameters<'a>, CommandError> {
        let mut list: Vec<(&'static str, Option<&str>)> = Vec::new();
        for word in text.split(' ').filter(|word| !word.is_empty()) {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word, None),
            };
            let keyword = known
                .iter()
                .find(|keyword| keyword.eq_ignore_ascii_case(name))
                .ok_or_else(|| CommandError::UnknownParameter(shortened(name)))?;
            if list.iter().any(|(seen, _)| seen == keyword) {
                return Err(CommandError::Twice(keyword));
            }
            // These have no value (RFC 6531 3.4, RFC 8689 2), all others have one.
            let is_bare = matches!(*keyword, "SMTPUTF8" | "REQUIRETLS");
            let legal = match value {
                None => is_bare,
                Some(value) => {
                    !is_bare && !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic() && b != b'=')
                }
            };
            if !legal {
                return Err(CommandError::BadValue(keyword));
            }
            list.push((keyword, value));
        }
        Ok(Parameters { list })
    }

    fn value(&self, keyword: &str) -> Option<&'a str> {
        self.list.iter().find(|(name, _)| *name == keyword).and_then(|(_, value)| *value)
    }

    /// The named ones as a line of their own, in the form that smtp-proto takes.
    fn words(&self, keywords: &[&str]) -> Vec<u8> {
        let mut line = Vec::new();
        for (keyword, value) in self.list.iter().filter(|(keyword, _)| keywords.contains(keyword)) {
            line.extend_from_slice(keyword.as_bytes());
            if let Some(value) = value {
                line.push(b'=');
                line.extend_from_slice(value.as_bytes());
            }
            line.push(b' ');
        }
        line.push(b'\n');
        line
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn mail_parameters() {
        let params = MailParams::parse(" SIZE=1234 body=8bitmime SMTPUTF8 RET=hdrs ENVID=x+2By AUTH=<>").unwrap();
        assert_eq!((params.size, params.body), (Some(1234), Some(BodyType::EightBitMime)));
        assert!(params.smtputf8);
        assert_eq!(params.dsn, DsnRequest { ret: Some(Ret::Headers), envid: Some("x+y".into()) });
        assert_eq!(MailParams::parse("").unwrap(), MailParams::default());
        assert!(MailParams::parse(" requiretls SIZE=1").unwrap().require_tls && !params.require_tls);
    }

    #[test]
    fn mail_parameters_that_are_refused() {
        for (text, code) in [
            ("SIZE=99999999999999999999", 501),
            ("REQUIRETLS=yes", 501),
            ("REQUIRETLS REQUIRETLS", 501),
            ("SIZE=18446744073709551616", 501),
            ("SIZE=-1", 501),
            ("SIZE=+1", 501),
            ("SIZE=", 501),
            ("SIZE", 501),
            ("SIZE=1 SIZE=2", 501),
            ("SMTPUTF8 smtputf8", 501),
            ("SMTPUTF8=1", 501),
            ("BODY=BINARYMIME", 501),
            ("BODY=9BIT", 501),
            ("BODY=8BITMIMEX", 501),
            ("RET=FULL,HDRS", 501),
            ("ENVID=x+0D+0Ay", 501),
            ("ENVID=x+00", 501),
            ("ENVID=x+7F", 501),
            ("ENVID=x+E4", 501),
            ("ENVID=x+", 501),
            ("ENVID=x+0g", 501),
            ("ENVID=a=b", 501),
            ("AUTH=a+0A", 501),
            ("FOO=BAR", 555),
            ("NOTIFY=NEVER", 555),
            (">", 555),
        ] {
            assert_eq!(MailParams::parse(text).unwrap_err().reply().code, code, "{text}");
        }
        assert!(MailParams::parse(&format!("ENVID={}", "x".repeat(101))).is_err());
    }

    #[test]
    fn rcpt_parameters() {
        let params = RcptParams::parse(" NOTIFY=success,DELAY ORCPT=rfc822;Bob+2B1@example.com").unwrap();
        assert_eq!(params.notify, Notify::On { success: true, failure: false, delay: true });
        assert_eq!(params.original.unwrap().address, "Bob+1@example.com");
        assert_eq!(RcptParams::parse("NOTIFY=NEVER").unwrap().notify, Notify::Never);
        assert_eq!(RcptParams::parse("ORCPT=utf-8;a+5Cx{E9}@b").unwrap().original.unwrap().kind, "utf-8");
        for bad in [
            "NOTIFY=NEVER,FAILURE",
            "NOTIFY=FAILURE,NEVER",
            "NOTIFY=",
            "NOTIFY=ALWAYS",
            "NOTIFY=FAILURE,",
            "NOTIFY=FAILURE;",
            "ORCPT=rfc822;a+0D+0ABcc:x",
            "ORCPT=rfc822",
            "ORCPT=;a",
            "ORCPT=rfc822;",
            "ORCPT=rf c822;a",
        ] {
            assert!(RcptParams::parse(bad).is_err(), "{bad}");
        }
    }
}
