//! A look at the files of a store before RocksDB opens them: what is broken, and what to do about it.
//!
//! [`examine`] changes nothing. [`mend`] does what can be done without RocksDB; what it replaces it
//! keeps under `damaged/` in the folder.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::damage::Damage;
use super::wal;
use super::witness::{self, Found};

/// Folder for what was damaged and replaced.
pub const EVIDENCE_FOLDER: &str = "damaged";
/// Most folders with evidence.
const EVIDENCE_MAX: usize = 16;
const CURRENT: &str = "CURRENT";
const MANIFEST_PREFIX: &str = "MANIFEST-";

/// What the files say.
#[derive(Debug, Default)]
pub struct Examined {
    pub damages: Vec<Damage>,
    /// Nothing is there yet.
    pub is_new: bool,
    /// CURRENT has to name this file.
    current: Option<String>,
    /// RocksDB has to find its tables by itself.
    pub wants_repair: bool,
    /// Log files that are made anew of their whole batches.
    rewrite: Vec<(u64, PathBuf)>,
    /// Log files that end here.
    shorten: Vec<(PathBuf, u64)>,
}

pub fn examine(folder: &Path, found: Found) -> io::Result<Examined> {
    let mut examined = Examined::default();
    let names = file_names(folder)?;
    examined.is_new = !names.iter().any(|name| is_database_file(name));
    match found {
        Found::Damaged => {
            examined.note(witness::FILE_NAME, "cannot be read, so whether the newest mail is there is not known")
        }
        Found::Says(_, false) => {
            examined.note(witness::FILE_NAME, "one of its two copies cannot be read; the other one is used")
        }
        Found::Nothing | Found::Says(_, true) => {}
    }
    if examined.is_new {
        if found.statement().synced > 0 {
            examined.note("store", "all files of the database are gone, and the mail that was queued in them");
        }
        return Ok(examined);
    }
    manifest(folder, &names, found, &mut examined)?;
    logs(folder, &mut examined)?;
    Ok(examined)
}

impl Examined {
    fn note(&mut self, place: impl Into<String>, what: impl Into<String>) {
        self.damages.push(Damage::new(place, what));
    }
}

fn file_names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.extend(entry?.file_name().into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

fn is_database_file(name: &str) -> bool {
    name == CURRENT
        || name.starts_with(MANIFEST_PREFIX)
        || [".sst", ".log", ".blob"].iter().any(|end| name.ends_with(end))
}

/// The newest manifest, with its number.
pub fn newest_manifest(folder: &Path) -> io::Result<Option<(u64, PathBuf)>> {
    let number = |name: &String| name.strip_prefix(MANIFEST_PREFIX)?.parse::<u64>().ok();
    let newest = file_names(folder)?.into_iter().filter_map(|name| Some((number(&name)?, name))).max();
    Ok(newest.map(|(number, name)| (number, folder.join(name))))
}

fn manifest(folder: &Path, names: &[String], found: Found, examined: &mut Examined) -> io::Result<()> {
    let Some((newest, path)) = newest_manifest(folder)? else {
        examined.note("MANIFEST", "is gone; the tables are put together from what is there");
        examined.wants_repair = true;
        return Ok(());
    };
    let current = fs::read(folder.join(CURRENT)).unwrap_or_default();
    let current = String::from_utf8_lossy(&current).into_owned();
    let named = current.strip_suffix('\n').filter(|name| names.iter().any(|other| other == name));
    let name = format!("{MANIFEST_PREFIX}{newest:06}");
    if named.is_none() {
        let what =
            if names.iter().any(|name| name == CURRENT) { "does not name a file that exists" } else { "is gone" };
        examined.note(CURRENT, format!("{what}; {name} is taken, the newest there is"));
        examined.current = Some(name.clone());
    }
    let (number, least) = found.statement().manifest;
    let len = fs::metadata(&path)?.len();
    let flaw = wal::first_flaw(&path)?;
    // RocksDB takes a record that it cannot read for the end. So it is only behind what was there for
    // sure: a crash may leave a part of a record.
    let known = if newest == number { least } else { 0 };
    let flaw = flaw.filter(|flaw| *flaw < known || found.statement().manifest == (0, 0));
    if newest < number || (newest == number && len < least) {
        let was = format!("{MANIFEST_PREFIX}{number:06} had {least} bytes");
        examined.note(name, format!("has {len} bytes, but {was}; the tables are put together from what is there"));
        examined.wants_repair = true;
    } else if let Some(flaw) = flaw {
        examined.note(name, format!("cannot be read at byte {flaw}; the tables are put together from what is there"));
        examined.wants_repair = true;
    }
    Ok(())
}

fn logs(folder: &Path, examined: &mut Examined) -> io::Result<()> {
    for (number, path) in wal::files(folder)? {
        let name = format!("{number:06}.log");
        let mut gaps = Vec::new();
        // From one file to the next the numbers may leap: a spent file waits for another use while a
        // younger one is deleted already. Of files that are still needed RocksDB keeps a list.
        let mut expected: Option<u64> = None;
        let walked = wal::scan(&path, number, |found| {
            let gap = expected.and_then(|expected| found.sequence.checked_sub(expected));
            if let Some(missing) = gap.filter(|gap| *gap > 0) {
                gaps.push((found.offset, missing));
            }
            expected = Some(found.last().saturating_add(1));
        })?;
        for (offset, missing) in &gaps {
            examined.note(
                &name,
                format!(
                    "{missing} writes are missing before byte {offset}; mail in them is lost, what follows is kept"
                ),
            );
        }
        for offset in &walked.holes {
            examined.note(&name, format!("cannot be read at byte {offset}; what follows is kept"));
        }
        if !walked.holes.is_empty() {
            examined.rewrite.push((number, path));
        } else if walked.end < walked.len {
            // What a crash cut short, or what is left of an earlier use of the file.
            examined.shorten.push((path, walked.end));
        }
    }
    Ok(())
}

/// Puts right what [`examine`] found, as far as it can be.
pub fn mend(folder: &Path, examined: &Examined) -> io::Result<()> {
    if examined.wants_repair {
        keep_all(folder, &examined.damages);
    } else if !examined.damages.is_empty() && !examined.is_new {
        keep(folder, &examined.damages, &examined.rewrite);
    }
    for (number, path) in &examined.rewrite {
        wal::rewrite(path, *number)?;
    }
    for (path, end) in &examined.shorten {
        wal::shorten(path, *end)?;
    }
    if let Some(name) = &examined.current {
        let aside = folder.join("CURRENT.mended");
        let mut file = fs::File::create(&aside)?;
        writeln!(file, "{name}")?;
        file.sync_all()?;
        fs::rename(&aside, folder.join(CURRENT))?;
        fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// A new folder for what is replaced now; none if there are many already.
pub fn evidence_folder(folder: &Path) -> io::Result<PathBuf> {
    let seconds = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let all = folder.join(EVIDENCE_FOLDER);
    fs::create_dir_all(&all)?;
    if fs::read_dir(&all)?.count() >= EVIDENCE_MAX {
        return Err(io::Error::other(format!("{} holds enough already", all.display())));
    }
    for count in 0..=EVIDENCE_MAX {
        let path = all.join(format!("{seconds}-{count}"));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// What was found, beside the files.
pub fn report(evidence: &Path, damages: &[Damage]) -> io::Result<()> {
    let lines: Vec<String> = damages.iter().map(|damage| format!("{damage}\n")).collect();
    fs::write(evidence.join("report.txt"), lines.concat())
}

/// Copies of log files that will be replaced. Where the disk has no room for them the mail goes on
/// without: evidence is for people, and is worth less.
fn keep(folder: &Path, damages: &[Damage], logs: &[(u64, PathBuf)]) {
    let Ok(evidence) = evidence_folder(folder) else { return };
    let _ = report(&evidence, damages);
    for (_, path) in logs {
        if let Some(name) = path.file_name() {
            let _ = fs::copy(path, evidence.join(name));
        }
    }
}

/// Everything: tables as links, which take no space, what is small or will change as copies.
pub fn keep_all(folder: &Path, damages: &[Damage]) {
    let (Ok(evidence), Ok(names)) = (evidence_folder(folder), file_names(folder)) else { return };
    let _ = report(&evidence, damages);
    for name in names.iter().filter(|name| is_database_file(name)) {
        let (path, kept) = (folder.join(name), evidence.join(name));
        let is_table = name.ends_with(".sst") || name.ends_with(".blob");
        let _ = if is_table { fs::hard_link(path, kept) } else { fs::copy(path, kept).map(drop) };
    }
}
