//! An HTTP endpoint of a test's own on loopback: answers each request with the next text of its script, and
//! remembers what it was asked.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// In a script: this request is never answered.
pub const MUTE: &str = "mute";

pub struct Request {
    pub head: String,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What has no text in the script is never answered; an empty text closes the connection.
pub struct Endpoint {
    pub url: String,
    requests: Arc<Mutex<Vec<Request>>>,
    script: Arc<Mutex<VecDeque<String>>>,
    /// How many have come in all.
    count: watch::Receiver<usize>,
}

impl Endpoint {
    pub async fn answering(answers: &[&str]) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hooks/mail", listener.local_addr().unwrap());
        let (count_in, count) = watch::channel(0);
        let script = answers.iter().map(|answer| (*answer).to_owned()).collect();
        let (requests, script) = (Arc::<Mutex<Vec<Request>>>::default(), Arc::new(Mutex::new(script)));
        let shared = (requests.clone(), script.clone(), Arc::new(count_in));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        Endpoint { url, requests, script, count }
    }

    /// Adds to the script.
    pub fn will(&self, answer: &str) {
        self.script.lock().unwrap().push_back(answer.to_owned());
    }

    /// The requests since the last look.
    pub fn take(&self) -> Vec<Request> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }

    /// Until so many have come in all.
    pub async fn wait_for(&self, count: usize) {
        let mut counted = self.count.clone();
        let come = tokio::time::timeout(PATIENCE, counted.wait_for(|come| *come >= count)).await;
        come.unwrap_or_else(|_| panic!("waited in vain for {count} requests")).unwrap();
    }
}

type Shared = (Arc<Mutex<Vec<Request>>>, Arc<Mutex<VecDeque<String>>>, Arc<watch::Sender<usize>>);

async fn serve(mut stream: TcpStream, (requests, script, count): Shared) {
    while let Some(request) = read_request(&mut stream).await {
        requests.lock().unwrap().push(request);
        let answer = script.lock().unwrap().pop_front();
        count.send_modify(|count| *count += 1);
        match answer.as_deref() {
            Some("") => return,
            None | Some(MUTE) => std::future::pending().await,
            // Who asked may have been killed.
            Some(answer) => drop(stream.write_all(answer.as_bytes()).await),
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<Request> {
    let mut buffer = Vec::new();
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer[..end].to_vec()).unwrap();
    let mut request = Request { head, body: buffer.split_off(end + 4) };
    let length: usize = request.header("content-length").expect("a length, not chunks").parse().unwrap();
    while request.body.len() < length {
        if stream.read_buf(&mut request.body).await.ok()? == 0 {
            return None;
        }
    }
    Some(request)
}

pub fn answer(status: &str, extra: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{extra}\r\n{body}", body.len())
}
