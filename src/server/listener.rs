//! Sockets that wait for clients, and the loop that accepts them.
//!
//! Binding is apart from running, so that a server binds low ports first and gives up its rights after,
//! and so that a port in use is known before anything starts. The loop never spins and never ends by
//! an error: where the process has no file descriptors left it waits until some are free.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use super::connection::{self, Arrival, Via};
use super::limits::{self, ConnectionGuard};
use super::outside::{Outside, Shared};
use super::proxy_protocol::{self, Header, Malformed, Source};
use crate::config::{self, ListenerTls, Role};
use crate::smtp::Reply;
use crate::smtp::reply::Refusal;

/// Connections that wait to be accepted (the system's own limit, net.core.somaxconn, also holds).
const BACKLOG: i32 = 4096;
/// Between two tries where the system has no resources for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// For the header of a proxy, if `limits.command_timeout` is not shorter: it comes first, so this is time for a
/// lost packet to be sent again.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// Octets that are looked at in one go; a header with many TLVs takes several.
const PEEK_BYTES: usize = 512;

/// A port that cannot be taken, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{key}: cannot listen on {address}: {error}; {remedy}")]
pub struct BindError {
    /// The section that names it.
    pub key: String,
    pub address: SocketAddr,
    pub error: io::Error,
    remedy: String,
}

impl BindError {
    fn new(key: &str, address: SocketAddr, error: io::Error) -> BindError {
        let port = address.port();
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => format!(
                "another program (perhaps another mail server, or another postrider) has port {port}: \
                 `ss -ltnp 'sport = :{port}'` shows which; stop it or change `bind`"
            ),
            io::ErrorKind::PermissionDenied => format!(
                "ports below 1024 need a right, and {port} is one: start postrider as root, give it the right (in a \
                 systemd unit AmbientCapabilities=CAP_NET_BIND_SERVICE), or choose a port above 1023"
            ),
            io::ErrorKind::AddrNotAvailable => {
                "this machine does not have that address: `ip address` shows those it has".to_owned()
            }
            _ => "change `bind`".to_owned(),
        };
        BindError { key: key.to_owned(), address, error, remedy }
    }
}

/// The name under which the configuration knows a listener, and binding it.
#[derive(Debug)]
pub struct Listener;

impl Listener {
    /// Takes all addresses of one listener, or none. Must be called within a tokio runtime.
    pub fn bind(name: &str, settings: &config::Listener) -> Result<Vec<BoundListener>, BindError> {
        let name: Arc<str> = name.into();
        settings
            .bind
            .iter()
            .map(|address| {
                let socket = bind_for(&format!("listeners.{name}"), *address)?;
                let door = Door { name: name.clone(), role: settings.role, tls: settings.tls };
                Ok(BoundListener { door, proxy_protocol: settings.proxy_protocol, socket })
            })
            .collect()
    }
}

/// `key`: the section that names the address.
pub(super) fn bind_for(key: &str, address: SocketAddr) -> Result<TcpListener, BindError> {
    bind_with_fallback(address).map_err(|error| BindError::new(key, address, error))
}

/// `[::]` takes IPv4 too; on a machine without IPv6 it is the IPv4 half that was meant as well.
fn bind_with_fallback(address: SocketAddr) -> io::Result<TcpListener> {
    let result = bind(address);
    match (&result, address.ip()) {
        (Err(error), IpAddr::V6(ip)) if ip.is_unspecified() && is_without_ipv6(error) => {
            bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
        }
        _ => result,
    }
}

fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(errno(error), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

fn errno(error: &io::Error) -> Option<Errno> {
    Errno::from_io_error(error)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // A restart need not wait for old connections to fade.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// A socket that listens. Clients wait in its backlog until [`BoundListener::run`].
pub struct BoundListener {
    door: Door,
    proxy_protocol: bool,
    socket: TcpListener,
}

impl fmt::Debug for BoundListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundListener").field("name", &self.door.name).field("address", &self.local_addr()).finish()
    }
}

impl BoundListener {
    pub fn name(&self) -> &str {
        &self.door.name
    }

    /// With the port that the system chose, if port 0 was asked for.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts until `stop`. The sessions are tasks of `shared.sessions`; they see the same `stop` and
    /// may take longer.
    pub async fn run<O: Outside>(self, shared: Arc<Shared<O>>, stop: CancellationToken) {
        // One line of log for one shortage, not one for each try.
        let mut is_short = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    is_short = false;
                    self.welcome(&shared, stream, peer, &stop);
                }
                Err(error) if is_the_clients(&error) => {
                    debug!(listener = %self.door.name, %error, "a client left at once")
                }
                Err(error) => {
                    if !is_short {
                        warn!(
                            listener = %self.door.name, %error,
                            "cannot accept connections, trying again; raise the limit of open files (LimitNOFILE) \
                             or lower limits.connections"
                        );
                    }
                    is_short = true;
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                    }
                }
            }
        }
    }

    fn welcome<O: Outside>(
        &self,
        shared: &Arc<Shared<O>>,
        stream: TcpStream,
        peer: SocketAddr,
        stop: &CancellationToken,
    ) {
        let peer = peer.ip().to_canonical();
        match self.proxy_protocol {
            false => self.door.admit(shared, stream, (peer, Via::Itself), stop),
            true => self.welcome_proxy(shared, stream, peer, stop),
        }
    }

    /// Whoever is none of the proxies is not asked what it says: it could say that it is anybody.
    fn welcome_proxy<O: Outside>(
        &self,
        shared: &Arc<Shared<O>>,
        stream: TcpStream,
        proxy: IpAddr,
        stop: &CancellationToken,
    ) {
        if !limits::contains(&shared.config.networks.proxies, proxy) {
            return self.door.refuse(
                &stream,
                proxy,
                &Refusal {
                    reply: Reply::new(554, (7, 1), "this port takes connections from its proxies only"),
                    reason: format!("proxy_protocol is on, and {proxy} is not in networks.proxies"),
                },
            );
        }
        let place = match shared.limits.connect_proxy(&shared.config) {
            Ok(place) => place,
            Err(refusal) => return self.door.refuse(&stream, proxy, &refusal),
        };
        let (door, own, stop) = (self.door.clone(), shared.clone(), stop.clone());
        let time = HEADER_TIME.min(shared.config.limits.command_timeout);
        shared.sessions.spawn(async move {
            let name = &door.name;
            tokio::select! {
                () = stop.cancelled() => {}
                heard = timeout(time, hear(stream)) => match heard {
                    Ok(Ok((stream, Source::Client(peer)))) => {
                        drop(place);
                        door.admit(&own, stream, (peer, Via::Proxy(proxy)), &stop);
                    }
                    Ok(Ok((stream, Source::Proxy))) => door.start(&own, stream, (proxy, Via::Nobody), place, &stop),
                    Ok(Err(NoHeader::Gone(error))) => debug!(listener = %name, %proxy, %error, "the proxy has gone"),
                    Ok(Err(NoHeader::Malformed(wrong))) => warn!(listener = %name, %proxy, "closed: {wrong}; {HINT}"),
                    Err(_) => warn!(listener = %name, %proxy, "closed: the proxy sends no PROXY header; {HINT}"),
                }
            }
        });
    }
}

const HINT: &str = "let it send one (HAProxy: send-proxy or send-proxy-v2 on the server's line; nginx: proxy_protocol \
                    on), or set proxy_protocol = false";

/// Why a proxy is not listened to.
enum NoHeader {
    Gone(io::Error),
    Malformed(Malformed),
}

/// Takes the header off the front of what a proxy sends, and nothing behind it, which may be the first
/// octets of a handshake.
async fn hear(mut stream: TcpStream) -> Result<(TcpStream, Source), NoHeader> {
    let (mut header, mut window) = (Vec::new(), vec![0; PEEK_BYTES]);
    loop {
        let seen = stream.peek(&mut window).await.map_err(NoHeader::Gone)?;
        if seen == 0 {
            return Err(NoHeader::Gone(io::ErrorKind::UnexpectedEof.into()));
        }
        let had = header.len();
        header.extend(window.iter().take(seen));
        let (source, belongs) = match proxy_protocol::read(&header).map_err(NoHeader::Malformed)? {
            Header::Begun => (None, seen),
            Header::Whole(source, length) => (Some(source), length.saturating_sub(had)),
        };
        let part = window.get_mut(..belongs).unwrap_or_default();
        stream.read_exact(part).await.map_err(NoHeader::Gone)?;
        if let Some(source) = source {
            return Ok((stream, source));
        }
    }
}

/// What a listener is to those who come in.
#[derive(Clone)]
struct Door {
    name: Arc<str>,
    role: Role,
    tls: ListenerTls,
}

impl Door {
    /// `peer`: the address, and who says so.
    fn admit<O: Outside>(
        &self,
        shared: &Arc<Shared<O>>,
        stream: TcpStream,
        peer: (IpAddr, Via),
        stop: &CancellationToken,
    ) {
        match shared.limits.connect(&shared.config, self.role, peer.0, shared.clock.now()) {
            Ok(place) => self.start(shared, stream, peer, place, stop),
            Err(refusal) => self.refuse(&stream, peer.0, &refusal),
        }
    }

    fn refuse(&self, stream: &TcpStream, peer: IpAddr, refusal: &Refusal) {
        info!(listener = %self.name, %peer, reply = %refusal.reply, reason = refusal.reason, "refused");
        self.turn_away(stream, &refusal.reply);
    }

    fn start<O: Outside>(
        &self,
        shared: &Arc<Shared<O>>,
        stream: TcpStream,
        (peer, via): (IpAddr, Via),
        place: ConnectionGuard,
        stop: &CancellationToken,
    ) {
        if let Err(error) = stream.set_nodelay(true) {
            // The client has reset the connection already.
            debug!(listener = %self.name, %peer, %error, "gone before the greeting");
            return;
        }
        let span = info_span!("session", session = shared.next_session(), listener = %self.name, %peer);
        let arrival = Arrival { listener: self.name.clone(), role: self.role, tls: self.tls, peer, via };
        // A token of its own: the waiting of thousands of idle sessions must not meet in one lock.
        let session = connection::serve(shared.clone(), arrival, stream, place, stop.child_token());
        shared.sessions.spawn(session.instrument(span));
    }

    /// One line, if the socket takes it at once, which a new one does; no task and no wait for a client
    /// that gets nothing.
    fn turn_away(&self, stream: &TcpStream, reply: &Reply) {
        if self.tls == ListenerTls::Implicit {
            return;
        }
        let mut line = Vec::new();
        reply.write_to(&mut line);
        if let Err(error) = SockRef::from(stream).send(&line) {
            debug!(listener = %self.name, %error, "could not say why");
        }
    }
}

/// accept(2): errors of the connection, not of the socket.
fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        errno(error),
        Some(Errno::CONNABORTED | Errno::CONNRESET | Errno::PERM | Errno::PROTO | Errno::TIMEDOUT | Errno::INTR)
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn settings(bind: &str) -> config::Listener {
        config::Listener {
            role: Role::Mx,
            bind: vec![bind.parse().unwrap()],
            tls: ListenerTls::Off,
            proxy_protocol: false,
        }
    }

    #[tokio::test]
    async fn a_port_in_use_is_said_with_the_remedy() {
        let first = Listener::bind("mx", &settings("127.0.0.1:0")).unwrap();
        let address = first[0].local_addr().unwrap();
        let error = Listener::bind("mx", &settings(&address.to_string())).unwrap_err().to_string();
        assert!(error.starts_with(&format!("listeners.mx: cannot listen on {address}")), "{error}");
        assert!(error.contains(&format!("ss -ltnp 'sport = :{}'", address.port())), "{error}");
    }

    #[test]
    fn other_errors_have_remedies_too() {
        let address = "192.0.2.1:25".parse().unwrap();
        let text = |kind: io::ErrorKind| BindError::new("mx", address, kind.into()).to_string();
        assert!(text(io::ErrorKind::PermissionDenied).contains("CAP_NET_BIND_SERVICE"));
        assert!(text(io::ErrorKind::AddrNotAvailable).contains("ip address"));
    }

    #[tokio::test]
    async fn the_unspecified_ipv6_address_takes_ipv4_too() {
        let bound = Listener::bind("mx", &settings("[::]:0")).unwrap();
        let port = bound[0].local_addr().unwrap().port();
        let connected = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
        assert!(connected.is_ok(), "{connected:?}");
    }
}
