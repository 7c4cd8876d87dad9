//! What would become of the files in a folder, and whether the folder is fit: for people, without a server.
//! Nothing is taken, moved or locked.

use std::collections::HashSet;
use std::io::{self, Read};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::envelope::{Bad, Eml, read_eml};
use super::files::{self, Dir, Found};
use super::{Folder, Said};
use crate::clock::{Millis, rfc3339};
use crate::config::PickupFormat;

/// Files that are looked into.
pub const FILES_MAX: usize = 1000;

/// A folder, and what lies in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspected {
    pub folder: String,
    pub path: String,
    /// `uid 0, gid 0, mode 2730`
    pub rights: String,
    /// What keeps files from being taken.
    pub problems: Vec<String>,
    /// What may surprise.
    pub remarks: Vec<String>,
    pub files: Vec<Prospect>,
    /// Named like a message but never taken.
    pub never: Vec<Said>,
    /// There are more files than were looked into.
    pub is_cut: bool,
}

/// A waiting file, and what it would become.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prospect {
    pub file: String,
    pub bytes: u64,
    /// RFC 3339.
    pub modified: String,
    /// It is old enough.
    pub settled: bool,
    /// `envelope block, dots doubled, UTF-16`, or `header`.
    pub seen: String,
    pub from: String,
    pub to: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// Why it would be put aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bad: Option<String>,
}

/// Looks at the folder; `unique` names a file for trying out its rights.
pub fn inspect(folder: &Folder, now: Millis, unique: &str) -> Inspected {
    let mut told =
        Inspected { folder: folder.name.clone(), path: folder.path.display().to_string(), ..Inspected::default() };
    let dir = match Dir::open(&folder.path) {
        Ok(dir) => Arc::new(dir),
        Err(error) => {
            let remedy =
                if error.kind() == io::ErrorKind::NotFound { "; make it, writable for postrider's user" } else { "" };
            told.problems.push(format!("the folder cannot be read: {error}{remedy}"));
            return told;
        }
    };
    if let Err(error) = look(folder, &dir, &mut told, now, unique) {
        told.problems.push(format!("the folder cannot be read: {error}"));
    }
    told
}

fn look(folder: &Folder, dir: &Arc<Dir>, told: &mut Inspected, now: Millis, unique: &str) -> io::Result<()> {
    let rights = dir.rights()?;
    told.rights = format!("uid {}, gid {}, mode {:04o}", rights.owner, rights.group, rights.mode);
    told.problems.extend(rights.trouble().map(str::to_owned));
    if let Err(error) = dir.try_out(unique) {
        told.problems.push(format!("files cannot be written, renamed and removed by this user: {error}"));
    }
    if dir.is_remote() {
        let remark = "a share of another machine: changes are found by looking only, and locks of writers may not show; \
                      a longer settle is safer";
        told.remarks.push(remark.to_owned());
    }
    let listing = files::list(dir, FILES_MAX, &HashSet::new())?;
    for sub in &listing.subs {
        check_sub(folder, dir, sub, told, unique);
    }
    told.is_cut = listing.is_cut;
    told.never = listing.odd.iter().map(|(file, why)| Said { file: shown(file), reason: (*why).to_owned() }).collect();
    told.files = listing.found.iter().map(|found| prospect(folder, found, now)).collect();
    Ok(())
}

fn check_sub(folder: &Folder, dir: &Dir, sub: &str, told: &mut Inspected, unique: &str) {
    let Ok(inner) = dir.sub(sub.as_ref()) else { return };
    if !folder.streams.iter().any(|stream| stream == sub) {
        told.problems.push(format!("{sub}/ is no stream that the account may use: files in it are put aside"));
    }
    if let Err(error) = inner.try_out(unique) {
        told.problems.push(format!("{sub}/: files cannot be written, renamed and removed by this user: {error}"));
    }
    if inner.device().ok() != dir.device().ok() {
        told.problems.push(format!("{sub}/ lies on another file system: files cannot be moved from there to archive/"));
    }
    if let Some(trouble) = inner.rights().ok().and_then(|rights| rights.trouble()) {
        told.problems.push(format!("{sub}/: {trouble}"));
    }
}

fn shown(path: &std::ffi::OsStr) -> String {
    path.to_string_lossy().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn prospect(folder: &Folder, found: &Found, now: Millis) -> Prospect {
    let modified = u64::try_from(found.stamp.modified()).unwrap_or_default();
    let settle = u64::try_from(folder.settle.as_millis()).unwrap_or(Millis::MAX);
    let mut told = Prospect {
        file: shown(&found.path),
        bytes: found.stamp.size,
        modified: rfc3339(modified),
        settled: modified.saturating_add(settle) <= now,
        stream: found.stream.clone(),
        ..Prospect::default()
    };
    match read(folder, found) {
        Ok(Ok(eml)) => describe(folder, &eml, &mut told),
        Ok(Err(reason)) => told.bad = Some(reason),
        Err(error) => told.bad = Some(format!("it cannot be read: {error}")),
    }
    told
}

fn read(folder: &Folder, found: &Found) -> io::Result<Result<Eml, String>> {
    if let Some(reason) = folder.why_bad(found)? {
        return Ok(Err(reason));
    }
    let mut bytes = Vec::new();
    files::open(&found.dir, &found.name)?.take(folder.max_size.saturating_add(1)).read_to_end(&mut bytes)?;
    let read = read_eml(&bytes, folder.format, found.stream.as_deref());
    Ok(read.map_err(|Bad { reason, .. }| reason))
}

fn describe(folder: &Folder, eml: &Eml, told: &mut Prospect) {
    let mut seen = vec![if eml.seen.block { "envelope block" } else { "header" }];
    if eml.seen.stuffed {
        seen.push(if folder.format == PickupFormat::Iis { "dots as in SMTP" } else { "dots doubled" });
    }
    if eml.seen.utf16 {
        seen.push("UTF-16");
    }
    told.seen = seen.join(", ");
    told.from = format!("<{}>", eml.envelope.mail_from);
    let all = &eml.envelope.recipients;
    told.to = all.iter().map(|recipient| recipient.address.to_string()).collect();
    if all.len() > folder.max_recipients {
        told.bad = Some(format!("the message has {} recipients; {} are allowed", all.len(), folder.max_recipients));
    }
}
