//! The envelope sender of what is forwarded (SRS): an address of ours, so that the next server can check where
//! the message comes from, and from which a bounce finds back to who wrote it.
//!
//! `SRS0=hash=day=domain=local@ours` stands for `local@domain`. What another server has sealed already
//! becomes `SRS1=hash=first==…@ours`, which leads back to that server alone, however many there are in a row.
//! The hash is a MAC, so nobody can make us send anything anywhere that did not write through us within the
//! last [`VALID_DAYS`] days. The day in an SRS1 address is in its hash only, to keep it short.
//! What does not fit into a local part is not sealed: its bounces come to us instead.

use crate::clock::Millis;
use crate::config::Config;
use crate::message::{Address, Domain, Door};
use crate::queue::record::{Message, Recipient, Route};
use crate::secret::{self, Marks};

use super::base32;

/// Days for which a bounce is taken: no server tries longer.
pub const VALID_DAYS: u64 = 21;
const DAY: Millis = 24 * 3600 * 1000;
/// Days count to here and begin again: two characters.
const DAYS: u64 = 1024;
/// Bytes of a hash: 8 characters.
const HASH_BYTES: usize = 5;

/// Why an address that looks as if we had sealed it leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("this is no return path of ours")]
    Forged,
    #[error("this return path has expired")]
    Expired,
}

/// The envelope sender for a recipient of a message from outside that an alias leads elsewhere; none if it
/// stays what it is. Never for the null sender, nor for one of our own.
pub fn return_path(
    config: &Config,
    marks: &Marks,
    message: &Message,
    recipient: &Recipient,
    now: Millis,
) -> Option<Address> {
    let is_forward = config.checks.seal_forwards
        && matches!(message.origin.door, Door::Mx { .. })
        && recipient.route == Route::Remote;
    let domain = recipient.alias.as_ref().map(Address::domain).filter(|domain| is_forward && config.is_own(domain))?;
    let sender = message.mail_from.address().filter(|sender| !config.is_own(sender.domain()))?;
    seal(marks, sender, domain, now).or_else(|| {
        let bounce = config.domains.get(domain).and_then(|own| own.bounce_address(domain));
        let taken = bounce.filter(|bounce| config.is_bounce(bounce));
        taken.or_else(|| Address::new("postmaster", domain.clone()).ok())
    })
}

/// `sender` as an address at `at`; none if that would be too long, or needs quotes.
pub fn seal(marks: &Marks, sender: &Address, at: &Domain, now: Millis) -> Option<Address> {
    let today = now / DAY;
    let local = match (Sealed::read(sender), sender.domain()) {
        (Some(Sealed::Zero { rest }), first) => one(marks, first.as_str(), rest, at, today),
        (Some(Sealed::One { first, rest, .. }), _) => one(marks, first, rest, at, today),
        (None, domain) => {
            let (stamp, local) = (stamp(today), sender.local());
            let hash = hash(marks, "srs0", &[&stamp, domain.as_str(), local, at.as_str()]);
            format!("SRS0={hash}={stamp}={domain}={local}")
        }
    };
    Address::new(&local, at.clone()).ok()
}

fn one(marks: &Marks, first: &str, rest: &str, at: &Domain, day: u64) -> String {
    let hash = hash(marks, "srs1", &[&stamp(day), first, rest, at.as_str()]);
    format!("SRS1={hash}={first}={rest}")
}

/// Does it look like an address that somebody has sealed?
pub fn is_sealed(address: &Address) -> bool {
    let prefix = address.local().get(..5).unwrap_or_default().to_ascii_lowercase();
    prefix.starts_with("srs")
        && prefix.ends_with(['=', '+', '-'])
        && matches!(prefix.as_bytes().get(3), Some(b'0' | b'1'))
}

/// Whom an address stands for that we have sealed: where a bounce goes that comes back to it.
pub fn open(marks: &Marks, address: &Address, now: Millis) -> Result<Address, Fault> {
    let (at, today) = (address.domain().as_str(), now / DAY);
    match Sealed::read(address).ok_or(Fault::Forged)? {
        Sealed::Zero { rest } => {
            let mut parts = rest.get(1..).unwrap_or_default().splitn(4, '=');
            let mut part = || parts.next().ok_or(Fault::Forged);
            let (given, stamp, domain, local) = (part()?, part()?, part()?, part()?);
            if !same(&hash(marks, "srs0", &[stamp, domain, local, at]), given) {
                return Err(Fault::Forged);
            }
            let day = day_of(stamp).ok_or(Fault::Forged)?;
            if (today % DAYS + DAYS - day) % DAYS > VALID_DAYS {
                return Err(Fault::Expired);
            }
            address_of(local, domain)
        }
        Sealed::One { hash: given, first, rest } => {
            let made = |age: u64| hash(marks, "srs1", &[&stamp(today.saturating_sub(age)), first, rest, at]);
            if !(0..=VALID_DAYS).any(|age| same(&made(age), given)) {
                return Err(Fault::Forged);
            }
            address_of(&format!("SRS0{rest}"), first)
        }
    }
}

fn address_of(local: &str, domain: &str) -> Result<Address, Fault> {
    let domain = Domain::parse(domain).map_err(|_| Fault::Forged)?;
    Address::new(local, domain).map_err(|_| Fault::Forged)
}

/// The parts of a sealed local part. `rest` begins with the separator behind `SRS0`.
enum Sealed<'a> {
    Zero { rest: &'a str },
    One { hash: &'a str, first: &'a str, rest: &'a str },
}

impl Sealed<'_> {
    fn read(address: &Address) -> Option<Sealed<'_>> {
        let local = address.local();
        if !is_sealed(address) {
            return None;
        }
        if local.as_bytes().get(3) == Some(&b'0') {
            return Some(Sealed::Zero { rest: local.get(4..)? });
        }
        let mut parts = local.get(5..)?.splitn(3, '=');
        let (hash, first, rest) = (parts.next()?, parts.next()?, parts.next()?);
        let is_one = rest.starts_with(['=', '+', '-']) && Domain::parse(first).is_ok();
        is_one.then_some(Sealed::One { hash, first, rest })
    }
}

/// Of parts whose case another server may have changed.
fn hash(marks: &Marks, purpose: &str, parts: &[&str]) -> String {
    let lower: Vec<String> = parts.iter().map(|part| part.to_ascii_lowercase()).collect();
    let parts: Vec<&[u8]> = lower.iter().map(|part| part.as_bytes()).collect();
    base32::encode(&marks.mark(purpose, &parts)[..HASH_BYTES])
}

fn same(made: &str, given: &str) -> bool {
    secret::same(made.as_bytes(), given.to_ascii_lowercase().as_bytes())
}

fn stamp(day: u64) -> String {
    let day = (day % DAYS) as u16;
    // Ten bits, at the front of two bytes.
    let mut text = base32::encode(&(day << 6).to_be_bytes());
    text.truncate(2);
    text
}

fn day_of(stamp: &str) -> Option<u64> {
    let mut letters = stamp.chars().map(base32::value);
    match (letters.next()?, letters.next()?, letters.next()) {
        (Some(high), Some(low), None) => Some(u64::from(high << 5 | low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
