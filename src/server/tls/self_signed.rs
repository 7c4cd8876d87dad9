//! The certificate of a server without one: made at first start, kept, and made anew before it ends.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::{ServerName, UnixTime};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, RootCertStore};

use super::pair::{TlsError, read_pair, replace};
use crate::message::Domain;

/// Days a self-signed certificate is valid. Nobody can verify it anyway; a client that pins it wants it long.
pub(super) const SELF_SIGNED_DAYS: u64 = 3650;
/// Days before its end at which a start makes a new one.
pub(super) const SELF_SIGNED_RENEW_DAYS: u64 = 30;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads the pair of an earlier start, or makes one if there is none, it has (nearly) expired or it
/// is for another name.
pub(super) fn self_signed_pair(
    folder: &Path,
    hostname: &Domain,
    provider: &CryptoProvider,
    now: UnixTime,
) -> Result<CertifiedKey, TlsError> {
    let certificate = folder.join("self-signed.crt");
    let key = folder.join("self-signed.key");
    match read_pair(&certificate, &key, "tls", provider) {
        Ok(pair) if still_good(&pair, hostname, provider, now) => return Ok(pair),
        // A file that may not be read is not ours to replace.
        Err(TlsError::Unreadable { file, key, error }) if error.kind() != io::ErrorKind::NotFound => {
            return Err(TlsError::Unreadable { file, key, error });
        }
        // Missing, damaged, half replaced, expired, renamed: nothing is lost by making a new one.
        Ok(_) | Err(_) => {}
    }
    make_self_signed(&certificate, &key, hostname, now)?;
    read_pair(&certificate, &key, "tls", provider)
}

/// A self-signed certificate is its own trust anchor, so the usual verifier tells whether name and
/// time fit.
pub(super) fn still_good(pair: &CertifiedKey, hostname: &Domain, provider: &CryptoProvider, now: UnixTime) -> bool {
    let Some(certificate) = pair.cert.first() else { return false };
    let mut roots = RootCertStore::empty();
    if roots.add(certificate.clone()).is_err() {
        return false;
    }
    let Ok(name) = ServerName::try_from(san(hostname)) else { return false };
    let Ok(verifier) = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(provider.clone())).build()
    else {
        return false;
    };
    use rustls::client::danger::ServerCertVerifier;
    let soon = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + DAY * SELF_SIGNED_RENEW_DAYS as u32);
    [now, soon].into_iter().all(|time| verifier.verify_server_cert(certificate, &[], &name, &[], time).is_ok())
}

/// The host name, or the bare address of an address literal.
fn san(hostname: &Domain) -> String {
    hostname.literal().map_or_else(|| hostname.to_string(), |ip| ip.to_string())
}

pub(super) fn make_self_signed(
    certificate: &Path,
    key: &Path,
    hostname: &Domain,
    now: UnixTime,
) -> Result<(), TlsError> {
    let setup = |error: rcgen::Error| TlsError::Setup(format!("no self-signed certificate could be made: {error}"));
    let key_pair = KeyPair::generate().map_err(setup)?;
    let mut params = CertificateParams::new(vec![san(hostname)]).map_err(setup)?;
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, san(hostname));
    params.distinguished_name = name;
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now.as_secs());
    // A day back, for clients whose clock is behind.
    params.not_before = now - DAY;
    params.not_after = now + DAY * SELF_SIGNED_DAYS as u32;
    let made = params.self_signed(&key_pair).map_err(setup)?;
    if let Some(folder) = certificate.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| TlsError::Unwritable { file: folder.to_owned(), error })?;
    }
    // A crash between the two leaves a pair that does not fit, and the next start makes a new one.
    replace(key, key_pair.serialize_pem().as_bytes(), 0o600)?;
    replace(certificate, made.pem().as_bytes(), 0o644)
}
