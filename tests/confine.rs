//! What a running server has given up, as the kernel tells it of each of its threads; and that its work goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod client;
}

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::client::Client;

const PATIENCE: Duration = Duration::from_secs(60);
/// CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, NET_BIND_SERVICE (capabilities(7)).
const KEPT: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 10;

struct Server {
    child: Child,
    folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// FOLDER in `more` is where everything lies. Behind `wrapper`, a command that runs what follows in its own process.
    fn start(wrapper: &[&str], more: &str) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let text = "hostname = \"mail.home.test\"\ndata_dir = \"FOLDER/data\"\n[listeners.door]\nrole = \"submission\"\n\
                    bind = [\"127.0.0.1:0\"]\ntls = \"off\"\n[networks]\ntrusted = [\"127.0.0.0/8\"]\n\
                    [domains.\"home.test\"]\ncatchall = \"box\"\n[queue]\nmin_free = \"1MiB\"\n";
        let text = format!("{text}{more}").replace("FOLDER", folder.path().to_str().unwrap());
        fs::write(at("postrider.toml"), text).unwrap();
        let config = at("postrider.toml").display().to_string();
        let words = [wrapper, &[env!("CARGO_BIN_EXE_postrider"), "serve", "--config", config.as_str()]].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(fs::File::create(at("log")).unwrap()).spawn().unwrap();
        Server { child, folder }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn door(&mut self) -> SocketAddr {
        let log = self.wait("it listens", |server| Some(server.log()).filter(|log| log.contains("listening")));
        let line = log.lines().find(|line| line.contains("listening")).unwrap();
        line.split("address=").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    fn wait<T>(&mut self, what: &str, look: impl Fn(&Server) -> Option<T>) -> T {
        let since = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(since.elapsed() < PATIENCE && ended.is_none(), "waited in vain until {what}: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A line of `/proc/…/status` of each of its threads.
    fn of_each_thread(&self, name: &str) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let statuses = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
        statuses.map(|status| value(&status, name)).collect()
    }

    fn limit(&self, name: &str) -> Vec<String> {
        let limits = fs::read_to_string(format!("/proc/{}/limits", self.child.id())).unwrap();
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().map(str::to_owned).collect()
    }
}

fn value(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

fn own(name: &str) -> String {
    value(&fs::read_to_string("/proc/self/status").unwrap(), name)
}

async fn send(door: SocketAddr) {
    let mut client = Client::connect(door).await.unwrap();
    let letter = "From: <me@home.test>\r\nSubject: hi\r\n\r\nhello\r\n";
    let reply = client.send("me@home.test", &["you@home.test"], letter).await.unwrap();
    assert!(reply.starts_with("250"), "{reply}");
}

fn count(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

#[tokio::test]
async fn every_thread_has_given_up_what_it_does_not_need_and_mail_goes_on() {
    let mut server = Server::start(&[], "[targets.box]\nkind = \"maildir\"\npath = \"FOLDER/box\"\n");
    let door = server.door();
    send(door).await;
    server.wait("it is delivered", |server| (count(&server.folder.path().join("box/new")) == 1).then_some(()));
    let threads = server.of_each_thread("NoNewPrivs").len();
    assert!(threads > 4, "{threads} threads");
    for (name, wanted) in [("NoNewPrivs", "1"), ("Seccomp", "2")] {
        let seen = server.of_each_thread(name);
        assert!(seen.iter().all(|value| value == wanted), "{name}: {seen:?}");
    }
    for name in ["CapEff", "CapPrm", "CapInh"] {
        for set in server.of_each_thread(name) {
            assert_eq!(u64::from_str_radix(&set, 16).unwrap() & !KEPT, 0, "{name}: {set}");
        }
    }
    let files = server.limit("Max open files");
    assert_eq!(files[0], files[1], "raised to the maximum");
    assert_eq!(server.limit("Max core file size")[..2], ["1", "1"]);
    let log = server.log();
    let line = log.lines().find(|line| line.contains("confined: ")).unwrap();
    assert!(line.contains("system calls refused, no new privileges"), "{line}");
    assert!(line.contains(&format!("{} open files at most", files[0])), "{line}");
    if log.contains("not protected by Landlock") {
        eprintln!("WARNING: this kernel has no Landlock, so nothing is seen of it");
    } else {
        assert!(line.contains("system folders not writable"), "{line}");
    }
    assert_eq!(log.contains("running as root"), rustix::process::geteuid().is_root(), "{log}");
}

/// Programs inherit what a server has given up, so where there are any it gives up less, and says so.
#[tokio::test]
async fn programs_that_are_run_are_not_confined() {
    let script = "[targets.box]\nkind = \"pipe\"\ncommand = [\"/bin/sh\", \"FOLDER/script\"]\n";
    let mut server = Server::start(&[], script);
    let told = server.folder.path().join("told");
    let text = format!("cat >/dev/null; cat /proc/self/status >{0}.new && mv {0}.new {0}\n", told.display());
    fs::write(server.folder.path().join("script"), text).unwrap();
    send(server.door()).await;
    let status = server.wait("the program has run", |_| fs::read_to_string(&told).ok());
    for name in ["NoNewPrivs", "Seccomp", "CapEff"] {
        assert_eq!(value(&status, name), own(name), "{name} of the program is what it would be without the server");
    }
    assert!(server.log().contains("targets.box runs a program"), "{}", server.log());
    for set in server.of_each_thread("CapEff") {
        assert_eq!(u64::from_str_radix(&set, 16).unwrap() & !KEPT, 0, "the server itself: {set}");
    }
}

/// What has been given up is not had back, and who reloads is told so.
#[tokio::test]
async fn a_program_that_a_reload_adds_runs_confined_and_the_reload_says_so() {
    let mut server = Server::start(&[], "[targets.box]\nkind = \"maildir\"\npath = \"FOLDER/box\"\n");
    let door = server.door();
    let at = |name: &str| server.folder.path().join(name).display().to_string();
    let script = format!("cat >/dev/null; cat /proc/self/status >{0}.new && mv {0}.new {0}\n", at("told"));
    fs::write(at("script"), script).unwrap();
    let text = fs::read_to_string(at("postrider.toml")).unwrap();
    let program = format!("[targets.run]\nkind = \"pipe\"\ncommand = [\"/bin/sh\", \"{}\"]\n", at("script"));
    let text = text.replace("catchall = \"box\"", "catchall = \"run\"");
    fs::write(at("postrider.toml"), text + &program).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
    let output = command.args(["reload", "--config", &at("postrider.toml")]).output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success() && said.contains("a restart lifts that"), "{said}");
    send(door).await;
    let told = server.folder.path().join("told");
    let status = server.wait("the program has run", |_| fs::read_to_string(&told).ok());
    assert_eq!((value(&status, "NoNewPrivs"), value(&status, "Seccomp")), ("1".into(), "2".into()));
}

#[test]
fn too_few_open_files_are_warned_about_with_what_follows() {
    let prlimit = ["prlimit", "--nofile=200:300", "--"];
    let mut server = Server::start(&prlimit, "[targets.box]\nkind = \"maildir\"\npath = \"FOLDER/box\"\n");
    server.door();
    assert_eq!(server.limit("Max open files")[..2], ["300", "300"]);
    let log = server.log();
    assert!(
        log.contains("limits.connections = 10000 is more than 300 open files are good for: 150 connections"),
        "{log}"
    );
    assert!(log.contains("LimitNOFILE"), "{log}");
}
