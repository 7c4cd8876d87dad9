//! The queues in the store of `[events.webhooks.*]`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Error, store_path};
use crate::admin::metrics::Page;
use crate::config::Config;
use crate::events::outbox::{self, Outbox, Tray};
use crate::queue::Queue;
use crate::store::Batch;

/// What waits since the last run. What waits for webhooks that are not in the configuration any more is dropped.
pub(super) async fn load(config: &Config, queue: &Queue) -> Result<Arc<Outbox>, Error> {
    let failed = |source| Error::Store { path: store_path(config), source };
    let (outbox, leftovers, gone) = Outbox::load(queue.store(), &config.events.webhooks).map_err(failed)?;
    if !leftovers.is_empty() {
        queue.commit(leftovers, false).await.map_err(failed)?;
        for webhook in gone {
            tracing::warn!(webhook, "events that waited for this webhook are dropped: it is not configured any more");
        }
    }
    Ok(Arc::new(outbox))
}

/// Takes away what waits for a webhook that is not in the configuration any more.
pub(super) fn forget(webhook: &str) -> Batch {
    let mut batch = Batch::new();
    outbox::forget(webhook, &mut batch);
    batch
}

/// How each queue stands. The label is the name in the configuration, so there are as many as it has webhooks.
pub(super) fn metrics(page: &mut Page, outbox: &Outbox) {
    if outbox.trays().is_empty() {
        return;
    }
    let mut tell = |name: &str, kind: &str, help: &str, value: fn(&Tray) -> u64| {
        let values = outbox.trays().iter().map(|tray| (tray.name(), value(tray)));
        page.labelled(&format!("postrider_event_webhook_{name}"), kind, help, "webhook", values);
    };
    fn load(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
    tell("waiting", "gauge", "Events that wait to be told.", Tray::events);
    tell("waiting_bytes", "gauge", "Their bytes; at 64 MiB the oldest are dropped.", Tray::bytes);
    tell("paused", "gauge", "1 while the endpoint is given a rest because it fails.", |tray| {
        u64::from(tray.counts.is_paused.load(Ordering::Relaxed))
    });
    tell("sent_total", "counter", "Events that the endpoint has taken.", |tray| load(&tray.counts.sent));
    tell("failed_total", "counter", "Posts that did not come through; they are tried again.", |tray| {
        load(&tray.counts.failed)
    });
    tell("refused_total", "counter", "Events that the endpoint does not want (406, 422).", |tray| {
        load(&tray.counts.refused)
    });
    tell("dropped_total", "counter", "Events given up, because too many waited or for too long.", |tray| {
        load(&tray.counts.dropped)
    });
}
