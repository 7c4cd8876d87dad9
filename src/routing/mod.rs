//! Two questions: who gets it (`inbound`, with the loop guard beside it), and which way out (`outbound`).
//! `sender` says who a message is from in the eyes of the guard, and whether it is automatic; `sent` knows our own messages
//! again when an answer or a bounce names one, and `return_path` the recipient that a bounce came back for.

pub mod inbound;
pub mod loops;
pub mod outbound;
pub mod return_path;
pub mod sender;
pub mod sent;

#[cfg(test)]
mod fixture;
