//! A smart host tested for a person: the way of a delivery, leg by leg, over a connection of its own.
//!
//! Promises: nothing is sent unless that is asked for; no secret is in the report; who a delivery would be
//! kept from (`delivery.allow_recipients`, `delivery.redirect_all_to`) gets no test message either. A message
//! that is sent goes straight to the host: it is neither queued nor signed.
//!
//! A good report says that the host takes mail, not that the mail arrives.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::graph::{Graph, Sent};
use super::oauth::{Resource, Tokens};
use super::smart_hosts::target_of;
use super::smtp::{Leg, LoginFault, Mark, PopBeforeSmtp, ProbeMode, SmtpTransport, Stage, Trail, Trouble};
use super::{Body, HostFailure, Job, Outcome};
use crate::clock::{Clock, Millis, rfc5322};
use crate::config::{Config, FromEntry, SmartHost, SmartHostKind, SmartHostTls};
use crate::message::{
    Address, BodyType, Domain, Door, DsnRequest, MessageId, Notify, Origin, ReversePath, TlsWish, stream,
};
use crate::queue::record::{Failure, Message, Recipient, Route, Status};
pub use crate::trail::{Group, Problem};

/// What to test, and how far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// Of `[smart_hosts]`.
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Address>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Address>,
    #[serde(default)]
    pub send: bool,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub host: String,
    pub good: bool,
    pub from: String,
    pub to: String,
    /// A test message was accepted.
    pub sent: bool,
    pub marks: Vec<Mark>,
    pub problem: Option<Problem>,
}

impl Group {
    fn remedy(self) -> &'static str {
        match self {
            Group::BadHostName => "check host, and that this machine can ask its name servers",
            Group::NoResponse => "check host and port, and whether a firewall or the provider blocks that port",
            Group::Disconnected => {
                "check that port and tls fit each other (465 wants \"implicit\", 587 \"required\"); else try later"
            }
            Group::Refused => "read what the server says: it may want a login, another --from, or another recipient",
            Group::Login => {
                "check username and password (or the section for OAuth), and that the provider allows SMTP for the account"
            }
            Group::Tls => "check that host is the name in the certificate, and that port and tls fit each other",
            Group::Unsupported => {
                "the server does not offer what the settings or the message ask for; compare the extensions above"
            }
            Group::System | Group::Other => {
                "look into the server's log; debug = true in the host's section puts the dialogue there"
            }
        }
    }
}

/// What a test needs. Without `oauth` only hosts with a password, or none, can be tested.
#[derive(Debug)]
pub struct Tester<'a> {
    pub config: &'a Config,
    pub clock: &'a Clock,
    pub smtp: &'a SmtpTransport,
    pub pop_before: &'a PopBeforeSmtp,
    pub oauth: Option<(&'a Tokens, &'a Graph)>,
}

/// Why there is nothing to report: the wish cannot be granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoTest {
    pub what: String,
    pub remedy: String,
}

fn no_test(what: impl Into<String>, remedy: impl Into<String>) -> NoTest {
    NoTest { what: what.into(), remedy: remedy.into() }
}

/// The host, if what is wished may be done at all.
pub fn check<'a>(config: &'a Config, wish: &Wish) -> Result<&'a SmartHost, NoTest> {
    let Some(host) = config.smart_hosts.iter().find(|host| host.name == wish.name) else {
        let names: Vec<&str> = config.smart_hosts.iter().map(|host| host.name.as_str()).collect();
        let there = match names.is_empty() {
            true => "there is none; add [smart_hosts.NAME] to the configuration".to_owned(),
            false => format!("there are: {}", names.join(", ")),
        };
        return Err(no_test(format!("there is no smart host named {:?}", wish.name), there));
    };
    if !wish.send {
        return Ok(host);
    }
    let Some(to) = &wish.to else { return Err(no_test("nobody is named to send to", "add --to ADDRESS")) };
    if let Some(hold) = config.delivery.forbids(to) {
        return Err(no_test(hold.reason, "test without --send, or send to an address that is allowed"));
    }
    match &config.delivery.redirect_all_to {
        Some(only) if only.lookup_key() != to.lookup_key() => {
            Err(no_test(format!("delivery.redirect_all_to lets mail go to <{only}> only"), format!("use --to {only}")))
        }
        _ => Ok(host),
    }
}

impl Tester<'_> {
    pub async fn test(&self, wish: &Wish) -> Result<Report, NoTest> {
        let since = Instant::now();
        let host = check(self.config, wish)?;
        let (from, to) = addresses(self.config, host, wish)
            .ok_or_else(|| no_test("no address fits the test", "name them with --from and --to"))?;
        let trail = Trail::default();
        trail.mark(Leg::Configuration, since, settings(host, &from));
        let job = test_job(&from, &to, Route::Remote, self.clock.now(), self.config.hostname.as_str());
        let (sent, problem) = match self.run(host, &job, wish.send, &trail).await {
            Ok(()) => (wish.send, None),
            Err((group, what)) => (false, Some(Problem { group, what, remedy: group.remedy().to_owned() })),
        };
        let (from, to) = (from.to_string(), to.to_string());
        Ok(Report { host: host.name.clone(), good: problem.is_none(), from, to, sent, marks: trail.marks(), problem })
    }

    async fn run(&self, host: &SmartHost, job: &Job, send: bool, trail: &Trail) -> Result<(), (Group, String)> {
        if matches!(host.kind, SmartHostKind::Graph { .. }) {
            let (tokens, graph) = self.oauth.ok_or_else(|| (Group::Other, NEEDS_SERVER.to_owned()))?;
            let since = Instant::now();
            tokens.token(host, Resource::Graph).await.map_err(|failure| of_host(&failure))?;
            trail.mark(Leg::Token, since, "there is a token for Graph");
            if send {
                let since = Instant::now();
                match graph.deliver(job, host).await {
                    Sent::Decided(outcomes) => {
                        of_outcome(outcomes.into_iter().next().map(|(_, outcome)| outcome))?;
                        trail.mark(Leg::Graph, since, "the service has accepted the message");
                        return Ok(());
                    }
                    Sent::Host(failure) => return Err(of_host(&failure)),
                    // What cannot go by Graph goes by the host's SMTP server, here as in a delivery.
                    Sent::BySmtp => {}
                }
            } else if !host.speaks_smtp() {
                return Ok(());
            }
        }
        self.by_smtp(host, job, send, trail).await
    }

    async fn by_smtp(&self, host: &SmartHost, job: &Job, send: bool, trail: &Trail) -> Result<(), (Group, String)> {
        if host.pop_before_smtp.is_some() {
            let since = Instant::now();
            self.pop_before.log_in(self.smtp, host).await.map_err(|failure| of_host(&failure))?;
            trail.mark(Leg::Pop, since, "logged in by POP3");
        }
        let mode = if send { ProbeMode::Send } else { ProbeMode::Rehearse };
        let mut is_again = false;
        loop {
            let login = match (self.oauth, &host.oauth) {
                (None, Some(_)) => return Err((Group::Other, NEEDS_SERVER.to_owned())),
                (Some((tokens, _)), Some(_)) => {
                    let since = Instant::now();
                    let login = tokens.login(host).await.map_err(|failure| of_host(&failure))?;
                    trail.mark(Leg::Token, since, "there is a token for SMTP");
                    login
                }
                (_, None) => super::oauth::password_login(host),
            };
            let target = target_of(host, login.clone(), None);
            match self.smtp.probe(job, &target, mode, trail).await {
                Ok(outcome) => return of_outcome(outcome),
                Err(trouble) => {
                    // A token that is refused may be an old one: as in a delivery, once more with another.
                    if let (Some((tokens, _)), Some(login), false) = (self.oauth, &login, is_again)
                        && trouble.login == Some(LoginFault::Refused)
                        && tokens.refused(host, login).await
                    {
                        is_again = true;
                        continue;
                    }
                    return Err((group_of(&trouble), trouble.failure.reason));
                }
            }
        }
    }
}

const NEEDS_SERVER: &str = "the tokens of this host belong to the server, and none is running: start it with `postrider serve`, then test again";

pub fn group_of(trouble: &Trouble) -> Group {
    match (trouble.stage, trouble.login) {
        (_, Some(LoginFault::NoMechanism | LoginFault::NotPrivate)) => Group::Unsupported,
        (_, Some(_)) => Group::Login,
        (Stage::Address, _) => Group::BadHostName,
        (Stage::Connect, _) => Group::NoResponse,
        _ if trouble.is_silence => Group::NoResponse,
        (Stage::Tls, _) => Group::Tls,
        _ if trouble.failure.reply.is_some() => Group::Refused,
        _ if trouble.failure.status == "4.4.2" => Group::Disconnected,
        _ => Group::Other,
    }
}

fn of_host(failure: &HostFailure) -> (Group, String) {
    let group = if failure.login.is_some() { Group::Login } else { Group::NoResponse };
    let again = failure.not_before_secs.map(|secs| format!("; not asked again for {secs} s")).unwrap_or_default();
    (group, format!("{}{again}", failure.failure.reason))
}

pub fn of_outcome(outcome: Option<Outcome>) -> Result<(), (Group, String)> {
    let (Outcome::Fail(why) | Outcome::Defer { why, .. }) = (match outcome {
        None | Some(Outcome::Delivered(_)) => return Ok(()),
        Some(outcome) => outcome,
    }) else {
        return Err((Group::Other, "the test ended without a result".to_owned()));
    };
    Err((of_failure(&why), why.reason))
}

fn of_failure(why: &Failure) -> Group {
    match (&why.reply, why.unsure) {
        (Some(_), _) => Group::Refused,
        (None, true) => Group::Disconnected,
        (None, false) => Group::Unsupported,
    }
}

fn settings(host: &SmartHost, from: &Address) -> String {
    let place = match &host.kind {
        SmartHostKind::Graph { url } if !host.speaks_smtp() => url.clone(),
        _ => {
            let tls = match host.tls {
                SmartHostTls::Off => "off",
                SmartHostTls::Opportunistic => "opportunistic",
                SmartHostTls::Required => "required",
                SmartHostTls::Implicit => "implicit",
            };
            format!("{} port {}, tls {tls}", host.host, host.port)
        }
    };
    let login = match (&host.oauth, &host.login) {
        (Some(oauth), _) => format!("OAuth as {}", oauth.username),
        (None, Some(login)) => format!("password of {}", login.username),
        (None, None) => "no login".to_owned(),
    };
    let mut said = format!("{place}, {login}");
    if !host.active {
        said += "; active = false, so no mail goes by it";
    }
    if host.tls != SmartHostTls::Off && !host.verify_certificate {
        said += "; the certificate is not checked";
    }
    if !host.accepts(from) {
        said += &format!("; from_filter does not take <{from}>");
    }
    said
}

/// The sender: as wished, or what the host is for; the recipient: as wished, or ourselves, since a stranger
/// is no place for a test.
fn addresses(config: &Config, host: &SmartHost, wish: &Wish) -> Option<(Address, Address)> {
    let at = |local: &str, domain: &Domain| Address::parse(&format!("{local}@{domain}")).ok();
    let own = config.domains.keys().next().unwrap_or(&config.hostname);
    let full = host.from_filter.iter().find_map(|entry| match entry {
        FromEntry::Address(address) => Some(address.clone()),
        FromEntry::Domain(_) | FromEntry::Subdomains(_) => None,
    });
    let filtered = host.from_filter.iter().find_map(|entry| match entry {
        FromEntry::Domain(domain) => at("noreply", domain),
        FromEntry::Address(_) | FromEntry::Subdomains(_) => None,
    });
    let account = host.oauth.as_ref().and_then(|oauth| Address::parse(&oauth.username).ok());
    let from = wish.from.clone().or(full).or(filtered).or(account).or_else(|| config.sender.default_from.clone());
    let to = wish.to.clone().or_else(|| at("postmaster", own))?;
    Some((from.or_else(|| at("postmaster", own))?, to))
}

/// A message of one recipient that is queued nowhere.
pub fn test_job(from: &Address, to: &Address, route: Route, now: Millis, hostname: &str) -> Job {
    let id = format!("test-{now}@{hostname}");
    let content = format!(
        "From: <{from}>\r\nTo: <{to}>\r\nSubject: Test\r\nDate: {}\r\nMessage-ID: <{id}>\r\nAuto-Submitted: \
         auto-generated\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nThis is a test by \
         {hostname}.\r\n",
        rfc5322(now)
    );
    let content = Bytes::from(content);
    let message = Message {
        id: MessageId::from_u64(0),
        received_at: now,
        origin: Origin { door: Door::Admin, account: None, peer: None },
        mail_from: ReversePath::Address(from.clone()),
        body_type: BodyType::EightBitMime,
        smtputf8: from.needs_smtputf8() || to.needs_smtputf8(),
        dsn: DsnRequest::default(),
        header_from: Some(from.clone()),
        size: content.len() as u64,
        chunks: 1,
        streamed: None,
        message_id: id,
        subject: "Test".to_owned(),
        findings: None,
        recipients: 1,
        stream: stream::default_name(),
        tls: TlsWish::default(),
        not_before: None,
        answers: None,
    };
    let recipient = Recipient {
        address: to.clone(),
        alias: None,
        route,
        notify: Notify::default(),
        original: None,
        status: Status::Waiting { due: now },
        attempts: 0,
        last_failure: None,
        delay_notified: false,
        by_hand: None,
        released: None,
    };
    Job { message: Arc::new(message), body: Body::new(vec![content]), recipients: vec![(0, recipient)] }
}
