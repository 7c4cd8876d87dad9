//! The door: the token of `[admin]` for a cookie.
//!
//! A wrong token costs time, counts against the client as a wrong password does, and only so many are looked
//! at at once: behind a proxy, or on one machine, all clients look the same, and locking them out would lock
//! out the operator.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::Response;
use maud::html;
use tokio::sync::Semaphore;

use super::act::{Act, Form, is_foreign};
use super::answer::{Sorry, is_ours, page, see_other};
use super::session::{Perhaps, host, set_cookie};
use super::{Dashboard, frame};
use crate::admin::Backend;
use crate::secret;

/// Tokens that are looked at at once.
const AT_ONCE: usize = 4;

#[derive(Debug)]
pub(super) struct Gate(Semaphore);

impl Default for Gate {
    fn default() -> Gate {
        Gate(Semaphore::new(AT_ONCE))
    }
}

fn next_of(form: &Form) -> &str {
    form.get("next").filter(|next| is_ours(next)).unwrap_or("/")
}

pub(super) async fn show<B: Backend>(
    State(dashboard): State<Arc<Dashboard<B>>>,
    Perhaps(visitor): Perhaps,
    uri: Uri,
) -> Response {
    let form = Form::parse(uri.query().unwrap_or_default().as_bytes());
    match visitor {
        Some(_) => see_other(next_of(&form)),
        None => ask(&dashboard, next_of(&form), StatusCode::OK, None).await,
    }
}

async fn ask<B: Backend>(dashboard: &Dashboard<B>, next: &str, status: StatusCode, why: Option<&str>) -> Response {
    let hostname = dashboard.backend.status().await.hostname;
    let body = html! {
        main.alone {
            p.brand { (frame::mark()) "postrider" }
            h1 { "Log in to " bdi { (hostname) } }
            @if let Some(why) = why { p.said.bad role="alert" { (why) } }
            form.column method="post" action="/login" {
                input type="hidden" name="next" value=(next);
                // For password managers, which want a name beside a password.
                input hidden type="text" name="username" value="admin" autocomplete="username" tabindex="-1" aria-hidden="true";
                label for="token" { "Token" }
                input #token type="password" name="token" autocomplete="current-password" required autofocus
                    aria-describedby="hint";
                p #hint.muted { "It is the " code { "token" } " of " code { "[admin]" } " in the configuration file." }
                button.primary type="submit" { "Log in" }
            }
        }
    };
    page(status, frame::bare("Log in", body))
}

pub(super) async fn enter<B: Backend>(
    State(dashboard): State<Arc<Dashboard<B>>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Sorry> {
    let form = Form::parse(&body);
    let next = next_of(&form);
    if is_foreign(&headers) {
        let remedy = "open the login page itself; a proxy in front has to pass on the Host header";
        return Err(Sorry::new(StatusCode::FORBIDDEN, "the form came from another site", remedy));
    }
    let later = "too many wrong tokens; try again in a while";
    if dashboard.backend.may_log_in(peer.ip()).is_err() {
        return Ok(ask(&dashboard, next, StatusCode::TOO_MANY_REQUESTS, Some(later)).await);
    }
    let Ok(_place) = dashboard.logins.0.try_acquire() else {
        return Ok(ask(&dashboard, next, StatusCode::TOO_MANY_REQUESTS, Some(later)).await);
    };
    let token = form.get("token").unwrap_or_default();
    let wanted = dashboard.token.load();
    if !secret::same(token.as_bytes(), wanted.0.as_bytes()) {
        dashboard.backend.login_failed(peer.ip()).await;
        let why = "That is not the token of [admin].";
        return Ok(ask(&dashboard, next, StatusCode::UNAUTHORIZED, Some(why)).await);
    }
    let cookie = dashboard.sessions.begin(&wanted, &host(&headers), dashboard.backend.now()).ok_or_else(|| {
        let what = "the system gives no random bytes";
        Sorry::new(StatusCode::SERVICE_UNAVAILABLE, what, "try again; look into the system's log")
    })?;
    Ok(with_cookie(see_other(next), &headers, Some(&cookie)))
}

pub(super) async fn leave<B: Backend>(
    State(dashboard): State<Arc<Dashboard<B>>>,
    headers: HeaderMap,
    act: Act,
) -> Response {
    dashboard.sessions.end(&act.visitor);
    with_cookie(see_other("/login"), &headers, None)
}

fn with_cookie(mut response: Response, headers: &HeaderMap, cookie: Option<&str>) -> Response {
    if let Ok(value) = HeaderValue::from_str(&set_cookie(headers, cookie)) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    response
}
