//! Who gets it: from an address in RCPT to the deliveries that it leads to.
//!
//! Looked up in this order: exact alias, pattern, the alias without its subaddress, the return path of
//! our mail (for the postmaster), abuse and postmaster, the catchall of the domain. Addresses of ours that
//! an alias names are looked up in turn, so every chain ends at targets, at addresses elsewhere, or is
//! dropped on purpose. A chain that ends nowhere although the configuration meant it to lead somewhere is
//! held for a person, never lost. Pure: the same configuration and address give the same answer; nothing is
//! counted here (`loops`) and no way out is chosen. Bounces of what was forwarded are not looked up here
//! (`srs`).

mod links;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::config::{AliasLimits, Config, Destination, Target};
use crate::message::{Address, HeldBy, Hold};
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
    /// The address elsewhere for [`Route::Remote`]; for a target the address it came in for, or, where the target
    /// has mailboxes of its own, the last one of ours on the way.
    pub address: Address,
    /// The address it came in for.
    pub alias: Address,
    /// What loop limits count: the alias that took it, without a subaddress, or `@domain` for the
    /// catchall.
    pub counted_as: String,
    /// What is not as in `[loops]` for that alias.
    pub limits: AliasLimits,
    pub route: Route,
    /// Queue it held, for this reason.
    pub hold: Option<Hold>,
    /// No alias took it.
    pub via_catchall: bool,
    /// Swallow it: the built-in target `discard`.
    pub discard: bool,
}

/// What takes an address.
struct Entry<'c> {
    counted_as: String,
    limits: AliasLimits,
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
            walk.follow(&entry.destinations, recipient, &mut vec![recipient.lookup_key()]);
            walk.finish()
        }
    };
    let arrives = matches!(&resolution, Resolution::Deliveries(all) if all.iter().any(|d| d.hold.is_none()));
    let must_arrive = is_role(config, recipient) || config.is_bounce(recipient);
    if !arrives && must_arrive && alias(config, recipient).is_none() {
        return Resolution::Deliveries(vec![nobodys_postmaster(config, recipient)]);
    }
    resolution
}

/// Where all mail goes while `delivery.redirect_all_to` is set: the targets of that address if it is one of ours
/// that leads nowhere else, else the address itself.
pub fn only_places(config: &Config) -> Option<Vec<(Address, Route)>> {
    let only = config.delivery.redirect_all_to.as_ref()?;
    let arrives = |found: &Delivery| found.route != Route::Remote && found.hold.is_none() && !found.discard;
    Some(match resolve(config, only) {
        Resolution::Deliveries(found) if found.iter().all(arrives) => {
            found.into_iter().map(|delivery| (delivery.address, delivery.route)).collect()
        }
        _ => vec![(only.clone(), Route::Remote)],
    })
}

/// Is mail for this address of ours left alone by `delivery.redirect_all_to`? That for the address that all mail
/// goes to, and for return paths: a bounce has to be read.
pub fn is_left_alone(config: &Config, address: &Address) -> bool {
    is_only(config, address) || config.is_bounce(address)
}

/// Is this the address that all mail goes to?
pub fn is_only(config: &Config, address: &Address) -> bool {
    let only = config.delivery.redirect_all_to.as_ref();
    only.is_some_and(|only| only.lookup_key() == address.lookup_key())
}

/// One line for the story: where a delivery goes.
pub fn describe(config: &Config, delivery: &Delivery) -> String {
    let place = match &delivery.route {
        _ if delivery.discard => "discard".to_owned(),
        Route::Remote => format!("forward to {}", delivery.address),
        Route::Target(name) => match config.targets.get(name) {
            Some(target) => format!("{} {name}", target.kind()),
            None => format!("target {name}, which the configuration does not have"),
        },
    };
    match &delivery.hold {
        Some(hold) => format!("held: {hold}"),
        None => place,
    }
}

/// Does a delivery hand the message to another mail server, so that it may come back from there?
pub fn passes_on(config: &Config, route: &Route) -> bool {
    match route {
        Route::Remote => true,
        Route::Target(name) => match config.targets.get(name) {
            Some(Target::Lmtp { .. } | Target::Smtp { .. }) => true,
            // What a program does with it is its own affair, and it may well pass it on.
            Some(Target::Pipe { .. }) => true,
            Some(Target::Webhook { .. } | Target::Maildir { .. } | Target::File { .. }) | None => false,
        },
    }
}

/// Is there an alias, or a pattern, that takes this address?
pub fn has_alias(config: &Config, address: &Address) -> bool {
    alias(config, address).is_some()
}

/// Must its mail be taken, also where it is automatic? A return path of ours, or a role that no alias takes.
pub fn is_always_taken(config: &Config, address: &Address) -> bool {
    config.is_bounce(address) || is_role(config, address)
}

fn entry<'c>(config: &'c Config, address: &Address) -> Option<Entry<'c>> {
    if let Some((counted_as, destinations)) = alias(config, address) {
        let limits = config.aliases.limits_of(&counted_as);
        return Some(Entry { limits, ..Entry::new(counted_as, Cow::Borrowed(destinations)) });
    }
    let to = |found: Option<Address>| Cow::Owned(found.into_iter().map(Destination::Address).collect());
    if config.is_bounce(address) {
        return Some(Entry::new(bounce_key(config, address), to(postmaster_of(address))));
    }
    let abuse = format!("abuse@{}", address.domain());
    if is_named(config, address, &abuse) && config.postmaster.lookup_key() != abuse {
        return Some(Entry::new(abuse, to(postmaster_of(address))));
    }
    let postmaster = format!("postmaster@{}", address.domain());
    if is_named(config, address, &postmaster) && config.postmaster.lookup_key() != postmaster {
        return Some(Entry::new(postmaster, to(Some(config.postmaster.clone()))));
    }
    let catchall = config.domains.get(address.domain())?.catchall.as_slice();
    let entry = Entry::new(format!("@{}", address.domain()), Cow::Borrowed(catchall));
    (!catchall.is_empty()).then_some(Entry { via_catchall: true, ..entry })
}

impl<'c> Entry<'c> {
    fn new(counted_as: String, destinations: Cow<'c, [Destination]>) -> Entry<'c> {
        Entry { counted_as, limits: AliasLimits::default(), via_catchall: false, destinations }
    }
}

/// What the named groups of a pattern have found in the address that it took.
pub fn groups(config: &Config, recipient: &Address) -> BTreeMap<String, String> {
    let Some((key, _)) = alias(config, recipient) else { return BTreeMap::new() };
    let Some(regex) = config.aliases.pattern(&key).map(|pattern| &pattern.regex) else { return BTreeMap::new() };
    let Some(found) = regex.captures(&key) else { return BTreeMap::new() };
    let named = regex.capture_names().flatten();
    named.filter_map(|name| Some((name.to_owned(), found.name(name)?.as_str().to_owned()))).collect()
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
    is_named(config, address, &format!("postmaster@{}", address.domain()))
}

/// Somebody whom everybody may write to: the postmaster, or abuse@ (RFC 2142 2), which is the same person
/// unless an alias says otherwise.
pub fn is_role(config: &Config, address: &Address) -> bool {
    is_postmaster(config, address) || is_named(config, address, &format!("abuse@{}", address.domain()))
}

/// With a subaddress, too.
fn is_named(config: &Config, address: &Address, key: &str) -> bool {
    address.lookup_key() == key || base_key(config, address).is_some_and(|base| base == key)
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
        false => base_key(config, recipient).unwrap_or_else(|| recipient.lookup_key()),
    };
    Walk::new(config, recipient, &Entry::new(counted_as, Cow::Borrowed(&[]))).held(HeldBy::Postmaster, reason)
}

/// Follows aliases to their ends.
struct Walk<'c> {
    config: &'c Config,
    recipient: &'c Address,
    counted_as: &'c str,
    limits: AliasLimits,
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
            limits: entry.limits,
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
    /// `at`: the address that these are the destinations of.
    fn follow(&mut self, destinations: &[Destination], at: &Address, path: &mut Vec<String>) {
        for destination in destinations {
            match destination {
                Destination::Discard => self.discard = true,
                Destination::Reject => self.rejected = true,
                Destination::Target(name) => {
                    // A server with mailboxes of its own knows those, and not what we call all of them.
                    let has_mailboxes = self.config.targets.get(name).is_some_and(Target::has_mailboxes);
                    let address = if has_mailboxes { at } else { self.recipient };
                    self.push(address.clone(), Route::Target(name.clone()));
                }
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
            Some(entry) => self.follow(&entry.destinations, address, path),
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
            limits: self.limits,
            route,
            hold: None,
            via_catchall: self.via_catchall,
            discard: false,
        }
    }

    /// It has no place yet: the route is to the address of ours that it came in for, and a release
    /// has to look that up again.
    fn held(&self, by: HeldBy, reason: String) -> Delivery {
        Delivery { hold: Some(Hold::new(by, reason)), ..self.delivery(self.recipient.clone(), Route::Remote) }
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
            let held = self.held(HeldBy::Aliases, reasons.join("; "));
            self.found.push(held);
        }
        Resolution::Deliveries(self.found)
    }
}

#[cfg(test)]
mod tests;
