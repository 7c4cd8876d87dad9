//! The I/O pump of one connection: reads, cuts lines, asks the session what they mean, does what it
//! says.
//!
//! Promises: replies are gathered while input is buffered and flushed before any wait (RFC 2920);
//! whatever came before a handshake closes the connection (RFC 3207 4.2, CVE-2011-0411); every wait has
//! an end; an idle connection holds a small buffer and nothing of an earlier message. When the server
//! stops, a message that is being read is finished and answered, and an idle client gets 421. A message is
//! judged by one configuration, the one that held when its MAIL came.
//!
//! Leaves out: what commands mean (`session`), and how many connections there may be (`limits`).

mod body;
pub mod memory;
mod questions;
pub use questions::AUTH_FAILURE_DELAY;
mod stream;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use self::memory::{Content, OwnPart};
use self::stream::Stream;
use super::limits::{self, ConnectionGuard};
use super::outside::{Outside, Shared};
use super::session::Session;
use super::step::{Policy, Step};
use crate::config::{ListenerTls, Role, SUBMITTED_RECIPIENTS};
use crate::current::Current;
use crate::smtp::Reply;
use crate::smtp::wire::{ChunkDecoder, LINE_END_BYTES, LineCutter};

/// From the first byte of a handshake to its end.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(30);
/// For the last words to a client that is given up, and for it to hear them.
pub const FAREWELL_TIME: Duration = Duration::from_secs(2);
/// Bytes that are read and forgotten so that a client hears the last words (a socket that is closed
/// with unread input throws away what was sent).
const FAREWELL_BYTES_MAX: usize = 256 * 1024;
/// Bytes of read buffer between messages.
const IDLE_BUFFER_BYTES: usize = 2 * 1024;
/// Bytes of gathered replies that are flushed in any case.
const OUTPUT_BYTES_MAX: usize = 8 * 1024;

/// What a connection is, before it says anything.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Name of the listener.
    pub listener: Arc<str>,
    pub role: Role,
    pub tls: ListenerTls,
    /// Canonical: never an IPv4 address in IPv6 clothes.
    pub peer: IpAddr,
    pub via: Via,
}

/// Who says what the address of the peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The connection itself.
    Itself,
    /// This proxy.
    Proxy(IpAddr),
    /// Nobody: `peer` is a proxy that does not tell for whom it speaks.
    Nobody,
}

impl Arrival {
    /// May the address be taken for a reason to trust? An unknown client is not the proxy, and another
    /// machine's loopback address is not ours.
    fn may_vouch(&self) -> bool {
        match self.via {
            Via::Itself => true,
            Via::Proxy(proxy) => proxy.is_loopback() || !self.peer.is_loopback(),
            Via::Nobody => false,
        }
    }
}

/// Why a connection ends other than by the session's own will.
#[derive(Debug)]
enum End {
    /// The session has said its last word.
    Done {
        code: u16,
    },
    /// The client has gone, or the network has.
    Gone(io::Error),
    /// The client sends nothing, or does not take what is sent.
    TimedOut,
    /// The server stops.
    Stopping,
    Handshake(io::Error),
    /// Plain text between STARTTLS and the handshake.
    Injection,
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> End {
        End::Gone(error)
    }
}

/// Talks to one client until one of the two has enough. `place` is given back at the end.
pub async fn serve<S, O>(
    current: impl Into<Current<Shared<O>>>,
    arrival: Arrival,
    stream: S,
    place: ConnectionGuard,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    O: Outside,
{
    let current = current.into();
    let shared = current.load();
    let (session, greeting) = Session::new(policy(&shared, &arrival));
    let mut connection = Connection {
        current,
        shared,
        arrival,
        session,
        stream: Stream::Plain(stream),
        input: Vec::new(),
        start: 0,
        output: Vec::new(),
        lines: LineCutter::new(),
        declared: None,
        chunks: None,
        held: OwnPart::default(),
        stop,
    };
    debug!("connected");
    let end = connection.converse(greeting).await;
    connection.finish(end).await;
    drop(place);
}

fn policy<O: Outside>(shared: &Shared<O>, arrival: &Arrival) -> Policy {
    let config = &shared.config;
    Policy {
        hostname: config.hostname.clone(),
        listener: arrival.listener.to_string(),
        role: arrival.role,
        tls: arrival.tls,
        peer_ip: arrival.peer,
        trusted: arrival.may_vouch() && limits::contains(&config.networks.trusted, arrival.peer),
        loopback: arrival.may_vouch() && arrival.peer.is_loopback(),
        scram: shared.accounts.offers_scram(),
        max_size: config.limits.max_size,
        max_recipients: match arrival.role {
            Role::Mx => config.limits.max_recipients,
            Role::Submission => SUBMITTED_RECIPIENTS,
        },
        errors_max: config.limits.errors_per_session,
    }
}

struct Connection<S, O> {
    current: Current<Shared<O>>,
    /// What holds for the message that is under way; the newest where there is none.
    shared: Arc<Shared<O>>,
    arrival: Arrival,
    session: Session,
    stream: Stream<S>,
    /// Read and not used yet, from `start` on.
    input: Vec<u8>,
    start: usize,
    /// Said and not flushed yet.
    output: Vec<u8>,
    lines: LineCutter,
    /// SIZE of the last MAIL.
    declared: Option<u64>,
    /// A message of several BDAT chunks.
    chunks: Option<Box<(ChunkDecoder, Content)>>,
    /// The client's part of the memory for a message, until that is queued.
    held: OwnPart,
    stop: CancellationToken,
}

impl<S, O> Connection<S, O>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    O: Outside,
{
    async fn converse(&mut self, greeting: Reply) -> End {
        if self.arrival.tls == ListenerTls::Implicit
            && let Err(end) = self.handshake().await
        {
            return end;
        }
        self.say(&greeting);
        loop {
            let done = match self.next_step().await {
                Ok(step) => self.perform(step).await,
                Err(end) => Err(end),
            };
            if let Err(end) = done {
                return end;
            }
            if !self.session.is_between_chunks() {
                self.chunks = None;
            }
        }
    }

    /// Waits for a line and hands it to the session.
    async fn next_step(&mut self) -> Result<Step, End> {
        let mut deadline = None;
        loop {
            if self.stop.is_cancelled() {
                return Err(End::Stopping);
            }
            if self.session.is_idle() && !self.current.is(&self.shared) {
                self.renew();
            }
            let buffered = self.input.get(self.start..).unwrap_or_default();
            match self.lines.cut(buffered) {
                Ok(Some(length)) => {
                    let step = self.session.line(buffered.get(..length).unwrap_or_default());
                    self.start += length + LINE_END_BYTES;
                    return Ok(step);
                }
                Err(error) => return Ok(self.session.bad_line(error)),
                Ok(None) => {}
            }
            self.flush().await?;
            // One deadline for the whole line: a byte now and then does not move it.
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + self.shared.config.limits.command_timeout);
            self.tidy(IDLE_BUFFER_BYTES);
            let stop = self.stop.clone();
            tokio::select! {
                biased;
                read = tokio::time::timeout_at(deadline, self.stream.read_buf(&mut self.input)) => match read {
                    Ok(Ok(0)) => return Err(End::Gone(io::ErrorKind::UnexpectedEof.into())),
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return Err(error.into()),
                    Err(_) => return Err(End::TimedOut),
                },
                () = stop.cancelled() => return Err(End::Stopping),
            }
        }
    }

    /// From the next command on the newest configuration holds.
    fn renew(&mut self) {
        let before = std::mem::replace(&mut self.shared, self.current.load());
        let accounts = &self.shared.accounts;
        let login = self.session.account().and_then(|name| accounts.still_lets_in(name, &before.accounts));
        self.session.renew(policy(&self.shared, &self.arrival), login);
    }

    /// Does what the session says, until it wants the next line.
    async fn perform(&mut self, mut step: Step) -> Result<(), End> {
        loop {
            step = match step {
                Step::Reply(reply) => {
                    self.say(&reply);
                    if self.output.len() > OUTPUT_BYTES_MAX {
                        self.flush().await?;
                    }
                    return Ok(());
                }
                Step::ReplyAlone(reply) if self.has_input() => {
                    self.say(&reply);
                    return Err(End::Done { code: reply.code });
                }
                Step::ReplyAlone(reply) => {
                    self.say(&reply);
                    return Ok(());
                }
                Step::Ask(question) => {
                    let answer = self.find_out(question).await;
                    self.session.answer(answer)
                }
                Step::StartTls(reply) => {
                    self.say(&reply);
                    self.flush().await?;
                    return if self.has_input() { Err(End::Injection) } else { self.handshake().await };
                }
                Step::ReadData(reply) => {
                    self.say(&reply);
                    let end = self.read_data().await?;
                    self.session.data_read(end)
                }
                Step::ReadChunk { size, first, last, discard } => {
                    let end = self.read_chunk(size, first, last, discard).await?;
                    self.session.chunk_read(end)
                }
                Step::Close(reply) => {
                    self.say(&reply);
                    return Err(End::Done { code: reply.code });
                }
            };
        }
    }

    async fn handshake(&mut self) -> Result<(), End> {
        self.lines = LineCutter::new();
        (self.input, self.start) = (Vec::new(), 0);
        let acceptor = self.shared.tls.acceptor();
        // Boxed: the state of a handshake is large and soon over.
        match timeout(HANDSHAKE_TIME, Box::pin(self.stream.start_tls(acceptor))).await {
            Ok(Ok(description)) => {
                debug!(tls = description, "TLS started");
                self.session.tls_started(description);
                Ok(())
            }
            Ok(Err(error)) => Err(End::Handshake(error)),
            Err(_) => Err(End::Handshake(io::ErrorKind::TimedOut.into())),
        }
    }

    fn has_input(&self) -> bool {
        self.start < self.input.len()
    }

    fn say(&mut self, reply: &Reply) {
        let refused = self.session.take_refused();
        match refused {
            Some(refused) if reply.code >= 400 => self.log_refusal(reply, &refused),
            None if reply.code >= 400 => debug!(reply = reply.to_string(), "not done"),
            _ => {}
        }
        reply.write_to(&mut self.output);
    }

    async fn flush(&mut self) -> Result<(), End> {
        if self.output.is_empty() {
            return Ok(());
        }
        let all = async {
            self.stream.write_all(&self.output).await?;
            self.stream.flush().await
        };
        match timeout(self.shared.config.limits.command_timeout, all).await {
            Ok(done) => done?,
            Err(_) => return Err(End::TimedOut),
        }
        self.output.clear();
        Ok(())
    }

    /// Drops what has been used, so that there is room for a read of `size`, and not much more.
    fn tidy(&mut self, size: usize) {
        self.input.drain(..self.start.min(self.input.len()));
        self.start = 0;
        if self.input.is_empty() && self.input.capacity() > size {
            self.input = Vec::new();
        }
        // At least a quarter of a buffer for each read; a line is never longer than two.
        if self.input.capacity() - self.input.len() <= size / 4 {
            let more = size.max(self.input.len());
            self.input.reserve_exact(more);
        }
        if self.output.is_empty() && self.output.capacity() > OUTPUT_BYTES_MAX {
            self.output = Vec::new();
        }
    }
}

/// The end.
impl<S, O> Connection<S, O>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    O: Outside,
{
    async fn finish(&mut self, end: End) {
        self.chunks = None;
        let mut hears = false;
        match end {
            // After 221 the client closes; after any other last word it may be in the middle of something.
            End::Done { code } => hears = code != 221,
            End::TimedOut => {
                info!("timed out");
                self.say(&Reply::new(421, (4, 2), "timed out, closing the connection"));
            }
            End::Stopping => self.say(&Reply::new(421, (3, 2), "the server is stopping, please try again later")),
            End::Gone(error) => return debug!(%error, "the client has gone"),
            End::Handshake(error) => return info!(%error, "the TLS handshake failed"),
            End::Injection => return info!("closed: plain text between STARTTLS and the handshake"),
        }
        // Whether it was heard or not: there is nothing left to say.
        let _ = timeout(FAREWELL_TIME, self.farewell(hears)).await;
        debug!("closed");
    }

    async fn farewell(&mut self, hears: bool) -> Result<(), End> {
        self.flush().await?;
        self.stream.shutdown().await?;
        let mut read = 0;
        while hears && read < FAREWELL_BYTES_MAX {
            self.start = self.input.len();
            self.tidy(IDLE_BUFFER_BYTES);
            match self.stream.read_buf(&mut self.input).await? {
                0 => return Ok(()),
                bytes => read += bytes,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use tokio::net::TcpStream;

    use super::*;
    use crate::clock::Clock;
    use crate::message::{Address, Draft, ReversePath};
    use crate::server::testing;
    use crate::server::tls::ServerTls;
    use crate::smtp::reply::Refusal;

    struct Nobody;

    impl Outside for Nobody {
        fn sender(&self, _: Option<&str>, _: &ReversePath, _: Option<u64>) -> Result<(), Refusal> {
            Ok(())
        }

        fn recipient(&self, _: Role, _: Option<&str>, _: &ReversePath, _: (usize, &Address)) -> Result<(), Refusal> {
            Ok(())
        }

        async fn accept(&self, _: &Draft) -> Result<Reply, Refusal> {
            Err(Refusal::inner("nobody is there"))
        }
    }

    /// What a task of an idle connection holds: its future and its buffers.
    #[tokio::test]
    async fn an_idle_connection_is_small() {
        let folder = tempfile::tempdir().unwrap();
        let config = Arc::new(testing::config(folder.path()));
        let tls = ServerTls::load(&config).unwrap();
        let shared = Shared::new(config.clone(), tls, Nobody, Clock::manual(0)).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let peer = IpAddr::from([127, 0, 0, 1]);
        let place = shared.limits.connect(&config, Role::Mx, peer, 0).unwrap();
        let via = Via::Itself;
        let arrival = Arrival { listener: "mx".into(), role: Role::Mx, tls: ListenerTls::Off, peer, via };
        let task = serve(shared, arrival, stream, place, CancellationToken::new());
        let bytes = std::mem::size_of_val(&task);
        assert!(bytes + IDLE_BUFFER_BYTES < 8 * 1024, "the future takes {bytes} bytes");
    }
}
