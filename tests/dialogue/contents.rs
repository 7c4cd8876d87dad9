//! The cases that are contents, through a whole server: what comes to a box, what goes on to a far end.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::ids;
use crate::support::client::Client;
use crate::support::server::{TestServer, queued_id};
use crate::support::sink::Sink;
use crate::support::zone::{Zone, ZoneServer};

const CONF: &str = r#"
[accounts.shop]
password = "correct horse"
[domains."home.test"]
[aliases]
"box@home.test" = "box"
"out@home.test" = "you@far.test"
[targets.box]
kind = "maildir"
path = "DATA_DIR/box"
[checks]
spf = "off"
dkim = "off"
dmarc = "off"
rdns = "off"
[loops]
limit = 100000
[delivery]
mx_port = PORT
allow_private_addresses = true
[dns]
nameservers = ["ZONE"]
"#;
const HEAD: &str = "From: ann@known.test\r\nTo: box@home.test\r\nMessage-ID: <1@known.test>\r\nSubject: x\r\n";

struct World {
    server: TestServer,
    sink: Sink,
    _zone: ZoneServer,
    folder: tempfile::TempDir,
}

impl World {
    async fn new(sink: Sink, limits: &str) -> World {
        let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1").serve().await;
        let folder = tempfile::tempdir().unwrap();
        let conf = CONF.replace("PORT", &sink.address.port().to_string()).replace("ZONE", &zone.addr().to_string());
        let line = "connections_per_ip = 1000";
        let server = TestServer::start_with(folder.path(), &conf, line, &format!("{line}\n{limits}")).await;
        World { server, sink, _zone: zone, folder }
    }

    /// From outside; the reply, and the content as it lies in the box with CRLF line ends.
    async fn to_box(&self, content: &[u8]) -> (String, Vec<u8>) {
        let reply = self.send(self.server.mx, "", "box@home.test", content).await;
        if !reply.starts_with("250") {
            return (reply, Vec::new());
        }
        let id = queued_id(&reply);
        self.server.wait_done(id).await;
        (reply, file_of(&self.folder.path().join("box/new"), &id.to_string()))
    }

    /// By an alias, or by an account of ours; what arrives far away.
    async fn to_far(&self, own: bool, content: &[u8]) -> (String, Vec<u8>) {
        let before = self.sink.count();
        let reply = match own {
            true => self.send(self.server.submission, LOGIN, "you@far.test", content).await,
            false => self.send(self.server.mx, "", "out@home.test", content).await,
        };
        if !reply.starts_with("250") {
            return (reply, Vec::new());
        }
        self.sink.wait_for(before + 1).await;
        (reply, self.sink.taken().pop().unwrap().content)
    }

    async fn send(&self, door: std::net::SocketAddr, login: &str, to: &str, content: &[u8]) -> String {
        let mut client = Client::connect(door).await.unwrap();
        if !login.is_empty() {
            client.command(login, "235").await.unwrap();
        }
        let from = if login.is_empty() { "ann@known.test" } else { "shop@home.test" };
        client.send_bytes(from, to, content).await.unwrap()
    }
}

const LOGIN: &str = "AUTH PLAIN AHNob3AAY29ycmVjdCBob3JzZQ==";

fn file_of(folder: &Path, id: &str) -> Vec<u8> {
    let mut files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let file = files
        .find(|file| file.file_name().unwrap().to_str().unwrap().contains(id))
        .unwrap_or_else(|| panic!("no {id}"));
    String::from_utf8_lossy(&std::fs::read(file).unwrap()).replace('\n', "\r\n").into_bytes()
}

fn holds(content: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(content, part).is_some()
}

fn count(content: &[u8], part: &str) -> usize {
    String::from_utf8_lossy(content).matches(part).count()
}

/// Each has an id of its own: the same one again would be a loop.
fn with(fields: &str, body: &str) -> Vec<u8> {
    static NEXT: AtomicUsize = AtomicUsize::new(2);
    let id = format!("<{}@", NEXT.fetch_add(1, Ordering::Relaxed));
    format!("{}{fields}\r\n{body}\r\n", HEAD.replace("<1@", &id)).into_bytes()
}

async fn check(world: &World, id: &str) {
    match id {
        "m001" => lines(world).await,
        "m002" => assert!(world.to_box(&with("", "a\0b")).await.0.starts_with("554 5.6.0"), "{id}"),
        "m003" => {
            // Receivers have been clean for eight bits for decades, and a signed message must not be changed (RFC 6376
            // 5.3), so it is passed on as it is, without BODY=8BITMIME, to who does not offer that.
            let (reply, arrived) = world.to_far(false, &with("", "Grüße")).await;
            assert!(reply.starts_with("250") && holds(&arrived, "\r\nGrüße\r\n".as_bytes()), "{id}: {reply}");
        }
        "m004" => {
            for flaw in ["a\nb", "a\rb", "\n", "\r", "a\n\r\nb"] {
                let (reply, _) = world.to_box(&with("", flaw)).await;
                assert!(reply.starts_with("554 5.6.0"), "{flaw:?}: {reply}");
            }
        }
        "m005" => headers(world).await,
        "m006" => no_headers(world).await,
        "m007" => {
            let hops = "Received: from a.test by b.test; Sat, 21 Nov 2026 22:26:57 +0100\r\n".repeat(100);
            assert!(world.to_box(&with(&hops, "x")).await.0.starts_with("554 5.4.6 mail loop"), "{id}");
        }
        "m008" => {
            let hop = "Received: from a.test by mail.home.test (postrider) with ESMTP id 0cn5460t20000;\r\n\t\
                Sat, 21 Nov 2026 22:26:57 +0100\r\n";
            let mut refused = 0;
            for times in 1..=20 {
                let reply = world.to_box(&with(&hop.repeat(times), &times.to_string())).await.0;
                assert_eq!(
                    reply.starts_with("554 5.4.6 mail loop"),
                    refused > 0 || !reply.starts_with("250"),
                    "{reply}"
                );
                refused += usize::from(reply.starts_with('5'));
            }
            assert!((10..20).contains(&refused), "refused {refused} of 20");
        }
        "m009" => {
            let reply = world.to_box(&with("Delivered-To: box@home.test\r\n", "x")).await.0;
            assert!(reply.starts_with("554 5.4.6 mail loop"), "{reply}");
            let reply = world.to_box(&with("Delivered-To: another@home.test\r\n", "x")).await.0;
            assert!(reply.starts_with("250"), "{reply}");
        }
        "m010" => {
            let content = with("Bcc: secret@far.test\r\n", "x");
            assert!(holds(&world.to_far(false, &content).await.1, b"\r\nBcc: secret@far.test\r\n"), "{id}: relayed");
            let own = String::from_utf8(content).unwrap().replace("ann@known.test", "shop@home.test");
            assert!(!holds(&world.to_far(true, own.as_bytes()).await.1, b"secret@far.test"), "{id}: submitted");
        }
        "m011" => {
            let fields = "Authentication-Results: mail.home.test; dmarc=pass header.from=bank.test\r\n\
                authentication-results : MAIL.home.test ;\r\n\tspf=pass\r\nAuthentication-Results: known.test; spf=pass\r\n";
            let (reply, content) = world.to_box(&with(fields, "x")).await;
            assert!(reply.starts_with("250") && !holds(&content, b"bank.test"), "{reply}");
            assert_eq!((count(&content, "MAIL.home.test"), count(&content, "known.test; spf=pass")), (0, 1));
        }
        "m012" => {
            let content = with("Return-Path: <boss@bank.test>\r\n", "x");
            let (_, kept) = world.to_box(&content).await;
            // The first one is what final delivery adds (RFC 5321 4.4), and it is the envelope's.
            assert!(kept.starts_with(b"Return-Path: <ann@known.test>\r\n"), "{}", String::from_utf8_lossy(&kept));
            let own = String::from_utf8(content).unwrap().replace("ann@known.test", "shop@home.test");
            assert!(!holds(&world.to_far(true, own.as_bytes()).await.1, b"Return-Path"), "{id}: submitted");
        }
        other => panic!("what is {other}?"),
    }
}

/// `m001`: lines longer than RFC 5321 4.5.3.1.6 allows are content like any other: whoever signed them wants them so.
async fn lines(world: &World) {
    for octets in [998, 999, 1000, 1001, 4096] {
        let content = with("", &"x".repeat(octets));
        for own in [false, true] {
            let content = match own {
                true => {
                    String::from_utf8(content.clone()).unwrap().replace("ann@known.test", "shop@home.test").into_bytes()
                }
                false => content.clone(),
            };
            let (reply, arrived) = world.to_far(own, &content).await;
            assert!(reply.starts_with("250"), "{octets}: {reply}");
            let body = [b"\r\n\r\n", "x".repeat(octets).as_bytes(), b"\r\n"].concat();
            assert!(arrived.ends_with(&body), "{octets} octets have changed on their way");
        }
    }
    let (reply, _) = world.to_box(&with("", &"x".repeat(100 << 20))).await;
    assert!(reply.starts_with("552 5.3.4"), "{reply}");
}

/// `m005`: what is too much is refused; what is odd is one message with one header section, or refused.
async fn headers(world: &World) {
    for (what, fields) in [
        ("a million fields", "X: y\r\n".repeat(1_000_000)),
        ("ten megabytes in one field", format!("X: {}\r\n", "y".repeat(10 << 20))),
        ("a million lines in one field", format!("X: y\r\n{}", " \r\n".repeat(1_000_000))),
    ] {
        let (reply, _) = world.to_box(&with(&fields, "x")).await;
        assert!(
            reply.starts_with("552 5.3.4") || reply.starts_with("55") && reply[4..].starts_with("5.6.0"),
            "{what}: {reply}"
        );
    }
    let nul = world.to_box(&with("X\0Y: z\r\n", "x")).await.0;
    assert!(nul.starts_with("554 5.6.0"), "{nul}");
    for (what, line) in [
        ("no colon", "no colon here"),
        ("a colon first", ": empty"),
        ("a blank before the colon", "X-Odd : y"),
        ("a blank for a name", " : y"),
        ("eight bits in the name", "Xü: y"),
    ] {
        let (reply, kept) = world.to_box(&with(&format!("{line}\r\nX-After: z\r\n"), "body")).await;
        assert!(reply.starts_with("250"), "{what}: {reply}");
        assert_eq!(count(&kept, "\r\nReceived: from "), 1, "{what}");
        // Nothing is lost, and what is no field has an empty line before it, so that all read the same.
        let text = String::from_utf8_lossy(&kept).into_owned();
        let is_field = what.contains("before the colon") || line.starts_with(' ');
        let head_end = text.find("\r\n\r\n").unwrap();
        assert_eq!(text.find(line).unwrap() < head_end, is_field, "{what}: {text}");
        assert!(text.contains("X-After: z") && text.contains("body"), "{what}: {text}");
    }
}

/// `m006`: From outside a message has an author (RFC 5322 3.6), or it is refused; our own get what is missing.
async fn no_headers(world: &World) {
    for (what, content) in [
        ("no header", "just text\r\n"),
        ("no empty line", "Subject: x\r\n"),
        ("empty lines only", "\r\n\r\n\r\n"),
        ("nothing", ""),
    ] {
        let (reply, _) = world.to_box(content.as_bytes()).await;
        assert!(reply.starts_with("550 5.7.1 the message has no From field"), "{what}: {reply}");
        let (reply, arrived) = world.to_far(true, content.as_bytes()).await;
        assert!(reply.starts_with("250"), "{what}: {reply}");
        let text = String::from_utf8_lossy(&arrived);
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        for field in ["Received: from client.test", "From: <shop@home.test>", "Date: ", "Message-ID: "] {
            assert_eq!(head.matches(field).count(), 1, "{what}: {field} in {text}");
        }
        assert_eq!(body.contains("just text"), what == "no header", "{what}: {text}");
    }
}

/// `m013`: exactly the size, one more, and one more that nobody declared.
async fn sizes() {
    let world = World::new(Sink::start().await, "max_size = \"64KiB\"").await;
    let of = |octets: usize| {
        let line = "x".repeat(octets - HEAD.len() - 4);
        let content = format!("{HEAD}\r\n{line}\r\n").into_bytes();
        assert_eq!(content.len(), octets);
        content
    };
    for (octets, declared, replies) in [
        (65_536, " SIZE=65536", &["250 2.1.0", "250 2.0.0"][..]),
        (65_537, " SIZE=65537", &["552 5.3.4"]),
        (65_537, " SIZE=1000", &["250 2.1.0", "552 5.3.4"]),
        (65_537, "", &["250 2.1.0", "552 5.3.4"]),
        (65_536, "", &["250 2.1.0", "250 2.0.0"]),
        (10 << 20, "", &["250 2.1.0", "552 5.3.4"]),
    ] {
        let mut client = Client::connect(world.server.mx).await.unwrap();
        let mut said = vec![client.say(&format!("MAIL FROM:<ann@known.test>{declared}")).await.unwrap()];
        if said[0].starts_with("250") {
            client.command("RCPT TO:<box@home.test>", "250").await.unwrap();
            client.command("DATA", "354").await.unwrap();
            said.push(client.content(&of(octets)).await.unwrap());
        }
        assert_eq!(said.len(), replies.len(), "{octets}{declared}: {said:?}");
        assert!(
            said.iter().zip(replies).all(|(said, wanted)| said.starts_with(wanted)),
            "{octets}{declared}: {said:?}"
        );
        // In step.
        client.command("RSET", "250").await.unwrap();
        assert!(client.say("NOOP").await.unwrap().starts_with("250"));
    }
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_content_is_passed_whole_or_refused() {
    let world = World::new(Sink::start_old().await, "").await;
    let mut run = 0;
    for id in ids("content", 13) {
        match id.as_str() {
            "m013" => sizes().await,
            id => check(&world, id).await,
        }
        run += 1;
    }
    assert_eq!(run, 13);
    world.server.stop().await;
}
