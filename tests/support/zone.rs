//! A DNS zone inside the test: `Zone` builds it, `serve` answers for it over UDP and TCP on a free
//! loopback port until the returned [`ZoneServer`] is dropped.
//!
//! ```ignore
//! let dns = Zone::new().mx("example.test", 10, "mx.example.test").a("mx.example.test", "127.0.0.1").serve().await;
//! let resolver = Resolver::new(&dns.config()).unwrap();
//! ```
//!
//! A name that was not given is NXDOMAIN; a name that was given for another type, or that lies above
//! a given one, is NOERROR without records. `fail` gives SERVFAIL, `lame` does where a name has no records of the
//! type, and `silent` gives no answer at all.
//! An answer too big for UDP is truncated there, so that the client asks again over TCP.
//!
//! After `signed` the zone is the root and all below it, signed with a key of its own (`ZoneServer::anchors`);
//! what does not exist is denied by an NSEC record of its own name that says "no such type". Names below a cut
//! that `unsigned` makes are delegated without a DS record, and their answers bear no signature.
//! Include it with `#[path = "support/zone.rs"] mod zone;`.

#![allow(dead_code, reason = "each test crate uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::dnssec::crypto::Ed25519SigningKey;
use hickory_proto::dnssec::rdata::{DNSKEY, DNSSECRData, NSEC, RRSIG, SigInput};
use hickory_proto::dnssec::{Algorithm, DnssecSigner, SigningKey, TBS, TrustAnchors};
use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX, NS, PTR, SOA, TLSA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType, SerialNumber};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Seconds that answers and denials may be cached.
const TTL: u32 = 300;
/// CNAMEs in a row that are followed for the client; a name server of today stops somewhere, too.
const CHAIN_MAX: usize = 128;

/// Records by lower-case name without the final dot.
#[derive(Clone, Default)]
pub struct Zone {
    records: BTreeMap<String, Vec<RData>>,
    failing: BTreeSet<String>,
    lame: BTreeSet<String>,
    silent: BTreeSet<String>,
    signer: Option<Arc<DnssecSigner>>,
    unsigned: BTreeSet<String>,
    /// Names whose signatures are wrong.
    forged: BTreeSet<String>,
    /// Names whose answers are odd in one way.
    odd: BTreeMap<String, Odd>,
}

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Odd {
    Refused,
    WrongId,
    WrongQuestion,
    /// Cut off, and no more of it over TCP.
    Truncated,
    /// So many seconds to live; the highest bit makes it negative to some.
    Ttl(u32),
    /// Late by so many milliseconds.
    Late(u64),
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

    /// Octets, in strings as given.
    pub fn txt_strings(self, name: &str, strings: &[Vec<u8>]) -> Zone {
        self.record(name, RData::TXT(TXT::from_bytes(strings.iter().map(Vec::as_slice).collect())))
    }

    /// A PTR record of any name.
    pub fn pointer(self, name: &str, host: &str) -> Zone {
        self.record(name, RData::PTR(PTR(fqdn(host))))
    }

    pub fn ptr(self, address: &str, host: &str) -> Zone {
        let name = Name::from(address.parse::<std::net::IpAddr>().unwrap());
        self.record(&name.to_ascii(), RData::PTR(PTR(fqdn(host))))
    }

    pub fn tlsa(self, name: &str, (usage, selector, matching): (u8, u8, u8), data: &[u8]) -> Zone {
        let data = TLSA::new(usage.into(), selector.into(), matching.into(), data.to_vec());
        self.record(name, RData::TLSA(data))
    }

    /// Signs everything, with a key made for the occasion.
    pub fn signed(mut self) -> Zone {
        let key = Ed25519SigningKey::generate_pkcs8().unwrap();
        let key = Ed25519SigningKey::from_pkcs8(&key).unwrap();
        let public = DNSKEY::from_key(&key.to_public_key().unwrap());
        let lasts = Duration::from_secs(24 * 3600);
        self.signer = Some(Arc::new(DnssecSigner::new(public.clone(), Box::new(key), Name::root(), lasts)));
        let soa = SOA::new(fqdn("ns.test"), fqdn("hostmaster.test"), 1, 3600, 600, 86400, TTL);
        self.record(".", RData::DNSSEC(DNSSECRData::DNSKEY(public))).record(".", RData::SOA(soa))
    }

    /// A delegation to a zone that is not signed.
    pub fn unsigned(mut self, name: &str) -> Zone {
        self.unsigned.insert(key(name));
        self.record(name, RData::NS(NS(fqdn("ns.test"))))
    }

    /// Signatures that are wrong for this name and all below it.
    pub fn forged(mut self, name: &str) -> Zone {
        self.forged.insert(key(name));
        self
    }

    /// SERVFAIL for every type of this name and all names below it.
    pub fn fail(mut self, name: &str) -> Zone {
        self.failing.insert(key(name));
        self
    }

    /// SERVFAIL for the types of which this name has no records.
    pub fn lame(mut self, name: &str) -> Zone {
        self.lame.insert(key(name));
        self
    }

    /// No answer for any type of this name and all names below it.
    pub fn silent(mut self, name: &str) -> Zone {
        self.silent.insert(key(name));
        self
    }

    /// Names that begin like this begin like that.
    pub fn renamed(mut self, from: &str, to: &str) -> Zone {
        let from = key(from) + ".";
        let rename = |name: String| name.strip_prefix(&from).map(|rest| format!("{to}{rest}")).unwrap_or(name);
        self.records = self.records.into_iter().map(|(name, records)| (rename(name), records)).collect();
        self
    }

    /// For every type of this name.
    pub fn odd(mut self, name: &str, how: Odd) -> Zone {
        self.odd.insert(key(name), how);
        self
    }

    fn odd_answer(&self, query: &Message) -> Option<Odd> {
        self.odd.get(&text(query.queries.first()?.name())).copied()
    }

    fn record(mut self, name: &str, data: RData) -> Zone {
        self.records.entry(key(name)).or_default().push(data);
        self
    }

    /// Starts to answer, on the test's own runtime.
    pub async fn serve(self) -> ZoneServer {
        let (udp, tcp) = one_port().await;
        let address = udp.local_addr().unwrap();
        let shared = Arc::new(Shared { zone: Mutex::new(self), queries: AtomicUsize::new(0), kinds: Mutex::default() });
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
        let name = text(question.name());
        if is_below(&name, &self.silent) {
            return None;
        }
        if is_below(&name, &self.failing) {
            response.metadata.response_code = ResponseCode::ServFail;
            return Some(response);
        }
        if let Some(Odd::Refused) = self.odd.get(&name) {
            response.metadata.response_code = ResponseCode::Refused;
            return Some(response);
        }
        let odd = self.odd.get(&name).copied();
        let code = self.collect(name, question.query_type(), &mut response);
        if let Some(Odd::Ttl(seconds)) = odd {
            response.answers.iter_mut().for_each(|record| record.ttl = seconds);
        }
        response.metadata.response_code = code;
        if response.answers.is_empty() {
            let soa = SOA::new(fqdn("ns.test"), fqdn("hostmaster.test"), 1, 3600, 600, 86400, TTL);
            let apex = if self.signer.is_some() { Name::root() } else { fqdn("test") };
            response.add_authority(Record::from_rdata(apex, TTL, RData::SOA(soa)));
        }
        let question = question.clone();
        if let Some(signer) = &self.signer {
            self.sign(signer, &question, &mut response);
        }
        Some(response)
    }

    fn sign(&self, signer: &DnssecSigner, question: &hickory_proto::op::Query, response: &mut Message) {
        let name = text(question.name());
        let at_the_cut = question.query_type() == RecordType::DS && self.unsigned.contains(&name);
        if is_below(&name, &self.unsigned) && !at_the_cut {
            // From the unsigned zone itself.
            if let Some(soa) = response.authorities.first_mut() {
                soa.name =
                    fqdn(self.unsigned.iter().find(|cut| is_below(&name, &BTreeSet::from([(*cut).clone()]))).unwrap());
            }
            return;
        }
        if response.answers.is_empty() {
            response.metadata.response_code = ResponseCode::NoError;
            let here = self.records.get(&name).into_iter().flatten().map(RData::record_type);
            let nsec = NSEC::new_cover_self(fqdn(&name).prepend_label(b"\0".as_slice()).unwrap(), here);
            let nsec = RData::DNSSEC(DNSSECRData::NSEC(nsec));
            response.add_authority(Record::from_rdata(fqdn(&name), TTL, nsec));
        }
        let forged = is_below(&name, &self.forged);
        let signatures: Vec<Record> = signatures(signer, &response.answers, forged);
        response.add_answers(signatures);
        let signatures: Vec<Record> = signatures_of(signer, &response.authorities);
        response.add_authorities(signatures);
    }

    /// The records of a name and type, along CNAMEs.
    fn collect(&self, mut name: String, kind: RecordType, response: &mut Message) -> ResponseCode {
        for _ in 0..CHAIN_MAX {
            let no_records: Vec<RData> = Vec::new();
            let records = self.records.get(&name).or(self.lame.contains(&name).then_some(&no_records));
            let Some(records) = records else {
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
                    next = Some(text(&target.0));
                }
            }
            match next {
                Some(target) => name = target,
                None if self.lame.contains(&name) && response.answers.is_empty() => return ResponseCode::ServFail,
                None => return ResponseCode::NoError,
            }
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
    /// Questions by their type.
    kinds: Mutex<BTreeMap<RecordType, usize>>,
}

impl ZoneServer {
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// The key that the zone is signed with.
    pub fn anchors(&self) -> TrustAnchors {
        let mut anchors = TrustAnchors::empty();
        let zone = self.shared.zone.lock().unwrap();
        anchors.insert(zone.signer.as_ref().unwrap().dnskey().public_key());
        anchors
    }

    /// A `[dns]` section that asks this zone.
    pub fn config(&self) -> postrider::config::Dns {
        postrider::config::Dns { nameservers: vec![self.address], timeout: Duration::from_secs(5) }
    }

    /// Queries seen so far.
    pub fn queries(&self) -> usize {
        self.shared.queries.load(Ordering::SeqCst)
    }

    /// Questions for addresses seen so far.
    pub fn address_queries(&self) -> usize {
        let kinds = self.shared.kinds.lock().unwrap();
        [RecordType::A, RecordType::AAAA].iter().filter_map(|kind| kinds.get(kind)).sum()
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
    fn answer(&self, packet: &[u8]) -> Option<(Message, usize, Option<Odd>)> {
        let query = Message::from_vec(packet).ok().filter(|m| m.metadata.message_type == MessageType::Query)?;
        self.queries.fetch_add(1, Ordering::SeqCst);
        if let Some(question) = query.queries.first() {
            *self.kinds.lock().unwrap().entry(question.query_type()).or_default() += 1;
        }
        let udp_bytes_max = usize::from(query.max_payload());
        let zone = self.zone.lock().unwrap();
        let (mut answer, odd) = (zone.answer(&query)?, zone.odd_answer(&query));
        match odd {
            Some(Odd::WrongId) => answer.metadata.id = answer.metadata.id.wrapping_add(1),
            Some(Odd::WrongQuestion) => {
                answer.queries.iter_mut().for_each(|question| {
                    *question = hickory_proto::op::Query::query(fqdn("other.test"), question.query_type())
                });
            }
            _ => {}
        }
        Some((answer, udp_bytes_max, odd))
    }
}

async fn serve_udp(socket: UdpSocket, shared: Arc<Shared>) {
    let mut packet = [0u8; 4096];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut packet).await else { continue };
        let Some((response, bytes_max, odd)) = shared.answer(&packet[..length]) else { continue };
        if let Some(Odd::Late(millis)) = odd {
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
        let mut bytes = response.to_vec().unwrap();
        if bytes.len() > bytes_max || odd == Some(Odd::Truncated) {
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
        let Some((response, _, odd)) = shared.answer(&packet) else { continue };
        if odd == Some(Odd::Truncated) {
            return;
        }
        let bytes = response.to_vec().unwrap();
        let mut framed = u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
        framed.extend_from_slice(&bytes);
        if stream.write_all(&framed).await.is_err() {
            return;
        }
    }
}

fn signatures_of(signer: &DnssecSigner, records: &[Record]) -> Vec<Record> {
    signatures(signer, records, false)
}

/// One for each name and type.
fn signatures(signer: &DnssecSigner, records: &[Record], forged: bool) -> Vec<Record> {
    let mut sets: Vec<Vec<Record>> = Vec::new();
    for record in records {
        let same = |set: &&mut Vec<Record>| set[0].name == record.name && set[0].record_type() == record.record_type();
        match sets.iter_mut().find(same) {
            Some(set) => set.push(record.clone()),
            None => sets.push(vec![record.clone()]),
        }
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as u32;
    let sign = |set: Vec<Record>| {
        let input = SigInput {
            type_covered: set[0].record_type(),
            algorithm: Algorithm::ED25519,
            num_labels: set[0].name.num_labels(),
            original_ttl: TTL,
            sig_expiration: SerialNumber::from(now + 24 * 3600),
            sig_inception: SerialNumber::from(now - 3600),
            key_tag: signer.calculate_key_tag().unwrap(),
            signer_name: Name::root(),
        };
        let tbs = TBS::from_input(&set[0].name, DNSClass::IN, &input, set.iter()).unwrap();
        let mut signature = signer.sign(&tbs).unwrap();
        signature[0] ^= u8::from(forged);
        let signature = RData::DNSSEC(DNSSECRData::RRSIG(RRSIG::from_sig(input, signature)));
        Record::from_rdata(set[0].name.clone(), TTL, signature)
    };
    sets.into_iter().map(sign).collect()
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

/// Labels may hold what no host name does.
fn fqdn(name: &str) -> Name {
    Name::from_labels(name.split('.').filter(|label| !label.is_empty()).map(str::as_bytes)).unwrap()
}

fn key(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn text(name: &Name) -> String {
    let labels: Vec<_> = name.iter().map(String::from_utf8_lossy).collect();
    labels.join(".").to_ascii_lowercase()
}

fn is_below(name: &str, set: &BTreeSet<String>) -> bool {
    set.iter().any(|top| name == top || name.ends_with(&format!(".{top}")))
}
