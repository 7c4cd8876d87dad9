//! What files say, case by case and in general.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;
use proptest::prelude::*;

fn read(text: &str) -> Eml {
    read_eml(text.as_bytes(), PickupFormat::Auto, None).unwrap_or_else(|bad| unreachable!("{text:?}: {bad}"))
}

fn bad(text: &[u8]) -> String {
    read_eml(text, PickupFormat::Auto, None).err().map(|bad| bad.reason).unwrap_or_else(|| unreachable!("{text:?}"))
}

fn to(eml: &Eml) -> Vec<String> {
    eml.envelope.recipients.iter().map(|r| r.address.to_string()).collect()
}

#[test]
fn header_fields_are_the_envelope() {
    let eml = read(
        "From: A <a@x.example>\nSender: s@x.example\nTo: b@x.example, Group: c@x.example;\nto: b@x.example\n\
         Cc:\nBCC : d@x.example,\n e@x.example\nResent-Bcc: f@x.example\nSubject: x\n\nhello",
    );
    assert_eq!(eml.envelope.mail_from.to_string(), "a@x.example");
    assert_eq!(to(&eml), ["b@x.example", "c@x.example", "d@x.example", "e@x.example"]);
    assert!(!eml.envelope.smtputf8);
    assert_eq!(
        String::from_utf8(eml.content).unwrap(),
        "From: A <a@x.example>\r\nSender: s@x.example\r\nTo: b@x.example, Group: c@x.example;\r\n\
         to: b@x.example\r\nCc:\r\nSubject: x\r\n\r\nhello\r\n"
    );
}

#[test]
fn several_authors_need_one_sender() {
    let eml = read("From: a@x.example, b@x.example\nSender: s@x.example\nTo: c@x.example\n\n");
    assert_eq!(eml.envelope.mail_from.to_string(), "s@x.example");
    assert!(bad(b"From: a@x.example, b@x.example\nTo: c@x.example\n\n").contains("more than one"));
    assert!(bad(b"From: a@x.example\nFrom: b@x.example\nTo: c@x.example\n\n").contains("more than one"));
    assert!(bad(b"To: c@x.example\n\n").contains("no From"));
    assert!(
        bad(b"From: a@x.example, b@x.example\nSender: c@d.example, e@f.example\nTo: c@x.example\n\n")
            .contains("Sender")
    );
}

#[test]
fn hidden_recipients_stay_hidden() {
    let eml = read("From: a@x.example\nBcc: b@x.example\n\nhi\n");
    assert_eq!(to(&eml), ["b@x.example"]);
    assert_eq!(eml.content, b"From: a@x.example\r\nTo: undisclosed-recipients:;\r\n\r\nhi\r\n");
}

#[test]
fn a_leading_block_is_the_envelope() {
    let eml = read(
        "x-sender: \"<A>\" <bounce@x.example> RET=HDRS ENVID=q1 BODY=7bit\r\nX-Receiver: =?utf-8?Q?B?= <b@x.example>\r\n\
         X-Receiver: c@x.example; NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;c@y.example\r\nX-CreatedBy: z\r\n\
         X-Receiver: <b@x.example>\r\nX-Receiver: <d@x.example>;NOTIFY=never\r\nFrom: a@x.example\r\n\
         To: shown@x.example\r\nX-Receiver: stale@x.example\r\n\r\nhi\r\n",
    );
    assert_eq!(eml.envelope.mail_from.to_string(), "bounce@x.example");
    assert_eq!(eml.envelope.dsn.ret, Some(Ret::Headers));
    assert_eq!(eml.envelope.dsn.envid.as_deref(), Some("q1"));
    assert_eq!(eml.envelope.body, BodyType::SevenBit);
    assert_eq!(to(&eml), ["b@x.example", "c@x.example", "d@x.example"]);
    let [b, c, d] = eml.envelope.recipients.as_slice() else { unreachable!() };
    assert_eq!(b.notify, Notify::default());
    assert_eq!(c.notify, Notify::On { success: true, failure: true, delay: false });
    assert_eq!(c.original.as_ref().map(|o| o.address.as_str()), Some("c@y.example"));
    assert_eq!(d.notify, Notify::Never);
    assert_eq!(
        String::from_utf8(eml.content).unwrap(),
        "From: a@x.example\r\nTo: shown@x.example\r\nX-Receiver: stale@x.example\r\n\r\nhi\r\n"
    );
    let null = read("X-Sender: <>\nX-Receiver: <b@x.example>\nFrom: a@x.example\n\n");
    assert!(null.envelope.mail_from.is_null());
    let none = read("X-Receiver: <b@x.example>\nFrom: a@x.example\n\n");
    assert_eq!(none.envelope.mail_from.to_string(), "a@x.example");
}

#[test]
fn a_block_ends_at_its_mark() {
    let eml =
        read("X-Receiver: b@x.example\nX-EndOfInjectedXHeaders: 1\nX-Receiver: c@x.example\nFrom: a@x.example\n\nhi\n");
    assert_eq!(to(&eml), ["b@x.example"]);
    assert!(eml.content.starts_with(b"X-Receiver: c@x.example\r\nFrom: "));
}

#[test]
fn a_lone_x_sender_is_no_block() {
    let eml = read("X-Sender: php@x.example\nFrom: a@x.example\nTo: b@x.example\n\n");
    assert_eq!(eml.envelope.mail_from.to_string(), "a@x.example");
    assert!(eml.content.starts_with(b"X-Sender: php@x.example\r\n"));
}

#[test]
fn only_doubled_dots_of_a_block_writer_are_halved() {
    let block = "X-Receiver: <b@x.example>\nFrom: a@x.example\n\n";
    let body = |eml: &Eml| String::from_utf8_lossy(&eml.content).split_once("\r\n\r\n").unwrap().1.to_owned();
    assert_eq!(body(&read(&format!("{block}..\n..x\nx..\n"))), ".\r\n.x\r\nx..\r\n");
    assert_eq!(body(&read(&format!("{block}..\n.x\n"))), "..\r\n.x\r\n");
    assert_eq!(body(&read("From: a@x.example\nTo: b@x.example\n\n..\n")), "..\r\n");
}

#[test]
fn line_ends_and_marks_are_made_right() {
    let eml =
        read_eml(b"\xef\xbb\xbfFrom: a@x.example\rTo: b@x.example\n\r\na\r\rb\n\nc\r\n", PickupFormat::Auto, None)
            .unwrap();
    assert_eq!(eml.content, b"From: a@x.example\r\nTo: b@x.example\r\n\r\na\r\n\r\nb\r\n\r\nc\r\n");
}

#[test]
fn addresses_outside_ascii_ask_for_smtputf8() {
    assert!(read("From: ä@x.example\nTo: b@x.example\n\n").envelope.smtputf8);
    assert!(read("From: a@x.example\nTo: b@x.example, ö@x.example\n\n").envelope.smtputf8);
    assert!(!read("From: Ä <a@x.example>\nTo: b@bücher.example\nSubject: ü\n\n").envelope.smtputf8);
}

#[test]
fn what_is_no_message_is_refused_with_its_reason() {
    for (file, reason) in [
        (&b"\xff\xfeF\0r"[..], "UTF-16"),
        (b"From: a@x.example\nTo: b@x.example\n\nx\0", "NUL"),
        (b"", "no empty line"),
        (b"From: a@x.example\nTo: b@x.exam", "cut off"),
        (b"From: a@x.example\nTo: b@x.example\nno field\n\nx", "line 3 is neither"),
        (b"just text\n\n", "line 1 is neither"),
        (b"From: a@x.example\nTo: undisclosed:;\n\n", "no recipient"),
        (b"From: a@x.example\nTo: b\n\n", "To: "),
        (b"From: a\nTo: b@x.example\n\n", "From: "),
        (b"From: a@x.example\nTo: \"b\rBcc: c@x.example\"\n\n", "To: "),
        (b"X-Receiver: b\nFrom: a@x.example\n\n", "X-Receiver: "),
        (b"X-Receiver: <>\nFrom: a@x.example\n\n", "X-Receiver: "),
        (b"X-Sender: <a\nX-Receiver: <b@x.example>\nFrom: a@x.example\n\n", "X-Sender: "),
    ] {
        assert!(bad(file).contains(reason), "{:?}: {}", String::from_utf8_lossy(file), bad(file));
    }
    let many: String = (0..=RECIPIENTS_MAX).map(|n| format!("{n}@x.example,")).collect();
    assert!(bad(format!("From: a@x.example\nTo: {many}\n\n").as_bytes()).contains("many"));
    let folded = "X: 1\n".repeat(2000);
    assert!(bad(format!("From: a@x.example\n{folded}\n").as_bytes()).contains("fields"));
}

#[test]
fn formats_decide_what_the_envelope_is() {
    let file = b"X-Sender: <s@x.example>\nX-Receiver: <r@x.example>\nFrom: a@x.example\nSender: b@x.example\n\
                 To: t@x.example\nResent-To: old@x.example\n\n..dot\n";
    let read = |file: &[u8], format| read_eml(file, format, None);
    for (format, from, recipient, body) in [
        (PickupFormat::Auto, "s@x.example", "r@x.example", ".dot\r\n"),
        (PickupFormat::Replay, "s@x.example", "r@x.example", "..dot\r\n"),
        (PickupFormat::Iis, "s@x.example", "r@x.example", ".dot\r\n"),
        (PickupFormat::Exchange, "a@x.example", "t@x.example", "..dot\r\n"),
    ] {
        let eml = read(file, format).unwrap();
        assert_eq!(eml.envelope.mail_from.to_string(), from, "{format:?}");
        assert_eq!(to(&eml), [recipient], "{format:?}");
        let text = String::from_utf8(eml.content).unwrap();
        assert!(text.ends_with(&format!("\r\n\r\n{body}")), "{format:?}: {text}");
        assert!(!text.contains("X-Receiver") && !text.contains("X-Sender"), "{text}");
        assert_eq!(text.contains("Resent-To"), format != PickupFormat::Exchange, "{format:?}");
    }
    let plain = b"From: a@x.example\nSender: b@x.example\nTo: t@x.example\n\nx\n";
    assert_eq!(read(plain, PickupFormat::Iis).unwrap().envelope.mail_from.to_string(), "b@x.example");
    assert_eq!(read(plain, PickupFormat::Auto).unwrap().envelope.mail_from.to_string(), "a@x.example");
    assert!(read(plain, PickupFormat::Replay).unwrap_err().reason.contains("X-Receiver"));
}

#[test]
fn what_is_too_much_names_its_sender() {
    let list = |from: usize| (from..from + 500).map(|n| format!("{n}@x.example,")).collect::<String>();
    let many: String = (0..=RECIPIENTS_MAX / 500).map(|n| format!("To: {}\n", list(n * 500))).collect();
    let file = format!("From: a@x.example\n{many}\n");
    let bad = read_eml(file.as_bytes(), PickupFormat::Auto, None).unwrap_err();
    assert_eq!(bad.envelope.unwrap().mail_from.to_string(), "a@x.example");
}

const FORMATS: [PickupFormat; 4] =
    [PickupFormat::Auto, PickupFormat::Exchange, PickupFormat::Iis, PickupFormat::Replay];

/// Lines that files of this kind are made of, whole and broken.
fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        "(X-Sender|X-Receiver|x-receiver|From|Sender|To|Cc|Bcc|Resent-Bcc|Subject): ?(\"?[a-zü ,<@]{0,8}\"? ?)?<?[a-z]{0,3}@?x.example>?;?( NOTIFY=[A-Z,]{0,9})?( ORCPT=rfc822;[a-z+4]{0,5})?",
        "X-Receiver: <[a-z]{1,4}@x.example>",
        "(From|To|Bcc): [a-z]{1,4}@x.example",
        "[ \t]?[a-z.:<>@\"(),;=\\\\]{0,20}",
        Just(String::new()),
    ]
}

proptest! {
    #[test]
    fn any_file_is_read_or_refused(
        lines in proptest::collection::vec((line(), prop_oneof![Just("\n"), Just("\r\n"), Just("\r")]), 0..14)
    ) {
        let file: String = lines.iter().map(|(line, end)| format!("{line}{end}")).collect();
        for format in FORMATS {
            let Ok(eml) = read_eml(file.as_bytes(), format, Some("bulk")) else { continue };
            prop_assert!(!eml.envelope.recipients.is_empty());
            let headers = Headers::parse(&eml.content);
            prop_assert!(headers.has_empty_line());
            prop_assert!(headers.get("bcc").is_none() && headers.get("resent-bcc").is_none());
            prop_assert_eq!(headers.all(stream::FIELD).count(), 1);
            prop_assert_eq!(text::with_crlf(&eml.content), eml.content);
            let mut seen = std::collections::HashSet::new();
            prop_assert!(eml.envelope.recipients.iter().all(|recipient| seen.insert(&recipient.address)));
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(file in proptest::collection::vec(any::<u8>(), 0..200), mark in 0usize..4) {
        let marks: [&[u8]; 4] = [b"", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf"];
        for format in FORMATS {
            let _ = read_eml(&[marks[mark], &file].concat(), format, None);
        }
    }

    /// What a writer of blocks means is what we read.
    #[test]
    fn a_block_reads_back(
        from in "[a-z]{1,8}",
        to in proptest::collection::btree_set("[a-z]{1,8}", 1..20),
        body in proptest::collection::vec("[a-z.]{0,6}", 0..10),
        stuffs in any::<bool>(),
    ) {
        let text: String = body.iter().map(|line| format!("{line}\r\n")).collect();
        let written: String = body.iter().map(|line| match stuffs && line.starts_with('.') {
            true => format!(".{line}\r\n"),
            false => format!("{line}\r\n"),
        }).collect();
        let receivers: String = to.iter().map(|to| format!("X-Receiver: {to}@x.example\r\n")).collect();
        let file = format!("X-Sender: {from}@x.example\r\n{receivers}From: z@x.example\r\nBcc: q@x.example\r\n\r\n{written}");
        let format = if stuffs { PickupFormat::Auto } else { PickupFormat::Replay };
        let eml = read_eml(file.as_bytes(), format, None).unwrap();
        prop_assert_eq!(eml.envelope.mail_from.to_string(), format!("{from}@x.example"));
        let read: Vec<String> = eml.envelope.recipients.iter().map(|r| r.address.local().to_owned()).collect();
        prop_assert_eq!(read, to.into_iter().collect::<Vec<_>>());
        let wanted = format!("\r\n\r\n{text}");
        prop_assert!(String::from_utf8(eml.content).unwrap().ends_with(&wanted));
    }
}
