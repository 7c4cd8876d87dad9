//! ARC chains: which hold, which do not, what they cost, and what those that are trusted may say.

use postrider::message::Domain;

use super::maker::Maker;
use super::{Judge, Zone, arc, outcome, results};

const MESSAGE: &str = "From: a@author.test\r\nTo: list@own.test\r\nSubject: Hello\r\n\r\nOne line.\r\n";
const PASSED: &str = "mx.one.test; spf=pass smtp.mailfrom=x@author.test; dmarc=pass (p=reject) header.from=author.test";
const FAILED: &str = "mx.two.test; arc=pass; dmarc=fail (p=reject) header.from=author.test";

/// Keys of one.test, two.test and so on; author.test wants what fails to be rejected.
fn zone(maker: &Maker) -> Zone {
    let domains = ["one.test", "two.test", "sub.two.test", "three.test"];
    let zone = Zone::new().txt("_dmarc.author.test", "v=DMARC1; p=reject").fail("down.test");
    domains.iter().fold(zone, |zone, domain| {
        let zone = zone.txt(&format!("rsa._domainkey.{domain}"), &maker.record("rsa"));
        zone.txt(&format!("ed._domainkey.{domain}"), &maker.record("ed"))
    })
}

fn trusting(mut judge: Judge, sealers: &[&str]) -> Judge {
    judge.config.checks.trusted_sealers = sealers.iter().map(|name| Domain::parse(name).unwrap()).collect();
    judge
}

#[tokio::test]
async fn a_chain_holds_if_every_seal_does() {
    let maker = Maker::new();
    let judge = Judge::new(zone(&maker)).await;
    let one = maker.sealed("one.test", "none", PASSED, MESSAGE);
    let two = maker.sealed("two.test", "pass", FAILED, &one);
    let three = maker.sealed("three.test", "pass", FAILED, &two);
    for (message, next) in [(MESSAGE, 1), (&one, 2), (&two, 3), (&three, 4)] {
        let checked = judge.check(message).await;
        assert_eq!(arc(&checked), if next == 1 { "none" } else { "pass" }, "{}", results(&checked));
        assert_eq!(checked.next_seal, Some(next));
        let shown = results(&checked).contains("arc=pass header.oldest-pass=0 smtp.remote-ip=192.0.2.1;");
        assert_eq!(shown, next > 1, "{}", results(&checked));
    }
    let sealers = judge.check(three.clone()).await.findings.arc.unwrap().sealers;
    assert_eq!(sealers, ["one.test", "two.test", "three.test"]);

    // A list that changes the subject, and seals what it has made of it.
    let changed = maker.sealed("three.test", "pass", FAILED, &two.replace("Subject: Hello", "Subject: [list] Hello"));
    assert!(results(&judge.check(changed.clone()).await).contains("arc=pass header.oldest-pass=3 "));
    let changed = maker.sealed("two.test", "pass", FAILED, &changed);
    assert!(results(&judge.check(changed).await).contains("arc=pass header.oldest-pass=3 "));

    // Ed25519 (RFC 8463) seals as well.
    let tags = "i=1; a=ed25519-sha256; d=one.test; s=ed";
    let ed =
        maker.sealed_with(&format!("{tags}; c=relaxed/simple; h=From"), &format!("{tags}; cv=none"), PASSED, MESSAGE);
    assert_eq!(arc(&judge.check(ed).await), "pass");
}

#[tokio::test]
async fn a_chain_that_is_broken_fails_and_is_not_gone_on_with() {
    let maker = Maker::new();
    let judge = Judge::new(zone(&maker)).await;
    let one = maker.sealed("one.test", "none", PASSED, MESSAGE);
    let two = maker.sealed("two.test", "pass", FAILED, &one);
    let tags = |message: &str, seal: &str| {
        let message = format!("i=1; a=rsa-sha256; c=relaxed/relaxed; d=one.test; s=rsa; {message}");
        maker.sealed_with(&message, &format!("i=1; a=rsa-sha256; d=one.test; s=rsa; {seal}"), PASSED, MESSAGE)
    };
    assert_eq!(arc(&judge.check(tags("h=From", "cv=none")).await), "pass");
    for (message, why) in [
        (two.replace("One line", "Two lines"), "body hash did not verify"),
        (two.replace("Subject: Hello", "Subject: Hallo"), "signature did not verify"),
        // What an older set says is sealed by all newer ones.
        (two.replace("dmarc=pass", "dmarc=none"), "a seal did not verify"),
        (two.replace("mx.two.test", "mx.2.test"), "a seal did not verify"),
        (two.replacen("d=two.test", "d=nokey.test", 1), "no key for signature"),
        (two.replacen("d=two.test", "d=test", 1), "v=, d= or s= is not legal"),
        (
            two.replacen("ARC-Seal: i=2; a=rsa-sha256; cv=pass", "ARC-Seal: i=2; a=rsa-sha256; cv=none", 1),
            "the states of the seals do not fit",
        ),
        (two.replacen("cv=pass", "cv=fail", 1), "sealed as failed"),
        (two.replacen("i=2; a", "i=3; a", 1), "a set is not complete"),
        (two.replacen("ARC-Seal: i=2", "X-Seal: i=2", 1), "a set is not complete"),
        (
            two.replacen("ARC-Authentication-Results: i=2", "ARC-Authentication-Results: i=1", 1),
            "a set has a field twice",
        ),
        (
            format!("ARC-Seal: i=1; a=rsa-sha256; cv=none; d=one.test; s=rsa; b=AAAA\r\n{MESSAGE}"),
            "a set is not complete",
        ),
        (tags("h=From", "cv=pass"), "the states of the seals do not fit"),
        (tags("h=From", "cv=none; h=From"), "a seal has h="),
        (tags("h=From:ARC-Seal", "cv=none"), "a seal is signed by what it seals"),
        (tags("h=Subject", "cv=none"), "From is not signed"),
        (tags("h=From; l=3", "cv=none"), "l= leaves a part of the body unsigned"),
        (tags("h=From; x=1", "cv=none"), "signature has expired"),
        (tags("h=From", "cv=none; cv=none"), "a field cannot be read"),
        (tags("h=From", "cv=none; t=now"), "a field cannot be read"),
        (tags("h=From; t=", "cv=none"), "signature cannot be read"),
        (one.replace("Results: i=1;", "Results: i=1"), "a field cannot be read"),
        (one.replace("Results: i=1; mx.one.test;", "Results: mx.one.test; i=1;"), "a field cannot be read"),
        // Without c= the form is the simple one, as for DKIM (RFC 6376 3.5).
        (tags("h=From", "cv=none").replace("c=relaxed/relaxed; ", ""), "signature did not verify"),
        (tags("h=From", "cv=none").replace("rsa-sha256; c", "rsa-sha1; c"), "rsa-sha1 is not to be trusted"),
    ] {
        let checked = judge.check(message.clone()).await;
        let found = results(&checked);
        assert_eq!(arc(&checked), "fail", "{why}: {found}");
        assert!(found.contains(&format!("arc=fail ({why}) smtp.remote-ip=192.0.2.1;")), "{why}: {found}");
        assert_eq!(checked.next_seal, None, "{why}");
        assert!(checked.findings.arc.unwrap().sealers.is_empty());
    }
}

#[tokio::test]
async fn only_whole_chains_of_fifty_cost_look_ups() {
    let maker = Maker::new();
    let mut judge = Judge::new(zone(&maker)).await;
    judge.config.checks.dmarc = postrider::config::DmarcMode::Off;
    let mut message = MESSAGE.to_owned();
    for number in 1..=50 {
        message = maker.sealed("one.test", if number == 1 { "none" } else { "pass" }, PASSED, &message);
    }
    let more = maker.sealed("one.test", "pass", PASSED, &message);
    let gap = message.replace("ARC-Seal: i=7;", "X-Seal: i=7;");
    let states = message.replace("ARC-Seal: i=7; a=rsa-sha256; cv=pass", "ARC-Seal: i=7; a=rsa-sha256; cv=none");
    let twice = message.replacen("From:", "ARC-Message-Signature: i=7; a=rsa-sha256; b=\r\nFrom:", 1);
    let many = (1..=200).fold(MESSAGE.to_owned(), |message, i| {
        format!("ARC-Seal: i={i}; cv=pass; d=s{i}.test; s=s; a=rsa-sha256; b=AAAA\r\n{message}")
    });
    for message in [more, gap, states, twice, many] {
        assert_eq!(arc(&judge.check(message).await), "fail");
    }
    assert_eq!(judge.server.queries(), 0);
    let checked = judge.check(message).await;
    assert_eq!((arc(&checked).as_str(), checked.next_seal), ("pass", None), "{}", results(&checked));
    assert_eq!(judge.server.queries(), 1, "one key");
}

#[tokio::test]
async fn trouble_with_dns_is_neither_pass_nor_fail() {
    let maker = Maker::new();
    let judge = trusting(Judge::new(zone(&maker)).await, &["down.test"]);
    let message = maker.sealed("down.test", "none", PASSED, MESSAGE);
    let checked = judge.check(message.clone()).await;
    assert_eq!((arc(&checked).as_str(), checked.next_seal), ("temperror", None));
    // Whoever is trusted may have vouched for it: not final. Whoever is not changes nothing.
    assert_eq!(outcome(&checked), "451");
    assert!(!checked.findings.arc.unwrap().overrides_dmarc);
    assert_eq!(outcome(&trusting(judge, &["one.test"]).check(message).await), "550");
}

#[tokio::test]
async fn who_is_trusted_can_vouch_for_an_author() {
    let maker = Maker::new();
    let one = |found: &str| maker.sealed("one.test", "none", found, MESSAGE);
    let chain = maker.sealed("sub.two.test", "pass", FAILED, &one(PASSED));
    let failed_first = maker.sealed("two.test", "pass", PASSED, &one(FAILED));
    let judge = Judge::new(zone(&maker)).await;
    let cases: [(&[&str], &str, Option<&str>); 26] = [
        (&[], &one(PASSED), None),
        (&["one.test"], &one(PASSED), Some("one.test")),
        (&["other.test"], &one(PASSED), None),
        // Only what is below, by whole labels.
        (&["sub.one.test"], &one(PASSED), None),
        (&["ne.test"], &one(PASSED), None),
        // All who came after it, too.
        (&["one.test"], &chain, None),
        (&["two.test"], &chain, None),
        (&["one.test", "two.test"], &chain, Some("one.test")),
        (&["one.test", "sub.two.test"], &chain, Some("one.test")),
        // Who came before does not matter, if somebody trusted saw the author pass later.
        (&["two.test"], &failed_first, Some("two.test")),
        (&["one.test"], &failed_first, None),
        (&["one.test"], &one(FAILED), None),
        // Of this author.
        (&["one.test"], &one("m.test; dmarc=pass header.from=other.test"), None),
        (&["one.test"], &one("m.test; dmarc=pass"), None),
        (&["one.test"], &one("m.test; dmarc=pass header.from=sub.author.test"), None),
        (&["one.test"], &one("m.test; dmarc=pass header.from=Author.TEST"), Some("one.test")),
        (&["one.test"], &one("m.test; dmarc=fail header.from=author.test; dmarc=pass header.from=author.test"), None),
        (&["one.test"], &one("m.test; dmarc=pass header.from=author.test; dmarc=fail header.from=author.test"), None),
        // Without a result of DMARC, by SPF or DKIM of just this domain.
        (&["one.test"], &one("m.test; dkim=pass header.d=author.test"), Some("one.test")),
        (&["one.test"], &one("m.test; dkim=pass header.i=@author.test; dmarc=none"), Some("one.test")),
        (&["one.test"], &one("m.test; spf=pass smtp.mailfrom=x@author.test"), Some("one.test")),
        (&["one.test"], &one("m.test; spf=pass smtp.mailfrom=author.test"), Some("one.test")),
        (&["one.test"], &one("m.test; dkim=pass header.d=sub.author.test; spf=pass smtp.mailfrom=a@test"), None),
        (&["one.test"], &one("m.test; dkim=fail header.d=author.test; dmarc=temperror header.from=author.test"), None),
        (&["one.test"], &one("m.test; spf=pass (dmarc=pass header.from=author.test) smtp.mailfrom=x@evil.test"), None),
        (&["one.test"], &one("m.test; spf=pass reason=\"; dmarc=pass header.from=author.test;\""), None),
    ];
    let mut judge = judge;
    for (trusted, message, by) in cases {
        judge = trusting(judge, trusted);
        let checked = judge.check(message).await;
        let found = results(&checked);
        assert_eq!(outcome(&checked), if by.is_some() { "" } else { "550" }, "{trusted:?} {found}\n{message}");
        assert_eq!(checked.findings.arc.unwrap().overrides_dmarc, by.is_some());
        if let Some(by) = by {
            let shown = format!("(accepted: arc=pass, sealed by {by}) header.from=author.test");
            assert!(found.contains("dmarc=fail (p=reject) ") && found.contains(&shown), "{found}");
        }
    }
    // A chain that does not hold says nothing, whoever has sealed it.
    let judge = trusting(judge, &["one.test", "two.test"]);
    assert_eq!(outcome(&judge.check(chain.replace("One line", "Two lines")).await), "550");
    assert_eq!(outcome(&judge.check(chain.replace("dmarc=fail", "dmarc=pass")).await), "550");
}

#[tokio::test]
async fn off_is_off() {
    let maker = Maker::new();
    let mut judge = trusting(Judge::new(zone(&maker)).await, &["one.test"]);
    judge.config.checks.arc = postrider::config::ArcMode::Off;
    let message = maker.sealed("one.test", "none", PASSED, MESSAGE);
    let checked = judge.check(message.clone()).await;
    assert_eq!((arc(&checked).as_str(), outcome(&checked).as_str()), ("off", "550"));
    assert!(!results(&checked).contains("; arc="), "{}", results(&checked));
    assert_eq!(checked.next_seal, Some(2), "for our own seal it is looked at");
    judge.config.checks.seal_forwards = false;
    assert_eq!(judge.check(message).await.next_seal, None);
}
