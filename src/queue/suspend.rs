//! What is suspended: words, and how they are kept in the store.
//!
//! While something is suspended, mail for it is taken and queued, attempts under way end, and none
//! starts. Each suspension is a record of its own, written and synced before anybody is told, so it
//! outlives a restart and a crash; lifting one deletes the record. One that is being lifted for a smart
//! host is marked instead until all that was put aside for it is due again: a crash in between is
//! finished by the next start.
//!
//! Left out: what it keeps from starting (`queue::gate`).

use serde::{Deserialize, Serialize};

use crate::clock::Millis;
use crate::message::{HeldBy, Hold};
use crate::store::{Store, StoreError, Table};

/// Where in the meta table they are.
const META_PREFIX: &str = "suspend/";
/// In place of the time, while one is being lifted.
pub const LIFTING: Millis = 0;

/// Something that can be suspended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Suspension {
    /// All that leaves or is delivered, but for streams that are exempt.
    All,
    Stream(String),
    SmartHost(String),
    /// Bringing mail in from mailboxes elsewhere.
    Fetch,
    /// What goes to this target. It has asked for that itself, by 410 Gone.
    Target(String),
}

impl std::fmt::Display for Suspension {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Suspension::All => f.write_str("all sending"),
            Suspension::Stream(name) => write!(f, "the stream {name}"),
            Suspension::SmartHost(name) => write!(f, "the smart host {name}"),
            Suspension::Fetch => f.write_str("fetching"),
            Suspension::Target(name) => write!(f, "the target {name}"),
        }
    }
}

impl Suspension {
    /// In the meta table.
    pub fn key(&self) -> Vec<u8> {
        let text = match self {
            Suspension::All => format!("{META_PREFIX}all"),
            Suspension::Stream(name) => format!("{META_PREFIX}stream/{name}"),
            Suspension::SmartHost(name) => format!("{META_PREFIX}smart_host/{name}"),
            Suspension::Fetch => format!("{META_PREFIX}fetch"),
            Suspension::Target(name) => format!("{META_PREFIX}target/{name}"),
        };
        text.into_bytes()
    }

    fn from_key(key: &[u8]) -> Option<Suspension> {
        let text = std::str::from_utf8(key).ok()?.strip_prefix(META_PREFIX)?;
        Some(match text.split_once('/') {
            None if text == "all" => Suspension::All,
            None if text == "fetch" => Suspension::Fetch,
            Some(("stream", name)) => Suspension::Stream(name.to_owned()),
            Some(("smart_host", name)) => Suspension::SmartHost(name.to_owned()),
            Some(("target", name)) => Suspension::Target(name.to_owned()),
            _ => return None,
        })
    }

    /// Why mail is held for it one by one, if it is. Such mail is released when the suspension is lifted.
    pub fn held_because(&self) -> Option<Hold> {
        match self {
            Suspension::SmartHost(name) => Some(Suspension::smart_host(name)),
            Suspension::Target(name) => Some(Suspension::target(name)),
            Suspension::All | Suspension::Stream(_) | Suspension::Fetch => None,
        }
    }

    /// Why mail is held that only this smart host may take.
    pub fn smart_host(name: &str) -> Hold {
        let reason = format!("the smart host {name} is suspended (`postrider resume --smart-host {name}`)");
        Hold::new(HeldBy::SmartHost(name.to_owned()), reason)
    }

    /// Why mail for this target is held.
    pub fn target(name: &str) -> Hold {
        let reason = format!(
            "the target {name} is paused, because it has answered 410 Gone: give targets.{name} another url, or \
             release one of its messages (`postrider queue release`), and all of them are tried again"
        );
        Hold::new(HeldBy::Target(name.to_owned()), reason)
    }

    /// The suspension for which mail is held, if it is for one.
    pub fn behind(by: &HeldBy) -> Option<Suspension> {
        match by {
            HeldBy::SmartHost(name) => Some(Suspension::SmartHost(name.clone())),
            HeldBy::Target(name) => Some(Suspension::Target(name.clone())),
            _ => None,
        }
    }
}

/// All that is suspended, each with since when, or [`LIFTING`].
pub fn load(store: &Store) -> Result<Vec<(Suspension, Millis)>, StoreError> {
    let mut found = Vec::new();
    for entry in store.prefix(Table::Meta, META_PREFIX.as_bytes())? {
        let (key, value) = entry?;
        let since = <[u8; 8]>::try_from(&*value).map(Millis::from_be_bytes);
        match (Suspension::from_key(&key), since) {
            (Some(what), Ok(since)) => found.push((what, since)),
            _ => return Err(StoreError::Damaged(format!("meta/{}", String::from_utf8_lossy(&key)))),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_reasons_can_be_read_back() {
        for what in
            [Suspension::All, Suspension::Stream("own".into()), Suspension::SmartHost("a/b".into()), Suspension::Fetch]
                .into_iter()
                .chain([Suspension::Target("crm".into())])
        {
            assert_eq!(Suspension::from_key(&what.key()).as_ref(), Some(&what));
            if let Some(hold) = what.held_because() {
                assert_eq!(Suspension::behind(&hold.by), Some(what));
            }
        }
        assert_eq!(Suspension::from_key(b"suspend/more"), None);
        assert_eq!(Suspension::behind(&HeldBy::Operator), None);
    }
}
