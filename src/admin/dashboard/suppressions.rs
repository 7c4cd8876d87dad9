//! Who gets no more mail: the list, all that is known of an address, entries on and off.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;

use super::Dashboard;
use super::act::Act;
use super::answer::{Sorry, page};
use super::frame::{Page, Tab};
use super::session::Visitor;
use super::words::{Tone, ago, button, hidden, link, message_link, pill, said};
use crate::admin::api::to_its_end;
use crate::admin::filter::parse_duration;
use crate::admin::suppress::{Explained, Suppressed};
use crate::admin::text::count;
use crate::admin::{Backend, Complaint, Ways};
use crate::bounce::suppression::{GLOBAL, Reason, Who};
use crate::clock::Millis;
use crate::intake::suppress::NewEntry;

/// Entries of a page.
const PAGE_ENTRIES: usize = 50;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    /// Of this address all that is known.
    address: Option<String>,
    /// The page begins behind this entry.
    after: Option<String>,
    scope: Option<String>,
}

fn given(text: &Option<String>) -> Option<&str> {
    text.as_deref().map(str::trim).filter(|text| !text.is_empty())
}

fn who(text: &str) -> Result<Who, Sorry> {
    Who::parse(text).map_err(|error| Sorry::bad(error.to_string(), "write bob@example.net or @example.net"))
}

pub(super) async fn list<B: Backend>(
    State(dashboard): State<Arc<Dashboard<B>>>,
    visitor: Visitor,
    Query(asked): Query<Asked>,
) -> Result<Response, Sorry> {
    let backend = &dashboard.backend;
    let now = backend.now();
    let known = match given(&asked.address) {
        Some(address) => Some(match Who::parse(address) {
            Ok(who) => backend.explain_suppression(who).await.map_err(|complaint| complaint.what),
            // A part of an address: the list from there on.
            Err(error) => Err(format!("{error}; write bob@example.net or @example.net")),
        }),
        None => None,
    };
    let after =
        given(&asked.after).map(|address| (address.to_owned(), given(&asked.scope).unwrap_or_default().to_owned()));
    let entries: Vec<Suppressed> = match known {
        Some(_) => Vec::new(),
        None => backend.suppressions(after.clone(), PAGE_ENTRIES).await?.into_iter().map(Suppressed::from).collect(),
    };
    let here = link(
        "/suppressions",
        &[("address", given(&asked.address)), ("after", given(&asked.after)), ("scope", given(&asked.scope))],
    );
    let body = html! {
        h1 { "Suppressions" }
        p.muted { "Mail to these addresses is not sent, because it came back, was called spam, or a person said so." }
        (search(&asked))
        @match &known {
            Some(Ok(known)) => (explained(&visitor, known, &here, now)),
            Some(Err(why)) => p.said.bad role="alert" { (said(why)) },
            None => {
                (table(&visitor, &entries, &here, now))
                (pages(&entries, after.is_some()))
            }
        }
        (add_form(&visitor, &backend.ways(), &here, given(&asked.address)))
    };
    let frame = Page { title: "Suppressions", tab: Tab::Suppressions, refresh: None };
    Ok(page(StatusCode::OK, frame.around(&dashboard, &visitor, body).await))
}

fn search(asked: &Asked) -> Markup {
    html! {
        form.filters method="get" action="/suppressions" role="search" aria-label="Suppressions" {
            div.field.wide {
                label for="address" { "What is known of" }
                input #address type="text" name="address" value=[given(&asked.address)] placeholder="bob@example.net or @example.net" autocomplete="off" spellcheck="false";
            }
            div.field.buttons {
                button type="submit" { "Look up" }
                @if given(&asked.address).is_some() { a.button.quiet href="/suppressions" { "Whole list" } }
            }
        }
    }
}

fn tone(reason: Reason) -> Tone {
    match reason {
        Reason::Complaint => Tone::Bad,
        Reason::Bounces => Tone::Warn,
        Reason::Unsubscribe | Reason::Manual | Reason::Import => Tone::Calm,
    }
}

fn table(visitor: &Visitor, entries: &[Suppressed], here: &str, now: Millis) -> Markup {
    html! {
        @if entries.is_empty() { p.empty { "Nobody is on the list." } } @else {
            div.scroll {
                table.cards {
                    caption.hidden { "Suppressed addresses" }
                    thead { tr { th scope="col" { "Address" } th scope="col" { "Where" } th scope="col" { "Why" } th scope="col" { "Since" } th scope="col" { "Until" } th scope="col" { span.hidden { "Remove" } } } }
                    tbody { @for entry in entries { (row(visitor, entry, here, now)) } }
                }
            }
        }
    }
}

fn row(visitor: &Visitor, entry: &Suppressed, here: &str, now: Millis) -> Markup {
    let to = link("/suppressions", &[("address", Some(&entry.address))]);
    let scope = entry.scope.as_deref().unwrap_or_default();
    let ask = match entry.reason {
        Reason::Complaint => {
            "They have called our mail spam. Take them off the list only if they have asked for mail. Go on?".to_owned()
        }
        _ => format!("Take {} off the list?", entry.address),
    };
    html! {
        tr data-row {
            td.main { a href=(to) { (said(&entry.address)) } }
            td data-label="Where" { @if scope == GLOBAL { "everywhere" } @else { "stream " (said(scope)) } }
            td data-label="Why" {
                (pill(tone(entry.reason), entry.reason.name()))
                @if let Some(id) = entry.evidence.last() { " " (message_link(*id)) }
            }
            td data-label="Since" { @if let Some(since) = entry.since { (ago(since, now)) } }
            td data-label="Until" { @match entry.expires { Some(at) => (ago(at, now)), None => "for good" } }
            td.right {
                (button(visitor, "/suppressions/remove", here, "Remove", &[("address", &entry.address), ("scope", scope), ("force", "1")], Some(&ask)))
            }
        }
    }
}

fn explained(visitor: &Visitor, known: &Explained, here: &str, now: Millis) -> Markup {
    html! {
        section {
            h2 { (said(&known.address)) }
            @if known.listed.is_empty() { p { (pill(Tone::Good, "not listed")) " Mail to it is sent." } }
            @else { (table(visitor, &known.listed, here, now)) }
            @if let Some(rule) = &known.rule { p { (said(rule)) } }
            @if let Some(alive) = known.alive { p.muted { "A sign of life " (ago(alive, now)) ": what is older counts no more." } }
            @if !known.bounces.is_empty() {
                h3 { "What came back" }
                ul.lines {
                    @for bounce in &known.bounces {
                        li data-row {
                            span.meta { (ago(bounce.at, now)) " " (pill(if bounce.counts { Tone::Bad } else { Tone::Calm }, &bounce.class)) " " (message_link(bounce.message)) }
                            p { (said(&bounce.status)) @if !bounce.counts { span.muted { " (does not count)" } } }
                        }
                    }
                }
            }
        }
    }
}

fn pages(entries: &[Suppressed], is_later: bool) -> Markup {
    let last = entries.last().filter(|_| entries.len() >= PAGE_ENTRIES);
    html! {
        nav.row.pages aria-label="Pages of the list" {
            @if is_later { a.button href="/suppressions" { "First page" } }
            @if let Some(last) = last {
                @let next = link("/suppressions", &[("after", Some(&last.address)), ("scope", last.scope.as_deref())]);
                a.button href=(next) rel="next" data-next { "Next page" }
            }
        }
    }
}

fn add_form(visitor: &Visitor, ways: &Ways, here: &str, address: Option<&str>) -> Markup {
    html! {
        section {
            h2 { "Put somebody on the list" }
            form.filters method="post" action="/suppressions/add" {
                (hidden(visitor, here))
                div.field.wide {
                    label for="add-address" { "Address" }
                    input #add-address type="text" name="address" value=[address] placeholder="bob@example.net or @example.net" required autocomplete="off" spellcheck="false";
                }
                div.field {
                    label for="add-scope" { "Where" }
                    select #add-scope name="scope" {
                        option value=(GLOBAL) { "everywhere" }
                        @for stream in ways.streams.iter().filter(|stream| stream.suppresses) { option value=(stream.name) { "stream " (stream.name) } }
                    }
                }
                div.field {
                    label for="add-for" { "For (empty: for good)" }
                    input #add-for type="text" name="for" placeholder="30d" autocomplete="off";
                }
                div.field.buttons { button type="submit" { "Add" } }
            }
        }
    }
}

fn broken<E>(_: E) -> Sorry {
    Sorry::new(StatusCode::SERVICE_UNAVAILABLE, "the work was broken off", "look into the server's log")
}

fn outcome<B: Backend>(
    dashboard: &Dashboard<B>,
    act: &Act,
    changed: Result<usize, Complaint>,
    done: &str,
    none: &str,
) -> Response {
    match changed {
        Ok(0) => act.done(dashboard, none, false),
        Ok(changed) => act.done(dashboard, format!("{} {done}.", count(changed, "entry", "entries")), true),
        Err(complaint) => act.done(dashboard, format!("{}: {}.", complaint.what, complaint.remedy), false),
    }
}

pub(super) async fn add<B: Backend>(State(dashboard): State<Arc<Dashboard<B>>>, act: Act) -> Result<Response, Sorry> {
    let who = who(act.form.get("address").unwrap_or_default())?;
    let lasts = act.form.get("for").map(parse_duration).transpose();
    let lasts = lasts.map_err(|error| Sorry::bad(error, "write 30d, for example, or leave it empty"))?;
    let millis = |lasts: std::time::Duration| u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX);
    let expires = lasts.map(|lasts| dashboard.backend.now().saturating_add(millis(lasts)));
    let scope = act.form.get("scope").map(str::to_owned);
    let entry = NewEntry { who, scope, reason: Reason::Manual, since: None, expires };
    let backend = dashboard.backend.clone();
    let changed = to_its_end(async move { backend.suppress(vec![entry]).await }).await.map_err(broken)?;
    Ok(outcome(&dashboard, &act, changed, "added", "It was on the list already."))
}

pub(super) async fn remove<B: Backend>(
    State(dashboard): State<Arc<Dashboard<B>>>,
    act: Act,
) -> Result<Response, Sorry> {
    let who = who(act.form.get("address").unwrap_or_default())?;
    let (scope, force) = (act.form.get("scope").map(str::to_owned), act.form.get("force").is_some());
    let backend = dashboard.backend.clone();
    let changed = to_its_end(async move { backend.unsuppress(vec![who], scope, force).await }).await.map_err(broken)?;
    Ok(outcome(&dashboard, &act, changed, "removed", "It is not on the list."))
}
