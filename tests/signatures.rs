//! DKIM and ARC against the published sets, against rules that others have got wrong, and against dkimpy.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

#[path = "signatures/agreement.rs"]
mod agreement;
#[path = "signatures/chains.rs"]
mod chains;
#[path = "support/maker.rs"]
mod maker;
#[path = "support/plain.rs"]
mod plain;
#[path = "signatures/properties.rs"]
mod properties;
#[path = "signatures/rules.rs"]
mod rules;
#[path = "signatures/sets.rs"]
mod sets;
#[path = "support/zone.rs"]
mod zone;

use postrider::checks::{Checked, Verdict, check_at};
use postrider::config::{CheckMode, Config};
use postrider::dns::Resolver;
use postrider::message::{Address, Door, Draft, Envelope, Origin, Peer, ReversePath};
use zone::{Zone, ZoneServer};

/// November 2026, in seconds.
const NOW: u64 = 1_795_000_000;

/// Somebody who checks messages, and DNS as they see it.
struct Judge {
    server: ZoneServer,
    resolver: Resolver,
    config: Config,
    _folder: tempfile::TempDir,
}

impl Judge {
    async fn new(zone: Zone) -> Judge {
        let folder = tempfile::tempdir().unwrap();
        let mut config = plain::config(folder.path());
        config.checks.spf = CheckMode::Off;
        // No look-ups but those for signatures.
        config.checks.rdns = CheckMode::Off;
        let server = zone.serve().await;
        let resolver = Resolver::new(&server.config()).unwrap();
        Judge { server, resolver, config, _folder: folder }
    }

    async fn check(&self, message: impl Into<Vec<u8>>) -> Checked {
        self.check_at(NOW, message).await
    }

    async fn check_at(&self, now: u64, message: impl Into<Vec<u8>>) -> Checked {
        let peer = Peer { ip: [192, 0, 2, 1].into(), helo: "helo.test".to_owned(), esmtp: true, tls: None };
        let draft = Draft {
            envelope: Envelope::new(ReversePath::Null, [Address::parse("sales@own.test").unwrap()]),
            content: message.into().into(),
            origin: Origin { door: Door::Mx { listener: "mx".to_owned() }, account: None, peer: Some(peer) },
        };
        check_at(&self.resolver, &self.config, &draft, now).await
    }

    async fn dkim(&self, message: impl Into<Vec<u8>>) -> Vec<String> {
        dkim(&self.check(message).await)
    }
}

fn dkim(checked: &Checked) -> Vec<String> {
    let findings = checked.findings.dkim.iter().filter(|finding| finding.result != "none");
    findings.map(|finding| finding.result.clone()).collect()
}

fn arc(checked: &Checked) -> String {
    checked.findings.arc.as_ref().map_or("off".to_owned(), |arc| arc.result.clone())
}

/// Code of a refusal, "hold", or nothing.
fn outcome(checked: &Checked) -> String {
    match &checked.verdict {
        Verdict::Accept => String::new(),
        Verdict::Reject(refusal) => refusal.reply.code.to_string(),
        Verdict::Hold(_) => "hold".to_owned(),
    }
}

fn results(checked: &Checked) -> String {
    checked.authentication_results.replace("\r\n\t", " ")
}

/// Lines as they come over the wire.
fn crlf(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 32);
    for line in text.split_inclusive(|b| *b == b'\n') {
        let line = line.strip_suffix(b"\n").map_or((line, false), |line| (line, true));
        out.extend_from_slice(line.0.strip_suffix(b"\r").unwrap_or(line.0));
        out.extend_from_slice(if line.1 { b"\r\n" } else { b"" });
    }
    out
}

/// The cases of a set that we do not pass, with the reason of each.
fn not_passed(set: &str) -> std::collections::BTreeMap<String, String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/not-passed.toml");
    let all: toml::Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
    let set = all.get(set).and_then(toml::Value::as_table).cloned().unwrap_or_default();
    set.into_iter().map(|(case, reason)| (case, reason.as_str().unwrap().to_owned())).collect()
}

/// Every case passes, or is listed with a reason; and what is listed does not pass.
fn assert_passed(set: &str, outcomes: &[(String, Result<(), String>)]) {
    let listed = not_passed(set);
    let mut wrong = Vec::new();
    for (case, outcome) in outcomes {
        match (outcome, listed.contains_key(case)) {
            (Err(why), false) => wrong.push(format!("{case}: {why}")),
            (Ok(()), true) => wrong.push(format!("{case} passes, but is listed")),
            _ => {}
        }
    }
    for case in listed.keys().filter(|case| !outcomes.iter().any(|(known, _)| known == *case)) {
        wrong.push(format!("{case} is listed, but not there"));
    }
    assert!(wrong.is_empty(), "{set}: {} of {} wrong\n{}", wrong.len(), outcomes.len(), wrong.join("\n"));
    println!("{set}: {} of {} pass", outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).count(), outcomes.len());
}
