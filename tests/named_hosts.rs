//! Delivery through hosts that somebody has named: TLS in all its forms, logins, and the next host where one
//! does not do. The far ends play scripts on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

#[path = "support/remote.rs"]
mod remote;
#[path = "support/zone.rs"]
mod zone;

use std::sync::Arc;

use bytes::Bytes;
use postrider::config::{self, Secret as Text};
use postrider::delivery::smtp::{Attempted, HostTarget, Login, LoginFault, Secret, SmtpTransport, TlsMode};
use postrider::delivery::{Body, Delivered, Job, Outcome};
use postrider::dns::Resolver;
use postrider::message::{Address, BodyType, Door, DsnRequest, MessageId, Notify, Origin, ReversePath};
use postrider::queue::record::{Message, Recipient, Route, Status};
use remote::{Received, Remotes};
use tokio_rustls::rustls::RootCertStore;
use zone::{Zone, ZoneServer};

const CONTENT: &str = "From: a@own.test\r\nSubject: hi\r\n\r\nHello.\r\n";

/// The only name that the certificate of the far ends is for.
const CERTIFIED: &str = "somebody.else.test";

const LOGGED_IN: &str = "C: AUTH PLAIN AGFwcABwZW5jaWw=\nS: 235 2.7.0 welcome\n";
const TAKEN: &str = "C: MAIL FROM:<a@own.test>\nS: 250 ok\nC: RCPT TO:<one@far.test>\nS: 250 ok\nC: DATA\nS: 354 go\ncontent\n\
    S: 250 2.0.0 kept\n";
const BYE: &str = "C: QUIT\nS: 221 bye\n";

/// A server that offers PLAIN.
fn hello(extension: &str) -> String {
    format!("S: 220 far ESMTP\nC: EHLO mail.own.test\nS: 250-far\nS: 250 {extension}\n")
}

fn implicit(rest: &[&str]) -> String {
    format!("starttls\n{}{}", hello("AUTH PLAIN"), rest.concat())
}

fn starttls(rest: &[&str]) -> String {
    let again = hello("AUTH PLAIN").replacen("S: 220 far ESMTP\n", "", 1);
    format!("{}C: STARTTLS\nS: 220 go\nstarttls\n{again}{}", hello("STARTTLS"), rest.concat())
}

fn login(username: &str) -> Option<Login> {
    Some(Login { username: username.into(), secret: Secret::Password(Text("pencil".into())) })
}

fn job() -> Job {
    let recipient = Recipient {
        address: Address::parse("one@far.test").unwrap(),
        alias: None,
        route: Route::Remote,
        notify: Notify::default(),
        original: None,
        status: Status::Waiting { due: 0 },
        attempts: 0,
        last_failure: None,
        delay_notified: false,
        by_hand: None,
        released: None,
    };
    let body = Body::new(vec![Bytes::from_static(CONTENT.as_bytes())]);
    let message = Message {
        id: MessageId::from_u64(1),
        received_at: 0,
        origin: Origin { door: Door::Admin, account: None, peer: None },
        mail_from: ReversePath::Address(Address::parse("a@own.test").unwrap()),
        body_type: BodyType::EightBitMime,
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
        tls: postrider::message::TlsWish::default(),
        not_before: None,
        answers: None,
    };
    Job { message: Arc::new(message), body, recipients: vec![(7, recipient)] }
}

struct World {
    remotes: Remotes,
    transport: SmtpTransport,
    _zone: ZoneServer,
}

impl World {
    /// The far ends' own certificate is trusted.
    async fn new(scripts: &[String]) -> World {
        let remotes = Remotes::play(&scripts.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let text = "hostname = \"mail.own.test\"\ndata_dir = \"/nowhere\"\n[domains.\"own.test\"]\n";
        let zone = Zone::new().a(CERTIFIED, "127.0.0.1").a("other.test", "127.0.0.1").serve().await;
        let resolver = Resolver::new(&zone.config()).unwrap();
        let transport = SmtpTransport::new(&config::parse("test.toml", text).unwrap(), resolver).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(remotes.certificate.clone()).unwrap();
        World { transport: transport.with_roots(roots).unwrap(), remotes, _zone: zone }
    }

    fn target(&self, host: &str, tls: TlsMode, login: Option<Login>) -> HostTarget {
        let (host, port, mail_from) = (host.into(), self.remotes.port, None);
        HostTarget { host, port, tls, verify_certificate: true, login, mail_from, debug: false }
    }

    async fn finish(self) -> Vec<Received> {
        self.transport.close().await;
        self.remotes.finish().await
    }
}

fn delivered(attempted: &Attempted) -> &Delivered {
    match &attempted.outcomes[..] {
        [(7, Outcome::Delivered(delivered))] => delivered,
        other => panic!("{other:?}"),
    }
}

/// The status with which the mail waits.
fn deferred(attempted: &Attempted) -> &str {
    match &attempted.outcomes[..] {
        [(7, Outcome::Defer { why, .. })] => &why.status,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn implicit_tls_and_a_login() {
    let world = World::new(&[implicit(&[LOGGED_IN, TAKEN, BYE])]).await;
    let target = world.target(CERTIFIED, TlsMode::Implicit, login("app"));
    let attempted = world.transport.deliver_through(&job(), &[target]).await;
    assert!(delivered(&attempted).tls.as_ref().unwrap().starts_with("TLSv1.3 "));
    assert_eq!(attempted.troubles, []);
    assert_eq!(world.finish().await[0].contents, [CONTENT.as_bytes()]);
}

#[tokio::test]
async fn required_tls_and_a_login() {
    let world = World::new(&[starttls(&[LOGGED_IN, TAKEN, BYE])]).await;
    let target = world.target(CERTIFIED, TlsMode::Required, login("app"));
    let attempted = world.transport.deliver_through(&job(), &[target]).await;
    assert!(delivered(&attempted).tls.is_some());
    world.finish().await;
}

#[tokio::test]
async fn a_wrong_certificate_ends_it_before_the_login_unless_nobody_asks() {
    for tls in [TlsMode::Implicit, TlsMode::Required, TlsMode::Opportunistic] {
        let start =
            if tls == TlsMode::Implicit { String::new() } else { hello("STARTTLS") + "C: STARTTLS\nS: 220 go\n" };
        // Our hello is heard, and then only an alert: no handshake comes to its end.
        let world = World::new(&[format!("{start}unfinished\n")]).await;
        let target = world.target("other.test", tls, login("app"));
        let attempted = world.transport.deliver_through(&job(), &[target]).await;
        assert_eq!(deferred(&attempted), "4.7.5", "{tls:?}");
        assert_eq!((attempted.troubles.len(), attempted.troubles[0].login), (1, None));
        assert!(attempted.troubles[0].failure.reason.contains("certificate"), "{:?}", attempted.troubles);
        world.finish().await;
    }
    let world = World::new(&[implicit(&[LOGGED_IN, TAKEN, BYE])]).await;
    let target =
        HostTarget { verify_certificate: false, ..world.target("other.test", TlsMode::Implicit, login("app")) };
    delivered(&world.transport.deliver_through(&job(), &[target]).await);
    world.finish().await;
}

#[tokio::test]
async fn a_refused_login_is_for_the_next_host() {
    let refused = "C: AUTH PLAIN AGFwcABwZW5jaWw=\nS: 550 5.7.30 basic authentication is not supported\ngone\n";
    let world = World::new(&[implicit(&[refused]), implicit(&[LOGGED_IN, TAKEN, BYE])]).await;
    let unverified =
        |host: &str| HostTarget { verify_certificate: false, ..world.target(host, TlsMode::Implicit, login("app")) };
    let targets = [unverified("127.0.0.1"), unverified("127.0.0.2")];
    let attempted = world.transport.deliver_through(&job(), &targets).await;
    assert!(delivered(&attempted).to.contains("127.0.0.2"));
    assert_eq!((attempted.troubles[0].target, attempted.troubles[0].login), (0, Some(LoginFault::Refused)));
    assert_eq!(attempted.troubles[0].failure.status, "4.7.30");
    let received = world.finish().await;
    assert_eq!((received[0].contents.len(), received[1].contents.len()), (0, 1));
}

#[tokio::test]
async fn where_no_login_is_taken_the_mail_waits() {
    let refused = "C: AUTH PLAIN AGFwcABwZW5jaWw=\nS: 535 5.7.8 no\ngone\n";
    let world = World::new(&[implicit(&[refused])]).await;
    let target = world.target(CERTIFIED, TlsMode::Implicit, login("app"));
    let attempted = world.transport.deliver_through(&job(), &[target]).await;
    assert_eq!(deferred(&attempted), "4.7.8");
    assert_eq!(attempted.troubles[0].login, Some(LoginFault::Refused));
    world.finish().await;
}

#[tokio::test]
async fn in_clear_a_password_is_for_this_machine_only_and_on_purpose() {
    let world = World::new(&[hello("AUTH PLAIN") + LOGGED_IN + TAKEN + BYE]).await;
    let target = world.target("127.0.0.1", TlsMode::Off, login("app"));
    delivered(&world.transport.deliver_through(&job(), &[target]).await);
    world.finish().await;

    let world = World::new(&[hello("AUTH PLAIN") + "gone\n"]).await;
    let target = world.target("127.0.0.1", TlsMode::Opportunistic, login("app"));
    let attempted = world.transport.deliver_through(&job(), &[target]).await;
    assert_eq!((deferred(&attempted), attempted.troubles[0].login), ("4.7.11", Some(LoginFault::NotPrivate)));
    world.finish().await;
}

#[tokio::test]
async fn a_connection_is_kept_with_its_login() {
    let world = World::new(&[implicit(&[LOGGED_IN, TAKEN, TAKEN, BYE])]).await;
    let target = world.target(CERTIFIED, TlsMode::Implicit, login("app"));
    for _ in 0..2 {
        delivered(&world.transport.deliver_through(&job(), std::slice::from_ref(&target)).await);
    }
    let received = world.finish().await;
    assert_eq!((received[0].connections, received[0].contents.len()), (1, 2));
}

#[tokio::test]
async fn hosts_that_are_none_defer_the_mail() {
    let world = World::new(&[]).await;
    assert_eq!(deferred(&world.transport.deliver_through(&job(), &[]).await), "4.3.5");
}
