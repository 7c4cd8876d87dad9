//! Secrets that this server makes for itself: files of 32 random bytes in `data_dir`, for its owner only,
//! and what is proved with one of them.
//!
//! A file is whole or not there, whatever a crash interrupts. Losing one loses what it has sealed or
//! marked, never mail.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use aws_lc_rs::{constant_time, hmac};

pub const KEY_BYTES: usize = 32;
/// Owner only.
const MODE: u32 = 0o600;
/// In `data_dir`: the key of [`Marks`].
pub const MARKS_FILE: &str = "marks.key";

/// The bytes of `name` in `folder`, which are made if they are not there.
pub fn load(folder: &Path, name: &str) -> io::Result<Vec<u8>> {
    let path = folder.join(name);
    match read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(folder, name, &path),
        Ok(bytes) if bytes.len() != KEY_BYTES => Err(not_a_key()),
        other => other,
    }
}

fn not_a_key() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is not a key; remove it, and a new one is made")
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
fn make(folder: &Path, name: &str, path: &Path) -> io::Result<Vec<u8>> {
    let mut key = vec![0; KEY_BYTES];
    getrandom::fill(&mut key).map_err(io::Error::other)?;
    let unfinished = folder.join(format!("{name}.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&unfinished)?;
    file.write_all(&key)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    File::open(folder)?.sync_all()?;
    Ok(key)
}

/// By these we know again what we have given out ourselves: return paths, ids of notices.
#[derive(Clone, Debug)]
pub struct Marks {
    key: hmac::Key,
}

impl Marks {
    /// With the key in `data_dir`.
    pub fn open(data_dir: &Path) -> io::Result<Marks> {
        Ok(Marks { key: hmac::Key::new(hmac::HMAC_SHA256, &load(data_dir, MARKS_FILE)?) })
    }

    /// With the key in `data_dir` if that can be read; else with one that nothing was marked with. Writes
    /// nothing.
    pub fn look(data_dir: &Path) -> io::Result<Marks> {
        let mut key = vec![0; KEY_BYTES];
        getrandom::fill(&mut key).map_err(io::Error::other)?;
        if let Ok(bytes) = std::fs::read(data_dir.join(MARKS_FILE))
            && bytes.len() == KEY_BYTES
        {
            key = bytes;
        }
        Ok(Marks { key: hmac::Key::new(hmac::HMAC_SHA256, &key) })
    }

    /// HMAC-SHA256 of the parts, for one purpose: a mark for another never fits. Each part counts with its
    /// length, so that they cannot be cut differently.
    pub fn mark(&self, purpose: &str, parts: &[&[u8]]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        for part in std::iter::once(purpose.as_bytes()).chain(parts.iter().copied()) {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut mark = [0; 32];
        mark.iter_mut().zip(context.sign().as_ref()).for_each(|(to, from)| *to = *from);
        mark
    }
}

/// Are they the same? Takes as long for any two of one length.
pub fn same(mark: &[u8], other: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(mark, other).is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let first = Marks::open(folder.path()).unwrap().mark("a", &[b"b"]);
        assert_eq!(Marks::open(folder.path()).unwrap().mark("a", &[b"b"]), first);
    }

    #[test]
    fn a_key_is_for_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(MARKS_FILE);
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        Marks::open(folder.path()).unwrap();
        assert_eq!(mode(), MODE);
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        Marks::open(folder.path()).unwrap();
        assert_eq!(mode(), MODE);
    }

    #[test]
    fn a_file_that_is_no_key_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        for content in ["", "short", &"too long".repeat(5)] {
            std::fs::write(folder.path().join(MARKS_FILE), content).unwrap();
            let error = Marks::open(folder.path()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn purposes_and_cuts_give_different_marks() {
        let folder = tempfile::tempdir().unwrap();
        let marks = Marks::open(folder.path()).unwrap();
        let all = [
            marks.mark("a", &[b"bc"]),
            marks.mark("ab", &[b"c"]),
            marks.mark("a", &[b"b", b"c"]),
            marks.mark("a", &[b"bc", b""]),
        ];
        for (index, mark) in all.iter().enumerate() {
            assert!(all.iter().skip(index + 1).all(|other| !same(mark, other)));
            assert!(same(mark, mark));
        }
    }
}
