//! HTTPS to servers that strangers name: where a domain keeps its MTA-STS policy, where it wants its
//! TLS reports.
//!
//! Promises: names are resolved by `dns`, and only addresses that mail may go to are connected to, so
//! that nobody can make us knock at doors of our own network; the certificate is verified; redirects are
//! not followed; time and size of an answer are bounded. The administrator's own URLs are the business
//! of `webhook`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Response, StatusCode, Url};
use tokio::sync::OnceCell;
use tokio_rustls::rustls::{self, RootCertStore};

use super::smtp::{refused, system_roots};
use crate::dns::Resolver;
use crate::message::Domain;

/// From the first packet to the last (RFC 8461 3.3 suggests a minute; mail waits for it).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// The port of the servers that keep policies.
const HTTPS_PORT: u16 = 443;

/// Why there is no answer that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpsError {
    #[error("{0}")]
    Certificate(String),
    #[error("{0}")]
    Unreachable(String),
    #[error("{0}")]
    Answer(String),
}

/// A client. Share it.
pub struct Https {
    resolver: Resolver,
    allow_private: bool,
    /// None: those that the system trusts.
    roots: Option<RootCertStore>,
    port: u16,
    client: OnceCell<Client>,
}

impl std::fmt::Debug for Https {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Https")
    }
}

impl Https {
    /// `allow_private`: as `delivery.allow_private_addresses`.
    pub fn new(resolver: Resolver, allow_private: bool) -> Https {
        Https { resolver, allow_private, roots: None, port: HTTPS_PORT, client: OnceCell::new() }
    }

    /// Other certificate authorities than the system's.
    pub fn with_roots(self, roots: RootCertStore) -> Https {
        Https { roots: Some(roots), ..self }
    }

    /// Another port for what [`Https::get`] asks.
    pub fn with_port(self, port: u16) -> Https {
        Https { port, ..self }
    }

    /// The body at `https://HOST/PATH`, which has to be of the media type and no longer than `bytes_max`.
    pub async fn get(&self, host: &str, path: &str, media_type: &str, bytes_max: usize) -> Result<Vec<u8>, HttpsError> {
        let url = format!("https://{host}:{}{path}", self.port);
        let url = Url::parse(&url).map_err(|error| HttpsError::Answer(format!("{host}: {error}")))?;
        let response = self.client().await?.get(url).send().await.map_err(|error| failure(host, &error))?;
        if response.status() != StatusCode::OK {
            return Err(HttpsError::Answer(format!("{host} answered {}", response.status())));
        }
        let said = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let said = said.split(';').next().unwrap_or_default().trim();
        if !said.eq_ignore_ascii_case(media_type) {
            return Err(HttpsError::Answer(format!("{host} answered with media type {said:?}, not {media_type}")));
        }
        read(host, response, bytes_max).await
    }

    /// Posts to a URL that somebody else wrote. Only https, and only to a host with a name.
    pub async fn post(&self, url: &str, media_type: &str, body: Vec<u8>) -> Result<(), HttpsError> {
        let parsed = Url::parse(url).ok().filter(|url| url.scheme() == "https");
        let parsed = parsed.filter(|url| url.domain().is_some_and(|host| Domain::parse(host).is_ok()));
        let Some(parsed) = parsed else {
            return Err(HttpsError::Answer("it is no https URL with the name of a host".to_owned()));
        };
        let host = parsed.domain().unwrap_or_default().to_owned();
        let request = self.client().await?.post(parsed).header(CONTENT_TYPE, media_type).body(body);
        let response = request.send().await.map_err(|error| failure(&host, &error))?;
        match response.status() {
            status if status.is_success() => Ok(()),
            status => Err(HttpsError::Answer(format!("{host} answered {status}"))),
        }
    }

    async fn client(&self) -> Result<&Client, HttpsError> {
        let made = self.client.get_or_try_init(|| async {
            let roots = match &self.roots {
                Some(roots) => roots.clone(),
                None => tokio::task::spawn_blocking(system_roots).await.map_err(|error| error.to_string())??,
            };
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let tls = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?
                .with_root_certificates(roots)
                .with_no_client_auth();
            let resolve = PublicOnly { resolver: self.resolver.clone(), allow_private: self.allow_private };
            Client::builder()
                .tls_backend_preconfigured(tls)
                .dns_resolver(Arc::new(resolve))
                .user_agent(concat!("postrider/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .referer(false)
                .no_proxy()
                .https_only(true)
                .timeout(REQUEST_TIMEOUT)
                .build()
                .map_err(|error| error.to_string())
        });
        made.await.map_err(HttpsError::Unreachable)
    }
}

async fn read(host: &str, mut response: Response, bytes_max: usize) -> Result<Vec<u8>, HttpsError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| failure(host, &error))? {
        if body.len() + chunk.len() > bytes_max {
            return Err(HttpsError::Answer(format!("{host} answered with more than {bytes_max} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn failure(host: &str, error: &reqwest::Error) -> HttpsError {
    if error.is_timeout() {
        return HttpsError::Unreachable(format!("{host} did not answer within {} s", REQUEST_TIMEOUT.as_secs()));
    }
    let mut cause: &(dyn std::error::Error + 'static) = error;
    loop {
        // An I/O error hides what it is made of from `source`.
        let inner = cause.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref());
        let tls = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()).or_else(|| cause.downcast_ref());
        if let Some(error @ rustls::Error::InvalidCertificate(_)) = tls {
            return HttpsError::Certificate(format!("{host}: {error}"));
        }
        match cause.source() {
            Some(deeper) => cause = deeper,
            None => return HttpsError::Unreachable(format!("{host}: {cause}")),
        }
    }
}

/// Names by our own resolver, and none of the addresses that mail may not go to either.
struct PublicOnly {
    resolver: Resolver,
    allow_private: bool,
}

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let (resolver, allow_private) = (self.resolver.clone(), self.allow_private);
        Box::pin(async move {
            let host = Domain::parse(name.as_str())?;
            let found = resolver.addresses(&host).await?;
            let usable: Vec<SocketAddr> = found
                .into_iter()
                .filter(|ip| refused(*ip, allow_private).is_none())
                .map(|ip| SocketAddr::new(ip, 0))
                .collect();
            if usable.is_empty() {
                return Err(format!("{host} has no address that may be connected to").into());
            }
            Ok(Box::new(usable.into_iter()) as Addrs)
        })
    }
}
