//! Limits towards the servers of others, `[destinations]`: read, and looked up by recipient domain or by the
//! names of mail exchangers.
//!
//! A section is for a recipient domain of its name, and for every mail exchanger whose name it is or ends
//! in. What it does not set is as in `[destinations.default]`. Left out: who shares a limit
//! (`delivery::groups`).

use std::collections::BTreeMap;
use std::time::Duration;

use super::Rate;
use super::problem::ProblemKind;
use super::section::{Section, read_domain};
use super::value::{ZERO_UP, render_duration};
use crate::message::Domain;

const DEFAULT: &str = "default";
const CONNECTIONS_MAX: i64 = 10_000;
const MESSAGES_MAX: i64 = 1_000_000;
/// RFC 5321 4.5.3.1.8 promises 100; some servers take many more.
const RECIPIENTS_MAX: i64 = 10_000;
/// Servers close what is idle after five minutes (RFC 5321 4.5.3.2.7) or long before.
const IDLE_USEFUL: Duration = Duration::from_secs(5 * 60);

/// What one group of mail exchangers may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLimits {
    /// Attempts at once, hence connections.
    pub connections: usize,
    pub messages_per_connection: usize,
    pub recipients_per_message: usize,
    /// Messages; none: no limit.
    pub rate: Option<Rate>,
    /// How long a connection waits for the next message.
    pub idle_timeout: Duration,
}

impl GroupLimits {
    /// Without any section.
    pub const DEFAULT: GroupLimits = GroupLimits {
        connections: 10,
        messages_per_connection: 100,
        recipients_per_message: 100,
        rate: None,
        idle_timeout: Duration::from_secs(5),
    };

    /// The lower of each: what holds where two sections are about the same servers.
    pub fn stricter(self, other: GroupLimits) -> GroupLimits {
        let rate = match (self.rate, other.rate) {
            (Some(a), Some(b)) => Some(if every(a) >= every(b) { a } else { b }),
            (a, b) => a.or(b),
        };
        GroupLimits {
            connections: self.connections.min(other.connections),
            messages_per_connection: self.messages_per_connection.min(other.messages_per_connection),
            recipients_per_message: self.recipients_per_message.min(other.recipients_per_message),
            rate,
            idle_timeout: self.idle_timeout.min(other.idle_timeout),
        }
    }
}

/// From one message to the next.
fn every(rate: Rate) -> Duration {
    rate.per / rate.count.max(1)
}

/// `[destinations]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Destinations {
    pub default: GroupLimits,
    /// By domain.
    named: BTreeMap<String, GroupLimits>,
}

impl Destinations {
    /// The section of this recipient domain.
    pub fn of_domain(&self, domain: &Domain) -> Option<GroupLimits> {
        self.named.get(domain.as_str()).copied()
    }

    /// Of the sections that these mail exchangers' names end in: the longest for each, and the stricter
    /// where they differ.
    pub fn of_hosts<'h>(&self, hosts: impl IntoIterator<Item = &'h Domain>) -> Option<GroupLimits> {
        if self.named.is_empty() {
            return None;
        }
        hosts.into_iter().filter_map(|host| self.of_host(host.as_str())).reduce(GroupLimits::stricter)
    }

    fn of_host(&self, host: &str) -> Option<GroupLimits> {
        self.named_for(host).map(|(_, limits)| limits)
    }

    fn named_for(&self, host: &str) -> Option<(&str, GroupLimits)> {
        let mut rest = host;
        loop {
            if let Some((name, limits)) = self.named.get_key_value(rest) {
                return Some((name, *limits));
            }
            (_, rest) = rest.split_once('.')?;
        }
    }

    /// The path of the section that these limits are from, for mail to this domain by these hosts.
    pub fn section(&self, domain: &Domain, hosts: &[Domain], limits: GroupLimits) -> String {
        let own = self.named.get_key_value(domain.as_str()).map(|(name, own)| (name.as_str(), *own));
        let of_hosts = hosts.iter().filter_map(|host| self.named_for(host.as_str()));
        match own.into_iter().chain(of_hosts).find(|(_, named)| *named == limits) {
            Some((name, _)) => format!("destinations.\"{name}\""),
            None => "destinations.default".to_owned(),
        }
    }

    /// For mail to this domain by these hosts: its own section before theirs.
    pub fn of(&self, domain: &Domain, hosts: &[Domain]) -> GroupLimits {
        if self.named.is_empty() {
            return self.default;
        }
        self.of_domain(domain).or_else(|| self.of_hosts(hosts)).unwrap_or(self.default)
    }
}

pub(super) fn destinations(root: &Section<'_>) -> Destinations {
    let section = root.section("destinations");
    let default = limits(&section.section(DEFAULT), GroupLimits::DEFAULT);
    let mut named = BTreeMap::new();
    for (name, section) in section.named() {
        if name == DEFAULT || !section.exists() {
            continue;
        }
        match read_domain(name) {
            Ok(domain) => {
                let twice = named.insert(domain.as_str().to_owned(), limits(&section, default)).is_some();
                if twice {
                    let what = format!("there is another section for {domain}; case makes no difference");
                    let remedy = "Join the two into one section.";
                    section.report.problem(ProblemKind::Duplicate, &section.place, &section.path, what, remedy);
                }
            }
            Err(wrong) => {
                let remedy = "Name a recipient domain or what the names of mail exchangers end in, such as \
                              [destinations.\"gmail.com\"]; [destinations.default] is for all.";
                section.report.problem(wrong.kind, &section.place, &section.path, wrong.what, remedy);
            }
        }
    }
    Destinations { default, named }
}

fn limits(section: &Section<'_>, default: GroupLimits) -> GroupLimits {
    let idle_timeout = section.duration("idle_timeout", ZERO_UP, default.idle_timeout);
    if section.item("idle_timeout").is_some() && idle_timeout > IDLE_USEFUL {
        section.report.warn(format!(
            "{}.idle_timeout is {}: servers close connections that are idle for 5m, or earlier",
            section.path,
            render_duration(idle_timeout)
        ));
    }
    GroupLimits {
        connections: section.count("connections", 1..=CONNECTIONS_MAX, default.connections),
        messages_per_connection: section.count(
            "messages_per_connection",
            1..=MESSAGES_MAX,
            default.messages_per_connection,
        ),
        recipients_per_message: section.count(
            "recipients_per_message",
            1..=RECIPIENTS_MAX,
            default.recipients_per_message,
        ),
        rate: rate(section, default.rate),
        idle_timeout,
    }
}

/// Empty: no limit.
fn rate(section: &Section<'_>, default: Option<Rate>) -> Option<Rate> {
    section.item("rate").map_or(default, |item| item.optional_rate())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(text: &str) -> Destinations {
        let text = format!("hostname = \"mail.own.test\"\ndata_dir = \"/nowhere\"\n{text}");
        crate::config::parse("test.toml", &text).unwrap().destinations
    }

    fn domain(name: &str) -> Domain {
        Domain::parse(name).unwrap()
    }

    #[test]
    fn a_section_takes_the_rest_from_the_default_one() {
        let destinations = read(
            "[destinations.\"Gmail.com\"]\nconnections = 5\nrate = \"\"\n\
             [destinations.default]\nconnections = 20\nrate = \"100/m\"\nidle_timeout = \"0s\"\n",
        );
        let rate = Some(Rate { count: 100, per: Duration::from_secs(60) });
        let default = GroupLimits { connections: 20, rate, idle_timeout: Duration::ZERO, ..GroupLimits::DEFAULT };
        assert_eq!(destinations.default, default);
        let gmail = GroupLimits { connections: 5, rate: None, ..default };
        assert_eq!(destinations.of(&domain("gmail.com"), &[]), gmail);
    }

    #[test]
    fn by_domain_before_the_longest_end_of_a_host_before_the_default() {
        let destinations = read(
            "[destinations.\"far.test\"]\nconnections = 1\n[destinations.\"mx.far.test\"]\nconnections = 2\n\
             [destinations.\"other.test\"]\nconnections = 3\nrecipients_per_message = 5\n",
        );
        let connections = |domain: &str, hosts: &[&str]| {
            let hosts: Vec<Domain> = hosts.iter().map(|host| self::domain(host)).collect();
            destinations.of(&self::domain(domain), &hosts).connections
        };
        assert_eq!(connections("far.test", &["mx.far.test"]), 1);
        assert_eq!(connections("near.test", &["a.mx.far.test"]), 2);
        assert_eq!(connections("near.test", &["mx.far.test"]), 2);
        assert_eq!(connections("near.test", &["mx2.far.test", "mx.other.test"]), 1);
        assert_eq!(connections("sub.far.test", &["mx.near.test"]), 10);
        assert_eq!(connections("near.test", &["xfar.test"]), 10);
        let both = destinations.of_hosts(&[domain("mx.far.test"), domain("other.test")]).unwrap();
        assert_eq!((both.connections, both.recipients_per_message), (2, 5));
    }

    #[test]
    fn the_stricter_rate_is_the_slower_one() {
        let with = |count, secs| GroupLimits {
            rate: Some(Rate { count, per: Duration::from_secs(secs) }),
            ..GroupLimits::DEFAULT
        };
        let (slow, fast) = (with(10, 60), with(1, 1));
        assert_eq!((slow.stricter(fast), fast.stricter(slow)), (slow, slow));
        assert_eq!((slow.stricter(GroupLimits::DEFAULT), GroupLimits::DEFAULT.stricter(slow)), (slow, slow));
    }
}
