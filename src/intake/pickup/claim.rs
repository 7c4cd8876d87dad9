//! The record of a file that is being taken: what lets a start after a crash tell what was done.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::{Deserialize, Serialize};

use super::files::{Stamp, join};
use crate::store::{Batch, Table};

/// Its key is folder, NUL, path of the `.tmp` file from the folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The path that the file had, from the folder.
    pub name: Vec<u8>,
    pub stamp: Stamp,
    /// It is queued.
    pub done: bool,
}

/// A claim with its key.
pub type Keyed = (Vec<u8>, Claim);

impl Claim {
    pub fn put(&self, key: &[u8]) -> Batch {
        let mut batch = Batch::new();
        // Serializing this struct into memory cannot fail.
        batch.put(Table::Pickup, key, rmp_serde::to_vec_named(self).unwrap_or_default());
        batch
    }

    pub fn read(value: &[u8]) -> Option<Claim> {
        rmp_serde::from_slice(value).ok()
    }
}

pub fn key(folder: &str, path: &[u8]) -> Vec<u8> {
    [folder.as_bytes(), b"\0", path].concat()
}

/// The path of the `.tmp` file that a key names.
pub fn path<'k>(folder: &str, key: &'k [u8]) -> &'k [u8] {
    key.get(folder.len() + 1..).unwrap_or_default()
}

/// `bulk/x.tmp`: the sub-folder, and the name in it.
pub fn split(path: &[u8]) -> (Option<OsString>, OsString) {
    let name = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    match path.iter().position(|b| *b == b'/') {
        Some(at) => (path.get(..at).map(name), name(path.get(at + 1..).unwrap_or_default())),
        None => (None, name(path)),
    }
}

pub fn path_of(sub: Option<&str>, name: &OsStr) -> Vec<u8> {
    sub.map_or_else(|| name.as_bytes().to_vec(), |sub| join(sub, name).into_vec())
}
