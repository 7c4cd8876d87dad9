//! An HTTP server on loopback that plays a script: one answer for each request, in their order.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub struct Request {
    pub head: String,
    pub body: Vec<u8>,
}

impl Request {
    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The fields of a form.
    pub fn form(&self) -> BTreeMap<String, String> {
        let url = format!("http://localhost/?{}", std::str::from_utf8(&self.body).unwrap());
        let url = reqwest::Url::parse(&url).unwrap();
        url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
    }
}

pub struct FakeHttp {
    pub url: String,
    requests: Arc<Mutex<Vec<Request>>>,
    script: Arc<Mutex<VecDeque<String>>>,
}

impl FakeHttp {
    pub async fn start() -> FakeHttp {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (requests, script) = (Arc::<Mutex<Vec<Request>>>::default(), Arc::<Mutex<VecDeque<String>>>::default());
        let shared = (requests.clone(), script.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        FakeHttp { url, requests, script }
    }

    /// What the next request is answered; empty: the connection is closed instead.
    pub fn will(&self, status: &str, extra: &str, body: &str) {
        let text = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{extra}\r\n{body}", body.len());
        self.script.lock().unwrap().push_back(if status.is_empty() { String::new() } else { text });
    }

    /// The requests since the last look.
    pub fn take(&self) -> Vec<Request> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

type Shared = (Arc<Mutex<Vec<Request>>>, Arc<Mutex<VecDeque<String>>>);

async fn serve(mut stream: TcpStream, (requests, script): Shared) {
    while let Some(request) = read_request(&mut stream).await {
        requests.lock().unwrap().push(request);
        // A request that nobody expected fails its test by this status.
        let unexpected = || "HTTP/1.1 418 unexpected\r\ncontent-length: 0\r\n\r\n".to_owned();
        let answer = script.lock().unwrap().pop_front().unwrap_or_else(unexpected);
        if answer.is_empty() || stream.write_all(answer.as_bytes()).await.is_err() {
            return;
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
