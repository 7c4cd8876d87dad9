//! `[events]`: how long stories are kept, what of them goes to the log, and who is told by HTTP.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Secret;
use super::nearest::nearest;
use super::problem::ProblemKind;
use super::section::{Section, Wrong};
use super::targets::{is_loopback, read_url, webhook_secret};
use super::value::{SECOND_UP, render_duration};
use crate::events::kind::Kind;

const KEEP_DEFAULT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Bounces come later than this, and people look later.
const KEEP_SHORT: Duration = Duration::from_secs(3600);
/// Stories lie in the store beside the queue: more than a year of them belongs elsewhere.
const KEEP_LONG: Duration = Duration::from_secs(400 * 24 * 3600);
/// Characters of a webhook's name; it is a label of metrics and part of keys.
const NAME_CHARS_MAX: usize = 64;
/// Webhooks for events; each has a queue and a task of its own.
const WEBHOOKS_MAX: usize = 32;

#[derive(Clone, Debug, PartialEq)]
pub struct Events {
    /// How long a story is kept after its message came in.
    pub keep: Duration,
    pub log: EventLog,
    pub webhooks: BTreeMap<String, EventWebhook>,
}

impl Default for Events {
    fn default() -> Events {
        Events { keep: KEEP_DEFAULT, log: EventLog::All, webhooks: BTreeMap::new() }
    }
}

/// Which lines of stories go to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventLog {
    Off,
    /// Those of what did not work.
    Failed,
    All,
}

#[derive(Clone, Debug, PartialEq)]
pub struct EventWebhook {
    pub url: String,
    pub secret: Option<Secret>,
    /// None: every kind.
    pub only: Option<Vec<Kind>>,
}

pub(super) fn events(root: &Section<'_>) -> Events {
    let section = root.section("events");
    let levels = [("off", EventLog::Off), ("failed", EventLog::Failed), ("all", EventLog::All)];
    Events {
        keep: keep(&section),
        log: section.choice("log", &levels, EventLog::All),
        webhooks: webhooks(&section.section("webhooks")),
    }
}

fn keep(section: &Section<'_>) -> Duration {
    let keep = section.duration("keep", SECOND_UP, KEEP_DEFAULT);
    let shown = render_duration(keep);
    if keep < KEEP_SHORT {
        section.report.warn(format!(
            "events.keep is {shown}: what became of a message, and what was captured, is gone soon after it; and bounces \
             that come later cannot be told from mail of others"
        ));
    } else if keep > KEEP_LONG {
        section.report.warn(format!("events.keep is {shown}: the stories of all that time lie beside the queue"));
    }
    keep
}

fn webhooks(section: &Section<'_>) -> BTreeMap<String, EventWebhook> {
    let named = section.named();
    if named.len() > WEBHOOKS_MAX {
        let (what, remedy) = (format!("{} webhooks", named.len()), format!("At most {WEBHOOKS_MAX} can be told."));
        section.report.problem(ProblemKind::BadValue, &section.place, &section.path, what, remedy);
    }
    named.into_iter().filter_map(|(name, section)| Some((name.to_owned(), webhook(name, &section)?))).collect()
}

fn webhook(name: &str, section: &Section<'_>) -> Option<EventWebhook> {
    if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || name.chars().any(|c| c.is_control()) {
        let remedy = format!("Use up to {NAME_CHARS_MAX} characters without control characters.");
        let what = "not a name for a webhook";
        section.report.problem(ProblemKind::BadValue, &section.place, &section.path, what, remedy);
    }
    let secret = section.item("secret").map(|item| webhook_secret(&item));
    let only = section.list("only", "a list such as [\"delivered\", \"bounced\"]", read_kind);
    if let (Some([]), Some(item)) = (only.as_deref(), section.item("only"))
        && item.elements("a list").is_some_and(|elements| elements.is_empty())
    {
        item.wrong(Wrong::value("this webhook would be told nothing", "Name events, or leave `only` out for all."));
    }
    let remedy = "Add the address to post to, such as url = \"https://crm.example.com/hooks/mail-events\".";
    let url = section.required("url", remedy)?.read("a URL", read_url)?;
    if url.scheme() == "http" && !is_loopback(&url) {
        section.report.warn(format!(
            "events.webhooks.{name}: the URL is plain http, so addresses and replies cross the network unencrypted"
        ));
    }
    Some(EventWebhook { url: url.into(), secret: secret.flatten(), only })
}

fn read_kind(text: &str) -> Result<Kind, Wrong> {
    let names = || Kind::ALL.iter().map(|kind| kind.name());
    Kind::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
        let form = format!("There are {}.", names().collect::<Vec<_>>().join(", "));
        let remedy = match nearest(text, names()) {
            Some(guess) => format!("Did you mean \"{guess}\"? {form}"),
            None => form,
        };
        Wrong::value(format!("{text:?} is not an event"), remedy)
    })
}
