//! Bounces that are written for people only: Exim's and Gmail's field, qmail's paragraphs, Exchange's
//! reports, and whatever else servers of thirty years have come up with.
//!
//! Only what stands before the copy of the message is read. A text without words of failure is no bounce.
//! Addresses are taken from the surest place that has any: in front of a colon and a reason, alone on a
//! line, within a sentence about the failure, the To of the message that came back. Where none is found
//! the bounce is given without one: by its return path it may be known all the same.

use super::{Action, Bounce, Original, RECIPIENTS_MAX, Reported, decoded, shorten};
use crate::bounce::classify::{Class, classify, code_in, status_in};
use crate::message::Address;
use crate::message::header::{self, Headers};
use crate::message::mime::{self, Part};

/// Lines that are looked at.
const LINES_MAX: usize = 400;
/// Characters of a line that are looked at.
const LINE_CHARS_MAX: usize = 1000;
/// Lines of a reason.
const REASON_LINES_MAX: usize = 8;

/// Of mail that was not delivered; lower-case.
const FAILURES: [&str; 38] = [
    "not be delivered",
    "cannot be delivered",
    "unable to deliver",
    "able to deliver",
    "not deliver",
    "undeliverable",
    "undelivered",
    "not delivered",
    "non-delivery",
    "not reach",
    "not be reached",
    "delivery failed",
    "delivery failure",
    "delivery problem",
    "delivery error",
    "delivery errors",
    "failed addresses",
    "failed recipient",
    "addresses failed",
    "recipients failed",
    "recipient failed",
    "has failed",
    "failed permanently",
    "was aborted",
    "fatal errors",
    "did not receive",
    "not yet been delivered",
    "has been delayed",
    "has been postponed",
    "delivery of email to this address",
    "no such user",
    "unknown user",
    "userid:",
    "mailbox is full",
    "encountered an error",
    "error-for:",
    "did not exactly match",
    "was rejected by",
];

/// Of mail that is still tried.
const DELAYS: [&str; 8] = [
    "not yet been delivered",
    "has been delayed",
    "has been postponed",
    "warning message only",
    "this is just a warning",
    "delivery attempts will continue",
    "will be retried",
    "still being retried",
];

/// At the beginning of a subject: nobody has failed to deliver anything.
const ANSWERS: [&str; 6] = ["auto", "out of office", "out of the office", "abwesen", "away from", "vacation"];

/// Of the line after which the message itself stands, or a part of it.
const COPIES: [&str; 18] = [
    "original message",
    "copy of the message",
    "copy of your message",
    "copy of the first",
    "copy of the original",
    "message header",
    "header of the",
    "headers of the",
    "message headers",
    "returned mail",
    "returned message",
    "unsent message",
    "message text follows",
    "source mail",
    "old message",
    "forwarded message",
    "mensaje original",
    "your message reads",
];

/// In front of an address within a sentence, the surest first.
const PHRASES: [&str; 17] = [
    "failed recipient",
    "recipient:",
    "intended recipient",
    "following recipient",
    "undeliverable",
    "error-for:",
    "unknown user",
    "userid:",
    "attempts:",
    "deliver message to",
    "deliver your message to",
    "generated from",
    "addressed to",
    "was addressed",
    "mailbox",
    "your message to",
    "delivered to",
];

pub fn read(headers: &Headers<'_>, parts: &[Part<'_>], original: Original) -> Option<Bounce> {
    let subject = headers.get("subject").map(|field| mime::decode_words(field.value)).unwrap_or_default();
    let lines = report(parts);
    let named = named(headers);
    let said = lines.join(" ");
    let all = format!("{subject} {said}").to_lowercase();
    let starts = subject.trim_start().to_lowercase();
    let is_paragraph = |line: &String| !before_colon(line).is_empty();
    let fails = !named.is_empty()
        || FAILURES.iter().any(|words| all.contains(words))
        || (is_daemon(headers) && lines.iter().any(is_paragraph));
    if !fails || (named.is_empty() && ANSWERS.iter().any(|words| starts.starts_with(words))) {
        return None;
    }
    let action = if DELAYS.iter().any(|words| all.contains(words)) { Action::Delayed } else { Action::Failed };
    let mut found = found(headers, &lines);
    if !named.is_empty() {
        let reason =
            |address: &Address| found.iter().find(|known| known.address == *address).map(|known| known.reason.clone());
        found =
            named.into_iter().map(|address| Found { reason: reason(&address).unwrap_or_default(), address }).collect();
    }
    if found.is_empty()
        && let [only] = original.to.as_slice()
    {
        found.push(Found { address: only.clone(), reason: String::new() });
    }
    let mut recipients: Vec<Reported> =
        found.into_iter().map(|one| reported(Some(one.address), &one.reason, action)).collect();
    if recipients.is_empty() {
        recipients.push(reported(None, &said, action));
    }
    // All that is said is about the only one.
    if let [only] = recipients.as_mut_slice()
        && (only.status.is_empty() && only.class == Class::Soft)
    {
        *only = reported(only.last.take(), &said, action);
    }
    Some(Bounce { recipients, original })
}

fn reported(last: Option<Address>, reason: &str, action: Action) -> Reported {
    let status = status_in(reason).or_else(|| code_in(reason)).unwrap_or_default().to_owned();
    let (class, diagnostic) = (classify(&status, reason), shorten(reason));
    Reported { original: None, last, action, status, class, diagnostic, host: String::new() }
}

/// RFC 5321 does not say so, but those that report have this name.
fn is_daemon(headers: &Headers<'_>) -> bool {
    let from = headers.get("from").map(|field| header::unfold(field.value).to_lowercase());
    from.is_some_and(|from| from.contains("mailer-daemon"))
}

/// Exim and Gmail name the recipients in a field.
fn named(headers: &Headers<'_>) -> Vec<Address> {
    let fields = headers.all("x-failed-recipients").map(|field| header::unfold(field.value));
    let mut named = Vec::new();
    for address in fields.flat_map(|field| field.split(',').filter_map(super::address).collect::<Vec<_>>()) {
        if named.len() < RECIPIENTS_MAX && !named.contains(&address) {
            named.push(address);
        }
    }
    named
}

/// The lines that the report itself has, up to the copy of the message.
fn report(parts: &[Part<'_>]) -> Vec<String> {
    let own = || parts.iter().take_while(|part| !part.content_type.starts_with("message/rfc822"));
    let plain: Vec<String> = own().filter(|part| part.content_type == "text/plain").map(decoded).collect();
    let text = match plain.iter().any(|text| !text.trim().is_empty()) {
        true => plain.join("\n"),
        false => {
            own().filter(|part| part.content_type == "text/html").map(|part| without_tags(&decoded(part))).collect()
        }
    };
    let shown = |line: &str| line.trim_end().chars().take(LINE_CHARS_MAX).collect::<String>();
    // Some are sent quoted-printable without saying so.
    let text = text.replace("=\r\n", "").replace("=\n", "").replace("=20", " ");
    text.lines().take(LINES_MAX).take_while(|line| !begins_copy(line)).map(shown).collect()
}

fn begins_copy(line: &str) -> bool {
    let line = line.trim().to_lowercase();
    let is_title = line.starts_with(['-', '=', '|', '*']) || line.ends_with([':', '.']) || line.ends_with("follows");
    let points = ["follow", "below", "is a copy", "here is", "included", "attached", "---", "(in part)"];
    is_title
        && (points.iter().any(|word| line.contains(word)) || line.ends_with(':'))
        && COPIES.iter().any(|words| line.contains(words))
        && !["delete your own text", "not receive"].iter().any(|words| line.contains(words))
}

/// HTML as text, as well as is needed to find an address in it.
fn without_tags(html: &str) -> String {
    let mut text = String::with_capacity(html.len());
    let mut rest = html;
    while let Some((before, tag)) = rest.split_once('<') {
        text.push_str(before);
        let Some((tag, after)) = tag.split_once('>') else { break };
        let word: String = tag.chars().take_while(|c| !c.is_whitespace()).collect::<String>().to_ascii_lowercase();
        match word.trim_matches('/') {
            // An address in brackets that nobody has escaped.
            word if word.contains('@') => text.push_str(&format!("<{tag}>")),
            "br" | "p" | "div" | "tr" | "li" | "td" | "h1" | "h2" | "h3" => text.push('\n'),
            _ => {}
        }
        rest = after;
    }
    text.push_str(rest);
    [("&nbsp;", " "), ("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#64;", "@"), ("&amp;", "&")]
        .iter()
        .fold(text, |text, (entity, plain)| text.replace(entity, plain))
}

struct Found {
    address: Address,
    reason: String,
}

/// The recipients that the lines name, from the surest place that has any.
fn found(headers: &Headers<'_>, lines: &[String]) -> Vec<Found> {
    let to = headers.get("to").and_then(|field| header::mailboxes(field.value).ok()).unwrap_or_default();
    // Who gets the report, and who wrote it, are not those it is about.
    let is_other = |address: &Address| {
        let local = address.lookup_local();
        to.iter().any(|mailbox| mailbox.address == *address)
            || ["postmaster", "mailer-daemon"].contains(&local.as_str())
    };
    let places: [fn(&str) -> Vec<Address>; 2] = [before_colon, alone];
    let is_about =
        |line: &str, address: &Address| places.iter().all(|place| place(line).iter().all(|one| one == address));
    let mut found = Vec::new();
    for place in places {
        for (at, line) in lines.iter().enumerate() {
            for address in place(line).into_iter().filter(|address| !is_other(address)) {
                let further = lines.iter().skip(at + 1).skip_while(|line| line.trim().is_empty());
                let further = further
                    .take_while(|line| !line.trim().is_empty() && is_about(line, &address))
                    .take(REASON_LINES_MAX);
                let reason: Vec<&str> = std::iter::once(line).chain(further).map(String::as_str).collect();
                add(&mut found, address, reason.join(" "));
            }
        }
        if !found.is_empty() {
            return found;
        }
    }
    for phrase in PHRASES {
        for (at, line) in lines.iter().enumerate() {
            let next = lines.get(at + 1).map_or("", String::as_str);
            for address in in_sentence(line, next, phrase).into_iter().filter(|address| !is_other(address)) {
                let further = lines.iter().skip(at + 1).filter(|line| !line.trim().is_empty());
                let further =
                    further.take_while(|line| !line.to_ascii_lowercase().contains(phrase)).take(REASON_LINES_MAX);
                let reason: Vec<&str> = std::iter::once(line).chain(further).map(String::as_str).collect();
                add(&mut found, address, reason.join(" "));
            }
        }
        if !found.is_empty() {
            return found;
        }
    }
    // The header of the message, or a piece of it.
    let to = lines.iter().find(|line| line.trim_start().to_ascii_lowercase().starts_with("to:"));
    for (_, _, address) in to.map(|line| addresses(line)).unwrap_or_default() {
        add(&mut found, address, String::new());
    }
    found
}

fn add(found: &mut Vec<Found>, address: Address, reason: String) {
    if found.len() < RECIPIENTS_MAX && found.iter().all(|known| known.address != address) {
        found.push(Found { address, reason });
    }
}

/// `<a@b.example>: reason`, as qmail, Postfix, Exim and many others have it.
fn before_colon(line: &str) -> Vec<Address> {
    let Some((start, end, address)) = addresses(line).into_iter().next() else { return Vec::new() };
    let before = line.get(..start).unwrap_or_default().trim_start();
    let after = line.get(end..).unwrap_or_default().trim_start_matches(['>', ']', '"', '\'', ' ']);
    let fits = matches!(before, "" | "<" | "* [") && after.starts_with(':');
    if fits { vec![address] } else { Vec::new() }
}

/// A line that has an address and little else.
fn alone(line: &str) -> Vec<Address> {
    let found = addresses(line);
    let (Some((start, ..)), Some((_, end, _))) = (found.first(), found.last()) else { return Vec::new() };
    let before = line.get(..*start).unwrap_or_default();
    let after = line.get(*end..).unwrap_or_default();
    let gaps = found.iter().zip(found.iter().skip(1)).filter_map(|((_, end, _), (start, ..))| line.get(*end..*start));
    let is_mark = |c: char| c.is_whitespace() || "<>*-\"'|,;.()".contains(c);
    let marks_only = |text: &str| text.chars().all(is_mark);
    // Exchange: an X.400 address that holds ours, and when that was.
    let before_fits = marks_only(before) || before.to_ascii_lowercase().ends_with("smtp=");
    let after = after.trim_start_matches(['>', '"', '\'', ';', ' ']);
    let after_fits = marks_only(after) || ["on ", "...", "- ", "(expanded"].iter().any(|word| after.starts_with(word));
    let is_alone = before_fits && after_fits && gaps.into_iter().all(marks_only);
    if is_alone { found.into_iter().map(|(_, _, address)| address).collect() } else { Vec::new() }
}

/// After a phrase, in the same line or at the beginning of the next.
fn in_sentence(line: &str, next: &str, phrase: &str) -> Vec<Address> {
    let Some(at) = line.to_ascii_lowercase().find(phrase) else { return Vec::new() };
    let rest = line.get(at..).unwrap_or_default();
    let (place, found) = match addresses(rest) {
        found if found.is_empty() => (next, addresses(next)),
        found => (rest, found),
    };
    let of_others = |start: usize| {
        let between = place.get(..start).unwrap_or_default();
        between.get(phrase.len()..).unwrap_or(between).contains(" from ")
    };
    found.into_iter().take(1).filter(|(start, ..)| !of_others(*start)).map(|(_, _, address)| address).collect()
}

/// The addresses in a line, with where they begin and end.
fn addresses(line: &str) -> Vec<(usize, usize, Address)> {
    let mut found: Vec<(usize, usize, Address)> = Vec::new();
    for (at, _) in line.match_indices('@') {
        let (before, after) = (line.get(..at).unwrap_or_default(), line.get(at + 1..).unwrap_or_default());
        let is_local = |c: char| c.is_ascii_alphanumeric() || "!#$%&*+-/=?^_`{|}~.".contains(c);
        let mut start = before
            .rfind(|c| !is_local(c))
            .map_or(0, |last| last + before.get(last..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8));
        if before.get(start..).is_some_and(|local| local.to_ascii_lowercase().starts_with("smtp=")) {
            start += "smtp=".len();
        }
        let is_domain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        let length = after.find(|c| !is_domain(c)).unwrap_or(after.len());
        let domain = after.get(..length).unwrap_or_default().trim_end_matches(['.', '-']);
        let end = at + 1 + domain.len();
        let is_whole = domain.contains('.') && found.last().is_none_or(|(_, last, _)| start >= *last);
        let address = line.get(start..end).filter(|_| is_whole).and_then(|text| Address::parse(text).ok());
        found.extend(address.map(|address| (start, end, address)));
    }
    found
}
