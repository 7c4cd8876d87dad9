//! What becomes of messages in a whole server that asks milters.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use postrider::events::Event;
use tokio::net::TcpListener;

use crate::client::Client;
use crate::fake_milter::{FakeMilter, add, change, go_on, insert, packet, quarantine, reply};
use crate::server::{TestServer, queued_id};

const MESSAGE: &str = "From: <me@away.test>\r\nSubject: hello\r\nAuthentication-Results: mail.home.test; dkim=pass\r\n\
                       \r\ntext\r\n";
const CONF: &str = r#"
[accounts.shop]
password = "correct horse"
[networks]
trusted = ["127.0.0.0/8"]
[domains."home.test"]
[aliases]
"box@home.test" = "box"
"other@home.test" = "box"
[targets.box]
kind = "maildir"
path = "DATA_DIR/box"
[delivery]
default = "capture"
[checks]
spf = "off"
dmarc = "off"
dkim = "annotate"
milters = [MILTERS]
"#;

async fn start(folder: &Path, milters: &[String]) -> TestServer {
    let milters: Vec<String> = milters.iter().map(|milter| format!("\"{milter}\"")).collect();
    TestServer::start(folder, &CONF.replace("MILTERS", &milters.join(", "))).await
}

fn inet(address: SocketAddr) -> String {
    format!("inet:127.0.0.1:{}", address.port())
}

async fn send(server: &TestServer, to: &[&str], content: &str) -> String {
    let mut client = Client::connect(server.mx).await.unwrap();
    client.send("me@away.test", to, content).await.unwrap()
}

/// The only message in the Maildir.
fn delivered(server: &TestServer) -> String {
    let entries = std::fs::read_dir(server.data_dir.join("box/new")).unwrap();
    let files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    std::fs::read_to_string(&files[0]).unwrap()
}

/// Its lines without those that every delivery has.
fn without_trace(message: &str) -> String {
    let (_, rest) = message.split_once("Received:").unwrap();
    let own_lines = 1 + rest.lines().skip(1).take_while(|line| line.starts_with([' ', '\t'])).count();
    rest.lines().skip(own_lines).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn changes_are_stored_and_seen_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let changes = [insert(0, "X-Top", "1"), change(1, "Subject", "[odd] hello"), add("X-Last", "a\n b"), go_on()];
    let first = FakeMilter::at(b'E', changes.concat());
    let second = FakeMilter::at(b'E', [change(1, "X-Top", ""), go_on()].concat());
    let socket = folder.path().join("milter.sock");
    second.listen_at(&socket);
    let milters = [inet(first.listen().await), format!("unix:{}", socket.display())];
    let server = start(&folder.path().join("data"), &milters).await;
    let id = queued_id(&send(&server, &["box@home.test"], MESSAGE).await);
    server.wait_done(id).await;
    let results = "Authentication-Results:mail.home.test;\n\tdkim=none";
    assert_eq!(first.fields(), [results, "From:<me@away.test>", "Subject:hello"]);
    assert_eq!(second.fields(), ["X-Top:1", results, "From:<me@away.test>", "Subject:[odd] hello", "X-Last:a\n b"]);
    assert_eq!(first.body(), b"text\r\n");
    let macros = first.macros();
    for (name, value) in [("j", "mail.home.test"), ("{daemon_name}", "mx"), ("i", &id.to_string())] {
        assert!(macros.contains(&(name.to_owned(), value.to_owned())), "{macros:?}");
    }
    assert_eq!(
        without_trace(&delivered(&server)),
        "Authentication-Results: mail.home.test;\n\tdkim=none\nFrom: <me@away.test>\nSubject: [odd] hello\n\
         X-Last: a\n b\n\ntext"
    );
    server.stop().await;
}

#[tokio::test]
async fn without_changes_the_message_is_stored_as_ever() {
    let folder = tempfile::tempdir().unwrap();
    let milter = FakeMilter::mild();
    let server = start(folder.path(), &[inet(milter.listen().await)]).await;
    let id = queued_id(&send(&server, &["box@home.test"], MESSAGE).await);
    server.wait_done(id).await;
    assert_eq!(
        without_trace(&delivered(&server)),
        "Authentication-Results: mail.home.test;\n\tdkim=none\nFrom: <me@away.test>\nSubject: hello\n\ntext"
    );
    assert_eq!(milter.commands(), "OCHMRTLLLNBEQ");
    server.stop().await;
}

#[tokio::test]
async fn a_refusal_reaches_the_client_and_nothing_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    for (packets, wanted) in [
        (packet(b'r', b""), "550 5.7.1 this message was refused\r\n"),
        (packet(b't', b""), "451 4.7.1 service unavailable, try again later\r\n"),
        (reply("554-5.7.3 two\r\n554 5.7.3 lines"), "554-5.7.3 two\r\n554 5.7.3 lines\r\n"),
        (reply("250 2.0.0 ok"), "451 4.7.1 service unavailable, try again later\r\n"),
        (packet(b'?', b""), "451 4.7.1 service unavailable, try again later\r\n"),
    ] {
        let refusing = FakeMilter::at(b'E', packets);
        let later = FakeMilter::mild();
        let milters = [inet(refusing.listen().await), inet(later.listen().await)];
        let server = start(folder.path(), &milters).await;
        assert_eq!(send(&server, &["box@home.test"], MESSAGE).await, wanted);
        assert_eq!(later.commands(), "");
        assert!(server.queue().await.is_empty());
        server.stop().await;
    }
}

#[tokio::test]
async fn a_refused_recipient_is_named_and_the_message_refused_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let milter = FakeMilter::new(|heard| {
        let refused = heard.byte == b'R' && heard.before == 1;
        refused.then(|| crate::fake_milter::Act::Say(reply("550 5.1.1 not here")))
    });
    let server = start(folder.path(), &[inet(milter.listen().await)]).await;
    let said = send(&server, &["box@home.test", "other@home.test"], MESSAGE).await;
    assert_eq!(said, "550 5.1.1 <other@home.test>: not here\r\n");
    assert!(server.queue().await.is_empty());
    server.stop().await;
}

#[tokio::test]
async fn one_that_is_not_there_is_no_pass() {
    let folder = tempfile::tempdir().unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for milter in [inet(gone), format!("unix:{}", folder.path().join("none.sock").display())] {
        let server = start(folder.path(), &[milter]).await;
        let said = send(&server, &["box@home.test"], MESSAGE).await;
        assert_eq!(said, "451 4.7.1 service unavailable, try again later\r\n");
        assert!(server.queue().await.is_empty());
        server.stop().await;
    }
}

#[tokio::test]
async fn quarantined_mail_is_held_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let milter = FakeMilter::at(b'E', [quarantine("smells of phish"), go_on()].concat());
    let address = inet(milter.listen().await);
    let server = start(folder.path(), std::slice::from_ref(&address)).await;
    let id = queued_id(&send(&server, &["box@home.test", "other@home.test"], MESSAGE).await);
    let reason = format!("milter {address} wants it held: smells of phish");
    let story = server.story(id).await.unwrap();
    let held = |event: &Event| matches!(event, Event::Held { reason: told, .. } if *told == reason);
    assert!(story.entries.iter().any(|entry| held(&entry.event)), "{story:#?}");
    let listed = server.queue().await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].recipients[0].held_because.as_deref(), Some(reason.as_str()));
    server.stop().await;
}

#[tokio::test]
async fn discarded_mail_is_taken_and_told_of_in_its_story() {
    let folder = tempfile::tempdir().unwrap();
    let milter = FakeMilter::at(b'B', packet(b'd', b""));
    let address = inet(milter.listen().await);
    let server = start(folder.path(), std::slice::from_ref(&address)).await;
    let id = queued_id(&send(&server, &["box@home.test", "other@home.test"], MESSAGE).await);
    let story = server.story(id).await.unwrap();
    let discarded: Vec<_> = story
        .entries
        .iter()
        .filter_map(|entry| match &entry.event {
            Event::Discarded { recipient, reason } => Some((recipient.to_string(), reason.clone())),
            _ => None,
        })
        .collect();
    let reason = format!("milter {address} says discard");
    assert_eq!(discarded, [("box@home.test".to_owned(), reason.clone()), ("other@home.test".to_owned(), reason)]);
    assert!(server.queue().await.is_empty());
    server.stop().await;
}

#[tokio::test]
async fn what_our_own_senders_submit_is_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let milter = FakeMilter::at(b'C', packet(b'r', b""));
    let server = start(folder.path(), &[inet(milter.listen().await)]).await;
    let mut client = Client::connect(server.submission).await.unwrap();
    let content = "From: <shop@home.test>\r\n\r\ntext\r\n";
    let said = client.send("shop@home.test", &["you@far.test"], content).await.unwrap();
    assert!(said.starts_with("250 "), "{said}");
    assert_eq!(milter.commands(), "");
    server.stop().await;
}

/// Most of it is in the store by the time the milter is asked.
#[tokio::test]
async fn a_large_message_is_shown_whole() {
    let folder = tempfile::tempdir().unwrap();
    let milter = FakeMilter::at(b'E', [add("X-Seen", "yes"), go_on()].concat()).wants(0x8_0000);
    let server = start(folder.path(), &[inet(milter.listen().await)]).await;
    let body: String = (0..120_000).map(|number| format!("line {number} of a large message\r\n")).collect();
    let id = queued_id(&send(&server, &["box@home.test"], &format!("From: <me@away.test>\r\n\r\n{body}")).await);
    tokio::time::timeout(Duration::from_secs(60), server.wait_done(id)).await.unwrap();
    assert_eq!(milter.body(), body.as_bytes());
    let message = delivered(&server);
    let (header, stored) = message.split_once("\n\n").unwrap();
    assert!(header.ends_with("X-Seen: yes"), "{header}");
    assert_eq!(stored, body.replace("\r\n", "\n"));
    server.stop().await;
}
