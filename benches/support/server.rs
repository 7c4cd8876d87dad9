//! The server under test: the real binary, `postrider serve`, in a process of its own with its
//! defaults. Only ports, DNS and the limits that stand in the way of one busy client are set.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::process::{self, Process};

const START_TIME: Duration = Duration::from_secs(60);

pub struct Server {
    process: Process,
    pub address: SocketAddr,
    log: PathBuf,
    data: PathBuf,
}

/// What differs between runs.
#[derive(Clone, Copy, Debug)]
pub struct Set {
    pub dns: SocketAddr,
    /// Every domain's mail exchanger is 127.0.0.1 at this port.
    pub mx_port: u16,
    /// Waits between tries, as in the configuration.
    pub schedule: &'static str,
}

impl Server {
    /// Starts on what is in `data`, and waits until it listens.
    pub fn start(data: &Path, set: Set) -> Server {
        let (process, log) = Server::spawn(data, set);
        let mut server = Server { process, address: SocketAddr::from(([127, 0, 0, 1], 0)), log, data: data.to_owned() };
        let deadline = Instant::now() + START_TIME;
        while server.address.port() == 0 {
            let log = std::fs::read_to_string(&server.log).unwrap_or_default();
            assert!(server.process.is_running(), "postrider does not start:\n{log}");
            assert!(Instant::now() < deadline, "postrider does not listen:\n{log}");
            match listening(&log) {
                Some(address) => server.address = address,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        server
    }

    fn spawn(data: &Path, set: Set) -> (Process, PathBuf) {
        std::fs::create_dir_all(data).unwrap();
        let config = data.join("postrider.toml");
        std::fs::write(&config, text(data, set)).unwrap();
        let log = data.join("log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
        command.arg("serve").arg("--config").arg(&config);
        let process = Process::start_with("postrider", command, |command| {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        });
        (process, log)
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn cpu_seconds(&self) -> f64 {
        process::cpu_seconds(self.id())
    }

    pub fn memory_bytes(&self) -> u64 {
        process::memory_bytes(self.id())
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// As the power cut does it to the process.
    pub fn kill(mut self) {
        self.process.kill();
    }

    pub fn stop(mut self) {
        self.process.stop();
    }
}

/// The address in the log's line of the open door.
fn listening(log: &str) -> Option<SocketAddr> {
    let line = log.lines().find(|line| line.contains("listening") && line.contains("name=\"load\""))?;
    line.split("address=").nth(1)?.split_whitespace().next()?.parse().ok()
}

fn text(data: &Path, Set { dns, mx_port, schedule }: Set) -> String {
    format!(
        r#"hostname = "mail.home.test"
data_dir = {data:?}

[listeners.load]
role = "submission"
bind = ["127.0.0.1:0"]
tls = "opportunistic"

[networks]
trusted = ["127.0.0.0/8"]

[domains."home.test"]

[delivery]
mx_port = {mx_port}
allow_private_addresses = true

[delivery.retry]
schedule = {schedule}

[limits]
connections_per_ip = 10000

[queue]
min_free = "100MiB"

[dns]
nameservers = ["{dns}"]
"#
    )
}
