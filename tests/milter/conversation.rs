//! What one milter hears, and what its answers mean, over a stream in memory.

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use postrider::checks::milter::fields::Fields;
use postrider::checks::milter::session::{Ended, Times, Trouble, converse};
use postrider::checks::milter::wire::{Options, REPLY_BYTES_MAX, protocol};
use postrider::checks::milter::{About, Body, Verdict};
use postrider::message::header::Headers;
use postrider::message::{Address, Domain, Door, Envelope, MessageId, Origin, Peer, ReversePath};
use postrider::store::StoreError;

use crate::fake_milter::{Act, FakeMilter, add, change, go_on, insert, packet, quarantine, reply};

const HEAD: &str = "From: Me <me@away.test>\r\nSubject: two\r\n\tlines\r\nsubject:again\r\nX-Empty:\r\n";
/// The commands that each get an answer, in their order.
const STEPS: &str = "CHMRRTLLLLNBE";
const ENOUGH: Times = Times { command: Duration::from_secs(60), content_end: Duration::from_secs(60) };

struct Talked {
    ended: Result<Ended, Trouble>,
    /// The header section, if it was changed.
    header: Option<String>,
}

impl Talked {
    fn verdict(&self) -> &Verdict {
        &self.ended.as_ref().unwrap().verdict
    }

    /// The refusal as the client would read it.
    fn refusal(&self) -> String {
        match self.verdict() {
            Verdict::Refuse(reply) => reply.to_string(),
            other => panic!("{other:?}"),
        }
    }

    fn trouble(&self) -> String {
        self.ended.as_ref().unwrap_err().to_string()
    }
}

fn from(text: &str) -> ReversePath {
    ReversePath::Address(Address::parse(text).unwrap())
}

async fn talk(milter: &FakeMilter) -> Talked {
    talk_about(milter, ENOUGH, Bytes::from_static(b"text\r\n"), &|_| unreachable!(), 0).await
}

async fn talk_about(
    milter: &FakeMilter,
    times: Times,
    body: Bytes,
    read: &(dyn Fn(u32) -> Result<Bytes, StoreError> + Send + Sync),
    rest: u32,
) -> Talked {
    let recipients = ["box@home.test", "\"b c\"@home.test"].map(|text| Address::parse(text).unwrap());
    let peer = Peer {
        ip: "2001:db8::1".parse().unwrap(),
        helo: "client.away.test".into(),
        esmtp: true,
        tls: Some("TLSv1.3 with cipher TLS13_AES_256_GCM_SHA384".into()),
    };
    let about = About {
        id: MessageId::first_at(1_795_300_017_000),
        hostname: &Domain::parse("mail.home.test").unwrap(),
        envelope: &Envelope::new(from("me@away.test"), recipients),
        origin: &Origin { door: Door::Mx { listener: "mx".into() }, account: None, peer: Some(peer) },
        client: Some(&Domain::parse("client.away.test").unwrap()),
        body: Body { head: body, rest: 0..rest, read },
    };
    let headers = Headers::parse(HEAD.as_bytes());
    let mut fields = Fields::new(None, headers.fields());
    let (near, far) = tokio::io::duplex(4096);
    let far = tokio::spawn(milter.clone().serve(far));
    let ended = converse(near, times, &about, &mut fields).await;
    match &ended {
        Ok(_) => far.await.unwrap(),
        // It may hang.
        Err(_) => far.abort(),
    }
    Talked { ended, header: fields.changed().map(|header| String::from_utf8(header).unwrap()) }
}

#[tokio::test]
async fn it_hears_the_whole_message_in_order() {
    let milter = FakeMilter::mild();
    let talked = talk(&milter).await;
    assert_eq!(talked.verdict(), &Verdict::Accept);
    assert_eq!(talked.header, None);
    assert_eq!(milter.commands(), format!("O{STEPS}Q"));
    let heard = milter.heard();
    let of = |byte: u8| heard.iter().filter(|heard| heard.byte == byte).collect::<Vec<_>>();
    assert_eq!(of(b'O')[0].data, [6, 0x31, 0x1F_F7FF].map(u32::to_be_bytes).concat());
    assert_eq!(of(b'C')[0].data, b"client.away.test\x006\x00\x002001:db8::1\0");
    assert_eq!(of(b'H')[0].texts(), ["client.away.test"]);
    assert_eq!(of(b'M')[0].texts(), ["<me@away.test>", "BODY=8BITMIME"]);
    assert_eq!(of(b'R')[0].texts(), ["<box@home.test>"]);
    assert_eq!(of(b'R')[1].texts(), ["<\"b c\"@home.test>"]);
    assert_eq!(milter.fields(), ["From:Me <me@away.test>", "Subject:two\n\tlines", "subject:again", "X-Empty:"]);
    assert_eq!(milter.body(), b"text\r\n");
    let macros = milter.macros();
    let value = |name: &str| macros.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    assert_eq!(value("j"), Some("mail.home.test"));
    assert_eq!(value("{daemon_name}"), Some("mx"));
    assert_eq!(value("{client_addr}"), Some("2001:db8::1"));
    assert_eq!(value("{client_name}"), Some("client.away.test"));
    assert_eq!(value("_"), Some("client.away.test [2001:db8::1]"));
    assert_eq!(value("{tls_version}"), Some("TLSv1.3"));
    assert_eq!(value("{cipher}"), Some("TLS13_AES_256_GCM_SHA384"));
    assert_eq!(value("{mail_addr}"), Some("me@away.test"));
    assert_eq!(value("{rcpt_addr}"), Some("box@home.test"));
    assert_eq!(value("i"), Some(MessageId::first_at(1_795_300_017_000).to_string().as_str()));
    assert_eq!(value("{auth_authen}"), None);
}

#[tokio::test]
async fn it_is_spared_what_it_does_without() {
    use protocol::*;
    for (flag, commands) in [
        (NO_CONNECT, "OHMRRTLLLLNBEQ"),
        (NO_HELO, "OCMRRTLLLLNBEQ"),
        (NO_MAIL, "OCHRRTLLLLNBEQ"),
        (NO_RCPT, "OCHMTLLLLNBEQ"),
        (NO_DATA, "OCHMRRLLLLNBEQ"),
        (NO_HEADERS, "OCHMRRTNBEQ"),
        (NO_END_OF_HEADER, "OCHMRRTLLLLBEQ"),
        (NO_BODY, "OCHMRRTLLLLNEQ"),
        (NO_UNKNOWN, "OCHMRRTLLLLNBEQ"),
        (0x7F | NO_DATA, "OEQ"),
        (u32::MAX, "OEQ"),
    ] {
        let milter = FakeMilter::mild().wants(flag);
        assert_eq!(talk(&milter).await.verdict(), &Verdict::Accept, "{flag:#x}");
        assert_eq!(milter.commands(), commands, "{flag:#x}");
    }
    // Before version 4 there was no step for DATA.
    let mut milter = FakeMilter::mild();
    milter.options.version = 3;
    assert_eq!(talk(&milter).await.verdict(), &Verdict::Accept);
    assert_eq!(milter.commands(), "OCHMRRLLLLNBEQ");
}

#[tokio::test]
async fn where_it_gives_no_answer_none_is_waited_for() {
    for flag in [0x80, 0x1000, 0x2000, 0x4000, 0x8000, 0x1_0000, 0x4_0000, 0x8_0000, 0xD_F080] {
        let milter = FakeMilter::mild().wants(flag);
        assert_eq!(talk(&milter).await.verdict(), &Verdict::Accept, "{flag:#x}");
        assert_eq!(milter.commands(), format!("O{STEPS}Q"), "{flag:#x}");
    }
}

#[tokio::test]
async fn blanks_before_a_value_go_along_if_it_wants_them() {
    let milter =
        FakeMilter::at(b'E', [add("X-A", " one"), add("X-B", "none"), go_on()].concat()).wants(protocol::LEADING_SPACE);
    let talked = talk(&milter).await;
    assert_eq!(milter.fields(), ["From: Me <me@away.test>", "Subject: two\n\tlines", "subject:again", "X-Empty:"]);
    assert_eq!(talked.header.unwrap(), format!("{HEAD}X-A: one\r\nX-B:none\r\n"));
}

/// Every verdict at every step: it counts at once, and nothing more is told.
#[tokio::test]
async fn each_verdict_counts_at_each_step() {
    let steps = ["C", "CH", "CHM", "CHMR", "CHMRRT", "CHMRRTL", "CHMRRTLLLLN", "CHMRRTLLLLNB", STEPS];
    for told in steps {
        let command = told.as_bytes()[told.len() - 1];
        let about = if command == b'R' { "<box@home.test>: " } else { "" };
        for (packet, wanted) in [
            (packet(b'r', b""), format!("550 5.7.1 {about}this message was refused")),
            (packet(b't', b""), format!("451 4.7.1 {about}service unavailable, try again later")),
            (packet(b'f', b""), format!("451 4.7.1 {about}service unavailable, try again later")),
            (packet(b'4', b""), format!("451 4.3.2 {about}service unavailable, try again later")),
            (reply("554 5.7.9 no, 100%% no"), format!("554 5.7.9 {about}no, 100% no")),
        ] {
            let milter = FakeMilter::at(command, packet);
            assert_eq!(talk(&milter).await.refusal(), wanted, "{told}");
            assert_eq!(milter.commands(), format!("O{told}Q"));
        }
        for (byte, verdict) in [(b'a', Verdict::Accept), (b'd', Verdict::Discard)] {
            let milter = FakeMilter::at(command, packet(byte, b""));
            assert_eq!(talk(&milter).await.verdict(), &verdict, "{told}");
            assert_eq!(milter.commands(), format!("O{told}Q"));
        }
    }
}

#[tokio::test]
async fn replies_for_the_client_are_taken_only_if_smtp_allows_them() {
    for (text, wanted) in [
        ("450 4.7.1 later", "450 4.7.1 later"),
        ("550 no status", "550 5.7.1 no status"),
        ("550", "550 5.7.1 this message was refused"),
        ("550 5.7.1", "550 5.7.1 this message was refused"),
        ("421 4.3.0 go away", "421 4.3.0 go away"),
        ("550-5.7.1 one\r\n550 5.7.1 two", "550 5.7.1 one / two"),
        ("550-5.7.1 one\r\n550-two\r\n550 5.7.1 three\r\n", "550 5.7.1 one / two / three"),
        ("550 5.7.1 caf\u{e9}", "550 5.7.1 caf??"),
        ("550 1.2.3 is a number", "550 5.7.1 1.2.3 is a number"),
    ] {
        let talked = talk(&FakeMilter::at(b'E', reply(text))).await;
        assert_eq!(talked.refusal(), wanted, "{text:?}");
    }
    for text in [
        "",
        "250 2.0.0 ok",
        "350 more",
        "999 x",
        "560 x",
        "55",
        "550x",
        "5505.7.1 x",
        "550 4.7.1 wrong class",
        "550-5.7.1 one\r\n551 5.7.1 other code",
        "550-5.7.1 one\r\n550 5.7.2 other status",
        "550 5.7.1 one\r\nMAIL FROM:<a@b>",
        "550 5.7.1 one\rtwo",
        "550 5.7.1 \u{7}",
        "Error",
    ] {
        let talked = talk(&FakeMilter::at(b'E', reply(text))).await;
        assert!(talked.trouble().starts_with("the reply that it has for the client is none"), "{text:?}");
    }
    let long = format!("550 5.7.1 {}", "x".repeat(5000));
    assert!(talk(&FakeMilter::at(b'E', reply(&long))).await.refusal().len() < 500);
}

#[tokio::test]
async fn fields_are_added_inserted_changed_and_taken_away() {
    let rest = "subject:again\r\nX-Empty:\r\n";
    for (packets, wanted) in [
        (add("X-Spam", "no"), format!("{HEAD}X-Spam: no\r\n")),
        (insert(0, "X-Top", "1"), format!("X-Top: 1\r\n{HEAD}")),
        (insert(1, "X-Top", "1"), format!("X-Top: 1\r\n{HEAD}")),
        (insert(2, "X-Second", "1"), HEAD.replacen("Subject", "X-Second: 1\r\nSubject", 1)),
        (insert(99, "X-Last", "1"), format!("{HEAD}X-Last: 1\r\n")),
        (change(1, "Subject", "[SPAM] two"), format!("From: Me <me@away.test>\r\nSubject: [SPAM] two\r\n{rest}")),
        (change(2, "SUBJECT", "new"), HEAD.replace("subject:again", "SUBJECT: new")),
        (change(1, "subject", ""), format!("From: Me <me@away.test>\r\n{rest}")),
        (change(3, "Subject", "third"), format!("{HEAD}Subject: third\r\n")),
        ([insert(0, "A", "1"), insert(0, "B", "2"), change(1, "a", "3")].concat(), format!("B: 2\r\na: 3\r\n{HEAD}")),
    ] {
        let milter = FakeMilter::at(b'E', [packets, go_on()].concat());
        let talked = talk(&milter).await;
        assert_eq!(talked.verdict(), &Verdict::Accept);
        assert_eq!(talked.header.unwrap(), wanted);
    }
    // Nothing is taken away where there is nothing.
    let talked = talk(&FakeMilter::at(b'E', [change(3, "Subject", ""), go_on()].concat())).await;
    assert_eq!((talked.verdict(), talked.header.as_deref()), (&Verdict::Accept, None));
}

#[tokio::test]
async fn what_it_writes_is_one_field() {
    for (value, wanted) in [
        ("a\n\tb", "a\r\n\tb"),
        ("a\r\n b", "a\r\n b"),
        ("a\nX-Evil: 1", "a\r\n\tX-Evil: 1"),
        ("a\r\n\r\nbody", "a\r\n\tbody"),
        ("a\n \n\t\nb\n", "a\r\n\tb"),
        ("a\rX-Evil: 1", "a X-Evil: 1"),
        ("a\u{7}\u{1b}b", "a  b"),
        ("\u{fc}ber", "\u{fc}ber"),
    ] {
        let talked = talk(&FakeMilter::at(b'E', [add("X-A", value), go_on()].concat())).await;
        assert_eq!(talked.header.unwrap(), format!("{HEAD}X-A: {wanted}\r\n"), "{value:?}");
    }
    for name in ["", "X A", "X:A", "X\nA", "X\u{e4}", &"x".repeat(1000)] {
        let talked = talk(&FakeMilter::at(b'E', [add(name, "1"), go_on()].concat())).await;
        assert_eq!(talked.trouble(), "it names a field in a way that is none", "{name:?}");
    }
}

#[tokio::test]
async fn a_quarantine_is_a_reason_and_no_verdict() {
    let milter = FakeMilter::at(b'E', [quarantine("looks\r\nodd \u{e9}"), packet(b'a', b"")].concat());
    let ended = talk(&milter).await.ended.unwrap();
    assert_eq!(ended.verdict, Verdict::Accept);
    assert_eq!(ended.quarantine.as_deref(), Some("looks  odd ??"));
}

#[tokio::test]
async fn skip_is_for_what_there_is_more_of() {
    for (command, told) in [(b'R', "OCHMRTLLLLNBBBBEQ"), (b'L', "OCHMRRTLNBBBBEQ"), (b'B', "OCHMRRTLLLLNBEQ")] {
        let milter = FakeMilter::at(command, packet(b's', b""));
        let body = Bytes::from(vec![b'x'; 200_000]);
        let talked = talk_about(&milter, ENOUGH, body, &|_| unreachable!(), 0).await;
        assert_eq!(talked.verdict(), &Verdict::Accept);
        assert_eq!(milter.commands(), told);
    }
    for command in *b"CHMTNE" {
        let talked = talk(&FakeMilter::at(command, packet(b's', b""))).await;
        assert!(talked.trouble().contains("\"skip\", which has no place there"), "{}", talked.trouble());
    }
}

#[tokio::test]
async fn it_may_take_long_as_long_as_it_says_so() {
    let progress = || packet(b'p', b"");
    // Each sign comes well within the time for one, all of them after it.
    let act = vec![(2, progress()), (2, progress()), (2, progress()), (0, go_on())];
    let milter = FakeMilter::new(move |heard| (heard.byte == b'E').then(|| Act::SayLater(act.clone())));
    let times = Times { content_end: Duration::from_secs(5), ..ENOUGH };
    let talked = talk_about(&milter, times, Bytes::new(), &|_| unreachable!(), 0).await;
    assert_eq!(talked.verdict(), &Verdict::Accept);
}

#[tokio::test]
async fn silence_at_any_step_is_trouble() {
    let times = Times { command: Duration::from_millis(20), content_end: Duration::from_millis(20) };
    for command in format!("O{STEPS}").bytes() {
        let milter = FakeMilter::new(move |heard| (heard.byte == command).then_some(Act::Hang));
        let talked = talk_about(&milter, times, Bytes::from_static(b"x"), &|_| unreachable!(), 0).await;
        assert!(talked.trouble().contains("does not answer"), "{}", talked.trouble());
    }
}

#[tokio::test]
async fn a_connection_that_ends_at_any_step_is_trouble() {
    for command in format!("O{STEPS}").bytes() {
        let half = || Act::SayAndClose(packet(b'c', b"")[..3].to_vec());
        let milter = FakeMilter::new(move |heard| (heard.byte == command).then(half));
        let trouble = talk(&milter).await.trouble();
        assert!(trouble.starts_with("it closed the connection after "), "{trouble}");
    }
    // Where no answer is waited for it is noticed later.
    let gone = |heard: &crate::fake_milter::Heard| (heard.byte == b'L').then(|| Act::SayAndClose(Vec::new()));
    let talked = talk(&FakeMilter::new(gone).wants(protocol::NO_REPLY_HEADER)).await;
    assert!(matches!(talked.ended, Err(Trouble::Closed(_) | Trouble::Broken { .. })), "{:?}", talked.ended);
}

#[tokio::test]
async fn what_breaks_the_protocol_is_trouble_at_any_step() {
    for (packets, wanted) in [
        (vec![0; 4], "it sent a packet of no length"),
        (vec![0xFF; 40], "it sent a packet of 4294967295 bytes"),
        (((REPLY_BYTES_MAX + 1) as u32).to_be_bytes().to_vec(), "it sent a packet of 262145 bytes"),
        (packet(b'X', b"what"), "it sent a packet that is no reply, of type 0x58"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), "it sent a packet of 1213486160 bytes"),
        (packet(b'c', b"more"), "the data of its reply 'c' cannot be read"),
        (packet(b'y', b"550 a\0b\0"), "the data of its reply 'y' cannot be read"),
        (packet(b'h', b"name without value"), "the data of its reply 'h' cannot be read"),
        (packet(b'm', b"\0\0"), "the data of its reply 'm' cannot be read"),
        (packet(b'O', b"short"), "the data of its reply 'O' cannot be read"),
        (packet(b'b', b"new body"), "it wants to replace the body, which was not offered"),
        (packet(b'+', b"<a@b>\0"), "it wants to add a recipient, which was not offered"),
        (packet(b'-', b"<a@b>\0"), "it wants to take a recipient away, which was not offered"),
        (packet(b'e', b"<a@b>\0"), "it wants to change the envelope sender, which was not offered"),
    ] {
        for command in format!("O{STEPS}").bytes() {
            let trouble = talk(&FakeMilter::at(command, packets.clone())).await.trouble();
            assert!(trouble.starts_with(wanted), "{trouble:?} instead of {wanted:?}");
        }
    }
    // Changes before the end, and a negotiation after the beginning.
    for command in STEPS.bytes().filter(|command| *command != b'E') {
        for packets in [add("A", "1"), insert(0, "A", "1"), change(1, "A", "1"), quarantine("x")] {
            let trouble = talk(&FakeMilter::at(command, packets)).await.trouble();
            assert!(trouble.ends_with("which has no place there"), "{trouble}");
        }
    }
    for version in [0, 1, 7, u32::MAX] {
        let mut milter = FakeMilter::mild();
        milter.options = Options { version, ..milter.options };
        assert_eq!(talk(&milter).await.trouble(), format!("it speaks version {version} of the protocol"));
    }
    let talked = talk(&FakeMilter::at(b'O', go_on())).await;
    assert_eq!(talked.trouble(), "it answered the negotiation with \"continue\", which has no place there");
}

#[tokio::test]
async fn it_cannot_make_the_header_grow_without_end() {
    let talked = talk(&FakeMilter::at(b'E', [add("X", "1").repeat(2000), go_on()].concat())).await;
    assert!(talked.trouble().contains("more than 1000 fields"), "{}", talked.trouble());
    let talked = talk(&FakeMilter::at(b'E', [change(1, "X", "1").repeat(2000), go_on()].concat())).await;
    assert_eq!(talked.trouble(), "it wants more than 1000 changes");
    let long = "x".repeat(100_000);
    let talked = talk(&FakeMilter::at(b'E', [add("X", &long).repeat(3), go_on()].concat())).await;
    assert!(talked.trouble().contains("longer than 256 KiB"), "{}", talked.trouble());
    let lines = talk(&FakeMilter::at(b'E', [add("X", &long), go_on()].concat())).await.header.unwrap();
    assert!(lines.lines().all(|line| line.len() <= 998));
}

#[tokio::test]
async fn a_large_body_goes_in_pieces_that_are_read_one_by_one() {
    let pieces: Vec<Vec<u8>> = (0..5u8).map(|number| vec![b'a' + number; 150_000]).collect();
    let reads = Mutex::new(Vec::new());
    let milter = FakeMilter::mild();
    let read = |number: u32| {
        // So much was heard before this one was read.
        reads.lock().unwrap().push(milter.heard().iter().filter(|heard| heard.byte == b'B').count());
        Ok(Bytes::from(pieces[number as usize].clone()))
    };
    let head = Bytes::from_static(b"head\r\n");
    let talked = talk_about(&milter, ENOUGH, head.clone(), &read, 5).await;
    assert_eq!(talked.verdict(), &Verdict::Accept);
    assert_eq!(milter.body(), [&head[..], &pieces.concat()].concat());
    assert!(milter.heard().iter().all(|heard| heard.data.len() <= 65_535));
    assert_eq!(*reads.lock().unwrap(), [1, 4, 7, 10, 13]);
}

#[tokio::test]
async fn a_body_that_cannot_be_read_back_is_our_trouble() {
    let read = |_| Err(StoreError::Damaged("body 1".to_owned()));
    let talked = talk_about(&FakeMilter::mild(), ENOUGH, Bytes::new(), &read, 1).await;
    assert!(matches!(talked.ended, Err(Trouble::Unreadable(_))), "{:?}", talked.ended);
}
