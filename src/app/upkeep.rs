//! Care for the store as a whole: backup, restore, compaction; on a running server's store, or on one
//! that is stopped.
//!
//! A backup is a folder like `data_dir`: the store, the keys and certificates that were made here, and
//! `BACKUP.json`, which is written last and says that it is complete.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::admin::{BackedUp, Compacted, Complaint};
use crate::clock::{Millis, rfc3339};
use crate::secret;
use crate::store::backup::{copy_folder, folder_size, sync_folder};
use crate::store::{FORMAT_VERSION, Store};

/// What is in a `data_dir` beside the store: DKIM keys, the certificate made at the first start; and the
/// files below.
const KEY_FOLDERS: [&str; 2] = ["dkim", "tls"];
/// Without it no bounce could be proved any more of what has been sent (`secret::Marks`).
const KEY_FILES: [&str; 1] = [secret::MARKS_FILE];
const STORE_FOLDER: &str = "store";
/// The last file of a backup.
pub const MANIFEST: &str = "BACKUP.json";

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub postrider_backup: u32,
    pub version: String,
    pub hostname: String,
    pub made_at: String,
    pub store_format: u32,
}

/// Makes a backup in `to`, which must be empty or not there.
pub fn back_up(store: &Store, data_dir: &Path, to: &Path, hostname: &str, now: Millis) -> Result<BackedUp, Complaint> {
    make_empty(to)?;
    let made = || -> Result<(), Complaint> {
        store.backup(&to.join(STORE_FOLDER)).map_err(|error| {
            Complaint::new(format!("the store could not be copied: {error}"), "is there room where the backup goes?")
        })?;
        for folder in KEY_FOLDERS {
            let from = data_dir.join(folder);
            if from.is_dir() {
                copy_folder(&from, &to.join(folder), &mut |_| ()).map_err(|error| io_trouble(&from, &error))?;
            }
        }
        for file in KEY_FILES {
            let from = data_dir.join(file);
            if from.is_file() {
                copy_file(&from, &to.join(file)).map_err(|error| io_trouble(&from, &error))?;
            }
        }
        sync_folder(to).map_err(|error| io_trouble(to, &error))?;
        let manifest = Manifest {
            postrider_backup: 1,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            hostname: hostname.to_owned(),
            made_at: rfc3339(now),
            store_format: FORMAT_VERSION,
        };
        write_manifest(to, &manifest).map_err(|error| io_trouble(&to.join(MANIFEST), &error))
    };
    if let Err(complaint) = made() {
        // A half backup must not look like one; without its manifest it does not, if this fails too.
        for name in [STORE_FOLDER, KEY_FOLDERS[0], KEY_FOLDERS[1]] {
            let _ = std::fs::remove_dir_all(to.join(name));
        }
        for name in KEY_FILES {
            let _ = std::fs::remove_file(to.join(name));
        }
        return Err(complaint);
    }
    let (bytes, files) = folder_size(to).map_err(|error| io_trouble(to, &error))?;
    Ok(BackedUp { to: to.display().to_string(), bytes, files })
}

/// For its owner only.
fn copy_file(from: &Path, to: &Path) -> io::Result<u64> {
    let bytes = std::fs::read(from)?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(to)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    Ok(bytes.len() as u64)
}

fn make_empty(to: &Path) -> Result<(), Complaint> {
    if !to.is_absolute() {
        return Err(Complaint::new(format!("{} is not an absolute path", to.display()), "name it from / on"));
    }
    match std::fs::read_dir(to) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(Complaint::new(
                format!("{} is not empty", to.display()),
                "name a folder that is not there yet; a backup never overwrites another one",
            )),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(to).map_err(|error| io_trouble(to, &error))
        }
        Err(error) => Err(io_trouble(to, &error)),
    }
}

fn write_manifest(to: &Path, manifest: &Manifest) -> io::Result<()> {
    let text = serde_json::to_string_pretty(manifest)? + "\n";
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to.join(MANIFEST))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    File::open(to)?.sync_all()
}

fn io_trouble(path: &Path, error: &io::Error) -> Complaint {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => "the user that runs the server must be able to write there",
        io::ErrorKind::StorageFull => "make room, or name a folder on another disk",
        _ => "check the folder, then try again",
    };
    Complaint::new(format!("{}: {error}", path.display()), remedy)
}

/// Gives back the space of what was deleted.
pub fn compact(store: &Store, data_dir: &Path) -> Result<Compacted, Complaint> {
    let folder = data_dir.join(STORE_FOLDER);
    let size = || folder_size(&folder).map(|(bytes, _)| bytes).map_err(|error| io_trouble(&folder, &error));
    let before = size()?;
    store.compact().map_err(|error| {
        Complaint::new(format!("the store could not be compacted: {error}"), "`postrider store check` says more")
    })?;
    Ok(Compacted { before, after: size()? })
}

/// What a restore did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Restored {
    pub manifest: Manifest,
    pub bytes: u64,
    /// What was there before, under its new name.
    pub moved_aside: Vec<PathBuf>,
    /// Keys that were there and have been left as they are.
    pub kept: Vec<PathBuf>,
}

/// Copies a backup into `data_dir`, whose server is stopped. A store that is there is in the way, or
/// with `force` moved aside, never deleted. The copy takes its place in one step when it is complete.
pub fn restore(
    from: &Path,
    data_dir: &Path,
    force: bool,
    now: Millis,
    copied: &mut dyn FnMut(u64),
) -> Result<Restored, Complaint> {
    let manifest = read_manifest(from)?;
    let store = data_dir.join(STORE_FOLDER);
    let there = std::fs::read_dir(&store).is_ok_and(|mut entries| entries.next().is_some());
    if there && !force {
        return Err(Complaint::new(
            format!("there is a store in {} already", data_dir.display()),
            "--force moves it aside; or name another data_dir",
        ));
    }
    if there {
        // Holds the lock only while it looks: that nobody has it open is all we want to know. A store
        // that is too broken to be looked at is moved aside all the same.
        if let Err(error @ crate::store::StoreError::InUse) = Store::open_read_only(&store) {
            return Err(Complaint::new(format!("{}: {error}", store.display()), "stop the server, then try again"));
        }
    }
    DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(|error| io_trouble(data_dir, &error))?;
    let stamp = now / 1000;
    let mut restored = Restored { manifest, bytes: 0, moved_aside: Vec::new(), kept: Vec::new() };
    for name in [STORE_FOLDER].into_iter().chain(KEY_FOLDERS).chain(KEY_FILES) {
        let (source, target) = (from.join(name), data_dir.join(name));
        if !source.exists() {
            continue;
        }
        if target.exists() && !force && name != STORE_FOLDER {
            restored.kept.push(target);
            continue;
        }
        let half = data_dir.join(format!("{name}.restoring"));
        let placed = (|| -> io::Result<()> {
            let mut count = |bytes| {
                restored.bytes += bytes;
                copied(bytes);
            };
            if source.is_file() {
                count(copy_file(&source, &half)?);
            } else {
                if half.exists() {
                    std::fs::remove_dir_all(&half)?;
                }
                copy_folder(&source, &half, &mut count)?;
                sync_folder(&half)?;
            }
            if target.exists() {
                let aside = free_name(data_dir, &format!("{name}.before-{stamp}"));
                std::fs::rename(&target, &aside)?;
                restored.moved_aside.push(aside);
            }
            std::fs::rename(&half, &target)?;
            File::open(data_dir)?.sync_all()
        })();
        placed.map_err(|error| io_trouble(&target, &error))?;
    }
    Ok(restored)
}

/// Two restores may be made within a second, and what the first has moved aside must stay.
fn free_name(folder: &Path, name: &str) -> PathBuf {
    let numbered = (2u32..).map(|number| folder.join(format!("{name}-{number}")));
    let mut names = std::iter::once(folder.join(name)).chain(numbered);
    names.find(|path| path.symlink_metadata().is_err()).unwrap_or_else(|| folder.join(name))
}

fn read_manifest(from: &Path) -> Result<Manifest, Complaint> {
    let path = from.join(MANIFEST);
    let text = std::fs::read(&path).map_err(|error| {
        Complaint::new(
            format!("{}: {error}", path.display()),
            "name a folder that `postrider store backup` has made; without this file a backup is not complete",
        )
    })?;
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|error| Complaint::new(format!("{}: {error}", path.display()), "use another backup"))?;
    if manifest.store_format > FORMAT_VERSION {
        return Err(Complaint::new(
            format!(
                "the backup was made by postrider {} in store format {}; this one knows {FORMAT_VERSION}",
                manifest.version, manifest.store_format
            ),
            "install that version again",
        ));
    }
    Ok(manifest)
}
