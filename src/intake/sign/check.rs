//! What can be said of the keys of a configuration before anything is made or kept: which of the files that it
//! names are no keys, and which keys are still to be made.
//!
//! Left out: keys that lie under `data_dir`, which are ours, and may be readable for the server's user only.

use std::path::PathBuf;

use super::life::{self, State};
use super::{KEYS_PER_DOMAIN_MAX, Pair, SignError, TOO_MANY, key_path, read};
use crate::config::{Config, OwnDomain, Source};
use crate::message::Domain;

/// Why the keys that `key_files` names would not do, each with where that is written.
pub fn key_files(config: &Config) -> Vec<SignError> {
    config.domains.iter().flat_map(|(domain, own)| of_domain(config, domain, own)).collect()
}

fn of_domain(config: &Config, domain: &Domain, own: &OwnDomain) -> Vec<SignError> {
    let dkim = &own.dkim;
    let lives = life::lives(&config.data_dir, domain).unwrap_or_default();
    let is_used = |selector: &&String| lives.state(selector) != State::Done;
    let others = dkim.selectors.iter().filter(|selector| !dkim.key_files.contains_key(*selector));
    let mut keys = others.filter(is_used).count();
    let mut wrong = Vec::new();
    for (selector, path) in dkim.key_files.iter().filter(|(selector, _)| is_used(selector)) {
        keys += 1;
        let checked = match keys > KEYS_PER_DOMAIN_MAX {
            true => Err(SignError::BadSelector { domain: domain.clone(), selector: selector.clone(), why: TOO_MANY }),
            false => read(path).and_then(|pem| Pair::with_record(path, &pem)),
        };
        wrong.extend(checked.err().map(|error| placed(config, domain, selector, error)));
    }
    wrong
}

/// The error with the place in the configuration, if its key is from there and was written.
pub(super) fn placed(config: &Config, domain: &Domain, selector: &str, error: SignError) -> SignError {
    let names = ["domains", domain.as_str(), "dkim", "key_files", selector];
    let key = Source::key(names);
    let is_named = config.domains.get(domain).is_some_and(|own| own.dkim.key_files.contains_key(selector));
    match config.source.place(&key) {
        (file, line) if is_named && line > 0 => SignError::Written { file, line, key, error: Box::new(error) },
        _ => error,
    }
}

/// Files of keys that the configuration wants and that are still to be made, which [`Signer::load`] does.
pub fn missing_keys(config: &Config) -> Vec<PathBuf> {
    let mut missing = Vec::new();
    for (domain, own) in &config.domains {
        let ours = own.dkim.selectors.iter().filter(|selector| !own.dkim.key_files.contains_key(*selector));
        let lives = life::lives(&config.data_dir, domain).unwrap_or_default();
        let wanted = ours.filter(|selector| lives.state(selector) != State::Done);
        let paths = wanted.map(|selector| key_path(&config.data_dir, domain, selector));
        missing.extend(paths.filter(|path| matches!(path.try_exists(), Ok(false))));
    }
    missing
}
