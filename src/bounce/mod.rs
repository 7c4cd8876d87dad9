//! Bounces: writing delivery status notifications.

pub mod dsn;
