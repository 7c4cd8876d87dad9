//! What an alias sends elsewhere arrives with an ARC set of ours: over the wire, from door to door.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

mod support {
    pub mod client;
    pub mod maker;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use std::process::Command;

use postrider::checks::{Checked, Verdict, check};
use postrider::config::Config;
use postrider::dns::Resolver;
use postrider::events::Event;
use postrider::intake::sign::Signer;
use postrider::message::header::Headers;
use postrider::message::{Address, Domain, Door, Draft, Envelope, Origin, Peer, ReversePath};
use support::client::Client;
use support::maker::Maker;
use support::server::{HOSTNAME, TestServer, queued_id};
use support::sink::{Sink, Taken};
use support::zone::{Zone, ZoneServer};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/signatures.py");
const BODY: &str = "Hello,\r\n..dots\r\nblanks  \t \r\n\u{00e9} 8-bit\r\n \t\r\n\r\n";

fn message(subject: &str, more: &str) -> String {
    format!(
        "{more}From: Ann <ann@author.test>\r\nTo: sales@home.test\r\nSubject: {subject}\r\nDate: Sun, 22 Nov 2026 11:00:00 +0000\r\nMessage-ID: <{subject}@author.test>\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{BODY}"
    )
}

/// A server that forwards, a far end that takes it, and DNS with the keys of all.
struct World {
    server: TestServer,
    sink: Sink,
    zone: ZoneServer,
    maker: Maker,
    records: Vec<(String, String)>,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new(checks: &str) -> World {
        let folder = tempfile::tempdir().unwrap();
        let (sink, maker) = (Sink::start().await, Maker::new());
        let mut records: Vec<(String, String)> = vec![
            ("_dmarc.author.test".into(), "v=DMARC1; p=reject".into()),
            ("author.test".into(), "v=spf1 ip4:127.0.0.1 -all".into()),
            ("rsa._domainkey.author.test".into(), maker.record("rsa")),
            ("rsa._domainkey.list.test".into(), maker.record("rsa")),
        ];
        let zone = |records: &[(String, String)]| {
            let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1").fail("down.test");
            records.iter().fold(zone, |zone, (name, text)| zone.txt(name, text))
        };
        let served = zone(&records).serve().await;
        let conf = format!(
            "[domains.\"home.test\"]\n[aliases]\n\"sales@home.test\" = \"friend@far.test\"\n\"info@home.test\" = \"box\"\n\
             [targets.box]\nkind = \"maildir\"\npath = \"DATA_DIR/box\"\n[checks]\n{checks}\n\
             [delivery]\nmx_port = {}\nallow_private_addresses = true\n[dns]\nnameservers = [\"{}\"]\n",
            sink.address.port(),
            served.addr()
        );
        let server = TestServer::start(folder.path(), &conf).await;
        let text = format!("hostname = {HOSTNAME:?}\ndata_dir = {:?}\n[domains.\"home.test\"]\n", folder.path());
        let signer = Signer::load(&postrider::config::parse("test.toml", &text).unwrap()).unwrap();
        records.extend(signer.records(&Domain::parse("home.test").unwrap()));
        served.replace(zone(&records));
        World { server, sink, zone: served, maker, records, _folder: folder }
    }

    fn signed(&self, message: &str) -> String {
        let tags = "v=1; a=rsa-sha256; c=relaxed/relaxed; d=author.test; s=rsa; h=From:To:Subject:Date:From";
        self.maker.signed(tags, message)
    }

    /// Through the server; what the far end has got.
    async fn forward(&self, content: &str) -> Taken {
        let before = self.sink.count();
        let mut client = Client::connect(self.server.mx).await.unwrap();
        let stuffed = content.replace("\r\n.", "\r\n..");
        let reply = client.send("ann@author.test", &["sales@home.test"], &stuffed).await.unwrap();
        assert!(reply.starts_with("250 "), "{reply}");
        self.server.wait_done(queued_id(&reply)).await;
        self.sink.wait_for(before + 1).await;
        self.sink.taken().remove(before)
    }

    /// What the far end would find, that trusts home.test.
    async fn judged(&self, content: &[u8]) -> Checked {
        let text = "hostname = \"mx.far.test\"\ndata_dir = \"/nowhere\"\n[checks]\nspf = \"off\"\ntrusted_sealers = [\"home.test\"]\n";
        let config: Config = postrider::config::parse("test.toml", text).unwrap();
        let resolver = Resolver::new(&self.zone.config()).unwrap();
        let peer = Peer { ip: [192, 0, 2, 1].into(), helo: "helo.test".to_owned(), esmtp: true, tls: None };
        let draft = Draft {
            envelope: Envelope::new(ReversePath::Null, [Address::parse("friend@far.test").unwrap()]),
            content: content.to_vec().into(),
            origin: Origin { door: Door::Mx { listener: "mx".to_owned() }, account: None, peer: Some(peer) },
        };
        check(&resolver, &config, &draft).await
    }

    /// The state of the chain as dkimpy sees it; none, loudly, without dkimpy.
    fn asked(&self, content: &[u8]) -> Option<String> {
        let given = std::env::var_os("POSTRIDER_TEST_PYTHON");
        let python = given.clone().unwrap_or_else(|| "python3".into());
        let probe = Command::new(&python).args(["-c", "import dkim, authres, nacl.signing"]).output();
        if !probe.is_ok_and(|output| output.status.success()) {
            assert!(given.is_none(), "POSTRIDER_TEST_PYTHON is set, but has no dkimpy, authres and pynacl");
            eprintln!("SKIPPED: dkimpy is not installed for {}; it was not asked", python.display());
            return None;
        }
        let (file, list) = (self.server.data_dir.join("judged.eml"), self.server.data_dir.join("cases"));
        std::fs::write(&file, content).unwrap();
        let records: std::collections::BTreeMap<&String, &String> = self.records.iter().map(|(n, t)| (n, t)).collect();
        let case = serde_json::json!({ "name": "it", "message": file, "records": records });
        std::fs::write(&list, format!("{case}\n")).unwrap();
        let output = Command::new(&python).arg(SCRIPT).arg("judge").arg(&list).output().unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        Some(answer["arc"].as_str().unwrap().to_owned())
    }
}

fn chain(checked: &Checked) -> (String, Vec<String>) {
    let arc = checked.findings.arc.clone().unwrap();
    (arc.result, arc.sealers)
}

fn names(content: &[u8]) -> Vec<String> {
    let headers = Headers::parse(content);
    headers.fields().iter().map(|field| String::from_utf8_lossy(field.name).into_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forward_is_sealed_and_not_changed() {
    let world = World::new("").await;
    let content = world.signed(&message("hello", ""));
    let taken = world.forward(&content).await;
    assert_eq!(taken.recipients, ["friend@far.test"]);
    assert_eq!(Headers::parse(&taken.content).body(), BODY.as_bytes());
    assert!(taken.content.ends_with(content.as_bytes()), "it follows as it came");
    assert_eq!(names(&taken.content)[..3], ["ARC-Seal", "ARC-Message-Signature", "ARC-Authentication-Results"]);
    let text = String::from_utf8(taken.content.clone()).unwrap();
    let results = Headers::parse(&taken.content).get("ARC-Authentication-Results").unwrap().text();
    assert!(results.starts_with(&format!("i=1; {HOSTNAME};")) && results.contains("dmarc=pass"), "{results}");
    let ours = text.strip_suffix(&content).unwrap();
    assert!(ours.lines().all(|line| line.len() <= 78), "{text}");

    let checked = world.judged(&taken.content).await;
    assert_eq!(chain(&checked), ("pass".to_owned(), vec!["home.test".to_owned()]), "{text}");
    assert!(world.asked(&taken.content).is_none_or(|state| state == "pass"));
    let changed = text.replace("blanks  \t", "blanks!");
    assert_eq!(chain(&world.judged(changed.as_bytes()).await).0, "fail");
    assert!(world.asked(changed.as_bytes()).is_none_or(|state| state == "fail"));
    world.server.stop().await;
}

/// Without a signature of the author's: only we have seen it come from where it may.
#[tokio::test(flavor = "multi_thread")]
async fn who_trusts_the_forwarder_believes_the_author() {
    let world = World::new("").await;
    let taken = world.forward(&message("by-spf", "")).await;
    let checked = world.judged(&taken.content).await;
    let results = checked.authentication_results.replace("\r\n\t", " ");
    assert!(results.contains("dmarc=fail (p=reject) (accepted: arc=pass, sealed by home.test)"), "{results}");
    assert_eq!(checked.verdict, Verdict::Accept);
    let end = taken.content.windows(6).position(|window| window == b"From: ").unwrap();
    let unsealed = world.judged(&taken.content[end..]).await;
    assert!(matches!(unsealed.verdict, Verdict::Reject(_)), "{}", unsealed.authentication_results);
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_is_gone_on_with_or_left_alone() {
    let world = World::new("dmarc = \"annotate\"").await;
    let author = world.signed(&message("chain", ""));
    let one = world.maker.sealed("list.test", "none", "list.test; dmarc=pass header.from=author.test", &author);
    let taken = world.forward(&one).await;
    let checked = world.judged(&taken.content).await;
    assert_eq!(chain(&checked), ("pass".to_owned(), ["list.test", "home.test"].map(String::from).to_vec()));
    assert!(world.asked(&taken.content).is_none_or(|state| state == "pass"));
    let text = String::from_utf8(taken.content.clone()).unwrap();
    assert!(text.starts_with("ARC-Seal: i=2; a=rsa-sha256; cv=pass;"), "{text}");

    for (subject, broken) in [
        ("ended", world.maker.sealed("list.test", "fail", "list.test; arc=fail", &one)),
        ("broken", one.replace("Subject: chain", "Subject: broken")),
        ("unknown", world.maker.sealed("down.test", "none", "down.test; none", &author)),
    ] {
        let taken = world.forward(&broken.replace("<chain@", &format!("<{subject}@"))).await;
        let ours = names(&taken.content).iter().take_while(|name| !name.starts_with("ARC-")).count();
        assert!(ours > 0, "{subject}: no set of ours comes first");
        assert!(taken.content.ends_with(BODY.as_bytes()));
    }
    world.server.stop().await;
}

/// Longer than one piece of the store: its body was hashed as it came in.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_message_is_sealed_as_it_passes() {
    let world = World::new("").await;
    let long = message("long", "") + &"0123456789 abcdef \t\r\n".repeat(100_000) + " \r\n\r\n";
    let one = world.maker.sealed_with(
        "i=1; a=rsa-sha256; c=simple/simple; d=list.test; s=rsa; h=From:Subject",
        "i=1; a=rsa-sha256; cv=none; d=list.test; s=rsa",
        "list.test; none",
        &long,
    );
    let taken = world.forward(&one).await;
    assert!(taken.content.ends_with(one.as_bytes()));
    assert_eq!(chain(&world.judged(&taken.content).await).0, "pass");
    assert!(world.asked(&taken.content).is_none_or(|state| state == "pass"));
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_an_alias_sends_elsewhere_is_sealed() {
    let world = World::new("").await;
    let mut client = Client::connect(world.server.mx).await.unwrap();
    let content = world.signed("From: ann@author.test\r\n\r\nx\r\n");
    let reply = client.send("ann@author.test", &["info@home.test"], &content).await.unwrap();
    let story = world.server.wait_done(queued_id(&reply)).await;
    let Event::Accepted { signed, .. } = &story.entries[0].event else { panic!("{story:?}") };
    assert!(signed.is_empty(), "{signed:?}");
    let content = world.signed(&message("told", "")).replace("\r\n.", "\r\n..");
    let reply = client.send("ann@author.test", &["sales@home.test"], &content).await.unwrap();
    let story = world.server.wait_done(queued_id(&reply)).await;
    let Event::Accepted { signed, .. } = &story.entries[0].event else { panic!("{story:?}") };
    assert_eq!(*signed, ["pr-rsa._domainkey.home.test (ARC set 1)"]);
    world.server.stop().await;

    let off = World::new("seal_forwards = false").await;
    let taken = off.forward(&off.signed(&message("off", ""))).await;
    assert!(!names(&taken.content).iter().any(|name| name.starts_with("ARC-")));
    off.server.stop().await;
}
