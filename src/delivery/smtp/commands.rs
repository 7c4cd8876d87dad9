//! Our commands as text: MAIL and RCPT with the parameters that the server offers (RFC 5321 4.1.1,
//! RFC 1870, 3030, 3461, 6152, 6531).
//!
//! Promises: nothing rendered here can end a line early. Addresses are checked words; what a client of
//! ours chose freely (ENVID, ORCPT) goes out in xtext, and is left out where it has no legal form.

use super::extensions::Extensions;
use crate::message::{Address, DsnRequest, Notify, OriginalRecipient, Ret, ReversePath};

/// Characters of ENVID in xtext (RFC 3461 4.4).
const ENVID_CHARS_MAX: usize = 100;
/// Characters of ORCPT, its address type included (RFC 3461 4.2).
const ORCPT_CHARS_MAX: usize = 500;

/// What one transaction shall bring across.
#[derive(Clone, Debug)]
pub struct Mail {
    pub mail_from: ReversePath,
    /// Octets of the content, without dot-stuffing (RFC 1870 3).
    pub size: u64,
    /// The content has octets above 127.
    pub eight_bit: bool,
    pub smtputf8: Smtputf8,
    pub dsn: DsnRequest,
    /// RFC 8689: goes only to servers that offer it, under TLS.
    pub require_tls: bool,
    /// A server did not know BDAT although it offers it.
    pub without_bdat: bool,
    pub recipients: Vec<MailRecipient>,
}

/// How much the message itself asks for RFC 6531; an address may ask for it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Smtputf8 {
    No,
    /// It came in with SMTPUTF8, but its header is ASCII: a server without the extension will do.
    Welcome,
    /// Its header is not ASCII.
    Needed,
}

#[derive(Clone, Debug)]
pub struct MailRecipient {
    /// Its number within the queued message.
    pub number: u32,
    pub address: Address,
    pub notify: Notify,
    pub original: Option<OriginalRecipient>,
}

impl Mail {
    /// True if nobody can get this mail from a server without SMTPUTF8.
    pub fn needs_smtputf8(&self) -> bool {
        self.smtputf8 == Smtputf8::Needed || self.mail_from.address().is_some_and(Address::needs_smtputf8)
    }

    /// True if the MAIL command says SMTPUTF8, given that it is offered.
    fn says_smtputf8(&self) -> bool {
        self.smtputf8 != Smtputf8::No
            || self.needs_smtputf8()
            || self.recipients.iter().any(|recipient| recipient.address.needs_smtputf8())
    }
}

pub fn write_mail(mail: &Mail, offers: &Extensions, out: &mut Vec<u8>) {
    let mut line = format!("MAIL FROM:<{}>", mail.mail_from);
    if offers.size.is_some() {
        line += &format!(" SIZE={}", mail.size);
    }
    if mail.eight_bit && offers.eight_bit_mime {
        line += " BODY=8BITMIME";
    }
    if offers.smtputf8 && mail.says_smtputf8() {
        line += " SMTPUTF8";
    }
    if mail.require_tls && offers.require_tls {
        line += " REQUIRETLS";
    }
    if offers.dsn {
        match mail.dsn.ret {
            Some(Ret::Full) => line += " RET=FULL",
            Some(Ret::Headers) => line += " RET=HDRS",
            None => {}
        }
        let envid = mail.dsn.envid.as_deref().and_then(xtext).filter(|text| text.len() <= ENVID_CHARS_MAX);
        if let Some(envid) = envid {
            line += &format!(" ENVID={envid}");
        }
    }
    out.extend_from_slice(line.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The whole content in one chunk (RFC 3030 2).
pub fn write_bdat(octets: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("BDAT {octets} LAST\r\n").as_bytes());
}

pub fn write_rcpt(recipient: &MailRecipient, offers: &Extensions, out: &mut Vec<u8>) {
    let mut line = format!("RCPT TO:<{}>", recipient.address);
    if offers.dsn {
        if let Some(notify) = notify(recipient.notify) {
            line += &format!(" NOTIFY={notify}");
        }
        if let Some(orcpt) = recipient.original.as_ref().and_then(orcpt) {
            line += &format!(" ORCPT={orcpt}");
        }
    }
    out.extend_from_slice(line.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// None for the default, which needs no saying.
fn notify(notify: Notify) -> Option<String> {
    if notify == Notify::default() {
        return None;
    }
    let Notify::On { success, failure, delay } = notify else { return Some("NEVER".into()) };
    let words = [(success, "SUCCESS"), (failure, "FAILURE"), (delay, "DELAY")];
    let words: Vec<&str> = words.into_iter().filter(|(on, _)| *on).map(|(_, word)| word).collect();
    (!words.is_empty()).then(|| words.join(","))
}

fn orcpt(original: &OriginalRecipient) -> Option<String> {
    let is_atom = !original.kind.is_empty() && original.kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let text = format!("{};{}", original.kind, xtext(&original.address)?);
    (is_atom && text.len() <= ORCPT_CHARS_MAX).then_some(text)
}

/// RFC 3461 4. None if there is nothing, or something outside ASCII, which xtext cannot say.
fn xtext(text: &str) -> Option<String> {
    if text.is_empty() || !text.is_ascii() {
        return None;
    }
    let encoded = text.bytes().map(|byte| match byte {
        b'!'..=b'~' if byte != b'+' && byte != b'=' => char::from(byte).to_string(),
        _ => format!("+{byte:02X}"),
    });
    Some(encoded.collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::delivery::smtp::extensions::SizeOffer;

    fn mail() -> Mail {
        Mail {
            mail_from: ReversePath::Address(Address::parse("a@own.test").unwrap()),
            size: 123,
            eight_bit: true,
            smtputf8: Smtputf8::Welcome,
            dsn: DsnRequest { ret: Some(Ret::Headers), envid: Some("a+b=c\r\nRSET".into()) },
            require_tls: false,
            without_bdat: false,
            recipients: vec![],
        }
    }

    fn recipient(notify: Notify, original: &str) -> MailRecipient {
        let original = Some(OriginalRecipient { kind: "rfc822".into(), address: original.into() });
        MailRecipient { number: 0, address: Address::parse("\"x y\"@far.test").unwrap(), notify, original }
    }

    fn all() -> Extensions {
        Extensions {
            pipelining: true,
            chunking: true,
            starttls: true,
            eight_bit_mime: true,
            smtputf8: true,
            dsn: true,
            require_tls: true,
            size: Some(SizeOffer::Unlimited),
            auth: vec![],
        }
    }

    fn mail_line(mail: &Mail, offers: &Extensions) -> String {
        let mut out = Vec::new();
        write_mail(mail, offers, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn rcpt_line(recipient: &MailRecipient, offers: &Extensions) -> String {
        let mut out = Vec::new();
        write_rcpt(recipient, offers, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn parameters_only_where_offered() {
        assert_eq!(mail_line(&mail(), &Extensions::default()), "MAIL FROM:<a@own.test>\r\n");
        assert_eq!(
            mail_line(&mail(), &all()),
            "MAIL FROM:<a@own.test> SIZE=123 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=a+2Bb+3Dc+0D+0ARSET\r\n"
        );
        let plain = Mail {
            mail_from: ReversePath::Null,
            eight_bit: false,
            smtputf8: Smtputf8::No,
            dsn: DsnRequest::default(),
            ..mail()
        };
        assert_eq!(mail_line(&plain, &all()), "MAIL FROM:<> SIZE=123\r\n");
    }

    #[test]
    fn dsn_parameters_of_a_recipient() {
        let on = Notify::On { success: true, failure: false, delay: true };
        assert_eq!(
            rcpt_line(&recipient(on, "x y@far.test"), &all()),
            "RCPT TO:<\"x y\"@far.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;x+20y@far.test\r\n"
        );
        assert_eq!(rcpt_line(&recipient(on, "x"), &Extensions::default()), "RCPT TO:<\"x y\"@far.test>\r\n");
        assert_eq!(rcpt_line(&recipient(Notify::Never, "ü"), &all()), "RCPT TO:<\"x y\"@far.test> NOTIFY=NEVER\r\n");
        let long = "x".repeat(ORCPT_CHARS_MAX);
        assert_eq!(rcpt_line(&recipient(Notify::default(), &long), &all()), "RCPT TO:<\"x y\"@far.test>\r\n");
    }
}
