//! Words that both sides of SMTP share: replies, enhanced status codes, extensions, wire framing, and the
//! arithmetic of SCRAM. No sockets, no clock.

pub mod command;
pub mod reply;
pub mod scram;
pub mod wire;

pub use reply::{Enhanced, Reply};
