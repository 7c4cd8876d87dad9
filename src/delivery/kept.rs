//! Which groups have complained, in the store, so that a restart does not make us press where we were
//! asked to go slow. One small record for each of them, in the table `Meta`; it goes when the group is
//! well again.

use crate::queue::keys;
use crate::store::{Batch, Store, StoreError, Table};

use super::Destination;
use super::groups::Group;
use super::throttle::{Throttle, Throttles};
use crate::clock::Millis;
use crate::message::Domain;

const PREFIX: &[u8] = b"throttle/";
const GROUP: u8 = b'g';
const DOMAIN: u8 = b'd';
const HOST: u8 = b'h';
const TARGET: u8 = b't';
const CAPTURE: u8 = b'c';

fn key(destination: &Destination) -> Vec<u8> {
    let (kind, name) = match destination {
        Destination::Group(group) => (GROUP, group.name()),
        Destination::Domain(domain) => (DOMAIN, domain.as_str()),
        Destination::Host(name) => (HOST, name.as_str()),
        Destination::Target(name) => (TARGET, name.as_str()),
        Destination::Capture => (CAPTURE, ""),
    };
    [PREFIX, &[kind], name.as_bytes()].concat()
}

fn destination(key: &[u8]) -> Option<Destination> {
    let (kind, name) = key.strip_prefix(PREFIX)?.split_first()?;
    let name = std::str::from_utf8(name).ok()?;
    match *kind {
        GROUP => Some(Destination::Group(Group::named(name))),
        HOST => Some(Destination::Host(name.to_owned())),
        TARGET => Some(Destination::Target(name.to_owned())),
        CAPTURE => Some(Destination::Capture),
        DOMAIN => Domain::parse(name).ok().map(Destination::Domain),
        _ => None,
    }
}

/// What is kept, and those of which nothing is to be kept any more. What cannot be read is as good as not
/// there: the servers will complain again.
pub(super) fn load(store: &Store, now: Millis) -> Result<(Throttles, Vec<Destination>), StoreError> {
    let mut kept: Vec<(Destination, Throttle)> = Vec::new();
    let mut rest = Vec::new();
    for entry in store.prefix(Table::Meta, PREFIX)? {
        let (key, value) = entry?;
        let Some(destination) = destination(&key) else { continue };
        match keys::decode(&value) {
            Ok(throttle) => kept.push((destination, throttle)),
            Err(_) => rest.push(destination),
        }
    }
    let names: Vec<Destination> = kept.iter().map(|(destination, _)| destination.clone()).collect();
    let throttles = Throttles::load(kept, now);
    rest.extend(names.into_iter().filter(|destination| throttles.get(destination).is_none()));
    Ok((throttles, rest))
}

/// The writes after which the store says the same as `throttles` about these.
pub(super) fn batch<'d>(
    throttles: &Throttles,
    destinations: impl IntoIterator<Item = &'d Destination>,
) -> Result<Batch, StoreError> {
    let mut batch = Batch::new();
    for destination in destinations {
        let key = key(destination);
        match throttles.get(destination) {
            Some(throttle) => batch.put(Table::Meta, key, keys::encode(throttle)?),
            None => batch.delete(Table::Meta, key),
        }
    }
    Ok(batch)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::throttle::{FORGET_AFTER, Sign};
    use super::*;

    #[test]
    fn what_is_written_is_there_after_a_restart_and_gone_when_well() {
        let folder = tempfile::tempdir().unwrap();
        let group = Destination::Group(Group::named("mx1.far.test,mx2.far.test"));
        let domain = Destination::Domain(Domain::parse("far.test").unwrap());
        let now = 1_000_000_000;
        let host = Destination::Host("ses".into());
        let both = [group.clone(), domain.clone(), host.clone()];
        let mut throttles = Throttles::default();
        for destination in &both {
            throttles.hear(destination, throttles.now(), &Sign::Complaint("421".into()), || 4, now);
        }
        let store = Store::open(folder.path()).unwrap();
        store.write(&[batch(&throttles, &both).unwrap()], true).unwrap();
        drop(store);

        let store = Store::open(folder.path()).unwrap();
        let (mut again, rest) = load(&store, now).unwrap();
        assert_eq!(again.get(&group).unwrap().window(4), 2);
        assert_eq!(again.get(&domain).unwrap().why(), "421");
        assert!(again.get(&host).is_some() && rest.is_empty());
        while again.get(&group).is_some() {
            again.hear(&group, again.now(), &Sign::Good, || 4, now);
        }
        store.write(&[batch(&again, [&group]).unwrap()], true).unwrap();
        let (again, rest) = load(&store, now).unwrap();
        assert!(again.get(&group).is_none() && again.get(&domain).is_some() && rest.is_empty());
        let (later, rest) = load(&store, now + FORGET_AFTER).unwrap();
        assert!(later.get(&domain).is_none());
        assert_eq!(rest, [domain, host]);
    }
}
