//! DMARC aggregate reports (RFC 9990): what came in under the name of other domains, told to those who
//! want to know.
//!
//! `checks::feedback` counts; here the counts are written down once a minute, made a report of (`xml`)
//! when the day (UTC) is over, and sent (`send`).
//!
//! Promises: what has been written down survives a restart, and a report that is queued is gone from
//! the counts in the same batch, so it is neither lost nor queued twice. Counts of the last minute may
//! be lost to a crash. How much is kept is bounded; what is above is left out, and the report says so.
//! A day on which a domain sent nothing but reports is not reported, or two servers would tell each
//! other of their reports for ever.

mod keep;
mod send;
mod xml;

pub use send::Reports;
