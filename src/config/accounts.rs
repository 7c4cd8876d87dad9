//! Reads the accounts.

use std::collections::BTreeMap;

use argon2::Params;
use argon2::password_hash::phc::PasswordHash;

use super::problem::ProblemKind;
use super::section::{Section, Wrong, read_address, read_address_or_domain};
use super::streams::{self, DAILY_LIMIT_MAX};
use super::{Account, Credential, ForcedFrom, Secret, Senders};
use crate::message::{Address, header, stream};

/// Longest login name, in characters.
const NAME_CHARS_MAX: usize = 64;
/// Recipients that one message may have where the account says nothing else, or the submission has no account.
pub const SUBMITTED_RECIPIENTS: usize = 1000;
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

fn account(section: &Section<'_>, names: &[String]) -> Option<Account> {
    let credential = credential(section);
    let form = "a list of addresses and domains such as [\"example.com\"]";
    let senders = section.list("senders", form, read_address_or_domain);
    let label = section.text("label", "");
    let active = section.boolean("active", true);
    let max_recipients = section.count("max_recipients", 1..=RECIPIENTS_MAX, SUBMITTED_RECIPIENTS);
    let senders = senders.map_or(Senders::OwnDomains, Senders::Only);
    let read_stream = |text: &str| streams::read_name(text, names);
    let stream = section.item("stream").and_then(|item| item.read("the name of a stream", read_stream));
    let stream = stream.unwrap_or_else(stream::default_name);
    let form = "a list of streams such as [\"transactional\", \"security\"]";
    let more_streams = section.list("streams", form, read_stream).unwrap_or_default();
    let force_from = section.item("force_from").and_then(|item| item.read("a mailbox", read_mailbox)).flatten();
    let daily_limit = section.item("daily_limit").and_then(|item| item.count(1..=DAILY_LIMIT_MAX));
    let rate_limit = section.item("rate_limit").and_then(|item| item.optional_rate());
    let max_attachments = section.item("max_attachments").and_then(|item| item.size(0));
    let notify = section.item("notify").and_then(|item| item.read("an address", read_optional_address)).flatten();
    let hold = section.boolean("hold", false);
    Some(Account {
        credential: credential?,
        label,
        active,
        senders,
        stream,
        streams: more_streams,
        force_from,
        daily_limit,
        rate_limit,
        max_recipients,
        max_attachments,
        notify,
        hold,
    })
}

/// Empty: as if it were not there.
fn read_optional_address(text: &str) -> Result<Option<Address>, Wrong> {
    if text.is_empty() { Ok(None) } else { read_address(text).map(Some) }
}

/// One mailbox, with or without a name; empty: as if it were not there.
fn read_mailbox(text: &str) -> Result<Option<ForcedFrom>, Wrong> {
    if text.is_empty() {
        return Ok(None);
    }
    let remedy = "Write one mailbox such as \"Shop <shop@example.com>\".";
    if !text.is_ascii() {
        let remedy =
            "Write the name as an encoded word (RFC 2047), such as \"=?utf-8?Q?B=C3=B6b?= <bob@example.com>\".";
        return Err(Wrong::value(format!("{text:?} is not plain ASCII"), remedy));
    }
    let mailboxes = header::mailboxes(text.as_bytes());
    let mailboxes = mailboxes.map_err(|error| Wrong::value(format!("{text:?} is not a mailbox: {error}"), remedy))?;
    match mailboxes.as_slice() {
        [only] => Ok(Some(ForcedFrom { text: text.to_owned(), address: only.address.clone() })),
        _ => Err(Wrong::value(format!("{text:?} is not one mailbox"), remedy)),
    }
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
