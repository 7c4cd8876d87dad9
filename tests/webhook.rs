//! Webhook delivery against a small HTTP server of the test's own: what is sent, and what each
//! answer means.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod endpoint;
}

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use postrider::clock::Clock;
use postrider::config::targets::WebhookFormat;
use postrider::config::{Dkim, OwnDomain, Secret, Target};
use postrider::delivery::webhook::{Webhook, WebhookError};
use postrider::delivery::{Body, Job, Outcome};
use postrider::message::findings::{DkimFinding, DmarcFinding, SpfFinding};
use postrider::message::{
    Address, BodyType, Domain, Door, DsnRequest, Findings, MessageId, Notify, Origin, Peer, ReversePath,
};
use postrider::queue::record::{Failure, Message, Recipient, Route, Status};
use postrider::queue::suspend::Suspension;
use serde_json::{Value, json};
use support::endpoint::{Endpoint, answer};
use tokio::net::TcpListener;

const NOW: u64 = 1_795_300_017_000;

fn domains() -> BTreeMap<Domain, OwnDomain> {
    let dkim = Dkim { selectors: Vec::new(), key_files: BTreeMap::new() };
    let own = OwnDomain {
        catchall: Vec::new(),
        bounce: "bounce".into(),
        previous_names: Vec::new(),
        subaddress: Some('+'),
        max_size: None,
        dkim,
    };
    BTreeMap::from([(Domain::parse("example.com").unwrap(), own)])
}

fn target(url: &str, secret: Option<&str>) -> Target {
    let secret = secret.map(|s| Secret(s.to_owned()));
    Target::Webhook { url: url.to_owned(), secret, format: WebhookFormat::Json, timeout: Duration::from_secs(30) }
}

fn webhook(url: &str, secret: Option<&str>) -> Webhook {
    Webhook::new("crm", &target(url, secret), &domains(), Clock::manual(NOW)).unwrap()
}

fn recipient(address: &str) -> Recipient {
    Recipient {
        address: Address::parse(address).unwrap(),
        alias: None,
        route: Route::Target("crm".into()),
        notify: Notify::default(),
        original: None,
        status: Status::Waiting { due: 0 },
        attempts: 0,
        last_failure: None,
        delay_notified: false,
        by_hand: None,
        released: None,
    }
}

fn job(content: &[u8], recipients: &[&str]) -> Job {
    let message = Message {
        id: MessageId::first_at(NOW),
        received_at: NOW,
        origin: Origin {
            door: Door::Mx { listener: "mx".into() },
            account: None,
            peer: Some(Peer {
                ip: "192.0.2.7".parse().unwrap(),
                helo: "client.example".into(),
                esmtp: true,
                tls: Some("TLSv1.3 TLS13_AES_256_GCM_SHA384".into()),
            }),
        },
        mail_from: ReversePath::Address(Address::parse("bounces@sender.example").unwrap()),
        body_type: BodyType::EightBitMime,
        smtputf8: false,
        dsn: DsnRequest::default(),
        size: content.len() as u64,
        chunks: 1,
        header_from: None,
        streamed: None,
        message_id: String::new(),
        subject: String::new(),
        findings: Some(Findings {
            spf: Some(SpfFinding { result: "pass".into(), domain: "sender.example".into() }),
            dkim: vec![DkimFinding { result: "pass".into(), domain: "sender.example".into(), selector: "s1".into() }],
            dmarc: Some(DmarcFinding {
                result: "pass".into(),
                policy: "reject".into(),
                domain: "sender.example".into(),
            }),
            ..Findings::default()
        }),
        recipients: recipients.len() as u32,
        stream: postrider::message::stream::default_name(),
        tls: postrider::message::TlsWish::default(),
        not_before: None,
        answers: None,
    };
    // Cut anywhere: the payload must not depend on the chunks.
    let chunks = content.chunks(1000).map(Bytes::copy_from_slice).collect();
    let recipients = (0..).zip(recipients.iter().map(|address| recipient(address))).collect();
    Job { message: Arc::new(message), body: Body::new(chunks), recipients }
}

const MAIL: &str = "Received: from x by y\r\nReceived: from y by z\r\nFrom: =?utf-8?Q?B=C3=B6b?= <bob@sender.example>\r\n\
    To: Sales <sales+web@example.com>, \"O'Neil, \\\"K\\\"\" <k@example.com>\r\nCc: team: a@b.example;\r\n\
    Reply-To: <r@sender.example>\r\nSubject: =?utf-8?Q?Gr=C3=BC=C3=9Fe?=\r\n to\tyou\r\n\
    Date: Sat, 21 Nov 2026 22:26:57 +0100\r\nMessage-ID: <m1@sender.example>\r\nIn-Reply-To: <m0@example.com>\r\n\
    References: <a@example.com> <m0@example.com>\r\nAuto-Submitted: Auto-Replied; owner-email=\"x@y\"\r\n\
    MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhello \"you\"\r\n--b\r\n\
    Content-Type: text/html\r\n\r\n<b>hello</b>\r\n--b\r\nContent-Type: application/pdf; name=a.pdf\r\n\
    Content-Disposition: attachment; filename=a.pdf\r\nContent-Transfer-Encoding: base64\r\n\r\nAAEC\r\n--b--\r\n";

fn deferred(outcomes: &[(u32, Outcome)]) -> (&Failure, Option<u64>) {
    match &outcomes[0].1 {
        Outcome::Defer { why, not_before_secs } => (why, *not_before_secs),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_event_says_all_there_is_to_say() {
    let server = Endpoint::answering(&[&answer("200 OK", "", "fine")]).await;
    let job = job(MAIL.as_bytes(), &["sales+web@example.com"]);
    let outcomes = webhook(&server.url, None).deliver(&job).await;
    let Outcome::Delivered(delivered) = &outcomes[0].1 else { panic!("{outcomes:?}") };
    assert_eq!(delivered.to, server.url);
    assert_eq!(delivered.reply.as_ref().unwrap().to_string(), "200 OK");

    let request = &server.take()[0];
    assert!(request.head.starts_with("POST /hooks/mail HTTP/1.1\r\n"));
    assert_eq!(request.header("content-type"), Some("application/json"));
    assert_eq!(request.header("user-agent"), Some(concat!("postrider/", env!("CARGO_PKG_VERSION"))));
    assert_eq!(request.header("webhook-signature"), None);
    let id = format!("msg_{}_0", job.message.id);
    assert_eq!(request.header("webhook-id"), Some(id.as_str()));
    let mut event = request.json();
    let headers = event["data"].as_object_mut().unwrap().remove("headers").unwrap();
    let expected = json!({
        "type": "inbound.received",
        "id": id,
        "created_at": "2026-11-21T22:26:57.000Z",
        "data": {
            "envelope": {
                "mail_from": "bounces@sender.example",
                "rcpt_to": ["sales+web@example.com"],
                "remote_ip": "192.0.2.7",
                "helo": "client.example",
                "tls": "TLSv1.3 TLS13_AES_256_GCM_SHA384"
            },
            "matched": {
                "domain": "example.com",
                "alias": "sales@example.com",
                "subaddress": "web",
                "target": "crm",
                "groups": {},
                "answers": null,
                "may_answer": false
            },
            "from": { "address": "bob@sender.example", "name": "Böb" },
            "to": [
                { "address": "sales+web@example.com", "name": "Sales" },
                { "address": "k@example.com", "name": "O'Neil, \"K\"" }
            ],
            "cc": [{ "address": "a@b.example", "name": "" }],
            "reply_to": [{ "address": "r@sender.example", "name": "" }],
            "subject": "Grüße to you",
            "date": "2026-11-21T22:26:57+01:00",
            "message_id": "m1@sender.example",
            "in_reply_to": "m0@example.com",
            "references": ["a@example.com", "m0@example.com"],
            "text": "hello \"you\"",
            "html": "<b>hello</b>",
            "attachments": [{
                "filename": "a.pdf",
                "content_type": "application/pdf",
                "size": 3,
                "content_id": null,
                "disposition": "attachment",
                "sha256": "ae4b3280e56e2faf83f414a6e3dabe9d5fbe18976544c05fed121accb85b53fc",
                "content": "AAEC"
            }],
            "auth": {
                "spf": { "result": "pass", "domain": "sender.example" },
                "dkim": [{ "result": "pass", "domain": "sender.example", "selector": "s1" }],
                "dmarc": { "result": "pass", "policy": "reject", "domain": "sender.example" },
                "arc": null
            },
            "loop": { "hops": 2, "auto_submitted": "auto-replied" },
            "raw": { "size": MAIL.len() }
        }
    });
    assert_eq!(event, expected);
    assert_eq!(headers.as_array().unwrap().len(), 14);
    assert_eq!(headers[0], json!(["Received", "from x by y"]));
    assert_eq!(headers[6], json!(["Subject", "=?utf-8?Q?Gr=C3=BC=C3=9Fe?= to you"]));
}

#[tokio::test]
async fn each_recipient_has_a_request_of_its_own() {
    let server = Endpoint::answering(&[&answer("200 OK", "", ""), &answer("204 No Content", "", "")]).await;
    let mut job = job(MAIL.as_bytes(), &["team@example.com", "\"a+b\"@example.com"]);
    job.recipients[0].1.alias = Some(Address::parse("all+x@example.com").unwrap());
    let outcomes = webhook(&server.url, None).deliver(&job).await;
    assert!(matches!(outcomes.as_slice(), [(0, Outcome::Delivered(_)), (1, Outcome::Delivered(_))]), "{outcomes:?}");
    let requests = server.take();
    assert_eq!(requests[0].json()["data"]["envelope"]["rcpt_to"], json!(["all+x@example.com"]));
    assert_eq!(requests[0].json()["data"]["matched"]["alias"], "team@example.com");
    assert_eq!(requests[1].json()["data"]["matched"]["alias"], "\"a+b\"@example.com");
    assert_eq!(requests[1].json()["data"]["matched"]["subaddress"], Value::Null);
    assert!(requests[1].header("webhook-id").unwrap().ends_with("_1"));
    assert_ne!(requests[0].json()["id"], requests[1].json()["id"]);
}

/// RFC 2104 written out, so that the check shares no code with what it checks.
fn hmac_sha256(key: &[u8], text: &[u8]) -> Vec<u8> {
    use aws_lc_rs::digest::{SHA256, digest};
    let mut block = [0u8; 64];
    block[..key.len()].copy_from_slice(key);
    let pad = |byte: u8| block.iter().map(|b| b ^ byte).collect::<Vec<u8>>();
    let inner = digest(&SHA256, &[&pad(0x36), text].concat());
    digest(&SHA256, &[&pad(0x5c), inner.as_ref()].concat()).as_ref().to_vec()
}

#[tokio::test]
async fn signatures_verify_with_both_kinds_of_secret() {
    for (secret, key) in
        [("whsec_bXkga2V5", &b"my key"[..]), ("whsec_aGk=", b"hi"), ("my pass phrase", b"my pass phrase")]
    {
        let server = Endpoint::answering(&[&answer("200 OK", "", "")]).await;
        let outcomes = webhook(&server.url, Some(secret)).deliver(&job(MAIL.as_bytes(), &["a@example.com"])).await;
        assert!(matches!(outcomes[0].1, Outcome::Delivered(_)), "{outcomes:?}");
        let request = &server.take()[0];
        let (id, time) = (request.header("webhook-id").unwrap(), request.header("webhook-timestamp").unwrap());
        assert_eq!(time, (NOW / 1000).to_string());
        let signed = [format!("{id}.{time}.").as_bytes(), &request.body].concat();
        let expected = format!("v1,{}", STANDARD.encode(hmac_sha256(key, &signed)));
        assert_eq!(request.header("webhook-signature"), Some(expected.as_str()));
    }
}

#[tokio::test]
async fn the_id_stays_the_same_in_the_next_attempt() {
    let server = Endpoint::answering(&[&answer("500 Oops", "", ""), &answer("200 OK", "", "")]).await;
    let (webhook, job) = (webhook(&server.url, None), job(MAIL.as_bytes(), &["a@example.com"]));
    deferred(&webhook.deliver(&job).await);
    assert!(matches!(webhook.deliver(&job).await[0].1, Outcome::Delivered(_)));
    let requests = server.take();
    assert_eq!(requests[0].header("webhook-id"), requests[1].header("webhook-id"));
    assert_eq!(requests[0].body, requests[1].body);
}

#[tokio::test]
async fn only_406_and_422_are_final() {
    for (status, code) in [("406 Not Acceptable", "5.7.1"), ("422 Unprocessable Content", "5.6.0")] {
        let server = Endpoint::answering(&[&answer(status, "", "no such\r\n\u{1b}[31mticket")]).await;
        let outcomes = webhook(&server.url, None).deliver(&job(MAIL.as_bytes(), &["a@example.com"])).await;
        let Outcome::Fail(why) = &outcomes[0].1 else { panic!("{outcomes:?}") };
        assert_eq!(why.status, code);
        assert!(why.reason.ends_with(": no such [31mticket"), "{}", why.reason);
    }
    for status in ["400 Bad Request", "401 Unauthorized", "404 Not Found", "408 Timeout", "500 Oops", "599 X"] {
        let server = Endpoint::answering(&[&answer(status, "", "")]).await;
        let outcomes = webhook(&server.url, None).deliver(&job(MAIL.as_bytes(), &["a@example.com"])).await;
        let (why, not_before) = deferred(&outcomes);
        assert!(why.reason.contains(&status[..3]) && why.status.starts_with('4') && !why.unsure, "{why:?}");
        assert_eq!(not_before, None);
    }
}

/// It asks for the target to be paused; the rest of the message is not tried.
#[tokio::test]
async fn gone_is_a_wish_for_a_pause() {
    let server = Endpoint::answering(&[&answer("410 Gone", "", "closed")]).await;
    let job = job(MAIL.as_bytes(), &["a@example.com", "b@example.com"]);
    let outcomes = webhook(&server.url, None).deliver(&job).await;
    let because = Suspension::Target("crm".into()).held_because().unwrap();
    assert_eq!(outcomes, [0, 1].map(|number| (number, Outcome::Held(because.clone()))));
    assert_eq!(server.take().len(), 1);
}

#[tokio::test]
async fn a_raw_event_is_the_message_and_the_envelope_in_fields() {
    let server = Endpoint::answering(&[&answer("200 OK", "", ""), &answer("200 OK", "", "")]).await;
    let (url, secret) = (server.url.clone(), Some(Secret("my pass phrase".into())));
    let target = Target::Webhook { url, secret, format: WebhookFormat::Raw, timeout: Duration::from_secs(30) };
    let webhook = Webhook::new("crm", &target, &domains(), Clock::manual(NOW)).unwrap();
    let mut job = job(MAIL.as_bytes(), &["sales+web@example.com", "grüße@example.com"]);
    job.recipients[1].1.alias = Some(Address::parse("all@example.com").unwrap());
    Arc::make_mut(&mut job.message).smtputf8 = true;
    let outcomes = webhook.deliver(&job).await;
    assert!(outcomes.iter().all(|(_, outcome)| matches!(outcome, Outcome::Delivered(_))), "{outcomes:?}");
    let requests = server.take();
    let first = &requests[0];
    assert_eq!(first.body, MAIL.as_bytes(), "byte for byte");
    let (id, time) = (first.header("webhook-id").unwrap(), first.header("webhook-timestamp").unwrap());
    let signed = [format!("{id}.{time}.").as_bytes(), MAIL.as_bytes()].concat();
    let signature = format!("v1,{}", STANDARD.encode(hmac_sha256(b"my pass phrase", &signed)));
    let queue_id = job.message.id.to_string();
    for (name, value) in [
        ("content-type", "message/rfc822"),
        ("webhook-signature", &signature),
        ("postrider-queue-id", &queue_id),
        ("postrider-received-at", "2026-11-21T22:26:57.000Z"),
        ("postrider-mail-from", "bounces@sender.example"),
        ("postrider-rcpt-to", "sales+web@example.com"),
        ("postrider-remote-ip", "192.0.2.7"),
        ("postrider-helo", "client.example"),
        ("postrider-tls", "TLSv1.3 TLS13_AES_256_GCM_SHA384"),
        ("postrider-domain", "example.com"),
        ("postrider-alias", "sales@example.com"),
        ("postrider-subaddress", "web"),
        ("postrider-target", "crm"),
    ] {
        assert_eq!(first.header(name), Some(value), "{name}");
    }
    let auth: Value = serde_json::from_str(first.header("postrider-auth").unwrap()).unwrap();
    assert_eq!(auth["dmarc"]["result"], "pass");
    assert_eq!(requests[1].header("postrider-rcpt-to"), Some("all@example.com"));
    assert_eq!(requests[1].header("postrider-alias"), Some("grüße@example.com"));
    assert_eq!(requests[1].header("postrider-subaddress"), None);
}

#[tokio::test]
async fn retry_after_is_honoured_within_a_day() {
    for (status, value, expected) in [
        ("429 Too Many Requests", "120", Some(120)),
        ("503 Service Unavailable", "0", Some(0)),
        ("503 Service Unavailable", "Sat, 21 Nov 2026 22:31:57 GMT", Some(300)),
        ("503 Service Unavailable", "Sat, 21 Nov 2020 22:31:57 GMT", Some(0)),
        ("503 Service Unavailable", "999999999999999999999999999", Some(86_400)),
        ("503 Service Unavailable", "100000", Some(86_400)),
        ("503 Service Unavailable", "soon", None),
        ("500 Oops", "120", None),
    ] {
        let server = Endpoint::answering(&[&answer(status, &format!("retry-after: {value}\r\n"), "busy")]).await;
        let job = job(MAIL.as_bytes(), &["a@example.com"]);
        let outcomes = webhook(&server.url, None).deliver(&job).await;
        assert_eq!(deferred(&outcomes).1, expected, "{status} {value}");
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let elsewhere = Endpoint::answering(&[&answer("200 OK", "", "")]).await;
    for status in ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let server = Endpoint::answering(&[&answer(status, &format!("location: {}\r\n", elsewhere.url), "")]).await;
        let outcomes = webhook(&server.url, None).deliver(&job(MAIL.as_bytes(), &["a@example.com"])).await;
        assert!(deferred(&outcomes).0.reason.contains("redirects are not followed"), "{outcomes:?}");
    }
    assert!(elsewhere.take().is_empty());
}

#[tokio::test]
async fn silence_and_lost_connections_are_tried_again_as_unsure() {
    let mute = Endpoint::answering(&[]).await;
    let (url, format, timeout) = (mute.url.clone(), WebhookFormat::Json, Duration::from_millis(300));
    let target = Target::Webhook { url, secret: None, format, timeout };
    let webhook = Webhook::new("crm", &target, &domains(), Clock::manual(NOW)).unwrap();
    let outcomes = webhook.deliver(&job(MAIL.as_bytes(), &["a@example.com", "b@example.com"])).await;
    assert!(deferred(&outcomes).0.unsure && deferred(&outcomes).0.reason.contains("no answer within"), "{outcomes:?}");
    // The second was not tried, so nothing is unsure about it.
    assert!(!deferred(&outcomes[1..]).0.unsure);
    assert_eq!(mute.take().len(), 1);

    let rude = Endpoint::answering(&[""]).await;
    let outcomes = self::webhook(&rude.url, None).deliver(&job(MAIL.as_bytes(), &["a@example.com"])).await;
    assert!(deferred(&outcomes).0.unsure && deferred(&outcomes).0.status == "4.4.2", "{outcomes:?}");
    assert_eq!(rude.take().len(), 1, "not repeated behind our back");
}

#[tokio::test]
async fn nobody_listening_is_a_sure_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let url = format!("http://user:hunter2@{address}/hook?token=hunter2");
    let outcomes = webhook(&url, None).deliver(&job(MAIL.as_bytes(), &["a@example.com"])).await;
    let (why, _) = deferred(&outcomes);
    assert!(!why.unsure && why.status == "4.4.1" && why.host == "crm", "{why:?}");
    assert!(why.reason.contains("refused") && !why.reason.contains("hunter2"), "{why:?}");
}

#[tokio::test]
async fn an_endless_answer_is_read_up_to_a_bound() {
    let long = answer("500 Oops", "", &"x".repeat(1 << 20));
    let server = Endpoint::answering(&[&long]).await;
    let outcomes = webhook(&server.url, None).deliver(&job(MAIL.as_bytes(), &["a@example.com"])).await;
    assert!(deferred(&outcomes).0.reason.len() < 400);
}

#[tokio::test]
async fn a_bomb_is_delivered_unparsed() {
    let mut bomb = String::from("From: a@b.example\r\nSubject: bomb\r\n");
    for level in 0..1000 {
        bomb += &format!("Content-Type: multipart/mixed; boundary=b{level}\r\n\r\n--b{level}\r\n");
    }
    let server = Endpoint::answering(&[&answer("200 OK", "", "")]).await;
    let outcomes = webhook(&server.url, None).deliver(&job(bomb.as_bytes(), &["a@example.com"])).await;
    assert!(matches!(outcomes[0].1, Outcome::Delivered(_)), "{outcomes:?}");
    let event = server.take()[0].json();
    let data = &event["data"];
    assert_eq!(data["subject"], "bomb");
    assert_eq!((&data["text"], &data["attachments"]), (&Value::Null, &json!([])));
    assert!(data["unparsed"].as_str().unwrap().contains("nested"), "{}", data["unparsed"]);
    assert_eq!(STANDARD.decode(data["raw"]["base64"].as_str().unwrap()).unwrap(), bomb.as_bytes());
}

#[tokio::test]
async fn a_large_message_arrives_whole() {
    let body = STANDARD.encode(vec![7u8; 6 << 20]);
    let lines: Vec<_> = body.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let mail = format!(
        "From: a@b.example\r\nContent-Type: application/x\r\nContent-Transfer-Encoding: base64\r\n\r\n{}\r\n",
        lines.join("\r\n")
    );
    let server = Endpoint::answering(&[&answer("200 OK", "", ""), &answer("200 OK", "", "")]).await;
    let outcomes = webhook(&server.url, None).deliver(&job(mail.as_bytes(), &["a@example.com", "b@example.com"])).await;
    assert!(outcomes.iter().all(|(_, outcome)| matches!(outcome, Outcome::Delivered(_))), "{outcomes:?}");
    for request in server.take() {
        let event = request.json();
        let attachment = &event["data"]["attachments"][0];
        assert_eq!(attachment["size"], 6 << 20);
        assert_eq!(attachment["content"], body);
    }
}

#[test]
fn mistakes_in_the_configuration_are_told() {
    let new = |target: &Target| Webhook::new("crm", target, &domains(), Clock::System);
    let maildir = Target::Maildir { path: "/tmp".into() };
    assert_eq!(new(&maildir).err(), Some(WebhookError::NotAWebhook("crm".into())));
    for url in ["", "crm.example.com", "ftp://x/", "file:///etc/passwd", "unix:///run/x"] {
        assert_eq!(new(&target(url, None)).err(), Some(WebhookError::BadUrl("crm".into())), "{url}");
    }
    let bad = new(&target("http://x/", Some("whsec_*"))).err();
    assert_eq!(bad, Some(WebhookError::BadSecret("crm".into())));
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_refused() {
    use tokio_rustls::rustls::{self, pki_types::PrivateKeyDer};
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let webhook = match Webhook::new("crm", &target(&url, None), &domains(), Clock::System) {
        Err(error @ WebhookError::NoRoots(..)) => return eprintln!("SKIPPED: {error}"),
        made => made.unwrap(),
    };
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        acceptor.accept(stream).await.is_err()
    });
    let outcomes = webhook.deliver(&job(MAIL.as_bytes(), &["a@example.com"])).await;
    let (why, _) = deferred(&outcomes);
    assert!(!why.unsure && why.reason.contains("certificate"), "{why:?}");
    assert!(server.await.unwrap(), "the handshake must not have been completed");
}
