//! Delivery to a Maildir: the bytes of a file, what a crash leaves, what is said when it cannot be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use postrider::delivery::maildir::Maildir;
use postrider::delivery::{Body, Job, Outcome};
use postrider::message::{Address, BodyType, Domain, Door, DsnRequest, MessageId, Notify, Origin, ReversePath};
use postrider::queue::record::{Message, Recipient, Route, Status};

const NOW: u64 = 1_795_300_017_000;

fn recipient(address: &str, alias: Option<&str>) -> Recipient {
    Recipient {
        address: Address::parse(address).unwrap(),
        alias: alias.map(|alias| Address::parse(alias).unwrap()),
        route: Route::Target("box".into()),
        notify: Notify::default(),
        original: None,
        status: Status::Waiting { due: 0 },
        attempts: 0,
        last_failure: None,
        delay_notified: false,
        by_hand: None,
        released: None,
    }
}

fn job(chunks: &[&str], recipients: Vec<Recipient>) -> Job {
    let message = Message {
        id: MessageId::first_at(NOW),
        received_at: NOW,
        origin: Origin { door: Door::Mx { listener: "mx".into() }, account: None, peer: None },
        mail_from: ReversePath::Address(Address::parse("bounces@sender.example").unwrap()),
        body_type: BodyType::EightBitMime,
        smtputf8: false,
        dsn: DsnRequest::default(),
        size: 0,
        chunks: 1,
        header_from: None,
        streamed: None,
        message_id: String::new(),
        subject: String::new(),
        findings: None,
        recipients: 1,
        stream: postrider::message::stream::default_name(),
        tls: postrider::message::TlsWish::default(),
        not_before: None,
        answers: None,
    };
    let chunks = chunks.iter().map(|chunk| Bytes::copy_from_slice(chunk.as_bytes())).collect();
    Job { message: Arc::new(message), body: Body::new(chunks), recipients: (0..).zip(recipients).collect() }
}

fn maildir(path: &Path) -> Maildir {
    Maildir::new("box", path, &Domain::parse("mail.example.com").unwrap())
}

fn files(folder: PathBuf) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn reason(outcomes: &[(u32, Outcome)]) -> (&str, &str) {
    match &outcomes[0].1 {
        Outcome::Defer { why, .. } => (&why.status, &why.reason),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_file_is_the_message_with_lf_lines_behind_the_fields_of_delivery() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("sales");
    let mut job = job(
        &["Subject: x\r\nTo: sales@exam", "ple.com\r", "\n\r\nFrom here\r\n.\r\nend\r\n"],
        vec![recipient("sales@example.com", None), recipient("bob@example.com", Some("all@example.com"))],
    );
    let outcomes = maildir(&path).deliver(&job).await;
    let new = files(path.join("new"));
    assert_eq!(new.len(), 2);
    for ((number, outcome), file) in outcomes.iter().zip(&new) {
        let Outcome::Delivered(delivered) = outcome else { panic!("{outcome:?}") };
        assert_eq!(Path::new(&delivered.to), file);
        let name = format!("1795300017.{}_{number}.mail.example.com", job.message.id);
        assert_eq!(file.file_name().unwrap().to_str().unwrap(), name);
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let rest = "Subject: x\nTo: sales@example.com\n\nFrom here\n.\nend\n";
    assert_eq!(
        fs::read_to_string(&new[0]).unwrap(),
        format!("Return-Path: <bounces@sender.example>\nDelivered-To: sales@example.com\n{rest}")
    );
    assert_eq!(
        fs::read_to_string(&new[1]).unwrap(),
        format!(
            "Return-Path: <bounces@sender.example>\nX-Original-To: all@example.com\nDelivered-To: bob@example.com\n{rest}"
        )
    );
    for folder in ["", "tmp", "new", "cur"] {
        let mode = fs::metadata(path.join(folder)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700, "{folder}");
    }
    assert!(files(path.join("tmp")).is_empty());

    let mut message = Message::clone(&job.message);
    message.mail_from = ReversePath::Null;
    message.received_at += 1000;
    job.message = Arc::new(message);
    maildir(&path).deliver(&job).await;
    assert!(fs::read_to_string(&files(path.join("new"))[2]).unwrap().starts_with("Return-Path: <>\n"));
}

#[tokio::test]
async fn an_attempt_repeated_makes_no_copy() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("box");
    let job = job(&["Subject: x\r\n\r\nhello\r\n"], vec![recipient("a@example.com", None)]);
    maildir(&path).deliver(&job).await;
    let first = fs::read(&files(path.join("new"))[0]).unwrap();
    let outcomes = maildir(&path).deliver(&job).await;
    assert!(matches!(outcomes[0].1, Outcome::Delivered(_)));
    let new = files(path.join("new"));
    assert_eq!(new.len(), 1);
    assert_eq!(fs::read(&new[0]).unwrap(), first);
}

#[tokio::test]
async fn what_a_crash_left_in_tmp_does_no_harm() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("box");
    let job = job(&["Subject: x\r\n\r\nhello\r\n"], vec![recipient("a@example.com", None)]);
    maildir(&path).deliver(&job).await;
    let file = files(path.join("new")).remove(0);
    let whole = fs::read(&file).unwrap();
    let left = path.join("tmp").join(file.file_name().unwrap());

    // Half a file of the attempt that the crash ended, and one of somebody else.
    fs::rename(&file, &left).unwrap();
    fs::write(&left, b"Return-Pa").unwrap();
    fs::write(path.join("tmp/other"), b"x").unwrap();
    assert!(matches!(maildir(&path).deliver(&job).await[0].1, Outcome::Delivered(_)));
    assert_eq!(fs::read(&file).unwrap(), whole);
    assert_eq!(files(path.join("tmp")), [path.join("tmp/other")]);

    // A link planted under that name is replaced, never followed.
    fs::remove_file(&file).unwrap();
    let victim = base.path().join("victim");
    fs::write(&victim, b"precious").unwrap();
    symlink(&victim, &left).unwrap();
    assert!(matches!(maildir(&path).deliver(&job).await[0].1, Outcome::Delivered(_)));
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    assert_eq!(fs::read(&file).unwrap(), whole);
    assert!(fs::symlink_metadata(&file).unwrap().is_file());
}

#[tokio::test]
async fn trouble_is_told_with_path_and_remedy_and_tried_again() {
    let base = tempfile::tempdir().unwrap();
    let job = job(&["\r\n"], vec![recipient("a@example.com", None), recipient("b@example.com", None)]);

    let unmounted = base.path().join("not-mounted/box");
    let outcomes = maildir(&unmounted).deliver(&job).await;
    assert_eq!(outcomes.len(), 2);
    let (status, text) = reason(&outcomes);
    assert_eq!(status, "4.3.0");
    assert!(text.contains(unmounted.to_str().unwrap()) && text.contains("targets.box.path"), "{text}");

    let file = base.path().join("file");
    fs::write(&file, b"").unwrap();
    let outcomes = maildir(&file).deliver(&job).await;
    assert!(reason(&outcomes).1.contains("out of the way"), "{outcomes:?}");

    // A folder in the place of the file: nothing is left behind, and the next attempt does it.
    let path = base.path().join("box");
    let name = format!("1795300017.{}_0.mail.example.com", job.message.id);
    fs::create_dir_all(path.join("new").join(&name).join("x")).unwrap();
    let outcomes = maildir(&path).deliver(&job).await;
    assert!(reason(&outcomes).1.contains("rename into"), "{outcomes:?}");
    assert!(matches!(outcomes[1].1, Outcome::Delivered(_)), "{outcomes:?}");
    assert!(files(path.join("tmp")).is_empty());
    fs::remove_dir_all(path.join("new").join(&name)).unwrap();
    assert!(matches!(maildir(&path).deliver(&job).await[0].1, Outcome::Delivered(_)));
}

#[tokio::test]
async fn python_reads_it() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("box");
    let job = job(
        &["Subject: =?utf-8?Q?Gr=C3=BC=C3=9Fe?=\r\n\r\nhello\r\n"],
        vec![recipient("a@example.com", None), recipient("b@example.com", None)],
    );
    maildir(&path).deliver(&job).await;
    let script = "import mailbox, sys\nbox = mailbox.Maildir(sys.argv[1], create=False)\n\
        print(sorted((m['Delivered-To'], m.get_payload(), m.get_subdir()) for m in box))";
    let Ok(python) = std::process::Command::new("python3").arg("-c").arg(script).arg(&path).output() else {
        return eprintln!("SKIPPED: there is no python3 here");
    };
    let read = String::from_utf8_lossy(&python.stdout);
    let expected = "[('a@example.com', 'hello\\n', 'new'), ('b@example.com', 'hello\\n', 'new')]\n";
    assert_eq!(read, expected, "{}", String::from_utf8_lossy(&python.stderr));
}
