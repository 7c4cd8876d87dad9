//! A far end that takes every message and remembers it. Speaks plain SMTP with PIPELINING, strictly
//! by lines, on a loopback port of its own.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// A message as it arrived: dot-stuffing undone.
#[derive(Clone, Debug)]
pub struct Taken {
    pub mail_from: String,
    pub recipients: Vec<String>,
    pub content: Vec<u8>,
}

#[derive(Clone)]
pub struct Sink {
    pub address: SocketAddr,
    taken: Arc<Mutex<Vec<Taken>>>,
    arrived: Arc<tokio::sync::Notify>,
    keep: bool,
}

impl Sink {
    /// Starts on a free port; lives as long as the runtime.
    pub async fn start() -> Sink {
        Sink::start_with(true).await
    }

    /// `keep` false: contents are counted but not kept (for benches).
    pub async fn start_with(keep: bool) -> Sink {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sink = Sink {
            address: listener.local_addr().unwrap(),
            taken: Arc::default(),
            arrived: Arc::default(),
            keep,
        };
        let serving = sink.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let sink = serving.clone();
                // A client that is killed in the middle is what some tests are about.
                tokio::spawn(async move { drop(sink.session(stream).await) });
            }
        });
        sink
    }

    pub fn taken(&self) -> Vec<Taken> {
        self.taken.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.taken.lock().unwrap().len()
    }

    /// Waits until so many messages have arrived.
    pub async fn wait_for(&self, count: usize) {
        loop {
            let arrived = self.arrived.notified();
            if self.count() >= count {
                return;
            }
            arrived.await;
        }
    }

    async fn session(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut stream = BufReader::with_capacity(64 * 1024, stream);
        stream.get_mut().write_all(b"220 sink.test ESMTP\r\n").await?;
        let (mut mail_from, mut recipients) = (String::new(), Vec::new());
        let mut line = Vec::new();
        let mut replies: Vec<u8> = Vec::new();
        loop {
            line.clear();
            if stream.buffer().is_empty() && !replies.is_empty() {
                stream.get_mut().write_all(&replies).await?;
                replies.clear();
            }
            if stream.read_until(b'\n', &mut line).await? == 0 {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            let verb = text.get(..4).unwrap_or_default().to_ascii_uppercase();
            match verb.as_str() {
                "EHLO" => replies.extend_from_slice(b"250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 SIZE 0\r\n"),
                "HELO" => replies.extend_from_slice(b"250 sink.test\r\n"),
                "MAIL" => {
                    mail_from = path(&text);
                    recipients = Vec::new();
                    replies.extend_from_slice(b"250 ok\r\n");
                }
                "RCPT" => {
                    recipients.push(path(&text));
                    replies.extend_from_slice(b"250 ok\r\n");
                }
                "DATA" => {
                    replies.extend_from_slice(b"354 go on\r\n");
                    stream.get_mut().write_all(&replies).await?;
                    replies.clear();
                    let content = read_data(&mut stream).await?;
                    let content = if self.keep { content } else { Vec::new() };
                    let taken = Taken { mail_from: mail_from.clone(), recipients: std::mem::take(&mut recipients), content };
                    self.taken.lock().unwrap().push(taken);
                    self.arrived.notify_waiters();
                    replies.extend_from_slice(b"250 taken\r\n");
                }
                "RSET" | "NOOP" => replies.extend_from_slice(b"250 ok\r\n"),
                "QUIT" => {
                    replies.extend_from_slice(b"221 bye\r\n");
                    return stream.get_mut().write_all(&replies).await;
                }
                _ => replies.extend_from_slice(b"500 what?\r\n"),
            }
        }
    }
}

fn path(text: &str) -> String {
    let inner = text.split_once('<').and_then(|(_, rest)| rest.rsplit_once('>'));
    inner.map(|(path, _)| path.to_owned()).unwrap_or_default()
}

async fn read_data(stream: &mut BufReader<TcpStream>) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let start = content.len();
        if stream.read_until(b'\n', &mut content).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if &content[start..] == b".\r\n" {
            content.truncate(start);
            return Ok(content);
        }
        if content[start] == b'.' {
            content.remove(start);
        }
    }
}
