//! Why the last try did not do it, and the setting that has to do with that. What the failure itself holds
//! decides: its reply, its status (RFC 3463), and who demanded what, which stands in its sentence.

use super::{Reason, held};
use crate::admin::explain::Cause;
use crate::clock::Millis;
use crate::config::{Config, SmartHost};
use crate::delivery::smtp::By;
use crate::delivery::throttle::is_greylisting;
use crate::queue::record::{Failure, Message, Recipient, Route};
use crate::routing::outbound::{self, Way};

const SCHEDULE: &str = "delivery.retry.schedule";
/// Replies to a login that is not taken (RFC 4954 6).
const LOGIN_CODES: [u16; 4] = [530, 534, 535, 538];

type Resting<'a> = &'a dyn Fn(&str) -> Option<(Failure, Millis)>;

pub(super) fn reason(
    config: &Config,
    message: &Message,
    recipient: &Recipient,
    why: &Failure,
    due: Millis,
    resting: Resting<'_>,
) -> Reason {
    let (cause, key) = cause(config, message, recipient, why, resting);
    let said = if why.reason.is_empty() { &why.status } else { &why.reason };
    let because = match cause {
        Cause::TlsPolicy => "a TLS policy was not met",
        Cause::Dns => "the name servers gave no answer",
        Cause::SmartHostLogin => "the smart host does not take our login",
        Cause::Greylisted => "the server wants to see it again later (greylisting)",
        Cause::Reply => "the server has refused it for now",
        Cause::NoConnection => "no connection was to be had",
        Cause::Unsure => "the connection was lost when the message may have arrived, so it is sent once more",
        Cause::Disk => "a disk is full",
        Cause::Configuration => "the configuration leaves it no way",
        Cause::Target => "its target does not take it now",
        _ => "the last try failed",
    };
    let tries = match recipient.attempts {
        0 | 1 => String::new(),
        attempts => format!(" (after {attempts} tries)"),
    };
    let sentence = format!("It waits for its next try{tries} because {because}: {said}");
    Reason::new(cause, sentence, key, Some(due))
}

/// What it is about, and the key.
fn cause(
    config: &Config,
    message: &Message,
    recipient: &Recipient,
    why: &Failure,
    resting: Resting<'_>,
) -> (Cause, Option<String>) {
    let schedule = |cause| (cause, Some(SCHEDULE.to_owned()));
    if why.unsure {
        return schedule(Cause::Unsure);
    }
    if let Route::Target(name) = &recipient.route {
        return of_target(config, name, why);
    }
    if let Way::Hosts { hosts, .. } = outbound::choose_for(config, message, recipient.released.is_some()).way {
        let rests =
            |host: &SmartHost| resting(&host.name).is_some_and(|(rest, _)| why.reason.starts_with(&rest.reason));
        let code = why.reply.as_ref().map_or(0, |reply| reply.code);
        let is_login = LOGIN_CODES.contains(&code) || why.reason.contains("the login of ");
        let resting = hosts.iter().map(|candidate| candidate.host).find(|host| rests(host));
        let named = hosts.iter().map(|candidate| candidate.host).find(|host| why.host.starts_with(&host.host));
        let first = hosts.first().map(|candidate| candidate.host);
        if let Some(host) = resting.or(named.or(first).filter(|_| is_login)) {
            let key = match (&host.oauth, &host.pop_before_smtp) {
                (Some(_), _) => "oauth",
                (None, Some(_)) if host.login.is_none() => "pop_before_smtp",
                (None, _) => "password",
            };
            return (Cause::SmartHostLogin, Some(format!("smart_hosts.{}.{key}", host.name)));
        }
        if let (true, Some(host)) = (is_tls(why), named.or(first)) {
            return (Cause::TlsPolicy, Some(format!("smart_hosts.{}.tls", host.name)));
        }
    }
    if is_tls(why) {
        // None where the sender demands it.
        return (Cause::TlsPolicy, By::key_in(&why.reason).map(str::to_owned));
    }
    match (&why.reply, why.status.as_str()) {
        (Some(reply), _) if is_greylisting(reply) => schedule(Cause::Greylisted),
        (Some(_), _) => schedule(Cause::Reply),
        (None, "4.4.3") => (Cause::Dns, Some("dns.nameservers".to_owned())),
        (None, "4.4.1" | "4.4.2" | "4.4.7") => schedule(Cause::NoConnection),
        (None, "4.3.1") => (Cause::Disk, held::first_key(&why.reason).or(Some("delivery.file_path".to_owned()))),
        (None, "4.3.5") => (Cause::Configuration, held::first_key(&why.reason).or(Some("delivery.default".to_owned()))),
        (None, _) => schedule(Cause::OwnTrouble),
    }
}

/// RFC 3463 and 8689: a certificate or TLS itself is not what was demanded.
fn is_tls(why: &Failure) -> bool {
    matches!(why.status.as_str(), "4.7.5" | "4.7.10")
}

fn of_target(config: &Config, name: &str, why: &Failure) -> (Cause, Option<String>) {
    let is_archive = Route::Target(name.to_owned()).is_archive();
    if !is_archive && !config.targets.contains_key(name) {
        return (Cause::Configuration, Some(format!("targets.{name}")));
    }
    let cause = if why.status == "4.3.1" { Cause::Disk } else { Cause::Target };
    let section = if is_archive { "archive".to_owned() } else { format!("targets.{name}") };
    // What went wrong may name the very key.
    let key = held::first_key(&why.reason).filter(|key| key.starts_with(&section));
    (cause, Some(key.unwrap_or(section)))
}
