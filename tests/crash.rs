//! The server runs as a process of its own and is killed: at random under load, and at each point of
//! the table of legal states in `queue::record`. What was acknowledged arrives, what was refused does
//! not, and a copy comes only where the table says so. `make faults` runs all of it; with the suite
//! runs a quick part.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "faults/calls.rs"]
mod calls;
#[path = "faults/drop.rs"]
mod drop;
#[path = "faults/far.rs"]
mod far;
#[path = "faults/house.rs"]
mod house;
#[path = "faults/kill.rs"]
mod kill;
#[path = "faults/ledger.rs"]
mod ledger;
#[path = "faults/load.rs"]
mod load;
#[path = "faults/outside.rs"]
mod outside;
#[path = "faults/report.rs"]
mod report;
#[path = "faults/restart.rs"]
mod restart;
#[path = "faults/rows.rs"]
mod rows;
#[path = "faults/states.rs"]
mod states;
#[path = "support/zone.rs"]
mod zone;
