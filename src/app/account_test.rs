//! A login of ours tested as an application would use it: on a submission listener of the running server, over a
//! connection like any other.
//!
//! Promises: nothing is sent unless that is asked for; the password is in no text. What goes wrong is explained with
//! the configuration at hand, which names the key to change; that may be newer than the one the server runs with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use crate::clock::Clock;
use crate::config::{Account, AddressOrDomain, Config, Listener, ListenerTls, Role, Secret, Senders};
use crate::delivery::host_test::{group_of, of_outcome, test_job};
use crate::delivery::smtp::{self, HostTarget, ProbeMode, SmtpTransport, TlsMode};
use crate::message::Address;
use crate::queue::record::Route;
use crate::server::accounts::Accounts;
use crate::server::step::Login;
use crate::trail::{Group, Leg, Mark, Problem, Tested, Trail};

/// What to test, and how far.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Of `[accounts]`.
    pub name: String,
    pub password: Secret,
    /// Of `[listeners]`; none: the first for submission.
    pub listener: Option<String>,
    /// The server's name as an application elsewhere has it; its certificate has to be for that. None: where the
    /// listener listens on this machine.
    pub host: Option<String>,
    pub from: Option<Address>,
    pub to: Option<Address>,
    pub send: bool,
}

/// Why there is nothing to test: what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoTest(pub String, pub String);

struct Plan<'a> {
    account: &'a Account,
    listener: (&'a str, &'a Listener),
    target: HostTarget,
    from: Address,
    to: Address,
}

/// Goes the way of a message of the account.
pub async fn test(config: &Arc<Config>, smtp: &SmtpTransport, wish: &Wish) -> Result<Tested, NoTest> {
    let plan = plan(config, wish)?;
    let trail = Trail::default();
    trail.mark(Leg::Configuration, Instant::now(), settings(&plan, wish));
    let now = Clock::System.now();
    let job = test_job(&plan.from, &plan.to, Route::Remote, now, config.hostname.as_str());
    let mode = if wish.send { ProbeMode::Send } else { ProbeMode::Rehearse };
    let gone = match smtp.probe(&job, &plan.target, mode, &trail).await {
        Ok(outcome) => of_outcome(outcome),
        Err(trouble) => Err((group_of(&trouble), trouble.failure.reason)),
    };
    let marks = trail.marks();
    let problem = match gone {
        Ok(()) => None,
        Err((group, what)) => {
            let remedy = remedy(config, wish, &plan, group, &marks, &what).await;
            Some(Problem { group, what: masked(&what, &wish.password), remedy })
        }
    };
    Ok(Tested {
        test: "account".to_owned(),
        name: wish.name.clone(),
        good: problem.is_none(),
        from: Some(plan.from.to_string()),
        to: Some(plan.to.to_string()),
        sent: wish.send && problem.is_none(),
        marks,
        problem,
    })
}

fn masked(text: &str, Secret(secret): &Secret) -> String {
    if secret.is_empty() { text.to_owned() } else { text.replace(secret.as_str(), "********") }
}

fn plan<'a>(config: &'a Config, wish: &Wish) -> Result<Plan<'a>, NoTest> {
    let known = |names: Vec<&str>| match names.is_empty() {
        true => "there is none".to_owned(),
        false => format!("there are: {}", names.join(", ")),
    };
    let account = config.accounts.get(&wish.name).ok_or_else(|| {
        let there = known(config.accounts.keys().map(String::as_str).collect());
        NoTest(format!("there is no account named {:?}", wish.name), there)
    })?;
    let mut doors = config.listeners.iter().filter(|(_, listener)| listener.role == Role::Submission);
    let listener = match &wish.listener {
        None => doors.next(),
        Some(name) => doors.find(|(known, _)| *known == name),
    };
    let (name, listener) = listener.ok_or_else(|| {
        let doors = config.listeners.iter().filter(|(_, listener)| listener.role == Role::Submission);
        let there = known(doors.map(|(name, _)| name.as_str()).collect());
        let what = match &wish.listener {
            Some(name) => format!("there is no listener named {name:?} with role = \"submission\""),
            None => "there is no listener with role = \"submission\", where applications log in".to_owned(),
        };
        NoTest(what, there)
    })?;
    let no_address = || NoTest("no address fits the test".to_owned(), "name them with --from and --to".to_owned());
    let own = config.domains.keys().next().unwrap_or(&config.hostname);
    let at = |local: &str| Address::parse(&format!("{local}@{own}")).ok();
    let from = wish.from.clone().or_else(|| sender(account)).or_else(|| at("postmaster")).ok_or_else(no_address)?;
    let to = wish.to.clone().or_else(|| at("postmaster")).ok_or_else(no_address)?;
    let bound = listener.bind.first().ok_or_else(no_address)?;
    let here = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let target = HostTarget {
        host: wish.host.clone().unwrap_or_else(|| here.to_string()),
        port: bound.port(),
        tls: match listener.tls {
            ListenerTls::Off => TlsMode::Off,
            ListenerTls::Opportunistic => TlsMode::Opportunistic,
            ListenerTls::Required => TlsMode::Required,
            ListenerTls::Implicit => TlsMode::Implicit,
        },
        // Of an address nobody has a certificate.
        verify_certificate: wish.host.is_some() && listener.tls != ListenerTls::Off,
        login: Some(smtp::Login { username: wish.name.clone(), secret: smtp::Secret::Password(wish.password.clone()) }),
        mail_from: None,
        debug: false,
    };
    Ok(Plan { account, listener: (name.as_str(), listener), target, from, to })
}

/// The first that the account may use.
fn sender(account: &Account) -> Option<Address> {
    let Senders::Only(list) = &account.senders else { return None };
    list.iter().find_map(|entry| match entry {
        AddressOrDomain::Address(address) => Some(address.clone()),
        AddressOrDomain::Domain(domain) => Address::parse(&format!("noreply@{domain}")).ok(),
    })
}

fn settings(plan: &Plan<'_>, wish: &Wish) -> String {
    let (name, listener) = plan.listener;
    let tls = match listener.tls {
        ListenerTls::Off => "off",
        ListenerTls::Opportunistic => "opportunistic",
        ListenerTls::Required => "required",
        ListenerTls::Implicit => "implicit",
    };
    let mut said = format!("listener {name}, {} port {}, tls {tls}", plan.target.host, plan.target.port);
    if !plan.account.active {
        said += &format!("; accounts.{}.active = false", wish.name);
    }
    if wish.host.is_none() && listener.tls != ListenerTls::Off {
        said += "; the certificate is not checked (--host NAME checks it)";
    }
    said
}

async fn remedy(
    config: &Arc<Config>,
    wish: &Wish,
    plan: &Plan<'_>,
    group: Group,
    marks: &[Mark],
    what: &str,
) -> String {
    let (listener, account) = (format!("listeners.{}", plan.listener.0), format!("accounts.{}", wish.name));
    let has = |leg: Leg| marks.iter().any(|mark| mark.leg == leg);
    match group {
        Group::BadHostName => "check --host, and that this machine can ask its name servers".to_owned(),
        Group::NoResponse => {
            format!("start the server with `postrider serve`, or check {listener}.bind and firewalls on the way")
        }
        Group::Tls if wish.host.is_some() => {
            "the certificate has to be for the name in --host and from an issuer that applications trust: \
                     see tls.certificate, tls.acme and `postrider check --dns`"
                .to_owned()
        }
        Group::Tls => format!("check {listener}.tls and tls.certificate; the server's log tells more"),
        Group::Login => login_remedy(config, wish, plan, &account).await,
        Group::Unsupported => format!("no login is offered there: check {listener}.tls and its role"),
        Group::Refused if !has(Leg::Mail) => format!(
            "this server turned the connection away: see networks.blocked, limits.connections and \
                     limits.auth_failures, and {listener}"
        ),
        Group::Refused if !config.may_send_as(plan.account, &plan.from) => {
            format!("<{}> is not among {account}.senders: add it there, or give another --from", plan.from)
        }
        Group::Refused if what.contains("450") && what.contains("4.7.1") => {
            format!("the account has used up {account}.daily_limit or {account}.rate_limit; try later, or raise it")
        }
        Group::Refused => format!(
            "read what the server says: {account} (senders, limits), the recipient's alias and [delivery] \
             allow_recipients decide; `postrider explain --from {} --to {} --account {}` tells each step",
            plan.from, plan.to, wish.name
        ),
        Group::Disconnected | Group::System | Group::Other => {
            format!("look into the server's log; check that {listener}.tls fits its port")
        }
    }
}

/// Whether the password is right by the configuration tells whose fault it is.
async fn login_remedy(config: &Arc<Config>, wish: &Wish, plan: &Plan<'_>, account: &str) -> String {
    if !plan.account.active {
        return format!("set {account}.active = true");
    }
    let Ok(accounts) = Accounts::new(config.clone(), Clock::System) else {
        return format!("check the password, and {account}.password_hash");
    };
    let login = Login { account: wish.name.clone(), password: wish.password.clone() };
    match accounts.verify(login).await {
        Err(_) => format!(
            "this password is not the one of {account}: give the right one, or put the line of `postrider account \
             hash` into {account}.password_hash"
        ),
        Ok(_) => "by this configuration the password is right: the server may run with an older one (reload it), or \
                  limits.auth_failures keeps this address or account away for a while"
            .to_owned(),
    }
}
