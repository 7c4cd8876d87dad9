//! SPF, DKIM and DMARC of inbound messages, against a zone in the same process.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/plain.rs"]
mod plain;
#[path = "support/zone.rs"]
mod zone;

use std::net::IpAddr;

use plain::domain;
use postrider::checks::{Checked, Verdict, check, forged_results};
use postrider::cli::dns;
use postrider::config::{CheckMode, Config, DmarcMode};
use postrider::dns::Resolver;
use postrider::intake::sign::Signer;
use postrider::message::header::Headers;
use postrider::message::{Address, Door, Draft, Envelope, Origin, Peer, ReversePath};
use zone::{Zone, ZoneServer};

const CLIENT: &str = "192.0.2.1";
const BODY: &str = "Hello,\r\n\r\nthis is the body.\r\n";

/// A zone being served, a resolver for it, and a configuration.
struct World {
    server: ZoneServer,
    resolver: Resolver,
    config: Config,
    signer: Signer,
    _folder: tempfile::TempDir,
}

impl World {
    /// The zone gets the DKIM records of own.test, which here is the domain of a sender.
    async fn new(zone: Zone) -> World {
        let folder = tempfile::tempdir().unwrap();
        let config = plain::config(folder.path());
        let signer = Signer::load(&config).unwrap();
        let keys = signer.records(&domain(plain::DOMAIN));
        let server = keys.iter().fold(zone, |zone, (name, text)| zone.txt(name, text)).serve().await;
        let resolver = Resolver::new(&server.config()).unwrap();
        World { server, resolver, config, signer, _folder: folder }
    }

    fn modes(mut self, spf: CheckMode, dkim: CheckMode, dmarc: DmarcMode) -> World {
        self.config.checks.spf = spf;
        self.config.checks.dkim = dkim;
        self.config.checks.dmarc = dmarc;
        self.config.checks.rdns = CheckMode::Off;
        self
    }

    async fn check(&self, mail_from: &str, content: impl Into<Vec<u8>>) -> Checked {
        self.check_from(CLIENT, mail_from, content).await
    }

    async fn check_from(&self, client: &str, mail_from: &str, content: impl Into<Vec<u8>>) -> Checked {
        let mail_from = match mail_from {
            "" => ReversePath::Null,
            text => ReversePath::Address(Address::parse(text).unwrap()),
        };
        let peer = Peer { ip: client.parse::<IpAddr>().unwrap(), helo: "helo.test".to_owned(), esmtp: true, tls: None };
        let draft = Draft {
            envelope: Envelope::new(mail_from, [Address::parse("sales@own.test").unwrap()]),
            content: content.into().into(),
            origin: Origin { door: Door::Mx { listener: "mx".to_owned() }, account: None, peer: Some(peer) },
        };
        let checked = check(&self.resolver, &self.config, &draft).await;
        assert_well_formed(&checked.authentication_results);
        checked
    }

    fn signed(&self, content: &str) -> String {
        let signatures = self.signer.sign(&domain(plain::DOMAIN), content.as_bytes()).unwrap();
        let fields = signatures.iter().map(|s| String::from_utf8(s.field.clone()).unwrap());
        fields.collect::<String>() + content
    }
}

/// Whatever the message held, our field is one field with lines that are short and printable.
fn assert_well_formed(value: &str) {
    for (number, line) in value.split("\r\n").enumerate() {
        assert!(number == 0 || line.starts_with('\t'), "{value:?}");
        assert!(line.chars().all(|c| matches!(c, ' '..='~' | '\t')), "{value:?}");
        // Only a single word may be longer.
        assert!(line.len() <= 78 || !line.trim().contains(' '), "{value:?}");
    }
}

fn message(from: &str) -> String {
    format!("From: {from}\r\nTo: sales@own.test\r\nSubject: Hello\r\n\r\n{BODY}")
}

/// Code and enhanced code of a refusal, the reason of a hold, or nothing.
fn outcome(checked: &Checked) -> String {
    match &checked.verdict {
        Verdict::Accept => String::new(),
        Verdict::Reject(refusal) => format!("{} {}", refusal.reply.code, refusal.reply.status()),
        Verdict::Hold(reason) => format!("hold: {reason}"),
    }
}

fn unfolded(checked: &Checked) -> String {
    checked.authentication_results.replace("\r\n\t", " ")
}

fn dkim_results(checked: &Checked) -> Vec<&str> {
    checked.findings.dkim.iter().map(|d| d.result.as_str()).collect()
}

fn spf_zone() -> Zone {
    Zone::new()
        .txt("pass.test", "v=spf1 ip4:192.0.2.0/24 -all")
        .txt("fail.test", "v=spf1 ip4:198.51.100.1 -all")
        .txt("softfail.test", "v=spf1 ~all")
        .txt("neutral.test", "v=spf1 ?all")
        .txt("none.test", "something else")
        .txt("broken.test", "v=spf1 ip4:not-an-address -all")
        .txt("two.test", "v=spf1 ip4:192.0.2.1 -all")
        .txt("two.test", "v=spf1 +all")
        .txt("helo.test", "v=spf1 a -all")
        .txt("include.test", "v=spf1 include:pass.test -all")
        .a("helo.test", CLIENT)
        .fail("temp.test")
}

#[tokio::test]
async fn spf_results() {
    let world = World::new(spf_zone()).await;
    for (name, result, why) in [
        ("pass.test", "pass", ""),
        ("include.test", "pass", ""),
        ("fail.test", "fail", ""),
        ("softfail.test", "softfail", ""),
        ("neutral.test", "neutral", ""),
        ("none.test", "none", ""),
        ("nowhere.test", "none", ""),
        ("broken.test", "permerror", " (\"ip4\" with something else than an address)"),
        ("two.test", "permerror", " (more than one record)"),
        ("temp.test", "temperror", " (DNS did not answer)"),
    ] {
        let checked = world.check(&format!("a@{name}"), message("a@nothing.test")).await;
        let finding = checked.findings.spf.clone().unwrap();
        assert_eq!((finding.result.as_str(), finding.domain.as_str()), (result, name));
        let expected = format!("{}; spf={result}{why} smtp.mailfrom=a@{name}; dkim=none; dmarc=none ", plain::HOSTNAME);
        assert!(unfolded(&checked).starts_with(&expected), "{}", unfolded(&checked));
        assert_eq!(outcome(&checked), "", "{name}");
    }
}

#[tokio::test]
async fn spf_of_the_null_sender_and_of_mapped_addresses() {
    let world = World::new(spf_zone()).await;
    let checked = world.check("", message("a@nothing.test")).await;
    assert!(unfolded(&checked).contains("spf=pass smtp.helo=helo.test;"), "{}", unfolded(&checked));
    let checked = world.check_from("::ffff:192.0.2.9", "a@pass.test", message("a@nothing.test")).await;
    assert_eq!(checked.findings.spf.unwrap().result, "pass");
}

#[tokio::test]
async fn spf_reject() {
    let world = World::new(spf_zone()).await.modes(CheckMode::Reject, CheckMode::Off, DmarcMode::Off);
    for (name, expected) in [
        ("pass.test", ""),
        ("softfail.test", ""),
        ("broken.test", ""),
        ("fail.test", "550 5.7.23"),
        ("temp.test", "451 4.7.24"),
    ] {
        let checked = world.check(&format!("a@{name}"), message("a@nothing.test")).await;
        assert_eq!(outcome(&checked), expected, "{name}");
        assert!(!checked.authentication_results.contains("dkim"), "off is not shown");
        assert_eq!(checked.findings.dmarc, None);
    }
}

#[tokio::test]
async fn a_refusal_by_spf_shows_the_words_of_the_domain_cleaned() {
    let zone = Zone::new()
        .txt("fail.test", "v=spf1 -all exp=why.%{d}")
        .txt("why.fail.test", "%{c} is none of %{d}'s hosts (%{r}, %{h}).");
    let evil: &[u8] = b"see\r\n250 2.0.0 \x1b[31mok";
    let zone = zone.txt("evil.test", "v=spf1 -all exp=why.%{d}").txt_strings("why.evil.test", &[evil.to_vec()]);
    let world = World::new(zone).await.modes(CheckMode::Reject, CheckMode::Off, DmarcMode::Off);
    let reply = |checked: &Checked| match &checked.verdict {
        Verdict::Reject(refusal) => refusal.reply.text.to_string(),
        other => format!("{other:?}"),
    };
    let checked = world.check("a@fail.test", message("a@nothing.test")).await;
    let own = "SPF: 192.0.2.1 may not send mail for fail.test";
    let theirs = "192.0.2.1 is none of fail.test's hosts (mail.own.test, helo.test).";
    assert_eq!(reply(&checked), format!("{own}\nthe domain fail.test explains:\n{theirs}"));
    // Control characters are no explanation (RFC 7208 6.2, 7.1).
    let checked = world.check("a@evil.test", message("a@nothing.test")).await;
    assert_eq!(reply(&checked), "SPF: 192.0.2.1 may not send mail for evil.test");
}

#[tokio::test]
async fn our_signatures_verify_with_the_printed_records() {
    let world = World::new(Zone::new()).await;
    let printed = dns::records(&world.config, &world.signer, &domain(plain::DOMAIN));
    for (name, text) in world.signer.records(&domain(plain::DOMAIN)) {
        assert!(printed.iter().any(|record| (record.name.as_str(), record.value.as_str()) == (&name, &text)));
    }
    let large = "0123456789 abcdef\r\n".repeat(20_000) + " \r\n";
    for body in [BODY, "", "\r\n", "text \r\n \t\r\n\r\n", "\r\n a  b\r\n \r\nend", &large] {
        let content = world.signed(&format!("From: a@own.test\r\nSubject: x\r\n\ty\r\nTo: b@x.test\r\n\r\n{body}"));
        let checked = world.check("a@own.test", content.clone()).await;
        assert_eq!(dkim_results(&checked), ["pass", "pass"], "{body:?}: {}", unfolded(&checked));
        let start = content.split(" b=").nth(1).unwrap().trim_start();
        let start = start.get(..8).unwrap();
        let results = unfolded(&checked);
        assert!(results.contains("dkim=pass header.d=own.test header.s=pr-rsa header.b="), "{results}");
        assert!(results.contains(start), "{results} {start}");
        for line in content.split("\r\n").filter(|line| line.starts_with('\t')) {
            assert!(line.len() <= 78, "{line}");
        }
    }
}

#[tokio::test]
async fn dkim_failures_are_told_apart() {
    let keys = |zone: Zone| zone.txt("revoked._domainkey.other.test", "v=DKIM1; p=").fail("temp.test");
    let world = World::new(keys(Zone::new())).await;
    let good = world.signed(&message("a@own.test"));
    let first = |content: &str| content.split_inclusive("\r\n").next().unwrap().to_owned();
    assert!(first(&good).contains("d=own.test"));
    for (change, result, words) in [
        (("the body", "a body"), "fail", "(body hash did not verify)"),
        (("Subject: Hello", "Subject: Hullo"), "fail", "(signature did not verify)"),
        (("\r\nTo:", "\r\nFrom: b@own.test\r\nTo:"), "fail", "(signature did not verify)"),
        (("s=pr-", "s=none-"), "permerror", "(no key for signature)"),
        (("d=own.test", "d=temp.test"), "temperror", "(key could not be looked up)"),
        (("c=relaxed/relaxed;", "c=relaxed/relaxed; l=1;"), "policy", "(l= leaves a part of the body unsigned)"),
        (("h=From:From:", "h=To:To:"), "policy", "(From is not signed)"),
        (("-sha256", "-sha512"), "neutral", "(signature cannot be read)"),
        (("v=1;", "v=2;"), "neutral", "(signature cannot be read)"),
        (("d=own.test", "d=own"), "neutral", "(v=, d= or s= is not legal)"),
        (("d=own.test", "d=a(b)\r\n c.test"), "neutral", "(v=, d= or s= is not legal)"),
    ] {
        let checked = world.check("a@own.test", good.replace(change.0, change.1)).await;
        assert_eq!(dkim_results(&checked), [result, result], "{change:?}: {}", unfolded(&checked));
        assert!(unfolded(&checked).contains(&format!("dkim={result} {words}")), "{change:?}: {}", unfolded(&checked));
    }
    let revoked = good.replace("d=own.test", "d=other.test").replace("s=pr-rsa", "s=revoked");
    assert!(unfolded(&world.check("a@own.test", revoked).await).contains("dkim=permerror (key revoked)"));
    let none = world.check("a@own.test", message("a@own.test")).await;
    assert_eq!(dkim_results(&none), ["none"]);
}

#[tokio::test]
async fn dkim_reject_wants_one_good_signature() {
    let world =
        World::new(Zone::new().fail("temp.test")).await.modes(CheckMode::Off, CheckMode::Reject, DmarcMode::Off);
    let good = world.signed(&message("a@own.test"));
    for (content, expected) in [
        (good.clone(), ""),
        (message("a@own.test"), ""),
        (good.replace("s=pr-rsa", "s=none"), ""),
        (good.replace("the body", "a body"), "550 5.7.20"),
        (good.replace("d=own.test", "d=temp.test"), "451 4.4.3"),
    ] {
        assert_eq!(outcome(&world.check("a@own.test", content).await), expected);
    }
}

#[tokio::test]
async fn only_the_first_signatures_cost_look_ups() {
    let world = World::new(Zone::new()).await.modes(CheckMode::Off, CheckMode::Annotate, DmarcMode::Off);
    let good = world.signed(&message("a@own.test"));
    let (field, _) = good.split_once("DKIM-Signature: v=1; a=ed25519").unwrap();
    let mut content = String::new();
    for number in 0..40 {
        content.push_str(&field.replace("s=pr-rsa", &format!("s=s{number}")));
    }
    content.push_str(&good);
    let before = world.server.queries();
    let checked = world.check("a@own.test", content).await;
    assert_eq!(checked.findings.dkim.len(), 10);
    assert_eq!(world.server.queries() - before, 10);
}

#[tokio::test]
async fn keys_that_may_not_be_used() {
    let world = World::new(Zone::new()).await;
    let good = world.signed(&message("a@own.test"));
    let records = world.signer.records(&domain(plain::DOMAIN));
    for (tag, words) in [("h=sha1", "(key is not for sha256)"), ("s=other", "(key is not for mail)")] {
        let zone = records.iter().fold(Zone::new(), |zone, (name, text)| zone.txt(name, &format!("{text}; {tag}")));
        let server = zone.serve().await;
        let world =
            World { resolver: Resolver::new(&server.config()).unwrap(), server, ..World::new(Zone::new()).await };
        let checked = world.check("a@own.test", good.clone()).await;
        assert_eq!(dkim_results(&checked), ["policy", "policy"]);
        assert!(unfolded(&checked).contains(words));
    }
}

/// Signed by dkimpy with keys made by OpenSSL for this test.
#[tokio::test]
async fn short_rsa_keys_count_for_nothing() {
    let content = include_str!("fixtures/dkim-short-keys.eml").replace('\n', "\r\n");
    let zone = include_str!("fixtures/dkim-short-keys.txt").lines().fold(Zone::new(), |zone, line| {
        let (name, text) = line.split_once(' ').unwrap();
        zone.txt(name, text)
    });
    let world = World::new(zone).await;
    let checked = world.check("a@weak.test", content).await;
    let found: Vec<(&str, &str)> =
        checked.findings.dkim.iter().map(|d| (d.selector.as_str(), d.result.as_str())).collect();
    assert_eq!(found, [("k512", "policy"), ("k768", "policy"), ("k1024", "pass")], "{}", unfolded(&checked));
}

#[tokio::test]
async fn dmarc_policies() {
    let zone = Zone::new()
        .txt("own.test", "v=spf1 ip4:192.0.2.1 -all")
        .txt("_dmarc.own.test", "v=DMARC1; p=reject; sp=quarantine")
        .a("sub.own.test", "192.0.2.2")
        .txt("_dmarc.none.test", "v=DMARC1; p=none")
        .txt("_dmarc.quarantine.test", "v=DMARC1; p=quarantine")
        .txt("_dmarc.pct.test", "v=DMARC1; p=reject; pct=0")
        .txt("_dmarc.testing.test", "v=DMARC1; p=reject; t=y")
        .txt("_dmarc.strict.test", "v=DMARC1; p=reject; aspf=s")
        .txt("mail.strict.test", "v=spf1 ip4:192.0.2.1 -all")
        .txt("_dmarc.half.test", "v=DMARC1; p=reject")
        .fail("mail.half.test")
        .fail("_dmarc.temp.test")
        .a("plain.test", "192.0.2.2");
    let world = World::new(zone).await;
    for (mail_from, from, result, expected) in [
        ("a@own.test", "a@own.test", "dmarc=pass (p=reject) header.from=own.test", ""),
        ("a@other.test", "a@own.test", "dmarc=fail (p=reject) header.from=own.test", "550 5.7.1"),
        (
            "a@other.test",
            "a@sub.own.test",
            "dmarc=fail (p=quarantine) header.from=sub.own.test",
            "hold: DMARC quarantine of sub.own.test",
        ),
        ("a@own.test", "a@sub.own.test", "dmarc=pass (p=quarantine) header.from=sub.own.test", ""),
        ("a@other.test", "a@none.test", "dmarc=fail (p=none) header.from=none.test", ""),
        ("a@other.test", "a@quarantine.test", "dmarc=fail (p=quarantine)", "hold: DMARC quarantine of quarantine.test"),
        ("a@other.test", "a@pct.test", "dmarc=fail (p=reject)", "550 5.7.1"),
        ("a@other.test", "a@testing.test", "dmarc=fail (p=quarantine)", "hold: DMARC quarantine of testing.test"),
        ("a@mail.strict.test", "a@strict.test", "dmarc=fail (p=reject)", "550 5.7.1"),
        ("a@mail.half.test", "a@half.test", "dmarc=temperror (p=reject) header.from=half.test", "451 4.4.3"),
        (
            "a@other.test",
            "a@temp.test",
            "dmarc=temperror (policy could not be looked up) header.from=temp.test",
            "451 4.4.3",
        ),
        ("a@other.test", "a@plain.test", "dmarc=none header.from=plain.test", ""),
        ("a@other.test", "a@nowhere.test", "dmarc=none header.from=nowhere.test", ""),
    ] {
        let checked = world.check(mail_from, message(from)).await;
        assert!(unfolded(&checked).contains(result), "{from}: {}", unfolded(&checked));
        assert_eq!(outcome(&checked), expected, "{mail_from} {from}");
    }
    // A signature of the domain is as good as SPF.
    let checked = world.check("a@other.test", world.signed(&message("a@own.test"))).await;
    assert!(unfolded(&checked).contains("dmarc=pass (p=reject)"), "{}", unfolded(&checked));
    assert_eq!(outcome(&checked), "");
    let changed = world.signed(&message("a@own.test")).replace("the body", "a body");
    assert_eq!(outcome(&world.check("a@other.test", changed).await), "550 5.7.1");
}

#[tokio::test]
async fn a_message_has_one_author() {
    let world = World::new(Zone::new().txt("_dmarc.none.test", "v=DMARC1; p=none")).await;
    let with = |fields: &str| format!("{fields}Subject: x\r\n\r\n{BODY}");
    let contents = [
        with(""),
        with("From: a@none.test\r\nFrom: b@none.test\r\n"),
        with("From: a@none.test, b@none.test\r\n"),
        with("From: a@none.test\r\nfrom : a@none.test\r\n"),
        with("From: nobody\r\n"),
        with("From: undisclosed:;\r\n"),
        with("From:\r\n"),
        with("From: a@none.test\0@x.test\r\n"),
        with(&format!("X: {}\r\nFrom: a@none.test\r\n", "x".repeat(300 * 1024))),
    ];
    for content in &contents {
        let checked = world.check("a@none.test", content.clone()).await;
        assert_eq!(outcome(&checked), "550 5.7.1", "{}", unfolded(&checked));
        assert_eq!(checked.findings.dmarc.as_ref().unwrap().result, "permerror");
    }
    let world = world.modes(CheckMode::Annotate, CheckMode::Annotate, DmarcMode::Annotate);
    let checked = world.check("a@none.test", contents[1].clone()).await;
    assert!(unfolded(&checked).ends_with("dmarc=permerror (more than one From field)"), "{}", unfolded(&checked));
    assert_eq!(outcome(&checked), "");
}

#[tokio::test]
async fn everything_off_asks_nothing() {
    let world = World::new(spf_zone()).await.modes(CheckMode::Off, CheckMode::Off, DmarcMode::Off);
    let checked = world.check("a@fail.test", world.signed(&message("a@own.test"))).await;
    assert_eq!(checked.authentication_results, "");
    assert_eq!(checked.verdict, Verdict::Accept);
    assert_eq!(world.server.queries(), 0);
}

#[tokio::test]
async fn the_wire_cannot_write_into_our_field() {
    let world = World::new(Zone::new()).await;
    let good = world.signed(&message("a@own.test"));
    for evil in ["d=x.test\r\n\t(;spf=pass", "d=x.test\0", "d=x.test; s=a\"b", "d=x.test; s=(", "d=x y.test"] {
        let checked = world.check("a@own.test", good.replace("d=own.test", evil)).await;
        assert!(!checked.authentication_results.contains("spf=pass"), "{evil:?}");
    }
    let checked = world.check("\"a; dkim=pass \"@own.test", message("a@own.test")).await;
    assert!(unfolded(&checked).contains("smtp.mailfrom=own.test;"), "{}", unfolded(&checked));
    let long = format!("a@{}.test", ["x".repeat(60), "y".repeat(60)].join("."));
    let checked = world.check_from(CLIENT, "a@own.test", message(&long)).await;
    assert!(checked.authentication_results.contains(&long[2..]));
}

#[test]
fn forged_fields_are_found() {
    let content = b"Authentication-Results: mail.own.test; spf=pass\r\nReceived: x\r\n\
        authentication-results:\r\n (c) MAIL.own.TEST 1; dkim=pass\r\nAuthentication-Results: other.test; spf=pass\r\n\
        Authentication-Results : \"mail.own.test\"; none\r\nX-Authentication-Results: mail.own.test; none\r\n\r\n\
        Authentication-Results: mail.own.test; none\r\n";
    assert_eq!(forged_results(&Headers::parse(content), &domain(plain::HOSTNAME)), [0, 2, 4]);
}
