//! The real server behind a socket on loopback, set up as a conversation wants it, and a blocking client.
//! Only the rest of the house is a stand-in. The server is told the peer address of the setting, so
//! that clients from elsewhere can be played.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postrider::clock::Clock;
use postrider::config::{Config, Credential, ListenerTls, Role, Secret};
use postrider::message::{Address, Domain, Draft, ReversePath};
use postrider::server::connection::{Arrival, Via, serve};
use postrider::server::outside::{Outside, Shared};
use postrider::server::tls::ServerTls;
use postrider::smtp::Reply;
use postrider::smtp::reply::Refusal;
use tokio::runtime::Runtime;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tokio_util::sync::CancellationToken;

use super::bare::{HOSTNAME, tell};
use super::conversation::{Heard, Setting, Taken, Transport};

#[path = "../../src/server/testing.rs"]
mod testing;

/// Longer than any reply takes; a test that waits so long has failed.
const READ_TIME: Duration = Duration::from_secs(20);

struct House {
    setting: Setting,
    drafts: Mutex<Vec<Draft>>,
}

impl Outside for House {
    fn sender(&self, _: Option<&str>, _: &ReversePath, _: Option<u64>) -> Result<(), Refusal> {
        Ok(())
    }

    fn recipient(
        &self,
        role: Role,
        account: Option<&str>,
        _: &ReversePath,
        (_, recipient): (usize, &Address),
    ) -> Result<(), Refusal> {
        let domain = recipient.domain().as_str();
        let is_ours = domain == HOSTNAME || self.setting.domains.iter().any(|own| own == domain);
        let is_known = self.setting.recipients.contains(&recipient.lookup_key());
        let may_relay = role == Role::Submission && (account.is_some() || self.setting.trusted);
        match (is_ours, is_known || recipient.lookup_local() == "postmaster") {
            (true, true) => Ok(()),
            (true, false) => Err(Refusal::plain(Reply::new(550, (1, 1), "no such address"))),
            (false, _) if may_relay => Ok(()),
            (false, _) => Err(Refusal::plain(Reply::new(550, (7, 1), "relaying denied"))),
        }
    }

    async fn accept(&self, draft: &Draft) -> Result<Reply, Refusal> {
        self.drafts.lock().unwrap().push(draft.clone());
        Ok(Reply::new(250, (0, 0), "queued"))
    }
}

enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    Gone,
}

pub struct Tcp {
    shared: Arc<Shared<House>>,
    certificate: CertificateDer<'static>,
    wire: Wire,
    unread: Vec<u8>,
    config: Arc<Config>,
    /// Ends the server with it.
    runtime: Runtime,
    _folder: tempfile::TempDir,
}

impl Tcp {
    pub fn new(setting: &Setting) -> Tcp {
        let folder = tempfile::tempdir().unwrap();
        let peer: IpAddr = if setting.loopback { [127, 0, 0, 1].into() } else { [192, 0, 2, 7].into() };
        let config = Arc::new(config(setting, peer, folder.path()));
        let tls = ServerTls::load(&config).unwrap();
        let certificate = CertificateDer::from_pem_file(folder.path().join("tls/self-signed.crt")).unwrap();
        let house = House { setting: setting.clone(), drafts: Mutex::default() };
        let shared = Shared::new(config.clone(), tls, house, Clock::System).unwrap();

        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (unread, wire) = (Vec::new(), Wire::Gone);
        let mut tcp = Tcp { shared, certificate, config, wire, unread, runtime, _folder: folder };
        tcp.call(setting, peer);
        tcp
    }

    /// Another connection to the same server, from another address; this one is left.
    pub fn call(&mut self, setting: &Setting, peer: IpAddr) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(READ_TIME)).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        accepted.set_nonblocking(true).unwrap();
        let arrival = Arrival {
            listener: "test".into(),
            role: if setting.role == "submission" { Role::Submission } else { Role::Mx },
            tls: tls_of(setting),
            peer,
            via: Via::Itself,
        };
        let place = self.shared.limits.connect(&self.config, arrival.role, peer, 0).unwrap();
        let session = self.shared.clone();
        self.runtime.spawn(async move {
            let stream = tokio::net::TcpStream::from_std(accepted).unwrap();
            serve(session, arrival, stream, place, CancellationToken::new()).await;
        });
        (self.wire, self.unread) = (Wire::Plain(client), Vec::new());
        if setting.tls == "implicit" {
            self.start_tls();
        }
    }

    /// What there is instead of more bytes.
    fn read_more(&mut self) -> Result<(), Heard> {
        let mut buffer = [0; 4096];
        let read = match &mut self.wire {
            Wire::Plain(stream) => stream.read(&mut buffer),
            Wire::Tls(stream) => stream.read(&mut buffer),
            Wire::Gone => return Err(Heard::Closed),
        };
        match read {
            Ok(0) => Err(Heard::Closed),
            Ok(bytes) => {
                self.unread.extend_from_slice(&buffer[..bytes]);
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Err(Heard::Silence),
            // A reset: the server closed while it was being sent to.
            Err(_) => Err(Heard::Closed),
        }
    }

    fn line(&mut self) -> Result<String, Heard> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|two| two == b"\r\n") {
                let rest = self.unread.split_off(end + 2);
                let mut line = std::mem::replace(&mut self.unread, rest);
                line.truncate(end);
                return Ok(String::from_utf8(line).unwrap());
            }
            if let Err(heard) = self.read_more() {
                assert!(self.unread.is_empty(), "half a line: {:?}", String::from_utf8_lossy(&self.unread));
                return Err(heard);
            }
        }
    }
}

fn tls_of(setting: &Setting) -> ListenerTls {
    match setting.tls.as_str() {
        "opportunistic" => ListenerTls::Opportunistic,
        "required" => ListenerTls::Required,
        "implicit" => ListenerTls::Implicit,
        _ => ListenerTls::Off,
    }
}

fn config(setting: &Setting, peer: IpAddr, folder: &std::path::Path) -> Config {
    let mut config = testing::config(folder);
    config.hostname = Domain::parse(HOSTNAME).unwrap();
    config.limits.max_size = setting.max_size;
    config.limits.max_recipients = setting.max_recipients;
    config.limits.errors_per_session = setting.errors;
    if setting.trusted {
        config.networks.trusted.push(peer.into());
    }
    for account in &setting.accounts {
        let credential = Credential::Password(Secret(account.password.clone()));
        let made =
            postrider::config::Account { max_recipients: account.max_recipients, ..testing::account(credential) };
        config.accounts.insert(account.name.clone(), made);
    }
    config
}

impl Transport for Tcp {
    fn send(&mut self, bytes: &[u8]) {
        // A server that has closed already may take no more; the next reply shows it.
        let _ = match &mut self.wire {
            Wire::Plain(stream) => stream.write_all(bytes),
            Wire::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
            Wire::Gone => Ok(()),
        };
    }

    fn hear(&mut self) -> Heard {
        let mut lines = Vec::new();
        loop {
            let line = match self.line() {
                Ok(line) => line,
                Err(_) if !lines.is_empty() => panic!("half a reply: {lines:?}"),
                Err(heard) => return heard,
            };
            let is_last = line.as_bytes().get(3) != Some(&b'-');
            lines.push(line);
            if is_last {
                return Heard::Reply(lines.join(" "));
            }
        }
    }

    fn start_tls(&mut self) {
        assert!(self.unread.is_empty(), "the server spoke before the handshake");
        let Wire::Plain(stream) = std::mem::replace(&mut self.wire, Wire::Gone) else { panic!("TLS twice") };
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(HOSTNAME).unwrap();
        let connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = StreamOwned::new(connection, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).unwrap();
        }
        self.wire = Wire::Tls(Box::new(stream));
    }

    fn taken(&mut self) -> Vec<Taken> {
        self.shared.outside.drafts.lock().unwrap().drain(..).map(|draft| tell(&draft)).collect()
    }
}
