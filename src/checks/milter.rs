//! Milters: programs that are asked about each message from outside, one after the other, and may refuse it,
//! have it held or dropped, and change its header.
//!
//! Promises: a milter that cannot be reached, takes too long or breaks the protocol is a "try again
//! later", never a pass; what it writes into the header is checked (`fields`) and what it has the client
//! told is a legal reply (`verdict`); memory is bounded whatever it sends and however large the message
//! is; all of them together have [`MESSAGE_TIME`].
//!
//! They are asked when the message is complete, over one connection for each message. So an answer about one recipient
//! is an answer about the message: a recipient that was taken is never dropped in silence. They see the
//! fields as they will be stored, with our Authentication-Results above those received, and each sees the
//! changes of those before it; our Received they do not see. Left out: replacing the body, changing the
//! envelope, choosing macros.

pub mod fields;
mod macros;
pub mod session;
mod verdict;
pub mod wire;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::{Milter, MilterHost, MilterPlace};
use crate::dns::Resolver;
use crate::message::header::Headers;
use crate::message::{BodyType, Domain, Envelope, HeldBy, Hold, MessageId, Origin};
use crate::smtp::reply::{Refusal, Reply};
use crate::store::StoreError;

use fields::Fields;
use session::{Ended, Times, Trouble};
pub use verdict::Verdict;

/// To reach a milter (Postfix' milter_connect_timeout).
pub const CONNECT_TIME: Duration = Duration::from_secs(5);
/// For all milters of a message. Its sender waits ten minutes for our reply (RFC 5321 4.5.3.2.6).
pub const MESSAGE_TIME: Duration = Duration::from_secs(540);
/// To find the client's name.
const NAME_TIME: Duration = Duration::from_secs(5);
/// Names of a client that are looked at.
const NAMES_MAX: usize = 5;

/// What milters are told, beside the fields.
pub struct About<'a> {
    pub id: MessageId,
    pub hostname: &'a Domain,
    pub envelope: &'a Envelope,
    pub origin: &'a Origin,
    /// The client's, as its address and the name itself say.
    pub client: Option<&'a Domain>,
    pub body: Body<'a>,
}

impl std::fmt::Debug for About<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "About({})", self.id)
    }
}

impl About<'_> {
    fn client_name(&self) -> &str {
        self.client.map_or("unknown", Domain::as_str)
    }

    fn ip(&self) -> IpAddr {
        self.origin.peer.as_ref().map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.ip.to_canonical())
    }

    fn helo(&self) -> &str {
        self.origin.peer.as_ref().map_or("", |peer| &peer.helo)
    }

    fn mail(&self) -> Vec<String> {
        let mut words = vec![format!("<{}>", self.envelope.mail_from)];
        if self.envelope.body == BodyType::EightBitMime {
            words.push("BODY=8BITMIME".to_owned());
        }
        if self.envelope.smtputf8 {
            words.push("SMTPUTF8".to_owned());
        }
        words
    }
}

/// Reads a piece of a body that is not in memory.
pub type Read<'a> = dyn Fn(u32) -> Result<Bytes, StoreError> + Send + Sync + 'a;

/// The bytes behind the header section.
pub struct Body<'a> {
    /// As far as they are in memory.
    pub head: Bytes,
    /// What is not, as numbers for `read`.
    pub rest: Range<u32>,
    pub read: &'a Read<'a>,
}

impl Body<'_> {
    /// One piece is read at a time.
    fn pieces(&self) -> impl Iterator<Item = Result<Bytes, StoreError>> + '_ {
        std::iter::once(Ok(self.head.clone())).chain(self.rest.clone().map(|number| (self.read)(number)))
    }
}

/// What milters made of a message that they let in.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// The header section that takes the place of the one received, without its empty line, if one of them changed
    /// something. Our Authentication-Results are in it.
    pub header: Option<Vec<u8>>,
    /// Why it is to be held.
    pub hold: Option<Hold>,
    /// Why it is to be taken and dropped.
    pub discard: Option<String>,
}

/// Why it does not come in.
#[derive(Debug, PartialEq, Eq)]
pub struct Stopped {
    pub refusal: Refusal,
    /// Something is wrong with a milter, not with the message.
    pub is_trouble: bool,
}

/// Asks each milter in turn, until one refuses or drops the message. `removed`: fields, by number, that are
/// not stored. `results`: the value of our Authentication-Results, folded; empty if there is none.
pub async fn ask(
    resolver: &Resolver,
    milters: &[Milter],
    about: &About<'_>,
    headers: &Headers<'_>,
    removed: &[usize],
    results: &str,
) -> Result<Passed, Stopped> {
    let kept = headers.fields().iter().enumerate().filter(|(index, _)| !removed.contains(index));
    let ours = (!results.is_empty()).then_some(("Authentication-Results", results));
    let mut fields = Fields::new(ours, kept.map(|(_, field)| field));
    let mut passed = Passed::default();
    let deadline = Instant::now() + MESSAGE_TIME;
    for milter in milters {
        let name = &milter.name;
        let asked = timeout_at(deadline, ask_one(resolver, milter, about, &mut fields)).await;
        let ended = asked.unwrap_or(Err(Failed::AllTooSlow)).map_err(|failed| failed.stop(name))?;
        if let (Some(reason), None) = (&ended.quarantine, &passed.hold) {
            passed.hold = Some(Hold::new(HeldBy::Milter, format!("milter {name} wants it held: {reason}")));
        }
        match ended.verdict {
            Verdict::Accept => {}
            Verdict::Discard => {
                passed.discard = Some(format!("milter {name} says discard"));
                break;
            }
            Verdict::Refuse(reply) => {
                let reason = format!("milter {name} refuses it: {reply}");
                return Err(Stopped { refusal: Refusal { reply, reason }, is_trouble: false });
            }
        }
    }
    passed.header = fields.changed();
    Ok(passed)
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
    #[error("all milters together take longer than {} s", MESSAGE_TIME.as_secs())]
    AllTooSlow,
    #[error(transparent)]
    Talk(#[from] Trouble),
}

impl Failed {
    fn stop(self, milter: &str) -> Stopped {
        let reason = format!("milter {milter}: {self}");
        match self {
            Failed::Talk(Trouble::Unreadable(_)) => Stopped { refusal: Refusal::inner(reason), is_trouble: true },
            Failed::Talk(Trouble::LongField) => {
                let text =
                    format!("a header field is longer than the {} bytes that filters here take", wire::DATA_BYTES_MAX);
                Stopped { refusal: Refusal { reply: Reply::new(552, (3, 4), text), reason }, is_trouble: false }
            }
            // What Postfix answers (milter_default_action = tempfail).
            _ => {
                let reply = Reply::new(451, (7, 1), "service unavailable, try again later");
                Stopped { refusal: Refusal { reply, reason }, is_trouble: true }
            }
        }
    }
}

async fn ask_one(
    resolver: &Resolver,
    milter: &Milter,
    about: &About<'_>,
    fields: &mut Fields<'_>,
) -> Result<Ended, Failed> {
    let late = || Failed::Unreachable(format!("nothing answers within {} s", CONNECT_TIME.as_secs()));
    let stream = timeout(CONNECT_TIME, connect(resolver, &milter.place)).await.map_err(|_| late())?;
    let stream = stream.map_err(Failed::Unreachable)?;
    Ok(session::converse(stream, Times::USUAL, about, fields).await?)
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

async fn connect(resolver: &Resolver, place: &MilterPlace) -> Result<Box<dyn Stream>, String> {
    let (host, port) = match place {
        MilterPlace::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(|error| error.to_string())?;
            return Ok(Box::new(stream));
        }
        MilterPlace::Inet { host, port, .. } => (host, *port),
    };
    let only_v6 = matches!(place, MilterPlace::Inet { only_v6: true, .. });
    let addresses = match host {
        MilterHost::Ip(ip) => vec![*ip],
        // RFC 6761 6.3: not a question for name servers.
        MilterHost::Name(name) if name.as_str() == "localhost" => {
            vec![Ipv4Addr::LOCALHOST.into(), std::net::Ipv6Addr::LOCALHOST.into()]
        }
        MilterHost::Name(name) => resolver.addresses(name).await.map_err(|error| error.to_string())?,
    };
    let mut failed = format!("{host} has no address");
    for ip in addresses.into_iter().filter(|ip| ip.is_ipv6() || !only_v6) {
        match tcp(SocketAddr::new(ip, port)).await {
            Ok(stream) => return Ok(Box::new(stream)),
            Err(error) => failed = error.to_string(),
        }
    }
    Err(failed)
}

async fn tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The name of a client that its address leads to and that leads back to it. None as well where it cannot
/// be found out in time: milters take that for "unknown".
pub async fn client_name(resolver: &Resolver, ip: IpAddr) -> Option<Domain> {
    let ip = ip.to_canonical();
    if ip.is_loopback() {
        return Domain::parse("localhost").ok();
    }
    let look = async {
        for name in resolver.ptr(ip).await.ok()?.into_iter().take(NAMES_MAX) {
            if resolver.addresses(&name).await.is_ok_and(|addresses| addresses.contains(&ip)) {
                return Some(name);
            }
        }
        None
    };
    timeout(NAME_TIME, look).await.ok().flatten()
}
