//! How many messages a second are accepted, and relayed end to end, on loopback: our own load
//! generator and sink, durable queue. `cargo bench --bench relay`.
//!
//! Environment: `MESSAGES` (default 5000), `SESSIONS` (default 16), `SIZE` in bytes (default 10240),
//! `ROUNDS` (default 3). One row a round, medians at the end. The CPU time is that of the whole process,
//! load generator and sink included.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/support"]
mod support {
    pub mod client;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use std::time::Instant;

use support::client::Client;
use support::server::TestServer;
use support::sink::Sink;
use support::zone::Zone;

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Text that does not compress to nothing: letters from a small generator.
fn body(size: usize) -> String {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut body = String::with_capacity(size + size / 70);
    for n in 0..size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        body.push(char::from(b'a' + (state % 26) as u8));
        if n % 70 == 69 {
            body.push_str("\r\n");
        }
    }
    body
}

/// CPU time of this process so far, in seconds (proc(5), in ticks of 10 ms); nothing where there is no /proc.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = |at: usize| behind_name.split_whitespace().nth(at).and_then(|text| text.parse::<f64>().ok());
    (ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) / 100.0
}

/// What one round shows.
struct Figures {
    accepted: f64,
    relayed: f64,
    cpu_ms: f64,
}

async fn round(messages: usize, sessions: usize, size: usize) -> Figures {
    let folder = tempfile::tempdir().unwrap();
    let sink = Sink::start_with(false, false).await;
    let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1").serve().await;
    let conf = format!(
        "[networks]\ntrusted = [\"127.0.0.0/8\"]\n[domains.\"home.test\"]\n[delivery]\nmx_port = {}\nallow_private_addresses = true\n[dns]\nnameservers = [\"{}\"]\n",
        sink.address.port(),
        zone.addr()
    );
    let server = TestServer::start(folder.path(), &conf).await;
    // A From that is not ours: what is measured is the relay, not RSA.
    let content = format!("From: <me@away.test>\r\nTo: <you@far.test>\r\nSubject: bench\r\n\r\n{}\r\n", body(size));
    let (started, cpu_before) = (Instant::now(), cpu());
    let mut tasks = Vec::new();
    for session in 0..sessions {
        let (content, address) = (content.clone(), server.submission);
        let share = messages / sessions + usize::from(session < messages % sessions);
        tasks.push(tokio::spawn(async move {
            let mut client = Client::connect(address).await.unwrap();
            for _ in 0..share {
                let reply = client.send("me@away.test", &["you@far.test"], &content).await.unwrap();
                assert!(reply.starts_with("250"), "{reply}");
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let accepted = messages as f64 / started.elapsed().as_secs_f64();
    sink.wait_for(messages).await;
    let relayed = messages as f64 / started.elapsed().as_secs_f64();
    let cpu_ms = (cpu() - cpu_before) * 1000.0 / messages as f64;
    server.stop().await;
    Figures { accepted, relayed, cpu_ms }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let (messages, sessions) = (setting("MESSAGES", 5000), setting("SESSIONS", 16));
    let (size, rounds) = (setting("SIZE", 10 * 1024), setting("ROUNDS", 3).max(1));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    println!("{messages} messages of {size} bytes over {sessions} sessions, synced before 250, {rounds} rounds");
    let mut all = Vec::new();
    for number in 1..=rounds {
        let one = runtime.block_on(round(messages, sessions, size));
        row(&format!("round {number}"), &one);
        all.push(one);
    }
    let middle = |figure: fn(&Figures) -> f64| median(all.iter().map(figure).collect());
    let medians = Figures {
        accepted: middle(|one| one.accepted),
        relayed: middle(|one| one.relayed),
        cpu_ms: middle(|one| one.cpu_ms),
    };
    row("median ", &medians);
}

fn row(name: &str, Figures { accepted, relayed, cpu_ms }: &Figures) {
    println!("{name}: accepted {accepted:>8.0}/s   relayed {relayed:>8.0}/s   CPU {cpu_ms:>6.3} ms a message");
}
