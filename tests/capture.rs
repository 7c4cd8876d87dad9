//! `delivery.default = "capture"`: nothing leaves by any way, and what would have is there to be read, sent for
//! real, deleted; addresses of capture.test do what a far end may do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod ear;
    pub mod kept;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use std::path::Path;

use postrider::admin::{Action, Backend, CapturedPage, CapturedWish, Filter, Pick, Selection};
use postrider::app::captured::shorten;
use postrider::clock::Clock;
use postrider::events::Event;
use postrider::message::MessageId;
use postrider::queue::captured::Bounds;
use serde_json::{Value, json};
use support::client::Client;
use support::ear::Ear;
use support::kept::{self, run, stderr, stdout};
use support::server::{TestServer, queued_id};
use support::sink::Sink;
use support::zone::{Zone, ZoneServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const BASE: &str = r#"
[networks]
trusted = ["127.0.0.0/8"]
[domains."home.test"]
"#;

/// A server that captures, with servers elsewhere that would take its mail.
struct House {
    server: TestServer,
    exchanger: Sink,
    relay: Sink,
    zone: ZoneServer,
    conf: String,
    folder: tempfile::TempDir,
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&self.body)))
    }

    fn field(&self, name: &str) -> &str {
        let line = self.head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        line.unwrap_or_else(|| panic!("no {name} in {}", self.head))
    }
}

/// `delivery`: what follows in `[delivery]`; `more`: sections, in which RELAY is the port of a relay.
async fn house(delivery: &str, more: &str) -> House {
    house_at(delivery, more, Clock::System).await
}

async fn house_at(delivery: &str, more: &str, clock: Clock) -> House {
    let (exchanger, relay) = (Sink::start().await, Sink::start().await);
    let zone = ["far.test", "else.test", "capture.test"].into_iter();
    let zone = zone.fold(Zone::new(), |zone, name| zone.mx(name, 10, "mx.far.test"));
    let zone = zone.a("mx.far.test", "127.0.0.1").serve().await;
    let conf = format!(
        "{BASE}[delivery]\nmx_port = {}\nallow_private_addresses = true\n{delivery}\n[dns]\nnameservers = [\"{}\"]\n{more}\n",
        exchanger.address.port(),
        zone.addr()
    );
    let conf = conf.replace("RELAY", &relay.address.port().to_string());
    let folder = tempfile::tempdir().unwrap();
    kept::write_config(folder.path());
    let server = TestServer::start_at(folder.path(), &conf, clock).await;
    House { server, exchanger, relay, zone, conf, folder }
}

const CAPTURE: &str = "default = \"capture\"";

impl House {
    async fn restarted(self) -> House {
        self.server.stop().await;
        let server = TestServer::start(self.folder.path(), &self.conf).await;
        House { server, ..self }
    }

    async fn submit(&self, from: &str, to: &[&str], content: &str) -> MessageId {
        let mut client = Client::connect(self.server.submission).await.unwrap();
        queued_id(&client.send(from, to, content).await.unwrap())
    }

    /// Sent and captured.
    async fn captured(&self, to: &[&str], content: &str) -> MessageId {
        let id = self.submit("me@home.test", to, content).await;
        let is_done = |story: &postrider::admin::Story| {
            let captured = |entry: &&postrider::events::Entry| matches!(entry.event, Event::Captured { .. });
            story.entries.iter().filter(captured).count() == to.len()
        };
        self.wait(|| async { self.server.story(id).await.is_some_and(|story| is_done(&story)) }).await;
        id
    }

    /// The bound turns a hang into a failure.
    async fn wait<F: Future<Output = bool>>(&self, enough: impl Fn() -> F) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !enough().await {
            assert!(std::time::Instant::now() < deadline, "gave up waiting: {:#?}", self.list("").await);
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    async fn ask(&self, request: &str, body: &str) -> Answer {
        ask(self.folder.path(), request, body).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET /api/v1/captured{path}"), "").await
    }

    /// The messages of a page.
    async fn list(&self, query: &str) -> Vec<Value> {
        let answer = self.get(query).await;
        assert_eq!(answer.status, 200, "{}", answer.json());
        answer.json()["messages"].as_array().unwrap().clone()
    }

    /// Who is captured, sorted.
    async fn whom(&self) -> Vec<String> {
        let all = self.list("").await;
        let addresses = all.iter().flat_map(|message| message["envelope"]["to"].as_array().unwrap().clone());
        let mut addresses: Vec<String> = addresses.map(|address| address.as_str().unwrap().to_owned()).collect();
        addresses.sort();
        addresses
    }

    async fn command(&self, arguments: &[&str], status: i32) -> String {
        let data_dir = self.folder.path().to_owned();
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let output = tokio::task::spawn_blocking(move || {
            run(&data_dir, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
        });
        let output = output.await.unwrap();
        assert_eq!(output.status.code(), Some(status), "{}{}", stdout(&output), stderr(&output));
        stdout(&output) + &stderr(&output)
    }

    fn arrived(&self) -> usize {
        self.exchanger.count() + self.relay.count()
    }
}

async fn ask(data_dir: &Path, request: &str, body: &str) -> Answer {
    let mut stream = UnixStream::connect(data_dir.join("admin.sock")).await.unwrap();
    let text = format!(
        "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head, body: answer[end + 4..].to_vec() }
}

fn letter(subject: &str) -> String {
    format!("From: Me <me@home.test>\r\nTo: <you@far.test>\r\nSubject: {subject}\r\n\r\nhello {subject}\r\n")
}

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, |entries| entries.count())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaves_by_any_way() {
    let more = r#"
[smart_hosts.relay]
host = "127.0.0.1"
port = RELAY
tls = "off"
[targets.box]
kind = "maildir"
path = "DATA_DIR/box"
[targets.exchange]
kind = "smtp"
host = "127.0.0.1"
port = RELAY
tls = "off"
[aliases]
"box@home.test" = "box"
"forward@home.test" = "friend@else.test"
"both@home.test" = ["box", "other@else.test"]
"office@home.test" = "exchange"
[[archive]]
path = "DATA_DIR/archive/{id}.eml"
[delivery.tls]
dane = false
[checks]
spf = "off"
dkim = "off"
dmarc = "off"
arc = "off"
"#;
    let house = house(CAPTURE, more).await;
    // Straight, and to several at once.
    let first = house.captured(&["you@far.test", "them@else.test"], &letter("straight")).await;
    // A notice to a sender elsewhere.
    house.submit("app@far.test", &["bounce@capture.test"], &letter("refused")).await;
    house.wait(|| async { house.whom().await.len() == 3 }).await;
    assert_eq!(house.zone.queries(), 0, "nobody asks where mail would go");
    // What comes in from outside and is passed on.
    let mut outside = Client::connect(house.server.mx).await.unwrap();
    for to in ["forward@home.test", "both@home.test", "office@home.test", "box@home.test"] {
        outside.send("out@far.test", &[to], &letter(to)).await.unwrap();
    }
    let all =
        ["app@far.test", "friend@else.test", "office@home.test", "other@else.test", "them@else.test", "you@far.test"];
    house.wait(|| async { house.whom().await.len() >= all.len() }).await;
    assert_eq!(house.whom().await, all);
    house
        .wait(|| async { house.server.queue().await.iter().all(|m| m.recipients.iter().all(|r| r.due.is_none())) })
        .await;
    assert_eq!(files(&house.folder.path().join("box/new")), 2, "a target of ours is no way out");
    assert_eq!((house.arrived(), files(&house.folder.path().join("archive"))), (0, 0));

    // It stays, and stays here, also after a restart.
    let house = house.restarted().await;
    assert_eq!(house.whom().await, all);
    let oldest = house.list("").await.pop().unwrap();
    assert_eq!(oldest["id"], first.to_string());
    assert_eq!((&oldest["subject"], &oldest["author"]), (&json!("straight"), &json!("me@home.test")));
    let target = house.list("?to=office").await.remove(0);
    assert_eq!(target["recipients"][0]["target"], "exchange");
    assert_eq!(house.arrived(), 0);
    house.server.stop().await;
}

/// With an image in its HTML, and names that try to lead elsewhere.
fn rich() -> String {
    let text = "From: =?utf-8?Q?M=C3=A9?= <me@home.test>\nTo: Ann <ann@far.test>, bob@else.test\nCc: c@far.test\n\
                Subject: =?utf-8?Q?Gr=C3=BC=C3=9Fe?=\nMessage-ID: <rich@home.test>\n\
                Date: Sat, 21 Nov 2026 22:26:57 +0100\nMIME-Version: 1.0\n\
                Content-Type: multipart/mixed; boundary=m\n\n--m\nContent-Type: multipart/alternative; boundary=a\n\n\
                --a\nContent-Type: text/plain; charset=utf-8\n\nplain w=C3=B6rds\n\
                --a\nContent-Type: text/html; charset=utf-8\n\n\
                <p onclick=\"alert(1)\">rich<script>alert(2)</script><img src=\"cid:logo@x\"><img src=\"https://spy.test/p.gif\">\n\
                --a--\n--m\nContent-Type: image/png; name=logo.png\nContent-ID: <logo@x>\n\
                Content-Disposition: inline\nContent-Transfer-Encoding: base64\n\niVBORw0KGgo=\n\
                --m\nContent-Type: text/html\nContent-Disposition: attachment;\n\
                \tfilename=\"../../../etc/cron.d/evil\\\"; x=.html\"\n\n<script>alert(3)</script>\n\
                --m\nContent-Type: application/x-thing\nContent-Disposition: attachment; filename*=utf-8''a%22b%e2%82%ac.exe\n\
                Content-Transfer-Encoding: base64\n\nAAEC\n--m--\n";
    text.replace('\n', "\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_read_in_all_its_parts_by_http() {
    let house = house(CAPTURE, "").await;
    let id = house.captured(&["ann@far.test", "bob@else.test", "hidden@far.test"], &rich()).await;
    let read = house.get(&format!("/{id}")).await.json();
    assert_eq!(read["envelope"]["from"], "me@home.test");
    assert_eq!(read["envelope"]["to"], json!(["ann@far.test", "bob@else.test", "hidden@far.test"]));
    assert_eq!(read["from"], json!([{ "name": "Mé", "address": "me@home.test" }]));
    assert_eq!(read["to"][0], json!({ "name": "Ann", "address": "ann@far.test" }));
    assert_eq!((read["to"].as_array().unwrap().len(), &read["cc"][0]["address"]), (2, &json!("c@far.test")));
    assert_eq!((&read["subject"], &read["message_id"]), (&json!("Grüße"), &json!("rich@home.test")));
    assert_eq!(read["text"], "plain w=C3=B6rds");
    assert!(read["html"].as_str().unwrap().contains("<script>alert(2)"), "as it is; the frame is what makes it safe");
    assert!(read["headers"].as_array().unwrap().iter().any(|field| field[0] == "DKIM-Signature"));
    let attachments = read["attachments"].as_array().unwrap();
    let shown: Vec<_> = attachments.iter().map(|one| (one["number"].clone(), one["size"].clone())).collect();
    assert_eq!(shown, [(json!(1), json!(8)), (json!(2), json!(25)), (json!(3), json!(3))]);
    assert_eq!((&attachments[0]["content_id"], &attachments[0]["inline"]), (&json!("logo@x"), &json!(true)));

    let html = house.get(&format!("/{id}/html")).await;
    assert_eq!(html.field("content-type"), "text/html; charset=utf-8");
    let policy = html.field("content-security-policy");
    assert!(
        policy.starts_with("sandbox; default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'"),
        "{policy}"
    );
    assert!(policy.contains("form-action 'none'") && !policy.contains("allow-"), "{policy}");
    assert_eq!((html.field("x-content-type-options"), html.field("referrer-policy")), ("nosniff", "no-referrer"));
    let page = String::from_utf8(html.body).unwrap();
    assert!(page.contains("<img src=\"data:image/png;base64,iVBORw0KGgo=\">") && !page.contains("cid:"), "{page}");

    let source = house.get(&format!("/{id}/source")).await;
    assert_eq!(source.field("content-type"), "message/rfc822");
    assert_eq!(source.field("content-disposition"), format!("attachment; filename=\"{id}.eml\""));
    assert!(source.body.ends_with(b"--m--\r\n") && source.body.len() as u64 == read["size"].as_u64().unwrap());

    for (number, content_type, disposition, bytes) in [
        (1, "image/png", "attachment; filename=\"logo.png\"", &b"\x89PNG\r\n\x1a\n"[..]),
        (2, "text/html", "attachment; filename=\"evil__ x=.html\"", b"<script>alert(3)</script>"),
        (
            3,
            "application/x-thing",
            "attachment; filename=\"a_b_.exe\"; filename*=UTF-8''a_b%E2%82%AC.exe",
            b"\0\x01\x02",
        ),
    ] {
        let answer = house.get(&format!("/{id}/attachments/{number}")).await;
        assert_eq!((answer.status, answer.field("content-type")), (200, content_type));
        assert!(answer.field("content-disposition").starts_with(disposition), "{}", answer.head);
        assert_eq!(answer.field("x-content-type-options"), "nosniff");
        assert_eq!(answer.field("content-security-policy"), "sandbox; default-src 'none'");
        assert_eq!(answer.body, bytes);
        assert!(!answer.head.to_lowercase().contains("\nset-cookie"), "{}", answer.head);
    }
    for (path, status) in [
        (format!("/{id}/attachments/0"), 404),
        (format!("/{id}/attachments/4"), 404),
        (format!("/{id}/attachments/x"), 400),
        ("/0000000000001".to_owned(), 404),
        ("/x".to_owned(), 400),
        ("?limit=0".to_owned(), 400),
        ("?wait=2h".to_owned(), 400),
        ("?too=ann".to_owned(), 400),
    ] {
        let answer = house.get(&path).await;
        assert_eq!(answer.status, status, "{path}");
        assert!(!answer.json()["remedy"].as_str().unwrap().is_empty(), "{path}");
    }
    let plain = house.captured(&["ann@far.test"], &letter("plain")).await;
    assert_eq!(house.get(&format!("/{plain}/html")).await.status, 404);
    for (query, found) in [
        ("?to=ann@far.test", 2),
        ("?to=else.test", 1),
        ("?from=me@home.test&subject=gr%C3%BC", 1),
        ("?q=HIDDEN", 1),
        ("?q=rich@home", 1),
        ("?since=1h", 2),
        ("?since=2999-01-01T00:00:00Z", 0),
        ("?to=ann@far.test&subject=nothing", 0),
    ] {
        assert_eq!(house.list(query).await.len(), found, "{query}");
    }
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_read_and_deleted_on_the_command_line() {
    let house = house(CAPTURE, "").await;
    assert_eq!(house.command(&["captured", "list"], 0).await, "Nothing is captured.\n");
    let id = house.captured(&["ann@far.test", "bob@else.test"], &rich()).await.to_string();
    let other = house.captured(&["you@far.test"], &letter("other")).await.to_string();
    let listed = house.command(&["captured", "list"], 0).await;
    let lines: Vec<&str> = listed.lines().collect();
    assert!(lines[0].starts_with(&other) && lines[0].contains("me@home.test → you@far.test"), "{listed}");
    assert!(
        lines[1].starts_with(&id) && lines[1].contains("ann@far.test, bob@else.test") && lines[1].ends_with("Grüße")
    );
    assert_eq!(lines[2], "2 messages.");
    let json = house.command(&["captured", "list", "--json", "--to", "ann@far.test", "--wait", "9s"], 0).await;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["id"], &json["envelope"]["to"][1]), (&json!(id), &json!("bob@else.test")));
    let missed = house.command(&["captured", "list", "--to", "nobody@far.test", "--wait", "0s"], 1).await;
    assert!(missed.contains("no such message was captured within 0 s"), "{missed}");

    let shown = house.command(&["captured", "show", &id], 0).await;
    for part in [
        "Envelope:   me@home.test → ann@far.test, bob@else.test",
        "From:       Mé <me@home.test>",
        "To:         Ann <ann@far.test>, bob@else.test",
        "Subject:    Grüße",
        "plain w=C3=B6rds",
        "Attachments:",
        "  1  logo.png",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert_eq!(house.command(&["captured", "show", &id, "--text"], 0).await, "plain w=C3=B6rds");
    assert!(house.command(&["captured", "show", &id, "--html"], 0).await.starts_with("<p onclick"));
    assert!(house.command(&["captured", "show", &id, "--headers"], 0).await.contains("Message-ID: <rich@home.test>\n"));
    assert!(house.command(&["captured", "show", &id, "--source"], 0).await.ends_with("--m--\r\n"));
    assert_eq!(house.command(&["captured", "show", &id, "--attachment", "2"], 0).await, "<script>alert(3)</script>");
    let json: Value = serde_json::from_str(&house.command(&["captured", "show", &id, "--json"], 0).await).unwrap();
    assert_eq!((&json["subject"], &json["text"]), (&json!("Grüße"), &json!("plain w=C3=B6rds")));
    assert!(house.command(&["captured", "show", &other, "--html"], 1).await.contains("the message has no HTML"));
    let explained = house.command(&["explain", &id], 0).await;
    assert!(explained.contains(&format!("postrider captured release {id}")), "{explained}");

    assert!(house.command(&["captured", "delete"], 2).await.contains("nothing is selected"));
    assert_eq!(house.command(&["captured", "delete", "--to", "nobody@far.test"], 0).await, "0 messages deleted.\n");
    assert_eq!(house.command(&["captured", "delete", &id], 0).await, "1 message deleted.\n");
    assert!(house.command(&["captured", "delete", &id], 1).await.contains("no captured message has the id"));
    let gone = house.command(&["captured", "show", &id], 1).await;
    assert!(gone.contains("no captured message has the id") && gone.contains("`postrider captured list`"), "{gone}");
    assert_eq!(house.command(&["captured", "delete", "--all", "--json"], 0).await, "{\"messages\":1}\n");
    assert!(house.server.queue().await.is_empty());
    assert!(house.command(&["log", &other], 0).await.contains("cancelled"));
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_released_arrives_as_it_was_shown_and_signed() {
    let house = house(CAPTURE, "").await;
    let id = house.captured(&["ann@far.test", "bob@else.test"], &rich()).await;
    let other = house.captured(&["you@far.test"], &letter("stays")).await;
    let source = house.get(&format!("/{id}/source")).await.body;

    // A copy elsewhere, and it stays.
    let answer = house.ask(&format!("POST /api/v1/captured/{id}/release"), "{\"to\":\"qa@else.test\"}").await;
    assert_eq!((answer.status, answer.json()), (200, json!({ "recipients": 1 })));
    house.exchanger.wait_for(1).await;
    let taken = house.exchanger.taken();
    assert_eq!((&taken[0].recipients, taken[0].content == source), (&vec!["qa@else.test".to_owned()], true));
    assert_eq!(house.whom().await, ["ann@far.test", "bob@else.test", "you@far.test"]);

    // For real, by the command, after a restart.
    let house = house.restarted().await;
    let said = house.command(&["captured", "release", &id.to_string()], 0).await;
    assert!(said.starts_with(&format!("{id} is sent to 2 recipients;")), "{said}");
    let story = house.server.wait_done(id).await;
    let mut recipients: Vec<String> = house.exchanger.taken()[1..].iter().flat_map(|t| t.recipients.clone()).collect();
    recipients.sort();
    assert_eq!(recipients, ["ann@far.test", "bob@else.test"]);
    assert!(house.exchanger.taken().iter().all(|taken| taken.content == source && taken.mail_from == "me@home.test"));
    let text = String::from_utf8_lossy(&source);
    assert!(text.contains("DKIM-Signature: ") && text.contains("d=home.test"), "{text}");
    let count = |wanted: fn(&Event) -> bool| story.entries.iter().filter(|entry| wanted(&entry.event)).count();
    assert_eq!(count(|event| matches!(event, Event::Released { .. })), 3);
    assert_eq!(count(|event| matches!(event, Event::Delivered { .. })), 3);
    assert_eq!(house.get(&format!("/{id}")).await.status, 404);
    assert_eq!(house.whom().await, ["you@far.test"]);
    for body in ["{\"to\":\"nonsense\"}", "{\"to\":[]}", "{\"whom\":\"a@far.test\"}", "x"] {
        let answer = house.ask(&format!("POST /api/v1/captured/{other}/release"), body).await;
        assert_eq!(answer.status, 400, "{body}");
    }
    assert_eq!(house.ask(&format!("POST /api/v1/captured/{id}/release"), "").await.status, 404);

    // Whoever releases what is held does not release what is captured.
    let all = || Selection { pick: Pick::Matching(Filter::default()), dry_run: false };
    for action in [Action::Release, Action::Retry, Action::Hold] {
        assert_eq!(house.server.app.operator().change(action, all()).await.unwrap().recipients, 0);
    }
    // To an address of our own it goes the way of all mail for it.
    let said =
        house.command(&["captured", "release", &other.to_string(), "--to", "nobody@home.test", "--json"], 0).await;
    assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["recipients"], 1, "{said}");
    house
        .server
        .wait_for(other, |event| matches!(event, Event::Deferred { why, .. } if why.reason.contains("[aliases]")))
        .await;
    // In two transactions or three: both domains have the same servers.
    let taken: usize = house.exchanger.taken().iter().map(|taken| taken.recipients.len()).sum();
    assert_eq!((taken, house.relay.count()), (3, 0));
    house.server.stop().await;
}

const RELAY: &str = "[smart_hosts.relay]\nhost = \"127.0.0.1\"\nport = RELAY\ntls = \"off\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn it_is_released_by_a_smart_host_if_there_is_one() {
    let house = house(CAPTURE, RELAY).await;
    let id = house.captured(&["ann@far.test"], &letter("by the relay")).await;
    let source = house.get(&format!("/{id}/source")).await.body;
    house.ask(&format!("POST /api/v1/captured/{id}/release"), "").await;
    house.server.wait_done(id).await;
    assert!(house.relay.taken().iter().all(|taken| taken.content == source));
    assert_eq!((house.exchanger.count(), house.relay.count()), (0, 1));
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_staging_says_holds_for_what_is_released() {
    let staging = format!("{CAPTURE}\nallow_recipients = [\"else.test\"]");
    let house_of_some = house(&staging, "").await;
    // Captured, not held: it does not leave.
    let id = house_of_some.captured(&["ann@far.test", "bob@else.test"], &letter("x")).await;
    house_of_some.ask(&format!("POST /api/v1/captured/{id}/release"), "").await;
    let story = house_of_some.server.wait_for(id, |event| matches!(event, Event::Held { .. })).await;
    house_of_some.exchanger.wait_for(1).await;
    assert_eq!(house_of_some.exchanger.taken()[0].recipients, ["bob@else.test"]);
    let held = story.entries.iter().filter_map(|entry| match &entry.event {
        Event::Held { recipient, .. } => Some(recipient.to_string()),
        _ => None,
    });
    assert_eq!(held.collect::<Vec<_>>(), ["ann@far.test"]);
    house_of_some.server.stop().await;

    let house_of_one = house(&format!("{CAPTURE}\nredirect_all_to = \"qa@else.test\""), "").await;
    let id = house_of_one.captured(&["ann@far.test"], &letter("x")).await;
    house_of_one.ask(&format!("POST /api/v1/captured/{id}/release"), "").await;
    house_of_one.server.wait_done(id).await;
    assert_eq!(house_of_one.exchanger.taken()[0].recipients, ["qa@else.test"]);
    house_of_one.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_captured_long_ago_is_tried_as_long_as_any_when_it_is_released() {
    let clock = Clock::manual(1_900_000_000_000);
    let house = house_at(CAPTURE, "", clock.clone()).await;
    let id = house.captured(&["ann@nowhere.test"], &letter("x")).await;
    clock.advance(20 * 24 * 3600 * 1000);
    // Its servers cannot be reached: nothing listens there.
    let answer = house.ask(&format!("POST /api/v1/captured/{id}/release"), "{\"to\":\"mail@[127.0.0.2]\"}").await;
    assert_eq!(answer.status, 200, "{}", answer.json());
    house.server.wait_for(id, |event| matches!(event, Event::Deferred { attempt: 1, .. })).await;
    assert_eq!(house.whom().await, ["ann@nowhere.test"]);
    house.server.stop().await;
}

fn told(ear: &[support::ear::Heard], recipient: &str) -> Vec<(String, Value)> {
    let about = ear.iter().filter(|heard| heard.json["data"]["recipient"] == recipient);
    about.map(|heard| (heard.json["type"].as_str().unwrap().to_owned(), heard.json["data"].clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_stand_for_what_a_far_end_does() {
    let ear = Ear::start().await;
    let more = format!("[streams.transactional]\nsuppress = true\n[events.webhooks.app]\nurl = \"{}\"\n", ear.url);
    let house = house(CAPTURE, &more).await;
    let to = ["bounce+17@capture.test", "Defer@capture.test", "complain@capture.test", "bob@capture.test"];
    let id = house.submit("app@far.test", &to, &letter("four")).await;
    let enough = |heard: &[support::ear::Heard]| to.iter().map(|to| told(heard, to).len()).sum::<usize>() >= 5;
    let heard = ear.wait(enough).await;
    let (bounced, deferred) = (told(&heard, to[0]), told(&heard, to[1]));
    assert_eq!((bounced.len(), bounced[0].0.as_str()), (1, "message.bounced"));
    assert_eq!((&bounced[0].1["smtp"]["code"], &bounced[0].1["smtp"]["enhanced"]), (&json!(550), &json!("5.1.1")));
    assert_eq!((&bounced[0].1["bounce"]["class"], &bounced[0].1["mx"]), (&json!("hard"), &json!("capture.test")));
    assert_eq!(deferred[0].0, "message.deferred");
    assert!(deferred[0].1["next_attempt_at"].is_string() && deferred[0].1["smtp"]["code"] == 450);
    let complained: Vec<String> = told(&heard, to[2]).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(complained, ["message.delivered", "message.complained"]);
    assert_eq!(told(&heard, to[3])[0].0, "message.captured");

    assert!(
        heard
            .iter()
            .filter(|heard| heard.json["data"]["recipient"].is_string())
            .all(|heard| heard.json["data"]["test"] == true)
    );
    // The sender has a notice, which does not leave; who complained and who was kept can be read.
    house.wait(|| async { house.whom().await.len() == 3 }).await;
    assert_eq!(house.whom().await, ["app@far.test", "bob@capture.test", "complain@capture.test"]);
    let notice = house.list("?to=app@far.test").await.remove(0);
    let text = house.get(&format!("/{}", notice["id"].as_str().unwrap())).await.json()["text"].clone();
    assert!(text.as_str().unwrap().contains("bounce+17@capture.test"), "{text}");
    // Put off again, as often as it is tried.
    assert_eq!(house.server.queue().await[0].recipients.iter().filter(|one| one.due.is_some()).count(), 1);
    let one = Selection { pick: Pick::Ids(vec![id], Filter::default()), dry_run: false };
    assert_eq!(house.server.app.operator().change(Action::Retry, one).await.unwrap().recipients, 1);
    ear.wait(|heard| told(heard, to[1]).len() == 2).await;
    // On the list, as they would be.
    let listed = kept::lines(&house.command(&["suppress", "list", "--json"], 0).await);
    let reasons = listed.iter().filter(|entry| entry["scope"] == "transactional");
    let reasons: Vec<_> = reasons.map(|e| (e["address"].as_str().unwrap(), e["reason"].as_str().unwrap())).collect();
    assert_eq!(reasons, [("complain@capture.test", "complaint")]);
    let counted = house.ask("GET /api/v1/suppressions/explain?address=bounce%2B17@capture.test", "").await.json();
    assert_eq!(counted["bounces"].as_array().unwrap().len(), 1, "{counted}");
    assert_eq!(house.arrived(), 0);
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_mail_is_sent_they_are_addresses_like_any() {
    let house = house("default = \"direct\"", "").await;
    let id = house.submit("me@home.test", &["bounce@capture.test"], &letter("x")).await;
    house.server.wait_done(id).await;
    assert_eq!(house.exchanger.taken()[0].recipients, ["bounce@capture.test"]);
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_message_has_it_as_soon_as_it_is_there() {
    let house = house(CAPTURE, "").await;
    assert_eq!(house.list("?wait=0s&to=ann@far.test").await, [] as [Value; 0]);
    house.captured(&["other@far.test"], &letter("another")).await;
    let data_dir = house.folder.path().to_owned();
    let waiting =
        tokio::spawn(async move { ask(&data_dir, "GET /api/v1/captured?to=ann@far.test&wait=60s", "").await });
    house.captured(&["other@far.test"], &letter("another")).await;
    let id = house.captured(&["ann@far.test"], &letter("welcome")).await;
    let found = waiting.await.unwrap().json();
    assert_eq!((found["messages"].as_array().unwrap().len(), &found["messages"][0]["id"]), (1, &json!(id)));
    // Nobody holds up a server that stops.
    let data_dir = house.folder.path().to_owned();
    let waiting = tokio::spawn(async move { ask(&data_dir, "GET /api/v1/captured?q=never&wait=60s", "").await });
    house.wait(|| async { house.server.app.operator().waiters() == 1 }).await;
    house.server.stop().await;
    assert_eq!(waiting.await.unwrap().json()["messages"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_are_listed_page_by_page_and_gone_at_once() {
    let house = house(CAPTURE, "").await;
    let mut client = Client::connect(house.server.submission).await.unwrap();
    let mut ids = Vec::new();
    for number in 0..1000 {
        let to = format!("user{number}@{}.test", if number % 4 == 0 { "else" } else { "far" });
        let reply = client.send("me@home.test", &[&to], &letter(&number.to_string())).await.unwrap();
        ids.push(queued_id(&reply).to_string());
    }
    ids.reverse();
    let operator = house.server.app.operator();
    let all =
        || async { operator.list_captured(CapturedWish { limit: 1000, ..CapturedWish::default() }).await.unwrap() };
    house.wait(|| async { all().await.messages.len() == 1000 }).await;
    let CapturedPage { messages, next } = all().await;
    assert_eq!((messages.len(), next), (1000, None));
    let (mut found, mut query) = (Vec::new(), "?limit=300".to_owned());
    loop {
        let page = house.get(&query).await.json();
        found.extend(page["messages"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        query = format!("?limit=300&before={next}");
    }
    assert!(found == ids, "each once, the newest first");
    let listed = house.command(&["captured", "list", "--limit", "0", "--json"], 0).await;
    assert_eq!(listed.lines().count(), 1000);
    assert!(
        house
            .command(&["captured", "list", "--limit", "10"], 0)
            .await
            .ends_with("The newest 10; there are more: --limit 0 shows all.\n")
    );
    assert_eq!(house.command(&["captured", "delete", "--to", "else.test"], 0).await, "250 messages deleted.\n");
    assert_eq!(house.ask("DELETE /api/v1/captured?too=x", "").await.status, 400);
    for empty in ["subject=", "q=", "to=far.test&subject="] {
        assert_eq!(house.ask(&format!("DELETE /api/v1/captured?{empty}"), "").await.status, 400, "{empty}");
    }

    // No more than so many, and so much, are kept.
    let queue = operator.queue.clone();
    let kept = || async { all().await.messages.len() };
    let bounds = Bounds { since: 0, messages: 600, bytes: u64::MAX };
    assert_eq!((shorten(&queue, bounds).await.unwrap(), kept().await), (150, 600));
    let newest = all().await.messages[0].clone();
    let bytes = all().await.messages[..100].iter().map(|one| one.size).sum();
    let bounds = Bounds { since: 0, messages: u64::MAX, bytes };
    assert_eq!((shorten(&queue, bounds).await.unwrap(), kept().await), (500, 100));
    assert_eq!(all().await.messages[0], newest, "the oldest go first");
    let answer = house.ask("DELETE /api/v1/captured", "").await;
    assert_eq!(answer.json(), json!({ "messages": 100 }));
    assert!(house.server.queue().await.is_empty());
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_kept_as_long_as_stories_are() {
    let folder = tempfile::tempdir().unwrap();
    let conf = format!("{BASE}[delivery]\n{CAPTURE}\n");
    let start = 1_900_000_000_000;
    let server = TestServer::start_at(folder.path(), &conf, Clock::manual(start)).await;
    let mut client = Client::connect(server.submission).await.unwrap();
    let id = queued_id(&client.send("me@home.test", &["you@far.test"], &letter("x")).await.unwrap());
    server.wait_for(id, |event| matches!(event, Event::Captured { .. })).await;
    server.stop().await;
    let days = |days: u64| Clock::manual(start + days * 24 * 3600 * 1000);
    let server = TestServer::start_at(folder.path(), &conf, days(29)).await;
    assert_eq!(server.queue().await.len(), 1);
    server.stop().await;
    let server = TestServer::start_at(folder.path(), &conf, days(31)).await;
    server.wait_gone(id).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_older_version_captured_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    kept::copy(&kept::first_format(), &folder.path().join("store"));
    // Captures nothing more.
    let files = "[delivery]\ndefault = \"file\"\nfile_path = \"DATA_DIR/out/{id}.eml\"\n";
    let server = TestServer::start(folder.path(), &format!("{BASE}{files}")).await;
    let queue = server.queue().await;
    let captured = |one: &&postrider::admin::Listed| {
        one.recipients.iter().any(|recipient| recipient.status == postrider::admin::view::Status::Captured)
    };
    let known: Vec<MessageId> = queue.iter().filter(captured).map(|one| one.id).collect();
    assert!(!known.is_empty());
    let page = server.app.operator().list_captured(CapturedWish::default()).await.unwrap();
    let mut listed: Vec<MessageId> = page.messages.iter().map(|one| one.id).collect();
    listed.reverse();
    assert_eq!(listed, known);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_says_that_nothing_leaves() {
    let house = house(CAPTURE, "").await;
    let file = house.folder.path().join("postrider.toml");
    let conf = std::fs::read_to_string(&file).unwrap() + "[delivery]\ndefault = \"capture\"\n";
    std::fs::write(&file, conf).unwrap();
    for (to, words) in [
        ("ann@far.test", "It is captured: nothing leaves"),
        ("bounce@capture.test", "It fails at once, because its address stands for that"),
        ("defer@capture.test", "It is put off at each try"),
        ("complain@capture.test", "It is captured, and then complained of"),
    ] {
        let said = house.command(&["explain", "--from", "me@home.test", "--to", to], 0).await;
        assert!(said.contains(words), "{to}: {said}");
    }
    house.server.stop().await;
}
