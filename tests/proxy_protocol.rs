//! Behind a proxy: the address in its PROXY header is the client's, wherever addresses count; nobody else is
//! believed; and whoever ought to send a header and does not is not talked to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod server;
}

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use postrider::events::Event;
use support::server::{HOSTNAME, TestServer, queued_id};
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// A test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Nothing here is about what DNS says of the addresses.
const NO_CHECKS: &str = "[checks]\nspf = \"off\"\ndkim = \"off\"\ndmarc = \"off\"\narc = \"off\"\nrdns = \"off\"\n";

/// Both listeners stand behind proxies; `proxies` is what `[networks]` says of them.
async fn server(folder: &tempfile::TempDir, proxies: &str, more: &str) -> TestServer {
    let more = format!("[networks]\nproxies = [{proxies}]\ntrusted = [\"127.0.0.0/8\", \"10.0.0.0/8\"]\n{more}");
    let bind = "bind = [\"127.0.0.1:0\"]";
    TestServer::start_with(folder.path(), &more, bind, &format!("{bind}\nproxy_protocol = true")).await
}

struct Client {
    stream: TcpStream,
    heard: Vec<u8>,
}

impl Client {
    /// Says `first` without waiting for anything.
    fn connect(address: SocketAddr, first: &[u8]) -> Client {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(first).unwrap();
        Client { stream, heard: Vec::new() }
    }

    fn reply(&mut self) -> String {
        self.next().unwrap_or_else(|| panic!("closed after {:?}", String::from_utf8_lossy(&self.heard)))
    }

    /// The last line of the next reply; None at the end.
    fn next(&mut self) -> Option<String> {
        loop {
            while let Some(end) = self.heard.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.heard.drain(..end + 2).collect();
                if line[3] != b'-' {
                    return Some(String::from_utf8(line).unwrap());
                }
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(bytes) => self.heard.extend_from_slice(&buffer[..bytes]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn say(&mut self, line: &str) -> String {
        self.stream.write_all(format!("{line}\r\n").as_bytes()).unwrap();
        self.reply()
    }

    /// Up to the reply to MAIL.
    fn mail(&mut self) -> String {
        assert!(self.reply().starts_with("220 "));
        assert!(self.say("EHLO client.test").starts_with("250 "));
        self.say("MAIL FROM:<me@home.test>")
    }
}

fn v1(client: &str) -> Vec<u8> {
    format!("PROXY TCP4 {client} 198.51.100.1 56324 25\r\n").into_bytes()
}

fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let prefix: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    [prefix, &[command, family], &(body.len() as u16).to_be_bytes(), body].concat()
}

fn v2_of(client: &str) -> Vec<u8> {
    let tlv: &[u8] = &[0x02, 0, 4, b'm', b'a', b'i', b'l'];
    match client.parse().unwrap() {
        IpAddr::V4(ip) => v2(0x21, 0x11, &[&ip.octets(), &[198, 51, 100, 1, 220, 4, 0, 25][..], tlv].concat()),
        IpAddr::V6(ip) => v2(0x21, 0x21, &[&ip.octets(), &[0x20; 16][..], &[220, 4, 0, 25], tlv].concat()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_conveyed_address_is_the_clients_in_story_and_received() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    let more = format!(
        "[domains.\"home.test\"]\ncatchall = \"kept\"\n[targets.kept]\nkind = \"maildir\"\npath = \"{}\"\n{NO_CHECKS}",
        kept.display()
    );
    let server = server(&folder, "\"127.0.0.1\"", &more).await;
    for (id, (header, ip)) in [
        (v1("192.0.2.7"), "192.0.2.7"),
        (v2_of("192.0.2.8"), "192.0.2.8"),
        (v2_of("2001:db8::7"), "2001:db8::7"),
        (v2_of("::ffff:192.0.2.9"), "192.0.2.9"),
    ]
    .into_iter()
    .enumerate()
    {
        // A command in the same packet is not lost, nor taken for a part of the header.
        let mut client = Client::connect(server.mx, &[&header[..], b"EHLO early.test\r\n"].concat());
        assert!(client.reply().starts_with("220 "));
        assert!(client.reply().starts_with("250 "));
        for (line, code) in
            [(&*format!("MAIL FROM:<a{id}@far.test>"), "250"), ("RCPT TO:<b@home.test>", "250"), ("DATA", "354")]
        {
            let reply = client.say(line);
            assert!(reply.starts_with(code), "{line}: {reply}");
        }
        let id =
            queued_id(&client.say(&format!("From: <a{id}@far.test>\r\nMessage-ID: <{id}@far.test>\r\n\r\nhi\r\n.")));
        let story = server.wait_done(id).await;
        let told = story.entries.iter().find_map(|entry| match &entry.event {
            Event::Accepted { origin, .. } => origin.peer.as_ref().map(|peer| peer.ip),
            _ => None,
        });
        assert_eq!(told, Some(ip.parse().unwrap()), "{story:#?}");
    }
    let mut received: Vec<String> = std::fs::read_dir(kept.join("new"))
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
        .map(|text| text.split("Received: from early.test (").nth(1).unwrap().split(')').next().unwrap().to_owned())
        .collect();
    received.sort();
    assert_eq!(received, ["[192.0.2.7]", "[192.0.2.8]", "[192.0.2.9]", "[IPv6:2001:db8::7]"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_in_a_trusted_network_makes_nobody_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(&folder, "\"127.0.0.1\"", "").await;
    let unix = v2(0x21, 0x31, &[0; 216]);
    for (header, code) in [
        (v1("192.0.2.7"), "530 "),
        (v2_of("192.0.2.7"), "530 "),
        (v2_of("2001:db8::7"), "530 "),
        // It does not say who it is, so it is nobody.
        (b"PROXY UNKNOWN\r\n".to_vec(), "530 "),
        (v2(0x20, 0, b""), "530 "),
        (v2(0x21, 0, b""), "530 "),
        (unix, "530 "),
        // A client in a trusted network is trusted through a proxy as well.
        (v1("10.1.2.3"), "250 "),
        (v2_of("127.0.0.1"), "250 "),
    ] {
        let reply = Client::connect(server.submission, &header).mail();
        assert!(reply.starts_with(code), "{}: {reply}", header.escape_ascii());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_blocked_networks_count_the_conveyed_address() {
    let folder = tempfile::tempdir().unwrap();
    let more = "[networks]\nproxies = [\"127.0.0.1\"]\nblocked = [\"203.0.113.0/24\"]\n\
                [listeners.behind]\nrole = \"mx\"\nbind = [\"127.0.0.1:0\"]\nproxy_protocol = true\n";
    let limit = "connections_per_ip = 1000";
    let server = TestServer::start_with(folder.path(), more, limit, "connections_per_ip = 1").await;
    let behind = server.app.listeners().iter().find(|listener| listener.name == "behind").unwrap().address;

    let blocked = Client::connect(behind, &v1("203.0.113.9")).reply();
    assert!(blocked.starts_with("554 5.7.1 no service for your network"), "{blocked}");
    let mut held: Vec<Client> = Vec::new();
    for client in ["192.0.2.7", "192.0.2.8", "2001:db8::7"] {
        let mut client = Client::connect(behind, &v2_of(client));
        assert!(client.reply().starts_with("220 "), "each is a client of its own");
        held.push(client);
    }
    let second = Client::connect(behind, &v1("192.0.2.7")).reply();
    assert!(second.starts_with("421 4.7.0 too many connections from your address"), "{second}");
    // Health checks of the proxy itself are nobody's connections, however many.
    for _ in 0..3 {
        let mut check = Client::connect(behind, &v2(0x20, 0, b""));
        assert!(check.reply().starts_with("220 "));
        held.push(check);
    }
    // A listener that stands behind no proxy takes the address for what it is.
    let mut direct = Client::connect(server.mx, b"");
    assert!(direct.reply().starts_with("220 "));
    drop(held);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_proxy_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(&folder, "\"192.0.2.1\", \"2001:db8::/32\"", "").await;
    for first in [v1("10.1.2.3"), v2_of("10.1.2.3"), b"EHLO client.test\r\n".to_vec(), Vec::new()] {
        for address in [server.submission, server.mx] {
            let mut client = Client::connect(address, &first);
            let told = client.next();
            // A socket with unread input may be reset before the words are heard.
            let is_refusal = told.as_deref().is_none_or(|told| told.starts_with("554 5.7.1 this port takes"));
            assert!(is_refusal, "{told:?}");
            assert_eq!(client.next(), None);
        }
    }
    let mut client = Client::connect(server.mx, b"");
    assert_eq!(client.next().unwrap(), "554 5.7.1 this port takes connections from its proxies only\r\n");
    assert!(server.queue().await.is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_without_a_header_is_hung_up_on() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(&folder, "\"127.0.0.0/8\"", "").await;
    let long = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200], b"\r\n"].concat();
    for first in [
        b"EHLO client.test\r\nMAIL FROM:<a@b.test>\r\n".to_vec(),
        b"PROXY TCP4 nowhere 198.51.100.1 1 25\r\n".to_vec(),
        long,
        v2(0x21, 0x11, &[1; 11]),
        v2(0x21, 0x12, &[1; 12]),
        // A second header is the client's, and no command of SMTP.
        b"\x16\x03\x01\x02\x00\x01".to_vec(),
    ] {
        let mut client = Client::connect(server.mx, &first);
        assert_eq!(client.next(), None, "{}", first.escape_ascii());
    }
    let mut twice = Client::connect(server.mx, &[v1("192.0.2.7"), v1("10.1.2.3")].concat());
    assert!(twice.reply().starts_with("220 "));
    assert!(twice.reply().starts_with("500 "));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_may_come_octet_by_octet() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(&folder, "\"127.0.0.1\"", "").await;
    for header in [v1("192.0.2.7"), v2_of("2001:db8::7")] {
        let mut client = Client::connect(server.submission, b"");
        for octet in &header {
            client.stream.write_all(&[*octet]).unwrap();
        }
        let reply = client.mail();
        assert!(reply.starts_with("530 "), "{reply}");
    }
    server.stop().await;
}

/// The first octets of the handshake are in the packet of the header.
#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_follows_the_header_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let bind = "role = \"submission\"";
    let more = "[networks]\nproxies = [\"127.0.0.1\"]\n";
    let other = format!("{bind}\ntls = \"implicit\"\nproxy_protocol = true");
    let server = TestServer::start_with(folder.path(), more, bind, &other).await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.path().join("tls/self-signed.crt")).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut session = ClientConnection::new(Arc::new(config), ServerName::try_from(HOSTNAME).unwrap()).unwrap();
    let mut first = v2_of("192.0.2.7");
    session.write_tls(&mut first).unwrap();
    let client = Client::connect(server.submission, &first);
    let mut stream = StreamOwned::new(session, client.stream);
    let mut greeting = [0; 4];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"220 ");
    server.stop().await;
}
