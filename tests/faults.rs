//! Faults of the machine: the power goes, the disk is full, the disk fails, files are damaged. What
//! was acknowledged arrives, what was refused does not, and damage is never silent. `make faults` runs
//! all of it; with the suite runs a quick part. What this machine cannot do is left out loudly.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "faults/clock.rs"]
mod clock;
#[path = "faults/damage.rs"]
mod damage;
#[path = "faults/damage_kinds.rs"]
mod damage_kinds;
#[path = "faults/disk.rs"]
mod disk;
#[path = "faults/errors.rs"]
mod errors;
#[path = "faults/far.rs"]
mod far;
#[path = "faults/full.rs"]
mod full;
#[path = "faults/house.rs"]
mod house;
#[path = "faults/ledger.rs"]
mod ledger;
#[path = "faults/load.rs"]
mod load;
#[path = "faults/outside.rs"]
mod outside;
#[path = "faults/power.rs"]
mod power;
#[path = "faults/report.rs"]
mod report;
#[path = "faults/states.rs"]
mod states;
#[path = "faults/wal.rs"]
mod wal;
#[path = "support/zone.rs"]
mod zone;
