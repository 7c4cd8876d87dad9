//! Encryption of tokens at rest: AES-256-GCM with a key in a file beside the store, so that a copy of the
//! store alone (a backup, an export) gives no access to anybody's mailbox.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};

const FILE_NAME: &str = "token.key";
const KEY_BYTES: usize = 32;
/// Owner only.
const MODE: u32 = 0o600;

#[derive(Debug)]
pub struct Vault {
    key: RandomizedNonceKey,
}

impl Vault {
    /// With the key in `folder`, which is made if it is not there.
    pub fn open(folder: &Path) -> io::Result<Vault> {
        let path = folder.join(FILE_NAME);
        let bytes = match read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(folder, &path)?,
            other => other?,
        };
        let not_a_key =
            |_| io::Error::new(io::ErrorKind::InvalidData, "it is not a key; remove it, and a new one is made");
        Ok(Vault { key: RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(not_a_key)? })
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

/// One byte more than a key is enough to see that it is none.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(MODE))?;
    }
    let mut bytes = Vec::new();
    file.take(KEY_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whole or not at all, so that a crash leaves no half of a key.
fn make(folder: &Path, path: &Path) -> io::Result<Vec<u8>> {
    let mut key = vec![0; KEY_BYTES];
    getrandom::fill(&mut key).map_err(io::Error::other)?;
    let unfinished = folder.join(format!("{FILE_NAME}.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&unfinished)?;
    file.write_all(&key)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    File::open(folder)?.sync_all()?;
    Ok(key)
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

    #[test]
    fn the_key_is_for_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        Vault::open(folder.path()).unwrap();
        assert_eq!(mode(), MODE);
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        Vault::open(folder.path()).unwrap();
        assert_eq!(mode(), MODE);
        for length in [0, 31, 33] {
            std::fs::write(&path, vec![1; length]).unwrap();
            assert_eq!(Vault::open(folder.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
