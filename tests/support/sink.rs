//! A far end that takes every message and remembers it, but for senders and recipients named refused. Speaks SMTP with PIPELINING, and STARTTLS if
//! asked to, on a loopback port of its own.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer};

/// A message as it arrived: dot-stuffing undone.
#[derive(Clone, Debug)]
pub struct Taken {
    pub mail_from: String,
    pub recipients: Vec<String>,
    pub content: Vec<u8>,
    pub tls: bool,
}

#[derive(Clone)]
pub struct Sink {
    pub address: SocketAddr,
    taken: Arc<Mutex<Vec<Taken>>>,
    arrived: Arc<tokio::sync::Notify>,
    keep: bool,
    acceptor: Option<TlsAcceptor>,
    /// Every CR and every LF ends a line for it, of commands and of content.
    lax: bool,
    /// Its answer to EHLO.
    offers: &'static [u8],
}

const OFFERS: &[u8] = b"250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 SIZE 0\r\n";

/// Offers STARTTLS under a certificate that nobody has reason to trust.
fn acceptor() -> TlsAcceptor {
    let made = rcgen::generate_simple_self_signed(vec!["mx.far.test".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

impl Sink {
    /// Starts on a free port; lives as long as the runtime.
    pub async fn start() -> Sink {
        Sink::start_with(true, false).await
    }

    /// Offers STARTTLS.
    pub async fn start_tls() -> Sink {
        Sink::start_with(true, true).await
    }

    /// The worst reader that there can be: for it each CR and each LF by itself ends a line.
    pub async fn start_lax() -> Sink {
        Sink::listen(true, false, true, OFFERS).await
    }

    /// Knows no extension.
    pub async fn start_old() -> Sink {
        Sink::listen(true, false, false, b"250 sink.test\r\n").await
    }

    /// `keep` false: contents are counted but not kept (for benches).
    pub async fn start_with(keep: bool, tls: bool) -> Sink {
        Sink::listen(keep, tls, false, OFFERS).await
    }

    async fn listen(keep: bool, tls: bool, lax: bool, offers: &'static [u8]) -> Sink {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sink = Sink {
            address: listener.local_addr().unwrap(),
            taken: Arc::default(),
            arrived: Arc::default(),
            keep,
            acceptor: tls.then(acceptor),
            lax,
            offers,
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
        if self.talk(&mut stream, false).await?.is_some_and(|next| next == "STARTTLS")
            && let Some(acceptor) = &self.acceptor
        {
            let stream = acceptor.accept(stream.into_inner()).await?;
            self.talk(&mut BufReader::with_capacity(64 * 1024, stream), true).await?;
        }
        Ok(())
    }

    /// Talks until the end (None) or until something else is to be done.
    async fn talk<S>(&self, stream: &mut BufReader<S>, tls: bool) -> std::io::Result<Option<&'static str>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (mut mail_from, mut recipients) = (String::new(), Vec::new());
        let mut line = Vec::new();
        let mut replies: Vec<u8> = Vec::new();
        loop {
            line.clear();
            if stream.buffer().is_empty() && !replies.is_empty() {
                stream.get_mut().write_all(&replies).await?;
                replies.clear();
            }
            if read_line(stream, self.lax, &mut line).await? == 0 {
                return Ok(None);
            }
            // The LF of a CRLF, where the CR was the end already.
            if self.lax && line.len() == 1 {
                continue;
            }
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            let verb = text.get(..4).unwrap_or_default().to_ascii_uppercase();
            match verb.as_str() {
                "STAR" => {
                    stream.get_mut().write_all(b"220 go ahead\r\n").await?;
                    return Ok(Some("STARTTLS"));
                }
                "EHLO" if self.acceptor.is_some() && !tls => {
                    replies.extend_from_slice(b"250-sink.test\r\n250-PIPELINING\r\n250-STARTTLS\r\n250 8BITMIME\r\n");
                }
                "EHLO" => replies.extend_from_slice(self.offers),
                "HELO" => replies.extend_from_slice(b"250 sink.test\r\n"),
                "MAIL" if path(&text).starts_with("refused") => replies.extend_from_slice(b"550 5.1.1 not you\r\n"),
                "MAIL" => {
                    mail_from = path(&text);
                    recipients = Vec::new();
                    replies.extend_from_slice(b"250 ok\r\n");
                }
                "RCPT" if path(&text).starts_with("refused") => replies.extend_from_slice(b"550 5.1.1 nobody here\r\n"),
                "RCPT" => {
                    recipients.push(path(&text));
                    replies.extend_from_slice(b"250 ok\r\n");
                }
                "DATA" => {
                    replies.extend_from_slice(b"354 go on\r\n");
                    stream.get_mut().write_all(&replies).await?;
                    replies.clear();
                    let content =
                        if self.keep { read_data(stream, self.lax).await? } else { skip_data(stream).await? };
                    let taken = Taken {
                        mail_from: mail_from.clone(),
                        recipients: std::mem::take(&mut recipients),
                        content,
                        tls,
                    };
                    self.taken.lock().unwrap().push(taken);
                    self.arrived.notify_waiters();
                    replies.extend_from_slice(b"250 taken\r\n");
                }
                "RSET" | "NOOP" => replies.extend_from_slice(b"250 ok\r\n"),
                "QUIT" => {
                    replies.extend_from_slice(b"221 bye\r\n");
                    stream.get_mut().write_all(&replies).await?;
                    return Ok(None);
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

/// Nothing is undone and kept: a bench measures the server, not this.
async fn skip_data<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> std::io::Result<Vec<u8>> {
    const END: &[u8] = b"\r\n.\r\n";
    let mut seen = b"\r\n".to_vec();
    loop {
        let (before, more) = (seen.len(), stream.fill_buf().await?);
        if more.is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        seen.extend_from_slice(more);
        if let Some(at) = memchr::memmem::find(&seen, END) {
            stream.consume(at + END.len() - before);
            return Ok(Vec::new());
        }
        stream.consume(seen.len() - before);
        seen.drain(..seen.len().saturating_sub(END.len() - 1));
    }
}

/// The next line with its end; how many bytes.
async fn read_line<S: AsyncRead + Unpin>(
    stream: &mut BufReader<S>,
    lax: bool,
    line: &mut Vec<u8>,
) -> std::io::Result<usize> {
    if !lax {
        return stream.read_until(b'\n', line).await;
    }
    let before = line.len();
    loop {
        let more = stream.fill_buf().await?;
        let end = memchr::memchr2(b'\r', b'\n', more);
        let used = end.map_or(more.len(), |at| at + 1);
        line.extend_from_slice(&more[..used]);
        stream.consume(used);
        if end.is_some() || used == 0 {
            return Ok(line.len() - before);
        }
    }
}

async fn read_data<S: AsyncRead + Unpin>(stream: &mut BufReader<S>, lax: bool) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    // The LF behind the command's CR.
    if lax && stream.fill_buf().await?.first() == Some(&b'\n') {
        stream.consume(1);
    }
    loop {
        let start = content.len();
        if read_line(stream, lax, &mut content).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let is_end =
            if lax { matches!(content[start..], [b'.', b'\r' | b'\n']) } else { &content[start..] == b".\r\n" };
        if is_end {
            content.truncate(start);
            return Ok(content);
        }
        if content[start] == b'.' {
            content.remove(start);
        }
    }
}
