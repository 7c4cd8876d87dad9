//! The DNS tree walk (RFC 9989 4.10): from a name up to the top, looking for DMARC records.
//!
//! Eight queries at most for one name; what has been asked for one name of a message is not asked
//! again for another; all names together have a bound.

use std::collections::HashMap;

use super::record::{Psd, Record};
use crate::dns::{DnsError, Resolver};
use crate::message::Domain;

/// Labels from which a walk goes on after its first step (RFC 9989 4.10: eight queries in all).
const LABELS_MAX: usize = 7;
/// Look-ups for all names of one message.
const LOOK_UPS_MAX: usize = 64;

/// Why a walk came to no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// DNS trouble, which passes.
    Temporary,
    /// The bound on look-ups.
    TooFar,
}

pub struct Walker<'a> {
    resolver: &'a Resolver,
    known: HashMap<String, Option<Record>>,
    left: usize,
}

/// The records on the way up, from the longest name to the shortest.
#[derive(Clone, Debug)]
pub struct Walk {
    start: String,
    pub found: Vec<(String, Record)>,
}

impl<'a> Walker<'a> {
    pub fn new(resolver: &'a Resolver) -> Walker<'a> {
        Walker { resolver, known: HashMap::new(), left: LOOK_UPS_MAX }
    }

    /// The record of just this name. More than one are none (RFC 9989 4.10).
    pub async fn record(&mut self, name: &str) -> Result<Option<Record>, Lost> {
        if let Some(known) = self.known.get(name) {
            return Ok(known.clone());
        }
        self.left = self.left.checked_sub(1).ok_or(Lost::TooFar)?;
        let texts = match self.resolver.txt(&format!("_dmarc.{name}")).await {
            Ok(texts) => texts,
            // A name that is too long with its prefix has no record either.
            Err(DnsError::NoSuchDomain | DnsError::Unusable(_)) => Vec::new(),
            Err(_) => return Err(Lost::Temporary),
        };
        let mut records = texts.iter().filter_map(|text| Record::parse(text));
        let only = match (records.next(), records.next()) {
            (Some(only), None) => Some(only),
            _ => None,
        };
        self.known.insert(name.to_owned(), only.clone());
        Ok(only)
    }

    pub async fn walk(&mut self, start: &Domain) -> Result<Walk, Lost> {
        let mut walk = Walk { start: start.to_string(), found: Vec::new() };
        for name in names(start.as_str()) {
            let Some(record) = self.record(name).await? else { continue };
            let stop = record.psd != Psd::Unknown;
            walk.found.push((name.to_owned(), record));
            if stop {
                break;
            }
        }
        Ok(walk)
    }

    /// Where the organization of a name begins (RFC 9989 4.10.2).
    pub async fn organization(&mut self, name: &Domain) -> Result<String, Lost> {
        Ok(self.walk(name).await?.organization())
    }

    /// Does the name itself exist (RFC 8020)?
    pub async fn exists(&mut self, name: &Domain) -> Result<bool, Lost> {
        // SPF has most often asked for the same.
        match self.resolver.txt(name.as_str()).await {
            Ok(_) => Ok(true),
            Err(DnsError::NoSuchDomain) => Ok(false),
            Err(_) => Err(Lost::Temporary),
        }
    }
}

impl Walk {
    /// RFC 9989 4.10.2.
    pub fn organization(&self) -> String {
        for (name, record) in &self.found {
            match record.psd {
                Psd::No => return name.clone(),
                Psd::Yes if *name != self.start => return one_below(name, &self.start),
                _ => {}
            }
        }
        self.found.last().map_or_else(|| self.start.clone(), |(name, _)| name.clone())
    }

    /// The record that applies to the start, which has none itself: of its organization, else of the
    /// public suffix above it (RFC 9989 4.10.1).
    pub fn applying(&self) -> Option<&(String, Record)> {
        let organization = self.organization();
        let own = self.found.iter().find(|(name, _)| *name == organization);
        own.or_else(|| self.found.last().filter(|(_, record)| record.psd == Psd::Yes))
    }
}

/// The names asked for: the start, then at most seven labels of it, then one less each time.
fn names(start: &str) -> impl Iterator<Item = &str> {
    let dots: Vec<usize> = start.match_indices('.').map(|(at, _)| at + 1).collect();
    // From so many dots on the name has more than `LABELS_MAX` labels.
    let skipped = dots.len().saturating_sub(LABELS_MAX);
    let above = dots.into_iter().skip(skipped).filter_map(move |at| start.get(at..));
    std::iter::once(start).chain(above)
}

/// The name on the way from `suffix` down to `name` that has one label more than `suffix`.
fn one_below(suffix: &str, name: &str) -> String {
    let rest = name.strip_suffix(suffix).and_then(|rest| rest.strip_suffix('.')).unwrap_or_default();
    match rest.rsplit('.').next() {
        Some(label) if !label.is_empty() => format!("{label}.{suffix}"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_has_eight_steps_at_most() {
        let steps = |name: &str| names(name).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(steps("test"), ["test"]);
        assert_eq!(steps("a.b.test"), ["a.b.test", "b.test", "test"]);
        let seven = "1.2.3.4.5.6.test";
        assert_eq!(steps(seven).len(), 7);
        assert_eq!(
            steps(&format!("0.{seven}")),
            ["0.1.2.3.4.5.6.test", seven, "2.3.4.5.6.test", "3.4.5.6.test", "4.5.6.test", "5.6.test", "6.test", "test",]
        );
        let long = format!("{}{seven}", "x.".repeat(93));
        assert_eq!(steps(&long).len(), 8);
        assert_eq!(steps(&long)[1], seven);
    }

    #[test]
    fn the_name_below_a_suffix() {
        assert_eq!(one_below("test", "a.b.test"), "b.test");
        assert_eq!(one_below("b.test", "a.b.test"), "a.b.test");
        assert_eq!(one_below("other", "a.b.test"), "a.b.test");
    }
}
