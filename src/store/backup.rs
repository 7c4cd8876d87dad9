//! A copy of the store that is consistent in itself, made while the server writes on.

use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use rocksdb::checkpoint::Checkpoint;

use super::{Store, StoreError, open};

impl Store {
    /// Makes `path`, which must not be there, a store that holds all that is acknowledged up to now.
    /// On the same file system its files are shared with this store (hard links to files that never
    /// change), elsewhere they are copied. When this returns the copy is on disk.
    pub fn backup(&self, path: &Path) -> Result<(), StoreError> {
        let failed = |error: io::Error| StoreError::Failed(format!("{}: {error}", path.display()));
        Checkpoint::new(&self.open_database()?.db)?.create_checkpoint(path)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed)?;
        // The copy gets a witness of its own, or it would look like a store that has lost one.
        let last = open::open_read_only(path)?.latest_sequence_number();
        let mut witness = open::lock(path)?;
        witness.begin(open::statement(path, last)).map_err(failed)?;
        sync_folder(path).map_err(failed)
    }
}

/// Brings a folder's files, those of its folders, and its own entries to disk.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_folder(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(path)?.sync_all()
}

/// Copies a folder, for its owner alone (0700, 0600), and calls `copied` with the bytes of each file.
/// What is neither file nor folder (the admin socket) is left out. `to` must not be there.
pub fn copy_folder(from: &Path, to: &Path, copied: &mut dyn FnMut(u64)) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy_folder(&entry.path(), &target, copied)?;
        } else if kind.is_file() {
            let bytes = std::fs::copy(entry.path(), &target)?;
            std::fs::set_permissions(&target, Permissions::from_mode(0o600))?;
            copied(bytes);
        }
    }
    Ok(())
}

/// Bytes of all files in a folder, and how many there are. Files that go while it is looked at do not
/// count.
pub fn folder_size(path: &Path) -> io::Result<(u64, u64)> {
    let (mut bytes, mut files) = (0, 0);
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            let (more, inner) = folder_size(&entry.path())?;
            bytes += more;
            files += inner;
        } else if metadata.is_file() {
            bytes += metadata.len();
            files += 1;
        }
    }
    Ok((bytes, files))
}
