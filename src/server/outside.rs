//! What the server needs of the rest of the house, and what all its connections share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::task::TaskTracker;

use super::accounts::{Accounts, AccountsError};
use super::connection::memory::MessageMemory;
use super::limits::Limits;
use super::tls::ServerTls;
use crate::clock::Clock;
use crate::config::{Config, Role};
use crate::message::{Address, Draft, ReversePath};
use crate::queue::body::BodyWriter;
use crate::queue::memory::Memory;
use crate::smtp::Reply;
use crate::smtp::reply::Refusal;

/// The door behind the server: `intake`, or a test's stand-in. The two questions that come before the
/// message are answered from memory; what a refusal's `reason` says is logged by the server.
pub trait Outside: Send + Sync + 'static {
    /// May this account (none: inbound, or a trusted network) use this sender, and is there room for a
    /// message of this declared size?
    fn sender(&self, account: Option<&str>, sender: &ReversePath, size: Option<u64>) -> Result<(), Refusal>;

    /// Is mail for this recipient taken, after so many recipients that the message has already?
    fn recipient(
        &self,
        role: Role,
        account: Option<&str>,
        sender: &ReversePath,
        recipient: (usize, &Address),
    ) -> Result<(), Refusal>;

    /// Is there disk for so many bytes more of a message that comes in?
    fn room_for(&self, bytes: u64) -> Result<(), Refusal> {
        let _ = bytes;
        Ok(())
    }

    /// Takes the rest of a message that begins with `head` (its whole header section is in there), so that
    /// it need not be held in memory. None: it is held.
    fn begin_body(&self, head: &[u8]) -> Option<BodyWriter> {
        let _ = head;
        None
    }

    /// The budget for bodies that is shared with others; without one the server has its own.
    fn memory(&self) -> Option<Memory> {
        None
    }

    /// Queues the message; the reply is the 250 that takes responsibility for it. The server keeps the draft, to
    /// tell of whom it was if it is refused.
    fn accept(&self, draft: &Draft) -> impl Future<Output = Result<Reply, Refusal>> + Send;
}

/// What all connections of all listeners share, under one configuration. A session works with one from MAIL to the
/// reply for the message, and with the newest between messages.
#[derive(Debug)]
pub struct Shared<O> {
    pub config: Arc<Config>,
    pub tls: ServerTls,
    pub accounts: Arc<Accounts>,
    pub limits: Arc<Limits>,
    pub clock: Clock,
    pub outside: O,
    /// Every session is a task of this tracker: close it and wait for it to drain.
    pub sessions: TaskTracker,
    pub(super) memory: MessageMemory,
    next_session: Arc<AtomicU64>,
}

impl<O: Outside> Shared<O> {
    pub fn new(config: Arc<Config>, tls: ServerTls, outside: O, clock: Clock) -> Result<Arc<Shared<O>>, AccountsError> {
        Ok(Arc::new(Shared {
            accounts: Arc::new(Accounts::new(config.clone(), clock.clone())?),
            limits: Limits::new(),
            memory: MessageMemory::new(outside.memory().unwrap_or_else(|| Memory::new(config.queue.memory))),
            config,
            tls,
            clock,
            outside,
            sessions: TaskTracker::new(),
            next_session: Arc::new(AtomicU64::new(1)),
        }))
    }

    /// The same under another configuration: who is connected, what is counted and the memory for messages stay.
    pub fn next(&self, config: Arc<Config>, tls: ServerTls, outside: O) -> Result<Arc<Shared<O>>, AccountsError> {
        Ok(Arc::new(Shared {
            accounts: Arc::new(self.accounts.next(config.clone())?),
            limits: self.limits.clone(),
            memory: self.memory.clone(),
            config,
            tls,
            clock: self.clock.clone(),
            outside,
            sessions: self.sessions.clone(),
            next_session: self.next_session.clone(),
        }))
    }

    /// The number by which the log tells sessions of one run apart.
    pub(super) fn next_session(&self) -> u64 {
        self.next_session.fetch_add(1, Ordering::Relaxed)
    }
}
