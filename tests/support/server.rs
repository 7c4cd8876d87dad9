//! A whole server in this process, on free loopback ports, with a throwaway data folder.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use postrider::admin::{Backend, Filter, Listed, Page, Story};
use postrider::app::App;
use postrider::clock::Clock;
use postrider::events::Event;
use postrider::message::MessageId;

pub const HOSTNAME: &str = "mail.home.test";

/// What every test server has: its own ports, no limits in the way of a test on one machine.
const BASE: &str = r#"
hostname = "mail.home.test"
data_dir = "DATA_DIR"

[listeners.mx]
role = "mx"
bind = ["127.0.0.1:0"]

[listeners.submission]
role = "submission"
bind = ["127.0.0.1:0"]

[limits]
connections_per_ip = 1000
connection_rate = "100000/m"

[queue]
min_free = "1MiB"
"#;

/// One box of ours, box@home.test.
pub const BOX: &str = "[domains.\"home.test\"]\n[aliases]\n\"box@home.test\" = \"box\"\n\
                       [targets.box]\nkind = \"maildir\"\npath = \"DATA_DIR/box\"\n";

/// All mail elsewhere leaves for the far end at this port of loopback, as the name server at `dns` has it.
pub fn outward(port: u16, dns: SocketAddr) -> String {
    format!("[delivery]\nmx_port = {port}\nallow_private_addresses = true\n[dns]\nnameservers = [\"{dns}\"]\n")
}

pub struct TestServer {
    pub app: App,
    pub mx: SocketAddr,
    pub submission: SocketAddr,
    pub data_dir: PathBuf,
}

impl TestServer {
    /// Starts with `more` configuration behind the base; DATA_DIR in it is replaced.
    pub async fn start(data_dir: &Path, more: &str) -> TestServer {
        TestServer::start_at(data_dir, more, Clock::System).await
    }

    pub async fn start_at(data_dir: &Path, more: &str, clock: Clock) -> TestServer {
        TestServer::start_text(data_dir, format!("{BASE}{more}"), clock).await
    }

    /// Starts with a line of the base replaced.
    pub async fn start_with(data_dir: &Path, more: &str, line: &str, other: &str) -> TestServer {
        assert!(BASE.contains(line));
        TestServer::start_text(data_dir, format!("{BASE}{more}").replace(line, other), Clock::System).await
    }

    /// With a configuration that has all that the base has.
    pub async fn start_whole(data_dir: &Path, text: String, clock: Clock) -> TestServer {
        TestServer::start_text(data_dir, text, clock).await
    }

    async fn start_text(data_dir: &Path, text: String, clock: Clock) -> TestServer {
        let text = text.replace("DATA_DIR", data_dir.to_str().unwrap());
        let config =
            postrider::config::parse("test.toml", &text).unwrap_or_else(|problems| panic!("{problems}\n{text}"));
        let app = App::start(config, clock).await.unwrap_or_else(|error| panic!("{error}"));
        let address = |name: &str| app.listeners().iter().find(|listener| listener.name == name).unwrap().address;
        TestServer { mx: address("mx"), submission: address("submission"), data_dir: data_dir.to_owned(), app }
    }

    pub async fn stop(self) {
        self.app.stop(std::future::pending()).await;
    }

    pub async fn queue(&self) -> Vec<Listed> {
        self.app.operator().list(Filter::default(), Page::default()).await.unwrap()
    }

    pub async fn story(&self, id: MessageId) -> Option<Story> {
        self.app.operator().story(id).await.unwrap()
    }

    /// Waits until the story of a message holds an event that `wanted` takes.
    pub async fn wait_for(&self, id: MessageId, wanted: impl Fn(&Event) -> bool) -> Story {
        self.wait_until(id, |story| story.entries.iter().any(|entry| wanted(&entry.event))).await
    }

    /// Waits until nothing of the message is queued any more.
    pub async fn wait_done(&self, id: MessageId) -> Story {
        self.wait_until(id, |story| story.message.is_none()).await
    }

    /// Waits until nothing of the message is queued any more, and its story may be gone too.
    pub async fn wait_gone(&self, id: MessageId) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while self.queue().await.iter().any(|listed| listed.id == id) {
            assert!(std::time::Instant::now() < deadline, "gave up waiting: {:#?}", self.story(id).await);
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    pub async fn wait_until(&self, id: MessageId, enough: impl Fn(&Story) -> bool) -> Story {
        // The story is looked at again and again: there is no event to wait for from outside. The
        // bound only turns a hang into a failure that shows the story.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            if let Some(story) = self.story(id).await
                && enough(&story)
            {
                return story;
            }
            assert!(std::time::Instant::now() < deadline, "gave up waiting: {:#?}", self.story(id).await);
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

/// The id in `250 2.0.0 queued as ID`.
pub fn queued_id(reply: &str) -> MessageId {
    let id = reply.trim_end().rsplit(' ').next().unwrap_or_default();
    id.parse().unwrap_or_else(|_| panic!("no id in {reply:?}"))
}
