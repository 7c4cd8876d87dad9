//! Which way out a delivery takes, in sentences. Chosen by the functions that choose it when it is due.

use std::collections::HashMap;

use crate::config::{Config, SmartHost, SmartHostKind, SmartHostTls, Target};
use crate::delivery::smtp::{HostProspect, Prospect};
use crate::message::{Address, ReversePath};
use crate::queue::record::{Message, Recipient, Route};
use crate::routing::capture::{self, Answer};
use crate::routing::outbound::{self, Choice, Tier, Way};

/// What the next try of a queued recipient does. `states`: smart hosts that are not to be used now.
pub(super) fn then(
    config: &Config,
    message: &Message,
    recipient: &Recipient,
    prospect: Option<&Prospect>,
    states: &HashMap<String, String>,
) -> Vec<String> {
    if let Some(answer) = capture::answer(config, recipient) {
        return vec![captured(answer)];
    }
    if let Route::Target(name) = &recipient.route {
        return vec![to_target(config, name)];
    }
    let address = &recipient.address;
    if config.is_own(address.domain()) {
        return vec![format!("<{address}> is looked up again in [aliases] and [domains]")];
    }
    if let Some(only) = config.delivery.redirect_all_to.as_ref().filter(|only| !same(only, address)) {
        return vec![format!("it goes to <{only}> instead (delivery.redirect_all_to)")];
    }
    if let Some(reason) = config.delivery.forbids(address) {
        return vec![format!("it is held again: {reason}")];
    }
    let choice = outbound::choose_for(config, message, recipient.released.is_some());
    let from = message.header_from.as_ref().or(message.mail_from.address());
    way(config, &choice, &Asked { from, stream: &message.stream, envelope: &message.mail_from }, prospect, states)
}

/// Whose way it is.
pub(super) struct Asked<'a> {
    pub from: Option<&'a Address>,
    pub stream: &'a str,
    pub envelope: &'a ReversePath,
}

/// The way of a choice.
pub(super) fn way(
    config: &Config,
    choice: &Choice<'_>,
    asked: &Asked<'_>,
    prospect: Option<&Prospect>,
    states: &HashMap<String, String>,
) -> Vec<String> {
    let mut lines = Vec::new();
    match &choice.way {
        Way::Capture => lines.push(captured(Answer::Kept)),
        Way::File { .. } => {
            lines.push("it is written as a file: nothing leaves (delivery.default = \"file\")".to_owned())
        }
        Way::Nowhere => lines.push(match config.pinned(asked.stream) {
            Some(host) => format!(
                "it waits: the stream {} goes by smart_hosts.{host} only, which is not there or not active",
                asked.stream
            ),
            None => "it waits: delivery.default is \"smart_hosts\", and none of them is active".to_owned(),
        }),
        Way::Direct { envelope } => {
            lines.push("it goes straight to the mail exchangers of the recipient's domain".to_owned());
            lines.extend(prospect.map(exchangers).unwrap_or_default());
            lines.extend(envelope.as_ref().map(left_by));
        }
        Way::Hosts { tier, hosts } => {
            lines.push(format!("it goes by a smart host, because {}", because(*tier, asked)));
            for (number, candidate) in hosts.iter().enumerate() {
                let order = if number == 0 { "first" } else { "then" };
                let state = states.get(&candidate.host.name).map_or(String::new(), |state| format!("; {state}"));
                lines.push(format!("{order} {}{state}", host(candidate.host)));
            }
            let first = hosts.first().map(|first| &first.envelope).filter(|first| *first != asked.envelope);
            lines.extend(first.map(left_by));
        }
    }
    lines
}

/// What becomes of a recipient where nothing leaves.
pub(super) fn captured(answer: Answer) -> String {
    const WHY: &str = "nothing leaves (delivery.default = \"capture\")";
    match answer {
        Answer::Kept => format!("it is captured: {WHY}; `postrider captured` lists, shows and releases it"),
        Answer::Refused => format!("it fails at once, because its address stands for that: {WHY}"),
        Answer::Deferred => {
            format!("it is put off at each try until its time is up, because its address stands for that: {WHY}")
        }
        Answer::Complained => {
            format!("it is captured, and then complained of, because its address stands for that: {WHY}")
        }
    }
}

fn left_by(envelope: &ReversePath) -> String {
    format!("it leaves with the envelope sender <{}> (sender.return_path)", text(envelope))
}

pub(super) fn text(path: &ReversePath) -> String {
    path.address().map(ToString::to_string).unwrap_or_default()
}

fn same(one: &Address, other: &Address) -> bool {
    one.lookup_key() == other.lookup_key()
}

/// The key that decided for a tier.
pub(super) fn tier_key(tier: Tier, stream: &str, first: Option<&str>) -> String {
    match (tier, first) {
        (Tier::Pinned, _) => format!("streams.{stream}.smart_host"),
        (Tier::Unfiltered | Tier::Any, _) | (_, None) => "delivery.default".to_owned(),
        (_, Some(host)) => format!("smart_hosts.{host}.from_filter"),
    }
}

fn because(tier: Tier, asked: &Asked<'_>) -> String {
    let from = asked.from.map_or_else(|| "the sender".to_owned(), |from| format!("<{from}>"));
    match tier {
        Tier::Pinned => format!("the stream {} is for that host alone", asked.stream),
        Tier::FromAddress => format!("its from_filter names {from}"),
        Tier::FromDomain => format!("its from_filter names the domain of {from}"),
        Tier::Unfiltered => format!("no from_filter names {from}, and this one takes all (it has no from_filter)"),
        Tier::DefaultAddress => format!("no from_filter names {from}, but this one names sender.default_from"),
        Tier::DefaultDomain => {
            format!("no from_filter names {from}, but this one names the domain of sender.default_from")
        }
        Tier::Any => format!("no from_filter fits {from} nor sender.default_from, so the first of all is taken"),
    }
}

fn host(host: &SmartHost) -> String {
    let SmartHost { name, kind, host, port, tls, verify_certificate, login, oauth, .. } = host;
    let tls = match tls {
        SmartHostTls::Off => "no TLS",
        SmartHostTls::Opportunistic => "TLS if it is offered",
        SmartHostTls::Required => "STARTTLS demanded",
        SmartHostTls::Implicit => "TLS from the start",
    };
    let checked = match (tls, verify_certificate) {
        ("no TLS", _) => "",
        (_, true) => ", valid certificate demanded",
        (_, false) => ", any certificate",
    };
    let login = match (login, oauth) {
        (_, Some(oauth)) => format!(", login {} by OAuth", oauth.username),
        (Some(login), None) => format!(", login {}", login.username),
        (None, None) => ", no login".to_owned(),
    };
    match kind {
        SmartHostKind::Graph { .. } => format!("{name}: Microsoft Graph{login}"),
        SmartHostKind::Smtp => format!("{name}: {host} port {port}, {tls}{checked}{login}"),
    }
}

pub(super) fn exchangers(prospect: &Prospect) -> Vec<String> {
    let mut lines: Vec<String> = prospect.hosts.iter().map(exchanger).collect();
    if let Some(trouble) = &prospect.trouble {
        let what = if prospect.is_final { "it fails at once" } else { "it waits" };
        lines.push(format!("{what}: {trouble}"));
    }
    lines
}

pub(super) fn exchanger(host: &HostProspect) -> String {
    let HostProspect { host, tls, demanded_by, unused, .. } = host;
    match (unused, demanded_by) {
        (Some(unused), _) => format!("{host}: not used, because {unused}"),
        (None, Some(by)) => format!("{host}: {tls}; demanded by {by}"),
        (None, None) => format!("{host}: {tls}"),
    }
}

pub(super) fn to_target(config: &Config, name: &str) -> String {
    if Route::Target(name.to_owned()).is_archive() {
        return "a copy is written into an [[archive]]".to_owned();
    }
    match config.targets.get(name) {
        Some(Target::Webhook { url, .. }) => format!("it goes to the webhook targets.{name} ({})", place_of(url)),
        Some(Target::Lmtp { address }) => format!("it goes to targets.{name} by LMTP ({address})"),
        Some(Target::Pipe { .. }) => format!("it goes to the program of targets.{name}"),
        Some(Target::File { .. }) => format!("it is written as a file as targets.{name} says"),
        Some(Target::Smtp { host, port, .. }) => format!("it goes to the server of targets.{name} ({host}:{port})"),
        Some(Target::Maildir { path }) => format!("it goes into the Maildir targets.{name} ({})", path.display()),
        None => format!("it waits: there is no targets.{name} in the configuration any more"),
    }
}

/// Scheme and host of a URL: what follows, and who is named before, may be secret.
fn place_of(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = host.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}/…")
}
