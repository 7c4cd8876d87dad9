//! A whole server that sends by smart hosts: which one a From leads to, what becomes of From and of the
//! envelope, and what happens where a host does not do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod server;
    pub mod sink;
}
#[path = "support/remote.rs"]
mod remote;

use postrider::events::Event;
use postrider::message::MessageId;
use postrider::message::header::Headers;
use remote::Remotes;
use support::client::Client;
use support::server::{TestServer, queued_id};
use support::sink::{Sink, Taken};

const BASE: &str = r#"
[networks]
trusted = ["127.0.0.0/8"]
[domains."my.com"]
[sender]
default_from = "notifications@my.com"
[delivery]
default = "smart_hosts"
"#;

const NAMES: [&str; 5] = ["A", "B", "C", "D", "E"];

/// The five hosts of the documented order; those in `removed` are not active.
async fn five(removed: &str) -> (String, Vec<Sink>) {
    let (mut text, mut sinks) = (BASE.to_owned(), Vec::new());
    let table = [("alice@ex.com", 20), ("ex.com", 10), ("", 5), ("notifications@my.com", 30), ("my.com", 40)];
    for (name, (filter, priority)) in NAMES.iter().zip(table) {
        let sink = Sink::start().await;
        let filter = if filter.is_empty() { String::new() } else { format!("from_filter = [\"{filter}\"]\n") };
        text += &format!(
            "[smart_hosts.{name}]\nhost = \"127.0.0.1\"\nport = {}\ntls = \"off\"\npriority = {priority}\n\
             active = {}\n{filter}",
            sink.address.port(),
            !removed.contains(name),
        );
        sinks.push(sink);
    }
    (text, sinks)
}

async fn submit(server: &TestServer, mail_from: &str, from: &str) -> MessageId {
    let mut client = Client::connect(server.submission).await.unwrap();
    let content = format!("From: {from}\r\nTo: <you@far.test>\r\nSubject: x\r\n\r\nhello\r\n");
    let reply = client.send(mail_from, &["you@far.test"], &content).await.unwrap();
    assert!(reply.starts_with("250 2.0.0"), "{reply}");
    queued_id(&reply)
}

fn field(taken: &Taken, name: &str) -> Option<String> {
    let headers = Headers::parse(&taken.content);
    headers.get(name).map(|field| String::from_utf8_lossy(field.value).trim().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_order_row_by_row() {
    let client = [
        ("alice@ex.com", "", "bounce@my.com", "A", "alice@ex.com", "alice@ex.com"),
        ("\"B\" <BOB@EX.com>", "", "bounce@my.com", "B", "\"B\" <BOB@EX.com>", "BOB@ex.com"),
        ("\"X\" <x@other.org>", "", "bounce@my.com", "C", "\"X\" <x@other.org>", "bounce@my.com"),
        ("x@other.org", "C", "bounce@my.com", "D", "x <notifications@my.com>", "notifications@my.com"),
        ("x@other.org", "CD", "bounce@my.com", "E", "x <notifications@my.com>", "bounce@my.com"),
        ("x@other.org", "CDE", "bounce@my.com", "B", "x <notifications@my.com>", "notifications@my.com"),
        ("alice@ex.com, y@ex.com", "", "who@other.org", "C", "alice@ex.com, y@ex.com", "who@other.org"),
        ("x@sub.ex.com", "", "bounce@my.com", "C", "x@sub.ex.com", "bounce@my.com"),
    ];
    rows("client", &client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_order_with_bounces_that_come_back_to_us() {
    let bounce = [
        ("alice@ex.com", "", "who@other.org", "A", "alice@ex.com", "alice@ex.com"),
        ("\"B\" <BOB@EX.com>", "", "who@ex.com", "B", "\"B\" <BOB@EX.com>", "BOB@ex.com"),
        ("\"X\" <x@other.org>", "", "x@other.org", "C", "\"X\" <x@other.org>", "bounce@my.com"),
        ("x@other.org", "C", "app@my.com", "D", "x <notifications@my.com>", "notifications@my.com"),
        ("x@other.org", "CD", "app@my.com", "E", "x <notifications@my.com>", "bounce@my.com"),
        ("x@other.org", "CDE", "x@other.org", "B", "x <notifications@my.com>", "notifications@my.com"),
        ("alice@ex.com, y@ex.com", "", "who@other.org", "C", "alice@ex.com, y@ex.com", "bounce@my.com"),
        ("x@sub.ex.com", "", "x@sub.ex.com", "C", "x@sub.ex.com", "bounce@my.com"),
        ("x@other.org", "CD", "", "E", "x <notifications@my.com>", ""),
    ];
    rows("bounce", &bounce).await;
}

/// From, hosts not active, envelope; host, From and envelope there.
type Row = (&'static str, &'static str, &'static str, &'static str, &'static str, &'static str);

async fn rows(return_path: &str, rows: &[Row]) {
    for &(from, removed, envelope, host, shown, result) in rows {
        let (text, sinks) = five(removed).await;
        let text = text.replace("[sender]", &format!("[sender]\nreturn_path = \"{return_path}\""));
        let folder = tempfile::tempdir().unwrap();
        let server = TestServer::start(folder.path(), &text).await;
        let id = submit(&server, envelope, from).await;
        server.wait_done(id).await;
        let counts: Vec<usize> = sinks.iter().map(Sink::count).collect();
        let by = NAMES.iter().position(|name| *name == host).unwrap();
        assert_eq!((counts.iter().sum::<usize>(), counts[by]), (1, 1), "{from} without {removed}");
        let taken = &sinks[by].taken()[0];
        assert_eq!(field(taken, "From").unwrap(), shown, "{from} without {removed}");
        assert_eq!(taken.mail_from, result, "{from} without {removed}");
        let is_rewritten = shown.contains("notifications");
        assert_eq!(field(taken, "Reply-To"), is_rewritten.then(|| from.to_owned()));
        let signature = field(taken, "DKIM-Signature");
        assert_eq!(signature.is_some_and(|tags| tags.contains("d=my.com")), is_rewritten, "signed as who it says");
        server.stop().await;
    }
}

/// Two hosts of a tier at one port, and one of a lower tier that takes everything.
fn three(port: u16, other: &Sink) -> String {
    let host = |name: &str, address: &str, port: u16, more: &str| {
        format!("[smart_hosts.{name}]\nhost = \"{address}\"\nport = {port}\ntls = \"off\"\n{more}")
    };
    let filtered = format!("{LOGIN}from_filter = [\"my.com\"]\n");
    let first = host("first", "127.0.0.1", port, &filtered);
    let second = host("second", "127.0.0.2", port, &format!("{filtered}priority = 20\n"));
    format!("{BASE}{first}{second}{}", host("other", "127.0.0.1", other.address.port(), ""))
}

const LOGIN: &str = "username = \"app\"\npassword = \"pencil\"\n";
const NO_LOGIN: &str = "S: 220 far ESMTP\nC: EHLO ...\nS: 250-far\nS: 250 AUTH PLAIN\nC: AUTH PLAIN AGFwcABwZW5jaWw=\n\
    S: 535 5.7.8 no\ngone\n";
const TAKES: &str = "S: 220 far ESMTP\nC: EHLO ...\nS: 250-far\nS: 250 AUTH PLAIN\nC: AUTH PLAIN AGFwcABwZW5jaWw=\n\
    S: 235 2.7.0 welcome\nC: MAIL FROM:<me@my.com>\nS: 250 ok\nC: RCPT TO:<you@far.test>\nS: 250 ok\nC: DATA\n\
    S: 354 go\ncontent\nS: 250 2.0.0 kept\nC: QUIT\nS: 221 bye\n";

#[tokio::test(flavor = "multi_thread")]
async fn the_next_host_of_the_tier_takes_over() {
    let (remotes, other) = (Remotes::play(&[NO_LOGIN, TAKES]).await, Sink::start().await);
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path(), &three(remotes.port, &other)).await;
    let id = submit(&server, "me@my.com", "me@my.com").await;
    let story = server.wait_done(id).await;
    let delivered = |event: &Event| matches!(event, Event::Delivered { to, .. } if to.contains("127.0.0.2"));
    assert!(story.entries.iter().any(|entry| delivered(&entry.event)), "{:?}", story.entries);
    server.stop().await;
    remotes.finish().await;
    assert_eq!(other.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_defers_the_host_and_never_fails_the_mail() {
    // One connection each: the second message must not make another one.
    let (remotes, other) = (Remotes::play(&[NO_LOGIN, NO_LOGIN]).await, Sink::start().await);
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path(), &three(remotes.port, &other)).await;
    let waits = |event: &Event| matches!(event, Event::Deferred { why, .. } if why.status == "4.7.8");
    for _ in 0..2 {
        let id = submit(&server, "me@my.com", "me@my.com").await;
        server.wait_for(id, waits).await;
    }
    server.stop().await;
    let received = remotes.finish().await;
    assert_eq!(received.iter().map(|host| host.connections).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(other.count(), 0, "a lower tier would change From");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_large_for_every_host_fails_at_once() {
    let sink = Sink::start().await;
    let hosts = format!(
        "[smart_hosts.small]\nhost = \"127.0.0.1\"\nport = {}\ntls = \"off\"\nmax_size = \"64KiB\"\n",
        sink.address.port()
    );
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path(), &format!("{BASE}{hosts}")).await;
    let mut client = Client::connect(server.submission).await.unwrap();
    let content = format!("From: <me@my.com>\r\n\r\n{}", "0123456789\r\n".repeat(6000));
    let reply = client.send("me@my.com", &["you@far.test"], &content).await.unwrap();
    let fails = |event: &Event| matches!(event, Event::Failed { why, .. } if why.status == "5.3.4");
    server.wait_for(queued_id(&reply), fails).await;
    assert_eq!(sink.count(), 0);
    server.stop().await;
}
