//! README and the guides tell no lies: every configuration in them loads, every command is one, every key and every test
//! that is named is there, and no link leads nowhere. What programs in them do is in `guides_code.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod pages;
}

#[path = "guides/configuration.rs"]
mod configuration;
#[path = "guides/words.rs"]
mod words;

use support::pages::{Page, page, pages, root};

#[test]
fn no_link_leads_nowhere() {
    for Page { name, text } in pages() {
        let this = Page { name, text };
        for (place, target) in this.links() {
            if target.starts_with("https://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let folder = root().join(&this.name).parent().unwrap().to_owned();
            let there = if file.is_empty() { root().join(&this.name) } else { folder.join(file) };
            assert!(there.exists(), "{place}: {target}");
            if !anchor.is_empty() {
                let named = there.canonicalize().unwrap();
                let named = named.strip_prefix(root().canonicalize().unwrap()).unwrap();
                let anchors = page(named.to_str().unwrap()).anchors();
                assert!(anchors.iter().any(|there| there == anchor), "{place}: no {anchor} in {anchors:?}");
            }
        }
    }
}

/// Whoever opens README finds them all.
#[test]
fn every_guide_is_linked_from_readme() {
    let readme = page("README.md");
    for guide in pages().iter().skip(1) {
        assert!(readme.links().iter().any(|(_, target)| *target == guide.name), "{}", guide.name);
    }
}

/// What it is, the two commands, the configuration and the promises are on the first screen.
#[test]
fn the_first_screen_has_what_a_newcomer_needs() {
    const SCREEN_LINES: usize = 50;
    let readme = page("README.md");
    let screen: String = readme.text.lines().take(SCREEN_LINES).map(|line| format!("{line}\n")).collect();
    for wanted in ["make run", "make test", "hostname = ", "1. **250 means on disk.**", "4. **"] {
        assert!(screen.contains(wanted), "{wanted}");
    }
}
