//! Care for what is known of TLS at other servers: policies fetched before they end, counts written down,
//! reports sent when the day is over.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::delivery::smtp::TlsPolicies;
use crate::delivery::tls_report::Reports;

/// How often counts are written down, and the longest that passes before the clock is looked at again,
/// which may be set.
const FLUSH_EVERY: Duration = Duration::from_secs(10);
/// How often it is looked for policies that end soon.
const REFRESH_EVERY: Duration = Duration::from_secs(3600);

pub async fn look_after(reports: Reports, policies: Arc<TlsPolicies>, stop: CancellationToken) {
    // Tried out now, so that the log says at the start whether DANE is on.
    let work = async {
        policies.uses_dane().await;
        // What a day before the start has left is sent at once.
        let mut due = reports.clock.now();
        let mut refreshed = Instant::now();
        loop {
            if reports.config.delivery.tls_rpt && reports.clock.now() >= due {
                reports.send_due().await;
                due = reports.next();
            }
            if refreshed.elapsed() >= REFRESH_EVERY {
                policies.refresh().await;
                refreshed = Instant::now();
            }
            let wait = match reports.config.delivery.tls_rpt {
                true => Duration::from_millis(due.saturating_sub(reports.clock.now()).max(1)),
                false => FLUSH_EVERY,
            };
            sleep(wait.min(FLUSH_EVERY)).await;
            reports.tally.flush().await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}
