//! Our own sink: takes every message, keeps nothing, counts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const BACKLOG: u32 = 4096;
/// How long a port that somebody has is waited for.
const BIND_TIME: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 64 * 1024;

pub struct Sink {
    pub address: SocketAddr,
    taken: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Sink {
    /// On a free port, or on this one.
    pub async fn start(port: u16) -> Sink {
        let listener = listen(port).await;
        let address = listener.local_addr().unwrap();
        let taken = Arc::new(AtomicU64::new(0));
        let connections = Arc::new(AtomicU64::new(0));
        let (counter, opened) = (taken.clone(), connections.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                opened.fetch_add(1, Ordering::AcqRel);
                let counter = counter.clone();
                // The client may go at any time; that is its own affair.
                tokio::spawn(async move { serve(stream, &counter).await.unwrap_or_default() });
            }
        });
        Sink { address, taken, connections, task }
    }

    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Acquire)
    }

    /// How many were made.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Acquire)
    }

    /// Waits for so many messages in all; false if they are not there in time.
    pub async fn wait_for(&self, messages: u64, at_most: Duration) -> bool {
        let deadline = Instant::now() + at_most;
        while self.taken() < messages {
            if Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        true
    }
}

/// One that had the port before may not be gone yet.
async fn listen(port: u16) -> TcpListener {
    let deadline = Instant::now() + BIND_TIME;
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        match socket.bind(SocketAddr::from(([127, 0, 0, 1], port))).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return listener,
            Err(error) => assert!(Instant::now() < deadline, "port {port}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Takes connections and never says a word, on this port of 127.0.0.2, until it is dropped.
pub struct Silent {
    task: tokio::task::JoinHandle<()>,
    connections: Arc<AtomicU64>,
}

impl Silent {
    pub async fn start(port: u16) -> Silent {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 2], port))).await.unwrap();
        let connections = Arc::new(AtomicU64::new(0));
        let counter = connections.clone();
        let task = tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::AcqRel);
                open.push(stream);
            }
        });
        Silent { task, connections }
    }

    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Acquire)
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Looks for the line of a single dot across reads; what is sent cannot begin with one, so that the
/// end of `CRLF . CRLF` is enough.
async fn serve(mut stream: TcpStream, taken: &AtomicU64) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(b"220 sink.test ESMTP\r\n").await?;
    let mut buffer = Vec::with_capacity(READ_BYTES);
    let mut in_data = false;
    let mut replies = Vec::new();
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let mut at = 0;
        loop {
            if in_data {
                let rest = &buffer[at..];
                match memchr::memmem::find(rest, b"\r\n.\r\n") {
                    Some(end) => {
                        at += end + 5;
                        in_data = false;
                        taken.fetch_add(1, Ordering::AcqRel);
                        replies.extend_from_slice(b"250 2.0.0 taken\r\n");
                    }
                    None => {
                        // The line may be cut in two; its first part stays.
                        at += rest.len().saturating_sub(4);
                        break;
                    }
                }
            } else {
                let Some(end) = memchr::memchr(b'\n', &buffer[at..]) else { break };
                in_data = reply(&buffer[at..at + end], &mut replies);
                at += end + 1;
                if in_data {
                    // So that a message whose first line is the dot is found as well.
                    at -= 2;
                }
            }
        }
        buffer.drain(..at);
        if !replies.is_empty() {
            stream.write_all(&replies).await?;
            replies.clear();
        }
    }
}

/// The reply to a command; true behind DATA.
fn reply(command: &[u8], replies: &mut Vec<u8>) -> bool {
    let verb = command.get(..4).unwrap_or_default().to_ascii_uppercase();
    let text: &[u8] = match verb.as_slice() {
        b"EHLO" => b"250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 ENHANCEDSTATUSCODES\r\n",
        b"DATA" => b"354 go on\r\n",
        b"QUIT" => b"221 2.0.0 bye\r\n",
        _ => b"250 2.0.0 good\r\n",
    };
    replies.extend_from_slice(text);
    verb == b"DATA"
}
