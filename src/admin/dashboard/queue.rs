//! The queue: a page of it, with the filters of the command line, and what can be done to those selected.
//!
//! A page begins behind an id, as `queue list` does, so it costs the same wherever it is. With a filter that
//! little fits, a page looks at [`LOOKED_AT`] recipients, or at [`LOOKED_AT_FURTHER`] if it is asked to, and
//! says where it has stopped.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;

use super::act::Act;
use super::answer::{Sorry, page};
use super::frame::{Page as Frame, Tab};
use super::session::Visitor;
use super::words::{ago, button, link, number, said, sender, status, subject};
use super::{Dashboard, overview};
use crate::admin::api::to_its_end;
use crate::admin::filter::parse_duration;
use crate::admin::text::{self, clean, count, size};
use crate::admin::view::{Recipient, Status};
use crate::admin::{Action, Backend, Damaged, Filter, Listed, Page, Part, Pick, Selection, Ways};
use crate::clock::Millis;
use crate::message::MessageId;

/// Messages on a page.
const PAGE_MESSAGES: usize = 50;
/// Recipients that are looked at for a page.
const LOOKED_AT: usize = 2_000;
const LOOKED_AT_FURTHER: usize = 50_000;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    from: Option<String>,
    to: Option<String>,
    domain: Option<String>,
    stream: Option<String>,
    status: Option<String>,
    older: Option<String>,
    after: Option<String>,
    further: Option<String>,
}

fn given(text: &Option<String>) -> Option<&str> {
    text.as_deref().map(str::trim).filter(|text| !text.is_empty())
}

impl Asked {
    fn filter(&self) -> Result<Filter, Sorry> {
        let status = given(&self.status).map(str::parse::<Status>).transpose();
        let older_than = given(&self.older).map(parse_duration).transpose();
        let owned = |text: &Option<String>| given(text).map(str::to_owned);
        Ok(Filter {
            to: owned(&self.to),
            from: owned(&self.from),
            domain: owned(&self.domain),
            stream: owned(&self.stream),
            status: status.map_err(|error| Sorry::bad(error, "choose one of the list"))?,
            older_than: older_than.map_err(|error| Sorry::bad(error, "write 4h, for example"))?,
        })
    }

    /// The address of a page with the same filters.
    fn link(&self, after: Option<MessageId>, further: bool) -> String {
        let after = after.map(|id| id.to_string());
        let parameters = [
            ("from", given(&self.from)),
            ("to", given(&self.to)),
            ("domain", given(&self.domain)),
            ("stream", given(&self.stream)),
            ("status", given(&self.status)),
            ("older", given(&self.older)),
            ("after", after.as_deref()),
            ("further", further.then_some("1")),
        ];
        link("/queue", &parameters)
    }
}

pub(super) async fn list<B: Backend>(
    State(dashboard): State<Arc<Dashboard<B>>>,
    visitor: Visitor,
    Query(asked): Query<Asked>,
) -> Result<Response, Sorry> {
    let backend = &dashboard.backend;
    let filter = asked.filter()?;
    let after = given(&asked.after).map(str::parse::<MessageId>).transpose();
    let after = after.map_err(|error| Sorry::bad(error.to_string(), "begin at the first page"))?;
    let looked_at_max = if given(&asked.further).is_some() { LOOKED_AT_FURTHER } else { LOOKED_AT };
    let (mut damaged, mut part) = (Vec::new(), Part::default());
    if filter.status == Some(Status::Damaged) {
        damaged = backend.damaged().await?;
    } else {
        part = backend.look(filter.clone(), Page { limit: PAGE_MESSAGES, after }, looked_at_max).await?;
    }
    let here = asked.link(after, given(&asked.further).is_some());
    let now = backend.now();
    let body = html! {
        div.row {
            h1.grow { "Queue" }
            p.muted { (overview::depth(backend.queued())) }
        }
        (filters(&asked, &backend.ways(), &filter))
        @if filter.status == Some(Status::Damaged) {
            (damaged_list(&damaged))
        } @else {
            (messages(&visitor, &part, &here, now))
            (pages(&asked, &part, after, !filter.is_empty()))
        }
    };
    let frame = Frame { title: "Queue", tab: Tab::Queue, refresh: Some(10) };
    Ok(page(StatusCode::OK, frame.around(&dashboard, &visitor, body).await))
}

fn filters(asked: &Asked, ways: &Ways, filter: &Filter) -> Markup {
    let field = |name: &str, label: &str, value: &Option<String>, hint: &str| {
        html! {
            div.field {
                label for={ "f-" (name) } { (label) }
                input id={ "f-" (name) } type="text" name=(name) value=[given(value)] placeholder=(hint) autocomplete="off" spellcheck="false";
            }
        }
    };
    html! {
        form.filters method="get" action="/queue" aria-label="Filters" {
            (field("from", "From", &asked.from, "address or domain"))
            (field("to", "To", &asked.to, "address or domain"))
            (field("domain", "Domain", &asked.domain, "of the recipient"))
            div.field {
                label for="f-stream" { "Stream" }
                select #f-stream name="stream" {
                    option value="" { "any" }
                    @for stream in &ways.streams {
                        option value=(stream.name) selected[given(&asked.stream) == Some(stream.name.as_str())] { (stream.name) }
                    }
                }
            }
            div.field {
                label for="f-status" { "Status" }
                select #f-status name="status" {
                    option value="" { "any" }
                    @for status in Status::ALL {
                        option value=(status.name()) selected[filter.status == Some(status)] { (status.name()) }
                    }
                }
            }
            (field("older", "Older than", &asked.older, "4h"))
            div.field.buttons {
                button type="submit" { "Filter" }
                @if !filter.is_empty() { a.button.quiet href="/queue" { "Clear" } }
            }
        }
    }
}

fn messages(visitor: &Visitor, part: &Part, here: &str, now: Millis) -> Markup {
    html! {
        form method="post" {
            (super::words::hidden(visitor, here))
            div.scroll #rows data-live {
                table.cards {
                    caption.hidden { "Queued messages, the oldest first" }
                    thead {
                        tr {
                            th scope="col" { span.hidden { "Selected" } input type="checkbox" data-all aria-label="Select all on this page"; }
                            th scope="col" { "Message" }
                            th scope="col" { "From" }
                            th scope="col" { "To" }
                            th scope="col" { "Status" }
                            th scope="col" { "Received" }
                        }
                    }
                    tbody { @for listed in &part.messages { (row(listed, now)) } }
                }
                @if part.messages.is_empty() {
                    p.empty { @if part.next.is_some() { "None of " (number(part.looked_at as u64)) " messages fits." } @else { "There is nothing here." } }
                }
            }
            @if !part.messages.is_empty() {
                div.bar role="group" aria-label="What to do with those selected" {
                    span.muted { "With those selected:" }
                    @for (action, ask) in [
                        (Action::Retry, None),
                        (Action::Hold, None),
                        (Action::Release, None),
                        (Action::Cancel, Some("Cancel what is selected? It is deleted, and the senders are not told.")),
                    ] {
                        button type="submit" formaction={ "/queue/" (action.name()) } data-ask=[ask] { (title(action)) }
                    }
                }
            }
        }
    }
}

pub(super) fn title(action: Action) -> &'static str {
    match action {
        Action::Retry => "Retry",
        Action::Hold => "Hold",
        Action::Release => "Release",
        Action::Cancel => "Cancel",
    }
}

fn row(listed: &Listed, now: Millis) -> Markup {
    let name = format!("Select {}", listed.id);
    html! {
        tr data-row {
            td.select { input type="checkbox" name="id" value=(listed.id) aria-label=(name); }
            td.main {
                a href={ "/messages/" (listed.id) } { (subject(&text::subject(&listed.subject))) }
                div.muted { span.id { (listed.id) } " · " (size(listed.size)) " · " (listed.stream) }
            }
            td data-label="From" { (sender(&listed.from)) }
            td data-label="To" { (recipients(&listed.recipients)) }
            td data-label="Status" { (state(&listed.recipients, now)) }
            td.nowrap data-label="Received" { (ago(listed.received_at, now)) }
        }
    }
}

fn recipients(recipients: &[Recipient]) -> Markup {
    html! {
        @if let [first, rest @ ..] = recipients {
            (said(&first.address.to_string()))
            @if !rest.is_empty() { span.muted { " and " (count(rest.len(), "other", "others")) } }
        }
    }
}

/// The states of a message's recipients, and what the first of them waits for.
fn state(recipients: &[Recipient], now: Millis) -> Markup {
    let present =
        Status::ALL.into_iter().filter(|status| recipients.iter().any(|recipient| recipient.status == *status));
    let first = recipients.first();
    html! {
        @for one in present { (status(one)) " " }
        @if let Some(recipient) = first {
            div.muted.why {
                @if let Some(why) = recipient.kept_back.as_ref().or(recipient.held_because.as_ref()) {
                    (said(why))
                } @else if let Some(due) = recipient.due {
                    @if due <= now { "due" } @else { "next try " (ago(due, now)) }
                    @if recipient.attempts > 0 { ", after " (count(recipient.attempts as usize, "try", "tries")) }
                }
            }
            @if let Some(last) = &recipient.last_failure { div.muted.why title=(clean(&last.reason)) { (said(&last.reason)) } }
        }
    }
}

fn pages(asked: &Asked, part: &Part, after: Option<MessageId>, is_filtered: bool) -> Markup {
    html! {
        nav.row.pages aria-label="Pages of the queue" {
            @if after.is_some() { a.button href=(asked.link(None, false)) rel="first" { "First page" } }
            @if let Some(next) = part.next {
                a.button href=(asked.link(Some(next), false)) rel="next" data-next { "Next page" }
                @if is_filtered && part.messages.len() < PAGE_MESSAGES {
                    a.button href=(asked.link(Some(next), true)) { "Look through " (number(LOOKED_AT_FURTHER as u64)) " more" }
                    span.muted { "Looked at " (number(part.looked_at as u64)) " messages; there are more." }
                }
            }
        }
    }
}

fn damaged_list(damaged: &[Damaged]) -> Markup {
    html! {
        @if damaged.is_empty() { p.empty { "Nothing is damaged." } } @else {
            table {
                caption.hidden { "Records that cannot be read" }
                thead { tr { th scope="col" { "Message" } th scope="col" { "Record" } th scope="col" { "Why" } } }
                tbody {
                    @for one in damaged {
                        tr data-row {
                            td { (super::words::message_link(one.id)) }
                            td { @match one.recipient { Some(number) => { "recipient " (number) }, None => "the message itself" } }
                            td { (said(&one.why)) }
                        }
                    }
                }
            }
        }
    }
}

/// `id` for each message; with `to` only that recipient of it.
pub(super) async fn change<B: Backend>(
    State(dashboard): State<Arc<Dashboard<B>>>,
    Path(action): Path<String>,
    act: Act,
) -> Result<Response, Sorry> {
    let Some(action) = Action::ALL.into_iter().find(|known| known.name() == action) else {
        return Err(Sorry::not_found("there is no such action", "retry, hold, release, cancel"));
    };
    let ids = act.form.all("id").map(str::parse::<MessageId>).collect::<Result<Vec<_>, _>>();
    let ids = ids.map_err(|error| Sorry::bad(error.to_string(), "select messages of the list"))?;
    if ids.is_empty() {
        return Ok(act.done(&dashboard, "Nothing was selected.", false));
    }
    let filter = Filter { to: act.form.get("to").map(str::to_owned), ..Filter::default() };
    let selection = Selection { pick: Pick::Ids(ids, filter), dry_run: false };
    let backend = dashboard.backend.clone();
    let broken =
        |_| Sorry::new(StatusCode::SERVICE_UNAVAILABLE, "the work was broken off", "look into the server's log");
    let changed = to_its_end(async move { backend.change(action, selection).await }).await.map_err(broken)??;
    let done = match action {
        Action::Retry => "due now",
        Action::Hold => "held",
        Action::Release => "released",
        Action::Cancel => "cancelled",
    };
    let waiting: String = changed.waiting.iter().map(|waiting| format!(" {waiting}.")).collect();
    Ok(match changed.recipients {
        0 => act.done(&dashboard, format!("Nothing to {}: none of it is in a state for that.", action.name()), false),
        changed => {
            let number = count(changed, "recipient is", "recipients are");
            act.done(&dashboard, format!("{number} {done}.{waiting}"), true)
        }
    })
}

/// The actions that fit a recipient, or some of a message's.
pub(super) fn buttons(visitor: &Visitor, id: MessageId, to: Option<&str>, fits: impl Fn(Action) -> bool) -> Markup {
    let (id, back) = (id.to_string(), format!("/messages/{id}"));
    let mut fields = vec![("id", id.as_str())];
    fields.extend(to.map(|to| ("to", to)));
    html! {
        @for action in Action::ALL.into_iter().filter(|action| fits(*action)) {
            @let ask = (action == Action::Cancel).then_some("Cancel it? It is deleted, and the sender is not told.");
            (button(visitor, &format!("/queue/{}", action.name()), &back, title(action), &fields, ask))
        }
    }
}
