//! Two questions: who gets it (`inbound`, with the loop guard beside it), and which way out (`outbound`).
//! `sender` says who a message is from in the eyes of the guard, and whether it is automatic; `sent` knows our own messages
//! again when an answer or a bounce names one, `notice_id` our own notices, and `return_path` the recipient
//! that a bounce came back for; `answerable` says what a machine may answer. `srs` makes the return path of
//! what is forwarded.

pub mod answerable;
mod base32;
pub mod capture;
mod free_mail;
pub mod inbound;
pub mod loops;
pub mod notice_id;
pub mod outbound;
pub mod return_path;
pub mod sender;
pub mod sent;
pub mod srs;

#[cfg(test)]
mod fixture;
