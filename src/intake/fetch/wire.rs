//! One connection to a mail server elsewhere: bytes in and out, each wait bounded, TLS where it is asked
//! for, with the certificate checked.
//!
//! Left out: what the bytes mean (`imap`, `pop3`).

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::config::{self, PopTls, Secret};
use crate::dns::{DnsError, Resolver};
use crate::message::Domain;
use crate::trail::{Leg, Trail, description, holder};

/// For each address of a server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// For each read and write, and a TLS handshake.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of one read.
const READ_BYTES: usize = 32 * 1024;

/// Why a mailbox cannot be read, or not any further now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The network, TLS, a time-out, a connection that broke.
    #[error("{0}")]
    Connection(String),
    #[error("the login was refused: {0}")]
    Login(String),
    /// What the server says cannot be understood, or it cannot do what is needed.
    #[error("{0}")]
    Protocol(String),
    /// The answer to one command was no; the connection is good.
    #[error("{0}")]
    Refused(String),
    /// Trouble of our own.
    #[error("{0}")]
    Ours(String),
    /// This server is about to end.
    #[error("the server stopped")]
    Stopped,
}

impl Trouble {
    pub fn connection(what: impl Into<String>) -> Trouble {
        Trouble::Connection(what.into())
    }

    pub fn protocol(what: impl Into<String>) -> Trouble {
        Trouble::Protocol(what.into())
    }
}

/// Either end of a pipe that can be read and written.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// What a [`TokenSource`] does in its own time.
pub type Asked<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Gives OAuth 2 tokens for mailboxes.
pub trait TokenSource: Send + Sync {
    /// One for this account, or why there is none.
    fn token<'a>(&'a self, name: &'a str, account: &'a config::Fetch) -> Asked<'a, Result<Secret, String>>;
    /// The server has refused it. True: another one may do.
    fn refused<'a>(&'a self, name: &'a str, account: &'a config::Fetch, token: &'a Secret) -> Asked<'a, bool>;
}

/// The means to get there.
#[derive(Clone)]
pub struct Ways {
    pub resolver: Resolver,
    /// What checks certificates, or why there is none.
    pub tls: Result<TlsConnector, String>,
    /// Where the way is noted; none but for a test.
    pub trail: Option<Trail>,
    /// None: mailboxes that take tokens cannot be read.
    pub tokens: Option<Arc<dyn TokenSource>>,
}

impl Ways {
    pub(super) fn mark(&self, leg: Leg, since: Instant, what: impl Into<String>) {
        if let Some(trail) = &self.trail {
            trail.mark(leg, since, what);
        }
    }
}

impl std::fmt::Debug for Ways {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ways")
    }
}

/// A connection.
pub struct Wire {
    stream: Box<dyn Io>,
    /// What was read and is not understood yet.
    pub input: BytesMut,
}

impl Wire {
    pub fn new(stream: impl Io + 'static) -> Wire {
        Wire { stream: Box::new(stream), input: BytesMut::new() }
    }

    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        let written = timeout(STEP_TIMEOUT, async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        });
        match written.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Trouble::connection(format!("the connection broke: {error}"))),
            Err(_) => Err(waited("to take what we sent")),
        }
    }

    /// Reads on; at least one byte more is in `input` on return.
    pub async fn fill(&mut self) -> Result<(), Trouble> {
        self.input.reserve(READ_BYTES);
        match timeout(STEP_TIMEOUT, self.stream.read_buf(&mut self.input)).await {
            Ok(Ok(0)) => Err(Trouble::connection("the server closed the connection")),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Trouble::connection(format!("the connection broke: {error}"))),
            Err(_) => Err(waited("for an answer")),
        }
    }

    /// What came in clear before the handshake may be from anybody (RFC 2595 2.4), so there may be nothing.
    pub async fn start_tls(self, ways: &Ways, host: &str) -> Result<Wire, Trouble> {
        let broken = |why: &str| Trouble::connection(format!("{host} has no TLS that can be trusted: {why}"));
        if !self.input.is_empty() {
            return Err(broken("it went on in clear"));
        }
        let connector = ways.tls.as_ref().map_err(|why| broken(why))?;
        let name = ServerName::try_from(host.to_owned()).map_err(|error| broken(&error.to_string()))?;
        let since = Instant::now();
        match timeout(STEP_TIMEOUT, connector.connect(name, self.stream)).await {
            Ok(Ok(stream)) => {
                let session = stream.get_ref().1;
                ways.mark(Leg::Tls, since, format!("{}, {}", description(session), holder(session)));
                Ok(Wire::new(stream))
            }
            Ok(Err(error)) => Err(broken(&error.to_string())),
            Err(_) => Err(waited("for the TLS handshake")),
        }
    }
}

fn waited(what: &str) -> Trouble {
    Trouble::connection(format!("waited {what} for {} s in vain", STEP_TIMEOUT.as_secs()))
}

/// The first address that answers; under TLS already where that is implicit.
pub async fn connect(ways: &Ways, account: &config::Fetch) -> Result<Wire, Trouble> {
    let mut last = "it has no address".to_owned();
    let since = Instant::now();
    let found = addresses(ways, &account.host).await?;
    let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
    if !shown.is_empty() {
        ways.mark(Leg::Dns, since, format!("{} is at {}", account.host, shown.join(", ")));
    }
    for ip in found {
        let since = Instant::now();
        match timeout(CONNECT_TIMEOUT, TcpStream::connect((ip, account.port))).await {
            Ok(Ok(stream)) => {
                ways.mark(Leg::Connect, since, format!("connected to {}", SocketAddr::new(ip, account.port)));
                if account.tls == PopTls::Off && !ip.to_canonical().is_loopback() {
                    return Err(Trouble::connection(format!("{ip} is not this machine, and tls is \"off\"")));
                }
                let wire = Wire::new(stream);
                return match account.tls {
                    PopTls::Implicit => wire.start_tls(ways, &account.host).await,
                    PopTls::Required | PopTls::Off => Ok(wire),
                };
            }
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => last = format!("no answer in {} s", CONNECT_TIMEOUT.as_secs()),
        }
    }
    Err(Trouble::connection(format!("{}:{} cannot be connected to: {last}", account.host, account.port)))
}

/// Who names a host by hand may name one of his own network.
async fn addresses(ways: &Ways, host: &str) -> Result<Vec<IpAddr>, Trouble> {
    if host == "localhost" {
        // RFC 6761 6.3: not a question for a name server.
        return Ok(vec![IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)]);
    }
    if let Ok(ip) = host.parse() {
        return Ok(vec![ip]);
    }
    let domain = Domain::parse(host).map_err(|error| Trouble::connection(format!("{host}: {error}")))?;
    match ways.resolver.addresses(&domain).await {
        Ok(found) => Ok(found),
        Err(DnsError::NoSuchDomain) => Err(Trouble::connection(format!("there is no host named {host}"))),
        Err(error) => Err(Trouble::connection(format!("the address of {host} is not known: {error}"))),
    }
}
