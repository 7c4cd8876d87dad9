//! From the bytes of an `.eml` file to an envelope and a message. Pure.
//!
//! Envelope: if the file begins with a block of `X-Sender` and `X-Receiver` fields, as .NET, CDO and
//! Exchange write it, that block is the envelope. Otherwise the recipients are To, Cc and Bcc, and
//! the sender is the From field if it names one address, or else Sender. A single `X-Sender` somewhere
//! is no block: many programs write one. `pickup.*.format` says which of the two it has to be.
//!
//! Message: the block, Bcc and Resent-Bcc go; line ends become CRLF; a byte order mark goes; dots that
//! an old .NET doubled are halved. Date, Message-ID and Received are added by `intake`.

use super::encode::encoded;
use super::text;
use crate::config::PickupFormat;
use crate::message::address::parse_reverse_path;
use crate::message::header::{Field, HeaderError, Headers, mailboxes, unfold};
use crate::message::{Address, BodyType, Envelope, Notify, OriginalRecipient, Recipient, Ret, ReversePath, stream};
use crate::smtp::command::decode_xtext;

/// Recipients of one file; the account's own limit is checked when it is taken.
pub const RECIPIENTS_MAX: usize = 10_000;

/// The field that ends a block, for writers that want to be sure.
pub const END_OF_BLOCK: &str = "X-EndOfInjectedXHeaders";
/// Fields that the block at the beginning of a file may have.
const BLOCK: [&str; 9] = [
    END_OF_BLOCK,
    "X-Sender",
    "X-Receiver",
    "X-CreatedBy",
    "X-HeloDomain",
    "X-ExtendedMessageProps",
    "X-ExtendedProps",
    "X-Source",
    "X-SourceIPAddress",
];
/// And any that begins like this.
const BLOCK_PREFIX: &[u8] = b"x-relay-";
/// Octets of ENVID and ORCPT (RFC 3461 4.2 and 4.4).
const XTEXT_BYTES_MAX: usize = 500;

/// The file is no message that can be sent. The text goes into its `.bad.log`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Bad {
    pub reason: String,
    /// It is clear who sent it to whom: the sender can be told.
    pub envelope: Option<Box<Envelope>>,
}

impl Bad {
    pub fn new(reason: impl Into<String>) -> Bad {
        Bad { reason: reason.into(), envelope: None }
    }
}

/// What a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eml {
    pub envelope: Envelope,
    pub content: Vec<u8>,
    pub seen: Seen,
}

/// What the file was taken for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its envelope is a block of `X-Receiver` fields.
    pub block: bool,
    /// Dots at the beginning of lines were doubled.
    pub stuffed: bool,
    pub utf16: bool,
}

/// Reads a whole file. `stream`: what it is to go by, whatever its header says.
pub fn read_eml(file: &[u8], format: PickupFormat, stream: Option<&str>) -> Result<Eml, Bad> {
    let text::Text { lines: mut content, was_utf16 } = text::read(file)?;
    let mut seen = Seen { utf16: was_utf16, ..Seen::default() };
    let has_block = block_len(&Headers::parse(&content)).1;
    match format {
        PickupFormat::Iis => {
            seen.stuffed = content.split(|b| *b == b'\n').any(|line| line.starts_with(b"."));
            content = text::as_iis(&content);
        }
        PickupFormat::Auto if has_block && text::is_stuffed(&content) => {
            seen.stuffed = true;
            content = text::unstuffed(&content);
        }
        _ => {}
    }
    let headers = Headers::parse(&content);
    let limits = headers.within_limits();
    if limits.is_ok() && !headers.has_empty_line() {
        return Err(no_empty_line(&headers));
    }
    let (len, has_block) = block_len(&headers);
    seen.block = has_block && format != PickupFormat::Exchange;
    if format == PickupFormat::Replay && !has_block {
        return Err(Bad::new("format = \"replay\" wants X-Receiver at the beginning of the file; there is none"));
    }
    // An X-Sender alone, in front, is a field like any other.
    let (block, fields) = headers.fields().split_at(if has_block { len } else { 0 });
    let mut envelope = match seen.block {
        false => Envelope::new(sender(fields, format)?, recipients(fields)?),
        true => injected_envelope(block, fields, format)?,
    };
    let from = envelope.mail_from.address();
    let mut addresses = envelope.recipients.iter().map(|recipient| &recipient.address).chain(from);
    envelope.smtputf8 = addresses.any(Address::needs_smtputf8);
    if let Err(error) = limits {
        return Err(Bad { reason: error.to_string(), envelope: Some(Box::new(envelope)) });
    }
    match envelope.recipients.len() {
        0 => return Err(Bad::new("there is no recipient: To, Cc and Bcc name no address")),
        1..=RECIPIENTS_MAX => {}
        _ => {
            let reason = format!("there are more than {RECIPIENTS_MAX} recipients");
            return Err(Bad { reason, envelope: Some(Box::new(envelope)) });
        }
    }
    let content = assemble(fields, headers.body(), (format, stream, envelope.smtputf8))?;
    Ok(Eml { envelope, content, seen })
}

/// How many leading fields are of an envelope block, and whether it is one: whether it has a receiver.
fn block_len(headers: &Headers<'_>) -> (usize, bool) {
    let has_prefix =
        |name: &[u8]| name.get(..BLOCK_PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(BLOCK_PREFIX));
    let in_block = |field: &Field<'_>| BLOCK.iter().any(|name| field.is(name)) || has_prefix(field.name);
    let fields = headers.fields();
    let len = fields.iter().position(|field| !in_block(field)).unwrap_or(fields.len());
    // Whatever follows the mark is the message's own.
    let marked = fields.iter().take(len).position(|field| field.is(END_OF_BLOCK));
    let len = marked.map_or(len, |at| at + 1);
    (len, fields.iter().take(len).any(|field| field.is("X-Receiver")))
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

fn sender(fields: &[Field<'_>], format: PickupFormat) -> Result<ReversePath, Bad> {
    if format == PickupFormat::Iis
        && let [sender] = addresses(fields, &["Sender"])?.as_slice()
    {
        return Ok(ReversePath::Address(sender.clone()));
    }
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
            // Enough to know that there are too many.
            all.truncate(RECIPIENTS_MAX + 1);
            break;
        }
    }
    Ok(all)
}

/// The envelope as the block has it; To, Cc and Bcc add nothing.
fn injected_envelope(block: &[Field<'_>], fields: &[Field<'_>], format: PickupFormat) -> Result<Envelope, Bad> {
    let mut envelope = match block.iter().find(|field| field.is("X-Sender")) {
        None => Envelope::new(sender(fields, format)?, []),
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
            "ENVID" if value.len() <= XTEXT_BYTES_MAX => envelope.dsn.envid = decode_xtext(value),
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
    let (kind, address) = value.split_once(';').filter(|_| value.len() <= XTEXT_BYTES_MAX)?;
    let is_kind = !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let address = decode_xtext(address).filter(|_| is_kind)?;
    Some(OriginalRecipient { kind: kind.to_ascii_lowercase(), address })
}

fn assemble(
    fields: &[Field<'_>],
    body: &[u8],
    (format, stream, smtputf8): (PickupFormat, Option<&str>, bool),
) -> Result<Vec<u8>, Bad> {
    // Exchange takes away all that speaks of sending it again.
    let resent =
        |field: &Field<'_>| format == PickupFormat::Exchange && field.name.to_ascii_lowercase().starts_with(b"resent-");
    let hidden = |field: &Field<'_>| {
        field.is("Bcc") || field.is("Resent-Bcc") || resent(field) || (stream.is_some() && field.is(stream::FIELD))
    };
    let mut content = Vec::with_capacity(body.len() + 4096);
    if let Some(stream) = stream {
        content.extend_from_slice(format!("{}: {stream}\r\n", stream::FIELD).as_bytes());
    }
    for field in fields.iter().filter(|field| !hidden(field)) {
        if smtputf8 || field.raw.is_ascii() {
            content.extend_from_slice(field.raw);
        } else {
            content.extend_from_slice(&encoded(field)?);
        }
    }
    // RFC 5322 3.6.3 wants no destination field, but receivers do.
    if !fields.iter().any(|field| field.is("To") || field.is("Cc")) {
        content.extend_from_slice(b"To: undisclosed-recipients:;\r\n");
    }
    content.extend_from_slice(b"\r\n");
    content.extend_from_slice(body);
    Ok(content)
}

#[cfg(test)]
mod tests;
