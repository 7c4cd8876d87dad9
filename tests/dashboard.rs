//! The pages for people: who is let in, what they show, what they do and refuse; over HTTP (`pages`), and with
//! Debian's Chromium in front (`browser`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "dashboard/browser.rs"]
mod browser;
#[path = "support/client.rs"]
mod client;
#[path = "dashboard/house.rs"]
mod house;
#[path = "dashboard/pages.rs"]
mod pages;
#[path = "support/server.rs"]
mod server;
#[path = "support/zone.rs"]
mod zone;
