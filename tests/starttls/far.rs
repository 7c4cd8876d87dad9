//! A far end that says what it is told to say at each stage, and counts what it is given: messages and secrets, in
//! clear and under TLS.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

/// What is said at a stage in place of the usual. `CLOSE`: nothing, and the connection is gone; `SILENCE`: nothing, for
/// ever; behind `SLOWLY`: a byte at a time.
pub type Says = BTreeMap<&'static str, Vec<u8>>;
pub const CLOSE: &[u8] = b"";
pub const SILENCE: &[u8] = b"\x01";
pub const SLOWLY: u8 = 2;
/// Between two bytes of one that is slow.
pub const BYTE_TIME: Duration = Duration::from_millis(20);

#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub connections: usize,
    /// Messages of which the far end has at least the beginning.
    pub clear: usize,
    pub tls: usize,
    /// Messages that it has answered with 2yz.
    pub taken: usize,
    /// AUTH lines in clear.
    pub secrets: Vec<String>,
}

pub struct Far {
    pub address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

impl Far {
    pub async fn start(says: Says, identity: ServerConfig) -> Far {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = Far { address: listener.local_addr().unwrap(), seen: Arc::default() };
        let (says, seen) = (Arc::new(says), far.seen.clone());
        let acceptor = TlsAcceptor::from(Arc::new(identity));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                seen.lock().unwrap().connections += 1;
                let session = Session { says: says.clone(), seen: seen.clone(), tls: false };
                // A client may break off wherever it likes.
                tokio::spawn(session.serve(stream, acceptor.clone()));
            }
        });
        far
    }

    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }
}

struct Session {
    says: Arc<Says>,
    seen: Arc<Mutex<Seen>>,
    tls: bool,
}

/// Why a session ends.
enum End {
    StartTls,
    Gone,
}

impl From<std::io::Error> for End {
    fn from(_: std::io::Error) -> End {
        End::Gone
    }
}

impl Session {
    async fn serve(mut self, stream: TcpStream, acceptor: TlsAcceptor) {
        stream.set_nodelay(true).unwrap();
        let mut stream = BufReader::new(stream);
        if self.say(&mut stream, "greeting", b"220 mx1.far.test ESMTP\r\n").await.is_err() {
            return;
        }
        if let Err(End::StartTls) = self.talk(&mut stream).await
            && let Ok(stream) = acceptor.accept(stream.into_inner()).await
        {
            self.tls = true;
            let _ = self.talk(&mut BufReader::new(stream)).await;
        }
    }

    async fn say<S>(&self, stream: &mut BufReader<S>, stage: &str, usual: &[u8]) -> Result<bool, End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let said = self.says.get(stage).map_or(usual, Vec::as_slice);
        match said {
            CLOSE => return Err(End::Gone),
            SILENCE => std::future::pending().await,
            [SLOWLY, rest @ ..] => {
                for byte in rest {
                    stream.get_mut().write_all(&[*byte]).await?;
                    stream.get_mut().flush().await?;
                    tokio::time::sleep(BYTE_TIME).await;
                }
                return Ok(rest.starts_with(b"2") || rest.starts_with(b"3"));
            }
            said => {
                stream.get_mut().write_all(said).await?;
                stream.get_mut().flush().await?;
            }
        }
        Ok(said.starts_with(b"2") || said.starts_with(b"3"))
    }

    async fn talk<S: AsyncRead + AsyncWrite + Unpin>(&mut self, stream: &mut BufReader<S>) -> Result<(), End> {
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Err(End::Gone);
            }
            let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
            let hello = if self.tls {
                &b"250-mx1.far.test\r\n250-REQUIRETLS\r\n250 PIPELINING\r\n"[..]
            } else {
                b"250-mx1.far.test\r\n250-PIPELINING\r\n250 STARTTLS\r\n"
            };
            match verb.as_str() {
                "EHLO" => self.say(stream, if self.tls { "ehlo-tls" } else { "ehlo" }, hello).await?,
                "HELO" => self.say(stream, "helo", b"250 mx1.far.test\r\n").await?,
                "STAR" => {
                    if self.say(stream, "starttls", b"220 go ahead\r\n").await? {
                        return Err(if self.says.contains_key("no handshake") { End::Gone } else { End::StartTls });
                    }
                    false
                }
                "AUTH" => {
                    if !self.tls {
                        self.seen.lock().unwrap().secrets.push(line);
                    }
                    self.say(stream, "auth", b"235 2.7.0 ok\r\n").await?
                }
                "MAIL" => self.say(stream, "mail", b"250 ok\r\n").await?,
                "RCPT" => self.say(stream, "rcpt", b"250 ok\r\n").await?,
                "DATA" => {
                    if self.say(stream, "data", b"354 go on\r\n").await? {
                        self.content(stream).await?;
                    }
                    false
                }
                "QUIT" => {
                    self.say(stream, "quit", b"221 bye\r\n").await?;
                    return Err(End::Gone);
                }
                "RSET" => self.say(stream, "rset", b"250 ok\r\n").await?,
                _ => self.say(stream, "other", b"500 what?\r\n").await?,
            };
        }
    }

    async fn content<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut BufReader<S>) -> Result<(), End> {
        let mut line = Vec::new();
        let mut lines = 0;
        while line != b".\r\n" {
            line.clear();
            if stream.read_until(b'\n', &mut line).await? == 0 {
                return Err(End::Gone);
            }
            if lines == 0 && line != b".\r\n" {
                let mut seen = self.seen.lock().unwrap();
                *(if self.tls { &mut seen.tls } else { &mut seen.clear }) += 1;
            }
            lines += 1;
        }
        let is_taken = self.says.get("dot").is_none_or(|said| said.starts_with(b"2"));
        // A client that was refused all recipients ends what it may not send.
        if is_taken && lines > 1 {
            self.seen.lock().unwrap().taken += 1;
        }
        self.say(stream, "dot", b"250 kept\r\n").await?;
        Ok(())
    }
}
