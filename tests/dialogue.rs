//! `tests/data/smtp-dialogue`: commands that are malformed or come at the wrong time, on the bare session and over
//! TCP; and contents, through a whole server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod conversation;
    pub mod flow;
    pub mod server;
    pub mod sink;
    pub mod zone;
}
#[path = "support/bare.rs"]
mod bare;
#[path = "dialogue/commands.rs"]
mod commands;
#[path = "dialogue/contents.rs"]
mod contents;
#[path = "dialogue/many.rs"]
mod many;
#[path = "support/tcp.rs"]
mod tcp;

// These two look for their words beside them, and `tcp` for the library's.
use postrider::config;
use support::conversation;

pub const SET: &str = include_str!("data/smtp-dialogue/malformed.yml");

/// The ids of one part of the set.
pub fn ids(part: &str, count: usize) -> Vec<String> {
    let maps = support::flow::maps(&support::flow::below(SET, part));
    let ids: Vec<String> = maps.iter().map(|map| support::flow::text(map, "id")).collect();
    assert_eq!(ids.len(), count);
    ids
}
