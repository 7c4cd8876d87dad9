//! Delivery by Microsoft Graph against a sendMail endpoint that plays a script on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/fake_http.rs"]
mod fake_http;
#[path = "support/records.rs"]
mod records;

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fake_http::{FakeHttp, Request};
use postrider::clock::Clock;
use postrider::config::{self, SmartHost};
use postrider::delivery::graph::{Graph, MESSAGE_BYTES_MAX, Sent};
use postrider::delivery::oauth::Tokens;
use postrider::delivery::smtp::LoginFault;
use postrider::delivery::{Body, HostFailure, Job, Outcome};
use postrider::message::MessageId;
use postrider::queue::record::Failure;
use records::START;
use tempfile::TempDir;

const CONTENT: &str = "From: app@own.test\r\nTo: one@far.test\r\nSubject: caf\u{e9}\r\n\r\n.Hello\r\n";

struct World {
    service: FakeHttp,
    clock: Clock,
    graph: Graph,
    host: SmartHost,
    _folder: TempDir,
}

impl World {
    /// With a token; `more` are keys of the host.
    async fn new(more: &str) -> World {
        let (service, clock) = (FakeHttp::start().await, Clock::manual(START));
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "hostname = \"mail.own.test\"\ndata_dir = \"{}\"\n[smart_hosts.office]\nkind = \"graph\"\nusername = \"app@own.test\"\n\
             graph_url = \"{url}/\"\n{more}\n[smart_hosts.office.oauth]\nprovider = \"microsoft\"\nflow = \"client_credentials\"\n\
             client_id = \"app\"\nclient_secret = \"hush\"\ntoken_url = \"{url}/token\"\n",
            folder.path().display(),
            url = service.url
        );
        let config = config::parse("test.toml", &text).unwrap_or_else(|problems| panic!("{problems}"));
        let (queue, _) = records::open(&folder.path().join("store"), &clock);
        let tokens = Arc::new(Tokens::new(&config, queue, clock.clone()).unwrap());
        let graph = Graph::new(&config, tokens, clock.clone()).unwrap();
        let host = config.smart_hosts[0].clone();
        let world = World { service, clock, graph, host, _folder: folder };
        world.grants("one");
        world
    }

    fn grants(&self, token: &str) {
        let body = format!("{{\"access_token\":\"{token}\",\"token_type\":\"Bearer\",\"expires_in\":36000}}");
        self.service.will("200 OK", "", &body);
    }

    fn answers(&self, status: &str, code: &str) {
        self.service.will(status, "", &format!("{{\"error\":{{\"code\":\"{code}\",\"message\":\"so it is\"}}}}"));
    }

    async fn send(&self, content: &str, recipients: &[&str]) -> Sent {
        self.graph.deliver(&job(content, recipients), &self.host).await
    }

    /// The requests to send.
    fn posts(&self) -> Vec<Request> {
        let mut requests = self.service.take();
        requests.retain(|request| !request.line().starts_with("POST /token "));
        requests
    }
}

fn job(content: &str, recipients: &[&str]) -> Job {
    let chunk = Bytes::from(content.to_owned());
    let mut message = records::message(MessageId::from_u64(1), std::slice::from_ref(&chunk), recipients.len() as u32);
    message.message_id = "1@own.test".to_owned();
    let recipients = recipients.iter().enumerate();
    let recipients = recipients.map(|(number, address)| (number as u32, records::recipient(address, 0))).collect();
    Job { message: Arc::new(message), body: Body::new(vec![chunk]), recipients }
}

fn failure(sent: Sent) -> Failure {
    match sent {
        Sent::Decided(outcomes) => match outcomes.into_iter().next() {
            Some((_, Outcome::Fail(failure))) => failure,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn trouble(sent: Sent) -> HostFailure {
    match sent {
        Sent::Host(failure) => failure,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_message_goes_as_mime_in_base64_with_the_others_as_bcc() {
    let world = World::new("").await;
    world.service.will("202 Accepted", "", "");
    let sent = world.send(CONTENT, &["one@far.test", "two@far.test"]).await;
    let Sent::Decided(outcomes) = sent else { panic!("{sent:?}") };
    assert_eq!(outcomes.len(), 2);
    for (_, outcome) in &outcomes {
        let Outcome::Delivered(delivered) = outcome else { panic!("{outcome:?}") };
        assert_eq!(delivered.to, "app@own.test at 127.0.0.1");
        assert_eq!(delivered.reply.as_ref().unwrap().code, 202);
    }
    let requests = world.posts();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].line(), "POST /v1.0/users/app@own.test/sendMail HTTP/1.1");
    assert_eq!(requests[0].header("authorization"), Some("Bearer one"));
    assert_eq!(requests[0].header("content-type"), Some("text/plain"));
    let mime = String::from_utf8(STANDARD.decode(&requests[0].body).unwrap()).unwrap();
    assert_eq!(mime, format!("X-Postrider-Message-ID: <1@own.test>\r\nBcc: <two@far.test>\r\n{CONTENT}"));
}

#[tokio::test]
async fn what_is_wrong_with_the_message_fails_it() {
    let world = World::new("").await;
    for (status, code, expected) in [
        ("400 Bad Request", "ErrorMimeContentInvalidBase64String", "5.6.0"),
        ("400 Bad Request", "ErrorInvalidRecipients", "5.1.3"),
        ("413 Payload Too Large", "RequestTooLarge", "5.3.4"),
    ] {
        world.answers(status, code);
        let failure = failure(world.send(CONTENT, &["one@far.test"]).await);
        assert_eq!(failure.status, expected);
        assert!(failure.reason.contains(code) && failure.reason.contains("so it is"), "{failure:?}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_the_mailbox_or_the_service_fails_nothing() {
    let world = World::new("").await;
    for (status, code, login) in [
        ("403 Forbidden", "ErrorAccessDenied", Some(LoginFault::Refused)),
        ("403 Forbidden", "ErrorSendAsDenied", Some(LoginFault::Refused)),
        ("400 Bad Request", "ErrorMessageSubmissionBlocked", Some(LoginFault::Refused)),
        ("404 Not Found", "ErrorInvalidUser", Some(LoginFault::Refused)),
        ("404 Not Found", "", None),
        ("500 Internal Server Error", "", None),
        ("302 Found", "", None),
    ] {
        world.answers(status, code);
        let failure = trouble(world.send(CONTENT, &["one@far.test"]).await);
        assert_eq!(failure.login, login, "{failure:?}");
        assert!(failure.failure.status.starts_with("4."), "{failure:?}");
        assert!(matches!(failure.outcome(), Outcome::Defer { .. }));
    }
    // It may have been taken: said so, and no other host gets it now.
    for (status, code) in [("504 Gateway Timeout", "x"), ("", "")] {
        world.answers(status, code);
        let sent = world.send(CONTENT, &["one@far.test"]).await;
        let Sent::Decided(outcomes) = sent else { panic!("{sent:?}") };
        assert!(matches!(&outcomes[..], [(0, Outcome::Defer { why, .. })] if why.unsure), "{outcomes:?}");
    }
}

#[tokio::test]
async fn a_service_that_has_had_enough_is_left_alone_for_as_long_as_it_says() {
    let world = World::new("").await;
    world.service.will("429 Too Many Requests", "retry-after: 90\r\n", "{}");
    let failure = trouble(world.send(CONTENT, &["one@far.test"]).await);
    assert_eq!((failure.login, failure.not_before_secs), (None, Some(90)));
    world.clock.advance(30_000);
    let failure = trouble(world.send(CONTENT, &["one@far.test"]).await);
    assert_eq!(failure.not_before_secs, Some(60));
    assert_eq!(world.posts().len(), 1);
    world.clock.advance(60_000);
    world.service.will("503 Service Unavailable", "", "");
    let failure = trouble(world.send(CONTENT, &["one@far.test"]).await);
    assert_eq!(failure.not_before_secs, Some(60));
}

#[tokio::test]
async fn a_mailbox_sends_no_more_than_it_may() {
    let world = World::new("").await;
    for _ in 0..25 {
        world.service.will("202 Accepted", "", "");
        assert!(matches!(world.send(CONTENT, &["one@far.test"]).await, Sent::Decided(_)));
    }
    let failure = trouble(world.send(CONTENT, &["one@far.test"]).await);
    assert_eq!((failure.login, failure.not_before_secs), (None, Some(60)));
    assert_eq!(world.posts().len(), 25);
}

#[tokio::test]
async fn a_withdrawn_token_is_replaced_once() {
    let world = World::new("").await;
    world.service.will("202 Accepted", "", "");
    world.send(CONTENT, &["one@far.test"]).await;
    world.clock.advance(120_000);
    world.answers("401 Unauthorized", "InvalidAuthenticationToken");
    world.grants("two");
    world.service.will("202 Accepted", "", "");
    let sent = world.send(CONTENT, &["one@far.test"]).await;
    assert!(matches!(&sent, Sent::Decided(outcomes) if matches!(outcomes[0].1, Outcome::Delivered(_))), "{sent:?}");
    assert_eq!(world.posts().last().unwrap().header("authorization"), Some("Bearer two"));
    // A new one that is refused is not replaced.
    world.answers("401 Unauthorized", "InvalidAuthenticationToken");
    let failure = trouble(world.send(CONTENT, &["one@far.test"]).await);
    assert_eq!(failure.login, Some(LoginFault::Refused));
    assert!(!failure.failure.reason.contains("two"), "{failure:?}");
}

#[tokio::test]
async fn without_a_token_nothing_is_sent() {
    let world = World::new("").await;
    world.service.will("202 Accepted", "", "");
    world.send(CONTENT, &["one@far.test"]).await;
    world.posts();
    world.clock.advance(36_000_000);
    world.service.will("400 Bad Request", "", "{\"error\":\"invalid_client\"}");
    let failure = trouble(world.send(CONTENT, &["one@far.test"]).await);
    assert_eq!(failure.login, Some(LoginFault::Refused));
    assert!(failure.failure.reason.contains("invalid_client"), "{failure:?}");
    assert!(world.posts().is_empty());
}

#[tokio::test]
async fn nobody_gets_a_copy_who_is_not_meant() {
    let both = CONTENT.replace("To: one@far.test", "To: one@far.test, two@far.test");
    let alone = World::new("").await;
    let failed = failure(alone.send(&both, &["one@far.test"]).await);
    assert_eq!(failed.status, "5.3.3");
    assert!(failed.reason.contains("two@far.test") && failed.reason.contains("smart_hosts.office"), "{failed:?}");
    assert!(alone.service.take().is_empty());

    let with_smtp = World::new("host = \"smtp.office.test\"").await;
    assert_eq!(with_smtp.send(&both, &["one@far.test"]).await, Sent::BySmtp);
    assert!(with_smtp.service.take().is_empty());
}

#[tokio::test]
async fn what_is_too_large_is_told_before_it_is_sent() {
    let large = format!("{CONTENT}{}", "x".repeat(usize::try_from(MESSAGE_BYTES_MAX).unwrap()));
    let alone = World::new("").await;
    assert_eq!(failure(alone.send(&large, &["one@far.test"]).await).status, "5.3.4");
    // With what is added, too.
    let close = format!("{CONTENT}{}", "x".repeat(usize::try_from(MESSAGE_BYTES_MAX).unwrap() - CONTENT.len()));
    assert_eq!(failure(alone.send(&close, &["one@far.test"]).await).status, "5.3.4");
    assert!(alone.service.take().is_empty());
    let with_smtp = World::new("host = \"smtp.office.test\"").await;
    assert_eq!(with_smtp.send(&large, &["one@far.test"]).await, Sent::BySmtp);
}
