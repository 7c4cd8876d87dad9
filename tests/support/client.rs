//! A plain SMTP client for tests and benches: one connection, strict about replies.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects, reads the greeting and says EHLO.
    pub async fn connect(address: SocketAddr) -> std::io::Result<Client> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut client = Client { stream: BufReader::new(stream) };
        client.expect("220").await?;
        client.command("EHLO client.test", "250").await?;
        Ok(client)
    }

    /// Sends a line and gives the whole reply.
    pub async fn say(&mut self, line: &str) -> std::io::Result<String> {
        self.stream.get_mut().write_all(format!("{line}\r\n").as_bytes()).await?;
        self.reply().await
    }

    /// Sends a line whose reply must begin with `code`.
    pub async fn command(&mut self, line: &str, code: &str) -> std::io::Result<String> {
        let reply = self.say(line).await?;
        check(&reply, code)?;
        Ok(reply)
    }

    pub async fn expect(&mut self, code: &str) -> std::io::Result<String> {
        let reply = self.reply().await?;
        check(&reply, code)?;
        Ok(reply)
    }

    /// One message, pipelined; the reply to the final dot. `content` has CRLF lines and no leading dots.
    pub async fn send(&mut self, from: &str, to: &[&str], content: &str) -> std::io::Result<String> {
        let mut group = format!("MAIL FROM:<{from}>\r\n");
        for recipient in to {
            group.push_str(&format!("RCPT TO:<{recipient}>\r\n"));
        }
        group.push_str("DATA\r\n");
        self.stream.get_mut().write_all(group.as_bytes()).await?;
        for _ in 0..=to.len() {
            self.expect("250").await?;
        }
        self.expect("354").await?;
        self.stream.get_mut().write_all(format!("{content}.\r\n").as_bytes()).await?;
        self.reply().await
    }

    /// One message whose content may be anything; its dots are stuffed.
    pub async fn send_bytes(&mut self, from: &str, to: &str, content: &[u8]) -> std::io::Result<String> {
        self.command(&format!("MAIL FROM:<{from}>"), "250").await?;
        self.command(&format!("RCPT TO:<{to}>"), "250").await?;
        self.command("DATA", "354").await?;
        self.content(content).await
    }

    /// After the 354; gives the reply to the final dot.
    pub async fn content(&mut self, content: &[u8]) -> std::io::Result<String> {
        let mut stuffed = Vec::with_capacity(content.len() + 8);
        for line in content.split_inclusive(|byte| *byte == b'\n') {
            if line.starts_with(b".") {
                stuffed.push(b'.');
            }
            stuffed.extend_from_slice(line);
        }
        if !content.is_empty() && !content.ends_with(b"\r\n") {
            stuffed.extend_from_slice(b"\r\n");
        }
        stuffed.extend_from_slice(b".\r\n");
        self.stream.get_mut().write_all(&stuffed).await?;
        self.reply().await
    }

    async fn reply(&mut self) -> std::io::Result<String> {
        let mut reply = String::new();
        loop {
            let start = reply.len();
            if self.stream.read_line(&mut reply).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if reply.as_bytes().get(start + 3) != Some(&b'-') {
                return Ok(reply);
            }
        }
    }
}

fn check(reply: &str, code: &str) -> std::io::Result<()> {
    if reply.starts_with(code) { Ok(()) } else { Err(std::io::Error::other(format!("wanted {code}, got {reply:?}"))) }
}
