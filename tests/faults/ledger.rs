//! The outside ledger: what was sent under which number, with its SHA-256 and the answer to it, held
//! against what arrived at the far end. It knows nothing of the server but these two sides.
//!
//! | no loss   | what was answered 250 has arrived                                         |
//! | no ghost  | what was answered 4xx or 5xx has not                                      |
//! | copies    | only across a kill, and not more of them than attempts were under way     |
//! | content   | byte for byte, from our mark to the end                                   |
//!
//! A message that got no answer may have arrived or not. Its number is never sent again.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::far::Far;
use super::report::Random;

pub type Digest = [u8; 32];

/// The first field of each message, above which only trace fields may be written.
const MARK: &[u8] = b"X-Number: ";
/// Without anything new at the far end for so long, nothing more will come.
const STANDSTILL: Duration = Duration::from_secs(40);
/// A server that does not answer for so long hangs.
const REPLY_TIME: Duration = Duration::from_secs(120);

/// Who is told of what was given up: leads to the far end, which counts the notices.
pub const SENDER: &str = "me@back.test";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Taken,
    Refused(String),
    /// The connection ended before the answer.
    Cut,
}

#[derive(Debug)]
struct Sent {
    digest: Digest,
    /// None while the message is on its way.
    answer: Option<Answer>,
}

#[derive(Debug, Default)]
pub struct Ledger {
    sent: Mutex<BTreeMap<u64, Sent>>,
    next: AtomicU64,
    taken: AtomicUsize,
    /// What is answered now comes from a machine that is dead already.
    is_dark: AtomicBool,
    /// The network may be silent for long; a client gives up then.
    gives_up: AtomicBool,
}

fn sha256(bytes: &[u8]) -> Digest {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref().try_into().unwrap()
}

/// The number of a message, and the digest from the mark on.
pub fn marked(content: &[u8]) -> (Option<u64>, Digest) {
    // A notice quotes the message that it tells of; its own header section has no mark.
    let header = memchr::memmem::find(content, b"\r\n\r\n").unwrap_or(content.len());
    let Some(at) = memchr::memmem::find(&content[..header], MARK) else { return (None, sha256(content)) };
    let digits: String =
        content[at + MARK.len()..].iter().take_while(|byte| byte.is_ascii_digit()).map(|byte| *byte as char).collect();
    (digits.parse().ok(), sha256(&content[at..]))
}

/// What marks a message in a file that holds it as it is.
pub fn mark(number: u64) -> Vec<u8> {
    [MARK, number.to_string().as_bytes(), b"\r\n"].concat()
}

/// Lines that no two messages share and that do not compress well.
pub fn content(number: u64, bytes: usize) -> Vec<u8> {
    let mut content = mark(number);
    let header = format!(
        "From: <me@home.test>\r\nTo: <you@far.test>\r\nDate: Thu, 01 Oct 2026 10:00:00 +0000\r\n\
         Message-ID: <{number}@home.test>\r\nSubject: number {number}\r\n\r\n"
    );
    content.extend_from_slice(header.as_bytes());
    let mut random = Random((number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    while content.len() < bytes {
        content.extend_from_slice(
            format!("{:016x}{:016x}{:016x}\r\n", random.next(), random.next(), random.next()).as_bytes(),
        );
    }
    content
}

impl Ledger {
    pub fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends a new message to these recipients and notes the answer.
    pub async fn send(&self, talk: &mut Talk, to: &[String], bytes: usize) -> (u64, Answer) {
        let number = self.next_number();
        let content = content(number, bytes);
        self.sent.lock().unwrap().insert(number, Sent { digest: sha256(&content), answer: None });
        let mut answer = self.patiently(talk.submit(to, &content)).await.unwrap_or(Answer::Cut);
        if self.is_dark.load(Ordering::Acquire) {
            answer = Answer::Cut;
        }
        self.note(number, answer.clone());
        (number, answer)
    }

    /// As [`Ledger::send`], on a connection of its own.
    pub async fn send_to(&self, door: SocketAddr, to: &[&str], bytes: usize) -> (u64, Answer) {
        let to: Vec<String> = to.iter().map(|address| (*address).to_owned()).collect();
        match Talk::connect(door).await {
            Ok(mut talk) => self.send(&mut talk, &to, bytes).await,
            Err(_) => (self.next_number(), Answer::Cut),
        }
    }

    /// A loss of power ends the server too. Here it lives on for a moment with a dead disk, and what it
    /// still answers nobody would hear: that counts as not answered. It must, because the kernel lies
    /// in that moment: a sync that is under way when an ext4 is shut down may return as if it were done
    /// (seen with ten lines of Python, in one of ten cuts).
    pub fn lights_out(&self, is_dark: bool) {
        self.is_dark.store(is_dark, Ordering::Release);
    }

    /// No answer for long is no fault of the server: the client ends the connection, and has had no answer.
    pub fn give_up_on_silence(&self) {
        self.gives_up.store(true, Ordering::Release);
    }

    /// None if it was given up.
    pub async fn patiently<T>(&self, doing: impl Future<Output = T>) -> Option<T> {
        if !self.gives_up.load(Ordering::Acquire) {
            return Some(doing.await);
        }
        tokio::time::timeout(REPLY_TIME / 2, doing).await.ok()
    }

    /// For messages that go in by another door: `answer` as its user sees it.
    pub fn note_other(&self, number: u64, content: &[u8], answer: Answer) {
        self.sent.lock().unwrap().insert(number, Sent { digest: sha256(content), answer: None });
        self.note(number, answer);
    }

    pub fn note(&self, number: u64, answer: Answer) {
        if let Some(sent) = self.sent.lock().unwrap().get_mut(&number) {
            let was_taken = sent.answer == Some(Answer::Taken);
            match (was_taken, answer == Answer::Taken) {
                (false, true) => drop(self.taken.fetch_add(1, Ordering::AcqRel)),
                (true, false) => drop(self.taken.fetch_sub(1, Ordering::AcqRel)),
                _ => {}
            }
            sent.answer = Some(answer);
        }
    }

    pub fn numbers(&self, wanted: impl Fn(&Answer) -> bool) -> Vec<u64> {
        let sent = self.sent.lock().unwrap();
        sent.iter().filter(|(_, sent)| sent.answer.as_ref().is_some_and(&wanted)).map(|(number, _)| *number).collect()
    }

    pub fn taken(&self) -> Vec<u64> {
        self.numbers(|answer| *answer == Answer::Taken)
    }

    pub fn taken_count(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }

    /// How often each refusal was heard, by its code and status.
    pub fn refusals(&self) -> BTreeMap<String, usize> {
        let mut refusals = BTreeMap::new();
        for sent in self.sent.lock().unwrap().values() {
            if let Some(Answer::Refused(reply)) = &sent.answer {
                let code: String = reply.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
                *refusals.entry(code).or_default() += 1;
            }
        }
        refusals
    }

    /// Waits until all that was answered 250 has arrived, or until nothing moves any more. Gives what
    /// is missing then.
    pub async fn arrived(&self, far: &Far) -> Vec<u64> {
        let taken = self.taken();
        let (mut seen, mut since) = (far.count(), Instant::now());
        loop {
            let arrived = far.numbers();
            let missing: Vec<u64> = taken.iter().copied().filter(|number| !arrived.contains(number)).collect();
            if missing.is_empty() || since.elapsed() > STANDSTILL {
                return missing;
            }
            if far.count() != seen {
                (seen, since) = (far.count(), Instant::now());
            }
            tokio::time::sleep(Duration::from_millis(20).max(since.elapsed() / 10)).await;
        }
    }

    /// Both sides held against each other.
    pub fn judge(&self, far: &Far) -> Verdict {
        let sent = self.sent.lock().unwrap();
        let mut verdict = Verdict::default();
        let mut lives: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for arrival in far.arrivals() {
            let Some(number) = arrival.number else { continue };
            match sent.get(&number) {
                Some(sent) if sent.digest != arrival.digest => verdict.altered.push(number),
                Some(_) => {}
                None => verdict.ghosts.push(number),
            }
            lives.entry(number).or_default().push(arrival.life);
        }
        for (number, sent) in sent.iter() {
            let times = lives.get(number).map_or(0, Vec::len);
            match &sent.answer {
                Some(Answer::Taken) => {
                    verdict.taken += 1;
                    if times == 0 {
                        verdict.lost.push(*number);
                    }
                }
                Some(Answer::Refused(_)) => {
                    verdict.refused += 1;
                    if times > 0 {
                        verdict.ghosts.push(*number);
                    }
                }
                Some(Answer::Cut) | None => {
                    verdict.unanswered += 1;
                    verdict.unanswered_arrived += usize::from(times > 0);
                }
            }
        }
        for lives in lives.values() {
            for pair in lives.windows(2) {
                if pair[0] == pair[1] {
                    verdict.copies_within_a_life += 1;
                }
                *verdict.copies.entry(pair[0].clone()).or_default() += 1;
            }
        }
        verdict
    }
}

#[derive(Clone, Debug, Default)]
pub struct Verdict {
    pub taken: usize,
    pub refused: usize,
    pub unanswered: usize,
    pub unanswered_arrived: usize,
    pub lost: Vec<u64>,
    pub ghosts: Vec<u64>,
    pub altered: Vec<u64>,
    /// Second deliveries, by the life of the server that made the first one.
    pub copies: BTreeMap<String, usize>,
    pub copies_within_a_life: usize,
}

impl Verdict {
    pub fn copies_in_all(&self) -> usize {
        self.copies.values().sum()
    }

    pub fn copies_at_most(&self) -> usize {
        self.copies.values().copied().max().unwrap_or_default()
    }

    pub fn tell(&self, report: &mut super::report::Report) {
        report.add("acknowledged", self.taken);
        report.add("refused", self.refused);
        report.add("unanswered", self.unanswered);
        report.add("lost", self.lost.len());
        report.add("ghosts", self.ghosts.len());
        report.add("altered", self.altered.len());
        report.add("copies", self.copies_in_all());
    }

    /// No loss, no ghost, nothing altered, no copy without a kill.
    pub fn check(&self) {
        assert!(self.lost.is_empty(), "lost: {:?}", self.lost);
        assert!(self.ghosts.is_empty(), "refused and yet there: {:?}", self.ghosts);
        assert!(self.altered.is_empty(), "not as they were sent: {:?}", self.altered);
        assert_eq!(self.copies_within_a_life, 0, "delivered twice without a kill in between");
    }
}

/// A connection of a client that pipelines and tells each answer from a broken connection.
#[derive(Debug)]
pub struct Talk {
    pub sender: String,
    stream: BufReader<TcpStream>,
}

impl Talk {
    pub async fn connect(door: SocketAddr) -> std::io::Result<Talk> {
        let stream = TcpStream::connect(door).await?;
        stream.set_nodelay(true)?;
        let mut talk = Talk { sender: SENDER.to_owned(), stream: BufReader::new(stream) };
        talk.reply().await?;
        talk.write(b"EHLO client.test\r\n").await?;
        talk.reply().await?;
        Ok(talk)
    }

    pub async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes).await
    }

    pub async fn reply(&mut self) -> std::io::Result<String> {
        let mut reply = String::new();
        loop {
            let start = reply.len();
            let read = tokio::time::timeout(REPLY_TIME, self.stream.read_line(&mut reply)).await;
            // A line without its end is one that was cut.
            if read.expect("the server does not answer")? == 0 || !reply.ends_with('\n') {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if reply.as_bytes().get(start + 3) != Some(&b'-') {
                return Ok(reply);
            }
        }
    }

    /// MAIL, RCPT and DATA up to 354; or the refusal.
    pub async fn open(&mut self, to: &[String]) -> std::io::Result<Result<(), String>> {
        let mut group = format!("MAIL FROM:<{}>\r\n", self.sender);
        for recipient in to {
            group.push_str(&format!("RCPT TO:<{recipient}>\r\n"));
        }
        group.push_str("DATA\r\n");
        self.write(group.as_bytes()).await?;
        let mut refusal = None;
        for step in 0..to.len() + 2 {
            let reply = self.reply().await?;
            let wanted = if step == to.len() + 1 { "354" } else { "250" };
            if !reply.starts_with(wanted) {
                refusal.get_or_insert(reply);
            }
        }
        Ok(refusal.map_or(Ok(()), Err))
    }

    /// `content` has no lines that begin with a dot.
    async fn submit(&mut self, to: &[String], content: &[u8]) -> Answer {
        match self.open(to).await {
            Err(_) => return Answer::Cut,
            Ok(Err(refusal)) => return Answer::Refused(refusal),
            Ok(Ok(())) => {}
        }
        let sent = self.write(&[content, b".\r\n"].concat()).await;
        match self.reply().await {
            Ok(reply) if reply.starts_with("250") => Answer::Taken,
            Ok(reply) => Answer::Refused(reply),
            Err(_) => {
                drop(sent);
                Answer::Cut
            }
        }
    }
}
