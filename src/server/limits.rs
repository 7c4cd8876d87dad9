//! How much one client may take: connections at once, new connections in a time, failed logins.
//!
//! Counters only; the settings and the time come with each call, so a reload applies at once and
//! tests own the clock. Every table has a named maximum. A table that is full of entries that still
//! matter forgets one of them rather than grow: a flood from very many addresses gets the limit of
//! the whole server, not one each. Nothing here survives a restart.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Resource, getrlimit};

use crate::clock::Millis;
use crate::config::{Config, Rate, Role};
use crate::smtp::Reply;
use crate::smtp::reply::Refusal;

/// Clients whose new connections are counted at once.
pub const RATE_CLIENTS_MAX: usize = 65_536;
/// Clients whose failed logins are counted at once.
pub const AUTH_CLIENTS_MAX: usize = 65_536;
/// Names without an account whose failed logins are counted at once. Accounts have a table of
/// their own, so that a flood of invented names does not make the server forget those.
pub const AUTH_UNKNOWN_NAMES_MAX: usize = 16_384;
/// Octets of a login name that count; what is longer and alike up to here shares a counter.
const NAME_BYTES_MAX: usize = 255;

/// What counts as one client: an IPv4 address, or an IPv6 /64, which is what one site gets at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Client([u8; 8]);

impl Client {
    pub(super) fn of(ip: IpAddr) -> Client {
        match ip.to_canonical() {
            // ::/16 is never the start of a client's network, so the two kinds cannot meet.
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                Client([0, 0, 0, 4, a, b, c, d])
            }
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h, ..] = v6.octets();
                Client([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// Open files that are kept for all else than connections of clients (the store, deliveries, DNS), where there are
/// enough of them; else half of all.
const FILES_KEPT: u64 = 1024;

/// How many connections so many open files are good for. More are refused with 421 instead of taking the files that the
/// store and deliveries need.
pub fn connections_for(open_files: u64) -> usize {
    usize::try_from(open_files - FILES_KEPT.min(open_files / 2)).unwrap_or(usize::MAX)
}

/// The counters of all listeners together.
#[derive(Debug, Default)]
pub struct Limits {
    state: Mutex<State>,
    /// However many the configuration allows.
    connections_max: Option<usize>,
}

#[derive(Debug, Default)]
struct State {
    connections: usize,
    /// Bounded by `connections`: a client without one has no entry.
    per_client: HashMap<Client, usize>,
    arrivals: Table<Client, Allowance>,
    failures_by_client: Table<Client, Window>,
    failures_by_account: Table<String, Window>,
    failures_by_unknown_name: Table<String, Window>,
}

/// A connection's place. Dropping it gives the place back.
#[derive(Debug)]
pub struct ConnectionGuard {
    limits: Arc<Limits>,
    /// None: it counts for the whole only.
    client: Option<Client>,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let mut state = self.limits.lock();
        state.connections = state.connections.saturating_sub(1);
        let Some(client) = &self.client else { return };
        if let Some(count) = state.per_client.get_mut(client) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                state.per_client.remove(client);
            }
        }
    }
}

impl Limits {
    /// With no more connections than this process may have open files for.
    pub fn new() -> Arc<Limits> {
        Limits::for_open_files(getrlimit(Resource::Nofile).current)
    }

    /// `None`: as many as there are connections.
    pub fn for_open_files(open_files: Option<u64>) -> Arc<Limits> {
        Arc::new(Limits { connections_max: open_files.map(connections_for), ..Limits::default() })
    }

    /// Connections that live now.
    pub fn connections(&self) -> usize {
        self.lock().connections
    }

    /// A new connection: its place, or the one line it gets instead of a greeting.
    pub fn connect(
        self: &Arc<Self>,
        config: &Config,
        role: Role,
        peer: IpAddr,
        now: Millis,
    ) -> Result<ConnectionGuard, Refusal> {
        let peer = peer.to_canonical();
        if contains(&config.networks.blocked, peer) {
            return Err(Refusal {
                reply: Reply::new(554, (7, 1), "no service for your network here"),
                reason: format!("{peer} is in networks.blocked"),
            });
        }
        let limits = &config.limits;
        let client = Client::of(peer);
        let mut state = self.lock();
        self.has_place(&state, config)?;
        let own = state.per_client.get(&client).copied().unwrap_or(0);
        if own >= limits.connections_per_ip {
            return Err(busy(
                "too many connections from your address, please try again later",
                format!("limits.connections_per_ip = {} is reached by {peer}", limits.connections_per_ip),
            ));
        }
        if role == Role::Mx
            && !contains(&config.networks.trusted, peer)
            && !state.take_arrival(client, limits.connection_rate, now)
        {
            return Err(busy(
                "your address connects too often, please try again later",
                format!("limits.connection_rate = {} is passed by {peer}", rate_text(limits.connection_rate)),
            ));
        }
        state.connections += 1;
        *state.per_client.entry(client).or_insert(0) += 1;
        Ok(ConnectionGuard { limits: self.clone(), client: Some(client) })
    }

    /// A connection from one of our own proxies, of which nobody knows yet whose it is: it takes a place, and
    /// is not counted as the proxy's.
    pub fn connect_proxy(self: &Arc<Self>, config: &Config) -> Result<ConnectionGuard, Refusal> {
        let mut state = self.lock();
        self.has_place(&state, config)?;
        state.connections += 1;
        Ok(ConnectionGuard { limits: self.clone(), client: None })
    }

    /// May this client try a login as this account? Asked before the password is looked at. `peer` is none where
    /// nobody can tell the client's address; its failures count for the account alone.
    pub fn may_log_in(
        &self,
        config: &Config,
        peer: impl Into<Option<IpAddr>>,
        account: &str,
        now: Millis,
    ) -> Result<(), Refusal> {
        let rate = config.limits.auth_failures;
        let account = counted_name(account);
        let mut state = self.lock();
        let client = peer.into().filter(|peer| !is_exempt(config, *peer));
        let is_full = |peer: &IpAddr| {
            state.failures_by_client.get(&Client::of(*peer)).is_some_and(|window| window.is_full(rate, now))
        };
        let reason = if let Some(peer) = client.filter(is_full) {
            format!("{peer} has used up limits.auth_failures = {}", rate_text(rate))
        } else if state.by_name(config, account).get(account).is_some_and(|window| window.is_full(rate, now)) {
            format!("logins as {account:?} have used up limits.auth_failures = {}", rate_text(rate))
        } else {
            return Ok(());
        };
        Err(Refusal { reply: Reply::new(421, (7, 0), "too many failed logins, please try again later"), reason })
    }

    /// A login failed. `account` is none where it did not get as far as a name.
    pub fn login_failed(&self, config: &Config, peer: impl Into<Option<IpAddr>>, account: Option<&str>, now: Millis) {
        let rate = config.limits.auth_failures;
        let mut state = self.lock();
        if let Some(peer) = peer.into().filter(|peer| !is_exempt(config, *peer)) {
            state.failures_by_client.entry(Client::of(peer), AUTH_CLIENTS_MAX, now).add(rate, now);
        }
        if let Some(account) = account.map(counted_name) {
            let max = if config.accounts.contains_key(account) { usize::MAX } else { AUTH_UNKNOWN_NAMES_MAX };
            state.by_name(config, account).entry(account.to_owned(), max, now).add(rate, now);
        }
    }

    fn has_place(&self, state: &State, config: &Config) -> Result<(), Refusal> {
        let most = config.limits.connections;
        if state.connections >= most {
            return Err(busy(TOO_MANY, format!("limits.connections = {most} is reached")));
        }
        match self.connections_max {
            Some(most) if state.connections >= most => {
                let reason = format!("the limit of open files (LimitNOFILE) is good for {most} connections");
                Err(busy(TOO_MANY, reason))
            }
            _ => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is complete in itself, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take_arrival(&mut self, client: Client, rate: Rate, now: Millis) -> bool {
        self.arrivals.entry(client, RATE_CLIENTS_MAX, now).take(rate, now)
    }

    fn by_name(&mut self, config: &Config, account: &str) -> &mut Table<String, Window> {
        if config.accounts.contains_key(account) {
            &mut self.failures_by_account
        } else {
            &mut self.failures_by_unknown_name
        }
    }
}

const TOO_MANY: &str = "too many connections, please try again later";

fn busy(text: &'static str, reason: String) -> Refusal {
    Refusal { reply: Reply::new(421, (7, 0), text), reason }
}

pub(crate) fn contains(networks: &[ipnet::IpNet], peer: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&peer))
}

/// Trusted networks often stand for many users behind one address: a mistake of one must not lock the
/// others out. Loopback is one of them only where `networks.trusted` says so.
pub(super) fn is_exempt(config: &Config, peer: IpAddr) -> bool {
    contains(&config.networks.trusted, peer.to_canonical())
}

fn counted_name(account: &str) -> &str {
    let mut end = account.len().min(NAME_BYTES_MAX);
    while !account.is_char_boundary(end) {
        end -= 1;
    }
    account.get(..end).unwrap_or_default()
}

fn rate_text(rate: Rate) -> String {
    format!("{}/{}s", rate.count, rate.per.as_secs())
}

/// An entry that can be dropped once it says nothing any more.
trait Fading {
    fn is_over(&self, now: Millis) -> bool;
}

/// So many events at once, then one each `per / count`: a token bucket, kept as the moment at which
/// it is full again.
#[derive(Debug, Default)]
struct Allowance {
    full_at_micros: u64,
}

impl Allowance {
    fn take(&mut self, rate: Rate, now: Millis) -> bool {
        let now = now.saturating_mul(1000);
        let per = u64::try_from(rate.per.as_micros()).unwrap_or(u64::MAX);
        let each = per / u64::from(rate.count.max(1));
        let latest = now.saturating_add(per);
        // Later than it can be: the clock was set back, or the window was made shorter. Start again.
        let full_at = if self.full_at_micros > latest { now } else { self.full_at_micros.max(now) };
        let taken = full_at.saturating_add(each);
        if taken > latest {
            return false;
        }
        self.full_at_micros = taken;
        true
    }
}

impl Fading for Allowance {
    fn is_over(&self, now: Millis) -> bool {
        self.full_at_micros <= now.saturating_mul(1000)
    }
}

/// Events since the first one of a window.
#[derive(Debug, Default)]
struct Window {
    ends: Millis,
    count: u32,
}

impl Window {
    fn add(&mut self, rate: Rate, now: Millis) {
        let per = u64::try_from(rate.per.as_millis()).unwrap_or(u64::MAX);
        // The second condition: the clock was set back.
        if self.is_over(now) || self.ends > now.saturating_add(per) {
            *self = Window { ends: now.saturating_add(per), count: 0 };
        }
        self.count = self.count.saturating_add(1);
    }

    fn is_full(&self, rate: Rate, now: Millis) -> bool {
        let per = u64::try_from(rate.per.as_millis()).unwrap_or(u64::MAX);
        self.count >= rate.count.max(1) && !self.is_over(now) && self.ends <= now.saturating_add(per)
    }
}

impl Fading for Window {
    fn is_over(&self, now: Millis) -> bool {
        self.ends <= now
    }
}

/// A map that drops what is over when it is full, and something at random if that is not enough.
#[derive(Debug)]
struct Table<K, V> {
    entries: HashMap<K, V>,
    /// No sweep before this: a full table would be walked for every newcomer.
    next_sweep: Millis,
}

/// Milliseconds between two sweeps of a table.
const SWEEP_MILLIS: Millis = 1000;

impl<K, V> Default for Table<K, V> {
    fn default() -> Table<K, V> {
        Table { entries: HashMap::new(), next_sweep: 0 }
    }
}

impl<K: Eq + Hash + Clone, V: Default + Fading> Table<K, V> {
    fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.entries.get(key)
    }

    fn entry(&mut self, key: K, max: usize, now: Millis) -> &mut V {
        if self.entries.len() >= max && !self.entries.contains_key(&key) {
            self.make_room(max, now);
        }
        self.entries.entry(key).or_default()
    }

    fn make_room(&mut self, max: usize, now: Millis) {
        if now >= self.next_sweep || self.next_sweep > now.saturating_add(SWEEP_MILLIS) {
            self.next_sweep = now.saturating_add(SWEEP_MILLIS);
            self.entries.retain(|_, value| !value.is_over(now));
        }
        while self.entries.len() >= max {
            // The hasher's keys are random, so nobody can choose whose entry goes.
            let Some(victim) = self.entries.keys().next().cloned() else { return };
            self.entries.remove(&victim);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;
    use crate::config::{Credential, Secret};
    use crate::server::testing;

    fn config() -> Config {
        testing::config(Path::new("/nonexistent"))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn rate(count: u32, seconds: u64) -> Rate {
        Rate { count, per: Duration::from_secs(seconds) }
    }

    #[test]
    fn places_are_counted_and_given_back() {
        let mut config = config();
        config.limits.connections = 3;
        config.limits.connections_per_ip = 2;
        let limits = Limits::new();
        let enter = |text: &str| limits.connect(&config, Role::Submission, ip(text), 0);
        let first = enter("192.0.2.1").unwrap();
        let _second = enter("::ffff:192.0.2.1").unwrap();
        let refused = enter("192.0.2.1").unwrap_err();
        assert_eq!(refused.reply.code, 421);
        assert!(refused.reason.contains("connections_per_ip"), "{}", refused.reason);
        let _third = enter("192.0.2.2").unwrap();
        assert!(enter("192.0.2.3").unwrap_err().reason.contains("limits.connections"));
        drop(first);
        assert_eq!(limits.connections(), 2);
        let _again = enter("192.0.2.1").unwrap();
        drop((_second, _third, _again));
        assert_eq!(limits.connections(), 0);
        assert!(limits.lock().per_client.is_empty(), "a client without connections takes no memory");
    }

    #[test]
    fn an_ipv6_client_is_its_network() {
        let mut config = config();
        config.limits.connections_per_ip = 1;
        let limits = Limits::new();
        let _one = limits.connect(&config, Role::Mx, ip("2001:db8:0:1::1"), 0).unwrap();
        assert!(limits.connect(&config, Role::Mx, ip("2001:db8:0:1:ffff::2"), 0).is_err());
        assert!(limits.connect(&config, Role::Mx, ip("2001:db8:0:2::1"), 0).is_ok());
    }

    #[test]
    fn blocked_networks_get_554() {
        let mut config = config();
        config.networks.blocked = vec!["203.0.113.0/24".parse().unwrap()];
        let limits = Limits::new();
        assert_eq!(limits.connect(&config, Role::Mx, ip("::ffff:203.0.113.9"), 0).unwrap_err().reply.code, 554);
        assert!(limits.connect(&config, Role::Mx, ip("203.0.114.9"), 0).is_ok());
    }

    #[test]
    fn the_connection_rate_holds_on_mx_listeners() {
        let mut config = config();
        config.limits.connection_rate = rate(3, 60);
        let clock = Clock::manual(1_000_000);
        let limits = Limits::new();
        let enter = |role| limits.connect(&config, role, ip("192.0.2.1"), clock.now()).is_ok();
        assert_eq!([(); 4].map(|()| enter(Role::Mx)), [true, true, true, false]);
        assert!(enter(Role::Submission), "submission has no rate");
        clock.advance(19_999);
        assert!(!enter(Role::Mx));
        clock.advance(1);
        assert!(enter(Role::Mx), "a third of the minute brings one more");
        assert!(!enter(Role::Mx));
        clock.advance(60_000);
        assert_eq!([(); 4].map(|()| enter(Role::Mx)), [true, true, true, false]);
    }

    #[test]
    fn a_clock_set_back_locks_nobody_out_for_long() {
        let mut config = config();
        config.limits.connection_rate = rate(1, 60);
        config.limits.auth_failures = rate(1, 60);
        let limits = Limits::new();
        let late = 10_000_000_000;
        assert!(limits.connect(&config, Role::Mx, ip("192.0.2.1"), late).is_ok());
        limits.login_failed(&config, ip("192.0.2.1"), Some("shop"), late);
        assert!(limits.may_log_in(&config, ip("192.0.2.1"), "shop", 5_000).is_ok());
        assert!(limits.connect(&config, Role::Mx, ip("192.0.2.1"), 65_000).is_ok());
    }

    #[test]
    fn failed_logins_lock_the_address_for_the_window() {
        let mut config = config();
        config.limits.auth_failures = rate(3, 900);
        let limits = Limits::new();
        let clock = Clock::manual(5_000);
        let attacker = ip("192.0.2.1");
        for name in ["a", "b", "c"] {
            assert!(limits.may_log_in(&config, attacker, name, clock.now()).is_ok());
            limits.login_failed(&config, attacker, Some(name), clock.now());
            clock.advance(1000);
        }
        let refused = limits.may_log_in(&config, attacker, "d", clock.now()).unwrap_err();
        assert_eq!(refused.reply.to_string(), "421 4.7.0 too many failed logins, please try again later");
        assert!(limits.may_log_in(&config, ip("192.0.2.2"), "d", clock.now()).is_ok());
        clock.advance(896_999);
        assert!(limits.may_log_in(&config, attacker, "d", clock.now()).is_err());
        clock.advance(1);
        assert!(limits.may_log_in(&config, attacker, "d", clock.now()).is_ok());
    }

    #[test]
    fn loopback_is_locked_like_any_other_address_unless_it_is_trusted() {
        let mut config = config();
        config.limits.auth_failures = rate(3, 900);
        config.networks.trusted = vec!["127.0.0.2/32".parse().unwrap()];
        let limits = Limits::new();
        for address in ["127.0.0.1", "::1", "127.0.0.2"] {
            for name in ["a", "b", "c"] {
                assert!(limits.may_log_in(&config, ip(address), &format!("{name}{address}"), 0).is_ok(), "{address}");
                limits.login_failed(&config, ip(address), Some(&format!("{name}{address}")), 0);
            }
        }
        for address in ["127.0.0.1", "::ffff:127.0.0.1", "::1"] {
            assert_eq!(limits.may_log_in(&config, ip(address), "d", 1).unwrap_err().reply.code, 421, "{address}");
        }
        assert!(limits.may_log_in(&config, ip("127.0.0.2"), "d", 1).is_ok());
    }

    #[test]
    fn failed_logins_lock_the_account_from_everywhere() {
        let mut config = config();
        config.limits.auth_failures = rate(2, 900);
        config.networks.trusted = vec!["10.0.0.0/8".parse().unwrap()];
        config.accounts.insert("shop".into(), testing::account(Credential::Password(Secret("x".into()))));
        let limits = Limits::new();
        // Trusted addresses are not locked, however often they fail.
        for name in ["p", "q", "r", "s"] {
            limits.login_failed(&config, ip("10.1.2.3"), Some(name), 0);
        }
        assert!(limits.may_log_in(&config, ip("10.1.2.3"), "shop", 1).is_ok());
        for (address, name) in
            [("192.0.2.1", "shop"), ("192.0.2.2", "shop"), ("192.0.2.3", "none"), ("192.0.2.4", "none")]
        {
            limits.login_failed(&config, ip(address), Some(name), 1);
        }
        for name in ["shop", "none"] {
            let refused = limits.may_log_in(&config, ip("10.1.2.3"), name, 2).unwrap_err();
            assert!(refused.reason.contains(name), "an account and an invented name lock alike");
        }
    }

    #[test]
    fn tables_do_not_grow_past_their_maximum() {
        let mut config = config();
        config.limits.auth_failures = rate(1, 900);
        config.accounts.insert("shop".into(), testing::account(Credential::Password(Secret("x".into()))));
        let limits = Limits::new();
        limits.login_failed(&config, ip("192.0.2.1"), Some("shop"), 0);
        for number in 0..AUTH_CLIENTS_MAX as u32 + 10 {
            let client = IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + number));
            limits.login_failed(&config, client, Some(&format!("name{number}")), 0);
        }
        {
            let state = limits.lock();
            assert_eq!(state.failures_by_client.entries.len(), AUTH_CLIENTS_MAX);
            assert_eq!(state.failures_by_unknown_name.entries.len(), AUTH_UNKNOWN_NAMES_MAX);
        }
        assert!(limits.may_log_in(&config, ip("198.51.100.1"), "shop", 0).is_err(), "accounts are not forgotten");
        // What is over goes first, all at once.
        limits.login_failed(&config, ip("192.0.2.200"), Some("late"), 900_000);
        assert_eq!(limits.lock().failures_by_client.entries.len(), 1);
    }
}
