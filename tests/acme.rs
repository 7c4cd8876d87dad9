//! A certificate from an authority, against a strict one in this process: got without holding up the start,
//! shown without dropping a connection, renewed in time, and kept through every failure.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod authority;
    pub mod fake_acme;
    pub mod server;
}

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use postrider::admin::Backend;
use postrider::clock::{Clock, DAY};
use support::authority::any_certificate;
use support::fake_acme::{FakeAcme, Fault};
use support::server::{HOSTNAME, TestServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;

/// A test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: u64 = 3600 * 1000;

fn now() -> u64 {
    Clock::System.now()
}

fn configuration(fake: &FakeAcme, challenge: &str) -> String {
    format!(
        "[tls.acme]\nenabled = true\ncontact = \"ops@home.test\"\ndirectory = \"{}\"\nchallenge = \"{challenge}\"\n\
         bind = \"127.0.0.1:0\"\n",
        fake.directory()
    )
}

/// Starts, and tells the authority where the name leads.
async fn start(folder: &Path, fake: &FakeAcme, challenge: &str, clock: &Clock) -> TestServer {
    fake.looks_at(None);
    let server = TestServer::start_at(folder, &configuration(fake, challenge), clock.clone()).await;
    fake.looks_at(Some(responder(&server)));
    server
}

fn responder(server: &TestServer) -> SocketAddr {
    server.app.listeners().iter().find(|listener| listener.name == "tls.acme").unwrap().address
}

/// A session under STARTTLS on the submission listener, whatever the certificate.
async fn session(address: SocketAddr) -> TlsStream<TcpStream> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    for line in ["", "EHLO client.test\r\n", "STARTTLS\r\n"] {
        stream.write_all(line.as_bytes()).await.unwrap();
        reply(&mut stream).await;
    }
    let connector = TlsConnector::from(Arc::new(any_certificate()));
    connector.connect(ServerName::try_from(HOSTNAME).unwrap(), stream).await.unwrap()
}

async fn reply(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut heard = Vec::new();
    loop {
        let mut octet = [0];
        stream.read_exact(&mut octet).await.unwrap();
        heard.push(octet[0]);
        let text = String::from_utf8_lossy(&heard);
        if text.ends_with("\r\n") && text.lines().last().is_some_and(|line| line.as_bytes()[3] == b' ') {
            return text.into_owned();
        }
    }
}

fn certificate(session: &TlsStream<TcpStream>) -> Vec<u8> {
    session.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

async fn shown(server: &TestServer) -> Vec<u8> {
    certificate(&session(server.submission).await)
}

/// Until it is so: there is nothing to wait for from outside.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(std::time::Instant::now() < deadline, "gave up waiting: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Until new clients see the last certificate that was given, which is the `count`th.
async fn has_certificate(server: &TestServer, fake: &FakeAcme, count: usize) -> Vec<u8> {
    until("a new certificate is shown", async || {
        let given = fake.seen().certificates;
        given.len() == count && shown(server).await == given[count - 1]
    })
    .await;
    fake.seen().certificates[count - 1].clone()
}

async fn metric(server: &TestServer, name: &str) -> u64 {
    let page = server.app.operator().metrics().await;
    let line =
        page.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{name}:\n{page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

async fn has_failed(server: &TestServer, count: u64) {
    until("an order fails", async || metric(server, "postrider_certificates_failed_total").await == count).await;
}

/// What `postrider check` warns of.
fn warnings(folder: &Path, fake: &FakeAcme, challenge: &str) -> String {
    let top = format!("hostname = \"{HOSTNAME}\"\ndata_dir = \"{}\"\n", folder.display());
    let config = postrider::config::parse("test.toml", &format!("{top}{}", configuration(fake, challenge))).unwrap();
    postrider::server::tls::check(&config).unwrap().concat()
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_server_gets_a_certificate_by_either_challenge_and_drops_nobody() {
    for challenge in ["http-01", "tls-alpn-01"] {
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::System);
        let fake = FakeAcme::start(challenge, clock.clone()).await;
        let server = TestServer::start_at(folder.path(), &configuration(&fake, challenge), clock.clone()).await;
        // The authority waits to be told where the name leads, so there is no certificate yet.
        let mut early = session(server.submission).await;
        let self_signed = certificate(&early);
        fake.looks_at(Some(responder(&server)));

        let given = has_certificate(&server, &fake, 1).await;
        assert_ne!(given, self_signed);
        early.write_all(b"NOOP\r\n").await.unwrap();
        assert!(reply(&mut early).await.starts_with("250 "), "the session from before goes on");
        let seen = fake.seen();
        assert_eq!((seen.accounts, seen.orders, seen.challenges), (1, 1, 1));
        assert_eq!((seen.contacts, seen.wrongs), (vec!["mailto:ops@home.test".to_owned()], Vec::<String>::new()));
        let counted = async || metric(&server, "postrider_certificates_renewed_total").await == 1;
        until("it is counted", counted).await;
        server.stop().await;

        let kept = folder.path().join("tls/acme");
        assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o700);
        let files: Vec<_> = std::fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 3, "account, certificate, notes: {files:?}");
        for file in files {
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
        }
        // The next start has it from the first handshake on.
        let server = start(folder.path(), &fake, challenge, &clock).await;
        assert_eq!(shown(&server).await, given);
        assert_eq!(fake.seen().orders, 1);
        assert_eq!(warnings(folder.path(), &fake, challenge), "");
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_responder_answers_nothing_but_the_one_question() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::System);
    let fake = FakeAcme::start("http-01", clock.clone()).await;
    let server = TestServer::start_at(folder.path(), &configuration(&fake, "http-01"), clock.clone()).await;
    let address = responder(&server);
    let requests = [
        "GET / HTTP/1.1\r\nHost: mail.home.test\r\n\r\n",
        "GET /.well-known/acme-challenge/ HTTP/1.1\r\nHost: mail.home.test\r\n\r\n",
        "GET /.well-known/acme-challenge/other HTTP/1.1\r\nHost: mail.home.test\r\n\r\n",
        "GET /.well-known/acme-challenge/../../../etc/passwd HTTP/1.1\r\nHost: mail.home.test\r\n\r\n",
        "POST /.well-known/acme-challenge/other HTTP/1.1\r\nHost: mail.home.test\r\nContent-Length: 2\r\n\r\nhi",
    ];
    // While an order runs, and while none does.
    for round in 0..2 {
        for request in requests {
            let answer = ask(address, request).await;
            assert!(answer.starts_with("HTTP/1.1 404 ") && answer.ends_with("\r\n\r\n"), "{round} {request}: {answer}");
        }
        let junk = ask(address, "\x16\x03\x01\x02\x00\r\n\r\n").await;
        assert!(!junk.starts_with("HTTP/1.1 2"), "{junk}");
        fake.looks_at(Some(address));
        has_certificate(&server, &fake, 1).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_authoritys_handshake_is_answered() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::System);
    let fake = FakeAcme::start("tls-alpn-01", clock.clone()).await;
    let server = TestServer::start_at(folder.path(), &configuration(&fake, "tls-alpn-01"), clock.clone()).await;
    let address = responder(&server);
    let shakes_hands = async |name: &'static str, protocols: &[&[u8]]| {
        let mut config = any_certificate();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let stream = TcpStream::connect(address).await.unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(ServerName::try_from(name).unwrap(), stream).await.is_ok()
    };
    let acme: &[&[u8]] = &[b"acme-tls/1"];
    let others: [&[&[u8]]; 2] = [&[], &[b"h2", b"http/1.1"]];
    until("the authority is about to look", async || fake.seen().challenges == 1).await;
    assert!(shakes_hands(HOSTNAME, acme).await);
    assert!(!shakes_hands("other.home.test", acme).await);
    for protocols in others {
        assert!(!shakes_hands(HOSTNAME, protocols).await, "{protocols:?}");
    }
    fake.looks_at(Some(address));
    has_certificate(&server, &fake, 1).await;
    assert!(!shakes_hands(HOSTNAME, acme).await, "the order is over");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_renewed_at_two_thirds_of_its_life_by_the_same_account() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::manual(now()));
    let fake = FakeAcme::start("http-01", clock.clone()).await;
    let server = start(folder.path(), &fake, "http-01", &clock).await;
    let first = has_certificate(&server, &fake, 1).await;
    let mut early = session(server.submission).await;
    clock.advance(57 * DAY);
    // A whole second of looks, in which nothing is due.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!((fake.seen().orders, shown(&server).await), (1, first));
    clock.advance(5 * DAY);
    has_certificate(&server, &fake, 2).await;
    early.write_all(b"NOOP\r\n").await.unwrap();
    assert!(reply(&mut early).await.starts_with("250 "));
    assert_eq!((fake.seen().accounts, fake.seen().wrongs), (1, Vec::new()));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_keeps_the_certificate_is_told_and_tried_again_later() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::manual(now()));
    let fake = FakeAcme::start("http-01", clock.clone()).await;
    let server = start(folder.path(), &fake, "http-01", &clock).await;
    let first = has_certificate(&server, &fake, 1).await;
    let faults = [
        (Fault::Challenge, "could not see by http-01 that mail.home.test is ours: the name leads elsewhere"),
        (Fault::OtherKey, "a certificate that cannot be used"),
        (Fault::OtherName, "a certificate that is not for mail.home.test"),
        (Fault::Nonsense, "answers 502 Bad Gateway to"),
    ];
    // Until the next order is due: at first the renewal, then an hour after the first failure, then two, four, eight.
    let mut wait = 62 * DAY;
    for (count, (fault, said)) in (1..).zip(faults) {
        fake.will(fault);
        clock.advance(wait);
        has_failed(&server, count).await;
        assert_eq!(shown(&server).await, first, "the old one stays");
        let warned = warnings(folder.path(), &fake, "http-01");
        assert!(warned.contains(said) && warned.contains(&format!("{count} in a row")), "{warned}");
        clock.advance((HOUR << (count - 1)) - 1);
        tokio::time::sleep(Duration::from_millis(1200)).await;
        assert_eq!(fake.seen().orders as u64, count + 1, "not before its time");
        wait = 1;
    }
    clock.advance(wait);
    has_certificate(&server, &fake, 4).await;
    until("nothing is warned of", async || warnings(folder.path(), &fake, "http-01").is_empty()).await;
    assert_eq!((fake.seen().accounts, fake.seen().wrongs), (1, Vec::new()));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_nonce_and_a_forgotten_account_are_made_good_at_once() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::System);
    let fake = FakeAcme::start("http-01", clock.clone()).await;
    for _ in 0..2 {
        fake.will(Fault::BadNonce);
    }
    fake.will(Fault::NoAccount);
    let server = start(folder.path(), &fake, "http-01", &clock).await;
    has_certificate(&server, &fake, 1).await;
    assert_eq!((fake.seen().accounts, fake.seen().orders, fake.seen().wrongs), (2, 2, Vec::new()));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_authority_says_of_the_rate_holds_across_a_restart() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::manual(now()));
    let fake = FakeAcme::start("http-01", clock.clone()).await;
    fake.will(Fault::RateLimited(3 * 3600));
    let server = start(folder.path(), &fake, "http-01", &clock).await;
    has_failed(&server, 1).await;
    assert!(warnings(folder.path(), &fake, "http-01").contains("too many orders (rateLimited)"));
    server.stop().await;
    clock.advance(2 * HOUR);
    let server = start(folder.path(), &fake, "http-01", &clock).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(fake.seen().orders, 1);
    clock.advance(HOUR);
    has_certificate(&server, &fake, 1).await;
    assert_eq!(fake.seen().orders, 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_starts_again_and_again_does_not_order_again_and_again() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::manual(now()));
    let fake = FakeAcme::start("http-01", clock.clone()).await;
    for round in 1..=5 {
        fake.will(Fault::Challenge);
        let server = start(folder.path(), &fake, "http-01", &clock).await;
        if round <= 3 {
            has_failed(&server, 1).await;
        } else {
            tokio::time::sleep(Duration::from_millis(1200)).await;
        }
        server.stop().await;
    }
    assert_eq!((fake.seen().orders, fake.seen().accounts), (3, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_a_stop_has_broken_off_is_begun_anew() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::System);
    let fake = FakeAcme::start("http-01", clock.clone()).await;
    fake.will(Fault::Stalls);
    let server = start(folder.path(), &fake, "http-01", &clock).await;
    until("the order is nearly done", async || fake.seen().certificates.len() == 1).await;
    server.stop().await;
    // As a crash would leave it.
    let kept = folder.path().join("tls/acme");
    let account = std::fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path());
    let account = account.into_iter().find(|path| path.to_string_lossy().ends_with(".account.json")).unwrap();
    std::fs::write(account.with_extension("new"), "{\"half").unwrap();
    let server = start(folder.path(), &fake, "http-01", &clock).await;
    has_certificate(&server, &fake, 2).await;
    assert_eq!((fake.seen().accounts, fake.seen().orders, fake.seen().wrongs), (1, 2, Vec::new()));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_contact_is_told_to_the_authority_with_the_next_order() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::manual(now()));
    let fake = FakeAcme::start("http-01", clock.clone()).await;
    let server = start(folder.path(), &fake, "http-01", &clock).await;
    has_certificate(&server, &fake, 1).await;
    server.stop().await;
    clock.advance(62 * DAY);
    fake.looks_at(None);
    let text = configuration(&fake, "http-01").replace("ops@", "root@");
    let server = TestServer::start_at(folder.path(), &text, clock.clone()).await;
    fake.looks_at(Some(responder(&server)));
    has_certificate(&server, &fake, 2).await;
    assert_eq!(fake.seen().contacts, ["mailto:ops@home.test", "mailto:root@home.test"]);
    assert_eq!((fake.seen().accounts, fake.seen().wrongs), (1, Vec::new()));
    server.stop().await;
}

/// The whole program against an authority under TLS: the system's roots decide whether it is believed.
struct Child {
    process: std::process::Child,
    folder: tempfile::TempDir,
}

impl Child {
    fn start(fake: &FakeAcme, roots: &Path) -> Child {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("postrider.toml");
        let text = format!(
            "hostname = \"{HOSTNAME}\"\ndata_dir = \"{}\"\n[listeners.submission]\nrole = \"submission\"\n\
             bind = [\"127.0.0.1:0\"]\n[queue]\nmin_free = \"1MiB\"\n{}",
            folder.path().join("data").display(),
            configuration(fake, "http-01")
        );
        std::fs::write(&file, text).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_postrider"));
        command.args(["serve", "--config"]).arg(&file).env("SSL_CERT_FILE", roots).env_remove("SSL_CERT_DIR");
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let process = command.stdin(std::process::Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Child { process: process.spawn().unwrap(), folder }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// From `listening name="submission" … address=127.0.0.1:2525`.
    fn address(&self, name: &str) -> Option<SocketAddr> {
        let log = self.log();
        let line = log.lines().find(|line| line.contains("listening") && line.contains(name))?;
        line.split("address=").nth(1)?.split_whitespace().next()?.parse().ok()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_under_tls_is_believed_by_the_systems_roots_only() {
    let fake = FakeAcme::start_https("http-01", Clock::System).await;
    let folder = tempfile::tempdir().unwrap();
    let (good, other) = (folder.path().join("good.pem"), folder.path().join("other.pem"));
    std::fs::write(&good, support::authority::pem_chain(std::slice::from_ref(&fake.authority.certificate))).unwrap();
    let stranger = support::authority::Authority::new();
    std::fs::write(&other, support::authority::pem_chain(std::slice::from_ref(&stranger.certificate))).unwrap();

    let child = Child::start(&fake, &other);
    until("it is told that the authority is not believed", async || {
        let log = child.log();
        log.contains("no certificate from the authority (tls.acme)") && log.contains("invalid peer certificate")
    })
    .await;
    drop(child);
    assert_eq!(fake.seen().accounts, 0);

    let child = Child::start(&fake, &good);
    let listens = async || ["submission", "tls.acme"].iter().all(|name| child.address(name).is_some());
    until("it listens", listens).await;
    let address = child.address("submission").unwrap();
    fake.looks_at(Some(child.address("tls.acme").unwrap()));
    until("the certificate is shown", async || {
        let given = fake.seen().certificates;
        given.len() == 1 && certificate(&session(address).await) == given[0]
    })
    .await;
    assert_eq!(fake.seen().wrongs, Vec::<String>::new());
}
