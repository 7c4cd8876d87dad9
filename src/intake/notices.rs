//! What we say by ourselves about mail that came in from outside: within the budget of `routing::loops`.

use tokio::sync::MutexGuard;

use crate::message::{Address, Door};
use crate::queue::record::{Message, Recipient};
use crate::routing::loops::Budget;
use crate::store::{Batch, StoreError, Table};

use super::Intake;

/// Leave to tell the sender of a message about some of its recipients.
#[derive(Debug)]
pub struct Leave<'i> {
    /// Lookup keys of addresses that nothing may be said about.
    silent: Vec<String>,
    writes: Vec<(Vec<u8>, Vec<u8>)>,
    /// No other notice is counted until this one is written.
    _lock: Option<MutexGuard<'i, ()>>,
}

impl Leave<'_> {
    /// Nothing was counted.
    pub fn none() -> Leave<'static> {
        Leave { silent: Vec::new(), writes: Vec::new(), _lock: None }
    }

    pub fn allows(&self, recipient: &Recipient) -> bool {
        self.silent.is_empty() || !self.silent.contains(&told(recipient).lookup_key())
    }

    /// For the story: what is not told, if anything.
    pub fn withheld(&self) -> Option<String> {
        let about = self.silent.join(", ");
        (!self.silent.is_empty()).then(|| format!("no notice about {about}: there have been enough"))
    }

    /// To be written in the batch that queues the notice.
    pub fn batch(&self) -> Batch {
        let mut batch = Batch::new();
        for (key, value) in &self.writes {
            batch.put(Table::Loops, key.clone(), value.clone());
        }
        batch
    }
}

/// The address that the sender knows.
fn told(recipient: &Recipient) -> &Address {
    recipient.alias.as_ref().unwrap_or(&recipient.address)
}

impl Intake {
    /// May the sender of a message be told about these recipients? What comes back is kept until the notice
    /// is queued. Our own users are told everything.
    pub async fn may_tell(&self, message: &Message, about: &[&Recipient]) -> Result<Leave<'_>, StoreError> {
        let Some(sender) = message.mail_from.address().filter(|_| matches!(message.origin.door, Door::Mx { .. }))
        else {
            return Ok(Leave::none());
        };
        let lock = self.common.notices.lock().await;
        let mut about: Vec<Address> = about.iter().map(|recipient| told(recipient).clone()).collect();
        // An alias that leads to several places is one address.
        about.sort_unstable();
        about.dedup();
        let read = |key: &[u8]| self.queue.store().get(Table::Loops, key);
        let Budget { allowed, writes } = Budget::ask(&self.config.loops, sender, &about, self.clock.now(), read)?;
        let silent = about.iter().zip(allowed).filter(|(_, allowed)| !allowed);
        let silent: Vec<String> = silent.map(|(address, _)| address.lookup_key()).collect();
        Ok(Leave { silent, writes, _lock: Some(lock) })
    }
}
