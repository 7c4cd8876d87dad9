//! Care for DMARC reports: counts written down, reports sent when the day is over.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::delivery::dmarc_report::Reports;

/// How often counts are written down, and the longest that passes before the clock is looked at again,
/// which may be set.
const FLUSH_EVERY: Duration = Duration::from_secs(60);

pub async fn look_after(reports: Reports, stop: CancellationToken) {
    let work = async {
        loop {
            // What a day before the start has left is sent at once.
            reports.send_due().await;
            let due = reports.next();
            while reports.now() < due {
                let wait = Duration::from_millis(due.saturating_sub(reports.now()).max(1));
                sleep(wait.min(FLUSH_EVERY)).await;
                reports.flush().await;
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
    // No more mail comes in: what has been counted is not lost to a restart.
    reports.flush().await;
}
