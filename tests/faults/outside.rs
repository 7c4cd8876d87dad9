//! What comes from outside of the server: errors and kills at a system call (strace), file systems of
//! a chosen size (tmpfs, or ext4 or xfs in a file), and the loss of power.
//!
//! Each helper says why it cannot, so that the test is left out loudly. Mounts go with their guard; what
//! a killed test run left is taken away by the next.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(30);
/// Folders of this name, with the process' id behind it, hold mounts of a test.
const MOUNTS: &str = "postrider-faults-";
/// FS_IOC_SHUTDOWN (of ext4 and of xfs) with GOING_FLAGS_NOLOGFLUSH: from now on nothing reaches the disk, and what the
/// page cache and the journal in memory hold is gone. `unsafe` is forbidden in here, so Python calls it.
const POWER_CUT: &str = "
import fcntl, os, struct, sys
folder = os.open(sys.argv[1], os.O_RDONLY)
print('ready', flush=True)
sys.stdin.readline()
fcntl.ioctl(folder, 0x8004587d, struct.pack('I', 2))
";

fn run(words: &[&str]) -> Result<String, String> {
    let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{}: {error}", words[0]))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let trouble = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}: {}", words.join(" "), trouble.trim()))
}

/// Why strace cannot trace here, if so.
pub fn strace_missing() -> Option<String> {
    run(&["strace", "-qq", "-e", "trace=none", "true"]).err()
}

/// A command before the server's: the server runs as our own child, and `inject` holds from its first
/// system call on. `calls` is a list for strace, `what` such as `signal=SIGKILL:when=3` (counted for each
/// thread).
pub fn injecting(calls: &str, what: &str) -> Vec<String> {
    let inject = format!("inject={calls}:{what}");
    let trace = format!("trace={calls}");
    let words = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject, "--"];
    words.map(str::to_owned).to_vec()
}

/// An injection into a running server, from now until it is dropped.
#[derive(Debug)]
pub struct Injection {
    strace: std::process::Child,
}

impl Injection {
    /// Returns when every thread is under it.
    pub async fn start(pid: u32, calls: &str, what: &str) -> Injection {
        Injection::start_for(pid, calls, what, &[]).await
    }

    /// Only calls that concern one of these files, if there are any.
    pub async fn start_for(pid: u32, calls: &str, what: &str, files: &[PathBuf]) -> Injection {
        let strace = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:{what}"), "-p", &pid.to_string()])
            .args(files.iter().flat_map(|file| ["-P".as_ref(), file.as_os_str()]))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut injection = Injection { strace };
        let since = Instant::now();
        // It ends with a server that is killed at once.
        while !is_traced(pid) && matches!(injection.strace.try_wait(), Ok(None)) {
            assert!(since.elapsed() < PATIENCE, "strace does not get hold of the server");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        injection
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // It lets go of the server on SIGINT. It ends by itself when the server is gone.
        if let Some(pid) = rustix::process::Pid::from_raw(self.strace.id() as i32)
            && matches!(self.strace.try_wait(), Ok(None))
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
        let _ = self.strace.wait();
    }
}

fn is_traced(pid: u32) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    tasks.flatten().all(|task| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        !status.contains("TracerPid:\t0\n")
    })
}

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Tmpfs,
    Ext4,
    /// An ext4 that takes as many files only.
    FewFiles(u32),
    Xfs,
}

/// A hand on the switch.
#[derive(Debug)]
pub struct Cut {
    python: std::process::Child,
}

impl Cut {
    /// The power goes: what was not synced is lost.
    pub fn now(mut self) -> Result<(), String> {
        drop(self.python.stdin.take());
        let status = self.python.wait().map_err(|error| error.to_string())?;
        if status.success() { Ok(()) } else { Err(format!("the ioctl for a power cut does not work: {status}")) }
    }
}

/// A file system of its own. `folder` is for other files of the test, `at` is the mount.
#[derive(Debug)]
pub struct Disk {
    pub folder: PathBuf,
    pub at: PathBuf,
    kind: Kind,
    mib: u64,
}

impl Disk {
    /// Makes and mounts it; `Err` says why this machine cannot.
    pub fn new(kind: Kind, mib: u64) -> Result<Disk, String> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        sweep();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("{MOUNTS}{}-{number}", std::process::id()));
        let at = folder.join("data");
        std::fs::create_dir_all(&at).map_err(|error| error.to_string())?;
        let disk = Disk { folder, at, kind, mib };
        let image = text(&disk.image()).to_owned();
        let made = match kind {
            Kind::Tmpfs => Ok(String::new()),
            // None of it is kept for root, who may run the test.
            Kind::Ext4 => disk.make(&["/sbin/mkfs.ext4", "-q", "-F", "-m", "0", &image]),
            Kind::FewFiles(files) => {
                disk.make(&["/sbin/mkfs.ext4", "-q", "-F", "-m", "0", "-N", &files.to_string(), &image])
            }
            Kind::Xfs => {
                // Unpacked by .ci/test.sh, where the system has none.
                let folder = std::env::var("POSTRIDER_TEST_XFSPROGS").unwrap_or_default();
                let libraries = format!("LD_LIBRARY_PATH={folder}/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
                disk.make(&["env", &libraries, &format!("{folder}/sbin/mkfs.xfs"), "-q", "-f", &image])
            }
        };
        made?;
        disk.mount()?;
        Ok(disk)
    }

    /// An empty image, and a file system in it.
    fn make(&self, words: &[&str]) -> Result<String, String> {
        let image = std::fs::File::create(self.image()).map_err(|error| error.to_string())?;
        image.set_len(self.mib << 20).map_err(|error| error.to_string())?;
        run(words)
    }

    fn image(&self) -> PathBuf {
        self.folder.join("disk.img")
    }

    pub fn mount(&self) -> Result<(), String> {
        match self.kind {
            Kind::Tmpfs => {
                run(&["mount", "-t", "tmpfs", "-o", &format!("size={}m", self.mib), "tmpfs", text(&self.at)])
            }
            Kind::Ext4 | Kind::FewFiles(_) | Kind::Xfs => {
                run(&["mount", "-o", "loop", text(&self.image()), text(&self.at)])
            }
        }?;
        if is_mounted(&self.at) { Ok(()) } else { Err(format!("{} is not mounted", self.at.display())) }
    }

    /// Makes ready, so that the cut itself takes no time.
    pub fn prepare_cut(&self) -> Result<Cut, String> {
        let mut python = Command::new("python3")
            .args(["-c", POWER_CUT, text(&self.at)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("python3: {error}"))?;
        let mut ready = String::new();
        let _ = std::io::BufReader::new(python.stdout.take().unwrap()).read_line(&mut ready);
        if ready.starts_with("ready") { Ok(Cut { python }) } else { Err("the cut cannot be prepared".to_owned()) }
    }

    /// Nobody may have a file open in it.
    pub fn unmount(&self) -> Result<(), String> {
        let since = Instant::now();
        while is_mounted(&self.at) {
            let tried = run(&["umount", text(&self.at)]);
            if tried.is_err() && since.elapsed() > PATIENCE {
                return tried.map(drop);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Bytes that are free.
    pub fn free(&self) -> u64 {
        rustix::fs::statvfs(&self.at).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Files that can be made.
    pub fn free_files(&self) -> u64 {
        rustix::fs::statvfs(&self.at).map_or(0, |stat| stat.f_favail)
    }

    fn files(&self) -> PathBuf {
        self.at.join("files")
    }

    /// Others make files, but for so many. Tells how many more can be made then.
    pub fn take_files_up_to(&self, leave: u64) -> u64 {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let _ = std::fs::create_dir(self.files());
        while self.free_files() > leave {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            if std::fs::File::create(self.files().join(number.to_string())).is_err() {
                break;
            }
        }
        self.free_files()
    }

    /// The files are gone again.
    pub fn give_files_back(&self) {
        std::fs::remove_dir_all(self.files()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.at.join("filler")
    }

    /// Others take the space, but for this much. Tells what is free then.
    pub fn fill_up_to(&self, leave: u64) -> u64 {
        use std::io::Write;
        const STEP: usize = 64 << 10;
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(self.filler()).unwrap();
        let piece = vec![0x55_u8; STEP];
        while self.free() > leave {
            let step = usize::try_from(self.free() - leave).unwrap_or(STEP).clamp(1, STEP);
            if file.write_all(&piece[..step]).is_err() {
                break;
            }
        }
        self.free()
    }

    /// The space comes back.
    pub fn free_up(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.unmount().is_err() {
            let _ = run(&["umount", "-l", text(&self.at)]);
        }
        if !is_mounted(&self.at) {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn mounts() -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from).collect()
}

fn is_mounted(at: &Path) -> bool {
    mounts().iter().any(|mount| mount == at)
}

/// Takes away what test runs left that are no more.
fn sweep() {
    for folder in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = folder.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix(MOUNTS).and_then(|rest| rest.split('-').next()) else { continue };
        if Path::new("/proc").join(pid).exists() {
            continue;
        }
        let _ = run(&["umount", "-l", text(&folder.path().join("data"))]);
        if !is_mounted(&folder.path().join("data")) {
            let _ = std::fs::remove_dir_all(folder.path());
        }
    }
}
