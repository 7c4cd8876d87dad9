//! Mail that was kept here instead of sent (`delivery.default = "capture"`): the list, a message as its reader would
//! see it, and what can be done with it.
//!
//! Its HTML is shown in a frame with a policy of its own, by which nothing in it runs or leaves
//! ([`captured::for_a_frame`]); its files are offered for saving only.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{Router, get, post};
use maud::{Markup, html};
use serde::Deserialize;

use super::Dashboard;
use super::act::Act;
use super::answer::{Sorry, guarded, page};
use super::frame::{Page, Tab};
use super::session::Visitor;
use super::words::{ago, button, hidden, link, said, sender, subject, when};
use crate::admin::Backend;
use crate::admin::api::to_its_end;
use crate::admin::captured::routes::{file_headers, frame_headers};
use crate::admin::captured::{
    self, Attachment, Captured, CapturedFilter, CapturedPage, CapturedWish, File, Kept, Person, Read,
};
use crate::admin::text::{clean, count, size};
use crate::clock::Millis;
use crate::message::{Address, MessageId};

/// Messages on a page.
const PAGE_MESSAGES: usize = 50;
/// Bytes of a message's text, or of its source, that a page shows.
const SHOWN_BYTES_MAX: usize = 256 * 1024;

pub(super) fn routes<B: Backend>() -> Router<Arc<Dashboard<B>>> {
    Router::new()
        .route("/captured", get(list::<B>))
        .route("/captured/delete", post(delete_all::<B>))
        .route("/captured/{id}", get(show::<B>))
        .route("/captured/{id}/html", get(framed::<B>))
        .route("/captured/{id}/source", get(source::<B>))
        .route("/captured/{id}/attachments/{number}", get(attachment::<B>))
        .route("/captured/{id}/release", post(release::<B>))
        .route("/captured/{id}/delete", post(delete::<B>))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Asked {
    q: Option<String>,
    before: Option<String>,
}

fn given(text: &Option<String>) -> Option<&str> {
    text.as_deref().map(str::trim).filter(|text| !text.is_empty())
}

fn broken<E>(_: E) -> Sorry {
    Sorry::new(StatusCode::SERVICE_UNAVAILABLE, "the work was broken off", "look into the server's log")
}

async fn list<B: Backend>(
    State(dashboard): State<Arc<Dashboard<B>>>,
    visitor: Visitor,
    Query(asked): Query<Asked>,
) -> Result<Response, Sorry> {
    let backend = &dashboard.backend;
    let before = given(&asked.before).map(str::parse::<MessageId>).transpose();
    let before = before.map_err(|error| Sorry::bad(error.to_string(), "begin at the first page"))?;
    let filter = CapturedFilter { q: given(&asked.q).map(str::to_owned), ..CapturedFilter::default() };
    let found = backend.list_captured(CapturedWish { filter, before, limit: PAGE_MESSAGES }).await?;
    let now = backend.now();
    let body = html! {
        div.row {
            h1.grow { "Captured" }
            @if !found.messages.is_empty() {
                @let (text, ask) = match given(&asked.q) {
                    Some(q) => ("Delete those", format!("Delete all captured mail with {q:?}, also on other pages?")),
                    None => ("Delete all", "Delete all captured mail?".to_owned()),
                };
                (button(&visitor, "/captured/delete", "/captured", text, &[("q", given(&asked.q).unwrap_or_default())], Some(&ask)))
            }
        }
        p.muted { "Mail that was kept on this server in place of being sent. The newest first." }
        form.filters method="get" action="/captured" role="search" aria-label="Captured mail" {
            div.field.wide {
                label for="q" { "With" }
                input #q type="text" name="q" value=[given(&asked.q)] placeholder="a part of the subject or of an address" autocomplete="off" spellcheck="false";
            }
            div.field.buttons { button type="submit" { "Search" } @if given(&asked.q).is_some() { a.button.quiet href="/captured" { "Clear" } } }
        }
        (messages(&found, now))
        nav.row.pages aria-label="Pages of captured mail" {
            @if before.is_some() { a.button href=(link("/captured", &[("q", given(&asked.q))])) { "Newest" } }
            @if let Some(next) = found.next {
                @let next = next.to_string();
                a.button href=(link("/captured", &[("q", given(&asked.q)), ("before", Some(&next))])) rel="next" data-next { "Older" }
            }
        }
    };
    let refresh = before.is_none().then_some(5);
    let frame = Page { title: "Captured", tab: Tab::Captured, refresh };
    Ok(page(StatusCode::OK, frame.around(&dashboard, &visitor, body).await))
}

fn messages(found: &CapturedPage, now: Millis) -> Markup {
    html! {
        div.scroll #rows data-live {
            @if found.messages.is_empty() {
                p.empty { @if found.next.is_some() { "Nothing in this part; there is more." } @else { "Nothing is captured." } }
            } @else {
                table.cards {
                    caption.hidden { "Captured messages" }
                    thead { tr { th scope="col" { "Message" } th scope="col" { "From" } th scope="col" { "To" } th scope="col" { "Captured" } } }
                    tbody { @for message in &found.messages { (row(message, now)) } }
                }
            }
        }
    }
}

fn row(message: &Captured, now: Millis) -> Markup {
    html! {
        tr data-row {
            td.main {
                a href={ "/captured/" (message.id) } { (subject(&message.subject)) }
                div.muted { (size(message.size)) @if let Some(account) = &message.account { " · " (said(account)) } }
            }
            td data-label="From" {
                @match &message.author { Some(author) => (said(&author.to_string())), None => (sender(&message.envelope.from)) }
            }
            td data-label="To" { (recipients(message)) }
            td.nowrap data-label="Captured" { (ago(message.captured_at, now)) }
        }
    }
}

fn recipients(message: &Captured) -> Markup {
    html! {
        @if let [first, rest @ ..] = message.envelope.to.as_slice() {
            (said(&first.to_string()))
            @if !rest.is_empty() { span.muted { " and " (count(rest.len(), "other", "others")) } }
        }
    }
}

fn id_of(id: &str) -> Result<MessageId, Sorry> {
    id.parse()
        .map_err(|error: crate::message::id::NotAnId| Sorry::not_found(error.to_string(), "take it from the list"))
}

fn unknown(id: MessageId) -> Sorry {
    let remedy = "it may have been released or deleted; its story is in the log";
    Sorry::not_found(format!("no captured message has the id {id}"), remedy)
}

async fn kept<B: Backend>(dashboard: &Dashboard<B>, id: &str) -> Result<Kept, Sorry> {
    let id = id_of(id)?;
    dashboard.backend.captured(id).await?.ok_or_else(|| unknown(id))
}

/// Off the threads that others wait for: a message may be large.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Sorry> {
    tokio::task::spawn_blocking(work).await.map_err(broken)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct View {
    /// `html`, `text`, `headers` or `source`; the first that there is.
    view: Option<String>,
}

async fn show<B: Backend>(
    State(dashboard): State<Arc<Dashboard<B>>>,
    visitor: Visitor,
    Path(id): Path<String>,
    Query(View { view }): Query<View>,
) -> Result<Response, Sorry> {
    let _place = dashboard.readers.acquire().await;
    let kept = kept(&dashboard, &id).await?;
    let (raw, read) = (kept.raw.clone(), aside(move || captured::read(&kept)).await?);
    let now = dashboard.backend.now();
    let first = if read.html.is_some() { "html" } else { "text" };
    let view = view.as_deref().filter(|view| ["html", "text", "headers", "source"].contains(view)).unwrap_or(first);
    let body = html! {
        (head(&visitor, &read, now))
        @if let Some(why) = &read.unread { p.said.bad { "It could not be taken apart: " (said(why)) } }
        @if !read.attachments.is_empty() { (attachments(&read)) }
        div.row {
            nav.choice aria-label="How it is shown" {
                @for (name, title) in [("html", "HTML"), ("text", "Text"), ("headers", "Headers"), ("source", "Source")] {
                    @if name != "html" || read.html.is_some() {
                        a href={ "?view=" (name) } aria-current=[(view == name).then_some("true")] { (title) }
                    }
                }
            }
        }
        (content(&read, &raw, view))
        (release_form(&visitor, &read.message))
    };
    let title = clean(&read.message.subject);
    let title = if title.is_empty() { "(no subject)" } else { &title };
    let frame = Page { title, tab: Tab::Captured, refresh: None };
    Ok(page(StatusCode::OK, frame.around(&dashboard, &visitor, body).await))
}

fn people(people: &[Person]) -> Markup {
    html! {
        @for (at, Person { name, address }) in people.iter().enumerate() {
            @if at > 0 { ", " }
            @if name.is_empty() { (said(address)) } @else { (said(name)) " " span.muted { "<" (said(address)) ">" } }
        }
    }
}

fn head(visitor: &Visitor, read: &Read, now: Millis) -> Markup {
    let message = &read.message;
    let delete = format!("/captured/{}/delete", message.id);
    html! {
        div.row {
            h1.grow { (subject(&message.subject)) }
            div.actions { (button(visitor, &delete, "/captured", "Delete", &[], Some("Delete it?"))) }
        }
        dl.facts {
            @for (name, all) in [("From", &read.from), ("To", &read.to), ("Cc", &read.cc), ("Bcc", &read.bcc), ("Reply-To", &read.reply_to)] {
                @if !all.is_empty() { dt { (name) } dd { (people(all)) } }
            }
            dt { "Envelope" }
            dd {
                (sender(&message.envelope.from)) " → "
                @for (at, to) in message.envelope.to.iter().enumerate() { @if at > 0 { ", " } (said(&to.to_string())) }
            }
            dt { "Captured" } dd { (when(message.captured_at, now)) }
            dt { "Story" } dd { a.id href={ "/messages/" (message.id) } { (message.id) } }
        }
    }
}

fn attachments(read: &Read) -> Markup {
    html! {
        ul.lines {
            @for Attachment { number, filename, content_type, size: bytes, inline, .. } in &read.attachments {
                li {
                    a href={ "/captured/" (read.message.id) "/attachments/" (number) } download {
                        (said(filename.as_deref().unwrap_or("attachment")))
                    }
                    " " span.muted { (said(content_type)) ", " (size(*bytes as u64)) @if *inline { ", within the text" } }
                }
            }
        }
    }
}

/// A piece that a page can show; the rest is there for saving.
fn shown(text: &str) -> (&str, bool) {
    if text.len() <= SHOWN_BYTES_MAX {
        return (text, false);
    }
    let end = (0..=SHOWN_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    (text.get(..end).unwrap_or_default(), true)
}

fn preformatted(text: &str) -> Markup {
    let (text, is_cut) = shown(text);
    html! {
        pre tabindex="0" role="region" aria-label="Content" { (text) }
        @if is_cut { p.muted { "That is the beginning; the whole is in the source." } }
    }
}

fn content(read: &Read, raw: &[u8], view: &str) -> Markup {
    let (frame, save) =
        (format!("/captured/{}/html", read.message.id), format!("/captured/{}/source", read.message.id));
    html! {
        @match view {
            "html" => iframe sandbox src=(frame) title="The HTML of the message" {},
            "headers" => {
                div.scroll {
                    table {
                        caption.hidden { "Header fields" }
                        tbody { @for (name, value) in &read.headers { tr { th scope="row" { (said(name)) } td { (said(value)) } } } }
                    }
                }
            },
            "source" => {
                p { a.button href=(save) download { "Save as .eml" } }
                (preformatted(&String::from_utf8_lossy(raw.get(..SHOWN_BYTES_MAX + 1).unwrap_or(raw))))
            },
            _ => @match &read.text {
                Some(text) => (preformatted(text)),
                None => p.empty { "It has no text." },
            },
        }
    }
}

fn release_form(visitor: &Visitor, message: &Captured) -> Markup {
    html! {
        section {
            h2 { "Send it for real" }
            form.filters method="post" action={ "/captured/" (message.id) "/release" } {
                (hidden(visitor, &format!("/messages/{}", message.id)))
                div.field.wide {
                    label for="to" { "To (empty: to those whom it was for, and then it is not captured any more)" }
                    input #to type="text" name="to" placeholder="me@example.net" autocomplete="off" spellcheck="false";
                }
                div.field.buttons { button type="submit" data-ask="Send it for real?" { "Release" } }
            }
        }
    }
}

async fn framed<B: Backend>(
    State(dashboard): State<Arc<Dashboard<B>>>,
    _: Visitor,
    Path(id): Path<String>,
) -> Result<Response, Sorry> {
    let _place = dashboard.readers.acquire().await;
    let Kept { message, raw, .. } = kept(&dashboard, &id).await?;
    let html = aside(move || captured::for_a_frame(message.id, &raw)).await?;
    let html = html.ok_or_else(|| Sorry::not_found("the message has no HTML that can be shown", "look at its text"))?;
    let mut headers = frame_headers();
    // Its own policy says who may frame it.
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("SAMEORIGIN"));
    Ok(guarded((headers, html).into_response()))
}

async fn source<B: Backend>(
    State(dashboard): State<Arc<Dashboard<B>>>,
    _: Visitor,
    Path(id): Path<String>,
) -> Result<Response, Sorry> {
    let _place = dashboard.readers.acquire().await;
    let Kept { message, raw, .. } = kept(&dashboard, &id).await?;
    Ok(saved(file_headers("message/rfc822", &format!("{}.eml", message.id)), raw))
}

async fn attachment<B: Backend>(
    State(dashboard): State<Arc<Dashboard<B>>>,
    _: Visitor,
    Path((id, number)): Path<(String, String)>,
) -> Result<Response, Sorry> {
    let none = || Sorry::not_found("the message has no such attachment", "the page of the message lists them");
    let number: usize = number.parse().map_err(|_| none())?;
    let _place = dashboard.readers.acquire().await;
    let Kept { raw, .. } = kept(&dashboard, &id).await?;
    let File { name, content_type, bytes } =
        aside(move || captured::attachment(&raw, number)).await?.ok_or_else(none)?;
    Ok(saved(file_headers(&content_type, &name), bytes))
}

fn saved(headers: HeaderMap, bytes: impl IntoResponse) -> Response {
    guarded((headers, bytes).into_response())
}

async fn release<B: Backend>(
    State(dashboard): State<Arc<Dashboard<B>>>,
    Path(id): Path<String>,
    act: Act,
) -> Result<Response, Sorry> {
    let id = id_of(&id)?;
    let names = act.form.get("to").unwrap_or_default().split([',', ' ']).filter(|name| !name.is_empty());
    let to = match names.map(Address::parse).collect::<Result<Vec<_>, _>>() {
        Ok(to) if to.len() <= captured::RELEASE_TO_MAX => to,
        Ok(_) => {
            return Ok(act.done(&dashboard, format!("Name {} addresses at most.", captured::RELEASE_TO_MAX), false));
        }
        Err(error) => return Ok(act.done(&dashboard, format!("That is not an address: {error}."), false)),
    };
    let backend = dashboard.backend.clone();
    let released = to_its_end(async move { backend.release_captured(id, to).await }).await.map_err(broken)??;
    let sent = released.ok_or_else(|| unknown(id))?;
    Ok(match sent {
        0 => act.done(&dashboard, "Nothing was sent: it went while it was released.", false),
        _ => act.done(&dashboard, format!("Sent for real, to {}.", count(sent, "recipient", "recipients")), true),
    })
}

async fn delete<B: Backend>(
    State(dashboard): State<Arc<Dashboard<B>>>,
    Path(id): Path<String>,
    act: Act,
) -> Result<Response, Sorry> {
    let id = id_of(&id)?;
    let backend = dashboard.backend.clone();
    let is_gone = to_its_end(async move { backend.delete_one_captured(id).await }).await.map_err(broken)??;
    let text = if is_gone { "Deleted." } else { "It was gone already." };
    Ok(act.done(&dashboard, text, is_gone))
}

async fn delete_all<B: Backend>(State(dashboard): State<Arc<Dashboard<B>>>, act: Act) -> Result<Response, Sorry> {
    let filter = CapturedFilter { q: act.form.get("q").map(str::to_owned), ..CapturedFilter::default() };
    let backend = dashboard.backend.clone();
    let gone = to_its_end(async move { backend.delete_captured(filter).await }).await.map_err(broken)??;
    Ok(act.done(&dashboard, format!("{} deleted.", count(gone, "message", "messages")), true))
}
