//! A long queue: what it costs to have one, and what is left when it has gone. `make bench-million`;
//! `make bench` runs it with 50,000.
//!
//! A queue of `COUNT` deferred messages of 2 KiB for 10,000 domains is written through the library (see
//! `support/fill.rs`), beside an empty one. The real binary then runs on both: memory, ingest in rounds
//! that take turns, the time from the start of a killed server to its first delivery. Scans of the due
//! index are timed through the library, against a queue of 10,000. At last everything is made due, the
//! server delivers all of it to a sink, and what is left on the disk is looked at.
//!
//! Environment: `COUNT` (50000), `ROUNDS` (3), `SECONDS_EACH` (of one round of ingest, 3),
//! `DRAIN_SECONDS` (longest time for delivering all, 300).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/fill.rs"]
mod fill;
#[path = "../tests/support/records.rs"]
mod records;
mod support;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fill::{Claiming, Filling};
use postrider::clock::{Clock, Millis};
use support::book::{Book, number};
use support::load::{self, Load, Until};
use support::server::{Server, Set};
use support::sink::Sink;
use support::{disk_bytes, free_bytes, names, say, setting};
use tokio::runtime::Runtime;

const SIZE: usize = 2048;
const DOMAINS: u64 = 10_000;
/// The queue that the long one is compared with.
const SMALL: u64 = 10_000;
/// So many claims are timed in a round, after so many others: a start is timed on its own, and in its
/// first scans every part of the index is looked at for the first time.
const CLAIMS: u64 = 5_000;
const CLAIMS_BEFORE: u64 = 4_096;
/// They take a few hundredths of a second.
const CLAIM_ROUNDS_MIN: u64 = 9;
const HOUR: Millis = 3_600_000;
const MIB: f64 = 1024.0 * 1024.0;
/// What a message takes on the disk while tables are merged, and what else is needed.
const DISK_EACH: u64 = 5_500;
const DISK_BESIDE: u64 = 500 << 20;
/// How long after its start, or after its work, a server's memory is looked at.
const REST: Duration = Duration::from_secs(2);
/// Longest wait for tables to be merged after the last delivery.
const MERGE_TIME: Duration = Duration::from_secs(30);
const FIRST_DELIVERY_TIME: Duration = Duration::from_secs(60);

const LONG: &str = "long queue";
const EMPTY: &str = "empty queue";
const SHORT: &str = "10,000 queued";

struct Bench {
    runtime: Runtime,
    book: Book,
    count: u64,
    rounds: u64,
    each: Duration,
    folder: tempfile::TempDir,
    set: Set,
    started: Instant,
}

fn main() {
    let count = setting("COUNT", 50_000).max(SMALL);
    support::clean_up();
    let needed = count * DISK_EACH + DISK_BESIDE;
    assert!(free_bytes() > needed, "{count} messages need {} MiB of free disk", needed >> 20);
    // Takes connections and never greets, so that what is accepted stays.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mx_port = silent.local_addr().unwrap().port();
    let mut bench = Bench {
        runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
        book: Book::new(),
        count,
        rounds: setting("ROUNDS", 3).max(1),
        each: Duration::from_secs(setting("SECONDS_EACH", 3).max(1)),
        folder: support::scratch(),
        set: Set { dns: names::serve(names::Exchangers::Shared), mx_port, schedule: "[\"1h\"]" },
        started: Instant::now(),
    };
    bench.book.note("messages", count.to_string());
    bench.fill();
    bench.ingest();
    drop(silent);
    bench.restart();
    bench.claims();
    bench.drain();
    bench.tell();
}

impl Bench {
    fn say(&self, text: impl AsRef<str>) {
        say(format!("{:>4} s  {}", self.started.elapsed().as_secs(), text.as_ref()));
    }

    fn data(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn filling(&self, count: u64) -> Filling {
        let due = Clock::System.now() + 6 * HOUR;
        Filling { count, bodies: fill::bodies(SIZE), domains: DOMAINS, due, spread: 6 * HOUR }
    }

    fn fill(&mut self) {
        for (name, count) in [("long", self.count), ("small", SMALL)] {
            self.say(format!("queueing {count} messages"));
            let (begun, filling) = (Instant::now(), self.filling(count));
            let store = self.data(name).join("store");
            std::fs::create_dir_all(store.parent().unwrap()).unwrap();
            let (queue, _) = fill::open(&store, &Clock::System, false);
            self.runtime.block_on(fill::fill(&queue, &Clock::System, &filling));
            drop(queue);
            if name == "long" {
                let speed = count as f64 / begun.elapsed().as_secs_f64();
                self.book.add("fill", "through the library, unsynced", LONG, "messages/s", speed);
                self.book.add("store", "filled", LONG, "MiB", disk_bytes(&store) as f64 / MIB);
            }
        }
        support::settle();
    }

    /// Memory and ingest of both, at the same time and in turns.
    fn ingest(&mut self) {
        self.say("memory and ingest, beside the empty queue");
        let long = Server::start(&self.data("long"), self.set);
        let empty = Server::start(&self.data("empty"), self.set);
        std::thread::sleep(REST);
        let servers = [(LONG, long), (EMPTY, empty)];
        self.memory("started", &servers);
        for _ in 0..self.rounds {
            for (name, server) in &servers {
                let load = Load {
                    to: server.address,
                    sessions: 16,
                    size: SIZE,
                    reuse: true,
                    until: Until::Time(self.each),
                    pace: None,
                    domains: DOMAINS,
                    parent: load::FAR,
                };
                let cpu = server.cpu_seconds();
                let done = self.runtime.block_on(load::run(&load));
                let cpu = (server.cpu_seconds() - cpu) * 1000.0 / done.messages as f64;
                self.book.add("ingest", "16 sessions, 2 KiB", name, "messages/s", done.per_second());
                self.book.add("ingest", "16 sessions, 2 KiB", name, "CPU ms/message", cpu);
                support::settle();
            }
        }
        std::thread::sleep(REST);
        self.memory("after the ingest", &servers);
        for (_, server) in servers {
            server.kill();
        }
    }

    fn memory(&mut self, case: &str, servers: &[(&str, Server)]) {
        for (name, server) in servers {
            self.book.add("memory", case, name, "MiB", server.memory_bytes() as f64 / MIB);
        }
    }

    /// Killed, started again: what was accepted above is due, and goes out.
    fn restart(&mut self) {
        for _ in 1..=self.rounds {
            for (name, folder) in [(LONG, "long"), (EMPTY, "empty")] {
                self.say(format!("start to first delivery, {name}"));
                let sink = self.runtime.block_on(Sink::start(self.set.mx_port));
                let begun = Instant::now();
                let server = Server::start(&self.data(folder), self.set);
                let listens = begun.elapsed();
                let delivered = self.runtime.block_on(sink.wait_for(1, FIRST_DELIVERY_TIME));
                assert!(delivered, "nothing was delivered:\n{}", tail(&server.log()));
                let first = begun.elapsed();
                self.book.add("start", "to the open door", name, "s", listens.as_secs_f64());
                self.book.add("start", "to the first delivery", name, "s", first.as_secs_f64());
                server.kill();
                drop(sink);
            }
        }
    }

    /// What a scan of the due index costs for each message that it claims.
    fn claims(&mut self) {
        self.say("scans of the due index");
        let stores = [(LONG, self.data("long").join("store")), (SHORT, self.data("small").join("store"))];
        self.time_claims("at first", &stores);
    }

    /// In rounds that take turns.
    fn time_claims(&mut self, case: &str, stores: &[(&str, PathBuf)]) {
        // By then all are due, and so is what is put back.
        let clock = Clock::manual(Clock::System.now() + 24 * HOUR);
        for _ in 0..self.rounds.max(CLAIM_ROUNDS_MIN) {
            for (name, store) in stores {
                // Opened for each round, so that both read from tables: what was just put back lies in
                // memory, which would be all of the short queue and little of the long one.
                let (queue, _fresh) = fill::open(store, &clock, false);
                self.runtime.block_on(fill::claim(&queue, CLAIMS_BEFORE, clock.now() - 1));
                let claiming: Claiming = self.runtime.block_on(fill::claim(&queue, CLAIMS, clock.now() - 1));
                assert!(claiming.claimed >= CLAIMS, "only {} were claimed", claiming.claimed);
                self.book.add("claims", case, name, "us/message", claiming.micros_each());
            }
        }
    }

    /// Everything is delivered by the server; what is left?
    fn drain(&mut self) {
        self.say("making everything due");
        let store = self.data("long").join("store");
        let total = {
            let (queue, _) = fill::open(&store, &Clock::System, false);
            self.runtime.block_on(fill::retry_all(&queue, Clock::System.now()))
        };
        self.say(format!("delivering {total}"));
        let sink = self.runtime.block_on(Sink::start(self.set.mx_port));
        let server = Server::start(&self.data("long"), self.set);
        let speeds = self.watch(&sink, total);
        let is_done = sink.taken() >= total;
        if !is_done {
            say(format!("WARNING: only {} of {total} were delivered in time; raise DRAIN_SECONDS", sink.taken()));
        }
        self.book.note("delivered", format!("{} of {total}", sink.taken()));
        for (case, speed) in [("first tenth", speeds.first()), ("last tenth", speeds.last())] {
            speed.into_iter().for_each(|speed| self.book.add("delivering", case, LONG, "messages/s", *speed));
        }
        std::thread::sleep(REST);
        self.book.add("memory", "after all were delivered", LONG, "MiB", server.memory_bytes() as f64 / MIB);
        let bytes = self.merged(&store);
        self.book.add("store", "after all were delivered", LONG, "MiB", bytes as f64 / MIB);
        server.stop();
        drop(sink);
        let (queue, _) = fill::open(&store, &Clock::System, false);
        for (table, entries, bytes) in fill::tables(queue.store()) {
            self.book.add("tables afterwards", table, LONG, "entries", entries as f64);
            self.book.add("tables afterwards", table, LONG, "MiB uncompressed", bytes as f64 / MIB);
        }
        drop(queue);
        if is_done {
            self.claims_again(&store);
        }
    }

    /// The speed of each tenth.
    fn watch(&self, sink: &Sink, total: u64) -> Vec<f64> {
        let deadline = Instant::now() + Duration::from_secs(setting("DRAIN_SECONDS", 300));
        let (mut at, mut begun, mut speeds) = (0, Instant::now(), Vec::new());
        while sink.taken() < total && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            let taken = sink.taken();
            if taken - at >= total / 10 {
                let speed = (taken - at) as f64 / begun.elapsed().as_secs_f64();
                self.say(format!("{taken} delivered, {}/s", number(speed)));
                speeds.push(speed);
                (at, begun) = (taken, Instant::now());
            }
        }
        speeds
    }

    /// The size of the store once it does not change any more.
    fn merged(&self, store: &Path) -> u64 {
        let deadline = Instant::now() + MERGE_TIME;
        let (mut bytes, mut since) = (disk_bytes(store), Instant::now());
        while since.elapsed() < REST && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
            let now = disk_bytes(store);
            if now != bytes {
                (bytes, since) = (now, Instant::now());
            }
        }
        bytes
    }

    /// Where all have gone, beside a store that never held more.
    fn claims_again(&mut self, store: &Path) {
        self.say("scans of the due index, afterwards");
        let stores = [(LONG, store.to_owned()), (SHORT, self.data("new").join("store"))];
        std::fs::create_dir(self.data("new")).unwrap();
        let filling = self.filling(SMALL);
        for (_, store) in &stores {
            // With the clock at which they are not due yet, so that none is claimed as fresh mail.
            let (queue, _) = fill::open(store, &Clock::System, false);
            self.runtime.block_on(fill::fill(&queue, &Clock::System, &filling));
        }
        self.time_claims("10,000 after all have gone", &stores);
    }

    fn tell(&mut self) {
        self.goals();
        let book = &self.book;
        for (what, value) in &book.about {
            println!("{what}: {value}");
        }
        for (part, unit) in [
            ("fill", "messages/s"),
            ("memory", "MiB"),
            ("ingest", "messages/s"),
            ("ingest", "CPU ms/message"),
            ("start", "s"),
            ("claims", "us/message"),
            ("delivering", "messages/s"),
            ("store", "MiB"),
            ("tables afterwards", "entries"),
            ("tables afterwards", "MiB uncompressed"),
        ] {
            book.print(part, part, unit);
        }
        book.print_goals();
        book.write(&support::folder().join(format!("queue-{}.json", self.count)));
        self.say("done");
    }

    fn goals(&mut self) {
        let book = &mut self.book;
        let both = (LONG, EMPTY);
        for case in ["started", "after the ingest"] {
            let of = |book: &Book, name| book.median("memory", case, name, "MiB");
            let more = of(book, LONG).zip(of(book, EMPTY)).map(|(long, empty)| long - empty);
            book.at_most(&format!("MiB of memory above the empty queue's, {case}"), 150.0, more);
        }
        let speed = book.ratio("ingest", "16 sessions, 2 KiB", "messages/s", both);
        book.at_least("ingest: speed / the empty queue's", 0.85, speed);
        let start = book.median("start", "to the first delivery", LONG, "s");
        book.at_most("seconds from a killed server's start to its first delivery", 3.0, start);
        let claims = book.ratio("claims", "at first", "us/message", (LONG, SHORT));
        book.at_most("scan of the due index, each claimed message / that at 10,000", 1.2, claims);
        let left = book.median("store", "after all were delivered", LONG, "MiB");
        book.at_most("MiB of store after all were delivered", 300.0, left);
        let again = book.ratio("claims", "10,000 after all have gone", "us/message", (LONG, SHORT));
        book.at_most("the same with 10,000 after all have gone / in a new store", 1.2, again);
    }
}

/// The end of a log, for a failure.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().rev().take(20).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
