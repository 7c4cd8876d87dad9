//! Why mail is held: a sentence for people, and what it is that holds it, which leads to a setting.
//!
//! Records that are older than the second of them hold the sentence alone; they get it when they are read, by the
//! words that those servers wrote. Nothing else looks into the sentence.

use serde::{Deserialize, Serialize};

/// Why mail is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct Hold {
    /// A sentence, or what of one follows "because".
    pub reason: String,
    pub by: HeldBy,
}

/// What holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldBy {
    /// A person, by `postrider queue hold`.
    Operator,
    /// `hold` of this account.
    Account(String),
    AllowRecipients,
    /// An alias leads nowhere, or round.
    Aliases,
    /// Nobody is named for an address that every domain has.
    Postmaster,
    /// The policy of the domain in From.
    Dmarc,
    /// It would be refused, if there were somebody to tell: it was fetched.
    Checks,
    Milter,
    /// The guard against loops: a limit of one sender, or of an alias.
    LoopLimit,
    /// It has come round.
    Loop,
    /// It says that it is automatic.
    Automatic,
    /// This smart host is suspended.
    SmartHost(String),
    /// This target is paused.
    Target(String),
    /// Its target has not taken it in time.
    DeadLetter,
    Other,
}

impl Hold {
    pub fn new(by: HeldBy, reason: impl Into<String>) -> Hold {
        Hold { reason: reason.into(), by }
    }
}

impl std::fmt::Display for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

/// As it may be on disk, or in an export.
#[derive(Deserialize)]
struct Written {
    reason: String,
    #[serde(default)]
    by: Option<HeldBy>,
}

impl From<Written> for Hold {
    fn from(written: Written) -> Hold {
        let by = written.by.unwrap_or_else(|| recognised(&written.reason));
        Hold { reason: written.reason, by }
    }
}

/// What held it, by the words of servers that did not write that down. They do not change any more.
fn recognised(reason: &str) -> HeldBy {
    let has = |text: &str| reason.contains(text);
    let named = |start: &str, then: &str| {
        let (name, rest) = reason.strip_prefix(start)?.split_once(' ')?;
        rest.starts_with(then).then(|| name.to_owned())
    };
    let account = reason.strip_prefix("accounts.").and_then(|rest| rest.split_once(".hold is set"));
    let exact = [
        account.map(|(name, _)| HeldBy::Account(name.to_owned())),
        named("the smart host ", "is suspended (").map(HeldBy::SmartHost),
        named("the target ", "is paused, ").map(HeldBy::Target),
    ];
    if let Some(by) = exact.into_iter().flatten().next() {
        return by;
    }
    match () {
        () if reason == "by the operator" => HeldBy::Operator,
        () if reason.starts_with("dead letter") => HeldBy::DeadLetter,
        () if has("delivery.allow_recipients") => HeldBy::AllowRecipients,
        () if reason.starts_with("DMARC ") => HeldBy::Dmarc,
        () if reason.starts_with("milter ") => HeldBy::Milter,
        () if has("nobody is named for ") => HeldBy::Postmaster,
        () if NOWHERE.iter().any(|text| has(text)) => HeldBy::Aliases,
        () if reason.starts_with("automatic mail (") => HeldBy::Automatic,
        () if has("has been delivered to ") => HeldBy::Loop,
        () if LIMITS.iter().any(|text| has(text)) => HeldBy::LoopLimit,
        () => HeldBy::Other,
    }
}

const NOWHERE: [&str; 4] = [
    "which does not exist",
    "aliases lead from one to the next",
    "the alias leads to more than",
    "lead only back to themselves",
];

const LIMITS: [&str; 3] = ["too many messages", "the same message from ", "takes answers only"];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_older_servers_wrote_is_understood() {
        for (reason, by) in [
            ("by the operator", HeldBy::Operator),
            ("accounts.shop.hold is set, until `postrider queue release`", HeldBy::Account("shop".into())),
            ("the smart host ses is suspended (`postrider resume --smart-host ses`)", HeldBy::SmartHost("ses".into())),
            (
                "the target crm is paused, because it has answered 410 Gone: give targets.crm another url",
                HeldBy::Target("crm".into()),
            ),
            ("you@far.test is not among delivery.allow_recipients; put it there", HeldBy::AllowRecipients),
            ("DMARC quarantine of far.test", HeldBy::Dmarc),
            ("milter inet:127.0.0.1:1 wants it held: spam", HeldBy::Milter),
            ("nobody is named for abuse@own.test: set `postmaster`", HeldBy::Postmaster),
            ("an alias leads to gone@own.test, which does not exist", HeldBy::Aliases),
            ("its aliases lead only back to themselves", HeldBy::Aliases),
            ("automatic mail (Auto-Submitted) for sales@own.test", HeldBy::Automatic),
            ("mail loop: it has been delivered to sales@own.test before", HeldBy::Loop),
            ("too many messages from bob@far.test", HeldBy::LoopLimit),
            ("dead letter: given up after 3 tries (delivery.retry); the last one: 500", HeldBy::DeadLetter),
            ("something else", HeldBy::Other),
            // A text that another wrote into it does not make it a suspension.
            ("the target said: the smart host is suspended", HeldBy::Other),
        ] {
            let old = serde_json::json!({ "reason": reason });
            let hold: Hold = rmp_serde::from_slice(&rmp_serde::to_vec_named(&old).unwrap()).unwrap();
            assert_eq!((hold.reason.as_str(), &hold.by), (reason, &by));
            // What is written now is not recognised but read.
            let written = rmp_serde::to_vec_named(&Hold::new(HeldBy::Checks, reason)).unwrap();
            assert_eq!(rmp_serde::from_slice::<Hold>(&written).unwrap().by, HeldBy::Checks);
        }
    }
}
