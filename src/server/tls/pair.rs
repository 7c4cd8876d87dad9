//! Certificates and keys as files: reading them, with what is wrong in words, and writing our own.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tokio_rustls::rustls;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;

use crate::config::{Certificate, Written};

/// Bytes of a certificate or key file that are read; a longer file is not one.
const PEM_BYTES_MAX: u64 = 1024 * 1024;

/// Why there is no certificate to show. Each text names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{}: cannot be read: {error}; {key} must name a PEM file that postrider's user may read", file.display())]
    Unreadable { file: PathBuf, key: String, error: io::Error },
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
    /// Of a pair that the configuration names.
    #[error("{}:{}: {}: {error}", written.file, written.line, written.section)]
    Written { written: Written, error: Box<TlsError> },
}

/// The pair that the configuration names; errors say where.
pub(super) fn read_configured(files: &Certificate, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    read_pair(&files.certificate, &files.private_key, files.written.section, provider)
        .map_err(|error| TlsError::Written { written: files.written.clone(), error: Box::new(error) })
}

/// `section`: where the two files are named.
pub(in crate::server) fn read_pair(
    certificate: &Path,
    key: &Path,
    section: &str,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let chain_text = read_pem(certificate, &format!("{section}.certificate"))?;
    let key_text = read_pem(key, &format!("{section}.private_key"))?;
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

fn read_pem(file: &Path, key: &str) -> Result<Vec<u8>, TlsError> {
    use std::io::Read;
    let unreadable = |error| TlsError::Unreadable { file: file.to_owned(), key: key.to_owned(), error };
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
        remedy: "a certificate is a PEM file with the server's certificate, then the intermediate ones",
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
            "a private key is a PEM file with a PKCS#8, PKCS#1 or SEC1 key",
        )
    })
}

/// The file is there whole or not at all, and never readable for more than `mode` says.
pub(in crate::server) fn replace(file: &Path, text: &[u8], mode: u32) -> Result<(), TlsError> {
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
