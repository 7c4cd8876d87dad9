//! A private instance of Debian's Dovecot, as unpacked by `.ci/dovecot.sh`: IMAP and POP3 on loopback over
//! Maildirs that the test fills and looks at itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::bench;
use super::bench::process::Process;

const START_TIME: Duration = Duration::from_secs(20);
/// The user and group `mail`, which every Debian has.
const MAIL: u32 = 8;

pub struct Dovecot {
    pub imap: SocketAddr,
    pub pop3: SocketAddr,
    process: Process,
    user: String,
    folder: tempfile::TempDir,
    /// Where its processes, users of their own, could not come to the package: a copy.
    _copy: Option<tempfile::TempDir>,
}

/// With so many messages in the user's mailbox. None, after saying so, where there is no Dovecot.
pub fn start(user: &str, messages: usize) -> Option<Dovecot> {
    let Some(package) = std::env::var_os("POSTRIDER_TEST_DOVECOT") else {
        eprintln!("SKIPPED: POSTRIDER_TEST_DOVECOT names no Dovecot; nothing was fetched");
        return None;
    };
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root may start Dovecot; nothing was fetched");
        return None;
    }
    let package = Path::new(&package);
    assert!(package.join("unpacked").exists(), "{} holds no Dovecot", package.display());
    let copy = (!bench::is_open_to_all(package)).then(|| {
        let copy = bench::open_scratch();
        fs::set_permissions(copy.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let status = Command::new("cp").arg("-a").arg(package.join("usr")).arg(copy.path()).status().unwrap();
        assert!(status.success());
        copy
    });
    let root = copy.as_ref().map_or(package, tempfile::TempDir::path);
    let folder = bench::open_scratch();
    let run = folder.path();
    fs::set_permissions(run, fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["run", "mail"] {
        fs::create_dir(run.join(name)).unwrap();
    }
    symlink(root.join("usr/lib/dovecot/modules"), run.join("run/modules")).unwrap();
    chown(run.join("mail"), Some(MAIL), Some(MAIL)).unwrap();
    let (imap, pop3) = (free_address(), free_address());
    let conf = run.join("dovecot.conf");
    fs::write(&conf, configuration(root, run, imap, pop3)).unwrap();
    let mut command = Command::new(root.join("usr/bin/doveconf"));
    command.arg("-c").arg(&conf).args(["-m", "master", "-e"]).arg(root.join("usr/sbin/dovecot"));
    command.arg("-F").arg("-c").arg(&conf).env("LD_LIBRARY_PATH", libraries(root));
    let errors = run.join("errors");
    let process = Process::start_watched("dovecot", command, |command| {
        command.stdout(Stdio::null()).stderr(fs::File::create(&errors).unwrap());
    });
    let mut dovecot = Dovecot { imap, pop3, process, user: user.to_owned(), folder, _copy: copy };
    dovecot.put(0, messages);
    dovecot.wait();
    Some(dovecot)
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Dovecot {
    fn wait(&mut self) {
        let since = Instant::now();
        while TcpStream::connect(self.imap).is_err() || TcpStream::connect(self.pop3).is_err() {
            let text = |name: &str| fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
            let is_up = self.process.is_running() && since.elapsed() < START_TIME;
            assert!(is_up, "Dovecot does not start: {}{}", text("errors"), text("log"));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn maildir(&self) -> PathBuf {
        self.folder.path().join("mail").join(&self.user).join("Maildir")
    }

    /// Messages that have just come, with the numbers from `first` on in their subjects.
    pub fn put(&self, first: usize, count: usize) {
        let mut folder = self.folder.path().join("mail");
        for name in [self.user.as_str(), "Maildir"] {
            folder.push(name);
            make(&folder);
        }
        ["new", "cur", "tmp"].iter().for_each(|name| make(&folder.join(name)));
        for number in first..first + count {
            let text = format!(
                "Return-Path: <a@far.test>\nDelivered-To: box@hoster.test\nReceived: from far.test by hoster.test; Sun, 22 Nov 2026 10:00:00 +0000\n\
                 From: a@far.test\nTo: box@hoster.test\nSubject: number {number}.\nMessage-ID: <{number}@far.test>\n\n{}",
                "a line of text\n..dots\n".repeat(number % 50)
            );
            // Dovecot numbers what it finds by the names of the files.
            let path = folder.join("new").join(format!("1795300017.M{number:06}.test"));
            fs::write(&path, text).unwrap();
            chown(&path, Some(MAIL), Some(MAIL)).unwrap();
        }
    }

    /// The files of all messages in a folder (empty: INBOX).
    pub fn messages(&self, folder: &str) -> Vec<PathBuf> {
        let folder = self.maildir().join(folder);
        ["new", "cur"].iter().flat_map(|name| super::count(&folder.join(name))).collect()
    }

    /// How many of them are marked as read.
    pub fn seen(&self, folder: &str) -> usize {
        let flags =
            |path: &PathBuf| path.to_str().unwrap().split(":2,").nth(1).is_some_and(|flags| flags.contains('S'));
        self.messages(folder).iter().filter(|path| flags(path)).count()
    }

    pub fn validity(&self) -> String {
        let list = fs::read_to_string(self.maildir().join("dovecot-uidlist")).unwrap();
        list.split_whitespace().find(|word| word.starts_with('V')).unwrap().to_owned()
    }

    /// The server forgets what it knew of the messages: numbers, and marks.
    pub fn lose_numbers(&self) {
        let before = self.validity();
        for entry in super::count(&self.maildir()) {
            if entry.file_name().unwrap().to_str().unwrap().starts_with("dovecot") {
                fs::remove_file(&entry).unwrap();
            }
        }
        for path in self.messages("") {
            let name = path.file_name().unwrap().to_str().unwrap().split(":2,").next().unwrap().to_owned();
            fs::rename(&path, self.maildir().join("new").join(name)).unwrap();
        }
        // The new validity is the time in seconds.
        let is_same = || {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
            before == format!("V{now}")
        };
        while is_same() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn make(folder: &Path) {
    if fs::create_dir(folder).is_ok() {
        chown(folder, Some(MAIL), Some(MAIL)).unwrap();
    }
}

fn libraries(root: &Path) -> String {
    let lib = root.join("usr/lib");
    let lib = lib.display();
    format!("{lib}/dovecot:{lib}/dovecot/modules/old-stats:{lib}/x86_64-linux-gnu:{lib}/aarch64-linux-gnu")
}

fn configuration(root: &Path, run: &Path, imap: SocketAddr, pop3: SocketAddr) -> String {
    let (root, run) = (root.display(), run.display());
    format!(
        "base_dir = {run}/run
state_dir = {run}/run
log_path = {run}/log
import_environment = LD_LIBRARY_PATH
libexec_dir = {root}/usr/lib/dovecot
mail_plugin_dir = {root}/usr/lib/dovecot/modules
protocols = imap pop3
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
default_internal_user = mail
default_internal_group = mail
default_login_user = nobody
first_valid_uid = {MAIL}
first_valid_gid = {MAIL}
mail_location = maildir:~/Maildir
passdb {{
  driver = static
  args = password=secret
}}
userdb {{
  driver = static
  args = uid={MAIL} gid={MAIL} home={run}/mail/%u allow_all_users=yes
}}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service pop3-login {{
  chroot =
  inet_listener pop3 {{
    port = {pop3}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
",
        imap = imap.port(),
        pop3 = pop3.port(),
    )
}
