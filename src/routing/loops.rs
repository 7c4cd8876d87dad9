//! The loop guard: limits that stop two machines from answering each other for ever.
//!
//! Asked once per message, after the header is read and before the commit, for the recipients that
//! came in for an address of ours. In this order: signs that the message has been here (`trace`), an
//! answer to a notice of ours, the same message again, the policy for automatic mail; then, unless the
//! sender is trusted, so many messages of one sender, and of one domain, to one alias in a period, or so
//! many on a thread that we know, and at the catchall the same text again.
//!
//! The guard reads counters through a closure and returns what is to be written; the caller puts
//! that into the batch that queues the message, under locks for [`lock_keys`] that it keeps until
//! the batch is written. So a message and its count are on disk together or not at all, and of two
//! messages at once only one can be the last that is allowed. Only mail that passes is counted.
//! What the entries look like is in `entry`, what becomes of the message in `ruling`; what we may say
//! about mail that came in is counted in `budget`.

mod budget;
mod entry;
mod ruling;
pub mod trace;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::inbound::Delivery;
use super::sender::{self, Sender};
use super::sent::{self, Sent};
use super::{free_mail, notice_id};
use crate::clock::Millis;
use crate::config::{AliasLimits, LoopKey, Loops, OnAutomatic};
use crate::message::header::{self, Headers};
use crate::message::{Address, Domain, Door, Hold, ReversePath};
use crate::secret::Marks;
use crate::smtp::Reply;
use crate::smtp::reply::Refusal;
use crate::store::StoreError;

pub use budget::{Budget, NOTICES_PER_HOUR_MAX};
pub use entry::{HEAD_BYTES, head, is_expired, key};
use ruling::{period_text, shown, utc};

/// Messages in a period that mail which must be taken has room for at least: bounces, and what comes for
/// postmaster and abuse.
const ALWAYS_MIN: usize = 5;
/// How many times a sender's own limit all senders of its domain have together, and a sender on all threads.
const TOGETHER: usize = 10;
/// No such limit is kept where it would be higher: an entry has eight bytes for each message.
const TOGETHER_MAX: usize = 10_000;

const KIND_LIMIT: u8 = b'l';
const KIND_DOMAIN: u8 = b'd';
const KIND_THREAD: u8 = b't';
const KIND_ANSWERS: u8 = b'a';
const KIND_MESSAGE_ID: u8 = b'm';
const KIND_COPY: u8 = b'c';
const KIND_FINGERPRINT: u8 = b'f';

/// How a recipient was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Alias,
    Catchall,
    /// A bounce of what we have forwarded, on its way back to who wrote that (`routing::srs`).
    Returned,
}

/// A recipient of ours, once per RCPT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// As in RCPT.
    pub address: Address,
    /// See [`Delivery::counted_as`].
    pub counted_as: String,
    pub limits: AliasLimits,
    pub via: Via,
    /// Its mail must be taken, automatic or not: a return path of ours, postmaster, abuse.
    pub always: bool,
    /// No limit counts this message: it is a bounce that has been understood.
    pub exempt: bool,
}

impl From<&Delivery> for Inbound {
    fn from(delivery: &Delivery) -> Inbound {
        Inbound {
            address: delivery.alias.clone(),
            counted_as: delivery.counted_as.clone(),
            limits: delivery.limits,
            via: if delivery.via_catchall { Via::Catchall } else { Via::Alias },
            always: false,
            exempt: false,
        }
    }
}

/// All that the guard looks at.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    pub config: &'a Loops,
    /// This server's name in Received.
    pub hostname: &'a Domain,
    pub marks: &'a Marks,
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
    /// It answers a notice of ours: accept and swallow.
    OwnNotice {
        reason: String,
    },
    /// Another copy of what was taken already: accept and swallow.
    Duplicate {
        reason: String,
    },
    /// The message says that it is automatic, and such mail is not simply taken.
    Automatic {
        reason: String,
        policy: OnAutomatic,
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
    Hold(Hold),
    Discard(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruling {
    /// In the order of the input.
    pub verdicts: Vec<Verdict>,
    /// The sign by which the message is automatic.
    pub automatic: Option<&'static str>,
    /// The message of ours that it answers.
    pub answers: Option<Sent>,
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
        // All counters of a sender lie under those of its domain, where there are such.
        let limit = domain_limit(input, recipient, &sender).map(|(key, _)| key);
        hashes.push(hash(&limit.unwrap_or_else(|| limit_key(input.config, recipient, &sender))));
        hashes.extend(copy_key(input, recipient).as_deref().map(hash));
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
        return Ok(Ruling { verdicts, automatic, answers: None, writes: Vec::new() });
    }
    let sender = sender::sender(input.headers, input.mail_from);
    let trusted = is_trusted(input, &sender);
    let references = sent::references(input.headers);
    let answers = sent::find(&references, input.now, &read)?;
    let of_notice = references.iter().any(|id| notice_id::is_ours(input.marks, id));
    let mut guard = Guard { input, read, sender, automatic, trusted, answers, of_notice, fresh: BTreeMap::new() };
    let mut verdicts = Vec::with_capacity(input.recipients.len());
    for recipient in input.recipients {
        verdicts.push(guard.recipient(recipient)?);
    }
    Ok(Ruling { verdicts, automatic, answers: guard.answers, writes: guard.fresh.into_iter().collect() })
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
    answers: Option<Sent>,
    /// It names a notice of ours.
    of_notice: bool,
    /// What this message will write. Two recipients with one key are one message there.
    fresh: BTreeMap<Vec<u8>, Vec<u8>>,
}

type Writes = Vec<(Vec<u8>, Vec<u8>)>;

impl<R: Fn(&[u8]) -> Result<Option<Vec<u8>>, StoreError>> Guard<'_, R> {
    fn recipient(&mut self, recipient: &Inbound) -> Result<Verdict, StoreError> {
        let mut writes = Vec::new();
        let verdict = match self.before_limits(recipient, &mut writes)? {
            Some(verdict) => verdict,
            None => self.limits(recipient, &mut writes)?.unwrap_or(Verdict::Pass),
        };
        if verdict == Verdict::Pass {
            self.fresh.extend(writes);
        }
        Ok(verdict)
    }

    /// What trust does not help against.
    fn before_limits(&self, recipient: &Inbound, writes: &mut Writes) -> Result<Option<Verdict>, StoreError> {
        let Input { config, headers, hostname, marks, door, .. } = self.input;
        let Inbound { address, limits, always, .. } = recipient;
        if let Some(reason) = trace::been_here(headers, hostname, marks, address) {
            return Ok(Some(Verdict::Loop { reason }));
        }
        // A person may ask the postmaster about a notice.
        if self.of_notice && matches!(door, Door::Mx { .. }) && (self.automatic.is_some() || !always) {
            let reason = format!("an answer to a notice of this server, for {address}");
            return Ok(Some(Verdict::OwnNotice { reason }));
        }
        if let Some(key) = copy_key(self.input, recipient) {
            let period = self.period(recipient);
            if !self.times(&key, period)?.is_empty() {
                let what =
                    if recipient.via == Via::Catchall { "a message with this Message-ID" } else { "this message" };
                return Ok(Some(Verdict::Duplicate { reason: format!("{what} came for {address} already") }));
            }
            writes.push((key, entry::entry(&[], period, self.input.now)));
        }
        let policy = limits.automatic.unwrap_or(config.automatic);
        match self.automatic {
            Some(sign) if policy != OnAutomatic::Accept && !always => {
                let reason = format!("automatic mail ({sign}) for {address}");
                Ok(Some(Verdict::Automatic { reason, policy }))
            }
            _ => Ok(None),
        }
    }

    fn limits(&self, recipient: &Inbound, writes: &mut Writes) -> Result<Option<Verdict>, StoreError> {
        if self.trusted || recipient.exempt {
            return Ok(None);
        }
        let limit = self.limit(recipient);
        // Two machines can answer each other, too: what says that it is automatic has no right to a
        // conversation, unless nothing else is taken.
        let thread = self.answers.as_ref().filter(|_| self.automatic.is_none() || limit == 0);
        let violation = match thread {
            Some(sent) => self.thread(recipient, sent, writes)?,
            None => self.newly(recipient, limit, writes)?,
        };
        match violation {
            Some(violation) => Ok(Some(violation)),
            None => self.same_text(recipient, thread, writes),
        }
    }

    fn limit(&self, recipient: &Inbound) -> usize {
        let limit = recipient.limits.limit.unwrap_or(self.input.config.limit) as usize;
        match recipient.always {
            true => limit.max(ALWAYS_MIN),
            false => limit,
        }
    }

    /// So many messages in a period that begin something.
    fn newly(&self, recipient: &Inbound, limit: usize, writes: &mut Writes) -> Result<Option<Verdict>, StoreError> {
        let to = shown(&recipient.address.to_string());
        if limit == 0 {
            let reason = format!("{to} takes answers to our messages only, no new ones");
            return Ok(Some(Verdict::Violation { reason, retry_after: None }));
        }
        let by_sender = self.input.config.key == LoopKey::SenderAndAlias && recipient.via != Via::Returned;
        let from = if by_sender { format!(" from {}", shown(&self.sender.key)) } else { String::new() };
        let key = limit_key(self.input.config, recipient, &self.sender);
        if let Some(violation) = self.room(recipient, key, limit, &format!("{from} to {to}"), writes)? {
            return Ok(Some(violation));
        }
        let Some((key, limit)) = domain_limit(self.input, recipient, &self.sender) else { return Ok(None) };
        let domain = self.sender.address.as_ref().map(|address| address.domain().to_string()).unwrap_or_default();
        self.room(recipient, key, limit, &format!(" from {domain} to {to}"), writes)
    }

    /// So many on a thread that we know, and not too many on all of them.
    fn thread(&self, recipient: &Inbound, sent: &Sent, writes: &mut Writes) -> Result<Option<Verdict>, StoreError> {
        let limit = self.input.config.replies as usize;
        let (alias, sender) = (recipient.counted_as.as_bytes(), self.sender.key.as_bytes());
        let about = format!(" from {} to {}", shown(&self.sender.key), shown(&recipient.address.to_string()));
        let thread = sent.thread.to_string();
        let key = entry::key(KIND_THREAD, &[thread.as_bytes(), alias, sender]);
        let on_one = format!("{about} on one thread");
        if let Some(violation) = self.room(recipient, key, limit, &on_one, writes)? {
            return Ok(Some(violation));
        }
        match together(limit) {
            Some(limit) => self.room(recipient, entry::key(KIND_ANSWERS, &[alias, sender]), limit, &about, writes),
            None => Ok(None),
        }
    }

    /// Is there room under a limit?
    fn room(
        &self,
        recipient: &Inbound,
        key: Vec<u8>,
        limit: usize,
        about: &str,
        writes: &mut Writes,
    ) -> Result<Option<Verdict>, StoreError> {
        let period = self.period(recipient);
        let times = self.times(&key, period)?;
        let newest = &times[times.len().saturating_sub(limit)..];
        if let Some(oldest) = newest.first().filter(|_| newest.len() == limit) {
            let retry_after = oldest.saturating_add(period);
            let reason = format!(
                "too many messages{about}: {limit} within {} are accepted, try again after {}",
                period_text(period),
                utc(retry_after)
            );
            return Ok(Some(Verdict::Violation { reason, retry_after: Some(retry_after) }));
        }
        writes.push((key, entry::entry(newest, period, self.input.now)));
        Ok(None)
    }

    /// The second copy of a text at the catchall, where nobody expects mail: two machines. Answers on two
    /// threads may say the same.
    fn same_text(
        &self,
        recipient: &Inbound,
        thread: Option<&Sent>,
        writes: &mut Writes,
    ) -> Result<Option<Verdict>, StoreError> {
        if recipient.via != Via::Catchall {
            return Ok(None);
        }
        let Input { headers, content, .. } = self.input;
        let print = sender::fingerprint(headers, content, &self.sender.key, &recipient.address);
        let thread = thread.map(|sent| sent.thread.to_string()).unwrap_or_default();
        let key = key(KIND_FINGERPRINT, &[recipient.address.lookup_key().as_bytes(), thread.as_bytes(), &print]);
        let period = self.period(recipient);
        if let Some(last) = self.times(&key, period)?.last() {
            let retry_after = last.saturating_add(period);
            let reason = format!(
                "the same message from {} to {} again within {}, try again after {}",
                shown(&self.sender.key),
                shown(&recipient.address.to_string()),
                period_text(period),
                utc(retry_after)
            );
            return Ok(Some(Verdict::Violation { reason, retry_after: Some(retry_after) }));
        }
        writes.push((key, entry::entry(&[], period, self.input.now)));
        Ok(None)
    }

    fn period(&self, recipient: &Inbound) -> Millis {
        let period = recipient.limits.period.unwrap_or(self.input.config.period);
        u64::try_from(period.as_millis()).unwrap_or(u64::MAX)
    }

    /// The times under a key that still count, oldest first.
    fn times(&self, key: &[u8], period: Millis) -> Result<Vec<Millis>, StoreError> {
        Ok(entry::times((self.read)(key)?.as_deref(), period, self.input.now))
    }
}

fn limit_key(config: &Loops, recipient: &Inbound, sender: &Sender) -> Vec<u8> {
    let alias = recipient.counted_as.as_bytes();
    match config.key {
        // Whoever has seen the return path of a message can write to it, and as anybody.
        _ if recipient.via == Via::Returned => key(KIND_LIMIT, &[alias]),
        LoopKey::SenderAndAlias => key(KIND_LIMIT, &[alias, sender.key.as_bytes()]),
        LoopKey::Alias => key(KIND_LIMIT, &[alias]),
    }
}

/// The counter of all senders of a domain, because a machine may answer by another address than the one that
/// was written to. Not for providers whose customers have nothing to do with each other.
fn domain_limit(input: &Input<'_>, recipient: &Inbound, sender: &Sender) -> Option<(Vec<u8>, usize)> {
    let counts = input.config.key == LoopKey::SenderAndAlias
        && recipient.via != Via::Returned
        && matches!(input.door, Door::Mx { .. });
    let domain = sender.address.as_ref().map(Address::domain).filter(|domain| counts && !free_mail::is(domain))?;
    let limit = together(recipient.limits.limit.unwrap_or(input.config.limit) as usize)?;
    Some((key(KIND_DOMAIN, &[recipient.counted_as.as_bytes(), domain.as_str().as_bytes()]), limit.max(ALWAYS_MIN)))
}

fn together(limit: usize) -> Option<usize> {
    limit.checked_mul(TOGETHER).filter(|limit| *limit <= TOGETHER_MAX)
}

/// By what another copy of a message from outside is known. At the catchall, and for bounces on their way
/// back, that is its Message-ID; elsewhere it must be the same message in all, because an alias may
/// rightly get one by way of two lists.
fn copy_key(input: &Input<'_>, recipient: &Inbound) -> Option<Vec<u8>> {
    if !matches!(input.door, Door::Mx { .. }) {
        return None;
    }
    let id = header::message_id(input.headers.get("Message-ID")?.value)?;
    let address = recipient.address.lookup_key();
    Some(match recipient.via {
        Via::Alias => key(KIND_COPY, &[address.as_bytes(), &sender::copy_hash(input.headers, &id)]),
        Via::Catchall | Via::Returned => key(KIND_MESSAGE_ID, &[address.as_bytes(), &sender::message_id_hash(&id)]),
    })
}

#[cfg(test)]
mod tests;
