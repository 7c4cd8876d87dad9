//! (to come)

pub mod pickup;
pub mod sign;
