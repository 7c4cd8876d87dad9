//! Encryption of tokens at rest: AES-256-GCM with a key in a file beside the store, so that a copy of the
//! store alone (a backup, an export) gives no access to anybody's mailbox.

use std::io;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};

use crate::secret;

const FILE_NAME: &str = "token.key";

#[derive(Debug)]
pub struct Vault {
    key: RandomizedNonceKey,
}

impl Vault {
    /// With the key in `folder`, which is made if it is not there.
    pub fn open(folder: &Path) -> io::Result<Vault> {
        let bytes = secret::load(folder, FILE_NAME)?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(io::Error::other)?;
        Ok(Vault { key })
    }

    /// For `name` only: under another it cannot be opened. None if the system gives no random numbers.
    pub fn seal(&self, name: &str, mut content: Vec<u8>) -> Option<Vec<u8>> {
        let nonce = self.key.seal_in_place_append_tag(Aad::from(name), &mut content).ok()?;
        Some([nonce.as_ref().as_slice(), &content].concat())
    }

    /// None: it was sealed with another key, for another name, or has been changed.
    pub fn unseal(&self, name: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, content) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut content = content.to_vec();
        let length = self.key.open_in_place(nonce, Aad::from(name), &mut content).ok()?.len();
        content.truncate(length);
        Some(content)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_sealed_is_opened_by_the_same_key_for_the_same_name_only() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let sealed = Vault::open(folder.path()).unwrap().seal("office", b"token".to_vec()).unwrap();
        assert!(!sealed.windows(5).any(|piece| piece == b"token"));
        let again = Vault::open(folder.path()).unwrap();
        assert_eq!(again.unseal("office", &sealed).unwrap(), b"token");
        assert_eq!(again.unseal("other", &sealed), None);
        assert_eq!(Vault::open(other.path()).unwrap().unseal("office", &sealed), None);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(again.unseal("office", &changed), None);
            assert_eq!(again.unseal("office", &sealed[..at]), None);
        }
        assert_ne!(again.seal("office", b"token".to_vec()).unwrap(), sealed);
    }
}
