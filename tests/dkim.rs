//! The life of DKIM keys: a new one signs once its record is in DNS, the old one stays until nothing queued
//! needs it, and a restart forgets nothing of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

mod support {
    pub mod client;
    pub mod plain;
    pub mod records;
    pub mod server;
    pub mod zone;
}

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use bytes::Bytes;
use postrider::app::dkim::Keeper;
use postrider::cli::dns;
use postrider::clock::Clock;
use postrider::events::Event;
use postrider::intake::sign::life::{self, State};
use postrider::intake::sign::{SignError, Signer};
use postrider::message::{HeldBy, Hold};
use postrider::queue::NewMessage;
use postrider::queue::record::{Recipient, Status};
use postrider::store::Batch;
use support::client::Client;
use support::plain::{self, domain};
use support::records::{START, message, open, recipient};
use support::server::{TestServer, queued_id};
use support::zone::Zone;

const HOUR: u64 = 3_600_000;

/// The selectors that sign, in order.
fn signing(signer: &Signer) -> Vec<String> {
    let signatures = signer.sign(&domain(plain::DOMAIN), b"From: a@own.test\r\n\r\nx\r\n").unwrap();
    signatures.iter().map(|signature| signature.name.split('.').next().unwrap().to_owned()).collect()
}

fn zone_file(signer: &Signer) -> String {
    dns::zone_lines(&dns::dkim(signer, &domain(plain::DOMAIN)))
}

fn published(signer: &Signer, selectors: &[&str]) -> Zone {
    let keys = signer.standings(&domain(plain::DOMAIN));
    let wanted = keys.iter().filter(|key| selectors.contains(&key.selector.as_str()));
    wanted.fold(Zone::new().a("own.test", "127.0.0.1"), |zone, key| zone.txt(&key.name, &key.record))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_signs_once_it_is_seen_and_the_old_one_stays_while_it_is_needed() {
    let folder = tempfile::tempdir().unwrap();
    let zone = Zone::new().a("own.test", "127.0.0.1").serve().await;
    let mut config = plain::config(folder.path());
    config.dns = zone.config();
    let own = domain(plain::DOMAIN);
    let clock = Clock::manual(START);
    let (queue, _fresh) = open(&folder.path().join("store"), &clock);
    let signer = Signer::load(&config).unwrap();
    let keeper = |signer: &Signer| Keeper {
        config: Arc::new(config.clone()),
        clock: clock.clone(),
        queue: queue.clone(),
        signer: signer.clone(),
    };
    let keeper_of_first = keeper(&signer);
    assert_eq!(keeper_of_first.look().await.unwrap(), []);
    assert!(!folder.path().join("dkim/own.test/states.json").exists());

    // A message is queued that the old keys have signed.
    let held = Recipient { status: Status::Held(Hold::new(HeldBy::Other, "test")), ..recipient("a@b.example", START) };
    let (id, body) = (queue.new_id(), vec![Bytes::from_static(b"\r\nx\r\n")]);
    let new = NewMessage { message: message(id, &body, 1), body, recipients: vec![held], extra: Batch::new() };
    queue.enqueue(new).await.unwrap();

    // As another process does it, while the server runs.
    let pairs = life::rotate(&config, &own).unwrap();
    assert_eq!(pairs, [("pr-ed", "pr-ed-2"), ("pr-rsa", "pr-rsa-2")].map(|(a, b)| (a.to_owned(), b.to_owned())));
    assert!(matches!(life::rotate(&config, &own), Err(SignError::NoNewKey { .. })), "the successors wait");
    assert_eq!(keeper_of_first.look().await.unwrap(), []);
    assert_eq!(signing(&signer), ["pr-rsa", "pr-ed"]);
    assert!(zone_file(&signer).contains("publish it, then it signs in the place of pr-rsa\npr-rsa-2._domainkey"));

    // One record is seen; another name holds a wrong key.
    let wrong = published(&signer, &["pr-rsa-2"]).txt("pr-ed-2._domainkey.own.test", "v=DKIM1; k=ed25519; p=AAAA");
    zone.replace(wrong);
    let changed = keeper_of_first.look().await.unwrap();
    assert_eq!(changed.len(), 2, "{changed:?}");
    assert_eq!(signing(&signer), ["pr-ed", "pr-rsa-2"]);

    // A restart, with both published.
    let signer = Signer::load(&config).unwrap();
    assert_eq!(signing(&signer), ["pr-ed", "pr-rsa-2"]);
    zone.replace(published(&signer, &["pr-rsa", "pr-ed", "pr-rsa-2", "pr-ed-2"]));
    let keeper = keeper(&signer);
    keeper.look().await.unwrap();
    assert_eq!(signing(&signer), ["pr-ed-2", "pr-rsa-2"]);

    // Held mail needs its key, however long it is held.
    clock.advance(100 * HOUR);
    assert_eq!(keeper.look().await.unwrap(), []);
    assert_eq!(signer.records(&own).len(), 4);
    assert!(zone_file(&signer).contains("\npr-rsa._domainkey.own.test. IN TXT"));
    assert!(queue.change(id, 0, |_, _| Some((None, Batch::new()))).await.unwrap());
    let changed = keeper.look().await.unwrap();
    assert!(changed.iter().all(|(_, _, state)| *state == State::Done) && changed.len() == 2, "{changed:?}");
    let signer = Signer::load(&config).unwrap();
    assert_eq!(signing(&signer), ["pr-ed-2", "pr-rsa-2"]);
    assert_eq!(signer.records(&own).len(), 2);
    let text = zone_file(&signer);
    assert!(
        text.contains("may be taken away; nothing that is queued needs it\n; pr-rsa._domainkey.own.test."),
        "{text}"
    );

    // And once more, from there.
    let pairs = life::rotate(&config, &own).unwrap();
    assert_eq!(pairs.iter().map(|(_, new)| new.as_str()).collect::<Vec<_>>(), ["pr-ed-3", "pr-rsa-3"]);
}

/// The whole server looks at its start.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_finds_at_its_start_what_was_published_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let config = plain::config(folder.path());
    let own = domain(plain::DOMAIN);
    let signer = Signer::load(&config).unwrap();
    life::rotate(&config, &own).unwrap();
    signer.reload(&config).unwrap();
    let zone = published(&signer, &["pr-rsa-2", "pr-ed-2"]).serve().await;
    let more = format!(
        "[networks]\ntrusted = [\"127.0.0.0/8\"]\n[domains.\"own.test\"]\n[delivery]\ndefault = \"capture\"\n\
         [dns]\nnameservers = [\"{}\"]\n",
        zone.addr()
    );
    let server = TestServer::start(folder.path(), &more).await;
    let mut client = Client::connect(server.submission).await.unwrap();
    // It signs with the old ones until it has looked, which takes no time that could be told.
    for _ in 0..10_000 {
        let reply = client.send("a@own.test", &["b@far.test"], "From: a@own.test\r\n\r\nx\r\n").await.unwrap();
        let story = server.wait_for(queued_id(&reply), |event| matches!(event, Event::Accepted { .. })).await;
        let Event::Accepted { signed, .. } = &story.entries[0].event else { panic!("{story:?}") };
        if signed.iter().all(|name| name.starts_with("pr-rsa-2.") || name.starts_with("pr-ed-2.")) {
            return server.stop().await;
        }
    }
    panic!("the old keys sign still");
}

#[test]
fn one_key_more_signs_beside_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let config = plain::config(folder.path());
    let own = domain(plain::DOMAIN);
    let signer = Signer::load(&config).unwrap();
    assert_eq!(life::new_key(&config, &own, Some("2027-ed")).unwrap(), "2027-ed");
    assert_eq!(life::new_key(&config, &own, None).unwrap(), "pr-rsa-2");
    for (selector, why) in
        [("pr-rsa", "already"), ("2027-ed", "already"), ("../x", "is not a selector"), ("A", "is not")]
    {
        let error = life::new_key(&config, &own, Some(selector)).unwrap_err();
        assert!(error.to_string().contains(why), "{selector}: {error}");
    }
    assert!(matches!(life::new_key(&config, &domain("other.test"), None), Err(SignError::NotOurs(_))));
    let advance = |lives: &mut life::Lives| Ok(lives.advance(|_| true, None, START));
    assert_eq!(life::change(folder.path(), &own, advance).unwrap().len(), 2);
    assert!(!signer.is_current(&config).unwrap());
    signer.reload(&config).unwrap();
    assert!(signer.is_current(&config).unwrap());
    assert_eq!(signing(&signer), ["pr-rsa", "pr-ed", "2027-ed", "pr-rsa-2"]);
    for _ in 0..4 {
        life::new_key(&config, &own, None).unwrap();
    }
    let error = life::new_key(&config, &own, None).unwrap_err().to_string();
    assert!(error.contains("8 keys at most"), "{error}");
}

#[test]
fn damaged_states_are_said_and_nothing_is_guessed() {
    let folder = tempfile::tempdir().unwrap();
    let config = plain::config(folder.path());
    Signer::load(&config).unwrap();
    std::fs::write(folder.path().join("dkim/own.test/states.json"), "{").unwrap();
    let error = Signer::load(&config).unwrap_err();
    assert!(matches!(&error, SignError::BadStates { .. }), "{error}");
    assert!(life::rotate(&config, &domain(plain::DOMAIN)).is_err());
}

fn cli(conf: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
    command.arg("dkim").args(words).arg("--config").arg(conf).output().unwrap()
}

#[test]
fn the_command_prints_what_to_publish() {
    let folder = tempfile::tempdir().unwrap();
    let conf = folder.path().join("postrider.toml");
    let text =
        format!("hostname = \"mail.own.test\"\ndata_dir = {:?}\n[domains.\"own.test\"]\n", folder.path().join("data"));
    std::fs::write(&conf, text).unwrap();
    let output = cli(&conf, &["rotate", "own.test"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    for line in ["pr-rsa-2 will take the place of pr-rsa, of own.test.", "pr-ed-2._domainkey.own.test. IN TXT"] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(!text.contains("\npr-rsa._domainkey"), "{text}");
    let output = cli(&conf, &["rotate", "own.test"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("publish its record first"));
    let output = cli(&conf, &["new", "own.test", "--selector", "s-ed", "--json"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(
        lines.iter().any(|line| line["name"] == "s-ed._domainkey.own.test" && line["state"] == "waiting"),
        "{text}"
    );
    assert_eq!(cli(&conf, &["rotate", "other.test"]).status.code(), Some(2));
}
