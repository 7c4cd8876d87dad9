//! Events in plain words: one sentence each, for the command line and the dashboard. What a message or a peer
//! has written is in it as it came; who shows it makes it harmless.

use super::text::{self, count, moment};
use crate::delivery::standing::{tries_until, was_put_off};
use crate::events::Event;
use crate::message::{Door, Origin};
use crate::queue::record::Failure;

/// What happened, in one sentence.
pub(crate) fn sentence(event: &Event) -> String {
    match event {
        Event::Accepted { origin, from, recipients, size, message_id, subject, signed, checked, .. } => {
            let from = if from.is_null() { "<> (the null sender)".to_owned() } else { from.to_string() };
            let mut parts = vec![
                format!("accepted {}", origin_text(origin)),
                text::size(*size),
                format!("from {from} for {}", count(*recipients as usize, "recipient", "recipients")),
            ];
            if !subject.is_empty() {
                parts.push(format!("subject {:?}", text::subject(subject)));
            }
            if !message_id.is_empty() {
                parts.push(format!("Message-ID <{message_id}>"));
            }
            if !signed.is_empty() {
                parts.push(format!("signed {}", signed.join(" and ")));
            }
            if !checked.is_empty() {
                parts.push(format!("checked: {checked}"));
            }
            parts.join(", ")
        }
        Event::Imported { was, origin, from, recipients, size, .. } => {
            let from = if from.is_null() { "<> (the null sender)".to_owned() } else { from.to_string() };
            format!(
                "imported; it had been accepted {} as {was}, {}, from {from}, for {}",
                origin_text(origin),
                text::size(*size),
                count(*recipients as usize, "recipient that was left", "recipients that were left")
            )
        }
        Event::Routed { alias, to } if to.is_empty() => format!("{alias} leads nowhere"),
        Event::Routed { alias, to } => format!("{alias} leads to {}", to.join(", ")),
        Event::Delivered { recipient, to, reply, tls, attempt } => {
            let tls = tls.as_ref().map_or(String::new(), |tls| format!(" over {tls}"));
            let reply = if reply.is_empty() { String::new() } else { format!(", which said: {reply}") };
            format!("delivered for {recipient} to {to}{tls}{}{reply}", at_try(*attempt))
        }
        Event::Captured { recipient } => {
            format!("delivered for {recipient} to the capture store (delivery.default = \"capture\": nothing leaves)")
        }
        Event::Deferred { recipient, why, next, .. } if was_put_off(why) => {
            format!("put off for {recipient}: {}; again {}", failure(why), moment(*next))
        }
        Event::Deferred { recipient, why, attempt, next } => {
            format!("try {attempt} for {recipient} failed: {}; next try {}", failure(why), moment(*next))
        }
        Event::Unsure { recipient, why, attempt, next } => format!(
            "unsure whether try {attempt} for {recipient} has arrived: {}; once more {}",
            failure(why),
            moment(*next)
        ),
        Event::Failed { recipient, why, attempt } => {
            format!("failed for good for {recipient}{}: {}", at_try(*attempt), failure(why))
        }
        Event::Archived { recipient, to } => format!("copy of what went to {recipient} kept as {to}"),
        Event::NotArchived { recipient, why, next } => {
            let next = next.map_or("given up".to_owned(), |next| format!("next try {}", moment(next)));
            format!("no copy yet of what went to {recipient}: {}; {next}", failure(why))
        }
        Event::Expired { recipient, why, attempt } => {
            let (tries, since) = tries_until(*attempt, why);
            format!("given up for {recipient} {tries} (delivery.retry); {since}{}", failure(why))
        }
        Event::Held { recipient, reason } => {
            format!("held for {recipient}: {reason}; `postrider queue release` lets it go")
        }
        Event::Released { recipient } => format!("released for {recipient}"),
        Event::Cancelled { recipient } => format!("cancelled for {recipient}; the sender is not told"),
        Event::Discarded { recipient, reason } => format!("discarded for {recipient}: {reason}"),
        Event::Bounced { recipient, class, status, diagnostic, report, message, counted } => {
            let status = if status.is_empty() { String::new() } else { format!(" {status}") };
            let said = if diagnostic.is_empty() { String::new() } else { format!(": {diagnostic}") };
            let counted = if *counted { "" } else { "; it has counted before" };
            format!("{message} came back from {recipient} ({class}{status}){said}; {report} says so{counted}")
        }
        Event::DelayReported { recipient, diagnostic, report, message, .. } => {
            let said = if diagnostic.is_empty() { String::new() } else { format!(": {diagnostic}") };
            format!("{message} is late for {recipient}{said}; {report} says so")
        }
        Event::Complained { recipient, kind, report, message, .. } => {
            format!("{recipient} has complained about {message} ({kind}); {report} says so")
        }
        Event::Suppressed { recipient, reason } => format!("not sent to {recipient}: {reason}"),
        Event::NotBelieved { about, why } => {
            format!("it says that mail came back from {}, and counts for nothing: {why}", about.join(", "))
        }
        Event::NoticeSent { sender, about } => format!("told {sender} about {about}"),
        Event::NoticeWithheld { sender, about, why } => format!("did not tell {sender} about {about}: {why}"),
    }
}

/// The first try goes without saying.
fn at_try(attempt: u32) -> String {
    if attempt > 1 { format!(" at try {attempt}") } else { String::new() }
}

pub(crate) fn failure(why: &Failure) -> String {
    let unsure = if why.unsure { " (it may have arrived all the same)" } else { "" };
    let host =
        if why.host.is_empty() || why.reason.contains(&why.host) { String::new() } else { format!("{}: ", why.host) };
    format!("{host}{} ({}){unsure}", why.reason, why.status)
}

fn origin_text(origin: &Origin) -> String {
    let tls = match &origin.peer {
        Some(peer) => peer.tls.as_ref().map_or(" (no TLS)".to_owned(), |tls| format!(" ({tls})")),
        None => String::new(),
    };
    let peer = origin.peer.as_ref().map_or("an unknown client".to_owned(), |peer| peer.ip.to_string());
    let who = origin.account.as_deref();
    match &origin.door {
        Door::Mx { listener } => {
            let helo = origin.peer.as_ref().map_or("", |peer| peer.helo.as_str());
            format!("from {peer}, which said it is {helo:?}, over {listener}{tls}")
        }
        Door::Submission { listener } => match who {
            Some(account) => format!("from {account} over {listener}{tls}"),
            None => format!("from {peer}, a trusted network, over {listener}{tls}"),
        },
        Door::Pickup { folder, file, .. } => {
            let account = who.map_or(String::new(), |account| format!(" as {account}"));
            format!("from the pickup folder {folder}{account} (file {file})")
        }
        Door::Admin => "from the admin socket".to_owned(),
        Door::Http => who.map_or("over HTTP".to_owned(), |account| format!("from {account} over HTTP")),
        Door::Fetch { account } => format!("from the mailbox fetch.{account}"),
        Door::Bounce => "as a notice written by this server".to_owned(),
    }
}
