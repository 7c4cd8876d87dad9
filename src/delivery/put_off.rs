//! Jobs whose time will not come for a while: they go back into the queue without a try, so that they
//! hold no claim that others want.
//!
//! That is no attempt: it is not counted, and the story does not grow by it; why a delivery waits stands
//! in its record (`last_failure`). Only where the sender has to be told, of a delay or that the time is
//! up, it is settled with what is written of tries.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Millis;
use crate::config::Retry;
use crate::queue::Step;
use crate::queue::record::{Failure, Message, Recipient, Status};

use super::dispatch::Parts;
use super::{Body, Job, Outcome, standing};

/// Wait between tries to write it down. Until then the claim stays.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// So many recipients of a message, claimed for us, and why and until when they wait.
#[derive(Debug)]
pub(super) struct PutOff {
    pub message: Arc<Message>,
    pub recipients: Vec<(u32, Recipient)>,
    pub why: Failure,
    pub until: Millis,
}

/// When it is given up if it goes on like this. What was never tried because of a rate of ours waits for its turn,
/// however long that takes, as behind the limits of a stream: nothing is known against its servers.
pub(super) fn expires(retry: &Retry, message: &Message, recipient: &Recipient, why: &Failure) -> Millis {
    if recipient.attempts == 0 && standing::is_rate(why) {
        return Millis::MAX;
    }
    recipient.tried_from(message).saturating_add(millis(retry.expire))
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

/// Does it, and gives the claims back.
pub(super) async fn put_off(parts: &Parts, put_off: PutOff) {
    let PutOff { message, recipients, why, until } = put_off;
    let now = parts.clock.now();
    let retry = &parts.config.delivery.retry;
    let expires = |recipient: &Recipient| expires(retry, &message, recipient, &why);
    let is_told = |recipient: &Recipient| {
        let is_late = |notice| now >= recipient.tried_from(&message).saturating_add(millis(notice));
        now >= expires(recipient) || (!recipient.delay_notified && retry.delay_notice.is_some_and(is_late))
    };
    let (told, untold): (Vec<_>, Vec<_>) = recipients.into_iter().partition(|(_, recipient)| is_told(recipient));
    if !told.is_empty() {
        tell(parts, message.clone(), told, &why, until).await;
    }
    if untold.is_empty() {
        return;
    }
    let step = |(number, before): (u32, Recipient)| {
        // Once at that time in any case: if no more, the sender hears of it.
        let time_up = before.tried_from(&message).saturating_add(millis(retry.expire));
        let status = Status::Waiting { due: if time_up > now { until.min(time_up) } else { until } };
        let after = Recipient { status, last_failure: Some(why.clone()), ..before.clone() };
        Step { number, before, after: Some(after) }
    };
    let steps: Vec<Step> = untold.into_iter().map(step).collect();
    let _lock = parts.queue.lock(message.id).await;
    while let Err(error) = write(parts, &message, &steps).await {
        tracing::error!(id = %message.id, %error, "it cannot be written that a delivery waits; trying again");
        tokio::time::sleep(WRITE_AGAIN).await;
    }
    parts.queue.release(&message, &steps, &[]);
}

async fn write(parts: &Parts, message: &Message, steps: &[Step]) -> Result<(), crate::store::StoreError> {
    let batch = parts.queue.step_batch(message, steps, &[])?;
    parts.queue.commit(batch, false).await
}

async fn tell(parts: &Parts, message: Arc<Message>, recipients: Vec<(u32, Recipient)>, why: &Failure, until: Millis) {
    // The beginning of it goes back to the sender. One that cannot be read is told of without.
    let body = Body::stored(&parts.queue, &message).await.unwrap_or_default();
    let not_tried = Outcome::NotTried { why: why.clone(), until };
    let outcomes = recipients.iter().map(|(number, _)| (*number, not_tried.clone())).collect();
    parts.settler.settle(&parts.queue, Job { message, body, recipients }, outcomes).await;
}
