//! `tests/data/ssrf`: nobody makes us knock at doors of our own network. The URLs of webhooks, and how webhooks behave
//! towards who answers them.
//!
//! The URL of a webhook is the administrator's, and nothing of a message is ever in it. So an address of the own network
//! that is written into it plainly is taken at its word; all that only turns out to be one is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod conversation;
    pub mod endpoint;
    pub mod flow;
    pub mod server;
}

use std::net::IpAddr;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use postrider::config::{self, Target};
use postrider::delivery::http::usable;
use postrider::events::Event;
use reqwest::Url;
use serde_json::Value;
use support::client::Client;
use support::endpoint::{Endpoint, answer};
use support::flow;
use support::server::{TestServer, queued_id};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

const SET: &str = include_str!("data/ssrf/webhook-urls.yml");
/// Written plainly: the administrator means it. Many receivers are on the same machine or in the same network.
const OWN_WORD: [&str; 9] = [
    "http://127.0.0.1/",
    "http://[::1]/",
    "http://[fc00::1]/",
    "http://localhost/",
    "http://localhost./",
    "http://LOCALHOST/",
    "http://10.0.0.1/",
    "http://172.31.255.255/",
    "http://192.168.0.1/",
];
/// Names whose address is known once it is asked for: refused when it is connected to.
const BY_ADDRESS: [&str; 1] = ["http://metadata.google.internal/"];

/// What the set wants refused.
fn urls() -> Vec<String> {
    let unquoted = |line: &str| match line.starts_with('"') {
        true => serde_json::from_str::<String>(line).unwrap(),
        false => line.to_owned(),
    };
    let lines = flow::below(SET, "refuse");
    let urls: Vec<String> = lines.lines().filter_map(|line| line.trim().strip_prefix("- ")).map(unquoted).collect();
    assert_eq!(urls.len(), 40);
    urls
}

/// What the configuration makes of it, as a target and as a webhook for events.
fn loaded(url: &str) -> Option<Url> {
    let quoted = serde_json::to_string(url).unwrap();
    let parse = |section: &str| {
        let text = format!("hostname = \"mail.example.com\"\ndata_dir = \"/nonexistent\"\n{section}url = {quoted}\n");
        config::parse("test.toml", &text).ok()
    };
    let events = parse("[events.webhooks.crm]\n");
    let target = parse("[targets.crm]\nkind = \"webhook\"\n");
    assert_eq!(events.is_some(), target.is_some(), "{url}: one of the two takes it");
    match target?.targets.remove("crm") {
        Some(Target::Webhook { url, .. }) => Some(Url::parse(&url).unwrap()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_url_of_the_set_is_refused_or_an_own_address_in_plain_words() {
    let mut refused = 0;
    for url in urls() {
        match loaded(&url) {
            None => refused += 1,
            Some(read) => {
                assert!(OWN_WORD.contains(&url.as_str()) || BY_ADDRESS.contains(&url.as_str()), "{url} is taken");
                assert_eq!(read.as_str().to_lowercase(), url.to_lowercase(), "read as something else");
            }
        }
    }
    assert_eq!(refused, 40 - OWN_WORD.len() - BY_ADDRESS.len());
}

/// What a webhook of `url` makes of one message.
struct World {
    server: TestServer,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new(url: &str, more: &str) -> World {
        let folder = tempfile::tempdir().unwrap();
        let conf = format!(
            "[domains.\"home.test\"]\ncatchall = [\"crm\"]\n[targets.crm]\nkind = \"webhook\"\nurl = \"{url}\"\n\
             secret = \"a secret of some length\"\ntimeout = \"2s\"\n[checks]\nspf = \"off\"\ndkim = \"off\"\n\
             dmarc = \"off\"\nrdns = \"off\"\n{more}"
        );
        World { server: TestServer::start(folder.path(), &conf).await, _folder: folder }
    }

    async fn send(&self, subject: &str) -> postrider::message::MessageId {
        let mut client = Client::connect(self.server.mx).await.unwrap();
        let content =
            format!("From: ann@known.test\r\nTo: x@home.test\r\nSubject: {subject}\r\n\r\ntext about {subject}\r\n");
        let reply = client.send("ann@known.test", &["x@home.test"], &content).await.unwrap();
        queued_id(&reply)
    }

    /// Why the first try came to nothing.
    async fn deferred(&self, subject: &str) -> String {
        let id = self.send(subject).await;
        let is_deferred = |event: &Event| matches!(event, Event::Deferred { .. });
        let story = self.server.wait_for(id, is_deferred).await;
        format!("{:?}", story.entries.iter().find(|entry| is_deferred(&entry.event)).unwrap().event)
    }
}

/// `b1`: of what a name leads to only what was checked is connected to; and the two are one look-up, in `Resolve` of the
/// HTTP client, so that no second answer of DNS comes between.
async fn pinned() {
    let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
    let public = ips(&["1.1.1.1", "2606:4700::1111"]);
    let own = ips(&["127.0.0.1", "::1", "10.0.0.1", "fc00::1"]);
    let never = ips(&[
        "169.254.169.254",
        "fe80::1",
        "100.100.100.200",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "0.0.0.0",
        "::127.0.0.1",
    ]);
    let all = [public.clone(), own.clone(), never.clone()].concat();
    assert_eq!(usable("crm.example.com", &all, false).unwrap(), public);
    for ip in own.iter().chain(&never) {
        let why = usable("crm.example.com", &[*ip], false).unwrap_err();
        assert!(why.contains("delivery.allow_private_addresses") && why.contains(&ip.to_string()), "{why}");
    }
    // The names of an own network lead there, and not to what tells the machines of a cloud their secrets.
    for name in ["localhost", "crm", "crm.internal"] {
        assert_eq!(usable(name, &all, false).unwrap(), [public.clone(), own.clone()].concat(), "{name}");
    }
    assert!(usable("metadata.google.internal", &ips(&["169.254.169.254"]), false).is_err());
    assert_eq!(usable("crm.example.com", &own, true).unwrap(), own);

    let endpoint = Endpoint::answering(&[]).await;
    endpoint.will(&answer("200 OK", "", ""));
    let world = World::new(&endpoint.url.replace("127.0.0.1", "localhost"), "").await;
    let id = world.send("by name").await;
    world.server.wait_done(id).await;
    assert_eq!(endpoint.take().len(), 1);
    world.server.stop().await;
}

/// `b2`: not followed, to nowhere; who is redirected to hears nothing.
async fn redirects() {
    for status in ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"] {
        let (endpoint, other) = (Endpoint::answering(&[]).await, Endpoint::answering(&[]).await);
        for location in
            [other.url.as_str(), "http://169.254.169.254/latest/meta-data/", "file:///etc/passwd", "//10.0.0.1/"]
        {
            endpoint.will(&answer(status, &format!("location: {location}\r\n"), ""));
            let world = World::new(&endpoint.url, "").await;
            let why = world.deferred(status).await;
            assert!(why.contains("redirects are not followed"), "{status} {location}: {why}");
            world.server.stop().await;
        }
        assert_eq!((endpoint.take().len(), other.take().len()), (4, 0), "{status}");
    }
}

/// `b3`: whatever the answer is, it ends; and meanwhile others get theirs. (A bomb in gzip is 4 KiB like any other: nothing
/// is unpacked.)
async fn bounded() {
    let kinds: [(&'static [u8], &'static [u8]); 4] = [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10000000000\r\n\r\n", &[b'x'; 1 << 16]),
        (b"HTTP/1.1 200 OK\r\n", b"x-header: and so on\r\n"),
        (b"HTTP/1.1 500 No\r\ncontent-encoding: gzip\r\n\r\n", &[0x1f; 1 << 16]),
        (b"H", b""),
    ];
    for (head, piece) in kinds {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            // Until the client has had enough.
            let mut went = stream.write_all(head).await.is_ok();
            while went && !piece.is_empty() {
                went = stream.write_all(piece).await.is_ok();
            }
            std::future::pending::<()>().await;
        });
        let good = Endpoint::answering(&[&answer("200 OK", "", "")]).await;
        let more = format!(
            "[aliases]\n\"good@home.test\" = \"good\"\n[targets.good]\nkind = \"webhook\"\nurl = \"{}\"\n",
            good.url
        );
        let world = World::new(&url, &more).await;
        let id = world.send("odd").await;
        let mut client = Client::connect(world.server.mx).await.unwrap();
        let content = "From: ann@known.test\r\nSubject: good\r\n\r\na good one\r\n";
        let reply = client.send("ann@known.test", &["good@home.test"], content).await.unwrap();
        world.server.wait_done(queued_id(&reply)).await;
        assert_eq!(good.take().len(), 1);
        // A 200 is a 200, however long it then talks; the others are tried again.
        let decided =
            |event: &Event| matches!(event, Event::Deferred { .. } | Event::Unsure { .. } | Event::Delivered { .. });
        world.server.wait_for(id, decided).await;
        world.server.stop().await;
    }
}

/// `b4`: it waits longer after each try, as all mail does (the tests of retries have the three days), and what is for
/// others goes on.
async fn down() {
    let endpoint = Endpoint::answering(&[]).await;
    endpoint.will(&answer("500 No", "", ""));
    let world = World::new(&endpoint.url, "").await;
    let why = world.deferred("down").await;
    assert!(why.contains("answered 500"), "{why}");
    world.server.stop().await;
}

/// `b5`: what a message says stays text in the JSON; the signature covers id, time and body.
async fn escaped() {
    let endpoint = Endpoint::answering(&[]).await;
    endpoint.will(&answer("200 OK", "", ""));
    let world = World::new(&endpoint.url, "").await;
    let subject = "\"},\"type\":\"forged\",\"x\":{\"a\":\"\u{2028}<script>\\";
    let id = world.send(subject).await;
    world.server.wait_done(id).await;
    let request = endpoint.take().remove(0);
    let json: Value = serde_json::from_slice(&request.body).unwrap();
    assert_ne!(json["type"], "forged");
    assert!(json["data"]["subject"].as_str().unwrap().starts_with("\"},\"type\":\"forged\""), "{json}");
    let [id, time, signature] =
        ["webhook-id", "webhook-timestamp", "webhook-signature"].map(|name| request.header(name).unwrap().to_owned());
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"a secret of some length");
    let signed = |body: &[u8], time: &str| {
        let mac = hmac::sign(&key, &[format!("{id}.{time}.").as_bytes(), body].concat());
        format!("v1,{}", STANDARD.encode(mac))
    };
    assert_eq!(signed(&request.body, &time), signature);
    // A receiver that looks at the time has five minutes (Standard Webhooks), and no other time fits.
    assert_ne!(signed(&request.body, "1"), signature);
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_behaviour_of_the_set() {
    let behaviours = flow::maps(&flow::below(SET, "behaviours"));
    assert_eq!(behaviours.len(), 6);
    for behaviour in behaviours {
        match flow::text(&behaviour, "id").as_str() {
            "b1" => pinned().await,
            "b2" => redirects().await,
            "b3" => bounded().await,
            "b4" => down().await,
            "b5" => escaped().await,
            // There are no placeholders in URLs: braces are part of the address, and nothing is filled in.
            "b6" => assert_eq!(loaded("http://crm.example.com/{{rcpt}}").unwrap().path(), "/%7B%7Brcpt%7D%7D"),
            other => panic!("what is {other}?"),
        }
    }
}
