//! The real `postrider serve` as a process of its own, to be killed and started again in one folder.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// A start, or an end, that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Served {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Served {
    /// Writes the configuration beside the data, and starts; `listeners` is how many doors it has.
    pub async fn start(folder: &Path, conf: &str, listeners: usize) -> Served {
        let file = folder.join("postrider.toml");
        let data = folder.join("data");
        std::fs::write(&file, conf.replace("DATA_DIR", data.to_str().unwrap())).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_postrider"))
            .args(["serve", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let (mut lines, kept) = (BufReader::new(child.stderr.take().unwrap()).lines(), log.clone());
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                kept.lock().unwrap().push(line);
            }
        });
        let mut served = Served { child, log };
        let since = Instant::now();
        while served.lines("listening").len() < listeners {
            assert!(served.child.try_wait().unwrap().is_none(), "it does not start:\n{}", served.text());
            assert!(since.elapsed() < PATIENCE, "it hangs:\n{}", served.text());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        served
    }

    pub fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    pub fn lines(&self, word: &str) -> Vec<String> {
        self.log.lock().unwrap().iter().filter(|line| line.contains(word)).cloned().collect()
    }

    pub fn text(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Waits for a line with both of these in it.
    pub async fn wait_for_line(&self, one: &str, other: &str) {
        let since = Instant::now();
        while !self.lines(one).iter().any(|line| line.contains(other)) {
            assert!(since.elapsed() < PATIENCE, "{}", self.text());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The address of this listener.
    pub fn door(&self, name: &str) -> SocketAddr {
        let lines = self.lines("listening");
        let in_json =
            |line: &String| serde_json::from_str::<serde_json::Value>(line).ok().filter(|json| says_name(json, name));
        if let Some(json) = lines.iter().find_map(in_json) {
            let address = ["/fields/address", "/address"].iter().find_map(|place| json.pointer(place)?.as_str());
            return address.unwrap().parse().unwrap();
        }
        let line = lines.iter().find(|line| line.contains(&format!("name=\"{name}\""))).expect(name);
        line.split("address=").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    /// kill -9, and waits until it is gone.
    pub async fn kill(mut self) {
        self.child.start_kill().unwrap();
        self.child.wait().await.unwrap();
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id().expect("it runs") as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// SIGTERM, and once more: it ends without waiting for what is under way.
    pub async fn stop_at_once(mut self) {
        self.signal(rustix::process::Signal::TERM);
        let since = Instant::now();
        while self.lines("stopping:").is_empty() {
            assert!(since.elapsed() < PATIENCE, "{}", self.text());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.signal(rustix::process::Signal::TERM);
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it does not end").unwrap();
    }
}

/// A line of the log in JSON that is about what has this name.
fn says_name(json: &serde_json::Value, name: &str) -> bool {
    ["/fields/name", "/name"].iter().any(|place| json.pointer(place).and_then(|said| said.as_str()) == Some(name))
}
