//! (to come)

pub mod dns;
