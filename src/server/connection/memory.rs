//! Memory for message bodies: one budget for all connections (`queue.memory`), and one message as it
//! grows within it.
//!
//! A message pays for the capacity it holds, in steps of [`STEP_BYTES`], before it holds it. Where the
//! budget is used up the reading stops (the client's sends then wait) for at most [`WAIT`]. One client
//! from outside gets a share of the budget, or it could keep everybody else out with a few messages
//! that it begins and does not end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::server::limits::Client;

/// Bytes that are paid for at once.
pub const STEP_BYTES: usize = 64 * 1024;
/// How long a message waits for others to make room; then 452.
pub const WAIT: Duration = Duration::from_secs(10);
/// A declared size is reserved only up to so many times what has come: a promise costs a client
/// nothing, and must not use up the memory of others.
const DECLARED_GROWTH: usize = 4;
/// One client's share of the budget, as a divisor; but one message of the largest size always fits.
const CLIENT_SHARE: usize = 4;
/// Bytes reserved for a message of unknown size.
const FIRST_BYTES: usize = 8 * 1024;
/// Steps beyond the largest message that growing to it may take.
const SPARE_STEPS: usize = 4;
/// Beyond the declared size: the final dot and some stuffed ones, which are part of the reads.
const DECLARED_SLACK_BYTES: usize = 1024;

/// The budget.
#[derive(Clone, Debug)]
pub struct MessageMemory {
    steps: Arc<Semaphore>,
    steps_max: u32,
    /// Of clients that have messages under way, and some that had.
    shares: Arc<Mutex<HashMap<Client, Weak<Semaphore>>>>,
}

/// What a message draws on: the budget, and the share of its client if it has one.
#[derive(Clone, Debug, Default)]
pub struct Share(Option<Arc<Semaphore>>);

/// Memory that is paid for. Dropping it gives it back.
#[derive(Debug, Default)]
pub struct Paid {
    all: Option<OwnedSemaphorePermit>,
    own: Option<OwnedSemaphorePermit>,
}

impl Paid {
    fn steps(&self) -> usize {
        self.all.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    fn add(&mut self, all: OwnedSemaphorePermit, own: Option<OwnedSemaphorePermit>) -> bool {
        merge(&mut self.all, Some(all));
        merge(&mut self.own, own);
        true
    }
}

fn merge(held: &mut Option<OwnedSemaphorePermit>, more: Option<OwnedSemaphorePermit>) {
    match (held, more) {
        (Some(held), Some(more)) => held.merge(more),
        (held, Some(more)) => *held = Some(more),
        (_, None) => {}
    }
}

impl MessageMemory {
    /// `bytes`: at least one step.
    pub fn new(bytes: u64) -> MessageMemory {
        let steps_max = u32::try_from(bytes / STEP_BYTES as u64).unwrap_or(u32::MAX).max(1);
        MessageMemory { steps: Arc::new(Semaphore::new(steps_max as usize)), steps_max, shares: Arc::default() }
    }

    /// Bytes that nobody holds.
    pub fn free_bytes(&self) -> u64 {
        self.steps.available_permits() as u64 * STEP_BYTES as u64
    }

    /// The share of a client from outside. `largest`: bytes of the largest message.
    pub(in crate::server) fn share_of(&self, client: Client, largest: u64) -> Share {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(&client).and_then(Weak::upgrade) {
            return Share(Some(share));
        }
        if shares.len().is_power_of_two() {
            shares.retain(|_, share| share.strong_count() > 0);
        }
        let one_message =
            usize::try_from(largest / STEP_BYTES as u64).unwrap_or(usize::MAX).saturating_add(SPARE_STEPS);
        let steps = (self.steps_max as usize / CLIENT_SHARE).max(one_message).min(self.steps_max as usize);
        let share = Arc::new(Semaphore::new(steps));
        shares.insert(client, Arc::downgrade(&share));
        Share(Some(share))
    }

    /// Pays for so many bytes altogether, if that is possible at once.
    fn pay(&self, share: &Share, paid: &mut Paid, bytes: usize) -> bool {
        let more = self.missing(paid, bytes);
        if more == 0 {
            return true;
        }
        let own = match &share.0 {
            None => None,
            Some(share) => match share.clone().try_acquire_many_owned(more) {
                Ok(own) => Some(own),
                Err(_) => return false,
            },
        };
        self.steps.clone().try_acquire_many_owned(more).is_ok_and(|all| paid.add(all, own))
    }

    /// Pays when others have given memory back. False: not within [`WAIT`], or never.
    async fn wait_and_pay(&self, share: &Share, paid: &mut Paid, bytes: usize) -> bool {
        let more = self.missing(paid, bytes);
        // More than there is at all is not worth a wait.
        if bytes.div_ceil(STEP_BYTES) > self.steps_max as usize {
            return false;
        }
        let acquire = async {
            let own = match &share.0 {
                None => None,
                Some(share) => Some(share.clone().acquire_many_owned(more).await.ok()?),
            };
            Some((self.steps.clone().acquire_many_owned(more).await.ok()?, own))
        };
        let acquired = tokio::time::timeout(WAIT, acquire).await.ok().flatten();
        acquired.is_some_and(|(all, own)| paid.add(all, own))
    }

    fn missing(&self, paid: &Paid, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(STEP_BYTES).saturating_sub(paid.steps())).unwrap_or(u32::MAX)
    }
}

/// A message body that is being read.
#[derive(Debug)]
pub struct Content {
    pub bytes: Vec<u8>,
    share: Share,
    paid: Paid,
    /// What SIZE declared: the capacity to grow to, without going past it.
    declared: Option<usize>,
    /// Bytes: the largest message that is taken.
    max: usize,
    no_room: bool,
}

impl Content {
    pub fn new(declared: Option<u64>, max: u64, share: Share) -> Content {
        let [declared, max] =
            [declared, Some(max)].map(|size| size.map(|size| usize::try_from(size).unwrap_or(usize::MAX)));
        let max = max.unwrap_or(usize::MAX);
        Content { bytes: Vec::new(), share, paid: Paid::default(), declared, max, no_room: false }
    }

    /// For what is only drained.
    pub fn none() -> Content {
        Content { no_room: true, ..Content::new(None, 0, Share::default()) }
    }

    /// Makes room for so many bytes more, if there is any at once.
    pub fn make_room(&mut self, more: usize, memory: &MessageMemory) -> bool {
        let capacity = self.capacity_for(more);
        !self.no_room && memory.pay(&self.share, &mut self.paid, capacity) && self.reserve(capacity)
    }

    /// Makes room, or gives the message up: false.
    pub async fn wait_for_room(&mut self, more: usize, memory: &MessageMemory) -> bool {
        let capacity = self.capacity_for(more);
        if !self.no_room && memory.wait_and_pay(&self.share, &mut self.paid, capacity).await {
            return self.reserve(capacity);
        }
        self.let_go();
        self.no_room = true;
        false
    }

    fn reserve(&mut self, capacity: usize) -> bool {
        self.bytes.reserve_exact(capacity - self.bytes.len());
        true
    }

    /// What to hold so that so many bytes more fit, and some to come.
    fn capacity_for(&self, more: usize) -> usize {
        let needed = self.bytes.len().saturating_add(more);
        if needed <= self.bytes.capacity() {
            return self.bytes.capacity();
        }
        let declared =
            self.declared.map(|size| size.saturating_add(DECLARED_SLACK_BYTES)).filter(|size| *size >= needed);
        let grown = match declared {
            Some(size) => size.min(needed.saturating_mul(DECLARED_GROWTH)),
            None => self.bytes.capacity().saturating_mul(2).max(FIRST_BYTES),
        };
        needed.max(grown.min(self.max.saturating_add(STEP_BYTES)))
    }

    /// Gives the memory back at once.
    pub fn let_go(&mut self) {
        self.bytes = Vec::new();
        self.paid = Paid::default();
    }

    /// There was no room at some point: what is here is not the message.
    pub fn lacks_room(&self) -> bool {
        self.no_room
    }

    /// The message, and what pays for it for as long as it is held.
    pub fn finish(self) -> (Bytes, Paid) {
        (Bytes::from(self.bytes), self.paid)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn memory_is_paid_for_before_it_is_held_and_given_back() {
        let memory = MessageMemory::new(4 * STEP_BYTES as u64);
        let mut content = Content::new(None, 1 << 20, Share::default());
        assert!(content.make_room(10, &memory));
        assert_eq!(memory.free_bytes(), 3 * STEP_BYTES as u64);
        content.bytes.resize(STEP_BYTES, 0);
        assert!(content.make_room(1, &memory));
        assert!(content.bytes.capacity() <= 2 * STEP_BYTES);
        assert_eq!(memory.free_bytes(), 2 * STEP_BYTES as u64);
        let (bytes, paid) = content.finish();
        assert_eq!(bytes.len(), STEP_BYTES);
        assert_eq!(memory.free_bytes(), 2 * STEP_BYTES as u64);
        drop(paid);
        assert_eq!(memory.free_bytes(), 4 * STEP_BYTES as u64);
    }

    #[test]
    fn a_declared_size_saves_copies_but_is_not_believed() {
        let memory = MessageMemory::new(100 << 20);
        let mut content = Content::new(Some(300_000), 1 << 20, Share::default());
        assert!(content.make_room(100_000, &memory));
        let reserved = content.bytes.capacity();
        content.bytes.resize(299_000, 0);
        assert!(content.make_room(1_005, &memory));
        assert_eq!(content.bytes.capacity(), reserved, "one allocation was enough");
        let mut boaster = Content::new(Some(u64::MAX), 1 << 30, Share::default());
        assert!(boaster.make_room(10_000, &memory));
        assert!(boaster.bytes.capacity() <= DECLARED_GROWTH * 10_000);
        // Less declared than sent: no copy for each read.
        let mut liar = Content::new(Some(10), 1 << 20, Share::default());
        let mut capacities = std::collections::BTreeSet::new();
        for _ in 0..1_000 {
            assert!(liar.make_room(1_000, &memory));
            liar.bytes.extend_from_slice(&[0; 1_000]);
            capacities.insert(liar.bytes.capacity());
        }
        assert!(capacities.len() < 12, "{capacities:?}");
    }

    #[tokio::test]
    async fn what_can_never_fit_is_refused_without_a_wait() {
        let memory = MessageMemory::new(2 * STEP_BYTES as u64);
        let mut content = Content::new(None, 1 << 20, Share::default());
        assert!(content.make_room(STEP_BYTES, &memory));
        assert!(!content.wait_for_room(3 * STEP_BYTES, &memory).await);
        assert!(content.lacks_room());
        assert_eq!(memory.free_bytes(), 2 * STEP_BYTES as u64, "and holds nothing while it is drained");
        assert!(!content.make_room(1, &memory), "a message with a hole is not continued");
    }

    #[tokio::test]
    async fn one_client_cannot_hold_all_of_the_memory() {
        let memory = MessageMemory::new(64 * STEP_BYTES as u64);
        let client = |text: &str| Client::of(text.parse().unwrap());
        let largest = 8 * STEP_BYTES as u64;
        let begin = |text: &str| Content::new(None, largest, memory.share_of(client(text), largest));
        let mut held = Vec::new();
        for _ in 0..100 {
            let mut content = begin("192.0.2.1");
            if content.make_room(8 * STEP_BYTES, &memory) {
                held.push(content);
            }
        }
        assert_eq!(held.len(), 2, "a quarter of the budget");
        assert!(begin("192.0.2.2").make_room(8 * STEP_BYTES, &memory));
        held.pop();
        assert!(begin("::ffff:192.0.2.1").make_room(8 * STEP_BYTES, &memory), "what is given back can be had again");
        drop(held);
        assert_eq!(memory.free_bytes(), 64 * STEP_BYTES as u64);
        for number in 0..5000u32 {
            drop(memory.share_of(Client::of(std::net::IpAddr::from(number.to_be_bytes())), largest));
        }
        assert!(memory.shares.lock().unwrap().len() <= 2, "clients that have gone are forgotten");
        // However small the budget: a message of the largest size fits into a share.
        let small = MessageMemory::new(12 * STEP_BYTES as u64);
        let mut content = Content::new(None, largest, small.share_of(client("192.0.2.1"), largest));
        assert!(content.make_room(8 * STEP_BYTES, &small));
    }
}
