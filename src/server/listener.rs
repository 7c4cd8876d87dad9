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
use crate::current::Current;
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
        settings.bind.iter().map(|address| Listener::bind_one(name, settings, *address)).collect()
    }

    /// Takes one address of a listener. Must be called within a tokio runtime.
    pub fn bind_one(name: &str, settings: &config::Listener, address: SocketAddr) -> Result<BoundListener, BindError> {
        let key = format!("listeners.{name}");
        let socket = bind_for(&key, address)?;
        let local = socket.local_addr().map_err(|error| BindError::new(&key, address, error))?;
        let (face, closing) = (Current::new(Face::of(name, settings)), CancellationToken::new());
        Ok(BoundListener { handle: Handle { asked: address, local, face, closing }, socket })
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
    handle: Handle,
    socket: TcpListener,
}

/// What a listener is to those who connect from now on.
#[derive(Clone, Debug, PartialEq)]
struct Face {
    name: Arc<str>,
    role: Role,
    tls: ListenerTls,
    proxy_protocol: bool,
}

impl Face {
    fn of(name: &str, settings: &config::Listener) -> Face {
        Face { name: name.into(), role: settings.role, tls: settings.tls, proxy_protocol: settings.proxy_protocol }
    }
}

/// Reaches a listener that runs.
#[derive(Clone, Debug)]
pub struct Handle {
    /// As in the configuration: perhaps with port 0.
    asked: SocketAddr,
    local: SocketAddr,
    face: Current<Face>,
    closing: CancellationToken,
}

impl Handle {
    /// Is it what the configuration calls `name` at this address? By its port where that is not left to the system.
    pub fn is(&self, name: &str, address: SocketAddr) -> bool {
        self.asked == address && (address.port() != 0 || *self.face.load().name == *name)
    }

    pub fn is_same(&self, other: &Handle) -> bool {
        self.local == other.local
    }

    pub fn name(&self) -> Arc<str> {
        self.face.load().name.clone()
    }

    pub fn role(&self) -> Role {
        self.face.load().role
    }

    /// With the port that the system chose, if port 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// New connections are taken by these settings; those that are open stay as they are.
    pub fn renew(&self, name: &str, settings: &config::Listener) {
        let face = Face::of(name, settings);
        if *self.face.load() != face {
            self.face.set(Arc::new(face));
        }
    }

    /// No further connections. Those that are open, and those that wait to be accepted, are served.
    pub fn close(&self) {
        self.closing.cancel();
    }
}

impl fmt::Debug for BoundListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundListener").field("face", &self.handle.face).field("address", &self.local_addr()).finish()
    }
}

impl BoundListener {
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// With the port that the system chose, if port 0 was asked for.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts until `stop`, or until it is closed. The sessions are tasks of `shared.sessions`; they see the same
    /// `stop` and may take longer.
    pub async fn run<O: Outside>(self, current: impl Into<Current<Shared<O>>>, stop: CancellationToken) {
        let current = current.into();
        // One line of log for one shortage, not one for each try.
        let mut is_short = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.handle.closing.cancelled() => return self.take_the_last(&current, &stop),
                accepted = self.socket.accept() => accepted,
            };
            let face = self.handle.face.load();
            match accepted {
                Ok((stream, peer)) => {
                    is_short = false;
                    face.welcome(&current, stream, peer, &stop);
                }
                Err(error) if is_the_clients(&error) => debug!(listener = %face.name, %error, "a client left at once"),
                Err(error) => {
                    if !is_short {
                        warn!(
                            listener = %face.name, %error,
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

    /// Those that have connected already, and would be thrown out with the socket.
    fn take_the_last<O: Outside>(self, current: &Current<Shared<O>>, stop: &CancellationToken) {
        let face = self.handle.face.load();
        // The kernel is asked directly: the runtime may not have heard of the last ones yet.
        let Ok(socket) = self.socket.into_std() else { return };
        for _ in 0..BACKLOG {
            let Ok((stream, peer)) = socket.accept() else { return };
            if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                face.welcome(current, stream, peer, stop);
            }
        }
    }
}

impl Face {
    fn welcome<O: Outside>(
        &self,
        current: &Current<Shared<O>>,
        stream: TcpStream,
        peer: SocketAddr,
        stop: &CancellationToken,
    ) {
        let peer = peer.ip().to_canonical();
        match self.proxy_protocol {
            false => self.admit(current, stream, (peer, Via::Itself), stop),
            true => self.welcome_proxy(current, stream, peer, stop),
        }
    }

    /// Whoever is none of the proxies is not asked what it says: it could say that it is anybody.
    fn welcome_proxy<O: Outside>(
        &self,
        current: &Current<Shared<O>>,
        stream: TcpStream,
        proxy: IpAddr,
        stop: &CancellationToken,
    ) {
        let shared = &current.load();
        if !limits::contains(&shared.config.networks.proxies, proxy) {
            return self.refuse(
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
            Err(refusal) => return self.refuse(&stream, proxy, &refusal),
        };
        let (face, current, stop) = (self.clone(), current.clone(), stop.clone());
        let time = HEADER_TIME.min(shared.config.limits.command_timeout);
        shared.sessions.spawn(async move {
            let name = &face.name;
            tokio::select! {
                () = stop.cancelled() => {}
                heard = timeout(time, hear(stream)) => match heard {
                    Ok(Ok((stream, Source::Client(peer)))) => {
                        drop(place);
                        face.admit(&current, stream, (peer, Via::Proxy(proxy)), &stop);
                    }
                    Ok(Ok((stream, Source::Proxy))) => face.start(&current, stream, (proxy, Via::Nobody), place, &stop),
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

impl Face {
    /// `peer`: the address, and who says so.
    fn admit<O: Outside>(
        &self,
        current: &Current<Shared<O>>,
        stream: TcpStream,
        peer: (IpAddr, Via),
        stop: &CancellationToken,
    ) {
        let shared = current.load();
        match shared.limits.connect(&shared.config, self.role, peer.0, shared.clock.now()) {
            Ok(place) => self.start(current, stream, peer, place, stop),
            Err(refusal) => self.refuse(&stream, peer.0, &refusal),
        }
    }

    fn refuse(&self, stream: &TcpStream, peer: IpAddr, refusal: &Refusal) {
        info!(listener = %self.name, %peer, reply = %refusal.reply, reason = refusal.reason, "refused");
        self.turn_away(stream, &refusal.reply);
    }

    fn start<O: Outside>(
        &self,
        current: &Current<Shared<O>>,
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
        let shared = current.load();
        let span = info_span!("session", session = shared.next_session(), listener = %self.name, %peer);
        let arrival = Arrival { listener: self.name.clone(), role: self.role, tls: self.tls, peer, via };
        // A token of its own: the waiting of thousands of idle sessions must not meet in one lock.
        let session = connection::serve(current.clone(), arrival, stream, place, stop.child_token());
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
