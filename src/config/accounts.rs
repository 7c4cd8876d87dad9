//! Reads the accounts.

use std::collections::BTreeMap;

use argon2::Params;
use argon2::password_hash::phc::PasswordHash;

use super::problem::ProblemKind;
use super::section::{Section, Wrong, read_address_or_domain};
use super::{Account, Credential, Secret, Senders, streams};
use crate::message::stream;

/// Longest login name, in characters.
const NAME_CHARS_MAX: usize = 64;
/// Most recipients that `max_recipients` may allow in one message.
pub(super) const RECIPIENTS_MAX: i64 = 100_000;

/// What one check of a password may cost; more would let a log-in exhaust the machine.
const HASH_MEMORY_KIB_MAX: u32 = 1024 * 1024;
const HASH_PASSES_MAX: u32 = 100;
const HASH_LANES_MAX: u32 = 64;

const HASH_FORM: &str = "Make one with `postrider account hash`.";

pub(super) fn accounts(root: &Section<'_>) -> BTreeMap<String, Account> {
    let mut accounts = BTreeMap::new();
    let streams = streams::names(root);
    for (name, section) in root.section("accounts").named() {
        if !section.exists() {
            continue;
        }
        check_name(name, &section);
        if let Some(account) = account(&section, &streams) {
            accounts.insert(name.to_owned(), account);
        }
    }
    accounts
}

fn check_name(name: &str, section: &Section<'_>) {
    let legal = !name.is_empty()
        && name.chars().count() <= NAME_CHARS_MAX
        && !name.chars().any(|c| c.is_control() || c.is_whitespace());
    if !legal {
        let remedy = format!("Use up to {NAME_CHARS_MAX} characters without spaces or control characters.");
        section.report.problem(ProblemKind::BadValue, &section.place, &section.path, "not a login name", remedy);
    }
}

fn account(section: &Section<'_>, streams: &[String]) -> Option<Account> {
    let credential = credential(section);
    let form = "a list of addresses and domains such as [\"example.com\"]";
    let senders = section.list("senders", form, read_address_or_domain);
    let label = section.text("label", "");
    let active = section.boolean("active", true);
    let max_recipients = section.count("max_recipients", 1..=RECIPIENTS_MAX, 1000);
    let senders = senders.map_or(Senders::OwnDomains, Senders::Only);
    let read_stream = |text: &str| streams::read_name(text, streams);
    let stream = section.item("stream").and_then(|item| item.read("the name of a stream", read_stream));
    let stream = stream.unwrap_or_else(stream::default_name);
    Some(Account { credential: credential?, label, active, senders, stream, max_recipients })
}

fn credential(section: &Section<'_>) -> Option<Credential> {
    match (section.item("password_hash"), section.item("password")) {
        (Some(_), Some(password)) => {
            let remedy = "Keep password_hash and take password out, or the other way round.";
            password.problem(ProblemKind::Duplicate, "given beside password_hash", remedy);
            None
        }
        (None, None) => {
            section.missing("password_hash", HASH_FORM);
            None
        }
        (Some(hash), None) => {
            let secret = hash.secret()?;
            match check_hash(&secret) {
                Ok(()) => Some(Credential::Hash(secret)),
                Err(wrong) => {
                    hash.wrong(wrong);
                    None
                }
            }
        }
        (None, Some(password)) => password.secret().map(Credential::Password),
    }
}

/// Only what the server will be able to check, at a bounded cost.
fn check_hash(secret: &Secret) -> Result<(), Wrong> {
    let not_one = |_| Wrong::value("not an argon2id hash", HASH_FORM);
    let hash = PasswordHash::new(&secret.0).map_err(not_one)?;
    let complete = hash.algorithm.as_str() == "argon2id" && hash.salt.is_some() && hash.hash.is_some();
    if !complete || hash.version.is_some_and(|version| version != 0x13) {
        return Err(Wrong::value("not an argon2id hash of version 19 with salt and hash", HASH_FORM));
    }
    let params =
        Params::try_from(&hash).map_err(|_| Wrong::value("the parameters of the hash are wrong", HASH_FORM))?;
    let dear =
        params.m_cost() > HASH_MEMORY_KIB_MAX || params.t_cost() > HASH_PASSES_MAX || params.p_cost() > HASH_LANES_MAX;
    if dear {
        let what = format!(
            "the hash costs too much to check; at most m={HASH_MEMORY_KIB_MAX}, t={HASH_PASSES_MAX}, p={HASH_LANES_MAX}"
        );
        return Err(Wrong::value(what, HASH_FORM));
    }
    Ok(())
}
