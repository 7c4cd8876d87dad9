//! What happened, by queue id, Message-ID or address: the same search as `postrider log`.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;

use super::Dashboard;
use super::answer::{Sorry, page, see_other};
use super::frame::{Page, Tab};
use super::session::Visitor;
use super::words::{ago, event, link, message_link, pill, said};
use crate::admin::events::EventsQuery;
use crate::admin::sentence::sentence;
use crate::admin::{Backend, EventsPage};
use crate::clock::Millis;
use crate::message::MessageId;

/// Events of a page; the last message of it may bring some more.
const PAGE_EVENTS: usize = 50;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    q: Option<String>,
    account: Option<String>,
    failed: Option<String>,
    since: Option<String>,
    before: Option<String>,
}

fn given(text: &Option<String>) -> Option<&str> {
    text.as_deref().map(str::trim).filter(|text| !text.is_empty())
}

pub(super) async fn search<B: Backend>(
    State(dashboard): State<Arc<Dashboard<B>>>,
    visitor: Visitor,
    Query(asked): Query<Asked>,
) -> Result<Response, Sorry> {
    let backend = &dashboard.backend;
    if let Some(id) = given(&asked.q).and_then(|q| q.parse::<MessageId>().ok())
        && backend.story(id).await?.is_some()
    {
        return Ok(see_other(&format!("/messages/{id}")));
    }
    let found = find(&dashboard, &asked).await;
    let now = backend.now();
    let body = html! {
        h1 { "Log" }
        (form(&asked))
        @match &found {
            Ok(found) => { (events(found, now)) (pages(&asked, found)) },
            Err(sorry) => p.said.bad role="alert" { (said(&sorry.what)) ": " (said(&sorry.remedy)) },
        }
    };
    let refresh = (given(&asked.q).is_none() && given(&asked.before).is_none()).then_some(10);
    let frame = Page { title: "Log", tab: Tab::Log, refresh };
    Ok(page(StatusCode::OK, frame.around(&dashboard, &visitor, body).await))
}

async fn find<B: Backend>(dashboard: &Dashboard<B>, asked: &Asked) -> Result<EventsPage, Sorry> {
    let owned = |text: &Option<String>| given(text).map(str::to_owned);
    let before = given(&asked.before).map(str::parse::<MessageId>).transpose();
    let query = EventsQuery {
        q: owned(&asked.q),
        account: owned(&asked.account),
        failed: given(&asked.failed).is_some(),
        since: owned(&asked.since),
        limit: Some(PAGE_EVENTS),
        before: before.map_err(|error| Sorry::bad(error.to_string(), "begin at the first page"))?,
        ..EventsQuery::default()
    };
    let wish = query.wish(dashboard.backend.now()).map_err(|error| Sorry::bad(error.error, error.remedy))?;
    Ok(dashboard.backend.events(wish).await?)
}

fn form(asked: &Asked) -> Markup {
    html! {
        form.filters method="get" action="/log" aria-label="Search" {
            div.field.wide {
                label for="q" { "About" }
                input #q type="text" name="q" value=[given(&asked.q)] placeholder="queue id, Message-ID, bob@example.net, @example.net" autocomplete="off" spellcheck="false";
            }
            div.field {
                label for="account" { "Account" }
                input #account type="text" name="account" value=[given(&asked.account)] autocomplete="off" spellcheck="false";
            }
            div.field {
                label for="since" { "Since" }
                input #since type="text" name="since" value=[given(&asked.since)] placeholder="2h" autocomplete="off";
            }
            div.field.check {
                input #failed type="checkbox" name="failed" value="true" checked[given(&asked.failed).is_some()];
                label for="failed" { "only what failed" }
            }
            div.field.buttons { button type="submit" { "Search" } }
        }
    }
}

fn events(found: &EventsPage, now: Millis) -> Markup {
    html! {
        div #rows data-live {
            @if found.events.is_empty() { p.empty { @if found.next.is_some() { "Nothing in this part; there is more." } @else { "Nothing was found." } } }
            ul.lines {
                @for line in &found.events {
                    @let (tone, word) = event(&line.event);
                    li data-row {
                        span.meta {
                            (ago(line.at, now)) " " (pill(tone, word)) " " (message_link(line.queue_id))
                            @if let Some(account) = &line.context.account { " " span.muted { (said(account)) } }
                        }
                        p { (said(&sentence(&line.event))) }
                    }
                }
            }
        }
    }
}

fn pages(asked: &Asked, found: &EventsPage) -> Markup {
    let to = |before: Option<MessageId>| {
        let before = before.map(|id| id.to_string());
        let parameters = [
            ("q", given(&asked.q)),
            ("account", given(&asked.account)),
            ("failed", given(&asked.failed)),
            ("since", given(&asked.since)),
            ("before", before.as_deref()),
        ];
        link("/log", &parameters)
    };
    html! {
        nav.row.pages aria-label="Pages of the log" {
            @if given(&asked.before).is_some() { a.button href=(to(None)) { "Newest" } }
            @if let Some(next) = found.next { a.button href=(to(Some(next))) rel="next" data-next { "Older" } }
        }
    }
}
