//! The pages for people: how it goes, the queue, a message's story, destinations, suppressions, captured mail.
//!
//! Made on the server, complete without JavaScript; a small script refreshes what changes and adds the
//! keyboard. Everything that a message or a peer has written goes through `maud`, which escapes, and
//! [`crate::admin::text::clean`]; the content security policy ([`answer`]) allows no inline script
//! and nothing from elsewhere.
//!
//! Who is let in: `session` (a cookie in exchange for the token), and for whatever changes something `act`
//! (a token in the form, and a browser that says that the form was ours). The cookie opens these pages
//! only, never the API.
//!
//! No page looks at the whole queue: each has its bound.

mod act;
mod answer;
mod assets;
mod captured;
mod chart;
mod destinations;
mod frame;
mod log;
mod login;
mod message;
mod overview;
mod queue;
mod session;
mod suppressions;
mod words;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::middleware::map_response;
use axum::routing::{Router, get, post};
use tokio::sync::Semaphore;

use super::Backend;
use crate::config::Secret;
use crate::current::Current;

/// Bytes of a form: a page of ids fits in.
const FORM_BYTES_MAX: usize = 256 * 1024;
/// Captured messages that are read into memory at once; more wait.
const READERS_MAX: usize = 4;

/// What the pages share.
struct Dashboard<B> {
    backend: Arc<B>,
    token: Current<Secret>,
    sessions: session::Sessions,
    logins: login::Gate,
    /// Captured messages that are read into memory at once.
    readers: Semaphore,
}

/// The pages, for whoever shows the token once.
pub(super) fn router<B: Backend>(backend: Arc<B>, token: Current<Secret>) -> Router {
    let sessions = session::Sessions::default();
    let (logins, readers) = (login::Gate::default(), Semaphore::new(READERS_MAX));
    let dashboard = Arc::new(Dashboard { backend, token, sessions, logins, readers });
    Router::new()
        .route("/", get(overview::show::<B>))
        .route("/login", get(login::show::<B>).post(login::enter::<B>))
        .route("/logout", post(login::leave::<B>))
        .route("/assets/{name}", get(assets::serve))
        .route("/queue", get(queue::list::<B>))
        .route("/queue/{action}", post(queue::change::<B>))
        .route("/messages/{id}", get(message::show::<B>))
        .route("/log", get(log::search::<B>))
        .route("/destinations", get(destinations::show::<B>))
        .route("/suspend", post(destinations::suspend::<B>))
        .route("/resume", post(destinations::resume::<B>))
        .route("/suppressions", get(suppressions::list::<B>))
        .route("/suppressions/add", post(suppressions::add::<B>))
        .route("/suppressions/remove", post(suppressions::remove::<B>))
        .merge(captured::routes::<B>())
        .layer(DefaultBodyLimit::max(FORM_BYTES_MAX))
        .layer(map_response(|response| async { answer::guarded(response) }))
        .with_state(dashboard)
}
