//! What a server of this kind is judged by, on loopback, in one run: messages accepted and relayed a
//! second, CPU and disk for each, the time to the 250, memory. `make bench`.
//!
//! Under test is the real binary with its defaults (so synced before 250), in a process of its own;
//! only its CPU and memory are counted. The load comes from smtp-source, and the same from ours with
//! bodies that do not compress. Where Debian's Postfix can be had (`.ci/postfix.sh`) it is measured
//! beside, in rounds that take turns, and so is smtp-sink, which keeps nothing: the floor.
//!
//! Accepted mail is to stay in the queue while ingest is measured. Postfix holds it (the cheapest thing
//! it can do with it); ours waits for a mail exchanger that takes connections and never greets, so it
//! pays for its schedule and for its first attempts too.
//!
//! Environment: `ROUNDS` (3), `SECONDS_EACH` (of one measurement, 1), `PARTS` (all:
//! `compare,relay,slow,latency,matrix,memory`), `ONLY` cases whose name holds this, `IDLE` connections (1000).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use support::book::Book;
use support::load::{self, Client, Done, Load, Until};
use support::plot::{self, Chart};
use support::postfix::{self, Package, Postfix, Source, Then};
use support::process::written_bytes;
use support::server::{Server, Set};
use support::sink::{Silent, Sink};
use support::{names, say, setting};
use tokio::runtime::Runtime;

const KIB: usize = 1024;
/// Most bytes sent in one measurement, so that disks of any size do.
const BYTES_MAX: u64 = 512 << 20;
const MESSAGES_MAX: u64 = 40_000;
/// Longest wait for the last message at the sink.
const RELAY_TIME: Duration = Duration::from_secs(120);
/// The paced load.
const PACE: u64 = 150;

/// A server that writes nothing for so long has nothing to do.
const REST_TIME: Duration = Duration::from_secs(3);
const SLOW_CASE: &str = "16 sessions, 10 KiB, one domain";
const ALONE: &str = "alone";
const BESIDE: &str = "beside it";

const OURS: &str = "postrider";
const PEER: &str = "postfix";
const FLOOR: &str = "smtp-sink";

const RATE: &str = "messages/s";
const REUSE: &str = "messages/connection";
const CPU: &str = "CPU ms/message";
const DISK: &str = "disk KiB/message";

/// What all parts need.
struct Bench {
    runtime: Runtime,
    book: Book,
    rounds: u64,
    each: Duration,
    dns: SocketAddr,
    /// Takes connections and never greets.
    silent: TcpListener,
    package: Option<Package>,
    holding: Option<Postfix>,
}

fn main() {
    support::clean_up();
    let mut bench = Bench::new();
    let parts = std::env::var("PARTS").unwrap_or_else(|_| "compare,relay,slow,latency,matrix,memory".into());
    let started = Instant::now();
    for part in parts.split(',') {
        say(format!("{:>4} s  part {part}", started.elapsed().as_secs()));
        match part {
            "compare" => bench.compare(),
            "relay" => bench.relay(),
            "slow" => bench.slow(),
            "latency" => bench.latency(),
            "matrix" => bench.matrix(),
            "memory" => bench.memory(),
            other => panic!("PARTS has no {other:?}"),
        }
    }
    bench.holding = None;
    bench.tell();
    say(format!("{:>4} s  done", started.elapsed().as_secs()));
}

/// One case of ingest.
#[derive(Clone, Copy)]
struct Case {
    sessions: usize,
    size: usize,
    reuse: bool,
}

impl Case {
    fn name(&self) -> String {
        let (noun, connections) =
            (if self.sessions == 1 { "session" } else { "sessions" }, if self.reuse { "reused" } else { "one each" });
        format!("{} {noun}, {} KiB, {connections}", self.sessions, self.size / KIB)
    }

    /// So many that a server of this speed is busy for this time.
    fn messages(&self, per_second: f64, time: Duration) -> u64 {
        let wanted = (per_second * time.as_secs_f64()) as u64;
        wanted.clamp(50, MESSAGES_MAX).min(BYTES_MAX / self.size as u64)
    }

    /// To get going: processes forked, files and caches there.
    fn warm_up(&self) -> u64 {
        (self.sessions as u64 * 8).clamp(200, 1000)
    }
}

fn is_wanted(name: &str) -> bool {
    std::env::var("ONLY").map_or(true, |only| name.contains(&only))
}

const fn case(sessions: usize, kib: usize, reuse: bool) -> Case {
    Case { sessions, size: kib * KIB, reuse }
}

impl Bench {
    fn new() -> Bench {
        let mut book = Book::new();
        let package = Package::find().map_err(|why| say(format!("WARNING: no smtp-source: {why}"))).ok();
        let mut holding = None;
        if let Some(package) = &package {
            match package.may_serve() {
                Ok(()) => {
                    book.note("Postfix", package.version());
                    holding = Some(Postfix::start(package, Then::Hold));
                }
                Err(why) => say(format!("WARNING: the comparison with Postfix is SKIPPED: {why}")),
            }
        }
        Bench {
            runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
            book,
            rounds: setting("ROUNDS", 3).max(1),
            each: Duration::from_secs_f64(setting("SECONDS_EACH", 1).max(1) as f64),
            dns: names::serve(names::Exchangers::Own),
            silent: TcpListener::bind("127.0.0.1:0").unwrap(),
            package,
            holding,
        }
    }

    fn set(&self, mx_port: u16) -> Set {
        Set { dns: self.dns, mx_port, schedule: "[\"1h\"]" }
    }

    /// A new server with an empty queue, whose mail waits.
    fn queueing(&self, folder: &tempfile::TempDir) -> Server {
        Server::start(folder.path(), self.set(self.silent.local_addr().unwrap().port()))
    }

    /// Ingest from smtp-source: ours, Postfix, and the floor.
    fn compare(&mut self) {
        let Some(package) = self.package.clone() else { return };
        let cases = [
            case(1, 10, false),
            case(1, 10, true),
            case(16, 10, false),
            case(16, 10, true),
            case(64, 10, false),
            case(64, 10, true),
            case(256, 10, false),
            case(16, 1, false),
            case(16, 100, false),
        ];
        for case in cases.into_iter().filter(|case| is_wanted(&case.name())) {
            for round in 1..=self.rounds {
                say(format!("        ingest from smtp-source: {}, round {round}", case.name()));
                {
                    let folder = support::scratch();
                    let server = self.queueing(&folder);
                    self.measure_source(&package, "ingest", case, OURS, server.address, Some(server.id()));
                    server.kill();
                }
                support::settle();
                if let Some(postfix) = self.holding.take() {
                    self.measure_source(&package, "ingest", case, PEER, postfix.address, Some(postfix.id()));
                    postfix.empty();
                    self.holding = Some(postfix);
                }
                support::settle();
                let sink = postfix::Sink::start(&package, postfix::free_port(), None);
                self.measure_source(&package, "ingest", case, FLOOR, sink.address, None);
            }
        }
    }

    /// One measurement; CPU and disk where the server's process is told.
    fn measure_source(
        &mut self,
        package: &Package,
        part: &str,
        case: Case,
        server: &str,
        to: SocketAddr,
        id: Option<u32>,
    ) {
        let Case { sessions, size, reuse } = case;
        let send = |messages| postfix::source(package, to, Source { sessions, messages, size, reuse });
        let warm_up = case.warm_up();
        let messages = case.messages(warm_up as f64 / send(warm_up), self.each);
        let before = id.map(|id| (support::process::cpu_seconds(id), written_bytes(id)));
        let seconds = send(messages);
        self.book.add(part, &case.name(), server, RATE, messages as f64 / seconds);
        if let (Some(id), Some((cpu, disk))) = (id, before) {
            self.costs(part, &case.name(), server, id, (cpu, disk), messages);
        }
    }

    fn costs(&mut self, part: &str, case: &str, server: &str, id: u32, before: (f64, u64), messages: u64) {
        let cpu = support::process::cpu_seconds(id) - before.0;
        let disk = written_bytes(id).saturating_sub(before.1);
        self.book.add(part, case, server, CPU, cpu * 1000.0 / messages as f64);
        self.book.add(part, case, server, DISK, disk as f64 / 1024.0 / messages as f64);
    }

    /// From smtp-source through the server to smtp-sink; without them, from ours to ours.
    fn relay(&mut self) {
        let Some(package) = self.package.clone() else {
            say("        from our own source to our own sink only");
            return self.own_relay();
        };
        let port = postfix::free_port();
        let relaying = package.may_serve().is_ok().then(|| Postfix::start(&package, Then::Relay(port)));
        let cases = [case(16, 1, false), case(16, 10, false), case(16, 100, false), case(64, 10, true)];
        for case in cases.into_iter().filter(|case| is_wanted(&case.name())) {
            for round in 1..=self.rounds {
                say(format!("        relay: {}, round {round}", case.name()));
                let folder = support::scratch();
                let server = Server::start(folder.path(), self.set(port));
                self.measure_relay(&package, case, OURS, server.address, server.id(), port);
                server.stop();
                support::settle();
                if let Some(postfix) = &relaying {
                    self.measure_relay(&package, case, PEER, postfix.address, postfix.id(), port);
                    support::settle();
                }
            }
        }
        self.own_relay();
    }

    fn measure_relay(&mut self, package: &Package, case: Case, server: &str, to: SocketAddr, id: u32, port: u16) {
        let Case { sessions, size, reuse } = case;
        let through = |messages: u64| {
            let mut sink = postfix::Sink::start(package, port, Some(messages));
            let started = Instant::now();
            postfix::source(package, to, Source { sessions, messages, size, reuse });
            assert!(sink.wait(RELAY_TIME), "{server}: not all of {messages} messages came out");
            started.elapsed().as_secs_f64()
        };
        let warm_up = case.warm_up();
        let messages = case.messages(warm_up as f64 / through(warm_up), self.each * 2);
        let before = (support::process::cpu_seconds(id), written_bytes(id));
        let seconds = through(messages);
        self.book.add("relay", &case.name(), server, RATE, messages as f64 / seconds);
        self.costs("relay", &case.name(), server, id, before, messages);
    }

    /// The same with our own source and sink, whose bodies do not compress, to one domain and to many.
    fn own_relay(&mut self) {
        for (domains, kib) in [(1, 10), (100, 10), (1, 1024)] {
            let name = format!("16 sessions, {kib} KiB, {domains} domains");
            if !is_wanted(&name) {
                continue;
            }
            for round in 1..=self.rounds {
                say(format!("        relay, own load: {name}, round {round}"));
                let folder = support::scratch();
                let sink = self.runtime.block_on(Sink::start(0));
                let server = Server::start(folder.path(), self.set(sink.address.port()));
                let load = Load {
                    to: server.address,
                    sessions: 16,
                    size: kib * KIB,
                    reuse: true,
                    until: Until::Time(self.each * 2),
                    pace: None,
                    domains,
                    parent: load::FAR,
                };
                let before = (server.cpu_seconds(), written_bytes(server.id()));
                let started = Instant::now();
                let done = self.runtime.block_on(load::run(&load));
                let all = self.runtime.block_on(sink.wait_for(done.messages, RELAY_TIME));
                assert!(all, "{} of {} messages came out", sink.taken(), done.messages);
                let seconds = started.elapsed().as_secs_f64();
                self.book.add("relay, own load", &name, OURS, RATE, done.messages as f64 / seconds);
                self.costs("relay, own load", &name, OURS, server.id(), before, done.messages);
                self.book.add("relay, own load", &name, OURS, REUSE, done.messages as f64 / sink.connections() as f64);
                server.stop();
                support::settle();
            }
        }
    }

    /// Mail to one destination alone, and beside a long queue for another that takes connections and never
    /// answers.
    fn slow(&mut self) {
        let queued = setting("QUEUED", 50_000);
        for round in 1..=self.rounds {
            // They take turns to be the first.
            let cases = if round % 2 == 0 { [0, queued] } else { [queued, 0] };
            for queued in cases {
                say(format!("        beside {queued} messages for one that never answers, round {round}"));
                self.measure_slow(queued);
                support::settle();
            }
        }
        let speed = self.book.ratio("slow", SLOW_CASE, RATE, (BESIDE, ALONE));
        self.book.at_least(&format!("relay beside {queued} messages for a silent server: speed / alone"), 0.9, speed);
        let reuse = self.book.median("slow", SLOW_CASE, ALONE, REUSE);
        self.book.at_least("messages a connection, steady load to one server", 50.0, reuse);
    }

    fn measure_slow(&mut self, queued: u64) {
        let folder = support::scratch();
        let (sink, silent) = self.runtime.block_on(async {
            let sink = Sink::start(0).await;
            let silent = Silent::start(sink.address.port()).await;
            (sink, silent)
        });
        let server = Server::start(folder.path(), self.set(sink.address.port()));
        let load = |parent, until| Load {
            to: server.address,
            sessions: 16,
            size: 10 * KIB,
            reuse: true,
            until,
            pace: None,
            domains: 1,
            parent,
        };
        if queued > 0 {
            self.runtime.block_on(load::run(&load(load::SLOW, Until::Messages(queued))));
            assert!(silent.connections() > 0, "nothing was sent to the silent one");
        }
        // What was queued in a hurry is brought into order first.
        rest(&server);
        // Both are measured warm.
        let warm_up = self.runtime.block_on(load::run(&load(load::FAR, Until::Messages(2_000))));
        assert!(self.runtime.block_on(sink.wait_for(warm_up.messages, RELAY_TIME)), "the warm-up did not come out");
        let before = (server.cpu_seconds(), written_bytes(server.id()));
        let opened = sink.connections();
        let started = Instant::now();
        let done = self.runtime.block_on(load::run(&load(load::FAR, Until::Time(self.each * 4))));
        let all = self.runtime.block_on(sink.wait_for(warm_up.messages + done.messages, RELAY_TIME));
        assert!(all, "{} of {} messages came out", sink.taken(), warm_up.messages + done.messages);
        let seconds = started.elapsed().as_secs_f64();
        let name = if queued > 0 { BESIDE } else { ALONE };
        self.book.add("slow", SLOW_CASE, name, RATE, done.messages as f64 / seconds);
        let opened = (sink.connections() - opened).max(1);
        self.book.add("slow", SLOW_CASE, name, REUSE, done.messages as f64 / opened as f64);
        self.costs("slow", SLOW_CASE, name, server.id(), before, done.messages);
        server.kill();
    }

    /// Accept latency at a paced load: enough messages that the 99th percentile is one of many.
    fn latency(&mut self) {
        for round in 1..=self.rounds {
            say(format!("        latency at {PACE} messages/s on 16 sessions, round {round}"));
            {
                let folder = support::scratch();
                let server = self.queueing(&folder);
                self.measure_latency(OURS, server.address);
                server.kill();
            }
            support::settle();
            if let Some(postfix) = self.holding.take() {
                self.measure_latency(PEER, postfix.address);
                postfix.empty();
                self.holding = Some(postfix);
                support::settle();
            }
            let sink = self.runtime.block_on(Sink::start(0));
            self.measure_latency("own sink", sink.address);
        }
    }

    fn measure_latency(&mut self, server: &str, to: SocketAddr) {
        let load = |time| Load {
            to,
            sessions: 16,
            size: 10 * KIB,
            reuse: true,
            until: Until::Time(time),
            pace: Some(PACE),
            domains: 1,
            parent: load::FAR,
        };
        self.runtime.block_on(load::run(&load(Duration::from_secs(1))));
        let done: Done = self.runtime.block_on(load::run(&load(self.each * 6)));
        for (name, share) in [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)] {
            self.book.add("latency", name, server, "ms to the 250", done.quantile(share));
        }
    }

    /// Ingest from our own source: every combination.
    fn matrix(&mut self) {
        // A round of all is long, and nothing is compared: one less.
        for round in 1..self.rounds.max(2) {
            for reuse in [false, true] {
                for (sessions, kib) in [1, 16, 64, 256].into_iter().flat_map(|s| [1, 10, 100].map(|kib| (s, kib))) {
                    let case = case(sessions, kib, reuse);
                    if !is_wanted(&case.name()) {
                        continue;
                    }
                    say(format!("        ingest, own load: {}, round {round}", case.name()));
                    let folder = support::scratch();
                    let server = self.queueing(&folder);
                    self.measure_own(case, OURS, server.address, Some(server.id()));
                    server.kill();
                    let sink = self.runtime.block_on(Sink::start(0));
                    self.measure_own(case, "own sink", sink.address, None);
                    support::settle();
                }
            }
        }
    }

    fn measure_own(&mut self, case: Case, server: &str, to: SocketAddr, id: Option<u32>) {
        let Case { sessions, size, reuse } = case;
        let load = |until| Load { to, sessions, size, reuse, until, pace: None, domains: 1, parent: load::FAR };
        let warm_up = self.runtime.block_on(load::run(&load(Until::Messages(case.warm_up()))));
        let messages = case.messages(warm_up.per_second(), self.each);
        let before = id.map(|id| (support::process::cpu_seconds(id), written_bytes(id)));
        let done = self.runtime.block_on(load::run(&load(Until::Messages(messages))));
        self.book.add("ingest, own load", &case.name(), server, RATE, done.per_second());
        if let (Some(id), Some(before)) = (id, before) {
            self.costs("ingest, own load", &case.name(), server, id, before, done.messages);
        }
    }

    /// Memory of the idle server, of an idle connection, of a queued message.
    fn memory(&mut self) {
        let idle = setting("IDLE", 1000) as usize;
        let folder = support::scratch();
        let server = self.queueing(&folder);
        self.book.add("memory", "idle", OURS, "MiB", server.memory_bytes() as f64 / MIB);
        self.connections(OURS, server.address, server.id(), idle);
        let load = Load {
            to: server.address,
            sessions: 16,
            size: 10 * KIB,
            reuse: true,
            until: Until::Messages(20_000),
            pace: None,
            domains: 1,
            parent: load::FAR,
        };
        // The second of two equal lots: buffers have their size after the first.
        self.runtime.block_on(load::run(&load));
        let before = server.memory_bytes();
        self.runtime.block_on(load::run(&load));
        let more = server.memory_bytes() as f64 - before as f64;
        self.book.add("memory", "20,000 x 10 KiB more queued", OURS, "MiB", more / MIB);
        self.book.add("memory", "with 40,000 x 10 KiB queued", OURS, "MiB", server.memory_bytes() as f64 / MIB);
        server.kill();
        if let Some(postfix) = self.holding.take() {
            self.book.add("memory", "idle", PEER, "MiB", postfix.memory_bytes() as f64 / MIB);
            self.connections(PEER, postfix.address, postfix.id(), idle);
            self.holding = Some(postfix);
        }
    }

    fn connections(&mut self, server: &str, to: SocketAddr, id: u32, count: usize) {
        let before = support::process::memory_bytes(id);
        let open = self.runtime.block_on(async {
            let mut open = Vec::with_capacity(count);
            for _ in 0..count {
                open.push(Client::connect(to).await.unwrap());
            }
            open
        });
        let more = support::process::memory_bytes(id).saturating_sub(before) as f64;
        drop(open);
        let case = format!("an idle connection of {count}");
        self.book.add("memory", &case, server, "KiB", more / 1024.0 / count as f64);
    }

    /// Tables, goals, files.
    fn tell(&mut self) {
        self.goals();
        let book = &self.book;
        for (what, value) in &book.about {
            println!("{what}: {value}");
        }
        for part in ["ingest", "relay", "relay, own load", "slow", "ingest, own load"] {
            for unit in [RATE, CPU, DISK, REUSE] {
                book.print(part, part, unit);
            }
        }
        book.print("latency", "latency", "ms to the 250");
        book.print("memory", "memory", "MiB");
        book.print("memory", "memory", "KiB");
        book.print_goals();
        book.write(&support::folder().join("relay.json"));
        let charts = [
            Chart { title: "Accepted and queued, from smtp-source", part: "ingest", unit: RATE },
            Chart { title: "CPU of the server, accepting", part: "ingest", unit: CPU },
            Chart { title: "Relayed end to end", part: "relay", unit: RATE },
            Chart { title: "CPU of the server, relaying", part: "relay", unit: CPU },
            Chart { title: "Reply to the final dot at 150 messages/s", part: "latency", unit: "ms to the 250" },
        ];
        plot::write(book, &charts, &support::folder().join("relay.svg"));
    }

    fn goals(&mut self) {
        let book = &mut self.book;
        let peer = (OURS, PEER);
        for sessions in [16, 64] {
            let name = case(sessions, 10, false).name();
            let speed = book.ratio("ingest", &name, RATE, peer);
            book.at_least(&format!("{name}: speed / Postfix'"), 4.0, speed);
            let cpu = book.ratio("ingest", &name, CPU, peer);
            book.at_most(&format!("{name}: CPU / Postfix'"), 0.2, cpu);
            let floor = book.ratio("ingest", &name, RATE, (OURS, FLOOR));
            book.at_least(&format!("{name}: speed / smtp-sink's"), 0.5, floor);
        }
        for kib in [1, 10, 100] {
            let name = case(16, kib, false).name();
            let speed = book.ratio("relay", &name, RATE, peer);
            book.at_least(&format!("relay, {name}: speed / Postfix'"), 4.0, speed);
        }
        for reuse in [false, true] {
            let name = case(1, 10, reuse).name();
            let speed = book.ratio("ingest", &name, RATE, peer);
            book.at_least(&format!("{name}: speed / Postfix'"), 1.0, speed);
        }
        for quantile in ["p50", "p99"] {
            let latency = book.ratio("latency", quantile, "ms to the 250", peer);
            book.at_most(&format!("{quantile} of the time to the 250, paced: ours / Postfix'"), 1.0, latency);
        }
    }
}

const MIB: f64 = 1024.0 * 1024.0;

/// Until the server has written nothing for a while.
fn rest(server: &Server) {
    let deadline = Instant::now() + RELAY_TIME;
    let mut before = written_bytes(server.id());
    while Instant::now() < deadline {
        std::thread::sleep(REST_TIME);
        let now = written_bytes(server.id());
        if now == before {
            return;
        }
        before = now;
    }
}
