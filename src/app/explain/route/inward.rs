//! The decisions of taking a message: who it is from, whether its recipient is ours and where that leads,
//! and the guards that would look at it.

use super::{At, Entrance, Question, Steps, Topic, Verdict};
use crate::app::explain::way;
use crate::config::{AliasLimits, CheckMode, DmarcMode, LoopKey, Loops, OnAutomatic, OnLimit, Role, Senders};
use crate::message::ReversePath;
use crate::routing::inbound::{Link, Resolution, links, resolve};

/// May it be said to be from there?
pub(super) fn sender(entrance: &Entrance<'_>, question: &Question, at: Option<At>, steps: &mut Steps<'_>) {
    let config = entrance.config;
    let from = way::text(&question.from);
    let Some(name) = &entrance.account else {
        let what = match entrance.role {
            Role::Mx => format!("<{from}> is taken as it is: whether it is true, the checks find out"),
            Role::Submission => format!("<{from}> is taken as it is"),
        };
        return steps.say(Topic::Sender, Verdict::Good, what, None);
    };
    let Some(account) = config.accounts.get(name) else { return };
    let key = format!("accounts.{name}.senders");
    let may = match &account.senders {
        Senders::OwnDomains => {
            let domains: Vec<&str> = config.domains.keys().map(|domain| domain.as_str()).collect();
            format!("any address at a domain of ours ({})", domains.join(", "))
        }
        Senders::Only(list) => list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let (verdict, what) = match (at, account.active) {
        (_, false) => {
            let what = format!("The account {name} is not active");
            return steps.say(Topic::Sender, Verdict::Refused, what, Some(&format!("accounts.{name}.active")));
        }
        (Some(At::Mail), true) => (Verdict::Refused, format!("The account may not send as <{from}>, only as {may}")),
        (_, true) if question.from == ReversePath::Null => {
            (Verdict::Good, "The null sender is for notices, and any account may use it".to_owned())
        }
        (_, true) => (Verdict::Good, format!("The account may send as <{from}>: {may}")),
    };
    steps.say(Topic::Sender, verdict, what, Some(&key));
    limits(name, entrance, steps);
}

fn limits(name: &str, entrance: &Entrance<'_>, steps: &mut Steps<'_>) {
    let Some(account) = entrance.config.accounts.get(name) else { return };
    if let Some(limit) = account.daily_limit {
        let what = format!("The account has {limit} recipients a day; then RCPT is refused until midnight UTC");
        steps.note(Topic::Limits, what, &format!("accounts.{name}.daily_limit"));
    }
    if let Some(rate) = account.rate_limit {
        let what = format!("The account has {} recipients in {} s", rate.count, rate.per.as_secs());
        steps.note(Topic::Limits, what, &format!("accounts.{name}.rate_limit"));
    }
}

/// Is it ours, and where does it lead?
pub(super) fn recipient(entrance: &Entrance<'_>, question: &Question, at: Option<At>, steps: &mut Steps<'_>) {
    let (config, to) = (entrance.config, &question.to);
    let chain = links(config, to);
    if at == Some(At::Rcpt) {
        let last = chain.last();
        let (what, key) = match resolve(config, to) {
            Resolution::NotOurs => (
                format!("{} is none of our domains, and this listener does not relay", to.domain()),
                "domains".to_owned(),
            ),
            Resolution::Rejected => (
                format!("<{to}> is ours, and its alias says reject"),
                last.and_then(|link| link.key.clone()).unwrap_or("aliases".to_owned()),
            ),
            _ => (
                format!("The domain of <{to}> is ours, but no alias, pattern or catchall takes the address"),
                last.and_then(|link| link.key.clone()).unwrap_or("aliases".to_owned()),
            ),
        };
        steps.say(Topic::Recipient, Verdict::Refused, what, Some(&key));
        return told(&chain, steps);
    }
    if chain.is_empty() {
        let what = format!("<{to}> is not ours: it leaves");
        return steps.good(Topic::Recipient, what, "domains");
    }
    steps.good(Topic::Recipient, format!("<{to}> is ours"), &format!("domains.\"{}\"", to.domain()));
    told(&chain, steps);
}

fn told(chain: &[Link], steps: &mut Steps<'_>) {
    for Link { address, by, key, to } in chain.iter().filter(|link| !link.by.is_empty()) {
        let what = format!("<{address}> is taken by {by} and leads to {}", to.join(", "));
        steps.say(Topic::Alias, Verdict::Good, what, key.as_deref());
    }
}

/// The checks, and the guard against loops.
pub(super) fn guards(entrance: &Entrance<'_>, question: &Question, steps: &mut Steps<'_>) {
    if entrance.role == Role::Mx {
        checks(entrance, steps);
    }
    let config = entrance.config;
    let Resolution::Deliveries(deliveries) = resolve(config, &question.to) else { return };
    let loops = &config.loops;
    let is_trusted = question.from.address().is_some_and(|from| loops.trusted.iter().any(|entry| entry.matches(from)))
        || entrance.account.as_ref().is_some_and(|account| loops.trusted_accounts.contains(account));
    let counted = deliveries.first().map_or("", |delivery| delivery.counted_as.as_str());
    let limits = deliveries.first().map(|delivery| delivery.limits).unwrap_or_default();
    if is_trusted {
        steps.note(Topic::Loops, "Limits do not count this sender", "loops.trusted");
    } else if !counted.is_empty() {
        loop_limit(loops, counted, limits, steps);
    }
    let automatic = match limits.automatic.unwrap_or(loops.automatic) {
        OnAutomatic::Accept => None,
        OnAutomatic::Hold => Some("held"),
        OnAutomatic::Discard => Some("swallowed"),
        OnAutomatic::Reject => Some("refused"),
    };
    if let Some(then) = automatic {
        let key = own_key(counted, limits.automatic.is_some()).unwrap_or("loops.automatic".to_owned());
        steps.note(Topic::Loops, format!("Mail that a machine wrote is {then}"), &key);
    }
    let hops = format!("More than {} Received fields are a loop: 554 5.4.6", loops.max_hops);
    steps.note(Topic::Loops, hops, "loops.max_hops");
}

/// `own`: what is not as in `[loops]` for this alias.
fn loop_limit(loops: &Loops, counted: &str, own: AliasLimits, steps: &mut Steps<'_>) {
    let who = match loops.key {
        LoopKey::SenderAndAlias => "from one sender ",
        LoopKey::Alias => "",
    };
    let then = match loops.on_limit {
        OnLimit::Reject => "refused",
        OnLimit::Hold => "held",
        OnLimit::Discard => "swallowed",
        OnLimit::Defer => "put off",
    };
    let minutes = own.period.unwrap_or(loops.period).as_secs() / 60;
    let what = match own.limit.unwrap_or(loops.limit) {
        0 => format!("{counted} takes answers only; what is over that is {then}"),
        limit => format!("At most {limit} messages {who}to {counted} in {minutes} min; what is over that is {then}"),
    };
    let is_own = own.limit.is_some() || own.period.is_some();
    steps.note(Topic::Loops, what, &own_key(counted, is_own).unwrap_or("loops.limit".to_owned()));
}

fn own_key(counted: &str, is_own: bool) -> Option<String> {
    is_own.then(|| format!("aliases.limits.\"{counted}\""))
}

fn checks(entrance: &Entrance<'_>, steps: &mut Steps<'_>) {
    let checks = &entrance.config.checks;
    let mode = |mode: CheckMode| match mode {
        CheckMode::Off => None,
        CheckMode::Annotate => Some("looked at and written into the header"),
        CheckMode::Reject => Some("a failure is refused"),
    };
    for (name, key, setting) in [
        ("SPF", "checks.spf", checks.spf),
        ("DKIM", "checks.dkim", checks.dkim),
        ("The name of the client's address (PTR)", "checks.rdns", checks.rdns),
    ] {
        if let Some(what) = mode(setting) {
            steps.note(Topic::Checks, format!("{name}: {what}"), key);
        }
    }
    match checks.dmarc {
        DmarcMode::Off => {}
        DmarcMode::Annotate => {
            steps.note(Topic::Checks, "DMARC: looked at and written into the header", "checks.dmarc")
        }
        DmarcMode::Enforce => {
            let what = "DMARC: a failure is refused or held, as the domain's policy says";
            steps.note(Topic::Checks, what, "checks.dmarc");
        }
    }
    if !checks.dnsbl.is_empty() {
        let lists: Vec<&str> = checks.dnsbl.iter().map(|list| list.as_str()).collect();
        steps.note(Topic::Checks, format!("The client's address is looked up in {}", lists.join(", ")), "checks.dnsbl");
    }
    for milter in &checks.milters {
        steps.note(Topic::Checks, format!("The milter {} is asked", milter.name), "checks.milters");
    }
}
