//! Who asks over TCP: the operator, by the token; an account, by its name and password, for its own
//! messages only. On the socket whoever can connect is the operator.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Backend;
use super::api::ApiError;
use crate::config::Secret;
use crate::current::Current;
use crate::secret;
use crate::smtp::reply::Severity;

/// What may be asked without saying who asks: nothing in the answers is about mail, or out of the configuration's files.
const OPEN: [&str; 3] = ["/healthz", "/readyz", "/openapi.json"];
/// What an account may ask for.
const OF_ACCOUNTS: (Method, &str) = (Method::POST, "/api/v1/messages");

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Whoever runs this server.
    Operator,
    Account {
        name: String,
        /// Recipients of one message.
        max_recipients: usize,
    },
}

/// Over TCP, and nobody was asked who it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stranger;

/// What it takes to tell.
pub(super) struct Gatekeeper<B> {
    pub backend: Arc<B>,
    pub token: Current<Secret>,
}

/// Lets a request through with its [`Caller`], or answers it.
pub(super) async fn admit<B: Backend>(
    State(keeper): State<Arc<Gatekeeper<B>>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    if OPEN.contains(&request.uri().path()) {
        request.extensions_mut().insert(Stranger);
        return next.run(request).await;
    }
    match keeper.caller(request.headers(), peer.ip()).await {
        Ok(caller) => {
            let asked = (request.method().clone(), request.uri().path());
            if matches!(caller, Caller::Account { .. }) && asked != OF_ACCOUNTS {
                let remedy = "an account may POST /api/v1/messages; all else takes the token of [admin]";
                let error = "this is for whoever runs the server";
                return ApiError::new(StatusCode::FORBIDDEN, error, remedy).into_response();
            }
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

impl<B: Backend> Gatekeeper<B> {
    async fn caller(&self, headers: &HeaderMap, peer: IpAddr) -> Result<Caller, Unknown> {
        match credentials(headers) {
            None => Err(Unknown::new("the request says nothing of who asks")),
            Some(Credentials::Token(token)) => {
                self.backend.may_log_in(peer).map_err(Unknown::later)?;
                if secret::same(token.as_bytes(), self.token.load().0.as_bytes()) {
                    return Ok(Caller::Operator);
                }
                self.backend.login_failed(peer).await;
                Err(Unknown::new("the token is not the one of [admin]"))
            }
            Some(Credentials::Password { name, password }) => {
                let found = self.backend.log_in(peer, name, password).await;
                found.map_err(|refusal| match refusal.reply.severity() {
                    Severity::Permanent => Unknown::new("there is no such account, or its password is another"),
                    Severity::Transient | Severity::Positive => Unknown::later(refusal),
                })
            }
        }
    }
}

enum Credentials {
    Token(String),
    Password { name: String, password: Secret },
}

/// RFC 6750 2.1, RFC 7617 2.
fn credentials(headers: &HeaderMap) -> Option<Credentials> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Credentials::Token(rest.to_owned()));
    }
    let decoded = String::from_utf8(STANDARD.decode(rest).ok()?).ok()?;
    let (name, password) = decoded.split_once(':').filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    Some(Credentials::Password { name: name.to_owned(), password: Secret(password.to_owned()) })
}

/// Why nobody is let through.
struct Unknown {
    status: StatusCode,
    why: String,
}

impl Unknown {
    fn new(why: &str) -> Unknown {
        Unknown { status: StatusCode::UNAUTHORIZED, why: why.to_owned() }
    }

    /// Too many wrong ones, or trouble of our own.
    fn later(refusal: crate::smtp::reply::Refusal) -> Unknown {
        let status = match refusal.reply.code {
            421 => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Unknown { status, why: refusal.reply.text.into_owned() }
    }
}

impl IntoResponse for Unknown {
    fn into_response(self) -> Response {
        let remedy = match self.status {
            StatusCode::UNAUTHORIZED => {
                "Authorization: Bearer TOKEN with the token of [admin]; to submit, also Basic with an account's name and password"
            }
            _ => "try again later",
        };
        let mut response = ApiError::new(self.status, self.why, remedy).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let ways =
                HeaderValue::from_static("Bearer realm=\"postrider\", Basic realm=\"postrider\", charset=\"UTF-8\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, ways);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(value: &str) -> Option<(String, String)> {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        credentials(&headers).map(|credentials| match credentials {
            Credentials::Token(token) => (String::new(), token),
            Credentials::Password { name, password } => (name, password.0),
        })
    }

    #[test]
    fn both_schemes_are_read_and_nothing_else() {
        let pair = |name: &str, rest: &str| Some((name.to_owned(), rest.to_owned()));
        assert_eq!(read("Bearer abc"), pair("", "abc"));
        assert_eq!(read("bEARER  abc "), pair("", "abc"));
        assert_eq!(read("Basic c2hvcDpwOmFzcw=="), pair("shop", "p:ass"));
        for other in ["Basic", "Basic ???", "Basic c2hvcA==", "Digest abc", "abc", "", "Digest c2hvcDpwOmFzcw=="] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
