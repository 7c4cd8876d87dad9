//! From the bytes of an `.eml` file to an envelope and a message. Pure.
//!
//! Envelope: if the file begins with a block of `X-Sender` and `X-Receiver` fields, as .NET, CDO and
//! Exchange write it, that block is the envelope. Otherwise the recipients are To, Cc and Bcc, and
//! the sender is the From field if it names one address, or else Sender. A single `X-Sender` somewhere
//! is no block: many programs write one.
//!
//! Message: the block, Bcc and Resent-Bcc go; line ends become CRLF; a byte order mark goes; dots that
//! an old .NET doubled are halved. Date, Message-ID and Received are added by `intake`.
//! Left out: UTF-16, ENVID and ORCPT that need decoding (they are ignored).

use crate::message::address::parse_reverse_path;
use crate::message::header::{Field, HeaderError, Headers, mailboxes, unfold};
use crate::message::{Address, BodyType, Envelope, Notify, OriginalRecipient, Recipient, Ret, ReversePath};

/// Recipients of one file; the account's own limit is checked by `intake`.
pub const RECIPIENTS_MAX: usize = 10_000;

/// Fields that the block at the beginning of a file may have.
const BLOCK: [&str; 9] = [
    "X-Sender",
    "X-Receiver",
    "X-CreatedBy",
    "X-HeloDomain",
    "X-ExtendedMessageProps",
    "X-ExtendedProps",
    "X-Source",
    "X-SourceIPAddress",
    "X-EndOfInjectedXHeaders",
];

/// The file is no message that can be sent. The text goes into its `.bad.log`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Bad(pub String);

impl Bad {
    fn new(reason: impl Into<String>) -> Bad {
        Bad(reason.into())
    }
}

/// What a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eml {
    pub envelope: Envelope,
    pub content: Vec<u8>,
}

/// Reads a whole file.
pub fn read_eml(file: &[u8]) -> Result<Eml, Bad> {
    let mut content = with_crlf(text(file)?);
    let injected = block_len(&Headers::parse(&content)).is_some();
    if injected && is_stuffed(&content) {
        content = unstuffed(&content);
    }
    let headers = Headers::parse(&content);
    headers.within_limits().map_err(|error| Bad::new(error.to_string()))?;
    if !headers.has_empty_line() {
        return Err(no_empty_line(&headers));
    }
    let block = block_len(&headers).unwrap_or(0);
    let (block, fields) = headers.fields().split_at(block);
    let mut envelope = match block {
        [] => Envelope::new(sender(fields)?, recipients(fields)?),
        block => injected_envelope(block, fields)?,
    };
    if envelope.recipients.is_empty() {
        return Err(Bad::new("there is no recipient: To, Cc and Bcc name no address"));
    }
    if envelope.recipients.len() > RECIPIENTS_MAX {
        return Err(Bad::new(format!("there are more than {RECIPIENTS_MAX} recipients")));
    }
    let from = envelope.mail_from.address();
    let mut addresses = envelope.recipients.iter().map(|recipient| &recipient.address).chain(from);
    envelope.smtputf8 = addresses.any(Address::needs_smtputf8);
    let content = assemble(fields, headers.body());
    Ok(Eml { envelope, content })
}

/// Without the byte order mark; refused if it is not a text in an encoding that mail can have.
fn text(file: &[u8]) -> Result<&[u8], Bad> {
    match file {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            Err(Bad::new("the file is UTF-16; write it as UTF-8 without a byte order mark"))
        }
        _ if file.contains(&0) => Err(Bad::new("the file holds NUL bytes, which no mail may have")),
        [0xef, 0xbb, 0xbf, rest @ ..] => Ok(rest),
        _ => Ok(file),
    }
}

/// Every CR, LF and CRLF ends a line; the last line is ended too.
fn with_crlf(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 32 + 2);
    let mut rest = text;
    while let Some(at) = rest.iter().position(|b| matches!(b, b'\r' | b'\n')) {
        let (line, end) = rest.split_at(at);
        out.extend_from_slice(line);
        out.extend_from_slice(b"\r\n");
        rest = end.strip_prefix(b"\r\n").or_else(|| end.split_first().map(|(_, rest)| rest)).unwrap_or_default();
    }
    if !rest.is_empty() {
        out.extend_from_slice(rest);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// How many leading fields are the envelope block; none if there is no receiver in it.
fn block_len(headers: &Headers<'_>) -> Option<usize> {
    let in_block = |field: &Field<'_>| BLOCK.iter().any(|name| field.is(name));
    let fields = headers.fields();
    let len = fields.iter().position(|field| !in_block(field)).unwrap_or(fields.len());
    let receiver = fields.iter().take(len).any(|field| field.is("X-Receiver"));
    receiver.then_some(len)
}

/// .NET Framework doubles the dot at the beginning of a line, as SMTP does; newer .NET does not. A
/// file has doubled dots if every line that begins with one begins with two.
fn is_stuffed(content: &[u8]) -> bool {
    let mut dotted = content.split(|b| *b == b'\n').filter(|line| line.starts_with(b".")).peekable();
    dotted.peek().is_some() && dotted.all(|line| line.starts_with(b".."))
}

fn unstuffed(content: &[u8]) -> Vec<u8> {
    let lines = content.split_inclusive(|b| *b == b'\n');
    lines.flat_map(|line| if line.starts_with(b"..") { line.get(1..).unwrap_or(line) } else { line }).copied().collect()
}

/// The header ended without the empty line: at a line that is no field, or with the file.
fn no_empty_line(headers: &Headers<'_>) -> Bad {
    let first = headers.body().split(|b| *b == b'\r').next().unwrap_or_default();
    if first.is_empty() {
        return Bad::new("there is no empty line after the header; the file may have been cut off");
    }
    let line = headers.header_bytes().iter().filter(|b| **b == b'\n').count() + 1;
    let shown: String = unfold(first).chars().take(60).collect();
    Bad::new(format!("line {line} is neither a header field nor the empty line after the header: {shown}"))
}

fn sender(fields: &[Field<'_>]) -> Result<ReversePath, Bad> {
    let mut from = addresses(fields, &["From"])?;
    if from.len() > 1 || from.is_empty() {
        let several = from.len() > 1;
        from = addresses(fields, &["Sender"])?;
        if from.len() != 1 {
            let problem = if several { "From names more than one address" } else { "there is no From" };
            return Err(Bad::new(format!("{problem}, and Sender does not name the one who sends")));
        }
    }
    from.pop().map(ReversePath::Address).ok_or_else(|| Bad::new("there is no From"))
}

fn recipients(fields: &[Field<'_>]) -> Result<Vec<Address>, Bad> {
    addresses(fields, &["To", "Cc", "Bcc"])
}

/// Each address once, in order.
fn addresses(fields: &[Field<'_>], names: &[&str]) -> Result<Vec<Address>, Bad> {
    let mut seen = std::collections::HashSet::new();
    let mut all = Vec::new();
    for field in fields.iter().filter(|field| names.iter().any(|name| field.is(name))) {
        let mailboxes = match mailboxes(field.value) {
            Err(HeaderError::Empty) => continue,
            other => other.map_err(|error| Bad::new(format!("{}: {error}", unfold(field.name))))?,
        };
        all.extend(mailboxes.into_iter().map(|m| m.address).filter(|address| seen.insert(address.clone())));
        if all.len() > RECIPIENTS_MAX {
            return Err(Bad::new(format!("there are more than {RECIPIENTS_MAX} recipients")));
        }
    }
    Ok(all)
}

/// The envelope as the block has it; To, Cc and Bcc add nothing.
fn injected_envelope(block: &[Field<'_>], fields: &[Field<'_>]) -> Result<Envelope, Bad> {
    let mut envelope = match block.iter().find(|field| field.is("X-Sender")) {
        None => Envelope::new(sender(fields)?, []),
        Some(field) => injected_sender(field)?,
    };
    let mut seen = std::collections::HashSet::new();
    for field in block.iter().filter(|field| field.is("X-Receiver")) {
        let recipient = injected_recipient(field)?;
        if seen.insert(recipient.address.clone()) {
            envelope.recipients.push(recipient);
        }
    }
    Ok(envelope)
}

fn injected_sender(field: &Field<'_>) -> Result<Envelope, Bad> {
    let text = field.text();
    let (path, parameters) = split_path(&text);
    let path = parse_reverse_path(&path).map_err(|error| Bad::new(format!("X-Sender: {error}")))?;
    let mut envelope = Envelope::new(path, []);
    for (name, value) in parameters {
        match name.as_str() {
            "RET" if value.eq_ignore_ascii_case("FULL") => envelope.dsn.ret = Some(Ret::Full),
            "RET" if value.eq_ignore_ascii_case("HDRS") => envelope.dsn.ret = Some(Ret::Headers),
            "ENVID" if is_plain(value) => envelope.dsn.envid = Some(value.to_owned()),
            "BODY" if value.eq_ignore_ascii_case("7BIT") => envelope.body = BodyType::SevenBit,
            _ => {}
        }
    }
    Ok(envelope)
}

fn injected_recipient(field: &Field<'_>) -> Result<Recipient, Bad> {
    let text = field.text();
    let (path, parameters) = split_path(&text);
    let address = match parse_reverse_path(&path) {
        Ok(ReversePath::Address(address)) => address,
        Ok(ReversePath::Null) => return Err(Bad::new("X-Receiver: there is no address")),
        Err(error) => return Err(Bad::new(format!("X-Receiver: {error}"))),
    };
    let mut recipient = Recipient::new(address);
    for (name, value) in parameters {
        match name.as_str() {
            "NOTIFY" => recipient.notify = notify(value.split(';').next().unwrap_or_default()),
            "ORCPT" => recipient.original = original(value),
            _ => {}
        }
    }
    Ok(recipient)
}

/// `Name <a@b>; NOTIFY=NEVER` → the path in brackets, and the parameters. Without brackets the address
/// ends at the first blank or semicolon.
fn split_path(text: &str) -> (String, Vec<(String, &str)>) {
    let (path, rest) = match opening_bracket(text).and_then(|at| text.split_at_checked(at)) {
        Some((_, bracketed)) => match bracketed.split_once('>') {
            Some((inner, rest)) => (format!("{inner}>"), rest),
            None => (bracketed.to_owned(), ""),
        },
        None => {
            let end = text.find([' ', ';']).unwrap_or(text.len());
            let (address, rest) = text.split_at(end);
            (format!("<{address}>"), rest)
        }
    };
    let words = rest.split_whitespace().map(|word| word.trim_matches(';'));
    let parameters = words.filter_map(|word| word.split_once('='));
    (path, parameters.map(|(name, value)| (name.to_ascii_uppercase(), value)).collect())
}

/// The first `<` that is not inside the quotes of a display name.
fn opening_bracket(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    text.char_indices().find_map(|(at, c)| {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '<' if !quoted => return Some(at),
            _ => {}
        }
        None
    })
}

/// RFC 3461 4.1.
fn notify(value: &str) -> Notify {
    let has = |word: &str| value.split(',').any(|w| w.eq_ignore_ascii_case(word));
    let (success, failure, delay) = (has("SUCCESS"), has("FAILURE"), has("DELAY"));
    match (has("NEVER"), success || failure || delay) {
        (true, _) => Notify::Never,
        (_, true) => Notify::On { success, failure, delay },
        _ => Notify::default(),
    }
}

fn original(value: &str) -> Option<OriginalRecipient> {
    let (kind, address) = value.split_once(';').filter(|(kind, address)| is_plain(kind) && is_plain(address))?;
    Some(OriginalRecipient { kind: kind.to_ascii_lowercase(), address: address.to_owned() })
}

/// xtext in which nothing is encoded (RFC 3461 4).
fn is_plain(value: &str) -> bool {
    !value.is_empty() && value.len() <= 500 && value.bytes().all(|b| matches!(b, b'!'..=b'~') && b != b'+' && b != b'=')
}

fn assemble(fields: &[Field<'_>], body: &[u8]) -> Vec<u8> {
    let hidden = |field: &&Field<'_>| !field.is("Bcc") && !field.is("Resent-Bcc");
    let mut content = Vec::with_capacity(body.len() + 4096);
    fields.iter().filter(hidden).for_each(|field| content.extend_from_slice(field.raw));
    // RFC 5322 3.6.3 wants no destination field, but receivers do.
    if !fields.iter().any(|field| field.is("To") || field.is("Cc")) {
        content.extend_from_slice(b"To: undisclosed-recipients:;\r\n");
    }
    content.extend_from_slice(b"\r\n");
    content.extend_from_slice(body);
    content
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn read(text: &str) -> Eml {
        read_eml(text.as_bytes()).unwrap_or_else(|bad| unreachable!("{text:?}: {bad}"))
    }

    fn bad(text: &[u8]) -> String {
        read_eml(text).err().map(|bad| bad.0).unwrap_or_else(|| unreachable!("{text:?}"))
    }

    fn to(eml: &Eml) -> Vec<String> {
        eml.envelope.recipients.iter().map(|r| r.address.to_string()).collect()
    }

    #[test]
    fn header_fields_are_the_envelope() {
        let eml = read(
            "From: A <a@x.example>\nSender: s@x.example\nTo: b@x.example, Group: c@x.example;\nto: b@x.example\n\
             Cc:\nBCC : d@x.example,\n e@x.example\nResent-Bcc: f@x.example\nSubject: x\n\nhello",
        );
        assert_eq!(eml.envelope.mail_from.to_string(), "a@x.example");
        assert_eq!(to(&eml), ["b@x.example", "c@x.example", "d@x.example", "e@x.example"]);
        assert!(!eml.envelope.smtputf8);
        assert_eq!(
            String::from_utf8(eml.content).unwrap(),
            "From: A <a@x.example>\r\nSender: s@x.example\r\nTo: b@x.example, Group: c@x.example;\r\n\
             to: b@x.example\r\nCc:\r\nSubject: x\r\n\r\nhello\r\n"
        );
    }

    #[test]
    fn several_authors_need_one_sender() {
        let eml = read("From: a@x.example, b@x.example\nSender: s@x.example\nTo: c@x.example\n\n");
        assert_eq!(eml.envelope.mail_from.to_string(), "s@x.example");
        assert!(bad(b"From: a@x.example, b@x.example\nTo: c@x.example\n\n").contains("more than one"));
        assert!(bad(b"From: a@x.example\nFrom: b@x.example\nTo: c@x.example\n\n").contains("more than one"));
        assert!(bad(b"To: c@x.example\n\n").contains("no From"));
        assert!(
            bad(b"From: a@x.example, b@x.example\nSender: c@d.example, e@f.example\nTo: c@x.example\n\n")
                .contains("Sender")
        );
    }

    #[test]
    fn hidden_recipients_stay_hidden() {
        let eml = read("From: a@x.example\nBcc: b@x.example\n\nhi\n");
        assert_eq!(to(&eml), ["b@x.example"]);
        assert_eq!(eml.content, b"From: a@x.example\r\nTo: undisclosed-recipients:;\r\n\r\nhi\r\n");
    }

    #[test]
    fn a_leading_block_is_the_envelope() {
        let eml = read(
            "x-sender: \"<A>\" <bounce@x.example> RET=HDRS ENVID=q1 BODY=7bit\r\nX-Receiver: =?utf-8?Q?B?= <b@x.example>\r\n\
             X-Receiver: c@x.example; NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;c@y.example\r\nX-CreatedBy: z\r\n\
             X-Receiver: <b@x.example>\r\nX-Receiver: <d@x.example>;NOTIFY=never\r\nFrom: a@x.example\r\n\
             To: shown@x.example\r\nX-Receiver: stale@x.example\r\n\r\nhi\r\n",
        );
        assert_eq!(eml.envelope.mail_from.to_string(), "bounce@x.example");
        assert_eq!(eml.envelope.dsn.ret, Some(Ret::Headers));
        assert_eq!(eml.envelope.dsn.envid.as_deref(), Some("q1"));
        assert_eq!(eml.envelope.body, BodyType::SevenBit);
        assert_eq!(to(&eml), ["b@x.example", "c@x.example", "d@x.example"]);
        let [b, c, d] = eml.envelope.recipients.as_slice() else { unreachable!() };
        assert_eq!(b.notify, Notify::default());
        assert_eq!(c.notify, Notify::On { success: true, failure: true, delay: false });
        assert_eq!(c.original.as_ref().map(|o| o.address.as_str()), Some("c@y.example"));
        assert_eq!(d.notify, Notify::Never);
        assert_eq!(
            String::from_utf8(eml.content).unwrap(),
            "From: a@x.example\r\nTo: shown@x.example\r\nX-Receiver: stale@x.example\r\n\r\nhi\r\n"
        );
        let null = read("X-Sender: <>\nX-Receiver: <b@x.example>\nFrom: a@x.example\n\n");
        assert!(null.envelope.mail_from.is_null());
        let none = read("X-Receiver: <b@x.example>\nFrom: a@x.example\n\n");
        assert_eq!(none.envelope.mail_from.to_string(), "a@x.example");
    }

    #[test]
    fn a_lone_x_sender_is_no_block() {
        let eml = read("X-Sender: php@x.example\nFrom: a@x.example\nTo: b@x.example\n\n");
        assert_eq!(eml.envelope.mail_from.to_string(), "a@x.example");
        assert!(eml.content.starts_with(b"X-Sender: php@x.example\r\n"));
    }

    #[test]
    fn only_doubled_dots_of_a_block_writer_are_halved() {
        let block = "X-Receiver: <b@x.example>\nFrom: a@x.example\n\n";
        let body = |eml: &Eml| String::from_utf8_lossy(&eml.content).split_once("\r\n\r\n").unwrap().1.to_owned();
        assert_eq!(body(&read(&format!("{block}..\n..x\nx..\n"))), ".\r\n.x\r\nx..\r\n");
        assert_eq!(body(&read(&format!("{block}..\n.x\n"))), "..\r\n.x\r\n");
        assert_eq!(body(&read("From: a@x.example\nTo: b@x.example\n\n..\n")), "..\r\n");
    }

    #[test]
    fn line_ends_and_marks_are_made_right() {
        let eml = read_eml(b"\xef\xbb\xbfFrom: a@x.example\rTo: b@x.example\n\r\na\r\rb\n\nc\r\n").unwrap();
        assert_eq!(eml.content, b"From: a@x.example\r\nTo: b@x.example\r\n\r\na\r\n\r\nb\r\n\r\nc\r\n");
    }

    #[test]
    fn addresses_outside_ascii_ask_for_smtputf8() {
        assert!(read("From: ä@x.example\nTo: b@x.example\n\n").envelope.smtputf8);
        assert!(read("From: a@x.example\nTo: b@x.example, ö@x.example\n\n").envelope.smtputf8);
        assert!(!read("From: Ä <a@x.example>\nTo: b@bücher.example\nSubject: ü\n\n").envelope.smtputf8);
    }

    #[test]
    fn what_is_no_message_is_refused_with_its_reason() {
        for (file, reason) in [
            (&b"\xff\xfeF\0r\0"[..], "UTF-16"),
            (b"From: a@x.example\nTo: b@x.example\n\nx\0", "NUL"),
            (b"", "no empty line"),
            (b"From: a@x.example\nTo: b@x.exam", "cut off"),
            (b"From: a@x.example\nTo: b@x.example\nno field\n\nx", "line 3 is neither"),
            (b"just text\n\n", "line 1 is neither"),
            (b"From: a@x.example\nTo: undisclosed:;\n\n", "no recipient"),
            (b"From: a@x.example\nTo: b\n\n", "To: "),
            (b"From: a\nTo: b@x.example\n\n", "From: "),
            (b"From: a@x.example\nTo: \"b\rBcc: c@x.example\"\n\n", "To: "),
            (b"X-Receiver: b\nFrom: a@x.example\n\n", "X-Receiver: "),
            (b"X-Receiver: <>\nFrom: a@x.example\n\n", "X-Receiver: "),
            (b"X-Sender: <a\nX-Receiver: <b@x.example>\nFrom: a@x.example\n\n", "X-Sender: "),
        ] {
            assert!(bad(file).contains(reason), "{:?}: {}", String::from_utf8_lossy(file), bad(file));
        }
        let many: String = (0..=RECIPIENTS_MAX).map(|n| format!("{n}@x.example,")).collect();
        assert!(bad(format!("From: a@x.example\nTo: {many}\n\n").as_bytes()).contains("many"));
        let folded = "X: 1\n".repeat(2000);
        assert!(bad(format!("From: a@x.example\n{folded}\n").as_bytes()).contains("fields"));
    }
}
