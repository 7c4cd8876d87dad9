//! Our own load generator: so many sessions that send one message after another, each command
//! waiting for its reply, as smtp-source does. Bodies are random letters, which do not compress, and
//! the time from the final dot to its reply is kept.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Different bodies that take turns.
const BODIES: usize = 16;
const LINE_CHARS: usize = 76;

/// The parent of domains whose servers take mail.
pub const FAR: &str = "far.test";
/// The parent of domains whose servers are at another address (`names`).
pub const SLOW: &str = "slow.test";

/// When a run is over.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    Messages(u64),
    Time(Duration),
}

#[derive(Clone, Debug)]
pub struct Load {
    pub to: SocketAddr,
    pub sessions: usize,
    /// Bytes of a message, header and all.
    pub size: usize,
    /// Many messages a connection, else one.
    pub reuse: bool,
    pub until: Until,
    /// Messages a second over all sessions; none: as fast as it goes.
    pub pace: Option<u64>,
    /// Recipients are spread over so many domains.
    pub domains: u64,
    /// Those are below this one.
    pub parent: &'static str,
}

/// What a run did.
#[derive(Debug, Default)]
pub struct Done {
    pub messages: u64,
    pub seconds: f64,
    /// From the final dot to its reply, in milliseconds, sorted.
    pub latencies: Vec<f64>,
}

impl Done {
    pub fn per_second(&self) -> f64 {
        self.messages as f64 / self.seconds
    }

    /// The latency below which this share of the replies lay.
    pub fn quantile(&self, share: f64) -> f64 {
        let at = (self.latencies.len() as f64 * share).ceil() as usize;
        self.latencies.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }
}

/// Hands out the numbers of messages until the run is over.
struct Tickets {
    next: AtomicU64,
    until: Until,
    pace: Option<u64>,
    started: Instant,
}

impl Tickets {
    /// The next message, when its time has come.
    async fn take(&self) -> Option<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some(pace) = self.pace {
            let at = self.started + Duration::from_secs_f64(number as f64 / pace as f64);
            tokio::time::sleep_until(at.into()).await;
        }
        let goes_on = match self.until {
            Until::Messages(most) => number < most,
            Until::Time(most) => self.started.elapsed() < most,
        };
        goes_on.then_some(number)
    }
}

/// Runs the load to its end. Any reply but the expected one is a panic: such a figure says nothing.
pub async fn run(load: &Load) -> Done {
    let bodies: Arc<Vec<Vec<u8>>> = Arc::new((0..BODIES).map(|number| content(load.size, number as u64 + 1)).collect());
    let started = Instant::now();
    let tickets = Arc::new(Tickets { next: AtomicU64::new(0), until: load.until, pace: load.pace, started });
    let mut tasks = Vec::with_capacity(load.sessions);
    for _ in 0..load.sessions {
        let (load, bodies, tickets) = (load.clone(), bodies.clone(), tickets.clone());
        tasks.push(tokio::spawn(async move {
            session(&load, &bodies, &tickets).await.unwrap_or_else(|error| panic!("the load broke off: {error}"))
        }));
    }
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.unwrap());
    }
    latencies.sort_by(f64::total_cmp);
    Done { messages: latencies.len() as u64, seconds: started.elapsed().as_secs_f64(), latencies }
}

async fn session(load: &Load, bodies: &[Vec<u8>], tickets: &Tickets) -> std::io::Result<Vec<f64>> {
    let mut latencies = Vec::new();
    let mut open = if load.reuse { Some(Client::connect(load.to).await?) } else { None };
    while let Some(number) = tickets.take().await {
        let mut client = match open.take() {
            Some(client) => client,
            None => Client::connect(load.to).await?,
        };
        let recipient = format!("RCPT TO:<you{number}@d{}.{}>\r\n", number % load.domains, load.parent);
        client.say(b"MAIL FROM:<me@away.test>\r\n", b"250").await?;
        client.say(recipient.as_bytes(), b"250").await?;
        client.say(b"DATA\r\n", b"354").await?;
        let body = &bodies[number as usize % bodies.len()];
        let sent = client.say(body, b"250").await?;
        latencies.push(sent.as_secs_f64() * 1000.0);
        if load.reuse {
            open = Some(client);
        } else {
            client.say(b"QUIT\r\n", b"221").await?;
        }
    }
    if let Some(mut client) = open {
        client.say(b"QUIT\r\n", b"221").await?;
    }
    Ok(latencies)
}

/// One connection.
pub struct Client {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Client {
    /// Through greeting and EHLO.
    pub async fn connect(to: SocketAddr) -> std::io::Result<Client> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let mut client = Client { stream, input: Vec::with_capacity(1024) };
        client.hear(b"220").await?;
        client.say(b"EHLO load.test\r\n", b"250").await?;
        Ok(client)
    }

    /// Sends, waits for the reply, tells how long that took from the last byte sent.
    pub async fn say(&mut self, text: &[u8], expected: &[u8]) -> std::io::Result<Duration> {
        self.stream.write_all(text).await?;
        let sent = Instant::now();
        self.hear(expected).await?;
        Ok(sent.elapsed())
    }

    async fn hear(&mut self, expected: &[u8]) -> std::io::Result<()> {
        self.input.clear();
        while !is_whole(&self.input) {
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(std::io::Error::other("the server has closed the connection"));
            }
        }
        if self.input.starts_with(expected) {
            return Ok(());
        }
        Err(std::io::Error::other(format!("the server said {}", String::from_utf8_lossy(&self.input))))
    }
}

/// The last line is there, and it is one that ends a reply (RFC 5321 4.2.1).
fn is_whole(input: &[u8]) -> bool {
    let Some(lines) = input.strip_suffix(b"\n") else { return false };
    let last = lines.rsplit(|octet| *octet == b'\n').next().unwrap_or(lines);
    last.get(3) != Some(&b'-')
}

/// A message of `size` bytes with its final dot.
pub fn content(size: usize, seed: u64) -> Vec<u8> {
    let mut content = message(size, seed);
    content.extend_from_slice(b".\r\n");
    content
}

/// A message of `size` bytes: a plain header, then lines of random letters and digits.
pub fn message(size: usize, seed: u64) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut content = b"From: <me@away.test>\r\nTo: <you@far.test>\r\nSubject: load\r\n".to_vec();
    content.extend_from_slice(format!("Message-ID: <load-{seed}@away.test>\r\n").as_bytes());
    content.extend_from_slice(b"Date: Sat, 21 Nov 2026 12:00:00 +0000\r\n\r\n");
    // SplitMix64, so that a seed always gives the same letters.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut column = 0;
    while content.len() + 2 < size {
        if column == LINE_CHARS {
            content.extend_from_slice(b"\r\n");
            column = 0;
            continue;
        }
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        content.push(ALPHABET[(z >> 58) as usize]);
        column += 1;
    }
    content.extend_from_slice(b"\r\n");
    content
}
