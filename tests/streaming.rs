//! Large messages through a whole server: they arrive byte for byte and with valid signatures, take a
//! few chunks of memory and no more, and leave nothing behind when they do not come to their end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod client;
    pub mod hook;
    pub mod records;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use postrider::cli::dns;
use postrider::clock::Clock;
use postrider::events::Event;
use postrider::intake::sign::Signer;
use postrider::message::Domain;
use postrider::message::header::Headers;
use postrider::queue::record::Streamed;
use postrider::queue::{CHUNK_BYTES_MAX, NewMessage, Queue, Step};
use postrider::store::{Batch, Store, Table};
use support::client::Client;
use support::hook::Hook;
use support::records::{START, message, open, recipient};
use support::server::{BOX, TestServer, outward, queued_id};
use support::sink::Sink;
use support::zone::{Zone, ZoneServer};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

const MIB: usize = 1 << 20;
/// Only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);

async fn start(folder: &Path, sink: Option<&Sink>, zone: &ZoneServer, memory: &str) -> TestServer {
    TestServer::start(folder, &conf(sink, zone, memory)).await
}

/// The base that this is put behind ends within `[queue]`.
fn conf(sink: Option<&Sink>, zone: &ZoneServer, memory: &str) -> String {
    let trusted = "[networks]\ntrusted = [\"127.0.0.0/8\"]\n";
    let outward = outward(sink.map_or(9, |sink| sink.address.port()), zone.addr());
    format!("\nmemory = \"{memory}\"\n{trusted}{BOX}{outward}")
}

fn far_zone() -> Zone {
    Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1")
}

/// CRLF lines of all kinds: long ones, blank ones, lines of blanks, lines that begin with dots.
fn body(bytes: usize) -> String {
    let mut body = String::with_capacity(bytes + 1000);
    let mut number = 0u64;
    while body.len() < bytes {
        number += 1;
        let noise = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        body.push_str(&match number % 13 {
            0 => "\r\n".to_owned(),
            1 => " \t \r\n".to_owned(),
            2 => format!(".{noise:x}\r\n"),
            3 => "..\r\n".to_owned(),
            4 => format!("{noise:x}  \t\r\n"),
            5 => format!("\t{number}   {noise:x}\r\n"),
            _ => format!("{number} {}\r\n", format!("{noise:016x}").repeat(30)),
        });
    }
    body.push_str(" \r\n\r\n");
    body
}

fn letter(from: &str, to: &str, body: &str) -> String {
    format!("From: <{from}>\r\nTo: <{to}>\r\nSubject: large\r\n\r\n{body}")
}

fn stuffed(content: &str) -> String {
    content.replace("\r\n.", "\r\n..")
}

/// Up to the point where the server waits for content.
async fn begin(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"EHLO c.test\r\nMAIL FROM:<me@home.test>\r\nRCPT TO:<you@far.test>\r\nDATA\r\n").await.unwrap();
    let mut heard = Vec::new();
    while !(String::from_utf8_lossy(&heard).contains("354 ") && heard.ends_with(b"\r\n")) {
        assert!(stream.read_buf(&mut heard).await.unwrap() > 0);
    }
    stream
}

fn count(store: &Store, table: Table) -> usize {
    store.prefix(table, b"").unwrap().filter(|entry| entry.is_ok()).count()
}

fn counts(store: &Store) -> [usize; 3] {
    [Table::Body, Table::Incoming, Table::Message].map(|table| count(store, table))
}

async fn until(what: &str, reached: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "gave up waiting until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn dkimpy_says(python: &std::ffi::OsStr, folder: &Path, content: &[u8], records: &str) -> Option<String> {
    let probe = Command::new(python).args(["-c", "import dkim, nacl.signing"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return None;
    }
    let (message, keys) = (folder.join("message.eml"), folder.join("records.json"));
    std::fs::write(&message, content).unwrap();
    std::fs::write(&keys, records).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/dkim_verify.py");
    let output = Command::new(python).arg(script).arg(message).arg(keys).output().unwrap();
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Out by SMTP, signed; and in again at another server, which verifies what passed in chunks.
#[tokio::test(flavor = "multi_thread")]
async fn thirty_mib_arrive_byte_exact_and_signed_in_a_few_chunks_of_memory() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sink = Sink::start().await;
    let zone = far_zone().serve().await;
    let server = start(folder.path(), Some(&sink), &zone, "512MiB").await;
    let content = letter("me@home.test", "you@far.test", &body(30 * MIB));
    let mut client = Client::connect(server.submission).await.unwrap();
    let reply = client.send("me@home.test", &["you@far.test"], &stuffed(&content)).await.unwrap();
    assert!(reply.starts_with("250 2.0.0"), "{reply}");
    let story = server.wait_done(queued_id(&reply)).await;
    assert!(story.entries.iter().any(|entry| matches!(&entry.event, Event::Delivered { .. })), "{story:#?}");
    let arrived = sink.taken().remove(0).content;
    assert!(arrived.ends_with(Headers::parse(content.as_bytes()).body()), "the body has changed on its way");
    assert_eq!(Headers::parse(&arrived).body().len(), Headers::parse(content.as_bytes()).body().len());
    let memory = server.app.operator().queue.memory().clone();
    let most = memory.most_used() as usize;
    println!("{} chunks of memory at most", most.div_ceil(CHUNK_BYTES_MAX));
    assert!(most <= 6 * CHUNK_BYTES_MAX, "{most} bytes");
    until("nothing is left", || counts(server.app.operator().queue.store()) == [0; 3]).await;
    until("the memory is given back", || memory.used() == 0).await;

    // The same keys once more, for those who verify.
    let text = format!(
        "hostname = \"mail.home.test\"\ndata_dir = {:?}\n[domains.\"home.test\"]\n",
        folder.path().to_str().unwrap()
    );
    let config = postrider::config::parse("test.toml", &text).unwrap();
    let (signer, own) = (Signer::load(&config).unwrap(), Domain::parse("home.test").unwrap());
    let records = dns::json_lines(&dns::records(&config, &signer, &own));
    let given = std::env::var_os("POSTRIDER_TEST_PYTHON");
    let python = given.clone().unwrap_or_else(|| "python3".into());
    match dkimpy_says(&python, folder.path(), &arrived, &records) {
        Some(said) => assert_eq!(said, "pass rsa-sha256 pr-rsa\npass ed25519-sha256 pr-ed\n"),
        None => assert!(given.is_none(), "POSTRIDER_TEST_PYTHON is set, but has no dkimpy and pynacl"),
    }
    let mut keys = far_zone();
    for (name, record) in signer.records(&own) {
        keys = keys.txt(&name, &record);
    }
    let keys = keys.serve().await;
    let there = start(other.path(), None, &keys, "512MiB").await;
    let mut client = Client::connect(there.mx).await.unwrap();
    let arrived = String::from_utf8(arrived).unwrap();
    let broken = arrived.replacen("\r\n..", "\r\n.x", 1);
    for (number, (content, result)) in [(&arrived, "dkim=pass"), (&broken, "dkim=fail")].into_iter().enumerate() {
        let reply = client.send("me@home.test", &["box@home.test"], &stuffed(content)).await.unwrap();
        assert!(reply.starts_with("250 2.0.0"), "{reply}");
        there.wait_done(queued_id(&reply)).await;
        let files: Vec<PathBuf> =
            std::fs::read_dir(other.path().join("box/new")).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), number + 1);
        let newest = files.iter().max_by_key(|file| file.metadata().unwrap().modified().unwrap()).unwrap();
        let file = std::fs::read_to_string(newest).unwrap();
        assert!(file.ends_with(&content.replace("\r\n", "\n")), "what is in the Maildir is not what was sent");
        assert_eq!(file.matches(result).count(), 2, "{}", &file[..2000]);
    }
    let most = there.app.operator().queue.memory().most_used() as usize;
    assert!(most <= 6 * CHUNK_BYTES_MAX, "{most} bytes");
    server.stop().await;
    there.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bdat_streams_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = (Sink::start().await, far_zone().serve().await);
    let server = start(folder.path(), Some(&sink), &zone, "64MiB").await;
    let content = letter("me@home.test", "you@far.test", &body(5 * MIB));
    let mut stream = BufReader::new(TcpStream::connect(server.submission).await.unwrap());
    let mut all = b"EHLO c.test\r\nMAIL FROM:<me@home.test>\r\nRCPT TO:<you@far.test>\r\n".to_vec();
    for piece in content.as_bytes().chunks(777_777) {
        all.extend(format!("BDAT {}\r\n", piece.len()).bytes());
        all.extend_from_slice(piece);
    }
    all.extend_from_slice(b"BDAT 0 LAST\r\n");
    stream.get_mut().write_all(&all).await.unwrap();
    let mut line = String::new();
    while !line.contains("queued as") {
        line.clear();
        assert!(stream.read_line(&mut line).await.unwrap() > 0);
        assert!(line.starts_with('2'), "{line}");
    }
    server.wait_done(queued_id(&line)).await;
    let arrived = sink.taken().remove(0).content;
    assert!(arrived.ends_with(Headers::parse(content.as_bytes()).body()));
    assert!(server.app.operator().queue.memory().most_used() as usize <= 6 * CHUNK_BYTES_MAX);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_given_up_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let zone = far_zone().serve().await;
    let server = start(folder.path(), None, &zone, "64MiB").await;
    let store = server.app.operator().queue.store().clone();
    let some = letter("me@home.test", "you@far.test", &body(2 * MIB));
    // The client goes away in the middle.
    let mut stream = begin(server.submission).await;
    stream.write_all(stuffed(&some).as_bytes()).await.unwrap();
    until("chunks are written", || counts(&store)[0] > 2).await;
    assert_eq!(counts(&store)[1..], [1, 0]);
    drop(stream);
    until("they are gone", || counts(&store) == [0; 3]).await;
    // It is too large, or has a flaw, or is refused for its recipients or header.
    for (end, code) in [("bare\nend\r\n.\r\n", "550"), ("\0\r\n.\r\n", "550"), (".\r\n", "250")] {
        let mut stream = begin(server.submission).await;
        stream.write_all(stuffed(&some).as_bytes()).await.unwrap();
        until("chunks are written", || counts(&store)[0] > 2).await;
        stream.write_all(end.as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(b"\r\n") {
            assert!(stream.read_buf(&mut heard).await.unwrap() > 0);
        }
        let heard = String::from_utf8_lossy(&heard).into_owned();
        if code == "250" {
            assert!(heard.starts_with("250"), "{heard}");
            assert_eq!(counts(&store)[1..], [0, 1], "it is queued, and no marker is left");
        } else {
            assert!(heard.starts_with('5'), "{heard}");
            until("they are gone", || counts(&store) == [0; 3]).await;
        }
    }
    until("the memory is given back", || server.app.operator().queue.memory().used() == 0).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_of_data_leaves_nothing_after_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let conf = folder.path().join("postrider.toml");
    let text = format!(
        "hostname = \"mail.home.test\"\ndata_dir = \"{0}\"\n[listeners.submission]\nrole = \"submission\"\n\
         bind = [\"127.0.0.1:0\"]\n[networks]\ntrusted = [\"127.0.0.0/8\"]\n[domains.\"home.test\"]\n\
         [queue]\nmin_free = \"1MiB\"\n[limits]\nmax_size = \"64MiB\"\n",
        folder.path().join("data").display()
    );
    std::fs::write(&conf, text).unwrap();
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_postrider"))
        .args(["serve", "--config"])
        .arg(&conf)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let address: SocketAddr = loop {
        let line = log.next_line().await.unwrap().expect("the server ended before it listened");
        if let Some(address) = line.split("address=").nth(1).filter(|_| line.contains("listening")) {
            break address.split_whitespace().next().unwrap().parse().unwrap();
        }
    };
    tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
    let mut stream = begin(address).await;
    // More than fits into the sockets' buffers, so that most of it has been read and written when this
    // is sent.
    let content = stuffed(&letter("me@home.test", "you@far.test", &body(40 * MIB)));
    tokio::time::timeout(PATIENCE, stream.write_all(content.as_bytes())).await.unwrap().unwrap();
    child.start_kill().unwrap();
    child.wait().await.unwrap();

    let store = Arc::new(Store::open(&folder.path().join("data/store")).unwrap());
    let [chunks, markers, messages] = counts(&store);
    assert!(chunks > 10, "{chunks} chunks were written before the kill");
    assert_eq!((markers, messages), (1, 0));
    let (queue, _fresh) = Queue::new(store, Clock::System, true, 1 << 20).unwrap();
    assert_eq!(counts(queue.store()), [0; 3]);
    assert!(queue.claim_due().unwrap().claimed.is_empty());
}

/// Sessions hold all that they can have: what is queued is delivered, read back chunk by chunk, and a
/// new large message needs no more than a session has.
#[tokio::test(flavor = "multi_thread")]
async fn deliveries_go_on_while_sessions_hold_the_whole_budget() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = (Sink::start().await, far_zone().serve().await);
    let server = start(folder.path(), Some(&sink), &zone, "40MiB").await;
    let memory = server.app.operator().queue.memory().clone();
    let mut client = Client::connect(server.submission).await.unwrap();
    // Half a MiB is left for the session, which is less than the beginning and a chunk; nothing of it is
    // kept for the first attempt.
    let held = memory.take(memory.common_steps() - 128).await.unwrap();
    let mut contents = Vec::new();
    for bytes in [1_000, 300_000, 4 * MIB] {
        contents.push(letter("me@home.test", "you@far.test", &body(bytes)));
    }
    for (number, content) in contents.iter().enumerate() {
        let rest = client.send("me@home.test", &["you@far.test"], &stuffed(content)).await.unwrap();
        assert!(rest.starts_with("250"), "{rest}");
        let more = memory.try_take(memory.common_steps() / 2);
        assert!(more.is_none());
        server.wait_done(queued_id(&rest)).await;
        assert!(sink.taken()[number].content.ends_with(Headers::parse(content.as_bytes()).body()));
    }
    // Others hold all there is: nothing new is taken, until they give it back.
    let rest = memory.take(128).await.unwrap();
    let waiting = tokio::spawn(async move {
        let content = letter("me@home.test", "you@far.test", "x\r\n");
        client.send("me@home.test", &["you@far.test"], &content).await.unwrap()
    });
    drop((held, rest));
    let reply = waiting.await.unwrap();
    assert!(reply.starts_with("250"), "{reply}");
    server.wait_done(queued_id(&reply)).await;
    until("the memory is given back", || memory.used() == 0).await;
    server.stop().await;
}

/// Fresh, and read back: the whole message to a webhook, and its header in the notice to the sender.
#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_gets_it_whole_and_the_sender_of_a_refused_one_hears_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone, hook) = (Sink::start().await, far_zone().serve().await, Hook::start().await);
    let more = conf(Some(&sink), &zone, "40MiB").replace(
        "[targets.box]",
        &format!(
            "\"hook@home.test\" = \"hook\"\n[targets.hook]\nkind = \"webhook\"\nurl = \"{}\"\n[targets.box]",
            hook.url
        ),
    );
    let server = TestServer::start(folder.path(), &more).await;
    let memory = server.app.operator().queue.memory().clone();
    let mut client = Client::connect(server.submission).await.unwrap();
    let content = letter("box@home.test", "refused@far.test", &body(700 * 1024));
    for round in 0..2 {
        let recipients = ["hook@home.test", "refused@far.test"];
        let reply = client.send("box@home.test", &recipients, &stuffed(&content)).await.unwrap();
        let story = server.wait_done(queued_id(&reply)).await;
        assert!(story.entries.iter().any(|entry| matches!(entry.event, Event::NoticeSent { .. })), "{story:#?}");
        let event = hook.received().remove(round);
        let text = event["data"]["text"].as_str().unwrap_or_else(|| panic!("{}", event["data"]["raw"]));
        let (text, sent) = (text.replace("\r\n", "\n"), body(700 * 1024).replace("\r\n", "\n"));
        assert_eq!(text.trim_end(), sent.trim_end(), "round {round}");
        let boxed = || std::fs::read_dir(folder.path().join("box/new")).map_or(0, Iterator::count);
        until("the notice is there", || boxed() == round + 1).await;
        // In the second round nothing is kept in memory for the first attempt.
        if round == 0 {
            std::mem::forget(memory.take(memory.common_steps() - 256).await.unwrap());
        }
    }
    for file in std::fs::read_dir(folder.path().join("box/new")).unwrap() {
        let notice = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(notice.contains("Action: failed") && notice.contains("Subject: large"), "{notice}");
    }
    server.stop().await;
}

/// The store fails under the group before, while the end of a message waits for its turn: its chunks may be lost
/// with that, so there must be no 250 for it.
#[tokio::test]
async fn a_message_whose_turn_comes_after_the_store_was_opened_again_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&folder.path().join("store")).unwrap());
    let opened = Queue::by_hand(store.clone(), Clock::manual(START), 1 << 20, &BTreeMap::new());
    let (queue, mut fresh, mut hand) = opened.unwrap();
    for reopens in [true, false] {
        let head = Bytes::from_static(b"Subject: x\r\n\r\nbegin");
        let mut writer = queue.begin_body(&head);
        let (pushed, ()) = tokio::join!(writer.push(Bytes::from_static(b" end\r\n")), async {
            hand.write(1).unwrap().give();
        });
        pushed.unwrap();
        let rest = writer.finish();
        let mut new = message(rest.id, std::slice::from_ref(&head), 1);
        new.streamed = Some(Streamed { chunks: rest.chunks, ascii: rest.is_ascii });
        new.size += rest.bytes;
        let recipients = vec![recipient("a@b.example", START)];
        let new = NewMessage { message: new, body: vec![head], recipients, extra: Batch::new() };
        let (whole, ()) = tokio::join!(queue.enqueue(new), async {
            assert_eq!(hand.waiting(), 1, "it waits for its turn");
            if reopens {
                store.reopen().unwrap();
            }
            hand.write(1).unwrap().give();
        });
        assert_eq!(whole.is_err(), reopens);
        assert_eq!(queue.message(rest.id).unwrap().is_none(), reopens, "no ghost of it either");
        assert_eq!(fresh.try_recv().is_err(), reopens);
        drop(rest);
        // What deletes the chunks of the first one.
        tokio::task::yield_now().await;
        hand.write(1).unwrap().give();
    }
}

/// Chunks that were written before the store failed may be lost with that, acknowledged or not.
#[tokio::test]
async fn a_message_is_not_committed_over_a_store_that_was_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START);
    let (queue, mut fresh) = open(folder.path(), &clock);
    for reopens in [false, true] {
        let head = Bytes::from_static(b"Subject: x\r\n\r\nbegin");
        let mut writer = queue.begin_body(&head);
        for chunk in [&b" middle"[..], b" end\r\n"] {
            writer.push(Bytes::from_static(chunk)).await.unwrap();
        }
        let rest = writer.finish();
        assert_eq!(counts(queue.store()), [2, 1, 0]);
        if reopens {
            queue.store().reopen().unwrap();
        }
        let mut new = message(rest.id, std::slice::from_ref(&head), 1);
        new.streamed = Some(Streamed { chunks: rest.chunks, ascii: rest.is_ascii });
        new.size += rest.bytes;
        let recipients = vec![recipient("a@b.example", START)];
        let whole = queue.enqueue(NewMessage { message: new, body: vec![head], recipients, extra: Batch::new() }).await;
        drop(rest);
        assert_eq!(whole.is_err(), reopens);
        if reopens {
            until("the chunks are gone", || counts(queue.store()) == [0; 3]).await;
            continue;
        }
        let claimed = fresh.try_recv().unwrap();
        assert_eq!(queue.body(&claimed.message).unwrap().concat(), b"Subject: x\r\n\r\nbegin middle end\r\n");
        assert_eq!(counts(queue.store()), [3, 0, 1]);
        let step = Step { number: 0, before: claimed.recipients[0].1.clone(), after: None };
        let batch = queue.step_batch(&claimed.message, &[step], &[]).unwrap();
        queue.commit(batch, true).await.unwrap();
        assert_eq!(counts(queue.store()), [0; 3], "all of it goes with the last recipient");
    }
}
