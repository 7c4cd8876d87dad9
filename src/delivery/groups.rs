//! Which mail shares limits, turns and back-off: the group of servers that a domain's mail exchangers are.
//! No I/O.
//!
//! The exchangers of a domain are known only after a look-up. What was found is remembered for a while,
//! and used on while it is looked up anew, so that mail for a known domain never waits for a name
//! server. Jobs for a domain that is not known wait in here, and so for their own look-up only, of
//! which a bounded number is under way. What cannot be found out makes a group of its own: its attempt
//! gets the same answer and knows what it means for the mail.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};

use super::Destination;
use crate::clock::Millis;
use crate::config::{Destinations, GroupLimits};
use crate::message::Domain;

/// Look-ups under way.
pub const LOOK_UPS_MAX: usize = 128;
/// A look-up that takes longer is for the attempt to wait for.
pub const LOOK_UP_TIME: Duration = Duration::from_secs(3);
/// A domain whose look-up could not begin for so long, in milliseconds, waits no longer: the name servers
/// are slow, and its attempt may be luckier.
const WAIT_MAX: Millis = 5_000;
/// How long it is remembered which group a domain is in, in milliseconds.
const KNOWN_FOR: Millis = 10 * 60_000;
/// How long it is remembered that a domain's group could not be found out, in milliseconds.
const UNKNOWN_FOR: Millis = 30_000;
/// Domains that are remembered in one half of the cache; of the other half, those are kept that are
/// asked for.
const KNOWN_MAX: usize = 8_192;
/// Groups with a domain that has a section of its own. More than there are sections only if their
/// exchangers keep changing; then the look-ups bring back those that still are.
const OWN_MAX: usize = 1_024;
/// Attempts at once at one target.
const TARGET_AT_ONCE: usize = 10;
/// Messages that are captured at once: only the store has work with them.
const CAPTURES_AT_ONCE: usize = 64;
/// Longest name of a group, in bytes: it is a key in memory and in the store.
const NAME_BYTES_MAX: usize = 200;

/// A set of mail exchangers. Two are the same if their names are.
#[derive(Clone)]
pub struct Group(Arc<Named>);

struct Named {
    /// The exchangers in order, with commas between them.
    name: String,
    hosts: Box<[Domain]>,
}

impl Group {
    /// `hosts` in any order.
    pub fn new(hosts: &[Domain]) -> Group {
        Group(Arc::new(Named { name: name(hosts), hosts: hosts.into() }))
    }

    /// As it is kept in the store: good for comparison.
    pub fn named(name: &str) -> Group {
        Group(Arc::new(Named { name: name.to_owned(), hosts: Box::default() }))
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }
}

/// The name of a set of exchangers. A long one is cut, and told from others by a digest.
pub(super) fn name(hosts: &[Domain]) -> String {
    let mut names: Vec<&str> = hosts.iter().map(Domain::as_str).collect();
    names.sort_unstable();
    names.dedup();
    let name = names.join(",");
    if name.len() <= NAME_BYTES_MAX {
        return name;
    }
    let digest = digest(&SHA256, name.as_bytes());
    let digest: String = digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let room = NAME_BYTES_MAX - digest.len() - 1;
    let cut = (0..=room).rev().find(|at| name.is_char_boundary(*at)).unwrap_or(0);
    format!("{}#{digest}", name.get(..cut).unwrap_or_default())
}

impl PartialEq for Group {
    fn eq(&self, other: &Group) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for Group {}

impl PartialOrd for Group {
    fn partial_cmp(&self, other: &Group) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Group {
    fn cmp(&self, other: &Group) -> std::cmp::Ordering {
        self.0.name.cmp(&other.0.name)
    }
}

impl Hash for Group {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name.hash(state);
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Group({})", self.0.name)
    }
}

#[derive(Clone, Debug)]
struct Known {
    destination: Destination,
    until: Millis,
}

/// What is known of domains, and who waits to know it.
pub(super) struct Groups<J> {
    destinations: Destinations,
    young: HashMap<Domain, Known>,
    old: HashMap<Domain, Known>,
    /// For sets that a domain with a section of its own is in: the strictest of those.
    own: HashMap<Group, GroupLimits>,
    /// Jobs of domains that are being looked up, or will be.
    waiting: HashMap<Domain, Vec<J>>,
    /// What is looked up next, and since when it waits; those for which jobs wait come first.
    queue: VecDeque<(Millis, Domain)>,
    again: VecDeque<Domain>,
    under_way: HashSet<Domain>,
}

impl<J> Groups<J> {
    pub fn new(destinations: Destinations) -> Groups<J> {
        Groups {
            destinations,
            young: HashMap::new(),
            old: HashMap::new(),
            own: HashMap::new(),
            waiting: HashMap::new(),
            queue: VecDeque::new(),
            again: VecDeque::new(),
            under_way: HashSet::new(),
        }
    }

    /// Where mail for this domain goes, if that is known.
    pub fn find(&mut self, domain: &Domain, now: Millis) -> Option<Destination> {
        let Some(known) = self.young.get_mut(domain) else {
            let (domain, known) = self.old.remove_entry(domain)?;
            self.remember(domain.clone(), known);
            return self.find(&domain, now);
        };
        if known.until <= now {
            // Used on while it is looked up, and asked for once.
            known.until = now + UNKNOWN_FOR;
            if self.again.len() < KNOWN_MAX {
                self.again.push_back(domain.clone());
            }
        }
        Some(known.destination.clone())
    }

    fn remember(&mut self, domain: Domain, known: Known) {
        if self.young.len() >= KNOWN_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(domain, known);
    }

    /// The job waits until its domain is known.
    pub fn wait(&mut self, domain: Domain, job: J, now: Millis) {
        if let Some(jobs) = self.waiting.get_mut(&domain) {
            jobs.push(job);
            return;
        }
        if !self.under_way.contains(&domain) {
            self.queue.push_back((now, domain.clone()));
        }
        self.waiting.insert(domain, vec![job]);
    }

    /// The next domain to look up, if one more may be.
    pub fn next(&mut self) -> Option<Domain> {
        if self.under_way.len() >= LOOK_UPS_MAX {
            return None;
        }
        loop {
            let waited_for = self.queue.pop_front().map(|(_, domain)| domain);
            let domain = waited_for.or_else(|| self.again.pop_front())?;
            if self.under_way.insert(domain.clone()) {
                return Some(domain);
            }
        }
    }

    /// A domain that has waited too long for its look-up to begin, with its jobs.
    pub fn overdue(&mut self, now: Millis) -> Option<(Destination, Vec<J>)> {
        let (_, domain) = self.queue.pop_front_if(|(since, _)| now.saturating_sub(*since) >= WAIT_MAX)?;
        Some(self.found(domain, None, now))
    }

    /// What a look-up has found; none: nothing that tells where the mail goes. Gives who waited for it.
    pub fn found(&mut self, domain: Domain, hosts: Option<Vec<Domain>>, now: Millis) -> (Destination, Vec<J>) {
        self.under_way.remove(&domain);
        let jobs = self.waiting.remove(&domain).unwrap_or_default();
        let before = self.young.get(&domain).or_else(|| self.old.get(&domain));
        let (destination, known_for) = match (hosts, before) {
            (Some(hosts), _) => (Destination::Group(self.group(&domain, &hosts)), KNOWN_FOR),
            (None, Some(before)) => (before.destination.clone(), UNKNOWN_FOR),
            (None, None) => (Destination::Domain(domain.clone()), UNKNOWN_FOR),
        };
        self.old.remove(&domain);
        self.young.remove(&domain);
        self.remember(domain, Known { destination: destination.clone(), until: now + known_for });
        (destination, jobs)
    }

    fn group(&mut self, domain: &Domain, hosts: &[Domain]) -> Group {
        let group = Group::new(hosts);
        self.note_own(domain, &group);
        group
    }

    fn note_own(&mut self, domain: &Domain, group: &Group) {
        let Some(own) = self.destinations.of_domain(domain) else { return };
        let limits = self.own.get(group).map_or(own, |others| others.stricter(own));
        if self.own.len() >= OWN_MAX {
            self.own.clear();
        }
        self.own.insert(group.clone(), limits);
    }

    /// Other limits hold from now on; which servers a domain has is known on.
    pub fn renew(&mut self, destinations: Destinations) {
        self.destinations = destinations;
        self.own.clear();
        let known = self.young.iter().chain(&self.old);
        let groups: Vec<(Domain, Group)> = known
            .filter_map(|(domain, known)| match &known.destination {
                Destination::Group(group) if self.destinations.of_domain(domain).is_some() => {
                    Some((domain.clone(), group.clone()))
                }
                _ => None,
            })
            .collect();
        groups.iter().for_each(|(domain, group)| self.note_own(domain, group));
    }

    /// What is configured for a destination. For servers that several domains share, a section of one
    /// of the domains counts for all of them, as they share the limit.
    pub fn limits(&self, destination: &Destination) -> GroupLimits {
        let own = match destination {
            Destination::Group(group) => {
                let own = if self.own.is_empty() { None } else { self.own.get(group).copied() };
                own.or_else(|| self.destinations.of_hosts(&*group.0.hosts))
            }
            Destination::Domain(domain) => Some(self.destinations.of(domain, std::slice::from_ref(domain))),
            Destination::Host(_) => None,
            Destination::Target(_) => Some(GroupLimits { connections: TARGET_AT_ONCE, ..GroupLimits::DEFAULT }),
            Destination::Capture => Some(GroupLimits { connections: CAPTURES_AT_ONCE, ..GroupLimits::DEFAULT }),
        };
        own.unwrap_or(self.destinations.default)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn domain(name: &str) -> Domain {
        Domain::parse(name).unwrap()
    }

    fn domains(names: &[&str]) -> Vec<Domain> {
        names.iter().map(|name| domain(name)).collect()
    }

    fn groups(text: &str) -> Groups<u32> {
        let text = format!("hostname = \"mail.own.test\"\ndata_dir = \"/nowhere\"\n{text}");
        Groups::new(crate::config::parse("test.toml", &text).unwrap().destinations)
    }

    #[test]
    fn the_same_servers_are_one_group_in_whatever_order() {
        let mut groups = groups("");
        for (number, name) in ["one.test", "two.test", "three.test"].into_iter().enumerate() {
            assert_eq!(groups.find(&domain(name), 0), None);
            groups.wait(domain(name), number as u32, 0);
            assert_eq!(groups.next(), Some(domain(name)));
        }
        let both = Some(domains(&["mx1.far.test", "mx2.far.test"]));
        let (first, jobs) = groups.found(domain("one.test"), both, 0);
        assert_eq!(jobs, [0]);
        let turned = Some(domains(&["mx2.far.test", "mx1.far.test"]));
        assert_eq!(groups.found(domain("two.test"), turned, 0).0, first);
        assert_ne!(groups.found(domain("three.test"), Some(domains(&["mx1.far.test"])), 0).0, first);
        assert_eq!(groups.find(&domain("two.test"), 0), Some(first));
    }

    #[test]
    fn what_cannot_be_found_out_stands_alone_and_holds_up_nobody() {
        let mut groups = groups("");
        for number in 0..LOOK_UPS_MAX as u32 + 5 {
            let domain = domain(&format!("d{number}.test"));
            groups.wait(domain.clone(), number, 0);
            groups.wait(domain, 1000 + number, 0);
        }
        let under_way: Vec<Domain> = std::iter::from_fn(|| groups.next()).collect();
        assert_eq!(under_way.len(), LOOK_UPS_MAX);
        let (alone, jobs) = groups.found(under_way[3].clone(), None, 0);
        assert_eq!((alone, jobs), (Destination::Domain(under_way[3].clone()), vec![3, 1003]));
        assert_eq!(groups.next(), Some(domain(&format!("d{LOOK_UPS_MAX}.test"))));
        // Not asked again for a while.
        assert!(groups.find(&under_way[3], UNKNOWN_FOR - 1).is_some());
    }

    #[test]
    fn who_waits_too_long_for_a_look_up_goes_without() {
        let mut groups = groups("");
        (0..LOOK_UPS_MAX as u32).for_each(|number| groups.wait(domain(&format!("d{number}.test")), number, 0));
        while groups.next().is_some() {}
        groups.wait(domain("late.test"), 7, 1_000);
        groups.wait(domain("later.test"), 8, 2_000);
        assert_eq!(groups.overdue(WAIT_MAX), None);
        let alone = Destination::Domain(domain("late.test"));
        assert_eq!(groups.overdue(1_000 + WAIT_MAX), Some((alone.clone(), vec![7])));
        assert_eq!(groups.overdue(1_000 + WAIT_MAX), None);
        assert_eq!(groups.find(&domain("late.test"), 1_000 + WAIT_MAX), Some(alone));
        // It is looked up when there is time.
        groups.find(&domain("late.test"), 1_000 + WAIT_MAX + UNKNOWN_FOR);
        groups.found(domain("d1.test"), None, 0);
        groups.found(domain("d2.test"), None, 0);
        assert_eq!((groups.next(), groups.next()), (Some(domain("later.test")), Some(domain("late.test"))));
    }

    #[test]
    fn an_old_answer_is_used_while_a_new_one_is_on_its_way() {
        let mut groups = groups("");
        groups.wait(domain("far.test"), 1, 0);
        groups.next();
        let (first, _) = groups.found(domain("far.test"), Some(domains(&["mx1.far.test"])), 0);
        assert_eq!(groups.find(&domain("far.test"), KNOWN_FOR - 1), Some(first.clone()));
        assert_eq!(groups.next(), None);
        for _ in 0..3 {
            assert_eq!(groups.find(&domain("far.test"), KNOWN_FOR), Some(first.clone()));
        }
        assert_eq!((groups.next(), groups.next()), (Some(domain("far.test")), None));
        // The name servers are silent: the old one goes on.
        assert_eq!(groups.found(domain("far.test"), None, KNOWN_FOR).0, first);
        assert_eq!(groups.find(&domain("far.test"), KNOWN_FOR + UNKNOWN_FOR), Some(first.clone()));
        groups.next();
        let (second, _) = groups.found(domain("far.test"), Some(domains(&["mx2.far.test"])), KNOWN_FOR);
        assert_ne!(second, first);
        assert_eq!(groups.find(&domain("far.test"), KNOWN_FOR), Some(second));
    }

    #[test]
    fn what_is_asked_for_is_kept_and_the_rest_gives_way() {
        let mut groups = groups("");
        let found = |groups: &mut Groups<u32>, name: &str| groups.found(domain(name), Some(domains(&["mx"])), 0);
        found(&mut groups, "used.test");
        found(&mut groups, "unused.test");
        for number in 0..3 * KNOWN_MAX {
            found(&mut groups, &format!("d{number}.test"));
            assert!(groups.find(&domain("used.test"), 0).is_some());
            assert!(groups.young.len() <= KNOWN_MAX && groups.old.len() <= KNOWN_MAX);
        }
        assert_eq!(groups.find(&domain("unused.test"), 0), None);
    }

    #[test]
    fn a_section_for_one_of_the_domains_counts_for_all_that_share_the_servers() {
        let mut groups = groups(
            "[destinations.default]\nconnections = 9\n[destinations.\"one.test\"]\nconnections = 3\n\
             [destinations.\"two.test\"]\nconnections = 20\n[destinations.\"far.test\"]\nconnections = 6\n",
        );
        let mut connections = |domain: &str, hosts: &[&str]| {
            let (destination, _) = groups.found(self::domain(domain), Some(domains(hosts)), 0);
            groups.limits(&destination).connections
        };
        assert_eq!(connections("other.test", &["mx.near.test"]), 9);
        assert_eq!(connections("other.test", &["mx.far.test"]), 6);
        assert_eq!(connections("two.test", &["mx.far.test"]), 20);
        assert_eq!(connections("other.test", &["mx.far.test"]), 20);
        assert_eq!(connections("one.test", &["mx.far.test"]), 3);
        assert_eq!(connections("two.test", &["mx.far.test"]), 3);
        assert_eq!(groups.limits(&Destination::Target("crm".into())), GroupLimits::DEFAULT);
        assert_eq!(groups.limits(&Destination::Domain(domain("mx.far.test"))).connections, 6);
    }

    #[test]
    fn long_sets_have_short_names_that_differ() {
        let hosts = |last: &str| {
            let mut hosts: Vec<Domain> = (10..42).map(|n| domain(&format!("mx{n}.{}.test", "x".repeat(60)))).collect();
            hosts.push(domain(last));
            name(&hosts)
        };
        let (one, other) = (hosts("zz1.test"), hosts("zz2.test"));
        assert!(one.len() <= NAME_BYTES_MAX && one != other && one.starts_with("mx10.xxx"), "{one}");
        assert_eq!(name(&domains(&["b.test", "a.test"])), "a.test,b.test");
    }
}
