//! The far end of all domains: takes each message and notes it, or does what its gate says. A gate
//! belongs to a recipient domain and may be changed while connections are open, so that a test stops
//! the server's attempt at an exact point and then kills it there.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::ledger::{Digest, marked};

/// Only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of a slow receiver.
const SLOW: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    Take,
    /// 250, with a while before the answer to RCPT. Not behind the content: whoever takes a message and then waits
    /// with the word gets it twice from each sender that dies in between, and no sender can help it.
    Slow,
    /// 450 to RCPT.
    Later,
    /// 550 to RCPT.
    Never,
    /// Reads the content and says nothing, until [`Far::answer`] or [`Far::cut`].
    Stop,
}

/// A message that was answered 250.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Its number in the ledger; none for a notice that we wrote ourselves.
    pub number: Option<u64>,
    /// What the server called itself in EHLO: each of its lives has a name of its own.
    pub life: String,
    pub mail_from: String,
    pub recipients: Vec<String>,
    /// Of everything from the ledger's mark on.
    pub digest: Digest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Wait,
    Answer,
    Cut,
}

#[derive(Clone)]
pub struct Far {
    pub address: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    gates: Mutex<HashMap<String, Gate>>,
    arrivals: Mutex<Vec<Arrival>>,
    /// Recipients that were answered 450.
    put_off: AtomicUsize,
    /// Recipients that were answered 550.
    turned_away: AtomicUsize,
    changed: watch::Sender<usize>,
    stopped: watch::Sender<usize>,
    order: watch::Sender<Order>,
}

impl Far {
    pub async fn start() -> Far {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let inner = Inner {
            gates: Mutex::default(),
            arrivals: Mutex::default(),
            put_off: AtomicUsize::new(0),
            turned_away: AtomicUsize::new(0),
            changed: watch::Sender::new(0),
            stopped: watch::Sender::new(0),
            order: watch::Sender::new(Order::Wait),
        };
        let far = Far { address: listener.local_addr().unwrap(), inner: Arc::new(inner) };
        far.serve(listener);
        far
    }

    /// The same far end at another address too, with the same port: servers that are others to who sends there.
    pub async fn also_at(&self, address: &str) {
        self.serve(TcpListener::bind((address, self.address.port())).await.unwrap());
    }

    fn serve(&self, listener: TcpListener) {
        let serving = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let far = serving.clone();
                // A server that is killed in the middle is what the tests are about.
                tokio::spawn(async move { drop(far.session(stream).await) });
            }
        });
    }

    pub fn gate(&self, domain: &str, gate: Gate) {
        if gate == Gate::Stop {
            self.inner.order.send_replace(Order::Wait);
        }
        self.inner.gates.lock().unwrap().insert(domain.to_owned(), gate);
    }

    pub fn arrivals(&self) -> Vec<Arrival> {
        self.inner.arrivals.lock().unwrap().clone()
    }

    pub fn turned_away(&self) -> usize {
        self.inner.turned_away.load(Ordering::Relaxed)
    }

    pub fn put_off(&self) -> usize {
        self.inner.put_off.load(Ordering::Relaxed)
    }

    pub fn count(&self) -> usize {
        self.inner.arrivals.lock().unwrap().len()
    }

    /// The messages that have arrived.
    pub fn numbers(&self) -> HashSet<u64> {
        self.inner.arrivals.lock().unwrap().iter().filter_map(|arrival| arrival.number).collect()
    }

    /// How often this message has arrived.
    pub fn times(&self, number: u64) -> usize {
        self.inner.arrivals.lock().unwrap().iter().filter(|arrival| arrival.number == Some(number)).count()
    }

    pub fn notices(&self) -> usize {
        self.inner.arrivals.lock().unwrap().iter().filter(|arrival| arrival.number.is_none()).count()
    }

    pub async fn wait(&self, what: &str, enough: impl Fn(&Far) -> bool) {
        let mut changed = self.inner.changed.subscribe();
        let reached = changed.wait_for(|_| enough(self));
        tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("waited in vain: {what}")).unwrap();
    }

    /// Until so many messages are stopped at their end since the start.
    pub async fn wait_stopped(&self, count: usize) {
        let mut stopped = self.inner.stopped.subscribe();
        let reached = stopped.wait_for(|seen| *seen >= count);
        tokio::time::timeout(PATIENCE, reached).await.expect("no attempt came so far").unwrap();
    }

    /// Takes what is stopped: 250.
    pub fn answer(&self) {
        self.inner.order.send_replace(Order::Answer);
    }

    /// Closes the connections of what is stopped, and forgets it.
    pub fn cut(&self) {
        self.inner.order.send_replace(Order::Cut);
    }

    fn gate_of(&self, recipient: &str) -> Gate {
        let domain = recipient.rsplit('@').next().unwrap_or_default();
        self.inner.gates.lock().unwrap().get(domain).copied().unwrap_or(Gate::Take)
    }

    /// One connection, as every other.
    pub async fn session(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut stream = BufReader::with_capacity(64 * 1024, stream);
        stream.get_mut().write_all(b"220 far.test ESMTP\r\n").await?;
        let (mut life, mut mail_from, mut recipients) = (String::new(), String::new(), Vec::<String>::new());
        let mut line = Vec::new();
        loop {
            line.clear();
            // Half a line before the end of a connection that was cut is no command: an answer to it (500) would be
            // taken for the answer to the whole, and the message be given up.
            if stream.read_until(b'\n', &mut line).await? == 0 || !line.ends_with(b"\n") {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            let verb = text.get(..4).unwrap_or_default().to_ascii_uppercase();
            let reply: &[u8] = match verb.as_str() {
                "EHLO" => {
                    life = text.split_whitespace().nth(1).unwrap_or_default().to_owned();
                    b"250-far.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 SIZE 0\r\n"
                }
                "MAIL" => {
                    mail_from = path(&text);
                    recipients.clear();
                    b"250 ok\r\n"
                }
                "RCPT" => match self.gate_of(&path(&text)) {
                    Gate::Slow => {
                        tokio::time::sleep(SLOW).await;
                        recipients.push(path(&text));
                        b"250 ok\r\n"
                    }
                    Gate::Later => {
                        self.inner.put_off.fetch_add(1, Ordering::Relaxed);
                        b"450 4.2.0 not now\r\n"
                    }
                    Gate::Never => {
                        self.inner.turned_away.fetch_add(1, Ordering::Relaxed);
                        b"550 5.1.1 nobody here\r\n"
                    }
                    Gate::Take | Gate::Stop => {
                        recipients.push(path(&text));
                        b"250 ok\r\n"
                    }
                },
                "DATA" if recipients.is_empty() => b"554 5.5.1 nobody to take it\r\n",
                "DATA" => {
                    stream.get_mut().write_all(b"354 go on\r\n").await?;
                    let content = read_data(&mut stream).await?;
                    if !self.may_take(&recipients).await {
                        return Ok(());
                    }
                    self.note(&life, &mail_from, std::mem::take(&mut recipients), &content);
                    b"250 taken\r\n"
                }
                "RSET" | "NOOP" => b"250 ok\r\n",
                "QUIT" => {
                    stream.get_mut().write_all(b"221 bye\r\n").await?;
                    return Ok(());
                }
                _ => b"500 what?\r\n",
            };
            stream.get_mut().write_all(reply).await?;
        }
    }

    async fn may_take(&self, recipients: &[String]) -> bool {
        if !recipients.iter().any(|recipient| self.gate_of(recipient) == Gate::Stop) {
            return true;
        }
        let mut order = self.inner.order.subscribe();
        self.inner.stopped.send_modify(|count| *count += 1);
        let order = order.wait_for(|order| *order != Order::Wait).await;
        order.is_ok_and(|order| *order == Order::Answer)
    }

    fn note(&self, life: &str, mail_from: &str, recipients: Vec<String>, content: &[u8]) {
        let (number, digest) = marked(content);
        let arrival = Arrival { number, life: life.to_owned(), mail_from: mail_from.to_owned(), recipients, digest };
        self.inner.arrivals.lock().unwrap().push(arrival);
        self.inner.changed.send_modify(|count| *count += 1);
    }
}

fn path(text: &str) -> String {
    let inner = text.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    inner.map(|(path, _)| path.to_owned()).unwrap_or_default()
}

/// Up to the final dot, stuffing undone. Quickly: until it is read the sender cannot have its answer, and a kill in
/// that time makes a copy.
async fn read_data(stream: &mut BufReader<TcpStream>) -> std::io::Result<Vec<u8>> {
    const END: &[u8] = b"\r\n.\r\n";
    // So that an end right at the beginning is one, too.
    let mut content = b"\r\n".to_vec();
    let end = loop {
        let from = content.len().saturating_sub(END.len());
        let piece = stream.fill_buf().await?;
        if piece.is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let (before, length) = (content.len(), piece.len());
        content.extend_from_slice(piece);
        if let Some(at) = memchr::memmem::find(&content[from..], END) {
            stream.consume(from + at + END.len() - before);
            break from + at + 2;
        }
        stream.consume(length);
    };
    let (mut plain, mut at) = (Vec::with_capacity(end), 2);
    for dot in memchr::memmem::find_iter(&content[..end], b"\r\n.") {
        plain.extend_from_slice(&content[at..(dot + 2).max(at)]);
        at = dot + 3;
    }
    plain.extend_from_slice(&content[at.min(end)..end]);
    Ok(plain)
}
