//! Our DKIM signatures as another implementation sees them: dkimpy verifies them with the records
//! that `postrider dns --json` prints.
//!
//! `POSTRIDER_TEST_PYTHON` names the Python to use (default: `python3`). Without dkimpy there the test
//! says so and proves nothing; with the variable set it has to be there.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/plain.rs"]
mod plain;

use std::process::Command;

use plain::domain;
use postrider::cli::dns;
use postrider::intake::sign::Signer;
use postrider::intake::sign::life;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/dkim_verify.py");

const HEADER: &str = "From: Shop <shop@own.test>\r\nTo: someone@example.test\r\nSubject: Hello\r\n\
    Date: Sat, 21 Nov 2026 22:26:57 +0000\r\nMessage-ID: <1@own.test>\r\n";

/// What is known to trip DKIM implementations.
fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let with = |more: &str, body: &str| format!("{HEADER}{more}\r\n{body}").into_bytes();
    vec![
        ("plain", with("", "Hello,\r\n\r\nworld.\r\n")),
        ("blank lines at the end", with("", "Hello\r\n\r\n\r\n")),
        ("lines of blanks at the end", with("", "Hello \t\r\n \r\n\t\r\n  \t \r\n")),
        ("blanks without a line end", with("", "Hello\r\n   ")),
        ("no final line end", with("", "Hello")),
        ("lines of blanks inside", with("", " \r\n\r\n \t \r\nHello  \t world \r\n\t\r\nbye\r\n")),
        ("empty body", with("", "")),
        ("body of one line end", with("", "\r\n")),
        ("body of blanks", with("", "  \r\n \t\r\n")),
        ("no body", HEADER.as_bytes().to_vec()),
        (
            "folded fields",
            with(
                "References: <a@own.test>\r\n\t<b@own.test>\r\n   <c@own.test>\r\nReply-To:\r\n x@own.test \r\n",
                "x\r\n",
            ),
        ),
        ("8-bit", with("X-Note: gr\u{fc}n\r\nContent-Type: text/plain; charset=utf-8\r\n", "Gr\u{fc}\u{df}e\r\n")),
        (
            "fields twice",
            with("To: second@example.test\r\nList-Id: <l.own.test>\r\nList-Id: <m.own.test>\r\n", "x\r\n"),
        ),
        ("odd blanks in fields", with("cc:  a@x.test ,\tb@x.test  \r\nSENDER:y@own.test\r\n", ".dot\r\n..\r\n")),
        ("empty field", with("Cc:\r\nIn-Reply-To: \r\n", "x\r\n")),
        ("long lines", with("", &format!("{}\r\n", "0123456789 ".repeat(400)))),
    ]
}

#[test]
fn dkimpy_verifies_both_signatures() {
    let given = std::env::var_os("POSTRIDER_TEST_PYTHON");
    let python = given.clone().unwrap_or_else(|| "python3".into());
    let probe = Command::new(&python).args(["-c", "import dkim, nacl.signing"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        assert!(given.is_none(), "POSTRIDER_TEST_PYTHON is set, but has no dkimpy and pynacl");
        eprintln!("SKIPPED: dkimpy is not installed for {}; nothing was verified", python.display());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = plain::config(folder.path());
    let signer = Signer::load(&config).unwrap();
    let own = domain(plain::DOMAIN);
    let records = folder.path().join("records.json");
    std::fs::write(&records, dns::json_lines(&dns::records(&config, &signer, &own))).unwrap();
    let verify = |content: &[u8]| {
        let file = folder.path().join("message.eml");
        std::fs::write(&file, content).unwrap();
        let output = Command::new(&python).arg(SCRIPT).arg(&file).arg(&records).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    for (name, content) in messages() {
        let mut signed: Vec<u8> = Vec::new();
        for signature in signer.sign(&own, &content).unwrap() {
            signed.extend_from_slice(&signature.field);
        }
        signed.extend_from_slice(&content);
        // On the wire every line ends (RFC 5321 4.1.1.4).
        if !signed.ends_with(b"\r\n") {
            signed.extend_from_slice(b"\r\n");
        }
        let expected = "pass rsa-sha256 pr-rsa\npass ed25519-sha256 pr-ed\n";
        assert_eq!(verify(&signed), (Some(0), expected.to_owned()), "{name}");
        // The judge has to be able to say no: a changed body, and a second From.
        if name == "plain" {
            let changed = String::from_utf8(signed.clone()).unwrap().replace("world", "w0rld");
            assert_eq!(verify(changed.as_bytes()).0, Some(1));
            // No field that a reader sees, or acts on, can be added.
            for field in ["From", "To", "Subject", "Date", "Reply-To", "Cc", "List-Unsubscribe"] {
                let added = [format!("{field}: other@own.test\r\n").as_bytes(), signed.as_slice()].concat();
                assert_eq!(verify(&added).0, Some(1), "{field}");
            }
        }
    }

    // After a rotation, with the records that are printed then.
    life::rotate(&config, &own).unwrap();
    life::change(folder.path(), &own, |lives| Ok(lives.advance(|_| true, None, 1))).unwrap();
    signer.reload(&config).unwrap();
    std::fs::write(&records, dns::json_lines(&dns::records(&config, &signer, &own))).unwrap();
    let (_, content) = messages().remove(0);
    let mut signed: Vec<u8> = signer.sign(&own, &content).unwrap().into_iter().flat_map(|one| one.field).collect();
    signed.extend_from_slice(&content);
    let expected = "pass ed25519-sha256 pr-ed-2\npass rsa-sha256 pr-rsa-2\n";
    assert_eq!(verify(&signed), (Some(0), expected.to_owned()));
}
