//! `tests/data/smtp-dialogue`: commands that are malformed or come at the wrong time, on the bare session and over
//! TCP; and contents, through a whole server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/client.rs"]
mod client;
#[path = "support/conversation.rs"]
mod conversation;
#[path = "support/flow.rs"]
mod flow;
#[path = "support/server.rs"]
mod server;
#[path = "support/sink.rs"]
mod sink;
#[path = "support/zone.rs"]
mod zone;

/// What all tests share.
mod support {
    pub(crate) use super::client;
    pub(crate) use super::flow;
    pub(crate) use super::server;
    pub(crate) use super::sink;
    pub(crate) use super::zone;
}
#[path = "support/bare.rs"]
mod bare;
#[path = "dialogue/commands.rs"]
mod commands;
#[path = "dialogue/contents.rs"]
mod contents;
#[path = "dialogue/many.rs"]
mod many;
#[path = "dialogue/proxied.rs"]
mod proxied;
#[path = "support/tcp.rs"]
mod tcp;

// `tcp` takes its words from beside it.
use postrider::config;

pub const SET: &str = include_str!("data/smtp-dialogue/malformed.yml");

/// The ids of one part of the set.
pub fn ids(part: &str, count: usize) -> Vec<String> {
    let maps = support::flow::maps(&support::flow::below(SET, part));
    let ids: Vec<String> = maps.iter().map(|map| support::flow::text(map, "id")).collect();
    assert_eq!(ids.len(), count);
    ids
}
