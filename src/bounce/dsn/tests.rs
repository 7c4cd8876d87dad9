//! Notices read back by mail-parser: the structure stands whatever goes into it.
#![allow(clippy::unwrap_used, clippy::panic)]

use mail_parser::{MessageParser, MimeHeaders, PartType};

use super::*;
use crate::message::{BodyType, Door, DsnRequest, MessageId, Notify, Origin, OriginalRecipient, ReversePath};
use crate::queue::record::Status;
use crate::smtp::Reply;

const NOW: Millis = 1_795_300_017_000;
const ORIGINAL: &[u8] = b"From: app@our.example\r\nSubject: hello\r\nMessage-ID: <1@our.example>\r\n\r\nthe text\r\n";

fn address(text: &str) -> Address {
    Address::parse(text).unwrap()
}

fn message() -> Message {
    Message {
        id: MessageId::from_u64(77),
        received_at: NOW - 60_000,
        origin: Origin { door: Door::Admin, account: None, peer: None },
        mail_from: ReversePath::Address(address("app@our.example")),
        body_type: BodyType::EightBitMime,
        smtputf8: false,
        dsn: DsnRequest::default(),
        size: ORIGINAL.len() as u64,
        chunks: 1,
        header_from: None,
        streamed: None,
        message_id: "1@our.example".to_owned(),
        subject: "hello".to_owned(),
        findings: None,
        recipients: 1,
        stream: crate::message::stream::default_name(),
        tls: crate::message::TlsWish::default(),
        not_before: None,
        answers: None,
    }
}

fn recipient(to: &str) -> Recipient {
    Recipient {
        address: address(to),
        alias: None,
        route: Route::Remote,
        notify: Notify::default(),
        original: None,
        status: Status::Waiting { due: NOW },
        attempts: 1,
        last_failure: None,
        delay_notified: false,
        by_hand: None,
        released: None,
    }
}

fn refused(text: &'static str) -> Failure {
    Failure::refused("mx.far.example", Reply::new(550, (1, 1), text))
}

struct Case {
    message: Message,
    recipients: Vec<(Recipient, Failure)>,
    action: Action,
    original: Vec<u8>,
    to: Address,
}

impl Case {
    fn new(recipients: Vec<(Recipient, Failure)>) -> Case {
        let to = address("app@our.example");
        Case { message: message(), recipients, action: Action::Failed, original: ORIGINAL.to_vec(), to }
    }

    fn write(&self) -> Vec<u8> {
        let recipients: Vec<_> = self.recipients.iter().map(|(r, f)| (r, f)).collect();
        let notice = Notice {
            hostname: &Domain::parse("mail.our.example").unwrap(),
            from: &address("MAILER-DAEMON@our.example"),
            to: &self.to,
            message: &self.message,
            recipients: &recipients,
            action: self.action,
            id: "loop.1.mac@mail.our.example",
            original: &self.original,
            now: NOW,
            seed: 0xfeed,
        };
        write(&notice)
    }

    /// Content types and contents of the three parts, after checks that hold for every notice.
    fn parts(&self) -> (String, Vec<(String, String)>) {
        let bytes = self.write();
        assert!(is_wellformed(&bytes), "{}", String::from_utf8_lossy(&bytes));
        let headers = Headers::parse(&bytes);
        assert!(headers.has_empty_line());
        let names: Vec<_> = headers.fields().iter().map(|f| String::from_utf8_lossy(f.name).into_owned()).collect();
        let singles = ["From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type"];
        assert!(singles.iter().all(|name| names.iter().filter(|n| n == name).count() == 1), "{names:?}");
        assert_eq!(headers.get("Auto-Submitted").unwrap().text(), "auto-replied");
        let parsed = MessageParser::default().parse(&bytes).unwrap();
        let root = parsed.part(0).unwrap();
        let kind = root.content_type().unwrap();
        assert_eq!((kind.ctype(), kind.subtype()), ("multipart", Some("report")));
        assert_eq!(kind.attribute("report-type"), Some("delivery-status"));
        let PartType::Multipart(children) = &root.body else { panic!("{root:?}") };
        assert_eq!(children.len(), 3);
        let read = |number: &u32| {
            let part = parsed.part(*number).unwrap();
            let kind = part.content_type().unwrap();
            let raw = &bytes[part.offset_body as usize..part.offset_end as usize];
            (format!("{}/{}", kind.ctype(), kind.subtype().unwrap()), String::from_utf8(raw.to_vec()).unwrap())
        };
        (headers.get("Subject").unwrap().text(), children.iter().map(read).collect())
    }

    /// Groups of fields of the second part.
    fn status(&self) -> Vec<Vec<(String, String)>> {
        let (_, parts) = self.parts();
        let mut rest = parts[1].1.clone().into_bytes();
        let mut groups = Vec::new();
        while !rest.is_empty() {
            let headers = Headers::parse(&rest);
            let fields = headers.fields().iter().map(|f| (String::from_utf8_lossy(f.name).into_owned(), f.text()));
            groups.push(fields.collect());
            assert!(!headers.header_bytes().is_empty(), "{:?}", parts[1]);
            rest = headers.body().to_vec();
        }
        groups
    }
}

fn value<'a>(group: &'a [(String, String)], name: &str) -> Option<&'a str> {
    group.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
}

#[test]
fn a_failure_is_told_to_people_and_machines() {
    let mut case = Case::new(vec![(recipient("bob@far.example"), refused("no such user"))]);
    case.message.dsn.envid = Some("env-1".to_owned());
    case.recipients[0].0.original =
        Some(OriginalRecipient { kind: "rfc822".to_owned(), address: "Bob@far.example".to_owned() });
    let (subject, parts) = case.parts();
    assert_eq!(subject, "Your message to bob@far.example was not delivered");
    assert_eq!(parts[0].0, "text/plain");
    for line in [
        "  <bob@far.example>\r\n    The server mx.far.example said:\r\n      550 5.1.1 no such user\r\n",
        "Please check its spelling.",
        "Subject of your message: hello\r\n",
    ] {
        assert!(parts[0].1.contains(line), "{}", parts[0].1);
    }
    assert_eq!(parts[1].0, "message/delivery-status");
    assert_eq!(parts[2].0, "text/rfc822-headers");
    assert!(parts[2].1.starts_with("From: app@our.example\r\n") && !parts[2].1.contains("the text"));
    let status = case.status();
    assert_eq!(status.len(), 2);
    assert_eq!(value(&status[0], "Reporting-MTA"), Some("dns; mail.our.example"));
    assert_eq!(value(&status[0], "Original-Envelope-Id"), Some("env-1"));
    assert_eq!(value(&status[0], "Arrival-Date"), Some("Sat, 21 Nov 2026 22:25:57 +0000"));
    let expected = [
        ("Original-Recipient", "rfc822; Bob@far.example"),
        ("Final-Recipient", "rfc822; bob@far.example"),
        ("Action", "failed"),
        ("Status", "5.1.1"),
        ("Remote-MTA", "dns; mx.far.example"),
        ("Diagnostic-Code", "smtp; 550 5.1.1 no such user"),
        ("Last-Attempt-Date", "Sat, 21 Nov 2026 22:26:57 +0000"),
    ];
    assert_eq!(status[1], expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let bytes = case.write();
    let headers = Headers::parse(&bytes);
    assert_eq!(headers.get("In-Reply-To").unwrap().text(), "<1@our.example>");
    assert_eq!(headers.author().unwrap().address, address("MAILER-DAEMON@our.example"));
    assert_eq!(headers.get("To").unwrap().text(), "<app@our.example>");
}

#[test]
fn a_delay_says_until_when_we_try() {
    let failure = Failure::local("4.4.1", "mx.far.example", "mx.far.example did not answer within 30 seconds");
    let mut case = Case::new(vec![(recipient("bob@far.example"), failure)]);
    case.action = Action::Delayed { until: NOW + 86_400_000 };
    case.message.dsn.ret = Some(Ret::Full);
    let (subject, parts) = case.parts();
    assert_eq!(subject, "Your message to bob@far.example is delayed");
    assert!(parts[0].1.contains("    mx.far.example did not answer within 30 seconds\r\n"), "{}", parts[0].1);
    assert!(parts[0].1.contains("We keep trying until Sun, 22 Nov 2026 22:26:57 +0000."), "{}", parts[0].1);
    assert_eq!(parts[2].0, "text/rfc822-headers");
    let status = case.status();
    assert_eq!(value(&status[1], "Action"), Some("delayed"));
    assert_eq!(value(&status[1], "Status"), Some("4.4.1"));
    assert_eq!(value(&status[1], "Will-Retry-Until"), Some("Sun, 22 Nov 2026 22:26:57 +0000"));
    assert_eq!(value(&status[1], "Diagnostic-Code"), None);
}

#[test]
fn a_success_says_who_has_it_and_no_more() {
    let kept = Failure {
        reply: Some(Reply::new(250, (0, 0), "kept as 4711")),
        ..Failure::local("2.0.0", "mx.far.example [192.0.2.1]:25", "")
    };
    let mut case = Case::new(vec![(recipient("bob@far.example"), kept)]);
    case.action = Action::Relayed;
    // RFC 3461 4.3: for failures only.
    case.message.dsn.ret = Some(Ret::Full);
    let (subject, parts) = case.parts();
    assert_eq!(subject, "Your message to bob@far.example was passed on");
    let told = "  <bob@far.example>\r\n    The server mx.far.example [192.0.2.1]:25 said:\r\n      250 2.0.0 kept as 4711\r\n\r\n";
    assert!(parts[0].1.contains(told), "{}", parts[0].1);
    assert_eq!(parts[2].0, "text/rfc822-headers");
    let expected = [
        ("Final-Recipient", "rfc822; bob@far.example"),
        ("Action", "relayed"),
        ("Status", "2.0.0"),
        ("Remote-MTA", "dns; mx.far.example"),
        ("Last-Attempt-Date", "Sat, 21 Nov 2026 22:26:57 +0000"),
    ];
    assert_eq!(case.status()[1], expected.map(|(name, value)| (name.to_owned(), value.to_owned())));

    // At home, and where an alias leads: nobody's business.
    for (route, reply) in [(Route::Target("crm".to_owned()), None), (Route::Remote, Some("secret@x.example has it"))] {
        let mut recipient = Recipient { route, ..recipient("secret@x.example") };
        recipient.alias = Some(address("sales@our.example"));
        let reply = reply.map(|text| Reply::new(250, (0, 0), text));
        case.recipients = vec![(recipient, Failure { reply, ..Failure::local("", "/var/secret/x.example", "") })];
        case.action = Action::Delivered;
        let (subject, parts) = case.parts();
        assert_eq!(subject, "Your message to sales@our.example was delivered");
        assert!(!format!("{}{}", parts[0].1, parts[1].1).contains("secret@"), "{parts:?}");
        let status = &case.status()[1];
        assert_eq!((value(status, "Action"), value(status, "Status")), (Some("delivered"), Some("2.0.0")));
        assert_eq!(value(status, "Remote-MTA"), None);
    }
}

#[test]
fn ret_decides_how_much_goes_back() {
    let case = |ret, original: &[u8]| {
        let mut case = Case::new(vec![(recipient("bob@far.example"), refused("no"))]);
        case.message.dsn.ret = ret;
        case.original = original.to_vec();
        case.parts().1.remove(2)
    };
    assert_eq!(case(None, ORIGINAL).0, "text/rfc822-headers");
    let full = case(Some(Ret::Full), ORIGINAL);
    assert_eq!((full.0.as_str(), full.1.as_bytes()), ("message/rfc822", ORIGINAL));
    let large = [ORIGINAL, &b"0123456789012345678901234567890123456789\r\n".repeat(3000)].concat();
    assert_eq!(case(Some(Ret::Full), &large).0, "text/rfc822-headers");
    for unfit in [&b"A: 1\r\n\r\n\0"[..], b"A: 1\r\n\r\nx\ny", &[b"A: 1\r\n\r\n", vec![b'x'; 999].as_slice()].concat()]
    {
        assert_eq!(case(Some(Ret::Full), unfit), ("text/rfc822-headers".to_owned(), "A: 1\r\n".to_owned()));
    }
}

#[test]
fn nothing_in_it_can_break_the_structure() {
    let evil = "no\nContent-Type: text/html\n\n--=_postrider_000000000000feed--\n\n<b>evil</b>";
    let mut case = Case::new(vec![(recipient("bob@far.example"), refused(evil))]);
    case.recipients[0].1.host = "mx\r\nAction: delivered".to_owned();
    case.recipients[0].1.status = "5.1.1\r\nX: y".to_owned();
    case.recipients[0].0.original =
        Some(OriginalRecipient { kind: "rfc822".to_owned(), address: "x\r\nStatus: 2.0.0".to_owned() });
    case.message.subject = "a\r\n--=_postrider_000000000000feed\r\n\r\nb".to_owned();
    case.message.message_id = "1@our.example>\r\nBcc: x".to_owned();
    case.message.dsn = DsnRequest { ret: Some(Ret::Full), envid: Some("e\r\n\r\nAction: x".to_owned()) };
    case.original = [ORIGINAL, b"--=_postrider_000000000000feed--\r\n--=_postrider_000000000000feef\r\n"].concat();
    let status = case.status();
    assert_eq!(status.len(), 2, "{status:?}");
    assert_eq!(value(&status[1], "Status"), Some("5.0.0"));
    assert_eq!(status[1].iter().filter(|(name, _)| name == "Action" || name == "Status").count(), 2);
    assert_eq!(value(&status[1], "Remote-MTA"), None);
    assert_eq!(case.parts().1[2].1.as_bytes(), case.original);
    let bytes = case.write();
    assert_eq!(Headers::parse(&bytes).get("Bcc"), None);
    case.recipients[0].1.host = "[".repeat(5000);
    case.original = [&b"X"[..], b"y".repeat(3000).as_slice(), b": 1\r\nA: \xff\0\r b\r\n\r\n"].concat();
    case.parts();
}

#[test]
fn what_an_alias_hides_stays_hidden() {
    let failure = refused("<Bob@Partner.example> unknown, ask bob@partner.example");
    let mut forwarded = recipient("bob@partner.example");
    forwarded.alias = Some(address("sales@our.example"));
    let mut boxed = recipient("info@our.example");
    boxed.route = Route::Target("sales-box".to_owned());
    let inner = Failure::local("5.3.0", "sales-box", "cannot write /var/mail/sales: no space left");
    let case = Case::new(vec![(forwarded, failure), (boxed, inner)]);
    let text = String::from_utf8(case.write()).unwrap().to_lowercase();
    assert!(!text.contains("bob@partner") && !text.contains("sales-box") && !text.contains("/var/mail"), "{text}");
    let status = case.status();
    assert_eq!(value(&status[1], "Final-Recipient"), Some("rfc822; sales@our.example"));
    let said = "smtp; 550 5.1.1 <sales@our.example> unknown, ask sales@our.example";
    assert_eq!(value(&status[1], "Diagnostic-Code"), Some(said));
    assert_eq!(value(&status[2], "Diagnostic-Code"), None);
    assert_eq!(value(&status[2], "Status"), Some("5.3.0"));
}

#[test]
fn addresses_in_utf8_have_their_own_types() {
    let mut case = Case::new(vec![(recipient("bøb@far.example"), refused("gibt es nicht: bøb"))]);
    case.message.smtputf8 = true;
    case.original = "From: ä@our.example\r\nSubject: hällo\r\n\r\ntext\r\n".as_bytes().to_vec();
    let (subject, parts) = case.parts();
    assert_eq!(subject, "Your message was not delivered");
    assert_eq!(parts[1].0, "message/global-delivery-status");
    assert_eq!(parts[2].0, "message/global-headers");
    assert_eq!(value(&case.status()[1], "Final-Recipient"), Some("utf-8; bøb@far.example"));
    let bytes = case.write();
    assert!(Headers::parse(&bytes).header_bytes().is_ascii(), "only the parts are in UTF-8");
    assert_eq!(Headers::parse(&bytes).get("Content-Transfer-Encoding").unwrap().text(), "8bit");
    case.message.dsn.ret = Some(Ret::Full);
    assert_eq!(case.parts().1[2].0, "message/global");
    // A far end that speaks UTF-8 to us does not make an ASCII report break its rules.
    let plain = Case::new(vec![(recipient("bob@far.example"), refused("gibt's nicht: ä"))]);
    assert_eq!(plain.parts().1[1].0, "message/delivery-status");
    assert_eq!(value(&plain.status()[1], "Diagnostic-Code"), Some("smtp; 550 5.1.1 gibt's nicht: ?"));
}

#[test]
fn the_status_fits_the_action() {
    let told = |action, status: &str| {
        let mut case = Case::new(vec![(recipient("bob@far.example"), Failure::local(status, "", "it failed"))]);
        case.action = action;
        value(&case.status()[1], "Status").unwrap().to_owned()
    };
    let delayed = Action::Delayed { until: NOW };
    assert_eq!(told(delayed, "5.7.1"), "4.7.1");
    assert_eq!(told(delayed, ""), "4.0.0");
    assert_eq!(told(Action::Failed, "5.4.4"), "5.4.4");
    assert_eq!(told(Action::Failed, "2.0.0"), "5.0.0");
    assert_eq!(told(Action::Failed, "5.99999.1"), "5.0.0");
    assert_eq!(told(Action::Expired, "4.4.1"), "4.4.1");
    assert_eq!(told(Action::Expired, "x"), "4.4.7");
}

#[test]
fn many_recipients_are_all_in_the_report() {
    let list = (0..50).map(|n| (recipient(&format!("n{n}@far.example")), refused("no"))).collect();
    let case = Case::new(list);
    assert_eq!(case.status().len(), 51);
    let (subject, parts) = case.parts();
    assert_eq!(subject, "Your message was not delivered");
    assert!(parts[0].1.contains("and to 30 more, named in the report below."), "{}", parts[0].1);
}

/// tests/vectors/autoreply-loop says who may be told of a failure.
#[test]
fn who_is_told() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/autoreply-loop");
    let expected: serde_json::Value =
        serde_json::from_slice(&std::fs::read(format!("{folder}/expected.json")).unwrap()).unwrap();
    assert_eq!(expected.as_object().unwrap().len(), 30);
    for (name, facts) in expected.as_object().unwrap() {
        let mail_from = facts["mail_from"].as_str().unwrap();
        let mut message = message();
        message.mail_from =
            if mail_from.is_empty() { ReversePath::Null } else { ReversePath::Address(address(mail_from)) };
        let mut to = recipient("alice@our.example");
        if name == "dsn-notify-never" {
            to.notify = Notify::Never;
        }
        let wanted = wanted(&message, &to, Action::Failed);
        assert_eq!(wanted, facts["may_send_dsn_on_failure"].as_bool().unwrap(), "{name}");
    }
}

#[test]
fn notify_is_honoured() {
    let ask = |notify, action| {
        let mut to = recipient("alice@our.example");
        to.notify = notify;
        wanted(&message(), &to, action)
    };
    let delayed = Action::Delayed { until: NOW };
    let only = |failure, delay| Notify::On { success: false, failure, delay };
    assert!(ask(Notify::default(), Action::Failed) && ask(Notify::default(), delayed));
    assert!(!ask(Notify::Never, Action::Failed) && !ask(Notify::Never, delayed));
    assert!(ask(only(true, false), Action::Expired) && !ask(only(true, false), delayed));
    assert!(!ask(only(false, true), Action::Expired) && ask(only(false, true), delayed));
    let mut told_before = recipient("alice@our.example");
    told_before.delay_notified = true;
    assert!(!wanted(&message(), &told_before, delayed));
}
