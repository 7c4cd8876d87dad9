//! The way out of here: from which addresses mail leaves, what they are called, and whether port 25 is open. And whether
//! the server's own name leads here.
//!
//! Port 25 is tried at mail exchangers of large providers, which always answer: a TCP connection, their greeting and
//! QUIT, no more. DNS names them, so in a network for tests they are whatever its zone says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::records::{Record, reverse_name};
use super::{Finding, Level, Topic, World};
use crate::config::{Role, WayOut};
use crate::delivery::smtp::refused;
use crate::dns::{DnsError, MxAnswer};
use crate::message::Domain;

/// Whose mail exchangers are connected to. One of them is enough.
const FAR_DOMAINS: [&str; 3] = ["gmail.com", "outlook.com", "yahoo.com"];
/// Hosts of each, and addresses of each of those, that are tried.
const TRIED_MAX: usize = 2;
/// For a connection; a firewall that drops packets says nothing.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For the greeting behind it.
const GREETING_TIMEOUT: Duration = Duration::from_secs(15);
/// Octets of a greeting that are read.
const GREETING_BYTES_MAX: u64 = 1024;
/// Characters of it that are shown.
const SHOWN_CHARS_MAX: usize = 150;
/// Nobody's (RFC 5737, RFC 3849): the system tells by which address it would go there. No packet is sent.
const FAR_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const FAR_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// Where mail leaves from, as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sources {
    pub addresses: Vec<IpAddr>,
    how: How,
    /// Of this machine, where they are not those that others see.
    local: Vec<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Configured,
    Route,
    /// Those of the name in EHLO: this machine's own are behind a NAT, or not known.
    Dns,
}

/// How a try of port 25 ended.
enum Tried {
    Greeted { host: Domain, address: SocketAddr, millis: u128, code: String, text: String },
    Failed { address: SocketAddr, why: String },
}

impl World {
    fn sends_directly(&self) -> bool {
        self.config.delivery.default == WayOut::Direct
    }

    /// A problem only where mail goes that way.
    fn if_direct(&self, level: Level) -> Level {
        if self.sends_directly() { level } else { Level::Note }
    }

    /// Can others reach it?
    fn is_reachable(&self, ip: IpAddr) -> bool {
        refused(ip, self.config.delivery.allow_private_addresses).is_none()
    }

    pub(super) async fn sources(&self) -> &Sources {
        self.sources.get_or_init(|| async { self.find_sources().await }).await
    }

    async fn find_sources(&self) -> Sources {
        let delivery = &self.config.delivery;
        if !delivery.source_addresses.is_empty() {
            return Sources { addresses: delivery.source_addresses.clone(), how: How::Configured, local: Vec::new() };
        }
        let local: Vec<IpAddr> = [FAR_V4, FAR_V6].into_iter().filter_map(route).collect();
        let public: Vec<IpAddr> = local.iter().copied().filter(|ip| refused(*ip, false).is_none()).collect();
        // Behind a NAT for IPv4 there may be IPv6 without one.
        let is_behind_nat = local.iter().any(|ip| ip.is_ipv4() && refused(*ip, false).is_some());
        if !public.is_empty() && !is_behind_nat {
            return Sources { addresses: public, how: How::Route, local: Vec::new() };
        }
        let mut addresses = self.resolver.addresses(&delivery.helo_name).await.unwrap_or_default();
        addresses.retain(|ip| self.is_reachable(*ip));
        for ip in public {
            if !addresses.contains(&ip) {
                addresses.push(ip);
            }
        }
        Sources { addresses, how: How::Dns, local }
    }

    /// Where we send from, and what these addresses are called (RFC 1912 2.1).
    pub(super) async fn names(&self) -> Vec<Finding> {
        let helo = &self.config.delivery.helo_name;
        let sources = self.sources().await;
        let list: Vec<String> = sources.addresses.iter().map(ToString::to_string).collect();
        let how = match sources.how {
            How::Configured => "delivery.source_addresses".to_owned(),
            How::Route => "the system's choice".to_owned(),
            How::Dns if sources.local.is_empty() => {
                format!("the addresses of {helo}; this machine's own are not known")
            }
            How::Dns => {
                let local: Vec<String> = sources.local.iter().map(ToString::to_string).collect();
                format!("the addresses of {helo}; this machine's own are behind a NAT ({})", local.join(", "))
            }
        };
        if sources.addresses.is_empty() {
            let finding = Finding::new(
                Topic::Source,
                helo.as_str(),
                self.if_direct(Level::Problem),
                format!("not known: {helo} has no address in DNS that others reach"),
            )
            .remedy(format!("publish its address: {helo}. IN A …, or set delivery.source_addresses"))
            .why("Receivers look up the name that this server greets with.");
            return vec![finding];
        }
        let mut all = vec![Finding::ok(Topic::Source, helo.as_str(), format!("{} ({how})", list.join(", ")))];
        for ip in &sources.addresses {
            all.push(self.name_of(*ip).await);
        }
        all
    }

    /// The name of an address has to lead back to it, and should be the one in EHLO.
    async fn name_of(&self, ip: IpAddr) -> Finding {
        let helo = &self.config.delivery.helo_name;
        let of = ip.to_string();
        let problem = self.if_direct(Level::Problem);
        let wanted = || {
            Record::new(
                reverse_name(ip),
                "PTR",
                format!("{helo}."),
                "set by whoever gave you the address: the provider's panel, most often",
            )
        };
        let names = match self.resolver.ptr(ip).await {
            Ok(names) => names,
            Err(error) => return Finding::unknown(Topic::Ptr, of, &error),
        };
        let why = "Many servers refuse mail from an address whose name does not lead back to it.";
        if names.is_empty() {
            return Finding::new(Topic::Ptr, of, problem, "has no name").publish(wanted()).why(why);
        }
        let list: Vec<&str> = names.iter().map(Domain::as_str).collect();
        let mut leading_back = None;
        for name in &names {
            match self.resolver.addresses(name).await {
                Ok(found) if found.iter().any(|found| found.to_canonical() == ip.to_canonical()) => {
                    if name == helo {
                        return Finding::ok(
                            Topic::Ptr,
                            of,
                            format!("{helo}, which leads back, and is what this server greets with"),
                        );
                    }
                    leading_back = leading_back.or(Some(name));
                }
                Ok(_) | Err(DnsError::NoSuchDomain | DnsError::Unusable(_)) => {}
                Err(error) => return Finding::unknown(Topic::Ptr, of, &error),
            }
        }
        match leading_back {
            Some(name) => Finding::new(
                Topic::Ptr,
                of,
                self.if_direct(Level::Warning),
                format!("{name}, which leads back; but this server greets as {helo}"),
            )
            .publish(wanted())
            .remedy(format!("or set delivery.helo_name = \"{name}\""))
            .why("Some servers want the greeting to be the name of the address."),
            None if names.contains(helo) => {
                let kind = if ip.is_ipv4() { "A" } else { "AAAA" };
                let record = Record::new(helo.to_string(), kind, of.clone(), "the name leads back to the address");
                Finding::new(Topic::Ptr, of, problem, format!("{helo}, which does not lead back"))
                    .publish(record)
                    .why(why)
            }
            None => Finding::new(Topic::Ptr, of, problem, format!("{}, which does not lead back", list.join(", ")))
                .publish(wanted())
                .why(why),
        }
    }

    /// Does the name of this server lead anywhere?
    pub(super) async fn host(&self) -> Finding {
        let host = &self.config.hostname;
        let takes = self.config.listeners.values().filter(|listener| listener.role == Role::Mx);
        let binds: Vec<SocketAddr> = takes.flat_map(|listener| listener.bind.clone()).collect();
        let level = if binds.is_empty() { Level::Note } else { Level::Problem };
        let why = "Other servers find this one by its name.";
        let found = match self.resolver.addresses(host).await {
            Ok(found) => found,
            Err(DnsError::NoSuchDomain) => Vec::new(),
            Err(error) => return Finding::unknown(Topic::Host, host.as_str(), &error),
        };
        let list: Vec<String> = found.iter().map(ToString::to_string).collect();
        let list = list.join(", ");
        if found.is_empty() {
            let sources = self.sources().await;
            let finding = Finding::new(Topic::Host, host.as_str(), level, "has no address").why(why);
            let finding = finding.remedy("publish the address under which others reach this machine");
            return sources.addresses.iter().fold(finding, |finding, ip| {
                let kind = if ip.is_ipv4() { "A" } else { "AAAA" };
                finding.publish(Record::new(host.to_string(), kind, ip.to_string(), "this server"))
            });
        }
        if let Some(ip) = found.iter().find(|ip| !self.is_reachable(**ip)) {
            return Finding::new(Topic::Host, host.as_str(), level, format!("{list}: nobody outside reaches {ip}"))
                .remedy("publish the address under which others reach this machine")
                .why(why);
        }
        let hears_v6 = binds.iter().any(SocketAddr::is_ipv6);
        if let Some(ip) = found.iter().find(|ip| ip.is_ipv6() && !binds.is_empty() && !hears_v6) {
            return Finding::new(
                Topic::Host,
                host.as_str(),
                Level::Warning,
                format!("{list}: no listener takes mail at {ip}"),
            )
            .remedy("bind = [\"[::]:25\"] takes both families; or take the AAAA record away")
            .why("Servers that try IPv6 first lose time, or give up.");
        }
        Finding::ok(Topic::Host, host.as_str(), list)
    }

    /// May this machine connect to mail servers?
    pub(super) async fn port_25(&self) -> Finding {
        let port = self.config.delivery.mx_port;
        let of = format!("port {port}");
        let mut tries = JoinSet::new();
        for (host, ip) in self.far_hosts().await {
            let source =
                self.config.delivery.source_addresses.iter().copied().find(|own| own.is_ipv4() == ip.is_ipv4());
            let helo_less = SocketAddr::new(ip, port);
            tries.spawn(async move { greeted(host, helo_less, source).await });
        }
        if tries.is_empty() {
            let found =
                format!("not tried: DNS has no mail server of {} that may be connected to", FAR_DOMAINS.join(", "));
            return Finding::new(Topic::Port25, of, Level::Note, found);
        }
        let mut failed: Vec<String> = Vec::new();
        let mut turned_away = None;
        while let Some(tried) = tries.join_next().await {
            match tried {
                Ok(Tried::Greeted { host, address, millis, code, text }) if code == "220" => {
                    let _ = text;
                    return Finding::ok(
                        Topic::Port25,
                        of,
                        format!("open: {host} ({address}) greeted after {millis} ms"),
                    );
                }
                Ok(Tried::Greeted { host, text, .. }) => turned_away = Some(format!("{host} greets with {text:?}")),
                Ok(Tried::Failed { address, why }) => failed.push(format!("{address}: {why}")),
                Err(_) => {}
            }
        }
        if let Some(said) = turned_away {
            return Finding::new(Topic::Port25, of, self.if_direct(Level::Warning), format!("open, but {said}"))
                .remedy("read what it says: the address may be on a list, or be one that is not to send mail")
                .why("What one large provider does to an address others most often do too.");
        }
        failed.sort();
        let found = format!("cannot be connected to: {}", failed.join("; "));
        let finding = Finding::new(Topic::Port25, of, self.if_direct(Level::Problem), found).remedy(
            "ask your provider to open port 25, or let mail go by a smart host: \
                     delivery.default = \"smart_hosts\" and [smart_hosts.NAME]",
        );
        match self.sends_directly() {
            true => finding.why(
                "Many providers block port 25 at first; without it no mail reaches the servers of its recipients.",
            ),
            false => finding.why("Mail goes by smart hosts here, so that does no harm."),
        }
    }

    /// A few servers that are sure to listen.
    async fn far_hosts(&self) -> Vec<(Domain, IpAddr)> {
        let mut all = Vec::new();
        for domain in FAR_DOMAINS.iter().filter_map(|name| Domain::parse(name).ok()) {
            let Ok(MxAnswer::Hosts(hosts)) = self.resolver.mx(&domain).await else { continue };
            for mx in hosts.into_iter().take(TRIED_MAX) {
                let found = self.resolver.addresses(&mx.host).await.unwrap_or_default();
                let usable = found.into_iter().filter(|ip| self.is_reachable(*ip)).take(TRIED_MAX);
                all.extend(usable.map(|ip| (mx.host.clone(), ip)));
            }
        }
        all
    }
}

/// The address that the system would go there by.
fn route(to: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((to, 25)).ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_unspecified() && !own.is_loopback()).then_some(own)
}

async fn greeted(host: Domain, address: SocketAddr, source: Option<IpAddr>) -> Tried {
    let failed = |why: String| Tried::Failed { address, why };
    let begun = Instant::now();
    let connecting = async {
        match source {
            None => TcpStream::connect(address).await,
            Some(source) => {
                let socket = if source.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
                socket.bind(SocketAddr::new(source, 0))?;
                socket.connect(address).await
            }
        }
    };
    let mut stream = match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return failed(error.to_string()),
        Err(_) => return failed(format!("no answer in {} s", CONNECT_TIMEOUT.as_secs())),
    };
    let mut line = Vec::new();
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader.take(GREETING_BYTES_MAX));
    match timeout(GREETING_TIMEOUT, reader.read_until(b'\n', &mut line)).await {
        Ok(Ok(1..)) => {}
        Ok(Ok(_)) => return failed("the connection was closed without a greeting".to_owned()),
        Ok(Err(error)) => return failed(error.to_string()),
        Err(_) => return failed(format!("no greeting in {} s", GREETING_TIMEOUT.as_secs())),
    }
    let millis = begun.elapsed().as_millis();
    // Whether it is heard makes no difference.
    let _ = writer.write_all(b"QUIT\r\n").await;
    let text = String::from_utf8_lossy(&line);
    let text: String =
        text.trim().chars().map(|c| if c.is_control() { '?' } else { c }).take(SHOWN_CHARS_MAX).collect();
    Tried::Greeted { host, address, millis, code: text.chars().take(3).collect(), text }
}
