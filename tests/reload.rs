//! A configuration that changes while the server runs: taken whole or not at all, without a connection that is
//! dropped or a message that is lost. `cargo test --test reload -- --nocapture` prints the figures under load.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/authority.rs"]
mod authority;
#[path = "reload/certificates.rs"]
mod certificates;
#[path = "support/client.rs"]
mod client;
#[path = "reload/command.rs"]
mod command;
#[path = "support/endpoint.rs"]
mod endpoint;
#[path = "support/fake_acme.rs"]
mod fake_acme;
#[path = "support/hook.rs"]
mod hook;
#[path = "reload/house.rs"]
mod house;
#[path = "reload/load.rs"]
mod load;
#[path = "reload/queued.rs"]
mod queued;
#[path = "reload/refused.rs"]
mod refused;
#[path = "reload/sessions.rs"]
mod sessions;
#[path = "support/sink.rs"]
mod sink;
#[path = "reload/takes.rs"]
mod takes;
#[path = "support/zone.rs"]
mod zone;
