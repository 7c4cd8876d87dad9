//! The life of a DKIM key: made, published, signing, replaced, taken away.
//!
//! | state   | signs | its record              | next                                                         |
//! |---------|-------|-------------------------|--------------------------------------------------------------|
//! | waiting | no    | is to be published      | signing, once the record is seen in DNS                      |
//! | signing | yes   | has to be there         | retired, once the key that takes its place signs             |
//! | retired | no    | has to be there         | done, once nothing is queued that it may have signed         |
//! | done    | no    | may be taken away       | -                                                            |
//!
//! A selector of the configuration of which nothing is noted signs. States are kept beside the keys in one
//! file for each domain, written whole or not at all, under a lock that the command line and the server share;
//! so a restart, or a crash anywhere, loses none. Looking into DNS and the queue is up to the caller.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    KEYS_PER_DOMAIN_MAX, Kind, Pair, SignError, folder_of, generate, key_path, make_folders, own, read, read_file,
    write_new,
};
use crate::clock::Millis;
use crate::config::{Config, OwnDomain, is_selector};
use crate::message::Domain;

/// A server that has noted a change of keys may sign with the old one for so long, at most, in milliseconds.
const SWITCH_MS_MAX: Millis = 10 * 60 * 1000;
/// Numbers that are tried for the name of a new key.
const NAMES_MAX: u32 = 10_000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum State {
    /// Then in the place of this key, if it has one.
    Waiting {
        replaces: Option<String>,
    },
    Signing,
    Retired {
        since: Millis,
    },
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    selector: String,
    #[serde(flatten)]
    state: State,
}

/// What is noted of the keys of one domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lives {
    keys: Vec<Entry>,
}

impl Lives {
    pub fn selectors(&self) -> impl Iterator<Item = &String> {
        self.keys.iter().map(|entry| &entry.selector)
    }

    pub fn state(&self, selector: &str) -> State {
        self.keys.iter().find(|entry| entry.selector == selector).map_or(State::Signing, |entry| entry.state.clone())
    }

    pub fn is_changing(&self) -> bool {
        self.keys.iter().any(|entry| matches!(entry.state, State::Waiting { .. } | State::Retired { .. }))
    }

    fn set(&mut self, selector: &str, state: State) {
        match self.keys.iter_mut().find(|entry| entry.selector == selector) {
            Some(entry) => entry.state = state,
            None => self.keys.push(Entry { selector: selector.to_owned(), state }),
        }
    }

    /// The next steps, for what is known now: `is_visible` of a waiting key's record, and when the oldest
    /// message came in that is queued (none: nothing is). Gives the selectors that have changed.
    pub fn advance(
        &mut self,
        is_visible: impl Fn(&str) -> bool,
        oldest_queued: Option<Millis>,
        now: Millis,
    ) -> Vec<(String, State)> {
        let mut changed = Vec::new();
        for Entry { selector, state } in self.clone().keys {
            match state {
                State::Waiting { replaces } if is_visible(&selector) => {
                    changed.push((selector, State::Signing));
                    changed.extend(replaces.map(|old| (old, State::Retired { since: now })));
                }
                State::Retired { since } => {
                    let is_needed = oldest_queued.is_some_and(|oldest| oldest <= since.saturating_add(SWITCH_MS_MAX));
                    // Before that it may still be signing somewhere.
                    if !is_needed && now > since.saturating_add(SWITCH_MS_MAX) {
                        changed.push((selector, State::Done));
                    }
                }
                State::Waiting { .. } | State::Signing | State::Done => {}
            }
        }
        for (selector, state) in &changed {
            self.set(selector, state.clone());
        }
        changed
    }
}

/// Is it the record, among the texts that DNS gives under its name? Only the key itself counts: others may
/// have written the record with tags of their own.
pub fn is_among(record: &str, texts: &[String]) -> bool {
    let key = |text: &str| {
        let tag = text.split(';').find_map(|tag| tag.trim().strip_prefix("p="));
        tag.map(|key| key.split_whitespace().collect::<String>()).filter(|key| !key.is_empty())
    };
    let wanted = key(record);
    wanted.is_some() && texts.iter().any(|text| key(text) == wanted)
}

/// Makes one key more for a domain, which waits for its record. Gives its selector. The name says what it
/// is: Ed25519 if it ends in `ed` or `ed25519`, else RSA.
pub fn new_key(config: &Config, domain: &Domain, selector: Option<&str>) -> Result<String, SignError> {
    let own = own_domain(config, domain)?;
    let refused = |why: String| SignError::NoNewKey { domain: domain.clone(), why };
    change(&config.data_dir, domain, |lives| {
        let taken = taken(own, lives);
        let selector = match selector {
            Some(text) if !is_selector(text) => {
                let rule = "use lower-case letters, digits and hyphens, such as \"pr-rsa-2\"";
                return Err(refused(format!("{text:?} is not a selector; {rule}")));
            }
            Some(text) if taken.contains(text) => {
                return Err(refused(format!("there is a selector {text:?} already; choose another")));
            }
            Some(text) => text.to_owned(),
            None => free_name("pr-rsa", &taken).ok_or_else(|| refused("no name is free".to_owned()))?,
        };
        room(own, lives, 1).map_err(refused)?;
        let kind = if selector.ends_with("ed") || selector.ends_with("ed25519") { Kind::Ed25519 } else { Kind::Rsa };
        make(&config.data_dir, domain, &selector, kind)?;
        lives.set(&selector, State::Waiting { replaces: None });
        Ok(selector)
    })
}

/// Makes a successor for each key that signs and is of our making. Gives the selectors, old and new.
pub fn rotate(config: &Config, domain: &Domain) -> Result<Vec<(String, String)>, SignError> {
    let own = own_domain(config, domain)?;
    let refused = |why: String| SignError::NoNewKey { domain: domain.clone(), why };
    change(&config.data_dir, domain, |lives| {
        let all = taken(own, lives);
        let is_ours = |selector: &String| !own.dkim.key_files.contains_key(selector);
        let old: Vec<String> =
            all.into_iter().filter(|selector| is_ours(selector) && lives.state(selector) == State::Signing).collect();
        if old.is_empty() {
            return Err(refused(
                "no key of ours signs, so there is none to replace; `postrider dkim new` makes one".into(),
            ));
        }
        let waits = |selector: &String| match lives.state(selector) {
            State::Waiting { replaces: Some(old) } => Some((old, selector.clone())),
            _ => None,
        };
        if let Some((old, new)) = lives.selectors().find_map(waits) {
            let why = format!("{new} waits already to take the place of {old}; publish its record first");
            return Err(refused(why));
        }
        room(own, lives, old.len()).map_err(refused)?;
        let mut pairs = Vec::new();
        for old in old {
            let path = key_path(&config.data_dir, domain, &old);
            let kind = match Pair::from_pem(&path, &read(&path)?)? {
                Pair::Rsa(_) => Kind::Rsa,
                Pair::Ed25519(_) => Kind::Ed25519,
            };
            let new = free_name(&old, &taken(own, lives)).ok_or_else(|| refused("no name is free".to_owned()))?;
            make(&config.data_dir, domain, &new, kind)?;
            lives.set(&new, State::Waiting { replaces: Some(old.clone()) });
            pairs.push((old, new));
        }
        Ok(pairs)
    })
}

fn own_domain<'a>(config: &'a Config, domain: &Domain) -> Result<&'a OwnDomain, SignError> {
    config.domains.get(domain).ok_or_else(|| SignError::NotOurs(domain.clone()))
}

/// All selectors of a domain, those that are done with too: their records may still be in caches.
fn taken(own: &OwnDomain, lives: &Lives) -> BTreeSet<String> {
    let configured = own.dkim.selectors.iter().chain(own.dkim.key_files.keys());
    configured.chain(lives.selectors()).cloned().collect()
}

fn room(own: &OwnDomain, lives: &Lives, more: usize) -> Result<(), String> {
    let held = taken(own, lives).iter().filter(|selector| lives.state(selector) != State::Done).count();
    if held + more <= KEYS_PER_DOMAIN_MAX {
        return Ok(());
    }
    Err(format!("a domain can have {KEYS_PER_DOMAIN_MAX} keys at most, and has {held}"))
}

/// `pr-rsa` → `pr-rsa-2` → `pr-rsa-3`.
fn free_name(old: &str, taken: &BTreeSet<String>) -> Option<String> {
    let (stem, number) = match old.rsplit_once('-') {
        Some((stem, digits)) if !stem.is_empty() => digits.parse::<u32>().map_or((old, 1), |number| (stem, number)),
        _ => (old, 1),
    };
    let mut names = (1..=NAMES_MAX).map(|more| format!("{stem}-{}", number.saturating_add(more)));
    names.find(|name| !taken.contains(name)).filter(|name| is_selector(name))
}

/// A key that is there was made by a change that was broken off, and nobody has seen its record: it is used.
fn make(data_dir: &Path, domain: &Domain, selector: &str, kind: Kind) -> Result<(), SignError> {
    let path = key_path(data_dir, domain, selector);
    if read_file(&path).is_ok_and(|pem| Pair::from_pem(&path, &pem).is_ok()) {
        return Ok(());
    }
    let failed = |error| SignError::Write { path: path.clone(), error };
    let pem = generate(kind).ok_or_else(|| failed(io::Error::other("no key could be generated")))?;
    write_new(data_dir, &path, pem.as_bytes()).map_err(failed)
}

fn states_path(data_dir: &Path, domain: &Domain) -> PathBuf {
    folder_of(data_dir, domain).join("states.json")
}

/// What is noted of a domain; nothing if there is no file.
fn read_states(path: &Path) -> Result<Lives, SignError> {
    match read_file(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map_err(|error| SignError::BadStates { path: path.to_owned(), why: error.to_string() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Lives::default()),
        Err(error) => Err(SignError::BadStates { path: path.to_owned(), why: error.to_string() }),
    }
}

pub(super) fn lives(data_dir: &Path, domain: &Domain) -> Result<Lives, SignError> {
    read_states(&states_path(data_dir, domain))
}

/// The selectors of the keys that sign for a domain: those of the configuration, then those that were made
/// besides. Only the states are read, and nothing is made; where they cannot be read, the configuration counts.
pub fn signing(config: &Config, domain: &Domain) -> Vec<String> {
    let Some(own) = config.domains.get(domain) else { return Vec::new() };
    let lives = lives(&config.data_dir, domain).unwrap_or_default();
    let mut selectors: Vec<String> = Vec::new();
    for selector in own.dkim.selectors.iter().chain(own.dkim.key_files.keys()).chain(lives.selectors()) {
        if !selectors.contains(selector) && lives.state(selector) == State::Signing {
            selectors.push(selector.clone());
        }
    }
    selectors
}

/// Reads, changes and writes what is noted of a domain; nobody else does so meanwhile. Blocks.
pub fn change<T>(
    data_dir: &Path,
    domain: &Domain,
    change: impl FnOnce(&mut Lives) -> Result<T, SignError>,
) -> Result<T, SignError> {
    let path = states_path(data_dir, domain);
    let failed = |error| SignError::Write { path: path.clone(), error };
    let folder = folder_of(data_dir, domain);
    make_folders(data_dir, &folder).map_err(failed)?;
    let lock_path = folder.join(".lock");
    let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
    let lock = lock.map_err(failed)?;
    own(data_dir, &lock_path).map_err(failed)?;
    // Given back when the file is closed, also by a crash.
    lock.lock().map_err(failed)?;
    let before = read_states(&path)?;
    let mut lives = before.clone();
    let done = change(&mut lives)?;
    if lives != before {
        write(data_dir, &path, &lives).map_err(failed)?;
    }
    Ok(done)
}

/// The old file or the new one is there after a crash.
fn write(data_dir: &Path, path: &Path, lives: &Lives) -> io::Result<()> {
    let folder = path.parent().unwrap_or(data_dir);
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(lives)?)?;
    file.sync_all()?;
    own(data_dir, &temporary)?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HOUR: Millis = 3_600_000;

    fn lives(keys: &[(&str, State)]) -> Lives {
        let entry =
            |(selector, state): &(&str, State)| Entry { selector: (*selector).to_owned(), state: state.clone() };
        Lives { keys: keys.iter().map(entry).collect() }
    }

    #[test]
    fn a_key_goes_its_way_as_dns_and_queue_allow() {
        let mut keys = lives(&[("pr-rsa-2", State::Waiting { replaces: Some("pr-rsa".into()) })]);
        assert!(keys.advance(|_| false, Some(0), HOUR).is_empty());
        assert_eq!((keys.state("pr-rsa"), keys.state("pr-rsa-2") == State::Signing), (State::Signing, false));
        let changed = keys.advance(|selector| selector == "pr-rsa-2", Some(0), HOUR);
        assert_eq!(changed.len(), 2);
        assert_eq!(keys.state("pr-rsa-2"), State::Signing);
        assert_eq!(keys.state("pr-rsa"), State::Retired { since: HOUR });
        // Something is queued that came in before, or while the change was made.
        for oldest in [0, HOUR, HOUR + SWITCH_MS_MAX] {
            assert!(keys.advance(|_| true, Some(oldest), 9 * HOUR).is_empty());
        }
        // Nothing is, but it may be in a moment.
        assert!(keys.advance(|_| true, None, HOUR + 1000).is_empty());
        assert_eq!(keys.advance(|_| true, Some(2 * HOUR), 9 * HOUR), [("pr-rsa".to_owned(), State::Done)]);
        assert!(keys.advance(|_| true, None, 10 * HOUR).is_empty());
        let text = serde_json::to_vec(&keys).unwrap();
        assert_eq!(serde_json::from_slice::<Lives>(&text).unwrap(), keys);
    }

    #[test]
    fn names_count_on() {
        let taken: BTreeSet<String> = ["pr-rsa", "pr-rsa-3", "s"].map(str::to_owned).into();
        assert_eq!(free_name("pr-rsa", &taken).unwrap(), "pr-rsa-2");
        assert_eq!(free_name("pr-rsa-2", &taken).unwrap(), "pr-rsa-4");
        assert_eq!(free_name("s", &taken).unwrap(), "s-2");
        assert_eq!(free_name("2026", &taken).unwrap(), "2026-2");
    }

    #[test]
    fn a_record_is_known_by_its_key() {
        let texts = |text: &str| vec!["other".to_owned(), text.to_owned()];
        assert!(is_among("v=DKIM1; k=rsa; p=AbC=", &texts("v=DKIM1;t=s;p=Ab C=")));
        assert!(!is_among("v=DKIM1; k=rsa; p=AbC=", &texts("v=DKIM1; k=rsa; p=Abc=")));
        assert!(!is_among("v=DKIM1; k=rsa; p=AbC=", &texts("v=DKIM1; k=rsa; p=")));
    }
}
