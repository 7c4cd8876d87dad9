//! The doors, and a message through each of them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use postrider::message::header::Headers;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::support::client::Client;
use crate::support::served::Served;

const LOGIN: &str = "AUTH PLAIN AHNob3AAY29ycmVjdCBob3JzZQ==";
/// What takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);
const OWN: &str = "shop@home.test";
const FAR: &str = "you@far.test";

/// Where a message comes in, or is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// From outside, to a webhook and a Maildir.
    Mx,
    /// To a return path: read as a report, whether it is one or not.
    Bounce,
    Submission,
    /// Whole, over HTTP.
    Whole,
    /// What that one has brought in, read by whoever looks at captured mail: in parts, as HTML, as files, as it came.
    Captured,
    /// Whole, as a text in JSON.
    Raw,
    /// Its parts as values of JSON.
    Parts,
    /// A file, whose recipients are those in its header.
    Pickup,
}

pub const DOORS: [Door; 8] =
    [Door::Mx, Door::Bounce, Door::Submission, Door::Whole, Door::Captured, Door::Raw, Door::Parts, Door::Pickup];

pub struct Doors<'a> {
    pub server: &'a Served,
    socket: PathBuf,
    folder: PathBuf,
    /// The message that is captured.
    captured: Option<String>,
    number: usize,
    /// Octets of the last one, as it was sent.
    pub sent: usize,
}

impl Doors<'_> {
    pub fn new<'a>(server: &'a Served, base: &Path) -> Doors<'a> {
        let (socket, folder) = (base.join("data/admin.sock"), base.join("in"));
        Doors { server, socket, folder, captured: None, number: 0, sent: 0 }
    }

    /// The code of the answer, or what has become of it.
    pub async fn through(&mut self, door: Door, bomb: &[u8]) -> String {
        self.sent = bomb.len();
        match door {
            Door::Mx => self.by_smtp("mx", ("ann@known.test", "x@home.test"), bomb).await,
            Door::Bounce => self.by_smtp("mx", ("", "bounce@home.test"), bomb).await,
            Door::Submission => self.by_smtp("submission", (OWN, FAR), &own(bomb)).await,
            Door::Whole => {
                let path = format!("POST /api/v1/messages?from={OWN}&to={FAR}");
                let (code, body) = self.ask(&path, "message/rfc822", &own(bomb)).await;
                let told: Option<Value> = serde_json::from_slice(&body).ok();
                self.captured = told.and_then(|told| Some(told["id"].as_str()?.to_owned()));
                code
            }
            Door::Captured => self.look().await,
            Door::Raw => {
                let raw = String::from_utf8_lossy(&own(bomb)).into_owned();
                self.post(&json!({ "from": OWN, "to": [FAR], "raw": raw })).await
            }
            // All of it three times over.
            Door::Parts => self.post(&parts(bomb)).await,
            Door::Pickup => self.by_file(bomb).await,
        }
    }

    async fn post(&mut self, body: &Value) -> String {
        let body = body.to_string();
        self.sent = body.len();
        self.post_text(body.as_bytes()).await
    }

    pub async fn post_text(&self, body: &[u8]) -> String {
        self.ask("POST /api/v1/messages", "application/json", body).await.0
    }

    async fn by_smtp(&self, door: &str, (from, to): (&str, &str), bomb: &[u8]) -> String {
        let mut client = Client::connect(self.server.door(door)).await.unwrap();
        if door == "submission" {
            client.command(LOGIN, "235").await.unwrap();
        }
        // One that is much too large is not heard to its end.
        let reply = client.send_bytes(from, to, bomb).await.unwrap_or_else(|error| error.to_string());
        reply.chars().take(3).collect()
    }

    async fn ask(&self, request: &str, kind: &str, body: &[u8]) -> (String, Vec<u8>) {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        let head = format!(
            "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        // One that is too large is answered before it is read.
        let _ = stream.write_all(&[head.as_bytes(), body].concat()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let code = String::from_utf8_lossy(answer.get(9..12).unwrap_or(b"---")).into_owned();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
        (code, answer.split_off(end))
    }

    /// All that is shown of a captured message. It is there once it has been delivered to nowhere.
    async fn look(&mut self) -> String {
        let Some(id) = self.captured.take() else { return "not taken".to_owned() };
        let since = Instant::now();
        let mut codes = Vec::new();
        loop {
            let (code, _) = self.ask(&format!("GET /api/v1/captured/{id}"), "text/plain", b"").await;
            if code == "200" || since.elapsed() > PATIENCE {
                codes.push(code);
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for more in ["/html", "/source", "/attachments/1", "/attachments/1000"] {
            codes.push(self.ask(&format!("GET /api/v1/captured/{id}{more}"), "text/plain", b"").await.0);
        }
        codes.push(self.ask("GET /api/v1/captured?q=nowhere", "text/plain", b"").await.0);
        codes.push(self.ask("GET /api/v1/captured?limit=1", "text/plain", b"").await.0);
        // So that not all of them together count.
        codes.push(self.ask("DELETE /api/v1/captured", "text/plain", b"").await.0);
        let is_well =
            codes.first().is_some_and(|code| code == "200") && codes.iter().all(|code| !code.starts_with('5'));
        assert!(is_well, "{id}: {codes:?}");
        codes.join(" ")
    }

    /// Its sender is in its header, and its recipients too.
    async fn by_file(&mut self, bomb: &[u8]) -> String {
        self.number += 1;
        let name = format!("b{}", self.number);
        let file = self.folder.join(format!("{name}.eml"));
        let (hidden, bad) = (self.folder.join(format!("{name}.new")), self.folder.join(format!("{name}.bad")));
        std::fs::write(&hidden, own(bomb)).unwrap();
        std::fs::rename(&hidden, &file).unwrap();
        let since = Instant::now();
        let taken = self.folder.join(format!("{name}.tmp"));
        loop {
            if bad.exists() {
                let why = std::fs::read_to_string(self.folder.join(format!("{name}.bad.log"))).unwrap_or_default();
                std::fs::remove_file(&bad).unwrap();
                return why.chars().take(100).collect();
            }
            if !file.exists() && !taken.exists() && !bad.exists() {
                return "taken".to_owned();
            }
            assert!(since.elapsed() < PATIENCE, "{name} is not taken: {}", self.server.text());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// From the account, to somebody elsewhere.
fn own(bomb: &[u8]) -> Vec<u8> {
    let head = b"From: ann@known.test\r\nTo: x@home.test";
    match bomb.strip_prefix(head) {
        Some(rest) => [format!("From: {OWN}\r\nTo: {FAR}").as_bytes(), rest].concat(),
        None => bomb.to_vec(),
    }
}

/// What is in a message, said in the keys of JSON: its fields, its text as text and as HTML, and all of it as a file.
fn parts(bomb: &[u8]) -> Value {
    let headers = Headers::parse(bomb);
    let text = String::from_utf8_lossy(headers.body());
    let mut fields = Map::new();
    let (mut addresses, mut subject) = (Vec::new(), "bomb".to_owned());
    for field in headers.fields() {
        let (name, value) = (String::from_utf8_lossy(field.name).into_owned(), field.text());
        match name.to_ascii_lowercase().as_str() {
            "cc" | "reply-to" => addresses.extend(value.split(',').map(|one| Value::from(one.trim()))),
            "x-subject" => subject = value,
            "from" | "to" | "subject" | "mime-version" => {}
            _ => drop(fields.insert(name, value.into())),
        }
    }
    json!({
        "from": OWN,
        "to": [FAR],
        "cc": addresses,
        "subject": subject,
        "text": text,
        "html": format!("<p>{text}"),
        "headers": fields,
        "attachments": [{ "filename": "b.eml", "content_type": "application/octet-stream", "content": STANDARD.encode(bomb) }],
    })
}
