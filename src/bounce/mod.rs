//! Bounces: writing delivery status notifications, reading those of others, and what follows for the
//! addresses they tell of.

pub mod backscatter;
pub mod classify;
pub mod dsn;
pub mod read;
pub mod suppression;
