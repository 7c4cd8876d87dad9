//! Far ends for delivery tests: servers that play a script, on free loopback ports.
//!
//! A script is what a server says (`S:`) and what it expects to hear (`C:`), line by line:
//!
//! ```text
//! # a comment
//! S: 220 mx.far.test ESMTP       a line, with CRLF; directly following ones are sent together
//! S> 250 a\r\n250 b\r\n          bytes, with \r \n \0 \\ \xNN
//! S* 250-x 16384                 a line, so many times
//! C: EHLO mail.own.test          exactly this line; "..." at its end stands for any rest
//! quiet                          the client has not sent anything yet
//! content                        DATA content up to CRLF.CRLF: unstuffed and kept
//! octets 1000                    so many octets of content, thrown away
//! starttls                       a TLS handshake with a self-signed certificate; at the very start: implicit TLS
//! unfinished                     the same, but the client breaks it off
//! garble                         reads the client's TLS hello and answers with nonsense
//! drop                           closes the connection
//! stall                          says nothing more until the client leaves
//! gone                           the client closes the connection
//! ---                            the next connection to the same address
//! ```
//!
//! `tests/misbehaviour.rs` plays a script through the whole server if it states what that shall lead to:
//!
//! ```text
//! #! one@far.test deferred 4.4.2, next 1m, no notice      a recipient: outcome, next try, what the sender is told
//! #! two@far.test failed 5.1.1, notice failed
//! #! notify success              of all recipients; or: never
//! #! long                        a message that no buffer takes whole
//! #! impatient                   short time-outs for the greeting and the reply to the message
//! ===                            the next far end: a mail exchanger of lower preference
//! ```
//!
//! After the last connection nobody listens any more. Several far ends share one port and differ in
//! their address (127.0.0.1, 127.0.0.2 …), because MX has no port.
//! Include it with `#[path = "support/remote.rs"] mod remote;`.

#![allow(dead_code, reason = "each test crate uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A far end that hears nothing for so long has been left alone: the test fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(30);

/// What one far end received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Connections that were played.
    pub connections: usize,
    /// Contents, without stuffing and final dot.
    pub contents: Vec<Vec<u8>>,
}

/// Far ends at work.
pub struct Remotes {
    pub port: u16,
    /// What all of them show under TLS: a certificate for somebody.else.test that is its own authority.
    pub certificate: CertificateDer<'static>,
    players: Vec<JoinHandle<Result<Received, String>>>,
}

impl Remotes {
    /// One far end per script: the first at 127.0.0.1, the second at 127.0.0.2 …
    pub async fn play(scripts: &[&str]) -> Remotes {
        Remotes::play_with(scripts, acceptor()).await
    }

    /// All of them show this certificate.
    pub async fn play_as(scripts: &[&str], config: ServerConfig, certificate: CertificateDer<'static>) -> Remotes {
        Remotes::play_with(scripts, (TlsAcceptor::from(Arc::new(config)), certificate)).await
    }

    async fn play_with(scripts: &[&str], shown: (TlsAcceptor, CertificateDer<'static>)) -> Remotes {
        let listeners = listen(scripts.len()).await;
        let port = listeners[0].local_addr().unwrap().port();
        let (acceptor, certificate) = shown;
        let play = |(script, listener): (&&str, TcpListener)| {
            let connections = script.split("\n---\n").map(str::to_owned).collect();
            tokio::spawn(serve(connections, listener, acceptor.clone()))
        };
        Remotes { port, certificate, players: scripts.iter().zip(listeners).map(play).collect() }
    }

    /// Waits until all scripts are played out; complains about what the client did otherwise.
    pub async fn finish(self) -> Vec<Received> {
        let mut received = Vec::new();
        for (number, player) in self.players.into_iter().enumerate() {
            match player.await.unwrap() {
                Ok(one) => received.push(one),
                Err(complaint) => panic!("far end {}: {complaint}", number + 1),
            }
        }
        received
    }
}

/// So many listeners on one port that is free at all their addresses.
async fn listen(count: usize) -> Vec<TcpListener> {
    'ports: loop {
        let mut listeners = vec![TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()];
        let port = listeners[0].local_addr().unwrap().port();
        for number in 1..count {
            let address = SocketAddr::from(([127, 0, 0, 1 + number as u8], port));
            match TcpListener::bind(address).await {
                Ok(listener) => listeners.push(listener),
                Err(_) => continue 'ports,
            }
        }
        return listeners;
    }
}

fn acceptor() -> (TlsAcceptor, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(vec!["somebody.else.test".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), made.cert.der().clone())
}

async fn serve(connections: Vec<String>, listener: TcpListener, acceptor: TlsAcceptor) -> Result<Received, String> {
    let mut received = Received::default();
    let mut listener = Some(listener);
    let last = connections.len();
    for (number, script) in connections.iter().enumerate() {
        let accept = listener.as_ref().unwrap().accept();
        let (stream, _) =
            timeout(PATIENCE, accept).await.map_err(|_| format!("connection {number} never came"))?.unwrap();
        if number + 1 == last {
            listener = None;
        }
        stream.set_nodelay(true).unwrap();
        let mut player = Player { stream: Stream::Plain(stream), heard: Vec::new(), acceptor: acceptor.clone() };
        let played = player.play(script, &mut received).await;
        played.map_err(|complaint| format!("connection {}: {complaint}", number + 1))?;
        received.connections += 1;
    }
    Ok(received)
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    Closed,
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

struct Player {
    stream: Stream,
    /// Read and not used yet.
    heard: Vec<u8>,
    acceptor: TlsAcceptor,
}

impl Player {
    async fn play(&mut self, script: &str, received: &mut Received) -> Result<(), String> {
        let lines = script.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut pending = Vec::new();
        for line in lines {
            if let Some(text) = line.strip_prefix("S: ") {
                pending.extend_from_slice(format!("{text}\r\n").as_bytes());
                continue;
            }
            // Written even if the client has left: what it makes of the rest is checked elsewhere.
            self.write(&std::mem::take(&mut pending)).await;
            match line.split_once(' ').unwrap_or((line, "")) {
                ("S>", text) => self.write(&unescape(text)).await,
                ("S*", text) => {
                    let (text, count) = text.rsplit_once(' ').unwrap();
                    self.write(format!("{text}\r\n").repeat(count.parse().unwrap()).as_bytes()).await;
                }
                ("C:", expected) => self.expect(expected).await?,
                ("quiet", _) => self.expect_quiet()?,
                ("content", _) => received.contents.push(self.content().await?),
                ("octets", count) => self.skip(count.parse().unwrap()).await?,
                ("starttls", _) => self.start_tls().await?,
                ("unfinished", _) => match self.start_tls().await {
                    Ok(()) => return Err("the client went through with the TLS handshake".to_owned()),
                    Err(_) => self.stream = Stream::Closed,
                },
                ("garble", _) => {
                    self.fill().await?;
                    self.heard.clear();
                    self.write(b"this is not TLS\r\n").await;
                }
                ("drop", _) => self.stream = Stream::Closed,
                ("stall" | "gone", _) => self.expect_end().await?,
                _ => panic!("what is {line:?}?"),
            }
        }
        self.write(&pending).await;
        Ok(())
    }

    fn io(&mut self) -> Result<&mut dyn Io, String> {
        match &mut self.stream {
            Stream::Plain(stream) => Ok(stream),
            Stream::Tls(stream) => Ok(stream),
            Stream::Closed => Err("the script goes on after the connection is closed".to_owned()),
        }
    }

    async fn write(&mut self, bytes: &[u8]) {
        if let (false, Ok(io)) = (bytes.is_empty(), self.io()) {
            let _ = io.write_all(bytes).await;
            let _ = io.flush().await;
        }
    }

    /// Reads something; false at the end of the stream.
    async fn fill(&mut self) -> Result<bool, String> {
        let mut buffer = [0; 65536];
        let read = timeout(PATIENCE, self.io()?.read(&mut buffer)).await;
        let heard = String::from_utf8_lossy(self.heard.get(..200).unwrap_or(&self.heard));
        let count = read.map_err(|_| format!("waited in vain after {heard:?}"))?.unwrap_or(0);
        self.heard.extend_from_slice(&buffer[..count]);
        Ok(count > 0)
    }

    async fn expect(&mut self, expected: &str) -> Result<(), String> {
        loop {
            if let Some(end) = self.heard.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.heard.drain(..end + 2).collect();
                let line = String::from_utf8_lossy(&line[..end]).into_owned();
                let fits = match expected.strip_suffix("...") {
                    Some(start) => line.starts_with(start),
                    None => line == expected,
                };
                return if fits { Ok(()) } else { Err(format!("expected {expected:?}, heard {line:?}")) };
            }
            if !self.fill().await? {
                return Err(format!("expected {expected:?}, but the client left"));
            }
        }
    }

    fn expect_quiet(&mut self) -> Result<(), String> {
        let Stream::Plain(stream) = &mut self.stream else { panic!("quiet is for connections in clear") };
        let mut buffer = [0; 1024];
        let count = stream.try_read(&mut buffer).unwrap_or(0);
        self.heard.extend_from_slice(&buffer[..count]);
        let heard = String::from_utf8_lossy(&self.heard);
        if heard.is_empty() { Ok(()) } else { Err(format!("expected silence, heard {heard:?}")) }
    }

    async fn expect_end(&mut self) -> Result<(), String> {
        let before = self.heard.len();
        while self.fill().await? {}
        let heard = String::from_utf8_lossy(&self.heard[before..]).into_owned();
        if heard.is_empty() { Ok(()) } else { Err(format!("expected the end, heard {heard:?}")) }
    }

    async fn content(&mut self) -> Result<Vec<u8>, String> {
        let mut searched = 0;
        let end = loop {
            if self.heard.starts_with(b".\r\n") {
                break 0;
            }
            if let Some(at) = self.heard[searched..].windows(5).position(|five| five == b"\r\n.\r\n") {
                break searched + at + 2;
            }
            searched = self.heard.len().saturating_sub(4);
            if !self.fill().await? {
                return Err("the client left in the middle of the content".to_owned());
            }
        };
        let stuffed: Vec<u8> = self.heard.drain(..end).collect();
        self.heard.drain(..3);
        let unstuff = |line: &[u8]| line.strip_prefix(b".").unwrap_or(line).to_vec();
        Ok(stuffed.split_inclusive(|byte| *byte == b'\n').flat_map(unstuff).collect())
    }

    async fn skip(&mut self, count: usize) -> Result<(), String> {
        while self.heard.len() < count {
            if !self.fill().await? {
                return Err("the client left in the middle of the content".to_owned());
            }
        }
        self.heard.drain(..count);
        Ok(())
    }

    async fn start_tls(&mut self) -> Result<(), String> {
        let Stream::Plain(stream) = std::mem::replace(&mut self.stream, Stream::Closed) else {
            panic!("TLS in TLS");
        };
        let stream = timeout(PATIENCE, self.acceptor.accept(stream)).await.map_err(|_| "no TLS handshake came")?;
        self.stream = Stream::Tls(Box::new(stream.map_err(|error| format!("TLS handshake: {error}"))?));
        Ok(())
    }
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        match rest.next().unwrap() {
            b'r' => bytes.push(b'\r'),
            b'n' => bytes.push(b'\n'),
            b'0' => bytes.push(0),
            b'x' => {
                let hex = [rest.next().unwrap(), rest.next().unwrap()];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
            }
            other => bytes.push(other),
        }
    }
    bytes
}
