//! The server's side of TLS: which certificate is shown and how sessions are described.
//!
//! The chain and key come from `[tls]`, from the authority that `[tls.acme]` names (`acme` gets it), or a
//! self-signed pair is made at first start under `data_dir/tls` and kept; `[[tls.extra]]` has more, chosen by
//! name (`shown`). All of them sit behind an `ArcSwap`: [`ServerTls::reload`] takes new ones whole or keeps
//! the old ones, and connections that live are not disturbed. TLS 1.2 and 1.3 only, through aws-lc-rs.
//! Client certificates are not here.

pub mod facts;
pub mod pair;
mod self_signed;
mod shown;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert, ServerConnection};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};

use self::facts::Validity;
pub use self::pair::TlsError;
use self::pair::read_configured;
use self::self_signed::self_signed_pair;
use self::shown::Shown;
use super::acme;
use crate::clock::{Clock, Millis, rfc3339};
use crate::config::{Certificate, Config};
use crate::message::Domain;

/// The server's certificates and what makes sessions with them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServerTls {
    current: Arc<Current>,
    config: Arc<ServerConfig>,
}

#[derive(Debug)]
struct Current {
    shown: ArcSwap<Shown>,
    /// The default of `shown` is.
    self_signed: AtomicBool,
    granted: ArcSwap<Granted>,
}

/// What an authority has given, in the place of the default. It outlives a change of the configuration that
/// leaves authority and name as they are.
#[derive(Debug)]
struct Granted {
    /// The authority's directory and the name.
    wish: Option<(String, Domain)>,
    pair: ArcSwapOption<CertifiedKey>,
}

impl Granted {
    fn load(config: &Config, provider: &CryptoProvider) -> Granted {
        let pair = acme::kept(config, provider).map(Arc::new);
        Granted { wish: wish(config), pair: ArcSwapOption::new(pair) }
    }
}

fn wish(config: &Config) -> Option<(String, Domain)> {
    Some((config.acme.as_ref()?.directory.clone(), config.hostname.clone()))
}

impl ResolvesServerCert for Current {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let shown = self.shown.load();
        let chosen = shown.choose(hello.server_name(), hello.signature_schemes());
        let is_default = Arc::ptr_eq(&chosen, &shown.default);
        let granted = self.granted.load().pair.load_full().filter(|_| is_default);
        Some(granted.unwrap_or(chosen))
    }
}

/// What is read for one configuration.
struct Loaded {
    shown: Shown,
    self_signed: bool,
}

impl ServerTls {
    /// Reads the configured pairs, or reads or makes the self-signed one. Blocks on the disk.
    pub fn load(config: &Config) -> Result<ServerTls, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let Loaded { shown, self_signed } = load_all(config, &provider)?;
        let granted = ArcSwap::from_pointee(Granted::load(config, &provider));
        let (shown, self_signed) = (ArcSwap::from_pointee(shown), AtomicBool::new(self_signed));
        let current = Arc::new(Current { shown, self_signed, granted });
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

    /// What `config` names, for the handshakes of a configuration to come; nothing changes here. Sessions can be
    /// resumed on both.
    pub fn next(&self, config: &Config) -> Result<ServerTls, TlsError> {
        let provider = self.config.crypto_provider();
        let Loaded { shown, self_signed } = load_all(config, provider)?;
        let before = self.current.granted.load_full();
        let granted = if before.wish == wish(config) { before } else { Arc::new(Granted::load(config, provider)) };
        let (shown, self_signed) = (ArcSwap::from_pointee(shown), AtomicBool::new(self_signed));
        let current = Arc::new(Current { shown, self_signed, granted: ArcSwap::new(granted) });
        let mut server = (*self.config).clone();
        server.cert_resolver = current.clone();
        Ok(ServerTls { current, config: Arc::new(server) })
    }

    /// Are other certificates shown than there, as far as they come from files?
    pub fn shows_other_than(&self, before: &ServerTls) -> bool {
        self.current.shown.load().is_other(&before.current.shown.load())
    }

    /// Takes what `config` names from now on, for new handshakes; on an error nothing changes.
    pub fn reload(&self, config: &Config) -> Result<(), TlsError> {
        let provider = self.config.crypto_provider();
        let Loaded { shown, self_signed } = load_all(config, provider)?;
        if self.current.granted.load().wish != wish(config) {
            self.current.granted.store(Arc::new(Granted::load(config, provider)));
        }
        self.current.shown.store(Arc::new(shown));
        self.current.self_signed.store(self_signed, Ordering::Relaxed);
        Ok(())
    }

    /// Takes the certificate that the authority has given, from now on. The further ones stay.
    pub(super) fn renew(&self, pair: CertifiedKey) {
        self.current.granted.load().pair.store(Some(Arc::new(pair)));
    }

    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.clone())
    }

    /// True if the certificate is one that no client can verify, which deserves a warning.
    pub fn self_signed(&self) -> bool {
        self.current.self_signed.load(Ordering::Relaxed) && self.current.granted.load().pair.load().is_none()
    }

    /// The certificate for clients that ask for no other.
    pub fn default_certificate(&self) -> Option<CertificateDer<'static>> {
        let granted = self.current.granted.load().pair.load_full();
        granted.unwrap_or_else(|| self.current.shown.load().default.clone()).cert.first().cloned()
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

/// Would the certificates and keys that `[tls]` names do? Nothing is made and nothing is kept. Gives what
/// deserves a warning.
pub fn check(config: &Config) -> Result<Vec<String>, TlsError> {
    let provider = aws_lc_rs::default_provider();
    let mut warnings = Vec::new();
    for files in configured(config) {
        warnings.extend(doubt(files, &read_configured(files, &provider)?, Clock::System.now()));
    }
    warnings.extend(acme::doubt(config, Clock::System.now()));
    Ok(warnings)
}

/// The pairs that the configuration names.
fn configured(config: &Config) -> impl Iterator<Item = &Certificate> {
    config.tls.iter().chain(&config.tls_extra)
}

/// A pair that loads and that clients will refuse all the same.
fn doubt(files: &Certificate, pair: &CertifiedKey, now: Millis) -> Option<String> {
    let certificate = pair.cert.first()?;
    let Validity { from, to } = facts::validity(certificate)?;
    let (section, file) = (files.written.section, files.certificate.display());
    let wrong = if to <= now {
        format!("it has expired on {}; get a new one from its issuer", rfc3339(to))
    } else if from > now {
        format!("it is good from {} on only; wait, or set this machine's clock right", rfc3339(from))
    } else if section == "tls.extra" && facts::names(certificate).is_empty() {
        "it has no host name in subjectAltName, so no client will ever be shown it; get one with names".to_owned()
    } else {
        return None;
    };
    Some(format!("{section}.certificate: clients that verify will refuse {file}: {wrong}"))
}

fn load_all(config: &Config, provider: &CryptoProvider) -> Result<Loaded, TlsError> {
    let read = |files: &Certificate| {
        let pair = read_configured(files, provider)?;
        if let Some(doubt) = doubt(files, &pair, Clock::System.now()) {
            tracing::warn!("{doubt}");
        }
        Ok::<_, TlsError>(pair)
    };
    let extra = config.tls_extra.iter().map(read).collect::<Result<_, _>>()?;
    let own = config.tls.as_ref().map(read).transpose()?;
    let self_signed = own.is_none();
    let default = match own {
        Some(pair) => pair,
        None => self_signed_pair(&config.data_dir.join("tls"), &config.hostname, provider, UnixTime::now())?,
    };
    Ok(Loaded { shown: Shown::new(default, extra), self_signed })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::time::Duration;

    use super::pair::read_pair;
    use super::self_signed::{SELF_SIGNED_DAYS, SELF_SIGNED_RENEW_DAYS, make_self_signed, still_good};
    use super::*;
    use crate::config::Written;
    use crate::server::testing;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn files(certificate: &Path, private_key: &Path, section: &'static str) -> Certificate {
        let written = Written { file: "postrider.toml".into(), line: 7, section };
        Certificate { certificate: certificate.to_owned(), private_key: private_key.to_owned(), written }
    }

    fn shown(tls: &ServerTls) -> Vec<u8> {
        tls.current.shown.load().default.cert[0].to_vec()
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
        config.tls = Some(files(&crt, &key, "tls"));
        let refused = tls.reload(&config).unwrap_err().to_string();
        assert!(
            refused.starts_with("postrider.toml:7: tls: ") && refused.contains("a.crt: cannot be read"),
            "{refused}"
        );
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
        let said = |crt: &str, key: &str| read_pair(&path(crt), &path(key), "tls", &provider).unwrap_err().to_string();
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

    #[test]
    fn further_pairs_come_and_go_with_a_reload_and_a_broken_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut config = testing::config(folder.path());
        let tls = ServerTls::load(&config).unwrap();
        let other = Domain::parse("mx.other.example").unwrap();
        make_self_signed(&path("a.crt"), &path("a.key"), &other, UnixTime::now()).unwrap();
        config.tls_extra = vec![files(&path("a.crt"), &path("a.key"), "tls.extra")];
        tls.reload(&config).unwrap();
        let schemes = aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes();
        let chosen = || tls.current.shown.load().choose(Some("mx.other.example"), &schemes).cert[0].to_vec();
        assert_ne!(chosen(), shown(&tls));
        assert_eq!(check(&config).unwrap(), Vec::<String>::new());

        let before = chosen();
        fs::write(path("a.key"), "damaged").unwrap();
        let refused = tls.reload(&config).unwrap_err().to_string();
        assert!(refused.starts_with("postrider.toml:7: tls.extra: ") && refused.contains("a.key"), "{refused}");
        assert!(check(&config).is_err());
        assert_eq!(chosen(), before);
        config.tls_extra.clear();
        tls.reload(&config).unwrap();
        assert_eq!(chosen(), shown(&tls));
    }

    #[test]
    fn a_certificate_that_clients_will_refuse_is_warned_about() {
        let folder = tempfile::tempdir().unwrap();
        let (crt, key) = (folder.path().join("a.crt"), folder.path().join("a.key"));
        let host = Domain::parse("mail.example.com").unwrap();
        let mut config = testing::config(folder.path());
        config.tls = Some(files(&crt, &key, "tls"));
        let warned = |days: u64| {
            make_self_signed(&crt, &key, &host, at(days)).unwrap();
            check(&config).unwrap().concat()
        };
        let old = warned(10_000);
        assert!(old.starts_with("tls.certificate: ") && old.contains("it has expired on 2007-"), "{old}");
        assert!(warned(40_000).contains("it is good from 2079-"));
        config.tls_extra = vec![files(&crt, &key, "tls.extra")];
        make_self_signed(&crt, &key, &Domain::parse("[192.0.2.1]").unwrap(), UnixTime::now()).unwrap();
        assert!(check(&config).unwrap().concat().contains("no host name in subjectAltName"));
    }

    /// A reload must not bring back what the authority's certificate has replaced.
    #[test]
    fn what_an_authority_has_given_outlives_a_reload_and_goes_with_the_authority() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let text = format!(
            "hostname = \"mail.example.com\"\ndata_dir = \"{}\"\n[tls.acme]\nenabled = true\n",
            folder.path().display()
        );
        let mut config = crate::config::parse("postrider.toml", &text).unwrap();
        let tls = ServerTls::load(&config).unwrap();
        assert!(tls.self_signed());
        make_self_signed(&path("a.crt"), &path("a.key"), &config.hostname, UnixTime::now()).unwrap();
        let pair = read_pair(&path("a.crt"), &path("a.key"), "tls", &aws_lc_rs::default_provider()).unwrap();
        let given = pair.cert.first().cloned();
        tls.renew(pair);
        assert_eq!((tls.default_certificate(), tls.self_signed()), (given.clone(), false));
        config.tls_extra = vec![files(&path("a.crt"), &path("a.key"), "tls.extra")];
        tls.reload(&config).unwrap();
        assert_eq!((tls.default_certificate(), tls.self_signed()), (given.clone(), false));
        config.acme = None;
        tls.reload(&config).unwrap();
        assert!(tls.self_signed() && tls.default_certificate() != given);
    }
}
