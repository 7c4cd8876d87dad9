//! Where mail goes: MX, addresses, aliases of names, and answers that are none; and what DANE and MTA-STS make of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use postrider::clock::Clock;
use postrider::config::{Config, Dns};
use postrider::delivery::https::Https;
use postrider::delivery::shelf::Shelf;
use postrider::delivery::smtp::{SmtpTransport, TlsPolicies};
use postrider::delivery::{Body, Job, Outcome};
use postrider::dns::{ADDRESSES_MAX, MX_HOSTS_MAX, MxAnswer, Resolver};
use postrider::message::{Address, Domain, MessageId, ReversePath};
use tokio::net::TcpListener;

use crate::ids;
use crate::support::authority::Authority;
use crate::support::records::{START, message, recipient};
use crate::support::web::{Web, answer};
use crate::support::zone::{Odd, Zone, ZoneServer};

/// A resolver is not waited for longer; two tries.
const DNS_TIME: Duration = Duration::from_millis(300);

fn domain(name: &str) -> Domain {
    Domain::parse(name).unwrap()
}

fn config(port: u16, allow_private: bool) -> Config {
    let text = format!(
        "hostname = \"mail.own.test\"\ndata_dir = \"/nowhere\"\n[domains.\"own.test\"]\n[delivery]\nmx_port = {port}\n\
         allow_private_addresses = {allow_private}\n"
    );
    postrider::config::parse("test.toml", &text).unwrap()
}

fn job(to: &str) -> Job {
    let chunks = vec![Bytes::from_static(b"From: a@own.test\r\n\r\nx\r\n")];
    let mut message = message(MessageId::first_at(START), &chunks, 1);
    message.mail_from = ReversePath::Address(Address::parse("a@own.test").unwrap());
    Job { message: Arc::new(message), body: Body::new(chunks), recipients: vec![(0, recipient(to, 0))] }
}

/// What became of one message to t.test, how many questions that took, and how often our own machine was knocked at.
struct Seen {
    outcome: Outcome,
    queries: usize,
    /// Of them for addresses.
    addresses: usize,
    knocks: usize,
}

impl Seen {
    #[track_caller]
    fn failed(&self, status: &str) -> &str {
        let Outcome::Fail(why) = &self.outcome else { panic!("{:?}", self.outcome) };
        assert!(why.status == status && self.knocks == 0, "{why:?}");
        &why.reason
    }

    #[track_caller]
    fn deferred(&self) -> &str {
        let Outcome::Defer { why, .. } = &self.outcome else { panic!("{:?}", self.outcome) };
        &why.reason
    }
}

async fn resolver(zone: &ZoneServer) -> Resolver {
    Resolver::new(&Dns { nameservers: vec![zone.addr()], timeout: DNS_TIME }).unwrap()
}

async fn deliver(zone: Zone, allow_private: bool) -> Seen {
    deliver_to("one@t.test", zone, allow_private).await
}

/// On every loopback address of the machine somebody counts and hangs up.
async fn deliver_to(to: &str, zone: Zone, allow_private: bool) -> Seen {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, knocks) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let count = knocks.clone();
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let zone = zone.serve().await;
    let transport = SmtpTransport::new(&config(port, allow_private), resolver(&zone).await).unwrap();
    let outcome = transport.deliver(&job(to)).await.remove(0).1;
    transport.close().await;
    Seen { outcome, queries: zone.queries(), addresses: zone.address_queries(), knocks: knocks.load(Ordering::SeqCst) }
}

fn mx(host: &str) -> Zone {
    Zone::new().mx("t.test", 10, host)
}

async fn outbound(id: &str) {
    match id {
        // At once: no address is asked for. (Whether mail from such a domain is taken is left to receivers, RFC 7505 4.2: it
        // is judged by SPF like all other.)
        "o01" => {
            let seen = deliver(Zone::new().null_mx("t.test"), false).await;
            seen.failed("5.1.10");
            assert_eq!(seen.addresses, 0);
        }
        "o02" => {
            let seen =
                deliver(Zone::new().null_mx("t.test").mx("t.test", 10, "mx.t.test").a("mx.t.test", "127.0.0.1"), true)
                    .await;
            assert!(seen.knocks > 0, "{:?}", seen.outcome);
        }
        "o03" => drop(deliver(mx("localhost").a("localhost", "127.0.0.1"), false).await.failed("5.4.6")),
        "o04" => drop(deliver(mx("mx.t.test").a("mx.t.test", "127.0.0.1"), false).await.failed("5.4.6")),
        "o05" => drop(deliver(mx("mx.t.test").aaaa("mx.t.test", "::1"), false).await.failed("5.4.6")),
        "o06" => {
            for ip in [
                "10.0.0.1",
                "172.16.0.1",
                "192.168.1.1",
                "169.254.169.254",
                "100.64.0.1",
                "0.0.0.0",
                "224.0.0.1",
                "255.255.255.255",
                "192.0.2.1",
                "198.18.0.1",
                "240.0.0.1",
            ] {
                assert!(deliver(mx("mx.t.test").a("mx.t.test", ip), false).await.failed("5.4.4").contains(ip));
            }
        }
        "o07" => {
            for ip in [
                "::ffff:127.0.0.1",
                "::127.0.0.1",
                "64:ff9b::7f00:1",
                "2002:7f00:1::",
                "fe80::1",
                "fc00::1",
                "ff02::1",
                "fec0::1",
                "100::1",
                "2001:db8::1",
            ] {
                let seen = deliver(mx("mx.t.test").aaaa("mx.t.test", ip), false).await;
                let Outcome::Fail(why) = &seen.outcome else { panic!("{ip}: {:?}", seen.outcome) };
                assert!(["5.4.4", "5.4.6"].contains(&why.status.as_str()) && seen.knocks == 0, "{ip}: {why:?}");
            }
        }
        "o08" => assert!(deliver(mx("mail.own.test"), true).await.failed("5.4.6").contains("this server")),
        "o09" => {
            let zone = |best| {
                Zone::new().mx("t.test", 20, "mail.own.test").mx("t.test", best, "a.test").mx("t.test", 30, "c.test")
            };
            // The better one is tried, and nobody behind us is when it cannot be reached.
            let alone = deliver(Zone::new().mx("t.test", 10, "a.test").a("a.test", "127.0.0.1"), true).await;
            let seen = deliver(zone(10).a("a.test", "127.0.0.1").a("c.test", "127.0.0.1"), true).await;
            assert_eq!((seen.knocks, seen.queries), (alone.knocks, alone.queries), "{:?}", seen.outcome);
            assert!(seen.knocks > 0 && seen.deferred().contains("a.test"));
            deliver(zone(40).a("a.test", "127.0.0.1").a("c.test", "127.0.0.1"), true).await.failed("5.4.6");
        }
        // Tolerated, as everybody does (RFC 5321 5.1 forbids it to those who publish it).
        "o10" => {
            let seen = deliver(mx("mx.t.test").cname("mx.t.test", "real.test").a("real.test", "127.0.0.1"), true).await;
            assert!(seen.knocks > 0, "{:?}", seen.outcome);
        }
        "o11" | "o12" => {
            let zone = match id {
                "o11" => Zone::new().cname("t.test", "u.test").cname("u.test", "t.test"),
                _ => (0..100).fold(Zone::new().cname("t.test", "c0.test"), |zone, n| {
                    zone.cname(&format!("c{n}.test"), &format!("c{}.test", n + 1))
                }),
            };
            let seen = deliver(zone, true).await;
            assert!(seen.knocks == 0 && seen.queries <= 40, "{} queries: {:?}", seen.queries, seen.outcome);
            assert!(!matches!(seen.outcome, Outcome::Delivered(_)));
        }
        "o13" => drop(deliver(mx("192.0.2.1"), false).await.failed("5.4.4")),
        "o14" | "o15" => bounded(id).await,
        "o16" => {
            let seen = deliver(mx("mx.t.test").mx("t.test", 20, "ok.test").a("ok.test", "127.0.0.1"), true).await;
            assert!(seen.knocks > 0, "{:?}", seen.outcome);
        }
        "o17" => drop(deliver(mx("mx.t.test").fail("mx.t.test"), true).await.deferred()),
        "o18" => {
            for zone in [
                Zone::new().fail("t.test"),
                Zone::new().odd("t.test", Odd::Refused),
                Zone::new().silent("t.test"),
                mx("mx.t.test").odd("t.test", Odd::Truncated),
                mx("mx.t.test").odd("t.test", Odd::WrongId),
                mx("mx.t.test").odd("t.test", Odd::WrongQuestion),
                Zone::new().lame("t.test"),
            ] {
                deliver(zone, true).await.deferred();
            }
            // An empty answer falls to the address.
            let seen = deliver(Zone::new().a("t.test", "127.0.0.1"), true).await;
            assert!(seen.knocks > 0, "{:?}", seen.outcome);
        }
        "o19" => drop(deliver(Zone::new(), true).await.failed("5.1.2")),
        "o20" => assert!(deliver(Zone::new().a("t.test", "127.0.0.1"), true).await.knocks > 0),
        "o21" => lifetimes().await,
        "o22" => names().await,
        "o23" => {
            // Each answer has its time; what is late is asked for later.
            let begun = Instant::now();
            let late = mx("mx.t.test").odd("mx.t.test", Odd::Late(5_000));
            deliver(late, true).await.deferred();
            assert!(begun.elapsed() < 10 * DNS_TIME, "{:?}", begun.elapsed());
            let seen = deliver(mx("mx.t.test").a("mx.t.test", "127.0.0.1").odd("t.test", Odd::Late(1)), true).await;
            assert!(seen.knocks > 0);
        }
        "o24" => rebinding().await,
        other => panic!("what is {other}?"),
    }
}

/// `o14`, `o15`: as many records as an answer holds (65,535 octets), of which a few are looked at.
async fn bounded(id: &str) {
    let zone = match id {
        "o14" => (0..1500).fold(Zone::new(), |zone, n| zone.mx("t.test", n, &format!("m{n}.test"))),
        _ => (0..1500)
            .fold(mx("mx.t.test"), |zone, n| zone.a("mx.t.test", &format!("127.1.{}.{}", n / 250, 1 + n % 250))),
    };
    let server = zone.clone().serve().await;
    let resolver = resolver(&server).await;
    match id {
        "o14" => {
            let Ok(MxAnswer::Hosts(hosts)) = resolver.mx(&domain("t.test")).await else { panic!("no hosts") };
            assert_eq!(hosts.len(), MX_HOSTS_MAX);
        }
        _ => assert_eq!(resolver.addresses(&domain("mx.t.test")).await.unwrap().len(), ADDRESSES_MAX),
    }
    // Five hosts, or two addresses, in a try.
    let seen = deliver(zone, true).await;
    assert!(seen.addresses <= 2 * 5 && seen.queries <= 20 && seen.knocks <= 2, "{} {}", seen.queries, seen.knocks);
}

/// `o21`: nothing is kept for longer than a day, and what lives for no time is asked for again.
async fn lifetimes() {
    for (ttl, asked_again) in [(0, true), (0x7fff_ffff, false), (0x8000_0001, true)] {
        let server = mx("mx.t.test").odd("t.test", Odd::Ttl(ttl)).serve().await;
        let resolver = resolver(&server).await;
        for _ in 0..2 {
            assert!(matches!(resolver.mx(&domain("t.test")).await, Ok(MxAnswer::Hosts(_))), "{ttl}");
        }
        // RFC 2181 8: a TTL with the highest bit is zero. Kept or not, the answer is the same.
        assert!((1..=2).contains(&server.queries()), "{ttl}: {}", server.queries());
        assert!(asked_again || server.queries() == 1, "{ttl}");
    }
}

/// `o22`: names that are none for a host.
async fn names() {
    for host in ["MX.T.TEST", "a\0b.test", "a b.test", "a\\.b.test", "x\r\n2026-11-22 FAKE.test", "ü.test"] {
        let seen = deliver(mx(host).a("mx.t.test", "127.0.0.1"), true).await;
        let said = format!("{:?}", seen.outcome);
        assert_eq!(seen.knocks > 0, host == "MX.T.TEST", "{host:?}: {said}");
        assert!(!said.contains("\\r") && !said.contains("\\0") && !said.contains("FAKE"), "{host:?}: {said}");
    }
    // The longest labels and names that there are; one octet more is no name, and no mail is sent there.
    let label = "l".repeat(63);
    let long = [label.as_str(), &label, &label, "l".repeat(56).as_str(), "test"].join(".");
    let seen = deliver(mx(&long).a(&long, "127.0.0.1"), true).await;
    assert!(seen.knocks > 0, "{:?}", seen.outcome);
    assert!(Domain::parse(&format!("{}.test", "l".repeat(64))).is_err() && Domain::parse(&format!("l{long}")).is_err());
}

/// `o24`: the address that was judged is the one that is connected to, so another answer a moment later changes nothing.
async fn rebinding() {
    let zone = mx("mx.t.test").a("mx.t.test", "1.1.1.1").odd("mx.t.test", Odd::Ttl(0)).serve().await;
    let resolver = resolver(&zone).await;
    let good = resolver.addresses(&domain("mx.t.test")).await.unwrap();
    zone.replace(mx("mx.t.test").a("mx.t.test", "127.0.0.1").odd("mx.t.test", Odd::Ttl(0)));
    let bad = resolver.addresses(&domain("mx.t.test")).await.unwrap();
    assert!(good[0].to_string() == "1.1.1.1" && bad[0].is_loopback());
    let transport = SmtpTransport::new(&config(1, false), resolver).unwrap();
    let outcome = transport.deliver(&job("one@t.test")).await.remove(0).1;
    let Outcome::Fail(why) = outcome else { panic!("{outcome:?}") };
    assert_eq!(why.status, "5.4.6");
}

/// With a signed zone: what is made of TLSA records and of MTA-STS; each outcome for a host that has no TLS at all.
async fn secure(id: &str) {
    match id {
        "n01" => {
            for zone in
                [signed(Zone::new().fail("_tcp.mx.t.test")), signed(tlsa((3, 1, 1), 1)).forged("_tcp.mx.t.test")]
            {
                let reason = deliver_signed(zone, true).await;
                assert!(
                    reason.contains("DNSSEC") || reason.contains("DNS") || reason.contains("name servers"),
                    "{reason}"
                );
            }
        }
        // Only what was validated here counts; a resolver that says AD without proof is not believed.
        "n02" => {
            let zone = mx("mx.t.test").a("mx.t.test", "127.0.0.1").serve().await;
            assert!(!resolver(&zone).await.validates().await);
        }
        "n03" => {
            for (form, count) in [((0, 1, 1), 1), ((1, 0, 1), 1), ((3, 1, 1), 1), ((2, 0, 1), 1), ((3, 1, 1), 600)] {
                let reason = deliver_signed(signed(tlsa(form, count)), true).await;
                assert!(reason.contains("DANE of mx.t.test"), "{form:?} {count}: {reason}");
            }
        }
        "n04" => {
            let begun = Instant::now();
            // As many keys and signatures as an answer holds; validation stops at a bound (CVE-2023-50387).
            let zone = signed(tlsa((3, 1, 1), 600)).forged("t.test");
            let reason = deliver_signed(zone, true).await;
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
            assert!(reason.contains("DNSSEC") || reason.contains("name servers"), "{reason}");
        }
        "n05" => policies().await,
        "n06" => {
            let zone =
                mx("mx.t.test").txt("_mta-sts.t.test", "v=STSv1; id=1;").a("mta-sts.t.test", "127.0.0.1").serve().await;
            let authority = Authority::new();
            let web = Web::serve(authority.issue(&["mta-sts.t.test"]).server_config(), String::new()).await;
            let https = Https::new(resolver(&zone).await, false).with_roots(authority.roots()).with_port(web.port);
            let error = https.get("mta-sts.t.test", "/.well-known/mta-sts.txt", "text/plain", 1000).await.unwrap_err();
            assert!(error.to_string().contains("may be connected to") && web.asked().is_empty(), "{error}");
        }
        other => panic!("what is {other}?"),
    }
}

fn tlsa(form: (u8, u8, u8), count: u32) -> Zone {
    (0..count).fold(Zone::new(), |zone, n| {
        zone.tlsa("_PORT._tcp.mx.t.test", form, &[&[7; 28][..], &n.to_be_bytes()].concat())
    })
}

fn signed(zone: Zone) -> Zone {
    zone.mx("t.test", 10, "mx.t.test").a("mx.t.test", "127.0.0.1")
}

/// To a host without TLS. The message waits, and this is why.
async fn deliver_signed(zone: Zone, expect_wait: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"220 mx.t.test ESMTP\r\n").await;
            let mut heard = [0; 512];
            let _ = stream.read(&mut heard).await;
            let _ = stream.write_all(b"250 mx.t.test\r\n").await;
            let more = stream.read(&mut heard).await.unwrap_or(0);
            assert!(!heard[..more].starts_with(b"MAIL"), "in clear");
        }
    });
    let zone = zone.renamed("_PORT.", &format!("_{port}.")).signed().serve().await;
    let resolver = Resolver::with_trust_anchors(&zone.config(), zone.anchors()).unwrap();
    let config = config(port, true);
    let https = Arc::new(Https::new(resolver.clone(), true));
    let policies = TlsPolicies::new(&config.delivery, resolver.clone(), https, Shelf::default(), Clock::manual(START));
    let transport = SmtpTransport::new(&config, resolver).unwrap().with_policies(Arc::new(policies));
    let outcome = transport.deliver(&job("one@t.test")).await.remove(0).1;
    transport.close().await;
    let Outcome::Defer { why, .. } = outcome else { panic!("{outcome:?}") };
    assert!(expect_wait);
    why.reason
}

/// `n05`: whatever the server of a policy says, it is bounded, and no answer of it is a policy. (That the policy that is
/// known stays until its end, and a new id is fetched, is in `tls_policy`.)
async fn policies() {
    let zone = mx("mx.t.test").a("mta-sts.t.test", "127.0.0.1").serve().await;
    let authority = Authority::new();
    for (text, shown) in [
        (answer("404 Not Found", "text/plain", "version: STSv1"), "mta-sts.t.test"),
        (answer("500 No", "text/plain", "version: STSv1"), "mta-sts.t.test"),
        (answer("302 Found", "text/plain", ""), "mta-sts.t.test"),
        (answer("200 OK", "text/html", "version: STSv1"), "mta-sts.t.test"),
        (answer("200 OK", "text/plain", &"x".repeat(70_000)), "mta-sts.t.test"),
        (answer("200 OK", "text/plain", "version: STSv1"), "other.test"),
    ] {
        let web = Web::serve(authority.issue(&[shown]).server_config(), text.clone()).await;
        let https = Https::new(resolver(&zone).await, true).with_roots(authority.roots()).with_port(web.port);
        let read = https.get("mta-sts.t.test", "/.well-known/mta-sts.txt", "text/plain", 64 * 1024).await;
        assert!(read.is_err(), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_trap_on_the_way_out() {
    for id in ids("outbound", 24) {
        outbound(&id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_trap_in_dane_and_mta_sts() {
    for id in ids("dnssec_dane_sts", 6) {
        secure(&id).await;
    }
}

/// All the trouble that DNS may have, for a thousand messages: none of them comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_resolver_bounces_nothing() {
    let zone = Zone::new().silent("t.test").fail("u.test").serve().await;
    let transport = Arc::new(SmtpTransport::new(&config(1, true), resolver(&zone).await).unwrap());
    let mut delivering = tokio::task::JoinSet::new();
    for n in 0..200 {
        let transport = transport.clone();
        let to = format!("one@d{n}.{}", if n % 2 == 0 { "t.test" } else { "u.test" });
        delivering.spawn(async move { transport.deliver(&job(&to)).await.remove(0).1 });
    }
    for outcome in delivering.join_all().await {
        assert!(matches!(outcome, Outcome::Defer { .. }), "{outcome:?}");
    }
}
