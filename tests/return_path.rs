//! Where bounces and answers come back to: the envelope sender that mail leaves with, mail for it, and the
//! Reply-To of rewritten mail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use std::path::Path;

use postrider::message::header::Headers;
use support::client::Client;
use support::server::{TestServer, queued_id};
use support::sink::{Sink, Taken};
use support::zone::{Zone, ZoneServer};

async fn far() -> (Sink, ZoneServer) {
    let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1");
    (Sink::start().await, zone.null_mx("nomail.test").serve().await)
}

/// Sends to the MX of `far.test`; `home.test` and `shop.test` are ours. `sender`: what stands there.
fn conf(sink: &Sink, zone: &ZoneServer, sender: &str) -> String {
    format!(
        r#"
[networks]
trusted = ["127.0.0.0/8"]
[domains."home.test"]
[domains."shop.test"]
bounce = "returns"
catchall = "answers"
[aliases]
"postmaster@home.test" = "box"
"postmaster@shop.test" = "box"
[targets.box]
kind = "maildir"
path = "DATA_DIR/box"
[targets.answers]
kind = "maildir"
path = "DATA_DIR/answers"
[delivery]
mx_port = {}
allow_private_addresses = true
[dns]
nameservers = ["{}"]
[sender]
{sender}
"#,
        sink.address.port(),
        zone.addr()
    )
}

fn letter(from: &str, more: &str) -> String {
    format!("From: {from}\r\nTo: <you@far.test>\r\n{more}Subject: x\r\n\r\nhello\r\n")
}

fn maildir(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path.join("new")).into_iter().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
}

fn fields(taken: &Taken, name: &str) -> Vec<String> {
    let headers = Headers::parse(&taken.content);
    headers.all(name).map(|field| String::from_utf8_lossy(field.value).trim().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_leaves_with_the_bounce_address_of_its_from() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let sender = "return_path = \"bounce\"\ndefault_from = \"news@home.test\"";
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, sender)).await;
    let mut client = Client::connect(server.submission).await.unwrap();
    for (number, (mail_from, from, leaves_with)) in [
        ("app@home.test", "me@home.test", "bounce@home.test"),
        ("app@home.test", "me@shop.test", "returns@shop.test"),
        ("app@other.test", "me@other.test", "bounce@home.test"),
        ("", "me@home.test", ""),
    ]
    .into_iter()
    .enumerate()
    {
        let reply = client.send(mail_from, &["you@far.test"], &letter(from, "")).await.unwrap();
        server.wait_done(queued_id(&reply)).await;
        let taken = &sink.taken()[number];
        assert_eq!(taken.mail_from, leaves_with, "{mail_from} {from}");
        assert_eq!(fields(taken, "From"), [from]);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_we_report_goes_to_the_sender_that_the_client_gave() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, "return_path = \"bounce\"")).await;
    let mut client = Client::connect(server.submission).await.unwrap();
    let content = letter("me@home.test", "");
    let reply = client.send("app@far.test", &["you@far.test", "refused@far.test"], &content).await.unwrap();
    server.wait_done(queued_id(&reply)).await;
    let reply = client.send("app@far.test", &["you@nomail.test"], &content).await.unwrap();
    server.wait_done(queued_id(&reply)).await;
    sink.wait_for(3).await;
    server.stop().await;
    let (sent, notices): (Vec<Taken>, Vec<Taken>) =
        sink.taken().into_iter().partition(|taken| taken.recipients == ["you@far.test"]);
    assert_eq!((sent[0].mail_from.as_str(), sent.len(), notices.len()), ("bounce@home.test", 1, 2));
    for notice in notices {
        assert_eq!(
            (notice.mail_from.as_str(), notice.recipients.as_slice()),
            ("", ["app@far.test".to_owned()].as_slice())
        );
        assert!(String::from_utf8_lossy(&notice.content).contains("Action: failed"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bounces_are_taken_from_everybody_and_go_to_the_postmaster() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, "return_path = \"bounce\"")).await;
    let mut outside = Client::connect(server.mx).await.unwrap();
    let content = letter("MAILER-DAEMON@far.test", "");
    for (mail_from, recipient) in [
        ("", "bounce@home.test"),
        ("daemon@far.test", "Bounce@home.test"),
        ("", "bounce+token@home.test"),
        ("", "returns@shop.test"),
    ] {
        let reply = outside.send(mail_from, &[recipient], &content).await.unwrap();
        assert!(reply.starts_with("250 2.0.0"), "{recipient}: {reply}");
        server.wait_done(queued_id(&reply)).await;
    }
    outside.command("MAIL FROM:<>", "250").await.unwrap();
    outside.command("RCPT TO:<bounces@home.test>", "550 5.1.1").await.unwrap();
    outside.command("RCPT TO:<returns@home.test>", "550 5.1.1").await.unwrap();
    server.stop().await;
    let found = maildir(&folder.path().join("box"));
    assert_eq!(found.len(), 4);
    assert!(found.iter().any(|message| message.contains("Delivered-To: returns@shop.test")), "{found:?}");
    assert_eq!(sink.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_it_the_address_does_not_exist_and_the_sender_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, "return_path = \"client\"")).await;
    let mut client = Client::connect(server.submission).await.unwrap();
    let reply = client.send("app@home.test", &["you@far.test"], &letter("me@home.test", "")).await.unwrap();
    server.wait_done(queued_id(&reply)).await;
    assert_eq!(sink.taken()[0].mail_from, "app@home.test");
    let mut outside = Client::connect(server.mx).await.unwrap();
    outside.command("MAIL FROM:<>", "250").await.unwrap();
    outside.command("RCPT TO:<bounce@home.test>", "550 5.1.1").await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_to_rewritten_mail_go_to_the_catchall() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, zone) = far().await;
    let sender = "default_from = \"news@shop.test\"\nfrom_filter = [\"home.test\"]\nreply_to = \"catchall\"";
    let server = TestServer::start(folder.path(), &conf(&sink, &zone, sender)).await;
    let mut client = Client::connect(server.submission).await.unwrap();
    for (number, (from, more, shown, answers)) in [
        ("Ann <ann@other.test>", "", "Ann <news@shop.test>", vec!["catchall@shop.test"]),
        ("ann@other.test", "Reply-To: bob@other.test\r\n", "ann <news@shop.test>", vec!["catchall@shop.test"]),
        ("me@home.test", "Reply-To: bob@other.test\r\n", "me@home.test", vec!["bob@other.test"]),
        ("me@home.test", "", "me@home.test", vec![]),
    ]
    .into_iter()
    .enumerate()
    {
        let reply = client.send("app@home.test", &["you@far.test"], &letter(from, more)).await.unwrap();
        server.wait_done(queued_id(&reply)).await;
        let taken = &sink.taken()[number];
        assert_eq!(
            (fields(taken, "From"), fields(taken, "Reply-To")),
            (vec![shown.to_owned()], own(&answers)),
            "{from}"
        );
    }
    // An answer finds its way.
    let mut outside = Client::connect(server.mx).await.unwrap();
    let reply = outside.send("you@far.test", &["catchall@shop.test"], &letter("you@far.test", "")).await.unwrap();
    server.wait_done(queued_id(&reply)).await;
    server.stop().await;
    assert_eq!(maildir(&folder.path().join("answers")).len(), 1);
}

fn own(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}
