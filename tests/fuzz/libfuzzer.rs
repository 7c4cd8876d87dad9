//! libFuzzer on one of `postrider::fuzzing::TARGETS`, which the environment names: `TARGET=mime`.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use postrider::fuzzing::{TARGETS, Target};

static CHOSEN: OnceLock<Target> = OnceLock::new();

fuzz_target!(|input: &[u8]| CHOSEN.get_or_init(chosen)(input));

fn chosen() -> Target {
    let wanted = std::env::var("TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|(name, _)| *name == wanted);
    found.map(|(_, target)| *target).unwrap_or_else(|| {
        let names: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
        panic!("TARGET={wanted:?} is none of {}", names.join(" "))
    })
}
