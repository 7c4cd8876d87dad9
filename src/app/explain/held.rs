//! The setting behind the reason why something is held. The reasons are written for people where they
//! arise, and are all that the queue keeps of them; a test makes each of them and has it read here.

use crate::admin::explain::Cause;
use crate::app::operator::BY_OPERATOR;
use crate::queue::suspend::Suspension;

/// What it is about, and the key.
pub(super) fn setting(reason: &str) -> (Cause, Option<String>) {
    match Suspension::of_reason(reason) {
        Some(Suspension::SmartHost(host)) => return (Cause::Suspended, Some(format!("smart_hosts.{host}"))),
        Some(Suspension::Target(name)) => return (Cause::Target, Some(format!("targets.{name}"))),
        _ => {}
    }
    let has = |text: &str| reason.contains(text);
    if let Some(account) = account_hold(reason) {
        return (Cause::AccountHold, Some(format!("accounts.{account}.hold")));
    }
    match () {
        () if has("delivery.allow_recipients") => (Cause::AllowRecipients, Some("delivery.allow_recipients".into())),
        () if reason.starts_with("DMARC ") => (Cause::Dmarc, Some("checks.dmarc".into())),
        () if reason.starts_with("milter ") => (Cause::Milter, Some("checks.milters".into())),
        () if reason == BY_OPERATOR => (Cause::Operator, None),
        () if has("nobody is named for ") => (Cause::NoDestination, Some("postmaster".into())),
        () if leads_nowhere(reason) => (Cause::NoDestination, Some("aliases".into())),
        () if reason.starts_with("automatic mail (") => (Cause::LoopLimit, Some("loops.automatic".into())),
        () if has("has been delivered to ") => (Cause::LoopLimit, Some("loops.max_hops".into())),
        () if is_limit(reason) => (Cause::LoopLimit, Some("loops.limit".into())),
        () => (Cause::Held, first_key(reason)),
    }
}

pub(super) fn sentence(cause: Cause, reason: &str) -> String {
    let by = match cause {
        Cause::Operator => return "It is held because a person has asked for it (`postrider queue hold`)".to_owned(),
        Cause::Dmarc => "of the policy of the domain that it says it is from",
        Cause::LoopLimit => "of the guard against loops",
        Cause::NoDestination => "its address leads nowhere",
        _ => return format!("It is held because {reason}"),
    };
    format!("It is held because {by}: {reason}")
}

fn account_hold(reason: &str) -> Option<&str> {
    reason.strip_prefix("accounts.")?.split_once(".hold is set").map(|(account, _)| account)
}

fn leads_nowhere(reason: &str) -> bool {
    [
        "which does not exist",
        "aliases lead from one to the next",
        "the alias leads to more than",
        "lead only back to themselves",
    ]
    .iter()
    .any(|text| reason.contains(text))
}

fn is_limit(reason: &str) -> bool {
    ["too many messages", "the same message from ", "takes answers only"].iter().any(|text| reason.contains(text))
}

/// The first path of a key that a sentence names, such as `delivery.retry.expire`.
pub(super) fn first_key(sentence: &str) -> Option<String> {
    const SECTIONS: [&str; 12] = [
        "accounts.",
        "aliases.",
        "bounces.",
        "checks.",
        "delivery.",
        "destinations.",
        "domains.",
        "limits.",
        "loops.",
        "smart_hosts.",
        "streams.",
        "targets.",
    ];
    let is_key = |c: char| c.is_alphanumeric() || c == '.' || c == '_' || c == '-';
    let words = sentence.split(|c: char| !is_key(c));
    words
        .map(|word| word.trim_matches('.'))
        .find(|word| SECTIONS.iter().any(|section| word.starts_with(section)))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config;
    use crate::message::Address;
    use crate::routing::inbound::{Resolution, resolve};

    #[test]
    fn reasons_lead_back_to_their_settings() {
        let text = "hostname = \"mail.own.test\"\ndata_dir = \"/nowhere\"\n[domains.\"own.test\"]\n[delivery]\n\
                    allow_recipients = [\"near.test\"]\n";
        let config = config::parse("test.toml", text).unwrap();
        let far = Address::parse("you@far.test").unwrap();
        assert_eq!(
            setting(&config.delivery.forbids(&far).unwrap()),
            (Cause::AllowRecipients, Some("delivery.allow_recipients".into()))
        );
        for (what, cause, key) in [
            (Suspension::SmartHost("ses".into()), Cause::Suspended, "smart_hosts.ses"),
            (Suspension::Target("crm".into()), Cause::Target, "targets.crm"),
        ] {
            assert_eq!(setting(&what.held_because().unwrap()), (cause, Some(key.into())));
        }
        // No postmaster is named.
        let Resolution::Deliveries(held) = resolve(&config, &Address::parse("postmaster@own.test").unwrap()) else {
            unreachable!("every domain has a postmaster")
        };
        let reason = held.iter().find_map(|delivery| delivery.hold.clone()).unwrap();
        assert_eq!(setting(&reason).0, Cause::NoDestination, "{reason}");
        assert_eq!(setting(BY_OPERATOR), (Cause::Operator, None));
        assert_eq!(
            setting("accounts.shop.hold is set, until `postrider queue release`"),
            (Cause::AccountHold, Some("accounts.shop.hold".into()))
        );
        assert_eq!(setting("something (targets.crm.url) else."), (Cause::Held, Some("targets.crm.url".into())));
    }
}
