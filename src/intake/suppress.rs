//! The suppression list of a running server: who is on it, what counts towards it, and what people change.
//!
//! What an address has behind it is read and written under a lock of its own, which is kept until the batch
//! with the new state is written: of two bounces at once, one sees the other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Mutex, MutexGuard};

use crate::bounce::classify::classify;
use crate::bounce::suppression::{
    self, Entry, Event, GLOBAL, Known, Listed, Reason, Weighed, Who, read_entry, suppressing, weigh,
};
use crate::clock::{Clock, Millis};
use crate::config::Config;
use crate::message::{Address, Door, MessageId, stream};
use crate::queue::Queue;
use crate::queue::record::{Failure, Message};
use crate::store::{Batch, StoreError, Table};

/// Locks of addresses.
const LOCKS: usize = 64;
/// Entries looked at in one go.
const SLICE: usize = 1000;

#[derive(Debug)]
pub struct Suppression {
    config: Arc<Config>,
    clock: Clock,
    queue: Arc<Queue>,
    locks: Arc<Vec<Mutex<()>>>,
    /// False: the list is empty, and need not be looked at.
    is_used: Arc<AtomicBool>,
}

/// What keeps the addresses that a batch is about.
pub type Guards<'a> = Vec<MutexGuard<'a, ()>>;

/// What a person wants on the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    pub who: Who,
    /// None: every stream whose mail skips such addresses.
    pub scope: Option<String>,
    pub reason: Reason,
    /// Now, if it is not said.
    pub since: Option<Millis>,
    pub expires: Option<Millis>,
}

/// Why something cannot be done to the list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuppressError {
    #[error("there is no stream named {0:?}, and it is not \"{GLOBAL}\"")]
    NoScope(String),
    #[error("mail of the stream {0} skips nobody")]
    Skips(String),
    #[error("no stream skips addresses that are on the list")]
    NoneSkips,
    #[error("{0} has complained")]
    Complained(String),
    #[error("{0}")]
    Store(String),
}

impl From<StoreError> for SuppressError {
    fn from(error: StoreError) -> SuppressError {
        SuppressError::Store(error.to_string())
    }
}

impl Suppression {
    pub fn new(config: Arc<Config>, clock: Clock, queue: Arc<Queue>) -> Result<Suppression, StoreError> {
        let first = queue.store().prefix(Table::Meta, &suppression::entries_from(""))?.next().transpose()?;
        let locks = Arc::new((0..LOCKS).map(|_| Mutex::new(())).collect());
        Ok(Suppression { config, clock, queue, locks, is_used: Arc::new(AtomicBool::new(first.is_some())) })
    }

    /// The same list under another configuration.
    pub fn with_config(&self, config: Arc<Config>) -> Suppression {
        let (clock, queue) = (self.clock.clone(), self.queue.clone());
        Suppression { config, clock, queue, locks: self.locks.clone(), is_used: self.is_used.clone() }
    }

    /// The entry for which mail of this stream is not sent to this address.
    pub fn listed(&self, stream: &str, address: &Address) -> Result<Option<Listed>, StoreError> {
        if !self.is_used.load(Ordering::Acquire) {
            return Ok(None);
        }
        self.find(address, &suppression::scopes(&self.config, stream))
    }

    fn find(&self, address: &Address, scopes: &[&str]) -> Result<Option<Listed>, StoreError> {
        let now = self.clock.now();
        let keys = suppression::keys_for(address, scopes);
        for (key, value) in keys.iter().zip(self.queue.store().get_many(Table::Meta, &keys)) {
            if let Some(listed) = value?.and_then(|value| read_entry(key, &value, now)) {
                return Ok(Some(listed));
            }
        }
        Ok(None)
    }

    /// Why a recipient of a message of ours gets nothing; none if it does.
    pub fn skips(&self, message: &Message, address: &Address) -> Result<Option<String>, StoreError> {
        if !counts(&message.origin.door) {
            return Ok(None);
        }
        Ok(self.listed(&message.stream, address)?.as_ref().map(why))
    }

    pub async fn lock(&self, addresses: impl IntoIterator<Item = &Address>) -> Guards<'_> {
        let stripe = |address: &Address| {
            address.lookup_key().bytes().fold(7usize, |sum, byte| sum.wrapping_mul(31) + usize::from(byte)) % LOCKS
        };
        // In order, so that two never wait for each other.
        let stripes: BTreeSet<usize> = addresses.into_iter().map(stripe).collect();
        let mut guards = Vec::with_capacity(stripes.len());
        for lock in stripes.into_iter().filter_map(|stripe| self.locks.get(stripe)) {
            guards.push(lock.lock().await);
        }
        guards
    }

    fn known(&self, address: &Address) -> Result<Known, StoreError> {
        let store = self.queue.store();
        let scan = |prefix: &[u8], most: usize| {
            let entries = store.prefix(Table::Loops, prefix)?.take(most);
            entries.map(|entry| entry.map(|(_, value)| value.to_vec())).collect()
        };
        suppression::known(address, self.clock.now(), scan, |key| store.get(Table::Loops, key))
    }

    /// Notes that mail came back from an address, and puts it on the list if that is too much. Under its
    /// lock. False: the bounce of this message is known already.
    pub fn note(&self, address: &Address, event: Event, batch: &mut Batch) -> Result<bool, StoreError> {
        let mut known = self.known(address)?;
        if known.events.iter().any(|earlier| earlier.message == event.message) {
            return Ok(false);
        }
        let rule = &self.config.bounces;
        suppression::put_event(batch, rule, address, &event);
        known.events.push(event);
        let now = self.clock.now();
        let weighed = weigh(rule, &known.events, known.alive, now);
        if weighed.met {
            self.put_all(address, &weighed.entry(now), batch)?;
            tracing::info!(%address, why = weighed.why, "on the suppression list");
        }
        Ok(true)
    }

    /// For every stream whose mail skips such addresses. What is there already stays.
    fn put_all(&self, address: &Address, entry: &Entry, batch: &mut Batch) -> Result<(), StoreError> {
        let who = address.lookup_key();
        for scope in suppressing(&self.config) {
            let key = suppression::entry_key(&who, scope);
            let there = self.queue.store().get(Table::Meta, &key)?;
            let there = there.and_then(|value| read_entry(&key, &value, self.clock.now()));
            let is_worse = |there: &Listed| entry.reason == Reason::Complaint && there.entry.reason != entry.reason;
            if there.as_ref().is_none_or(is_worse) {
                suppression::put_entry(batch, &who, scope, entry);
                self.is_used.store(true, Ordering::Release);
            }
        }
        Ok(())
    }

    /// Puts an address on the list at once, whose owner has complained. Under its lock.
    pub fn complained(&self, address: &Address, message: MessageId, batch: &mut Batch) -> Result<(), StoreError> {
        let entry = Entry { evidence: vec![message], ..Entry::new(Reason::Complaint, self.clock.now()) };
        self.put_all(address, &entry, batch)
    }

    /// An address is in use: what came back from it counts no more. Under its lock.
    pub fn alive(&self, address: &Address, batch: &mut Batch) -> Result<(), StoreError> {
        if self.config.bounces.reset_on_inbound && !self.known(address)?.events.is_empty() {
            suppression::put_alive(batch, &self.config.bounces, address, self.clock.now());
        }
        Ok(())
    }

    /// Has anything come back from it that counts?
    pub fn has_bounced(&self, address: &Address) -> Result<bool, StoreError> {
        let mut entries = self.queue.store().prefix(Table::Loops, &suppression::events_prefix(address))?;
        Ok(entries.next().transpose()?.is_some())
    }

    /// What our own tries have found out: refusals that are final, by the servers of the addresses.
    pub async fn refused(
        &self,
        message: &Message,
        failed: &[(&Address, &Failure)],
    ) -> Result<(Batch, Guards<'_>), StoreError> {
        let mut batch = Batch::new();
        let is_told =
            |failure: &Failure| failure.reply.is_some() || matches!(failure.status.as_str(), "5.1.2" | "5.1.10");
        let about = |(_, failure): &&(&Address, &Failure)| is_told(failure) && !failure.of_sender;
        let failed: Vec<_> = failed.iter().filter(about).collect();
        if failed.is_empty() || !counts(&message.origin.door) {
            return Ok((batch, Vec::new()));
        }
        let guards = self.lock(failed.iter().map(|(address, _)| *address)).await;
        for (address, failure) in failed {
            let said = failure.reply.as_ref().map_or(failure.reason.as_str(), |reply| &reply.text);
            let class = classify(&failure.status, said);
            let event = Event {
                at: self.clock.now(),
                class,
                message: message.id,
                direct: true,
                status: failure.status.clone(),
            };
            self.note(address, event, &mut batch)?;
        }
        Ok((batch, guards))
    }
}

/// What people see and change.
impl Suppression {
    /// Entries in the order of their addresses, after this one, at most so many.
    pub fn list(&self, after: Option<(&str, &str)>, most: usize) -> Result<Vec<Listed>, StoreError> {
        let now = self.clock.now();
        let prefix = suppression::entries_from("");
        let mut end = prefix.clone();
        end.push(0xff);
        let from = after.map_or(prefix, |(who, scope)| [suppression::entry_key(who, scope), vec![0]].concat());
        let entries = self.queue.store().range(Table::Meta, &from, &end)?;
        let mut found = Vec::new();
        for entry in entries {
            let (key, value) = entry?;
            found.extend(read_entry(&key, &value, now));
            if found.len() >= most {
                break;
            }
        }
        Ok(found)
    }

    /// Puts them on the list, durably; gives how many are new or changed.
    pub async fn add(&self, entries: Vec<NewEntry>) -> Result<usize, SuppressError> {
        for scope in entries.iter().filter_map(|entry| entry.scope.as_deref()) {
            self.check_scope(scope)?;
        }
        let all: Vec<String> = suppressing(&self.config).map(str::to_owned).collect();
        if all.is_empty() && entries.iter().any(|entry| entry.scope.is_none()) {
            return Err(SuppressError::NoneSkips);
        }
        let each = entries.into_iter().flat_map(|entry| {
            let scopes = entry.scope.as_ref().map_or_else(|| all.clone(), |scope| vec![scope.clone()]);
            scopes.into_iter().map(move |scope| (scope, entry.clone()))
        });
        let (now, mut batch, mut changed) = (self.clock.now(), Batch::new(), 0);
        for (scope, NewEntry { who, scope: _, reason, since, expires }) in each {
            let (who, entry) = (who.key(), Entry { expires, ..Entry::new(reason, since.unwrap_or(now)) });
            let key = suppression::entry_key(&who, &scope);
            let there = self.queue.store().get(Table::Meta, &key)?.and_then(|value| read_entry(&key, &value, now));
            // A complaint weighs more than what a person says without knowing of it.
            let stays = |there: &Listed| match there.entry.reason {
                Reason::Complaint if reason != Reason::Complaint => true,
                known => known == reason && there.entry.expires == expires,
            };
            if !there.as_ref().is_some_and(stays) {
                suppression::put_entry(&mut batch, &who, &scope, &entry);
                changed += 1;
            }
        }
        if changed > 0 {
            self.is_used.store(true, Ordering::Release);
            self.queue.commit(batch, true).await?;
        }
        Ok(changed)
    }

    fn check_scope(&self, scope: &str) -> Result<(), SuppressError> {
        match self.config.streams.get(scope) {
            _ if scope == GLOBAL => Ok(()),
            None => Err(SuppressError::NoScope(scope.chars().take(100).collect())),
            Some(settings) if !settings.suppress || scope == stream::SECURITY => {
                Err(SuppressError::Skips(scope.to_owned()))
            }
            Some(_) => Ok(()),
        }
    }

    /// Takes them off the list, in one scope or in all; bounces from before do not count any more. Who has
    /// complained stays, unless that is meant (`force`). Gives how many entries are gone.
    pub async fn remove(&self, whom: &[Who], scope: Option<&str>, force: bool) -> Result<usize, SuppressError> {
        let addresses = whom.iter().filter_map(|who| match who {
            Who::Address(address) => Some(address),
            Who::Domain(_) => None,
        });
        let addresses: Vec<&Address> = addresses.collect();
        let _guards = self.lock(addresses.iter().copied()).await;
        let (now, mut batch, mut removed) = (self.clock.now(), Batch::new(), 0);
        for who in whom.iter().map(Who::key) {
            let from = suppression::entry_key(&who, "");
            for entry in self.queue.store().prefix(Table::Meta, &from)? {
                let (key, value) = entry?;
                let Some(listed) = read_entry(&key, &value, now) else { continue };
                if scope.is_some_and(|scope| scope != listed.scope) {
                    continue;
                }
                if listed.entry.reason == Reason::Complaint && !force {
                    return Err(SuppressError::Complained(who));
                }
                batch.delete(Table::Meta, key);
                removed += 1;
            }
        }
        for address in addresses {
            if self.has_bounced(address)? {
                suppression::put_alive(&mut batch, &self.config.bounces, address, now);
            }
        }
        if !batch.is_empty() {
            self.queue.commit(batch, true).await?;
        }
        Ok(removed)
    }

    /// Takes away what has held for a time that is over, a slice at a time.
    pub async fn forget_expired(&self) -> Result<(), StoreError> {
        let mut from = suppression::entries_from("");
        let end = [from.as_slice(), &[0xff]].concat();
        loop {
            let (mut batch, mut seen) = (Batch::new(), 0);
            for entry in self.queue.store().range(Table::Meta, &from, &end)?.take(SLICE) {
                let (key, value) = entry?;
                if suppression::is_over(&value, self.clock.now()) {
                    batch.delete(Table::Meta, key.clone());
                }
                from = [&key, [0].as_slice()].concat();
                seen += 1;
            }
            if !batch.is_empty() {
                self.queue.commit(batch, false).await?;
            }
            if seen < SLICE {
                return Ok(());
            }
            tokio::task::yield_now().await;
        }
    }

    /// What is known of an address: its entries (also those of its domain), what came back, and what the
    /// rule says of that.
    pub fn explain(&self, who: &Who) -> Result<(Vec<Listed>, Known, Option<Weighed>), StoreError> {
        let now = self.clock.now();
        let names = match who {
            Who::Address(address) => vec![address.lookup_key(), format!("@{}", address.domain())],
            Who::Domain(_) => vec![who.key()],
        };
        let mut listed = Vec::new();
        for name in names {
            for entry in self.queue.store().prefix(Table::Meta, &suppression::entry_key(&name, ""))? {
                let (key, value) = entry?;
                listed.extend(read_entry(&key, &value, now));
            }
        }
        let Who::Address(address) = who else { return Ok((listed, Known::default(), None)) };
        let known = self.known(address)?;
        let weighed = weigh(&self.config.bounces, &known.events, known.alive, now);
        Ok((listed, known, Some(weighed)))
    }
}

/// Mail of our own senders counts; what we only pass on, and our notices, do not.
fn counts(door: &Door) -> bool {
    door.is_trusted() && *door != Door::Bounce
}

/// One line for the story.
pub fn why(listed: &Listed) -> String {
    let Listed { address, scope, entry } = listed;
    let scope = if scope == GLOBAL { "for all streams".to_owned() } else { format!("for the stream {scope}") };
    format!("{address} is on the suppression list {scope} ({})", entry.reason.name())
}
