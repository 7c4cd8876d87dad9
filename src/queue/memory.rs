//! Memory for message bodies: one budget (`queue.memory`) for those that come in, those that wait for
//! their first attempt, and those that are read back for a later one.
//!
//! What is paid for travels with the bytes ([`Held::bytes`]) and comes back when the last of them is
//! dropped, wherever that is: nobody else counts. A part of the budget is for deliveries alone, and a
//! delivery takes what it needs at once or waits for other deliveries only, so they move on however
//! much the sessions hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that are paid for at once.
pub const STEP_BYTES: usize = 4 * 1024;
/// The part that only deliveries can have, as a divisor.
const DELIVERY_SHARE: u32 = 8;
/// Fresh bodies wait in memory while at least this part of the budget is free, as a divisor; else
/// they are read back when their turn comes.
const FREE_FOR_FRESH: u32 = 2;

/// The budget. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Pools>);

#[derive(Debug)]
struct Pools {
    common: Arc<Semaphore>,
    deliveries: Arc<Semaphore>,
    common_steps: u32,
    delivery_steps: u32,
    most_used: AtomicU64,
}

/// Memory that is paid for. Dropping it gives it back.
#[derive(Debug)]
pub struct Held(OwnedSemaphorePermit);

impl Held {
    pub fn steps(&self) -> usize {
        self.0.num_permits()
    }

    /// Both are of one pool.
    pub fn merge(&mut self, more: Held) {
        self.0.merge(more.0);
    }

    /// Bytes that pay for themselves for as long as anybody holds a part of them.
    pub fn bytes(self, bytes: impl AsRef<[u8]> + Send + 'static) -> Bytes {
        Bytes::from_owner(Owner { bytes, _held: self })
    }
}

struct Owner<T> {
    bytes: T,
    _held: Held,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Owner<T> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

impl Memory {
    /// `bytes`: at least a step for each part.
    pub fn new(bytes: u64) -> Memory {
        let steps = u32::try_from(bytes / STEP_BYTES as u64).unwrap_or(u32::MAX);
        let delivery_steps = (steps / DELIVERY_SHARE).max(1);
        let common_steps = steps.saturating_sub(delivery_steps).max(1);
        Memory(Arc::new(Pools {
            common: Arc::new(Semaphore::new(common_steps as usize)),
            deliveries: Arc::new(Semaphore::new(delivery_steps as usize)),
            common_steps,
            delivery_steps,
            most_used: AtomicU64::new(0),
        }))
    }

    /// Bytes of the whole budget.
    pub fn limit(&self) -> u64 {
        bytes_of(self.0.common_steps + self.0.delivery_steps)
    }

    /// Bytes that are held.
    pub fn used(&self) -> u64 {
        let free = self.0.common.available_permits() + self.0.deliveries.available_permits();
        self.limit().saturating_sub(free as u64 * STEP_BYTES as u64)
    }

    /// The most that was held at one time since the start, in bytes.
    pub fn most_used(&self) -> u64 {
        self.0.most_used.load(Ordering::Relaxed)
    }

    /// Steps that all but deliveries share.
    pub fn common_steps(&self) -> u32 {
        self.0.common_steps
    }

    /// There is enough of it to keep what could be read back.
    pub fn is_ample(&self) -> bool {
        self.0.common.available_permits() >= (self.0.common_steps / FREE_FOR_FRESH) as usize
    }

    /// Takes so many steps if they are free.
    pub fn try_take(&self, steps: u32) -> Option<Held> {
        let held = self.0.common.clone().try_acquire_many_owned(steps).ok()?;
        Some(self.noted(held))
    }

    /// Takes so many steps, at most all that there are, in turn with others who wait.
    pub async fn take(&self, steps: u32) -> Option<Held> {
        let steps = steps.min(self.0.common_steps);
        let held = self.0.common.clone().acquire_many_owned(steps).await.ok()?;
        Some(self.noted(held))
    }

    /// As [`Memory::take`], for who holds the beginning of a large message already, and must not wait for what
    /// that holds: at most half of all that there is.
    pub async fn take_beside(&self, steps: u32) -> Option<Held> {
        self.take(steps.min(self.0.common_steps / 2)).await
    }

    /// For a body that is read back. Waits for other deliveries only. A body larger than what
    /// deliveries have to themselves gets all of that, and is then the only one.
    pub async fn take_for_delivery(&self, bytes: u64) -> Option<Held> {
        let steps = steps_of(bytes);
        if self.is_ample()
            && let Some(held) = self.try_take(steps)
        {
            return Some(held);
        }
        let steps = steps.min(self.0.delivery_steps);
        let held = self.0.deliveries.clone().acquire_many_owned(steps).await.ok()?;
        Some(self.noted(held))
    }

    fn noted(&self, held: OwnedSemaphorePermit) -> Held {
        self.0.most_used.fetch_max(self.used(), Ordering::Relaxed);
        Held(held)
    }
}

/// Steps for so many bytes.
pub fn steps_of(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(STEP_BYTES as u64)).unwrap_or(u32::MAX)
}

fn bytes_of(steps: u32) -> u64 {
    u64::from(steps) * STEP_BYTES as u64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn what_is_paid_for_comes_back_with_the_last_of_the_bytes() {
        let memory = Memory::new(64 * STEP_BYTES as u64);
        let held = memory.try_take(steps_of(10_000)).unwrap();
        let bytes = held.bytes(vec![7; 10_000]);
        let part = bytes.slice(9_000..);
        drop(bytes);
        assert_eq!(memory.used(), 3 * STEP_BYTES as u64);
        assert_eq!(part.len(), 1_000);
        drop(part);
        assert_eq!((memory.used(), memory.most_used()), (0, 3 * STEP_BYTES as u64));
    }

    #[tokio::test]
    async fn deliveries_move_however_much_is_taken() {
        let memory = Memory::new(64 * STEP_BYTES as u64);
        let all = memory.take(u32::MAX).await.unwrap();
        assert!(memory.try_take(1).is_none() && !memory.is_ample());
        // Larger than all that deliveries have to themselves: alone, but not never.
        for bytes in [1, 1 << 30] {
            assert!(memory.take_for_delivery(bytes).await.is_some());
        }
        assert_eq!(memory.most_used(), memory.limit());
        drop(all);
        assert_eq!(memory.used(), 0);
    }
}
