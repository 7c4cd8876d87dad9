//! A server with something of everything, the binary beside it, and a protocol of what that says.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use postrider::clock::Clock;
use postrider::message::MessageId;
use regex::Regex;

use crate::client::Client;
use crate::server::{TestServer, queued_id};
use crate::sink::Sink;
use crate::zone::{Zone, ZoneServer};

/// Fri, 15 Jan 2027 07:00 UTC: far enough from any day on which this runs that "in 53 days" is never "today".
const START: u64 = 1_800_000_000_000;

/// What commands said, one below the other.
#[derive(Default)]
pub struct Protocol {
    text: String,
    /// In the order of their first appearance.
    ids: Vec<String>,
    /// Complaints that do not say what to do.
    without_remedy: Vec<String>,
}

impl Protocol {
    pub fn title(&mut self, title: &str) {
        self.text.push_str(&format!("===== {title} =====\n\n"));
    }

    /// Runs a command with this configuration, and notes what it said. What programs get is JSON, an object a line.
    pub fn say(&mut self, config: &Path, words: &str) {
        self.say_with(config, words, "");
    }

    pub fn say_with(&mut self, config: &Path, words: &str, input: &str) {
        let folder = config.parent().unwrap();
        let arguments = words.split_whitespace().map(|word| word.replace('~', folder.to_str().unwrap()));
        let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
        let mut child = command
            .args(arguments)
            .arg("--config")
            .arg(config)
            .env_remove("COLUMNS")
            .env_remove("NO_COLOR")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
        let output = tokio::task::block_in_place(|| child.wait_with_output()).unwrap();
        let (out, error) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        let status = output.status.code().unwrap();
        for text in [&out, &error] {
            assert!(!text.contains('\u{1b}'), "{words}: colours, but this is no terminal: {text}");
        }
        if words.contains("--json") {
            for line in out.lines() {
                let value: serde_json::Value =
                    serde_json::from_str(line).unwrap_or_else(|e| panic!("{words}: {e}: {line}"));
                assert!(value.is_object(), "{words}: {line}");
            }
        }
        if status != 0 {
            // It says what to do about it.
            let says = ["→ ", "try '--help'", "problems\n"].iter().any(|mark| error.contains(mark));
            if !says && !words.starts_with("check") {
                self.without_remedy.push(format!("{words}: {error}"));
            }
        }
        let (out, error) = (self.plain(&out, folder), self.plain(&error, folder));
        let words = self.plain(words, folder);
        self.text.push_str(&format!("$ postrider {words}\n{out}"));
        error.lines().for_each(|line| self.text.push_str(&format!("! {line}\n")));
        if status != 0 {
            self.text.push_str(&format!("(exit status {status})\n"));
        }
        self.text.push('\n');
    }

    pub fn finish(self) -> String {
        assert!(self.without_remedy.is_empty() || std::env::var_os("UPDATE").is_some(), "{:#?}", self.without_remedy);
        self.text
    }

    /// Without what differs from run to run.
    fn plain(&mut self, text: &str, folder: &Path) -> String {
        let mut text = text.replace(folder.to_str().unwrap(), "~");
        for (what, word) in [
            (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|\b)", "TIME"),
            (r"\b(in|after) \d+ (s|min|h|days)\b|\b\d+ (s|min|h|days) ago\b|\(now\)", "SOON"),
            (r"127\.0\.0\.1(\]?):\d+", "127.0.0.1$1:PORT"),
            (r"\bport \d{4,}", "port PORT"),
            (r"\b\d+(\.\d)? ([KMGT]i)?B\b", "SIZE"),
            (r#""(size|bytes|body_bytes|free|limit|before|after|millis|records|chunks|files|used)":\d+"#, "\"$1\":N"),
            (r"\b\d+(\.\d+)? ms\b", "N ms"),
            (r#"p=[A-Za-z0-9+/=]{30,}("? "?[A-Za-z0-9+/=]{30,})*"#, "p=KEY"),
            (r"\$argon2id\$[^\s\x22]+", "HASH"),
            (r"\bin \d+ files", "in N files"),
            (r"\.before-\d+(-\d+)?", ".before-TIME"),
            (r"uid \d+, gid \d+, mode \d+", "uid N, gid N, mode N"),
            (r"\b20\d\d-\d\d-\d\d\b", "DAY"),
        ] {
            text = Regex::new(what).unwrap().replace_all(&text, word).into_owned();
        }
        let ids = Regex::new(r"\b[0-9a-hjkmnp-tv-z]{13}\b").unwrap();
        let known = &mut self.ids;
        let name = |found: &regex::Captures<'_>| {
            let id = found[0].to_owned();
            if !id.contains(|c: char| c.is_ascii_digit()) {
                return id;
            }
            let at = known.iter().position(|known| *known == id).unwrap_or_else(|| {
                known.push(id);
                known.len() - 1
            });
            format!("ID-{}", at + 1)
        };
        ids.replace_all(&text, name).into_owned()
    }
}

pub struct House {
    pub server: TestServer,
    pub config: PathBuf,
    pub folder: tempfile::TempDir,
    _zone: ZoneServer,
}

impl House {
    pub async fn new(smart_host: u16) -> House {
        let folder = tempfile::tempdir().unwrap();
        let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1").fail("lost.test");
        let (zone, sink) = (zone.serve().await, Sink::start().await);
        std::fs::create_dir(folder.path().join("drop")).unwrap();
        let more = format!(
            "[domains.\"home.test\"]\n[aliases]\n\"box@home.test\" = \"box\"\n[targets.box]\nkind = \"maildir\"\n\
             path = \"DATA_DIR/box\"\n[accounts.app]\npassword = \"secret\"\nlabel = \"web shop\"\ndaily_limit = 200\n\
             [accounts.kept]\npassword = \"secret\"\nhold = true\n[accounts.news]\npassword = \"secret\"\n\
             stream = \"bulk\"\nsenders = [\"news@home.test\"]\nactive = true\n[dns]\nnameservers = [\"{}\"]\n\
             [delivery]\nmx_port = {}\nallow_private_addresses = true\n[smart_hosts.relay]\nhost = \"127.0.0.1\"\n\
             port = {smart_host}\ntls = \"off\"\nfrom_filter = [\"other.test\"]\n[pickup.drop]\n\
             path = \"DATA_DIR/drop\"\naccount = \"app\"\nsettle = \"24h\"\n",
            zone.addr(),
            sink.address.port()
        );
        let server = TestServer::start_at(folder.path(), &more, Clock::manual(START)).await;
        let config = folder.path().join("postrider.toml");
        let doors = "[listeners.submission]\nrole = \"submission\"\nbind = [\"127.0.0.1:0\"]\n";
        let text = format!("hostname = \"mail.home.test\"\ndata_dir = \"DATA_DIR\"\n{doors}{more}");
        std::fs::write(&config, text.replace("DATA_DIR", folder.path().to_str().unwrap())).unwrap();
        House { server, config, folder, _zone: zone }
    }

    pub async fn submit(&self, account: &str, from: &str, to: &str, subject: &str) -> MessageId {
        let mut client = Client::connect(self.server.submission).await.unwrap();
        let secret = STANDARD.encode(format!("\0{account}\0secret"));
        client.command(&format!("AUTH PLAIN {secret}"), "235").await.unwrap();
        let content = format!(
            "From: <{from}>\r\nTo: <{to}>\r\nSubject: {subject}\r\nMessage-ID: <{subject}@home.test>\r\n\r\nhello\r\n"
        );
        let reply = client.send(from, &[to], &content).await.unwrap();
        assert!(reply.starts_with("250 2.0.0"), "{reply}");
        queued_id(&reply)
    }
}
