//! Our server: what is said in words, on the session and over TCP, and what is bytes, against a whole server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, SupportedProtocolVersion};

use postrider::server::connection::HANDSHAKE_TIME;

use crate::bare::Bare;
use crate::conversation::Conversation;
use crate::ids;
use crate::support::server::{HOSTNAME, TestServer};
use crate::tcp::Tcp;

const HOUSE: &str = "tls: opportunistic\ndomain: example.test\nrecipient: ok@example.test\n";
const HELLO: &str = "S: 220\nC: EHLO client.test\nS: 250\n";
const TLS: &str = "C: STARTTLS\nS: 220\nstarttls\n";
/// A connection that is answered so late hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// In the words of `support/conversation.rs`. None: more than words.
fn script(id: &str) -> Option<Vec<String>> {
    let house = |more: &str, rest: &str| format!("{HOUSE}{more}\n{HELLO}{rest}");
    // In one segment: what was sent in clear behind it is never read.
    let injected = |what: &str| house("split: no\n", &format!("C> \"STARTTLS\\r\\n{what}\"\nS: 220 closes"));
    let login = "AUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm";
    Some(match id {
        "s01" => vec![injected("EHLO x\\r\\n")],
        "s02" => vec![injected("MAIL FROM:<a@b>\\r\\n")],
        "s03" => vec![injected(&format!("{login}\\r\\n"))],
        "s04" => vec![injected("\\x16\\x03\\x01\\x02\\x00\\x01")],
        "s05" => vec![house("", "C: MAIL FROM:<a@b>\nS: 250\nC: STARTTLS\nS: 503\nC: RSET\nS: 250\n") + TLS],
        "s06" => vec![
            house(
                "",
                &format!("{TLS}C: MAIL FROM:<a@b>\nS: 503\nC: EHLO again.test\nS: 250\nC: MAIL FROM:<a@b>\nS: 250"),
            ),
            house(
                "role: submission\naccount: tim tanstaaftanstaaf\n",
                &format!("C: {login}\nS: 235\n{TLS}C: EHLO client.test\nS: 250\nC: MAIL FROM:<a@b>\nS: 530"),
            ),
        ],
        "s07" => {
            vec![house("", &format!("S~ STARTTLS\n{TLS}C: EHLO client.test\nS: 250\nS! STARTTLS\nC: STARTTLS\nS: 503"))]
        }
        "s08" => vec![house("", "C: STARTTLS x\nS: 501")],
        "s09" => vec![house(
            "loopback: no\nrole: submission\naccount: tim tanstaaftanstaaf\n",
            &format!("S! AUTH\nC: {login}\nS: 538\nC: AUTH PLAIN\nS: 538\nC: AUTH LOGIN\nS: 538"),
        )],
        "s10" => vec![format!(
            "{HOUSE}\nS: 220\nC> \"\\x16\\x03\\x01\\x02\\x00\\x01\\x00\\x01\\xfc\\x03\\x03\"\nS: 500 closes"
        )],
        _ => return None,
    })
}

fn converse(id: &str, scripts: &[String]) {
    for script in scripts {
        let conversation = Conversation::parse(id, script).unwrap_or_else(|fault| panic!("{fault}"));
        let reads: &[usize] = if conversation.setting.split { &[usize::MAX, 1, 7] } else { &[usize::MAX] };
        for read in reads {
            conversation.run(&mut Bare::new(&conversation.setting, *read)).unwrap_or_else(|fault| panic!("{fault}"));
        }
        conversation.run(&mut Tcp::new(&conversation.setting)).unwrap_or_else(|fault| panic!("{fault} (TCP)"));
    }
}

const CONF: &str = r#"
[listeners.implicit]
role = "submission"
bind = ["127.0.0.1:0"]
tls = "implicit"
[accounts.tim]
password = "tanstaaftanstaaf"
[domains."home.test"]
catchall = ["box"]
[targets.box]
kind = "maildir"
path = "DATA_DIR/box"
[checks]
spf = "off"
dkim = "off"
dmarc = "off"
rdns = "off"
"#;

struct House {
    server: TestServer,
    implicit: SocketAddr,
    folder: tempfile::TempDir,
}

impl House {
    async fn new() -> House {
        let folder = tempfile::tempdir().unwrap();
        let server = TestServer::start(folder.path(), CONF).await;
        let implicit = server.app.listeners().iter().find(|listener| listener.name == "implicit").unwrap().address;
        House { server, implicit, folder }
    }

    fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.folder.path().join("tls/self-signed.crt")).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_protocol_versions(versions).unwrap();
        Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
    }

    /// Up to the reply to STARTTLS.
    async fn at_the_door(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.server.mx).await.unwrap();
        let mut heard = Vec::new();
        stream.write_all(b"EHLO c.test\r\nSTARTTLS\r\n").await.unwrap();
        while !heard.ends_with(b"go ahead\r\n") {
            stream.read_buf(&mut heard).await.unwrap();
        }
        stream
    }

    async fn under_tls(&self, config: Arc<ClientConfig>) -> TlsStream<TcpStream> {
        let name = ServerName::try_from(HOSTNAME).unwrap();
        TlsConnector::from(config).connect(name, self.at_the_door().await).await.unwrap()
    }

    /// What comes back for these bytes in place of a handshake, up to the end; the server has to close.
    async fn answer(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.at_the_door().await;
        // It may close in the middle.
        let _ = stream.write_all(bytes).await;
        to_the_end(&mut stream).await
    }

    /// The server still serves, and nothing has come in.
    async fn is_well(&self) {
        let mut stream = self.under_tls(self.client(&[&TLS13])).await;
        stream.write_all(b"EHLO c.test\r\nQUIT\r\n").await.unwrap();
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard).await;
        assert!(heard.windows(8).any(|eight| eight == b"221 2.0."), "{}", String::from_utf8_lossy(&heard));
        assert!(self.server.queue().await.is_empty());
        assert!(!self.folder.path().join("box/new").exists());
    }
}

async fn to_the_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut heard = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard)).await;
    let _ = read.expect("the server does not close");
    heard
}

/// A ClientHello as rustls makes it, with other bytes for a name.
fn client_hello(config: Arc<ClientConfig>, sni: &[u8]) -> Vec<u8> {
    let name = "aaaaaaaa.test";
    let mut client = ClientConnection::new(config, ServerName::try_from(name).unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    let at = bytes.windows(name.len()).position(|window| window == name.as_bytes()).unwrap();
    let grown = sni.len() as i64 - name.len() as i64;
    bytes.splice(at..at + name.len(), sni.iter().copied());
    let mut add = |at: usize| {
        let old = i64::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        bytes[at..at + 2].copy_from_slice(&u16::try_from(old + grown).unwrap().to_be_bytes());
    };
    // Record, handshake (the low two octets), the name, its list, its extension.
    [3, 7, at - 2, at - 5, at - 7].into_iter().for_each(&mut add);
    // Behind version, random, session id, cipher suites and compression methods: all extensions.
    let mut place = 5 + 4 + 2 + 32;
    place += 1 + usize::from(bytes[place]);
    place += 2 + usize::from(u16::from_be_bytes([bytes[place], bytes[place + 1]]));
    place += 1 + usize::from(bytes[place]);
    let old = i64::from(u16::from_be_bytes([bytes[place], bytes[place + 1]]));
    bytes[place..place + 2].copy_from_slice(&u16::try_from(old + grown).unwrap().to_be_bytes());
    bytes
}

/// A ClientHello of long ago: this version, these cipher suites, nothing else.
fn old_hello(version: [u8; 2], suites: &[u16]) -> Vec<u8> {
    let suites: Vec<u8> = suites.iter().flat_map(|suite| suite.to_be_bytes()).collect();
    let mut body =
        [version.as_slice(), &[7; 32], &[0], &(suites.len() as u16).to_be_bytes(), &suites, &[1, 0]].concat();
    body.splice(0..0, [&[1, 0][..], &(body.len() as u16).to_be_bytes()].concat());
    [&[0x16, 3, 1][..], &(body.len() as u16).to_be_bytes(), &body].concat()
}

/// RC4, 3DES, NULL, EXPORT, anonymous.
const BROKEN_SUITES: [u16; 8] = [0x0005, 0x0004, 0x000a, 0x0002, 0x0000, 0x0003, 0x0018, 0x0034];

async fn check(id: &str) {
    let house = House::new().await;
    match id {
        "s11" => {
            let mut stream = TcpStream::connect(house.implicit).await.unwrap();
            stream.write_all(b"EHLO client.test\r\nMAIL FROM:<a@b>\r\n").await.unwrap();
            let heard = to_the_end(&mut stream).await;
            assert!(!heard.windows(3).any(|three| three == b"220" || three == b"250"), "{heard:?}");
        }
        "s12" => {
            let heard = house.answer(&[0x16, 3, 3, 0, 0].repeat(100_000)).await;
            assert!(heard.len() < 100, "{heard:?}");
        }
        "s13" => unfinished_handshakes().await,
        "s14" => {
            // TLS 1.2: rustls knows no renegotiation; that its client cannot ask for one is the proof of half of it. A
            // handshake record in the open, where one is expected under keys, ends the connection.
            let mut stream = house.under_tls(house.client(&[&TLS12])).await;
            stream.get_mut().0.write_all(&client_hello(house.client(&[&TLS12]), b"again.test")).await.unwrap();
            assert!(to_the_end(stream.get_mut().0).await.len() < 2000);
            // TLS 1.3: a thousand new keys cost a thousand small records; the session goes on, or is ended.
            let mut stream = house.under_tls(house.client(&[&TLS13])).await;
            for _ in 0..1000 {
                stream.get_mut().1.refresh_traffic_keys().unwrap();
                stream.write_all(b"").await.unwrap();
                if stream.flush().await.is_err() {
                    break;
                }
            }
            let _ = stream.write_all(b"QUIT\r\n").await;
            let mut heard = Vec::new();
            let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard)).await;
            let _ = read.expect("it hangs");
        }
        "s15" => tickets(&house).await,
        "s16" => {
            let config = house.client(&[&TLS13]);
            let long = [b"a".repeat(290).as_slice(), b".test"].concat();
            for sni in [
                b"a\0b.test".as_slice(),
                &long,
                b"../../../../etc/passwd",
                b"MAIL.HOME.TEST",
                b"xn--80ak6aa92e.test",
                b"",
                b".",
            ] {
                let mut stream = house.at_the_door().await;
                stream.write_all(&client_hello(config.clone(), sni)).await.unwrap();
                let mut first = [0; 1];
                tokio::time::timeout(PATIENCE, stream.read_exact(&mut first)).await.expect("it hangs").unwrap();
                // A handshake under the only certificate there is, or an alert (RFC 6066 3).
                assert!([0x16, 0x15].contains(&first[0]), "{sni:?}: {first:?}");
            }
        }
        "s17" | "s18" => truncated(&house, id == "s17").await,
        "s19" => {
            for (version, suites) in [
                ([3, 0], &BROKEN_SUITES[..]),
                ([3, 1], &[0xc02f, 0xc030, 0x002f]),
                ([3, 2], &[0xc02f, 0xc030, 0x002f]),
                ([3, 3], &BROKEN_SUITES),
                // RSA key exchange and CBC: no forward secrecy, and Lucky 13.
                ([3, 3], &[0x002f, 0x0035, 0x003c]),
            ] {
                let heard = house.answer(&old_hello(version, suites)).await;
                assert_eq!(heard.first(), Some(&0x15), "{version:?} {suites:?}: {heard:?}");
            }
        }
        "s20" => {
            // Nobody asks clients for certificates; a chain of a megabyte in the handshake is out of turn.
            let mut stream = house.at_the_door().await;
            stream.write_all(&client_hello(house.client(&[&TLS12]), b"mail.home.test")).await.unwrap();
            let chunk = [&[0x16, 3, 3, 0x40, 0][..], &[0x0b, 0x0f, 0xff, 0xff], &[0; 0x3ffc]].concat();
            let _ = stream.write_all(&chunk.repeat(64)).await;
            let heard = to_the_end(&mut stream).await;
            assert!(heard.len() < 10_000, "{} bytes", heard.len());
        }
        other => panic!("what is {other}?"),
    }
    house.is_well().await;
    house.server.stop().await;
}

/// `s13`: a handshake that does not end has a place, and a deadline.
async fn unfinished_handshakes() {
    assert!(HANDSHAKE_TIME <= Duration::from_secs(30));
    let folder = tempfile::tempdir().unwrap();
    let line = ("connections_per_ip = 1000", "connections_per_ip = 2");
    let server = TestServer::start_with(folder.path(), CONF, line.0, line.1).await;
    let implicit = server.app.listeners().iter().find(|listener| listener.name == "implicit").unwrap().address;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(implicit).await.unwrap();
        stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0]).await.unwrap();
        held.push(stream);
    }
    // They are counted as soon as they are accepted; until then a third may still get in.
    let refused = async {
        loop {
            let mut stream = TcpStream::connect(server.mx).await.unwrap();
            let mut heard = Vec::new();
            stream.read_buf(&mut heard).await.unwrap();
            if heard.starts_with(b"421 ") {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("a third connection is let in");
    drop(held);
    server.stop().await;
}

/// `s15`: a ticket brings keys back, not who somebody was.
async fn tickets(house: &House) {
    let config = house.client(&[&TLS13]);
    let connect = async |address: SocketAddr| {
        let stream = TcpStream::connect(address).await.unwrap();
        TlsConnector::from(config.clone()).connect(ServerName::try_from(HOSTNAME).unwrap(), stream).await.unwrap()
    };
    let mut first = connect(house.implicit).await;
    first.write_all(b"EHLO c.test\r\nAUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm\r\nQUIT\r\n").await.unwrap();
    let mut heard = String::new();
    let _ = first.read_to_string(&mut heard).await;
    assert!(heard.contains("235 2.7.0"), "{heard}");
    // The same door, and the one for everybody, after STARTTLS.
    let mut again = connect(house.implicit).await;
    again.write_all(b"EHLO c.test\r\nMAIL FROM:<tim@home.test>\r\nQUIT\r\n").await.unwrap();
    let mut heard = String::new();
    let _ = again.read_to_string(&mut heard).await;
    assert!(heard.contains("530 5.7.0") && !heard.contains("250 2.1.0"), "{heard}");
    println!("resumed: {}", again.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed));
    let mut other = house.under_tls(config).await;
    other.write_all(b"EHLO c.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<v@far.test>\r\nQUIT\r\n").await.unwrap();
    let mut heard = String::new();
    let _ = other.read_to_string(&mut heard).await;
    assert!(heard.contains("550 5.7.1"), "{heard}");
}

/// `s17` and `s18`: an end of TLS, or of TCP without one of TLS, is no end of a message.
async fn truncated(house: &House, with_notify: bool) {
    for begin in
        ["DATA\r\nFrom: a@far.test\r\n\r\nhalf a message\r\n", "BDAT 1000 LAST\r\nFrom: a@far.test\r\n\r\nhalf"]
    {
        let mut stream = house.under_tls(house.client(&[&TLS13])).await;
        let envelope = "EHLO c.test\r\nMAIL FROM:<a@far.test>\r\nRCPT TO:<b@home.test>\r\n";
        stream.write_all(format!("{envelope}{begin}").as_bytes()).await.unwrap();
        if with_notify {
            stream.get_mut().1.send_close_notify();
        }
        stream.flush().await.unwrap();
        let mut socket = stream.into_inner().0;
        if with_notify {
            // Clear text behind it is not read.
            let _ = socket.write_all(b"\r\n.\r\n").await;
        } else {
            socket.shutdown().await.unwrap();
        }
        let heard = to_the_end(&mut socket).await;
        assert!(!heard.windows(4).any(|four| four == b"250 "), "{heard:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_attack_on_the_server_ends_as_its_rule_says() {
    let mut run = 0;
    for id in ids("server_side", 20) {
        match script(&id) {
            Some(scripts) => tokio::task::spawn_blocking(move || converse(&id, &scripts)).await.unwrap(),
            None => check(&id).await,
        }
        run += 1;
    }
    assert_eq!(run, 20);
}
