//! The I/O of one outgoing connection: does what the [`Client`] machine says, and tells it what came.
//!
//! Promises: every wait has an end (the step's time-out and the attempt's deadline, whichever is
//! first); what is read ahead is bounded; bytes that a server sends before it is asked are noticed
//! and end the connection, so that a reply is never taken for the answer to a later command.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::commands::Mail;
use super::dialogue::{self, Said};
use super::replies::{RawReply, ReplyReader};
use super::step::{Framing, Loss, Over, Step, Trouble};
use super::tls::{self, Fault, Judge};
use crate::delivery::Outcome;
use crate::delivery::body::Body;
use crate::trail::Leg;

/// Octets read at once.
const READ_BYTES: usize = 4096;
/// A TLS handshake takes no longer. RFC 5321 has no number for it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the verdict on a message is still waited for when there is a hurry.
const HURRY_GRACE: Duration = Duration::from_millis(300);

mod content;

use content::Unsent;

/// What a connection runs over: TCP, TLS over it, or a pipe of a test.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// In place of TCP: what a simulation connects to.
pub trait Network: std::fmt::Debug + Send + Sync {
    fn connect(&self, to: SocketAddr) -> Connecting<'_>;
}

pub type Connecting<'a> = Pin<Box<dyn Future<Output = std::io::Result<Box<dyn Io>>> + Send + 'a>>;

/// An open connection to a server that has greeted us, ready for a message.
pub struct Connection {
    stream: Box<dyn Io>,
    client: Client,
    replies: ReplyReader,
    /// Messages offered so far.
    messages: usize,
    /// What is wrong with its certificate, where nothing hangs on that.
    fault: Option<Fault>,
    hurry: CancellationToken,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({:?}, {} messages)", self.client, self.messages)
    }
}

/// What became of a message: the fates that are sealed, and why the others are not.
#[derive(Debug)]
pub struct Sent {
    pub decided: Vec<(u32, Outcome)>,
    /// The connection is of no further use; recipients that are not `decided` may try the next host.
    pub trouble: Option<Trouble>,
}

impl Connection {
    /// Says hello, under TLS if `client` wants it and the server offers it, and logs in if it has a login.
    pub async fn open(
        stream: Box<dyn Io>,
        client: Client,
        connector: &TlsConnector,
        name: ServerName<'static>,
        judge: &Judge,
        deadline: Instant,
    ) -> Result<Connection, Trouble> {
        let replies = ReplyReader::default();
        let mut connection =
            Connection { stream, client, replies, messages: 0, fault: None, hurry: CancellationToken::new() };
        let first = connection.client.start();
        let mut step = connection.run(first, None, deadline).await;
        if step == Step::StartTls {
            // RFC 3207 4.2, CVE-2011-0411: what came in clear behind the reply may have been put there
            // by anybody, and must not be taken for an answer under TLS.
            if !connection.replies.is_empty() {
                let why = "the server went on in clear after its reply to STARTTLS";
                return Err(connection.client.handshake_failed(why));
            }
            let Connection { stream, mut client, replies, messages, hurry, .. } = connection;
            let since = std::time::Instant::now();
            let handshake = connector.connect(name.clone(), stream);
            let (stream, hello, fault) = match timeout_at(limit(HANDSHAKE_TIMEOUT, deadline), handshake).await {
                Ok(Ok(stream)) => {
                    let session = stream.get_ref().1;
                    let fault = judge.judge(session, &name).err();
                    if let Some(trail) = client.trail() {
                        let shown = format!("{}, {}", tls::description(session), tls::holder(session));
                        trail.mark(Leg::Tls, since, shown);
                    }
                    if let Some(fault) = fault.as_ref().filter(|_| client.demands_certificate()) {
                        return Err(client.certificate_refused(fault));
                    }
                    let hello = client.secured(tls::description(session));
                    (stream, hello, fault)
                }
                Ok(Err(error)) => return Err(client.handshake_failed(&error.to_string())),
                Err(_) => return Err(client.handshake_failed("it took too long")),
            };
            connection = Connection { stream: Box::new(stream), client, replies, messages, fault, hurry };
            step = connection.run(hello, None, deadline).await;
        }
        match step {
            Step::Ready => Ok(connection),
            other => Err(trouble_in(other, &mut connection.client)),
        }
    }

    /// From when on nobody waits for the verdict on a message.
    pub fn hurried_by(self, hurry: CancellationToken) -> Connection {
        Connection { hurry, ..self }
    }

    /// As [`Connection::send`] up to the recipients, and nothing is sent.
    pub async fn rehearse(&mut self, mail: Mail, deadline: Instant) -> Sent {
        let first = self.client.rehearse(mail);
        match self.run(first, None, deadline).await {
            Step::Done(decided) => Sent { decided, trouble: None },
            Step::Over(Over { decided, trouble }) => Sent { decided, trouble: Some(trouble) },
            other => Sent { decided: Vec::new(), trouble: Some(trouble_in(other, &mut self.client)) },
        }
    }

    /// Offers one message.
    pub async fn send(&mut self, mail: Mail, body: &Body, deadline: Instant) -> Sent {
        self.messages += 1;
        let first = self.client.begin(mail);
        match self.run(first, Some(body), deadline).await {
            Step::Done(decided) => Sent { decided, trouble: None },
            Step::Over(Over { decided, trouble }) => Sent { decided, trouble: Some(trouble) },
            other => Sent { decided: Vec::new(), trouble: Some(trouble_in(other, &mut self.client)) },
        }
    }

    /// What is wrong with its TLS, where nothing hangs on that.
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    pub fn is_under_tls(&self) -> bool {
        self.client.is_under_tls()
    }

    pub fn messages(&self) -> usize {
        self.messages
    }

    /// Nothing has come since the last reply, not even the end. A server that speaks unasked, as with
    /// 421 before it closes, is not to be given another message.
    pub async fn is_quiet(&mut self) -> bool {
        self.replies.is_empty() && matches!(write_unless_heard(&mut self.stream, &[]).await, Ok(None))
    }

    /// Says goodbye. RFC 5321 4.1.1.10 asks to wait for the answer; a server that has none to give is
    /// left after a few seconds.
    pub async fn quit(mut self) {
        let (command, wait) = self.client.quit();
        let goodbye = async {
            self.stream.write_all(command).await?;
            self.stream.flush().await?;
            let _ = self.read_reply().await;
            self.stream.shutdown().await
        };
        // Nobody depends on how this ends.
        let _: Result<std::io::Result<()>, _> = timeout(wait, goodbye).await;
    }

    /// Does what the machine says until it is at a rest.
    async fn run(&mut self, mut step: Step, body: Option<&Body>, deadline: Instant) -> Step {
        let mut ended = None;
        loop {
            let content = ended.take();
            step = match (step, body) {
                (Step::Talk { send, timeout, secret }, _) => {
                    self.log_said(&send, secret, content);
                    let since = std::time::Instant::now();
                    let hurry = self.client.has_sent_all().then(|| self.hurry.clone());
                    let talked = tokio::select! {
                        biased;
                        talked = self.talk(&send, limit(timeout, deadline)) => talked,
                        () = hurried(hurry) => Err(Loss::Hurried),
                    };
                    match talked {
                        Ok(reply) => {
                            self.log_heard(&reply);
                            self.mark(since, &reply);
                            self.client.reply(reply)
                        }
                        Err(loss) => Step::Over(self.client.lost(loss)),
                    }
                }
                (Step::Content(framing), Some(body)) => match self.send_content(framing, body, deadline).await {
                    Ok(last_block) => {
                        ended = Some(framing);
                        self.client.end_content(last_block)
                    }
                    Err(Unsent::Lost(loss)) => Step::Over(self.client.lost(loss)),
                    Err(Unsent::Flawed(flaw)) => Step::Over(self.client.unsendable(flaw)),
                    Err(Unsent::Unread(why)) => Step::Over(self.client.unread(&why)),
                },
                (rest, _) => return rest,
            }
        }
    }

    fn log_said(&self, send: &[u8], is_secret: bool, content: Option<Framing>) {
        let kind = match (content, is_secret) {
            (Some(framing), _) => Said::Content(framing),
            (_, true) => Said::Secret,
            _ => Said::Commands,
        };
        if let Some(peer) = self.client.logged_peer() {
            dialogue::said(peer, kind, send);
        }
    }

    fn log_heard(&self, reply: &RawReply) {
        if let Some(peer) = self.client.logged_peer() {
            dialogue::heard(peer, reply, self.client.is_secret(reply));
        }
    }

    /// For a test. Of a login its end and its mechanism are noted, and nothing that the server says: it may
    /// repeat a secret.
    fn mark(&self, since: std::time::Instant, reply: &RawReply) {
        let (Some(trail), Some(leg)) = (self.client.trail(), self.client.leg()) else { return };
        match (leg, self.client.mechanism()) {
            (Leg::Auth, _) if reply.code == 334 => {}
            (Leg::Auth, mechanism) => {
                trail.mark(leg, since, format!("{} by {}", reply.code, mechanism.unwrap_or("no mechanism")));
            }
            (Leg::Ehlo, _) => {
                let mut lines = reply.plain().text.split('\n').map(str::to_owned).collect::<Vec<_>>().into_iter();
                let first = lines.next().unwrap_or_default();
                trail.mark_offers(leg, since, format!("{} {first}", reply.code), lines.collect());
            }
            (Leg::Banner, _) => trail.mark(leg, since, reply.plain().to_string()),
            _ => trail.mark(leg, since, reply.parsed().to_string()),
        }
    }

    async fn talk(&mut self, send: &[u8], limit: Instant) -> Result<RawReply, Loss> {
        if !send.is_empty() && !self.replies.is_empty() {
            return Err(Loss::Desync);
        }
        match timeout_at(limit, self.say_and_hear(send)).await {
            Ok(result) => result,
            Err(_) => Err(Loss::TimedOut),
        }
    }

    async fn say_and_hear(&mut self, send: &[u8]) -> Result<RawReply, Loss> {
        let written = async {
            self.stream.write_all(send).await?;
            self.stream.flush().await
        };
        if let Err(error) = written.await {
            // A server that hangs up may have said why (421) before.
            return match self.read_reply().await {
                Ok(reply) if reply.code >= 400 => Ok(reply),
                _ => Err(Loss::Broken(error.to_string())),
            };
        }
        self.read_reply().await
    }

    async fn read_reply(&mut self) -> Result<RawReply, Loss> {
        let mut buffer = [0; READ_BYTES];
        loop {
            if let Some(reply) = self.replies.next().map_err(Loss::Garbage)? {
                return Ok(reply);
            }
            let read = self.stream.read(&mut buffer).await.map_err(|error| Loss::Broken(error.to_string()))?;
            match buffer.get(..read) {
                None | Some([]) => return Err(Loss::Closed),
                Some(bytes) => self.replies.push(bytes),
            }
        }
    }
}

/// Writes all of `block`, unless something can be read: then returns that (nothing at the end of the
/// stream). Looks once even if there is nothing to write, and where writing fails: a server that gives up
/// says why before it closes.
async fn write_unless_heard(stream: &mut Box<dyn Io>, block: &[u8]) -> std::io::Result<Option<Vec<u8>>> {
    let (mut written, mut failed) = (0, None);
    poll_fn(|context| {
        loop {
            let mut bytes = [0; READ_BYTES];
            let mut buffer = ReadBuf::new(&mut bytes);
            if let Poll::Ready(result) = Pin::new(&mut *stream).poll_read(context, &mut buffer) {
                let heard = buffer.filled().to_vec();
                let silent = heard.is_empty() || result.is_err();
                return Poll::Ready(match failed.take() {
                    Some(error) if silent => Err(error),
                    _ => result.map(|()| Some(heard)),
                });
            }
            if failed.is_some() {
                // A broken connection can be read to its end at once, so this is no long wait.
                return Poll::Pending;
            }
            let Some(rest) = block.get(written..).filter(|rest| !rest.is_empty()) else {
                return Poll::Ready(Ok(None));
            };
            match ready!(Pin::new(&mut *stream).poll_write(context, rest)) {
                Ok(0) => return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                Ok(count) => written += count,
                Err(error) => failed = Some(error),
            }
        }
    })
    .await
}

/// Ends a little later than there is a hurry: a verdict that is on its way is still heard. Never without one.
async fn hurried(hurry: Option<CancellationToken>) {
    let Some(hurry) = hurry else { return std::future::pending().await };
    hurry.cancelled().await;
    tokio::time::sleep(HURRY_GRACE).await;
}

fn limit(timeout: Duration, deadline: Instant) -> Instant {
    deadline.min(Instant::now() + timeout)
}

/// The trouble of a step that leads nowhere. The machine gives no other than `Over` where this is
/// called; if it did, the host would be left alone.
fn trouble_in(step: Step, client: &mut Client) -> Trouble {
    match step {
        Step::Over(over) => over.trouble,
        _ => client.lost(Loss::Desync).trouble,
    }
}
