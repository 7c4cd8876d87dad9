//! The setting behind the reason why something is held.

use crate::admin::explain::Cause;
use crate::message::{HeldBy, Hold};

/// What it is about, and the key.
pub(super) fn setting(hold: &Hold) -> (Cause, Option<String>) {
    let (cause, key) = match &hold.by {
        HeldBy::Operator => return (Cause::Operator, None),
        HeldBy::Other => return (Cause::Held, first_key(&hold.reason)),
        HeldBy::Account(name) => (Cause::AccountHold, format!("accounts.{name}.hold")),
        HeldBy::AllowRecipients => (Cause::AllowRecipients, "delivery.allow_recipients".to_owned()),
        HeldBy::Aliases => (Cause::NoDestination, "aliases".to_owned()),
        HeldBy::Postmaster => (Cause::NoDestination, "postmaster".to_owned()),
        HeldBy::Dmarc => (Cause::Dmarc, "checks.dmarc".to_owned()),
        HeldBy::Checks => (Cause::Refused, "checks".to_owned()),
        HeldBy::Milter => (Cause::Milter, "checks.milters".to_owned()),
        HeldBy::LoopLimit => (Cause::LoopLimit, "loops.limit".to_owned()),
        HeldBy::Loop => (Cause::LoopLimit, "loops.max_hops".to_owned()),
        HeldBy::Automatic => (Cause::LoopLimit, "loops.automatic".to_owned()),
        HeldBy::SmartHost(name) => (Cause::Suspended, format!("smart_hosts.{name}")),
        HeldBy::Target(name) => (Cause::Target, format!("targets.{name}")),
        HeldBy::DeadLetter => (Cause::DeadLetter, "delivery.retry.expire".to_owned()),
    };
    (cause, Some(key))
}

pub(super) fn sentence(cause: Cause, hold: &Hold) -> String {
    let by = match cause {
        Cause::Operator => return "It is held because a person has asked for it (`postrider queue hold`)".to_owned(),
        Cause::Dmarc => "of the policy of the domain that it says it is from",
        Cause::LoopLimit => "of the guard against loops",
        Cause::NoDestination => "its address leads nowhere",
        Cause::Refused => "it was fetched, and nobody could be told that it is refused",
        Cause::DeadLetter => "its target has not taken it in time",
        _ => return format!("It is held because {hold}"),
    };
    format!("It is held because {by}: {hold}")
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
    use super::*;

    #[test]
    fn a_reason_of_another_sort_may_name_a_key() {
        let other = Hold::new(HeldBy::Other, "something (targets.crm.url) else.");
        assert_eq!(setting(&other), (Cause::Held, Some("targets.crm.url".into())));
        assert_eq!(setting(&Hold::new(HeldBy::Other, "test")), (Cause::Held, None));
    }
}
