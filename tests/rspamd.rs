//! Debian's rspamd as a milter: what it refuses is refused, what it lets pass has its header.
//!
//! `POSTRIDER_TEST_RSPAMD` names the folder into which `.ci/rspamd.sh` has unpacked it. Without it the
//! test says so and proves nothing. It runs with a configuration of its own and asks nobody: no rules
//! but the built-in one of its test text, no maps, no store, and name servers that do not exist.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod server;
}
#[path = "../benches/support/mod.rs"]
mod bench;

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bench::postfix::free_port;
use bench::process::Process;
use support::client::Client;
use support::server::{TestServer, queued_id};

const START_TIME: Duration = Duration::from_secs(60);

/// The text that every spam filter refuses, as GTUBE has it.
const GTUBE: &str = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X";

const CONF: &str = r#"
[domains."home.test"]
catchall = ["box"]
[targets.box]
kind = "maildir"
path = "DATA_DIR/box"
[checks]
spf = "off"
dmarc = "off"
dkim = "annotate"
milters = ["inet:127.0.0.1:PORT"]
"#;

/// `milter_headers` writes the header; its settings ask for the plainest.
const RSPAMD: &str = r#"
options {
  filters = "";
  url_tld = "FOLDER/tld";
  tempdir = "FOLDER";
  dns { nameserver = ["127.0.0.1:9"]; timeout = 1s; retransmits = 1; }
  control_socket = "FOLDER/control.sock";
}
logging { type = "file"; filename = "FOLDER/log"; level = "info"; }
metric { name = "default"; actions { reject = 15; add_header = 6; } }
modules { path = "SHARE/plugins/milter_headers.lua"; }
milter_headers { use = ["x-spamd-bar", "x-spam-status"]; skip_local = false; skip_authenticated = false; }
worker "rspamd_proxy" {
  bind_socket = "127.0.0.1:PORT";
  milter = yes;
  timeout = 60s;
  count = 1;
  upstream "local" { self_scan = yes; default = yes; }
}
"#;

struct Rspamd {
    _process: Process,
    address: SocketAddr,
    folder: tempfile::TempDir,
}

impl Rspamd {
    /// None where there is none.
    fn start() -> Option<Rspamd> {
        let Some(root) = std::env::var_os("POSTRIDER_TEST_RSPAMD").map(PathBuf::from) else {
            eprintln!("SKIPPED: POSTRIDER_TEST_RSPAMD names no rspamd; nothing was sent");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let (path, share) = (folder.path(), root.join("usr/share/rspamd"));
        let port = free_port();
        // Its own list of top-level domains takes it ten seconds to read.
        fs::write(path.join("tld"), "com\ntest\n").unwrap();
        let conf = RSPAMD.replace("FOLDER", path.to_str().unwrap()).replace("PORT", &port.to_string());
        fs::write(path.join("rspamd.conf"), conf.replace("SHARE", share.to_str().unwrap())).unwrap();
        let mut process = Process::start_with("rspamd", command(&root, &share, path), |command| {
            let output = fs::File::create(path.join("output")).unwrap();
            command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        });
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let deadline = Instant::now() + START_TIME;
        while TcpStream::connect(address).is_err() {
            let said = || said(path);
            assert!(process.is_running(), "rspamd has ended: {}", said());
            assert!(Instant::now() < deadline, "rspamd does not listen at {address}: {}", said());
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(Rspamd { _process: process, address, folder })
    }

    fn said(&self) -> String {
        said(self.folder.path())
    }
}

fn said(folder: &Path) -> String {
    ["output", "log"].map(|name| fs::read_to_string(folder.join(name)).unwrap_or_default()).concat()
}

/// In the foreground, as whoever we are. What it has compiled in as places is said otherwise.
fn command(root: &Path, share: &Path, folder: &Path) -> Command {
    let mut command = Command::new(root.join("usr/bin/rspamd"));
    let lib = root.join("usr/lib");
    let libraries = format!("{0}/rspamd:{0}/x86_64-linux-gnu:{0}/aarch64-linux-gnu", lib.display());
    command.env("LD_LIBRARY_PATH", libraries).args(["--no-fork", "--insecure", "--config"]);
    command.arg(folder.join("rspamd.conf"));
    let (own, share) = (folder.to_str().unwrap(), share.to_str().unwrap());
    for (name, place) in [
        ("CONFDIR", own.to_owned()),
        ("LOCAL_CONFDIR", own.to_owned()),
        ("RUNDIR", own.to_owned()),
        ("DBDIR", own.to_owned()),
        ("LOGDIR", own.to_owned()),
        ("SHAREDIR", share.to_owned()),
        ("RULESDIR", format!("{share}/rules")),
        ("PLUGINSDIR", format!("{share}/plugins")),
        ("LUALIBDIR", format!("{share}/lualib")),
        ("WWWDIR", format!("{share}/www")),
    ] {
        command.arg(format!("--var={name}={place}"));
    }
    command
}

fn message(text: &str) -> String {
    format!(
        "From: <me@away.test>\r\nTo: <you@home.test>\r\nSubject: hello\r\nMessage-ID: <1@away.test>\r\n\
         Date: Sun, 22 Nov 2026 10:00:00 +0000\r\n\r\n{text}\r\n"
    )
}

#[tokio::test]
async fn what_it_refuses_is_refused_and_what_it_lets_pass_has_its_header() {
    let Some(rspamd) = Rspamd::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let conf = CONF.replace("PORT", &rspamd.address.port().to_string());
    let server = TestServer::start(folder.path(), &conf).await;
    let mut client = Client::connect(server.mx).await.unwrap();

    let said = client.send("me@away.test", &["you@home.test"], &message(GTUBE)).await.unwrap();
    assert!(said.starts_with("554 5.7.1 "), "{said}\n{}", rspamd.said());
    assert!(server.queue().await.is_empty());

    let said = client.send("me@away.test", &["you@home.test"], &message("good morning")).await.unwrap();
    assert!(said.starts_with("250 "), "{said}\n{}", rspamd.said());
    server.wait_done(queued_id(&said)).await;
    let files: Vec<_> = fs::read_dir(folder.path().join("box/new")).unwrap().collect();
    assert_eq!(files.len(), 1);
    let stored = fs::read_to_string(files[0].as_ref().unwrap().path()).unwrap();
    let (header, body) = stored.split_once("\n\n").unwrap();
    assert!(header.contains("\nX-Spamd-Bar: "), "{stored}\n{}", rspamd.said());
    assert!(header.contains("\nX-Spam-Status: No, score="), "{stored}");
    assert!(header.contains("\nSubject: hello\n") && body == "good morning\n", "{stored}");
    server.stop().await;
}
