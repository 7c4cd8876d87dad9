//! Debian's HAProxy in front of our listeners, with both versions of the PROXY protocol: who is behind it is
//! seen, and its own health checks are answered.
//!
//! `POSTRIDER_TEST_HAPROXY` names the folder into which `.ci/haproxy.sh` has unpacked it. Without it the test
//! says so and proves nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod server;
}

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use support::server::TestServer;

/// A test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

struct Haproxy {
    process: Child,
    control: PathBuf,
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// It cannot be told to choose one.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Haproxy {
    /// `ways`: an address of its own, the server behind it, and how it says who is there.
    fn start(package: &Path, folder: &Path, ways: &[(SocketAddr, SocketAddr, &str)]) -> Haproxy {
        let (file, control) = (folder.join("haproxy.cfg"), folder.join("control"));
        let mut text = format!(
            "global\n    stats socket {} mode 600\ndefaults\n    mode tcp\n    timeout connect 10s\n    timeout client 60s\n    \
             timeout server 60s\n    option smtpchk EHLO check.test\n",
            control.display()
        );
        for (number, (front, back, how)) in ways.iter().enumerate() {
            text += &format!(
                "listen way{number}\n    bind {front}\n    server behind {back} {how} check check-send-proxy inter 100ms\n"
            );
        }
        std::fs::write(&file, text).unwrap();
        let libraries = std::fs::read_dir(package.join("usr/lib")).unwrap().map(|entry| entry.unwrap().path());
        let libraries: Vec<String> = libraries.map(|path| path.display().to_string()).collect();
        let mut command = Command::new(package.join("usr/sbin/haproxy"));
        command.arg("-db").arg("-f").arg(&file).env("LD_LIBRARY_PATH", libraries.join(":"));
        let log = std::fs::File::create(folder.join("haproxy.log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Haproxy { process: command.spawn().unwrap(), control }
    }

    /// What it thinks of the servers behind it: the last result of each check.
    fn checks(&self) -> Vec<String> {
        let Ok(mut stream) = UnixStream::connect(&self.control) else { return Vec::new() };
        stream.write_all(b"show stat\n").unwrap();
        let mut table = String::new();
        stream.read_to_string(&mut table).unwrap();
        let mut rows = table.lines().map(|line| line.trim_start_matches("# ").split(',').collect::<Vec<_>>());
        let head = rows.next().unwrap();
        let column = |name: &str| head.iter().position(|other| *other == name).unwrap();
        let (server, status) = (column("svname"), column("check_status"));
        rows.filter(|row| row.get(server) == Some(&"behind")).map(|row| row[status].to_owned()).collect()
    }
}

/// Connects from an address of this machine's loopback network and asks to send without a login.
fn reply_to_mail(from: &str, to: SocketAddr) -> String {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from.parse::<IpAddr>().unwrap(), 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut last = String::new();
    for line in ["", "EHLO client.test\r\n", "MAIL FROM:<me@home.test>\r\n"] {
        (&stream).write_all(line.as_bytes()).unwrap();
        loop {
            last.clear();
            assert!(reader.read_line(&mut last).unwrap() > 0, "closed behind {line:?}");
            if last.as_bytes()[3] == b' ' {
                break;
            }
        }
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_tells_who_is_there_in_both_versions_and_its_checks_are_answered() {
    let Some(package) = std::env::var_os("POSTRIDER_TEST_HAPROXY") else {
        eprintln!("SKIPPED: POSTRIDER_TEST_HAPROXY names no HAProxy; nothing was asked");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let bind = "bind = [\"127.0.0.1:0\"]";
    let more = "[networks]\nproxies = [\"127.0.0.1\"]\ntrusted = [\"127.0.0.1\", \"127.0.0.2\"]\n";
    let server = TestServer::start_with(folder.path(), more, bind, &format!("{bind}\nproxy_protocol = true")).await;
    let (one, two) = (free_address(), free_address());
    let ways = [
        (one, server.submission, "send-proxy"),
        (two, server.submission, "send-proxy-v2 proxy-v2-options unique-id,crc32c"),
    ];
    let haproxy = Haproxy::start(Path::new(&package), folder.path(), &ways);
    let deadline = Instant::now() + PATIENCE;
    while haproxy.checks() != ["L7OK", "L7OK"] {
        let log = std::fs::read_to_string(folder.path().join("haproxy.log")).unwrap();
        assert!(Instant::now() < deadline, "{:?}\n{log}", haproxy.checks());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for front in [one, two] {
        for (client, code) in [("127.0.0.2", "250 "), ("127.0.0.3", "530 "), ("127.0.0.1", "250 ")] {
            let reply = tokio::task::spawn_blocking(move || reply_to_mail(client, front)).await.unwrap();
            assert!(reply.starts_with(code), "{client} through {front}: {reply}");
        }
    }
    drop(haproxy);
    server.stop().await;
}
