//! The guard against a map in memory: what was written is what the next message finds.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;

use super::*;
use crate::config::{AddressOrDomain, OnLimit};
use crate::message::MessageId;
use crate::routing::fixture;

mod threads;

const HOUR: Millis = 3_600_000;
const START: Millis = 1_795_300_000_000;

fn address(text: &str) -> Address {
    Address::parse(text).unwrap()
}

fn alias(text: &str) -> Inbound {
    Inbound {
        address: address(text),
        counted_as: text.to_owned(),
        limits: AliasLimits::default(),
        via: Via::Alias,
        always: false,
        exempt: false,
    }
}

fn caught(text: &str) -> Inbound {
    let address = address(text);
    Inbound { counted_as: format!("@{}", address.domain()), via: Via::Catchall, ..alias(text) }
}

fn from(sender: &str) -> String {
    format!("From: {sender}\r\nSubject: hello\r\n\r\ntext\r\n")
}

/// A server with a clock and a table.
struct World {
    config: Loops,
    hostname: Domain,
    marks: Marks,
    _folder: tempfile::TempDir,
    table: HashMap<Vec<u8>, Vec<u8>>,
    now: Millis,
    door: Door,
    account: Option<&'static str>,
    mail_from: ReversePath,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        World {
            config: fixture::loops(),
            hostname: Domain::parse("mail.our.example").unwrap(),
            marks: Marks::open(folder.path()).unwrap(),
            _folder: folder,
            table: HashMap::new(),
            now: START,
            door: Door::Mx { listener: "mx".to_owned() },
            account: None,
            mail_from: ReversePath::Address(address("env@far.example")),
        }
    }

    fn judge(&self, content: &str, recipients: &[Inbound]) -> Ruling {
        let headers = Headers::parse(content.as_bytes());
        let input = self.input(&headers, content, recipients);
        judge(&input, |key| Ok(self.table.get(key).cloned())).unwrap()
    }

    fn input<'a>(&'a self, headers: &'a Headers<'a>, content: &'a str, recipients: &'a [Inbound]) -> Input<'a> {
        Input {
            config: &self.config,
            hostname: &self.hostname,
            marks: &self.marks,
            headers,
            content: content.as_bytes(),
            mail_from: &self.mail_from,
            recipients,
            door: &self.door,
            account: self.account,
            now: self.now,
        }
    }

    /// Notes a message of ours as sent, on this thread.
    fn sent(&mut self, message_id: &str, id: u64, thread: u64) {
        let account = Some("shop".to_owned());
        let sent = Sent { id: MessageId::from_u64(id), thread: MessageId::from_u64(thread), account };
        let (key, value) = sent.entry(message_id, self.now);
        self.table.insert(key, value);
    }

    /// One message for some recipients, committed if it is taken.
    fn send_to(&mut self, content: &str, recipients: &[Inbound]) -> Result<Vec<Action>, Refusal> {
        let ruling = self.judge(content, recipients);
        let actions = ruling.settle(&self.config, false)?;
        self.table.extend(ruling.writes);
        Ok(actions)
    }

    fn send(&mut self, sender: &str, recipient: &str) -> Result<Action, Refusal> {
        self.send_to(&from(sender), &[alias(recipient)]).map(|mut actions| actions.remove(0))
    }

    fn fill(&mut self, sender: &str, recipient: &str) {
        for _ in 0..5 {
            assert_eq!(self.send(sender, recipient), Ok(Action::Take));
        }
    }
}

fn reply(result: Result<impl std::fmt::Debug, Refusal>) -> String {
    result.unwrap_err().reply.to_string()
}

#[test]
fn the_sixth_of_one_sender_is_refused_and_says_when_to_come_back() {
    let mut world = World::new();
    world.fill("bob@far.example", "sales@our.example");
    assert_eq!(
        reply(world.send("bob@far.example", "sales@our.example")),
        "554 5.4.6 too many messages from bob@far.example to sales@our.example: 5 within 60 minutes are accepted, \
         try again after 2026-11-21T23:26:40Z"
    );
    // Others, and other aliases, have counters of their own.
    assert_eq!(world.send("eve@far.example", "sales@our.example"), Ok(Action::Take));
    assert_eq!(world.send("bob@far.example", "info@our.example"), Ok(Action::Take));
}

#[test]
fn another_name_tag_or_spelling_is_the_same_sender() {
    let mut world = World::new();
    for sender in [
        "bob@far.example",
        "Bob <BOB@Far.Example>",
        "bob+1@far.example",
        "\"bob\"@far.example",
        "b <bob+2@far.example>",
    ] {
        assert_eq!(world.send(sender, "sales@our.example"), Ok(Action::Take));
    }
    assert!(world.send("The Bob <bob@far.example>", "sales@our.example").is_err());
}

#[test]
fn with_key_alias_the_sixth_of_six_senders_is_refused() {
    let mut world = World::new();
    world.config.key = LoopKey::Alias;
    for sender in ["a", "b", "c", "d", "e"] {
        assert_eq!(world.send(&format!("{sender}@far.example"), "sales@our.example"), Ok(Action::Take));
    }
    let text = reply(world.send("f@far.example", "sales@our.example"));
    assert!(text.starts_with("554 5.4.6 too many messages to sales@our.example: 5 within"), "{text}");
}

#[test]
fn the_window_slides_and_refused_mail_is_not_counted() {
    let mut world = World::new();
    for _ in 0..5 {
        assert_eq!(world.send("bob@far.example", "sales@our.example"), Ok(Action::Take));
        world.now += 60_000;
    }
    for _ in 0..20 {
        assert!(world.send("bob@far.example", "sales@our.example").is_err());
    }
    world.now = START + HOUR - 1;
    assert!(world.send("bob@far.example", "sales@our.example").is_err());
    // The first one leaves the window: room for one.
    world.now = START + HOUR;
    assert_eq!(world.send("bob@far.example", "sales@our.example"), Ok(Action::Take));
    assert!(world.send("bob@far.example", "sales@our.example").is_err());
    world.now = START + 3 * HOUR;
    world.fill("bob@far.example", "sales@our.example");
}

#[test]
fn one_of_two_recipients_over_the_limit_is_held() {
    let mut world = World::new();
    world.fill("bob@far.example", "sales@our.example");
    let both = [alias("sales@our.example"), alias("info@our.example")];
    let actions = world.send_to(&from("bob@far.example"), &both).unwrap();
    assert!(matches!(&actions[0], Action::Hold(hold) if hold.reason.starts_with("too many messages")), "{actions:?}");
    assert_eq!(actions[1], Action::Take);
    // The same where the other one is no recipient of ours.
    let ruling = world.judge(&from("bob@far.example"), &both[..1]);
    assert!(ruling.settle(&world.config, false).is_err());
    assert!(matches!(ruling.settle(&world.config, true).as_deref(), Ok([Action::Hold(_)])));
    // The one that passed has been counted, the held one has not.
    for _ in 0..4 {
        assert_eq!(world.send("bob@far.example", "info@our.example"), Ok(Action::Take));
    }
    assert!(world.send("bob@far.example", "info@our.example").is_err());
}

#[test]
fn subaddresses_of_one_alias_count_as_one_message() {
    let mut world = World::new();
    let tagged = Inbound { counted_as: "sales@our.example".to_owned(), ..alias("sales+x@our.example") };
    let both = [alias("sales@our.example"), tagged.clone()];
    assert_eq!(world.send_to(&from("bob@far.example"), &both), Ok(vec![Action::Take, Action::Take]));
    for _ in 0..4 {
        world.send_to(&from("bob@far.example"), std::slice::from_ref(&tagged)).unwrap();
    }
    assert!(world.send("bob@far.example", "sales@our.example").is_err());
}

#[test]
fn a_limit_of_none_takes_answers_only_and_not_for_ever() {
    let mut world = World::new();
    world.config.limit = 0;
    let text = reply(world.send("bob@far.example", "sales@our.example"));
    assert_eq!(text, "554 5.4.6 sales@our.example takes answers to our messages only, no new ones");
    let answer = format!("In-Reply-To: <1@our.example>\r\n{}", from("bob@far.example"));
    assert!(world.send_to(&answer, &[alias("sales@our.example")]).is_err(), "we have never written that");
    world.sent("1@our.example", 1, 1);
    for _ in 0..90 {
        assert_eq!(world.send_to(&answer, &[alias("sales@our.example")]), Ok(vec![Action::Take]));
    }
    assert!(world.send_to(&answer, &[alias("sales@our.example")]).is_err());
    // Also for what says that it is automatic, where nothing else is taken.
    let automatic =
        format!("Auto-Submitted: auto-replied\r\nIn-Reply-To: <1@our.example>\r\n{}", from("eve@far.example"));
    assert_eq!(world.send_to(&automatic, &[alias("sales@our.example")]), Ok(vec![Action::Take]));
    // Postmaster, abuse and return paths take new ones all the same.
    let role = Inbound { always: true, ..alias("postmaster@our.example") };
    assert_eq!(world.send_to(&from("bob@far.example"), &[role]), Ok(vec![Action::Take]));
    world.config.on_limit = OnLimit::Defer;
    assert!(reply(world.send("bob@far.example", "sales@our.example")).starts_with("554 "));
}

#[test]
fn what_happens_over_the_limit_is_configured() {
    for (on_limit, expected) in [
        (OnLimit::Hold, "Ok(Hold("),
        (OnLimit::Discard, "Ok(Discard("),
        (OnLimit::Defer, "Err(Refusal { reply: Reply { code: 450, enhanced: Some(Enhanced(7, 1))"),
        (OnLimit::Reject, "Err(Refusal { reply: Reply { code: 554, enhanced: Some(Enhanced(4, 6))"),
    ] {
        let mut world = World::new();
        world.config.on_limit = on_limit;
        world.fill("bob@far.example", "sales@our.example");
        let result = format!("{:?}", world.send("bob@far.example", "sales@our.example"));
        assert!(result.starts_with(expected), "{result}");
    }
}

#[test]
fn trusted_senders_and_accounts_are_not_counted() {
    let mut world = World::new();
    world.config.trusted = vec![
        AddressOrDomain::Address(address("bob@far.example")),
        AddressOrDomain::Domain(address("x@friends.example").domain().clone()),
    ];
    world.config.trusted_accounts = vec!["shop".to_owned()];
    for sender in ["bob@far.example", "bob+x@far.example", "any@friends.example"] {
        for _ in 0..9 {
            assert_eq!(world.send(sender, "sales@our.example"), Ok(Action::Take));
        }
    }
    world.account = Some("shop");
    world.door = Door::Submission { listener: "submission".to_owned() };
    for _ in 0..9 {
        assert_eq!(world.send("app@our.example", "sales@our.example"), Ok(Action::Take));
    }
    assert!(world.table.is_empty());
    // Any other account is counted like anybody.
    world.account = Some("other");
    world.fill("app@our.example", "sales@our.example");
    assert!(world.send("app@our.example", "sales@our.example").is_err());
}

#[test]
fn our_own_mark_ends_the_round() {
    let mut world = World::new();
    let content = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/vectors/autoreply-loop/delivered-to-self.eml"
    ))
    .unwrap();
    let text = reply(world.send_to(&content, &[alias("Alice@our.example")]));
    assert_eq!(text, "554 5.4.6 mail loop: it has been delivered to Alice@our.example before");
    assert_eq!(world.send_to(&content, &[alias("other@our.example")]), Ok(vec![Action::Take]));
}

#[test]
fn hops_are_counted() {
    let content =
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/autoreply-loop/loop-received-60.eml"))
            .unwrap();
    let headers = Headers::parse(&content);
    assert_eq!(refuse_hops(&headers, 60), None);
    let refusal = refuse_hops(&headers, 50).unwrap();
    assert_eq!(refusal.reply.to_string(), "554 5.4.6 mail loop: 60 Received fields, at most 50 are accepted");
}

#[test]
fn automatic_mail_follows_the_policy() {
    let content = format!("Auto-Submitted: auto-replied\r\n{}", from("bob@far.example"));
    for (policy, expected) in [
        (OnAutomatic::Accept, "Ok([Take])"),
        (
            OnAutomatic::Hold,
            "Ok([Hold(Hold { reason: \"automatic mail (Auto-Submitted) for sales@our.example\", by: Automatic })])",
        ),
        (OnAutomatic::Discard, "Ok([Discard("),
        (OnAutomatic::Reject, "Err(Refusal { reply: Reply { code: 550, enhanced: Some(Enhanced(7, 1))"),
    ] {
        let mut world = World::new();
        world.config.automatic = policy;
        let result = format!("{:?}", world.send_to(&content, &[alias("sales@our.example")]));
        assert!(result.starts_with(expected), "{result}");
        assert_eq!(world.send("bob@far.example", "sales@our.example"), Ok(Action::Take));
    }
}

#[test]
fn the_catchall_takes_a_message_id_once_and_a_text_once() {
    let mut world = World::new();
    let message = |id: &str, text: &str| {
        format!("From: bob@far.example\r\nSubject: hello\r\nMessage-ID: <{id}@far.example>\r\n\r\n{text}\r\n")
    };
    let who = [caught("who@our.example")];
    assert_eq!(world.send_to(&message("1", "one"), &who), Ok(vec![Action::Take]));
    // The same message again, by another way: swallowed.
    let again = world.send_to(&message("1", "one"), &who).unwrap();
    assert!(matches!(&again[0], Action::Discard(reason) if reason.contains("Message-ID")), "{again:?}");
    // The same text in a new message: two machines.
    let text = reply(world.send_to(&message("2", "one"), &who));
    assert!(text.starts_with("554 5.4.6 the same message from bob@far.example to who@our.example again"), "{text}");
    assert_eq!(world.send_to(&message("3", "other"), &who), Ok(vec![Action::Take]));
    assert_eq!(world.send_to(&message("1", "one"), &[caught("else@our.example")]), Ok(vec![Action::Take]));
    // An alias may get one message by way of two lists, but not the same in all twice.
    let sales = [alias("sales@our.example")];
    assert_eq!(world.send_to(&message("1", "one"), &sales), Ok(vec![Action::Take]));
    assert_eq!(world.send_to(&message("1", "one\r\n-- \r\na list"), &sales), Ok(vec![Action::Take]));
    let again = world.send_to(&format!("Received: from x\r\n{}", message("1", "one")), &sales).unwrap();
    assert!(matches!(&again[0], Action::Discard(reason) if reason.contains("already")), "{again:?}");
    world.now += HOUR;
    assert_eq!(world.send_to(&message("1", "one"), &who), Ok(vec![Action::Take]));
}

#[test]
fn the_catchall_counts_all_its_addresses_together() {
    let mut world = World::new();
    let mut send = |local: &str| {
        let content = format!("From: bob@far.example\r\n\r\n{local}\r\n");
        world.send_to(&content, &[caught(&format!("{local}@our.example"))])
    };
    for local in ["a", "b", "c", "d", "e"] {
        assert_eq!(send(local), Ok(vec![Action::Take]));
    }
    assert!(send("f").is_err());
}

#[test]
fn our_own_bounces_are_not_guarded() {
    let mut world = World::new();
    world.door = Door::Bounce;
    world.config.automatic = OnAutomatic::Reject;
    world.mail_from = ReversePath::Null;
    for _ in 0..9 {
        assert_eq!(world.send("mailer-daemon@our.example", "sales@our.example"), Ok(Action::Take));
    }
    assert!(world.table.is_empty());
}

#[test]
fn a_clock_that_was_ahead_does_not_close_an_alias() {
    let mut world = World::new();
    world.now = START + 1000 * HOUR;
    world.fill("bob@far.example", "sales@our.example");
    world.now = START;
    world.fill("bob@far.example", "sales@our.example");
    assert!(world.send("bob@far.example", "sales@our.example").is_err());
}

#[test]
fn a_limit_changed_by_a_reload_counts_what_was_there() {
    let mut world = World::new();
    world.fill("bob@far.example", "sales@our.example");
    world.config.limit = 3;
    assert!(world.send("bob@far.example", "sales@our.example").is_err());
    world.config.limit = 6;
    assert_eq!(world.send("bob@far.example", "sales@our.example"), Ok(Action::Take));
    assert!(world.send("bob@far.example", "sales@our.example").is_err());
}

#[test]
fn entries_expire_and_damage_counts_for_nothing() {
    let mut world = World::new();
    world.fill("bob@far.example", "sales@our.example");
    let value = world.table.values().next().unwrap().clone();
    assert!(!is_expired(&value, START + HOUR - 1));
    assert!(is_expired(&value, START + HOUR));
    for bad in [&b""[..], b"\x02", &value[..value.len() - 1], b"\x01"] {
        assert_eq!(is_expired(bad, START), bad.len() < HEAD_BYTES, "without a time nobody needs it");
        world.table.values_mut().for_each(|v| *v = bad.to_vec());
        assert_eq!(world.send("bob@far.example", "sales@our.example"), Ok(Action::Take));
    }
}

#[test]
fn a_broken_store_is_told() {
    let world = World::new();
    let content = from("bob@far.example");
    let headers = Headers::parse(content.as_bytes());
    let recipients = [alias("sales@our.example")];
    let input = world.input(&headers, &content, &recipients);
    assert!(judge(&input, |_| Err(StoreError::Damaged("loops".to_owned()))).is_err());
    let locks = lock_keys(&input);
    assert_eq!(locks.len(), 1);
    assert_eq!(locks, lock_keys(&input));
}

#[test]
fn a_refusal_fits_into_a_reply_line_and_is_ascii() {
    let mut world = World::new();
    let long = format!("{}@{}.example", "x".repeat(64), "y.".repeat(90) + "z");
    let sender = format!("ü{}@far.example", "u".repeat(60));
    world.fill(&sender, &long);
    let refusal = world.send(&sender, &long).unwrap_err();
    let mut wire = Vec::new();
    refusal.reply.write_to(&mut wire);
    assert!(wire.len() <= 512 && wire.is_ascii(), "{}", refusal.reply);
}
