//! Smuggling end to end: each form of a false end of data, in each carrier, through a whole relay to
//! a far end that is lax about line ends. One message in is one message out, or none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod conversation;
    pub mod flow;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use support::flow;
use support::server::TestServer;
use support::sink::Sink;
use support::zone::Zone;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CONF: &str = r#"
[networks]
trusted = ["127.0.0.0/8"]
[domains."home.test"]
[accounts.shop]
password = "correct horse"
[pickup.in]
path = "DATA_DIR/in"
account = "shop"
settle = "1s"
[delivery]
mx_port = PORT
allow_private_addresses = true
[dns]
nameservers = ["ZONE"]
"#;

const TAIL: &[u8] = b"MAIL FROM:<smuggled@far.test>\r\nRCPT TO:<victim@far.test>\r\nDATA\r\nFrom: smuggled@far.test\r\nSubject: SMUGGLED\r\n\r\nx\r\n.\r\n";
const HEAD: &[u8] = b"From: shop@home.test\r\nTo: you@far.test\r\nSubject: honest\r\n";
const ENVELOPE: &[u8] = b"EHLO c.test\r\nMAIL FROM:<shop@home.test>\r\nRCPT TO:<you@far.test>\r\n";

/// The forms that must not end a message, by name.
fn forms() -> Vec<(String, Vec<u8>)> {
    let maps = flow::maps(include_str!("data/smuggling.yml"));
    let not_ends = maps.into_iter().filter(|map| map.get("inbound").is_some_and(|rule| rule == b"not-end"));
    let forms: Vec<_> = not_ends
        .map(|map| {
            let bytes = map.get("raw_bytes_hex").map(|hex| flow::hex(hex)).unwrap_or_else(|| map["bytes"].clone());
            (String::from_utf8_lossy(&map["id"]).into_owned(), bytes)
        })
        .collect();
    assert_eq!(forms.len(), 28);
    forms
}

/// What lies between the envelope and the legal end, for each place where a form can stand.
fn contents(form: &[u8]) -> [Vec<u8>; 4] {
    [
        [HEAD, b"\r\nbody", form, TAIL].concat(),
        [form, TAIL].concat(),
        [HEAD, b"X: y", form, TAIL].concat(),
        [HEAD, b"\r\nbody", form].concat(),
    ]
}

async fn until_354(stream: &mut TcpStream) -> bool {
    let mut heard = Vec::new();
    loop {
        let mut piece = [0; 512];
        let count = stream.read(&mut piece).await.unwrap();
        heard.extend_from_slice(&piece[..count]);
        if count == 0 || heard.windows(6).any(|w| w == b"\r\n354 ") {
            return count > 0;
        }
    }
}

async fn by_data(address: SocketAddr, content: &[u8], cut: usize) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(&[ENVELOPE, b"DATA\r\n"].concat()).await.unwrap();
    assert!(until_354(&mut stream).await);
    let all = [content, b"\r\n.\r\nQUIT\r\n"].concat();
    for piece in all.chunks(cut) {
        // The server may close in the middle: it has seen enough.
        if stream.write_all(piece).await.is_err() {
            return;
        }
    }
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

async fn by_bdat(address: SocketAddr, content: &[u8], chunk: usize) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut script = ENVELOPE.to_vec();
    for piece in content.chunks(chunk) {
        script.extend_from_slice(format!("BDAT {}\r\n", piece.len()).as_bytes());
        script.extend_from_slice(piece);
    }
    script.extend_from_slice(b"BDAT 0 LAST\r\nQUIT\r\n");
    let _ = stream.write_all(&script).await;
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

/// Drops files and waits until each has been queued or put aside.
async fn by_pickup(folder: &Path, contents: &[Vec<u8>]) {
    for (number, content) in contents.iter().enumerate() {
        std::fs::write(folder.join(format!("{number}.eml")), content).unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    let waits = |entry: std::io::Result<std::fs::DirEntry>| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        name.ends_with(".eml") || name.ends_with(".tmp")
    };
    while std::fs::read_dir(folder).unwrap().any(waits) {
        assert!(Instant::now() < deadline, "files are still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_never_becomes_two_on_its_way_through() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("in")).unwrap();
    let sink = Sink::start().await;
    let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1").serve().await;
    let conf = CONF.replace("PORT", &sink.address.port().to_string()).replace("ZONE", &zone.addr().to_string());
    let server = TestServer::start(folder.path(), &conf).await;
    let mut sent = 0;
    let mut files = Vec::new();
    for (_, form) in forms() {
        for content in contents(&form) {
            for cut in [content.len().max(1), 1, 7] {
                by_data(server.submission, &content, cut).await;
                by_bdat(server.submission, &content, cut).await;
                sent += 2;
            }
            // The pickup folder ends lines by LF too, so what follows a form is content there.
            files.push([b"X-Sender: shop@home.test\r\nX-Receiver: you@far.test\r\n", content.as_slice()].concat());
        }
    }
    sent += files.len();
    by_pickup(&folder.path().join("in"), &files).await;
    // Attempts under way end before this returns.
    let waiting = server.queue().await.len();
    server.stop().await;
    let taken = sink.taken();
    assert!(taken.len() + waiting >= files.len() && taken.len() <= sent, "{} of {sent}, {waiting}", taken.len());
    for message in taken {
        let shown = String::from_utf8_lossy(&message.content).into_owned();
        assert_eq!(message.mail_from, "shop@home.test", "{shown:?}");
        assert_eq!(message.recipients, ["you@far.test"], "{shown:?}");
        let rest = shown.replace("\r\n", "");
        assert!(!rest.contains(['\r', '\n', '\0']), "{shown:?}");
    }
}
