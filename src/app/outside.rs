//! The server's door into intake.

use std::sync::Arc;

use crate::config::Role;
use crate::intake::Intake;
use crate::message::{Address, Draft, ReversePath};
use crate::queue::body::BodyWriter;
use crate::queue::memory::Memory;
use crate::server::outside::Outside;
use crate::smtp::Reply;
use crate::smtp::reply::Refusal;

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

    fn room_for(&self, bytes: u64) -> Result<(), Refusal> {
        self.0.room_for(bytes)
    }

    fn begin_body(&self, head: &[u8]) -> Option<BodyWriter> {
        Some(self.0.queue().begin_body(head))
    }

    fn memory(&self) -> Option<Memory> {
        Some(self.0.queue().memory().clone())
    }

    async fn accept(&self, draft: Draft) -> Result<Reply, Refusal> {
        self.0.accept(draft).await.map(|accepted| accepted.reply)
    }
}
