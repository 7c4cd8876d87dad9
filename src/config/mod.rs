//! The configuration, checked and typed. Immutable; made whole or not at all.
//!
//! The way of a text: `files` and `tree` make one tree of it that knows its lines; `keys` finds what
//! is unknown or not supported yet; `read` turns the tree into these types with the help of one file
//! for each group of sections (`doors`, `certificates`, `accounts`, `domains`, `destinations`, `targets`, `ways_out`,
//! `groups`, `smart_hosts` with `oauth`, `fetch`, `streams`, `trust` with `milters`, `running`, `events`), which take their values through
//! `section`, `value` and `secret`; `chains` follows the aliases; `model` has the larger of the types. All of them put what they find wrong into one
//! `report`, and `problem` says it. `source` remembers where it stands, for whoever wants to know what has changed;
//! `reference` is what the keys mean, `effective` what they are in one configuration.
//!
//! A field here is named as its key in `conf/postrider.toml`, which documents it; what is not
//! supported yet has no field.

mod accounts;
mod bounces;
mod certificates;
mod chains;
mod command;
mod destinations;
mod domains;
mod doors;
pub mod effective;
pub mod events;
mod fetch;
pub mod file_path;
mod files;
pub mod groups;
mod keys;
mod milters;
mod model;
mod nearest;
mod oauth;
mod places;
pub mod problem;
mod read;
pub mod reference;
mod report;
mod running;
mod secret;
mod section;
mod sender;
mod smart_hosts;
pub mod source;
mod streams;
pub mod targets;
mod tree;
mod trust;
pub mod value;
mod ways_out;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::message::{Address, Domain};

pub use accounts::SUBMITTED_RECIPIENTS;
pub use domains::is_selector;
pub use events::{EventLog, EventWebhook, Events};
pub use file_path::FilePath;
pub use groups::{Destinations, GroupLimits};
pub use keys::known_keys;
pub use model::certificate::*;
pub use model::inbound::*;
pub use model::outbound::*;
pub use model::trust::*;
pub use places::Places;
pub use problem::{Problem, ProblemKind, Problems};
pub use read::{data_dir_of, load, parse};
pub use source::{Change, ChangeKind, Source};
pub use targets::Target;

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub hostname: Domain,
    pub data_dir: PathBuf,
    /// Notices go here, and mail for postmaster@ of each domain that no alias takes.
    pub postmaster: Address,
    pub listeners: BTreeMap<String, Listener>,
    pub networks: Networks,
    /// None: the one that `acme` gets, or a self-signed one under `data_dir`, with a warning.
    pub tls: Option<Certificate>,
    /// `[[tls.extra]]`: shown to clients that ask for one of their names.
    pub tls_extra: Vec<Certificate>,
    /// `[tls.acme]`, where it is enabled; then `tls` is None.
    pub acme: Option<Acme>,
    pub accounts: BTreeMap<String, Account>,
    pub domains: BTreeMap<Domain, OwnDomain>,
    pub aliases: Aliases,
    pub targets: BTreeMap<String, Target>,
    pub delivery: Delivery,
    pub destinations: Destinations,
    /// All that there are, the built-in ones included.
    pub streams: BTreeMap<String, Stream>,
    /// By priority, then in the order of the file.
    pub smart_hosts: Vec<SmartHost>,
    pub sender: Sender,
    pub archive: Vec<Archive>,
    pub checks: Checks,
    pub loops: Loops,
    pub bounces: Bounces,
    pub pickup: BTreeMap<String, Pickup>,
    /// Mailboxes elsewhere that mail is brought in from.
    pub fetch: BTreeMap<String, Fetch>,
    pub queue: Queue,
    pub limits: Limits,
    pub dns: Dns,
    /// None: only the admin socket.
    pub admin: Option<Admin>,
    pub events: Events,
    pub log: Log,
    /// What loads but deserves a word at every start (`durability = "relaxed"`, no certificate…).
    pub warnings: Vec<String>,
    /// Where all this was read from.
    pub source: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Mx,
    Submission,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerTls {
    Off,
    Opportunistic,
    /// STARTTLS before MAIL and AUTH.
    Required,
    Implicit,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    pub role: Role,
    pub bind: Vec<SocketAddr>,
    pub tls: ListenerTls,
    /// Each connection begins with a PROXY header, and comes from one of [`Networks::proxies`].
    pub proxy_protocol: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Networks {
    pub trusted: Vec<IpNet>,
    pub proxies: Vec<IpNet>,
    pub blocked: Vec<IpNet>,
}

/// A text that is never shown: not by Debug, not in a log.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// How an account proves itself.
#[derive(Clone, Debug, PartialEq)]
pub enum Credential {
    /// `password_hash`: an argon2id PHC string, checked to be one.
    Hash(Secret),
    /// `password`: the password itself, which SCRAM can use too.
    Password(Secret),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    pub credential: Credential,
    pub label: String,
    pub active: bool,
    /// Addresses and domains for MAIL FROM and From.
    pub senders: Senders,
    /// The stream its mail goes by, unless a message asks for another: one of [`Config::streams`].
    pub stream: String,
    /// Other streams that a message may ask for.
    pub streams: Vec<String>,
    /// Takes the place of the header From of every message.
    pub force_from: Option<ForcedFrom>,
    /// Recipients a day, UTC.
    pub daily_limit: Option<u64>,
    /// Recipients.
    pub rate_limit: Option<Rate>,
    /// Recipients of one message.
    pub max_recipients: usize,
    /// Bytes: the sum of the decoded attachments of one message.
    pub max_attachments: Option<u64>,
    /// Who is told of a message whose attachments are too large.
    pub notify: Option<Address>,
    /// All that it sends is queued held.
    pub hold: bool,
}

impl Account {
    pub fn may_use(&self, stream: &str) -> bool {
        self.stream == stream || self.streams.iter().any(|name| name == stream)
    }
}

/// One mailbox, as it is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForcedFrom {
    pub text: String,
    pub address: Address,
}

/// Who an account may say it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Senders {
    /// All of `[domains]`.
    OwnDomains,
    Only(Vec<AddressOrDomain>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AddressOrDomain {
    Address(Address),
    Domain(Domain),
}

impl std::fmt::Display for AddressOrDomain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AddressOrDomain::Address(address) => address.fmt(f),
            AddressOrDomain::Domain(domain) => domain.fmt(f),
        }
    }
}

impl AddressOrDomain {
    /// Domains match exactly, local parts without regard to case.
    pub fn matches(&self, address: &Address) -> bool {
        match self {
            AddressOrDomain::Address(own) => own.lookup_key() == address.lookup_key(),
            AddressOrDomain::Domain(domain) => domain == address.domain(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    Sync,
    Relaxed,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    pub durability: Durability,
    /// Bytes of free disk below which new mail gets 452.
    pub min_free: u64,
    /// Bytes for message bodies in flight.
    pub memory: u64,
}

/// `60/m`, `10/15m`: so many in so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub count: u32,
    pub per: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Bytes.
    pub max_size: u64,
    /// Per message on listeners with role `mx`.
    pub max_recipients: usize,
    pub connections: usize,
    pub connections_per_ip: usize,
    pub connection_rate: Rate,
    pub errors_per_session: u32,
    pub auth_failures: Rate,
    pub command_timeout: Duration,
    pub data_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Dns {
    /// Empty: /etc/resolv.conf.
    pub nameservers: Vec<SocketAddr>,
    pub timeout: Duration,
}

/// HTTP over TCP, for whoever shows the token.
#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    pub bind: SocketAddr,
    pub token: Secret,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    pub format: LogFormat,
}

impl Config {
    /// May programs on this machine send without an account?
    pub fn trusts_loopback(&self) -> bool {
        let loopback = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
        self.networks.trusted.iter().any(|network| loopback.iter().any(|address| network.contains(address)))
    }

    /// True if mail for this domain is ours to take.
    pub fn is_own(&self, domain: &Domain) -> bool {
        self.domains.contains_key(domain)
    }

    /// Where bounces of mail by this author come back to, as an address at its domain or, where that is
    /// not ours, at the one for all others. None: to the envelope sender that the client gave.
    pub fn bounce_address(&self, author: Option<&Address>) -> Option<Address> {
        if self.sender.return_path == ReturnPath::Client {
            return None;
        }
        self.return_address(author)
    }

    /// The same, whatever `sender.return_path` says.
    pub fn return_address(&self, author: Option<&Address>) -> Option<Address> {
        let at = |domain: &Domain| self.domains.get(domain)?.bounce_address(domain);
        author.and_then(|author| at(author.domain())).or_else(|| at(self.sender.bounces_to.as_ref()?))
    }

    /// Does mail of this stream leave with a return path of its own for each recipient?
    pub fn uses_verp(&self, stream: &str) -> bool {
        matches!(self.sender.return_path, ReturnPath::Verp { .. })
            || self.streams.get(stream).is_some_and(|stream| stream.verp)
    }

    /// Does any of our mail come back to us?
    pub fn takes_bounces(&self) -> bool {
        self.sender.return_path != ReturnPath::Client || self.streams.values().any(|stream| stream.verp)
    }

    /// Do bounces of our mail come back to this address?
    pub fn is_bounce(&self, address: &Address) -> bool {
        let own = self.domains.get(address.domain());
        own.is_some_and(|own| own.is_previous_bounce(address) || (self.takes_bounces() && own.is_bounce(address)))
    }

    /// The only smart host that a stream goes by.
    pub fn pinned(&self, stream: &str) -> Option<&str> {
        self.streams.get(stream)?.smart_host.as_deref()
    }

    /// May `account` use `address` in MAIL FROM and From?
    pub fn may_send_as(&self, account: &Account, address: &Address) -> bool {
        match &account.senders {
            Senders::OwnDomains => self.is_own(address.domain()),
            Senders::Only(list) => list.iter().any(|entry| entry.matches(address)),
        }
    }
}
