//! A message's story in plain words: one sentence for each entry of its journal.

use super::text::{Paint, clean, count, day, moment, time_of_day};
use crate::events::{Entry, Event};
use crate::message::{Door, MessageId, Origin};
use crate::queue::record::Failure;

/// The whole story, one line an entry; where the day changes, a line says so.
pub(super) fn lines(entries: &[Entry], paint: Paint) -> Vec<String> {
    let mut lines = Vec::with_capacity(entries.len() + 1);
    let mut current = String::new();
    for entry in entries {
        let day = day(entry.at);
        if day != current {
            lines.push(format!("{day} (UTC)"));
            current = day;
        }
        lines.push(format!("  {}", line(entry, paint)));
    }
    lines
}

/// An event by itself, with its day and the id of its message.
pub(super) fn alone(id: MessageId, entry: &Entry, paint: Paint) -> String {
    format!("{} {id} {}", day(entry.at), line(entry, paint))
}

/// `22:30:01 delivered to bob@example.net: …`
fn line(entry: &Entry, paint: Paint) -> String {
    let sentence = clean(&sentence(&entry.event));
    let sentence = match entry.event {
        Event::Delivered { .. } | Event::Captured { .. } => paint.green(&sentence),
        Event::Failed { .. } | Event::Expired { .. } | Event::Bounced { .. } | Event::Complained { .. } => {
            paint.red(&sentence)
        }
        Event::Deferred { .. } | Event::Held { .. } | Event::Suppressed { .. } => paint.yellow(&sentence),
        _ => sentence,
    };
    format!("{} {sentence}", time_of_day(entry.at))
}

fn sentence(event: &Event) -> String {
    match event {
        Event::Accepted { origin, from, recipients, size, message_id, subject, signed, checked, .. } => {
            let from = if from.is_null() { "<> (the null sender)".to_owned() } else { from.to_string() };
            let mut parts = vec![
                format!("accepted {}", origin_text(origin)),
                super::text::size(*size),
                format!("from {from} for {}", count(*recipients as usize, "recipient", "recipients")),
            ];
            if !subject.is_empty() {
                parts.push(format!("subject {subject:?}"));
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
                super::text::size(*size),
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
            let tries = count(*attempt as usize, "try", "tries");
            format!("given up for {recipient} after {tries} (delivery.retry); the last one: {}", failure(why))
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

pub(super) fn failure(why: &Failure) -> String {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::message::{Address, Peer, ReversePath};
    use crate::smtp::Reply;

    fn entry(at: u64, event: Event) -> Entry {
        Entry { at, event }
    }

    #[test]
    fn a_story_reads_as_one() {
        let shop = Origin {
            door: Door::Submission { listener: "submission".into() },
            account: Some("shop".into()),
            peer: Some(Peer {
                ip: "192.0.2.1".parse().unwrap(),
                helo: "client.example".into(),
                esmtp: true,
                tls: Some("TLSv1.3 TLS13_AES_256_GCM_SHA384".into()),
            }),
        };
        let bob = Address::parse("bob@example.net").unwrap();
        let refused = Failure::refused("mx.example.net", Reply::new(450, (2, 1), "later"));
        let story = [
            entry(
                1_795_300_017_000,
                Event::Accepted {
                    origin: shop,
                    from: ReversePath::Address(Address::parse("a@example.com").unwrap()),
                    recipients: 1,
                    size: 2150,
                    message_id: String::new(),
                    subject: "Hello\u{1b}".into(),
                    signed: vec!["pr-rsa._domainkey.example.com".into(), "pr-ed._domainkey.example.com".into()],
                    checked: String::new(),
                    stream: String::new(),
                },
            ),
            entry(
                1_795_300_018_000,
                Event::Deferred { recipient: bob.clone(), why: refused, attempt: 1, next: 1_795_400_017_000 },
            ),
            entry(
                1_795_400_017_000,
                Event::Delivered {
                    recipient: bob,
                    to: "mx.example.net [192.0.2.9]".into(),
                    reply: "250 2.0.0 ok".into(),
                    tls: Some("TLSv1.3".into()),
                    attempt: 2,
                },
            ),
        ];
        assert_eq!(
            lines(&story, Paint::none()),
            [
                "2026-11-21 (UTC)",
                "  22:26:57 accepted from shop over submission (TLSv1.3 TLS13_AES_256_GCM_SHA384), 2.0 KiB, from a@example.com \
                 for 1 recipient, subject \"Hello\\u{1b}\", signed pr-rsa._domainkey.example.com and pr-ed._domainkey.example.com",
                "  22:26:58 try 1 for bob@example.net failed: mx.example.net said: 450 4.2.1 later (4.2.1); next try 2026-11-23 02:13:37",
                "2026-11-23 (UTC)",
                "  02:13:37 delivered for bob@example.net to mx.example.net [192.0.2.9] over TLSv1.3 at try 2, which said: 250 2.0.0 ok",
            ]
        );
    }
}
