//! Rules of RFC 6376, RFC 8301 and RFC 8463 one by one, with signatures that are right but for one thing.

use postrider::config::CheckMode;

use super::maker::Maker;
use super::{Judge, NOW, Zone, dkim, outcome, results};

const MESSAGE: &str = "From: a@signer.test\r\nTo: b@own.test\r\nSubject: Hello\r\n\r\nOne line.\r\n\r\nAnother. \t\r\n";
const TAGS: &str = "v=1; a=rsa-sha256; c=relaxed/relaxed; d=signer.test; s=rsa; h=From:To:Subject";

fn zone(maker: &Maker) -> Zone {
    Zone::new()
        .txt("rsa._domainkey.signer.test", &maker.record("rsa"))
        .txt("ed._domainkey.signer.test", &maker.record("ed"))
        .txt("_dmarc.signer.test", "v=DMARC1; p=reject")
}

#[tokio::test]
async fn what_a_signature_may_say_and_what_not() {
    let maker = Maker::new();
    let judge = Judge::new(zone(&maker)).await;
    let with = |from: &str, to: &str| {
        assert!(TAGS.contains(from), "{from}");
        TAGS.replace(from, to)
    };
    let also = |tag: &str| format!("{TAGS}; {tag}");
    for (tags, result, why) in [
        (TAGS.to_owned(), "pass", ""),
        (with("c=relaxed/relaxed; ", ""), "pass", ""),
        (with("relaxed/relaxed", "relaxed"), "pass", ""),
        (with("relaxed/relaxed", "simple/relaxed"), "pass", ""),
        (with("relaxed/relaxed", "relaxed/loose"), "neutral", "signature cannot be read"),
        (with("rsa-sha256", "ed25519-sha256").replace("s=rsa", "s=ed"), "pass", ""),
        (with("rsa-sha256", "rsa-sha1"), "policy", "rsa-sha1 is not to be trusted"),
        (with("rsa-sha256", "rsa-sha512"), "neutral", "signature cannot be read"),
        (with("s=rsa", "s=ed"), "permerror", "key does not fit the algorithm"),
        (with("v=1; ", ""), "neutral", "signature cannot be read"),
        (with("v=1", "v=1.0"), "neutral", "signature cannot be read"),
        (with("h=From:To:Subject", "h=To:Subject"), "policy", "From is not signed"),
        (with("h=From:To:Subject", "h=From : TO:\r\n\tsubject:Cc:From"), "pass", ""),
        (with("h=From:To:Subject", "h=From::To"), "neutral", "signature cannot be read"),
        (with("h=From:To:Subject", "h=From:To:Sub ject"), "neutral", "signature cannot be read"),
        (with("; h=From:To:Subject", ""), "neutral", "signature cannot be read"),
        (also("l=5"), "policy", "l= leaves a part of the body unsigned"),
        (also("l=0"), "policy", "l= leaves a part of the body unsigned"),
        (also("l=x"), "neutral", "signature cannot be read"),
        (also("l=99999"), "policy", "l= leaves a part of the body unsigned"),
        (also("s=rsa"), "neutral", "signature cannot be read"),
        (also("z=From:a|To:b; r=y; atps=x.test; odd=1"), "pass", ""),
        (also("i=@signer.test"), "pass", ""),
        (also("i=a@b@Signer.Test"), "pass", ""),
        (also("i=a@deep.sub.signer.test"), "pass", ""),
        (also("i=@xsigner.test"), "permerror", "i= is not within d="),
        (also("i=@test"), "neutral", "signature cannot be read"),
        (also("i=signer.test"), "neutral", "signature cannot be read"),
        (also("q=dns/txt"), "pass", ""),
        (also("q=dns/other:dns/txt"), "pass", ""),
        (also("q=http"), "neutral", "key cannot be asked for in DNS"),
        (also(&format!("t={}; x={}", NOW - 9, NOW + 9)), "pass", ""),
        (also(&format!("x={}", NOW - 1)), "fail", "signature has expired"),
        (also(&format!("t={NOW}; x={NOW}")), "neutral", "signature cannot be read"),
        (also("x=never"), "neutral", "signature cannot be read"),
        (also("x=99999999999999999999999999"), "pass", ""),
        (with("d=signer.test", "d=signer.test."), "neutral", "v=, d= or s= is not legal"),
        (with("d=signer.test", "d=Signer.Test"), "pass", ""),
        (with("d=signer.test", "d=test"), "neutral", "v=, d= or s= is not legal"),
        (with("d=signer.test", "d=[192.0.2.1]"), "neutral", "v=, d= or s= is not legal"),
        (with("d=signer.test", "d=signer.test(x)"), "neutral", "v=, d= or s= is not legal"),
        (with("d=signer.test", "d=evil.test\0.signer.test"), "neutral", "signature cannot be read"),
        (with("s=rsa", "s=rsa.x..y"), "neutral", "v=, d= or s= is not legal"),
        (with("s=rsa", "s=rsa\0"), "neutral", "signature cannot be read"),
        (with("s=rsa", "s=(rsa)"), "neutral", "v=, d= or s= is not legal"),
        (with("s=rsa", "s=other"), "permerror", "no key for signature"),
    ] {
        let checked = judge.check(maker.signed(&tags, MESSAGE)).await;
        let found = results(&checked);
        assert_eq!(dkim(&checked), [result], "{tags}: {found}");
        assert!(why.is_empty() || found.contains(&format!("dkim={result} ({why})")), "{tags}: {found}");
        // What does not pass does not count for DMARC.
        assert_eq!(outcome(&checked), if result == "pass" { "" } else { "550" }, "{tags}: {found}");
    }
}

#[tokio::test]
async fn what_a_key_may_say_and_what_not() {
    let maker = Maker::new();
    let p = maker.public("rsa");
    for (record, result, why) in [
        (format!("p={p}"), "pass", ""),
        (format!("v=DKIM1; p={p};"), "pass", ""),
        (format!(" v = DKIM1 ;\tk= rsa; n=a note; p= {p} ; "), "pass", ""),
        (format!("v=DKIM1; h=sha1:sha256; s=tlsrpt:email; t=x; p={p}"), "pass", ""),
        (format!("v=DKIM1; h=sha1; p={p}"), "policy", "key is not for sha256"),
        (format!("v=DKIM1; s=other; p={p}"), "policy", "key is not for mail"),
        (format!("v=DKIM1; s=tlsrpt; p={p}"), "policy", "key is not for mail"),
        (format!("v=DKIM1; t=s; p={p}"), "permerror", "i= is not d= itself, as its key demands"),
        (format!("v=DKIM1; k=ed25519; p={}", maker.public("ed")), "permerror", "key does not fit the algorithm"),
        (format!("v=DKIM1; k=dsa; p={p}"), "permerror", "key cannot be used"),
        (format!("v=DKIM2; p={p}"), "permerror", "key cannot be used"),
        (format!("v=dkim1; p={p}"), "permerror", "key cannot be used"),
        (format!("k=rsa; v=DKIM1; p={p}"), "permerror", "key cannot be used"),
        (format!("v=DKIM1; p={p}; p={p}"), "permerror", "key cannot be used"),
        (format!("v=DKIM1; p={}", &p[..40]), "permerror", "key cannot be used"),
        (format!("v=DKIM1; p=!{p}"), "permerror", "key cannot be used"),
        ("v=DKIM1; k=rsa".to_owned(), "permerror", "key cannot be used"),
        ("v=DKIM1; k=rsa; p=".to_owned(), "permerror", "key revoked"),
        ("v=spf1 -all".to_owned(), "permerror", "key cannot be used"),
        (maker_of_another_key(), "fail", "signature did not verify"),
    ] {
        let judge = Judge::new(Zone::new().txt("rsa._domainkey.signer.test", &record)).await;
        let checked = judge.check(maker.signed(&format!("{TAGS}; i=@sub.signer.test"), MESSAGE)).await;
        let found = results(&checked);
        assert_eq!(dkim(&checked), [result], "{record}: {found}");
        assert!(why.is_empty() || found.contains(&format!("dkim={result} ({why})")), "{record}: {found}");
    }
    // Of several records one is enough.
    let name = "rsa._domainkey.signer.test";
    let several =
        Zone::new().txt(name, "v=DKIM1; p=").txt(name, &maker_of_another_key()).txt(name, &maker.record("rsa"));
    assert_eq!(Judge::new(several).await.dkim(maker.signed(TAGS, MESSAGE)).await, ["pass"]);
}

fn maker_of_another_key() -> String {
    Maker::new().record("rsa")
}

/// RFC 6376 3.6.1: t=y. What does not hold then is as good as not signed.
#[tokio::test]
async fn a_domain_may_try_dkim_out() {
    let maker = Maker::new();
    let record = format!("{}; t=y:s", maker.record("rsa"));
    let mut judge = Judge::new(Zone::new().txt("rsa._domainkey.signer.test", &record)).await;
    judge.config.checks.dkim = CheckMode::Reject;
    let good = maker.signed(TAGS, MESSAGE);
    let bad = good.replace("One line", "Two lines");
    assert_eq!(judge.dkim(good.clone()).await, ["pass"]);
    let checked = judge.check(bad.clone()).await;
    assert_eq!((dkim(&checked), outcome(&checked)), (vec!["neutral".to_owned()], String::new()));
    assert!(results(&checked).contains("dkim=neutral (body hash did not verify)"), "{}", results(&checked));
    // Beside one that is not for trying out it saves nothing.
    let also = maker.signed(&TAGS.replace("s=rsa", "s=none"), &bad);
    assert_eq!(outcome(&judge.check(also).await), "550");
}

#[tokio::test]
async fn trouble_with_dns_is_neither_good_nor_bad() {
    let maker = Maker::new();
    let zone = Zone::new().fail("_domainkey.signer.test").txt("_dmarc.signer.test", "v=DMARC1; p=reject");
    let judge = Judge::new(zone).await;
    let checked = judge.check(maker.signed(TAGS, MESSAGE)).await;
    assert_eq!((dkim(&checked), outcome(&checked)), (vec!["temperror".to_owned()], "451".to_owned()));
}

/// Lines at the end that hold only blanks do not count in the relaxed form, and count in the simple one.
#[tokio::test]
async fn blanks_at_the_end_of_a_body_are_hashed_right() {
    let maker = Maker::new();
    let judge = Judge::new(zone(&maker)).await;
    let header = MESSAGE.split_once("\r\n\r\n").unwrap().0;
    for body in ["x\r\n \t\r\n  \r\n", " \r\n\t\r\n", "", "\r\n\r\n", "x", "x \r\n\r\n y\t z \r\n \r\n \r\n", " x\r\n"]
    {
        for form in ["relaxed/relaxed", "simple/simple", "relaxed/simple"] {
            let message = maker.signed(&TAGS.replace("relaxed/relaxed", form), &format!("{header}\r\n\r\n{body}"));
            assert_eq!(judge.dkim(message.clone()).await, ["pass"], "{form} {body:?}");
            let wanted = if form == "relaxed/relaxed" { "pass" } else { "fail" };
            let more = format!("{message}{}  \r\n", if body.is_empty() || body.ends_with('\n') { "" } else { "\r\n" });
            assert_eq!(judge.dkim(more).await, [wanted], "{form} {body:?}");
        }
    }
}

#[tokio::test]
async fn four_hundred_signatures_cost_ten_look_ups() {
    let maker = Maker::new();
    let mut judge = Judge::new(zone(&maker)).await;
    judge.config.checks.dmarc = postrider::config::DmarcMode::Off;
    let field = maker.field("DKIM-Signature", TAGS, MESSAGE);
    let fields: String = (0..400).map(|n| field.replace("s=rsa", &format!("s=s{n}"))).collect();
    let checked = judge.check(format!("{fields}{MESSAGE}")).await;
    assert_eq!(dkim(&checked), vec!["permerror"; 10]);
    assert_eq!(judge.server.queries(), 10);
    // Those that cannot pass cost none.
    for wrong in ["l=1", "s=again", "a=rsa-sha1"] {
        let fields = fields.replace("v=1; ", &format!("v=1; {wrong}; "));
        judge.check(format!("{fields}{MESSAGE}")).await;
    }
    let unsigned = fields.replace("h=From:To:Subject", "h=To:Subject");
    judge.check(format!("{unsigned}{MESSAGE}")).await;
    assert_eq!(judge.server.queries(), 10);
}
