//! The world outside: name servers and mail servers, which do what the seed says, in memory.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hickory_proto::rr::rdata::{A, MX};
use hickory_proto::rr::{Name, RData, RecordType};
use postrider::delivery::smtp::{Connecting, Io, Network};
use postrider::dns::{DnsError, Zone};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::sleep;

use super::ledger::Ledger;
use super::random::Random;

/// Octets in flight one way.
const PIPE: usize = 2048;
/// Longer than anybody waits.
const FOREVER: Duration = Duration::from_secs(24 * 3600);
/// Of one conversation.
const LINES_MAX: usize = 1000;

/// The last ones share their servers.
pub const DOMAINS: [&str; 6] = ["a.test", "b.test", "c.test", "d.test", "twin.test", "other.test"];
/// Those who are told of failures.
pub const HOME: &str = "home.test";
/// Takes nothing, ever.
pub const CLOSED: &str = "closed.test";
/// Nobody is there, ever.
pub const DEAD: &str = "dead.test";
/// Takes no mail (RFC 7505).
pub const NULL: &str = "null.test";

/// How a server is today.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Temper {
    Well,
    /// At each stage so many of a thousand go wrong.
    Shaky(usize),
    Down,
    Closed,
}

/// How its name servers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    Well,
    Silent,
    Gone,
}

#[derive(Debug)]
pub struct World {
    pub seed: u64,
    pub ledger: Mutex<Ledger>,
    weather: Mutex<Weather>,
}

#[derive(Debug)]
struct Weather {
    temper: BTreeMap<String, Temper>,
    names: BTreeMap<String, Names>,
    connections: u64,
    /// How often home may still fail, so that notices are not given up.
    patience: usize,
}

/// The servers of a domain, by their names.
fn servers(domain: &str) -> Vec<(u16, String)> {
    match domain {
        "twin.test" | "other.test" => vec![(10, "mx.shared.test".into()), (20, "mx2.shared.test".into())],
        "a.test" => vec![(10, "mx1.a.test".into()), (10, "mx2.a.test".into())],
        other => vec![(10, format!("mx.{other}"))],
    }
}

/// All servers, by the end of their address.
const HOSTS: [&str; 9] = [
    "mx1.a.test",
    "mx2.a.test",
    "mx.b.test",
    "mx.c.test",
    "mx.d.test",
    "mx.shared.test",
    "mx2.shared.test",
    "mx.home.test",
    "mx.closed.test",
];

impl World {
    pub fn new(seed: u64) -> World {
        let weather = Weather {
            temper: BTreeMap::from([("mx.closed.test".to_owned(), Temper::Closed)]),
            names: BTreeMap::new(),
            connections: 0,
            patience: 4,
        };
        World { seed, ledger: Mutex::default(), weather: Mutex::new(weather) }
    }

    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    /// Something changes out there.
    pub fn change(&self, random: &mut Random) {
        let mut weather = self.weather.lock().unwrap();
        let line = if random.chance(250) {
            let domain = *random.pick(&DOMAINS);
            let names = *random.pick(&[Names::Well, Names::Silent, Names::Silent, Names::Gone]);
            weather.names.insert(domain.to_owned(), names);
            format!("the names of {domain}: {names:?}")
        } else {
            let host = HOSTS[random.below(HOSTS.len() - 1)];
            let tempers = [Temper::Well, Temper::Shaky(60), Temper::Shaky(200), Temper::Down, Temper::Closed];
            let mut temper = *random.pick(&tempers);
            if host == "mx.home.test" && matches!(temper, Temper::Down | Temper::Closed) {
                temper = Temper::Shaky(200);
            }
            weather.temper.insert(host.to_owned(), temper);
            format!("{host}: {temper:?}")
        };
        drop(weather);
        self.ledger().note(line);
    }

    /// All that can be well is well.
    pub fn clear_up(&self) {
        let mut weather = self.weather.lock().unwrap();
        weather.names.clear();
        weather.temper.retain(|host, _| host == "mx.closed.test");
    }

    fn temper(&self, host: &str) -> Temper {
        self.weather.lock().unwrap().temper.get(host).copied().unwrap_or(Temper::Well)
    }

    /// Whether something goes wrong now.
    fn fails(&self, host: &str, random: &mut Random) -> bool {
        let Temper::Shaky(per_mille) = self.temper(host) else { return false };
        if !random.chance(per_mille) {
            return false;
        }
        if host == "mx.home.test" {
            let mut weather = self.weather.lock().unwrap();
            weather.patience = match weather.patience.checked_sub(1) {
                Some(less) => less,
                None => return false,
            };
        }
        true
    }
}

impl Zone for World {
    fn records(&self, name: &Name, kind: RecordType) -> Result<Option<Vec<RData>>, DnsError> {
        let name = name.to_ascii().trim_end_matches('.').to_lowercase();
        let names = self.weather.lock().unwrap().names.get(&name).copied().unwrap_or(Names::Well);
        match names {
            Names::Well => {}
            Names::Silent => return Err(DnsError::Temporary(format!("nobody answers for {name}"))),
            Names::Gone => return Err(DnsError::NoSuchDomain),
        }
        let mx = |(preference, host): (u16, String)| {
            RData::MX(MX::new(preference, Name::from_ascii(format!("{host}.")).unwrap()))
        };
        Ok(match kind {
            RecordType::MX if name == NULL => Some(vec![RData::MX(MX::new(0, Name::root()))]),
            RecordType::MX => Some(servers(&name).into_iter().map(mx).collect()),
            RecordType::A => {
                let at = HOSTS.iter().position(|host| *host == name).unwrap_or(99);
                Some(vec![RData::A(A(Ipv4Addr::new(10, 0, 0, at as u8)))])
            }
            _ => None,
        })
    }
}

/// What the transport connects to: a world, in this life of the server.
#[derive(Clone, Debug)]
pub struct Outside(pub Arc<World>);

impl Network for Outside {
    fn connect(&self, to: SocketAddr) -> Connecting<'_> {
        Box::pin(self.dial(to.ip()))
    }
}

impl Outside {
    async fn dial(&self, ip: IpAddr) -> io::Result<Box<dyn Io>> {
        let IpAddr::V4(v4) = ip else { return Err(io::ErrorKind::HostUnreachable.into()) };
        let Some(host) = HOSTS.get(usize::from(v4.octets()[3])).copied() else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let number = {
            let mut weather = self.0.weather.lock().unwrap();
            weather.connections += 1;
            weather.connections
        };
        let mut random = Random::new(self.0.seed, &[u64::from(v4.octets()[3]), number]);
        sleep(Duration::from_millis(random.below(200) as u64)).await;
        if self.0.temper(host) == Temper::Down || self.0.fails(host, &mut random) {
            self.0.ledger().note(format!("#{number} {host} cannot be connected to"));
            if random.chance(300) {
                sleep(FOREVER).await;
            }
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (near, far) = duplex(PIPE);
        let server = Server { world: self.0.clone(), host, number, random, stream: far, read: Vec::new() };
        tokio::spawn(server.run());
        Ok(Box::new(near))
    }
}

/// The conversation is over.
struct Hangup;

struct Server {
    world: Arc<World>,
    host: &'static str,
    number: u64,
    random: Random,
    stream: DuplexStream,
    read: Vec<u8>,
}

#[derive(Default)]
struct Transaction {
    from: String,
    to: Vec<String>,
    /// Some were put off: our server asks for them elsewhere.
    has_more: bool,
    content: Vec<u8>,
}

/// What becomes of a message when its last octet is here.
enum End {
    Take,
    TakeAndHangUp,
    Defer,
    Refuse,
    HangUp,
}

impl Server {
    async fn run(mut self) {
        // A conversation that is cut off is as good as one that ends.
        let _ = self.converse().await;
    }

    fn note(&self, what: &str) {
        let line = format!("#{} {} {what}", self.number, self.host);
        self.world.ledger().note(line);
    }

    fn is_closed(&self) -> bool {
        self.world.temper(self.host) == Temper::Closed
    }

    /// What goes wrong at this stage: a reply in place of the usual one, or none any more.
    async fn trouble(&mut self, is_usual: &str) -> Result<String, Hangup> {
        if !self.world.fails(self.host, &mut self.random) {
            return Ok(is_usual.to_owned());
        }
        match self.random.below(if self.host == "mx.home.test" { 3 } else { 4 }) {
            0 => {
                self.note("hangs up");
                Err(Hangup)
            }
            1 => {
                self.note("falls silent");
                sleep(FOREVER).await;
                Err(Hangup)
            }
            2 => Ok("451 4.3.0 not now".to_owned()),
            _ => Ok("550 5.7.1 not you".to_owned()),
        }
    }

    async fn say(&mut self, line: &str) -> Result<(), Hangup> {
        if self.random.chance(300) {
            let wait = [1, 50, 1000, 20_000][self.random.below(4)];
            sleep(Duration::from_millis(wait)).await;
        }
        let line = format!("{line}\r\n");
        // Cut anywhere.
        let (first, rest) = line.as_bytes().split_at(self.random.below(line.len()));
        for part in [first, rest] {
            self.stream.write_all(part).await.map_err(|_| Hangup)?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn more(&mut self) -> Result<(), Hangup> {
        let mut buffer = [0; 512];
        let most = 1 + self.random.below(buffer.len());
        match self.stream.read(&mut buffer[..most]).await {
            Ok(count @ 1..) => {
                self.read.extend_from_slice(&buffer[..count]);
                Ok(())
            }
            _ => Err(Hangup),
        }
    }

    async fn line(&mut self) -> Result<String, Hangup> {
        loop {
            if let Some(end) = self.read.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.read.drain(..end + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.more().await?;
        }
    }

    async fn converse(&mut self) -> Result<(), Hangup> {
        let banner = if self.is_closed() && self.random.chance(200) { "554 5.3.2 closed" } else { "220 here" };
        let banner = self.trouble(banner).await?;
        self.say(&banner).await?;
        let mut transaction = Transaction::default();
        for _ in 0..LINES_MAX {
            let line = self.line().await?;
            let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
            let reply = match verb.as_str() {
                "EHLO" => self.trouble(self.offers()).await?,
                "HELO" | "NOOP" => "250 yes".to_owned(),
                "RSET" => {
                    transaction = Transaction::default();
                    "250 yes".to_owned()
                }
                "MAIL" => {
                    transaction = Transaction { from: path(&line), ..Transaction::default() };
                    self.trouble("250 yes").await?
                }
                "RCPT" => self.recipient(&mut transaction, &line).await?,
                "DATA" => {
                    let go = if transaction.to.is_empty() { "554 5.5.1 for whom?" } else { "354 go" };
                    let go = self.trouble(go).await?;
                    self.say(&go).await?;
                    if go.starts_with("354") {
                        self.data(&mut transaction).await?;
                        self.end(&mut transaction).await?;
                    }
                    continue;
                }
                "BDAT" => {
                    self.chunk(&mut transaction, &line).await?;
                    continue;
                }
                "QUIT" => {
                    self.say("221 bye").await?;
                    return Err(Hangup);
                }
                _ => "500 5.5.2 what?".to_owned(),
            };
            self.say(&reply).await?;
        }
        Err(Hangup)
    }

    /// Each host is a server of another make.
    fn offers(&self) -> &'static str {
        match self.host {
            "mx.b.test" => "250 here",
            "mx.c.test" | "mx.shared.test" => "250-here\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 CHUNKING",
            "mx1.a.test" => "250-here\r\n250-PIPELINING\r\n250-SIZE 100000\r\n250 DSN",
            _ => "250-here\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES",
        }
    }

    async fn recipient(&mut self, transaction: &mut Transaction, line: &str) -> Result<String, Hangup> {
        let reply = if self.is_closed() { "550 5.1.1 nobody" } else { "250 yes" };
        let reply = self.trouble(reply).await?;
        match reply.as_bytes().first() {
            Some(b'2') => transaction.to.push(path(line)),
            Some(b'4') => transaction.has_more = true,
            _ => {}
        }
        Ok(reply)
    }

    async fn data(&mut self, transaction: &mut Transaction) -> Result<(), Hangup> {
        let is_cut = self.world.fails(self.host, &mut self.random) && self.random.chance(300);
        loop {
            let line = self.line().await?;
            if is_cut {
                self.note("hangs up in the middle");
                return Err(Hangup);
            }
            if line == "." {
                return Ok(());
            }
            let line = line.strip_prefix('.').unwrap_or(&line);
            transaction.content.extend_from_slice(format!("{line}\r\n").as_bytes());
        }
    }

    async fn chunk(&mut self, transaction: &mut Transaction, line: &str) -> Result<(), Hangup> {
        let size = line.split(' ').nth(1).and_then(|size| size.parse().ok()).unwrap_or(0);
        while self.read.len() < size {
            self.more().await?;
        }
        transaction.content.extend(self.read.drain(..size));
        if transaction.to.is_empty() {
            return self.say("503 5.5.1 for whom?").await;
        }
        if line.to_ascii_uppercase().ends_with("LAST") {
            return self.end(transaction).await;
        }
        let reply = self.trouble("250 yes").await?;
        self.say(&reply).await
    }

    fn decide(&mut self) -> End {
        if self.is_closed() {
            return End::Refuse;
        }
        if !self.world.fails(self.host, &mut self.random) {
            return End::Take;
        }
        match self.random.below(if self.host == "mx.home.test" { 4 } else { 5 }) {
            0 | 1 => End::TakeAndHangUp,
            2 => End::Defer,
            3 => End::HangUp,
            _ => End::Refuse,
        }
    }

    /// The whole message is here.
    async fn end(&mut self, transaction: &mut Transaction) -> Result<(), Hangup> {
        let Transaction { from, to, has_more, content } = std::mem::take(transaction);
        let end = self.decide();
        if let End::Take | End::TakeAndHangUp = end {
            self.note(&format!("takes a message from <{from}> for {to:?}"));
            let keys = self.world.ledger().arrived(&from, &to, &String::from_utf8_lossy(&content));
            if let End::TakeAndHangUp = end {
                self.note("hangs up after the dot");
                self.world.ledger().unanswered(&keys);
                if self.random.chance(300) {
                    sleep(FOREVER).await;
                }
                return Err(Hangup);
            }
            if self.say("250 2.0.0 taken").await.is_err() {
                self.note("cannot say so");
                self.world.ledger().unanswered(&keys);
                return Err(Hangup);
            }
            self.world.ledger().answered(&keys, !has_more);
            return Ok(());
        }
        match end {
            End::Defer => self.say("451 4.3.0 not this").await,
            End::Refuse => self.say("554 5.6.0 never this").await,
            _ => {
                self.note("hangs up before it has the message");
                Err(Hangup)
            }
        }
    }
}

/// Between the brackets.
fn path(line: &str) -> String {
    line.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("", |(path, _)| path).to_owned()
}
