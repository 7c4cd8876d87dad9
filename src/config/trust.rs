//! Reads whom to believe: checks of inbound mail, loop limits, pickup folders.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::destinations::{self, Names};
use super::milters;
use super::nearest::nearest;
use super::problem::ProblemKind;
use super::section::{Item, Section, Wrong, read_address_or_domain, read_domain};
use super::tree::Value;
use super::value::{SECOND_UP, ZERO_UP};
use super::{
    Account, AddressOrDomain, AliasLimits, ArcMode, CheckMode, Checks, DmarcMode, LoopKey, Loops, OnAutomatic, OnLimit,
    Pickup, PickupDone, PickupFormat,
};
use crate::message::Domain;

const DNSBL_MAX: usize = 10;
const LOOP_LIMIT_MAX: i64 = 1_000_000;
const HOPS_MAX: i64 = 1000;
const LOOP_PERIOD: Duration = Duration::from_secs(60 * 60);
const ON_AUTOMATIC: [(&str, OnAutomatic); 4] = [
    ("accept", OnAutomatic::Accept),
    ("hold", OnAutomatic::Hold),
    ("discard", OnAutomatic::Discard),
    ("reject", OnAutomatic::Reject),
];
const SETTLE: Duration = Duration::from_secs(2);

const DNSBL_FORM: &str = "a list of names such as [\"zen.spamhaus.org\"]";
const SEALERS_FORM: &str = "a list of domains such as [\"gmail.com\"]";
const TRUSTED_FORM: &str = "a list of addresses, domains and account names such as [\"monitor@example.com\"]";

pub(super) fn checks(root: &Section<'_>) -> Checks {
    let section = root.section("checks");
    let modes = [("off", CheckMode::Off), ("annotate", CheckMode::Annotate), ("reject", CheckMode::Reject)];
    let dmarc = [("off", DmarcMode::Off), ("annotate", DmarcMode::Annotate), ("enforce", DmarcMode::Enforce)];
    let dmarc = section.choice("dmarc", &dmarc, DmarcMode::Enforce);
    let arc = section.choice("arc", &[("off", ArcMode::Off), ("annotate", ArcMode::Annotate)], ArcMode::Annotate);
    Checks {
        spf: section.choice("spf", &modes, CheckMode::Annotate),
        dkim: section.choice("dkim", &modes, CheckMode::Annotate),
        dmarc,
        arc,
        trusted_sealers: trusted_sealers(&section, arc, dmarc),
        seal_forwards: section.boolean("seal_forwards", true),
        rdns: section.choice("rdns", &modes, CheckMode::Annotate),
        dnsbl: dnsbl(&section),
        milters: milters::milters(&section),
    }
}

fn dnsbl(section: &Section<'_>) -> Vec<Domain> {
    let lists = section.list("dnsbl", DNSBL_FORM, read_list).unwrap_or_default();
    if let Some(item) = section.item("dnsbl").filter(|_| lists.len() > DNSBL_MAX) {
        let what = format!("names {} lists", lists.len());
        item.problem(
            ProblemKind::BadValue,
            what,
            format!("Name {DNSBL_MAX} at most: each is asked about each message."),
        );
    }
    lists
}

fn read_list(text: &str) -> Result<Domain, Wrong> {
    let name = Domain::parse(text).ok().filter(|name| name.literal().is_none() && name.as_str().contains('.'));
    let remedy = "Write the name that the list is asked under, such as \"zen.spamhaus.org\".";
    name.ok_or_else(|| Wrong::value(format!("{text:?} is not the name of a DNS list"), remedy))
}

/// Their word counts only where ARC is looked at, and against DMARC.
fn trusted_sealers(section: &Section<'_>, arc: ArcMode, dmarc: DmarcMode) -> Vec<Domain> {
    let sealers = section.list("trusted_sealers", SEALERS_FORM, read_domain).unwrap_or_default();
    let Some(item) = section.item("trusted_sealers").filter(|_| !sealers.is_empty()) else { return sealers };
    if arc == ArcMode::Off {
        item.problem(
            ProblemKind::BadValue,
            "trusts sealers, but checks.arc is \"off\", so nobody looks at seals",
            "Set checks.arc = \"annotate\", or take the list away.",
        );
    } else if dmarc != DmarcMode::Enforce {
        section.report.warn(
            "checks.trusted_sealers: changes nothing, because checks.dmarc is not \"enforce\" and so refuses nothing",
        );
    }
    sealers
}

pub(super) fn loops(root: &Section<'_>, names: &Names) -> Loops {
    let section = root.section("loops");
    let keys = [("sender+alias", LoopKey::SenderAndAlias), ("alias", LoopKey::Alias)];
    let on_limit = [
        ("reject", OnLimit::Reject),
        ("hold", OnLimit::Hold),
        ("discard", OnLimit::Discard),
        ("defer", OnLimit::Defer),
    ];
    let trusted = section.list("trusted", TRUSTED_FORM, |text| read_trusted(text, names)).unwrap_or_default();
    let (trusted, trusted_accounts) = split(trusted);
    Loops {
        period: section.duration("period", SECOND_UP, LOOP_PERIOD),
        limit: section.count("limit", 0..=LOOP_LIMIT_MAX, 5),
        replies: section.count("replies", 1..=LOOP_LIMIT_MAX, 90),
        key: section.choice("key", &keys, LoopKey::SenderAndAlias),
        on_limit: section.choice("on_limit", &on_limit, OnLimit::Reject),
        max_hops: section.count("max_hops", 1..=HOPS_MAX, 50),
        trusted,
        trusted_accounts,
        automatic: section.choice("automatic", &ON_AUTOMATIC, OnAutomatic::Accept),
    }
}

/// `[aliases.limits]`: exceptions for aliases that there are.
pub(super) fn alias_limits(root: &Section<'_>) -> BTreeMap<String, AliasLimits> {
    let aliases = root.section("aliases");
    let written = aliases.items().into_iter().filter(|(_, item)| !matches!(item.node.value, Value::Table(_)));
    let known: BTreeMap<String, &str> = written.map(|(text, _)| (destinations::alias_key(text), text)).collect();
    let mut limits = BTreeMap::new();
    for (text, section) in aliases.section("limits").named() {
        let key = destinations::alias_key(text);
        if !known.contains_key(&key) {
            let remedy = match nearest(text, known.values().copied()) {
                Some(near) => format!("Did you mean \"{near}\"?"),
                None => "Write it as in [aliases]; a pattern with its slashes.".to_owned(),
            };
            let what = format!("there is no alias {text:?}");
            section.report.problem(ProblemKind::Reference, &section.place, &section.path, what, remedy);
        }
        let exception = AliasLimits {
            limit: section.item("limit").and_then(|item| item.count(0..=LOOP_LIMIT_MAX)),
            period: section.item("period").and_then(|item| item.duration(SECOND_UP)),
            automatic: section.item("automatic").and_then(|item| item.choice(&ON_AUTOMATIC, &[])),
        };
        if limits.insert(key, exception).is_some() {
            let remedy = "Join the two; case makes no difference.";
            let what = "this alias has limits already";
            section.report.problem(ProblemKind::Duplicate, &section.place, &section.path, what, remedy);
        }
    }
    limits
}

enum Trusted {
    Sender(AddressOrDomain),
    Account(String),
}

fn split(trusted: Vec<Trusted>) -> (Vec<AddressOrDomain>, Vec<String>) {
    let (mut senders, mut accounts) = (Vec::new(), Vec::new());
    for entry in trusted {
        match entry {
            Trusted::Sender(sender) => senders.push(sender),
            Trusted::Account(name) => accounts.push(name),
        }
    }
    (senders, accounts)
}

/// An account's name comes first; a word without @ and dot can be nothing else.
fn read_trusted(text: &str, names: &Names) -> Result<Trusted, Wrong> {
    if names.accounts.contains(text) {
        return Ok(Trusted::Account(text.to_owned()));
    }
    if !text.contains(['@', '.']) {
        return Err(no_account(text, names));
    }
    read_address_or_domain(text).map(Trusted::Sender)
}

fn no_account(text: &str, names: &Names) -> Wrong {
    let remedy = match nearest(text, names.accounts.iter().map(String::as_str)) {
        Some(near) => format!("Did you mean \"{near}\"?"),
        None => format!("Add [accounts.{text}], or name another account."),
    };
    Wrong::reference(format!("there is no account named {text:?}"), remedy)
}

/// Files a minute that `max_per_minute` may allow.
const FILES_PER_MINUTE_MAX: i64 = 1_000_000;

const FORMATS: [(&str, PickupFormat); 4] = [
    ("auto", PickupFormat::Auto),
    ("exchange", PickupFormat::Exchange),
    ("iis", PickupFormat::Iis),
    ("replay", PickupFormat::Replay),
];

const DONE: [(&str, PickupDone); 2] = [("delete", PickupDone::Delete), ("archive", PickupDone::Archive)];

pub(super) fn pickup(
    root: &Section<'_>,
    accounts: &BTreeMap<String, Account>,
    names: &Names,
) -> BTreeMap<String, Pickup> {
    let mut folders = BTreeMap::new();
    let mut paths = BTreeSet::new();
    for (name, section) in root.section("pickup").named() {
        if !section.exists() {
            continue;
        }
        let settle = section.duration("settle", ZERO_UP, SETTLE);
        let format = section.choice("format", &FORMATS, PickupFormat::Auto);
        let done = section.choice("done", &DONE, PickupDone::Delete);
        let max_per_minute = section.count("max_per_minute", 0..=FILES_PER_MINUTE_MAX, 0);
        let path = section.required("path", "Add the folder, such as path = \"/var/spool/postrider/pickup\".");
        let path = path.and_then(|item| item.absolute_path().map(|path| (item, path)));
        let account = section.required("account", "Name the account whose rights apply.");
        let account = account.and_then(|item| pickup_account(&item, accounts, names));
        let (Some((item, path)), Some(account)) = (path, account) else { continue };
        if !paths.insert(path.clone()) {
            item.problem(ProblemKind::Duplicate, "another pickup uses this folder", "Give each a folder of its own.");
        }
        folders.insert(name.to_owned(), Pickup { path, account, settle, format, done, max_per_minute });
    }
    folders
}

fn pickup_account(item: &Item<'_>, accounts: &BTreeMap<String, Account>, names: &Names) -> Option<String> {
    let name = item.string("a string")?;
    if !names.accounts.contains(name) {
        item.wrong(no_account(name, names));
    } else if accounts.get(name).is_some_and(|account| !account.active) {
        let remedy = "Name an active account, or set active = true there.";
        item.problem(ProblemKind::BadValue, format!("the account {name:?} is not active"), remedy);
    }
    Some(name.to_owned())
}
