//! Milters: the conversation with one that does as it is told, what becomes of the message, and what
//! the packets and fields promise for any bytes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/client.rs"]
mod client;
#[path = "milter/conversation.rs"]
mod conversation;
#[path = "support/fake_milter.rs"]
mod fake_milter;
#[path = "milter/in_server.rs"]
mod in_server;
#[path = "support/server.rs"]
mod server;
#[path = "milter/wire.rs"]
mod wire;
