//! DANE for SMTP (RFC 7672): which certificate the TLSA records of a mail exchanger call good. The records
//! come in, known to be signed, and a verdict on a chain of certificates goes out.
//!
//! Used are DANE-EE(3), where the end entity's certificate or key has to match and nothing else counts,
//! neither its names nor its dates (3.1.1); and DANE-TA(2), where the chain has to lead to what matches and
//! the certificate has to be for the host or the recipients' domain (3.1.2, 3.2.3). PKIX-TA(0) and
//! PKIX-EE(1) cannot be used for SMTP (3.1.3), nor can a selector or matching type that nobody knows.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, SHA512, digest};
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;

pub use crate::dns::Tlsa;
use crate::message::Domain;

const DANE_TA: u8 = 2;
const DANE_EE: u8 = 3;
/// Records looked at for one host.
const RECORDS_MAX: usize = 16;
/// Certificates of a chain that are looked at.
const CHAIN_MAX: usize = 10;

/// What a host has to show.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Demand {
    /// Usable ones only.
    records: Vec<Tlsa>,
    /// Names one of which a certificate under DANE-TA has to have.
    names: Vec<Domain>,
}

impl fmt::Debug for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.records.iter().map(ToString::to_string)).finish()
    }
}

fn is_usable(record: &Tlsa) -> bool {
    let length = record.data.len();
    let fits = match record.matching {
        0 => length > 0,
        1 => length == 32,
        2 => length == 64,
        _ => false,
    };
    matches!(record.usage, DANE_TA | DANE_EE) && record.selector <= 1 && fits
}

impl Demand {
    pub fn new(records: Vec<Tlsa>, names: Vec<Domain>) -> Demand {
        Demand { records: records.into_iter().filter(is_usable).take(RECORDS_MAX).collect(), names }
    }

    /// None of the records can be used.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Why the chain, the end entity first, is not good.
    pub fn judge(
        &self,
        chain: &[CertificateDer<'_>],
        provider: &Arc<CryptoProvider>,
        now: UnixTime,
    ) -> Result<(), String> {
        let (end_entity, others) = chain.split_first().ok_or("it showed no certificate")?;
        let mut why = "its certificate fits none of the TLSA records".to_owned();
        for record in &self.records {
            if record.usage == DANE_EE {
                if matches(record, end_entity) {
                    return Ok(());
                }
                continue;
            }
            for anchor in anchors(record, others) {
                match self.leads_to(&anchor, end_entity, others, provider, now) {
                    Ok(()) => return Ok(()),
                    Err(error) => why = error,
                }
            }
        }
        Err(why)
    }

    /// RFC 7672 3.1.2: the usual check, with what matched as the only authority.
    fn leads_to(
        &self,
        anchor: &CertificateDer<'_>,
        end_entity: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        provider: &Arc<CryptoProvider>,
        now: UnixTime,
    ) -> Result<(), String> {
        let mut roots = RootCertStore::empty();
        roots.add(anchor.clone().into_owned()).map_err(|error| error.to_string())?;
        let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
        let verifier = built.map_err(|error| error.to_string())?;
        let mut why = "none of its names can be in a certificate".to_owned();
        for name in &self.names {
            let Ok(name) = ServerName::try_from(name.as_str()) else { continue };
            match verifier.verify_server_cert(end_entity, others, &name, &[], now) {
                Ok(_) => return Ok(()),
                Err(error) => why = error.to_string(),
            }
        }
        Err(why)
    }
}

/// What may be the authority under a DANE-TA record: what matches in the chain, and the record itself if it
/// is a whole certificate.
fn anchors(record: &Tlsa, others: &[CertificateDer<'_>]) -> Vec<CertificateDer<'static>> {
    let shown = others.iter().take(CHAIN_MAX).filter(|certificate| matches(record, certificate));
    let mut anchors: Vec<_> = shown.map(|certificate| certificate.clone().into_owned()).collect();
    if (record.selector, record.matching) == (0, 0) {
        anchors.push(CertificateDer::from(record.data.clone()));
    }
    anchors
}

fn matches(record: &Tlsa, certificate: &CertificateDer<'_>) -> bool {
    let selected = match record.selector {
        0 => certificate.to_vec(),
        _ => match ParsedCertificate::try_from(certificate) {
            Ok(parsed) => parsed.subject_public_key_info().to_vec(),
            Err(_) => return false,
        },
    };
    match record.matching {
        0 => selected == record.data,
        1 => digest(&SHA256, &selected).as_ref() == record.data,
        _ => digest(&SHA512, &selected).as_ref() == record.data,
    }
}
