//! Bounces: writing delivery status notifications.

pub mod backscatter;
pub mod dsn;
