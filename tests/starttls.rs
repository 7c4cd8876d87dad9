//! `tests/data/starttls`: attacks on TLS in SMTP. Those on our server, and those on our client under every policy that
//! it may be bound to: where TLS is demanded, nothing of a message ever goes in clear.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/authority.rs"]
mod authority;
#[path = "support/bare.rs"]
mod bare;
#[path = "starttls/client.rs"]
mod client;
#[path = "support/conversation.rs"]
mod conversation;
#[path = "starttls/far.rs"]
mod far;
#[path = "support/flow.rs"]
mod flow;
#[path = "starttls/ground.rs"]
mod ground;
#[path = "support/records.rs"]
mod records;
#[path = "starttls/server.rs"]
mod server;
#[path = "support/tcp.rs"]
mod tcp;
#[path = "support/client.rs"]
mod test_client;
#[path = "support/server.rs"]
mod test_server;
#[path = "support/web.rs"]
mod web;
#[path = "support/zone.rs"]
mod zone;

/// What all tests share.
mod support {
    pub(crate) use super::flow;
    pub(crate) use super::records;
    pub(crate) use super::test_client as client;
    pub(crate) use super::test_server as server;
    pub(crate) use super::zone;
}

// `tcp` takes its words from beside it.
use postrider::config;

const SET: &str = include_str!("data/starttls/scenarios.yml");

/// The ids of one part of the set.
fn ids(part: &str, count: usize) -> Vec<String> {
    let maps = support::flow::maps(&support::flow::below(SET, part));
    let ids: Vec<String> = maps.iter().map(|map| support::flow::text(map, "id")).collect();
    assert_eq!(ids.len(), count);
    ids
}
