//! What all our HTTP requests share: a client that trusts the system's authorities and follows nothing,
//! and careful reading of what servers answer.
//!
//! Names are resolved by the system, so `/etc/hosts` counts.

use std::sync::Arc;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, Response};
use tokio_rustls::rustls;

use crate::clock::Millis;
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
    let builder = Client::builder()
        .tls_backend_preconfigured(tls_config(with_tls)?)
        .user_agent(concat!("postrider/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .no_proxy();
    builder.build().map_err(|error| ClientError::Client(innermost(&error)))
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
