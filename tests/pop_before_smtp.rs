//! POP before SMTP: the mailbox and the outgoing server play scripts on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/records.rs"]
mod records;
#[path = "support/remote.rs"]
mod remote;
#[path = "support/zone.rs"]
mod zone;

use std::sync::Arc;

use bytes::Bytes;
use postrider::clock::Clock;
use postrider::config::{self, SmartHost};
use postrider::delivery::smtp::{Attempted, HostTarget, LoginFault, PopBeforeSmtp, SmtpTransport, TlsMode};
use postrider::delivery::{Body, HostFailure, Job, Outcome};
use postrider::dns::Resolver;
use postrider::message::MessageId;
use records::START;
use remote::Remotes;
use tokio_rustls::rustls::RootCertStore;
use zone::{Zone, ZoneServer};

/// The only name that the certificate of the far ends is for.
const CERTIFIED: &str = "somebody.else.test";

const LOGIN: &str =
    "C: USER box\nS: +OK\nC: PASS hunter2\nS: +OK logged in\nC: STAT\nS: +OK 0 0\nC: QUIT\nS: +OK bye\ngone\n";

struct World {
    remotes: Remotes,
    transport: SmtpTransport,
    pop: PopBeforeSmtp,
    clock: Clock,
    host: SmartHost,
    _zone: ZoneServer,
}

impl World {
    /// The mailbox plays `script`, at `pop_host`.
    async fn new(script: &str, pop_host: &str, tls: &str) -> World {
        let remotes = Remotes::play(&[script]).await;
        let text = format!(
            "hostname = \"mail.own.test\"\ndata_dir = \"/nowhere\"\n[smart_hosts.old]\nhost = \"127.0.0.1\"\npop_before_smtp = \"box\"\n\
             [fetch.box]\nprotocol = \"pop3\"\nhost = \"{pop_host}\"\nport = {}\ntls = \"{tls}\"\nusername = \"box\"\npassword = \"hunter2\"\n",
            remotes.port
        );
        let config = config::parse("test.toml", &text).unwrap_or_else(|problems| panic!("{problems}"));
        let zone = Zone::new().a(CERTIFIED, "127.0.0.1").a("other.test", "127.0.0.1").serve().await;
        let transport = SmtpTransport::new(&config, Resolver::new(&zone.config()).unwrap()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(remotes.certificate.clone()).unwrap();
        let (transport, clock) = (transport.with_roots(roots).unwrap(), Clock::manual(START));
        let host = config.smart_hosts[0].clone();
        World { remotes, transport, pop: PopBeforeSmtp::new(clock.clone()), clock, host, _zone: zone }
    }

    async fn log_in(&self) -> Result<(), HostFailure> {
        self.pop.log_in(&self.transport, &self.host).await
    }

    async fn fails(script: &str, host: &str, tls: &str) -> HostFailure {
        let world = World::new(script, host, tls).await;
        let failure = world.log_in().await.unwrap_err();
        assert!(failure.failure.status.starts_with("4.") && !failure.failure.reason.contains("hunter2"), "{failure:?}");
        assert!(matches!(failure.outcome(), Outcome::Defer { .. }));
        // Not asked again at once: the script is over.
        assert_eq!(world.log_in().await.unwrap_err().not_before_secs, Some(60));
        world.remotes.finish().await;
        failure
    }
}

#[tokio::test]
async fn a_login_counts_for_five_minutes() {
    let once = format!("S: +OK hello\n{LOGIN}");
    let world = World::new(&format!("{once}---\n{once}"), "127.0.0.1", "off").await;
    world.log_in().await.unwrap();
    world.clock.advance(299_000);
    world.log_in().await.unwrap();
    world.clock.advance(1_000);
    world.log_in().await.unwrap();
    assert_eq!(world.remotes.finish().await[0].connections, 2);
}

#[tokio::test]
async fn tls_from_the_start_and_by_stls() {
    for (tls, script) in [
        ("implicit", format!("starttls\nS: +OK hello\n{LOGIN}")),
        ("required", format!("S: +OK hello\nC: STLS\nS: +OK go\nstarttls\n{LOGIN}")),
    ] {
        let world = World::new(&script, CERTIFIED, tls).await;
        world.log_in().await.unwrap();
        world.remotes.finish().await;
    }
}

#[tokio::test]
async fn without_tls_that_can_be_trusted_the_password_is_not_said() {
    let failure = World::fails("unfinished\n", "other.test", "implicit").await;
    assert_eq!((failure.login, failure.failure.status.as_str()), (None, "4.7.5"));
    World::fails("S: +OK hello\nC: STLS\nS: -ERR no\ngone\n", CERTIFIED, "required").await;
    World::fails("S: +OK hello\nC: STLS\nS: +OK go\nS: +OK more\ngone\n", CERTIFIED, "required").await;
}

#[tokio::test]
async fn what_goes_wrong_is_trouble_of_the_host() {
    let start = "S: +OK hello\nC: USER box\nS: +OK\nC: PASS hunter2\n";
    let refused = World::fails(&format!("{start}S: -ERR [AUTH] hunter2 is wrong\ngone\n"), "127.0.0.1", "off").await;
    assert_eq!(refused.login, Some(LoginFault::Refused));
    let busy = World::fails(&format!("{start}S: -ERR [IN-USE] try later\ngone\n"), "127.0.0.1", "off").await;
    assert_eq!(busy.login, None);
    assert!(busy.failure.reason.contains("[IN-USE] try later"), "{busy:?}");
    World::fails(&format!("{start}drop\n"), "127.0.0.1", "off").await;
    World::fails("S: 220 this is SMTP\ngone\n", "127.0.0.1", "off").await;
    World::fails("S* +OK 3000\ngone\n", "127.0.0.1", "off").await;
    World::fails(&format!("S: +OK {}\ngone\n", "x".repeat(3000)), "127.0.0.1", "off").await;
}

/// The server has forgotten us: the refused recipient is tried once more after another login.
#[tokio::test]
async fn a_server_that_does_not_know_us_any_more_is_shown_again() {
    let once = format!("S: +OK hello\n{LOGIN}");
    let world = World::new(&format!("{once}---\n{once}"), "127.0.0.1", "off").await;
    world.log_in().await.unwrap();
    let greeting = "S: 220 far ESMTP\nC: EHLO mail.own.test\nS: 250 far\nC: MAIL FROM:<>\nS: 250 ok\n";
    let script = format!(
        "{greeting}C: RCPT TO:<one@far.test>\nS: 550 5.7.1 Relaying denied\nC: RCPT TO:<two@far.test>\nS: 550 5.1.1 nobody\nC: QUIT\nS: 221 bye\n"
    );
    let server = Remotes::play(&[&script]).await;
    let chunk = Bytes::from_static(b"From: a@own.test\r\n\r\nHello.\r\n");
    let message = records::message(MessageId::from_u64(1), std::slice::from_ref(&chunk), 2);
    let recipients = ["one@far.test", "two@far.test"].into_iter().zip(0..);
    let recipients = recipients.map(|(address, number)| (number, records::recipient(address, 0))).collect();
    let job = Job { message: Arc::new(message), body: Body::new(vec![chunk]), recipients };
    let target = HostTarget {
        host: "127.0.0.1".into(),
        port: server.port,
        tls: TlsMode::Off,
        verify_certificate: false,
        login: None,
        mail_from: None,
        debug: false,
    };
    let attempted: Attempted = world.transport.deliver_through(&job, &[target]).await;
    assert_eq!(world.pop.refused(&world.host, &attempted).await, [0]);
    world.log_in().await.unwrap();
    world.transport.close().await;
    server.finish().await;
    assert_eq!(world.remotes.finish().await[0].connections, 2);
}
