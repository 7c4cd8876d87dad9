//! What other domains say about TLS, against scripted far ends: MTA-STS over HTTPS, DANE in a signed zone,
//! REQUIRETLS, and what is counted for reports. All of it in this process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

#[path = "support/authority.rs"]
mod authority;
#[path = "support/remote.rs"]
mod remote;
#[path = "support/web.rs"]
mod web;
#[path = "support/zone.rs"]
mod zone;

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, SHA512, digest};
use bytes::Bytes;
use mail_auth::report::tlsrpt::TlsReport;
use postrider::clock::Clock;
use postrider::config::{self, Config};
use postrider::delivery::https::Https;
use postrider::delivery::shelf::Shelf;
use postrider::delivery::smtp::{SmtpTransport, TlsPolicies};
use postrider::delivery::tls_report::{Counts, Flaw, Kind, Reports, Tally};
use postrider::delivery::{Body, Delivered, Job, Outcome};
use postrider::dns::Resolver;
use postrider::events::journal::Journal;
use postrider::intake::Intake;
use postrider::intake::sign::Signer;
use postrider::message::{Address, BodyType, Door, DsnRequest, MessageId, Notify, Origin, ReversePath, TlsWish};
use postrider::queue::Queue;
use postrider::queue::record::{Failure, Message, Recipient, Route, Status};
use postrider::store::{Store, Table};

use authority::{Authority, Identity};
use remote::{Received, Remotes};
use web::{Web, answer};
use zone::{Zone, ZoneServer};

const CONTENT: &str = "From: a@own.test\r\nSubject: hi\r\n\r\nHello.\r\n";
const HELLO: &str = "S: 220 mx.far.test ESMTP\nC: EHLO mail.own.test\nS: 250-mx.far.test\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 go ahead\n";
const MAIL: &str = "C: MAIL FROM:<a@own.test>\nS: 250 ok\nC: RCPT TO:<one@far.test>\nS: 250 ok\nC: DATA\nS: 354 go on\ncontent\nS: 250 kept\nC: QUIT\nS: 221 bye\n";
/// Takes a message under TLS.
fn takes() -> String {
    format!("{HELLO}starttls\nC: EHLO mail.own.test\nS: 250 mx.far.test\n{MAIL}")
}
/// The client goes away once it has seen the certificate.
fn left() -> String {
    format!("{HELLO}starttls\ngone\n")
}
/// No TLS here; the client goes away when it hears that.
const NO_TLS: &str = "S: 220 mx.far.test ESMTP\nC: EHLO mail.own.test\nS: 250 mx.far.test\ngone\n";
/// No TLS here, but mail.
fn clear() -> String {
    format!("S: 220 mx.far.test ESMTP\nC: EHLO mail.own.test\nS: 250 mx.far.test\n{MAIL}")
}

const MX: &str = "mx1.far.test";

fn policy(mode: &str) -> String {
    answer("200 OK", "text/plain; charset=utf-8", &format!("version: STSv1\nmode: {mode}\nmx: {MX}\nmax_age: 86400\n"))
}

fn dns() -> Zone {
    Zone::new()
        .mx("far.test", 10, MX)
        .a(MX, "127.0.0.1")
        .txt("_mta-sts.far.test", "v=STSv1; id=1;")
        .a("mta-sts.far.test", "127.0.0.1")
}

fn job(wish: TlsWish) -> Job {
    let body = Body::new(vec![Bytes::from_static(CONTENT.as_bytes())]);
    let message = Message {
        id: MessageId::from_u64(1),
        received_at: 0,
        origin: Origin { door: Door::Admin, account: None, peer: None },
        mail_from: ReversePath::Address(Address::parse("a@own.test").unwrap()),
        body_type: BodyType::SevenBit,
        smtputf8: false,
        dsn: DsnRequest::default(),
        size: body.len(),
        chunks: 1,
        header_from: None,
        streamed: None,
        message_id: String::new(),
        subject: String::new(),
        findings: None,
        recipients: 1,
        stream: postrider::message::stream::default_name(),
        tls: wish,
        not_before: None,
        answers: None,
    };
    let recipient = Recipient {
        address: Address::parse("one@far.test").unwrap(),
        alias: None,
        route: Route::Remote,
        notify: Notify::default(),
        original: None,
        status: Status::Waiting { due: 0 },
        attempts: 0,
        by_hand: None,
        last_failure: None,
        delay_notified: false,
        released: None,
    };
    Job { message: Arc::new(message), body, recipients: vec![(1, recipient)] }
}

/// A server of ours, its far end, DNS, and the web server with the policy.
struct World {
    authority: Authority,
    web: Web,
    zone: ZoneServer,
    config: Config,
    remotes: Remotes,
    clock: Clock,
    folder: tempfile::TempDir,
    wish: TlsWish,
}

impl World {
    /// The far end shows a certificate for `shown`.
    async fn new(zone: Zone, policy: String, script: &str, shown: &str) -> World {
        let authority = Authority::new();
        let identity = authority.issue(&[shown]);
        World::with(authority, &identity, zone, policy, script).await
    }

    async fn with(authority: Authority, identity: &Identity, zone: Zone, policy: String, script: &str) -> World {
        let certificate = identity.chain[0].clone();
        let remotes = Remotes::play_as(&[script], identity.server_config(), certificate).await;
        let web = Web::serve(authority.issue(&["mta-sts.far.test", "tls.far.test"]).server_config(), policy).await;
        let config = config::parse("test.toml", &text(remotes.port)).unwrap();
        let zone = zone.serve().await;
        let (clock, folder) = (Clock::manual(1_795_300_000_000), tempfile::tempdir().unwrap());
        World { authority, web, zone, config, remotes, clock, folder, wish: TlsWish::Usual }
    }

    fn resolver(&self, signed: bool) -> Resolver {
        match signed {
            true => Resolver::with_trust_anchors(&self.zone.config(), self.zone.anchors()).unwrap(),
            false => Resolver::new(&self.zone.config()).unwrap(),
        }
    }

    fn transport(&self, resolver: Resolver, queue: &Arc<Queue>) -> (SmtpTransport, Arc<Tally>) {
        let https = Https::new(resolver.clone(), true).with_roots(self.authority.roots()).with_port(self.web.port);
        let shelf = Shelf::new(queue.clone());
        let tally = Arc::new(Tally::new(self.clock.clone(), shelf.clone()));
        let policies =
            TlsPolicies::new(&self.config.delivery, resolver.clone(), Arc::new(https), shelf, self.clock.clone());
        let transport = SmtpTransport::new(&self.config, resolver).unwrap();
        let transport = transport.with_roots(self.authority.roots()).unwrap();
        (transport.with_policies(Arc::new(policies)).with_tally(tally.clone()), tally)
    }

    fn queue(&self) -> Arc<Queue> {
        let store = Arc::new(Store::open(self.folder.path()).unwrap());
        Queue::new(store, self.clock.clone(), true, 1 << 20).unwrap().0
    }

    async fn run(self, signed: bool) -> Seen {
        let queue = self.queue();
        let (transport, tally) = self.transport(self.resolver(signed), &queue);
        let outcome = transport.deliver(&job(self.wish)).await.remove(0).1;
        transport.close().await;
        println!("{outcome:#?}");
        tally.flush().await;
        let counts = Shelf::new(queue).all::<Counts>(b'r').pop().map(|(_, counts)| counts).unwrap_or_default();
        Seen { outcome, counts, received: self.remotes.finish().await.remove(0), asked: self.web.asked().len() }
    }
}

fn text(port: u16) -> String {
    format!(
        "hostname = \"mail.own.test\"\ndata_dir = \"/nowhere\"\n[domains.\"own.test\"]\n\
         [delivery]\nmx_port = {port}\nallow_private_addresses = true\n"
    )
}

struct Seen {
    outcome: Outcome,
    counts: Counts,
    received: Received,
    asked: usize,
}

impl Seen {
    #[track_caller]
    fn delivered(&self) -> &Delivered {
        assert_eq!(self.received.contents, [CONTENT.as_bytes()]);
        let Outcome::Delivered(delivered) = &self.outcome else { panic!("not delivered: {:?}", self.outcome) };
        delivered
    }

    /// Nothing of the message went over the wire, and it waits.
    #[track_caller]
    fn deferred(&self) -> &Failure {
        assert!(self.received.contents.is_empty());
        let Outcome::Defer { why, .. } = &self.outcome else { panic!("not deferred: {:?}", self.outcome) };
        assert!(why.status.starts_with("4.7."), "{why:?}");
        why
    }

    /// The one policy that was counted: kind, good, and what was wrong how often.
    #[track_caller]
    fn counted(&self) -> (Kind, u64, Vec<(Flaw, u64)>) {
        let [policy] = self.counts.policies.as_slice() else { panic!("{:?}", self.counts) };
        (policy.kind, policy.good, policy.bad.iter().map(|bad| (bad.flaw, bad.count)).collect())
    }
}

#[tokio::test]
async fn enforce_delivers_to_who_has_the_right_certificate() {
    let seen = World::new(dns(), policy("enforce"), &takes(), MX).await.run(false).await;
    assert!(seen.delivered().tls.is_some());
    assert_eq!((seen.counted(), seen.asked), ((Kind::Sts, 1, vec![]), 1));
}

#[tokio::test]
async fn enforce_never_delivers_under_a_wrong_certificate() {
    for flaw in [Flaw::CertificateHostMismatch, Flaw::CertificateExpired, Flaw::CertificateNotTrusted] {
        let authority = Authority::new();
        let identity = match flaw {
            Flaw::CertificateHostMismatch => authority.issue(&["other.far.test"]),
            Flaw::CertificateExpired => authority.issue_expired(&[MX]),
            _ => Authority::new().issue(&[MX]),
        };
        let seen = World::with(authority, &identity, dns(), policy("enforce"), &left()).await.run(false).await;
        let why = seen.deferred();
        assert_eq!(why.status, "4.7.5");
        assert!(why.reason.contains("MTA-STS of far.test demands") && why.reason.contains("postmaster"), "{why:?}");
        assert_eq!(seen.counted(), (Kind::Sts, 0, vec![(flaw, 1)]));
    }
}

#[tokio::test]
async fn enforce_never_delivers_without_tls_or_to_a_host_that_is_not_named() {
    let seen = World::new(dns(), policy("enforce"), NO_TLS, MX).await.run(false).await;
    assert_eq!(seen.deferred().status, "4.7.10");
    assert_eq!(seen.counted(), (Kind::Sts, 0, vec![(Flaw::StarttlsNotSupported, 1)]));

    let other = policy("enforce").replace(MX, "mx2.far.test");
    let world = World::new(dns(), other, NO_TLS, MX).await;
    let queue = world.queue();
    let (transport, tally) = world.transport(world.resolver(false), &queue);
    let outcome = transport.deliver(&job(TlsWish::Usual)).await.remove(0).1;
    let Outcome::Defer { why, .. } = outcome else { panic!("{outcome:?}") };
    assert!(why.reason.contains("MTA-STS of far.test") && why.reason.contains(MX), "{why:?}");
    tally.flush().await;
    let counts = Shelf::new(queue).all::<Counts>(b'r').remove(0).1;
    assert_eq!(counts.policies[0].bad[0].flaw, Flaw::ValidationFailure);
}

#[tokio::test]
async fn broken_tls_under_enforce_is_not_tried_in_clear() {
    let script = format!("{HELLO}garble\ndrop\n");
    let seen = World::new(dns(), policy("enforce"), &script, MX).await.run(false).await;
    assert!(seen.deferred().reason.contains("MTA-STS of far.test demands TLS"), "{:?}", seen.outcome);
    assert_eq!(seen.received.connections, 1);
}

#[tokio::test]
async fn testing_delivers_and_counts_what_would_not_do() {
    let seen = World::new(dns(), policy("testing"), &takes(), "other.far.test").await.run(false).await;
    assert!(seen.delivered().tls.is_some());
    assert_eq!(seen.counted(), (Kind::Sts, 0, vec![(Flaw::CertificateHostMismatch, 1)]));

    let seen = World::new(dns(), policy("testing"), &clear(), MX).await.run(false).await;
    assert_eq!(seen.delivered().tls, None);
    assert_eq!(seen.counted(), (Kind::Sts, 0, vec![(Flaw::StarttlsNotSupported, 1)]));

    let other = policy("testing").replace(MX, "mx2.far.test");
    let seen = World::new(dns(), other, &takes(), MX).await.run(false).await;
    seen.delivered();
    assert_eq!(seen.counted(), (Kind::Sts, 0, vec![(Flaw::ValidationFailure, 1)]));
}

#[tokio::test]
async fn without_a_policy_mail_goes_as_before() {
    let script = takes();
    for (answer, flaw) in [
        (answer("404 Not Found", "text/plain", ""), Flaw::StsPolicyFetchError),
        (answer("301 Moved", "text/plain", "version: STSv1"), Flaw::StsPolicyFetchError),
        (policy("enforce").replace("text/plain", "text/html"), Flaw::StsPolicyFetchError),
        (answer("200 OK", "text/plain", &"x".repeat(70_000)), Flaw::StsPolicyFetchError),
        (policy("sometimes"), Flaw::StsPolicyInvalid),
    ] {
        let seen = World::new(dns(), answer, &script, "any.test").await.run(false).await;
        seen.delivered();
        assert_eq!(seen.counted(), (Kind::Sts, 0, vec![(flaw, 1)]), "{flaw:?}");
    }
    let seen = World::new(dns(), policy("none"), &clear(), MX).await.run(false).await;
    assert_eq!(seen.delivered().tls, None);
    assert_eq!(seen.counted().0, Kind::NoPolicyFound);
}

#[tokio::test]
async fn a_known_policy_outlives_its_server_and_a_restart() {
    let script = format!("{}---\n{NO_TLS}---\n{}", takes(), clear());
    let world = World::new(dns(), policy("enforce"), &script, MX).await;
    let wish = TlsWish::Usual;
    {
        let queue = world.queue();
        let (transport, _) = world.transport(world.resolver(false), &queue);
        assert!(matches!(transport.deliver(&job(wish)).await.remove(0).1, Outcome::Delivered(_)));
        transport.close().await;
    }
    // Neither the record nor the policy can be had any more: an attacker would see to that.
    world.web.now_answers(answer("500 Gone", "text/plain", ""));
    world.zone.replace(Zone::new().mx("far.test", 10, MX).a(MX, "127.0.0.1"));
    {
        let queue = world.queue();
        let (transport, _) = world.transport(world.resolver(false), &queue);
        let outcome = transport.deliver(&job(wish)).await.remove(0).1;
        let Outcome::Defer { why, .. } = outcome else { panic!("{outcome:?}") };
        assert!(why.reason.contains("MTA-STS of far.test"), "{why:?}");
        transport.close().await;
    }
    // When the policy is over, and what is known of the host with it, mail goes in clear.
    world.clock.advance(31 * 24 * 3600 * 1000);
    let seen = world.run(false).await;
    assert!(matches!(seen.outcome, Outcome::Delivered(_)), "{:?}", seen.outcome);
}

#[tokio::test]
async fn a_host_that_kept_to_a_policy_is_held_to_tls_for_a_while() {
    let script = format!("{}---\n{NO_TLS}", takes());
    let world = World::new(dns(), policy("enforce"), &script, MX).await;
    let queue = world.queue();
    let (transport, _) = world.transport(world.resolver(false), &queue);
    assert!(matches!(transport.deliver(&job(TlsWish::Usual)).await.remove(0).1, Outcome::Delivered(_)));
    transport.close().await;
    drop((transport, queue));
    world.clock.advance(2 * 24 * 3600 * 1000);
    world.zone.replace(Zone::new().mx("far.test", 10, MX).a(MX, "127.0.0.1"));
    let seen = world.run(false).await;
    let Outcome::Defer { why, .. } = &seen.outcome else { panic!("{:?}", seen.outcome) };
    assert!(why.status == "4.7.10" && why.reason.contains("had TLS with a valid certificate before"), "{why:?}");
}

#[tokio::test]
async fn a_policy_is_fetched_again_when_its_id_changes() {
    let script = format!("{}---\n{}", takes(), clear());
    let world = World::new(dns(), policy("testing"), &script, MX).await;
    let queue = world.queue();
    {
        let (transport, _) = world.transport(world.resolver(false), &queue);
        assert!(matches!(transport.deliver(&job(TlsWish::Usual)).await.remove(0).1, Outcome::Delivered(_)));
        transport.close().await;
        assert_eq!(world.web.asked().len(), 1);
    }
    world.web.now_answers(policy("none"));
    world.zone.replace(
        Zone::new()
            .mx("far.test", 10, MX)
            .a(MX, "127.0.0.1")
            .txt("_mta-sts.far.test", "v=STSv1; id=2;")
            .a("mta-sts.far.test", "127.0.0.1"),
    );
    drop(queue);
    let seen = world.run(false).await;
    assert_eq!(seen.asked, 2);
    assert_eq!(seen.counts.policies.last().unwrap().kind, Kind::NoPolicyFound);
}

fn signed(records: impl FnOnce(Zone) -> Zone) -> Zone {
    records(Zone::new().mx("far.test", 10, MX).a(MX, "127.0.0.1")).signed()
}

/// All ways to say which certificate is good.
fn good_records(identity: &Identity) -> Vec<((u8, u8, u8), Vec<u8>)> {
    let (end, anchor) = (identity.chain[0].to_vec(), identity.chain[1].to_vec());
    let key = identity.public_key.clone();
    let sha256 = |bytes: &[u8]| digest(&SHA256, bytes).as_ref().to_vec();
    let sha512 = |bytes: &[u8]| digest(&SHA512, bytes).as_ref().to_vec();
    vec![
        ((3, 1, 1), sha256(&key)),
        ((3, 0, 1), sha256(&end)),
        ((3, 1, 2), sha512(&key)),
        ((3, 0, 0), end),
        ((3, 1, 0), key),
        ((2, 0, 1), sha256(&anchor)),
        ((2, 0, 2), sha512(&anchor)),
        ((2, 0, 0), anchor),
    ]
}

#[tokio::test]
async fn dane_delivers_where_the_certificate_fits() {
    let count = good_records(&Authority::new().issue(&[MX])).len();
    for number in 0..count {
        let authority = Authority::new();
        // DANE-EE looks at neither names nor dates (RFC 7672 3.1.1).
        let shown = if number < 5 { authority.issue_expired(&["x.test"]) } else { authority.issue(&[MX]) };
        let (form, data) = good_records(&shown).swap_remove(number);
        let world = World::with(authority, &shown, Zone::new(), String::new(), &takes()).await;
        let port = world.remotes.port;
        let zone = signed(|zone| zone.tlsa(&format!("_{port}._tcp.{MX}"), form, &data)).serve().await;
        let seen = World { zone, ..world }.run(true).await;
        assert!(seen.delivered().tls.is_some(), "{form:?}");
        assert_eq!(seen.counted(), (Kind::Tlsa, 1, vec![]), "{form:?}");
    }
}

#[tokio::test]
async fn dane_never_delivers_where_it_does_not() {
    let wrong = digest(&SHA256, b"something else").as_ref().to_vec();
    for (form, names) in [((3, 1, 1), MX), ((3, 0, 1), MX), ((2, 0, 1), MX), ((2, 0, 0), "other.test")] {
        let authority = Authority::new();
        let shown = authority.issue(&[names]);
        let data = if form == (2, 0, 0) { shown.chain[1].to_vec() } else { wrong.clone() };
        let world = World::with(authority, &shown, Zone::new(), String::new(), &left()).await;
        let port = world.remotes.port;
        let zone = signed(|zone| zone.tlsa(&format!("_{port}._tcp.{MX}"), form, &data)).serve().await;
        let seen = World { zone, ..world }.run(true).await;
        let why = seen.deferred();
        assert!(why.status == "4.7.5" && why.reason.contains("DANE of mx1.far.test"), "{why:?}");
        assert_eq!(seen.counted(), (Kind::Tlsa, 0, vec![(Flaw::ValidationFailure, 1)]), "{form:?}");
    }
}

#[tokio::test]
async fn dane_never_delivers_in_clear() {
    let world = World::new(Zone::new(), String::new(), NO_TLS, MX).await;
    let port = world.remotes.port;
    let zone = signed(|zone| zone.tlsa(&format!("_{port}._tcp.{MX}"), (3, 1, 1), &[7; 32])).serve().await;
    let seen = World { zone, ..world }.run(true).await;
    assert_eq!(seen.deferred().status, "4.7.10");
}

#[tokio::test]
async fn dane_records_that_cannot_be_used_still_say_tls() {
    for (form, script, delivered) in
        [((1, 1, 1), takes(), true), ((3, 1, 9), NO_TLS.to_owned(), false), ((3, 7, 1), NO_TLS.to_owned(), false)]
    {
        let world = World::new(Zone::new(), String::new(), &script, "other.test").await;
        let port = world.remotes.port;
        let zone = signed(|zone| zone.tlsa(&format!("_{port}._tcp.{MX}"), form, &[7; 32])).serve().await;
        let seen = World { zone, ..world }.run(true).await;
        assert_eq!(matches!(seen.outcome, Outcome::Delivered(_)), delivered, "{:?}", seen.outcome);
    }
}

#[tokio::test]
async fn a_zone_that_is_not_signed_has_no_dane() {
    let world = World::new(Zone::new(), String::new(), &clear(), MX).await;
    let port = world.remotes.port;
    // The same wrong record, below a delegation without DS.
    let zone = signed(|zone| zone.unsigned("far.test").tlsa(&format!("_{port}._tcp.{MX}"), (3, 1, 1), &[7; 32]));
    let seen = World { zone: zone.serve().await, ..world }.run(true).await;
    assert_eq!(seen.delivered().tls, None);
    assert_eq!(seen.counted().0, Kind::NoPolicyFound);
}

#[tokio::test]
async fn a_signed_zone_without_records_has_no_dane() {
    let world = World::new(Zone::new(), String::new(), &clear(), MX).await;
    let seen = World { zone: signed(|zone| zone).serve().await, ..world }.run(true).await;
    assert_eq!(seen.delivered().tls, None);
}

#[tokio::test]
async fn a_resolver_without_signatures_has_no_dane() {
    let world = World::new(dns(), policy("none"), &clear(), MX).await;
    let port = world.remotes.port;
    let zone = dns().tlsa(&format!("_{port}._tcp.{MX}"), (3, 1, 1), &[7; 32]).serve().await;
    let resolver = Resolver::new(&zone.config()).unwrap();
    assert!(!resolver.validates().await);
    let seen = World { zone, ..world }.run(false).await;
    assert_eq!(seen.delivered().tls, None);
}

#[tokio::test]
async fn wrong_signatures_are_no_answer() {
    let world = World::new(Zone::new(), String::new(), NO_TLS, MX).await;
    for forged in ["far.test", "_tcp.mx1.far.test", MX] {
        let port = world.remotes.port;
        let zone = signed(|zone| zone.tlsa(&format!("_{port}._tcp.{MX}"), (3, 1, 1), &[7; 32])).forged(forged);
        let zone = zone.serve().await;
        let resolver = Resolver::with_trust_anchors(&zone.config(), zone.anchors()).unwrap();
        assert!(resolver.validates().await);
        let transport = SmtpTransport::new(&world.config, resolver).unwrap();
        let outcome = transport.deliver(&job(TlsWish::Usual)).await.remove(0).1;
        let Outcome::Defer { why, .. } = outcome else { panic!("{forged}: {outcome:?}") };
        assert!(why.reason.contains("DNSSEC"), "{forged}: {why:?}");
    }
}

#[tokio::test]
async fn dane_comes_before_mta_sts() {
    let authority = Authority::new();
    let shown = Authority::new().issue(&["x.test"]);
    let world = World::with(authority, &shown, Zone::new(), policy("enforce"), &takes()).await;
    let port = world.remotes.port;
    let key = digest(&SHA256, &shown.public_key).as_ref().to_vec();
    let zone = dns().tlsa(&format!("_{port}._tcp.{MX}"), (3, 1, 1), &key).signed().serve().await;
    let seen = World { zone, ..world }.run(true).await;
    assert!(seen.delivered().tls.is_some());
    assert_eq!(seen.counted(), (Kind::Tlsa, 1, vec![]));
}

#[tokio::test]
async fn requiretls_wants_a_certificate_and_the_extension() {
    let requiring = MAIL.replace("<a@own.test>", "<a@own.test> REQUIRETLS");
    let hello = format!("{HELLO}starttls\nC: EHLO mail.own.test\n");
    let plain = || Zone::new().mx("far.test", 10, MX).a(MX, "127.0.0.1");
    let offered = format!("{hello}S: 250-mx.far.test\nS: 250 REQUIRETLS\n{requiring}");
    let not_offered = format!("{hello}S: 250 mx.far.test\nC: QUIT\nS: 221 bye\n");
    for (script, shown, delivered) in
        [(offered, MX, true), (not_offered, MX, false), (left(), "x.test", false), (NO_TLS.to_owned(), MX, false)]
    {
        let mut world = World::new(plain(), String::new(), &script, shown).await;
        world.wish = TlsWish::Required;
        let seen = world.run(false).await;
        match &seen.outcome {
            Outcome::Delivered(_) if delivered => {}
            Outcome::Fail(why) if !delivered => {
                assert_eq!(why.status, "5.7.30");
                assert!(why.reason.contains("REQUIRETLS"), "{why:?}");
            }
            other => panic!("{shown}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn tls_required_no_sets_policies_aside() {
    let mut world = World::new(dns(), policy("enforce"), &clear(), MX).await;
    world.wish = TlsWish::Optional;
    assert_eq!(world.run(false).await.delivered().tls, None);
    // Not the administrator's own.
    let mut world = World::new(dns(), policy("enforce"), NO_TLS, MX).await;
    world.wish = TlsWish::Optional;
    world.config.delivery.tls = config::OutboundTls::Required;
    assert_eq!(world.run(false).await.deferred().status, "4.7.10");
}

const DAY: u64 = 24 * 3600 * 1000;

/// What sends reports, of a server whose data is in the folder of `world`.
fn reports(world: &World, queue: &Arc<Queue>, tally: Arc<Tally>) -> Reports {
    let text = text(world.remotes.port).replace("/nowhere", world.folder.path().to_str().unwrap());
    let config = Arc::new(config::parse("test.toml", &text).unwrap());
    let (clock, resolver) = (world.clock.clone(), world.resolver(false));
    let journal = Arc::new(Journal::new(clock.clone()));
    let signer = Signer::load(&config).unwrap();
    let intake = Intake::new(config.clone(), clock.clone(), queue.clone(), journal, resolver.clone(), signer);
    let https = Https::new(resolver.clone(), true).with_roots(world.authority.roots()).with_port(world.web.port);
    Reports { config, clock, resolver, https: Arc::new(https), tally, intake: Arc::new(intake.unwrap()) }
}

/// The content of the only message in the queue.
fn queued(queue: &Queue) -> Vec<u8> {
    assert_eq!(queue.store().prefix(Table::Message, &[]).unwrap().count(), 1);
    let chunks = queue.store().prefix(Table::Body, &[]).unwrap().map(|entry| entry.unwrap().1);
    chunks.flatten().collect()
}

#[tokio::test]
async fn testing_mode_is_reported_the_next_day_once() {
    let world = World::new(dns(), policy("testing"), &takes(), "other.far.test").await;
    let wanted = format!("v=TLSRPTv1; rua=mailto:tls@far.test,https://tls.far.test:{}/report", world.web.port);
    let zone = dns().txt("_smtp._tls.far.test", &wanted).a("tls.far.test", "127.0.0.1").serve().await;
    let world = World { zone, ..world };
    {
        let queue = world.queue();
        let (transport, tally) = world.transport(world.resolver(false), &queue);
        assert!(matches!(transport.deliver(&job(TlsWish::Usual)).await.remove(0).1, Outcome::Delivered(_)));
        transport.close().await;
        // The day is not over.
        let reports = reports(&world, &queue, tally);
        reports.send_due().await;
        assert_eq!(queue.store().prefix(Table::Message, &[]).unwrap().count(), 0);
        // Written down, so that a restart loses nothing.
        reports.tally.flush().await;
        let today = world.clock.now() / DAY;
        world.clock.advance((today + 1) * DAY - world.clock.now());
        reports.send_due().await;
        let next = reports.next();
        assert!(next / DAY == today + 1 && next % DAY < 4 * 3600 * 1000, "{next}");
        assert_eq!(queue.store().prefix(Table::Message, &[]).unwrap().count(), 0, "before its time of the day");
        world.clock.advance(next - world.clock.now());
    }
    world.web.now_answers(answer("201 Created", "text/plain", ""));
    let queue = world.queue();
    let tally = Arc::new(Tally::new(world.clock.clone(), Shelf::new(queue.clone())));
    let reports = reports(&world, &queue, tally);
    let asked = world.web.asked().len();
    for _ in 0..2 {
        reports.send_due().await;
    }
    let content = queued(&queue);
    assert!(content.starts_with(b"DKIM-Signature: "));
    let report = TlsReport::parse_rfc5322(&content, 1 << 20).unwrap();
    assert_eq!(report.organization_name.as_deref(), Some("mail.own.test"));
    let [policy] = report.policies.as_slice() else { panic!("{report:?}") };
    assert_eq!(policy.policy.policy_type, mail_auth::report::tlsrpt::PolicyType::Sts);
    assert_eq!(
        (policy.policy.policy_domain.as_str(), policy.policy.mx_host.as_slice()),
        ("far.test", &[MX.to_owned()][..])
    );
    assert!(policy.policy.policy_string.contains(&"mode: testing".to_owned()));
    assert_eq!((policy.summary.total_success, policy.summary.total_failure), (0, 1));
    let failure = &policy.failure_details[0];
    assert_eq!(failure.result_type, mail_auth::report::tlsrpt::ResultType::CertificateHostMismatch);
    assert_eq!(failure.receiving_mx_hostname.as_deref(), Some(MX));
    assert_eq!(report.date_range.end_datetime.to_timestamp() - report.date_range.start_datetime.to_timestamp(), 86_399);
    let posted = world.web.asked().split_off(asked);
    let [(head, body)] = posted.as_slice() else { panic!("{posted:?}") };
    assert!(head.starts_with("POST /report ") && head.contains("application/tlsrpt+gzip"), "{head}");
    let mut json = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(body.as_slice()), &mut json).unwrap();
    assert_eq!(serde_json::from_str::<TlsReport>(&json).unwrap(), report);
    world.remotes.finish().await;
}

#[tokio::test]
async fn who_wants_no_report_gets_none_and_is_forgotten() {
    let world = World::new(dns(), policy("enforce"), &takes(), MX).await;
    let queue = world.queue();
    let (transport, tally) = world.transport(world.resolver(false), &queue);
    assert!(matches!(transport.deliver(&job(TlsWish::Usual)).await.remove(0).1, Outcome::Delivered(_)));
    transport.close().await;
    world.clock.advance(DAY + 4 * 3600 * 1000);
    reports(&world, &queue, tally).send_due().await;
    assert_eq!(queue.store().prefix(Table::Message, &[]).unwrap().count(), 0);
    assert!(Shelf::new(queue).all::<Counts>(b'r').is_empty());
}
