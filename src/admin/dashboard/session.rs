//! Who is logged in: a cookie with a random name for a session in memory. A restart ends them all.
//!
//! A session holds for the host name that it was begun under: a page of somebody else's whose name
//! leads to this server (DNS rebinding) has no cookie of it, and would not be served with one.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Dashboard;
use super::answer::{Sorry, field, see_other};
use crate::admin::Backend;
use crate::clock::Millis;
use crate::config::Secret;

/// Sessions at once; the oldest gives way.
const SESSIONS_MAX: usize = 100;
/// A session lasts no longer, in milliseconds, whatever is done in it.
const LIFE: Millis = 12 * 3_600_000;
/// Nor longer than this without a request.
const IDLE: Millis = 4 * 3_600_000;
/// Begins the name of the cookie; the port follows, because browsers tell the cookies of one host's servers apart
/// by nothing else.
const COOKIE: &str = "postrider_session";
/// Random bytes of a cookie, and of the token in forms.
const RANDOM_BYTES: usize = 32;

#[derive(Clone, Debug)]
struct Session {
    csrf: String,
    host: String,
    begun: Millis,
    seen: Millis,
    /// What the next page has to say.
    said: Option<Said>,
}

/// What came of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub text: String,
    pub is_good: bool,
}

/// By the digest of the cookie, so that a look-up tells nothing of it by its time; and of the token that it was given
/// for, so that nobody stays in with one that has been changed.
type Key = [u8; 32];

#[derive(Debug, Default)]
struct Inner {
    sessions: HashMap<Key, Session>,
    /// In the order of their beginning.
    order: VecDeque<Key>,
}

#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<Inner>);

/// Somebody who is logged in.
#[derive(Clone, Debug)]
pub(super) struct Visitor {
    key: Key,
    /// For the forms.
    pub csrf: String,
}

fn random() -> Option<String> {
    let mut bytes = [0; RANDOM_BYTES];
    getrandom::fill(&mut bytes).ok()?;
    Some(URL_SAFE_NO_PAD.encode(bytes))
}

fn key(cookie: &str, token: &Secret) -> Key {
    let mut key = [0; 32];
    let digested = digest(&SHA256, &[cookie.as_bytes(), b"\n", token.0.as_bytes()].concat());
    key.iter_mut().zip(digested.as_ref()).for_each(|(to, from)| *to = *from);
    key
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change is complete in itself, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cookie of a new one. None: the system gives no random bytes.
    pub(super) fn begin(&self, token: &Secret, host: &str, now: Millis) -> Option<String> {
        let (cookie, csrf) = (random()?, random()?);
        let key = key(&cookie, token);
        let mut inner = self.lock();
        while inner.order.len() >= SESSIONS_MAX {
            let Some(oldest) = inner.order.pop_front() else { break };
            inner.sessions.remove(&oldest);
        }
        inner.order.push_back(key);
        inner.sessions.insert(key, Session { csrf, host: host.to_owned(), begun: now, seen: now, said: None });
        Some(cookie)
    }

    fn find(&self, token: &Secret, cookie: &str, host: &str, now: Millis) -> Option<Visitor> {
        let key = key(cookie, token);
        let mut inner = self.lock();
        let session = inner.sessions.get_mut(&key)?;
        if now.saturating_sub(session.begun) >= LIFE || now.saturating_sub(session.seen) >= IDLE {
            inner.remove(&key);
            return None;
        }
        if session.host != host {
            return None;
        }
        session.seen = session.seen.max(now);
        Some(Visitor { key, csrf: session.csrf.clone() })
    }

    pub(super) fn end(&self, visitor: &Visitor) {
        self.lock().remove(&visitor.key);
    }

    /// To be said by the visitor's next page.
    pub(super) fn say(&self, visitor: &Visitor, said: Said) {
        if let Some(session) = self.lock().sessions.get_mut(&visitor.key) {
            session.said = Some(said);
        }
    }

    pub(super) fn take_said(&self, visitor: &Visitor) -> Option<Said> {
        self.lock().sessions.get_mut(&visitor.key)?.said.take()
    }
}

impl Inner {
    fn remove(&mut self, key: &Key) {
        self.sessions.remove(key);
        self.order.retain(|known| known != key);
    }
}

/// The host that the browser has asked for.
pub(super) fn host(headers: &HeaderMap) -> String {
    field(headers, header::HOST).unwrap_or_default().to_ascii_lowercase()
}

fn cookie_name(headers: &HeaderMap) -> String {
    let host = host(headers);
    match host.rsplit_once(':').map(|(_, port)| port) {
        Some(port) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => format!("{COOKIE}_{port}"),
        _ => COOKIE.to_owned(),
    }
}

/// Does a proxy in front say that the browser came by https? Who lies about that harms itself.
fn is_https(headers: &HeaderMap) -> bool {
    field(headers, "x-forwarded-proto").is_some_and(|proto| proto.eq_ignore_ascii_case("https"))
}

/// `Set-Cookie` for this cookie, or to forget it.
pub(super) fn set_cookie(headers: &HeaderMap, cookie: Option<&str>) -> String {
    let secure = if is_https(headers) { "; Secure" } else { "" };
    let (value, age) = cookie.map_or(("", 0), |cookie| (cookie, LIFE / 1000));
    format!("{}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age}{secure}", cookie_name(headers))
}

/// The cookies of that name; there may be more than one, set under another path or by another server of the name.
fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let own = cookie_name(headers);
    pairs.filter(move |(name, _)| *name == own).map(|(_, value)| value)
}

pub(super) fn visitor<B: Backend>(dashboard: &Dashboard<B>, headers: &HeaderMap) -> Option<Visitor> {
    let (host, now, token) = (host(headers), dashboard.backend.now(), dashboard.token.load());
    cookies(headers).find_map(|cookie| dashboard.sessions.find(&token, cookie, &host, now))
}

/// Nobody who is logged in: to the login page and back, or refused where that makes no sense.
pub(super) fn stranger(method: &Method, uri: &Uri) -> Response {
    if *method != Method::GET {
        let what = "the session is over";
        return Sorry::new(StatusCode::UNAUTHORIZED, what, "log in, and do it again").into_response();
    }
    match uri.path_and_query().map(|path| path.as_str()).filter(|path| *path != "/") {
        None => see_other("/login"),
        Some(path) => {
            let next: String = form_urlencoded::byte_serialize(path.as_bytes()).collect();
            see_other(&format!("/login?next={next}"))
        }
    }
}

impl<B: Backend> FromRequestParts<Arc<Dashboard<B>>> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, dashboard: &Arc<Dashboard<B>>) -> Result<Visitor, Response> {
        visitor(dashboard, &parts.headers).ok_or_else(|| stranger(&parts.method, &parts.uri))
    }
}

/// Somebody who is logged in, or not.
pub(super) struct Perhaps(pub Option<Visitor>);

impl<B: Backend> FromRequestParts<Arc<Dashboard<B>>> for Perhaps {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, dashboard: &Arc<Dashboard<B>>) -> Result<Perhaps, Infallible> {
        Ok(Perhaps(visitor(dashboard, &parts.headers)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const START: Millis = 1_800_000_000_000;

    fn token() -> Secret {
        Secret("of admin".into())
    }

    #[test]
    fn another_token_ends_a_session() {
        let sessions = Sessions::default();
        let cookie = sessions.begin(&token(), "a", START).unwrap();
        assert!(sessions.find(&Secret("another".into()), &cookie, "a", START).is_none());
        assert!(sessions.find(&token(), &cookie, "a", START).is_some());
    }

    #[test]
    fn a_session_ends_with_its_time_and_when_it_is_idle() {
        let sessions = Sessions::default();
        let begin = || sessions.begin(&token(), "a:1", START).unwrap();
        let (idle, busy) = (begin(), begin());
        let mut now = START;
        while now + IDLE / 2 < START + LIFE {
            now += IDLE / 2;
            assert!(sessions.find(&token(), &busy, "a:1", now).is_some(), "{}", now - START);
        }
        assert!(sessions.find(&token(), &busy, "a:1", START + LIFE).is_none());
        assert!(sessions.find(&token(), &idle, "a:1", START + IDLE).is_none());
        assert!(sessions.lock().sessions.is_empty() && sessions.lock().order.is_empty());
    }

    #[test]
    fn a_cookie_is_for_one_host_and_nobody_guesses_it() {
        let sessions = Sessions::default();
        let cookie = sessions.begin(&token(), "127.0.0.1:8025", START).unwrap();
        assert!(cookie.len() >= 43);
        assert!(sessions.find(&token(), &cookie, "127.0.0.1:8025", START).is_some());
        assert!(sessions.find(&token(), &cookie, "evil.example", START).is_none());
        assert!(sessions.find(&token(), "", "127.0.0.1:8025", START).is_none());
        assert_ne!(sessions.begin(&token(), "a", START), sessions.begin(&token(), "a", START));
    }

    #[test]
    fn the_oldest_gives_way() {
        let sessions = Sessions::default();
        let cookies: Vec<String> = (0..=SESSIONS_MAX).map(|_| sessions.begin(&token(), "a", START).unwrap()).collect();
        assert!(sessions.find(&token(), &cookies[0], "a", START).is_none());
        assert!(cookies[1..].iter().all(|cookie| sessions.find(&token(), cookie, "a", START).is_some()));
    }

    #[test]
    fn what_is_said_is_said_once() {
        let sessions = Sessions::default();
        let cookie = sessions.begin(&token(), "a", START).unwrap();
        let visitor = sessions.find(&token(), &cookie, "a", START).unwrap();
        let said = Said { text: "done".into(), is_good: true };
        sessions.say(&visitor, said.clone());
        assert_eq!((sessions.take_said(&visitor), sessions.take_said(&visitor)), (Some(said), None));
        sessions.end(&visitor);
        assert!(sessions.find(&token(), &cookie, "a", START).is_none());
    }

    #[test]
    fn cookies_are_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, "a=b; postrider_session=one".parse().unwrap());
        headers.append(header::COOKIE, "postrider_session=two;x=y".parse().unwrap());
        assert_eq!(cookies(&headers).collect::<Vec<_>>(), ["one", "two"]);
        assert!(!set_cookie(&headers, Some("c")).contains("Secure"));
        let mut other = headers.clone();
        other.insert(header::HOST, "mail.example:8025".parse().unwrap());
        assert_eq!(cookies(&other).count(), 0);
        assert!(set_cookie(&other, None).starts_with("postrider_session_8025=; "));
        headers.insert("x-forwarded-proto", "https".parse().unwrap());
        assert_eq!(
            set_cookie(&headers, Some("c")),
            "postrider_session=c; Path=/; HttpOnly; SameSite=Strict; Max-Age=43200; Secure"
        );
    }
}
