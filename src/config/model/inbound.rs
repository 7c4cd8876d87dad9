//! The domains that are ours, and who gets their mail.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::OnAutomatic;
use crate::message::{Address, Domain};

#[derive(Clone, Debug, PartialEq)]
pub struct OwnDomain {
    pub catchall: Vec<Destination>,
    /// Local part of the return path.
    pub bounce: String,
    /// Local parts that were the bounce or the catchall address once, in lower case: mail for them is taken still.
    pub previous_names: Vec<String>,
    /// What separates `sales` from `x` in `sales+x@`; none: no subaddresses.
    pub subaddress: Option<char>,
    /// Bytes; none: only `limits.max_size`.
    pub max_size: Option<u64>,
    pub dkim: Dkim,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Dkim {
    /// Selectors whose keys live under `data_dir/dkim/<domain>/`, unless `key_files` says where: the first
    /// RSA-2048, the second Ed25519, or what the name says, made at first start.
    pub selectors: Vec<String>,
    /// Where keys lie that are not made here. Their selectors sign, whether `selectors` names them or not.
    pub key_files: BTreeMap<String, PathBuf>,
}

/// One value of an alias or catchall.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// A name in `targets`.
    Target(String),
    /// Forwarded, or another alias of ours.
    Address(Address),
    Discard,
    Reject,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Aliases {
    /// By [`Address::lookup_key`].
    pub exact: BTreeMap<String, Vec<Destination>>,
    /// In file order; matched against the whole lookup key.
    pub patterns: Vec<PatternAlias>,
    /// Exceptions from [`Loops`], by the key of an exact alias or the text of a pattern.
    pub limits: BTreeMap<String, AliasLimits>,
}

/// What is not as in [`Loops`] for one alias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AliasLimits {
    pub limit: Option<u32>,
    pub period: Option<Duration>,
    pub automatic: Option<OnAutomatic>,
}

#[derive(Clone, Debug)]
pub struct PatternAlias {
    /// As written, with its slashes.
    pub text: String,
    pub regex: regex::Regex,
    pub destinations: Vec<Destination>,
}

impl PartialEq for PatternAlias {
    fn eq(&self, other: &PatternAlias) -> bool {
        self.text == other.text && self.destinations == other.destinations
    }
}

impl OwnDomain {
    /// `sales+x@example.com` → `sales@example.com`, if the domain has subaddresses.
    pub fn base_key(&self, address: &Address) -> Option<String> {
        let local = address.lookup_local();
        let (base, _) = local.split_once(self.subaddress?)?;
        (!base.is_empty()).then(|| format!("{base}@{}", address.domain()))
    }

    /// Is this address, at this domain, the one that bounces come back to? With a subaddress it is too.
    pub fn is_bounce(&self, address: &Address) -> bool {
        self.has_name(address, std::iter::once(&self.bounce))
    }

    /// The same, or one under a name from before.
    pub fn was_bounce(&self, address: &Address) -> bool {
        self.has_name(address, std::iter::once(&self.bounce).chain(&self.previous_names))
    }

    fn has_name<'n>(&self, address: &Address, names: impl Iterator<Item = &'n String>) -> bool {
        let keys = [Some(address.lookup_key()), self.base_key(address)];
        let own = names.filter_map(|name| Address::new(name, address.domain().clone()).ok());
        own.map(|own| own.lookup_key()).any(|own| keys.iter().flatten().any(|key| *key == own))
    }

    /// What stands between the bounce address and a token.
    pub fn token_separator(&self) -> char {
        self.subaddress.unwrap_or('+')
    }

    /// Was this address, at this domain, the one for bounces once? A name alone may have been the
    /// catchall's: where there is a catchall it goes there.
    pub fn is_previous_bounce(&self, address: &Address) -> bool {
        let is_previous = |key: &str| {
            let local = key.rsplit_once('@').map_or(key, |(local, _)| local);
            self.previous_names.iter().any(|name| name == local)
        };
        let with_token = self.base_key(address).is_some_and(|base| is_previous(&base));
        with_token || (self.catchall.is_empty() && is_previous(&address.lookup_key()))
    }

    /// `domain`: its own name.
    pub fn bounce_address(&self, domain: &Domain) -> Option<Address> {
        Address::new(&self.bounce, domain.clone()).ok()
    }
}

impl Aliases {
    /// What takes this lookup key: an exact alias, else the first pattern that fits it whole.
    pub fn named(&self, key: &str) -> Option<&[Destination]> {
        match self.exact.get(key) {
            Some(destinations) => Some(destinations),
            None => self.pattern(key).map(|pattern| pattern.destinations.as_slice()),
        }
    }

    /// The pattern that takes this lookup key, if no exact alias does.
    pub fn pattern(&self, key: &str) -> Option<&PatternAlias> {
        let whole = |regex: &regex::Regex| regex.find(key).is_some_and(|found| found.len() == key.len());
        let mut patterns = self.patterns.iter().filter(|_| !self.exact.contains_key(key));
        patterns.find(|pattern| whole(&pattern.regex))
    }

    /// What is not as in `[loops]` for the alias that takes this lookup key.
    pub fn limits_of(&self, key: &str) -> AliasLimits {
        if self.limits.is_empty() {
            return AliasLimits::default();
        }
        let name = self.pattern(key).map_or(key, |pattern| pattern.text.as_str());
        self.limits.get(name).copied().unwrap_or_default()
    }
}
