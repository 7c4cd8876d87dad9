//! Reads what a message may say it is from: From, Reply-To, and the envelope sender.
//!
//! What these settings need of the domains and of the smart hosts is checked here, so that mail never
//! meets a return path or a Reply-To that leads nowhere. Left out: what becomes of a message
//! (`routing::outbound`, `intake::rewrite`).

use std::collections::BTreeMap;

use super::destinations::Names;
use super::problem::ProblemKind;
use super::section::{Item, Section, read_address};
use super::smart_hosts::from_filter;
use super::tree::Value;
use super::{Destination, OwnDomain, ReplyTo, ReturnPath, Sender, SmartHost, Stream};
use crate::message::address::LOCAL_PART_BYTES_MAX;
use crate::message::{Address, Domain};

/// What stands before the @ in the address that answers go to; the catchall of the domain takes it.
pub(super) const CATCHALL_LOCAL: &str = "catchall";
/// Longest name in front of a token (`routing::return_path`), whose 37 characters and separator have to fit
/// into a local part with it.
const VERP_NAME_BYTES_MAX: usize = LOCAL_PART_BYTES_MAX - 38;

#[derive(Clone, Copy)]
enum Back {
    Client,
    Bounce,
    Verp,
}

#[derive(Clone, Copy)]
enum Answers {
    KeepOrAuthor,
    Keep,
    Catchall,
}

pub(super) fn sender(root: &Section<'_>, names: &Names, domains: &BTreeMap<Domain, OwnDomain>) -> Sender {
    let section = root.section("sender");
    let default_from = section.item("default_from").and_then(|item| default_from(&item));
    let filter = section.item("from_filter");
    let from_filter = filter.as_ref().map(from_filter).unwrap_or_default();
    if !from_filter.is_empty() && section.item("default_from").is_none() {
        section.missing("default_from", "Add the address for mail whose From the filter does not pass.");
    }
    let reply_to = reply_to(&section, default_from.as_ref(), domains);
    let default = default_from.as_ref().map(Address::domain).filter(|domain| domains.contains_key(*domain));
    let bounces_to = default.or(names.domains.first()).cloned();
    let return_path = return_path(&section, bounces_to.as_ref());
    Sender { default_from, from_filter, reply_to, return_path, bounces_to }
}

/// Empty: as if it were not there.
fn default_from(item: &Item<'_>) -> Option<Address> {
    let read = |text: &str| if text.is_empty() { Ok(None) } else { read_address(text).map(Some) };
    item.read("an address", read).flatten()
}

/// From is only ever replaced by `default_from`, so the domain of that is the one that needs a catchall.
fn reply_to(section: &Section<'_>, default: Option<&Address>, domains: &BTreeMap<Domain, OwnDomain>) -> ReplyTo {
    let choices = [("keep_or_author", Answers::KeepOrAuthor), ("catchall", Answers::Catchall), ("none", Answers::Keep)];
    let Some(item) = section.item("reply_to") else { return ReplyTo::KeepOrAuthor };
    match item.choice(&choices, &[]) {
        None | Some(Answers::KeepOrAuthor) => ReplyTo::KeepOrAuthor,
        Some(Answers::Keep) => ReplyTo::Keep,
        Some(Answers::Catchall) => catchall(section, &item, default, domains).unwrap_or(ReplyTo::Keep),
    }
}

/// None only if there were problems.
fn catchall(
    section: &Section<'_>,
    item: &Item<'_>,
    default: Option<&Address>,
    domains: &BTreeMap<Domain, OwnDomain>,
) -> Option<ReplyTo> {
    let Some(default) = default else {
        // One that is there and wrong has been told of.
        let is_empty = |item: Item<'_>| matches!(&item.node.value, Value::String(text) if text.is_empty());
        if section.item("default_from").is_none_or(is_empty) {
            let what = "it is about mail whose From is replaced, and there is no default_from to replace it by";
            let remedy = "Add default_from, at a domain of yours that has a catchall, or take reply_to out.";
            item.problem(ProblemKind::Reference, what, remedy);
        }
        return None;
    };
    let domain = default.domain();
    let Some(own) = domains.get(domain) else {
        let what = format!("answers would go to {CATCHALL_LOCAL}@{domain}, and {domain} is not in [domains]");
        let remedy = format!("Add [domains.\"{domain}\"] with a catchall, or use \"keep_or_author\".");
        item.problem(ProblemKind::Reference, what, remedy);
        return None;
    };
    if own.catchall.iter().all(|destination| *destination == Destination::Reject) {
        let what =
            format!("answers would go to {CATCHALL_LOCAL}@{domain}, and {domain} has no catchall that takes mail");
        let remedy = format!("Add catchall to [domains.\"{domain}\"], or use \"keep_or_author\".");
        item.problem(ProblemKind::Reference, what, remedy);
        return None;
    }
    Address::new(CATCHALL_LOCAL, domain.clone()).ok().map(ReplyTo::Catchall)
}

fn return_path(section: &Section<'_>, bounces_to: Option<&Domain>) -> ReturnPath {
    let choices = [("client", Back::Client), ("bounce", Back::Bounce), ("verp", Back::Verp)];
    let Some(item) = section.item("return_path") else { return ReturnPath::Client };
    match (item.choice(&choices, &[]), bounces_to.cloned()) {
        (None | Some(Back::Client), _) => ReturnPath::Client,
        (Some(Back::Bounce), Some(otherwise)) => ReturnPath::Bounce { otherwise },
        (Some(Back::Verp), Some(otherwise)) => ReturnPath::Verp { otherwise },
        (Some(_), None) => {
            let what = "bounces would come back to a domain of ours, and there is none";
            item.problem(ProblemKind::Reference, what, "Add [domains.\"example.com\"], or use \"client\".");
            ReturnPath::Client
        }
    }
}

/// Where a host takes the default From and not the bounce address, bounces go to the former.
pub(super) fn warn_of_bounces(
    root: &Section<'_>,
    sender: &Sender,
    hosts: &[SmartHost],
    domains: &BTreeMap<Domain, OwnDomain>,
) {
    let (ReturnPath::Bounce { otherwise } | ReturnPath::Verp { otherwise }, Some(from)) =
        (&sender.return_path, &sender.default_from)
    else {
        return;
    };
    let domain = if domains.contains_key(from.domain()) { from.domain() } else { otherwise };
    let Some(bounce) = domains.get(domain).and_then(|own| own.bounce_address(domain)) else { return };
    for host in hosts.iter().filter(|host| host.active && host.accepts(from) && !host.accepts(&bounce)) {
        root.report.warn(format!(
            "smart_hosts.{}: from_filter takes {from} and not {bounce}, so bounces of what goes by it come back to {from}; \
             add {bounce} to the filter if the server takes it as a sender",
            host.name
        ));
    }
}

/// A return path for each recipient needs a domain of ours, and room for the token.
pub(super) fn check_verp(
    root: &Section<'_>,
    sender: &Sender,
    streams: &BTreeMap<String, Stream>,
    domains: &BTreeMap<Domain, OwnDomain>,
) {
    for (name, section) in root.section("streams").named() {
        let uses = streams.get(name).is_some_and(|stream| stream.verp);
        if let (true, None, Some(item)) = (uses, &sender.bounces_to, section.item("verp")) {
            let what = "bounces would come back to a domain of ours, and there is none";
            item.problem(ProblemKind::Reference, what, "Add [domains.\"example.com\"], or leave this out.");
        }
    }
    let verp = matches!(sender.return_path, ReturnPath::Verp { .. }) || streams.values().any(|stream| stream.verp);
    for (name, section) in root.section("domains").named() {
        let own = Domain::parse(name).ok().and_then(|domain| domains.get(&domain));
        let too_long = own.is_some_and(|own| own.bounce.len() > VERP_NAME_BYTES_MAX);
        if let (true, true, Some(item)) = (verp, too_long, section.item("bounce")) {
            let what =
                format!("there is no room for a token after a name of more than {VERP_NAME_BYTES_MAX} characters");
            item.problem(ProblemKind::BadValue, what, "Use a shorter one, or no \"verp\".");
        }
    }
}
