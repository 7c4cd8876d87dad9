//! `tests/data/mime-bombs`: messages made to cost more than they weigh, through every door of a server in a process of its
//! own: from outside to a webhook (which takes them apart) and a Maildir, as a bounce (which is read as a report), from an
//! account whose attachments are counted, whole over HTTP, as JSON whole and in parts, as files of a pickup folder; and read
//! again where mail is captured. Measured for each: the CPU time of the process, and the memory that it needs on top.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/client.rs"]
mod client;
#[path = "support/conversation.rs"]
mod conversation;
#[path = "support/endpoint.rs"]
mod endpoint;
#[path = "support/flow.rs"]
mod flow;
#[path = "support/served.rs"]
mod served;
#[path = "support/zone.rs"]
mod zone;

/// What all tests share.
mod support {
    pub(crate) use super::client;
    pub(crate) use super::endpoint;
    pub(crate) use super::served;
    pub(crate) use super::zone;
}
#[path = "mime_bombs/doors.rs"]
mod doors;
#[path = "mime_bombs/make.rs"]
mod make;
#[path = "mime_bombs/measure.rs"]
mod measure;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use doors::{DOORS, Doors};
use make::{make, size_max, times, with};
use measure::{cpu, forget_peak, memory, settled};
use support::client::Client;
use support::endpoint::{Endpoint, answer};
use support::served::Served;
use support::zone::{Zone, ZoneServer};

const SET: &str = include_str!("data/mime-bombs/spec.yml");
/// Of one message, by the server that is built for use; one built for tests, not optimised, has three times as much.
const CPU_MAX: Duration = Duration::from_secs(if cfg!(debug_assertions) { 6 } else { 2 });
const MEMORY_MAX: u64 = 256 << 20;
/// Of its size; but a store that writes has buffers, which no small message pays for.
const MEMORY_FACTOR: u64 = 8;
const MEMORY_FREE: u64 = 48 << 20;
/// A part of these may fall due with any message, whatever it is.
const STORE_BYTES: u64 = 16 << 20;

const CONF: &str = r#"
hostname = "mail.home.test"
data_dir = "DATA_DIR"
[listeners.mx]
role = "mx"
bind = ["127.0.0.1:0"]
[listeners.submission]
role = "submission"
bind = ["127.0.0.1:0"]
[limits]
connection_rate = "100000/m"
[queue]
min_free = "1MiB"
[accounts.shop]
password = "correct horse"
max_attachments = "10MiB"
[pickup.in]
path = "DATA_DIR/../in"
account = "shop"
settle = "0s"
[domains."home.test"]
catchall = ["crm", "box"]
[targets.crm]
kind = "webhook"
url = "URL"
[targets.box]
kind = "maildir"
path = "DATA_DIR/box"
[checks]
spf = "off"
rdns = "off"
[loops]
trusted = ["known.test", "home.test"]
[delivery]
default = "capture"
[dns]
nameservers = ["ZONE"]
"#;

/// The sizes of a case; one where the set names none.
fn sizes(map: &BTreeMap<String, Vec<u8>>) -> Vec<usize> {
    let Some(list) = map.get("n") else { return vec![1] };
    flow::items(list).iter().map(|n| std::str::from_utf8(n).unwrap().parse().unwrap()).collect()
}

struct World {
    server: Served,
    endpoint: Endpoint,
    folder: tempfile::TempDir,
    _zone: ZoneServer,
}

impl World {
    async fn new() -> World {
        let endpoint = Endpoint::answering(&[]).await;
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("in")).unwrap();
        let zone = Zone::new().a("known.test", "127.0.0.1").a("d.test", "127.0.0.1").serve().await;
        let conf = CONF.replace("URL", &endpoint.url).replace("ZONE", &zone.addr().to_string());
        let server = Served::start(folder.path(), &conf, 2).await;
        World { server, endpoint, folder, _zone: zone }
    }

    /// It still serves, and nothing in it has broken.
    async fn end(self) {
        let mut client = Client::connect(self.server.door("mx")).await.unwrap();
        let reply = client.send_bytes("ann@known.test", "x@home.test", &with("", "still here\r\n")).await.unwrap();
        assert!(reply.starts_with("250"), "{reply}");
        assert!(!self.server.text().contains("panicked"), "{}", self.server.text());
        self.server.stop_at_once().await;
    }
}

/// What one message may need on top.
fn memory_max(size: u64) -> u64 {
    (size * MEMORY_FACTOR + STORE_BYTES).clamp(MEMORY_FREE, MEMORY_MAX)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bomb_is_cheap_through_every_door() {
    let world = World::new().await;
    let pid = world.server.id();
    let mut doors = Doors::new(&world.server, world.folder.path());
    let cases = flow::maps(SET);
    assert_eq!(cases.len(), 20);
    // What a server sets up at its first large message (the store's tables, arenas, threads) is no bomb's doing.
    let harmless = with("", &"just a line\r\n".repeat(size_max() / 13));
    for door in DOORS {
        world.endpoint.will(&answer("200 OK", "", ""));
        doors.through(door, &harmless).await;
        settled(pid).await;
    }
    world.endpoint.take();
    empty(&world.folder.path().join("data/box/new"));
    let (mut bombs, mut faults) = (0, Vec::new());
    let (mut most_cpu, mut most_memory) = ((Duration::ZERO, String::new()), (0, String::new()));
    for case in &cases {
        let id = flow::text(case, "id");
        for n in sizes(case) {
            for (number, bomb) in make(&id, n).into_iter().enumerate() {
                for door in DOORS {
                    world.endpoint.will(&answer("200 OK", "", ""));
                    forget_peak(pid);
                    let (cpu_before, before) = (cpu(pid), memory(pid, "VmRSS"));
                    let reply = doors.through(door, &bomb).await;
                    settled(pid).await;
                    let size = doors.sent as u64;
                    let (used, more) = (cpu(pid) - cpu_before, memory(pid, "VmHWM").saturating_sub(before));
                    let told = format!(
                        "{id}.{number} of {n} by {door:?}: {size} bytes, {used:?} CPU, {} MiB: {reply}",
                        more >> 20
                    );
                    println!("{told}");
                    most_cpu = most_cpu.max((used, told.clone()));
                    most_memory = most_memory.max((more, told.clone()));
                    if used > CPU_MAX || more > memory_max(size) {
                        faults.push(told);
                    }
                }
                world.endpoint.take();
                empty(&world.folder.path().join("data/box/new"));
                bombs += 1;
            }
        }
    }
    println!("{bombs} bombs through {} doors; most CPU: {}; most memory: {}", DOORS.len(), most_cpu.1, most_memory.1);
    world.end().await;
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// What a box has been given is not looked at here, and all of them together would fill the disk.
fn empty(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let _ = std::fs::remove_file(entry.path());
    }
}

/// What only JSON can do to its reader.
#[tokio::test(flavor = "multi_thread")]
async fn json_made_to_cost_is_cheap_too() {
    let world = World::new().await;
    let pid = world.server.id();
    let doors = Doors::new(&world.server, world.folder.path());
    let around = |inside: &str| format!("{{\"from\":\"shop@home.test\",\"to\":[\"you@far.test\"],{inside}}}");
    let many = |piece: &str| piece.repeat(size_max() / piece.len());
    let numbered = |one: fn(usize) -> String| times(usize::MAX, one);
    let mut faults = Vec::new();
    for (what, body, wanted) in [
        ("arrays in arrays", many("["), "4"),
        ("objects in objects", many("{\"a\":"), "4"),
        ("a text in escapes", around(&format!("\"text\":\"{}\"", many("\\u0001"))), ""),
        ("a subject in escapes", around(&format!("\"subject\":\"{}\"", many("\\ud83d\\ude00"))), "4"),
        ("half of a pair", around(&format!("\"text\":\"{}\"", many("\\ud83d"))), "4"),
        ("one key again and again", around(&format!("{}\"text\":\"x\"", many("\"text\":\"x\","))), "4"),
        ("keys that nobody knows", around(&format!("{}\"text\":\"x\"", many("\"zzz\":1,"))), "4"),
        ("recipients", around(&format!("\"cc\":[{}\"a@b.test\"]", many("\"a@b.test\","))), "4"),
        ("fields", around(&format!("\"headers\":{{{}\"X\":\"y\"}}", many("\"X\":\"y\","))), ""),
        (
            "many fields",
            around(&format!("\"headers\":{{{}\"X\":\"y\"}}", numbered(|n| format!("\"X-{n}\":\"y\",")))),
            "4",
        ),
        (
            "many recipients",
            around(&format!("\"bcc\":[{}\"a@b.test\"]", numbered(|n| format!("\"a{n}@b.test\",")))),
            "4",
        ),
        ("attachments", around(&format!("\"attachments\":[{}{{\"content\":\"\"}}]", many("{\"content\":\"\"},"))), "4"),
        ("a number", around(&format!("\"text\":{}", many("9"))), "4"),
        ("blanks", around(&format!("{}\"text\":\"x\"", many(" "))), "202"),
        ("an address in comments", around(&format!("\"reply_to\":\"{}x@y.test\"", many("("))), "4"),
    ] {
        forget_peak(pid);
        let (cpu_before, before) = (cpu(pid), memory(pid, "VmRSS"));
        let reply = doors.post_text(body.as_bytes()).await;
        settled(pid).await;
        let (used, more) = (cpu(pid) - cpu_before, memory(pid, "VmHWM").saturating_sub(before));
        let told = format!("{what}: {} bytes, {used:?} CPU, {} MiB: {reply}", body.len(), more >> 20);
        println!("{told}");
        let is_told = reply.starts_with(wanted) && (reply.starts_with('4') || reply == "202");
        if used > CPU_MAX || more > memory_max(body.len() as u64) || !is_told {
            faults.push(told);
        }
    }
    world.end().await;
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}
