//! What all reports that leave once a day have in common: when, from whom, and how they are packed.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::clock::{Clock, DAY, Millis, rfc3339};
use crate::config::Config;
use crate::message::{Address, Domain};

/// Milliseconds after midnight (UTC) in which reports leave, so that not everybody sends at once
/// (RFC 8460 4.1).
const SPREAD: Millis = 4 * 3600 * 1000;
/// Milliseconds between two tries at what could not be sent.
const AGAIN: Millis = 3600 * 1000;
/// Characters of base64 in a line (RFC 2045 6.8).
const LINE_CHARS: usize = 76;

/// When reports are to be sent next: at our own time of the day, and each hour after it.
pub fn next(clock: &Clock, hostname: &Domain) -> Millis {
    let (now, offset) = (clock.now(), offset(hostname));
    let first = now / DAY * DAY + offset;
    if now < first { first } else { (first + ((now - first) / AGAIN + 1) * AGAIN).min((now / DAY + 1) * DAY + offset) }
}

/// Has our time of this day come?
pub fn is_due(clock: &Clock, hostname: &Domain) -> bool {
    clock.now() % DAY >= offset(hostname)
}

/// The same every day, and another one at another server.
fn offset(hostname: &Domain) -> Millis {
    let mut hasher = DefaultHasher::new();
    hostname.hash(&mut hasher);
    hasher.finish() % SPREAD
}

/// From a domain of ours, so that the report is signed (RFC 8460 3, RFC 9990 3.5.2).
pub fn contact(config: &Config) -> Address {
    let postmaster = &config.postmaster;
    let own = config.domains.keys().next().filter(|_| !config.is_own(postmaster.domain()));
    own.and_then(|domain| Address::new("postmaster", domain.clone()).ok()).unwrap_or_else(|| postmaster.clone())
}

/// Of the report about a domain and a day: the same however often it is made.
pub fn id(day: u64, domain: &Domain, organization: &Domain) -> String {
    let date: String = rfc3339(day.saturating_mul(DAY)).chars().take(10).collect();
    format!("{date}.{domain}@{organization}")
}

/// The first and the last second of a day.
pub fn seconds(day: u64) -> (u64, u64) {
    let begin = day.saturating_mul(DAY) / 1000;
    (begin, begin.saturating_add(DAY / 1000 - 1))
}

pub fn pack(text: &str) -> std::io::Result<Vec<u8>> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::default());
    packer.write_all(text.as_bytes())?;
    packer.finish()
}

/// Base64 in lines, the last one ended, too.
pub fn encode(packed: &[u8]) -> String {
    let encoded = STANDARD.encode(packed);
    let mut text = String::with_capacity(encoded.len() + encoded.len() / LINE_CHARS * 2 + 2);
    for line in encoded.as_bytes().chunks(LINE_CHARS) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push_str("\r\n");
    }
    text
}
