//! Whole ways of a message through a whole server: in by SMTP, out by SMTP, Maildir and webhook.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod client;
    pub mod hook;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use std::path::Path;

use postrider::clock::Clock;
use postrider::events::Event;
use postrider::message::header::Headers;
use support::client::Client;
use support::hook::Hook;
use support::server::{HOSTNAME, TestServer, queued_id};
use support::sink::Sink;
use support::zone::{Zone, ZoneServer};

/// Delivers to a sink that is the MX of `far.test`; `home.test` is ours.
fn relay_conf(sink: &Sink, zone: &ZoneServer) -> String {
    format!(
        r#"
[networks]
trusted = ["127.0.0.0/8"]
[domains."home.test"]
[delivery]
mx_port = {}
allow_private_addresses = true
[dns]
nameservers = ["{}"]
"#,
        sink.address.port(),
        zone.addr()
    )
}

fn far_zone() -> Zone {
    Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1")
}

fn letter(from: &str, to: &str, subject: &str, body: &str) -> String {
    format!("From: <{from}>\r\nTo: <{to}>\r\nSubject: {subject}\r\n\r\n{body}\r\n")
}

fn maildir_messages(path: &Path) -> Vec<String> {
    let mut files: Vec<_> = match std::fs::read_dir(path.join("new")) {
        Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
        Err(_) => Vec::new(),
    };
    files.sort();
    files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submitted_message_arrives_signed_and_byte_exact() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = (Sink::start().await, far_zone().serve().await);
    let server = TestServer::start(folder.path(), &relay_conf(&sink, &zone)).await;

    let body = "first\r\n.leading dot\r\n..two\r\ntrailing blanks  \t \r\n\u{00e9} 8-bit\r\n\r\n\r\nend";
    let content = letter("me@home.test", "you@far.test", "hello", body);
    let mut client = Client::connect(server.submission).await.unwrap();
    let stuffed = content.replace("\r\n.", "\r\n..");
    let reply = client.send("me@home.test", &["you@far.test"], &stuffed).await.unwrap();
    assert!(reply.starts_with("250 2.0.0"), "{reply}");
    let story = server.wait_done(queued_id(&reply)).await;
    assert!(
        story
            .entries
            .iter()
            .any(|entry| matches!(&entry.event, Event::Delivered { to, .. } if to.contains("mx.far.test")))
    );

    let taken = &sink.taken()[0];
    assert_eq!(
        (taken.mail_from.as_str(), taken.recipients.as_slice()),
        ("me@home.test", ["you@far.test".to_owned()].as_slice())
    );
    let headers = Headers::parse(&taken.content);
    assert_eq!(headers.body(), format!("{body}\r\n").as_bytes());
    let selectors: Vec<String> = headers.all("dkim-signature").map(|field| field.text()).collect();
    assert_eq!(selectors.len(), 2, "RSA and Ed25519");
    assert!(selectors.iter().all(|signature| signature.contains("d=home.test")));
    assert!(headers.get("message-id").is_some() && headers.get("date").is_some());
    assert!(headers.get("received").unwrap().text().contains(HOSTNAME));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blind_copies_are_served_and_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = (Sink::start().await, far_zone().serve().await);
    let server = TestServer::start(folder.path(), &relay_conf(&sink, &zone)).await;
    let content = "From: <me@home.test>\r\nTo: <you@far.test>\r\nBcc: <secret@far.test>\r\nSubject: x\r\n\r\nhi\r\n";
    let mut client = Client::connect(server.submission).await.unwrap();
    client.send("me@home.test", &["you@far.test", "secret@far.test"], content).await.unwrap();
    sink.wait_for(1).await;
    let taken = &sink.taken()[0];
    assert_eq!(taken.recipients.len(), 2, "one transaction for one destination");
    assert!(!String::from_utf8_lossy(&taken.content).contains("secret@"));
    server.stop().await;
}

const SALES: &str = r#"
[domains."home.test"]
[aliases]
"sales@home.test" = ["box", "friend@far.test"]
"info@home.test" = "box"
[targets.box]
kind = "maildir"
path = "DATA_DIR/box"
[delivery]
mx_port = PORT
allow_private_addresses = true
[dns]
nameservers = ["ZONE"]
"#;

fn sales_conf(sink: &Sink, zone: &ZoneServer) -> String {
    SALES.replace("PORT", &sink.address.port().to_string()).replace("ZONE", &zone.addr().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_list_reaches_maildir_and_forward_address() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = (Sink::start().await, far_zone().txt("outside.test", "v=spf1 ip4:127.0.0.1 -all").serve().await);
    let server = TestServer::start(folder.path(), &sales_conf(&sink, &zone)).await;
    let mut client = Client::connect(server.mx).await.unwrap();
    let content = format!(
        "Authentication-Results: {HOSTNAME}; dkim=pass header.d=bank.test\r\n{}",
        letter("ann@outside.test", "sales@home.test", "order", "two boxes")
    );
    let reply = client.send("ann@outside.test", &["sales@home.test"], &content).await.unwrap();
    let story = server.wait_done(queued_id(&reply)).await;
    let delivered = story.entries.iter().filter(|entry| matches!(entry.event, Event::Delivered { .. })).count();
    assert_eq!(delivered, 2);
    assert_eq!(sink.taken()[0].recipients, ["friend@far.test"]);

    let boxed = maildir_messages(&folder.path().join("box"));
    assert_eq!(boxed.len(), 1);
    assert!(boxed[0].contains("spf=pass"), "{}", boxed[0]);
    assert!(!boxed[0].contains("bank.test"), "a forged result of ours is removed");
    assert!(boxed[0].ends_with("two boxes\n"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused_at_rcpt_and_cannot_relay() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = (Sink::start().await, far_zone().serve().await);
    let server = TestServer::start(folder.path(), &sales_conf(&sink, &zone)).await;
    let mut client = Client::connect(server.mx).await.unwrap();
    client.command("MAIL FROM:<ann@outside.test>", "250").await.unwrap();
    client.command("RCPT TO:<nobody@home.test>", "550 5.1.1").await.unwrap();
    client.command("RCPT TO:<you@far.test>", "550 5.7.1").await.unwrap();
    client.command("RCPT TO:<you%far.test@home.test>", "550 5.1.1").await.unwrap();
    client.command("RCPT TO:<@home.test:you@far.test>", "550 5.7.1").await.unwrap();
    client.command("RCPT TO:<sales+x@home.test>", "250").await.unwrap();
    let mut outsider = Client::connect(server.submission).await.unwrap();
    outsider.command("MAIL FROM:<ann@home.test>", "530").await.unwrap();
    server.stop().await;
    assert_eq!(sink.count(), 0);
}

async fn send_to_info(server: &TestServer, subject: &str) -> String {
    let mut client = Client::connect(server.mx).await.unwrap();
    let content = letter("ann@outside.test", "info@home.test", subject, "again");
    client.send("ann@outside.test", &["info@home.test"], &content).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sixth_of_one_sender_to_one_alias_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = (Sink::start().await, far_zone().serve().await);
    let clock = Clock::manual(1_800_000_000_000);
    let server = TestServer::start_at(folder.path(), &sales_conf(&sink, &zone), clock.clone()).await;
    for n in 0..5 {
        let reply = send_to_info(&server, &format!("message {n}")).await;
        server.wait_done(queued_id(&reply)).await;
    }
    let sixth = send_to_info(&server, "message 6").await;
    assert!(sixth.starts_with("554 5.4.6"), "{sixth}");
    clock.advance(60 * 60 * 1000 + 1);
    assert!(send_to_info(&server, "an hour later").await.starts_with("250"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loop_counters_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = (Sink::start().await, far_zone().serve().await);
    let conf = sales_conf(&sink, &zone);
    let server = TestServer::start(folder.path(), &conf).await;
    let mut taken = Vec::new();
    for n in 0..3 {
        taken.push(queued_id(&send_to_info(&server, &format!("message {n}")).await));
    }
    server.stop().await;
    let server = TestServer::start(folder.path(), &conf).await;
    for n in 3..5 {
        taken.push(queued_id(&send_to_info(&server, &format!("message {n}")).await));
    }
    let sixth = send_to_info(&server, "message 6").await;
    assert!(sixth.starts_with("554 5.4.6"), "{sixth}");
    // What the first server had not delivered when it stopped, the second one has found again.
    for id in taken {
        server.wait_done(id).await;
    }
    server.stop().await;
    assert_eq!(maildir_messages(&folder.path().join("box")).len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_message_comes_back_as_a_notice() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Sink::start().await;
    // nomail.test says by a null MX (RFC 7505) that it takes none.
    let zone = far_zone().null_mx("nomail.test").serve().await;
    let server = TestServer::start(folder.path(), &relay_conf(&sink, &zone)).await;
    let mut client = Client::connect(server.submission).await.unwrap();
    let content = letter("me@far.test", "you@nomail.test", "hello", "text");
    let reply = client.send("me@far.test", &["you@nomail.test"], &content).await.unwrap();
    server.wait_done(queued_id(&reply)).await;
    sink.wait_for(1).await;
    let notice = sink.taken().remove(0);
    assert_eq!((notice.mail_from.as_str(), notice.recipients.as_slice()), ("", ["me@far.test".to_owned()].as_slice()));
    let text = String::from_utf8(notice.content).unwrap();
    for part in [
        "multipart/report",
        "report-type=delivery-status",
        "Action: failed",
        "Status: 5.1.10",
        "you@nomail.test",
        "Auto-Submitted:",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }

    // The null sender hears nothing: no backscatter, no loop of notices.
    let reply = client.send("", &["you@nomail.test"], &content).await.unwrap();
    let story = server.wait_done(queued_id(&reply)).await;
    assert!(!story.entries.iter().any(|entry| matches!(entry.event, Event::NoticeSent { .. })));
    server.stop().await;
    assert_eq!(sink.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_recipients_is_refused_and_only_that_one_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = (Sink::start().await, far_zone().serve().await);
    let server = TestServer::start(folder.path(), &relay_conf(&sink, &zone)).await;
    let mut client = Client::connect(server.submission).await.unwrap();
    let content = letter("me@far.test", "you@far.test", "hello", "text");
    let reply = client.send("me@far.test", &["you@far.test", "refused@far.test"], &content).await.unwrap();
    let story = server.wait_done(queued_id(&reply)).await;
    sink.wait_for(2).await;
    let taken = sink.taken();
    assert_eq!(taken[0].recipients, ["you@far.test"]);
    assert_eq!(taken[1].recipients, ["me@far.test"]);
    let notice = String::from_utf8_lossy(&taken[1].content).into_owned();
    assert!(notice.contains("rfc822; refused@far.test") && notice.contains("550 5.1.1 nobody here"), "{notice}");
    assert!(!notice.contains("rfc822; you@far.test"), "{notice}");
    let count = |wanted: fn(&Event) -> bool| story.entries.iter().filter(|entry| wanted(&entry.event)).count();
    assert_eq!(count(|event| matches!(event, Event::Delivered { .. })), 1);
    assert_eq!(count(|event| matches!(event, Event::Failed { .. })), 1);
    assert_eq!(count(|event| matches!(event, Event::NoticeSent { .. })), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_go_now_waits_and_goes_later() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Sink::start().await;
    let zone = far_zone().fail("far.test").serve().await;
    let clock = Clock::manual(1_800_000_000_000);
    let conf = relay_conf(&sink, &zone);
    let server = TestServer::start_at(folder.path(), &conf, clock.clone()).await;
    let mut client = Client::connect(server.submission).await.unwrap();
    let content = letter("me@home.test", "you@far.test", "hello", "text");
    let reply = client.send("me@home.test", &["you@far.test"], &content).await.unwrap();
    let id = queued_id(&reply);
    server.wait_for(id, |event| matches!(event, Event::Deferred { attempt: 1, .. })).await;
    assert_eq!(server.queue().await[0].recipients[0].attempts, 1);
    server.stop().await;

    zone.replace(far_zone());
    clock.advance(2 * 60 * 1000);
    let server = TestServer::start_at(folder.path(), &conf, clock).await;
    let story = server.wait_done(id).await;
    assert!(matches!(story.entries.last().unwrap().event, Event::Delivered { attempt: 2, .. }));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mx_on_loopback_is_a_mistake_not_a_destination() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = (Sink::start().await, far_zone().serve().await);
    let conf = relay_conf(&sink, &zone).replace("allow_private_addresses = true", "");
    let server = TestServer::start(folder.path(), &conf).await;
    let mut client = Client::connect(server.submission).await.unwrap();
    let reply = client.send("", &["you@far.test"], &letter("me@home.test", "you@far.test", "x", "y")).await.unwrap();
    let story = server.wait_done(queued_id(&reply)).await;
    let why = story.entries.iter().find_map(|entry| match &entry.event {
        Event::Failed { why, .. } => Some(why.reason.clone()),
        _ => None,
    });
    assert!(why.as_ref().is_some_and(|why| why.contains("allow_private_addresses")), "{why:?}");
    server.stop().await;
    assert_eq!(sink.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_sends_as_itself_only() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = (Sink::start().await, far_zone().serve().await);
    let conf = relay_conf(&sink, &zone).replace("trusted = [\"127.0.0.0/8\"]", "")
        + "[accounts.shop]\npassword = \"correct horse\"\nsenders = [\"shop@home.test\"]\n";
    let server = TestServer::start(folder.path(), &conf).await;
    let mut client = Client::connect(server.submission).await.unwrap();
    // \0shop\0correct horse
    client.command("AUTH PLAIN AHNob3AAY29ycmVjdCBob3JzZQ==", "235").await.unwrap();
    client.command("MAIL FROM:<boss@home.test>", "553 5.7.1").await.unwrap();
    let forged = letter("boss@home.test", "you@far.test", "x", "y");
    let reply = client.send("shop@home.test", &["you@far.test"], &forged).await.unwrap();
    assert!(reply.starts_with("553 5.7.1"), "{reply}");
    let honest = letter("shop@home.test", "you@far.test", "x", "y");
    let reply = client.send("shop@home.test", &["you@far.test"], &honest).await.unwrap();
    server.wait_done(queued_id(&reply)).await;
    server.stop().await;
    assert_eq!(sink.count(), 1);
}

const HOOKED: &str = r#"
[domains."home.test"]
[aliases]
"all@home.test" = ["box", "crm", "friend@far.test"]
[targets.box]
kind = "maildir"
path = "DATA_DIR/box"
[targets.crm]
kind = "webhook"
url = "HOOK"
secret = "whsec_c2VjcmV0"
[loops]
limit = 100
[delivery]
mx_port = PORT
allow_private_addresses = true
[dns]
nameservers = ["ZONE"]
"#;

/// A message of `domain`, with the records that a receiver needs to verify its signature.
fn signed(folder: &Path, domain: &str) -> (String, Vec<(String, String)>) {
    let text = format!(
        "hostname = \"mail.{domain}\"\ndata_dir = \"{}\"\n[domains.\"{domain}\"]\n",
        folder.join(domain).display()
    );
    std::fs::create_dir(folder.join(domain)).unwrap();
    let config = postrider::config::parse("other.toml", &text).unwrap();
    let signer = postrider::intake::sign::Signer::load(&config).unwrap();
    let own = domain.parse_domain();
    let plain = letter(&format!("ann@{domain}"), "all@home.test", "signed", "the signed text");
    let mut whole = Vec::new();
    for signature in signer.sign(&own, plain.as_bytes()).unwrap() {
        whole.extend_from_slice(&signature.field);
    }
    whole.extend_from_slice(plain.as_bytes());
    (String::from_utf8(whole).unwrap(), signer.records(&own))
}

trait ParseDomain {
    fn parse_domain(&self) -> postrider::message::Domain;
}

impl ParseDomain for str {
    fn parse_domain(&self) -> postrider::message::Domain {
        postrider::message::Domain::parse(self).unwrap()
    }
}

/// What the whole way adds to a message from outside: the Authentication-Results that Maildir and
/// webhook see, for each outcome that a sender can have; and the refusal under DMARC.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_checks_found_reaches_maildir_webhook_and_forward() {
    let folder = tempfile::tempdir().unwrap();
    let (good, records) = signed(folder.path(), "signer.test");
    let mut zone = far_zone()
        .txt("pass.test", "v=spf1 ip4:127.0.0.1 -all")
        .txt("fail.test", "v=spf1 ip4:192.0.2.1 -all")
        .txt("strict.test", "v=spf1 -all")
        .txt("_dmarc.strict.test", "v=DMARC1; p=reject")
        .a("none.test", "192.0.2.9")
        .a("signer.test", "192.0.2.9");
    for (name, text) in &records {
        zone = zone.txt(name, text);
    }
    let (sink, zone, hook) = (Sink::start().await, zone.serve().await, Hook::start().await);
    let conf = HOOKED
        .replace("PORT", &sink.address.port().to_string())
        .replace("ZONE", &zone.addr().to_string())
        .replace("HOOK", &hook.url);
    let server = TestServer::start(folder.path(), &conf).await;
    let broken = good.replace("the signed text", "another text");
    let cases = [
        ("ann@pass.test", letter("ann@pass.test", "all@home.test", "1", "x"), "spf=pass", "dkim=none"),
        ("ann@fail.test", letter("ann@fail.test", "all@home.test", "2", "x"), "spf=fail", "dkim=none"),
        ("ann@none.test", letter("ann@none.test", "all@home.test", "3", "x"), "spf=none", "dkim=none"),
        ("ann@signer.test", good, "spf=none", "dkim=pass"),
        ("ann@signer.test", broken, "spf=none", "dkim=fail"),
    ];
    let mut client = Client::connect(server.mx).await.unwrap();
    for (number, (from, content, spf, dkim)) in cases.iter().enumerate() {
        let reply = client.send(from, &["all@home.test"], content).await.unwrap();
        assert!(reply.starts_with("250"), "{reply}");
        server.wait_done(queued_id(&reply)).await;
        let results = |content: &str| {
            let headers = Headers::parse(content.as_bytes());
            headers.get("authentication-results").unwrap().text()
        };
        let boxed = maildir_messages(&folder.path().join("box")).join("").replace('\n', "\r\n");
        assert_eq!(boxed.matches("\nAuthentication-Results: ").count(), number + 1);
        let forwarded = String::from_utf8(sink.taken().remove(number).content).unwrap();
        let found = results(&forwarded);
        assert!(found.starts_with(HOSTNAME) && found.contains(spf) && found.contains(dkim), "{found}");
        let event = hook.received().remove(number);
        assert_eq!(event["type"], "inbound.received");
        let auth = &event["data"]["auth"];
        assert_eq!(auth["spf"]["result"], spf.trim_start_matches("spf="), "{auth}");
        assert_eq!(auth["dkim"][0]["result"], dkim.trim_start_matches("dkim="), "{auth}");
        assert_eq!(event["data"]["envelope"]["mail_from"], *from);
    }
    let forged = letter("boss@strict.test", "all@home.test", "pay now", "x");
    let reply = client.send("boss@strict.test", &["all@home.test"], &forged).await.unwrap();
    assert!(reply.starts_with("550 5.7.1"), "{reply}");
    server.stop().await;
    assert_eq!((sink.count(), hook.received().len()), (cases.len(), cases.len()));
}
