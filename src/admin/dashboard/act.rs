//! Whatever changes something comes as a form of ours: from somebody who is logged in, with the token of the
//! session in it, and from a browser that does not say that it was another site's.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Dashboard;
use super::answer::{Sorry, field, is_ours, see_other};
use super::session::{Said, Visitor, host, stranger, visitor};
use crate::admin::Backend;
use crate::secret;

/// The field with the token.
pub(super) const CSRF: &str = "csrf";
/// The field that says which page comes next.
pub(super) const BACK: &str = "back";

/// The fields of a form, in their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    pub(super) fn parse(bytes: &[u8]) -> Form {
        Form(form_urlencoded::parse(bytes).map(|(name, value)| (name.into_owned(), value.into_owned())).collect())
    }

    /// The first of that name that is not empty, trimmed.
    pub(super) fn get<'a>(&'a self, name: &str) -> Option<&'a str> {
        self.all(name).next()
    }

    pub(super) fn all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        let values = self.0.iter().filter(move |(own, _)| own == name).map(|(_, value)| value.trim());
        values.filter(|value| !value.is_empty())
    }
}

/// A form that may change something.
pub(super) struct Act {
    pub visitor: Visitor,
    pub form: Form,
}

impl Act {
    /// Says what came of it on the page that the form was on.
    pub(super) fn done<B: Backend>(
        &self,
        dashboard: &Dashboard<B>,
        text: impl Into<String>,
        is_good: bool,
    ) -> Response {
        dashboard.sessions.say(&self.visitor, Said { text: text.into(), is_good });
        see_other(self.form.get(BACK).filter(|back| is_ours(back)).unwrap_or("/"))
    }
}

/// Is the form another site's? Browsers say so: all of today by `Sec-Fetch-Site`, older ones by `Origin`.
pub(super) fn is_foreign(headers: &HeaderMap) -> bool {
    if let Some(site) = field(headers, "sec-fetch-site") {
        return site != "same-origin";
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    // The scheme is not compared: a proxy in front may have another.
    let authority = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
    authority.is_none_or(|authority| !authority.eq_ignore_ascii_case(&host(headers)))
}

impl<B: Backend> FromRequest<Arc<Dashboard<B>>> for Act {
    type Rejection = Response;

    async fn from_request(request: Request, dashboard: &Arc<Dashboard<B>>) -> Result<Act, Response> {
        let Some(visitor) = visitor(dashboard, request.headers()) else {
            return Err(stranger(request.method(), request.uri()));
        };
        if is_foreign(request.headers()) {
            let remedy = "use the dashboard's own pages; a proxy in front has to pass on the Host header";
            return Err(Sorry::new(StatusCode::FORBIDDEN, "the form came from another site", remedy).into_response());
        }
        let bytes = Bytes::from_request(request, dashboard).await.map_err(IntoResponse::into_response)?;
        let form = Form::parse(&bytes);
        if !form.get(CSRF).is_some_and(|token| secret::same(token.as_bytes(), visitor.csrf.as_bytes())) {
            let what = "the form has not the token of this session";
            let remedy = "load the page again, and do it once more";
            return Err(Sorry::new(StatusCode::FORBIDDEN, what, remedy).into_response());
        }
        Ok(Act { visitor, form })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn forms_of_other_sites_are_told_by_what_the_browser_says() {
        let foreign = |fields: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, "mail.example:8025".parse().unwrap());
            fields.iter().for_each(|(name, value)| {
                headers.insert(*name, value.parse().unwrap());
            });
            is_foreign(&headers)
        };
        assert!(!foreign(&[]));
        assert!(!foreign(&[("origin", "http://mail.example:8025")]));
        assert!(!foreign(&[("origin", "https://MAIL.example:8025")]));
        assert!(!foreign(&[("sec-fetch-site", "same-origin"), ("origin", "https://mail.example")]));
        for fields in [
            [("sec-fetch-site", "cross-site"), ("origin", "http://mail.example:8025")],
            [("sec-fetch-site", "same-site"), ("origin", "http://mail.example:8025")],
            [("sec-fetch-site", "none"), ("origin", "http://mail.example:8025")],
        ] {
            assert!(foreign(&fields), "{fields:?}");
        }
        for origin in
            ["null", "http://evil.example", "http://mail.example", "http://mail.example:8025.evil.example", "\u{ff}"]
        {
            assert!(foreign(&[("origin", origin)]), "{origin}");
        }
    }

    #[test]
    fn a_form_is_read() {
        let form = Form::parse(b"id=a&id=b&to=+x%40y.example+&empty=&csrf=t");
        assert_eq!(form.all("id").collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((form.get("to"), form.get("empty"), form.get("none")), (Some("x@y.example"), None, None));
    }
}
