//! One message as it grows within the memory for bodies (`queue::memory`), and the share that each
//! client has of it.
//!
//! A message pays for the capacity it holds before it holds it. Where the budget is used up the
//! reading stops (the client's sends then wait) for at most [`WAIT`]. One client from outside gets a
//! share of the budget, or it could keep everybody else out with a few messages that it begins and
//! does not end.
//!
//! A message of no more than [`HEAD_BYTES`] is one piece in memory. Of a larger one that piece stays
//! there, and the rest goes on to the store in chunks, so that it holds two of them at most.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::message;
use crate::message::header::HEADER_BYTES_MAX;
use crate::queue::CHUNK_BYTES_MAX;
use crate::queue::body::BodyWriter;
use crate::queue::memory::{Held, Memory, STEP_BYTES, steps_of};
use crate::server::limits::Client;
use crate::server::outside::Outside;
use crate::smtp::reply::Refusal;
use crate::store::StoreError;

/// How long a message waits for others to make room; then 452.
pub const WAIT: Duration = Duration::from_secs(10);
/// Bytes of a message that stay in memory: its header section, and as much of its body as is looked at.
const HEAD_BYTES: usize = HEADER_BYTES_MAX + 128 * 1024;
/// A declared size is reserved only up to so many times what has come: a promise costs a client
/// nothing, and must not use up the memory of others.
const DECLARED_GROWTH: usize = 4;
/// One client's share of the budget, as a divisor; but one message of the largest size always fits.
const CLIENT_SHARE: usize = 4;
/// Bytes reserved for a message of unknown size.
const FIRST_BYTES: usize = 8 * 1024;
/// Bytes beyond the largest message that growing to it may take.
const SPARE_BYTES: usize = 64 * 1024;
/// Beyond the declared size: the final dot and some stuffed ones, which are part of the reads.
const DECLARED_SLACK_BYTES: usize = 1024;

/// The budget, as clients share it.
#[derive(Clone, Debug)]
pub struct MessageMemory {
    all: Memory,
    /// [`WAIT`], but for tests.
    wait: Duration,
    /// Of clients that have messages under way, and some that had.
    shares: Arc<Mutex<HashMap<Client, Weak<Semaphore>>>>,
}

/// What a message draws on: the budget, and the share of its client if it has one.
#[derive(Clone, Debug, Default)]
pub struct Share(Option<Arc<Semaphore>>);

/// What is taken of a client's share. Dropping it gives it back.
#[derive(Debug, Default)]
pub struct OwnPart(Option<OwnedSemaphorePermit>);

impl OwnPart {
    fn add(&mut self, more: OwnPart) {
        match (&mut self.0, more.0) {
            (Some(held), Some(more)) => held.merge(more),
            (held, Some(more)) => *held = Some(more),
            (_, None) => {}
        }
    }
}

/// Memory that is paid for. Dropping it gives it back.
#[derive(Debug, Default)]
struct Paid {
    all: Option<Held>,
    own: OwnPart,
}

impl Paid {
    fn steps(&self) -> usize {
        self.all.as_ref().map_or(0, Held::steps)
    }

    fn add(&mut self, all: Held, own: Option<OwnedSemaphorePermit>) -> bool {
        match &mut self.all {
            Some(held) => held.merge(all),
            none => *none = Some(all),
        }
        self.own.add(OwnPart(own));
        true
    }
}

impl MessageMemory {
    pub fn new(all: Memory) -> MessageMemory {
        MessageMemory { all, wait: WAIT, shares: Arc::default() }
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
        let one_message = steps_of(largest.saturating_add(SPARE_BYTES as u64)) as usize;
        let all = self.all.common_steps() as usize;
        let share = Arc::new(Semaphore::new((all / CLIENT_SHARE).max(one_message).min(all)));
        shares.insert(client, Arc::downgrade(&share));
        Share(Some(share))
    }

    /// Pays for so many bytes altogether, if that is possible at once.
    fn pay(&self, share: &Share, paid: &mut Paid, bytes: usize) -> bool {
        let more = missing(paid, bytes);
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
        self.all.try_take(more).is_some_and(|all| paid.add(all, own))
    }

    /// Pays when others have given memory back. False: not within [`WAIT`], or never.
    async fn wait_and_pay(&self, share: &Share, paid: &mut Paid, bytes: usize) -> bool {
        let more = missing(paid, bytes);
        // More than there is at all is not worth a wait.
        if bytes.div_ceil(STEP_BYTES) > self.all.common_steps() as usize {
            return false;
        }
        let acquire = async {
            let own = match &share.0 {
                None => None,
                Some(share) => Some(share.clone().acquire_many_owned(more).await.ok()?),
            };
            Some((self.all.take(more).await?, own))
        };
        let acquired = tokio::time::timeout(self.wait, acquire).await.ok().flatten();
        acquired.is_some_and(|(all, own)| paid.add(all, own))
    }
}

fn missing(paid: &Paid, bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(STEP_BYTES).saturating_sub(paid.steps())).unwrap_or(u32::MAX)
}

/// A message body that is being read.
#[derive(Debug)]
pub struct Content {
    /// What has come and is not passed on.
    pub bytes: Vec<u8>,
    share: Share,
    paid: Paid,
    /// What SIZE declared: the capacity to grow to, without going past it.
    declared: Option<usize>,
    /// Bytes: the largest message that is taken.
    max: usize,
    passed: Passed,
    lost: Option<Lost>,
}

/// What of a message is not in `bytes` any more.
#[derive(Debug)]
enum Passed {
    Nothing,
    /// There is nobody to pass it on to.
    Never,
    Rest(Box<(Bytes, OwnPart, BodyWriter)>),
}

/// Why what is here is not the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// There was no room at some point.
    NoRoom,
    /// The store failed.
    Unstored,
}

impl Content {
    pub fn new(declared: Option<u64>, max: u64, share: Share) -> Content {
        let [declared, max] =
            [declared, Some(max)].map(|size| size.map(|size| usize::try_from(size).unwrap_or(usize::MAX)));
        let max = max.unwrap_or(usize::MAX);
        let (bytes, paid, passed) = (Vec::new(), Paid::default(), Passed::Nothing);
        Content { bytes, share, paid, declared, max, passed, lost: None }
    }

    /// For what is only drained.
    pub fn none() -> Content {
        Content { lost: Some(Lost::NoRoom), ..Content::new(None, 0, Share::default()) }
    }

    /// Makes room for so many bytes more, if there is any at once.
    pub fn make_room(&mut self, more: usize, memory: &MessageMemory) -> bool {
        let capacity = self.capacity_for(more);
        self.lost.is_none() && memory.pay(&self.share, &mut self.paid, capacity) && self.reserve(capacity)
    }

    /// Makes room, of no more than is needed now, or gives the message up: false.
    pub async fn wait_for_room(&mut self, more: usize, memory: &MessageMemory) -> bool {
        let capacity = self.bytes.capacity().max(self.bytes.len().saturating_add(more));
        if self.lost.is_none() && memory.wait_and_pay(&self.share, &mut self.paid, capacity).await {
            return self.reserve(capacity);
        }
        self.lose(Lost::NoRoom);
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
        let most = match &self.passed {
            Passed::Nothing => HEAD_BYTES,
            Passed::Never => self.max.saturating_add(SPARE_BYTES),
            // It has shown that it is large.
            Passed::Rest(_) => return needed.max(CHUNK_BYTES_MAX),
        };
        let declared =
            self.declared.map(|size| size.saturating_add(DECLARED_SLACK_BYTES)).filter(|size| *size >= needed);
        let grown = match declared {
            Some(size) => size.min(needed.saturating_mul(DECLARED_GROWTH)),
            None => self.bytes.capacity().saturating_mul(2).max(FIRST_BYTES),
        };
        needed.max(grown.min(most).min(self.max.saturating_add(SPARE_BYTES)))
    }

    /// What is here should be passed on before so many bytes more are added.
    pub fn is_full(&self, more: usize) -> bool {
        let most = match &self.passed {
            Passed::Nothing => HEAD_BYTES,
            Passed::Rest(_) => CHUNK_BYTES_MAX,
            Passed::Never => return false,
        };
        self.lost.is_none() && !self.bytes.is_empty() && self.bytes.len().saturating_add(more) > most
    }

    /// A part of it is in the store, and what is here can follow at any time.
    pub fn has_passed_on(&self) -> bool {
        matches!(self.passed, Passed::Rest(_))
    }

    /// Passes on what is here. Where that cannot be, the message is given up.
    pub async fn pass_on(&mut self, outside: &impl Outside) -> Result<(), Refusal> {
        if let Err(refusal) = outside.room_for(self.bytes.len() as u64) {
            self.lose(Lost::NoRoom);
            return Err(refusal);
        }
        let passed = match &mut self.passed {
            Passed::Never => Ok(()),
            Passed::Nothing => {
                self.passed = match outside.begin_body(&self.bytes) {
                    None => Passed::Never,
                    Some(writer) => {
                        let (head, own) = self.take();
                        Passed::Rest(Box::new((head, own, writer)))
                    }
                };
                Ok(())
            }
            Passed::Rest(_) => self.push().await,
        };
        passed.map_err(|error| {
            self.lose(Lost::Unstored);
            Refusal::inner(error.to_string())
        })
    }

    async fn push(&mut self) -> Result<(), StoreError> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        let (chunk, _own) = self.take();
        match &mut self.passed {
            Passed::Rest(rest) => rest.2.push(chunk).await,
            _ => Ok(()),
        }
    }

    /// What is here, which pays for itself, and the client's part of that.
    fn take(&mut self) -> (Bytes, OwnPart) {
        let bytes = std::mem::take(&mut self.bytes);
        let Paid { all, own } = std::mem::take(&mut self.paid);
        let bytes = match all {
            Some(held) => held.bytes(bytes),
            None => bytes.into(),
        };
        (bytes, own)
    }

    /// Gives the memory back at once, and what was passed on is forgotten.
    pub fn let_go(&mut self) {
        self.bytes = Vec::new();
        self.paid = Paid::default();
        self.passed = Passed::Never;
    }

    fn lose(&mut self, lost: Lost) {
        self.let_go();
        self.lost = Some(lost);
    }

    /// What is here is not the message, and this is why.
    pub fn lost(&self) -> Option<Lost> {
        self.lost
    }

    /// The message, and the client's part of what it holds.
    pub async fn finish(mut self) -> Result<(message::Content, OwnPart), StoreError> {
        if matches!(self.passed, Passed::Rest(_)) {
            self.push().await?;
        }
        let (bytes, own) = self.take();
        match self.passed {
            Passed::Rest(rest) => {
                let (head, own, writer) = *rest;
                Ok((message::Content::new(head, Some(writer.finish())), own))
            }
            _ => Ok((bytes.into(), own)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    const KIB: usize = 1024;

    fn memory(kib: usize) -> (Memory, MessageMemory) {
        let all = Memory::new((kib * KIB) as u64);
        (all.clone(), MessageMemory::new(all))
    }

    #[tokio::test]
    async fn memory_is_paid_for_before_it_is_held_and_given_back() {
        let (all, memory) = memory(256);
        let mut content = Content::new(None, 1 << 20, Share::default());
        assert!(content.make_room(10, &memory));
        assert_eq!(all.used(), FIRST_BYTES as u64);
        content.bytes.resize(64 * KIB, 0);
        assert!(content.make_room(1, &memory));
        assert!(content.bytes.capacity() <= 128 * KIB);
        assert!(all.used() >= content.bytes.capacity() as u64);
        let (content, _own) = content.finish().await.unwrap();
        assert_eq!(content.len(), 64 * KIB as u64);
        let slice = content.head().slice(..1);
        drop(content);
        assert!(all.used() > 0, "somebody has a part of it");
        drop(slice);
        assert_eq!(all.used(), 0);
    }

    #[test]
    fn a_declared_size_saves_copies_but_is_not_believed() {
        let (_, memory) = memory(100 * KIB);
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
        for _ in 0..300 {
            assert!(liar.make_room(1_000, &memory));
            liar.bytes.extend_from_slice(&[0; 1_000]);
            capacities.insert(liar.bytes.capacity());
        }
        assert!(capacities.len() < 12, "{capacities:?}");
    }

    #[tokio::test]
    async fn what_can_never_fit_is_refused_without_a_wait() {
        let (all, memory) = memory(128);
        let mut content = Content::new(None, 1 << 20, Share::default());
        assert!(content.make_room(64 * KIB, &memory));
        assert!(!content.wait_for_room(192 * KIB, &memory).await);
        assert_eq!(content.lost(), Some(Lost::NoRoom));
        assert_eq!(all.used(), 0, "and holds nothing while it is drained");
        assert!(!content.make_room(1, &memory), "a message with a hole is not continued");
    }

    #[tokio::test]
    async fn what_does_not_come_back_in_time_is_not_waited_for_longer() {
        let (all, mut memory) = memory(128);
        memory.wait = Duration::from_millis(1);
        let others = all.take(all.common_steps()).await.unwrap();
        let mut content = Content::new(None, 1 << 20, Share::default());
        assert!(!content.make_room(1, &memory));
        assert!(!content.wait_for_room(1, &memory).await);
        assert_eq!(content.lost(), Some(Lost::NoRoom));
        // In time, it is.
        memory.wait = Duration::from_secs(60);
        let mut content = Content::new(None, 1 << 20, Share::default());
        let (has_room, ()) = tokio::join!(content.wait_for_room(1, &memory), async { drop(others) });
        assert!(has_room);
    }

    #[tokio::test]
    async fn one_client_cannot_hold_all_of_the_memory() {
        let (all, memory) = memory(4096);
        let client = |text: &str| Client::of(text.parse().unwrap());
        let largest = 256 * KIB as u64;
        let begin = |text: &str| Content::new(None, largest, memory.share_of(client(text), largest));
        let mut held = Vec::new();
        for _ in 0..100 {
            let mut content = begin("192.0.2.1");
            if content.make_room(256 * KIB, &memory) {
                held.push(content);
            }
        }
        assert_eq!(held.len(), 3, "a quarter of what all share");
        assert!(begin("192.0.2.2").make_room(256 * KIB, &memory));
        held.pop();
        assert!(begin("::ffff:192.0.2.1").make_room(256 * KIB, &memory), "what is given back can be had again");
        drop(held);
        assert_eq!(all.used(), 0);
        for number in 0..5000u32 {
            drop(memory.share_of(Client::of(std::net::IpAddr::from(number.to_be_bytes())), largest));
        }
        assert!(memory.shares.lock().unwrap().len() <= 2, "clients that have gone are forgotten");
        // However small the budget: a message of the largest size fits into a share.
        let small = MessageMemory::new(Memory::new(512 * KIB as u64));
        let mut content = Content::new(None, largest, small.share_of(client("192.0.2.1"), largest));
        assert!(content.make_room(256 * KIB, &small));
    }
}
