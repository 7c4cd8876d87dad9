//! What systemd is told: ready, alive while the watchdog wants to know, stopping. The test is its socket.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Long past what any machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

struct Server {
    child: Child,
    socket: UnixDatagram,
    folder: tempfile::TempDir,
}

impl Server {
    fn start(watchdog: Option<Duration>) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let file = folder.path().join("postrider.toml");
        let text = format!(
            "hostname = \"mail.home.test\"\ndata_dir = \"{}\"\n[listeners.local]\nrole = \"submission\"\n\
             bind = [\"127.0.0.1:0\"]\ntls = \"off\"\n[queue]\nmin_free = \"1MiB\"\n",
            folder.path().join("data").display()
        );
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
        command.args(["serve", "--config"]).arg(&file).env("NOTIFY_SOCKET", &path);
        command.env_remove("WATCHDOG_PID").env_remove("WATCHDOG_USEC");
        if let Some(period) = watchdog {
            command.env("WATCHDOG_USEC", period.as_micros().to_string());
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Server { child, socket, folder }
    }

    fn hears(&self) -> String {
        let mut buffer = [0; 1024];
        let length = self.socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned()
    }

    fn check_health(&self) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
        let file = self.folder.path().join("postrider.toml");
        let output = command.args(["check", "--health", "--config"]).arg(file).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    }

    /// Everything that is heard until the end, after SIGTERM.
    fn stop(&mut self) -> Vec<String> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        self.socket.set_nonblocking(true).unwrap();
        let mut heard = Vec::new();
        let mut buffer = [0; 1024];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            heard.push(String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned());
        }
        heard
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_is_ready_alive_and_stopping() {
    let mut server = Server::start(Some(Duration::from_millis(400)));
    assert_eq!(server.hears(), "READY=1");
    for _ in 0..5 {
        assert_eq!(server.hears(), "WATCHDOG=1");
    }
    assert!(server.stop().contains(&"STOPPING=1".to_owned()));
}

#[test]
fn where_no_watchdog_asks_none_is_told() {
    let mut server = Server::start(None);
    assert_eq!(server.hears(), "READY=1");
    assert_eq!(server.stop(), ["STOPPING=1"]);
}

#[test]
fn a_reload_begins_and_ends_for_systemd_too() {
    let mut server = Server::start(None);
    assert_eq!(server.hears(), "READY=1");
    kill_process(Pid::from_child(&server.child), Signal::HUP).unwrap();
    let begins = server.hears();
    // Without the time of the begin, newer ones would take the service for broken (sd_notify(3)).
    assert!(begins.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{begins}");
    assert_eq!(server.hears(), "READY=1");
    server.stop();
}

#[test]
fn health_is_asked_of_the_running_server() {
    let mut server = Server::start(None);
    assert_eq!(server.hears(), "READY=1");
    assert_eq!(server.check_health(), (Some(0), "the server takes mail\n".to_owned()));
    server.stop();
    let (status, text) = server.check_health();
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("no server is running"), "{text}");
}
