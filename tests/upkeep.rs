//! Backup, restore and compaction, and what the server tells those who watch it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod client;
    pub mod kept;
    pub mod records;
    pub mod server;
    pub mod stored;
}

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use postrider::clock::Clock;
use postrider::message::MessageId;
use postrider::queue::NewMessage;
use postrider::queue::keys;
use postrider::store::{Batch, Store, Table};
use serde_json::Value;
use support::client::Client;
use support::kept::{contents, copy, first_format, run, say, stderr, stdout, write_config};
use support::records::{message, open, recipient};
use support::server::{TestServer, queued_id};
use support::stored::{self, WRITTEN};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const CAPTURE: &str = "[domains.\"home.test\"]\n[networks]\ntrusted = [\"127.0.0.0/8\"]\n\
                       [delivery]\ndefault = \"capture\"\n";

fn letter(number: usize) -> String {
    format!("From: <me@home.test>\r\nTo: <you@far.test>\r\nSubject: number {number}\r\n\r\nhello\r\n")
}

async fn in_background(data_dir: &Path, arguments: &[&str]) -> std::process::Output {
    let data_dir = data_dir.to_owned();
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let run = move || run(&data_dir, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// GET on the admin socket: status and body.
async fn get(data_dir: &Path, path: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(data_dir.join("admin.sock")).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: postrider\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_busy_server_holds_all_that_was_acknowledged_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let (data_dir, to) = (folder.path().join("data"), folder.path().join("backup"));
    write_config(&data_dir);
    let server = TestServer::start(&data_dir, CAPTURE).await;
    let done = Arc::new(AtomicBool::new(false));
    let (told, mut acknowledged) = tokio::sync::mpsc::unbounded_channel();
    let mut senders = Vec::new();
    for sender in 0..4 {
        let (done, told, address) = (done.clone(), told.clone(), server.submission);
        senders.push(tokio::spawn(async move {
            let mut client = Client::connect(address).await.unwrap();
            let mut number = sender;
            while !done.load(Ordering::Acquire) {
                let reply = client.send("me@home.test", &["you@far.test"], &letter(number)).await.unwrap();
                told.send(queued_id(&reply)).unwrap();
                number += 4;
            }
        }));
    }
    let mut before: Vec<MessageId> = Vec::new();
    while before.len() < 100 {
        before.push(acknowledged.recv().await.unwrap());
    }
    let output = in_background(&data_dir, &["store", "backup", to.to_str().unwrap(), "--json"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let made: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(made["bytes"].as_u64().unwrap() > 0);
    done.store(true, Ordering::Release);
    for sender in senders {
        sender.await.unwrap();
    }
    server.stop().await;

    // For its owner alone, whatever the umask; keys are in it.
    for (name, mode) in [("", 0o700), ("store", 0o700), ("dkim", 0o700), ("tls", 0o700), ("BACKUP.json", 0o600)] {
        let found = std::fs::metadata(to.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{name}");
    }
    assert!(contents(&to.join("dkim")) == contents(&data_dir.join("dkim")));

    // Into an empty data_dir, and a server goes on with it.
    let other = folder.path().join("other");
    write_config(&other);
    let output = in_background(&other, &["store", "restore", to.to_str().unwrap()]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let output = in_background(&other, &["store", "check"]).await;
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
    let server = TestServer::start(&other, CAPTURE).await;
    let (status, text) = get(&other, "/readyz").await;
    let ready: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &ready["store"]["damages"]), (200, &Value::Array(Vec::new())), "{text}");
    for id in before {
        assert!(server.story(id).await.is_some(), "{id} is not in the backup");
    }
    server.stop().await;
}

#[test]
fn a_backup_overwrites_nothing_and_a_restore_deletes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (data_dir, to) = (folder.path().join("data"), folder.path().join("backup"));
    let backup = to.to_str().unwrap();
    write_config(&data_dir);
    let output = run(&data_dir, &["store", "backup", backup]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("there is no store"), "{}", stderr(&output));
    let output = run(&data_dir, &["store", "restore", folder.path().to_str().unwrap()]);
    assert!(stderr(&output).contains("BACKUP.json") && output.status.code() == Some(1), "{}", stderr(&output));

    copy(&first_format(), &data_dir.join("store"));
    std::fs::create_dir_all(data_dir.join("dkim/home.test")).unwrap();
    std::fs::write(data_dir.join("dkim/home.test/s1.pem"), "key").unwrap();
    say(&data_dir, &["store", "backup", backup], 0);
    let output = run(&data_dir, &["store", "backup", backup]);
    assert!(stderr(&output).contains("is not empty") && output.status.code() == Some(1), "{}", stderr(&output));

    // What is there is in the way, or moved aside.
    let before = contents(&data_dir.join("store"));
    std::fs::write(data_dir.join("dkim/home.test/s1.pem"), "newer key").unwrap();
    let output = run(&data_dir, &["store", "restore", backup]);
    assert!(stderr(&output).contains("--force") && output.status.code() == Some(1), "{}", stderr(&output));
    assert_eq!(contents(&data_dir.join("store")), before);
    let held = Store::open(&data_dir.join("store")).unwrap();
    let output = run(&data_dir, &["store", "restore", backup, "--force"]);
    assert!(stderr(&output).contains("stop the server") && output.status.code() == Some(1), "{}", stderr(&output));
    drop(held);
    let restored: Value =
        serde_json::from_str(&say(&data_dir, &["store", "restore", backup, "--force", "--json"], 0)).unwrap();
    let aside: Vec<&Path> =
        restored["moved_aside"].as_array().unwrap().iter().map(|path| Path::new(path.as_str().unwrap())).collect();
    assert_eq!(aside.len(), 2);
    assert!(aside[0].join("CURRENT").exists());
    assert_eq!(std::fs::read(aside[1].join("home.test/s1.pem")).unwrap(), b"newer key");
    assert_eq!(std::fs::read(data_dir.join("dkim/home.test/s1.pem")).unwrap(), b"key");
    assert_eq!(contents(&data_dir.join("store")), contents(&to.join("store")));

    // Copying the folders by hand is as good.
    let (queue, _fresh) = open(&to.join("store"), &Clock::manual(WRITTEN));
    assert!(queue.message(stored::all()[0].message.id).unwrap().is_some());
    assert!(queue.store().damages().is_empty(), "{:?}", queue.store().damages());
}

/// Log files stay a while, to be used again; tables are what grows with the mail.
fn table_bytes(store: &Path) -> u64 {
    let files = std::fs::read_dir(store).unwrap().map(|entry| entry.unwrap());
    let tables = files.filter(|entry| entry.path().extension().is_some_and(|ending| ending == "sst"));
    // A table may go while we look.
    tables.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// Fills a store with messages that are gone again.
async fn churn(path: &Path) {
    let clock = Clock::manual(WRITTEN);
    let (queue, mut fresh) = open(path, &clock);
    for _ in 0..40 {
        let id = queue.new_id();
        // Bytes that do not compress.
        let mut noise = vec![0; 200_000];
        getrandom::fill(&mut noise).unwrap();
        let body = vec![Bytes::from(noise)];
        let recipients = vec![recipient("a@b.example", WRITTEN + 1_000_000)];
        let message = message(id, &body, 1);
        queue.enqueue(NewMessage { message, body, recipients, extra: Batch::new() }).await.unwrap();
        let _ = fresh.try_recv();
    }
    queue.store().flush().unwrap();
    assert!(table_bytes(path) > 40 * 200_000);
    for entry in queue.store().prefix(Table::Body, b"").unwrap() {
        let (key, _) = entry.unwrap();
        let mut batch = Batch::new();
        batch.delete(Table::Body, key);
        queue.commit(batch, true).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_gives_space_back_with_the_server_stopped_and_running() {
    for is_running in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        write_config(folder.path());
        churn(&folder.path().join("store")).await;
        let server = if is_running { Some(TestServer::start(folder.path(), CAPTURE).await) } else { None };
        let output = in_background(folder.path(), &["store", "compact", "--json"]).await;
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let sizes: Value = serde_json::from_str(&stdout(&output)).unwrap();
        let [before, after] = ["before", "after"].map(|name| sizes[name].as_u64().unwrap());
        assert!(before > 0 && after > 0);
        let left = table_bytes(&folder.path().join("store"));
        assert!(left < 1_000_000, "{left}");
        if let Some(server) = server {
            server.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readyz_and_metrics_tell_how_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    write_config(folder.path());
    let server = TestServer::start(folder.path(), CAPTURE).await;
    let mut client = Client::connect(server.submission).await.unwrap();
    let reply = client.send("me@home.test", &["you@far.test"], &letter(1)).await.unwrap();
    server.wait_for(queued_id(&reply), |event| matches!(event, postrider::events::Event::Captured { .. })).await;
    let mut outside = Client::connect(server.mx).await.unwrap();
    let refused = outside.send("me@far.test", &["you@elsewhere.test"], &letter(2)).await.unwrap_err();
    assert!(refused.to_string().contains("550 5.7.1"), "{refused}");

    let (status, text) = get(folder.path(), "/readyz").await;
    let ready: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status, 200, "{text}");
    assert_eq!(ready["ready"], true);
    assert_eq!(ready["store"]["state"], "good");
    assert_eq!((&ready["disk"]["min_free"], &ready["disk"]["accepting"]), (&Value::from(1 << 20), &Value::Bool(true)));
    assert!(ready["memory"]["limit"].as_u64().unwrap() > 0);
    assert_eq!(ready["listeners"].as_array().unwrap().len(), 2);
    assert_eq!(ready["signing"][0], "home.test");
    assert_eq!(ready["resolver"], "unknown");

    // What has happened is counted once it is written down, and a story is read from there.
    let is_counted = |text: &str| text.lines().any(|line| line == "postrider_recipients_total{outcome=\"captured\"} 1");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let (status, text) = loop {
        let (status, text) = get(folder.path(), "/metrics").await;
        if is_counted(&text) || std::time::Instant::now() > deadline {
            break (status, text);
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(status, 200);
    for line in [
        "postrider_messages_accepted_total{door=\"submission\"} 1",
        "postrider_messages_accepted_total{door=\"mx\"} 0",
        "postrider_recipients_total{outcome=\"captured\"} 1",
        "postrider_refused_total{step=\"rcpt\"} 1",
        "postrider_store_up 1",
        "postrider_store_damages_total 0",
        "postrider_disk_accepting 1",
        "postrider_claims_held 0",
        "postrider_disk_min_free_bytes 1048576",
        "# TYPE postrider_commit_sync_seconds histogram",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    // As a scraper reads it: every line is a comment, or a name, perhaps a label, and a number.
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("postrider_") && value.parse::<f64>().is_ok(), "{line}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_too_little_disk_the_server_is_not_ready_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    write_config(folder.path());
    // More than any disk has: the guard is closed from the start.
    let base = CAPTURE.to_owned();
    let server = TestServer::start_with(folder.path(), &base, "min_free = \"1MiB\"", "min_free = \"1000000GiB\"").await;
    let mut client = Client::connect(server.submission).await.unwrap();
    let refused = client.send("me@home.test", &["you@far.test"], &letter(1)).await.unwrap_err();
    assert!(refused.to_string().contains("452 4.3.1"), "{refused}");
    let (status, text) = get(folder.path(), "/readyz").await;
    let ready: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &ready["ready"], &ready["disk"]["accepting"]), (503, &Value::Bool(false), &Value::Bool(false)));
    let (_, text) = get(folder.path(), "/metrics").await;
    for line in [
        "postrider_disk_accepting 0",
        "postrider_disk_low_total 1",
        "postrider_refused_temporarily_total{step=\"mail\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    server.stop().await;
}

#[test]
fn relaxed_durability_and_a_full_disk_are_said_in_the_log_at_every_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("postrider.toml");
    let text = format!(
        "hostname = \"mail.home.test\"\ndata_dir = \"{}\"\n[listeners.mx]\nrole = \"mx\"\nbind = [\"127.0.0.1:0\"]\n\
         [domains.\"home.test\"]\n[queue]\ndurability = \"relaxed\"\n\
         min_free = \"1000000GiB\"\n",
        folder.path().display()
    );
    std::fs::write(&file, text).unwrap();
    for start in 0..2 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_postrider"))
            .args(["serve", "--config"])
            .arg(&file)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = String::new();
        let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
        for line in lines {
            let line = line.unwrap();
            log.push_str(&line);
            log.push('\n');
            if ["queue.durability", "listening", "not accepting mail"].iter().all(|word| log.contains(word)) {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(log.contains("not accepting mail: the disk is nearly full (queue.min_free)"), "start {start}: {log}");
        assert!(log.contains("WARN") && log.contains("queue.durability is \"relaxed\""), "start {start}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_listed_and_shown_and_the_rest_is_delivered() {
    let folder = tempfile::tempdir().unwrap();
    write_config(folder.path());
    let path = folder.path().join("store");
    copy(&first_format(), &path);
    let all = stored::all();
    let (new, four) = (all[0].message.id, all[4].message.id);
    {
        let store = Store::open(&path).unwrap();
        let mut batch = Batch::new();
        batch.put(Table::Message, new.to_key(), &b"\xc1"[..]);
        batch.put(Table::Recipient, keys::recipient(four, 1), &b"\xc1"[..]);
        store.write(std::slice::from_ref(&batch), true).unwrap();
    }
    let server = TestServer::start_at(folder.path(), CAPTURE, Clock::manual(WRITTEN)).await;
    let picked = all[6].message.id;
    server.wait_for(picked, |event| matches!(event, postrider::events::Event::Captured { .. })).await;

    let output = in_background(folder.path(), &["queue", "list", "--status", "damaged", "--json"]).await;
    let lines = support::kept::lines(&stdout(&output));
    let listed: Vec<(String, Option<u64>)> =
        lines.iter().map(|line| (line["id"].as_str().unwrap().to_owned(), line["recipient"].as_u64())).collect();
    assert_eq!(listed, [(new.to_string(), None), (four.to_string(), Some(1))], "{}", stderr(&output));
    let output = in_background(folder.path(), &["queue", "list", "--status", "damaged"]).await;
    assert!(stdout(&output).contains("2 damaged records"), "{}", stdout(&output));

    let output = in_background(folder.path(), &["queue", "show", &new.to_string()]).await;
    assert!(
        stdout(&output).starts_with(&format!("{new} (damaged, set aside)")),
        "{}{}",
        stdout(&output),
        stderr(&output)
    );
    let output = in_background(folder.path(), &["queue", "show", &four.to_string()]).await;
    let text = stdout(&output);
    assert!(text.contains("recipient 1") && text.contains("sales@home.test"), "{text}{}", stderr(&output));
    server.stop().await;
}

/// After a load of 160 MiB its last tables would stay, with nothing in them that is still there.
#[tokio::test(flavor = "multi_thread")]
async fn space_is_given_back_once_the_load_has_ended() {
    const MIB: u64 = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    write_config(folder.path());
    let server = TestServer::start(folder.path(), CAPTURE).await;
    let mut client = Client::connect(server.submission).await.unwrap();
    // Nothing that repeats: it is not to be compressed.
    let mut state = 1_u64;
    let line = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{state:016x}{:016x}\r\n", state.rotate_left(29) ^ 0x5bd1_e995)
    };
    let lines: String = std::iter::repeat_with(line).take(8 * MIB as usize / 34).collect();
    for number in 0..20 {
        let content = format!("{}{lines}", letter(number));
        client.send("me@home.test", &["you@far.test"], &content).await.unwrap();
    }
    assert!(table_bytes(&store) > 32 * MIB, "the load is too small to show anything");
    let output = in_background(folder.path(), &["queue", "cancel", "--domain", "far.test"]).await;
    assert_eq!(stdout(&output), "20 recipients cancelled.\n", "{}", stderr(&output));
    let given_back = async {
        while table_bytes(&store) > 4 * MIB {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), given_back).await.expect("tables are still there");
    server.stop().await;
}
