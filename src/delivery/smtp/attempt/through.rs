//! One attempt at named hosts instead of those of a domain.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use tokio::time::{Instant, timeout_at};

use super::Attempt;
use crate::delivery::smtp::auth::LoginFault;
use crate::delivery::smtp::client::Account;
use crate::delivery::smtp::host::{Agreed, Attempted, HostTarget, HostTrouble};
use crate::delivery::smtp::mx::Addresses;
use crate::delivery::smtp::pool::{Channel, Way};
use crate::delivery::smtp::step::{Stage, Tls, Trouble};
use crate::delivery::smtp::tls_policy::Terms;
use crate::delivery::smtp::{SmtpTransport, mx};
use crate::delivery::{Job, Outcome};
use crate::message::Domain;
use crate::queue::record::Failure;

/// Random octets of a login.
const NONCE_BYTES: usize = 18;

pub async fn run_through<'a>(transport: &'a SmtpTransport, job: &'a Job, targets: &'a [HostTarget]) -> Attempted {
    let mut attempt = match Attempt::new(transport, job).await {
        Ok(attempt) => attempt,
        Err(outcomes) => return Attempted { outcomes, undecided: Vec::new(), troubles: Vec::new() },
    };
    let mut troubles = Vec::new();
    for (number, target) in targets.iter().enumerate() {
        if attempt.undecided().is_empty() || Instant::now() >= attempt.deadline {
            break;
        }
        attempt.mail_from = target.mail_from.as_ref().unwrap_or(&job.message.mail_from);
        if let Err(trouble) = attempt.at_target(target).await {
            troubles.push(HostTrouble { target: number, login: trouble.login, failure: trouble.failure });
        }
    }
    if targets.is_empty() {
        let why = Failure::local("4.3.5", "", "there is no host that the message could go by");
        attempt.decide_rest(&Outcome::Defer { why, not_before_secs: None });
    }
    let number = |at: usize| job.recipients.get(at).map(|(number, _)| *number);
    let undecided = attempt.undecided().into_iter().filter_map(number).collect();
    Attempted { outcomes: attempt.finish(), undecided, troubles }
}

impl Attempt<'_> {
    /// Gives the last trouble, if the host did not do.
    async fn at_target(&mut self, target: &HostTarget) -> Result<(), Trouble> {
        let (host, found) = match self.find(target).await {
            Ok(found) => found,
            Err(trouble) => {
                self.note(trouble.clone());
                return Err(trouble);
            }
        };
        self.servers = Arc::from([host.clone()]);
        let mut result = Ok(());
        for ip in found.usable {
            if self.undecided().is_empty() || Instant::now() >= self.deadline {
                break;
            }
            result = self.at_target_address(target, &host, ip).await;
            // Another address of the host knows the same accounts; a wrong password more could lock ours.
            if result.as_ref().map_or_else(|trouble| trouble.login.is_some(), |()| true) {
                break;
            }
        }
        result
    }

    /// Who names a host by hand may name one of his own network, so every address may be connected to.
    pub(super) async fn find(&self, target: &HostTarget) -> Result<(Domain, Addresses), Trouble> {
        let trouble = |status: &str, reason: String| {
            Trouble::new(Stage::Address, Failure::local(status, target.host.as_str(), reason))
        };
        let Some(host) = target.domain() else {
            return Err(trouble("4.3.5", format!("{:?} is no name of a host", target.host)));
        };
        // RFC 6761 6.3: not a question for a name server.
        if host.as_str() == "localhost" {
            let here = vec![IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)];
            return Ok((host, self.transport.with_dice(|dice| mx::addresses(here, true, None, dice))));
        }
        let found = match timeout_at(self.deadline, self.transport.addresses(&host, std::slice::from_ref(&host), true))
            .await
        {
            Ok(found) => found.map_err(|reason| trouble("4.4.3", reason))?,
            Err(_) => return Err(trouble("4.4.3", format!("the addresses of {host} could not be looked up in time"))),
        };
        if found.usable.is_empty() {
            return Err(trouble("4.4.4", format!("{host} has no address that can be connected to")));
        }
        Ok((host, found))
    }

    /// In clear after broken TLS only where nothing is lost by it: no check of the certificate was asked
    /// for, and there is no login.
    async fn at_target_address(&mut self, target: &HostTarget, host: &Domain, ip: IpAddr) -> Result<(), Trouble> {
        let address = SocketAddr::new(ip, target.port);
        let agreed = Some(target.agreed(ip));
        let (tls, terms, channel) = (target.tls.demand(), Terms::default(), Channel::Smtp);
        let mut way = Way { host: host.clone(), address, tls, terms, agreed, channel };
        let Err(trouble) = self.by_way(&way).await else { return Ok(()) };
        self.note(trouble.clone());
        if !trouble.clear_may_help || target.verify_certificate || target.login.is_some() {
            return Err(trouble);
        }
        way.tls = Tls::Never;
        let result = self.by_way(&way).await;
        if let Err(trouble) = &result {
            self.note(trouble.clone());
        }
        result
    }
}

/// What the conversation has to know about our account at a named host.
pub(super) fn account(agreed: &Agreed, host: &Domain, address: SocketAddr, peer: &str) -> Result<Account, Trouble> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|error| {
        let reason = format!("cannot log in to {peer}: the system gives no random numbers ({error})");
        Trouble::login(LoginFault::Later, Failure::local("4.3.0", peer, reason))
    })?;
    Ok(Account {
        login: agreed.login.clone(),
        may_show_secret: agreed.may_show_secret,
        debug: agreed.debug,
        host: host.as_str().to_owned(),
        port: address.port(),
        nonce: STANDARD_NO_PAD.encode(nonce),
    })
}
