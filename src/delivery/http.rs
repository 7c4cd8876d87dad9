//! What all our HTTP requests share: a client that trusts the system's authorities and follows nothing,
//! and careful reading of what servers answer.
//!
//! Names are resolved by the system, so `/etc/hosts` counts. Where a client is made for one URL ([`client_for`]), the
//! addresses that a name leads to are checked, and those that were checked are connected to: the owner of a domain
//! cannot make us knock at doors of our own network by what DNS says the second time.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, Response, Url};
use tokio_rustls::rustls;

use crate::clock::Millis;
use crate::dns::by_system;
use crate::message::ip::{is_plainly_own, is_private, refused};
use crate::message::text::steers;

/// Seconds; a longer Retry-After is cut to this.
pub const RETRY_AFTER_SECS_MAX: u64 = 24 * 3600;

/// Why there is no client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    #[error("no certificate authorities are known to this system ({0}); install ca-certificates")]
    NoRoots(String),
    #[error("the HTTP client could not be made: {0}")]
    Client(String),
}

/// `with_tls`: the system's certificate authorities are read; without them plain HTTP works where there
/// are none.
pub fn client(with_tls: bool) -> Result<Client, ClientError> {
    build(builder(with_tls)?)
}

/// For this URL, which the administrator wrote. An address that stands in it was checked when it was read; a name leads
/// to public addresses only, unless it is itself one of an own network ([`is_private`]) or `allow_private` (as
/// `delivery.allow_private_addresses`).
pub fn client_for(url: &Url, allow_private: bool) -> Result<Client, ClientError> {
    build(builder(url.scheme() == "https")?.dns_resolver(Arc::new(Checked { allow_private })))
}

fn build(builder: reqwest::ClientBuilder) -> Result<Client, ClientError> {
    builder.build().map_err(|error| ClientError::Client(innermost(&error)))
}

fn builder(with_tls: bool) -> Result<reqwest::ClientBuilder, ClientError> {
    Ok(Client::builder()
        .tls_backend_preconfigured(tls_config(with_tls)?)
        .user_agent(concat!("postrider/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .no_proxy())
}

/// Of the addresses behind a name those that may be connected to.
pub fn usable(name: &str, found: &[IpAddr], allow_private: bool) -> Result<Vec<IpAddr>, String> {
    let is_own = is_private(name);
    let why_not = |ip: IpAddr| refused(ip, allow_private).filter(|reason| !(is_own && is_plainly_own(ip, *reason)));
    let usable: Vec<IpAddr> = found.iter().copied().filter(|ip| why_not(*ip).is_none()).collect();
    match found.first().and_then(|ip| Some((ip, why_not(*ip)?))) {
        Some((ip, reason)) if usable.is_empty() => Err(format!(
            "{name} leads to {ip}, a {} address; write the address itself into the URL if that is meant, or set \
             delivery.allow_private_addresses = true",
            reason.kind()
        )),
        _ => Ok(usable),
    }
}

/// What was checked is what is connected to.
struct Checked {
    allow_private: bool,
}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let found = by_system(name.as_str()).await?;
            let usable = usable(name.as_str(), &found, allow_private)?;
            Ok(Box::new(usable.into_iter().map(|ip| SocketAddr::new(ip, 0))) as Addrs)
        })
    }
}

fn tls_config(with_tls: bool) -> Result<rustls::ClientConfig, ClientError> {
    let mut roots = rustls::RootCertStore::empty();
    if with_tls {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            let why = found.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
            return Err(ClientError::NoRoots(why));
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| ClientError::Client(error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The cause that says most: reqwest's own text repeats the URL, secrets included.
pub fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    if std::ptr::addr_eq(cause, error) { "the request could not be made".to_owned() } else { cause.to_string() }
}

/// RFC 9110 10.2.3: seconds, or a date.
pub fn retry_after(headers: &HeaderMap, now: Millis) -> Option<u64> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = match value.parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) if value.bytes().all(|b| b.is_ascii_digit()) => RETRY_AFTER_SECS_MAX,
        Err(_) => {
            let date = mail_parser::DateTime::parse_rfc822(value).filter(mail_parser::DateTime::is_valid)?;
            u64::try_from(date.to_timestamp()).ok()?.saturating_sub(now / 1000)
        }
    };
    Some(seconds.min(RETRY_AFTER_SECS_MAX))
}

/// The first `most` bytes of an answer, or what came of them.
pub async fn beginning(response: &mut Response, most: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        bytes.extend(chunk.iter().take(most - bytes.len()));
        if bytes.len() >= most {
            break;
        }
    }
    bytes
}

/// As a piece of a sentence: one line, nothing that controls a terminal.
pub fn one_line(bytes: &[u8], chars_max: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let words: Vec<_> = text.split(|c: char| steers(c) || c.is_whitespace()).filter(|w| !w.is_empty()).collect();
    words.join(" ").chars().take(chars_max).collect()
}
