//! The door: the token of `[admin]` for a cookie.
//!
//! A wrong token costs time, counts against the client as a wrong password does, and only so many are looked
//! at at once: behind a proxy, or on one machine, all clients look the same, and locking them out would lock
//! out the operator.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::Response;
use maud::html;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::act::{Act, Form, is_foreign};
use super::answer::{Sorry, is_ours, page, see_other};
use super::session::{Perhaps, host, set_cookie};
use super::{Dashboard, frame};
use crate::admin::Backend;
use crate::secret;

/// Tokens that are looked at at once.
const AT_ONCE: usize = 4;
/// Bytes of the form, and how long it may take to come: strangers send it, and each holds a connection meanwhile.
const FORM_BYTES_MAX: usize = 16 * 1024;
const FORM_TIME_MAX: Duration = Duration::from_secs(20);

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
    body: Body,
) -> Result<Response, Sorry> {
    let form = Form::parse(&read(body).await?);
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

async fn read(body: Body) -> Result<Bytes, Sorry> {
    let read = timeout(FORM_TIME_MAX, to_bytes(body, FORM_BYTES_MAX)).await.map_err(|_| {
        let what = format!("the form was not here within {} s", FORM_TIME_MAX.as_secs());
        Sorry::new(StatusCode::REQUEST_TIMEOUT, what, "log in again, over a faster connection")
    })?;
    read.map_err(|_| Sorry::new(StatusCode::PAYLOAD_TOO_LARGE, "the form is too large", "it takes the token alone"))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use hyper::body::Frame;

    use super::*;

    /// Of somebody who says that it will come.
    struct Never;

    impl hyper::body::Body for Never {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Pending
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_does_not_hold_a_connection_by_a_form_that_never_comes() {
        assert_eq!(read(Body::new(Never)).await.unwrap_err().status, StatusCode::REQUEST_TIMEOUT);
        let large = Body::from(vec![b'a'; FORM_BYTES_MAX + 1]);
        assert_eq!(read(large).await.unwrap_err().status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(read(Body::from("token=x")).await.unwrap(), "token=x");
    }
}
