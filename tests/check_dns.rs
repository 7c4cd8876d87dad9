//! `postrider check --dns` and `postrider dns` against a zone in this process: what is there, what is missing, and the
//! line to publish. Nothing outside is asked: the name servers, port 25 and the programs for the clock are the test's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/authority.rs"]
mod authority;
#[path = "check_dns/place.rs"]
mod place;
#[path = "support/remote.rs"]
mod remote;
#[path = "support/web.rs"]
mod web;
#[path = "support/zone.rs"]
mod zone;

#[path = "check_dns/commands.rs"]
mod commands;
#[path = "check_dns/names.rs"]
mod names;
#[path = "check_dns/policies.rs"]
mod policies;
#[path = "check_dns/senders.rs"]
mod senders;
