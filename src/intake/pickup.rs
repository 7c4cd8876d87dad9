//! (to come)

pub mod envelope;
