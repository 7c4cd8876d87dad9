//! The server's door into intake.

use std::sync::Arc;

use crate::config::Role;
use crate::intake::Intake;
use crate::message::{Address, Draft, ReversePath};
use crate::queue::body::BodyWriter;
use crate::queue::memory::Memory;
use crate::server::outside::Outside;
use crate::smtp::Reply;
use crate::smtp::reply::{Refusal, Severity};

use super::watch::{At, Refusals};

/// What lies behind the listeners.
#[derive(Clone, Debug)]
pub struct Behind {
    pub intake: Arc<Intake>,
    pub refusals: Arc<Refusals>,
}

impl Behind {
    fn counted<T>(&self, at: At, answer: Result<T, Refusal>) -> Result<T, Refusal> {
        if let Err(refusal) = &answer {
            self.refusals.count(at, refusal.reply.severity() == Severity::Permanent);
        }
        answer
    }
}

impl Outside for Behind {
    fn sender(&self, account: Option<&str>, sender: &ReversePath, size: Option<u64>) -> Result<(), Refusal> {
        self.counted(At::Mail, self.intake.sender(account, sender, size))
    }

    fn recipient(
        &self,
        role: Role,
        account: Option<&str>,
        sender: &ReversePath,
        recipient: (usize, &Address),
    ) -> Result<(), Refusal> {
        self.counted(At::Rcpt, self.intake.recipient(role, account, sender, recipient))
    }

    fn room_for(&self, bytes: u64) -> Result<(), Refusal> {
        self.counted(At::Data, self.intake.room_for(bytes))
    }

    fn begin_body(&self, head: &[u8]) -> Option<BodyWriter> {
        Some(self.intake.queue().begin_body(head))
    }

    fn memory(&self) -> Option<Memory> {
        Some(self.intake.queue().memory().clone())
    }

    async fn accept(&self, draft: &Draft) -> Result<Reply, Refusal> {
        let accepted = self.intake.accept_kept(draft).await;
        self.counted(At::Data, accepted).map(|accepted| accepted.reply)
    }
}
