//! Watches over the server as a whole: says once when a guard closes or the store fails, and once when
//! that is over; answers `/readyz` and `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;

use crate::admin::metrics::Page;
use crate::admin::reload::{Configuration, PROBLEMS_KEPT, RefusedConfiguration, ReloadAnswer, ReloadResult};
use crate::admin::{Disk, ListenerStatus, Memory, Readiness, ResolverState, StoreState};
use crate::clock::{Clock, Millis};
use crate::current::Current;
use crate::events::journal::Journal;
use crate::events::server::{ServerCounters, ServerEvent};
use crate::intake::Intake;
use crate::intake::guard::DiskState;
use crate::queue::Queue;
use crate::queue::commit::WRITE_MICROS;
use crate::queue::suspend::Suspension;
use crate::store::Health;

use super::event_hooks;

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
}

impl Last {
    /// What is different now.
    fn change(&mut self, disk: DiskState, memory: Memory) -> Vec<ServerEvent> {
        let mut events = Vec::new();
        let DiskState { free, min_free, accepting } = disk;
        if accepting != self.disk_accepts {
            self.disk_accepts = accepting;
            events.push(match accepting {
                true => ServerEvent::DiskGood { free },
                false => ServerEvent::DiskLow { free, min_free },
            });
        }
        let Memory { used, limit } = memory;
        let percent = used.saturating_mul(100).checked_div(limit).unwrap_or(0);
        if !self.memory_full && percent >= MEMORY_FULL_PERCENT {
            self.memory_full = true;
            events.push(ServerEvent::MemoryFull { used, limit });
        } else if self.memory_full && percent < MEMORY_GOOD_PERCENT {
            self.memory_full = false;
            events.push(ServerEvent::MemoryGood { used });
        }
        events
    }
}

#[derive(Debug)]
pub struct Watch {
    pub clock: Clock,
    pub queue: Arc<Queue>,
    pub journal: Arc<Journal>,
    pub intake: Current<Intake>,
    pub listeners: Current<Vec<ListenerStatus>>,
    pub started_at: Millis,
    /// The server is stopping and takes nothing any more.
    pub stop: CancellationToken,
    pub refusals: Arc<Refusals>,
    pub counters: Arc<ServerCounters>,
    last: Mutex<Last>,
    configuration: Mutex<Configuration>,
}

impl Watch {
    pub fn new(
        clock: Clock,
        queue: Arc<Queue>,
        journal: Arc<Journal>,
        intake: Current<Intake>,
        listeners: Current<Vec<ListenerStatus>>,
        stop: CancellationToken,
    ) -> Watch {
        let last = Last { disk_accepts: true, memory_full: false };
        let configuration = Configuration { since: clock.now(), refused: None };
        Watch {
            started_at: clock.now(),
            clock,
            queue,
            journal,
            intake,
            listeners,
            stop,
            refusals: Arc::default(),
            counters: Arc::default(),
            last: Mutex::new(last),
            configuration: Mutex::new(configuration),
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
        let (disk, memory) = (self.intake.load().disk(), self.memory());
        let events = self.last.lock().unwrap_or_else(PoisonError::into_inner).change(disk, memory);
        events.iter().for_each(|event| event.tell(&self.counters));
    }

    pub fn tell(&self, event: &ServerEvent) {
        event.tell(&self.counters);
    }

    /// What became of an attempt to take another configuration.
    pub fn reloaded(&self, answer: &ReloadAnswer) {
        let now = self.clock.now();
        let mut configuration = self.configuration.lock().unwrap_or_else(PoisonError::into_inner);
        match answer.result {
            ReloadResult::Applied => *configuration = Configuration { since: now, refused: None },
            // What was wrong has been put back.
            ReloadResult::Unchanged => configuration.refused = None,
            ReloadResult::Refused => {
                let problems = answer.problems.iter().take(PROBLEMS_KEPT).cloned().collect();
                configuration.refused = Some(RefusedConfiguration { at: now, problems });
            }
        }
    }

    fn configuration(&self) -> Configuration {
        self.configuration.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn store(&self) -> StoreState {
        let store = self.queue.store();
        let (state, since, why) = match store.health() {
            Health::Good => ("good", None, None),
            Health::Failed { since, why } => {
                let since = since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as Millis);
                ("failed", Some(since), Some(why))
            }
        };
        let damages = store.damages().iter().map(ToString::to_string).collect();
        StoreState { state: state.to_owned(), since, why, damages }
    }

    fn memory(&self) -> Memory {
        let memory = self.queue.memory();
        Memory { used: memory.used(), limit: memory.limit() }
    }

    pub fn readiness(&self) -> Readiness {
        self.look();
        let intake = self.intake.load();
        let (disk, memory, store) = (intake.disk(), self.memory(), self.store());
        let stopping = self.stop.is_cancelled();
        let ready = !stopping && store.since.is_none() && disk.accepting && memory.used < memory.limit.max(1);
        Readiness {
            ready,
            store,
            disk: Disk { free: disk.free, min_free: disk.min_free, accepting: disk.accepting },
            memory,
            listeners: if stopping { Vec::new() } else { self.listeners.load().to_vec() },
            signing: intake.config().domains.keys().map(ToString::to_string).collect(),
            resolver: match intake.is_resolving() {
                None => ResolverState::Unknown,
                Some(true) => ResolverState::Answering,
                Some(false) => ResolverState::Failing,
            },
            suspended: super::operator::suspended(&self.queue),
            configuration: self.configuration(),
        }
    }

    pub fn metrics(&self) -> String {
        let mut page = Page::default();
        self.mail_metrics(&mut page);
        event_hooks::metrics(&mut page, &self.journal.outbox());
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
        let counts = self.queue.commit_counts();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let bounds = WRITE_MICROS.iter().map(|micros| *micros as f64 / 1e6).chain([f64::INFINITY]);
        let seconds: Vec<(f64, u64)> = bounds.zip(counts.synced_by_time.iter().map(load)).collect();
        let sum = load(&counts.synced_micros) as f64 / 1e6;
        page.histogram("postrider_commit_sync_seconds", "Time of a group's synced write.", &seconds, sum);
        let groups = [
            ("synced", load(&counts.synced_groups)),
            ("unsynced", load(&counts.unsynced_groups)),
            ("failed", load(&counts.failed_groups)),
        ];
        page.labelled(
            "postrider_commit_groups_total",
            "counter",
            "Groups given to the store: synced, riding along with a later sync, refused because it failed.",
            "result",
            groups,
        );
        page.counter("postrider_commit_batches_total", "Steps of the queue in these groups.", load(&counts.batches));
        page.counter("postrider_commit_bytes_total", "Bytes in these groups.", load(&counts.bytes));
    }

    fn state_metrics(&self, page: &mut Page) {
        self.look();
        let (disk, memory, store) = (self.intake.load().disk(), self.memory(), self.store());
        let flag = |yes: bool| u64::from(yes);
        let version = [(env!("CARGO_PKG_VERSION"), 1)];
        page.labelled("postrider_build_info", "gauge", "Always 1; the version is the label.", "version", version);
        let started = "When the server started, in seconds since 1970.";
        page.gauge("postrider_start_time_seconds", started, self.started_at as f64 / 1000.0);
        page.gauge("postrider_claims_held", "Recipients that are being worked on.", self.queue.claims().held());
        let suspended = self.queue.gates().suspended();
        let help = "How much is suspended (all: everything but exempt streams; target: it has answered 410).";
        let kinds = ["all", "stream", "smart_host", "fetch", "target"].map(|kind| {
            let is_kind = |what: &Suspension| match what {
                Suspension::All => kind == "all",
                Suspension::Stream(_) => kind == "stream",
                Suspension::SmartHost(_) => kind == "smart_host",
                Suspension::Fetch => kind == "fetch",
                Suspension::Target(_) => kind == "target",
            };
            (kind, suspended.iter().filter(|(what, _)| is_kind(what)).count())
        });
        page.labelled("postrider_suspended", "gauge", help, "what", kinds);
        let damaged = "Recipients that are set aside because a record cannot be read.";
        page.gauge("postrider_damaged_recipients", damaged, self.queue.damaged().1);
        page.gauge("postrider_memory_used_bytes", "Memory in use for messages (queue.memory).", memory.used);
        page.gauge("postrider_memory_limit_bytes", "The most of it.", memory.limit);
        page.gauge("postrider_disk_free_bytes", "Free space where data_dir is.", disk.free);
        page.gauge("postrider_disk_min_free_bytes", "Below this no mail is taken (queue.min_free).", disk.min_free);
        page.gauge("postrider_disk_accepting", "1 while there is room for new mail.", flag(disk.accepting));
        page.gauge("postrider_store_up", "1 while the store can be written.", flag(store.since.is_none()));
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let all = &self.counters;
        page.counter("postrider_store_reopened_total", "Times it came back by itself.", self.queue.store().reopened());
        page.counter("postrider_store_damages_total", "Damages found and set aside.", store.damages.len() as u64);
        page.counter("postrider_disk_low_total", "Times the disk guard closed.", count(&all.disk_low));
        page.counter("postrider_memory_full_total", "Times the memory guard closed.", count(&all.memory_full));
        let renewed = "Certificates that an authority has given (tls.acme).";
        page.counter("postrider_certificates_renewed_total", renewed, count(&all.certificates_renewed));
        let failed = "Orders for a certificate that have failed (tls.acme).";
        page.counter("postrider_certificates_failed_total", failed, count(&all.certificates_failed));
        let reloads = [("applied", count(&all.reloaded)), ("refused", count(&all.reloads_refused))];
        let help = "Times that another configuration was found in the files, by what became of it.";
        page.labelled("postrider_config_reloads_total", "counter", help, "result", reloads);
        let configuration = self.configuration();
        let help = "When the configuration that holds was taken, in seconds since 1970.";
        page.gauge("postrider_config_last_reload_success_timestamp_seconds", help, configuration.since as f64 / 1000.0);
        let help = "1 while a newer configuration in the files is refused.";
        page.gauge("postrider_config_refused", help, flag(configuration.refused.is_some()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_that_closes_is_told_of_once_and_once_when_it_opens() {
        let mut last = Last { disk_accepts: true, memory_full: false };
        let disk = |free: u64| DiskState { free, min_free: 100, accepting: free >= 100 };
        let memory = |used: u64| Memory { used, limit: 1000 };
        let mut told = Vec::new();
        for (free, used) in [(500, 0), (99, 10), (50, 940), (99, 950), (100, 1000), (100, 850), (500, 799), (500, 0)] {
            told.extend(last.change(disk(free), memory(used)));
        }
        let wanted = [
            ServerEvent::DiskLow { free: 99, min_free: 100 },
            ServerEvent::MemoryFull { used: 950, limit: 1000 },
            ServerEvent::DiskGood { free: 100 },
            ServerEvent::MemoryGood { used: 799 },
        ];
        assert_eq!(told, wanted);
    }
}
