//! From a domain to the hosts and addresses to try, in order (RFC 5321 5.1). Pure: the answers of DNS
//! come in, a plan or the verdict goes out.
//!
//! Promises: what DNS does not know right now never bounces mail; a domain that says that it takes no
//! mail does so at once; our own place in an MX set ends the list, so that mail cannot go in circles.

use std::net::IpAddr;

use super::addresses::{Family, Refused, refused};
use crate::delivery::Outcome;
use crate::dns::{DnsError, MxAnswer, MxHost};
use crate::message::Domain;
use crate::queue::record::Failure;

/// Hosts tried in one attempt.
pub const HOSTS_MAX: usize = 5;
/// Addresses of one host tried in one attempt.
pub const ADDRESSES_PER_HOST_MAX: usize = 2;

/// Shuffles from a seed (SplitMix64), so that a test can repeat what happened. Good enough to spread
/// load over hosts; no secret may depend on it.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Fisher and Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = (self.roll() % (last as u64 + 1)) as usize;
            items.swap(last, other);
        }
    }
}

/// The hosts to try for `domain`, best first and at most [`HOSTS_MAX`]; or what becomes of its
/// recipients without a try. `own`: names under which this server itself may be listed.
pub fn hosts(
    domain: &Domain,
    answer: Result<MxAnswer, DnsError>,
    own: &[&Domain],
    dice: &mut Dice,
) -> Result<Vec<Domain>, Box<Outcome>> {
    match answer {
        Ok(MxAnswer::Hosts(listed)) => from_listed(domain, listed, own, dice),
        Ok(MxAnswer::Implicit) if own.contains(&domain) => verdict(looped(domain)),
        Ok(MxAnswer::Implicit) => Ok(vec![domain.clone()]),
        // RFC 7505 4.1: 5.1.10 says "recipient address has null MX".
        Ok(MxAnswer::Null) => verdict(fail("5.1.10", format!("the domain {domain} accepts no mail (null MX)"))),
        Ok(MxAnswer::NoSuchDomain) | Err(DnsError::NoSuchDomain) => {
            verdict(fail("5.1.2", format!("the domain {domain} does not exist")))
        }
        Err(DnsError::Unusable(reason)) => verdict(fail("5.4.4", reason)),
        Err(DnsError::Temporary(reason) | DnsError::Setup(reason)) => verdict(defer("4.4.3", reason)),
    }
}

fn from_listed(
    domain: &Domain,
    mut listed: Vec<MxHost>,
    own: &[&Domain],
    dice: &mut Dice,
) -> Result<Vec<Domain>, Box<Outcome>> {
    // RFC 5321 5.1: if we are in the list, we and all that are not preferred to us drop out.
    let ours = listed.iter().filter(|mx| own.contains(&&mx.host)).map(|mx| mx.preference).min();
    if let Some(ours) = ours {
        listed.retain(|mx| mx.preference < ours);
        if listed.is_empty() {
            return verdict(looped(domain));
        }
    }
    dice.shuffle(&mut listed);
    // Stable: hosts of equal preference stay shuffled.
    listed.sort_by_key(|mx| mx.preference);
    Ok(listed.into_iter().map(|mx| mx.host).take(HOSTS_MAX).collect())
}

fn verdict(outcome: Outcome) -> Result<Vec<Domain>, Box<Outcome>> {
    Err(Box::new(outcome))
}

fn looped(domain: &Domain) -> Outcome {
    let reason = format!(
        "the best mail exchanger for {domain} is this server, but {domain} is not one of its domains; \
         change its MX record or add [domains.\"{domain}\"]"
    );
    fail("5.4.6", reason)
}

/// What may be connected to, and what may not, of a host's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// In the order of trying, at most [`ADDRESSES_PER_HOST_MAX`], and one more of a family that fails.
    pub usable: Vec<IpAddr>,
    pub refused: Vec<(IpAddr, Refused)>,
}

/// IPv6 and IPv4 take turns, IPv6 first, so that trouble with one family costs one try
/// (RFC 5321 5.1, RFC 8305 4). Of a family that is known to fail, one address is tried, after the others.
pub fn addresses(found: Vec<IpAddr>, allow_private: bool, failing: Option<Family>, dice: &mut Dice) -> Addresses {
    let mut chosen = Addresses::default();
    let (mut v6, mut v4) = (Vec::new(), Vec::new());
    for ip in found {
        match refused(ip, allow_private) {
            Some(reason) => chosen.refused.push((ip, reason)),
            None if ip.is_ipv6() => v6.push(ip),
            None => v4.push(ip),
        }
    }
    dice.shuffle(&mut v6);
    dice.shuffle(&mut v4);
    chosen.usable = match failing {
        None => {
            let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
            let turns = (0..ADDRESSES_PER_HOST_MAX).flat_map(|_| [v6.next(), v4.next()]).flatten();
            turns.take(ADDRESSES_PER_HOST_MAX).collect()
        }
        Some(failing) => {
            let (mut first, last) = if failing == Family::V6 { (v4, v6) } else { (v6, v4) };
            first.truncate(ADDRESSES_PER_HOST_MAX);
            let room = (ADDRESSES_PER_HOST_MAX - first.len()).max(1);
            first.into_iter().chain(last.into_iter().take(room)).collect()
        }
    };
    chosen
}

/// The verdict on a domain none of whose hosts has an address that may be connected to.
pub fn all_refused(domain: &Domain, host: &Domain, ip: IpAddr, reason: Refused) -> Outcome {
    let what = format!("mail for {domain} would go to {host} [{ip}], a {} address", reason.kind());
    let setting = "delivery.allow_private_addresses";
    match reason {
        Refused::Loopback => fail("5.4.6", format!("{what}: this server itself; {setting} = true would allow it")),
        Refused::NotPublic(_) => fail("5.4.4", format!("{what}, which {setting} = false forbids")),
        Refused::NoHost(_) => {
            fail("5.4.4", format!("{what}, which no host can have ({setting} makes no difference here)"))
        }
    }
}

/// The verdict on a domain none of whose hosts has an address.
pub fn no_addresses(domain: &Domain, hosts: &[Domain]) -> Outcome {
    if hosts == std::slice::from_ref(domain) {
        return fail("5.1.2", format!("the domain {domain} has neither an MX record nor an address"));
    }
    let names: Vec<&str> = hosts.iter().map(Domain::as_str).collect();
    fail("5.4.4", format!("no mail exchanger of {domain} has an address ({})", names.join(", ")))
}

fn fail(status: &str, reason: String) -> Outcome {
    Outcome::Fail(Failure::local(status, "", reason))
}

fn defer(status: &str, reason: String) -> Outcome {
    Outcome::Defer { why: Failure::local(status, "", reason), not_before_secs: None }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn domain(name: &str) -> Domain {
        Domain::parse(name).unwrap()
    }

    fn listed(hosts: &[(u16, &str)]) -> Result<MxAnswer, DnsError> {
        let hosts = hosts.iter().map(|(preference, host)| MxHost { preference: *preference, host: domain(host) });
        Ok(MxAnswer::Hosts(hosts.collect()))
    }

    fn plan(answer: Result<MxAnswer, DnsError>, seed: u64) -> Result<Vec<String>, Box<Outcome>> {
        let own = domain("mail.own.test");
        let plan = hosts(&domain("far.test"), answer, &[&own], &mut Dice::new(seed))?;
        Ok(plan.iter().map(Domain::to_string).collect())
    }

    fn status(outcome: &Outcome) -> (bool, String) {
        match outcome.clone() {
            Outcome::Fail(why) => (true, why.status),
            Outcome::Defer { why, .. } => (false, why.status),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn preference_rules_and_equals_are_shuffled() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let plan = plan(listed(&[(20, "c.test"), (10, "a.test"), (10, "b.test"), (30, "d.test")]), seed).unwrap();
            assert_eq!(plan[2..], ["c.test", "d.test"]);
            seen.insert(plan[..2].to_vec());
        }
        assert_eq!(seen.len(), 2, "both orders of the equals come up");
    }

    #[test]
    fn one_seed_gives_one_order_and_hosts_are_bounded() {
        let names: Vec<String> = (0..20).map(|n| format!("mx{n}.test")).collect();
        let all: Vec<(u16, &str)> = names.iter().map(|name| (10, name.as_str())).collect();
        let first = plan(listed(&all), 7).unwrap();
        assert_eq!(first.len(), HOSTS_MAX);
        assert_eq!(plan(listed(&all), 7).unwrap(), first);
        assert_ne!(plan(listed(&all), 8).unwrap(), first);
    }

    #[test]
    fn our_own_place_ends_the_list() {
        let better = plan(listed(&[(5, "a.test"), (10, "mail.own.test"), (10, "b.test"), (20, "c.test")]), 1);
        assert_eq!(better.unwrap(), ["a.test"]);
        let alone = plan(listed(&[(10, "mail.own.test"), (20, "c.test")]), 1).unwrap_err();
        assert_eq!(status(&alone), (true, "5.4.6".into()));
        let own = domain("mail.own.test");
        let implicit = hosts(&own, Ok(MxAnswer::Implicit), &[&own], &mut Dice::new(1)).unwrap_err();
        assert_eq!(status(&implicit), (true, "5.4.6".into()));
    }

    #[test]
    fn answers_without_hosts() {
        assert_eq!(plan(Ok(MxAnswer::Implicit), 1).unwrap(), ["far.test"]);
        let table = [
            (Ok(MxAnswer::Null), true, "5.1.10"),
            (Ok(MxAnswer::NoSuchDomain), true, "5.1.2"),
            (Err(DnsError::NoSuchDomain), true, "5.1.2"),
            (Err(DnsError::Unusable("x".into())), true, "5.4.4"),
            (Err(DnsError::Temporary("SERVFAIL".into())), false, "4.4.3"),
        ];
        for (answer, permanent, code) in table {
            assert_eq!(status(&plan(answer.clone(), 1).unwrap_err()), (permanent, code.to_owned()), "{answer:?}");
        }
    }

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns_and_refused_addresses_take_no_place() {
        let chosen = addresses(ips(&["9.9.9.9", "127.0.0.1", "2606:4700::1"]), false, None, &mut Dice::new(1));
        assert_eq!(chosen.usable, ips(&["2606:4700::1", "9.9.9.9"]));
        assert_eq!(chosen.refused, [("127.0.0.1".parse().unwrap(), Refused::Loopback)]);
        let only_v4 = addresses(ips(&["9.9.9.9", "8.8.8.8", "1.1.1.1"]), false, None, &mut Dice::new(1));
        assert_eq!(only_v4.usable.len(), ADDRESSES_PER_HOST_MAX);
        assert!(addresses(ips(&["10.0.0.1", "::1"]), false, None, &mut Dice::new(1)).usable.is_empty());
        assert_eq!(addresses(ips(&["10.0.0.1", "::1"]), true, None, &mut Dice::new(1)).usable.len(), 2);
    }

    #[test]
    fn a_failing_family_comes_last_and_is_not_left_out() {
        let order = |found: &[&str], failing| addresses(ips(found), false, Some(failing), &mut Dice::new(1)).usable;
        let found = ["2606:4700::1", "2606:4700::2", "9.9.9.9"];
        assert_eq!(order(&found, Family::V6)[0], ips(&["9.9.9.9"])[0]);
        assert_eq!(order(&found, Family::V6).len(), 2);
        let v4_last = order(&found, Family::V4);
        assert!(v4_last[..2].iter().all(IpAddr::is_ipv6), "{v4_last:?}");
        assert_eq!(v4_last[2..], ips(&["9.9.9.9"]));
        assert_eq!(order(&found[..2], Family::V6).len(), ADDRESSES_PER_HOST_MAX);
    }

    #[test]
    fn a_refused_address_names_itself_and_the_setting() {
        for (ip, reason, code) in [
            ("127.0.0.1", Refused::Loopback, "5.4.6"),
            ("10.0.0.1", Refused::NotPublic("private"), "5.4.4"),
            ("0.0.0.0", Refused::NoHost("unspecified"), "5.4.4"),
        ] {
            let verdict = all_refused(&domain("far.test"), &domain("mx.far.test"), ip.parse().unwrap(), reason);
            let Outcome::Fail(why) = verdict else { panic!("{verdict:?}") };
            assert_eq!(why.status, code);
            assert!(why.reason.contains(ip) && why.reason.contains("delivery.allow_private_addresses"), "{why:?}");
        }
    }
}
