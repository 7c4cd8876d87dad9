//! Whom to believe: checks, milters, the loop guard, bounces, pickup folders.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::AddressOrDomain;
use crate::message::Domain;

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

#[derive(Clone, Debug, PartialEq)]
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

#[derive(Clone, Debug, PartialEq)]
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

#[derive(Clone, Debug, PartialEq)]
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
