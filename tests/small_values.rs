//! Limits far below what is usual: they are kept, and nothing hangs on them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use support::client::Client;
use support::server::{BOX, TestServer, outward, queued_id};
use support::sink::Sink;
use support::zone::{Zone, ZoneServer};

const MIB: usize = 1 << 20;

/// A message with one attachment of so many bytes.
fn letter(from: &str, to: &str, bytes: usize) -> String {
    let encoded = STANDARD.encode(vec![b'x'; bytes]);
    let lines: Vec<&str> = encoded.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!(
        "From: <{from}>\r\nTo: <{to}>\r\nSubject: large\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\
         Content-Disposition: attachment; filename=a\r\nContent-Transfer-Encoding: base64\r\n\r\n{}\r\n--x--\r\n",
        lines.join("\r\n")
    )
}

async fn far() -> (Sink, ZoneServer) {
    let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1");
    (Sink::start().await, zone.txt("far.test", "v=spf1 ip4:127.0.0.1 -all").serve().await)
}

fn conf(sink: &Sink, zone: &ZoneServer) -> String {
    let account = "\n[accounts.shop]\npassword = \"secret\"\nmax_attachments = \"6MiB\"\n";
    format!("{account}{BOX}{}", outward(sink.address.port(), zone.addr()))
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_least_memory_a_large_message_still_comes_in_and_is_handed_over() {
    let (folder, (sink, zone)) = (tempfile::tempdir().unwrap(), far().await);
    let least = "min_free = \"1MiB\"\nmemory = \"1KiB\"";
    let server = TestServer::start_with(folder.path(), &conf(&sink, &zone), "min_free = \"1MiB\"", least).await;
    let mut client = Client::connect(server.mx).await.unwrap();
    let large = letter("me@far.test", "box@home.test", 5 * MIB);
    let reply = client.send("me@far.test", &["box@home.test"], &large).await.unwrap();
    assert!(reply.starts_with("250 2.0.0"), "{reply}");
    server.wait_done(queued_id(&reply)).await;
    let files: Vec<_> = std::fs::read_dir(folder.path().join("box/new")).unwrap().collect();
    assert!(files[0].as_ref().unwrap().metadata().unwrap().len() > 5 * MIB as u64);

    // Attachments are looked at as a whole, beside what is held of the message already.
    let mut client = Client::connect(server.submission).await.unwrap();
    client.command(&format!("AUTH PLAIN {}", STANDARD.encode("\0shop\0secret")), "235").await.unwrap();
    for (bytes, wanted) in [(5 * MIB, "250 2.0.0"), (7 * MIB, "552 5.3.4")] {
        let large = letter("me@home.test", "you@far.test", bytes);
        let reply = client.send("me@home.test", &["you@far.test"], &large).await.unwrap();
        assert!(reply.starts_with(wanted), "{reply}");
    }
    sink.wait_for(1).await;
    let memory = server.app.operator().queue.memory().clone();
    assert_eq!(memory.limit(), MIB as u64);
    assert!(memory.most_used() <= memory.limit());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_largest_size_of_a_kilobyte_is_announced_and_kept() {
    let (folder, (sink, zone)) = (tempfile::tempdir().unwrap(), far().await);
    let small = "connections_per_ip = 1000\nmax_size = \"1KiB\"";
    let server = TestServer::start_with(folder.path(), &conf(&sink, &zone), "connections_per_ip = 1000", small).await;
    let mut client = Client::connect(server.mx).await.unwrap();
    let hello = client.command("EHLO far.test", "250").await.unwrap();
    assert!(hello.lines().any(|line| line.ends_with("SIZE 1024")), "{hello}");
    let small = "From: <me@far.test>\r\nTo: <box@home.test>\r\nSubject: small\r\n\r\nsmall\r\n";
    let reply = client.send("me@far.test", &["box@home.test"], small).await.unwrap();
    assert!(reply.starts_with("250 2.0.0"), "{reply}");
    let large = format!("{small}{}", "0123456789\r\n".repeat(100));
    let reply = client.send("me@far.test", &["box@home.test"], &large).await.unwrap();
    assert!(reply.starts_with("552 5.3.4"), "{reply}");
    server.stop().await;
}
