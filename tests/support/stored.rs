//! What the kept stores (`tests/fixtures/store-format-*`) hold, as values: the writer puts it in, the
//! test of every later version finds it again.
#![allow(dead_code, reason = "each test binary uses its own part")]

use bytes::Bytes;
use postrider::events::Event;
use postrider::message::findings::{DkimFinding, DmarcFinding, SpfFinding};
use postrider::message::{
    Address, BodyType, Door, DsnRequest, Findings, HeldBy, Hold, MessageId, Notify, Origin, OriginalRecipient, Peer,
    Ret, ReversePath,
};
use postrider::queue::record::{Failure, Message, Recipient, Route, Status};
use postrider::smtp::Reply;

use super::records::{message, recipient};

/// When the store was written: 2026-11-21 22:26:40 UTC.
pub const WRITTEN: u64 = 1_795_300_000_000;
/// What is deferred becomes due so much later.
pub const LATER: u64 = 15 * 60_000;

/// A message as it lies in the store.
pub struct Kept {
    pub what: &'static str,
    pub message: Message,
    pub body: Vec<Bytes>,
    /// As enqueued; those in `gone` are done with.
    pub recipients: Vec<Recipient>,
    pub gone: Vec<u32>,
    pub events: Vec<Event>,
}

fn address(text: &str) -> Address {
    Address::parse(text).unwrap()
}

fn failure() -> Failure {
    let reply = Reply::new(450, (4, 7), "come back later");
    Failure { unsure: true, ..Failure::refused("mx.outside.example", reply) }
}

fn kept(number: u64, what: &'static str, pieces: &[&str], recipients: Vec<Recipient>) -> Kept {
    let text = format!("From: <shop@home.test>\r\nTo: <you@outside.example>\r\nSubject: {what}\r\n\r\n");
    let mut body = vec![Bytes::from(text)];
    body.extend(pieces.iter().map(|piece| Bytes::copy_from_slice(piece.as_bytes())));
    let id = MessageId::first_at(WRITTEN + 1000 * number);
    let mut message = message(id, &body, recipients.len() as u32);
    message.received_at = WRITTEN;
    message.mail_from = ReversePath::Address(address("shop@home.test"));
    message.subject = what.to_owned();
    message.message_id = format!("{number}@home.test");
    Kept { what, message, body, recipients, gone: Vec::new(), events: Vec::new() }
}

/// Every state of a message and of a recipient, and every field of their records with a value at least once.
pub fn all() -> Vec<Kept> {
    let remote = || recipient("you@outside.example", WRITTEN);
    let boxed = |address: &str| Recipient { route: Route::Target("box".into()), ..recipient(address, WRITTEN) };
    let deferred = || Recipient {
        status: Status::Waiting { due: WRITTEN + LATER },
        attempts: 3,
        last_failure: Some(failure()),
        delay_notified: true,
        by_hand: None,
        released: None,
        ..remote()
    };
    // The stores were written before there was a field for what holds it.
    let held = |why: &str, by| Recipient { status: Status::Held(Hold::new(by, why)), ..remote() };
    let captured = || Recipient { status: Status::Captured { at: WRITTEN }, attempts: 1, ..remote() };

    let mut new = kept(1, "waiting, new", &["hello\r\n"], vec![remote()]);
    new.message.origin =
        Origin { door: Door::Submission { listener: "submission".into() }, account: Some("shop".into()), peer: None };
    new.message.dsn = DsnRequest { ret: Some(Ret::Headers), envid: Some("QQ314159".into()) };
    new.message.body_type = BodyType::SevenBit;
    new.recipients[0].notify = Notify::Never;
    new.recipients[0].original =
        Some(OriginalRecipient { kind: "rfc822".into(), address: "You@Outside.example".into() });

    let mut later = kept(2, "deferred", &["first piece\r\n", "second piece\r\n"], vec![deferred()]);
    later.events = vec![Event::Deferred {
        recipient: address("you@outside.example"),
        why: failure(),
        attempt: 3,
        next: WRITTEN + LATER,
    }];

    let mut kept_back = kept(3, "held", &["by hand\r\n"], vec![held("by the operator", HeldBy::Operator)]);
    kept_back.events =
        vec![Event::Held { recipient: address("you@outside.example"), reason: "by the operator".into() }];

    let mut stays = kept(4, "captured", &["never left\r\n"], vec![captured()]);
    stays.events = vec![Event::Captured { recipient: address("you@outside.example") }];

    let mut inbound = kept(
        5,
        "for four",
        &["1\r\n", "2\r\n", "3\r\n"],
        vec![
            Recipient { alias: Some(address("sales@home.test")), ..boxed("sales@home.test") },
            held("too many messages", HeldBy::LoopLimit),
            deferred(),
            boxed("done@home.test"),
        ],
    );
    inbound.gone = vec![3];
    inbound.message.mail_from = ReversePath::Address(address("sam@outside.example"));
    inbound.message.origin = Origin {
        door: Door::Mx { listener: "mx".into() },
        account: None,
        peer: Some(Peer {
            ip: "192.0.2.7".parse().unwrap(),
            helo: "mx.outside.example".into(),
            esmtp: true,
            tls: Some("TLSv1.3 TLS13_AES_256_GCM_SHA384".into()),
        }),
    };
    inbound.message.findings = Some(Findings {
        spf: Some(SpfFinding { result: "pass".into(), domain: "outside.example".into() }),
        dkim: vec![DkimFinding { result: "fail".into(), domain: "outside.example".into(), selector: "s1".into() }],
        dmarc: Some(DmarcFinding { result: "pass".into(), policy: "reject".into(), domain: "outside.example".into() }),
        ..Findings::default()
    });
    inbound.events = vec![
        Event::Routed { alias: address("sales@home.test"), to: vec!["target box".into()] },
        Event::Delivered {
            recipient: address("done@home.test"),
            to: "target box".into(),
            reply: String::new(),
            tls: None,
            attempt: 1,
        },
    ];

    let mut notice = kept(6, "a notice with ümlauts", &["Grüße\r\n"], vec![boxed("shop@home.test")]);
    notice.message.origin = Origin { door: Door::Bounce, account: None, peer: None };
    notice.message.mail_from = ReversePath::Null;
    notice.message.smtputf8 = true;
    notice.recipients[0].notify = Notify::On { success: true, failure: false, delay: false };

    let mut picked = kept(7, "from the pickup folder", &["a file\r\n"], vec![remote()]);
    picked.message.origin = Origin {
        door: Door::Pickup { folder: "main".into(), file: "seven.eml".into(), owner: None },
        account: Some("shop".into()),
        peer: None,
    };

    let mut done = kept(8, "all done", &["gone\r\n"], vec![remote()]);
    done.gone = vec![0];
    done.events = vec![
        Event::Failed { recipient: address("you@outside.example"), why: failure(), attempt: 1 },
        Event::NoticeSent { sender: address("shop@home.test"), about: "you@outside.example".into() },
    ];
    vec![new, later, kept_back, stays, inbound, notice, picked, done]
}

/// The story that the writer tells of a message: it came in, then its own events.
pub fn story(kept: &Kept) -> Vec<Event> {
    let accepted = Event::Accepted {
        origin: kept.message.origin.clone(),
        from: kept.message.mail_from.clone(),
        recipients: kept.recipients.len() as u32,
        size: kept.message.size,
        message_id: kept.message.message_id.clone(),
        subject: kept.message.subject.clone(),
        signed: vec!["pr-ed._domainkey.home.test".into()],
        checked: String::new(),
        stream: String::new(),
    };
    std::iter::once(accepted).chain(kept.events.clone()).collect()
}
