//! Watches over the server as a whole: says once when a guard closes or the store fails, and once when
//! that is over; answers `/readyz` and `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::admin::metrics::Page;
use crate::admin::{Disk, ListenerStatus, Memory, Readiness, ResolverState, StoreState};
use crate::clock::{Clock, Millis};
use crate::events::journal::Journal;
use crate::events::server::{ServerCounters, ServerEvent};
use crate::intake::Intake;
use crate::queue::Queue;

/// How often the guards are looked at; they close and open by themselves, this only tells of it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// In percent of the limit: memory is called full above the first, good again below the second.
const MEMORY_FULL_PERCENT: u64 = 95;
const MEMORY_GOOD_PERCENT: u64 = 80;

/// What new mail was refused for at the listeners, by step and class of reply.
#[derive(Debug, Default)]
pub struct Refusals {
    counters: [[AtomicU64; 2]; 3],
}

/// Where in the conversation a refusal was given.
#[derive(Clone, Copy, Debug)]
pub enum At {
    Mail,
    Rcpt,
    Data,
}

impl Refusals {
    pub fn count(&self, at: At, is_permanent: bool) {
        self.counters[at as usize][usize::from(is_permanent)].fetch_add(1, Ordering::Relaxed);
    }

    fn of(&self, is_permanent: bool) -> [(&'static str, u64); 3] {
        let count = |at: At| self.counters[at as usize][usize::from(is_permanent)].load(Ordering::Relaxed);
        [("mail", count(At::Mail)), ("rcpt", count(At::Rcpt)), ("data", count(At::Data))]
    }
}

/// How the parts stood at the last look.
#[derive(Debug)]
struct Last {
    disk_accepts: bool,
    memory_full: bool,
    store_failed: bool,
    damages: usize,
}

/// How the store is.
struct Health {
    failed: Option<(Millis, String)>,
    damages: Vec<String>,
}

#[derive(Debug)]
pub struct Watch {
    pub clock: Clock,
    pub queue: Arc<Queue>,
    pub journal: Arc<Journal>,
    pub intake: Arc<Intake>,
    pub listeners: Vec<ListenerStatus>,
    pub started_at: Millis,
    /// The server is stopping and takes nothing any more.
    pub stop: CancellationToken,
    pub refusals: Arc<Refusals>,
    counters: ServerCounters,
    last: Mutex<Last>,
}

impl Watch {
    pub fn new(
        clock: Clock,
        queue: Arc<Queue>,
        journal: Arc<Journal>,
        intake: Arc<Intake>,
        listeners: Vec<ListenerStatus>,
        stop: CancellationToken,
    ) -> Watch {
        let last = Last { disk_accepts: true, memory_full: false, store_failed: false, damages: 0 };
        Watch {
            started_at: clock.now(),
            clock,
            queue,
            journal,
            intake,
            listeners,
            stop,
            refusals: Arc::default(),
            counters: ServerCounters::default(),
            last: Mutex::new(last),
        }
    }

    /// Looks until the server stops.
    pub async fn run(self: Arc<Watch>) {
        loop {
            self.look();
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Tells what has changed since the last look.
    pub fn look(&self) {
        let (disk, memory, store) = (self.intake.disk(), self.memory(), self.health());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let tell = |event: ServerEvent| event.tell(&self.counters);
        if disk.accepting != last.disk_accepts {
            last.disk_accepts = disk.accepting;
            tell(if disk.accepting {
                ServerEvent::DiskGood { free: disk.free }
            } else {
                ServerEvent::DiskLow { free: disk.free, min_free: disk.min_free }
            });
        }
        let percent = memory.used.saturating_mul(100).checked_div(memory.limit).unwrap_or(0);
        if !last.memory_full && percent >= MEMORY_FULL_PERCENT {
            last.memory_full = true;
            tell(ServerEvent::MemoryFull { used: memory.used, limit: memory.limit });
        } else if last.memory_full && percent < MEMORY_GOOD_PERCENT {
            last.memory_full = false;
            tell(ServerEvent::MemoryGood { used: memory.used });
        }
        for what in store.damages.iter().skip(last.damages) {
            tell(ServerEvent::StoreDamaged { what: what.clone() });
        }
        last.damages = last.damages.max(store.damages.len());
        if store.failed.is_some() != last.store_failed {
            last.store_failed = store.failed.is_some();
            tell(match store.failed {
                Some((_, why)) => ServerEvent::StoreFailed { why },
                None => ServerEvent::StoreReopened,
            });
        }
    }

    fn health(&self) -> Health {
        Health { failed: None, damages: Vec::new() }
    }

    fn memory(&self) -> Memory {
        Memory { used: self.queue.claims().memory_used(), limit: self.intake.config().queue.memory }
    }

    pub fn readiness(&self) -> Readiness {
        self.look();
        let (disk, memory, store) = (self.intake.disk(), self.memory(), self.health());
        let stopping = self.stop.is_cancelled();
        let ready = !stopping && store.failed.is_none() && disk.accepting && memory.used < memory.limit.max(1);
        let (since, why) = store.failed.clone().unzip();
        Readiness {
            ready,
            store: StoreState {
                state: if store.failed.is_some() { "failed" } else { "good" }.to_owned(),
                since,
                why,
                damages: store.damages,
            },
            disk: Disk { free: disk.free, min_free: disk.min_free, accepting: disk.accepting },
            memory,
            listeners: if stopping { Vec::new() } else { self.listeners.clone() },
            signing: self.intake.config().domains.keys().map(ToString::to_string).collect(),
            resolver: match self.intake.is_resolving() {
                None => ResolverState::Unknown,
                Some(true) => ResolverState::Answering,
                Some(false) => ResolverState::Failing,
            },
        }
    }

    pub fn metrics(&self) -> String {
        let mut page = Page::default();
        self.mail_metrics(&mut page);
        self.commit_metrics(&mut page);
        self.state_metrics(&mut page);
        page.finish()
    }

    fn mail_metrics(&self, page: &mut Page) {
        let counters = self.journal.counters();
        page.labelled(
            "postrider_messages_accepted_total",
            "counter",
            "Messages taken and safely on disk, by the way they came in.",
            "door",
            counters.accepted(),
        );
        page.labelled(
            "postrider_refused_temporarily_total",
            "counter",
            "Commands of SMTP clients that were answered with 4yz by a rule or a guard, by step.",
            "step",
            self.refusals.of(false),
        );
        page.labelled(
            "postrider_refused_total",
            "counter",
            "Commands of SMTP clients that were answered with 5yz by a rule, by step.",
            "step",
            self.refusals.of(true),
        );
        page.labelled(
            "postrider_recipients_total",
            "counter",
            "Recipients by what became of them: ends and tries (deferred counts each failed try).",
            "outcome",
            counters.outcomes(),
        );
        let unsure = "Tries that ended without an answer after the final dot: the message may have arrived.";
        page.counter("postrider_unsure_tries_total", unsure, counters.unsure());
        page.counter("postrider_notices_total", "Notices to senders.", counters.notices());
        page.counter("postrider_imported_total", "Messages put back with `queue import`.", counters.imported());
    }

    fn commit_metrics(&self, page: &mut Page) {
        let stats = self.queue.commit_stats();
        let (batches, sum) = stats.batches();
        page.histogram("postrider_commit_batches", "Steps of the queue written as one group.", &batches, sum);
        let (seconds, sum) = stats.seconds();
        page.histogram("postrider_commit_sync_seconds", "Time of a group's synced write.", &seconds, sum);
        page.counter("postrider_commit_bytes_total", "Bytes given to the store in groups.", stats.bytes());
        let unsynced = "Groups that ride along with a later sync.";
        page.counter("postrider_commit_unsynced_total", unsynced, stats.unsynced());
        page.counter("postrider_commit_failed_total", "Groups that could not be written.", stats.failed());
    }

    fn state_metrics(&self, page: &mut Page) {
        self.look();
        let (disk, memory, store) = (self.intake.disk(), self.memory(), self.health());
        let flag = |yes: bool| u64::from(yes);
        let version = [(env!("CARGO_PKG_VERSION"), 1)];
        page.labelled("postrider_build_info", "gauge", "Always 1; the version is the label.", "version", version);
        let started = "When the server started, in seconds since 1970.";
        page.gauge("postrider_start_time_seconds", started, self.started_at as f64 / 1000.0);
        page.gauge("postrider_claims_held", "Recipients that are being worked on.", self.queue.claims().held());
        page.gauge("postrider_memory_used_bytes", "Memory in use for messages (queue.memory).", memory.used);
        page.gauge("postrider_memory_limit_bytes", "The most of it.", memory.limit);
        page.gauge("postrider_disk_free_bytes", "Free space where data_dir is.", disk.free);
        page.gauge("postrider_disk_min_free_bytes", "Below this no mail is taken (queue.min_free).", disk.min_free);
        page.gauge("postrider_disk_accepting", "1 while there is room for new mail.", flag(disk.accepting));
        page.gauge("postrider_store_up", "1 while the store can be written.", flag(store.failed.is_none()));
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let all = &self.counters;
        page.counter("postrider_store_failed_total", "Times the store could not be written.", count(&all.store_failed));
        page.counter("postrider_store_reopened_total", "Times it came back by itself.", count(&all.store_reopened));
        page.counter("postrider_store_damages_total", "Damages found and set aside.", count(&all.store_damaged));
        page.counter("postrider_disk_low_total", "Times the disk guard closed.", count(&all.disk_low));
        page.counter("postrider_memory_full_total", "Times the memory guard closed.", count(&all.memory_full));
    }
}
