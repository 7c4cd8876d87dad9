//! The decisions of passing a message on: what is queued, by which stream, with which From, by which way, and
//! what signs it.

use std::collections::HashMap;

use super::{Question, Steps, Topic, Verdict};
use crate::app::explain::{held, way};
use crate::config::{Config, GroupLimits};
use crate::intake::rehearse::{Rehearsed, held as held_because};
use crate::intake::sign::life;
use crate::message::{Address, Domain, ReversePath};
use crate::queue::record::{Recipient, Route};
use crate::routing::outbound::{self, Choice, Way};
use crate::routing::{capture, inbound};

/// Tells of each delivery; gives the domains that mail goes to directly.
pub(super) fn deliveries(
    config: &Config,
    question: &Question,
    rehearsed: &Rehearsed,
    steps: &mut Steps<'_>,
) -> Vec<Domain> {
    for (address, reason) in &rehearsed.discarded {
        steps.say(Topic::Delivery, Verdict::Note, format!("<{address}> is swallowed: {reason}"), Some("aliases"));
    }
    for recipient in &rehearsed.deliveries {
        delivery(config, recipient, steps);
    }
    if !rehearsed.leaves {
        return Vec::new();
    }
    stream(config, &rehearsed.stream, steps);
    from(config, question, rehearsed, steps);
    let choice =
        outbound::choose(config, rehearsed.header_from.as_ref(), &question.from, config.pinned(&rehearsed.stream));
    way_out(config, question, rehearsed, &choice, steps);
    signature(config, rehearsed, steps);
    if !matches!(choice.way, Way::Direct { .. }) {
        return Vec::new();
    }
    let mut domains: Vec<Domain> = Vec::new();
    for recipient in rehearsed.deliveries.iter().filter(|recipient| recipient.route == Route::Remote) {
        let domain = recipient.address.domain();
        if !config.is_own(domain) && !domains.contains(domain) {
            domains.push(domain.clone());
            group(config, domain, steps);
        }
    }
    domains
}

fn delivery(config: &Config, recipient: &Recipient, steps: &mut Steps<'_>) {
    let address = &recipient.address;
    let (place, key) = match &recipient.route {
        _ if let Some(answer) = capture::answer(config, recipient) => {
            (way::captured(answer), Some("delivery.default".to_owned()))
        }
        Route::Remote => (format!("it leaves for <{address}>"), None),
        Route::Target(name) => (way::to_target(config, name), Some(format!("targets.{name}"))),
    };
    let places = inbound::only_places(config).unwrap_or_default();
    let is_there = |(at, route): &(Address, Route)| at == address && *route == recipient.route;
    if let (Some(meant), Some(only)) = (&recipient.alias, &config.delivery.redirect_all_to)
        && meant != only
        && places.iter().any(is_there)
    {
        let what = format!("Everything goes to <{only}>, also what is for <{meant}>");
        steps.good(Topic::Delivery, what, "delivery.redirect_all_to");
    }
    match held_because(recipient) {
        Some(hold) => {
            let (cause, key) = held::setting(hold);
            steps.say(Topic::Delivery, Verdict::Held, held::sentence(cause, hold), key.as_deref());
        }
        None => steps.say(Topic::Delivery, Verdict::Good, capitalized(&place), key.as_deref()),
    }
}

fn stream(config: &Config, name: &str, steps: &mut Steps<'_>) {
    steps.good(Topic::Stream, format!("It goes by the stream {name}"), &format!("streams.{name}"));
    let Some(stream) = config.streams.get(name) else { return };
    if let Some(limit) = stream.daily_limit {
        let what = format!("The stream has {limit} recipients a day; then it waits until midnight UTC");
        steps.note(Topic::Limits, what, &format!("streams.{name}.daily_limit"));
    }
    if let Some(block) = stream.block {
        let what = format!("After {} recipients the stream pauses for {} s", block.size, block.pause.as_secs());
        steps.note(Topic::Limits, what, &format!("streams.{name}.block_size"));
    }
    if let Some(most) = stream.concurrency {
        let what = format!("The stream has {most} attempts at once");
        steps.note(Topic::Limits, what, &format!("streams.{name}.concurrency"));
    }
}

fn from(config: &Config, question: &Question, rehearsed: &Rehearsed, steps: &mut Steps<'_>) {
    let shown = rehearsed.header_from.as_ref().map_or_else(String::new, ToString::to_string);
    if !rehearsed.is_rewritten {
        return steps.good(Topic::From, format!("From stays <{shown}>"), "sender.from_filter");
    }
    let pinned = config.pinned(&rehearsed.stream);
    let first = outbound::choose(config, question.from.address(), &question.from, pinned);
    let key = match first.rewrite {
        Some(_) => "sender.default_from".to_owned(),
        None => "accounts".to_owned(),
    };
    let what = format!("From <{}> gives way to <{shown}>: it may not pass by this way", way::text(&question.from));
    steps.good(Topic::From, what, &key);
}

fn way_out(config: &Config, question: &Question, rehearsed: &Rehearsed, choice: &Choice<'_>, steps: &mut Steps<'_>) {
    let asked = way::Asked {
        from: rehearsed.header_from.as_ref().or(question.from.address()),
        stream: &rehearsed.stream,
        envelope: &question.from,
    };
    let key = match &choice.way {
        Way::Hosts { tier, hosts } => {
            let first = hosts.first().map(|candidate| candidate.host.name.as_str());
            way::tier_key(*tier, &rehearsed.stream, first)
        }
        Way::Nowhere if config.pinned(&rehearsed.stream).is_some() => {
            format!("streams.{}.smart_host", rehearsed.stream)
        }
        _ => "delivery.default".to_owned(),
    };
    let lines = way::way(config, choice, &asked, None, &HashMap::new());
    let verdict = if choice.way == Way::Nowhere { Verdict::Held } else { Verdict::Good };
    for (number, line) in lines.into_iter().enumerate() {
        let key = if line.contains("(sender.return_path)") { Some("sender.return_path") } else { Some(key.as_str()) };
        steps.say(
            Topic::WayOut,
            verdict,
            capitalized(&line),
            key.filter(|key| number == 0 || key.starts_with("sender")),
        );
    }
    let size = question.size.unwrap_or(0);
    if let Way::Hosts { hosts, .. } = &choice.way {
        let small = |limit: Option<u64>| limit.is_some_and(|limit| size > limit);
        for host in hosts.iter().map(|candidate| candidate.host).filter(|host| small(host.max_size)) {
            let all = hosts.iter().all(|candidate| small(candidate.host.max_size));
            let verdict = if all { Verdict::Refused } else { Verdict::Note };
            let then = if all { ": it would be taken, and come back as undeliverable" } else { "" };
            let what = format!("{size} bytes are more than {} takes{then}", host.name);
            steps.say(Topic::Size, verdict, what, Some(&format!("smart_hosts.{}.max_size", host.name)));
        }
    }
    let envelope = match &choice.way {
        Way::Direct { envelope } | Way::File { envelope } => envelope.clone().unwrap_or(question.from.clone()),
        Way::Hosts { hosts, .. } => hosts.first().map_or(question.from.clone(), |first| first.envelope.clone()),
        Way::Capture | Way::Nowhere => return,
    };
    if envelope == question.from {
        let what = match &envelope {
            ReversePath::Null => "It leaves with the null sender".to_owned(),
            ReversePath::Address(address) => format!("It leaves with the envelope sender <{address}>"),
        };
        steps.good(Topic::WayOut, what, "sender.return_path");
    }
}

fn group(config: &Config, domain: &Domain, steps: &mut Steps<'_>) {
    let limits = config.destinations.of(domain, std::slice::from_ref(domain));
    let section = config.destinations.section(domain, std::slice::from_ref(domain), limits);
    let GroupLimits { connections, messages_per_connection, rate, .. } = limits;
    let rate = rate.map_or(String::new(), |rate| format!(", {} messages in {} s", rate.count, rate.per.as_secs()));
    let what = format!(
        "The servers of {domain} get {connections} connections at once, {messages_per_connection} messages on each{rate}"
    );
    steps.note(Topic::Limits, what, &section);
}

fn signature(config: &Config, rehearsed: &Rehearsed, steps: &mut Steps<'_>) {
    let Some(author) = &rehearsed.signed_by else {
        let what = "It is not signed: its From is at none of our domains, or it is not ours to sign";
        return steps.say(Topic::Signature, Verdict::Note, what, Some("domains"));
    };
    let domain = author.domain();
    let name = |selector: String| format!("{selector}._domainkey.{domain}");
    let names: Vec<String> = life::signing(config, domain).into_iter().map(name).collect();
    let key = format!("domains.\"{domain}\".dkim.selectors");
    match names.is_empty() {
        true => steps.say(
            Topic::Signature,
            Verdict::Note,
            format!("{domain} has no DKIM keys, so nothing signs it"),
            Some(&key),
        ),
        false => steps.good(Topic::Signature, format!("It is signed with {}", names.join(" and ")), &key),
    }
}

fn capitalized(text: &str) -> String {
    // Names of hosts stay as they are.
    let is_word = ["it ", "a ", "first ", "then "].iter().any(|word| text.starts_with(word));
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if is_word => first.to_uppercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}
