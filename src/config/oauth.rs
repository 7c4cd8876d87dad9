//! Reads how a host is logged in to with tokens instead of a password, and where Microsoft Graph is.
//!
//! Every key is read, whatever the others say, so that all problems are told at once.

use reqwest::Url;

use super::problem::ProblemKind;
use super::section::{Section, Wrong};
use super::smart_hosts::read_username;
use super::targets;
use super::{Oauth, OauthFlow, OauthProvider};

const GRAPH_URL: &str = "https://graph.microsoft.com";
const GOOGLE_TOKEN_URL: &str = "https://oauth2.googleapis.com/token";
/// A tenant by which nobody in particular is meant: there the client's secret alone opens nothing.
const SHARED_TENANTS: [&str; 3] = ["common", "organizations", "consumers"];
/// Longest tenant, client id or scope, in bytes.
const WORD_BYTES_MAX: usize = 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    ClientCredentials,
    RefreshToken,
}

/// None where there is no such section, or it has problems, which have been told.
/// `whose`: the section of a smart host or of a mailbox.
pub(super) fn oauth(whose: &Section<'_>) -> Option<Oauth> {
    let section = whose.section("oauth");
    if !section.exists() {
        return None;
    }
    let providers = [("microsoft", OauthProvider::Microsoft), ("google", OauthProvider::Google)];
    let flows = [("client_credentials", Flow::ClientCredentials), ("refresh_token", Flow::RefreshToken)];
    let provider = section.required("provider", "Add provider = \"microsoft\" or provider = \"google\".");
    let provider = provider.and_then(|item| item.choice(&providers, &[]));
    let flow = section.required("flow", "Add flow = \"client_credentials\" or flow = \"refresh_token\".");
    let flow = flow.and_then(|item| item.choice(&flows, &[]));
    let client_id = section.required("client_id", "Add the id under which the provider knows this application.");
    let client_id = client_id.and_then(|item| item.read("a client id", read_word));
    let client_secret = section.item("client_secret").and_then(|item| item.secret());
    let refresh_token = section.item("refresh_token").and_then(|item| item.secret());
    let token_url = section.item("token_url").map(|item| item.read("a URL", read_url));
    let scope = section.item("scope").map(|item| item.read("a scope", read_scope));
    let username = username(whose);
    let tenant = tenant(&section, provider, flow, token_url.is_some());
    check_flow(&section, provider, flow);
    let token_url = match token_url {
        Some(given) => given?,
        None => token_url_of(provider?, tenant?.as_deref())?,
    };
    let flow = match flow? {
        Flow::ClientCredentials => OauthFlow::ClientCredentials,
        Flow::RefreshToken => OauthFlow::RefreshToken(refresh_token?),
    };
    let scope = match scope {
        Some(given) => Some(given?),
        None => None,
    };
    let (provider, client_id, username) = (provider?, client_id?, username?);
    Some(Oauth { provider, flow, client_id, client_secret, username, token_url, scope })
}

/// A login has one user and one secret.
fn username(whose: &Section<'_>) -> Option<String> {
    if let Some(item) = whose.item("password") {
        let what = "a host takes a password or tokens, not both";
        item.problem(ProblemKind::BadValue, what, format!("Take it out, or take [{}.oauth] out.", whose.path));
    }
    let username = whose.required("username", "Add the mailbox, such as username = \"app@example.com\".");
    username.and_then(|item| item.read("a user name", read_username))
}

/// What the flow needs and the secrets do not say.
fn check_flow(section: &Section<'_>, provider: Option<OauthProvider>, flow: Option<Flow>) {
    let has = |key: &str| section.item(key).is_some();
    match (provider, flow) {
        (Some(OauthProvider::Google), Some(Flow::ClientCredentials)) => {
            if let Some(item) = section.item("flow") {
                let what = "Google gives no token for a mailbox to an application by itself";
                item.problem(ProblemKind::BadValue, what, "Set flow = \"refresh_token\" and add refresh_token.");
            }
        }
        (_, Some(Flow::ClientCredentials)) if !has("client_secret") => {
            section.missing("client_secret", "Add the application's secret: this flow proves itself with it.");
        }
        (Some(OauthProvider::Google), Some(Flow::RefreshToken)) if !has("client_secret") => {
            section.missing("client_secret", "Add the application's secret: Google gives one to every application.");
        }
        _ => {}
    }
    match (flow, section.item("refresh_token")) {
        (Some(Flow::RefreshToken), None) => {
            section.missing("refresh_token", "Add the token that the provider gave when a person allowed the access.");
        }
        (Some(Flow::ClientCredentials), Some(item)) => {
            let what = "the flow \"client_credentials\" needs no refresh token";
            item.problem(ProblemKind::BadValue, what, "Take it out, or set flow = \"refresh_token\".");
        }
        _ => {}
    }
}

/// `Some(None)`: none is needed. None: there is a problem.
fn tenant(
    section: &Section<'_>,
    provider: Option<OauthProvider>,
    flow: Option<Flow>,
    has_url: bool,
) -> Option<Option<String>> {
    let Some(item) = section.item("tenant") else {
        if provider != Some(OauthProvider::Microsoft) || has_url {
            return Some(None);
        }
        section.missing("tenant", "Add the directory's domain or id, such as tenant = \"contoso.onmicrosoft.com\".");
        return None;
    };
    let tenant = item.read("a tenant", read_tenant)?;
    if provider == Some(OauthProvider::Google) {
        item.problem(ProblemKind::BadValue, "Google has no tenants", "Take it out.");
        return None;
    }
    if flow == Some(Flow::ClientCredentials) && SHARED_TENANTS.contains(&tenant.as_str()) {
        let what = format!("{tenant:?} is no directory of yours, which the flow \"client_credentials\" needs");
        item.problem(ProblemKind::BadValue, what, "Write the directory's domain or id.");
        return None;
    }
    Some(Some(tenant))
}

fn token_url_of(provider: OauthProvider, tenant: Option<&str>) -> Option<String> {
    Some(match provider {
        OauthProvider::Google => GOOGLE_TOKEN_URL.to_owned(),
        OauthProvider::Microsoft => format!("https://login.microsoftonline.com/{}/oauth2/v2.0/token", tenant?),
    })
}

/// Where Graph is, without a slash at the end; and what else that kind of host needs.
pub(super) fn graph_url(section: &Section<'_>, is_graph: bool, oauth: Option<&Oauth>) -> String {
    let item = section.item("graph_url");
    let url = item.as_ref().map(|item| item.read("a URL", read_url));
    if let (Some(item), false) = (&item, is_graph) {
        let what = "only a host of kind \"graph\" has one";
        item.problem(ProblemKind::BadValue, what, "Take it out, or set kind = \"graph\".");
    }
    if is_graph {
        match oauth {
            None if !section.section("oauth").exists() => {
                let path = &section.path;
                let remedy = format!("Add [{path}.oauth] with provider = \"microsoft\": Graph takes tokens only.");
                section.missing("oauth", &remedy);
            }
            Some(oauth) if oauth.provider != OauthProvider::Microsoft => {
                if let Some(item) = section.section("oauth").item("provider") {
                    let what = "Graph is Microsoft's and takes Microsoft's tokens only";
                    item.problem(ProblemKind::BadValue, what, "Set provider = \"microsoft\", or kind = \"smtp\".");
                }
            }
            _ => {}
        }
    }
    let url = url.flatten().unwrap_or_else(|| GRAPH_URL.to_owned());
    url.trim_end_matches('/').to_owned()
}

/// Secrets go there, so it is encrypted unless it is this machine.
fn read_url(text: &str) -> Result<String, Wrong> {
    read_https(text, "Write an https address such as \"https://login.example.com/token\".")
}

/// A URL that secrets may go to: encrypted, or on this machine. `form`: how it is written.
pub(super) fn read_https(text: &str, form: &str) -> Result<String, Wrong> {
    let url = Url::parse(text).map_err(|error| Wrong::value(format!("not a URL: {error}"), form))?;
    let encrypted = url.scheme() == "https" || (url.scheme() == "http" && targets::is_loopback(&url));
    if !encrypted || url.host_str().is_none() {
        return Err(Wrong::value("not an https URL", form));
    }
    let more = !url.username().is_empty() || url.password().is_some();
    if more || url.query().is_some() || url.fragment().is_some() {
        return Err(Wrong::value("a URL with more than host, port and path", form));
    }
    Ok(url.into())
}

/// It becomes part of a path.
fn read_tenant(text: &str) -> Result<String, Wrong> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    if text.is_empty() || text.len() > WORD_BYTES_MAX || !text.chars().all(is_plain) {
        let remedy = "Write the directory's domain, such as \"contoso.onmicrosoft.com\", or its id.";
        return Err(Wrong::value(format!("{text:?} is not a tenant"), remedy));
    }
    Ok(text.to_owned())
}

fn read_word(text: &str) -> Result<String, Wrong> {
    if text.is_empty() || text.len() > WORD_BYTES_MAX || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(Wrong::value("not a client id", "Copy it from the provider's page about the application."));
    }
    Ok(text.to_owned())
}

fn read_scope(text: &str) -> Result<String, Wrong> {
    let is_legal = |c: char| c == ' ' || c.is_ascii_graphic();
    if text.is_empty() || text.len() > WORD_BYTES_MAX || !text.chars().all(is_legal) {
        return Err(Wrong::value("not a scope", "Write the scopes with a blank between them, or leave it out."));
    }
    Ok(text.to_owned())
}
