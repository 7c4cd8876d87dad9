//! A server on a machine with little memory: thousands of clients that do nothing, and beside them clients that each
//! bring a mail of 50 MB. All of those are taken and delivered, and the server's memory stays within 256 MiB: it would
//! not have been ended in a cgroup of that size.
//!
//! Where the machine lets us make a control group, that is what is done: the kernel gives the server so much, pages of
//! files included, and ends it if it needs more. Where not, it is measured and not enforced (the limits of a process,
//! RLIMIT_AS and RLIMIT_DATA, count what is reserved and never used): what must stay within is the memory that the
//! kernel cannot give back (`RssAnon` in /proc, looked at all the time); with the pages of the program file (`VmHWM`,
//! the highest that there was), which it could, it is a goal.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use super::group::Group;
use super::support::{process, say, setting};
use super::{Bench, PATIENCE, Server, Talk, client, expect, idle};

const MEMORY_MIB: u64 = 256;
const MAIL_MB: usize = 50;
/// Clients with a mail, and how many each has.
const CLIENTS: u32 = 5;
const MAILS_EACH: u32 = 2;
/// Between two looks at the memory.
const LOOK: Duration = Duration::from_millis(2);
/// Before a mail that was put off is tried again.
const PAUSE: Duration = Duration::from_millis(200);
/// As a machine of that size has it: room for one such mail, and the others wait.
const CONFIGURATION: &str = "[domains.\"big.test\"]\ncatchall = \"box\"\n[targets.box]\nkind = \"maildir\"\npath = \"FOLDER/box\"\n\
     [limits]\nmax_size = \"60MiB\"\n[queue]\nmin_free = \"100MiB\"\nmemory = \"64MiB\"\n";

/// How many mails were taken, and how often one was put off.
async fn mails(to: SocketAddr) -> (u64, u64) {
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn(async move {
            let (mut taken, mut put_off) = (0, 0);
            let since = Instant::now();
            while taken < u64::from(MAILS_EACH) && since.elapsed() < PATIENCE * 5 {
                match big_mail(to, number).await {
                    Ok(()) => taken += 1,
                    Err(_) => {
                        put_off += 1;
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
            (taken, put_off)
        });
    }
    clients.join_all().await.into_iter().fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
}

async fn big_mail(to: SocketAddr, number: u32) -> std::io::Result<()> {
    let mut talk = Talk::open(to, client(2, number)).await?;
    let unique = talk.number;
    talk.say(&format!("MAIL FROM:<me@away{unique}.test> SIZE={}", MAIL_MB * 1_000_000), "250").await?;
    talk.say("RCPT TO:<you@big.test>", "250").await?;
    talk.say("DATA", "354").await?;
    let header = format!("From: <me@away{unique}.test>\r\nTo: <you@big.test>\r\nSubject: big {unique}\r\n\r\n");
    talk.stream.write_all(header.as_bytes()).await?;
    let piece = format!("{unique:076}\r\n").repeat(1_000);
    let mut left = (MAIL_MB * 1_000_000).saturating_sub(header.len());
    while left > piece.len() {
        talk.stream.write_all(piece.as_bytes()).await?;
        left -= piece.len();
    }
    talk.stream.write_all(b".\r\n").await?;
    expect(&mut talk.stream, "250").await?;
    talk.say("QUIT", "221").await
}

/// Of all looks until the end.
async fn highest(id: u32, stop: Arc<AtomicBool>) -> u64 {
    let mut highest = 0;
    while !stop.load(Ordering::Relaxed) {
        highest = highest.max(process::anonymous_bytes(id));
        tokio::time::sleep(LOOK).await;
    }
    highest
}

impl Bench {
    /// 5,000 idle clients and mails of 50 MB at a server that may have 256 MB.
    pub(super) fn little(&mut self) {
        let idle_count = setting("LITTLE_IDLE", 5_000) as u32;
        let group = Group::of_memory(MEMORY_MIB << 20);
        let wrapper = group.as_ref().map(Group::wrapper).unwrap_or_default();
        let mut server = Server::start(self.dns, &wrapper, CONFIGURATION);
        let (id, mx) = (server.id(), server.mx);
        let delivered = server.folder.path().join("box/new");
        let stop = Arc::new(AtomicBool::new(false));
        let count = || std::fs::read_dir(&delivered).map_or(0, Iterator::count) as u64;
        let (open, taken, put_off, arrived, highest) = self.runtime.block_on(async {
            let idle = idle(&server, 1, idle_count, None).await;
            let watched = tokio::spawn(highest(id, stop.clone()));
            let (taken, put_off) = mails(mx).await;
            let since = Instant::now();
            while count() < taken && since.elapsed() < PATIENCE {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let arrived = count();
            stop.store(true, Ordering::Relaxed);
            (idle.len(), taken, put_off, arrived, watched.await.unwrap())
        });
        let peak = process::peak_bytes(id);
        say(format!("        {open} idle, {taken} mails of {MAIL_MB} MB, {put_off} put off: {} MiB", highest >> 20));
        self.book.note("256 MiB: clients that were idle", open.to_string());
        self.book.note("256 MiB: mails of 50 MB that were put off first", put_off.to_string());
        let all = u64::from(CLIENTS * MAILS_EACH);
        self.must("256 MiB: mails of 50 MB that were taken", taken, all);
        self.must("256 MiB: of those delivered", arrived, all);
        self.must("256 MiB: the server still runs", u64::from(server.process.is_running()), 1);
        self.book.note("256 MiB: highest memory, MiB", (highest >> 20).to_string());
        self.must("256 MiB: it stayed within", u64::from(highest > 0 && highest <= MEMORY_MIB << 20), 1);
        match &group {
            Ok(group) => {
                self.must("256 MiB: ended by the kernel for want of memory", group.ended(), 0);
                self.book.note("256 MiB: highest of its control group, MiB", (group.peak() >> 20).to_string());
            }
            Err(reason) => self.book.note("256 MiB: no control group, so only measured", reason.clone()),
        }
        let goal = "256 MiB: highest memory, with the pages of the program, MiB";
        self.book.at_most(goal, MEMORY_MIB as f64, Some((peak >> 20) as f64));
        // Before its group, which has to be empty to go.
        drop(server);
    }
}
