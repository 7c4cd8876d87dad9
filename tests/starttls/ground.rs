//! Our client under each of the policies: DNS, the web server with the MTA-STS policy, and the configuration.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use postrider::clock::Clock;
use postrider::delivery::https::Https;
use postrider::delivery::shelf::Shelf;
use postrider::delivery::smtp::{SmtpTransport, Timeouts, TlsPolicies};
use postrider::delivery::{Body, Job, Outcome};
use postrider::dns::Resolver;
use postrider::message::{Address, MessageId, ReversePath, TlsWish};
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::authority::Authority;
use crate::far::{Far, Says, Seen};
use crate::support::records::{START, message, recipient};
use crate::support::zone::Zone;
use crate::web::{Web, answer};

pub const MX: &str = "mx1.far.test";
/// A reply that takes longer, and an answer to a message.
const REPLY_TIME: Duration = Duration::from_millis(1000);
/// A delivery that takes longer than all its replies may hangs.
const PATIENCE: Duration = Duration::from_secs(60);
pub const CONTENT: &str = "From: a@own.test\r\nSubject: hi\r\n\r\nHello.\r\n";

/// What a far end shows under TLS, whom our client trusts, and what its TLSA records would be made of.
pub struct Shown {
    pub config: ServerConfig,
    pub roots: RootCertStore,
    pub public_key: Vec<u8>,
    pub anchor: Vec<u8>,
}

impl Shown {
    pub fn good() -> Shown {
        let authority = Authority::new();
        let identity = authority.issue(&[MX]);
        Shown {
            config: identity.server_config(),
            roots: authority.roots(),
            public_key: identity.public_key.clone(),
            anchor: authority.certificate.to_vec(),
        }
    }
}

/// Under these nothing may go in clear.
pub fn demands_tls(policy: &str) -> bool {
    !matches!(policy, "none" | "opportunistic" | "mta-sts-testing")
}

/// Under these the certificate counts.
pub fn demands_certificate(policy: &str) -> bool {
    demands_tls(policy) && policy != "require-tls"
}

fn configuration(policy: &str, port: u16) -> postrider::config::Config {
    let tls = match policy {
        "none" => "[delivery.tls]\nmta_sts = false\ndane = false\n",
        "require-tls" => "[delivery.tls]\npolicy = \"required\"\n",
        _ => "",
    };
    let text = format!(
        "hostname = \"mail.own.test\"\ndata_dir = \"/nowhere\"\n[domains.\"own.test\"]\n\
         [delivery]\nmx_port = {port}\nallow_private_addresses = true\n{tls}"
    );
    postrider::config::parse("test.toml", &text).unwrap_or_else(|problems| panic!("{problems}"))
}

fn dns(policy: &str, shown: &Shown, port: u16) -> Zone {
    let zone = Zone::new().mx("far.test", 10, MX).a(MX, "127.0.0.1").a("mta-sts.far.test", "127.0.0.1");
    let name = format!("_{port}._tcp.{MX}");
    match policy {
        "mta-sts-testing" | "mta-sts-enforce" => zone.txt("_mta-sts.far.test", "v=STSv1; id=1;"),
        "dane-ee" => zone.tlsa(&name, (3, 1, 1), digest(&SHA256, &shown.public_key).as_ref()).signed(),
        "dane-ta" => zone.tlsa(&name, (2, 0, 1), digest(&SHA256, &shown.anchor).as_ref()).signed(),
        _ => zone,
    }
}

/// One message to a far end that says this, under this policy.
pub async fn deliver(policy: &str, says: &Says, shown: Shown) -> (Outcome, Seen) {
    let far = Far::start(says.clone(), shown.config.clone()).await;
    let port = far.address.port();
    let config = configuration(policy, port);
    let zone = dns(policy, &shown, port).serve().await;
    let resolver = match policy {
        "dane-ee" | "dane-ta" => Resolver::with_trust_anchors(&zone.config(), zone.anchors()).unwrap(),
        _ => Resolver::new(&zone.config()).unwrap(),
    };
    // The policy itself is served under a good certificate, whatever the mail exchanger shows.
    let authority = Authority::new();
    let mode = policy.strip_prefix("mta-sts-").unwrap_or("none");
    let text = format!("version: STSv1\nmode: {mode}\nmx: {MX}\nmax_age: 86400\n");
    let web =
        Web::serve(authority.issue(&["mta-sts.far.test"]).server_config(), answer("200 OK", "text/plain", &text)).await;
    let https = Https::new(resolver.clone(), true).with_roots(authority.roots()).with_port(web.port);
    // What hosts showed before is kept nowhere: each delivery is the first one.
    let clock = Clock::manual(START);
    let policies = TlsPolicies::new(&config.delivery, resolver.clone(), Arc::new(https), Shelf::default(), clock);
    let reply = REPLY_TIME;
    let timeouts = Timeouts {
        greeting: reply,
        command: reply,
        mail: reply,
        rcpt: reply,
        data: reply,
        dot: reply,
        quit: reply,
        ..Timeouts::RFC5321
    };
    let transport = SmtpTransport::new(&config, resolver).unwrap().with_timeouts(timeouts);
    let transport = transport.with_roots(shown.roots).unwrap().with_policies(Arc::new(policies));
    let job = job(policy);
    let delivering = transport.deliver(&job);
    let outcomes = tokio::time::timeout(PATIENCE, delivering).await.expect("the delivery hangs");
    transport.close().await;
    assert_eq!(outcomes.len(), 1);
    (outcomes.into_iter().next().unwrap().1, far.seen())
}

pub fn job(policy: &str) -> Job {
    let chunks = vec![Bytes::from_static(CONTENT.as_bytes())];
    let mut message = message(MessageId::first_at(START), &chunks, 1);
    message.mail_from = ReversePath::Address(Address::parse("a@own.test").unwrap());
    message.tls = if policy == "RFC8689-REQUIRETLS" { TlsWish::Required } else { TlsWish::Usual };
    Job { message: Arc::new(message), body: Body::new(chunks), recipients: vec![(0, recipient("one@far.test", 0))] }
}
