//! Has milters look at what comes in from outside, after our own checks, and says in the log what is
//! wrong with one of them.

use bytes::Bytes;
use tokio::time::timeout;

use crate::checks::Checked;
use crate::checks::milter::{self, About, Body, Passed};
use crate::message::header::Headers;
use crate::message::{Door, Draft, MessageId};
use crate::queue::record::streamed_numbers;
use crate::queue::{CHUNK_BYTES_MAX, memory};
use crate::smtp::Reply;
use crate::smtp::reply::Refusal;
use crate::store::StoreError;

use super::{Intake, ROOM_WAIT, content};

impl Intake {
    /// What has gone ahead into the store is read back piece by piece, and pays for the memory of one.
    pub(super) async fn ask_milters(
        &self,
        draft: &Draft,
        headers: &Headers<'_>,
        checked: &Checked,
        id: MessageId,
    ) -> Result<Passed, Refusal> {
        let milters = &self.config.checks.milters;
        if milters.is_empty() || !matches!(draft.origin.door, Door::Mx { .. }) {
            return Ok(Passed::default());
        }
        let _held = match draft.content.rest() {
            Some(_) => Some(self.room_for_a_piece().await?),
            None => None,
        };
        let client = match &draft.origin.peer {
            Some(peer) => milter::client_name(&self.resolver, peer.ip).await,
            None => None,
        };
        let (head, rest) = (draft.content.head(), draft.content.rest());
        let read = |number: u32| -> Result<Bytes, StoreError> { self.queue.body_chunk(id, number) };
        let about = About {
            id,
            hostname: &self.config.hostname,
            envelope: &draft.envelope,
            origin: &draft.origin,
            client: client.as_ref(),
            body: Body {
                head: head.slice(head.len().saturating_sub(headers.body().len())..),
                rest: streamed_numbers(rest.map_or(0, |rest| rest.chunks)),
                read: &read,
            },
        };
        let removed = content::removed_fields(self, draft, headers);
        let results = &checked.authentication_results;
        let asked = milter::ask(&self.resolver, milters, &about, headers, &removed, results).await;
        asked.map_err(|stopped| {
            if stopped.is_trouble {
                tracing::warn!(%id, reason = stopped.refusal.reason, "a milter failed, the sender is to try again");
            }
            stopped.refusal
        })
    }

    async fn room_for_a_piece(&self) -> Result<memory::Held, Refusal> {
        let held = timeout(ROOM_WAIT, self.queue.memory().take(memory::steps_of(CHUNK_BYTES_MAX as u64))).await;
        held.ok().flatten().ok_or_else(|| Refusal {
            reply: Reply::new(452, (3, 1), "no room for the message right now, try again later"),
            reason: "no room in queue.memory to show the message to the milters".to_owned(),
        })
    }
}
