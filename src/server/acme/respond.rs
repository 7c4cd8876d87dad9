//! Answers the authority's question whether a name is ours, and nobody else's about anything.
//!
//! http-01 (RFC 8555 8.3): plain HTTP that knows one path while an order runs, and 404 for all else.
//! tls-alpn-01 (RFC 8737): a handshake for the protocol `acme-tls/1` with a certificate that carries the answer;
//! other handshakes fail.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::http::{Method, Request, Response, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};

use crate::config::{Acme, AcmeChallenge, Config};
use crate::message::Domain;
use crate::server::listener::{BindError, bind_for};

const PATH: &str = "/.well-known/acme-challenge/";
/// RFC 8737 6.2
const PROTOCOL: &[u8] = b"acme-tls/1";
/// Connections at once. Authorities look from a few places at the same time.
const CONNECTIONS_MAX: usize = 64;
/// For one connection.
const CONNECTION_TIME: Duration = Duration::from_secs(10);
/// Octets of a request's head.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Between two tries where the system has no resources for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is answered while an order runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers(Arc<Mutex<Option<Answer>>>);

enum Answer {
    Http { token: String, text: String },
    Tls { name: String, pair: Arc<CertifiedKey> },
}

/// Who knows the text could answer in our place.
impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer")
    }
}

impl Answers {
    fn set(&self, answer: Option<Answer>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }

    pub fn clear(&self) {
        self.set(None);
    }

    pub fn set_http(&self, token: &str, text: &str) {
        self.set(Some(Answer::Http { token: token.to_owned(), text: text.to_owned() }));
    }

    /// `digest`: SHA-256 of the text that http-01 would show.
    pub fn set_tls(&self, name: &Domain, digest: &[u8]) -> Result<(), String> {
        let pair = challenge_pair(name, digest)?;
        self.set(Some(Answer::Tls { name: name.to_string(), pair: Arc::new(pair) }));
        Ok(())
    }

    fn http(&self, path: &str) -> Option<String> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(Answer::Http { token, text }) if path.strip_prefix(PATH) == Some(token) => Some(text.clone()),
            _ => None,
        }
    }
}

impl ResolvesServerCert for Answers {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_asked = hello.alpn().is_some_and(|mut protocols| protocols.any(|protocol| protocol == PROTOCOL));
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(Answer::Tls { name, pair })
                if is_asked && hello.server_name().is_some_and(|asked| asked.eq_ignore_ascii_case(name)) =>
            {
                Some(pair.clone())
            }
            _ => None,
        }
    }
}

/// RFC 8737 3: self-signed, for the one name, with the digest in an extension.
fn challenge_pair(name: &Domain, digest: &[u8]) -> Result<CertifiedKey, String> {
    let text = |error: rcgen::Error| error.to_string();
    let key = KeyPair::generate().map_err(text)?;
    let mut params = CertificateParams::new(vec![name.to_string()]).map_err(text)?;
    let digest: &[u8; 32] = digest.try_into().map_err(|_| "a digest of another length".to_owned())?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key).map_err(text)?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(str::to_owned)?;
    // Not through what checks that the two belong together: that does not know the extension.
    let key = aws_lc_rs::default_provider().key_provider.load_private_key(key).map_err(|error| error.to_string())?;
    Ok(CertifiedKey::new(vec![certificate.der().clone()], key))
}

/// The socket that waits for the authority.
#[derive(Clone, Debug)]
pub struct Responder {
    /// As in the configuration: perhaps with port 0.
    asked: SocketAddr,
    socket: Arc<TcpListener>,
    challenge: AcmeChallenge,
}

impl Responder {
    /// None: `[tls.acme]` is not enabled. Must be called within a tokio runtime.
    pub fn bind(config: &Config) -> Result<Option<Responder>, BindError> {
        let Some(Acme { bind, challenge, .. }) = config.acme else { return Ok(None) };
        let socket = Arc::new(bind_for("tls.acme", bind)?);
        Ok(Some(Responder { asked: bind, socket, challenge }))
    }

    /// As [`Responder::bind`], with the socket of the one before where that does.
    pub fn next(before: Option<&Responder>, config: &Config) -> Result<Option<Responder>, BindError> {
        match (&config.acme, before) {
            (Some(Acme { bind, challenge, .. }), Some(before)) if before.asked == *bind => {
                Ok(Some(Responder { challenge: *challenge, ..before.clone() }))
            }
            _ => Responder::bind(config),
        }
    }

    /// With the port that the system chose, if port 0 was asked for.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    pub(super) async fn serve(self, answers: Answers) {
        let acceptor = match tls_config(&answers) {
            Ok(config) => TlsAcceptor::from(Arc::new(config)),
            Err(error) => return tracing::error!(%error, "tls.acme: TLS cannot be set up"),
        };
        let mut connections = JoinSet::new();
        loop {
            while connections.len() >= CONNECTIONS_MAX {
                connections.join_next().await;
            }
            while connections.try_join_next().is_some() {}
            let Ok((stream, _)) = self.socket.accept().await else {
                sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let (answers, acceptor, challenge) = (answers.clone(), acceptor.clone(), self.challenge);
            connections.spawn(timeout(CONNECTION_TIME, async move {
                match challenge {
                    AcmeChallenge::Http01 => answer_http(stream, answers).await,
                    AcmeChallenge::TlsAlpn01 => shake_hands(stream, acceptor).await,
                }
            }));
        }
    }
}

fn tls_config(answers: &Answers) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(answers.clone()));
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// What a client that goes away in the middle has heard is its own business.
async fn answer_http(stream: TcpStream, answers: Answers) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = respond(&request, &answers);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).keep_alive(false).max_buf_size(HEAD_BYTES_MAX);
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

fn respond(request: &Request<Incoming>, answers: &Answers) -> Response<Full<Bytes>> {
    let is_reading = matches!(*request.method(), Method::GET | Method::HEAD);
    let text = answers.http(request.uri().path()).filter(|_| is_reading);
    let status = if text.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
    let mut response = Response::new(Full::new(Bytes::from(text.unwrap_or_default())));
    *response.status_mut() = status;
    let kind = hyper::http::HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    response
}

/// The handshake is all that there is.
async fn shake_hands(stream: TcpStream, acceptor: TlsAcceptor) {
    if let Ok(mut stream) = acceptor.accept(stream).await {
        let _ = stream.shutdown().await;
    }
}
