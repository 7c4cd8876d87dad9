//! Care for what is known of TLS at other servers: policies fetched before they end, counts written down,
//! reports sent when the day is over.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::current::Current;
use crate::delivery::tls_report::Reports;
use crate::delivery::transport::Transports;

/// How often counts are written down, and the longest that passes before the clock is looked at again,
/// which may be set.
const FLUSH_EVERY: Duration = Duration::from_secs(10);
/// How often it is looked for policies that end soon.
const REFRESH_EVERY: Duration = Duration::from_secs(3600);

/// `reports` makes what sends them, for the configuration that holds then.
pub async fn look_after(transports: Current<Transports>, reports: impl Fn() -> Reports, stop: CancellationToken) {
    let work = async {
        // Tried out now, so that the log says at the start whether DANE is on.
        transports.load().tls().policies.uses_dane().await;
        // What a day before the start has left is sent at once.
        let mut due = reports().clock.now();
        let mut refreshed = Instant::now();
        loop {
            let now = reports();
            if now.config.delivery.tls_rpt && now.clock.now() >= due {
                now.send_due().await;
                due = now.next();
            }
            if refreshed.elapsed() >= REFRESH_EVERY {
                transports.load().tls().policies.refresh().await;
                refreshed = Instant::now();
            }
            let wait = match now.config.delivery.tls_rpt {
                true => Duration::from_millis(due.saturating_sub(now.clock.now()).max(1)),
                false => FLUSH_EVERY,
            };
            sleep(wait.min(FLUSH_EVERY)).await;
            now.tally.flush().await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}
