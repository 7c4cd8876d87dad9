//! OAuth tokens for the mailboxes that mail is fetched from: those that the ways out keep for smart hosts, too.

use crate::config::{Fetch, FetchProtocol, Oauth, Secret};
use crate::current::Current;
use crate::delivery::oauth::Resource;
use crate::delivery::transport::Transports;
use crate::intake::fetch::{Asked, TokenSource};

/// By the transports of the moment: those of the newest configuration.
pub(super) struct MailboxTokens(pub Current<Transports>);

fn resource(account: &Fetch) -> Resource {
    match account.protocol {
        FetchProtocol::Imap => Resource::Imap,
        FetchProtocol::Pop3 => Resource::Pop3,
    }
}

impl TokenSource for MailboxTokens {
    fn token<'a>(&'a self, name: &'a str, account: &'a Fetch) -> Asked<'a, Result<Secret, String>> {
        Box::pin(async move {
            let oauth: &Oauth = account.oauth.as_ref().ok_or_else(|| format!("fetch.{name} takes no tokens"))?;
            let transports = self.0.load();
            let token = transports.tokens().mailbox_token(name, oauth, resource(account)).await;
            token.map_err(|failed| failed.failure.reason)
        })
    }

    fn refused<'a>(&'a self, name: &'a str, account: &'a Fetch, token: &'a Secret) -> Asked<'a, bool> {
        Box::pin(async move { self.0.load().tokens().refused_by_mailbox(name, resource(account), token).await })
    }
}
