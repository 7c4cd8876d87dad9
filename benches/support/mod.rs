//! What the benches share: load generator, sink, servers in processes of their own, and what is made
//! of the figures. Nothing in here is used by the server.
#![allow(dead_code, reason = "each bench uses a part of it")]

pub mod book;
pub mod load;
pub mod names;
pub mod plot;
pub mod postfix;
pub mod process;
pub mod server;
pub mod sink;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

/// A number from the environment, or its default.
pub fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(value) => value.parse().unwrap_or_else(|_| panic!("{name}={value:?} is not a number")),
        Err(_) => default,
    }
}

/// Where results and everything thrown away lie: `bench/` in cargo's target folder, so on its disk.
pub fn folder() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let folder = target.join("bench");
    std::fs::create_dir_all(&folder).unwrap();
    folder.canonicalize().unwrap()
}

/// A folder that goes with the value, on the same disk as the results.
pub fn scratch() -> tempfile::TempDir {
    let prefix = format!("{SCRATCH}{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir_in(folder()).unwrap()
}

/// The same for processes that change their user: where those could not come here (a target folder in
/// root's home), it lies in `/var/tmp`, which is on a disk too.
pub fn open_scratch() -> tempfile::TempDir {
    if is_open_to_all(&folder()) { scratch() } else { tempfile::Builder::new().tempdir_in("/var/tmp").unwrap() }
}

/// Whether any user may come to it.
pub fn is_open_to_all(folder: &std::path::Path) -> bool {
    let search_by_others = 0o001;
    folder
        .ancestors()
        .all(|folder| std::fs::metadata(folder).is_ok_and(|found| found.permissions().mode() & search_by_others != 0))
}

/// Removes what benches that were killed have left behind.
pub fn clean_up() {
    for entry in std::fs::read_dir(folder()).unwrap().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(SCRATCH)?.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

const SCRATCH: &str = "run-";

/// Free bytes where [`scratch`] lies.
pub fn free_bytes() -> u64 {
    let disk = rustix::fs::statvfs(folder()).unwrap();
    disk.f_bavail * disk.f_frsize
}

/// Bytes that the files below `path` take.
pub fn disk_bytes(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        // Deleted since it was listed.
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

/// What one round leaves to be written back must not fall into the next.
pub fn settle() {
    rustix::fs::sync();
    std::thread::sleep(Duration::from_millis(100));
}

/// A line of progress, on standard error.
pub fn say(text: impl AsRef<str>) {
    eprintln!("{}", text.as_ref());
}
