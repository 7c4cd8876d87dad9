//! Two questions: who gets it (`inbound`, with the loop guard beside it), and which way out (`outbound`).
//! `sender` says who a message is from in the eyes of the guard, and whether it is automatic.

pub mod inbound;
pub mod loops;
pub mod outbound;
pub mod sender;

#[cfg(test)]
mod fixture;
