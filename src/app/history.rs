//! Looks at what is counted every few seconds, for the charts of the dashboard.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::watch::Watch;
use crate::admin::history::{FINE_EVERY, History, Reading};

/// Shared with those who show it.
pub type Shared = Arc<Mutex<History>>;

/// What is counted now.
pub fn read(watch: &Watch) -> Reading {
    let counters = watch.journal.counters();
    let mut reading = Reading {
        at: watch.clock.now(),
        accepted: counters.accepted().map(|(_, count)| count).sum(),
        queued: watch.queue.store().messages(),
        latency: counters.latency(),
        ..Reading::default()
    };
    for (outcome, count) in counters.outcomes() {
        match outcome {
            "delivered" | "captured" => reading.delivered += count,
            "deferred" => reading.deferred += count,
            "failed" | "expired" | "bounced" => reading.failed += count,
            _ => {}
        }
    }
    reading
}

/// Looks until the server stops. Counts what is queued meanwhile, after a start.
pub async fn keep(watch: Arc<Watch>, history: Shared, stop: CancellationToken) {
    let mut looks = tokio::time::interval(Duration::from_millis(FINE_EVERY));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = looks.tick() => {}
        }
        count(&watch, &stop).await;
        let reading = read(&watch);
        history.lock().unwrap_or_else(PoisonError::into_inner).take(&reading);
    }
}

/// Until all that is queued is counted, or the store has trouble: then it is tried again at the next look.
async fn count(watch: &Arc<Watch>, stop: &CancellationToken) {
    while !stop.is_cancelled() && watch.queue.store().messages().is_none() {
        let queue = watch.queue.clone();
        let counted = tokio::task::spawn_blocking(move || queue.store().count_on()).await;
        if !matches!(counted, Ok(Ok(_))) {
            return;
        }
    }
}
