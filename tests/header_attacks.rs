//! `tests/data/header-attacks`: mail that shows people another author than the checks see. Through the
//! whole server; each case is refused, or has one author only, as `expected.json` says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

#[path = "support/client.rs"]
mod client;
#[path = "support/conversation.rs"]
mod conversation;
#[path = "support/flow.rs"]
mod flow;
#[path = "support/server.rs"]
mod server;
#[path = "support/zone.rs"]
mod zone;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use client::Client;
use postrider::events::Event;
use postrider::message::MessageId;
use postrider::message::header::Headers;
use postrider::store::Table;
use server::{TestServer, queued_id};
use zone::{Zone, ZoneServer};

/// Of `expected.json`.
const ONE_IDENTITY: &str = "one RFC5322.From identity or none; DMARC never pass for victim.example";

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/header-attacks")
}

/// attacker.example may send from here, victim.example may not, and asks for refusal.
fn world() -> Zone {
    Zone::new()
        .txt("attacker.example", "v=spf1 ip4:127.0.0.1 -all")
        .txt("_dmarc.attacker.example", "v=DMARC1; p=none")
        .txt("victim.example", "v=spf1 ip4:203.0.113.9 -all")
        .txt("_dmarc.victim.example", "v=DMARC1; p=reject")
        .txt("s._domainkey.example", "v=DKIM1; p=")
}

struct World {
    server: TestServer,
    _zone: ZoneServer,
    _folder: tempfile::TempDir,
}

/// What a message came to.
struct Fate {
    reply: String,
    /// As it is kept; empty if it was refused.
    content: Vec<u8>,
    /// Our Authentication-Results on one line.
    results: String,
}

impl World {
    /// `checks`: lines of that section.
    async fn new(checks: &str) -> World {
        let (zone, folder) = (world().serve().await, tempfile::tempdir().unwrap());
        let more = format!(
            "[domains.\"rcpt.example\"]\ncatchall = \"sink\"\n[targets.sink]\nkind = \"maildir\"\npath = \"DATA_DIR/box\"\n\
             [dns]\nnameservers = [\"{}\"]\n[checks]\n{checks}\n",
            zone.addr()
        );
        // So many messages from one sender are no loop here.
        let loops = "[loops]\ntrusted = [\"attacker.example\", \"victim.example\"]\n";
        let line = "hostname = \"mail.home.test\"";
        let server =
            TestServer::start_with(folder.path(), &format!("{more}{loops}"), line, "hostname = \"mx.rcpt.example\"")
                .await;
        World { server, _zone: zone, _folder: folder }
    }

    async fn send(&self, mail_from: &str, content: &str) -> Fate {
        let mut client = Client::connect(self.server.mx).await.unwrap();
        let reply = client.send(mail_from, &["bob@rcpt.example"], content).await.unwrap();
        if !reply.starts_with("250") {
            return Fate { reply, content: Vec::new(), results: String::new() };
        }
        let id = queued_id(&reply);
        let results = self.results(id).await;
        let mut files = std::fs::read_dir(self.server.data_dir.join("box/new")).unwrap();
        let file = files.find(|file| file.as_ref().unwrap().file_name().to_str().unwrap().contains(&id.to_string()));
        let path = file.unwrap_or_else(|| panic!("no file of {id}")).unwrap().path();
        Fate { reply, content: std::fs::read(path).unwrap(), results }
    }

    async fn results(&self, id: MessageId) -> String {
        let story = self.server.wait_done(id).await;
        let accepted = story.entries.iter().find_map(|entry| match &entry.event {
            Event::Accepted { checked, .. } => Some(checked.clone()),
            _ => None,
        });
        accepted.unwrap()
    }
}

fn cases() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(data().join("expected.json")).unwrap();
    let all: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(&text).unwrap();
    all.into_iter().map(|(name, case)| (name, case["rule"].clone())).collect()
}

/// Its lines end as those of the Maildir do.
fn kept(fate: &Fate) -> String {
    String::from_utf8_lossy(&fate.content).replace("\r\n", "\n")
}

fn assert_refused(name: &str, fate: &Fate) {
    assert!(fate.reply.starts_with('5'), "{name}: {} {}", fate.reply, fate.results);
    assert!(fate.reply.trim_end().bytes().all(|b| b.is_ascii_graphic() || b == b' '), "{name}: {:?}", fate.reply);
}

fn assert_rule(name: &str, rule: &str, fate: &Fate) {
    let of_attacker = "dmarc=pass (p=none) header.from=attacker.example";
    match rule {
        "reject-or-permerror"
        | "reject"
        | "permerror"
        | "permerror-or-all-must-align"
        | "permerror or A-label"
        | "never aligned"
        | "judge-identity: victim.example"
        | "refuse or normalise; same view for DKIM and parser"
        | "log escaped" => assert_refused(name, fate),
        ONE_IDENTITY if !fate.reply.starts_with("250") => assert_refused(name, fate),
        ONE_IDENTITY | "pass-for-attacker-only" => {
            assert!(fate.results.contains(of_attacker), "{name}: {} {}", fate.reply, fate.results);
            assert_eq!(fate.results.matches("dmarc=").count(), 1, "{name}: {}", fate.results);
        }
        "identity in A-label form" => {
            assert!(fate.results.contains("dmarc=none header.from=xn--"), "{name}: {}", fate.results);
        }
        // Nothing is published at these, and nothing is made up for them.
        "PSD rules" => assert!(fate.results.contains("dmarc=none header.from="), "{name}: {}", fate.results),
        "flag" => assert!(fate.results.contains("x-header=policy (more than one "), "{name}: {}", fate.results),
        "AR with our authserv-id removed" => {
            let text = kept(fate);
            assert_eq!(text.matches("Authentication-Results: mx.rcpt.example").count(), 1, "{text}");
            assert!(!text.contains("header.from=victim.example"), "{text}");
        }
        "one view of where the header ends" => {
            assert!(fate.results.contains(of_attacker), "{name}: {} {}", fate.reply, fate.results);
            assert!(kept(fate).contains("\nFrom: a@attacker.example\n\nthis is no field\nFrom: "), "{}", kept(fate));
        }
        other => panic!("{name}: what is the rule {other:?}?"),
    }
}

#[tokio::test]
async fn every_case_has_one_author_or_is_refused() {
    let world = World::new("").await;
    let cases = cases();
    assert_eq!(cases.len(), std::fs::read_dir(data()).unwrap().filter(is_mail).count());
    for (name, rule) in &cases {
        let content = std::fs::read_to_string(data().join(format!("{name}.eml"))).unwrap();
        let fate = world.send("a@attacker.example", &content).await;
        assert_rule(name, rule, &fate);
        // Whatever it was: nothing speaks for the victim.
        assert!(!fate.results.contains("dmarc=pass (p=reject)"), "{name}: {}", fate.results);
        if fate.reply.starts_with("250") {
            let text = kept(&fate).replace('\n', "\r\n");
            assert_eq!(Headers::parse(text.as_bytes()).all("From").count(), 1, "{name}");
        }
    }
    assert_eq!(world.server.app.operator().queue.store().prefix(Table::Message, &[]).unwrap().count(), 0);
    world.server.stop().await;
}

fn is_mail(entry: &std::io::Result<std::fs::DirEntry>) -> bool {
    entry.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "eml")
}

#[tokio::test]
async fn what_has_no_use_but_to_deceive_is_refused_with_all_checks_off() {
    let off = ["spf", "dkim", "dmarc", "rdns"].map(|check| format!("{check} = \"off\"\n")).concat();
    let world = World::new(&off).await;
    for (name, text) in [
        ("two-from", "550 5.7.1 the message has more than one From field (RFC 5322 3.6)"),
        ("three-from-case", "550 5.7.1 the message has more than one From field (RFC 5322 3.6)"),
        ("from-space-colon", "550 5.7.1 the message has more than one From field (RFC 5322 3.6)"),
        ("from-leading-space", "550 5.7.1 the message has no From field (RFC 5322 3.6)"),
        ("from-8bit-name", "550 5.7.1 the message has no From field (RFC 5322 3.6)"),
    ] {
        let content = std::fs::read_to_string(data().join(format!("{name}.eml"))).unwrap();
        assert_eq!(world.send("a@attacker.example", &content).await.reply.trim_end(), text, "{name}");
    }
    // What everybody reads in the same way passes.
    for name in ["from-two-addr", "from-group", "from-quoted-display", "dup-subject-to-date"] {
        let content = std::fs::read_to_string(data().join(format!("{name}.eml"))).unwrap();
        let fate = world.send("a@attacker.example", &content).await;
        assert!(fate.reply.starts_with("250"), "{name}: {}", fate.reply);
    }
    world.server.stop().await;
}

/// `mail-from-helo.yml`: the envelope's part of the same attacks.
#[tokio::test]
async fn envelopes_are_unambiguous_or_refused() {
    let world = World::new("").await;
    let cases = flow::maps(&std::fs::read_to_string(data().join("mail-from-helo.yml")).unwrap());
    assert_eq!(cases.len(), 11);
    for (number, case) in cases.iter().enumerate() {
        let content =
            format!("From: ceo@victim.example\r\nTo: bob@rcpt.example\r\nSubject: {number}\r\n\r\nhello {number}\r\n");
        let of_attacker = content.replace("ceo@victim.example", "a@attacker.example");
        let text = |key: &str| String::from_utf8(case[key].clone()).unwrap();
        let (ehlo, mail, rule) = (text("ehlo"), text("mail"), text("rule"));
        let mut client = Client::connect(world.server.mx).await.unwrap();
        let greeted = client.say(&format!("EHLO {ehlo}")).await.unwrap();
        if rule == "EHLO refused" {
            assert!(greeted.starts_with("501 "), "{ehlo}: {greeted}");
            continue;
        }
        assert!(greeted.starts_with("250"), "{ehlo}: {greeted}");
        let answer = client.say(&format!("MAIL FROM:{mail}")).await.unwrap();
        if rule == "refused" {
            assert!(answer.starts_with('5'), "{mail:?}: {answer}");
            continue;
        }
        assert!(answer.starts_with("250"), "{mail:?}: {answer}");
        client.command("RCPT TO:<bob@rcpt.example>", "250").await.unwrap();
        client.command("DATA", "354").await.unwrap();
        // In the victim's name it fails, whatever the envelope looks like.
        let reply = client.say(&format!("{content}.")).await.unwrap();
        assert!(reply.starts_with("550 5.7.1 rejected by the DMARC policy of victim.example"), "{mail:?}: {reply}");
        client.command(&format!("MAIL FROM:{mail}"), "250").await.unwrap();
        client.command("RCPT TO:<bob@rcpt.example>", "250").await.unwrap();
        client.command("DATA", "354").await.unwrap();
        let reply = client.say(&format!("{of_attacker}.")).await.unwrap();
        assert!(reply.starts_with("250"), "{mail:?}: {reply}");
        let results = world.results(queued_id(&reply)).await;
        let shown = match rule.as_str() {
            "SPF identity is postmaster@EHLO; DMARC needs alignment with From" => "spf=fail smtp.helo=victim.example",
            rule if rule.starts_with("no macro expansion") => "spf=pass smtp.mailfrom=a%{s}@attacker.example",
            rule if rule.starts_with("trailing dot") => "spf=pass smtp.mailfrom=a@attacker.example",
            "route dropped; domain is attacker.example" => "spf=pass smtp.mailfrom=a@attacker.example",
            "domain is attacker.example" => "spf=pass smtp.mailfrom=attacker.example",
            other => panic!("what is the rule {other:?}?"),
        };
        assert!(results.contains(&format!("{shown};")), "{mail:?}: {results}");
        let expected = if shown.starts_with("spf=pass") { "dmarc=pass" } else { "dmarc=fail" };
        assert!(results.contains(expected), "{mail:?}: {results}");
    }
    world.server.stop().await;
}
