//! Delivery into files: their bytes and names, what a crash leaves, what is said when it cannot be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod records;
}

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use postrider::config;
use postrider::delivery::file::Files;
use postrider::delivery::{Body, Job, Outcome};
use postrider::message::MessageId;
use support::records::{START, message, recipient};

const BODY: &str = "Subject: x\r\n\r\n.\r\nhello\r\n";

fn job(subject: &str, recipients: &[&str]) -> Job {
    let chunks: Vec<Bytes> = BODY.as_bytes().chunks(9).map(Bytes::copy_from_slice).collect();
    let mut message = message(MessageId::first_at(START), &chunks, recipients.len() as u32);
    message.subject = subject.to_owned();
    let recipients = (0..).zip(recipients.iter().map(|address| recipient(address, 0))).collect();
    Job { message: Arc::new(message), body: Body::new(chunks), recipients }
}

fn files(path: &Path) -> Files {
    let text = format!(
        "hostname = \"mail.example.com\"\ndata_dir = \"/nonexistent\"\n[delivery]\nfile_path = \"{}\"\n",
        path.display()
    );
    Files::new(&config::parse("test.toml", &text).unwrap().delivery.file_path)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn delivered(outcome: &Outcome) -> PathBuf {
    match outcome {
        Outcome::Delivered(delivered) => PathBuf::from(&delivered.to),
        other => panic!("{other:?}"),
    }
}

fn reason(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Defer { why, .. } => &why.reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn each_recipient_gets_a_file_with_envelope_and_message() {
    let base = tempfile::tempdir().unwrap();
    let out = base.path().join("out");
    let job = job("x", &["a@example.com", "b@example.com"]);
    let outcomes = files(&out.join("{date}/{id}.eml")).deliver(&job).await;
    let folder = out.join("2027-01-15");
    let id = job.message.id;
    assert_eq!(names(&folder), [format!("{id}.eml"), format!("{id}~1.eml")]);
    for ((number, outcome), name) in outcomes.iter().zip(["a", "b"]) {
        let file = delivered(outcome);
        assert_eq!(file.parent().unwrap(), folder, "{number}");
        let expected = format!("X-Sender: <>\r\nX-Receiver: <{name}@example.com>\r\n{BODY}");
        assert_eq!(fs::read_to_string(&file).unwrap(), expected);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn a_subject_is_decoded_and_leads_nowhere_else() {
    let base = tempfile::tempdir().unwrap();
    let job = job("=?utf-8?Q?../../=C3=BC/x?=", &["a@example.com"]);
    let path = base.path().join("out/{account}/{recipient_domain}/{time}-{subject}-{id}.eml");
    let outcomes = files(&path).deliver(&job).await;
    let expected = base.path().join(format!("out/_/example.com/08-00-00-.._.._ü_x-{}.eml", job.message.id));
    assert_eq!(delivered(&outcomes[0].1), expected);
    assert!(expected.is_file());
}

#[tokio::test]
async fn an_attempt_repeated_makes_no_copy_and_what_a_crash_left_does_no_harm() {
    let base = tempfile::tempdir().unwrap();
    let (out, job) = (base.path().join("out"), job("x", &["a@example.com"]));
    let files = files(&out.join("{id}.eml"));
    let file = delivered(&files.deliver(&job).await[0].1);
    let whole = fs::read(&file).unwrap();
    let name = file.file_name().unwrap().to_str().unwrap();
    let left = out.join(format!(".{name}.part"));

    // The whole file, and the half one of another try.
    fs::write(&left, b"X-Sen").unwrap();
    assert_eq!(delivered(&files.deliver(&job).await[0].1), file);
    assert_eq!(fs::read(&file).unwrap(), whole);
    assert_eq!(names(&out), [name]);

    // A link planted under that name is replaced, never followed.
    let victim = base.path().join("victim");
    fs::write(&victim, b"precious").unwrap();
    symlink(&victim, &left).unwrap();
    assert_eq!(delivered(&files.deliver(&job).await[0].1), file);
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    assert!(fs::symlink_metadata(&file).unwrap().is_file());
}

#[tokio::test]
async fn a_link_below_the_fixed_part_is_not_followed() {
    let base = tempfile::tempdir().unwrap();
    let (out, elsewhere) = (base.path().join("out"), base.path().join("elsewhere"));
    fs::create_dir(&out).unwrap();
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, out.join("example.com")).unwrap();
    let outcomes = files(&out.join("{recipient_domain}/{id}")).deliver(&job("x", &["a@example.com"])).await;
    assert!(reason(&outcomes[0].1).contains("delivery.file_path"), "{outcomes:?}");
    assert!(names(&elsewhere).is_empty());
}

#[tokio::test]
async fn trouble_is_told_with_path_and_remedy_and_tried_again() {
    let base = tempfile::tempdir().unwrap();
    let job = job("x", &["a@example.com", "b@example.com"]);
    let unmounted = base.path().join("not-mounted/out/{id}");
    let outcomes = files(&unmounted).deliver(&job).await;
    assert_eq!(outcomes.len(), 2);
    let text = reason(&outcomes[1].1);
    assert!(text.contains("not-mounted/out") && text.contains("delivery.file_path"), "{text}");

    // A folder in the place of one file: nothing is left behind, and the other one is written.
    let out = base.path().join("out");
    let id = job.message.id.to_string();
    fs::create_dir_all(out.join(&id).join("x")).unwrap();
    let outcomes = files(&out.join("{id}")).deliver(&job).await;
    assert!(reason(&outcomes[0].1).contains("rename into"), "{outcomes:?}");
    assert_eq!(delivered(&outcomes[1].1), out.join(format!("{id}~1")));
    assert_eq!(names(&out), [id.clone(), format!("{id}~1")]);
}

/// Whatever is filled in, a file lies below the fixed part, in as many folders as were written.
#[tokio::test]
async fn no_value_of_the_attack_set_leads_out_of_the_folder() {
    let set = include_str!("data/fs-attacks/cases.yml");
    let line = set.lines().filter_map(|line| line.trim().strip_prefix("values: ")).next().unwrap();
    let values: Vec<String> = serde_json::from_str(&line.replace("\\0", "\\u0000")).unwrap();
    assert_eq!(values.len(), 24);
    let base = tempfile::tempdir().unwrap();
    let out = base.path().join("out");
    let text = format!(
        "hostname = \"mail.example.com\"\ndata_dir = \"/nonexistent\"\n[targets.store]\nkind = \"file\"\n\
         path = \"{}/{{account}}/{{subject}}/{{subject}}-{{id}}.eml\"\n",
        out.display()
    );
    let config = config::parse("test.toml", &text).unwrap();
    let Some(config::Target::File { path }) = config.targets.get("store") else { panic!("{text}") };
    let files = Files::target("store", path);
    for value in values.iter().map(|value| value.replace("{A*300}", &"A".repeat(300))) {
        let mut job = job(&value, &["a@example.com"]);
        Arc::make_mut(&mut job.message).origin.account = Some(value.clone());
        let outcomes = files.deliver(&job).await;
        let file = delivered(&outcomes[0].1);
        let below: Vec<_> = file.strip_prefix(&out).unwrap().components().collect();
        assert_eq!(below.len(), 3, "{value:?}: {}", file.display());
        let is_plain = |part: &std::path::Component<'_>| {
            let name = part.as_os_str().to_str().unwrap();
            matches!(part, std::path::Component::Normal(_))
                && name.len() <= 255
                && !name.starts_with('.')
                && !name.chars().any(|c| c.is_control() || "\\:".contains(c))
        };
        assert!(below.iter().all(is_plain), "{value:?}: {}", file.display());
        assert_eq!(file.canonicalize().unwrap(), file, "{value:?}");
        assert!(file.is_file());
    }
    assert_eq!(names(base.path()), ["out"]);
}

#[tokio::test]
async fn a_target_is_named_in_its_failures() {
    let base = tempfile::tempdir().unwrap();
    let text = format!(
        "hostname = \"mail.example.com\"\ndata_dir = \"/nonexistent\"\n[targets.store]\nkind = \"file\"\n\
         path = \"{}/missing/out/{{id}}.eml\"\n",
        base.path().display()
    );
    let config = config::parse("test.toml", &text).unwrap();
    let Some(config::Target::File { path }) = config.targets.get("store") else { panic!("{text}") };
    let outcomes = Files::target("store", path).deliver(&job("x", &["a@example.com"])).await;
    assert!(reason(&outcomes[0].1).ends_with("or correct targets.store.path"), "{outcomes:?}");
}
