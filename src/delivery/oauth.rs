//! OAuth 2 tokens for smart hosts and mailboxes that take them instead of a password: fetched, kept, renewed.
//!
//! Promises: one request at a time for a host, others wait for its result; a token is renewed before it
//! runs out, and the old one serves until then if the renewal fails; a refresh token that a server gives
//! in place of an old one is stored at once; tokens are encrypted there (`vault`); after a
//! failure the server is left alone for a while, longer each time; no token or secret is logged, shown by
//! Debug or stands in a text. What goes wrong here is trouble of the host and never fails the mail.
//!
//! Leaves out: how a person allows the access at first (the device code flow), certificates in place of a
//! client secret, Google's service accounts.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest;
use reqwest::Client;
use serde::{Deserialize, Serialize};

use super::HostFailure;
use super::http::{self, ClientError};
use super::smtp::{self, LoginFault};
use crate::clock::{Clock, Millis};
use crate::config::{Config, Oauth, OauthFlow, Secret, SmartHost};
use crate::queue::Queue;
use crate::queue::record::Failure;
use crate::store::{Batch, StoreError, Table};

mod request;
mod vault;

use request::{Denied, Granted};
use vault::Vault;

/// A token is renewed so long before it runs out; one with a short life at half of it.
const EARLY: Millis = 5 * 60 * 1000;
/// A host that refuses a token younger than this would refuse the next one, too.
const YOUNG: Millis = 60 * 1000;
/// Rest after the first failure; twice as long after each further one.
const REST_LATER: Millis = 10 * 1000;
const REST_DENIED: Millis = 60 * 1000;
const REST_MAX: Millis = 60 * 60 * 1000;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Resource {
    Smtp,
    Graph,
    Imap,
    Pop3,
}

/// Why there can be no tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    #[error("tokens cannot be fetched: {0}")]
    Client(#[from] ClientError),
    #[error("the key for tokens, token.key in data_dir, cannot be used: {0}")]
    Key(#[from] std::io::Error),
}

/// The tokens of all hosts. Share it.
pub struct Tokens {
    clock: Clock,
    queue: Arc<Queue>,
    /// None: no host takes tokens.
    means: Option<Means>,
    /// By name of the host.
    accounts: Arc<Accounts>,
}

type Accounts = Mutex<HashMap<String, Arc<tokio::sync::Mutex<Account>>>>;

struct Means {
    client: Client,
    vault: Vault,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens")
    }
}

/// Of one host. Its lock is held while a token is fetched.
#[derive(Default)]
struct Account {
    kept: Kept,
    /// `kept` is not on disk as it is here.
    is_unsaved: bool,
    rest: Option<Rest>,
}

/// What is on disk, encrypted.
#[derive(Default, Serialize, Deserialize)]
struct Kept {
    /// A digest of the settings that it was given for; under others it is worth nothing.
    given_for: Vec<u8>,
    /// In place of the one in the configuration.
    refresh: Option<String>,
    access: Vec<Access>,
}

#[derive(Serialize, Deserialize)]
struct Access {
    resource: Resource,
    token: String,
    fetched_at: Millis,
    renew_at: Millis,
    expires_at: Millis,
}

impl Kept {
    fn access(&self, resource: Resource) -> Option<&Access> {
        self.access.iter().find(|access| access.resource == resource)
    }

    fn forget(&mut self, resource: Resource) {
        self.access.retain(|access| access.resource != resource);
    }
}

struct Rest {
    /// A digest of the settings that it asked with; with others it may ask at once.
    settings: Vec<u8>,
    until: Millis,
    length: Millis,
    fault: LoginFault,
    failure: Failure,
}

impl Rest {
    fn at(&self, now: Millis) -> HostFailure {
        HostFailure {
            login: Some(self.fault),
            failure: self.failure.clone(),
            not_before_secs: Some(self.until.saturating_sub(now).div_ceil(1000)),
        }
    }
}

/// Whose tokens they are.
struct Holder<'a> {
    /// In memory and in the store. Names of smart hosts have no slash.
    key: String,
    name: &'a str,
    /// In the configuration.
    section: String,
    oauth: &'a Oauth,
}

impl<'a> Holder<'a> {
    fn host(name: &'a str, oauth: &'a Oauth) -> Holder<'a> {
        Holder { key: name.to_owned(), name, section: format!("smart_hosts.{name}"), oauth }
    }

    fn mailbox(name: &'a str, oauth: &'a Oauth) -> Holder<'a> {
        Holder { key: mailbox_key(name), name, section: format!("fetch.{name}"), oauth }
    }
}

fn mailbox_key(name: &str) -> String {
    format!("fetch/{name}")
}

/// Where in the table `Meta` the tokens of a host are, encrypted.
fn record(host: &str) -> Vec<u8> {
    format!("token/{host}").into_bytes()
}

impl Tokens {
    /// Where a host takes tokens, the key that they are encrypted with is made if there is none.
    pub fn new(config: &Config, queue: Arc<Queue>, clock: Clock) -> Result<Tokens, TokensError> {
        let hosts = config.smart_hosts.iter().filter_map(|host| host.oauth.as_ref());
        let mailboxes = config.fetch.values().filter_map(|account| account.oauth.as_ref());
        let urls: Vec<&str> = hosts.chain(mailboxes).map(|oauth| oauth.token_url.as_str()).collect();
        let means = match urls.is_empty() {
            true => None,
            false => {
                let client = http::client(urls.iter().any(|url| url.starts_with("https:")))?;
                Some(Means { client, vault: Vault::open(&config.data_dir)? })
            }
        };
        Ok(Tokens { clock, queue, means, accounts: Arc::default() })
    }

    /// Those of the hosts of another configuration. What is known stays, as far as it was given for the same settings.
    pub fn next(&self, config: &Config) -> Result<Tokens, TokensError> {
        let next = Tokens::new(config, self.queue.clone(), self.clock.clone())?;
        Ok(Tokens { accounts: self.accounts.clone(), ..next })
    }

    /// What to log in to a host with by SMTP: a password, a token, or nothing.
    pub async fn login(&self, host: &SmartHost) -> Result<Option<smtp::Login>, HostFailure> {
        if let Some(oauth) = &host.oauth {
            let token = self.token(host, Resource::Smtp).await?;
            let secret = smtp::Secret::Token(token);
            return Ok(Some(smtp::Login { username: oauth.username.clone(), secret }));
        }
        Ok(password_login(host))
    }

    /// The host has refused this login. True: [`Tokens::login`] will give another one, with which one more
    /// try makes sense.
    pub async fn refused(&self, host: &SmartHost, login: &smtp::Login) -> bool {
        match &login.secret {
            smtp::Secret::Token(token) => self.refused_token(host, Resource::Smtp, token).await,
            smtp::Secret::Password(_) => false,
        }
    }

    /// As [`Tokens::refused`], for one that [`Tokens::token`] gave.
    pub async fn refused_token(&self, host: &SmartHost, resource: Resource, token: &Secret) -> bool {
        self.forget(&host.name, resource, token).await
    }

    /// The mailbox has refused it. True: the next one may do.
    pub async fn refused_by_mailbox(&self, name: &str, resource: Resource, token: &Secret) -> bool {
        self.forget(&mailbox_key(name), resource, token).await
    }

    async fn forget(&self, key: &str, resource: Resource, token: &Secret) -> bool {
        let account = self.account(key);
        let mut account = account.lock().await;
        let Some(access) = account.kept.access(resource) else { return true };
        // Somebody else has fetched another one in the meantime.
        if access.token != token.0 {
            return true;
        }
        if self.clock.now().saturating_sub(access.fetched_at) < YOUNG {
            return false;
        }
        account.kept.forget(resource);
        true
    }

    /// A token that is good for some minutes at least, if one can be had.
    pub async fn token(&self, host: &SmartHost, resource: Resource) -> Result<Secret, HostFailure> {
        let (Some(oauth), Some(means)) = (&host.oauth, &self.means) else {
            let reason = format!("smart_hosts.{} has no section for OAuth to get tokens by", host.name);
            let failure = Failure::local("4.3.5", host.name.as_str(), reason);
            return Err(HostFailure { login: Some(LoginFault::Unusable), failure, not_before_secs: None });
        };
        self.token_of(&Holder::host(&host.name, oauth), means, resource).await
    }

    /// As [`Tokens::token`], for a mailbox that mail is fetched from.
    pub async fn mailbox_token(&self, name: &str, oauth: &Oauth, resource: Resource) -> Result<Secret, HostFailure> {
        let Some(means) = &self.means else {
            let failure = Failure::local("4.3.5", name, "there are no means to get tokens by");
            return Err(HostFailure { login: Some(LoginFault::Unusable), failure, not_before_secs: None });
        };
        self.token_of(&Holder::mailbox(name, oauth), means, resource).await
    }

    async fn token_of(&self, of: &Holder<'_>, means: &Means, resource: Resource) -> Result<Secret, HostFailure> {
        let account = self.account(&of.key);
        let mut account = account.lock().await;
        self.load(&mut account, means, &of.key, of.oauth).map_err(|error| {
            let failure = Failure::local("4.3.0", of.name, format!("the stored tokens cannot be read: {error}"));
            HostFailure { login: None, failure, not_before_secs: None }
        })?;
        if account.is_unsaved {
            self.save(&mut account, means, &of.key).await;
        }
        let now = self.clock.now();
        let current = account.kept.access(resource).filter(|access| access.expires_at > now);
        let current = current.map(|access| (Secret(access.token.clone()), access.renew_at));
        match current {
            Some((token, renew_at)) if now < renew_at => return Ok(token),
            _ => {}
        }
        account.rest.take_if(|rest| rest.settings != settings(of.oauth));
        let resting = account.rest.as_ref().filter(|rest| rest.until > now).map(|rest| rest.at(now));
        let failed = match resting {
            Some(failed) => failed,
            None => match self.fetch(&mut account, means, of, resource).await {
                Ok(token) => return Ok(token),
                Err(failed) => failed,
            },
        };
        current.map(|(token, _)| token).ok_or(failed)
    }

    fn account(&self, name: &str) -> Arc<tokio::sync::Mutex<Account>> {
        // Nothing in here panics half-way, so a poisoned lock still guards sound data.
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        accounts.entry(name.to_owned()).or_default().clone()
    }

    /// What the store has, if it was given for these settings; nothing otherwise.
    fn load(&self, account: &mut Account, means: &Means, name: &str, oauth: &Oauth) -> Result<(), StoreError> {
        let given_for = digest_of(oauth);
        if account.kept.given_for == given_for {
            return Ok(());
        }
        // Without knowing what is stored, a newer refresh token could be lost.
        let sealed = self.queue.store().get(Table::Meta, &record(name))?;
        let stored = sealed.and_then(|sealed| {
            let kept = read(means, name, &sealed);
            if kept.is_none() {
                tracing::warn!(host = name, "the stored tokens do not fit token.key; new ones are fetched");
            }
            kept.filter(|kept| kept.given_for == given_for)
        });
        *account = Account { kept: stored.unwrap_or_default(), ..Account::default() };
        account.kept.given_for = given_for;
        Ok(())
    }

    async fn fetch(
        &self,
        account: &mut Account,
        means: &Means,
        of: &Holder<'_>,
        resource: Resource,
    ) -> Result<Secret, HostFailure> {
        let mut asked = self.ask(account, means, of.oauth, resource).await;
        if matches!(asked, Err(Denied::Grant(_))) && account.kept.refresh.take().is_some() {
            // The store may be older than the configuration (a backup): that one's token may still do.
            asked = self.ask(account, means, of.oauth, resource).await;
        }
        let now = self.clock.now();
        match asked {
            Ok(granted) => {
                account.rest = None;
                let token = Secret(granted.access.clone());
                keep(&mut account.kept, resource, granted, now);
                account.is_unsaved = true;
                self.save(account, means, &of.key).await;
                Ok(token)
            }
            Err(denied) => {
                let rest = rest(account.rest.as_ref(), denied, of, now);
                tracing::warn!(
                    host = of.name,
                    reason = rest.failure.reason,
                    pause_secs = rest.length / 1000,
                    "no token"
                );
                let failed = rest.at(now);
                account.rest = Some(rest);
                Err(failed)
            }
        }
    }

    async fn ask(
        &self,
        account: &Account,
        means: &Means,
        oauth: &Oauth,
        resource: Resource,
    ) -> Result<Granted, Denied> {
        let refresh = match &oauth.flow {
            OauthFlow::ClientCredentials => None,
            OauthFlow::RefreshToken(first) => Some(account.kept.refresh.as_deref().unwrap_or(&first.0)),
        };
        request::ask(&means.client, oauth, resource, refresh, self.clock.now()).await
    }

    /// A token that cannot be written down serves all the same; the next time, it is tried again.
    async fn save(&self, account: &mut Account, means: &Means, name: &str) {
        if let Err(error) = self.write(&account.kept, means, name).await {
            tracing::error!(host = name, %error, "the tokens of a smart host could not be stored");
            return;
        }
        account.is_unsaved = false;
    }

    async fn write(&self, kept: &Kept, means: &Means, name: &str) -> Result<(), StoreError> {
        let failed = |what: &str| StoreError::Failed(what.to_owned());
        let bytes = rmp_serde::to_vec_named(kept).map_err(|_| failed("the record cannot be written"))?;
        let sealed = means.vault.seal(name, bytes).ok_or_else(|| failed("the system gives no random numbers"))?;
        let mut batch = Batch::new();
        batch.put(Table::Meta, record(name), sealed);
        self.queue.commit(batch, true).await
    }
}

/// What to log in with where no tokens are taken.
pub fn password_login(host: &SmartHost) -> Option<smtp::Login> {
    host.login.as_ref().map(|login| smtp::Login {
        username: login.username.clone(),
        secret: smtp::Secret::Password(login.password.clone()),
    })
}

fn read(means: &Means, name: &str, sealed: &[u8]) -> Option<Kept> {
    rmp_serde::from_slice(&means.vault.unseal(name, sealed)?).ok()
}

fn keep(kept: &mut Kept, resource: Resource, granted: Granted, now: Millis) {
    let life = granted.life_secs * 1000;
    kept.forget(resource);
    kept.access.push(Access {
        resource,
        token: granted.access,
        fetched_at: now,
        renew_at: now + life - EARLY.min(life / 2),
        expires_at: now + life,
    });
    if granted.refresh.is_some() {
        kept.refresh = granted.refresh;
    }
}

/// How long to leave a server alone, and what is told meanwhile.
fn rest(before: Option<&Rest>, denied: Denied, of: &Holder<'_>, now: Millis) -> Rest {
    let section = format!("[{}.oauth]", of.section);
    let (first, fault, asked_for, status, what) = match denied {
        Denied::Later(what, secs) => (REST_LATER, LoginFault::Later, secs, "4.7.0", what),
        Denied::Request(what) => {
            let what = format!("{what}; compare {section} with what the provider has");
            (REST_DENIED, LoginFault::Refused, None, "4.7.8", what)
        }
        Denied::Grant(what) => {
            let remedy = match of.oauth.flow {
                OauthFlow::RefreshToken(_) => {
                    "the access has run out or was withdrawn: allow it anew and put the new refresh_token into"
                }
                OauthFlow::ClientCredentials => "the application may not do that: compare its permissions with",
            };
            (REST_DENIED, LoginFault::Refused, None, "4.7.8", format!("{what}; {remedy} {section}"))
        }
    };
    let doubled = before.filter(|before| before.fault == fault).map_or(first, |before| before.length * 2);
    let length = doubled.min(REST_MAX).max(asked_for.unwrap_or(0) * 1000);
    let reason = format!("no token for {}: {what}", of.section);
    Rest {
        settings: settings(of.oauth),
        until: now + length,
        length,
        fault,
        failure: Failure::local(status, request::place(&of.oauth.token_url), reason),
    }
}

/// Of all that a request depends on, the client's secret included.
fn settings(oauth: &Oauth) -> Vec<u8> {
    let secret = oauth.client_secret.as_ref().map(|secret| secret.0.as_bytes()).unwrap_or_default();
    digest::digest(&digest::SHA256, &[&digest_of(oauth), secret].concat()).as_ref().to_vec()
}

/// Of what a token depends on. The client's secret is not among it: it may be changed without harm.
fn digest_of(oauth: &Oauth) -> Vec<u8> {
    let refresh = match &oauth.flow {
        OauthFlow::ClientCredentials => "",
        OauthFlow::RefreshToken(token) => &token.0,
    };
    let scope = oauth.scope.as_deref().unwrap_or_default();
    let mut context = digest::Context::new(&digest::SHA256);
    for part in [&oauth.token_url, &oauth.client_id, &oauth.username, scope, refresh] {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    context.finish().as_ref().to_vec()
}
