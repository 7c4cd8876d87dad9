//! Follows aliases and catchalls to where they end, so that no configuration that loads can loop.
//!
//! An address of ours that an alias names is looked up again: exact alias, pattern, subaddress, return
//! path, postmaster and abuse, catchall. A circle, a chain that is too long and a list that is too wide are
//! problems. An address of ours that nothing takes is a warning.

use std::collections::{BTreeMap, BTreeSet};

use super::destinations::Origin;
use super::problem::ProblemKind;
use super::report::Report;
use super::{Aliases, Destination, OwnDomain};
use crate::message::{Address, Domain};

/// Most addresses of ours that one message may pass on its way to a delivery.
const DEPTH_MAX: usize = 10;
/// Most deliveries that one recipient may become.
const DELIVERIES_MAX: usize = 100;
/// How far a circle is looked for.
const CIRCLE_MAX: usize = 64;

pub(super) struct Map<'a> {
    pub domains: &'a BTreeMap<Domain, OwnDomain>,
    pub aliases: &'a Aliases,
    pub postmaster: &'a Address,
    /// Mail for the bounce addresses is taken.
    pub takes_bounces: bool,
}

/// What following one alias found.
#[derive(Default)]
struct Walk {
    trail: Vec<String>,
    seen: BTreeSet<String>,
    deliveries: BTreeSet<String>,
    deepest: usize,
    circle: Option<Vec<String>>,
    nowhere: BTreeSet<String>,
}

pub(super) fn check(map: &Map<'_>, origins: &[Origin<'_>], report: &Report) {
    let walks: Vec<Walk> = origins.iter().map(|origin| follow(map, origin)).collect();
    report_circles(origins, &walks);
    for (origin, walk) in origins.iter().zip(&walks) {
        if walk.circle.is_none() && walk.deepest > DEPTH_MAX {
            let what = format!("leads through {} addresses, {DEPTH_MAX} at most are followed", walk.deepest);
            origin.item.problem(ProblemKind::BadValue, what, "Point it closer to where the mail ends.");
        }
        if walk.deliveries.len() > DELIVERIES_MAX {
            let what = format!("one message would become more than {DELIVERIES_MAX} deliveries");
            origin.item.problem(ProblemKind::BadValue, what, "Use a mailing list program for so many recipients.");
        }
        for address in &walk.nowhere {
            report.warn(format!("{}: leads to {address}, which no alias or catchall takes", origin.item.path));
        }
    }
    check_postmaster(map, report);
}

fn check_postmaster(map: &Map<'_>, report: &Report) {
    let postmaster = map.postmaster;
    // The return path leads to the postmaster in turn.
    let leads_back = |own: &OwnDomain| map.is_bounce(own, postmaster) && map.alias(own, postmaster).is_none();
    if map.domains.get(postmaster.domain()).is_some_and(|own| leads_back(own) || map.next(postmaster).is_none()) {
        report.warn(format!(
            "postmaster: no alias or catchall takes {postmaster}, so notices and mail for postmaster will wait in the queue"
        ));
    }
}

/// Each circle once, at an alias that is part of it where there is one.
fn report_circles(origins: &[Origin<'_>], walks: &[Walk]) {
    let mut circles: BTreeMap<BTreeSet<&String>, (&Origin<'_>, &Vec<String>)> = BTreeMap::new();
    for (origin, walk) in origins.iter().zip(walks) {
        let Some(circle) = &walk.circle else { continue };
        let members: BTreeSet<&String> = circle.iter().collect();
        let inside = |origin: &Origin<'_>| origin.address.as_ref().is_some_and(|address| circle.contains(address));
        match circles.get(&members) {
            Some((first, _)) if inside(first) || !inside(origin) => {}
            _ => {
                circles.insert(members, (origin, circle));
            }
        }
    }
    for (origin, circle) in circles.into_values() {
        let what = format!("mail would go in a circle: {}", circle.join(" → "));
        origin.item.problem(ProblemKind::BadValue, what, "Point one of these at a target or at an address elsewhere.");
    }
}

fn follow(map: &Map<'_>, origin: &Origin<'_>) -> Walk {
    let mut walk = Walk::default();
    walk.trail.extend(origin.address.clone());
    walk.seen.extend(origin.address.clone());
    visit(map, &origin.destinations, &mut walk);
    walk
}

/// Goes at most [`CIRCLE_MAX`] deep and to each address once.
fn visit(map: &Map<'_>, destinations: &[Destination], walk: &mut Walk) {
    walk.deepest = walk.deepest.max(walk.trail.len());
    for destination in destinations {
        if walk.circle.is_some() || walk.deliveries.len() > DELIVERIES_MAX {
            return;
        }
        let address = match destination {
            Destination::Target(name) => {
                walk.deliveries.insert(name.clone());
                continue;
            }
            Destination::Discard | Destination::Reject => continue,
            Destination::Address(address) => address,
        };
        let key = address.lookup_key();
        if let Some(at) = walk.trail.iter().position(|earlier| *earlier == key) {
            let mut circle = walk.trail.split_off(at);
            circle.push(key);
            walk.circle = Some(circle);
        } else if !map.domains.contains_key(address.domain()) {
            walk.deliveries.insert(key);
        } else if walk.seen.insert(key.clone()) {
            match map.next(address) {
                None => {
                    walk.nowhere.insert(key);
                }
                Some(next) if walk.trail.len() < CIRCLE_MAX => {
                    walk.trail.push(key);
                    visit(map, &next, walk);
                    walk.trail.pop();
                }
                Some(_) => {}
            }
        }
    }
}

impl Map<'_> {
    /// What takes mail for an address of ours.
    fn next(&self, address: &Address) -> Option<Vec<Destination>> {
        let own = self.domains.get(address.domain())?;
        if let Some(found) = self.alias(own, address) {
            return Some(found.to_vec());
        }
        let base = own.base_key(address);
        let is = |local: &str| {
            let key = format!("{local}@{}", address.domain());
            let named = address.lookup_key() == key || base.as_ref() == Some(&key);
            named && self.postmaster.lookup_key() != key
        };
        if self.is_bounce(own, address) || is("abuse") {
            let postmaster = Address::new("postmaster", address.domain().clone()).ok()?;
            return Some(vec![Destination::Address(postmaster)]);
        }
        if is("postmaster") {
            return Some(vec![Destination::Address(self.postmaster.clone())]);
        }
        (!own.catchall.is_empty()).then(|| own.catchall.clone())
    }

    fn alias(&self, own: &OwnDomain, address: &Address) -> Option<&[Destination]> {
        let keys = [Some(address.lookup_key()), own.base_key(address)];
        keys.into_iter().flatten().find_map(|key| self.aliases.named(&key))
    }

    fn is_bounce(&self, own: &OwnDomain, address: &Address) -> bool {
        own.is_previous_bounce(address) || (self.takes_bounces && own.is_bounce(address))
    }
}
