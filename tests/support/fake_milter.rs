//! A milter that does as it is told, over any stream, and keeps what it heard.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use postrider::checks::milter::wire::{Options, action, protocol};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

/// A command: its byte and its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    pub byte: u8,
    pub data: Vec<u8>,
    /// How many of this kind came before it.
    pub before: usize,
}

impl Heard {
    /// The texts in its data.
    pub fn texts(&self) -> Vec<String> {
        let data = self.data.strip_suffix(b"\0").unwrap_or(&self.data);
        data.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned()).collect()
    }
}

/// What it does about one.
#[derive(Clone, Debug)]
pub enum Act {
    /// These bytes, one packet or many or none.
    Say(Vec<u8>),
    SayAndClose(Vec<u8>),
    /// These bytes, each after so many seconds.
    SayLater(Vec<(u64, Vec<u8>)>),
    /// Nothing more, and the connection stays.
    Hang,
}

pub type Script = Arc<dyn Fn(&Heard) -> Option<Act> + Send + Sync>;

/// What it wants of the protocol, and what it does where that is not what any milter would do.
#[derive(Clone)]
pub struct FakeMilter {
    pub options: Options,
    script: Script,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl FakeMilter {
    pub fn new(script: impl Fn(&Heard) -> Option<Act> + Send + Sync + 'static) -> FakeMilter {
        let options = Options { protocol: 0, ..Options::OFFERED };
        FakeMilter { options, script: Arc::new(script), heard: Arc::default() }
    }

    /// Goes on whatever comes.
    pub fn mild() -> FakeMilter {
        FakeMilter::new(|_| None)
    }

    /// Says this at one command, the first of its kind.
    pub fn at(command: u8, packets: impl Into<Vec<u8>>) -> FakeMilter {
        let packets = packets.into();
        FakeMilter::new(move |heard| (heard.byte == command && heard.before == 0).then(|| Act::Say(packets.clone())))
    }

    pub fn wants(mut self, bits: u32) -> FakeMilter {
        self.options.protocol = bits;
        self
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    /// The bytes of the commands, without macros.
    pub fn commands(&self) -> String {
        self.heard().iter().filter(|heard| heard.byte != b'D').map(|heard| char::from(heard.byte)).collect()
    }

    /// The fields it heard, as `name:value`.
    pub fn fields(&self) -> Vec<String> {
        self.heard().iter().filter(|heard| heard.byte == b'L').map(|heard| heard.texts().join(":")).collect()
    }

    pub fn body(&self) -> Vec<u8> {
        self.heard().into_iter().filter(|heard| heard.byte == b'B').flat_map(|heard| heard.data).collect()
    }

    /// Of all commands.
    pub fn macros(&self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for heard in self.heard().into_iter().filter(|heard| heard.byte == b'D') {
            let texts = Heard { data: heard.data[1..].to_vec(), ..heard }.texts();
            all.extend(texts.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())));
        }
        all
    }

    pub async fn listen(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let milter = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let milter = milter.clone();
                tokio::spawn(async move { milter.serve(stream).await });
            }
        });
        address
    }

    pub fn listen_at(&self, path: &Path) {
        let listener = UnixListener::bind(path).unwrap();
        let milter = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let milter = milter.clone();
                tokio::spawn(async move { milter.serve(stream).await });
            }
        });
    }

    /// Until the other side goes, or it does itself.
    pub async fn serve(self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut counts = [0; 256];
        while let Ok(len) = stream.read_u32().await {
            let mut data = vec![0; len as usize];
            stream.read_exact(&mut data).await.unwrap();
            let byte = data.remove(0);
            let heard = Heard { byte, data, before: counts[usize::from(byte)] };
            counts[usize::from(byte)] += 1;
            self.heard.lock().unwrap().push(heard.clone());
            let act = (self.script)(&heard).unwrap_or_else(|| Act::Say(self.usual(byte)));
            let (pieces, then_close) = match act {
                Act::Say(bytes) => (vec![(0, bytes)], false),
                Act::SayAndClose(bytes) => (vec![(0, bytes)], true),
                Act::SayLater(pieces) => (pieces, false),
                Act::Hang => std::future::pending().await,
            };
            for (seconds, bytes) in pieces {
                if seconds > 0 {
                    tokio::time::sleep(std::time::Duration::from_secs(seconds)).await;
                }
                // The other side may have had enough.
                let _ = stream.write_all(&bytes).await;
            }
            if then_close {
                return;
            }
        }
    }

    fn usual(&self, byte: u8) -> Vec<u8> {
        use protocol::*;
        let no_reply = match byte {
            b'O' => {
                let Options { version, actions, protocol } = self.options;
                return packet(b'O', &[version, actions, protocol].map(u32::to_be_bytes).concat());
            }
            b'D' | b'Q' => return Vec::new(),
            b'C' => NO_REPLY_CONNECT,
            b'H' => NO_REPLY_HELO,
            b'M' => NO_REPLY_MAIL,
            b'R' => NO_REPLY_RCPT,
            b'T' => NO_REPLY_DATA,
            b'L' => NO_REPLY_HEADER,
            b'N' => NO_REPLY_END_OF_HEADER,
            b'B' => NO_REPLY_BODY,
            _ => 0,
        };
        if self.options.wants(no_reply) { Vec::new() } else { packet(b'c', b"") }
    }
}

/// All that may be asked of us.
pub const ALL_ACTIONS: u32 = 0x1FF | action::OFFERED;

pub fn packet(byte: u8, data: &[u8]) -> Vec<u8> {
    [&(data.len() as u32 + 1).to_be_bytes(), &[byte][..], data].concat()
}

pub fn add(name: &str, value: &str) -> Vec<u8> {
    packet(b'h', format!("{name}\0{value}\0").as_bytes())
}

pub fn insert(index: u32, name: &str, value: &str) -> Vec<u8> {
    packet(b'i', &[&index.to_be_bytes(), format!("{name}\0{value}\0").as_bytes()].concat())
}

pub fn change(index: u32, name: &str, value: &str) -> Vec<u8> {
    packet(b'm', &[&index.to_be_bytes(), format!("{name}\0{value}\0").as_bytes()].concat())
}

pub fn quarantine(reason: &str) -> Vec<u8> {
    packet(b'q', format!("{reason}\0").as_bytes())
}

pub fn reply(text: &str) -> Vec<u8> {
    packet(b'y', format!("{text}\0").as_bytes())
}

pub fn go_on() -> Vec<u8> {
    packet(b'c', b"")
}
