//! The server on real sockets: listeners, TLS, limits, memory, stopping. What commands mean is the
//! business of `sessions.rs`; the house behind the server is a stand-in that keeps what it is given.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use postrider::clock::Clock;
use postrider::config::{Config, Credential, Listener as Settings, ListenerTls, Rate, Role, Secret};
use postrider::message::{Address, Draft, ReversePath};
use postrider::server::accounts::hash_password;
use postrider::server::listener::Listener;
use postrider::server::outside::{Outside, Shared};
use postrider::server::tls::ServerTls;
use postrider::smtp::Reply;
use postrider::smtp::reply::Refusal;
// `testing` names these as the library does.
use postrider::config;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion, version};
use tokio_util::sync::CancellationToken;

#[path = "../src/server/testing.rs"]
mod testing;

/// A test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Takes everything for example.test; a message waits for the gate.
struct House {
    drafts: Mutex<Vec<Draft>>,
    gate: Semaphore,
    waiting: AtomicUsize,
}

impl Outside for House {
    fn sender(&self, _: Option<&str>, _: &ReversePath, _: Option<u64>) -> Result<(), Refusal> {
        Ok(())
    }

    fn recipient(
        &self,
        _: Role,
        account: Option<&str>,
        _: &ReversePath,
        (_, recipient): (usize, &Address),
    ) -> Result<(), Refusal> {
        match recipient.domain().as_str() == "example.test" || account.is_some() {
            true => Ok(()),
            false => Err(Refusal::plain(Reply::new(550, (7, 1), "relaying denied"))),
        }
    }

    async fn accept(&self, draft: &Draft) -> Result<Reply, Refusal> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _pass = self.gate.acquire().await.map_err(|_| Refusal::inner("closed"))?;
        // What is kept here must not be paid for by the server.
        let content = draft.content.head().to_vec().into();
        self.drafts.lock().unwrap().push(Draft {
            content,
            envelope: draft.envelope.clone(),
            origin: draft.origin.clone(),
        });
        Ok(Reply::new(250, (0, 0), "queued"))
    }
}

struct Server {
    shared: Arc<Shared<House>>,
    address: SocketAddr,
    stop: CancellationToken,
    listening: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start(role: Role, tls: ListenerTls, change: impl FnOnce(&mut Config)) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let mut config = testing::config(folder.path());
        change(&mut config);
        let proxy_protocol = !config.networks.proxies.is_empty();
        let settings = Settings { role, bind: vec!["127.0.0.1:0".parse().unwrap()], tls, proxy_protocol };
        let bound = Listener::bind("test", &settings).unwrap().remove(0);
        let address = bound.local_addr().unwrap();
        let certificates = ServerTls::load(&config).unwrap();
        let house = House { drafts: Mutex::default(), gate: Semaphore::new(100), waiting: AtomicUsize::new(0) };
        let shared = Shared::new(Arc::new(config), certificates, house, Clock::System).unwrap();
        let stop = CancellationToken::new();
        let listening = tokio::spawn(bound.run(shared.clone(), stop.clone()));
        Server { shared, address, stop, listening, _folder: folder }
    }

    async fn connect(&self) -> Client<TcpStream> {
        Client { stream: TcpStream::connect(self.address).await.unwrap(), unread: Vec::new() }
    }

    /// A client that checks the certificate that the server made for itself.
    fn connector(&self, versions: &[&'static SupportedProtocolVersion]) -> TlsConnector {
        let file = self.shared.config.data_dir.join("tls/self-signed.crt");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(file).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    }

    fn drafts(&self) -> Vec<Draft> {
        self.shared.outside.drafts.lock().unwrap().clone()
    }

    /// Until the server has noticed that so many connections are left.
    async fn connections_are(&self, count: usize) {
        let wait = async {
            while self.shared.limits.connections() != count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, wait).await.expect("connections are given back");
    }
}

struct Client<S> {
    stream: S,
    unread: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    async fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// A whole reply, lines joined by spaces; none at the end.
    async fn reply(&mut self) -> Option<String> {
        let mut lines = Vec::new();
        loop {
            if let Some(end) = self.unread.windows(2).position(|two| two == b"\r\n") {
                let rest = self.unread.split_off(end + 2);
                let line = String::from_utf8(std::mem::replace(&mut self.unread, rest)).unwrap();
                let is_last = line.as_bytes()[3] != b'-';
                lines.push(line.trim_end().to_owned());
                if is_last {
                    return Some(lines.join(" "));
                }
                continue;
            }
            let read = self.stream.read_buf(&mut self.unread);
            match timeout(PATIENCE, read).await.expect("a reply within the patience of this test") {
                Ok(0) | Err(_) => {
                    assert!(self.unread.is_empty() && lines.is_empty(), "half a reply");
                    return None;
                }
                Ok(_) => {}
            }
        }
    }

    async fn expect(&mut self, start: &str) -> String {
        let reply = self.reply().await.unwrap_or_else(|| panic!("closed instead of {start}"));
        assert!(reply.starts_with(start), "expected {start}, got {reply}");
        reply
    }

    async fn say(&mut self, line: &str, start: &str) -> String {
        self.send(format!("{line}\r\n")).await;
        self.expect(start).await
    }

    async fn closed(&mut self) {
        assert_eq!(self.reply().await, None);
    }

    async fn begin(&mut self) {
        self.expect("220 mail.example.com ESMTP").await;
        self.say("EHLO client.test", "250").await;
    }

    /// Up to 354.
    async fn begin_data(&mut self) {
        self.say("MAIL FROM:<a@client.test>", "250 2.1.0").await;
        self.say("RCPT TO:<b@example.test>", "250 2.1.5").await;
        self.say("DATA", "354").await;
    }

    async fn quit(mut self) {
        self.say("QUIT", "221").await;
        self.closed().await;
    }
}

fn accounts(config: &mut Config) {
    let hash = hash_password("correct horse").unwrap();
    config.accounts.insert("shop".into(), testing::account(Credential::Hash(Secret(hash))));
}

fn plain(account: &str, password: &str) -> String {
    format!("AUTH PLAIN {}", STANDARD.encode(format!("\0{account}\0{password}")))
}

#[tokio::test]
async fn a_plain_conversation() {
    let server = Server::start(Role::Mx, ListenerTls::Off, |_| {});
    let mut client = server.connect().await;
    client.begin().await;
    client.begin_data().await;
    client.send("Subject: hi\r\n\r\n..dot\r\n.\r\n").await;
    client.expect("250 2.0.0 queued").await;
    client.quit().await;
    let drafts = server.drafts();
    assert_eq!(&drafts[0].content.head()[..], b"Subject: hi\r\n\r\n.dot\r\n");
    let peer = drafts[0].origin.peer.clone().unwrap();
    assert_eq!((peer.ip.to_string(), peer.helo.as_str(), peer.tls), ("127.0.0.1".into(), "client.test", None));
    server.connections_are(0).await;
}

#[tokio::test]
async fn a_whole_group_in_one_write_is_answered_in_order() {
    let server = Server::start(Role::Mx, ListenerTls::Off, |_| {});
    let mut client = server.connect().await;
    client.expect("220").await;
    let transaction = "MAIL FROM:<a@client.test>\r\nRCPT TO:<b@example.test>\r\nRCPT TO:<c@elsewhere.test>\r\n";
    client.send(format!("EHLO c\r\n{transaction}BDAT 6\r\nhello\rBDAT 1 LAST\r\n\n{transaction}DATA\r\n")).await;
    for code in ["250-", "250 2.1.0", "250 2.1.5", "550 5.7.1", "250 2.0.0 6", "250 2.0.0 queued"] {
        client.expect(code).await;
    }
    for code in ["250 2.1.0", "250 2.1.5", "550 5.7.1", "354"] {
        client.expect(code).await;
    }
    client.send("two\r\n.\r\nNOOP\r\nQUIT\r\n").await;
    for code in ["250 2.0.0 queued", "250 2.0.0 ok", "221"] {
        client.expect(code).await;
    }
    client.closed().await;
    let contents: Vec<_> = server.drafts().iter().map(|draft| draft.content.head().clone()).collect();
    assert_eq!(contents, [&b"hello\r\n"[..], b"two\r\n"]);
}

/// CVE-2011-0411: what is sent behind STARTTLS in the clear must not be taken as sent under TLS.
#[tokio::test]
async fn plain_text_behind_starttls_closes_the_connection() {
    let server = Server::start(Role::Mx, ListenerTls::Opportunistic, |_| {});
    let mut client = server.connect().await;
    client.begin().await;
    client.send("STARTTLS\r\nMAIL FROM:<evil@client.test>\r\n").await;
    client.expect("220").await;
    client.closed().await;
    server.connections_are(0).await;
    assert!(server.drafts().is_empty());
}

#[tokio::test]
async fn login_and_submission_under_starttls_and_implicit_tls() {
    for (tls, versions, name) in [
        (ListenerTls::Required, [&version::TLS13], "TLSv1.3 with cipher TLS13_AES_"),
        (ListenerTls::Implicit, [&version::TLS13], "TLSv1.3 with cipher TLS13_AES_"),
        (ListenerTls::Implicit, [&version::TLS12], "TLSv1.2 with cipher TLS_ECDHE_"),
    ] {
        let server = Server::start(Role::Submission, tls, accounts);
        let mut client = server.connect().await;
        if tls == ListenerTls::Required {
            client.begin().await;
            client.say("STARTTLS", "220").await;
        }
        let host = ServerName::try_from("mail.example.com").unwrap();
        let stream = server.connector(&versions).connect(host, client.stream).await.unwrap();
        let mut client = Client { stream, unread: Vec::new() };
        match tls {
            ListenerTls::Implicit => client.begin().await,
            _ => drop(client.say("EHLO client.test", "250").await),
        }
        client.say(&plain("shop", "wrong horse"), "535 5.7.8").await;
        client.say(&plain("shop", "correct horse"), "235 2.7.0").await;
        client.say("MAIL FROM:<a@client.test>", "250").await;
        client.say("RCPT TO:<far@elsewhere.test>", "250").await;
        client.say("DATA", "354").await;
        // More than one TLS record, one read and one step of memory.
        let line = format!("{}\r\n", "x".repeat(76));
        let content = line.repeat(20_000);
        client.send(&content).await;
        client.send(".\r\n").await;
        client.expect("250").await;
        client.quit().await;
        let draft = server.drafts().remove(0);
        assert_eq!(draft.content.head(), content.as_bytes());
        assert_eq!(draft.origin.account.as_deref(), Some("shop"));
        let description = draft.origin.peer.unwrap().tls.unwrap();
        assert!(description.starts_with(name), "{description}");
    }
}

#[tokio::test]
async fn a_handshake_that_is_none_closes_the_connection() {
    let server = Server::start(Role::Submission, ListenerTls::Implicit, |_| {});
    let mut client = server.connect().await;
    client.send("EHLO client.test\r\n").await;
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, client.stream.read_to_end(&mut answer)).await.unwrap();
    assert!(!answer.starts_with(b"220"), "no greeting in the clear: {answer:?}");
    server.connections_are(0).await;
}

#[tokio::test]
async fn a_proxy_that_says_nothing_is_hung_up_on_in_time() {
    let server = Server::start(Role::Mx, ListenerTls::Off, |config| {
        config.networks.proxies = vec!["127.0.0.1".parse::<std::net::IpAddr>().unwrap().into()];
        config.limits.command_timeout = Duration::from_millis(50);
    });
    for begun in ["", "PROXY TCP4 192.0.2.7 ", "\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c1234"] {
        let mut client = server.connect().await;
        client.send(begun).await;
        client.closed().await;
        server.connections_are(0).await;
    }
}

#[tokio::test]
async fn one_address_gets_so_many_connections() {
    let server = Server::start(Role::Mx, ListenerTls::Off, |config| config.limits.connections_per_ip = 2);
    let mut first = server.connect().await;
    first.begin().await;
    let mut second = server.connect().await;
    second.begin().await;
    let mut third = server.connect().await;
    third.expect("421 4.7.0 too many connections from your address").await;
    third.closed().await;
    first.quit().await;
    server.connections_are(1).await;
    let mut fourth = server.connect().await;
    fourth.begin().await;
}

#[tokio::test]
async fn failed_logins_lock_the_account() {
    let server = Server::start(Role::Submission, ListenerTls::Off, |config| {
        accounts(config);
        config.limits.auth_failures = Rate { count: 2, per: Duration::from_secs(900) };
    });
    let mut client = server.connect().await;
    client.begin().await;
    client.say(&plain("shop", "one"), "535 5.7.8").await;
    client.say(&plain("shop", "two"), "535 5.7.8").await;
    client.say(&plain("shop", "correct horse"), "421 4.7.0").await;
    client.closed().await;
    let mut again = server.connect().await;
    again.begin().await;
    again.say(&plain("shop", "correct horse"), "421 4.7.0").await;
    again.closed().await;
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_and_the_session_goes_on() {
    let server = Server::start(Role::Mx, ListenerTls::Off, |config| config.limits.max_size = 100_000);
    let mut client = server.connect().await;
    client.begin().await;
    client.begin_data().await;
    client.send("0123456789abcdef0123456789abcd\r\n".repeat(10_000)).await;
    client.send(".\r\n").await;
    client.expect("552 5.3.4").await;
    client.begin_data().await;
    client.send("small\r\n.\r\n").await;
    client.expect("250").await;
    client.quit().await;
    assert_eq!(server.drafts().len(), 1);
}

#[tokio::test]
async fn no_room_in_memory_is_a_452_and_harms_nobody_else() {
    let server = Server::start(Role::Mx, ListenerTls::Off, |config| config.queue.memory = 128 << 10);
    let big = "0123456789abcdef0123456789abcd\r\n".repeat(10_000);
    let mut client = server.connect().await;
    client.begin().await;
    client.begin_data().await;
    client.send(format!("{big}.\r\n")).await;
    client.expect("452 4.3.1").await;
    client.say("MAIL FROM:<a@client.test>", "250").await;
    client.say("RCPT TO:<b@example.test>", "250").await;
    client.send(format!("BDAT {} LAST\r\n{big}", big.len())).await;
    client.expect("452 4.3.1").await;
    // All of it has been given back: a message that needs half the memory passes, twice.
    for _ in 0..2 {
        client.begin_data().await;
        client.send(format!("{}.\r\n", &big[..60_000 / 32 * 32])).await;
        client.expect("250").await;
    }
    client.quit().await;
    assert_eq!(server.drafts().len(), 2);
}

/// The message pays for its memory until the outside has answered.
#[tokio::test]
async fn a_message_waits_for_the_memory_of_another() {
    let server = Server::start(Role::Mx, ListenerTls::Off, |config| config.queue.memory = 64 << 10);
    let held = server.shared.outside.gate.acquire_many(100).await.unwrap();
    // Either takes more than half of it.
    let [one, two] = ["first", "second"].map(|text| format!("{}\r\n", text.repeat(40 * 1024 / text.len())));
    let mut first = server.connect().await;
    first.begin().await;
    first.begin_data().await;
    first.send(format!("{one}.\r\n")).await;
    let at_the_gate = async {
        while server.shared.outside.waiting.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, at_the_gate).await.unwrap();
    let mut second = server.connect().await;
    second.begin().await;
    second.begin_data().await;
    second.send(format!("{two}.\r\n")).await;
    drop(held);
    first.expect("250").await;
    second.expect("250").await;
    let contents: Vec<_> = server.drafts().iter().map(|draft| draft.content.head().clone()).collect();
    assert_eq!(contents, [one, two], "the second could not be read before the first was queued");
}

#[tokio::test]
async fn a_silent_client_is_timed_out() {
    let quick = Duration::from_millis(50);
    let server = Server::start(Role::Mx, ListenerTls::Off, |config| {
        (config.limits.command_timeout, config.limits.data_timeout) = (quick, quick);
    });
    let mut client = server.connect().await;
    client.expect("220").await;
    client.expect("421 4.4.2").await;
    client.closed().await;

    let server = Server::start(Role::Mx, ListenerTls::Off, |config| config.limits.data_timeout = quick);
    let mut client = server.connect().await;
    client.begin().await;
    client.begin_data().await;
    client.send("half a mess").await;
    client.expect("421 4.4.2").await;
    client.closed().await;
    assert!(server.drafts().is_empty());
    server.connections_are(0).await;
}

#[tokio::test]
async fn a_client_that_goes_leaves_nothing() {
    let server = Server::start(Role::Mx, ListenerTls::Off, |_| {});
    let mut client = server.connect().await;
    client.begin().await;
    client.begin_data().await;
    client.send("Subject: never ended\r\n").await;
    drop(client);
    server.connections_are(0).await;
    assert!(server.drafts().is_empty());
}

/// Stopping: who is idle hears 421; a message that is being sent is finished and answered first; the
/// port is free.
#[tokio::test]
async fn stopping_finishes_the_message_that_is_being_sent() {
    let server = Server::start(Role::Mx, ListenerTls::Off, |_| {});
    let mut idle = server.connect().await;
    idle.begin().await;
    let mut sending = server.connect().await;
    sending.begin().await;
    sending.begin_data().await;
    sending.send("Subject: half\r\n").await;

    server.stop.cancel();
    server.shared.sessions.close();
    idle.expect("421 4.3.2").await;
    idle.closed().await;
    timeout(PATIENCE, server.listening).await.expect("the listener ends").unwrap();
    assert!(TcpStream::connect(server.address).await.is_err(), "nobody listens any more");

    sending.send("\r\nthe other half\r\n.\r\nMAIL FROM:<next@client.test>\r\n").await;
    sending.expect("250 2.0.0 queued").await;
    sending.expect("421 4.3.2").await;
    sending.closed().await;
    timeout(PATIENCE, server.shared.sessions.wait()).await.expect("all sessions end");
    let drafts = server.shared.outside.drafts.lock().unwrap();
    assert_eq!(&drafts[0].content.head()[..], b"Subject: half\r\n\r\nthe other half\r\n");
}
