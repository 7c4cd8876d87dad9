//! One message: how it stands with each recipient and why, what can be done, and all that happened to it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use maud::{Markup, html};

use super::answer::{Sorry, page};
use super::frame::{Page, Tab};
use super::session::Visitor;
use super::words::{Tone, ago, event, pill, said, sender, status, subject, when};
use super::{Dashboard, queue};
use crate::admin::explain::{Condition, Explained};
use crate::admin::sentence::{failure, sentence};
use crate::admin::text::{self, clean, count, day, size, time_of_day};
use crate::admin::view::{Recipient, Status};
use crate::admin::{Action, Backend, Explanation, Listed, Story};
use crate::clock::{Millis, rfc3339};
use crate::events::{Entry, Event};
use crate::message::MessageId;

/// Why it waits may want a look at the world; a page that takes longer says nothing of it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Recipients that are shown; the command line shows all.
const RECIPIENTS_SHOWN: usize = 100;
/// Events that are shown, the newest.
const EVENTS_SHOWN: usize = 500;

pub(super) async fn show<B: Backend>(
    State(dashboard): State<Arc<Dashboard<B>>>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, Sorry> {
    let backend = &dashboard.backend;
    let id: MessageId = id.parse().map_err(|error: crate::message::id::NotAnId| {
        Sorry::not_found(error.to_string(), "take the id from the server's reply or from the list")
    })?;
    let unknown = || {
        let remedy = "stories are kept for events.keep after a message is done; is the id from another server?";
        Sorry::not_found(format!("no message {id} is known here"), remedy)
    };
    let story = backend.story(id).await?.ok_or_else(unknown)?;
    let explanation = match story.message {
        Some(_) => tokio::time::timeout(PATIENCE, backend.explain(id)).await.ok().and_then(Result::ok).flatten(),
        None => None,
    };
    let now = backend.now();
    let title = format!("Message {id}");
    let body = html! {
        div #live data-live {
            (head(&visitor, &story, now))
            @for damaged in &story.damaged {
                p.said.bad { "A record of it cannot be read and is set aside: " (said(&damaged.why)) }
            }
            @if let Some(listed) = &story.message {
                section { h2 { "Recipients that are not done" } (recipients(&visitor, listed, explanation.as_ref(), now)) }
            }
            section { h2 { "What happened" } (timeline(&story.entries, now)) }
        }
    };
    let frame = Page { title: &title, tab: Tab::Queue, refresh: Some(5) };
    Ok(page(StatusCode::OK, frame.around(&dashboard, &visitor, body).await))
}

/// What its story begins with.
struct Beginning<'a> {
    subject: &'a str,
    message_id: &'a str,
    facts: Markup,
}

fn beginning(story: &Story) -> Option<Beginning<'_>> {
    let entries = story.entries.iter();
    entries.map(|entry| &entry.event).find_map(|event| match event {
        Event::Accepted { from, recipients, size: bytes, message_id, subject, .. }
        | Event::Imported { from, recipients, size: bytes, message_id, subject, .. } => Some(Beginning {
            subject,
            message_id,
            facts: html! {
                dt { "From" } dd { (sender(from)) }
                dt { "For" } dd { (count(*recipients as usize, "recipient", "recipients")) }
                dt { "Size" } dd { (size(*bytes)) }
            },
        }),
        _ => None,
    })
}

fn head(visitor: &Visitor, story: &Story, now: Millis) -> Markup {
    let first = beginning(story);
    let listed = story.message.as_ref();
    let about = listed.map(|listed| (listed.subject.as_str(), listed.message_id.as_str()));
    let about = about.or(first.as_ref().map(|first| (first.subject, first.message_id)));
    let (about, message_id) = about.unwrap_or_default();
    let fits =
        |action: Action| listed.is_some_and(|listed| listed.recipients.iter().any(|one| action.fits(one.status)));
    html! {
        div.row {
            h1.grow { (subject(&text::subject(about))) }
            div.actions {
                @if listed.is_some_and(|listed| listed.recipients.iter().any(|one| one.status == Status::Captured)) {
                    a.button href={ "/captured/" (story.id) } { "Read it" }
                }
                (queue::buttons(visitor, story.id, None, fits))
            }
        }
        dl.facts {
            dt { "Queue id" } dd.id { (story.id) }
            @if !message_id.is_empty() { dt { "Message-ID" } dd.id { (said(message_id)) } }
            @if let Some(first) = &first { (first.facts) }
            @if let Some(listed) = listed {
                @if first.is_none() { dt { "From" } dd { (sender(&listed.from)) } dt { "Size" } dd { (size(listed.size)) } }
                dt { "Stream" } dd { (listed.stream) }
                dt { "Received" } dd { (when(listed.received_at, now)) }
            } @else {
                dt { "State" } dd { (pill(Tone::Calm, "done")) " Nothing of it is queued any more." }
            }
        }
    }
}

fn recipients(visitor: &Visitor, listed: &Listed, explanation: Option<&Explanation>, now: Millis) -> Markup {
    let is_one = listed.recipients.len() == 1;
    html! {
        @if let Some(explanation) = explanation {
            @for trouble in &explanation.troubles { p.said.bad { (said(trouble)) } }
        }
        @for recipient in listed.recipients.iter().take(RECIPIENTS_SHOWN) {
            @let found = explanation.and_then(|explanation| explained(explanation, recipient));
            article.card data-row {
                div.row {
                    h3.grow {
                        (said(&recipient.address.to_string()))
                        @if let Some(alias) = &recipient.alias { span.muted { ", written as " (said(&alias.to_string())) } }
                    }
                    (status(recipient.status))
                    @if !is_one {
                        @let to = recipient.address.to_string();
                        div.actions { (queue::buttons(visitor, listed.id, Some(&to), |action| action.fits(recipient.status))) }
                    }
                }
                @match found { Some(found) => (why(found, now)), None => (plainly(recipient, now)) }
            }
        }
        @if listed.recipients.len() > RECIPIENTS_SHOWN {
            p.muted { "And " (listed.recipients.len() - RECIPIENTS_SHOWN) " more; " code { "postrider queue show " (listed.id) } " shows all." }
        }
    }
}

fn explained<'e>(explanation: &'e Explanation, recipient: &Recipient) -> Option<&'e Explained> {
    explanation.recipients.iter().find(|one| {
        one.state != Condition::Done && one.address.as_ref() == Some(&recipient.address) && one.alias == recipient.alias
    })
}

/// Why it is where it is, as `postrider explain` says it.
fn why(found: &Explained, now: Millis) -> Markup {
    html! {
        p.sentence { (said(&found.why)) }
        dl.facts {
            @if let Some(next) = found.next { dt { "Next try" } dd { (when(next, now)) } }
            @if let Some(key) = &found.key {
                dt { "Setting" } dd { code { (key) } @if let Some(place) = &found.place { " " span.muted { (said(place)) } } }
            }
            @if found.attempts > 0 { dt { "Tries" } dd { (found.attempts) } }
            @if let Some(last) = &found.last { dt { "Last answer" } dd { (said(&failure(last))) } }
        }
        @if !found.then.is_empty() {
            details { summary { "What the next try does" } ul { @for line in &found.then { li { (said(line)) } } } }
        }
        @if !found.can.is_empty() {
            details {
                summary { "On the command line" }
                ul { @for remedy in &found.can { li { code { (clean(&remedy.command)) } " " (said(&remedy.effect)) } } }
            }
        }
    }
}

fn plainly(recipient: &Recipient, now: Millis) -> Markup {
    html! {
        dl.facts {
            @if let Some(why) = recipient.kept_back.as_ref().or(recipient.held_because.as_ref()) { dt { "Why" } dd { (said(why)) } }
            @if let Some(due) = recipient.due { dt { "Next try" } dd { (when(due, now)) } }
            @if recipient.attempts > 0 { dt { "Tries" } dd { (recipient.attempts) } }
            @if let Some(last) = &recipient.last_failure { dt { "Last answer" } dd { (said(&failure(last))) } }
        }
    }
}

/// Where the day changes, a line says so.
fn timeline(entries: &[Entry], now: Millis) -> Markup {
    let days: Vec<String> = entries.iter().map(|entry| day(entry.at)).collect();
    let begins = |at: usize| at == 0 || days.get(at - 1) != days.get(at);
    html! {
        @let older = entries.len().saturating_sub(EVENTS_SHOWN);
        @if entries.is_empty() { p.muted { "Nothing is written down." } }
        @if older > 0 { p.muted { (older) " older events are left out here." } }
        ol.story {
            @for (at, entry) in entries.iter().enumerate().skip(older) {
                @let (tone, word) = event(&entry.event);
                @if at == older || begins(at) { li.day { (day(entry.at)) " (UTC)" } }
                li class=(tone.name()) {
                    span.meta {
                        time datetime=(rfc3339(entry.at)) { (time_of_day(entry.at)) }
                        " " (pill(tone, word)) " " span.muted { (ago(entry.at, now)) }
                    }
                    p { (said(&sentence(&entry.event))) }
                }
            }
        }
    }
}
