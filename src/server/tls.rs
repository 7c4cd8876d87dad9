//! The server's side of TLS: which certificate is shown and how sessions are described.
//!
//! The chain and key come from `[tls]`, or a self-signed pair is made at first start under
//! `data_dir/tls` and kept. The pair sits behind an `ArcSwap`: [`ServerTls::reload`] takes a new one
//! whole or keeps the old one, and connections that live are not disturbed. TLS 1.2 and 1.3 only,
//! through aws-lc-rs. Client certificates, ACME and further certificates by SNI are not here yet.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert, ServerConnection};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};

use crate::config::Config;
use crate::message::Domain;

/// Days a self-signed certificate is valid. Nobody can verify it anyway; a client that pins it wants it long.
const SELF_SIGNED_DAYS: u64 = 3650;
/// Days before its end at which a start makes a new one.
const SELF_SIGNED_RENEW_DAYS: u64 = 30;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Bytes of a certificate or key file that are read; a longer file is not one.
const PEM_BYTES_MAX: u64 = 1024 * 1024;

/// Why there is no certificate to show. Each text names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{}: cannot be read: {error}; {key} must name a PEM file that postrider's user may read", file.display())]
    Unreadable { file: PathBuf, key: &'static str, error: io::Error },
    #[error("{}: {wrong}; {remedy}", file.display())]
    Unusable { file: PathBuf, wrong: String, remedy: &'static str },
    #[error(
        "{}: this key does not belong to the first certificate in {}; name the pair that was issued together, \
         with the server's own certificate before the intermediate ones",
        key.display(), certificate.display()
    )]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error(
        "{}: the self-signed certificate cannot be written: {error}; make the folder writable, \
         or set tls.certificate and tls.private_key", file.display()
    )]
    Unwritable { file: PathBuf, error: io::Error },
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

/// The server's certificate and what makes sessions with it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServerTls {
    current: Arc<Current>,
    config: Arc<ServerConfig>,
}

#[derive(Debug)]
struct Current {
    pair: ArcSwap<CertifiedKey>,
    self_signed: AtomicBool,
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.pair.load_full())
    }
}

impl ServerTls {
    /// Reads the configured pair, or reads or makes the self-signed one. Blocks on the disk.
    pub fn load(config: &Config) -> Result<ServerTls, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let pair = load_pair(config, &provider, UnixTime::now())?;
        let current =
            Arc::new(Current { pair: ArcSwap::from_pointee(pair), self_signed: AtomicBool::new(config.tls.is_none()) });
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| TlsError::Setup(error.to_string()))?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        // Stateless resumption, with a key of this process only: no table that a flood could fill.
        // All of our suites are good; whoever rates servers wants the choice made here.
        server.ignore_client_order = true;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        server.ticketer = aws_lc_rs::Ticketer::new().map_err(|error| TlsError::Setup(error.to_string()))?;
        Ok(ServerTls { current, config: Arc::new(server) })
    }

    /// Takes what `config` names from now on, for new handshakes; on an error nothing changes.
    pub fn reload(&self, config: &Config) -> Result<(), TlsError> {
        let pair = load_pair(config, self.config.crypto_provider(), UnixTime::now())?;
        self.current.pair.store(Arc::new(pair));
        self.current.self_signed.store(config.tls.is_none(), Ordering::Relaxed);
        Ok(())
    }

    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.clone())
    }

    /// True if the certificate is one that no client can verify, which deserves a warning.
    pub fn self_signed(&self) -> bool {
        self.current.self_signed.load(Ordering::Relaxed)
    }
}

/// `TLSv1.3 with cipher TLS13_AES_256_GCM_SHA384`, for the Received field and the log.
pub fn describe(connection: &ServerConnection) -> String {
    let version = match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "TLS",
    };
    match connection.negotiated_cipher_suite() {
        Some(suite) => format!("{version} with cipher {}", suite.suite().as_str().unwrap_or("unknown")),
        None => version.to_owned(),
    }
}

/// Would the certificate and key that `[tls]` names do? Nothing is made and nothing is kept.
pub fn check(config: &Config) -> Result<(), TlsError> {
    let Some(files) = &config.tls else { return Ok(()) };
    read_pair(&files.certificate, &files.private_key, &aws_lc_rs::default_provider()).map(|_| ())
}

fn load_pair(config: &Config, provider: &CryptoProvider, now: UnixTime) -> Result<CertifiedKey, TlsError> {
    match &config.tls {
        Some(files) => read_pair(&files.certificate, &files.private_key, provider),
        None => self_signed_pair(&config.data_dir.join("tls"), &config.hostname, provider, now),
    }
}

fn read_pair(certificate: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let chain_text = read_pem(certificate, "tls.certificate")?;
    let key_text = read_pem(key, "tls.private_key")?;
    let chain = parse_chain(certificate, &chain_text)?;
    let private_key = parse_key(key, &key_text)?;
    CertifiedKey::from_der(chain, private_key, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            TlsError::Mismatch { certificate: certificate.to_owned(), key: key.to_owned() }
        }
        rustls::Error::InvalidCertificate(error) => TlsError::Unusable {
            file: certificate.to_owned(),
            wrong: format!("the first certificate is not well formed ({error})"),
            remedy: "get it from the issuer again",
        },
        error => TlsError::Unusable {
            file: key.to_owned(),
            wrong: format!("the private key cannot be used ({error})"),
            remedy: "use an RSA key of 2048 to 8192 bits, an ECDSA key (P-256, P-384, P-521) or an Ed25519 key",
        },
    })
}

fn read_pem(file: &Path, key: &'static str) -> Result<Vec<u8>, TlsError> {
    use std::io::Read;
    let unreadable = |error| TlsError::Unreadable { file: file.to_owned(), key, error };
    let mut text = Vec::new();
    fs::File::open(file).map_err(unreadable)?.take(PEM_BYTES_MAX + 1).read_to_end(&mut text).map_err(unreadable)?;
    if text.len() as u64 > PEM_BYTES_MAX {
        return Err(TlsError::Unusable {
            file: file.to_owned(),
            wrong: format!("longer than {PEM_BYTES_MAX} bytes"),
            remedy: "this is not a certificate or key file; check the path",
        });
    }
    Ok(text)
}

fn parse_chain(file: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unusable = |wrong: String| TlsError::Unusable {
        file: file.to_owned(),
        wrong,
        remedy: "tls.certificate takes a PEM file with the server's certificate, then the intermediate ones",
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(format!("not well-formed PEM ({error})")))?;
    if chain.is_empty() {
        return Err(unusable("holds no certificate (no line -----BEGIN CERTIFICATE-----)".into()));
    }
    Ok(chain)
}

fn parse_key(file: &Path, text: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    let unusable = |wrong: &str, remedy| TlsError::Unusable { file: file.to_owned(), wrong: wrong.to_owned(), remedy };
    let has = |needle: &[u8]| text.windows(needle.len()).any(|window| window == needle);
    if has(b"ENCRYPTED") {
        return Err(unusable(
            "the private key is encrypted",
            "postrider cannot ask for a passphrase; store it plain with `openssl pkey -in FILE -out PLAIN`, mode 0600",
        ));
    }
    PrivateKeyDer::from_pem_slice(text).map_err(|_| {
        unusable(
            "holds no private key (no line -----BEGIN PRIVATE KEY-----)",
            "tls.private_key takes a PEM file with a PKCS#8, PKCS#1 or SEC1 key",
        )
    })
}

/// Reads the pair of an earlier start, or makes one if there is none, it has (nearly) expired or it
/// is for another name.
fn self_signed_pair(
    folder: &Path,
    hostname: &Domain,
    provider: &CryptoProvider,
    now: UnixTime,
) -> Result<CertifiedKey, TlsError> {
    let certificate = folder.join("self-signed.crt");
    let key = folder.join("self-signed.key");
    match read_pair(&certificate, &key, provider) {
        Ok(pair) if still_good(&pair, hostname, provider, now) => return Ok(pair),
        // A file that may not be read is not ours to replace.
        Err(TlsError::Unreadable { file, key, error }) if error.kind() != io::ErrorKind::NotFound => {
            return Err(TlsError::Unreadable { file, key, error });
        }
        // Missing, damaged, half replaced, expired, renamed: nothing is lost by making a new one.
        Ok(_) | Err(_) => {}
    }
    make_self_signed(&certificate, &key, hostname, now)?;
    read_pair(&certificate, &key, provider)
}

/// A self-signed certificate is its own trust anchor, so the usual verifier tells whether name and
/// time fit.
fn still_good(pair: &CertifiedKey, hostname: &Domain, provider: &CryptoProvider, now: UnixTime) -> bool {
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

fn make_self_signed(certificate: &Path, key: &Path, hostname: &Domain, now: UnixTime) -> Result<(), TlsError> {
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

/// The file is there whole or not at all, and never readable for more than `mode` says.
fn replace(file: &Path, text: &[u8], mode: u32) -> Result<(), TlsError> {
    let unwritable = |error| TlsError::Unwritable { file: file.to_owned(), error };
    let new = file.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unwritable(error)),
        _ => {}
    }
    let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new).map_err(unwritable)?;
    out.write_all(text).and_then(|()| out.sync_all()).map_err(unwritable)?;
    fs::rename(&new, file).map_err(unwritable)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::Certificate;
    use crate::server::testing;

    fn shown(tls: &ServerTls) -> Vec<u8> {
        tls.current.pair.load().cert[0].to_vec()
    }

    fn at(days: u64) -> UnixTime {
        UnixTime::since_unix_epoch(DAY * days as u32)
    }

    #[test]
    fn the_self_signed_pair_is_kept_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = testing::config(folder.path());
        let first = ServerTls::load(&config).unwrap();
        assert!(first.self_signed());
        let again = ServerTls::load(&config).unwrap();
        assert_eq!(shown(&first), shown(&again), "the second start reuses it");
        let key = folder.path().join("tls/self-signed.key");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);

        config.hostname = Domain::parse("mx.renamed.test").unwrap();
        let renamed = ServerTls::load(&config).unwrap();
        assert_ne!(shown(&first), shown(&renamed), "another name needs another certificate");

        fs::write(&key, "damaged").unwrap();
        let repaired = ServerTls::load(&config).unwrap();
        assert_ne!(shown(&renamed), shown(&repaired));
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_self_signed_pair_is_renewed_before_it_expires() {
        let folder = tempfile::tempdir().unwrap();
        let provider = aws_lc_rs::default_provider();
        let host = Domain::parse("mail.example.com").unwrap();
        let at_day = |days| self_signed_pair(folder.path(), &host, &provider, at(days)).unwrap().cert[0].to_vec();
        let first = at_day(20_000);
        assert_eq!(at_day(20_000 + SELF_SIGNED_DAYS - SELF_SIGNED_RENEW_DAYS - 1), first);
        assert_ne!(at_day(20_000 + SELF_SIGNED_DAYS - SELF_SIGNED_RENEW_DAYS + 1), first);
    }

    #[test]
    fn a_host_that_is_an_address_gets_a_certificate_too() {
        let folder = tempfile::tempdir().unwrap();
        let provider = aws_lc_rs::default_provider();
        let host = Domain::parse("[192.0.2.1]").unwrap();
        let pair = self_signed_pair(folder.path(), &host, &provider, at(20_000)).unwrap();
        assert!(still_good(&pair, &host, &provider, at(20_001)));
    }

    #[test]
    fn reload_takes_the_new_pair_or_keeps_the_old() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = testing::config(folder.path());
        let tls = ServerTls::load(&config).unwrap();
        let before = shown(&tls);
        let (crt, key) = (folder.path().join("a.crt"), folder.path().join("a.key"));
        config.tls = Some(Certificate { certificate: crt.clone(), private_key: key.clone() });
        assert!(matches!(tls.reload(&config), Err(TlsError::Unreadable { .. })));
        assert_eq!(shown(&tls), before);
        assert!(tls.self_signed());
        make_self_signed(&crt, &key, &config.hostname, UnixTime::now()).unwrap();
        tls.reload(&config).unwrap();
        assert_ne!(shown(&tls), before);
        assert!(!tls.self_signed());
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let host = Domain::parse("mail.example.com").unwrap();
        make_self_signed(&path("a.crt"), &path("a.key"), &host, UnixTime::now()).unwrap();
        make_self_signed(&path("b.crt"), &path("b.key"), &host, UnixTime::now()).unwrap();
        fs::write(path("junk"), "no PEM here\n").unwrap();
        fs::write(path("broken"), "-----BEGIN CERTIFICATE-----\n%%\n-----END CERTIFICATE-----\n").unwrap();
        fs::write(path("locked"), "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
            .unwrap();
        let provider = aws_lc_rs::default_provider();
        let said = |crt: &str, key: &str| read_pair(&path(crt), &path(key), &provider).unwrap_err().to_string();
        for (text, file, words) in [
            (said("none", "a.key"), "none", "tls.certificate must name a PEM file"),
            (said("a.crt", "none"), "none", "tls.private_key must name a PEM file"),
            (said("junk", "a.key"), "junk", "holds no certificate"),
            (said("broken", "a.key"), "broken", "not well-formed PEM"),
            (said("a.crt", "junk"), "junk", "holds no private key"),
            (said("a.crt", "a.crt"), "a.crt", "holds no private key"),
            (said("a.crt", "locked"), "locked", "openssl pkey"),
            (said("a.crt", "b.key"), "b.key", "does not belong to the first certificate"),
        ] {
            assert!(text.contains(words) && text.contains(file), "{text}");
        }
    }
}
