//! The machine alone: any reply at any place.

#![allow(clippy::unwrap_used, clippy::panic)]

use proptest::prelude::*;

use super::*;
use crate::delivery::smtp::commands::{MailRecipient, Smtputf8};
use crate::message::{Address, DsnRequest, Notify, ReversePath};

fn client(tls: Tls) -> Client {
    Client::new("mx.test [192.0.2.1]:25".into(), Domain::parse("own.test").unwrap(), tls, Timeouts::RFC5321)
}

pub(super) fn mail(recipients: u32) -> Mail {
    let recipient = |number| MailRecipient {
        number,
        address: Address::parse(&format!("r{number}@far.test")).unwrap(),
        notify: Notify::default(),
        original: None,
    };
    Mail {
        mail_from: ReversePath::Null,
        size: 10,
        eight_bit: false,
        smtputf8: Smtputf8::No,
        dsn: DsnRequest::default(),
        require_tls: false,
        without_bdat: false,
        recipients: (0..recipients).map(recipient).collect(),
    }
}

pub(super) fn reply(code: u16, lines: &[&str]) -> RawReply {
    RawReply { code, lines: lines.iter().map(|line| (*line).to_owned()).collect() }
}

/// A client that has said EHLO and is ready.
fn ready(extensions: &[&str]) -> Client {
    let mut client = client(Tls::IfOffered);
    client.start();
    client.reply(reply(220, &["hi"]));
    assert_eq!(client.reply(reply(250, extensions)), Step::Ready);
    client
}

pub(super) fn sent(step: &Step) -> String {
    match step {
        Step::Talk { send, .. } => String::from_utf8(send.clone()).unwrap(),
        other => panic!("{other:?}"),
    }
}

pub(super) fn done(step: Step) -> Vec<(u32, Outcome)> {
    match step {
        Step::Done(outcomes) => outcomes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_reply_before_the_mail_fails_the_mail() {
    // Steps that lead to the place at which every code is tried.
    let places: [&[RawReply]; 4] = [
        &[],
        &[reply(220, &["hi"])],
        &[reply(220, &["hi"]), reply(500, &["what"])],
        &[reply(220, &["hi"]), reply(250, &["mx", "STARTTLS"])],
    ];
    for path in places {
        for tls in [Tls::Never, Tls::IfOffered, Tls::Required] {
            for code in 200..600 {
                let mut client = client(tls);
                client.start();
                for step in path {
                    client.reply(step.clone());
                }
                if let Step::Over(over) = client.reply(reply(code, &["text"])) {
                    assert_eq!(over.decided, []);
                    assert!(over.trouble.failure.status.starts_with("4."), "{code}: {:?}", over.trouble);
                }
            }
        }
    }
}

#[test]
fn tls_required_sends_no_mail_in_clear() {
    for code in 200..600 {
        let mut client = client(Tls::Required);
        client.reply(reply(220, &["hi"]));
        client.reply(reply(250, &["mx", "STARTTLS"]));
        let step = client.reply(reply(code, &["text"]));
        assert_eq!(step == Step::StartTls, code == 220, "{code}");
        if let Step::Over(over) = step {
            assert!(!over.trouble.clear_may_help);
        }
    }
}

#[test]
fn several_messages_on_one_connection() {
    let mut client = ready(&["mx", "PIPELINING"]);
    let first = client.begin(mail(1));
    assert_eq!(sent(&first), "MAIL FROM:<>\r\nRCPT TO:<r0@far.test>\r\nDATA\r\n");
    client.reply(reply(250, &["ok"]));
    client.reply(reply(250, &["ok"]));
    assert_eq!(client.reply(reply(354, &["go"])), Step::Content(Framing::Dot));
    client.end_content(b".\r\n".to_vec());
    assert!(matches!(done(client.reply(reply(250, &["kept"])))[..], [(0, Outcome::Delivered(_))]));
    // After a dot there is nothing to reset; after a refusal there is.
    assert!(sent(&client.begin(mail(1))).starts_with("MAIL"));
    client.reply(reply(250, &["ok"]));
    client.reply(reply(550, &["no"]));
    assert!(matches!(done(client.reply(reply(554, &["nobody"])))[..], [(0, Outcome::Fail(_))]));
    assert!(sent(&client.begin(mail(1))).starts_with("RSET\r\nMAIL"));
    client.reply(reply(250, &["ok"]));
    client.reply(reply(250, &["ok"]));
    client.reply(reply(250, &["ok"]));
    assert_eq!(client.reply(reply(354, &["go"])), Step::Content(Framing::Dot));
}

#[test]
fn a_server_that_confuses_transactions_gets_no_empty_message() {
    let mut client = ready(&["mx", "PIPELINING"]);
    client.begin(mail(2));
    client.reply(reply(550, &["not from you"]));
    client.reply(reply(250, &["ok"]));
    client.reply(reply(250, &["ok"]));
    let Step::Over(over) = client.reply(reply(354, &["go"])) else { panic!("went on") };
    assert_eq!(over.decided.len(), 2);
    assert!(over.decided.iter().all(|(_, outcome)| matches!(outcome, Outcome::Fail(_))));
}

#[test]
fn only_a_loss_after_the_dot_is_unsure() {
    for replies in 0..=4 {
        let mut client = ready(&["mx", "PIPELINING"]);
        client.begin(mail(1));
        for code in [250, 250, 354].into_iter().take(replies.min(3)) {
            client.reply(reply(code, &["x"]));
        }
        if replies == 4 {
            client.end_content(b".\r\n".to_vec());
        }
        let over = client.lost(Loss::Closed);
        assert_eq!(over.trouble.failure.unsure, replies == 4);
        let expected = if replies == 4 { 1 } else { 0 };
        assert_eq!(over.decided.len(), expected);
    }
}

#[test]
fn bdat_where_it_saves_a_round_trip_or_the_content_is_long() {
    let long = content::LONG_BYTES;
    for (pipelining, size, without_bdat, framing) in [
        (true, 10, false, Framing::Dot),
        (true, long - 1, false, Framing::Dot),
        (true, long, false, Framing::Counted),
        (true, long, true, Framing::Dot),
        (false, 10, false, Framing::Counted),
        (false, 10, true, Framing::Dot),
    ] {
        let mut client = ready(&["mx", "CHUNKING", if pipelining { "PIPELINING" } else { "X" }]);
        let mut step = client.begin(Mail { size, without_bdat, ..mail(1) });
        let mut said = sent(&step);
        for code in [250, 250, 354].into_iter().take(if framing == Framing::Dot { 3 } else { 2 }) {
            step = client.reply(reply(code, &["x"]));
            if matches!(step, Step::Talk { .. }) {
                said += &sent(&step);
            }
        }
        assert_eq!((step, said.contains("DATA")), (Step::Content(framing), framing == Framing::Dot));
    }
}

/// A client of a server with PIPELINING that is about to send long content to two of three recipients.
fn in_bdat() -> Client {
    let mut client = ready(&["mx", "PIPELINING", "CHUNKING"]);
    client.begin(Mail { size: content::LONG_BYTES, ..mail(3) });
    for code in [250, 250, 550] {
        client.reply(reply(code, &["x"]));
    }
    assert_eq!(client.reply(reply(250, &["x"])), Step::Content(Framing::Counted));
    client
}

#[test]
fn bdat_is_unsure_from_its_last_octets_on() {
    let over = in_bdat().lost(Loss::Closed);
    assert_eq!((over.trouble.failure.unsure, over.decided.len()), (false, 1));
    for loss in [Loss::Closed, Loss::TimedOut] {
        let mut client = in_bdat();
        client.end_content(b"x".to_vec());
        let over = client.lost(loss);
        assert_eq!((over.trouble.failure.unsure, over.decided.len()), (true, 3));
    }
}

#[test]
fn a_bdat_that_is_not_known_decides_nothing() {
    for code in 400..600 {
        let mut client = in_bdat();
        client.end_content(b"x".to_vec());
        let step = client.reply(reply(code, &["x"]));
        let is_unknown = (500..=504).contains(&code);
        match step {
            Step::Over(over) => {
                assert!(is_unknown || code == 421, "{code}");
                assert_eq!((over.trouble.data_may_help, over.decided.len()), (is_unknown, 1), "{code}");
                assert!(!over.trouble.failure.unsure);
            }
            step => {
                assert!(!is_unknown, "{code}");
                assert_eq!(done(step).len(), 3);
                assert!(sent(&client.begin(mail(1))).starts_with("RSET\r\n"));
            }
        }
        let early = in_bdat().lost(Loss::Interrupted(Some(reply(code, &["x"]))));
        assert_eq!((early.trouble.data_may_help, early.decided.len()), (is_unknown, 1), "{code}");
    }
    let mut client = in_bdat();
    client.end_content(b"x".to_vec());
    assert_eq!(done(client.reply(reply(503, &["5.7.1 not from you"]))).len(), 3);
}

proptest! {
    /// Whatever the codes: one fate per recipient at most, nothing delivered without a 2yz to the dot,
    /// nothing failed without a 5yz or an offer that says so.
    #[test]
    fn any_replies_give_sound_fates(
        pipelining: bool,
        chunking: bool,
        is_long: bool,
        recipients in 1u32..5,
        codes in prop::collection::vec(prop::sample::select(vec![250u16, 251, 354, 421, 450, 452, 503, 550, 552, 299]), 1..20),
    ) {
        let pipelining = if pipelining { "PIPELINING" } else { "X" };
        let mut client = ready(&["mx", pipelining, if chunking { "CHUNKING" } else { "X" }]);
        let size = if is_long { content::LONG_BYTES } else { 10 };
        let mut step = client.begin(Mail { size, ..mail(recipients) });
        let mut codes = codes.into_iter();
        let (mut after_dot, mut refusals) = (None, 0);
        let decided = loop {
            step = match step {
                Step::Content(_) => {
                    after_dot = Some(codes.as_slice().first().copied());
                    client.end_content(b".\r\n".to_vec())
                }
                Step::Talk { .. } => match codes.next() {
                    Some(code) => {
                        refusals += usize::from(code >= 500);
                        client.reply(reply(code, &["x"]))
                    }
                    None => Step::Over(client.lost(Loss::Closed)),
                },
                Step::Done(decided) => {
                    prop_assert_eq!(decided.len(), recipients as usize);
                    break decided;
                }
                Step::Over(over) => break over.decided,
                other => panic!("{other:?}"),
            };
        };
        let mut numbers: Vec<u32> = decided.iter().map(|(number, _)| *number).collect();
        numbers.dedup();
        prop_assert_eq!(numbers.len(), decided.len());
        for (_, outcome) in decided {
            match outcome {
                Outcome::Delivered(_) => prop_assert!(matches!(after_dot, Some(Some(200..=299)))),
                Outcome::Fail(why) => prop_assert!(refusals > 0 && why.reply.is_some_and(|reply| reply.code >= 500)),
                Outcome::Defer { why, .. } => {
                    prop_assert!(why.status.starts_with("4."));
                    prop_assert!(!why.unsure || after_dot.is_some());
                }
                Outcome::Captured | Outcome::Complained | Outcome::Held(_) | Outcome::Suppressed(_) | Outcome::NotTried { .. } | Outcome::Rerouted(_) => {
                    prop_assert!(false, "not by SMTP")
                }
            }
        }
    }
}
