//! DMARC (RFC 9989): which policy applies, who is aligned with whom, and what trouble with DNS does;
//! against a zone in the same process.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/plain.rs"]
mod plain;
#[path = "support/zone.rs"]
mod zone;

use postrider::checks::{Checked, Verdict, check};
use postrider::config::{CheckMode, Config};
use postrider::dns::Resolver;
use postrider::intake::sign::Signer;
use postrider::message::{Address, Door, Draft, Envelope, Origin, Peer, ReversePath};
use zone::{Zone, ZoneServer};

const SPF: &str = "v=spf1 ip4:192.0.2.1 -all";

struct World {
    server: ZoneServer,
    resolver: Resolver,
    config: Config,
    signer: Signer,
    _folder: tempfile::TempDir,
}

impl World {
    /// own.test signs; its keys are in the zone, too.
    async fn new(zone: Zone) -> World {
        let folder = tempfile::tempdir().unwrap();
        let mut config = plain::config(folder.path());
        config.checks.rdns = CheckMode::Off;
        let signer = Signer::load(&config).unwrap();
        let keys = signer.records(&plain::domain(plain::DOMAIN));
        let server = keys.iter().fold(zone, |zone, (name, text)| zone.txt(name, text)).serve().await;
        let resolver = Resolver::new(&server.config()).unwrap();
        World { server, resolver, config, signer, _folder: folder }
    }

    async fn check(&self, mail_from: &str, content: &str) -> Checked {
        let mail_from = match mail_from {
            "" => ReversePath::Null,
            text => ReversePath::Address(Address::parse(text).unwrap()),
        };
        // No domain, so that nothing is asked about it.
        let peer = Peer { ip: [192, 0, 2, 1].into(), helo: "[192.0.2.1]".to_owned(), esmtp: true, tls: None };
        let draft = Draft {
            envelope: Envelope::new(mail_from, [Address::parse("sales@own.test").unwrap()]),
            content: content.as_bytes().to_vec().into(),
            origin: Origin { door: Door::Mx { listener: "mx".to_owned() }, account: None, peer: Some(peer) },
        };
        check(&self.resolver, &self.config, &draft).await
    }

    /// `result policy code`; the code is that of a refusal, `hold`, or nothing.
    async fn judge(&self, mail_from: &str, from: &str) -> String {
        told(&self.check(mail_from, &message(from)).await)
    }

    fn signed(&self, from: &str) -> String {
        let content = message(from);
        let signatures = self.signer.sign(&plain::domain(plain::DOMAIN), content.as_bytes()).unwrap();
        let fields = signatures.iter().map(|s| String::from_utf8(s.field.clone()).unwrap());
        fields.collect::<String>() + &content
    }
}

fn message(from: &str) -> String {
    format!("From: a@{from}\r\nTo: sales@own.test\r\nSubject: Hello\r\n\r\nHello.\r\n")
}

fn told(checked: &Checked) -> String {
    let dmarc = checked.findings.dmarc.as_ref().unwrap();
    let done = match &checked.verdict {
        Verdict::Accept => String::new(),
        Verdict::Reject(refusal) => refusal.reply.code.to_string(),
        Verdict::Hold(_) => "hold".to_owned(),
    };
    format!("{} {} {done}", dmarc.result, dmarc.policy).trim_end().to_owned()
}

#[tokio::test]
async fn a_name_of_a_hundred_labels_costs_eight_queries() {
    let world = World::new(Zone::new().txt("_dmarc.7.test", "v=DMARC1; p=reject")).await;
    let author = format!("{}3.4.5.6.7.test", "x.".repeat(94));
    assert_eq!(author.split('.').count(), 100);
    assert_eq!(world.judge("", &author).await, "fail reject 550");
    // Besides them one that asks whether the name exists is not needed: sp and np are the same.
    assert_eq!(world.server.queries(), 8);
    let world = World::new(Zone::new()).await;
    assert_eq!(world.judge("", "a.b.c.test").await, "none");
    assert_eq!(world.server.queries(), 4);
}

#[tokio::test]
async fn records_that_do_not_count() {
    let zone = Zone::new()
        .txt("_dmarc.two.test", "v=DMARC1; p=reject")
        .txt("_dmarc.two.test", "v=DMARC1; p=none")
        .txt("_dmarc.beside.test", "something else")
        .txt("_dmarc.beside.test", "v=DMARC1; p=reject")
        .txt("_dmarc.nop.test", "v=DMARC1; rua=mailto:d@nop.test")
        .txt("_dmarc.bare.test", "v=DMARC1")
        .txt("_dmarc.late.test", "p=reject; v=DMARC1")
        .txt("_dmarc.bad.test", "v=DMARC1; p=reject; sp=all")
        .txt("_dmarc.two.above.test", "v=DMARC1; p=none")
        .txt("_dmarc.two.above.test", "v=DMARC1; p=none")
        .txt("_dmarc.above.test", "v=DMARC1; p=quarantine");
    let world = World::new(zone).await;
    for (from, expected) in [
        ("two.test", "none"),
        ("beside.test", "fail reject 550"),
        ("nop.test", "fail none"),
        ("bare.test", "none"),
        ("late.test", "none"),
        ("bad.test", "none"),
        // Two are none, so the walk goes on.
        ("two.above.test", "fail quarantine hold"),
    ] {
        assert_eq!(world.judge("", from).await, expected, "{from}");
    }
}

#[tokio::test]
async fn names_that_do_not_exist_have_a_policy_of_their_own() {
    let zone = Zone::new()
        .txt("_dmarc.org.test", "v=DMARC1; p=none; sp=quarantine; np=reject")
        .a("sub.org.test", "192.0.2.9")
        .a("below.middle.org.test", "192.0.2.9")
        .fail("down.org.test")
        .txt("_dmarc.sp.test", "v=DMARC1; p=none; sp=reject")
        .txt("_dmarc.np.test", "v=DMARC1; p=reject; np=none; t=y")
        .txt("_dmarc.own.np.test", "v=DMARC1; p=quarantine; np=reject");
    let world = World::new(zone).await;
    for (from, expected) in [
        ("org.test", "fail none"),
        ("sub.org.test", "fail quarantine hold"),
        ("gone.org.test", "fail reject 550"),
        // There is nothing at the name itself, but something below it (RFC 8020).
        ("middle.org.test", "fail quarantine hold"),
        ("gone.sp.test", "fail reject 550"),
        ("gone.np.test", "fail none"),
        // The record is the author's own, so what is below it does not matter.
        ("own.np.test", "fail quarantine hold"),
    ] {
        assert_eq!(world.judge("", from).await, expected, "{from}");
    }
    // Its own record cannot be asked for, so nothing is known.
    assert_eq!(world.judge("", "down.org.test").await, "temperror  451");
    // The record can, but not whether the name exists: the strictest counts, and may come again.
    let zone = |zone: Zone| zone.txt("_dmarc.org.test", "v=DMARC1; p=none; sp=none; np=reject");
    let world = World::new(zone(Zone::new()).silent("a.b.org.test")).await;
    let mut config = world.server.config();
    config.timeout = std::time::Duration::from_millis(50);
    let world = World { resolver: Resolver::new(&config).unwrap(), ..world };
    assert!(world.judge("", "a.b.org.test").await.starts_with("temperror"));
}

#[tokio::test]
async fn a_policy_that_is_tried_out_is_one_step_less() {
    let zone = Zone::new()
        .txt("_dmarc.r.test", "v=DMARC1; p=reject; t=y")
        .txt("_dmarc.q.test", "v=DMARC1; p=quarantine; t=y")
        .txt("_dmarc.n.test", "v=DMARC1; p=reject; t=n")
        .txt("_dmarc.sub.test", "v=DMARC1; p=none; sp=reject; t=y");
    let world = World::new(zone).await;
    for (from, expected) in [
        ("r.test", "fail quarantine hold"),
        ("q.test", "fail none"),
        ("n.test", "fail reject 550"),
        ("a.sub.test", "fail quarantine hold"),
    ] {
        assert_eq!(world.judge("", from).await, expected, "{from}");
    }
}

/// Rows: who MAIL FROM is (and SPF passes for), who From is, and what comes of it.
#[tokio::test]
async fn organizations_begin_below_public_suffixes() {
    let zone =
        ["bank.test", "shop.bank.test", "mail.shop.bank.test", "other.bank.test", "part.big.test", "a.part.big.test"]
            .into_iter()
            .chain(["big.test", "a.b.deep.test", "b.deep.test", "deep.test", "c.deep.test", "sub.co.test", "co.test"])
            .fold(Zone::new(), |zone, name| zone.txt(name, SPF))
            .txt("_dmarc.bank.test", "v=DMARC1; psd=y; p=reject; sp=quarantine; np=reject")
            .txt("_dmarc.big.test", "v=DMARC1; p=quarantine")
            .txt("_dmarc.part.big.test", "v=DMARC1; p=reject; psd=n")
            .txt("_dmarc.deep.test", "v=DMARC1; p=none")
            .txt("_dmarc.b.deep.test", "v=DMARC1; p=reject");
    let world = World::new(zone).await;
    for (mail_from, from, expected) in [
        // Of its own organization, which begins one below the suffix; the suffix' policy is its.
        ("shop.bank.test", "shop.bank.test", "pass quarantine"),
        ("mail.shop.bank.test", "shop.bank.test", "pass quarantine"),
        ("shop.bank.test", "mail.shop.bank.test", "pass quarantine"),
        ("other.bank.test", "shop.bank.test", "fail quarantine hold"),
        ("bank.test", "shop.bank.test", "fail quarantine hold"),
        ("other.bank.test", "gone.bank.test", "fail reject 550"),
        // The suffix as an author is held to its own policy; those below it are not it.
        ("bank.test", "bank.test", "pass reject"),
        ("shop.bank.test", "bank.test", "fail reject 550"),
        // An organization within another.
        ("a.part.big.test", "part.big.test", "pass reject"),
        ("part.big.test", "a.part.big.test", "pass reject"),
        ("big.test", "part.big.test", "fail reject 550"),
        ("part.big.test", "big.test", "fail quarantine hold"),
        // The record of the fewest labels is the organization's; what is between is for its own name only.
        ("c.deep.test", "a.b.deep.test", "pass none"),
        ("other.bank.test", "a.b.deep.test", "fail none"),
        ("other.bank.test", "b.deep.test", "fail reject 550"),
        ("deep.test", "b.deep.test", "pass reject"),
        // Where nobody has a record, nothing applies.
        ("sub.co.test", "co.test", "none"),
    ] {
        assert_eq!(world.judge(&format!("x@{mail_from}"), from).await, expected, "{mail_from} {from}");
    }
}

#[tokio::test]
async fn aligned_is_the_same_organization_or_in_strict_mode_the_same_domain() {
    for (tags, strict_spf, strict_dkim) in [
        ("", false, false),
        ("; aspf=r; adkim=s", false, true),
        ("; aspf=s; adkim=r", true, false),
        ("; aspf=s; adkim=s", true, true),
    ] {
        let names = ["own.test", "sub.own.test", "else.own.test", "far.test", "n.test", "own.test.far.test"];
        let zone = names.into_iter().fold(Zone::new(), |zone, name| zone.txt(name, SPF));
        let record = format!("v=DMARC1; p=reject{tags}");
        let zone = ["own.test", "sub.own.test", "far.test"]
            .into_iter()
            .fold(zone, |zone, name| zone.txt(&format!("_dmarc.{name}"), &record));
        let world = World::new(zone).await;
        // SPF for the first, From of the second: the same domain, the same organization, or neither.
        for (mail_from, from, relation) in [
            ("own.test", "own.test", "same"),
            ("OWN.test", "own.TEST", "same"),
            ("sub.own.test", "own.test", "organization"),
            ("own.test", "sub.own.test", "organization"),
            ("else.own.test", "sub.own.test", "organization"),
            ("far.test", "own.test", "neither"),
            ("n.test", "own.test", "neither"),
            ("own.test.far.test", "own.test", "neither"),
        ] {
            let aligned = relation == "same" || relation == "organization" && !strict_spf;
            let expected = if aligned { "pass reject" } else { "fail reject 550" };
            assert_eq!(world.judge(&format!("x@{mail_from}"), from).await, expected, "{tags} {mail_from} {from}");
        }
        // DKIM of own.test.
        for (from, relation) in [("own.test", "same"), ("sub.own.test", "organization"), ("far.test", "neither")] {
            let aligned = relation == "same" || relation == "organization" && !strict_dkim;
            let expected = if aligned { "pass reject" } else { "fail reject 550" };
            assert_eq!(told(&world.check("", &world.signed(from)).await), expected, "{tags} {from}");
        }
    }
}

#[tokio::test]
async fn signatures_of_a_part_prove_nothing() {
    let world = World::new(Zone::new().txt("_dmarc.own.test", "v=DMARC1; p=reject")).await;
    let content = world.signed("own.test");
    assert_eq!(told(&world.check("", &content).await), "pass reject");
    let partly = content.replace("c=relaxed/relaxed;", "c=relaxed/relaxed; l=3;");
    assert_ne!(partly, content);
    assert_eq!(told(&world.check("", &partly).await), "fail reject 550");
}

#[tokio::test]
async fn trouble_with_dns_is_never_a_pass_and_never_final() {
    let zone = Zone::new()
        .fail("_dmarc.down.test")
        .txt("_dmarc.up.test", "v=DMARC1; p=reject")
        .txt("up.test", SPF)
        .fail("mail.up.test")
        .txt("_dmarc.lax.test", "v=DMARC1; p=none")
        .fail("mail.lax.test")
        .txt("_dmarc.strict.test", "v=DMARC1; p=reject; aspf=s")
        .fail("mail.strict.test")
        .txt("down.test", SPF)
        .fail("far.test");
    let world = World::new(zone).await;
    for (mail_from, from, expected) in [
        ("far.example", "down.test", "temperror  451"),
        ("down.test", "down.test", "temperror  451"),
        ("mail.up.test", "up.test", "temperror reject 451"),
        ("mail.lax.test", "lax.test", "temperror none"),
        // What could not help does not matter.
        ("mail.strict.test", "strict.test", "fail reject 550"),
        ("far.test", "up.test", "fail reject 550"),
        ("up.test", "up.test", "pass reject"),
    ] {
        assert_eq!(world.judge(&format!("x@{mail_from}"), from).await, expected, "{mail_from} {from}");
    }
}

/// `tests/data/dmarc`: messages of another implementation's tests.
#[tokio::test]
async fn messages_of_authheaders() {
    let key = include_str!("data/dmarc/test.txt").trim();
    let zone = Zone::new()
        .txt("test._domainkey.example.com", key)
        .txt("_dmarc.example.com", "v=DMARC1; p=quarantine")
        .txt("_dmarc.example.net", "v=DMARC1; p=reject; sp=none")
        .a("sub.example.net", "192.0.2.9")
        .txt("test._domainkey.example.biz", key)
        .txt("_dmarc.example.biz", "v=DMARC1; p=none; sp=quarantine; np=reject; adkim=s")
        .a("sub.example.biz", "192.0.2.9")
        .txt("_dmarc.nop.example.org", "v=DMARC1; rua=mailto:d@nop.example.org")
        .txt("_dmarc.bad.example.com", "v=DMARC1; p=invalid")
        .txt("_dmarc.gov", "v=DMARC1; p=none; sp=reject; psd=y")
        .a("example.gov", "192.0.2.9");
    let world = World::new(zone).await;
    for (name, expected) in [
        ("test.message", "fail quarantine hold"),
        ("test.message_signed", "pass quarantine"),
        // Signed with bare LF in it: dkimpy, too, takes the signature for a bad one in mail.
        ("testcomma.message", "fail quarantine hold"),
        ("test.message_multi", "permerror  550"),
        ("test.message_multi2", "permerror  550"),
        ("test.nofrom.message", "permerror  550"),
        ("test.message_sub", "fail none"),
        ("test.message_np1", "fail quarantine hold"),
        ("test.message_np2", "fail reject 550"),
        ("test_nop.message", "fail none"),
        ("test.bad.message", "none"),
        ("test.gov.message", "fail reject 550"),
    ] {
        let path = format!("{}/tests/data/dmarc/{name}.eml", env!("CARGO_MANIFEST_DIR"));
        let content = std::fs::read_to_string(path).unwrap().replace('\n', "\r\n");
        let checked = world.check("", &content).await;
        assert_eq!(told(&checked), expected, "{name}: {}", checked.authentication_results);
    }
}
