//! What holds for every message: a signature holds exactly as long as what it signs is the same in the
//! canonical form. The forms are those of tests/support/maker.rs, written without the server's code.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::maker::{Maker, canonical, fields, relaxed_body, simple_body};
use super::{Judge, Zone};

const MESSAGE: &str = "X-Other: not signed\r\nFrom: Ann <a@signer.test>\r\nTo: b@own.test,\r\n\tc@own.test\r\n\
    Subject:  A  wide \t subject \r\n\r\nOne line.\r\n\r\n  Another.\t \r\n\r\n";
const SIGNED: [&str; 4] = ["from", "to", "subject", "dkim-signature"];

/// All that the signature in front of this message signs, and the signature; none if a line is no field.
fn meant(form: &str, message: &str) -> Option<(Vec<String>, String)> {
    let (header, body) = message.split_once("\r\n\r\n")?;
    let mut meant = Vec::new();
    for field in fields(header) {
        let name = field.split_once(':')?.0.trim_end_matches([' ', '\t']).to_lowercase();
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic()) {
            return None;
        }
        if SIGNED.contains(&name.as_str()) {
            // Inside base64 blanks do not count.
            let (field, base64) = match name.as_str() {
                "dkim-signature" => field.split_once("\r\n b=")?,
                _ => (field.as_str(), ""),
            };
            meant.push(canonical(form, field) + &base64.replace(|c: char| " \t\r\n".contains(c), ""));
        }
    }
    // Of different names in any order.
    meant.sort();
    Some((meant, if form == "relaxed" { relaxed_body(body) } else { simple_body(body) }))
}

/// Runs an async check in a proptest.
fn holds<T: std::fmt::Debug>(
    cases: u32,
    strategy: impl Strategy<Value = T>,
    check: impl AsyncFn(&Judge, &Maker, T) -> Result<(), TestCaseError>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let maker = Maker::new();
    let zone = Zone::new().txt("rsa._domainkey.signer.test", &maker.record("rsa"));
    let judge = runtime.block_on(Judge::new(zone));
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    runner.run(&strategy, |value| runtime.block_on(check(&judge, &maker, value))).unwrap();
}

fn tags(form: &str) -> String {
    format!("v=1; a=rsa-sha256; c={form}/{form}; d=signer.test; s=rsa; h=From:To:Subject:From:Cc")
}

#[test]
fn a_changed_byte_counts_exactly_if_it_is_signed() {
    // CR and LF come and go in pairs, which the other property is about; bytes beyond ASCII would spoil the
    // reference, not the server.
    let byte = prop::sample::select((0u8..128).filter(|byte| !b"\r\n".contains(byte)).collect::<Vec<_>>());
    let strategy = (any::<prop::sample::Index>(), byte, prop::bool::ANY);
    holds(2000, strategy, async |judge, maker, (at, byte, relaxed)| {
        let form = if relaxed { "relaxed" } else { "simple" };
        let message = maker.signed(&tags(form), MESSAGE);
        let places: Vec<usize> = (0..message.len()).filter(|at| !b"\r\n".contains(&message.as_bytes()[*at])).collect();
        let at = *at.get(&places);
        let mut changed = message.clone().into_bytes();
        changed[at] = byte;
        let changed = String::from_utf8(changed).unwrap();
        let result = judge.dkim(changed.clone()).await;
        let passes = result == ["pass"];
        let same = meant(form, &changed).is_some_and(|new| Some(new) == meant(form, &message));
        prop_assert_eq!(passes, same, "{:?} {:?}", result, changed);
        Ok(())
    });
}

/// Blanks where blanks are, folded in any way that a relay may: the relaxed form is the same.
#[test]
fn folding_anew_breaks_no_relaxed_signature() {
    let blanks =
        prop::collection::vec(prop::sample::select(vec![" ", "\t", "  ", "\r\n ", "\r\n\t \t", " \r\n  "]), 40);
    holds(300, (blanks, prop::bool::ANY), async |judge, maker, (blanks, upper)| {
        let message = maker.signed(&tags("relaxed"), MESSAGE);
        let (header, body) = message.split_once("\r\n\r\n").unwrap();
        let mut next = blanks.iter().cycle();
        let mut anew = String::new();
        for field in fields(header) {
            let (name, value) = field.split_once(':').unwrap();
            anew += &if upper { name.to_uppercase() } else { name.to_owned() };
            anew += ":";
            let words: Vec<&str> = value.split([' ', '\t', '\r', '\n']).filter(|word| !word.is_empty()).collect();
            // Where a value begins with a blank or not does not count, either.
            for (number, word) in words.iter().enumerate() {
                anew += if number == 0 && upper { "" } else { next.next().unwrap() };
                anew += word;
            }
            anew += if upper { " \t\r\n" } else { "\r\n" };
        }
        let result = judge.dkim(format!("{anew}\r\n{body}")).await;
        prop_assert_eq!(result, ["pass"], "{}", anew);
        Ok(())
    });
}

/// Bodies of blanks, line ends and text: our hash of them is that of RFC 6376, word by word.
#[test]
fn every_body_is_hashed_as_the_rfc_says() {
    let body = prop::collection::vec(prop::sample::select(vec!["\r\n", " ", "\t", "a", ".x", "  "]), 0..40);
    holds(400, (body, prop::bool::ANY), async |judge, maker, (body, relaxed)| {
        let form = if relaxed { "relaxed" } else { "simple" };
        let message = format!("From: a@signer.test\r\n\r\n{}", body.concat());
        let result = judge.dkim(maker.signed(&tags(form), &message)).await;
        prop_assert_eq!(result, ["pass"], "{:?}", message);
        Ok(())
    });
}

/// Nothing that a field can hold makes trouble, or gets into our own field.
#[test]
fn noise_in_fields_passes_nothing_and_breaks_nothing() {
    let word = prop::sample::select(vec![
        "v=1",
        "a=rsa-sha256",
        "b=AAAA",
        "bh=AAAA",
        "d=signer.test",
        "s=rsa",
        "h=From",
        "i=1",
        "i=2",
        "cv=none",
        "cv=pass",
        "c=relaxed",
        "l=1",
        "t=1",
        "x=2",
        ";",
        ";",
        ";",
        "; ",
        "=",
        " ",
        "\r\n ",
        "(",
        ")",
        "\"",
        "\\",
        "\0",
        "\u{e4}",
        ":",
        "@",
        "dmarc=pass",
    ]);
    let name =
        prop::sample::select(vec!["DKIM-Signature", "ARC-Seal", "ARC-Message-Signature", "ARC-Authentication-Results"]);
    let fields = prop::collection::vec((name, prop::collection::vec(word, 0..16)), 1..7);
    holds(1000, fields, async |judge, _, fields| {
        let fields: String = fields.iter().map(|(name, words)| format!("{name}: {}\r\n", words.concat())).collect();
        let checked = judge.check(format!("{fields}{MESSAGE}")).await;
        let passed = super::dkim(&checked).contains(&"pass".to_owned()) || super::arc(&checked) == "pass";
        prop_assert!(!passed, "{}", fields);
        let lines: Vec<&str> = checked.authentication_results.split("\r\n").collect();
        prop_assert!(lines.iter().skip(1).all(|line| line.starts_with('\t')), "{:?}", lines);
        prop_assert!(lines.iter().all(|line| line.chars().all(|c| matches!(c, ' '..='~' | '\t'))), "{:?}", lines);
        Ok(())
    });
}
