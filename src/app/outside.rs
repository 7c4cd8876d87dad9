//! The doors into intake: for the server, and for pickup folders.

use std::sync::Arc;

use crate::config::Role;
use crate::intake::{Intake, pickup};
use crate::message::{Address, Draft, MessageId, ReversePath};
use crate::server::outside::Outside;
use crate::smtp::Reply;
use crate::smtp::reply::Refusal;
use crate::store::{Batch, Entry, StoreError, Table};

/// What lies behind the listeners.
#[derive(Clone, Debug)]
pub struct Behind(pub Arc<Intake>);

impl Outside for Behind {
    fn sender(&self, account: Option<&str>, sender: &ReversePath, size: Option<u64>) -> Result<(), Refusal> {
        self.0.sender(account, sender, size)
    }

    fn recipient(
        &self,
        role: Role,
        _account: Option<&str>,
        _sender: &ReversePath,
        recipient: &Address,
    ) -> Result<(), Refusal> {
        self.0.recipient(role, recipient)
    }

    async fn accept(&self, draft: Draft) -> Result<Reply, Refusal> {
        self.0.accept(draft).await.map(|accepted| accepted.reply)
    }
}

/// What lies behind a pickup folder.
#[derive(Clone, Debug)]
pub struct PickupDoor(pub Arc<Intake>);

impl pickup::Door for PickupDoor {
    async fn accept(&self, draft: Draft, extra: Batch) -> Result<MessageId, Refusal> {
        let intake = &self.0;
        let size = draft.content.len() as u64;
        intake.sender(draft.origin.account.as_deref(), &draft.envelope.mail_from, Some(size))?;
        intake.accept_with(draft, extra).await.map(|accepted| accepted.id)
    }

    async fn write(&self, batch: Batch) -> Result<(), StoreError> {
        self.0.queue().commit(batch, true).await
    }

    fn claims(&self, prefix: &[u8]) -> Result<Vec<Entry>, StoreError> {
        self.0.queue().store().prefix(Table::Pickup, prefix)?.collect()
    }
}
