//! Who gets it: from an address in RCPT to the deliveries that it leads to.
//!
//! Looked up in this order: exact alias, pattern, the alias without its subaddress, the return path of
//! our mail (for the postmaster), postmaster, the catchall of the domain. Addresses of ours that an alias names are looked up in turn, so every
//! chain ends at targets, at addresses elsewhere, or is dropped on purpose. A chain that ends
//! nowhere although the configuration meant it to lead somewhere is held for a person, never lost.
//! Pure: the same configuration and address give the same answer; nothing is counted here (`loops`)
//! and no way out is chosen.

mod links;

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};

use crate::config::{Config, Destination, Target};
use crate::message::Address;
use crate::queue::record::Route;

pub use links::{Link, links};

/// Aliases that may lead to one another.
pub const CHAIN_DEPTH_MAX: usize = 10;
/// Deliveries from one recipient.
pub const DELIVERIES_MAX: usize = 100;
/// Reasons that are told when a part is held.
const REASONS_MAX: usize = 5;

/// What becomes of a recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The domain is not ours.
    NotOurs,
    /// Ours, but nobody has this address: 550 5.1.1.
    Unknown,
    /// The configuration says `reject`.
    Rejected,
    /// Never empty.
    Deliveries(Vec<Delivery>),
}

/// One place to which a recipient leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The address elsewhere for [`Route::Remote`], else the address it came in for.
    pub address: Address,
    /// The address it came in for.
    pub alias: Address,
    /// What loop limits count: the alias that took it, without a subaddress, or `@domain` for the
    /// catchall.
    pub counted_as: String,
    pub route: Route,
    /// Queue it held, for this reason.
    pub hold: Option<String>,
    /// No alias took it.
    pub via_catchall: bool,
    /// Swallow it: the built-in target `discard`.
    pub discard: bool,
}

/// What takes an address.
struct Entry<'c> {
    counted_as: String,
    via_catchall: bool,
    destinations: Cow<'c, [Destination]>,
}

pub fn resolve(config: &Config, recipient: &Address) -> Resolution {
    // RFC 5321 4.1.1.3: <postmaster> without a domain means the one of this host.
    let is_ours = config.is_own(recipient.domain())
        || (*recipient.domain() == config.hostname && is_postmaster(config, recipient));
    if !is_ours {
        return Resolution::NotOurs;
    }
    let resolution = match entry(config, recipient) {
        None => Resolution::Unknown,
        Some(entry) => {
            let mut walk = Walk::new(config, recipient, &entry);
            walk.follow(&entry.destinations, &mut vec![recipient.lookup_key()]);
            walk.finish()
        }
    };
    let arrives = matches!(&resolution, Resolution::Deliveries(all) if all.iter().any(|d| d.hold.is_none()));
    let must_arrive = is_postmaster(config, recipient) || config.is_bounce(recipient);
    if !arrives && must_arrive && alias(config, recipient).is_none() {
        return Resolution::Deliveries(vec![nobodys_postmaster(config, recipient)]);
    }
    resolution
}

/// One line for the story: where a delivery goes.
pub fn describe(config: &Config, delivery: &Delivery) -> String {
    let place = match &delivery.route {
        _ if delivery.discard => "discard".to_owned(),
        Route::Remote => format!("forward to {}", delivery.address),
        Route::Target(name) => match config.targets.get(name) {
            Some(Target::Webhook { .. }) => format!("webhook {name}"),
            Some(Target::Maildir { .. }) => format!("maildir {name}"),
            None => format!("target {name}, which the configuration does not have"),
        },
    };
    match &delivery.hold {
        Some(reason) => format!("held: {reason}"),
        None => place,
    }
}

fn entry<'c>(config: &'c Config, address: &Address) -> Option<Entry<'c>> {
    if let Some((counted_as, destinations)) = alias(config, address) {
        return Some(Entry { counted_as, via_catchall: false, destinations: Cow::Borrowed(destinations) });
    }
    if config.is_bounce(address) {
        let (counted_as, postmaster) = (bounce_key(config, address), postmaster_of(address));
        let destinations = Cow::Owned(postmaster.into_iter().map(Destination::Address).collect());
        return Some(Entry { counted_as, via_catchall: false, destinations });
    }
    let counted_as = format!("postmaster@{}", address.domain());
    if is_postmaster(config, address) && config.postmaster.lookup_key() != counted_as {
        let destinations = Cow::Owned(vec![Destination::Address(config.postmaster.clone())]);
        return Some(Entry { counted_as, via_catchall: false, destinations });
    }
    let catchall = config.domains.get(address.domain())?.catchall.as_slice();
    let counted_as = format!("@{}", address.domain());
    (!catchall.is_empty()).then_some(Entry { counted_as, via_catchall: true, destinations: Cow::Borrowed(catchall) })
}

/// The alias of an address and its key: exact, by pattern, then both without the subaddress.
fn alias<'c>(config: &'c Config, address: &Address) -> Option<(String, &'c [Destination])> {
    let keys = [Some(address.lookup_key()), base_key(config, address)];
    keys.into_iter().flatten().find_map(|key| config.aliases.named(&key).map(|destinations| (key, destinations)))
}

fn base_key(config: &Config, address: &Address) -> Option<String> {
    config.domains.get(address.domain())?.base_key(address)
}

/// RFC 5321 4.5.1: every domain that takes mail has a postmaster.
fn is_postmaster(config: &Config, address: &Address) -> bool {
    let own = format!("postmaster@{}", address.domain());
    address.lookup_key() == own || base_key(config, address).is_some_and(|base| base == own)
}

fn postmaster_of(address: &Address) -> Option<Address> {
    Address::new("postmaster", address.domain().clone()).ok()
}

/// Without a subaddress: the same limit for all of them.
fn bounce_key(config: &Config, address: &Address) -> String {
    let own = config.domains.get(address.domain()).and_then(|own| own.bounce_address(address.domain()));
    own.as_ref().unwrap_or(address).lookup_key()
}

/// Nothing takes it, but it must not be refused.
fn nobodys_postmaster(config: &Config, recipient: &Address) -> Delivery {
    let reason = format!(
        "nobody is named for {recipient}: set `postmaster` to an address that is read, or give {recipient} an alias"
    );
    let counted_as = match config.is_bounce(recipient) {
        true => bounce_key(config, recipient),
        false => format!("postmaster@{}", recipient.domain()),
    };
    let entry = Entry { counted_as, via_catchall: false, destinations: Cow::Borrowed(&[]) };
    Walk::new(config, recipient, &entry).held(reason)
}

/// Follows aliases to their ends.
struct Walk<'c> {
    config: &'c Config,
    recipient: &'c Address,
    counted_as: &'c str,
    via_catchall: bool,
    found: Vec<Delivery>,
    discard: bool,
    rejected: bool,
    /// Addresses followed to their ends; once is enough, also where many aliases share one.
    followed: HashSet<String>,
    /// Parts that lead nowhere although the configuration means them to lead somewhere.
    lost: BTreeSet<String>,
    /// The aliases lead back to themselves. Harmless as long as they lead elsewhere too.
    circle: bool,
    /// Too deep or too many: a mistake in the configuration, not an address that does not exist.
    too_much: bool,
}

impl<'c> Walk<'c> {
    fn new(config: &'c Config, recipient: &'c Address, entry: &'c Entry<'_>) -> Walk<'c> {
        Walk {
            config,
            recipient,
            counted_as: &entry.counted_as,
            via_catchall: entry.via_catchall,
            found: Vec::new(),
            discard: false,
            rejected: false,
            followed: HashSet::new(),
            lost: BTreeSet::new(),
            circle: false,
            too_much: false,
        }
    }

    /// `path`: the addresses that led here, so that a circle ends.
    fn follow(&mut self, destinations: &[Destination], path: &mut Vec<String>) {
        for destination in destinations {
            match destination {
                Destination::Discard => self.discard = true,
                Destination::Reject => self.rejected = true,
                Destination::Target(name) => self.push(self.recipient.clone(), Route::Target(name.clone())),
                Destination::Address(address) if self.config.is_own(address.domain()) => self.own(address, path),
                Destination::Address(address) => self.push(address.clone(), Route::Remote),
            }
        }
    }

    fn own(&mut self, address: &Address, path: &mut Vec<String>) {
        let key = address.lookup_key();
        if path.contains(&key) {
            self.circle = true;
            return;
        }
        if path.len() > CHAIN_DEPTH_MAX {
            self.too_much = true;
            self.lost.insert(format!("more than {CHAIN_DEPTH_MAX} aliases lead from one to the next"));
            return;
        }
        if !self.followed.insert(key.clone()) {
            return;
        }
        path.push(key);
        match entry(self.config, address) {
            Some(entry) => self.follow(&entry.destinations, path),
            None => {
                self.lost.insert(format!("an alias leads to {address}, which does not exist"));
            }
        }
        path.pop();
    }

    fn push(&mut self, address: Address, route: Route) {
        if self.found.iter().any(|d| d.route == route && d.address == address) {
            return;
        }
        if self.found.len() >= DELIVERIES_MAX {
            self.too_much = true;
            self.lost.insert(format!("the alias leads to more than {DELIVERIES_MAX} places"));
            return;
        }
        let delivery = self.delivery(address, route);
        self.found.push(delivery);
    }

    fn delivery(&self, address: Address, route: Route) -> Delivery {
        Delivery {
            address,
            alias: self.recipient.clone(),
            counted_as: self.counted_as.to_owned(),
            route,
            hold: None,
            via_catchall: self.via_catchall,
            discard: false,
        }
    }

    /// It has no place yet: the route is to the address of ours that it came in for, and a release
    /// has to look that up again.
    fn held(&self, reason: String) -> Delivery {
        Delivery { hold: Some(reason), ..self.delivery(self.recipient.clone(), Route::Remote) }
    }

    fn finish(mut self) -> Resolution {
        if self.found.is_empty() && self.discard {
            let route = Route::Target("discard".to_owned());
            let swallowed = Delivery { discard: true, ..self.delivery(self.recipient.clone(), route) };
            self.found.push(swallowed);
        }
        if self.found.is_empty() && !self.too_much {
            match (self.rejected, self.circle) {
                (true, _) => return Resolution::Rejected,
                (false, false) => return Resolution::Unknown,
                (false, true) => {
                    self.lost.insert("its aliases lead only back to themselves".to_owned());
                }
            }
        }
        if !self.lost.is_empty() {
            let reasons: Vec<&str> = self.lost.iter().take(REASONS_MAX).map(String::as_str).collect();
            let held = self.held(reasons.join("; "));
            self.found.push(held);
        }
        Resolution::Deliveries(self.found)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::config::ReturnPath;
    use crate::routing::fixture;

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    fn target(name: &str) -> Destination {
        Destination::Target(name.to_owned())
    }

    fn to(text: &str) -> Destination {
        Destination::Address(address(text))
    }

    /// example.com with a catchall, plain.example without.
    fn config(aliases: &[(&str, &[Destination])]) -> Config {
        let mut config = fixture::config();
        for (key, destinations) in aliases {
            config.aliases.exact.insert((*key).to_owned(), destinations.to_vec());
        }
        config
    }

    fn lines(config: &Config, recipient: &str) -> Vec<String> {
        match resolve(config, &address(recipient)) {
            Resolution::Deliveries(deliveries) => {
                assert!(deliveries.iter().all(|d| d.alias == address(recipient)));
                deliveries.iter().map(|d| describe(config, d)).collect()
            }
            other => panic!("{recipient}: {other:?}"),
        }
    }

    #[test]
    fn order_is_exact_pattern_subaddress_postmaster_catchall() {
        let mut config = config(&[
            ("sales@example.com", &[target("sales-box")]),
            ("sales+vip@example.com", &[to("bob@partner.example")]),
            ("sales-2@example.com", &[target("sales-box")]),
        ]);
        let pattern = fixture::pattern("sales\\+[0-9]+@example\\.com", vec![target("crm")]);
        config.aliases.patterns.push(pattern);
        for (recipient, line) in [
            ("Sales@Example.COM", "maildir sales-box"),
            ("sales+vip@example.com", "forward to bob@partner.example"),
            ("sales+77@example.com", "webhook crm"),
            ("x-sales+77@example.com", "webhook catch"),
            ("sales+other@example.com", "maildir sales-box"),
            ("postmaster@example.com", "forward to ops@elsewhere.example"),
            ("PostMaster+x@plain.example", "forward to ops@elsewhere.example"),
            ("whoever@example.com", "webhook catch"),
            ("+sales@example.com", "webhook catch"),
        ] {
            assert_eq!(lines(&config, recipient), [line], "{recipient}");
        }
        assert_eq!(resolve(&config, &address("x@plain.example")), Resolution::Unknown);
        assert_eq!(resolve(&config, &address("x@foreign.example")), Resolution::NotOurs);
        config.domains.get_mut(address("x@example.com").domain()).unwrap().subaddress = None;
        assert_eq!(lines(&config, "sales+other@example.com"), ["webhook catch"]);
    }

    #[test]
    fn bounces_of_our_mail_go_to_the_postmaster() {
        let mut config = config(&[("bounce+vip@example.com", &[target("crm")])]);
        assert_eq!(resolve(&config, &address("bounce@plain.example")), Resolution::Unknown);
        let otherwise = address("x@example.com").domain().clone();
        config.sender.return_path = ReturnPath::Bounce { otherwise };
        for (recipient, line) in [
            ("Bounce@plain.example", "forward to ops@elsewhere.example"),
            ("bounce+token@plain.example", "forward to ops@elsewhere.example"),
            ("bounce@example.com", "forward to ops@elsewhere.example"),
            ("bounce+vip@example.com", "webhook crm"),
            ("bounces@example.com", "webhook catch"),
        ] {
            assert_eq!(lines(&config, recipient), [line], "{recipient}");
        }
        assert_eq!(resolve(&config, &address("bounces@plain.example")), Resolution::Unknown);
        let Resolution::Deliveries(found) = resolve(&config, &address("bounce+x@plain.example")) else { panic!() };
        assert_eq!(found[0].counted_as, "bounce@plain.example");
        // As for any postmaster: an alias decides where that mail goes, and without anybody it waits.
        config.aliases.exact.insert("postmaster@plain.example".to_owned(), vec![target("sales-box")]);
        assert_eq!(lines(&config, "bounce@plain.example"), ["maildir sales-box"]);
        config.aliases.exact.clear();
        config.postmaster = address("postmaster@plain.example");
        let held = lines(&config, "bounce@plain.example");
        assert!(held[0].starts_with("held: nobody is named for bounce@plain.example"), "{held:?}");
    }

    #[test]
    fn says_what_limits_count() {
        let config = config(&[("sales@example.com", &[target("crm")])]);
        for (recipient, counted_as, via_catchall) in [
            ("SALES+x@example.com", "sales@example.com", false),
            ("who@example.com", "@example.com", true),
            ("postmaster@plain.example", "postmaster@plain.example", false),
        ] {
            let Resolution::Deliveries(found) = resolve(&config, &address(recipient)) else { panic!("{recipient}") };
            assert_eq!((found[0].counted_as.as_str(), found[0].via_catchall), (counted_as, via_catchall));
        }
    }

    #[test]
    fn lists_and_chains_are_followed_and_merged() {
        let config = config(&[
            ("all@example.com", &[to("team@example.com"), to("bob@partner.example"), to("all@example.com")]),
            ("team@example.com", &[target("crm"), to("bob@partner.example"), Destination::Reject]),
        ]);
        assert_eq!(lines(&config, "all@example.com"), ["webhook crm", "forward to bob@partner.example"]);
        let Resolution::Deliveries(found) = resolve(&config, &address("all+x@example.com")) else { panic!() };
        assert_eq!(found[0].address, address("all+x@example.com"), "a target sees the address it came in for");
        assert_eq!(found[1].address, address("bob@partner.example"));
    }

    #[test]
    fn discard_and_reject_count_where_they_stand_alone() {
        let config = config(&[
            ("a@plain.example", &[Destination::Discard]),
            ("b@plain.example", &[Destination::Reject]),
            ("c@plain.example", &[Destination::Discard, target("crm")]),
            ("d@plain.example", &[Destination::Reject, Destination::Discard]),
            ("e@plain.example", &[to("b@plain.example")]),
        ]);
        assert_eq!(lines(&config, "a@plain.example"), ["discard"]);
        assert_eq!(resolve(&config, &address("b@plain.example")), Resolution::Rejected);
        assert_eq!(lines(&config, "c@plain.example"), ["webhook crm"]);
        assert_eq!(lines(&config, "d@plain.example"), ["discard"]);
        assert_eq!(resolve(&config, &address("e@plain.example")), Resolution::Rejected);
    }

    #[test]
    fn mistakes_are_held_and_unknown_ends_refused() {
        let config = config(&[
            ("a@plain.example", &[to("b@plain.example")]),
            ("b@plain.example", &[to("a@plain.example")]),
            ("c@plain.example", &[to("gone@plain.example")]),
            ("d@plain.example", &[to("gone@plain.example"), target("crm")]),
        ]);
        assert_eq!(lines(&config, "a@plain.example"), ["held: its aliases lead only back to themselves"]);
        assert_eq!(resolve(&config, &address("c@plain.example")), Resolution::Unknown);
        assert_eq!(
            lines(&config, "d@plain.example"),
            ["webhook crm", "held: an alias leads to gone@plain.example, which does not exist"]
        );
    }

    #[test]
    fn a_postmaster_nobody_is_named_for_is_held() {
        let mut config = config(&[]);
        config.postmaster = address("postmaster@plain.example");
        let held = lines(&config, "postmaster@plain.example");
        assert!(held[0].starts_with("held: nobody is named for postmaster@plain.example"), "{held:?}");
        // Another domain's postmaster goes the same way; one with a catchall has a place.
        assert!(lines(&config, "postmaster@example.com")[0].starts_with("held: nobody is named"));
        config.postmaster = address("postmaster@example.com");
        assert_eq!(lines(&config, "postmaster@example.com"), ["webhook catch"]);
        assert_eq!(lines(&config, "postmaster@plain.example"), ["webhook catch"]);
    }

    #[test]
    fn chains_and_lists_are_bounded() {
        let mut config = config(&[]);
        for step in 0..CHAIN_DEPTH_MAX + 2 {
            let next = to(&format!("s{}@plain.example", step + 1));
            config.aliases.exact.insert(format!("s{step}@plain.example"), vec![next.clone(), next]);
        }
        assert_eq!(lines(&config, "s0@plain.example"), ["held: more than 10 aliases lead from one to the next"]);
        let many = (0..=DELIVERIES_MAX).map(|n| to(&format!("n{n}@partner.example"))).collect();
        config.aliases.exact.insert("many@plain.example".to_owned(), many);
        let found = lines(&config, "many@plain.example");
        assert_eq!(found.len(), DELIVERIES_MAX + 1);
        assert_eq!(found.last().unwrap(), "held: the alias leads to more than 100 places");
    }
}
