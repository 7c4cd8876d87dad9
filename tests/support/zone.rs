//! A DNS zone inside the test: `Zone` builds it, `serve` answers for it over UDP and TCP on a free
//! loopback port until the returned [`ZoneServer`] is dropped.
//!
//! ```ignore
//! let dns = Zone::new().mx("example.test", 10, "mx.example.test").a("mx.example.test", "127.0.0.1").serve().await;
//! let resolver = Resolver::new(&dns.config()).unwrap();
//! ```
//!
//! A name that was not given is NXDOMAIN; a name that was given for another type, or that lies above
//! a given one, is NOERROR without records. `fail` gives SERVFAIL and `silent` no answer at all.
//! An answer too big for UDP is truncated there, so that the client asks again over TCP.
//! Include it with `#[path = "support/zone.rs"] mod zone;`.

#![allow(dead_code, reason = "each test crate uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX, PTR, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Seconds that answers and denials may be cached.
const TTL: u32 = 300;

/// Records by lower-case name without the final dot.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    records: BTreeMap<String, Vec<RData>>,
    failing: BTreeSet<String>,
    silent: BTreeSet<String>,
}

impl Zone {
    pub fn new() -> Zone {
        Zone::default()
    }

    pub fn mx(self, name: &str, preference: u16, host: &str) -> Zone {
        self.record(name, RData::MX(MX::new(preference, fqdn(host))))
    }

    /// RFC 7505: the domain takes no mail.
    pub fn null_mx(self, name: &str) -> Zone {
        self.record(name, RData::MX(MX::new(0, Name::root())))
    }

    pub fn a(self, name: &str, address: &str) -> Zone {
        self.record(name, RData::A(A(address.parse().unwrap())))
    }

    pub fn aaaa(self, name: &str, address: &str) -> Zone {
        self.record(name, RData::AAAA(AAAA(address.parse().unwrap())))
    }

    pub fn cname(self, name: &str, target: &str) -> Zone {
        self.record(name, RData::CNAME(CNAME(fqdn(target))))
    }

    /// Split at 255 octets, as a zone file would have it.
    pub fn txt(self, name: &str, text: &str) -> Zone {
        self.record(name, RData::TXT(TXT::from_bytes(text.as_bytes().chunks(255).collect())))
    }

    pub fn ptr(self, address: &str, host: &str) -> Zone {
        let name = Name::from(address.parse::<std::net::IpAddr>().unwrap());
        self.record(&name.to_ascii(), RData::PTR(PTR(fqdn(host))))
    }

    /// SERVFAIL for every type of this name and all names below it.
    pub fn fail(mut self, name: &str) -> Zone {
        self.failing.insert(key(name));
        self
    }

    /// No answer for any type of this name and all names below it.
    pub fn silent(mut self, name: &str) -> Zone {
        self.silent.insert(key(name));
        self
    }

    fn record(mut self, name: &str, data: RData) -> Zone {
        self.records.entry(key(name)).or_default().push(data);
        self
    }

    /// Starts to answer, on the test's own runtime.
    pub async fn serve(self) -> ZoneServer {
        let (udp, tcp) = one_port().await;
        let address = udp.local_addr().unwrap();
        let shared = Arc::new(Shared { zone: Mutex::new(self), queries: AtomicUsize::new(0) });
        let tasks =
            vec![tokio::spawn(serve_udp(udp, Arc::clone(&shared))), tokio::spawn(serve_tcp(tcp, Arc::clone(&shared)))];
        ZoneServer { address, shared, tasks }
    }

    fn answer(&self, query: &Message) -> Option<Message> {
        let mut response = Message::response(query.metadata.id, OpCode::Query);
        response.metadata.recursion_desired = query.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        let Some(question) = query.queries.first() else {
            response.metadata.response_code = ResponseCode::FormErr;
            return Some(response);
        };
        response.add_query(question.clone());
        let name = key(&question.name().to_ascii());
        if is_below(&name, &self.silent) {
            return None;
        }
        if is_below(&name, &self.failing) {
            response.metadata.response_code = ResponseCode::ServFail;
            return Some(response);
        }
        let code = self.collect(name, question.query_type(), &mut response);
        response.metadata.response_code = code;
        if response.answers.is_empty() {
            let soa = SOA::new(fqdn("ns.test"), fqdn("hostmaster.test"), 1, 3600, 600, 86400, TTL);
            response.add_authority(Record::from_rdata(fqdn("test"), TTL, RData::SOA(soa)));
        }
        Some(response)
    }

    /// The records of a name and type, along CNAMEs.
    fn collect(&self, mut name: String, kind: RecordType, response: &mut Message) -> ResponseCode {
        for _ in 0..8 {
            let Some(records) = self.records.get(&name) else {
                let suffix = format!(".{name}");
                let is_above = self.records.keys().any(|other| other.ends_with(&suffix));
                return if is_above { ResponseCode::NoError } else { ResponseCode::NXDomain };
            };
            let mut next = None;
            for data in records {
                if data.record_type() == kind {
                    response.add_answer(Record::from_rdata(fqdn(&name), TTL, data.clone()));
                } else if let RData::CNAME(target) = data {
                    response.add_answer(Record::from_rdata(fqdn(&name), TTL, data.clone()));
                    next = Some(key(&target.0.to_ascii()));
                }
            }
            let Some(target) = next else { return ResponseCode::NoError };
            name = target;
        }
        ResponseCode::ServFail
    }
}

/// A zone being served. Dropping it stops the answers.
pub struct ZoneServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

struct Shared {
    zone: Mutex<Zone>,
    queries: AtomicUsize,
}

impl ZoneServer {
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// A `[dns]` section that asks this zone.
    pub fn config(&self) -> postrider::config::Dns {
        postrider::config::Dns { nameservers: vec![self.address], timeout: Duration::from_secs(5) }
    }

    /// Queries seen so far.
    pub fn queries(&self) -> usize {
        self.shared.queries.load(Ordering::SeqCst)
    }

    /// Other records from now on. A resolver may still have the old ones in its cache.
    pub fn replace(&self, zone: Zone) {
        *self.shared.zone.lock().unwrap() = zone;
    }
}

impl Drop for ZoneServer {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Shared {
    fn answer(&self, packet: &[u8]) -> Option<(Message, usize)> {
        let query = Message::from_vec(packet).ok().filter(|m| m.metadata.message_type == MessageType::Query)?;
        self.queries.fetch_add(1, Ordering::SeqCst);
        let udp_bytes_max = usize::from(query.max_payload());
        Some((self.zone.lock().unwrap().answer(&query)?, udp_bytes_max))
    }
}

async fn serve_udp(socket: UdpSocket, shared: Arc<Shared>) {
    let mut packet = [0u8; 4096];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut packet).await else { continue };
        let Some((response, bytes_max)) = shared.answer(&packet[..length]) else { continue };
        let mut bytes = response.to_vec().unwrap();
        if bytes.len() > bytes_max {
            let mut short = response.truncate();
            short.answers.clear();
            bytes = short.to_vec().unwrap();
        }
        // A client that has gone is not the zone's trouble.
        let _ = socket.send_to(&bytes, client).await;
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(serve_connection(stream, Arc::clone(&shared)));
    }
}

async fn serve_connection(mut stream: TcpStream, shared: Arc<Shared>) {
    while let Ok(length) = stream.read_u16().await {
        let mut packet = vec![0u8; usize::from(length)];
        if stream.read_exact(&mut packet).await.is_err() {
            return;
        }
        let Some((response, _)) = shared.answer(&packet) else { continue };
        let bytes = response.to_vec().unwrap();
        let mut framed = u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
        framed.extend_from_slice(&bytes);
        if stream.write_all(&framed).await.is_err() {
            return;
        }
    }
}

/// UDP and TCP on the same free port; another try if somebody else has its TCP side.
async fn one_port() -> (UdpSocket, TcpListener) {
    for _ in 0..64 {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
    unreachable!("no port is free for both UDP and TCP");
}

fn fqdn(name: &str) -> Name {
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    name
}

fn key(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn is_below(name: &str, set: &BTreeSet<String>) -> bool {
    set.iter().any(|top| name == top || name.ends_with(&format!(".{top}")))
}
