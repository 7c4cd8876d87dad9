//! HTTP over TCP: who is let in, messages as JSON and whole, once for each key, later ones, and what is
//! refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use postrider::clock::Clock;
use postrider::events::Event;
use postrider::message::MessageId;
use serde_json::{Value, json};
use support::client::Client;
use support::server::TestServer;
use support::sink::Sink;
use support::zone::{Zone, ZoneServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

struct Answer {
    status: u16,
    head: String,
    body: Value,
}

impl Answer {
    fn id(&self) -> MessageId {
        assert_eq!(self.status, 202, "{}", self.body);
        self.body["id"].as_str().unwrap().parse().unwrap()
    }

    fn error(&self) -> &str {
        assert!(self.body["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{}", self.body);
        self.body["error"].as_str().unwrap()
    }
}

/// `more`: header fields, a line each.
async fn ask(to: SocketAddr, request: &str, more: &[&str], body: &str) -> Answer {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let fields: String = more.iter().map(|line| format!("{line}\r\n")).collect();
    let text = format!(
        "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{fields}\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_ascii_lowercase(), body: serde_json::from_str(body).unwrap_or(Value::Null) }
}

fn bearer() -> String {
    format!("Authorization: Bearer {TOKEN}")
}

fn basic(name: &str, password: &str) -> String {
    format!("Authorization: Basic {}", STANDARD.encode(format!("{name}:{password}")))
}

const JSON: &str = "Content-Type: application/json";

async fn post(to: SocketAddr, who: &str, more: &[&str], body: &Value) -> Answer {
    let fields: Vec<&str> = [who, JSON].into_iter().chain(more.iter().copied()).collect();
    ask(to, "POST /api/v1/messages", &fields, &body.to_string()).await
}

struct House {
    server: TestServer,
    http: SocketAddr,
    sink: Sink,
    _zone: ZoneServer,
    conf: String,
    folder: tempfile::TempDir,
}

async fn house(more: &str) -> House {
    house_at(more, Clock::System).await
}

async fn house_at(more: &str, clock: Clock) -> House {
    house_with(more, "", clock).await
}

/// `limits`: what follows in `[limits]`.
async fn house_with(more: &str, limits: &str, clock: Clock) -> House {
    let sink = Sink::start().await;
    let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1").serve().await;
    let conf = format!(
        "[domains.\"home.test\"]\n[domains.\"other.test\"]\n[accounts.shop]\npassword = \"pencil\"\n\
         senders = [\"home.test\"]\nstreams = [\"transactional\", \"bulk\"]\nmax_recipients = 3\n{more}\n\
         [delivery]\nmx_port = {}\nallow_private_addresses = true\n[dns]\nnameservers = [\"{}\"]\n\
         [admin]\nbind = \"127.0.0.1:0\"\ntoken = \"{TOKEN}\"\n",
        sink.address.port(),
        zone.addr()
    );
    let folder = tempfile::tempdir().unwrap();
    let server = match limits {
        "" => TestServer::start_at(folder.path(), &conf, clock).await,
        limits => {
            let line = "connections_per_ip = 1000";
            TestServer::start_with(folder.path(), &conf, line, &format!("{line}\n{limits}")).await
        }
    };
    let http = port(&server);
    House { server, http, sink, _zone: zone, conf, folder }
}

fn port(server: &TestServer) -> SocketAddr {
    server.app.listeners().iter().find(|listener| listener.role == "http").unwrap().address
}

impl House {
    async fn restarted(self) -> House {
        self.server.stop().await;
        let server = TestServer::start(self.folder.path(), &self.conf).await;
        House { http: port(&server), server, ..self }
    }
}

fn message() -> Value {
    json!({"from": "Shop <shop@home.test>", "to": "you@far.test", "subject": "Hello", "text": "Your order."})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_in_parts_arrives_as_one_and_signed() {
    let house = house("").await;
    let body = json!({
        "from": "Shop <shop@home.test>",
        "to": ["A <a@far.test>", "b@far.test"],
        "bcc": "secret@far.test",
        "reply_to": "help@home.test",
        "subject": "Grüße",
        "text": "Hallo.\n",
        "html": "<p>Hallo <img src=\"cid:logo\"></p>",
        "attachments": [{"filename": "a.pdf", "content_type": "application/pdf", "content": "JVBERg=="},
                        {"content_id": "logo", "content_type": "image/png", "content": "iVBORw=="}],
        "headers": {"X-Campaign": "spring"},
        "stream": "bulk",
    });
    let id = post(house.http, &basic("shop", "pencil"), &[], &body).await.id();
    let story = house.server.wait_done(id).await;
    assert_eq!(story.entries.iter().filter(|entry| matches!(entry.event, Event::Delivered { .. })).count(), 3);
    let taken = house.sink.taken();
    assert_eq!(taken.len(), 1, "one transaction");
    let text = String::from_utf8(taken[0].content.clone()).unwrap();
    for wanted in ["DKIM-Signature:", "From: ", "Reply-To: <help@home.test>", "X-Campaign: spring", "multipart/related"]
    {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    assert!(!text.contains("secret@far.test") && !text.contains("X-Postrider-Stream"), "{text}");
    assert!(text.contains("with http id") && !text.contains("pencil"), "{text}");
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_message_goes_as_it_is() {
    let house = house("").await;
    let request = "POST /api/v1/messages?from=shop@home.test&to=a@far.test&to=b@far.test";
    let content = "From: shop@home.test\nSubject: x\n\n.one\n..two\n";
    let answer = ask(house.http, request, &[&bearer(), "Content-Type: message/rfc822"], content).await;
    house.server.wait_done(answer.id()).await;
    let taken = house.sink.taken();
    assert!(taken[0].content.ends_with(b"Subject: x\r\n\r\n.one\r\n..two\r\n"));
    assert_eq!(taken[0].recipients.len(), 2);
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_has_to_be_known_and_accounts_may_only_submit() {
    let house = house("").await;
    let http = house.http;
    for path in ["/healthz", "/readyz", "/openapi.json"] {
        assert_eq!(ask(http, &format!("GET {path}"), &[], "").await.status, 200, "{path}");
    }
    for path in ["/api/v1/queue", "/api/v1/status", "/metrics", "/nothing"] {
        let answer = ask(http, &format!("GET {path}"), &[], "").await;
        assert_eq!(answer.status, 401, "{path}");
        assert!(answer.head.contains("www-authenticate: bearer"), "{}", answer.head);
        answer.error();
        let answer = ask(http, &format!("GET {path}"), &[&basic("shop", "pencil")], "").await;
        assert_eq!(answer.status, 403, "{path}");
        answer.error();
    }
    for who in ["Authorization: Bearer 0123456789abcdef0123456789abcdee", "Authorization: Bearer", "X: y"] {
        assert_eq!(post(http, who, &[], &message()).await.status, 401, "{who}");
    }
    for (name, password) in [("shop", "pen"), ("nobody", "pencil"), ("", ""), ("", TOKEN)] {
        assert_eq!(post(http, &basic(name, password), &[], &message()).await.status, 401, "{name}");
    }
    assert_eq!(ask(http, "GET /api/v1/status", &[&bearer()], "").await.body["hostname"], "mail.home.test");
    assert!(house.server.queue().await.is_empty());
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_not_taken_for_an_object_without_fields() {
    let House { server, http, .. } = &house("").await;
    for path in ["suspend", "resume", "queue/cancel", "suppressions", "pickup/once", "fetch/run"] {
        for (body, status) in [("[]", 400), (" [[], {}, true]", 400), ("null", 400), ("{", 400), ("{\"x\": 1}", 422)] {
            let answer = ask(*http, &format!("POST /api/v1/{path}"), &[&bearer(), JSON], body).await;
            assert_eq!(answer.status, status, "{path} {body}: {}", answer.error());
        }
        let answer = ask(*http, &format!("POST /api/v1/{path}"), &[&bearer(), "Content-Type: text/plain"], "{}").await;
        assert_eq!(answer.status, 415, "{path}: {}", answer.error());
    }
    let ready = ask(*http, "GET /readyz", &[], "").await;
    assert_eq!(ready.body["suspended"], json!([]));
    let _ = server;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_are_counted_together_with_those_over_smtp() {
    let house = house_with("", "auth_failures = \"2/15m\"", Clock::System).await;
    let wrong = basic("shop", "wrong");
    assert_eq!(post(house.http, &wrong, &[], &message()).await.status, 401);
    let mut smtp = Client::connect(house.server.submission).await.unwrap();
    let login = STANDARD.encode("\0shop\0wrong");
    assert!(smtp.say("EHLO x.test").await.unwrap().starts_with("250"));
    let reply = smtp.say(&format!("AUTH PLAIN {login}")).await.unwrap();
    assert!(reply.starts_with("535"), "{reply}");
    let answer = post(house.http, &basic("shop", "pencil"), &[], &message()).await;
    assert_eq!(answer.status, 429, "{}", answer.body);
    answer.error();
    // Who guesses without a name has not guessed at the token, and one machine is not kept from its own server.
    for _ in 0..3 {
        post(house.http, &basic("", "wrong"), &[], &message()).await;
    }
    post(house.http, &bearer(), &[], &message()).await.id();
    house.server.stop().await;
}

/// Here there is no RCPT: a message is taken for all of its recipients or not at all, and who sent it is told when it
/// can go, or that it never can.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_goes_over_the_limit_of_a_day_or_a_rate_is_refused_as_a_whole() {
    let to = |count: usize| {
        let all: Vec<String> = (0..count).map(|number| format!("you{number}@far.test")).collect();
        let mut body = message();
        body["to"] = all.into();
        body
    };
    let shop = basic("shop", "pencil");
    let day = house("daily_limit = 2\nrate_limit = \"2/m\"\n").await;
    let answer = post(day.http, &shop, &[], &to(3)).await;
    assert_eq!(answer.status, 422, "{}", answer.body);
    assert!(answer.body.to_string().contains("can never be sent: the daily limit is 2"), "{}", answer.body);
    post(day.http, &shop, &[], &to(1)).await.id();
    let answer = post(day.http, &shop, &[], &to(2)).await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.body.to_string().contains("T00:00:00.000Z"), "{}", answer.body);
    post(day.http, &shop, &[], &to(1)).await.id();
    day.server.stop().await;

    let rate = house("rate_limit = \"2/m\"\n").await;
    post(rate.http, &shop, &[], &to(3)).await.id();
    let answer = post(rate.http, &shop, &[], &to(1)).await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.body.to_string().contains("more than 2 recipients in 60 s"), "{}", answer.body);
    rate.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_has_the_rights_that_it_has_over_smtp() {
    let house = house("").await;
    let shop = basic("shop", "pencil");
    let with = |key: &str, value: Value| {
        let mut body = message();
        body[key] = value;
        body
    };
    for (body, why) in [
        (with("from", json!("boss@other.test")), "not among the senders"),
        (with("headers", json!({"Sender": "boss@other.test"})), "not among the senders"),
        (with("stream", json!("security")), "asks for the stream"),
        (with("to", json!(["a@far.test", "b@far.test", "c@far.test", "d@far.test"])), "1 to 3 recipients"),
        (with("to", json!("nobody@home.test")), "no such address"),
        (with("subject", json!("a\r\nBcc: x@far.test")), "line end"),
        (with("send_at", json!("2999-01-01T00:00:00Z")), "30 days"),
    ] {
        let answer = post(house.http, &shop, &[], &body).await;
        assert_eq!(answer.status, 422, "{} for {body}", answer.body);
        assert!(answer.error().contains(why), "{} for {body}", answer.body);
    }
    for body in [
        "",
        "{",
        "[]",
        "{\"from\": \"shop@home.test\", \"to\": [], \"text\": \"x\"}",
        "{\"from\": 1}",
        "{\"from\": \"a@home.test\", \"spam\": 1}",
    ] {
        let answer = ask(house.http, "POST /api/v1/messages", &[&shop, JSON], body).await;
        assert_eq!(answer.status, 400, "{body}");
        answer.error();
    }
    let answer = ask(house.http, "POST /api/v1/messages", &[&shop, "Content-Type: text/plain"], "x").await;
    assert_eq!(answer.status, 415);
    assert!(house.server.queue().await.is_empty());
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_makes_one_message_also_across_a_restart() {
    let house = house("[accounts.crm]\npassword = \"pencil\"\n").await;
    let (shop, key) = (basic("shop", "pencil"), "Idempotency-Key: order-17");
    let first = post(house.http, &shop, &[key], &message()).await;
    assert!(!first.head.contains("idempotency-replayed"));
    let id = first.id();
    let house = house.restarted().await;
    let again = post(house.http, &shop, &[key], &message()).await;
    assert_eq!(again.id(), id);
    assert!(again.head.contains("idempotency-replayed: true"));
    let mut inside = message();
    inside["idempotency_key"] = json!("order-17");
    assert!(post(house.http, &shop, &[], &inside).await.error().contains("another message"), "the body is another");

    let mut other = message();
    other["text"] = json!("Another order.");
    let refused = post(house.http, &shop, &[key], &other).await;
    assert_eq!(refused.status, 422);
    assert!(refused.error().contains("used for another message"));
    assert!(refused.body["remedy"].as_str().unwrap().contains("a key of its own"), "{}", refused.body);
    assert_ne!(post(house.http, &basic("crm", "pencil"), &[key], &message()).await.id(), id, "a key is its owner's");
    assert_ne!(post(house.http, &bearer(), &[key], &message()).await.id(), id);
    for bad in ["Idempotency-Key: ", &format!("Idempotency-Key: {}", "x".repeat(257))] {
        assert_eq!(post(house.http, &shop, &[bad], &message()).await.status, 400);
    }
    house.sink.wait_for(3).await;
    house.server.stop().await;
    assert_eq!(house.sink.taken().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_at_once_makes_one_message() {
    let house = house("").await;
    let asked = (0..20).map(|_| {
        let http = house.http;
        tokio::spawn(async move { post(http, &bearer(), &["Idempotency-Key: k"], &message()).await.id() })
    });
    let mut ids = Vec::new();
    for asked in asked.collect::<Vec<_>>() {
        ids.push(asked.await.unwrap());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    house.server.wait_done(ids[0]).await;
    assert_eq!(house.sink.taken().len(), 1);
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_forgotten_after_a_day_and_a_refused_message_uses_none_up() {
    let clock = Clock::manual(1_800_000_000_000);
    let house = house_at("", clock.clone()).await;
    let (shop, key) = (basic("shop", "pencil"), "Idempotency-Key: k");
    let mut wrong = message();
    wrong["from"] = json!("boss@other.test");
    assert_eq!(post(house.http, &shop, &[key], &wrong).await.status, 422);
    let id = post(house.http, &shop, &[key], &message()).await.id();
    clock.advance(24 * 3600 * 1000 - 1);
    assert_eq!(post(house.http, &shop, &[key], &message()).await.id(), id);
    clock.advance(1);
    assert_ne!(post(house.http, &shop, &[key], &message()).await.id(), id);
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_for_later_waits_until_then_and_its_retries_count_from_then() {
    let clock = Clock::manual(1_800_000_000_000);
    let house = house_at("[delivery.retry]\nexpire = \"1h\"\n", clock.clone()).await;
    let mut later = message();
    // Eight hours later: far behind `expire`, counted from now.
    later["send_at"] = json!("2027-01-15T16:00:00Z");
    let id = post(house.http, &bearer(), &[], &later).await.id();
    let other = post(house.http, &bearer(), &[], &message()).await.id();
    house.server.wait_done(other).await;
    assert_eq!(house.sink.taken().len(), 1);
    let listed = house.server.story(id).await.unwrap().message.unwrap();
    assert_eq!(listed.recipients[0].due, Some(1_800_028_800_000));
    clock.advance(8 * 3600 * 1000);
    let now = post(house.http, &bearer(), &[], &message()).await.id();
    house.server.wait_done(now).await;
    house.server.wait_done(id).await;
    assert_eq!(house.sink.taken().len(), 3);
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused_and_harms_nobody() {
    let house = house_with("", "max_size = \"64KiB\"", Clock::System).await;
    let mut large = message();
    large["text"] = json!("x".repeat(200_000));
    let answer = post(house.http, &bearer(), &[], &large).await;
    assert_eq!(answer.status, 413);
    answer.error();
    post(house.http, &bearer(), &[], &message()).await.id();
    house.server.stop().await;
}
