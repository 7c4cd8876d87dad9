//! What happens to the server as a whole: a guard closes or opens, the configuration is read again. Each is said once in the log and
//! counted, however often it is asked for meanwhile. (The committer tells of a store that fails.)

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::clock::{Millis, rfc3339};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ServerEvent {
    /// Less than `queue.min_free` is left, or hardly any file can be made: new mail gets 452, deliveries go on.
    DiskLow {
        free: u64,
        min_free: u64,
    },
    /// There is room again.
    DiskGood {
        free: u64,
    },
    /// `queue.memory` is used up: sessions wait, then get 452.
    MemoryFull {
        used: u64,
        limit: u64,
    },
    MemoryGood {
        used: u64,
    },
    /// An authority has given a new certificate.
    CertificateRenewed {
        name: String,
        until: Millis,
    },
    /// It has not; the one that there is stays.
    CertificateFailed {
        name: String,
        why: String,
        /// When it is asked again.
        next: Millis,
    },
    /// Another configuration holds, with so many keys that are different.
    Reloaded {
        changes: usize,
    },
    /// A new configuration has so many problems; the old one goes on.
    ReloadRefused {
        problems: usize,
    },
}

/// How often, since the start.
#[derive(Debug, Default)]
pub struct ServerCounters {
    pub disk_low: AtomicU64,
    pub memory_full: AtomicU64,
    pub certificates_renewed: AtomicU64,
    pub certificates_failed: AtomicU64,
    pub reloaded: AtomicU64,
    pub reloads_refused: AtomicU64,
}

impl ServerEvent {
    /// Writes the log line and counts it.
    pub fn tell(&self, counters: &ServerCounters) {
        const MIB: u64 = 1 << 20;
        let count = |counter: &AtomicU64| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        match self {
            ServerEvent::DiskLow { free, min_free } => {
                count(&counters.disk_low);
                let (free_mib, min_free_mib) = (free / MIB, min_free / MIB);
                if free >= min_free {
                    return tracing::error!(
                        free_mib,
                        "not accepting mail: the disk takes hardly any more files (inodes)"
                    );
                }
                tracing::error!(free_mib, min_free_mib, "not accepting mail: the disk is nearly full (queue.min_free)");
            }
            ServerEvent::DiskGood { free } => {
                tracing::info!(free_mib = free / MIB, "accepting mail again: there is room on the disk");
            }
            ServerEvent::MemoryFull { used, limit } => {
                count(&counters.memory_full);
                let (used_mib, limit_mib) = (used / MIB, limit / MIB);
                tracing::warn!(used_mib, limit_mib, "the memory for messages is full (queue.memory): clients wait");
            }
            ServerEvent::MemoryGood { used } => {
                tracing::info!(used_mib = used / MIB, "there is memory for messages again");
            }
            ServerEvent::CertificateRenewed { name, until } => {
                count(&counters.certificates_renewed);
                let until = rfc3339(*until);
                tracing::info!(
                    name,
                    until,
                    "the authority has given a certificate (tls.acme); it is shown from now on"
                );
            }
            ServerEvent::CertificateFailed { name, why, next } => {
                count(&counters.certificates_failed);
                let next = rfc3339(*next);
                tracing::warn!(name, next, "no certificate from the authority (tls.acme), the old one stays: {why}");
            }
            ServerEvent::Reloaded { changes } => {
                count(&counters.reloaded);
                tracing::info!(changes, "the configuration was read again and holds");
            }
            ServerEvent::ReloadRefused { problems } => {
                count(&counters.reloads_refused);
                tracing::error!(problems, "the new configuration is refused; the old one goes on");
            }
        }
    }
}
