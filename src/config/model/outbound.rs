//! The ways out: delivery, streams, smart hosts, mailboxes elsewhere to log in to, what a message may say it is
//! from.

use std::net::IpAddr;
use std::time::Duration;

use crate::config::{AddressOrDomain, FilePath, Secret};
use crate::message::{Address, Domain, HeldBy, Hold, stream};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WayOut {
    Direct,
    /// Written as [`Delivery::file_path`] says.
    File,
    SmartHosts,
    Capture,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    pub default: WayOut,
    pub file_path: FilePath,
    pub helo_name: Domain,
    /// Local addresses to send from, in turn; empty: the system's choice.
    pub source_addresses: Vec<IpAddr>,
    /// Outbound connections at once.
    pub concurrency: usize,
    pub mx_port: u16,
    pub allow_private_addresses: bool,
    /// Every recipient elsewhere becomes this one.
    pub redirect_all_to: Option<Address>,
    /// What may leave; empty: everything.
    pub allow_recipients: Vec<AddressOrDomain>,
    pub retry: Retry,
    pub tls: OutboundTls,
    pub mta_sts: bool,
    /// Only where the resolver validates DNSSEC itself.
    pub dane: bool,
    pub tls_rpt: bool,
}

impl Delivery {
    /// May mail for this address, which is not ours, leave?
    pub fn allows(&self, recipient: &Address) -> bool {
        self.allow_recipients.is_empty() || self.allow_recipients.iter().any(|allowed| allowed.matches(recipient))
    }

    /// Why mail for this address, which is not ours, is held; none if it may leave.
    pub fn forbids(&self, recipient: &Address) -> Option<Hold> {
        let reason =
            || format!("{recipient} is not among delivery.allow_recipients; put it there before you release it");
        (!self.allows(recipient)).then(|| Hold::new(HeldBy::AllowRecipients, reason()))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Waits after the first, second … failure; the last one repeats. Never empty.
    pub schedule: Vec<Duration>,
    pub expire: Duration,
    /// None: "never".
    pub delay_notice: Option<Duration>,
    /// 0: no limit.
    pub max_attempts: u32,
}

/// Where a copy of what was sent is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// The path as it is written, which is its name too.
    pub name: String,
    pub path: FilePath,
    pub per: ArchivePer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchivePer {
    /// One copy, with the first recipient it was sent to.
    Message,
    Recipient,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutboundTls {
    Opportunistic,
    Required,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// The name of the only smart host that it goes by.
    pub smart_host: Option<String>,
    /// Attempts at once; 1: one after the other.
    pub concurrency: Option<usize>,
    pub block: Option<Block>,
    /// Recipients a day, UTC.
    pub daily_limit: Option<u64>,
    /// Each recipient has a return path of its own.
    pub verp: bool,
    /// Addresses on the suppression list are skipped.
    pub suppress: bool,
    /// Leaves even while sending is suspended.
    pub exempt_from_suspend: bool,
}

/// So many recipients, then a pause once all of them have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    pub size: u32,
    pub pause: Duration,
}

impl Stream {
    /// The stream of this name, if nothing is said about it.
    pub fn named(name: &str) -> Stream {
        Stream { suppress: name == stream::BULK, exempt_from_suspend: name == stream::SECURITY, ..Stream::default() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmartHostTls {
    Off,
    Opportunistic,
    /// By STARTTLS.
    Required,
    Implicit,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    pub username: String,
    pub password: Secret,
}

/// What an outgoing server speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SmartHostKind {
    Smtp,
    /// Microsoft Graph sendMail, under this URL. Where the host has a name, too, what Graph cannot deliver
    /// goes there by SMTP.
    Graph {
        url: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OauthProvider {
    Microsoft,
    Google,
}

/// What tokens are asked for with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OauthFlow {
    /// The client's secret alone.
    ClientCredentials,
    /// What a person has allowed once.
    RefreshToken(Secret),
}

/// Where the tokens come from that a host takes instead of a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oauth {
    pub provider: OauthProvider,
    pub flow: OauthFlow,
    pub client_id: String,
    /// There is one wherever the flow needs it.
    pub client_secret: Option<Secret>,
    /// The mailbox, and the user name of the login.
    pub username: String,
    pub token_url: String,
    /// None: what the provider wants for this kind of host.
    pub scope: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PopTls {
    /// Only on this machine.
    Off,
    /// By STLS.
    Required,
    Implicit,
}

/// A POP3 mailbox, as far as it is needed to log in there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PopAccount {
    pub name: String,
    /// A domain name in A-labels, or an IP address without brackets.
    pub host: String,
    pub port: u16,
    pub tls: PopTls,
    pub login: Login,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchProtocol {
    Imap,
    Pop3,
}

/// What becomes of a message in its mailbox once it is queued here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum After {
    /// Marked as read; IMAP only.
    Seen,
    Delete,
    /// To another folder; IMAP only.
    Move(String),
    /// Nothing: we know what we have.
    Leave,
}

/// A mailbox elsewhere that mail is brought in from.
#[derive(Clone, Debug, PartialEq)]
pub struct Fetch {
    pub protocol: FetchProtocol,
    /// A domain name in A-labels, or an IP address without brackets.
    pub host: String,
    pub port: u16,
    pub tls: PopTls,
    /// Beside `oauth` without a password.
    pub login: Login,
    pub oauth: Option<Oauth>,
    /// Empty with POP3.
    pub folder: String,
    pub interval: Duration,
    pub after: After,
    /// None: the message says who gets it.
    pub deliver_to: Option<Address>,
}

/// An outgoing server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmartHost {
    pub name: String,
    pub kind: SmartHostKind,
    /// A domain name in A-labels, or an IP address without brackets. Empty only where the kind needs none.
    pub host: String,
    pub port: u16,
    pub tls: SmartHostTls,
    pub verify_certificate: bool,
    /// With a password; never beside `oauth`.
    pub login: Option<Login>,
    pub oauth: Option<Oauth>,
    /// Empty: it takes mail from everybody.
    pub from_filter: Vec<FromEntry>,
    /// Lower first.
    pub priority: u32,
    pub active: bool,
    /// Bytes; none: what the server says.
    pub max_size: Option<u64>,
    /// To log in to first.
    pub pop_before_smtp: Option<PopAccount>,
    /// The whole dialogue goes to the log, secrets masked.
    pub debug: bool,
}

impl SmartHost {
    /// Can it be spoken to by SMTP?
    pub fn speaks_smtp(&self) -> bool {
        !self.host.is_empty()
    }

    /// Does it take mail from this address? A host without a filter does.
    pub fn accepts(&self, address: &Address) -> bool {
        self.from_filter.is_empty() || self.from_filter.iter().any(|entry| entry.matches(address))
    }
}

/// An entry of a filter on From.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromEntry {
    Address(Address),
    /// This name only.
    Domain(Domain),
    /// `*.example.com`: every name below example.com, but not that itself.
    Subdomains(Domain),
}

impl FromEntry {
    /// Local parts match without regard to case.
    pub fn matches(&self, address: &Address) -> bool {
        let domain = address.domain();
        match self {
            FromEntry::Address(own) => own.lookup_key() == address.lookup_key(),
            FromEntry::Domain(own) => own == domain,
            FromEntry::Subdomains(parent) => {
                domain.as_str().strip_suffix(parent.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
        }
    }
}

/// What happens to Reply-To after From was rewritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyTo {
    /// One that is there stays; where there is none, the author is put there.
    KeepOrAuthor,
    /// One that is there stays.
    Keep,
    /// This address of ours takes its place: the catchall of its domain has the answers.
    Catchall(Address),
}

/// The envelope sender that mail leaves with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReturnPath {
    /// As the client gave it.
    Client,
    /// The bounce address of the From's domain, where that is ours; of this one of ours otherwise.
    Bounce { otherwise: Domain },
    /// As `Bounce`, with a token that names the recipient.
    Verp { otherwise: Domain },
}

/// What a message may say it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Takes the place of a From that may not pass.
    pub default_from: Option<Address>,
    /// May pass direct and unfiltered ways; empty: any.
    pub from_filter: Vec<FromEntry>,
    pub reply_to: ReplyTo,
    pub return_path: ReturnPath,
    /// The domain of ours to which bounces come back where the From's is not ours; none if none is.
    pub bounces_to: Option<Domain>,
}

impl Sender {
    /// May this From pass a way without a filter of its own?
    pub fn passes(&self, from: Option<&Address>) -> bool {
        self.from_filter.is_empty() || from.is_some_and(|from| self.from_filter.iter().any(|entry| entry.matches(from)))
    }
}
