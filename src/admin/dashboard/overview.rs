//! The first page: is all well, how much comes and goes, what went wrong last.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;

use super::answer::page;
use super::chart::{Chart, Line};
use super::frame::{Page, Tab};
use super::session::Visitor;
use super::words::{self, Tone, ago, duration, event, message_link, number, pill, said};
use super::{Dashboard, destinations};
use crate::admin::history::{History, Sample};
use crate::admin::sentence::sentence;
use crate::admin::text::size;
use crate::admin::{Backend, Readiness, ResolverState};
use crate::clock::Millis;

/// What went wrong last: so many lines.
const TROUBLES: usize = 8;
/// Points of a chart of an hour, half a minute each; and of a day, ten minutes each.
const HOUR: (usize, Millis) = (120, 30_000);
const DAY: (usize, Millis) = (144, 600_000);

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    range: Option<String>,
}

pub(super) async fn show<B: Backend>(
    State(dashboard): State<Arc<Dashboard<B>>>,
    visitor: Visitor,
    Query(asked): Query<Asked>,
) -> Response {
    let backend = &dashboard.backend;
    let (now, history, is_day) = (backend.now(), backend.history(), asked.range.as_deref() == Some("day"));
    let (readiness, status) = (backend.readiness().await, backend.status().await);
    let troubles = backend.troubles(TROUBLES);
    let body = html! {
        div #live data-live {
            @if let Some(readiness) = &readiness { (health(&visitor, readiness, now)) }
            (tiles(&history, backend.queued()))
            div.row {
                h1.grow { "How it goes" }
                nav.choice aria-label="Time shown" {
                    a href="/" aria-current=[(!is_day).then_some("true")] { "Last hour" }
                    a href="/?range=day" aria-current=[is_day.then_some("true")] { "Last day" }
                }
            }
            div.charts { @for chart in charts(&history, is_day, now) { (chart) } }
            section {
                h2 { "What went wrong last" }
                @if troubles.is_empty() {
                    p.muted { "Nothing since the start, " (ago(status.started_at, now)) "." }
                } @else {
                    ul.lines {
                        @for (id, entry) in &troubles {
                            @let (tone, word) = event(&entry.event);
                            li data-row {
                                span.meta { (ago(entry.at, now)) " " (pill(tone, word)) " " (message_link(*id)) }
                                p { (said(&sentence(&entry.event))) }
                            }
                        }
                    }
                    p { a href="/log?failed=true" { "All that failed" } }
                }
            }
            @if let Some(readiness) = &readiness { (server(readiness, &status.version, status.started_at, now)) }
        }
    };
    let page_of = Page { title: "Overview", tab: Tab::Overview, refresh: Some(10) };
    page(StatusCode::OK, page_of.around(&dashboard, &visitor, body).await)
}

/// What stands in the way of mail, in sentences.
fn reasons(readiness: &Readiness) -> Vec<(Tone, String)> {
    let mut reasons = Vec::new();
    if let Some(why) = &readiness.store.why {
        reasons.push((Tone::Bad, format!("The store has failed, so no mail is taken: {why}")));
    }
    let disk = readiness.disk;
    if disk.is_short_of_files() {
        reasons.push((Tone::Bad, "The disk takes hardly any more files (inodes), so no mail is taken".to_owned()));
    } else if !disk.accepting {
        let (free, least) = (size(disk.free), size(disk.min_free));
        reasons.push((
            Tone::Bad,
            format!("The disk is too full, so no mail is taken: {free} are free, queue.min_free is {least}"),
        ));
    }
    if readiness.memory.used >= readiness.memory.limit.max(1) {
        reasons.push((Tone::Bad, "The memory for messages (queue.memory) is used up, so no mail is taken".to_owned()));
    }
    if !readiness.ready && reasons.is_empty() {
        reasons.push((Tone::Bad, "The server is stopping and takes no mail".to_owned()));
    }
    if readiness.resolver == ResolverState::Failing {
        reasons.push((Tone::Warn, "The name servers do not answer, so mail waits".to_owned()));
    }
    for damage in &readiness.store.damages {
        reasons.push((Tone::Warn, format!("Damaged and set aside: {damage}")));
    }
    reasons
}

fn health(visitor: &Visitor, readiness: &Readiness, now: Millis) -> Markup {
    let reasons = reasons(readiness);
    html! {
        section.health aria-label="Health" {
            @if readiness.ready && reasons.is_empty() {
                p { (pill(Tone::Good, "all is well")) " Mail is taken and goes out." }
            }
            @for (tone, reason) in &reasons {
                p { (pill(*tone, if *tone == Tone::Bad { "not ready" } else { "mind" })) " " (said(reason)) "." }
            }
            @for suspended in &readiness.suspended {
                p.row {
                    span.grow { (pill(Tone::Warn, "suspended")) " " (suspended.what.to_string()) ", since " (ago(suspended.since, now)) }
                    (destinations::resume_button(visitor, &suspended.what, "/"))
                }
            }
        }
    }
}

fn tiles(history: &History, queued: Option<u64>) -> Markup {
    let hour = |of: fn(&Sample) -> u64| history.hour().map(of).sum::<u64>();
    let (delivered, failed) = (hour(|sample| sample.delivered), hour(|sample| sample.failed));
    let latest = history.hour().rev().find_map(|sample| sample.p95);
    let tile = |name: &str, value: String, hint: &str| {
        html! { div.tile { dt { (name) } dd { (value) } dd.muted { (hint) } } }
    };
    html! {
        dl.tiles {
            (tile("In the queue", queued.map_or("…".to_owned(), number), "messages"))
            (tile("Accepted", number(hour(|sample| sample.accepted)), "messages, last hour"))
            (tile("Delivered", number(delivered), "recipients, last hour"))
            (tile("Put off", number(hour(|sample| sample.deferred)), "tries, last hour"))
            (tile("Failed", number(failed), "recipients, last hour"))
            (tile("Delivery takes", latest.map_or("–".to_owned(), |p95| format!("≤ {}", duration(p95))), "95 of 100, lately"))
        }
    }
}

/// The samples that fall into each point of a chart.
struct Points<'a> {
    from: Millis,
    step: Millis,
    points: Vec<Vec<&'a Sample>>,
}

impl<'a> Points<'a> {
    fn new(samples: impl Iterator<Item = &'a Sample>, (count, step): (usize, Millis), now: Millis) -> Points<'a> {
        let end = now - now % step + step;
        let from = end.saturating_sub(step * count as u64);
        let mut points = vec![Vec::new(); count];
        for sample in samples {
            // A sample tells of the time before it.
            let at = sample.at.saturating_sub(1);
            let point = usize::try_from(at.saturating_sub(from) / step).unwrap_or(usize::MAX);
            if at >= from
                && let Some(point) = points.get_mut(point)
            {
                point.push(sample);
            }
        }
        Points { from, step, points }
    }

    /// So many a minute.
    fn rate(&self, of: fn(&Sample) -> u64) -> Vec<Option<f64>> {
        self.line(|samples| {
            let span: Millis = samples.iter().map(|sample| sample.span).sum();
            let count: u64 = samples.iter().map(|sample| of(sample)).sum();
            (span > 0).then(|| count as f64 * 60_000.0 / span as f64)
        })
    }

    fn last(&self, of: fn(&Sample) -> Option<u64>) -> Vec<Option<f64>> {
        self.line(|samples| samples.iter().rev().find_map(|sample| of(sample)).map(|value| value as f64))
    }

    fn most(&self, of: fn(&Sample) -> Option<Millis>) -> Vec<Option<f64>> {
        self.line(|samples| samples.iter().filter_map(|sample| of(sample)).max().map(|value| value as f64))
    }

    fn line(&self, value: impl Fn(&[&Sample]) -> Option<f64>) -> Vec<Option<f64>> {
        self.points.iter().map(|samples| value(samples)).collect()
    }
}

fn charts(history: &History, is_day: bool, now: Millis) -> Vec<Markup> {
    let points = match is_day {
        true => Points::new(history.day(), DAY, now),
        false => Points::new(history.hour(), HOUR, now),
    };
    let chart = |id, title, lines, area, text, least| {
        let Points { from, step, points } = &points;
        Chart { id, title, from: *from, step: *step, points: points.len(), lines, area, text, least }.draw()
    };
    let line = |name, colour, values| Line { name, colour, values };
    vec![
        chart(
            "traffic",
            "Mail a minute",
            vec![
                line("accepted", "c1", points.rate(|sample| sample.accepted)),
                line("delivered", "c2", points.rate(|sample| sample.delivered)),
            ],
            false,
            &per_minute,
            10.0,
        ),
        chart(
            "depth",
            "Messages in the queue",
            vec![line("queued", "c1", points.last(|sample| sample.queued))],
            true,
            &whole,
            10.0,
        ),
        chart(
            "outcomes",
            "Trouble a minute",
            vec![
                line("put off", "c3", points.rate(|sample| sample.deferred)),
                line("failed", "c4", points.rate(|sample| sample.failed)),
            ],
            false,
            &per_minute,
            10.0,
        ),
        chart(
            "latency",
            "From taken to delivered",
            vec![
                line("half", "c2", points.most(|sample| sample.p50)),
                line("95 of 100", "c3", points.most(|sample| sample.p95)),
            ],
            false,
            &time,
            1000.0,
        ),
    ]
}

fn per_minute(value: f64) -> String {
    if value >= 10.0 || value.fract() == 0.0 { whole(value) } else { format!("{value:.1}") }
}

fn whole(value: f64) -> String {
    match value {
        10_000_000.0.. => format!("{:.0}M", value / 1e6),
        10_000.0.. => format!("{:.0}k", value / 1e3),
        _ => format!("{value:.0}"),
    }
}

fn time(value: f64) -> String {
    duration(value as Millis)
}

fn server(readiness: &Readiness, version: &str, started_at: Millis, now: Millis) -> Markup {
    let memory = readiness.memory;
    html! {
        section {
            h2 { "This server" }
            dl.facts {
                dt { "Version" } dd { (version) ", started " (ago(started_at, now)) }
                dt { "Listens" }
                dd { @for listener in &readiness.listeners { span.fact { (listener.name) " " code { (listener.address) } } " " } }
                dt { "Disk" } dd { (size(readiness.disk.free)) " free; mail is taken down to " (size(readiness.disk.min_free)) }
                dt { "Memory for mail" } dd { (size(memory.used)) " of " (size(memory.limit)) }
                dt { "Name servers" }
                dd {
                    (match readiness.resolver {
                        ResolverState::Unknown => "not asked yet",
                        ResolverState::Answering => "answering",
                        ResolverState::Failing => "not answering",
                    })
                }
                @if !readiness.signing.is_empty() { dt { "Signs for" } dd { (readiness.signing.join(", ")) } }
            }
        }
    }
}

/// For other pages, which show the number of queued messages too.
pub(super) fn depth(queued: Option<u64>) -> Markup {
    html! { @match queued { Some(queued) => { (words::number(queued)) " in the queue" }, None => "being counted" } }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::admin::history::Reading;

    const NOW: Millis = 1_800_000_000_000;

    /// Ten messages every ten seconds, five of them put off, for two hours.
    fn history() -> History {
        let mut history = History::default();
        for look in (0..=720).rev() {
            let done = 720 - look;
            let (accepted, deferred, queued) = (done * 10, done * 5, Some(done));
            history.take(&Reading { at: NOW - look * 10_000, accepted, deferred, queued, ..Reading::default() });
        }
        history
    }

    #[test]
    fn a_chart_has_a_rate_for_each_point_of_its_time_and_no_more() {
        let history = history();
        let hour = Points::new(history.hour(), HOUR, NOW - 1);
        let rates = hour.rate(|sample| sample.accepted);
        assert_eq!((rates.len(), hour.from + hour.step * 120), (120, NOW));
        assert!(rates.iter().all(|rate| *rate == Some(60.0)), "{rates:?}");
        assert_eq!(hour.last(|sample| sample.queued).last(), Some(&Some(720.0)));
        assert!(hour.most(|sample| sample.p95).iter().all(Option::is_none), "nothing was delivered");

        let day = Points::new(history.day(), DAY, NOW - 1);
        let rates = day.rate(|sample| sample.deferred);
        assert_eq!(rates.iter().flatten().count(), 12, "two hours of ten minutes each");
        assert!(rates.iter().flatten().all(|rate| *rate == 30.0), "{rates:?}");
        assert!(rates.first().unwrap().is_none());
    }

    #[test]
    fn all_four_charts_are_drawn_of_it() {
        let drawn: String = charts(&history(), false, NOW - 1).into_iter().map(maud::PreEscaped::into_string).collect();
        for wanted in ["accepted: now 60, at most 60", "queued: now 720, at most 720", "put off: now 30", "half: now –"]
        {
            assert!(drawn.contains(wanted), "{wanted}");
        }
        assert_eq!(drawn.matches("<polyline").count(), 5);
    }
}
