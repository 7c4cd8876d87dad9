//! An HTTPS server inside the test that gives one answer to everything and keeps what it was asked.
//! Include it with `#[path = "support/web.rs"] mod web;`.

#![allow(dead_code, reason = "each test crate uses a part of it")]
#![allow(clippy::unwrap_used, reason = "test code")]

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

pub struct Web {
    pub port: u16,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    answer: String,
    /// Head and body.
    asked: Vec<(String, Vec<u8>)>,
}

/// An answer as it goes over the wire.
pub fn answer(status: &str, media_type: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

impl Web {
    /// At 127.0.0.1.
    pub async fn serve(config: ServerConfig, answer: String) -> Web {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State { answer, asked: Vec::new() }));
        let (acceptor, shared) = (TlsAcceptor::from(Arc::new(config)), state.clone());
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(talk(stream, acceptor.clone(), shared.clone()));
            }
        });
        Web { port, state, task }
    }

    pub fn now_answers(&self, answer: String) {
        self.state.lock().unwrap().answer = answer;
    }

    /// Requests so far.
    pub fn asked(&self) -> Vec<(String, Vec<u8>)> {
        self.state.lock().unwrap().asked.clone()
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A client that goes away in the middle has its reasons.
async fn talk(stream: TcpStream, acceptor: TlsAcceptor, state: Arc<Mutex<State>>) -> Option<()> {
    let mut stream = acceptor.accept(stream).await.ok()?;
    let mut heard = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = heard.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            fill(&mut stream, &mut heard).await?;
        };
        let head = String::from_utf8(heard.drain(..end).collect()).unwrap();
        let length = head
            .to_ascii_lowercase()
            .split("content-length: ")
            .nth(1)
            .map_or(0, |rest| rest.split("\r\n").next().unwrap().parse::<usize>().unwrap());
        while heard.len() < length {
            fill(&mut stream, &mut heard).await?;
        }
        let body = heard.drain(..length).collect();
        let answer = {
            let mut state = state.lock().unwrap();
            state.asked.push((head, body));
            state.answer.clone()
        };
        stream.write_all(answer.as_bytes()).await.ok()?;
        stream.flush().await.ok()?;
    }
}

async fn fill(stream: &mut tokio_rustls::server::TlsStream<TcpStream>, heard: &mut Vec<u8>) -> Option<()> {
    let mut buffer = [0; 4096];
    let count = stream.read(&mut buffer).await.ok().filter(|count| *count > 0)?;
    heard.extend_from_slice(&buffer[..count]);
    Some(())
}
