//! What others do to a server: mail that nobody takes comes in masses, receivers are slow or odd, the network is bad.
//! What was acknowledged arrives, nobody is told twice, and others' mail goes on. `make faults` runs more of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "faults/far.rs"]
mod far;
#[path = "faults/house.rs"]
mod house;
#[path = "faults/ledger.rs"]
mod ledger;
#[path = "faults/load.rs"]
mod load;
#[path = "faults/loss.rs"]
mod loss;
#[path = "faults/network.rs"]
mod network;
#[path = "faults/odd.rs"]
mod odd;
#[path = "faults/report.rs"]
mod report;
#[path = "faults/soak.rs"]
mod soak;
#[path = "faults/states.rs"]
mod states;
#[path = "faults/storm.rs"]
mod storm;
#[path = "support/zone.rs"]
mod zone;
