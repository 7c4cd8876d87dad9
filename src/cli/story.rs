//! A message's story in plain words: one sentence for each entry of its journal.

use super::text::{Paint, clean, day, time_of_day};
pub(super) use crate::admin::sentence::failure;
use crate::admin::sentence::sentence;
use crate::events::{Entry, Event};
use crate::message::MessageId;

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

/// An event by itself, with when it was and the id of its message; lines sort by time.
pub(super) fn alone(id: MessageId, entry: &Entry, paint: Paint) -> String {
    format!("{} {} {id} {}", day(entry.at), time_of_day(entry.at), told(entry, paint))
}

/// `22:30:01 delivered to bob@example.net: …`
fn line(entry: &Entry, paint: Paint) -> String {
    format!("{} {}", time_of_day(entry.at), told(entry, paint))
}

fn told(entry: &Entry, paint: Paint) -> String {
    let sentence = clean(&sentence(&entry.event));
    match entry.event {
        Event::Delivered { .. } | Event::Captured { .. } => paint.green(&sentence),
        Event::Failed { .. } | Event::Expired { .. } | Event::Bounced { .. } | Event::Complained { .. } => {
            paint.red(&sentence)
        }
        Event::Deferred { .. } | Event::Held { .. } | Event::Suppressed { .. } => paint.yellow(&sentence),
        _ => sentence,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::message::{Address, Door, Origin, Peer, ReversePath};
    use crate::queue::record::Failure;
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
        let line = alone("0b1c2d3e4f5g6".parse().unwrap(), story.last().unwrap(), Paint::none());
        assert!(line.starts_with("2026-11-23 02:13:37 0b1c2d3e4f5g6 delivered for bob"), "{line}");
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
