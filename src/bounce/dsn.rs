//! Delivery status notifications: telling a sender that a message was not, or not yet, delivered, or,
//! where that was asked for, that it was
//! (RFC 3464 in the multipart/report of RFC 6522; RFC 6533 for addresses that are not ASCII).
//!
//! What comes out is one well-formed message whatever the original or a far end holds: their texts
//! are cleaned of line ends and indented, the boundary occurs nowhere else. An address behind an
//! alias of ours is not told, nor is what goes on inside a target of ours: the one who wrote may be
//! anybody. Left out: reports that an alias has been expanded; each address behind it counts as its own.

use crate::clock::{self, Millis};
use crate::message::header::{self, Headers};
use crate::message::text::steers;
use crate::message::{Address, Domain, Ret, TlsWish};
use crate::queue::record::{Failure, Message, Recipient, Route};

/// Bytes up to which the whole message goes back, if the sender asked for it with RET=FULL.
pub const FULL_BYTES_MAX: usize = 100 * 1024;
/// Bytes of the original that are looked at: more is never sent back.
pub const ORIGINAL_BYTES_MAX: usize = 2 * FULL_BYTES_MAX;
/// Bytes of the original's header section that go back.
const HEADERS_BYTES_MAX: usize = 64 * 1024;
/// Recipients named in the text for people; the report behind it has all.
const NAMED_MAX: usize = 20;
/// Characters of a far end's reply that are passed on.
const REPLY_CHARS_MAX: usize = 1000;
/// Columns of the text for people.
const TEXT_COLUMNS: usize = 76;
/// Bytes of a line without its CRLF (RFC 5322 2.1.1).
const LINE_BYTES_MAX: usize = 998;

/// What is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It will not be delivered.
    Failed,
    /// It has not been delivered yet; we try until then.
    Delayed { until: Millis },
    /// We have given up trying.
    Expired,
    /// It is where mail for the recipient goes.
    Delivered,
    /// The next server has it, and will not report what becomes of it (RFC 3464 2.3.3).
    Relayed,
}

impl Action {
    fn is_success(self) -> bool {
        matches!(self, Action::Delivered | Action::Relayed)
    }

    fn is_failure(self) -> bool {
        matches!(self, Action::Failed | Action::Expired)
    }

    /// RFC 3464 2.3.3.
    fn word(self) -> &'static str {
        match self {
            Action::Failed | Action::Expired => "failed",
            Action::Delayed { .. } => "delayed",
            Action::Delivered => "delivered",
            Action::Relayed => "relayed",
        }
    }
}

/// One notification, about one or more recipients of one message.
#[derive(Clone, Copy, Debug)]
pub struct Notice<'a> {
    pub hostname: &'a Domain,
    /// Header From, such as MAILER-DAEMON at one of our domains. The envelope's sender is null.
    pub from: &'a Address,
    /// The original's MAIL FROM.
    pub to: &'a Address,
    pub message: &'a Message,
    /// With what happened. Of a success that is the host and what it said.
    pub recipients: &'a [(&'a Recipient, &'a Failure)],
    pub action: Action,
    /// Its Message-ID, without brackets.
    pub id: &'a str,
    /// The original as it is queued, or its first [`ORIGINAL_BYTES_MAX`].
    pub original: &'a [u8],
    pub now: Millis,
    /// Random: for the boundary.
    pub seed: u64,
}

/// Shall the sender be told this about this recipient? Never for the null sender (RFC 5321 4.5.5),
/// nor for a bounce that pretends to have one; otherwise as NOTIFY says (RFC 3461 4.1).
pub fn wanted(message: &Message, recipient: &Recipient, action: Action) -> bool {
    let answerable = message.mail_from.address().is_some_and(|from| from.lookup_local() != "mailer-daemon");
    let asked = match action {
        Action::Failed | Action::Expired => recipient.notify.on_failure(),
        Action::Delayed { .. } => recipient.notify.on_delay() && !recipient.delay_notified,
        Action::Delivered | Action::Relayed => recipient.notify.on_success(),
    };
    answerable && asked
}

/// Must the notice be sent with SMTPUTF8? Only its header fields decide; the parts are 8bit at most.
pub fn needs_smtputf8(notice: &Notice<'_>) -> bool {
    notice.to.needs_smtputf8() || notice.from.needs_smtputf8()
}

/// The whole message, CRLF lines.
pub fn write(notice: &Notice<'_>) -> Vec<u8> {
    let parts = [text_part(notice), status_part(notice), original_part(notice)];
    let boundary = boundary(notice.seed, &parts);
    let eight_bit = parts.iter().any(|part| !part.is_ascii());
    let mut out = head(notice, &boundary, eight_bit);
    for part in parts {
        out.extend_from_slice(format!("\r\n--{boundary}\r\n").as_bytes());
        out.extend_from_slice(&part);
    }
    out.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    out
}

/// A delimiter that occurs in none of the parts (RFC 2046 5.1.1).
fn boundary(seed: u64, parts: &[Vec<u8>]) -> String {
    let mut number = seed;
    loop {
        let candidate = format!("=_postrider_{number:016x}");
        let found = |part: &Vec<u8>| part.windows(candidate.len()).any(|window| window == candidate.as_bytes());
        if !parts.iter().any(found) {
            return candidate;
        }
        number = number.wrapping_add(1);
    }
}

fn head(notice: &Notice<'_>, boundary: &str, eight_bit: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let mut add = |name: &str, value: &str| out.extend(header::field(name, value));
    add("From", &format!("Mail Delivery System <{}>", notice.from));
    add("To", &format!("<{}>", notice.to));
    add("Subject", &subject(notice));
    add("Date", &clock::rfc5322(notice.now));
    add("Message-ID", &format!("<{}>", notice.id));
    if let Some(id) =
        header::message_id(format!("<{}>", notice.message.message_id).as_bytes()).filter(|id| id.is_ascii())
    {
        add("In-Reply-To", &format!("<{id}>"));
        add("References", &format!("<{id}>"));
    }
    // RFC 3834 5, and what Exchange understands: nobody's autoresponder may answer this.
    add("Auto-Submitted", "auto-replied");
    add("X-Auto-Response-Suppress", "All");
    add("MIME-Version", "1.0");
    add("Content-Type", &format!("multipart/report; report-type=delivery-status; boundary=\"{boundary}\""));
    if eight_bit {
        add("Content-Transfer-Encoding", "8bit");
    }
    out
}

fn subject(notice: &Notice<'_>) -> String {
    let to = match notice.recipients {
        [(only, _)] if !told(only).needs_smtputf8() => format!(" to {}", told(only)),
        _ => String::new(),
    };
    match notice.action {
        Action::Failed | Action::Expired => format!("Your message{to} was not delivered"),
        Action::Delayed { .. } => format!("Your message{to} is delayed"),
        Action::Delivered => format!("Your message{to} was delivered"),
        Action::Relayed => format!("Your message{to} was passed on"),
    }
}

/// The address as the sender knows it.
fn told(recipient: &Recipient) -> &Address {
    recipient.alias.as_ref().unwrap_or(&recipient.address)
}

/// What the far end said, for the sender: not what happens inside a target of ours, and nothing of
/// an address that an alias hides.
fn said(recipient: &Recipient, failure: &Failure) -> Option<String> {
    let reply = failure.reply.as_ref()?;
    if recipient.route != Route::Remote {
        return None;
    }
    let text: String = clean(&reply.to_string()).chars().take(REPLY_CHARS_MAX).collect();
    match &recipient.alias {
        None => Some(text),
        Some(alias) => Some(replaced(&text, &recipient.address.to_string(), &alias.to_string())),
    }
}

/// Replaces without regard to ASCII case.
fn replaced(text: &str, what: &str, by: &str) -> String {
    let (lower, what) = (text.to_ascii_lowercase(), what.to_ascii_lowercase());
    let mut out = String::new();
    let mut end = 0;
    for (at, found) in lower.match_indices(what.as_str()) {
        out.push_str(&text[end..at]);
        out.push_str(by);
        end = at + found.len();
    }
    out.push_str(&text[end..]);
    out
}

/// One line without controls.
fn clean(text: &str) -> String {
    text.chars().map(|c| if steers(c) { ' ' } else { c }).collect()
}

/// RFC 3463, with a class that fits what we say.
fn status(action: Action, failure: &Failure) -> String {
    let mut parts = failure.status.splitn(3, '.');
    let number = |text: Option<&str>| text.filter(|t| t.len() <= 3).and_then(|t| t.parse::<u16>().ok());
    let found = (number(parts.next()), number(parts.next()), number(parts.next()));
    match (found, action) {
        ((Some(2), Some(subject), Some(detail)), Action::Delivered | Action::Relayed) => {
            format!("2.{subject}.{detail}")
        }
        (_, Action::Delivered | Action::Relayed) => "2.0.0".to_owned(),
        // A 5yz that only keeps one host from us is a delay as a whole.
        ((Some(4 | 5), Some(subject), Some(detail)), Action::Delayed { .. }) => format!("4.{subject}.{detail}"),
        ((Some(class @ (4 | 5)), Some(subject), Some(detail)), _) => format!("{class}.{subject}.{detail}"),
        (_, Action::Failed) => "5.0.0".to_owned(),
        (_, Action::Delayed { .. }) => "4.0.0".to_owned(),
        (_, Action::Expired) => "4.4.7".to_owned(),
    }
}

/// First part: for people.
fn text_part(notice: &Notice<'_>) -> Vec<u8> {
    let Notice { hostname, message, recipients, action, .. } = notice;
    let mut text = String::new();
    let mut say = |indent: usize, line: &str| wrap(&mut text, indent, line);
    say(0, &format!("This is the mail server {hostname}."));
    say(0, "");
    say(
        0,
        match action {
            Action::Failed => "Your message could not be delivered to:",
            Action::Expired => "The time for it is up, and we have given up. Your message could not be delivered to:",
            Action::Delayed { .. } => "Your message has not been delivered yet to:",
            Action::Delivered => "Your message has been delivered, as you asked to be told, to:",
            Action::Relayed => {
                "Your message has been passed on to the next server, which will not report what becomes of it. \
                 It is on its way to:"
            }
        },
    );
    for (recipient, failure) in recipients.iter().take(NAMED_MAX) {
        say(0, "");
        say(2, &format!("<{}>", told(recipient)));
        if let Some(what) = what_happened(recipient, failure, *action) {
            say(4, &what);
        }
        if let Some(reply) = said(recipient, failure) {
            say(6, &reply);
        }
        if !action.is_success() {
            say(4, advice(*action, &status(*action, failure)));
        }
    }
    if recipients.len() > NAMED_MAX {
        say(0, "");
        say(2, &format!("and to {} more, named in the report below.", recipients.len() - NAMED_MAX));
    }
    if let Action::Delayed { until } = action {
        say(0, "");
        say(0, &format!("We keep trying until {}. You need not send it again.", clock::rfc5322(*until)));
    }
    say(0, "");
    let subject = if message.subject.is_empty() { "(none)" } else { &message.subject };
    say(0, &format!("Subject of your message: {}", clean(subject)));
    say(0, &format!("It came to us: {}", clock::rfc5322(message.received_at)));
    say(0, &format!("Our number for it: {}", message.id));
    let encoding = if text.is_ascii() { "7bit" } else { "8bit" };
    let mut part = header::field("Content-Description", "Notification");
    part.extend(header::field("Content-Type", "text/plain; charset=utf-8"));
    part.extend(header::field("Content-Transfer-Encoding", encoding));
    part.extend_from_slice(b"\r\n");
    part.extend_from_slice(text.as_bytes());
    part
}

fn what_happened(recipient: &Recipient, failure: &Failure, action: Action) -> Option<String> {
    Some(match (&recipient.route, &failure.reply) {
        (Route::Target(_), _) | (Route::Remote, None) if action.is_success() => return None,
        (Route::Target(_), _) => "Our server could not put it where mail for this address goes.".to_owned(),
        (Route::Remote, Some(_)) if failure.host.is_empty() => "The other server said:".to_owned(),
        (Route::Remote, Some(_)) => format!("The server {} said:", clean(&failure.host)),
        (Route::Remote, None) => {
            let reason: String = clean(&failure.reason).chars().take(REPLY_CHARS_MAX).collect();
            match &recipient.alias {
                None => reason,
                Some(alias) => replaced(&reason, &recipient.address.to_string(), &alias.to_string()),
            }
        }
    })
}

/// What the sender can do.
fn advice(action: Action, status: &str) -> &'static str {
    match (action, status.split_once('.').map_or("", |(_, rest)| rest)) {
        (Action::Delayed { .. }, _) => "There is nothing that you need to do.",
        (_, "1.1" | "1.0" | "1.3" | "1.6") => "The address does not exist, or not any more. Please check its spelling.",
        (_, "1.2" | "1.10" | "4.4") => "The part behind the @ takes no mail. Please check its spelling.",
        (_, "2.1") => "The mailbox is closed. Please reach the person another way.",
        (_, "2.2") => "The mailbox is full. Please try again later, or reach the person another way.",
        (_, "2.3" | "3.4") => "The message is too large there. Please send a smaller one, or a link.",
        (_, rest) if rest.starts_with("7.") => {
            "The message was refused there on grounds of policy. The postmaster there can say why."
        }
        (Action::Expired, _) => "You can send it again later, or reach the person another way.",
        _ => "It will not be tried again. What stands above says why, as far as we were told.",
    }
}

/// Words in lines of at most [`TEXT_COLUMNS`], all indented, so that no line of a far end's text
/// stands where a structure of ours could begin.
fn wrap(out: &mut String, indent: usize, line: &str) {
    let mut column = 0;
    for word in line.split_whitespace().flat_map(split_long) {
        if column > 0 && column + 1 + word.chars().count() > TEXT_COLUMNS {
            out.push_str("\r\n");
            column = 0;
        }
        let gap = if column == 0 { indent } else { 1 };
        out.extend(std::iter::repeat_n(' ', gap));
        out.push_str(&word);
        column += gap + word.chars().count();
    }
    out.push_str("\r\n");
}

/// Pieces that fit into a line of 998 bytes with room to spare.
fn split_long(word: &str) -> Vec<String> {
    let letters: Vec<char> = word.chars().collect();
    letters.chunks(200).map(|piece| piece.iter().collect()).collect()
}

/// Second part: for machines (RFC 3464 2).
fn status_part(notice: &Notice<'_>) -> Vec<u8> {
    let Notice { hostname, message, recipients, .. } = notice;
    let utf8 = recipients.iter().any(|(recipient, _)| told(recipient).needs_smtputf8());
    let mut part = header::field("Content-Description", "Delivery report");
    // RFC 6533 3: the same fields, in UTF-8.
    let kind = if utf8 { "message/global-delivery-status" } else { "message/delivery-status" };
    part.extend(header::field("Content-Type", kind));
    if utf8 {
        part.extend(header::field("Content-Transfer-Encoding", "8bit"));
    }
    part.extend_from_slice(b"\r\n");
    part.extend(status_field("Reporting-MTA", &format!("dns; {hostname}"), utf8));
    if let Some(envid) = message.dsn.envid.as_ref().filter(|envid| !envid.is_empty()) {
        part.extend(status_field("Original-Envelope-Id", envid, utf8));
    }
    part.extend(status_field("Arrival-Date", &clock::rfc5322(message.received_at), utf8));
    for (recipient, failure) in *recipients {
        part.extend_from_slice(b"\r\n");
        recipient_fields(&mut part, notice, recipient, failure, utf8);
    }
    part
}

fn recipient_fields(out: &mut Vec<u8>, notice: &Notice<'_>, recipient: &Recipient, failure: &Failure, utf8: bool) {
    let mut add = |name: &str, value: &str| out.extend(status_field(name, value, utf8));
    if let Some(original) = recipient.original.as_ref().filter(|original| !original.address.is_empty()) {
        add("Original-Recipient", &format!("{}; {}", original.kind, original.address));
    }
    let kind = if told(recipient).needs_smtputf8() { "utf-8" } else { "rfc822" };
    add("Final-Recipient", &format!("{kind}; {}", told(recipient)));
    add("Action", notice.action.word());
    add("Status", &status(notice.action, failure));
    if let Some(reply) = said(recipient, failure) {
        // `mx.example.com [192.0.2.1]:25`. What an alias leads to is not told.
        let host = failure.host.split(' ').next().unwrap_or_default();
        if recipient.alias.is_none() && Domain::parse(host).is_ok() {
            add("Remote-MTA", &format!("dns; {host}"));
        }
        // RFC 3464 2.3.6: of failures and delays only.
        if !notice.action.is_success() {
            add("Diagnostic-Code", &format!("smtp; {reply}"));
        }
    }
    match notice.action {
        Action::Failed | Action::Delivered | Action::Relayed => add("Last-Attempt-Date", &clock::rfc5322(notice.now)),
        // The last attempt may have been hours ago.
        Action::Expired => {}
        Action::Delayed { until } => {
            add("Last-Attempt-Date", &clock::rfc5322(notice.now));
            add("Will-Retry-Until", &clock::rfc5322(until));
        }
    }
}

fn status_field(name: &str, value: &str, utf8: bool) -> Vec<u8> {
    if utf8 || value.is_ascii() {
        return header::field(name, value);
    }
    let ascii: String = value.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect();
    header::field(name, &ascii)
}

/// Third part: the message, or its header section (RFC 6522 3).
fn original_part(notice: &Notice<'_>) -> Vec<u8> {
    let Notice { message, action, original, .. } = notice;
    // RFC 3461 4.3: RET is about failures.
    let full = message.dsn.ret == Some(Ret::Full)
        && action.is_failure()
        // RFC 8689 5: what had to go under TLS does not come back without.
        && message.tls != TlsWish::Required
        && original.len() <= FULL_BYTES_MAX
        && is_wellformed(original);
    let headers = Headers::parse(original);
    let (kind, content) = match (full, message.smtputf8 && !headers.header_bytes().is_ascii()) {
        (true, false) => ("message/rfc822", original.to_vec()),
        (true, true) => ("message/global", original.to_vec()),
        (false, false) => ("text/rfc822-headers", safe_headers(&headers)),
        (false, true) => ("message/global-headers", safe_headers(&headers)),
    };
    let description = if full { "Your message" } else { "Header of your message" };
    let mut part = header::field("Content-Description", description);
    part.extend(header::field("Content-Type", kind));
    if !content.is_ascii() {
        part.extend(header::field("Content-Transfer-Encoding", "8bit"));
    }
    part.extend_from_slice(b"\r\n");
    part.extend(content);
    part
}

/// May these bytes stand in an 8bit part (RFC 2045 2.8): CRLF lines that are not too long, no NUL.
fn is_wellformed(content: &[u8]) -> bool {
    let mut rest = content;
    while let Some(at) = rest.iter().position(|b| matches!(b, b'\r' | b'\n' | 0)) {
        if at > LINE_BYTES_MAX || !rest[at..].starts_with(b"\r\n") {
            return false;
        }
        rest = &rest[at + 2..];
    }
    rest.len() <= LINE_BYTES_MAX
}

/// The fields, made to fit into an 8bit part; oversize is cut, at the end of a field.
fn safe_headers(headers: &Headers<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    for field in headers.fields() {
        if out.len() + field.raw.len() > HEADERS_BYTES_MAX {
            break;
        }
        if is_wellformed(field.raw) && field.raw.ends_with(b"\r\n") {
            out.extend_from_slice(field.raw);
        } else {
            out.extend(header::field(&String::from_utf8_lossy(field.name), &field.text()));
        }
    }
    out
}

#[cfg(test)]
mod tests;
