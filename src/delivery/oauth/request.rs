//! One request to a token endpoint (RFC 6749 4.4 and 6), and what its answer means.

use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Client, StatusCode, Url};
use serde::Deserialize;

use super::Resource;
use crate::clock::Millis;
use crate::config::{Oauth, OauthFlow, OauthProvider};
use crate::delivery::http;

/// The whole exchange takes no longer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of an answer that are read; tokens have some thousand.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Characters of a server's explanation that are passed on.
const EXPLANATION_CHARS_MAX: usize = 200;
/// RFC 6749 5.1 only recommends to say it.
const LIFE_SECS: u64 = 3600;
const LIFE_SECS_MAX: u64 = 24 * 3600;

/// What a server gave. Not to be shown.
pub struct Granted {
    pub access: String,
    pub life_secs: u64,
    /// In place of the one that was shown.
    pub refresh: Option<String>,
}

/// Why it gave nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It does not accept what was shown (`invalid_grant`).
    Grant(String),
    /// It wants no such request from us, or is no token endpoint: a person has to act.
    Request(String),
    /// It may do so later, not before so many seconds.
    Later(String, Option<u64>),
}

/// `refresh`: the token to show, where the flow has one.
pub async fn ask(
    client: &Client,
    oauth: &Oauth,
    resource: Resource,
    refresh: Option<&str>,
    now: Millis,
) -> Result<Granted, Denied> {
    let place = place(&oauth.token_url);
    let request = client
        .post(&oauth.token_url)
        .timeout(TIMEOUT)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(ACCEPT, "application/json")
        .body(form(oauth, resource, refresh));
    let mut response = request.send().await.map_err(|error| {
        let what = match () {
            () if error.is_timeout() => format!("no answer within {} s", TIMEOUT.as_secs()),
            () => http::innermost(&error),
        };
        Denied::Later(format!("{place} cannot be reached: {what}"), None)
    })?;
    let retry_after = http::retry_after(response.headers(), now);
    let status = response.status();
    let body = http::beginning(&mut response, ANSWER_BYTES_MAX).await;
    if status == StatusCode::OK {
        return granted(&body).ok_or_else(|| {
            Denied::Request(format!("{place} answered with something that is no token; is token_url right?"))
        });
    }
    let secrets = [refresh, oauth.client_secret.as_ref().map(|secret| secret.0.as_str())];
    Err(denied(&place, status, &body, &secrets, retry_after))
}

/// Host and port of a URL, for people.
pub fn place(url: &str) -> String {
    let parsed = Url::parse(url).ok();
    let host = parsed.as_ref().and_then(Url::host_str).unwrap_or("the token endpoint");
    match parsed.as_ref().and_then(Url::port) {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

fn form(oauth: &Oauth, resource: Resource, refresh: Option<&str>) -> String {
    let mut fields = vec![("client_id", oauth.client_id.as_str())];
    if let Some(secret) = &oauth.client_secret {
        fields.push(("client_secret", &secret.0));
    }
    match (&oauth.flow, refresh) {
        (OauthFlow::RefreshToken(_), Some(refresh)) => {
            fields.extend([("grant_type", "refresh_token"), ("refresh_token", refresh)]);
        }
        _ => fields.push(("grant_type", "client_credentials")),
    }
    let scope = oauth.scope.as_deref().or(scope(oauth, resource));
    fields.extend(scope.map(|scope| ("scope", scope)));
    let mut text = String::new();
    for (name, value) in fields {
        text += if text.is_empty() { "" } else { "&" };
        text += name;
        text.push('=');
        push_encoded(&mut text, value);
    }
    text
}

/// application/x-www-form-urlencoded, with everything encoded that may be.
fn push_encoded(text: &mut String, value: &str) {
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => text.push(char::from(byte)),
            b' ' => text.push('+'),
            other => *text += &format!("%{other:02X}"),
        }
    }
}

/// A token is for one resource: one for Graph is worth nothing at the SMTP server, and the other way round.
/// Google has it in the refresh token.
fn scope(oauth: &Oauth, resource: Resource) -> Option<&'static str> {
    match (oauth.provider, &oauth.flow, resource) {
        (OauthProvider::Google, ..) => None,
        (_, OauthFlow::ClientCredentials, Resource::Smtp | Resource::Imap | Resource::Pop3) => {
            Some("https://outlook.office365.com/.default")
        }
        (_, OauthFlow::ClientCredentials, Resource::Graph) => Some("https://graph.microsoft.com/.default"),
        (_, OauthFlow::RefreshToken(_), Resource::Smtp) => Some("https://outlook.office.com/SMTP.Send offline_access"),
        (_, OauthFlow::RefreshToken(_), Resource::Imap) => {
            Some("https://outlook.office.com/IMAP.AccessAsUser.All offline_access")
        }
        (_, OauthFlow::RefreshToken(_), Resource::Pop3) => {
            Some("https://outlook.office.com/POP.AccessAsUser.All offline_access")
        }
        (_, OauthFlow::RefreshToken(_), Resource::Graph) => {
            Some("https://graph.microsoft.com/Mail.Send offline_access")
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    #[serde(default)]
    token_type: Option<String>,
    #[serde(default)]
    expires_in: Option<serde_json::Value>,
    #[serde(default)]
    refresh_token: Option<String>,
}

fn granted(body: &[u8]) -> Option<Granted> {
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let is_token = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let is_bearer = answer.token_type.is_none_or(|kind| kind.eq_ignore_ascii_case("bearer"));
    // Some write the number as a string.
    let life = answer.expires_in.and_then(|life| life.as_u64().or_else(|| life.as_str()?.parse().ok()));
    let life_secs = life.unwrap_or(LIFE_SECS).min(LIFE_SECS_MAX);
    let refresh = answer.refresh_token.filter(|token| is_token(token));
    (is_bearer && is_token(&answer.access_token)).then_some(Granted { access: answer.access_token, life_secs, refresh })
}

#[derive(Default, Deserialize)]
struct Complaint {
    #[serde(default)]
    error: String,
    #[serde(default)]
    error_description: String,
}

fn denied(place: &str, status: StatusCode, body: &[u8], secrets: &[Option<&str>], retry_after: Option<u64>) -> Denied {
    let complaint: Complaint = serde_json::from_slice(body).unwrap_or_default();
    let is_repeated = |text: &str| secrets.iter().flatten().any(|secret| text.contains(secret));
    let mut said = status.to_string();
    for part in [&complaint.error, &complaint.error_description] {
        // Before it is cut: of a long secret the beginning would be left.
        let part = http::one_line(part.as_bytes(), ANSWER_BYTES_MAX);
        if !part.is_empty() && !is_repeated(&part) {
            said += ": ";
            said.extend(part.chars().take(EXPLANATION_CHARS_MAX));
        }
    }
    let text = format!("{place} answered {said}");
    let passes = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
    match complaint.error.as_str() {
        "temporarily_unavailable" | "server_error" => Denied::Later(text, retry_after),
        _ if passes => Denied::Later(text, retry_after),
        "invalid_grant" => Denied::Grant(text),
        _ => Denied::Request(text),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn answers_are_read_with_care() {
        let life = |body: &str| granted(body.as_bytes()).map(|granted| granted.life_secs);
        assert_eq!(life(r#"{"access_token":"t","token_type":"bearer","expires_in":60}"#), Some(60));
        assert_eq!(life(r#"{"access_token":"t","expires_in":"60"}"#), Some(60));
        assert_eq!(life(r#"{"access_token":"t","expires_in":-1}"#), Some(LIFE_SECS));
        assert_eq!(life(r#"{"access_token":"t","expires_in":1e300}"#), Some(LIFE_SECS));
        assert_eq!(life(r#"{"access_token":"t","expires_in":9999999999}"#), Some(LIFE_SECS_MAX));
        for none in ["", "<html>", "{}", r#"{"access_token":""}"#, r#"{"access_token":"a b"}"#] {
            assert_eq!(life(none), None, "{none}");
        }
        assert_eq!(life(r#"{"access_token":"t","token_type":"mac"}"#), None);
    }

    #[test]
    fn a_form_keeps_what_it_is_given_apart() {
        let mut text = String::new();
        push_encoded(&mut text, "a&b=c d+é~");
        assert_eq!(text, "a%26b%3Dc+d%2B%C3%A9%7E");
    }

    #[test]
    fn an_answer_that_repeats_a_secret_is_not_passed_on() {
        let body = br#"{"error":"invalid_client","error_description":"the secret hush is wrong"}"#;
        let said = denied("login.test", StatusCode::UNAUTHORIZED, body, &[None, Some("hush")], None);
        assert_eq!(said, Denied::Request("login.test answered 401 Unauthorized: invalid_client".into()));
    }

    #[test]
    fn a_long_secret_in_an_answer_is_not_shown_in_part_either() {
        let token = "0.AXkAhush".repeat(100);
        let body = format!(r#"{{"error":"invalid_grant","error_description":"the token {token} has expired"}}"#);
        let said = denied("login.test", StatusCode::BAD_REQUEST, body.as_bytes(), &[Some(&token), None], None);
        assert_eq!(said, Denied::Grant("login.test answered 400 Bad Request: invalid_grant".into()));
    }
}
