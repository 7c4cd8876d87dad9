//! What is kept of an authority under `data_dir/tls/acme`: our account with it, the certificate with its key, and
//! notes of orders. For the owner only, and each file is there whole or not at all.
//!
//! Another authority or another name has files of its own, so that a change of the configuration orders anew,
//! and changing it back finds what there was.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use instant_acme::AccountCredentials;
use serde::{Deserialize, Serialize};
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::sign::CertifiedKey;

use super::plan::Notes;
use crate::config::{Acme, Config};
use crate::server::tls::TlsError;
use crate::server::tls::pair::{read_pair, replace};

/// Octets of the directory's digest that tell two authorities apart.
const TAG_BYTES: usize = 4;

#[derive(Clone, Debug)]
pub(super) struct Shelf {
    folder: PathBuf,
    /// Of the authority.
    authority: String,
    /// Of the name.
    name: String,
}

/// Our account with an authority.
#[derive(Serialize, Deserialize)]
pub(super) struct KeptAccount {
    /// As it was told to the authority.
    pub contact: String,
    pub credentials: AccountCredentials,
}

impl Shelf {
    pub fn of(config: &Config, acme: &Acme) -> Shelf {
        let host =
            acme.directory.split("://").nth(1).and_then(|rest| rest.split(['/', ':']).next()).unwrap_or_default();
        let host: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-')).collect();
        let whole = digest(&SHA256, acme.directory.as_bytes());
        let tag: String = whole.as_ref().iter().take(TAG_BYTES).map(|octet| format!("{octet:02x}")).collect();
        Shelf {
            folder: config.data_dir.join("tls").join("acme"),
            authority: format!("{host}-{tag}"),
            name: config.hostname.to_string(),
        }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn file(&self, of: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{}{of}.{extension}", self.authority))
    }

    fn of_name(&self, extension: &str) -> PathBuf {
        self.file(&format!("-{}", self.name), extension)
    }

    pub fn pair_file(&self) -> PathBuf {
        self.of_name("pem")
    }

    /// The certificate with its key.
    pub fn pair(&self, provider: &CryptoProvider) -> Option<CertifiedKey> {
        let file = self.pair_file();
        read_pair(&file, &file, "tls.acme", provider).ok()
    }

    /// A new one, beside the one that there is.
    pub fn write_candidate(&self, pem: &str) -> io::Result<()> {
        self.write(&self.of_name("candidate"), pem.as_bytes())
    }

    pub fn candidate(&self, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let file = self.of_name("candidate");
        read_pair(&file, &file, "tls.acme", provider)
    }

    pub fn discard_candidate(&self) {
        // It is written over by the next in any case.
        let _ = fs::remove_file(self.of_name("candidate"));
    }

    /// In the place of the one that there is.
    pub fn accept_candidate(&self) -> io::Result<()> {
        fs::rename(self.of_name("candidate"), self.of_name("pem"))?;
        self.sync()
    }

    /// Notes that are not there or cannot be read are none: the certificate is what counts.
    pub fn notes(&self) -> Notes {
        let text = fs::read(self.of_name("json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    pub fn write_notes(&self, notes: &Notes) -> io::Result<()> {
        self.write(&self.of_name("json"), &serde_json::to_vec_pretty(notes)?)
    }

    /// An account that cannot be read is none: a new one costs nothing.
    pub fn account(&self) -> Option<KeptAccount> {
        serde_json::from_slice(&fs::read(self.file("", "account.json")).ok()?).ok()
    }

    pub fn write_account(&self, account: &KeptAccount) -> io::Result<()> {
        self.write(&self.file("", "account.json"), &serde_json::to_vec_pretty(account)?)
    }

    pub fn forget_account(&self) {
        // What cannot be removed is tried again, and fails again, which is told.
        let _ = fs::remove_file(self.file("", "account.json"));
    }

    fn write(&self, file: &Path, text: &[u8]) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        replace(file, text, 0o600).map_err(|error| match error {
            TlsError::Unwritable { error, .. } => error,
            other => io::Error::other(other.to_string()),
        })?;
        self.sync()
    }

    /// The name of a file is on disk as well.
    fn sync(&self) -> io::Result<()> {
        fs::File::open(&self.folder)?.sync_all()
    }
}
