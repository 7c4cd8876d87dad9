//! What would become of a message that does not exist: each decision on its way, on a configuration alone.
//! Nothing is sent, stored or looked up. The decisions are made by the functions that make them for mail
//! (`intake::rehearse`, `routing`); here they are put into words, with the key that decides.

mod inward;
mod outward;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock::Millis;
use crate::config::{Account, Config, ListenerTls, Places, Role, Senders};
use crate::delivery::smtp::Prospect;
use crate::intake::rehearse::{At, rehearse};
use crate::message::{Address, Content, Domain, Door, Draft, Envelope, Origin, ReversePath, TlsWish};
use crate::secret::Marks;
use crate::server::session::replies;
use crate::smtp::Reply;
use crate::smtp::reply::Refusal;

use super::held::first_key;

/// Bytes of a message of which nothing is said.
const SIZE_DEFAULT: u64 = 10 * 1024;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Question {
    pub from: ReversePath,
    pub to: Address,
    pub account: Option<String>,
    pub listener: Option<String>,
    /// Bytes.
    pub size: Option<u64>,
    /// REQUIRETLS.
    pub tls_required: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routed {
    /// It would be taken.
    pub accepted: bool,
    /// What the server would say: at the command that refuses it, else after the message.
    pub reply: String,
    /// At which command.
    pub at: String,
    pub steps: Vec<Step>,
    /// Domains that the mail would go to directly.
    pub domains: Vec<String>,
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub topic: Topic,
    pub verdict: Verdict,
    /// A sentence.
    pub what: String,
    /// The key that decides.
    pub key: Option<String>,
    /// Where that is written; none: its default counts.
    pub place: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    Door,
    Tls,
    Size,
    Sender,
    Recipient,
    Alias,
    Limits,
    Loops,
    Checks,
    Stream,
    From,
    Delivery,
    WayOut,
    Signature,
    Dns,
}

impl Topic {
    pub fn name(self) -> &'static str {
        match self {
            Topic::Door => "door",
            Topic::Tls => "TLS",
            Topic::Size => "size",
            Topic::Sender => "sender",
            Topic::Recipient => "recipient",
            Topic::Alias => "alias",
            Topic::Limits => "limits",
            Topic::Loops => "loops",
            Topic::Checks => "checks",
            Topic::Stream => "stream",
            Topic::From => "From",
            Topic::Delivery => "delivery",
            Topic::WayOut => "way out",
            Topic::Signature => "signature",
            Topic::Dns => "DNS",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Good,
    /// Nothing is decided here, but it is good to know.
    Note,
    Held,
    Refused,
}

/// The question cannot be asked of this configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct NoAnswer {
    pub what: String,
    pub remedy: String,
}

/// The steps, as they are found.
struct Steps<'a> {
    places: &'a Places,
    steps: Vec<Step>,
}

impl Steps<'_> {
    fn say(&mut self, topic: Topic, verdict: Verdict, what: impl Into<String>, key: Option<&str>) {
        let place = key.and_then(|key| self.places.of(key));
        self.steps.push(Step { topic, verdict, what: what.into(), key: key.map(str::to_owned), place });
    }

    fn good(&mut self, topic: Topic, what: impl Into<String>, key: &str) {
        self.say(topic, Verdict::Good, what, Some(key));
    }

    fn note(&mut self, topic: Topic, what: impl Into<String>, key: &str) {
        self.say(topic, Verdict::Note, what, Some(key));
    }
}

/// Through which door it comes.
struct Entrance<'c> {
    door: Door,
    role: Role,
    account: Option<String>,
    tls: Option<ListenerTls>,
    config: &'c Config,
}

/// Goes through all decisions. `now`: what decisions that have to do with time are made for.
pub fn route(config: &Config, places: &Places, question: &Question, now: Millis) -> Result<Routed, NoAnswer> {
    let mut steps = Steps { places, steps: Vec::new() };
    let entrance = entrance(config, question, &mut steps)?;
    let size = question.size.unwrap_or(SIZE_DEFAULT);
    if let Some(reply) = before_mail(&entrance, question, size, &mut steps) {
        return Ok(refused(steps, "MAIL", &reply));
    }
    let draft = draft(config, question, &entrance);
    let marks = Marks::look(&config.data_dir).map_err(|error| NoAnswer {
        what: format!("the system gives no random numbers: {error}"),
        remedy: "try again".to_owned(),
    })?;
    let rehearsed = rehearse(config, &marks, &draft, entrance.role, size, now);
    let at = rehearsed.as_ref().err().map(|(at, _)| *at);
    inward::sender(&entrance, question, at, &mut steps);
    if at != Some(At::Mail) {
        inward::recipient(&entrance, question, at, &mut steps);
    }
    let rehearsed = match rehearsed {
        Ok(rehearsed) => rehearsed,
        Err((at, refusal)) => return Ok(refused_by_intake(config, question, steps, at, &refusal)),
    };
    inward::guards(&entrance, question, &mut steps);
    let domains = outward::deliveries(config, question, &rehearsed, &mut steps);
    let reply = Reply::new(250, (0, 0), "queued as ID").to_string();
    let domains = domains.iter().map(Domain::to_string).collect();
    Ok(Routed { accepted: true, reply, at: "the end of the message".to_owned(), steps: steps.steps, domains })
}

/// What the look-ups for a domain have found, as steps.
pub fn looked_up(places: &Places, domain: &str, prospect: &Prospect) -> Vec<Step> {
    let mut steps = Steps { places, steps: Vec::new() };
    for host in &prospect.hosts {
        let text = super::way::exchanger(host);
        let verdict = if host.unused.is_some() { Verdict::Held } else { Verdict::Good };
        steps.say(Topic::Dns, verdict, format!("{domain} goes to {text}"), host.key.as_deref());
    }
    if let Some(trouble) = &prospect.trouble {
        let what = if prospect.is_final { "would fail at once" } else { "would wait" };
        let verdict = if prospect.is_final { Verdict::Refused } else { Verdict::Held };
        steps.say(Topic::Dns, verdict, format!("mail for {domain} {what}: {trouble}"), None);
    }
    steps.steps
}

/// What the sender asks of TLS on the further way.
pub fn wish(question: &Question) -> TlsWish {
    if question.tls_required { TlsWish::Required } else { TlsWish::Usual }
}

fn entrance<'c>(config: &'c Config, question: &Question, steps: &mut Steps<'_>) -> Result<Entrance<'c>, NoAnswer> {
    if let Some(name) = &question.listener {
        let Some(listener) = config.listeners.get(name) else {
            let names: Vec<&str> = config.listeners.keys().map(String::as_str).collect();
            let remedy = format!("there are: {}", names.join(", "));
            return Err(NoAnswer { what: format!("there is no listener named {name:?}"), remedy });
        };
        let key = format!("listeners.{name}.role");
        let (door, what) = match listener.role {
            Role::Mx => (Door::Mx { listener: name.clone() }, "from outside, without a login"),
            Role::Submission => {
                (Door::Submission { listener: name.clone() }, "from a client in networks.trusted, without a login")
            }
        };
        steps.good(Topic::Door, format!("It comes in over the listener {name}, {what}"), &key);
        return Ok(Entrance { door, role: listener.role, account: None, tls: Some(listener.tls), config });
    }
    let named = question.account.clone();
    if let Some(name) = named.as_ref().filter(|name| !config.accounts.contains_key(*name)) {
        let names: Vec<&str> = config.accounts.keys().map(String::as_str).collect();
        let remedy = format!("there are: {}", if names.is_empty() { "none".into() } else { names.join(", ") });
        return Err(NoAnswer { what: format!("there is no account named {name:?}"), remedy });
    }
    let listener = |role: Role| config.listeners.iter().find(|(_, listener)| listener.role == role);
    let is_inward =
        config.is_own(question.to.domain()) && question.from.address().is_none_or(|from| !config.is_own(from.domain()));
    if let (None, true, Some((name, listener))) = (&named, is_inward, listener(Role::Mx)) {
        let what =
            format!("It comes in over the listener {name}, from outside (--account or --listener names another way)");
        steps.good(Topic::Door, what, &format!("listeners.{name}.role"));
        let door = Door::Mx { listener: name.clone() };
        return Ok(Entrance { door, role: Role::Mx, account: None, tls: Some(listener.tls), config });
    }
    let account = named.or_else(|| likely_account(config, &question.from));
    let Some(account) = account else {
        let what = "It is submitted on the admin socket (`postrider send`): there are no [accounts]";
        steps.say(Topic::Door, Verdict::Good, what, None);
        return Ok(Entrance { door: Door::Admin, role: Role::Submission, account: None, tls: None, config });
    };
    let key = format!("accounts.{account}");
    let (door, tls, over) = match listener(Role::Submission) {
        Some((name, listener)) => {
            (Door::Submission { listener: name.clone() }, Some(listener.tls), format!(" over the listener {name}"))
        }
        None => (Door::Http, None, String::new()),
    };
    let chosen = if question.account.is_some() { "" } else { " (--account names another)" };
    steps.good(Topic::Door, format!("It is submitted by the account {account}{over}{chosen}"), &key);
    Ok(Entrance { door, role: Role::Submission, account: Some(account), tls, config })
}

/// An account that may use this sender: rather one that it is named for, and that is not held. If none may,
/// the first one has to say so.
fn likely_account(config: &Config, from: &ReversePath) -> Option<String> {
    let may = |account: &Account| from.address().is_none_or(|from| config.may_send_as(account, from));
    let rank = |account: &Account| {
        let is_named = matches!(account.senders, Senders::Only(_));
        (!account.active, !may(account), !is_named, account.hold)
    };
    config.accounts.iter().min_by_key(|(_, account)| rank(account)).map(|(name, _)| name.clone())
}

/// What the session looks at before it asks intake.
fn before_mail(entrance: &Entrance<'_>, question: &Question, size: u64, steps: &mut Steps<'_>) -> Option<Reply> {
    let listener = match &entrance.door {
        Door::Mx { listener } | Door::Submission { listener } => format!("listeners.{listener}.tls"),
        _ => "listeners".to_owned(),
    };
    match entrance.tls {
        Some(ListenerTls::Off) if question.tls_required => {
            let what = "REQUIRETLS is taken under TLS only, and this listener has none";
            steps.say(Topic::Tls, Verdict::Refused, what, Some(&listener));
            return Some(replies::requiretls_needs_tls());
        }
        Some(ListenerTls::Required) => steps.good(Topic::Tls, "The client has to issue STARTTLS first", &listener),
        _ => {}
    }
    if question.tls_required {
        let what = "REQUIRETLS: no server gets it without TLS and a certificate that is valid";
        steps.say(Topic::Tls, Verdict::Note, what, None);
    }
    let nobody = entrance.config.networks.trusted.is_empty();
    if let (Door::Submission { .. }, None, true) = (&entrance.door, &entrance.account, nobody) {
        let what = "Without a login nobody may submit here: no network is trusted (--account names a login)";
        steps.say(Topic::Sender, Verdict::Refused, what, Some("networks.trusted"));
        return Some(replies::auth_first());
    }
    let max = entrance.config.limits.max_size;
    if size > max {
        let what = format!("{size} bytes are more than the {max} that any message may have");
        steps.say(Topic::Size, Verdict::Refused, what, Some("limits.max_size"));
        return Some(replies::too_large(max));
    }
    if question.size.is_some() {
        steps.good(
            Topic::Size,
            format!("{size} bytes are within the {max} that any message may have"),
            "limits.max_size",
        );
    }
    None
}

fn draft(config: &Config, question: &Question, entrance: &Entrance<'_>) -> Draft {
    let from = match &question.from {
        ReversePath::Address(from) => from.to_string(),
        ReversePath::Null => config.postmaster.to_string(),
    };
    let content = format!("From: <{from}>\r\nTo: <{}>\r\nSubject: explain\r\n\r\n", question.to);
    let mut envelope = Envelope::new(question.from.clone(), [question.to.clone()]);
    envelope.require_tls = question.tls_required;
    let origin = Origin { door: entrance.door.clone(), account: entrance.account.clone(), peer: None };
    Draft { envelope, content: Content::from(Bytes::from(content)), origin }
}

fn refused(steps: Steps<'_>, at: &str, reply: &Reply) -> Routed {
    let steps = steps.steps;
    Routed { accepted: false, reply: reply.to_string(), at: at.to_owned(), steps, domains: Vec::new() }
}

fn refused_by_intake(config: &Config, question: &Question, mut steps: Steps<'_>, at: At, refusal: &Refusal) -> Routed {
    let command = match at {
        At::Mail => "MAIL",
        At::Rcpt => "RCPT",
        At::Message => "the end of the message",
    };
    if at == At::Message {
        let domain = question.to.domain();
        let of_domain = config.domains.get(domain).and_then(|own| own.max_size);
        let is_size = refusal.reply.code == 552 && of_domain.is_some();
        let key = if is_size { Some(format!("domains.\"{domain}\".max_size")) } else { first_key(&refusal.reason) };
        let topic = if is_size { Topic::Size } else { Topic::Sender };
        steps.say(topic, Verdict::Refused, refusal.reason.clone(), key.as_deref());
    }
    refused(steps, command, &refusal.reply)
}
