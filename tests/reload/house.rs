//! A whole server with a configuration in a file that a test may change.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use postrider::admin::reload::{ReloadAnswer, ReloadResult};
use postrider::admin::{Backend, Filter, Listed, Page, Story};
use postrider::app::App;
use postrider::clock::Clock;
use postrider::config;
use postrider::message::MessageId;

use crate::client::Client;

/// Turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// What every test has; DATA_DIR is replaced.
pub const BASE: &str = r#"
hostname = "mail.home.test"
data_dir = "DATA_DIR/data"

[networks]
trusted = ["127.0.0.0/8"]

[listeners.mx]
role = "mx"
bind = ["127.0.0.1:0"]

[listeners.submission]
role = "submission"
bind = ["127.0.0.1:0"]
tls = "opportunistic"

[limits]
connections = 10000
connections_per_ip = 10000
connection_rate = "1000000/m"

[queue]
min_free = "1MiB"

[loops]
limit = 1000000

[checks]
spf = "off"
dkim = "off"
dmarc = "off"
arc = "off"
rdns = "off"

[domains."home.test"]

[targets.box]
kind = "maildir"
path = "DATA_DIR/box"
"#;

pub struct House {
    pub folder: tempfile::TempDir,
    pub file: PathBuf,
    pub app: App,
}

impl House {
    /// Starts with `more` behind the base.
    pub async fn start(more: &str) -> House {
        House::start_text(&format!("{BASE}{more}")).await
    }

    pub async fn start_text(text: &str) -> House {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("postrider.toml");
        write(folder.path(), &file, text);
        let config = config::load(&file).unwrap_or_else(|problems| panic!("{problems}"));
        let app = App::start(config, Clock::System).await.unwrap_or_else(|error| panic!("{error}"));
        House { folder, file, app }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Another text of the configuration.
    pub fn write(&self, text: &str) {
        write(self.folder.path(), &self.file, text);
    }

    pub async fn reload(&self) -> ReloadAnswer {
        self.app.operator().reload().await.unwrap()
    }

    /// Takes the base with `more` behind it, which has to go well and change something; the changes as texts.
    pub async fn takes(&self, more: &str) -> Vec<String> {
        self.takes_text(&format!("{BASE}{more}")).await
    }

    pub async fn takes_text(&self, text: &str) -> Vec<String> {
        self.write(text);
        let answer = self.reload().await;
        assert_eq!(answer.result, ReloadResult::Applied, "{answer:#?}");
        answer.changes.iter().map(ToString::to_string).collect()
    }

    /// Has a text refused; the problems as texts.
    pub async fn refuses_text(&self, text: &str) -> Vec<String> {
        self.write(text);
        let before = self.app.reloader().config();
        let answer = self.reload().await;
        assert_eq!((answer.result, answer.changes.len()), (ReloadResult::Refused, 0), "{answer:#?}");
        assert!(std::sync::Arc::ptr_eq(&before, &self.app.reloader().config()), "the old one goes on");
        answer.problems.iter().map(ToString::to_string).collect()
    }

    pub fn address(&self, listener: &str) -> SocketAddr {
        let open = self.app.listeners();
        open.iter().find(|open| open.name == listener).unwrap_or_else(|| panic!("{listener}: {open:?}")).address
    }

    pub async fn client(&self, listener: &str) -> Client {
        Client::connect(self.address(listener)).await.unwrap()
    }

    /// Over the listener `submission`.
    pub async fn logged_in(&self, account: &str, password: &str) -> Client {
        let mut client = self.client("submission").await;
        log_in(&mut client, account, password, "235").await;
        client
    }

    pub async fn queue(&self) -> Vec<Listed> {
        self.app.operator().list(Filter::default(), Page::default()).await.unwrap()
    }

    /// Waits until the story of a message is as wanted.
    pub async fn wait_until(&self, id: MessageId, enough: impl Fn(&Story) -> bool) -> Story {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let story = self.app.operator().story(id).await.unwrap();
            if let Some(story) = &story
                && enough(story)
            {
                return story.clone();
            }
            assert!(Instant::now() < deadline, "gave up waiting: {story:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until nothing of it is queued any more.
    pub async fn wait_done(&self, id: MessageId) -> Story {
        self.wait_until(id, |story| story.message.is_none()).await
    }

    pub async fn stop(self) -> tempfile::TempDir {
        self.app.stop(std::future::pending()).await;
        self.folder
    }
}

fn write(folder: &Path, file: &Path, text: &str) {
    std::fs::write(file, text.replace("DATA_DIR", folder.to_str().unwrap())).unwrap();
}

pub async fn log_in(client: &mut Client, account: &str, password: &str, code: &str) -> String {
    let secret = STANDARD.encode(format!("\0{account}\0{password}"));
    client.command(&format!("AUTH PLAIN {secret}"), code).await.unwrap()
}

/// None is like another.
pub fn letter(from: &str, to: &str) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    // In letters: the guard against loops takes messages for the same that differ in numbers only.
    let number = format!("{:08}", COUNT.fetch_add(1, Ordering::Relaxed));
    let word: String = number.bytes().map(|digit| char::from(digit - b'0' + b'a')).collect();
    format!("From: <{from}>\r\nTo: <{to}>\r\nSubject: hello {word}\r\n\r\nbody {word}\r\n")
}

/// Sends it over the listener `mx`; the id.
pub async fn comes_in(house: &House, to: &str) -> MessageId {
    let mut client = house.client("mx").await;
    id(&client.send("someone@far.test", &[to], &letter("someone@far.test", to)).await.unwrap())
}

/// The id in `250 2.0.0 queued as ID`.
pub fn id(reply: &str) -> MessageId {
    let id = reply.trim_end().rsplit(' ').next().unwrap_or_default();
    id.parse().unwrap_or_else(|_| panic!("no id in {reply:?}"))
}

pub fn maildir(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path.join("new")).into_iter().flatten();
    entries.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect()
}

/// Waits for something that nobody tells of.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "gave up waiting: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
