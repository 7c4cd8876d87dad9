//! The loop guard: limits that stop two machines from answering each other for ever.
//!
//! Asked once per message, after the header is read and before the commit, for the recipients that
//! came in for an alias or catchall of ours. In this order: our own mark (`Delivered-To`), the same
//! Message-ID again at the catchall, the policy for automatic mail, and then, unless the sender is
//! trusted, so many messages of one sender to one alias in a period, and at the catchall the same
//! text again.
//!
//! The guard reads counters through a closure and returns what is to be written; the caller puts
//! that into the batch that queues the message, under locks for [`lock_keys`] that it keeps until
//! the batch is written. So a message and its count are on disk together or not at all, and of two
//! messages at once only one can be the last that is allowed. Only mail that passes is counted.
//!
//! An entry is a version, the time after which nobody needs it, and the newest times:
//! `1 ‖ u64 ‖ u64…`, big-endian. Keys begin with a letter for their kind.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::inbound::Delivery;
use super::sender::{self, Sender};
use crate::clock::{self, Millis};
use crate::config::{LoopKey, Loops, OnAutomatic, OnLimit};
use crate::message::header::{self, Headers};
use crate::message::{Address, Door, ReversePath};
use crate::smtp::Reply;
use crate::smtp::reply::Refusal;
use crate::store::StoreError;

/// How far ahead of the clock a stored time may be, in milliseconds. The clock was wrong when one
/// further ahead was written; it is forgotten, or it would count until that day comes.
const FUTURE_MAX: Millis = 5 * 60 * 1000;
/// Characters of an address that a reply shows, so that the line stays within 512 bytes.
const SHOWN_CHARS_MAX: usize = 120;
/// Answers in a period where `limit = 0` takes only those: two machines can answer each other too.
const ANSWERS_MAX: usize = 90;
const VERSION: u8 = 1;
/// Version and expiry, which every entry of the table begins with.
pub const HEAD_BYTES: usize = 9;

const KIND_LIMIT: u8 = b'l';
const KIND_MESSAGE_ID: u8 = b'm';
const KIND_FINGERPRINT: u8 = b'f';

/// A recipient of ours, once per RCPT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// As in RCPT.
    pub address: Address,
    /// See [`Delivery::counted_as`].
    pub counted_as: String,
    pub via_catchall: bool,
}

impl From<&Delivery> for Inbound {
    fn from(delivery: &Delivery) -> Inbound {
        Inbound {
            address: delivery.alias.clone(),
            counted_as: delivery.counted_as.clone(),
            via_catchall: delivery.via_catchall,
        }
    }
}

/// All that the guard looks at.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    pub config: &'a Loops,
    pub headers: &'a Headers<'a>,
    pub content: &'a [u8],
    pub mail_from: &'a ReversePath,
    pub recipients: &'a [Inbound],
    pub door: &'a Door,
    pub account: Option<&'a str>,
    pub now: Millis,
}

/// What the guard found out about one recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// It has been here before.
    Loop {
        reason: String,
    },
    /// Another copy of what was taken already: accept and swallow.
    Duplicate {
        reason: String,
    },
    /// The message says that it is automatic, and such mail is not simply taken.
    Automatic {
        reason: String,
    },
    /// Over a limit. `retry_after`: when there is room again; none if waiting does not help.
    Violation {
        reason: String,
        retry_after: Option<Millis>,
    },
}

/// What to do with one recipient of a message that is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Take,
    Hold(String),
    Discard(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// In the order of the input.
    pub verdicts: Vec<Verdict>,
    /// The sign by which the message is automatic.
    pub automatic: Option<&'static str>,
    /// Keys and values for `Table::Loops`, to be written in the message's own batch.
    pub writes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// More Received fields than a message collects on an honest way (RFC 5321 6.3).
pub fn refuse_hops(headers: &Headers<'_>, max_hops: usize) -> Option<Refusal> {
    let hops = headers.all("Received").count();
    (hops > max_hops).then(|| {
        Refusal::plain(Reply::new(
            554,
            (4, 6),
            format!("mail loop: {hops} Received fields, at most {max_hops} are accepted"),
        ))
    })
}

/// Hashes of what has to be locked from before [`judge`] until its writes are committed.
/// Sorted, so that two messages cannot wait for each other.
pub fn lock_keys(input: &Input<'_>) -> Vec<u64> {
    let sender = sender::sender(input.headers, input.mail_from);
    let mut hashes: Vec<u64> = Vec::new();
    for recipient in input.recipients {
        hashes.push(hash(&limit_key(input.config, recipient, &sender)));
        hashes.extend(message_id_key(input, recipient).as_deref().map(hash));
    }
    hashes.sort_unstable();
    hashes.dedup();
    hashes
}

fn hash(key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// `read` finds the value of a key in `Table::Loops`.
pub fn judge(
    input: &Input<'_>,
    read: impl Fn(&[u8]) -> Result<Option<Vec<u8>>, StoreError>,
) -> Result<Ruling, StoreError> {
    let automatic = sender::automatic(input.headers, input.mail_from);
    if matches!(input.door, Door::Bounce) {
        let verdicts = input.recipients.iter().map(|_| Verdict::Pass).collect();
        return Ok(Ruling { verdicts, automatic, writes: Vec::new() });
    }
    let sender = sender::sender(input.headers, input.mail_from);
    let trusted = is_trusted(input, &sender);
    let mut guard = Guard { input, read, sender, automatic, trusted, fresh: BTreeMap::new() };
    let mut verdicts = Vec::with_capacity(input.recipients.len());
    for recipient in input.recipients {
        verdicts.push(guard.recipient(recipient)?);
    }
    Ok(Ruling { verdicts, automatic, writes: guard.fresh.into_iter().collect() })
}

fn is_trusted(input: &Input<'_>, sender: &Sender) -> bool {
    let account = input.account.is_some_and(|name| input.config.trusted_accounts.iter().any(|t| t == name));
    let plain = Address::parse(&sender.key).ok();
    let matches = |address: &Address| input.config.trusted.iter().any(|entry| entry.matches(address));
    account || sender.address.iter().chain(&plain).any(matches)
}

struct Guard<'i, R> {
    input: &'i Input<'i>,
    read: R,
    sender: Sender,
    automatic: Option<&'static str>,
    trusted: bool,
    /// What this message will write. Two recipients with one key are one message there.
    fresh: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl<R: Fn(&[u8]) -> Result<Option<Vec<u8>>, StoreError>> Guard<'_, R> {
    fn recipient(&mut self, recipient: &Inbound) -> Result<Verdict, StoreError> {
        let mut writes = Vec::new();
        let verdict = self.steps(recipient, &mut writes)?;
        if verdict == Verdict::Pass {
            self.fresh.extend(writes);
        }
        Ok(verdict)
    }

    fn steps(&self, recipient: &Inbound, writes: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Result<Verdict, StoreError> {
        if carries_mark(self.input.headers, &recipient.address) {
            return Ok(Verdict::Loop { reason: format!("it has been delivered to {} before", recipient.address) });
        }
        if let Some(key) = message_id_key(self.input, recipient) {
            if !self.times(&key)?.is_empty() {
                let reason = format!("a message with this Message-ID came for {} already", recipient.address);
                return Ok(Verdict::Duplicate { reason });
            }
            writes.push((key, self.entry(&[])));
        }
        if let (Some(sign), true) = (self.automatic, self.input.config.automatic != OnAutomatic::Accept) {
            return Ok(Verdict::Automatic { reason: format!("automatic mail ({sign}) for {}", recipient.address) });
        }
        if self.trusted {
            return Ok(Verdict::Pass);
        }
        if let Some(violation) = self.limit(recipient, writes)? {
            return Ok(violation);
        }
        match self.same_text(recipient, writes)? {
            Some(violation) => Ok(violation),
            None => Ok(Verdict::Pass),
        }
    }

    /// So many messages in a period.
    fn limit(&self, recipient: &Inbound, writes: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Result<Option<Verdict>, StoreError> {
        let limit = match self.input.config.limit {
            0 if sender::is_reply(self.input.headers) => ANSWERS_MAX,
            0 => {
                let reason = format!("{} takes answers only, no new messages", shown(&recipient.address.to_string()));
                return Ok(Some(Verdict::Violation { reason, retry_after: None }));
            }
            limit => limit as usize,
        };
        let key = limit_key(self.input.config, recipient, &self.sender);
        let times = self.times(&key)?;
        let newest = &times[times.len().saturating_sub(limit)..];
        match newest.first() {
            Some(oldest) if newest.len() == limit => {
                let retry_after = Some(oldest.saturating_add(self.period()));
                Ok(Some(Verdict::Violation { reason: self.too_many(recipient, limit, retry_after), retry_after }))
            }
            _ => {
                writes.push((key, self.entry(newest)));
                Ok(None)
            }
        }
    }

    /// The second copy of a text at the catchall, where nobody expects mail: two machines.
    fn same_text(
        &self,
        recipient: &Inbound,
        writes: &mut Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<Option<Verdict>, StoreError> {
        if !recipient.via_catchall {
            return Ok(None);
        }
        let Input { headers, content, .. } = self.input;
        let print = sender::fingerprint(headers, content, &self.sender.key, &recipient.address);
        let key = key(KIND_FINGERPRINT, &[recipient.address.lookup_key().as_bytes(), &print]);
        if let Some(last) = self.times(&key)?.last() {
            let retry_after = Some(last.saturating_add(self.period()));
            let reason = format!(
                "the same message from {} to {} again within {}, try again after {}",
                shown(&self.sender.key),
                shown(&recipient.address.to_string()),
                period_text(self.period()),
                utc(retry_after)
            );
            return Ok(Some(Verdict::Violation { reason, retry_after }));
        }
        writes.push((key, self.entry(&[])));
        Ok(None)
    }

    fn too_many(&self, recipient: &Inbound, limit: usize, retry_after: Option<Millis>) -> String {
        let from = match self.input.config.key {
            LoopKey::SenderAndAlias => format!(" from {}", shown(&self.sender.key)),
            LoopKey::Alias => String::new(),
        };
        format!(
            "too many messages{from} to {}: {limit} within {} are accepted, try again after {}",
            shown(&recipient.address.to_string()),
            period_text(self.period()),
            utc(retry_after)
        )
    }

    fn period(&self) -> Millis {
        u64::try_from(self.input.config.period.as_millis()).unwrap_or(u64::MAX)
    }

    /// The times under a key that still count, oldest first. A damaged entry counts for nothing.
    fn times(&self, key: &[u8]) -> Result<Vec<Millis>, StoreError> {
        let now = self.input.now;
        let since = now.checked_sub(self.period());
        let value = (self.read)(key)?;
        let mut times = value.as_deref().and_then(decode).map(|(_, times)| times).unwrap_or_default();
        times.retain(|time| since.is_none_or(|since| *time > since) && *time <= now.saturating_add(FUTURE_MAX));
        times.sort_unstable();
        Ok(times)
    }

    /// `times` and now.
    fn entry(&self, times: &[Millis]) -> Vec<u8> {
        let now = self.input.now;
        let newest = times.iter().copied().max().unwrap_or(now).max(now);
        encode(newest.saturating_add(self.period()), times.iter().copied().chain([now]))
    }
}

/// RFC 5321 4.4 calls it trace; Postfix and qmail brought the field into use. Written by us on
/// delivery, so it proves that the message went round.
fn carries_mark(headers: &Headers<'_>, address: &Address) -> bool {
    let own = address.lookup_key();
    let is_own = |text: &str| Address::parse(text.trim_matches(['<', '>'])).is_ok_and(|a| a.lookup_key() == own);
    headers.all("Delivered-To").any(|field| is_own(&field.text()))
}

fn limit_key(config: &Loops, recipient: &Inbound, sender: &Sender) -> Vec<u8> {
    let alias = recipient.counted_as.as_bytes();
    match config.key {
        LoopKey::SenderAndAlias => key(KIND_LIMIT, &[alias, sender.key.as_bytes()]),
        LoopKey::Alias => key(KIND_LIMIT, &[alias]),
    }
}

/// Only at the catchall and only for mail from outside: an alias may rightly get one message twice,
/// by way of two lists.
fn message_id_key(input: &Input<'_>, recipient: &Inbound) -> Option<Vec<u8>> {
    if !recipient.via_catchall || !matches!(input.door, Door::Mx { .. }) {
        return None;
    }
    let id = header::message_id(input.headers.get("Message-ID")?.value)?;
    Some(key(KIND_MESSAGE_ID, &[recipient.address.lookup_key().as_bytes(), &sender::message_id_hash(&id)]))
}

/// Parts with a zero byte between them, which no address holds.
pub fn key(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = vec![kind];
    for part in parts {
        key.push(0);
        key.extend_from_slice(part);
    }
    key
}

/// What an entry begins with that may go at `expiry`.
pub fn head(expiry: Millis) -> Vec<u8> {
    let mut value = vec![VERSION];
    value.extend_from_slice(&expiry.to_be_bytes());
    value
}

fn encode(expiry: Millis, times: impl Iterator<Item = Millis>) -> Vec<u8> {
    let mut value = head(expiry);
    times.for_each(|time| value.extend_from_slice(&time.to_be_bytes()));
    value
}

fn decode(value: &[u8]) -> Option<(Millis, Vec<Millis>)> {
    let (words, []) = value.strip_prefix(&[VERSION])?.as_chunks::<8>() else { return None };
    let mut words = words.iter().map(|word| Millis::from_be_bytes(*word));
    Some((words.next()?, words.collect()))
}

/// May a sweep delete this entry? A damaged one, too: it counts for nothing.
pub fn is_expired(value: &[u8], now: Millis) -> bool {
    let expiry = value.strip_prefix(&[VERSION]).and_then(|rest| rest.first_chunk()).copied();
    expiry.is_none_or(|expiry| Millis::from_be_bytes(expiry) <= now)
}

impl Ruling {
    /// What becomes of the message. If every recipient would be refused, the message is, and the
    /// other side tells its user: no backscatter. A message that is taken for some cannot be
    /// refused for others after DATA, so those are held. `others`: the message has recipients that
    /// were not put before the guard.
    pub fn settle(&self, config: &Loops, others: bool) -> Result<Vec<Action>, Refusal> {
        let wanted: Vec<_> = self.verdicts.iter().map(|verdict| verdict.wanted(config)).collect();
        let taken = others || wanted.iter().any(|w| matches!(w, Ok(Action::Take | Action::Hold(_))));
        if !taken && let Some(refusal) = wanted.iter().find_map(|w| w.as_ref().err()) {
            return Err(refusal.clone());
        }
        Ok(wanted.into_iter().map(|w| w.unwrap_or_else(|refusal| Action::Hold(refusal.reason))).collect())
    }
}

impl Verdict {
    /// What the configuration wants for this recipient alone.
    fn wanted(&self, config: &Loops) -> Result<Action, Refusal> {
        let refuse = |code, enhanced, text: String| {
            let reply = Reply::new(code, enhanced, ascii(&text));
            Err(Refusal { reply, reason: text })
        };
        match self {
            Verdict::Pass => Ok(Action::Take),
            Verdict::Duplicate { reason } => Ok(Action::Discard(reason.clone())),
            Verdict::Loop { reason } => refuse(554, (4, 6), format!("mail loop: {reason}")),
            Verdict::Automatic { reason } => match config.automatic {
                OnAutomatic::Accept => Ok(Action::Take),
                OnAutomatic::Hold => Ok(Action::Hold(reason.clone())),
                OnAutomatic::Discard => Ok(Action::Discard(reason.clone())),
                OnAutomatic::Reject => refuse(550, (7, 1), format!("not accepted here: {reason}")),
            },
            Verdict::Violation { reason, retry_after } => match config.on_limit {
                OnLimit::Hold => Ok(Action::Hold(reason.clone())),
                OnLimit::Discard => Ok(Action::Discard(reason.clone())),
                // Waiting only helps where a limit counts a period.
                OnLimit::Defer if retry_after.is_some() => refuse(450, (7, 1), reason.clone()),
                OnLimit::Reject | OnLimit::Defer => refuse(554, (4, 6), reason.clone()),
            },
        }
    }
}

fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text.to_owned(),
    }
}

/// A reply is ASCII unless the session is SMTPUTF8 (RFC 6531 3.7.4.1), which is not known here.
fn ascii(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect()
}

fn period_text(period: Millis) -> String {
    let seconds = period / 1000;
    if seconds.is_multiple_of(60) { format!("{} minutes", seconds / 60) } else { format!("{seconds} seconds") }
}

/// To the full second after it, so that who waits until then has waited long enough.
fn utc(time: Option<Millis>) -> String {
    let full_second = time.unwrap_or_default().div_ceil(1000).saturating_mul(1000);
    clock::rfc3339(full_second).replace(".000Z", "Z")
}

#[cfg(test)]
mod tests;
