//! What is around every page: head, navigation, search, what an action has to say.

use maud::{DOCTYPE, Markup, html};

use super::session::{Said, Visitor};
use super::{Dashboard, assets, words};
use crate::admin::Backend;

/// A place in the navigation, with its address and its key (after `g`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tab {
    Overview,
    Queue,
    Log,
    Destinations,
    Suppressions,
    Captured,
}

impl Tab {
    const ALL: [Tab; 6] = [Tab::Overview, Tab::Queue, Tab::Log, Tab::Destinations, Tab::Suppressions, Tab::Captured];

    fn parts(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Tab::Overview => ("Overview", "/", "o"),
            Tab::Queue => ("Queue", "/queue", "q"),
            Tab::Log => ("Log", "/log", "l"),
            Tab::Destinations => ("Destinations", "/destinations", "d"),
            Tab::Suppressions => ("Suppressions", "/suppressions", "s"),
            Tab::Captured => ("Captured", "/captured", "c"),
        }
    }
}

/// A page for somebody who is logged in.
pub(super) struct Page<'a> {
    pub title: &'a str,
    pub tab: Tab,
    /// Seconds after which the parts marked `data-live` are fetched anew.
    pub refresh: Option<u32>,
}

impl Page<'_> {
    pub(super) async fn around<B: Backend>(self, dashboard: &Dashboard<B>, visitor: &Visitor, body: Markup) -> Markup {
        let hostname = dashboard.backend.status().await.hostname;
        let said = dashboard.sessions.take_said(visitor);
        let refresh = self.refresh.map(|seconds| seconds.to_string());
        html! {
            (DOCTYPE)
            html lang="en" {
                (head(self.title, Some(&hostname)))
                body data-refresh=[refresh] {
                    a.skip href="#main" { "Skip to the content" }
                    header {
                        a.brand href="/" title="postrider" { (mark()) span { bdi { (hostname) } } }
                        nav aria-label="Pages" {
                            @for tab in Tab::ALL {
                                @let (name, path, key) = tab.parts();
                                @let current = (tab == self.tab).then_some("page");
                                a href=(path) aria-current=[current] data-key=(key) { (name) }
                            }
                        }
                        form.search role="search" action="/log" method="get" {
                            label.hidden for="search" { "Search the log by queue id, Message-ID or address" }
                            input #search type="search" name="q" placeholder="Id or address  ( / )" autocomplete="off";
                        }
                        form.inline method="post" action="/logout" {
                            (words::hidden(visitor, "/login"))
                            button.quiet type="submit" { "Log out" }
                        }
                    }
                    main #main tabindex="-1" {
                        @if let Some(Said { text, is_good }) = said {
                            @let tone = if is_good { "good" } else { "bad" };
                            p class={ "said " (tone) } role="status" { (text) }
                        }
                        (body)
                    }
                    (help())
                }
            }
        }
    }
}

/// A page for nobody in particular.
pub(super) fn bare(title: &str, body: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" { (head(title, None)) body { (body) } }
    }
}

fn head(title: &str, hostname: Option<&str>) -> Markup {
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            title { (title) " · " (hostname.unwrap_or("postrider")) }
            link rel="icon" href=(assets::icon()) type="image/svg+xml";
            link rel="stylesheet" href=(assets::style());
            script src=(assets::script()) defer {}
        }
    }
}

pub(super) fn mark() -> Markup {
    html! {
        svg.mark viewBox="0 0 32 32" aria-hidden="true" {
            rect width="32" height="32" rx="8" {}
            path d="M7 11.5 16 18l9-6.5M7 10.5h18v12H7z" {}
        }
    }
}

/// Shown by the script, for `?`.
fn help() -> Markup {
    let keys = [
        ("/", "search"),
        ("g o", "overview"),
        ("g q", "queue"),
        ("g l", "log"),
        ("g d", "destinations"),
        ("g s", "suppressions"),
        ("g c", "captured mail"),
        ("j, k", "next row, row before"),
        ("Enter", "open the row"),
        ("x", "select the row"),
        ("n", "next page"),
        ("?", "this help"),
    ];
    html! {
        dialog #help aria-labelledby="help-title" {
            h2 #help-title { "Keys" }
            dl.keys { @for (key, what) in keys { dt { kbd { (key) } } dd { (what) } } }
            form method="dialog" { button type="submit" { "Close" } }
        }
    }
}
