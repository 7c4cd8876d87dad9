//! What every page is sent with, and the pages that say why there is no other.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use maud::{Markup, html};

use super::frame;
use crate::admin::{Complaint, Trouble};

/// Nothing from elsewhere, nothing inline.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
                      frame-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// With every page. `same-origin`, not `no-referrer`: with the latter a browser says of our own forms that they
/// come from nowhere.
const HEADERS: [(HeaderName, &str); 7] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// A whole page.
pub(super) fn page(status: StatusCode, page: Markup) -> Response {
    guarded((status, Html(page.into_string())).into_response())
}

/// Adds the headers; those that are there stay.
pub(super) fn guarded(mut response: Response) -> Response {
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// To another page, by GET.
pub(super) fn see_other(to: &str) -> Response {
    let to = HeaderValue::from_str(to).unwrap_or(HeaderValue::from_static("/"));
    let mut response = StatusCode::SEE_OTHER.into_response();
    response.headers_mut().insert(header::LOCATION, to);
    guarded(response)
}

/// A page of ours, and no other place: what `next` and `back` may name.
pub(super) fn is_ours(path: &str) -> bool {
    let mut bytes = path.bytes();
    // `//host` and `/\host` are elsewhere.
    bytes.next() == Some(b'/')
        && !matches!(bytes.next(), Some(b'/' | b'\\'))
        && path.bytes().all(|b| (33..127).contains(&b))
}

/// Why there is no page, and what to do.
#[derive(Debug)]
pub(super) struct Sorry {
    pub status: StatusCode,
    pub what: String,
    pub remedy: String,
}

impl Sorry {
    pub(super) fn new(status: StatusCode, what: impl Into<String>, remedy: impl Into<String>) -> Sorry {
        Sorry { status, what: what.into(), remedy: remedy.into() }
    }

    pub(super) fn not_found(what: impl Into<String>, remedy: impl Into<String>) -> Sorry {
        Sorry::new(StatusCode::NOT_FOUND, what, remedy)
    }

    pub(super) fn bad(what: impl Into<String>, remedy: impl Into<String>) -> Sorry {
        Sorry::new(StatusCode::BAD_REQUEST, what, remedy)
    }
}

impl From<Trouble> for Sorry {
    fn from(trouble: Trouble) -> Sorry {
        Sorry::new(StatusCode::SERVICE_UNAVAILABLE, trouble.0, "try again; the server's log says more")
    }
}

impl From<Complaint> for Sorry {
    fn from(complaint: Complaint) -> Sorry {
        let status = if complaint.of_wish { StatusCode::BAD_REQUEST } else { StatusCode::CONFLICT };
        Sorry::new(status, complaint.what, complaint.remedy)
    }
}

impl IntoResponse for Sorry {
    fn into_response(self) -> Response {
        let title = match self.status {
            StatusCode::NOT_FOUND => "Not found",
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => "Refused",
            _ => "That did not work",
        };
        let body = html! {
            main.alone {
                h1 { (title) }
                p { (self.what) }
                p.muted { (self.remedy) }
                p { a.button href="/" { "To the overview" } }
            }
        };
        page(self.status, frame::bare(title, body))
    }
}

/// A field of the request, if it is text.
pub(super) fn field(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_pages_are_gone_back_to() {
        for path in ["/", "/queue?to=a%40b&after=0", "/messages/06jz3k5c00000"] {
            assert!(is_ours(path), "{path}");
        }
        for path in
            ["", "queue", "//evil.example/", "/\\evil.example", "https://evil.example", "/a\r\nSet-Cookie: x", "/a b"]
        {
            assert!(!is_ours(path), "{path}");
        }
    }
}
