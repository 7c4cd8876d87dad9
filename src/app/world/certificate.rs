//! The certificate that applications and other servers see: for which names it is, how long it lasts, and whether
//! others can trace it to somebody they trust. Read from the files that the server reads.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{CertificateError, Error as TlsError, RootCertStore};
use webpki::EndEntityCert;

use super::{Finding, Level, Topic, World};
use crate::clock::rfc3339;
use crate::config::{ListenerTls, Role};
use crate::delivery::smtp::{system_roots, tls};
use crate::message::Domain;
use crate::server::acme;

/// Days before its end from which a certificate is warned about. Renewal is commonly set for thirty.
const DAYS_LEFT_MIN: u64 = 14;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Seconds since 1970, in the year 2500: nothing is valid then.
const FAR_FUTURE: Duration = Duration::from_secs(16_725_225_600);
/// Names that are shown.
const NAMES_SHOWN: usize = 5;

impl World {
    pub(super) async fn certificate(&self) -> Vec<Finding> {
        if self.config.listeners.values().all(|listener| listener.tls == ListenerTls::Off) {
            let found = "none is shown: tls is \"off\" at all listeners";
            return vec![Finding::new(Topic::Certificate, self.config.hostname.as_str(), Level::Note, found)];
        }
        let (file, is_made) = match (&self.config.tls, acme::kept_file(&self.config)) {
            (Some(files), _) => (files.certificate.clone(), false),
            (None, Some(given)) => (given, false),
            (None, None) => (self.config.data_dir.join("tls").join("self-signed.crt"), true),
        };
        let (hostname, given, clock) = (self.config.hostname.clone(), self.roots.clone(), UnixTime::now());
        let submission = self.config.listeners.values().any(|listener| listener.role == Role::Submission);
        let shown = file.display().to_string();
        let look = move || {
            let look = Look { file, is_made, hostname, submission, now: clock };
            look.findings(given)
        };
        tokio::task::spawn_blocking(look).await.unwrap_or_else(|_| {
            vec![Finding::new(Topic::Certificate, shown, Level::Warning, "not known: the look was broken off")]
        })
    }
}

struct Look {
    file: PathBuf,
    /// By the server itself.
    is_made: bool,
    hostname: Domain,
    submission: bool,
    now: UnixTime,
}

impl Look {
    fn finding(&self, level: Level, found: impl Into<String>) -> Finding {
        Finding::new(Topic::Certificate, self.file.display().to_string(), level, found)
    }

    fn findings(&self, given: Option<RootCertStore>) -> Vec<Finding> {
        let chain = match read(&self.file) {
            Ok(chain) => chain,
            Err(_) if self.is_made => {
                return vec![self.self_signed("the server makes a self-signed one at its first start".to_owned())];
            }
            Err(why) => {
                let finding = self.finding(Level::Problem, why);
                return vec![finding.remedy(
                    "name a PEM file in tls.certificate: the server's certificate first, then the intermediate ones",
                )];
            }
        };
        let Some((first, others)) = chain.split_first() else {
            return vec![self.finding(Level::Problem, "the file holds no certificate")];
        };
        let Ok(certificate) = EndEntityCert::try_from(first) else {
            return vec![self.finding(Level::Problem, "the first certificate cannot be read")];
        };
        let mut all = vec![self.names(&certificate)];
        all.extend(self.days(first));
        all.push(self.chain(first, others, given));
        all
    }

    fn names(&self, certificate: &EndEntityCert<'_>) -> Finding {
        let names: Vec<&str> = certificate.valid_dns_names().take(NAMES_SHOWN).collect();
        let list = if names.is_empty() { "no host name".to_owned() } else { names.join(", ") };
        let name = ServerName::try_from(self.hostname.as_str().to_owned());
        let name =
            name.or_else(|error| self.hostname.literal().map(|ip| ServerName::IpAddress(ip.into())).ok_or(error));
        let covers = name.is_ok_and(|name| certificate.verify_is_valid_for_subject_name(&name).is_ok());
        if covers {
            return self.finding(Level::Ok, format!("for {list}"));
        }
        self.finding(Level::Problem, format!("for {list}, but not for {}", self.hostname))
            .remedy(format!("get one for {}, or change hostname", self.hostname))
            .why("Applications, and servers that keep to MTA-STS, refuse a certificate for another name.")
    }

    /// None: it cannot be told.
    fn days(&self, first: &CertificateDer<'_>) -> Option<Finding> {
        let ends = ends(first)?;
        let when = rfc3339(ends.saturating_mul(1000)).chars().take(10).collect::<String>();
        let now = self.now.as_secs();
        if ends <= now {
            return Some(
                self.finding(Level::Problem, format!("has ended, on {when}"))
                    .remedy("renew it; if that was done, see that tls.certificate names the new file")
                    .why("Applications refuse a certificate that has ended."),
            );
        }
        let days = (ends - now) / DAY.as_secs();
        let left = format!("{days} {} left, until {when}", if days == 1 { "day" } else { "days" });
        if days < DAYS_LEFT_MIN {
            return Some(
                self.finding(Level::Warning, left)
                    .remedy("renew it; if that is automatic, look why it was not done yet")
                    .why("Applications refuse a certificate that has ended."),
            );
        }
        Some(self.finding(Level::Ok, left))
    }

    /// Do others come from it to somebody they trust?
    fn chain(
        &self,
        first: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        given: Option<RootCertStore>,
    ) -> Finding {
        // It is its own issuer.
        let mut itself = RootCertStore::empty();
        if itself.add(first.clone().into_owned()).is_ok() && self.leads(first, &[], itself).is_ok() {
            return self.self_signed("self-signed".to_owned());
        }
        let roots = match given.map_or_else(system_roots, Ok) {
            Ok(roots) => roots,
            Err(why) => return self.finding(Level::Note, format!("whether others trust it is not known: {why}")),
        };
        match self.leads(first, others, roots) {
            Ok(()) => self.finding(Level::Ok, "leads to an authority that this system trusts"),
            Err(TlsError::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
                self.finding(Level::Problem, "a certificate in the chain has ended")
                    .remedy("get the chain from the issuer again")
            }
            Err(TlsError::InvalidCertificate(CertificateError::UnknownIssuer)) if others.is_empty() => self
                .finding(
                    Level::Problem,
                    "the file holds one certificate, and its issuer is none that this system trusts",
                )
                .remedy(
                    "put the intermediate certificates behind it (fullchain.pem); \
                     with an authority of your own see that all who connect trust that",
                )
                .why("Who connects cannot find the certificates in between by himself."),
            Err(error) => self
                .finding(Level::Warning, format!("leads to no authority that this system trusts: {error}"))
                .remedy(
                    "see that the file holds all intermediate certificates; \
                     with an authority of your own see that all who connect trust that",
                )
                .why("Applications refuse a certificate that they cannot trace to somebody they trust."),
        }
    }

    fn leads(
        &self,
        first: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        roots: RootCertStore,
    ) -> Result<(), TlsError> {
        leads(first, others, roots, self.now)
    }

    fn self_signed(&self, found: String) -> Finding {
        let level = if self.submission { Level::Warning } else { Level::Note };
        self.finding(level, found)
            .remedy("get one that others trust: tls.certificate and tls.private_key, or tls.acme")
            .why(
                "Applications that check certificates refuse it; other mail servers use TLS \
                     all the same, unless MTA-STS asks for more.",
            )
    }
}

fn read(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = std::fs::read(file).map_err(|error| format!("cannot be read: {error}"))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    chain.map_err(|error| format!("is not well-formed PEM ({error})"))
}

fn leads(
    first: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    roots: RootCertStore,
    now: UnixTime,
) -> Result<(), TlsError> {
    use tokio_rustls::rustls::client::danger::ServerCertVerifier;
    let verifier = tls::authorities(roots).map_err(TlsError::General)?;
    // The name is told apart; for what the certificate is named by itself, any of its names will do.
    let certificate = EndEntityCert::try_from(first).map_err(|error| TlsError::General(error.to_string()))?;
    let name = certificate.valid_dns_names().next().unwrap_or("localhost").replace("*.", "any.");
    let name = ServerName::try_from(name).map_err(|error| TlsError::General(error.to_string()))?;
    verifier.verify_server_cert(first, others, &name, &[], now).map(|_| ())
}

/// Seconds since 1970. The verifier says so of one that has ended.
fn ends(first: &CertificateDer<'_>) -> Option<u64> {
    let mut roots = RootCertStore::empty();
    roots.add(first.clone().into_owned()).ok()?;
    match leads(first, &[], roots, UnixTime::since_unix_epoch(FAR_FUTURE)) {
        Err(TlsError::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
            Some(not_after.as_secs())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW: u64 = 1_795_300_000;

    /// Certificates of an authority of this name and of a host, for `days`.
    fn made(authority_name: &str, names: &[&str], days: i64) -> (CertificateDer<'static>, CertificateDer<'static>) {
        let at = |days: i64| {
            let epoch = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(NOW);
            if days < 0 { epoch - DAY * days.unsigned_abs() as u32 } else { epoch + DAY * days as u32 }
        };
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        authority.distinguished_name.push(rcgen::DnType::CommonName, authority_name);
        (authority.not_before, authority.not_after) = (at(-1000), at(1000));
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let root = authority.self_signed(&authority_key).unwrap().der().clone();
        let issuer = rcgen::Issuer::new(authority, authority_key);
        let mut host =
            rcgen::CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        (host.not_before, host.not_after) = (at(-100), at(days));
        let host = host.signed_by(&rcgen::KeyPair::generate().unwrap(), &issuer).unwrap().der().clone();
        (root, host)
    }

    fn look(file: &Path) -> Look {
        let hostname = Domain::parse("mail.my.test").unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW));
        Look { file: file.to_owned(), is_made: false, hostname, submission: true, now }
    }

    fn found(names: &[&str], days: i64, trusted: bool) -> Vec<(Level, String)> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("chain.pem");
        let (root, host) = made("An authority", names, days);
        std::fs::write(&file, pem(&host)).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(if trusted { root } else { made("Another", &["x.test"], 1).0 }).unwrap();
        look(&file).findings(Some(roots)).into_iter().map(|finding| (finding.level, finding.found)).collect()
    }

    fn pem(der: &CertificateDer<'_>) -> String {
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    }

    #[test]
    fn names_days_and_chain_are_told_apart() {
        let good = found(&["mail.my.test"], 60, true);
        let wanted = [
            (Level::Ok, "for mail.my.test".to_owned()),
            (Level::Ok, "60 days left, until 2027-01-20".to_owned()),
            (Level::Ok, "leads to an authority that this system trusts".to_owned()),
        ];
        assert_eq!(good, wanted);
        assert!(found(&["*.my.test"], 60, true).iter().all(|(level, _)| *level == Level::Ok));
        assert_eq!(found(&["other.test"], 60, true)[0].0, Level::Problem);
        assert_eq!(
            found(&["mail.my.test"], 13, true)[1],
            (Level::Warning, "13 days left, until 2026-12-04".to_owned())
        );
        let over = found(&["mail.my.test"], -1, true);
        assert_eq!(over[1].0, Level::Problem);
        assert!(over[1].1.starts_with("has ended, on 2026-11-20"), "{over:?}");
        let alone = found(&["mail.my.test"], 60, false);
        assert_eq!(alone[2].0, Level::Problem);
        assert!(alone[2].1.contains("one certificate"), "{alone:?}");
    }

    #[test]
    fn one_that_vouches_for_itself_is_called_so() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("self.pem");
        let mut params = rcgen::CertificateParams::new(vec!["mail.my.test".to_owned()]).unwrap();
        let epoch = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(NOW);
        (params.not_before, params.not_after) = (epoch - DAY, epoch + DAY * 100);
        let made = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        std::fs::write(&file, made.pem()).unwrap();
        let all = look(&file).findings(None);
        assert_eq!((all[2].level, all[2].found.as_str()), (Level::Warning, "self-signed"));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(look(&file).findings(None)[0].level, Level::Problem);
        let none = Look { is_made: true, ..look(&file) }.findings(None);
        assert!(none[0].found.contains("first start"), "{none:?}");
    }
}
