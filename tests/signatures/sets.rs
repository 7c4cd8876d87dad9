//! The published sets of messages in tests/data/dkim and tests/data/arc.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Judge, NOW, Zone, arc, assert_passed, crlf, dkim, results};

/// What the sets say of a message: DNS, and the time for which it was made if that counts.
pub struct Case {
    pub name: String,
    pub message: Vec<u8>,
    /// Name and text; no text is trouble (SERVFAIL).
    pub records: Vec<(String, Option<String>)>,
    pub now: u64,
    /// `pass`, `permanent`, `temperror`; for each signature, in order.
    pub dkim: Option<Vec<&'static str>>,
    pub arc: &'static str,
}

impl Case {
    pub fn new(name: String, message: Vec<u8>) -> Case {
        Case { name, message, records: Vec::new(), now: NOW, dkim: None, arc: "none" }
    }

    pub fn zone(&self) -> Zone {
        self.records.iter().fold(Zone::new(), |zone, (name, text)| match text {
            Some(text) => zone.txt(name, text),
            None => zone.fail(name),
        })
    }

    pub fn with(mut self, name: &str, text: &str) -> Case {
        self.records.push((name.to_owned(), Some(text.trim().to_owned())));
        self
    }

    fn wants(mut self, dkim: &[&'static str]) -> Case {
        self.dkim = Some(dkim.to_vec());
        self
    }
}

pub fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(data(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    assert!(!files.is_empty(), "{folder}");
    files
}

fn name_of(set: &str, path: &Path) -> String {
    format!("{set}/{}", path.file_stem().unwrap().to_str().unwrap())
}

/// `name: text`, lines that end in a backslash go on; words for trouble.
fn chasquid() -> Vec<Case> {
    let mut cases = Vec::new();
    for path in files("dkim/chasquid", "msg") {
        let mut case = Case::new(name_of("chasquid", &path), crlf(&std::fs::read(&path).unwrap()));
        let dns = std::fs::read_to_string(path.with_extension("dns")).unwrap_or_default().replace("\\\n", " ");
        for line in dns.lines() {
            let Some((name, text)) = line.split_once(": ") else { continue };
            match text.trim() {
                "TEMPERROR" => case.records.push((name.to_owned(), None)),
                "PERMERROR" => {}
                text => case.records.push((name.to_owned(), Some(text.to_owned()))),
            }
        }
        let word = |state: &str| match state {
            "SUCCESS" => "pass",
            "TEMPFAIL" => "temperror",
            _ => "permanent",
        };
        let wanted = match std::fs::read_to_string(path.with_extension("result")) {
            Ok(text) => {
                let result: serde_json::Value = serde_json::from_str(&text).unwrap();
                let states = result["Results"].as_array().unwrap().iter();
                states.map(|one| word(one["State"].as_str().unwrap())).collect()
            }
            // A message that cannot be read has no signature.
            Err(_) => Vec::new(),
        };
        case.dkim = Some(wanted);
        cases.push(case);
    }
    cases
}

/// Records, an empty line, the message.
fn mail_auth(folder: &str, set: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for path in files(folder, "txt") {
        let text = std::fs::read(&path).unwrap();
        let end = text.windows(2).position(|two| two == b"\n\n").unwrap();
        let mut case = Case::new(name_of(set, &path), crlf(&text[end + 2..]));
        for line in String::from_utf8(text[..end].to_vec()).unwrap().lines() {
            let (name, record) = line.split_once(' ').unwrap();
            case = case.with(name, record);
        }
        cases.push(case);
    }
    cases
}

fn dkimpy() -> Vec<Case> {
    const FOOTBALL: &str = "test._domainkey.football.example.com";
    let read = |name: &str| std::fs::read(data("dkim/dkimpy").join(name)).unwrap();
    let text = |name: &str| String::from_utf8(read(name)).unwrap();
    let case = |name: &str| Case::new(format!("dkimpy/{name}"), crlf(&read(name)));
    let brisbane = "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
    let mut cases = vec![
        case("rfc6376.signed.msg")
            .with("brisbane._domainkey.football.example.com", brisbane)
            .with(FOOTBALL, &text("test.txt"))
            .wants(&["pass", "pass"]),
        case("rfc6376.signed.rsa.msg").with(FOOTBALL, &text("test.txt")).wants(&["pass"]),
        // Another field than was signed.
        case("rfc6376.signed.no_t.msg").with(FOOTBALL, &text("test.txt")).wants(&["permanent"]),
        case("ed25519test2.msg").with("sed._domainkey.test.ex", &text("eximtest.dns")).wants(&["pass"]),
        case("test2.message").wants(&["permanent"]),
        case("message.mbox").wants(&["permanent"]),
        case("test_extra.message").wants(&[]),
        case("test_nofrom.message").wants(&[]),
    ];
    // The same message with records that are no good.
    for (record, wanted) in [
        // Without k=, which means RSA.
        ("test2.txt", "pass"),
        ("badk.txt", "permanent"),
        ("badversion.txt", "permanent"),
        ("test_bad.txt", "permanent"),
        ("test_tlsrpt.txt", "permanent"),
    ] {
        let mut case = case("rfc6376.signed.rsa.msg").with(FOOTBALL, &text(record)).wants(&[wanted]);
        case.name = format!("dkimpy/{record}");
        cases.push(case);
    }
    cases
}

/// All messages of all sets.
pub fn cases() -> Vec<Case> {
    let mut cases = chasquid();
    for mut case in mail_auth("dkim/mail-auth", "mail-auth") {
        // Signed to be good for a day.
        if case.name == "mail-auth/005" {
            case.now = 1_667_843_700;
        }
        let count = String::from_utf8_lossy(&case.message).matches("DKIM-Signature: v=1").count();
        case.dkim = Some(vec!["pass"; count.max(1)]);
        cases.push(case);
    }
    cases.extend(dkimpy());
    for path in files("dkim/kumomta", "eml") {
        // Without their keys.
        let mut case = Case::new(name_of("kumomta", &path), crlf(&std::fs::read(&path).unwrap()));
        case.arc = "fail";
        cases.push(case);
    }
    for mut case in mail_auth("arc/mail-auth", "arc/mail-auth") {
        case.arc = "pass";
        cases.push(case);
    }
    cases
}

fn class(result: &str) -> &'static str {
    match result {
        "pass" => "pass",
        "temperror" => "temperror",
        _ => "permanent",
    }
}

#[tokio::test]
async fn the_published_sets_come_out_as_they_should() {
    let mut outcomes = BTreeMap::new();
    for case in cases() {
        let judge = Judge::new(case.zone()).await;
        let checked = judge.check_at(case.now, case.message.clone()).await;
        let found: Vec<&str> = dkim(&checked).iter().map(|result| class(result)).collect();
        let dkim_fits = case.dkim.as_ref().is_none_or(|wanted| *wanted == found);
        let outcome = match dkim_fits && arc(&checked) == case.arc {
            true => Ok(()),
            false => Err(format!("wanted {:?} and {}, found {}", case.dkim, case.arc, results(&checked))),
        };
        outcomes.insert(case.name, outcome);
    }
    assert!(outcomes.len() > 30, "{}", outcomes.len());
    assert_passed("dkim-arc", &outcomes.into_iter().collect::<Vec<_>>());
}

/// RFC 6376 calls both a PERMFAIL; in RFC 8601 a signature that cannot be read is "neutral". Neither names
/// what it does not hold, and no look-up is made for it.
#[tokio::test]
async fn domains_that_are_none_sign_for_nobody() {
    let judge = Judge::new(Zone::new().txt("_dmarc.victim.example", "v=DMARC1; p=reject")).await;
    for name in ["dkim-d-nul", "dkim-d-tld"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/vectors/header-attacks/{name}.eml"));
        let checked = judge.check(std::fs::read(path).unwrap()).await;
        assert_eq!(dkim(&checked), ["neutral"], "{name}");
        assert_eq!(checked.findings.dkim[0].domain, "");
        assert!(!results(&checked).contains("header.d"), "{}", results(&checked));
        assert_eq!(super::outcome(&checked), "550", "{name}");
    }
}
