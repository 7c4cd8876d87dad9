//! What happened, as the command line and HTTP show it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod client;
    pub mod kept;
    pub mod server;
    pub mod sink;
}

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use postrider::admin::events::EventsWish;
use postrider::admin::{Action, Backend, Filter, Pick, Selection};
use postrider::clock::Clock;
use postrider::events::Event;
use postrider::message::MessageId;
use serde_json::Value;
use support::client::Client;
use support::kept::{lines, run, say, stderr, write_config};
use support::server::{TestServer, queued_id};
use support::sink::Sink;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Mail for far.test is captured, mail for home.test cannot be delivered: its folder is a file.
const CONF: &str = "[domains.\"home.test\"]\ncatchall = \"box\"\n[targets.box]\nkind = \"maildir\"\npath = \"/dev/null/box\"\n\
                    [networks]\ntrusted = [\"127.0.0.0/8\"]\n[delivery]\ndefault = \"capture\"\n";

const WISH: EventsWish = EventsWish {
    id: None,
    about: None,
    account: None,
    smart_host: None,
    failed: false,
    since: None,
    before: None,
    limit: 100,
};

async fn send(server: &TestServer, number: usize, to: &str) -> MessageId {
    let mut client = Client::connect(server.submission).await.unwrap();
    let letter = format!("From: <me@home.test>\r\nMessage-ID: <{number}@home.test>\r\n\r\nhello\r\n");
    queued_id(&client.send("me@home.test", &[to], &letter).await.unwrap())
}

/// Runs the command off the async threads.
async fn told(data_dir: &Path, arguments: &[&str], status: i32) -> String {
    let data_dir = data_dir.to_owned();
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let say = move || say(&data_dir, &arguments.iter().map(String::as_str).collect::<Vec<_>>(), status);
    tokio::task::spawn_blocking(say).await.unwrap()
}

/// GET on the admin socket: status and body.
async fn get(data_dir: &Path, path: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(data_dir.join("admin.sock")).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: postrider\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap())
}

fn names(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["event"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_found_by_id_message_id_address_and_trouble() {
    let folder = tempfile::tempdir().unwrap();
    write_config(folder.path());
    let server = TestServer::start(folder.path(), CONF).await;
    let good = send(&server, 1, "you@far.test").await;
    server.wait_for(good, |event| matches!(event, Event::Captured { .. })).await;
    let bad = send(&server, 2, "sales@home.test").await;
    server.wait_for(bad, |event| matches!(event, Event::Deferred { .. })).await;

    let log = async |arguments: &[&str]| {
        let text = told(folder.path(), &[&["log", "--json"], arguments].concat(), 0).await;
        lines(&text)
    };
    let all = log(&[]).await;
    assert_eq!(names(&all), ["accepted", "captured", "accepted", "routed", "deferred"]);
    assert!(all.windows(2).all(|two| two[0]["at"].as_str() <= two[1]["at"].as_str()));
    assert_eq!(names(&log(&[&good.to_string()]).await), ["accepted", "captured"]);
    assert_eq!(names(&log(&["<2@home.test>"]).await), ["accepted", "routed", "deferred"]);
    assert_eq!(names(&log(&["YOU@far.test"]).await), ["captured"]);
    assert_eq!(names(&log(&["@far.test"]).await), ["captured"]);
    assert_eq!(log(&["me@home.test"]).await.len(), 5);
    assert_eq!(names(&log(&["sales@home.test"]).await), ["routed", "deferred"]);
    assert_eq!(names(&log(&["--failed"]).await), ["deferred"]);
    assert_eq!(names(&log(&["--limit", "2"]).await), ["routed", "deferred"]);
    assert!(log(&["--account", "shop"]).await.is_empty());
    assert!(log(&["--since", "2100-01-01T00:00:00Z"]).await.is_empty());
    assert_eq!(log(&["--since", "1h"]).await.len(), 5);
    assert_eq!(all[1]["context"]["message_id"], "1@home.test");

    let text = told(folder.path(), &["log"], 0).await;
    let shown: Vec<&str> = text.lines().collect();
    assert_eq!(shown.len(), 5, "{text}");
    assert!(shown[1].contains(&format!(" {good} ")) && shown[1].contains("captur"), "{text}");
    assert!(shown[4].contains("try 1 for sales@home.test failed"), "{text}");
    assert!(told(folder.path(), &["log", "--limit", "1"], 0).await.contains("there is more"));
    assert!(told(folder.path(), &["log", "nobody@far.test"], 0).await.contains("nothing is found"));
    for (wrong, complaint) in [
        (["log", "--smart-host", "relay"], "no smart host named"),
        (["log", "--since", "yesterday"], "neither a time nor a duration"),
        (["log", "--json", "what"], "neither a queue id nor"),
    ] {
        let data_dir = folder.path().to_owned();
        let output = tokio::task::spawn_blocking(move || run(&data_dir, &wrong)).await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(stderr(&output).contains(complaint), "{}", stderr(&output));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_gives_pages_of_whole_messages_and_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path(), CONF).await;
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(send(&server, number, "you@far.test").await);
    }
    for id in &ids {
        server.wait_for(*id, |event| matches!(event, Event::Captured { .. })).await;
    }
    let (mut found, mut path) = (Vec::new(), "/api/v1/events?limit=3".to_owned());
    loop {
        let (status, page) = get(folder.path(), &path).await;
        assert_eq!(status, 200);
        found.extend(page["events"].as_array().unwrap().clone());
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/api/v1/events?limit=3&before={next}");
    }
    let mut wanted: Vec<String> = ids.iter().flat_map(|id| [id.to_string(), id.to_string()]).collect();
    wanted.reverse();
    let got: Vec<&str> = found.iter().map(|line| line["queue_id"].as_str().unwrap()).collect();
    assert_eq!(got, wanted);
    assert_eq!(names(&found)[..2], ["captured", "accepted"]);
    for wrong in ["limit=0", "limit=1001", "since=soon", "q=what", "smart_host=none", "failed=perhaps", "colour=red"] {
        let (status, answer) = get(folder.path(), &format!("/api/v1/events?{wrong}")).await;
        assert!((400..500).contains(&status), "{wrong}: {status}");
        assert!(!answer["remedy"].as_str().unwrap().is_empty(), "{wrong}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_followed_line_by_line_until_the_server_stops() {
    let folder = tempfile::tempdir().unwrap();
    write_config(folder.path());
    let server = TestServer::start(folder.path(), CONF).await;
    let mut stream = UnixStream::connect(folder.path().join("admin.sock")).await.unwrap();
    let request = "GET /api/v1/events?follow=true&q=@far.test HTTP/1.1\r\nhost: postrider\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut read = tokio::io::BufReader::new(stream).lines();
    // The empty line says that nothing is missed from here on; each is a chunk of its own.
    while read.next_line().await.unwrap().unwrap() != "1" {}
    send(&server, 1, "sales@home.test").await;
    let id = send(&server, 2, "you@far.test").await;
    let line = loop {
        let line = read.next_line().await.unwrap().unwrap();
        if line.starts_with('{') {
            break serde_json::from_str::<Value>(&line).unwrap();
        }
    };
    assert_eq!((&line["event"], &line["queue_id"]), (&"captured".into(), &id.to_string().into()));
    assert_eq!(line["context"]["message_id"], "2@home.test");

    // The command prints the same; something is tried again and again until it does.
    let config = folder.path().join("postrider.toml");
    let mut child = Command::new(env!("CARGO_BIN_EXE_postrider"))
        .args(["log", "--follow", "--json", "--failed", "--config"])
        .arg(config)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let (first, mut got) = tokio::sync::oneshot::channel();
    let reader = std::thread::spawn(move || {
        let mut lines = out.lines();
        let _ = first.send(lines.next().unwrap().unwrap());
        lines.count()
    });
    let line = loop {
        let selection = Selection { pick: Pick::Matching(Filter::default()), dry_run: false };
        server.app.operator().change(Action::Retry, selection).await.unwrap();
        if let Ok(line) = tokio::time::timeout(std::time::Duration::from_millis(50), &mut got).await {
            break line.unwrap();
        }
    };
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["event"], "deferred");
    // A follower does not keep the server from stopping.
    server.stop().await;
    while read.next_line().await.is_ok_and(|line| line.is_some()) {}
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(stderr(&ended).contains("the server"), "{}", stderr(&ended));
    reader.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_loses_lines_and_holds_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path(), CONF).await;
    let mut reader = server.app.operator().follow(WISH).await.unwrap();
    let mut client = Client::connect(server.submission).await.unwrap();
    for number in 0..700 {
        let letter = format!("From: <me@home.test>\r\nMessage-ID: <{number}@home.test>\r\n\r\nhello\r\n");
        client.send("me@home.test", &["you@far.test"], &letter).await.unwrap();
    }
    // 1,400 events in the end: 1,024 are kept for who is slow, 64 lines are ready, and one is in between.
    let (mut events, mut lost) = (0, 0);
    while events + lost < 1400 {
        let line: Bytes = reader.recv().await.unwrap();
        let line: Value = serde_json::from_slice(&line).unwrap();
        match line["lost"].as_u64() {
            Some(number) => lost += number,
            None => events += 1,
        }
    }
    assert_eq!(events + lost, 1400);
    drop(reader);
    let mut followers = Vec::new();
    while let Ok(reader) = server.app.operator().follow(WISH).await {
        followers.push(reader);
        assert!(followers.len() <= 16);
    }
    assert!(followers.len() >= 15);
    server.stop().await;
    for mut reader in followers {
        while reader.recv().await.is_some() {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stories_are_kept_for_as_long_as_the_configuration_says() {
    let folder = tempfile::tempdir().unwrap();
    let conf = format!("{CONF}[events]\nkeep = \"2h\"\n").replace("/dev/null/box", "DATA_DIR/box");
    let clock = Clock::manual(1_795_300_000_000);
    let server = TestServer::start_at(folder.path(), &conf, clock.clone()).await;
    let old = send(&server, 1, "sales@home.test").await;
    server.wait_done(old).await;
    clock.advance(3 * 3600 * 1000);
    let young = send(&server, 2, "sales@home.test").await;
    server.wait_done(young).await;
    server.stop().await;
    // Old stories are looked for at the start.
    let server = TestServer::start_at(folder.path(), &conf, clock).await;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while server.story(old).await.is_some() {
        assert!(std::time::Instant::now() < deadline, "the old story is still there");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(server.story(young).await.is_some());
    server.stop().await;
}

/// What the whole server writes to its log with this `[events] log`.
fn logged(level: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("postrider.toml");
    let text = format!(
        "hostname = \"mail.home.test\"\ndata_dir = \"{0}\"\n[queue]\nmin_free = \"1MiB\"\n[listeners.submission]\n\
         role = \"submission\"\nbind = [\"127.0.0.1:0\"]\n[events]\nlog = \"{level}\"\n{CONF}",
        folder.path().display()
    );
    std::fs::write(&config, text).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_postrider"))
        .args(["serve", "--config"])
        .arg(&config)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let err = BufReader::new(child.stderr.take().unwrap());
    let (told, heard) = mpsc::channel();
    let is_over = Arc::new(AtomicBool::new(false));
    let over = is_over.clone();
    let reader = std::thread::spawn(move || {
        for line in err.lines().map_while(Result::ok) {
            let _ = told.send(line);
        }
        over.store(true, Ordering::Release);
    });
    while !heard.recv().unwrap().contains("listening") {}
    for to in ["you@far.test", "sales@home.test"] {
        let from = ["send", "--from", "me@home.test", "--to", to, "--config"];
        let sent = Command::new(env!("CARGO_BIN_EXE_postrider")).args(from).arg(&config).output().unwrap();
        assert_eq!(sent.status.code(), Some(0), "{}", stderr(&sent));
    }
    // Until both are through, as the stories tell.
    loop {
        let log = ["log", "--json", "--config"];
        let log = Command::new(env!("CARGO_BIN_EXE_postrider")).args(log).arg(&config).output().unwrap();
        let text = String::from_utf8(log.stdout).unwrap();
        if text.contains("\"captured\"") && text.contains("\"deferred\"") {
            break;
        }
    }
    let stop = Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(stop.success());
    child.wait().unwrap();
    reader.join().unwrap();
    assert!(is_over.load(Ordering::Acquire));
    heard.try_iter().collect::<Vec<_>>().join("\n")
}

#[test]
fn the_processing_log_has_three_levels() {
    let found = |level: &str| {
        let log = logged(level);
        [" accepted", " captured", " deferred"].map(|what| log.contains(what))
    };
    assert_eq!(found("all"), [true, true, true]);
    assert_eq!(found("failed"), [false, false, true]);
    assert_eq!(found("off"), [false, false, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_null_sender_can_be_sent_from_and_the_postmaster_is_the_author() {
    let folder = tempfile::tempdir().unwrap();
    write_config(folder.path());
    let server = TestServer::start(folder.path(), CONF).await;
    let id = told(folder.path(), &["send", "--from", "<>", "--to", "you@far.test"], 0).await;
    let id: MessageId = id.trim().parse().unwrap();
    server.wait_for(id, |event| matches!(event, Event::Captured { .. })).await;
    let (_, captured) = get(folder.path(), &format!("/api/v1/captured/{id}")).await;
    assert_eq!(captured["envelope"]["from"], "");
    assert!(captured["from"][0]["address"].as_str().unwrap().starts_with("postmaster@"), "{captured}");
    server.stop().await;
}

/// Who asks for the dialogue with a host sees it, and nothing else that `log.level` leaves out.
#[tokio::test(flavor = "multi_thread")]
async fn a_dialogue_that_is_asked_for_is_logged_at_every_level() {
    let (folder, sink) = (tempfile::tempdir().unwrap(), Sink::start().await);
    let config = folder.path().join("postrider.toml");
    let text = format!(
        "hostname = \"mail.home.test\"\ndata_dir = \"{}\"\n[queue]\nmin_free = \"1MiB\"\n[listeners.submission]\n\
         role = \"submission\"\nbind = [\"127.0.0.1:0\"]\n[log]\nlevel = \"error\"\n[domains.\"home.test\"]\n\
         [delivery]\ndefault = \"smart_hosts\"\nallow_private_addresses = true\n[smart_hosts.relay]\n\
         host = \"127.0.0.1\"\nport = {}\ntls = \"off\"\ndebug = true\n",
        folder.path().display(),
        sink.address.port()
    );
    std::fs::write(&config, text).unwrap();
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_postrider"))
        .args(["serve", "--config"])
        .arg(&config)
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut err = tokio::io::BufReader::new(child.stderr.take().unwrap()).lines();
    // Nothing tells when it is ready, at this level.
    loop {
        let mut send = tokio::process::Command::new(env!("CARGO_BIN_EXE_postrider"));
        send.args(["send", "--from", "me@home.test", "--to", "you@far.test", "--config"]).arg(&config);
        if send.output().await.unwrap().status.success() {
            break;
        }
        assert_eq!(child.try_wait().unwrap(), None, "the server has ended");
    }
    let mut log = Vec::new();
    while !log.iter().any(|line: &String| line.contains("C: (the message)")) {
        log.push(err.next_line().await.unwrap().expect("the dialogue"));
    }
    for said in ["C: EHLO ", "S: 250", "C: MAIL FROM:<me@home.test>", "C: RCPT TO:<you@far.test>"] {
        assert!(log.iter().any(|line| line.contains(said)), "{said}: {log:#?}");
    }
    assert!(log.iter().all(|line| line.contains("C: ") || line.contains("S: ")), "{log:#?}");
    child.kill().await.unwrap();
}
