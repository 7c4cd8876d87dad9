//! What a flood costs a good client, and whether it stays out: 12,000 connections that do nothing or next to nothing,
//! one address that wants too many, a server with hardly any files or little memory left, and guesses at passwords.
//! `make floods`: about five minutes, on loopback, from 250 addresses and more.
//!
//! Under test is the real binary in a process of its own; this process is the flood. A good client brings whole
//! messages, a new connection for each, from addresses that the flood does not use.
//!
//! Counts have to be exact, or the run ends with status 1. Times and sizes are held against goals, which are printed:
//! beside other work on the same machine they say little.
//!
//! Environment: `PARTS` (all: `memory,flood,cap,files,little,auth`), `IDLE` (10000), `SLOW` (2000), `SAMPLES` (600
//! messages of good clients in each measurement), `ROUNDS` (3), `LITTLE_IDLE` (5000, beside mails of 50 MB), `TRIES`
//! (4000 logins), `SERVER` (another binary than the one built with this).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "floods/group.rs"]
mod group;
#[path = "floods/little.rs"]
mod little;
mod support;

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use postrider::server::connection::AUTH_FAILURE_DELAY;
use support::book::{Book, median};
use support::process::{self, Process};
use support::{names, say, setting};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Addresses of one kind of client.
const ADDRESSES: u32 = 250;
/// A good client begins a message so often.
const PACE: Duration = Duration::from_millis(25);
/// No wait of a good client is longer: it gave up.
const PATIENCE: Duration = Duration::from_secs(60);
/// The server has this long to be itself again.
const RECOVERY: Duration = Duration::from_secs(30);
/// What one of 2,000 clients of a server without files waits for.
const HELD: Duration = Duration::from_secs(5);
const FEW_FILES: u64 = 256;
const PER_IP: usize = 50;
const HOST: &str = "mail.home.test";
const QUIET: &str = "quiet";
const BESIDE: &str = "in the flood";
const AFTER: &str = "after it";
const PASSWORD: &str = "correct horse battery staple";

struct Server {
    process: Process,
    mx: SocketAddr,
    submission: SocketAddr,
    folder: tempfile::TempDir,
}

impl Server {
    /// Behind `wrapper`, a command that runs what follows in its own process.
    fn start(dns: SocketAddr, wrapper: &[String], more: &str) -> Server {
        let folder = support::scratch();
        let config = folder.path().join("postrider.toml");
        std::fs::write(&config, text(folder.path(), dns, more)).unwrap();
        let log = folder.path().join("log");
        let binary = std::env::var("SERVER").unwrap_or_else(|_| env!("CARGO_BIN_EXE_postrider").to_owned());
        let words: Vec<String> = wrapper.iter().cloned().chain([binary, "serve".into(), "--config".into()]).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(&config);
        let process = Process::start_with("postrider", command, |command| {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        });
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Server { process, mx: nowhere, submission: nowhere, folder };
        let since = Instant::now();
        while server.mx.port() == 0 || server.submission.port() == 0 {
            let log = server.log();
            assert!(server.process.is_running() && since.elapsed() < PATIENCE, "postrider does not start:\n{log}");
            (server.mx, server.submission) = (listening(&log, "mx"), listening(&log, "submission"));
            std::thread::sleep(Duration::from_millis(2));
        }
        server
    }

    fn id(&self) -> u32 {
        self.process.id()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn memory(&self) -> f64 {
        process::memory_bytes(self.id()) as f64
    }

    fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.id())).map_or(0, Iterator::count)
    }

    /// Until the connections of a flood are closed on its side too.
    async fn forgets(&self, files_before: usize) -> Duration {
        let since = Instant::now();
        while self.open_files() > files_before + 20 && since.elapsed() < RECOVERY {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        since.elapsed()
    }

    fn connector(&self) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        let own = self.folder.path().join("tls/self-signed.crt");
        roots.add(CertificateDer::from_pem_file(own).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    }
}

fn listening(log: &str, name: &str) -> SocketAddr {
    let is_it = |line: &&str| line.contains("listening") && line.contains(&format!("name=\"{name}\""));
    let address = log.lines().find(is_it).and_then(|line| line.split("address=").nth(1)?.split_whitespace().next());
    address.and_then(|address| address.parse().ok()).unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)))
}

fn text(data: &Path, dns: SocketAddr, more: &str) -> String {
    let queue = if more.contains("[queue]") { "" } else { "[queue]\nmin_free = \"100MiB\"\n" };
    let more = more.replace("FOLDER", &data.display().to_string());
    format!(
        "hostname = \"{HOST}\"\ndata_dir = {data:?}\n\
         [listeners.mx]\nrole = \"mx\"\nbind = [\"127.0.0.1:0\"]\ntls = \"opportunistic\"\n\
         [listeners.submission]\nrole = \"submission\"\nbind = [\"127.0.0.1:0\"]\ntls = \"opportunistic\"\n\
         [domains.\"home.test\"]\ncatchall = \"discard\"\n\
         [checks]\nspf = \"off\"\ndkim = \"off\"\ndmarc = \"off\"\narc = \"off\"\nrdns = \"off\"\n\
         {queue}[dns]\nnameservers = [\"{dns}\"]\n{more}"
    )
}

fn main() {
    support::clean_up();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let all = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, all).unwrap();
    let mut bench = Bench {
        runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
        book: Book::new(),
        dns: names::serve(names::Exchangers::Own),
        wrong: Vec::new(),
    };
    bench.book.note("open files, at most", limit.maximum.map_or("any".to_owned(), |files| files.to_string()));
    let parts = std::env::var("PARTS").unwrap_or_else(|_| "memory,flood,cap,files,little,auth".into());
    for part in parts.split(',') {
        say(format!("        part {part}"));
        match part {
            "memory" => bench.memory(),
            "flood" => bench.flood(),
            "cap" => bench.cap(),
            "files" => bench.files(),
            "little" => bench.little(),
            "auth" => bench.auth(),
            other => panic!("PARTS has no {other:?}"),
        }
    }
    for (what, value) in &bench.book.about {
        println!("{what}: {value}");
    }
    for (title, unit) in [("memory of an idle connection", "bytes"), ("good clients", "ms"), ("logins", "us")] {
        bench.book.print(title, title, unit);
    }
    bench.book.print_goals();
    bench.book.write(&support::folder().join("floods.json"));
    for wrong in &bench.wrong {
        println!("WRONG: {wrong}");
    }
    std::process::exit(i32::from(!bench.wrong.is_empty()));
}

struct Bench {
    runtime: tokio::runtime::Runtime,
    book: Book,
    dns: SocketAddr,
    /// Counts that are not as they have to be.
    wrong: Vec<String>,
}

impl Bench {
    fn must(&mut self, what: &str, seen: u64, wanted: u64) {
        self.book.note(what, seen.to_string());
        if seen != wanted {
            self.wrong.push(format!("{what}: {seen} instead of {wanted}"));
        }
    }

    /// What one idle connection takes, after EHLO, in the clear and under TLS.
    fn memory(&mut self) {
        const COUNT: u32 = 2000;
        for (name, tls, goal) in [("plain", false, 20_000.0), ("TLS", true, 50_000.0)] {
            let server = Server::start(self.dns, &[], "");
            let connector = tls.then(|| server.connector());
            let (before, after, open) = self.runtime.block_on(async {
                // What the first connections bring along is not theirs.
                let warm = idle(&server, 3, 100, connector.clone()).await;
                drop(warm);
                tokio::time::sleep(Duration::from_millis(500)).await;
                let before = server.memory();
                let open = idle(&server, 1, COUNT, connector).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
                (before, server.memory(), open)
            });
            let each = (after - before) / f64::from(COUNT);
            drop(open);
            self.book.add("memory of an idle connection", name, "postrider", "bytes", each);
            self.book.at_most(&format!("bytes of an idle connection, {name}"), goal, Some(each));
        }
    }

    /// Good clients in quiet, beside the flood, and after it, in rounds: each flood is held against the quiet before it.
    fn flood(&mut self) {
        let rounds = setting("ROUNDS", 3);
        for round in 1..=rounds {
            say(format!("        flood, round {round} of {rounds}"));
            self.flood_once();
        }
        for (what, which, beside, most) in [
            ("p99 beside the flood / quiet", "p99", BESIDE, 2.0),
            ("median beside the flood / quiet", "median", BESIDE, 2.0),
            ("median after the flood / quiet", "median", AFTER, 1.1),
        ] {
            let ratio = self.book.ratio("good clients", which, "ms", (beside, QUIET));
            self.book.at_most(what, most, ratio);
        }
    }

    fn flood_once(&mut self) {
        let (idle_count, slow_count) = (setting("IDLE", 10_000) as u32, setting("SLOW", 2_000) as u32);
        let (connections, samples) = (idle_count + slow_count + 100, setting("SAMPLES", 600));
        let server = Server::start(self.dns, &[], &format!("[limits]\nconnections = {connections}\n"));
        let mx = server.mx;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(good(mx, 100));
        let quiet = runtime.block_on(good(mx, samples));
        let files = server.open_files();
        let (cpu, since) = (process::cpu_seconds(server.id()), Instant::now());
        let flood = self.runtime.block_on(Flood::start(&server, idle_count, slow_count));
        let taken = since.elapsed();
        let beside = runtime.block_on(good(mx, samples));
        let open = server.open_files().saturating_sub(files);
        let share = (process::cpu_seconds(server.id()) - cpu) / since.elapsed().as_secs_f64();
        let refused = flood.refused.load(Ordering::Relaxed);
        drop(flood);
        let gone = runtime.block_on(server.forgets(files));
        let after = runtime.block_on(good(mx, samples));
        for (when, seen) in [(QUIET, &quiet), (BESIDE, &beside), (AFTER, &after)] {
            say(format!("        {when}: {seen}"));
            self.book.add("good clients", "median", when, "ms", seen.median);
            self.book.add("good clients", "p99", when, "ms", seen.p99);
        }
        self.book.note("flood: connections open", open.to_string());
        self.book.note("flood: seconds until all had come", format!("{:.1}", taken.as_secs_f64()));
        self.book.note("flood: CPU of the server, share of a core", format!("{share:.2}"));
        self.book.note("flood: seconds until all were forgotten", format!("{:.1}", gone.as_secs_f64()));
        self.must("flood: connections refused", refused, 0);
        self.must("flood: good clients refused", quiet.failed + beside.failed + after.failed, 0);
    }

    /// One address gets as many connections as it may have, not one more.
    fn cap(&mut self) {
        let server = Server::start(self.dns, &[], "[limits]\nconnection_rate = \"1000/m\"\n");
        let (greeted, refused) = self.runtime.block_on(async {
            let mut tries = JoinSet::new();
            for _ in 0..PER_IP * 3 {
                let mx = server.mx;
                tries.spawn(async move {
                    let mut stream = connect(mx, client(4, 1)).await.unwrap();
                    let reply = reply(&mut stream).await.unwrap_or_default();
                    (stream, reply)
                });
            }
            let all = tries.join_all().await;
            let count = |code: &str| all.iter().filter(|(_, reply)| reply.starts_with(code)).count() as u64;
            (count("220"), count("421"))
        });
        self.must("one address, 150 connections: greeted", greeted, PER_IP as u64);
        self.must("one address, 150 connections: refused", refused, PER_IP as u64 * 2);
    }

    /// 2,000 clients of a server that may have 256 files open.
    fn files(&mut self) {
        let prlimit = ["prlimit".to_owned(), format!("--nofile={FEW_FILES}:{FEW_FILES}"), "--".to_owned()];
        let server = Server::start(self.dns, &prlimit, "");
        let id = server.id();
        let outcome = self.runtime.block_on(async {
            // A message is on its way when they come.
            let mut running = Talk::open(server.mx, client(2, 1)).await.unwrap();
            running.begin().await.unwrap();
            let mut clients = Vec::new();
            for number in 0..2000 {
                clients.push(connect(server.mx, client(1, number % ADDRESSES)).await);
            }
            let (cpu, since) = (process::cpu_seconds(id), Instant::now());
            tokio::time::sleep(HELD).await;
            let share = (process::cpu_seconds(id) - cpu) / since.elapsed().as_secs_f64();
            let open = server.open_files();
            let finished = running.finish().await.is_ok();
            drop(clients);
            let since = Instant::now();
            let mut recovered = None;
            while recovered.is_none() && since.elapsed() < PATIENCE {
                if message(server.mx, client(2, 2)).await.is_ok() {
                    recovered = Some(since.elapsed());
                }
            }
            (share, open, finished, recovered)
        });
        let (share, open, finished, recovered) = outcome;
        self.book.note("256 files: open beside 2,000 clients", open.to_string());
        self.must("256 files: the message on its way was taken", u64::from(finished), 1);
        self.must(
            "256 files: the store or a delivery had no file",
            server.log().matches("os error 24").count() as u64,
            0,
        );
        self.book.at_most("256 files: CPU beside 2,000 clients, share of a core", 0.2, Some(share));
        let seconds = recovered.map_or(f64::INFINITY, |time| time.as_secs_f64());
        self.book.at_most("256 files: seconds until mail is taken again", 5.0, Some(seconds));
    }

    /// Wrong passwords of an account and of a name that nobody has, in turn: do times tell them apart?
    fn auth(&mut self) {
        let hash = postrider::server::accounts::hash_password(PASSWORD).unwrap();
        let more = format!(
            "[accounts.shop]\npassword_hash = {hash:?}\n\
             [limits]\nauth_failures = \"1000000/m\"\nerrors_per_session = 1000000\nconnections_per_ip = 1000\n"
        );
        let server = Server::start(self.dns, &[], &more);
        let tries = Arc::new(AtomicU64::new(setting("TRIES", 4_000)));
        let times = self.runtime.block_on(async {
            let mut sessions = JoinSet::new();
            // Few enough that hashes do not wait for each other much: the reply to a wrong one waits for half a second.
            for session in 0..32_u64 {
                let (tries, to) = (tries.clone(), server.submission);
                sessions.spawn(async move { guess(to, session, &tries).await.unwrap() });
            }
            sessions.join_all().await.concat()
        });
        let of = |known: bool| -> Vec<f64> {
            times.iter().filter(|(is_known, _)| *is_known == known).map(|(_, micros)| *micros).collect()
        };
        let (known, unknown) = (median(&of(true)), median(&of(false)));
        self.book.note("logins: tries", times.len().to_string());
        self.book.add("logins", "wrong password", "postrider", "us", known);
        self.book.add("logins", "no such account", "postrider", "us", unknown);
        // All of them wait as long before the reply; what could differ is the rest.
        let work = known - AUTH_FAILURE_DELAY.as_secs_f64() * 1e6;
        let most = (work * 0.01).max(50.0).round();
        self.book.at_most("logins: gap of the medians, us", most, Some((known - unknown).abs()));
    }
}

/// One session of guesses: whether the name is known, and microseconds to the reply.
async fn guess(to: SocketAddr, session: u64, tries: &AtomicU64) -> std::io::Result<Vec<(bool, f64)>> {
    let mut talk = Talk::open(to, client(5, session as u32)).await?;
    let mut times = Vec::new();
    let take = |left: u64| left.checked_sub(1);
    while let Ok(left) = tries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
        let is_known = left % 2 == 0;
        let name = if is_known { "shop" } else { "ship" };
        let secret = STANDARD.encode(format!("\0{name}\0wrong {left:06}"));
        let since = Instant::now();
        talk.say(&format!("AUTH PLAIN {secret}"), "535").await?;
        times.push((is_known, since.elapsed().as_secs_f64() * 1e6));
    }
    Ok(times)
}

/// The flood: open connections and who trickles into them. It ends with the value.
struct Flood {
    _idle: Vec<Conversation>,
    _slow: JoinSet<()>,
    refused: Arc<AtomicU64>,
}

enum Conversation {
    Plain(#[allow(dead_code, reason = "held open")] TcpStream),
    Tls(#[allow(dead_code, reason = "held open")] Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Flood {
    async fn start(server: &Server, idle_count: u32, slow_count: u32) -> Flood {
        let refused = Arc::new(AtomicU64::new(0));
        let mut half_open = Vec::new();
        for number in 0..idle_count / 20 {
            let mut talk = Talk::open(server.mx, client(1, number % ADDRESSES)).await.unwrap();
            talk.say("STARTTLS", "220").await.unwrap();
            half_open.push(Conversation::Plain(talk.stream));
        }
        let mut idle = idle(server, 1, idle_count - idle_count / 20, None).await;
        idle.extend(half_open);
        let mut slow = JoinSet::new();
        for number in 0..slow_count {
            let (to, from, refused) = (server.mx, client(1, number % ADDRESSES), refused.clone());
            let mut talk = Talk::open(to, from).await.unwrap();
            if number % 2 == 0 {
                talk.begin().await.unwrap();
            }
            slow.spawn(async move {
                // A byte a second, of a line or of a message that never ends.
                tokio::time::sleep(Duration::from_millis(u64::from(number % 1000))).await;
                while talk.stream.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                refused.fetch_add(1, Ordering::Relaxed);
            });
        }
        Flood { _idle: idle, _slow: slow, refused }
    }
}

/// So many connections that have said EHLO, from all addresses of a network in turn.
async fn idle(server: &Server, network: u8, count: u32, tls: Option<TlsConnector>) -> Vec<Conversation> {
    let mut open = Vec::new();
    for number in 0..count {
        let mut stream = connect(server.mx, client(network, number % ADDRESSES)).await.unwrap();
        reply(&mut stream).await.unwrap();
        say_to(&mut stream, "EHLO idle.test", "250").await.unwrap();
        open.push(match &tls {
            None => Conversation::Plain(stream),
            Some(connector) => {
                say_to(&mut stream, "STARTTLS", "220").await.unwrap();
                let mut stream = connector.connect(ServerName::try_from(HOST).unwrap(), stream).await.unwrap();
                say_to(&mut stream, "EHLO idle.test", "250").await.unwrap();
                Conversation::Tls(Box::new(stream))
            }
        });
    }
    open
}

/// What good clients saw: milliseconds from the connection to the end of a message.
struct Seen {
    median: f64,
    p99: f64,
    failed: u64,
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "median {:.2} ms, p99 {:.2} ms, {} failed", self.median, self.p99, self.failed)
    }
}

async fn good(to: SocketAddr, count: u64) -> Seen {
    let mut clients = JoinSet::new();
    let mut ticks = tokio::time::interval(PACE);
    for number in 0..count {
        ticks.tick().await;
        clients.spawn(async move {
            let since = Instant::now();
            let sent = timeout(PATIENCE, message(to, client(2, number as u32 % ADDRESSES))).await;
            match sent.map_err(std::io::Error::from).flatten() {
                Ok(()) => Some(since.elapsed().as_secs_f64() * 1000.0),
                Err(error) => {
                    say(format!("        a good client has failed: {error}"));
                    None
                }
            }
        });
    }
    let all = clients.join_all().await;
    let mut times: Vec<f64> = all.iter().flatten().copied().collect();
    times.sort_by(f64::total_cmp);
    let at = (times.len() as f64 * 0.99).ceil() as usize;
    let p99 = times.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN);
    Seen { median: median(&times), p99, failed: (all.len() - times.len()) as u64 }
}

async fn message(to: SocketAddr, from: Ipv4Addr) -> std::io::Result<()> {
    let mut talk = Talk::open(to, from).await?;
    talk.begin().await?;
    talk.finish().await
}

struct Talk {
    stream: TcpStream,
    /// No two messages are alike, or the server takes them for a loop.
    number: u64,
}

impl Talk {
    /// Up to the reply to EHLO.
    async fn open(to: SocketAddr, from: Ipv4Addr) -> std::io::Result<Talk> {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let mut talk = Talk { stream: connect(to, from).await?, number };
        expect(&mut talk.stream, "220").await?;
        talk.say("EHLO good.test", "250").await?;
        Ok(talk)
    }

    /// Up to 354.
    async fn begin(&mut self) -> std::io::Result<()> {
        let number = self.number;
        self.say(&format!("MAIL FROM:<me@away{number}.test>"), "250").await?;
        self.say("RCPT TO:<you@home.test>", "250").await?;
        self.say("DATA", "354").await
    }

    async fn finish(&mut self) -> std::io::Result<()> {
        let number = self.number;
        let text =
            format!("From: <me@away{number}.test>\r\nTo: <you@home.test>\r\nSubject: hello {number}\r\n\r\nhello");
        self.say(&format!("{text}\r\n."), "250").await?;
        self.say("QUIT", "221").await
    }

    async fn say(&mut self, line: &str, code: &str) -> std::io::Result<()> {
        say_to(&mut self.stream, line, code).await
    }
}

/// 127.1.0.1 is the first of network 1.
fn client(network: u8, number: u32) -> Ipv4Addr {
    let [_, _, third, fourth] = (number % ADDRESSES + 1).to_be_bytes();
    Ipv4Addr::new(127, network, third, fourth)
}

async fn connect(to: SocketAddr, from: Ipv4Addr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddrV4::new(from, 0).into())?;
    socket.set_nodelay(true)?;
    socket.connect(to).await
}

async fn say_to<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, line: &str, code: &str) -> std::io::Result<()> {
    stream.write_all(format!("{line}\r\n").as_bytes()).await?;
    stream.flush().await?;
    expect(stream, code).await
}

async fn expect<S: AsyncRead + Unpin>(stream: &mut S, code: &str) -> std::io::Result<()> {
    let reply = reply(stream).await?;
    if reply.starts_with(code) { Ok(()) } else { Err(std::io::Error::other(format!("{reply:?} instead of {code}"))) }
}

/// A whole reply (RFC 5321 4.2.1).
async fn reply<S: AsyncRead + Unpin>(stream: &mut S) -> std::io::Result<String> {
    let mut reply = Vec::with_capacity(256);
    loop {
        if stream.read_buf(&mut reply).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8_lossy(&reply);
        let last = text.strip_suffix("\r\n").and_then(|lines| lines.rsplit("\r\n").next());
        if last.is_some_and(|line| line.as_bytes().get(3) != Some(&b'-')) {
            return Ok(text.into_owned());
        }
    }
}
