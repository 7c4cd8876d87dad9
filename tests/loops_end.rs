//! Circles of whole servers and machines that answer everything: each ends by itself, and says after how many.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout, reason = "the counts are what is shown")]

mod support {
    pub mod client;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use std::net::SocketAddr;
use std::path::Path;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use postrider::events::Event;
use postrider::message::header::Headers;
use serde_json::Value;
use support::client::Client;
use support::server::{TestServer, queued_id};
use support::sink::{Sink, Taken};
use support::zone::{Zone, ZoneServer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// A circle that goes on for so long has no end.
const ENDLESS: usize = 2000;

/// Lets connections to `bind` through to an address that is known later only.
async fn gate(bind: SocketAddr) -> tokio::sync::watch::Sender<Option<SocketAddr>> {
    let listener = TcpListener::bind(bind).await.unwrap();
    let (open, to) = tokio::sync::watch::channel(None);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut to = to.clone();
            tokio::spawn(async move {
                let to = to.wait_for(Option::is_some).await.unwrap().unwrap();
                if let Ok(mut far) = TcpStream::connect(to).await {
                    // Either end may break it off.
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    open
}

/// a.test and b.test are two servers, the rest is a sink; all on one port, each at an address of its own.
struct World {
    sink: Sink,
    zone: ZoneServer,
    folder: tempfile::TempDir,
}

impl World {
    async fn new() -> World {
        let sink = Sink::start().await;
        let mut zone = Zone::new();
        for (domain, host, address) in [
            ("far.test", "mx.far.test", "127.0.0.1"),
            ("a.test", "mail.a.test", "127.0.0.2"),
            ("b.test", "mail.b.test", "127.0.0.3"),
        ] {
            zone = zone.mx(domain, 10, host).a(host, address).txt(domain, "v=spf1 ip4:127.0.0.0/8 -all");
        }
        World { sink, zone: zone.serve().await, folder: tempfile::tempdir().unwrap() }
    }

    fn at(&self, address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), self.sink.address.port())
    }

    /// `domain`: what is said of its domain.
    async fn server(&self, name: &str, domain: &str, more: &str) -> TestServer {
        let folder = self.folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let conf = format!(
            r#"
[networks]
trusted = ["127.0.0.0/8"]
[domains."{name}.test"]
{domain}
[targets.box]
kind = "maildir"
path = "DATA_DIR/box"
[delivery]
mx_port = {}
allow_private_addresses = true
[dns]
nameservers = ["{}"]
{more}
"#,
            self.sink.address.port(),
            self.zone.addr()
        );
        let hostname = format!("hostname = \"mail.{name}.test\"");
        TestServer::start_with(&folder, &conf, "hostname = \"mail.home.test\"", &hostname).await
    }

    /// How many times a server has put a message into its box.
    fn passed(&self, name: &str) -> usize {
        let count = |path: &Path| std::fs::read_dir(path).map_or(0, Iterator::count);
        count(&self.folder.path().join(name).join("box/new"))
    }
}

fn letter(from: &str, to: &str, text: &str) -> String {
    format!("From: {from}\r\nTo: {to}\r\nSubject: hello\r\n\r\n{text}\r\n")
}

/// Until nothing is under way any more at any of the servers.
async fn at_rest(servers: &[&TestServer]) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let mut quiet = 0;
    // A message is at one of them, or in a conversation of which one knows: so it is seen in one of two looks.
    while quiet < 2 {
        let mut waiting = 0;
        for server in servers {
            waiting += server.queue().await.len();
        }
        quiet = if waiting == 0 { quiet + 1 } else { 0 };
        assert!(std::time::Instant::now() < deadline, "{waiting} messages still go round");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_that_forward_to_each_other_end_it_at_the_first_return() {
    for (recipients, aliases_a, aliases_b) in [
        (vec!["x@a.test"], "\"x@a.test\" = [\"box\", \"y@b.test\"]", "\"y@b.test\" = [\"box\", \"x@a.test\"]"),
        (
            vec!["x@a.test", "v@a.test"],
            "\"x@a.test\" = [\"box\", \"y@b.test\"]\n\"v@a.test\" = [\"box\", \"w@b.test\"]",
            "\"y@b.test\" = [\"box\", \"x@a.test\"]\n\"w@b.test\" = [\"box\", \"v@a.test\"]",
        ),
    ] {
        let world = World::new().await;
        let (to_a, to_b) = (gate(world.at("127.0.0.2")).await, gate(world.at("127.0.0.3")).await);
        let a = world.server("a", "", &format!("[aliases]\n{aliases_a}")).await;
        let b = world.server("b", "", &format!("[aliases]\n{aliases_b}")).await;
        to_a.send_replace(Some(a.mx));
        to_b.send_replace(Some(b.mx));
        let mut client = Client::connect(a.mx).await.unwrap();
        let content = letter("bob@far.test", "x@a.test", "round and round");
        client.send("bob@far.test", &recipients, &content).await.unwrap();
        // The last server refuses; the notice of that goes back by the return path to the writer.
        world.sink.wait_for(1).await;
        at_rest(&[&a, &b]).await;
        a.stop().await;
        b.stop().await;
        let (at_a, at_b) = (world.passed("a"), world.passed("b"));
        println!("two servers, {} recipients: {at_a} at a.test, {at_b} at b.test, then refused", recipients.len());
        assert_eq!((at_a, at_b), (recipients.len(), recipients.len()));
        let notices = world.sink.taken();
        assert!(notices.len() <= recipients.len(), "{notices:?}");
        for Taken { mail_from, recipients, content, .. } in notices {
            assert_eq!((mail_from.as_str(), recipients.as_slice()), ("", ["bob@far.test".to_owned()].as_slice()));
            let text = String::from_utf8(content).unwrap();
            assert!(text.contains("5.4.6") && text.contains("mail loop"), "{text}");
        }
    }
}

/// A machine on a port of the sink: takes each message there, and sends what `answer` makes of it to a server,
/// until that does not take it any more. Gives how many it has sent that arrived.
async fn machine(
    world: &World,
    server: &TestServer,
    mut arrived: UnboundedReceiver<String>,
    answer: impl Fn(usize, &Taken) -> (String, String, String),
) -> (usize, String) {
    for round in 0..ENDLESS {
        world.sink.wait_for(round + 1).await;
        let (mail_from, to, content) = answer(round, &world.sink.taken()[round]);
        let mut client = Client::connect(server.mx).await.unwrap();
        let reply = client.send(&mail_from, &[&to], &content).await.unwrap();
        if !reply.starts_with("250") {
            return (round, reply);
        }
        let story = server.wait_done(queued_id(&reply)).await;
        let swallowed = story.entries.into_iter().find_map(|entry| match entry.event {
            Event::Discarded { reason, .. } => Some(reason),
            _ => None,
        });
        if let Some(reason) = swallowed {
            return (round, reason);
        }
        arrived.recv().await.unwrap();
    }
    panic!("there is no end to it");
}

/// An application behind a webhook at `app@a.test`'s catchall that thanks everybody for everything.
#[derive(Clone)]
struct App {
    submission: std::sync::Arc<std::sync::OnceLock<SocketAddr>>,
    quotes: bool,
    answered: UnboundedSender<String>,
}

async fn app(quotes: bool) -> (String, App, UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (answered, arrived) = unbounded_channel();
    let app = App { submission: std::sync::Arc::default(), quotes, answered };
    let router = Router::new().route("/", post(thank)).with_state(app.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, app, arrived)
}

async fn thank(State(app): State<App>, axum::Json(event): axum::Json<Value>) {
    let data = &event["data"];
    let (to, id) = (data["from"]["address"].as_str().unwrap(), data["message_id"].as_str().unwrap_or_default());
    let references: Vec<&str> = data["references"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    let quoted = match app.quotes {
        true => format!("References: <{}>\r\nIn-Reply-To: <{id}>\r\n", [references, vec![id]].concat().join("> <")),
        false => String::new(),
    };
    let content = format!("{quoted}{}", letter("app@a.test", to, "Thank you for your message."));
    let mut client = Client::connect(*app.submission.get().unwrap()).await.unwrap();
    client.send("app@a.test", &[to], &content).await.unwrap();
    app.answered.send(to.to_owned()).unwrap();
}

/// The reason, as far as it says which limit it was.
fn begins(reason: &str, with: &str) {
    assert!(reason.contains(with), "{reason:?} does not say {with:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_autoresponder_on_a_catchall_comes_to_an_end() {
    let words = ["sun", "rain", "wind", "snow", "fog", "hail", "storm", "frost"];
    for (row, quotes_app, quotes_peer, same_text, honest, ended_after, why) in [
        ("the same text", false, false, true, false, 1, "the same message from robot@far.test"),
        ("says what it is", false, true, false, true, 5, "5 within 60 minutes"),
        ("other words each time", false, false, false, false, 5, "5 within 60 minutes"),
        ("with quotes", true, true, false, false, 7, "on one thread: 7 within 60 minutes"),
        ("quotes on one side", false, true, false, false, 70, "70 within 60 minutes"),
    ] {
        let world = World::new().await;
        let (url, app, arrived) = app(quotes_app).await;
        let more = format!("[loops]\nreplies = 7\n[targets.app]\nkind = \"webhook\"\nurl = \"{url}\"\n");
        let server = world.server("a", "catchall = \"app\"", &more).await;
        app.submission.set(server.submission).unwrap();
        // It begins with a message of ours.
        let mut client = Client::connect(server.submission).await.unwrap();
        client.send("app@a.test", &["robot@far.test"], &letter("app@a.test", "robot@far.test", "Hi")).await.unwrap();
        let (count, reason) = machine(&world, &server, arrived, |round, taken| {
            let headers = Headers::parse(&taken.content);
            let text = |name| headers.get(name).map(|field| field.text()).unwrap_or_default();
            let id = text("Message-ID");
            let mut content = match quotes_peer {
                true => format!("References: {} {id}\r\nIn-Reply-To: {id}\r\n", text("References")),
                false => String::new(),
            };
            content += if honest { "Auto-Submitted: auto-replied\r\n" } else { "" };
            content += &format!("Message-ID: <r{round}@far.test>\r\n");
            let said = match same_text {
                true => format!("I am away. It is {round} o'clock."),
                false => format!("{} {} {}", words[round % 8], words[round / 8 % 8], words[round / 64 % 8]),
            };
            content += &letter("robot@far.test", "app@a.test", &said);
            ("robot@far.test".to_owned(), taken.mail_from.clone(), content)
        })
        .await;
        println!("autoresponder, {row}: {count} answers taken, then: {}", reason.trim_end());
        begins(&reason, why);
        assert_eq!(count, ended_after, "{row}");
        at_rest(&[&server]).await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mailing_list_that_has_its_own_alias_on_it_comes_to_an_end() {
    for (row, strips, renames, ended_after, why) in [
        ("keeps the header", false, false, 0, "mail loop: it has been delivered to list@a.test before"),
        ("takes the trace off", true, false, 0, "this message came for list@a.test already"),
        ("writes all anew", true, true, 4, "5 within 60 minutes"),
    ] {
        let world = World::new().await;
        let server = world.server("a", "", "[aliases]\n\"list@a.test\" = [\"box\", \"list@far.test\"]").await;
        let mut client = Client::connect(server.mx).await.unwrap();
        let first = format!("Message-ID: <first@far.test>\r\n{}", letter("bob@far.test", "list@a.test", "Hi all"));
        client.send("bob@far.test", &["list@a.test"], &first).await.unwrap();
        let (tell, arrived) = unbounded_channel();
        let (count, reason) = machine(&world, &server, arrived, |round, taken| {
            let headers = Headers::parse(&taken.content);
            let trace = ["Received", "Delivered-To", "Authentication-Results", "Message-ID"];
            let mut content = String::new();
            for field in headers.fields() {
                let is_trace =
                    trace.iter().any(|name| field.is(name) && (strips && (renames || *name != "Message-ID")));
                if !is_trace {
                    content += std::str::from_utf8(field.raw).unwrap();
                }
            }
            let body = String::from_utf8(headers.body().to_vec()).unwrap();
            content += &match renames {
                true => {
                    format!("Message-ID: <list-{round}@far.test>\r\n\r\n{body}-- \r\nmessage {round} of this list\r\n")
                }
                false => format!("\r\n{body}"),
            };
            tell.send(String::new()).unwrap();
            ("list-bounces@far.test".to_owned(), "list@a.test".to_owned(), content)
        })
        .await;
        at_rest(&[&server]).await;
        server.stop().await;
        let passed = world.passed("a");
        println!("mailing list that {row}: {passed} copies, then: {}", reason.trim_end());
        begins(&reason, why);
        assert_eq!((count, passed), (ended_after, ended_after + 1), "{row}");
    }
}
