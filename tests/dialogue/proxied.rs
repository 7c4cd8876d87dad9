//! `d052` where a PROXY header belongs: at a listener behind a proxy. What is no header ends the connection before a word is
//! said; behind what is one comes one message, as often as it is sent; nothing in the header is ever a command.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::server::TestServer;

const CONF: &str = r#"
[networks]
proxies = ["127.0.0.1"]
trusted = ["127.0.0.0/8", "192.0.2.7"]
[domains."home.test"]
[aliases]
"box@home.test" = "box"
[targets.box]
kind = "maildir"
path = "DATA_DIR/box"
[checks]
spf = "off"
dkim = "off"
dmarc = "off"
rdns = "off"
[loops]
limit = 100000
[delivery]
default = "capture"
"#;
/// A message that is not in the box by then does not come.
const PATIENCE: Duration = Duration::from_secs(60);
/// TCP over IPv4, from 192.0.2.7 to 127.0.0.1.
const TCP4: &[u8] = b"\xc0\0\x02\x07\x7f\0\0\x01\x30\x39\0\x19";
/// From a path to a path.
const UNIX_BYTES: usize = 216;

/// A whole message.
fn letter(number: usize) -> Vec<u8> {
    let subject: String = number.to_string().bytes().map(|digit| char::from(digit - b'0' + b'a')).collect();
    format!(
        "EHLO client.test\r\nMAIL FROM:<ann@known.test>\r\nRCPT TO:<box@home.test>\r\nDATA\r\n\
         From: ann@known.test\r\nSubject: {subject}\r\n\r\n{subject}\r\n.\r\nQUIT\r\n"
    )
    .into_bytes()
}

fn v2(family: u8, length: u16, body: &[u8]) -> Vec<u8> {
    [b"\r\n\r\n\0\r\nQUIT\n\x21", &[family][..], &length.to_be_bytes(), body].concat()
}

/// With its true length.
fn whole(family: u8, body: &[u8]) -> Vec<u8> {
    v2(family, body.len() as u16, body)
}

/// A part behind the addresses.
fn vector(length: u16, value: &[u8]) -> Vec<u8> {
    [&[0x20], &length.to_be_bytes()[..], value].concat()
}

/// Says all of this, and no more; what comes back up to the end.
async fn say(address: SocketAddr, pieces: &[&[u8]]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for piece in pieces {
        // The server may have closed already.
        if stream.write_all(piece).await.is_err() {
            break;
        }
    }
    let _ = stream.shutdown().await;
    let mut heard = Vec::new();
    let _ = stream.read_to_end(&mut heard).await;
    String::from_utf8_lossy(&heard).into_owned()
}

/// What each header is followed by, and how many messages are taken.
fn headers(letter: &[u8]) -> Vec<(&'static str, Vec<u8>, usize)> {
    let hidden = [b"\r\n.\r\n", letter].concat();
    let in_unix = [hidden.clone(), vec![0; UNIX_BYTES]].concat()[..UNIX_BYTES].to_vec();
    let many = vector(0, b"").repeat(1000);
    vec![
        ("a good one", whole(0x11, TCP4), 1),
        ("a good one with a message in it", whole(0x11, &[TCP4, &vector(hidden.len() as u16, &hidden)].concat()), 1),
        ("a length of 65535", v2(0x11, 0xffff, &[TCP4, &hidden, &[0; 0xffff]].concat()), 0),
        ("a length of 65535, and the message in it", v2(0x11, 0xffff, TCP4), 0),
        ("a thousand empty parts", whole(0x11, &[TCP4, &many].concat()), 1),
        ("a part that is longer than the header", whole(0x11, &[TCP4, &vector(2, b"x")].concat()), 0),
        ("a part in a part without end", whole(0x11, &[TCP4, &vector(3, &vector(3, b""))[..5]].concat()), 0),
        ("a part without a length", whole(0x11, &[TCP4, &[0x20, 0][..]].concat()), 0),
        // There is no address in it, so it is nobody's (2.2 of the protocol), and has the rights of nobody.
        ("a unix socket", whole(0x31, &in_unix), 1),
        ("a unix socket by datagrams", whole(0x32, &in_unix), 0),
        ("of another version", [b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c", TCP4].concat(), 0),
        ("too short for its addresses", whole(0x11, &TCP4[..11]), 0),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_header_ends_the_connection_and_what_is_one_brings_one_message() {
    let folder = tempfile::tempdir().unwrap();
    let bind = "bind = [\"127.0.0.1:0\"]";
    let server = TestServer::start_with(folder.path(), CONF, bind, &format!("{bind}\nproxy_protocol = true")).await;
    let (mut number, mut taken) = (0, 0);
    let count = headers(b"").len();
    for which in 0..count {
        // In one segment, and octet by octet.
        for is_split in [false, true] {
            number += 1;
            let letter = letter(number);
            let (what, header, wanted) = headers(&letter).remove(which);
            let all = [header.as_slice(), &letter].concat();
            let pieces: Vec<&[u8]> = match is_split && all.len() < 10_000 {
                true => all.chunks(1).collect(),
                false => vec![&all],
            };
            let heard = say(server.mx, &pieces).await;
            assert_eq!(heard.matches(" queued as ").count(), wanted, "{what}: {heard}");
            assert_eq!(heard.is_empty(), wanted == 0, "{what}: {heard}");
            taken += wanted;
            // Who may relay is decided by the address in it; there is none in a header of unix sockets.
            let out = String::from_utf8(letter).unwrap().replace("<box@home.test>", "<you@far.test>");
            let heard = say(server.submission, &[&header, out.as_bytes()]).await;
            let may_relay = wanted == 1 && !what.contains("unix");
            assert_eq!(heard.contains("250 2.1.0 "), may_relay, "{what}: {heard}");
        }
    }
    assert_eq!(taken, 8);
    let boxed = folder.path().join("box/new");
    let arrived = || std::fs::read_dir(&boxed).map_or(0, Iterator::count);
    let since = Instant::now();
    while arrived() < taken && since.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.stop().await;
    assert_eq!(arrived(), taken);
}

/// Wherever it is cut off, and whatever was meant to come.
#[tokio::test(flavor = "multi_thread")]
async fn half_a_header_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let bind = "bind = [\"127.0.0.1:0\"]";
    let server = TestServer::start_with(folder.path(), CONF, bind, &format!("{bind}\nproxy_protocol = true")).await;
    let header = whole(0x11, &[TCP4, &vector(0, b"")].concat());
    for length in 0..header.len() {
        assert_eq!(say(server.mx, &[&header[..length]]).await, "", "{length}");
    }
    // And one octet less in front of a message: its first octet is the last of the header.
    let short = v2(0x11, TCP4.len() as u16 + 1, TCP4);
    assert_eq!(say(server.mx, &[&short, &letter(0)]).await, "");
    assert!(server.queue().await.is_empty() && !folder.path().join("box/new").exists());
    server.stop().await;
}

/// The time for it is that for a command here, or ten seconds: nobody holds a place for longer by saying nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_is_late_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let bind = "bind = [\"127.0.0.1:0\"]";
    let conf = format!("{CONF}\n[listeners.late]\nrole = \"mx\"\n{bind}\nproxy_protocol = true\n");
    let limit = "connections_per_ip = 1000";
    let server =
        TestServer::start_with(folder.path(), &conf, limit, &format!("{limit}\ncommand_timeout = \"1s\"")).await;
    let late = server.app.listeners().iter().find(|listener| listener.name == "late").unwrap().address;
    let header = whole(0x11, TCP4);
    for begun in [0, 1, 13, header.len() - 1] {
        let mut stream = TcpStream::connect(late).await.unwrap();
        stream.write_all(&header[..begun]).await.unwrap();
        // Until the server has had enough; then the rest, and the message.
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard).await;
        let _ = stream.write_all(&[&header[begun..], &letter(begun)].concat()).await;
        let _ = stream.read_to_end(&mut heard).await;
        assert!(heard.is_empty(), "{begun}: {}", String::from_utf8_lossy(&heard));
    }
    assert!(server.queue().await.is_empty() && !folder.path().join("box/new").exists());
    server.stop().await;
}
