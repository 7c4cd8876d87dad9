//! Tells systemd's watchdog that the server is alive, where it asks to be told (`WatchdogSec=`): tasks
//! run, and the store answers. A store that answers with an error counts as alive: a full disk or a failed
//! sync passes without a restart, and one would not mend it. A read that never ends does not.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::queue::Queue;
use crate::store::Table;

/// Tells in a period; systemd restarts what has not told for a whole one, and a slow disk may cost a turn.
const PINGS_PER_PERIOD: u32 = 4;
/// Never busier than this, whatever the unit says.
const PERIOD_MIN: Duration = Duration::from_millis(50);

/// How often to tell, if anybody wants to know.
pub(super) fn wanted() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|period| (period / PINGS_PER_PERIOD).max(PERIOD_MIN))
}

/// Tells until `stop`.
pub(super) async fn tell(every: Duration, queue: Arc<Queue>, stop: CancellationToken) {
    loop {
        if answers(queue.clone()).await {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
    }
}

/// Comes back once the store has said something to a question for a key that nobody writes.
async fn answers(queue: Arc<Queue>) -> bool {
    let asked = tokio::task::spawn_blocking(move || {
        let _ = queue.store().get(Table::Meta, b"\0alive");
    });
    asked.await.is_ok()
}

/// A reload has begun; `Ready` says that it is over.
pub fn tell_reloading() {
    let mut states = vec![sd_notify::NotifyState::Reloading];
    states.extend(sd_notify::NotifyState::monotonic_usec_now());
    // Not under systemd: nobody to tell, and no harm.
    let _ = sd_notify::notify(&states);
}
