//! The whole server, without its doors, in a world that one seed decides: mail, far ends, name servers, clocks,
//! disks, people and crashes. Whatever happens, nothing is lost, nothing comes that was refused, a copy has an
//! excuse, content stays what it was, and senders are told once.
//!
//! A failure prints its seed and all that happened; `POSTRIDER_SEED=N` repeats it (and shows the same of one that
//! holds, with `--nocapture`), `POSTRIDER_SEEDS=N` tries more
//! than usual.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

mod simulation {
    pub mod far;
    pub mod ledger;
    pub mod life;
    pub mod random;
    pub mod run;
}

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use simulation::life::House;
use simulation::run::simulate;

const SEEDS: u64 = 1000;
/// A store is used for so many seeds, one after the other: what was deleted slows it down in the end.
const SEEDS_PER_HOUSE: u64 = 25;
/// Seeds that are shown when they fail.
const SHOWN: usize = 2;
const THREADS_MAX: usize = 4;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn nothing_is_lost_and_nothing_is_made_up_whatever_the_seed() {
    let seeds = match number("POSTRIDER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..number("POSTRIDER_SEEDS").unwrap_or(SEEDS) + 1,
    };
    let next = AtomicU64::new(seeds.start);
    let failed: Mutex<Vec<String>> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let work = || {
        loop {
            let from = next.fetch_add(SEEDS_PER_HOUSE, Ordering::Relaxed);
            if from >= seeds.end || failed.lock().unwrap().len() >= SHOWN {
                return;
            }
            let mut house = House::new();
            for seed in from..(from + SEEDS_PER_HOUSE).min(seeds.end) {
                let outcome = simulate(&mut house, seed);
                if seeds.end - seeds.start == 1 {
                    println!("{}", outcome.trace.join("\n"));
                }
                if !outcome.faults.is_empty() {
                    let (trace, faults) = (outcome.trace.join("\n"), outcome.faults.join("\n"));
                    failed.lock().unwrap().push(format!("{trace}\n\nPOSTRIDER_SEED={seed}\n{faults}"));
                    break;
                }
            }
        }
    };
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

#[test]
fn a_seed_decides_all_that_happens() {
    let mut house = House::new();
    let first: Vec<Vec<String>> = (1..=20).map(|seed| simulate(&mut house, seed).trace).collect();
    let mut house = House::new();
    // Not in the same order, so what was before has no part in it.
    for seed in (1..=20).rev() {
        let again = simulate(&mut house, seed).trace;
        let before = &first[seed as usize - 1];
        let differs = before.iter().zip(&again).position(|(one, other)| one != other);
        let at = differs.unwrap_or(before.len().min(again.len()));
        assert!(*before == again, "seed {seed}, line {at}: {:?} and then {:?}", before.get(at), again.get(at));
    }
}
