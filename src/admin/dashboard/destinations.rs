//! Where mail goes: the places with something to do or with trouble, and what is suspended or can be.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use maud::{Markup, html};

use super::Dashboard;
use super::act::Act;
use super::answer::{Sorry, page};
use super::frame::{Page, Tab};
use super::session::Visitor;
use super::words::{Tone, ago, button, duration, number, pill, said};
use crate::admin::api::to_its_end;
use crate::admin::suspend::SuspendBody;
use crate::admin::{Backend, FetchStatus, Readiness, Suspended, Ways};
use crate::clock::Millis;
use crate::delivery::standing::{Kind, Place, Places, Standing};
use crate::queue::suspend::Suspension;

const HERE: &str = "/destinations";

pub(super) async fn show<B: Backend>(State(dashboard): State<Arc<Dashboard<B>>>, visitor: Visitor) -> Response {
    let backend = &dashboard.backend;
    let now = backend.now();
    let suspended = backend.readiness().await.map(|Readiness { suspended, .. }| suspended).unwrap_or_default();
    let (ways, fetch) = (backend.ways(), backend.fetch_list().await);
    let places = backend.destinations().await;
    let body = html! {
        h1 { "Destinations" }
        div #live data-live {
            section {
                h2 { "Mail goes to" }
                (places_table(places.as_ref(), now))
            }
            section {
                h2 { "Suspend and resume" }
                p.muted { "What is suspended is taken and queued; it waits until it is resumed, also across a restart." }
                (ways_table(&visitor, &ways, &suspended, now))
            }
            @if !fetch.is_empty() { section { h2 { "Mailboxes elsewhere" } (fetch_table(&fetch, now)) } }
        }
    };
    let frame = Page { title: "Destinations", tab: Tab::Destinations, refresh: Some(5) };
    page(StatusCode::OK, frame.around(&dashboard, &visitor, body).await)
}

fn places_table(places: Option<&Places>, now: Millis) -> Markup {
    html! {
        @match places {
            None => p.empty { "The dispatcher is busy; look again in a moment." },
            Some(places) if places.places.is_empty() => p.empty { "Nothing is under way, and no server has complained." },
            Some(places) => {
                div.scroll {
                    table.cards {
                        caption.hidden { "Places with something to do, those in trouble first" }
                        thead {
                            tr {
                                th scope="col" { "Destination" }
                                th scope="col" { "State" }
                                th.right scope="col" { "Under way" }
                                th.right scope="col" { "Waiting here" }
                                th scope="col" { "Limits" }
                            }
                        }
                        tbody { @for place in &places.places { (row(place, now)) } }
                    }
                }
                @if places.left_out > 0 { p.muted { "And " (number(places.left_out as u64)) " more." } }
            }
        }
    }
}

fn row(Place { kind, standing }: &Place, now: Millis) -> Markup {
    let kind = match kind {
        Kind::Servers => "mail exchangers",
        Kind::SmartHost => "smart host",
        Kind::Target => "target",
        Kind::Capture => "kept on this server",
    };
    html! {
        tr data-row {
            td.main { (said(&standing.destination.replace(',', ", "))) div.muted { (kind) } }
            td data-label="State" { (state(standing, now)) }
            td.right data-label="Under way" { (standing.running) }
            td.right data-label="Waiting here" { (number(standing.waiting)) }
            td data-label="Limits" {
                @if standing.window < standing.connections {
                    (standing.window) " of " (standing.connections) " at once"
                } @else {
                    (standing.connections) " at once"
                }
                @if let Some((count, per)) = standing.rate { ", " (count) " in " (duration(per)) }
                div.muted { code { (standing.section) } }
            }
        }
    }
}

fn state(standing: &Standing, now: Millis) -> Markup {
    html! {
        @match &standing.complaint {
            None if standing.opens_at > now => { (pill(Tone::Calm, "at its rate")) " next " (ago(standing.opens_at, now)) },
            None => (pill(Tone::Good, "good")),
            Some((why, at)) => {
                @if standing.until > now {
                    (pill(Tone::Bad, "left alone")) " until " (ago(standing.until, now))
                } @else if standing.window < standing.connections {
                    (pill(Tone::Warn, "slowed down"))
                } @else {
                    (pill(Tone::Calm, "recovering"))
                }
                div.muted.why { (said(why)) ", " (ago(*at, now)) }
            }
        }
    }
}

fn ways_table(visitor: &Visitor, ways: &Ways, suspended: &[Suspended], now: Millis) -> Markup {
    let since = |what: &Suspension| suspended.iter().find(|one| one.what == *what).map(|one| one.since);
    let mut all = vec![(Suspension::All, "Everything that leaves".to_owned(), false)];
    all.extend(
        ways.streams.iter().map(|stream| {
            (Suspension::Stream(stream.name.clone()), format!("Stream {}", stream.name), stream.is_exempt)
        }),
    );
    all.extend(
        ways.smart_hosts.iter().map(|name| (Suspension::SmartHost(name.clone()), format!("Smart host {name}"), false)),
    );
    if ways.fetches {
        all.push((Suspension::Fetch, "Fetching from mailboxes elsewhere".to_owned(), false));
    }
    // What is gone from the configuration can be resumed all the same; a target is not suspended by hand.
    for Suspended { what, .. } in suspended {
        if !matches!(what, Suspension::Target(_)) && all.iter().all(|(known, ..)| known != what) {
            all.push((what.clone(), what.to_string(), false));
        }
    }
    html! {
        table.ways {
            caption.hidden { "What can be suspended" }
            tbody {
                @for (what, name, is_exempt) in &all {
                    tr data-row {
                        th scope="row" { (name) }
                        td {
                            @match since(what) {
                                Some(since) => { (pill(Tone::Warn, "suspended")) " " span.muted { (ago(since, now)) } },
                                None if *is_exempt => { (pill(Tone::Good, "open")) " " span.muted { "exempt from suspension" } },
                                None => (pill(Tone::Good, "open")),
                            }
                        }
                        td.right {
                            @if since(what).is_some() { (resume_button(visitor, what, HERE)) }
                            @else if !is_exempt {
                                @let (kind, name) = fields(what);
                                @let ask = format!("Suspend {what}? Mail for it waits until it is resumed.");
                                (button(visitor, "/suspend", HERE, "Suspend", &[("kind", kind), ("name", name)], Some(&ask)))
                            }
                        }
                    }
                }
            }
        }
    }
}

/// As the forms say it.
fn fields(what: &Suspension) -> (&'static str, &str) {
    match what {
        Suspension::All => ("all", ""),
        Suspension::Stream(name) => ("stream", name),
        Suspension::SmartHost(name) => ("smart_host", name),
        Suspension::Fetch => ("fetch", ""),
        Suspension::Target(name) => ("target", name),
    }
}

/// A target's pause ends by releasing mail for it; there is no button for that.
pub(super) fn resume_button(visitor: &Visitor, what: &Suspension, back: &str) -> Markup {
    let (kind, name) = fields(what);
    html! {
        @if !matches!(what, Suspension::Target(_)) {
            (button(visitor, "/resume", back, "Resume", &[("kind", kind), ("name", name)], None))
        }
    }
}

fn fetch_table(accounts: &[FetchStatus], now: Millis) -> Markup {
    html! {
        div.scroll {
            table.cards {
                caption.hidden { "Mailboxes elsewhere" }
                thead { tr { th scope="col" { "Account" } th scope="col" { "State" } th scope="col" { "Last run" } th scope="col" { "Next" } th.right scope="col" { "Fetched" } } }
                tbody {
                    @for account in accounts {
                        tr data-row {
                            td.main { (account.name) div.muted { (said(&account.username)) " at " (said(&account.host)) } }
                            td data-label="State" {
                                @let tone = if account.state == "failing" { Tone::Bad } else { Tone::Calm };
                                (pill(tone, &account.state))
                                @if let Some(error) = &account.last_error { div.muted.why { (said(error)) } }
                            }
                            td data-label="Last run" { @if let Some(at) = account.last_run { (ago(at, now)) } @else { "never" } }
                            td data-label="Next" { @if let Some(at) = account.next_run { (ago(at, now)) } @else { "–" } }
                            td.right data-label="Fetched" { (number(account.fetched)) }
                        }
                    }
                }
            }
        }
    }
}

pub(super) async fn suspend<B: Backend>(
    State(dashboard): State<Arc<Dashboard<B>>>,
    act: Act,
) -> Result<Response, Sorry> {
    change(&dashboard, &act, true).await
}

pub(super) async fn resume<B: Backend>(
    State(dashboard): State<Arc<Dashboard<B>>>,
    act: Act,
) -> Result<Response, Sorry> {
    change(&dashboard, &act, false).await
}

async fn change<B: Backend>(dashboard: &Dashboard<B>, act: &Act, on: bool) -> Result<Response, Sorry> {
    let named = || act.form.get("name").map(str::to_owned);
    // A mistyped form must not mean "all".
    let body = match act.form.get("kind") {
        Some("all") => SuspendBody::default(),
        Some("stream") if named().is_some() => SuspendBody { stream: named(), ..SuspendBody::default() },
        Some("smart_host") if named().is_some() => SuspendBody { smart_host: named(), ..SuspendBody::default() },
        Some("fetch") => SuspendBody { fetch: true, ..SuspendBody::default() },
        _ => return Err(Sorry::bad("the form does not say what", "load the page again, and do it once more")),
    };
    let what = body.what().map_err(|error| Sorry::bad(error.error, error.remedy))?;
    let (backend, name) = (dashboard.backend.clone(), what.to_string());
    let broken =
        |_| Sorry::new(StatusCode::SERVICE_UNAVAILABLE, "the work was broken off", "look into the server's log");
    let answer = to_its_end(async move { backend.suspend(what, on).await }).await.map_err(broken)?;
    Ok(match (answer, on) {
        (Ok(answer), true) if !answer.changed => {
            act.done(dashboard, format!("Nothing was changed: {name} was suspended already."), false)
        }
        (Ok(answer), false) if !answer.changed => {
            act.done(dashboard, format!("Nothing was changed: {name} was not suspended."), false)
        }
        (Ok(_), true) => act.done(dashboard, format!("Suspended: {name}. Mail for it is taken and waits."), true),
        (Ok(_), false) => act.done(dashboard, format!("Resumed: {name}."), true),
        (Err(complaint), _) => act.done(dashboard, format!("{}: {}.", complaint.what, complaint.remedy), false),
    })
}
