//! Debian's Dovecot, unpacked by `.ci/dovecot.sh`: a private instance that takes mail by LMTP, on a unix
//! socket and on loopback, and shows it over IMAP and POP3. It needs root, as its processes change their user.
//!
//! Its users: `ann`, `bob`, `box`, and `full`, whose mailbox cannot be written; their password is `secret`.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use super::bench;
use super::bench::process::Process;

const START_TIME: Duration = Duration::from_secs(20);
/// The user and group `mail`, which every Debian has; nothing else of the test belongs to it.
pub const MAIL: u32 = 8;

pub struct Dovecot {
    process: Process,
    /// Of LMTP.
    pub socket: PathBuf,
    pub lmtp: SocketAddr,
    pub imap: SocketAddr,
    pub pop3: SocketAddr,
    folder: tempfile::TempDir,
    /// Where its processes, users of their own, could not come to the package: a copy.
    _copy: Option<tempfile::TempDir>,
}

/// None, after saying so, where there is none.
pub fn start() -> Option<Dovecot> {
    let Some(package) = std::env::var_os("POSTRIDER_TEST_DOVECOT") else {
        eprintln!("SKIPPED: POSTRIDER_TEST_DOVECOT names no Dovecot; nothing was delivered");
        return None;
    };
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root may start Dovecot; nothing was delivered");
        return None;
    }
    Some(Dovecot::start(Path::new(&package)))
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Dovecot {
    fn start(package: &Path) -> Dovecot {
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
        fs::create_dir(run.join("run")).unwrap();
        symlink(root.join("usr/lib/dovecot/modules"), run.join("run/modules")).unwrap();
        fs::create_dir(run.join("mail")).unwrap();
        chown(run.join("mail"), Some(MAIL), Some(MAIL)).unwrap();
        fs::write(run.join("mail/full"), "in the way of a folder").unwrap();
        let (lmtp, imap, pop3) = (free_address(), free_address(), free_address());
        let conf = run.join("dovecot.conf");
        fs::write(&conf, configuration(root, run, [lmtp, imap, pop3])).unwrap();
        fs::write(run.join("users"), users(run)).unwrap();
        let mut command = Command::new(root.join("usr/bin/doveconf"));
        command.arg("-c").arg(&conf).args(["-m", "master", "-e"]).arg(root.join("usr/sbin/dovecot"));
        command.arg("-F").arg("-c").arg(&conf).env("LD_LIBRARY_PATH", libraries(root));
        let errors = run.join("errors");
        let process = Process::start_watched("dovecot", command, |command| {
            command.stdout(Stdio::null()).stderr(fs::File::create(&errors).unwrap());
        });
        let mut dovecot = Dovecot { process, socket: run.join("lmtp"), lmtp, imap, pop3, folder, _copy: copy };
        dovecot.wait();
        dovecot
    }

    fn wait(&mut self) {
        let since = Instant::now();
        let is_open = |address: &SocketAddr| TcpStream::connect(address).is_ok();
        while ![self.imap, self.lmtp, self.pop3].iter().all(is_open) || !self.socket.exists() {
            let is_up = self.process.is_running() && since.elapsed() < START_TIME;
            assert!(is_up, "Dovecot does not start: {}{}", self.text("errors"), self.text("log"));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    pub fn log(&self) -> String {
        self.text("log")
    }

    /// Of this user.
    pub fn maildir(&self, user: &str) -> PathBuf {
        self.folder.path().join("mail").join(user).join("Maildir")
    }

    /// What is in a user's INBOX, as IMAP shows it.
    pub async fn inbox(&self, user: &str) -> Vec<String> {
        let mut imap = Imap(BufReader::new(tokio::net::TcpStream::connect(self.imap).await.unwrap()));
        let greeting = imap.line().await;
        assert!(greeting.starts_with("* OK"), "{greeting}");
        imap.command(&format!("LOGIN {user} secret")).await;
        let selected = imap.command("SELECT INBOX").await;
        let exists = selected.iter().find_map(|line| line.strip_prefix("* ")?.strip_suffix(" EXISTS")?.parse().ok());
        let count: usize = exists.unwrap_or_else(|| panic!("{selected:?}"));
        let mut found = Vec::new();
        for number in 1..=count {
            found.push(imap.fetch(number).await);
        }
        imap.command("LOGOUT").await;
        found
    }
}

struct Imap(BufReader<tokio::net::TcpStream>);

impl Imap {
    async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = tokio::time::timeout(START_TIME, self.0.read_line(&mut line)).await;
        assert!(read.expect("IMAP is silent").unwrap() > 0, "IMAP has hung up");
        line.trim_end().to_owned()
    }

    /// The lines before the one that says OK.
    async fn command(&mut self, command: &str) -> Vec<String> {
        self.0.get_mut().write_all(format!("a {command}\r\n").as_bytes()).await.unwrap();
        let mut lines = Vec::new();
        loop {
            let line = self.line().await;
            if let Some(end) = line.strip_prefix("a ") {
                assert!(end.starts_with("OK"), "{command}: {end}");
                return lines;
            }
            lines.push(line);
        }
    }

    async fn fetch(&mut self, number: usize) -> String {
        self.0.get_mut().write_all(format!("a FETCH {number} BODY.PEEK[]\r\n").as_bytes()).await.unwrap();
        let head = self.line().await;
        let size = head.rsplit('{').next().and_then(|size| size.strip_suffix('}')?.parse::<usize>().ok());
        let mut bytes = vec![0; size.unwrap_or_else(|| panic!("{head}"))];
        self.0.read_exact(&mut bytes).await.unwrap();
        while !self.line().await.starts_with("a OK") {}
        String::from_utf8(bytes).unwrap()
    }
}

fn libraries(root: &Path) -> String {
    let lib = root.join("usr/lib");
    let lib = lib.display();
    format!("{lib}/dovecot:{lib}/dovecot/modules/old-stats:{lib}/x86_64-linux-gnu:{lib}/aarch64-linux-gnu")
}

fn users(run: &Path) -> String {
    let line =
        |user: &str| format!("{user}:{{PLAIN}}secret:{MAIL}:{MAIL}::{}::\n", run.join("mail").join(user).display());
    ["ann", "bob", "box", "full"].map(line).concat()
}

fn configuration(root: &Path, run: &Path, [lmtp, imap, pop3]: [SocketAddr; 3]) -> String {
    let (root, run) = (root.display(), run.display());
    format!(
        "base_dir = {run}/run
state_dir = {run}/run
log_path = {run}/log
import_environment = LD_LIBRARY_PATH
libexec_dir = {root}/usr/lib/dovecot
mail_plugin_dir = {root}/usr/lib/dovecot/modules
protocols = lmtp imap pop3
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
default_internal_user = mail
default_internal_group = mail
default_login_user = nobody
first_valid_uid = {MAIL}
first_valid_gid = {MAIL}
auth_username_format = %n
mail_location = maildir:~/Maildir
passdb {{
  driver = passwd-file
  args = {run}/users
}}
userdb {{
  driver = passwd-file
  args = {run}/users
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
service lmtp {{
  unix_listener {run}/lmtp {{
    mode = 0600
  }}
  inet_listener lmtp {{
    port = {lmtp}
  }}
}}
",
        lmtp = lmtp.port(),
        imap = imap.port(),
        pop3 = pop3.port(),
    )
}
