//! The configuration, checked and typed. Immutable; made whole or not at all.
//!
//! The way of a text: `files` and `tree` make one tree of it that knows its lines; `keys` finds what
//! is unknown or not supported yet; `read` turns the tree into these types with the help of one file
//! for each group of sections (`doors`, `accounts`, `domains`, `destinations`, `targets`, `ways_out`,
//! `groups`, `smart_hosts` with `oauth`, `fetch`, `streams`, `trust` with `milters`, `running`, `events`), which take their values through
//! `section`, `value` and `secret`; `chains` follows the aliases. All of them put what they find wrong into one
//! `report`, and `problem` says it.
//!
//! A field here is named as its key in `conf/postrider.toml`, which documents it; what is not
//! supported yet has no field.

mod accounts;
mod bounces;
mod chains;
mod command;
mod destinations;
mod domains;
mod doors;
pub mod events;
mod fetch;
pub mod file_path;
mod files;
pub mod groups;
mod keys;
mod milters;
mod nearest;
mod oauth;
mod places;
pub mod problem;
mod read;
mod report;
mod running;
mod secret;
mod section;
mod sender;
mod smart_hosts;
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

use crate::message::{Address, Domain, stream};

pub use domains::is_selector;
pub use events::{EventLog, EventWebhook, Events};
pub use file_path::FilePath;
pub use groups::{Destinations, GroupLimits};
pub use keys::known_keys;
pub use places::Places;
pub use problem::{Problem, ProblemKind, Problems};
pub use read::{load, parse};
pub use targets::Target;

#[derive(Clone, Debug)]
pub struct Config {
    pub hostname: Domain,
    pub data_dir: PathBuf,
    /// Notices go here, and mail for postmaster@ of each domain that no alias takes.
    pub postmaster: Address,
    pub listeners: BTreeMap<String, Listener>,
    pub networks: Networks,
    /// None: a self-signed certificate under `data_dir`, with a warning.
    pub tls: Option<Certificate>,
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

#[derive(Clone, Debug)]
pub struct Listener {
    pub role: Role,
    pub bind: Vec<SocketAddr>,
    pub tls: ListenerTls,
}

#[derive(Clone, Debug, Default)]
pub struct Networks {
    pub trusted: Vec<IpNet>,
    pub blocked: Vec<IpNet>,
}

#[derive(Clone, Debug)]
pub struct Certificate {
    pub certificate: PathBuf,
    pub private_key: PathBuf,
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
#[derive(Clone, Debug)]
pub enum Credential {
    /// `password_hash`: an argon2id PHC string, checked to be one.
    Hash(Secret),
    /// `password`: the password itself, which SCRAM can use too.
    Password(Secret),
}

#[derive(Clone, Debug)]
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

#[derive(Clone, Debug)]
pub struct OwnDomain {
    pub catchall: Vec<Destination>,
    /// Local part of the return path.
    pub bounce: String,
    /// Local parts that were the bounce or the catchall address once, in lower case: mail for them is taken still.
    pub previous_names: Vec<String>,
    /// What separates `sales` from `x` in `sales+x@`; none: no subaddresses.
    pub subaddress: Option<char>,
    /// Bytes; none: only `limits.max_size`.
    pub max_size: Option<u64>,
    pub dkim: Dkim,
}

#[derive(Clone, Debug)]
pub struct Dkim {
    /// Selectors whose keys live under `data_dir/dkim/<domain>/`: the first RSA-2048, the second
    /// Ed25519, made at first start.
    pub selectors: Vec<String>,
    /// Selectors whose keys lie elsewhere.
    pub key_files: BTreeMap<String, PathBuf>,
}

/// One value of an alias or catchall.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// A name in `targets`.
    Target(String),
    /// Forwarded, or another alias of ours.
    Address(Address),
    Discard,
    Reject,
}

#[derive(Clone, Debug, Default)]
pub struct Aliases {
    /// By [`Address::lookup_key`].
    pub exact: BTreeMap<String, Vec<Destination>>,
    /// In file order; matched against the whole lookup key.
    pub patterns: Vec<PatternAlias>,
    /// Exceptions from [`Loops`], by the key of an exact alias or the text of a pattern.
    pub limits: BTreeMap<String, AliasLimits>,
}

/// What is not as in [`Loops`] for one alias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AliasLimits {
    pub limit: Option<u32>,
    pub period: Option<Duration>,
    pub automatic: Option<OnAutomatic>,
}

#[derive(Clone, Debug)]
pub struct PatternAlias {
    /// As written, with its slashes.
    pub text: String,
    pub regex: regex::Regex,
    pub destinations: Vec<Destination>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WayOut {
    Direct,
    /// Written as [`Delivery::file_path`] says.
    File,
    SmartHosts,
    Capture,
}

#[derive(Clone, Debug)]
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
    pub fn forbids(&self, recipient: &Address) -> Option<String> {
        let reason =
            || format!("{recipient} is not among delivery.allow_recipients; put it there before you release it");
        (!self.allows(recipient)).then(reason)
    }
}

#[derive(Clone, Debug)]
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
#[derive(Clone, Debug)]
pub struct Fetch {
    pub protocol: FetchProtocol,
    /// A domain name in A-labels, or an IP address without brackets.
    pub host: String,
    pub port: u16,
    pub tls: PopTls,
    pub login: Login,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckMode {
    Off,
    Annotate,
    Reject,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmarcMode {
    Off,
    Annotate,
    /// Reject on p=reject, hold on p=quarantine.
    Enforce,
}

#[derive(Clone, Debug)]
pub struct Checks {
    pub spf: CheckMode,
    pub dkim: CheckMode,
    pub dmarc: DmarcMode,
    pub rdns: CheckMode,
    pub dnsbl: Vec<Domain>,
    pub arc: ArcMode,
    /// What these, and hosts below them, have sealed as passing counts where DMARC fails (RFC 8617).
    pub trusted_sealers: Vec<Domain>,
    /// ARC sets of our own on what aliases send elsewhere.
    pub seal_forwards: bool,
    /// In the order in which they are asked.
    pub milters: Vec<Milter>,
}

/// A program that is asked about each message from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Milter {
    /// Its address, as written.
    pub name: String,
    pub place: MilterPlace,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MilterPlace {
    Inet { host: MilterHost, port: u16, only_v6: bool },
    Unix(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MilterHost {
    Ip(IpAddr),
    Name(Domain),
}

impl std::fmt::Display for MilterHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            MilterHost::Ip(ip) => ip.fmt(f),
            MilterHost::Name(name) => name.fmt(f),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArcMode {
    Off,
    Annotate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoopKey {
    SenderAndAlias,
    Alias,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLimit {
    Reject,
    Hold,
    Discard,
    Defer,
}

/// What happens to mail that says it is automatic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnAutomatic {
    Accept,
    Hold,
    Discard,
    Reject,
}

#[derive(Clone, Debug)]
pub struct Loops {
    pub period: Duration,
    pub limit: u32,
    /// On one thread that we know.
    pub replies: u32,
    pub key: LoopKey,
    pub on_limit: OnLimit,
    /// Received fields.
    pub max_hops: usize,
    /// Senders (and account names) that the limits do not count.
    pub trusted: Vec<AddressOrDomain>,
    pub trusted_accounts: Vec<String>,
    pub automatic: OnAutomatic,
}

/// When an address is put on the suppression list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounces {
    /// So many bounces …
    pub suppress_after: u32,
    /// … in this time …
    pub within: Duration,
    /// … the first and the last further apart than this.
    pub spread: Duration,
    /// One "no such user" of a server that we delivered to is enough.
    pub hard_at_once: bool,
    /// Authentic mail from the address starts the count again.
    pub reset_on_inbound: bool,
}

#[derive(Clone, Debug)]
pub struct Pickup {
    pub path: PathBuf,
    pub account: String,
    /// A file is taken once it has not changed for this long.
    pub settle: Duration,
    pub format: PickupFormat,
    pub done: PickupDone,
    /// Files; 0: as many as there are.
    pub max_per_minute: u32,
}

/// How the files of a pickup folder name their envelope, and what was done to their dots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PickupFormat {
    /// By the block of `X-Receiver` fields at the beginning if there is one, else by From, To, Cc and Bcc.
    #[default]
    Auto,
    /// By From, To, Cc and Bcc, always.
    Exchange,
    /// As `Auto`, but Sender comes before From, and dots are doubled as in SMTP.
    Iis,
    /// By the block, always.
    Replay,
}

/// What becomes of a file whose message is queued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PickupDone {
    #[default]
    Delete,
    /// It goes into the sub-folder `archive`.
    Archive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    Sync,
    Relaxed,
}

#[derive(Clone, Debug)]
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

#[derive(Clone, Debug)]
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

#[derive(Clone, Debug)]
pub struct Dns {
    /// Empty: /etc/resolv.conf.
    pub nameservers: Vec<SocketAddr>,
    pub timeout: Duration,
}

/// HTTP over TCP, for whoever shows the token.
#[derive(Clone, Debug)]
pub struct Admin {
    pub bind: SocketAddr,
    pub token: Secret,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Debug)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    pub format: LogFormat,
}

impl OwnDomain {
    /// `sales+x@example.com` → `sales@example.com`, if the domain has subaddresses.
    pub fn base_key(&self, address: &Address) -> Option<String> {
        let local = address.lookup_local();
        let (base, _) = local.split_once(self.subaddress?)?;
        (!base.is_empty()).then(|| format!("{base}@{}", address.domain()))
    }

    /// Is this address, at this domain, the one that bounces come back to? With a subaddress it is too.
    pub fn is_bounce(&self, address: &Address) -> bool {
        self.has_name(address, std::iter::once(&self.bounce))
    }

    /// The same, or one under a name from before.
    pub fn was_bounce(&self, address: &Address) -> bool {
        self.has_name(address, std::iter::once(&self.bounce).chain(&self.previous_names))
    }

    fn has_name<'n>(&self, address: &Address, names: impl Iterator<Item = &'n String>) -> bool {
        let keys = [Some(address.lookup_key()), self.base_key(address)];
        let own = names.filter_map(|name| Address::new(name, address.domain().clone()).ok());
        own.map(|own| own.lookup_key()).any(|own| keys.iter().flatten().any(|key| *key == own))
    }

    /// What stands between the bounce address and a token.
    pub fn token_separator(&self) -> char {
        self.subaddress.unwrap_or('+')
    }

    /// Was this address, at this domain, the one for bounces once? A name alone may have been the
    /// catchall's: where there is a catchall it goes there.
    pub fn is_previous_bounce(&self, address: &Address) -> bool {
        let is_previous = |key: &str| {
            let local = key.rsplit_once('@').map_or(key, |(local, _)| local);
            self.previous_names.iter().any(|name| name == local)
        };
        let with_token = self.base_key(address).is_some_and(|base| is_previous(&base));
        with_token || (self.catchall.is_empty() && is_previous(&address.lookup_key()))
    }

    /// `domain`: its own name.
    pub fn bounce_address(&self, domain: &Domain) -> Option<Address> {
        Address::new(&self.bounce, domain.clone()).ok()
    }
}

impl Aliases {
    /// What takes this lookup key: an exact alias, else the first pattern that fits it whole.
    pub fn named(&self, key: &str) -> Option<&[Destination]> {
        match self.exact.get(key) {
            Some(destinations) => Some(destinations),
            None => self.pattern(key).map(|pattern| pattern.destinations.as_slice()),
        }
    }

    /// The pattern that takes this lookup key, if no exact alias does.
    pub fn pattern(&self, key: &str) -> Option<&PatternAlias> {
        let whole = |regex: &regex::Regex| regex.find(key).is_some_and(|found| found.len() == key.len());
        let mut patterns = self.patterns.iter().filter(|_| !self.exact.contains_key(key));
        patterns.find(|pattern| whole(&pattern.regex))
    }

    /// What is not as in `[loops]` for the alias that takes this lookup key.
    pub fn limits_of(&self, key: &str) -> AliasLimits {
        if self.limits.is_empty() {
            return AliasLimits::default();
        }
        let name = self.pattern(key).map_or(key, |pattern| pattern.text.as_str());
        self.limits.get(name).copied().unwrap_or_default()
    }
}

impl Config {
    /// True if mail for this domain is ours to take.
    /// May programs on this machine send without an account?
    pub fn trusts_loopback(&self) -> bool {
        let loopback = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
        self.networks.trusted.iter().any(|network| loopback.iter().any(|address| network.contains(address)))
    }

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
