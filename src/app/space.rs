//! Giving space on the disk back while the server runs.
//!
//! What is delivered frees its space only once tables in memory are written and compacted. Under load
//! that happens by itself. It does not where the disk is too full for new mail, and not where the load
//! has ended: the last hundred megabytes would stay until there is as much mail again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::current::Current;
use crate::intake::Intake;
use crate::queue::Queue;

/// At least that long between two times.
const SPACE_EVERY: Duration = Duration::from_secs(2);
/// How often it is looked whether the load has ended: nothing was written since the last look.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// So many bytes written since the last time are worth it. With less a quiet server would write a table
/// for each message.
const WORTH_BYTES: u64 = 8 << 20;

pub async fn give_back(intake: Current<Intake>, queue: Arc<Queue>, stop: CancellationToken) {
    let mut given_back_at = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = turned_away(&intake) => {}
            () = load_has_ended(&queue, given_back_at) => {}
        }
        given_back_at = written(&queue);
        let store = queue.store().clone();
        match tokio::task::spawn_blocking(move || store.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the store could not give space back"),
            Err(_) => tracing::warn!("the store was broken off while it gave space back"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SPACE_EVERY) => {}
        }
    }
}

async fn turned_away(intake: &Current<Intake>) {
    intake.load().turned_away().await;
}

/// Returns when much was written since `given_back_at`, and nothing more comes.
async fn load_has_ended(queue: &Queue, given_back_at: u64) {
    let mut before = given_back_at;
    loop {
        let now = written(queue);
        if now == before && now.saturating_sub(given_back_at) >= WORTH_BYTES {
            return;
        }
        before = now;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn written(queue: &Queue) -> u64 {
    queue.commit_counts().bytes.load(Ordering::Relaxed)
}
