//! Reading bounces and complaints: the samples in tests/data/dsn and tests/data/arf, and any bytes at all.
//!
//! What a person reads in each sample is written down in tests/data/bounces.toml: recipient, what became
//! of it, status, class. A sample that is read otherwise is listed with its reason in
//! tests/data/not-passed.toml.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use postrider::bounce::read::{self, Action, Report, Reported};

/// Of all samples; the others are listed.
const RIGHT_PERCENT: usize = 95;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn table(name: &str) -> toml::Table {
    std::fs::read_to_string(data().join(name)).unwrap().parse().unwrap()
}

/// As it would come over the wire: the samples were files, some of them from mail boxes.
fn message(path: &Path) -> Vec<u8> {
    let mut content = Vec::new();
    let file = std::fs::read(path).unwrap();
    let lines = file.split_inclusive(|byte| *byte == b'\n').enumerate();
    for (_, line) in lines.filter(|(number, line)| *number > 0 || !line.starts_with(b"From ")) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        content.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
        content.extend_from_slice(b"\r\n");
    }
    content
}

fn word(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

fn line(reported: &Reported) -> String {
    let address = reported.address().map(ToString::to_string).unwrap_or_default();
    let action = match reported.action {
        Action::Failed => "failed",
        Action::Delayed => "delayed",
        Action::Done => "done",
    };
    format!("{} {action} {} {}", word(&address), word(&reported.status), reported.class.name())
}

fn lines(content: &[u8]) -> Vec<String> {
    match read::read(content, true) {
        None => Vec::new(),
        Some(Report::Complaint(complaint)) => {
            let who = complaint.recipient.map(|address| address.to_string()).unwrap_or_default();
            vec![format!("{} complained {}", word(&who), complaint.kind)]
        }
        Some(Report::Bounce(bounce)) => bounce.recipients.iter().map(line).collect(),
    }
}

#[test]
fn the_samples_are_read_as_a_person_reads_them() {
    let (expected, listed) = (table("bounces.toml"), table("not-passed.toml"));
    let listed: BTreeMap<&str, &str> = listed
        .get("dsn")
        .and_then(|set| set.as_table())
        .into_iter()
        .flatten()
        .map(|(name, why)| (name.as_str(), why.as_str().unwrap()))
        .collect();
    let (mut right, mut wrong) = (0, Vec::new());
    for (name, wanted) in &expected {
        let wanted: Vec<&str> = wanted.as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
        let found = lines(&message(&data().join(name)));
        match (found == wanted, listed.contains_key(name.as_str())) {
            (true, true) => wrong.push(format!("{name} is listed in not-passed.toml and passes; take it out")),
            (true, false) => right += 1,
            (false, true) => {}
            (false, false) => wrong.push(format!("{name}: {found:?}, not {wanted:?}")),
        }
    }
    println!("{right} of {} samples of bounces and complaints are read right", expected.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(right * 100 >= expected.len() * RIGHT_PERCENT, "{right} of {}", expected.len());
    assert_eq!(samples(), expected.keys().cloned().collect::<Vec<_>>(), "every sample is in the table");
}

fn samples() -> Vec<String> {
    let mut samples = Vec::new();
    for folder in ["arf", "dsn/flufl-bounce", "dsn/kumomta"] {
        for entry in std::fs::read_dir(data().join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !name.ends_with(".md") {
                samples.push(format!("{folder}/{name}"));
            }
        }
    }
    samples.sort();
    samples
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_read_without_harm(content in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..2000)) {
        let _ = (read::read(&content, true), read::read(&content, false));
    }

    /// Made of what the readers look for.
    #[test]
    fn any_pieces_of_reports_are_read_without_harm(pieces in proptest::collection::vec(0..PIECES.len(), 0..60)) {
        let content: String = pieces.into_iter().map(|piece| PIECES[piece]).collect();
        if let Some(Report::Bounce(bounce)) = read::read(content.as_bytes(), true) {
            proptest::prop_assert!(!bounce.recipients.is_empty() && bounce.recipients.len() <= read::RECIPIENTS_MAX);
        }
    }

    /// A sample with bytes changed or cut away.
    #[test]
    fn damaged_samples_are_read_without_harm(
        sample in 0..124usize,
        changes in proptest::collection::vec((0..20_000usize, proptest::prelude::any::<u8>()), 0..20),
        length in 0..20_000usize,
    ) {
        let samples = samples();
        let mut content = message(&data().join(&samples[sample % samples.len()]));
        for (at, byte) in changes {
            if let Some(place) = content.get_mut(at) {
                *place = byte;
            }
        }
        content.truncate(length);
        let _ = read::read(&content, true);
    }
}

const PIECES: [&str; 24] = [
    "From: MAILER-DAEMON@b.example\r\n",
    "To: c@d.example\r\n",
    "Content-Type: multipart/report; boundary=x\r\n",
    "Content-Type: message/delivery-status\r\n",
    "Content-Type: message/feedback-report\r\n",
    "Content-Type: message/rfc822\r\n",
    "Content-Type: text/html\r\n",
    "Content-Transfer-Encoding: base64\r\n",
    "X-Failed-Recipients: a@b.example, \u{e9}@b.example\r\n",
    "\r\n",
    "--x\r\n",
    "--x--\r\n",
    "Final-Recipient: rfc822; a@b.example\r\n",
    "Original-Recipient: <a@b.example\r\n",
    "Action: failed\r\n",
    "Status: 5.1.1\r\n",
    "Diagnostic-Code: smtp; 550 \u{20ac} 5.\r\n",
    "Feedback-Type: abuse\r\n",
    "Message-ID: <a@b>\r\n",
    "could not be delivered\r\n",
    "<a@b.example>: \u{e9}",
    "@@@<a@b.example@c.example",
    "smtp=@x.y",
    "recipient: ",
];

/// A header is not a reason to believe that there is a report behind it.
#[test]
fn what_is_no_bounce_is_none() {
    let cases: [(&str, &[u8]); 5] = [
        ("a letter", b"From: ann@b.example\r\nSubject: hello\r\n\r\nHow are you?\r\n"),
        ("nothing", b""),
        (
            "an answering machine",
            b"From: ann@b.example\r\nSubject: Automatic reply: offer\r\nAuto-Submitted: auto-replied\r\n\r\n\
              I am away. Mail to bob@b.example is read; yours could not be delivered to me.\r\n",
        ),
        (
            "a read receipt",
            b"Content-Type: multipart/report; report-type=disposition-notification; boundary=x\r\n\r\n--x\r\n\r\n\
              could not be delivered to a@b.example\r\n--x\r\nContent-Type: message/disposition-notification\r\n\r\n\
              Final-Recipient: rfc822; a@b.example\r\n--x--\r\n",
        ),
        (
            "a report of authentication failures",
            b"Content-Type: multipart/report; report-type=feedback-report; boundary=x\r\n\r\n--x\r\nContent-Type: \
              message/feedback-report\r\n\r\nFeedback-Type: auth-failure\r\n--x--\r\n",
        ),
    ];
    for (name, content) in cases {
        assert_eq!(read::read(content, true), None, "{name}");
    }
    let words = b"From: MAILER-DAEMON@b.example\r\nSubject: failure\r\n\r\n<a@b.example>:\r\nno such user\r\n";
    assert!(read::read(words, true).is_some());
    assert_eq!(read::read(words, false), None, "words alone count from the null sender only");
}

#[test]
fn a_report_tells_which_message_came_back() {
    let content = b"Content-Type: multipart/report; boundary=x\r\nIn-Reply-To: <third@a>\r\n\r\n--x\r\nContent-Type: \
        message/delivery-status\r\n\r\nReporting-MTA: dns; mx.b.example\r\nOriginal-Envelope-Id: env-1\r\n\r\n\
        Final-Recipient: rfc822; b@b.example\r\nAction: failed\r\nStatus: 5.1.1\r\nRemote-MTA: dns; mx.c.example\r\n\
        --x\r\nContent-Type: text/rfc822-headers\r\n\r\nReturn-Path: <bounce+t@a.example>\r\nMessage-ID: <first@a>\r\n\
        X-Microsoft-Original-Message-ID: <second@a>\r\n--x--\r\n";
    let Some(Report::Bounce(bounce)) = read::read(content, false) else { panic!("not read") };
    assert_eq!(bounce.original.message_ids, ["first@a", "second@a", "third@a"]);
    assert_eq!(bounce.original.envelope_id.as_deref(), Some("env-1"));
    assert_eq!(bounce.original.return_path.unwrap().to_string(), "bounce+t@a.example");
    assert_eq!(bounce.recipients[0].host, "mx.c.example");
}
