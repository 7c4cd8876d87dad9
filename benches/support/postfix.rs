//! Debian's Postfix beside ours: unpacked by `.ci/postfix.sh`, its private instance on free
//! loopback ports with configuration and queue of its own, and its smtp-source and smtp-sink, which
//! are the load and the sink for both servers.
//!
//! Set for speed where it has the choice: no maps, no name lookups, no chroot, no log where it is
//! measured (there is no syslog socket in its reach), no pause of its own (`in_flow_delay`), and
//! processes enough for every session. It syncs each queue file before it answers, as it always does.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::process::{self, Process};

const START_TIME: Duration = Duration::from_secs(20);
/// Longest run of smtp-source.
const SOURCE_TIME: Duration = Duration::from_secs(300);
/// Sessions that its SMTP server may have at once.
const SESSIONS_MAX: u32 = 1100;
const HOSTNAME: &str = "mail.home.test";
/// The log's name in the instance's folder.
const LOG: &str = "maillog";

/// The unpacked packages.
#[derive(Clone, Debug)]
pub struct Package {
    root: PathBuf,
    /// Where its processes, users of their own, could not come to it: a copy that goes with the value.
    _copy: Option<Arc<tempfile::TempDir>>,
}

impl Package {
    /// None, and why, where it has not been unpacked.
    pub fn find() -> Result<Package, String> {
        Package::at(super::folder().join("postfix"))
    }

    pub fn at(root: PathBuf) -> Result<Package, String> {
        if !root.join("unpacked").exists() {
            return Err(format!("{} holds no Postfix; `make bench` fetches it where that is possible", root.display()));
        }
        if super::is_open_to_all(&root) {
            return Ok(Package { root, _copy: None });
        }
        let copy = super::open_scratch();
        fs::set_permissions(copy.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let done = Command::new("cp").arg("-a").arg(root.join("usr")).arg(copy.path()).status();
        match done {
            Ok(status) if status.success() => Ok(Package { root: copy.path().into(), _copy: Some(Arc::new(copy)) }),
            failed => Err(format!("{} cannot be copied to {}: {failed:?}", root.display(), copy.path().display())),
        }
    }

    /// Its server needs root, as its processes change their user.
    pub fn may_serve(&self) -> Result<(), String> {
        if rustix::process::geteuid().is_root() { Ok(()) } else { Err("only root may start it".into()) }
    }

    pub fn version(&self) -> String {
        let output = self.command("usr/sbin/postconf").args(["-d", "-h", "mail_version"]).output();
        output.map_or_else(|_| "?".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn libraries(&self) -> String {
        let lib = self.root.join("usr/lib");
        format!("{0}/postfix:{0}/x86_64-linux-gnu:{0}/aarch64-linux-gnu", lib.display())
    }

    fn sasl_plugins(&self) -> String {
        format!("{0}/x86_64-linux-gnu/sasl2:{0}/aarch64-linux-gnu/sasl2", self.root.join("usr/lib").display())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.root.join(program));
        command.env("LD_LIBRARY_PATH", self.libraries()).env("SASL_PATH", self.sasl_plugins());
        command
    }
}

/// What smtp-source is to send.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    pub sessions: usize,
    pub messages: u64,
    pub size: usize,
    pub reuse: bool,
}

/// Runs smtp-source to its end; the seconds it took.
pub fn source(package: &Package, to: SocketAddr, source: Source) -> f64 {
    let mut command = package.command("usr/sbin/smtp-source");
    command.args(["-s", &source.sessions.to_string(), "-m", &source.messages.to_string()]);
    command.args(["-l", &source.size.to_string(), "-f", "me@away.test", "-t", "you@far.test", "-M", "load.test"]);
    if source.reuse {
        command.arg("-d");
    }
    command.arg(to.to_string());
    let errors = super::folder().join("smtp-source.log");
    let started = Instant::now();
    let mut process = Process::start_with("smtp-source", command, |command| {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&errors).unwrap());
    });
    let ended_well = process.wait(SOURCE_TIME);
    let seconds = started.elapsed().as_secs_f64();
    let said = fs::read_to_string(&errors).unwrap_or_default();
    assert!(ended_well && said.is_empty(), "smtp-source to {to} failed: {said}");
    seconds
}

/// smtp-sink, which ends by itself after so many messages, or runs until it is dropped.
pub struct Sink {
    process: Process,
    pub address: SocketAddr,
}

impl Sink {
    pub fn start(package: &Package, port: u16, messages: Option<u64>) -> Sink {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut command = package.command("usr/sbin/smtp-sink");
        command.args(["-m", &SESSIONS_MAX.to_string()]);
        if rustix::process::geteuid().is_root() {
            command.args(["-u", "nobody"]);
        }
        if let Some(messages) = messages {
            command.args(["-M", &messages.to_string()]);
        }
        command.arg(address.to_string()).arg("4096");
        let mut process = Process::start_watched("smtp-sink", command, |command| {
            command.stdout(Stdio::null());
        });
        wait_until_open(address, &mut process, &String::new);
        Sink { process, address }
    }

    /// Waits until it has had its messages.
    pub fn wait(&mut self, at_most: Duration) -> bool {
        self.process.wait(at_most)
    }
}

/// A port that nobody has at the moment.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn wait_until_open(address: SocketAddr, process: &mut Process, said: &dyn Fn() -> String) {
    let deadline = Instant::now() + START_TIME;
    while TcpStream::connect(address).is_err() {
        assert!(process.is_running(), "what should listen at {address} has ended: {}", said());
        assert!(Instant::now() < deadline, "nothing listens at {address}: {}", said());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What its server does with what it has taken.
#[derive(Clone, Copy, Debug)]
pub enum Then {
    /// Into the hold queue, which costs it least.
    Hold,
    /// To the sink at this port.
    Relay(u16),
    /// The same, with a log of who connects, and as lenient about line ends as Postfix was; only for this user and password, if there is one.
    Pass { to: u16, login: Option<(&'static str, &'static str)> },
}

/// A running instance.
pub struct Postfix {
    process: Process,
    pub address: SocketAddr,
    queue: PathBuf,
    folder: tempfile::TempDir,
}

impl Postfix {
    pub fn start(package: &Package, then: Then) -> Postfix {
        let folder = super::open_scratch();
        // Its processes come here as users of their own.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let people = People::find();
        let (config, queue) = (folder.path().join("config"), folder.path().join("queue"));
        let port = free_port();
        fs::create_dir(&config).unwrap();
        fs::write(config.join("main.cf"), main_cf(package, folder.path(), &people, then)).unwrap();
        fs::write(config.join("master.cf"), master_cf(port)).unwrap();
        make_folders(folder.path(), &queue, &people);
        if let Then::Pass { login: Some(login), .. } = then {
            make_login(package, &config.join("sasl"), login);
        }
        let mut command = package.command("usr/lib/postfix/sbin/master");
        command.arg("-s").arg("-c").arg(&config).env("MAIL_CONFIG", &config);
        let errors = folder.path().join("errors");
        let mut process = Process::start_watched("postfix", command, |command| {
            command.stdout(Stdio::null()).stderr(fs::File::create(&errors).unwrap());
        });
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        wait_until_open(address, &mut process, &|| fs::read_to_string(&errors).unwrap_or_default());
        Postfix { process, address, queue, folder }
    }

    /// Of the shell around its master, whose children all others are.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn cpu_seconds(&self) -> f64 {
        process::cpu_seconds(self.process.id())
    }

    pub fn memory_bytes(&self) -> u64 {
        process::memory_bytes(self.process.id())
    }

    /// What it has logged; empty where it logs nothing.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join(LOG)).unwrap_or_default()
    }

    /// How many messages are held.
    pub fn held(&self) -> u64 {
        files(&self.queue.join("hold"), &|_| ())
    }

    /// How many messages are on their way through it.
    pub fn queued(&self) -> u64 {
        ["incoming", "active", "deferred"].iter().map(|name| files(&self.queue.join(name), &|_| ())).sum()
    }

    /// Throws away what is held, so that every round begins with an empty queue.
    pub fn empty(&self) {
        files(&self.queue.join("hold"), &|path| fs::remove_file(path).unwrap());
    }
}

fn files(folder: &Path, each: &dyn Fn(&Path)) -> u64 {
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => count += files(&entry.path(), each),
            _ => {
                each(&entry.path());
                count += 1;
            }
        }
    }
    count
}

/// The user of its queue and the group of its public doors: its own if the system has them, else two
/// of Debian's that nothing else uses, so that the system need not be changed.
struct People {
    owner: String,
    group: String,
    uid: u32,
    gid: u32,
    group_gid: u32,
}

impl People {
    fn find() -> People {
        let find = |file: &str, name: &str| -> Option<Vec<u32>> {
            let text = fs::read_to_string(file).ok()?;
            let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
            Some(line.split(':').skip(2).map_while(|field| field.parse().ok()).collect())
        };
        for (owner, group) in [("postfix", "postdrop"), ("uucp", "news")] {
            if let (Some(user), Some(door)) = (find("/etc/passwd", owner), find("/etc/group", group)) {
                return People {
                    owner: owner.into(),
                    group: group.into(),
                    uid: user[0],
                    gid: user[1],
                    group_gid: door[0],
                };
            }
        }
        panic!("the system has neither postfix and postdrop nor uucp and news");
    }
}

fn make_folders(folder: &Path, queue: &Path, people: &People) {
    let make = |path: &Path, mode: u32, uid: u32, gid: u32| {
        fs::create_dir(path).unwrap();
        chown(path, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    make(queue, 0o755, 0, 0);
    make(&queue.join("pid"), 0o755, 0, 0);
    make(&folder.join("data"), 0o700, people.uid, people.gid);
    for name in ["active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "saved", "trace"] {
        make(&queue.join(name), 0o700, people.uid, people.gid);
    }
    make(&queue.join("private"), 0o700, people.uid, people.gid);
    make(&queue.join("maildrop"), 0o1730, people.uid, people.group_gid);
    make(&queue.join("public"), 0o2710, people.uid, people.group_gid);
}

/// Cyrus SASL with a database of its own, in which one user stands. Debian's Postfix looks for its
/// settings in `sasl` beside its own.
fn make_login(package: &Package, folder: &Path, (user, password): (&str, &str)) {
    fs::create_dir(folder).unwrap();
    let database = folder.join("users");
    let settings = format!(
        "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nsasldb_path: {}\n\
         mech_list: PLAIN LOGIN CRAM-MD5 SCRAM-SHA-256\n",
        database.display()
    );
    fs::write(folder.join("smtpd.conf"), settings).unwrap();
    let mut command = package.command("usr/sbin/saslpasswd2");
    command.arg("-p").arg("-c").args(["-u", HOSTNAME]).arg("-f").arg(&database).arg(user).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), password.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "saslpasswd2 failed");
    fs::set_permissions(&database, fs::Permissions::from_mode(0o644)).unwrap();
}

fn login_cf() -> String {
    format!(
        "smtpd_sasl_auth_enable = yes
smtpd_sasl_local_domain = {HOSTNAME}
smtpd_relay_restrictions = permit_sasl_authenticated, reject
"
    )
}

fn main_cf(package: &Package, folder: &Path, people: &People, then: Then) -> String {
    let then = match then {
        Then::Hold => "smtpd_client_restrictions = check_client_access static:HOLD".to_owned(),
        Then::Relay(port) => format!("relayhost = [127.0.0.1]:{port}\nsmtpd_client_restrictions ="),
        Then::Pass { to, login } => {
            let login = if login.is_some() { login_cf() } else { String::new() };
            format!(
                "relayhost = [127.0.0.1]:{to}\nsmtpd_client_restrictions =\n\
                 smtpd_forbid_bare_newline = no\n\
                 maillog_file = {0}/{LOG}\nmaillog_file_prefixes = {0}\n{login}",
                folder.display()
            )
        }
    };
    format!(
        "compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
daemon_directory = {root}/usr/lib/postfix/sbin
command_directory = {root}/usr/sbin
shlib_directory = {root}/usr/lib/postfix
meta_directory = {folder}/config
import_environment = MAIL_CONFIG LD_LIBRARY_PATH SASL_PATH
export_environment = LD_LIBRARY_PATH SASL_PATH
mail_owner = {owner}
setgid_group = {group}
default_privs = nobody
myhostname = {HOSTNAME}
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
alias_maps =
alias_database =
local_recipient_maps =
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_recipient_restrictions =
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
disable_dns_lookups = yes
smtp_host_lookup = native
default_process_limit = {SESSIONS_MAX}
in_flow_delay = 0
message_size_limit = 0
biff = no
{then}
",
        folder = folder.display(),
        root = package.root.display(),
        owner = people.owner,
        group = people.group,
    )
}

fn master_cf(port: u16) -> String {
    format!(
        "127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"
    )
}
