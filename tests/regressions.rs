//! Defects that an attack or a fault found, one test each, named for what went wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod client;
    pub mod records;
    pub mod server;
}

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use postrider::admin::{
    Action, AdminSocket, Backend, Changed, Filter, Listed, Page, Selection, ServerStatus, Story, Trouble,
};
use postrider::clock::{Clock, Millis};
use postrider::intake::Once;
use postrider::intake::idempotency::Key;
use postrider::message::{Draft, MessageId};
use postrider::queue::claim::{CLAIMS_MAX, Look};
use postrider::queue::lane::PARTS;
use postrider::queue::record::Message;
use postrider::queue::{Claimed, NewMessage, Queue, Walked};
use postrider::smtp::reply::Refusal;
use postrider::store::{Batch, Store, Table};
use support::client::Client;
use support::records::{START, message, open, recipient};
use support::server::TestServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Queues a message that is due at `due`.
async fn enqueue(queue: &Queue, due: u64) -> MessageId {
    enqueue_for(queue, due, "you@far.test").await
}

async fn enqueue_for(queue: &Queue, due: u64, address: &str) -> MessageId {
    let id = queue.new_id();
    let body = vec![Bytes::from_static(b"\r\nx\r\n")];
    let (message, recipient) = (message(id, &body, 1), recipient(address, due));
    queue.enqueue(NewMessage { message, body, recipients: vec![recipient], extra: Batch::new() }).await.unwrap();
    id
}

fn put(queue: &Queue, table: Table, key: &[u8], value: &'static [u8]) {
    let mut batch = Batch::new();
    batch.put(table, key, value);
    queue.store().write(&[batch], true).unwrap();
}

/// A scan of the due index that failed half-way kept the claims it had made: what it had seen was not
/// tried again before a restart. And one stray entry stopped all scans.
#[tokio::test]
async fn a_stray_entry_stops_no_scan() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START);
    let (queue, _fresh) = open(folder.path(), &clock);
    enqueue(&queue, START + 1).await;
    // Not keys of this table: too short, for every lane and part.
    for lane in 1..=6 {
        for part in 0..PARTS as u8 {
            put(&queue, Table::Due, &[lane, part, 0], b"");
        }
    }
    clock.advance(10);
    assert_eq!(queue.claim_due().unwrap().claimed.len(), 1);
}

/// A damaged recipient was passed over without a word and looked at again in each scan, and a damaged
/// message hid all others from the list.
#[tokio::test]
async fn a_damaged_record_is_set_aside_and_hides_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START);
    let (queue, _fresh) = open(folder.path(), &clock);
    let damaged = enqueue(&queue, START + 1).await;
    let good = enqueue(&queue, START + 2).await;
    let key = [damaged.to_key().as_slice(), &[0; 4]].concat();
    put(&queue, Table::Recipient, &key, b"\xc1 is no MessagePack");
    clock.advance(10);
    let ids = |claimed: Vec<Claimed>| claimed.iter().map(|claimed| claimed.message.id).collect::<Vec<_>>();
    assert_eq!(ids(queue.claim_due().unwrap().claimed), [good]);
    let (listed, count) = queue.damaged();
    assert_eq!((listed.len(), count), (1, 1));
    assert_eq!((listed[0].id, listed[0].number, listed[0].since), (damaged, 0, START + 10));
    assert!(listed[0].what.contains("cannot be read"), "{listed:?}");
    assert_eq!(queue.claims().held(), 1, "only the good one is claimed");
    assert!(queue.claim_due().unwrap().claimed.is_empty());

    let mut listed = Vec::new();
    let show = |message: Message, _| {
        listed.push(message.id);
        ControlFlow::Continue(())
    };
    queue.walk(None, show).unwrap();
    assert_eq!(listed, [good]);
    let mut all = Vec::new();
    let show = |walked| {
        match walked {
            Walked::Message(message, recipients) => all.push((message.id, recipients.len())),
            Walked::Damaged { id, .. } => all.push((id, 0)),
        }
        ControlFlow::Continue(())
    };
    queue.walk_all(None, show).unwrap();
    assert_eq!(all, [(damaged, 0), (good, 1)]);
}

/// A backend whose submission waits for leave.
struct Slow {
    begun: Semaphore,
    leave: Semaphore,
    ended: Semaphore,
}

impl Backend for Slow {
    async fn list(&self, _: Filter, _: Page) -> Result<Vec<Listed>, Trouble> {
        Ok(Vec::new())
    }

    async fn story(&self, _: MessageId) -> Result<Option<Story>, Trouble> {
        Ok(None)
    }

    async fn change(&self, _: Action, _: Selection) -> Result<Changed, Trouble> {
        Ok(Changed::default())
    }

    fn now(&self) -> Millis {
        START
    }

    async fn submit(&self, _: Draft, _: Option<Key>) -> Result<Once, Refusal> {
        self.begun.add_permits(1);
        self.leave.acquire().await.unwrap().forget();
        self.ended.add_permits(1);
        Ok(Once { id: MessageId::from_u64(1), is_repeated: false })
    }

    async fn status(&self) -> ServerStatus {
        ServerStatus { version: String::new(), hostname: String::new(), started_at: START, listeners: Vec::new() }
    }
}

/// Whoever left while a message was being committed over the admin socket left it claimed by nobody:
/// on disk, and not tried before a restart.
#[tokio::test]
async fn a_submission_goes_on_when_its_client_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let socket = AdminSocket::bind(folder.path()).unwrap();
    let path = socket.path().to_owned();
    let closed = || Semaphore::new(0);
    let backend = Arc::new(Slow { begun: closed(), leave: closed(), ended: closed() });
    let stop = CancellationToken::new();
    let serving = tokio::spawn(socket.serve(backend.clone(), 10_000, stop.clone()));

    let mut client = tokio::net::UnixStream::connect(&path).await.unwrap();
    let content = "Subject: x\r\n\r\nx\r\n";
    let request = format!(
        "POST /api/v1/messages?from=a@home.test&to=b@far.test HTTP/1.1\r\nHost: x\r\n\
         Content-Type: message/rfc822\r\nContent-Length: {}\r\n\r\n{content}",
        content.len()
    );
    client.write_all(request.as_bytes()).await.unwrap();
    backend.begun.acquire().await.unwrap().forget();
    drop(client);
    // The connection's end has been seen when nothing of it is served any more.
    stop.cancel();
    serving.await.unwrap().unwrap();
    backend.leave.add_permits(1);
    let ended = tokio::time::timeout(std::time::Duration::from_secs(20), backend.ended.acquire()).await;
    ended.expect("the submission was broken off").unwrap().forget();
}

const ONE_ACCOUNT: &str = r#"
[domains."home.test"]
[accounts.shop]
password = "correct horse"
senders = ["shop@home.test"]
[delivery]
default = "capture"
"#;

/// From was held against the rights of an account; Sender and the Resent fields were not, and a From
/// that is an empty group (a name, and nobody behind it) passed.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_names_nobody_else_in_any_field() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path(), ONE_ACCOUNT).await;
    let mut client = Client::connect(server.submission).await.unwrap();
    client.command("AUTH PLAIN AHNob3AAY29ycmVjdCBob3JzZQ==", "235").await.unwrap();
    for (fields, code) in [
        ("From: shop@home.test\r\nSender: Shop <shop@home.test>\r\n", "250"),
        ("Sender: shop@home.test\r\n", "250"),
        ("From: \"ceo@victim.test\":;\r\n", "550 5.6.0"),
        ("From: shop@home.test\r\nSender: boss@home.test\r\n", "553 5.7.1"),
        ("From: shop@home.test\r\nSender: shop@home.test\r\nSENDER : boss@home.test\r\n", "553 5.7.1"),
        ("Sender: boss@home.test\r\n", "553 5.7.1"),
        ("From: shop@home.test\r\nSender: shop@home.test <boss@home.test>\r\n", "550 5.6.0"),
        ("From: shop@home.test\r\nResent-From: boss@home.test\r\n", "553 5.7.1"),
        ("From: shop@home.test\r\nResent-Sender:\r\n boss@victim.test\r\n", "553 5.7.1"),
    ] {
        let content = format!("{fields}Subject: x\r\n\r\nx\r\n");
        let reply = client.send("shop@home.test", &["you@far.test"], &content).await.unwrap();
        assert!(reply.starts_with(code), "{fields:?}: {reply}");
    }
    server.stop().await;
}

/// A message with a NUL was taken over the admin socket, and could not be sent by any later step.
#[tokio::test(flavor = "multi_thread")]
async fn the_admin_socket_takes_no_nul() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path(), ONE_ACCOUNT).await;
    for (content, status) in [("Subject: x\n\nx\0y\n", "422"), ("Subject: x\n\nx\ry\n", "202")] {
        let mut client = tokio::net::UnixStream::connect(folder.path().join("admin.sock")).await.unwrap();
        let request = format!(
            "POST /api/v1/messages?from=a@home.test&to=b@far.test HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Type: message/rfc822\r\nContent-Length: {}\r\n\r\n{content}",
            content.len()
        );
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{content:?}: {answer}");
    }
    server.stop().await;
}

/// A destination that was slow and had more messages queued than there are claims held all of them, and
/// nothing else was tried.
#[tokio::test]
async fn a_long_queue_for_one_place_hides_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START);
    let store = Arc::new(Store::open(folder.path()).unwrap());
    let (queue, mut fresh) = Queue::new(store, clock.clone(), false, 1 << 20).unwrap();
    for _ in 0..5000 {
        enqueue_for(&queue, START, "you@slow.test").await;
    }
    let good = enqueue_for(&queue, START, "you@good.test").await;
    let mut handed_over = Vec::new();
    while let Ok(claimed) = fresh.try_recv() {
        handed_over.push(claimed.message.id);
    }
    assert!((100..CLAIMS_MAX / 8).contains(&handed_over.len()), "one place's share: {}", handed_over.len());
    assert_eq!(handed_over.last(), Some(&good));

    // The same when all comes from the index.
    drop((queue, fresh));
    let store = Arc::new(Store::open(folder.path()).unwrap());
    let (queue, _fresh) = Queue::new(store, clock, false, 1 << 20).unwrap();
    let mut claimed = Vec::new();
    while queue.claims().look(START) == Look::Now {
        let scan = queue.claim_due().unwrap();
        assert!(scan.more);
        claimed.extend(scan.claimed.into_iter().map(|claimed| claimed.message.id));
    }
    assert!(claimed.contains(&good) && claimed.len() < CLAIMS_MAX / 8, "{}", claimed.len());
}

/// The text that a far end chose, in a reply or as a name in its certificate, could turn the writing direction in a
/// log, or put a NUL into the record and into the notice.
#[test]
fn what_a_far_end_says_steers_no_log() {
    let reply = postrider::smtp::Reply::new(550, (1, 1), "no \u{1b}[2J \u{202e}abc\u{2028}x");
    assert_eq!(reply.text, "no ?[2J ?abc?x");
    let why = postrider::queue::record::Failure::local("4.7.5", "mx", "only for \"mx.test\0.evil\u{2066}\"\r\n");
    assert_eq!(why.reason, "only for \"mx.test?.evil?\"??");
}

/// Six megabytes of control characters made a webhook's JSON six times as large; and what a message looks like to the loop
/// guard was read by a parser that goes down into whatever it is given.
#[test]
fn control_characters_are_no_text_and_nested_messages_are_not_opened() {
    let content = b"Content-Type: text/plain\r\n\r\na\x01\x1b[2Jb\tc\r\nd\x7f\0\r\n";
    let read = postrider::message::mime::read(content).unwrap();
    assert_eq!(read.text.as_deref(), Some("a[2Jb\tc\nd\n"));
    let nested = "Content-Type: message/rfc822\r\n\r\n".repeat(60_000);
    let content = format!("From: a@b.test\r\nSubject: x\r\n{nested}");
    let headers = postrider::message::header::Headers::parse(content.as_bytes());
    assert!(headers.body().len() > 1 << 20);
    let to = postrider::message::Address::parse("x@home.test").unwrap();
    let seen = || postrider::routing::sender::fingerprint(&headers, content.as_bytes(), "a@b.test", &to);
    assert_eq!(seen(), seen());
}
