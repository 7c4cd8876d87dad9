//! Who a message is from: what SPF, DKIM and DMARC do with records that are made to cost, or to be misread.

use std::time::Duration;

use postrider::checks::spf::{EXPLANATION_BYTES_MAX, Outcome, QUERIES_MAX, Query, SpfResult, check_host};
use postrider::checks::{Checked, Verdict, check};
use postrider::config::CheckMode;
use postrider::dns::Resolver;
use postrider::message::{Address, Door, Draft, Envelope, Origin, Peer, ReversePath};
use tokio::time::Instant;

use crate::ids;
use crate::support::zone::{Zone, ZoneServer};

const CLIENT: &str = "192.0.2.1";

async fn spf_of(zone: Zone, local: &str) -> (Outcome, usize) {
    let server = zone.serve().await;
    let resolver = Resolver::new(&server.config()).unwrap();
    let query = Query {
        client: CLIENT.parse().unwrap(),
        local,
        domain: "t.test",
        helo: "h.test",
        receiver: "own.test",
        now: 0,
    };
    // RFC 7208 4.6.4.
    let outcome = check_host(&resolver, &query, Instant::now() + Duration::from_secs(20)).await;
    (outcome, server.queries())
}

async fn is(zone: Zone, wanted: SpfResult) {
    let (outcome, queries) = spf_of(zone, "a").await;
    assert_eq!(outcome.result, wanted, "{outcome:?}");
    assert!(queries <= QUERIES_MAX, "{queries}");
}

fn record(text: &str) -> Zone {
    Zone::new().txt("t.test", text)
}

async fn spf(id: &str) {
    use SpfResult::{Fail, Pass, PermError};
    match id {
        "s01" => {
            let chain = (0..11).fold(record("v=spf1 include:c0.test -all"), |zone, n| {
                zone.txt(&format!("c{n}.test"), &format!("v=spf1 include:c{}.test -all", n + 1))
            });
            is(chain.txt("c11.test", "v=spf1 +all"), PermError).await;
        }
        "s02" => {
            is(record("v=spf1 include:t.test -all"), PermError).await;
            is(record("v=spf1 include:u.test").txt("u.test", "v=spf1 include:t.test"), PermError).await;
        }
        "s03" => is(record("v=spf1 redirect=u.test").txt("u.test", "v=spf1 redirect=t.test"), PermError).await,
        "s04" => is(record("v=spf1 a:n1.test a:n2.test a:n3.test ip4:192.0.2.1 -all"), PermError).await,
        "s05" => {
            is((0..11).fold(record("v=spf1 mx -all"), |zone, n| zone.mx("t.test", n, &format!("m{n}.test"))), PermError)
                .await
        }
        "s06" => {
            let many =
                (0..1500).fold(record("v=spf1 ptr:far.test -all"), |zone, n| zone.ptr(CLIENT, &format!("n{n}.test")));
            is(many, Fail).await;
        }
        "s07" => {
            // As long and as odd as a local part may be: one question, whose labels are all legal.
            let local = "a.b+c=d!#$%&'*/?^_`{|}~..".repeat(3)[..64].to_owned();
            let (outcome, queries) = spf_of(record("v=spf1 exists:%{i}.%{l}.%{s}.x.test -all"), &local).await;
            assert!(queries <= 2 && matches!(outcome.result, Fail | PermError), "{outcome:?}");
        }
        "s08" => {
            is(record("v=spf1 exists:%{d99999999999}.x.test -all"), PermError).await;
            is(record("v=spf1 exists:%{d0r}.x.test -all"), PermError).await;
            // Legal by RFC 7208 7.1: the last label, turned round.
            is(record("v=spf1 exists:%{d1r}.x.test -all").a("t.x.test", "127.0.0.2"), Pass).await;
        }
        "s09" => is(record("v=spf1 +all").txt("t.test", "v=spf1 -all"), PermError).await,
        "s10" => {
            let large = record(&format!("v=spf1 {} -all", "ip4:198.51.100.1 ".repeat(3_000)));
            is(large, Fail).await;
            let strings: Vec<Vec<u8>> =
                std::iter::once(b"v=spf1 ".to_vec()).chain((0..300).map(|_| b"ip4:198.51.100.1 ".to_vec())).collect();
            is(Zone::new().txt_strings("t.test", &strings), SpfResult::Neutral).await;
            is(Zone::new().txt_strings("t.test", &[b"v=spf1 \xff +all".to_vec()]), PermError).await;
        }
        "s11" => {
            let zone = record("v=spf1 exp=e.test -all").txt("e.test", "no, %{c}\r\n250 fine\u{1b}[2J");
            let (outcome, _) = spf_of(zone, "a").await;
            let said = outcome.explanation.map(|explanation| explanation.text).unwrap_or_default();
            assert!(outcome.result == Fail && said.len() <= EXPLANATION_BYTES_MAX, "{said}");
            assert!(!said.chars().any(char::is_control), "{said:?}");
        }
        "s12" => {
            let names: String = (0..10).map(|n| format!("include:i{n}.test ")).collect();
            let zone = (0..10).fold(record(&format!("v=spf1 {names}-all")), |zone, n| {
                let hosts = |zone: Zone| {
                    (0..10).fold(zone, |zone, m| {
                        let host = format!("m{m}.i{n}.test");
                        (0..10).fold(zone.mx(&format!("i{n}.test"), m, &host), |zone, a| {
                            zone.a(&host, &format!("198.51.{n}.{a}"))
                        })
                    })
                };
                hosts(zone.txt(&format!("i{n}.test"), &format!("v=spf1 {}-all", "mx ".repeat(10))))
            });
            let begun = std::time::Instant::now();
            is(zone, PermError).await;
            assert!(begun.elapsed() < Duration::from_secs(20));
        }
        // A pass for everybody; what it is worth is up to DMARC and to who reads the results.
        "s13" => {
            for text in ["ip4:0.0.0.0/0", "+all"] {
                is(record(&format!("v=spf1 {text}")), Pass).await;
            }
            is(record("v=spf1 ip6:::/0 -all"), Fail).await;
        }
        "s14" => {
            for bad in [
                "ip4:1.2.3.4/33",
                "ip4:1.2.3.4/-1",
                "ip4:1.2.3.4/00",
                "ip4:1.2.3.4/032",
                "ip4:1.2.3.4/32x",
                "ip4:1.2.3.256",
            ] {
                is(record(&format!("v=spf1 {bad} +all")), PermError).await;
            }
        }
        other => panic!("what is {other}?"),
    }
}

struct World {
    server: ZoneServer,
    resolver: Resolver,
    config: postrider::config::Config,
}

impl World {
    async fn new(zone: Zone) -> World {
        let text = "hostname = \"mail.own.test\"\ndata_dir = \"/nonexistent\"\n[domains.\"own.test\"]\n";
        let mut config = postrider::config::parse("test.toml", text).unwrap();
        config.checks.rdns = CheckMode::Off;
        let server = zone.serve().await;
        let resolver = Resolver::new(&server.config()).unwrap();
        World { server, resolver, config }
    }

    async fn check(&self, fields: &str, from: &str) -> Checked {
        let peer = Peer { ip: CLIENT.parse().unwrap(), helo: "[192.0.2.1]".to_owned(), esmtp: true, tls: None };
        let content = format!("{fields}From: a@{from}\r\nSubject: x\r\n\r\nx\r\n");
        let draft = Draft {
            envelope: Envelope::new(ReversePath::Null, [Address::parse("sales@own.test").unwrap()]),
            content: content.into_bytes().into(),
            origin: Origin { door: Door::Mx { listener: "mx".to_owned() }, account: None, peer: Some(peer) },
        };
        check(&self.resolver, &self.config, &draft).await
    }

    /// Result and policy of DMARC, and what is done.
    async fn dmarc(&self, from: &str) -> String {
        let checked = self.check("", from).await;
        let done = match &checked.verdict {
            Verdict::Accept => String::new(),
            Verdict::Reject(refusal) => refusal.reply.code.to_string(),
            Verdict::Hold(_) => "hold".to_owned(),
        };
        let finding = checked.findings.dmarc.unwrap();
        format!("{} {} {done}", finding.result, finding.policy).trim_end().to_owned()
    }
}

async fn dmarc_is(zone: Zone, from: &str, wanted: &str) {
    assert_eq!(World::new(zone).await.dmarc(from).await, wanted, "{from}");
}

async fn dkim_dmarc(id: &str) {
    let policy = |text: &str| Zone::new().txt("_dmarc.t.test", text);
    match id {
        "k01" => {
            let fields: String = (0..400)
                .map(|n| format!("DKIM-Signature: v=1; a=rsa-sha256; d=d{n}.test; s=s; h=from; bh=YWJj; b=YWJj\r\n"))
                .collect();
            let world = World::new(policy("v=DMARC1; p=none")).await;
            let checked = world.check(&fields, "t.test").await;
            assert!(checked.findings.dkim.len() <= 10, "{}", checked.findings.dkim.len());
            // Ten keys, and the policy.
            assert!(world.server.queries() <= 10 + 10, "{}", world.server.queries());
        }
        "k02" => {
            let zone = (0..100).fold(policy("v=DMARC1; p=none").cname("s._domainkey.t.test", "c0.test"), |zone, n| {
                zone.cname(&format!("c{n}.test"), &format!("c{}.test", n + 1))
            });
            let world = World::new(zone).await;
            let field = "DKIM-Signature: v=1; a=rsa-sha256; d=t.test; s=s; h=from; bh=YWJj; b=YWJj\r\n";
            let checked = world.check(field, "t.test").await;
            assert!(checked.findings.dkim.iter().all(|finding| finding.result != "pass"));
            assert!(world.server.queries() <= 40, "{}", world.server.queries());
        }
        "k03" => {
            let author = format!("{}t.test", "x.".repeat(98));
            assert_eq!(author.split('.').count(), 100);
            let world = World::new(policy("v=DMARC1; p=reject")).await;
            assert_eq!(world.dmarc(&author).await, "fail reject 550");
            assert_eq!(world.server.queries(), 8);
        }
        "k04" => {
            dmarc_is(policy("v=DMARC1; p=reject").txt("_dmarc.t.test", "v=DMARC1; p=reject"), "t.test", "none").await
        }
        "k05" => dmarc_is(policy("v=DMARC1; rua=mailto:d@t.test"), "t.test", "fail none").await,
        // To whom reports go, and how many of them, is decided where they are sent: see `dmarc_report`, which asks
        // for leave at `_report._dmarc` and takes no more than four addresses. Here: no harm to the check.
        "k06" => {
            dmarc_is(policy("v=DMARC1; p=reject; rua=mailto:victim@other.test"), "t.test", "fail reject 550").await
        }
        "k07" => {
            let many = (0..1000).map(|n| format!("mailto:r{n}@t.test")).collect::<Vec<_>>().join(",");
            dmarc_is(policy(&format!("v=DMARC1; p=reject; rua={many}")), "t.test", "fail reject 550").await;
        }
        "k08" => {
            for (text, from, wanted) in [
                ("v=DMARC1; p=none; sp=reject", "there.t.test", "fail reject 550"),
                ("v=DMARC1; p=none; np=reject", "nobody.t.test", "fail reject 550"),
                ("v=DMARC1; p=reject; t=y", "t.test", "fail quarantine hold"),
                ("v=DMARC1; p=reject; psd=n", "t.test", "fail reject 550"),
            ] {
                dmarc_is(policy(text).a("there.t.test", CLIENT), from, wanted).await;
            }
            // Of a public suffix: its policy is for names that do not exist below it, too.
            dmarc_is(policy("v=DMARC1; p=none; np=reject; psd=y"), "nobody.t.test", "fail reject 550").await;
        }
        "k09" => {
            let world = World::new(Zone::new().fail("_dmarc.t.test").a("t.test", CLIENT)).await;
            let told = world.dmarc("t.test").await;
            assert!(told.starts_with("temperror") && !told.ends_with("550"), "{told}");
        }
        other => panic!("what is {other}?"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_trap_in_spf() {
    for id in ids("spf", 14) {
        spf(&id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_trap_in_dkim_and_dmarc() {
    for id in ids("dkim_dmarc", 9) {
        dkim_dmarc(&id).await;
    }
}
