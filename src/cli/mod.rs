//! (to come)

pub mod check;
pub mod dns;
