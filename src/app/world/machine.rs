//! What mail needs of the machine: a clock that is right, and a disk that keeps what it says it has.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use tokio::process::Command;
use tokio::time::timeout;

use super::{Finding, Level, Topic, World};

/// Syncs that are measured; the middle one counts.
const SYNCS: usize = 21;
/// Octets written before each, as for a small message.
const BLOCK_BYTES: usize = 4096;
/// A disk that takes longer lets few messages in: each is answered only when it is on disk.
const SLOW: Duration = Duration::from_millis(20);
/// No disk is as fast: it has a cache that it calls a disk.
const TOO_FAST: Duration = Duration::from_micros(20);
/// All of them together take no longer.
const SYNCS_TIME_MAX: Duration = Duration::from_secs(10);
/// A program that tells of the clock has so long.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(5);
/// Files of ours may be that much ahead of the clock: other machines write them, too.
const AHEAD_MAX: Duration = Duration::from_secs(120);
/// `f_type` of file systems in memory.
const TMPFS: i64 = 0x0102_1994;
const RAMFS: i64 = 0x8584_58f6;

/// Who knows whether the clock is set by others: programs, in this order, and what each says.
#[derive(Clone, Debug)]
pub struct Clockwork {
    pub timedatectl: PathBuf,
    pub chronyc: PathBuf,
}

impl Default for Clockwork {
    fn default() -> Clockwork {
        Clockwork { timedatectl: "timedatectl".into(), chronyc: "chronyc".into() }
    }
}

impl World {
    /// Is the clock set by somebody who knows the time? And does it not run behind our own files?
    pub(super) async fn clock(&self) -> Finding {
        let of = "this machine";
        let why = "A wrong clock breaks TLS, signatures, DNSSEC and the times at which mail is tried again.";
        if let Some((file, ahead)) = newest(&self.config.data_dir) {
            let found = format!("{} was written {} s in the future", file.display(), ahead.as_secs());
            return Finding::new(Topic::Clock, of, Level::Problem, found)
                .remedy("set the clock, and let NTP keep it: `timedatectl set-ntp true`, or chrony")
                .why(why);
        }
        match self.is_synchronized().await {
            Some((true, who)) => Finding::ok(Topic::Clock, of, format!("kept by NTP, says {who}")),
            Some((false, who)) => {
                Finding::new(Topic::Clock, of, Level::Warning, format!("not kept by NTP, says {who}"))
                    .remedy("`timedatectl set-ntp true`, or install chrony")
                    .why(why)
            }
            None => Finding::new(
                Topic::Clock,
                of,
                Level::Note,
                "whether it is kept by NTP is not known: nobody to ask here",
            )
            .remedy("in a container, see to the clock of its host"),
        }
    }

    async fn is_synchronized(&self) -> Option<(bool, &'static str)> {
        let Clockwork { timedatectl, chronyc } = &self.clockwork;
        if let Some(said) = said(timedatectl, &["show", "--property=NTPSynchronized", "--value"]).await {
            match said.trim() {
                "yes" => return Some((true, "timedatectl")),
                "no" => return Some((false, "timedatectl")),
                _ => {}
            }
        }
        let said = said(chronyc, &["-n", "tracking"]).await?;
        let leap = said.lines().find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == "Leap status"))?;
        Some((!leap.1.to_ascii_lowercase().contains("not synchronised"), "chronyc"))
    }

    /// How long a sync takes where the queue lies.
    pub(super) async fn disk(&self) -> Finding {
        let folder = self.config.data_dir.clone();
        let of = folder.display().to_string();
        if !folder.is_dir() {
            return Finding::new(Topic::Disk, of, Level::Note, "not measured: the folder is not there yet");
        }
        let place = folder.clone();
        let measured = tokio::task::spawn_blocking(move || measure(&place)).await;
        match measured {
            Ok(Ok(times)) => judge_syncs(&of, &times, is_in_memory(&folder)),
            Ok(Err(error)) => Finding::new(Topic::Disk, of, Level::Warning, format!("not measured: {error}"))
                .remedy("run this as the user that runs the server"),
            Err(_) => Finding::new(Topic::Disk, of, Level::Warning, "not measured: the look was broken off"),
        }
    }
}

/// What a program says; none if it is not there, fails, or takes too long.
async fn said(program: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = timeout(PROGRAM_TIMEOUT, command.output()).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A file of ours from the future.
fn newest(folder: &Path) -> Option<(PathBuf, Duration)> {
    let now = SystemTime::now();
    let entries = fs::read_dir(folder).ok()?;
    let times = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let ahead = entry.metadata().ok()?.modified().ok()?.duration_since(now).ok()?;
        (ahead > AHEAD_MAX).then(|| (entry.path(), ahead))
    });
    times.max_by_key(|(_, ahead)| *ahead)
}

fn is_in_memory(folder: &Path) -> bool {
    rustix::fs::statfs(folder).is_ok_and(|found| {
        #[allow(clippy::unnecessary_cast, reason = "its type differs between systems")]
        let kind = found.f_type as i64;
        kind == TMPFS || kind == RAMFS
    })
}

/// The file goes with the end of this.
struct Probe {
    path: PathBuf,
    file: File,
}

impl Drop for Probe {
    fn drop(&mut self) {
        // One that stays is small, and overwritten by none.
        let _ = fs::remove_file(&self.path);
    }
}

fn measure(folder: &Path) -> io::Result<Vec<Duration>> {
    let path = folder.join(format!(".sync-test-{}", std::process::id()));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    let mut probe = Probe { path, file };
    // As the queue's log: the room is there before, so that a sync writes no more than the data.
    probe.file.write_all(&vec![0; BLOCK_BYTES * SYNCS])?;
    probe.file.sync_all()?;
    probe.file.seek(SeekFrom::Start(0))?;
    let begun = Instant::now();
    let mut times = Vec::with_capacity(SYNCS);
    for number in 0..SYNCS {
        let block = vec![u8::try_from(number % 256).unwrap_or_default() | 1; BLOCK_BYTES];
        let since = Instant::now();
        probe.file.write_all(&block)?;
        probe.file.sync_data()?;
        times.push(since.elapsed());
        if begun.elapsed() > SYNCS_TIME_MAX {
            break;
        }
    }
    Ok(times)
}

/// What the times of syncs say of a disk.
pub fn judge_syncs(of: &str, times: &[Duration], in_memory: bool) -> Finding {
    let mut sorted = times.to_vec();
    sorted.sort();
    let Some(median) = sorted.get(sorted.len() / 2).copied() else {
        return Finding::new(Topic::Disk, of, Level::Note, "not measured");
    };
    let found = format!("a sync takes {:.2} ms (the middle one of {})", median.as_secs_f64() * 1000.0, sorted.len());
    let why = "A message is answered with 250 once it is synced: then it has to be there after a power failure.";
    if in_memory {
        return Finding::new(
            Topic::Disk,
            of,
            Level::Warning,
            "a file system in memory: what is queued is gone with the next start of the machine",
        )
        .remedy("put data_dir on a disk")
        .why(why);
    }
    if median < TOO_FAST {
        return Finding::new(
            Topic::Disk,
            of,
            Level::Warning,
            format!("{found}: no disk is so fast, so something in between says \"synced\" too soon"),
        )
        .remedy("look for a write-back cache without a battery, a virtual disk with cache=unsafe, or libeatmydata")
        .why(why);
    }
    if median > SLOW {
        return Finding::new(Topic::Disk, of, Level::Warning, format!("{found}: slow"))
            .remedy("put data_dir on an SSD, or on a disk that other programs do not keep busy")
            .why("Every message waits for a sync; many at once share one, single ones are slow.");
    }
    Finding::ok(Topic::Disk, of, found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_disk_is_judged_by_the_middle_of_its_syncs() {
        let judged = |micros: &[u64], in_memory| {
            let times: Vec<Duration> = micros.iter().map(|micros| Duration::from_micros(*micros)).collect();
            judge_syncs("/var/lib/postrider", &times, in_memory)
        };
        let good = judged(&[1500, 900_000, 1100, 1200, 1000], false);
        assert_eq!((good.level, good.found.as_str()), (Level::Ok, "a sync takes 1.20 ms (the middle one of 5)"));
        assert!(good.why.is_empty());
        assert_eq!(judged(&[30_000, 25_000, 100], false).level, Level::Warning);
        let lies = judged(&[3, 4, 5], false);
        assert!(lies.level == Level::Warning && lies.found.contains("too soon"), "{lies:?}");
        assert!(judged(&[3, 4, 5], true).found.contains("memory"));
        assert_eq!(judged(&[], false).level, Level::Note);
    }

    #[test]
    fn measuring_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!measure(folder.path()).unwrap().is_empty());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(measure(&folder.path().join("none")).is_err());
    }

    #[test]
    fn a_file_from_the_future_shows_a_clock_that_is_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "x").unwrap();
        assert_eq!(newest(folder.path()), None);
        let later = SystemTime::now() + Duration::from_secs(3600);
        File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert!(newest(folder.path()).unwrap().1 > Duration::from_secs(3000));
    }
}
