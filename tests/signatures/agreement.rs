//! dkimpy, which shares no code with us, judges the same messages; and each believes the other's ARC seals.
//!
//! `POSTRIDER_TEST_PYTHON` names the Python to use (default: `python3`). Without dkimpy there the tests say
//! so and prove nothing; with the variable set it has to be there. It takes the time from the system, so
//! here we do, too.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use super::maker::Maker;
use super::sets::{self, Case, data};
use super::{Judge, Zone, arc, assert_passed, dkim, results};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/signatures.py");
const MESSAGE: &str =
    "From: a@author.test\r\nTo: list@own.test\r\nSubject:  A  wide\r\n\tsubject\r\n\r\nOne line. \t\r\n \r\n";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// None, loudly, if there is no dkimpy to ask.
fn python() -> Option<std::ffi::OsString> {
    let given = std::env::var_os("POSTRIDER_TEST_PYTHON");
    let python = given.clone().unwrap_or_else(|| "python3".into());
    let probe = Command::new(&python).args(["-c", "import dkim, authres, nacl.signing"]).output();
    if probe.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    assert!(given.is_none(), "POSTRIDER_TEST_PYTHON is set, but has no dkimpy, authres and pynacl");
    eprintln!("SKIPPED: dkimpy is not installed for {}; nothing was compared", python.display());
    None
}

/// What dkimpy says: for each signature whether it holds, and the state of the chain.
fn asked(python: &std::ffi::OsStr, folder: &Path, cases: &[Case]) -> BTreeMap<String, (Vec<bool>, String)> {
    let mut lines = String::new();
    for (number, case) in cases.iter().enumerate() {
        let file = folder.join(format!("{number}.eml"));
        std::fs::write(&file, &case.message).unwrap();
        let records: BTreeMap<&String, &Option<String>> =
            case.records.iter().map(|(name, text)| (name, text)).collect();
        lines += &serde_json::json!({ "name": case.name, "message": file, "records": records }).to_string();
        lines.push('\n');
    }
    let list = folder.join("cases");
    std::fs::write(&list, lines).unwrap();
    let output = Command::new(python).arg(SCRIPT).arg("judge").arg(&list).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut answers = BTreeMap::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let answer: serde_json::Value = serde_json::from_str(line).unwrap();
        let dkim = answer["dkim"].as_array().unwrap().iter().map(|one| one.as_bool().unwrap()).collect();
        let name = answer["name"].as_str().unwrap().to_owned();
        answers.insert(name, (dkim, answer["arc"].as_str().unwrap().to_owned()));
    }
    answers
}

/// Messages beyond the sets: one rule each on which verifiers differ.
fn made(maker: &Maker) -> Vec<Case> {
    let case = |name: &str, record: &str, message: String| {
        let case = Case::new(format!("made/{name}"), message.into_bytes());
        case.with("rsa._domainkey.author.test", record).with("rsa._domainkey.one.test", &maker.record("rsa"))
    };
    let record = maker.record("rsa");
    let tags = "v=1; a=rsa-sha256; c=relaxed/relaxed; d=author.test; s=rsa; h=From:To:Subject:From";
    let signed = |tags: &str| maker.signed(tags, MESSAGE);
    let mut cases = vec![
        case("good", &record, signed(tags)),
        case("simple", &record, signed(&tags.replace("relaxed/relaxed", "simple/simple"))),
        case("body-changed", &record, signed(tags).replace("One line", "Two lines")),
        case("second-from", &record, format!("From: b@other.test\r\n{}", signed(tags))),
        case("revoked", "v=DKIM1; p=", signed(tags)),
        case("other-service", &format!("{record}; s=other"), signed(tags)),
        case("other-hash", &format!("{record}; h=sha1"), signed(tags)),
        case("strict-identity", &format!("{record}; t=s"), signed(&format!("{tags}; i=@sub.author.test"))),
        case("testing", &format!("{record}; t=y"), signed(tags)),
        case("limited", &record, signed(&format!("{tags}; l=3"))),
        case("foreign-identity", &record, signed(&format!("{tags}; i=@other.test"))),
        case("from-not-signed", &record, signed(&tags.replace("h=From:To:Subject:From", "h=To:Subject"))),
        case("tag-twice", &record, signed(&format!("{tags}; s=rsa"))),
        case("expired", &record, signed(&format!("{tags}; x=1000000000"))),
        case("top-level-domain", &record, signed(&tags.replace("author.test", "test"))),
        case("bad-continuation", &record, format!(" x\r\n{}", signed(tags))),
    ];
    let one = maker.sealed("one.test", "none", "one.test; dmarc=pass header.from=author.test", MESSAGE);
    let two = maker.sealed("one.test", "pass", "one.test; arc=pass", &one);
    for (name, message) in [
        ("chain-of-one", one.clone()),
        ("chain-of-two", two.clone()),
        ("chain-body", two.replace("One line", "Two lines")),
        ("chain-older-seal", two.replacen("cv=none", "cv= none ", 1)),
        ("chain-results", two.replace("dmarc=pass", "dmarc=fail")),
        ("chain-gap", two.replacen("ARC-Seal: i=1", "X-Seal: i=1", 1)),
        ("chain-states", two.replacen("cv=pass", "cv=none", 1)),
        ("chain-ended", maker.sealed("one.test", "fail", "one.test; arc=fail", &one)),
        ("chain-default-form", {
            let tags = "i=1; a=rsa-sha256; d=one.test; s=rsa";
            maker.sealed_with(&format!("{tags}; h=From"), &format!("{tags}; cv=none"), "one.test; none", MESSAGE)
        }),
    ] {
        cases.push(case(name, &record, message));
    }
    cases
}

#[tokio::test]
async fn dkimpy_comes_to_the_same_verdicts() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let maker = Maker::new();
    let cases: Vec<Case> = sets::cases().into_iter().chain(made(&maker)).collect();
    let theirs = asked(&python, folder.path(), &cases);
    let mut outcomes = Vec::new();
    let (mut signatures, mut chains) = (0, 0);
    for case in &cases {
        let judge = Judge::new(case.zone()).await;
        let checked = judge.check_at(now(), case.message.clone()).await;
        let ours: Vec<bool> = dkim(&checked).iter().map(|result| result == "pass").collect();
        let (their_dkim, their_arc) = &theirs[&case.name];
        signatures += ours.len();
        chains += usize::from(arc(&checked) != "none");
        let outcome = match (&ours, &arc(&checked)) == (their_dkim, their_arc) {
            true => Ok(()),
            false => Err(format!("dkimpy says {their_dkim:?} and {their_arc}, we say {}", results(&checked))),
        };
        outcomes.push((case.name.clone(), outcome));
    }
    println!("{signatures} signatures and {chains} chains were compared");
    assert_passed("dkimpy", &outcomes);
}

/// dkimpy seals a message, then one that was sealed: we believe both.
#[tokio::test]
async fn we_believe_seals_of_dkimpy() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let keys = data("dkim/dkimpy");
    let record = std::fs::read_to_string(keys.join("2048_testkey_wo_markers.pub.txt")).unwrap();
    let judge = Judge::new(Zone::new().txt("test._domainkey.sealer.test", record.trim())).await;
    let mut message = MESSAGE.to_owned();
    for (number, state) in [(1, "none"), (2, "pass"), (3, "pass")] {
        let results =
            format!("Authentication-Results: mx.sealer.test; arc={state}; spf=pass smtp.mailfrom=a@author.test\r\n");
        let file = folder.path().join("message.eml");
        std::fs::write(&file, format!("{results}{message}")).unwrap();
        let mut command = Command::new(&python);
        command.arg(SCRIPT).arg("seal").arg(&file).arg(keys.join("2048_testkey.key"));
        let output = command.args(["test", "sealer.test", "mx.sealer.test"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        message = String::from_utf8(output.stdout).unwrap() + &message;
        let checked = judge.check_at(now(), message.clone()).await;
        assert_eq!(arc(&checked), "pass", "{}\n{message}", results_of(&checked));
        assert_eq!(checked.next_seal, Some(number + 1));
    }
    let changed = message.replace("One line", "Two lines");
    assert_eq!(arc(&judge.check_at(now(), changed).await), "fail");
}

fn results_of(checked: &postrider::checks::Checked) -> String {
    results(checked)
}
