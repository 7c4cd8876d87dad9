//! TLS towards other servers: to mail exchangers encryption without a check of who is there, to named
//! hosts with one.
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
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
};

use crate::message::Domain;

/// A connector that takes any certificate. It keeps session tickets, so share it.
pub fn opportunistic() -> Result<TlsConnector, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(AnyCertificate { provider: provider.clone() });
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

/// `TLSv1.3 TLS13_AES_256_GCM_SHA384`, for the story.
pub fn description(session: &ClientConnection) -> String {
    let version = session.protocol_version().and_then(|version| version.as_str()).unwrap_or("TLS");
    let cipher = session.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("unknown cipher");
    format!("{} {cipher}", version.replace('_', "."))
}

/// Takes whatever the server shows; see the head of this file. That holds for the signature over the
/// handshake as well: it would prove that the server has the key of a certificate that nobody checks.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
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
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
