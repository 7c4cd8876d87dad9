//! The server between two starts, all of it but its doors: everything runs on one thread, in a runtime whose time
//! stands still until the simulation goes on, and the store is written when the simulation does it. A crash is the
//! end of that runtime: every task is dropped where it waits, and what was not written is gone.

use std::path::Path;
use std::sync::{Arc, Mutex};

use postrider::clock::{Clock, Millis};
use postrider::config::{self, Config};
use postrider::delivery::dispatch::{Dispatcher, NOTING_MAX, Parts};
use postrider::delivery::receipts::Receipts;
use postrider::delivery::settle::Settler;
use postrider::delivery::transport::Transports;
use postrider::dns::Resolver;
use postrider::events::journal::Journal;
use postrider::intake::Intake;
use postrider::intake::sign::Signer;
use postrider::queue::Queue;
use postrider::queue::commit::{Answers, Hand};
use postrider::store::{Batch, Store, Table};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::far::{Outside, World};

const CONFIG: &str = r#"
hostname = "mail.own.test"
data_dir = "DATA_DIR"
postmaster = "postmaster@home.test"
[domains."own.test".dkim]
selectors = []
[dns]
nameservers = ["127.0.0.1:9"]
[delivery]
allow_private_addresses = true
[delivery.tls]
dane = false
mta_sts = false
tls_rpt = false
[delivery.retry]
expire = "8h"
[queue]
min_free = "1MiB"
[streams.transactional]
"#;

/// Every other seed: how much is sent is written down before each attempt, and after it.
const PACED: &str = r#"block_size = 6
block_pause = "10m"
"#;

const TABLES: [Table; 9] = [
    Table::Meta,
    Table::Message,
    Table::Body,
    Table::Recipient,
    Table::Due,
    Table::Journal,
    Table::Loops,
    Table::Pickup,
    Table::Incoming,
];

/// What stays through all lives, and from one seed to the next.
pub struct House {
    folder: tempfile::TempDir,
    configs: [Arc<Config>; 2],
    resolver: Resolver,
    store: Option<Arc<Store>>,
    /// What a new store says.
    empty: Vec<(Table, Vec<u8>, Vec<u8>)>,
}

impl House {
    pub fn new() -> House {
        // In memory where that can be had: what a power cut leaves is not looked at here.
        let shm = Path::new("/dev/shm");
        let folder = tempfile::tempdir_in(shm).or_else(|_| tempfile::tempdir()).unwrap();
        let text = CONFIG.replace("DATA_DIR", folder.path().to_str().unwrap());
        let parse =
            |text: &str| Arc::new(config::parse("test.toml", text).unwrap_or_else(|problems| panic!("{problems}")));
        let configs = [parse(&text), parse(&format!("{text}{PACED}"))];
        let resolver = Resolver::new(&configs[0].dns).unwrap();
        let mut house = House { folder, configs, resolver, store: None, empty: Vec::new() };
        let streams = house.configs[0].streams.clone();
        drop(Queue::by_hand(house.store(), Clock::manual(0), 1 << 20, &streams).unwrap());
        house.empty = house.rows();
        house
    }

    pub fn store(&mut self) -> Arc<Store> {
        let path = self.folder.path().join("store");
        self.store.get_or_insert_with(|| Arc::new(Store::open(&path).unwrap())).clone()
    }

    /// The next one reads it from its files.
    pub fn close(&mut self) {
        self.store = None;
    }

    fn rows(&mut self) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
        let store = self.store();
        let all = TABLES.into_iter().flat_map(|table| {
            let rows: Vec<_> = store.prefix(table, b"").unwrap().map(Result::unwrap).collect();
            rows.into_iter().map(move |(key, value)| (table, key.to_vec(), value.to_vec()))
        });
        all.collect()
    }

    /// As if nothing had ever been.
    pub fn clear(&mut self) {
        let mut batch = Batch::new();
        for (table, key, _) in self.rows() {
            batch.delete(table, key);
        }
        for (table, key, value) in &self.empty {
            batch.put(*table, key.clone(), value.clone());
        }
        self.store().write(&[batch], false).unwrap();
        let _ = std::fs::remove_dir_all(self.folder.path().join("receipts"));
    }
}

pub struct Life {
    pub clock: Clock,
    pub queue: Arc<Queue>,
    pub intake: Arc<Intake>,
    pub journal: Arc<Journal>,
    pub hand: Mutex<Hand>,
    pub untold: Mutex<Vec<Answers>>,
}

impl Life {
    /// Within the runtime that it lives in.
    pub fn begin(house: &mut House, world: &Arc<World>, now: Millis, seed: u64) -> Life {
        let is_paced = world.seed.is_multiple_of(2);
        let (config, store) = (house.configs[usize::from(is_paced)].clone(), house.store());
        let clock = Clock::simulated(now);
        let (queue, fresh, hand) = Queue::by_hand(store, clock.clone(), config.queue.memory, &config.streams).unwrap();
        let journal = Arc::new(Journal::new(clock.clone()));
        let resolver = house.resolver.clone().with_zone(world.clone());
        let transports = Transports::new(&config, resolver.clone(), &clock, &queue).unwrap();
        let transports = transports.with_network(Arc::new(Outside(world.clone())), seed);
        let signer = Signer::load(&config).unwrap();
        let intake =
            Intake::new(config.clone(), clock.clone(), queue.clone(), journal.clone(), resolver, signer).unwrap();
        let intake = Arc::new(intake);
        let settler =
            Settler { config: config.clone(), clock: clock.clone(), journal: journal.clone(), intake: intake.clone() };
        let receipts = Receipts::open(&config.data_dir, |id, number| queue.holds(id, number));
        let parts = Parts {
            config,
            clock: clock.clone(),
            queue: queue.clone(),
            transports: Arc::new(transports),
            settler,
            noting: Arc::new(Semaphore::new(NOTING_MAX)),
            receipts: Arc::new(receipts),
        };
        tokio::spawn(Dispatcher::new(Arc::new(parts), fresh).run(TaskTracker::new(), CancellationToken::new()));
        Life { clock, queue, intake, journal, hand: Mutex::new(hand), untold: Mutex::default() }
    }

    /// Batches that wait to be written.
    pub fn unwritten(&self) -> usize {
        self.hand.lock().unwrap().waiting()
    }

    pub fn write(&self, most: usize) {
        let answers = self.hand.lock().unwrap().write(most).unwrap();
        self.untold.lock().unwrap().push(answers);
    }

    pub fn tell(&self) {
        let untold = std::mem::take(&mut *self.untold.lock().unwrap());
        untold.into_iter().for_each(Answers::give);
    }
}
