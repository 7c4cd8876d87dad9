//! A bad network on both sides: every stretch of every connection may end it. Some are reset, some go deaf and are
//! reset later, some are closed in one direction only. Nothing acknowledged is lost, nothing refused is there, nothing is
//! mixed or cut, and copies are at most the deliveries that were cut.
//!
//! The network is a proxy of the test, so it works on every machine; packets that are lost and sent again by TCP
//! itself are not in it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use super::far::Far;
use super::house::{House, Settings};
use super::ledger::Ledger;
use super::load::{Load, Plan};
use super::report::{Budget, Random, Report, count_or, seed};
use super::states;

const PLAN: Plan =
    Plan { clients: 8, domains: &["far.test", "late.test"], bytes_min: 500, bytes_max: 40_000, pause: Duration::ZERO };
/// Of a hundred stretches, until the network gets good.
const FAULTY: u64 = 30;
/// Octets of a stretch: some faults fall into the dialogue, most into contents. Replies are shorter.
const STRETCH_TO_SERVER: u64 = 60_000;
const STRETCH_TO_CLIENT: u64 = 600;
/// How long a connection is deaf before it is reset.
const DEAF: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Reset,
    Deaf,
    HalfClosed,
}

#[derive(Clone)]
struct Bad {
    address: SocketAddr,
    random: Arc<Mutex<Random>>,
    /// Of a hundred stretches.
    faulty: Arc<AtomicU64>,
    connections: Arc<AtomicUsize>,
    faults: Arc<AtomicUsize>,
}

impl Bad {
    /// In front of `to`.
    async fn start(to: SocketAddr, random: Random) -> Bad {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (random, faulty) = (Arc::new(Mutex::new(random)), Arc::new(AtomicU64::new(FAULTY)));
        let bad = Bad { address, random, faulty, connections: Arc::default(), faults: Arc::default() };
        let serving = bad.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let bad = serving.clone();
                tokio::spawn(async move { drop(bad.connection(near, to).await) });
            }
        });
        bad
    }

    async fn connection(&self, near: TcpStream, to: SocketAddr) -> std::io::Result<()> {
        let far = TcpStream::connect(to).await?;
        self.connections.fetch_add(1, Ordering::Relaxed);
        let (fault, octets, towards) = {
            let mut random = self.random.lock().unwrap();
            let fault = [Fault::Reset, Fault::Deaf, Fault::HalfClosed][random.below(3) as usize];
            let towards = random.below(2) == 0;
            let stretch = if towards { STRETCH_TO_SERVER } else { STRETCH_TO_CLIENT };
            let mut octets = random.below(stretch);
            let faulty = self.faulty.load(Ordering::Relaxed);
            while faulty > 0 && random.below(100) >= faulty {
                octets += stretch;
            }
            let octets = if faulty == 0 { u64::MAX } else { octets };
            (fault, octets, towards)
        };
        for stream in [&near, &far] {
            stream.set_nodelay(true)?;
            if fault != Fault::HalfClosed {
                stream.set_zero_linger()?;
            }
        }
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        let unbounded = u64::MAX;
        let there = pass(near_in, far_out, if towards { octets } else { unbounded });
        let back = pass(far_in, near_out, if !towards { octets } else { unbounded });
        // The fault, or the end of a connection that had its end before.
        let ended = match fault {
            Fault::HalfClosed => tokio::join!(there, back),
            Fault::Reset | Fault::Deaf => tokio::select! {
                ended = there => (ended, None),
                ended = back => (None, ended),
            },
        };
        if [&ended.0, &ended.1].into_iter().flatten().any(|ended| *ended) {
            self.faults.fetch_add(1, Ordering::Relaxed);
            if fault == Fault::Deaf {
                tokio::time::sleep(DEAF).await;
            }
        }
        Ok(())
    }
}

/// Up to so many octets, then no more of this direction. Some(true) if that is why it ended.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut octets: u64) -> Option<bool> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let wanted = buffer.len().min(usize::try_from(octets).unwrap_or(usize::MAX));
        if wanted == 0 {
            let _ = to.shutdown().await;
            return Some(true);
        }
        match from.read(&mut buffer[..wanted]).await {
            Ok(0) | Err(_) => return Some(false),
            Ok(read) => {
                if to.write_all(&buffer[..read]).await.is_err() {
                    return Some(false);
                }
                octets -= read as u64;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_bad_network_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut far = Far::start().await;
    let mut random = Random(seed());
    let outwards = Bad::start(far.address, Random(random.next() | 1)).await;
    far.address = outwards.address;
    let house = House::new(folder.path(), &far, Settings::default()).await;
    let ledger = Arc::new(Ledger::default());
    let running = house.start().await;
    let inwards = Bad::start(running.door, Random(random.next() | 1)).await;
    let load = Load::start(&ledger, PLAN);
    load.open(inwards.address);
    let (wanted, budget) = (count_or(1_000, 10_000, 300_000), Budget::start());
    while ledger.taken_count() < wanted && !budget.is_over() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    load.shut();
    load.finish().await;
    // A server that is cut off time after time rests for minutes (`delivery::throttle`). With a good network what waits
    // for that goes at its next try; what is in neither place then, neither queued nor there, was lost.
    let missing = ledger.arrived(&far).await;
    outwards.faulty.store(0, Ordering::Relaxed);
    house.wait_empty().await;
    running.kill().await.check_no_damage();
    let mut verdict = ledger.judge(&far);
    let cut = outwards.faults.load(Ordering::Relaxed);
    let mut report = Report::new("bad-network");
    budget.tell(&mut report, "messages", ledger.taken_count().min(wanted), wanted);
    report.add("connections in", inwards.connections.load(Ordering::Relaxed));
    report.add("cut in", inwards.faults.load(Ordering::Relaxed));
    report.add("connections out", outwards.connections.load(Ordering::Relaxed));
    report.add("cut out", cut);
    report.add("waited for a good network", missing.len());
    report.add("notices", far.notices());
    verdict.tell(&mut report);
    report.finish();
    // A delivery whose answer did not come through is made again, within one life of the server.
    assert!(verdict.copies_in_all() <= cut, "{:?}", verdict.copies);
    verdict.copies_within_a_life = 0;
    verdict.check();
    assert!(cut > 0 && inwards.faults.load(Ordering::Relaxed) > 0, "the network was good");
    assert_eq!(far.notices(), 0, "something was given up");
    states::look(&house.store()).check_empty();
}
