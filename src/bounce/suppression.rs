//! The suppression list: addresses that get no more mail of some streams, and the bounces that put them
//! there.
//!
//! Bounces stand in the table of the loop guard and go the same way as its counters: a version, the time
//! after which nobody needs it, then what it is. There is one at most for an address and a message. Entries
//! of the list stand among what is kept for good; one goes when a person takes it away or its time is over.
//!
//! Pure: what is on disk is handed in, what is to be written is given back.

use serde::{Deserialize, Serialize};

use crate::clock::{Millis, rfc3339};
use crate::config::{Bounces, Config};
use crate::message::{Address, Domain, MessageId, stream};
use crate::store::{Batch, StoreError, Table};

use super::classify::Class;

/// The scope that holds for every stream but `security`.
pub const GLOBAL: &str = "global";
/// Bounces of one address that are looked at.
pub const EVENTS_MAX: usize = 1000;
/// Messages that an entry names as its reason.
const EVIDENCE_MAX: usize = 20;
/// Begins a bounce's key in `Table::Loops`.
const KIND_EVENT: u8 = b'B';
/// … and that of the last authentic mail from an address.
const KIND_ALIVE: u8 = b'G';
/// Of values in `Table::Loops`; its sweep looks at the version and the time behind it.
const VERSION: u8 = 1;
/// Begins an entry's key in `Table::Meta`.
const PREFIX: &[u8] = b"suppress/";
/// Milliseconds of a day.
const DAY: Millis = 86_400_000;

/// A bounce that counts, or is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub at: Millis,
    pub class: Class,
    /// The message that came back.
    pub message: MessageId,
    /// Refused to ourselves, not told by another server later.
    pub direct: bool,
    pub status: String,
}

impl Event {
    /// The server of the address said to us that there is no such user.
    fn is_sure(&self) -> bool {
        self.direct && self.class == Class::Hard && matches!(self.status.as_str(), "5.1.1" | "5.1.10" | "5.0.0")
    }
}

/// Why an address is on the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    Bounces,
    Complaint,
    Unsubscribe,
    Manual,
    Import,
}

impl Reason {
    pub const ALL: [Reason; 5] =
        [Reason::Bounces, Reason::Complaint, Reason::Unsubscribe, Reason::Manual, Reason::Import];

    pub fn name(self) -> &'static str {
        match self {
            Reason::Bounces => "bounces",
            Reason::Complaint => "complaint",
            Reason::Unsubscribe => "unsubscribe",
            Reason::Manual => "manual",
            Reason::Import => "import",
        }
    }

    pub fn of(name: &str) -> Option<Reason> {
        Reason::ALL.into_iter().find(|reason| reason.name() == name)
    }
}

/// What is suppressed: an address, or every one at a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    Address(Address),
    Domain(Domain),
}

/// Neither an address nor `@` and a domain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither an address nor @ and a domain")]
pub struct NotWho(pub String);

impl Who {
    pub fn parse(text: &str) -> Result<Who, NotWho> {
        let wrong = || NotWho(text.chars().take(100).collect());
        match text.trim().strip_prefix('@') {
            Some(domain) => Domain::parse(domain).map(Who::Domain).map_err(|_| wrong()),
            None => Address::parse(text.trim()).map(Who::Address).map_err(|_| wrong()),
        }
    }

    /// As it is kept: in small letters.
    pub fn key(&self) -> String {
        match self {
            Who::Address(address) => address.lookup_key(),
            Who::Domain(domain) => format!("@{domain}"),
        }
    }
}

/// An entry of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub reason: Reason,
    pub since: Millis,
    /// Holds until then; none: until it is taken away.
    #[serde(default)]
    pub expires: Option<Millis>,
    /// The messages whose bounces put it there.
    #[serde(default)]
    pub evidence: Vec<MessageId>,
}

impl Entry {
    pub fn new(reason: Reason, since: Millis) -> Entry {
        Entry { reason, since, expires: None, evidence: Vec::new() }
    }

    pub fn holds(&self, now: Millis) -> bool {
        self.expires.is_none_or(|expires| expires > now)
    }
}

/// An entry with whom and what it is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Small letters; `@` and a domain for all addresses there.
    pub address: String,
    /// A stream, or [`GLOBAL`].
    pub scope: String,
    #[serde(flatten)]
    pub entry: Entry,
}

/// The streams whose mail skips what the rule puts on the list.
pub fn suppressing(config: &Config) -> impl Iterator<Item = &str> {
    let skips = config.streams.iter().filter(|(name, stream)| stream.suppress && *name != stream::SECURITY);
    skips.map(|(name, _)| name.as_str())
}

/// The scopes that are looked at for mail of a stream.
pub fn scopes<'s>(config: &Config, name: &'s str) -> Vec<&'s str> {
    let skips = config.streams.get(name).is_some_and(|stream| stream.suppress);
    match name {
        stream::SECURITY => Vec::new(),
        name if skips => vec![GLOBAL, name],
        _ => vec![GLOBAL],
    }
}

/// The key of an entry. Addresses and names of streams have no zero byte.
pub fn entry_key(who: &str, scope: &str) -> Vec<u8> {
    [PREFIX, who.as_bytes(), &[0], scope.as_bytes()].concat()
}

/// In front of the keys of all entries, or of those whose address begins so.
pub fn entries_from(address: &str) -> Vec<u8> {
    [PREFIX, address.as_bytes()].concat()
}

/// All keys under which mail for an address may be suppressed in these scopes.
pub fn keys_for(address: &Address, scopes: &[&str]) -> Vec<Vec<u8>> {
    let names = [address.lookup_key(), format!("@{}", address.domain())];
    names.iter().flat_map(|who| scopes.iter().map(move |scope| entry_key(who, scope))).collect()
}

/// None: damaged, or over.
pub fn read_entry(key: &[u8], value: &[u8], now: Millis) -> Option<Listed> {
    let key = std::str::from_utf8(key.strip_prefix(PREFIX)?).ok()?;
    let (address, scope) = key.rsplit_once('\0')?;
    let entry: Entry = rmp_serde::from_slice(value).ok()?;
    entry.holds(now).then(|| Listed { address: address.to_owned(), scope: scope.to_owned(), entry })
}

/// Has the time of an entry passed? One that cannot be read is left for people to look at.
pub fn is_over(value: &[u8], now: Millis) -> bool {
    rmp_serde::from_slice(value).is_ok_and(|entry: Entry| !entry.holds(now))
}

pub fn put_entry(batch: &mut Batch, who: &str, scope: &str, entry: &Entry) {
    if let Ok(value) = rmp_serde::to_vec_named(entry) {
        batch.put(Table::Meta, entry_key(who, scope), value);
    }
}

/// In front of the keys of an address' bounces.
pub fn events_prefix(address: &Address) -> Vec<u8> {
    [&[KIND_EVENT, 0], address.lookup_key().as_bytes(), &[0]].concat()
}

pub fn event_key(address: &Address, message: MessageId) -> Vec<u8> {
    [events_prefix(address).as_slice(), &message.to_key()].concat()
}

pub fn alive_key(address: &Address) -> Vec<u8> {
    [&[KIND_ALIVE, 0], address.lookup_key().as_bytes()].concat()
}

fn kept(until: Millis, body: &[u8]) -> Vec<u8> {
    [&[VERSION], until.to_be_bytes().as_slice(), body].concat()
}

/// What is behind version and time, unless the time is over.
fn body(value: &[u8], now: Millis) -> Option<&[u8]> {
    let (until, body) = value.strip_prefix(&[VERSION])?.split_first_chunk()?;
    (Millis::from_be_bytes(*until) > now).then_some(body)
}

pub fn put_event(batch: &mut Batch, rule: &Bounces, address: &Address, event: &Event) {
    if let Ok(value) = rmp_serde::to_vec_named(event) {
        let until = event.at.saturating_add(millis(rule.within));
        batch.put(Table::Loops, event_key(address, event.message), kept(until, &value));
    }
}

/// None: damaged, or too long ago.
pub fn read_event(value: &[u8], now: Millis) -> Option<Event> {
    rmp_serde::from_slice(body(value, now)?).ok()
}

/// The address has shown at this time that it is in use.
pub fn put_alive(batch: &mut Batch, rule: &Bounces, address: &Address, at: Millis) {
    let until = at.saturating_add(millis(rule.within));
    batch.put(Table::Loops, alive_key(address), kept(until, &at.to_be_bytes()));
}

pub fn read_alive(value: &[u8], now: Millis) -> Option<Millis> {
    body(value, now)?.try_into().ok().map(Millis::from_be_bytes)
}

/// What the rule says of an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weighed {
    /// Onto the list with it.
    pub met: bool,
    /// The bounces that count, oldest first.
    pub counted: Vec<Event>,
    /// In a sentence.
    pub why: String,
}

impl Weighed {
    pub fn entry(&self, now: Millis) -> Entry {
        let evidence = self.counted.iter().rev().take(EVIDENCE_MAX).map(|event| event.message).collect();
        Entry { evidence, ..Entry::new(Reason::Bounces, now) }
    }
}

/// `alive`: the last sign of life that starts the count again.
pub fn weigh(rule: &Bounces, events: &[Event], alive: Option<Millis>, now: Millis) -> Weighed {
    let since = now.checked_sub(millis(rule.within));
    let counts = |event: &&Event| {
        event.class.counts() && since.is_none_or(|since| event.at > since) && alive.is_none_or(|alive| event.at > alive)
    };
    let mut counted: Vec<Event> = events.iter().filter(counts).cloned().collect();
    counted.sort_by_key(|event| (event.at, event.message));
    let spread = match (counted.first(), counted.last()) {
        (Some(first), Some(last)) => last.at.saturating_sub(first.at),
        _ => 0,
    };
    let sure = rule.hard_at_once && counted.iter().any(Event::is_sure);
    let enough = counted.len() >= rule.suppress_after as usize;
    let met = sure || (enough && is_wide_enough(rule, spread));
    let why = explain(rule, &counted, spread, sure, alive);
    Weighed { met, counted, why }
}

/// One bounce is not apart from any other, and "0s" asks for nothing.
fn is_wide_enough(rule: &Bounces, spread: Millis) -> bool {
    asks_for_spread(rule).is_none_or(|wanted| spread > wanted)
}

/// None: it does not matter how far apart the bounces are.
fn asks_for_spread(rule: &Bounces) -> Option<Millis> {
    Some(millis(rule.spread)).filter(|wanted| *wanted > 0 && rule.suppress_after > 1)
}

fn explain(rule: &Bounces, counted: &[Event], spread: Millis, sure: bool, alive: Option<Millis>) -> String {
    let (wanted, found) = (rule.suppress_after, counted.len());
    let within = time(millis(rule.within));
    let since = alive.map_or(String::new(), |alive| format!(", counted since {}", rfc3339(alive)));
    let bounces = |count: usize| if count == 1 { "bounce" } else { "bounces" };
    if sure {
        return "its server has said to us that there is no such user (bounces.hard_at_once)".to_owned();
    }
    if found < wanted as usize {
        return format!("{found} of {wanted} {} within {within}{since}", bounces(wanted as usize));
    }
    let enough = format!("{found} {} within {within}", bounces(found));
    match asks_for_spread(rule) {
        None => format!("{enough}, and {wanted} {} enough{since}", if wanted == 1 { "is" } else { "are" }),
        Some(wide) if spread > wide => format!("{enough}, over {}: more than {}{since}", time(spread), time(wide)),
        Some(wide) => format!(
            "{enough}, which is enough, but over {} only, and it has to be more than {}{since}",
            time(spread),
            time(wide)
        ),
    }
}

/// In the unit that fits: whole days, else tenths of days; shorter times in hours, minutes or seconds.
fn time(millis: Millis) -> String {
    let units = [(DAY, "day"), (3_600_000, "hour"), (60_000, "minute"), (1000, "second")];
    let (unit, name) = units.into_iter().find(|(unit, _)| millis >= *unit).unwrap_or((1000, "second"));
    match (millis / unit, millis % unit) {
        (1, 0) => format!("1 {name}"),
        (whole, 0) => format!("{whole} {name}s"),
        (_, _) => format!("{:.1} {name}s", millis as f64 / unit as f64),
    }
}

fn millis(duration: std::time::Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What is on disk about an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    pub events: Vec<Event>,
    pub alive: Option<Millis>,
}

/// Reads it: `scan` gives the values under a prefix, `get` the value of a key, both of `Table::Loops`.
pub fn known(
    address: &Address,
    now: Millis,
    scan: impl FnOnce(&[u8], usize) -> Result<Vec<Vec<u8>>, StoreError>,
    get: impl FnOnce(&[u8]) -> Result<Option<Vec<u8>>, StoreError>,
) -> Result<Known, StoreError> {
    let values = scan(&events_prefix(address), EVENTS_MAX)?;
    let events = values.iter().filter_map(|value| read_event(value, now)).collect();
    let alive = get(&alive_key(address))?.and_then(|value| read_alive(&value, now));
    Ok(Known { events, alive })
}
