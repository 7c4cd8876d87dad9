//! Two questions: who gets it (`inbound`, with the loop guard beside it), and which way out.

pub mod inbound;
pub mod loops;
