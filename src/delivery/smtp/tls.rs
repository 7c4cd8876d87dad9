//! TLS towards other servers: to mail exchangers encryption without a check of who is there, unless a
//! policy says what they have to show (`tls_policy`); to named hosts with one.
//!
//! Without DANE or MTA-STS nothing says which certificate a mail exchanger ought to have: the name of
//! the MX host comes from unsigned DNS, so an attacker who can answer for the host can name himself
//! there. A certificate check would therefore stop nobody, and would send mail to the many hosts with
//! self-signed or expired certificates in clear instead (RFC 7435 3, RFC 7672 1.3 and 2.2). What this
//! gives is protection from those who only listen. A host that somebody has named is another matter: its
//! name is certain, and there may be a password to lose.

use std::net::IpAddr;
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error as TlsError, RootCertStore,
    SignatureScheme,
};

use super::tls_policy::Certificate;
use crate::delivery::tls_report::Flaw;
use crate::message::Domain;

pub use crate::trail::{description, holder};

/// A connector that takes any certificate, but only from a server that has its key: for a check of the
/// certificate afterwards ([`Judge`]).
pub fn unjudged() -> Result<TlsConnector, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(AnyCertificate { provider: provider.clone(), checks_signatures: true });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// What checks certificates against the authorities.
pub fn authorities(roots: RootCertStore) -> Result<Arc<WebPkiServerVerifier>, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    built.map_err(|error| error.to_string())
}

/// What is wrong with a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub flaw: Flaw,
    pub what: String,
}

/// Looks at the certificates of one connection after its handshake, so that what is found can be told
/// where nothing hangs on it.
#[derive(Clone, Debug)]
pub struct Judge {
    pub certificate: Certificate,
    /// For [`Certificate::Authority`].
    pub authorities: Option<Arc<WebPkiServerVerifier>>,
}

impl Judge {
    pub fn judge(&self, session: &ClientConnection, name: &ServerName<'_>) -> Result<(), Fault> {
        let chain = session.peer_certificates().unwrap_or_default();
        let now = UnixTime::now();
        match (&self.certificate, &self.authorities) {
            (Certificate::Any, _) => Ok(()),
            (Certificate::Tlsa(demand), _) => {
                let provider = Arc::new(aws_lc_rs::default_provider());
                let judged = demand.judge(chain, &provider, now);
                judged.map_err(|what| Fault { flaw: Flaw::ValidationFailure, what })
            }
            (Certificate::Authority, Some(verifier)) => {
                let Some((end_entity, others)) = chain.split_first() else {
                    let what = "it showed no certificate".to_owned();
                    return Err(Fault { flaw: Flaw::CertificateNotTrusted, what });
                };
                let verified = verifier.verify_server_cert(end_entity, others, name, &[], now);
                verified.map(|_| ()).map_err(|error| Fault { flaw: flaw(&error), what: error.to_string() })
            }
            (Certificate::Authority, None) => {
                let what = "the certificate authorities of this system are not known".to_owned();
                Err(Fault { flaw: Flaw::ValidationFailure, what })
            }
        }
    }
}

fn flaw(error: &TlsError) -> Flaw {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidForName, NotValidForNameContext, UnknownIssuer,
    };
    match error {
        TlsError::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => Flaw::CertificateHostMismatch,
        TlsError::InvalidCertificate(Expired | ExpiredContext { .. }) => Flaw::CertificateExpired,
        // The issuer has the name of an authority, and is not it.
        TlsError::InvalidCertificate(UnknownIssuer | BadSignature) => Flaw::CertificateNotTrusted,
        _ => Flaw::ValidationFailure,
    }
}

/// A connector that takes any certificate. It keeps session tickets, so share it.
pub fn opportunistic() -> Result<TlsConnector, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(AnyCertificate { provider: provider.clone(), checks_signatures: false });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// A connector that takes a certificate only if it is for the host and leads to one of `roots`.
pub fn verified(roots: RootCertStore) -> Result<TlsConnector, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The authorities that the system trusts. Reads files, so not for a thread that has other work.
pub fn system_roots() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
        return Err(format!("the system's certificate authorities cannot be read: {why}"));
    }
    Ok(roots)
}

/// The name for SNI. A host that is no legal TLS name is greeted by its address, without SNI.
pub fn server_name(host: &Domain, ip: IpAddr) -> ServerName<'static> {
    ServerName::try_from(host.as_str().to_owned()).unwrap_or(ServerName::IpAddress(ip.into()))
}

/// Takes whatever the server shows; see the head of this file. Where nobody looks at the certificate
/// afterwards that holds for the signature over the handshake as well: it would prove that the server has the key of a certificate that nobody checks.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
    checks_signatures: bool,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        if !self.checks_signatures {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        if !self.checks_signatures {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
