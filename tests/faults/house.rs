//! The real `postrider serve` as a process of its own, in a throwaway folder, started again and again.
//! Each start is a life with an EHLO name of its own, so that the far end can tell them apart.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};

use super::far::Far;
use super::zone::{Zone, ZoneServer};

/// A start, or an end, that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(90);
/// Lines of the log that are kept.
const LOG_LINES_MAX: usize = 200_000;

/// What is tested: the binary that cargo has just built, or the one that `POSTRIDER_BINARY` names.
pub fn binary() -> String {
    std::env::var("POSTRIDER_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_postrider").to_owned())
}

/// What differs between tests; the rest is the same for all.
#[derive(Clone, Debug)]
pub struct Settings {
    pub durability: &'static str,
    pub min_free: &'static str,
    /// Lines for `[delivery.retry]`.
    pub retry: &'static str,
    /// Lines for `[delivery]`.
    pub delivery: &'static str,
    /// Whole sections.
    pub more: String,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            durability: "sync",
            min_free: "1MiB",
            retry: "schedule = [\"1s\"]",
            delivery: "",
            more: String::new(),
        }
    }
}

pub struct House {
    pub folder: PathBuf,
    pub data: PathBuf,
    pub settings: Mutex<Settings>,
    far: SocketAddr,
    zone: Arc<ZoneServer>,
    lives: AtomicUsize,
}

/// All domains lead to the one far end.
pub fn domains() -> Zone {
    let mut zone = Zone::new().a("mx.far.test", "127.0.0.1");
    for domain in ["far.test", "late.test", "never.test", "back.test"] {
        zone = zone.mx(domain, 10, "mx.far.test");
    }
    zone
}

pub async fn zone() -> Arc<ZoneServer> {
    Arc::new(domains().serve().await)
}

impl House {
    /// `folder` for the configuration; the data lies in `folder/data`, which may be a mount.
    pub async fn new(folder: &Path, far: &Far, settings: Settings) -> House {
        House::with_zone(folder, far, settings, zone().await)
    }

    pub fn with_zone(folder: &Path, far: &Far, settings: Settings, zone: Arc<ZoneServer>) -> House {
        House {
            folder: folder.to_owned(),
            data: folder.join("data"),
            settings: Mutex::new(settings),
            far: far.address,
            zone,
            lives: AtomicUsize::new(0),
        }
    }

    pub fn store(&self) -> PathBuf {
        self.data.join("store")
    }

    /// The store's logs, as they are named now.
    pub fn log_files(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.store()).unwrap().flatten().map(|entry| entry.path());
        files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect()
    }

    fn conf(&self) -> PathBuf {
        self.folder.join("postrider.toml")
    }

    /// What the next start calls itself.
    pub fn next_life(&self) -> String {
        format!("life{}.home.test", self.lives.load(Ordering::Relaxed) + 1)
    }

    /// For commands that need no server; a start does it by itself.
    pub fn write_conf(&self) {
        let life = self.lives.fetch_add(1, Ordering::Relaxed) + 1;
        let Settings { durability, min_free, retry, delivery, more } = self.settings.lock().unwrap().clone();
        let text = format!(
            r#"
hostname = "mail.home.test"
data_dir = "{data}"
[listeners.submission]
role = "submission"
bind = ["127.0.0.1:0"]
[networks]
trusted = ["127.0.0.0/8"]
[domains."home.test".dkim]
selectors = ["pr-ed"]
[delivery]
helo_name = "life{life}.home.test"
mx_port = {port}
allow_private_addresses = true
{delivery}
[delivery.retry]
{retry}
[limits]
connections_per_ip = 1000
connection_rate = "100000/m"
[queue]
durability = "{durability}"
min_free = "{min_free}"
[dns]
nameservers = ["{zone}"]
{more}
"#,
            data = self.data.display(),
            port = self.far.port(),
            zone = self.zone.addr(),
        );
        std::fs::write(self.conf(), text).unwrap();
    }

    pub async fn start(&self) -> Running {
        self.try_start(&[]).await.unwrap_or_else(|ended| panic!("the server does not start: {ended}"))
    }

    /// Starts it behind `wrapper` (a command that runs what follows in its own process), until it
    /// listens. `Err`: it ended before.
    pub async fn try_start(&self, wrapper: &[String]) -> Result<Running, Ended> {
        self.write_conf();
        let mut words = wrapper.to_vec();
        words.extend([binary(), "serve".to_owned(), "--config".to_owned()]);
        words.push(self.conf().to_str().unwrap().to_owned());
        let mut child = spawn(&words, Stdio::piped());
        let log = Log::read(child.stderr.take().unwrap());
        House::until_listening(child, log).await
    }

    /// Starts it with this file as its standard error.
    pub async fn start_with_log(&self, file: &Path) -> Running {
        self.write_conf();
        let stderr = std::fs::OpenOptions::new().create(true).append(true).open(file).unwrap();
        let words = [binary(), "serve".to_owned(), "--config".to_owned(), self.conf().to_str().unwrap().to_owned()];
        let started = House::until_listening(spawn(&words, stderr.into()), Log::of(file)).await;
        started.unwrap_or_else(|ended| panic!("the server does not start: {ended}"))
    }

    async fn until_listening(mut child: Child, log: Log) -> Result<Running, Ended> {
        let since = Instant::now();
        loop {
            if let Some(door) = log.find("listening").as_deref().and_then(address) {
                return Ok(Running { child, door, log });
            }
            if let Some(status) = child.try_wait().unwrap() {
                log.ended().await;
                return Err(Ended { status: status.to_string(), code: status.code(), log: log.text() });
            }
            if since.elapsed() > PATIENCE {
                child.kill().await.unwrap();
                return Err(Ended { status: "hangs".to_owned(), code: None, log: log.text() });
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// A command of the same binary with the same configuration.
    pub async fn cli(&self, words: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(words).arg("--config").arg(self.conf()).stdin(Stdio::null()).kill_on_drop(true);
        let done = tokio::time::timeout(PATIENCE, command.output()).await;
        done.unwrap_or_else(|_| panic!("postrider {words:?} hangs")).unwrap()
    }

    /// What is queued, as the running server lists it.
    pub async fn queue(&self, filters: &[&str]) -> Vec<serde_json::Value> {
        let words = [&["queue", "list", "--json", "--limit", "0"], filters].concat();
        let output = self.cli(&words).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until the list of what is queued is as wanted.
    pub async fn wait_queue(&self, what: &str, filters: &[&str], enough: impl Fn(&[serde_json::Value]) -> bool) {
        let since = Instant::now();
        loop {
            let queue = self.queue(filters).await;
            if enough(&queue) {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "waited in vain: {what}; queued: {queue:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn wait_empty(&self) {
        self.wait_queue("the queue gets empty", &[], <[_]>::is_empty).await;
    }
}

fn spawn(words: &[String], stderr: Stdio) -> Child {
    Command::new(&words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// A server that did not get as far as listening.
#[derive(Debug)]
pub struct Ended {
    pub status: String,
    pub code: Option<i32>,
    pub log: String,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n{}", self.status, self.log)
    }
}

pub struct Running {
    child: Child,
    pub door: SocketAddr,
    pub log: Log,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it still runs")
    }

    /// kill -9, and waits until it is gone.
    pub async fn kill(mut self) -> Log {
        // It may have been killed already, from another side.
        let _ = self.child.start_kill();
        self.gone().await;
        self.log
    }

    /// SIGTERM, and waits.
    pub async fn stop(mut self) -> Log {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.gone().await;
        self.log
    }

    /// Until it has ended by itself or by another's hand.
    pub async fn gone(&mut self) {
        let gone = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        gone.expect("the server does not end").unwrap();
        self.log.ended().await;
    }

    pub fn is_gone(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

/// What the server wrote to standard error. It is read all the time: the server would wait for room in
/// the pipe otherwise.
#[derive(Clone, Debug)]
pub struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    ended: tokio::sync::watch::Receiver<bool>,
    /// Where the lines lie, if they are not read from a pipe.
    file: Option<PathBuf>,
}

impl Log {
    fn read(stderr: ChildStderr) -> Log {
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let (end, ended) = tokio::sync::watch::channel(false);
        let kept = lines.clone();
        tokio::spawn(async move {
            let mut stderr = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = stderr.next_line().await {
                let mut kept = kept.lock().unwrap();
                if kept.len() < LOG_LINES_MAX {
                    kept.push(line);
                }
            }
            end.send_replace(true);
        });
        Log { lines, ended, file: None }
    }

    fn of(file: &Path) -> Log {
        let (_, ended) = tokio::sync::watch::channel(true);
        Log { lines: Arc::default(), ended, file: Some(file.to_owned()) }
    }

    fn lines(&self) -> Vec<String> {
        let Some(file) = &self.file else { return self.lines.lock().unwrap().clone() };
        let text = std::fs::read(file).unwrap_or_default();
        // Without what is being written.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        String::from_utf8_lossy(&text[..whole]).lines().map(str::to_owned).collect()
    }

    /// Until all is read. A tracer may keep the pipe open for a moment longer.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        let _ = tokio::time::timeout(Duration::from_secs(10), ended.wait_for(|ended| *ended)).await;
    }

    pub fn find(&self, word: &str) -> Option<String> {
        if self.file.is_some() {
            return self.lines().into_iter().find(|line| line.contains(word));
        }
        self.lines.lock().unwrap().iter().find(|line| line.contains(word)).cloned()
    }

    pub fn text(&self) -> String {
        self.lines().join("\n")
    }

    /// Warnings and errors, and whatever is no line of the log (a panic).
    pub fn trouble(&self) -> Vec<String> {
        let quiet = |line: &&String| line.contains(" INFO ") || line.contains(" DEBUG ");
        self.lines().iter().filter(|line| !quiet(line)).cloned().collect()
    }

    /// A start after a kill, or after a fault that is over, finds nothing damaged.
    pub fn check_no_damage(&self) {
        assert!(self.find("damaged").is_none(), "{}", self.trouble().join("\n"));
        self.check_no_panic();
    }

    pub fn check_no_panic(&self) {
        assert!(self.find("panicked").is_none(), "{}", self.trouble().join("\n"));
    }
}

fn address(line: &str) -> Option<SocketAddr> {
    line.split("address=").nth(1)?.split_whitespace().next()?.parse().ok()
}
