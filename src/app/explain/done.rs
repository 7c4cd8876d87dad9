//! What became of recipients that are done with, out of the story.

use std::collections::BTreeMap;

use crate::admin::explain::{Cause, Condition, Explained};
use crate::clock::rfc3339;
use crate::delivery::standing::tries_until;
use crate::events::{Entry, Event};
use crate::queue::record::Failure;

/// One for each recipient that is not queued any more, in the order in which they were done.
pub(super) fn fates(entries: &[Entry], queued: &[Explained]) -> Vec<Explained> {
    let mut fates: BTreeMap<String, (usize, Explained)> = BTreeMap::new();
    for (at, entry) in entries.iter().enumerate() {
        let Some(fate) = fate(entry) else { continue };
        let key = fate.address.as_ref().map_or_else(String::new, |address| address.lookup_key());
        // What it came to in the end is what counts.
        fates.insert(key, (at, fate));
    }
    let is_queued = |fate: &Explained| queued.iter().any(|queued| queued.address == fate.address);
    let mut fates: Vec<(usize, Explained)> = fates.into_values().filter(|(_, fate)| !is_queued(fate)).collect();
    fates.sort_by_key(|(at, _)| *at);
    fates.into_iter().map(|(_, fate)| fate).collect()
}

fn fate(entry: &Entry) -> Option<Explained> {
    let at = rfc3339(entry.at);
    let (recipient, cause, why, attempts, last) = match &entry.event {
        Event::Delivered { recipient, to, reply, attempt, .. } => {
            let said = if reply.is_empty() { String::new() } else { format!(", which said: {reply}") };
            (recipient, Cause::Delivered, format!("It was delivered to {to} at {at}{said}"), *attempt, None)
        }
        Event::Captured { recipient } => {
            (recipient, Cause::Captured, format!("It was captured at {at} and has been taken out since"), 1, None)
        }
        Event::Failed { recipient, why, attempt } => {
            let sentence = format!("It failed for good at {at}: {}", said(why));
            (recipient, Cause::Failed, sentence, *attempt, Some(why))
        }
        Event::Expired { recipient, why, attempt } => {
            let (tries, since) = tries_until(*attempt, why);
            let sentence = format!("It was given up at {at} {tries}, because its time was up; {since}{}", said(why));
            (recipient, Cause::Expired, sentence, *attempt, Some(why))
        }
        Event::Cancelled { recipient } => {
            (recipient, Cause::Cancelled, format!("A person has taken it out of the queue at {at}"), 0, None)
        }
        Event::Discarded { recipient, reason } => {
            (recipient, Cause::Discarded, format!("It was swallowed at {at}: {reason}"), 0, None)
        }
        _ => return None,
    };
    let key = match cause {
        Cause::Expired => Some("delivery.retry.expire".to_owned()),
        Cause::Captured => Some("delivery.default".to_owned()),
        _ => None,
    };
    Some(Explained {
        address: Some(recipient.clone()),
        alias: None,
        state: Condition::Done,
        cause,
        why,
        key,
        place: None,
        next: None,
        attempts,
        last: last.cloned(),
        then: Vec::new(),
        can: Vec::new(),
    })
}

fn said(why: &Failure) -> String {
    format!("{} ({})", why.reason, why.status)
}
