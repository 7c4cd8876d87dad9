//! `tests/data/starttls`: attacks on TLS in SMTP. Those on our server, and those on our client under every policy that
//! it may be bound to: where TLS is demanded, nothing of a message ever goes in clear.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/authority.rs"]
mod authority;
#[path = "support/bare.rs"]
mod bare;
#[path = "starttls/client.rs"]
mod client;
#[path = "starttls/far.rs"]
mod far;
#[path = "starttls/ground.rs"]
mod ground;
#[path = "starttls/server.rs"]
mod server;
#[path = "support/tcp.rs"]
mod tcp;
#[path = "support/web.rs"]
mod web;
mod support {
    pub mod client;
    pub mod conversation;
    pub mod flow;
    pub mod records;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

// These look for their words beside them, and `tcp` for the library's.
use postrider::config;
use support::conversation;

const SET: &str = include_str!("data/starttls/scenarios.yml");

/// The ids of one part of the set.
fn ids(part: &str, count: usize) -> Vec<String> {
    let maps = support::flow::maps(&support::flow::below(SET, part));
    let ids: Vec<String> = maps.iter().map(|map| support::flow::text(map, "id")).collect();
    assert_eq!(ids.len(), count);
    ids
}
